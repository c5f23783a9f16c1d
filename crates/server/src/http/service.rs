//! One request in, one answer out.
//!
//! Nearly every request is a token read that memory can answer, or a call that is carried to WeChat.
//! The former is answered on the spot, without a lock and without the router; whatever is out of the
//! ordinary about it is left to the router, so that there is one place for every rule and every
//! error. Calls of WeChat's API do not come near the router either.

use std::{
    convert::Infallible,
    fmt,
    future::{Future, Ready, ready},
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    extract::Request as RouterRequest,
    http::{HeaderValue, Method, Request, Response},
    routing::{MethodFilter, MethodRouter},
};
use bytes::Bytes;
use futures_util::future;
use http_body_util::{Either, Full};
use hyper::body::Body as HttpBody;
use tower::ServiceExt;
use wechat::Download;

use super::{
    Access, App, Operation, ROUTES, Route,
    call::{self, Parameters},
    compatible, metrics,
    problem::{Problem, ProblemType},
    proxy,
    request_id::X_REQUEST_ID,
    token,
};

/// The body of an answer: small and whole, whatever the router made, or WeChat's.
pub type Payload = Either<Full<Bytes>, Either<Body, Download>>;

/// A body that is there as a whole.
pub(super) fn payload(bytes: impl Into<Bytes>) -> Payload {
    Payload::Left(Full::new(bytes.into()))
}

/// The API as a service of [`hyper`]. Cloning gives another handle to the same one.
#[derive(Clone)]
pub struct Service {
    inner: Arc<Inner>,
    face: Face,
}

/// What a listener shows of the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Face {
    /// All that services call.
    Services,
    /// Only what an SDK finds in WeChat's place.
    Compatible,
    /// What operators and their monitoring ask.
    Admin,
}

/// The paths of the admin listener, all of them open to everybody who reaches it; it listens on the
/// loopback address unless told otherwise.
pub static ADMIN_PATHS: [&str; 3] = ["/metrics", "/healthz", "/readyz"];

struct Inner {
    app: App,
    router: Router,
    /// Who may read a token, from the table.
    token: Access,
}

/// Which part of the server a request is for.
enum Part {
    /// The routes of the table.
    Api,
    /// WeChat's API, for services that know us.
    Proxy,
    /// WeChat's API, for SDKs that take us for WeChat.
    Compatible,
    /// The metrics.
    Metrics,
    /// Nothing that is here.
    Nothing,
}

impl Service {
    /// The service of an app.
    pub fn new(app: App) -> Self {
        let router = router(&app);
        let token = Route::of(Operation::ReadToken).access;
        Self { inner: Arc::new(Inner { app, router, token }), face: Face::Services }
    }

    /// The service of an app as far as it stands in WeChat's place, and nothing else.
    pub fn compatible(app: App) -> Self {
        Self { face: Face::Compatible, ..Self::new(app) }
    }

    /// The service of an app for operators: [`ADMIN_PATHS`].
    pub fn admin(app: App) -> Self {
        Self { face: Face::Admin, ..Self::new(app) }
    }

    /// What it is a service of.
    pub fn app(&self) -> &App {
        &self.inner.app
    }

