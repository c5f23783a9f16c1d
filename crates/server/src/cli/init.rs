//! `xinfu init`: a configuration and a master key to begin with.

use std::{
    fs::OpenOptions,
    io::{self, Write},
    path::{Path, PathBuf},
};

use aws_lc_rs::rand;
use broker::seal::MASTER_KEY_LEN;

use super::{
    Console, Failure,
    open::{Place, folder_of},
};
use crate::config::{DEFAULT_FILE, reference, secret_file};

/// The id of the first master key.
const KEY_ID: &str = "k1";
/// Its file.
const KEY_FILE: &str = "master-k1.key";

/// Where to write.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The folder to write to, made when it is not there [default: that of the configuration file]
    folder: Option<PathBuf>,
}

/// Writes both files, unless one of them is there already: the configuration where every other
/// command looks for it, or in the named folder, and the key beside it.
pub(crate) fn run(
    arguments: &Arguments,
    place: &Place<'_>,
    console: &mut Console,
) -> Result<(), Failure> {
    let config = match (&arguments.folder, place.config) {
        (Some(_), Some(_)) => {
            return Err(Failure::usage("a folder and `--config` both say where to write")
                .hint("give one of them"));
        }
        (Some(folder), None) => folder.join(DEFAULT_FILE),
        (None, named) => place.environment.config_path(named),
    };
    let folder = folder_of(&config);
    std::fs::create_dir_all(folder)
        .map_err(|err| Failure::new(format!("cannot make `{}`: {err}", folder.display())))?;
    let key = config.with_file_name(KEY_FILE);
    if let Some(there) = [&config, &key].into_iter().find(|path| path.exists()) {
        return Err(Failure::new(format!(
            "`{}` is there already; nothing was written",
            there.display()
        ))
        .hint("a master key that is overwritten is lost, with everything that it sealed"));
    }

    let mut master_key = [0; MASTER_KEY_LEN];
    rand::fill(&mut master_key).map_err(|_| Failure::new("the system gives no randomness"))?;
    write_new(&key, &secret_file::encode_master_key(&master_key), 0o600)?;
    if let Err(failure) = write_new(&config, &reference::commented_file(KEY_ID, KEY_FILE), 0o644) {
        // A key that nothing names is in the way of the next attempt.
        let _ = std::fs::remove_file(&key);
        return Err(failure);
    }

    console.say(&format!("wrote `{}` and the master key `{}`", config.display(), key.display()))?;
    console
        .say("Keep a copy of the master key in a safe place, apart from backups of the store.")?;
    let option = if config == place.environment.config_path(None) {
        String::new()
    } else {
        format!(" --config {}", config.display())
    };
    console.hint(&format!(
        "`xinfu app add APPID{option}` registers an app, `xinfu serve{option}` runs the server"
    ))?;
    Ok(())
}

/// Writes a file that must not be there yet.
pub(crate) fn write_new(path: &Path, text: &str, mode: u32) -> Result<(), Failure> {
    let write = || -> io::Result<()> {
        let mut options = OpenOptions::new();
        options.write(true).create_new(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, mode);
        let mut file = options.open(path)?;
        let written = file.write_all(text.as_bytes()).and_then(|()| file.sync_all());
        if written.is_err() {
            // Half a file is worse than none.
            let _ = std::fs::remove_file(path);
        }
        written
    };
    #[cfg(not(unix))]
    let _ = mode;
    write().map_err(|err| Failure::new(format!("cannot write `{}`: {err}", path.display())))
}
