//! Where state lives: the contracts of [`Store`] and [`Shared`].
//!
//! [`Store`] holds what must survive a restart, or must not be revived by one; the part of it that
//! logins leave behind is [`Logins`]. [`Shared`] holds
//! what expires by itself but every replica must see. Both are chosen once, by URL scheme, and
//! every backend runs the same conformance suite.
//!
//! What holds for every method:
//! - it is atomic: it happens as a whole or not at all, also when the process dies half-way;
//! - "not found" and "somebody else was first" are answers, not errors;
//! - a write that was acknowledged survives a kill of the process;
//! - instants are by [`Store::now`], the store's own clock, never by a replica's;
//! - no method sees a secret in clear: [`Sealed`] values come sealed and leave sealed;
//! - a list leaves out a row that cannot be read, and logs it; asked for one such row, a method
//!   answers [`StoreError::Corrupt`].

mod away;
#[cfg(test)]
mod conformance;
mod logins;
mod memory;
mod postgres;
mod redis;
mod rows;
#[cfg(test)]
mod servers;
mod sqlite;

use std::{fmt, time::Duration};

use async_trait::async_trait;
use aws_lc_rs::digest::{SHA256, digest};
use clock::Timestamp;
use wechat::{AppId, OpenId};

pub use logins::{
    CLAIM_KEPT, Claim, GRANT_KEPT, GrantId, GrantRow, Kept, Logins, OUTCOME_KEPT, PROFILE_KEPT,
    ProfileRow, SessionRow,
};
pub use memory::MemoryStore;
pub use postgres::{PostgresStore, PostgresUrl, PostgresUrlError};
pub use redis::{RedisShared, RedisUrl, RedisUrlError};
pub use sqlite::SqliteStore;

use crate::{
    app::{AppKind, Issuer},
    audit::AuditEntry,
    credential::{CredentialId, Trouble},
    ledger::{Budget, LedgerRow, Spending},
    seal::Sealed,
    slot::SET_BACK,
};

/// A store that did not do what it was asked, and why. Never holds a value that was to be stored.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// It cannot be reached or is overloaded; the same call may succeed later.
    #[error("the store is unavailable: {0}")]
    Unavailable(String),
    /// It holds something that cannot be read; a person has to look.
    #[error("the store holds something unreadable: {0}")]
    Corrupt(String),
}

/// What a database held before anything was done to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tables {
    /// No tables yet.
    None,
    /// Tables that an older version has made.
    Older,
    /// Tables as this version makes them.
    Current,
}

impl Tables {
    /// What the version of `database` means to who knows versions up to `newest`. A later one is
    /// refused.
    fn of(database: &dyn fmt::Display, version: i64, newest: i64) -> StoreResult<Self> {
        match version {
            0 => Ok(Self::None),
            _ if version == newest => Ok(Self::Current),
            _ if version < newest => Ok(Self::Older),
            _ => Err(StoreError::Corrupt(format!(
                "{database} is of version {version}, and this xinfu knows versions up to {newest}: \
                 run a newer xinfu"
            ))),
        }
    }
}

/// What a store answers with.
pub type StoreResult<T> = Result<T, StoreError>;

/// One registered app as stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AppRow {
    /// The appid.
    pub app: AppId,
    /// Another name for it, unique among aliases and appids.
    pub alias: Option<String>,
    /// What kind of app it is: decides its quotas.
    pub kind: AppKind,
    /// Which of WeChat's two endpoints mints its global token.
    pub issuer: Issuer,
    /// The AppSecret, sealed.
    pub secret: Sealed,
    /// 1 when added, +1 at each change.
    pub revision: u64,
    /// When it was added.
    pub created_at: Timestamp,
    /// When it was last changed.
    pub updated_at: Timestamp,
}

/// One client key as stored. The key itself is not kept, only its hash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyRow {
    /// The id of the key, not secret.
    pub id: String,
    /// What people call it.
    pub name: String,
    /// SHA-256 of the key.
    pub hash: [u8; 32],
    /// What it may do and on which apps, as JSON of [`crate::key::Rights`].
    pub rights: String,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it stops working by itself.
    pub expires_at: Option<Timestamp>,
    /// When it was revoked.
    pub revoked_at: Option<Timestamp>,
}

