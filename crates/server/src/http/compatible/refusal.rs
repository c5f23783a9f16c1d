//! How the compatible endpoint says no: in WeChat's words, so that SDKs understand it, with an
//! explanation for people and a rid that is found in our log.

use std::borrow::Cow;

use axum::http::{HeaderValue, Response, header};
use broker::{ExchangeError, NotWrapped, TokenError, TooFast, key::NotKnown, path::NotCarried};
use serde_json::json;

use super::params::ParamFlaw;
use crate::http::{
    carry::Unanswered,
    service::{Payload, payload},
    upload::Fault,
};

/// `/cgi-bin/*` and the like answer JSON by this name.
const JSON: HeaderValue = HeaderValue::from_static("application/json; encoding=utf-8");
/// `/sns/*` answers JSON by this name.
const TEXT: HeaderValue = HeaderValue::from_static("text/plain");

/// Which part of WeChat's API is imitated: they word their errors a little differently.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    Cgi,
    Sns,
}

impl Family {
    /// The content type of the family's answers.
    pub(super) fn content_type(self) -> HeaderValue {
        match self {
            Self::Cgi => JSON,
            Self::Sns => TEXT,
        }
    }
}

/// A no, as WeChat would say it.
#[derive(Clone, Debug)]
pub(crate) struct Refusal {
    pub(crate) errcode: i64,
    /// WeChat's words.
    words: Cow<'static, str>,
    /// Ours: who is at fault, and what to do.
    pub(super) why: Cow<'static, str>,
}

impl Refusal {
    fn new(errcode: i64, words: &'static str, why: impl Into<Cow<'static, str>>) -> Self {
        Self { errcode, words: words.into(), why: why.into() }
    }

    /// The appid is missing.
    pub(super) fn no_appid() -> Self {
        Self::new(41002, "appid missing", "send the appid")
    }

    /// An app that is not there, or not for this key: the same words for both.
    pub(super) fn appid() -> Self {
        let why = "no app of this appid is registered, or the client key does not reach it";
        Self::new(40013, "invalid appid", why)
    }

    pub(super) fn no_secret() -> Self {
        Self::new(41004, "appsecret missing", "send a client key (xk_...) as the secret")
    }

    /// The secret is no client key that may do this.
    pub(super) fn secret(why: impl Into<Cow<'static, str>>) -> Self {
        Self::new(40125, "invalid appsecret", why)
    }

    fn unknown_key() -> Self {
        Self::secret(
            "the client key is unknown, revoked or expired; the app's own secret is not taken here",
        )
    }

    pub(super) fn grant_type(wanted: &'static str) -> Self {
        Self::new(40002, "invalid grant_type", wanted)
    }

    pub(super) fn no_code() -> Self {
        Self::new(41008, "missing code", "send the code")
    }

    pub(super) fn no_token() -> Self {
        Self::new(41001, "access_token missing", "send access_token in the query")
    }

    /// A wrapped token of a user does not open.
    pub(super) fn web_token(error: NotWrapped) -> Self {
        match error {
            NotWrapped::Invalid => Self::token(
                "it is not a web token that was given out here, or its client key is gone",
            ),
            NotWrapped::Stale(stale) => stale.into(),
        }
    }

    /// A wrapped refresh token does not open.
    pub(super) fn web_refresh_token(error: NotWrapped) -> Self {
        match error {
            NotWrapped::Invalid => Self::token(
                "it is not a refresh token that was given out here, or its client key is gone",
            ),
            NotWrapped::Stale(stale) => stale.into(),
        }
    }

    /// The token is none of those that we gave for this.
    pub(super) fn token(why: &'static str) -> Self {
        const WORDS: &str = "invalid credential, access_token is invalid or not latest";
        Self::new(40001, WORDS, why)
    }

    pub(super) fn token_expired() -> Self {
        Self::new(42001, "access_token expired", "the pass has ended; fetch a token again")
    }

    pub(super) fn no_refresh_token() -> Self {
        Self::new(41003, "refresh_token missing", "send refresh_token")
    }

    pub(super) fn path(flaw: impl Into<Cow<'static, str>>) -> Self {
        Self::new(40066, "invalid url", flaw)
    }

    pub(super) fn not_allowed(why: &NotCarried) -> Self {
        Self::new(48001, "api unauthorized", why.to_string())
    }

    pub(super) fn malformed(flaw: ParamFlaw) -> Self {
        Self::new(47001, "data format error", flaw.to_string())
    }

