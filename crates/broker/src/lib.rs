//! The product without HTTP: it keeps the credentials of WeChat apps fresh and hands them out.
//!
//! A service needs a token:
//! 1. the server finds out who is calling: [`Broker::authenticate`], [`Broker::app`];
//! 2. [`Broker::token`] answers from memory when it can, which is nearly always;
//! 3. otherwise it waits for a *flight*, a task that refreshes one credential (`refresh`): lease in
//!    the store, read again, take the call from the budget, fetch, put, wake;
//! 4. the fetch is one call of [`wechat::Client`] (`fetch`).
//!
//! The background task ([`Broker::run`]) starts the same flights, by a deadline instead of by a
//! caller; and it follows the changes that other processes make in the store.
//!
//! A service brings a user's code: [`Broker::exchange`] claims it in the store, exchanges it, and
//! keeps the grant, from which [`Broker::profile`] reads (`login`, `claim`, `grant`; `mini` for
//! mini programs).
//!
//! There are no HTTP types in here, no files and no environment. All instants that are stored are
//! by the store's time.

pub mod app;
pub mod audit;
mod call;
mod claim;
mod counters;
pub mod credential;
mod directory;
mod error;
mod fetch;
mod follow;
mod freshness;
mod grant;
mod handover;
mod keep;
pub mod key;
pub mod ledger;
mod login;
mod manage;
mod mini;
mod pass;
pub mod path;
mod person;
mod random;
mod rate;
mod refresh;
mod report;
mod reveal;
mod schedule;
pub mod seal;
mod slot;
pub mod store;
mod ticket;
mod together;
mod token;
mod traffic;
mod user;
mod wrap;

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI64, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use clock::{Clock, Timestamp};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub use call::Attempts;
pub use counters::{Counters, Figures};
pub use directory::AppEntry;
pub use error::{CallError, ManageError, OpenError, ReportError, TokenError};
pub use grant::{Ended, GrantView, PROFILE_LIFE, Profile, ProfileError, ProfileQuery, UserGrants};
pub use login::{Authorize, AuthorizeUrl, ExchangeError, Identity, Proof, WrongKind};
pub use manage::{AppChange, Applied, ApplyError, NewApp, Rekeyed};
pub use mini::{MiniError, MiniLogin};
pub use pass::{DeadPass, PASS_HONOURED, PASS_LIFE, Pass, Passed};
pub use person::{Drill, Refreshed};
pub use rate::{Bounds, TooFast};
pub use report::INVALID_TOKEN;
pub use ticket::{JssdkConfig, TicketView};
pub use token::{CredentialStatus, MIN_TTL_CAP, TokenView};
pub use traffic::{CallClass, DurationFigures, FetchResult, TrafficFigures};
pub use wrap::{NotWrapped, Unwrapped};

use crate::{
    claim::{Brought, Outcome},
    directory::Directory,
    freshness::Freshness,
    grant::{Renewed, Why},
    key::{ClientKey, Keys, NotKnown, key_hash},
    login::Redirects,
    pass::PassKeys,
    reveal::Revealed,
    schedule::Schedule,
    seal::{Sealed, Sealer, TokenHasher},
    store::{GrantId, Place, Shared, Store, StoreResult},
    together::Together,
    traffic::Durations,
    wrap::Wrapper,
};

/// What a broker is made of.
pub struct Parts {
    /// What survives.
    pub store: Arc<dyn Store>,
    /// What expires by itself.
    pub shared: Arc<dyn Shared>,
    /// WeChat.
    pub wechat: wechat::Client,
    /// Wall time.
    pub clock: Clock,
    /// The master keys.
    pub sealer: Sealer,
    /// Who owns the tasks, so that shutdown can wait for them.
    pub tasks: TaskTracker,
    /// How to treat callers.
    pub bounds: Bounds,
}

/// The broker. Cloning gives another handle to the same one.
#[derive(Clone)]
pub struct Broker(Arc<Inner>);

