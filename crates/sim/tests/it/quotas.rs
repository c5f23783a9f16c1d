//! Quotas of a day, a minute and a month.

use serde_json::json;
use sim::{AppKind, Issuer, Switches};

use crate::harness::{APP, SECRET, World, classic_target, pass};

#[tokio::test(start_paused = true)]
async fn a_test_account_mints_200_classic_tokens_a_day() {
    let world = World::new().await;
    world.sim.update_app(APP, |app| app.kind = AppKind::Test).unwrap();
    for _ in 0..200 {
        world.classic().await;
    }
    let refused = world.classic_of(APP).await;
    assert_eq!(refused.errcode(), 45009);
    let begin = "reach max api daily quota limit, could get access_token by getStableAccessToken, \
                 more details at https://mmbizurl.cn/s/JtxxFh33r rid: ";
    assert!(refused.errmsg().starts_with(begin), "{}", refused.errmsg());
    pass(12 * 3600 - 1).await;
    assert_eq!(world.classic_of(APP).await.errcode(), 45009);
    pass(1).await;
    assert_eq!(world.classic_of(APP).await.errcode(), 0, "midnight in Beijing");
}

#[tokio::test(start_paused = true)]
async fn the_boundary_of_the_day_can_be_moved() {
    let world = World::with(Switches { quota_day_offset_secs: 0, ..Switches::default() }).await;
    limit(&world, "/cgi-bin/token", 1);
    world.classic().await;
    pass(12 * 3600).await;
    assert_eq!(world.classic_of(APP).await.errcode(), 45009);
    pass(8 * 3600).await;
    assert_eq!(world.classic_of(APP).await.errcode(), 0);
}

#[tokio::test(start_paused = true)]
async fn failed_calls_count_only_if_so_switched() {
    for (failed_calls_count, last) in [(false, 0), (true, 45009)] {
        let world = World::with(Switches { failed_calls_count, ..Switches::default() }).await;
        limit(&world, "/cgi-bin/token", 3);
        for _ in 0..3 {
            world.get(&classic_target(APP, "wrong")).await;
        }
        assert_eq!(world.classic_of(APP).await.errcode(), last);
    }
}

#[tokio::test(start_paused = true)]
async fn failed_calls_count_at_every_api_once_the_app_is_known() {
    for failed_calls_count in [false, true] {
        let switches = Switches {
            failed_calls_count,
            classic_overlap_secs: 0,
            business_ip_code: Some(61004),
            ..Switches::default()
        };
        let world = World::with(switches).await;
        let (dead, token) = (world.classic().await, world.classic().await);
        let ask = async |path: &str, token: &str| {
            world.get(&format!("/cgi-bin/{path}access_token={token}")).await.errcode()
        };
        let whitelist = |list| world.sim.update_app(APP, |app| app.ip_whitelist = list).unwrap();
        let kind = |kind| world.sim.update_app(APP, |app| app.kind = kind).unwrap();
        limit(&world, "/cgi-bin/user/info", 6);

        assert_eq!(ask("user/info?openid=o1&", &dead).await, 40001);
        assert_eq!(ask("user/info?openid=o1&", "forged").await, 40001);
        assert_eq!(ask("user/info?", &token).await, 41009);
        assert_eq!(ask("user/info?openid=o1&", &token).await, 40003);
        whitelist(Some(Vec::new()));
        assert_eq!(ask("user/info?openid=o1&", &token).await, 61004);
        whitelist(None);
        kind(AppKind::MiniProgram);
        assert_eq!(ask("user/info?openid=o1&", &token).await, 48001);
        kind(AppKind::Official);
        let used = async || {
            let target = format!("/cgi-bin/openapi/quota/get?access_token={token}");
            let body = json!({ "cgi_path": "/cgi-bin/user/info" }).to_string();
            world.post(&target, &body).await.json()["quota"]["used"].as_u64().unwrap()
        };
        assert_eq!(used().await, if failed_calls_count { 5 } else { 0 });
        ask("user/info?openid=o1&", &token).await;
        let last = if failed_calls_count { 45009 } else { 40003 };
        assert_eq!(ask("user/info?openid=o1&", &token).await, last);
        assert_eq!(used().await, if failed_calls_count { 7 } else { 0 });

        let clear = async |secret: &str| {
            let body = json!({ "appid": APP, "appsecret": secret }).to_string();
            world.post("/cgi-bin/clear_quota/v2", &body).await.errcode()
        };
        for _ in 0..10 {
            assert_eq!(clear("wrong").await, 40125);
        }
        assert_eq!(clear(SECRET).await, if failed_calls_count { 48006 } else { 0 });
    }
}

#[tokio::test(start_paused = true)]
async fn mints_by_somebody_outside_count_for_no_quota() {
    let world = World::new().await;
    for (path, issuer) in
        [("/cgi-bin/token", Issuer::Classic), ("/cgi-bin/stable_token", Issuer::Stable)]
    {
        limit(&world, path, 1);
        world.sim.foreign_refresh(APP, issuer, false).unwrap();
    }
    limit(&world, "/cgi-bin/stable_token#force", 1);
    limit(&world, "/cgi-bin/stable_token#minute", 1);
    world.classic().await;
    world.stable(true).await.token();
    assert_eq!(world.classic_of(APP).await.errcode(), 45009);
    assert_eq!(world.stable(false).await.errcode(), 45011);
}

