//! `ANY /wx/{app}/{path…}`: WeChat's API itself, for services that know us. The client key comes as
//! `Authorization`, the app's token is put in, and what WeChat answers is passed on; what we have to
//! say ourselves is a problem, as everywhere in the service API.

use std::{pin::pin, sync::Arc};

use axum::http::{HeaderValue, Request, Response, request};
use broker::{
    key::Permission,
    path::{CallPath, NotCarried},
};
use bytes::Bytes;
use hyper::body::Body;

use super::{
    App,
    call::{bearer, caught},
    carry::{Call, Unanswered, Who, carry},
    compatible::{CallQuery, Family, Refusal},
    problem::{Problem, ProblemType, unanswered},
    request_id::X_REQUEST_ID,
    service::Payload,
    upload::{Arriving, Fault},
};

/// What all paths of the proxy begin with.
pub(super) const PREFIX: &str = "/wx/";

/// Who is told no, and how.
enum No {
    Problem(Problem),
    /// The one thing that is said in WeChat's words: callers know how to wait for it.
    TooFast(Refusal),
}

impl From<Problem> for No {
    fn from(problem: Problem) -> Self {
        Self::Problem(problem)
    }
}

/// Answers a request below [`PREFIX`].
pub(super) async fn answer<B>(app: &App, request: Request<B>) -> Response<Payload>
where
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let (head, body) = request.into_parts();
    let body = app.uploads.arriving(&head.headers, body);
    let request_id = app.request_ids.of(&head.headers);
    let mut who = Who::default();
    let answer = {
        let work = pin!(work(app, &head, body, &request_id, &mut who));
        caught(&request_id, work).await
    };
    let answer = answer.unwrap_or_else(|| Err(Problem::bug().into()));
    let mut response = answer.unwrap_or_else(|no| {
        let (id, method) = (request_id.to_str().unwrap_or_default(), &head.method);
        let (key, app_id) = (who.key_id(), who.app_id());
        match no {
            No::Problem(problem) => {
                let kind = problem.kind.uri();
                tracing::debug!(%method, problem = kind, request.id = id, key.id = key, app.id = app_id, "refused a proxied call");
                problem.into_response(&request_id)
            }
            No::TooFast(refusal) => {
                let rid = app.request_ids.rid(app.broker.now());
                let errcode = refusal.errcode;
                tracing::info!(%method, rid, request.id = id, key.id = key, app.id = app_id, errcode, "refused a proxied call");
                refusal.into_response(Family::Cgi, &rid)
            }
        }
    });
    response.headers_mut().insert(X_REQUEST_ID, request_id);
    response
}

async fn work(
    app: &App,
    head: &request::Parts,
    body: Arriving,
    request_id: &HeaderValue,
    who: &mut Who,
) -> Result<Response<Payload>, No> {
    let request::Parts { method, uri, headers, .. } = head;
    let key = app.broker.authenticate(bearer(headers)?).map_err(Problem::from)?;
    who.key = Some(Arc::clone(&key));
    let rest = uri.path().strip_prefix(PREFIX).unwrap_or_default();
    let (name, _) = rest.split_once('/').unwrap_or((rest, ""));
    let entry = app.broker.app(name).filter(|entry| key.reaches(&entry.app().id));
    if !key.may(Permission::Proxy) {
        return Err(Problem::forbidden(Permission::Proxy).into());
    }
    let entry = entry.ok_or_else(Problem::app_not_found)?;
    who.entry = Some(Arc::clone(&entry));
    let path = CallPath::parse(&rest[name.len()..])
        .map_err(|flaw| Problem::invalid("path", format!("Of WeChat's API, {flaw}.")))?;
    key.rights.may_call(path).map_err(|why| match why {
        NotCarried::Lacks(permission) => Problem::forbidden(permission),
        NotCarried::OtherPaths | NotCarried::Closed(_) => {
            Problem::new(ProblemType::Forbidden, format!("This is not carried: {why}."))
        }
    })?;
    let query = CallQuery::parse(uri.query())
        .map_err(|flaw| Problem::invalid("query", format!("In the query, {flaw}.")))?;
    if query.tells_a_key() {
        let detail = "A client key in the query would be sent to WeChat.";
        return Err(Problem::invalid("query", detail).into());
    }
    key.admit_call(&entry).map_err(|of| No::TooFast(of.into()))?;
    let (key, entry, query) = (&key, &entry, query.rest.as_str());
    let call = Call { key, entry, method, path, query, headers, body, request_id };
    carry(app, call).await.map_err(|none| No::Problem(problem(app, none)))
}

fn problem(app: &App, none: Unanswered) -> Problem {
    match none {
        Unanswered::Trace => {
            Problem::new(ProblemType::Forbidden, "TRACE is not carried: it shows the token.")
        }
        Unanswered::Key(error) => error.into(),
        Unanswered::Token(error) => error.into(),
        Unanswered::WeChat(error) => unanswered(&error),
        Unanswered::Upload(Fault::TooLarge) => Problem::body_too_large(app.limits.call_body),
        Unanswered::Upload(Fault::Stalled) => {
            Problem::new(ProblemType::BodyTimeout, "The body did not arrive in time.")
        }
        Unanswered::Upload(Fault::Broken) => {
            Problem::new(ProblemType::Malformed, "The body broke off, or its chunks are broken.")
        }
    }
}
