//! Logs: to standard error, for people or for machines.

use std::io;

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
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    Ok(())
}
