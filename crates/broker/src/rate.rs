//! How fast a client key may call, and an app be called.

use std::{fmt, num::NonZeroU32, time::Duration};

use governor::{
    Quota, RateLimiter,
    clock::Clock,
    middleware::NoOpMiddleware,
    nanos::Nanos,
    state::{InMemoryState, NotKeyed},
};
use tokio::time::Instant;

/// Limits calls to so many a minute, of which a sixth may come at once. Cheap to keep, and taken
/// from without a lock.
pub(crate) struct Rate(Option<Limiter>);

type Limiter = RateLimiter<NotKeyed, InMemoryState, Ticks, NoOpMiddleware<Nanos>>;

/// Time as tokio has it, so that tests can pause it.
#[derive(Clone, Debug)]
struct Ticks(Instant);

impl Clock for Ticks {
    type Instant = Nanos;

    fn now(&self) -> Nanos {
        Nanos::from(self.0.elapsed())
    }
}

impl Rate {
    /// `None`: no limit.
    pub(crate) fn per_minute(calls: Option<NonZeroU32>) -> Self {
        const BURSTS_A_MINUTE: u32 = 6;
        Self(calls.map(|calls| {
            let burst = NonZeroU32::new(calls.get() / BURSTS_A_MINUTE).unwrap_or(NonZeroU32::MIN);
            let quota = Quota::per_minute(calls).allow_burst(burst);
            RateLimiter::direct_with_clock(quota, Ticks(Instant::now()))
        }))
    }

    /// Takes one call. `false`: it comes too early.
    pub(crate) fn admit(&self) -> bool {
        self.0.as_ref().is_none_or(|limiter| limiter.check().is_ok())
    }
}

impl fmt::Debug for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "Rate" } else { "Rate(unlimited)" })
    }
}

/// Which rate a call exceeds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TooFast {
    /// The client key's.
    #[error("the client key calls faster than it may")]
    Key,
    /// The app's, by all client keys together.
    #[error("the app is called faster than it may be")]
    App,
}

/// What a broker is told about how to treat its callers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// How long client keys are taken for good while the store cannot be reached.
    pub stale_keys_max: Duration,
    /// How many calls a client key may have carried to WeChat in a minute; `None`: as many as it
    /// likes.
    pub key_calls_per_minute: Option<NonZeroU32>,
    /// How many calls may be carried with an app's token in a minute.
    pub app_calls_per_minute: Option<NonZeroU32>,
}

impl Default for Bounds {
    /// Five minutes, and no limits.
    fn default() -> Self {
        Self {
            stale_keys_max: Duration::from_secs(300),
            key_calls_per_minute: None,
            app_calls_per_minute: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn so_many_a_minute_and_a_sixth_at_once() {
        let rate = Rate::per_minute(NonZeroU32::new(60));
        let at_once = || (0..100).take_while(|_| rate.admit()).count();
        assert_eq!(at_once(), 10);
        tokio::time::advance(Duration::from_secs(3)).await;
        assert_eq!(at_once(), 3);
        tokio::time::advance(Duration::from_secs(600)).await;
        assert_eq!(at_once(), 10);
        let mut admitted = 0;
        for _ in 0..600 {
            tokio::time::advance(Duration::from_millis(100)).await;
            admitted += usize::from(rate.admit());
        }
        assert_eq!(admitted, 60);
        let unlimited = Rate::per_minute(None);
        assert!((0..10_000).all(|_| unlimited.admit()));
        assert!(Rate::per_minute(NonZeroU32::new(1)).admit());
    }
}
