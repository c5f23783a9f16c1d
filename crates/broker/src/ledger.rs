//! The ledger: what has been spent of WeChat's quotas, and the budgets that hold xinfu back.
//!
//! A row per app, API and Beijing day. A call is taken from the budget before it is made, so a
//! crash in between wastes one call but never hides one.

use std::time::Duration;

use clock::Timestamp;

use crate::app::{AppKind, Issuer};

/// WeChat counts days from midnight in Beijing (UTC+8).
const BEIJING_OFFSET: i64 = 8 * 3600;
const DAY: i64 = 86_400;

/// What was spent on one API in one Beijing day.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LedgerRow {
    /// The API, as [`Api::as_str`].
    pub api: String,
    /// The day: whole days since 1970-01-01 in Beijing.
    pub day: i64,
    /// Calls taken from the budget on that day.
    pub used: u32,
    /// When the burst is fully available again.
    pub rested_at: Timestamp,
}

/// The answer to who wants to make a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Spending {
    /// Make it. So many have been used today, this one included.
    Granted {
        /// Calls used today.
        used: u32,
    },
    /// Do not make it before `retry_at`.
    Refused {
        /// When the budget allows it.
        retry_at: Timestamp,
        /// Whether the day's budget is used up, rather than calls coming too fast.
        day: bool,
    },
}

/// How much xinfu spends on one API of one app by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// Calls a Beijing day.
    pub per_day: u32,
    /// Calls at once after a rest.
    pub burst: u32,
    /// After the burst, one call each such interval.
    pub every: Duration,
}

impl Budget {
    /// The newest day whose row counts at `now`: rows beyond tomorrow were written by a clock that
    /// has been set back since.
    pub fn newest_day(now: Timestamp) -> i64 {
        beijing_day(now) + 1
    }

    /// Takes one call at `now`, given the newest row of this app and API up to
    /// [`Budget::newest_day`]. Answers the row to
    /// store and what to tell the caller; when refused there is nothing to store.
    pub fn spend(
        &self,
        api: &str,
        newest: Option<&LedgerRow>,
        now: Timestamp,
    ) -> (Option<LedgerRow>, Spending) {
        let today = beijing_day(now);
        let used = newest.filter(|row| row.day >= today).map_or(0, |row| row.used);
        // More debt than a full bucket is of a clock that was ahead and has been set back.
        let most = now + self.every * self.burst;
        let rested = newest.map(|row| row.rested_at).filter(|at| (now..=most).contains(at));
        if used >= self.per_day {
            let midnight = Timestamp::from_secs((today + 1) * DAY - BEIJING_OFFSET);
            return (None, Spending::Refused { retry_at: midnight, day: true });
        }
        // The bucket is kept as the instant at which it is full again: each call moves it one
        // interval on, and it must never be more than a burst ahead.
        let rested_at = rested.unwrap_or(now) + self.every;
        let allowed_at = rested_at - self.every * self.burst;
        if allowed_at > now {
            return (None, Spending::Refused { retry_at: allowed_at, day: false });
        }
        let day = newest.map_or(today, |row| row.day.max(today));
        let row = LedgerRow { api: api.to_owned(), day, used: used + 1, rested_at };
        (Some(row), Spending::Granted { used: used + 1 })
    }
}

/// The APIs that xinfu calls of its own accord.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Api {
    /// `cgi-bin/token`.
    Token,
    /// `cgi-bin/stable_token`, normal mode.
    StableToken,
    /// `cgi-bin/stable_token` with `force_refresh`.
    StableForce,
    /// `cgi-bin/ticket/getticket`.
    Ticket,
    /// `cgi-bin/get_api_domain_ip`, which asks whether a token still works.
    Probe,
}

