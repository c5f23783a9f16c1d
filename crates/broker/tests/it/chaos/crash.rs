//! A kill after each step: whatever a replica has asked of the store or of WeChat last, its end costs at
//! most one fetch, and only of a token that it was refreshing; it loses nothing that was acknowledged,
//! and sends no code a second time.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use broker::{
    ExchangeError, Identity, Proof,
    audit::Actor,
    key::{ClientKey, NewKey, Rights},
    store::Store,
};
use sim::{Fault, FaultKind, TokenState, UserSpec};
use wechat::AuthCode;

use super::{
    driver::{APPS, Chaos},
    judge::name_of_lease,
};
use crate::harness::EXCHANGE;

const SECOND: Duration = Duration::from_secs(1);
/// Longer than a lease lasts, and a claim.
const RECOVERY: Duration = Duration::from_secs(90);

/// When the replica is killed.
#[derive(Clone, Copy, Debug)]
enum Kill {
    /// Before its n-th step towards the store or back from it.
    AtStep(u64),
    /// After so many tenths of a second.
    After(u32),
}

/// What came of a kill.
struct Killed {
    /// The apps whose tokens were being refreshed.
    refreshing: Vec<String>,
    about: String,
}

/// Something in whose midst a replica is killed.
struct Walk<Prepare, Act, Check> {
    prepare: Prepare,
    act: Act,
    /// So long it takes at most.
    takes: Duration,
    check: Check,
}

impl<Prepare: Fn(&mut Chaos), Act: Fn(&mut Chaos), Check: Fn(&mut Chaos, &Killed)>
    Walk<Prepare, Act, Check>
{
    /// Kills the replica, and lets it start again. Answers whether a fuse burnt down before.
    fn killed(&self, kill: Kill) -> bool {
        let mut chaos = Chaos::lone();
        (self.prepare)(&mut chaos);
        if let Kill::AtStep(step) = kill {
            chaos.link(0).burn_after(step);
        }
        (self.act)(&mut chaos);
        chaos.pass(if let Kill::After(tenths) = kill { SECOND / 10 * tenths } else { self.takes });
        let burnt = chaos.link(0).is_burnt();
        // One that stands still since its fuse burnt down has its flights, but no lease any more.
        let held = |name: &str| {
            let written = chaos.records().read();
            written.leases.iter().any(|it| it.name == name && it.released.is_none())
        };
        let apps = APPS.iter().map(|(appid, _)| (*appid).to_owned());
        let refreshing = apps.filter(|appid| held(&name_of_lease(appid))).collect();
        let killed = Killed { refreshing, about: format!("killed {kill:?}") };
        chaos.kill(0);
        chaos.link(0).mend();
        chaos.sim().clear_faults();
        chaos.pass(RECOVERY);
        (self.check)(&mut chaos, &killed);
        chaos.nobody_panicked();
        burnt
    }

    /// Kills it once at each step towards the store or back.
    fn killed_at_each_step(&self) {
        let mut steps = 0;
        while self.killed(Kill::AtStep(steps)) {
            steps += 1;
        }
        assert!(steps > 3, "there are steps");
    }
}

/// Kills the replica in the midst of something that calls WeChat: at each step of it, and all the time.
fn killed_everywhere(
    prepare: impl Fn(&mut Chaos),
    act: impl Fn(&mut Chaos),
    check: impl Fn(&mut Chaos, &Killed),
) {
    let walk = Walk { prepare, act, takes: SECOND * 20, check };
    walk.killed_at_each_step();
    for tenths in 0..30 {
        walk.killed(Kill::After(tenths));
    }
}

/// WeChat takes its time, so that a kill may come in the midst of a call.
fn slow_wechat(chaos: &mut Chaos, path: &str) {
    for kind in [FaultKind::LatencyBefore { millis: 700 }, FaultKind::LatencyAfter { millis: 700 }]
    {
        chaos.sim().set_fault(Fault::new(kind).on(path));
    }
}

