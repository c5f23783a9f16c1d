//! Who may call what: every route of the table with every kind of key.

use broker::{
    audit::Actor,
    key::{Apps, Permission},
};
use serde_json::{Map, Value, json};
use server::http::{Access, Operation, ProblemType, ROUTES, Route};
use sim::Scope;

use crate::harness::{ALIAS, APP, Answer, MINI, MINI_ALIAS, OPENID, OTHER, World};

/// The app that a route is tried with, and its alias.
fn home(route: &Route) -> (&'static str, &'static str) {
    if route.path.contains("/mini/") { (MINI, MINI_ALIAS) } else { (APP, ALIAS) }
}

/// A request that succeeds with the right key: the path, and the body if there is one. What it
/// needs at WeChat and here is prepared.
pub(crate) async fn sample(world: &World, route: &Route) -> (String, Option<String>) {
    sample_of(world, route, home(route).0).await
}

async fn sample_of(world: &World, route: &Route, app: &str) -> (String, Option<String>) {
    let openid = match route.operation {
        Operation::ForgetUser => "oFORGOTTEN",
        _ => OPENID,
    };
    let path =
        route.path.replace("{app}", app).replace("{kind}", "jsapi").replace("{openid}", openid);
    let body = match route.operation {
        Operation::ReportToken => Some(json!({ "access_token": "x", "errcode": 40001 })),
        Operation::SignPage => Some(json!({ "url": "https://example.com/" })),
        Operation::ReadUsers => Some(json!({ "openids": [OPENID] })),
        Operation::AuthorizeUrl => Some(json!({ "redirect_uri": "http://localhost/back" })),
        Operation::ExchangeCode => {
            Some(json!({ "code": world.code(Scope::UserInfo), "binding": "b" }))
        }
        Operation::ReadGrants | Operation::ReadProfile => {
            let exchanged = world.exchange_code(&world.code(Scope::UserInfo), "b").await;
            assert_eq!(exchanged.status, 200, "{exchanged:?}");
            None
        }
        Operation::MiniLogin => {
            let js_code = world.sim.issue_js_code(MINI, OPENID).unwrap();
            Some(json!({ "js_code": js_code, "binding": "b" }))
        }
        Operation::MiniDecrypt => {
            let session = world.mini_session().await;
            let data = world.sim.encrypt_for(MINI, OPENID, Map::new()).unwrap();
            let (encrypted, iv) = (data.encrypted_data, data.iv);
            Some(json!({ "session": session, "encryptedData": encrypted, "iv": iv }))
        }
        Operation::MiniCheckSignature => {
            let session = world.mini_session().await;
            let signature = "0".repeat(40);
            Some(json!({ "session": session, "rawData": "{}", "signature": signature }))
        }
        Operation::ReadToken
        | Operation::ReadTicket
        | Operation::ReadUser
        | Operation::ListUsers
        | Operation::ForgetUser
        | Operation::OpenApi
        | Operation::Health
        | Operation::Ready => None,
    };
    (path, body.map(|body| body.to_string()))
}

/// What a request that succeeds is answered with.
pub(crate) fn success(route: &Route) -> u16 {
    if route.operation == Operation::ForgetUser { 204 } else { 200 }
}

async fn call(world: &World, route: &Route, app: &str, key: Option<&str>) -> Answer {
    let (path, body) = sample_of(world, route, app).await;
    world.ask(route.method.as_str(), &path, key, body.as_deref()).await
}

#[tokio::test(start_paused = true)]
async fn every_route_with_every_permission() {
    check_every_permission(&World::new().await).await;
}

#[tokio::test(start_paused = true)]
async fn every_route_with_every_permission_on_sqlite() {
    check_every_permission(&World::on_sqlite().await).await;
}

