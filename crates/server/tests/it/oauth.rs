//! Logins of web pages.

use broker::{NewApp, app::AppKind, audit::Actor, key::Apps, key::Permission};
use serde_json::{Value, json};
use server::http::ProblemType;
use sim::{AppSpec, Fault, FaultKind, Scope, UserSpec};

use crate::harness::{APP, Answer, MINI, OPENID, OTHER, Setup, World, new_app, pass};

const EXCHANGE: &str = "/sns/oauth2/access_token";
const SITE: &str = "wx00000000000000ee";

async fn exchange(world: &World, headers: &str, body: &Value) -> Answer {
    let (path, body) = (format!("/v1/apps/{APP}/oauth/exchange"), body.to_string());
    world.ask_with(headers, "POST", &path, (Some(&world.key), Some(&body))).await
}

/// Registers a website app.
async fn add_site(world: &World) {
    let spec = AppSpec { kind: sim::AppKind::Website, ..AppSpec::new(SITE, "a-secret-of-a-site") };
    world.sim.add_app(spec);
    let new = NewApp {
        kind: AppKind::Website,
        secret: wechat::AppSecret::new("a-secret-of-a-site"),
        ..new_app(SITE, Some("site"))
    };
    world.app.broker.add_app(new, &Actor::System).await.unwrap();
    world.sim.add_user(UserSpec::new(SITE, "oATTHESITE")).unwrap();
}

#[tokio::test(start_paused = true)]
async fn the_page_to_send_a_user_to() {
    let world = World::new().await;
    add_site(&world).await;
    let back = "https://shop.example/back?x=1";
    let escaped = "https%3A%2F%2Fshop.example%2Fback%3Fx%3D1";
    for (app, body, tail) in [
        (APP, json!({ "redirect_uri": back, "state": "s1" }), "scope=snsapi_base&state=s1"),
        (
            APP,
            json!({
                "redirect_uri": back, "scope": "snsapi_userinfo", "state": "s1",
                "force_popup": true, "force_snapshot": true, "lang": "en",
            }),
            "scope=snsapi_userinfo&state=s1&forcePopup=true&forceSnapShot=true",
        ),
        (SITE, json!({ "redirect_uri": back, "state": "s1" }), "scope=snsapi_login&state=s1"),
        (
            SITE,
            json!({ "redirect_uri": back, "state": "s1", "lang": "en" }),
            "scope=snsapi_login&state=s1&lang=en",
        ),
        (
            SITE,
            json!({ "redirect_uri": back, "state": "s1", "lang": "cn" }),
            "scope=snsapi_login&state=s1",
        ),
    ] {
        let path = format!("/v1/apps/{app}/oauth/authorize-url");
        let answer = world.post(&path, &body.to_string()).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        let page = answer.json();
        let url = page["url"].as_str().unwrap();
        let query = format!("?appid={app}&redirect_uri={escaped}&response_type=code&{tail}");
        assert!(url.ends_with(&format!("{query}#wechat_redirect")), "{url}");
        assert_eq!(url.contains("/connect/qrconnect"), app == SITE, "{url}");
        assert_eq!(page["state"], "s1");
    }
    let path = format!("/v1/apps/{APP}/oauth/authorize-url");
    let page = world.post(&path, &json!({ "redirect_uri": back }).to_string()).await.json();
    let state = page["state"].as_str().unwrap();
    assert!(state.len() == 32 && page["url"].as_str().unwrap().contains(state), "{page}");
    for (app, scope) in [(APP, "snsapi_login"), (SITE, "snsapi_base"), (MINI, "snsapi_base")] {
        let path = format!("/v1/apps/{app}/oauth/authorize-url");
        let body = json!({ "redirect_uri": back, "scope": scope }).to_string();
        world.post(&path, &body).await.check_problem(ProblemType::WrongAppKind);
    }
}

