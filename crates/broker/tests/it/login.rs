//! Logins: a code is exchanged at most once, and only who brought it first hears of it again.

use std::{sync::Arc, time::Duration};

use broker::{
    Authorize, Broker, ExchangeError, Identity, Parts, Proof,
    app::{AppKind, Issuer},
    audit::Actor,
    store::StoreError,
};
use futures_util::{FutureExt, future::join_all};
use sim::{Fault, FaultKind, Scope};
use tokio::net::TcpListener;
use tokio_util::task::TaskTracker;
use wechat::{AuthCode, OpenId};

use crate::harness::{
    APP, Backend, Desk, EXCHANGE, OPENID, UNIONID, add_key, new_app, sealer, secs,
};

fn kind_of(result: &Result<Identity, ExchangeError>) -> &'static str {
    match result {
        Ok(_) => "identity",
        Err(ExchangeError::WrongKind(_)) => "wrong kind",
        Err(ExchangeError::CodeUsed) => "used",
        Err(ExchangeError::NoLongerTold) => "no longer told",
        Err(ExchangeError::MaybeSpent(_)) => "maybe spent",
        Err(ExchangeError::Refused(_)) => "refused",
        Err(ExchangeError::Unreachable(_)) => "unreachable",
        Err(ExchangeError::Store(_)) => "store",
    }
}

fn fault(kind: FaultKind) -> Fault {
    Fault::new(kind).on(EXCHANGE)
}

#[tokio::test(start_paused = true)]
async fn a_code_becomes_the_user() {
    let desk = Desk::new(Backend::Memory).await;
    let sent = desk.broker().now();
    let base = desk.log_in(Scope::Base).await;
    assert_eq!(base.openid.as_str(), OPENID);
    assert_eq!((base.unionid, base.scope), (None, wechat::Scope::Base));
    assert!(!base.is_snapshot_user);
    assert_eq!(base.expires_at, sent + secs(7200));
    let wide = desk.log_in(Scope::UserInfo).await;
    assert_eq!(wide.unionid.as_ref().map(|it| it.as_str()), Some(UNIONID));
    assert_eq!(wide.scope, wechat::Scope::UserInfo);
    assert_eq!(desk.world.calls(EXCHANGE), 2);

    // What was learnt once is told also where WeChat does not.
    let again = desk.log_in(Scope::Base).await;
    assert_eq!(again.unionid, wide.unionid);
    let grants = desk.grants().await.unwrap();
    assert_eq!(grants.unionid, wide.unionid);
    let scopes: Vec<_> = grants.grants.iter().map(|grant| (grant.scope, grant.is_live)).collect();
    assert_eq!(scopes, [(wechat::Scope::UserInfo, true), (wechat::Scope::Base, true)]);
}

#[tokio::test(start_paused = true)]
async fn a_missing_unionid_is_never_the_openid() {
    let desk = Desk::new(Backend::Memory).await;
    desk.world.sim.update_app(APP, |app| app.bound = false).unwrap();
    assert_eq!(desk.log_in(Scope::UserInfo).await.unionid, None);
    assert_eq!(desk.profile(&broker::ProfileQuery::default()).await.unwrap().user.unionid, None);
}

