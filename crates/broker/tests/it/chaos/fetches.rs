//! What must hold of the fetches of one app's token: P1, and of P10 the budgets.

use std::{collections::HashMap, net::IpAddr};

use broker::app::Issuer;
use sim::CallEntry;

use super::{
    judge::{Heard, Judge, STEP, Wrong, is_forgotten, is_unheard, name_of_lease},
    records::{Holding, Put, Written},
};

/// A replica gives a call up after so long, in milliseconds.
pub(super) const GIVEN_UP: i64 = 8_000;
/// Who finds the store, or what gives leases, out of reach goes on without it after so long, in
/// milliseconds.
const GAVE_UP: i64 = 10_000;
/// What was heard is stored after so long, in milliseconds, over the slowest of links.
pub(super) const STORED: i64 = 1_500;
/// Replicas know the store's time to within two seconds; then there are steps.
const CLOCKS: i64 = 2_500;
/// A report of so long ago, in milliseconds, may still have to be looked into.
const REPORTED: i64 = 90_000;
/// The same token again: so long until the next try, in milliseconds.
const SAME_AGAIN: i64 = 15_000;

/// The fetches of one app.
pub(super) struct Fetches<'a> {
    judge: &'a Judge,
    appid: &'static str,
    written: &'a Written,
    heard: &'a Heard,
    /// The leases for it, as they were given.
    leases: Vec<&'a Holding>,
    /// In the order in which they came to WeChat.
    calls: Vec<Fetch<'a>>,
}

/// One call for a token.
struct Fetch<'a> {
    call: &'a CallEntry,
    ip: IpAddr,
    /// The earliest instant at which it may have left its replica.
    left: i64,
    /// The lease under which it was sent.
    lease: Option<&'a Holding>,
    /// It is the same call once more, over another connection.
    again: bool,
}

