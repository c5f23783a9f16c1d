//! What must hold, read off the simulator's log of calls, off what was done at the store, and off what
//! services were given.

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
    time::Duration,
};

use broker::{ExchangeError, Identity, TokenView};
use clock::Timestamp;
use sim::{CallEntry, Sim, TokenState};

use super::{
    driver::{APPS, LIFE},
    fetches::{Fetches, GIVEN_UP, STORED},
    records::{Dead, Holding, Put, Written},
};
use crate::harness::EXCHANGE;

/// A lease lasts for so long at most, in milliseconds.
pub(super) const LEASE: i64 = 40_000;
/// The world is looked at so often, in milliseconds.
pub(super) const STEP: i64 = 100;
/// What goes wrong is over for readers so much later, in milliseconds: the longest wait before
/// another try, and what a try takes.
const RECOVERY: i64 = 90_000;

/// What services heard.
#[derive(Default)]
pub(super) struct Heard {
    pub(super) seen: Vec<Seen>,
    pub(super) refused: Vec<Refused>,
    pub(super) reported: Vec<Reported>,
    pub(super) told: Vec<Told>,
}

/// A token that a service was given.
pub(super) struct Seen {
    pub(super) ip: IpAddr,
    pub(super) appid: &'static str,
    pub(super) asked: Timestamp,
    pub(super) at: Timestamp,
    /// What WeChat would have said to it.
    pub(super) state: TokenState,
    pub(super) view: TokenView,
}

/// A service that was given none, and why.
pub(super) struct Refused {
    pub(super) ip: IpAddr,
    pub(super) appid: &'static str,
    pub(super) asked: Timestamp,
    pub(super) at: Timestamp,
    pub(super) why: String,
}

/// A service told a replica that a token does not work.
pub(super) struct Reported {
    pub(super) ip: IpAddr,
    pub(super) appid: &'static str,
    pub(super) at: Timestamp,
}

/// What somebody heard who brought a code.
pub(super) struct Told {
    pub(super) code: String,
    pub(super) binding: &'static str,
    pub(super) answer: Result<Identity, ExchangeError>,
}

/// What may be wrong with a replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wrong {
    /// It cannot reach the store.
    Alone,
    /// It reaches the store so slowly that readers may lose their patience.
    Slow,
    /// It reaches the store and not what gives leases and wakes.
    Leaseless,
    /// It reaches that as slowly.
    SlowLeases,
    /// It cannot reach WeChat.
    CutOff,
    Stopped,
    /// From the kill to the next start.
    Down,
}

/// Something is wrong with a replica for a time, in milliseconds.
struct Spell {
    wrong: Wrong,
    ip: IpAddr,
    from: i64,
    until: i64,
}

pub(super) struct Judge {
    pub(super) seed: u64,
    /// Whether leases and wake-ups are apart from the store.
    leases_apart: bool,
    spells: Vec<Spell>,
    /// Somebody outside ended an app's token then, and WeChat gives no better one before that.
    ended: Vec<(&'static str, i64, i64)>,
}

impl Judge {
    pub(super) fn new(seed: u64, leases_apart: bool) -> Self {
        Self { seed, leases_apart, spells: Vec::new(), ended: Vec::new() }
    }

    /// Something goes wrong, until a time or until it is [`Judge::mended`].
    pub(super) fn goes_wrong(
        &mut self,
        wrong: Wrong,
        ip: IpAddr,
        from: Timestamp,
        until: Option<Timestamp>,
    ) {
        let (from, until) = (from.as_millis(), until.map_or(i64::MAX, Timestamp::as_millis));
        self.spells.push(Spell { wrong, ip, from, until });
    }

    pub(super) fn mended(&mut self, wrong: Wrong, ip: IpAddr, now: Timestamp) {
        let now = now.as_millis();
        let spells = self.spells.iter_mut().filter(|it| it.wrong == wrong && it.ip == ip);
        spells.for_each(|it| it.until = it.until.min(now));
    }

    pub(super) fn ended(&mut self, appid: &'static str, now: Timestamp, until: Timestamp) {
        self.ended.push((appid, now.as_millis(), until.as_millis()));
    }

    /// Whether something of this kind was wrong with a replica within a time.
    pub(super) fn any(&self, kinds: &[Wrong], ip: IpAddr, from: i64, until: i64) -> bool {
        self.spells.iter().any(|it| {
            kinds.contains(&it.wrong) && it.ip == ip && it.from <= until && from <= it.until
        })
    }