    /// A request for a token that cannot be read. SDKs expect few answers there, and take some of the
    /// others for "fetch again".
    pub(super) fn malformed_for_a_token(flaw: ParamFlaw) -> Self {
        let why = flaw.to_string();
        match flaw {
            ParamFlaw::Doubled("secret" | "appsecret") => Self::secret(why),
            ParamFlaw::Doubled("appid") => Self::new(40013, "invalid appid", why),
            ParamFlaw::Doubled(_) | ParamFlaw::NotUtf8 | ParamFlaw::Body => {
                Self::new(41002, "appid missing", why)
            }
        }
    }

    pub(super) fn key_would_travel() -> Self {
        let why = "a client key in a parameter would be sent to WeChat; it goes to \
                   cgi-bin/token as secret, and nowhere else";
        Self::new(47001, "data format error", why)
    }

    pub(super) fn args(why: &'static str) -> Self {
        Self::new(40097, "invalid args", why)
    }

    /// We cannot do it now; nobody's input is wrong.
    pub(super) fn busy(why: impl Into<Cow<'static, str>>) -> Self {
        Self::new(-1, "system error", why)
    }

    pub(super) fn too_large() -> Self {
        Self::new(45001, "media size out of limit", "the body is longer than xinfu takes")
    }

    /// What WeChat said, in its own words.
    fn of_wechat(error: &wechat::ApiError) -> Self {
        let words = error.message.trim_end_matches([',', ' ']).to_owned();
        let why = match &error.rid {
            Some(rid) => format!("WeChat's own answer, rid {rid}"),
            None => "WeChat's own answer".to_owned(),
        };
        Self { errcode: error.code, words: words.into(), why: why.into() }
    }

    pub(crate) fn into_response(self, family: Family, rid: &str) -> Response<Payload> {
        let Self { errcode, words, why } = self;
        let comma = if family == Family::Sns { "," } else { "" };
        let errmsg = format!("{words} (xinfu: {why}){comma} rid: {rid}");
        let mut response =
            Response::new(payload(json!({"errcode": errcode, "errmsg": errmsg}).to_string()));
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, family.content_type());
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        response
    }
}

impl From<TooFast> for Refusal {
    fn from(of: TooFast) -> Self {
        const WORDS: &str = "api minute-quota reach limit, must slower, retry next minute";
        Self::new(45011, WORDS, of.to_string())
    }
}

impl From<TokenError> for Refusal {
    fn from(error: TokenError) -> Self {
        match error {
            TokenError::NoSuchCredential => Self::appid(),
            error => Self::busy(error.to_string()),
        }
    }
}

impl From<NotKnown> for Refusal {
    fn from(error: NotKnown) -> Self {
        match error {
            NotKnown::Unknown => Self::unknown_key(),
            NotKnown::Stale => Self::busy(error.to_string()),
        }
    }
}

impl From<ParamFlaw> for Refusal {
    fn from(flaw: ParamFlaw) -> Self {
        Self::malformed(flaw)
    }
}

impl From<Fault> for Refusal {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::TooLarge => Self::too_large(),
            Fault::Broken | Fault::Stalled => {
                Self::new(47001, "data format error", fault.to_string())
            }
        }
    }
}

impl From<Unanswered> for Refusal {
    fn from(unanswered: Unanswered) -> Self {
        match unanswered {
            Unanswered::Trace => {
                Self::new(48001, "api unauthorized", "TRACE is not carried: it shows the token")
            }
            Unanswered::Key(NotKnown::Unknown) => Self::token("its client key was just revoked"),
            Unanswered::Key(stale) => stale.into(),
            Unanswered::Token(error) => error.into(),
            Unanswered::Upload(fault) => fault.into(),
            Unanswered::WeChat(error) => Self::busy(error.to_string()),
        }
    }
}

impl From<ExchangeError> for Refusal {
    fn from(error: ExchangeError) -> Self {
        match error {
            ExchangeError::WrongKind(_) => Self::appid(),
            ExchangeError::CodeUsed | ExchangeError::NoLongerTold => {
                Self::new(40163, "code been used", "it was brought here before")
            }
            ExchangeError::Refused(error) => Self::of_wechat(&error),
            error @ (ExchangeError::MaybeSpent(_)
            | ExchangeError::Unreachable(_)
            | ExchangeError::Store(_)) => Self::busy(error.to_string()),
        }
    }
}

impl From<wechat::Error> for Refusal {
    fn from(error: wechat::Error) -> Self {
        match error {
            wechat::Error::Api(error) => Self::of_wechat(&error),
            error => Self::busy(error.to_string()),
        }
    }
}