impl<'a> Fetches<'a> {
    pub(super) fn of(
        judge: &'a Judge,
        (appid, issuer): (&'static str, Issuer),
        log: &'a [CallEntry],
        written: &'a Written,
        heard: &'a Heard,
    ) -> Self {
        let path = match issuer {
            Issuer::Stable => "/cgi-bin/stable_token",
            Issuer::Classic => "/cgi-bin/token",
        };
        let fits = |call: &&CallEntry| call.appid == appid && call.path == path;
        let mut entries: Vec<&CallEntry> = log.iter().filter(fits).collect();
        entries.sort_by_key(|call| (call.sent_at, call.seq));
        let leases: Vec<_> =
            written.leases.iter().filter(|held| held.name == name_of_lease(appid)).collect();
        let mut calls: Vec<Fetch<'_>> = Vec::new();
        for call in entries {
            let ip = call.client_ip.expect("a replica made it");
            let left = judge.left_at(ip, call.sent_at);
            let lease = leases.iter().copied().find(|held| {
                let released = held.released.is_none_or(|at| left <= at.as_millis());
                held.ip == ip
                    && held.from.as_millis() + STEP <= call.sent_at
                    && left + GIVEN_UP <= held.until.as_millis()
                    && released
            });
            let again = issuer == Issuer::Stable
                && !call.force
                && calls.iter().rfind(|last| last.ip == ip).is_some_and(|last| {
                    !last.again
                        && is_unheard(last.call)
                        && call.sent_at < last.call.sent_at + GIVEN_UP
                });
            calls.push(Fetch { call, ip, left, lease, again });
        }
        Self { judge, appid, written, heard, leases, calls }
    }

    pub(super) fn look(&self) {
        self.under_a_lease();
        self.one_at_a_time();
        self.each_stored();
        self.each_due();
        self.same_token_not_at_once();
        self.within_budget();
        self.each_from_the_budget();
    }

    /// P1: each is sent under a lease of its replica that outlasts it. Only who cannot reach the store
    /// or what gives leases asks without one, and not in a way that ends the token of others.
    fn under_a_lease(&self) {
        for it in self.calls.iter().filter(|it| it.lease.is_none()) {
            assert!(
                self.is_harmless(it) && self.could_not_reach(&[Wrong::Alone, Wrong::Leaseless], it),
                "without a lease: {:?} (seed {})",
                it.call,
                self.judge.seed
            );
        }
    }

    /// P1: at most one in flight while leases hold; one that was forgotten holds nobody off.
    fn one_at_a_time(&self) {
        for (at, one) in self.calls.iter().enumerate() {
            let end = one.call.answered_at.unwrap_or(one.call.decided_at);
            let end = end.min(one.call.sent_at + GIVEN_UP);
            for other in self.calls[at + 1..].iter().take_while(|it| it.call.sent_at < end) {
                // One that was held up may have been given up before it came.
                let excused = [one, other].iter().any(|it| {
                    it.lease.is_none_or(|held| is_forgotten(held, other.call.sent_at))
                        || it.is_held_up()
                });
                assert!(
                    excused,
                    "two at once: {:?}\n{:?}\n(seed {})",
                    one.call, other.call, self.judge.seed
                );
            }
        }
    }

    /// P1: no more fetches than rotations. What a fetch brought is the next generation or is one
    /// already, unless its replica came to grief in between.
    fn each_stored(&self) {
        for it in self.calls.iter().filter(|it| self.came_through(it)) {
            let by = it.answered_at() + STORED;
            let stored = self
                .puts()
                .any(|put| it.call.answered_with(&put.token) && put.at.as_millis() <= by);
            assert!(
                stored || self.asks_once_more(it),
                "fetched for nothing: {:?} (seed {})",
                it.call,
                self.judge.seed
            );
        }
    }

    /// P1: none before the token is due, or is said not to work: as the row was when the lease was given,
    /// or, to who has none, when it was read last.
    fn each_due(&self) {
        /// Who has no lease sends so soon after it has read the row, in milliseconds.
        const JUST_READ: i64 = 8_000;
        for it in &self.calls {
            let sent = it.call.sent_at;
            let (from, read_by) = match it.lease {
                Some(lease) => (lease.from.as_millis(), lease.from.as_millis()),
                None => (self.judge.awake_before(it.ip, it.left, JUST_READ), sent),
            };
            let rows = || self.written.rows.iter().filter(|row| row.id.app.as_str() == self.appid);
            let due_as_of = |at: i64| {
                let row = rows().rfind(|row| row.from.as_millis() <= at);
                row.is_none_or(|row| row.dead || row.refresh_at.as_millis() <= sent + CLOCKS)
            };
            let mut changes = rows().map(|row| row.from.as_millis());
            let due_since = changes.any(|at| (from..=read_by).contains(&at) && due_as_of(at));
            let reported = self.heard.reported.iter().any(|report| {
                let at = report.at.as_millis();
                report.ip == it.ip
                    && report.appid == self.appid
                    && (from - REPORTED..=sent).contains(&at)
            });
            assert!(
                due_as_of(from - 1)
                    || due_since
                    || reported
                    || self.could_not_reach_the_store(it)
                    || self.asks_once_more(it),
                "not due: {:?} (seed {})",
                it.call,
                self.judge.seed
            );
        }
    }

    /// P1: after WeChat has answered with what we have, it is not asked again at once, unless somebody
    /// says that the token does not work.
    fn same_token_not_at_once(&self) {
        let mut brought: HashMap<&str, i64> = HashMap::new();
        let normal = self.calls.iter().filter(|it| !it.call.force && self.came_through(it));
        for it in normal {
            let token = it.call.answered.as_deref().expect("it brought one");
            let before = brought.insert(token, it.answered_at());
            let reported = self.heard.reported.iter().any(|report| {
                let at = report.at.as_millis();
                report.appid == self.appid && (it.left - REPORTED..=it.call.sent_at).contains(&at)
            });
            assert!(
                reported
                    || self.asks_once_more(it)
                    || self.is_beside_a_forgotten_lease(it)
                    || before.is_none_or(|at| at + SAME_AGAIN - CLOCKS <= it.call.sent_at),
                "the same token again at once: {:?} (seed {})",
                it.call,
                self.judge.seed
            );
        }
    }

    /// P10: what was taken from a budget is never more than the burst and then the pace, and of forced
    /// refreshes five a day; the whole run is of one day.
    fn within_budget(&self) {
        for (api, burst, every, per_day) in [
            ("token", 10, 60_000, 1_000),
            ("stable_token", 50, 200, 250_000),
            ("stable_token/force", 1, 30_000, 5),
        ] {
            let taken: Vec<i64> = self.taken(api).map(|(_, at)| at).collect();
            assert!(
                taken.len() <= per_day,
                "{} calls of {api} (seed {})",
                taken.len(),
                self.judge.seed
            );
            for (at, first) in taken.iter().enumerate() {
                for (more, last) in (1..).zip(&taken[at..]) {
                    let allowed = burst + (last - first) / every;
                    assert!(
                        more <= allowed,
                        "{more} calls of {api} in {} ms (seed {})",
                        last - first,
                        self.judge.seed
                    );
                }
            }
        }
    }

    /// P10: each was taken from the budget before it was sent. Only who cannot reach the store asks
    /// uncounted, and not in a way that ends the token of others.
    fn each_from_the_budget(&self) {
        let mut made: HashMap<(IpAddr, &str), usize> = HashMap::new();
        for it in &self.calls {
            let uncounted = self.is_harmless(it) && self.could_not_reach_the_store(it);
            if it.again || uncounted {
                continue;
            }
            let api = it.api();
            let made = made.entry((it.ip, api)).or_default();
            *made += 1;
            let taken = self.taken(api).filter(|(ip, at)| *ip == it.ip && *at <= it.call.sent_at);
            assert!(
                *made <= taken.count(),
                "not from the budget: {:?} (seed {})",
                it.call,
                self.judge.seed
            );
        }
    }

    /// When which replica took a call from a budget.
    fn taken(&self, api: &str) -> impl Iterator<Item = (IpAddr, i64)> {
        self.written
            .spent
            .iter()
            .filter(move |it| it.granted && it.app.as_str() == self.appid && it.api == api)
            .map(|it| (it.ip, it.at.as_millis()))
    }

    fn puts(&self) -> impl Iterator<Item = &'a Put> {
        self.written.puts.iter().filter(|put| put.id.app.as_str() == self.appid)
    }

