//! Reading a credential: memory first, and a flight to wait for when memory has nothing usable.

use std::{sync::Arc, time::Duration};

use clock::Timestamp;
use wechat::GlobalToken;

use crate::{
    AppEntry, Broker,
    credential::{CredentialKind, Trouble},
    error::TokenError,
    key::ClientKey,
    refresh::Why,
    slot::{Held, Slot},
};

/// A reader may ask for at most so much remaining life: less than a token has when its refresh
/// falls due, so that asking never causes a fetch that is not due.
pub const MIN_TTL_CAP: Duration = Duration::from_secs(180);

/// A global token as handed out.
#[derive(Clone, Debug)]
pub struct TokenView {
    /// The token.
    pub token: GlobalToken,
    /// Which generation it is.
    pub generation: u64,
    /// When it ends, by the store's time.
    pub expires_at: Timestamp,
    /// How long it lives from the moment of reading.
    pub expires_in: Duration,
}

impl TokenView {
    fn of(held: &Held, now: Timestamp) -> Self {
        Self {
            token: GlobalToken::new(Arc::clone(held.value.expose())),
            generation: held.generation,
            expires_at: held.expires_at,
            expires_in: held.expires_at.since(now),
        }
    }

    /// When it was read.
    pub(crate) fn read_at(&self) -> Timestamp {
        self.expires_at - self.expires_in
    }
}

/// How a credential is doing, for people.
#[derive(Clone, Debug)]
pub struct CredentialStatus {
    /// Which credential.
    pub kind: CredentialKind,
    /// The current generation, if there is one.
    pub generation: Option<u64>,
    /// When it ends.
    pub expires_at: Option<Timestamp>,
    /// When it is refreshed.
    pub refresh_at: Option<Timestamp>,
    /// Whether WeChat said that it no longer works.
    pub dead: bool,
    /// What is wrong.
    pub trouble: Option<Trouble>,
}

impl Broker {
    /// The app's global token. Answers from memory when the token there is usable for `min_ttl`
    /// more; otherwise waits for the refresh, with everybody else who does.
    ///
    /// `key` is who asks, for the aggregate in the audit log.
    pub async fn token(
        &self,
        entry: &Arc<AppEntry>,
        key: Option<&ClientKey>,
        min_ttl: Duration,
    ) -> Result<TokenView, TokenError> {
        if let Some(view) = self.token_now(entry, key, min_ttl) {
            return Ok(view);
        }
        let waited = self.wait_usable(entry, CredentialKind::Token, min_ttl).await;
        if let Some(key) = key {
            match &waited {
                Ok(_) => key.count_read(),
                Err(_) => key.count_unserved(),
            }
        }
        Ok(TokenView::of(&*waited?, self.now()))
    }

    /// The app's global token if memory has one that is usable: the part of [`Broker::token`] that
    /// neither waits nor locks.
    pub fn token_now(
        &self,
        entry: &AppEntry,
        key: Option<&ClientKey>,
        min_ttl: Duration,
    ) -> Option<TokenView> {
        let now = self.now();
        let held = entry.slot(CredentialKind::Token).usable(now, min_ttl)?;
        if let Some(key) = key {
            key.count_read();
        }
        Some(TokenView::of(&held, now))
    }

    /// Waits until the app's token is of another generation than `after`, but no longer than
    /// `wait`. `None`: it still is.
    pub async fn token_after(
        &self,
        entry: &Arc<AppEntry>,
        key: Option<&ClientKey>,
        after: u64,
        wait: Duration,
    ) -> Result<Option<TokenView>, TokenError> {
        let slot = entry.slot(CredentialKind::Token);
        if slot.held().is_some() {
            let changed = tokio::time::timeout(wait, slot.changed_from(after)).await;
            if changed.is_err() {
                return Ok(None);
            }
        }
        let view = self.token(entry, key, Duration::ZERO).await?;
        Ok((view.generation != after).then_some(view))
    }

