//! A simulated WeChat that behaves, and misbehaves, like the real one.
//!
//! [`Sim`] is the handle: tests hold it in process, [`Sim::serve`] puts it behind sockets. One
//! listener answers as `api.weixin.qq.com` does, the other is the control port, where the same
//! things are done over HTTP as the methods of [`Sim`] do.
//!
//! It holds no code of the servers that it tests: its error texts, token rules and quotas are
//! written from what is known of WeChat. What is not known is a [`Switches`] field.
//!
//! From the top: `serve` reads requests, `exchange` takes one through faults and decision, `api`
//! knows the calls, `token` and `quota` hold their rules, `answer` words the errors, and `control`
//! is the other port. Web logins are the other half: `sns` and `mini` know their calls, `oauth`
//! holds the rules of codes, web tokens and refresh tokens, `connect` those of the browser's way,
//! `pages` shows it, and `web` has the handles.

use std::{
    fmt,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use clock::{Clock, Timestamp};

mod answer;
mod api;
mod app;
mod calls;
mod connect;
mod content;
mod control;
mod exchange;
mod faults;
mod mini;
mod oauth;
mod pages;
mod quota;
mod rng;
mod serve;
mod shelf;
mod sns;
mod state;
mod switches;
mod token;
mod web;
mod wire;

pub use answer::Suffix;
pub use app::{AppKind, AppSpec, UserSpec};
pub use calls::{CallEntry, Calls, Total};
pub use connect::{CallbackMode, DuplicateCallbacks};
pub use faults::{BadNumber, Dirt, Fault, FaultKind, SetFault};
pub use mini::EncryptedData;
pub use oauth::{Revocation, Scope, WebGrant};
pub use switches::{Check, ListEnd, NonFollower, RefusedForce, Switches};
pub use token::{CurrentTokens, Issuer, TokenState};
pub use wire::{Plug, Wire, WireEnd, wire};

use state::{App, State};

/// Awaited after each step of an advance of the clock, so that whoever shares the clock can finish
/// the work that fell due.
pub type Settle = Arc<dyn Fn() -> Pin<Box<dyn Future<Output = ()> + Send>> + Send + Sync>;

/// What a simulated WeChat is made of.
#[derive(Clone)]
pub struct Options {
    /// Its only source of time.
    pub clock: Clock,
    /// Decides tokens, rids and which faults fall. The same seed and the same calls give the same
    /// answers.
    pub seed: u64,
    /// How it behaves where WeChat is unknown.
    pub switches: Switches,
    /// See [`Settle`]. Steps follow each other at once without it.
    pub settle: Option<Settle>,
}

impl Options {
    /// The believed behaviour.
    pub fn new(clock: Clock, seed: u64) -> Self {
        Self { clock, seed, switches: Switches::default(), settle: None }
    }
}

/// A simulated WeChat. Cloning gives another handle to the same one.
#[derive(Clone)]
pub struct Sim(Arc<Inner>);

struct Inner {
    clock: Clock,
    seed: u64,
    switches: Switches,
    settle: Option<Settle>,
    state: Mutex<State>,
    /// Held while the clock is being moved, so that two advances do not mix their steps.
    moving: tokio::sync::Mutex<()>,
}

/// A request to the simulator's controls that it cannot follow.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ControlError {
    /// No app has that appid.
    #[error("no app has the appid `{0}`")]
    UnknownApp(String),
    /// An app has that appid already.
    #[error("an app has the appid `{0}` already")]
    AppExists(String),
    /// The app has no user with that openid.
    #[error("the app has no user with the openid `{0}`")]
    UnknownUser(String),
    /// Apps of that kind have no such scope or code, or the scope has no virtual accounts.
    #[error("no such code exists for the app `{0}`")]
    WrongKind(String),
    /// The user never logged in at the mini program.
    #[error("the user `{0}` has no session yet: issue a `js_code` first")]
    NoSession(String),
    /// The clock is the system's or follows timers.
    #[error("this clock cannot be moved")]
    FixedClock,
}

impl Sim {
    /// A simulated WeChat without apps.
    pub fn new(options: Options) -> Self {
        let state = State::new(options.seed, options.switches.clone());
        Self(Arc::new(Inner {
            clock: options.clock,
            seed: options.seed,
            switches: options.switches,
            settle: options.settle,
            state: Mutex::new(state),
            moving: tokio::sync::Mutex::new(()),
        }))
    }

    /// The seed, which reproduces a run.
    pub fn seed(&self) -> u64 {
        self.0.seed
    }

    /// The time at this WeChat.
    pub fn now(&self) -> Timestamp {
        self.0.clock.now()
    }

    /// Moves the clock forward in steps of at most 30 seconds, and awaits [`Settle`] after each.
    pub async fn advance(&self, by: Duration) -> Result<(), ControlError> {
        const STEP: Duration = Duration::from_secs(30);
        let _turn = self.0.moving.lock().await;
        let mut left = by;
        loop {
            let step = left.min(STEP);
            if !self.0.clock.advance(step) {
                return Err(ControlError::FixedClock);
            }
            if let Some(settle) = &self.0.settle {
                settle().await;
            }
            left -= step;
            if left.is_zero() {
                return Ok(());
            }
        }
    }

    /// Makes an app known, in the place of one with the same appid.
    pub fn add_app(&self, spec: AppSpec) {
        let mut state = self.state();
        match state.apps.get_mut(&spec.appid) {
            Some(app) => app.replace(spec),
            None => {
                state.apps.insert(spec.appid.clone(), App::new(spec));
            }
        }
    }