    /// Whether it ends nobody's token.
    fn is_harmless(&self, it: &Fetch<'_>) -> bool {
        it.call.path == "/cgi-bin/stable_token" && !it.call.force
    }

    fn could_not_reach_the_store(&self, it: &Fetch<'_>) -> bool {
        self.could_not_reach(&[Wrong::Alone], it)
    }

    fn could_not_reach(&self, what: &[Wrong], it: &Fetch<'_>) -> bool {
        let from = self.judge.awake_before(it.ip, it.left, GAVE_UP);
        self.judge.any(what, it.ip, from, it.call.sent_at)
    }

    /// Whether it was sent while somebody may still have believed in a lease that was forgotten.
    fn is_beside_a_forgotten_lease(&self, it: &Fetch<'_>) -> bool {
        self.leases.iter().any(|held| is_forgotten(held, it.call.sent_at))
    }

    /// Whether a token was brought, under a lease, to a replica that reached the store before and had no
    /// trouble until it was stored.
    fn came_through(&self, it: &Fetch<'_>) -> bool {
        /// WeChat's answer to a call that was not given up.
        const IN_TIME: i64 = GIVEN_UP - 500;
        let wrong = [Wrong::Alone, Wrong::CutOff, Wrong::Stopped, Wrong::Down];
        it.lease.is_some()
            && it.call.answered.is_some()
            && !is_unheard(it.call)
            && it.answered_at() <= it.call.sent_at + IN_TIME
            && !self.could_not_reach_the_store(it)
            && !self.judge.any(&wrong, it.ip, it.left, it.answered_at() + STORED)
    }

    /// Whether WeChat is asked once more to settle whose token it has kept: somebody who had lost the
    /// lease, or had none, stored another one meanwhile, or this replica had asked without a lease before.
    fn asks_once_more(&self, it: &Fetch<'_>) -> bool {
        /// So long before, in milliseconds: what was fetched alone waits for the store, which is cut off for
        /// 90 seconds at most.
        const BEFORE: i64 = 100_000;
        let from = self.judge.awake_before(it.ip, it.left, BEFORE);
        let around = from..=it.call.answered_at.unwrap_or(it.call.sent_at) + STORED;
        let lost = |put: &Put| {
            let at = put.at.as_millis();
            let brought_it = |other: &&Fetch<'_>| {
                other.ip == put.ip
                    && other.call.answered_with(&put.token)
                    && other.call.sent_at <= at
            };
            let unheld = |other: &Fetch<'_>| {
                let forgotten = other.lease.and_then(|held| held.forgotten);
                other.lease.is_none()
                    || forgotten.is_some_and(|it| it <= put.at)
                    || self.is_beside_a_forgotten_lease(other)
            };
            self.judge.any(&[Wrong::Alone, Wrong::Stopped], put.ip, at - 60_000, at)
                || self.calls.iter().filter(brought_it).any(unheld)
        };
        let overtaken = self
            .puts()
            .any(|put| put.ip != it.ip && around.contains(&put.at.as_millis()) && lost(put));
        let settled = |since: i64| {
            self.puts().any(|put| put.ip == it.ip && (since..it.left).contains(&put.at.as_millis()))
        };
        let alone = self.calls.iter().any(|other| {
            other.ip == it.ip
                && around.contains(&other.call.sent_at)
                && (other.lease.is_none() || self.could_not_reach_the_store(other))
                && !settled(other.call.sent_at)
        });
        overtaken || alone
    }
}

impl Fetch<'_> {
    fn is_held_up(&self) -> bool {
        self.left < self.call.sent_at - 2 * STEP
    }

    fn answered_at(&self) -> i64 {
        self.call.answered_at.unwrap_or(i64::MAX)
    }

    /// The API that it is charged to.
    fn api(&self) -> &'static str {
        match (self.call.path.as_str(), self.call.force) {
            ("/cgi-bin/token", _) => "token",
            (_, true) => "stable_token/force",
            (_, false) => "stable_token",
        }
    }
}
