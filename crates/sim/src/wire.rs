//! A way to the simulator without sockets: for tests whose time is simulated to the last detail, and
//! in which a network fails when it is told to.

use std::{
    io,
    net::IpAddr,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Waker},
};

use hyper_util::{
    client::legacy::connect::{Connected, Connection},
    rt::TokioIo,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf},
    sync::mpsc,
};
use tokio_util::task::TaskTracker;
use tower::Service;

use crate::Sim;

/// So many bytes are on their way at most.
const CAPACITY: usize = 64 * 1024;

/// The end of a client: connections are made by it. Cloning gives another handle to the same.
#[derive(Clone)]
pub struct Wire {
    line: Arc<Line>,
    arrivals: mpsc::UnboundedSender<DuplexStream>,
}

/// The end of the simulator.
pub struct WireEnd {
    ip: IpAddr,
    arrivals: mpsc::UnboundedReceiver<DuplexStream>,
}

#[derive(Default)]
struct Line {
    cut: AtomicBool,
    /// Who waits for it to be whole again.
    waiting: Mutex<Vec<Waker>>,
}

/// A wire whose client has this address.
pub fn wire(ip: IpAddr) -> (Wire, WireEnd) {
    let (sender, arrivals) = mpsc::unbounded_channel();
    (Wire { line: Arc::default(), arrivals: sender }, WireEnd { ip, arrivals })
}

impl Wire {
    /// Cuts the wire, or mends it. While it is cut nothing passes, and nobody is told.
    pub fn cut(&self, cut: bool) {
        self.line.cut.store(cut, Ordering::Release);
        let mut waiting = self.line.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.drain(..).for_each(Waker::wake);
    }
}

impl WireEnd {
    /// Lets a simulator answer on each connection that is made, for ever.
    pub async fn serve(mut self, sim: Sim) {
        let tasks = TaskTracker::new();
        while let Some(stream) = self.arrivals.recv().await {
            tasks.spawn(sim.clone().serve_connection(stream, self.ip));
        }
    }
}

impl Line {
    /// Waits while the wire is cut.
    fn poll_whole(&self, context: &Context<'_>) -> Poll<()> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.cut.load(Ordering::Acquire) {
            return Poll::Ready(());
        }
        waiting.push(context.waker().clone());
        Poll::Pending
    }
}

impl Service<http::Uri> for Wire {
    type Response = TokioIo<Plug>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<TokioIo<Plug>>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: http::Uri) -> Self::Future {
        let Self { line, arrivals } = self.clone();
        Box::pin(async move {
            std::future::poll_fn(|context| line.poll_whole(context)).await;
            let (near, far) = tokio::io::duplex(CAPACITY);
            arrivals.send(far).map_err(|_| io::Error::from(io::ErrorKind::ConnectionRefused))?;
            Ok(TokioIo::new(Plug { stream: near, line }))
        })
    }
}

/// A connection by wire.
pub struct Plug {
    stream: DuplexStream,
    line: Arc<Line>,
}

impl Connection for Plug {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl AsyncRead for Plug {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        std::task::ready!(self.line.poll_whole(context));
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Plug {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        std::task::ready!(self.line.poll_whole(context));
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
