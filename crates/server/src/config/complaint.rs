//! What is said about a TOML document that cannot be read. Values are never quoted: a password may
//! stand where a number is expected.

/// Where a document is wrong, and how.
pub(crate) struct Complaint {
    /// The number of the line, where it is known.
    pub(crate) line: Option<usize>,
    /// The key on that line.
    pub(crate) key: Option<String>,
    /// What is wrong: names fields and what is expected.
    pub(crate) words: String,
}

impl Complaint {
    /// Words the error of a document.
    pub(crate) fn of(text: &str, err: &toml::de::Error) -> Self {
        let words = without_value(err.message());
        let Some(before) = err.span().and_then(|span| text.get(..span.start)) else {
            return Self { line: None, key: None, words };
        };
        let number = before.matches('\n').count() + 1;
        let line = text.lines().nth(number - 1).unwrap_or_default();
        // On a line inside a value, what stands before the sign is no key.
        let is_key = |key: &&str| {
            !key.is_empty() && key.chars().all(|c| c.is_ascii_alphanumeric() || "_-.".contains(c))
        };
        let key = line.split_once('=').map(|(key, _)| key.trim()).filter(is_key);
        Self { line: Some(number), key: key.map(str::to_owned), words }
    }
}

/// The message without the value that it is about: only what is expected instead.
pub(crate) fn without_value(message: &str) -> String {
    let message = message.trim();
    let quotes = ["invalid type", "invalid value", "invalid length", "unknown variant"];
    if !quotes.iter().any(|start| message.starts_with(start)) {
        return message.to_owned();
    }
    match message.rsplit_once(", expected ") {
        Some((_, expected)) => format!("expected {expected}"),
        None => "the value cannot be used".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_left_out_and_fields_stay() {
        for (message, words) in [
            ("invalid type: string \"pass, expected 5\", expected u64", "expected u64"),
            ("invalid value: integer `-5`, expected u64", "expected u64"),
            ("unknown variant `pass`, expected `a` or `b`", "expected `a` or `b`"),
            ("invalid value: integer `5`", "the value cannot be used"),
            ("unknown field `web`, expected `api`", "unknown field `web`, expected `api`"),
            ("missing field `appid`", "missing field `appid`"),
        ] {
            assert_eq!(without_value(message), words);
        }
    }

    #[test]
    fn a_line_inside_a_value_has_no_key() {
        #[derive(Debug, serde::Deserialize)]
        struct Document {
            #[serde(rename = "urls")]
            _urls: Vec<String>,
        }
        let text = "urls = [\n  \"http://me:pass=word@host\", 3,\n]\n";
        let err = toml::from_str::<Document>(text).unwrap_err();
        let Complaint { line, key, words } = Complaint::of(text, &err);
        assert_eq!((line, key), (Some(2), None));
        assert_eq!(words, "expected a string");
    }
}
