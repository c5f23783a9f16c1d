//! `cargo xtask faults`: real replicas under load while everything around them fails, for some time.

use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::stages;

/// Names to the tests for how long they go on.
const MINUTES: &str = "XINFU_FAULTS_MINUTES";

/// Runs them on PostgreSQL and on PostgreSQL with Redis, one after the other.
pub(crate) fn run(root: &Path, args: &[&str]) -> Result<()> {
    let minutes = match args {
        [] => 10,
        ["--minutes", minutes] => minutes
            .parse::<u32>()
            .with_context(|| format!("`{minutes}` is no number of minutes"))?,
        _ => bail!("expected: `cargo xtask faults [--minutes N]`"),
    };
    let args = ["--profile", "faults", "--package", "server", "-E", "test(faults::)"];
    stages::nextest_with(root, &args, &[(MINUTES, minutes.to_string())])
}
