//! The binary `xinfu`: parses the command line, runs the command, and says how it went.

use std::process::ExitCode;

use clap::Parser;
use server::{
    cli::{self, Cli, Console},
    config::Environment,
};

fn main() -> ExitCode {
    let cli = Cli::parse();
    cli::run(cli, &Environment::of_process(), &mut Console::of_process())
}
