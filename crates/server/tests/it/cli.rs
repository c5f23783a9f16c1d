//! The command line, as real processes beside a real server and a real simulator.

use std::path::Path;

use serde_json::json;

use crate::process::{FOLLOWED, Folder, PATIENCE, SimProcess, eventually};

const SECRET: &str = "0123456789abcdef0123456789abcdef";

#[tokio::test]
async fn from_nothing_to_a_token() {
    let sim = SimProcess::start(&[("wx1", SECRET)]).await;
    let folder = Folder::ready(&sim).await;
    folder.xinfu(&["check-config"]).await.ok();
    let printed = folder.add_app("wx1", SECRET, &["--alias", "one"]).await.ok();
    assert_eq!(printed.out, "");
    assert!(printed.err.contains("registered `wx1`"), "{}", printed.err);
    let key = folder.add_key(&["shop", "--allow", "token", "--app", "one"]).await;
    assert!(key.starts_with("xk_"), "{key}");

    let mut server = folder.serve().await;
    server.answers("one", &key, 200, PATIENCE).await;
    let (_, answer) = server.get("/v1/apps/wx1/token", &key).await;
    // The command line reads the same token from the same store, and WeChat was asked once.
    let got = folder.xinfu(&["token", "get", "one"]).await.ok();
    assert_eq!(answer["access_token"], got.out.trim());
    assert_eq!(sim.count("/cgi-bin/stable_token", "wx1", None).await, 1);
    let got = folder.xinfu(&["token", "get", "one", "--json"]).await.ok().json();
    assert_eq!(got["generation"], 1);
    let status = folder.xinfu(&["token", "status"]).await.ok();
    assert!(status.out.contains("fresh, refreshing at"), "{}", status.out);
    assert_eq!(server.process.terminate().await, Some(0));
}

#[tokio::test]
async fn a_running_server_follows_within_two_seconds() {
    let sim = SimProcess::start(&[("wx1", SECRET), ("wx2", SECRET)]).await;
    let folder = Folder::ready(&sim).await;
    let mut server = folder.serve().await;

    folder.add_app("wx1", SECRET, &[]).await.ok();
    let key = folder.add_key(&["all", "--everything"]).await;
    server.answers("wx1", &key, 200, FOLLOWED).await;
    folder.add_app("wx2", SECRET, &["--issuer", "classic"]).await.ok();
    server.answers("wx2", &key, 200, FOLLOWED).await;
    folder.xinfu(&["app", "set", "wx2", "--alias", "two"]).await.ok();
    server.answers("two", &key, 200, FOLLOWED).await;
    folder.xinfu(&["app", "set", "two", "--no-alias"]).await.ok();
    server.answers("two", &key, 404, FOLLOWED).await;
    folder.xinfu(&["app", "remove", "wx2", "--yes"]).await.ok();
    server.answers("wx2", &key, 404, FOLLOWED).await;
    folder.xinfu(&["key", "revoke", "all"]).await.ok();
    server.answers("wx1", &key, 401, FOLLOWED).await;

    // A command that fetched told the server, which serves the new generation.
    let key = folder.add_key(&["more", "--everything"]).await;
    server.answers("wx1", &key, 200, FOLLOWED).await;
    sim.control("/sim/clock/advance", &json!({"seconds": 7000})).await;
    folder.xinfu(&["token", "refresh", "wx1"]).await.ok();
    let path = "/v1/apps/wx1/token?after=1&wait=2";
    let (status, answer) = server.get(path, &key).await;
    assert_eq!((status, &answer["generation"]), (200, &json!(2)));
    assert_eq!(server.process.terminate().await, Some(0));
}

#[tokio::test]
async fn apps_without_a_server() {
    let sim = SimProcess::start(&[("wx1", SECRET)]).await;
    let folder = Folder::ready(&sim).await;
    folder.add_app("wx1", SECRET, &["--alias", "one", "--kind", "test"]).await.ok();
    let printed = folder.add_app("wx1", SECRET, &[]).await.failed(1);
    assert!(printed.err.contains("app `wx1` is registered already"), "{}", printed.err);
    assert!(printed.err.contains("hint: `xinfu app set` changes it"), "{}", printed.err);
    for (appid, args) in [("wx2", &["--alias", "one"][..]), ("one", &[])] {
        let printed = folder.add_app(appid, SECRET, args).await.failed(1);
        assert!(printed.err.contains("the name `one` is taken"), "{}", printed.err);
    }
    let printed = folder.add_app("wx 1", SECRET, &[]).await.failed(2);
    assert!(printed.err.contains("an appid has 1 to 64 characters"), "{}", printed.err);
    folder.add_app("wx3", "", &[]).await.failed(2);
    let printed = folder.xinfu(&["app", "add", "wx3"]).await.failed(2);
    assert!(printed.err.contains("--secret-file"), "{}", printed.err);

    let apps = folder.xinfu(&["app", "list", "--json"]).await.ok().json();
    assert_eq!(apps[0]["appid"], "wx1");
    assert_eq!(apps[0]["kind"], "test");
    let shown = folder.xinfu(&["app", "show", "one"]).await.ok();
    assert!(shown.out.contains("set, not shown") && !shown.out.contains(SECRET), "{}", shown.out);
    let printed = folder.xinfu(&["app", "remove", "one"]).await.failed(1);
    assert!(printed.err.contains("hint: `--yes`"), "{}", printed.err);
    folder.xinfu(&["app", "remove", "one", "--yes"]).await.ok();
    let printed = folder.xinfu(&["token", "get", "one"]).await.failed(1);
    assert!(printed.err.contains("error: no app `one`"), "{}", printed.err);
}

