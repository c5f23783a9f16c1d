//! The log of calls: what was asked and what was decided, without any secret.

use std::{
    collections::{HashMap, VecDeque},
    net::IpAddr,
};

use clock::Timestamp;
use serde::Serialize;

use crate::rng::short_hash;

/// What was called since the start or the last reset.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Calls {
    /// How often each combination occurred. Never forgotten; beyond 200 000 combinations new ones
    /// are counted together as the path `(other)`.
    pub totals: Vec<Total>,
    /// The calls, oldest first; the last 100 000.
    pub log: Vec<CallEntry>,
}

impl Calls {
    /// How many calls of a path there were, narrowed to an app and to an errcode where given.
    pub fn count(&self, path: &str, appid: Option<&str>, errcode: Option<i64>) -> u64 {
        let fits = |total: &&Total| {
            total.path == path
                && appid.is_none_or(|appid| total.appid == appid)
                && errcode.is_none_or(|errcode| total.errcode == Some(errcode))
        };
        self.totals.iter().filter(fits).map(|total| total.count).sum()
    }
}

/// How often a path was called for an app with one outcome.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Total {
    /// The path, such as `/cgi-bin/token`; `(foreign)` for mints by somebody outside.
    pub path: String,
    /// The app that the call named or whose token it carried; empty when neither is known.
    pub appid: String,
    /// What WeChat decided, 0 for success. `None` when a fault kept the call from being processed
    /// and gave it no errcode.
    pub errcode: Option<i64>,
    /// How often.
    pub count: u64,
}

/// One call.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CallEntry {
    /// Counts calls from 1 on, in the order in which they were decided.
    pub seq: u64,
    /// When the request had arrived, in milliseconds of the simulator's clock.
    pub sent_at: i64,
    /// When it was decided: the instant at which tokens changed.
    pub decided_at: i64,
    /// When the answer left; `None` when there was none or it still waits.
    pub answered_at: Option<i64>,
    /// The HTTP method.
    pub method: String,
    /// As in [`Total::path`].
    pub path: String,
    /// As in [`Total::appid`].
    pub appid: String,
    /// As in [`Total::errcode`].
    pub errcode: Option<i64>,
    /// The rid in the error text.
    pub rid: Option<String>,
    /// The address of the caller; `None` for mints by somebody outside.
    pub client_ip: Option<IpAddr>,
    /// Stands for the token, web token or refresh token that the call carried.
    pub token: Option<String>,
    /// Stands for the code or `js_code` that the call carried.
    pub code: Option<String>,
    /// Stands for the token, web token or ticket that the call was answered with.
    pub answered: Option<String>,
    /// `force_refresh` was asked for.
    pub force: bool,
    /// The kinds of the faults that were applied.
    pub faults: Vec<&'static str>,
}

impl CallEntry {
    /// Whether it was answered with this token, web token or ticket.
    pub fn answered_with(&self, secret: &str) -> bool {
        self.answered.as_deref() == Some(&short_hash(secret))
    }
}

/// The log as it is kept.
#[derive(Debug, Default)]
pub(crate) struct CallLog {
    totals: HashMap<(String, String, Option<i64>), u64>,
    arrivals: HashMap<(String, String), u64>,
    log: VecDeque<CallEntry>,
    last: u64,
}

impl CallLog {
    /// The most entries.
    const KEPT: usize = 100_000;
    /// The most different totals; paths of the wild are counted together beyond it.
    const TOTALS: usize = 200_000;

    /// Counts an arrival of an app at a path, and answers how many came before it.
    pub(crate) fn arrive(&mut self, path: &str, appid: &str) -> u64 {
        let mut key = (path.to_owned(), appid.to_owned());
        if self.arrivals.len() >= Self::TOTALS && !self.arrivals.contains_key(&key) {
            key = ("(other)".to_owned(), String::new());
        }
        let before = self.arrivals.entry(key).or_default();
        *before += 1;
        *before - 1
    }

    /// Writes a call down, and answers its number.
    pub(crate) fn push(&mut self, mut entry: CallEntry) -> u64 {
        self.last += 1;
        entry.seq = self.last;
        let mut key = (entry.path.clone(), entry.appid.clone(), entry.errcode);
        if self.totals.len() >= Self::TOTALS && !self.totals.contains_key(&key) {
            key = ("(other)".to_owned(), String::new(), entry.errcode);
        }
        *self.totals.entry(key).or_default() += 1;
        if self.log.len() == Self::KEPT {
            self.log.pop_front();
        }
        self.log.push_back(entry);
        self.last
    }

    /// Notes that the answer of a call left.
    pub(crate) fn answered(&mut self, seq: u64, now: Timestamp) {
        let Some(first) = self.log.front().map(|entry| entry.seq) else { return };
        let place = seq.checked_sub(first).and_then(|place| usize::try_from(place).ok());
        // A call from before a reset has no entry any more.
        if let Some(entry) = place.and_then(|place| self.log.get_mut(place)) {
            entry.answered_at = Some(now.as_millis());
        }
    }

    pub(crate) fn totals(&self) -> Vec<Total> {
        let mut totals: Vec<Total> = self
            .totals
            .iter()
            .map(|((path, appid, errcode), count)| Total {
                path: path.clone(),
                appid: appid.clone(),
                errcode: *errcode,
                count: *count,
            })
            .collect();
        totals.sort_unstable_by(|a, b| {
            (&a.path, &a.appid, a.errcode).cmp(&(&b.path, &b.appid, b.errcode))
        });
        totals
    }

    /// The entries after number `after`, at most `limit`.
    pub(crate) fn after(&self, after: u64, limit: usize) -> Vec<CallEntry> {
        self.log.iter().skip_while(|entry| entry.seq <= after).take(limit).cloned().collect()
    }

    /// Forgets everything but the numbering, so that a late answer finds no wrong entry.
    pub(crate) fn clear(&mut self) {
        self.totals.clear();
        self.arrivals.clear();
        self.log.clear();
    }
}
