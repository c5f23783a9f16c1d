//! A store in PostgreSQL, for any number of replicas.
//!
//! Reads are single statements, which see one state of the database each. Writes are transactions
//! at the ordinary level, "read committed": each takes the row or the advisory lock that it decides
//! by before it decides. They take locks in one order, apps before what belongs to them, and the
//! change log last, so that none waits for another in a circle. Instants are by the database's clock.

mod logins;
mod open;
mod query;
mod sealed;
mod shared;
#[cfg(test)]
mod tests;
mod url;

use std::{fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use clock::Timestamp;
use deadpool_postgres::{Object, Pool, PoolError, TimeoutType, Transaction};
use tokio_postgres::types::ToSql;
use wechat::AppId;

pub use self::url::{PostgresUrl, PostgresUrlError};
use self::{
    query::{Sql, as_text},
    shared::Wakes,
};
use super::{
    AppRow, Change, Changes, CredentialRow, KeyRow, PassKeyRow, Place, Store, StoreError,
    StoreResult,
    away::{Away, in_time},
    memory::{CHANGES_KEPT, CHANGES_TRIMMED_EVERY, LEDGER_DAYS, distinct},
    rows::{
        self, APP, AUDIT, CREDENTIAL, KEY, LEDGER, OWN, PASS_KEY, Row, SEALING_KEYS, TROUBLE,
        number,
    },
};
use crate::{
    audit::AuditEntry,
    credential::{CredentialId, Trouble},
    ledger::{Budget, LedgerRow, Spending, beijing_day},
    seal::Sealed,
};

/// No call takes longer, reaching the database included, but for time that this process slept over.
/// The database ends a statement sooner by itself.
const PATIENCE: Duration = Duration::from_secs(8);

/// What advisory locks are taken for, beside the change log.
mod lock {
    /// The names of apps, which one decides about at a time.
    pub(super) const NAMES: i64 = 8_243_109_876_543_210_002;
    /// The budgets, each with the hash of app and API.
    pub(super) const BUDGETS: i32 = 824_310_988;
}

/// A store in PostgreSQL. Cloning gives another handle to the same store.
#[derive(Clone)]
pub struct PostgresStore {
    pool: Pool,
    wakes: Arc<Wakes>,
    away: Away,
}

/// A write under way. What is not committed is rolled back when this goes.
struct Write<'c> {
    transaction: Transaction<'c>,
}

impl Write<'_> {
    /// Appends to the change log, and shortens it now and then. Comes last in a write: from here
    /// on it keeps others waiting.
    async fn log(&self, change: &Change) -> StoreResult<()> {
        let (app, kind) = match change {
            Change::App(app) => (Some(app.as_str()), None),
            Change::Keys => (None, None),
            Change::PassKeys => (None, Some("pass-keys")),
            Change::Credential(id) => (Some(id.app.as_str()), Some(id.kind.as_str())),
        };
        let newest: i64 = self.one("SELECT xinfu_log($1, $2)", &[&app, &kind]).await?.get(0);
        if newest % number(CHANGES_TRIMMED_EVERY) == 0 {
            let end = newest - number(CHANGES_KEPT);
            self.execute("DELETE FROM changes WHERE number <= $1", &[&end]).await?;
        }
        Ok(())
    }

    /// Appends to the change log that a credential changed.
    async fn log_credential(&self, id: &CredentialId) -> StoreResult<()> {
        self.log(&Change::Credential(id.clone())).await
    }

    async fn audit(&self, entry: &AuditEntry) -> StoreResult<()> {
        let AuditEntry { at, actor, action, object, detail } = entry;
        let (actor, object) = (actor.as_text(), as_text(object));
        self.execute(
            "INSERT INTO audit (at, actor, action, object, detail) VALUES ($1, $2, $3, $4, $5)",
            &[&at.as_millis(), &as_text(&actor), action, &object, &as_text(detail)],
        )
        .await?;
        Ok(())
    }

    async fn clear_trouble(&self, id: &CredentialId) -> StoreResult<u64> {
        self.execute(
            "DELETE FROM troubles WHERE app = $1 AND kind = $2",
            &[&id.app.as_str(), &id.kind.as_str()],
        )
        .await
    }

    /// Whether the app is registered. It stays so until this write has ended.
    async fn keeps_app(&self, app: &AppId) -> StoreResult<bool> {
        let sql = "SELECT app FROM apps WHERE app = $1 FOR KEY SHARE";
        Ok(self.optional(sql, &[&app.as_str()]).await?.is_some())
    }
}

