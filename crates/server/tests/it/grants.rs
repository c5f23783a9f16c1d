//! What is held of users who authorised, and their profiles.

use serde_json::{Value, json};
use server::http::ProblemType;
use sim::{Revocation, Scope};

use crate::{
    harness::{APP, MINI, OPENID, Setup, World, pass},
    process::{Folder, SimProcess},
};

const PROFILE: &str = "/sns/userinfo";
const RENEWAL: &str = "/sns/oauth2/refresh_token";

fn grants() -> String {
    format!("/v1/apps/{APP}/grants/{OPENID}")
}

async fn log_in(world: &World, scope: Scope) {
    let answer = world.exchange_code(&world.code(scope), "b").await;
    assert_eq!(answer.status, 200, "{answer:?}");
}

#[tokio::test(start_paused = true)]
async fn grants_are_shown_and_forgotten() {
    for world in [World::new().await, World::on_sqlite().await] {
        check_grants_are_shown_and_forgotten(&world).await;
    }
}

async fn check_grants_are_shown_and_forgotten(world: &World) {
    world.get(&grants()).await.check_problem(ProblemType::NoGrant);
    log_in(world, Scope::Base).await;
    log_in(world, Scope::UserInfo).await;
    let now = world.sim.now().as_secs();
    let body = world.get(&grants()).await.json();
    assert_eq!((&body["openid"], &body["unionid"]), (&json!(OPENID), &json!("oUNION")));
    let scopes: Vec<_> =
        body["grants"].as_array().unwrap().iter().map(|one| &one["scope"]).collect();
    assert_eq!(scopes, ["snsapi_userinfo", "snsapi_base"]);
    let wide = &body["grants"][0];
    assert_eq!((&wide["state"], &wide["ended"]), (&json!("live"), &Value::Null));
    for (field, after) in
        [("authorised_at", 0), ("token_expires_at", 7200), ("renewable_until", 30 * 86_400)]
    {
        let off = wide[field].as_i64().unwrap() - now - after;
        assert!((-10..=0).contains(&off), "{field}: {off}");
    }
    assert!(!body.to_string().contains("token\":"), "{body}");

    for _ in 0..2 {
        let answer = world.ask("DELETE", &grants(), Some(&world.key), None).await;
        assert_eq!((answer.status, answer.body.len()), (204, 0), "{answer:?}");
        assert_eq!(answer.header("cache-control"), Some("no-store"));
    }
    world.get(&grants()).await.check_problem(ProblemType::NoGrant);
    let audit = world.app.broker.audit(1).await.unwrap();
    assert_eq!(audit[0].1.action, "grant.remove");
    assert!(audit[0].1.actor.as_text().starts_with("key:"), "{audit:?}");
}

#[tokio::test(start_paused = true)]
async fn a_profile_is_read_and_told_again_for_an_hour() {
    let world = World::new().await;
    log_in(&world, Scope::UserInfo).await;
    let path = format!("{}/profile", grants());
    let body = world.get(&path).await.json();
    assert_eq!((&body["nickname"], &body["unionid"]), (&json!("小明"), &json!("oUNION")));
    assert_eq!((&body["sex"], &body["city"]), (&json!(0), &json!("")));
    assert_eq!(body["scope"], "snsapi_userinfo");
    let times = ["fetched_at", "fresh_until"].map(|name| body[name].as_i64().unwrap());
    assert_eq!(times[1] - times[0], 3600);
    assert_eq!(world.get(&path).await.json(), body);
    assert_eq!(world.calls(PROFILE), 1);
    assert_eq!(world.get(&format!("{path}?fresh=false")).await.json(), body);
    assert_eq!(world.get(&format!("{path}?fresh=true&lang=en")).await.status, 200);
    assert_eq!(world.calls(PROFILE), 2);
    pass(3601).await;
    assert_eq!(world.get(&path).await.status, 200);
    assert_eq!((world.calls(PROFILE), world.calls(RENEWAL)), (3, 0));
    // The web token is over now, and is renewed.
    pass(3600).await;
    assert_eq!(world.get(&path).await.status, 200);
    assert_eq!((world.calls(PROFILE), world.calls(RENEWAL)), (4, 1));
}