/// The current generation of one credential as stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CredentialRow {
    /// Which credential.
    pub id: CredentialId,
    /// 1 for the first, +1 at each replacement.
    pub generation: u64,
    /// The token or ticket, sealed.
    pub value: Sealed,
    /// Keyed hash of the value: what a report is compared with.
    pub hash: [u8; 32],
    /// Just before the request that brought it was sent.
    pub sent: Timestamp,
    /// Just after its answer came.
    pub answered: Timestamp,
    /// When its life ends.
    pub expires_at: Timestamp,
    /// When to refresh it.
    pub refresh_at: Timestamp,
    /// Whether WeChat said that it no longer works.
    pub dead: bool,
    /// When somebody last asked for it; tickets that nobody asks for are dropped.
    pub used_at: Timestamp,
}

/// One key that passes are sealed with, as stored. Replicas take it into use some time after it was
/// published, when all of them have read it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PassKeyRow {
    /// The name that passes know it by: 8 characters of `[A-Za-z0-9_-]`.
    pub id: String,
    /// The key, sealed.
    pub key: Sealed,
    /// When it was stored.
    pub published_at: Timestamp,
}

/// One entry of the change log: something that a running server has to read again.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Change {
    /// An app was added, changed or removed.
    App(AppId),
    /// Client keys were added or revoked.
    Keys,
    /// A key that passes are sealed with was published.
    PassKeys,
    /// A credential got another row, or its trouble changed.
    Credential(CredentialId),
}

/// What has changed since a point of the change log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Changes {
    /// The newest point of the log: what to ask from next time.
    pub latest: u64,
    /// The changes, oldest first, without repeats; `None` when the log no longer reaches back that
    /// far and everything has to be read again.
    pub entries: Option<Vec<Change>>,
}

/// Where a sealed value stands: the identity that it is bound to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Place {
    /// The AppSecret of an app.
    AppSecret(AppId),
    /// The current value of a credential.
    Credential(CredentialId, u64),
    /// A secret of xinfu itself, by name.
    Own(String),
    /// A key that passes are sealed with, by its id.
    PassKey(String),
    /// What the exchange of a code gave, by the hash of the code.
    Outcome(AppId, [u8; 32]),
    /// The tokens of a grant, by its version.
    Tokens(GrantId, String),
    /// The profile that was read with a grant.
    Profile(GrantId),
    /// The session key of a mini program's user, by the hash of our session id.
    SessionKey(AppId, [u8; 32]),
}

impl Place {
    /// The text that a value at this place is bound to when sealed.
    pub fn binding(&self) -> String {
        match self {
            Self::AppSecret(app) => format!("app-secret/{app}"),
            Self::Credential(id, generation) => {
                format!("credential/{}/{}/{generation}", id.app, id.kind.as_str())
            }
            Self::Own(name) => format!("own/{name}"),
            Self::PassKey(id) => format!("pass-key/{id}"),
            Self::Outcome(app, code) => format!("outcome/{app}/{}", hex(code)),
            Self::Tokens(GrantId { app, openid, scope }, version) => {
                format!("tokens/{app}/{}/{}/{version}", pseudonym(openid), scope.as_str())
            }
            Self::Profile(GrantId { app, openid, scope }) => {
                format!("profile/{app}/{}/{}", pseudonym(openid), scope.as_str())
            }
            Self::SessionKey(app, id) => format!("session-key/{app}/{}", hex(id)),
        }
    }
}

