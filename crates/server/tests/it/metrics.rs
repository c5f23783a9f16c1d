//! The admin listener, and the rates that it shows.

use std::num::NonZeroU32;

use broker::{Bounds, key::Permission};
use server::http::{ADMIN_PATHS, ProblemType};
use sim::{Fault, FaultKind, Issuer};

use crate::{
    harness::{APP, Answer, OPENID, Setup, World, pass},
    sdk::Sdk,
};

const INFO: &str = "/cgi-bin/user/info";

async fn admin(world: &World, method: &str, path: &str) -> Answer {
    let request = format!("{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    Answer::parse(&World::exchange_at(world.admin, request.as_bytes()).await).unwrap()
}

async fn page(world: &World) -> String {
    let answer = admin(world, "GET", "/metrics").await;
    assert_eq!(answer.status, 200);
    let name = answer.header("content-type").unwrap();
    assert!(name.starts_with("application/openmetrics-text"), "{name}");
    String::from_utf8(answer.body).unwrap()
}

#[track_caller]
fn shows(page: &str, line: &str) {
    assert!(page.lines().any(|it| it == line), "no `{line}` in\n{page}");
}

#[tokio::test(start_paused = true)]
async fn a_call_that_could_not_be_sent_again_is_not_counted_as_sent_again() {
    let world = World::new().await;
    let sdk = Sdk::of(&world).await;
    let info = format!("&openid={OPENID}");
    sdk.call("GET", INFO, &info, None).await;
    world.sim.foreign_refresh(APP, Issuer::Stable, true).unwrap();
    let refuse = FaultKind::Errcode { code: 40164, ip: None, message: None };
    world.sim.set_fault(Fault::new(refuse).on("/cgi-bin/stable_token"));
    let answer = sdk.call("GET", INFO, &info, None).await;
    assert_eq!(answer.json()["errcode"], -1, "{answer:?}");
    shows(&page(&world).await, "xinfu_proxy_replays_total 0");
}

#[tokio::test(start_paused = true)]
async fn what_was_done_is_counted() {
    let world = World::new().await;
    let sdk = Sdk::of(&world).await;
    let info = format!("&openid={OPENID}");
    sdk.call("GET", INFO, &info, None).await;
    world.sim.foreign_refresh(APP, Issuer::Stable, true).unwrap();
    sdk.call("GET", INFO, &info, None).await;
    sdk.call("GET", INFO, "&openid=nobody", None).await;
    sdk.call("GET", "/made/up", "", None).await;
    let token = world.token().await;
    world.get("/v1/apps/shop/tickets/jsapi").await;
    let page = page(&world).await;

    let app = format!("appid=\"{APP}\"");
    let key = &world.app.broker.client_keys()[0].id;
    for line in [
        format!("xinfu_upstream_requests_total{{{app},api=\"{INFO}\",class=\"ok\"}} 2"),
        format!("xinfu_upstream_requests_total{{{app},api=\"{INFO}\",class=\"errcode\"}} 1"),
        format!("xinfu_upstream_requests_total{{{app},api=\"other\",class=\"errcode\"}} 1"),
        "xinfu_proxy_replays_total 1".to_owned(),
        "xinfu_foreign_refresh_detected_total 1".to_owned(),
        "xinfu_reports_total 1".to_owned(),
        format!("xinfu_token_refresh_total{{{app},kind=\"token\",result=\"ok\",errcode=\"\"}} 2"),
        format!(
            "xinfu_token_refresh_total{{{app},kind=\"jsapi_ticket\",result=\"ok\",errcode=\"\"}} 1"
        ),
        format!("xinfu_token_expires_at_seconds{{{app},kind=\"token\"}} {}.0", token["expires_at"]),
        format!("xinfu_token_generation{{{app},kind=\"token\"}} 2.0"),
        format!("xinfu_token_read_total{{client=\"{key}\",result=\"ok\"}} 1"),
        format!("xinfu_token_read_total{{client=\"{key}\",result=\"unavailable\"}} 0"),
        format!("xinfu_rate_limited_total{{client=\"{key}\"}} 0"),
        format!("xinfu_quota_used{{{app},api=\"stable_token\"}} 2.0"),
        format!("xinfu_quota_limit{{{app},api=\"stable_token\"}} 500000.0"),
        "xinfu_token_refresh_duration_seconds_count 5".to_owned(),
        "xinfu_apps 3.0".to_owned(),
        "# TYPE xinfu_token_generation gauge".to_owned(),
        "# EOF".to_owned(),
    ] {
        shows(&page, &line);
    }
    // No secret is said.
    let secrets = [token["access_token"].as_str().unwrap(), &world.key, &sdk.token()];
    assert!(!secrets.iter().any(|secret| page.contains(*secret)), "{page}");
    assert!(!page.contains("/made/up"), "{page}");
}

#[tokio::test(start_paused = true)]
async fn a_token_that_a_mistake_puts_into_a_path_is_not_told() {
    let world = World::new().await;
    let sdk = Sdk::of(&world).await;
    let token = world.token().await["access_token"].as_str().unwrap().to_owned();
    let path = format!("/cgi-bin/user/info/{token}");
    let gateway = FaultKind::BadGateway { processed: false };
    world.sim.set_fault(Fault::new(gateway).on(&path).times(1));
    assert_eq!(sdk.call("GET", &path, "", None).await.status, 502);
    let short = "/cgi-bin/user/oops";
    world.sim.set_fault(Fault::new(FaultKind::BadGateway { processed: true }).on(short).times(1));
    assert_eq!(sdk.call("GET", short, "", None).await.status, 502);
    let page = page(&world).await;
    assert!(!page.contains(&token) && !page.contains("oops"), "{page}");
    shows(
        &page,
        &format!(
            "xinfu_upstream_requests_total{{appid=\"{APP}\",api=\"other\",class=\"unanswered\"}} 2"
        ),
    );
}

#[tokio::test(start_paused = true)]
async fn the_admin_listener_has_its_paths_and_no_other() {
    let world = World::new().await;
    for path in ADMIN_PATHS {
        assert_eq!(admin(&world, "GET", path).await.status, 200, "{path}");
        assert_eq!(admin(&world, "POST", path).await.status, 405, "{path}");
    }
    for path in [
        "/",
        "/v1/apps/shop/token",
        "/v1/openapi.json",
        "/wx/shop/cgi-bin/user/get",
        "/cgi-bin/token",
        "/metrics/",
        "//metrics",
    ] {
        admin(&world, "GET", path).await.check_problem(ProblemType::NotFound);
    }
    // And services do not find it.
    assert_eq!(world.get("/metrics").await.json()["errcode"], 41001);
}

#[tokio::test(start_paused = true)]
async fn a_store_that_is_away_keeps_no_figures_back() {
    let world = World::new().await;
    world.token().await;
    world.store.set_reachable(false);
    shows(&page(&world).await, "xinfu_apps 3.0");
}

#[tokio::test(start_paused = true)]
async fn reads_that_end_without_a_token_are_counted_apart() {
    let world = World::with(Setup { lazy: true, ..Setup::default() }).await;
    let refuse = FaultKind::Errcode { code: 40164, ip: None, message: None };
    world.sim.set_fault(Fault::new(refuse).on("/cgi-bin/stable_token"));
    for _ in 0..3 {
        assert_eq!(world.get(&format!("/v1/apps/{APP}/token")).await.status, 503);
    }
    let key = &world.app.broker.client_keys()[0].id;
    let line = format!("xinfu_token_read_total{{client=\"{key}\",result=\"unavailable\"}} 3");
    shows(&page(&world).await, &line);
}

#[tokio::test(start_paused = true)]
async fn who_calls_too_fast_hears_it_in_wechats_words() {
    let bounds = Bounds {
        key_calls_per_minute: NonZeroU32::new(60),
        app_calls_per_minute: NonZeroU32::new(90),
        ..Bounds::default()
    };
    let world = World::with(Setup { bounds, ..Setup::default() }).await;
    let one = world.add_key("one", [Permission::Proxy], broker::key::Apps::All).await;
    let two = world.add_key("two", [Permission::Proxy], broker::key::Apps::All).await;
    let (one, two) = (Sdk::with_key(&world, &one).await, Sdk::with_key(&world, &two).await);
    let count = async |sdk: &Sdk<'_>| {
        let mut carried = 0;
        for _ in 0..20 {
            let answer = sdk.call("GET", "/cgi-bin/user/get", "", None).await;
            match answer.json()["errcode"].as_i64() {
                None => carried += 1,
                Some(code) => {
                    assert_eq!(code, 45011, "{answer:?}");
                    let text = answer.json()["errmsg"].as_str().unwrap().to_owned();
                    assert!(text.starts_with("api minute-quota reach limit"), "{text}");
                }
            }
        }
        carried
    };
    // A sixth of a minute's calls may come at once: ten of a key, fifteen of the app.
    assert_eq!(count(&one).await, 10);
    assert_eq!(count(&two).await, 5);
    let proxied = world.ask("GET", "/wx/shop/cgi-bin/user/get", Some(&two.key), None).await;
    assert_eq!((proxied.status, &proxied.json()["errcode"]), (200, &45011.into()), "{proxied:?}");
    pass(10).await;
    assert_eq!(count(&two).await, 10);
    let limited: u64 = world.app.broker.client_keys().iter().map(|key| key.limited()).sum();
    // Ten of the first, fifteen and the proxied one of the second, and then ten more.
    assert_eq!(limited, 36);
}
