//! Reading the global token.

use std::time::Duration;

use axum::{body::Bytes, http::Request};
use broker::{
    audit::Actor,
    key::{Apps, Permission, Rights},
};
use futures_util::future::join_all;
use http_body_util::{BodyExt, Full};
use serde_json::{Value, json};
use server::http::{ProblemType, Service};
use sim::{Fault, FaultKind, Issuer, TokenState};
use tokio::time::Instant;

use crate::harness::{ALIAS, APP, Answer, Setup, World, new_app, pass};

#[tokio::test(start_paused = true)]
async fn a_token_is_read() {
    let world = World::new().await;
    let answer = world.get(&format!("/v1/apps/{APP}/token")).await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.header("content-type"), Some("application/json"));
    assert_eq!(answer.header("cache-control"), Some("no-store"));
    let body = answer.json();
    let token = body["access_token"].as_str().unwrap();
    assert_eq!(world.sim.token_state(APP, token), TokenState::Live);
    let now = world.sim.now().as_secs();
    assert_eq!(body["expires_at"].as_i64().unwrap() - now, 7200);
    assert!((7199..=7200).contains(&body["expires_in"].as_i64().unwrap()), "{body}");
    assert_eq!(body["generation"], 1);

    // By its alias too, and by a HEAD without a body; the second time it comes from memory.
    for path in [format!("/v1/apps/{ALIAS}/token"), format!("/v1/apps/{APP}/token?min_ttl=180")] {
        assert_eq!(world.get(&path).await.json()["access_token"], token);
    }
    let head = world.ask("HEAD", &format!("/v1/apps/{APP}/token"), Some(&world.key), None).await;
    assert_eq!((head.status, head.body.len()), (200, 0));
    assert_eq!(head.header("content-length"), answer.header("content-length"));
    assert_eq!(world.calls("/cgi-bin/stable_token"), 1);
}

#[tokio::test(start_paused = true)]
async fn it_lives_in_a_file_too() {
    let world = World::with(Setup { sqlite: true, ..Setup::default() }).await;
    let first = world.token().await;
    pass(7200).await;
    let second = world.token().await;
    assert_eq!(second["generation"], 2);
    assert_ne!(first["access_token"], second["access_token"]);
    assert_eq!(world.get("/readyz").await.status, 200);
}

#[tokio::test(start_paused = true)]
async fn a_rotation_shows_and_the_token_always_works() {
    let world = World::new().await;
    let mut generations = Vec::new();
    for _ in 0..30 {
        let body = world.token().await;
        let state = world.sim.token_state(APP, body["access_token"].as_str().unwrap());
        assert_eq!(state, TokenState::Live);
        generations.push(body["generation"].as_u64().unwrap());
        pass(600).await;
    }
    generations.dedup();
    assert_eq!(generations, [1, 2, 3]);
}

#[tokio::test(start_paused = true)]
async fn parameters_are_checked() {
    let world = World::new().await;
    let problem = world.get(&format!("/v1/apps/{APP}/token?min_ttl=181")).await;
    let problem = problem.check_problem(ProblemType::Invalid);
    assert_eq!(problem["field"], "min_ttl");
    assert!(problem["detail"].as_str().unwrap().contains("180"), "{problem}");
    for (query, field) in [
        ("min_ttl=", "min_ttl"),
        ("min_ttl=-1", "min_ttl"),
        ("min_ttl=1.5", "min_ttl"),
        ("min_ttl=1e1", "min_ttl"),
        ("min_ttl=%2B1", "min_ttl"),
        ("min_ttl=99999999999999999999", "min_ttl"),
        ("min_ttl=1&min_ttl=1", "min_ttl"),
        ("min_ttl=1&%6din_ttl=1", "min_ttl"),
        ("after=1&min_ttl=1", "min_ttl"),
        ("wait=1", "wait"),
        ("after=1&wait=61", "wait"),
        ("after=x", "after"),
        ("after=18446744073709551616", "after"),
        ("force=1", "force"),
        ("access_token=abc", "access_token"),
        ("MIN_TTL=1", "MIN_TTL"),
        ("min_ttl", "min_ttl"),
    ] {
        let answer = world.get(&format!("/v1/apps/{APP}/token?{query}")).await;
        assert_eq!(answer.check_problem(ProblemType::Invalid)["field"], field, "{query}");
    }
    for query in ["min_ttl=%", "min_ttl=%f", "min_ttl=%ff", "%ff=1", "min_ttl=1%zz"] {
        let answer = world.get(&format!("/v1/apps/{APP}/token?{query}")).await;
        answer.check_problem(ProblemType::Malformed);
    }
    assert_eq!(world.get(&format!("/v1/apps/{APP}/token?")).await.status, 200);
    assert_eq!(world.get(&format!("/v1/apps/{APP}/token?&min_ttl=%31&")).await.status, 200);
}

