//! A store in one SQLite file, which several processes on one machine may share.
//!
//! All is done in blocking tasks, one at a time a process: a single connection reads and writes,
//! every write in a transaction that takes the write lock when it begins. A second connection only
//! watches for what other processes have written, and only while somebody waits for that.

mod logins;
mod open;
mod query;
mod sealed;
mod shared;
#[cfg(test)]
mod tests;

use std::{
    fmt,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use clock::{Clock, Timestamp};
use rusqlite::{
    Connection, ErrorCode, Params, Transaction, TransactionBehavior, named_params, params,
};
use tokio::sync::watch;
use wechat::AppId;

use self::{sealed::SEALED_OTHERWISE, shared::Watcher};
use super::{
    AppRow, Change, Changes, CredentialRow, KeyRow, PassKeyRow, Place, Store, StoreError,
    StoreResult, Tables,
    memory::{CHANGES_KEPT, CHANGES_TRIMMED_EVERY, LEDGER_DAYS, distinct},
    rows::{
        self, APP, AUDIT, CHANGE, CREDENTIAL, KEY, LEDGER, OWN, PASS_KEY, SEALING_KEYS, TROUBLE,
        number,
    },
};
use crate::{
    audit::AuditEntry,
    credential::{CredentialId, Trouble},
    ledger::{Budget, LedgerRow, Spending, beijing_day},
    seal::Sealed,
};

/// How long a call waits for another process that is writing.
const BUSY: Duration = Duration::from_secs(5);

/// A store in one SQLite file. Cloning gives another handle to the same store.
#[derive(Clone)]
pub struct SqliteStore {
    /// An asynchronous lock, so that those who wait for their turn take no thread.
    connection: Arc<tokio::sync::Mutex<Connection>>,
    inner: Arc<Inner>,
}

struct Inner {
    clock: Clock,
    watcher: Mutex<Watcher>,
    /// The newest entry of the change log that `wakes` has announced.
    announced: AtomicI64,
    /// Counts the wake-ups, from 1: the cursors of [`super::Shared::woken`].
    wakes: watch::Sender<u64>,
}

/// A write under way.
struct Write<'c> {
    transaction: Transaction<'c>,
    now: Timestamp,
    /// The newest entry that this write appended to the change log.
    logged: Option<i64>,
}

impl From<rusqlite::Error> for StoreError {
    fn from(err: rusqlite::Error) -> Self {
        match err.sqlite_error_code() {
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
                Self::Unavailable("another process is writing to the database".to_owned())
            }
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => {
                Self::Corrupt(err.to_string())
            }
            _ => Self::Unavailable(err.to_string()),
        }
    }
}

impl Write<'_> {
    /// Runs one statement and answers how many rows it wrote.
    fn execute(&self, sql: &str, params: impl Params) -> StoreResult<usize> {
        Ok(self.transaction.prepare_cached(sql)?.execute(params)?)
    }

    /// Whether a query answers any row.
    fn exists(&self, sql: &str, params: impl Params) -> StoreResult<bool> {
        Ok(self.transaction.prepare_cached(sql)?.exists(params)?)
    }

    /// Whether the app is registered.
    fn has_app(&self, app: &AppId) -> StoreResult<bool> {
        self.exists("SELECT 1 FROM apps WHERE app = ?1", [app.as_str()])
    }

    /// Appends to the change log, and shortens it now and then.
    fn log(&mut self, change: &Change) -> StoreResult<()> {
        let (app, kind) = match change {
            Change::App(app) => (Some(app.as_str()), None),
            Change::Keys => (None, None),
            Change::PassKeys => (None, Some("pass-keys")),
            Change::Credential(id) => (Some(id.app.as_str()), Some(id.kind.as_str())),
        };
        self.execute("INSERT INTO changes (app, kind) VALUES (?1, ?2)", params![app, kind])?;
        let newest = self.transaction.last_insert_rowid();
        if newest % number(CHANGES_TRIMMED_EVERY) == 0 {
            let end = newest - number(CHANGES_KEPT);
            self.execute("DELETE FROM changes WHERE number <= ?1", [end])?;
        }
        self.logged = Some(newest);
        Ok(())
    }

    /// Appends to the change log that a credential changed.
    fn log_credential(&mut self, id: &CredentialId) -> StoreResult<()> {
        self.log(&Change::Credential(id.clone()))
    }

    fn audit(&self, entry: &AuditEntry) -> StoreResult<()> {
        let AuditEntry { at, actor, action, object, detail } = entry;
        self.execute(
            "INSERT INTO audit (at, actor, action, object, detail) VALUES (?1, ?2, ?3, ?4, ?5)",
            params![at.as_millis(), actor.as_text(), action, object, detail],
        )?;
        Ok(())
    }

    fn find_trouble(&self, id: &CredentialId) -> StoreResult<Option<Trouble>> {
        find_trouble(&self.transaction, id)
    }

    fn clear_trouble(&self, id: &CredentialId) -> StoreResult<usize> {
        self.execute(
            "DELETE FROM troubles WHERE app = ?1 AND kind = ?2",
            [id.app.as_str(), id.kind.as_str()],
        )
    }
}

