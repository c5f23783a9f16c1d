//! The PostgreSQL store: the conformance suite, and what a server and several replicas add to it.

use std::sync::atomic::{AtomicU32, Ordering};

use clock::Clock;
use futures_util::future::join_all;
use tokio_postgres::NoTls;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};

use super::*;
use crate::store::{
    Logins, MemoryStore, Shared, Tables,
    conformance::{self, START, app_row, audit, credential_row, token},
    servers,
};

const MINUTE: Duration = Duration::from_secs(60);

/// A database of its own, on the server that all tests share.
struct Database {
    url: PostgresUrl,
    name: String,
    client: tokio_postgres::Client,
    _driver: AbortOnDropHandle<()>,
}

/// A client beside the store.
async fn client(url: &str) -> (tokio_postgres::Client, AbortOnDropHandle<()>) {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.unwrap();
    let driver = TaskTracker::new().spawn(async move { drop(connection.await) });
    (client, AbortOnDropHandle::new(driver))
}

impl Database {
    async fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let server = servers::postgres();
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("xinfu_{}_{count}", std::process::id());
        let (there, _driver) = client(&server).await;
        there.batch_execute(&format!("CREATE DATABASE {name}")).await.unwrap();
        let (before, _) = server.rsplit_once('/').unwrap();
        let url = format!("{before}/{name}");
        let (client, driver) = client(&url).await;
        Self { url: PostgresUrl::parse(&url, None).unwrap(), name, client, _driver: driver }
    }

    async fn open(&self) -> PostgresStore {
        PostgresStore::open(&self.url).await.unwrap()
    }

    /// Opens it as one who is told of changes and never looks.
    async fn open_listening(&self) -> PostgresStore {
        let wakes = Wakes::of(self.url.clone(), MINUTE * 60);
        PostgresStore::open_waking(&self.url, wakes).await.unwrap()
    }

    async fn do_sql(&self, sql: &str) {
        self.client.batch_execute(sql).await.unwrap();
    }

    /// Takes the database's clock into our hands.
    async fn hold_clock(&self) {
        self.do_sql(&format!(
            "CREATE TABLE test_clock (at BIGINT); INSERT INTO test_clock VALUES ({}); \
             CREATE OR REPLACE FUNCTION xinfu_now() RETURNS BIGINT LANGUAGE sql VOLATILE AS \
             'SELECT at FROM test_clock'",
            START.as_millis()
        ))
        .await;
    }

    async fn advance(&self, by: Duration) {
        self.do_sql(&format!("UPDATE test_clock SET at = at + {}", by.as_millis())).await;
    }
}

async fn conforms_with(handles: usize) {
    let newest = tokio::sync::Mutex::new(None);
    let fresh = async || {
        let database = Database::new().await;
        let opened = join_all((0..handles).map(|_| database.open())).await;
        database.hold_clock().await;
        *newest.lock().await = Some(database);
        conformance::Handles::of(&opened)
    };
    let fast_forward = async |by| newest.lock().await.as_ref().unwrap().advance(by).await;
    conformance::run(fresh, fast_forward).await;
}

#[tokio::test]
async fn conforms() {
    conforms_with(1).await;
}

#[tokio::test]
async fn two_replicas_conform() {
    conforms_with(2).await;
}

#[tokio::test]
async fn many_may_open_a_new_database_at_once() {
    let database = Database::new().await;
    for store in join_all((0..8).map(|_| PostgresStore::open(&database.url))).await {
        assert_eq!(store.unwrap().list_apps().await.unwrap(), []);
    }
}

#[tokio::test]
async fn a_look_changes_nothing() {
    let database = Database::new().await;
    let look = async || PostgresStore::look(&database.url).await.unwrap();
    assert_eq!((look().await, look().await), (Tables::None, Tables::None));
    let sql = "SELECT count(*) FROM pg_class WHERE relnamespace = 'public'::regnamespace";
    let made: i64 = database.client.query_one(sql, &[]).await.unwrap().get(0);
    assert_eq!(made, 0);
    database.open().await;
    assert_eq!(look().await, Tables::Current);
}

