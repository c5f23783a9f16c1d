//! Each fault, and how often it falls.

use std::{io, time::Duration};

use serde_json::json;
use sim::{
    BadNumber, Dirt, Fault, FaultKind, Issuer, Options, Scope, Suffix, Switches, TokenState,
    UserSpec,
};
use tokio::time::Instant;

use crate::harness::{APP, NOON, OTHER, SECRET, World, ask, classic_target, pass};

const TOKEN: &str = "/cgi-bin/token";

#[tokio::test(start_paused = true)]
async fn latency_stands_before_or_after_the_mint() {
    let world = World::new().await;
    world.sim.set_fault(Fault::new(FaultKind::LatencyBefore { millis: 15_000 }).times(1));
    world.sim.set_fault(Fault::new(FaultKind::LatencyAfter { millis: 5_000 }).times(1));
    let begin = Instant::now();
    let token = world.classic().await;
    // A timer of tokio's is at most one millisecond late.
    assert_eq!(begin.elapsed().as_secs(), 20);
    let call = &world.sim.calls().log[0];
    assert_eq!(call.sent_at, NOON * 1000);
    assert_eq!((call.decided_at - call.sent_at) / 1000, 15);
    assert_eq!((call.answered_at.unwrap() - call.decided_at) / 1000, 5);
    assert_eq!(call.faults, ["latency_before", "latency_after"]);
    pass(7194).await;
    assert_eq!(world.sim.token_state(APP, &token), TokenState::Live);
    pass(1).await;
    assert_eq!(world.sim.token_state(APP, &token), TokenState::Expired);
}

#[tokio::test(start_paused = true)]
async fn a_call_goes_on_without_its_caller() {
    let world = World::new().await;
    world.sim.set_fault(Fault::new(FaultKind::LatencyBefore { millis: 10_000 }).times(1));
    let given_up = tokio::time::timeout(Duration::from_secs(5), world.classic()).await;
    assert!(given_up.is_err());
    assert_eq!(world.sim.current_tokens(APP).classic, None);
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert!(world.sim.current_tokens(APP).classic.is_some());
    world.stop().await;
}

#[tokio::test(start_paused = true)]
async fn connections_are_reset_before_or_after_the_mint() {
    let world = World::new().await;
    let call = async || {
        let error = ask(world.api, "GET", &classic_target(APP, SECRET), b"").await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        world.sim.calls().log.pop().unwrap()
    };
    world.sim.set_fault(Fault::new(FaultKind::ResetBefore {}).on(TOKEN).times(1));
    let entry = call().await;
    assert_eq!((entry.errcode, entry.answered_at), (None, None));
    assert_eq!(world.sim.current_tokens(APP).classic, None);

    world.sim.set_fault(Fault::new(FaultKind::ResetAfter {}).on(TOKEN).times(1));
    let entry = call().await;
    assert_eq!((entry.errcode, entry.answered_at), (Some(0), None));
    assert!(world.sim.current_tokens(APP).classic.is_some());
    let calls = world.sim.calls();
    assert_eq!(calls.count(TOKEN, Some(APP), None), 2);
    assert_eq!(calls.count(TOKEN, Some(APP), Some(0)), 1);
    world.classic().await;
}

#[tokio::test(start_paused = true)]
async fn codes_come_in_bursts() {
    let world = World::new().await;
    let refuse = |code, ip, message: Option<&str>| {
        let message = message.map(str::to_owned);
        world.sim.set_fault(Fault::new(FaultKind::Errcode { code, ip, message }).times(2));
    };
    for (code, text) in [
        (-1, "system error rid: "),
        (45011, "api minute-quota reach limit, must slower, retry next minute rid: "),
        (45009, "reach max api daily quota limit, could get access_token by "),
        (40164, "invalid ip 127.0.0.1 ipv6 ::ffff:127.0.0.1, not in whitelist rid: "),
    ] {
        refuse(code, None, None);
        for _ in 0..2 {
            let answer = world.classic_of(APP).await;
            assert_eq!((answer.status, answer.errcode()), (200, code));
            assert!(answer.errmsg().starts_with(text), "{}", answer.errmsg());
        }
        world.classic().await;
    }
    refuse(40164, Some([116, 25, 45, 231].into()), None);
    let text = world.classic_of(APP).await.errmsg();
    let begin = "invalid ip 116.25.45.231 ipv6 ::ffff:116.25.45.231, not in whitelist rid: ";
    assert!(text.starts_with(begin), "{text}");
    world.sim.clear_faults();
    refuse(99999, None, Some("new trouble"));
    assert!(world.classic_of(APP).await.errmsg().starts_with("new trouble rid: "));
}