fn find_trouble(connection: &Connection, id: &CredentialId) -> StoreResult<Option<Trouble>> {
    let sql = format!("{TROUBLE} WHERE app = ?1 AND kind = ?2");
    let found = query::first(connection, &sql, [id.app.as_str(), id.kind.as_str()], rows::trouble)?;
    Ok(found.map(|(_, trouble)| trouble))
}

fn newest_change(connection: &Connection) -> StoreResult<i64> {
    let sql = "SELECT coalesce(max(number), 0) FROM changes";
    Ok(connection.prepare_cached(sql)?.query_row([], |row| row.get(0))?)
}

impl Inner {
    /// Wakes those who wait, for all that the change log holds up to `newest`.
    fn announce(&self, newest: i64) {
        self.announced.store(newest, Ordering::Release);
        self.bump();
    }

    fn bump(&self) {
        self.wakes.send_modify(|count| *count += 1);
    }
}

/// Runs a job where it may block.
async fn blocking<T: Send + 'static>(
    job: impl FnOnce() -> StoreResult<T> + Send + 'static,
) -> StoreResult<T> {
    match tokio::task::spawn_blocking(job).await {
        Ok(answer) => answer,
        Err(err) => match err.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => Err(StoreError::Unavailable("the process is shutting down".to_owned())),
        },
    }
}

impl SqliteStore {
    /// Opens the store in the file at `path`, whose time is that of `clock`. Makes the file when
    /// there is none, readable by its owner only. One that a newer version has written is refused.
    pub async fn open(path: &Path, clock: Clock) -> StoreResult<Self> {
        Self::open_within(path, clock, BUSY).await
    }

    /// What tables there are in the file at `path`, which is there. Changes nothing in it.
    pub async fn look(path: &Path) -> StoreResult<Tables> {
        let path = path.to_owned();
        blocking(move || Ok(open::tables(&open::open_watching(&path, BUSY)?, &path)?.0)).await
    }

    /// Opens the store; no call waits longer than `busy` for another process that is writing.
    async fn open_within(path: &Path, clock: Clock, busy: Duration) -> StoreResult<Self> {
        let path = path.to_owned();
        blocking(move || {
            let main = open::open_main(&path, busy)?;
            let watcher = Watcher::new(open::open_watching(&path, busy)?)?;
            let announced = newest_change(&main)?;
            Ok(Self {
                connection: Arc::new(tokio::sync::Mutex::new(main)),
                inner: Arc::new(Inner {
                    clock,
                    watcher: Mutex::new(watcher),
                    announced: AtomicI64::new(announced),
                    wakes: watch::Sender::new(1),
                }),
            })
        })
        .await
    }

