//! A world for a test: one simulated WeChat, one store, any number of brokers on it, one clock that
//! follows tokio's paused timers.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use broker::{
    AppEntry, Broker, ExchangeError, Identity, NewApp, Parts, Profile, ProfileError, ProfileQuery,
    Proof, TokenView, UserGrants,
    app::{AppKind, Issuer},
    audit::Actor,
    key::{ClientKey, Rights},
    seal::Sealer,
    store::{MemoryStore, Shared, SqliteStore, Store},
};
use clock::{Clock, Timestamp};
use futures_util::FutureExt;
use sim::{AppSpec, Sim, TokenState, UserSpec};
use tempfile::TempDir;
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use wechat::{AuthCode, OpenId};

/// 2026-01-01 08:00 in Beijing.
pub(crate) const START: Timestamp = Timestamp::from_secs(1_767_225_600);

/// Where a world keeps its state.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Backend {
    Memory,
    Sqlite,
}

/// The app of most tests.
pub(crate) const APP: &str = "wx00000000000000aa";

pub(crate) struct World {
    pub(crate) sim: Sim,
    pub(crate) clock: Clock,
    pub(crate) wechat: wechat::Client,
    pub(crate) memory: MemoryStore,
    dir: Option<TempDir>,
    stop_sim: CancellationToken,
    serving: JoinHandle<()>,
    tasks: TaskTracker,
}

/// One process, as far as the store can tell.
pub(crate) struct Replica {
    pub(crate) broker: Broker,
    stop: CancellationToken,
    tasks: TaskTracker,
    died: Arc<AtomicBool>,
}

impl World {
    pub(crate) async fn new(backend: Backend) -> Self {
        let clock = Clock::following_timers(START);
        let sim = Sim::new(sim::Options::new(clock.clone(), 7));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        let tasks = TaskTracker::new();
        let stop_sim = CancellationToken::new();
        let until = stop_sim.clone().cancelled_owned();
        let serving = tasks.spawn(sim.clone().serve(listener, None, until));
        let wechat = wechat::Client::new(wechat::Config {
            hosts: vec![base.parse().unwrap()],
            pages: base.parse().unwrap(),
            ..wechat::Config::default()
        })
        .unwrap();
        let dir = matches!(backend, Backend::Sqlite).then(|| TempDir::new().unwrap());
        let memory = MemoryStore::new(clock.clone());
        Self { sim, clock, wechat, memory, dir, stop_sim, serving, tasks }
    }

    /// A world with one app, and one broker that runs.
    pub(crate) async fn with_app(
        backend: Backend,
        issuer: Issuer,
    ) -> (Self, Replica, Arc<AppEntry>) {
        let world = Self::new(backend).await;
        let replica = world.replica().await;
        let entry = world.add_app(&replica.broker, APP, issuer).await;
        (world, replica, entry)
    }

    /// The stores as another process opens them.
    pub(crate) async fn stores(&self) -> (Arc<dyn Store>, Arc<dyn Shared>) {
        match &self.dir {
            None => (Arc::new(self.memory.clone()), Arc::new(self.memory.clone())),
            Some(dir) => {
                let store = open_sqlite(dir.path(), &self.clock).await;
                (Arc::new(store.clone()), Arc::new(store))
            }
        }
    }

    /// The file that the store is in.
    pub(crate) fn database(&self) -> PathBuf {
        self.dir.as_ref().expect("the store is a file").path().join("xinfu.db")
    }

    /// A broker on the world's store that does not run in the background, like a command.
    pub(crate) async fn idle(&self) -> Broker {
        let (store, shared) = self.stores().await;
        self.broker_on(store, shared, self.tasks.clone()).await
    }

    pub(crate) async fn broker_on(
        &self,
        store: Arc<dyn Store>,
        shared: Arc<dyn Shared>,
        tasks: TaskTracker,
    ) -> Broker {
        self.broker_by(self.clock.clone(), store, shared, tasks).await
    }

    /// A broker whose own clock is another.
    async fn broker_by(
        &self,
        clock: Clock,
        store: Arc<dyn Store>,
        shared: Arc<dyn Shared>,
        tasks: TaskTracker,
    ) -> Broker {
        let parts = Parts {
            store,
            shared,
            wechat: self.wechat.clone(),
            clock,
            sealer: sealer(),
            tasks,
            bounds: broker::Bounds::default(),
        };
        Broker::open(parts).await.unwrap()
    }

