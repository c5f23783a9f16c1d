//! When which credential is to be looked at next.
//!
//! One ordered set of deadlines, one task that sleeps until the first of them. An idle credential
//! costs an entry here and nothing else.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Mutex,
};

use clock::{Clock, Timestamp};
use tokio::sync::Notify;

use crate::credential::CredentialId;

/// The deadlines of all credentials.
#[derive(Default)]
pub(crate) struct Schedule {
    deadlines: Mutex<Deadlines>,
    /// The first deadline changed, or work ended.
    moved: Notify,
}

#[derive(Default)]
struct Deadlines {
    ordered: BTreeSet<(Timestamp, CredentialId)>,
    of: HashMap<CredentialId, Timestamp>,
    /// Credentials taken out by [`Schedule::next_due`] whose work has not ended.
    working: usize,
}

impl Schedule {
    /// Sets when a credential is to be looked at; `None`: not before it is set again.
    pub(crate) fn set(&self, id: &CredentialId, at: Option<Timestamp>) {
        let mut deadlines = self.deadlines();
        let first = deadlines.ordered.first().map(|(at, _)| *at);
        if let Some(old) = deadlines.of.remove(id) {
            deadlines.ordered.remove(&(old, id.clone()));
        }
        if let Some(at) = at {
            deadlines.of.insert(id.clone(), at);
            deadlines.ordered.insert((at, id.clone()));
        }
        let moved = deadlines.ordered.first().map(|(at, _)| *at) != first;
        drop(deadlines);
        if moved {
            self.moved.notify_waiters();
        }
    }

    /// What time it is has changed: whoever sleeps looks again.
    pub(crate) fn look_again(&self) {
        self.moved.notify_waiters();
    }

    /// Waits for the next credential whose time has come and takes it out. Whoever takes one says
    /// [`Schedule::worked`] when done.
    pub(crate) async fn next_due(
        &self,
        clock: &Clock,
        now: impl Fn() -> Timestamp,
    ) -> CredentialId {
        loop {
            let moved = self.moved.notified();
            tokio::pin!(moved);
            moved.as_mut().enable();
            let first = {
                let mut deadlines = self.deadlines();
                match deadlines.ordered.first().cloned() {
                    Some((at, id)) if at <= now() => {
                        deadlines.ordered.pop_first();
                        deadlines.of.remove(&id);
                        deadlines.working += 1;
                        return id;
                    }
                    Some((at, _)) => Some(at),
                    None => None,
                }
            };
            match first {
                // The store's time may differ from the clock's; sleep by the difference.
                Some(at) => {
                    let wake_at = clock.now() + at.since(now());
                    tokio::select! {
                    biased;
                                () = clock.sleep_until(wake_at) => {}
                                () = moved => {}
                            }
                }
                None => moved.await,
            }
        }
    }

    /// Ends one piece of work that [`Schedule::next_due`] handed out.
    pub(crate) fn worked(&self) {
        self.deadlines().working -= 1;
        self.moved.notify_waiters();
    }

    /// Waits until nothing is due and nothing that was due is being worked on.
    pub(crate) async fn settled(&self, now: impl Fn() -> Timestamp) {
        loop {
            let moved = self.moved.notified();
            tokio::pin!(moved);
            moved.as_mut().enable();
            let busy = {
                let deadlines = self.deadlines();
                deadlines.working > 0
                    || deadlines.ordered.first().is_some_and(|(at, _)| *at <= now())
            };
            if !busy {
                return;
            }
            moved.await;
        }
    }

    /// How many credentials have a deadline.
    pub(crate) fn len(&self) -> usize {
        self.deadlines().ordered.len()
    }

    fn deadlines(&self) -> std::sync::MutexGuard<'_, Deadlines> {
        self.deadlines.lock().expect("nothing panics while it holds this lock")
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicI64, Ordering},
        time::Duration,
    };

    use super::*;
    use crate::credential::CredentialKind;

    fn id(name: &str) -> CredentialId {
        CredentialId { app: name.parse().unwrap(), kind: CredentialKind::Token }
    }

    #[tokio::test(start_paused = true)]
    async fn the_earliest_comes_first_and_a_new_first_wakes_the_sleeper() {
        let clock = Clock::following_timers(Timestamp::from_secs(0));
        let schedule = Schedule::default();
        schedule.set(&id("late"), Some(Timestamp::from_secs(100)));
        let next = async { schedule.next_due(&clock, || clock.now()).await };
        let insert = async {
            tokio::time::sleep(Duration::from_secs(10)).await;
            schedule.set(&id("early"), Some(Timestamp::from_secs(50)));
        };
        let (first, ()) = tokio::join!(next, insert);
        assert_eq!((first, clock.now().as_secs()), (id("early"), 50));
        assert_eq!(schedule.next_due(&clock, || clock.now()).await, id("late"));
        assert_eq!((clock.now().as_secs(), schedule.len()), (100, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_time_that_changes_wakes_the_sleeper() {
        let clock = Clock::following_timers(Timestamp::from_secs(0));
        let (schedule, ahead) = (Schedule::default(), AtomicI64::new(0));
        schedule.set(&id("a"), Some(Timestamp::from_secs(7200)));
        let now = || clock.now().offset_millis(ahead.load(Ordering::Relaxed));
        let change = async {
            tokio::time::sleep(Duration::from_secs(10)).await;
            ahead.store(7_200_000, Ordering::Relaxed);
            schedule.look_again();
        };
        let (first, ()) = tokio::join!(schedule.next_due(&clock, now), change);
        assert_eq!((first, clock.now().as_secs()), (id("a"), 10));
    }

    #[tokio::test(start_paused = true)]
    async fn settled_waits_for_the_work_that_is_due() {
        let clock = Clock::following_timers(Timestamp::from_secs(0));
        let schedule = Schedule::default();
        schedule.set(&id("a"), Some(Timestamp::from_secs(0)));
        schedule.set(&id("later"), Some(Timestamp::from_secs(1_000)));
        let work = async {
            schedule.next_due(&clock, || clock.now()).await;
            tokio::time::sleep(Duration::from_secs(7)).await;
            schedule.worked();
        };
        let settled = schedule.settled(|| clock.now());
        tokio::join!(work, settled);
        assert_eq!(clock.now().as_secs(), 7);
    }
}
