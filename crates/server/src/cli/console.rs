//! Where a command writes: colour on a terminal, plain text elsewhere.

use std::{
    io::{self, IsTerminal, Write},
    process::ExitCode,
};

use anstyle::{AnsiColor, Style};

use super::Failure;

/// A heading, or what to look at first.
pub(crate) const BOLD: Style = Style::new().bold();
/// It is fine.
pub(crate) const GREEN: Style = AnsiColor::Green.on_default();
/// It is not.
pub(crate) const RED: Style = AnsiColor::Red.on_default().bold();
/// Somebody should look.
pub(crate) const YELLOW: Style = AnsiColor::Yellow.on_default();
/// What stands aside.
pub(crate) const DIM: Style = Style::new().dimmed();
/// What to type.
pub(crate) const CYAN: Style = AnsiColor::Cyan.on_default();

/// Standard output and standard error, and whether somebody sits there to be asked.
pub struct Console {
    out: Box<dyn Write + Send>,
    err: Box<dyn Write + Send>,
    /// Whether standard input is a terminal.
    pub(crate) interactive: bool,
}

impl Console {
    /// Those of this process. Colour goes to terminals only, and `NO_COLOR` is honoured.
    pub fn of_process() -> Self {
        Self {
            out: Box::new(anstream::AutoStream::auto(io::stdout())),
            err: Box::new(anstream::AutoStream::auto(io::stderr())),
            interactive: io::stdin().is_terminal(),
        }
    }

    /// Writes a line of data.
    pub(crate) fn print(&mut self, line: &str) -> io::Result<()> {
        writeln!(self.out, "{line}")?;
        self.out.flush()
    }

    /// Writes data as it is.
    pub(crate) fn print_raw(&mut self, text: &str) -> io::Result<()> {
        self.out.write_all(text.as_bytes())?;
        self.out.flush()
    }

    /// Says what was done.
    pub(crate) fn say(&mut self, line: &str) -> io::Result<()> {
        writeln!(self.err, "{line}")?;
        self.err.flush()
    }

    /// Says what to do next.
    pub(crate) fn hint(&mut self, hint: &str) -> io::Result<()> {
        self.say(&format!("{CYAN}hint:{CYAN:#} {hint}"))
    }

    /// Says that something deserves a look.
    pub(crate) fn warn(&mut self, warning: &str) -> io::Result<()> {
        self.say(&format!("{YELLOW}warning:{YELLOW:#} {warning}"))
    }

    /// Prints rows in columns, the first row being their names.
    pub(crate) fn table(&mut self, rows: &[Vec<String>]) -> io::Result<()> {
        let columns = rows.first().map_or(0, Vec::len);
        let width = |column: usize| {
            rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max()
        };
        let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
        for (number, row) in rows.iter().enumerate() {
            let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
            let line = cells.collect::<Vec<_>>().join("  ");
            let line = line.trim_end();
            if number == 0 {
                self.print(&format!("{DIM}{line}{DIM:#}"))?;
            } else {
                self.print(line)?;
            }
        }
        Ok(())
    }

    /// Asks whether to go on; `false` without a terminal to ask at.
    pub(crate) fn confirm(&mut self, question: &str) -> io::Result<bool> {
        if !self.interactive {
            return Ok(false);
        }
        write!(self.err, "{question} [y/N] ")?;
        self.err.flush()?;
        let mut answer = String::new();
        io::stdin().read_line(&mut answer)?;
        Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
    }

    /// Tells a failure, and answers its exit code.
    pub(crate) fn fail(&mut self, failure: &Failure) -> ExitCode {
        if failure.told {
            return ExitCode::from(failure.code);
        }
        // When not even this can be written, the exit code has to be enough.
        let _ = self.say(&format!("{RED}error:{RED:#} {}", failure.message));
        for hint in &failure.hints {
            let _ = self.hint(hint);
        }
        ExitCode::from(failure.code)
    }
}
