//! Request ids: taken over from the caller where they are sane, made up otherwise.

use std::{
    hash::{BuildHasher as _, RandomState},
    io::Write as _,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use clock::Timestamp;

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
            let count = counter.fetch_add(1, Ordering::Relaxed);
            let mut id = [0; 32];
            let mut rest = &mut id[..];
            write!(rest, "{process:08x}-{count:06x}").expect("25 characters at most");
            let left = rest.len();
            HeaderValue::from_bytes(&id[..id.len() - left]).expect("digits and a dash are fine")
        })
    }

    /// An id in the form of WeChat's `rid`: the second, and two numbers below 2^31, in hexadecimal.
    pub(super) fn rid(&self, now: Timestamp) -> String {
        const BELOW_2_31: u32 = 0x7fff_ffff;
        let (process, counter) = &*self.0;
        let count = counter.fetch_add(1, Ordering::Relaxed) as u32;
        // Spread, so that ids of one second do not look alike.
        let spread = count.wrapping_mul(0x9e37_79b1) & BELOW_2_31;
        let second = u32::try_from(now.as_secs()).unwrap_or_default();
        format!("{second:08x}-{:08x}-{spread:08x}", process & BELOW_2_31)
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

    #[test]
    fn a_rid_looks_like_one_of_wechats() {
        let ids = RequestIds::default();
        let now = Timestamp::from_millis(1_710_016_616_000);
        let (one, other) = (ids.rid(now), ids.rid(now));
        assert_ne!(one, other);
        for rid in [one, other] {
            assert!(rid.starts_with("65ecc868-"), "{rid}");
            assert_eq!(wechat::split_rid(&format!("text rid: {rid}")).1, Some(rid.as_str()));
        }
    }
}
