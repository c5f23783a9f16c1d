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
use http_body_util::Either;
use wechat::{Forward, Forwarded, TransportError};

use super::{
    App,
    service::Payload,
    upload::{Arriving, Fault, Faults},
};

/// A call that may be made.
pub(super) struct Call<'a> {
    pub(super) key: Arc<ClientKey>,
    pub(super) entry: Arc<AppEntry>,
    pub(super) method: Method,
    pub(super) path: CallPath<'a>,
    /// The query without any token, each parameter as it came; it begins with `&` unless empty.
    pub(super) query: String,
    pub(super) headers: HeaderMap,
    pub(super) body: Arriving,
}

/// Why a call has no answer of WeChat's.
#[derive(Debug)]
pub(super) enum Unanswered {
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
    let path = call.path;
    let entry = Arc::clone(&call.entry);
    let carried = try_to_carry(app, call).await;
    counted(carried, &entry, path)
}

/// An answer of WeChat's as it is passed on, and its errcode.
pub(super) type Carried = Result<(Response<Payload>, Option<i64>), Unanswered>;

/// Counts what came of a call.
pub(super) fn counted(
    carried: Carried,
    entry: &AppEntry,
    path: CallPath<'_>,
) -> Result<Response<Payload>, Unanswered> {
    let class = match &carried {
        Ok((answer, None | Some(0))) if is_wechats(answer.status()) => CallClass::Fine,
        Ok((_, None | Some(0))) => CallClass::Unanswered,
        Ok((_, Some(code))) if INVALID_TOKEN.contains(code) => CallClass::Token,
        Ok((_, Some(_))) => CallClass::Errcode,
        Err(Unanswered::Token(_) | Unanswered::WeChat(_)) => CallClass::Unanswered,
        // WeChat was not asked, or not to the end, and that is the client's doing.
        Err(Unanswered::Upload(_) | Unanswered::Key(_)) => {
            return carried.map(|(answer, _)| answer);
        }
    };
    entry.count_call(path, class);
    carried.map(|(answer, _)| answer)
}

/// Whether an answer without an errcode is WeChat's: a gateway's page is not.
fn is_wechats(status: StatusCode) -> bool {
    status.is_success() || status == StatusCode::NOT_MODIFIED
}

/// Makes a call, and tells the errcode of its answer as well.
async fn try_to_carry(app: &App, call: Call<'_>) -> Carried {
    let Call { key, entry, method, path, query, mut headers, body } = call;
    let mut body = app.uploads.keep(body).await.map_err(Unanswered::Upload)?;
    let faults = body.faults();
    strip_request(&mut headers);
    let mut attempts = Attempts::default();
    loop {
        let used = token(app, &entry).await?;
        // It may have waited: for its body, for the token, for what came of a refusal.
        app.broker.recheck(&key, &entry)?;
        let token = used.token.expose();
        let call = Forward {
            method: method.clone(),
            path_and_query: format!("{}?access_token={token}{query}", path.as_str()),
            headers: headers.clone(),
            body: body.upload(),
        };
        let (answer, errcode) = forward(app, call, &faults, token).await?;
        let refused = errcode.is_some_and(|code| INVALID_TOKEN.contains(&code));
        if refused && body.is_whole() {
            if app.broker.refused(&entry, Some(&key), &used, &mut attempts).await {
                continue;
            }
        } else if refused {
            hear(app, &entry, &key, &used).await;
        }
        return Ok((passed_on(answer, token), errcode));
    }
}

/// Sends a call once and reads the errcode of its answer; blames whoever is at fault when there is
/// none.
pub(super) async fn forward(
    app: &App,
    call: Forward,
    fault: &Faults,
    secret: &str,
) -> Result<(Forwarded, Option<i64>), Unanswered> {
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
        None => app.broker.token(entry, None, Duration::ZERO).await,
    }
}

/// Reports the token of a call that cannot be sent again, and waits a little for what comes of it:
/// the client will call again at once.
async fn hear(app: &App, entry: &Arc<AppEntry>, key: &ClientKey, used: &TokenView) {
    const A_LITTLE: Duration = Duration::from_secs(2);
    let mut attempts = Attempts::default();
    let heard = app.broker.refused(entry, Some(key), used, &mut attempts);
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
    if headers.get(header::LOCATION).is_some_and(tells) {
        headers.remove(header::LOCATION);
    }
    let mut response = Response::new(Either::Right(Either::Right(body)));
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response
}

/// Headers that are about one connection.
static HOP_BY_HOP: [HeaderName; 8] = [
    header::CONNECTION,
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    HeaderName::from_static("keep-alive"),
];

/// Headers that are between the client and us, or tell where the client is.
static OURS: [HeaderName; 12] = [
    header::AUTHORIZATION,
    header::COOKIE,
    header::EXPECT,
    header::HOST,
    header::REFERER,
    header::FORWARDED,
    header::VIA,
    HeaderName::from_static("proxy-connection"),
    HeaderName::from_static("x-forwarded-for"),
    HeaderName::from_static("x-forwarded-host"),
    HeaderName::from_static("x-forwarded-proto"),
    HeaderName::from_static("x-real-ip"),
];

/// Takes away what must not travel up. The length is stated anew from the body.
pub(super) fn strip_request(headers: &mut HeaderMap) {
    strip_hop_by_hop(headers);
    for name in &OURS {
        headers.remove(name);
    }
    headers.remove(header::CONTENT_LENGTH);
    headers.remove(super::request_id::X_REQUEST_ID);
    // An answer that is compressed could not be looked at.
    headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
}

fn strip_hop_by_hop(headers: &mut HeaderMap) {
    if headers.contains_key(header::CONNECTION) {
        let named: Vec<HeaderName> = headers
            .get_all(header::CONNECTION)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .filter_map(|name| name.trim().parse().ok())
            .collect();
        for name in named {
            headers.remove(name);
        }
    }
    for name in &HOP_BY_HOP {
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
        strip_request(&mut headers);
        let mut left: Vec<_> = headers
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
