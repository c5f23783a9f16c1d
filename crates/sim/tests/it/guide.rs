//! The guide: its lines work as they stand there, and it leaves nothing out.

use std::path::PathBuf;

use clock::Clock;
use serde_json::json;
use sim::{AppKind, AppSpec, Options, Switches};
use tokio::process::Command;

use crate::harness::World;

fn read(name: &str) -> String {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../docs/guide").join(name);
    std::fs::read_to_string(path).unwrap()
}

/// The lines to paste of a document.
fn pasted(document: &str) -> String {
    let (mut lines, mut fence) = (String::new(), None);
    for line in document.lines() {
        if let Some(language) = line.strip_prefix("```") {
            fence = if fence.is_some() { None } else { Some(language) };
        } else if fence == Some("sh") {
            lines.push_str(line);
            lines.push('\n');
        }
    }
    lines
}

#[tokio::test]
async fn every_switch_and_fault_stands_in_both_languages() {
    let world = World::new().await;
    let switches = json!(Switches::default());
    let mut names: Vec<String> = switches.as_object().unwrap().keys().cloned().collect();
    let refused = world.command("POST", "/sim/faults", r#"{"kind":"fire"}"#).await.json();
    let kinds = refused["error"].as_str().unwrap().split('`').skip(3).step_by(2);
    names.extend(kinds.map(str::to_owned));
    assert!(names.contains(&"latency_before".to_owned()), "{refused}");
    for document in [read("simulator.md"), read("simulator.zh-CN.md")] {
        for name in &names {
            assert!(document.contains(&format!("`{name}`")), "{name}");
        }
    }
}

#[tokio::test]
async fn the_lines_work_as_pasted() {
    let world = World::of(Options::new(Clock::shifted(), 1)).await;
    for (appid, kind) in
        [("wx1", AppKind::Official), ("wx2", AppKind::Website), ("wx3", AppKind::MiniProgram)]
    {
        let spec = AppSpec { kind, ..AppSpec::new(appid, format!("secret-of-{appid}")) };
        world.sim.add_app(spec.with_loopback_redirects());
    }
    let lines = pasted(&read("simulator.md"));
    let lines = lines.replace("127.0.0.1:7090", &world.api.to_string());
    let lines = lines.replace("127.0.0.1:7091", &world.control.to_string());
    let shell = Command::new("sh").args(["-euc", &lines]).kill_on_drop(true).output().await;
    let output = shell.unwrap();
    let printed = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{printed}");

    let answers =
        printed.lines().filter(|line| line.starts_with(['{', '[']) || line.contains("back?"));
    let expected = [
        "\"appid\":\"wx1\"",
        "\"secret\":",
        "\"ip_whitelist\":[\"192.0.2.1\"]",
        "\"added\":4",
        "小雨",
        "\"errmsg\":\"ok\"",
        "\"messages\":[{",
        "\"now\":",
        "\"now\":",
        "\"access_token\":",
        "\"path\":\"/cgi-bin/token\"",
        "\"ids\":[1]",
        "\"ids\":[2,3]",
        "\"suffix\":\"hints\"",
        "{}",
        "\"faults\":[]",
        "\"token\":",
        "\"openid\":\"o1\"",
        "\"js_code\":",
        "\"encryptedData\":",
        "{}",
        "\"auto_consent\":true",
        "location: http://127.0.0.1/back?code=",
        "{}",
        "location: http://127.0.0.1/back?code=",
        "x-sim-second-callback: http://127.0.0.1/back?code=",
        "{}",
        "\"token_lifetime_secs\":7200",
        "\"expired_code\":42003",
        "{}",
    ];
    let answers: Vec<&str> = answers.collect();
    assert_eq!(answers.len(), expected.len(), "{printed}");
    for (answer, expected) in answers.iter().zip(expected) {
        assert!(answer.contains(expected), "{expected}: {answer}");
    }
}
