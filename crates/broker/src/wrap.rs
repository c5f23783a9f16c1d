//! Wrapped web tokens: what an SDK gets in the place of a user's web token and refresh token.
//!
//! Unlike a pass, the wrapping holds the token itself, since WeChat gives it out once and an SDK may
//! keep it for thirty days. It is sealed with a key of our own, and bound to the client key, the app
//! and the kind of the token, so that it is of use to nobody else and for nothing else.

use std::{fmt, sync::Arc};

use aws_lc_rs::{
    aead::{AES_256_GCM_SIV, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey},
    digest::{SHA256, digest},
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use clock::Timestamp;
use wechat::{RefreshToken, WebToken};

use crate::{
    AppEntry, Broker,
    key::{ClientKey, NotKnown},
    random::random_bytes,
};

/// The most characters of a wrapped token: WeChat asks its callers for room for so many.
const LONGEST: usize = 512;

/// The two kinds of wrapped tokens.
#[derive(Clone, Copy)]
enum Kind {
    Web,
    Refresh,
}

impl Kind {
    const fn prefix(self) -> &'static str {
        match self {
            Self::Web => "xw_",
            Self::Refresh => "xr_",
        }
    }
}

/// Wraps and unwraps.
pub(crate) struct Wrapper(LessSafeKey);

impl Wrapper {
    /// By a secret of our own, of any length.
    pub(crate) fn new(secret: &[u8]) -> Self {
        let key = UnboundKey::new(&AES_256_GCM_SIV, digest(&SHA256, secret).as_ref())
            .expect("a SHA-256 has the length of the cipher's keys");
        Self(LessSafeKey::new(key))
    }

    /// `None`: it would be too long.
    fn wrap(&self, kind: Kind, text: &[u8]) -> Option<String> {
        let nonce: [u8; NONCE_LEN] = random_bytes();
        let mut sealed = text.to_vec();
        self.0
            .seal_in_place_append_tag(
                Nonce::assume_unique_for_key(nonce),
                Aad::from(kind.prefix().as_bytes()),
                &mut sealed,
            )
            .ok()?;
        let bytes = [&nonce, sealed.as_slice()].concat();
        let wrapped = format!("{}{}", kind.prefix(), URL_SAFE_NO_PAD.encode(bytes));
        (wrapped.len() <= LONGEST).then_some(wrapped)
    }

    fn unwrap(&self, kind: Kind, wrapped: &str) -> Option<Vec<u8>> {
        let word = wrapped.strip_prefix(kind.prefix())?;
        if wrapped.len() > LONGEST {
            return None;
        }
        let mut bytes = URL_SAFE_NO_PAD.decode(word).ok()?;
        let (nonce, sealed) = bytes.split_first_chunk_mut::<NONCE_LEN>()?;
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let binding = Aad::from(kind.prefix().as_bytes());
        self.0.open_in_place(nonce, binding, sealed).ok().map(|text| text.to_vec())
    }
}

/// A wrapped token that was opened: whose it is as of today, and the token.
pub struct Unwrapped<T> {
    /// The client key that it was given to.
    pub key: Arc<ClientKey>,
    /// The app that it is of, which the key still reaches.
    pub entry: Arc<AppEntry>,
    /// The token.
    pub token: T,
}

impl<T> fmt::Debug for Unwrapped<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Unwrapped").field("key", &self.key.id).finish_non_exhaustive()
    }
}

/// Why a wrapped token does not open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotWrapped {
    /// It is none of ours, or of the other kind, or its client key is gone.
    #[error("it is no token that was given out here, or its client key is gone")]
    Invalid,
    /// Which client keys are good is not known.
    #[error(transparent)]
    Stale(NotKnown),
}

impl Broker {
    /// Wraps a user's web token for a client key. `None`: it would have more than 512 characters.
    pub fn wrap_web_token(
        &self,
        entry: &AppEntry,
        key: &ClientKey,
        token: &WebToken,
    ) -> Option<String> {
        self.0.wrapper.wrap(Kind::Web, &text(entry, key, token.expose()))
    }

    /// Wraps a refresh token for a client key. `None`: it would have more than 512 characters.
    pub fn wrap_refresh_token(
        &self,
        entry: &AppEntry,
        key: &ClientKey,
        token: &RefreshToken,
    ) -> Option<String> {
        self.0.wrapper.wrap(Kind::Refresh, &text(entry, key, token.expose()))
    }

    /// Opens a wrapped web token.
    pub fn unwrap_web_token(&self, wrapped: &str) -> Result<Unwrapped<WebToken>, NotWrapped> {
        self.unwrap(Kind::Web, wrapped, WebToken::new)
    }

    /// Opens a wrapped refresh token.
    pub fn unwrap_refresh_token(
        &self,
        wrapped: &str,
    ) -> Result<Unwrapped<RefreshToken>, NotWrapped> {
        self.unwrap(Kind::Refresh, wrapped, RefreshToken::new)
    }

    fn unwrap<T>(
        &self,
        kind: Kind,
        wrapped: &str,
        token: impl FnOnce(String) -> T,
    ) -> Result<Unwrapped<T>, NotWrapped> {
        if self.0.freshness.is_lost() {
            return Err(NotWrapped::Stale(NotKnown::Stale));
        }
        let text = self.0.wrapper.unwrap(kind, wrapped).ok_or(NotWrapped::Invalid)?;
        let (created, key, app, value) = parts(&text).ok_or(NotWrapped::Invalid)?;
        let reached = self.still_reaches(key, app, created, self.now());
        let (key, entry) = reached.ok_or(NotWrapped::Invalid)?;
        Ok(Unwrapped { key, entry, token: token(value.to_owned()) })
    }
}

/// What is wrapped: since when the app is registered, client key, appid, token.
fn text(entry: &AppEntry, key: &ClientKey, token: &str) -> Vec<u8> {
    let app = entry.app();
    let mut text = app.created_at.as_millis().to_le_bytes().to_vec();
    for name in [key.id.as_str(), app.id.as_str()] {
        text.push(u8::try_from(name.len()).unwrap_or(u8::MAX));
        text.extend_from_slice(name.as_bytes());
    }
    text.extend_from_slice(token.as_bytes());
    text
}

fn parts(text: &[u8]) -> Option<(Timestamp, &str, &str, &str)> {
    let (created, text) = text.split_first_chunk::<8>()?;
    let name = |text| -> Option<(&str, &[u8])> {
        let (length, text): (&u8, &[u8]) = <[u8]>::split_first(text)?;
        let (name, rest) = text.split_at_checked(usize::from(*length))?;
        Some((std::str::from_utf8(name).ok()?, rest))
    };
    let (key, text) = name(text)?;
    let (app, text) = name(text)?;
    let token = std::str::from_utf8(text).ok()?;
    Some((Timestamp::from_millis(i64::from_le_bytes(*created)), key, app, token))
}
