//! Secrets that are typed, piped or read from a file; never an argument, and never shown.

use std::{
    io::{self, Read},
    path::{Path, PathBuf},
};

use wechat::AppSecret;

use super::{Console, Failure};
use crate::config::secret_file;

/// Where an AppSecret comes from.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct SecretFrom {
    /// A file that holds the AppSecret; `-` reads standard input. Asked for without it
    #[arg(long, value_name = "FILE")]
    secret_file: Option<PathBuf>,
}

impl SecretFrom {
    /// Gets the secret.
    pub(crate) fn read(&self, console: &mut Console) -> Result<AppSecret, Failure> {
        let text = match &self.secret_file {
            Some(file) if file == Path::new("-") => {
                let mut text = String::new();
                io::stdin().take(secret_file::LONGEST).read_to_string(&mut text)?;
                text
            }
            Some(file) => read_file(file, console)?,
            None if console.interactive => {
                rpassword::prompt_password("AppSecret (not shown while you type): ")?
            }
            None => {
                return Err(Failure::usage("there is no terminal to ask for the AppSecret at")
                    .hint("`--secret-file FILE` reads it from a file, `--secret-file -` from standard input"));
            }
        };
        let text = text.trim();
        if text.is_empty() {
            return Err(Failure::usage("the AppSecret is empty"));
        }
        Ok(AppSecret::new(text))
    }
}

/// Reads a secret from a file, and warns when everybody can.
pub(crate) fn read_file(file: &Path, console: &mut Console) -> Result<String, Failure> {
    if let Some(warning) = secret_file::open_to_everybody(file) {
        console.warn(&warning)?;
    }
    Ok(secret_file::read_secret(file)?)
}
