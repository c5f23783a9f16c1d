//! Paths of WeChat's API: one spelling each, and which of them a client key may call.
//!
//! A path is compared, allowed and sent exactly as it was given, so there must be no second way to
//! write it: what a lenient server might read as another path is refused, never repaired.

use std::fmt;

use crate::key::{Permission, Rights};

/// The longest path. WeChat's have fewer than 80 characters.
const LONGEST: usize = 512;

/// The name of paths that are not told apart.
pub(crate) const OTHER: &str = "other";

/// What client keys, passes and wrapped tokens begin with.
const OURS: [&str; 4] = ["xk_", "xt_", "xw_", "xr_"];

/// A path of WeChat's API in the only spelling that is accepted.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct CallPath<'a>(&'a str);

/// Why a path is not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PathFlaw {
    /// It does not begin with a slash.
    #[error("the path does not begin with `/`")]
    Relative,
    /// Two slashes, or one at the end.
    #[error("the path has an empty segment: `//`, or `/` at its end")]
    EmptySegment,
    /// A segment `.` or `..`.
    #[error("the path has a segment `.` or `..`")]
    DotSegment,
    /// Something other than `A-Z a-z 0-9 - . _ ~ /` and escaped characters beyond ASCII.
    #[error("the path has a character other than A-Z a-z 0-9 - . _ ~ and `/`")]
    Character,
    /// It has more than 512 characters.
    #[error("the path has more than 512 characters")]
    TooLong,
}

impl<'a> CallPath<'a> {
    /// Takes a path as it came over the wire, without its query.
    ///
    /// Of percent-escapes only those of characters beyond ASCII are accepted, as UTF-8 with upper-case
    /// digits: any other stands for something that can be written plainly, or that no path has.
    pub fn parse(path: &'a str) -> Result<Self, PathFlaw> {
        let bytes = path.as_bytes();
        if bytes.len() > LONGEST {
            return Err(PathFlaw::TooLong);
        }
        if bytes.first() != Some(&b'/') {
            return Err(PathFlaw::Relative);
        }
        let mut segment = 1;
        let mut at = 1;
        loop {
            match bytes.get(at) {
                None | Some(b'/') => {
                    match &bytes[segment..at] {
                        b"" => return Err(PathFlaw::EmptySegment),
                        b"." | b".." => return Err(PathFlaw::DotSegment),
                        _ => {}
                    }
                    if at == bytes.len() {
                        return if spells_characters(bytes) {
                            Ok(Self(path))
                        } else {
                            Err(PathFlaw::Character)
                        };
                    }
                    at += 1;
                    segment = at;
                }
                Some(b'%') => {
                    let digits = bytes.get(at + 1..at + 3);
                    if !matches!(
                        digits,
                        Some([b'8' | b'9' | b'A'..=b'F', b'0'..=b'9' | b'A'..=b'F'])
                    ) {
                        return Err(PathFlaw::Character);
                    }
                    at += 3;
                }
                Some(b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~') => {
                    at += 1;
                }
                Some(_) => return Err(PathFlaw::Character),
            }
        }
    }

    /// The path, as it came.
    pub fn as_str(self) -> &'a str {
        self.0
    }

    /// What it is called in logs and metrics: the path, unless a mistake may have put a token, a
    /// client key or a pass into it.
    pub fn name(self) -> &'a str {
        /// A longer path is none of WeChat's.
        const LONGEST_NAME: usize = 80;
        let ours = |segment: &str| OURS.iter().any(|prefix| segment.starts_with(prefix));
        if self.0.len() > LONGEST_NAME || self.0.split('/').any(ours) { OTHER } else { self.0 }
    }
}

/// Whether the escapes of a path, each of a byte beyond ASCII, spell characters. Bytes that do not
/// could stand for others to a lenient reader: `%C0%AE` for a dot.
fn spells_characters(path: &[u8]) -> bool {
    let mut bytes = Vec::new();
    let mut parts = path.split(|byte| *byte == b'%');
    bytes.extend_from_slice(parts.next().unwrap_or_default());
    for part in parts {
        let digits = part.get(..2).and_then(|digits| str::from_utf8(digits).ok());
        let Some(byte) = digits.and_then(|digits| u8::from_str_radix(digits, 16).ok()) else {
            return false;
        };
        bytes.push(byte);
        bytes.extend_from_slice(&part[2..]);
    }
    str::from_utf8(&bytes).is_ok()
}

