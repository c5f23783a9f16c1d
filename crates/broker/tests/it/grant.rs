//! Grants: web tokens are kept, renewed and ended as WeChat does.

use std::time::Duration;

use broker::{
    Authorize, Ended, PROFILE_LIFE, ProfileError, ProfileQuery, Proof, app::AppKind, audit::Actor,
};
use futures_util::future::join_all;
use sim::{Fault, FaultKind, Revocation, Scope, Switches, TokenState};
use wechat::{AuthCode, Lang, OpenId};

use crate::harness::{
    APP, Backend, Desk, EXCHANGE, NICKNAME, OPENID, RENEW, UNIONID, USERINFO, add_key, secs,
};

const DAY: u64 = 86_400;

#[track_caller]
fn reauthorize<T: std::fmt::Debug>(result: Result<T, ProfileError>) -> Option<String> {
    match result {
        Err(ProfileError::Reauthorize { authorize, .. }) => authorize.map(|to| to.url),
        other => panic!("{other:?} is no call to authorise again"),
    }
}

async fn with_profile(backend: Backend) -> Desk {
    let desk = Desk::new(backend).await;
    desk.log_in(Scope::UserInfo).await;
    desk
}

#[tokio::test(start_paused = true)]
async fn a_profile_is_told_byte_for_byte_and_kept_for_an_hour() {
    for backend in [Backend::Memory, Backend::Sqlite] {
        let desk = with_profile(backend).await;
        let query = ProfileQuery::default();
        let profile = desk.profile(&query).await.unwrap();
        assert_eq!(profile.user.nickname, NICKNAME);
        assert_eq!(profile.user.unionid.as_ref().map(|it| it.as_str()), Some(UNIONID));
        assert_eq!(profile.scope, wechat::Scope::UserInfo);
        assert_eq!(desk.profile(&query).await, Ok(profile.clone()));
        assert_eq!(desk.world.calls(USERINFO), 1);

        let in_chinese = ProfileQuery { lang: Some(Lang::ZhCn), ..ProfileQuery::default() };
        assert_eq!(desk.profile(&in_chinese).await, Ok(profile), "which is what no wish means");
        assert_eq!(desk.world.calls(USERINFO), 1);

        // Another language and a wish for a fresh one ask WeChat.
        let in_english = ProfileQuery { lang: Some(Lang::En), ..ProfileQuery::default() };
        desk.profile(&in_english).await.unwrap();
        desk.profile(&in_english).await.unwrap();
        assert_eq!(desk.world.calls(USERINFO), 2);
        let fresh = desk.fresh_profile().await.unwrap();
        assert_eq!(desk.world.calls(USERINFO), 3);
        desk.world.pass(PROFILE_LIFE - secs(1)).await;
        assert_eq!(desk.profile(&query).await, Ok(fresh.clone()));
        desk.world.pass(secs(1)).await;
        assert_ne!(desk.profile(&query).await, Ok(fresh));
        assert_eq!(desk.world.calls(USERINFO), 4);
    }
}

#[tokio::test(start_paused = true)]
async fn a_dead_web_token_is_replaced() {
    let desk = with_profile(Backend::Memory).await;
    let old = desk.world.sim.grants_of(APP, OPENID)[0].web_token.clone();
    desk.world.pass(secs(7201)).await;
    assert_eq!(desk.world.sim.web_token_state(APP, &old), TokenState::Expired);
    assert_eq!(desk.fresh_profile().await.unwrap().user.nickname, NICKNAME);
    let grants = desk.world.sim.grants_of(APP, OPENID);
    assert_ne!(grants[0].web_token, old);
    assert_eq!((desk.world.calls(RENEW), desk.world.calls(EXCHANGE)), (1, 1));
    let held = desk.grants().await.unwrap();
    assert_eq!(held.grants[0].token_expires_at.as_secs(), grants[0].web_expires.as_secs());
    // It is used until it ends in its turn.
    desk.world.pass(secs(7000)).await;
    desk.fresh_profile().await.unwrap();
    assert_eq!(desk.world.calls(RENEW), 1);
}

