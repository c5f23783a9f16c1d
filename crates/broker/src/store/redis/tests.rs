//! Redis as what replicas share: the part of the conformance suite that is about that, and what a
//! server adds to it.

use std::sync::atomic::{AtomicU32, Ordering};

use clock::Clock;

use super::*;
use crate::store::{
    MemoryStore,
    conformance::{self, START},
    servers,
};

const MINUTE: Duration = Duration::from_secs(60);

/// A URL with a prefix of its own, on the server that all tests share.
fn url() -> RedisUrl {
    url_at(&servers::redis(), None)
}

fn url_at(server: &str, ca_pem: Option<&[u8]>) -> RedisUrl {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let (pid, count) = (std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
    RedisUrl::parse(&format!("{server}?prefix=test-{pid}-{count}"), ca_pem).unwrap()
}

/// A clock in our hands, which the scripts go by.
struct Held {
    shared: RedisShared,
    key: String,
}

impl Held {
    async fn new(url: RedisUrl) -> Self {
        let key = url.key_of("clock");
        let now = format!(
            "local now = tonumber(redis.call('GET', '{key}')) \
             local function text(number) return string.format('%.0f', number) end \n"
        );
        let beside = RedisShared::new(url.clone());
        let held = Self { shared: beside, key };
        held.set(START.as_millis()).await;
        let shared = RedisShared::by(url, &now, MINUTE * 60);
        Self { shared, ..held }
    }

    async fn set(&self, millis: i64) {
        self.cmd(::redis::cmd("SET").arg(&self.key).arg(millis)).await;
    }

    async fn cmd(&self, cmd: &::redis::Cmd) {
        let done =
            self.shared.on(async |connection| cmd.query_async::<::redis::Value>(connection).await);
        done.await.unwrap();
    }
}

#[tokio::test]
async fn conforms() {
    conforms_at(url()).await;
}

#[tokio::test]
async fn conforms_by_a_sentinel() {
    conforms_at(url_at(&servers::redis_by_sentinel(), None)).await;
}

#[tokio::test]
async fn conforms_in_a_cluster() {
    conforms_at(url_at(&servers::redis_cluster(), None)).await;
}

#[tokio::test]
async fn conforms_by_tls() {
    let (server, ca) = (servers::redis_by_tls(), servers::authority());
    conforms_at(url_at(&server, Some(&ca))).await;
    // The public authorities do not know it.
    let refused = Shared::now(&RedisShared::new(url_at(&server, None))).await.unwrap_err();
    assert!(matches!(refused, StoreError::Unavailable(_)), "{refused}");
}

async fn conforms_at(url: RedisUrl) {
    let held = Held::new(url).await;
    let forward = async |by: Duration| {
        let by = i64::try_from(by.as_millis()).unwrap();
        held.cmd(::redis::cmd("INCRBY").arg(&held.key).arg(by)).await;
    };
    let store = MemoryStore::new(Clock::following_timers(START));
    let shared = [held.shared.clone(), held.shared.clone()];
    let handles = conformance::Handles::apart(std::slice::from_ref(&store), &shared);
    conformance::shared_alone(&handles, &forward).await;
}

#[tokio::test]
async fn a_wake_up_reaches_other_replicas() {
    let ca = servers::authority();
    for url in [
        url(),
        url_at(&servers::redis_by_sentinel(), None),
        url_at(&servers::redis_cluster(), None),
        url_at(&servers::redis_by_tls(), Some(&ca)),
    ] {
        wakes_another(url).await;
    }
}

async fn wakes_another(url: RedisUrl) {
    let open = || RedisShared::by(url.clone(), NOW, MINUTE * 60);
    let (one, two) = (open(), open());
    let mut cursor = 0;
    while let Ok(next) = tokio::time::timeout(Duration::from_secs(2), two.woken(cursor)).await {
        cursor = next.unwrap();
    }
    let (woken, sent) = tokio::join!(tokio::time::timeout(MINUTE, two.woken(cursor)), one.wake());
    sent.unwrap();
    assert_ne!(woken.expect("it is woken").unwrap(), cursor);
}

/// A wake-up that nobody published, or that got lost.
#[tokio::test]
async fn who_waits_looks_by_itself_now_and_then() {
    let shared = RedisShared::new(url());
    let mut cursor = shared.woken(0).await.unwrap();
    for _ in 0..3 {
        let next = tokio::time::timeout(MINUTE, shared.woken(cursor)).await.unwrap().unwrap();
        assert_ne!(next, cursor);
        cursor = next;
    }
}

#[tokio::test]
async fn the_time_is_the_servers_and_a_lease_goes_by_itself() {
    let shared = RedisShared::new(url());
    let life = Duration::from_millis(200);
    let Acquired::Yes(lease) = shared.acquire("wx1", "me", life).await.unwrap() else {
        panic!("it is free")
    };
    let renewed = shared.renew(&lease, life).await.unwrap().unwrap();
    assert!(renewed.until >= lease.until);
    while Shared::now(&shared).await.unwrap() < renewed.until {
        assert_eq!(
            shared.acquire("wx1", "you", life).await.unwrap(),
            Acquired::HeldUntil(renewed.until)
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(shared.renew(&renewed, life).await.unwrap(), None);
    assert!(matches!(shared.acquire("wx1", "you", life).await.unwrap(), Acquired::Yes(_)));
}

#[tokio::test]
async fn a_server_that_forgets_all_and_cuts_connections_is_used_again() {
    let shared = RedisShared::new(url());
    let held = shared.acquire("wx1", "me", MINUTE).await.unwrap();
    assert!(matches!(held, Acquired::Yes(_)));
    let ask = async |to: &RedisShared, words: &[&str]| {
        let mut cmd = ::redis::Cmd::new();
        cmd.arg(words);
        to.on(async |connection| cmd.query_async::<::redis::Value>(connection).await).await.unwrap()
    };
    let ::redis::Value::Int(id) = ask(&shared, &["CLIENT", "ID"]).await else {
        panic!("a connection has a number")
    };
    // Other tests have connections to the same server.
    let beside = RedisShared::new(url());
    ask(&beside, &["CLIENT", "KILL", "ID", &id.to_string()]).await;
    ask(&beside, &["SCRIPT", "FLUSH"]).await;
    // The call that finds the connection broken says so; the next one makes another.
    drop(shared.acquire("wx2", "me", MINUTE).await);
    assert!(matches!(shared.acquire("wx3", "me", MINUTE).await.unwrap(), Acquired::Yes(_)));
}

/// A server that takes connections and says nothing, in simulated time.
#[tokio::test(start_paused = true)]
async fn no_call_waits_longer_than_the_limit() {
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let server = format!("redis://{}", silent.local_addr().unwrap());
    let shared = RedisShared::new(url_at(&server, None));
    let calls = (0..6).map(|at| {
        let shared = &shared;
        async move {
            tokio::time::sleep(Duration::from_secs(at)).await;
            let begun = tokio::time::Instant::now();
            let refused = Shared::now(shared).await.unwrap_err();
            assert!(matches!(refused, StoreError::Unavailable(_)), "{refused}");
            begun.elapsed()
        }
    });
    for took in futures_util::future::join_all(calls).await {
        assert!(took <= PATIENCE, "{took:?}");
    }
}

#[tokio::test]
async fn a_connection_that_went_silent_is_not_listened_to_for_ever() {
    let direct = servers::redis();
    let host = direct.split(['@', '/']).nth(2).unwrap();
    let (address, stalls, _accepting) = servers::gate(host.to_owned()).await;
    let url = url_at(&format!("redis://{address}"), None);
    let shared = RedisShared::by(url, NOW, MINUTE * 60);
    let mut cursor = 0;
    while let Ok(next) = tokio::time::timeout(Duration::from_secs(2), shared.woken(cursor)).await {
        cursor = next.unwrap();
    }
    stalls.send_replace(1);
    // It listens anew, and says that something may have happened meanwhile.
    let woken = tokio::time::timeout(MINUTE, shared.woken(cursor)).await;
    assert_ne!(woken.expect("it is woken").unwrap(), cursor);
}

#[test]
fn urls_are_of_three_kinds_and_show_no_password() {
    for (url, shown, open) in [
        ("redis://me:s3cret@127.0.0.1:6379/2", "redis://127.0.0.1:6379/2", false),
        ("redis://me:s3cret@r.example.com:6379/", "redis://r.example.com:6379/", true),
        ("rediss://me:s3cret@r.example.com/", "rediss://r.example.com/", false),
        (
            "redis+sentinel://me:s3cret@a:26379,b:26379/main/1?sentinel_password=s3cret",
            "redis+sentinel://a:26379,b:26379/main/1",
            true,
        ),
        ("rediss+cluster://:s3cret@a:1,b:2?prefix=x", "rediss+cluster://a:1,b:2/", false),
        (
            "redis+sentinel://[::1],127.0.0.1:1/main",
            "redis+sentinel://[::1]:26379,127.0.0.1:1/main",
            false,
        ),
    ] {
        let parsed = RedisUrl::parse(url, None).unwrap();
        assert_eq!((parsed.to_string().as_str(), parsed.is_open()), (shown, open));
        assert!(!format!("{parsed:?}").contains("s3cret"));
    }
    for wrong in [
        "http://h",
        "redis:h",
        "redis://a,b/",
        "redis+sentinel://a/",
        "redis+cluster://a/1",
        "redis+other://a/",
        "redis://h/?prefix=a&other=s3cret",
        "redis://h/?prefix=",
        "redis://h/?prefix",
        "redis://h/?s3cret",
        "redis://h/?sentinel_password=s3cret",
        "redis://me:s3cret@h:port/",
    ] {
        let refused = RedisUrl::parse(wrong, None).unwrap_err().to_string();
        assert!(!refused.contains("s3cret"), "{wrong}: {refused}");
    }
}
