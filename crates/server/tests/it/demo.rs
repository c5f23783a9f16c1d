//! The demonstration, as a newcomer runs it.

use std::time::Duration;

use serde_json::{Value, json};

use crate::process::{Folder, PATIENCE, Process, http};

#[tokio::test]
async fn the_walk_passes() {
    let began = tokio::time::Instant::now();
    let printed = Folder::new().xinfu(&["demo", "--once"]).await.ok();
    assert!(printed.out.contains("13 of 13 steps passed"), "{}", printed.out);
    assert!(!printed.out.contains("FAIL") && !printed.out.contains('\u{1b}'), "{}", printed.out);
    assert_eq!(printed.err, "");
    assert!(began.elapsed() < Duration::from_secs(60));
}

#[tokio::test]
async fn one_line_of_json_when_ready() {
    let folder = Folder::new();
    let command = folder.command(&["demo", "--json", "--port-base", "0"]);
    let mut demo = Process::start(command, &folder.path("demo"));
    let line = demo.first_line("{").await;
    assert_eq!(demo.out().lines().count(), 1);
    let ready: Value = serde_json::from_str(&line).unwrap();
    let fields: Vec<_> = ready.as_object().unwrap().keys().map(String::as_str).collect();
    let promised = ["api", "public", "admin", "sim", "sim_control", "apps", "key", "admin_key"];
    assert_eq!(fields, promised);
    for none in ["public", "admin_key"] {
        assert_eq!(ready[none], Value::Null);
    }
    let metrics = format!("{}/metrics", ready["admin"].as_str().unwrap());
    let (_, metrics) = http("GET", &metrics, None, None).await.unwrap();
    assert!(metrics.as_str().unwrap().contains("xinfu_apps 2.0"), "{metrics}");
    let (api, key) = (ready["api"].as_str().unwrap(), ready["key"].as_str().unwrap());
    let control = ready["sim_control"].as_str().unwrap();

    for app in ready["apps"].as_array().unwrap() {
        let fields: Vec<_> = app.as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(fields, ["appid", "alias", "secret"]);
        let url = format!("{api}/v1/apps/{}/token", app["alias"].as_str().unwrap());
        let (status, before) = http("GET", &url, Some(key), None).await.unwrap();
        assert_eq!(status, 200, "{before}");

        // Time moves in steps that wait for the refreshes that fall due.
        let seconds = json!({"seconds": 7200});
        let clock = format!("{control}/sim/clock/advance");
        http("POST", &clock, None, Some(&seconds)).await.unwrap();
        let (status, after) = http("GET", &url, Some(key), None).await.unwrap();
        assert_eq!(status, 200, "{after}");
        assert!(after["generation"].as_i64() > before["generation"].as_i64(), "{after}");
    }
    assert_eq!(demo.terminate().await, Some(0));
}

#[tokio::test]
async fn ports_are_numbered_and_a_taken_one_is_told() {
    let folder = Folder::new();
    let (base, held) = three_ports().await;
    let printed = folder.xinfu(&["demo", "--port-base", &base.to_string()]).await;
    assert_eq!(printed.code, Some(1), "{}", printed.out);
    assert!(printed.err.contains(&format!("127.0.0.1:{base}")), "{}", printed.err);
    assert!(printed.err.contains("hint: `--port-base 0`"), "{}", printed.err);
    drop(held);

    let command = folder.command(&["demo", "--json", "--port-base", &base.to_string()]);
    let mut demo = Process::start(command, &folder.path("demo"));
    let line = crate::process::eventually(PATIENCE, || async {
        demo.out().lines().next().map(str::to_owned)
    });
    let ready: Value = serde_json::from_str(&line.await.unwrap()).unwrap();
    let url = |at: u16| json!(format!("http://127.0.0.1:{}", base + at));
    assert_eq!([&ready["api"], &ready["sim"], &ready["sim_control"]], [&url(0), &url(1), &url(2)]);
    demo.terminate().await;
}

/// Three ports in a row, held, below those that the system hands out by itself, so that nobody
/// else here gets them once they are let go.
async fn three_ports() -> (u16, Vec<tokio::net::TcpListener>) {
    let hold = async |base: u16| {
        let mut held = Vec::new();
        for at in 0..3 {
            held.push(tokio::net::TcpListener::bind(("127.0.0.1", base + at)).await.ok()?);
        }
        Some(held)
    };
    for base in (20_000..28_000).step_by(3) {
        if let Some(held) = hold(base).await {
            return (base, held);
        }
    }
    panic!("no three ports in a row are free");
}
