//! Flights: the tasks that replace one credential.
//!
//! At most one flight per credential is under way in this process, and the lease lets at most one
//! process fetch. A flight runs in its own task, so that a caller who goes away cancels nothing;
//! and the old generation is served until the new one is stored.

use std::{sync::Arc, time::Duration};

use crate::{
    AppEntry, Broker,
    app::{App, Issuer},
    credential::{CredentialKind, Trouble},
    fetch::{Ask, Base, Job},
    random::random_word,
    slot::{Flight, Outcome, Slot, State},
    store::{Acquired, Lease, StoreError, StoreResult},
};

/// How long a lease lasts: far more than the longest call to WeChat, so that a holder who is alive
/// always finishes in time; and short enough that a killed one is soon replaced.
pub(crate) const LEASE: Duration = Duration::from_secs(40);
/// A ticket that nobody asked for in this time is dropped.
const TICKET_IDLE: Duration = Duration::from_secs(24 * 3600);

/// Why a flight takes off.
#[derive(Clone, Debug)]
pub(crate) enum Why {
    /// It is due, or a reader has nothing usable.
    Due,
    /// Somebody says that this generation failed.
    Reported {
        /// Which.
        generation: u64,
        /// Whether we saw that ourselves.
        seen: bool,
    },
    /// A person wants a new one now, or to hear that WeChat has none.
    Asked,
    /// A person wants this token's life ended.
    Forced,
}

impl Broker {
    /// Refreshes credentials as they fall due, some at a time, for ever.
    pub(crate) async fn keep_fresh(&self) {
        /// So many scheduled refreshes are under way at once. Callers who wait for a token of
        /// theirs are not held by this.
        const AT_ONCE: usize = 64;
        let places = Arc::new(tokio::sync::Semaphore::new(AT_ONCE));
        loop {
            let place =
                Arc::clone(&places).acquire_owned().await.expect("nobody closes this semaphore");
            let id = self.0.schedule.next_due(&self.0.clock, || self.now()).await;
            let broker = self.clone();
            self.0.tasks.spawn(async move {
                if let Some(entry) = broker.app(id.app.as_str()) {
                    broker.fly_due(&entry, id.kind).await;
                }
                broker.0.schedule.worked();
                drop(place);
            });
        }
    }

    /// Joins or starts the flight of a credential that is due, and waits for its end.
    async fn fly_due(&self, entry: &Arc<AppEntry>, kind: CredentialKind) {
        if !entry.has_credentials() {
            return;
        }
        let slot = entry.slot(kind);
        let flight = {
            let mut state = slot.state();
            state.flight().unwrap_or_else(|| self.start(entry, kind, Why::Due, &mut state))
        };
        if flight.ended().await.is_none() {
            tracing::error!(
                app.id = %slot.id.app,
                credential = slot.id.kind.as_str(),
                "{}: a refresh died without an outcome",
                slot.id
            );
            let later = self.now() + Duration::from_secs(60);
            self.0.schedule.set(&slot.id, Some(later));
        } else if self.is_registered(entry, &entry.app()) {
            // A flight that was joined may have set its deadline before this one fell due.
            self.reschedule(slot);
        }
    }

    /// Starts a flight. The caller holds the state's lock and has seen that there is none under
    /// way.
    pub(crate) fn start(
        &self,
        entry: &Arc<AppEntry>,
        kind: CredentialKind,
        why: Why,
        state: &mut State,
    ) -> Flight {
        let (end, flight) = Flight::new();
        state.set_flight(flight.clone());
        let (broker, entry) = (self.clone(), Arc::clone(entry));
        self.0.tasks.spawn(async move {
            // As it is now: what changes meanwhile is for the next flight.
            let app = Arc::clone(&entry.app());
            let mut kept = None;
            let outcome = broker.fly(&entry, &app, kind, &why, &mut kept).await;
            broker.landed(&entry, &app, kind, &why, &outcome).await;
            end.send_replace(Some(outcome));
            if let Some(lease) = &kept {
                broker.release(lease).await;
            }
            let slot = entry.slot(kind);
            if slot.state().take_missed_change()
                && let Err(err) = broker.reload_slot(&entry, slot).await
            {
                tracing::warn!(
                    app.id = %app.id,
                    credential = kind.as_str(),
                    error = %err,
                    "{}: a change during a refresh cannot be read yet",
                    slot.id
                );
            }
        });
        flight
    }

