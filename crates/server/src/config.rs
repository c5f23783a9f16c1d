//! Configuration, read twice: [`mod@file`] is what was typed, [`settings`] is what is meant.
//!
//! A value comes from an environment variable, else from the file, else it is the default. The rest
//! of the program sees only [`Settings`], in which nothing is left to be decided. No other module
//! reads the environment.

mod complaint;
pub mod env;
pub mod file;
pub mod log;
pub mod reference;
pub mod secret_file;
pub mod settings;
pub mod span;

use std::{fmt, io, path::Path};

pub use env::Environment;
pub use settings::{
    Intercept, Listener, LogFormat, MasterKeyFile, Settings, SharedPlace, StorePlace, TlsFiles,
};

pub(crate) use complaint::Complaint;

use file::{RawConfig, Typed};

/// The file that is read when none is named.
pub const DEFAULT_FILE: &str = "xinfu.toml";

/// A configuration that cannot be used: what is wrong where, and what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// What is wrong: names the file or variable, the key, and what is allowed.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
}

impl ConfigError {
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), hint: None }
    }

    pub(crate) fn hint(self, hint: impl Into<String>) -> Self {
        Self { hint: Some(hint.into()), ..self }
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for ConfigError {}

/// A configuration that was understood, and where it came from.
#[derive(Clone)]
pub struct Loaded {
    /// What is meant.
    pub settings: Settings,
    /// What was typed, with the origin of each value.
    pub typed: Typed,
    /// Variables that look like ours and are not.
    pub unknown_variables: Vec<String>,
}

/// Reads the configuration: the named file, or `xinfu.toml` where it exists.
///
/// Without a file the environment alone can be enough; paths are then relative to the current
/// folder, and otherwise to the folder of the file.
pub fn load(named: Option<&Path>, environment: &Environment) -> Result<Loaded, ConfigError> {
    let path = environment.config_path(named);
    let is_named = named.is_some() || environment.config_file().is_some();
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => Some(text),
        Err(err) if err.kind() == io::ErrorKind::NotFound && !is_named => None,
        Err(err) => {
            let problem = ConfigError::new(format!("cannot read `{}`: {err}", path.display()));
            return Err(if err.kind() == io::ErrorKind::NotFound {
                problem.hint("`xinfu init` writes a configuration to begin with")
            } else {
                problem
            });
        }
    };
    if text.is_none() && !environment.has_master_keys() {
        return Err(ConfigError::new(format!("there is no `{}` here", path.display())).hint(
            "`xinfu init` writes one, `--config FILE` names one, and `XINFU_MASTER_KEYS` does \
             without",
        ));
    }
    environment.log_directives()?;
    let typed = Typed::read(text.as_deref().map(|text| (path.as_path(), text)), environment)?;
    let settings = Settings::of(&typed)?;
    Ok(Loaded { settings, typed, unknown_variables: environment.unknown() })
}

/// The names of all keys, in the order of the reference.
pub(crate) fn key_names() -> impl Iterator<Item = String> {
    RawConfig::keys().into_iter().map(|key| key.name())
}
