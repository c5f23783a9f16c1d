//! Secrets at rest.
//!
//! AES-256-GCM-SIV with a random nonce. Each sealed value names the master key that sealed it and
//! is bound to its place (which row, which column), so that one that was moved or swapped does not
//! open. Master keys are handed in; this module reads no file.

use std::{collections::BTreeMap, fmt};

use aws_lc_rs::{
    aead::{AES_256_GCM_SIV, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey},
    hmac,
};

use crate::random::random_bytes;

/// The length of a master key, in bytes.
pub const MASTER_KEY_LEN: usize = 32;

/// A sealed value: which master key sealed it, the nonce, the ciphertext with its tag.
#[derive(Clone, PartialEq, Eq)]
pub struct Sealed {
    /// The id of the master key.
    pub key: String,
    /// Nonce, ciphertext and tag.
    pub bytes: Vec<u8>,
}

impl fmt::Debug for Sealed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sealed(key {}, {} bytes)", self.key, self.bytes.len())
    }
}

/// Why a sealed value does not open, or a sealer cannot be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// The value names a master key that we do not have.
    #[error("master key `{0}` is needed but not configured")]
    UnknownKey(String),
    /// The value was altered or moved, or the master key of that id is not the one that sealed it.
    #[error(
        "a value sealed with master key `{key}` does not open at `{binding}`: \
         another key under the same id, or altered data"
    )]
    DoesNotOpen {
        /// The master key it names.
        key: String,
        /// Where it stood.
        binding: String,
    },
    /// The key to seal with is not among the master keys.
    #[error("`seal_with` names master key `{0}`, which is not configured")]
    NoSuchSealWith(String),
}

/// The master keys: seals with one, opens with any.
pub struct Sealer {
    keys: BTreeMap<String, LessSafeKey>,
    seal_with: String,
}

impl Sealer {
    /// Takes all master keys by id, and the id of the one to seal with.
    pub fn new(
        keys: impl IntoIterator<Item = (String, [u8; MASTER_KEY_LEN])>,
        seal_with: impl Into<String>,
    ) -> Result<Self, SealError> {
        let seal_with = seal_with.into();
        let keys: BTreeMap<_, _> = keys
            .into_iter()
            .map(|(id, key)| {
                let key = UnboundKey::new(&AES_256_GCM_SIV, &key)
                    .expect("a master key has the length of the cipher's keys");
                (id, LessSafeKey::new(key))
            })
            .collect();
        if !keys.contains_key(&seal_with) {
            return Err(SealError::NoSuchSealWith(seal_with));
        }
        Ok(Self { keys, seal_with })
    }

    /// The id of the master key that new values are sealed with.
    pub fn seal_with(&self) -> &str {
        &self.seal_with
    }

    /// Whether the master key of this id is here.
    pub fn has(&self, key: &str) -> bool {
        self.keys.contains_key(key)
    }

    /// Seals a value for the place that `binding` names.
    pub fn seal(&self, binding: &str, plain: &[u8]) -> Sealed {
        let nonce: [u8; NONCE_LEN] = random_bytes();
        let mut text = plain.to_vec();
        let tag = self.keys[&self.seal_with]
            .seal_in_place_separate_tag(
                Nonce::assume_unique_for_key(nonce),
                Aad::from(binding.as_bytes()),
                &mut text,
            )
            .expect("values are far shorter than the cipher's limit");
        let mut bytes = nonce.to_vec();
        bytes.extend_from_slice(&text);
        bytes.extend_from_slice(tag.as_ref());
        Sealed { key: self.seal_with.clone(), bytes }
    }

    /// Opens a value that was sealed for the place that `binding` names.
    pub fn open(&self, binding: &str, sealed: &Sealed) -> Result<Vec<u8>, SealError> {
        let key =
            self.keys.get(&sealed.key).ok_or_else(|| SealError::UnknownKey(sealed.key.clone()))?;
        let fail =
            || SealError::DoesNotOpen { key: sealed.key.clone(), binding: binding.to_owned() };
        let (nonce, text) = sealed.bytes.split_first_chunk::<NONCE_LEN>().ok_or_else(fail)?;
        let mut text = text.to_vec();
        let plain = key
            .open_in_place(
                Nonce::assume_unique_for_key(*nonce),
                Aad::from(binding.as_bytes()),
                &mut text,
            )
            .map_err(|_| fail())?;
        Ok(plain.to_vec())
    }

    /// Opens a value that is text.
    pub fn open_text(&self, binding: &str, sealed: &Sealed) -> Result<String, SealError> {
        String::from_utf8(self.open(binding, sealed)?).map_err(|_| SealError::DoesNotOpen {
            key: sealed.key.clone(),
            binding: binding.to_owned(),
        })
    }
}

impl fmt::Debug for Sealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sealer")
            .field("keys", &self.keys.keys().collect::<Vec<_>>())
            .field("seal_with", &self.seal_with)
            .finish()
    }
}

/// Hashes tokens so that a report can be compared with what was stored, without storing it.
pub(crate) struct TokenHasher(hmac::Key);

impl TokenHasher {
    pub(crate) fn new(key: &[u8]) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, key))
    }

    pub(crate) fn hash(&self, value: &str) -> [u8; 32] {
        hmac::sign(&self.0, value.as_bytes())
            .as_ref()
            .try_into()
            .expect("HMAC-SHA-256 gives 32 bytes")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sealer(id: &str, byte: u8) -> Sealer {
        Sealer::new([(id.to_owned(), [byte; 32])], id).unwrap()
    }

    #[test]
    fn a_value_opens_only_where_it_was_sealed() {
        let sealer = sealer("k1", 1);
        let sealed = sealer.seal("app-secret/wx1", b"secret");
        assert_eq!(sealer.open("app-secret/wx1", &sealed).unwrap(), b"secret");
        assert!(matches!(
            sealer.open("app-secret/wx2", &sealed),
            Err(SealError::DoesNotOpen { .. })
        ));
    }

    #[test]
    fn any_flipped_bit_is_noticed() {
        let sealer = sealer("k1", 1);
        let sealed = sealer.seal("x", b"secret");
        for at in 0..sealed.bytes.len() {
            let mut altered = sealed.clone();
            altered.bytes[at] ^= 1;
            assert!(sealer.open("x", &altered).is_err(), "byte {at}");
        }
        for len in 0..sealed.bytes.len() {
            let cut = Sealed { key: "k1".into(), bytes: sealed.bytes[..len].to_vec() };
            assert!(sealer.open("x", &cut).is_err(), "length {len}");
        }
    }

    #[test]
    fn missing_and_wrong_keys_are_told_apart() {
        let sealed = sealer("k1", 1).seal("x", b"secret");
        assert_eq!(sealer("k2", 1).open("x", &sealed), Err(SealError::UnknownKey("k1".to_owned())));
        assert!(matches!(sealer("k1", 2).open("x", &sealed), Err(SealError::DoesNotOpen { .. })));
        assert_eq!(Sealer::new([], "k9").unwrap_err(), SealError::NoSuchSealWith("k9".to_owned()));
    }

    #[test]
    fn the_same_value_never_looks_the_same() {
        let sealer = sealer("k1", 1);
        assert_ne!(sealer.seal("x", b"secret"), sealer.seal("x", b"secret"));
        assert!(!format!("{:?}{sealer:?}", sealer.seal("x", b"secret")).contains("secret"));
    }
}