impl fmt::Debug for CallPath<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

/// Why a call is not carried to WeChat.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotCarried {
    /// The client key lacks a permission.
    #[error("the client key lacks the permission `{}`", .0.as_str())]
    Lacks(Permission),
    /// The client key is for other paths.
    #[error("the client key is not for this path")]
    OtherPaths,
    /// The path is closed to every key.
    #[error("{0}")]
    Closed(&'static str),
}

/// Paths that are not carried just so.
const GUARDED: [(&str, Guard); 11] = [
    ("/cgi-bin/token", Guard::Closed(MINTS)),
    ("/cgi-bin/stable_token", Guard::Closed(MINTS)),
    ("/cgi-bin/gettoken", Guard::Closed(MINTS)),
    (
        "/cgi-bin/component/*",
        Guard::Closed("the credentials of a third-party platform are not xinfu's"),
    ),
    ("/cgi-bin/clear_quota", Guard::Needs(Permission::ClearQuota)),
    ("/cgi-bin/clear_quota/*", Guard::Needs(Permission::ClearQuota)),
    ("/cgi-bin/openapi/quota/clear", Guard::Needs(Permission::ClearQuota)),
    ("/wxa/resetusersessionkey", Guard::Needs(Permission::SessionKey)),
    ("/wxa/business/getuserencryptkey", Guard::Needs(Permission::SessionKey)),
    // Its answer quotes the URL of an earlier request, with the token in it.
    ("/cgi-bin/openapi/rid/get", Guard::MustBeNamed),
    (
        "/sns/*",
        Guard::Closed(
            "what users authorised is not read with the app's token: see `/v1/apps/{app}/grants`",
        ),
    ),
];

const MINTS: &str = "tokens are fetched by xinfu only";

/// What stands before a path.
#[derive(Clone, Copy)]
enum Guard {
    /// Nobody may.
    Closed(&'static str),
    /// A permission of its own.
    Needs(Permission),
    /// The key's paths must name it in full.
    MustBeNamed,
}

impl Rights {
    /// Whether a path may be called with the app's global token: by the permission, by the key's
    /// paths, and by what is closed to all.
    pub fn may_call(&self, path: CallPath<'_>) -> Result<(), NotCarried> {
        let has = |permission| match self.permissions.contains(&permission) {
            true => Ok(()),
            false => Err(NotCarried::Lacks(permission)),
        };
        has(Permission::Proxy)?;
        // Whether WeChat tells upper from lower case is not known, so every case is guarded.
        let guard = GUARDED.iter().find(|(pattern, _)| matches_in_any_case(pattern, path.0));
        let named = self.paths.iter().any(|pattern| pattern == path.0);
        match guard {
            Some((_, Guard::Closed(why))) => return Err(NotCarried::Closed(why)),
            Some((_, Guard::Needs(permission))) => has(*permission)?,
            Some((_, Guard::MustBeNamed)) if !named => return Err(NotCarried::OtherPaths),
            Some((_, Guard::MustBeNamed)) | None => {}
        }
        self.reaches_path(path)
    }

    /// Whether a path is among those that the key is for.
    pub fn reaches_path(&self, path: CallPath<'_>) -> Result<(), NotCarried> {
        let reached =
            self.paths.is_empty() || self.paths.iter().any(|pattern| matches(pattern, path.0));
        if reached { Ok(()) } else { Err(NotCarried::OtherPaths) }
    }
}

/// Why a pattern of a client key's paths is none, if it is none: a path in the only spelling that
/// is accepted, or one with `/*` at its end for all below it.
pub fn check_pattern(pattern: &str) -> Result<(), PathFlaw> {
    match pattern.strip_suffix("/*") {
        Some("") => Ok(()),
        Some(above) => CallPath::parse(above).map(|_| ()),
        None => CallPath::parse(pattern).map(|_| ()),
    }
}

fn matches(pattern: &str, path: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(above) => path.len() > above.len() && path.starts_with(above),
        None => pattern == path,
    }
}

