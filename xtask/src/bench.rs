//! `cargo xtask bench`: what xinfu costs beside the servers that people would use in its place.
//!
//! Everything runs on this machine, in a folder of its own, on free ports: xinfu as it is built for
//! release, nginx as WeChat, nginx and Redis as references, wrk and redis-benchmark as clients. The
//! server under test has one core and the clients with the upstream another, or all share one. The
//! subjects take turns in rounds, and what counts is the median of the rounds; what a request costs is
//! read off the kernel's accounting. Every answer must be the right one: an error ends the benchmark,
//! a bad ratio never does.

mod cluster;
mod figures;
mod gate;
mod herd;
mod idle;
mod load;
pub(crate) mod place;
pub(crate) mod process;
mod report;
mod tools;

use std::path::Path;

use anyhow::{Context, Result, bail};

use figures::{Figures, Sample, Setting, Subject, median};
use place::Place;
use process::{Cores, foreign};

use crate::command::{Seconds, Stopwatch};

/// How much is done.
struct Plan {
    rounds: usize,
    /// How long one subject is loaded at a time, in seconds.
    seconds: u64,
    settings: Vec<Setting>,
    readers: usize,
    apps: usize,
    /// How long idle servers are watched, in seconds.
    watched: u64,
    /// Whether the figures go into the documents.
    writes: bool,
    /// The line that asks for this.
    command: String,
}

impl Plan {
    /// Enough for figures.
    fn full(rounds: usize) -> Self {
        let apart = |connections| Setting { apart: true, connections };
        let together = |connections| Setting { apart: false, connections };
        Self {
            rounds,
            seconds: 1,
            settings: [1, 64, 256].into_iter().flat_map(|it| [together(it), apart(it)]).collect(),
            readers: 10_000,
            apps: 100_000,
            watched: 10,
            writes: true,
            command: format!("cargo xtask bench --rounds {rounds}"),
        }
    }

    /// Enough to see that everything is answered rightly. One second is the least that wrk can do.
    fn smoke() -> Self {
        Self {
            rounds: 1,
            seconds: 1,
            settings: vec![Setting { apart: true, connections: 16 }],
            readers: 500,
            apps: 1_000,
            watched: 1,
            writes: false,
            command: "cargo xtask bench --smoke".to_owned(),
        }
    }

    fn of(args: &[&str]) -> Result<Self> {
        const ROUNDS: usize = 5;
        match args {
            [] => Ok(Self::full(ROUNDS)),
            ["--smoke"] => Ok(Self::smoke()),
            ["--rounds", rounds] => match rounds.parse() {
                Ok(rounds @ 1..) => Ok(Self::full(rounds)),
                _ => bail!("`{rounds}` is no number of rounds"),
            },
            _ => bail!("`bench` takes `--smoke` or `--rounds N`, not `{}`", args.join(" ")),
        }
    }
}

/// Runs the benchmark as these arguments ask.
pub(crate) fn run(root: &Path, args: &[&str]) -> Result<()> {
    if let ["cluster", args @ ..] = args {
        return cluster::run(root, args);
    }
    let plan = Plan::of(args)?;
    let watch = Stopwatch::start();
    tools::install(root)?;
    let cores = Cores::of_this_process()?;
    process::allow_files(root, plan.readers + 1_000)?;
    let binary = tools::build(root)?;

    let place = Place::prepare(root, &binary, cores)?;
    let samples = take_turns(&place, &plan)?;
    let memory = place.memory()?;
    drop(place);
    let herd = herd::measure(root, &binary, cores, plan.readers).context("readers at expiry")?;
    let idle = idle::measure(&binary, cores, &plan).context("idle apps")?;

    let figures = Figures {
        machine: tools::machine(root, cores)?,
        command: plan.command.clone(),
        rounds: plan.rounds,
        seconds: plan.seconds,
        settings: plan.settings.clone(),
        samples,
        memory,
        herd,
        idle,
    };
    print!("\n{}", report::text(&figures, report::Language::English));
    println!("\nbench: every answer was right, {}", Seconds(watch.elapsed()));
    if !plan.writes {
        return Ok(());
    }
    report::write(root, "docs/benchmarks", |language| report::text(&figures, language))
}

