//! The replicas, what they stand on, and what happens to them.

use std::{
    net::{Ipv4Addr, TcpListener},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU16, Ordering},
    },
    time::Duration,
};

use clock::Clock;
use serde_json::json;
use tokio::{net::TcpStream, process::Command};

use super::{clients, network::Network};
use crate::{
    cluster::{Database, Sharing, named_by},
    gate::Way,
    process::{Folder, PATIENCE, Process, SimProcess, eventually, http, send_signal},
};

/// Apps on the stable issuer.
pub(super) const STABLE: [&str; 2] = ["wx1", "wx2"];
/// The app on the classic one.
pub(super) const CLASSIC: &str = "wx3";
/// All apps.
pub(super) const APPS: [&str; 3] = [STABLE[0], STABLE[1], CLASSIC];
/// Where WeChat sees each replica: its log tells by that who has called.
pub(super) const AT_WECHAT: [Ipv4Addr; 3] =
    [Ipv4Addr::new(127, 0, 0, 2), Ipv4Addr::new(127, 0, 0, 3), Ipv4Addr::new(127, 0, 0, 4)];
/// Tokens live for so long, and are fetched anew after half of it.
pub(super) const LIFE: Duration = Duration::from_secs(120);
const SECRET: &str = "0123456789abcdef0123456789abcdef";
/// How wrong the clock of each replica is, as faketime takes it.
const CLOCKS: [&str; 3] = ["+0", "+600", "-600"];

/// Names the Redis that may be killed.
const FRAIL_REDIS: &str = "XINFU_TEST_FRAIL_REDIS";
/// Longer than any lease lasts.
const BEYOND_THE_LEASE: i64 = 45_000;

