//! The door for the fuzzer: what an SDK's request says, read from any bytes.
//!
//! Not part of the crate's interface. What is read is compared with a second, lenient reading of the
//! same text: whatever a server behind us might take for a path that mints, or for a token, must not
//! come through.

use std::borrow::Cow;

use broker::{
    key::{Permission, Rights},
    path::CallPath,
};
use bytes::Bytes;
use percent_encoding::percent_decode_str;

use crate::http::{CallQuery, Params};

/// What no key may call with the app's token, however it is written.
const CLOSED: [&str; 3] = ["/cgi-bin/token", "/cgi-bin/stable_token", "/cgi-bin/gettoken"];
/// The same, with all that is below.
const CLOSED_BELOW: [&str; 2] = ["/cgi-bin/component/", "/sns/"];

/// Reads the bytes as `path?query`, a line feed, and a body. Whatever they are, it returns; it panics
/// when something comes through that must not.
pub fn a_request(bytes: &[u8]) {
    let end = bytes.iter().position(|byte| *byte == b'\n').unwrap_or(bytes.len());
    let target = String::from_utf8_lossy(&bytes[..end]);
    let body = Bytes::copy_from_slice(bytes.get(end + 1..).unwrap_or_default());
    let (path, query) = match target.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (&*target, None),
    };
    check_path(path);
    check_query(query.unwrap_or_default());
    check_params(query, &body);
}

fn check_path(given: &str) {
    let Ok(path) = CallPath::parse(given) else { return };
    assert_eq!(path.as_str(), given, "a path is never repaired");
    if !path.name().starts_with('/') {
        assert_eq!(path.name(), "other");
    }
    let all = Rights { permissions: Permission::ALL.into(), ..Rights::all() };
    let lenient = lenient_path(given);
    let closed =
        CLOSED.contains(&&*lenient) || CLOSED_BELOW.iter().any(|above| lenient.starts_with(above));
    if closed {
        assert!(all.may_call(path).is_err(), "{given} is carried");
    }
}

/// A path as the most lenient server would take it: decoded, in lower case, without what is empty or
/// a step up, and without parameters.
fn lenient_path(path: &str) -> String {
    let decoded = decode(path).replace('\\', "/").to_ascii_lowercase();
    let mut segments = Vec::new();
    for segment in decoded.split('/') {
        match segment
            .split(';')
            .next()
            .unwrap_or_default()
            .trim_matches([' ', '\t', '\r', '\n', '\0'])
        {
            "" | "." => {}
            ".." => drop(segments.pop()),
            segment => segments.push(segment),
        }
    }
    format!("/{}", segments.join("/"))
}

fn check_query(query: &str) {
    let Ok(parsed) = CallQuery::parse(Some(query)) else { return };
    let name = |part: &str| decode(part.split('=').next().unwrap_or_default()).into_owned();
    let of_rest: Vec<_> = parsed.rest.split('&').map(name).collect();
    assert!(!of_rest.iter().any(|name| name == "access_token"), "a token of the caller's travels");
    let parts = |text: &str| text.split('&').filter(|part| !part.is_empty()).count();
    let token = usize::from(parsed.token.is_some());
    assert_eq!(parts(query), parts(&parsed.rest) + token, "a parameter is lost");
}

fn check_params(query: Option<&str>, body: &Bytes) {
    let Ok(params) = Params::parse(query, body) else { return };
    for name in ["access_token", "appid", "secret", "appsecret"] {
        let given = query.unwrap_or_default().split('&').filter_map(|part| part.split_once('='));
        let mut given =
            given.filter(|(key, _)| decode(key) == name).map(|(_, value)| decode(value));
        // What decides has one value, and the query's is it.
        if let Some(value) = given.next().filter(|value| !value.is_empty()) {
            assert_eq!(params.get(name), Some(&*value), "{name}");
            assert_eq!(given.next(), None, "{name} is given twice");
        }
    }
}

/// As forms are decoded: by another way than the one that is checked.
fn decode(text: &str) -> Cow<'_, str> {
    let blanks = text.replace('+', " ");
    Cow::Owned(percent_decode_str(&blanks).decode_utf8_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_bytes(bytes: Vec<u8>) {
            a_request(&bytes);
        }

        /// A path that is closed, with a little of it altered.
        #[test]
        fn any_spelling_of_a_closed_path(
            closed in prop::sample::select(
                [&CLOSED[..], &["/cgi-bin/component/api_component_token", "/sns/userinfo"]].concat()
            ),
            upper in prop::collection::vec(any::<bool>(), 40),
            at in any::<prop::sample::Index>(),
            piece in prop::sample::select(vec![
                "", "", "/", "/.", "/x/..", "%2F", "%2e", ";a", "\\", "%00", "%20", "+", "?", "#", "%E2%80%83",
            ]),
            escaped in any::<Option<prop::sample::Index>>(),
        ) {
            let mut path = String::new();
            let escaped = escaped.map(|it| it.index(closed.len()));
            for (place, (letter, upper)) in closed.chars().zip(upper).enumerate() {
                if at.index(closed.len()) == place {
                    path.push_str(piece);
                }
                let letter = if upper { letter.to_ascii_uppercase() } else { letter };
                match escaped == Some(place) {
                    true => path.push_str(&format!("%{:02X}", letter as u32)),
                    false => path.push(letter),
                }
            }
            a_request(path.as_bytes());
        }

        /// Pieces of what matters, in any order and spelling.
        #[test]
        fn any_spelling(
            pieces in prop::collection::vec(
                prop::sample::select(vec![
                    "/", "//", "/./", "/../", "cgi-bin", "CGI-BIN", "token", "t%6fken", "%2F", "%2e",
                    "stable_token", "sns", "userinfo", ";a", "\\", "?", "&", "=", "+", "%", "%00",
                    "access_token", "access%5Ftoken", "secret", "s%65cret", "appid", "xk_1", "xt_1",
                    "\n", "{", "}", "\"", ":", ",", "\\u0061", "\u{4e2d}", "%E4%B8%AD",
                ]),
                0..14,
            ),
        ) {
            a_request(format!("/{}", pieces.concat()).as_bytes());
        }
    }
}
