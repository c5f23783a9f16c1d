//! The command line: what each command is called, and from which file of `cli` it comes.
//!
//! Data goes to standard output, everything else to standard error. A command that fails says why,
//! and where something can be done about it, what. Exit codes: 0 it worked, 1 it failed, 2 the
//! command line or the configuration is wrong.

mod app;
mod apply;
mod audit;
mod check;
mod console;
mod doctor;
mod failure;
mod grant;
mod init;
mod intercept;
mod key;
mod open;
mod reference;
mod secret;
mod serve;
#[cfg(feature = "sim")]
mod sim;
mod status;
mod token;
mod user;

use std::{path::PathBuf, process::ExitCode};

use broker::Rekeyed;
use clap::{Parser, Subcommand};

pub use console::Console;
pub use failure::Failure;

#[cfg(feature = "sim")]
pub(crate) use self::{
    console::{BOLD, CYAN, DIM, GREEN, RED},
    serve::stop_signals,
    sim::random_seed,
};

use crate::config::Environment;

/// Keeps WeChat's global access tokens fresh, so that nobody else has to
#[derive(Debug, Parser)]
#[command(name = "xinfu", version, max_term_width = 100, arg_required_else_help = true)]
pub struct Cli {
    /// The configuration file [default: `xinfu.toml`, or what `XINFU_CONFIG` names]
    #[arg(long, short, global = true, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Show it working: a simulated WeChat, a server, two apps and a key, on loopback
    #[cfg(feature = "sim")]
    Demo(crate::demo::Arguments),
    /// Run the server
    Serve,
    /// Run the simulated WeChat alone
    #[cfg(feature = "sim")]
    Sim(sim::Arguments),
    /// Write a commented configuration and a master key
    Init(init::Arguments),
    /// Lead SDKs here that know only WeChat's own address
    #[command(subcommand)]
    Intercept(intercept::Command),
    /// Register, change and list WeChat apps
    #[command(subcommand)]
    App(app::Command),
    /// Make, list and revoke the client keys that services call with
    #[command(subcommand)]
    Key(key::Command),
    /// Read, look after and refresh global tokens
    #[command(subcommand)]
    Token(token::Command),
    /// Read what WeChat knows about a user of an app
    #[command(subcommand)]
    User(user::Command),
    /// List, show and forget what is held of users who authorised
    #[command(subcommand)]
    Grant(grant::Command),
    /// Print the newest entries of the audit log: who changed what, and when
    Audit(audit::Arguments),
    /// Look for what is wrong, and say what to do about it
    Doctor,
    /// Check the configuration and print what was understood
    CheckConfig,
    /// Seal all stored secrets anew with the master key that `seal_with` names; each server must
    /// run with that key by then
    Rekey,
    /// Print the OpenAPI description of the HTTP API
    Openapi,
    /// Print a page of the reference
    #[command(hide = true)]
    Reference(reference::Arguments),
    /// One of the services that `demo --once` runs
    #[cfg(feature = "sim")]
    #[command(hide = true)]
    DemoService,
}

/// Runs a command, tells what went wrong, and answers the exit code.
pub fn run(cli: Cli, environment: &Environment, console: &mut Console) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(err) => return console.fail(&Failure::new(format!("cannot start: {err}"))),
    };
    let result = runtime.block_on(dispatch(cli, environment, console));
    // Whatever still waits for a terminal or a lock is not waited for.
    runtime.shutdown_background();
    match result {
        Ok(code) => code,
        Err(failure) => console.fail(&failure),
    }
}

async fn dispatch(
    cli: Cli,
    environment: &Environment,
    console: &mut Console,
) -> Result<ExitCode, Failure> {
    let place = open::Place { config: cli.config.as_deref(), environment };
    match cli.command {
        #[cfg(feature = "sim")]
        Command::Demo(arguments) => {
            return crate::demo::run(arguments, environment, console).await;
        }
        #[cfg(feature = "sim")]
        Command::DemoService => crate::demo::service::run(console).await?,
        #[cfg(feature = "sim")]
        Command::Sim(arguments) => sim::run(arguments, environment, console).await?,
        Command::Serve => serve::run(&place, console).await?,
        Command::Init(arguments) => init::run(&arguments, &place, console)?,
        Command::Intercept(command) => intercept::run(&command, &place, console)?,
        Command::App(command) => app::run(command, &place, console).await?,
        Command::Key(command) => key::run(command, &place, console).await?,
        Command::Token(command) => return token::run(command, &place, console).await,
        Command::User(command) => user::run(command, &place, console).await?,
        Command::Grant(command) => grant::run(command, &place, console).await?,
        Command::Audit(arguments) => audit::run(&arguments, &place, console).await?,
        Command::Doctor => return doctor::run(&place, console).await,
        Command::CheckConfig => check::run(&place, console)?,
        Command::Rekey => rekey(&place, console).await?,
        Command::Openapi => reference::openapi(console)?,
        Command::Reference(arguments) => reference::run(&arguments, console)?,
    }
    Ok(ExitCode::SUCCESS)
}

async fn rekey(place: &open::Place<'_>, console: &mut Console) -> Result<(), Failure> {
    let open = place.open().await?;
    let Rekeyed { resealed, left: unopened } = open.broker.rekey(&open.actor).await?;
    let key = &open.settings.seal_with;
    let left: Vec<_> = open.broker.sealing_keys().await?;
    console.say(&format!("sealed {resealed} values anew with master key `{key}`"))?;
    console.hint(&format!(
        "each server must have been restarted with `{key}` before `seal_with` was switched and \
         `rekey` run: one that runs without it cannot read these values; restart such a server now"
    ))?;
    let unused: Vec<_> =
        open.settings.master_keys.iter().filter(|key| !left.contains(&key.id)).collect();
    for key in unused {
        console.hint(&format!("nothing is sealed with master key `{}` any more", key.id))?;
    }
    if unopened.is_empty() {
        return Ok(());
    }
    let hint = "an AppSecret can be set again with `xinfu app set-secret`; a token comes anew when \
                its app is removed and added";
    Err(Failure::new(format!("some values stay as they are: {}", unopened.join("; "))).hint(hint))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::Cli;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
