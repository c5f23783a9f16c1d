//! What replicas share, apart from the store, as with Redis: each replica has a way of its own to it, and
//! now and then it forgets all leases, as after a failover or a restart, and whoever waits to be woken is
//! woken by nobody.

use std::{net::IpAddr, time::Duration};

use clock::{Clock, Timestamp};

use super::{
    judge::{Judge, Wrong},
    link::{Far, Link, PATIENCE, SLOW},
    records::Records,
};
use crate::day::Dice;

pub(super) struct Leases {
    /// Dice of its own, so that nothing else falls otherwise because of it.
    dice: Dice,
    clock: Clock,
    far: Far,
    records: Records,
    ways: Vec<Way>,
    /// It forgets as soon as somebody has a lease.
    about_to_forget: bool,
}

/// The way of one replica.
struct Way {
    ip: IpAddr,
    link: Link,
    cut_until: Option<Timestamp>,
}

impl Leases {
    /// In a third of the runs they are apart from the store, and these dice say what happens to them.
    pub(super) fn dice(seed: u64) -> Option<Dice> {
        let mut dice = Dice::new(u64::MAX - seed);
        (dice.roll(3) == 0).then_some(dice)
    }

    pub(super) fn by(dice: Dice, clock: &Clock, records: &Records) -> Self {
        Self {
            dice,
            clock: clock.clone(),
            far: Far::by(clock),
            records: records.clone(),
            ways: Vec::new(),
            about_to_forget: false,
        }
    }

    /// Makes a way for one more replica.
    pub(super) fn add(&mut self, ip: IpAddr) {
        let link = Link::of(ip, &self.far, &self.records);
        self.ways.push(Way { ip, link, cut_until: None });
    }

    pub(super) fn link(&self, at: usize) -> &Link {
        &self.ways[at].link
    }

    /// Mends what was to be cut until now, and forgets if that is due.
    pub(super) fn step(&mut self, now: Timestamp) {
        for way in &mut self.ways {
            if way.cut_until.is_some_and(|until| until <= now) {
                way.cut_until = None;
                way.link.cut(None);
            }
        }
        if self.about_to_forget && self.records.read().anybody_has_a_lease(now) {
            self.about_to_forget = false;
            self.forget(now);
        }
    }

    fn forget(&self, now: Timestamp) {
        self.far.restart(&self.clock);
        self.records.read().forget_leases(now);
    }

    /// What happens to it in a second, in words.
    pub(super) fn happen(&mut self, now: Timestamp, judge: &mut Judge) -> Vec<String> {
        let mut told = Vec::new();
        for (at, way) in self.ways.iter_mut().enumerate() {
            match self.dice.roll(1_000) {
                0..3 => {
                    let until = now + Duration::from_secs(1 + self.dice.roll(90));
                    let until = way.cut_until.map_or(until, |other| other.max(until));
                    let refused = self.dice.roll(2) == 0;
                    way.link.cut(Some(if refused { Duration::ZERO } else { PATIENCE }));
                    way.cut_until = Some(until);
                    judge.goes_wrong(Wrong::Leaseless, way.ip, now, Some(until));
                    told.push(format!("leases cut {at}, {refused}"));
                }
                3..8 => {
                    let millis = 1 + self.dice.roll(800);
                    way.link.slow(millis);
                    judge.mended(Wrong::SlowLeases, way.ip, now);
                    if millis > SLOW {
                        judge.goes_wrong(Wrong::SlowLeases, way.ip, now, None);
                    }
                    told.push(format!("leases slow {at}"));
                }
                _ => {}
            }
        }
        match self.dice.roll(240) {
            0 => {
                self.forget(now);
                told.push("leases forgotten".to_owned());
            }
            1..4 => {
                self.about_to_forget = true;
                told.push("leases about to be forgotten".to_owned());
            }
            _ => {}
        }
        told
    }

    /// Mends everything.
    pub(super) fn make_peace(&mut self, now: Timestamp, judge: &mut Judge) {
        self.about_to_forget = false;
        for way in &mut self.ways {
            for wrong in [Wrong::Leaseless, Wrong::SlowLeases] {
                judge.mended(wrong, way.ip, now);
            }
            way.cut_until = None;
            way.link.cut(None);
            way.link.slow(2);
        }
    }
}
