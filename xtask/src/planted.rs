//! `cargo xtask planted`: bugs that our tests must catch.
//!
//! Each patch in `planted/` is one bug and names the test that must fail with it; the format is
//! told in `planted/README.md`. The patches are applied, one at a time, to a scratch copy of the
//! repository under `target/planted`, which is kept so that the next run builds little.

mod patch;
mod scratch;

use std::{
    collections::BTreeMap,
    fmt, fs,
    path::{Path, PathBuf},
    process::Output,
    time::Duration,
};

use anyhow::{Context, Result, bail};

pub(crate) use patch::name_of;

use crate::{
    command::{Call, Seconds, Stopwatch},
    stages,
    tidy::{has_function, text_files},
};
use patch::Patch;
use scratch::Scratch;

/// The exit status of nextest when a test failed, as opposed to a build or a set-up.
const A_TEST_FAILED: i32 = 100;

/// Checks that each patch is complete, still applies, and names a test that exists.
pub(crate) fn check(root: &Path) -> Result<()> {
    let patches = load(root, &[])?;
    let files = text_files(root)?;
    let mut wrong = Vec::new();
    for patch in &patches {
        if let Err(error) = Call::git(root, ["apply", "--check", &patch.path]).stdout() {
            wrong.push(format!("{}: does not apply any more\n{error:#}", patch.path));
        }
        for function in patch.functions().filter(|function| !has_function(&files, function)) {
            wrong.push(format!("{}: there is no test `{function}`", patch.path));
        }
    }
    if !wrong.is_empty() {
        bail!("{}", wrong.join("\n"));
    }
    println!("{} planted bugs apply", patches.len());
    Ok(())
}

/// Plants each named bug, or all, and runs its tests: each must fail.
pub(crate) fn run(root: &Path, names: &[&str]) -> Result<()> {
    let patches = load(root, names)?;
    stages::install_nextest(root)?;
    let whole = Stopwatch::start();
    let scratch = Scratch::prepare(root)?;

    for (package, patches) in by_package(&patches) {
        println!("==> {package}: the tests pass without a bug");
        pass_without_a_bug(&scratch, &patches)?;
    }

    let mut rows = Vec::new();
    for patch in &patches {
        println!("==> {}: {}", patch.name, patch.bug);
        let watch = Stopwatch::start();
        let verdict = plant(&scratch, patch)?;
        let time = watch.elapsed();
        println!("<== {}: {verdict}, {}", patch.name, Seconds(time));
        if !verdict.is_good() {
            println!("    the whole story: {}", scratch.log(patch).display());
        }
        rows.push(Row { patch, verdict, time });
    }

    println!("\n{}", table(&rows));
    println!("{} bugs, {}", rows.len(), Seconds(whole.elapsed()));
    let missed = rows.iter().filter(|row| !row.verdict.is_good()).count();
    if missed > 0 {
        bail!("{missed} of {} planted bugs are not caught", rows.len());
    }
    Ok(())
}

/// What a planted bug came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// Each test failed.
    Caught,
    /// Each test failed, or did not end in time.
    TimedOut,
    /// A test passed: it does not hold what it promises.
    NotCaught,
    /// The test could not be run with the bug, which proves nothing.
    Broken(&'static str),
}

impl Verdict {
    fn of(output: &Output) -> Self {
        let text = String::from_utf8_lossy(&output.stderr);
        let any = |wanted| status_lines(&text).any(|(word, _)| word == wanted);
        match output.status.code() {
            Some(0) => Self::NotCaught,
            Some(A_TEST_FAILED) if any("PASS") => Self::NotCaught,
            Some(A_TEST_FAILED) if any("TIMEOUT") => Self::TimedOut,
            Some(A_TEST_FAILED) => Self::Caught,
            Some(4) => Self::Broken("broken: no such test"),
            _ => Self::Broken("broken: does not compile"),
        }
    }

    fn is_good(self) -> bool {
        matches!(self, Self::Caught | Self::TimedOut)
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Caught => "caught",
            Self::TimedOut => "caught by time-out",
            Self::NotCaught => "NOT CAUGHT",
            Self::Broken(why) => why,
        })
    }
}

struct Row<'a> {
    patch: &'a Patch,
    verdict: Verdict,
    time: Duration,
}

