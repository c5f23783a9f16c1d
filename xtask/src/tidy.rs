//! `cargo xtask tidy`: the rules of this repository that no compiler and no lint knows.
//!
//! Each rule is a function from what it looks at to findings, so that it can be tried on a few
//! lines. The limits and the layers are tables at the top of the files they belong to.

mod documents;
mod layers;
mod source;

use std::{fmt, fs, path::Path};

use anyhow::{Result, bail};

use crate::command::Call;

/// Applies all rules and prints what they find.
pub(crate) fn run(root: &Path) -> Result<()> {
    let files = text_files(root)?;
    let mut findings = source::check(&files);
    findings.extend(documents::check(&files));
    findings.extend(layers::check(root)?);
    if findings.is_empty() {
        println!("{} files are tidy", files.len());
        return Ok(());
    }
    for finding in &findings {
        println!("{finding}");
    }
    bail!("tidy has {} findings", findings.len());
}

/// The names of all files that are or could be checked in, relative to the root.
pub(crate) fn tracked(root: &Path) -> Result<Vec<String>> {
    let args = ["ls-files", "-z", "--cached", "--others", "--exclude-standard", "--deduplicate"];
    let list = Call::git(root, args).stdout()?;
    let names = list.split('\0').filter(|name| root.join(name).is_file());
    Ok(names.map(str::to_owned).collect())
}

/// A checked-in file that is text.
pub(crate) struct TextFile {
    /// Its name relative to the root, with slashes.
    pub(crate) path: String,
    /// What it holds.
    pub(crate) text: String,
}

/// All checked-in files that are text.
pub(crate) fn text_files(root: &Path) -> Result<Vec<TextFile>> {
    let mut files = Vec::new();
    for path in tracked(root)? {
        // What is not UTF-8 is not text: test data, pictures.
        if let Ok(text) = String::from_utf8(fs::read(root.join(&path))?) {
            files.push(TextFile { path, text });
        }
    }
    Ok(files)
}

/// Whether any Rust file has a function of this name.
pub(crate) fn has_function(files: &[TextFile], name: &str) -> bool {
    let start = format!("fn {name}");
    let rust = files.iter().filter(|file| file.path.ends_with(".rs"));
    rust.flat_map(|file| file.text.match_indices(&start).map(move |(at, _)| (file, at))).any(
        |(file, at)| {
            let next = file.text[at + start.len()..].chars().next();
            !next.is_some_and(|next| next.is_alphanumeric() || next == '_')
        },
    )
}

/// Something that is against a rule, and where.
#[derive(Debug, PartialEq, Eq)]
struct Finding {
    path: String,
    line: usize,
    message: String,
}

impl Finding {
    fn new(path: &str, line: usize, message: impl Into<String>) -> Self {
        Self { path: path.to_owned(), line, message: message.into() }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.path, self.line, self.message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_function_is_found_by_its_whole_name() {
        let text = "async fn one_fetch() {}".to_owned();
        let files = [TextFile { path: "a.rs".to_owned(), text }];
        assert!(has_function(&files, "one_fetch"));
        assert!(!has_function(&files, "one"));
    }
}
