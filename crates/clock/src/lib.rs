//! Wall time, handed in instead of read from anywhere.
//!
//! A [`Clock`] answers "what time is it" and "wake me at that time". There are three kinds:
//! - [`Clock::real`] reads the system clock;
//! - [`Clock::following_timers`] starts at a chosen instant and moves with tokio's timers, so that
//!   a test that pauses and advances tokio's time moves the wall clock with it;
//! - [`Clock::shifted`] is the system clock plus an offset that its owner moves forward. Everyone
//!   who sleeps on such a clock wakes when the offset changes and looks again.
//!
//! This crate holds nothing else, and is the only place that reads the system clock.

use std::{
    fmt,
    ops::{Add, Sub},
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::{Duration, SystemTime},
};

use tokio::{sync::watch, time::Instant};

/// An instant of wall time, in milliseconds since the Unix epoch.
///
/// It saturates at its ends instead of overflowing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(i64);

impl Timestamp {
    /// The instant `millis` milliseconds after the Unix epoch.
    pub const fn from_millis(millis: i64) -> Self {
        Self(millis)
    }

    /// The instant `secs` seconds after the Unix epoch.
    pub const fn from_secs(secs: i64) -> Self {
        Self(secs.saturating_mul(1000))
    }

    /// Milliseconds since the Unix epoch.
    pub const fn as_millis(self) -> i64 {
        self.0
    }

    /// Whole seconds since the Unix epoch, rounded down.
    pub const fn as_secs(self) -> i64 {
        self.0.div_euclid(1000)
    }

    /// How long after `earlier` this instant is; zero when it is not later.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }

    /// Seconds from `earlier` to this instant, negative when this one is earlier.
    pub const fn secs_since(self, earlier: Self) -> i64 {
        self.0.saturating_sub(earlier.0).div_euclid(1000)
    }

    /// This instant moved by a signed number of milliseconds.
    #[must_use]
    pub const fn offset_millis(self, millis: i64) -> Self {
        Self(self.0.saturating_add(millis))
    }
}

impl Add<Duration> for Timestamp {
    type Output = Self;

    fn add(self, rhs: Duration) -> Self {
        Self(self.0.saturating_add(i64::try_from(rhs.as_millis()).unwrap_or(i64::MAX)))
    }
}

impl Sub<Duration> for Timestamp {
    type Output = Self;

    fn sub(self, rhs: Duration) -> Self {
        Self(self.0.saturating_sub(i64::try_from(rhs.as_millis()).unwrap_or(i64::MAX)))
    }
}

impl From<SystemTime> for Timestamp {
    fn from(time: SystemTime) -> Self {
        match time.duration_since(SystemTime::UNIX_EPOCH) {
            Ok(after) => Self(0) + after,
            Err(before) => Self(0) - before.duration(),
        }
    }
}

/// A source of wall time. Cloning is cheap and gives another handle to the same clock.
#[derive(Clone)]
pub struct Clock(Source);

#[derive(Clone)]
enum Source {
    Real,
    Timers { epoch: Timestamp, start: Instant },
    Shifted(Arc<Offset>),
}

/// The offset of a shifted clock. The atomic serves readers, who take no lock; the channel wakes
/// sleepers.
struct Offset {
    /// Where it stands by itself; `None`: it goes by the system clock.
    stands_at: Option<Timestamp>,
    millis: AtomicI64,
    changed: watch::Sender<()>,
}

impl Clock {
    /// The system clock.
    pub const fn real() -> Self {
        Self(Source::Real)
    }

    /// A clock that reads `epoch` now and moves with tokio's timers from here on.
    ///
    /// Panics outside a tokio runtime whose time is paused only if tokio does.
    pub fn following_timers(epoch: Timestamp) -> Self {
        Self(Source::Timers { epoch, start: Instant::now() })
    }

    /// The system clock plus an offset, zero at first, that [`Clock::advance`] moves forward for
    /// every handle of this clock.
    pub fn shifted() -> Self {
        Self::from_offset(None)
    }

    /// A clock that stands at `epoch`, and goes only by [`Clock::advance`].
    pub fn by_hand(epoch: Timestamp) -> Self {
        Self::from_offset(Some(epoch))
    }

    fn from_offset(stands_at: Option<Timestamp>) -> Self {
        let changed = watch::Sender::new(());
        Self(Source::Shifted(Arc::new(Offset { stands_at, millis: AtomicI64::new(0), changed })))
    }