    /// Reads something in one transaction.
    async fn read<T: Send + 'static>(
        &self,
        job: impl FnOnce(&Connection) -> StoreResult<T> + Send + 'static,
    ) -> StoreResult<T> {
        let connection = Arc::clone(&self.connection).lock_owned().await;
        blocking(move || {
            let transaction = connection.unchecked_transaction()?;
            job(&transaction)
        })
        .await
    }

    /// Writes something in one transaction, at the store's time. Once begun it runs to its end,
    /// whether the caller still waits or not.
    async fn write<T: Send + 'static>(
        &self,
        job: impl FnOnce(&mut Write<'_>) -> StoreResult<T> + Send + 'static,
    ) -> StoreResult<T> {
        let mut connection = Arc::clone(&self.connection).lock_owned().await;
        let inner = Arc::clone(&self.inner);
        blocking(move || {
            let (answer, logged) = transact(&mut connection, &inner.clock, job)?;
            drop(connection);
            if let Some(newest) = logged {
                inner.announce(newest);
            }
            Ok(answer)
        })
        .await
    }
}

/// Does a job in one transaction. Answers also the newest entry that it appended to the change log.
fn transact<T>(
    connection: &mut Connection,
    clock: &Clock,
    job: impl FnOnce(&mut Write<'_>) -> StoreResult<T>,
) -> StoreResult<(T, Option<i64>)> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    // The time is read once the lock is ours: waiting for it may have taken seconds.
    let mut write = Write { transaction, now: clock.now(), logged: None };
    let answer = job(&mut write)?;
    let Write { transaction, logged, .. } = write;
    transaction.commit()?;
    Ok((answer, logged))
}

impl fmt::Debug for SqliteStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SqliteStore")
    }
}

#[async_trait]
impl Store for SqliteStore {
    async fn now(&self) -> StoreResult<Timestamp> {
        Ok(self.inner.clock.now())
    }

    async fn changes(&self, after: u64) -> StoreResult<Changes> {
        self.read(move |db| {
            let newest = newest_change(db)?;
            let oldest = "SELECT coalesce(min(number), 1) FROM changes";
            let oldest: i64 = db.prepare_cached(oldest)?.query_row([], |row| row.get(0))?;
            let after = number(after);
            let entries = if after > newest || after + 1 < oldest {
                None
            } else {
                let sql = format!("{CHANGE} WHERE number > ?1 ORDER BY number");
                Some(distinct(query::readable(db, &sql, [after], rows::change)?.into_iter()))
            };
            Ok(Changes { latest: newest.unsigned_abs(), entries })
        })
        .await
    }

    async fn list_apps(&self) -> StoreResult<Vec<AppRow>> {
        self.read(|db| query::readable(db, &format!("{APP} ORDER BY app"), [], rows::app)).await
    }

    async fn find_app(&self, app: &AppId) -> StoreResult<Option<AppRow>> {
        let app = app.clone();
        self.read(move |db| {
            query::first(db, &format!("{APP} WHERE app = ?1"), [app.as_str()], rows::app)
        })
        .await
    }

    async fn put_app(&self, row: &AppRow, audit: &AuditEntry) -> StoreResult<bool> {
        let (row, audit) = (row.clone(), audit.clone());
        self.write(move |write| {
            let app = row.app.as_str();
            let taken = write.exists(
                "SELECT 1 FROM apps \
                 WHERE app <> ?1 AND (alias = ?1 OR app = ?2 OR alias = ?2)",
                params![app, row.alias],
            )?;
            let Some(stored) = row.revision.checked_sub(1).filter(|_| !taken) else {
                return Ok(false);
            };
            let sql = if stored == 0 {
                "INSERT INTO apps (app, alias, kind, issuer, secret_key, secret, revision, \
                     created_at, updated_at) \
                 VALUES (:app, :alias, :kind, :issuer, :secret_key, :secret, :stored + 1, \
                     :created_at, :updated_at) \
                 ON CONFLICT (app) DO NOTHING"
            } else {
                "UPDATE apps SET alias = :alias, kind = :kind, issuer = :issuer, \
                     secret_key = :secret_key, secret = :secret, revision = :stored + 1, \
                     created_at = :created_at, updated_at = :updated_at \
                 WHERE app = :app AND revision = :stored"
            };
            let put = write.execute(
                sql,
                named_params! {
                    ":app": app,
                    ":alias": row.alias,
                    ":kind": row.kind.as_str(),
                    ":issuer": row.issuer.as_str(),
                    ":secret_key": row.secret.key,
                    ":secret": row.secret.bytes,
                    ":stored": number(stored),
                    ":created_at": row.created_at.as_millis(),
                    ":updated_at": row.updated_at.as_millis(),
                },
            )?;
            if put == 0 {
                return Ok(false);
            }
            write.execute("DELETE FROM troubles WHERE app = ?1", [app])?;
            write.audit(&audit)?;
            write.log(&Change::App(row.app))?;
            Ok(true)
        })
        .await
    }

