//! Servers in the background, their cores, and what the kernel says they used.

use std::{
    ffi::OsStr,
    fs::{self, File},
    path::{Path, PathBuf},
    process::{self, Child, Command, Stdio},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, anyhow, bail};

use crate::command::{Call, Stopwatch};

/// Nothing here takes longer on a machine that works.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);
/// What the kernel counts processor time in. It is this on all of Linux that has a user space.
const TICK: Duration = Duration::from_millis(10);

/// The cores that are used; the same one twice on a machine that has one.
#[derive(Clone, Copy)]
pub(super) struct Cores {
    /// Where the server under test is.
    pub(super) server: usize,
    /// Where clients and upstream are, unless all share one.
    pub(super) client: usize,
}

impl Cores {
    /// The first two of those that this process may use.
    pub(super) fn of_this_process() -> Result<Self> {
        let status = fs::read_to_string("/proc/self/status").context("Linux is needed")?;
        let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
        let mut allowed = cores_of(list.context("the kernel does not name our cores")?.trim());
        let server = allowed.next().context("the kernel names no core")?;
        Ok(Self { server, client: allowed.next().unwrap_or(server) })
    }
}

/// The numbers of a list such as `0-3,8`.
fn cores_of(list: &str) -> impl Iterator<Item = usize> {
    list.split(',').flat_map(|part| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (first.parse().unwrap_or(1), last.parse().unwrap_or(0));
        first..=last
    })
}

/// Lets this process and those that it starts open so many files.
pub(super) fn allow_files(root: &Path, wanted: usize) -> Result<()> {
    let limits = fs::read_to_string("/proc/self/limits")?;
    let line = limits.lines().find(|line| line.starts_with("Max open files")).unwrap_or_default();
    let hard = line.split_whitespace().nth(4).and_then(|word| word.parse().ok());
    let limit = hard.unwrap_or(wanted).max(wanted);
    let (pid, files) = (process::id().to_string(), format!("--nofile={limit}:{limit}"));
    Call::new("prlimit", root, ["--pid", &pid, &files])
        .run()
        .with_context(|| format!("{wanted} open files are needed; `ulimit -n` says the limit"))
}

/// A server that runs until it is dropped.
pub(crate) struct Daemon {
    name: &'static str,
    child: Child,
    log: PathBuf,
}

impl Daemon {
    /// Starts a program, on a core if one is given; what it prints goes to a file in `folder`, where it works.
    pub(crate) fn start<S: AsRef<OsStr>>(
        name: &'static str,
        core: Option<usize>,
        folder: &Path,
        line: &[S],
        variables: &[(&str, &str)],
    ) -> Result<Self> {
        let log = folder.join(format!("{name}.log"));
        let file = File::create(&log)?;
        let mut command = match core {
            Some(core) => {
                let mut command = Command::new("taskset");
                command.args(["-c", &core.to_string()]).args(line);
                command
            }
            None => {
                let (program, args) = line.split_first().context("a line has a program")?;
                let mut command = Command::new(program);
                command.args(args);
                command
            }
        };
        let child = command
            .envs(variables.iter().copied())
            .current_dir(folder)
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .with_context(|| format!("start {name}"))?;
        Ok(Self { name, child, log })
    }

    /// What it has printed.
    pub(crate) fn printed(&self) -> Result<String> {
        Ok(String::from_utf8_lossy(&fs::read(&self.log)?).into_owned())
    }

    /// Waits until `found` finds what it looks for; a server that ends before is an error.
    pub(crate) fn until<T>(
        &mut self,
        what: &str,
        found: impl Fn(&Self) -> Result<Option<T>>,
    ) -> Result<T> {
        let watch = Stopwatch::start();
        loop {
            if let Some(found) = found(self)? {
                return Ok(found);
            }
            let ended = self.child.try_wait()?;
            if ended.is_some() || watch.elapsed() > PATIENCE {
                let why = ended.map_or("it goes on".to_owned(), |status| status.to_string());
                bail!("{} does not {what}: {why}\n{}", self.name, self.printed()?);
            }
            pause(Duration::from_millis(1));
        }
    }

    /// Waits until it has used next to nothing for a while.
    pub(super) fn until_quiet(&self, limit: Duration) -> Result<()> {
        let watch = Stopwatch::start();
        let mut quiet = 0;
        while quiet < 3 {
            let before = self.cpu()?;
            pause(Duration::from_millis(100));
            quiet = if self.cpu()?.saturating_sub(before) <= TICK { quiet + 1 } else { 0 };
            if watch.elapsed() > limit {
                bail!("{} is still busy after {} s", self.name, limit.as_secs());
            }
        }
        Ok(())
    }

