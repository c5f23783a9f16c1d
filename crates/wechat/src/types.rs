//! Names and secrets of the protocol, one type each.
//!
//! A secret has no `Display` and no `Serialize`, its `Debug` is redacted, and it compares in
//! constant time. Its value leaves through `expose` only, so that a search for `expose` lists every
//! place where it can leak.

use std::{fmt, str::FromStr, sync::Arc};

use aws_lc_rs::constant_time::verify_slices_are_equal;
use serde::{Serialize, Serializer};

/// The id of an app: `wx` and 16 hexadecimal digits at WeChat; here 1–64 of `[A-Za-z0-9_-]`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AppId(Arc<str>);

/// An appid with a character outside `[A-Za-z0-9_-]`, or with none or more than 64.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an appid has 1 to 64 characters of A-Z a-z 0-9 _ -")]
pub struct InvalidAppId;

impl AppId {
    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for AppId {
    type Err = InvalidAppId;

    fn from_str(text: &str) -> Result<Self, InvalidAppId> {
        let fits = (1..=64).contains(&text.len())
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
        if fits { Ok(Self(text.into())) } else { Err(InvalidAppId) }
    }
}

impl fmt::Display for AppId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for AppId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AppId({})", self.0)
    }
}

/// Personal names of a user: not secret, but not for logs, so `Debug` shows four characters.
macro_rules! user_ids {
    ($($(#[$doc:meta])* $name:ident;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(String);

        impl $name {
            /// Takes the id as WeChat wrote it.
            pub fn new(id: impl Into<String>) -> Self {
                Self(id.into())
            }

            /// The id as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
                to.serialize_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let head: String = self.0.chars().take(4).collect();
                write!(f, concat!(stringify!($name), "({}…)"), head)
            }
        }
    )*};
}

user_ids! {
    /// A user as one app sees it: 28 characters that start with `o`.
    OpenId;
    /// A user as all apps of one Open Platform account see it.
    UnionId;
}

macro_rules! secrets {
    ($($(#[$doc:meta])* $name:ident;)*) => {$(
        $(#[$doc])*
        #[derive(Clone)]
        pub struct $name(Arc<str>);

        impl $name {
            /// Takes the secret's value.
            pub fn new(value: impl Into<Arc<str>>) -> Self {
                Self(value.into())
            }

            /// The secret's value. Every use is a place where it can leak.
            pub fn expose(&self) -> &str {
                &self.0
            }
        }

        impl PartialEq for $name {
            fn eq(&self, other: &Self) -> bool {
                verify_slices_are_equal(self.0.as_bytes(), other.0.as_bytes()).is_ok()
            }
        }

        impl Eq for $name {}

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(concat!(stringify!($name), "([redacted])"))
            }
        }
    )*};
}

secrets! {
    /// The AppSecret: what an app proves itself with at WeChat.
    AppSecret;
    /// The global access token of an app, good for `cgi-bin/*`. No conversion leads from or to the
    /// token of a web authorisation.
    GlobalToken;
    /// A `jsapi` or `wx_card` ticket of an app.
    Ticket;
    /// The web access token of one user, good for `sns/*` only. No conversion leads from or to the
    /// global token of the app:
    ///
    /// ```compile_fail,E0277
    /// let global: wechat::GlobalToken = wechat::WebToken::new("the user's").into();
    /// ```
    /// ```compile_fail,E0277
    /// let web: wechat::WebToken = wechat::GlobalToken::new("the app's").into();
    /// ```
    WebToken;
    /// What renews a [`WebToken`] for 30 days.
    RefreshToken;
    /// What a user's consent, or `wx.login` in a mini program, is handed over as: exchanged once,
    /// within 5 minutes.
    AuthCode;
    /// The key of a mini program's user, base64 of 16 bytes, which signs and encrypts what the
    /// mini program reads of them.
    SessionKey;
}

/// Which of the two tickets of an app.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TicketKind {
    /// The `jsapi` ticket, which signs the pages that use the JS-SDK.
    Jsapi,
    /// The `wx_card` ticket, which signs cards and coupons.
    WxCard,
}

/// A name that is neither `jsapi` nor `wx_card`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a ticket kind is `jsapi` or `wx_card`")]
pub struct UnknownTicketKind;

impl TicketKind {
    /// The kind as WeChat's `type` parameter writes it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Jsapi => "jsapi",
            Self::WxCard => "wx_card",
        }
    }
}

impl FromStr for TicketKind {
    type Err = UnknownTicketKind;

