//! Keeping what was fetched: in the store first, then in memory.
//!
//! A put is a compare-and-set. What happens when it loses, and when the store is away, is here.

use std::time::Duration;

use clock::Timestamp;

use crate::{
    Broker,
    app::Issuer,
    credential::{CredentialId, CredentialKind, Trouble},
    fetch::{Fetched, Job},
    refresh::Worked,
    slot::{Held, Slot, Unstored, Value},
    store::{CredentialRow, Place},
};

/// WeChat's overlap: so long a replaced token goes on working.
pub(crate) const OVERLAP: Duration = Duration::from_secs(300);
/// A token that another mint may have ended is refreshed so long before WeChat's overlap is over.
pub(crate) const BEFORE_THE_END: Duration = Duration::from_secs(60);
/// Refreshed so long before the end: inside WeChat's 5 minutes of overlap, with time to retry.
const MARGIN: Duration = Duration::from_secs(270);
/// Refreshes due together are spread over this much, towards the end.
const JITTER: Duration = Duration::from_secs(60);
/// A life below this is refreshed at its half.
const SHORT_LIFE: Duration = Duration::from_secs(540);
/// When WeChat answers with the token that we have, ask again after this.
const SAME_TOKEN_AGAIN: Duration = Duration::from_secs(15);
/// Tickets are fetched again so long after they were fetched: WeChat states a full life for old
/// ones too.
const TICKET_AGE: Duration = Duration::from_secs(3600);

impl Broker {
    /// Stores what was fetched and makes it current.
    pub(crate) async fn keep(&self, job: &Job<'_>, fetched: Fetched) -> Result<Worked, Trouble> {
        let slot = job.slot;
        let hash = self.0.hasher.hash(fetched.value.expose());
        let current = slot.held();
        let (expires_at, refresh_at) = times(&slot.id, &fetched);
        if let Some(held) = current.as_ref().filter(|held| held.hash == hash) {
            return self.keep_same(slot, held, &fetched, (expires_at, refresh_at)).await;
        }
        let generation = job.base.generation + 1;
        // While the store is away, generations go on in memory; it goes on from where it is.
        let over = job.base.stored;
        let place = Place::Credential(slot.id.clone(), generation);
        let row = CredentialRow {
            id: slot.id.clone(),
            generation,
            value: self.0.sealer.seal(&place.binding(), fetched.value.expose().as_bytes()),
            hash,
            sent: fetched.sent,
            answered: fetched.answered,
            expires_at,
            refresh_at,
            dead: false,
            used_at: slot.used_at(),
        };
        match self.0.store.put_credential(&row, over).await {
            Ok(true) => {
                self.0.counters.rotations.add();
                slot.state().unstored = None;
                tracing::info!(
                    app.id = %slot.id.app,
                    credential = slot.id.kind.as_str(),
                    generation,
                    expires_in_s = expires_at.since(fetched.sent).as_secs(),
                    "{}: generation {generation} is stored",
                    slot.id
                );
                slot.set(Some(Held::from_row(&row, fetched.value)));
                self.wake_others().await;
                Ok(Worked::Done)
            }
            Ok(false) => {
                // One before it that waits for the store would go over the same generation, and has
                // lost too; memory would not follow the store while it waits.
                slot.state().unstored = None;
                self.0.counters.puts_lost.add();
                tracing::warn!(
                    app.id = %slot.id.app,
                    credential = slot.id.kind.as_str(),
                    generation,
                    "{}: another put was faster",
                    slot.id
                );
                self.overtaken(job, row, fetched.value).await
            }
            Err(err) => {
                tracing::error!(
                    app.id = %slot.id.app,
                    credential = slot.id.kind.as_str(),
                    error = %err,
                    "{}: what was fetched cannot be stored yet; serving it from memory",
                    slot.id
                );
                let mut state = slot.state();
                slot.set_under(&state, Some(Held::from_row(&row, fetched.value)));
                state.unstored = Some(Box::new(Unstored { row, over }));
                Ok(Worked::Done)
            }
        }
    }

    /// WeChat answered with what we have: no rotation, but news about its life.
    async fn keep_same(
        &self,
        slot: &Slot,
        held: &Held,
        fetched: &Fetched,
        (expires_at, refresh_at): (Timestamp, Timestamp),
    ) -> Result<Worked, Trouble> {
        if held.dead {
            let reason = "WeChat goes on answering with a token that it refuses elsewhere";
            return Err(Trouble {
                action: Some("look at the app in WeChat's console: is it restricted?".to_owned()),
                retry_at: Some(self.now() + Duration::from_secs(300)),
                ..Trouble::of(reason.to_owned(), self.now())
            });
        }
        let soon = fetched.answered + SAME_TOKEN_AGAIN;
        let refresh_at = match slot.id.kind {
            CredentialKind::Token if fetched.expires_in < SHORT_LIFE => soon,
            _ => refresh_at.max(soon),
        };
        let stored =
            self.0.store.set_expiry(&slot.id, held.generation, expires_at, refresh_at).await;
        match stored {
            Ok(false) => return Ok(Worked::Overtaken),
            Ok(true) => {}
            // The life that WeChat states is known to us all the same.
            Err(err) => {
                tracing::warn!(
                    app.id = %slot.id.app,
                    credential = slot.id.kind.as_str(),
                    error = %err,
                    "{}: a new expiry was not stored",
                    slot.id
                );
            }
        }
        let sent = held.sent.min(fetched.answered);
        slot.update(Held { expires_at, refresh_at, sent, ..held.clone() });
        self.wake_others().await;
        Ok(Worked::Done)
    }

