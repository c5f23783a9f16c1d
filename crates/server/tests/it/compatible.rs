//! The WeChat-compatible endpoint: tokens, secrets, paths, parameters, refusals.

use std::time::Duration;

use broker::audit::Actor;
use broker::key::{Apps, Permission, Rights};
use serde_json::{Value, json};
use sim::{Fault, FaultKind, Issuer, Scope};

use crate::{
    harness::{ALIAS, APP, Answer, MINI, OPENID, OTHER, Setup, World, pass},
    sdk::Sdk,
};

const SECRET: &str = "0123456789abcdef0123456789abcdef";
const INFO: &str = "/cgi-bin/user/info";

#[track_caller]
fn errcode(answer: &Answer) -> i64 {
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json()["errcode"].as_i64().unwrap_or(0)
}

/// Checks that this is a refusal of ours: WeChat's shape and words, and a rid.
#[track_caller]
fn check_refusal(answer: &Answer, code: i64, words: &str) {
    assert_eq!(errcode(answer), code, "{answer:?}");
    let body = answer.json();
    let errmsg = body["errmsg"].as_str().unwrap();
    assert!(errmsg.starts_with(words), "{errmsg}");
    assert!(errmsg.contains("(xinfu: "), "{errmsg}");
    assert!(wechat::split_rid(errmsg).1.is_some(), "{errmsg}");
    assert_eq!(body.as_object().unwrap().len(), 2);
    assert_eq!(answer.header("cache-control"), Some("no-store"));
}

async fn key(world: &World, name: &str, permissions: &[Permission], paths: &[&str]) -> String {
    let rights = Rights {
        permissions: permissions.iter().copied().collect(),
        apps: Apps::Only([APP.to_owned()].into()),
        paths: paths.iter().map(|path| (*path).to_owned()).collect(),
        reveal: false,
    };
    let key = world.app.broker.add_key(name, rights, None, &Actor::System).await.unwrap();
    key.expose().to_owned()
}

async fn send(world: &World, method: &str, path: &str, body: Option<&str>) -> Answer {
    world.ask(method, path, None, body).await
}

#[tokio::test(start_paused = true)]
async fn a_pass_comes_in_every_way_that_sdks_ask() {
    let world = World::new().await;
    let key = &world.key;
    let escaped = key.replace('_', "%5F").replace('-', "%2D");
    for (method, path, body) in [
        (
            "GET",
            format!("/cgi-bin/token?grant_type=client_credential&appid={APP}&secret={key}"),
            None,
        ),
        (
            "GET",
            format!("/cgi-bin/token?secret={escaped}&appid={APP}&grant_type=client%5Fcredential"),
            None,
        ),
        (
            "POST",
            "/cgi-bin/token".to_owned(),
            Some(format!("grant_type=client_credential&appid={APP}&secret={key}")),
        ),
        (
            "POST",
            "/cgi-bin/stable_token".to_owned(),
            Some(
                json!({"grant_type": "client_credential", "appid": APP, "secret": key}).to_string(),
            ),
        ),
        (
            "POST",
            format!("/cgi-bin/stable_token?appid={APP}"),
            Some(
                json!({"grant_type": "client_credential", "secret": key, "force_refresh": false})
                    .to_string(),
            ),
        ),
        (
            "POST",
            "/cgi-bin/stable_token".to_owned(),
            Some(format!("secret={escaped}&appid={APP}&grant_type=client_credential")),
        ),
    ] {
        let answer = send(&world, method, &path, body.as_deref()).await;
        let body = answer.json();
        assert_eq!(answer.status, 200, "{answer:?}");
        assert_eq!(answer.header("content-type"), Some("application/json; encoding=utf-8"));
        assert_eq!(body["expires_in"], 7200, "{body}");
        let token = body["access_token"].as_str().unwrap();
        assert!(token.starts_with("xt_") && token.len() <= 512, "{token}");
        assert!(
            token.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-'),
            "{token}"
        );
        let read =
            send(&world, "GET", &format!("{INFO}?access_token={token}&openid={OPENID}"), None)
                .await;
        assert_eq!(read.json()["openid"], OPENID, "{read:?}");
    }
    // The app's secret has stayed here, and WeChat was asked for one token only.
    assert_eq!(world.calls("/cgi-bin/stable_token") + world.calls("/cgi-bin/token"), 1);
}