impl PostgresStore {
    /// Does something with a connection. A database that does not answer in time, or to which there
    /// is no way, keeps nobody else waiting: its idle connections are dropped, and until it answers
    /// one call at a time tries it, while all others fail at once.
    async fn on<T>(&self, job: impl AsyncFnOnce(&mut Object) -> StoreResult<T>) -> StoreResult<T> {
        let late = || StoreError::Unavailable("PostgreSQL did not answer in time".to_owned());
        let leave = self.away.leave().ok_or_else(late)?;
        let mut connection = None;
        let call = async {
            let pooled = tokio::select! {
                pooled = self.pool.get() => pooled?,
                () = leave.moot() => return Ok(Err(late())),
            };
            Ok(job(connection.insert(pooled)).await)
        };
        let failed = match in_time(PATIENCE, call).await {
            Some(Ok(answer)) => {
                if !matches!(answer, Err(StoreError::Unavailable(_))) {
                    leave.answered();
                }
                return answer;
            }
            // It answers, if only that it has too much to do.
            Some(Err(err @ PoolError::Timeout(TimeoutType::Wait))) => {
                return Err(open::unavailable(err));
            }
            Some(Err(PoolError::Backend(err))) if err.as_db_error().is_some() => {
                return Err(err.into());
            }
            Some(Err(err)) => open::unavailable(err),
            None => {
                // Whatever comes on it still is no answer to anybody else.
                drop(connection.map(Object::take));
                late()
            }
        };
        self.pool.retain(|_, _| false);
        leave.unanswered();
        Err(failed)
    }

    /// Does something in one transaction, which is rolled back when the caller goes away.
    async fn write<T>(
        &self,
        job: impl AsyncFnOnce(&Write<'_>) -> StoreResult<T>,
    ) -> StoreResult<T> {
        self.on(async |connection| {
            let write = Write { transaction: connection.transaction().await? };
            let answer = job(&write).await?;
            write.transaction.commit().await?;
            Ok(answer)
        })
        .await
    }

    /// All rows that a query answers and that can be read.
    async fn readable<T>(
        &self,
        sql: &str,
        params: &[&(dyn ToSql + Sync)],
        read: impl Fn(&dyn Row) -> StoreResult<T>,
    ) -> StoreResult<Vec<T>> {
        let rows = self.on(async |db| db.all(sql, params).await).await?;
        rows::readable(rows.iter().map(|row| read(row)))
    }

    /// The row that a query answers, if it answers one.
    async fn first<T>(
        &self,
        sql: &str,
        params: &[&(dyn ToSql + Sync)],
        read: impl Fn(&dyn Row) -> StoreResult<T>,
    ) -> StoreResult<Option<T>> {
        let row = self.on(async |db| db.optional(sql, params).await).await?;
        row.as_ref().map(|row| read(row)).transpose()
    }

    /// The time by the database's clock.
    async fn time(&self) -> StoreResult<Timestamp> {
        let row = self.on(async |db| db.one("SELECT xinfu_now()", &[]).await).await?;
        Ok(Timestamp::from_millis(row.get(0)))
    }
}

impl fmt::Debug for PostgresStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PostgresStore")
    }
}

#[async_trait]
impl Store for PostgresStore {
    async fn now(&self) -> StoreResult<Timestamp> {
        self.time().await
    }

