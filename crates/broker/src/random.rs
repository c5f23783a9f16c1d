//! Randomness, from the one cryptographic provider.

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