    async fn remove_app(&self, app: &AppId, audit: &AuditEntry) -> StoreResult<bool> {
        let (app, audit) = (app.clone(), audit.clone());
        self.write(move |write| {
            let credentials = query::all(
                &write.transaction,
                "SELECT app, kind FROM credentials WHERE app = ?1 \
                 UNION SELECT app, kind FROM troubles WHERE app = ?1",
                [app.as_str()],
                rows::credential_id,
            )?;
            // What refers to the app goes with it.
            if write.execute("DELETE FROM apps WHERE app = ?1", [app.as_str()])? == 0 {
                return Ok(false);
            }
            write.audit(&audit)?;
            write.log(&Change::App(app))?;
            for id in &credentials {
                write.log_credential(id)?;
            }
            Ok(true)
        })
        .await
    }

    async fn list_keys(&self) -> StoreResult<Vec<KeyRow>> {
        let sql = format!("{KEY} ORDER BY created_at, number");
        self.read(move |db| query::readable(db, &sql, [], rows::key)).await
    }

    async fn add_key(&self, row: &KeyRow, audit: &AuditEntry) -> StoreResult<bool> {
        let (row, audit) = (row.clone(), audit.clone());
        self.write(move |write| {
            let added = write.execute(
                "INSERT INTO client_keys \
                     (id, name, hash, rights, created_at, expires_at, revoked_at) \
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7) ON CONFLICT DO NOTHING",
                params![
                    row.id,
                    row.name,
                    row.hash,
                    row.rights,
                    row.created_at.as_millis(),
                    row.expires_at.map(Timestamp::as_millis),
                    row.revoked_at.map(Timestamp::as_millis),
                ],
            )?;
            if added == 0 {
                return Ok(false);
            }
            write.audit(&audit)?;
            write.log(&Change::Keys)?;
            Ok(true)
        })
        .await
    }

    async fn revoke_key(&self, id: &str, audit: &AuditEntry) -> StoreResult<bool> {
        let (id, audit) = (id.to_owned(), audit.clone());
        self.write(move |write| {
            let revoked = write.execute(
                "UPDATE client_keys SET revoked_at = ?2 WHERE id = ?1 AND revoked_at IS NULL",
                params![id, write.now.as_millis()],
            )?;
            if revoked == 0 {
                return Ok(false);
            }
            write.audit(&audit)?;
            write.log(&Change::Keys)?;
            Ok(true)
        })
        .await
    }

    async fn list_credentials(&self) -> StoreResult<Vec<CredentialRow>> {
        self.read(|db| query::readable(db, CREDENTIAL, [], rows::credential)).await
    }

    async fn find_credential(&self, id: &CredentialId) -> StoreResult<Option<CredentialRow>> {
        let id = id.clone();
        self.read(move |db| {
            let sql = format!("{CREDENTIAL} WHERE app = ?1 AND kind = ?2");
            query::first(db, &sql, [id.app.as_str(), id.kind.as_str()], rows::credential)
        })
        .await
    }