async fn check_every_permission(world: &World) {
    // From here on memory could answer.
    world.token().await;
    for permission in Permission::ALL {
        let key = world.add_key(permission.as_str(), [permission], Apps::All).await;
        for route in &ROUTES {
            let answer = call(world, route, home(route).0, Some(&key)).await;
            match route.access {
                Access::Needs(needed) if needed != permission => {
                    let problem = answer.check_problem(ProblemType::Forbidden);
                    let named = format!("`{}`", needed.as_str());
                    assert!(problem["detail"].as_str().unwrap().contains(&named), "{problem}");
                }
                // One that may only report is told nothing.
                Access::Needs(Permission::Report) => assert_eq!(answer.status, 204),
                Access::Needs(_) | Access::Public => {
                    assert_eq!(answer.status, success(route), "{}: {answer:?}", route.path);
                }
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_app_outside_the_set_looks_like_one_that_does_not_exist() {
    let world = World::new().await;
    // From here on memory could answer.
    world.token().await;
    let only = |apps: &[&str]| Apps::Only(apps.iter().map(|app| (*app).to_owned()).collect());
    let elsewhere = world.add_key("elsewhere", Permission::ALL, only(&[OTHER])).await;
    let here = world.add_key("here", Permission::ALL, only(&[ALIAS, MINI_ALIAS])).await;
    for route in ROUTES.iter().filter(|route| route.access != Access::Public) {
        let (id, alias) = home(route);
        let outside = call(&world, route, id, Some(&elsewhere)).await;
        let unknown = call(&world, route, "wx00000000000000cc", Some(&elsewhere)).await;
        let unknown_to_all = call(&world, route, "wx00000000000000cc", Some(&world.key)).await;
        let mut bodies = Vec::new();
        for answer in [outside, unknown, unknown_to_all] {
            let mut body = answer.check_problem(ProblemType::AppNotFound);
            body["request_id"] = Value::Null;
            bodies.push(body);
        }
        bodies.dedup();
        assert_eq!(bodies.len(), 1, "{bodies:?}");
        // The set holds the app, however it is called.
        for name in [id, alias] {
            let answer = call(&world, route, name, Some(&here)).await;
            assert_eq!(answer.status, success(route), "{}", route.path);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn without_a_good_key_nobody_comes_in() {
    let world = World::new().await;
    // From here on memory could answer.
    world.token().await;
    let revoked = world.add_key("revoked", Permission::ALL, Apps::All).await;
    assert_eq!(call(&world, &ROUTES[0], APP, Some(&revoked)).await.status, 200);
    world.app.broker.revoke_key("revoked", &Actor::System).await.unwrap();
    let unknown = format!("xk_{}", "A".repeat(43));
    for route in ROUTES.iter().filter(|route| route.access != Access::Public) {
        for key in [None, Some(""), Some("xk_"), Some(&*revoked), Some(&*unknown)] {
            let answer = call(&world, route, home(route).0, key).await;
            let problem = answer.check_problem(ProblemType::Unauthorized);
            assert!(answer.header("www-authenticate").unwrap().starts_with("Bearer"), "{problem}");
        }
        // Nor does an app's existence show without one.
        let unknown_app = call(&world, route, "nope", None).await;
        unknown_app.check_problem(ProblemType::Unauthorized);
    }
}

#[tokio::test(start_paused = true)]
async fn a_key_counts_only_in_its_header() {
    let world = World::new().await;
    let key = &world.key;
    let path = format!("/v1/apps/{APP}/token");
    for header in [
        format!("authorization: Basic {key}\r\n"),
        format!("authorization: {key}\r\n"),
        format!("authorization: Bearer  {key}\r\n"),
        format!("x-api-key: {key}\r\n"),
        format!("cookie: key={key}\r\n"),
    ] {
        let request =
            format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{header}\r\n");
        let answer = Answer::parse(&world.exchange(request.as_bytes()).await).unwrap();
        answer.check_problem(ProblemType::Unauthorized);
    }
    let query = format!("{path}?access_token={key}");
    world.ask("GET", &query, None, None).await.check_problem(ProblemType::Unauthorized);
    let twice = format!(
        "GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\
         authorization: Bearer {key}\r\nauthorization: Bearer {key}\r\n\r\n"
    );
    let answer = Answer::parse(&world.exchange(twice.as_bytes()).await).unwrap();
    answer.check_problem(ProblemType::Malformed);
}

#[tokio::test(start_paused = true)]
async fn other_methods_and_other_paths() {
    let world = World::new().await;
    for route in &ROUTES {
        let (path, _) = sample(&world, route).await;
        for method in ["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "BREW"]
        {
            let known = ROUTES.iter().any(|other| {
                other.path == route.path
                    && (other.method == method || (other.method == "GET" && method == "HEAD"))
            });
            if known {
                continue;
            }
            let answer = world.ask(method, &path, Some(&world.key), None).await;
            assert_eq!(answer.status, 405, "{method} {path}");
            if method != "HEAD" {
                answer.check_problem(ProblemType::MethodNotAllowed);
            }
            let allow = answer.header("allow").unwrap();
            assert!(allow.contains(route.method.as_str()), "{allow}");
        }
    }
    for path in [
        "/v1",
        "/v1/",
        "/v1/apps",
        "/v1/apps/",
        "/v1/apps/shop",
        "/v1/apps/shop/token/",
        "/v1/apps/shop/%74oken",
        "/v1/apps/shop/users/a/b",
        "/v1/apps/shop/./token",
    ] {
        let answer = world.get(path).await;
        answer.check_problem(ProblemType::NotFound);
    }
    // All others are WeChat's, as far as anybody knows.
    for (path, errcode) in [
        ("/", 40066),
        ("/healthz/", 40066),
        ("//healthz", 40066),
        ("/V1/apps/shop/token", 41001),
        ("/wx", 41001),
        ("/favicon.ico", 41001),
        ("/v2/apps", 41001),
    ] {
        let answer = world.get(path).await;
        assert_eq!((answer.status, &answer.json()["errcode"]), (200, &errcode.into()), "{path}");
    }
    // A fixed word goes before a parameter: nobody can be read whose openid is `batch`.
    let batch = world.get("/v1/apps/shop/users/batch").await;
    batch.check_problem(ProblemType::MethodNotAllowed);
    assert_eq!(batch.header("allow"), Some("POST"));
    // An escape of a plain character is the same name.
    assert_eq!(world.get("/v1/apps/sho%70/token").await.status, 200);
    for name in ["", "%2e%2e", "a%2fb", "a%00b", "%20", "%", "%zz", "sh%C3%B6p", &"a".repeat(65)] {
        let answer = world.get(&format!("/v1/apps/{name}/token")).await;
        answer.check_problem(ProblemType::AppNotFound);
    }
    world.get("/v1/apps/%ff/token").await.check_problem(ProblemType::Malformed);
}