    async fn changes(&self, after: u64) -> StoreResult<Changes> {
        // One statement, so that ends and entries are of one moment.
        let sql = "SELECT c.number, c.app, c.kind, ends.newest, ends.oldest \
             FROM (SELECT coalesce(max(number), 0) AS newest, coalesce(min(number), 1) AS oldest \
                   FROM changes) ends \
             LEFT JOIN changes c ON c.number > $1 ORDER BY c.number";
        let after = number(after);
        let rows = self.on(async |db| db.all(sql, &[&after]).await).await?;
        let Some(first) = rows.first() else {
            return Err(StoreError::Corrupt("the change log has no ends".to_owned()));
        };
        let (newest, oldest): (i64, i64) = (first.get(3), first.get(4));
        let entries = if after > newest || after + 1 < oldest {
            None
        } else {
            let entries = rows.iter().filter(|row| row.get::<_, Option<i64>>(0).is_some());
            Some(distinct(rows::readable(entries.map(|row| rows::change(row)))?.into_iter()))
        };
        Ok(Changes { latest: newest.unsigned_abs(), entries })
    }

    async fn list_apps(&self) -> StoreResult<Vec<AppRow>> {
        self.readable(&format!("{APP} ORDER BY app"), &[], rows::app).await
    }

    async fn find_app(&self, app: &AppId) -> StoreResult<Option<AppRow>> {
        self.first(&format!("{APP} WHERE app = $1"), &[&app.as_str()], rows::app).await
    }

    async fn put_app(&self, row: &AppRow, audit: &AuditEntry) -> StoreResult<bool> {
        self.write(async |write| {
            write.execute("SELECT pg_advisory_xact_lock($1)", &[&lock::NAMES]).await?;
            let app = row.app.as_str();
            let taken = "SELECT 1 FROM apps \
                 WHERE app <> $1 AND (alias = $1 OR app = $2 OR alias = $2)";
            let taken = !write.all(taken, &[&app, &row.alias]).await?.is_empty();
            let Some(stored) = row.revision.checked_sub(1).filter(|_| !taken) else {
                return Ok(false);
            };
            let sql = if stored == 0 {
                "INSERT INTO apps (app, alias, kind, issuer, secret_key, secret, revision, \
                     created_at, updated_at) \
                 VALUES ($1, $2, $3, $4, $5, $6, $9::BIGINT + 1, $7, $8) \
                 ON CONFLICT (app) DO NOTHING"
            } else {
                "UPDATE apps SET alias = $2, kind = $3, issuer = $4, secret_key = $5, secret = $6, \
                     revision = $9::BIGINT + 1, created_at = $7, updated_at = $8 \
                 WHERE app = $1 AND revision = $9"
            };
            let put = write
                .execute(
                    sql,
                    &[
                        &app,
                        &row.alias,
                        &row.kind.as_str(),
                        &row.issuer.as_str(),
                        &row.secret.key,
                        &row.secret.bytes,
                        &row.created_at.as_millis(),
                        &row.updated_at.as_millis(),
                        &number(stored),
                    ],
                )
                .await?;
            if put == 0 {
                return Ok(false);
            }
            write.execute("DELETE FROM troubles WHERE app = $1", &[&app]).await?;
            write.audit(audit).await?;
            write.log(&Change::App(row.app.clone())).await?;
            Ok(true)
        })
        .await
    }

    async fn remove_app(&self, app: &AppId, audit: &AuditEntry) -> StoreResult<bool> {
        self.write(async |write| {
            let sql = "SELECT app FROM apps WHERE app = $1 FOR UPDATE";
            if write.optional(sql, &[&app.as_str()]).await?.is_none() {
                return Ok(false);
            }
            let credentials = write
                .all(
                    "SELECT app, kind FROM credentials WHERE app = $1 \
                     UNION SELECT app, kind FROM troubles WHERE app = $1",
                    &[&app.as_str()],
                )
                .await?;
            let credentials =
                rows::readable(credentials.iter().map(|row| rows::credential_id(row)))?;
            // What refers to the app goes with it.
            write.execute("DELETE FROM apps WHERE app = $1", &[&app.as_str()]).await?;
            write.audit(audit).await?;
            write.log(&Change::App(app.clone())).await?;
            for id in &credentials {
                write.log_credential(id).await?;
            }
            Ok(true)
        })
        .await
    }