#[tokio::test]
async fn a_wrong_secret_is_explained_and_mended() {
    let sim = SimProcess::start(&[("wx1", SECRET)]).await;
    let folder = Folder::ready(&sim).await;
    folder.add_app("wx1", "ffffffffffffffffffffffffffffffff", &[]).await.ok();
    let printed = folder.xinfu(&["token", "get", "wx1"]).await.failed(1);
    assert!(printed.err.contains("40125") && printed.err.contains("hint:"), "{}", printed.err);
    let status = folder.xinfu(&["token", "status", "wx1"]).await.ok();
    assert!(status.out.contains("stopped: ") && status.out.contains("do this: "), "{}", status.out);
    let doctor = folder.xinfu(&["doctor"]).await.failed(1);
    assert!(doctor.out.contains("the AppSecret is wrong"), "{}", doctor.out);
    assert!(doctor.out.contains("1 thing is wrong"), "{}", doctor.out);

    let args = ["app", "set-secret", "wx1", "--secret-file", "-"];
    folder.xinfu_with(&format!("{SECRET}\n"), &args).await.ok();
    folder.xinfu(&["token", "get", "wx1"]).await.ok();
    let doctor = folder.xinfu(&["doctor"]).await.ok();
    assert!(doctor.out.contains("nothing is wrong"), "{}", doctor.out);
}

#[tokio::test]
async fn doctor_names_the_address_for_the_whitelist() {
    let sim = SimProcess::start(&[("wx1", SECRET)]).await;
    sim.control("/sim/apps/wx1", &json!({"ip_whitelist": ["10.0.0.1"]})).await;
    let folder = Folder::ready(&sim).await;
    folder.add_app("wx1", SECRET, &[]).await.ok();
    let doctor = folder.xinfu(&["doctor"]).await.failed(1);
    assert!(doctor.out.contains("is not on the app's IP whitelist"), "{}", doctor.out);
    assert!(doctor.out.contains("do this: add 127.0.0.1"), "{}", doctor.out);
    let status = folder.xinfu(&["token", "status", "wx1"]).await.ok();
    assert!(status.out.contains("backing off until"), "{}", status.out);
    let doctor = folder.xinfu(&["app", "add", "wx9", "--secret-file", "nowhere"]).await.failed(2);
    assert!(doctor.err.contains("`nowhere`"), "{}", doctor.err);
}

#[tokio::test]
async fn doctor_ends_no_classic_token() {
    let sim = SimProcess::start(&[("wx1", SECRET)]).await;
    let folder = Folder::ready(&sim).await;
    folder.add_app("wx1", SECRET, &["--issuer", "classic"]).await.ok();
    let doctor = folder.xinfu(&["doctor"]).await.ok();
    assert!(doctor.out.contains("WeChat answers with a token"), "{}", doctor.out);
    // Whatever WeChat would say now, it is not asked: the token goes on, and nothing is called fine.
    sim.control("/sim/apps/wx1", &json!({"ip_whitelist": ["10.0.0.1"]})).await;
    for _ in 0..2 {
        let doctor = folder.xinfu(&["doctor"]).await.ok();
        let line = doctor.out.lines().find(|line| line.contains("app wx1")).unwrap();
        assert!(line.starts_with("note") && line.contains("not tried"), "{line}");
        assert!(line.contains("`xinfu token refresh wx1`"), "{line}");
    }
    assert_eq!(sim.count("/cgi-bin/token", "wx1", None).await, 1);
    assert_eq!(sim.count("/cgi-bin/user/get", "wx1", None).await, 0);
    let got = folder.xinfu(&["token", "get", "wx1", "--json"]).await.ok().json();
    assert_eq!(got["generation"], 1);
}

