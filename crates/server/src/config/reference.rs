//! What the table of keys is printed as: the page of the reference, and the commented file.

use std::fmt::Write as _;

use super::{
    env::{CONFIG, LOG, MASTER_KEYS, variable_of},
    file::{Key, RawConfig, default_of},
};

/// The page of the reference.
pub fn markdown() -> String {
    let mut page = String::from(
        "# Configuration\n\n\
         `xinfu.toml` holds listeners, the store and key files; apps and client keys live in the \
         store and are managed by `xinfu app` and `xinfu key`. `xinfu init` writes a commented file, \
         `xinfu check-config` prints what was understood.\n\n\
         <!-- Generated from the table in crates/server by `cargo xtask codegen`: do not edit. -->\n\n\
         A value comes from the environment variable, else from the file, else it is the default. \
         Lists in a variable are separated by commas. Paths are relative to the folder of the file. \
         A key that is not listed here is refused.\n",
    );
    let mut section = None;
    for key in RawConfig::keys() {
        if section != Some(key.section) {
            section = Some(key.section);
            page.push_str(&heading(key.section));
        }
        let default =
            default_of(&key.name()).map_or_else(|| "none".to_owned(), |value| format!("`{value}`"));
        let _ = writeln!(
            page,
            "| `{}` | `{}` | {default} | {} |",
            key.key,
            variable_of(&key.name()),
            joined(key.doc)
        );
    }
    let _ = write!(
        page,
        "\n## `[[master_keys]]`\n\n\
         The keys that stored secrets are sealed with; at least one. As a variable: `{MASTER_KEYS}`, \
         `id=file` separated by commas.\n\n\
         | key | meaning |\n|---|---|\n\
         | `id` | The name that sealed values know it by: 1 to 64 characters of A-Z a-z 0-9 _ -. \
         Never give one name to two keys. |\n\
         | `file` | The file that holds its 32 bytes as base64 or hexadecimal text. It must not be \
         open to other users. |\n\n\
         A new master key, in this order: add it to `master_keys` of each server, with `seal_with` \
         still naming the old one; restart each server; only then switch `seal_with` to it \
         everywhere and restart again; run `xinfu rekey`; and then drop the old one. A server that \
         runs without a key cannot read what others seal with it.\n\n\
         ## Other variables\n\n\
         | variable | meaning |\n|---|---|\n\
         | `{CONFIG}` | The configuration file, where `--config` does not name one. |\n\
         | `{LOG}` | What is logged, by every command; goes before `log.level`. |\n"
    );
    page
}

/// A configuration file to begin with: every key with its meaning, all but the master key
/// commented out.
pub fn commented_file(key_id: &str, key_file: &str) -> String {
    let mut text = String::from(
        "# The configuration of xinfu. What is commented out shows the default, or an example where\n\
         # there is none. `xinfu check-config` prints what was understood.\n",
    );
    let mut section = "";
    for key in RawConfig::keys() {
        if section != key.section {
            if section.is_empty() {
                text.push_str(&master_key_lines(key_id, key_file));
            }
            section = key.section;
            text.push('\n');
            text.push_str(&commented(about(section)));
            let _ = writeln!(text, "[{section}]");
        }
        text.push('\n');
        text.push_str(&commented(key.doc));
        let _ = writeln!(text, "# {} = {}", key.key, shown_value(&key));
    }
    text
}

fn master_key_lines(id: &str, file: &str) -> String {
    format!(
        "\n# The master key that stored secrets are sealed with. Keep a copy of the file apart from\n\
         # the backups of the store: without it nothing in the store can be read.\n\
         # Before `seal_with` names a new key and `xinfu rekey` runs, restart each server with that key.\n\
         [[master_keys]]\nid = \"{id}\"\nfile = \"{file}\"\n"
    )
}

fn heading(section: &str) -> String {
    const COLUMNS: &str = "| key | variable | default | meaning |\n|---|---|---|---|\n";
    match section {
        "" => format!("\n## At the top\n\n{COLUMNS}"),
        _ => format!("\n## `[{section}]`\n\n{}\n\n{COLUMNS}", joined(about(section))),
    }
}

fn about(section: &str) -> &'static str {
    let sections = RawConfig::sections();
    sections.iter().find(|(name, _)| *name == section).map_or("", |(_, about)| about)
}

fn shown_value(key: &Key) -> String {
    default_of(&key.name()).map_or_else(|| key.example.to_owned(), |value| value.to_string())
}

fn joined(doc: &str) -> String {
    doc.lines().map(str::trim).collect::<Vec<_>>().join(" ").trim().to_owned()
}

fn commented(doc: &str) -> String {
    doc.lines().map(|line| format!("# {}\n", line.trim())).collect()
}

#[cfg(test)]
mod tests {
    use crate::config::{Environment, file::Typed};

    use super::*;

    #[test]
    fn the_commented_file_is_a_configuration_also_with_everything_uncommented() {
        let text = commented_file("k1", "master.key");
        let read = |text: &str| {
            Typed::read(Some((std::path::Path::new("xinfu.toml"), text)), &Environment::default())
        };
        let typed = read(&text).unwrap();
        assert_eq!(typed.raw.master_keys[0].id, "k1");
        let is_key = |line: &str| {
            RawConfig::keys().iter().any(|key| line.starts_with(&format!("# {} = ", key.key)))
        };
        let open: String = text
            .lines()
            .map(|line| format!("{}\n", if is_key(line) { &line[2..] } else { line }))
            .collect();
        let typed = read(&open).unwrap();
        assert_eq!(typed.raw.upstream.ca_file.as_deref(), Some("ca.pem"));
        assert_eq!(typed.raw.seal_with.as_deref(), Some("k1"));
    }

    #[test]
    fn every_key_is_on_the_page() {
        let page = markdown();
        for key in RawConfig::keys() {
            assert!(page.contains(&variable_of(&key.name())), "{}", key.name());
        }
    }
}
