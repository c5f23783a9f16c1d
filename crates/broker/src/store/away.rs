//! Servers that do not answer.

use std::{pin::pin, sync::Arc, time::Duration};

use tokio::{sync::watch, time::Instant};

/// How long a server that did not answer is left alone.
const LEFT_ALONE: Duration = Duration::from_millis(500);
/// A deadline that is noticed so late was slept over: this process was stopped, or could not run.
const SLEPT_OVER: Duration = Duration::from_millis(500);

/// Waits for what a server answers, for as long as `patience` lasts. `None`: it did not answer.
///
/// A process that was stopped finds its deadlines over before it has heard what was said meanwhile,
/// which tells nothing about the server: it waits as long again.
pub(super) async fn in_time<T>(patience: Duration, answer: impl Future<Output = T>) -> Option<T> {
    let mut answer = pin!(answer);
    loop {
        let deadline = Instant::now() + patience;
        if let Ok(answer) = tokio::time::timeout_at(deadline, &mut answer).await {
            return Some(answer);
        }
        if deadline.elapsed() < SLEPT_OVER {
            return None;
        }
    }
}

/// Whether a server answers. Once it did not, one caller at a time tries it, with a pause in between,
/// and all others fail at once instead of waiting for the same; until it has answered. Cloning gives
/// another handle to the same.
#[derive(Clone)]
pub(super) struct Away(Arc<watch::Sender<State>>);

#[derive(Clone, Copy)]
enum State {
    Answers,
    Silent {
        /// When it may be tried again.
        next: Instant,
        /// Whether somebody tries it now.
        tried: bool,
    },
}

/// The leave to ask a server. Whoever drops it without a word has not found out anything.
pub(super) struct Leave {
    away: Away,
    /// Whether this is the one try of a server that is silent.
    is_trial: bool,
}

impl Away {
    /// Nobody has asked yet.
    pub(super) fn new() -> Self {
        Self(Arc::new(watch::Sender::new(State::Answers)))
    }

    /// The leave to ask. `None`: it does not answer, and somebody else has just tried it or does.
    pub(super) fn leave(&self) -> Option<Leave> {
        let mut is_trial = None;
        self.0.send_if_modified(|state| {
            match state {
                State::Answers => is_trial = Some(false),
                State::Silent { next, tried } if !*tried && *next <= Instant::now() => {
                    *tried = true;
                    is_trial = Some(true);
                }
                State::Silent { .. } => {}
            }
            false
        });
        is_trial.map(|is_trial| Leave { away: self.clone(), is_trial })
    }
}

impl Leave {
    /// It has answered, if only that it refuses.
    pub(super) fn answered(self) {
        self.away.0.send_replace(State::Answers);
    }

    /// It has not answered.
    pub(super) fn unanswered(self) {
        let next = Instant::now() + LEFT_ALONE;
        self.away.0.send_replace(State::Silent { next, tried: false });
    }

    /// Waits until others have found that the server does not answer; for ever, if this is who tries.
    pub(super) async fn moot(&self) {
        if self.is_trial {
            return std::future::pending().await;
        }
        let mut states = self.away.0.subscribe();
        // The sender is here.
        let _ = states.wait_for(|state| matches!(state, State::Silent { .. })).await;
    }
}

impl Drop for Leave {
    fn drop(&mut self) {
        if !self.is_trial {
            return;
        }
        self.away.0.send_if_modified(|state| {
            if let State::Silent { next, tried } = state {
                *next = Instant::now() + LEFT_ALONE;
                *tried = false;
            }
            false
        });
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_was_said_while_the_process_was_stopped_is_heard() {
        const PATIENCE: Duration = Duration::from_secs(5);
        let (say, said) = oneshot::channel();
        let say = async {
            // The deadline is noticed first, and a minute late.
            tokio::time::advance(Duration::from_secs(60)).await;
            say.send("said").unwrap();
        };
        let (heard, ()) = tokio::join!(biased; in_time(PATIENCE, said), say);
        assert_eq!(heard, Some(Ok("said")));
        let (_silent, said) = oneshot::channel::<()>();
        let began = Instant::now();
        assert_eq!(in_time(PATIENCE, said).await, None, "it is silent");
        assert!(began.elapsed() < PATIENCE + SLEPT_OVER);
    }

    #[tokio::test(start_paused = true)]
    async fn one_at_a_time_tries_a_server_that_is_silent() {
        let away = Away::new();
        let (one, two) = (away.leave().unwrap(), away.leave().unwrap());
        one.unanswered();
        two.moot().await;
        assert!(away.leave().is_none(), "it is left alone");
        tokio::time::advance(LEFT_ALONE).await;
        let trial = away.leave().unwrap();
        tokio::time::advance(LEFT_ALONE * 100).await;
        assert!(away.leave().is_none(), "somebody tries it");
        // Who goes away has found out nothing, and somebody else tries.
        drop(trial);
        assert!(away.leave().is_none());
        tokio::time::advance(LEFT_ALONE).await;
        let trial = away.leave().unwrap();
        trial.unanswered();
        tokio::time::advance(LEFT_ALONE).await;
        away.leave().unwrap().answered();
        let (_one, _two) = (away.leave().unwrap(), away.leave().unwrap());
        // Who has heard an answer knows better than who waits for one.
        drop(two);
        assert!(away.leave().is_some());
    }
}