/// Loads each subject in each setting, one after the other and round after round. Answers for each
/// setting and subject the samples of all rounds.
fn take_turns(place: &Place, plan: &Plan) -> Result<Vec<Vec<Vec<Sample>>>> {
    let subjects = place.subjects();
    for subject in &subjects {
        subject.check().with_context(|| format!("{} before the load", subject.name.english))?;
    }
    let mut samples = Vec::new();
    for setting in &plan.settings {
        let client = place.arrange(setting.apart)?;
        println!("\n{}", setting.words(report::Language::English));
        let mut of_setting: Vec<Vec<Sample>> = vec![Vec::new(); subjects.len()];
        for round in 0..plan.rounds {
            for (subject, taken) in subjects.iter().zip(&mut of_setting) {
                let sample =
                    quiet_sample(place, subject, client, setting.connections, plan.seconds)
                        .with_context(|| {
                            format!("{}, round {}", subject.name.english, round + 1)
                        })?;
                taken.push(sample);
            }
        }
        for (subject, taken) in subjects.iter().zip(&of_setting) {
            println!(
                "  {:<42} {:>8.0} req/s  {:>7.2} µs CPU  p99 {:>6.0} µs",
                subject.name.english,
                median(taken.iter().map(|sample| sample.rate)),
                median(taken.iter().map(|sample| sample.cpu)),
                median(taken.iter().map(|sample| sample.p99)),
            );
        }
        samples.push(of_setting);
    }
    for subject in &subjects {
        subject.check().with_context(|| format!("{} after the load", subject.name.english))?;
    }
    Ok(samples)
}

/// Takes a sample; when others used the machine meanwhile, once more, and keeps the quieter one.
fn quiet_sample(
    place: &Place,
    subject: &Subject<'_>,
    client: usize,
    connections: usize,
    seconds: u64,
) -> Result<Sample> {
    /// This much of a core is not worth another sample.
    const QUIET: f64 = 0.12;
    let first = sample(place, subject, client, connections, seconds)?;
    if first.foreign <= QUIET {
        return Ok(first);
    }
    let second = sample(place, subject, client, connections, seconds)?;
    Ok(if second.foreign < first.foreign { second } else { first })
}

fn sample(
    place: &Place,
    subject: &Subject<'_>,
    client: usize,
    connections: usize,
    seconds: u64,
) -> Result<Sample> {
    let before = (subject.server.cpu()?, foreign(&place.daemons())?);
    let watch = Stopwatch::start();
    let loaded = subject.load.run(client, connections, seconds)?;
    let after = (subject.server.cpu()?, foreign(&place.daemons())?);
    let spent = after.0.saturating_sub(before.0).as_secs_f64();
    Ok(Sample {
        rate: loaded.rate,
        cpu: spent * 1e6 / loaded.requests,
        p50: loaded.p50,
        p99: loaded.p99,
        foreign: (after.1 - before.1).max(0.0) / watch.elapsed().as_secs_f64(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_read() {
        assert_eq!(Plan::of(&[]).map(|plan| (plan.rounds, plan.writes)).ok(), Some((5, true)));
        assert_eq!(Plan::of(&["--rounds", "3"]).map(|plan| plan.rounds).ok(), Some(3));
        assert_eq!(Plan::of(&["--smoke"]).map(|plan| plan.writes).ok(), Some(false));
        for wrong in [&["--rounds", "0"][..], &["--rounds"], &["--smoke", "x"]] {
            assert!(Plan::of(wrong).is_err(), "{wrong:?}");
        }
    }
}
