//! What must hold, read off the simulator's log of calls and off what services were given.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::IpAddr,
    time::Duration,
};

use broker::TokenView;
use clock::Timestamp;
use sim::{CallEntry, Sim, TokenState};

use super::driver::{APPS, LIFE};
use crate::harness::EXCHANGE;

/// A lease lasts for so long at most.
const LEASE: Duration = Duration::from_secs(40);

/// A token that a service was given.
pub(super) struct Seen {
    pub(super) node: usize,
    pub(super) appid: &'static str,
    pub(super) asked: Timestamp,
    pub(super) at: Timestamp,
    /// What WeChat would have said to it.
    pub(super) state: TokenState,
    pub(super) view: TokenView,
}

/// A service that was given none, and why.
pub(super) struct Refused {
    pub(super) node: usize,
    pub(super) appid: &'static str,
    pub(super) at: Timestamp,
    pub(super) why: String,
}

pub(super) struct Judge {
    seed: u64,
    /// When replicas could not reach the store or were stopped.
    disturbed: Vec<(IpAddr, Timestamp, Timestamp)>,
    /// When replicas could not reach the store.
    alone: Vec<(IpAddr, Timestamp, Timestamp)>,
    /// When replicas could not reach WeChat.
    cut_off: Vec<(IpAddr, Timestamp, Timestamp)>,
    killed: Vec<(IpAddr, Timestamp)>,
}

