//! A world for a test: a simulated WeChat and a server with real sockets, on paused time that the
//! clock of both follows.

use std::{cell::Cell, net::SocketAddr, sync::Once, time::Duration};

use broker::{
    Broker, NewApp, Parts,
    app::{AppKind, Issuer},
    audit::Actor,
    key::{Apps, Permission, Rights},
    seal::Sealer,
    store::{MemoryStore, SqliteStore},
};
use clock::{Clock, Timestamp};
use serde_json::{Value, json};
use server::http::{self, App, Limits, Listener, ProblemType, Serves, Tls};
use server::intercept::Authority;
use sim::{AppSpec, Scope, Sim, UserSpec};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// The app of most tests, and its alias.
pub(crate) const APP: &str = "wx00000000000000aa";
pub(crate) const ALIAS: &str = "shop";
/// Another one.
pub(crate) const OTHER: &str = "wx00000000000000bb";
/// A mini program, and its alias.
pub(crate) const MINI: &str = "wx00000000000000dd";
pub(crate) const MINI_ALIAS: &str = "tool";
/// A follower of [`APP`], who uses [`MINI`] too.
pub(crate) const OPENID: &str = "oABCDEFGHIJKLMNOPQRSTUVWXYZ0";

const SECRET: &str = "0123456789abcdef0123456789abcdef";
/// 2026-01-01 08:00 in Beijing.
pub(crate) const START: Timestamp = Timestamp::from_secs(1_767_225_600);

/// How a world differs from the usual one.
#[derive(Default)]
pub(crate) struct Setup {
    pub(crate) limits: Limits,
    pub(crate) tls: Option<Tls>,
    /// State in a file instead of in memory.
    pub(crate) sqlite: bool,
    pub(crate) bounds: broker::Bounds,
    /// Nobody refreshes before somebody asks.
    pub(crate) lazy: bool,
    /// The way to WeChat leads nowhere.
    pub(crate) away: bool,
    /// The way to WeChat leads there instead of to the simulator.
    pub(crate) upstream: Option<SocketAddr>,
    /// A second listener, in WeChat's place, on this authority.
    pub(crate) intercept: Option<Authority>,
}

pub(crate) struct World {
    pub(crate) sim: Sim,
    pub(crate) app: App,
    pub(crate) api: SocketAddr,
    /// The listener for operators.
    pub(crate) admin: SocketAddr,
    /// The listener in WeChat's place.
    pub(crate) intercept: Option<SocketAddr>,
    pub(crate) clock: Clock,
    /// A key that may do everything.
    pub(crate) key: String,
    pub(crate) store: MemoryStore,
    pub(crate) shutdown: CancellationToken,
    serving: TaskTracker,
    stop_all: CancellationToken,
    _dir: Option<TempDir>,
}

impl World {
    pub(crate) async fn new() -> Self {
        Self::with(Setup::default()).await
    }

    pub(crate) async fn on_sqlite() -> Self {
        Self::with(Setup { sqlite: true, ..Setup::default() }).await
    }