    /// How all credentials of an app are doing.
    pub fn status(&self, entry: &AppEntry) -> Vec<CredentialStatus> {
        CredentialKind::ALL
            .into_iter()
            .filter_map(|kind| {
                let slot = entry.existing_slot(kind)?;
                let held = slot.held();
                Some(CredentialStatus {
                    kind,
                    generation: held.as_ref().map(|held| held.generation),
                    expires_at: held.as_ref().map(|held| held.expires_at),
                    refresh_at: held.as_ref().map(|held| held.refresh_at),
                    dead: held.as_ref().is_some_and(|held| held.dead),
                    trouble: slot.state().trouble().cloned(),
                })
            })
            .collect()
    }

    /// How long somebody waits for a flight at most.
    pub(crate) fn flight_patience(&self) -> Duration {
        /// What a flight needs beside its call to WeChat.
        const AROUND_THE_CALL: Duration = Duration::from_secs(2);
        self.0.wechat.budget() + AROUND_THE_CALL
    }

    /// Waits for a usable generation: joins the flight under way, or starts one if it is due and
    /// nothing stands against it.
    pub(crate) async fn wait_usable(
        &self,
        entry: &Arc<AppEntry>,
        kind: CredentialKind,
        min_ttl: Duration,
    ) -> Result<Arc<Held>, TokenError> {
        if !entry.has_credentials() {
            return Err(TokenError::NoSuchCredential);
        }
        let slot = entry.slot(kind);
        let wait = async {
            loop {
                let flight = self.flight_for_reader(entry, slot, min_ttl)?;
                let Some(flight) = flight else {
                    if let Some(held) = slot.usable(self.now(), min_ttl) {
                        return Ok(held);
                    }
                    // It was usable a moment ago; look again.
                    continue;
                };
                let Some(outcome) = flight.ended().await else {
                    // Its task died; starting it again at once would make a loop of that.
                    return Err(TokenError::Deadline { retry_after: Duration::from_secs(60) });
                };
                if let Some(held) = slot.usable(self.now(), min_ttl) {
                    return Ok(held);
                }
                if let Err(trouble) = outcome {
                    return Err(self.unavailable(trouble));
                }
            }
        };
        tokio::time::timeout(self.flight_patience(), wait)
            .await
            .unwrap_or(Err(TokenError::Deadline { retry_after: Duration::from_secs(1) }))
    }

    /// The flight that a reader without a usable generation waits for. `None`: there is a usable
    /// one by now.
    fn flight_for_reader(
        &self,
        entry: &Arc<AppEntry>,
        slot: &Slot,
        min_ttl: Duration,
    ) -> Result<Option<crate::slot::Flight>, TokenError> {
        let mut state = slot.state();
        let now = self.now();
        // Looks again under the lock: a flight may have ended since the caller looked.
        if slot.usable(now, min_ttl).is_some() {
            return Ok(None);
        }
        if let Some(flight) = state.flight() {
            return Ok(Some(flight));
        }
        if let Some(trouble) = state.trouble()
            && trouble.stands(now)
        {
            return Err(self.unavailable(trouble.clone()));
        }
        if !slot.due(now) {
            let due = slot.held().map_or(now, |held| held.refresh_at);
            return Err(TokenError::TooShort { retry_after: due.since(now) });
        }
        Ok(Some(self.start(entry, slot.id.kind, Why::Due, &mut state)))
    }

    fn unavailable(&self, trouble: Trouble) -> TokenError {
        /// When only a person can help, asking more often than this is of no use.
        const NOT_BEFORE_A_PERSON_CAME: Duration = Duration::from_secs(300);
        let retry_after = trouble
            .retry_at
            .map_or(NOT_BEFORE_A_PERSON_CAME, |at| at.since(self.now()))
            .max(Duration::from_secs(1));
        TokenError::Unavailable { trouble: Box::new(trouble), retry_after }
    }
}
