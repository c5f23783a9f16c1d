//! Passes: what an SDK gets in the place of a global token.
//!
//! A pass says which client key it was given to, for which app and when, sealed so that only we can
//! read or make one. It is resolved at each call: what the key may do, and whether it may do anything
//! any more, is looked up then. No pass is stored anywhere.
//!
//! The keys that passes are sealed with live in the store, so that every replica resolves the passes of
//! every other. A new one is published some time before it is used: by then all have read it.

use std::{fmt, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use aws_lc_rs::{
    aead::{AES_256_GCM_SIV, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey},
    digest::{SHA256, digest},
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use clock::Timestamp;
use tokio::time::Instant;

use crate::{
    AppEntry, Broker,
    key::{ClientKey, NotKnown},
    random::{random_bytes, random_word},
    slot::SET_BACK,
    store::{PassKeyRow, Place, StoreResult},
};

/// The life that a pass is stated with, that of a token.
pub const PASS_LIFE: Duration = Duration::from_secs(7200);
/// How long a pass is honoured: longer than any SDK keeps it.
pub const PASS_HONOURED: Duration = Duration::from_secs(8100);

/// A pass key is used so long after its publication at the earliest.
const PUBLISHED_BEFORE: Duration = Duration::from_secs(60);
/// The next pass key is published so long after the one before: in good time.
const NEXT_AFTER: Duration = Duration::from_secs(2400);
/// How long a pass key is kept. It seals for 45 minutes at most, then the next one is in use; the
/// last pass that it sealed is honoured up to its end.
const KEPT: Duration = Duration::from_secs(45 * 60 + PASS_HONOURED.as_secs());

const PREFIX: &str = "xt_";
const TAG_LEN: usize = 16;
/// The id of a pass key is so many bytes in a pass, and 8 characters elsewhere.
const KEY_ID_LEN: usize = 6;
/// The most bytes of a pass. The longest appid and the longest id of a client key fit.
const MOST_BYTES: usize = 256;
/// What passes are bound to, beside their key.
const BINDING: &[u8] = b"pass";

/// A pass, to be handed to the client.
pub struct Pass(String);

impl Pass {
    /// The pass: `xt_` and at most 342 characters of `[A-Za-z0-9_-]`.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// The life that it is stated with.
    pub fn expires_in(&self) -> Duration {
        PASS_LIFE
    }
}

impl fmt::Debug for Pass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Pass([redacted])")
    }
}

/// Whose pass it is, as of now.
#[derive(Clone)]
pub struct Passed {
    /// The client key that it was given to.
    pub key: Arc<ClientKey>,
    /// The app that it is for, which the key still reaches.
    pub entry: Arc<AppEntry>,
}

impl fmt::Debug for Passed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Passed")
            .field("key", &self.key.id)
            .field("app", &self.entry.app().id)
            .finish()
    }
}

/// Why a pass does not work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeadPass {
    /// Its time is over.
    #[error("the pass has ended")]
    Expired,
    /// It is none of ours, or its client key no longer works or no longer reaches its app.
    #[error("the pass is none of ours, or its client key is gone")]
    Invalid,
    /// It was sealed with a key that is not known here, or is made up.
    #[error("the pass is sealed with a key that is not known here")]
    UnknownKey,
    /// The store has been out of reach for too long to say which client keys are good.
    #[error("the store is out of reach, so which passes are good is not known")]
    Stale,
}

/// One of the keys that passes are sealed with.
struct PassKey {
    id: [u8; KEY_ID_LEN],
    key: LessSafeKey,
    published_at: Timestamp,
}

/// The pass keys in memory, in the order of their publication.
#[derive(Default)]
pub(crate) struct PassKeys {
    all: ArcSwap<Vec<PassKey>>,
    /// When the store was last asked because of a pass.
    asked: tokio::sync::Mutex<Option<Instant>>,
}

impl PassKeys {
    /// Picks the key to seal with: the newest that all replicas know. Without any, the oldest, which
    /// most of them will know.
    fn to_seal_with(all: &[PassKey], now: Timestamp) -> Option<&PassKey> {
        let known_everywhere = |key: &&PassKey| key.published_at + PUBLISHED_BEFORE <= now;
        all.iter().rev().find(known_everywhere).or(all.first())
    }
}

