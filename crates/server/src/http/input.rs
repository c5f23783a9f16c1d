//! Reading what a request brings, strictly: what is unknown, doubled or unreadable is a problem.
//! No message quotes a value.

use std::{borrow::Cow, str::FromStr};

use axum::http::{HeaderMap, header};
use bytes::Bytes;
use percent_encoding::percent_decode;
use serde::de::DeserializeOwned;
use wechat::OpenId;

use super::problem::{Problem, ProblemType};

/// The longest openid that is passed on; WeChat's have 28 characters.
const LONGEST_OPENID: usize = 64;

/// The longest openid that is looked up here.
const LONGEST_HELD_OPENID: usize = 128;

/// The parameters of a query, each at most once.
#[derive(Debug)]
pub(super) struct Query<'a>(Vec<(&'static str, Cow<'a, str>)>);

impl<'a> Query<'a> {
    /// Reads a query that may have the `allowed` parameters and no other.
    pub(super) fn parse(
        query: Option<&'a str>,
        allowed: &'static [&'static str],
    ) -> Result<Self, Problem> {
        let mut found = Vec::new();
        for pair in query.unwrap_or_default().split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let name = decoded(name, "the name of a query parameter")?;
            let Some(known) = allowed.iter().find(|known| **known == name) else {
                let detail = match allowed {
                    [] => "This call takes no query parameters.".to_owned(),
                    _ => format!("This call takes the query parameters {}.", listed(allowed)),
                };
                return Err(Problem::invalid(shown(&name), detail));
            };
            if found.iter().any(|(name, _)| name == known) {
                let detail = format!("The query parameter `{known}` is given more than once.");
                return Err(Problem::invalid(*known, detail));
            }
            let value = decoded(value, known)?;
            if value.chars().any(char::is_control) {
                let detail = format!("`{known}` holds a control character.");
                return Err(Problem::invalid(*known, detail));
            }
            found.push((*known, value));
        }
        Ok(Self(found))
    }

    /// The value of a parameter, if it is given.
    pub(super) fn text(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| *known == name).map(|(_, value)| &**value)
    }

    /// A whole number from 0 to `most`, if it is given.
    pub(super) fn number(&self, name: &'static str, most: u64) -> Result<Option<u64>, Problem> {
        let Some(text) = self.text(name) else { return Ok(None) };
        let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        let number = digits.then(|| text.parse().ok()).flatten().filter(|n| *n <= most);
        match number {
            Some(number) => Ok(Some(number)),
            None => {
                let detail = format!("`{name}` is a whole number from 0 to {most}.");
                Err(Problem::invalid(name, detail))
            }
        }
    }

    /// Whether something is wished: `true` or `false`, which it is too when it is not given.
    pub(super) fn flag(&self, name: &'static str) -> Result<bool, Problem> {
        match self.text(name) {
            None | Some("false") => Ok(false),
            Some("true") => Ok(true),
            Some(_) => Err(Problem::invalid(name, format!("`{name}` is `true` or `false`."))),
        }
    }

    /// One of a few words, if it is given.
    pub(super) fn word<T: FromStr>(&self, name: &'static str) -> Result<Option<T>, Problem>
    where
        T::Err: std::fmt::Display,
    {
        self.text(name).map(|text| word(name, text)).transpose()
    }
}

/// One of a few words.
pub(super) fn word<T: FromStr>(name: &'static str, text: &str) -> Result<T, Problem>
where
    T::Err: std::fmt::Display,
{
    text.parse().map_err(|err| Problem::invalid(name, format!("For `{name}`: {err}.")))
}

/// An openid, from a path, a query or a body.
pub(super) fn openid(field: impl Into<String>, text: &str) -> Result<OpenId, Problem> {
    parse_openid(text).map_err(|detail| Problem::invalid(field, detail))
}

/// Reads an openid, or says what one is.
pub(crate) fn parse_openid(text: &str) -> Result<OpenId, String> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'-';
    if (1..=LONGEST_OPENID).contains(&text.len()) && text.bytes().all(plain) {
        return Ok(OpenId::new(text));
    }
    Err(format!("An openid has 1 to {LONGEST_OPENID} characters of A-Z a-z 0-9 _ -."))
}

/// Reads an openid of somebody of whom something may be held: whatever WeChat once wrote.
pub(crate) fn parse_held_openid(text: &str) -> Result<OpenId, String> {
    if is_visible(text, LONGEST_HELD_OPENID) {
        return Ok(OpenId::new(text));
    }
    Err(format!("An openid has 1 to {LONGEST_HELD_OPENID} visible ASCII characters."))
}

/// Whether a text has 1 to `most` characters that are all visible ASCII.
pub(super) fn is_visible(text: &str, most: usize) -> bool {
    (1..=most).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic())
}