fn table(rows: &[Row<'_>]) -> String {
    let cells = |row: &Row<'_>| {
        let Patch { name, promise, tests, .. } = row.patch;
        [name.clone(), promise.clone(), tests.join(" "), row.verdict.to_string()]
    };
    let width = |column: usize| rows.iter().map(|row| cells(row)[column].len()).max().unwrap_or(0);
    let widths = [width(0), width(1), width(2), width(3)];
    let line = |row: &Row<'_>| {
        let padded =
            cells(row).into_iter().zip(widths).map(|(cell, width)| format!("{cell:width$}"));
        let padded: Vec<String> = padded.collect();
        format!("{}  {:>7.1} s", padded.join("  "), row.time.as_secs_f64())
    };
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// The named patches, or all, by name.
fn load(root: &Path, names: &[&str]) -> Result<Vec<Patch>> {
    let mut patches = Vec::new();
    for entry in fs::read_dir(root.join("planted")).context("list planted")? {
        let path = PathBuf::from("planted").join(entry?.file_name());
        let Some(path) = path.to_str().filter(|path| name_of(path).is_some()) else { continue };
        let text = fs::read_to_string(root.join(path)).with_context(|| format!("read {path}"))?;
        patches.push(Patch::parse(path, &text).with_context(|| format!("read {path}"))?);
    }
    patches.sort_by(|a, b| a.name.cmp(&b.name));
    for name in names {
        if !patches.iter().any(|patch| patch.name == *name) {
            bail!("there is no planted bug `{name}`");
        }
    }
    patches.retain(|patch| names.is_empty() || names.contains(&patch.name.as_str()));
    Ok(patches)
}

/// The patches whose tests can run together: of one package, with the same arguments.
fn by_package(patches: &[Patch]) -> BTreeMap<String, Vec<&Patch>> {
    let mut groups: BTreeMap<String, Vec<&Patch>> = BTreeMap::new();
    for patch in patches {
        let mut name = patch.package.clone();
        name.extend(patch.profile_args.iter().flat_map(|arg| [" ", arg]));
        groups.entry(name).or_default().push(patch);
    }
    groups
}

/// Runs the tests of these patches, which are of one package, on the code as it is.
fn pass_without_a_bug(scratch: &Scratch, patches: &[&Patch]) -> Result<()> {
    let Some(first) = patches.first() else { return Ok(()) };
    let filters: Vec<String> = patches.iter().map(|patch| patch.filter()).collect();
    let output = scratch.nextest(first, &filters.join(" | "))?;
    let text = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        let printed = String::from_utf8_lossy(&output.stdout);
        bail!("the tests must pass before a bug is planted\n{printed}{text}");
    }
    for patch in patches {
        for test in &patch.tests {
            if !status_lines(&text).any(|(_, ran)| ran == test) {
                bail!("{}: package `{}` has no test `{test}`", patch.path, patch.package);
            }
        }
    }
    Ok(())
}

/// Runs the test of one patch with its bug planted, and takes the bug out again.
fn plant(scratch: &Scratch, patch: &Patch) -> Result<Verdict> {
    let planted = match scratch.apply(patch) {
        Ok(planted) => planted,
        Err(error) => {
            scratch.write_log(patch, format!("{error:#}\n").as_bytes())?;
            return Ok(Verdict::Broken("broken: does not apply"));
        }
    };
    let output = scratch.nextest(patch, &patch.filter());
    planted.undo()?;
    let output = output?;
    scratch.write_log(patch, &[output.stdout.as_slice(), &output.stderr].concat())?;
    Ok(Verdict::of(&output))
}

/// The lines of nextest that tell how a test went: the word and the name of the test.
fn status_lines(text: &str) -> impl Iterator<Item = (&str, &str)> {
    text.lines().filter_map(|line| {
        let (word, rest) = line.trim_start().split_once(" [")?;
        let (_, rest) = rest.split_once(']')?;
        Some((word, rest.split_whitespace().next_back()?))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_lines_yield_word_and_test() {
        let text = "   Compiling broker v0.1.0\n        \
            PASS [   0.004s] (1/2) broker::it engine::one_fetch\n     \
            TIMEOUT [   2.004s] (2/2) broker seal::tests::a\n";
        let found: Vec<(&str, &str)> = status_lines(text).collect();
        assert_eq!(found, [("PASS", "engine::one_fetch"), ("TIMEOUT", "seal::tests::a")]);
    }

    #[cfg(unix)]
    #[test]
    fn only_a_failed_test_counts_as_caught() {
        use std::{os::unix::process::ExitStatusExt as _, process::ExitStatus};
        let verdict = |code: i32, stderr: &str| {
            let status = ExitStatus::from_raw(code << 8);
            Verdict::of(&Output { status, stdout: Vec::new(), stderr: stderr.into() })
        };
        assert_eq!(verdict(100, "FAIL [   0.1s] (1/1) broker a::b"), Verdict::Caught);
        assert_eq!(verdict(100, " TIMEOUT [ 180.0s] (1/1) broker a::b"), Verdict::TimedOut);
        assert_eq!(verdict(0, ""), Verdict::NotCaught);
        let one_of_two = "PASS [   0.1s] (1/2) broker a::b\nFAIL [   0.1s] (2/2) broker a::c";
        assert_eq!(verdict(100, one_of_two), Verdict::NotCaught);
        assert!(!verdict(101, "error[E0308]").is_good());
        assert!(!verdict(4, "no tests to run").is_good());
    }
}
