//! `cargo xtask fuzz`: one fuzz target for a while.

use std::{fs, path::Path};

use anyhow::{Context, Result, bail};

use crate::command::Call;

/// Prints the names of the fuzz targets.
pub(crate) fn list(root: &Path) -> Result<()> {
    for target in targets(root)? {
        println!("{target}");
    }
    Ok(())
}

/// Runs `target` for so many seconds; a crash is an error.
pub(crate) fn run(root: &Path, target: &str, seconds: &str) -> Result<()> {
    let targets = targets(root)?;
    if !targets.iter().any(|known| known == target) {
        bail!("there is no fuzz target `{target}`; there are: {}", targets.join(", "));
    }
    let seconds: u32 = seconds.parse().with_context(|| format!("`{seconds}` as seconds"))?;
    if !Call::cargo(root, ["+nightly", "--version"]).works() {
        bail!("fuzzing needs a nightly compiler: `rustup toolchain install nightly`");
    }
    if !Call::cargo(root, ["fuzz", "--version"]).works() {
        bail!("fuzzing needs cargo-fuzz: `cargo install cargo-fuzz --locked`");
    }
    let limit = format!("-max_total_time={seconds}");
    Call::cargo(root, ["+nightly", "fuzz", "run", target, "--", &limit]).run()
}

fn targets(root: &Path) -> Result<Vec<String>> {
    let folder = root.join("fuzz/fuzz_targets");
    let mut names = Vec::new();
    for entry in fs::read_dir(&folder).context("list fuzz/fuzz_targets")? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "rs")
            && let Some(stem) = path.file_stem().and_then(|stem| stem.to_str())
        {
            names.push(stem.to_owned());
        }
    }
    names.sort();
    Ok(names)
}