#[tokio::test]
async fn doctor_tells_what_stands_against_a_live_token() {
    let sim = SimProcess::start(&[("wx1", SECRET)]).await;
    let folder = Folder::ready(&sim).await;
    folder.add_app("wx1", SECRET, &[]).await.ok();
    folder.xinfu(&["token", "get", "wx1"]).await.ok();
    for (app, what, action) in [
        (json!({"ip_whitelist": ["10.0.0.1"]}), "is not on the app's IP whitelist", "127.0.0.1"),
        (
            json!({"ip_whitelist": [], "secret": "another"}),
            "the AppSecret is wrong",
            "Set the AppSecret",
        ),
    ] {
        sim.control("/sim/apps/wx1", &app).await;
        let doctor = folder.xinfu(&["doctor"]).await.failed(1);
        assert!(doctor.out.contains(what) && doctor.out.contains("do this: "), "{}", doctor.out);
        assert!(doctor.out.contains(action), "{}", doctor.out);
        assert!(doctor.out.contains("1 thing is wrong"), "{}", doctor.out);
    }
}

#[tokio::test]
async fn doctor_tells_the_trouble_of_a_classic_token_that_lives() {
    let sim = SimProcess::start(&[("wx1", SECRET)]).await;
    // Due after half of its life; long enough for a command to run in the other half.
    sim.control("/sim/switches", &json!({"token_lifetime_secs": 20})).await;
    let folder = Folder::ready(&sim).await;
    folder.add_app("wx1", SECRET, &["--issuer", "classic"]).await.ok();
    folder.xinfu(&["token", "get", "wx1"]).await.ok();
    sim.control("/sim/apps/wx1", &json!({"ip_whitelist": ["10.0.0.1"]})).await;
    let mut server = folder.serve().await;
    eventually(PATIENCE, || async {
        let status = folder.xinfu(&["token", "status", "wx1", "--json"]).await.ok().json();
        (!status["credentials"][0]["trouble"].is_null()).then_some(())
    })
    .await
    .expect("the refresh that is due fails");
    assert_eq!(server.process.terminate().await, Some(0));
    let calls = sim.count("/cgi-bin/token", "wx1", None).await;
    let doctor = folder.xinfu(&["doctor"]).await.failed(1);
    assert!(doctor.out.contains("app wx1: the address that xinfu calls from"), "{}", doctor.out);
    assert!(doctor.out.contains("do this: add 127.0.0.1"), "{}", doctor.out);
    assert!(doctor.out.contains("app wx1: not tried"), "{}", doctor.out);
    assert_eq!(sim.count("/cgi-bin/token", "wx1", None).await, calls);
}

#[tokio::test]
async fn doctor_knows_who_answers_at_its_address() {
    let sim = SimProcess::start(&[]).await;
    let mut folder = Folder::ready(&sim).await;
    let server = folder.serve().await;
    folder.set("XINFU_LISTEN_API", server.url.trim_start_matches("http://"));
    let doctor = folder.xinfu(&["doctor"]).await.ok();
    assert!(doctor.out.contains("listener: xinfu answers on"), "{}", doctor.out);
    folder.set("XINFU_LISTEN_API", sim.api.trim_start_matches("http://"));
    let doctor = folder.xinfu(&["doctor"]).await.failed(1);
    assert!(doctor.out.contains("something else answers on"), "{}", doctor.out);
}

#[tokio::test]
async fn doctor_compares_the_clock_with_wechats() {
    let sim = SimProcess::start(&[]).await;
    let mut folder = Folder::ready(&sim).await;
    let doctor = folder.xinfu(&["doctor"]).await.ok();
    assert!(doctor.out.contains("UTC, as WeChat has it"), "{}", doctor.out);
    sim.control("/sim/faults", &json!({"kind": "clock_skew", "seconds": -7200})).await;
    let doctor = folder.xinfu(&["doctor"]).await.failed(1);
    assert!(doctor.out.contains(" ahead of WeChat's"), "{}", doctor.out);
    assert!(doctor.out.contains("NTP"), "{}", doctor.out);
    folder.set("XINFU_UPSTREAM_BASE_URLS", "http://127.0.0.1:1");
    let doctor = folder.xinfu(&["doctor"]).await.ok();
    let line = doctor.out.lines().find(|line| line.contains("clock: it is")).unwrap();
    assert!(line.starts_with("note") && line.contains("could not be read"), "{line}");
}

#[tokio::test]
async fn doctor_only_looks_for_the_store() {
    let sim = SimProcess::start(&[]).await;
    let mut folder = Folder::ready(&sim).await;
    let doctor = folder.xinfu(&["doctor"]).await.ok();
    let line = doctor.out.lines().find(|line| line.contains("store: ")).unwrap();
    assert!(line.starts_with("note") && line.contains("is not there yet"), "{line}");
    assert!(!folder.path("xinfu.db").exists());
    // A folder that is missing is never made: it is a typing error, most likely.
    folder.set("XINFU_STORE", "sqlite:dir/typo.db");
    let doctor = folder.xinfu(&["doctor"]).await.failed(1);
    assert!(doctor.out.contains("there is no folder `dir`"), "{}", doctor.out);
    let printed = folder.xinfu(&["app", "list"]).await.failed(1);
    assert!(printed.err.contains("hint: `mkdir -p dir` makes it"), "{}", printed.err);
    assert!(!folder.path("dir").exists());
}

