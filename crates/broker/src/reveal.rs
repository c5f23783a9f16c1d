//! Tokens themselves, for SDKs that call WeChat past us.
//!
//! Such an SDK has no way to say that a token failed: it only asks for a token again. So when it asks
//! soon after it was given one, that one is under suspicion, and is checked as if it had been reported.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;
use wechat::AppId;

use crate::{
    AppEntry, Broker, TokenError, TokenView,
    key::{ClientKey, Keys},
};

/// Who asks again within so long is dissatisfied; an SDK keeps a token for longer.
const SOON: Duration = Duration::from_secs(60);

/// The generation that each client key was given last, by app, and when.
#[derive(Default)]
pub(crate) struct Revealed(Mutex<HashMap<(String, AppId), (u64, Instant)>>);

impl Revealed {
    /// Notes what a key is given, and says whether it was given the same a moment ago.
    fn again(&self, key: &ClientKey, app: &AppId, generation: u64) -> bool {
        let mut given = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = (generation, Instant::now());
        let before = given.insert((key.id.clone(), app.clone()), now);
        before.is_some_and(|(same, at)| same == generation && at.elapsed() < SOON)
    }

    /// Forgets what was given to keys that are gone.
    pub(crate) fn keep_only(&self, keys: &Keys) {
        let mut given = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        given.retain(|(key, _), _| keys.find(key).is_some());
    }
}

impl Broker {
    /// The app's global token, for a client that gets it itself. If it was given the same one a
    /// moment ago, that is checked first, and replaced if it turns out to be dead.
    pub async fn token_for_reveal(
        &self,
        entry: &Arc<AppEntry>,
        key: &ClientKey,
    ) -> Result<TokenView, TokenError> {
        let view = self.token(entry, Some(key), Duration::ZERO).await?;
        if !self.0.revealed.again(key, &entry.app().id, view.generation) {
            return Ok(view);
        }
        self.heard(entry, &view.token, Some(key), None).await;
        let now = self.token(entry, Some(key), Duration::ZERO).await?;
        if now.generation != view.generation {
            self.0.revealed.again(key, &entry.app().id, now.generation);
        }
        Ok(now)
    }

    /// Hears from a client that the token does not work, without saying which one: takes it for the
    /// one there is.
    pub async fn suspect(&self, entry: &Arc<AppEntry>, key: &ClientKey) {
        if let Some(view) = self.token_now(entry, None, Duration::ZERO) {
            self.heard(entry, &view.token, Some(key), None).await;
        }
    }
}
