//! From any bytes to an answer or an error.
//!
//! WeChat sends errors under HTTP 200, JSON as `text/plain`, raw control characters and broken
//! UTF-8 inside strings, numbers as text; gateways on the way send HTML. So the content type is not
//! looked at, the HTTP status only when the body does not speak for itself, and no input panics.

use serde::{Deserialize, Deserializer, de::DeserializeOwned};
use serde_json::Value;

use crate::{
    ApiError, Error, OpenId, ProtocolError, UnionId,
    answer::{Fields, Flaw},
};

/// Reads an answer's status and body: WeChat's error if there is one, else what `pick` finds.
///
/// `secrets` are those of the request; they appear in no error.
pub(crate) fn read<T>(
    status: u16,
    body: &[u8],
    secrets: &[&str],
    pick: impl FnOnce(&mut Fields) -> Result<T, Flaw>,
) -> Result<T, Error> {
    let protocol = |reason: String| Error::Protocol(ProtocolError { reason, status });

    let mut fields = match json(body) {
        Ok(Value::Object(fields)) => fields,
        Ok(Value::Array(_)) => return Err(protocol("it is a JSON array".to_owned())),
        Ok(_) => return Err(protocol("it is JSON, but not an object".to_owned())),
        Err(reason) if (300..400).contains(&status) => {
            return Err(protocol(format!("it is a redirect, which is not followed ({reason})")));
        }
        Err(reason) => return Err(protocol(reason)),
    };

    let errcode = match fields.get("errcode") {
        None | Some(Value::Null) => None,
        Some(Value::String(text)) if text.is_empty() => None,
        Some(code) => {
            let code = to_integer(code);
            Some(code.ok_or_else(|| protocol("its errcode is not a number".to_owned()))?)
        }
    };
    match errcode {
        Some(0) => {}
        Some(code) => {
            let text = fields.get("errmsg").and_then(Value::as_str).unwrap_or_default();
            return Err(Error::Api(ApiError::new(code, text, secrets)));
        }
        None if status != 200 => {
            return Err(protocol("it is JSON without an errcode".to_owned()));
        }
        None => {}
    }

    pick(&mut fields).map_err(|flaw| protocol(flaw.to_owned()))
}

/// The JSON in the bytes, or what stands there instead.
fn json(body: &[u8]) -> Result<Value, String> {
    let text = String::from_utf8_lossy(body);
    let text = text.trim_matches(|c: char| c.is_whitespace() || c == '\u{feff}' || c == '\0');
    if text.is_empty() {
        return Err("it is empty".to_owned());
    }
    if text.starts_with('<') {
        return Err("it is HTML or XML, not JSON".to_owned());
    }
    let parsed = serde_json::from_str(text).or_else(|_| serde_json::from_str(&mended(text)));
    // The parser's own text may quote the body, so only its place is told.
    parsed.map_err(|error| {
        if error.is_eof() {
            format!("it is JSON that breaks off after {} bytes", body.len())
        } else {
            format!("it is not JSON (line {}, column {})", error.line(), error.column())
        }
    })
}

/// The text with control characters inside strings escaped, backslashes that escape nothing
/// doubled, and U+FFFD for each `\u` escape that is no character.
fn mended(text: &str) -> String {
    let mut mended = String::with_capacity(text.len() + 16);
    let mut inside = false;
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let length = match c {
            '\\' if inside => escape(rest, &mut mended),
            _ if inside && c < ' ' => {
                mended.push_str(&format!("\\u{:04x}", u32::from(c)));
                1
            }
            _ => {
                inside ^= c == '"';
                mended.push(c);
                c.len_utf8()
            }
        };
        rest = &rest[length..];
    }
    mended
}

/// Mends the escape that the text begins with; answers how much of the text that was.
fn escape(text: &str, mended: &mut String) -> usize {
    let (length, fine) = match text.as_bytes().get(1) {
        Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => (2, true),
        Some(b'u') => unicode_escape(text),
        Some(_) => {
            mended.push_str("\\\\");
            return 1;
        }
        None => (1, true),
    };
    mended.push_str(if fine { &text[..length] } else { "\u{fffd}" });
    length
}

