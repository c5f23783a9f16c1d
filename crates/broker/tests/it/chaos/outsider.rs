//! Somebody outside who ends an app's token every few seconds, for some minutes, so that nothing but
//! the budgets holds the replicas back.

use std::{ops::Range, time::Duration};

use broker::app::Issuer;
use clock::Timestamp;
use sim::Sim;

use super::driver::{APPS, LIFE};
use crate::{day::Dice, harness::START};

pub(super) struct Outsider {
    pub(super) appid: &'static str,
    how: How,
    when: Range<Timestamp>,
    every: i64,
}

#[derive(Clone, Copy)]
enum How {
    /// Mints another.
    Mints(sim::Issuer),
    /// Has it ended, so that WeChat goes on to hand out the dead one until it is forced.
    Ends,
}

impl Outsider {
    /// In some runs there is one. Minutes are left after it in which budgets recover.
    pub(super) fn by(dice: &mut Dice) -> Option<Self> {
        let secs = |secs| Duration::from_secs(secs);
        if dice.roll(4) != 0 {
            return None;
        }
        let (appid, issuer) = APPS[dice.roll(3) as usize];
        let how = match (issuer, dice.roll(2)) {
            (Issuer::Stable, 0) => How::Ends,
            (Issuer::Stable, _) => How::Mints(sim::Issuer::Stable),
            (Issuer::Classic, _) => How::Mints(sim::Issuer::Classic),
        };
        let begins = START + secs(60 + dice.roll(300));
        let when = begins..begins + secs(180 + dice.roll(120));
        Some(Self { appid, how, when, every: 2 + dice.roll(4) as i64 })
    }

    pub(super) fn acts_at(&self, now: Timestamp) -> bool {
        self.when.contains(&now) && now.secs_since(self.when.start) % self.every == 0
    }

    /// Answers when WeChat gives a token that works, though none is forced.
    pub(super) fn act(&self, sim: &Sim, now: Timestamp) -> Timestamp {
        /// How long nobody looks when only a forced refresh would help, and none is left.
        const NOT_LOOKED: Duration = Duration::from_secs(300);
        match self.how {
            How::Mints(issuer) => {
                sim.foreign_refresh(self.appid, issuer, true).expect("the app is known");
                now
            }
            How::Ends => {
                sim.end_tokens(self.appid);
                now + LIFE + NOT_LOOKED
            }
        }
    }
}
