//! The tasks of this repository, run as `cargo xtask TASK`.
//!
//! `cargo xtask test` is the one command that tells whether a change may land; the other tasks are
//! its stages or the tools around it. Everything here works from the root of the repository,
//! whatever the current folder is.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a command line tool")]

mod bench;
mod chaos;
mod clients;
mod codegen;
mod command;
mod faults;
mod fuzz;
mod planted;
mod servers;
mod stages;
mod tidy;
mod tools;

use std::{
    env,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Result, bail};

const HELP: &str = "\
Tasks of the xinfu repository

Usage: cargo xtask TASK

  test [STAGE…]             run all stages, or only the named ones, and stop at the first failure
  nextest ARGS…             run tests as `cargo nextest run ARGS…`, with a PostgreSQL and a Redis
  tidy                      check layers, sizes, documents and words
  codegen [--check]         write docs/reference from the program, or compare it
  planted [NAME…]           apply each planted bug to a scratch copy: its test must fail
  planted --check           check only that each patch is complete and still applies
  chaos [--seeds N|--seed N] simulate replicas under faults, for N seeds or one; 1000 unless told
  faults [--minutes N]      run real replicas while everything around them fails; 10 unless told
  fuzz [TARGET [SECONDS]]   run one fuzz target, 60 seconds unless told; without a target list them
  bench [--rounds N]        compare speed and memory with nginx and Redis; writes docs/benchmarks.md
  bench cluster             compare 1, 2 and 4 replicas on one PostgreSQL; writes docs/scale.md
  bench [cluster] --smoke   only see that everything is answered rightly; writes nothing
  help                      print this text and the stages of `test`
";

fn main() -> ExitCode {
    let args: Vec<String> = env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &[&str]) -> Result<()> {
    let root = root();
    match args {
        [] => print_help(),
        _ if args.iter().any(|arg| ["help", "--help", "-h"].contains(arg)) => print_help(),
        ["test", names @ ..] => return stages::run(&root, names),
        ["tidy"] => return tidy::run(&root),
        ["codegen"] => return codegen::run(&root, codegen::Mode::Write),
        ["codegen", "--check"] => return codegen::run(&root, codegen::Mode::Check),
        ["planted", "--check"] => return planted::check(&root),
        ["planted", names @ ..] => return planted::run(&root, names),
        ["nextest", args @ ..] => return stages::nextest(&root, args),
        ["bench", args @ ..] => return bench::run(&root, args),
        ["chaos", args @ ..] => return chaos::run(&root, args),
        ["faults", args @ ..] => return faults::run(&root, args),
        ["fuzz"] => return fuzz::list(&root),
        ["fuzz", target] => return fuzz::run(&root, target, "60"),
        ["fuzz", target, seconds] => return fuzz::run(&root, target, seconds),
        _ => bail!("unknown task or argument `{}`; see `cargo xtask help`", args.join(" ")),
    }
    Ok(())
}

fn print_help() {
    print!("{HELP}\nStages of `test`, in order:\n\n{}", stages::help());
}

/// The root of the repository.
fn root() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().expect("xtask lies one folder below the root").to_owned()
}
