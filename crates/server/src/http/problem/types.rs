//! The kinds of problems, and the page that lists them.

use std::fmt::Write as _;

use axum::http::StatusCode;

/// The kinds of problems. The list is stable: a kind keeps its URI and its status.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ProblemType {
    /// The request cannot be read.
    Malformed,
    /// A parameter or field is wrong.
    Invalid,
    /// The app is of a kind that has no such thing.
    WrongAppKind,
    /// Data of a mini program does not open.
    Undecryptable,
    /// No client key, or none that is known.
    Unauthorized,
    /// The key lacks the permission.
    Forbidden,
    /// WeChat does not let the app do this.
    WeChatForbidden,
    /// No such path.
    NotFound,
    /// No such app, or none for this key.
    AppNotFound,
    /// The app has no such credential.
    NoSuchCredential,
    /// Nothing is held of the user.
    NoGrant,
    /// The session of a mini program is not there.
    NoSession,
    /// The method is another one.
    MethodNotAllowed,
    /// The body came too slowly.
    BodyTimeout,
    /// The code was brought before.
    CodeUsed,
    /// The code was sent to WeChat, and no answer came.
    CodeMaybeSpent,
    /// WeChat does not take the code.
    CodeRefused,
    /// The user has to authorise again.
    Reauthorize,
    /// The body is too large.
    BodyTooLarge,
    /// The body is not JSON by its headers.
    UnsupportedMediaType,
    /// A quota at WeChat is used up.
    WeChatQuota,
    /// A bug.
    Internal,
    /// WeChat answered with an error that is nobody's here.
    WeChatRefused,
    /// WeChat cannot be reached.
    WeChatUnreachable,
    /// What came is not an answer of WeChat's.
    WeChatUnreadable,
    /// Refreshing fails and nothing usable is left.
    TokenUnavailable,
    /// The token's life is too short for the caller.
    TokenTooShort,
    /// The refresh under way takes too long.
    RefreshSlow,
    /// The request took too long.
    Deadline,
    /// WeChat is busy.
    WeChatBusy,
    /// The store does not answer.
    StoreUnavailable,
    /// The server is about to stop.
    Draining,
    /// WeChat got the call, and no answer came.
    WeChatTimeout,
}

impl ProblemType {
    /// All kinds, by status.
    pub const ALL: [Self; 33] = [
        Self::Malformed,
        Self::Invalid,
        Self::WrongAppKind,
        Self::Undecryptable,
        Self::Unauthorized,
        Self::Forbidden,
        Self::WeChatForbidden,
        Self::NotFound,
        Self::AppNotFound,
        Self::NoSuchCredential,
        Self::NoGrant,
        Self::NoSession,
        Self::MethodNotAllowed,
        Self::BodyTimeout,
        Self::CodeUsed,
        Self::CodeMaybeSpent,
        Self::CodeRefused,
        Self::Reauthorize,
        Self::BodyTooLarge,
        Self::UnsupportedMediaType,
        Self::WeChatQuota,
        Self::Internal,
        Self::WeChatRefused,
        Self::WeChatUnreachable,
        Self::WeChatUnreadable,
        Self::TokenUnavailable,
        Self::TokenTooShort,
        Self::RefreshSlow,
        Self::Deadline,
        Self::WeChatBusy,
        Self::StoreUnavailable,
        Self::Draining,
        Self::WeChatTimeout,
    ];

