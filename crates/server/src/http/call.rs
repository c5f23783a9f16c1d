//! The way of a request through the rules: who calls, may they, which app, what do they ask, and
//! then the operation.

use std::{
    panic::AssertUnwindSafe,
    pin::{Pin, pin},
    sync::Arc,
    time::Duration,
};

use axum::{
    body::Body,
    extract::{RawPathParams, Request, rejection::RawPathParamsRejection},
    http::{HeaderMap, HeaderValue, Response, header},
};
use broker::{
    AppEntry,
    key::{ClientKey, Permission},
};
use bytes::Bytes;
use futures_util::FutureExt;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::Body as _;
use tokio::time::{Instant, sleep, timeout};
use tracing::{Instrument, Span, field::Empty};

use super::{
    Access, App, Operation, Route, grant, health,
    input::{Query, check_json},
    mini, oauth, openapi,
    problem::{Problem, ProblemType},
    request_id::X_REQUEST_ID,
    service::Payload,
    ticket, token, user,
};

/// The parts of the path that the route leaves open, decoded.
pub(super) type Parameters = Result<RawPathParams, RawPathParamsRejection>;

/// What an operation answers.
pub(super) type Answer = Result<Response<Payload>, Problem>;

/// What a request brings, beside who brings it.
pub(super) struct Input<'a> {
    parameters: &'a RawPathParams,
    pub(super) query: &'a Query<'a>,
    pub(super) headers: &'a HeaderMap,
    pub(super) body: &'a Bytes,
}

impl Input<'_> {
    /// A part of the path that the route leaves open.
    pub(super) fn part(&self, name: &str) -> &str {
        parameter(self.parameters, name).unwrap_or_default()
    }
}

/// Who calls, and for which app: both are there, and the one may use the other.
pub(super) struct Caller {
    pub(super) key: Arc<ClientKey>,
    pub(super) entry: Arc<AppEntry>,
}

/// Answers a request to a route.
pub(super) async fn answer(
    app: &App,
    route: &'static Route,
    parameters: Parameters,
    request: Request,
) -> Response<Body> {
    let request_id = app.request_ids.of(request.headers());
    let started = Instant::now();
    let span = tracing::info_span!(
        "request",
        method = %request.method(),
        route = route.path,
        key.id = Empty,
        app.id = Empty,
        request.id = request_id.to_str().unwrap_or_default(),
    );
    let work = pin!(work(app, route, parameters, request));
    let work = caught(&request_id, work);
    let ended = work.instrument(span.clone()).await.unwrap_or_else(|| Err(Problem::bug()));

    let _entered = span.entered();
    let response = ended.unwrap_or_else(|problem| {
        tracing::debug!(problem = problem.kind.uri(), "refused");
        problem.into_response(&request_id)
    });
    tracing::debug!(
        status = response.status().as_u16(),
        duration_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
        "answered"
    );
    finished(response, request_id)
}

/// Answers a request that leads to no route.
pub(super) fn refuse(app: &App, request: &Request, problem: Problem) -> Response<Body> {
    let request_id = app.request_ids.of(request.headers());
    tracing::debug!(
        method = %request.method(),
        status = problem.kind.status().as_u16(),
        request.id = request_id.to_str().unwrap_or_default(),
        "no route"
    );
    finished(problem.into_response(&request_id), request_id)
}

/// The client key that a request presents.
pub(super) fn bearer(headers: &HeaderMap) -> Result<&str, Problem> {
    let mut given = headers.get_all(header::AUTHORIZATION).iter();
    let Some(one) = given.next() else { return Err(Problem::unauthorized(false)) };
    if given.next().is_some() {
        let detail = "The header `Authorization` is given more than once.";
        return Err(Problem::new(ProblemType::Malformed, detail));
    }
    let key = one.to_str().ok().and_then(|one| one.split_once(' '));
    match key {
        Some((scheme, key)) if scheme.eq_ignore_ascii_case("bearer") => Ok(key),
        _ => Err(Problem::unauthorized(false)),
    }
}