    /// A broker on the world's store that keeps credentials fresh.
    pub(crate) async fn replica(&self) -> Replica {
        let (store, shared) = self.stores().await;
        self.replica_on(store, shared).await
    }

    pub(crate) async fn replica_on(
        &self,
        store: Arc<dyn Store>,
        shared: Arc<dyn Shared>,
    ) -> Replica {
        self.replica_by(self.clock.clone(), store, shared).await
    }

    /// A broker that keeps credentials fresh, and whose clock is wrong by so many seconds.
    pub(crate) async fn replica_ahead(&self, seconds: i64) -> Replica {
        let (store, shared) = self.stores().await;
        let wrong = self.clock.now().offset_millis(seconds * 1000);
        self.replica_by(Clock::following_timers(wrong), store, shared).await
    }

    async fn replica_by(
        &self,
        clock: Clock,
        store: Arc<dyn Store>,
        shared: Arc<dyn Shared>,
    ) -> Replica {
        let tasks = TaskTracker::new();
        let broker = self.broker_by(clock, store, shared, tasks.clone()).await;
        let stop = CancellationToken::new();
        let died = Arc::new(AtomicBool::new(true));
        let (running, until, ended) = (broker.clone(), stop.clone(), Arc::clone(&died));
        tasks.spawn(async move {
            running.run(until).await;
            ended.store(false, Ordering::Release);
        });
        Replica { broker, stop, tasks, died }
    }

    /// Makes an app known at WeChat and to a broker.
    pub(crate) async fn add_app(
        &self,
        broker: &Broker,
        appid: &str,
        issuer: Issuer,
    ) -> Arc<AppEntry> {
        self.sim.add_app(AppSpec::new(appid, secret_of(appid)));
        broker.add_app(new_app(appid, issuer), &Actor::System).await.unwrap();
        broker.app(appid).unwrap()
    }

    /// Lets simulated time pass; every timer in between fires when its time has come.
    pub(crate) async fn pass(&self, time: Duration) {
        tokio::time::sleep(time).await;
    }

    /// Makes all replicas look at the store, its time too.
    pub(crate) async fn have_looked(&self) {
        self.memory.wake().await.unwrap();
        self.pass(Duration::from_millis(10)).await;
    }

    /// What WeChat would say to a token.
    pub(crate) fn state(&self, view: &TokenView) -> TokenState {
        self.sim.token_state(APP, view.token.expose())
    }

    /// Calls of a token endpoint that WeChat has answered with a token.
    pub(crate) fn mint_calls(&self, appid: &str) -> u64 {
        let calls = self.sim.calls();
        ["/cgi-bin/token", "/cgi-bin/stable_token"]
            .iter()
            .map(|path| calls.count(path, Some(appid), Some(0)))
            .sum()
    }

    /// All calls of a path.
    pub(crate) fn calls(&self, path: &str) -> u64 {
        self.sim.calls().count(path, None, None)
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.stop_sim.cancel();
        let ended = (&mut self.serving).now_or_never();
        let died = ended.is_some_and(|ended| ended.is_err_and(|error| error.is_panic()));
        assert!(!died || std::thread::panicking(), "the simulated WeChat panicked");
    }
}

impl Replica {
    /// Does nothing of itself any more, so that weeks pass quickly.
    pub(crate) fn rest(&self) {
        self.stop.cancel();
    }

