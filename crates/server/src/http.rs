//! The service API over HTTP.
//!
//! From the top: `listen` accepts connections and reads requests; `service` answers a token read
//! from memory on the spot and hands other requests of the API to `call`, which takes a request
//! through its policy (`policy`), its input (`input`) and its operation (`token`, `ticket`, `user`,
//! `oauth`, `grant`, `mini`, `health`).
//! Calls of WeChat's API come in two ways: from services that know us (`proxy`), and from SDKs that
//! take us for WeChat (`compatible`, which has a policy of its own). Both are carried by `carry`, their
//! bodies by `upload`.
//! What goes wrong is worded in `problem`, the only place with status codes for it. `openapi`
//! describes all of it, from the same table of routes.

mod answer;
mod call;
mod carry;
mod compatible;
mod grant;
mod health;
mod input;
mod listen;
mod metrics;
mod mini;
mod oauth;
mod openapi;
mod patience;
mod policy;
mod problem;
mod proxy;
mod request_id;
mod service;
mod ticket;
mod tls;
mod token;
mod upload;
mod user;

use std::{fmt, time::Duration};

use broker::Broker;
use tokio_util::sync::CancellationToken;

pub use compatible::{COMPATIBLE, Compatible, CompatibleRoute};
pub(crate) use compatible::{CallQuery, Params};
pub use listen::{Listener, Serves, serve};
pub use metrics::metrics_markdown;
pub use openapi::openapi;
pub use policy::{Access, Operation, ROUTES, Route};
pub use problem::{ProblemType, problems_markdown};
pub use service::{ADMIN_PATHS, Payload, Service};
pub use tls::{Tls, TlsError};

pub(crate) use input::{parse_held_openid, parse_openid};

use request_id::RequestIds;
use upload::Uploads;

/// What the calls of the API work with. Cloning gives another handle to the same.
#[derive(Clone)]
pub struct App {
    /// The product.
    pub broker: Broker,
    /// What a client may take.
    pub limits: Limits,
    /// Cancelled when the server is about to stop: `/readyz` says so, and long polls end at once.
    /// [`serve`] cancels it when it is told to shut down.
    pub draining: CancellationToken,
    request_ids: RequestIds,
    uploads: Uploads,
}

impl App {
    /// An app that is not draining.
    pub fn new(broker: Broker, limits: Limits) -> Self {
        Self {
            broker,
            uploads: Uploads::new(&limits),
            limits,
            draining: CancellationToken::new(),
            request_ids: RequestIds::default(),
        }
    }
}

impl fmt::Debug for App {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("App").field("limits", &self.limits).finish_non_exhaustive()
    }
}

/// What a client may take of the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The most bytes of a request's body.
    pub body: usize,
    /// The most bytes of a request's head; at least 8 KiB. It is read in large steps, so that one
    /// up to twice as long may pass.
    pub header_bytes: usize,
    /// The most header fields of a request.
    pub header_count: usize,
    /// How long a client may take for a request's head, counted from when the connection is ready
    /// for it: an idle connection is closed after this time too. A TLS handshake has as long.
    pub header_read_timeout: Duration,
    /// How long a request may take: its body to arrive, and then its answer to be found. Long polls
    /// have the time they ask for in addition.
    pub request_timeout: Duration,
    /// How long an answer may wait for its client to take more of it; then the connection is
    /// closed.
    pub write_timeout: Duration,
    /// The most connections of one listener; more wait to be accepted.
    pub connections: usize,
    /// How long connections are still accepted after a shutdown began.
    pub drain: Duration,
    /// How long requests in flight may go on after that.
    pub grace: Duration,
    /// The most openids of one batch.
    pub batch: usize,
    /// The most bytes of the body of a call that is carried to WeChat.
    pub call_body: usize,
    /// The most bytes of such a body that is kept until the answer is there, so that the call can
    /// be sent again.
    pub kept_body: usize,
    /// The most bytes of all bodies that are kept at the same time; beyond it they are not kept.
    pub kept_bodies: usize,
    /// How long WeChat may take to begin its answer to a call that is carried, to go on with it, or
    /// to take more of the call.
    pub call_patience: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            body: 1024 * 1024,
            header_bytes: 32 * 1024,
            header_count: 100,
            header_read_timeout: Duration::from_secs(10),
            request_timeout: Duration::from_secs(30),
            write_timeout: Duration::from_secs(30),
            connections: 10_000,
            drain: Duration::ZERO,
            grace: Duration::from_secs(30),
            batch: 10_000,
            call_body: 128 * 1024 * 1024,
            kept_body: 1024 * 1024,
            kept_bodies: 64 * 1024 * 1024,
            call_patience: Duration::from_secs(30),
        }
    }
}
