//! `xinfu sim`: the simulated WeChat alone.

use std::net::SocketAddr;

use ::sim::{AppSpec, Options, Sim};
use clock::Clock;
use tokio::net::TcpListener;

use super::{Console, Failure, serve::stop_signals};
use crate::{
    config::{Environment, LogFormat},
    telemetry,
};

/// What to simulate.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Where it answers as WeChat does
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:7090")]
    listen: SocketAddr,
    /// Where it is controlled
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:7091")]
    control: SocketAddr,
    /// An app that it knows, with its simulated AppSecret; may be repeated
    #[arg(long = "app", value_name = "APPID:SECRET", value_parser = app)]
    apps: Vec<(String, String)>,
    /// Decides tokens and chance; the same seed and the same calls give the same answers
    #[arg(long)]
    seed: Option<u64>,
}

/// Serves until told to stop.
pub(crate) async fn run(
    arguments: Arguments,
    environment: &Environment,
    console: &mut Console,
) -> Result<(), Failure> {
    telemetry::start(LogFormat::Human, "info", environment)?;
    let signals = stop_signals()?;
    let api = bind(arguments.listen, "--listen").await?;
    let control = bind(arguments.control, "--control").await?;
    let seed = arguments.seed.map_or_else(random_seed, Ok)?;
    let sim = Sim::new(Options::new(Clock::shifted(), seed));
    for (appid, secret) in arguments.apps {
        sim.add_app(AppSpec::new(appid, secret));
    }
    console.print(&format!(
        "simulated WeChat on http://{}, control on http://{}, seed {seed}",
        api.local_addr()?,
        control.local_addr()?
    ))?;
    sim.serve(api, Some(control), signals).await;
    Ok(())
}

/// A seed that nobody chose.
pub(crate) fn random_seed() -> Result<u64, Failure> {
    let mut bytes = [0; 8];
    aws_lc_rs::rand::fill(&mut bytes)
        .map_err(|_| Failure::new("the system gives no randomness"))?;
    // Short enough to be typed.
    Ok(u64::from_le_bytes(bytes) % 1_000_000)
}

async fn bind(address: SocketAddr, option: &str) -> Result<TcpListener, Failure> {
    TcpListener::bind(address).await.map_err(|err| {
        Failure::new(format!("cannot listen on `{address}`: {err}"))
            .hint(format!("`{option} ADDRESS` names another address; port 0 takes a free one"))
    })
}

fn app(text: &str) -> Result<(String, String), String> {
    match text.split_once(':') {
        Some((appid, secret)) if !appid.is_empty() && !secret.is_empty() => {
            Ok((appid.to_owned(), secret.to_owned()))
        }
        _ => Err("`APPID:SECRET` is expected".to_owned()),
    }
}
