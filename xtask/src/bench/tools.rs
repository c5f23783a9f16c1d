//! The programs that a benchmark needs, and what is said about the machine.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use serde_json::Value;

use super::process::Cores;
use crate::{command::Call, tools};

/// Each program that is needed, with the package that has it on Debian.
const TOOLS: [(&str, &str); 6] = [
    ("nginx", "nginx"),
    ("wrk", "wrk"),
    ("redis-server", "redis-server"),
    ("redis-benchmark", "redis-server"),
    ("openssl", "openssl"),
    ("taskset", "util-linux"),
];

/// Installs what is missing, where that is possible; else says how to.
pub(super) fn install(root: &Path) -> Result<()> {
    tools::install(root, &TOOLS)
}

/// Builds xinfu for release, and answers where the program is.
pub(super) fn build(root: &Path) -> Result<PathBuf> {
    println!("building xinfu for release");
    Call::cargo(root, ["build", "--release", "--package", "server", "--locked"]).run()?;
    let args = ["metadata", "--no-deps", "--format-version", "1", "--locked"];
    let metadata: Value = serde_json::from_str(&Call::cargo(root, args).stdout()?)?;
    let target = metadata["target_directory"].as_str().context("cargo names no target folder")?;
    Ok(Path::new(target).join("release/xinfu"))
}

/// What the figures were measured on and with.
pub(super) struct Machine {
    /// The day, as YYYY-MM-DD.
    pub(super) date: String,
    /// The processor.
    pub(super) cpu: String,
    /// How many cores it has.
    pub(super) cores: usize,
    /// The memory in GB.
    pub(super) memory: f64,
    /// The kernel.
    pub(super) kernel: String,
    /// The versions of the programs.
    pub(super) versions: String,
    /// The cores that were used.
    pub(super) used: Cores,
}

/// Asks the machine what it is.
pub(super) fn machine(root: &Path, used: Cores) -> Result<Machine> {
    let ask = |program: &str, args: &[&str]| -> Result<String> {
        // Some programs tell their version on the other stream, or with another exit code.
        let output = Call::new(program, root, args).output()?;
        let text = [output.stdout, output.stderr].concat();
        Ok(String::from_utf8_lossy(&text).lines().next().unwrap_or_default().trim().to_owned())
    };
    let field = |file: &str, name: &str| -> Result<String> {
        let text = fs::read_to_string(file)?;
        let line = text.lines().find(|line| line.starts_with(name));
        let value = line.and_then(|line| line.split_once(':')).map(|(_, value)| value.trim());
        Ok(value.unwrap_or("unknown").to_owned())
    };
    let memory = field("/proc/meminfo", "MemTotal")?;
    let kilobytes: f64 = memory.split(' ').next().and_then(|word| word.parse().ok()).unwrap_or(0.0);
    let processors = fs::read_to_string("/proc/cpuinfo")?;
    let word = |text: &str, at: usize| text.split_whitespace().nth(at).unwrap_or("?").to_owned();
    let nginx = ask("nginx", &["-v"])?;
    let redis = ask("redis-server", &["--version"])?;
    let wrk = ask("wrk", &["-v"])?;
    let rustc = ask("rustc", &["--version"])?;
    let versions = format!(
        "{}, redis {}, wrk {}, rustc {}",
        nginx.rsplit(' ').next().unwrap_or("nginx"),
        word(&redis, 2).trim_start_matches("v="),
        word(&wrk, 1),
        word(&rustc, 1),
    );
    Ok(Machine {
        date: ask("date", &["-u", "+%Y-%m-%d"])?,
        cpu: field("/proc/cpuinfo", "model name")?,
        cores: processors.lines().filter(|line| line.starts_with("processor")).count(),
        memory: kilobytes * 1024.0 / 1e9,
        kernel: ask("uname", &["-sr"])?,
        versions,
        used,
    })
}
