//! Carrying a call to WeChat with an app's global token, and its answer back.
//!
//! What travels up is the call without anything that is between us and the client; what travels
//! back is WeChat's answer as it is. When WeChat refuses the token, the call is sent again with the
//! one that replaced it, as long as its body is there to be sent again and nothing of WeChat's answer
//! has been passed on.

use std::{sync::Arc, time::Duration};

use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, header};
use broker::{
    AppEntry, Attempts, CallClass, INVALID_TOKEN, TokenError, TokenView,
    key::{ClientKey, NotKnown},
    path::CallPath,
};
use bytes::Bytes;
use http_body_util::Either;
use wechat::{Forward, Forwarded, TransportError};

use super::{
    App,
    request_id::X_REQUEST_ID,
    service::{Payload, payload},
    upload::{Arriving, Fault, Faults},
};

/// A call that may be made.
pub(super) struct Call<'a> {
    pub(super) key: &'a Arc<ClientKey>,
    pub(super) entry: &'a Arc<AppEntry>,
    pub(super) method: &'a Method,
    pub(super) path: CallPath<'a>,
    /// The query without any token, each parameter as it came; it begins with `&` unless empty.
    pub(super) query: &'a str,
    /// As they came.
    pub(super) headers: &'a HeaderMap,
    pub(super) body: Arriving,
    pub(super) request_id: &'a HeaderValue,
}

/// Who called, for the log.
#[derive(Default)]
pub(super) struct Who {
    pub(super) key: Option<Arc<ClientKey>>,
    pub(super) entry: Option<Arc<AppEntry>>,
}

impl Who {
    pub(super) fn of(key: &Arc<ClientKey>, entry: &Arc<AppEntry>) -> Self {
        Self { key: Some(Arc::clone(key)), entry: Some(Arc::clone(entry)) }
    }

    /// The id of the client key; empty when it is not known.
    pub(super) fn key_id(&self) -> &str {
        self.key.as_ref().map_or("", |key| &key.id)
    }

    /// The appid; empty when it is not known.
    pub(super) fn app_id(&self) -> String {
        self.entry.as_ref().map(|entry| entry.app().id.to_string()).unwrap_or_default()
    }
}

/// Why a call has no answer of WeChat's.
#[derive(Debug)]
pub(super) enum Unanswered {
    /// Who carries out its method answers with the call itself, and the token in it.
    Trace,
    /// Its client key was revoked while it waited.
    Key(NotKnown),
    /// There is no token to make it with.
    Token(TokenError),
    /// Its body did not arrive.
    Upload(Fault),
    /// WeChat did not answer; it may have got the call if that says so.
    WeChat(TransportError),
}

impl From<NotKnown> for Unanswered {
    fn from(error: NotKnown) -> Self {
        Self::Key(error)
    }
}

impl From<TokenError> for Unanswered {
    fn from(error: TokenError) -> Self {
        Self::Token(error)
    }
}

/// Makes a call, with the app's token.
pub(super) async fn carry(app: &App, call: Call<'_>) -> Result<Response<Payload>, Unanswered> {
    let Call { key, entry, path, request_id, .. } = call;
    counted(try_to_carry(app, call).await, key, entry, path, request_id)
}

/// An answer of WeChat's as it is passed on, and its errcode.
pub(super) type Carried = Result<(Response<Payload>, Option<i64>), Unanswered>;

/// Counts what came of a call, and logs it.
pub(super) fn counted(
    carried: Carried,
    key: &ClientKey,
    entry: &AppEntry,
    path: CallPath<'_>,
    request_id: &HeaderValue,
) -> Result<Response<Payload>, Unanswered> {
    let class = match &carried {
        Ok((answer, None | Some(0))) if is_wechats(answer.status()) => CallClass::Fine,
        Ok((_, None | Some(0))) => CallClass::Unanswered,
        Ok((_, Some(code))) if INVALID_TOKEN.contains(code) => CallClass::Token,
        Ok((_, Some(_))) => CallClass::Errcode,
        Err(Unanswered::Token(_) | Unanswered::WeChat(_)) => CallClass::Unanswered,
        // WeChat was not asked, or not to the end, and that is the client's doing.
        Err(Unanswered::Upload(_) | Unanswered::Key(_) | Unanswered::Trace) => {
            return carried.map(|(answer, _)| answer);
        }
    };
    entry.count_call(path, class);
    tracing::debug!(
        request.id = request_id.to_str().unwrap_or_default(),
        key.id = %key.id,
        app.id = %entry.app().id,
        path = path.name(),
        class = class.as_str(),
        errcode = carried.as_ref().ok().and_then(|(_, errcode)| *errcode),
        "carried a call"
    );
    carried.map(|(answer, _)| answer)
}