struct Inner {
    store: Arc<dyn Store>,
    shared: Arc<dyn Shared>,
    wechat: wechat::Client,
    clock: Clock,
    sealer: Sealer,
    hasher: TokenHasher,
    tasks: TaskTracker,
    apps: Directory,
    keys: ArcSwap<Keys>,
    bounds: Bounds,
    /// Whether memory is near enough to the store to say which client keys are good.
    freshness: Freshness,
    /// Whether what replicas share did not answer the last time.
    shared_fails: AtomicBool,
    pass_keys: PassKeys,
    wrapper: Wrapper,
    /// Who was given which token itself.
    revealed: Revealed,
    schedule: Schedule,
    counters: Counters,
    refresh_durations: Durations,
    redirects: Redirects,
    /// Codes that are being exchanged.
    exchanges: Together<Brought, Result<Outcome, ExchangeError>>,
    /// Grants that are being renewed, by their version.
    renewals: Together<(GrantId, String, Why), Result<Renewed, ProfileError>>,
    /// How far the store's time is ahead of our clock, in milliseconds.
    ahead: AtomicI64,
    /// The point of the change log up to which memory is known to be right.
    followed: tokio::sync::Mutex<u64>,
}

impl Broker {
    /// Opens the store: checks that every master key that it needs is here, and reads apps, client
    /// keys and current credentials into memory. Fetches nothing.
    pub async fn open(parts: Parts) -> Result<Self, OpenError> {
        let Parts { store, shared, wechat, clock, sealer, tasks, bounds } = parts;
        for key in store.sealing_keys().await? {
            if !sealer.has(&key) {
                return Err(OpenError::Seal(seal::SealError::UnknownKey(key)));
            }
        }
        let hasher = TokenHasher::new(&own_secret(store.as_ref(), &sealer, "token-hash").await?);
        let wrapper = Wrapper::new(&own_secret(store.as_ref(), &sealer, "web-wrap").await?);
        let broker = Self(Arc::new(Inner {
            store,
            shared,
            wechat,
            clock,
            sealer,
            hasher,
            tasks,
            apps: Directory::default(),
            keys: ArcSwap::default(),
            freshness: Freshness::new(bounds.stale_keys_max),
            bounds,
            shared_fails: AtomicBool::new(false),
            pass_keys: PassKeys::default(),
            wrapper,
            revealed: Revealed::default(),
            schedule: Schedule::default(),
            counters: Counters::default(),
            refresh_durations: Durations::default(),
            redirects: Redirects::default(),
            exchanges: Together::default(),
            renewals: Together::default(),
            ahead: AtomicI64::new(0),
            followed: tokio::sync::Mutex::new(0),
        }));
        broker.sync_time().await?;
        broker.reload_all().await?;
        broker.keep_pass_keys().await?;
        Ok(broker)
    }

    /// Keeps credentials fresh and follows the store until `shutdown`. Flights under way go on:
    /// whoever owns the tasks waits for them, so that what WeChat has answered is stored.
    pub async fn run(&self, shutdown: CancellationToken) {
        let work = async {
            tokio::join!(
                self.keep_fresh(),
                self.follow_forever(),
                self.watch_shared_forever(),
                self.write_aggregates_forever(),
                self.forget_past_logins_forever(),
                self.keep_pass_keys_forever(),
                self.0.freshness.watch(),
            );
        };
        tokio::select! {
            biased;
            () = work => {}
            () = shutdown.cancelled() => {}
        }
        self.store_all_unstored().await;
        self.write_aggregates().await;
    }

    /// The app of this appid or alias. Takes no lock.
    pub fn app(&self, name: &str) -> Option<Arc<AppEntry>> {
        self.0.apps.find(name)
    }

    /// Every registered app, in no order.
    pub fn apps(&self) -> Vec<Arc<AppEntry>> {
        self.0.apps.all()
    }