/// Stops a panic, so that it ends one request and nothing else. `None`: there was one.
///
/// The work comes pinned: moved in here, it would be copied as a whole.
pub(super) async fn caught<T>(
    request_id: &HeaderValue,
    work: Pin<&mut impl Future<Output = T>>,
) -> Option<T> {
    let ended = AssertUnwindSafe(work).catch_unwind().await;
    // What it said may quote anything; the panic hook has printed it for the operator.
    ended
        .inspect_err(
            |_| tracing::error!(request.id = ?request_id, "a request made the server panic"),
        )
        .ok()
}

/// The rules, in their order.
async fn work(app: &App, route: &Route, parameters: Parameters, request: Request) -> Answer {
    let (head, body) = request.into_parts();
    let parameters = parameters
        .map_err(|_| Problem::new(ProblemType::Malformed, "The path is not UTF-8 when decoded."))?;
    let caller = match route.access {
        Access::Public => None,
        Access::Needs(permission) => {
            Some(admit(app, permission, &parameters, &head.headers, None)?)
        }
    };
    let query = Query::parse(head.uri.query(), route.operation.query())?;
    let operation = async {
        let body = read_body(app, route.operation, &head.headers, body).await?;
        let allowed = app.limits.request_timeout + route.operation.extra_time();
        let input =
            Input { parameters: &parameters, query: &query, headers: &head.headers, body: &body };
        let operation = operate(app, route.operation, caller.as_ref(), &input);
        timeout(allowed, operation).await.unwrap_or_else(|_| {
            let detail = "The server gave up on this request; it took too long.";
            Err(Problem::new(ProblemType::Deadline, detail))
        })
    };
    let still_admitted = || match (route.access, &caller) {
        (Access::Needs(permission), Some(caller)) => {
            admit(app, permission, &parameters, &head.headers, Some(caller)).map(|_| ())
        }
        _ => Ok(()),
    };
    let answer = tokio::select! {
        biased;
        answer = operation => answer,
        problem = refused(&still_admitted) => return Err(problem),
    };
    // A key that was revoked while its request waited must not be answered.
    still_admitted().and(answer)
}

/// Lets a caller in: the key is good, holds the permission and reaches the app. One who was let in
/// before reaches the same app only: one that was removed and came back is another.
fn admit(
    app: &App,
    permission: Permission,
    parameters: &RawPathParams,
    headers: &HeaderMap,
    before: Option<&Caller>,
) -> Result<Caller, Problem> {
    let key = app.broker.authenticate(bearer(headers)?)?;
    if before.is_none() {
        Span::current().record("key.id", key.id.as_str());
    }
    if !key.may(permission) {
        return Err(Problem::forbidden(permission));
    }
    let entry = parameter(parameters, "app").and_then(|name| app.broker.app(name));
    let reached = entry.filter(|entry| {
        key.reaches(&entry.app().id)
            && before.is_none_or(|before| Arc::ptr_eq(entry, &before.entry))
    });
    let entry = reached.ok_or_else(Problem::app_not_found)?;
    if before.is_none() {
        Span::current().record("app.id", entry.app().id.as_str());
    }
    Ok(Caller { key, entry })
}

/// Waits until a caller would not be let in any more. A key expires without any event, so this
/// looks from time to time.
async fn refused(still_admitted: impl Fn() -> Result<(), Problem>) -> Problem {
    const PAUSE: Duration = Duration::from_secs(1);
    loop {
        sleep(PAUSE).await;
        if let Err(problem) = still_admitted() {
            return problem;
        }
    }
}

