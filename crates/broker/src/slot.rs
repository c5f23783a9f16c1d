//! The place in memory where one credential lives.
//!
//! Readers load `current` without a lock. Everything else about a credential (who is refreshing
//! it, what is wrong with it) is behind a mutex that readers touch only when they find nothing
//! usable.

use std::{
    fmt,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwapOption;
use clock::Timestamp;
use tokio::sync::{Notify, watch};

use crate::{
    credential::{CredentialId, Trouble},
    store::CredentialRow,
};

/// The value of a credential: a token or a ticket, told apart by the slot that holds it.
#[derive(Clone)]
pub(crate) struct Value(Arc<str>);

impl Value {
    pub(crate) fn new(value: impl Into<Arc<str>>) -> Self {
        Self(value.into())
    }

    pub(crate) fn expose(&self) -> &Arc<str> {
        &self.0
    }
}

impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Value([redacted])")
    }
}

/// A clock that goes back by more than this has been set back; by less, it was brought into step.
pub(crate) const SET_BACK: Duration = Duration::from_secs(60);

/// One generation of a credential as held in memory.
#[derive(Clone, Debug)]
pub(crate) struct Held {
    pub(crate) value: Value,
    pub(crate) hash: [u8; 32],
    pub(crate) generation: u64,
    pub(crate) sent: Timestamp,
    pub(crate) expires_at: Timestamp,
    pub(crate) refresh_at: Timestamp,
    pub(crate) dead: bool,
}

impl Held {
    pub(crate) fn from_row(row: &CredentialRow, value: Value) -> Self {
        Self {
            value,
            hash: row.hash,
            generation: row.generation,
            sent: row.sent,
            expires_at: row.expires_at,
            refresh_at: row.refresh_at,
            dead: row.dead,
        }
    }

    /// Whether it may be handed out at `now` to somebody who needs it for `min_ttl`.
    pub(crate) fn usable(&self, now: Timestamp, min_ttl: Duration) -> bool {
        !self.dead && now + min_ttl < self.expires_at && !self.is_of_the_future(now)
    }

    /// Whether it is time to replace it.
    pub(crate) fn due(&self, now: Timestamp) -> bool {
        self.dead || now >= self.refresh_at || now >= self.expires_at || self.is_of_the_future(now)
    }

    /// Whether it was fetched by a clock that has been set back since, so that its times mean
    /// nothing.
    fn is_of_the_future(&self, now: Timestamp) -> bool {
        self.sent > now + SET_BACK
    }
}

/// What a piece of work on a credential ended with: nothing wrong, or a trouble.
pub(crate) type Outcome = Result<(), Trouble>;

/// A piece of work on a credential that others can wait for.
///
/// At most one is under way because it is looked for and set under one lock, that of [`State`]. It is
/// made of the standard library's mutex and tokio's watch channel alone: no order of atomic
/// operations of our own says who starts it or who wakes, so that there is none to prove under loom.
#[derive(Clone)]
pub(crate) struct Flight(watch::Receiver<Option<Outcome>>);

impl Flight {
    /// A flight, and the means to end it.
    pub(crate) fn new() -> (watch::Sender<Option<Outcome>>, Self) {
        let (end, flight) = watch::channel(None);
        (end, Self(flight))
    }

    /// Waits for the end. `None`: its task died without one.
    pub(crate) async fn ended(mut self) -> Option<Outcome> {
        self.0.wait_for(Option::is_some).await.ok().and_then(|outcome| outcome.clone())
    }

    fn running(&self) -> bool {
        self.0.borrow().is_none() && self.0.has_changed().is_ok()
    }
}

/// What is going on with a credential.
#[derive(Default)]
pub(crate) struct State {
    flight: Option<Flight>,
    /// What is wrong, as last seen in the store or by ourselves. Most apps have none.
    trouble: Option<Box<Trouble>>,
    /// What the last check after a report found, unless it replaced the token.
    pub(crate) verdict: Option<Box<Verdict>>,
    /// A generation that the store could not take yet.
    pub(crate) unstored: Option<Box<Unstored>>,
    /// The store changed while a flight was under way, and was not read again.
    missed_change: bool,
}

/// A generation that waits for the store.
#[derive(Clone)]
pub(crate) struct Unstored {
    pub(crate) row: CredentialRow,
    /// The stored generation that it goes over.
    pub(crate) over: u64,
}

/// What a check after a report found.
#[derive(Clone, Copy)]
pub(crate) struct Verdict {
    pub(crate) generation: u64,
    pub(crate) at: Timestamp,
    /// It works; otherwise nothing could be found out.
    pub(crate) alive: bool,
    /// So long after it, a refusal of a later call is checked again.
    pub(crate) news_after: Duration,
}

