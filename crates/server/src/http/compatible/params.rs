//! The parameters of a WeChat-compatible call, however they come: in the query, in JSON with or
//! without a content type, in a form, percent-encoded or not, or mixed.

use std::{borrow::Cow, fmt};

use bytes::Bytes;
use percent_encoding::percent_decode_str;
use serde::{
    Deserializer as _,
    de::{self, IgnoredAny, MapAccess, Visitor},
};

/// The parameters that decide who calls and what is put in their place: each may be given once.
const ONCE: [&str; 4] = ["access_token", "appid", "secret", "appsecret"];

/// Why parameters cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ParamFlaw {
    /// One of those that may be given once is given more often.
    #[error("`{0}` is given more than once")]
    Doubled(&'static str),
    /// A parameter is not UTF-8 when decoded.
    #[error("a parameter is not UTF-8 when decoded")]
    NotUtf8,
    /// The body is neither a JSON object nor a form.
    #[error("the body is neither a JSON object nor a form")]
    Body,
}

/// The query of a call that is carried: the token, and everything else as it came.
#[derive(Clone, PartialEq, Eq, Default)]
pub(crate) struct CallQuery<'a> {
    /// `access_token`, decoded.
    pub(crate) token: Option<Cow<'a, str>>,
    /// The other parameters, byte by byte as they came, each after a `&`.
    pub(crate) rest: String,
}

impl<'a> CallQuery<'a> {
    /// Takes a query apart.
    pub(crate) fn parse(query: Option<&'a str>) -> Result<Self, ParamFlaw> {
        let Some(query) = query else { return Ok(Self::default()) };
        let mut seen = Seen::default();
        let mut token = None;
        let mut rest = String::with_capacity(query.len() + 1);
        for part in query.split('&').filter(|part| !part.is_empty()) {
            let (name, value) = part.split_once('=').unwrap_or((part, ""));
            let name = decoded(name)?;
            seen.note(&name)?;
            if name == "access_token" {
                token = Some(decoded(value)?);
            } else {
                rest.push('&');
                rest.push_str(part);
            }
        }
        Ok(Self { token, rest })
    }

    /// Whether a parameter outside the token holds a client key of ours, which would travel.
    pub(crate) fn tells_a_key(&self) -> bool {
        self.rest.split('&').any(|part| {
            // However a lenient server takes it apart.
            decoded(part).is_ok_and(|part| {
                part.split(['=', ';', '&']).any(|word| word.trim().starts_with("xk_"))
            })
        })
    }
}

/// All parameters of a call that is answered here.
#[derive(Clone, Default)]
pub(crate) struct Params(Vec<(String, String)>);

impl Params {
    /// Reads query and body.
    pub(crate) fn parse(query: Option<&str>, body: &Bytes) -> Result<Self, ParamFlaw> {
        let mut params = Self::default();
        params.read_pairs(query.unwrap_or_default())?;
        let first = body.iter().find(|byte| !byte.is_ascii_whitespace());
        match first {
            None => {}
            Some(b'{') => params.read_json(body)?,
            Some(_) => {
                let form = std::str::from_utf8(body).map_err(|_| ParamFlaw::Body)?;
                params.read_pairs(form.trim_end_matches(['\r', '\n']))?;
            }
        }
        let mut seen = Seen::default();
        for (name, _) in &params.0 {
            seen.note(name)?;
        }
        Ok(params)
    }

    /// A parameter, unless it is missing or empty.
    pub(crate) fn get(&self, wanted: &str) -> Option<&str> {
        let found = self.0.iter().find(|(name, _)| name == wanted);
        found.map(|(_, value)| value.as_str()).filter(|value| !value.is_empty())
    }

    /// Whether a parameter is true: as a word, as JSON, or as 1.
    pub(crate) fn is_true(&self, wanted: &str) -> bool {
        self.get(wanted).is_some_and(|value| value == "1" || value.eq_ignore_ascii_case("true"))
    }

    fn read_pairs(&mut self, pairs: &str) -> Result<(), ParamFlaw> {
        for part in pairs.split('&').filter(|part| !part.is_empty()) {
            let (name, value) = part.split_once('=').unwrap_or((part, ""));
            self.0.push((decoded(name)?.into_owned(), decoded(value)?.into_owned()));
        }
        Ok(())
    }

