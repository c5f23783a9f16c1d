//! Finding the errcode of an answer while it streams by.

use std::sync::LazyLock;

use memchr::memmem::Finder;

/// So many bytes of an answer are looked at. WeChat's refusals have fewer than 300.
const LOOKED_AT: usize = 4 * 1024;

/// The member that is looked for.
const NAME: &[u8] = b"errcode";

/// What is known of an answer so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scanned {
    /// Nothing yet; the next bytes are wanted.
    More,
    /// It has no errcode, or none within the bytes that are looked at.
    Nothing,
    /// Its errcode.
    Errcode(i64),
}

/// Looks for the member `errcode` of a JSON object, a number or a text of digits, in the bytes of
/// an answer as they come. It sees the top level only, and the first 4 KiB.
///
/// It reads what WeChat sends, which is not always JSON: control characters and bytes that are not
/// UTF-8 may stand in strings. It keeps a few words of state and none of the bytes.
#[derive(Clone, Debug, Default)]
pub struct ErrcodeScan {
    at: At,
    /// How many bytes were looked at.
    seen: usize,
    /// How many brackets are open below the top level.
    depth: u32,
    /// How many letters of the member's name are those of `errcode`; `None`: it is another name.
    matched: Option<usize>,
    number: Number,
}

/// Where in the object the next byte stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum At {
    /// Before the object.
    #[default]
    Start,
    /// Before a member's name.
    Members,
    Name,
    NameEscape,
    /// After a member's name.
    Colon,
    /// Before a value.
    Value,
    /// In the value of `errcode`; `quoted` when it is a text.
    Errcode {
        quoted: bool,
    },
    /// In a text that is a value, or in one that is deeper down.
    Text,
    TextEscape,
    /// In brackets below the top level.
    Nested,
    /// In a number or a word; or after a value.
    Rest,
}

/// A number as far as it was read.
#[derive(Clone, Copy, Debug, Default)]
struct Number {
    negative: bool,
    digits: u32,
    value: i64,
}

impl ErrcodeScan {
    /// Takes the next bytes of the answer. Once something other than [`Scanned::More`] was said,
    /// no more are wanted.
    pub fn feed(&mut self, bytes: &[u8]) -> Scanned {
        let left = LOOKED_AT - self.seen.min(LOOKED_AT);
        let looked_at = &bytes[..bytes.len().min(left)];
        self.seen += looked_at.len();
        for &byte in looked_at {
            let scanned = self.step(byte);
            if scanned != Scanned::More {
                return scanned;
            }
        }
        if self.seen == LOOKED_AT { Scanned::Nothing } else { Scanned::More }
    }