/// Whether an answer without an errcode is WeChat's: a gateway's page is not.
fn is_wechats(status: StatusCode) -> bool {
    status.is_success() || status == StatusCode::NOT_MODIFIED
}

/// Makes a call, and tells the errcode of its answer as well.
async fn try_to_carry(app: &App, call: Call<'_>) -> Carried {
    let Call { key, entry, method, path, query, headers, body, request_id: _ } = call;
    let mut body = app.uploads.keep(body).await.map_err(Unanswered::Upload)?;
    let faults = body.faults();
    let mut attempts = Attempts::default();
    loop {
        let used = token(app, entry).await?;
        // It may have waited: for its body, for the token, for what came of a refusal.
        app.broker.recheck(key, entry)?;
        app.broker.count_repeat(attempts);
        let token = used.token.expose();
        let call = Forward {
            method: method.clone(),
            path_and_query: with_token(path, token, query),
            headers: upward(headers),
            body: body.upload(),
        };
        let (answer, errcode) = forward(app, call, &faults, token).await?;
        if errcode.is_some_and(|code| INVALID_TOKEN.contains(&code)) {
            if !body.is_whole() {
                hear(app, entry, key, &used).await;
            } else if Box::pin(app.broker.refused(entry, Some(key), &used, &mut attempts)).await {
                continue;
            }
        }
        return Ok((passed_on(answer, token), errcode));
    }
}

/// What WeChat is asked for.
pub(super) fn with_token(path: CallPath<'_>, token: &str, query: &str) -> String {
    [path.as_str(), "?access_token=", token, query].concat()
}

/// Sends a call once and reads the errcode of its answer; blames whoever is at fault when there is
/// none.
pub(super) async fn forward(
    app: &App,
    call: Forward,
    fault: &Faults,
    secret: &str,
) -> Result<(Forwarded, Option<i64>), Unanswered> {
    // A lenient server takes it in any case.
    if ["TRACE", "TRACK"].iter().any(|trace| call.method.as_str().eq_ignore_ascii_case(trace)) {
        return Err(Unanswered::Trace);
    }
    let answer = app.broker.wechat().forward(call, app.limits.call_patience, secret).await;
    let mut answer = answer.map_err(|error| match fault.read() {
        Some(fault) => Unanswered::Upload(fault),
        None => Unanswered::WeChat(error),
    })?;
    let errcode = answer.errcode().await.map_err(Unanswered::WeChat)?;
    Ok((answer, errcode))
}

async fn token(app: &App, entry: &Arc<AppEntry>) -> Result<TokenView, TokenError> {
    match app.broker.token_now(entry, None, Duration::ZERO) {
        Some(view) => Ok(view),
        None => Box::pin(app.broker.token(entry, None, Duration::ZERO)).await,
    }
}

/// Reports the token of a call that cannot be sent again, and waits a little for what comes of it:
/// the client will call again at once.
async fn hear(app: &App, entry: &Arc<AppEntry>, key: &Arc<ClientKey>, used: &TokenView) {
    const A_LITTLE: Duration = Duration::from_secs(2);
    let heard = app.broker.hear_refusal(entry, used, key);
    // Whether or not it is over by then, it goes on.
    drop(tokio::time::timeout(A_LITTLE, heard).await);
}