#[tokio::test(start_paused = true)]
async fn what_is_wrong_with_a_request_for_a_token() {
    let world = World::new().await;
    let key_here = &world.key;
    let other =
        world.add_key("other", [Permission::Proxy], Apps::Only([OTHER.to_owned()].into())).await;
    let reader = key(&world, "reader", &[Permission::Token], &[]).await;
    let of = |appid: &str, secret: &str| {
        format!("grant_type=client_credential&appid={appid}&secret={secret}")
    };
    let rows = [
        ("grant_type=client_credential".to_owned(), 41002, "appid missing"),
        (format!("appid={APP}&grant_type=client_credential"), 41004, "appsecret missing"),
        (of("", key_here), 41002, "appid missing"),
        (of(APP, ""), 41004, "appsecret missing"),
        (of(APP, "xk_unknown"), 40125, "invalid appsecret"),
        (of(APP, SECRET), 40125, "invalid appsecret"),
        (of("wx0000000000000000", key_here), 40013, "invalid appid"),
        // An app that is there, and one that is not, look the same to a key that reaches neither.
        (of(APP, &other), 40013, "invalid appid"),
        (of(ALIAS, key_here), 40013, "invalid appid"),
        (of(APP, &reader), 40125, "invalid appsecret"),
        (format!("appid={APP}&secret={key_here}"), 40002, "invalid grant_type"),
        (
            format!("appid={APP}&secret={key_here}&grant_type=authorization_code"),
            40002,
            "invalid grant_type",
        ),
    ];
    for (query, code, words) in rows {
        for (method, path, body) in [
            ("GET", format!("/cgi-bin/token?{query}"), None),
            ("POST", "/cgi-bin/stable_token".to_owned(), Some(query.as_str())),
        ] {
            let answer = send(&world, method, &path, body).await;
            check_refusal(&answer, code, words);
            let text = String::from_utf8_lossy(&answer.body).into_owned();
            assert!(
                !text.contains("xk_u")
                    && !text.contains(SECRET)
                    && !text.contains(key_here.as_str()),
                "{text}"
            );
        }
    }
    // Nothing that makes an SDK fetch again for ever.
    let large = format!("{{\"appid\":\"{}\"}}", "a".repeat(70_000));
    for (query, body, code, words) in [
        (format!("{}&appid={APP}", of(APP, key_here)), None, 40013, "invalid appid"),
        (format!("{}&secret=x", of(APP, key_here)), None, 40125, "invalid appsecret"),
        (String::new(), Some("{"), 41002, "appid missing"),
        (String::new(), Some(large.as_str()), -1, "system error"),
    ] {
        let path = format!("/cgi-bin/stable_token?{query}");
        check_refusal(&send(&world, "POST", &path, body).await, code, words);
    }
}

/// Ways to write the paths that mint, reset or tell credentials.
fn spellings(path: &str) -> Vec<String> {
    let (above, last) = path.rsplit_once('/').unwrap();
    let first = &last[..1];
    let rest = &last[1..];
    let code = first.as_bytes()[0];
    vec![
        path.to_owned(),
        path.to_uppercase(),
        format!("{above}/{}{rest}", first.to_uppercase()),
        format!("{above}/%{code:02x}{rest}"),
        format!("{above}/%{code:02X}{rest}"),
        format!("{above}/%25{code:02x}{rest}"),
        format!("{above}//{last}"),
        format!("/{path}"),
        format!("{above}/./{last}"),
        format!("{above}/x/../{last}"),
        format!("{above}/%2e/{last}"),
        format!("{above}/x/%2e%2e/{last}"),
        format!("{above}%2f{last}"),
        format!("{above}\\{last}"),
        format!("{path}/"),
        format!("{path}/."),
        format!("{path}/.."),
        format!("{path};a=b"),
        format!("{path}%20"),
        format!("{path}%00"),
        format!("{path}%3fa"),
        format!("{path}%23"),
        format!("{path}%5c"),
        format!("/x/..{path}"),
    ]
}

