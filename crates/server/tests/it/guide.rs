//! The guide: its lines work as they stand there.

use std::path::PathBuf;

use serde_json::Value;
use tokio::process::Command;

use crate::process::{Folder, Process};

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
async fn the_lines_about_logins_work_as_pasted() {
    let folder = Folder::new();
    let command = folder.command(&["demo", "--json", "--port-base", "0"]);
    let mut demo = Process::start(command, &folder.path("demo"));
    let ready: Value = serde_json::from_str(&demo.first_line("{").await).unwrap();
    let text = |name: &str| ready[name].as_str().unwrap().to_owned();
    let mut shell = Command::new("sh");
    shell.args(["-euc", &pasted(&read("oauth.md"))]).kill_on_drop(true);
    for (name, value) in [("API", "api"), ("SIM", "sim"), ("CONTROL", "sim_control")] {
        shell.env(name, text(value));
    }
    shell.env("AUTH", format!("Authorization: Bearer {}", text("key")));
    let output = shell.output().await.unwrap();
    let printed = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{printed}");

    let answers: Vec<&str> = printed.lines().collect();
    let expected = [
        "/connect/oauth2/authorize?",
        "\"is_snapshotuser\":false",
        "\"is_snapshotuser\":false",
        "problem:code-used",
        "\"nickname\":\"小雨",
        "\"state\":\"live\"",
        "\"now\"",
        "\"nickname\":\"小雨",
        "{}",
        "problem:reauthorize",
        "\"is_snapshotuser\":true",
        "204",
        "problem:no-grant",
    ];
    assert_eq!(answers.len(), expected.len(), "{printed}");
    for (answer, expected) in answers.iter().zip(expected) {
        assert!(answer.contains(expected), "{expected}: {answer}");
    }
    assert_eq!(answers[1], answers[2]);
    assert_eq!(demo.terminate().await, Some(0));
}
