//! Problems: how every failure is told to a client, after RFC 9457. Status codes for what the
//! broker and WeChat answer stand here and nowhere else.

mod types;

use std::time::Duration;

use axum::http::{HeaderName, HeaderValue, Response, header};
use broker::{
    CallError, ExchangeError, ManageError, MiniError, ProfileError, ReportError, TokenError,
    WrongKind,
    credential::Trouble,
    key::{NotKnown, Permission},
    store::StoreError,
};
use serde_json::{Map, Value, json};
use wechat::{Action, ApiError, Kind, TransportError, Undecryptable};

pub use types::{ProblemType, problems_markdown};

use super::service::{Payload, payload};

/// WeChat takes the user for a high risk.
const BLOCKED: i64 = 40226;

/// One occurrence of a problem.
#[derive(Debug)]
pub(super) struct Problem {
    pub(super) kind: ProblemType,
    detail: String,
    more: Box<More>,
}

/// What only some problems have.
#[derive(Debug, Default)]
struct More {
    field: Option<String>,
    /// Members of the body beside those that all problems have.
    members: Vec<(&'static str, Value)>,
    retry_after: Option<Duration>,
    header: Option<(HeaderName, HeaderValue)>,
}

impl Problem {
    pub(super) fn new(kind: ProblemType, detail: impl Into<String>) -> Self {
        Self { kind, detail: detail.into(), more: Box::default() }
    }

    /// Wrong input, by the name of the field.
    pub(super) fn invalid(field: impl Into<String>, detail: impl Into<String>) -> Self {
        let mut problem = Self::new(ProblemType::Invalid, detail);
        problem.more.field = Some(field.into());
        problem
    }

    /// No client key came, or one that nobody knows.
    pub(super) fn unauthorized(key_came: bool) -> Self {
        let (detail, challenge) = if key_came {
            (
                "The client key is unknown, revoked or expired.",
                "Bearer realm=\"xinfu\", error=\"invalid_token\"",
            )
        } else {
            (
                "Send a client key as `Authorization: Bearer xk_…`; `xinfu key add` makes one.",
                "Bearer realm=\"xinfu\"",
            )
        };
        Self::new(ProblemType::Unauthorized, detail)
            .with_header(header::WWW_AUTHENTICATE, HeaderValue::from_static(challenge))
    }

    /// What a request is told that made the server panic.
    pub(super) fn bug() -> Self {
        let detail = "A bug of the server; its log has more under this request id.";
        Self::new(ProblemType::Internal, detail)
    }

    pub(super) fn forbidden(permission: Permission) -> Self {
        let detail = format!("The client key lacks the permission `{}`.", permission.as_str());
        Self::new(ProblemType::Forbidden, detail)
    }

    /// An app that is not there, or not for this key: the same words for both.
    pub(super) fn app_not_found() -> Self {
        let detail = "No app of this appid or alias is registered, or the client key does not \
                      reach it.";
        Self::new(ProblemType::AppNotFound, detail)
    }

    /// A method that the path has not; `allow` lists those that it has.
    pub(super) fn method_not_allowed(allow: HeaderValue) -> Self {
        let methods = allow.to_str().unwrap_or("other methods");
        let detail = format!("This path answers to {methods} only.");
        Self::new(ProblemType::MethodNotAllowed, detail).with_header(header::ALLOW, allow)
    }

    pub(super) fn body_too_large(limit: usize) -> Self {
        let detail = format!("The body of this call has at most {limit} bytes.");
        Self::new(ProblemType::BodyTooLarge, detail)
    }

    /// The same, to be tried again after some time.
    pub(super) fn retry_after(mut self, after: Duration) -> Self {
        self.more.retry_after = Some(after);
        self
    }

    /// The same, with what WeChat said.
    fn with_wechat(mut self, errcode: i64, errmsg: Option<&str>, rid: Option<&str>) -> Self {
        let said = json!({ "errcode": errcode, "errmsg": errmsg, "rid": rid });
        self.more.members.push(("wechat", said));
        self
    }

