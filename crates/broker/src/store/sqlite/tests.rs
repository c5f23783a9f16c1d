//! The SQLite store: the conformance suite, and what files and several processes add to it.

use std::path::PathBuf;

use futures_util::{FutureExt, future::join_all};
use rusqlite::types::Value;
use tempfile::TempDir;

use super::*;
use crate::store::{
    Acquired, Logins, Shared,
    conformance::{self, app_row, audit, credential_row, key_row, sealed, token},
};

const MINUTE: Duration = Duration::from_secs(60);

fn file() -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("xinfu.db");
    (dir, path)
}

fn clock() -> Clock {
    Clock::following_timers(conformance::START)
}

async fn open(path: &Path) -> SqliteStore {
    SqliteStore::open(path, clock()).await.unwrap()
}

/// Somebody else at the file.
fn stranger(path: &Path) -> Connection {
    Connection::open(path).unwrap()
}

async fn conforms_with(handles: usize) {
    let dirs = Mutex::new(Vec::new());
    let fresh = async || {
        let (dir, path) = file();
        dirs.lock().unwrap().push(dir);
        let clock = clock();
        let opened = (0..handles).map(|_| SqliteStore::open(&path, clock.clone()));
        conformance::Handles::of(
            &join_all(opened).await.into_iter().collect::<Result<Vec<_>, _>>().unwrap(),
        )
    };
    conformance::run(fresh, tokio::time::advance).await;
}

#[tokio::test(start_paused = true)]
async fn conforms() {
    conforms_with(1).await;
}

#[tokio::test(start_paused = true)]
async fn two_processes_conform() {
    conforms_with(2).await;
}

