//! `xinfu reference` and `xinfu openapi`: what the program says about itself.

use clap::{Arg, Command, CommandFactory, ValueEnum};

use super::{Cli, Console, Failure};
use crate::{config, http};

/// A page of the reference.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Page {
    Errors,
    Config,
    Cli,
    Problems,
    Openapi,
    Metrics,
}

/// Which page.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// What about
    page: Page,
}

/// Prints a page.
pub(crate) fn run(arguments: &Arguments, console: &mut Console) -> Result<(), Failure> {
    let text = match arguments.page {
        Page::Errors => wechat::errors_markdown(),
        Page::Config => config::reference::markdown(),
        Page::Cli => command_line(),
        Page::Problems => http::problems_markdown(),
        Page::Metrics => http::metrics_markdown(),
        Page::Openapi => return openapi(console),
    };
    Ok(console.print_raw(&text)?)
}

/// Prints the description of the HTTP API.
pub(crate) fn openapi(console: &mut Console) -> Result<(), Failure> {
    let text = http::openapi();
    console.print_raw(&text)?;
    if !text.ends_with('\n') {
        console.print_raw("\n")?;
    }
    Ok(())
}

/// All commands as a page.
fn command_line() -> String {
    let mut page = String::from(
        "# Command line\n\n\
         Data goes to standard output, everything else to standard error. Exit codes: 0 it worked, 1 \
         it failed, 2 the command line or the configuration is wrong. Every command takes `--config \
         FILE` and `--help`.\n\n\
         Commands that change apps and keys work on the store, whether or not a server runs; a \
         running server follows within 2 seconds.\n\n\
         <!-- Generated from the command line in crates/server by `cargo xtask codegen`: do not edit. -->\n",
    );
    let mut root = Cli::command();
    root.build();
    for command in root.get_subcommands() {
        describe(command, "xinfu", &mut page);
    }
    page
}

fn describe(command: &Command, before: &str, page: &mut String) {
    if command.is_hide_set() || command.get_name() == "help" {
        return;
    }
    let name = format!("{before} {}", command.get_name());
    if command.has_subcommands() {
        for sub in command.get_subcommands() {
            describe(sub, &name, page);
        }
        return;
    }
    let shown = |arg: &&Arg| !arg.is_hide_set() && !arg.is_global_set() && arg.get_id() != "help";
    let arguments: Vec<&Arg> = command.get_arguments().filter(shown).collect();
    let about = command.get_about().map(ToString::to_string).unwrap_or_default();
    page.push_str(&format!("\n## `{name}`\n\n{about}.\n"));
    if arguments.is_empty() {
        return;
    }
    page.push_str("\n| argument | meaning | default |\n|---|---|---|\n");
    for arg in arguments {
        let help = arg.get_help().map(ToString::to_string).unwrap_or_default().replace('\n', " ");
        let defaults = arg.get_default_values().iter();
        let default: Vec<_> =
            defaults.map(|value| format!("`{}`", value.to_string_lossy())).collect();
        let default =
            if arg.get_action().takes_values() { default.join(", ") } else { String::new() };
        page.push_str(&format!("| `{}` | {help} | {default} |\n", usage(arg)));
    }
}

fn usage(arg: &Arg) -> String {
    let value = arg
        .get_value_names()
        .and_then(|names| names.first())
        .map_or_else(|| arg.get_id().as_str().to_uppercase(), ToString::to_string);
    let takes_value = arg.get_action().takes_values();
    match (arg.get_long(), arg.get_short()) {
        (Some(long), _) if takes_value => format!("--{long} {value}"),
        (Some(long), Some(short)) => format!("--{long}, -{short}"),
        (Some(long), None) => format!("--{long}"),
        (None, _) if arg.is_required_set() => value,
        (None, _) => format!("[{value}]"),
    }
}