    pub(crate) async fn with(setup: Setup) -> Self {
        count_panics();
        let clock = Clock::following_timers(START);
        let sim = Sim::new(sim::Options::new(clock.clone(), 7));
        let stop_all = CancellationToken::new();
        let tasks = TaskTracker::new();
        let wechat = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let pages: ::http::Uri =
            format!("http://{}", wechat.local_addr().unwrap()).parse().unwrap();
        // Nobody listens on that port.
        let nowhere = ::http::Uri::from_static("http://127.0.0.1:1");
        let elsewhere = setup.upstream.map(|it| format!("http://{it}").parse().unwrap());
        let hosts = vec![if setup.away { nowhere } else { elsewhere.unwrap_or(pages.clone()) }];
        tasks.spawn(sim.clone().serve(wechat, None, stop_all.clone().cancelled_owned()));

        let config = wechat::Config { hosts, pages, ..wechat::Config::default() };
        let dir = setup.sqlite.then(|| TempDir::new().unwrap());
        let store = MemoryStore::new(clock.clone());
        let sqlite = match &dir {
            Some(dir) => {
                Some(SqliteStore::open(&dir.path().join("x.db"), clock.clone()).await.unwrap())
            }
            None => None,
        };
        let parts = Parts {
            store: match &sqlite {
                Some(sqlite) => std::sync::Arc::new(sqlite.clone()),
                None => std::sync::Arc::new(store.clone()),
            },
            shared: match sqlite {
                Some(sqlite) => std::sync::Arc::new(sqlite),
                None => std::sync::Arc::new(store.clone()),
            },
            wechat: wechat::Client::new(config).unwrap(),
            clock: clock.clone(),
            sealer: Sealer::new([("k1".to_owned(), [7; 32])], "k1").unwrap(),
            tasks: tasks.clone(),
            bounds: setup.bounds,
        };
        let broker = Broker::open(parts).await.unwrap();
        for (id, alias) in [(APP, Some(ALIAS)), (OTHER, None)] {
            sim.add_app(AppSpec::new(id, SECRET).with_loopback_redirects());
            broker.add_app(new_app(id, alias), &Actor::System).await.unwrap();
        }
        sim.add_app(AppSpec { kind: sim::AppKind::MiniProgram, ..AppSpec::new(MINI, SECRET) });
        let mini = NewApp { kind: AppKind::MiniProgram, ..new_app(MINI, Some(MINI_ALIAS)) };
        broker.add_app(mini, &Actor::System).await.unwrap();
        let follower = UserSpec::new(APP, OPENID).with_unionid("oUNION").with_nickname("小明");
        sim.add_user(follower).unwrap();
        sim.add_user(UserSpec::new(MINI, OPENID)).unwrap();
        if !setup.lazy {
            let (broker, stop) = (broker.clone(), stop_all.clone());
            tasks.spawn(async move { broker.run(stop).await });
        }

        let app = App::new(broker, setup.limits);
        let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let api = tcp.local_addr().unwrap();
        let shutdown = CancellationToken::new();
        let serving = TaskTracker::new();
        let mut listeners = vec![Listener { tcp, tls: setup.tls, serves: Serves::Everything }];
        let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let admin = tcp.local_addr().unwrap();
        listeners.push(Listener { tcp, tls: None, serves: Serves::Admin });
        let mut intercept = None;
        if let Some(authority) = setup.intercept {
            let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
            intercept = Some(tcp.local_addr().unwrap());
            let tls = Some(Tls::issued_by(authority, clock.clone()).unwrap());
            listeners.push(Listener { tcp, tls, serves: Serves::Compatible });
        }
        serving.spawn(http::serve(listeners, app.clone(), shutdown.clone()));
        serving.close();
        let mut world = Self {
            sim,
            app,
            api,
            admin,
            intercept,
            clock,
            key: String::new(),
            store,
            shutdown,
            serving,
            stop_all,
            _dir: dir,
        };
        world.key = world.add_key("all", Permission::ALL, Apps::All).await;
        world
    }

    pub(crate) async fn add_key(
        &self,
        name: &str,
        permissions: impl IntoIterator<Item = Permission>,
        apps: Apps,
    ) -> String {
        let permissions = permissions.into_iter().collect();
        let rights = Rights { permissions, apps, paths: Vec::new(), reveal: false };
        let key = self.app.broker.add_key(name, rights, None, &Actor::System).await.unwrap();
        key.expose().to_owned()
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.ask("GET", path, Some(&self.key), None).await
    }

    pub(crate) async fn post(&self, path: &str, body: &str) -> Answer {
        self.ask("POST", path, Some(&self.key), Some(body)).await
    }

    /// The code of a user of [`APP`] who authorised it just now.
    pub(crate) fn code(&self, scope: Scope) -> String {
        self.sim.issue_code(APP, OPENID, scope, false).unwrap()
    }

    /// Exchanges a code at [`APP`].
    pub(crate) async fn exchange_code(&self, code: &str, binding: &str) -> Answer {
        let body = json!({ "code": code, "binding": binding });
        self.post(&format!("/v1/apps/{APP}/oauth/exchange"), &body.to_string()).await
    }

    /// Logs in to [`MINI`], and answers the session.
    pub(crate) async fn mini_session(&self) -> String {
        let body = json!({ "js_code": self.sim.issue_js_code(MINI, OPENID).unwrap() });
        let answer = self.post(&format!("/v1/apps/{MINI}/mini/login"), &body.to_string()).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.json()["session"].as_str().unwrap().to_owned()
    }

    /// One request on its own connection.
    pub(crate) async fn ask(
        &self,
        method: &str,
        path: &str,
        key: Option<&str>,
        body: Option<&str>,
    ) -> Answer {
        self.ask_with("", method, path, (key, body)).await
    }

