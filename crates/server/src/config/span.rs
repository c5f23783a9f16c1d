//! Spans of time as people write them: `500ms`, `3s`, `5m`, `12h`, `90d`.

use std::time::Duration;

/// What a span looks like, for messages.
pub const EXPECTED: &str = "a number with a unit, such as `500ms`, `3s`, `5m`, `12h` or `90d`";

/// Reads a span.
pub fn parse(text: &str) -> Option<Duration> {
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().ok()?;
    let millis = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return None,
    };
    number.checked_mul(millis).map(Duration::from_millis)
}

/// A span in at most two units, for people: `1 h 54 min`.
pub fn words(span: Duration) -> String {
    let seconds = span.as_secs();
    let two = |big: u64, unit: &str, small: u64, smaller: &str| match small {
        0 => format!("{big} {unit}"),
        _ => format!("{big} {unit} {small} {smaller}"),
    };
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3_600 => two(seconds / 60, "min", seconds % 60, "s"),
        3_600..86_400 => two(seconds / 3_600, "h", seconds % 3_600 / 60, "min"),
        _ => two(seconds / 86_400, "d", seconds % 86_400 / 3_600, "h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_read_with_their_unit() {
        assert_eq!(parse("500ms"), Some(Duration::from_millis(500)));
        assert_eq!(parse("90d"), Some(Duration::from_secs(90 * 86_400)));
        for bad in ["", "3", "s", "3 s", "-3s", "1.5s", "99999999999999999999s", "3w"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn spans_are_written_in_two_units() {
        let cases = [(0, "0 s"), (61, "1 min 1 s"), (3_600, "1 h"), (90_000, "1 d 1 h")];
        for (seconds, text) in cases {
            assert_eq!(words(Duration::from_secs(seconds)), text);
        }
    }
}
