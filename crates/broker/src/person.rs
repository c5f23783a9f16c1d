//! Refreshes that a person asks for.

use std::{sync::Arc, time::Duration};

use clock::Timestamp;

use crate::{
    AppEntry, Broker, ManageError,
    audit::{Actor, AuditEntry},
    credential::{CredentialKind, Trouble},
    refresh::Why,
    store::StoreError,
};

/// What came of a refresh that a person asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refreshed {
    /// There is a new generation.
    New {
        /// Its number.
        generation: u64,
        /// When it ends.
        expires_at: Timestamp,
    },
    /// WeChat answered with the token that we have.
    Same {
        /// Its number.
        generation: u64,
        /// When it ends.
        expires_at: Timestamp,
    },
    /// It did not work.
    Failed(Trouble),
}

/// A step of the leak drill.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Drill {
    /// The first new token is there; the leaked one may live for up to 5 minutes more.
    Replaced(u64),
    /// WeChat ends the leaked token only with a second one, which must wait until then.
    WaitingUntil(Timestamp),
    /// The second new token is there: the leaked one is dead.
    Killed(u64),
}

impl Broker {
    /// Refreshes now because a person asks, whatever stands against it: asks normal mode, or on
    /// classic mints once.
    pub async fn refresh_now(
        &self,
        entry: &Arc<AppEntry>,
        actor: &Actor,
    ) -> Result<Refreshed, ManageError> {
        self.audit_refresh(entry, actor, "token.refresh", "").await?;
        Ok(self.fly_for_a_person(entry, Why::Asked).await)
    }

    /// Ends a leaked token: two new ones, far enough apart for WeChat to act on both. Tells each
    /// step as it happens. Calls in flight with the leaked token fail, and every holder of it has
    /// to fetch anew.
    pub async fn kill_leaked(
        &self,
        entry: &Arc<AppEntry>,
        actor: &Actor,
        mut tell: impl FnMut(Drill) + Send,
    ) -> Result<Refreshed, ManageError> {
        /// WeChat ignores a forced refresh within 30 s of the one before.
        const APART: Duration = Duration::from_secs(31);
        self.audit_refresh(entry, actor, "token.kill", "the leak drill").await?;
        let first = self.fly_for_a_person(entry, Why::Forced).await;
        let Refreshed::New { generation, .. } = first else { return Ok(first) };
        tell(Drill::Replaced(generation));
        let until = self.0.clock.now() + APART;
        tell(Drill::WaitingUntil(until));
        self.0.clock.sleep_until(until).await;
        let second = self.fly_for_a_person(entry, Why::Forced).await;
        if let Refreshed::New { generation, .. } = second {
            tell(Drill::Killed(generation));
        }
        Ok(second)
    }

    async fn fly_for_a_person(&self, entry: &Arc<AppEntry>, why: Why) -> Refreshed {
        let slot = entry.slot(CredentialKind::Token);
        let before = slot.held().map_or(0, |held| held.generation);
        loop {
            let (flight, ours) = {
                let mut state = slot.state();
                match state.flight() {
                    Some(flight) => (flight, false),
                    None => {
                        (self.start(entry, CredentialKind::Token, why.clone(), &mut state), true)
                    }
                }
            };
            let outcome = flight.ended().await;
            match (ours, outcome, slot.held()) {
                (true, Some(Err(trouble)), _) => return Refreshed::Failed(trouble),
                (true, Some(Ok(())), Some(held)) => {
                    let (generation, expires_at) = (held.generation, held.expires_at);
                    return if generation == before {
                        Refreshed::Same { generation, expires_at }
                    } else {
                        Refreshed::New { generation, expires_at }
                    };
                }
                // Not ours, or gone with its app: look again.
                (false, ..) => {}
                (true, ..) => {
                    let gone = StoreError::Unavailable("the app is gone".to_owned());
                    return Refreshed::Failed(self.store_trouble(&gone));
                }
            }
        }
    }

    async fn audit_refresh(
        &self,
        entry: &AppEntry,
        actor: &Actor,
        action: &str,
        detail: &str,
    ) -> Result<(), ManageError> {
        let entry = AuditEntry {
            at: self.now(),
            actor: actor.clone(),
            action: action.to_owned(),
            object: entry.app().id.as_str().to_owned(),
            detail: detail.to_owned(),
        };
        Ok(self.0.store.add_audit(&entry).await?)
    }
}
