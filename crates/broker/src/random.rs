//! Randomness, from the one cryptographic provider.

use std::time::Duration;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};

/// Fresh random bytes.
pub(crate) fn random_bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    aws_lc_rs::rand::fill(&mut bytes).expect("the operating system gives random bytes");
    bytes
}

/// A fresh random word of `[A-Za-z0-9_-]` holding `N` random bytes.
pub(crate) fn random_word<const N: usize>() -> String {
    URL_SAFE_NO_PAD.encode(random_bytes::<N>())
}

/// A random duration below `limit`, to the millisecond; zero when `limit` is below a millisecond.
pub(crate) fn random_below(limit: Duration) -> Duration {
    let millis = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
    match u64::from_le_bytes(random_bytes()).checked_rem(millis) {
        Some(millis) => Duration::from_millis(millis),
        None => Duration::ZERO,
    }
}