    /// The URI that names the kind.
    pub const fn uri(self) -> &'static str {
        match self {
            Self::Malformed => "urn:xinfu:problem:malformed-request",
            Self::Invalid => "urn:xinfu:problem:invalid-parameter",
            Self::WrongAppKind => "urn:xinfu:problem:wrong-app-kind",
            Self::Undecryptable => "urn:xinfu:problem:undecryptable",
            Self::Unauthorized => "urn:xinfu:problem:unauthorized",
            Self::Forbidden => "urn:xinfu:problem:permission-missing",
            Self::WeChatForbidden => "urn:xinfu:problem:wechat-forbidden",
            Self::NotFound => "urn:xinfu:problem:not-found",
            Self::AppNotFound => "urn:xinfu:problem:app-not-found",
            Self::NoSuchCredential => "urn:xinfu:problem:no-such-credential",
            Self::NoGrant => "urn:xinfu:problem:no-grant",
            Self::NoSession => "urn:xinfu:problem:no-session",
            Self::MethodNotAllowed => "urn:xinfu:problem:method-not-allowed",
            Self::BodyTimeout => "urn:xinfu:problem:request-timeout",
            Self::CodeUsed => "urn:xinfu:problem:code-used",
            Self::CodeMaybeSpent => "urn:xinfu:problem:code-maybe-spent",
            Self::CodeRefused => "urn:xinfu:problem:code-refused",
            Self::Reauthorize => "urn:xinfu:problem:reauthorize",
            Self::BodyTooLarge => "urn:xinfu:problem:body-too-large",
            Self::UnsupportedMediaType => "urn:xinfu:problem:unsupported-media-type",
            Self::WeChatQuota => "urn:xinfu:problem:wechat-quota",
            Self::Internal => "urn:xinfu:problem:internal",
            Self::WeChatRefused => "urn:xinfu:problem:wechat-refused",
            Self::WeChatUnreachable => "urn:xinfu:problem:wechat-unreachable",
            Self::WeChatUnreadable => "urn:xinfu:problem:wechat-unreadable",
            Self::TokenUnavailable => "urn:xinfu:problem:token-unavailable",
            Self::TokenTooShort => "urn:xinfu:problem:token-too-short",
            Self::RefreshSlow => "urn:xinfu:problem:refresh-slow",
            Self::Deadline => "urn:xinfu:problem:deadline",
            Self::WeChatBusy => "urn:xinfu:problem:wechat-busy",
            Self::StoreUnavailable => "urn:xinfu:problem:store-unavailable",
            Self::Draining => "urn:xinfu:problem:draining",
            Self::WeChatTimeout => "urn:xinfu:problem:wechat-timeout",
        }
    }

    /// The HTTP status that it comes with.
    pub const fn status(self) -> StatusCode {
        match self {
            Self::Malformed | Self::Invalid | Self::WrongAppKind | Self::Undecryptable => {
                StatusCode::BAD_REQUEST
            }
            Self::Unauthorized => StatusCode::UNAUTHORIZED,
            Self::Forbidden | Self::WeChatForbidden => StatusCode::FORBIDDEN,
            Self::NotFound
            | Self::AppNotFound
            | Self::NoSuchCredential
            | Self::NoGrant
            | Self::NoSession => StatusCode::NOT_FOUND,
            Self::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Self::BodyTimeout => StatusCode::REQUEST_TIMEOUT,
            Self::CodeUsed | Self::CodeMaybeSpent | Self::CodeRefused | Self::Reauthorize => {
                StatusCode::CONFLICT
            }
            Self::BodyTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::UnsupportedMediaType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::WeChatQuota => StatusCode::TOO_MANY_REQUESTS,
            Self::Internal => StatusCode::INTERNAL_SERVER_ERROR,
            Self::WeChatRefused | Self::WeChatUnreachable | Self::WeChatUnreadable => {
                StatusCode::BAD_GATEWAY
            }
            Self::TokenUnavailable
            | Self::TokenTooShort
            | Self::RefreshSlow
            | Self::Deadline
            | Self::WeChatBusy
            | Self::StoreUnavailable
            | Self::Draining => StatusCode::SERVICE_UNAVAILABLE,
            Self::WeChatTimeout => StatusCode::GATEWAY_TIMEOUT,
        }
    }

    /// What it is, in a few words, the same for each occurrence.
    pub const fn title(self) -> &'static str {
        match self {
            Self::Malformed => "The request cannot be read",
            Self::Invalid => "A parameter is missing, unknown or wrong",
            Self::WrongAppKind => "The app is of another kind",
            Self::Undecryptable => "The data does not open",
            Self::Unauthorized => "A valid client key is needed",
            Self::Forbidden => "The client key lacks a permission",
            Self::WeChatForbidden => "WeChat does not let this app do this",
            Self::NotFound => "No such path",
            Self::AppNotFound => "No such app for this client key",
            Self::NoSuchCredential => "The app has no such credential",
            Self::NoGrant => "Nothing is held of this user",
            Self::NoSession => "There is no such session",
            Self::MethodNotAllowed => "The path has other methods",
            Self::BodyTimeout => "The request came too slowly",
            Self::CodeUsed => "The code was used before",
            Self::CodeMaybeSpent => "The code may be spent",
            Self::CodeRefused => "WeChat does not take the code",
            Self::Reauthorize => "The user has to authorise again",
            Self::BodyTooLarge => "The body is too large",
            Self::UnsupportedMediaType => "The body must be JSON",
            Self::WeChatQuota => "A quota of the app at WeChat is used up",
            Self::Internal => "The server failed",
            Self::WeChatRefused => "WeChat refused the call",
            Self::WeChatUnreachable => "WeChat cannot be reached",
            Self::WeChatUnreadable => "WeChat's answer was not understood",
            Self::TokenUnavailable => "There is no usable token or ticket",
            Self::TokenTooShort => "The token lives shorter than asked for",
            Self::RefreshSlow => "A refresh takes longer than callers are kept waiting",
            Self::Deadline => "The request took too long",
            Self::WeChatBusy => "WeChat is busy",
            Self::StoreUnavailable => "The store does not answer",
            Self::Draining => "The server is about to stop",
            Self::WeChatTimeout => "No answer came from WeChat",
        }
    }

    /// What it means and what a caller does about it.
    pub const fn meaning(self) -> &'static str {
        match self {
            Self::Malformed => {
                "The path, the query, a header or the JSON of the body is broken. Correct the \
                 request."
            }
            Self::Invalid => {
                "`field` names the parameter of the query, the part of the path or the field of \
                 the body. Correct the request."
            }
            Self::WrongAppKind => {
                "Official accounts have web authorisation in WeChat, websites the QR code, mini \
                 programs logins of their own. Name an app of the kind that the call is for."
            }
            Self::Undecryptable => {
                "`field` names what is wrong. Data opens only with the session key of the login \
                 that it was read after: log in, then read the data, then send both."
            }
            Self::Unauthorized => {
                "No client key came in `Authorization: Bearer xk_…`, or it is unknown, revoked \
                 or expired. `xinfu key add` makes one."
            }
            Self::Forbidden => {
                "The key is known but may not do this. Make a key with the permission that \
                 `detail` names."
            }
            Self::WeChatForbidden => {
                "The app lacks the right at WeChat or is restricted, or WeChat does not accept \
                 this server's address. `detail` says what a person does about it."
            }
            Self::NotFound => "The path is none of the API. See `/v1/openapi.json`.",
            Self::AppNotFound => {
                "The app is not registered, or the key does not reach it; the two are not told apart."
            }
            Self::NoSuchCredential => "A website app has no global token and no tickets.",
            Self::NoGrant => {
                "The user never authorised the app here, was forgotten, or came as a snapshot, of \
                 which nothing is kept."
            }
            Self::NoSession => {
                "It is unknown in this app, or was kept for its time. Let the mini program log in again."
            }
            Self::MethodNotAllowed => "The header `Allow` lists them.",
            Self::BodyTimeout => "The body did not arrive in time. Send it again.",
            Self::CodeUsed => {
                "Somebody brought this code before, and neither `binding` nor `Idempotency-Key` \
                 shows that it was the same browser or request; or it did, and more than ten \
                 minutes ago. Let the user authorise again."
            }
            Self::CodeMaybeSpent => {
                "The code was sent to WeChat and its answer is lost. It is not sent again. Let the \
                 user authorise again."
            }
            Self::CodeRefused => {
                "The code is over, used elsewhere, made up, or of another app, or WeChat is busy; \
                 `wechat` has the code and the text. The code is of no use any more: let the user \
                 authorise again."
            }
            Self::Reauthorize => {
                "No authorisation that reads profiles lives: put `state` into the browser's \
                 session, and send the user to `authorize_url`. Both are null when no redirect URI is known: call \
                 oauth/authorize-url, or give `redirect_uri`."
            }
            Self::BodyTooLarge => {
                "`detail` names the limit. Send less, for example smaller batches."
            }
            Self::UnsupportedMediaType => {
                "Send `Content-Type: application/json`, in UTF-8 and without a `Content-Encoding`."
            }
            Self::WeChatQuota => {
                "All callers of the app share WeChat's quotas. Wait as long as `Retry-After` says."
            }
            Self::Internal => "A bug of the server; its log has more under the `request_id`.",
            Self::WeChatRefused => {
                "`wechat` holds the code and the text; docs/reference/errors.md explains the codes."
            }
            Self::WeChatUnreachable => {
                "No connection came about, so that WeChat has not seen the call. Try again."
            }
            Self::WeChatUnreadable => {
                "Something between here and WeChat may have answered in its place. Try again."
            }
            Self::TokenUnavailable => {
                "Refreshing fails; `detail` says why and what a person does about it. Ask again \
                 after `Retry-After`: the server tries by itself, asking more often changes \
                 nothing."
            }
            Self::TokenTooShort => {
                "Its refresh falls due after `Retry-After`. Ask with a smaller `min_ttl`, or then."
            }
            Self::RefreshSlow => "It goes on without the caller. Ask again after `Retry-After`.",
            Self::Deadline => {
                "The server gave up on it. Ask again, for less where that is possible."
            }
            Self::WeChatBusy => "WeChat asks to try again later.",
            Self::StoreUnavailable => {
                "Tokens in memory are still served. An operator looks at the store."
            }
            Self::Draining => "Send new requests to another replica.",
            Self::WeChatTimeout => {
                "WeChat may have got the call, but its answer did not come in time or broke \
                 off. Try again."
            }
        }
    }
}