async fn operate(
    app: &App,
    operation: Operation,
    caller: Option<&Caller>,
    input: &Input<'_>,
) -> Answer {
    // Were such an operation public in the table, this would still let nobody in.
    let caller = || caller.ok_or_else(|| Problem::unauthorized(false));
    let Input { query, body, .. } = input;
    match operation {
        Operation::ReadToken => token::read(app, caller()?, query).await,
        Operation::ReportToken => token::report(app, caller()?, body).await,
        Operation::ReadTicket => ticket::read(app, caller()?, input.part("kind")).await,
        Operation::SignPage => ticket::sign_page(app, caller()?, body).await,
        Operation::ReadUser => user::read(app, caller()?, input.part("openid"), query).await,
        Operation::ReadUsers => user::read_batch(app, caller()?, body).await,
        Operation::ListUsers => user::list(app, caller()?, query).await,
        Operation::AuthorizeUrl => oauth::authorize_url(app, caller()?, body),
        Operation::ExchangeCode => oauth::exchange(app, caller()?, input).await,
        Operation::ReadGrants => grant::read(app, caller()?, input.part("openid")).await,
        Operation::ForgetUser => grant::forget(app, caller()?, input.part("openid")).await,
        Operation::ReadProfile => grant::profile(app, caller()?, input.part("openid"), query).await,
        Operation::MiniLogin => mini::login(app, caller()?, input).await,
        Operation::MiniDecrypt => mini::decrypt(app, caller()?, body).await,
        Operation::MiniCheckSignature => mini::check_signature(app, caller()?, body).await,
        Operation::OpenApi => Ok(openapi::answer()),
        Operation::Health => Ok(health::health()),
        Operation::Ready => health::ready(app),
    }
}

fn parameter<'a>(parameters: &'a RawPathParams, wanted: &str) -> Option<&'a str> {
    parameters.iter().find(|(name, _)| *name == wanted).map(|(_, value)| value)
}

/// Reads the body of an operation that takes one.
async fn read_body(
    app: &App,
    operation: Operation,
    headers: &HeaderMap,
    body: Body,
) -> Result<Bytes, Problem> {
    let limit = operation.body_limit(app.limits.body);
    if limit == 0 {
        return Ok(Bytes::new());
    }
    check_json(headers)?;
    let too_large = || Problem::body_too_large(limit);
    if body.size_hint().lower() > limit as u64 {
        return Err(too_large());
    }
    let collected = timeout(app.limits.request_timeout, Limited::new(body, limit).collect());
    match collected.await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(err)) if is_length_limit(&*err) => Err(too_large()),
        Ok(Err(_)) => Err(Problem::new(
            ProblemType::Malformed,
            "The body broke off, or its chunks are broken.",
        )),
        Err(_) => {
            let detail = "The body did not arrive in time.";
            Err(Problem::new(ProblemType::BodyTimeout, detail))
        }
    }
}

fn is_length_limit(err: &(dyn std::error::Error + 'static)) -> bool {
    std::iter::successors(Some(err), |err| err.source()).any(|err| err.is::<LengthLimitError>())
}

fn finished(mut response: Response<Payload>, request_id: HeaderValue) -> Response<Body> {
    response.headers_mut().insert(X_REQUEST_ID, request_id);
    response.map(Body::new)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_is_an_answer() {
        let work = pin!(async { panic!("for the test") });
        let ended = caught(&HeaderValue::from_static("id"), work).await;
        assert_eq!(ended, None::<()>);
    }

    #[test]
    fn the_key_of_a_request() {
        let of = |given: &[&'static str]| {
            let headers = given
                .iter()
                .map(|one| (header::AUTHORIZATION, HeaderValue::from_static(one)))
                .collect::<HeaderMap>();
            bearer(&headers).map(str::to_owned).map_err(|problem| problem.kind)
        };
        assert_eq!(of(&["Bearer xk_a"]), Ok("xk_a".to_owned()));
        assert_eq!(of(&["bearer xk_a"]), Ok("xk_a".to_owned()));
        for none in [&[][..], &["xk_a"], &["Basic xk_a"], &[""], &["Bearer"]] {
            assert_eq!(of(none), Err(ProblemType::Unauthorized));
        }
        assert_eq!(of(&["Bearer xk_a", "Bearer xk_b"]), Err(ProblemType::Malformed));
    }
}