#[tokio::test(start_paused = true)]
async fn no_spelling_of_a_path_gets_a_secret_or_a_token_out() {
    let world = World::new().await;
    let sdk = Sdk::of(&world).await;
    sdk.call("GET", INFO, &format!("&openid={OPENID}"), None).await;
    let real = world.token().await["access_token"].as_str().unwrap().to_owned();
    let key_here = &world.key;
    let token = sdk.token();
    let minted = || {
        [
            "/cgi-bin/token",
            "/cgi-bin/stable_token",
            "/sns/oauth2/access_token",
            "/sns/jscode2session",
        ]
        .map(|path| world.sim.calls().count(path, None, None))
    };
    let before = minted();
    for path in [
        "/cgi-bin/token",
        "/cgi-bin/stable_token",
        "/cgi-bin/component/api_component_token",
        "/cgi-bin/component/api_authorizer_token",
        "/cgi-bin/gettoken",
        "/cgi-bin/openapi/rid/get",
        "/cgi-bin/clear_quota/v2",
        "/sns/oauth2/access_token",
        "/sns/oauth2/refresh_token",
        "/sns/jscode2session",
        "/sns/userinfo",
    ] {
        for spelling in spellings(path) {
            for query in [
                format!(
                    "access_token={token}&appid={APP}&secret={key_here}&grant_type=client_credential&code=x"
                ),
                format!("access_token={token}"),
                format!("access%5Ftoken={token}&openid={OPENID}"),
                format!("appid={APP}&grant_type=client_credential&code=x&access_token={token}"),
                format!("access_token={real}"),
            ] {
                for start in ["", "/wx/shop"] {
                    let target = format!("{start}{spelling}?{query}");
                    let answer = world
                        .ask("GET", &target, (!start.is_empty()).then_some(key_here), None)
                        .await;
                    let seen =
                        format!("{}\n{}", answer.head, String::from_utf8_lossy(&answer.body));
                    assert!(!seen.contains(&real), "{target}: {seen}");
                    assert!(!seen.contains(SECRET), "{target}: {seen}");
                    let answered_pass = seen.contains("xt_") && path.ends_with("token");
                    let carried = answer.status == 200 && errcode_of(&answer) == 0;
                    assert!(!carried || answered_pass, "{target}: {seen}");
                }
            }
        }
    }
    assert_eq!(minted(), before);
}

fn errcode_of(answer: &Answer) -> i64 {
    serde_json::from_slice::<Value>(&answer.body)
        .ok()
        .and_then(|body| body["errcode"].as_i64())
        .unwrap_or(0)
}

#[tokio::test(start_paused = true)]
async fn no_spelling_slips_past_a_permission() {
    let world = World::new().await;
    let narrow =
        key(&world, "narrow", &[Permission::Proxy], &["/cgi-bin/user/get", "/cgi-bin/tags/*"])
            .await;
    let sdk = Sdk::with_key(&world, &narrow).await;
    let before = world.calls(INFO);
    for path in spellings(INFO) {
        for start in ["", "/cgi-bin/tags/..", "/cgi-bin/tags/%2e%2e/..", "/cgi-bin/user/get/.."] {
            let path = format!("{start}{path}");
            let answer = sdk.call("GET", &path, &format!("&openid={OPENID}"), None).await;
            assert!([40066, 48001].contains(&errcode(&answer)), "{path}: {answer:?}");
            let said = answer.json()["errmsg"].as_str().unwrap().to_owned();
            assert!(said.contains("(xinfu: "), "{path} was carried: {said}");
            let answer = world
                .ask("GET", &format!("/wx/shop{path}?openid={OPENID}"), Some(&narrow), None)
                .await;
            assert!([400, 403].contains(&answer.status), "{path}: {answer:?}");
        }
    }
    check_refusal(&sdk.call("GET", INFO, "", None).await, 48001, "api unauthorized");
    assert_eq!(world.calls(INFO), before);
    assert_eq!(errcode(&sdk.call("GET", "/cgi-bin/user/get", "", None).await), 0);
}