#[tokio::test(start_paused = true)]
async fn a_long_poll_ends_without_news() {
    let world = World::new().await;
    world.token().await;
    let begun = Instant::now();
    let answer = world.get(&format!("/v1/apps/{APP}/token?after=1&wait=60")).await;
    assert_eq!((answer.status, answer.body.len()), (204, 0));
    assert_eq!(begun.elapsed().as_secs(), 60);
    assert_eq!(world.get(&format!("/v1/apps/{APP}/token?after=1&wait=0")).await.status, 204);
    // Another generation than the caller's is news at once, whichever is older.
    for after in [0, 2, u64::MAX] {
        let answer = world.get(&format!("/v1/apps/{APP}/token?after={after}&wait=60")).await;
        assert_eq!(answer.json()["generation"], 1);
    }
    assert!(begun.elapsed() < Duration::from_secs(61));
}

#[tokio::test(start_paused = true)]
async fn a_long_poll_wakes_on_rotation() {
    let world = World::new().await;
    let first = world.token().await;
    let begun = Instant::now();
    let path = format!("/v1/apps/{APP}/token?after=1&wait=60");
    let news = loop {
        let answer = world.get(&path).await;
        if answer.status == 200 {
            break answer.json();
        }
        assert_eq!(answer.status, 204);
    };
    // At 270 s before the end, or up to a minute later.
    assert!((6930..=6991).contains(&begun.elapsed().as_secs()), "{:?}", begun.elapsed());
    assert_eq!(news["generation"], 2);
    assert_ne!(news["access_token"], first["access_token"]);
}

