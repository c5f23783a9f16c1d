//! Leases and wake-ups in Redis: one server, a primary found by Sentinel, or a cluster.
//!
//! What must survive is never here: a Redis that forgets all, or that lets two hold a lease because
//! its replica did not know of it yet, costs a fetch and nothing else. Each step is one script, done
//! as a whole on the server and by the server's clock.

mod place;
#[cfg(test)]
mod tests;

use std::{
    convert::Infallible,
    fmt, io,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};

use ::redis::{FromRedisValue, RedisError, RedisResult, Script, Value};
use async_trait::async_trait;
use clock::Timestamp;
use futures_util::StreamExt;
use tokio::sync::watch;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};

use self::place::{ANSWER, Connection};
pub use self::place::{RedisUrl, RedisUrlError};
use super::{
    Acquired, Lease, Shared, StoreError, StoreResult,
    away::{Away, in_time},
};
use crate::slot::SET_BACK;

/// No call takes longer, reaching the server included, but for time that this process slept over.
const PATIENCE: Duration = Duration::from_secs(5);
/// A wake-up may get lost: whoever waits looks so often by itself.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How often the connection that listens is tried.
const PING_EVERY: Duration = Duration::from_secs(5);
/// How long to wait before listening anew.
const PAUSE: Duration = Duration::from_millis(500);

/// The server's time, in milliseconds. Numbers are written out, since Lua would round them.
const NOW: &str = "\
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local function text(number) return string.format('%.0f', number) end
";

/// Lease, owner, life, and how far a clock may have been set back: whether it is the owner's now,
/// and until when it is whose ever. The rule is that of `Lease::holds`.
const ACQUIRE: &str = "\
local life = tonumber(ARGV[2])
local held = tonumber(redis.call('HGET', KEYS[1], 'until'))
if held and held > now and held <= now + life + tonumber(ARGV[3]) then return {0, held} end
redis.call('HSET', KEYS[1], 'owner', ARGV[1], 'until', text(now + life))
redis.call('PEXPIRE', KEYS[1], life)
return {1, now + life}
";

/// Lease, owner, life: until when it is the owner's, or nothing when it is no longer.
const RENEW: &str = "\
local held = redis.call('HMGET', KEYS[1], 'owner', 'until')
if held[1] ~= ARGV[1] or tonumber(held[2]) <= now then return false end
redis.call('HSET', KEYS[1], 'until', text(now + ARGV[2]))
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return now + ARGV[2]
";

/// Lease, owner: gives it back if it is the owner's.
const RELEASE: &str = "\
if redis.call('HGET', KEYS[1], 'owner') == ARGV[1] then redis.call('DEL', KEYS[1]) end
return 0
";

/// Leases and wake-ups in Redis. Cloning gives another handle to the same.
#[derive(Clone)]
pub struct RedisShared {
    inner: Arc<Inner>,
}

struct Inner {
    url: RedisUrl,
    /// Kept until it fails.
    connection: Mutex<Option<Connection>>,
    /// Whoever makes a connection has this; the others wait for theirs.
    connecting: tokio::sync::Mutex<()>,
    away: Away,
    scripts: Scripts,
    look_every: Duration,
    /// Counts the wake-ups, from 1: the cursors of [`Shared::woken`].
    wakes: Arc<watch::Sender<u64>>,
    /// The task that listens, once somebody has waited; it ends with this.
    listener: OnceLock<AbortOnDropHandle<()>>,
}

struct Scripts {
    now: Script,
    acquire: Script,
    renew: Script,
    release: Script,
}

impl Scripts {
    /// Scripts that take the time from what `now` does.
    fn by(now: &str) -> Self {
        let script = |rest: &str| Script::new(&format!("{now}{rest}"));
        Self {
            now: script("return now"),
            acquire: script(ACQUIRE),
            renew: script(RENEW),
            release: script(RELEASE),
        }
    }
}

impl Inner {
    fn kept(&self) -> MutexGuard<'_, Option<Connection>> {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn late() -> StoreError {
    StoreError::Unavailable("Redis did not answer in time".to_owned())
}

impl From<RedisError> for StoreError {
    fn from(err: RedisError) -> Self {
        Self::Unavailable(format!("Redis: {err}"))
    }
}

impl RedisShared {
    /// What `url` names, which is reached when it is needed: a server starts also while Redis is away.
    pub fn new(url: RedisUrl) -> Self {
        Self::by(url, NOW, LOOK_EVERY)
    }

