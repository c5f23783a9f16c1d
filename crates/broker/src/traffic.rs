//! What goes to WeChat for an app, counted.
//!
//! An app that is idle has nothing of it. Counting a call of a path that was seen before takes one
//! lookup and one addition, without a lock.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;

use crate::{
    AppEntry,
    credential::CredentialKind,
    path::{CallPath, OTHER},
};

/// So many paths are counted apart for each app; all others together.
const MOST_PATHS: usize = 200;

/// What came of a call that was carried to WeChat.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum CallClass {
    /// An answer without an errcode, or with 0.
    Fine,
    /// An errcode that is about the call.
    Errcode,
    /// An errcode that is about the token.
    Token,
    /// No answer, or none of WeChat's.
    Unanswered,
}

impl CallClass {
    /// All classes.
    pub const ALL: [Self; 4] = [Self::Fine, Self::Errcode, Self::Token, Self::Unanswered];

    /// The class as one word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Fine => "ok",
            Self::Errcode => "errcode",
            Self::Token => "token",
            Self::Unanswered => "unanswered",
        }
    }
}

/// What was called and fetched for one app.
#[derive(Default)]
pub(crate) struct Traffic {
    calls: ArcSwap<HashMap<Box<str>, Arc<[AtomicU64; 4]>>>,
    /// By kind and by what came of them.
    refreshes: Mutex<BTreeMap<(CredentialKind, FetchResult), u64>>,
}

/// What came of a fetch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum FetchResult {
    /// A token or ticket.
    Fine,
    /// WeChat's errcode.
    Errcode(i64),
    /// No answer of WeChat's.
    Unanswered,
}

/// What was counted for an app, read at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TrafficFigures {
    /// Carried calls by path and class.
    pub calls: Vec<(String, CallClass, u64)>,
    /// Fetches by credential and what came of them.
    pub refreshes: Vec<(CredentialKind, FetchResult, u64)>,
}

impl Traffic {
    fn count_call(&self, path: CallPath<'_>, class: CallClass) {
        let path = path.name();
        let add = |counts: &[AtomicU64; 4]| {
            counts[class as usize].fetch_add(1, Ordering::Relaxed);
        };
        if let Some(counts) = self.calls.load().get(path) {
            return add(counts);
        }
        // What WeChat does not know is not worth a series of its own.
        let known = self.calls.load().len() < MOST_PATHS
            && matches!(class, CallClass::Fine | CallClass::Token);
        let name = if known { path } else { OTHER };
        if let Some(counts) = self.calls.load().get(name) {
            return add(counts);
        }
        self.calls.rcu(|calls| {
            let mut calls = HashMap::clone(calls);
            calls.entry(name.into()).or_default();
            calls
        });
        if let Some(counts) = self.calls.load().get(name) {
            add(counts);
        }
    }
}

impl AppEntry {
    /// Counts a call that was carried with the app's token, or with the web token of one of its
    /// users.
    pub fn count_call(&self, path: CallPath<'_>, class: CallClass) {
        self.traffic().count_call(path, class);
    }

    /// Counts a fetch.
    pub(crate) fn count_refresh(&self, kind: CredentialKind, refreshed: FetchResult) {
        let refreshes = &self.traffic().refreshes;
        let mut refreshes = refreshes.lock().unwrap_or_else(PoisonError::into_inner);
        *refreshes.entry((kind, refreshed)).or_default() += 1;
    }

    /// What was counted since the start of the process; `None`: nothing.
    pub fn traffic_figures(&self) -> Option<TrafficFigures> {
        let traffic = self.traffic.get()?;
        let mut figures = TrafficFigures::default();
        for (path, counts) in traffic.calls.load().iter() {
            for class in CallClass::ALL {
                let count = counts[class as usize].load(Ordering::Relaxed);
                if count > 0 {
                    figures.calls.push((path.to_string(), class, count));
                }
            }
        }
        figures.calls.sort();
        let refreshes = traffic.refreshes.lock().unwrap_or_else(PoisonError::into_inner);
        figures.refreshes = refreshes
            .iter()
            .map(|((kind, refreshed), count)| (*kind, *refreshed, *count))
            .collect();
        Some(figures)
    }

    fn traffic(&self) -> &Traffic {
        self.traffic.get_or_init(Box::default)
    }
}

/// The place of an app's counts.
pub(crate) type Place = OnceLock<Box<Traffic>>;

/// How long fetches took.
#[derive(Debug, Default)]
pub(crate) struct Durations {
    buckets: [AtomicU64; Self::BOUNDS.len() + 1],
    micros: AtomicU64,
}

/// How long fetches took, read at one moment.
#[derive(Clone, Debug, PartialEq)]
pub struct DurationFigures {
    /// So many took no longer than so many seconds, and longer than the bound before; the last bound
    /// is the largest number there is.
    pub buckets: Vec<(f64, u64)>,
    /// All together, in seconds.
    pub sum: f64,
}

impl Durations {
    /// In seconds.
    const BOUNDS: [f64; 8] = [0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

    pub(crate) fn add(&self, took: Duration) {
        let seconds = took.as_secs_f64();
        let at = Self::BOUNDS.iter().position(|bound| seconds <= *bound);
        self.buckets[at.unwrap_or(Self::BOUNDS.len())].fetch_add(1, Ordering::Relaxed);
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.micros.fetch_add(micros, Ordering::Relaxed);
    }

    pub(crate) fn read(&self) -> DurationFigures {
        let bounds = Self::BOUNDS.into_iter().chain([f64::MAX]);
        let counts = self.buckets.iter().map(|count| count.load(Ordering::Relaxed));
        DurationFigures {
            buckets: bounds.zip(counts).collect(),
            sum: Duration::from_micros(self.micros.load(Ordering::Relaxed)).as_secs_f64(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_counted_apart_up_to_a_limit() {
        let traffic = Traffic::default();
        let count = |path: &str, class| traffic.count_call(CallPath::parse(path).unwrap(), class);
        // A path that WeChat never answered may be anybody's invention.
        count("/made/up", CallClass::Errcode);
        count("/cgi-bin/xk_0123456789", CallClass::Fine);
        count("/cgi-bin/user/info", CallClass::Token);
        count("/cgi-bin/user/info", CallClass::Fine);
        count("/cgi-bin/user/info", CallClass::Errcode);
        for number in 0..300 {
            count(&format!("/path/{number}"), CallClass::Fine);
        }
        let calls = traffic.calls.load();
        assert!(!calls.contains_key("/made/up"));
        let of = |path: &str| {
            calls[path].iter().map(|count| count.load(Ordering::Relaxed)).collect::<Vec<_>>()
        };
        assert_eq!(of("/cgi-bin/user/info"), [1, 1, 1, 0]);
        assert_eq!(of("/path/0"), [1, 0, 0, 0]);
        assert_eq!(calls.len(), MOST_PATHS);
        assert_eq!(of(OTHER), [301 - (MOST_PATHS as u64 - 2), 1, 0, 0]);
    }

    #[test]
    fn durations_fall_into_buckets() {
        let durations = Durations::default();
        for millis in [10, 50, 51, 400, 60_000] {
            durations.add(Duration::from_millis(millis));
        }
        let read = durations.read();
        let counts: Vec<_> = read.buckets.iter().map(|(_, count)| *count).collect();
        assert_eq!(counts, [2, 1, 0, 1, 0, 0, 0, 0, 1]);
        assert!((read.sum - 60.511).abs() < 1e-9);
    }
}
