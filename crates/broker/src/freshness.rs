//! Whether memory is near enough to the store to say who may call.
//!
//! A client key that was revoked while the store is out of reach goes on working in this process, so
//! that has an end.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;

/// Knows when memory was last brought up to the store.
pub(crate) struct Freshness {
    longest: Duration,
    last: Mutex<Option<Instant>>,
    lost: AtomicBool,
    /// Whether the last look at the store failed.
    failing: AtomicBool,
}

impl Freshness {
    pub(crate) fn new(longest: Duration) -> Self {
        Self {
            longest,
            last: Mutex::default(),
            lost: AtomicBool::new(false),
            failing: AtomicBool::new(false),
        }
    }

    /// Notes that memory is up to the store now.
    pub(crate) fn note(&self) {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        self.failing.store(false, Ordering::Relaxed);
        if self.lost.swap(false, Ordering::Relaxed) {
            tracing::info!("client keys are known again");
        }
    }

    /// Notes that the store did not answer.
    pub(crate) fn note_failure(&self) {
        self.failing.store(true, Ordering::Relaxed);
    }

    /// Whether the store did not answer the last time.
    pub(crate) fn is_failing(&self) -> bool {
        self.failing.load(Ordering::Relaxed)
    }

    /// Whether it has been too long. Takes no lock.
    pub(crate) fn is_lost(&self) -> bool {
        self.lost.load(Ordering::Relaxed)
    }

    /// Looks every second whether it has been too long.
    pub(crate) async fn watch(&self) {
        const EVERY: Duration = Duration::from_secs(1);
        let begun = Instant::now();
        loop {
            tokio::time::sleep(EVERY).await;
            let last = self.last.lock().unwrap_or_else(PoisonError::into_inner).unwrap_or(begun);
            if last.elapsed() > self.longest && !self.lost.swap(true, Ordering::Relaxed) {
                tracing::error!(
                    seconds = self.longest.as_secs(),
                    "the store is out of reach for too long: no client key is taken for good"
                );
            }
        }
    }
}