/// A thing that may happen.
#[derive(Clone, Copy, Debug)]
pub(super) enum Happening {
    /// A replica is stopped.
    Stop(usize),
    /// It goes on, after longer than any lease lasts.
    GoOn(usize),
    /// A replica is killed, and started again.
    Kill(usize),
    /// A replica is asked to end, as an operator does, and started again.
    Roll(usize),
    /// A replica can reach neither the database nor Redis.
    Cut(usize, Way),
    /// It can again.
    Mend(usize),
    /// The database gets a signal, and is started again.
    Postgres(&'static str),
    /// Redis is killed, and started again; nothing where nobody uses it.
    Redis,
    /// Somebody outside ends the token of an app.
    Mint(&'static str),
    /// Nothing happens for some time.
    Pause(Duration),
}

/// What was wrong, from when until when.
#[derive(Clone, Debug)]
pub(super) struct Trouble {
    pub(super) what: What,
    /// In milliseconds.
    pub(super) from: i64,
    pub(super) until: i64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum What {
    /// A replica is killed and does not serve yet.
    Killed(usize),
    /// A replica is stopped.
    Stopped(usize),
    /// A replica is asked to end and does not serve again yet.
    Rolled(usize),
    /// A replica is cut off from what it stands on.
    CutOff(usize),
    /// The database does not answer.
    Postgres,
    /// Redis does not answer.
    Redis,
    /// Somebody outside has ended the token of an app.
    Minted(&'static str),
}

impl What {
    /// Whether it befalls a replica. A restart in good order befalls none: whoever asks meanwhile
    /// is served as always, by it until it has ended and by the others.
    pub(super) fn befalls(self, node: usize) -> bool {
        match self {
            Self::Killed(it) | Self::Stopped(it) | Self::CutOff(it) => it == node,
            Self::Postgres | Self::Redis => true,
            Self::Rolled(_) | Self::Minted(_) => false,
        }
    }

    /// Whether it keeps a replica from the store.
    pub(super) fn keeps_from_store(self, node: usize) -> bool {
        self == Self::Postgres || self == Self::CutOff(node)
    }
}

struct Node {
    /// Its variables beside those of the folder.
    variables: Vec<(&'static str, String)>,
    url: String,
    process: Option<Process>,
    network: Network,
}

pub(super) struct World {
    pub(super) sim: SimProcess,
    pub(super) folder: Arc<Folder>,
    nodes: Vec<Node>,
    clock: Clock,
    /// What was wrong so far, in the order in which it ended.
    pub(super) troubles: Vec<Trouble>,
    /// The apps whose lease somebody held when something had kept its holder from giving it back,
    /// and when that was seen.
    pub(super) left_leases: Vec<(&'static str, i64)>,
    /// What is wrong now, and since when.
    going_on: Vec<(What, i64)>,
    pids: PathBuf,
    database: Database,
    sharing: Sharing,
}

impl World {
    pub(super) async fn start(sharing: Sharing) -> Self {
        let sim = SimProcess::start(&APPS.map(|app| (app, SECRET))).await;
        // The stable issuer mints when half of a life is over, as ours asks it to.
        let switches = json!({"token_lifetime_secs": LIFE.as_secs(), "stable_roll_secs": LIFE.as_secs() / 2 + 2});
        sim.control("/sim/switches", &switches).await;
        // A fetch takes long enough for something to happen meanwhile.
        for path in ["/cgi-bin/token", "/cgi-bin/stable_token"] {
            let slow = json!({"kind": "latency_after", "millis": 50, "path": path});
            sim.control("/sim/faults", &slow).await;
        }
        let frail = named_by("XINFU_TEST_FRAIL_POSTGRES");
        let database = Database::at(&frail).await;
        let mut folder = Folder::ready(&sim).await;
        folder.set("XINFU_STORE", &database.url_at(&database.host));
        folder.set("XINFU_LIMITS_DRAIN", "2s");
        let redis_at = |host: &str| format!("redis://{host}/0?prefix={}", database.name);
        let redis_host = redis_host();
        if let Sharing::Redis = sharing {
            folder.set("XINFU_SHARED", &redis_at(&redis_host));
        }
        for app in APPS {
            folder.add_app(app, SECRET, &["--issuer", issuer_of(app)]).await.ok();
        }
        let wechat = sim.api.strip_prefix("http://").unwrap();
        let servers = [&*database.host, &redis_host];
        let servers = if let Sharing::Redis = sharing { &servers[..] } else { &servers[..1] };
        let mut nodes = Vec::new();
        for seen in AT_WECHAT {
            let port = free_port();
            let network = Network::to(wechat, seen, servers).await;
            let at = format!("{}:{port}", network.address);
            let stands_on = network.servers();
            let mut variables = vec![
                ("XINFU_UPSTREAM_BASE_URLS", format!("http://{}", network.upstream)),
                ("XINFU_STORE", format!("{}?sslmode=disable", database.url_at(stands_on[0]))),
                ("XINFU_LISTEN_API", at.clone()),
            ];
            if let Sharing::Redis = sharing {
                variables.push(("XINFU_SHARED", redis_at(stands_on[1])));
            }
            nodes.push(Node { variables, url: format!("http://{at}"), process: None, network });
        }
        let mut world = Self {
            sim,
            folder: Arc::new(folder),
            nodes,
            clock: Clock::real(),
            troubles: Vec::new(),
            left_leases: Vec::new(),
            going_on: Vec::new(),
            pids: named_by("XINFU_TEST_FRAIL_PIDS").into(),
            database,
            sharing,
        };
        for node in 0..world.nodes.len() {
            world.serve(node).await;
        }
        world
    }

    /// The time, in milliseconds.
    pub(super) fn now(&self) -> i64 {
        self.clock.now().as_millis()
    }

    /// Where the replicas serve.
    pub(super) fn urls(&self) -> Vec<String> {
        self.nodes.iter().map(|node| node.url.clone()).collect()
    }

    /// What cuts a replica off.
    pub(super) fn cut_by(&self) -> &'static str {
        self.nodes[0].network.kind()
    }

    /// What happened, and what the replicas last said.
    pub(super) fn story(&self) -> String {
        let said = self.nodes.iter().enumerate().map(|(at, node)| {
            let err = node.process.as_ref().map(Process::err).unwrap_or_default();
            let lines: Vec<_> = err.lines().rev().take(8).collect();
            format!("replica {at}:\n{}\n", lines.into_iter().rev().collect::<Vec<_>>().join("\n"))
        });
        format!("{:?}\n{}", self.troubles, said.collect::<String>())
    }

    /// Starts a replica, again and again until it serves, as a supervisor does.
    async fn serve(&mut self, at: usize) {
        let (folder, node, clock) = (&self.folder, &mut self.nodes[at], CLOCKS[at]);
        let serves = eventually(3 * PATIENCE, || {
            let ended = node.process.as_mut().is_none_or(Process::has_ended);
            if ended {
                let mut command = node.network.command(env!("CARGO_BIN_EXE_xinfu"));
                command.arg("serve").kill_on_drop(true);
                folder.at_home(&mut command);
                command.envs(node.variables.iter().map(|(name, value)| (name, value)));
                command.env("LD_PRELOAD", faketime()).env("FAKETIME", clock);
                command.env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
                node.process = Some(folder.start(command));
            }
            let url = format!("{}/readyz", node.url);
            async move {
                let ready = http("GET", &url, None, None).await;
                ready.filter(|(status, _)| *status == 200).map(drop)
            }
        });
        let said = serves.await;
        assert!(said.is_some(), "replica {at} does not serve: {}", self.story());
    }

    fn begin(&mut self, what: What) {
        let now = self.now();
        self.going_on.push((what, now));
    }

    fn end(&mut self, what: What) {
        let until = self.now();
        let at = self.going_on.iter().position(|(it, _)| *it == what).expect("it was begun");
        let (what, from) = self.going_on.swap_remove(at);
        self.troubles.push(Trouble { what, from, until });
    }

    fn process(&self, at: usize) -> &Process {
        self.nodes[at].process.as_ref().expect("it was started")
    }

    /// Lets something happen.
    pub(super) async fn happen(&mut self, happening: Happening) {
        match happening {
            Happening::Stop(at) => {
                self.begin(What::Stopped(at));
                self.process(at).signal("STOP").await;
                self.note_leases().await;
            }
            Happening::GoOn(at) => {
                let stopped = self.going_on.iter().find(|(what, _)| *what == What::Stopped(at));
                let (_, since) = stopped.expect("it was stopped");
                pause_until(&self.clock, since + BEYOND_THE_LEASE).await;
                self.process(at).signal("CONT").await;
                self.end(What::Stopped(at));
            }
            Happening::Kill(at) => {
                self.begin(What::Killed(at));
                self.nodes[at].process.take().expect("it was started").kill().await;
                self.note_leases().await;
                self.serve(at).await;
                self.end(What::Killed(at));
            }
            Happening::Roll(at) => {
                self.begin(What::Rolled(at));
                let mut process = self.nodes[at].process.take().expect("it was started");
                assert_eq!(process.terminate().await, Some(0), "{}", process.err());
                self.serve(at).await;
                self.end(What::Rolled(at));
            }
            Happening::Cut(at, way) => {
                self.begin(What::CutOff(at));
                self.nodes[at].network.set(way).await;
                self.note_leases().await;
            }
            Happening::Mend(at) => {
                self.nodes[at].network.set(Way::Open).await;
                self.end(What::CutOff(at));
            }
            Happening::Postgres(signal) => {
                self.begin(What::Postgres);
                let url = self.database.url();
                self.hit("frail-postgres", signal, || async {
                    tokio_postgres::connect(&url, tokio_postgres::NoTls).await.ok().map(drop)
                })
                .await;
                self.end(What::Postgres);
                self.note_leases().await;
            }
            Happening::Redis if matches!(self.sharing, Sharing::Postgres) => {}
            Happening::Redis => {
                self.begin(What::Redis);
                let host = redis_host();
                self.hit("frail-redis", "KILL", || async {
                    TcpStream::connect(&host).await.ok().map(drop)
                })
                .await;
                self.end(What::Redis);
            }
            Happening::Mint(app) => {
                self.begin(What::Minted(app));
                self.sim.kill_token(app, issuer_of(app)).await;
                self.end(What::Minted(app));
            }
            Happening::Pause(time) => tokio::time::sleep(time).await,
        }
    }

    /// Notes which leases are held at this moment, in which something has befallen who may hold
    /// them: those are given back late, or run out.
    async fn note_leases(&mut self) {
        let held = match self.sharing {
            Sharing::Postgres => self.database.leases().await,
            Sharing::Redis => {
                let (url, keys) = (named_by(FRAIL_REDIS), format!("*{}*", self.database.name));
                let asked = Command::new("redis-cli").args(["-u", &url, "keys", &keys]).output();
                let answer = String::from_utf8(asked.await.unwrap().stdout).unwrap();
                answer.lines().map(str::to_owned).collect()
            }
        };
        let now = self.now();
        let is_held = |app: &str| held.iter().any(|it| it.ends_with(&format!("{app}/token")));
        self.left_leases.extend(APPS.iter().filter(|app| is_held(app)).map(|app| (*app, now)));
    }

    /// Sends a signal to a server that is started again when it ends, and waits until it answers.
    async fn hit<F>(&self, name: &str, signal: &str, answers: impl Fn() -> F)
    where
        F: Future<Output = Option<()>>,
    {
        let file = self.pids.join(format!("{name}.pid"));
        let pid = || std::fs::read_to_string(&file).unwrap().trim().to_owned();
        let before = pid();
        send_signal(signal, &before).await;
        let again = eventually(3 * PATIENCE, || async {
            if pid() == before { None } else { answers().await }
        });
        assert!(again.await.is_some(), "{name} does not come back");
    }

    /// Whether each replica serves the same token for each app, and WeChat says that it works.
    pub(super) async fn is_of_one_mind(&self, key: &str) -> Option<()> {
        for app in APPS {
            let mut served = Vec::new();
            for node in &self.nodes {
                let url = format!("{}/v1/apps/{app}/token", node.url);
                let (status, answer) = http("GET", &url, Some(key), None).await?;
                served.push((status == 200).then(|| answer["access_token"].clone())?);
            }
            if served.iter().any(|it| *it != served[0]) {
                return None;
            }
            let url = clients::trial(&self.sim.api, served[0].as_str()?);
            clients::works(&http("GET", &url, None, None).await?.1).then_some(())?;
        }
        Some(())
    }
}

/// The library that lets a program see another time than it is.
fn faketime() -> PathBuf {
    let folders = std::fs::read_dir("/usr/lib").unwrap();
    let library = |folder: std::fs::DirEntry| folder.path().join("faketime/libfaketimeMT.so.1");
    let found = folders.map(|folder| library(folder.unwrap())).find(|path| path.is_file());
    found.expect("`cargo xtask test` installs faketime, a package of Debian")
}

/// How the token of an app is minted.
pub(super) fn issuer_of(app: &str) -> &'static str {
    if app == CLASSIC { "classic" } else { "stable" }
}

async fn pause_until(clock: &Clock, millis: i64) {
    let left = u64::try_from(millis - clock.now().as_millis()).unwrap_or(0);
    tokio::time::sleep(Duration::from_millis(left)).await;
}

/// The host and port of the Redis that may be killed.
fn redis_host() -> String {
    named_by(FRAIL_REDIS).split('/').nth(2).unwrap().to_owned()
}

/// A port that nobody has at this moment, and that is given to nobody who does not ask for it: a
/// replica comes back to it.
fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(21_000);
    loop {
        let port = NEXT.fetch_add(1, Ordering::Relaxed);
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}
