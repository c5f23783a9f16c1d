//! What the broker answers when it cannot do what it was asked. A variant exists because some
//! caller does something different.

use std::time::Duration;

use crate::{credential::Trouble, seal::SealError, store::StoreError};

/// Why a broker does not open.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// The store does not answer as it should.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A master key is missing or wrong.
    #[error(transparent)]
    Seal(#[from] SealError),
}

/// Why there is no credential to hand out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// The app's kind has no such credential.
    #[error("a website app has no global token and no tickets")]
    NoSuchCredential,
    /// Refreshing fails, and nothing usable is left.
    #[error("{}", .trouble.reason)]
    Unavailable {
        /// What is wrong.
        trouble: Box<Trouble>,
        /// When to ask again.
        retry_after: Duration,
    },
    /// The token lives, but shorter than the caller needs, and its refresh is not due yet.
    #[error("the token has less life left than `min_ttl` asks for, and its refresh is not due yet")]
    TooShort {
        /// When its refresh is due.
        retry_after: Duration,
    },
    /// The refresh under way took longer than a caller is kept waiting.
    #[error("the refresh under way takes too long")]
    Deadline {
        /// When to ask again.
        retry_after: Duration,
    },
}

/// Why a report was not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReportError {
    /// The errcode says nothing about the token.
    #[error("errcode {0} does not mean that the token is invalid; only 40001, 40014, 42001 do")]
    NotAboutTheToken(i64),
    /// There is no token to answer with.
    #[error(transparent)]
    Token(#[from] TokenError),
}

/// Why a call to WeChat on behalf of a service failed.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum CallError {
    /// There is no token to call with.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// WeChat, or the way to it.
    #[error(transparent)]
    WeChat(#[from] wechat::Error),
}

/// Why a change of apps or keys was not made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ManageError {
    /// No app has this appid or alias.
    #[error("no app `{0}`")]
    NoSuchApp(String),
    /// No client key has this id or name.
    #[error("no client key `{0}`")]
    NoSuchKey(String),
    /// The appid or alias is in use.
    #[error("the name `{0}` is taken by another app")]
    NameTaken(String),
    /// Something given is not as it must be.
    #[error("`{field}` {problem}")]
    Invalid {
        /// The name of the field.
        field: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// Somebody changed the app at the same time.
    #[error("somebody else changed app `{0}` at the same time; look and try again")]
    Raced(String),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
}
