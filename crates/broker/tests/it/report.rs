//! Reports: late ones cost nothing, false ones change nothing, true ones heal.

use std::time::Duration;

use broker::{
    AppChange, Attempts, ReportError, TokenError, app::Issuer, audit::Actor, store::Acquired,
};
use futures_util::future::join_all;
use sim::{Fault, FaultKind, TokenState};
use wechat::{GlobalToken, OpenId};

use crate::{
    harness::{APP, Backend, World, add_key, read, secs},
    replicas::token_of,
};

const PROBE: &str = "/cgi-bin/get_api_domain_ip";

fn foreign(issuer: Issuer) -> sim::Issuer {
    match issuer {
        Issuer::Stable => sim::Issuer::Stable,
        Issuer::Classic => sim::Issuer::Classic,
    }
}

#[tokio::test(start_paused = true)]
async fn one_report_heals_a_foreign_refresh() {
    for issuer in [Issuer::Stable, Issuer::Classic] {
        let (world, replica, entry) = World::with_app(Backend::Memory, issuer).await;
        let old = read(&replica.broker, &entry).await;
        world.sim.foreign_refresh(APP, foreign(issuer), true).unwrap();
        assert_eq!(world.state(&old), TokenState::Superseded);
        let new = replica.broker.report(&entry, None, &old.token, 40001).await.unwrap();
        assert_eq!(world.state(&new), TokenState::Live);
        assert_eq!(new.generation, old.generation + 1);
        assert_eq!(replica.broker.counters().read().foreign_refreshes, 1, "{issuer:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_late_report_of_an_older_generation_calls_nobody() {
    for issuer in [Issuer::Stable, Issuer::Classic] {
        let (world, replica, entry) = World::with_app(Backend::Memory, issuer).await;
        let old = read(&replica.broker, &entry).await;
        world.pass(secs(7000)).await;
        let new = read(&replica.broker, &entry).await;
        assert_ne!(new.generation, old.generation);
        let calls = world.sim.calls().log.len();
        for _ in 0..20 {
            let now = replica.broker.report(&entry, None, &old.token, 42001).await.unwrap();
            assert_eq!(now.generation, new.generation);
        }
        assert_eq!(world.sim.calls().log.len(), calls);
    }
}

#[tokio::test(start_paused = true)]
async fn false_reports_change_nothing_and_are_checked_once_in_ten_seconds() {
    for issuer in [Issuer::Stable, Issuer::Classic] {
        let (world, replica, entry) = World::with_app(Backend::Memory, issuer).await;
        let view = read(&replica.broker, &entry).await;
        let calls = world.sim.calls().log.len();
        let reports = (0..50).map(|_| replica.broker.report(&entry, None, &view.token, 40001));
        for now in join_all(reports).await {
            assert_eq!(now.unwrap().generation, view.generation);
        }
        let once = world.sim.calls().log.len() - calls;
        let expected = if issuer == Issuer::Stable { 2 } else { 1 };
        assert_eq!(once, expected, "{issuer:?}");
        world.pass(secs(5)).await;
        let _ = replica.broker.report(&entry, None, &view.token, 40001).await;
        assert_eq!(world.sim.calls().log.len() - calls, expected);
        world.pass(secs(6)).await;
        let _ = replica.broker.report(&entry, None, &view.token, 40001).await;
        assert_eq!(world.sim.calls().log.len() - calls, 2 * expected);
        assert_eq!(world.state(&view), TokenState::Live);
        assert!(replica.broker.counters().read().reports_unfounded >= 2);
    }
}

#[tokio::test(start_paused = true)]
async fn many_reports_of_one_dead_token_cost_one_refresh() {
    for issuer in [Issuer::Stable, Issuer::Classic] {
        let (world, replica, entry) = World::with_app(Backend::Memory, issuer).await;
        let old = read(&replica.broker, &entry).await;
        world.sim.foreign_refresh(APP, foreign(issuer), true).unwrap();
        let mints = world.mint_calls(APP);
        let reports = (0..200).map(|_| replica.broker.report(&entry, None, &old.token, 40001));
        for now in join_all(reports).await {
            assert_eq!(world.state(&now.unwrap()), TokenState::Live);
        }
        assert_eq!(world.mint_calls(APP) - mints, 1, "{issuer:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_token_that_normal_mode_keeps_but_the_probe_calls_dead_is_forced() {
    let (world, replica, entry) = World::with_app(Backend::Memory, Issuer::Stable).await;
    let mut forced = 0;
    for day in 0..7 {
        let view = read(&replica.broker, &entry).await;
        let sticky = FaultKind::EarlyInvalidation { issuer: None, sticky: true };
        world.sim.set_fault(Fault::new(sticky).on("/cgi-bin/stable_token").times(1));
        let now = replica.broker.report(&entry, None, &view.token, 40001).await;
        if day < 5 {
            assert_eq!(world.state(&now.unwrap()), TokenState::Live, "{day}");
            forced += 1;
        } else {
            // Five a day; beyond that a person.
            assert!(now.is_err(), "{day}: {now:?}");
            break;
        }
        world.pass(secs(60)).await;
    }
    let log = world.sim.calls().log;
    assert_eq!(log.iter().filter(|call| call.force).count(), forced);
    assert_eq!(forced, 5);
}

#[tokio::test(start_paused = true)]
async fn a_dead_token_is_never_served_again() {
    let (world, replica, entry) = World::with_app(Backend::Memory, Issuer::Classic).await;
    let old = read(&replica.broker, &entry).await;
    world.sim.foreign_refresh(APP, sim::Issuer::Classic, true).unwrap();
    // The probe works; minting does not.
    let away = FaultKind::Errcode { code: -1, ip: None, message: None };
    world.sim.set_fault(Fault::new(away).on("/cgi-bin/token"));
    let answer = replica.broker.report(&entry, None, &old.token, 40001).await;
    assert!(matches!(answer, Err(ReportError::Token(_))), "{answer:?}");
    for _ in 0..20 {
        assert!(replica.broker.token(&entry, None, Duration::ZERO).await.is_err());
        world.pass(secs(1)).await;
    }
    world.sim.clear_faults();
    world.pass(secs(70)).await;
    assert_eq!(world.state(&read(&replica.broker, &entry).await), TokenState::Live);
}

#[tokio::test(start_paused = true)]
async fn when_the_check_tells_nothing_the_token_goes_on() {
    for issuer in [Issuer::Stable, Issuer::Classic] {
        let (world, replica, entry) = World::with_app(Backend::Memory, issuer).await;
        let view = read(&replica.broker, &entry).await;
        world.sim.set_fault(Fault::new(FaultKind::BadGateway { processed: false }));
        let now = replica.broker.report(&entry, None, &view.token, 40001).await.unwrap();
        assert_eq!(now.generation, view.generation);
        world.sim.clear_faults();
        assert_eq!(world.state(&now), TokenState::Live);
    }
}

#[tokio::test(start_paused = true)]
async fn what_keeps_wechat_from_giving_tokens_is_not_asked_again_by_each_report() {
    let (world, replica, entry) = World::with_app(Backend::Memory, Issuer::Stable).await;
    let view = read(&replica.broker, &entry).await;
    world.sim.set_secret(APP, "another").unwrap();
    let asked = world.calls("/cgi-bin/stable_token");
    for round in 1..5 {
        let now = replica.broker.report(&entry, None, &view.token, 40001).await.unwrap();
        assert_eq!(now.token, view.token, "it works, and is served");
        assert_eq!(world.calls("/cgi-bin/stable_token") - asked, 1);
        assert_eq!(world.calls("/cgi-bin/get_api_domain_ip"), round);
        world.pass(secs(11)).await;
    }
    let trouble = replica.broker.status(&entry)[0].trouble.clone().expect("it is known early");
    assert_eq!((trouble.errcode, trouble.retry_at), (Some(40125), None));
    let secret = Some(wechat::AppSecret::new("another"));
    let change = AppChange { secret, ..AppChange::default() };
    replica.broker.change_app(APP, change, &Actor::System).await.unwrap();
    assert_eq!(replica.broker.status(&entry)[0].trouble, None);
    world.pass(view.expires_in).await;
    assert_eq!(world.state(&read(&replica.broker, &entry).await), TokenState::Live);
}

#[tokio::test(start_paused = true)]
async fn only_codes_about_the_token_are_taken() {
    let (world, replica, entry) = World::with_app(Backend::Memory, Issuer::Stable).await;
    let view = read(&replica.broker, &entry).await;
    for errcode in [0, -1, 40003, 40164, 45009, 48001] {
        let answer = replica.broker.report(&entry, None, &view.token, errcode).await;
        assert_eq!(answer.unwrap_err(), ReportError::NotAboutTheToken(errcode));
    }
    let stranger = GlobalToken::new("83_not_one_of_ours");
    let answer = replica.broker.report(&entry, None, &stranger, 40001).await.unwrap();
    assert_eq!(answer.generation, view.generation);
    assert_eq!(replica.broker.counters().read().reports_unknown, 1);
    assert_eq!(world.mint_calls(APP), 1);
}

#[tokio::test(start_paused = true)]
async fn calls_for_followers_heal_a_foreign_refresh_by_themselves() {
    for issuer in [Issuer::Stable, Issuer::Classic] {
        let (world, replica, entry) = World::with_app(Backend::Memory, issuer).await;
        let openids: Vec<_> = (0..250).map(|n| OpenId::new(format!("o{n:027}"))).collect();
        for openid in &openids {
            world.sim.add_user(sim::UserSpec::new(APP, openid.as_str())).unwrap();
        }
        read(&replica.broker, &entry).await;
        world.sim.foreign_refresh(APP, foreign(issuer), true).unwrap();
        let one = replica.broker.user(&entry, &openids[0], None).await.unwrap();
        assert!(one.subscribe);
        world.sim.foreign_refresh(APP, foreign(issuer), true).unwrap();
        let many = replica.broker.users(&entry, &openids, None).await.unwrap();
        let order: Vec<_> = many.iter().map(|user| user.openid.clone()).collect();
        assert_eq!(order, openids);
        let page = replica.broker.user_page(&entry, None).await.unwrap();
        assert_eq!(page.openids.len(), 250);
    }
}

#[tokio::test(start_paused = true)]
async fn a_refusal_that_is_not_about_the_token_is_not_repeated_for_ever() {
    let (world, replica, entry) = World::with_app(Backend::Memory, Issuer::Stable).await;
    read(&replica.broker, &entry).await;
    let refused = FaultKind::Errcode { code: 40001, ip: None, message: None };
    world.sim.set_fault(Fault::new(refused).on("/cgi-bin/user/info"));
    let answer = replica.broker.user(&entry, &OpenId::new("oX"), None).await;
    assert!(answer.is_err());
    assert!(world.calls("/cgi-bin/user/info") <= 3);
}

#[tokio::test(start_paused = true)]
async fn a_suspicion_waits_for_no_lease_of_a_process_that_died() {
    let (world, replica, entry) = World::with_app(Backend::Memory, Issuer::Stable).await;
    let broker = &replica.broker;
    let key = add_key(broker, "k").await;
    let token = read(broker, &entry).await.token;
    let (_, shared) = world.stores().await;
    let name = token_of(APP).to_string();
    let got = shared.acquire(&name, "somebody-killed", secs(40)).await.unwrap();
    assert!(matches!(got, Acquired::Yes(_)));
    let began = world.clock.now();
    broker.suspect(&entry, &key).await;
    let waited = world.clock.now().since(began);
    assert!(waited < secs(15), "{waited:?}");
    // Nor does a report, which is told to come back.
    let began = world.clock.now();
    let reported = broker.report(&entry, Some(&key), &token, 40001).await;
    assert!(matches!(reported, Err(ReportError::Token(TokenError::Deadline { .. }))));
    let waited = world.clock.now().since(began);
    assert!(waited < secs(15), "{waited:?}");
    // It was looked at all the same, once the lease was over.
    world.pass(secs(60)).await;
    assert_eq!(world.calls(PROBE), 1);
}

#[tokio::test(start_paused = true)]
async fn a_call_whose_token_was_replaced_meanwhile_asks_nobody() {
    let (world, replica, entry) = World::with_app(Backend::Memory, Issuer::Stable).await;
    let broker = &replica.broker;
    let key = add_key(broker, "k").await;
    let used = read(broker, &entry).await;
    world.sim.foreign_refresh(APP, sim::Issuer::Stable, true).unwrap();
    broker.report(&entry, None, &used.token, 40001).await.unwrap();
    let (accesses, calls) = (world.memory.accesses(), world.sim.calls().log.len());
    world.memory.set_reachable(false);
    for _ in 0..100 {
        assert!(broker.refused(&entry, Some(&key), &used, &mut Attempts::default()).await);
    }
    assert_eq!(world.memory.accesses(), accesses);
    assert_eq!(world.sim.calls().log.len(), calls);
    assert_eq!(broker.counters().read().reports_unknown, 0);
}