impl Broker {
    /// Makes a pass for a client key and an app.
    pub fn issue_pass(&self, entry: &AppEntry, key: &ClientKey) -> Pass {
        let app = entry.app();
        let now = self.now();
        let mut text = Vec::with_capacity(MOST_BYTES);
        text.extend_from_slice(&now.as_millis().to_le_bytes());
        text.extend_from_slice(&app.created_at.as_millis().to_le_bytes());
        text.push(u8::try_from(key.id.len()).unwrap_or(u8::MAX));
        text.extend_from_slice(key.id.as_bytes());
        text.extend_from_slice(app.id.as_str().as_bytes());

        let nonce: [u8; NONCE_LEN] = random_bytes();
        let all = self.0.pass_keys.all.load();
        let sealing = PassKeys::to_seal_with(&all, now).expect("a broker opens with a pass key");
        sealing
            .key
            .seal_in_place_append_tag(
                Nonce::assume_unique_for_key(nonce),
                Aad::from(BINDING),
                &mut text,
            )
            .expect("a pass is far shorter than the cipher's limit");
        let mut bytes = Vec::with_capacity(KEY_ID_LEN + NONCE_LEN + text.len());
        bytes.extend_from_slice(&sealing.id);
        bytes.extend_from_slice(&nonce);
        bytes.extend_from_slice(&text);
        let mut pass = String::with_capacity(PREFIX.len() + bytes.len() * 4 / 3 + 1);
        pass.push_str(PREFIX);
        URL_SAFE_NO_PAD.encode_string(&bytes, &mut pass);
        Pass(pass)
    }

    /// Whose pass it is. Takes no lock and asks nobody.
    pub fn resolve_pass(&self, presented: &str) -> Result<Passed, DeadPass> {
        if self.0.freshness.is_lost() {
            return Err(DeadPass::Stale);
        }
        let word = presented.strip_prefix(PREFIX).ok_or(DeadPass::Invalid)?;
        let mut bytes = [0; MOST_BYTES];
        let length =
            URL_SAFE_NO_PAD.decode_slice(word, &mut bytes).map_err(|_| DeadPass::Invalid)?;
        let (id, sealed) =
            bytes[..length].split_first_chunk_mut::<KEY_ID_LEN>().ok_or(DeadPass::Invalid)?;
        let (nonce, text) = sealed.split_first_chunk_mut::<NONCE_LEN>().ok_or(DeadPass::Invalid)?;
        if text.len() < TAG_LEN {
            return Err(DeadPass::Invalid);
        }
        let all = self.0.pass_keys.all.load();
        let sealing = all.iter().find(|key| key.id == *id).ok_or(DeadPass::UnknownKey)?;
        let text = sealing
            .key
            .open_in_place(Nonce::assume_unique_for_key(*nonce), Aad::from(BINDING), text)
            .map_err(|_| DeadPass::Invalid)?;
        self.passed(text)
    }

    /// The same, for a pass whose key was not known here: reads the keys from the store again, at
    /// most once a second.
    pub async fn resolve_pass_again(&self, presented: &str) -> Result<Passed, DeadPass> {
        const NOT_AGAIN_FOR: Duration = Duration::from_secs(1);
        let mut asked = self.0.pass_keys.asked.lock().await;
        match self.resolve_pass(presented) {
            Err(DeadPass::UnknownKey) => {}
            // Who waited for the lock before has asked the store.
            resolved => return resolved,
        }
        if asked.is_none_or(|at| at.elapsed() >= NOT_AGAIN_FOR) {
            *asked = Some(Instant::now());
            if let Err(err) = self.reload_pass_keys().await {
                tracing::warn!(error = %err, "the keys of passes cannot be read again");
                return Err(DeadPass::Stale);
            }
        }
        drop(asked);
        self.resolve_pass(presented)
    }

    /// What an opened pass says, as far as it holds today.
    fn passed(&self, text: &[u8]) -> Result<Passed, DeadPass> {
        let invalid = || DeadPass::Invalid;
        let (issued, text) = text.split_first_chunk::<8>().ok_or_else(invalid)?;
        let (created, text) = text.split_first_chunk::<8>().ok_or_else(invalid)?;
        let (length, text) = text.split_first().ok_or_else(invalid)?;
        let (key, app) = text.split_at_checked(usize::from(*length)).ok_or_else(invalid)?;
        let key = std::str::from_utf8(key).map_err(|_| DeadPass::Invalid)?;
        let app = std::str::from_utf8(app).map_err(|_| DeadPass::Invalid)?;
        let issued = Timestamp::from_millis(i64::from_le_bytes(*issued));
        let created = Timestamp::from_millis(i64::from_le_bytes(*created));

        let now = self.now();
        if issued > now + SET_BACK {
            return Err(DeadPass::Invalid);
        }
        if issued + PASS_HONOURED <= now {
            return Err(DeadPass::Expired);
        }
        let (key, entry) = self.still_reaches(key, app, created, now).ok_or(DeadPass::Invalid)?;
        Ok(Passed { key, entry })
    }