    /// Stops as a server does, and waits until it has.
    pub(crate) async fn stop(self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
        assert!(!self.died.load(Ordering::Acquire), "the background task panicked");
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

pub(crate) async fn open_sqlite(dir: &Path, clock: &Clock) -> SqliteStore {
    SqliteStore::open(&dir.join("xinfu.db"), clock.clone()).await.unwrap()
}

pub(crate) fn sealer() -> Sealer {
    Sealer::new([("k1".to_owned(), [7; 32])], "k1").unwrap()
}

pub(crate) fn secret_of(appid: &str) -> String {
    format!("secret-of-{appid}")
}

pub(crate) fn new_app(appid: &str, issuer: Issuer) -> NewApp {
    NewApp {
        id: appid.parse().unwrap(),
        alias: None,
        kind: AppKind::Official,
        issuer,
        secret: wechat::AppSecret::new(secret_of(appid)),
    }
}

/// Reads the token as a service that has no special wish.
pub(crate) async fn read(broker: &Broker, entry: &Arc<AppEntry>) -> TokenView {
    broker.token(entry, None, Duration::ZERO).await.unwrap()
}

pub(crate) fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

/// The user of most tests of logins.
pub(crate) const OPENID: &str = "oUser0000000000000000000001a";
pub(crate) const UNIONID: &str = "oUnion000000000000000000001a";
/// A name with all that names have: bytes that JSON does not allow bare, quotes, emoji.
pub(crate) const NICKNAME: &str = "a\u{8}b\n\u{14}\"\\ 微信 👨‍👩‍👧 ";

pub(crate) const EXCHANGE: &str = "/sns/oauth2/access_token";
pub(crate) const RENEW: &str = "/sns/oauth2/refresh_token";
pub(crate) const USERINFO: &str = "/sns/userinfo";

/// A world with one app of one user, and a service that may ask for logins.
pub(crate) struct Desk {
    pub(crate) world: World,
    pub(crate) replica: Replica,
    pub(crate) entry: Arc<AppEntry>,
    pub(crate) key: Arc<ClientKey>,
}

impl Desk {
    pub(crate) async fn new(backend: Backend) -> Self {
        Self::of_kind(backend, AppKind::Official).await
    }

    pub(crate) async fn of_kind(backend: Backend, kind: AppKind) -> Self {
        let world = World::new(backend).await;
        let replica = world.replica().await;
        let mut spec = AppSpec::new(APP, secret_of(APP));
        spec.kind = match kind {
            AppKind::Official => sim::AppKind::Official,
            AppKind::MiniProgram => sim::AppKind::MiniProgram,
            AppKind::Website => sim::AppKind::Website,
            AppKind::Test => sim::AppKind::Test,
        };
        world.sim.add_app(spec);
        let user = UserSpec::new(APP, OPENID).with_unionid(UNIONID).with_nickname(NICKNAME);
        world.sim.add_user(user).unwrap();
        let app = NewApp { kind, ..new_app(APP, Issuer::Stable) };
        replica.broker.add_app(app, &Actor::System).await.unwrap();
        let entry = replica.broker.app(APP).unwrap();
        let key = add_key(&replica.broker, "shop").await;
        Self { world, replica, entry, key }
    }

    pub(crate) fn broker(&self) -> &Broker {
        &self.replica.broker
    }

    pub(crate) fn code(&self, scope: sim::Scope) -> AuthCode {
        AuthCode::new(self.world.sim.issue_code(APP, OPENID, scope, false).unwrap())
    }

    /// Exchanges a code in the browser that brings `binding`.
    pub(crate) async fn exchange(
        &self,
        code: &AuthCode,
        binding: &str,
    ) -> Result<Identity, ExchangeError> {
        let proof = Proof::Binding(binding);
        self.broker().exchange(&self.entry, &self.key, code, proof, None).await
    }

    /// A whole login.
    pub(crate) async fn log_in(&self, scope: sim::Scope) -> Identity {
        self.exchange(&self.code(scope), "b").await.unwrap()
    }

    pub(crate) async fn profile(&self, query: &ProfileQuery) -> Result<Profile, ProfileError> {
        let openid = OpenId::new(OPENID);
        self.broker().profile(&self.entry, &self.key, &openid, query).await
    }

    /// The profile as WeChat tells it now.
    pub(crate) async fn fresh_profile(&self) -> Result<Profile, ProfileError> {
        self.profile(&ProfileQuery { fresh: true, ..ProfileQuery::default() }).await
    }

    pub(crate) async fn grants(&self) -> Option<UserGrants> {
        self.broker().grants(&self.entry, &OpenId::new(OPENID)).await.unwrap()
    }
}

pub(crate) async fn add_key(broker: &Broker, name: &str) -> Arc<ClientKey> {
    let new = broker.add_key(name, Rights::all(), None, &Actor::System).await.unwrap();
    broker.authenticate(new.expose()).unwrap()
}
