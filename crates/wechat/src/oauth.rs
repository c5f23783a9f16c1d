//! The start of a web authorisation: scopes, and the addresses of the pages where users consent.

use std::{fmt, str::FromStr};

use http::{Uri, uri::Scheme};
use percent_encoding::utf8_percent_encode;

use crate::{AppId, client::QUERY};

/// How much a user lets an app know. In ascending order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scope {
    /// `snsapi_base`: the openid, without asking the user.
    Base,
    /// `snsapi_userinfo`: the profile too, after the user's consent.
    UserInfo,
    /// `snsapi_login`: the same on a website, after a scan by the user's phone.
    Login,
}

/// A name that is none of the three scopes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a scope is `snsapi_base`, `snsapi_userinfo` or `snsapi_login`")]
pub struct UnknownScope;

impl Scope {
    /// All scopes.
    pub const ALL: [Self; 3] = [Self::Base, Self::UserInfo, Self::Login];

    /// The scope as WeChat writes it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Base => "snsapi_base",
            Self::UserInfo => "snsapi_userinfo",
            Self::Login => "snsapi_login",
        }
    }

    /// Whether `sns/userinfo` answers a token of this scope.
    pub const fn reads_profiles(self) -> bool {
        !matches!(self, Self::Base)
    }

    /// The widest of the scopes in a comma separated list; the narrowest where none is known.
    pub(crate) fn widest(list: &str) -> Self {
        let known = list.split(',').filter_map(|name| name.trim().parse().ok());
        known.max().unwrap_or(Self::Base)
    }
}

impl FromStr for Scope {
    type Err = UnknownScope;

    fn from_str(text: &str) -> Result<Self, UnknownScope> {
        Self::ALL.into_iter().find(|scope| scope.as_str() == text).ok_or(UnknownScope)
    }
}

/// What comes back beside the code, so that the application knows its own login again: 1 to 128 of
/// `[a-zA-Z0-9]`, all that WeChat lets pass. Without any, WeChat shows an error page (10013).
#[derive(Clone, PartialEq, Eq)]
pub struct LoginState(String);

/// A state with another character than `[a-zA-Z0-9]`, or with none or more than 128.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a state has 1 to 128 characters of a-z A-Z 0-9")]
pub struct InvalidState;

impl LoginState {
    /// The state as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for LoginState {
    type Err = InvalidState;

    fn from_str(text: &str) -> Result<Self, InvalidState> {
        let fits = (1..=128).contains(&text.len());
        let plain = text.bytes().all(|byte| byte.is_ascii_alphanumeric());
        if fits && plain { Ok(Self(text.to_owned())) } else { Err(InvalidState) }
    }
}

impl fmt::Debug for LoginState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LoginState([redacted])")
    }
}

/// Where WeChat sends the browser with the code. Its host must be registered with WeChat, in full
/// and without a port, or else users see the error page 10003.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RedirectUri(String);

/// No address to send a browser to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "a redirect URI is `https://host…` or `http://host…`, without a user and without `code` or \
     `state` in its query, which WeChat adds, in at most 1000 visible ASCII characters"
)]
pub struct InvalidRedirect;

impl RedirectUri {
    /// The address as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The address without query and fragment, which may be one user's.
    #[must_use]
    pub fn without_query(&self) -> Self {
        let end = self.0.find(['?', '#']).unwrap_or(self.0.len());
        Self(self.0[..end].to_owned())
    }
}

impl FromStr for RedirectUri {
    type Err = InvalidRedirect;

    fn from_str(text: &str) -> Result<Self, InvalidRedirect> {
        /// Longer ones were seen to fail at WeChat.
        const LONGEST: usize = 1000;
        let visible = text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'\\');
        let uri = text.parse::<Uri>().map_err(|_| InvalidRedirect)?;
        let web = [Scheme::HTTP, Scheme::HTTPS].iter().any(|scheme| uri.scheme() == Some(scheme));
        let authority = uri.authority().map_or("", |authority| authority.as_str());
        let host = uri.host().is_some_and(|host| !host.is_empty()) && !authority.contains('@');
        // They would be those of an earlier login, and stand beside the ones that WeChat adds.
        let named = |part: &str| matches!(part.split('=').next(), Some("code" | "state"));
        let plain = !uri.query().unwrap_or_default().split('&').any(named);
        if text.len() <= LONGEST && visible && web && host && plain {
            Ok(Self(text.to_owned()))
        } else {
            Err(InvalidRedirect)
        }
    }
}

/// The page where a user authorises an app.
#[derive(Clone, Debug)]
pub struct AuthorizePage<'a> {
    /// The app.
    pub app: &'a AppId,
    /// Where the browser goes with the code.
    pub redirect_uri: &'a RedirectUri,
    /// What is asked for. [`Scope::Login`] leads to the page with the QR code that a phone scans;
    /// the others lead to the page that opens in WeChat only.
    pub scope: Scope,
    /// What comes back beside the code.
    pub state: &'a LoginState,
    /// Asks for consent even where WeChat would not. Not for [`Scope::Login`].
    pub force_popup: bool,
    /// Shows the page as to a user who has not logged in, for tests. Not for [`Scope::Login`].
    pub force_snapshot: bool,
    /// The page of [`Scope::Login`] in English instead of Chinese.
    pub in_english: bool,
}