    /// Records how a flight ended, and when to look at the credential again.
    async fn landed(
        &self,
        entry: &Arc<AppEntry>,
        app: &App,
        kind: CredentialKind,
        why: &Why,
        outcome: &Outcome,
    ) {
        let slot = entry.slot(kind);
        // A stop is for good: not for an app that is another one by now.
        if let Err(Trouble { retry_at: None, .. }) = outcome {
            self.follow_now().await;
        }
        if !self.is_registered(entry, app) {
            return;
        }
        let news = {
            let mut state = slot.state();
            let due = slot.due(self.now());
            let personal = matches!(why, Why::Asked | Why::Forced);
            let keep = match outcome {
                // The person hears it; what is not due has no trouble.
                Err(_) => personal && !due,
                // A check that told nothing does not end the trouble of an overdue refresh.
                Ok(()) => {
                    due && state.trouble().is_some()
                        && (kind == CredentialKind::Token || slot.held().is_some())
                }
            };
            let trouble = outcome.as_ref().err().cloned();
            (!keep && state.trouble() != trouble.as_ref()).then(|| {
                state.set_trouble(trouble.clone());
                trouble
            })
        };
        let to_be_stored =
            news.filter(|news| news.as_ref().is_none_or(|trouble| !trouble.only_here));
        if let Some(trouble) = to_be_stored {
            match self.0.store.set_trouble(&slot.id, app.revision, trouble.as_ref()).await {
                Ok(true) => self.wake_others().await,
                // The app was changed or removed meanwhile: what went wrong may be mended.
                Ok(false) => {
                    slot.state().set_trouble(None);
                    self.follow_now().await;
                    // What it was changed to cannot be read here: it stays as it was for us.
                    if entry.app().revision == app.revision {
                        slot.state().set_trouble(trouble);
                    }
                }
                Err(err) => {
                    tracing::warn!(
                        app.id = %slot.id.app,
                        credential = slot.id.kind.as_str(),
                        error = %err,
                        "{}: what is wrong was not stored",
                        slot.id
                    );
                }
            }
        }
        if self.is_registered(entry, app) && entry.has_credentials() {
            self.reschedule(slot);
        }
    }

    /// Whether the entry is still the one of its app.
    fn is_registered(&self, entry: &Arc<AppEntry>, app: &App) -> bool {
        self.app(app.id.as_str()).is_some_and(|now| Arc::ptr_eq(&now, entry))
    }

    async fn follow_now(&self) {
        if let Err(err) = self.follow().await {
            tracing::warn!(error = %err, "a change of an app cannot be read yet");
        }
    }

    /// Puts a credential into the schedule where it belongs now.
    pub(crate) fn reschedule(&self, slot: &Slot) {
        let at = {
            let state = slot.state();
            match state.trouble() {
                Some(trouble) if trouble.stands(self.now()) => trouble.retry_at,
                Some(_) => Some(self.now()),
                None if state.unstored.is_some() => Some(self.now() + Duration::from_secs(5)),
                None => match slot.held() {
                    Some(held) if held.due(self.now()) => Some(self.now()),
                    Some(held) => Some(held.refresh_at.min(held.expires_at)),
                    None if slot.id.kind == CredentialKind::Token => Some(self.now()),
                    None => None,
                },
            }
        };
        self.0.schedule.set(&slot.id, at);
    }

    pub(crate) async fn release(&self, lease: &Lease) {
        if let Err(err) = self.0.shared.release(lease).await {
            tracing::warn!(
                lease.name,
                error = %err,
                "the lease {} was not given back; it runs out by itself",
                lease.name
            );
        }
    }

    /// One flight: until the credential is what it should be, or a trouble. The lease under which
    /// it ended is `kept` until a trouble is stored, so that whoever has it next sees why.
    async fn fly(
        &self,
        entry: &Arc<AppEntry>,
        app: &App,
        kind: CredentialKind,
        why: &Why,
        kept: &mut Option<Lease>,
    ) -> Outcome {
        let slot = entry.slot(kind);
        if self.store_what_is_unstored(slot).await? && matches!(why, Why::Due) {
            return Ok(());
        }
        self.store_use(slot).await;
        // A put that was overtaken asks once more, under a new lease.
        let mut overtaken = false;
        loop {
            let lease = match self.lease_or_news(slot, why).await? {
                Leased::Yes(lease) => Some(lease),
                Leased::NotNeeded => return Ok(()),
                Leased::Unreachable(err) => {
                    self.may_go_on_alone(app, kind, &err)?;
                    None
                }
            };
            let for_a_person = matches!(why, Why::Asked | Why::Forced);
            let job = Job::new(entry, app, slot, lease.as_ref(), for_a_person);
            let worked = self.with_lease(job, why, overtaken).await;
            let again = match worked {
                Ok(Worked::LeaseLost) => {
                    self.0.counters.leases_lost.add();
                    true
                }
                Ok(Worked::Overtaken) => !std::mem::replace(&mut overtaken, true),
                Ok(Worked::Done) | Err(_) => false,
            };
            if !again {
                *kept = lease;
                return worked.map(|_| ());
            }
            if let Some(lease) = &lease {
                self.release(lease).await;
            }
        }
    }