#[tokio::test]
async fn doctor_leaves_older_tables_as_they_are() {
    /// Where SQLite keeps the number that is our version, as big-endian.
    const VERSION: std::ops::Range<usize> = 60..64;
    let sim = SimProcess::start(&[]).await;
    let folder = Folder::ready(&sim).await;
    folder.xinfu(&["app", "list"]).await.ok();
    let path = folder.path("xinfu.db");
    let mut file = std::fs::read(&path).unwrap();
    file[VERSION].copy_from_slice(&[0, 0, 0, 1]);
    std::fs::write(&path, &file).unwrap();
    let doctor = folder.xinfu(&["doctor"]).await.ok();
    let line = doctor.out.lines().find(|line| line.contains("store: ")).unwrap();
    assert!(line.starts_with("note") && line.contains("an older version"), "{line}");
    assert_eq!(std::fs::read(&path).unwrap()[VERSION], [0, 0, 0, 1]);
    file[VERSION].copy_from_slice(&[0, 0, 0, 99]);
    std::fs::write(&path, &file).unwrap();
    let doctor = folder.xinfu(&["doctor"]).await.failed(1);
    assert!(doctor.out.contains("run a newer xinfu"), "{}", doctor.out);
}

#[tokio::test]
async fn what_travels_in_the_clear_is_told() {
    let sim = SimProcess::start(&[]).await;
    let mut folder = Folder::ready(&sim).await;
    let doctor = folder.xinfu(&["doctor"]).await.ok();
    assert!(!doctor.out.contains("without TLS"), "{}", doctor.out);
    folder.set("XINFU_LISTEN_API", "0.0.0.0:0");
    folder.set("XINFU_UPSTREAM_BASE_URLS", "http://wechat.test");
    let doctor = folder.xinfu(&["doctor"]).await.ok();
    for words in ["`listen.api` is `0.0.0.0:0` without TLS", "`wechat.test` without TLS"] {
        let line = doctor.out.lines().find(|line| line.contains(words)).unwrap();
        assert!(line.starts_with("note"), "{line}");
    }
    let mut server = folder.serve().await;
    assert_eq!(server.process.terminate().await, Some(0));
    let log = server.process.err();
    assert_eq!(log.matches("WARN").count(), 2, "{log}");
    assert_eq!(log.matches("without TLS").count(), 2, "{log}");
}

#[tokio::test]
async fn a_declared_list_is_applied_once() {
    let sim = SimProcess::start(&[("wx1", SECRET), ("wx2", SECRET)]).await;
    let folder = Folder::ready(&sim).await;
    folder.write("one.secret", &format!("{SECRET}\n"));
    folder.write("two.secret", SECRET);
    let one = "[[apps]]\nappid = \"wx1\"\nalias = \"one\"\nsecret_file = \"one.secret\"\n";
    let two = "[[apps]]\nappid = \"wx2\"\nissuer = \"classic\"\nsecret_file = \"two.secret\"\n";
    folder.write("apps.toml", &format!("{one}{two}"));
    let printed = folder.xinfu(&["app", "apply", "apps.toml"]).await.ok();
    assert_eq!(printed.out, "added wx1\nadded wx2\n");
    let printed = folder.xinfu(&["app", "apply", "apps.toml"]).await.ok();
    assert_eq!(printed.out, "");
    assert!(printed.err.contains("2 as declared already"), "{}", printed.err);

    folder.write("apps.toml", &one.replace("\"one\"", "\"uno\""));
    let printed = folder.xinfu(&["app", "apply", "apps.toml"]).await.ok();
    assert_eq!(printed.out, "changed wx1\n");
    assert!(printed.err.contains("1 registered apps are not in the file"), "{}", printed.err);
    let printed = folder.xinfu(&["app", "apply", "apps.toml", "--prune"]).await.ok();
    assert_eq!(printed.out, "removed wx2\n");

    // A file that was cut off is not a wish for no app.
    folder.write("apps.toml", "");
    for args in [&["app", "apply", "apps.toml"][..], &["app", "apply", "apps.toml", "--prune"]] {
        let printed = folder.xinfu(args).await.failed(2);
        assert!(printed.err.contains("`apps = []` declares"), "{}", printed.err);
    }
    let apps = folder.xinfu(&["app", "list", "--json"]).await.json();
    assert_eq!(apps.as_array().unwrap().len(), 1);

    for (text, words) in [
        ("[[apps]]\nappid = 5555\n", "line 2: `appid`: expected a string"),
        ("[[apps]]\nappid = \"wx1\"\nsecret = \"x\"\n", "line 3"),
        ("[[apps]]\nappid = \"wx1\"\nsecret_file = \"none\"\n", "`secret_file`"),
        ("[[apps]]\nappid = \"wx1\"\nkind = \"x\"\nsecret_file = \"one.secret\"\n", "`kind`"),
        (
            "[[apps]]\nappid = \"wx1\"\nissuer = \"5555\"\nsecret_file = \"one.secret\"\n",
            "`issuer`",
        ),
        (&format!("{two}{one}{one}"), "apps[2] wx1: `appid` `wx1` is a name of apps[1] wx1 too"),
        (&one.replace("\"one\"", "\"w 2\""), "apps[0] wx1: `alias` has 1 to 64"),
    ] {
        folder.write("apps.toml", text);
        let printed = folder.xinfu(&["app", "apply", "apps.toml"]).await.failed(2);
        assert!(printed.err.contains(words), "{}", printed.err);
        assert!(!printed.err.contains("5555"), "{}", printed.err);
        assert_eq!(printed.out, "");
    }
    assert_eq!(folder.xinfu(&["app", "list", "--json"]).await.json().as_array().unwrap().len(), 1);
    folder.write("apps.toml", "apps = []\n");
    let printed = folder.xinfu(&["app", "apply", "apps.toml", "--prune"]).await.ok();
    assert_eq!(printed.out, "removed wx1\n");
}

