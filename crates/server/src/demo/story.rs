//! How the walk is told: steps, figures, and whether each proved what it should.

use std::fmt::Display;

use tokio::time::Instant;

use crate::cli::{BOLD, Console, DIM, Failure, GREEN, RED};

/// The walk as it is told.
pub(crate) struct Story<'a> {
    console: &'a mut Console,
    step: usize,
    failed: usize,
    /// Whether the step under way has met a check that did not hold.
    broken: bool,
    began: Instant,
}

impl<'a> Story<'a> {
    /// Begins with a heading.
    pub(crate) fn begin(console: &'a mut Console, heading: &str) -> Result<Self, Failure> {
        console.print(&format!("{BOLD}{heading}{BOLD:#}"))?;
        Ok(Self { console, step: 0, failed: 0, broken: false, began: Instant::now() })
    }

    /// Announces a step and what happens in it.
    pub(crate) fn step(&mut self, title: &str, what: &str) -> Result<(), Failure> {
        self.step += 1;
        self.broken = false;
        let number = self.step;
        self.console.print(&format!("\n{BOLD}{number}  {title}{BOLD:#}"))?;
        for line in what.lines() {
            self.console.print(&format!("   {line}"))?;
        }
        Ok(())
    }

    /// Tells a figure.
    pub(crate) fn figure(&mut self, what: &str, value: &dyn Display) -> Result<(), Failure> {
        Ok(self.console.print(&format!("     {what:<38} {BOLD}{value}{BOLD:#}"))?)
    }

    /// Tells what somebody said.
    pub(crate) fn quote(&mut self, who: &str, text: &str) -> Result<(), Failure> {
        Ok(self.console.print(&format!("     {who}: {DIM}{text}{DIM:#}"))?)
    }

    /// Checks something; what does not hold is told.
    pub(crate) fn check(&mut self, holds: bool, otherwise: &str) -> Result<(), Failure> {
        if !holds {
            self.broken = true;
            self.console.print(&format!("     {RED}{otherwise}{RED:#}"))?;
        }
        Ok(())
    }

    /// Ends a step with what it proves.
    pub(crate) fn proves(&mut self, what: &str) -> Result<(), Failure> {
        let mark = if self.broken {
            self.failed += 1;
            format!("{RED}FAIL{RED:#}")
        } else {
            format!("{GREEN}pass{GREEN:#}")
        };
        Ok(self.console.print(&format!("   {mark}  {what}"))?)
    }

    /// Ends the walk, and answers whether every step passed.
    pub(crate) fn end(self, simulated: &str, seed: u64) -> Result<bool, Failure> {
        let took = self.began.elapsed().as_secs_f64();
        let passed = self.step - self.failed;
        let colour = if self.failed == 0 { GREEN } else { RED };
        self.console.print(&format!(
            "\n{colour}{passed} of {} steps passed{colour:#}: {simulated} at WeChat in {took:.1} s here. \
             Seed {seed}.",
            self.step
        ))?;
        Ok(self.failed == 0)
    }
}