/// How much of the text is the `\u…` or the pair of them that it begins with, and whether that is a
/// character.
fn unicode_escape(text: &str) -> (usize, bool) {
    let unit = |at: usize| {
        let digits = text.get(at..at + 6)?.strip_prefix("\\u")?;
        let hex = digits.bytes().all(|byte| byte.is_ascii_hexdigit());
        if hex { u16::from_str_radix(digits, 16).ok() } else { None }
    };
    match (unit(0), unit(6)) {
        (Some(0xd800..=0xdbff), Some(0xdc00..=0xdfff)) => (12, true),
        (Some(0xd800..=0xdfff), _) => (6, false),
        (Some(_), _) => (6, true),
        (None, _) => (2 + text[2..].bytes().take_while(u8::is_ascii_hexdigit).count(), false),
    }
}

/// A whole number from a number, a fraction (cut off) or either as text.
pub(crate) fn to_integer(value: &Value) -> Option<i64> {
    match value {
        Value::Number(number) => number.as_i64().or_else(|| cut(number.as_f64()?)),
        Value::String(text) => {
            let text = text.trim();
            text.parse().ok().or_else(|| cut(text.parse().ok()?))
        }
        _ => None,
    }
}

#[expect(clippy::cast_possible_truncation, reason = "the range is checked, the fraction unwanted")]
fn cut(number: f64) -> Option<i64> {
    const WIDEST: f64 = 9_007_199_254_740_992.0;
    (-WIDEST..=WIDEST).contains(&number).then_some(number as i64)
}

/// The record in a JSON object; nothing from anything else.
///
/// Only for records all of whose fields are read by the functions below, which take any value.
pub(crate) fn object<T: DeserializeOwned>(value: Value) -> Option<T> {
    if value.is_object() { T::deserialize(value).ok() } else { None }
}

/// A number field; zero for anything that is none or does not fit.
pub(crate) fn integer<'de, D, T>(from: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: TryFrom<i64> + Default,
{
    let number = to_integer(&Value::deserialize(from)?).unwrap_or_default();
    Ok(T::try_from(number).unwrap_or_default())
}

/// A field that says yes by a number other than 0, or by `true`.
pub(crate) fn flag<'de, D: Deserializer<'de>>(from: D) -> Result<bool, D::Error> {
    let value = Value::deserialize(from)?;
    Ok(value.as_bool().unwrap_or_else(|| to_integer(&value).is_some_and(|number| number != 0)))
}

/// A text field, byte for byte; a number becomes its text, anything else the empty text.
pub(crate) fn text<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    Ok(match Value::deserialize(from)? {
        Value::String(text) => text,
        Value::Number(number) => number.to_string(),
        _ => String::new(),
    })
}

/// A list of numbers; empty for anything else, without the entries that are no number.
pub(crate) fn list<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<i64>, D::Error> {
    let value = Value::deserialize(from)?;
    Ok(value.as_array().map(|all| all.iter().filter_map(to_integer).collect()).unwrap_or_default())
}

/// A list of texts; empty for anything else, without the entries that are no text.
pub(crate) fn texts<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<String>, D::Error> {
    let value = Value::deserialize(from)?;
    let text = |one: &Value| one.as_str().map(str::to_owned);
    Ok(value.as_array().map(|all| all.iter().filter_map(text).collect()).unwrap_or_default())
}

/// An openid field.
pub(crate) fn openid<'de, D: Deserializer<'de>>(from: D) -> Result<OpenId, D::Error> {
    text(from).map(OpenId::new)
}

