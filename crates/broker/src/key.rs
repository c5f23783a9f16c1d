//! Client keys: who may call us, and for what.
//!
//! A key is `xk_` and 43 characters of `[A-Za-z0-9_-]`, 256 random bits. It is shown once, when it
//! is made; only its SHA-256 is kept, which is enough for a secret of that strength. What a key may
//! do is a set of permissions and a set of apps, and nothing is allowed that is not in both.

use std::{
    collections::{BTreeSet, HashMap},
    fmt,
    str::FromStr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use aws_lc_rs::digest;
use clock::Timestamp;
use serde::{Deserialize, Serialize};
use wechat::AppId;

use crate::{
    AppEntry,
    app::UnknownWord,
    random::random_word,
    rate::{Bounds, Rate, TooFast},
    store::{KeyRow, StoreError},
};

/// One thing that a client key may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Permission {
    /// Read the global token.
    Token,
    /// Report that a token failed.
    Report,
    /// Read tickets, and sign for the JS-SDK.
    Tickets,
    /// Read followers.
    Users,
    /// Exchange codes and read profiles of users who authorised.
    Oauth,
    /// Call WeChat's API through us, where the key's paths allow it.
    Proxy,
    /// Exchange the codes of mini programs for session keys, as an SDK does: the session key leaves.
    SessionKey,
    /// Set the day's counters of an app to zero, which WeChat allows ten times a month.
    ClearQuota,
}

impl Permission {
    /// All permissions.
    pub const ALL: [Self; 8] = [
        Self::Token,
        Self::Report,
        Self::Tickets,
        Self::Users,
        Self::Oauth,
        Self::Proxy,
        Self::SessionKey,
        Self::ClearQuota,
    ];

    /// The permission as one word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Token => "token",
            Self::Report => "report",
            Self::Tickets => "tickets",
            Self::Users => "users",
            Self::Oauth => "oauth",
            Self::Proxy => "proxy",
            Self::SessionKey => "session-key",
            Self::ClearQuota => "clear-quota",
        }
    }
}

impl FromStr for Permission {
    type Err = UnknownWord;

    fn from_str(word: &str) -> Result<Self, UnknownWord> {
        Self::ALL.into_iter().find(|it| it.as_str() == word).ok_or_else(|| UnknownWord {
            word: word.to_owned(),
            choices: "token, report, tickets, users, oauth, proxy, session-key, clear-quota",
        })
    }
}

/// The apps that a key reaches.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Apps {
    /// Every app, those added later too.
    All,
    /// These, by appid.
    Only(BTreeSet<String>),
}

/// What a key may do, and where.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rights {
    /// What it may do.
    pub permissions: BTreeSet<Permission>,
    /// On which apps.
    pub apps: Apps,
    /// With [`Permission::Proxy`]: the API paths it may call, `/*` at the end for all below. Empty:
    /// all but those that mint or reset credentials.
    #[serde(default)]
    pub paths: Vec<String>,
    /// An SDK with this key gets the app's own token instead of a pass, and may call WeChat with it
    /// past us.
    #[serde(default)]
    pub reveal: bool,
}

impl Rights {
    /// Everything, on every app.
    pub fn all() -> Self {
        Self {
            permissions: Permission::ALL.into(),
            apps: Apps::All,
            paths: Vec::new(),
            reveal: false,
        }
    }
}

impl KeyRow {
    /// Whether the key works at `now`: neither revoked nor expired.
    pub fn is_live(&self, now: Timestamp) -> bool {
        self.revoked_at.is_none() && self.expires_at.is_none_or(|end| end > now)
    }
}

/// A freshly made key: the only time that its value is known.
pub struct NewKey {
    /// Its id.
    pub id: String,
    value: String,
}

impl NewKey {
    /// Makes a key from fresh randomness.
    pub(crate) fn generate() -> Self {
        Self {
            id: format!("key_{}", random_word::<9>()),
            value: format!("xk_{}", random_word::<32>()),
        }
    }

    /// The key, to be shown once.
    pub fn expose(&self) -> &str {
        &self.value
    }
}

impl fmt::Debug for NewKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NewKey({})", self.id)
    }
}

/// The hash under which a presented key is looked up.
pub(crate) fn key_hash(presented: &str) -> [u8; 32] {
    digest::digest(&digest::SHA256, presented.as_bytes())
        .as_ref()
        .try_into()
        .expect("SHA-256 gives 32 bytes")
}

/// The client keys that may be used, in memory.
#[derive(Debug, Default)]
pub(crate) struct Keys {
    pub(crate) by_hash: HashMap<[u8; 32], Arc<ClientKey>>,
    /// The same, by id.
    by_id: HashMap<String, Arc<ClientKey>>,
}

impl Keys {
    pub(crate) fn new(by_hash: HashMap<[u8; 32], Arc<ClientKey>>) -> Self {
        let by_id = by_hash.values().map(|key| (key.id.clone(), Arc::clone(key))).collect();
        Self { by_hash, by_id }
    }

    /// The key of this id.
    pub(crate) fn find(&self, id: &str) -> Option<&Arc<ClientKey>> {
        self.by_id.get(id)
    }
}

/// Why nobody is let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotKnown {
    /// There is no such client key, or it was revoked or has expired.
    #[error("the client key is unknown, revoked or expired")]
    Unknown,
    /// The store has been out of reach for too long to say which client keys are good.
    #[error("the store is out of reach, so which client keys are good is not known")]
    Stale,
}