#[tokio::test(start_paused = true)]
async fn advice_comes_only_where_wechat_gives_it() {
    let world = World::new().await;
    let token = world.classic().await;
    let advised = async |code, message: Option<&str>, path: &str| {
        world.sim.clear_faults();
        let message = message.map(str::to_owned);
        world.sim.set_fault(Fault::new(FaultKind::Errcode { code, ip: None, message }));
        let answer = match path {
            TOKEN => world.classic_of(APP).await,
            "/cgi-bin/stable_token" => world.stable(false).await,
            other => world.get(&format!("{other}?access_token={token}")).await,
        };
        assert_eq!(answer.errcode(), code);
        answer.errmsg().contains("getStableAccessToken")
    };
    assert!(advised(40001, None, "/cgi-bin/user/get").await);
    assert!(advised(45009, None, TOKEN).await);
    assert!(!advised(40001, None, TOKEN).await);
    assert!(!advised(40001, None, "/cgi-bin/stable_token").await);
    assert!(!advised(40001, Some("mine"), "/cgi-bin/user/get").await);
    assert!(!advised(45009, Some("mine"), TOKEN).await);
}

#[tokio::test(start_paused = true)]
async fn used_up_faults_are_shown_but_not_for_ever() {
    let world = World::new().await;
    let code = FaultKind::Errcode { code: -1, ip: None, message: None };
    let first = world.sim.set_fault(Fault::new(code.clone()).times(1));
    assert_eq!(world.classic_of(APP).await.errcode(), -1);
    world.classic().await;
    let shown = world.sim.faults();
    assert_eq!((shown.len(), shown[0].fault.count, shown[0].hits), (1, Some(0), 1));
    for _ in 0..1_000 {
        world.sim.set_fault(Fault::new(code.clone()).times(0));
    }
    let lasting = world.sim.set_fault(Fault::new(code.clone()).on("/cgi-bin/user/get"));
    let shown: Vec<u64> = world.sim.faults().iter().map(|one| one.id).collect();
    assert_eq!((shown.len(), shown[0], shown[1_000]), (1_001, first + 1, lasting));
    assert!(world.sim.remove_fault(first + 1) && !world.sim.remove_fault(first));
    world.classic().await;
}

#[tokio::test(start_paused = true)]
async fn somebody_mints_just_before_the_call() {
    let world = World::new().await;
    let token = world.classic().await;
    let mint = FaultKind::ForeignMint { issuer: Issuer::Classic, kill: true };
    world.sim.set_fault(Fault::new(mint).on("/cgi-bin/get_api_domain_ip").of(APP).times(1));
    assert_eq!(world.probe(&token).await, 40001);
    let log = world.sim.calls().log;
    assert_eq!(log[1].path, "(foreign)");
    assert_eq!((log[2].errcode, &log[2].faults[..]), (Some(40001), &["foreign_mint"][..]));
}

#[tokio::test(start_paused = true)]
async fn live_tokens_are_ended_early() {
    let world = World::new().await;
    let (classic, stable) = (world.classic().await, world.stable(false).await.token());
    let end = |issuer, sticky| {
        let kind = FaultKind::EarlyInvalidation { issuer, sticky };
        world.sim.set_fault(Fault::new(kind).on("/cgi-bin/get_api_domain_ip").times(1));
    };
    end(Some(Issuer::Stable), true);
    assert_eq!((world.probe(&stable).await, world.probe(&classic).await), (40001, 0));
    assert_eq!(world.stable(false).await.token(), stable, "handed out though dead");
    let forced = world.stable(true).await.token();
    assert_eq!(world.probe(&forced).await, 0);
    end(None, false);
    assert_eq!((world.probe(&forced).await, world.probe(&classic).await), (40001, 40001));
    let fresh = world.stable(false).await;
    assert_eq!(fresh.expires_in(), 7200);
    assert_eq!(world.probe(&fresh.token()).await, 0);
    assert_eq!(world.sim.current_tokens(APP).live, [fresh.token()]);
}