    fn read_json(&mut self, body: &[u8]) -> Result<(), ParamFlaw> {
        let mut json = serde_json::Deserializer::from_slice(body);
        let members = json.deserialize_map(Members).map_err(|_| ParamFlaw::Body)?;
        json.end().map_err(|_| ParamFlaw::Body)?;
        self.0.extend(members);
        Ok(())
    }
}

/// Shows the names only: values are keys, codes and tokens.
impl fmt::Debug for Params {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.iter().map(|(name, _)| name)).finish()
    }
}

impl fmt::Debug for CallQuery<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CallQuery").field("token", &self.token.is_some()).finish_non_exhaustive()
    }
}

/// Which of the parameters that may be given once were seen.
#[derive(Default)]
struct Seen([bool; ONCE.len()]);

impl Seen {
    fn note(&mut self, name: &str) -> Result<(), ParamFlaw> {
        let Some(at) = ONCE.iter().position(|once| *once == name) else { return Ok(()) };
        if std::mem::replace(&mut self.0[at], true) {
            return Err(ParamFlaw::Doubled(ONCE[at]));
        }
        Ok(())
    }
}

/// Percent-decodes, and takes `+` for a blank, as forms do.
fn decoded(text: &str) -> Result<Cow<'_, str>, ParamFlaw> {
    if !text.contains(['%', '+']) {
        return Ok(Cow::Borrowed(text));
    }
    let blanks = text.replace('+', " ");
    let decoded = percent_decode_str(&blanks).decode_utf8().map_err(|_| ParamFlaw::NotUtf8)?;
    Ok(Cow::Owned(decoded.into_owned()))
}

/// The members of a JSON object that are texts, numbers or truth values; one that is doubled is
/// there twice.
struct Members;

impl<'de> Visitor<'de> for Members {
    type Value = Vec<(String, String)>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut members = Vec::new();
        while let Some(name) = map.next_key::<String>()? {
            let value = match map.next_value::<Scalar>()? {
                Scalar::Text(text) => text,
                Scalar::Other => String::new(),
            };
            members.push((name, value));
        }
        Ok(members)
    }
}

enum Scalar {
    Text(String),
    /// Null, a list or an object.
    Other,
}

impl<'de> de::Deserialize<'de> for Scalar {
    fn deserialize<D: de::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Any;