/// Stands for a user where an openid would be seen: a binding is told when its value does not open.
fn pseudonym(openid: &OpenId) -> String {
    hex(digest(&SHA256, openid.as_str().as_bytes()).as_ref())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What must survive: apps, keys, current credentials, the ledger, the audit log; and what logins leave
/// behind.
#[async_trait]
pub trait Store: Logins {
    /// The store's time: what every persisted instant is measured by.
    async fn now(&self) -> StoreResult<Timestamp>;

    /// What changed after point `after` of the change log. Every write below that alters an app, a
    /// key, a credential or a trouble appends to the log in its own transaction. A point beyond
    /// the end of the log (a store that was restored) also answers `entries: None`.
    async fn changes(&self, after: u64) -> StoreResult<Changes>;

    /// All apps, by appid.
    async fn list_apps(&self) -> StoreResult<Vec<AppRow>>;

    /// One app.
    async fn find_app(&self, app: &AppId) -> StoreResult<Option<AppRow>>;

    /// Adds an app (`row.revision` 1) or replaces the one whose revision is one less, with its
    /// audit entry. `false`: it is there already, or its revision is another, or its alias or
    /// appid is taken as a name by another app; then nothing was written, the audit entry neither.
    /// Clears the troubles of the app's credentials: what stopped them may be mended.
    async fn put_app(&self, row: &AppRow, audit: &AuditEntry) -> StoreResult<bool>;

    /// Removes an app with its credentials, their history and troubles, each of which the change
    /// log names too, and with all about its users; the ledger and the claims on codes stay, so
    /// that an app that comes back neither gets its quota twice nor exchanges a code twice.
    /// `false`: there is none.
    async fn remove_app(&self, app: &AppId, audit: &AuditEntry) -> StoreResult<bool>;

    /// All client keys, revoked ones too, oldest first.
    async fn list_keys(&self) -> StoreResult<Vec<KeyRow>>;

    /// Adds a client key. `false`: the id or the hash is taken.
    async fn add_key(&self, row: &KeyRow, audit: &AuditEntry) -> StoreResult<bool>;

    /// Marks a key revoked as of [`Store::now`]. `false`: there is none, or it is revoked already.
    async fn revoke_key(&self, id: &str, audit: &AuditEntry) -> StoreResult<bool>;

    /// The current rows of all credentials.
    async fn list_credentials(&self) -> StoreResult<Vec<CredentialRow>>;

    /// The current row of one credential.
    async fn find_credential(&self, id: &CredentialId) -> StoreResult<Option<CredentialRow>>;

    /// Makes `row` the current one if the current generation is `over` (0: there is none), the
    /// row's generation is a later one, and the app is registered; clears the credential's trouble; remembers the hash of the
    /// row until `row.expires_at`; keeps `used_at` when the one before has a later one. `false`:
    /// somebody else was first, or the app is gone.
    async fn put_credential(&self, row: &CredentialRow, over: u64) -> StoreResult<bool>;

    /// Sets when the current row expires and is to be refreshed, if it still has this generation,
    /// and takes back an instant of fetching that is in the future;
    /// clears the credential's trouble. Its hash is remembered until the latest end that was ever
    /// stated. `false`: it has another.
    async fn set_expiry(
        &self,
        id: &CredentialId,
        generation: u64,
        expires_at: Timestamp,
        refresh_at: Timestamp,
    ) -> StoreResult<bool>;

    /// Marks the current row dead, if it still has this generation. `false`: it has another, or
    /// is dead already.
    async fn mark_dead(&self, id: &CredentialId, generation: u64) -> StoreResult<bool>;

    /// Records that somebody asked for the credential at `at`, unless a later instant is recorded
    /// or there is no row. Appends nothing to the change log.
    async fn set_used(&self, id: &CredentialId, at: Timestamp) -> StoreResult<()>;

    /// Forgets a credential that nobody has asked for after `unused_since`: its row, its history,
    /// its trouble. `false`: somebody has, or there is no row.
    async fn drop_unused(&self, id: &CredentialId, unused_since: Timestamp) -> StoreResult<bool>;

    /// The newest generation, current or past, whose value had this hash and whose life, as it
    /// was stated, has not ended.
    async fn find_generation(&self, id: &CredentialId, hash: &[u8; 32])
    -> StoreResult<Option<u64>>;

    /// The troubles of all credentials.
    async fn list_troubles(&self) -> StoreResult<Vec<(CredentialId, Trouble)>>;

    /// The trouble of one credential.
    async fn find_trouble(&self, id: &CredentialId) -> StoreResult<Option<Trouble>>;

    /// Records what is wrong with a credential of an app whose revision is `revision`; `None`:
    /// nothing any more. The app need not have a row for the credential yet. `false`: the app is
    /// gone or has been changed, and nothing was written: what was wrong may be mended.
    async fn set_trouble(
        &self,
        id: &CredentialId,
        revision: u64,
        trouble: Option<&Trouble>,
    ) -> StoreResult<bool>;

    /// Takes one call of `api` from the app's budget, before the call is made; see
    /// [`Budget::spend`] for the rules. What it grants is counted even if the caller dies.
    async fn spend(&self, app: &AppId, api: &str, budget: &Budget) -> StoreResult<Spending>;

    /// The ledger of an app, newest day first, at most 62 days back.
    async fn ledger(&self, app: &AppId) -> StoreResult<Vec<LedgerRow>>;

    /// A secret of xinfu itself by name: the stored one, or `fresh` when there was none, which is
    /// then stored. Two callers with different fresh values get the same answer.
    async fn own_secret(&self, name: &str, fresh: &Sealed) -> StoreResult<Sealed>;

    /// The keys that passes are sealed with, in the order of their publication.
    async fn pass_keys(&self) -> StoreResult<Vec<PassKeyRow>>;

    /// Publishes a key for passes if the one published last is `last`, and forgets those that were
    /// published before `forget_before`. `false`: another one was published meanwhile, or the id is
    /// taken; then nothing was written.
    async fn add_pass_key(
        &self,
        row: &PassKeyRow,
        last: Option<&str>,
        forget_before: Timestamp,
    ) -> StoreResult<bool>;

    /// The ids of all master keys that sealed values name, each once, in order.
    async fn sealing_keys(&self) -> StoreResult<Vec<String>>;

    /// Up to `limit` sealed values that are not sealed with master key `key`.
    async fn sealed_otherwise(&self, key: &str, limit: usize) -> StoreResult<Vec<(Place, Sealed)>>;

    /// Replaces a sealed value by another sealing of the same. `false`: it is no longer `old`.
    async fn reseal(&self, place: &Place, old: &Sealed, new: &Sealed) -> StoreResult<bool>;

    /// Adds an audit entry that belongs to no change.
    async fn add_audit(&self, entry: &AuditEntry) -> StoreResult<()>;

    /// The newest `limit` audit entries, newest first, before entry number `before` if given.
    async fn list_audit(
        &self,
        before: Option<u64>,
        limit: usize,
    ) -> StoreResult<Vec<(u64, AuditEntry)>>;
}

/// A lease that was got: the right to refresh one credential until `until`, by the clock of the
/// [`Shared`] that gave it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// What it is for.
    pub name: String,
    /// Who holds it; unique for each holding.
    pub owner: String,
    /// When it ends.
    pub until: Timestamp,
}

