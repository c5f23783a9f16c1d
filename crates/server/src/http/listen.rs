//! Sockets: accepting connections, reading requests from them, and ending in good order.

use std::{
    error::Error as _,
    io,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures_util::future;
use hyper::{
    rt::{Read, Write},
    server::conn::http1,
    service::{Service as _, service_fn},
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{App, Limits, Service, Tls, patience::Patience};

/// Where clients come in.
#[derive(Debug)]
pub struct Listener {
    /// The socket.
    pub tcp: TcpListener,
    /// What it proves itself with; without it, it speaks plain HTTP.
    pub tls: Option<Tls>,
    /// What is there.
    pub serves: Serves,
}

/// What a listener serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Serves {
    /// The whole API.
    Everything,
    /// What stands in WeChat's place, and nothing else.
    Compatible,
    /// Metrics and health.
    Admin,
}

/// Serves the API on listeners until `shutdown`, then finishes what is in flight.
///
/// Each listener has [`Limits::connections`] for itself; they stop together. Once told to shut down it cancels [`App::draining`], which ends long polls at once, and goes on
/// for [`Limits::drain`], so that a load balancer hears of it from `/readyz`. Then it accepts nothing
/// more. Requests in flight are answered; what is not done after [`Limits::grace`] is cut off. On
/// return all tasks of the listeners have ended.
pub async fn serve(
    listeners: impl IntoIterator<Item = Listener>,
    app: App,
    shutdown: CancellationToken,
) {
    let limits = &app.limits;
    let tasks = TaskTracker::new();
    let (drained, stop) = (CancellationToken::new(), CancellationToken::new());
    let cut = CancellationToken::new();
    let _cut_when_dropped = cut.clone().drop_guard();
    let doors = listeners.into_iter().map(|listener| {
        let service = match listener.serves {
            Serves::Everything => Service::new(app.clone()),
            Serves::Compatible => Service::compatible(app.clone()),
            Serves::Admin => Service::admin(app.clone()),
        };
        let door = Door {
            http: http(limits),
            tls: listener.tls,
            handshake: limits.header_read_timeout,
            write_timeout: limits.write_timeout,
            service,
            stop: stop.clone(),
            cut: cut.clone(),
        };
        let places = Arc::new(Semaphore::new(limits.connections));
        door.accept_until(drained.clone(), listener.tcp, places, tasks.clone())
    });
    let told = async {
        shutdown.cancelled().await;
        app.draining.cancel();
        tokio::time::sleep(limits.drain).await;
        drained.cancel();
    };
    tokio::join!(future::join_all(doors), told);
    stop.cancel();
    tasks.close();
    if tokio::time::timeout(limits.grace, tasks.wait()).await.is_err() {
        tracing::warn!(connections = tasks.len(), "cutting off requests that take too long");
        cut.cancel();
        tasks.wait().await;
    }
    app.uploads.ended().await;
}

/// Waits for a free place first, so that a client that is too many stays in the system's queue.
async fn accept(
    tcp: &TcpListener,
    places: &Arc<Semaphore>,
) -> io::Result<(TcpStream, tokio::sync::OwnedSemaphorePermit)> {
    let place = Arc::clone(places).acquire_owned().await.map_err(io::Error::other)?;
    let (stream, _) = tcp.accept().await?;
    Ok((stream, place))
}

fn http(limits: &Limits) -> http1::Builder {
    /// Hyper needs so much at least.
    const LEAST: usize = 8 * 1024;
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(limits.header_read_timeout)
        // Nearly all answers are small: one buffer is cheaper than a list of them.
        .writev(false)
        .max_buf_size(limits.header_bytes.max(LEAST))
        .max_headers(limits.header_count);
    http
}

/// What a connection needs.
#[derive(Clone)]
struct Door {
    http: http1::Builder,
    tls: Option<Tls>,
    handshake: Duration,
    write_timeout: Duration,
    service: Service,
    /// No further requests.
    stop: CancellationToken,
    /// Not even those in flight.
    cut: CancellationToken,
}

impl Door {
    /// Lets connections in until there are to be no more.
    async fn accept_until(
        self,
        drained: CancellationToken,
        tcp: TcpListener,
        places: Arc<Semaphore>,
        tasks: TaskTracker,
    ) {
        if let Some(tls) = self.tls.clone() {
            let stop = self.stop.clone();
            tasks.spawn(async move {
                tokio::select! {
                    () = tls.keep() => {}
                    () = stop.cancelled() => {}
                }
            });
        }
        loop {
            let accepted = tokio::select! {
                biased;
                () = drained.cancelled() => return,
                accepted = accept(&tcp, &places) => accepted,
            };
            match accepted {
                Ok((stream, place)) => {
                    let door = self.clone();
                    tasks.spawn(async move {
                        door.serve_connection(stream).await;
                        drop(place);
                    });
                }
                Err(err) => {
                    // Out of file descriptors, most likely; those who wait are served later.
                    tracing::error!(error = %err, "cannot accept a connection");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
    }

    async fn serve_connection(&self, stream: TcpStream) {
        // Answers are single writes; waiting for more only delays them.
        let _ = stream.set_nodelay(true);
        let stream = Patience::new(stream, self.write_timeout);
        let Some(tls) = &self.tls else {
            return self.serve_requests(TokioIo::new(stream)).await;
        };
        let handshake = tokio::time::timeout(self.handshake, tls.acceptor().accept(stream));
        let shaken = tokio::select! {
            biased;
            () = self.stop.cancelled() => return,
            shaken = handshake => shaken,
        };
        match shaken {
            Ok(Ok(stream)) => self.serve_requests(TokioIo::new(stream)).await,
            Ok(Err(err)) => tracing::debug!(error = %err, "a TLS handshake failed"),
            Err(_) => tracing::debug!("a TLS handshake took too long"),
        }
    }

    async fn serve_requests<I: Read + Write + Unpin + Send + 'static>(&self, io: I) {
        /// How long one that has never asked anything may still begin when everything stops.
        const LATE: Duration = Duration::from_secs(1);
        let begun = Arc::new(AtomicBool::new(false));
        let (service, begin) = (self.service.clone(), Arc::clone(&begun));
        let service = service_fn(move |request| {
            begin.store(true, Ordering::Relaxed);
            service.call(request)
        });
        let mut connection = pin!(self.http.serve_connection(io, service));
        let ended = tokio::select! {
            biased;
            () = self.cut.cancelled() => return,
            ended = connection.as_mut() => ended,
            () = self.stop.cancelled() => {
                connection.as_mut().graceful_shutdown();
                let silent = async {
                    tokio::time::sleep(LATE).await;
                    if begun.load(Ordering::Relaxed) {
                        std::future::pending::<()>().await;
                    }
                };
                tokio::select! {
                    biased;
                    () = self.cut.cancelled() => return,
                    ended = connection.as_mut() => ended,
                    () = silent => return,
                }
            }
        };
        if let Err(err) = ended {
            // Only the kind of error: its source may quote what the client sent.
            let io = err.source().and_then(|source| source.downcast_ref::<io::Error>());
            tracing::debug!(error = %err, io = io.map(|io| io.kind().to_string()), "a connection ended");
        }
    }
}
