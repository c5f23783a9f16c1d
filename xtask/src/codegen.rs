//! `cargo xtask codegen`: the reference pages are what the program prints about itself.

use std::{fs, path::Path};

use anyhow::{Context, Result, bail};

use crate::command::Call;

/// Where the pages lie, what each is called, and which subject of `xinfu reference` it is.
const FOLDER: &str = "docs/reference";
const PAGES: [(&str, &str); 6] = [
    ("errors.md", "errors"),
    ("config.md", "config"),
    ("cli.md", "cli"),
    ("problems.md", "problems"),
    ("metrics.md", "metrics"),
    ("openapi.json", "openapi"),
];

/// What happens to a page that differs from what the program prints.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// It is written anew.
    Write,
    /// It is an error.
    Check,
}

/// Writes or compares all pages.
pub(crate) fn run(root: &Path, mode: Mode) -> Result<()> {
    Call::cargo(root, ["build", "--package", "server", "--locked"]).run()?;
    let mut stale = Vec::new();
    for (file, subject) in PAGES {
        let args =
            ["run", "--quiet", "--package", "server", "--locked", "--", "reference", subject];
        let fresh = Call::cargo(root, args).stdout()?;
        let name = format!("{FOLDER}/{file}");
        let path = root.join(&name);
        let Some(difference) = difference(fs::read_to_string(&path).ok().as_deref(), &fresh) else {
            println!("{name}: fresh");
            continue;
        };
        match mode {
            Mode::Check => stale.push(format!("{name}: {difference}")),
            Mode::Write => {
                fs::create_dir_all(root.join(FOLDER))?;
                fs::write(&path, &fresh).with_context(|| format!("write {name}"))?;
                println!("{name}: written");
            }
        }
    }
    if !stale.is_empty() {
        bail!("{}\n`cargo xtask codegen` writes them anew", stale.join("\n"));
    }
    Ok(())
}

/// What tells the checked-in page from the fresh one, if anything does.
fn difference(old: Option<&str>, fresh: &str) -> Option<String> {
    let Some(old) = old else { return Some("is missing".to_owned()) };
    if old == fresh {
        return None;
    }
    let same = old.lines().zip(fresh.lines()).take_while(|(old, fresh)| old == fresh).count();
    Some(match (old.lines().nth(same), fresh.lines().nth(same)) {
        (Some(old), Some(new)) => {
            format!("line {} is stale\n  checked in: {old}\n  fresh:      {new}", same + 1)
        }
        (Some(_), None) => format!("has lines too many from line {}", same + 1),
        (None, Some(_)) => format!("has lines missing from line {}", same + 1),
        (None, None) => "differs in its line ends".to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::difference;

    #[test]
    fn a_difference_names_the_first_line() {
        assert_eq!(difference(Some("a\nb\n"), "a\nb\n"), None);
        assert_eq!(difference(None, "a\n").as_deref(), Some("is missing"));
        assert!(difference(Some("a\nb\n"), "a\nc\n").unwrap().starts_with("line 2 is stale"));
        assert!(difference(Some("a\n"), "a\nc\n").unwrap().contains("missing from line 2"));
        assert!(difference(Some("a\nb\n"), "a\n").unwrap().contains("too many from line 2"));
        assert!(difference(Some("a"), "a\n").unwrap().contains("line ends"));
    }
}