    async fn put_credential(&self, row: &CredentialRow, over: u64) -> StoreResult<bool> {
        let row = row.clone();
        self.write(move |write| {
            let (app, kind) = (row.id.app.as_str(), row.id.kind.as_str());
            let stored = query::first(
                &write.transaction,
                "SELECT generation FROM credentials WHERE app = ?1 AND kind = ?2",
                [app, kind],
                rows::generation,
            )?;
            if stored.unwrap_or(0) != over
                || row.generation <= over
                || !write.has_app(&row.id.app)?
            {
                return Ok(false);
            }
            write.execute(
                "INSERT INTO credentials (app, kind, generation, value_key, value, hash, sent, \
                     answered, expires_at, refresh_at, dead, used_at) \
                 VALUES (:app, :kind, :generation, :value_key, :value, :hash, :sent, \
                     :answered, :expires_at, :refresh_at, :dead, :used_at) \
                 ON CONFLICT (app, kind) DO UPDATE SET generation = :generation, \
                     value_key = :value_key, value = :value, hash = :hash, sent = :sent, \
                     answered = :answered, expires_at = :expires_at, refresh_at = :refresh_at, \
                     dead = :dead, used_at = max(used_at, :used_at)",
                named_params! {
                    ":app": app,
                    ":kind": kind,
                    ":generation": number(row.generation),
                    ":value_key": row.value.key,
                    ":value": row.value.bytes,
                    ":hash": row.hash,
                    ":sent": row.sent.as_millis(),
                    ":answered": row.answered.as_millis(),
                    ":expires_at": row.expires_at.as_millis(),
                    ":refresh_at": row.refresh_at.as_millis(),
                    ":dead": row.dead,
                    ":used_at": row.used_at.as_millis(),
                },
            )?;
            write.execute(
                "DELETE FROM credential_history \
                 WHERE app = ?1 AND kind = ?2 AND expires_at <= ?3",
                params![app, kind, write.now.as_millis()],
            )?;
            write.execute(
                "INSERT INTO credential_history (app, kind, generation, hash, expires_at) \
                 VALUES (?1, ?2, ?3, ?4, ?5)",
                params![app, kind, number(row.generation), row.hash, row.expires_at.as_millis()],
            )?;
            write.clear_trouble(&row.id)?;
            write.log_credential(&row.id)?;
            Ok(true)
        })
        .await
    }

    async fn set_expiry(
        &self,
        id: &CredentialId,
        generation: u64,
        expires_at: Timestamp,
        refresh_at: Timestamp,
    ) -> StoreResult<bool> {
        let id = id.clone();
        self.write(move |write| {
            let (app, kind) = (id.app.as_str(), id.kind.as_str());
            let (generation, expires_at) = (number(generation), expires_at.as_millis());
            let set = write.execute(
                "UPDATE credentials SET expires_at = ?4, refresh_at = ?5, \
                     sent = min(sent, ?6) \
                 WHERE app = ?1 AND kind = ?2 AND generation = ?3",
                params![
                    app,
                    kind,
                    generation,
                    expires_at,
                    refresh_at.as_millis(),
                    write.now.as_millis()
                ],
            )?;
            if set == 0 {
                return Ok(false);
            }
            write.execute(
                "UPDATE credential_history SET expires_at = max(expires_at, ?4) \
                 WHERE app = ?1 AND kind = ?2 AND generation = ?3",
                params![app, kind, generation, expires_at],
            )?;
            write.clear_trouble(&id)?;
            write.log_credential(&id)?;
            Ok(true)
        })
        .await
    }

    async fn mark_dead(&self, id: &CredentialId, generation: u64) -> StoreResult<bool> {
        let id = id.clone();
        self.write(move |write| {
            let marked = write.execute(
                "UPDATE credentials SET dead = 1 \
                 WHERE app = ?1 AND kind = ?2 AND generation = ?3 AND dead = 0",
                params![id.app.as_str(), id.kind.as_str(), number(generation)],
            )?;
            if marked == 0 {
                return Ok(false);
            }
            write.log_credential(&id)?;
            Ok(true)
        })
        .await
    }

    async fn set_used(&self, id: &CredentialId, at: Timestamp) -> StoreResult<()> {
        let id = id.clone();
        self.write(move |write| {
            write.execute(
                "UPDATE credentials SET used_at = ?3 \
                 WHERE app = ?1 AND kind = ?2 AND used_at < ?3",
                params![id.app.as_str(), id.kind.as_str(), at.as_millis()],
            )?;
            Ok(())
        })
        .await
    }

