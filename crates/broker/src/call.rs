//! Calls with an app's global token: what follows when WeChat refuses the token.
//!
//! A refusal is a report. When it turns out that the token was dead, the call is made again with
//! the one that replaced it: WeChat does nothing when it refuses a token, so that is safe for every
//! method. A call is sent three times at most.

use std::{sync::Arc, time::Duration};

use wechat::GlobalToken;

use crate::{
    AppEntry, Broker, CallError, INVALID_TOKEN, TokenView, credential::CredentialKind,
    key::ClientKey,
};

/// How often one call was sent again.
#[derive(Clone, Copy, Debug, Default)]
pub struct Attempts(u8);

/// A call is sent again so often at most.
const MOST_REPEATS: u8 = 2;

impl Broker {
    /// WeChat, for calls that are carried to it as they are.
    pub fn wechat(&self) -> &wechat::Client {
        &self.0.wechat
    }

    /// Hears that WeChat refused the token of a call that is not sent again: it is checked, and
    /// replaced if need be, in a task of its own, whether or not somebody waits for the end.
    pub fn hear_refusal(
        &self,
        entry: &Arc<AppEntry>,
        used: &TokenView,
        key: &Arc<ClientKey>,
    ) -> impl Future<Output = ()> + use<> {
        let (broker, entry, key) = (self.clone(), Arc::clone(entry), Arc::clone(key));
        let used = used.clone();
        let task = self.0.tasks.spawn(async move {
            broker.heard_of_call(&entry, Some(&key), &used).await;
        });
        // A panic in it has been printed; who waits goes on.
        async move { drop(task.await) }
    }

    /// Hears that WeChat refused the token of a call, and says whether to send the call again: if
    /// the token it was sent with has been replaced, or is found to be dead. The second time it
    /// must have been replaced by now.
    pub async fn refused(
        &self,
        entry: &Arc<AppEntry>,
        key: Option<&ClientKey>,
        used: &TokenView,
        attempts: &mut Attempts,
    ) -> bool {
        if attempts.0 == MOST_REPEATS {
            return false;
        }
        self.heard_of_call(entry, key, used).await;
        let held = entry.slot(CredentialKind::Token).held();
        let replaced = held.as_ref().is_none_or(|held| held.generation != used.generation);
        let dead = held.is_some_and(|held| held.dead);
        if !replaced && (attempts.0 > 0 || !dead) {
            // It works, and the refusal is about something else; or nothing better is in sight.
            return false;
        }
        attempts.0 += 1;
        true
    }

    /// Counts a call that is about to be sent, if it was sent before.
    pub fn count_repeat(&self, attempts: Attempts) {
        if attempts.0 > 0 {
            self.0.counters.replays.add();
        }
    }

    /// Hears that WeChat refused the token of a call. One that memory knows to be replaced needs no
    /// further look.
    async fn heard_of_call(
        &self,
        entry: &Arc<AppEntry>,
        key: Option<&ClientKey>,
        used: &TokenView,
    ) {
        let held = entry.slot(CredentialKind::Token).held();
        if held.is_some_and(|held| held.generation != used.generation) {
            self.0.counters.reports.add();
            return;
        }
        self.heard(entry, &used.token, key, Some(used.read_at())).await;
    }

    /// Makes a call to WeChat with the app's token, and again when the token was refused and has
    /// been replaced.
    pub(crate) async fn with_token<T, Call>(
        &self,
        entry: &Arc<AppEntry>,
        call: impl Fn(GlobalToken) -> Call,
    ) -> Result<T, CallError>
    where
        Call: Future<Output = Result<T, wechat::Error>>,
    {
        let mut attempts = Attempts::default();
        loop {
            let used = self.token(entry, None, Duration::ZERO).await?;
            self.count_repeat(attempts);
            let err = match call(used.token.clone()).await {
                Ok(answer) => return Ok(answer),
                Err(err) => err,
            };
            let refused =
                matches!(&err, wechat::Error::Api(api) if INVALID_TOKEN.contains(&api.code));
            if !refused || !self.refused(entry, None, &used, &mut attempts).await {
                return Err(err.into());
            }
        }
    }
}