#[tokio::test]
async fn keys_do_what_they_are_made_for() {
    let sim = SimProcess::start(&[("wx1", SECRET), ("wx2", SECRET)]).await;
    let folder = Folder::ready(&sim).await;
    for app in ["wx1", "wx2"] {
        folder.add_app(app, SECRET, &[]).await.ok();
    }
    folder.xinfu(&["key", "add", "k"]).await.failed(2);
    folder.xinfu(&["key", "add", "k", "--allow", "token"]).await.failed(2);
    folder.xinfu(&["key", "add", "k", "--allow", "everything", "--all-apps"]).await.failed(2);
    folder.xinfu(&["key", "add", "k", "--allow", "token", "--app", "wx9"]).await.failed(1);
    for span in ["0s", "500ms", "36501d", "99999999999d", "soon"] {
        let args = ["key", "add", "k", "--allow", "token", "--all-apps", "--expires-in", span];
        let printed = folder.xinfu(&args).await.failed(2);
        assert!(printed.err.contains("`--expires-in`"), "{}", printed.err);
    }
    let reader = folder.add_key(&["reader", "--allow", "token", "--app", "wx1"]).await;
    let users = folder.add_key(&["users", "--allow", "users,report", "--all-apps"]).await;
    let short = ["short", "--allow", "token", "--all-apps", "--expires-in", "1s"];
    let short = folder.add_key(&short).await;

    let server = folder.serve().await;
    server.answers("wx1", &reader, 200, PATIENCE).await;
    server.answers("wx2", &reader, 404, PATIENCE).await;
    server.answers("wx1", &users, 403, PATIENCE).await;
    server.answers("wx1", &short, 401, PATIENCE).await;
    let list = folder.xinfu(&["key", "list", "--json"]).await.ok();
    let names: Vec<_> =
        list.json().as_array().unwrap().iter().map(|key| key["name"].clone()).collect();
    assert_eq!(names, ["reader", "users"]);
    for key in [&reader, &users, &short] {
        assert!(!list.out.contains(key.as_str()) && !list.err.contains(key.as_str()));
    }
    let shown = folder.xinfu(&["key", "show", "users", "--json"]).await.ok().json();
    assert_eq!(shown[0]["allow"], json!(["report", "users"]));
    assert_eq!(shown[0]["apps"], "all");
    let all = folder.xinfu(&["key", "list", "--all"]).await.ok();
    assert!(all.out.contains("expired"), "{}", all.out);
    folder.xinfu(&["key", "revoke", "nobody"]).await.failed(1);
}

#[tokio::test]
async fn of_several_keys_of_a_name_the_ids_are_told() {
    let folder = Folder::new();
    folder.xinfu(&["init"]).await.ok();
    let add = ["key", "add", "one", "--allow", "token", "--all-apps"];
    let ended = folder.xinfu(&[&add[..], &["--expires-in", "1s"]].concat()).await.ok();
    let made = [folder.xinfu(&add).await.ok(), folder.xinfu(&add).await.ok()];
    let [ended, first, second] = [&ended, &made[0], &made[1]]
        .map(|printed| printed.err.split('`').nth(1).unwrap().to_owned());
    let is_over = || async {
        let live = folder.xinfu(&["key", "list", "--json"]).await.ok().json();
        (live.as_array().unwrap().len() == 2).then_some(())
    };
    eventually(PATIENCE, is_over).await.expect("one expires");
    let printed = folder.xinfu(&["key", "revoke", "one"]).await.failed(2);
    for id in [&first, &second] {
        assert!(printed.err.contains(&format!("`{id}`")), "{}", printed.err);
    }
    assert!(!printed.err.contains(&ended), "{}", printed.err);
    folder.xinfu(&["key", "revoke", &first]).await.ok();
    folder.xinfu(&["key", "revoke", "one"]).await.ok();
}