/// The key under which a caller repeats its own request, if there is one: a string of a structured
/// field, with its quotes or without.
pub(super) fn idempotency_key(headers: &HeaderMap) -> Result<Option<&str>, Problem> {
    const LONGEST: usize = 255;
    let mut given = headers.get_all("idempotency-key").iter();
    let Some(one) = given.next() else { return Ok(None) };
    let text = one.to_str().unwrap_or_default();
    let bare = text.strip_prefix('"').and_then(|text| text.strip_suffix('"')).unwrap_or(text);
    if given.next().is_none() && is_visible(bare, LONGEST) {
        return Ok(Some(bare));
    }
    let detail = format!(
        "The header `Idempotency-Key` has 1 to {LONGEST} visible ASCII characters, and comes once."
    );
    Err(Problem::invalid("Idempotency-Key", detail))
}

/// Checks by its headers that a body is JSON.
pub(super) fn check_json(headers: &HeaderMap) -> Result<(), Problem> {
    let wrong = |detail: &str| Err(Problem::new(ProblemType::UnsupportedMediaType, detail));
    let mut types = headers.get_all(header::CONTENT_TYPE).iter();
    let (Some(content_type), None) = (types.next(), types.next()) else {
        return wrong("Send exactly one `Content-Type`, `application/json`.");
    };
    let content_type = content_type.to_str().unwrap_or_default();
    let (essence, parameters) = content_type.split_once(';').unwrap_or((content_type, ""));
    if !essence.trim().eq_ignore_ascii_case("application/json") {
        return wrong("Send the body as `Content-Type: application/json`.");
    }
    let other_charset = parameters.split(';').any(|parameter| {
        let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
        name.trim().eq_ignore_ascii_case("charset")
            && !value.trim().trim_matches('"').eq_ignore_ascii_case("utf-8")
    });
    if other_charset {
        return wrong("JSON is UTF-8; leave `charset` out.");
    }
    let encoded = headers.get(header::CONTENT_ENCODING);
    if encoded.is_some_and(|encoding| !encoding.as_bytes().eq_ignore_ascii_case(b"identity")) {
        return wrong("Send the body without a `Content-Encoding`.");
    }
    Ok(())
}

/// Reads a body as JSON; what is wrong is told with the name of the field.
pub(super) fn json<T: DeserializeOwned>(body: &Bytes) -> Result<T, Problem> {
    // A list would be taken for the fields in their order.
    if body.trim_ascii_start().first().is_some_and(|first| *first != b'{') {
        return Err(Problem::new(ProblemType::Malformed, "The body must be a JSON object."));
    }
    let mut json = serde_json::Deserializer::from_slice(body);
    let read = serde_path_to_error::deserialize(&mut json);
    let value = read.map_err(|err| json_problem(&err.path().to_string(), err.inner()))?;
    json.end().map_err(|err| json_problem("", &err))?;
    Ok(value)
}

fn json_problem(path: &str, err: &serde_json::Error) -> Problem {
    if !err.is_data() {
        let (line, column) = (err.line(), err.column());
        let detail = format!("The body is not JSON: it breaks at line {line}, column {column}.");
        return Problem::new(ProblemType::Malformed, detail);
    }
    let message = err.to_string();
    let message = message.rsplit_once(" at line ").map_or(&*message, |(message, _)| message);
    // `invalid type: string "…", expected …` quotes the value; only what was expected is told.
    let expected = message.rsplit_once(", expected ").map(|(_, expected)| expected);
    let quoted = message.split('`').nth(1);
    let (field, detail) = match (quoted, expected) {
        (Some(field), _) if message.starts_with("missing field") => {
            (field.to_owned(), format!("The body lacks the field `{field}`."))
        }
        (Some(field), _) if message.starts_with("duplicate field") => {
            (field.to_owned(), format!("The field `{field}` is given more than once."))
        }
        (Some(field), Some(expected)) if message.starts_with("unknown field") => {
            (shown(field), format!("The body has a field that is not known; expected {expected}."))
        }
        (_, Some(expected)) => (path.to_owned(), format!("`{path}` must be {expected}.")),
        (_, None) => (path.to_owned(), format!("`{path}` cannot be used.")),
    };
    Problem::invalid(field, detail)
}

fn decoded<'a>(raw: &'a str, what: &str) -> Result<Cow<'a, str>, Problem> {
    let broken = |detail: String| Problem::new(ProblemType::Malformed, detail);
    if !escapes_are_whole(raw.as_bytes()) {
        return Err(broken(format!("A percent-escape in `{what}` is broken.")));
    }
    let decoded = if raw.contains('+') {
        let spaced = raw.replace('+', " ");
        percent_decode(spaced.as_bytes()).decode_utf8().map(|text| Cow::Owned(text.into_owned()))
    } else {
        percent_decode(raw.as_bytes()).decode_utf8()
    };
    decoded.map_err(|_| broken(format!("`{what}` is not UTF-8.")))
}

