//! Followers and others, and tickets.

use serde_json::{Value, json};
use sim::{AppKind, ListEnd, NonFollower, Switches, UserSpec};

use crate::harness::{APP, NOON, OTHER, World, pass};

#[tokio::test(start_paused = true)]
async fn a_follower_has_a_record() {
    let world = World::new().await;
    let token = world.classic().await;
    world.sim.add_user(UserSpec::new(APP, "oFollower").with_unionid("oUnion")).unwrap();
    let target = format!("/cgi-bin/user/info?access_token={token}&openid=oFollower&lang=zh_CN");
    let literal = |unionid: &str| {
        format!(
            r#"{{"subscribe":1,"openid":"oFollower","nickname":"","sex":0,"language":"zh_CN","city":"","province":"","country":"","headimgurl":"","subscribe_time":{NOON},{unionid}"remark":"","groupid":0,"tagid_list":[],"subscribe_scene":"ADD_SCENE_SEARCH","qr_scene":0,"qr_scene_str":""}}"#
        )
    };
    assert_eq!(world.get(&target).await.text(), literal(r#""unionid":"oUnion","#));
    world.sim.update_app(APP, |app| app.bound = false).unwrap();
    assert_eq!(world.get(&target).await.text(), literal(""));
    world.sim.set_switches(Switches { emptied_keys: false, ..Switches::default() });
    assert_eq!(world.get(&target).await.json().get("nickname"), None);
}

#[tokio::test(start_paused = true)]
async fn who_does_not_follow_has_next_to_none() {
    let world = World::new().await;
    let token = world.classic().await;
    let user = UserSpec::new(APP, "oLeft").with_unionid("oUnion").not_following();
    world.sim.add_user(user).unwrap();
    let target = format!("/cgi-bin/user/info?access_token={token}&openid=oLeft");
    assert_eq!(
        world.get(&target).await.text(),
        r#"{"subscribe":0,"openid":"oLeft","nickname":"","sex":0,"language":"zh_CN","city":"","province":"","country":"","headimgurl":"","tagid_list":[]}"#
    );
    let switches = Switches { non_follower: NonFollower::Short, ..Switches::default() };
    world.sim.set_switches(switches);
    assert_eq!(
        world.get(&target).await.text(),
        r#"{"subscribe":0,"openid":"oLeft","tagid_list":[]}"#
    );
}

#[tokio::test(start_paused = true)]
async fn an_openid_belongs_to_one_app() {
    let world = World::new().await;
    world.sim.add_user(UserSpec::new(APP, "oMine")).unwrap();
    let token = world.classic_of(OTHER).await.token();
    let answer = world.get(&format!("/cgi-bin/user/info?access_token={token}&openid=oMine")).await;
    assert_eq!(answer.errcode(), 40003);
    assert!(answer.errmsg().starts_with("invalid openid hint: ["), "{}", answer.errmsg());
    let answer = world.get(&format!("/cgi-bin/user/info?access_token={token}&openid=")).await;
    assert!(answer.errmsg().starts_with("missing openid rid: "), "{}", answer.errmsg());
    assert!(world.sim.add_user(UserSpec::new("wx1", "o")).is_err());
    world.sim.update_app(OTHER, |app| app.kind = AppKind::MiniProgram).unwrap();
    let answer = world.get(&format!("/cgi-bin/user/info?access_token={token}&openid=oMine")).await;
    assert_eq!(answer.errcode(), 48001, "a mini program has no followers");
}

#[tokio::test(start_paused = true)]
async fn a_batch_has_1_to_100_openids() {
    let world = World::new().await;
    let token = world.classic().await;
    world.sim.add_user(UserSpec::new(APP, "o1")).unwrap();
    world.sim.add_user(UserSpec::new(APP, "o2").not_following()).unwrap();
    let target = format!("/cgi-bin/user/info/batchget?access_token={token}");
    let batch = json!({ "user_list": [{ "openid": "o1", "lang": "zh_CN" }, { "openid": "o2" }] });
    let records = world.post(&target, &batch.to_string()).await.json();
    let subscribed: Vec<&Value> =
        records["user_info_list"].as_array().unwrap().iter().map(|one| &one["subscribe"]).collect();
    assert_eq!(subscribed, [1, 0]);

    let many = |count| json!({ "user_list": vec![json!({ "openid": "o1" }); count] }).to_string();
    assert_eq!(world.post(&target, &many(100)).await.errcode(), 0);
    for (body, code) in [
        (many(0), 40032),
        (many(101), 40032),
        ("{}".into(), 40032),
        ("{".into(), 47001),
        (r#"{"user_list":7}"#.into(), 47001),
        (r#"{"user_list":[7]}"#.into(), 40003),
        (String::new(), 44002),
    ] {
        assert_eq!(world.post(&target, &body).await.errcode(), code, "{body}");
    }
    let empty = world.post(&target, &many(0)).await.errmsg();
    assert!(empty.starts_with("invalid openid list size hint: [") && empty.contains("] rid: "));
}

#[tokio::test(start_paused = true)]
async fn the_follower_list_has_pages() {
    let world = World::with(Switches { page_size: 2, ..Switches::default() }).await;
    let token = world.classic().await;
    for openid in ["o1", "o2", "o3"] {
        world.sim.add_user(UserSpec::new(APP, openid)).unwrap();
    }
    world.sim.add_user(UserSpec::new(APP, "o0").not_following()).unwrap();
    let page = async |next: &str| {
        let target = format!("/cgi-bin/user/get?access_token={token}&next_openid={next}");
        world.get(&target).await
    };
    assert_eq!(
        page("").await.text(),
        r#"{"total":3,"count":2,"data":{"openid":["o1","o2"]},"next_openid":"o2"}"#
    );
    assert_eq!(
        page("o2").await.text(),
        r#"{"total":3,"count":1,"data":{"openid":["o3"]},"next_openid":"o3"}"#
    );
    assert_eq!(page("o3").await.text(), r#"{"total":3,"count":0,"next_openid":""}"#);
    assert_eq!(page("o9").await.errcode(), 40003);

    world.sim.set_switches(Switches { list_end: ListEnd::EmptyNext, ..Switches::default() });
    assert_eq!(
        page("").await.text(),
        r#"{"total":3,"count":3,"data":{"openid":["o1","o2","o3"]},"next_openid":""}"#
    );
}

#[tokio::test(start_paused = true)]
async fn a_ticket_is_the_same_for_two_hours_and_works_for_three() {
    let world = World::new().await;
    let ask = async |kind: &str| {
        let token = world.stable(false).await.token();
        world.get(&format!("/cgi-bin/ticket/getticket?access_token={token}&type={kind}")).await
    };
    let answer = ask("jsapi").await;
    let first = answer.json()["ticket"].as_str().unwrap().to_owned();
    assert_eq!(
        answer.text(),
        format!(r#"{{"errcode":0,"errmsg":"ok","ticket":"{first}","expires_in":7200}}"#)
    );
    pass(7199).await;
    let again = ask("jsapi").await.json();
    assert_eq!((&again["ticket"], &again["expires_in"]), (&json!(first), &json!(7200)));
    assert_ne!(ask("wx_card").await.json()["ticket"], first.as_str());
    pass(1).await;
    let second = ask("jsapi").await.json()["ticket"].as_str().unwrap().to_owned();
    assert_ne!(first, second);
    pass(3599).await;
    assert!(world.sim.ticket_works(APP, &first) && world.sim.ticket_works(APP, &second));
    pass(1).await;
    assert!(!world.sim.ticket_works(APP, &first) && world.sim.ticket_works(APP, &second));
    assert_eq!(ask("other").await.errcode(), 40097);
    let bad = world.get("/cgi-bin/ticket/getticket?access_token=forged&type=jsapi").await;
    assert_eq!(bad.errcode(), 40001);
    let endless = Switches { ticket_grace_secs: u64::MAX, ..Switches::default() };
    world.sim.set_switches(endless);
    assert!(world.sim.ticket_works(APP, &first));
}
