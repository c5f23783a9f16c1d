//! A day of simulated time with a thousand apps, every fault on at 5 %, services that read and
//! report, and somebody outside who mints now and then. What must hold is checked at each step.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use broker::{AppEntry, app::Issuer};
use sim::{BadNumber, Dirt, Fault, FaultKind, TokenState};
use wechat::{OpenId, TicketKind};

use crate::harness::{Backend, World, secs};

const APPS: usize = 1_000;
const STEP: u64 = 300;

/// A small generator, so that a seed replays a day.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides
    }
}

fn faults() -> Vec<FaultKind> {
    let errcode = |code| FaultKind::Errcode { code, ip: None, message: None };
    vec![
        errcode(-1),
        errcode(45011),
        FaultKind::LatencyBefore { millis: 900 },
        FaultKind::LatencyAfter { millis: 900 },
        FaultKind::ResetBefore {},
        FaultKind::ResetAfter {},
        FaultKind::BadGateway { processed: false },
        FaultKind::BadGateway { processed: true },
        FaultKind::TruncatedBody {},
        FaultKind::EmptyBody {},
        FaultKind::ExpiresIn { r#as: BadNumber::Missing },
        FaultKind::ExpiresIn { r#as: BadNumber::Zero },
        FaultKind::ExpiresIn { r#as: BadNumber::Negative },
        FaultKind::ExpiresIn { r#as: BadNumber::Huge },
        FaultKind::ExpiresIn { r#as: BadNumber::String },
        FaultKind::DirtyStrings { r#as: Dirt::Both },
        FaultKind::ContentType { value: "text/html".to_owned() },
        FaultKind::OldSuffix { suffix: sim::Suffix::Hints },
        FaultKind::EarlyInvalidation { issuer: None, sticky: false },
        FaultKind::ForeignMint { issuer: sim::Issuer::Classic, kill: true },
        FaultKind::ForeignMint { issuer: sim::Issuer::Stable, kill: false },
        FaultKind::OldTokenSurvives { seconds: 600 },
        FaultKind::ClockSkew { seconds: 400 },
    ]
}

/// Reads on in the simulator's log of calls.
#[derive(Default)]
struct Watch {
    seen: u64,
    /// When the last fetch of an app's token had its answer.
    answered: HashMap<String, i64>,
    forced: HashMap<String, u32>,
}

impl Watch {
    /// Checks the calls since the last look: never two fetches of one token at once.
    fn look(&mut self, world: &World) {
        for call in world.sim.calls_after(self.seen, usize::MAX).log {
            if !matches!(call.path.as_str(), "/cgi-bin/token" | "/cgi-bin/stable_token") {
                continue;
            }
            self.seen = self.seen.max(call.seq);
            let end = call.answered_at.unwrap_or(call.decided_at);
            let before = self.answered.insert(call.appid.clone(), end);
            assert!(before.is_none_or(|before| before <= call.sent_at), "two at once: {call:?}");
            *self.forced.entry(call.appid).or_default() += u32::from(call.force);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_day_with_a_thousand_apps_and_every_fault() {
    let seed = 20_260_101;
    println!("seed {seed}");
    let mut dice = Dice(seed);
    let world = World::new(Backend::Memory).await;
    let replica = world.replica().await;
    let broker = &replica.broker;
    let mut entries: Vec<(String, Issuer, Arc<AppEntry>)> = Vec::new();
    for n in 0..APPS {
        let issuer = if n % 3 == 0 { Issuer::Classic } else { Issuer::Stable };
        let appid = format!("wx{n:016}");
        let entry = world.add_app(broker, &appid, issuer).await;
        entries.push((appid, issuer, entry));
    }
    world.pass(secs(120)).await;
    for kind in faults() {
        world.sim.set_fault(Fault::new(kind).likely(0.05));
    }

    let mut served = 0_u64;
    let mut refused = 0_u64;
    let mut outside_ended = 0_u64;
    // Tokens that a report was answered with another token for: known to be dead from then on.
    let mut known_dead: HashSet<String> = HashSet::new();
    let mut watch = Watch::default();
    for _ in 0..86_400 / STEP {
        world.pass(secs(STEP)).await;
        for _ in 0..60 {
            let (appid, _, entry) = &entries[dice.roll(APPS as u64) as usize];
            let Ok(view) = broker.token(entry, None, Duration::ZERO).await else {
                refused += 1;
                continue;
            };
            served += 1;
            assert!(!known_dead.contains(view.token.expose()), "known to be dead (seed {seed})");
            match world.sim.token_state(appid, view.token.expose()) {
                TokenState::Live => {}
                // Ended from outside, or by a mint whose answer got lost: nobody has told us yet.
                TokenState::Superseded => {
                    outside_ended += 1;
                    if let Ok(new) = broker.report(entry, None, &view.token, 40001).await
                        && new.token != view.token
                    {
                        known_dead.insert(view.token.expose().to_owned());
                    }
                }
                state => panic!("served a token that is {state:?} (seed {seed})"),
            }
        }
        for _ in 0..3 {
            let (appid, issuer, entry) = &entries[dice.roll(APPS as u64) as usize];
            let _ = broker.ticket(entry, TicketKind::Jsapi).await;
            let _ = broker.user(entry, &OpenId::new("oNobody"), None).await;
            if dice.roll(4) == 0 {
                let outside = match issuer {
                    Issuer::Stable => sim::Issuer::Stable,
                    Issuer::Classic => sim::Issuer::Classic,
                };
                world.sim.foreign_refresh(appid, outside, dice.roll(2) == 0).unwrap();
            }
        }
        watch.look(&world);
    }

    let calls = world.sim.calls();
    for (appid, issuer, _) in &entries {
        let count = |path| calls.count(path, Some(appid), None);
        assert!(count("/cgi-bin/token") <= 2 * 1_000, "{appid}");
        let forced = watch.forced.get(appid).copied().unwrap_or_default();
        assert!(forced <= 2 * 5, "{appid}: {forced} forced");
        if *issuer == Issuer::Stable {
            assert_eq!(count("/cgi-bin/token"), 0, "{appid}");
        }
        assert_eq!(calls.count("/cgi-bin/token", Some(appid), Some(45009)), 0);
        assert_eq!(calls.count("/cgi-bin/stable_token", Some(appid), Some(45009)), 0);
    }
    println!(
        "served {served}, refused {refused}, ended from outside {outside_ended}, {:?}",
        broker.counters().read()
    );
    assert!(served > 10 * refused, "served {served}, refused {refused}");
    replica.stop().await;
}