    /// The same, with one more sentence.
    fn adding(mut self, sentence: &str) -> Self {
        self.detail.push(' ');
        self.detail.push_str(sentence);
        self
    }

    fn with_header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.more.header = Some((name, value));
        self
    }

    /// The answer to the client.
    pub(super) fn into_response(self, request_id: &HeaderValue) -> Response<Payload> {
        let Self { kind, detail, more } = self;
        let More { field, members, retry_after, header } = *more;
        let mut body = Map::new();
        body.insert("type".to_owned(), kind.uri().into());
        body.insert("title".to_owned(), kind.title().into());
        body.insert("status".to_owned(), kind.status().as_u16().into());
        body.insert("detail".to_owned(), detail.into());
        if let Some(field) = field {
            body.insert("field".to_owned(), field.into());
        }
        body.extend(members.into_iter().map(|(name, value)| (name.to_owned(), value)));
        body.insert("request_id".to_owned(), request_id.to_str().unwrap_or_default().into());
        let mut response = Response::new(payload(Value::Object(body).to_string()));
        *response.status_mut() = kind.status();
        let headers = response.headers_mut();
        let json = HeaderValue::from_static("application/problem+json");
        headers.insert(header::CONTENT_TYPE, json);
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if let Some(after) = retry_after {
            // Rounded up: one who comes when told to is not too early.
            let seconds = after.as_secs() + u64::from(after.subsec_nanos() > 0);
            headers.insert(header::RETRY_AFTER, seconds.max(1).into());
        }
        if let Some((name, value)) = header {
            headers.insert(name, value);
        }
        response
    }
}

impl From<NotKnown> for Problem {
    fn from(err: NotKnown) -> Self {
        match err {
            NotKnown::Unknown => Self::unauthorized(true),
            NotKnown::Stale => StoreError::Unavailable(err.to_string()).into(),
        }
    }
}

impl From<TokenError> for Problem {
    fn from(err: TokenError) -> Self {
        let said = err.to_string();
        match err {
            TokenError::NoSuchCredential => {
                Self::new(ProblemType::NoSuchCredential, sentence(&said))
            }
            TokenError::Unavailable { trouble, retry_after } => {
                unavailable(&trouble).retry_after(retry_after)
            }
            TokenError::TooShort { retry_after } => {
                Self::new(ProblemType::TokenTooShort, sentence(&said)).retry_after(retry_after)
            }
            TokenError::Deadline { retry_after } => {
                Self::new(ProblemType::RefreshSlow, sentence(&said)).retry_after(retry_after)
            }
        }
    }
}

impl From<ReportError> for Problem {
    fn from(err: ReportError) -> Self {
        match err {
            ReportError::NotAboutTheToken(_) => {
                Self::invalid("errcode", sentence(&err.to_string()))
            }
            ReportError::Token(err) => err.into(),
        }
    }
}

impl From<StoreError> for Problem {
    fn from(err: StoreError) -> Self {
        let detail = match &err {
            StoreError::Unavailable(_) => "The store is unavailable; the log says why.",
            StoreError::Corrupt(_) => {
                "The store holds something unreadable; an operator has to look at the log."
            }
        };
        tracing::warn!(error = %err, "a request failed for the store");
        let problem = Self::new(ProblemType::StoreUnavailable, detail);
        problem.retry_after(Duration::from_secs(5))
    }
}

impl From<WrongKind> for Problem {
    fn from(err: WrongKind) -> Self {
        let mut problem = Self::new(ProblemType::WrongAppKind, sentence(&err.to_string()));
        problem.more.field = err.field.map(str::to_owned);
        problem
    }
}