    /// Whether a client key that was found good before still works and still reaches the app, for
    /// whoever has waited meanwhile. What it may do never changes. Takes no lock.
    pub fn recheck(&self, key: &ClientKey, entry: &AppEntry) -> Result<(), NotKnown> {
        if self.0.freshness.is_lost() {
            return Err(NotKnown::Stale);
        }
        let app = entry.app();
        let found = self.still_reaches(&key.id, app.id.as_str(), app.created_at, self.now());
        found.map(drop).ok_or(NotKnown::Unknown)
    }

    /// The client key of an id and the app of an appid, if the key works and reaches the app today
    /// and the app is the one that was registered at `created`.
    pub(crate) fn still_reaches(
        &self,
        key: &str,
        app: &str,
        created: Timestamp,
        now: Timestamp,
    ) -> Option<(Arc<ClientKey>, Arc<AppEntry>)> {
        let keys = self.0.keys.load();
        let key = keys.find(key).filter(|key| key.is_live(|| now))?;
        let entry = self.app(app)?;
        let same = {
            let app = entry.app();
            app.created_at == created && key.reaches(&app.id)
        };
        same.then(|| (Arc::clone(key), entry))
    }

    /// Keeps pass keys in the store, in good time.
    pub(crate) async fn keep_pass_keys_forever(&self) {
        const EVERY: Duration = Duration::from_secs(60);
        loop {
            self.0.clock.sleep_until(self.0.clock.now() + EVERY).await;
            if let Err(err) = self.keep_pass_keys().await {
                tracing::error!(error = %err, "no new key for passes; the last one goes on");
            }
        }
    }

    /// Publishes the next pass key if it is time to.
    pub(crate) async fn keep_pass_keys(&self) -> StoreResult<()> {
        loop {
            let rows = self.0.store.pass_keys().await?;
            let now = self.now();
            let last = rows.last();
            // One that does not open here is as good as none.
            let readable = rows.iter().rev().find(|row| self.pass_key_of(row).is_ok());
            let fine = readable.is_some_and(|row| {
                // One from the future is of a clock that has been set back since.
                row.published_at <= now + SET_BACK && now < row.published_at + NEXT_AFTER
            });
            if fine {
                break;
            }
            let id = random_word::<KEY_ID_LEN>();
            let place = Place::PassKey(id.clone());
            let key = self.0.sealer.seal(&place.binding(), random_word::<32>().as_bytes());
            let row = PassKeyRow { id, key, published_at: now };
            let last = last.map(|row| row.id.as_str());
            if self.0.store.add_pass_key(&row, last, now - KEPT).await? {
                self.wake_others().await;
            }
        }
        self.reload_pass_keys().await
    }

    /// Reads the pass keys from the store.
    pub(crate) async fn reload_pass_keys(&self) -> StoreResult<()> {
        let rows = self.0.store.pass_keys().await?;
        let now = self.now();
        let kept = rows.iter().filter(|row| now < row.published_at + KEPT + SET_BACK);
        let keys = kept.filter_map(|row| self.readable(self.pass_key_of(row)));
        let keys: Vec<_> = keys.collect();
        // With none that can be read, those that are known go on: without any, no pass can be made.
        if !keys.is_empty() {
            self.0.pass_keys.all.store(Arc::new(keys));
        }
        Ok(())
    }

    fn pass_key_of(&self, row: &PassKeyRow) -> StoreResult<PassKey> {
        use crate::store::StoreError::Corrupt;
        let place = Place::PassKey(row.id.clone());
        let secret = self.open_sealed(&place, &row.key)?;
        let key = UnboundKey::new(&AES_256_GCM_SIV, digest(&SHA256, secret.as_bytes()).as_ref())
            .expect("a SHA-256 has the length of the cipher's keys");
        let mut id = [0; KEY_ID_LEN];
        let length = URL_SAFE_NO_PAD.decode_slice(&row.id, &mut id);
        if length != Ok(KEY_ID_LEN) {
            return Err(Corrupt(format!("pass key {} has no id of a pass key", row.id)));
        }
        Ok(PassKey { id, key: LessSafeKey::new(key), published_at: row.published_at })
    }
}