    fn from_str(text: &str) -> Result<Self, UnknownTicketKind> {
        match text {
            "jsapi" => Ok(Self::Jsapi),
            "wx_card" => Ok(Self::WxCard),
            _ => Err(UnknownTicketKind),
        }
    }
}

/// How `cgi-bin/stable_token` is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mode {
    /// Answers the token there is, or its successor in its last 300 seconds.
    Normal,
    /// Mints a new token and ends the old one. WeChat allows 20 a day, 30 seconds apart.
    Force,
}

/// The language in which WeChat names countries, provinces and cities.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Lang {
    /// Simplified Chinese, `zh_CN`.
    ZhCn,
    /// Traditional Chinese, `zh_TW`.
    ZhTw,
    /// English, `en`.
    En,
}

/// A name that is none of `zh_CN`, `zh_TW` and `en`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a language is `zh_CN`, `zh_TW` or `en`")]
pub struct UnknownLang;

impl Lang {
    /// The language as WeChat's `lang` parameter writes it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ZhCn => "zh_CN",
            Self::ZhTw => "zh_TW",
            Self::En => "en",
        }
    }
}

impl FromStr for Lang {
    type Err = UnknownLang;

    fn from_str(text: &str) -> Result<Self, UnknownLang> {
        match text {
            "zh_CN" => Ok(Self::ZhCn),
            "zh_TW" => Ok(Self::ZhTw),
            "en" => Ok(Self::En),
            _ => Err(UnknownLang),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::marker::PhantomData;

    use super::*;

    #[test]
    fn appids_are_checked() {
        assert!("wx0123456789abcdef".parse::<AppId>().is_ok());
        for bad in ["", "wx/..", "wx 1", "微信", &"a".repeat(65)] {
            assert_eq!(bad.parse::<AppId>(), Err(InvalidAppId), "{bad}");
        }
    }

    #[test]
    fn names_of_kinds_and_languages_read_back() {
        for kind in [TicketKind::Jsapi, TicketKind::WxCard] {
            assert_eq!(kind.as_str().parse(), Ok(kind));
        }
        for lang in [Lang::ZhCn, Lang::ZhTw, Lang::En] {
            assert_eq!(lang.as_str().parse(), Ok(lang));
        }
        assert_eq!("JSAPI".parse::<TicketKind>(), Err(UnknownTicketKind));
        assert_eq!("zh".parse::<Lang>(), Err(UnknownLang));
    }

    #[test]
    fn no_token_becomes_one_of_the_other_kind() {
        /// Has the inherent method where the conversion exists, and else that of the trait.
        struct Probe<A, B>(PhantomData<(A, B)>);
        trait Otherwise {
            fn exists(&self) -> bool {
                false
            }
        }
        impl<A, B> Otherwise for Probe<A, B> {}
        impl<A, B: From<A>> Probe<A, B> {
            fn exists(&self) -> bool {
                true
            }
        }
        assert!(Probe::<WebToken, WebToken>(PhantomData).exists(), "the probe sees a conversion");
        assert!(!Probe::<WebToken, GlobalToken>(PhantomData).exists());
        assert!(!Probe::<GlobalToken, WebToken>(PhantomData).exists());
        assert!(!Probe::<RefreshToken, WebToken>(PhantomData).exists());
        assert!(!Probe::<WebToken, RefreshToken>(PhantomData).exists());
        assert!(!Probe::<RefreshToken, GlobalToken>(PhantomData).exists());
        assert!(!Probe::<&WebToken, GlobalToken>(PhantomData).exists());
        assert!(!Probe::<&GlobalToken, WebToken>(PhantomData).exists());
    }

    #[test]
    fn debug_shows_no_secret() {
        let shown = format!(
            "{:?} {:?} {:?} {:?}",
            AppSecret::new("s3cr3t"),
            GlobalToken::new("t0k3n"),
            Ticket::new("t1ck3t"),
            OpenId::new("oABCDEFGHIJKLMNOPQRSTUVWXYZ0")
        );
        assert_eq!(
            shown,
            "AppSecret([redacted]) GlobalToken([redacted]) Ticket([redacted]) OpenId(oABC…)"
        );
        let shown = format!(
            "{:?} {:?} {:?} {:?}",
            WebToken::new("w3b"),
            RefreshToken::new("r3fr3sh"),
            AuthCode::new("c0d3"),
            SessionKey::new("k3y")
        );
        assert_eq!(
            shown,
            "WebToken([redacted]) RefreshToken([redacted]) AuthCode([redacted]) \
             SessionKey([redacted])"
        );
    }
}
