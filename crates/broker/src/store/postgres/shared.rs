//! Leases in the database, and wake-ups for what any replica has written to it.

use std::{
    convert::Infallible,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use clock::Timestamp;
use futures_util::{StreamExt, stream};
use tokio::sync::watch;
use tokio_postgres::AsyncMessage;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};

use super::{PostgresStore, query::Sql, url::PostgresUrl};
use crate::{
    slot::SET_BACK,
    store::{Acquired, Lease, Shared, StoreError, StoreResult},
};

/// How soon a change is noticed whose notification got lost.
pub(super) const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How often the connection that listens is tried, and how long its answer may take.
const PING_EVERY: Duration = Duration::from_secs(5);
/// How long to wait before listening anew.
const PAUSE: Duration = Duration::from_millis(500);

/// What tells those who wait that the change log has grown.
pub(super) struct Wakes {
    url: PostgresUrl,
    feed: Arc<Feed>,
    look_every: Duration,
    /// Whether the change log of what is waited for is in this database too.
    has_log: bool,
    /// The task that listens, once somebody has waited; it ends with this.
    listener: OnceLock<AbortOnDropHandle<()>>,
}

#[derive(Debug)]
struct Feed {
    /// The newest entry of the change log that was announced.
    announced: AtomicI64,
    /// Counts the wake-ups, from 1: the cursors of [`Shared::woken`].
    count: watch::Sender<u64>,
}

impl Wakes {
    /// For the database at `url`, which is also looked at every now and then.
    pub(super) fn of(url: PostgresUrl, look_every: Duration) -> Self {
        let feed = Feed { announced: AtomicI64::new(0), count: watch::Sender::new(1) };
        Self { url, feed: Arc::new(feed), look_every, has_log: true, listener: OnceLock::new() }
    }

    /// For a database that hears of changes only when somebody tells: whoever waits is woken every
    /// now and then, to look where they are made.
    pub(super) fn apart(url: PostgresUrl, look_every: Duration) -> Self {
        Self { has_log: false, ..Self::of(url, look_every) }
    }

    /// Listens to what the database notifies, from now on.
    fn listen(&self) {
        self.listener.get_or_init(|| {
            let listener = listen_forever(self.url.clone(), Arc::clone(&self.feed));
            AbortOnDropHandle::new(TaskTracker::new().spawn(listener))
        });
    }
}

impl Feed {
    /// Wakes those who wait, for all that the change log holds up to `newest`.
    fn announce(&self, newest: i64) {
        self.announced.store(newest, Ordering::Release);
        self.bump();
    }

    fn bump(&self) {
        self.count.send_modify(|count| *count += 1);
    }
}

async fn listen_forever(url: PostgresUrl, feed: Arc<Feed>) {
    let mut deaf = false;
    loop {
        let Err(err) = listen(&url, &feed, &mut deaf).await;
        if !deaf {
            tracing::warn!(error = %err, "PostgreSQL tells no changes for now: they are looked for");
        }
        deaf = true;
        tokio::time::sleep(PAUSE).await;
    }
}

/// Listens until the connection fails. A connection that is silent because it is dead is found by
/// asking it now and then.
async fn listen(url: &PostgresUrl, feed: &Feed, deaf: &mut bool) -> StoreResult<Infallible> {
    let late = |_| StoreError::Unavailable("it did not answer in time".to_owned());
    let connected = tokio::time::timeout(PING_EVERY, url.connect()).await.map_err(late)?;
    let (client, mut connection) = connected?;
    let mut messages = stream::poll_fn(move |context| connection.poll_message(context));
    let ask = async {
        let listening = client.batch_execute("LISTEN xinfu_changes");
        tokio::time::timeout(PING_EVERY, listening).await.map_err(late)??;
        if *deaf {
            *deaf = false;
            tracing::info!("PostgreSQL tells changes again");
        }
        // Something may have changed before we listened.
        feed.bump();
        loop {
            tokio::time::sleep(PING_EVERY).await;
            tokio::time::timeout(PING_EVERY, client.simple_query("")).await.map_err(late)??;
        }
    };
    let hear = async {
        while let Some(message) = messages.next().await {
            if let AsyncMessage::Notification(told) = message? {
                match told.payload().parse() {
                    Ok(newest) => feed.announce(newest),
                    Err(_) => feed.bump(),
                }
            }
        }
        Err(StoreError::Unavailable("the connection that listens has ended".to_owned()))
    };
    tokio::select! {
        failed = ask => failed,
        failed = hear => failed,
    }
}