    async fn drop_unused(&self, id: &CredentialId, unused_since: Timestamp) -> StoreResult<bool> {
        let id = id.clone();
        self.write(move |write| {
            let (app, kind) = (id.app.as_str(), id.kind.as_str());
            let dropped = write.execute(
                "DELETE FROM credentials WHERE app = ?1 AND kind = ?2 AND used_at <= ?3",
                params![app, kind, unused_since.as_millis()],
            )?;
            if dropped == 0 {
                return Ok(false);
            }
            write.execute(
                "DELETE FROM credential_history WHERE app = ?1 AND kind = ?2",
                [app, kind],
            )?;
            write.clear_trouble(&id)?;
            write.log_credential(&id)?;
            Ok(true)
        })
        .await
    }

    async fn find_generation(
        &self,
        id: &CredentialId,
        hash: &[u8; 32],
    ) -> StoreResult<Option<u64>> {
        let (id, hash, clock) = (id.clone(), *hash, self.inner.clock.clone());
        self.read(move |db| {
            query::first(
                db,
                "SELECT generation FROM credential_history \
                 WHERE app = ?1 AND kind = ?2 AND hash = ?3 AND expires_at > ?4 \
                 ORDER BY generation DESC LIMIT 1",
                params![id.app.as_str(), id.kind.as_str(), hash, clock.now().as_millis()],
                rows::generation,
            )
        })
        .await
    }

    async fn list_troubles(&self) -> StoreResult<Vec<(CredentialId, Trouble)>> {
        self.read(|db| query::readable(db, TROUBLE, [], rows::trouble)).await
    }

    async fn find_trouble(&self, id: &CredentialId) -> StoreResult<Option<Trouble>> {
        let id = id.clone();
        self.read(move |db| find_trouble(db, &id)).await
    }

    async fn set_trouble(
        &self,
        id: &CredentialId,
        revision: u64,
        trouble: Option<&Trouble>,
    ) -> StoreResult<bool> {
        let (id, trouble) = (id.clone(), trouble.cloned());
        self.write(move |write| {
            let unchanged = write.exists(
                "SELECT 1 FROM apps WHERE app = ?1 AND revision = ?2",
                params![id.app.as_str(), number(revision)],
            )?;
            if !unchanged || write.find_trouble(&id)? == trouble {
                return Ok(unchanged);
            }
            write.clear_trouble(&id)?;
            if let Some(trouble) = trouble {
                write.execute(
                    "INSERT INTO troubles \
                         (app, kind, errcode, reason, errmsg, rid, action, since, last, \
                          failures, retry_at) \
                     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)",
                    params![
                        id.app.as_str(),
                        id.kind.as_str(),
                        trouble.errcode,
                        trouble.reason,
                        trouble.errmsg,
                        trouble.rid,
                        trouble.action,
                        trouble.since.as_millis(),
                        trouble.last.as_millis(),
                        trouble.failures,
                        trouble.retry_at.map(Timestamp::as_millis),
                    ],
                )?;
            }
            write.log_credential(&id)?;
            Ok(true)
        })
        .await
    }

    async fn spend(&self, app: &AppId, api: &str, budget: &Budget) -> StoreResult<Spending> {
        /// So many old rows go for each new one, so that no call has all of them to remove.
        const PRUNED: i64 = 16;
        let (app, api, budget) = (app.clone(), api.to_owned(), *budget);
        self.write(move |write| {
            let app = app.as_str();
            let sql = format!(
                "{LEDGER} WHERE app = ?1 AND api = ?2 AND day <= ?3 ORDER BY day DESC LIMIT 1"
            );
            let until = params![app, api, Budget::newest_day(write.now)];
            let newest = query::first(&write.transaction, &sql, until, rows::ledger)?;
            let (row, spending) = budget.spend(&api, newest.as_ref(), write.now);
            let Some(row) = row else { return Ok(spending) };
            write.execute(
                "INSERT INTO ledger (app, api, day, used, rested_at) \
                 VALUES (?1, ?2, ?3, ?4, ?5) \
                 ON CONFLICT (app, api, day) DO UPDATE SET used = ?4, rested_at = ?5",
                params![app, api, row.day, row.used, row.rested_at.as_millis()],
            )?;
            if newest.is_none_or(|newest| newest.day != row.day) {
                write.execute(
                    "DELETE FROM ledger WHERE (app, api, day) IN \
                         (SELECT app, api, day FROM ledger WHERE day < ?1 LIMIT ?2)",
                    [beijing_day(write.now) - LEDGER_DAYS, PRUNED],
                )?;
            }
            Ok(spending)
        })
        .await
    }

