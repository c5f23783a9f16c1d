//! `cargo xtask chaos`: replicas under faults, in a simulation that a seed repeats.

use std::{path::Path, thread};

use anyhow::{Context, Result, bail};

use crate::{command::Call, stages};

/// Names the seeds to the test.
const SEEDS: &str = "XINFU_CHAOS_SEEDS";
/// The test that takes any seeds.
const TEST: &str = "test(=chaos::what_must_hold_holds_for_the_first_hundred_seeds)";

/// Simulates as many seeds as `args` say, on all cores.
pub(crate) fn run(root: &Path, args: &[&str]) -> Result<()> {
    let number = |text: &str| text.parse::<u64>().with_context(|| format!("`{text}` is no number"));
    let (from, to) = match args {
        [] => (0, 1_000),
        ["--seeds", seeds] => (0, number(seeds)?),
        ["--seed", seed] => (number(seed)?, number(seed)? + 1),
        _ => bail!("expected: `cargo xtask chaos [--seeds N|--seed N]`"),
    };
    // In release, since many seeds are many hours.
    stages::install_nextest(root)?;
    let nextest = ["nextest", "run", "--release", "--locked", "--package", "broker"];
    Call::cargo(root, nextest.into_iter().chain(["--no-run"])).run()?;
    let cores = thread::available_parallelism().map_or(1, |cores| cores.get() as u64);
    let share = (to - from).div_ceil(cores).max(1);
    let begins: Vec<u64> = (from..to).step_by(usize::try_from(share)?).collect();
    let outcomes: Vec<Result<()>> = thread::scope(|scope| {
        let running: Vec<_> = begins
            .iter()
            .map(|begin| {
                let seeds = format!("{begin}..{}", (begin + share).min(to));
                // One that takes its time is not ended.
                let args = ["--profile", "chaos", "-E", TEST];
                let args = nextest.into_iter().chain(args);
                scope.spawn(move || Call::cargo(root, args).env(SEEDS, seeds).run())
            })
            .collect();
        let ended = |it: thread::ScopedJoinHandle<'_, Result<()>>| {
            it.join().unwrap_or_else(|_| bail!("the task panicked"))
        };
        running.into_iter().map(ended).collect()
    });
    outcomes.into_iter().collect::<Result<()>>()?;
    println!("chaos: {} seeds, nothing is broken", to - from);
    Ok(())
}