#[tokio::test(start_paused = true)]
async fn tokens_that_do_not_work() {
    let world = World::new().await;
    let sdk = Sdk::of(&world).await;
    sdk.call("GET", INFO, &format!("&openid={OPENID}"), None).await;
    let before = world.calls(INFO);
    let real = world.token().await["access_token"].as_str().unwrap().to_owned();
    let pass_here = sdk.token();
    let mut flipped = pass_here.clone().into_bytes();
    let last = flipped.len() - 3;
    flipped[last] = if flipped[last] == b'A' { b'B' } else { b'A' };
    let flipped = String::from_utf8(flipped).unwrap();
    const INVALID: &str = "invalid credential, access_token is invalid or not latest";
    let web = web_grant(&world).await;
    for (token, code, words) in [
        ("", 41001, "access_token missing"),
        (real.as_str(), 40001, INVALID),
        (flipped.as_str(), 40001, INVALID),
        (&pass_here[..pass_here.len() - 1], 40001, INVALID),
        ("xt_", 40001, INVALID),
        (world.key.as_str(), 40001, INVALID),
        (web["access_token"].as_str().unwrap(), 40001, INVALID),
        (web["refresh_token"].as_str().unwrap(), 40001, INVALID),
    ] {
        for method in ["GET", "POST", "PUT", "DELETE"] {
            let answer = world
                .ask(method, &format!("{INFO}?openid={OPENID}&access_token={token}"), None, None)
                .await;
            check_refusal(&answer, code, words);
        }
    }
    check_refusal(&world.ask("GET", INFO, None, None).await, 41001, "access_token missing");
    let doubled = format!("{INFO}?access_token={pass_here}&access%5ftoken={pass_here}");
    check_refusal(&world.ask("GET", &doubled, None, None).await, 47001, "data format error");
    let key_in_it = format!("&secret={}", world.key);
    check_refusal(
        &sdk.call("GET", "/cgi-bin/some/thing", &key_in_it, None).await,
        47001,
        "data format error",
    );
    assert_eq!(world.calls(INFO), before);

    // A pass says 7200 seconds, and is honoured longer than any SDK keeps it.
    pass(7200).await;
    assert_eq!(errcode(&sdk.call("GET", INFO, &format!("&openid={OPENID}"), None).await), 0);
    pass(899).await;
    assert_eq!(errcode(&sdk.call("GET", INFO, &format!("&openid={OPENID}"), None).await), 0);
    pass(2).await;
    check_refusal(&sdk.call("GET", INFO, "", None).await, 42001, "access_token expired");
}

#[tokio::test(start_paused = true)]
async fn a_revoked_key_takes_its_passes_and_web_tokens_with_it() {
    let world = World::new().await;
    let mortal = key(&world, "mortal", &[Permission::Proxy, Permission::Oauth], &[]).await;
    let sdk = Sdk::with_key(&world, &mortal).await;
    let grant = web_grant_with(&world, &mortal).await;
    let profile =
        |token: &str| format!("/sns/userinfo?access_token={token}&openid={OPENID}&lang=zh_CN");
    let token = grant["access_token"].as_str().unwrap();
    assert_eq!(errcode(&world.ask("GET", &profile(token), None, None).await), 0);
    assert_eq!(errcode(&sdk.call("GET", INFO, &format!("&openid={OPENID}"), None).await), 0);

    world.app.broker.revoke_key("mortal", &Actor::System).await.unwrap();
    pass(2).await;
    assert_eq!(errcode(&sdk.call("GET", INFO, &format!("&openid={OPENID}"), None).await), 40001);
    assert_eq!(errcode(&world.ask("GET", &profile(token), None, None).await), 40001);
    check_refusal(&sdk.fetch().await, 40125, "invalid appsecret");
    let refresh = grant["refresh_token"].as_str().unwrap();
    let renew = format!(
        "/sns/oauth2/refresh_token?appid={APP}&grant_type=refresh_token&refresh_token={refresh}"
    );
    check_refusal(&world.ask("GET", &renew, None, None).await, 40001, "invalid credential");
}