/// Beneath a server that runs, a newer one has added to the tables, and then has put one away.
#[tokio::test]
async fn an_older_server_goes_on_or_says_that_it_cannot() {
    let database = Database::new().await;
    let store = database.open().await;
    let (row, entry) = (app_row("wx1", 1), audit("app.add", "wx1"));
    let id = token(&row.app);
    assert!(store.put_app(&row, &entry).await.unwrap());
    assert!(store.put_credential(&credential_row(&id, 1), 0).await.unwrap());
    database
        .do_sql(
            "UPDATE xinfu_version SET version = 2; CREATE TABLE later (app TEXT); \
             ALTER TABLE apps ADD COLUMN later TEXT; \
             ALTER TABLE credentials ADD COLUMN later TEXT NOT NULL DEFAULT 'x'",
        )
        .await;
    assert_eq!(store.list_apps().await.unwrap(), [row]);
    assert!(store.put_credential(&credential_row(&id, 2), 1).await.unwrap());
    for (gone, back) in [
        ("ALTER TABLE credentials RENAME TO old", "ALTER TABLE old RENAME TO credentials"),
        (
            "ALTER TABLE credentials RENAME COLUMN value TO old",
            "ALTER TABLE credentials RENAME COLUMN old TO value",
        ),
    ] {
        database.do_sql(gone).await;
        let refused = store.put_credential(&credential_row(&id, 3), 2).await.unwrap_err();
        let StoreError::Unavailable(why) = refused else { panic!("{refused}") };
        assert!(why.contains("another version of xinfu"), "{why}");
        database.do_sql(back).await;
    }
    assert_eq!(store.find_credential(&id).await.unwrap().unwrap().generation, 2);
}

/// Whatever is set for the database, our transactions are as our statements take them to be.
#[tokio::test]
async fn sessions_keep_what_they_need() {
    let database = Database::new().await;
    let name = &database.name;
    let set = async |name: &str, setting: &str, value: &str| {
        let sql = format!("ALTER DATABASE {name} SET {setting} = '{value}'");
        database.do_sql(&sql).await;
    };
    set(name, "default_transaction_isolation", "serializable").await;
    set(name, "default_transaction_read_only", "on").await;
    for (commit, kept) in [("off", "on"), ("local", "on"), ("remote_apply", "remote_apply")] {
        // Ours, which sets it, is a session of the same database.
        database.do_sql("SET default_transaction_read_only = off").await;
        set(name, "synchronous_commit", commit).await;
        let store = database.open().await;
        let shown = async |setting: &str| {
            let sql = format!("SELECT current_setting('{setting}')");
            let row = store.on(async |db| db.one(&sql, &[]).await).await.unwrap();
            row.get::<_, String>(0)
        };
        assert_eq!(shown("transaction_isolation").await, "read committed");
        assert_eq!(shown("transaction_read_only").await, "off");
        assert_eq!(shown("synchronous_commit").await, kept);
    }
}

/// What is sealed may be a million values, and naming their keys must not need to read them.
#[tokio::test]
async fn the_keys_of_sealed_values_are_found_by_indexes() {
    let database = Database::new().await;
    let store = database.open().await;
    assert!(store.put_app(&app_row("wx1", 1), &audit("app.add", "wx1")).await.unwrap());
    database
        .do_sql(
            "INSERT INTO grants (app, openid, scope, version, tokens_key, tokens, \
                 token_expires_at, authorised_at, client, profile_key, profile) \
             SELECT 'wx1', 'o' || n, 'snsapi_base', 'v', 'k' || (n / 10000), 'x', 0, 0, 'c', \
                 'p' || (n / 15000), 'x' FROM generate_series(1, 29999) n; \
             INSERT INTO mini_sessions (app, id, openid, session_key_key, session_key, expires_at) \
             SELECT 'wx1', n::TEXT::BYTEA, 'o', 's', 'x', 0 FROM generate_series(1, 20000) n; \
             INSERT INTO claims (app, code, client, owner, claimed_at, deadline, outcome_key, outcome) \
             SELECT 'wx1', n::TEXT::BYTEA, 'c', 'o', 0, 0, 'c', 'x' \
                 FROM generate_series(1, 20000) n; \
             ANALYZE",
        )
        .await;
    let keys = store.sealing_keys().await.unwrap();
    assert_eq!(keys, ["c", "k0", "k1", "k2", "p0", "p1", "s"]);
    let plan = database.client.query(&format!("EXPLAIN {SEALING_KEYS}"), &[]).await.unwrap();
    let plan: Vec<String> = plan.iter().map(|row| row.get(0)).collect();
    for table in ["grants", "mini_sessions", "claims"] {
        let whole = format!("Seq Scan on {table}");
        assert!(!plan.iter().any(|step| step.contains(&whole)), "{plan:#?}");
    }
}