impl AuthorizePage<'_> {
    /// The page's address below `pages`. WeChat matches it with a strict pattern: the order of the
    /// parameters and the fragment are part of it.
    pub(crate) fn url(&self, pages: &str) -> String {
        let page = match self.scope {
            Scope::Base | Scope::UserInfo => "oauth2/authorize",
            Scope::Login => "qrconnect",
        };
        let mut url = format!(
            "{pages}/connect/{page}?appid={}&redirect_uri={}&response_type=code&scope={}&state={}",
            self.app,
            utf8_percent_encode(self.redirect_uri.as_str(), QUERY),
            self.scope.as_str(),
            self.state.as_str(),
        );
        if self.scope == Scope::Login {
            url.push_str(if self.in_english { "&lang=en" } else { "" });
        } else {
            url.push_str(if self.force_popup { "&forcePopup=true" } else { "" });
            url.push_str(if self.force_snapshot { "&forceSnapShot=true" } else { "" });
        }
        url.push_str("#wechat_redirect");
        url
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGES: &str = "https://open.weixin.qq.com";

    fn url(scope: Scope, change: impl FnOnce(&mut AuthorizePage<'_>)) -> String {
        let app = "wx520c15f417810387".parse().unwrap();
        let redirect_uri = "https://h5.example/php/index.php?d=&c=wxAdapter".parse().unwrap();
        let state = "123".parse().unwrap();
        let (app, redirect_uri, state) = (&app, &redirect_uri, &state);
        let (force_popup, force_snapshot, in_english) = (false, false, false);
        let mut page = AuthorizePage {
            app,
            redirect_uri,
            scope,
            state,
            force_popup,
            force_snapshot,
            in_english,
        };
        change(&mut page);
        page.url(PAGES)
    }

    const REDIRECT: &str = "https%3A%2F%2Fh5.example%2Fphp%2Findex.php%3Fd%3D%26c%3DwxAdapter";

    #[test]
    fn pages_have_their_parameters_in_the_order_that_wechat_checks() {
        let begin = format!(
            "{PAGES}/connect/oauth2/authorize?appid=wx520c15f417810387&redirect_uri={REDIRECT}\
             &response_type=code&scope="
        );
        let plain = url(Scope::Base, |_| {});
        assert_eq!(plain, format!("{begin}snsapi_base&state=123#wechat_redirect"));
        let forced = url(Scope::UserInfo, |page| {
            (page.force_popup, page.force_snapshot, page.in_english) = (true, true, true);
        });
        let rest = "snsapi_userinfo&state=123&forcePopup=true&forceSnapShot=true#wechat_redirect";
        assert_eq!(forced, format!("{begin}{rest}"));
    }

    #[test]
    fn a_website_has_a_page_of_its_own() {
        let begin = format!(
            "{PAGES}/connect/qrconnect?appid=wx520c15f417810387&redirect_uri={REDIRECT}\
             &response_type=code&scope=snsapi_login&state=123"
        );
        let plain = url(Scope::Login, |page| {
            (page.force_popup, page.force_snapshot) = (true, true);
        });
        assert_eq!(plain, format!("{begin}#wechat_redirect"));
        let english = url(Scope::Login, |page| page.in_english = true);
        assert_eq!(english, format!("{begin}&lang=en#wechat_redirect"));
    }

    #[test]
    fn states_are_what_wechat_lets_pass() {
        for fine in ["1", "aZ09", &"a".repeat(128)] {
            assert!(fine.parse::<LoginState>().is_ok(), "{fine}");
        }
        for bad in ["", "a-b", "a b", "微", "a=", &"a".repeat(129)] {
            assert_eq!(bad.parse::<LoginState>(), Err(InvalidState), "{bad}");
        }
    }

    #[test]
    fn a_redirect_goes_to_a_host() {
        for fine in [
            "https://a.example",
            "http://127.0.0.1:8080/cb?x=1&barcode=2&statement=3",
            "https://a.example/#/cb",
        ] {
            assert_eq!(fine.parse::<RedirectUri>().unwrap().as_str(), fine);
        }
        let long = format!("https://a.example/{}", "a".repeat(1000));
        for bad in [
            "",
            "/cb",
            "a.example/cb",
            "//a.example",
            "ftp://a.example",
            "javascript:alert(1)",
            "https://",
            "https://user@a.example",
            "https://a.example/ b",
            "https://a.example/微",
            "https://a.example\\@b.example",
            "https:///cb",
            "https://a.example/cb?code=C1&state=S1",
            "https://a.example/cb?x=1&state=S1#y",
            &long,
        ] {
            assert_eq!(bad.parse::<RedirectUri>(), Err(InvalidRedirect), "{bad}");
        }
    }

    #[test]
    fn an_address_without_its_query_is_still_one() {
        for (whole, plain) in [
            ("https://a.example/cb?next=/x&t=1#/y", "https://a.example/cb"),
            ("https://a.example/cb#/y?z", "https://a.example/cb"),
            ("https://a.example?x", "https://a.example"),
            ("https://a.example/cb", "https://a.example/cb"),
        ] {
            let plain_one = whole.parse::<RedirectUri>().unwrap().without_query();
            assert_eq!(plain_one.as_str(), plain);
            assert_eq!(plain.parse(), Ok(plain_one));
        }
    }

    #[test]
    fn the_widest_scope_of_a_list_counts() {
        for (list, widest) in [
            ("snsapi_base", Scope::Base),
            ("snsapi_userinfo", Scope::UserInfo),
            ("snsapi_base,snsapi_userinfo", Scope::UserInfo),
            ("snsapi_login", Scope::Login),
            ("snsapi_userinfo, snsapi_base", Scope::UserInfo),
            ("snsapi_new", Scope::Base),
            ("", Scope::Base),
        ] {
            assert_eq!(Scope::widest(list), widest, "{list}");
        }
        assert_eq!("SNSAPI_BASE".parse::<Scope>(), Err(UnknownScope));
    }
}
