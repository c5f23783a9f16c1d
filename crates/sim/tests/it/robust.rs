//! Bad requests and many requests.

use std::sync::Arc;

use clock::Clock;
use proptest::prelude::*;
use sim::{AppSpec, Options, Scope, Settle, UserSpec};
use tokio::task::JoinSet;

use crate::harness::{APP, SECRET, World, ask, exchange, stable_body};

#[tokio::test(start_paused = true)]
async fn any_bad_request_is_answered_as_wechat_would() {
    let world = World::new().await;
    let token = world.classic().await;
    for (method, target, body, code) in [
        ("GET", "/", "", 40066),
        ("GET", "//cgi-bin//token", "", 40066),
        ("PUT", "/cgi-bin/token", "", 43001),
        ("GET", "/cgi-bin/token?appid=%ff%00&&=&a=%zz", "", 40013),
        ("GET", "/cgi-bin/token?appid=&secret=", "", 41002),
        ("GET", "/cgi-bin/user/info?access_token=", "", 41001),
        ("GET", "/cgi-bin/user/info?access_token=%F0%9F%92%A9", "", 40001),
        ("POST", "/cgi-bin/stable_token", "{\"appid\":\"\\ud800\"}", 41002),
    ] {
        let answer = ask(world.api, method, target, body.as_bytes()).await.unwrap();
        assert_eq!((answer.status, answer.errcode()), (200, code), "{method} {target}");
    }
    let nested = "[".repeat(100_000);
    let batch = format!("/cgi-bin/user/info/batchget?access_token={token}");
    for (target, body, code) in [
        ("/cgi-bin/stable_token", nested.as_str(), 41002),
        (&batch, &nested, 47001),
        (&batch, &" ".repeat(900_000), 47001),
    ] {
        assert_eq!(world.post(target, body).await.errcode(), code);
    }
    world.stop().await;
}

