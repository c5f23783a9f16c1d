//! What the demonstration happens in: the simulator, the server, the clock that they share.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use ::sim::{AppSpec, Options, Sim, UserSpec};
use broker::{
    Broker, NewApp, Parts,
    app::{AppKind, Issuer},
    audit::Actor,
    key::{NewKey, Rights},
    seal::{MASTER_KEY_LEN, Sealer},
    store::{Shared, SqliteStore, Store},
};
use clock::Clock;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use wechat::AppSecret;

use crate::{
    cli::{Failure, random_seed},
    http::{self, App, Limits, Listener, Serves},
};

/// A follower of the first app.
pub(crate) const FOLLOWER: &str = "oDemo-follower-of-the-shop01";
/// Somebody who does not follow it, and has a nickname.
pub(crate) const STRANGER: &str = "oDemo-stranger-to-the-shop02";
/// A follower of the second app.
pub(crate) const READER: &str = "oDemo-follower-of-the-news01";

/// Which ports the listeners take.
#[derive(Clone, Copy)]
pub(crate) struct Ports {
    api: u16,
    sim: u16,
    control: u16,
    admin: u16,
}

impl Ports {
    /// Those of the documents.
    pub(crate) const DEFAULT: Self = Self { api: 7080, sim: 7090, control: 7091, admin: 7082 };
    /// Free ones.
    pub(crate) const FREE: Self = Self { api: 0, sim: 0, control: 0, admin: 0 };

    /// One after the other from `base` on; 0: free ones.
    pub(crate) fn from(base: u16) -> Result<Self, Failure> {
        match base {
            0 => Ok(Self::FREE),
            1..=65_532 => Ok(Self { api: base, sim: base + 1, control: base + 2, admin: base + 3 }),
            _ => Err(Failure::usage(format!("`--port-base {base}` leaves too few ports above it"))),
        }
    }
}

/// An app of the demonstration.
pub(crate) struct DemoApp {
    pub(crate) appid: &'static str,
    pub(crate) alias: &'static str,
    pub(crate) issuer: Issuer,
    pub(crate) secret: String,
}

/// Simulator and server, running.
pub(crate) struct World {
    pub(crate) clock: Clock,
    pub(crate) sim: Sim,
    pub(crate) broker: Broker,
    /// The address of the server, as a URL.
    pub(crate) api: String,
    /// The address of its listener for operators.
    pub(crate) admin: String,
    /// The address of the simulated WeChat.
    pub(crate) sim_api: String,
    /// The address of its control port.
    pub(crate) control: String,
    pub(crate) apps: [DemoApp; 2],
    pub(crate) key: NewKey,
    stop: CancellationToken,
    stop_sim: CancellationToken,
    /// The server and its refreshes.
    server: TaskTracker,
    simulator: TaskTracker,
    /// Removed when dropped.
    _folder: TempDir,
}

impl World {
    /// Starts everything. The simulator knows both apps, the server none yet.
    pub(crate) async fn start(ports: Ports) -> Result<Self, Failure> {
        let api = bind(ports.api).await?;
        let admin = bind(ports.admin).await?;
        let sim_api = bind(ports.sim).await?;
        let control = bind(ports.control).await?;
        let url = |listener: &TcpListener| -> Result<String, Failure> {
            Ok(format!("http://{}", listener.local_addr()?))
        };
        let (api_url, sim_url, control_url) = (url(&api)?, url(&sim_api)?, url(&control)?);
        let admin_url = url(&admin)?;

        let folder = tempfile::tempdir()?;
        let clock = Clock::shifted();
        let store = SqliteStore::open(&folder.path().join("xinfu.db"), clock.clone()).await?;
        let store = Arc::new(store);
        let server = TaskTracker::new();
        let upstream =
            ::http::Uri::try_from(&sim_url).map_err(|err| Failure::new(err.to_string()))?;
        let parts = Parts {
            store: Arc::clone(&store) as Arc<dyn Store>,
            shared: store as Arc<dyn Shared>,
            wechat: wechat::Client::new(wechat::Config {
                hosts: vec![upstream.clone()],
                pages: upstream,
                ..wechat::Config::default()
            })
            .map_err(|err| Failure::new(err.to_string()))?,
            clock: clock.clone(),
            sealer: Sealer::new([("demo".to_owned(), random::<MASTER_KEY_LEN>()?)], "demo")
                .map_err(|err| Failure::new(err.to_string()))?,
            tasks: server.clone(),
            bounds: broker::Bounds::default(),
        };
        let broker = Broker::open(parts).await?;
        let key = broker.add_key("demo", Rights::all(), None, &operator()).await?;

        let sim = simulator(&clock, &broker)?;
        let apps = demo_apps()?;
        for app in &apps {
            sim.add_app(AppSpec::new(app.appid, &app.secret).with_loopback_redirects());
        }
        add_users(&sim, &apps)?;

        let (stop, stop_sim) = (CancellationToken::new(), CancellationToken::new());
        let simulator = TaskTracker::new();
        simulator.spawn(sim.clone().serve(
            sim_api,
            Some(control),
            stop_sim.clone().cancelled_owned(),
        ));
        let listeners = [
            Listener { tcp: api, tls: None, serves: Serves::Everything },
            Listener { tcp: admin, tls: None, serves: Serves::Admin },
        ];
        let limits = Limits { grace: Duration::from_secs(2), ..Limits::default() };
        server.spawn(http::serve(listeners, App::new(broker.clone(), limits), stop.clone()));
        let keeper = (broker.clone(), stop.clone());
        server.spawn(async move { keeper.0.run(keeper.1).await });

        Ok(Self {
            clock,
            sim,
            broker,
            api: api_url,
            admin: admin_url,
            sim_api: sim_url,
            control: control_url,
            apps,
            key,
            stop,
            stop_sim,
            server,
            simulator,
            _folder: folder,
        })
    }