    async fn ledger(&self, app: &AppId) -> StoreResult<Vec<LedgerRow>> {
        let (app, clock) = (app.clone(), self.inner.clock.clone());
        self.read(move |db| {
            let sql = format!("{LEDGER} WHERE app = ?1 AND day >= ?2 ORDER BY day DESC, api");
            let oldest = beijing_day(clock.now()) - LEDGER_DAYS;
            query::all(db, &sql, params![app.as_str(), oldest], rows::ledger)
        })
        .await
    }

    async fn own_secret(&self, name: &str, fresh: &Sealed) -> StoreResult<Sealed> {
        let (name, fresh) = (name.to_owned(), fresh.clone());
        let sql = format!("{OWN} WHERE name = ?1");
        self.write(move |write| {
            if let Some(stored) = query::first(&write.transaction, &sql, [&name], rows::own)? {
                return Ok(stored);
            }
            write.execute(
                "INSERT INTO own_secrets (name, value_key, value) VALUES (?1, ?2, ?3)",
                params![name, fresh.key, fresh.bytes],
            )?;
            Ok(fresh)
        })
        .await
    }

    async fn pass_keys(&self) -> StoreResult<Vec<PassKeyRow>> {
        self.read(|db| {
            let sql = format!("{PASS_KEY} ORDER BY number");
            query::readable(db, &sql, [], rows::pass_key)
        })
        .await
    }

    async fn add_pass_key(
        &self,
        row: &PassKeyRow,
        last: Option<&str>,
        forget_before: Timestamp,
    ) -> StoreResult<bool> {
        let (row, last) = (row.clone(), last.map(str::to_owned));
        self.write(move |write| {
            let newest: Option<String> = write.transaction.query_row(
                "SELECT (SELECT id FROM pass_keys ORDER BY number DESC LIMIT 1)",
                [],
                |row| row.get(0),
            )?;
            if newest != last {
                return Ok(false);
            }
            let PassKeyRow { id, key, published_at } = &row;
            let added = write.execute(
                "INSERT OR IGNORE INTO pass_keys (id, value_key, value, published_at) \
                 VALUES (?1, ?2, ?3, ?4)",
                params![id, key.key, key.bytes, published_at.as_millis()],
            )?;
            if added == 0 {
                return Ok(false);
            }
            write.execute(
                "DELETE FROM pass_keys WHERE published_at < ?1 AND id <> ?2",
                params![forget_before.as_millis(), id],
            )?;
            write.log(&Change::PassKeys)?;
            Ok(true)
        })
        .await
    }

    async fn sealing_keys(&self) -> StoreResult<Vec<String>> {
        self.read(|db| query::all(db, SEALING_KEYS, [], rows::sealing_key)).await
    }

    async fn sealed_otherwise(&self, key: &str, limit: usize) -> StoreResult<Vec<(Place, Sealed)>> {
        let key = key.to_owned();
        let limit = number(limit as u64);
        self.read(move |db| {
            query::readable(db, SEALED_OTHERWISE, params![key, limit], sealed::sealed)
        })
        .await
    }

    async fn reseal(&self, place: &Place, old: &Sealed, new: &Sealed) -> StoreResult<bool> {
        let (place, old, new) = (place.clone(), old.clone(), new.clone());
        self.write(move |write| write.reseal(&place, &old, &new)).await
    }

    async fn add_audit(&self, entry: &AuditEntry) -> StoreResult<()> {
        let entry = entry.clone();
        self.write(move |write| write.audit(&entry)).await
    }

    async fn list_audit(
        &self,
        before: Option<u64>,
        limit: usize,
    ) -> StoreResult<Vec<(u64, AuditEntry)>> {
        let before = before.map_or(i64::MAX, number);
        let limit = number(limit as u64);
        self.read(move |db| {
            let sql = format!("{AUDIT} WHERE number < ?1 ORDER BY number DESC LIMIT ?2");
            query::readable(db, &sql, [before, limit], rows::audit)
        })
        .await
    }
}