impl Judge {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            seed,
            disturbed: Vec::new(),
            alone: Vec::new(),
            cut_off: Vec::new(),
            killed: Vec::new(),
        }
    }

    pub(super) fn stopped(&mut self, ip: IpAddr, from: Timestamp, until: Timestamp) {
        self.disturbed.push((ip, from, until));
    }

    pub(super) fn alone(&mut self, ip: IpAddr, from: Timestamp, until: Timestamp) {
        self.disturbed.push((ip, from, until));
        self.alone.push((ip, from, until));
    }

    pub(super) fn cut_off(&mut self, ip: IpAddr, from: Timestamp, until: Timestamp) {
        self.cut_off.push((ip, from, until));
    }

    /// All is mended.
    pub(super) fn peace(&mut self, now: Timestamp) {
        for times in [&mut self.disturbed, &mut self.alone, &mut self.cut_off] {
            times.iter_mut().for_each(|(_, _, until)| *until = now.min(*until));
        }
    }

    pub(super) fn killed(&mut self, ip: IpAddr, at: Timestamp) {
        self.killed.push((ip, at));
    }

    /// Whether a replica may have lost a lease within this time, or worked without one.
    fn excused(&self, ip: IpAddr, from: i64, until: i64) -> bool {
        let lease = i64::try_from(LEASE.as_millis()).unwrap();
        self.disturbed.iter().any(|(of, begun, ended)| {
            *of == ip && begun.as_millis() <= until && from <= ended.as_millis() + lease
        }) || self
            .killed
            .iter()
            .any(|(of, at)| *of == ip && from <= at.as_millis() && at.as_millis() <= until + lease)
    }

    pub(super) fn look(&self, sim: &Sim, seen: &[Seen], ip_of: &[IpAddr]) {
        let log = sim.calls().log;
        for (appid, _) in APPS {
            let fetches: Vec<&CallEntry> = log.iter().filter(|it| is_fetch(it, appid)).collect();
            self.one_at_a_time(&fetches);
            self.classic_under_a_lease(&fetches);
            self.within_budget(&fetches);
        }
        self.codes_once(&log);
        self.one_token_each(seen, ip_of);
        self.tokens_good(&log, seen);
    }

    /// P1: at most one fetch in flight for each token while leases hold.
    fn one_at_a_time(&self, fetches: &[&CallEntry]) {
        for (at, one) in fetches.iter().enumerate() {
            // A replica gives a call up after eight seconds.
            let end = one.answered_at.unwrap_or(one.decided_at).min(one.sent_at + 8_000);
            for other in fetches[at + 1..].iter().take_while(|other| other.sent_at < end) {
                let excused = [one, other].iter().any(|call| {
                    let ip = call.client_ip.expect("a replica made it");
                    self.excused(ip, call.sent_at, end) || self.came_late(ip, call.sent_at)
                });
                assert!(excused, "two at once: {one:?}\n{other:?}\n(seed {})", self.seed);
            }
        }
    }

    /// Whether a call may have been given up by its replica before it came to WeChat: it was under way
    /// while nothing passed.
    fn came_late(&self, ip: IpAddr, sent: i64) -> bool {
        self.cut_off.iter().any(|(of, begun, ended)| {
            *of == ip && begun.as_millis() <= sent && sent <= ended.as_millis() + 1_000
        })
    }

    /// P1: on classic nothing is minted without a lease, and nobody has one who has not reached the store
    /// for longer than a lease lasts.
    fn classic_under_a_lease(&self, fetches: &[&CallEntry]) {
        let lease = i64::try_from(LEASE.as_millis()).unwrap();
        for call in fetches.iter().filter(|call| call.path == "/cgi-bin/token") {
            let ip = call.client_ip.expect("a replica made it");
            let alone = self.alone.iter().any(|(of, begun, ended)| {
                *of == ip
                    && begun.as_millis() + lease < call.sent_at
                    && call.sent_at < ended.as_millis()
            });
            assert!(!alone, "minted without a lease: {call:?} (seed {})", self.seed);
        }
    }

    /// P2: one generation is one token, whoever serves it, but for what a replica keeps that could not
    /// store it.
    fn one_token_each(&self, seen: &[Seen], ip_of: &[IpAddr]) {
        let mut tokens = HashMap::new();
        for it in seen {
            let at = it.at.as_millis();
            if self.excused(ip_of[it.node], at - 60_000, at) {
                continue;
            }
            let token = it.view.token.expose();
            let known = *tokens.entry((it.appid, it.view.generation)).or_insert(token);
            assert!(
                known == token,
                "two tokens of {} as generation {} (seed {})",
                it.appid,
                it.view.generation,
                self.seed
            );
        }
    }

    /// P10: no more calls at any time than the budget allows, without those that no store could count.
    fn within_budget(&self, fetches: &[&CallEntry]) {
        let mut by_api: BTreeMap<(&str, bool), Vec<i64>> = BTreeMap::new();
        for call in fetches {
            let ip = call.client_ip.expect("a replica made it");
            if !self.excused(ip, call.sent_at - 10_000, call.sent_at) {
                by_api.entry((&call.path, call.force)).or_default().push(call.sent_at);
            }
        }
        for ((api, force), calls) in by_api {
            let (burst, every) = match (api, force) {
                ("/cgi-bin/token", _) => (10, 60_000),
                (_, true) => (1, 31_000),
                (_, false) => (50, 200),
            };
            for (at, first) in calls.iter().enumerate() {
                for (more, last) in calls[at..].iter().enumerate() {
                    // What is decided now may have been counted some seconds before.
                    let allowed = burst + (last - first + 15_000) / every + 1;
                    let made = i64::try_from(more).unwrap() + 1;
                    assert!(made <= allowed, "{made} calls of {api} (seed {})", self.seed);
                }
            }
        }
    }

    /// P6: no code goes to WeChat a second time.
    fn codes_once(&self, log: &[CallEntry]) {
        let mut codes = HashSet::new();
        for call in log.iter().filter(|call| call.path == EXCHANGE) {
            let fresh = codes.insert(call.code.clone().expect("an exchange has a code"));
            assert!(fresh, "a code for a second time: {call:?} (seed {})", self.seed);
        }
        assert!(!codes.is_empty(), "nobody logged in (seed {})", self.seed);
    }

    /// P2 and P3: what is served works, unless it was ended in a way that nobody told us, and has not
    /// expired by the store's clock.
    fn tokens_good(&self, log: &[CallEntry], seen: &[Seen]) {
        /// Clocks are known to within two seconds, and a token is read before it is looked at.
        const TOLERANCE: Duration = Duration::from_secs(3);
        let mut ended: HashMap<&str, Vec<i64>> = HashMap::new();
        for call in log {
            let lost = ["reset_after", "truncated_body", "empty_body", "bad_gateway"];
            let is_lost = call.faults.iter().any(|fault| lost.contains(fault));
            let foreign = call.path == "(foreign)";
            // One mint leaves the token before it WeChat's overlap, which a mint that nobody heard of
            // uses up.
            let unheard = call.answered_at.is_none() || is_lost;
            let by_a_lost_lease = call
                .client_ip
                .is_some_and(|ip| self.excused(ip, call.sent_at, call.sent_at + 60_000));
            let mints = call.path == "/cgi-bin/token" || call.force;
            if foreign || (mints && (unheard || by_a_lost_lease)) {
                ended.entry(&call.appid).or_default().push(call.decided_at);
            }
        }
        for it in seen {
            let about =
                format!("replica {}, {} at {:?} (seed {})", it.node, it.appid, it.at, self.seed);
            assert!(it.view.expires_at + TOLERANCE > it.asked, "expired: {about}");
            let minted = (it.view.expires_at - LIFE - TOLERANCE).as_millis();
            let from_outside = ended.get(it.appid).is_some_and(|ends| {
                ends.iter().any(|end| (minted..=it.at.as_millis()).contains(end))
            });
            match it.state {
                TokenState::Live => {}
                TokenState::Superseded if from_outside => {}
                state => panic!("{state:?}: {about}"),
            }
        }
        assert!(seen.len() > 500, "services read {} times (seed {})", seen.len(), self.seed);
    }
}

fn is_fetch(call: &CallEntry, appid: &str) -> bool {
    let paths = ["/cgi-bin/token", "/cgi-bin/stable_token"];
    call.appid == appid && paths.contains(&call.path.as_str()) && call.client_ip.is_some()
}