#[tokio::test]
async fn a_key_can_be_held_to_paths() {
    let folder = Folder::new();
    folder.xinfu(&["init"]).await.ok();
    let paths = ["--path", "/cgi-bin/user/info", "--path", "/cgi-bin/menu/*"];
    let add = ["key", "add", "menus", "--allow", "proxy", "--all-apps"];
    folder.xinfu(&[&add[..], &paths].concat()).await.ok();
    let shown = folder.xinfu(&["key", "show", "menus", "--json"]).await.ok().json();
    assert_eq!(shown[0]["paths"], json!(["/cgi-bin/user/info", "/cgi-bin/menu/*"]));
    for list in [&["key", "list"][..], &["key", "show", "menus"]] {
        let shown = folder.xinfu(list).await.ok();
        assert!(shown.out.contains("/cgi-bin/user/info,/cgi-bin/menu/*"), "{}", shown.out);
    }
    let printed = folder.xinfu(&[&add[..], &["--path", "cgi-bin"]].concat()).await.failed(2);
    assert!(
        printed.err.contains("`paths` hold `cgi-bin`: the path does not begin with `/`; expected"),
        "{}",
        printed.err
    );
    let everything = ["key", "add", "k", "--everything"];
    folder.xinfu(&[&everything[..], &paths].concat()).await.failed(2);
    let token = ["key", "add", "k", "--allow", "token", "--all-apps"];
    let printed = folder.xinfu(&[&token[..], &paths].concat()).await.failed(2);
    assert!(printed.err.contains("`proxy`"), "{}", printed.err);
}

#[tokio::test]
async fn a_user_and_a_refresh() {
    let sim = SimProcess::start(&[("wx1", SECRET)]).await;
    sim.control("/sim/users", &json!({"appid": "wx1", "openid": "oFollower", "remark": "tea"}))
        .await;
    let folder = Folder::ready(&sim).await;
    folder.add_app("wx1", SECRET, &[]).await.ok();
    let user = folder.xinfu(&["user", "get", "wx1", "oFollower"]).await.ok().json();
    assert_eq!((&user["subscribe"], &user["remark"]), (&json!(true), &json!("tea")));
    folder.xinfu(&["user", "get", "wx1", "oNobody"]).await.failed(1);
    let calls = sim.count("/cgi-bin/user/info", "wx1", None).await;
    let printed = folder.xinfu(&["user", "get", "wx1", "o&x=1"]).await.failed(2);
    assert!(printed.err.contains("An openid has 1 to 64 characters"), "{}", printed.err);
    assert_eq!(sim.count("/cgi-bin/user/info", "wx1", None).await, calls);

    let same = folder.xinfu(&["token", "refresh", "wx1"]).await.ok();
    assert!(
        same.err.contains("WeChat answers with the token we have: generation 1"),
        "{}",
        same.err
    );
    // Nobody to ask, so that nothing happens.
    let before = sim.count("/cgi-bin/stable_token", "wx1", None).await;
    let asked = folder.xinfu(&["token", "refresh", "wx1", "--kill-leaked"]).await.failed(1);
    assert!(asked.err.contains("2 of WeChat's 20 forced refreshes"), "{}", asked.err);
    assert_eq!(sim.count("/cgi-bin/stable_token", "wx1", None).await, before);
    for (kind, quota) in [("official", "2 of WeChat's 2000"), ("test", "2 of WeChat's 200 ")] {
        folder.xinfu(&["app", "set", "wx1", "--kind", kind, "--issuer", "classic"]).await.ok();
        let asked = folder.xinfu(&["token", "refresh", "wx1", "--kill-leaked"]).await.failed(1);
        assert!(asked.err.contains(quota), "{}", asked.err);
    }
}

#[tokio::test]
async fn a_refresh_that_fails_tells_what_goes_on() {
    let sim = SimProcess::start(&[("wx1", SECRET)]).await;
    let folder = Folder::ready(&sim).await;
    folder.add_app("wx1", SECRET, &[]).await.ok();
    folder.xinfu(&["token", "get", "wx1"]).await.ok();
    sim.control("/sim/apps/wx1", &json!({"ip_whitelist": ["10.0.0.1"]})).await;
    let printed = folder.xinfu(&["token", "refresh", "wx1"]).await.failed(1);
    assert!(printed.err.contains("hint: add 127.0.0.1"), "{}", printed.err);
    assert!(printed.err.contains("the token in use goes on being served"), "{}", printed.err);
    assert!(printed.err.contains("tries again at"), "{}", printed.err);
    let shown = folder.xinfu(&["token", "status", "wx1", "--json"]).await.ok().json();
    let refresh_at = shown["credentials"][0]["refresh_at"].as_i64().unwrap();
    let now = clock::Clock::real().now().as_secs();
    assert!(refresh_at > now + 3600, "{shown}");
    assert!(printed.err.contains("(in 1 h "), "{}", printed.err);
}

