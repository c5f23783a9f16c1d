//! Replicas: several servers on one PostgreSQL, sharing by it or by Redis, behind what a load
//! balancer does.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering},
    },
    time::Duration,
};

use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};

use crate::{
    gate::{Gate, Way},
    process::{FOLLOWED, Folder, PATIENCE, Server, SimProcess, eventually, http},
};

const APP: &str = "wx1";
const SECRET: &str = "0123456789abcdef0123456789abcdef";

/// How replicas share what they only share.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Sharing {
    Postgres,
    Redis,
}

const BOTH: [Sharing; 2] = [Sharing::Postgres, Sharing::Redis];

/// A server that `cargo xtask test` has started.
#[expect(clippy::disallowed_methods, reason = "who starts the servers names them so")]
pub(crate) fn named_by(variable: &str) -> String {
    std::env::var(variable).unwrap_or_else(|_| {
        panic!("`cargo xtask test tests` starts the servers; or let {variable} name one by its URL")
    })
}

/// A database of its own.
pub(crate) struct Database {
    /// The server's host and port.
    pub(crate) host: String,
    pub(crate) name: String,
    /// A client of the server's first database.
    beside: tokio_postgres::Client,
    _driver: AbortOnDropHandle<()>,
}

impl Database {
    pub(crate) async fn fresh() -> Self {
        Self::at(&named_by("XINFU_TEST_POSTGRES")).await
    }

    /// One on the server at a URL.
    pub(crate) async fn at(server: &str) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("cluster_{}_{count}", std::process::id());
        let (beside, connection) =
            tokio_postgres::connect(server, tokio_postgres::NoTls).await.unwrap();
        let driver = TaskTracker::new().spawn(async move { drop(connection.await) });
        beside.batch_execute(&format!("CREATE DATABASE {name}")).await.unwrap();
        let host = server.split(['@', '/']).nth(3).unwrap().to_owned();
        Self { host, name, beside, _driver: AbortOnDropHandle::new(driver) }
    }

    /// Its URL, by way of `host`.
    pub(crate) fn url_at(&self, host: &str) -> String {
        format!("postgres://xinfu@{host}/{}", self.name)
    }

    pub(crate) fn url(&self) -> String {
        self.url_at(&self.host)
    }

    /// A client of it, for as long as the other lives.
    async fn client(&self) -> (tokio_postgres::Client, AbortOnDropHandle<()>) {
        let (client, connection) =
            tokio_postgres::connect(&self.url(), tokio_postgres::NoTls).await.unwrap();
        let driver = TaskTracker::new().spawn(async move { drop(connection.await) });
        (client, AbortOnDropHandle::new(driver))
    }

    /// All that it holds, row by row as text.
    pub(crate) async fn dump(&self) -> String {
        let (client, _driver) = self.client().await;
        let tables = "SELECT table_name::text FROM information_schema.tables \
             WHERE table_schema = current_schema()";
        let mut dump = String::new();
        for table in client.query(tables, &[]).await.unwrap() {
            let table: &str = table.get(0);
            let rows = format!("SELECT row_of::text FROM \"{table}\" row_of");
            for row in client.query(&rows, &[]).await.unwrap() {
                dump += &format!("{table} {}\n", row.get::<_, &str>(0));
            }
        }
        dump
    }

    /// The names of the leases that somebody holds.
    pub(crate) async fn leases(&self) -> Vec<String> {
        let (client, _driver) = self.client().await;
        let names = "SELECT name FROM leases WHERE until > xinfu_now()";
        let rows = client.query(names, &[]).await.unwrap();
        rows.iter().map(|row| row.get(0)).collect()
    }

    /// Shuts it, as a server that is restarted does, or opens it again.
    pub(crate) async fn open(&self, open: bool) {
        let name = &self.name;
        let allow = format!("ALTER DATABASE {name} ALLOW_CONNECTIONS {open}");
        self.beside.batch_execute(&allow).await.unwrap();
        if !open {
            let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1";
            self.beside.execute(end, &[name]).await.unwrap();
        }
    }
}

/// Replicas that serve one app.
struct Cluster {
    sim: SimProcess,
    folder: Folder,
    servers: Vec<Server>,
    key: String,
    database: Database,
}

