//! Followers.

use serde_json::{Value, json};
use server::http::ProblemType;
use sim::{Fault, FaultKind, Issuer, UserSpec};

use crate::harness::{APP, OPENID, World};

#[tokio::test(start_paused = true)]
async fn a_follower_is_read() {
    let world = World::new().await;
    let body = world.get(&format!("/v1/apps/{APP}/users/{OPENID}?lang=en")).await.json();
    assert_eq!(body["openid"], OPENID);
    assert_eq!(body["subscribe"], true);
    assert_eq!(body["unionid"], "oUNION");
    let stranger = "oSTRANGERSTRANGERSTRANGER000";
    world.sim.add_user(UserSpec::new(APP, stranger).not_following()).unwrap();
    let body = world.get(&format!("/v1/apps/{APP}/users/{stranger}")).await.json();
    assert_eq!((&body["subscribe"], &body["unionid"]), (&json!(false), &Value::Null));
}

#[tokio::test(start_paused = true)]
async fn a_wrong_openid_is_named() {
    let world = World::new().await;
    let unknown = "oNOBODYNOBODYNOBODYNOBODY000";
    let answer = world.get(&format!("/v1/apps/{APP}/users/{unknown}")).await;
    let problem = answer.check_problem(ProblemType::Invalid);
    assert_eq!(
        (&problem["field"], &problem["wechat"]["errcode"]),
        (&json!("openid"), &json!(40003))
    );
    // What cannot be an openid is not asked for.
    let calls = world.calls("/cgi-bin/user/info");
    for bad in ["%20", "a%2fb", "%00", "a%22", &"o".repeat(65), "%E5%BE%AE", "a%zzb"] {
        let answer = world.get(&format!("/v1/apps/{APP}/users/{bad}")).await;
        assert_eq!(answer.check_problem(ProblemType::Invalid)["field"], "openid", "{bad}");
    }
    let answer = world.get(&format!("/v1/apps/{APP}/users/{OPENID}?lang=fr")).await;
    assert_eq!(answer.check_problem(ProblemType::Invalid)["field"], "lang");
    assert_eq!(world.calls("/cgi-bin/user/info"), calls);
}

#[tokio::test(start_paused = true)]
async fn many_followers_in_the_order_asked() {
    let world = World::new().await;
    let openids: Vec<_> = (0..250).rev().map(|n| format!("oBATCH{n:022}")).collect();
    for openid in &openids {
        world.sim.add_user(UserSpec::new(APP, openid)).unwrap();
    }
    let path = format!("/v1/apps/{APP}/users/batch");
    let body = json!({ "openids": openids, "lang": "zh_TW" }).to_string();
    let users = world.post(&path, &body).await.json();
    let got: Vec<_> =
        users["users"].as_array().unwrap().iter().map(|user| &user["openid"]).collect();
    assert_eq!(got, openids.iter().collect::<Vec<_>>());
    assert_eq!(world.calls("/cgi-bin/user/info/batchget"), 3);

    for (body, field) in [
        (json!({ "openids": [] }), "openids"),
        (json!({ "openids": vec!["o"; 10_001] }), "openids"),
        (json!({ "openids": ["o1", "o 2"] }), "openids[1]"),
        (json!({ "openids": ["o1", 2] }), "openids[1]"),
        (json!({ "openids": "o1" }), "openids"),
        (json!({ "openids": ["o1"], "lang": "fr" }), "lang"),
        (json!({ "openids": ["o1"], "language": "en" }), "language"),
        (json!({ "user_list": [] }), "user_list"),
        (json!({}), "openids"),
    ] {
        let answer = world.post(&path, &body.to_string()).await;
        assert_eq!(answer.check_problem(ProblemType::Invalid)["field"], field, "{field}");
    }
    assert_eq!(world.calls("/cgi-bin/user/info/batchget"), 3);
}

#[tokio::test(start_paused = true)]
async fn followers_are_listed() {
    let world = World::new().await;
    let path = format!("/v1/apps/{APP}/users");
    let page = world.get(&path).await.json();
    assert_eq!((&page["total"], &page["openids"]), (&json!(1), &json!([OPENID])));
    let rest = world.get(&format!("{path}?next_openid={OPENID}")).await.json();
    assert_eq!((&rest["count"], &rest["next_openid"]), (&json!(0), &Value::Null));
    let answer = world.get(&format!("{path}?next_openid=")).await;
    assert_eq!(answer.check_problem(ProblemType::Invalid)["field"], "next_openid");
}

#[tokio::test(start_paused = true)]
async fn a_foreign_refresh_is_not_noticed() {
    let world = World::new().await;
    world.token().await;
    world.sim.foreign_refresh(APP, Issuer::Stable, true).unwrap();
    let answer = world.get(&format!("/v1/apps/{APP}/users/{OPENID}")).await;
    assert_eq!(answer.status, 200, "{answer:?}");
}

#[tokio::test(start_paused = true)]
async fn what_wechat_says_becomes_a_problem() {
    let world = World::new().await;
    world.token().await;
    let path = format!("/v1/apps/{APP}/users/{OPENID}");
    for (code, kind) in [
        (-1, ProblemType::WeChatBusy),
        (40003, ProblemType::Invalid),
        (45009, ProblemType::WeChatQuota),
        (45011, ProblemType::WeChatQuota),
        (48001, ProblemType::WeChatForbidden),
        (45035, ProblemType::WeChatForbidden),
        (40097, ProblemType::WeChatRefused),
        (99_999, ProblemType::WeChatRefused),
    ] {
        let fault = Fault::new(FaultKind::Errcode { code, ip: None, message: None });
        let fault = world.sim.set_fault(fault.on("/cgi-bin/user/info"));
        let answer = world.get(&path).await;
        let problem = answer.check_problem(kind);
        assert_eq!(problem["wechat"]["errcode"], code, "{problem}");
        if matches!(kind, ProblemType::WeChatBusy | ProblemType::WeChatQuota) {
            assert!(answer.retry_after() > 0);
        }
        world.sim.remove_fault(fault);
    }
    for (fault, kind) in [
        (FaultKind::LatencyBefore { millis: 60_000 }, ProblemType::WeChatTimeout),
        (FaultKind::ResetAfter {}, ProblemType::WeChatTimeout),
        (FaultKind::BadGateway { processed: false }, ProblemType::WeChatUnreadable),
        (FaultKind::EmptyBody {}, ProblemType::WeChatUnreadable),
    ] {
        let fault = world.sim.set_fault(Fault::new(fault).on("/cgi-bin/user/info"));
        world.get(&path).await.check_problem(kind);
        world.sim.remove_fault(fault);
    }
    assert_eq!(world.get(&path).await.status, 200);
}