#[tokio::test]
async fn a_website_app_has_no_token_to_refresh() {
    let sim = SimProcess::start(&[("wx1", SECRET)]).await;
    let folder = Folder::ready(&sim).await;
    folder.add_app("wx1", SECRET, &["--kind", "website"]).await.ok();
    let sentence = folder.xinfu(&["token", "get", "wx1"]).await.failed(1).err;
    for args in [&["--yes"][..], &["--kill-leaked", "--yes"]] {
        let printed = folder.xinfu(&[&["token", "refresh", "wx1"], args].concat()).await.failed(1);
        assert_eq!(printed.err, sentence);
    }
    assert_eq!(sim.count("/cgi-bin/stable_token", "wx1", None).await, 0);
}

#[tokio::test]
async fn who_did_what_is_printed() {
    let sim = SimProcess::start(&[("wx1", SECRET)]).await;
    let folder = Folder::ready(&sim).await;
    let printed = folder.xinfu(&["audit"]).await.ok();
    assert!(printed.err.contains("the audit log is empty"), "{}", printed.err);
    folder.add_app("wx1", SECRET, &[]).await.ok();
    folder.xinfu(&["app", "set", "wx1", "--alias", "one"]).await.ok();
    folder.xinfu(&["token", "get", "wx1"]).await.ok();
    folder.xinfu(&["token", "refresh", "wx1"]).await.ok();
    let printed = folder.xinfu(&["audit"]).await.ok();
    let lines: Vec<_> = printed.out.lines().collect();
    assert_eq!(lines.len(), 5, "{}", printed.out);
    let actions = ["token.refresh", "token.read", "app.change", "app.add"];
    for (line, action) in lines[1..].iter().zip(actions) {
        assert!(line.contains(action) && line.contains("operator:"), "{line}");
        assert!(line.contains("wx1") && line.contains("UTC"), "{line}");
    }
    let newest = folder.xinfu(&["audit", "--limit", "1", "--json"]).await.ok().json();
    assert_eq!(newest.as_array().unwrap().len(), 1);
    assert_eq!(
        (&newest[0]["action"], &newest[0]["object"]),
        (&json!("token.refresh"), &json!("wx1"))
    );
    folder.xinfu(&["audit", "--limit", "0"]).await.failed(2);
}

#[tokio::test]
async fn what_is_shown_of_an_app_stands_in_columns() {
    let sim = SimProcess::start(&[("wx1", SECRET)]).await;
    let folder = Folder::ready(&sim).await;
    folder.add_app("wx1", SECRET, &[]).await.ok();
    let key = folder.add_key(&["all", "--everything"]).await;
    let server = folder.serve().await;
    server.answers("wx1", &key, 200, PATIENCE).await;
    let (status, _) = server.get("/v1/apps/wx1/tickets/wx_card", &key).await;
    assert_eq!(status, 200);
    let shown = folder.xinfu(&["app", "show", "wx1"]).await.ok();
    assert!(shown.out.contains("\n  wx_card_ticket  fresh"), "{}", shown.out);
    assert!(shown.out.contains("\n  alias           -"), "{}", shown.out);
}

#[tokio::test]
async fn another_master_key_takes_over() {
    let sim = SimProcess::start(&[("wx1", SECRET)]).await;
    let mut folder = Folder::ready(&sim).await;
    folder.add_app("wx1", SECRET, &[]).await.ok();
    folder.xinfu(&["init", "other"]).await.ok();
    folder.set("XINFU_MASTER_KEYS", "k1=master-k1.key,k2=other/master-k1.key");
    folder.xinfu(&["check-config"]).await.failed(2);
    folder.set("XINFU_SEAL_WITH", "k2");
    let doctor = folder.xinfu(&["doctor"]).await.ok();
    assert!(doctor.out.contains("`xinfu rekey`"), "{}", doctor.out);
    let printed = folder.xinfu(&["rekey"]).await.ok();
    assert!(printed.err.contains("nothing is sealed with master key `k1`"), "{}", printed.err);
    assert!(printed.err.contains("restarted with `k2` before `seal_with`"), "{}", printed.err);
    folder.set("XINFU_MASTER_KEYS", "k2=other/master-k1.key");
    folder.xinfu(&["token", "get", "wx1"]).await.ok();

    // Without the key, nothing starts, and the message names it.
    folder.set("XINFU_MASTER_KEYS", "k1=master-k1.key");
    folder.set("XINFU_SEAL_WITH", "k1");
    for command in [vec!["serve"], vec!["app", "list"]] {
        let printed = folder.xinfu(&command).await.failed(2);
        assert!(printed.err.contains("master key `k2`"), "{}", printed.err);
    }
    // The wrong key under the right id is told from a missing one.
    folder.set("XINFU_MASTER_KEYS", "k2=master-k1.key");
    folder.set("XINFU_SEAL_WITH", "k2");
    let printed = folder.xinfu(&["serve"]).await.failed(1);
    assert!(printed.err.contains("does not open"), "{}", printed.err);
}