    /// Somebody else stored a generation while we fetched ours, so one of us lost its lease.
    ///
    /// Where asking again does no harm, that settles it. On classic the two mints' order decides.
    async fn overtaken(
        &self,
        job: &Job<'_>,
        ours: CredentialRow,
        value: Value,
    ) -> Result<Worked, Trouble> {
        let classic =
            job.slot.id.kind == CredentialKind::Token && job.app.issuer == Issuer::Classic;
        if !classic {
            // Of an app that is gone there is nothing to ask again.
            let app = self.0.store.find_app(&job.app.id).await;
            return match app.map_err(|err| self.store_trouble(&err))? {
                Some(_) => Ok(Worked::Overtaken),
                None => Err(self.app_is_gone()),
            };
        }
        self.settle_by_time(job.slot, ours, value).await?;
        Ok(Worked::Done)
    }

    /// Of two generations that were fetched without knowing of each other, the one that was
    /// fetched later is what WeChat has kept, as far as the store's clock can tell.
    async fn settle_by_time(
        &self,
        slot: &Slot,
        mut ours: CredentialRow,
        value: Value,
    ) -> Result<(), Trouble> {
        let store_trouble = |err| self.store_trouble(&err);
        loop {
            let found = self.0.store.find_credential(&slot.id).await.map_err(store_trouble)?;
            let Some(theirs) = found else {
                let app = self.0.store.find_app(&slot.id.app).await.map_err(store_trouble)?;
                // An app that came back has none yet, and gets one by the next flight.
                slot.set(None);
                return if app.is_some() { Ok(()) } else { Err(self.app_is_gone()) };
            };
            if theirs.hash == ours.hash {
                return self.reload(slot).await.map_err(store_trouble);
            }
            if ours.sent > theirs.answered {
                ours.generation = ours.generation.max(theirs.generation + 1);
                let place = Place::Credential(slot.id.clone(), ours.generation);
                ours.value = self.0.sealer.seal(&place.binding(), value.expose().as_bytes());
                let put = self.0.store.put_credential(&ours, theirs.generation).await;
                if !put.map_err(store_trouble)? {
                    continue;
                }
                self.0.counters.rotations.add();
                slot.set(Some(Held::from_row(&ours, value)));
            } else {
                if ours.answered >= theirs.sent {
                    // Nobody can tell which was minted later. The earlier one lives 5 minutes
                    // more, so the stored one is trusted for no longer than that.
                    let end = theirs.expires_at.min(theirs.sent + OVERLAP);
                    let refresh_at = end - BEFORE_THE_END;
                    self.0
                        .store
                        .set_expiry(&slot.id, theirs.generation, end, refresh_at)
                        .await
                        .map_err(store_trouble)?;
                }
                self.reload(slot).await.map_err(store_trouble)?;
            }
            self.wake_others().await;
            return Ok(());
        }
    }

    fn app_is_gone(&self) -> Trouble {
        Trouble { retry_at: None, ..Trouble::of("the app was removed".to_owned(), self.now()) }
    }

    /// Stores all that the store could not take when it was fetched, before this process ends and it
    /// is lost.
    pub(crate) async fn store_all_unstored(&self) {
        for entry in self.apps() {
            for slot in entry.slots() {
                if slot.state().unstored.is_none() {
                    continue;
                }
                let stored = self.store_what_is_unstored(slot).await;
                if stored.is_err() || slot.state().unstored.is_some() {
                    tracing::warn!(
                        app.id = %slot.id.app,
                        credential = slot.id.kind.as_str(),
                        "{}: what was fetched ends with this process: the store cannot take it",
                        slot.id
                    );
                }
            }
        }
    }

    /// Stores a generation that the store could not take when it was fetched. `true`: there is
    /// nothing left to do for now.
    pub(crate) async fn store_what_is_unstored(&self, slot: &Slot) -> Result<bool, Trouble> {
        let Some(unstored) = slot.state().unstored.clone() else { return Ok(false) };
        let Unstored { row, over } = *unstored;
        match self.0.store.put_credential(&row, over).await {
            Ok(stored) => {
                slot.state().unstored = None;
                if stored {
                    self.0.counters.rotations.add();
                    self.wake_others().await;
                } else {
                    self.0.counters.puts_lost.add();
                    let held = slot.held().filter(|held| held.hash == row.hash);
                    let settled = match held {
                        Some(held) => {
                            self.settle_by_time(slot, row.clone(), held.value.clone()).await
                        }
                        None => self.reload(slot).await.map_err(|err| self.store_trouble(&err)),
                    };
                    if let Err(trouble) = settled {
                        slot.state().unstored = Some(Box::new(Unstored { row, over }));
                        return Err(trouble);
                    }
                }
                Ok(!slot.due(self.now()))
            }
            // Still out of reach. What memory holds goes on being served while it lives.
            Err(_) => Ok(!slot.due(self.now())),
        }
    }
}

/// When what was fetched ends, and when to refresh it. Its life counts from before the request
/// was sent.
fn times(id: &CredentialId, fetched: &Fetched) -> (Timestamp, Timestamp) {
    let life = fetched.expires_in;
    let expires_at = fetched.sent + life;
    let refresh_at = if life < SHORT_LIFE {
        fetched.sent + life / 2
    } else if id.kind == CredentialKind::Token {
        expires_at - MARGIN + id.spread(expires_at, JITTER)
    } else {
        fetched.sent + TICKET_AGE.min(life / 2) - id.spread(expires_at, JITTER)
    };
    (expires_at, refresh_at)
}