/// The page of the reference that lists all kinds of problems.
pub fn problems_markdown() -> String {
    let mut page = String::from(
        "# Problems\n\n\
         Every error of the API is `application/problem+json` (RFC 9457) with one of these types. \
         A type keeps its URI and its status for good; `detail` is written for people and may \
         change.\n\n\
         Beside the members of the RFC there are `request_id`, `field` for wrong input, and \
         `wechat` with `errcode`, `errmsg` and `rid` where WeChat answered with an error. \
         `reauthorize` has `authorize_url` and `state`. Every 409 asks for the same: let the user \
         authorise again.\n\n\
         What is no HTTP, or has a head over the limits, does not get as far as the API: the HTTP \
         layer refuses it with 400, 414 or 431, an empty body and no request id, and closes the \
         connection.\n\n\
         <!-- Generated from the table in crates/server by `cargo xtask codegen`: do not edit. -->\n\n\
         | status | type | title | meaning |\n\
         |---:|---|---|---|\n",
    );
    for kind in ProblemType::ALL {
        let (status, uri, title) = (kind.status().as_u16(), kind.uri(), kind.title());
        let _ = writeln!(page, "| {status} | `{uri}` | {title} | {} |", kind.meaning());
    }
    page
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn types_differ_and_are_all_listed() {
        let uris: HashSet<_> = ProblemType::ALL.iter().map(|kind| kind.uri()).collect();
        assert_eq!(uris.len(), ProblemType::ALL.len());
        let page = problems_markdown();
        let places = ProblemType::ALL.iter().map(|kind| *kind as usize);
        assert!(places.eq(0..ProblemType::ALL.len()), "in the order of the declaration");
        for kind in ProblemType::ALL {
            assert!(page.contains(kind.uri()) && kind.status().as_u16() >= 400, "{kind:?}");
            assert!(!kind.meaning().contains('|') && kind.meaning().ends_with('.'), "{kind:?}");
        }
    }
}