#[tokio::test(start_paused = true)]
async fn a_key_that_is_revoked_while_its_request_waits_gets_nothing() {
    // The first token comes after 700 ms.
    let world = async || {
        let world = World::with(Setup { lazy: true, ..Setup::default() }).await;
        let slow = FaultKind::LatencyBefore { millis: 700 };
        world.sim.set_fault(Fault::new(slow).on("/cgi-bin/stable_token"));
        world
    };
    let revoke = async |world: &World| {
        tokio::time::sleep(Duration::from_millis(300)).await;
        world.app.broker.revoke_key("mortal", &Actor::System).await.unwrap();
    };

    // A call that waits for the app's token is not made.
    let (called, query) = (world().await, format!("&openid={OPENID}"));
    let mortal = key(&called, "mortal", &[Permission::Proxy], &[]).await;
    let sdk = Sdk::with_key(&called, &mortal).await;
    let (answer, ()) = tokio::join!(sdk.call("GET", INFO, &query, None), revoke(&called));
    check_refusal(&answer, 40001, "invalid credential");
    assert_eq!(called.calls(INFO), 0);

    // Nor does a key that may see the token get it.
    let asked = world().await;
    let rights = Rights { permissions: [Permission::Token].into(), reveal: true, ..Rights::all() };
    let mortal = asked.app.broker.add_key("mortal", rights, None, &Actor::System).await.unwrap();
    let secret = mortal.expose();
    let path = format!("/cgi-bin/token?grant_type=client_credential&appid={APP}&secret={secret}");
    let (answer, ()) = tokio::join!(send(&asked, "GET", &path, None), revoke(&asked));
    check_refusal(&answer, 40125, "invalid appsecret");
}

async fn web_grant(world: &World) -> Value {
    web_grant_with(world, &world.key).await
}

/// What an SDK gets for a user's code.
async fn web_grant_with(world: &World, key: &str) -> Value {
    let code = world.code(Scope::UserInfo);
    let path = format!(
        "/sns/oauth2/access_token?appid={APP}&secret={key}&code={code}&grant_type=authorization_code"
    );
    let answer = world.ask("GET", &path, None, None).await;
    assert_eq!(answer.header("content-type"), Some("text/plain"));
    let grant = answer.json();
    assert_eq!(grant["openid"], OPENID, "{grant}");
    grant
}

#[tokio::test(start_paused = true)]
async fn a_users_tokens_are_wrapped_and_unwrapped() {
    let world = World::new().await;
    let grant = web_grant(&world).await;
    let token = grant["access_token"].as_str().unwrap();
    let refresh = grant["refresh_token"].as_str().unwrap();
    for (wrapped, prefix) in [(token, "xw_"), (refresh, "xr_")] {
        assert!(wrapped.starts_with(prefix) && wrapped.len() <= 512, "{wrapped}");
    }
    assert_eq!(grant["scope"], "snsapi_userinfo");
    assert_eq!(grant["unionid"], "oUNION");
    assert_eq!(grant["expires_in"], 7200);

    let get = async |path: &str| world.ask("GET", path, None, None).await;
    let profile =
        get(&format!("/sns/userinfo?access_token={token}&openid={OPENID}&lang=zh_CN")).await;
    assert_eq!(profile.json()["nickname"], "小明", "{profile:?}");
    assert_eq!(errcode(&get(&format!("/sns/auth?access_token={token}&openid={OPENID}")).await), 0);
    let renew = |appid: &str, token: &str| {
        format!(
            "/sns/oauth2/refresh_token?appid={appid}&grant_type=refresh_token&refresh_token={token}"
        )
    };
    let renewed = get(&renew(APP, refresh)).await.json();
    assert_eq!(renewed["openid"], OPENID, "{renewed}");
    let again = renewed["access_token"].as_str().unwrap();
    let profile = get(&format!("/sns/userinfo?access_token={again}&openid={OPENID}")).await;
    assert_eq!(profile.json()["openid"], OPENID);
    // A POST with a form does as well.
    let form = format!("appid={APP}&grant_type=refresh_token&refresh_token={refresh}");
    let posted = world.ask("POST", "/sns/oauth2/refresh_token", None, Some(&form)).await;
    assert_eq!(posted.json()["openid"], OPENID, "{posted:?}");

    // The kinds are not mixed, and WeChat is not asked.
    let seen = || {
        ["/sns/userinfo", "/sns/oauth2/refresh_token", "/sns/auth", INFO]
            .map(|path| world.sim.calls().count(path, None, None))
    };
    let before = seen();
    let sdk = Sdk::of(&world).await;
    let real = world.token().await["access_token"].as_str().unwrap().to_owned();
    for wrong in [&sdk.token(), refresh, &real, "xw_", &token[..token.len() - 1]] {
        for path in ["/sns/userinfo", "/sns/auth", "/sns/some/thing"] {
            let answer = get(&format!("{path}?access_token={wrong}&openid={OPENID}")).await;
            check_refusal(
                &answer,
                40001,
                "invalid credential, access_token is invalid or not latest",
            );
            assert_eq!(answer.header("content-type"), Some("text/plain"));
            assert!(answer.json()["errmsg"].as_str().unwrap().contains(", rid: "));
        }
    }
    for wrong in [token, &sdk.token(), "xr_"] {
        check_refusal(&get(&renew(APP, wrong)).await, 40001, "invalid credential");
    }
    check_refusal(&get(&renew(OTHER, refresh)).await, 40013, "invalid appid");
    assert_eq!(seen(), before);

    // A web token that WeChat refuses says nothing about the app's.
    world.sim.revoke_grant(APP, OPENID, sim::Revocation::Revoked).unwrap();
    let generation = world.token().await["generation"].clone();
    let refused = get(&format!("/sns/userinfo?access_token={again}&openid={OPENID}")).await;
    assert_eq!(errcode(&refused), 40001, "{refused:?}");
    assert_eq!(world.token().await["generation"], generation);
}