#[tokio::test(start_paused = true)]
async fn a_code_becomes_an_identity() {
    let world = World::new().await;
    let base = exchange(&world, "", &json!({ "code": world.code(Scope::Base) })).await.json();
    let now = world.sim.now().as_secs();
    assert_eq!(base["openid"], OPENID);
    assert_eq!((&base["unionid"], &base["scope"]), (&Value::Null, &json!("snsapi_base")));
    assert_eq!(base["is_snapshotuser"], false);
    let life = base["expires_at"].as_i64().unwrap() - now;
    assert!((7190..=7200).contains(&life), "{life}");

    let wide = exchange(&world, "", &json!({ "code": world.code(Scope::UserInfo) })).await.json();
    assert_eq!((&wide["unionid"], &wide["scope"]), (&json!("oUNION"), &json!("snsapi_userinfo")));
    // WeChat tells it with the wider scope only; it is remembered.
    let base = exchange(&world, "", &json!({ "code": world.code(Scope::Base) })).await.json();
    assert_eq!(base["unionid"], "oUNION");

    add_site(&world).await;
    let code = world.sim.issue_code(SITE, "oATTHESITE", Scope::Login, false).unwrap();
    let path = "/v1/apps/site/oauth/exchange";
    let site = world.post(path, &json!({ "code": code }).to_string()).await.json();
    assert_eq!((&site["openid"], &site["scope"]), (&json!("oATTHESITE"), &json!("snsapi_login")));
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_is_named_and_not_kept() {
    let world = World::new().await;
    let code = world.sim.issue_code(APP, OPENID, Scope::UserInfo, true).unwrap();
    let body = exchange(&world, "", &json!({ "code": code })).await.json();
    assert_eq!(body["is_snapshotuser"], true, "{body}");
    assert_ne!(body["openid"], OPENID);
    let path = format!("/v1/apps/{APP}/grants/{}", body["openid"].as_str().unwrap());
    world.get(&path).await.check_problem(ProblemType::NoGrant);
}

#[tokio::test(start_paused = true)]
async fn a_repeat_is_answered_to_who_proves_it() {
    let world = World::new().await;
    let code = world.code(Scope::UserInfo);
    let bound = json!({ "code": code, "binding": "binding" });
    let first = exchange(&world, "", &bound).await;
    assert_eq!(first.status, 200, "{first:?}");
    // With a binding, the header is not looked at.
    for header in ["", "idempotency-key: k2\r\n", "idempotency-key:\r\n"] {
        assert_eq!(exchange(&world, header, &bound).await.json(), first.json(), "{header}");
    }
    let other = world.add_key("other", Permission::ALL, Apps::All).await;
    let path = format!("/v1/apps/{APP}/oauth/exchange");
    let of_other = world.ask("POST", &path, Some(&other), Some(&bound.to_string())).await;
    let told = of_other.check_problem(ProblemType::CodeUsed)["detail"].as_str().unwrap().to_owned();
    assert!(told.contains("authorise again"), "{told}");
    for stranger in [json!({ "code": code }), json!({ "code": code, "binding": "another" })] {
        exchange(&world, "", &stranger).await.check_problem(ProblemType::CodeUsed);
    }
    // The two proofs are not told apart by their values alone.
    let unbound = json!({ "code": code });
    let keyed = exchange(&world, "idempotency-key: binding\r\n", &unbound).await;
    keyed.check_problem(ProblemType::CodeUsed);
    assert_eq!(world.calls(EXCHANGE), 1);

    let code = json!({ "code": world.code(Scope::Base) });
    let first = exchange(&world, "idempotency-key: \"k1\"\r\n", &code).await;
    assert_eq!(first.status, 200, "{first:?}");
    assert_eq!(exchange(&world, "Idempotency-Key: k1\r\n", &code).await.json(), first.json());
    for header in ["", "idempotency-key: k2\r\n"] {
        exchange(&world, header, &code).await.check_problem(ProblemType::CodeUsed);
    }
    assert_eq!(world.calls(EXCHANGE), 2);
    // After ten minutes it is told to nobody.
    pass(601).await;
    let late = exchange(&world, "idempotency-key: k1\r\n", &code).await;
    late.check_problem(ProblemType::CodeUsed);
    assert_eq!(world.calls(EXCHANGE), 2);
}

#[tokio::test(start_paused = true)]
async fn what_wechat_says_of_a_code_becomes_a_problem() {
    let world = World::new().await;
    let elsewhere = {
        world.sim.add_user(UserSpec::new(OTHER, "oELSEWHERE")).unwrap();
        world.sim.issue_code(OTHER, "oELSEWHERE", Scope::Base, false).unwrap()
    };
    let old = world.code(Scope::Base);
    pass(301).await;
    for code in [old, elsewhere, "made-up".to_owned()] {
        let answer = exchange(&world, "", &json!({ "code": code, "binding": "b" })).await;
        let problem = answer.check_problem(ProblemType::CodeRefused);
        assert_eq!(problem["wechat"]["errcode"], 40029, "{problem}");
        assert!(!problem.to_string().contains(&code), "{problem}");
    }
    for (code, kind) in [
        (40163, ProblemType::CodeRefused),
        (42003, ProblemType::CodeRefused),
        (40226, ProblemType::CodeRefused),
        (-1, ProblemType::CodeRefused),
        (45011, ProblemType::CodeRefused),
        (40013, ProblemType::WeChatRefused),
        (40125, ProblemType::WeChatRefused),
        (50007, ProblemType::WeChatForbidden),
    ] {
        let fault = Fault::new(FaultKind::Errcode { code, ip: None, message: None });
        let fault = world.sim.set_fault(fault.on(EXCHANGE));
        let body = json!({ "code": world.code(Scope::Base), "binding": "b" });
        let answer = exchange(&world, "", &body).await;
        let problem = answer.check_problem(kind);
        assert_eq!(problem["wechat"]["errcode"], code, "{problem}");
        // A user whom WeChat blocks is blocked the next time too.
        let advice = if code == 40226 { "high risk" } else { "authorise again" };
        assert!(problem["detail"].as_str().unwrap().contains(advice), "{problem}");
        assert_eq!(answer.header("retry-after"), None);
        world.sim.remove_fault(fault);
        // The code is gone, whatever was wrong: its repeat is told the same.
        let calls = world.calls(EXCHANGE);
        exchange(&world, "", &body).await.check_problem(kind);
        assert_eq!(world.calls(EXCHANGE), calls);
    }
}

#[tokio::test(start_paused = true)]
async fn a_code_whose_answer_is_lost_may_be_spent() {
    let world = World::new().await;
    for fault in [
        FaultKind::LatencyBefore { millis: 60_000 },
        FaultKind::ResetAfter {},
        FaultKind::BadGateway { processed: false },
        FaultKind::EmptyBody {},
    ] {
        let fault = world.sim.set_fault(Fault::new(fault).on(EXCHANGE));
        let body = json!({ "code": world.code(Scope::Base), "binding": "b" });
        let answer = exchange(&world, "", &body).await;
        let problem = answer.check_problem(ProblemType::CodeMaybeSpent);
        assert!(problem["detail"].as_str().unwrap().contains("authorise again"), "{problem}");
        world.sim.remove_fault(fault);
        // It is not sent again.
        let calls = world.calls(EXCHANGE);
        exchange(&world, "", &body).await.check_problem(ProblemType::CodeMaybeSpent);
        assert_eq!(world.calls(EXCHANGE), calls);
    }
}

#[tokio::test(start_paused = true)]
async fn a_code_that_was_not_sent_is_unspent() {
    let world = World::with(Setup { away: true, ..Setup::default() }).await;
    let body = json!({ "code": world.code(Scope::Base) });
    for _ in 0..2 {
        let answer = exchange(&world, "", &body).await;
        let problem = answer.check_problem(ProblemType::WeChatUnreachable);
        assert!(problem["detail"].as_str().unwrap().contains("unspent"), "{problem}");
        assert!(answer.retry_after() > 0);
    }
}

#[tokio::test(start_paused = true)]
async fn input_is_checked() {
    let world = World::new().await;
    let long = "x".repeat(513);
    let far = format!("https://shop.example/{}", "x".repeat(1000));
    let back = "https://shop.example/back";
    for (call, body, field) in [
        ("authorize-url", json!({}), "redirect_uri"),
        ("authorize-url", json!({ "redirect_uri": "" }), "redirect_uri"),
        ("authorize-url", json!({ "redirect_uri": "javascript:alert(1)" }), "redirect_uri"),
        ("authorize-url", json!({ "redirect_uri": "https://a@b.example/" }), "redirect_uri"),
        ("authorize-url", json!({ "redirect_uri": far }), "redirect_uri"),
        ("authorize-url", json!({ "redirect_uri": 1 }), "redirect_uri"),
        ("authorize-url", json!({ "redirect_uri": back, "scope": "all" }), "scope"),
        ("authorize-url", json!({ "redirect_uri": back, "state": "a-b" }), "state"),
        ("authorize-url", json!({ "redirect_uri": back, "state": "" }), "state"),
        ("authorize-url", json!({ "redirect_uri": back, "state": long }), "state"),
        ("authorize-url", json!({ "redirect_uri": back, "force_popup": 1 }), "force_popup"),
        ("authorize-url", json!({ "redirect_uri": back, "force_snapshot": "" }), "force_snapshot"),
        ("authorize-url", json!({ "redirect_uri": back, "lang": "zh_CN" }), "lang"),
        ("authorize-url", json!({ "redirect_uri": back, "appid": APP }), "appid"),
        ("exchange", json!({}), "code"),
        ("exchange", json!({ "code": "" }), "code"),
        ("exchange", json!({ "code": "a b" }), "code"),
        ("exchange", json!({ "code": "微" }), "code"),
        ("exchange", json!({ "code": long }), "code"),
        ("exchange", json!({ "code": 1 }), "code"),
        ("exchange", json!({ "code": "c", "binding": "" }), "binding"),
        ("exchange", json!({ "code": "c", "binding": long }), "binding"),
        ("exchange", json!({ "code": "c", "binding": 1 }), "binding"),
        ("exchange", json!({ "code": "c", "redirect_uri": "/back" }), "redirect_uri"),
        ("exchange", json!({ "code": "c", "state": "s" }), "state"),
    ] {
        let answer = world.post(&format!("/v1/apps/{APP}/oauth/{call}"), &body.to_string()).await;
        let problem = answer.check_problem(ProblemType::Invalid);
        assert_eq!(problem["field"], field, "{body}: {problem}");
    }
    let body = json!({ "code": "c" });
    let long = format!("idempotency-key: {}\r\n", "k".repeat(256));
    for header in ["idempotency-key: \r\n", "idempotency-key: a b\r\n", &long] {
        let answer = exchange(&world, header, &body).await;
        let problem = answer.check_problem(ProblemType::Invalid);
        assert_eq!(problem["field"], "Idempotency-Key", "{header}");
    }
    let twice = exchange(&world, "idempotency-key: a\r\nidempotency-key: a\r\n", &body).await;
    assert_eq!(twice.check_problem(ProblemType::Invalid)["field"], "Idempotency-Key");
    assert_eq!(world.calls(EXCHANGE), 0);
}
