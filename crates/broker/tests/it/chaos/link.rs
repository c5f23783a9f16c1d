//! The store, or what replicas share, as one replica sees it: behind a link that takes time, and that can
//! be cut. What is done at its far end is written down there.

use std::{
    net::IpAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use broker::{
    audit::AuditEntry,
    credential::{CredentialId, Trouble},
    ledger::{Budget, LedgerRow, Spending},
    seal::Sealed,
    store::{
        Acquired, AppRow, Changes, Claim, CredentialRow, GrantId, GrantRow, Kept, KeyRow, Lease,
        Logins, MemoryStore, PassKeyRow, Place, ProfileRow, SessionRow, Shared, Store, StoreError,
        StoreResult,
    },
};
use clock::{Clock, Timestamp};
use wechat::{AppId, OpenId, UnionId};

use super::records::Records;

/// After so long a call is given up that is lost on the way.
pub(super) const PATIENCE: Duration = Duration::from_secs(3);
/// A link whose every way takes longer, in milliseconds, tries the patience of readers.
pub(super) const SLOW: u64 = 300;

/// What is at the far end. Cloning gives another handle to the same.
#[derive(Clone)]
pub(super) struct Far(Arc<Mutex<MemoryStore>>);

impl Far {
    pub(super) fn by(clock: &Clock) -> Self {
        Self(Arc::new(Mutex::new(MemoryStore::new(clock.clone()))))
    }

    /// Forgets everything, as by the restart of one that keeps nothing on disk. Who waits there hears
    /// nothing more.
    pub(super) fn restart(&self, clock: &Clock) {
        *self.0.lock().expect("nobody panics with it") = MemoryStore::new(clock.clone());
    }

    /// What is there now.
    pub(super) fn store(&self) -> MemoryStore {
        self.0.lock().expect("nobody panics with it").clone()
    }
}

/// The way to it. Cloning gives another handle to the same.
#[derive(Clone)]
pub(super) struct Link {
    ip: IpAddr,
    far: Far,
    state: Arc<State>,
    records: Records,
}

struct State {
    /// While the link is cut: after so many milliseconds a call fails.
    fails_after: AtomicU64,
    /// So long a call takes each way, in milliseconds.
    slowness: AtomicU64,
    /// After so many ways more nothing passes any more, as if the process had ended there.
    fuse: AtomicU64,
}

/// The link is not cut.
const WHOLE: u64 = u64::MAX;
/// No fuse is lit.
const UNLIT: u64 = u64::MAX;
/// It has burnt down.
const BURNT: u64 = u64::MAX - 1;

impl Link {
    /// The way of the replica with this address.
    pub(super) fn of(ip: IpAddr, far: &Far, records: &Records) -> Self {
        let state = State {
            fails_after: AtomicU64::new(WHOLE),
            slowness: AtomicU64::new(2),
            fuse: AtomicU64::new(UNLIT),
        };
        Self { ip, far: far.clone(), state: Arc::new(state), records: records.clone() }
    }

    /// Cuts the link, so that each call fails after so long, or mends it. What is on its way when it is
    /// cut may have been done.
    pub(super) fn cut(&self, patience: Option<Duration>) {
        let millis = patience.map_or(WHOLE, |it| u64::try_from(it.as_millis()).unwrap());
        self.state.fails_after.store(millis, Ordering::Release);
    }

    /// What it leads to.
    pub(super) fn far(&self) -> &Far {
        &self.far
    }

    pub(super) fn slow(&self, millis: u64) {
        self.state.slowness.store(millis, Ordering::Release);
    }

    /// Lets so many ways pass and no other, until [`Link::mend`].
    pub(super) fn burn_after(&self, ways: u64) {
        self.state.fuse.store(ways, Ordering::Release);
    }

    pub(super) fn is_burnt(&self) -> bool {
        self.state.fuse.load(Ordering::Acquire) == BURNT
    }

    pub(super) fn mend(&self) {
        self.state.fuse.store(UNLIT, Ordering::Release);
    }

    async fn way(&self) -> StoreResult<()> {
        match self.state.fuse.load(Ordering::Acquire) {
            UNLIT => {}
            0 | BURNT => {
                self.state.fuse.store(BURNT, Ordering::Release);
                std::future::pending::<()>().await;
            }
            left => self.state.fuse.store(left - 1, Ordering::Release),
        }
        let slowness = Duration::from_millis(self.state.slowness.load(Ordering::Acquire));
        tokio::time::sleep(slowness).await;
        match self.state.fails_after.load(Ordering::Acquire) {
            WHOLE => Ok(()),
            millis => {
                tokio::time::sleep(Duration::from_millis(millis)).await;
                Err(StoreError::Unavailable("the link is cut".to_owned()))
            }
        }
    }

    async fn over<T>(&self, call: impl Future<Output = StoreResult<T>>) -> StoreResult<T> {
        self.way().await?;
        let answer = call.await;
        self.way().await?;
        answer
    }
}

/// Implements a trait by passing each call on. A call with a `record` has its answer written down as
/// soon as the store has given it, whether or not it comes back.
macro_rules! passed_on {
    (@record $link:ident, $asked:expr, $answer:ident) => {};
    (@record $link:ident, $asked:expr, $answer:ident, $record:ident) => {
        if let Ok(answer) = &$answer {
            $link.records.$record($link.ip, $asked, answer);
        }
    };
    ($trait:ident { $(
        fn $name:ident($($arg:ident: $type:ty),*) -> $answer:ty $(, record $record:ident)?;
    )+ }) => {
        #[async_trait]
        impl $trait for Link {
            $(async fn $name(&self, $($arg: $type),*) -> StoreResult<$answer> {
                self.over(async {
                    let answer = $trait::$name(&self.far.store(), $($arg),*).await;
                    passed_on!(@record self, ($($arg,)*), answer $(, $record)?);
                    answer
                })
                .await
            })+
        }
    };
}

passed_on! { Store {
    fn now() -> Timestamp;
    fn changes(after: u64) -> Changes;
    fn list_apps() -> Vec<AppRow>;
    fn find_app(app: &AppId) -> Option<AppRow>;
    fn put_app(row: &AppRow, audit: &AuditEntry) -> bool;
    fn remove_app(app: &AppId, audit: &AuditEntry) -> bool;
    fn list_keys() -> Vec<KeyRow>;
    fn add_key(row: &KeyRow, audit: &AuditEntry) -> bool;
    fn revoke_key(id: &str, audit: &AuditEntry) -> bool;
    fn list_credentials() -> Vec<CredentialRow>;
    fn find_credential(id: &CredentialId) -> Option<CredentialRow>;
    fn put_credential(row: &CredentialRow, over: u64) -> bool, record put;
    fn set_expiry(id: &CredentialId, generation: u64, expires_at: Timestamp, refresh_at: Timestamp) -> bool, record life;
    fn mark_dead(id: &CredentialId, generation: u64) -> bool, record marked;
    fn set_used(id: &CredentialId, at: Timestamp) -> ();
    fn drop_unused(id: &CredentialId, unused_since: Timestamp) -> bool;
    fn find_generation(id: &CredentialId, hash: &[u8; 32]) -> Option<u64>;
    fn list_troubles() -> Vec<(CredentialId, Trouble)>;
    fn find_trouble(id: &CredentialId) -> Option<Trouble>;
    fn set_trouble(id: &CredentialId, revision: u64, trouble: Option<&Trouble>) -> bool;
    fn spend(app: &AppId, api: &str, budget: &Budget) -> Spending, record spent;
    fn ledger(app: &AppId) -> Vec<LedgerRow>;
    fn own_secret(name: &str, fresh: &Sealed) -> Sealed;
    fn pass_keys() -> Vec<PassKeyRow>;
    fn add_pass_key(row: &PassKeyRow, last: Option<&str>, forget_before: Timestamp) -> bool;
    fn sealing_keys() -> Vec<String>;
    fn sealed_otherwise(key: &str, limit: usize) -> Vec<(Place, Sealed)>;
    fn reseal(place: &Place, old: &Sealed, new: &Sealed) -> bool;
    fn add_audit(entry: &AuditEntry) -> ();
    fn list_audit(before: Option<u64>, limit: usize) -> Vec<(u64, AuditEntry)>;
} }

passed_on! { Logins {
    fn claim_code(claim: &Claim) -> Option<Claim>;
    fn find_claim(app: &AppId, code: &[u8; 32]) -> Option<Claim>;
    fn give_up_claim(app: &AppId, code: &[u8; 32], owner: &str) -> bool;
    fn settle_claim(app: &AppId, code: &[u8; 32], owner: &str, outcome: &Sealed, kept: &Kept) -> bool;
    fn grants(app: &AppId, openid: &OpenId) -> Vec<GrantRow>;
    fn list_grants(app: &AppId, after: Option<&OpenId>, limit: usize) -> Vec<GrantRow>;
    fn put_tokens(row: &GrantRow, over: &str) -> bool;
    fn put_profile(id: &GrantId, profile: &ProfileRow, unionid: Option<&UnionId>) -> bool;
    fn unionid(app: &AppId, openid: &OpenId) -> Option<UnionId>;
    fn find_session(app: &AppId, id: &[u8; 32]) -> Option<SessionRow>;
    fn forget_user(app: &AppId, openid: &OpenId, audit: &AuditEntry) -> bool;
    fn forget_past_logins(limit: usize) -> usize;
} }

passed_on! { Shared {
    fn now() -> Timestamp;
    fn acquire(name: &str, owner: &str, ttl: Duration) -> Acquired, record acquired;
    fn renew(lease: &Lease, ttl: Duration) -> Option<Lease>, record renewed;
    fn release(lease: &Lease) -> (), record released;
    fn wake() -> ();
    fn woken(cursor: u64) -> u64;
} }