        impl<'de> Visitor<'de> for Any {
            type Value = Scalar;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a value")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Scalar, E> {
                Ok(Scalar::Text(text.to_owned()))
            }
            fn visit_bool<E: de::Error>(self, value: bool) -> Result<Scalar, E> {
                Ok(Scalar::Text(value.to_string()))
            }
            fn visit_i64<E: de::Error>(self, value: i64) -> Result<Scalar, E> {
                Ok(Scalar::Text(value.to_string()))
            }
            fn visit_u64<E: de::Error>(self, value: u64) -> Result<Scalar, E> {
                Ok(Scalar::Text(value.to_string()))
            }
            fn visit_f64<E: de::Error>(self, value: f64) -> Result<Scalar, E> {
                Ok(Scalar::Text(value.to_string()))
            }
            fn visit_unit<E: de::Error>(self) -> Result<Scalar, E> {
                Ok(Scalar::Other)
            }
            fn visit_seq<A: de::SeqAccess<'de>>(self, mut list: A) -> Result<Scalar, A::Error> {
                while list.next_element::<IgnoredAny>()?.is_some() {}
                Ok(Scalar::Other)
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Scalar, A::Error> {
                while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                Ok(Scalar::Other)
            }
        }

        from.deserialize_any(Any)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn params(query: &str, body: &'static str) -> Result<Params, ParamFlaw> {
        Params::parse(Some(query), &Bytes::from_static(body.as_bytes()))
    }

    #[test]
    fn every_way_to_give_them() {
        for (query, body) in [
            ("appid=wx1&secret=xk_a-b&force_refresh=true", ""),
            ("app%69d=wx1&s%65cret=xk%5Fa%2Db&force%5Frefresh=1", ""),
            ("", r#"{"appid":"wx1","secret":"xk_a-b","force_refresh":true}"#),
            (
                "",
                " \n{\"appid\":\"wx1\",\"secret\":\"xk_\\u0061-b\",\"force_refresh\":1,\"x\":[{\"appid\":2}]}",
            ),
            ("", "appid=wx1&secret=xk_a-b&force_refresh=TRUE\r\n"),
            ("appid=wx1", r#"{"secret":"xk_a-b","force_refresh":"true"}"#),
            ("secret=xk_a-b", "appid=wx1&force_refresh=true"),
        ] {
            let params = params(query, body).unwrap();
            assert_eq!(params.get("appid"), Some("wx1"), "{query} {body}");
            assert_eq!(params.get("secret"), Some("xk_a-b"), "{query} {body}");
            assert!(params.is_true("force_refresh"), "{query} {body}");
            assert_eq!(params.get("grant_type"), None);
            assert!(!format!("{params:?}").contains("xk_"));
        }
        assert!(!params("force_refresh=false", "").unwrap().is_true("force_refresh"));
        assert_eq!(params("appid=&secret", "").unwrap().get("appid"), None);
    }

    #[test]
    fn what_decides_is_given_once() {
        for (query, body, name) in [
            ("appid=wx1&appid=wx1", "", "appid"),
            ("appid=wx1&app%69d=wx2", "", "appid"),
            ("secret=a", "secret=b", "secret"),
            ("secret=a", r#"{"secret":"b"}"#, "secret"),
            ("", r#"{"secret":"a","secret":"b"}"#, "secret"),
            ("", r#"{"appid":"a","\u0061ppid":"b"}"#, "appid"),
            ("", r#"{"appsecret":"a","appsecret":null}"#, "appsecret"),
            ("access_token=a", r#"{"access_token":"b"}"#, "access_token"),
        ] {
            assert_eq!(
                params(query, body).unwrap_err(),
                ParamFlaw::Doubled(name),
                "{query} {body}"
            );
        }
        assert!(params("lang=a&lang=b", "").is_ok());
        for body in ["{", "{}x", r#"{"appid":}"#, "{\"a\":1}{}"] {
            assert_eq!(params("", body).unwrap_err(), ParamFlaw::Body, "{body}");
        }
        assert_eq!(params("appid=%ff", "").unwrap_err(), ParamFlaw::NotUtf8);
        assert_eq!(Params::parse(None, &Bytes::from_static(b"\xff")).unwrap_err(), ParamFlaw::Body);
    }

    #[test]
    fn a_carried_query_keeps_its_bytes() {
        for (query, token, rest) in [
            ("access_token=xt_a&openid=o1&lang=zh_CN", Some("xt_a"), "&openid=o1&lang=zh_CN"),
            (
                "openid=o1&access%5Ftoken=xt%5Fa&next_openid=",
                Some("xt_a"),
                "&openid=o1&next_openid=",
            ),
            ("a=%e4%B8%AD&&b=+c&access_token=xt_a&d", Some("xt_a"), "&a=%e4%B8%AD&b=+c&d"),
            ("openid=o1", None, "&openid=o1"),
            ("access_token=", Some(""), ""),
            ("Access_token=a&access_token[]=b", None, "&Access_token=a&access_token[]=b"),
        ] {
            let parsed = CallQuery::parse(Some(query)).unwrap();
            assert_eq!(parsed.token.as_deref(), token, "{query}");
            assert_eq!(parsed.rest, rest, "{query}");
        }
        assert_eq!(CallQuery::parse(None).unwrap(), CallQuery::default());
        for query in ["access_token=a&access_token=a", "access_token=a&access%5ftoken=b"] {
            let flaw = CallQuery::parse(Some(query)).unwrap_err();
            assert_eq!(flaw, ParamFlaw::Doubled("access_token"), "{query}");
        }
        let tells = |query| CallQuery::parse(Some(query)).unwrap().tells_a_key();
        for query in
            ["access_token=xt_a&secret=xk_b", "x=xk%5Fb", "xk_b", "a=1;secret=xk_b", "a=1%26b=xk_c"]
        {
            assert!(tells(query), "{query}");
        }
        assert!(!tells("access_token=xt_a&openid=o1"));
    }
}
