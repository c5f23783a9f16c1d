//! Why a call failed, by who is at fault, and the texts that WeChat sends along.
//!
//! No error holds a URL or a secret of the request.

use std::{fmt, net::IpAddr};

use percent_encoding::utf8_percent_encode;

use crate::{
    client::QUERY,
    errcode::{self, Action, ErrorCode, Kind},
};

/// Why a call to WeChat failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// WeChat answered, and refused.
    #[error(transparent)]
    Api(#[from] ApiError),
    /// No answer came, or not all of it.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// What came is not what WeChat's documents describe: often it is not from WeChat.
    #[error(transparent)]
    Protocol(#[from] ProtocolError),
}

/// An answer with an `errcode` other than 0.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiError {
    /// WeChat's return code.
    pub code: i64,
    /// WeChat's text of at most 300 characters, with one blank for all control characters and
    /// blanks that stand together. A secret of the request in it is replaced by `[redacted]`.
    pub message: String,
    /// The id under which WeChat remembers the request, if the text names one.
    pub rid: Option<String>,
    /// The address that WeChat saw and refused, if the code is about that and the text names it.
    pub refused_ip: Option<String>,
}

/// A failure below HTTP's answer: name, connection, TLS, time-out, a connection that broke.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}: {reason}", if *sent { "the call to WeChat broke off" } else { "WeChat could not be reached" })]
pub struct TransportError {
    /// Whether WeChat may have got the request. If not, no byte of it was sent.
    pub sent: bool,
    /// What failed, host by host.
    pub reason: String,
}

/// An answer that is neither a success nor an error of WeChat's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("WeChat's answer (HTTP {status}) was not understood: {reason}")]
pub struct ProtocolError {
    /// What is wrong with the answer, without quoting it.
    pub reason: String,
    /// The answer's HTTP status.
    pub status: u16,
}

impl ApiError {
    /// An error with WeChat's code and text, cleaned of the request's secrets.
    pub(crate) fn new(code: i64, text: &str, secrets: &[&str]) -> Self {
        // A secret is found even when control characters break it up. Only then are they left out
        // altogether, at the price of words that run together.
        let joined: String = text.chars().filter(|c| !c.is_control()).collect();
        let hidden = redacted(&joined, secrets);
        let text = if hidden == joined { spaced(text) } else { spaced(&hidden) };
        let rid = split_rid(&text).1.map(str::to_owned);
        let about_ip = errcode::find(code).is_some_and(|entry| entry.kind == Kind::IpRefused);
        let refused_ip = about_ip.then(|| find_ip(&text)).flatten();
        Self { code, message: text.chars().take(300).collect(), rid, refused_ip }
    }

    /// The text without the request id and the advice that follow it.
    pub fn stem(&self) -> &str {
        split_rid(&self.message).0
    }

    /// What the code is about, on an endpoint that is called with a token.
    pub fn kind(&self) -> Kind {
        self.entry().map_or(Kind::Other, |entry| entry.kind)
    }

    /// What the code is about, on an endpoint that is called with the AppSecret.
    pub fn kind_with_secret(&self) -> Kind {
        let differs = self.entry().and_then(|entry| entry.with_secret);
        differs.map_or_else(|| self.kind(), |(kind, _)| kind)
    }

    /// What the code asks for, on an endpoint that is called with a token; nothing more than to
    /// stop where the code is unknown.
    pub fn action(&self) -> Action {
        self.entry().map_or(Action::Never, |entry| entry.action)
    }

    /// What the code asks for, on an endpoint that is called with the AppSecret.
    pub fn action_with_secret(&self) -> Action {
        let differs = self.entry().and_then(|entry| entry.with_secret);
        differs.map_or_else(|| self.action(), |(_, action)| action)
    }

    /// The code's row in the table.
    pub fn entry(&self) -> Option<&'static ErrorCode> {
        errcode::find(self.code)
    }
}

impl fmt::Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "WeChat answered {}: {}", self.code, self.message)
    }
}

impl std::error::Error for ApiError {}

/// Splits a text of WeChat's into what it says and the id of the request.
///
/// The id is that of `rid: …`, or in older texts of `hints: [ req_id: … ]` or `hint: […]`. The
/// first part also loses the advice that stands between the two in some texts.
pub fn split_rid(text: &str) -> (&str, Option<&str>) {
    /// What ends the stem, after a blank, a comma or a line break.
    const TAILS: [&str; 9] = [
        "rid: ",
        "hint: ",
        "hint:[",
        "hints: ",
        "from ip: ",
        "could get access_token by ",
        "more details at ",
        "more info at ",
        "view more at ",
    ];
    const GAP: [char; 3] = [' ', ',', '\n'];
    let starts = [0].into_iter().chain(text.match_indices(GAP).map(|(at, gap)| at + gap.len()));
    let stem_end = starts
        .filter(|at| TAILS.iter().any(|tail| text[*at..].starts_with(tail)))
        .find(|at| !text[*at..].starts_with("rid: ") || modern_rid(&text[*at..]).is_some());
    let Some(end) = stem_end else { return (text, None) };
    let (stem, tail) = text.split_at(end);
    let rid = tail.match_indices("rid: ").find_map(|(at, _)| modern_rid(&tail[at..]));
    (stem.trim_end_matches(GAP), rid.or_else(|| old_rid(tail)))
}

