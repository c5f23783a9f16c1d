//! Credentials: what the broker keeps fresh.

use std::{fmt, str::FromStr, time::Duration};

use aws_lc_rs::digest::{SHA256, digest};
use clock::Timestamp;
use wechat::{AppId, TicketKind};

use crate::{app::UnknownWord, slot::SET_BACK};

/// Which credential of an app.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CredentialKind {
    /// The global access token. Kept for every app.
    Token,
    /// The ticket of the JS-SDK. Kept once asked for.
    JsapiTicket,
    /// The ticket of cards. Kept once asked for.
    WxCardTicket,
}

impl CredentialKind {
    /// All kinds.
    pub const ALL: [Self; 3] = [Self::Token, Self::JsapiTicket, Self::WxCardTicket];

    /// The kind as one word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Token => "token",
            Self::JsapiTicket => "jsapi_ticket",
            Self::WxCardTicket => "wx_card_ticket",
        }
    }

    /// The ticket kind that this is, if it is a ticket.
    pub fn ticket(self) -> Option<TicketKind> {
        match self {
            Self::Token => None,
            Self::JsapiTicket => Some(TicketKind::Jsapi),
            Self::WxCardTicket => Some(TicketKind::WxCard),
        }
    }
}

impl From<TicketKind> for CredentialKind {
    fn from(kind: TicketKind) -> Self {
        match kind {
            TicketKind::Jsapi => Self::JsapiTicket,
            TicketKind::WxCard => Self::WxCardTicket,
        }
    }
}

impl FromStr for CredentialKind {
    type Err = UnknownWord;

    fn from_str(word: &str) -> Result<Self, UnknownWord> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == word).ok_or_else(|| UnknownWord {
            word: word.to_owned(),
            choices: "token, jsapi_ticket, wx_card_ticket",
        })
    }
}

/// One credential of one app.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CredentialId {
    /// The app.
    pub app: AppId,
    /// Which of its credentials.
    pub kind: CredentialKind,
}

impl CredentialId {
    /// A part of `limit` that is another one for each credential and each instant, so that what
    /// begins together does not go on together. No chance is needed for that.
    pub(crate) fn spread(&self, at: Timestamp, limit: Duration) -> Duration {
        let text = format!("{self}/{}", at.as_millis());
        let hash = digest(&SHA256, text.as_bytes());
        let part = hash.as_ref().first_chunk().map_or(0, |bytes| u32::from_le_bytes(*bytes));
        limit.mul_f64(f64::from(part) / f64::from(u32::MAX))
    }
}

impl fmt::Display for CredentialId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.app, self.kind.as_str())
    }
}

/// Why a credential is not being refreshed as it should, and what happens next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// The errcode, when WeChat answered with one.
    pub errcode: Option<i64>,
    /// What went wrong, in words, without secrets.
    pub reason: String,
    /// WeChat's own text, when WeChat answered with an errcode.
    pub errmsg: Option<String>,
    /// WeChat's id of the failed request.
    pub rid: Option<String>,
    /// What a person has to do; `None` when waiting is enough.
    pub action: Option<String>,
    /// When it began.
    pub since: Timestamp,
    /// When it last failed.
    pub last: Timestamp,
    /// How often it has failed in a row.
    pub failures: u32,
    /// When it is tried again; `None`: not before the configuration changes or a person asks.
    pub retry_at: Option<Timestamp>,
    /// This process cannot reach the store, or what gives leases. Others may, so it is not stored.
    pub only_here: bool,
}

impl Trouble {
    /// A trouble that has just begun, with nothing known but its reason. It is tried again at once
    /// unless something is said about that.
    pub(crate) fn of(reason: String, now: Timestamp) -> Self {
        Self {
            errcode: None,
            reason,
            errmsg: None,
            rid: None,
            action: None,
            since: now,
            last: now,
            failures: 1,
            retry_at: Some(now),
            only_here: false,
        }
    }

    /// Whether nothing is to be tried at `now`. What failed by a clock that has been set back since
    /// says nothing about when.
    pub(crate) fn stands(&self, now: Timestamp) -> bool {
        self.last <= now + SET_BACK && self.retry_at.is_none_or(|at| at > now)
    }
}