    async fn list_keys(&self) -> StoreResult<Vec<KeyRow>> {
        self.readable(&format!("{KEY} ORDER BY created_at, number"), &[], rows::key).await
    }

    async fn add_key(&self, row: &KeyRow, audit: &AuditEntry) -> StoreResult<bool> {
        self.write(async |write| {
            let added = write
                .execute(
                    "INSERT INTO client_keys \
                         (id, name, hash, rights, created_at, expires_at, revoked_at) \
                     VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT DO NOTHING",
                    &[
                        &row.id,
                        &as_text(&row.name),
                        &row.hash.as_slice(),
                        &row.rights,
                        &row.created_at.as_millis(),
                        &row.expires_at.map(Timestamp::as_millis),
                        &row.revoked_at.map(Timestamp::as_millis),
                    ],
                )
                .await?;
            if added == 0 {
                return Ok(false);
            }
            write.audit(audit).await?;
            write.log(&Change::Keys).await?;
            Ok(true)
        })
        .await
    }

    async fn revoke_key(&self, id: &str, audit: &AuditEntry) -> StoreResult<bool> {
        self.write(async |write| {
            let sql = "UPDATE client_keys SET revoked_at = xinfu_now() \
                 WHERE id = $1 AND revoked_at IS NULL";
            if write.execute(sql, &[&id]).await? == 0 {
                return Ok(false);
            }
            write.audit(audit).await?;
            write.log(&Change::Keys).await?;
            Ok(true)
        })
        .await
    }

    async fn list_credentials(&self) -> StoreResult<Vec<CredentialRow>> {
        self.readable(CREDENTIAL, &[], rows::credential).await
    }

    async fn find_credential(&self, id: &CredentialId) -> StoreResult<Option<CredentialRow>> {
        let sql = format!("{CREDENTIAL} WHERE app = $1 AND kind = $2");
        self.first(&sql, &[&id.app.as_str(), &id.kind.as_str()], rows::credential).await
    }