/// Also by a plan that looks for what is past again and again.
#[tokio::test]
async fn no_more_is_forgotten_at_once_than_was_asked_for() {
    let database = Database::new().await;
    for plan in ["hashagg", "hashjoin", "mergejoin", "material", "sort", "indexscan", "bitmapscan"]
    {
        let sql = format!("ALTER DATABASE {} SET enable_{plan} = off", database.name);
        database.do_sql(&sql).await;
    }
    let store = database.open().await;
    assert!(store.put_app(&app_row("wx1", 1), &audit("app.add", "wx1")).await.unwrap());
    database
        .do_sql(
            "INSERT INTO claims (app, code, client, owner, claimed_at, deadline) \
             SELECT 'wx1', n::TEXT::BYTEA, 'c', 'o', 0, 0 FROM generate_series(1, 20) n; \
             INSERT INTO grants (app, openid, scope, version, token_expires_at, authorised_at, client) \
             SELECT 'wx1', 'o' || n, 'snsapi_base', 'v', 0, 0, 'c' FROM generate_series(1, 20) n; \
             INSERT INTO mini_sessions (app, id, openid, session_key_key, session_key, expires_at) \
             SELECT 'wx1', n::TEXT::BYTEA, 'o', 'k1', 'x', 0 FROM generate_series(1, 20) n; \
             ANALYZE",
        )
        .await;
    assert_eq!(store.forget_past_logins(2).await.unwrap(), 3 * 2);
}

#[tokio::test]
async fn a_database_apart_gives_leases_and_wakes() {
    let database = Database::new().await;
    let apart = async || PostgresStore::open_apart(&database.url).await.unwrap();
    let shared = [apart().await, apart().await];
    database.hold_clock().await;
    let store = MemoryStore::new(Clock::following_timers(START));
    let handles = conformance::Handles::apart(std::slice::from_ref(&store), &shared);
    conformance::shared_alone(&handles, &async |by| database.advance(by).await).await;
    // Nobody tells it of what is written elsewhere: it wakes by itself, again and again.
    let mut cursor = shared[0].woken(0).await.unwrap();
    for _ in 0..3 {
        let next = tokio::time::timeout(MINUTE, shared[0].woken(cursor)).await.unwrap().unwrap();
        assert_ne!(next, cursor);
        cursor = next;
    }
}

#[tokio::test]
async fn a_database_of_a_newer_version_is_refused() {
    let database = Database::new().await;
    database.open().await;
    database.do_sql("UPDATE xinfu_version SET version = 99").await;
    let refused = PostgresStore::open(&database.url).await.unwrap_err();
    let StoreError::Corrupt(why) = refused else { panic!("{refused}") };
    assert!(why.contains("99") && why.contains("newer xinfu"), "{why}");
    assert_eq!(PostgresStore::look(&database.url).await, Err(StoreError::Corrupt(why)));
}

/// The time that is stored is the server's, whatever a replica thinks.
#[tokio::test]
async fn the_time_is_the_databases() {
    let database = Database::new().await;
    let store = database.open().await;
    let theirs = async || -> i64 {
        let sql = "SELECT floor(extract(epoch FROM clock_timestamp()) * 1000)::BIGINT";
        database.client.query_one(sql, &[]).await.unwrap().get(0)
    };
    let before = theirs().await;
    let now = Store::now(&store).await.unwrap().as_millis();
    assert!((before..=theirs().await).contains(&now));
}