    /// Takes an answer that is there as a whole.
    pub fn feed_whole(&mut self, bytes: &[u8]) -> Scanned {
        static FINDER: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(NAME));
        // Most have no such word anywhere, which is found out many times faster.
        match FINDER.find(&bytes[..bytes.len().min(LOOKED_AT)]) {
            Some(_) => self.feed(bytes),
            None => Scanned::Nothing,
        }
    }

    fn step(&mut self, byte: u8) -> Scanned {
        let blank = matches!(byte, b' ' | b'\t' | b'\r' | b'\n');
        self.at = match (self.at, byte) {
            // A byte order mark and zero bytes may stand before the object.
            (At::Start, 0xef | 0xbb | 0xbf | 0) => At::Start,
            (At::Start, b'{') => At::Members,
            (At::Members, b',') => At::Members,
            (At::Members, b'"') => {
                self.matched = Some(0);
                At::Name
            }
            (At::Name, b'"') => At::Colon,
            (At::Name, b'\\') => At::NameEscape,
            (At::Name, letter) => {
                let next = self.matched.filter(|at| NAME.get(*at) == Some(&letter));
                self.matched = next.map(|at| at + 1);
                At::Name
            }
            (At::NameEscape, _) => {
                self.matched = None;
                At::Name
            }
            (At::Colon, b':') => At::Value,
            (At::Start | At::Members | At::Colon | At::Value, _) if blank => self.at,
            (At::Start | At::Members | At::Colon, _) => return Scanned::Nothing,
            (At::Value, _) if self.matched == Some(NAME.len()) => match byte {
                b'"' => At::Errcode { quoted: true },
                b'-' | b'0'..=b'9' => return self.errcode(byte, false),
                _ => return Scanned::Nothing,
            },
            (At::Value, b'"') => At::Text,
            (At::Value, b'{' | b'[') => {
                self.depth = 1;
                At::Nested
            }
            (At::Value, _) => At::Rest,
            (At::Errcode { quoted }, _) => return self.errcode(byte, quoted),
            (At::Text, b'"') if self.depth == 0 => At::Rest,
            (At::Text, b'"') => At::Nested,
            (At::Text, b'\\') => At::TextEscape,
            (At::Text | At::TextEscape, _) => At::Text,
            (At::Nested, b'"') => At::Text,
            (At::Nested, b'{' | b'[') => {
                self.depth += 1;
                At::Nested
            }
            (At::Nested, b'}' | b']') => {
                self.depth -= 1;
                if self.depth == 0 { At::Rest } else { At::Nested }
            }
            (At::Nested, _) => At::Nested,
            (At::Rest, b',') => At::Members,
            (At::Rest, b'}') => return Scanned::Nothing,
            (At::Rest, _) => At::Rest,
        };
        Scanned::More
    }

    /// Takes a byte of the value of `errcode`.
    fn errcode(&mut self, byte: u8, quoted: bool) -> Scanned {
        let Number { negative, digits, value } = self.number;
        self.number = match byte {
            b'-' if digits == 0 && !negative => Number { negative: true, ..self.number },
            b'0'..=b'9' => {
                let next =
                    value.checked_mul(10).and_then(|it| it.checked_add((byte - b'0').into()));
                let Some(value) = next else { return Scanned::Nothing };
                Number { negative, digits: digits + 1, value }
            }
            b'"' if quoted && digits > 0 => return self.found(),
            b' ' | b'\t' | b'\r' | b'\n' | b',' | b'}' if !quoted && digits > 0 => {
                return self.found();
            }
            _ => return Scanned::Nothing,
        };
        self.at = At::Errcode { quoted };
        Scanned::More
    }

    fn found(&self) -> Scanned {
        let Number { negative, value, .. } = self.number;
        Scanned::Errcode(if negative { -value } else { value })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn scan(bytes: &[u8]) -> Scanned {
        ErrcodeScan::default().feed(bytes)
    }

    /// The same in slices of every length.
    fn scan_in_pieces(bytes: &[u8], length: usize) -> Scanned {
        let mut scan = ErrcodeScan::default();
        let said = bytes.chunks(length).map(|piece| scan.feed(piece));
        said.into_iter().find(|said| *said != Scanned::More).unwrap_or(Scanned::More)
    }

    #[test]
    fn what_is_found_where() {
        let code = Scanned::Errcode;
        for (answer, said) in [
            (r#"{"errcode":40001,"errmsg":"invalid credential rid: 1"}"#, code(40001)),
            (r#"{"errmsg":"x","errcode":42001}"#, code(42001)),
            ("\u{feff} \n{ \"errcode\" : \"40014\" }", code(40014)),
            (r#"{"errcode":-1,"errmsg":"system error"}"#, code(-1)),
            (r#"{"errcode":0,"errmsg":"ok"}"#, code(0)),
            (r#"{"a":[{"errcode":40001}],"errcode":7}"#, code(7)),
            (r#"{"a":"}{\"errcode\":40001","b":null,"errcode":8}"#, code(8)),
            ("{\"nickname\":\"a\u{1}\nb\",\"errcode\":9}", code(9)),
            // Only deeper down, only in a text, or not at all.
            (r#"{"user":{"errcode":40001}}"#, Scanned::Nothing),
            (r#"{"list":[{"errcode":40001},["errcode",40001]]}"#, Scanned::Nothing),
            (r#"{"errmsg":"\"errcode\":40001"}"#, Scanned::Nothing),
            (r#"{"content":"errcode","x":40001}"#, Scanned::Nothing),
            (r#"{"errcodes":40001,"errcod":40001,"Errcode":40001,"":40001}"#, Scanned::Nothing),
            (r#"{"errcode":null}"#, Scanned::Nothing),
            (r#"{"errcode":"","errmsg":"ok"}"#, Scanned::Nothing),
            (r#"{"errcode":"40001x"}"#, Scanned::Nothing),
            (r#"{"errcode":40001.5}"#, Scanned::Nothing),
            (r#"{"errcode":99999999999999999999}"#, Scanned::Nothing),
            (r#"[{"errcode":40001}]"#, Scanned::Nothing),
            (r#""errcode""#, Scanned::Nothing),
            ("<html>{\"errcode\":40001}</html>", Scanned::Nothing),
            ("\u{89}PNG{\"errcode\":40001}", Scanned::Nothing),
            // Not over yet.
            ("", Scanned::More),
            (r#"{"errcode":4000"#, Scanned::More),
            (r#"{"errcode":"40001"#, Scanned::More),
            (r#"{"a":{"b":1}"#, Scanned::More),
        ] {
            assert_eq!(scan(answer.as_bytes()), said, "{answer}");
            for length in 1..7 {
                assert_eq!(scan_in_pieces(answer.as_bytes(), length), said, "{answer} by {length}");
            }
        }
    }

    #[test]
    fn only_the_beginning_is_looked_at() {
        let answer = |filling: usize| {
            let filling = "x".repeat(filling);
            format!(r#"{{"a":"{filling}","errcode":40001}}"#)
        };
        let around = answer(0).len();
        assert_eq!(scan(answer(4096 - around).as_bytes()), Scanned::Errcode(40001));
        assert_eq!(scan(answer(4096).as_bytes()), Scanned::Nothing);
        assert_eq!(scan_in_pieces(answer(4096).as_bytes(), 100), Scanned::Nothing);
    }

    fn value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i32>().prop_map(Value::from),
            "[ -~\u{4e00}-\u{4e2f}]{0,8}".prop_map(Value::from),
        ];
        leaf.prop_recursive(3, 24, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::btree_map("errcode|[a-z\"{}]{0,4}", inner, 0..4)
                    .prop_map(|members| json!(members)),
            ]
        })
    }

    proptest! {
        /// It agrees with a JSON parser on everything that is JSON, in whatever pieces it comes.
        #[test]
        fn as_a_parser_reads_it(value in value(), pretty: bool, length in 1usize..40) {
            let text = if pretty { serde_json::to_string_pretty(&value) } else { serde_json::to_string(&value) };
            let text = text.unwrap();
            prop_assume!(text.len() < LOOKED_AT);
            let parsed = value.as_object().and_then(|members| members.get("errcode"));
            let parsed = parsed.and_then(|code| match code {
                Value::Number(code) => code.as_i64(),
                Value::String(code) if code.bytes().skip(usize::from(code.starts_with('-'))).all(|b| b.is_ascii_digit()) => code.parse().ok(),
                _ => None,
            });
            let whole = ErrcodeScan::default().feed_whole(text.as_bytes());
            for said in [scan_in_pieces(text.as_bytes(), length), whole] {
                let said = if let Scanned::Errcode(code) = said { Some(code) } else { None };
                prop_assert_eq!(said, parsed);
            }
        }

        #[test]
        fn any_bytes_will_do(bytes: Vec<u8>, length in 1usize..40) {
            prop_assert_eq!(scan(&bytes), scan_in_pieces(&bytes, length));
        }
    }
}