#[tokio::test(start_paused = true)]
async fn a_user_who_must_authorise_again_is_told_where() {
    let world = World::with(Setup { lazy: true, ..Setup::default() }).await;
    let path = format!("{}/profile", grants());
    let told = world.get(&path).await.check_problem(ProblemType::Reauthorize);
    assert_eq!((&told["authorize_url"], &told["state"]), (&Value::Null, &Value::Null));
    let detail = told["detail"].as_str().unwrap();
    assert!(detail.contains("authorize-url") && detail.contains("`redirect_uri`"), "{detail}");

    log_in(&world, Scope::Base).await;
    let back = "redirect_uri=https%3A%2F%2Fshop.example%2Fback";
    let answer = world.get(&format!("{path}?{back}")).await;
    let told = answer.check_problem(ProblemType::Reauthorize);
    assert!(told["detail"].as_str().unwrap().contains("snsapi_base"), "{told}");
    let (url, state) = (told["authorize_url"].as_str().unwrap(), told["state"].as_str().unwrap());
    assert!(url.contains(&format!("&{back}&")) && url.contains("scope=snsapi_userinfo"), "{url}");
    assert!(url.contains(&format!("&state={state}#")), "{url}");

    log_in(&world, Scope::UserInfo).await;
    world.sim.revoke_grant(APP, OPENID, Revocation::Revoked).unwrap();
    world.get(&path).await.check_problem(ProblemType::Reauthorize);
    let held = world.get(&grants()).await.json();
    assert_eq!(held["grants"][0]["state"], "ended", "{held}");
    assert_eq!(held["grants"][0]["ended"]["errcode"], 42007, "{held}");
    // Where the user came back to is remembered.
    let again = "https://shop.example/again";
    let body = json!({ "code": world.code(Scope::UserInfo), "redirect_uri": again }).to_string();
    world.post(&format!("/v1/apps/{APP}/oauth/exchange"), &body).await;
    assert_eq!(world.get(&path).await.status, 200);
    pass(31 * 86_400).await;
    let told = world.get(&path).await.check_problem(ProblemType::Reauthorize);
    assert!(told["authorize_url"].as_str().unwrap().contains("shop.example%2Fagain"), "{told}");
}

#[tokio::test(start_paused = true)]
async fn input_is_checked() {
    let world = World::new().await;
    let profile = format!("/v1/apps/{APP}/grants/{OPENID}/profile");
    for (query, field) in [
        ("lang=fr", "lang"),
        ("lang=", "lang"),
        ("fresh=1", "fresh"),
        ("fresh=", "fresh"),
        ("redirect_uri=/back", "redirect_uri"),
        ("redirect_uri=", "redirect_uri"),
        ("redirect_uri=https://a.example/%0a", "redirect_uri"),
        ("fresh=true&fresh=true", "fresh"),
    ] {
        let answer = world.get(&format!("{profile}?{query}")).await;
        assert_eq!(answer.check_problem(ProblemType::Invalid)["field"], field, "{query}");
    }
    let long = "o".repeat(129);
    for openid in ["%20", "a%20b", "%00", "%E5%BE%AE", "a%0a", &long] {
        for (method, tail) in [("GET", ""), ("DELETE", ""), ("GET", "/profile")] {
            let path = format!("/v1/apps/{APP}/grants/{openid}{tail}");
            let answer = world.ask(method, &path, Some(&world.key), None).await;
            let problem = answer.check_problem(ProblemType::Invalid);
            assert_eq!(problem["field"], "openid", "{method} {path}");
        }
    }
    for odd in ["a%2fb", "%22", "%25", &long[..128]] {
        let answer = world.get(&format!("/v1/apps/{APP}/grants/{odd}")).await;
        answer.check_problem(ProblemType::NoGrant);
    }
    let mini = world.get(&format!("/v1/apps/{MINI}/grants/{OPENID}/profile")).await;
    mini.check_problem(ProblemType::WrongAppKind);
    assert_eq!(world.calls(PROFILE), 0);
}