    /// Gets the lease of a credential. While somebody else has it, watches what they store: when
    /// that is what this flight was for, there is nothing left to do.
    async fn lease_or_news(&self, slot: &Slot, why: &Why) -> Result<Leased, Trouble> {
        /// How often to look at what the holder of the lease does.
        const LOOK: Duration = Duration::from_millis(200);
        let name = slot.id.to_string();
        let owner = random_word::<12>();
        // Nobody holds one for longer, unless several come before us.
        let enough = tokio::time::Instant::now() + 2 * LEASE;
        while tokio::time::Instant::now() < enough {
            match self.0.shared.acquire(&name, &owner, LEASE).await {
                Ok(Acquired::Yes(lease)) => return Ok(Leased::Yes(lease)),
                Ok(Acquired::HeldUntil(_)) => {}
                Err(err @ StoreError::Unavailable(_)) => return Ok(Leased::Unreachable(err)),
                Err(err) => return Err(self.store_trouble(&err)),
            }
            tokio::time::sleep(LOOK).await;
            match self.reload(slot).await {
                Ok(()) | Err(StoreError::Unavailable(_)) => {}
                Err(err) => return Err(self.store_trouble(&err)),
            }
            // Who stops has nothing to store yet, and leaves it to the others.
            if !self.wanted(slot, why) || self.0.tasks.is_closed() {
                return Ok(Leased::NotNeeded);
            }
        }
        let reason = "other processes go on refreshing it and bring nothing".to_owned();
        Err(Trouble {
            retry_at: Some(self.now() + Duration::from_secs(5)),
            ..Trouble::of(reason, self.now())
        })
    }

    /// Whether what the flight is for is still to be done, as far as memory knows.
    fn wanted(&self, slot: &Slot, why: &Why) -> bool {
        match why {
            Why::Due => slot.due(self.now()),
            Why::Reported { generation, .. } => {
                slot.held().is_none_or(|held| held.generation == *generation)
            }
            Why::Asked | Why::Forced => true,
        }
    }

    /// The work that the lease is for, which goes on without one where that ends nobody's token.
    async fn with_lease(
        &self,
        mut job: Job<'_>,
        why: &Why,
        overtaken: bool,
    ) -> Result<Worked, Trouble> {
        let slot = job.slot;
        // With or without a lease the store may be out of reach: then memory has to do.
        if job.lease.is_some() || self.reaches_store() {
            match self.read_again(slot).await {
                Ok(()) => {
                    job.base = Base::of(slot);
                    job.has_read = true;
                }
                Err(err @ StoreError::Unavailable(_)) => {
                    self.may_go_on_alone(job.app, slot.id.kind, &err)?;
                }
                Err(err) => return Err(self.store_trouble(&err)),
            }
        }
        if !overtaken && !self.wanted(slot, why) {
            return Ok(Worked::Done);
        }
        if job.has_read {
            if let Some(held) = slot.held().filter(|held| held.dead) {
                let marked = self.0.store.mark_dead(&slot.id, held.generation).await;
                marked.map_err(|err| self.store_trouble(&err))?;
            }
            if let Why::Due = why {
                self.heed_others(slot).await?;
                if self.dropped_as_idle(slot).await? {
                    return Ok(Worked::Done);
                }
            }
        }
        if job.lease.is_none() || !job.has_read {
            self.0.counters.fetches_alone.add();
        }
        match why {
            // Whatever the flight was for, what WeChat says now settles whose token it has kept.
            _ if overtaken => self.replace(&job, Ask::Normal).await,
            Why::Reported { generation, seen } => self.check(&job, *generation, *seen).await,
            Why::Due | Why::Asked => self.replace(&job, Ask::Normal).await,
            Why::Forced => self.replace(&job, Ask::Force).await,
        }
    }