impl Cluster {
    async fn start(sharing: Sharing, replicas: usize) -> Self {
        let sim = SimProcess::start(&[(APP, SECRET)]).await;
        let database = Database::fresh().await;
        let mut folder = Folder::ready(&sim).await;
        folder.set("XINFU_STORE", &database.url());
        // As long as the load balancer needs to notice.
        folder.set("XINFU_LIMITS_DRAIN", "1s");
        if let Sharing::Redis = sharing {
            let url = format!("{}?prefix={}", named_by("XINFU_TEST_REDIS"), database.name);
            folder.set("XINFU_SHARED", &url);
        }
        folder.add_app(APP, SECRET, &[]).await.ok();
        let key = folder.add_key(&["reader", "--everything"]).await;
        let servers = futures_util::future::join_all((0..replicas).map(|_| folder.serve())).await;
        Self { sim, folder, servers, key, database }
    }

    async fn token_at(&self, replica: usize) -> Value {
        let path = format!("/v1/apps/{APP}/token");
        let (status, token) = self.servers[replica].get(&path, &self.key).await;
        assert_eq!(status, 200, "{token}");
        token
    }

    /// How often WeChat was asked for a token, and answered with one.
    async fn fetches(&self) -> u64 {
        self.sim.count("/cgi-bin/stable_token", APP, Some(0)).await
    }

