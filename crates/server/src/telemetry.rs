//! Logs: to standard error, for people or for machines.

use std::{io, panic};

use tracing_subscriber::{EnvFilter, fmt};

use crate::config::{ConfigError, Environment, LogFormat};

/// Begins to log. `level` is what the configuration or the command wants; `XINFU_LOG` goes before
/// it, and is refused when it cannot be read. Calling it twice changes nothing.
pub fn start(format: LogFormat, level: &str, environment: &Environment) -> Result<(), ConfigError> {
    let directives = environment.log_directives()?.unwrap_or_else(|| level.to_owned());
    let filter = EnvFilter::try_new(directives)
        .map_err(|err| ConfigError::new(format!("what is to be logged cannot be read: {err}")))?;
    let builder = fmt().with_env_filter(filter).with_writer(io::stderr);
    // An error means that somebody has begun before us; then their way of logging stays.
    let _ = match format {
        LogFormat::Human => {
            let colour =
                anstream::AutoStream::choice(&io::stderr()) != anstream::ColorChoice::Never;
            builder.with_ansi(colour).try_init()
        }
        LogFormat::Json => {
            log_panics();
            builder.json().flatten_event(true).try_init()
        }
    };
    Ok(())
}

/// Lets a panic be an event of the log: a reader of JSON cannot do anything with lines that are none.
fn log_panics() {
    panic::set_hook(Box::new(|panic| {
        let location = panic.location().map(ToString::to_string);
        tracing::error!(
            panic.location = location,
            panic.message = panic.payload_as_str(),
            "a thread panicked"
        );
    }));
}

#[cfg(test)]
mod tests {
    use std::{
        io::Write,
        sync::{Arc, Mutex},
    };

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_panic_is_a_line_of_json() {
        let lines = Lines::default();
        let writer = lines.clone();
        let subscriber =
            fmt().json().flatten_event(true).with_writer(move || writer.clone()).finish();
        let hook = panic::take_hook();
        log_panics();
        tracing::subscriber::with_default(subscriber, || {
            assert!(panic::catch_unwind(|| panic!("for {}", "the test")).is_err());
        });
        panic::set_hook(hook);
        let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
        let line: serde_json::Value = serde_json::from_str(text.trim()).unwrap();
        assert_eq!(
            (&line["level"], &line["panic.message"]),
            (&"ERROR".into(), &"for the test".into())
        );
        assert!(line["panic.location"].as_str().unwrap().contains("telemetry.rs"), "{line}");
    }
}
