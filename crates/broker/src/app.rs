//! Registered apps.

use std::str::FromStr;

use clock::Timestamp;
use wechat::{AppId, AppSecret};

/// What kind of app it is; decides which quotas of WeChat apply.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AppKind {
    /// An official account (公众号), subscription or service.
    Official,
    /// A mini program (小程序).
    MiniProgram,
    /// A website app (网站应用) of the Open Platform.
    Website,
    /// A test account (测试号), with a tenth of the quotas.
    Test,
}

/// Which of WeChat's endpoints mints an app's global token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Issuer {
    /// `cgi-bin/stable_token` in normal mode: asking again gives the same token.
    Stable,
    /// `cgi-bin/token`: every call mints a new token and kills the one before after 5 minutes.
    Classic,
}

/// A word that is none of those it could be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{word}` is none of {choices}")]
pub struct UnknownWord {
    /// What was given.
    pub word: String,
    /// What could have been.
    pub choices: &'static str,
}

impl AppKind {
    /// The kind as one word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Official => "official",
            Self::MiniProgram => "mini-program",
            Self::Website => "website",
            Self::Test => "test",
        }
    }
}

impl FromStr for AppKind {
    type Err = UnknownWord;

    fn from_str(word: &str) -> Result<Self, UnknownWord> {
        match word {
            "official" => Ok(Self::Official),
            "mini-program" => Ok(Self::MiniProgram),
            "website" => Ok(Self::Website),
            "test" => Ok(Self::Test),
            _ => Err(UnknownWord {
                word: word.to_owned(),
                choices: "official, mini-program, website, test",
            }),
        }
    }
}

impl Issuer {
    /// The issuer as one word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stable => "stable",
            Self::Classic => "classic",
        }
    }
}

impl FromStr for Issuer {
    type Err = UnknownWord;

    fn from_str(word: &str) -> Result<Self, UnknownWord> {
        match word {
            "stable" => Ok(Self::Stable),
            "classic" => Ok(Self::Classic),
            _ => Err(UnknownWord { word: word.to_owned(), choices: "stable, classic" }),
        }
    }
}

/// A registered app as the broker works with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct App {
    /// The appid.
    pub id: AppId,
    /// Another name for it.
    pub alias: Option<String>,
    /// What kind of app it is.
    pub kind: AppKind,
    /// Who mints its global token.
    pub issuer: Issuer,
    /// Its AppSecret.
    pub secret: AppSecret,
    /// 1 when added, +1 at each change.
    pub revision: u64,
    /// When it was added: one that was removed and came back is another app.
    pub created_at: Timestamp,
}
