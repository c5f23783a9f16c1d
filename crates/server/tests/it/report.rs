//! Reporting a token that failed.

use broker::key::{Apps, Permission};
use serde_json::{Value, json};
use server::http::ProblemType;
use sim::{Issuer, TokenState};

use crate::harness::{APP, Answer, World};

async fn report(world: &World, token: &Value, errcode: Value) -> Answer {
    let body = json!({ "access_token": token, "errcode": errcode });
    world.post(&format!("/v1/apps/{APP}/token/report"), &body.to_string()).await
}

#[tokio::test(start_paused = true)]
async fn one_report_heals_a_foreign_refresh() {
    let world = World::new().await;
    let old = world.token().await["access_token"].clone();
    world.sim.foreign_refresh(APP, Issuer::Stable, true).unwrap();
    let answer = report(&world, &old, json!(40001)).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let new = answer.json();
    assert_ne!(new["access_token"], old);
    let state = world.sim.token_state(APP, new["access_token"].as_str().unwrap());
    assert_eq!(state, TokenState::Live);
    assert_eq!(world.token().await["access_token"], new["access_token"]);

    // Late reports of the same token cost nothing.
    let calls = world.calls("/cgi-bin/stable_token");
    for errcode in [json!(40014), json!("42001"), json!(40001)] {
        let late = report(&world, &old, errcode).await;
        assert_eq!(late.json()["access_token"], new["access_token"]);
    }
    assert_eq!(world.calls("/cgi-bin/stable_token"), calls);
}

#[tokio::test(start_paused = true)]
async fn an_unfounded_report_changes_nothing() {
    let world = World::new().await;
    let before = world.token().await;
    for _ in 0..5 {
        let answer = report(&world, &before["access_token"], json!(40001)).await;
        assert_eq!(answer.json()["access_token"], before["access_token"]);
    }
    assert_eq!(world.calls("/cgi-bin/get_api_domain_ip"), 1, "the verdict is kept");
    // Nor does one of a token that was never ours.
    let answer = report(&world, &json!("80_unknown"), json!(40001)).await;
    assert_eq!(answer.json()["generation"], before["generation"]);
}

#[tokio::test(start_paused = true)]
async fn a_key_that_may_only_report_is_told_nothing() {
    let world = World::new().await;
    let old = world.token().await["access_token"].clone();
    world.sim.foreign_refresh(APP, Issuer::Stable, true).unwrap();
    let key = world.add_key("reporter", [Permission::Report], Apps::All).await;
    let path = format!("/v1/apps/{APP}/token/report");
    let body = json!({ "access_token": old, "errcode": 40001 }).to_string();
    let answer = world.ask("POST", &path, Some(&key), Some(&body)).await;
    assert_eq!((answer.status, answer.body.len()), (204, 0));
    assert_ne!(world.token().await["access_token"], old, "the report was heard");
    let read = world.ask("GET", &format!("/v1/apps/{APP}/token"), Some(&key), None).await;
    read.check_problem(ProblemType::Forbidden);
}

#[tokio::test(start_paused = true)]
async fn only_three_codes_are_about_the_token() {
    let world = World::new().await;
    let token = world.token().await["access_token"].clone();
    for errcode in [json!(0), json!(-1), json!(45009), json!("48001")] {
        let problem = report(&world, &token, errcode).await.check_problem(ProblemType::Invalid);
        assert_eq!(problem["field"], "errcode");
        assert!(problem["detail"].as_str().unwrap().contains("40001, 40014, 42001"), "{problem}");
    }
    assert_eq!(world.calls("/cgi-bin/get_api_domain_ip"), 0);
}

#[tokio::test(start_paused = true)]
async fn bodies_are_checked() {
    let world = World::new().await;
    let path = format!("/v1/apps/{APP}/token/report");
    for (body, field) in [
        (r#"{"errcode":40001}"#, "access_token"),
        (r#"{"access_token":"a"}"#, "errcode"),
        (r#"{"access_token":"a","errcode":40001,"force":true}"#, "force"),
        (r#"{"access_token":"a","access_token":"b","errcode":40001}"#, "access_token"),
        (r#"{"access_token":7,"errcode":40001}"#, "access_token"),
        (r#"{"access_token":null,"errcode":40001}"#, "access_token"),
        (r#"{"access_token":"","errcode":40001}"#, "access_token"),
        (r#"{"access_token":"a b","errcode":40001}"#, "access_token"),
        (r#"{"access_token":"a\u0000b","errcode":40001}"#, "access_token"),
        (r#"{"access_token":"微","errcode":40001}"#, "access_token"),
        (r#"{"access_token":"a","errcode":"4000l"}"#, "errcode"),
        (r#"{"access_token":"a","errcode":40001.5}"#, "errcode"),
        (r#"{"access_token":"a","errcode":[40001]}"#, "errcode"),
        (r#"{"access_token":"a","errcode":18446744073709551615}"#, "errcode"),
        (r#"{"access_token":"s3cr3t","errcode":"s3cr3t"}"#, "errcode"),
    ] {
        let answer = world.post(&path, body).await;
        let problem = answer.check_problem(ProblemType::Invalid);
        assert_eq!(problem["field"], field, "{body}: {problem}");
        assert!(!problem.to_string().contains("s3cr3t"), "{problem}");
    }
    for body in [
        "",
        "{",
        "[]",
        r#"["a",40001]"#,
        "null",
        "\"x\"",
        r#"{"access_token":"a","errcode":40001} {}"#,
        "{\"access_token\":\"a\",}",
        "\u{feff}{}",
    ] {
        world.post(&path, body).await.check_problem(ProblemType::Malformed);
    }
    let long = json!({ "access_token": "a".repeat(1025), "errcode": 40001 }).to_string();
    assert_eq!(
        world.post(&path, &long).await.check_problem(ProblemType::Invalid)["field"],
        "access_token"
    );
}
