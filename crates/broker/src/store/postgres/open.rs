//! Opening a database: its connections, what our sessions keep to, the version of its tables.

use std::{error::Error, sync::Arc, time::Duration};

use deadpool_postgres::{
    ClientWrapper, GenericClient, Hook, HookError, Manager, ManagerConfig, Object, Pool, PoolError,
    RecyclingMethod, Runtime,
};

use super::{
    PostgresStore,
    shared::{LOOK_EVERY, Wakes},
    url::PostgresUrl,
};
use crate::store::{StoreError, StoreResult, Tables, away::Away};

/// What leads from each version of the database to the next; the version is in `xinfu_version`.
///
/// Servers of the version before go on while one is made and afterwards, with their own statements.
/// So each leaves what these read and write as it was, and adds to it; or takes away what they name,
/// so that they are refused, say so, and serve what they have in memory. None gives what there was
/// another meaning.
const MIGRATIONS: [&str; 1] = [include_str!("migrations/0001.sql")];

/// So many connections a process opens at most, beside the one that listens.
const CONNECTIONS: usize = 10;

/// How long to wait for one of the connections, when all are in use.
const WAIT: Duration = Duration::from_secs(4);

/// What the database holds each of our sessions to, whatever is set for the user or the database.
/// In case that we are gone and it does not know, no statement, no wait for a lock and no idle
/// transaction keeps others waiting for long; transactions are as our statements take them to be; and
/// what was committed is on the disk, or wherever else an administrator waits for.
const SESSION: &str = "SET statement_timeout = '5s'; SET lock_timeout = '4s'; \
     SET idle_in_transaction_session_timeout = '5s'; \
     SET default_transaction_isolation = 'read committed'; \
     SET default_transaction_read_only = off; \
     SELECT set_config('synchronous_commit', 'on', FALSE) \
         WHERE current_setting('synchronous_commit') <> 'remote_apply'; \
     SET client_min_messages = warning";

/// What one migration after another is done under.
const MIGRATING: i64 = 8_243_109_876_543_210_003;

impl PostgresStore {
    /// Opens the store in the database that `url` names, and makes its tables if need be, also when
    /// many processes do so at once. A database that a newer version has written is refused.
    ///
    /// Must be called within a tokio runtime: connections are driven by tasks of their own, which
    /// end with the store.
    pub async fn open(url: &PostgresUrl) -> StoreResult<Self> {
        Self::open_waking(url, Wakes::of(url.clone(), LOOK_EVERY)).await
    }

    /// Opens a database for leases and wake-ups alone, while the state is kept in another.
    pub async fn open_apart(url: &PostgresUrl) -> StoreResult<Self> {
        Self::open_waking(url, Wakes::apart(url.clone(), LOOK_EVERY)).await
    }

    pub(super) async fn open_waking(url: &PostgresUrl, wakes: Wakes) -> StoreResult<Self> {
        let store = Self::unopened(url, wakes)?;
        store.on(async |db| migrate(db).await).await?;
        Ok(store)
    }

    /// The store before anybody has asked the database for anything.
    pub(super) fn unopened(url: &PostgresUrl, wakes: Wakes) -> StoreResult<Self> {
        Ok(Self { pool: pool(url)?, wakes: Arc::new(wakes), away: Away::new() })
    }

    /// What tables there are in the database that `url` names. Changes nothing there.
    pub async fn look(url: &PostgresUrl) -> StoreResult<Tables> {
        let store = Self::unopened(url, Wakes::of(url.clone(), LOOK_EVERY))?;
        store.on(async |db| Ok(tables(&*db).await?.0)).await
    }
}

/// Connections that are opened as they are needed.
fn pool(url: &PostgresUrl) -> StoreResult<Pool> {
    let manager = ManagerConfig { recycling_method: RecyclingMethod::Fast };
    let manager = Manager::from_config(url.config.clone(), url.tls.clone(), manager);
    let settle = Hook::async_fn(|client: &mut ClientWrapper, _| {
        Box::pin(async move { client.batch_execute(SESSION).await.map_err(HookError::Backend) })
    });
    Pool::builder(manager)
        .max_size(CONNECTIONS)
        .post_create(settle)
        .wait_timeout(Some(WAIT))
        .runtime(Runtime::Tokio1)
        .build()
        .map_err(|err| StoreError::Unavailable(with_causes(&err)))
}

/// What tables there are, and how many migrations have led to them.
async fn tables(db: &impl GenericClient) -> StoreResult<(Tables, usize)> {
    // Read from the catalogue itself: what a session remembers of names may be old.
    let made = "SELECT EXISTS (SELECT FROM pg_catalog.pg_class \
         WHERE relname = 'xinfu_version' AND pg_catalog.pg_table_is_visible(oid))";
    let version = if db.query_one(made, &[]).await?.get(0) {
        db.query_one("SELECT version FROM xinfu_version", &[]).await?.get(0)
    } else {
        0
    };
    let tables = Tables::of(&"the database", version, MIGRATIONS.len() as i64)?;
    Ok((tables, usize::try_from(version).unwrap_or(0)))
}

/// Brings the tables to the newest version, once, however many processes open the database.
async fn migrate(db: &mut Object) -> StoreResult<()> {
    if tables(&*db).await?.0 == Tables::Current {
        return Ok(());
    }
    let transaction = db.transaction().await?;
    transaction.execute("SELECT pg_advisory_xact_lock($1)", &[&MIGRATING]).await?;
    // Another process may have come first.
    let (_, done) = tables(&transaction).await?;
    for migration in MIGRATIONS.iter().skip(done) {
        transaction.batch_execute(migration).await?;
    }
    let newest = MIGRATIONS.len() as i64;
    transaction.execute("UPDATE xinfu_version SET version = $1", &[&newest]).await?;
    Ok(transaction.commit().await?)
}

/// Why no connection was got.
pub(super) fn unavailable(err: PoolError) -> StoreError {
    match err {
        PoolError::Backend(err) => err.into(),
        other => StoreError::Unavailable(with_causes(&other)),
    }
}

/// An error with what caused it: the driver tells the rest only when it is asked.
pub(super) fn with_causes(err: &dyn Error) -> String {
    let mut text = err.to_string();
    let mut cause = err.source();
    while let Some(err) = cause {
        text.push_str(": ");
        text.push_str(&err.to_string());
        cause = err.source();
    }
    text
}