#[tokio::test(start_paused = true)]
async fn a_code_goes_to_wechat_once_whichever_way_it_is_brought() {
    let world = World::new().await;
    let exchange = |code: &str| {
        format!(
            "/sns/oauth2/access_token?appid={APP}&secret={}&code={code}&grant_type=authorization_code",
            world.key
        )
    };
    let code = world.code(Scope::Base);
    assert_eq!(errcode(&world.ask("GET", &exchange(&code), None, None).await), 0);
    check_refusal(&world.ask("GET", &exchange(&code), None, None).await, 40163, "code been used");
    assert_eq!(world.exchange_code(&code, "browser").await.status, 409);
    let code = world.code(Scope::Base);
    assert_eq!(world.exchange_code(&code, "browser").await.status, 200);
    check_refusal(&world.ask("GET", &exchange(&code), None, None).await, 40163, "code been used");
    assert_eq!(world.calls("/sns/oauth2/access_token"), 2);
    // WeChat's own refusal is told in its own words.
    let refused = world.ask("GET", &exchange("nonsense"), None, None).await;
    check_refusal(&refused, 40029, "invalid code");
}

#[tokio::test(start_paused = true)]
async fn what_needs_a_permission_of_its_own() {
    let world = World::new().await;
    let plain = key(&world, "plain", &[Permission::Proxy, Permission::Oauth], &[]).await;
    let js_code = world.sim.issue_js_code(MINI, OPENID).unwrap();
    let session = |key: &str| {
        format!(
            "/sns/jscode2session?appid={MINI}&secret={key}&js_code={js_code}&grant_type=authorization_code"
        )
    };
    let everywhere =
        world.add_key("everywhere", [Permission::Proxy, Permission::Oauth], Apps::All).await;
    check_refusal(
        &world.ask("GET", &session(&everywhere), None, None).await,
        40125,
        "invalid appsecret",
    );
    let answer = world.ask("GET", &session(&world.key), None, None).await;
    assert_eq!(answer.json()["openid"], OPENID, "{answer:?}");
    assert!(answer.json()["session_key"].is_string());
    assert_eq!(answer.header("content-type"), Some("text/plain"));

    let clear = |key: &str| json!({"appid": APP, "appsecret": key}).to_string();
    let path = "/cgi-bin/clear_quota/v2";
    check_refusal(
        &world.ask("POST", path, None, Some(&clear(&plain))).await,
        40125,
        "invalid appsecret",
    );
    let sdk = Sdk::with_key(&world, &plain).await;
    let body = json!({"appid": APP}).to_string();
    check_refusal(
        &sdk.call("POST", "/cgi-bin/clear_quota", "", Some(&body)).await,
        48001,
        "api unauthorized",
    );
    assert_eq!(world.calls(path) + world.calls("/cgi-bin/clear_quota"), 0);
    let cleared = world.ask("POST", path, None, Some(&clear(&world.key))).await;
    assert_eq!(cleared.json(), json!({"errcode": 0, "errmsg": "ok"}));
    let cleared = Sdk::of(&world).await.call("POST", "/cgi-bin/clear_quota", "", Some(&body)).await;
    assert_eq!(errcode(&cleared), 0, "{cleared:?}");
}

