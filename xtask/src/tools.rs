//! Programs that are not Rust's: installed when they are missing.

use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::command::Call;

/// Installs the packages of Debian whose programs are missing, where that is possible; else says how
/// to. Each tool is a program and its package.
pub(crate) fn install(root: &Path, tools: &[(&str, &str)]) -> Result<()> {
    let is_there = |tool: &str| Call::new("which", root, [tool]).works();
    let missing = || {
        let missing = tools.iter().filter(|(tool, _)| !is_there(tool));
        missing.map(|(_, package)| *package).collect::<Vec<_>>()
    };
    let mut packages = missing();
    packages.dedup();
    if packages.is_empty() {
        return Ok(());
    }
    let line = format!("apt-get install -y --no-install-recommends {}", packages.join(" "));
    let is_root = Call::new("id", root, ["-u"]).stdout()?.trim() == "0";
    if !is_root {
        bail!("programs are missing; to install them, on Debian as root: `{line}`");
    }
    println!("programs are missing: running `{line}`");
    let apt = |args: &[&str]| {
        Call::new("apt-get", root, args).env("DEBIAN_FRONTEND", "noninteractive").run()
    };
    let args: Vec<&str> = line.split(' ').skip(1).collect();
    apt(&["update"])
        .and_then(|()| apt(&args))
        .with_context(|| format!("programs are missing; to install them: `{line}`"))?;
    if let [first, ..] = missing()[..] {
        bail!("`{first}` is installed, but its programs are not in the path");
    }
    Ok(())
}