impl PostgresStore {
    /// Looks whether the change log has grown by what nobody told.
    async fn look_at_log(&self) -> StoreResult<()> {
        if !self.wakes.has_log {
            self.wakes.feed.bump();
            return Ok(());
        }
        let sql = "SELECT coalesce(max(number), 0) FROM changes";
        let newest = self.on(async |db| db.one(sql, &[]).await).await?.get(0);
        let feed = &self.wakes.feed;
        if newest != feed.announced.load(Ordering::Acquire) {
            feed.announce(newest);
        }
        Ok(())
    }
}

/// A span in milliseconds, for SQL.
fn millis(span: Duration) -> i64 {
    i64::try_from(span.as_millis()).unwrap_or(i64::MAX)
}

#[async_trait]
impl Shared for PostgresStore {
    async fn now(&self) -> StoreResult<Timestamp> {
        self.time().await
    }

    async fn acquire(&self, name: &str, owner: &str, ttl: Duration) -> StoreResult<Acquired> {
        // The rule of `Lease::holds`, decided while the row is ours. The second half sees the lease
        // as it was before the statement.
        let sql = "WITH mine AS ( \
                 INSERT INTO leases AS held (name, owner, until) \
                 VALUES ($1, $2, xinfu_now() + $3::BIGINT) \
                 ON CONFLICT (name) DO UPDATE SET owner = $2, until = excluded.until \
                 WHERE held.until <= excluded.until - $3 OR held.until > excluded.until + $4::BIGINT \
                 RETURNING until) \
             SELECT until, TRUE FROM mine \
             UNION ALL SELECT until, FALSE FROM leases \
                 WHERE name = $1 AND NOT EXISTS (SELECT 1 FROM mine)";
        let (ttl, set_back) = (millis(ttl), millis(SET_BACK));
        loop {
            let answer =
                self.on(async |db| db.optional(sql, &[&name, &owner, &ttl, &set_back]).await);
            // None: it was taken after the statement had begun. The next one sees it.
            let Some(row) = answer.await? else { continue };
            let until = Timestamp::from_millis(row.get(0));
            return Ok(match row.get(1) {
                true => {
                    Acquired::Yes(Lease { name: name.to_owned(), owner: owner.to_owned(), until })
                }
                false => Acquired::HeldUntil(until),
            });
        }
    }

    async fn renew(&self, lease: &Lease, ttl: Duration) -> StoreResult<Option<Lease>> {
        let sql = "UPDATE leases SET until = xinfu_now() + $3::BIGINT \
             WHERE name = $1 AND owner = $2 AND until > xinfu_now() RETURNING until";
        let renewed =
            self.on(async |db| db.optional(sql, &[&lease.name, &lease.owner, &millis(ttl)]).await);
        let until = renewed.await?.map(|row| Timestamp::from_millis(row.get(0)));
        Ok(until.map(|until| Lease { until, ..lease.clone() }))
    }

    async fn release(&self, lease: &Lease) -> StoreResult<()> {
        let sql = "DELETE FROM leases WHERE name = $1 AND owner = $2";
        self.on(async |db| db.execute(sql, &[&lease.name, &lease.owner]).await).await?;
        Ok(())
    }

    /// Reaches all replicas.
    async fn wake(&self) -> StoreResult<()> {
        self.on(async |db| db.execute("NOTIFY xinfu_changes", &[]).await).await?;
        Ok(())
    }

    async fn woken(&self, cursor: u64) -> StoreResult<u64> {
        self.wakes.listen();
        let mut wakes = self.wakes.feed.count.subscribe();
        loop {
            let count = *wakes.borrow_and_update();
            if count != cursor {
                return Ok(count);
            }
            if tokio::time::timeout(self.wakes.look_every, wakes.changed()).await.is_err() {
                self.look_at_log().await?;
            }
        }
    }
}