#[tokio::test(start_paused = true)]
async fn many_may_open_a_new_file_at_once() {
    for _ in 0..5 {
        let (_dir, path) = file();
        let opened = join_all((0..8).map(|_| SqliteStore::open(&path, clock()))).await;
        for store in opened {
            assert_eq!(store.unwrap().list_apps().await.unwrap(), []);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn the_settings_are_those_of_a_careful_store() {
    let (_dir, path) = file();
    let store = open(&path).await;
    let connection = store.connection.lock().await;
    let pragma = |connection: &Connection, name: &str| -> Value {
        connection.pragma_query_value(None, name, |row| row.get(0)).unwrap()
    };
    let of_the_store = |name| pragma(&connection, name);
    assert_eq!(of_the_store("journal_mode"), Value::Text("wal".to_owned()));
    assert_eq!(of_the_store("synchronous"), Value::Integer(2), "FULL");
    assert_eq!(of_the_store("fullfsync"), Value::Integer(1));
    assert_eq!(of_the_store("foreign_keys"), Value::Integer(1));
    assert_eq!(of_the_store("busy_timeout"), Value::Integer(5000));
    let watching = open::open_watching(&path, BUSY).unwrap();
    assert_eq!(pragma(&watching, "query_only"), Value::Integer(1));
    assert_eq!(pragma(&watching, "busy_timeout"), Value::Integer(5000));
}

#[cfg(unix)]
#[tokio::test(start_paused = true)]
async fn only_the_owner_reads_the_files() {
    use std::os::unix::fs::PermissionsExt;

    let (dir, path) = file();
    let store = open(&path).await;
    store.put_app(&app_row("wx1", 1), &audit("app.add", "wx1")).await.unwrap();
    let mut names = Vec::new();
    for file in std::fs::read_dir(dir.path()).unwrap() {
        let file = file.unwrap();
        assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{file:?}");
        names.push(file.file_name());
    }
    names.sort();
    assert_eq!(names, ["xinfu.db", "xinfu.db-shm", "xinfu.db-wal"]);
}

#[tokio::test(start_paused = true)]
async fn what_was_written_is_there_after_reopening() {
    let (_dir, path) = file();
    let (app, entry) = (app_row("wx1", 1), audit("app.add", "wx1"));
    let budget = Budget { per_day: 5, burst: 5, every: MINUTE };
    let (row, key) = (credential_row(&token(&app.app), 1), key_row("key_1", 1));
    let (changes, ledger, lease) = {
        let store = open(&path).await;
        assert!(store.put_app(&app, &entry).await.unwrap());
        assert!(store.add_key(&key, &entry).await.unwrap());
        assert!(conformance::put_next(&store, &row).await.unwrap());
        store.set_trouble(&row.id, 1, Some(&conformance::a_trouble())).await.unwrap();
        store.spend(&app.app, "token", &budget).await.unwrap();
        store.own_secret("hash", &sealed("k1", "own")).await.unwrap();
        let lease = store.acquire("wx1", "me", MINUTE).await.unwrap();
        (store.changes(0).await.unwrap(), store.ledger(&app.app).await.unwrap(), lease)
    };
    let store = open(&path).await;
    assert_eq!(store.list_apps().await.unwrap(), vec![app.clone()]);
    assert_eq!(store.list_keys().await.unwrap(), [key]);
    assert_eq!(store.list_credentials().await.unwrap(), vec![row.clone()]);
    assert_eq!(store.find_generation(&row.id, &row.hash).await.unwrap(), Some(1));
    let trouble = store.find_trouble(&row.id).await.unwrap();
    assert_eq!(trouble, Some(conformance::a_trouble()));
    assert_eq!(store.ledger(&app.app).await.unwrap(), ledger);
    let own = store.own_secret("hash", &sealed("k1", "fresh")).await.unwrap();
    assert_eq!(own, sealed("k1", "own"));
    assert_eq!(store.list_audit(None, 10).await.unwrap().len(), 2);
    assert_eq!(store.changes(0).await.unwrap(), changes);
    let Acquired::Yes(lease) = lease else { panic!("it was free") };
    let again = store.acquire("wx1", "you", MINUTE).await.unwrap();
    assert_eq!(again, Acquired::HeldUntil(lease.until));
}

#[tokio::test(start_paused = true)]
async fn a_write_once_begun_ends_though_nobody_waits() {
    let (_dir, path) = file();
    let store = open(&path).await;
    let (row, entry) = (app_row("wx1", 1), audit("app.add", "wx1"));
    assert_eq!(store.put_app(&row, &entry).now_or_never(), None);
    assert_eq!(store.find_app(&row.app).await.unwrap(), Some(row));
}

#[tokio::test(start_paused = true)]
async fn what_another_process_writes_wakes_within_a_quarter_second() {
    let (_dir, path) = file();
    let (one, other) = (open(&path).await, open(&path).await);
    let cursor = one.woken(0).await.unwrap();
    let waiting = async {
        one.woken(cursor).await.unwrap();
        tokio::time::Instant::now()
    };
    let writing = async {
        tokio::time::sleep(MINUTE).await;
        other.put_app(&app_row("wx1", 1), &audit("app.add", "wx1")).await.unwrap();
        tokio::time::Instant::now()
    };
    let (woken, written) = tokio::join!(waiting, writing);
    assert!(woken - written <= shared::WATCH_EVERY * 2, "{:?}", woken - written);
    assert_eq!(one.changes(0).await.unwrap().latest, 1);
}

#[tokio::test(start_paused = true)]
async fn nobody_wakes_twice_for_one_write_or_at_all_for_a_lease() {
    let (_dir, path) = file();
    let (one, other) = (open(&path).await, open(&path).await);
    let idle = async |cursor| {
        let waiting = tokio::time::timeout(Duration::from_secs(2), one.woken(cursor));
        assert!(waiting.await.is_err());
    };
    let mut cursor = one.woken(0).await.unwrap();
    for (name, writer) in [("wx1", &one), ("wx2", &other)] {
        writer.put_app(&app_row(name, 1), &audit("app.add", name)).await.unwrap();
        cursor = one.woken(cursor).await.unwrap();
        idle(cursor).await;
        writer.acquire(name, "me", MINUTE).await.unwrap();
        idle(cursor).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_newer_database_is_refused() {
    let (_dir, path) = file();
    drop(open(&path).await);
    stranger(&path).pragma_update(None, "user_version", 4).unwrap();
    let refused = SqliteStore::open(&path, clock()).await.unwrap_err();
    let StoreError::Corrupt(reason) = refused else { panic!("{refused}") };
    assert!(reason.ends_with(
        "xinfu.db is of version 4, and this xinfu knows versions up to 3: run a newer xinfu"
    ));
}

#[tokio::test(start_paused = true)]
async fn an_older_database_is_brought_up_to_date() {
    let (_dir, path) = file();
    let row = app_row("wx1", 1);
    {
        let old = stranger(&path);
        old.execute_batch(include_str!("../migrations/0001.sql")).unwrap();
        old.execute(
            "INSERT INTO apps VALUES ('wx1', NULL, 'mini-program', 'stable', 'k1', ?1, 1, ?2, ?3)",
            params![row.secret.bytes, row.created_at.as_millis(), row.updated_at.as_millis()],
        )
        .unwrap();
        old.pragma_update(None, "user_version", 1).unwrap();
    }
    // Looking changes nothing.
    for _ in 0..2 {
        assert_eq!(SqliteStore::look(&path).await.unwrap(), Tables::Older);
    }
    for _ in 0..2 {
        let store = open(&path).await;
        assert_eq!(store.list_apps().await.unwrap(), std::slice::from_ref(&row));
        assert_eq!(store.forget_past_logins(10).await.unwrap(), 0, "the new tables are there");
        assert_eq!(SqliteStore::look(&path).await.unwrap(), Tables::Current);
    }
}

#[tokio::test(start_paused = true)]
async fn sealing_anew_goes_by_the_indexes() {
    let (_dir, path) = file();
    drop(open(&path).await);
    let db = stranger(&path);
    let sql = format!("EXPLAIN QUERY PLAN {SEALED_OTHERWISE}");
    let mut statement = db.prepare(&sql).unwrap();
    let steps = statement.query_map(params!["k1", 10], |row| row.get::<_, String>(3)).unwrap();
    let steps: Vec<String> = steps.map(Result::unwrap).collect();
    let searched = |table: &str| {
        assert!(!steps.iter().any(|step| step.starts_with(&format!("SCAN {table}"))), "{steps:#?}");
        assert!(
            steps.iter().any(|step| step.starts_with(&format!("SEARCH {table}"))),
            "{steps:#?}"
        );
    };
    searched("grants");
}

#[tokio::test(start_paused = true)]
async fn a_file_of_something_else_is_refused() {
    let (dir, path) = file();
    stranger(&path).execute_batch("CREATE TABLE apps (id)").unwrap();
    let refused = SqliteStore::open(&path, clock()).await.unwrap_err();
    assert!(refused.to_string().ends_with("is a database of something else"), "{refused}");

    std::fs::write(&path, "not a database, but long enough to be looked at ".repeat(100)).unwrap();
    let refused = SqliteStore::open(&path, clock()).await.unwrap_err();
    assert!(matches!(refused, StoreError::Corrupt(_)), "{refused}");

    let nowhere = dir.path().join("none").join("xinfu.db");
    let refused = SqliteStore::open(&nowhere, clock()).await.unwrap_err();
    assert!(matches!(refused, StoreError::Unavailable(_)), "{refused}");
    assert!(refused.to_string().contains("none/xinfu.db"), "{refused}");
}

#[tokio::test(start_paused = true)]
async fn a_writer_that_stays_makes_the_store_unavailable_for_writes_only() {
    let (_dir, path) = file();
    let busy = Duration::from_millis(30);
    let store = SqliteStore::open_within(&path, clock(), busy).await.unwrap();
    let writer = stranger(&path);
    writer.execute_batch("BEGIN IMMEDIATE").unwrap();
    let (row, entry) = (app_row("wx1", 1), audit("app.add", "wx1"));
    let refused = store.put_app(&row, &entry).await;
    assert!(matches!(refused, Err(StoreError::Unavailable(_))), "{refused:?}");
    assert_eq!(store.find_app(&row.app).await.unwrap(), None);
    let opened = SqliteStore::open_within(&path, clock(), busy).await.unwrap();
    assert_eq!(opened.list_apps().await.unwrap(), [], "opening takes no write lock");
    writer.execute_batch("COMMIT").unwrap();
    assert!(store.put_app(&row, &entry).await.unwrap());
}

#[tokio::test(start_paused = true)]
async fn an_unreadable_row_is_left_out_of_lists_and_named_without_its_value() {
    let (_dir, path) = file();
    let store = open(&path).await;
    for app in ["wx1", "wx2"] {
        let row = app_row(app, 1);
        assert!(store.put_app(&row, &audit("app.add", app)).await.unwrap());
        let credential = credential_row(&token(&row.app), 1);
        assert!(conformance::put_next(&store, &credential).await.unwrap());
    }
    stranger(&path)
        .execute_batch(
            "UPDATE apps SET kind = 'nonsense' WHERE app = 'wx1'; \
             UPDATE credentials SET hash = x'6e6f6e73656e7365' WHERE app = 'wx1'",
        )
        .unwrap();
    let corrupt = |text: &str| StoreError::Corrupt(text.to_owned());
    let (first, second) = (app_row("wx1", 1).app, app_row("wx2", 1).app);
    let apps: Vec<_> = store.list_apps().await.unwrap().into_iter().map(|row| row.app).collect();
    assert_eq!(apps, std::slice::from_ref(&second));
    let expected = corrupt("table apps, row wx1, column kind");
    assert_eq!(store.find_app(&first).await.unwrap_err(), expected);
    let credentials = store.list_credentials().await.unwrap();
    let credentials: Vec<_> = credentials.into_iter().map(|row| row.id).collect();
    assert_eq!(credentials, [token(&second)]);
    let expected = corrupt("table credentials, row wx1/token, column hash");
    assert_eq!(store.find_credential(&token(&first)).await.unwrap_err(), expected);
}

#[tokio::test(start_paused = true)]
async fn the_change_log_is_trimmed_now_and_then() {
    let (_dir, path) = file();
    let store = open(&path).await;
    let filled = CHANGES_KEPT + CHANGES_TRIMMED_EVERY - 1;
    stranger(&path)
        .execute_batch(&format!(
            "WITH RECURSIVE n(at) AS (SELECT 1 UNION ALL SELECT at + 1 FROM n LIMIT {filled}) \
             INSERT INTO changes (app) SELECT 'wx' || at FROM n"
        ))
        .unwrap();
    let all = store.changes(0).await.unwrap();
    assert_eq!(all.latest, filled);
    assert_eq!(all.entries.unwrap().len() as u64, filled);

    assert!(store.put_app(&app_row("wx0", 1), &audit("app.add", "wx0")).await.unwrap());
    for after in [0, CHANGES_TRIMMED_EVERY - 1] {
        let changes = store.changes(after).await.unwrap();
        assert_eq!(changes, Changes { latest: filled + 1, entries: None });
    }
    let kept = store.changes(CHANGES_TRIMMED_EVERY).await.unwrap().entries.unwrap();
    assert_eq!(kept.len() as u64, CHANGES_KEPT);
    let app = |name: &str| Change::App(name.parse().unwrap());
    assert_eq!((&kept[0], kept.last()), (&app("wx1001"), Some(&app("wx0"))));
}

#[tokio::test(start_paused = true)]
async fn old_rows_of_the_ledger_are_removed() {
    let (_dir, path) = file();
    let store = open(&path).await;
    let apps: [AppId; 2] = ["wx1", "wx2"].map(|name| name.parse().unwrap());
    let budget = Budget { per_day: 5, burst: 5, every: MINUTE };
    for _ in 0..100 {
        for app in &apps {
            store.spend(app, "token", &budget).await.unwrap();
        }
        tokio::time::advance(Duration::from_secs(86_400)).await;
    }
    let sql = "SELECT count(*) FROM ledger";
    let rows: i64 = stranger(&path).query_row(sql, [], |row| row.get(0)).unwrap();
    assert_eq!(rows, 2 * (LEDGER_DAYS + 1));
}

#[tokio::test(start_paused = true)]
async fn old_generations_are_removed() {
    let (_dir, path) = file();
    let store = open(&path).await;
    let (row, entry) = (app_row("wx1", 1), audit("app.add", "wx1"));
    assert!(store.put_app(&row, &entry).await.unwrap());
    for generation in 1..=20 {
        let expires_at = conformance::START + MINUTE * 10 * (generation as u32 + 2);
        let row = CredentialRow { expires_at, ..credential_row(&token(&row.app), generation) };
        assert!(conformance::put_next(&store, &row).await.unwrap());
        tokio::time::advance(MINUTE * 10).await;
    }
    let sql = "SELECT count(*) FROM credential_history";
    let rows: i64 = stranger(&path).query_row(sql, [], |row| row.get(0)).unwrap();
    assert_eq!(rows, 3);
}