impl Api {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::Token, Self::StableToken, Self::StableForce, Self::Ticket, Self::Probe];

    /// The API as the ledger names it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Token => "token",
            Self::StableToken => "stable_token",
            Self::StableForce => "stable_token/force",
            Self::Ticket => "ticket",
            Self::Probe => "get_api_domain_ip",
        }
    }

    /// The API that fetches a token from an issuer in its ordinary way.
    pub fn of_issuer(issuer: Issuer) -> Self {
        match issuer {
            Issuer::Stable => Self::StableToken,
            Issuer::Classic => Self::Token,
        }
    }

    /// WeChat's quota a day; for those that WeChat does not publish, what we take for it. A call
    /// that does no harm may reach WeChat twice, once for each of two hosts, but is taken once: the
    /// half that is not in our budget covers that.
    pub fn quota(self, kind: AppKind) -> u32 {
        match (self, kind) {
            (Self::Token, AppKind::Test) => 200,
            (Self::Token, _) => 2_000,
            (Self::StableToken, _) => 500_000,
            (Self::StableForce, _) => 20,
            (Self::Ticket, _) => 1_000,
            (Self::Probe, _) => 10_000,
        }
    }

    /// What xinfu spends by itself: half the quota, and slowly. Of the forced refreshes, which end
    /// tokens that others hold, a quarter, far enough apart for WeChat to act on each.
    pub fn budget(self, kind: AppKind) -> Budget {
        let (share, burst, every) = match self {
            Self::Token => (2, 10, Duration::from_secs(60)),
            Self::StableToken => (2, 50, Duration::from_millis(200)),
            Self::StableForce => (4, 1, Duration::from_secs(31)),
            Self::Ticket => (2, 10, Duration::from_secs(10)),
            Self::Probe => (2, 20, Duration::from_secs(1)),
        };
        Budget { per_day: self.quota(kind) / share, burst, every }
    }

    /// What xinfu spends when a person asks for it: the whole quota, at the same pace.
    pub fn budget_for_a_person(self, kind: AppKind) -> Budget {
        Budget { per_day: self.quota(kind), ..self.budget(kind) }
    }
}

/// What WeChat allows a day of an API that the ledger names.
pub fn limit_of(api: &str, kind: AppKind) -> Option<u32> {
    Api::ALL.into_iter().find(|it| it.as_str() == api).map(|it| it.quota(kind))
}

/// The day that `now` falls on in Beijing, in whole days since 1970-01-01 there.
pub fn beijing_day(now: Timestamp) -> i64 {
    (now.as_secs() + BEIJING_OFFSET).div_euclid(DAY)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 2026-01-01 00:00 in Beijing.
    const MIDNIGHT: Timestamp = Timestamp::from_secs(1_767_196_800);

    fn spend_all(budget: Budget, row: &mut Option<LedgerRow>, now: Timestamp) -> u32 {
        let mut granted = 0;
        loop {
            match budget.spend("token", row.as_ref(), now) {
                (Some(next), Spending::Granted { used }) => {
                    assert_eq!(next.used, used);
                    *row = Some(next);
                    granted += 1;
                }
                (None, Spending::Refused { retry_at, .. }) => {
                    assert!(retry_at > now);
                    return granted;
                }
                other => panic!("row and answer disagree: {other:?}"),
            }
        }
    }

    #[test]
    fn a_burst_then_one_per_interval() {
        let budget = Api::Token.budget(AppKind::Official);
        let mut row = None;
        assert_eq!(spend_all(budget, &mut row, MIDNIGHT), 10);
        assert_eq!(spend_all(budget, &mut row, MIDNIGHT + Duration::from_secs(59)), 0);
        assert_eq!(spend_all(budget, &mut row, MIDNIGHT + Duration::from_secs(60)), 1);
        assert_eq!(spend_all(budget, &mut row, MIDNIGHT + Duration::from_secs(4_000)), 10);
    }

    #[test]
    fn a_day_ends_at_midnight_in_beijing() {
        let budget = Budget { per_day: 3, burst: 10, every: Duration::from_millis(1) };
        let mut row = None;
        let last_second = MIDNIGHT - Duration::from_secs(1);
        assert_eq!(spend_all(budget, &mut row, last_second), 3);
        let (_, refused) = budget.spend("token", row.as_ref(), last_second);
        assert_eq!(refused, Spending::Refused { retry_at: MIDNIGHT, day: true });
        assert_eq!(spend_all(budget, &mut row, MIDNIGHT), 3);
    }

    #[test]
    fn a_clock_that_steps_back_grants_nothing_twice() {
        let budget = Budget { per_day: 3, burst: 10, every: Duration::from_millis(1) };
        let mut row = None;
        assert_eq!(spend_all(budget, &mut row, MIDNIGHT), 3);
        assert_eq!(spend_all(budget, &mut row, MIDNIGHT - Duration::from_secs(1)), 0);
    }

    #[test]
    fn a_clock_that_was_far_ahead_leaves_no_debt() {
        let budget = Api::Token.budget(AppKind::Official);
        let mut row = None;
        assert_eq!(spend_all(budget, &mut row, MIDNIGHT + Duration::from_secs(3_600)), 10);
        assert_eq!(spend_all(budget, &mut row, MIDNIGHT), 10);
    }

    #[test]
    fn forced_refreshes_are_five_a_day_and_far_apart() {
        let budget = Api::StableForce.budget(AppKind::Official);
        assert_eq!((budget.per_day, budget.burst), (5, 1));
        assert!(budget.every >= Duration::from_secs(30));
    }
}