#[tokio::test]
async fn a_stopping_server_finishes_what_is_in_flight() {
    let sim = SimProcess::start(&[("wx1", SECRET)]).await;
    let fault = json!({"kind": "latency_after", "millis": 1500, "path": "/cgi-bin/stable_token"});
    sim.control("/sim/faults", &fault).await;
    let folder = Folder::ready(&sim).await;
    let key = folder.add_key(&["all", "--everything"]).await;
    let mut server = folder.serve().await;
    folder.add_app("wx1", SECRET, &[]).await.ok();
    eventually(PATIENCE, || async {
        (sim.count("/cgi-bin/stable_token", "wx1", None).await == 1).then_some(())
    })
    .await
    .expect("the fetch begins");
    assert_eq!(server.process.terminate().await, Some(0));
    // WeChat had minted a token; the server stored it before it ended.
    let status = folder.xinfu(&["token", "status", "wx1", "--json"]).await.ok().json();
    assert_eq!(status["credentials"][0]["generation"], 1, "{status}; {key}");
    assert_eq!(sim.count("/cgi-bin/stable_token", "wx1", None).await, 1);
}

#[tokio::test]
async fn a_server_that_is_told_twice_waits_no_longer() {
    let sim = SimProcess::start(&[("wx1", SECRET)]).await;
    let fault = json!({"kind": "latency_after", "millis": 60_000});
    sim.control("/sim/faults", &fault).await;
    let mut folder = Folder::ready(&sim).await;
    folder.set("XINFU_UPSTREAM_CALL_TIMEOUT", "30s");
    folder.add_app("wx1", SECRET, &[]).await.ok();
    let mut server = folder.serve().await;
    let asked =
        || async { (sim.count("/cgi-bin/stable_token", "wx1", None).await == 1).then_some(()) };
    eventually(PATIENCE, asked).await.expect("the fetch begins");
    assert_eq!(server.process.ask_to_end().await, None);
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        assert!(tokio::time::Instant::now() < deadline, "it does not end");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        if let Some(code) = server.process.ask_to_end().await {
            assert_eq!(code, 1);
            break;
        }
    }
    assert!(server.process.err().contains("second time"), "{}", server.process.err());
}

#[tokio::test]
async fn a_server_that_cannot_start_says_so_in_the_format_of_its_log() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut folder = Folder::new();
    folder.xinfu(&["init"]).await.ok();
    folder.set("XINFU_LISTEN_API", &taken.local_addr().unwrap().to_string());
    let printed = folder.xinfu(&["serve"]).await.failed(1);
    assert!(printed.err.starts_with("error: cannot listen on"), "{}", printed.err);

    folder.set("XINFU_LOG_FORMAT", "json");
    let printed = folder.xinfu(&["serve"]).await.failed(1);
    let lines: Vec<serde_json::Value> =
        printed.err.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let [line] = &lines[..] else { panic!("{}", printed.err) };
    assert_eq!(line["level"], "ERROR", "{line}");
    assert!(line["message"].as_str().unwrap().starts_with("cannot listen on"), "{line}");
    assert!(line["hint"].as_str().unwrap().contains("`listen.api`"), "{line}");
    // Who switched the log off hears it all the same.
    folder.set("XINFU_LOG", "off");
    let printed = folder.xinfu(&["serve"]).await.failed(1);
    assert!(printed.err.starts_with("error: cannot listen on"), "{}", printed.err);
}

#[tokio::test]
async fn the_reference_is_printed() {
    let folder = Folder::new();
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/reference");
    for file in ["errors.md", "config.md", "cli.md", "problems.md", "metrics.md", "openapi.json"] {
        let (page, _) = file.split_once('.').unwrap();
        let printed = folder.xinfu(&["reference", page]).await.ok();
        let checked_in = std::fs::read_to_string(docs.join(file)).unwrap();
        assert!(printed.out == checked_in, "`cargo xtask codegen` writes {file} anew");
    }
    let printed = folder.xinfu(&["openapi"]).await.ok();
    serde_json::from_str::<serde_json::Value>(&printed.out).unwrap();
    let help = folder.xinfu(&["--help"]).await.ok();
    assert!(help.out.contains("doctor") && !help.out.contains("reference"), "{}", help.out);
}