    /// The client key that was presented, if it is known, not revoked and not expired. Takes no
    /// lock.
    pub fn authenticate(&self, presented: &str) -> Result<Arc<ClientKey>, NotKnown> {
        if self.0.freshness.is_lost() {
            return Err(NotKnown::Stale);
        }
        let keys = self.0.keys.load();
        let key = keys.by_hash.get(&key_hash(presented)).filter(|key| key.is_live(|| self.now()));
        key.map(Arc::clone).ok_or(NotKnown::Unknown)
    }

    /// The store's time, as well as it is known without asking the store.
    pub fn now(&self) -> Timestamp {
        self.0.clock.now().offset_millis(self.0.ahead.load(Ordering::Relaxed))
    }

    /// Waits until every refresh that is due has been done or has failed. Whoever moves a shared
    /// clock forward awaits this after each step.
    pub async fn settled(&self) {
        self.0.schedule.settled(|| self.now()).await;
    }

    /// Whether callers can be answered: client keys are known well enough to say who may call. A
    /// store that is away for a while changes nothing in that, since all replicas would miss it.
    pub fn is_ready(&self) -> bool {
        !self.0.freshness.is_lost()
    }

    /// Whether the store answered the last time that it was looked at.
    pub fn reaches_store(&self) -> bool {
        !self.0.freshness.is_failing()
    }

    /// Whether what gives leases and wake-ups answered the last time that it was looked at.
    pub fn reaches_shared(&self) -> bool {
        !self.0.shared_fails.load(Ordering::Relaxed)
    }

    /// What has been counted since the start.
    pub fn counters(&self) -> &Counters {
        &self.0.counters
    }

    /// How long fetches took, since the start.
    pub fn refresh_durations(&self) -> DurationFigures {
        self.0.refresh_durations.read()
    }

    /// The client keys that may be used, in no order.
    pub fn client_keys(&self) -> Vec<Arc<ClientKey>> {
        self.0.keys.load().by_hash.values().map(Arc::clone).collect()
    }

    /// How many credentials wait for their next refresh.
    pub fn scheduled(&self) -> usize {
        self.0.schedule.len()
    }

    /// Asks the store for its time and remembers how far it is from our clock.
    async fn sync_time(&self) -> StoreResult<Timestamp> {
        /// Below this a difference is the time that asking took.
        const NOTICEABLE: Duration = Duration::from_secs(2);
        let asked = self.0.clock.now();
        let store = self.0.store.now().await?;
        // The store read its clock somewhere between asking and hearing: only what lies outside is
        // a difference, however far ours was moved meanwhile.
        let ours = store.max(asked).min(self.0.clock.now());
        let ahead = store.as_millis() - ours.as_millis();
        let noticeable = ahead.unsigned_abs() > NOTICEABLE.as_millis() as u64;
        let ahead = if noticeable { ahead } else { 0 };
        let before = self.0.ahead.swap(ahead, Ordering::Relaxed);
        if noticeable && before.abs_diff(ahead) > NOTICEABLE.as_millis() as u64 {
            tracing::warn!(clock.ahead_ms = ahead, "the store's clock differs from ours; using it");
        }
        if before != ahead {
            self.0.schedule.look_again();
        }
        Ok(store)
    }

    /// Opens the sealed value of a place.
    fn open_sealed(&self, place: &Place, sealed: &Sealed) -> StoreResult<String> {
        self.0
            .sealer
            .open_text(&place.binding(), sealed)
            .map_err(|err| store::StoreError::Corrupt(err.to_string()))
    }
}

impl fmt::Debug for Broker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Broker")
    }
}

/// A secret of our own, which lives sealed in the store so that all replicas share it.
async fn own_secret(store: &dyn Store, sealer: &Sealer, name: &str) -> Result<Vec<u8>, OpenError> {
    let binding = Place::Own(name.to_owned()).binding();
    let fresh = sealer.seal(&binding, random::random_word::<32>().as_bytes());
    let stored = store.own_secret(name, &fresh).await?;
    Ok(sealer.open(&binding, &stored)?)
}