    /// The earliest instant at which a call that came to WeChat now may have left: it may have been
    /// held up by a cut way, or by a replica that stood still.
    pub(super) fn left_at(&self, ip: IpAddr, came: i64) -> i64 {
        /// What was held up is on its way again so soon.
        const AGAIN: i64 = 3 * STEP;
        let mut left = came - 2 * STEP;
        loop {
            let held_up = self.spells.iter().find(|it| {
                let holds_up = matches!(it.wrong, Wrong::CutOff | Wrong::Stopped);
                holds_up
                    && it.ip == ip
                    && it.from <= left + STEP
                    && left <= it.until + AGAIN
                    && it.from - STEP < left
            });
            match held_up {
                Some(spell) => left = spell.from - STEP,
                None => return left,
            }
        }
    }

    /// So long before, by the time that a replica was awake.
    pub(super) fn awake_before(&self, ip: IpAddr, at: i64, millis: i64) -> i64 {
        let mut from = at - millis;
        let stops = |it: &&Spell| it.wrong == Wrong::Stopped && it.ip == ip;
        while let Some(stop) = self
            .spells
            .iter()
            .filter(stops)
            .find(|it| it.from <= at && from <= it.until && it.from - millis < from)
        {
            from = stop.from - millis;
        }
        from
    }

    /// Whether a replica may have lost a lease by itself within this time, or kept what it could not store.
    fn excused(&self, ip: IpAddr, from: i64, until: i64) -> bool {
        self.any(&[Wrong::Alone, Wrong::Stopped], ip, from - LEASE, until)
    }

    /// Whether a replica was killed within a time.
    fn killed(&self, ip: IpAddr, from: i64, until: i64) -> bool {
        let mut kills = self.spells.iter().filter(|it| it.wrong == Wrong::Down && it.ip == ip);
        kills.any(|it| (from..=until).contains(&it.from))
    }

    pub(super) fn look(&self, sim: &Sim, written: &Written, heard: &Heard) {
        let log = sim.calls().log;
        for (appid, issuer) in APPS {
            Fetches::of(self, (appid, issuer), &log, written, heard).look();
            self.calm_readers_are_served(appid, &log, written, &heard.refused);
            self.dead_is_not_served(appid, written, &heard.seen);
        }
        self.codes_once(&log);
        self.one_user_each(&heard.told);
        self.one_token_each(&heard.seen);
        self.tokens_good(&log, written, &heard.seen);
    }

    /// P2: nobody is refused at a replica that is calm. It is when, for long enough before, nothing was
    /// wrong with it nor with who had the app's lease, and for the app nothing went wrong at WeChat and
    /// nobody outside ended its token.
    fn calm_readers_are_served(
        &self,
        appid: &str,
        log: &[CallEntry],
        written: &Written,
        refused: &[Refused],
    ) {
        const ANY: [Wrong; 7] = [
            Wrong::Alone,
            Wrong::Slow,
            Wrong::Leaseless,
            Wrong::SlowLeases,
            Wrong::CutOff,
            Wrong::Stopped,
            Wrong::Down,
        ];
        for it in refused.iter().filter(|it| it.appid == appid) {
            let (from, until) = (it.asked.as_millis() - RECOVERY, it.at.as_millis());
            let within = |at: i64| (from..=until).contains(&at);
            let wechat_fails = log.iter().any(|call| {
                let ended = call.answered_at.unwrap_or(call.decided_at);
                let failed = call.path == "(foreign)" || !call.faults.is_empty();
                call.appid == appid && failed && (within(call.sent_at) || within(ended))
            });
            let ended = self
                .ended
                .iter()
                .any(|(of, begun, over)| *of == appid && *begun <= until && from <= *over);
            let holder_in_trouble = written.leases.iter().any(|held| {
                let (begun, over) = (held.from.as_millis(), held.over().as_millis());
                held.name == name_of_lease(appid)
                    && begun <= until
                    && from <= over
                    && self.any(&ANY, held.ip, begun, over.min(until))
            });
            let calm = !wechat_fails
                && !ended
                && !holder_in_trouble
                && !self.any(&ANY, it.ip, from, until);
            assert!(
                !calm,
                "refused by {} although all was calm: {}, {appid} at {:?} (seed {})",
                it.ip, it.why, it.at, self.seed
            );
        }
    }

    /// P3: a token that is known to be dead is not served: not by who found out, and not by those that
    /// have reached the store since.
    fn dead_is_not_served(&self, appid: &str, written: &Written, seen: &[Seen]) {
        let cut = [Wrong::Alone, Wrong::Slow, Wrong::Stopped, Wrong::Down];
        for dead in written.dead.iter().filter(|it| it.id.app.as_str() == appid) {
            let token = written.puts.iter().rfind(|put| {
                put.id == dead.id && put.generation == dead.generation && put.at <= dead.at
            });
            let Some(Put { token, .. }) = token else { continue };
            for it in seen.iter().filter(|it| it.appid == appid && it.view.token.expose() == token)
            {
                let (marked, asked) = (dead.at.as_millis(), it.asked.as_millis());
                let knows = it.ip == dead.ip
                    || (asked > self.followed_by(dead, it.ip, written)
                        && !self.any(&cut, it.ip, marked, asked));
                assert!(
                    asked <= marked || !knows,
                    "{} serves a dead token of {appid} at {:?} (seed {})",
                    it.ip,
                    it.at,
                    self.seed
                );
            }
        }
    }