    /// The same with another way to tell the time; who waits looks every `look_every`.
    fn by(url: RedisUrl, now: &str, look_every: Duration) -> Self {
        let inner = Inner {
            url,
            connection: Mutex::default(),
            connecting: tokio::sync::Mutex::default(),
            away: Away::new(),
            scripts: Scripts::by(now),
            look_every,
            wakes: Arc::new(watch::Sender::new(1)),
            listener: OnceLock::new(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// Does something with the connection. One that fails, or that leads to a server that is no
    /// longer the primary, is not used again.
    async fn on<T>(
        &self,
        job: impl AsyncFnOnce(&mut Connection) -> RedisResult<T>,
    ) -> StoreResult<T> {
        let leave = self.inner.away.leave().ok_or_else(late)?;
        let call = async {
            let mut connection = self.connection().await?;
            let answer = in_time(ANSWER, job(&mut connection)).await;
            answer.unwrap_or_else(|| Err(io::Error::from(io::ErrorKind::TimedOut).into()))
        };
        let failed = match in_time(PATIENCE, call).await {
            Some(Ok(answer)) => {
                leave.answered();
                return Ok(answer);
            }
            Some(Err(err)) if !err.is_timeout() => err.into(),
            Some(Err(_)) | None => {
                leave.unanswered();
                late()
            }
        };
        *self.inner.kept() = None;
        Err(failed)
    }

    async fn connection(&self) -> RedisResult<Connection> {
        let kept = self.inner.kept().clone();
        if let Some(connection) = kept {
            return Ok(connection);
        }
        let _connecting = self.inner.connecting.lock().await;
        let kept = self.inner.kept().clone();
        if let Some(connection) = kept {
            return Ok(connection);
        }
        let connection = self.inner.url.connect().await?;
        *self.inner.kept() = Some(connection.clone());
        Ok(connection)
    }

    /// Runs a script on a lease.
    async fn run<T: FromRedisValue>(
        &self,
        script: &Script,
        lease: &str,
        args: &[&str],
    ) -> StoreResult<T> {
        let mut call = script.key(self.inner.url.key_of(lease));
        for arg in args {
            call.arg(*arg);
        }
        self.on(async |connection| call.invoke_async(connection).await).await
    }

    async fn time(&self) -> StoreResult<Timestamp> {
        let now: i64 = self.run(&self.inner.scripts.now, "", &[]).await?;
        Ok(Timestamp::from_millis(now))
    }
}

/// Tells those who wait of each wake-up that is published.
async fn listen_forever(url: RedisUrl, wakes: Arc<watch::Sender<u64>>) {
    let mut deaf = false;
    loop {
        let Err(err) = listen(&url, &wakes, &mut deaf).await;
        if !deaf {
            tracing::warn!(error = %err, "Redis tells no changes for now: they are looked for");
        }
        deaf = true;
        tokio::time::sleep(PAUSE).await;
    }
}

/// Listens until the connection fails. A connection that is silent because it is dead is found by
/// asking it now and then.
async fn listen(
    url: &RedisUrl,
    wakes: &watch::Sender<u64>,
    deaf: &mut bool,
) -> StoreResult<Infallible> {
    let subscribed = tokio::time::timeout(PATIENCE, url.subscribe()).await;
    let (mut asking, mut messages) = subscribed.map_err(|_| late())??;
    if *deaf {
        *deaf = false;
        tracing::info!("Redis tells changes again");
    }
    // Something may have changed before we listened.
    wakes.send_modify(|count| *count += 1);
    let ask = async {
        loop {
            tokio::time::sleep(PING_EVERY).await;
            let answered = tokio::time::timeout(PATIENCE, asking.ping::<Value>()).await;
            answered.map_err(|_| late())??;
        }
    };
    let hear = async {
        while messages.next().await.is_some() {
            wakes.send_modify(|count| *count += 1);
        }
        Err(StoreError::Unavailable("the connection has ended".to_owned()))
    };
    tokio::select! {
        failed = ask => failed,
        failed = hear => failed,
    }
}

fn millis(span: Duration) -> String {
    span.as_millis().to_string()
}

impl fmt::Debug for RedisShared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RedisShared")
    }
}

#[async_trait]
impl Shared for RedisShared {
    async fn now(&self) -> StoreResult<Timestamp> {
        self.time().await
    }

    async fn acquire(&self, name: &str, owner: &str, ttl: Duration) -> StoreResult<Acquired> {
        let args = [owner, &millis(ttl), &millis(SET_BACK)];
        let (mine, until): (bool, i64) = self.run(&self.inner.scripts.acquire, name, &args).await?;
        let until = Timestamp::from_millis(until);
        Ok(if mine {
            Acquired::Yes(Lease { name: name.to_owned(), owner: owner.to_owned(), until })
        } else {
            Acquired::HeldUntil(until)
        })
    }

    async fn renew(&self, lease: &Lease, ttl: Duration) -> StoreResult<Option<Lease>> {
        let args = [lease.owner.as_str(), &millis(ttl)];
        let until: Option<i64> = self.run(&self.inner.scripts.renew, &lease.name, &args).await?;
        Ok(until.map(|until| Lease { until: Timestamp::from_millis(until), ..lease.clone() }))
    }

    async fn release(&self, lease: &Lease) -> StoreResult<()> {
        let args = [lease.owner.as_str()];
        self.run::<i64>(&self.inner.scripts.release, &lease.name, &args).await?;
        Ok(())
    }

    async fn wake(&self) -> StoreResult<()> {
        let channel = self.inner.url.channel();
        let published = self.on(async |connection| {
            let mut publish = ::redis::cmd("PUBLISH");
            publish.arg(channel).arg("").query_async::<i64>(connection).await
        });
        published.await?;
        // Those in this process need not wait until it comes back.
        self.inner.wakes.send_modify(|count| *count += 1);
        Ok(())
    }

    async fn woken(&self, cursor: u64) -> StoreResult<u64> {
        self.inner.listener.get_or_init(|| {
            let listener = listen_forever(self.inner.url.clone(), Arc::clone(&self.inner.wakes));
            AbortOnDropHandle::new(TaskTracker::new().spawn(listener))
        });
        let mut wakes = self.inner.wakes.subscribe();
        loop {
            let count = *wakes.borrow_and_update();
            if count != cursor {
                return Ok(count);
            }
            if tokio::time::timeout(self.inner.look_every, wakes.changed()).await.is_err() {
                self.inner.wakes.send_modify(|count| *count += 1);
            }
        }
    }
}
