//! What is logged, as `log.level` and `XINFU_LOG` say it.

/// What may be said, for messages.
pub const EXPECTED: &str = "`off`, `error`, `warn`, `info`, `debug`, `trace` or directives by \
                            module such as `info,broker=debug` are allowed";

const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

/// Reads directives: each is a level, or a target, `=` and a level. A word alone that is no level
/// would be taken for a target by the library and silence everything else, so it is refused.
pub fn directives(text: &str) -> Option<String> {
    let mut read = Vec::new();
    for directive in text.split(',').map(str::trim) {
        let (target, level) = match directive.rsplit_once('=') {
            Some((target, level)) => (Some(target.trim()), level.trim()),
            None => (None, directive),
        };
        let level = level.to_ascii_lowercase();
        if !LEVELS.contains(&level.as_str()) || target.is_some_and(str::is_empty) {
            return None;
        }
        read.push(target.map_or_else(|| level.clone(), |target| format!("{target}={level}")));
    }
    let read = read.join(",");
    tracing_subscriber::EnvFilter::try_new(&read).is_ok().then_some(read)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_alone_is_a_level() {
        for good in ["info", "off", "info,broker=debug", "warn,wechat::client=trace"] {
            assert_eq!(directives(good).as_deref(), Some(good));
        }
        assert_eq!(directives("INFO, broker = Debug").as_deref(), Some("info,broker=debug"));
        for bad in ["", "inf", "broker", "info,broker", "info,", "broker=", "=info", "loud=very"] {
            assert_eq!(directives(bad), None, "{bad}");
        }
    }
}
