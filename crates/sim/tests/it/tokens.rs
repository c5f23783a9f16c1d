//! The two issuers, the state of tokens, and the order of checks.

use std::net::IpAddr;

use sim::{AppKind, Check, Issuer, RefusedForce, Switches, TokenState};

use crate::harness::{APP, NOON, OTHER, SECRET, World, classic_target, pass, stable_body};

const ADVICE: &str = ", could get access_token by getStableAccessToken, more details at \
                      https://mmbizurl.cn/s/JtxxFh33r rid: ";

#[tokio::test(start_paused = true)]
async fn success_bodies_are_the_documented_ones() {
    let world = World::new().await;
    let answer = world.classic_of(APP).await;
    let token = answer.token();
    assert_eq!(answer.text(), format!(r#"{{"access_token":"{token}","expires_in":7200}}"#));
    assert_eq!(answer.status, 200);
    assert_eq!(answer.header("content-type"), Some("application/json; encoding=utf-8"));
    assert_eq!(answer.header("date"), Some("Thu, 17 Sep 2026 04:00:00 GMT"));

    let answer = world.stable(false).await;
    let token = answer.token();
    assert_eq!(answer.text(), format!(r#"{{"access_token":"{token}","expires_in":7200}}"#));

    let answer = world.get(&format!("/cgi-bin/get_api_domain_ip?access_token={token}")).await;
    assert_eq!(answer.text(), r#"{"ip_list":["203.0.113.7","203.0.113.8"]}"#);
    let answer = world.get(&format!("/cgi-bin/getcallbackip?access_token={token}")).await;
    assert_eq!(answer.text(), r#"{"ip_list":["203.0.113.16","203.0.113.32/28"]}"#);
    world.stop().await;
}

#[tokio::test(start_paused = true)]
async fn refusals_have_the_headers_of_answers() {
    let world = World::new().await;
    for path in ["token", "stable_token", "user/info", "get_api_domain_ip", "nothing"] {
        let answer = world.get(&format!("/cgi-bin/{path}")).await;
        assert_ne!(answer.errcode(), 0, "{path}");
        let content_type = answer.header("content-type");
        assert_eq!((answer.status, content_type), (200, Some("application/json; encoding=utf-8")));
        assert_eq!(answer.header("date"), Some("Thu, 17 Sep 2026 04:00:00 GMT"));
    }
}

#[tokio::test(start_paused = true)]
async fn tokens_look_like_those_of_wechat() {
    let world = World::new().await;
    let (one, two) = (world.classic().await, world.classic().await);
    assert_ne!(one, two);
    for token in [one, two] {
        assert!(token.len() > 130 && token.len() <= 512, "{token}");
        assert!(token.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_'));
        let (generation, _) = token.split_once('_').unwrap();
        assert!(generation.parse::<u16>().is_ok());
        assert!(token.bytes().rev().take(5).all(|b| b.is_ascii_uppercase()));
    }
}

#[tokio::test(start_paused = true)]
async fn the_same_seed_mints_the_same_tokens() {
    let (one, two) = (World::new().await, World::new().await);
    assert_eq!(one.classic().await, two.classic().await);
    assert_eq!(one.sim.seed(), 42);
    one.sim.reset();
    assert_ne!(one.classic().await, World::new().await.classic().await, "not even after a reset");
}

#[tokio::test(start_paused = true)]
async fn each_classic_call_mints_and_the_previous_token_lives_300_seconds() {
    let world = World::new().await;
    let first = world.classic().await;
    pass(1000).await;
    let second = world.classic().await;
    pass(299).await;
    assert_eq!((world.probe(&first).await, world.probe(&second).await), (0, 0));
    assert_eq!(world.sim.current_tokens(APP).live, [second.as_str(), &first]);
    pass(1).await;
    assert_eq!((world.probe(&first).await, world.probe(&second).await), (40001, 0));
    assert_eq!(world.sim.token_state(APP, &first), TokenState::Superseded);
    assert_eq!(world.sim.current_tokens(APP).live, [second.as_str()]);
    pass(6900).await;
    assert_eq!(world.probe(&second).await, 42001);
    assert_eq!(world.sim.token_state(APP, &second), TokenState::Expired);
    assert_eq!(world.sim.token_state(OTHER, &second), TokenState::Unknown);
}

#[tokio::test(start_paused = true)]
async fn the_overlap_never_outlasts_the_life_of_the_old_token() {
    let world = World::new().await;
    let first = world.classic().await;
    pass(7000).await;
    world.classic().await;
    pass(200).await;
    assert_eq!(world.probe(&first).await, 42001);
}

#[tokio::test(start_paused = true)]
async fn a_classic_token_older_than_the_previous_one_dies_at_once() {
    let world = World::new().await;
    let first = world.classic().await;
    world.classic().await;
    assert_eq!(world.probe(&first).await, 0);
    world.classic().await;
    assert_eq!(world.probe(&first).await, 40001);

    let world = World::with(Switches { older_survive_secs: 900, ..Switches::default() }).await;
    let first = world.classic().await;
    world.classic().await;
    world.classic().await;
    pass(600).await;
    // It was older before.
    world.classic().await;
    pass(299).await;
    assert_eq!(world.probe(&first).await, 0);
    pass(1).await;
    assert_eq!(world.probe(&first).await, 40001);
}

#[tokio::test(start_paused = true)]
async fn without_overlap_a_new_token_kills_the_old_one() {
    let switches =
        Switches { classic_overlap_secs: 0, stable_overlap_secs: 0, ..Switches::default() };
    let world = World::with(switches).await;
    let (first, second) = (world.classic().await, world.classic().await);
    assert_eq!((world.probe(&first).await, world.probe(&second).await), (40001, 0));
    let first = world.stable(false).await.token();
    pass(7000).await;
    let second = world.stable(false).await.token();
    assert_eq!((world.probe(&first).await, world.probe(&second).await), (40001, 0));
}

#[tokio::test(start_paused = true)]
async fn stable_returns_the_same_token_until_300_seconds_remain() {
    let world = World::new().await;
    let first = world.stable(false).await.token();
    pass(6855).await;
    let again = world.stable(false).await;
    assert_eq!((again.token(), again.expires_in()), (first.clone(), 345));
    pass(45).await;
    let again = world.stable(false).await;
    assert_eq!((again.token(), again.expires_in()), (first.clone(), 300));
    pass(1).await;
    let rolled = world.stable(false).await;
    assert_ne!(rolled.token(), first);
    assert_eq!(rolled.expires_in(), 7200);
    pass(298).await;
    assert_eq!(world.probe(&first).await, 0, "old and new work together");
    assert_eq!(world.probe(&rolled.token()).await, 0);
    pass(1).await;
    assert_eq!(world.probe(&first).await, 42001);
}

#[tokio::test(start_paused = true)]
async fn two_forced_refreshes_kill_the_first_token() {
    let world = World::new().await;
    let leaked = world.stable(false).await.token();
    let second = world.stable(true).await.token();
    assert_ne!(leaked, second);
    assert_eq!(world.probe(&leaked).await, 0, "one is not enough");
    pass(30).await;
    let third = world.stable(true).await.token();
    assert_eq!(world.probe(&leaked).await, 40001);
    assert_eq!((world.probe(&second).await, world.probe(&third).await), (0, 0));

    let world = World::with(Switches { force_kills_at_once: true, ..Switches::default() }).await;
    let leaked = world.stable(false).await.token();
    world.stable(true).await;
    assert_eq!(world.probe(&leaked).await, 40001);
}

#[tokio::test(start_paused = true)]
async fn a_forced_refresh_within_30_seconds_changes_nothing() {
    for (refused, errcode) in [
        (RefusedForce::Unchanged, 0),
        (RefusedForce::DailyQuota, 45009),
        (RefusedForce::MinuteQuota, 45011),
    ] {
        let world = World::with(Switches { force_too_soon: refused, ..Switches::default() }).await;
        let first = world.stable(true).await.token();
        pass(29).await;
        let again = world.stable(true).await;
        assert_eq!(again.errcode(), errcode);
        if errcode == 0 {
            assert_eq!((again.token(), again.expires_in()), (first.clone(), 7171));
        }
        pass(1).await;
        assert_ne!(world.stable(true).await.token(), first);
    }
}

#[tokio::test(start_paused = true)]
async fn twenty_forced_refreshes_a_day() {
    let world = World::new().await;
    for _ in 0..20 {
        world.stable(true).await.token();
        pass(30).await;
    }
    let refused = world.stable(true).await;
    assert_eq!(refused.errcode(), 45009);
    assert!(refused.errmsg().contains(ADVICE), "{}", refused.errmsg());
    world.stable(false).await.token();
    pass(12 * 3600).await;
    world.stable(true).await.token();

    let unchanged = Switches { force_over_limit: RefusedForce::Unchanged, ..Switches::default() };
    world.sim.set_switches(unchanged);
    world
        .sim
        .update_app(APP, |app| _ = app.quotas.insert("/cgi-bin/stable_token#force".into(), 1))
        .unwrap();
    pass(30).await;
    let current = world.stable(false).await.token();
    assert_eq!(world.stable(true).await.token(), current);
}

#[tokio::test(start_paused = true)]
async fn the_issuers_are_isolated() {
    let world = World::new().await;
    let classic = world.classic().await;
    let stable = world.stable(false).await.token();
    for _ in 0..3 {
        world.classic().await;
    }
    assert_eq!((world.probe(&classic).await, world.probe(&stable).await), (40001, 0));
    let classic = world.classic().await;
    for _ in 0..3 {
        world.stable(true).await;
        pass(30).await;
    }
    assert_eq!((world.probe(&classic).await, world.probe(&stable).await), (0, 40001));
    let tokens = world.sim.current_tokens(APP);
    assert_eq!(tokens.classic.unwrap(), classic);
    assert_eq!(tokens.live.len(), 4);
}

#[tokio::test(start_paused = true)]
async fn a_business_call_says_what_is_wrong_with_its_token() {
    let world = World::new().await;
    let answer = world.get("/cgi-bin/user/info?openid=o1").await;
    assert_eq!(answer.errcode(), 41001);
    assert!(answer.errmsg().starts_with("access_token missing rid: "), "{}", answer.errmsg());
    let unknown = world.get("/cgi-bin/user/info?access_token=forged&openid=o1").await;
    assert_eq!(unknown.status, 200);
    let begin = "invalid credential, access_token is invalid or not latest";
    assert!(unknown.errmsg().starts_with(&format!("{begin}{ADVICE}")), "{}", unknown.errmsg());
    let rid = unknown.errmsg().rsplit(' ').next().unwrap().to_owned();
    assert_eq!(rid[..8], format!("{NOON:08x}"));
    // Before its body is looked at.
    assert_eq!(world.post("/cgi-bin/clear_quota?access_token=forged", "").await.errcode(), 40001);
    assert_eq!(world.get("/cgi-bin/clear_quota?access_token=forged").await.errcode(), 43002);
    assert_eq!(world.get("/cgi-bin/nothing").await.errcode(), 40066);

    world.sim.set_switches(Switches { superseded_code: 42001, ..Switches::default() });
    let first = world.classic().await;
    world.sim.foreign_refresh(APP, Issuer::Classic, true).unwrap();
    assert_eq!(world.probe(&first).await, 42001);
}

#[tokio::test(start_paused = true)]
async fn a_token_call_is_checked_in_order() {
    let world = World::new().await;
    world
        .sim
        .update_app(APP, |app| {
            app.frozen = true;
            app.ip_whitelist = Some(Vec::new());
            app.quotas.insert("/cgi-bin/token".into(), 0);
        })
        .unwrap();
    let check = async |target: &str, begin: &str, code: i64| {
        let answer = world.get(target).await;
        assert_eq!(answer.errcode(), code, "{target}");
        assert!(answer.errmsg().starts_with(&format!("{begin} rid: ")), "{}", answer.errmsg());
    };
    check("/cgi-bin/token", "appid missing", 41002).await;
    check("/cgi-bin/token?appid=wx1", "invalid appid", 40013).await;
    check(&format!("/cgi-bin/token?appid={APP}"), "appsecret missing", 41004).await;
    let target = format!("/cgi-bin/token?appid={APP}&secret=x");
    check(&target, "invalid grant_type", 40002).await;
    check(&classic_target(APP, "x"), "invalid appsecret", 40125).await;
    let right = classic_target(APP, SECRET);
    check(&right, "appsecret is frozen", 40243).await;
    world.sim.update_app(APP, |app| app.frozen = false).unwrap();
    let refused = "invalid ip 127.0.0.1 ipv6 ::ffff:127.0.0.1, not in whitelist";
    check(&right, refused, 40164).await;
    world.sim.update_app(APP, |app| app.ip_whitelist = Some(vec![[127, 0, 0, 1].into()])).unwrap();
    assert_eq!(world.get(&right).await.errcode(), 45009);
    world.sim.update_app(APP, |app| app.quotas.clear()).unwrap();
    assert_eq!(world.get(&right).await.errcode(), 0);

    let order = [Check::Quota, Check::Ip, Check::Secret, Check::Account];
    let switches =
        Switches { token_check_order: order, wrong_secret_code: 40001, ..Switches::default() };
    world.sim.set_switches(switches);
    let wrong = world.get(&classic_target(APP, "x")).await;
    assert_eq!(wrong.errcode(), 40001);
    assert!(!wrong.errmsg().contains("getStableAccessToken"), "{}", wrong.errmsg());
    world.sim.update_app(APP, |app| app.ip_whitelist = Some(Vec::new())).unwrap();
    assert_eq!(world.get(&classic_target(APP, "x")).await.errcode(), 40164);
}

#[tokio::test(start_paused = true)]
async fn an_account_out_of_favour_gets_no_token_but_keeps_those_it_has() {
    type Change = fn(&mut sim::AppSpec);
    let world = World::new().await;
    let token = world.classic().await;
    let codes: [(Change, i64); 4] = [
        (|app| app.frozen = true, 40243),
        (|app| app.banned = true, 50007),
        (|app| app.no_token_api = true, 50004),
        (|app| app.kind = AppKind::Website, 48001),
    ];
    for (change, code) in codes {
        world.sim.add_app(sim::AppSpec::new(APP, SECRET));
        world.sim.update_app(APP, change).unwrap();
        assert_eq!(world.classic_of(APP).await.errcode(), code);
        assert_eq!(world.stable(false).await.errcode(), code);
        assert_eq!(world.probe(&token).await, 0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_new_secret_ends_the_old_one_but_no_token() {
    let world = World::new().await;
    let token = world.classic().await;
    world.sim.set_secret(APP, "new").unwrap();
    assert_eq!(world.classic_of(APP).await.errcode(), 40125);
    assert_eq!(world.get(&classic_target(APP, "new")).await.errcode(), 0);
    assert_eq!(world.probe(&token).await, 0);
}

#[tokio::test(start_paused = true)]
async fn the_whitelist_may_bind_business_calls_too() {
    let world = World::new().await;
    let token = world.classic().await;
    let elsewhere: IpAddr = [192, 0, 2, 1].into();
    world.sim.update_app(APP, |app| app.ip_whitelist = Some(vec![elsewhere])).unwrap();
    assert_eq!(world.probe(&token).await, 0);
    for code in [61004, 40164, 45035] {
        let switches = Switches { business_ip_code: Some(code), ..Switches::default() };
        world.sim.set_switches(switches);
        assert_eq!(world.probe(&token).await, code);
    }
}

#[tokio::test(start_paused = true)]
async fn stable_token_takes_a_json_post_only() {
    let world = World::new().await;
    let get = world.get("/cgi-bin/stable_token").await;
    assert_eq!(get.errcode(), 43002);
    assert!(get.errmsg().starts_with("require POST method rid: "));
    let form = format!("grant_type=client_credential&appid={APP}&secret={SECRET}");
    for body in [form.as_str(), "", "{", "[]", "7", r#"{"appid":7}"#] {
        assert_eq!(world.post("/cgi-bin/stable_token", body).await.errcode(), 41002, "{body}");
    }
    let forged = world.post("/cgi-bin/stable_token", &stable_body("wx1", "x", false)).await;
    assert_eq!(forged.errcode(), 40013);
    let wrong = world.post("/cgi-bin/stable_token", &stable_body(APP, "x", false)).await;
    assert_eq!(wrong.errcode(), 40125);
}

#[tokio::test(start_paused = true)]
async fn somebody_outside_mints_too() {
    let world = World::new().await;
    let ours = world.classic().await;
    let theirs = world.sim.foreign_refresh(APP, Issuer::Classic, false).unwrap();
    assert_eq!((world.probe(&ours).await, world.probe(&theirs).await), (0, 0));
    let theirs = world.sim.foreign_refresh(APP, Issuer::Classic, true).unwrap();
    assert_eq!((world.probe(&ours).await, world.probe(&theirs).await), (40001, 0));

    let ours = world.stable(false).await.token();
    let theirs = world.sim.foreign_refresh(APP, Issuer::Stable, true).unwrap();
    assert_eq!(world.probe(&ours).await, 40001);
    assert_eq!(
        world.stable(false).await.token(),
        theirs,
        "the stable issuer has one current token"
    );
    let calls = world.sim.calls();
    assert_eq!(calls.count("(foreign)", Some(APP), Some(0)), 3);
    assert_eq!(calls.count("/cgi-bin/token", Some(APP), None), 1);
    assert!(world.sim.foreign_refresh("wx1", Issuer::Classic, false).is_err());
}
