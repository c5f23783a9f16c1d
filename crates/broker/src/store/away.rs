//! Servers that do not answer.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

/// How long a server that did not answer is left alone.
const LEFT_ALONE: Duration = Duration::from_millis(500);

/// Until when a server is left alone, since it did not answer: whoever wants something of it then
/// fails at once, instead of waiting for the same. Cloning gives another handle to the same.
#[derive(Clone)]
pub(super) struct Away(Arc<Mutex<Instant>>);

impl Away {
    /// Nobody has asked yet.
    pub(super) fn new() -> Self {
        Self(Arc::new(Mutex::new(Instant::now())))
    }

    fn until(&self) -> MutexGuard<'_, Instant> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether it has not answered a moment ago.
    pub(super) fn is_recent(&self) -> bool {
        Instant::now() < *self.until()
    }

    /// It has just not answered.
    pub(super) fn note(&self) {
        *self.until() = Instant::now() + LEFT_ALONE;
    }
}
