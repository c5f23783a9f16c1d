//! P1, P2, P3 and P10 with real processes: a server, and two loops of commands beside it on the same
//! file, while tokens rotate every few seconds.

use std::{
    collections::HashSet,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use serde_json::{Value, json};
use tokio_util::task::TaskTracker;

use crate::process::{Folder, Server, SimProcess, eventually, http};

const SECRET: &str = "0123456789abcdef0123456789abcdef";
const STABLE: &str = "wx1";
const CLASSIC: &str = "wx2";
const PATHS: [&str; 2] = ["/cgi-bin/token", "/cgi-bin/stable_token"];
/// So often a person asks for a classic token: with the refreshes that fall due, fewer than WeChat
/// is asked for at once.
const ASKED: usize = 3;

/// A place where tokens are read and used at once.
struct Reader {
    folder: Arc<Folder>,
    server: Arc<Server>,
    sim: Arc<SimProcess>,
    key: String,
    /// How many tokens were used.
    used: AtomicU64,
    done: AtomicBool,
}

impl Reader {
    async fn through_the_server(&self, app: &str) -> Option<Value> {
        let (status, token) = self.server.get(&format!("/v1/apps/{app}/token"), &self.key).await;
        (status == 200).then_some(token)
    }

    /// Uses a token that was just read: WeChat must take it. It keeps one token back, so only two
    /// rotations in the time between can end one.
    async fn check(&self, app: &str, token: &Value) {
        let value = token["access_token"].as_str().unwrap();
        let url = format!("{}/cgi-bin/get_api_domain_ip?access_token={value}", self.sim.api);
        let (_, answer) = http("GET", &url, None, None).await.unwrap();
        if answer["ip_list"].is_null() {
            let now = self.through_the_server(app).await.expect("there is a token");
            let rotated =
                now["generation"].as_u64().unwrap() - token["generation"].as_u64().unwrap();
            assert!(rotated >= 2, "{app}: WeChat answers {answer}; {rotated} rotations since");
        }
        self.used.fetch_add(1, Ordering::Relaxed);
    }

    async fn read_through_the_server(&self, app: &'static str) {
        while !self.done.load(Ordering::Relaxed) {
            let token = self.through_the_server(app).await;
            self.check(app, &token.expect("a token is always there")).await;
        }
    }

    /// Reads and refreshes as one command after the other. A classic token is asked for `asking`
    /// times: by one loop only, since two mints in a moment end what servers still hand out.
    async fn read_by_commands(&self, mut asking: usize) {
        while !self.done.load(Ordering::Relaxed) {
            for app in [STABLE, CLASSIC] {
                let read = self.folder.xinfu(&["token", "get", app, "--json"]).await.ok();
                self.check(app, &read.json()).await;
            }
            self.folder.xinfu(&["token", "refresh", STABLE]).await.ok();
            if asking > 0 {
                asking -= 1;
                self.folder.xinfu(&["token", "refresh", CLASSIC]).await.ok();
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_and_two_loops_of_commands_fetch_one_at_a_time_and_serve_what_works() {
    let sim = Arc::new(SimProcess::start(&[(STABLE, SECRET), (CLASSIC, SECRET)]).await);
    // Tokens live for eight seconds and are refreshed after four; WeChat takes its time.
    let switches = json!({"token_lifetime_secs": 8, "stable_roll_secs": 6});
    sim.control("/sim/switches", &switches).await;
    for path in PATHS {
        sim.control("/sim/faults", &json!({"kind": "latency_after", "millis": 300, "path": path}))
            .await;
    }
    let folder = Arc::new(Folder::ready(&sim).await);
    for (app, issuer) in [(STABLE, "stable"), (CLASSIC, "classic")] {
        folder.add_app(app, SECRET, &["--issuer", issuer]).await.ok();
    }
    let key = folder.add_key(&["reader", "--everything"]).await;
    let server = Arc::new(folder.serve().await);
    for app in [STABLE, CLASSIC] {
        server.answers(app, &key, 200, Duration::from_secs(20)).await;
    }

    let reader = Arc::new(Reader {
        folder: Arc::clone(&folder),
        server: Arc::clone(&server),
        sim: Arc::clone(&sim),
        key: key.clone(),
        used: AtomicU64::new(0),
        done: AtomicBool::new(false),
    });
    let tasks = TaskTracker::new();
    let mut readers = Vec::new();
    for app in [STABLE, CLASSIC] {
        let reader = Arc::clone(&reader);
        readers.push(tasks.spawn(async move { reader.read_through_the_server(app).await }));
    }
    for asking in [ASKED, 0] {
        let reader = Arc::clone(&reader);
        readers.push(tasks.spawn(async move { reader.read_by_commands(asking).await }));
    }
    // Long enough for several rotations, whoever fetches them.
    let rotated = eventually(Duration::from_secs(90), || async {
        let token = reader.through_the_server(STABLE).await?;
        (token["generation"].as_u64()? >= 5).then_some(())
    });
    assert!(rotated.await.is_some() || readers.iter().any(|it| it.is_finished()), "no rotations");
    reader.done.store(true, Ordering::Relaxed);
    for reader in readers {
        reader.await.unwrap();
    }

    // What is under way as the server ends is stored before it has ended.
    drop(server);
    let Reader { server, used, .. } = Arc::into_inner(reader).expect("no reader is left");
    let mut server = Arc::into_inner(server).expect("nobody reads any more");
    assert_eq!(server.process.terminate().await, Some(0));
    assert!(used.into_inner() > 50);
    let log = sim.log().await;
    for app in [STABLE, CLASSIC] {
        check_log(&folder, &log, app).await;
    }
}

/// What WeChat saw of an app: one fetch at a time, each token stored as one generation, no quota
/// passed.
async fn check_log(folder: &Folder, log: &[Value], app: &str) {
    let of_app: Vec<_> = log.iter().filter(|call| call["appid"] == app).collect();
    for call in &of_app {
        assert!(call["errcode"] != 45009 && call["errcode"] != 45011, "{app}: {call}");
    }
    let fetches: Vec<_> =
        of_app.iter().filter(|call| PATHS.iter().any(|path| call["path"] == *path)).collect();
    for pair in fetches.windows(2) {
        let (before, after) = (&pair[0]["answered_at"], &pair[1]["sent_at"]);
        let one_by_one = before.as_i64().unwrap() <= after.as_i64().unwrap();
        assert!(one_by_one, "{app}: two fetches at once: {} {}", pair[0], pair[1]);
    }
    let tokens: HashSet<_> = fetches.iter().filter_map(|call| call["answered"].as_str()).collect();
    let status = folder.xinfu(&["token", "status", app, "--json"]).await.ok().json();
    let generation = status["credentials"][0]["generation"].as_u64().unwrap();
    assert_eq!(tokens.len() as u64, generation, "{app}: fetches and rotations differ");
}