impl From<ExchangeError> for Problem {
    fn from(err: ExchangeError) -> Self {
        const AGAIN: &str =
            "Let the user authorise again; in a mini program, call `wx.login` again.";
        let said = sentence(&err.to_string());
        match err {
            ExchangeError::WrongKind(err) => err.into(),
            ExchangeError::CodeUsed | ExchangeError::NoLongerTold => {
                Self::new(ProblemType::CodeUsed, said).adding(AGAIN)
            }
            ExchangeError::MaybeSpent(_) => {
                Self::new(ProblemType::CodeMaybeSpent, said).adding(AGAIN)
            }
            ExchangeError::Refused(api) if !is_about_the_app(&api) => {
                let todo = match api.code {
                    BLOCKED => "WeChat takes the user for a high risk; trying again may not help.",
                    _ => AGAIN,
                };
                let problem = Self::new(ProblemType::CodeRefused, said).adding(todo);
                problem.with_wechat(api.code, Some(&api.message), api.rid.as_deref())
            }
            ExchangeError::Refused(api) => {
                let mut problem = refused(&api, "code").adding(
                    "The code is of no use any more: once this is put right, let the user \
                     authorise again.",
                );
                // The same request would be told the same.
                problem.more.retry_after = None;
                problem
            }
            ExchangeError::Unreachable(err) => unanswered(&err)
                .adding("The code was not sent, so it is unspent: send the same request again.")
                .retry_after(Duration::from_secs(2)),
            ExchangeError::Store(err) => {
                Self::from(err).adding("With its proof, the same request is safe to send again.")
            }
        }
    }
}

/// Whether a refusal to exchange a code is about the app's own standing or credentials, so that a
/// person has to put something right.
fn is_about_the_app(api: &ApiError) -> bool {
    matches!(api.action_with_secret(), Action::Human)
}

impl From<ProfileError> for Problem {
    fn from(err: ProfileError) -> Self {
        let said = sentence(&err.to_string());
        match err {
            ProfileError::WrongKind(err) => err.into(),
            ProfileError::Reauthorize { authorize, .. } => {
                let todo = match authorize {
                    Some(_) => {
                        "Put `state` into the browser's session, and send the user to \
                         `authorize_url`."
                    }
                    None => {
                        "Call oauth/authorize-url for the address to send the user to, or give \
                         `redirect_uri` to be told it here."
                    }
                };
                let mut problem = Self::new(ProblemType::Reauthorize, said).adding(todo);
                let (url, state) = match authorize {
                    Some(page) => (page.url.into(), page.state.as_str().into()),
                    None => (Value::Null, Value::Null),
                };
                problem.more.members.extend([("authorize_url", url), ("state", state)]);
                problem
            }
            ProfileError::WeChat(err) => wechat_failed(err, "openid"),
            ProfileError::Deadline => {
                Self::new(ProblemType::RefreshSlow, said).retry_after(Duration::from_secs(2))
            }
            ProfileError::Store(err) => err.into(),
        }
    }
}

impl From<MiniError> for Problem {
    fn from(err: MiniError) -> Self {
        let said = sentence(&err.to_string());
        let field = match err {
            MiniError::WrongKind(err) => return err.into(),
            MiniError::NoSession => return Self::new(ProblemType::NoSession, said),
            MiniError::Store(err) => return err.into(),
            MiniError::Undecryptable(Undecryptable::Iv) => "iv",
            MiniError::Undecryptable(Undecryptable::SessionKey) => "session",
            MiniError::Undecryptable(
                Undecryptable::Data | Undecryptable::Sealed | Undecryptable::Watermark,
            )
            | MiniError::OtherUser => "encryptedData",
        };
        let mut problem = Self::new(ProblemType::Undecryptable, said);
        problem.more.field = Some(field.to_owned());
        problem
    }
}

impl From<ManageError> for Problem {
    fn from(err: ManageError) -> Self {
        match err {
            ManageError::NoSuchApp(_) => Self::app_not_found(),
            ManageError::Store(err) => err.into(),
            ManageError::NoSuchKey(_)
            | ManageError::NameTaken(_)
            | ManageError::Invalid { .. }
            | ManageError::Raced(_) => Self::new(ProblemType::Internal, sentence(&err.to_string())),
        }
    }
}

