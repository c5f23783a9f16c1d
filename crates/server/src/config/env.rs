//! The environment: read here and nowhere else, and every variable name is made here.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    path::{Path, PathBuf},
};

use super::{ConfigError, DEFAULT_FILE, log};

/// What all our variables begin with.
pub const PREFIX: &str = "XINFU_";
/// Names the configuration file.
pub const CONFIG: &str = "XINFU_CONFIG";
/// What is logged, instead of `log.level`; counts for every command, not only for `serve`.
pub const LOG: &str = "XINFU_LOG";
/// The master keys as `id=file`, separated by commas.
pub const MASTER_KEYS: &str = "XINFU_MASTER_KEYS";

/// The variable of a configuration key: `listen.api` is `XINFU_LISTEN_API`.
pub fn variable_of(key: &str) -> String {
    format!("{PREFIX}{}", key.replace('.', "_").to_uppercase())
}

/// The variables that concern us, as they were when the process began.
#[derive(Clone, Debug, Default)]
pub struct Environment {
    ours: BTreeMap<String, String>,
    user: Option<String>,
}

impl Environment {
    /// The environment of this process. A value that is no Unicode counts as unset.
    pub fn of_process() -> Self {
        Self::of(std::env::vars_os())
    }

    /// An environment made of these variables.
    pub fn of(variables: impl IntoIterator<Item = (OsString, OsString)>) -> Self {
        let mut environment = Self::default();
        for (name, value) in variables {
            let (Ok(name), Ok(value)) = (name.into_string(), value.into_string()) else { continue };
            if ["USER", "LOGNAME", "USERNAME"].contains(&name.as_str()) && !value.is_empty() {
                environment.user.get_or_insert(value);
            } else if name.starts_with(PREFIX) {
                environment.ours.insert(name, value);
            }
        }
        environment
    }

    /// The value of one of our variables; an empty one counts as unset.
    pub fn find(&self, name: &str) -> Option<&str> {
        self.ours.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// The configuration file, where a variable names one.
    pub fn config_file(&self) -> Option<PathBuf> {
        self.find(CONFIG).map(PathBuf::from)
    }

    /// Where the configuration file is or would be: named on the command line, else by a variable,
    /// else the usual one.
    pub fn config_path(&self, named: Option<&Path>) -> PathBuf {
        let named = named.map(Path::to_owned).or_else(|| self.config_file());
        named.unwrap_or_else(|| PathBuf::from(DEFAULT_FILE))
    }

    /// What is logged, where a variable says so.
    pub fn log_directives(&self) -> Result<Option<String>, ConfigError> {
        let Some(text) = self.find(LOG) else { return Ok(None) };
        let problem = || ConfigError::new(format!("`{LOG}` is `{text}`; {}", log::EXPECTED));
        log::directives(text).map(Some).ok_or_else(problem)
    }

    /// Whether the environment names master keys, without which there is no configuration.
    pub fn has_master_keys(&self) -> bool {
        self.find(MASTER_KEYS).is_some()
    }

    /// The name of the operating system's user: by the user id of this process where a password
    /// file tells it, else as the environment says.
    pub fn user_name(&self) -> String {
        let by_id = user_id().and_then(|id| {
            let accounts = std::fs::read_to_string("/etc/passwd").ok()?;
            let account = accounts.lines().find(|line| line.split(':').nth(2) == Some(&id))?;
            account.split(':').next().map(str::to_owned)
        });
        by_id.or_else(|| self.user.clone()).unwrap_or_else(|| "unknown".to_owned())
    }

    /// Variables that begin like ours and mean nothing to us: misspelled, most likely.
    pub fn unknown(&self) -> Vec<String> {
        let known: Vec<String> = super::key_names().map(|key| variable_of(&key)).collect();
        let is_known = |name: &String| {
            known.contains(name) || [CONFIG, LOG, MASTER_KEYS].contains(&name.as_str())
        };
        self.ours.keys().filter(|name| !is_known(name)).cloned().collect()
    }
}

/// The user id of this process, where the system shows it as the owner of its own process.
fn user_id() -> Option<String> {
    #[cfg(target_os = "linux")]
    {
        let owner = std::fs::metadata("/proc/self").ok()?;
        Some(std::os::unix::fs::MetadataExt::uid(&owner).to_string())
    }
    #[cfg(not(target_os = "linux"))]
    None
}