/// Whether two hexadecimal digits follow every percent sign.
fn escapes_are_whole(raw: &[u8]) -> bool {
    raw.iter().enumerate().filter(|(_, b)| **b == b'%').all(|(at, _)| {
        raw.get(at + 1..at + 3).is_some_and(|two| two.iter().all(u8::is_ascii_hexdigit))
    })
}

/// A name that a caller made up, fit to be shown.
fn shown(name: &str) -> String {
    name.chars().filter(|c| !c.is_control()).take(64).collect()
}

fn listed(names: &[&str]) -> String {
    let quoted: Vec<_> = names.iter().map(|name| format!("`{name}`")).collect();
    quoted.join(", ")
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize, PartialEq)]
    #[serde(deny_unknown_fields)]
    struct Sample {
        words: Vec<String>,
        #[serde(default)]
        number: Option<u8>,
    }

    fn refusal(body: &'static str) -> String {
        let problem = json::<Sample>(&Bytes::from_static(body.as_bytes())).unwrap_err();
        format!("{problem:?}")
    }

    #[test]
    fn bodies_are_read_and_refused_by_field() {
        let body = Bytes::from_static(b" {\"words\":[\"a\"]} ");
        assert_eq!(json(&body).ok(), Some(Sample { words: vec!["a".to_owned()], number: None }));
        for (body, told) in [
            ("{}", "lacks the field `words`"),
            (r#"{"words":[],"words":[]}"#, "`words` is given more than once"),
            (r#"{"words":[],"other":1}"#, "other"),
            (r#"{"words":["a",7]}"#, "`words[1]` must be a string"),
            (r#"{"words":[],"number":256}"#, "`number` must be u8"),
            (r#"{"words":[]"#, "breaks at line 1, column 11"),
            ("[[]]", "must be a JSON object"),
            ("", "breaks at line 1, column 0"),
        ] {
            assert!(refusal(body).contains(told), "{body}: {}", refusal(body));
        }
    }

    #[test]
    fn no_value_is_quoted() {
        for body in [
            r#"{"words":"s3cr3t"}"#,
            r#"{"words":["s3cr3t, expected nothing",7]}"#,
            r#"{"words":[],"number":"s3cr3t"}"#,
            r#"{"words":[],"number":"`s3cr3t`, expected x at line 1"}"#,
            r#""s3cr3t""#,
        ] {
            assert!(!refusal(body).contains("s3cr3t"), "{body}: {}", refusal(body));
        }
    }

    #[test]
    fn the_key_of_a_repeat() {
        let of = |given: &[&'static str]| {
            let headers = given
                .iter()
                .map(|one| ("idempotency-key".parse().unwrap(), one.parse().unwrap()))
                .collect::<HeaderMap>();
            idempotency_key(&headers).map(|key| key.map(str::to_owned)).map_err(|_| ())
        };
        assert_eq!(of(&[]), Ok(None));
        assert_eq!(of(&["a-1"]), Ok(Some("a-1".to_owned())));
        assert_eq!(of(&["\"a-1\""]), Ok(Some("a-1".to_owned())));
        for bad in [&[""][..], &["\"\""], &["a b"], &["\u{e4}"], &["a", "a"]] {
            assert_eq!(of(bad), Err(()), "{bad:?}");
        }
    }

    #[test]
    fn queries_are_read_strictly() {
        let parse = |query: &'static str| {
            let query = Query::parse(Some(query), &["a", "b"]).ok()?;
            Some((query.text("a").map(str::to_owned), query.text("b").map(str::to_owned)))
        };
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(parse(""), Some((None, None)));
        assert_eq!(parse("a=1&b=%E5%BE%AE+x"), Some((some("1"), some("微 x"))));
        assert_eq!(parse("a&b=c=d"), Some((some(""), some("c=d"))));
        let flag = |query: &'static str| {
            Query::parse(Some(query), &["a"]).and_then(|query| query.flag("a"))
        };
        for (query, set) in [("", false), ("a=false", false), ("a=true", true)] {
            assert_eq!(flag(query).ok(), Some(set), "{query}");
        }
        let told = format!("{:?}", flag("a=1").unwrap_err());
        assert!(told.contains("`a` is `true` or `false`."), "{told}");
        for bad in ["c=1", "a=1&a=1", "a=%00", "a=%0a", "a=%", "a=%4", "a=%zz", "a=%ff", "%ff=1"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }
}