    /// The same, with headers that end with a line break each.
    pub(crate) async fn ask_with(
        &self,
        headers: &str,
        method: &str,
        path: &str,
        (key, body): (Option<&str>, Option<&str>),
    ) -> Answer {
        let mut request =
            format!("{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{headers}");
        if let Some(key) = key {
            request.push_str(&format!("authorization: Bearer {key}\r\n"));
        }
        if let Some(body) = body {
            let length = body.len();
            request.push_str("content-type: application/json\r\n");
            request.push_str(&format!("content-length: {length}\r\n\r\n{body}"));
        } else {
            request.push_str("\r\n");
        }
        let received = self.exchange(request.as_bytes()).await;
        Answer::parse(&received).unwrap_or_else(|| panic!("no answer to {method} {path}"))
    }

    /// Sends bytes, and reads until the other side ends the connection.
    pub(crate) async fn exchange(&self, request: &[u8]) -> Vec<u8> {
        Self::exchange_at(self.api, request).await
    }

    /// The same with another listener.
    pub(crate) async fn exchange_at(at: SocketAddr, request: &[u8]) -> Vec<u8> {
        let mut stream = TcpStream::connect(at).await.unwrap();
        // The other side may have heard enough before the end.
        let _ = stream.write_all(request).await;
        let mut received = Vec::new();
        let _ = stream.read_to_end(&mut received).await;
        received
    }

    /// The app's token, as a service reads it.
    pub(crate) async fn token(&self) -> Value {
        let answer = self.get(&format!("/v1/apps/{APP}/token")).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.json()
    }

    /// Calls of a path that WeChat has seen for [`APP`].
    pub(crate) fn calls(&self, path: &str) -> u64 {
        self.sim.calls().count(path, Some(APP), None)
    }

    /// Waits until the listener has ended.
    pub(crate) async fn served(&self) {
        self.serving.wait().await;
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.shutdown.cancel();
        self.stop_all.cancel();
        if !std::thread::panicking() {
            assert_eq!(PANICS.get(), 0, "a task panicked");
        }
    }
}

/// An answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    /// Reads an answer that ends with its connection.
    pub(crate) fn parse(received: &[u8]) -> Option<Self> {
        let end = received.windows(4).position(|four| four == b"\r\n\r\n")?;
        let head = String::from_utf8(received[..end].to_vec()).ok()?;
        let status = head.split(' ').nth(1)?.parse().ok()?;
        Some(Self { status, head, body: received[end + 4..].to_vec() })
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (key, value) = line.split_once(": ")?;
            key.eq_ignore_ascii_case(name).then_some(value)
        })
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("no JSON: {self:?}"))
    }

    /// Checks that this is a problem of a kind, complete, and answers its body.
    #[track_caller]
    pub(crate) fn check_problem(&self, kind: ProblemType) -> Value {
        assert_eq!(self.status, kind.status().as_u16(), "{self:?}");
        assert_eq!(self.header("content-type"), Some("application/problem+json"));
        assert_eq!(self.header("cache-control"), Some("no-store"));
        let body = self.json();
        assert_eq!(body["type"], kind.uri(), "{body}");
        assert_eq!(body["status"], self.status);
        assert_eq!(body["request_id"].as_str(), self.header("x-request-id"));
        assert!(body["detail"].as_str().unwrap().ends_with('.'), "{body}");
        crate::openapi::check_schema("Problem", &body);
        body
    }

    /// How long the client is told to wait.
    #[track_caller]
    pub(crate) fn retry_after(&self) -> u64 {
        self.header("retry-after").expect("a Retry-After").parse().unwrap()
    }
}

pub(crate) fn new_app(id: &str, alias: Option<&str>) -> NewApp {
    NewApp {
        id: id.parse().unwrap(),
        alias: alias.map(str::to_owned),
        kind: AppKind::Official,
        issuer: Issuer::Stable,
        secret: wechat::AppSecret::new(SECRET),
    }
}

/// Lets simulated time pass; every timer in between fires when its time has come.
pub(crate) async fn pass(seconds: u64) {
    tokio::time::sleep(Duration::from_secs(seconds)).await;
}

thread_local! {
    /// Panics on this thread, where the test and all of its tasks run.
    static PANICS: Cell<u32> = const { Cell::new(0) };
}

fn count_panics() {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            PANICS.set(PANICS.get() + 1);
            before(panic);
        }));
    });
}
