//! `xinfu sim`: the simulated WeChat alone.

use std::net::SocketAddr;

use ::sim::{AppKind, AppSpec, Options, Sim};
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
    /// An app that it knows, with its simulated AppSecret, and `official` (unless told), `test`,
    /// `mini-program` or `website`; logins come back to this machine; may be repeated
    #[arg(long = "app", value_name = "APPID:SECRET[:KIND]", value_parser = app)]
    apps: Vec<AppSpec>,
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
    for app in arguments.apps {
        sim.add_app(app);
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

fn app(text: &str) -> Result<AppSpec, String> {
    let mut parts = text.splitn(3, ':');
    let mut next = || parts.next().filter(|part| !part.is_empty());
    let (Some(appid), Some(secret)) = (next(), next()) else {
        return Err("`APPID:SECRET` or `APPID:SECRET:KIND` is expected".to_owned());
    };
    let kind = match parts.next() {
        None | Some("official") => AppKind::Official,
        Some("test") => AppKind::Test,
        Some("mini-program") => AppKind::MiniProgram,
        Some("website") => AppKind::Website,
        Some(other) => {
            return Err(format!(
                "no kind is called `{other}`; there are `official`, `test`, `mini-program` and \
                 `website`"
            ));
        }
    };
    Ok(AppSpec { kind, ..AppSpec::new(appid, secret) }.with_loopback_redirects())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_app_has_a_kind_and_logins_that_come_back_to_this_machine() {
        for (text, kind) in [
            ("wx1:s", AppKind::Official),
            ("wx1:s:official", AppKind::Official),
            ("wx1:s:test", AppKind::Test),
            ("wx1:s:mini-program", AppKind::MiniProgram),
            ("wx1:s:website", AppKind::Website),
        ] {
            let spec = app(text).unwrap();
            assert_eq!((spec.appid.as_str(), spec.secret.as_str(), spec.kind), ("wx1", "s", kind));
            assert_eq!(spec.redirect_hosts, ["localhost", "127.0.0.1", "[::1]"]);
        }
    }

    #[test]
    fn anything_else_is_refused() {
        for text in ["", "wx1", "wx1:", ":s", "wx1::test", "::"] {
            assert!(app(text).unwrap_err().contains("is expected"), "{text}");
        }
        for text in ["wx1:s:", "wx1:s:shop", "wx1:s:test:x", "wx1:s:Test"] {
            assert!(app(text).unwrap_err().contains("`mini-program`"), "{text}");
        }
    }
}
