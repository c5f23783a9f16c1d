//! Mini programs.

use broker::{NewApp, app::AppKind, audit::Actor};
use serde_json::{Map, Value, json};
use server::http::ProblemType;
use sim::{AppSpec, UserSpec};

use crate::harness::{APP, Answer, MINI, OPENID, Setup, World, new_app, pass};

const LOGIN: &str = "/sns/jscode2session";

async fn call(world: &World, app: &str, what: &str, body: &Value) -> Answer {
    world.post(&format!("/v1/apps/{app}/mini/{what}"), &body.to_string()).await
}

fn phone() -> Map<String, Value> {
    Map::from_iter([("phoneNumber".to_owned(), json!("13580006666"))])
}

#[tokio::test(start_paused = true)]
async fn a_login_opens_and_checks_data() {
    for world in [World::new().await, World::on_sqlite().await] {
        check_a_login_opens_and_checks_data(&world).await;
    }
}

async fn check_a_login_opens_and_checks_data(world: &World) {
    let js_code = world.sim.issue_js_code(MINI, OPENID).unwrap();
    let body = json!({ "js_code": js_code, "binding": "b" });
    let login = call(world, MINI, "login", &body).await.json();
    assert_eq!((&login["openid"], &login["unionid"]), (&json!(OPENID), &Value::Null));
    assert!(login["expires_at"].as_i64().unwrap() > world.sim.now().as_secs(), "{login}");
    assert!(!login.to_string().contains("session_key"), "{login}");
    // The same browser gets the same session; anybody else gets nothing.
    assert_eq!(call(world, MINI, "login", &body).await.json(), login);
    let other = call(world, MINI, "login", &json!({ "js_code": js_code })).await;
    other.check_problem(ProblemType::CodeUsed);
    let calls = world.sim.calls().count(LOGIN, Some(MINI), None);
    assert_eq!(calls, 1);

    let session = &login["session"];
    let sealed = world.sim.encrypt_for(MINI, OPENID, phone()).unwrap();
    let body =
        json!({ "session": session, "encryptedData": sealed.encrypted_data, "iv": sealed.iv });
    let data = call(world, MINI, "decrypt", &body).await.json();
    assert_eq!(data["data"]["phoneNumber"], "13580006666");
    assert_eq!(data["data"]["watermark"]["appid"], MINI);

    for (signature, valid) in [(sealed.signature, true), ("0".repeat(40), false)] {
        let body =
            json!({ "session": session, "rawData": sealed.raw_data, "signature": signature });
        let answer = call(world, MINI, "check-signature", &body).await;
        assert_eq!(answer.json(), json!({ "valid": valid }));
    }
}

#[tokio::test(start_paused = true)]
async fn a_session_ends() {
    let world = World::with(Setup { lazy: true, ..Setup::default() }).await;
    let session = world.mini_session().await;
    let body = json!({ "session": session, "rawData": "{}", "signature": "0".repeat(40) });
    assert_eq!(call(&world, MINI, "check-signature", &body).await.status, 200);
    pass(3 * 86_400).await;
    let late = call(&world, MINI, "check-signature", &body).await;
    late.check_problem(ProblemType::NoSession);
}

