//! Secrets that lie in files: master keys, and whatever has a `*_file` variant.

use std::{
    fs::File,
    io::{self, Read},
    path::Path,
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use broker::seal::MASTER_KEY_LEN;

use super::ConfigError;

/// The longest secret in bytes, far more than any has: what is longer is some other file.
pub const LONGEST: u64 = 4096;

/// Reads a secret of one line; a line end after it does not count.
pub fn read_secret(path: &Path) -> Result<String, ConfigError> {
    let shown = path.display();
    let read = || -> io::Result<String> {
        let mut text = String::new();
        File::open(path)?.take(LONGEST + 1).read_to_string(&mut text)?;
        Ok(text)
    };
    let text = read().map_err(|err| ConfigError::new(format!("cannot read `{shown}`: {err}")))?;
    if text.len() as u64 > LONGEST {
        let problem = format!("`{shown}` holds more than {LONGEST} bytes, which is no secret");
        return Err(ConfigError::new(problem));
    }
    Ok(text.trim_end_matches(['\r', '\n']).to_owned())
}

/// A warning of a file with a secret that every user of the machine can read.
pub fn open_to_everybody(path: &Path) -> Option<String> {
    let mode = open_to_others(path).filter(|mode| mode & 0o004 != 0)?;
    let shown = path.display();
    Some(format!("`{shown}` holds a secret, and every user here can read it (mode {mode:04o})"))
}

/// Reads a master key: 32 bytes as base64 or hexadecimal text, in a file that is ours alone.
pub fn read_master_key(id: &str, path: &Path) -> Result<[u8; MASTER_KEY_LEN], ConfigError> {
    let shown = path.display();
    if let Some(mode) = open_to_others(path) {
        let message = format!(
            "the file of master key `{id}`, `{shown}`, is open to other users (mode {mode:04o})"
        );
        return Err(ConfigError::new(message).hint(format!(
            "`chmod 600 {shown}` closes it; if others may have read it, \
                           make a new master key and `xinfu rekey`"
        )));
    }
    let text = std::fs::read_to_string(path).map_err(|err| {
        let hint = if err.kind() == io::ErrorKind::NotFound {
            "look at the path first, which starts at the folder of the configuration; if the file \
             is lost, restore it from a backup: without this key nothing that it sealed can be read"
        } else {
            "the user that xinfu runs as must be able to read it"
        };
        ConfigError::new(format!("cannot read master key `{id}` from `{shown}`: {err}")).hint(hint)
    })?;
    decode(text.trim()).ok_or_else(|| {
        ConfigError::new(format!(
            "`{shown}` holds no master key: {MASTER_KEY_LEN} bytes as base64 or hexadecimal \
             text are expected"
        ))
        .hint(format!("`openssl rand -base64 {MASTER_KEY_LEN}` makes one"))
    })
}

/// A master key as its file holds it.
pub fn encode_master_key(key: &[u8; MASTER_KEY_LEN]) -> String {
    format!("{}\n", BASE64_STANDARD.encode(key))
}

/// The mode of a file that somebody but its owner may use. `None` when it is fine, missing, or
/// the system has no modes.
pub fn open_to_others(path: &Path) -> Option<u32> {
    #[cfg(unix)]
    {
        let mode = std::fs::metadata(path).ok()?;
        let mode = std::os::unix::fs::PermissionsExt::mode(&mode.permissions()) & 0o7777;
        (mode & 0o077 != 0).then_some(mode)
    }
    #[cfg(not(unix))]
    {
        let _ = path;
        None
    }
}

fn decode(text: &str) -> Option<[u8; MASTER_KEY_LEN]> {
    let hex = |at: usize| u8::from_str_radix(text.get(2 * at..2 * at + 2)?, 16).ok();
    if text.len() == 2 * MASTER_KEY_LEN && text.bytes().all(|b| b.is_ascii_hexdigit()) {
        let bytes: Option<Vec<u8>> = (0..MASTER_KEY_LEN).map(hex).collect();
        return bytes?.try_into().ok();
    }
    BASE64_STANDARD.decode(text).ok()?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn master_keys_are_base64_or_hexadecimal() {
        let key: [u8; 32] = std::array::from_fn(|at| at as u8 * 7);
        assert_eq!(decode(encode_master_key(&key).trim()), Some(key));
        let hex: String = key.iter().map(|byte| format!("{byte:02X}")).collect();
        assert_eq!(decode(&hex), Some(key));
        for bad in ["", "abc", &hex[2..], "AAAA"] {
            assert_eq!(decode(bad), None, "{bad}");
        }
    }
}
