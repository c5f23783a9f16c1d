//! The control port.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use clock::Clock;
use serde_json::json;
use sim::{AppKind, AppSpec, Fault, FaultKind, Options, Revocation, Sim, Switches, UserSpec};

use crate::harness::{APP, NOON, SECRET, World, classic_target};

#[tokio::test]
async fn the_clock_moves_in_steps_and_waits_for_those_who_share_it() {
    let steps = Arc::new(AtomicU64::new(0));
    let seen = Arc::clone(&steps);
    let settle: sim::Settle = Arc::new(move || {
        let steps = Arc::clone(&steps);
        Box::pin(async move {
            steps.fetch_add(1, Ordering::Relaxed);
        })
    });
    let options = Options { settle: Some(settle), ..Options::new(Clock::shifted(), 1) };
    let world = World::of(options).await;
    let before = world.command("GET", "/sim/clock", "").await.json()["now"].as_i64().unwrap();
    let token = world.classic().await;
    let body = r#"{"seconds":7205}"#;
    let after = world.command("POST", "/sim/clock/advance", body).await.json();
    assert!(after["now"].as_i64().unwrap() >= before + 7205);
    assert_eq!(seen.load(Ordering::Relaxed), 241);
    assert_eq!(world.probe(&token).await, 42001);
    world.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_follows_timers_is_not_moved() {
    let world = World::new().await;
    let clock = world.command("GET", "/sim/clock", "").await.json();
    assert_eq!(clock, json!({ "now": NOON, "now_ms": NOON * 1000, "seed": 42 }));
    let refused = world.command("POST", "/sim/clock/advance", r#"{"seconds":1}"#).await;
    assert_eq!(
        (refused.status, refused.text()),
        (409, r#"{"error":"this clock cannot be moved"}"#)
    );
    assert!(Sim::new(Options::new(Clock::real(), 1)).advance(Duration::ZERO).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn calls_are_counted_and_logged_without_secrets() {
    let world = World::new().await;
    let token = world.classic().await;
    world.probe(&token).await;
    world.get(&classic_target(APP, "wrong")).await;
    let answer = world.command("GET", "/sim/calls", "").await;
    for secret in [token.as_str(), SECRET, "wrong"] {
        assert!(!answer.text().contains(secret), "{}", answer.text());
    }
    let calls = answer.json();
    let total =
        |path, errcode| json!({ "path": path, "appid": APP, "errcode": errcode, "count": 1 });
    assert_eq!(
        calls["totals"],
        json!([
            total("/cgi-bin/get_api_domain_ip", 0),
            total("/cgi-bin/token", 0),
            total("/cgi-bin/token", 40125),
        ])
    );
    let log = calls["log"].as_array().unwrap();
    assert_eq!(log[0]["answered"], log[1]["token"], "one token, one hash");
    assert_eq!(
        log[1],
        json!({
            "seq": 2, "sent_at": NOON * 1000, "decided_at": NOON * 1000,
            "answered_at": NOON * 1000, "method": "GET", "path": "/cgi-bin/get_api_domain_ip",
            "appid": APP, "errcode": 0, "rid": null, "client_ip": "127.0.0.1",
            "token": log[0]["answered"], "code": null, "answered": null, "force": false, "faults": [],
        })
    );
    assert!(log[2]["rid"].as_str().unwrap().starts_with(&format!("{NOON:08x}-")));

    let part = world.command("GET", "/sim/calls?after=1&limit=1", "").await.json();
    assert_eq!(part["log"], json!([log[1]]));
    assert_eq!(world.command("GET", "/sim/calls?after=x", "").await.json()["field"], "after");
}

#[tokio::test(start_paused = true)]
async fn faults_are_set_listed_and_taken_away() {
    let world = World::new().await;
    let set = json!([
        { "kind": "errcode", "code": -1, "path": "/cgi-bin/token", "count": 2 },
        { "kind": "reset_after", "probability": 0.05, "appid": APP },
        { "kind": "expires_in", "as": "string" },
    ]);
    let ids = world.command("POST", "/sim/faults", &set.to_string()).await.json();
    assert_eq!(ids, json!({ "ids": [1, 2, 3], "seed": 42 }));
    assert_eq!(world.classic_of(APP).await.errcode(), -1);
    let listed = world.command("GET", "/sim/faults", "").await.json();
    assert_eq!(
        listed["faults"][0],
        json!({
            "id": 1, "kind": "errcode", "path": "/cgi-bin/token", "count": 1, "code": -1,
            "ip": null, "message": null, "hits": 1,
        })
    );
    assert_eq!(world.command("DELETE", "/sim/faults/1", "").await.status, 200);
    assert_eq!(world.command("DELETE", "/sim/faults/1", "").await.status, 404);
    let left = world.command("DELETE", "/sim/faults", "").await.json();
    assert_eq!(left["faults"], json!([]));

    // What is listed can be set again.
    for kind in [
        json!({ "kind": "latency_before", "millis": 1 }),
        json!({ "kind": "latency_after", "millis": 1 }),
        json!({ "kind": "reset_before" }),
        json!({ "kind": "reset_after" }),
        json!({ "kind": "errcode", "code": 40164, "ip": "1.2.3.4", "message": null }),
        json!({ "kind": "foreign_mint", "issuer": "stable", "kill": true }),
        json!({ "kind": "early_invalidation", "issuer": null, "sticky": true }),
        json!({ "kind": "grant_revoked" }),
        json!({ "kind": "password_changed" }),
        json!({ "kind": "web_token_ends" }),
        json!({ "kind": "secret_reset" }),
        json!({ "kind": "bad_gateway", "processed": true }),
        json!({ "kind": "truncated_body" }),
        json!({ "kind": "empty_body" }),
        json!({ "kind": "expires_in", "as": "missing" }),
        json!({ "kind": "dirty_strings", "as": "both" }),
        json!({ "kind": "content_type", "value": "text/html" }),
        json!({ "kind": "old_suffix", "suffix": "req_id" }),
        json!({ "kind": "old_token_survives", "seconds": 9 }),
        json!({ "kind": "clock_skew", "seconds": -9 }),
    ] {
        let answer = world.command("POST", "/sim/faults", &kind.to_string()).await;
        assert_eq!(answer.status, 200, "{kind}: {}", answer.text());
        let mut listed = world.command("GET", "/sim/faults", "").await.json()["faults"][0].take();
        let fields = listed.as_object_mut().unwrap();
        fields.remove("id");
        fields.remove("hits");
        assert_eq!(listed, kind);
        world.sim.clear_faults();
    }
}

#[tokio::test(start_paused = true)]
async fn apps_are_added_and_changed() {
    let world = World::new().await;
    let added = world.command("POST", "/sim/apps", r#"{"appid":"wx1","kind":"test"}"#).await.json();
    let secret = added["secret"].as_str().unwrap();
    assert_eq!(world.get(&classic_target("wx1", secret)).await.errcode(), 0);
    let listed = world.command("GET", "/sim/apps", "").await;
    assert!(!listed.text().contains(secret), "shown once");
    assert_eq!(listed.json()["apps"].as_array().unwrap().len(), 3);
    let again = world.command("POST", "/sim/apps", r#"{"appid":"wx1"}"#).await;
    assert_eq!(again.status, 409);

    let change = r#"{"frozen":true,"secret":"new","ip_whitelist":["10.0.0.1"]}"#;
    let changed = world.command("POST", "/sim/apps/wx1", change).await.json();
    assert_eq!((&changed["frozen"], &changed["kind"]), (&json!(true), &json!("test")));
    assert_eq!(world.get(&classic_target("wx1", "new")).await.errcode(), 40243);
    world.command("POST", "/sim/apps/wx1", r#"{"frozen":false}"#).await;
    assert_eq!(world.get(&classic_target("wx1", "new")).await.errcode(), 40164);
    world.command("POST", "/sim/apps/wx1", r#"{"ip_whitelist":null}"#).await;
    assert_eq!(world.get(&classic_target("wx1", "new")).await.errcode(), 0);
    assert_eq!(world.command("POST", "/sim/apps/wx2", "{}").await.status, 404);
}

#[tokio::test(start_paused = true)]
async fn users_are_added() {
    let world = World::new().await;
    let users = json!([{ "appid": APP, "openid": "o1" }, { "appid": APP, "openid": "o2" }]);
    let added = world.command("POST", "/sim/users", &users.to_string()).await.json();
    assert_eq!(added, json!({ "added": 2 }));
    let listed = world.command("GET", &format!("/sim/users?appid={APP}"), "").await.json();
    assert_eq!(listed["users"][1]["openid"], "o2");
    assert_eq!(listed["users"][1]["subscribe_time"], NOON);
    let stranger = r#"{"appid":"wx1","openid":"o1"}"#;
    assert_eq!(world.command("POST", "/sim/users", stranger).await.status, 404);
}

#[tokio::test(start_paused = true)]
async fn somebody_outside_refreshes() {
    let world = World::new().await;
    let token = world.stable(false).await.token();
    let path = format!("/sim/apps/{APP}/foreign-refresh");
    let answer = world.command("POST", &path, r#"{"issuer":"stable","kill":true}"#).await;
    assert_eq!(answer.status, 200);
    assert_eq!(world.probe(&token).await, 40001);
    let calls = world.sim.calls();
    let entry = calls.log.iter().find(|entry| entry.path == "(foreign)").unwrap();
    assert_eq!(answer.json()["token"].as_str(), entry.answered.as_deref());
}

#[tokio::test(start_paused = true)]
async fn switches_change_one_by_one_and_reset_takes_them_back() {
    let world = World::new().await;
    let first = world.command("GET", "/sim/switches", "").await.json();
    assert_eq!(first["classic_overlap_secs"], 300);
    let changed = world.command("POST", "/sim/switches", r#"{"classic_overlap_secs":0}"#).await;
    assert_eq!(changed.json()["classic_overlap_secs"], 0);
    assert_eq!(world.sim.switches(), Switches { classic_overlap_secs: 0, ..Switches::default() });

    let token = world.classic().await;
    assert_eq!(world.command("POST", "/sim/reset", "").await.status, 200);
    assert_eq!(world.command("GET", "/sim/switches", "").await.json(), first);
    assert_eq!(world.probe(&token).await, 40001);
    assert_eq!(world.sim.calls().totals.len(), 1);
    world.classic().await;
}

#[tokio::test(start_paused = true)]
async fn a_reset_brings_apps_back_to_how_they_were_added() {
    let world = World::new().await;
    let added = AppSpec { kind: AppKind::Test, ..AppSpec::new("wx1", "first") };
    world.sim.add_app(AppSpec::new("wx1", "older"));
    world.sim.add_app(added.clone());
    world.sim.add_user(UserSpec::new("wx1", "o1")).unwrap();
    let change = r#"{"frozen":true,"banned":true,"quotas":{"/cgi-bin/token":0}}"#;
    assert_eq!(world.command("POST", "/sim/apps/wx1", change).await.status, 200);
    world.sim.set_fault(Fault::new(FaultKind::SecretReset {}).times(1));
    assert_eq!(world.get(&classic_target("wx1", "first")).await.errcode(), 40125);

    assert_eq!(world.command("POST", "/sim/reset", "").await.status, 200);
    assert!(world.sim.apps().contains(&added));
    assert_eq!(world.sim.users(Some("wx1")).len(), 1);
    assert_eq!(world.get(&classic_target("wx1", "first")).await.errcode(), 0);
}

#[tokio::test(start_paused = true)]
async fn bad_input_names_its_field() {
    let world = World::new().await;
    for (path, body, field) in [
        ("/sim/clock/advance", r#"{"seconds":"7"}"#, "seconds"),
        ("/sim/clock/advance", r#"{"seconds":-7}"#, "seconds"),
        ("/sim/clock/advance", r#"{"seconds":1e300}"#, "seconds"),
        ("/sim/clock/advance", "{}", "seconds"),
        ("/sim/clock/advance", r#"{"seconds":7,"minutes":1}"#, "minutes"),
        ("/sim/faults", "{}", "kind"),
        ("/sim/faults", r#"{"kind":"fire"}"#, "kind"),
        ("/sim/faults", r#"{"kind":"errcode"}"#, "code"),
        ("/sim/faults", r#"{"kind":"errcode","code":"x"}"#, "code"),
        ("/sim/faults", r#"{"kind":"reset_after","code":1}"#, "code"),
        ("/sim/faults", r#"{"kind":"reset_after","path":"cgi-bin"}"#, "path"),
        ("/sim/faults", r#"{"kind":"reset_after","path":"/connect/oauth2/authorize"}"#, "path"),
        ("/sim/faults", r#"{"kind":"reset_after","path":"/connect*"}"#, "path"),
        ("/sim/faults", r#"{"kind":"reset_after","count":-1}"#, "count"),
        ("/sim/faults", r#"{"kind":"reset_after","probability":1.5}"#, "probability"),
        ("/sim/users", r#"{"openid":"o1"}"#, "appid"),
        ("/sim/users", r#"{"openid":1,"appid":"wx1"}"#, "openid"),
        ("/sim/apps", r#"{"appid":""}"#, "appid"),
        ("/sim/apps", r#"{"appid":"wx1","ip_whitelist":["x"]}"#, "ip_whitelist[0]"),
        (&format!("/sim/apps/{APP}"), r#"{"kind":"shop"}"#, "kind"),
        (&format!("/sim/apps/{APP}"), r#"{"appid":"wx1"}"#, "appid"),
        (&format!("/sim/apps/{APP}/foreign-refresh"), r#"{"issuer":"new"}"#, "issuer"),
        ("/sim/switches", r#"{"page_size":-1}"#, "page_size"),
        ("/sim/switches", r#"{"colour":1}"#, "colour"),
        (
            "/sim/switches",
            r#"{"token_check_order":["ip","secret","account","ip"]}"#,
            "token_check_order",
        ),
        ("/sim/apps", r#"{"appid":"wx1","quotas":{"/cgi-bin/tokens":1}}"#, "quotas"),
        (&format!("/sim/apps/{APP}"), r#"{"quotas":{"/cgi-bin/clear_quota/v2":1}}"#, "quotas"),
    ] {
        let answer = world.command("POST", path, body).await;
        assert_eq!((answer.status, &answer.json()["field"]), (400, &json!(field)), "{body}");
        assert!(!answer.json()["error"].as_str().unwrap().is_empty());
    }
    for (method, path, status) in [
        ("POST", "/sim/faults", 400),
        ("POST", "/sim/switches", 400),
        ("DELETE", "/sim/clock", 405),
        ("GET", "/sim", 404),
        ("GET", "/", 404),
    ] {
        let answer = world.command(method, path, "[7").await;
        assert_eq!(answer.status, status, "{method} {path}");
        assert!(answer.json()["error"].is_string());
    }
}

#[tokio::test(start_paused = true)]
async fn logins_are_prepared_over_http() {
    let world = World::new().await;
    let user =
        json!({ "appid": APP, "openid": "o1", "nickname": "小明\u{1}😀", "privilege": ["x"] });
    assert_eq!(world.command("POST", "/sim/users", &user.to_string()).await.status, 200);
    let listed = world.command("GET", "/sim/users", "").await.json();
    assert_eq!(listed["users"][0]["nickname"], "小明\u{1}😀");
    let of_app = async |path: &str, body: &str| {
        world.command("POST", &format!("/sim/apps/{APP}/{path}"), body).await
    };
    let code = of_app("codes", r#"{"openid":"o1","scope":"snsapi_userinfo"}"#).await.json();
    let exchange = |code: &serde_json::Value| {
        let code = code["code"].as_str().unwrap();
        let grant = "grant_type=authorization_code";
        format!("/sns/oauth2/access_token?appid={APP}&secret={SECRET}&code={code}&{grant}")
    };
    let given = world.get(&exchange(&code)).await.json();
    assert_eq!(given["openid"], "o1");
    let body = r#"{"openid":"o1","scope":"snsapi_userinfo","snapshot":true}"#;
    let code = of_app("codes", body).await.json();
    assert_eq!(world.get(&exchange(&code)).await.json()["is_snapshotuser"], 1);

    let body = r#"{"openid":"o1","reason":"password_changed"}"#;
    assert_eq!(of_app("revoke-grant", body).await.text(), "{}");
    assert_eq!(world.sim.grants_of(APP, "o1")[0].ended, Some(Revocation::PasswordChanged));
    assert_eq!(of_app("revoke-grant", r#"{"openid":"o1"}"#).await.text(), "{}");

    let body = r#"{"mode":"slow_first","count":2,"delay_ms":100}"#;
    assert_eq!(of_app("duplicate-callbacks", body).await.text(), "{}");
    assert_eq!(of_app("duplicate-callbacks", r#"{"mode":"off"}"#).await.text(), "{}");

    world.sim.update_app(APP, |app| app.kind = AppKind::MiniProgram).unwrap();
    let data = r#"{"openid":"o1","data":{"a":1}}"#;
    assert_eq!(of_app("encrypted-data", data).await.status, 409, "nobody logged in");
    assert!(of_app("js-codes", r#"{"openid":"o1"}"#).await.json()["js_code"].is_string());
    let sent = of_app("encrypted-data", data).await.json();
    let keys: Vec<&String> = sent.as_object().unwrap().keys().collect();
    assert_eq!(keys, ["encryptedData", "iv", "rawData", "signature"]);

    let site = json!({ "appid": "wx1", "kind": "website", "redirect_hosts": ["a.example.com"] });
    let added = world.command("POST", "/sim/apps", &site.to_string()).await.json();
    assert_eq!(added["redirect_hosts"], json!(["a.example.com"]));

    for (path, body, status, field) in [
        ("codes", r#"{"openid":"o1"}"#, 400, json!("scope")),
        ("codes", r#"{"openid":"o1","scope":"snsapi_all"}"#, 400, json!("scope")),
        ("codes", r#"{"openid":"o1","scope":"snsapi_base"}"#, 409, json!(null)),
        ("js-codes", r#"{"openid":"o9"}"#, 404, json!(null)),
        ("encrypted-data", r#"{"openid":"o1","data":[]}"#, 400, json!("data")),
        ("revoke-grant", r#"{"openid":"o1","reason":"x"}"#, 400, json!("reason")),
        ("duplicate-callbacks", r#"{"mode":"thrice"}"#, 400, json!("mode")),
        ("duplicate-callbacks", r#"{"mode":"off","count":-1}"#, 400, json!("count")),
        ("duplicate-callbacks", r#"{"mode":"off","count":1}"#, 400, json!("count")),
        ("duplicate-callbacks", r#"{"mode":"off","delay_ms":1}"#, 400, json!("delay_ms")),
    ] {
        let answer = of_app(path, body).await;
        assert_eq!(answer.status, status, "{body}: {}", answer.text());
        assert_eq!(answer.json().get("field").unwrap_or(&json!(null)), &field, "{body}");
    }
    let error = of_app("duplicate-callbacks", r#"{"mode":"thrice"}"#).await.json();
    let error = error["error"].as_str().unwrap();
    assert!(error.contains("`off`, `same_code`, `new_code`, `slow_first`"), "{error}");
    let unknown = world.command("POST", "/sim/apps/wx0/js-codes", r#"{"openid":"o1"}"#).await;
    assert_eq!(unknown.status, 404);
    assert_eq!(world.command("GET", "/sim/apps/wx0/js-codes", "").await.status, 405);
}