#[tokio::test(start_paused = true)]
async fn a_long_poll_ends_with_its_key_and_its_app() {
    let world = World::new().await;
    world.token().await;
    let broker = &world.app.broker;
    let path = format!("/v1/apps/{APP}/token?after=1&wait=60");
    let poll = async |key: &str| {
        let begun = Instant::now();
        (world.ask("GET", &path, Some(key), None).await, begun.elapsed())
    };
    let (actor, rights) = (Actor::System, Rights::all());
    let until = broker.now() + Duration::from_secs(5);
    let short = broker.add_key("short", rights.clone(), Some(until), &actor).await.unwrap();
    let revoked = broker.add_key("revoked", rights, None, &actor).await.unwrap();

    // Each goes away five seconds after the poll began; nobody waits two seconds longer.
    let revoke = async {
        pass(5).await;
        broker.revoke_key("revoked", &actor).await.unwrap();
    };
    let (expired, gone, ()) = tokio::join!(poll(short.expose()), poll(revoked.expose()), revoke);
    for (answer, took) in [expired, gone] {
        answer.check_problem(ProblemType::Unauthorized);
        assert!((5..=7).contains(&took.as_secs()), "{took:?}");
    }
    let replace = async {
        pass(5).await;
        broker.remove_app(APP, &actor).await.unwrap();
        broker.add_app(new_app(APP, None), &actor).await.unwrap();
    };
    let ((answer, took), ()) = tokio::join!(poll(&world.key), replace);
    answer.check_problem(ProblemType::AppNotFound);
    assert!((5..=7).contains(&took.as_secs()), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn a_token_that_comes_after_its_key_was_revoked_is_not_handed_out() {
    let world = World::with(Setup { lazy: true, ..Setup::default() }).await;
    let key = world.add_key("revoked", [Permission::Token], Apps::All).await;
    let slow = FaultKind::LatencyBefore { millis: 700 };
    world.sim.set_fault(Fault::new(slow).on("/cgi-bin/stable_token"));
    let revoke = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        world.app.broker.revoke_key("revoked", &Actor::System).await.unwrap();
    };
    let path = format!("/v1/apps/{APP}/token");
    let (answer, ()) = tokio::join!(world.ask("GET", &path, Some(&key), None), revoke);
    answer.check_problem(ProblemType::Unauthorized);
}

#[tokio::test(start_paused = true)]
async fn long_polls_end_at_once_when_draining() {
    let world = World::new().await;
    world.token().await;
    let path = format!("/v1/apps/{APP}/token?after=1&wait=60");
    let begun = Instant::now();
    let drain = async {
        pass(5).await;
        world.app.draining.cancel();
    };
    let (answer, ()) = tokio::join!(world.get(&path), drain);
    assert_eq!((answer.status, begun.elapsed().as_secs()), (204, 5));
    assert_eq!(world.get(&path).await.status, 204);
    assert_eq!(begun.elapsed().as_secs(), 5);
    // Everything else goes on, news too.
    assert_eq!(world.get(&path.replace("after=1", "after=0")).await.status, 200);
    assert_eq!(world.token().await["generation"], 1);
    world.get("/readyz").await.check_problem(ProblemType::Draining);
    assert_eq!(world.get("/healthz").await.status, 200);
}

#[tokio::test(start_paused = true)]
async fn a_wrong_secret_is_explained() {
    let world = World::with(Setup { lazy: true, ..Setup::default() }).await;
    world.sim.set_secret(APP, "another").unwrap();
    let answer = world.get(&format!("/v1/apps/{APP}/token")).await;
    let problem = answer.check_problem(ProblemType::TokenUnavailable);
    let detail = problem["detail"].as_str().unwrap();
    assert!(detail.contains("40125") && detail.contains("Set the AppSecret"), "{detail}");
    assert_eq!(problem["wechat"]["errcode"], 40125);
    assert!(problem["wechat"]["errmsg"].as_str().unwrap().starts_with("invalid appsecret"));
    assert!(problem["wechat"]["rid"].is_string());
    assert!(answer.retry_after() >= 60);
    // Nobody asks WeChat again before something has changed.
    for _ in 0..3 {
        assert_eq!(world.get(&format!("/v1/apps/{APP}/token")).await.status, 503);
    }
    assert_eq!(world.calls("/cgi-bin/stable_token"), 1);
}

#[tokio::test(start_paused = true)]
async fn a_refused_address_is_shown() {
    let world = World::with(Setup { lazy: true, ..Setup::default() }).await;
    let ip = Some("203.0.113.7".parse().unwrap());
    world.sim.set_fault(Fault::new(FaultKind::Errcode { code: 40164, ip, message: None }));
    let answer = world.get(&format!("/v1/apps/{APP}/token")).await;
    let problem = answer.check_problem(ProblemType::TokenUnavailable);
    let detail = problem["detail"].as_str().unwrap();
    assert!(detail.contains("Add 203.0.113.7 to the app's IP whitelist"), "{detail}");
    assert_eq!(problem["wechat"]["errcode"], 40164);
    assert!(answer.retry_after() <= 300);
}

#[tokio::test(start_paused = true)]
async fn the_store_out_of_reach() {
    let world = World::new().await;
    let token = world.token().await;
    let ready = async || world.get("/readyz").await.json();
    let is_ready = |word: &str| json!({"status": "ready", "store": word, "shared": word});
    assert_eq!(ready().await, is_ready("reachable"));
    world.store.set_reachable(false);
    pass(60).await;
    // What is in memory is served, so callers are welcome.
    assert_eq!(ready().await, is_ready("unreachable"));
    assert_eq!(world.get("/healthz").await.status, 200);
    assert_eq!(world.token().await["access_token"], token["access_token"]);
    // Until nobody knows any more who may call.
    pass(300).await;
    let answer = world.get("/readyz").await;
    answer.check_problem(ProblemType::StoreUnavailable);
    assert!(answer.retry_after() > 0);
    world.store.set_reachable(true);
    pass(5).await;
    assert_eq!(ready().await, is_ready("reachable"));
}

#[tokio::test(start_paused = true)]
async fn ten_thousand_readers_at_the_moment_of_expiry() {
    /// Through sockets; the others call the service in process.
    const SOCKETS: usize = 500;
    const READERS: usize = 10_000;
    let world = World::with(Setup { lazy: true, ..Setup::default() }).await;
    let first = world.token().await;
    pass(7200).await;
    let slow = FaultKind::LatencyBefore { millis: 800 };
    world.sim.set_fault(Fault::new(slow).on("/cgi-bin/stable_token"));

    let service = Service::new(world.app.clone());
    let path = format!("/v1/apps/{APP}/token");
    let in_process = (SOCKETS..READERS).map(|_| {
        let request = Request::get(&path)
            .header("authorization", format!("Bearer {}", world.key))
            .body(Full::<Bytes>::default())
            .unwrap();
        let service = service.clone();
        async move {
            let response = service.answer(request).await;
            assert_eq!(response.status(), 200);
            let body = response.into_body().collect().await.unwrap().to_bytes();
            serde_json::from_slice::<Value>(&body).unwrap()
        }
    });
    let by_socket = (0..SOCKETS).map(|_| world.get(&path));
    let (in_process, by_socket) = tokio::join!(join_all(in_process), join_all(by_socket));

    let answers = in_process.into_iter().chain(by_socket.iter().map(Answer::json));
    let mut read = 0;
    for body in answers {
        assert_ne!(body["access_token"], first["access_token"]);
        assert_eq!(body["generation"], 2);
        read += 1;
    }
    assert_eq!(read, READERS);
    assert_eq!(world.calls("/cgi-bin/stable_token"), 2, "one for each generation");
}

#[tokio::test(start_paused = true)]
async fn request_ids_come_back() {
    let world = World::new().await;
    for path in [format!("/v1/apps/{APP}/token"), "/healthz".to_owned(), "/nowhere".to_owned()] {
        for (sent, kept) in [("abc_DEF-123", true), ("not sane!", false), ("", false)] {
            let key = &world.key;
            let request = format!(
                "GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\nx-request-id: {sent}\r\n\
                 authorization: Bearer {key}\r\n\r\n"
            );
            let answer = Answer::parse(&world.exchange(request.as_bytes()).await).unwrap();
            let id = answer.header("x-request-id").unwrap();
            assert_eq!(id == sent, kept, "{path}: {sent} became {id}");
            assert!(!id.is_empty());
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_foreign_refresh_is_news_for_a_long_poll() {
    let world = World::new().await;
    let first = world.token().await;
    let path = format!("/v1/apps/{APP}/token?after=1&wait=60");
    let body = serde_json::json!({ "access_token": first["access_token"], "errcode": 42001 });
    let report = async {
        pass(3).await;
        world.sim.foreign_refresh(APP, Issuer::Stable, true).unwrap();
        world.post(&format!("/v1/apps/{APP}/token/report"), &body.to_string()).await.json()
    };
    let (polled, reported) = tokio::join!(world.get(&path), report);
    assert_eq!(polled.json()["access_token"], reported["access_token"]);
    assert_eq!(reported["generation"], 2);
}