fn matches_in_any_case(pattern: &str, path: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(above) => starts_with(path, above),
        None => path.eq_ignore_ascii_case(pattern),
    }
}

fn starts_with(path: &str, above: &str) -> bool {
    path.get(..above.len()).is_some_and(|start| start.eq_ignore_ascii_case(above))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::key::Apps;

    fn rights(permissions: &[Permission], paths: &[&str]) -> Rights {
        Rights {
            permissions: permissions.iter().copied().collect(),
            apps: Apps::All,
            paths: paths.iter().map(|path| (*path).to_owned()).collect(),
            ..Rights::all()
        }
    }

    #[test]
    fn what_may_hold_a_secret_is_not_a_name() {
        let name = |path: &str| CallPath::parse(path).unwrap().name().to_owned();
        for told in ["/cgi-bin/user/info", "/cgi-bin/%E4%B8%AD", "/a/txk_1", "/xk"] {
            assert_eq!(name(told), told);
        }
        let token = format!("/cgi-bin/{}", "t".repeat(80));
        for secret in ["/xk_1", "/cgi-bin/xt_abc/x", "/sns/xw_a", "/sns/a/xr_", &token] {
            assert_eq!(name(secret), OTHER, "{secret}");
        }
    }

    #[test]
    fn one_spelling() {
        for fine in [
            "/cgi-bin/user/info",
            "/wxa/business/getuserphonenumber",
            "/a",
            "/a.b/c_d-e~f/..x/...",
            "/cgi-bin/%E4%B8%AD",
            "/%F0%9F%98%80.a/%C3%A4b",
        ] {
            assert_eq!(CallPath::parse(fine).map(CallPath::as_str), Ok(fine));
        }
        use PathFlaw::{Character, DotSegment, EmptySegment, Relative, TooLong};
        for (path, flaw) in [
            ("", Relative),
            ("cgi-bin/token", Relative),
            ("*", Relative),
            ("http://api.weixin.qq.com/cgi-bin/token", Relative),
            ("/", EmptySegment),
            ("//cgi-bin/token", EmptySegment),
            ("/cgi-bin//token", EmptySegment),
            ("/cgi-bin/token/", EmptySegment),
            ("/cgi-bin/./token", DotSegment),
            ("/cgi-bin/user/../token", DotSegment),
            ("/cgi-bin/token/.", DotSegment),
            ("/..", DotSegment),
            ("/cgi-bin\\token", Character),
            ("/cgi-bin/token;a=1", Character),
            ("/cgi-bin/%C1%B4oken", Character),
            ("/cgi-bin/user/%C0%AE%C0%AE/token", Character),
            ("/cgi-bin/%E4%B8", Character),
            ("/cgi-bin/%E4a%B8%AD", Character),
            ("/cgi-bin/%FF", Character),
            ("/cgi-bin/t%6fken", Character),
            ("/cgi-bin/t%6Fken", Character),
            ("/cgi-bin%2Ftoken", Character),
            ("/cgi-bin%2ftoken", Character),
            ("/cgi-bin/%2e%2e/token", Character),
            ("/cgi-bin/t%256fken", Character),
            ("/cgi-bin/%e4%b8%ad", Character),
            ("/cgi-bin/token%", Character),
            ("/cgi-bin/token%E", Character),
            ("/cgi-bin/token%00", Character),
            ("/cgi-bin/token%20", Character),
            ("/cgi-bin/token%3F", Character),
            ("/cgi-bin/token%23", Character),
            ("/cgi-bin/token%5C", Character),
            ("/cgi-bin/token\t", Character),
            ("/cgi-bin/tok en", Character),
            ("/cgi-bin/tok\u{4e2d}", Character),
            ("/cgi-bin/token?", Character),
            ("/cgi-bin/token#", Character),
        ] {
            assert_eq!(CallPath::parse(path), Err(flaw), "{path}");
        }
        assert_eq!(CallPath::parse(&format!("/{}", "a".repeat(LONGEST))), Err(TooLong));
    }

    #[test]
    fn what_a_key_may_call() {
        use Permission::{ClearQuota, Proxy, Token};
        let may = |rights: &Rights, path| rights.may_call(CallPath::parse(path).unwrap());
        let plain = rights(&[Proxy], &[]);
        for path in
            ["/cgi-bin/user/info", "/wxa/x", "/cgi-bin/tokens", "/cgi-bin/openapi/quota/get"]
        {
            assert_eq!(may(&plain, path), Ok(()), "{path}");
        }
        for path in [
            "/cgi-bin/token",
            "/cgi-bin/TOKEN",
            "/Cgi-Bin/Stable_Token",
            "/cgi-bin/component/api_component_token",
            "/CGI-BIN/COMPONENT/api_query_auth",
            "/sns/userinfo",
            "/SNS/userinfo",
        ] {
            assert!(
                matches!(may(&rights(&Permission::ALL, &[path]), path), Err(NotCarried::Closed(_))),
                "{path}"
            );
        }
        for path in ["/cgi-bin/clear_quota", "/cgi-bin/clear_quota/v2", "/cgi-bin/CLEAR_quota"] {
            assert_eq!(may(&plain, path), Err(NotCarried::Lacks(ClearQuota)), "{path}");
            assert_eq!(may(&rights(&[Proxy, ClearQuota], &[]), path), Ok(()), "{path}");
        }
        let reset = "/wxa/resetusersessionkey";
        assert_eq!(may(&plain, reset), Err(NotCarried::Lacks(Permission::SessionKey)));
        let rid = "/cgi-bin/openapi/rid/get";
        assert_eq!(may(&plain, rid), Err(NotCarried::OtherPaths));
        assert_eq!(may(&rights(&[Proxy], &["/cgi-bin/*"]), rid), Err(NotCarried::OtherPaths));
        assert_eq!(may(&rights(&[Proxy], &[rid]), rid), Ok(()));

        assert_eq!(
            may(&rights(&[Token], &[]), "/cgi-bin/user/info"),
            Err(NotCarried::Lacks(Proxy))
        );
        let some = rights(&[Proxy], &["/cgi-bin/user/*", "/cgi-bin/menu/get"]);
        for path in ["/cgi-bin/user/info", "/cgi-bin/user/info/batchget", "/cgi-bin/menu/get"] {
            assert_eq!(may(&some, path), Ok(()), "{path}");
        }
        for path in
            ["/cgi-bin/user", "/cgi-bin/users/x", "/cgi-bin/menu/get/x", "/cgi-bin/User/info"]
        {
            assert_eq!(may(&some, path), Err(NotCarried::OtherPaths), "{path}");
        }
    }

    #[test]
    fn patterns() {
        for fine in ["/*", "/cgi-bin/*", "/cgi-bin/user/info"] {
            assert_eq!(check_pattern(fine), Ok(()), "{fine}");
        }
        for odd in
            ["", "*", "cgi-bin/*", "/cgi-bin*", "/cgi-bin/*/info", "/cgi-bin/", "/**", "/a/../*"]
        {
            assert!(check_pattern(odd).is_err(), "{odd}");
        }
    }

    proptest! {
        /// A path that is accepted has no second spelling: decoding it, and resolving it as a
        /// browser would, changes nothing but bytes beyond ASCII.
        #[test]
        fn an_accepted_path_means_one_thing(path in "/([a-z./%2eEF;\\\\-]|%[0-9a-fA-F]{2}){0,12}") {
            if let Ok(accepted) = CallPath::parse(&path) {
                prop_assert!(!path.contains("//") && !path.contains("/./") && !path.contains("/../"));
                let mut rest = accepted.as_str();
                while let Some((_, escape)) = rest.split_once('%') {
                    prop_assert!(u8::from_str_radix(&escape[..2], 16).unwrap() >= 0x80);
                    rest = &escape[2..];
                }
            }
        }
    }
}