#[tokio::test(start_paused = true)]
async fn stable_calls_are_limited_by_the_minute() {
    let world = World::new().await;
    limit(&world, "/cgi-bin/stable_token#minute", 2);
    world.stable(false).await.token();
    world.stable(false).await.token();
    assert_eq!(world.stable(false).await.errcode(), 45011);
    pass(60).await;
    world.stable(false).await.token();
    limit(&world, "/cgi-bin/stable_token", 3);
    assert_eq!(world.stable(false).await.errcode(), 45009);
}

#[tokio::test(start_paused = true)]
async fn business_calls_have_quotas() {
    let world = World::new().await;
    let token = world.classic().await;
    limit(&world, "/cgi-bin/user/get", 1);
    let target = format!("/cgi-bin/user/get?access_token={token}");
    assert_eq!(world.get(&target).await.errcode(), 0);
    assert_eq!(world.get(&target).await.errcode(), 45009);
}

#[tokio::test(start_paused = true)]
async fn quota_get_tells_what_is_left() {
    let world = World::new().await;
    let token = world.classic().await;
    let ask = async |path: &str| {
        let target = format!("/cgi-bin/openapi/quota/get?access_token={token}");
        world.post(&target, &json!({ "cgi_path": path }).to_string()).await
    };
    assert_eq!(
        ask("/cgi-bin/token").await.text(),
        r#"{"errcode":0,"errmsg":"ok","quota":{"daily_limit":2000,"used":1,"remain":1999}}"#
    );
    assert_eq!(
        ask("/cgi-bin/stable_token").await.json()["rate_limit"],
        json!({ "call_count": 10_000, "refresh_second": 60 })
    );
    for (path, limit) in [
        ("/cgi-bin/stable_token", 500_000),
        ("/cgi-bin/user/info", 5_000_000),
        ("/cgi-bin/user/get", 500),
    ] {
        assert_eq!(ask(path).await.json()["quota"]["daily_limit"], limit);
    }
    limit(&world, "/cgi-bin/stable_token", 7);
    assert_eq!(ask("/cgi-bin/stable_token").await.json()["quota"]["daily_limit"], 7);
    world.sim.update_app(APP, |app| app.kind = AppKind::Test).unwrap();
    for (path, limit) in [("/cgi-bin/user/info", 500_000), ("/cgi-bin/user/get", 100)] {
        assert_eq!(ask(path).await.json()["quota"]["daily_limit"], limit);
    }
    assert_eq!(ask("/cgi-bin/nothing").await.errcode(), 76021);
    assert_eq!(ask("/sns/userinfo").await.errcode(), 76022);
}

#[tokio::test(start_paused = true)]
async fn clear_quota_works_ten_times_a_month_in_both_versions_together() {
    let world = World::new().await;
    let token = world.classic().await;
    limit(&world, "/cgi-bin/token", 1);
    assert_eq!(world.classic_of(APP).await.errcode(), 45009);
    let v1 = format!("/cgi-bin/clear_quota?access_token={token}");
    let one = json!({ "appid": APP }).to_string();
    let two = json!({ "appid": APP, "appsecret": SECRET }).to_string();
    assert_eq!(world.post(&v1, &one).await.text(), r#"{"errcode":0,"errmsg":"ok"}"#);
    world.classic().await;
    for _ in 0..9 {
        assert_eq!(world.post("/cgi-bin/clear_quota/v2", &two).await.errcode(), 0);
    }
    let refused = world.post("/cgi-bin/clear_quota/v2", &two).await;
    assert_eq!(refused.errcode(), 48006);
    let text = "forbid to clear quota because of reaching the limit rid: ";
    assert!(refused.errmsg().starts_with(text), "{}", refused.errmsg());
    assert_eq!(world.post(&v1, &one).await.errcode(), 48006);
    // September has 30 days, and it is the 17th.
    pass(14 * 86_400).await;
    assert_eq!(world.post("/cgi-bin/clear_quota/v2", &two).await.errcode(), 0);
}

#[tokio::test(start_paused = true)]
async fn clear_quota_wants_proof() {
    let world = World::new().await;
    let token = world.classic().await;
    let v1 = format!("/cgi-bin/clear_quota?access_token={token}");
    assert_eq!(world.post(&v1, "{}").await.errcode(), 41002);
    assert_eq!(world.post(&v1, r#"{"appid":"wxfedcba9876543210"}"#).await.errcode(), 40013);
    let v2 = async |body: serde_json::Value| {
        world.post("/cgi-bin/clear_quota/v2", &body.to_string()).await.errcode()
    };
    assert_eq!(v2(json!({})).await, 41002);
    assert_eq!(v2(json!({ "appid": "wx1" })).await, 40013);
    assert_eq!(v2(json!({ "appid": APP })).await, 41004);
    assert_eq!(v2(json!({ "appid": APP, "appsecret": "wrong" })).await, 40125);
}

fn limit(world: &World, key: &str, limit: u64) {
    world.sim.update_app(APP, |app| _ = app.quotas.insert(key.into(), limit)).unwrap();
}
