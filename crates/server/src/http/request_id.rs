//! Request ids: taken over from the caller where they are sane, made up otherwise.

use std::{
    fmt::Write as _,
    hash::{BuildHasher as _, RandomState},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use axum::http::{HeaderMap, HeaderName, HeaderValue};

/// The header that carries the id, both ways.
pub(super) const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Makes ids that differ within a process by a counter, and between processes by a random word.
#[derive(Clone)]
pub(super) struct RequestIds(Arc<(u32, AtomicU64)>);

impl Default for RequestIds {
    fn default() -> Self {
        // An id is no secret; the keys of the standard hasher are random enough to tell processes
        // apart.
        let word = RandomState::new().hash_one("request ids");
        Self(Arc::new(((word >> 32) as u32, AtomicU64::new(1))))
    }
}

impl RequestIds {
    /// The id of a request: its own if it has one of 1 to 64 characters of `[A-Za-z0-9_-]`.
    pub(super) fn of(&self, headers: &HeaderMap) -> HeaderValue {
        headers.get(X_REQUEST_ID).filter(|id| sane(id.as_bytes())).cloned().unwrap_or_else(|| {
            let (process, counter) = &*self.0;
            let mut id = String::with_capacity(24);
            let _ = write!(id, "{process:08x}-{:06x}", counter.fetch_add(1, Ordering::Relaxed));
            HeaderValue::try_from(id).expect("digits and a dash make a header value")
        })
    }
}

fn sane(id: &[u8]) -> bool {
    let plain = |b: &u8| b.is_ascii_alphanumeric() || *b == b'_' || *b == b'-';
    (1..=64).contains(&id.len()) && id.iter().all(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_taken_over_when_sane_and_made_up_otherwise() {
        let ids = RequestIds::default();
        let of = |id: &'static str| {
            let headers = HeaderMap::from_iter([(X_REQUEST_ID, HeaderValue::from_static(id))]);
            ids.of(&headers).to_str().unwrap().to_owned()
        };
        assert_eq!(of("a_B-9"), "a_B-9");
        for odd in ["", "a b", "a\"b", "ab;c"] {
            assert_ne!(of(odd), odd);
        }
        let (one, other) = (ids.of(&HeaderMap::new()), ids.of(&HeaderMap::new()));
        assert_ne!(one, other);
        assert!(sane(one.as_bytes()) && sane(other.as_bytes()));
        assert!(!sane(&[b'a'; 65]));
    }
}