#[tokio::test(start_paused = true)]
async fn a_live_web_token_is_extended() {
    let desk = with_profile(Backend::Memory).await;
    let old = desk.world.sim.grants_of(APP, OPENID)[0].web_token.clone();
    desk.world.pass(secs(7150)).await;
    desk.fresh_profile().await.unwrap();
    assert_eq!(desk.world.calls(RENEW), 1);
    assert_eq!(desk.world.sim.grants_of(APP, OPENID)[0].web_token, old);
    desk.world.pass(secs(7100)).await;
    assert_eq!(desk.world.sim.web_token_state(APP, &old), TokenState::Live);
    desk.fresh_profile().await.unwrap();
    assert_eq!(desk.world.calls(RENEW), 1);
}

#[tokio::test(start_paused = true)]
async fn a_web_token_is_used_as_long_as_it_lives() {
    let desk = with_profile(Backend::Memory).await;
    let busy = FaultKind::Errcode { code: -1, ip: None, message: None };
    desk.world.sim.set_fault(Fault::new(busy).on(RENEW));
    desk.world.pass(secs(7170)).await;
    desk.fresh_profile().await.unwrap();
    assert_eq!(desk.world.calls(RENEW), 1);
    desk.world.pass(secs(40)).await;
    let failed = desk.fresh_profile().await;
    assert!(matches!(failed, Err(ProfileError::WeChat(_))), "{failed:?}");
    // Also in the last minute of one that cannot be renewed any more.
    desk.world.sim.clear_faults();
    desk.replica.rest();
    desk.world.pass(secs(30 * DAY - 7170 - 40 - 60)).await;
    desk.fresh_profile().await.unwrap();
    desk.world.pass(secs(7170)).await;
    desk.fresh_profile().await.unwrap();
    desk.world.pass(secs(40)).await;
    reauthorize(desk.fresh_profile().await);
}