/// Whoever has read an entry of the change log has missed none before it, however long its writer
/// took.
#[tokio::test]
async fn no_change_is_passed_over() {
    let database = Database::new().await;
    let store = database.open().await;
    // A writer that has appended its entry and has not committed.
    let mut slow = client_of(&database).await;
    let slow_write = slow.0.transaction().await.unwrap();
    slow_write.execute("SELECT xinfu_log('wxslow', NULL)", &[]).await.unwrap();
    let row = app_row("wx1", 1);
    let entry = audit("app.add", "wx1");
    let quick = store.put_app(&row, &entry);
    let followed = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        let seen = store.changes(0).await.unwrap();
        slow_write.commit().await.unwrap();
        seen.latest
    };
    let (quick, latest) = tokio::join!(quick, followed);
    assert!(quick.unwrap());
    let rest = store.changes(latest).await.unwrap().entries.unwrap();
    assert_eq!(rest, [Change::App("wxslow".parse().unwrap()), Change::App(row.app)]);
}

async fn client_of(database: &Database) -> (tokio_postgres::Client, AbortOnDropHandle<()>) {
    let server = servers::postgres();
    let (before, _) = server.rsplit_once('/').unwrap();
    client(&format!("{before}/{}", database.name)).await
}

/// The cursor once the first wake-ups are over.
async fn settled(store: &PostgresStore) -> u64 {
    let mut cursor = 0;
    while let Ok(next) = tokio::time::timeout(Duration::from_secs(2), store.woken(cursor)).await {
        cursor = next.unwrap();
    }
    cursor
}

async fn wakes_another(one: &PostgresStore, two: &PostgresStore) {
    let cursor = settled(two).await;
    let (row, entry) = (app_row("wx1", 1), audit("app.add", "wx1"));
    let (woken, put) =
        tokio::join!(tokio::time::timeout(MINUTE, two.woken(cursor)), one.put_app(&row, &entry));
    assert!(put.unwrap());
    assert_ne!(woken.expect("it is woken").unwrap(), cursor);
}

#[tokio::test]
async fn what_one_replica_writes_wakes_another_by_notification_alone() {
    let database = Database::new().await;
    let rarely = database.open_listening().await;
    wakes_another(&database.open().await, &rarely).await;
}

#[tokio::test]
async fn a_change_that_nobody_told_is_noticed() {
    let database = Database::new().await;
    let (one, two) = (database.open().await, database.open().await);
    let sql = "SELECT pg_get_functiondef('xinfu_log'::regproc)";
    let silent: String = database.client.query_one(sql, &[]).await.unwrap().get(0);
    let silent = silent.replace("PERFORM pg_notify('xinfu_changes', newest::TEXT);", "");
    assert!(!silent.contains("notify"));
    database.do_sql(&silent).await;
    wakes_another(&one, &two).await;
}

#[tokio::test]
async fn a_restart_of_the_database_needs_none_of_ours() {
    let database = Database::new().await;
    let store = database.open_listening().await;
    let cursor = settled(&store).await;
    database
        .do_sql(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
             WHERE datname = current_database() AND pid <> pg_backend_pid()",
        )
        .await;
    // It listens anew, and says that something may have happened meanwhile.
    let woken = tokio::time::timeout(MINUTE, store.woken(cursor)).await;
    assert_ne!(woken.expect("it is woken").unwrap(), cursor);
    assert!(store.put_app(&app_row("wx1", 1), &audit("app.add", "wx1")).await.unwrap());
}

#[tokio::test]
async fn a_database_that_is_silent_is_unavailable_and_then_is_not() {
    let database = Database::new().await;
    let store = database.open().await;
    // A lock that keeps every read of the table waiting.
    let mut other = client_of(&database).await;
    let lock = other.0.transaction().await.unwrap();
    lock.batch_execute("LOCK TABLE apps IN ACCESS EXCLUSIVE MODE").await.unwrap();
    let refused = store.list_apps().await.unwrap_err();
    assert!(matches!(refused, StoreError::Unavailable(_)), "{refused}");
    lock.rollback().await.unwrap();
    assert_eq!(store.list_apps().await.unwrap(), []);
}