    /// Waits until each replica answers a token read with a status.
    async fn all_answer(&self, status: u16) {
        let answers =
            self.servers.iter().map(|server| server.answers(APP, &self.key, status, FOLLOWED));
        futures_util::future::join_all(answers).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn any_replica_answers_and_all_follow() {
    for sharing in BOTH {
        let cluster = Cluster::start(sharing, 3).await;
        let first = cluster.token_at(0).await;
        for replica in 1..3 {
            assert_eq!(cluster.token_at(replica).await["access_token"], first["access_token"]);
        }
        assert_eq!(cluster.fetches().await, 1, "{sharing:?}");

        // Somebody ends the token; who hears of it tells one replica, and a poll at another wakes.
        let poll = format!("/v1/apps/{APP}/token?after={}&wait=30", first["generation"]);
        let waiting = cluster.servers[2].get(&poll, &cluster.key);
        let report = async {
            cluster.sim.kill_token(APP, "stable").await;
            let report = json!({"access_token": first["access_token"], "errcode": 40001});
            let path = format!("/v1/apps/{APP}/token/report");
            cluster.servers[0].post(&path, &cluster.key, &report).await
        };
        let ((polled, woken), (reported, new)) = tokio::join!(waiting, report);
        assert_eq!((polled, reported), (200, 200), "{sharing:?}: {woken} {new}");
        assert_ne!(new["access_token"], first["access_token"]);
        assert_eq!(woken["access_token"], new["access_token"]);

        // A key that is revoked and an app that is removed are gone everywhere.
        let other = cluster.folder.add_key(&["other", "--everything"]).await;
        for server in &cluster.servers {
            server.answers(APP, &other, 200, FOLLOWED).await;
        }
        let keys = cluster.folder.xinfu(&["key", "list", "--json"]).await.ok().json();
        let id = keys.as_array().unwrap().iter().find(|key| key["name"] == "other").unwrap();
        cluster.folder.xinfu(&["key", "revoke", id["id"].as_str().unwrap()]).await.ok();
        let refusals = cluster.servers.iter().map(|it| it.answers(APP, &other, 401, FOLLOWED));
        futures_util::future::join_all(refusals).await;
        cluster.folder.xinfu(&["app", "remove", APP, "--yes"]).await.ok();
        cluster.all_answer(404).await;
    }
}

/// Clients behind a load balancer that asks each replica whether it is ready, and tries another one
/// only where no connection was made.
struct Clients {
    done: Arc<AtomicBool>,
    calls: Arc<AtomicUsize>,
    loops: Vec<AbortOnDropHandle<Vec<String>>>,
}

impl Clients {
    fn start(urls: &watch::Receiver<Vec<String>>, key: &str) -> Self {
        let (done, calls) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let tasks = TaskTracker::new();
        let client = |at: usize| {
            let (urls, key) = (urls.clone(), key.to_owned());
            let (done, calls) = (Arc::clone(&done), Arc::clone(&calls));
            async move {
                let mut failed = Vec::new();
                let mut turn = at;
                while !done.load(Ordering::Relaxed) {
                    let known = urls.borrow().clone();
                    turn += 1;
                    let url = &known[turn % known.len()];
                    if http("GET", &format!("{url}/readyz"), None, None).await.map(|it| it.0)
                        != Some(200)
                    {
                        continue;
                    }
                    let path = format!("{url}/v1/apps/{APP}/token");
                    let answer = http("GET", &path, Some(&key), None).await;
                    calls.fetch_add(1, Ordering::Relaxed);
                    if answer.as_ref().map(|it| it.0) != Some(200) {
                        failed.push(format!("{url}: {answer:?}"));
                    }
                    tokio::time::sleep(Duration::from_millis(3)).await;
                }
                failed
            }
        };
        let loops = (0..4).map(|at| AbortOnDropHandle::new(tasks.spawn(client(at)))).collect();
        Self { done, calls, loops }
    }

    /// Waits for so many calls more.
    async fn go_on(&self, calls: usize) {
        let enough = self.calls.load(Ordering::Relaxed) + calls;
        let came = eventually(PATIENCE, || async {
            (self.calls.load(Ordering::Relaxed) >= enough).then_some(())
        });
        came.await.expect("the clients go on");
    }

    /// Ends them, and answers what failed.
    async fn end(self) -> Vec<String> {
        self.done.store(true, Ordering::Relaxed);
        let mut failed = Vec::new();
        for client in self.loops {
            failed.extend(client.await.unwrap());
        }
        failed
    }
}

impl Cluster {
    /// Restarts one replica after the other, as an operator does.
    async fn roll(&mut self, urls: &watch::Sender<Vec<String>>, clients: &Clients) {
        for replica in 0..self.servers.len() {
            let old = &mut self.servers[replica];
            assert_eq!(old.process.terminate().await, Some(0), "{}", old.process.err());
            self.servers[replica] = self.folder.serve().await;
            urls.send_replace(self.servers.iter().map(|it| it.url.clone()).collect());
            clients.go_on(20).await;
        }
    }

    fn urls(&self) -> watch::Sender<Vec<String>> {
        watch::Sender::new(self.servers.iter().map(|it| it.url.clone()).collect())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rolling_restart_fails_no_call_and_fetches_nothing() {
    for sharing in BOTH {
        let mut cluster = Cluster::start(sharing, 3).await;
        cluster.all_answer(200).await;
        let urls = cluster.urls();
        let clients = Clients::start(&urls.subscribe(), &cluster.key);
        clients.go_on(50).await;
        cluster.roll(&urls, &clients).await;
        let failed = clients.end().await;
        assert_eq!(failed, Vec::<String>::new(), "{sharing:?}");
        assert_eq!(cluster.fetches().await, 1, "{sharing:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn master_keys_change_while_replicas_serve() {
    let mut cluster = Cluster::start(Sharing::Postgres, 3).await;
    cluster.all_answer(200).await;
    let urls = cluster.urls();
    let clients = Clients::start(&urls.subscribe(), &cluster.key);
    let (k1, k2) =
        ("id = \"k1\"\nfile = \"master-k1.key\"", "id = \"k2\"\nfile = \"master-k2.key\"");
    let another = Folder::new();
    another.xinfu(&["init"]).await.ok();
    std::fs::copy(another.path("master-k1.key"), cluster.folder.path("master-k2.key")).unwrap();
    // Everywhere first, then sealed with, then everything sealed anew, then the old one goes.
    for (seal_with, keys) in [("k1", vec![k1, k2]), ("k2", vec![k1, k2])] {
        let keys: String = keys.iter().map(|key| format!("[[master_keys]]\n{key}\n")).collect();
        cluster.folder.write("xinfu.toml", &format!("seal_with = \"{seal_with}\"\n{keys}"));
        cluster.roll(&urls, &clients).await;
    }
    cluster.folder.xinfu(&["rekey"]).await.ok();
    cluster.folder.write("xinfu.toml", &format!("[[master_keys]]\n{k2}\n"));
    cluster.roll(&urls, &clients).await;
    let failed = clients.end().await;
    assert_eq!(failed, Vec::<String>::new());
    assert_eq!(cluster.fetches().await, 1);
}

/// How often the keys of passes are looked after, and how long one is published before it is used.
const PASS_KEYS_CHANGE_WITHIN: Duration = Duration::from_secs(150);

#[tokio::test(flavor = "multi_thread")]
async fn keys_of_passes_change_while_replicas_serve() {
    let cluster = Cluster::start(Sharing::Postgres, 3).await;
    cluster.all_answer(200).await;
    let (url, key) = (cluster.database.url(), &cluster.key);
    let (there, connection) = tokio_postgres::connect(&url, tokio_postgres::NoTls).await.unwrap();
    let driver = TaskTracker::new().spawn(async move { drop(connection.await) });
    let _driver = AbortOnDropHandle::new(driver);
    let servers = &cluster.servers;
    let pass_at = async |replica: usize| {
        let query = format!("grant_type=client_credential&appid={APP}&secret={key}");
        let url = format!("{}/cgi-bin/token?{query}", servers[replica].url);
        let (_, answer) = http("GET", &url, None, None).await.expect("an answer");
        answer["access_token"].as_str().unwrap_or_else(|| panic!("no pass: {answer}")).to_owned()
    };
    let works_everywhere = async |pass: &str| {
        for server in servers {
            let path = format!("/cgi-bin/get_api_domain_ip?access_token={pass}");
            let (_, answer) =
                http("GET", &format!("{}{path}", server.url), None, None).await.expect("an answer");
            assert!(answer["ip_list"].is_array(), "{answer}");
        }
    };
    // A pass names the key that it is sealed with in its first characters.
    let key_of = |pass: &str| pass[..11].to_owned();
    let old = pass_at(0).await;
    works_everywhere(&old).await;
    // The key is as old as one that has been used for its time.
    there.execute("UPDATE pass_keys SET published_at = published_at - 2460000", &[]).await.unwrap();
    let changed = eventually(PASS_KEYS_CHANGE_WITHIN, || async {
        // Not so often that calls are limited.
        tokio::time::sleep(Duration::from_millis(200)).await;
        let mut new = 0;
        for replica in 0..servers.len() {
            let pass = pass_at(replica).await;
            works_everywhere(&pass).await;
            works_everywhere(&old).await;
            new += usize::from(key_of(&pass) != key_of(&old));
        }
        (new == servers.len()).then_some(())
    });
    changed.await.expect("every replica seals with the next key");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_is_away_keeps_no_reader_waiting() {
    for sharing in BOTH {
        let cluster = Cluster::start(sharing, 2).await;
        cluster.all_answer(200).await;
        let urls = cluster.urls();
        let clients = Clients::start(&urls.subscribe(), &cluster.key);
        cluster.database.open(false).await;
        for server in &cluster.servers {
            let noticed = eventually(PATIENCE, || async {
                let (status, ready) = server.get("/readyz", "").await;
                (status == 200 && ready["store"] == "unreachable").then_some(())
            });
            noticed.await.expect("it is ready, and says that the store is away");
        }
        clients.go_on(200).await;
        // What would have to be stored is refused, and says why.
        let refused = cluster.folder.xinfu(&["key", "add", "late", "--everything"]).await.failed(1);
        assert!(refused.err.contains("store"), "{}", refused.err);
        cluster.database.open(true).await;
        let failed = clients.end().await;
        assert_eq!(failed, Vec::<String>::new(), "{sharing:?}");
        // It needs no restart: a change is followed again.
        cluster.folder.xinfu(&["app", "remove", APP, "--yes"]).await.ok();
        let answers = cluster.servers.iter().map(|it| it.answers(APP, &cluster.key, 404, PATIENCE));
        futures_util::future::join_all(answers).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_is_away_is_told_and_nothing_else_is_missed() {
    let sim = SimProcess::start(&[(APP, SECRET)]).await;
    let database = Database::fresh().await;
    let redis = named_by("XINFU_TEST_REDIS");
    let gate = Gate::before(redis.split(['@', '/']).nth(2).unwrap()).await;
    let mut folder = Folder::ready(&sim).await;
    folder.set("XINFU_STORE", &database.url());
    folder.set("XINFU_SHARED", &format!("redis://{}?prefix={}", gate.host, database.name));
    folder.add_app(APP, SECRET, &[]).await.ok();
    let key = folder.add_key(&["reader", "--everything"]).await;
    let server = folder.serve().await;
    server.answers(APP, &key, 200, FOLLOWED).await;
    for (shut, word) in [(true, "unreachable"), (false, "reachable")] {
        gate.set(if shut { Way::Swallowing } else { Way::Open });
        let told = eventually(PATIENCE, || async {
            let (status, ready) = server.get("/readyz", "").await;
            assert_eq!((status, &ready["store"]), (200, &json!("reachable")));
            (ready["shared"] == word).then_some(())
        });
        told.await.expect("it says so");
        server.answers(APP, &key, 200, FOLLOWED).await;
    }
}

/// What is shared may be in a database of its own.
#[tokio::test(flavor = "multi_thread")]
async fn replicas_share_by_another_database() {
    let sim = SimProcess::start(&[(APP, SECRET)]).await;
    let (database, apart) = (Database::fresh().await, Database::fresh().await);
    let mut folder = Folder::ready(&sim).await;
    folder.set("XINFU_STORE", &database.url());
    folder.set("XINFU_SHARED", &apart.url());
    // Whoever only looks makes no tables.
    let doctor = folder.xinfu(&["doctor"]).await.ok();
    assert_eq!(doctor.out.matches("has no tables yet").count(), 2, "{}", doctor.out);
    folder.add_app(APP, SECRET, &[]).await.ok();
    let key = folder.add_key(&["reader", "--everything"]).await;
    let servers = [folder.serve().await, folder.serve().await];
    for server in &servers {
        server.answers(APP, &key, 200, FOLLOWED).await;
    }
    assert_eq!(sim.count("/cgi-bin/stable_token", APP, Some(0)).await, 1);
    let other = folder.add_key(&["other", "--everything"]).await;
    let heard = servers.iter().map(|it| it.answers(APP, &other, 200, FOLLOWED));
    futures_util::future::join_all(heard).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_is_cut_off_serves_what_it_has_and_comes_back() {
    let mut cluster = Cluster::start(Sharing::Postgres, 2).await;
    let gate = Gate::before(&cluster.database.host).await;
    cluster.folder.set("XINFU_STORE", &cluster.database.url_at(&gate.host));
    cluster.servers.push(cluster.folder.serve().await);
    cluster.all_answer(200).await;
    let first = cluster.token_at(2).await;

    gate.set(Way::Swallowing);
    cluster.sim.kill_token(APP, "stable").await;
    let report = json!({"access_token": first["access_token"], "errcode": 40001});
    let path = format!("/v1/apps/{APP}/token/report");
    let (status, new) = cluster.servers[0].post(&path, &cluster.key, &report).await;
    assert_eq!(status, 200, "{new}");
    // Cut off, it has the old one still; a report there is answered with a token that works, by
    // asking WeChat without a lease, since on stable that kills nothing.
    assert_eq!(cluster.token_at(2).await["access_token"], first["access_token"]);
    let healed = eventually(Duration::from_secs(60), || async {
        let (status, answer) = cluster.servers[2].post(&path, &cluster.key, &report).await;
        (status == 200 && answer["access_token"] == new["access_token"]).then_some(())
    });
    assert!(healed.await.is_some(), "{:?}", cluster.token_at(2).await);

    gate.set(Way::Open);
    let same = eventually(PATIENCE, || async {
        let (near, far) = (cluster.token_at(0).await, cluster.token_at(2).await);
        (near["access_token"] == far["access_token"] && near["generation"] == far["generation"])
            .then_some(())
    });
    assert!(same.await.is_some());
    cluster.folder.xinfu(&["app", "remove", APP, "--yes"]).await.ok();
    cluster.servers[2].answers(APP, &cluster.key, 404, PATIENCE).await;
}