    /// Brings time and memory up to the store, just before something is fetched.
    async fn read_again(&self, slot: &Slot) -> StoreResult<()> {
        self.sync_time().await?;
        self.reload(slot).await
    }

    /// Another process may have failed a moment ago: then its trouble stands for all, so that many
    /// processes make no more calls than one.
    pub(crate) async fn heed_others(&self, slot: &Slot) -> Result<(), Trouble> {
        let found = self.0.store.find_trouble(&slot.id).await;
        match found.map_err(|err| self.store_trouble(&err))? {
            Some(trouble) if trouble.stands(self.now()) => Err(trouble),
            Some(_) | None => Ok(()),
        }
    }

    /// Fetches, and stores what came. When normal mode goes on answering with a token that is
    /// known to be dead, forces a new one.
    pub(crate) async fn replace(&self, job: &Job<'_>, ask: Ask) -> Result<Worked, Trouble> {
        let Some(fetched) = self.fetch(job, ask).await? else { return Ok(Worked::LeaseLost) };
        let same_but_dead = job.slot.held().is_some_and(|held| {
            held.dead && held.hash == self.0.hasher.hash(fetched.value.expose())
        });
        let could_force = ask == Ask::Normal
            && job.app.issuer == Issuer::Stable
            && job.slot.id.kind == CredentialKind::Token;
        if !(same_but_dead && could_force) {
            return self.keep(job, fetched).await;
        }
        tracing::warn!(
            app.id = %job.app.id,
            credential = job.slot.id.kind.as_str(),
            "{}: normal mode answers with a dead token; forcing",
            job.slot.id
        );
        match self.fetch(job, Ask::Force).await? {
            Some(forced) => self.keep(job, forced).await,
            None => Ok(Worked::LeaseLost),
        }
    }

    /// Without a lease or without the store, what ends nobody's token may go ahead.
    fn may_go_on_alone(
        &self,
        app: &App,
        kind: CredentialKind,
        err: &StoreError,
    ) -> Result<(), Trouble> {
        if kind == CredentialKind::Token && app.issuer == Issuer::Classic {
            return Err(self.store_trouble(err));
        }
        tracing::error!(app.id = %app.id, error = %err, "{}: going on alone", app.id);
        Ok(())
    }

    /// Stores when a ticket was last asked for here, so that no process drops what another uses.
    async fn store_use(&self, slot: &Slot) {
        if slot.id.kind == CredentialKind::Token || slot.held().is_none() {
            return;
        }
        if let Err(err) = self.0.store.set_used(&slot.id, slot.used_at()).await {
            tracing::warn!(
                app.id = %slot.id.app,
                credential = slot.id.kind.as_str(),
                error = %err,
                "{}: when it was asked for is not stored",
                slot.id
            );
        }
    }

    /// Drops a ticket that nobody has asked for in a long time.
    async fn dropped_as_idle(&self, slot: &Slot) -> Result<bool, Trouble> {
        let unused_since = self.now() - TICKET_IDLE;
        if slot.id.kind == CredentialKind::Token || slot.used_at() > unused_since {
            return Ok(false);
        }
        let dropped = self.0.store.drop_unused(&slot.id, unused_since).await;
        let dropped = dropped.map_err(|err| self.store_trouble(&err))?;
        if dropped {
            tracing::info!(
                app.id = %slot.id.app,
                credential = slot.id.kind.as_str(),
                "{}: dropped, since nobody has asked for it in a day",
                slot.id
            );
            slot.set(None);
        }
        // One that never came is not tried for ever either.
        Ok(dropped || slot.held().is_none())
    }

    /// Tells other processes that the store has changed. They look by themselves now and then, so
    /// a wake-up that does not get through is only late.
    pub(crate) async fn wake_others(&self) {
        if let Err(err) = self.0.shared.wake().await {
            tracing::warn!(error = %err, "others were not told of a change");
        }
    }
}

enum Leased {
    Yes(Lease),
    NotNeeded,
    Unreachable(StoreError),
}

/// What came of the work under a lease.
pub(crate) enum Worked {
    /// Memory and store are as they should be.
    Done,
    /// The lease ran out before the call was sent.
    LeaseLost,
    /// Somebody else stored another generation in the meantime.
    Overtaken,
}