/// A client key that is known, and what it may do.
#[derive(Debug)]
pub struct ClientKey {
    /// Its id.
    pub id: String,
    /// What people call it.
    pub name: String,
    /// What it may do.
    pub rights: Rights,
    /// When it stops working.
    pub expires_at: Option<Timestamp>,
    rate: Rate,
    /// Calls that came too early.
    limited: AtomicU64,
    /// Token reads that ended without a token.
    unserved: AtomicU64,
    /// Token reads.
    reads: Tally,
    /// Reports of tokens that worked.
    unfounded: Tally,
}

/// A count that goes on, and the part of it that is in the audit log.
#[derive(Debug, Default)]
struct Tally {
    all: AtomicU64,
    told: AtomicU64,
}

impl Tally {
    fn add(&self) {
        self.all.fetch_add(1, Ordering::Relaxed);
    }

    fn read(&self) -> u64 {
        self.all.load(Ordering::Relaxed)
    }

    /// What was not told yet; now it is.
    fn tell(&self) -> u64 {
        let all = self.read();
        all.saturating_sub(self.told.swap(all, Ordering::Relaxed))
    }

    /// So many could not be told after all.
    fn take_back(&self, count: u64) {
        self.told.fetch_sub(count, Ordering::Relaxed);
    }

    fn go_on_from(&self, other: &Self) {
        self.all.store(other.read(), Ordering::Relaxed);
        self.told.store(other.told.load(Ordering::Relaxed), Ordering::Relaxed);
    }
}

impl ClientKey {
    pub(crate) fn from_row(row: &KeyRow, bounds: &Bounds) -> Result<Self, StoreError> {
        let rights = serde_json::from_str(&row.rights)
            .map_err(|err| StoreError::Corrupt(format!("rights of key {}: {err}", row.id)))?;
        Ok(Self {
            id: row.id.clone(),
            name: row.name.clone(),
            rights,
            expires_at: row.expires_at,
            rate: Rate::per_minute(bounds.key_calls_per_minute),
            limited: AtomicU64::new(0),
            unserved: AtomicU64::new(0),
            reads: Tally::default(),
            unfounded: Tally::default(),
        })
    }

    /// Whether the key holds a permission on some app.
    pub fn may(&self, permission: Permission) -> bool {
        self.rights.permissions.contains(&permission)
    }

    /// Whether the key still works, as far as time goes; most never end, and need no clock.
    pub(crate) fn is_live(&self, now: impl FnOnce() -> Timestamp) -> bool {
        self.expires_at.is_none_or(|end| now() < end)
    }

    /// Whether the key reaches an app.
    pub fn reaches(&self, app: &AppId) -> bool {
        match &self.rights.apps {
            Apps::All => true,
            Apps::Only(apps) => apps.contains(app.as_str()),
        }
    }

    /// Takes one call from what may be carried in a minute, for the key and for the app. One that
    /// comes too early is counted.
    pub fn admit_call(&self, entry: &AppEntry) -> Result<(), TooFast> {
        let admitted = if !self.rate.admit() {
            Err(TooFast::Key)
        } else if !entry.admit_call() {
            Err(TooFast::App)
        } else {
            Ok(())
        };
        if admitted.is_err() {
            self.limited.fetch_add(1, Ordering::Relaxed);
        }
        admitted
    }

    /// Counts one token read.
    pub(crate) fn count_read(&self) {
        self.reads.add();
    }

    /// Counts one token read that ended without a token.
    pub(crate) fn count_unserved(&self) {
        self.unserved.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts one report of a token that turned out to work.
    pub(crate) fn count_unfounded(&self) {
        self.unfounded.add();
    }

    /// How many tokens were read with it, since the start of the process.
    pub fn reads(&self) -> u64 {
        self.reads.read()
    }

    /// How many token reads ended without a token, since the start of the process.
    pub fn unserved(&self) -> u64 {
        self.unserved.load(Ordering::Relaxed)
    }

    /// How many of its calls came too early, for itself or for the app.
    pub fn limited(&self) -> u64 {
        self.limited.load(Ordering::Relaxed)
    }

    /// What was counted since the last call: token reads, unfounded reports.
    pub(crate) fn take_counts(&self) -> (u64, u64) {
        (self.reads.tell(), self.unfounded.tell())
    }

    /// Takes counts back that could not be written.
    pub(crate) fn add_counts(&self, (reads, unfounded): (u64, u64)) {
        self.reads.take_back(reads);
        self.unfounded.take_back(unfounded);
    }

    /// Goes on counting from the same key as it was before it was read again.
    pub(crate) fn go_on_from(&self, before: &Self) {
        self.reads.go_on_from(&before.reads);
        self.unfounded.go_on_from(&before.unfounded);
        self.limited.store(before.limited(), Ordering::Relaxed);
        self.unserved.store(before.unserved(), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_words_of_the_plain_alphabet() {
        let key = NewKey::generate();
        assert_eq!(key.expose().len(), 46);
        assert!(key.expose().starts_with("xk_"));
        for text in [key.id.as_str(), key.expose()] {
            assert!(text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-'));
        }
        assert!(!format!("{key:?}").contains(key.expose()));
    }

    #[test]
    fn rights_are_stored_as_words() {
        let rights = Rights {
            permissions: [Permission::Token, Permission::Report].into(),
            apps: Apps::Only(["wx1".to_owned()].into()),
            paths: Vec::new(),
            reveal: false,
        };
        let text = serde_json::to_string(&rights).unwrap();
        assert_eq!(
            text,
            r#"{"permissions":["token","report"],"apps":{"only":["wx1"]},"paths":[],"reveal":false}"#
        );
        assert_eq!(serde_json::from_str::<Rights>(&text).unwrap(), rights);
        let of_before = text.replace(r#","reveal":false"#, "");
        assert_eq!(serde_json::from_str::<Rights>(&of_before).unwrap(), rights);
    }
}