#[tokio::test(start_paused = true)]
async fn a_session_is_of_one_app_and_one_user() {
    let world = World::new().await;
    let session = world.mini_session().await;
    let second = "wx00000000000000ff";
    let kind = sim::AppKind::MiniProgram;
    world.sim.add_app(AppSpec { kind, ..AppSpec::new(second, "x") });
    let new = NewApp { kind: AppKind::MiniProgram, ..new_app(second, None) };
    world.app.broker.add_app(new, &Actor::System).await.unwrap();

    let sealed = world.sim.encrypt_for(MINI, OPENID, phone()).unwrap();
    let body =
        json!({ "session": session, "encryptedData": sealed.encrypted_data, "iv": sealed.iv });
    call(&world, second, "decrypt", &body).await.check_problem(ProblemType::NoSession);
    assert_eq!(call(&world, MINI, "decrypt", &body).await.status, 200);

    // Data of somebody else, or of another login.
    let mut named = phone();
    named.insert("openId".to_owned(), json!("oSOMEBODYELSE"));
    let sealed = world.sim.encrypt_for(MINI, OPENID, named).unwrap();
    let body =
        json!({ "session": session, "encryptedData": sealed.encrypted_data, "iv": sealed.iv });
    let problem = call(&world, MINI, "decrypt", &body).await;
    let problem = problem.check_problem(ProblemType::Undecryptable);
    assert_eq!(problem["field"], "encryptedData", "{problem}");
    world.sim.add_user(UserSpec::new(MINI, "oSECOND")).unwrap();
    world.sim.issue_js_code(MINI, "oSECOND").unwrap();
    let sealed = world.sim.encrypt_for(MINI, "oSECOND", phone()).unwrap();
    for (data, iv, field) in [
        (&*sealed.encrypted_data, &*sealed.iv, "encryptedData"),
        ("", &*sealed.iv, "encryptedData"),
        ("%%%", &*sealed.iv, "encryptedData"),
        (&*sealed.encrypted_data, "", "iv"),
        (&*sealed.encrypted_data, "AAAA", "iv"),
    ] {
        let body = json!({ "session": session, "encryptedData": data, "iv": iv });
        let answer = call(&world, MINI, "decrypt", &body).await;
        let problem = answer.check_problem(ProblemType::Undecryptable);
        assert_eq!(problem["field"], field, "{problem}");
    }
}

#[tokio::test(start_paused = true)]
async fn input_is_checked() {
    let world = World::new().await;
    let (long, zeros) = ("x".repeat(513), "0".repeat(40));
    for (what, body, field) in [
        ("login", json!({}), "js_code"),
        ("login", json!({ "js_code": "" }), "js_code"),
        ("login", json!({ "js_code": "a b" }), "js_code"),
        ("login", json!({ "js_code": long }), "js_code"),
        ("login", json!({ "js_code": "c", "binding": "" }), "binding"),
        ("login", json!({ "js_code": "c", "code": "c" }), "code"),
        ("decrypt", json!({ "session": "s", "iv": "i" }), "encryptedData"),
        ("decrypt", json!({ "session": "s", "encryptedData": "d" }), "iv"),
        ("decrypt", json!({ "iv": "i", "encryptedData": "d" }), "session"),
        ("decrypt", json!({ "session": "", "iv": "i", "encryptedData": "d" }), "session"),
        ("decrypt", json!({ "session": long, "iv": "i", "encryptedData": "d" }), "session"),
        ("decrypt", json!({ "session": "s", "iv": 1, "encryptedData": "d" }), "iv"),
        ("check-signature", json!({ "session": "s", "signature": zeros }), "rawData"),
        ("check-signature", json!({ "session": "s", "rawData": "{}" }), "signature"),
        ("check-signature", json!({ "rawData": "{}", "signature": zeros }), "session"),
        (
            "check-signature",
            json!({ "session": "s", "rawData": "{}", "signature": "0" }),
            "signature",
        ),
        (
            "check-signature",
            json!({ "session": "s", "rawData": "{}", "signature": "G".repeat(40) }),
            "signature",
        ),
        (
            "check-signature",
            json!({ "session": "微", "rawData": "{}", "signature": zeros }),
            "session",
        ),
    ] {
        let answer = call(&world, MINI, what, &body).await;
        let problem = answer.check_problem(ProblemType::Invalid);
        assert_eq!(problem["field"], field, "{body}: {problem}");
    }
    let unknown = json!({ "session": "ms_x", "rawData": "{}", "signature": zeros });
    let answer = call(&world, MINI, "check-signature", &unknown).await;
    answer.check_problem(ProblemType::NoSession);
    for (what, body) in [
        ("login", json!({ "js_code": "c" })),
        ("decrypt", json!({ "session": "s", "encryptedData": "", "iv": "" })),
        ("check-signature", unknown),
    ] {
        call(&world, APP, what, &body).await.check_problem(ProblemType::WrongAppKind);
    }
    let code = json!({ "code": "c" }).to_string();
    let answer = world.post(&format!("/v1/apps/{MINI}/oauth/exchange"), &code).await;
    answer.check_problem(ProblemType::WrongAppKind);
}