/// What a failed call to WeChat is to a client whose input was `field`.
pub(super) fn call_failed(err: CallError, field: &'static str) -> Problem {
    match err {
        CallError::Token(err) => err.into(),
        CallError::WeChat(err) => wechat_failed(err, field),
    }
}

fn wechat_failed(err: wechat::Error, field: &'static str) -> Problem {
    match err {
        wechat::Error::Api(api) => refused(&api, field),
        wechat::Error::Transport(err) => unanswered(&err),
        wechat::Error::Protocol(err) => {
            Problem::new(ProblemType::WeChatUnreadable, sentence(&err.to_string()))
        }
    }
}

/// Refreshing fails, and nothing usable is left.
fn unavailable(trouble: &Trouble) -> Problem {
    let reason = sentence(&trouble.reason);
    let todo = match &trouble.action {
        Some(action) => sentence(action),
        None => "The server tries again by itself.".to_owned(),
    };
    let problem = Problem::new(ProblemType::TokenUnavailable, format!("{reason} {todo}"));
    let Some(code) = trouble.errcode else { return problem };
    problem.with_wechat(code, trouble.errmsg.as_deref(), trouble.rid.as_deref())
}

/// WeChat answered with an error.
fn refused(api: &ApiError, field: &'static str) -> Problem {
    /// The codes that say that the given openid is wrong.
    const WRONG_OPENID: [i64; 5] = [40003, 40031, 41009, 46004, 49003];
    let said = sentence(&api.to_string());
    let todo = match (&api.refused_ip, api.entry().and_then(|entry| entry.human)) {
        (Some(ip), _) => format!(" Add {ip} to the app's IP whitelist in WeChat's console."),
        (None, Some(human)) => format!(" {}", sentence(human)),
        (None, None) => String::new(),
    };
    let detail = format!("{said}{todo}");
    let problem = match api.kind() {
        Kind::BadRequest | Kind::User if WRONG_OPENID.contains(&api.code) => {
            Problem::invalid(field, detail)
        }
        Kind::Account | Kind::IpRefused => Problem::new(ProblemType::WeChatForbidden, detail),
        Kind::Quota => {
            // The day's quota comes back at midnight in Beijing, or when somebody clears it.
            let seconds = if api.code == 45011 { 60 } else { 3600 };
            Problem::new(ProblemType::WeChatQuota, detail).retry_after(Duration::from_secs(seconds))
        }
        Kind::Busy => {
            Problem::new(ProblemType::WeChatBusy, detail).retry_after(Duration::from_secs(1))
        }
        Kind::InvalidToken
        | Kind::BadCredential
        | Kind::BadRequest
        | Kind::Authorisation
        | Kind::User
        | Kind::Component
        | Kind::Other => Problem::new(ProblemType::WeChatRefused, detail),
    };
    problem.with_wechat(api.code, Some(&api.message), api.rid.as_deref())
}

/// No answer came from WeChat.
pub(super) fn unanswered(err: &TransportError) -> Problem {
    let kind = if err.sent { ProblemType::WeChatTimeout } else { ProblemType::WeChatUnreachable };
    Problem::new(kind, sentence(&err.to_string()))
}

/// A phrase as a sentence: a capital at its start, a full stop at its end.
fn sentence(phrase: &str) -> String {
    let mut letters = phrase.trim_end_matches('.').chars();
    let first = letters.next().map(char::to_uppercase).into_iter().flatten();
    let mut sentence: String = first.chain(letters).collect();
    sentence.push('.');
    sentence
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phrases_become_sentences() {
        assert_eq!(sentence("add 1.2.3.4 to it"), "Add 1.2.3.4 to it.");
        assert_eq!(sentence("Done."), "Done.");
    }
}