/// The id that follows `rid: `: three groups of eight hexadecimal digits.
fn modern_rid(text: &str) -> Option<&str> {
    let id = text.strip_prefix("rid: ")?.get(..26)?;
    let fits = id.bytes().enumerate().all(|(at, byte)| match at {
        8 | 17 => byte == b'-',
        _ => byte.is_ascii_hexdigit(),
    });
    fits.then_some(id)
}

/// The id in the brackets of `hints: [ req_id: … ]` or `hint: […]`.
fn old_rid(text: &str) -> Option<&str> {
    let (_, rest) = text.split_once("hint")?;
    let (_, rest) = rest.split_once('[')?;
    let (inside, _) = rest.split_once(']')?;
    let inside = inside.trim();
    let id = inside.strip_prefix("req_id:").unwrap_or(inside).trim();
    (!id.is_empty()).then_some(id)
}

/// The text in one line, its words one blank apart.
fn spaced(text: &str) -> String {
    let words = text.split(|c: char| c.is_control() || c == ' ').filter(|word| !word.is_empty());
    words.collect::<Vec<_>>().join(" ")
}

/// The first address in the text, version 4 before version 6.
fn find_ip(text: &str) -> Option<String> {
    let words = text.split(|c: char| c.is_whitespace() || c == ',' || c == '[' || c == ']');
    let ips: Vec<IpAddr> = words
        .filter_map(|word| word.parse::<IpAddr>().ok())
        .map(|ip| ip.to_canonical())
        .filter(|ip| !ip.is_unspecified())
        .collect();
    ips.iter().find(|ip| ip.is_ipv4()).or_else(|| ips.first()).map(ToString::to_string)
}

