//! Quotas: how often an app may call what, a day, a minute and a month.

use std::collections::BTreeMap;

use clock::Timestamp;

use crate::{
    api::Endpoint,
    app::{AppKind, AppSpec},
};

/// Key of the quota of forced refreshes a day.
pub(crate) const FORCE: &str = "/cgi-bin/stable_token#force";
/// Key of the quota of stable calls a minute.
pub(crate) const STABLE_MINUTE: &str = "/cgi-bin/stable_token#minute";
/// Key of the quota of a month that both versions of `clear_quota` share.
pub(crate) const CLEAR: &str = "/cgi-bin/clear_quota";

/// What an app used of its quotas.
#[derive(Clone, Debug, Default)]
pub(crate) struct Used {
    day: i64,
    minute: i64,
    month: i64,
    daily: BTreeMap<String, u64>,
    forced: u64,
    this_minute: u64,
    clears: u64,
}

impl Used {
    /// Starts the counters of a day, minute or month that has begun.
    pub(crate) fn turn(&mut self, now: Timestamp, day_offset_secs: i64) {
        let local = now.as_secs().saturating_add(day_offset_secs);
        let day = local.div_euclid(86_400);
        if day != self.day {
            self.day = day;
            self.daily.clear();
            self.forced = 0;
        }
        let minute = local.div_euclid(60);
        if minute != self.minute {
            self.minute = minute;
            self.this_minute = 0;
        }
        let month = month_of(day);
        if month != self.month {
            self.month = month;
            self.clears = 0;
        }
    }

    /// How often `key` was used in its day, minute or month.
    pub(crate) fn of(&self, key: &str) -> u64 {
        match key {
            FORCE => self.forced,
            STABLE_MINUTE => self.this_minute,
            CLEAR => self.clears,
            path => self.daily.get(path).copied().unwrap_or(0),
        }
    }

    /// Counts one use.
    pub(crate) fn count(&mut self, key: &'static str) {
        match key {
            FORCE => self.forced += 1,
            STABLE_MINUTE => self.this_minute += 1,
            CLEAR => self.clears += 1,
            path => *self.daily.entry(path.to_owned()).or_default() += 1,
        }
    }

    /// Sets the counters of all daily quotas back; the rule on forced refreshes stands.
    pub(crate) fn clear_daily(&mut self) {
        self.daily.clear();
    }
}

/// Whether a quota has this key.
pub(crate) fn exists(key: &str) -> bool {
    match Endpoint::of(key) {
        // It shares the quota of the first version.
        Some(endpoint) => endpoint != Endpoint::ClearQuotaV2,
        None => matches!(key, FORCE | STABLE_MINUTE),
    }
}

/// The quota of an app for `key`.
pub(crate) fn limit(spec: &AppSpec, key: &str) -> u64 {
    if let Some(own) = spec.quotas.get(key) {
        return *own;
    }
    let test = spec.kind == AppKind::Test;
    match key {
        FORCE => 20,
        STABLE_MINUTE => 10_000,
        CLEAR => 10,
        "/cgi-bin/token" => pick(test, 200, 2_000),
        "/cgi-bin/stable_token" => 500_000,
        "/cgi-bin/user/info" | "/cgi-bin/user/info/batchget" => pick(test, 500_000, 5_000_000),
        "/cgi-bin/user/get" => pick(test, 100, 500),
        // Unpublished for the rest; high enough to be no matter.
        _ => 1_000_000,
    }
}

const fn pick(test: bool, of_test: u64, of_others: u64) -> u64 {
    if test { of_test } else { of_others }
}

/// The months from year 0 to the one that holds a day, counted in days since 1970.
fn month_of(day: i64) -> i64 {
    let (year, month, _) = civil(day);
    year * 12 + month
}

/// Year, month and day of the month of a day, counted in days since 1970.
pub(crate) const fn civil(day: i64) -> (i64, i64, i64) {
    // The year is taken to begin in March, so that the leap day is its last.
    let shifted = day + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day_of_month = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + if month <= 2 { 1 } else { 0 };
    (year, month, day_of_month)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_have_dates() {
        assert_eq!(civil(0), (1970, 1, 1));
        assert_eq!(civil(-1), (1969, 12, 31));
        assert_eq!(civil(11_016), (2000, 2, 29));
        assert_eq!(civil(20_713), (2026, 9, 17));
    }

    #[test]
    fn a_day_turns_at_beijing_midnight() {
        let mut used = Used::default();
        // 2026-09-17 15:59:59 UTC is one second before midnight in Beijing.
        let evening = Timestamp::from_secs(20_713 * 86_400 + 16 * 3600 - 1);
        used.turn(evening, 8 * 3600);
        used.count("/cgi-bin/token");
        used.count(FORCE);
        used.turn(evening, 8 * 3600);
        assert_eq!((used.of("/cgi-bin/token"), used.of(FORCE)), (1, 1));
        used.turn(evening.offset_millis(1000), 8 * 3600);
        assert_eq!((used.of("/cgi-bin/token"), used.of(FORCE)), (0, 0));
    }
}
