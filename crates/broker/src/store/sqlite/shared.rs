//! Leases in the file, and wake-ups for what any process has written to it.

use std::{
    sync::{Arc, PoisonError, atomic::Ordering},
    time::Duration,
};

use async_trait::async_trait;
use clock::Timestamp;
use rusqlite::{Connection, params};

use super::{Inner, SqliteStore, blocking, newest_change, query};
use crate::store::{
    Acquired, Lease, Shared, StoreResult,
    rows::{self, LEASE},
};

/// How soon what another process wrote is noticed.
pub(super) const WATCH_EVERY: Duration = Duration::from_millis(250);

/// The connection that notices what others write.
pub(super) struct Watcher {
    connection: Connection,
    /// SQLite's number for what was last seen; it differs after each commit of another connection.
    data_version: i64,
}

impl Watcher {
    /// Starts from what is in the database now.
    pub(super) fn new(connection: Connection) -> StoreResult<Self> {
        let data_version = data_version(&connection)?;
        Ok(Self { connection, data_version })
    }

    /// The newest entry of the change log, if anybody has written since the last look.
    fn look(&mut self) -> StoreResult<Option<i64>> {
        let data_version = data_version(&self.connection)?;
        if data_version == self.data_version {
            return Ok(None);
        }
        let newest = newest_change(&self.connection)?;
        self.data_version = data_version;
        Ok(Some(newest))
    }
}

fn data_version(connection: &Connection) -> StoreResult<i64> {
    Ok(connection.prepare_cached("PRAGMA data_version")?.query_row([], |row| row.get(0))?)
}

impl Inner {
    /// Looks whether somebody else has written, and wakes those who wait if the change log is
    /// another for it. A lease or a call taken from a budget wakes nobody.
    fn look(&self) -> StoreResult<()> {
        let looked = self.watcher.lock().unwrap_or_else(PoisonError::into_inner).look()?;
        if let Some(newest) = looked
            && newest != self.announced.load(Ordering::Acquire)
        {
            self.announce(newest);
        }
        Ok(())
    }
}

#[async_trait]
impl Shared for SqliteStore {
    async fn now(&self) -> StoreResult<Timestamp> {
        Ok(self.inner.clock.now())
    }

    async fn acquire(&self, name: &str, owner: &str, ttl: Duration) -> StoreResult<Acquired> {
        let (name, owner) = (name.to_owned(), owner.to_owned());
        let sql = format!("{LEASE} WHERE name = ?1");
        self.write(move |write| {
            let held = query::first(&write.transaction, &sql, [&name], rows::lease)?;
            if let Some(held) = held.filter(|held| held.holds(write.now, ttl)) {
                return Ok(Acquired::HeldUntil(held.until));
            }
            let lease = Lease { name, owner, until: write.now + ttl };
            write.execute(
                "INSERT INTO leases (name, owner, until) VALUES (?1, ?2, ?3) \
                 ON CONFLICT (name) DO UPDATE SET owner = ?2, until = ?3",
                params![lease.name, lease.owner, lease.until.as_millis()],
            )?;
            Ok(Acquired::Yes(lease))
        })
        .await
    }

    async fn renew(&self, lease: &Lease, ttl: Duration) -> StoreResult<Option<Lease>> {
        let lease = lease.clone();
        self.write(move |write| {
            let renewed = Lease { until: write.now + ttl, ..lease };
            let held = write.execute(
                "UPDATE leases SET until = ?3 WHERE name = ?1 AND owner = ?2 AND until > ?4",
                params![
                    renewed.name,
                    renewed.owner,
                    renewed.until.as_millis(),
                    write.now.as_millis()
                ],
            )?;
            Ok((held > 0).then_some(renewed))
        })
        .await
    }

    async fn release(&self, lease: &Lease) -> StoreResult<()> {
        let lease = lease.clone();
        self.write(move |write| {
            write.execute(
                "DELETE FROM leases WHERE name = ?1 AND owner = ?2",
                [&lease.name, &lease.owner],
            )?;
            Ok(())
        })
        .await
    }

    /// Reaches those in this process. Other processes notice what was written by themselves.
    async fn wake(&self) -> StoreResult<()> {
        self.inner.bump();
        Ok(())
    }

    async fn woken(&self, cursor: u64) -> StoreResult<u64> {
        let mut wakes = self.inner.wakes.subscribe();
        loop {
            let count = *wakes.borrow_and_update();
            if count != cursor {
                return Ok(count);
            }
            let inner = Arc::clone(&self.inner);
            blocking(move || inner.look()).await?;
            // The sender lives in this store, so the channel is never closed.
            let _ = tokio::time::timeout(WATCH_EVERY, wakes.changed()).await;
        }
    }
}