#[tokio::test(start_paused = true)]
async fn tickets_are_the_brokers() {
    let world = World::new().await;
    let sdk = Sdk::of(&world).await;
    for _ in 0..3 {
        let answer = sdk.call("GET", "/cgi-bin/ticket/getticket", "&type=jsapi", None).await.json();
        assert_eq!((&answer["errcode"], &answer["errmsg"]), (&json!(0), &json!("ok")), "{answer}");
        assert!(world.sim.ticket_works(APP, answer["ticket"].as_str().unwrap()));
        assert_eq!(answer["expires_in"], 7200);
    }
    assert_eq!(world.calls("/cgi-bin/ticket/getticket"), 1);
    let odd = sdk.call("GET", "/cgi-bin/ticket/getticket", "&type=2", None).await;
    check_refusal(&odd, 40097, "invalid args");
}

#[tokio::test(start_paused = true)]
async fn a_forced_refresh_is_a_report() {
    let world = World::new().await;
    let force = json!({"grant_type": "client_credential", "appid": APP, "secret": world.key, "force_refresh": true}).to_string();
    let generation = world.token().await["generation"].clone();
    for _ in 0..5 {
        assert_eq!(
            errcode(&world.ask("POST", "/cgi-bin/stable_token", None, Some(&force)).await),
            0
        );
    }
    // It works, so it stays; and it was looked at once.
    assert_eq!(world.token().await["generation"], generation);
    assert_eq!(world.calls("/cgi-bin/get_api_domain_ip"), 1);
    pass(11).await;
    world.sim.foreign_refresh(APP, Issuer::Stable, true).unwrap();
    assert_eq!(errcode(&world.ask("POST", "/cgi-bin/stable_token", None, Some(&force)).await), 0);
    assert_ne!(world.token().await["generation"], generation);
}

#[tokio::test(start_paused = true)]
async fn the_proxy_for_services_that_know_us() {
    let world = World::new().await;
    let answer = world.get(&format!("/wx/shop{INFO}?openid={OPENID}&access_token=whatever")).await;
    assert_eq!(answer.json()["openid"], OPENID, "{answer:?}");
    let body = json!({"user_list": [{"openid": OPENID}]}).to_string();
    let batch = world.post(&format!("/wx/{APP}/cgi-bin/user/info/batchget"), &body).await;
    assert_eq!(batch.json()["user_info_list"][0]["openid"], OPENID, "{batch:?}");
    // What WeChat says is passed on, its refusals too.
    let refused = world.get(&format!("/wx/shop{INFO}?openid=nobody")).await;
    assert_eq!(errcode(&refused), 40003, "{refused:?}");

    use server::http::ProblemType::{AppNotFound, Forbidden, Invalid, Unauthorized};
    let ask = async |path: &str, key: Option<&str>| world.ask("GET", path, key, None).await;
    ask(&format!("/wx/shop{INFO}"), None).await.check_problem(Unauthorized);
    ask(&format!("/wx/shop{INFO}"), Some("xk_no")).await.check_problem(Unauthorized);
    world.get(&format!("/wx/nowhere{INFO}")).await.check_problem(AppNotFound);
    world.get("/wx/").await.check_problem(AppNotFound);
    world.get("/wx/shop").await.check_problem(Invalid);
    world.get("/wx/shop/").await.check_problem(Invalid);
    world.get("/wx/shop//cgi-bin/user/info").await.check_problem(Invalid);
    world
        .get(&format!("/wx/shop{INFO}?access_token=a&access_token=b"))
        .await
        .check_problem(Invalid);
    world.get(&format!("/wx/shop{INFO}?secret={}", world.key)).await.check_problem(Invalid);
    let pointed = world.get("/wx/shop/sns/userinfo").await.check_problem(Forbidden);
    assert!(pointed["detail"].as_str().unwrap().contains("/v1/apps/{app}/grants"), "{pointed}");
    world.get("/wx/shop/cgi-bin/token").await.check_problem(Forbidden);
    let reader = key(&world, "reader", &[Permission::Token], &[]).await;
    ask(&format!("/wx/shop{INFO}"), Some(&reader)).await.check_problem(Forbidden);
    let narrow = key(&world, "narrow", &[Permission::Proxy], &["/cgi-bin/menu/*"]).await;
    ask(&format!("/wx/shop{INFO}"), Some(&narrow)).await.check_problem(Forbidden);
    ask(&format!("/wx/{OTHER}{INFO}"), Some(&narrow)).await.check_problem(AppNotFound);
}