#[tokio::test(start_paused = true)]
async fn one_renewal_serves_all_who_wait_in_every_process() {
    for backend in [Backend::Memory, Backend::Sqlite] {
        let desk = with_profile(backend).await;
        let second = desk.world.replica().await;
        let entry = second.broker.app(APP).unwrap();
        desk.world.pass(secs(7201)).await;
        let slow = FaultKind::LatencyAfter { millis: 3_000 };
        desk.world.sim.set_fault(Fault::new(slow).on(RENEW));
        let query = ProfileQuery { fresh: true, ..ProfileQuery::default() };
        let openid = OpenId::new(OPENID);
        let callers = (0..20).map(async |at| {
            let (broker, entry) = match at % 2 {
                0 => (desk.broker(), &desk.entry),
                _ => (&second.broker, &entry),
            };
            broker.profile(entry, &desk.key, &openid, &query).await.unwrap()
        });
        let profiles = join_all(callers).await;
        assert!(profiles.iter().all(|profile| profile.user.openid == openid));
        assert_eq!(desk.world.calls(RENEW), 1, "{backend:?}");
        second.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn the_refresh_token_that_comes_back_is_the_next_one() {
    let desk = with_profile(Backend::Memory).await;
    desk.world.sim.set_switches(Switches { refresh_rotates: true, ..Switches::default() });
    for renewals in 1..=3 {
        desk.world.pass(secs(7201)).await;
        desk.fresh_profile().await.unwrap();
        assert_eq!(desk.world.sim.calls().count(RENEW, None, Some(0)), renewals);
    }
}

#[tokio::test(start_paused = true)]
async fn a_token_that_wechat_ended_early_is_renewed_once() {
    let desk = with_profile(Backend::Memory).await;
    desk.world.sim.set_fault(Fault::new(FaultKind::WebTokenEnds {}).on(USERINFO).times(1));
    assert_eq!(desk.fresh_profile().await.unwrap().user.nickname, NICKNAME);
    assert_eq!((desk.world.calls(RENEW), desk.world.calls(USERINFO)), (1, 2));

    // 42007 there too leads to the renewal, which tells that the grant is over.
    let errcode = |code| FaultKind::Errcode { code, ip: None, message: None };
    desk.world.sim.set_fault(Fault::new(errcode(42007)).on(USERINFO).times(1));
    assert_eq!(desk.fresh_profile().await.unwrap().user.nickname, NICKNAME);
    assert_eq!((desk.world.calls(RENEW), desk.world.calls(USERINFO)), (2, 4));

    // One that stays refused is not renewed for ever.
    desk.world.sim.set_fault(Fault::new(errcode(40001)).on(USERINFO));
    reauthorize(desk.fresh_profile().await);
    assert_eq!((desk.world.calls(RENEW), desk.world.calls(USERINFO)), (3, 6));

    // Also one that was just renewed for its age is renewed once more.
    desk.world.sim.clear_faults();
    desk.world.pass(secs(7201)).await;
    desk.world.sim.set_fault(Fault::new(FaultKind::WebTokenEnds {}).on(USERINFO).times(1));
    assert_eq!(desk.fresh_profile().await.unwrap().user.nickname, NICKNAME);
    assert_eq!((desk.world.calls(RENEW), desk.world.calls(USERINFO)), (5, 8));
}

#[tokio::test(start_paused = true)]
async fn after_thirty_days_the_user_must_authorise_again() {
    let desk = with_profile(Backend::Memory).await;
    desk.replica.rest();
    desk.world.pass(secs(30 * DAY - 100)).await;
    desk.fresh_profile().await.unwrap();
    let calls = desk.world.calls(RENEW);
    assert_eq!(calls, 1, "nothing is renewed that nobody asks for");
    // The token that was got just before lives its two hours.
    desk.world.pass(secs(5_000)).await;
    desk.fresh_profile().await.unwrap();
    assert_eq!(desk.world.calls(RENEW), calls);
    desk.world.pass(secs(5_000)).await;
    assert_eq!(reauthorize(desk.fresh_profile().await), None, "no redirect URI is known");
    assert_eq!(reauthorize(desk.profile(&ProfileQuery::default()).await), None);
    assert_eq!(desk.world.calls(RENEW), calls, "WeChat need not say it");
    assert!(!desk.grants().await.unwrap().grants[0].is_live);
}

#[tokio::test(start_paused = true)]
async fn a_revoked_grant_has_ended() {
    for (why, errcode) in [(Revocation::Revoked, 42007), (Revocation::PasswordChanged, 42007)] {
        let desk = with_profile(Backend::Sqlite).await;
        desk.profile(&ProfileQuery::default()).await.unwrap();
        desk.world.sim.revoke_grant(APP, OPENID, why).unwrap();
        reauthorize(desk.fresh_profile().await);
        let at = desk.broker().now();
        let calls = desk.world.sim.calls().log.len();
        let grant = desk.grants().await.unwrap().grants.remove(0);
        let Some(ended) = grant.ended else { panic!("{grant:?} has not ended") };
        assert!(!grant.is_live && ended.at <= at);
        assert_eq!(ended, Ended { at: ended.at, errcode });
        // No profile of it is told any more, and WeChat is not asked again.
        reauthorize(desk.profile(&ProfileQuery::default()).await);
        reauthorize(desk.fresh_profile().await);
        assert_eq!(desk.world.sim.calls().log.len(), calls);
        // A new authorisation begins a new grant.
        desk.log_in(Scope::UserInfo).await;
        assert_eq!(desk.fresh_profile().await.unwrap().user.nickname, NICKNAME);
    }
}

#[tokio::test(start_paused = true)]
async fn the_codes_that_end_a_grant() {
    for (code, ends) in
        [(40030, true), (40029, true), (42002, true), (42007, true), (-1, false), (45011, false)]
    {
        let desk = with_profile(Backend::Memory).await;
        desk.world.pass(secs(7201)).await;
        let kind = FaultKind::Errcode { code, ip: None, message: None };
        desk.world.sim.set_fault(Fault::new(kind).on(RENEW).times(1));
        let refused = desk.fresh_profile().await;
        if ends {
            reauthorize(refused);
            reauthorize(desk.fresh_profile().await);
        } else {
            assert!(matches!(refused, Err(ProfileError::WeChat(_))), "{code}: {refused:?}");
            desk.fresh_profile().await.unwrap();
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_narrow_grant_never_replaces_a_wide_one() {
    for backend in [Backend::Memory, Backend::Sqlite] {
        let desk = with_profile(backend).await;
        desk.log_in(Scope::Base).await;
        assert_eq!(desk.fresh_profile().await.unwrap().scope, wechat::Scope::UserInfo);
        assert_eq!(desk.world.sim.calls().count(USERINFO, None, Some(48001)), 0);
        desk.world.pass(secs(7201)).await;
        desk.log_in(Scope::Base).await;
        assert_eq!(desk.fresh_profile().await.unwrap().user.nickname, NICKNAME);
    }
}

#[tokio::test(start_paused = true)]
async fn the_openid_alone_does_not_read_a_profile() {
    let desk = Desk::new(Backend::Memory).await;
    reauthorize(desk.fresh_profile().await);
    desk.log_in(Scope::Base).await;
    reauthorize(desk.fresh_profile().await);
    assert_eq!(desk.world.calls(USERINFO), 0);
}

#[tokio::test(start_paused = true)]
async fn who_must_authorise_again_is_told_where() {
    let desk = Desk::new(Backend::Memory).await;
    let uri = |text: &str| text.parse::<wechat::RedirectUri>().unwrap();
    let exchange = async |redirect_uri: Option<&wechat::RedirectUri>| {
        let code = desk.code(Scope::Base);
        let proof = Proof::Binding("b");
        let exchanged =
            desk.broker().exchange(&desk.entry, &desk.key, &code, proof, redirect_uri).await;
        exchanged.unwrap();
    };
    let told = async |redirect_uri: Option<&str>| {
        let redirect_uri = redirect_uri.map(uri);
        reauthorize(desk.profile(&ProfileQuery { redirect_uri, ..Default::default() }).await)
    };
    exchange(None).await;
    assert_eq!(told(None).await, None);
    let last = Authorize {
        redirect_uri: uri("https://last.example/cb?next=/bobs&t=secret#/x"),
        scope: None,
        state: None,
        force_popup: false,
        force_snapshot: false,
        in_english: false,
    };
    desk.broker().authorize_url(&desk.entry, &desk.key, &last).unwrap();
    // The one that is asked for, or else that of the grant, or else the last of the key.
    let asked = told(Some("https://asked.example/cb")).await.unwrap();
    assert!(asked.contains("asked.example") && asked.contains("scope=snsapi_userinfo"), "{asked}");
    let last = told(None).await.unwrap();
    assert!(last.contains("last.example%2Fcb&"), "{last}");
    assert!(!last.contains("bobs") && !last.contains("secret"), "one user's query: {last}");
    exchange(Some(&uri("https://grant.example/cb"))).await;
    assert!(told(None).await.unwrap().contains("grant.example"));
    let other = told(Some("https://other.example/cb")).await.unwrap();
    assert!(other.contains("other.example"));
    assert!(told(None).await.unwrap().contains("grant.example"));
    let none = OpenId::new("oNobody");
    let query = ProfileQuery::default();
    let told = desk.broker().profile(&desk.entry, &desk.key, &none, &query).await;
    assert!(reauthorize(told).unwrap().contains("last.example"));
    let other_key = add_key(desk.broker(), "blog").await;
    for openid in [&none, &OpenId::new(OPENID)] {
        let told = desk.broker().profile(&desk.entry, &other_key, openid, &query).await;
        assert_eq!(reauthorize(told), None, "one service's addresses are not another's");
    }
}

#[tokio::test(start_paused = true)]
async fn a_renewal_of_another_process_is_waited_for_by_nobody_whose_token_lives() {
    let desk = with_profile(Backend::Memory).await;
    desk.world.pass(secs(7150)).await;
    let stuck = FaultKind::LatencyAfter { millis: 600_000 };
    desk.world.sim.set_fault(Fault::new(stuck).on(RENEW).times(1));
    let holder = desk.world.replica().await;
    let (entry, openid) = (holder.broker.app(APP).unwrap(), OpenId::new(OPENID));
    let query = ProfileQuery { fresh: true, ..ProfileQuery::default() };
    let renewal = holder.broker.profile(&entry, &desk.key, &openid, &query);
    assert!(tokio::time::timeout(secs(1), renewal).await.is_err());

    let begun = tokio::time::Instant::now();
    desk.fresh_profile().await.unwrap();
    assert!(begun.elapsed() < secs(1), "{:?}", begun.elapsed());
    assert_eq!(desk.world.calls(RENEW), 1);
}

#[tokio::test(start_paused = true)]
async fn a_user_of_whom_only_the_unionid_is_known() {
    let Desk { world, replica, .. } = with_profile(Backend::Memory).await;
    // Nobody is there while the time passes.
    replica.stop().await;
    world.pass(secs(181 * DAY)).await;
    let replica = world.replica().await;
    world.pass(secs(120)).await;
    let entry = replica.broker.app(APP).unwrap();
    let user = replica.broker.grants(&entry, &OpenId::new(OPENID)).await.unwrap().unwrap();
    assert_eq!(user.unionid.as_ref().map(|it| it.as_str()), Some(UNIONID));
    assert_eq!(user.grants, []);
}

#[tokio::test(start_paused = true)]
async fn a_renewal_whose_answer_is_lost_loses_no_grant() {
    for kind in [
        FaultKind::ResetAfter {},
        FaultKind::TruncatedBody {},
        FaultKind::LatencyAfter { millis: 60_000 },
    ] {
        let desk = with_profile(Backend::Memory).await;
        desk.world.pass(secs(7201)).await;
        desk.world.sim.set_fault(Fault::new(kind).on(RENEW).times(1));
        let failed = desk.fresh_profile().await;
        assert!(matches!(failed, Err(ProfileError::WeChat(_))), "{failed:?}");
        assert_eq!(desk.fresh_profile().await.unwrap().user.nickname, NICKNAME);
    }
}

#[tokio::test(start_paused = true)]
async fn a_renewal_waits_for_the_store() {
    let desk = with_profile(Backend::Memory).await;
    desk.world.pass(secs(7201)).await;
    let slow = FaultKind::LatencyAfter { millis: 2_000 };
    desk.world.sim.set_switches(Switches { refresh_rotates: true, ..Switches::default() });
    desk.world.sim.set_fault(Fault::new(slow).on(RENEW).times(1));
    let away = async {
        desk.world.pass(secs(1)).await;
        desk.world.memory.set_reachable(false);
        desk.world.pass(secs(30)).await;
        desk.world.memory.set_reachable(true);
    };
    let (_, ()) = tokio::join!(desk.fresh_profile(), away);
    assert_eq!(desk.fresh_profile().await.unwrap().user.nickname, NICKNAME);
    assert_eq!(desk.world.calls(RENEW), 1);
}

#[tokio::test(start_paused = true)]
async fn a_renewal_that_waited_for_the_store_goes_over_the_end_that_it_caused() {
    let desk = with_profile(Backend::Memory).await;
    let second = desk.world.replica().await;
    desk.world.pass(secs(7201)).await;
    desk.world.sim.set_switches(Switches { refresh_rotates: true, ..Switches::default() });
    let slow = FaultKind::LatencyAfter { millis: 2_000 };
    desk.world.sim.set_fault(Fault::new(slow).on(RENEW).times(1));
    let away = async {
        desk.world.pass(secs(1)).await;
        desk.world.memory.set_reachable(false);
        // Beyond the lease, and not at the first one's next try.
        desk.world.pass(Duration::from_millis(30_300)).await;
        desk.world.memory.set_reachable(true);
        let (entry, openid) = (second.broker.app(APP).unwrap(), OpenId::new(OPENID));
        let query = ProfileQuery { fresh: true, ..ProfileQuery::default() };
        reauthorize(second.broker.profile(&entry, &desk.key, &openid, &query).await);
    };
    let (_, ()) = tokio::join!(desk.fresh_profile(), away);
    desk.world.pass(secs(5)).await;
    assert!(desk.grants().await.unwrap().grants[0].is_live);
    assert_eq!(desk.fresh_profile().await.unwrap().user.nickname, NICKNAME);
    assert_eq!(desk.world.calls(RENEW), 2);
}

#[tokio::test(start_paused = true)]
async fn who_asked_for_a_renewal_may_go_away() {
    let desk = with_profile(Backend::Memory).await;
    desk.world.sim.set_switches(Switches { refresh_rotates: true, ..Switches::default() });
    desk.world.pass(secs(7201)).await;
    let slow = FaultKind::LatencyAfter { millis: 5_000 };
    desk.world.sim.set_fault(Fault::new(slow).on(RENEW).times(1));
    assert!(tokio::time::timeout(secs(1), desk.fresh_profile()).await.is_err());
    desk.world.pass(secs(10)).await;
    assert_eq!(desk.fresh_profile().await.unwrap().user.nickname, NICKNAME);
    assert_eq!(desk.world.calls(RENEW), 1);
}

#[tokio::test(start_paused = true)]
async fn a_user_is_forgotten() {
    for backend in [Backend::Memory, Backend::Sqlite] {
        let desk = with_profile(backend).await;
        desk.log_in(Scope::Base).await;
        let (broker, entry, openid) = (desk.broker(), &desk.entry, OpenId::new(OPENID));
        let listed = broker.list_grants(entry, None, 10).await.unwrap();
        assert_eq!(listed, [desk.grants().await.unwrap()]);
        let actor = Actor::Key("key_1".to_owned());
        assert_eq!(broker.forget_user(entry, &openid, &actor).await, Ok(true));
        assert_eq!(broker.forget_user(entry, &openid, &actor).await, Ok(false));
        assert_eq!(desk.grants().await, None);
        assert_eq!(broker.list_grants(entry, None, 10).await.unwrap(), []);
        reauthorize(desk.fresh_profile().await);
        assert_eq!(desk.log_in(Scope::Base).await.unionid, None);
        let (store, _) = desk.world.stores().await;
        let (_, entry) = store.list_audit(None, 1).await.unwrap().remove(0);
        assert_eq!((entry.action.as_str(), entry.object.as_str()), ("grant.remove", APP));
        assert!(!entry.detail.contains(OPENID), "{}", entry.detail);
    }
}

#[tokio::test(start_paused = true)]
async fn a_profile_of_another_user_is_none() {
    let desk = with_profile(Backend::Memory).await;
    let snapshot = desk.world.sim.issue_code(APP, OPENID, Scope::UserInfo, true).unwrap();
    let snapshot = desk.exchange(&AuthCode::new(snapshot), "b").await.unwrap();
    let query = ProfileQuery::default();
    let told = desk.broker().profile(&desk.entry, &desk.key, &snapshot.openid, &query).await;
    reauthorize(told);
    let mini = Desk::of_kind(Backend::Memory, AppKind::MiniProgram).await;
    let refused = mini.profile(&query).await;
    assert!(matches!(refused, Err(ProfileError::WrongKind(_))), "{refused:?}");
}