    async fn put_credential(&self, row: &CredentialRow, over: u64) -> StoreResult<bool> {
        if row.generation <= over {
            return Ok(false);
        }
        self.write(async |write| {
            let (app, kind) = (row.id.app.as_str(), row.id.kind.as_str());
            if !write.keeps_app(&row.id.app).await? {
                return Ok(false);
            }
            let values: [&(dyn ToSql + Sync); 12] = [
                &app,
                &kind,
                &number(row.generation),
                &row.value.key,
                &row.value.bytes,
                &row.hash.as_slice(),
                &row.sent.as_millis(),
                &row.answered.as_millis(),
                &row.expires_at.as_millis(),
                &row.refresh_at.as_millis(),
                &row.dead,
                &row.used_at.as_millis(),
            ];
            // The comparison is part of the write: nobody comes in between.
            let put = if over == 0 {
                let sql = "INSERT INTO credentials (app, kind, generation, value_key, value, hash, \
                         sent, answered, expires_at, refresh_at, dead, used_at) \
                     VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12) \
                     ON CONFLICT (app, kind) DO NOTHING";
                write.execute(sql, &values).await?
            } else {
                let sql = "UPDATE credentials SET generation = $3, value_key = $4, value = $5, \
                         hash = $6, sent = $7, answered = $8, expires_at = $9, refresh_at = $10, \
                         dead = $11, used_at = greatest(used_at, $12) \
                     WHERE app = $1 AND kind = $2 AND generation = $13";
                let over = number(over);
                let mut values = values.to_vec();
                values.push(&over);
                write.execute(sql, &values).await?
            };
            if put == 0 {
                return Ok(false);
            }
            write
                .execute(
                    "DELETE FROM credential_history \
                     WHERE app = $1 AND kind = $2 AND expires_at <= (SELECT xinfu_now())",
                    &[&app, &kind],
                )
                .await?;
            write
                .execute(
                    "INSERT INTO credential_history (app, kind, generation, hash, expires_at) \
                     VALUES ($1, $2, $3, $4, $5)",
                    &[
                        &app,
                        &kind,
                        &number(row.generation),
                        &row.hash.as_slice(),
                        &row.expires_at.as_millis(),
                    ],
                )
                .await?;
            write.clear_trouble(&row.id).await?;
            write.log_credential(&row.id).await?;
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
        self.write(async |write| {
            let (app, kind) = (id.app.as_str(), id.kind.as_str());
            let (generation, expires_at) = (number(generation), expires_at.as_millis());
            let set = write
                .execute(
                    "UPDATE credentials SET expires_at = $4, refresh_at = $5, \
                         sent = least(sent, xinfu_now()) \
                     WHERE app = $1 AND kind = $2 AND generation = $3",
                    &[&app, &kind, &generation, &expires_at, &refresh_at.as_millis()],
                )
                .await?;
            if set == 0 {
                return Ok(false);
            }
            write
                .execute(
                    "UPDATE credential_history SET expires_at = greatest(expires_at, $4) \
                     WHERE app = $1 AND kind = $2 AND generation = $3",
                    &[&app, &kind, &generation, &expires_at],
                )
                .await?;
            write.clear_trouble(id).await?;
            write.log_credential(id).await?;
            Ok(true)
        })
        .await
    }

    async fn mark_dead(&self, id: &CredentialId, generation: u64) -> StoreResult<bool> {
        self.write(async |write| {
            let sql = "UPDATE credentials SET dead = TRUE \
                 WHERE app = $1 AND kind = $2 AND generation = $3 AND NOT dead";
            let (app, kind) = (id.app.as_str(), id.kind.as_str());
            if write.execute(sql, &[&app, &kind, &number(generation)]).await? == 0 {
                return Ok(false);
            }
            write.log_credential(id).await?;
            Ok(true)
        })
        .await
    }

    async fn set_used(&self, id: &CredentialId, at: Timestamp) -> StoreResult<()> {
        let sql = "UPDATE credentials SET used_at = $3 \
             WHERE app = $1 AND kind = $2 AND used_at < $3";
        let (app, kind) = (id.app.as_str(), id.kind.as_str());
        self.on(async |db| db.execute(sql, &[&app, &kind, &at.as_millis()]).await).await?;
        Ok(())
    }

    async fn drop_unused(&self, id: &CredentialId, unused_since: Timestamp) -> StoreResult<bool> {
        self.write(async |write| {
            let (app, kind) = (id.app.as_str(), id.kind.as_str());
            let sql = "DELETE FROM credentials WHERE app = $1 AND kind = $2 AND used_at <= $3";
            if write.execute(sql, &[&app, &kind, &unused_since.as_millis()]).await? == 0 {
                return Ok(false);
            }
            let sql = "DELETE FROM credential_history WHERE app = $1 AND kind = $2";
            write.execute(sql, &[&app, &kind]).await?;
            write.clear_trouble(id).await?;
            write.log_credential(id).await?;
            Ok(true)
        })
        .await
    }

    async fn find_generation(
        &self,
        id: &CredentialId,
        hash: &[u8; 32],
    ) -> StoreResult<Option<u64>> {
        let sql = "SELECT generation FROM credential_history \
             WHERE app = $1 AND kind = $2 AND hash = $3 AND expires_at > (SELECT xinfu_now()) \
             ORDER BY generation DESC LIMIT 1";
        let params: [&(dyn ToSql + Sync); 3] =
            [&id.app.as_str(), &id.kind.as_str(), &hash.as_slice()];
        self.first(sql, &params, rows::generation).await
    }

    async fn list_troubles(&self) -> StoreResult<Vec<(CredentialId, Trouble)>> {
        self.readable(TROUBLE, &[], rows::trouble).await
    }

    async fn find_trouble(&self, id: &CredentialId) -> StoreResult<Option<Trouble>> {
        let sql = format!("{TROUBLE} WHERE app = $1 AND kind = $2");
        let found = self.first(&sql, &[&id.app.as_str(), &id.kind.as_str()], rows::trouble).await?;
        Ok(found.map(|(_, trouble)| trouble))
    }

    async fn set_trouble(
        &self,
        id: &CredentialId,
        revision: u64,
        trouble: Option<&Trouble>,
    ) -> StoreResult<bool> {
        self.write(async |write| {
            let (app, kind) = (id.app.as_str(), id.kind.as_str());
            // Nobody changes the app until this has ended.
            let sql = "SELECT app FROM apps WHERE app = $1 AND revision = $2 FOR SHARE";
            if write.optional(sql, &[&app, &number(revision)]).await?.is_none() {
                return Ok(false);
            }
            let Some(trouble) = trouble else {
                if write.clear_trouble(id).await? > 0 {
                    write.log_credential(id).await?;
                }
                return Ok(true);
            };
            // The same trouble again changes nothing, and is not logged.
            let put = write
                .execute(
                    "INSERT INTO troubles AS t (app, kind, errcode, reason, errmsg, rid, action, \
                         since, last, failures, retry_at) \
                     VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11) \
                     ON CONFLICT (app, kind) DO UPDATE SET errcode = $3, reason = $4, errmsg = $5, \
                         rid = $6, action = $7, since = $8, last = $9, failures = $10, \
                         retry_at = $11 \
                     WHERE (t.errcode, t.reason, t.errmsg, t.rid, t.action, t.since, t.last, \
                             t.failures, t.retry_at) \
                         IS DISTINCT FROM ($3, $4, $5, $6, $7, $8, $9, $10, $11)",
                    &[
                        &app,
                        &kind,
                        &trouble.errcode,
                        &as_text(&trouble.reason),
                        &trouble.errmsg.as_deref().map(as_text),
                        &trouble.rid.as_deref().map(as_text),
                        &trouble.action.as_deref().map(as_text),
                        &trouble.since.as_millis(),
                        &trouble.last.as_millis(),
                        &i64::from(trouble.failures),
                        &trouble.retry_at.map(Timestamp::as_millis),
                    ],
                )
                .await?;
            if put > 0 {
                write.log_credential(id).await?;
            }
            Ok(true)
        })
        .await
    }

    async fn spend(&self, app: &AppId, api: &str, budget: &Budget) -> StoreResult<Spending> {
        /// So many old rows go for each new one, so that no call has all of them to remove.
        const PRUNED: i64 = 16;
        self.write(async |write| {
            let app = app.as_str();
            // One at a time for each app and API, also when there is no row yet.
            let sql = "SELECT pg_advisory_xact_lock($1, hashtext($2 || '/' || $3))";
            write.execute(sql, &[&lock::BUDGETS, &app, &api]).await?;
            let now = Timestamp::from_millis(write.one("SELECT xinfu_now()", &[]).await?.get(0));
            let sql = format!(
                "{LEDGER} WHERE app = $1 AND api = $2 AND day <= $3 ORDER BY day DESC LIMIT 1"
            );
            let newest = write.optional(&sql, &[&app, &api, &Budget::newest_day(now)]).await?;
            let newest = newest.as_ref().map(|row| rows::ledger(row)).transpose()?;
            let (row, spending) = budget.spend(api, newest.as_ref(), now);
            let Some(row) = row else { return Ok(spending) };
            write
                .execute(
                    "INSERT INTO ledger (app, api, day, used, rested_at) \
                     VALUES ($1, $2, $3, $4, $5) \
                     ON CONFLICT (app, api, day) DO UPDATE SET used = $4, rested_at = $5",
                    &[&app, &api, &row.day, &i64::from(row.used), &row.rested_at.as_millis()],
                )
                .await?;
            if newest.is_none_or(|newest| newest.day != row.day) {
                write
                    .execute(
                        "WITH past AS MATERIALIZED \
                             (SELECT app, api, day FROM ledger WHERE day < $1 LIMIT $2 \
                              FOR UPDATE SKIP LOCKED) \
                         DELETE FROM ledger WHERE (app, api, day) IN (SELECT * FROM past)",
                        &[&(beijing_day(now) - LEDGER_DAYS), &PRUNED],
                    )
                    .await?;
            }
            Ok(spending)
        })
        .await
    }

    async fn ledger(&self, app: &AppId) -> StoreResult<Vec<LedgerRow>> {
        let oldest = beijing_day(self.time().await?) - LEDGER_DAYS;
        let sql = format!("{LEDGER} WHERE app = $1 AND day >= $2 ORDER BY day DESC, api");
        self.readable(&sql, &[&app.as_str(), &oldest], rows::ledger).await
    }

    async fn own_secret(&self, name: &str, fresh: &Sealed) -> StoreResult<Sealed> {
        self.write(async |write| {
            write
                .execute(
                    "INSERT INTO own_secrets (name, value_key, value) VALUES ($1, $2, $3) \
                     ON CONFLICT (name) DO NOTHING",
                    &[&name, &fresh.key, &fresh.bytes],
                )
                .await?;
            rows::own(&write.one(&format!("{OWN} WHERE name = $1"), &[&name]).await?)
        })
        .await
    }

    async fn pass_keys(&self) -> StoreResult<Vec<PassKeyRow>> {
        self.readable(&format!("{PASS_KEY} ORDER BY number"), &[], rows::pass_key).await
    }

    async fn add_pass_key(
        &self,
        row: &PassKeyRow,
        last: Option<&str>,
        forget_before: Timestamp,
    ) -> StoreResult<bool> {
        self.write(async |write| {
            // Others go on reading.
            write.execute("LOCK TABLE pass_keys IN EXCLUSIVE MODE", &[]).await?;
            let newest = "SELECT id FROM pass_keys ORDER BY number DESC LIMIT 1";
            let newest = write.optional(newest, &[]).await?;
            if newest.as_ref().map(|row| row.get::<_, &str>(0)) != last {
                return Ok(false);
            }
            let PassKeyRow { id, key, published_at } = row;
            let added = write
                .execute(
                    "INSERT INTO pass_keys (id, value_key, value, published_at) \
                     VALUES ($1, $2, $3, $4) ON CONFLICT (id) DO NOTHING",
                    &[id, &key.key, &key.bytes, &published_at.as_millis()],
                )
                .await?;
            if added == 0 {
                return Ok(false);
            }
            let sql = "DELETE FROM pass_keys WHERE published_at < $1 AND id <> $2";
            write.execute(sql, &[&forget_before.as_millis(), id]).await?;
            write.log(&Change::PassKeys).await?;
            Ok(true)
        })
        .await
    }

    async fn sealing_keys(&self) -> StoreResult<Vec<String>> {
        self.readable(SEALING_KEYS, &[], rows::sealing_key).await
    }

    async fn sealed_otherwise(&self, key: &str, limit: usize) -> StoreResult<Vec<(Place, Sealed)>> {
        let limit = number(limit as u64);
        self.readable(sealed::SEALED_OTHERWISE, &[&key, &limit], sealed::sealed).await
    }

    async fn reseal(&self, place: &Place, old: &Sealed, new: &Sealed) -> StoreResult<bool> {
        self.on(async |db| sealed::reseal(db, place, old, new).await).await
    }

    async fn add_audit(&self, entry: &AuditEntry) -> StoreResult<()> {
        self.write(async |write| write.audit(entry).await).await
    }

    async fn list_audit(
        &self,
        before: Option<u64>,
        limit: usize,
    ) -> StoreResult<Vec<(u64, AuditEntry)>> {
        let before = before.map_or(i64::MAX, number);
        let limit = number(limit as u64);
        let sql = format!("{AUDIT} WHERE number < $1 ORDER BY number DESC LIMIT $2");
        self.readable(&sql, &[&before, &limit], rows::audit).await
    }
}