/// Each app has a token that works, and each fetch brought a generation, but for one that the kill cost.
fn serves(chaos: &mut Chaos, killed: &Killed) {
    let about = &killed.about;
    for (appid, _) in APPS {
        let view = chaos.read(0, appid);
        let view = view.unwrap_or_else(|err| panic!("{appid} is not served: {err}, {about}"));
        let state = chaos.sim().token_state(appid, view.token.expose());
        assert_eq!(state, TokenState::Live, "{appid}, {about}");
        let calls = chaos.sim().calls();
        let fetches: u64 = ["/cgi-bin/token", "/cgi-bin/stable_token"]
            .iter()
            .map(|path| calls.count(path, Some(appid), Some(0)))
            .sum();
        let written = chaos.records().read();
        let stored = written.puts.iter().filter(|put| put.id.app.as_str() == appid).count() as u64;
        let lost = u64::from(killed.refreshing.iter().any(|it| it == appid));
        assert!(fetches <= stored + lost, "{appid}: {fetches} fetches for {stored}, {about}");
    }
}

#[test]
fn a_kill_at_any_step_of_a_first_fetch_costs_one_more() {
    killed_everywhere(|chaos| slow_wechat(chaos, "/cgi-bin/*"), |_| {}, serves);
}

#[test]
fn a_kill_at_any_step_of_a_rotation_costs_one_more() {
    killed_everywhere(
        |chaos| {
            chaos.pass(SECOND * 329);
            slow_wechat(chaos, "/cgi-bin/*");
        },
        |chaos| chaos.pass(SECOND * 61),
        serves,
    );
}

type Told = Arc<Mutex<Vec<Result<Identity, ExchangeError>>>>;

/// A service brings a code, and hears what comes of it.
fn bring(chaos: &Chaos, service: &Arc<ClientKey>, code: &AuthCode) -> Told {
    let told = Told::default();
    let (service, code, heard) = (Arc::clone(service), code.clone(), Arc::clone(&told));
    chaos.on(0, async move |broker| {
        let entry = broker.app(APPS[0].0).expect("it is registered");
        let answer = broker.exchange(&entry, &service, &code, Proof::Binding("b"), None).await;
        heard.lock().expect("nobody panicked").push(answer);
    });
    told
}

#[test]
fn a_kill_at_any_step_of_an_exchange_sends_no_code_twice() {
    let told: Mutex<Option<(Arc<ClientKey>, AuthCode, Told)>> = Mutex::default();
    killed_everywhere(
        |chaos| {
            chaos.pass(SECOND * 10);
            slow_wechat(chaos, "/sns/*");
        },
        |chaos| {
            let (appid, openid) = (APPS[0].0, "oUser0000000000000000000001a");
            chaos.sim().add_user(UserSpec::new(appid, openid)).unwrap();
            let code = chaos.sim().issue_code(appid, openid, sim::Scope::Base, false).unwrap();
            let (service, code) = (chaos.key(0), AuthCode::new(code));
            let first = bring(chaos, &service, &code);
            *told.lock().unwrap() = Some((service, code, first));
        },
        |chaos, Killed { about, .. }| {
            let (service, code, first) = told.lock().unwrap().take().expect("it was brought");
            let again = bring(chaos, &service, &code);
            chaos.pass(SECOND * 40);
            let (first, again) = (first.lock().unwrap().pop(), again.lock().unwrap().pop());
            let again = again.unwrap_or_else(|| panic!("a repeat is answered, {about}"));
            if let Some(Ok(first)) = first {
                assert_eq!(again, Ok(first), "what was told is told again, {about}");
            }
            let sent = chaos.sim().calls().count(EXCHANGE, None, None);
            assert!(sent <= 1, "the code was sent {sent} times, {about}");
        },
    );
}