    /// The time now.
    #[expect(clippy::disallowed_methods, reason = "the one place that reads the system clock")]
    pub fn now(&self) -> Timestamp {
        match &self.0 {
            Source::Real => SystemTime::now().into(),
            Source::Timers { epoch, start } => *epoch + start.elapsed(),
            Source::Shifted(offset) => offset
                .stands_at
                .unwrap_or_else(|| SystemTime::now().into())
                .offset_millis(offset.millis.load(Ordering::Acquire)),
        }
    }

    /// Moves a clock that is shifted or goes by hand forward, and wakes everyone who sleeps on it. Answers whether this
    /// clock can be moved; the other kinds cannot, and stay as they are.
    pub fn advance(&self, by: Duration) -> bool {
        let Source::Shifted(offset) = &self.0 else { return false };
        let millis = i64::try_from(by.as_millis()).unwrap_or(i64::MAX);
        let later = |before: i64| Some(before.saturating_add(millis));
        let _ = offset.millis.fetch_update(Ordering::AcqRel, Ordering::Acquire, later);
        offset.changed.send_replace(());
        true
    }

    /// Sleeps until this clock reads `deadline` or later.
    ///
    /// A step of the system clock while asleep is noticed after a minute at the latest.
    pub async fn sleep_until(&self, deadline: Timestamp) {
        /// The longest sleep that does not look at the clock again.
        const LONGEST: Duration = Duration::from_secs(60);
        let mut changes = match &self.0 {
            Source::Shifted(offset) => Some(offset.changed.subscribe()),
            Source::Real | Source::Timers { .. } => None,
        };
        loop {
            let left = deadline.since(self.now());
            if left.is_zero() {
                return;
            }
            let nap =
                if matches!(self.0, Source::Timers { .. }) { left } else { left.min(LONGEST) };
            match &mut changes {
                None => tokio::time::sleep(nap).await,
                Some(changes) => {
                    tokio::select! {
                        () = tokio::time::sleep(nap) => {}
                        // The sender lives in this clock, so the channel is never closed.
                        _ = changes.changed() => {}
                    }
                }
            }
        }
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match &self.0 {
            Source::Real => "real",
            Source::Timers { .. } => "following timers",
            Source::Shifted(_) => "shifted",
        };
        write!(f, "Clock({kind})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timestamps_saturate_and_round_down() {
        let end = Timestamp::from_millis(i64::MAX);
        assert_eq!(end + Duration::MAX, end);
        assert_eq!(Timestamp::from_millis(-1).as_secs(), -1);
        assert_eq!(Timestamp::from_secs(5).since(Timestamp::from_secs(9)), Duration::ZERO);
        assert_eq!(Timestamp::from_secs(5).secs_since(Timestamp::from_secs(9)), -4);
    }

    #[tokio::test(start_paused = true)]
    async fn a_following_clock_moves_with_the_timers() {
        let clock = Clock::following_timers(Timestamp::from_secs(1_000));
        tokio::time::advance(Duration::from_secs(86_400)).await;
        assert_eq!(clock.now(), Timestamp::from_secs(87_400));
        clock.sleep_until(Timestamp::from_secs(100_000)).await;
        assert_eq!(clock.now().as_secs(), 100_000);
        assert!(!clock.advance(Duration::from_secs(1)));
    }

    #[test]
    fn a_shifted_clock_never_goes_back() {
        let clock = Clock::shifted();
        for _ in 0..3 {
            assert!(clock.advance(Duration::MAX));
            assert_eq!(clock.now().as_millis(), i64::MAX);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn advancing_a_shifted_clock_wakes_its_sleepers() {
        let clock = Clock::shifted();
        let deadline = clock.now() + Duration::from_secs(7_200);
        let sleeper = {
            let clock = clock.clone();
            async move { clock.sleep_until(deadline).await }
        };
        let mover = async {
            tokio::task::yield_now().await;
            assert!(clock.advance(Duration::from_secs(7_201)));
        };
        let before = Instant::now();
        tokio::join!(sleeper, mover);
        assert!(before.elapsed() < Duration::from_secs(1), "no timer had to run out");
        assert!(clock.now() >= deadline);
    }

    #[tokio::test(start_paused = true)]
    async fn a_clock_by_hand_stands_still_until_it_is_moved() {
        let clock = Clock::by_hand(Timestamp::from_secs(1_000));
        tokio::time::sleep(Duration::from_secs(100)).await;
        assert_eq!(clock.now(), Timestamp::from_secs(1_000));
        assert!(clock.advance(Duration::from_secs(5)));
        assert_eq!(clock.now(), Timestamp::from_secs(1_005));
    }
}