#[tokio::test]
async fn the_command_line_lists_shows_and_removes() {
    let sim = SimProcess::start(&[("wx1", "secret")]).await;
    let folder = Folder::ready(&sim).await;
    folder.add_app("wx1", "secret", &["--alias", "one"]).await.ok();
    let key = folder.add_key(&["logins", "--allow", "oauth", "--app", "one"]).await;
    let none = folder.xinfu(&["grant", "list", "one"]).await.ok();
    assert_eq!((&*none.out, &*none.err), ("", "no grants are held\n"));
    let server = folder.serve().await;
    for (openid, scope) in [("oA", "snsapi_base"), ("oB", "snsapi_userinfo"), ("oB", "snsapi_base")]
    {
        let user = json!({"appid": "wx1", "openid": openid, "unionid": format!("u{openid}")});
        sim.control("/sim/users", &user).await;
        let consent = json!({"openid": openid, "scope": scope});
        let code = sim.control("/sim/apps/wx1/codes", &consent).await;
        let (status, body) = server.post("/v1/apps/one/oauth/exchange", &key, &code).await;
        assert_eq!(status, 200, "{body}");
    }

    let table = folder.xinfu(&["grant", "list", "one"]).await.ok().out;
    let lines: Vec<_> = table.lines().collect();
    assert_eq!(lines.len(), 4, "{table}");
    assert!(lines[0].starts_with("OPENID  UNIONID  SCOPE"), "{table}");
    assert!(lines[1].starts_with("oA      -        snsapi_base      live"), "{table}");
    assert!(lines[2].starts_with("oB      uoB      snsapi_userinfo  live"), "{table}");
    let list = folder.xinfu(&["grant", "list", "one", "--json"]).await.ok().json();
    assert_eq!((&list[0]["openid"], &list[1]["openid"]), (&json!("oA"), &json!("oB")));
    let part = folder.xinfu(&["grant", "list", "one", "--limit", "1", "--json"]).await.ok();
    assert_eq!(part.json().as_array().unwrap().len(), 1);
    assert!(part.err.contains("--after oA"), "{}", part.err);
    let rest = folder.xinfu(&["grant", "list", "wx1", "--after", "oA", "--json"]).await.ok();
    assert_eq!(rest.json(), json!([list[1]]));

    let shown = folder.xinfu(&["grant", "show", "one", "oB", "--json"]).await.ok().json();
    assert_eq!(shown, list[1]);
    assert_eq!(shown, server.get("/v1/apps/one/grants/oB", &key).await.1);
    let shown = folder.xinfu(&["grant", "show", "one", "oB"]).await.ok().out;
    assert_eq!(shown.lines().count(), 3, "{shown}");
    folder.xinfu(&["grant", "show", "one", "o B"]).await.failed(2);
    folder.xinfu(&["grant", "list", "one", "--limit", "0"]).await.failed(2);
    folder.xinfu(&["grant", "list", "two"]).await.failed(1);

    folder.xinfu(&["grant", "remove", "one", "oB"]).await.ok();
    let again = folder.xinfu(&["grant", "remove", "one", "oB"]).await.failed(1);
    assert!(again.err.contains("nothing is held of a user `oB` in `one`"), "{}", again.err);
    folder.xinfu(&["grant", "show", "one", "oB"]).await.failed(1);
    assert_eq!(server.get("/v1/apps/one/grants/oB", &key).await.0, 404);
    assert_eq!(server.delete("/v1/apps/one/grants/oA", &key).await.0, 204);
    let audit = folder.xinfu(&["audit"]).await.ok().out;
    assert_eq!(audit.matches("grant.remove").count(), 2, "{audit}");
}