#[test]
fn a_kill_at_any_step_of_a_change_of_keys_loses_nothing_acknowledged() {
    // The keys that were told, and whether it was told that the first is revoked.
    let told: Arc<Mutex<(Vec<NewKey>, bool)>> = Arc::default();
    killed_everywhere(
        |chaos| chaos.pass(SECOND * 10),
        |chaos| {
            *told.lock().unwrap() = Default::default();
            let told = Arc::clone(&told);
            chaos.on(0, async move |broker| {
                for _ in 0..2 {
                    let new = broker.add_key("k", Rights::all(), None, &Actor::System).await;
                    let Ok(new) = new else { return };
                    told.lock().unwrap().0.push(new);
                }
                let first = told.lock().unwrap().0[0].id.clone();
                if broker.revoke_key(&first, &Actor::System).await.is_ok() {
                    told.lock().unwrap().1 = true;
                }
            });
        },
        |chaos, Killed { about, .. }| {
            let (added, revoked) = &*told.lock().unwrap();
            let broker = chaos.broker(0);
            let known = |key: &NewKey| broker.authenticate(key.expose()).is_ok();
            match added.as_slice() {
                [] => {}
                [first] => assert!(known(first), "{about}"),
                [first, second, ..] => {
                    assert!(known(second), "{about}");
                    assert!(!revoked || !known(first), "revoked, {about}");
                }
            }
        },
    );
}

#[test]
fn a_kill_at_any_step_of_a_change_of_master_keys_loses_no_value() {
    let told: Arc<AtomicBool> = Arc::default();
    let walk = Walk {
        prepare: |chaos: &mut Chaos| {
            chaos.pass(SECOND * 10);
            chaos.restart_with(0, &["k1", "k2"]);
        },
        act: |chaos: &mut Chaos| {
            told.store(false, Ordering::Release);
            let told = Arc::clone(&told);
            chaos.on(0, async move |broker| {
                if broker.rekey(&Actor::System).await.is_ok() {
                    told.store(true, Ordering::Release);
                }
            });
        },
        takes: SECOND * 2,
        check: |chaos: &mut Chaos, killed: &Killed| {
            let about = &killed.about;
            let sealed_with = |chaos: &Chaos| {
                chaos.wait_for(0, chaos.broker(0).sealing_keys()).expect("the store answers")
            };
            if told.load(Ordering::Acquire) {
                assert_eq!(sealed_with(chaos), ["k2"], "it was told that all are, {about}");
            }
            serves(chaos, killed);
            let again = chaos.wait_for(0, chaos.broker(0).rekey(&Actor::System));
            assert_eq!(again.expect("it goes on").left, Vec::<String>::new(), "{about}");
            assert_eq!(sealed_with(chaos), ["k2"], "{about}");
            // Each value opens with the new key alone.
            chaos.restart_with(0, &["k2"]);
            serves(chaos, killed);
        },
    };
    walk.killed_at_each_step();
}

#[test]
fn a_kill_at_any_step_of_the_publication_of_a_pass_key_loses_no_pass() {
    let pass: Mutex<String> = Mutex::default();
    let published = AtomicBool::new(false);
    let pass_keys = |chaos: &Chaos| {
        let store = chaos.link(0).far().store();
        chaos.wait_for(0, store.pass_keys()).expect("it answers").len()
    };
    let issue = |chaos: &Chaos| {
        let entry = chaos.broker(0).app(APPS[0].0).expect("it is registered");
        chaos.broker(0).issue_pass(&entry, &chaos.key(0)).expose().to_owned()
    };
    let walk = Walk {
        // The next one is published 40 minutes after the first, by who looks each minute.
        prepare: |chaos: &mut Chaos| {
            chaos.pass(SECOND);
            chaos.kill_for(0, SECOND * 2_340);
            chaos.pass(SECOND * 2_399);
        },
        act: |chaos: &mut Chaos| {
            *pass.lock().unwrap() = issue(chaos);
            assert_eq!(pass_keys(chaos), 1, "it is not time yet");
            chaos.pass(SECOND * 4);
            published.fetch_or(pass_keys(chaos) == 2, Ordering::AcqRel);
        },
        takes: Duration::ZERO,
        check: |chaos: &mut Chaos, Killed { about, .. }: &Killed| {
            assert_eq!(pass_keys(chaos), 2, "one more is published, {about}");
            let old = pass.lock().unwrap().clone();
            let new = issue(chaos);
            chaos.kill(0);
            chaos.pass(SECOND);
            for pass in [old, new] {
                assert!(chaos.broker(0).resolve_pass(&pass).is_ok(), "{about}");
            }
        },
    };
    walk.killed_at_each_step();
    assert!(published.load(Ordering::Acquire), "one is published while replicas are killed");
}