/// A unionid field; none where it is empty.
pub(crate) fn unionid<'de, D: Deserializer<'de>>(from: D) -> Result<Option<UnionId>, D::Error> {
    Ok(Some(text(from)?).filter(|id| !id.is_empty()).map(UnionId::new))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{Kind, answer, fuzzing::every_parser};

    /// A valid body of each kind, and an error.
    const BODIES: [&str; 11] = [
        r#"{"access_token":"ACCESS_TOKEN","expires_in":7200,"refresh_token":"REFRESH_TOKEN","openid":"OPENID","scope":"SCOPE","is_snapshotuser":1,"unionid":"UNIONID"}"#,
        r#"{"openid":"OPENID","nickname":"微信\ud83d\ude00","sex":0,"province":"","city":"","country":"","headimgurl":"https://thirdwx.qlogo.cn/mmopen/0","privilege":["PRIVILEGE1"],"unionid":"UNIONID"}"#,
        r#"{"openid":"OPENID","session_key":"tiihtNczf5v6AKRyjwEUhQ==","unionid":"UNIONID"}"#,
        r#"{"access_token":"ACCESS_TOKEN","expires_in":7200}"#,
        r#"{"errcode":0,"errmsg":"ok","ticket":"TICKET","expires_in":7200}"#,
        r#"{"subscribe":1,"openid":"o6_bmjrPTlm6_2sgVt7hMZOPfL2M","nickname":"微信\ud83d\ude00","tagid_list":[128,2]}"#,
        r#"{"user_info_list":[{"subscribe":1,"openid":"o1"},{"subscribe":0,"openid":"o2"}]}"#,
        r#"{"total":2,"count":2,"data":{"openid":["o1","o2"]},"next_openid":"o2"}"#,
        r#"{"ip_list":["127.0.0.1","101.226.103.0/25"]}"#,
        r#"{"errcode":0,"errmsg":"ok","quota":{"daily_limit":1,"used":0,"remain":1},"rate_limit":{"call_count":1,"refresh_second":60}}"#,
        r#"{"errcode":40164,"errmsg":"invalid ip 116.25.45.231 ipv6 ::ffff:116.25.45.231, not in whitelist rid: 61250a39-612fed42-36740516"}"#,
    ];

    fn read_token(status: u16, body: &[u8]) -> Result<crate::IssuedToken, Error> {
        read(status, body, &["s3cr3t"], answer::token)
    }

    #[track_caller]
    fn check_api(body: &str, code: i64, stem: &str, rid: Option<&str>) {
        for status in [200, 400, 502] {
            let Err(Error::Api(error)) = read_token(status, body.as_bytes()) else {
                panic!("{body} is no error of WeChat's");
            };
            assert_eq!((error.code, error.stem(), error.rid.as_deref()), (code, stem, rid));
        }
    }

    #[track_caller]
    fn check_protocol(status: u16, body: &[u8], reason: &str) {
        let reason = reason.to_owned();
        assert_eq!(read_token(status, body), Err(ProtocolError { reason, status }.into()));
    }

    #[test]
    fn published_errors() {
        let invalid = "invalid credential, access_token is invalid or not latest";
        for (body, code, stem, rid) in [
            (
                r#"{"errcode":40013,"errmsg":"invalid appid rid: 6aac005a-01bfdbee-79769285"}"#,
                40013,
                "invalid appid",
                "6aac005a-01bfdbee-79769285",
            ),
            (
                r#"{"errcode":40013,"errmsg":"invalid appid, rid: 6aac007a-6c02c771-26bf69c4"}"#,
                40013,
                "invalid appid",
                "6aac007a-6c02c771-26bf69c4",
            ),
            (
                r#"{"errcode":40001,"errmsg":"invalid credential, access_token is invalid or not latest, could get access_token by getStableAccessToken, more details at https://mmbizurl.cn/s/JtxxFh33r rid: 6aac0067-64b57aeb-64b4a99a"}"#,
                40001,
                invalid,
                "6aac0067-64b57aeb-64b4a99a",
            ),
            (
                r#"{"errcode":40001,"errmsg":"invalid credential, access_token is invalid or not latest, rid: 6aac007d-476fb159-54f0678e"}"#,
                40001,
                invalid,
                "6aac007d-476fb159-54f0678e",
            ),
            (
                r#"{"errcode":41001,"errmsg":"access_token missing rid: 6aac0064-355b48ab-4c5b487e"}"#,
                41001,
                "access_token missing",
                "6aac0064-355b48ab-4c5b487e",
            ),
            (
                r#"{"errcode":40125,"errmsg":"invalid appsecret rid: 63cf14c3-1af7da21-37efbc86"}"#,
                40125,
                "invalid appsecret",
                "63cf14c3-1af7da21-37efbc86",
            ),
            (
                r#"{"errcode":40163,"errmsg":"code been used, rid: 660556fb-256121bc-6902deca"}"#,
                40163,
                "code been used",
                "660556fb-256121bc-6902deca",
            ),
            (
                r#"{"errcode":41008,"errmsg":"missing code, rid: 65d56510-389d87bb-729c2f46"}"#,
                41008,
                "missing code",
                "65d56510-389d87bb-729c2f46",
            ),
            (
                r#"{"errcode":45009,"errmsg":"reach max api daily quota limit, could get access_token by getStableAccessToken, more details at https://mmbizurl.cn/s/JtxxFh33r rid: 654e20fe-255cb46d-7fc880f7"}"#,
                45009,
                "reach max api daily quota limit",
                "654e20fe-255cb46d-7fc880f7",
            ),
            (
                r#"{"errcode":45011,"errmsg":"api minute-quota reach limit, must slower, retry next minute, rid: 664d902f-3b2a1c4d-5e6f7081"}"#,
                45011,
                "api minute-quota reach limit, must slower, retry next minute",
                "664d902f-3b2a1c4d-5e6f7081",
            ),
            (
                r#"{"errcode":40163,"errmsg":"code been used, hints: [ req_id: Orf0601th22 ]"}"#,
                40163,
                "code been used",
                "Orf0601th22",
            ),
            (
                r#"{"errcode":40001,"errmsg":"invalid credential, access_token is invalid or not latest hint: [9.ZaUa0975vr21]"}"#,
                40001,
                invalid,
                "9.ZaUa0975vr21",
            ),
        ] {
            check_api(body, code, stem, Some(rid));
        }

        let Err(Error::Api(refused)) = read_token(200, BODIES[10].as_bytes()) else { panic!() };
        assert_eq!(refused.refused_ip.as_deref(), Some("116.25.45.231"));
        assert_eq!(refused.rid.as_deref(), Some("61250a39-612fed42-36740516"));
        assert_eq!(refused.kind(), Kind::IpRefused);
    }

    #[test]
    fn an_errcode_decides_however_it_is_written() {
        check_api(r#"{"errcode":"40013","errmsg":"invalid appid"}"#, 40013, "invalid appid", None);
        check_api(r#"{"errcode":-1,"errmsg":"system error"}"#, -1, "system error", None);
        check_api(r#"{"errcode":40013.0}"#, 40013, "", None);
        check_api(r#"{"errcode":40013,"errmsg":null,"access_token":"T"}"#, 40013, "", None);
        check_api("\u{feff}\r\n {\"errcode\":40013}\n\0", 40013, "", None);
        check_api("{\"errcode\":40002,\"errmsg\":\"a\nb\u{8}\"}", 40002, "a b", None);
        for none in ["0", "\"0\"", "\"\"", "null"] {
            let body = format!(r#"{{"errcode":{none},"access_token":"T"}}"#);
            assert!(read_token(200, body.as_bytes()).is_ok(), "{none}");
        }
        check_protocol(200, br#"{"errcode":"x"}"#, "its errcode is not a number");
        check_protocol(200, br#"{"errcode":{}}"#, "its errcode is not a number");
    }

    #[test]
    fn the_status_counts_only_without_an_errcode() {
        let success = br#"{"errcode":0,"access_token":"T"}"#;
        assert!(read_token(500, success).is_ok());
        check_protocol(500, BODIES[0].as_bytes(), "it is JSON without an errcode");
    }

    #[test]
    fn what_is_no_answer() {
        check_protocol(200, b"", "it is empty");
        check_protocol(200, b" \r\n\0", "it is empty");
        check_protocol(200, b"\xef\xbb\xbf", "it is empty");
        check_protocol(502, b"<html><h1>502</h1></html>", "it is HTML or XML, not JSON");
        check_protocol(200, b"[{\"errcode\":1}]", "it is a JSON array");
        check_protocol(200, b"\"s3cr3t\"", "it is JSON, but not an object");
        check_protocol(200, b"null", "it is JSON, but not an object");
        check_protocol(200, b"s3cr3t", "it is not JSON (line 1, column 1)");
        check_protocol(
            200,
            b"{\"access_token\":\"s3c",
            "it is JSON that breaks off after 20 bytes",
        );
        check_protocol(200, b"{} {}", "it is not JSON (line 1, column 4)");
        check_protocol(302, b"", "it is a redirect, which is not followed (it is empty)");
        let deep = "[".repeat(100_000);
        check_protocol(200, deep.as_bytes(), "it is not JSON (line 1, column 128)");
    }

    #[test]
    fn only_what_is_inside_strings_is_mended() {
        assert_eq!(mended("{\"a\":\n\t\"b\nc\"}\n"), "{\"a\":\n\t\"b\\u000ac\"}\n");
        assert_eq!(mended(r#"{"a":"\"\\\/\n\u0041"}"#), r#"{"a":"\"\\\/\n\u0041"}"#);
        assert_eq!(mended("\"\\\u{1}\""), "\"\\\\\\u0001\"");
        assert_eq!(mended(r#""\x""#), r#""\\x""#);
        assert_eq!(mended("\"a\\"), "\"a\\");
    }

    /// A valid body after a few random edits.
    fn spoiled() -> impl Strategy<Value = Vec<u8>> {
        let edits =
            prop::collection::vec((any::<prop::sample::Index>(), 0..4u8, any::<u8>()), 1..8);
        (prop::sample::select(&BODIES[..]), edits).prop_map(|(body, edits)| {
            let mut body = body.as_bytes().to_vec();
            for (place, edit, byte) in edits {
                let at = place.index(body.len() + 1);
                match edit {
                    0 => body.insert(at, byte),
                    1 => body.truncate(at),
                    2 if at < body.len() => body[at] = byte,
                    3 if at < body.len() => {
                        body.remove(at);
                    }
                    _ => {}
                }
            }
            body
        })
    }

    proptest! {
        #[test]
        fn no_bytes_panic(body in prop::collection::vec(any::<u8>(), 0..512)) {
            every_parser(&body);
        }

        #[test]
        fn no_text_panics(body in "\\PC{0,64}( hint: \\[|, rid: |ip )[0-9a-f:. -]{0,40}\\PC{0,8}") {
            every_parser(body.as_bytes());
            let body = serde_json::json!({"errcode": 40164, "errmsg": body}).to_string();
            every_parser(body.as_bytes());
        }

        #[test]
        fn no_spoiled_body_panics(body in spoiled()) {
            every_parser(&body);
        }

        #[test]
        fn control_characters_survive(name in "[\\x00-\\x1fa-c微😀]{0,12}") {
            let body = format!("{{\"openid\":\"o1\",\"nickname\":\"{name}\"}}");
            let user = read(200, body.as_bytes(), &[], answer::follower).unwrap();
            prop_assert_eq!(user.nickname, name);
        }

        #[test]
        fn no_error_quotes_the_secret(before in any::<Vec<u8>>(), after in any::<Vec<u8>>()) {
            let body = [&before[..], b"s3cr3t", &after[..]].concat();
            let error = format!("{:?}", read_token(200, &body));
            prop_assert!(!error.contains("s3cr3t"), "{}", error);
        }

        #[test]
        fn no_text_of_wechats_quotes_the_secret(
            parts in prop::array::uniform2("[\\x00-\\x20a-c,:\\[]{0,6}( rid: | hint: \\[)?"),
            split in 0..7usize,
            gap in "[\\x00-\\x1f]{0,2}",
        ) {
            let [before, after] = parts;
            let (head, tail) = "s3cr3t".split_at(split.min(6));
            let text = format!("{before}{head}{gap}{tail}{after}");
            let body = serde_json::json!({"errcode": 40001, "errmsg": text}).to_string();
            let Err(Error::Api(error)) = read_token(200, body.as_bytes()) else { panic!() };
            prop_assert!(error.message.contains("[redacted]"), "{}", error);
            let error = format!("{error:?}").replace(' ', "");
            prop_assert!(!error.contains("s3cr3t"), "{}", error);
        }
    }
}