/// The text with every secret replaced, as it is and as it stands in a query.
pub(crate) fn redacted(text: &str, secrets: &[&str]) -> String {
    let mut text = text.to_owned();
    for secret in secrets.iter().filter(|secret| !secret.is_empty()) {
        text = text.replace(secret, "[redacted]");
        text = text.replace(&utf8_percent_encode(secret, QUERY).to_string(), "[redacted]");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const STABLE: &str = "could get access_token by getStableAccessToken, \
                          more details at https://mmbizurl.cn/s/JtxxFh33r";

    #[track_caller]
    fn check_split(text: &str, stem: &str, rid: Option<&str>) {
        assert_eq!(split_rid(text), (stem, rid), "{text}");
        let error = ApiError::new(40001, text, &[]);
        assert_eq!(error.stem(), stem, "{text}");
        assert_eq!(error.rid.as_deref(), rid, "{text}");
    }

    #[test]
    fn request_ids_of_all_generations() {
        let invalid = "invalid credential, access_token is invalid or not latest";
        for (text, stem, rid) in [
            ("x hint: [iGyDwA0217vr35!]", "x", "iGyDwA0217vr35!"),
            ("x hints: [nHNcda0FE-PVWZTA!]", "x", "nHNcda0FE-PVWZTA!"),
            ("x, hints: [ req_id: hhJAv0I2e-9Qkj4a ]", "x", "hhJAv0I2e-9Qkj4a"),
            ("x rid: 6aac005a-01bfdbee-79769285", "x", "6aac005a-01bfdbee-79769285"),
            ("x, rid: 6aac007a-6c02c771-26bf69c4", "x", "6aac007a-6c02c771-26bf69c4"),
            (
                "invalid openid hint: [xlmeHJYfk-6Hx4LA] rid: 62d91593-1af7da21-37efbc86",
                "invalid openid",
                "62d91593-1af7da21-37efbc86",
            ),
            (
                "invalid appsecret, view more at http://t.cn/RAEkdVq hint: [iGyDwA0217vr35!]",
                "invalid appsecret",
                "iGyDwA0217vr35!",
            ),
            (
                "invalid credential, access_token is invalid or not latest hint: [9.ZaUa0975vr21]",
                invalid,
                "9.ZaUa0975vr21",
            ),
            (
                "x, hint: [1642406569024700231269230], from ip: 1.2.3.4, more info at \
                 https://open.work.weixin.qq.com/devtool/query?e=40001",
                "x",
                "1642406569024700231269230",
            ),
            ("x rid: 6aac005a-01bfdbee-79769285, and more", "x", "6aac005a-01bfdbee-79769285"),
            ("rid: 6aac005a-01bfdbee-79769285", "", "6aac005a-01bfdbee-79769285"),
        ] {
            check_split(text, stem, Some(rid));
        }
        let rid = "6aac0067-64b57aeb-64b4a99a";
        check_split(&format!("{invalid}, {STABLE} rid: {rid}"), invalid, Some(rid));
        check_split(&format!("{invalid}, {STABLE}"), invalid, None);
    }

    #[test]
    fn texts_without_a_request_id() {
        check_split("system error", "system error", None);
        check_split("", "", None);
        check_split("a rid: that is none", "a rid: that is none", None);
        check_split("微信 rid: 微信微信微信微信微信", "微信 rid: 微信微信微信微信微信", None);
        check_split("arid: 6aac005a-01bfdbee-79769285", "arid: 6aac005a-01bfdbee-79769285", None);
        check_split("x hint: [", "x", None);
        check_split("x hint: []", "x", None);
    }

    #[test]
    fn a_line_break_in_the_text() {
        let text = "invalid grant_type\n, rid: 6aac007a-6c02c771-26bf69c4";
        assert_eq!(split_rid(text), ("invalid grant_type", Some("6aac007a-6c02c771-26bf69c4")));
        let error = ApiError::new(40002, text, &[]);
        assert_eq!(error.message, "invalid grant_type , rid: 6aac007a-6c02c771-26bf69c4");
        assert_eq!(error.stem(), "invalid grant_type");
        for text in [
            "data\tformat  error\nrid: 6aac007a-6c02c771-26bf69c4",
            "data format\r\n\u{8} error \r\n rid:\t6aac007a-6c02c771-26bf69c4\n",
        ] {
            let error = ApiError::new(47001, text, &[]);
            assert_eq!(error.message, "data format error rid: 6aac007a-6c02c771-26bf69c4");
            assert_eq!(error.rid.as_deref(), Some("6aac007a-6c02c771-26bf69c4"));
            assert_eq!(error.stem(), "data format error");
        }
    }

    #[test]
    fn the_refused_address() {
        let rid = "rid: 61250a39-612fed42-36740516";
        for (text, ip) in [
            (
                "invalid ip 116.25.45.231 ipv6 ::ffff:116.25.45.231, not in whitelist",
                "116.25.45.231",
            ),
            ("invalid ip 116.25.45.231, not in whitelist", "116.25.45.231"),
            ("invalid ip ipv6 240e:3b7::12, not in whitelist", "240e:3b7::12"),
            ("invalid ip 240e:3b7::12, not in whitelist", "240e:3b7::12"),
            ("invalid ip 0.0.0.0 ipv6 240e:3b7::12, not in whitelist", "240e:3b7::12"),
            ("invalid ip  ipv6 ::ffff:1.2.3.4, not in whitelist", "1.2.3.4"),
        ] {
            let error = ApiError::new(40164, &format!("{text} {rid}"), &[]);
            assert_eq!(error.refused_ip.as_deref(), Some(ip), "{text}");
            assert_eq!(error.kind(), Kind::IpRefused);
            assert_eq!(error.stem(), text.replace("  ", " "));
        }
        assert_eq!(ApiError::new(40164, "invalid ip, not in whitelist", &[]).refused_ip, None);
        assert_eq!(ApiError::new(40013, "invalid ip 1.2.3.4", &[]).refused_ip, None);
    }

    #[test]
    fn a_message_is_clean_short_and_keeps_no_secret() {
        let text = format!("bad s3c\u{8}r3t/+ and s3cr3t%2F%2B{}", "微".repeat(400));
        let error = ApiError::new(40125, &text, &["", "s3cr3t/+"]);
        assert!(error.message.starts_with("bad [redacted] and [redacted]微微"), "{error}");
        assert_eq!(error.message.chars().count(), 300);
    }

    #[test]
    fn what_a_code_means_depends_on_the_endpoint() {
        let error = ApiError::new(40001, "invalid credential", &[]);
        assert_eq!(error.kind(), Kind::InvalidToken);
        assert_eq!(error.kind_with_secret(), Kind::BadCredential);
        assert_eq!(error.action(), Action::RefreshToken);
        assert_eq!(error.action_with_secret(), Action::Human);
        let busy = ApiError::new(-1, "system error", &[]);
        assert_eq!((busy.kind(), busy.kind_with_secret()), (Kind::Busy, Kind::Busy));
        assert_eq!((busy.action(), busy.action_with_secret()), (Action::Retry, Action::Retry));
        let unknown = ApiError::new(99_999, "?", &[]);
        assert_eq!((unknown.kind(), unknown.action()), (Kind::Other, Action::Never));
        assert_eq!(unknown.entry(), None);
        assert_eq!(unknown.to_string(), "WeChat answered 99999: ?");
    }
}