#[tokio::test(start_paused = true)]
async fn only_who_brought_the_code_first_hears_of_it_again() {
    for backend in [Backend::Memory, Backend::Sqlite] {
        let desk = Desk::new(backend).await;
        let other_key = add_key(desk.broker(), "blog").await;
        let code = desk.code(Scope::UserInfo);
        let first = desk.exchange(&code, "cookie-1").await.unwrap();
        assert_eq!(desk.exchange(&code, "cookie-1").await, Ok(first.clone()));

        let (entry, broker) = (&desk.entry, desk.broker());
        for (key, proof) in [
            (&desk.key, Proof::None),
            (&desk.key, Proof::Binding("cookie-2")),
            (&desk.key, Proof::IdempotencyKey("cookie-1")),
            (&other_key, Proof::Binding("cookie-1")),
        ] {
            let repeated = broker.exchange(entry, key, &code, proof, None).await;
            assert_eq!(repeated, Err(ExchangeError::CodeUsed), "{proof:?}");
        }
        desk.world.pass(secs(599)).await;
        assert_eq!(desk.exchange(&code, "cookie-1").await, Ok(first));
        desk.world.pass(secs(2)).await;
        assert_eq!(desk.exchange(&code, "cookie-1").await, Err(ExchangeError::NoLongerTold));
        assert_eq!(desk.exchange(&code, "cookie-2").await, Err(ExchangeError::CodeUsed));
        assert_eq!(desk.world.calls(EXCHANGE), 1, "{backend:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn without_a_proof_every_repeat_is_somebody_elses() {
    let desk = Desk::new(Backend::Memory).await;
    let code = desk.code(Scope::Base);
    let exchange =
        async || desk.broker().exchange(&desk.entry, &desk.key, &code, Proof::None, None).await;
    assert_eq!(kind_of(&exchange().await), "identity");
    assert_eq!(exchange().await, Err(ExchangeError::CodeUsed));
    assert_eq!(desk.exchange(&code, "b").await, Err(ExchangeError::CodeUsed));
    assert_eq!(desk.world.calls(EXCHANGE), 1);
}

#[tokio::test(start_paused = true)]
async fn a_service_repeats_its_request_by_its_idempotency_key() {
    let desk = Desk::new(Backend::Memory).await;
    let code = desk.code(Scope::Base);
    let exchange = async |id| {
        let proof = Proof::IdempotencyKey(id);
        desk.broker().exchange(&desk.entry, &desk.key, &code, proof, None).await
    };
    let first = exchange("request-1").await.unwrap();
    assert_eq!(exchange("request-1").await, Ok(first));
    assert_eq!(exchange("request-2").await, Err(ExchangeError::CodeUsed));
    // The key is a proof and nothing else: another code is another exchange.
    let other = desk.code(Scope::UserInfo);
    let proof = Proof::IdempotencyKey("request-1");
    let second = desk.broker().exchange(&desk.entry, &desk.key, &other, proof, None).await;
    assert_eq!(second.unwrap().scope, wechat::Scope::UserInfo);
    assert_eq!(desk.world.calls(EXCHANGE), 2);
}

#[tokio::test(start_paused = true)]
async fn a_repeat_in_flight_joins_in_every_process() {
    for backend in [Backend::Memory, Backend::Sqlite] {
        let desk = Desk::new(backend).await;
        let second = desk.world.replica().await;
        desk.world.sim.set_fault(fault(FaultKind::LatencyAfter { millis: 15_000 }));
        let code = desk.code(Scope::Base);
        let entry = second.broker.app(APP).unwrap();
        let callers = (0..20).map(async |at| {
            desk.world.pass(secs(at / 4)).await;
            let (broker, entry) = match at % 2 {
                0 => (desk.broker(), &desk.entry),
                _ => (&second.broker, &entry),
            };
            let proof = Proof::Binding(if at == 19 { "other" } else { "b" });
            broker.exchange(entry, &desk.key, &code, proof, None).await
        });
        let mut answers = join_all(callers).await;
        assert_eq!(answers.pop(), Some(Err(ExchangeError::CodeUsed)), "{backend:?}");
        let first = answers[0].clone().unwrap();
        assert!(answers.into_iter().all(|answer| answer == Ok(first.clone())), "{backend:?}");
        assert_eq!(desk.world.calls(EXCHANGE), 1, "{backend:?}");
        second.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn nobody_joins_without_the_proof() {
    let desk = Desk::new(Backend::Memory).await;
    let other_key = add_key(desk.broker(), "blog").await;
    desk.world.sim.set_fault(fault(FaultKind::LatencyAfter { millis: 5_000 }));
    for (proof, keys) in
        [(Proof::None, [&desk.key, &desk.key]), (Proof::Binding("b"), [&desk.key, &other_key])]
    {
        let (code, calls) = (desk.code(Scope::Base), desk.world.calls(EXCHANGE));
        let both = keys.map(|key| desk.broker().exchange(&desk.entry, key, &code, proof, None));
        let mut answers: Vec<_> = join_all(both).await.iter().map(kind_of).collect();
        answers.sort_unstable();
        assert_eq!(answers, ["identity", "used"], "{proof:?}");
        assert_eq!(desk.world.calls(EXCHANGE), calls + 1);
    }
}

#[tokio::test(start_paused = true)]
async fn an_owner_who_waited_for_the_store_is_not_given_up_as_it_comes_back() {
    let desk = Desk::new(Backend::Memory).await;
    let second = desk.world.replica().await;
    desk.world.sim.set_fault(fault(FaultKind::LatencyAfter { millis: 2_000 }));
    let code = desk.code(Scope::UserInfo);
    let away = async {
        desk.world.pass(secs(1)).await;
        desk.world.memory.set_reachable(false);
        // Beyond the deadline of the claim, and not at the owner's next try.
        desk.world.pass(Duration::from_millis(60_300)).await;
        desk.world.memory.set_reachable(true);
        let entry = second.broker.app(APP).unwrap();
        second.broker.exchange(&entry, &desk.key, &code, Proof::Binding("b"), None).await
    };
    let (first, repeat) = tokio::join!(desk.exchange(&code, "b"), away);
    assert_eq!((kind_of(&first), kind_of(&repeat)), ("store", "identity"));
    assert_eq!(desk.world.calls(EXCHANGE), 1);
}

#[tokio::test(start_paused = true)]
async fn many_at_once_are_one_exchange() {
    let desk = Desk::new(Backend::Sqlite).await;
    let code = desk.code(Scope::Base);
    let answers = join_all((0..100).map(|_| desk.exchange(&code, "b"))).await;
    let first = answers[0].clone().unwrap();
    assert!(answers.into_iter().all(|answer| answer == Ok(first.clone())));
    assert_eq!(desk.world.calls(EXCHANGE), 1);
}

#[tokio::test(start_paused = true)]
async fn a_caller_who_goes_away_loses_nothing() {
    let desk = Desk::new(Backend::Memory).await;
    desk.world.sim.set_fault(fault(FaultKind::LatencyAfter { millis: 5_000 }));
    let code = desk.code(Scope::Base);
    let gone = tokio::time::timeout(secs(1), desk.exchange(&code, "b")).await;
    assert!(gone.is_err());
    assert_eq!(desk.exchange(&code, "b").await.unwrap().openid.as_str(), OPENID);
    assert_eq!(desk.world.calls(EXCHANGE), 1);
}

#[tokio::test(start_paused = true)]
async fn a_caller_who_goes_away_at_once_loses_nothing() {
    for backend in [Backend::Memory, Backend::Sqlite] {
        let desk = Desk::new(backend).await;
        let code = desk.code(Scope::Base);
        // While the claim is being written.
        assert!(desk.exchange(&code, "b").now_or_never().is_none());
        let identity = desk.exchange(&code, "b").await.unwrap();
        assert_eq!((identity.openid.as_str(), desk.world.calls(EXCHANGE)), (OPENID, 1));
    }
}

#[tokio::test(start_paused = true)]
async fn a_claim_of_a_time_that_was_set_back_is_not_waited_for() {
    let desk = Desk::new(Backend::Memory).await;
    let second = desk.world.replica().await;
    desk.world.sim.set_fault(fault(FaultKind::LatencyAfter { millis: 15_000 }));
    let code = desk.code(Scope::Base);
    let repeat = async {
        desk.world.pass(secs(1)).await;
        desk.world.memory.set_clock_back(secs(7200));
        desk.world.have_looked().await;
        let (entry, begun) = (second.broker.app(APP).unwrap(), tokio::time::Instant::now());
        let proof = Proof::Binding("b");
        let answer = second.broker.exchange(&entry, &desk.key, &code, proof, None).await;
        assert!(begun.elapsed() < secs(60), "{:?}", begun.elapsed());
        answer
    };
    let (first, second) = tokio::join!(desk.exchange(&code, "b"), repeat);
    assert_eq!(first.unwrap().openid.as_str(), OPENID);
    assert_eq!(kind_of(&second), "maybe spent");
    assert_eq!(desk.world.calls(EXCHANGE), 1);
}

#[tokio::test(start_paused = true)]
async fn an_empty_proof_proves_nothing() {
    let desk = Desk::new(Backend::Memory).await;
    let code = desk.code(Scope::Base);
    desk.exchange(&code, "").await.unwrap();
    assert_eq!(desk.exchange(&code, "").await, Err(ExchangeError::CodeUsed));
}

#[tokio::test(start_paused = true)]
async fn a_code_whose_answer_is_lost_is_not_sent_again() {
    for kind in [
        FaultKind::ResetAfter {},
        FaultKind::TruncatedBody {},
        FaultKind::EmptyBody {},
        FaultKind::BadGateway { processed: true },
        FaultKind::LatencyAfter { millis: 60_000 },
        FaultKind::LatencyBefore { millis: 60_000 },
    ] {
        let desk = Desk::new(Backend::Memory).await;
        desk.world.sim.set_fault(fault(kind.clone()).times(1));
        let code = desk.code(Scope::Base);
        for _ in 0..3 {
            assert_eq!(kind_of(&desk.exchange(&code, "b").await), "maybe spent", "{kind:?}");
        }
        assert_eq!(kind_of(&desk.exchange(&code, "c").await), "used", "{kind:?}");
        desk.world.pass(secs(120)).await;
        assert_eq!(desk.world.sim.calls().log.iter().filter(|it| it.path == EXCHANGE).count(), 1);
        assert_eq!(desk.grants().await, None, "{kind:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_refusal_is_final_for_the_code() {
    let desk = Desk::new(Backend::Memory).await;
    let unknown = AuthCode::new("0000000000000000000000000000000a");
    for _ in 0..2 {
        let Err(ExchangeError::Refused(error)) = desk.exchange(&unknown, "b").await else {
            panic!("WeChat does not know the code");
        };
        assert_eq!(error.code, 40029);
        assert!(error.rid.is_some(), "{error}");
    }
    assert_eq!(kind_of(&desk.exchange(&unknown, "c").await), "used");
    assert_eq!(desk.world.calls(EXCHANGE), 1);

    let busy = FaultKind::Errcode { code: -1, ip: None, message: None };
    desk.world.sim.set_fault(fault(busy).times(1));
    let code = desk.code(Scope::Base);
    assert_eq!(kind_of(&desk.exchange(&code, "b").await), "refused");
    assert_eq!(kind_of(&desk.exchange(&code, "b").await), "refused");
    assert_eq!(desk.world.calls(EXCHANGE), 2);
}

#[tokio::test(start_paused = true)]
async fn a_code_that_was_not_sent_may_be_brought_again() {
    let desk = Desk::new(Backend::Memory).await;
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let (store, shared) = desk.world.stores().await;
    let config = wechat::Config {
        hosts: vec![format!("http://{closed}").parse().unwrap()],
        ..wechat::Config::default()
    };
    let cut_off = Broker::open(Parts {
        store,
        shared,
        wechat: wechat::Client::new(config).unwrap(),
        clock: desk.world.clock.clone(),
        sealer: sealer(),
        tasks: TaskTracker::new(),
        bounds: broker::Bounds::default(),
    });
    let cut_off = cut_off.await.unwrap();
    let entry = cut_off.app(APP).unwrap();
    let code = desk.code(Scope::Base);
    let together =
        (0..20).map(|_| cut_off.exchange(&entry, &desk.key, &code, Proof::Binding("b"), None));
    for unsent in join_all(together).await {
        assert_eq!(kind_of(&unsent), "unreachable");
    }
    assert_eq!(cut_off.counters().read().exchanges, 1, "all hear of one try");
    assert_eq!(desk.exchange(&code, "c").await.unwrap().openid.as_str(), OPENID);
}

#[tokio::test(start_paused = true)]
async fn what_wechat_answered_waits_for_the_store() {
    let desk = Desk::new(Backend::Memory).await;
    desk.world.sim.set_fault(fault(FaultKind::LatencyAfter { millis: 2_000 }));
    let code = desk.code(Scope::UserInfo);
    let away = async {
        desk.world.pass(secs(1)).await;
        desk.world.memory.set_reachable(false);
        desk.world.pass(secs(100)).await;
        desk.world.memory.set_reachable(true);
        desk.world.pass(secs(2)).await;
    };
    let (answer, ()) = tokio::join!(desk.exchange(&code, "b"), away);
    assert!(matches!(answer, Err(ExchangeError::Store(StoreError::Unavailable(_)))), "{answer:?}");
    assert_eq!(desk.exchange(&code, "b").await.unwrap().openid.as_str(), OPENID);
    assert!(desk.grants().await.is_some());
    assert_eq!(desk.world.calls(EXCHANGE), 1);
}

#[tokio::test(start_paused = true)]
async fn a_claim_that_nobody_settles_stays_one() {
    for scope in [Scope::Base, Scope::UserInfo] {
        let desk = Desk::new(Backend::Memory).await;
        desk.world.sim.set_fault(fault(FaultKind::LatencyAfter { millis: 2_000 }));
        let code = desk.code(scope);
        let away = async {
            desk.world.pass(secs(1)).await;
            desk.world.memory.set_reachable(false);
            // Longer than anybody waits with an answer.
            desk.world.pass(secs(700)).await;
            desk.world.memory.set_reachable(true);
        };
        let (answer, ()) = tokio::join!(desk.exchange(&code, "b"), away);
        assert_eq!(kind_of(&answer), "store");
        for _ in 0..2 {
            assert_eq!(kind_of(&desk.exchange(&code, "b").await), "maybe spent");
        }
        assert_eq!(kind_of(&desk.exchange(&code, "c").await), "used");
        desk.world.pass(secs(700)).await;
        assert_eq!(kind_of(&desk.exchange(&code, "c").await), "used");
        assert_eq!(desk.world.calls(EXCHANGE), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_unionid_that_cannot_be_read_loses_no_login() {
    let desk = Desk::new(Backend::Sqlite).await;
    desk.log_in(Scope::UserInfo).await;
    let file = rusqlite::Connection::open(desk.world.database()).unwrap();
    file.execute("UPDATE unionids SET unionid = CAST(x'ff' AS TEXT)", []).unwrap();
    let code = desk.code(Scope::Base);
    let identity = desk.exchange(&code, "b").await.unwrap();
    assert_eq!((identity.openid.as_str(), identity.unionid), (OPENID, None));
    assert_eq!(kind_of(&desk.exchange(&code, "c").await), "used");
    assert_eq!(desk.world.calls(EXCHANGE), 2);
}

#[tokio::test(start_paused = true)]
async fn a_code_stays_used_when_its_app_is_removed_and_comes_back() {
    let desk = Desk::new(Backend::Sqlite).await;
    let code = desk.code(Scope::Base);
    desk.exchange(&code, "b").await.unwrap();
    desk.broker().remove_app(APP, &Actor::System).await.unwrap();
    desk.broker().add_app(new_app(APP, Issuer::Stable), &Actor::System).await.unwrap();
    let entry = desk.broker().app(APP).unwrap();
    let openid = OpenId::new(OPENID);
    assert_eq!(desk.broker().grants(&entry, &openid).await.unwrap(), None);
    let again = desk.broker().exchange(&entry, &desk.key, &code, Proof::None, None).await;
    assert_eq!(again, Err(ExchangeError::CodeUsed));
    assert_eq!(desk.world.calls(EXCHANGE), 1);
}

#[tokio::test(start_paused = true)]
async fn what_is_stored_is_told_after_a_restart() {
    let desk = Desk::new(Backend::Sqlite).await;
    let code = desk.code(Scope::UserInfo);
    let first = desk.exchange(&code, "b").await.unwrap();
    let Desk { world, replica, key, .. } = desk;
    replica.stop().await;
    let replica = world.replica().await;
    let entry = replica.broker.app(APP).unwrap();
    let again = replica.broker.exchange(&entry, &key, &code, Proof::Binding("b"), None).await;
    assert_eq!(again, Ok(first));
    let openid = OpenId::new(OPENID);
    let profile = replica.broker.profile(&entry, &key, &openid, &Default::default()).await;
    assert_eq!(profile.unwrap().user.openid, openid);
    assert_eq!(world.calls(EXCHANGE), 1);
}

#[tokio::test(start_paused = true)]
async fn of_a_snapshot_user_nothing_is_kept() {
    let desk = Desk::new(Backend::Sqlite).await;
    let code = desk.world.sim.issue_code(APP, OPENID, Scope::UserInfo, true).unwrap();
    let code = AuthCode::new(code);
    let snapshot = desk.exchange(&code, "b").await.unwrap();
    assert!(snapshot.is_snapshot_user);
    assert_ne!(snapshot.openid.as_str(), OPENID);
    assert_eq!(desk.exchange(&code, "b").await, Ok(snapshot.clone()), "a second callback");
    let held = desk.broker().grants(&desk.entry, &snapshot.openid).await.unwrap();
    assert_eq!(held, None);
    let (store, _) = desk.world.stores().await;
    let app = APP.parse().unwrap();
    assert_eq!(store.unionid(&app, &snapshot.openid).await.unwrap(), None);
    // Also the sealed outcome goes in its time.
    desk.world.pass(secs(700)).await;
    let kept = store.sealed_otherwise("none", 100).await.unwrap();
    let kept: Vec<_> = kept.iter().map(|(place, _)| place.binding()).collect();
    assert!(!kept.iter().any(|binding| binding.starts_with("outcome/")), "{kept:?}");
}

#[tokio::test(start_paused = true)]
async fn addresses_fit_the_kind_of_the_app() {
    for (kind, page, wrong, right) in [
        (AppKind::Official, "/connect/oauth2/authorize?", wechat::Scope::Login, "snsapi_base"),
        (AppKind::Test, "/connect/oauth2/authorize?", wechat::Scope::Login, "snsapi_base"),
        (AppKind::Website, "/connect/qrconnect?", wechat::Scope::UserInfo, "snsapi_login"),
    ] {
        let desk = Desk::of_kind(Backend::Memory, kind).await;
        let wanted = |scope| Authorize {
            redirect_uri: "https://a.example/cb".parse().unwrap(),
            scope,
            state: None,
            force_popup: false,
            force_snapshot: false,
            in_english: false,
        };
        let address = |scope| desk.broker().authorize_url(&desk.entry, &desk.key, &wanted(scope));
        let (one, two) = (address(None).unwrap(), address(None).unwrap());
        assert!(one.url.contains(page), "{}", one.url);
        assert!(one.url.contains(&format!("&scope={right}&state={}", one.state.as_str())));
        assert_eq!(one.state.as_str().len(), 32);
        assert_ne!(one.state, two.state);
        assert!(!format!("{one:?}").contains(one.state.as_str()));
        assert!(address(Some(wrong)).is_err());
    }
    let desk = Desk::of_kind(Backend::Memory, AppKind::MiniProgram).await;
    let refused = desk.exchange(&AuthCode::new("c"), "b").await;
    assert_eq!(kind_of(&refused), "wrong kind");
    assert_eq!(desk.world.calls(EXCHANGE), 0);
}

#[tokio::test(start_paused = true)]
async fn a_website_logs_in_by_its_own_scope() {
    let desk = Desk::of_kind(Backend::Memory, AppKind::Website).await;
    let identity = desk.log_in(Scope::Login).await;
    assert_eq!(identity.scope, wechat::Scope::Login);
    assert_eq!(identity.unionid.as_ref().map(|it| it.as_str()), Some(UNIONID));
    let profile = desk.fresh_profile().await.unwrap();
    assert_eq!(profile.scope, wechat::Scope::Login);
    let entry = Arc::clone(&desk.entry);
    assert!(
        !desk.broker().grants(&entry, &identity.openid).await.unwrap().unwrap().grants.is_empty()
    );
}
