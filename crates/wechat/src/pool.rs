//! Kept connections for forwarded calls.
//!
//! A connection is taken, carries one call, and is put back when the answer has been read to its
//! end. The newest is taken first, so that the others grow old and are dropped. One that broke
//! while it was idle is noticed before anything is sent on it; in the moment between, hyper gives
//! the call back unsent.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use http::Uri;
use hyper::{body::SizeHint, client::conn::http1, rt::Executor as _};
use hyper_util::rt::TokioExecutor;
use tokio::time::Instant;
use tower::{Service as _, ServiceExt as _};

use crate::{
    connect::{BoxError, Connector},
    forward::Upload,
};

/// How long an unused connection is kept; gateways drop them without a word.
const KEEP_IDLE: Duration = Duration::from_secs(20);

/// The most connections that are kept unused.
const MOST_IDLE: usize = 1024;

/// How many connections that are still busy with their last call are passed over.
const MOST_BUSY: usize = 4;

pub(crate) type Sender = http1::SendRequest<Upload>;

/// The connections to one host.
#[derive(Clone)]
pub(crate) struct Pool(Arc<Inner>);

struct Inner {
    /// Scheme and authority.
    host: Uri,
    connector: Connector,
    idle: Mutex<VecDeque<Idle>>,
}

struct Idle {
    sender: Sender,
    since: Instant,
}

/// A connection that carries a call.
pub(crate) struct Lease {
    sender: Sender,
    pool: Pool,
    /// Whether it carries no other call after this one.
    once: bool,
}

impl Pool {
    pub(crate) fn new(host: Uri, connector: Connector) -> Self {
        Self(Arc::new(Inner { host, connector, idle: Mutex::default() }))
    }

    /// A kept connection that is free.
    pub(crate) fn kept(&self) -> Option<Lease> {
        let now = Instant::now();
        let mut idle = self.idle();
        while idle.front().is_some_and(|oldest| now - oldest.since > KEEP_IDLE) {
            idle.pop_front();
        }
        let mut at = idle.len();
        let mut busy = 0;
        while at > 0 && busy < MOST_BUSY {
            at -= 1;
            if idle[at].sender.is_closed() {
                idle.remove(at);
            } else if idle[at].sender.is_ready() {
                let Idle { sender, .. } = idle.remove(at)?;
                return Some(Lease { sender, pool: self.clone(), once: false });
            } else {
                busy += 1;
            }
        }
        None
    }

    /// A new connection.
    pub(crate) async fn connect(&self) -> Result<Lease, BoxError> {
        let mut connector = self.0.connector.clone();
        let stream = connector.ready().await?.call(self.0.host.clone()).await?;
        /// Buffers grow to so much, and a kept connection keeps them.
        const BUFFER: usize = 64 * 1024;
        // Calls are small: one buffer is cheaper than a list of them.
        let (sender, connection) =
            http1::Builder::new().writev(false).max_buf_size(BUFFER).handshake(stream).await?;
        TokioExecutor::new().execute(async move {
            // Who waits for an answer on it hears of its end; nobody else has to.
            drop(connection.await);
        });
        Ok(Lease { sender, pool: self.clone(), once: false })
    }

    fn idle(&self) -> MutexGuard<'_, VecDeque<Idle>> {
        self.0.idle.lock().expect("nothing panics while it holds this lock")
    }
}

impl Lease {
    pub(crate) fn sender(&mut self) -> &mut Sender {
        &mut self.sender
    }

    /// Notes what is about to be sent: hyper's buffer grows with a large body and never shrinks, so
    /// that connection is not kept.
    pub(crate) fn will_carry(&mut self, size: &SizeHint) {
        const LARGE: u64 = 64 * 1024;
        self.once = size.upper().is_none_or(|most| most > LARGE);
    }

    /// Puts the connection back, for another call.
    pub(crate) fn put_back(self) {
        let Self { sender, pool, once } = self;
        let mut idle = pool.idle();
        if !once && !sender.is_closed() && idle.len() < MOST_IDLE {
            idle.push_back(Idle { sender, since: Instant::now() });
        }
    }
}