impl Lease {
    /// Whether the lease holds at `now` against somebody who asks for `ttl`. One that would end
    /// beyond any life that is asked for was given by a clock that has been set back since, and
    /// holds nobody off.
    pub(crate) fn holds(&self, now: Timestamp, ttl: Duration) -> bool {
        now < self.until && self.until <= now + ttl + SET_BACK
    }
}

/// The answer to who asks for a lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Acquired {
    /// It is yours.
    Yes(Lease),
    /// Somebody else has it until this instant.
    HeldUntil(Timestamp),
}

/// What expires by itself but all replicas must see: leases and wake-ups.
#[async_trait]
pub trait Shared: Send + Sync {
    /// The clock that leases are measured by.
    async fn now(&self) -> StoreResult<Timestamp>;

    /// Takes the lease `name` for `owner` unless somebody else holds it; one that has run out is
    /// free. `owner` must be unique for each holding: asking again for a lease that one holds
    /// answers [`Acquired::HeldUntil`].
    async fn acquire(&self, name: &str, owner: &str, ttl: Duration) -> StoreResult<Acquired>;

    /// Extends a lease to `ttl` from now. `None`: it ran out or is somebody else's, so that its
    /// holder must stop what it is doing.
    async fn renew(&self, lease: &Lease, ttl: Duration) -> StoreResult<Option<Lease>>;

    /// Gives a lease back. Does nothing when it is no longer this owner's.
    async fn release(&self, lease: &Lease) -> StoreResult<()>;

    /// Tells everyone who waits in [`Shared::woken`] that the store has changed.
    async fn wake(&self) -> StoreResult<()>;

    /// Waits until something may have changed in the store since `cursor` was answered (0 at the
    /// start: answers at once), and answers the next cursor. May wake without reason; a wake-up
    /// that is lost for good is allowed, so callers look by themselves now and then.
    async fn woken(&self, cursor: u64) -> StoreResult<u64>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_of_a_clock_that_was_set_back_holds_nobody_off() {
        let secs = Duration::from_secs;
        let (now, ttl) = (Timestamp::from_secs(1_000_000), secs(40));
        let until = |until| Lease { name: String::new(), owner: String::new(), until };
        assert!(until(now + secs(1)).holds(now, ttl));
        assert!(until(now + ttl).holds(now, ttl));
        assert!(!until(now).holds(now, ttl), "it has run out");
        assert!(!until(now + secs(30 * 60)).holds(now, ttl), "no life is that long");
    }
}
