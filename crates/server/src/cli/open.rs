//! From a configuration to a broker: what every command that touches the store begins with.

use std::{path::Path, sync::Arc};

use broker::{
    AppEntry, Broker, Parts,
    audit::Actor,
    seal::Sealer,
    store::{
        PostgresStore, RedisShared, RedisUrl, Shared, SqliteStore, Store, StoreError, StoreResult,
        Tables,
    },
};
use clock::Clock;
use tokio_util::task::TaskTracker;

use super::{Console, Failure};
use crate::{
    config::{self, Environment, Loaded, LogFormat, Settings, SharedPlace, StorePlace},
    telemetry,
};

/// Where the configuration comes from.
pub(crate) struct Place<'a> {
    /// The file named on the command line.
    pub(crate) config: Option<&'a Path>,
    /// The environment.
    pub(crate) environment: &'a Environment,
}

/// An open store and everything around it.
pub(crate) struct Open {
    /// The configuration.
    pub(crate) settings: Settings,
    /// The broker. Nothing is refreshed in the background unless its `run` is called.
    pub(crate) broker: Broker,
    /// Who owns its tasks.
    pub(crate) tasks: TaskTracker,
    /// Who is named in the audit log.
    pub(crate) actor: Actor,
}

impl Place<'_> {
    /// Reads the configuration.
    pub(crate) fn load(&self) -> Result<Loaded, Failure> {
        Ok(config::load(self.config, self.environment)?)
    }

    /// Opens the store for a single command, which logs errors only: what went wrong is told by the
    /// command itself.
    pub(crate) async fn open(&self) -> Result<Open, Failure> {
        let settings = self.load()?.settings;
        telemetry::start(LogFormat::Human, "error", self.environment)?;
        self.open_with(settings).await
    }

    /// Opens the store that the settings name.
    pub(crate) async fn open_with(&self, settings: Settings) -> Result<Open, Failure> {
        let clock = Clock::real();
        let (store, shared) = open_stores(&settings, clock.clone()).await?;
        let tasks = TaskTracker::new();
        let parts = Parts {
            store,
            shared,
            wechat: wechat::Client::new(settings.upstream.clone())
                .map_err(|err| Failure::usage(err.to_string()))?,
            clock,
            sealer: sealer(&settings)?,
            tasks: tasks.clone(),
            bounds: settings.bounds.clone(),
        };
        let broker = Broker::open(parts).await?;
        Ok(Open { settings, broker, tasks, actor: self.actor() })
    }

    /// Who is named in the audit log.
    pub(crate) fn actor(&self) -> Actor {
        Actor::Operator(self.environment.user_name())
    }
}

impl Open {
    /// The app of this appid or alias.
    pub(crate) fn app(&self, name: &str) -> Result<Arc<AppEntry>, Failure> {
        self.broker.app(name).ok_or_else(|| broker::ManageError::NoSuchApp(name.to_owned()).into())
    }

    /// All apps, by appid.
    pub(crate) fn apps(&self) -> Vec<Arc<AppEntry>> {
        let mut apps = self.broker.apps();
        apps.sort_by_key(|entry| entry.app().id.clone());
        apps
    }

    /// Waits for tasks that are under way, so that what WeChat has answered is stored.
    pub(crate) async fn finish(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }
}

/// What state is kept in, and what replicas share.
type Stores = (Arc<dyn Store>, Arc<dyn Shared>);

/// Opens where state is kept.
async fn open_stores(settings: &Settings, clock: Clock) -> Result<Stores, Failure> {
    let failure = |err: StoreError| {
        Failure::new(format!("cannot open the store `{}`: {err}", settings.store))
    };
    let stores: Stores = match &settings.store {
        StorePlace::Sqlite(path) => {
            if !folder_of(path).is_dir() {
                return Err(missing_folder(path));
            }
            let store = SqliteStore::open(path, clock).await.map_err(failure)?;
            (Arc::new(store.clone()), Arc::new(store))
        }
        StorePlace::Postgres(url) => {
            let store = PostgresStore::open(url).await.map_err(failure)?;
            (Arc::new(store.clone()), Arc::new(store))
        }
    };
    let shared: Arc<dyn Shared> = match &settings.shared {
        SharedPlace::Store => return Ok(stores),
        SharedPlace::Postgres(url) => {
            let failure = |err| Failure::new(format!("cannot open `shared`, `{url}`: {err}"));
            Arc::new(PostgresStore::open_apart(url).await.map_err(failure)?)
        }
        SharedPlace::Redis(url) => Arc::new(RedisShared::new(RedisUrl::clone(url))),
    };
    Ok((stores.0, shared))
}

/// A database that a key of the configuration names, and what tables there are in it.
pub(crate) struct Looked {
    pub(crate) key: &'static str,
    pub(crate) database: String,
    pub(crate) tables: StoreResult<Tables>,
}

/// Looks at each database that the settings name. Changes nothing there.
pub(crate) async fn look_at_databases(settings: &Settings) -> Vec<Looked> {
    let tables = match &settings.store {
        StorePlace::Sqlite(path) => SqliteStore::look(path).await,
        StorePlace::Postgres(url) => PostgresStore::look(url).await,
    };
    let mut looked = vec![Looked { key: "store", database: settings.store.to_string(), tables }];
    if let SharedPlace::Postgres(url) = &settings.shared {
        let tables = PostgresStore::look(url).await;
        looked.push(Looked { key: "shared", database: url.to_string(), tables });
    }
    looked
}

/// The folder of a file.
pub(crate) fn folder_of(file: &Path) -> &Path {
    match file.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    }
}

/// Why a store cannot be made where it is to be.
pub(crate) fn missing_folder(store: &Path) -> Failure {
    let folder = folder_of(store).display();
    Failure::new(format!(
        "cannot open the store `{}`: there is no folder `{folder}`",
        store.display()
    ))
    .hint(format!("`mkdir -p {folder}` makes it, or let `store` name another place"))
}

fn sealer(settings: &Settings) -> Result<Sealer, Failure> {
    Ok(settings.sealer()?)
}

/// Says which variables look like ours and mean nothing.
pub(crate) fn warn_of_unknown(loaded: &Loaded, console: &mut Console) -> Result<(), Failure> {
    for name in &loaded.unknown_variables {
        console
            .warn(&format!("`{name}` is set, but no key of the configuration has this variable"))?;
    }
    Ok(())
}
