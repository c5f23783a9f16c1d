//! `xinfu serve`: the server.

use std::{future::Future, io, net::SocketAddr, time::Duration};

use clock::Clock;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tracing::Level;

use super::{
    Console, Failure,
    open::{Open, Place},
};
use crate::{
    config::{Loaded, LogFormat, Settings},
    http::{self, App, Listener, Serves, Tls},
    telemetry,
};

/// Runs the server. Once the log has begun and machines read it, what went wrong is told there.
pub(crate) async fn run(place: &Place<'_>, console: &mut Console) -> Result<(), Failure> {
    let loaded = place.load()?;
    let settings = &loaded.settings;
    telemetry::start(settings.log_format, &settings.log_level, place.environment)?;
    let result = serve(place, &loaded, console).await;
    result.map_err(|failure| {
        let by_log = settings.log_format == LogFormat::Json && tracing::enabled!(Level::ERROR);
        if by_log && !failure.told {
            tracing::error!(hint = failure.hints.join("; "), "{}", failure.message);
        }
        Failure { told: failure.told || by_log, ..failure }
    })
}

/// Opens everything, serves until told to stop, and finishes what is in flight.
async fn serve(place: &Place<'_>, loaded: &Loaded, console: &mut Console) -> Result<(), Failure> {
    let settings = &loaded.settings;
    for name in &loaded.unknown_variables {
        tracing::warn!(name, "a variable is set, but no key of the configuration has it");
    }
    for (what, remedy) in settings.in_the_clear() {
        tracing::warn!(remedy, "{what}");
    }
    // Before the first line is printed, so that whoever waits for it can stop us in good order.
    let signals = stop_signals()?;
    let open = place.open_with(settings.clone()).await?;
    let listener = listen(settings).await?;
    let intercept = listen_in_wechats_place(settings).await?;
    let admin = listen_for_operators(settings).await?;

    let address = listener.tcp.local_addr()?;
    let scheme = if listener.tls.is_some() { "https" } else { "http" };
    let apps = open.broker.apps().len();
    let plural = if apps == 1 { "" } else { "s" };
    let mut line = format!(
        "xinfu {} serves {apps} app{plural} on {scheme}://{address}, store `{}`",
        env!("CARGO_PKG_VERSION"),
        settings.store
    );
    if let Some(intercept) = &intercept {
        let address = intercept.tcp.local_addr()?;
        line.push_str(&format!("\nit stands in WeChat's place on https://{address}"));
    }
    // A server goes on when nobody reads what it prints.
    if let Err(err) = console.print(&line) {
        tracing::warn!(error = %err, "the start line was not printed");
    }

    let stop = CancellationToken::new();
    let app = App::new(open.broker.clone(), settings.limits.clone());
    let served =
        http::serve([Some(listener), intercept, admin].into_iter().flatten(), app, stop.clone());
    let work = async {
        serve_and_refresh(&open, served).await;
        finish(&open).await;
        tracing::info!("stopped");
        Ok(())
    };
    let told_twice = async {
        signals.await;
        tracing::info!("stopping: finishing what is in flight");
        stop.cancel();
        stop_signals()?.await;
        Err(Failure::new("told to stop a second time: what was in flight is cut off"))
    };
    tokio::select! {
        worked = work => worked,
        cut = told_twice => cut,
    }
}

/// Serves, and refreshes for as long: a request in flight may still need a token.
async fn serve_and_refresh(open: &Open, served: impl Future<Output = ()>) {
    let done = CancellationToken::new();
    let served = async {
        served.await;
        done.cancel();
    };
    tokio::join!(served, open.broker.run(done.clone()));
}

/// Waits for the refreshes that are under way: what WeChat has answered must be stored.
async fn finish(open: &Open) {
    /// Longer than any call to WeChat may take.
    const GRACE: Duration = Duration::from_secs(35);
    if tokio::time::timeout(GRACE, open.finish()).await.is_err() {
        tracing::error!(tasks = open.tasks.len(), "stopping although refreshes are under way");
    }
}

/// Binds the listener for services.
async fn listen(settings: &Settings) -> Result<Listener, Failure> {
    let tls = settings.tls()?;
    let address = settings.api.address;
    let tcp = TcpListener::bind(address).await;
    let tcp = tcp.map_err(|err| cannot_listen("listen.api", address, &err))?;
    Ok(Listener { tcp, tls, serves: Serves::Everything })
}

/// Binds the listener in WeChat's place, where there is to be one.
async fn listen_in_wechats_place(settings: &Settings) -> Result<Option<Listener>, Failure> {
    let (Some(intercept), Some(authority)) = (&settings.intercept, settings.authority()?) else {
        return Ok(None);
    };
    let tls = Tls::issued_by(authority, Clock::real())
        .map_err(|err| Failure::usage(format!("`listen.intercept_ca` cannot be used: {err}")))?;
    let address = intercept.address;
    let tcp = TcpListener::bind(address).await;
    let tcp = tcp.map_err(|err| cannot_listen("listen.intercept", address, &err))?;
    Ok(Some(Listener { tcp, tls: Some(tls), serves: Serves::Compatible }))
}

/// Binds the listener for operators, where there is to be one.
async fn listen_for_operators(settings: &Settings) -> Result<Option<Listener>, Failure> {
    let Some(admin) = &settings.admin else { return Ok(None) };
    let tls = admin.tls("admin")?;
    let tcp = TcpListener::bind(admin.address).await;
    let tcp = tcp.map_err(|err| cannot_listen("listen.admin", admin.address, &err))?;
    Ok(Some(Listener { tcp, tls, serves: Serves::Admin }))
}

/// Why the address of a key cannot be listened on, and what to do.
pub(crate) fn cannot_listen(key: &str, address: SocketAddr, err: &io::Error) -> Failure {
    let failure = Failure::new(format!("cannot listen on `{address}`: {err}"));
    failure.hint(match err.kind() {
        io::ErrorKind::AddrInUse => {
            format!("another server has this port; `{key}` names another")
        }
        io::ErrorKind::PermissionDenied if address.port() < 1024 => format!(
            "ports below 1024 need a right: let `{key}` name a higher one, or give the process \
             `CAP_NET_BIND_SERVICE`"
        ),
        _ => format!("let `{key}` name an address of this machine"),
    })
}

/// Waits for SIGTERM, SIGINT or Ctrl-C; listens for them from the moment it is called.
pub(crate) fn stop_signals() -> Result<impl Future<Output = ()>, Failure> {
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        let (mut terminate, mut interrupt) =
            (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        Ok(async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        })
    }
    #[cfg(not(unix))]
    Ok(async {
        // Without a way to hear of it, the process is ended by the system.
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_low_port_has_its_own_hint() {
        let hint = |address: &str, kind: io::ErrorKind| {
            let failure = cannot_listen("listen.api", address.parse().unwrap(), &kind.into());
            failure.hints.join(" ")
        };
        let denied = io::ErrorKind::PermissionDenied;
        assert!(hint("127.0.0.1:443", denied).contains("CAP_NET_BIND_SERVICE"));
        assert!(!hint("127.0.0.1:7080", denied).contains("CAP_NET_BIND_SERVICE"));
        assert!(hint("127.0.0.1:443", io::ErrorKind::AddrInUse).contains("another server"));
    }
}
