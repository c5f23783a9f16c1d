//! Why a command failed, and what to do about it.

use std::io;

use broker::{CallError, ManageError, OpenError, TokenError, seal::SealError, store::StoreError};

use crate::config::ConfigError;

/// A command that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The exit code: 1, or 2 when the command line or the configuration is wrong; 0 when nobody
    /// reads our output any more.
    pub(crate) code: u8,
    /// What went wrong.
    pub(crate) message: String,
    /// What to do next.
    pub(crate) hints: Vec<String>,
    /// There is nothing left to say: the log has it, or nobody reads our output any more.
    pub(crate) told: bool,
}

impl Failure {
    /// It did not work.
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self { code: 1, message: message.into(), hints: Vec::new(), told: false }
    }

    /// It was not asked for in a way that can work.
    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self { code: 2, ..Self::new(message) }
    }

    /// The same with a hint.
    #[must_use]
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hints.push(hint.into());
        self
    }
}

impl From<ConfigError> for Failure {
    fn from(err: ConfigError) -> Self {
        let failure = Self::usage(err.message);
        match err.hint {
            Some(hint) => failure.hint(hint),
            None => failure,
        }
    }
}

impl From<io::Error> for Failure {
    fn from(err: io::Error) -> Self {
        // Whoever reads our output has heard enough: `xinfu app list | head -1`.
        if err.kind() == io::ErrorKind::BrokenPipe {
            return Self { code: 0, told: true, ..Self::new(err.to_string()) };
        }
        Self::new(err.to_string())
    }
}

impl From<StoreError> for Failure {
    fn from(err: StoreError) -> Self {
        Self::new(err.to_string())
    }
}

impl From<OpenError> for Failure {
    fn from(err: OpenError) -> Self {
        let failure = Self::new(err.to_string());
        match err {
            OpenError::Seal(SealError::UnknownKey(id)) => Self::usage(format!(
                "the store holds secrets that are sealed with master key `{id}`, which is not \
                 configured"
            ))
            .hint(format!("add `{id}` to `[[master_keys]]`; only after `xinfu rekey` it can go")),
            OpenError::Seal(_) => {
                failure.hint("the file of that master key is not the one that sealed this store")
            }
            OpenError::Store(_) => failure,
        }
    }
}

impl From<ManageError> for Failure {
    fn from(err: ManageError) -> Self {
        let failure = Self::new(err.to_string());
        match err {
            ManageError::NoSuchApp(_) => failure.hint("`xinfu app list` lists the apps"),
            ManageError::NoSuchKey(_) => failure.hint("`xinfu key list` lists the live keys"),
            ManageError::Invalid { .. } => Self { code: 2, ..failure },
            ManageError::NameTaken(_) => failure
                .hint("`xinfu app list` lists the apps; `app set` and `app set-secret` change one"),
            ManageError::Raced(_) | ManageError::Store(_) => failure,
        }
    }
}

impl From<TokenError> for Failure {
    fn from(err: TokenError) -> Self {
        let failure = Self::new(err.to_string());
        match err {
            TokenError::Unavailable { trouble, .. } => match trouble.action {
                Some(action) => failure.hint(action),
                None => failure,
            },
            _ => failure,
        }
    }
}

impl From<CallError> for Failure {
    fn from(err: CallError) -> Self {
        match err {
            CallError::Token(err) => err.into(),
            CallError::WeChat(err) => {
                let human = match &err {
                    wechat::Error::Api(api) => api.entry().and_then(|entry| entry.human),
                    _ => None,
                };
                let failure = Self::new(err.to_string());
                match human {
                    Some(human) => failure.hint(human),
                    None => failure,
                }
            }
        }
    }
}