    /// When a replica that reaches the store has read what another wrote there, in milliseconds: soon
    /// when it was woken. A wake-up that may have got lost is made good by its next look.
    fn followed_by(&self, dead: &Dead, ip: IpAddr, written: &Written) -> i64 {
        const SOON: i64 = 4_000;
        /// How often one looks that is not woken.
        const LOOKS: i64 = 30_000;
        let written_at = dead.at.as_millis();
        let soon = written_at + SOON;
        if !self.leases_apart {
            return soon;
        }
        let (leases, writer) = (
            [Wrong::Leaseless, Wrong::SlowLeases],
            [Wrong::Alone, Wrong::Slow, Wrong::Stopped, Wrong::Down],
        );
        let waits_there = written_at - LOOKS..=soon;
        let lost = self.any(&leases, ip, written_at - SOON, soon)
            || self.any(&leases, dead.ip, written_at, soon)
            || self.any(&writer, dead.ip, written_at, soon)
            || written.forgettings.iter().any(|at| waits_there.contains(&at.as_millis()));
        if lost { soon + LOOKS } else { soon }
    }

    /// P2: one generation is one token, whoever serves it, but for what a replica keeps that could not
    /// store it.
    fn one_token_each(&self, seen: &[Seen]) {
        let mut tokens = HashMap::new();
        for it in seen {
            let at = it.at.as_millis();
            if self.excused(it.ip, at - 60_000, at) {
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

    /// P6: no code goes to WeChat a second time.
    fn codes_once(&self, log: &[CallEntry]) {
        let mut codes = HashSet::new();
        for call in log.iter().filter(|call| call.path == EXCHANGE) {
            let fresh = codes.insert(call.code.clone().expect("an exchange has a code"));
            assert!(fresh, "a code for a second time: {call:?} (seed {})", self.seed);
        }
        assert!(!codes.is_empty(), "nobody logged in (seed {})", self.seed);
    }

    /// P6: whoever proves to have brought a code first hears the same each time, and nobody else hears
    /// of the user.
    fn one_user_each(&self, told: &[Told]) {
        let mut users = HashMap::new();
        for it in told {
            let Ok(user) = &it.answer else { continue };
            let first = *users.entry(&it.code).or_insert((it.binding, user));
            assert!(first == (it.binding, user), "a code tells of two (seed {})", self.seed);
        }
        assert!(!users.is_empty(), "nobody heard of a user (seed {})", self.seed);
    }

    /// P2 and P3: what is served works, unless it was ended in a way that nobody told us, and has not
    /// expired by the store's clock.
    fn tokens_good(&self, log: &[CallEntry], written: &Written, seen: &[Seen]) {
        /// Clocks are known to within two seconds, and a token is read before it is looked at.
        const TOLERANCE: Duration = Duration::from_secs(3);
        let mut ended: HashMap<&str, Vec<i64>> = HashMap::new();
        for (appid, at, _) in &self.ended {
            ended.entry(*appid).or_default().push(*at);
        }
        for call in log {
            let foreign = call.path == "(foreign)";
            // One mint leaves the token before it WeChat's overlap, which a mint that is not stored, or
            // one beside it, uses up.
            let sent = call.sent_at;
            let lost = call.client_ip.is_some_and(|ip| {
                self.excused(ip, sent, sent + 60_000)
                    || self.killed(ip, self.left_at(ip, sent), sent + GIVEN_UP + STORED)
            });
            let name = name_of_lease(&call.appid);
            let mut leases = written.leases.iter().filter(|held| held.name == name);
            let beside_another = leases.any(|held| is_forgotten(held, sent));
            let mints = call.path == "/cgi-bin/token" || call.force;
            if foreign || (mints && (is_unheard(call) || lost || beside_another)) {
                ended.entry(&call.appid).or_default().push(call.decided_at);
            }
        }
        for it in seen {
            let about = format!("{}, {} at {:?} (seed {})", it.ip, it.appid, it.at, self.seed);
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

/// Whether the answer of a call got lost, or told nothing.
pub(super) fn is_unheard(call: &CallEntry) -> bool {
    let lost = ["reset_after", "truncated_body", "empty_body", "bad_gateway"];
    call.answered_at.is_none() || call.faults.iter().any(|fault| lost.contains(fault))
}

/// Whether a lease was forgotten that its holder may still believe in at a time.
pub(super) fn is_forgotten(held: &Holding, at: i64) -> bool {
    held.forgotten.is_some_and(|it| (it.as_millis()..=it.as_millis() + LEASE).contains(&at))
}

/// The lease for an app's token.
pub(super) fn name_of_lease(appid: &str) -> String {
    format!("{appid}/token")
}
