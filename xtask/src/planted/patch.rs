//! The text of a patch: its header, and the files it touches.

use anyhow::{Context, Result, bail};

/// The name of the planted bug that this path is the patch of, if it is one.
pub(crate) fn name_of(path: &str) -> Option<&str> {
    path.strip_prefix("planted/")?.strip_suffix(".patch").filter(|name| !name.contains('/'))
}

/// A planted bug.
#[derive(Debug)]
pub(super) struct Patch {
    /// The path of the file, relative to the root.
    pub(super) path: String,
    /// The name of the file without its ending.
    pub(super) name: String,
    /// The promise that the bug breaks, such as `P1`.
    pub(super) promise: String,
    /// What is wrong, in one sentence.
    pub(super) bug: String,
    /// The package whose test catches it.
    pub(super) package: String,
    /// The names of the tests that it must turn red, as nextest gives them.
    pub(super) tests: Vec<String>,
    /// More arguments for nextest.
    pub(super) profile_args: Vec<String>,
    /// The files that the patch changes, relative to the root.
    pub(super) touches: Vec<String>,
}

impl Patch {
    /// Reads the text of the patch at `path`.
    pub(super) fn parse(path: &str, text: &str) -> Result<Self> {
        let name = name_of(path).context("a patch is called planted/NAME.patch")?;
        let is_header = |line: &&str| line.starts_with('#') || line.is_empty();
        let header: Vec<(&str, &str)> = text
            .lines()
            .take_while(is_header)
            .filter_map(|line| line.strip_prefix('#')?.split_once(':'))
            .map(|(key, value)| (key.trim(), value.trim()))
            .collect();
        for (key, _) in &header {
            if !["promise", "bug", "package", "test", "profile-args"].contains(key) {
                bail!("no header line is called `# {key}:`");
            }
        }
        let find = |wanted: &str| header.iter().find(|(key, _)| *key == wanted);
        let load = |wanted: &str| match find(wanted) {
            Some((_, value)) if !value.is_empty() => Ok((*value).to_owned()),
            _ => bail!("the header line `# {wanted}: …` is missing"),
        };

        let promise = load("promise")?;
        let is_number = |digits: &str| digits.parse::<u8>().is_ok();
        if !promise.strip_prefix('P').is_some_and(is_number) {
            bail!("`{promise}` is not a promise like `P1`");
        }
        load("test")?;
        let tests = header.iter().filter(|(key, _)| *key == "test");
        let tests: Vec<String> = tests.map(|(_, test)| (*test).to_owned()).collect();
        for test in &tests {
            if test.contains(|char: char| char.is_whitespace() || "()/".contains(char)) {
                bail!("`{test}` is not the exact name of a test");
            }
        }
        let profile_args = find("profile-args").map_or("", |(_, value)| *value);
        Ok(Self {
            path: path.to_owned(),
            name: name.to_owned(),
            promise,
            bug: load("bug")?,
            package: load("package")?,
            tests,
            profile_args: profile_args.split_whitespace().map(str::to_owned).collect(),
            touches: touches(text)?,
        })
    }

    /// The filter that selects exactly its tests.
    pub(super) fn filter(&self) -> String {
        let filters: Vec<_> = self.tests.iter().map(|test| format!("test(={test})")).collect();
        filters.join(" | ")
    }

    /// The names of the tests' functions.
    pub(super) fn functions(&self) -> impl Iterator<Item = &str> {
        self.tests.iter().map(|test| test.rsplit("::").next().unwrap_or(test))
    }
}

/// The files that a diff changes, which must be product code: a bug in a test proves nothing.
fn touches(diff: &str) -> Result<Vec<String>> {
    let mut paths = Vec::new();
    let mut lines = diff.lines().peekable();
    while let Some(line) = lines.next() {
        // A removed line may look like the first half of a file's heading, so both are wanted.
        let Some(old) = line.strip_prefix("--- ") else { continue };
        let Some(new) = lines.peek().and_then(|next| next.strip_prefix("+++ ")) else { continue };
        for (side, prefix) in [(old, "a/"), (new, "b/")] {
            // What follows a tab is a time.
            let path = side.split('\t').next().unwrap_or(side);
            if path == "/dev/null" {
                continue;
            }
            let path =
                path.strip_prefix(prefix).with_context(|| format!("`{path}` without {prefix}"))?;
            let in_source = path.strip_prefix("crates/").and_then(|path| path.split_once('/'));
            if !in_source.is_some_and(|(_, path)| path.starts_with("src/")) {
                bail!("`{path}` is not below crates/*/src");
            }
            if !paths.iter().any(|known| known == path) {
                paths.push(path.to_owned());
            }
        }
    }
    if paths.is_empty() {
        bail!("there is no diff");
    }
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIFF: &str = "\
diff --git a/crates/broker/src/refresh.rs b/crates/broker/src/refresh.rs
--- a/crates/broker/src/refresh.rs
+++ b/crates/broker/src/refresh.rs
@@ -1,2 +1,1 @@
 fn refresh() {
---- x
";

    fn parse(header: &str, diff: &str) -> Result<Patch> {
        Patch::parse("planted/no-recheck.patch", &format!("{header}{diff}"))
    }

    #[test]
    fn a_complete_patch_is_read() {
        let header = "# promise: P1\n# bug: The store is: not read again\n# package: broker\n\
                      # test: engine::one_fetch\n# test: model::life\n# profile-args: --features x\n\n";
        let patch = parse(header, DIFF).unwrap();
        assert_eq!(patch.name, "no-recheck");
        assert_eq!(patch.bug, "The store is: not read again");
        assert_eq!(patch.filter(), "test(=engine::one_fetch) | test(=model::life)");
        assert_eq!(patch.functions().collect::<Vec<_>>(), ["one_fetch", "life"]);
        assert_eq!(patch.profile_args, ["--features", "x"]);
        assert_eq!(patch.touches, ["crates/broker/src/refresh.rs"]);
    }

    #[test]
    fn an_incomplete_header_is_refused_by_name() {
        let whole = "# promise: P1\n# bug: b\n# package: broker\n# test: a::b\n";
        let refusal = |header: &str| parse(header, DIFF).expect_err("incomplete").to_string();
        for key in ["promise", "bug", "package", "test"] {
            let lines = whole.lines().filter(|line| !line.starts_with(&format!("# {key}:")));
            let header: String = lines.flat_map(|line| [line, "\n"]).collect();
            assert!(refusal(&header).contains(key), "{header}");
        }
        assert!(refusal(&whole.replace("P1", "one")).contains("`one`"));
        assert!(refusal(&whole.replace("a::b", "all tests")).contains("`all tests`"));
        assert!(refusal(&format!("{whole}# tset: x\n")).contains("tset"));
    }

    #[test]
    fn a_patch_touches_product_code_only() {
        let header = "# promise: P1\n# bug: b\n# package: broker\n# test: a::b\n";
        let test = DIFF.replace("/src/", "/tests/it/");
        assert!(parse(header, &test).expect_err("a test").to_string().contains("tests/it"));
        assert!(parse(header, "").is_err());
    }

    #[test]
    fn names_come_from_paths() {
        assert_eq!(name_of("planted/a-b.patch"), Some("a-b"));
        assert_eq!(name_of("planted/README.md"), None);
        assert_eq!(name_of("elsewhere/a.patch"), None);
    }
}