    /// Registers both apps, and waits until they have their first tokens.
    pub(crate) async fn add_apps(&self) -> Result<(), Failure> {
        for app in &self.apps {
            self.add_app(app).await?;
        }
        for app in &self.apps {
            if let Some(entry) = self.broker.app(app.appid) {
                self.broker.token(&entry, None, Duration::ZERO).await?;
            }
        }
        Ok(())
    }

    /// Registers an app, as `xinfu app add` does.
    pub(crate) async fn add_app(&self, app: &DemoApp) -> Result<(), Failure> {
        self.register(app.appid, app.alias, app.issuer, &app.secret).await
    }

    /// Registers an app with any secret.
    pub(crate) async fn register(
        &self,
        appid: &str,
        alias: &str,
        issuer: Issuer,
        secret: &str,
    ) -> Result<(), Failure> {
        let new = NewApp {
            id: appid.parse().map_err(|err: wechat::InvalidAppId| Failure::new(err.to_string()))?,
            alias: Some(alias.to_owned()),
            kind: AppKind::Official,
            issuer,
            secret: AppSecret::new(secret),
        };
        Ok(self.broker.add_app(new, &operator()).await?)
    }

    /// Moves the clock that server and simulator share.
    pub(crate) async fn advance(&self, by: Duration) -> Result<(), Failure> {
        self.sim.advance(by).await.map_err(|err| Failure::new(err.to_string()))
    }

    /// Moves that clock in one step, as for a machine that slept, and waits for what fell due. Many
    /// days of small steps take long.
    pub(crate) async fn leap(&self, by: Duration) {
        self.clock.advance(by);
        self.broker.settled().await;
    }

    /// What `--json` prints.
    pub(crate) fn as_json(&self) -> Value {
        let app =
            |app: &DemoApp| json!({"appid": app.appid, "alias": app.alias, "secret": app.secret});
        json!({
            "api": self.api,
            "public": null,
            "admin": self.admin,
            "sim": self.sim_api,
            "sim_control": self.control,
            "apps": self.apps.iter().map(app).collect::<Vec<_>>(),
            "key": self.key.expose(),
            "admin_key": null,
        })
    }

    /// Stops the server, then the simulator.
    pub(crate) async fn stop(self) {
        self.stop.cancel();
        self.server.close();
        self.server.wait().await;
        self.stop_sim.cancel();
        self.simulator.close();
        self.simulator.wait().await;
    }
}

/// Who does what a person would do at the command line.
pub(crate) fn operator() -> Actor {
    Actor::Operator("demo".to_owned())
}

/// Random hexadecimal digits, as an AppSecret has.
pub(crate) fn random_secret() -> Result<String, Failure> {
    Ok(random::<16>()?.iter().map(|byte| format!("{byte:02x}")).collect())
}

fn random<const N: usize>() -> Result<[u8; N], Failure> {
    let mut bytes = [0; N];
    aws_lc_rs::rand::fill(&mut bytes)
        .map_err(|_| Failure::new("the system gives no randomness"))?;
    Ok(bytes)
}

/// A simulator that waits, after each step of the clock, for the refreshes that fell due.
fn simulator(clock: &Clock, broker: &Broker) -> Result<Sim, Failure> {
    let mut options = Options::new(clock.clone(), random_seed()?);
    let broker = broker.clone();
    options.settle = Some(Arc::new(move || {
        let broker = broker.clone();
        Box::pin(async move { broker.settled().await })
    }));
    Ok(Sim::new(options))
}

fn demo_apps() -> Result<[DemoApp; 2], Failure> {
    Ok([
        DemoApp {
            appid: "wxdeadbeef00000001",
            alias: "shop",
            issuer: Issuer::Stable,
            secret: random_secret()?,
        },
        DemoApp {
            appid: "wxdeadbeef00000002",
            alias: "news",
            issuer: Issuer::Classic,
            secret: random_secret()?,
        },
    ])
}

fn add_users(sim: &Sim, [shop, news]: &[DemoApp; 2]) -> Result<(), Failure> {
    let mut follower = UserSpec::new(shop.appid, FOLLOWER)
        .with_nickname("阿茶")
        .with_unionid("oUnion-of-the-same-person-01");
    "likes tea".clone_into(&mut follower.remark);
    let users = [
        follower,
        UserSpec::new(shop.appid, STRANGER).with_nickname("小雨 🌧").not_following(),
        UserSpec::new(news.appid, READER)
            .with_nickname("阿茶")
            .with_unionid("oUnion-of-the-same-person-01"),
    ];
    for user in users {
        sim.add_user(user).map_err(|err| Failure::new(err.to_string()))?;
    }
    Ok(())
}

async fn bind(port: u16) -> Result<TcpListener, Failure> {
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    TcpListener::bind(address).await.map_err(|err| {
        Failure::new(format!("cannot listen on `{address}`: {err}"))
            .hint("`--port-base 0` takes free ports, `--port-base 17080` takes four from 17080 on")
    })
}
