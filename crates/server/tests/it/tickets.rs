//! Tickets and signatures.

use serde_json::json;
use server::http::ProblemType;
use wechat::{Ticket, jssdk_signature};

use crate::harness::{APP, World};

#[tokio::test(start_paused = true)]
async fn both_tickets_are_read_and_kept() {
    let world = World::new().await;
    for kind in ["jsapi", "wx_card"] {
        let path = format!("/v1/apps/{APP}/tickets/{kind}");
        let body = world.get(&path).await.json();
        assert_eq!(body["generation"], 1);
        assert!(body["expires_in"].as_u64().unwrap() > 3600, "{body}");
        assert_eq!(world.get(&path).await.json()["ticket"], body["ticket"]);
    }
    assert_eq!(world.calls("/cgi-bin/ticket/getticket"), 2);
    let problem = world.get(&format!("/v1/apps/{APP}/tickets/JSAPI")).await;
    let problem = problem.check_problem(ProblemType::Invalid);
    assert_eq!(problem["field"], "kind");
    assert!(problem["detail"].as_str().unwrap().contains("`wx_card`"), "{problem}");
}

#[tokio::test(start_paused = true)]
async fn a_page_is_signed() {
    let world = World::new().await;
    let path = format!("/v1/apps/{APP}/jssdk/config");
    let url = "https://example.com/shop?id=7";
    let body = world.post(&path, &json!({ "url": url }).to_string()).await.json();
    let ticket = world.get(&format!("/v1/apps/{APP}/tickets/jsapi")).await.json();
    let ticket = ticket["ticket"].as_str().unwrap();
    assert!(world.sim.ticket_works(APP, ticket));
    let (nonce, timestamp) = (body["nonceStr"].as_str().unwrap(), &body["timestamp"]);
    let signature = jssdk_signature(&Ticket::new(ticket), nonce, timestamp.as_i64().unwrap(), url);
    assert_eq!(body["signature"], signature);
    assert_eq!(body["appId"], APP);
}

#[tokio::test(start_paused = true)]
async fn addresses_are_checked() {
    let world = World::new().await;
    let path = format!("/v1/apps/{APP}/jssdk/config");
    let long = format!("https://a/{}", "b".repeat(2048));
    for url in
        ["", "example.com", "javascript:alert(1)", "https://", "https://a b/", "file:///a", &long]
    {
        let answer = world.post(&path, &json!({ "url": url }).to_string()).await;
        assert_eq!(answer.check_problem(ProblemType::Invalid)["field"], "url", "{url}");
    }
    assert_eq!(world.calls("/cgi-bin/ticket/getticket"), 0);
}

#[tokio::test(start_paused = true)]
async fn no_ticket_without_a_token() {
    let world = World::with(crate::harness::Setup { lazy: true, ..Default::default() }).await;
    world.sim.set_secret(APP, "another").unwrap();
    let answer = world.get(&format!("/v1/apps/{APP}/tickets/jsapi")).await;
    let problem = answer.check_problem(ProblemType::TokenUnavailable);
    assert!(problem["detail"].as_str().unwrap().contains("40125"), "{problem}");
    assert!(answer.retry_after() > 0);
}