impl Verdict {
    /// So long it answers whoever says that the token failed.
    pub(crate) const KEPT: Duration = Duration::from_secs(10);

    /// What was found at `at`, after what was found before. Where the token is found to work again
    /// and again after refusals that we saw, the calls are at fault, and it is checked ever more
    /// rarely. What others say of it changes nothing in that.
    pub(crate) fn new(
        before: Option<&Self>,
        generation: u64,
        at: Timestamp,
        alive: bool,
        seen: bool,
    ) -> Self {
        const FIRST: Duration = Duration::from_secs(1);
        let again = before.filter(|before| {
            before.alive && before.generation == generation && at < before.at + Self::KEPT * 2
        });
        let growth = if seen { 2 } else { 1 };
        let news_after = again.map_or(FIRST, |before| Self::KEPT.min(before.news_after * growth));
        Self { generation, at, alive, news_after }
    }
}

impl State {
    /// The work under way, if any.
    pub(crate) fn flight(&self) -> Option<Flight> {
        self.flight.clone().filter(Flight::running)
    }

    pub(crate) fn set_flight(&mut self, flight: Flight) {
        self.flight = Some(flight);
    }

    /// What is wrong.
    pub(crate) fn trouble(&self) -> Option<&Trouble> {
        self.trouble.as_deref()
    }

    /// Notes what is wrong, or that nothing is.
    pub(crate) fn set_trouble(&mut self, trouble: Option<Trouble>) {
        self.trouble = trouble.map(Box::new);
    }

    /// Notes that whoever ends the flight has to read the store again.
    pub(crate) fn miss_change(&mut self) {
        self.missed_change = true;
    }

    /// Whether the store has to be read again, now that the flight has ended.
    pub(crate) fn take_missed_change(&mut self) -> bool {
        std::mem::take(&mut self.missed_change)
    }
}

/// The place of one credential.
pub(crate) struct Slot {
    pub(crate) id: CredentialId,
    current: ArcSwapOption<Held>,
    /// Bumped by each change of `current`, under the lock of `state`; lets a slow reader of the
    /// store see that it is late.
    version: AtomicU64,
    /// When somebody last asked, in milliseconds since the epoch.
    used_at: AtomicI64,
    changed: Notify,
    state: Mutex<State>,
}

impl Slot {
    /// The version of a slot that nothing was put into yet.
    pub(crate) const FIRST_VERSION: u64 = 0;

    pub(crate) fn new(id: CredentialId) -> Self {
        Self {
            id,
            current: ArcSwapOption::empty(),
            version: AtomicU64::new(Self::FIRST_VERSION),
            used_at: AtomicI64::new(0),
            changed: Notify::new(),
            state: Mutex::default(),
        }
    }

    /// The current generation if it is usable. Takes no lock.
    pub(crate) fn usable(&self, now: Timestamp, min_ttl: Duration) -> Option<Arc<Held>> {
        let held = self.current.load();
        held.as_ref().filter(|held| held.usable(now, min_ttl)).cloned()
    }

    /// The current generation, usable or not.
    pub(crate) fn held(&self) -> Option<Arc<Held>> {
        self.current.load_full()
    }

    /// Whether there is something to fetch.
    pub(crate) fn due(&self, now: Timestamp) -> bool {
        self.current.load().as_ref().is_none_or(|held| held.due(now))
    }

    pub(crate) fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    /// Makes `held` current and wakes who waits for a change.
    pub(crate) fn set(&self, held: Option<Held>) {
        self.set_under(&self.state(), held);
    }

    /// Says something new about the current generation, unless there is another by now.
    pub(crate) fn update(&self, held: Held) {
        let state = self.state();
        if self.held().is_some_and(|now| now.generation == held.generation) {
            self.set_under(&state, Some(held));
        }
    }

    /// The same as [`Slot::set`] for who holds the lock already, so that nothing comes between a
    /// look and a change.
    pub(crate) fn set_under(&self, _state: &State, held: Option<Held>) {
        self.current.store(held.map(Arc::new));
        self.version.fetch_add(1, Ordering::AcqRel);
        self.changed.notify_waiters();
    }

    /// Waits until the current generation is no longer `generation`.
    pub(crate) async fn changed_from(&self, generation: u64) {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            // Registers before looking, so that no change falls in between.
            changed.as_mut().enable();
            if self.held().is_some_and(|held| held.generation != generation) {
                return;
            }
            changed.await;
        }
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing panics while it holds this lock")
    }

    /// Notes that somebody asked for this credential.
    pub(crate) fn mark_used(&self, at: Timestamp) {
        self.used_at.fetch_max(at.as_millis(), Ordering::Relaxed);
    }

    /// When somebody last asked.
    pub(crate) fn used_at(&self) -> Timestamp {
        Timestamp::from_millis(self.used_at.load(Ordering::Relaxed))
    }
}
