//! Refreshing: when, how often, and what readers see of it.

use std::{sync::Arc, time::Duration};

use broker::{
    AppChange, Refreshed, TokenError,
    app::{AppKind, Issuer},
    audit::Actor,
};
use futures_util::future::join_all;
use sim::{BadNumber, Fault, FaultKind, TokenState};
use tokio_util::task::TaskTracker;
use wechat::AppSecret;

use crate::harness::{APP, Backend, World, new_app, read, secs};

const ISSUERS: [Issuer; 2] = [Issuer::Stable, Issuer::Classic];

#[tokio::test(start_paused = true)]
async fn a_token_is_kept_fresh_and_each_rotation_costs_one_fetch() {
    for issuer in ISSUERS {
        let (world, replica, entry) = World::with_app(Backend::Memory, issuer).await;
        let mut seen = Vec::new();
        for _ in 0..12 * 60 {
            let view = read(&replica.broker, &entry).await;
            assert_eq!(world.state(&view), TokenState::Live, "{issuer:?}");
            if seen.last() != Some(&view.generation) {
                seen.push(view.generation);
            }
            world.pass(secs(60)).await;
        }
        // 12 hours, refreshed 210 to 270 s before the end of 2 hours.
        assert!((7..=7).contains(&seen.len()), "{issuer:?}: {seen:?}");
        assert_eq!(world.mint_calls(APP), seen.len() as u64, "{issuer:?}");
        replica.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn refreshes_fall_into_the_window_before_the_end() {
    for issuer in ISSUERS {
        let (world, replica, entry) = World::with_app(Backend::Memory, issuer).await;
        let mut left = Vec::new();
        let mut before = read(&replica.broker, &entry).await;
        for _ in 0..5 * 7200 {
            world.pass(secs(1)).await;
            let view = replica.broker.token_now(&entry, None, Duration::ZERO).unwrap();
            if view.generation != before.generation {
                left.push(before.expires_at.since(world.clock.now()).as_secs());
            }
            before = view;
        }
        assert_eq!(left.len(), 5);
        assert!(left.iter().all(|left| (208..=270).contains(left)), "{issuer:?}: {left:?}");
        assert!(left.iter().any(|one| *one != left[0]), "no jitter: {left:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_life_counts_from_before_the_request_was_sent() {
    let world = World::new(Backend::Memory).await;
    let broker = world.idle().await;
    let entry = world.add_app(&broker, APP, Issuer::Classic).await;
    world.sim.set_fault(Fault::new(FaultKind::LatencyAfter { millis: 5_000 }).times(1));
    let asked_at = world.clock.now();
    let view = read(&broker, &entry).await;
    assert!(world.clock.now() >= asked_at + secs(5));
    assert!(view.expires_at <= asked_at + secs(7201), "{:?}", view.expires_at);
}

#[tokio::test(start_paused = true)]
async fn ten_thousand_readers_at_expiry_cost_one_call_and_none_fails() {
    let (world, replica, entry) = World::with_app(Backend::Memory, Issuer::Classic).await;
    let first = read(&replica.broker, &entry).await;
    // WeChat is away until the token has ended.
    world.sim.set_fault(Fault::new(FaultKind::ResetBefore {}));
    world.pass(secs(7199)).await;
    assert_eq!(read(&replica.broker, &entry).await.generation, first.generation);
    world.pass(secs(200)).await;
    let refused = replica.broker.token(&entry, None, Duration::ZERO).await;
    assert!(matches!(refused, Err(TokenError::Unavailable { .. })), "{refused:?}");
    let mints = world.mint_calls(APP);
    world.sim.clear_faults();
    world.sim.set_fault(Fault::new(FaultKind::LatencyBefore { millis: 50 }));
    // The first moment at which the back-off lets anybody try.
    let TokenError::Unavailable { retry_after, .. } = refused.unwrap_err() else { unreachable!() };
    tokio::time::advance(retry_after).await;
    let readers = (0..10_000).map(|_| read(&replica.broker, &entry));
    let views = join_all(readers).await;
    assert!(views.iter().all(|view| view.generation == first.generation + 1));
    assert_eq!(world.mint_calls(APP) - mints, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn ten_thousand_readers_on_several_threads_cost_one_call_and_none_fails() {
    for issuer in ISSUERS {
        for backend in [Backend::Memory, Backend::Sqlite] {
            let world = World::new(backend).await;
            let broker = world.idle().await;
            let entry = world.add_app(&broker, APP, issuer).await;
            world.sim.set_fault(Fault::new(FaultKind::LatencyBefore { millis: 50 }));
            let tasks = TaskTracker::new();
            let readers: Vec<_> = (0..10_000)
                .map(|_| {
                    let (broker, entry) = (broker.clone(), Arc::clone(&entry));
                    tasks.spawn(async move { read(&broker, &entry).await.generation })
                })
                .collect();
            for generation in join_all(readers).await {
                assert_eq!(generation.unwrap(), 1);
            }
            assert_eq!(world.mint_calls(APP), 1, "{issuer:?} {backend:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_token_of_a_time_that_was_set_back_is_not_trusted() {
    for issuer in ISSUERS {
        let (world, replica, entry) = World::with_app(Backend::Memory, issuer).await;
        let first = read(&replica.broker, &entry).await;
        let calls = world.mint_calls(APP);
        world.memory.set_clock_back(secs(3600));
        world.pass(secs(35)).await;
        assert_eq!(world.mint_calls(APP) - calls, 1, "{issuer:?}: nobody had to read for that");
        let view = read(&replica.broker, &entry).await;
        assert_eq!(world.state(&view), TokenState::Live);
        assert!(view.expires_at <= first.expires_at - secs(3000), "{issuer:?}");
        world.memory.set_clock_back(secs(3600));
        world.sim.set_fault(Fault::new(FaultKind::LatencyBefore { millis: 1_000 }).times(1));
        world.have_looked().await;
        assert!(replica.broker.token_now(&entry, None, Duration::ZERO).is_none(), "{issuer:?}");
        assert_eq!(world.state(&read(&replica.broker, &entry).await), TokenState::Live);
    }
}

#[tokio::test(start_paused = true)]
async fn a_refusal_makes_no_token_of_a_time_that_was_set_back_good_again() {
    let (world, replica, entry) = World::with_app(Backend::Memory, Issuer::Classic).await;
    read(&replica.broker, &entry).await;
    let refused = FaultKind::Errcode { code: 40164, ip: None, message: None };
    world.sim.set_fault(Fault::new(refused).on("/cgi-bin/token"));
    world.memory.set_clock_back(secs(86_400));
    world.pass(secs(35)).await;
    assert!(replica.broker.token(&entry, None, Duration::ZERO).await.is_err());
    replica.stop().await;
    let again = world.replica().await;
    let entry = again.broker.app(APP).unwrap();
    assert!(again.broker.token(&entry, None, Duration::ZERO).await.is_err(), "nor for another");
    world.sim.clear_faults();
    world.pass(secs(310)).await;
    assert_eq!(world.state(&read(&again.broker, &entry).await), TokenState::Live);
}

#[tokio::test(start_paused = true)]
async fn a_trouble_of_a_time_that_was_set_back_holds_nothing_up() {
    for code in [40164, 40125] {
        let world = World::new(Backend::Memory).await;
        let refused = FaultKind::Errcode { code, ip: None, message: None };
        world.sim.set_fault(Fault::new(refused));
        let replica = world.replica().await;
        let entry = world.add_app(&replica.broker, APP, Issuer::Stable).await;
        assert!(replica.broker.token(&entry, None, Duration::ZERO).await.is_err());
        world.sim.clear_faults();
        world.memory.set_clock_back(secs(8 * 3600));
        world.pass(secs(35)).await;
        assert!(replica.broker.token_now(&entry, None, Duration::ZERO).is_some(), "{code}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_caller_who_goes_away_cancels_nothing() {
    let world = World::new(Backend::Memory).await;
    let broker = world.idle().await;
    let entry = world.add_app(&broker, APP, Issuer::Classic).await;
    world.sim.set_fault(Fault::new(FaultKind::LatencyAfter { millis: 2_000 }));
    let impatient = tokio::time::timeout(secs(1), broker.token(&entry, None, Duration::ZERO)).await;
    assert!(impatient.is_err());
    world.pass(secs(3)).await;
    let view = broker.token_now(&entry, None, Duration::ZERO).expect("the flight went on");
    assert_eq!((view.generation, world.mint_calls(APP)), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn the_old_token_is_served_while_refreshing_fails() {
    for issuer in ISSUERS {
        let (world, replica, entry) = World::with_app(Backend::Memory, issuer).await;
        let first = read(&replica.broker, &entry).await;
        let busy = FaultKind::Errcode { code: -1, ip: None, message: None };
        world.sim.set_fault(Fault::new(busy));
        world.pass(secs(7100)).await;
        let view = read(&replica.broker, &entry).await;
        assert_eq!(view.generation, first.generation);
        assert_eq!(world.state(&view), TokenState::Live);
        let status = replica.broker.status(&entry);
        let trouble = status[0].trouble.as_ref().expect("a trouble is seen");
        assert!((3..30).contains(&trouble.failures), "backs off: {}", trouble.failures);
        world.sim.clear_faults();
        world.pass(secs(61)).await;
        assert_eq!(read(&replica.broker, &entry).await.generation, first.generation + 1);
        assert!(replica.broker.status(&entry)[0].trouble.is_none());
    }
}

#[tokio::test(start_paused = true)]
async fn without_a_usable_token_readers_hear_why_and_when_and_start_nothing() {
    let (world, replica, entry) = World::with_app(Backend::Memory, Issuer::Stable).await;
    read(&replica.broker, &entry).await;
    let refused = FaultKind::Errcode { code: 40164, ip: Some([9, 9, 9, 9].into()), message: None };
    world.sim.set_fault(Fault::new(refused));
    world.pass(secs(7300)).await;
    let calls = world.calls("/cgi-bin/stable_token");
    for _ in 0..100 {
        let Err(TokenError::Unavailable { trouble, retry_after }) =
            replica.broker.token(&entry, None, Duration::ZERO).await
        else {
            panic!("a dead token was served");
        };
        assert_eq!(trouble.errcode, Some(40164));
        assert!(trouble.action.unwrap().contains("9.9.9.9"));
        assert!(retry_after <= secs(300) && retry_after >= secs(1));
    }
    assert_eq!(world.calls("/cgi-bin/stable_token"), calls);
}

#[tokio::test(start_paused = true)]
async fn refusals_that_need_a_person_are_retried_slowly_or_not_at_all() {
    for (code, per_day) in [(40125, 1), (40013, 1), (40164, 288), (50004, 288), (89506, 24)] {
        let world = World::new(Backend::Memory).await;
        world.sim.set_fault(Fault::new(FaultKind::Errcode { code, ip: None, message: None }));
        let replica = world.replica().await;
        let _entry = world.add_app(&replica.broker, APP, Issuer::Stable).await;
        world.pass(secs(86_400 - 150)).await;
        let calls = world.calls("/cgi-bin/stable_token");
        assert_eq!(calls, per_day, "{code}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_new_secret_ends_a_stop_at_once() {
    for issuer in ISSUERS {
        let (world, replica, entry) = World::with_app(Backend::Memory, issuer).await;
        world.sim.set_secret(APP, "another").unwrap();
        let _ = replica.broker.refresh_now(&entry, &Actor::System).await.unwrap();
        world.pass(secs(7300)).await;
        let stopped = replica.broker.token(&entry, None, Duration::ZERO).await.unwrap_err();
        let TokenError::Unavailable { trouble, .. } = stopped else { panic!("{stopped:?}") };
        assert_eq!((trouble.errcode, trouble.retry_at), (Some(40125), None));
        let change = AppChange { secret: Some(AppSecret::new("another")), ..AppChange::default() };
        replica.broker.change_app(APP, change, &Actor::System).await.unwrap();
        assert_eq!(world.state(&read(&replica.broker, &entry).await), TokenState::Live);
    }
}

#[tokio::test(start_paused = true)]
async fn a_restart_with_a_live_token_fetches_nothing() {
    for issuer in ISSUERS {
        let (world, replica, entry) = World::with_app(Backend::Sqlite, issuer).await;
        let before = read(&replica.broker, &entry).await;
        replica.stop().await;
        world.pass(secs(3600)).await;
        let again = world.replica().await;
        let entry = again.broker.app(APP).unwrap();
        let after = read(&again.broker, &entry).await;
        world.pass(secs(60)).await;
        assert_eq!(after.token, before.token);
        assert_eq!(world.mint_calls(APP), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn min_ttl_waits_for_the_refresh_but_never_causes_one() {
    let (world, replica, entry) = World::with_app(Backend::Memory, Issuer::Classic).await;
    let first = read(&replica.broker, &entry).await;
    let busy = FaultKind::Errcode { code: -1, ip: None, message: None };
    world.sim.set_fault(Fault::new(busy));
    world.pass(secs(7200 - 100)).await;
    let refused = replica.broker.token(&entry, None, secs(180)).await;
    assert!(matches!(refused, Err(TokenError::Unavailable { .. })), "{refused:?}");
    assert_eq!(read(&replica.broker, &entry).await.generation, first.generation);
    world.sim.clear_faults();
    world.sim.set_fault(Fault::new(FaultKind::LatencyBefore { millis: 100 }));
    world.pass(secs(60)).await;
    let fresh = replica.broker.token(&entry, None, secs(180)).await.unwrap();
    assert_eq!((fresh.generation, world.mint_calls(APP)), (2, 2));
}

#[tokio::test(start_paused = true)]
async fn a_short_life_is_refreshed_at_its_half() {
    let world = World::new(Backend::Memory).await;
    let switches = sim::Switches { token_lifetime_secs: 400, ..sim::Switches::default() };
    world.sim.set_switches(switches);
    let replica = world.replica().await;
    let entry = world.add_app(&replica.broker, APP, Issuer::Classic).await;
    for _ in 0..4000 {
        let view = read(&replica.broker, &entry).await;
        assert_eq!(world.state(&view), TokenState::Live);
        world.pass(secs(1)).await;
    }
    assert!((19..=21).contains(&world.mint_calls(APP)), "{}", world.mint_calls(APP));
}

#[tokio::test(start_paused = true)]
async fn an_unreadable_life_is_taken_for_the_shortest() {
    for bad in [BadNumber::Missing, BadNumber::Zero, BadNumber::Negative, BadNumber::Huge] {
        let world = World::new(Backend::Memory).await;
        world.sim.set_fault(Fault::new(FaultKind::ExpiresIn { r#as: bad }).times(1));
        let replica = world.replica().await;
        let entry = world.add_app(&replica.broker, APP, Issuer::Classic).await;
        let view = read(&replica.broker, &entry).await;
        assert!(view.expires_in <= secs(300), "{bad:?}: {:?}", view.expires_in);
        world.pass(secs(400)).await;
        assert_eq!(read(&replica.broker, &entry).await.generation, 2);
    }
}

#[tokio::test(start_paused = true)]
async fn the_same_stable_token_again_is_no_rotation() {
    let (world, replica, entry) = World::with_app(Backend::Memory, Issuer::Stable).await;
    let first = read(&replica.broker, &entry).await;
    let refreshed = replica.broker.refresh_now(&entry, &Actor::System).await.unwrap();
    assert!(matches!(refreshed, Refreshed::Same { generation: 1, .. }), "{refreshed:?}");
    assert_eq!(read(&replica.broker, &entry).await.token, first.token);
    assert_eq!(replica.broker.counters().read().rotations, 1);
    assert_eq!(world.mint_calls(APP), 2);
}

#[tokio::test(start_paused = true)]
async fn a_roll_that_comes_late_is_asked_for_every_fifteen_seconds() {
    let (world, replica, entry) = World::with_app(Backend::Memory, Issuer::Stable).await;
    // WeChat's clock runs behind: it rolls when, by ours, less than 200 s are left.
    let switches = sim::Switches { stable_roll_secs: 200, ..sim::Switches::default() };
    world.sim.set_switches(switches);
    world.pass(secs(7200 - 199)).await;
    let asked = world.calls("/cgi-bin/stable_token") - 1;
    assert!((1..=7).contains(&asked), "{asked}");
    world.pass(secs(16)).await;
    assert_eq!(read(&replica.broker, &entry).await.generation, 2);
}

#[tokio::test(start_paused = true)]
async fn classic_stays_under_its_budget_whatever_happens() {
    let (world, replica, entry) = World::with_app(Backend::Memory, Issuer::Classic).await;
    for _ in 0..24 * 60 {
        world.sim.foreign_refresh(APP, sim::Issuer::Classic, true).unwrap();
        let view = replica.broker.token(&entry, None, Duration::ZERO).await;
        if let Ok(view) = view {
            let _ = replica.broker.report(&entry, None, &view.token, 40001).await;
        }
        world.pass(secs(30)).await;
    }
    let calls = world.calls("/cgi-bin/token");
    assert!((600..=1000).contains(&calls), "{calls}");
    assert!(replica.broker.counters().read().budget_refusals > 0);
}

#[tokio::test(start_paused = true)]
async fn the_ledger_is_raised_before_the_call() {
    for backend in [Backend::Memory, Backend::Sqlite] {
        let world = World::new(backend).await;
        let broker = world.idle().await;
        let entry = world.add_app(&broker, APP, Issuer::Classic).await;
        world.sim.set_fault(Fault::new(FaultKind::LatencyBefore { millis: 1_000 }));
        let reader = broker.token(&entry, None, Duration::ZERO);
        let look = async {
            world.pass(Duration::from_millis(500)).await;
            assert_eq!(world.mint_calls(APP), 0, "the call is under way");
            let ledger = broker.ledger(&APP.parse().unwrap()).await.unwrap();
            assert_eq!(ledger.iter().map(|row| row.used).sum::<u32>(), 1, "{backend:?}");
        };
        let (view, ()) = tokio::join!(reader, look);
        assert!(view.is_ok());
    }
}

#[tokio::test(start_paused = true)]
async fn the_leak_drill_kills_the_leaked_token() {
    for issuer in ISSUERS {
        let (world, replica, entry) = World::with_app(Backend::Memory, issuer).await;
        let leaked = read(&replica.broker, &entry).await;
        let mut steps = Vec::new();
        let tell = |step| steps.push(step);
        let last = replica.broker.kill_leaked(&entry, &Actor::System, tell).await.unwrap();
        assert!(matches!(last, Refreshed::New { generation: 3, .. }), "{issuer:?}: {last:?}");
        assert_eq!(steps.len(), 3);
        assert_eq!(world.state(&leaked), TokenState::Superseded);
        assert_eq!(world.state(&read(&replica.broker, &entry).await), TokenState::Live);
    }
}

#[tokio::test(start_paused = true)]
async fn a_website_app_has_no_global_token() {
    let world = World::new(Backend::Memory).await;
    let replica = world.replica().await;
    let app = broker::NewApp { kind: AppKind::Website, ..new_app("wxweb", Issuer::Stable) };
    replica.broker.add_app(app, &Actor::System).await.unwrap();
    let entry = replica.broker.app("wxweb").unwrap();
    let none = replica.broker.token(&entry, None, Duration::ZERO).await;
    assert!(matches!(none, Err(TokenError::NoSuchCredential)));
    world.pass(secs(100)).await;
    assert_eq!(world.calls("/cgi-bin/stable_token"), 0);
}

#[tokio::test(start_paused = true)]
async fn refreshes_due_together_are_spread() {
    let world = World::new(Backend::Memory).await;
    let replica = world.replica().await;
    for n in 0..300 {
        world.add_app(&replica.broker, &format!("wx{n:016}"), Issuer::Classic).await;
    }
    world.pass(secs(60)).await;
    assert_eq!(world.calls("/cgi-bin/token"), 300);
    let before = world.sim.calls().log.len();
    world.pass(secs(7200)).await;
    let log = world.sim.calls().log;
    let mut instants: Vec<_> = log[before..].iter().map(|call| call.decided_at / 1000).collect();
    assert_eq!(instants.len(), 300);
    instants.dedup();
    assert!(instants.len() > 30, "spread over {} seconds only", instants.len());
}

#[tokio::test(start_paused = true)]
async fn one_app_that_hangs_slows_no_other() {
    let world = World::new(Backend::Memory).await;
    let replica = world.replica().await;
    let hang = FaultKind::LatencyBefore { millis: 3_600_000 };
    world.sim.set_fault(Fault::new(hang).of("wxslow"));
    let slow = world.add_app(&replica.broker, "wxslow", Issuer::Stable).await;
    let quick = world.add_app(&replica.broker, APP, Issuer::Stable).await;
    let broker = &replica.broker;
    let waiting = broker.token(&slow, None, Duration::ZERO);
    let read_other = async {
        let begin = tokio::time::Instant::now();
        read(broker, &quick).await;
        begin.elapsed()
    };
    let (stuck, took) = tokio::join!(waiting, read_other);
    assert!(took < secs(1), "{took:?}");
    assert!(stuck.is_err());
    let _: Arc<_> = slow;
}