#[tokio::test]
async fn a_connection_that_went_silent_is_given_up() {
    let database = Database::new().await;
    let server = servers::postgres();
    let host = server.split(['@', '/']).nth(3).unwrap();
    let (address, stalls, _accepting) = servers::gate(host.to_owned()).await;
    let url = format!("postgres://xinfu@{address}/{}", database.name);
    let store = PostgresStore::open(&PostgresUrl::parse(&url, None).unwrap()).await.unwrap();
    assert_eq!(store.list_apps().await.unwrap(), []);
    stalls.send_replace(1);
    let refused = tokio::time::timeout(MINUTE, store.list_apps()).await.expect("it ends");
    assert!(matches!(refused, Err(StoreError::Unavailable(_))), "{refused:?}");
    let again = async {
        while store.list_apps().await.is_err() {
            // It is left alone for a moment.
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(MINUTE, again).await.expect("it answers by another connection");
}

#[tokio::test]
async fn a_database_that_does_not_answer_is_left_alone_for_a_moment() {
    const CALLS: u32 = 20;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("postgres://xinfu@{}/xinfu", listener.local_addr().unwrap());
    let connections = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&connections);
    let accepting = TaskTracker::new().spawn(async move {
        let mut silent = Vec::new();
        while let Ok(connection) = listener.accept().await {
            counted.fetch_add(1, Ordering::Relaxed);
            silent.push(connection);
        }
    });
    let _accepting = AbortOnDropHandle::new(accepting);
    let url = PostgresUrl::parse(&url, None).unwrap();
    let store = PostgresStore::unopened(&url, Wakes::of(url.clone(), MINUTE)).unwrap();
    for _ in 0..CALLS {
        let refused = store.list_apps().await;
        assert!(matches!(refused, Err(StoreError::Unavailable(_))), "{refused:?}");
    }
    assert_eq!(connections.load(Ordering::Relaxed), 1);
    // Later one call tries it again, and no other waits with it.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let many = join_all((0..CALLS).map(|_| store.list_apps())).await;
    assert!(many.iter().all(Result::is_err));
    assert_eq!(connections.load(Ordering::Relaxed), 2);
}

#[tokio::test]
async fn what_wechat_says_is_kept_whatever_it_says() {
    let database = Database::new().await;
    let store = database.open().await;
    let row = app_row("wx1", 1);
    assert!(store.put_app(&row, &audit("app.add", "wx1\0")).await.unwrap());
    let id = token(&row.app);
    let trouble = Trouble { errmsg: Some("a\0b 微信".to_owned()), ..conformance::a_trouble() };
    assert!(store.set_trouble(&id, 1, Some(&trouble)).await.unwrap());
    let kept = store.find_trouble(&id).await.unwrap().unwrap();
    assert_eq!(kept.errmsg.as_deref(), Some("a\u{fffd}b 微信"));
}

/// All kinds of writes about one app from many sides: none waits for another in a circle.
#[tokio::test]
async fn writers_never_wait_in_a_circle() {
    let database = Database::new().await;
    let stores = join_all((0..4).map(|_| database.open())).await;
    let row = app_row("wx1", 1);
    let id = token(&row.app);
    let entry = audit("x.y", "wx1");
    let work = stores.iter().enumerate().map(|(at, store)| {
        let (row, id, entry) = (&row, &id, &entry);
        async move {
            for round in 0..40 {
                let over = store.find_credential(id).await.unwrap().map_or(0, |it| it.generation);
                let next = credential_row(id, over + 1);
                match (round + at * 3) % 8 {
                    0 => drop(store.put_app(row, entry).await.unwrap()),
                    1 if at == 0 => drop(store.remove_app(&row.app, entry).await.unwrap()),
                    2 => drop(
                        store.set_trouble(id, 1, Some(&conformance::a_trouble())).await.unwrap(),
                    ),
                    3 => drop(
                        store.set_expiry(id, over, next.expires_at, next.refresh_at).await.unwrap(),
                    ),
                    4 => drop(store.mark_dead(id, over).await.unwrap()),
                    5 => drop(store.drop_unused(id, next.used_at).await.unwrap()),
                    _ => drop(store.put_credential(&next, over).await.unwrap()),
                }
            }
        }
    });
    join_all(work).await;
    let log = stores[0].changes(0).await.unwrap();
    assert!(log.latest > 0);
}

#[tokio::test]
async fn who_speaks_tls_must_show_a_certificate_that_is_known() {
    let database = Database::new().await;
    let server = servers::postgres();
    let host = server.split(['@', '/']).nth(3).unwrap().replace("127.0.0.1", "localhost");
    let open = async |host: &str, ca: Option<&[u8]>| {
        let url = format!("postgres://xinfu@{host}/{}?sslmode=require", database.name);
        PostgresStore::open(&PostgresUrl::parse(&url, ca).unwrap()).await
    };
    let ca = servers::authority();
    let store = open(&host, Some(&ca)).await.unwrap();
    // Its listening connection too.
    assert_ne!(store.woken(0).await.unwrap(), 0);
    let by_tls = "SELECT count(*) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) \
         WHERE datname = current_database() AND application_name = 'xinfu' AND NOT ssl";
    let open_ones: i64 = database.client.query_one(by_tls, &[]).await.unwrap().get(0);
    assert_eq!(open_ones, 0);
    for (host, ca) in [(host.as_str(), None), (&host.replace("localhost", "127.0.0.1"), Some(&ca))]
    {
        let refused = open(host, ca.map(Vec::as_slice)).await.unwrap_err();
        assert!(matches!(refused, StoreError::Unavailable(_)), "{refused}");
    }
}

#[test]
fn urls_show_no_password_and_open_ways_are_known() {
    let url = PostgresUrl::parse("postgres://me:s3cret@db.example.com:5433/x", None).unwrap();
    assert_eq!(format!("{url} {url:?}").matches("s3cret").count(), 0);
    assert_eq!(url.to_string(), "postgres://db.example.com:5433/x");
    for (url, open) in [
        ("postgres://me@db.example.com/x", false),
        ("postgres://me@db.example.com/x?sslmode=prefer", true),
        ("postgres://me@db.example.com/x?sslmode=verify-full&application_name=a", false),
        ("postgres://me@127.0.0.1/x", false),
        ("postgres:///x?host=%2Frun%2Fpostgresql&port=5433&user=me", false),
        // A password that looks like a parameter is none.
        ("postgres://me:%3Fsslmode=disable@db.example.com/x", false),
        ("postgres://me:sslmode=verify-full@db.example.com/x?sslmode=disable", true),
    ] {
        let parsed = PostgresUrl::parse(url, None).unwrap();
        assert_eq!(parsed.is_open(), open, "{url}");
    }
    let odd = "postgres://me:%3Fsslmode=verify-ca%40@h/a%40b?password=%40%2F";
    let password = PostgresUrl::parse(odd, None).unwrap();
    assert_eq!(password.config.get_password(), Some("@/".as_bytes()));
    assert_eq!(password.config.get_dbname(), Some("a@b"));
    for (wrong, part) in [
        ("postgres://me:s3cret@/x", "host"),
        ("postgres://me:s3cret@h", "database"),
        ("postgres://me:s3cret@h:port/x", "URL"),
        ("host=h password=s3cret dbname=x", "URL"),
        ("postgres://me:s3cret@h/x?sslmode", "URL"),
        ("postgres://me:s3@cret@h/x", "URL"),
        // What one reader takes for the end of a password is in the middle of it for another.
        ("postgres://me:a@s3cret/b@h/x", "URL"),
        ("postgres://me:a?s3cret@h/x", "URL"),
        ("postgres://me:a/s3cret@h/x", "URL"),
        ("postgres://me:a#s3cret@h/x", "URL"),
        ("postgres://h/x?user=me&password=a@s3cret", "URL"),
        ("postgres://me:s3cret@h/x?sslmode=maybe", "`verify-full`"),
        ("postgres://me:s3cret@h/x?sslmode=allow", "`verify-full`"),
        ("postgres://me:s3cret@h/x?sslmode=require&hostaddr=10.0.0.1", "`hostaddr`"),
        ("postgres://me:s3cret@h/x?sslrootcert=/ca.pem", "`sslrootcert`"),
        ("postgres://me:s3cret@h/x?connect_timeout=10", "`connect_timeout`"),
        ("postgres://me:s3cret@h/x?target_session_attrs=primary", "`target_session_attrs`"),
        ("postgres://me:s3cret@h/x?port=5433", "`port`"),
        ("postgres://h/x?user=me&password=a&s3cret=1", "unknown"),
    ] {
        let refused = PostgresUrl::parse(wrong, None).unwrap_err().to_string();
        assert!(refused.contains(part) && !refused.contains("s3cret"), "{wrong}: {refused}");
    }
    assert!(PostgresUrl::parse("postgres://h/x", Some(b"no PEM")).is_err());
}
