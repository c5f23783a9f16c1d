//! Running other programs, and timing them.

use std::{
    env,
    ffi::{OsStr, OsString},
    fmt,
    path::Path,
    process::{Command, ExitStatus, Output, Stdio},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail};

/// A program with its arguments, to be run from the root of the repository.
///
/// It gets no standard input, so that nothing waits for a person.
pub(crate) struct Call {
    program: OsString,
    args: Vec<OsString>,
    inner: Command,
}

impl Call {
    /// A call of `cargo`, with the variables removed that the outer cargo set for this program.
    ///
    /// Build scripts watch some of those variables: left in place they would make cargo build the
    /// same crates again for every stage.
    pub(crate) fn cargo<I>(root: &Path, args: I) -> Self
    where
        I: IntoIterator,
        I::Item: AsRef<OsStr>,
    {
        let mut call = Self::new("cargo", root, args);
        for (name, _) in env::vars_os() {
            if name.to_str().is_some_and(is_set_by_cargo) {
                call.inner.env_remove(name);
            }
        }
        call
    }

    /// A call of `git`.
    pub(crate) fn git<I>(folder: &Path, args: I) -> Self
    where
        I: IntoIterator,
        I::Item: AsRef<OsStr>,
    {
        Self::new("git", folder, args)
    }

    /// A call of any other program.
    pub(crate) fn new<I>(program: &str, folder: &Path, args: I) -> Self
    where
        I: IntoIterator,
        I::Item: AsRef<OsStr>,
    {
        let args: Vec<OsString> = args.into_iter().map(|arg| arg.as_ref().to_owned()).collect();
        let mut inner = Command::new(program);
        inner.args(&args).current_dir(folder).stdin(Stdio::null());
        Self { program: program.into(), args, inner }
    }

    /// Sets a variable of the environment.
    #[must_use]
    pub(crate) fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.inner.env(name, value);
        self
    }

    /// Runs the program on this terminal and answers how it ended.
    pub(crate) fn status(mut self) -> Result<ExitStatus> {
        self.inner.status().with_context(|| format!("start `{self}`"))
    }

    /// Runs the program on this terminal; anything but success is an error.
    pub(crate) fn run(self) -> Result<()> {
        let line = self.to_string();
        let status = self.status()?;
        if !status.success() {
            bail!("`{line}` ended with {status}");
        }
        Ok(())
    }

    /// Runs the program on this terminal and ends it when it takes longer than `limit`.
    #[expect(clippy::disallowed_methods, reason = "there is no runtime here to block")]
    pub(crate) fn run_within(mut self, limit: Duration) -> Result<()> {
        let line = self.to_string();
        let watch = Stopwatch::start();
        let mut child = self.inner.spawn().with_context(|| format!("start `{line}`"))?;
        loop {
            if let Some(status) = child.try_wait()? {
                if status.success() {
                    return Ok(());
                }
                bail!("`{line}` ended with {status}");
            }
            if watch.elapsed() > limit {
                child.kill()?;
                child.wait()?;
                bail!("`{line}` was still running after {}", Seconds(limit));
            }
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// Runs the program and keeps what it prints.
    pub(crate) fn output(mut self) -> Result<Output> {
        self.inner.output().with_context(|| format!("start `{self}`"))
    }

    /// Runs the program and answers what it printed; anything but success is an error that carries
    /// the program's own words.
    pub(crate) fn stdout(self) -> Result<String> {
        let line = self.to_string();
        let output = self.output()?;
        if !output.status.success() {
            let words = String::from_utf8_lossy(&output.stderr);
            bail!("`{line}` ended with {}\n{}", output.status, words.trim_end());
        }
        String::from_utf8(output.stdout).with_context(|| format!("read what `{line}` printed"))
    }

    /// Answers whether the program runs and succeeds, and shows nothing of it.
    pub(crate) fn works(mut self) -> bool {
        self.inner.stdout(Stdio::null()).stderr(Stdio::null());
        self.inner.status().is_ok_and(|status| status.success())
    }
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.program.display())?;
        for arg in &self.args {
            let arg = arg.to_string_lossy();
            if arg.contains(' ') { write!(f, " '{arg}'")? } else { write!(f, " {arg}")? }
        }
        Ok(())
    }
}

/// Whether cargo sets this variable for a program that it runs, as opposed to a setting of the
/// person who runs cargo.
fn is_set_by_cargo(name: &str) -> bool {
    const PREFIXES: [&str; 3] = ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_"];
    const NAMES: [&str; 4] =
        ["CARGO", "CARGO_CRATE_NAME", "CARGO_PRIMARY_PACKAGE", "LD_LIBRARY_PATH"];
    PREFIXES.iter().any(|prefix| name.starts_with(prefix)) || NAMES.contains(&name)
}

/// How long something has been going on.
pub(crate) struct Stopwatch(
    #[expect(clippy::disallowed_types, reason = "there is no runtime here")] std::time::Instant,
);

impl Stopwatch {
    /// A stopwatch that starts now.
    #[expect(clippy::disallowed_methods, clippy::disallowed_types, reason = "no runtime here")]
    pub(crate) fn start() -> Self {
        Self(std::time::Instant::now())
    }

    /// The time since the start.
    pub(crate) fn elapsed(&self) -> Duration {
        self.0.elapsed()
    }
}

/// A duration as people read it.
pub(crate) struct Seconds(pub(crate) Duration);

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self.0.as_secs() {
            0..60 => format!("{:.1} s", self.0.as_secs_f64()),
            secs => format!("{} min {:02} s", secs / 60, secs % 60),
        };
        f.pad(&text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_are_readable() {
        assert_eq!(Seconds(Duration::from_millis(1_250)).to_string(), "1.2 s");
        assert_eq!(Seconds(Duration::from_secs(125)).to_string(), "2 min 05 s");
    }

    #[test]
    fn only_the_variables_of_the_outer_cargo_are_removed() {
        assert!(is_set_by_cargo("CARGO_MANIFEST_DIR"));
        assert!(is_set_by_cargo("CARGO_PKG_VERSION"));
        assert!(!is_set_by_cargo("CARGO_HOME"));
        assert!(!is_set_by_cargo("CARGO_TARGET_DIR"));
    }

    #[test]
    fn a_call_reads_like_the_line_to_type() {
        let call = Call::cargo(Path::new("."), ["nextest", "run", "-E", "test(=a) | test(=b)"]);
        assert_eq!(call.to_string(), "cargo nextest run -E 'test(=a) | test(=b)'");
    }
}