/// An answer as it is passed on.
pub(super) fn passed_on(answer: Forwarded, token: &str) -> Response<Payload> {
    let Forwarded { status, mut headers, body } = answer;
    strip_hop_by_hop(&mut headers);
    let tells = |value: &HeaderValue| {
        value.as_bytes().windows(token.len()).any(|part| part == token.as_bytes())
    };
    let telling: Vec<HeaderName> =
        headers.iter().filter(|(_, value)| tells(value)).map(|(name, _)| name.clone()).collect();
    for name in &telling {
        headers.remove(name);
    }
    // A page that leads elsewhere repeats where to.
    let body = if status.is_redirection() && !telling.is_empty() {
        headers.remove(header::CONTENT_LENGTH);
        payload(Bytes::new())
    } else {
        Either::Right(Either::Right(body))
    };
    let mut response = Response::new(body);
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response
}

/// The headers that travel up, of those that came. The length is stated anew from the body.
pub(super) fn upward(came: &HeaderMap) -> HeaderMap {
    let named = named_by_connection(came);
    // With those that are added on the way.
    let mut headers = HeaderMap::with_capacity(came.len() + 3);
    for (name, value) in came {
        let stays = is_hop_by_hop(name) || is_ours(name) || named.contains(name);
        if !stays && *name != header::CONTENT_LENGTH && *name != X_REQUEST_ID {
            headers.append(name.clone(), value.clone());
        }
    }
    // An answer that is compressed could not be looked at.
    headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    headers
}

/// Whether a header is about one connection.
fn is_hop_by_hop(name: &HeaderName) -> bool {
    matches!(
        name.as_str(),
        "connection"
            | "keep-alive"
            | "proxy-authenticate"
            | "proxy-authorization"
            | "te"
            | "trailer"
            | "transfer-encoding"
            | "upgrade"
    )
}

/// Whether a header is between the client and us, tells where the client is, or might make a
/// gateway take the call for another one.
fn is_ours(name: &HeaderName) -> bool {
    let name = name.as_str();
    name.starts_with("x-forwarded-")
        || matches!(
            name,
            "authorization"
                | "cookie"
                | "expect"
                | "forwarded"
                | "host"
                | "proxy-connection"
                | "referer"
                | "via"
                | "x-http-method"
                | "x-http-method-override"
                | "x-method-override"
                | "x-original-uri"
                | "x-original-url"
                | "x-real-ip"
                | "x-rewrite-url"
        )
}

/// The headers that `Connection` names as being about this connection, too.
fn named_by_connection(headers: &HeaderMap) -> Vec<HeaderName> {
    let named = headers.get_all(header::CONNECTION).into_iter();
    let named = named.filter_map(|value| value.to_str().ok()).flat_map(|value| value.split(','));
    named.filter_map(|name| name.trim().parse().ok()).collect()
}

fn strip_hop_by_hop(headers: &mut HeaderMap) {
    let mut gone = named_by_connection(headers);
    gone.extend(headers.keys().filter(|name| is_hop_by_hop(name)).cloned());
    for name in gone {
        headers.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_travels_up() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("connection", "close, X-Odd"),
            ("x-odd", "1"),
            ("keep-alive", "timeout=5"),
            ("te", "trailers"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "websocket"),
            ("proxy-authorization", "Basic eDp5"),
            ("authorization", "Bearer xk_secret"),
            ("cookie", "session=1"),
            ("expect", "100-continue"),
            ("host", "xinfu.internal"),
            ("referer", "https://intern.example/?access_token=1"),
            ("x-forwarded-for", "10.0.0.1"),
            ("x-forwarded-uri", "/cgi-bin/user/info?access_token=xt_1"),
            ("x-original-url", "/cgi-bin/clear_quota"),
            ("x-http-method", "DELETE"),
            ("x-http-method-override", "DELETE"),
            ("x-method-override", "DELETE"),
            ("content-length", "3"),
            ("x-request-id", "abc"),
            ("accept-encoding", "gzip"),
            ("content-type", "application/json"),
            ("wechatmp-signature", "abc"),
            ("range", "bytes=0-1"),
            ("user-agent", "sdk/1"),
        ] {
            headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        let mut left: Vec<_> = upward(&headers)
            .iter()
            .map(|(name, value)| format!("{name}: {}", value.to_str().unwrap()))
            .collect();
        left.sort();
        assert_eq!(
            left,
            [
                "accept-encoding: identity",
                "content-type: application/json",
                "range: bytes=0-1",
                "user-agent: sdk/1",
                "wechatmp-signature: abc",
            ]
        );
    }
}