    /// Changes an app. Its appid stays what it was. `change` must not call the simulator.
    pub fn update_app(
        &self,
        appid: &str,
        change: impl FnOnce(&mut AppSpec),
    ) -> Result<(), ControlError> {
        let mut state = self.state();
        let app = state.apps.get_mut(appid).ok_or_else(|| unknown(appid))?;
        change(&mut app.spec);
        appid.clone_into(&mut app.spec.appid);
        Ok(())
    }

    /// Replaces an AppSecret; the old one is of no use any more, tokens live on.
    pub fn set_secret(&self, appid: &str, new: impl Into<String>) -> Result<(), ControlError> {
        self.update_app(appid, |spec| spec.secret = new.into())
    }

    /// The apps, in the order of their appids.
    pub fn apps(&self) -> Vec<AppSpec> {
        self.state().apps.values().map(|app| app.spec.clone()).collect()
    }

    /// Makes a user known to an app, in the place of one with the same openid.
    pub fn add_user(&self, mut user: UserSpec) -> Result<(), ControlError> {
        let now = self.now();
        let mut state = self.state();
        let app = state.apps.get_mut(&user.appid).ok_or_else(|| unknown(&user.appid))?;
        user.subscribe_time.get_or_insert(now.as_secs());
        app.users.insert(user.openid.clone(), user);
        Ok(())
    }

    /// The users of an app, or of all apps.
    pub fn users(&self, appid: Option<&str>) -> Vec<UserSpec> {
        let state = self.state();
        let apps =
            state.apps.values().filter(|app| appid.is_none_or(|appid| app.spec.appid == appid));
        apps.flat_map(|app| app.users.values().cloned()).collect()
    }

    /// Sets a fault, beside those that are set, and answers its number.
    pub fn set_fault(&self, fault: Fault) -> u64 {
        self.state().faults.set(fault)
    }

    /// The faults that are set, with what is left of their counts.
    pub fn faults(&self) -> Vec<SetFault> {
        self.state().faults.list()
    }

    /// Takes one fault away; answers whether it was set.
    pub fn remove_fault(&self, id: u64) -> bool {
        self.state().faults.remove(id)
    }

    /// Takes all faults away.
    pub fn clear_faults(&self) {
        self.state().faults.clear();
    }

    /// How it behaves where WeChat is unknown.
    pub fn switches(&self) -> Switches {
        self.state().switches.clone()
    }

    /// Changes how it behaves; tokens that exist keep their lives.
    pub fn set_switches(&self, switches: Switches) {
        self.state().switches = switches;
    }

    /// The messages that an app has sent to its users, oldest first, as they came; the last 1,000.
    pub fn messages(&self, appid: &str) -> Result<Vec<serde_json::Value>, ControlError> {
        let state = self.state();
        let app = state.apps.get(appid).ok_or_else(|| unknown(appid))?;
        Ok(app.content.messages())
    }

    /// What was called.
    pub fn calls(&self) -> Calls {
        self.calls_after(0, usize::MAX)
    }

    /// How often what was called, without the log.
    pub fn totals(&self) -> Vec<Total> {
        self.state().calls.totals()
    }

    /// What was called, with no more than `limit` log entries, and only those after number
    /// `after`.
    pub fn calls_after(&self, after: u64, limit: usize) -> Calls {
        let state = self.state();
        Calls { totals: state.calls.totals(), log: state.calls.after(after, limit) }
    }

    /// Mints a token as somebody outside would, and answers it.
    ///
    /// With `kill` every token before it ends at once. It counts for no quota.
    pub fn foreign_refresh(
        &self,
        appid: &str,
        issuer: Issuer,
        kill: bool,
    ) -> Result<String, ControlError> {
        let mut state = self.state();
        let now = self.now();
        state.foreign_mint(appid, issuer, kill, now).ok_or_else(|| unknown(appid))
    }

    /// Ends the tokens of an app as WeChat does at times. The stable issuer goes on to hand out the
    /// dead one, until it is forced or the nominal life of that token is over.
    pub fn end_tokens(&self, appid: &str) {
        let mut state = self.state();
        let now = self.now();
        state.invalidate(appid, None, true, now);
    }

    /// What a business call of an app with this token would meet now.
    pub fn token_state(&self, appid: &str, token: &str) -> TokenState {
        self.state().token_state(appid, token, self.now())
    }

    /// The tokens of an app; none when the app is unknown.
    pub fn current_tokens(&self, appid: &str) -> CurrentTokens {
        self.state().current_tokens(appid, self.now())
    }

    /// Whether a page signed with this ticket would work now.
    pub fn ticket_works(&self, appid: &str, ticket: &str) -> bool {
        self.state().ticket_works(appid, ticket, self.now())
    }

    /// Forgets tokens, tickets, codes, grants, sessions, duplicate callbacks, used quotas,
    /// faults and calls, and takes the
    /// first switches back. Apps stay, each as it was added, whatever faults and updates made of it since; users stay as
    /// they are. The clock and the generators go on, so that no token comes twice.
    pub fn reset(&self) {
        self.state().reset(self.0.switches.clone());
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic while it was held left at worst one call half counted.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Sim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sim").field("seed", &self.0.seed).finish_non_exhaustive()
    }
}

fn unknown(appid: &str) -> ControlError {
    ControlError::UnknownApp(appid.to_owned())
}