    /// Answers a request.
    pub async fn answer<B>(&self, request: Request<B>) -> Response<Payload>
    where
        B: HttpBody<Data = Bytes> + Send + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        match self.token_at_hand(&request) {
            Some(response) => response,
            None => self.clone().work(request).await,
        }
    }

    fn part<B>(&self, request: &Request<B>) -> Part {
        let path = request.uri().path();
        // WeChat is asked for paths only, and a `CONNECT` that is answered with 200 opens a tunnel.
        if request.method() == Method::CONNECT || !path.starts_with('/') {
            return Part::Api;
        }
        match (self.face, path) {
            (Face::Compatible, _) => Part::Compatible,
            (Face::Admin, "/metrics") => Part::Metrics,
            (_, "/healthz" | "/readyz") => Part::Api,
            (Face::Admin, _) => Part::Nothing,
            (Face::Services, "/v1") => Part::Api,
            (Face::Services, path) if path.starts_with("/v1/") => Part::Api,
            (Face::Services, path) if path.starts_with(proxy::PREFIX) => Part::Proxy,
            (Face::Services, _) => Part::Compatible,
        }
    }

    async fn work<B>(self, request: Request<B>) -> Response<Payload>
    where
        B: HttpBody<Data = Bytes> + Send + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        match self.part(&request) {
            Part::Api => Box::pin(self.route(request)).await,
            Part::Proxy => proxy::answer(&self.inner.app, request).await,
            Part::Compatible => compatible::answer(&self.inner.app, request).await,
            Part::Metrics if matches!(*request.method(), Method::GET | Method::HEAD) => {
                Box::pin(metrics::answer(&self.inner.app.broker)).await
            }
            Part::Metrics => self.refuse(
                &request,
                Problem::method_not_allowed(HeaderValue::from_static("GET, HEAD")),
            ),
            Part::Nothing => {
                let detail = "The admin listener has `/metrics`, `/healthz` and `/readyz`.";
                self.refuse(&request, Problem::new(ProblemType::NotFound, detail))
            }
        }
    }

    /// The answer to a plain token read that memory can give. Takes no lock.
    fn token_at_hand<B>(&self, request: &Request<B>) -> Option<Response<Payload>> {
        let Inner { app, token: Access::Needs(permission), .. } = &*self.inner else {
            return None;
        };
        if request.method() != Method::GET || self.face != Face::Services {
            return None;
        }
        let path = request.uri().path();
        let name = path.strip_prefix("/v1/apps/")?.strip_suffix("/token")?;
        let min_ttl = match request.uri().query() {
            None => Duration::ZERO,
            Some(query) => token::plain_min_ttl(query)?,
        };
        let key = app.broker.authenticate(call::bearer(request.headers()).ok()?).ok()?;
        let entry = app.broker.app(name)?;
        if !key.may(*permission) || !key.reaches(&entry.app().id) {
            return None;
        }
        let view = app.broker.token_now(&entry, Some(&key), min_ttl)?;
        let mut response = token::answer(&view);
        let request_id = app.request_ids.of(request.headers());
        tracing::debug!(
            method = "GET",
            route = "/v1/apps/{app}/token",
            key.id = %key.id,
            app.id = %entry.app().id,
            status = 200,
            request.id = request_id.to_str().unwrap_or_default(),
            "answered from memory"
        );
        response.headers_mut().insert(X_REQUEST_ID, request_id);
        Some(response)
    }

    fn refuse<B>(&self, request: &Request<B>, problem: Problem) -> Response<Payload> {
        let request_id = self.inner.app.request_ids.of(request.headers());
        let mut response = problem.into_response(&request_id);
        response.headers_mut().insert(X_REQUEST_ID, request_id);
        response
    }

    async fn route<B>(self, request: Request<B>) -> Response<Payload>
    where
        B: HttpBody<Data = Bytes> + Send + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let router = self.inner.router.clone();
        let Ok(response) = router.oneshot(request.map(Body::new)).await;
        response.map(|body| Payload::Right(Either::Left(body)))
    }
}

impl<B> hyper::service::Service<Request<B>> for Service
where
    B: HttpBody<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    type Response = Response<Payload>;
    type Error = Infallible;
    type Future = future::Either<
        Ready<Result<Response<Payload>, Infallible>>,
        Pin<Box<dyn Future<Output = Result<Response<Payload>, Infallible>> + Send>>,
    >;

    fn call(&self, request: Request<B>) -> Self::Future {
        if let Some(response) = self.token_at_hand(&request) {
            return future::Either::Left(ready(Ok(response)));
        }
        let this = self.clone();
        future::Either::Right(Box::pin(async move { Ok(this.work(request).await) }))
    }
}

impl fmt::Debug for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Service").field(&self.inner.app).finish()
    }
}

/// The router: the routes of the table and no other.
fn router(app: &App) -> Router {
    let mut router = Router::new();
    let mut paths: Vec<&'static str> = ROUTES.iter().map(|route| route.path).collect();
    paths.sort_unstable();
    paths.dedup();
    for path in paths {
        router = router.route(path, methods(app, path));
    }
    let app = app.clone();
    router.fallback(move |request: RouterRequest| async move {
        let detail = "There is no such path; `/v1/openapi.json` lists those that there are.";
        call::refuse(&app, &request, Problem::new(ProblemType::NotFound, detail))
    })
}

/// The methods of one path, and the refusal of all others.
fn methods(app: &App, path: &'static str) -> MethodRouter {
    let routes: Vec<&'static Route> = ROUTES.iter().filter(|route| route.path == path).collect();
    let allow: Vec<&str> = routes
        .iter()
        .flat_map(|route| match route.method {
            Method::GET => vec!["GET", "HEAD"],
            _ => vec![route.method.as_str()],
        })
        .collect();
    let allow = HeaderValue::try_from(allow.join(", ")).expect("methods make a header value");
    let mut methods = MethodRouter::new();
    for route in routes {
        let filter = MethodFilter::try_from(route.method.clone())
            .expect("the table has only common methods");
        let app = app.clone();
        let endpoint = move |parameters: Parameters, request: RouterRequest| async move {
            call::answer(&app, route, parameters, request).await
        };
        methods = methods.on(filter, endpoint);
    }
    let app = app.clone();
    methods.fallback(move |request: RouterRequest| async move {
        call::refuse(&app, &request, Problem::method_not_allowed(allow))
    })
}
