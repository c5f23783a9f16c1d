//! When things go wrong: one process or many, once or for hours, and how it ends.

use std::{sync::Arc, time::Duration};

use broker::{
    AppChange, Broker, NewApp, Parts, Refreshed, TokenError,
    app::{AppKind, Issuer},
    audit::Actor,
    key::Rights,
    seal::Sealer,
};
use sim::{AppSpec, Fault, FaultKind, TokenState};
use tokio_util::task::TaskTracker;
use wechat::{AppSecret, TicketKind};

use crate::{
    harness::{APP, Backend, World, new_app, read, secret_of, secs},
    replicas::{overtake, token_of},
};

fn errcode(code: i64) -> FaultKind {
    FaultKind::Errcode { code, ip: None, message: None }
}

#[tokio::test(start_paused = true)]
async fn many_processes_make_no_more_calls_for_a_failure_than_one() {
    for (code, time) in [(40125, 3600), (40164, 3600), (-1, 600)] {
        let mut calls = Vec::new();
        for processes in [1, 4] {
            let world = World::new(Backend::Memory).await;
            world.sim.set_fault(Fault::new(errcode(code)));
            let mut replicas = vec![world.replica().await];
            world.add_app(&replicas[0].broker, APP, Issuer::Stable).await;
            for _ in 1..processes {
                replicas.push(world.replica().await);
            }
            world.pass(secs(time)).await;
            calls.push(world.calls("/cgi-bin/stable_token"));
        }
        assert!(calls[1] <= calls[0] + calls[0] / 4 + 1, "{code}: {calls:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_stop_survives_a_restart() {
    let world = World::new(Backend::Sqlite).await;
    world.sim.set_fault(Fault::new(errcode(40125)));
    let replica = world.replica().await;
    world.add_app(&replica.broker, APP, Issuer::Classic).await;
    world.pass(secs(5)).await;
    replica.stop().await;
    let again = world.replica().await;
    world.pass(secs(60)).await;
    let entry = again.broker.app(APP).unwrap();
    let refused = again.broker.token(&entry, None, Duration::ZERO).await;
    let Err(TokenError::Unavailable { trouble, .. }) = refused else { panic!("{refused:?}") };
    assert_eq!(trouble.errcode, Some(40125));
    assert_eq!(world.calls("/cgi-bin/token"), 1);
}

#[tokio::test(start_paused = true)]
async fn a_refused_ticket_is_not_taken_for_a_wrong_secret() {
    let (world, replica, entry) = World::with_app(Backend::Memory, Issuer::Stable).await;
    replica.broker.ticket(&entry, TicketKind::Jsapi).await.unwrap();
    world.sim.set_fault(Fault::new(errcode(40001)).on("/cgi-bin/ticket/getticket"));
    world.pass(secs(9000)).await;
    assert!(world.calls("/cgi-bin/ticket/getticket") < 100, "it backs off");
    assert!(replica.broker.ticket(&entry, TicketKind::Jsapi).await.is_err());
    world.sim.clear_faults();
    world.pass(secs(1500)).await;
    let ticket = replica.broker.ticket(&entry, TicketKind::Jsapi).await.unwrap();
    assert!(world.sim.ticket_works(APP, ticket.ticket.expose()));
}

#[tokio::test(start_paused = true)]
async fn a_forced_refresh_that_is_refused_keeps_nobody_from_the_ordinary_one() {
    let (world, replica, entry) = World::with_app(Backend::Memory, Issuer::Stable).await;
    let broker = &replica.broker;
    let mut refused = 0;
    for _ in 0..13 {
        let drill = broker.kill_leaked(&entry, &Actor::System, |_| {}).await.unwrap();
        refused += u32::from(matches!(drill, Refreshed::Failed(_)));
        world.pass(secs(60)).await;
    }
    assert!(refused > 0, "the quota of forced refreshes is used up");
    for _ in 0..20 {
        let view = read(broker, &entry).await;
        assert_eq!(world.state(&view), TokenState::Live);
        world.pass(secs(600)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn after_a_long_outage_there_is_budget_left() {
    for kind in [AppKind::Official, AppKind::Test] {
        let world = World::new(Backend::Memory).await;
        let replica = world.replica().await;
        world.sim.add_app(AppSpec::new(APP, secret_of(APP)));
        let app = NewApp { kind, ..new_app(APP, Issuer::Classic) };
        replica.broker.add_app(app, &Actor::System).await.unwrap();
        let entry = replica.broker.app(APP).unwrap();
        replica.broker.ticket(&entry, TicketKind::Jsapi).await.unwrap();
        world.sim.set_fault(Fault::new(FaultKind::ResetBefore {}));
        world.pass(secs(15 * 3600)).await;
        world.sim.clear_faults();
        world.pass(secs(30 * 60)).await;
        let view = read(&replica.broker, &entry).await;
        assert_eq!(world.state(&view), TokenState::Live, "{kind:?}");
        replica.broker.ticket(&entry, TicketKind::Jsapi).await.unwrap();
        assert_eq!(replica.broker.counters().read().budget_refusals, 0, "{kind:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_secret_that_is_mended_during_a_fetch_is_not_stopped_by_it() {
    let world = World::new(Backend::Memory).await;
    let replica = world.replica().await;
    world.sim.add_app(AppSpec::new(APP, secret_of(APP)));
    world.sim.set_fault(Fault::new(FaultKind::LatencyBefore { millis: 3_000 }).times(1));
    let wrong = NewApp { secret: AppSecret::new("wrong"), ..new_app(APP, Issuer::Stable) };
    replica.broker.add_app(wrong, &Actor::System).await.unwrap();
    world.pass(secs(1)).await;
    // By a command in another process.
    let right = AppChange { secret: Some(AppSecret::new(secret_of(APP))), ..AppChange::default() };
    let command = world.idle().await;
    command.change_app(APP, right, &Actor::System).await.unwrap();
    world.pass(secs(10)).await;
    let entry = replica.broker.app(APP).unwrap();
    assert_eq!(world.state(&read(&replica.broker, &entry).await), TokenState::Live);
}

#[tokio::test(start_paused = true)]
async fn two_rotations_while_the_store_is_away_lose_no_token() {
    let (world, replica, entry) = World::with_app(Backend::Memory, Issuer::Stable).await;
    world.memory.set_reachable(false);
    world.pass(secs(15_000)).await;
    let before = read(&replica.broker, &entry).await;
    assert_eq!(before.generation, 3);
    world.sim.set_fault(Fault::new(errcode(-1)));
    world.memory.set_reachable(true);
    world.pass(secs(30)).await;
    let after = read(&replica.broker, &entry).await;
    assert_eq!((after.generation, after.token), (before.generation, before.token));
    let (store, _) = world.stores().await;
    let row = store.find_credential(&token_of(APP)).await.unwrap().unwrap();
    assert_eq!(row.generation, 3);
}

#[tokio::test(start_paused = true)]
async fn what_waits_for_the_store_goes_there_once_it_is_back_also_from_who_ends() {
    for ends in [true, false] {
        let (world, replica, entry) = World::with_app(Backend::Memory, Issuer::Stable).await;
        world.memory.set_reachable(false);
        // Between two looks at whether the store is back.
        world.pass(secs(7100) + secs(1) / 3).await;
        assert_eq!(read(&replica.broker, &entry).await.generation, 2);
        world.memory.set_reachable(true);
        if ends {
            replica.stop().await;
        } else {
            world.pass(secs(2)).await;
        }
        let (store, _) = world.stores().await;
        let row = store.find_credential(&token_of(APP)).await.unwrap().unwrap();
        assert_eq!(row.generation, 2, "{ends}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_fetched_alone_gives_way_to_what_another_has_stored_meanwhile() {
    let (world, alone, entry) = World::with_app(Backend::Memory, Issuer::Stable).await;
    let other = world.idle().await;
    let there = other.app(APP).unwrap();
    let first = read(&alone.broker, &entry).await;
    world.memory.set_reachable(false);
    world.sim.foreign_refresh(APP, sim::Issuer::Stable, true).unwrap();
    let second = alone.broker.report(&entry, None, &first.token, 40001).await.unwrap();
    assert_eq!(second.generation, 2);
    world.sim.foreign_refresh(APP, sim::Issuer::Stable, true).unwrap();
    // While it asks WeChat again, the store comes back, and another process is faster.
    let slow = Fault::new(FaultKind::LatencyAfter { millis: 4000 });
    world.sim.set_fault(slow.on("/cgi-bin/stable_token").times(1));
    let faster = async {
        world.pass(secs(1)).await;
        world.memory.set_reachable(true);
        other.refresh_now(&there, &Actor::System).await.unwrap()
    };
    let asking = alone.broker.report(&entry, None, &second.token, 40001);
    let (third, stored) = tokio::join!(asking, faster);
    assert!(matches!(stored, Refreshed::New { generation: 2, .. }), "{stored:?}");
    let third = third.unwrap();
    assert_eq!((third.generation, &third.token), (2, &read(&other, &there).await.token));
    assert_eq!(world.state(&third), TokenState::Live);
}

#[tokio::test(start_paused = true)]
async fn tickets_are_refreshed_while_the_store_is_away() {
    let (world, replica, entry) = World::with_app(Backend::Memory, Issuer::Stable).await;
    replica.broker.ticket(&entry, TicketKind::Jsapi).await.unwrap();
    world.memory.set_reachable(false);
    world.pass(secs(7300)).await;
    let ticket = replica.broker.ticket(&entry, TicketKind::Jsapi).await.unwrap();
    assert!(world.sim.ticket_works(APP, ticket.ticket.expose()));
}

#[tokio::test(start_paused = true)]
async fn a_token_fetched_by_a_clock_that_was_ahead_is_replaced() {
    let world = World::new(Backend::Memory).await;
    let command = world.idle().await;
    world.add_app(&command, APP, Issuer::Stable).await;
    let in_years = world.clock.now() + secs(4 * 365 * 86_400);
    overtake(&world, 1, "83_of_another_year", in_years, in_years + secs(1)).await;
    let replica = world.replica().await;
    world.pass(secs(5)).await;
    let entry = replica.broker.app(APP).unwrap();
    let view = read(&replica.broker, &entry).await;
    assert_eq!((view.generation, world.state(&view)), (2, TokenState::Live));
}

#[tokio::test(start_paused = true)]
async fn a_reader_of_a_removed_app_is_told_and_makes_no_loop() {
    for issuer in [Issuer::Stable, Issuer::Classic] {
        let world = World::new(Backend::Memory).await;
        let broker = world.idle().await;
        let entry = world.add_app(&broker, APP, issuer).await;
        world.sim.set_fault(Fault::new(FaultKind::LatencyAfter { millis: 500 }));
        let reader = broker.token(&entry, None, Duration::ZERO);
        let remove = async {
            world.pass(Duration::from_millis(200)).await;
            broker.remove_app(APP, &Actor::System).await.unwrap();
        };
        let (answer, ()) = tokio::join!(reader, remove);
        assert!(matches!(answer, Err(TokenError::Unavailable { .. })), "{answer:?}");
        world.pass(secs(60)).await;
        assert_eq!(world.sim.calls().log.len(), 1, "{issuer:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_app_that_becomes_a_website_app_is_not_refreshed() {
    let (world, replica, _entry) = World::with_app(Backend::Memory, Issuer::Stable).await;
    let change = AppChange { kind: Some(AppKind::Website), ..AppChange::default() };
    replica.broker.change_app(APP, change, &Actor::System).await.unwrap();
    let calls = world.sim.calls().log.len();
    world.pass(secs(20_000)).await;
    assert_eq!(world.sim.calls().log.len(), calls);
}

/// A command that already seals with a master key that the servers do not have.
async fn ahead(world: &World) -> Broker {
    let (store, shared) = world.stores().await;
    let keys = [("k1".to_owned(), [7; 32]), ("k2".to_owned(), [8; 32])];
    let parts = Parts {
        store,
        shared,
        wechat: world.wechat.clone(),
        clock: world.clock.clone(),
        sealer: Sealer::new(keys, "k2").unwrap(),
        tasks: TaskTracker::new(),
        bounds: broker::Bounds::default(),
    };
    Broker::open(parts).await.unwrap()
}

#[tokio::test(start_paused = true)]
async fn one_row_that_cannot_be_read_stops_nothing_else() {
    let (world, server, entry) = World::with_app(Backend::Sqlite, Issuer::Stable).await;
    let new = server.broker.add_key("k", Rights::all(), None, &Actor::System).await.unwrap();
    let ahead = ahead(&world).await;
    ahead.add_app(new_app("wxahead", Issuer::Stable), &Actor::System).await.unwrap();
    ahead.revoke_key(&new.id, &Actor::System).await.unwrap();
    for _ in 0..20 {
        world.pass(secs(2) / 20).await;
        assert!(server.broker.reaches_store(), "the store is not taken for being away");
    }
    assert!(server.broker.authenticate(new.expose()).is_err(), "a revoked key is refused");
    assert!(server.broker.app("wxahead").is_none());
    assert!(server.broker.counters().read().unreadable_rows > 0);
    world.pass(secs(7200)).await;
    assert_eq!(world.state(&read(&server.broker, &entry).await), TokenState::Live);
}

#[tokio::test(start_paused = true)]
async fn rows_with_nonsense_in_them_stop_nothing_else() {
    let (world, server, entry) = World::with_app(Backend::Sqlite, Issuer::Stable).await;
    let command = world.idle().await;
    let actor = Actor::System;
    command.add_app(new_app("wxbroken", Issuer::Stable), &actor).await.unwrap();
    let broken = command.add_key("broken", Rights::all(), None, &actor).await.unwrap();
    let good = command.add_key("good", Rights::all(), None, &actor).await.unwrap();
    world.pass(secs(2)).await;
    assert!(server.broker.app("wxbroken").is_some());
    let nonsense = "UPDATE apps SET kind = 'nonsense' WHERE app = 'wxbroken'; \
                    INSERT INTO changes (app) VALUES ('wxbroken'); \
                    UPDATE client_keys SET hash = x'00' WHERE name = 'broken'";
    rusqlite::Connection::open(world.database()).unwrap().execute_batch(nonsense).unwrap();
    command.revoke_key(&good.id, &actor).await.unwrap();
    world.pass(secs(2)).await;
    for key in [&broken, &good] {
        assert!(server.broker.authenticate(key.expose()).is_err(), "{}", key.id);
    }
    world.pass(secs(7200)).await;
    assert_eq!(world.state(&read(&server.broker, &entry).await), TokenState::Live);
    assert!(world.idle().await.app(APP).is_some(), "it opens all the same");
}

#[tokio::test(start_paused = true)]
async fn more_life_than_a_token_ever_has_is_told_and_causes_nothing() {
    let world = World::new(Backend::Memory).await;
    let switches = sim::Switches { token_lifetime_secs: 340, ..sim::Switches::default() };
    world.sim.set_switches(switches);
    let replica = world.replica().await;
    let entry: Arc<_> = world.add_app(&replica.broker, APP, Issuer::Classic).await;
    read(&replica.broker, &entry).await;
    world.pass(secs(164)).await;
    let calls = world.calls("/cgi-bin/token");
    let answer = replica.broker.token(&entry, None, secs(180)).await;
    let Err(TokenError::TooShort { retry_after }) = answer else { panic!("{answer:?}") };
    assert!(retry_after <= secs(10), "{retry_after:?}");
    assert_eq!(world.calls("/cgi-bin/token"), calls);
}

#[tokio::test(start_paused = true)]
async fn a_report_while_the_store_is_away_is_answered_and_makes_no_loop() {
    let (world, replica, entry) = World::with_app(Backend::Memory, Issuer::Classic).await;
    let view = read(&replica.broker, &entry).await;
    world.memory.set_reachable(false);
    for _ in 0..5 {
        let now = replica.broker.report(&entry, None, &view.token, 40001).await.unwrap();
        assert_eq!(now.generation, view.generation, "nothing could be found out");
    }
    world.memory.set_reachable(true);
    world.sim.foreign_refresh(APP, sim::Issuer::Classic, true).unwrap();
    world.pass(secs(11)).await;
    let now = replica.broker.report(&entry, None, &view.token, 40001).await.unwrap();
    assert_eq!(world.state(&now), TokenState::Live);
}

#[tokio::test(start_paused = true)]
async fn values_sealed_with_a_key_that_is_not_here_yet_are_served_while_current_and_never_after() {
    let (world, server, entry) = World::with_app(Backend::Sqlite, Issuer::Stable).await;
    let before = read(&server.broker, &entry).await;
    let ahead = ahead(&world).await;
    ahead.rekey(&Actor::System).await.unwrap();
    world.pass(secs(2)).await;
    assert_eq!(read(&server.broker, &entry).await.token, before.token, "the same value");
    let there = ahead.app(APP).unwrap();
    world.sim.foreign_refresh(APP, sim::Issuer::Stable, true).unwrap();
    let next = ahead.report(&there, None, &before.token, 40001).await.unwrap();
    assert_eq!(next.generation, 2);
    world.pass(secs(2)).await;
    let refused = server.broker.token(&entry, None, Duration::ZERO).await;
    let Err(TokenError::Unavailable { trouble, .. }) = refused else { panic!("{refused:?}") };
    assert!(trouble.reason.contains("`k2`"), "{}", trouble.reason);
}

#[tokio::test(start_paused = true)]
async fn an_unstored_token_is_checked_when_it_is_reported() {
    let (world, replica, entry) = World::with_app(Backend::Memory, Issuer::Stable).await;
    world.memory.set_reachable(false);
    world.pass(secs(7_000)).await;
    let unstored = read(&replica.broker, &entry).await;
    assert_eq!(unstored.generation, 2);
    let same = replica.broker.report(&entry, None, &unstored.token, 40001).await.unwrap();
    assert_eq!(same.token, unstored.token, "it works");
    world.pass(secs(11)).await;
    world.sim.foreign_refresh(APP, sim::Issuer::Stable, true).unwrap();
    let new = replica.broker.report(&entry, None, &unstored.token, 40001).await.unwrap();
    assert_eq!(world.state(&new), TokenState::Live);
}

#[tokio::test(start_paused = true)]
async fn a_token_found_dead_while_the_store_is_away_stays_dead() {
    let (world, replica, entry) = World::with_app(Backend::Memory, Issuer::Stable).await;
    let view = read(&replica.broker, &entry).await;
    world.memory.set_reachable(false);
    world.sim.foreign_refresh(APP, sim::Issuer::Stable, true).unwrap();
    // Only the probe works, so that nothing can replace it yet.
    world.sim.set_fault(Fault::new(errcode(-1)).on("/cgi-bin/stable_token"));
    let answer = replica.broker.report(&entry, None, &view.token, 40001).await;
    assert!(answer.is_err(), "{answer:?}");
    world.memory.set_reachable(true);
    for _ in 0..60 {
        let read = replica.broker.token(&entry, None, Duration::ZERO).await;
        assert!(read.is_err(), "a token known to be dead was served");
        world.pass(secs(1)).await;
    }
    world.sim.clear_faults();
    world.pass(secs(75)).await;
    assert_eq!(world.state(&read(&replica.broker, &entry).await), TokenState::Live);
    let log = world.sim.calls().log;
    let forced = log.iter().filter(|call| call.force && call.path != "(foreign)").count();
    assert_eq!(forced, 0, "normal mode had another one all the time");
}

#[tokio::test(start_paused = true)]
async fn the_same_token_from_a_clock_that_was_ahead_is_asked_for_once() {
    let world = World::new(Backend::Memory).await;
    let command = world.idle().await;
    let entry = world.add_app(&command, APP, Issuer::Stable).await;
    let live = read(&command, &entry).await;
    let ahead = world.clock.now() + secs(3_600);
    overtake(&world, 2, live.token.expose(), ahead, ahead).await;
    let replica = world.replica().await;
    world.pass(secs(600)).await;
    let entry = replica.broker.app(APP).unwrap();
    assert_eq!(world.state(&read(&replica.broker, &entry).await), TokenState::Live);
    assert!(world.mint_calls(APP) <= 4, "{} calls", world.mint_calls(APP));
    replica.broker.settled().await;
}

#[tokio::test(start_paused = true)]
async fn a_secret_that_cannot_be_read_here_makes_no_loop() {
    let (world, server, _entry) = World::with_app(Backend::Memory, Issuer::Stable).await;
    let ahead = ahead(&world).await;
    let change = AppChange { secret: Some(AppSecret::new("the-next")), ..AppChange::default() };
    ahead.change_app(APP, change, &Actor::System).await.unwrap();
    world.sim.set_secret(APP, "the-next").unwrap();
    world.pass(secs(2 * 7200)).await;
    let calls = world.sim.calls().count("/cgi-bin/stable_token", Some(APP), Some(40125));
    assert!((1..=2).contains(&calls), "{calls} calls with the old secret");
    drop(server);
}

#[tokio::test(start_paused = true)]
async fn an_app_that_comes_back_during_a_fetch_is_not_stopped_by_it() {
    let world = World::new(Backend::Memory).await;
    let replica = world.replica().await;
    world.sim.add_app(AppSpec::new(APP, secret_of(APP)));
    world.sim.set_fault(Fault::new(FaultKind::LatencyBefore { millis: 3_000 }).times(1));
    let wrong = NewApp { secret: AppSecret::new("wrong"), ..new_app(APP, Issuer::Stable) };
    replica.broker.add_app(wrong, &Actor::System).await.unwrap();
    world.pass(secs(1)).await;
    let command = world.idle().await;
    command.remove_app(APP, &Actor::System).await.unwrap();
    command.add_app(new_app(APP, Issuer::Stable), &Actor::System).await.unwrap();
    world.pass(secs(60)).await;
    let entry = replica.broker.app(APP).unwrap();
    assert_eq!(world.state(&read(&replica.broker, &entry).await), TokenState::Live);
}

#[tokio::test(start_paused = true)]
async fn a_ticket_that_never_comes_is_given_up_after_a_day() {
    let (world, replica, entry) = World::with_app(Backend::Memory, Issuer::Stable).await;
    world.sim.set_fault(Fault::new(errcode(48001)).on("/cgi-bin/ticket/getticket"));
    assert!(replica.broker.ticket(&entry, TicketKind::WxCard).await.is_err());
    world.pass(secs(25 * 3600)).await;
    let calls = world.calls("/cgi-bin/ticket/getticket");
    world.pass(secs(24 * 3600)).await;
    assert_eq!(world.calls("/cgi-bin/ticket/getticket"), calls);
    world.sim.clear_faults();
    assert!(replica.broker.ticket(&entry, TicketKind::WxCard).await.is_ok());
}
