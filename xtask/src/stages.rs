//! `cargo xtask test`: everything that must hold before a change lands.

use std::{fmt::Write as _, path::Path, time::Duration};

use anyhow::{Context, Result, bail};

use crate::{
    bench, clients, codegen,
    command::{Call, Seconds, Stopwatch},
    planted,
    servers::Servers,
    tidy, tools,
};

/// The stages in the order in which they run: the quick ones first.
const STAGES: [Stage; 12] = [
    Stage { name: "fmt", what: "the code is formatted", run: fmt },
    Stage { name: "tidy", what: "layers, sizes, documents and words", run: tidy::run },
    Stage { name: "planted", what: "each planted bug still applies", run: planted::check },
    Stage { name: "clippy", what: "no lint fires", run: clippy },
    Stage { name: "tests", what: "all tests pass", run: tests },
    Stage { name: "doctests", what: "all examples in the documentation pass", run: doctests },
    Stage { name: "docs", what: "the documentation builds without a warning", run: docs },
    Stage { name: "codegen", what: "docs/reference is fresh", run: reference_is_fresh },
    Stage { name: "fuzz", what: "the fuzz targets compile", run: fuzz_targets_compile },
    Stage { name: "demo", what: "`cargo run -- demo --once` succeeds", run: demo },
    Stage { name: "clients", what: "real SDKs work through xinfu", run: clients::run },
    Stage { name: "bench", what: "under load every answer is right", run: bench_smoke },
];

struct Stage {
    name: &'static str,
    what: &'static str,
    run: fn(&Path) -> Result<()>,
}

/// Runs the named stages, or all when none is named, and stops at the first failure.
pub(crate) fn run(root: &Path, names: &[&str]) -> Result<()> {
    for name in names {
        if !STAGES.iter().any(|stage| stage.name == *name) {
            bail!("there is no stage `{name}`; the stages are:\n\n{}", help());
        }
    }
    let wanted = STAGES.iter().filter(|stage| names.is_empty() || names.contains(&stage.name));

    let whole = Stopwatch::start();
    let mut rows = Vec::new();
    let mut failure = None;
    for stage in wanted {
        if failure.is_some() {
            rows.push(format!("{:<10} not run", stage.name));
            continue;
        }
        println!("\n==> {}: {}", stage.name, stage.what);
        let watch = Stopwatch::start();
        let outcome = (stage.run)(root);
        let time = Seconds(watch.elapsed());
        let word = if outcome.is_ok() { "ok" } else { "FAILED" };
        println!("<== {}: {word}, {time}", stage.name);
        rows.push(format!("{:<10} {word:<7} {time:>12}", stage.name));
        failure = outcome.err().map(|error| (stage.name, error));
    }

    println!("\n{}\n{:<10} {:<7} {:>12}", rows.join("\n"), "all", "", Seconds(whole.elapsed()));
    match failure {
        None => Ok(()),
        Some((name, error)) => Err(error
            .context(format!("stage `{name}` failed; to run it alone: `cargo xtask test {name}`"))),
    }
}

/// One line a stage.
pub(crate) fn help() -> String {
    STAGES.iter().fold(String::new(), |mut text, stage| {
        writeln!(text, "  {:<10} {}", stage.name, stage.what).expect("a string takes any text");
        text
    })
}

fn fmt(root: &Path) -> Result<()> {
    Call::cargo(root, ["fmt", "--all", "--check"]).run().context("`cargo fmt --all` mends it")?;
    Call::cargo(root, ["fmt", "--manifest-path", "fuzz/Cargo.toml", "--check"])
        .run()
        .context("`cargo fmt --manifest-path fuzz/Cargo.toml` mends it")
}

fn clippy(root: &Path) -> Result<()> {
    let args = ["clippy", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"];
    Call::cargo(root, args).run()
}

fn tests(root: &Path) -> Result<()> {
    tools::install(root, &[("curl", "curl")]).context("lines of the guides are run as pasted")?;
    nextest(root, &["--workspace"])
}

/// Runs tests, with the servers that some of them need.
pub(crate) fn nextest(root: &Path, args: &[&str]) -> Result<()> {
    nextest_with(root, args, &[])
}

/// The same with variables.
pub(crate) fn nextest_with(root: &Path, args: &[&str], variables: &[(&str, String)]) -> Result<()> {
    install_nextest(root)?;
    tools::install(root, &[("faketime", "faketime")]).context("some clocks have to be wrong")?;
    let servers = Servers::start(root)?;
    let args = ["nextest", "run", "--locked"].into_iter().chain(args.iter().copied());
    let call =
        variables.iter().fold(Call::cargo(root, args), |call, (name, value)| call.env(name, value));
    servers.lent_to(call).run()
}

/// The version of cargo-nextest that is installed where there is none.
const NEXTEST: &str = "0.9.143";

/// Installs cargo-nextest when it is missing.
pub(crate) fn install_nextest(root: &Path) -> Result<()> {
    if Call::cargo(root, ["nextest", "--version"]).works() {
        return Ok(());
    }
    println!("cargo-nextest is missing: installing it, which takes some minutes");
    nextest_install(root).run()
}

fn nextest_install(root: &Path) -> Call {
    Call::cargo(root, ["install", "cargo-nextest", "--version", NEXTEST, "--locked"])
}

fn doctests(root: &Path) -> Result<()> {
    Call::cargo(root, ["test", "--doc", "--workspace", "--locked"]).run()
}

fn docs(root: &Path) -> Result<()> {
    let args = ["doc", "--workspace", "--no-deps", "--document-private-items", "--locked"];
    Call::cargo(root, args).env("RUSTDOCFLAGS", "-D warnings").run()
}

fn reference_is_fresh(root: &Path) -> Result<()> {
    codegen::run(root, codegen::Mode::Check)
}

fn fuzz_targets_compile(root: &Path) -> Result<()> {
    Call::cargo(root, ["check", "--manifest-path", "fuzz/Cargo.toml", "--locked"]).run()
}

fn demo(root: &Path) -> Result<()> {
    /// Far above what the demo takes; a hang ends here.
    const LIMIT: Duration = Duration::from_secs(300);
    Call::cargo(root, ["build", "--locked"]).run()?;
    Call::cargo(root, ["run", "--locked", "--", "demo", "--once"]).run_within(LIMIT)
}

fn bench_smoke(root: &Path) -> Result<()> {
    bench::run(root, &["--smoke"])?;
    bench::run(root, &["cluster", "--smoke"])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_runner_of_tests_is_a_known_version() {
        let call = nextest_install(Path::new(".")).to_string();
        assert_eq!(call, format!("cargo install cargo-nextest --version {NEXTEST} --locked"));
    }

    #[test]
    fn an_unknown_stage_is_refused_with_the_list() {
        let error = run(Path::new("."), &["fmr"]).expect_err("no such stage").to_string();
        assert!(error.contains("`fmr`") && error.contains("clippy"), "{error}");
    }
}