    /// Moves it and its children to a core.
    pub(super) fn pin(&self, core: usize) -> Result<()> {
        for pid in self.tree()? {
            let (core, pid) = (core.to_string(), pid.to_string());
            Call::new("taskset", Path::new("/"), ["-a", "-p", "-c", &core, &pid]).stdout()?;
        }
        Ok(())
    }

    /// The processor time that it and its children have used.
    pub(super) fn cpu(&self) -> Result<Duration> {
        let ticks: u64 =
            self.tree()?.into_iter().map(|pid| Stat::of(pid).map_or(0, |s| s.own)).sum();
        Ok(TICK * u32::try_from(ticks)?)
    }

    /// The bytes of memory that it and its children have resident.
    pub(super) fn resident(&self) -> Result<u64> {
        let mut kilobytes = 0;
        for pid in self.tree()? {
            let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
            let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
            let value = line.and_then(|line| line.split_whitespace().next());
            kilobytes += value.and_then(|word| word.parse::<u64>().ok()).unwrap_or(0);
        }
        Ok(kilobytes * 1024)
    }

    /// Asks it to end, and waits for that.
    pub(super) fn stop(mut self) -> Result<()> {
        self.terminate()
    }

    fn terminate(&mut self) -> Result<()> {
        if self.child.try_wait()?.is_some() {
            return Ok(());
        }
        let pid = self.child.id().to_string();
        Call::new("kill", Path::new("/"), ["-TERM", &pid]).run()?;
        let watch = Stopwatch::start();
        while self.child.try_wait()?.is_none() {
            if watch.elapsed() > PATIENCE {
                self.child.kill()?;
                self.child.wait()?;
                bail!("{} does not end when asked to", self.name);
            }
            pause(Duration::from_millis(5));
        }
        Ok(())
    }

    /// It and its children.
    fn tree(&self) -> Result<Vec<u32>> {
        let own = self.child.id();
        let path = format!("/proc/{own}/task/{own}/children");
        let children = fs::read_to_string(path).with_context(|| format!("{} ended", self.name))?;
        let children = children.split_whitespace().filter_map(|word| word.parse().ok());
        Ok([own].into_iter().chain(children).collect())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Err(error) = self.terminate() {
            eprintln!("{error:#}");
        }
    }
}

/// Waits; there is no runtime here to block.
#[expect(clippy::disallowed_methods, reason = "there is no runtime here to block")]
pub(super) fn pause(time: Duration) {
    thread::sleep(time);
}

/// Processor time of a process, in ticks.
struct Stat {
    own: u64,
    of_ended_children: u64,
}

impl Stat {
    fn of(pid: u32) -> Result<Self> {
        Self::parse(&fs::read_to_string(format!("/proc/{pid}/stat"))?)
    }

    fn parse(text: &str) -> Result<Self> {
        // The name of the program stands in parentheses and may hold anything.
        let (_, rest) = text.rsplit_once(')').context("read the kernel's accounting")?;
        let fields: Vec<u64> =
            rest.split_whitespace().skip(11).take(4).map_while(|word| word.parse().ok()).collect();
        let [user, system, ended_user, ended_system] = fields[..] else {
            return Err(anyhow!("the kernel's accounting is not as expected: {text}"));
        };
        Ok(Self { own: user + system, of_ended_children: ended_user + ended_system })
    }
}

/// The seconds of processor time that all cores have spent on others than these servers, this
/// process and what it has run.
pub(super) fn foreign(daemons: &[&Daemon]) -> Result<f64> {
    let text = fs::read_to_string("/proc/stat")?;
    let fields: Vec<u64> = text
        .lines()
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .skip(1)
        .map_while(|word| word.parse().ok())
        .collect();
    let [user, nice, system, _idle, _waiting, interrupts, soft, ..] = fields[..] else {
        return Err(anyhow!("the kernel's accounting is not as expected: {text}"));
    };
    let busy = TICK.as_secs_f64() * (user + nice + system + interrupts + soft) as f64;
    let own = Stat::of(process::id())?;
    let mut ours = TICK.as_secs_f64() * (own.own + own.of_ended_children) as f64;
    for daemon in daemons {
        ours += daemon.cpu()?.as_secs_f64();
    }
    Ok(busy - ours)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_cores_are_read() {
        assert_eq!(cores_of("0-2,5").collect::<Vec<_>>(), [0, 1, 2, 5]);
        assert_eq!(cores_of("7").collect::<Vec<_>>(), [7]);
        assert_eq!(cores_of("").count(), 0);
    }

    #[test]
    fn accounting_is_read_past_any_name() {
        let text = "7 (a) b (c)) S 1 7 7 0 -1 4194560 10 20 30 40 5 6 70 80 20 0 1 0 9 9 9";
        let stat = Stat::parse(text).expect("it is complete");
        assert_eq!((stat.own, stat.of_ended_children), (11, 150));
        assert!(Stat::parse("7 (a) S 1").is_err());
    }
}