/// A request to the web half: any of its paths, with parameters that are right, odd or absent.
fn web_request() -> impl Strategy<Value = (bool, String)> {
    let path = prop_oneof![
        Just("/sns/oauth2/access_token"),
        Just("/sns/oauth2/refresh_token"),
        Just("/sns/auth"),
        Just("/sns/userinfo"),
        Just("/sns/jscode2session"),
        Just("/connect/oauth2/authorize"),
        Just("/connect/qrconnect"),
        Just("/connect/qrconnect/wait"),
        Just("/connect/l/qrconnect"),
        Just("/connect/confirm"),
        Just("/connect/act-as-wechat"),
    ];
    let name = prop_oneof![
        Just("appid"),
        Just("secret"),
        Just("code"),
        Just("js_code"),
        Just("grant_type"),
        Just("refresh_token"),
        Just("access_token"),
        Just("openid"),
        Just("redirect_uri"),
        Just("response_type"),
        Just("scope"),
        Just("state"),
        Just("uuid"),
        Just("ticket"),
        Just("decision"),
        Just("to"),
        Just("lang"),
    ];
    let value = prop_oneof![
        Just(APP.to_owned()),
        Just(SECRET.to_owned()),
        Just("authorization_code".to_owned()),
        Just("snsapi_userinfo".to_owned()),
        Just("http%3A%2F%2Flocalhost%2F%0d%0a%23".to_owned()),
        Just("code".to_owned()),
        Just("allow".to_owned()),
        Just("CODE".to_owned()),
        "[%a-f0-9&=+;?/<>\"']{0,12}".prop_map(|text| text.replace(['"', '<', '>'], "%3C")),
        Just("a".repeat(5_000)),
    ];
    let pairs = proptest::collection::vec((name, value), 0..9);
    (any::<bool>(), path, pairs).prop_map(|(posts, path, pairs)| {
        let pairs: Vec<String> =
            pairs.iter().map(|(name, value)| format!("{name}={value}")).collect();
        (posts, format!("{path}?{}", pairs.join("&")))
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_request_of_a_login_is_answered(
        requests in proptest::collection::vec(web_request(), 1..40),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .build()
            .unwrap();
        runtime.block_on(async {
            let world = World::new().await;
            world.sim.add_app(AppSpec::new(APP, SECRET).with_loopback_redirects());
            world.sim.add_user(UserSpec::new(APP, "o1")).unwrap();
            let code = world.sim.issue_code(APP, "o1", Scope::Base, false).unwrap();
            for (posts, target) in requests {
                let target = target.replace("CODE", &code);
                let (path, form) = target.split_once('?').unwrap();
                let page = path.starts_with("/connect/");
                let answer = if posts {
                    world.post(if page { path } else { &target }, form).await
                } else {
                    world.get(&target).await
                };
                let fine = if page { &[200, 302, 405][..] } else { &[200] };
                assert!(fine.contains(&answer.status), "{target}: {answer:?}");
                if !page {
                    answer.json();
                }
            }
            world.stop().await;
        });
    }
}

#[tokio::test(start_paused = true)]
async fn a_body_without_end_is_cut_off() {
    let world = World::new().await;
    // Its length is a lie, so that the simulator has to stop reading by itself.
    let mut request = format!(
        "POST /cgi-bin/stable_token HTTP/1.1\r\nhost: sim\r\ncontent-length: {}\r\n\r\n",
        1u64 << 40
    )
    .into_bytes();
    request.resize(request.len() + (1 << 20) + 1, b' ');
    // Whether the answer outruns the reset of a connection with unread bytes is a matter of luck.
    if let Ok(answer) = exchange(world.api, &request).await {
        assert!(answer.starts_with(b"HTTP/1.1 200") || answer.is_empty());
    }
    let log = world.sim.calls().log;
    assert_eq!((log.len(), log[0].errcode), (1, Some(41002)));
}

#[tokio::test(start_paused = true)]
async fn garbage_is_no_request() {
    let world = World::new().await;
    for garbage in
        [&b"\0\xff\xfe\r\n\r\n"[..], b"GET\r\n\r\n", b"\x16\x03\x01\x02\0\x01\0\x01\xfc\r\n"]
    {
        let answer = exchange(world.api, garbage).await.unwrap_or_default();
        assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 400"), "{answer:?}");
    }
    world.classic().await;
    world.stop().await;
}

#[tokio::test(start_paused = true)]
async fn many_ask_at_once() {
    let world = World::new().await;
    let mut askers = JoinSet::new();
    for _ in 0..300 {
        let api = world.api;
        askers.spawn(async move {
            let body = stable_body(APP, SECRET, false);
            ask(api, "POST", "/cgi-bin/stable_token", body.as_bytes()).await.unwrap().token()
        });
    }
    let mut tokens: Vec<String> = askers.join_all().await;
    tokens.dedup();
    assert_eq!(tokens.len(), 1);
    assert_eq!(world.sim.calls().count("/cgi-bin/stable_token", Some(APP), Some(0)), 300);
}

#[tokio::test(start_paused = true)]
async fn shutdown_ends_calls_that_wait() {
    let world = World::new().await;
    let forever = sim::FaultKind::LatencyAfter { millis: u64::from(u32::MAX) };
    world.sim.set_fault(sim::Fault::new(forever));
    let mut askers = JoinSet::new();
    let api = world.api;
    askers.spawn(async move { ask(api, "GET", "/cgi-bin/token", b"").await });
    while world.sim.calls().log.is_empty() {
        tokio::task::yield_now().await;
    }
    world.stop().await;
    assert!(askers.join_next().await.unwrap().unwrap().is_err());
}

#[tokio::test]
#[should_panic(expected = "a task of the simulated WeChat panicked")]
async fn a_panic_ends_the_simulator() {
    let settle: Settle = Arc::new(|| panic!("a bug"));
    let options = Options { settle: Some(settle), ..Options::new(Clock::shifted(), 1) };
    let world = World::of(options).await;
    let advance = r#"{"seconds":1}"#;
    ask(world.control, "POST", "/sim/clock/advance", advance.as_bytes()).await.unwrap_err();
    world.stop().await;
}