#[tokio::test(start_paused = true)]
async fn the_secret_is_reset() {
    let world = World::new().await;
    world.sim.set_fault(Fault::new(FaultKind::SecretReset {}).of(APP).times(1));
    world.classic_of(OTHER).await.token();
    assert_eq!(world.classic_of(APP).await.errcode(), 40125);
    world.sim.set_secret(APP, SECRET).unwrap();
    world.classic().await;
}

#[tokio::test(start_paused = true)]
async fn a_gateway_answers_instead() {
    let world = World::new().await;
    for processed in [false, true] {
        world.sim.set_fault(Fault::new(FaultKind::BadGateway { processed }).times(1));
        let answer = world.classic_of(APP).await;
        assert_eq!((answer.status, answer.header("content-type")), (502, Some("text/html")));
        assert!(answer.text().starts_with("<html>"));
        assert_eq!(world.sim.current_tokens(APP).classic.is_some(), processed);
        let entry = world.sim.calls().log.pop().unwrap();
        assert_eq!(entry.errcode, processed.then_some(0));
    }
}

#[tokio::test(start_paused = true)]
async fn bodies_break_off_or_are_empty() {
    let world = World::new().await;
    world.sim.set_fault(Fault::new(FaultKind::TruncatedBody {}).times(1));
    let half = world.classic_of(APP).await;
    let promised: usize = half.header("content-length").unwrap().parse().unwrap();
    assert_eq!(half.body.len(), promised / 2);
    assert!(half.text().starts_with(r#"{"access_token":"95_"#), "{}", half.text());

    world.sim.set_fault(Fault::new(FaultKind::EmptyBody {}).times(1));
    let empty = world.classic_of(APP).await;
    assert_eq!((empty.status, empty.body.len()), (200, 0));
    world.classic().await;
}

#[tokio::test(start_paused = true)]
async fn expires_in_is_absurd() {
    let world = World::new().await;
    for (bad, wanted) in [
        (BadNumber::String, Some(json!("7200"))),
        (BadNumber::Missing, None),
        (BadNumber::Zero, Some(json!(0))),
        (BadNumber::Negative, Some(json!(-7200))),
        (BadNumber::TooLarge, Some(json!(72_000))),
        (BadNumber::Huge, Some(json!(i64::MAX))),
    ] {
        world.sim.set_fault(Fault::new(FaultKind::ExpiresIn { r#as: bad }).times(1));
        let answer = world.classic_of(APP).await;
        answer.token();
        assert_eq!(answer.json().get("expires_in"), wanted.as_ref());
    }
}

#[tokio::test(start_paused = true)]
async fn strings_hold_what_json_forbids() {
    let world = World::new().await;
    let token = world.classic().await;
    let mut user = UserSpec::new(APP, "o1");
    user.remark = "朋友".into();
    world.sim.add_user(user).unwrap();
    let target = format!("/cgi-bin/user/info?access_token={token}&openid=o1");
    for (dirt, begin) in [
        (Dirt::Control, &b"\"remark\":\"\x08\n\x14\xe6"[..]),
        (Dirt::BrokenUtf8, &b"\"remark\":\"\xff\xe5\xb0\xe6"[..]),
        (Dirt::Both, &b"\"nickname\":\"\x08\n\x14\xff\xe5\xb0\""[..]),
    ] {
        world.sim.set_fault(Fault::new(FaultKind::DirtyStrings { r#as: dirt }).times(1));
        let body = world.get(&target).await.body;
        assert!(body.windows(begin.len()).any(|part| part == begin), "{dirt:?}");
        assert!(serde_json::from_slice::<serde_json::Value>(&body).is_err());
    }
    assert_eq!(world.get(&target).await.json()["remark"], "朋友");
}

#[tokio::test(start_paused = true)]
async fn headers_texts_and_clocks_are_wrong() {
    let world = World::new().await;
    let value = "text/plain".to_owned();
    world.sim.set_fault(Fault::new(FaultKind::ContentType { value }).times(1));
    assert_eq!(world.classic_of(APP).await.header("content-type"), Some("text/plain"));

    let suffix = Suffix::Hint;
    world.sim.set_fault(Fault::new(FaultKind::OldSuffix { suffix }).times(1));
    let answer = world.get("/cgi-bin/user/info?access_token=forged").await.errmsg();
    let begin = "invalid credential, access_token is invalid or not latest hint: [";
    assert!(answer.starts_with(begin) && answer.ends_with("!]"), "{answer}");

    world.sim.set_fault(Fault::new(FaultKind::ClockSkew { seconds: -3600 }).times(1));
    let answer = world.get("/cgi-bin/nothing").await;
    assert_eq!(answer.header("date"), Some("Thu, 17 Sep 2026 03:00:00 GMT"));
    let rid = format!(" rid: {:08x}-", NOON - 3600);
    assert!(answer.errmsg().contains(&rid), "{}", answer.errmsg());
}

#[tokio::test(start_paused = true)]
async fn old_tokens_survive() {
    let world = World::new().await;
    let survives = FaultKind::OldTokenSurvives { seconds: 3600 };
    world.sim.set_fault(Fault::new(survives).on(TOKEN));
    let first = world.classic().await;
    world.classic().await;
    world.classic().await;
    pass(3000).await;
    world.classic().await;
    pass(599).await;
    assert_eq!(world.probe(&first).await, 0);
    pass(1).await;
    assert_eq!(world.probe(&first).await, 40001);
}

#[tokio::test(start_paused = true)]
async fn faults_choose_path_and_app() {
    let world = World::new().await;
    let busy = || Fault::new(FaultKind::Errcode { code: -1, ip: None, message: None });
    world.sim.set_fault(busy().on("/cgi-bin/user/*").of(APP));
    let (mine, other) = (world.classic().await, world.classic_of(OTHER).await.token());
    let get = async |token: &str| {
        world.get(&format!("/cgi-bin/user/get?access_token={token}")).await.errcode()
    };
    assert_eq!((get(&mine).await, get(&other).await), (-1, 0));
    assert_eq!(world.probe(&mine).await, 0);
    assert_eq!(world.sim.faults()[0].hits, 1);
    assert!(world.sim.remove_fault(1) && !world.sim.remove_fault(1));
    assert_eq!(get(&mine).await, 0);
}

/// The errcodes of 200 calls of two apps under five kinds of chance, for a seed.
async fn fallen(seed: u64, interleaved: bool) -> [Vec<Vec<&'static str>>; 2] {
    let clock = clock::Clock::following_timers(clock::Timestamp::from_secs(NOON));
    let switches = Switches::default();
    let world = World::of(Options { switches, ..Options::new(clock, seed) }).await;
    for kind in [
        FaultKind::Errcode { code: -1, ip: None, message: None },
        FaultKind::ResetAfter {},
        FaultKind::BadGateway { processed: false },
        FaultKind::ForeignMint { issuer: Issuer::Classic, kill: false },
        FaultKind::EmptyBody {},
    ] {
        world.sim.set_fault(Fault::new(kind).likely(0.2));
    }
    let call = async |appid: &str| {
        let _ = ask(world.api, "GET", &classic_target(appid, SECRET), b"").await;
    };
    if interleaved {
        for _ in 0..100 {
            call(APP).await;
            call(OTHER).await;
        }
    } else {
        for appid in [OTHER, APP] {
            for _ in 0..100 {
                call(appid).await;
            }
        }
    }
    let calls = world.sim.calls();
    [APP, OTHER].map(|appid| {
        let of_app = calls.log.iter().filter(|one| one.appid == appid && one.path == TOKEN);
        of_app.map(|one| one.faults.clone()).collect()
    })
}

#[tokio::test(start_paused = true)]
async fn chance_follows_the_seed_alone() {
    let once = fallen(7, true).await;
    assert_eq!(once, fallen(7, true).await);
    assert_eq!(once, fallen(7, false).await, "whatever other apps do in between");
    assert_ne!(once, fallen(8, true).await);
    let hits = once[0].iter().filter(|faults| faults.contains(&"bad_gateway")).count();
    assert!((8..=32).contains(&hits), "a fifth of 100 calls, not {hits}");
    assert!(once[0].iter().any(|faults| faults.len() > 2), "several at once");
}

#[tokio::test(start_paused = true)]
async fn faults_fall_on_web_logins_too() {
    let world = World::new().await;
    world.sim.add_user(UserSpec::new(APP, "oUser").with_nickname("小明")).unwrap();
    let target = || {
        let code = world.sim.issue_code(APP, "oUser", Scope::UserInfo, false).unwrap();
        let grant = "grant_type=authorization_code";
        format!("/sns/oauth2/access_token?appid={APP}&secret={SECRET}&code={code}&{grant}")
    };
    let once = |kind| world.sim.set_fault(Fault::new(kind).on("/sns/*").of(APP).times(1));

    once(FaultKind::Errcode { code: -1, ip: None, message: None });
    let first = target();
    assert!(world.get(&first).await.errmsg().starts_with("system error, rid: "));
    once(FaultKind::Errcode { code: 40001, ip: None, message: None });
    assert!(!world.get(&first).await.errmsg().contains("getStableAccessToken"));
    once(FaultKind::ResetBefore {});
    ask(world.api, "GET", &first, b"").await.unwrap_err();
    assert_eq!(world.get(&first).await.errcode(), 0, "the code was not used up");
    let second = target();
    once(FaultKind::ResetAfter {});
    ask(world.api, "GET", &second, b"").await.unwrap_err();
    once(FaultKind::OldSuffix { suffix: Suffix::ReqId });
    let used = world.get(&second).await;
    assert_eq!(used.errcode(), 40163);
    assert!(used.errmsg().starts_with("code been used, hints: [ req_id: "), "{}", used.errmsg());
    once(FaultKind::ExpiresIn { r#as: BadNumber::String });
    let given = world.get(&target()).await.json();
    assert_eq!(given["expires_in"], "7200");
    once(FaultKind::SecretReset {});
    assert_eq!(world.get(&target()).await.errcode(), 40125);
    once(FaultKind::LatencyBefore { millis: 301_000 });
    world.sim.set_secret(APP, SECRET).unwrap();
    assert_eq!(world.get(&target()).await.errcode(), 40029, "it ran out meanwhile");

    let token = given["access_token"].as_str().unwrap();
    let userinfo = format!("/sns/userinfo?access_token={token}&openid=oUser");
    once(FaultKind::DirtyStrings { r#as: Dirt::Control });
    let dirty = world.get(&userinfo).await.body;
    assert!(dirty.windows(14).any(|part| part == b"\"nickname\":\"\x08\n"), "{dirty:?}");
    assert_eq!(world.get(&userinfo).await.json()["nickname"], "小明");
}

#[tokio::test(start_paused = true)]
async fn an_authorisation_ends_just_before_a_call() {
    let world = World::new().await;
    world.sim.add_user(UserSpec::new(APP, "oUser")).unwrap();
    for (kind, errcode) in [
        (FaultKind::GrantRevoked {}, 42007),
        (FaultKind::PasswordChanged {}, 42007),
        (FaultKind::WebTokenEnds {}, 0),
    ] {
        for path in ["/sns/userinfo", "/sns/oauth2/refresh_token"] {
            let code = world.sim.issue_code(APP, "oUser", Scope::UserInfo, false).unwrap();
            let query = format!("appid={APP}&secret={SECRET}&code={code}");
            let exchange =
                format!("/sns/oauth2/access_token?{query}&grant_type=authorization_code");
            let given = world.get(&exchange).await.json();
            let (web, token) = (given["access_token"].as_str().unwrap(), &given["refresh_token"]);
            let token = token.as_str().unwrap();
            let userinfo = format!("/sns/userinfo?access_token={web}&openid=oUser");
            let refresh = format!(
                "/sns/oauth2/refresh_token?appid={APP}&grant_type=refresh_token&refresh_token={token}"
            );
            world.sim.set_fault(Fault::new(kind.clone()).on(path).times(1));
            if path == "/sns/userinfo" {
                assert_eq!(world.get(&userinfo).await.errcode(), 40001);
            }
            let refreshed = world.get(&refresh).await;
            assert_eq!(refreshed.errcode(), errcode);
            assert!(errcode != 0 || refreshed.token() != web, "a dead one is replaced");
            assert_eq!(world.get(&userinfo).await.errcode(), 40001);
        }
    }
}
