//! Everything that a socket or an operator touches: HTTP, configuration, the command line, the
//! demonstration. What is decided about tokens is decided in [`broker`]; this crate carries
//! questions and answers.

pub mod cli;
pub mod config;
#[cfg(feature = "sim")]
pub mod demo;
pub mod fuzzing;
pub mod http;
pub mod intercept;
pub mod telemetry;
