//! Opening a database file: its mode, its settings, its version.

use std::{fs::OpenOptions, io, path::Path, time::Duration};

use rusqlite::{Connection, ErrorCode, OpenFlags, TransactionBehavior};

use crate::store::{StoreError, StoreResult, Tables};

/// What leads from each version of the database to the next; the version is `user_version`.
const MIGRATIONS: [&str; 3] = [
    include_str!("../migrations/0001.sql"),
    include_str!("../migrations/0002.sql"),
    include_str!("../migrations/0003.sql"),
];

/// As many statements as the store has, and some.
const CACHED_STATEMENTS: usize = 128;

/// Opens the connection that reads and writes; makes the file and its tables if need be.
pub(super) fn open_main(path: &Path, busy: Duration) -> StoreResult<Connection> {
    create(path)?;
    let mut connection = connect(path, busy)?;
    use_wal(&connection)?;
    keep_what_is_committed(&connection)?;
    // The tables refer to each other, and SQLite checks that for those who ask for it only.
    connection.pragma_update(None, "foreign_keys", true)?;
    migrate(&mut connection, path)?;
    Ok(connection)
}

/// A commit has come to the disk when it returns, so that what was acknowledged survives a loss of
/// power, not only the end of the process.
///
/// With the write-ahead log `FULL` is what syncs that log at each commit, and its directory when the
/// file is new; `NORMAL` would sync it at checkpoints alone and could lose the last commits. That a
/// disk keeps what it says to have synced is beyond us, and what was not synced cannot be taken away
/// in a test without a file system of our own: the tests hold the settings.
fn keep_what_is_committed(connection: &Connection) -> StoreResult<()> {
    connection.pragma_update(None, "synchronous", "FULL")?;
    // On macOS a plain sync leaves data in the cache of the drive. Elsewhere this changes nothing.
    connection.pragma_update(None, "fullfsync", true)?;
    Ok(())
}

/// Opens the connection that notices what others write.
pub(super) fn open_watching(path: &Path, busy: Duration) -> StoreResult<Connection> {
    let connection = connect(path, busy)?;
    // It never takes the write lock from those who write.
    connection.pragma_update(None, "query_only", true)?;
    Ok(connection)
}

/// Makes the file for our eyes only; SQLite gives the files beside it the same mode.
fn create(path: &Path) -> StoreResult<()> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    match options.open(path) {
        Ok(_) => Ok(()),
        Err(err) if err.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(err) => {
            Err(StoreError::Unavailable(format!("cannot create {}: {err}", path.display())))
        }
    }
}

fn connect(path: &Path, busy: Duration) -> StoreResult<Connection> {
    // Without the flag for URIs, so that no path is anything but a path.
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    // One process writes at a time; the others wait for their turn instead of failing.
    connection.busy_timeout(busy)?;
    connection.set_prepared_statement_cache_capacity(CACHED_STATEMENTS);
    Ok(connection)
}

/// Switches to the write-ahead log, which the file remembers: who reads waits for nobody who writes,
/// also in another process.
fn use_wal(connection: &Connection) -> StoreResult<()> {
    /// So many processes may come in between while the file is new.
    const ATTEMPTS: usize = 100;
    for _ in 0..ATTEMPTS {
        match connection.pragma_update(None, "journal_mode", "WAL") {
            // The switch does not always wait for others; a transaction does.
            Err(err) if err.sqlite_error_code() == Some(ErrorCode::DatabaseBusy) => {
                connection.execute_batch("BEGIN EXCLUSIVE; COMMIT")?;
            }
            result => return Ok(result?),
        }
    }
    Err(StoreError::Unavailable("the database is in use by too many others".to_owned()))
}

/// What tables there are, and how many migrations have led to them.
pub(super) fn tables(connection: &Connection, path: &Path) -> StoreResult<(Tables, usize)> {
    // One statement, which sees both as they are at one moment.
    let sql = "SELECT user_version, (SELECT count(*) FROM sqlite_schema) FROM pragma_user_version";
    let (version, count): (i64, i64) =
        connection.query_row(sql, [], |row| Ok((row.get(0)?, row.get(1)?)))?;
    let tables = Tables::of(&path.display(), version, MIGRATIONS.len() as i64)?;
    let strange = tables == Tables::None && count > 0;
    match usize::try_from(version) {
        Ok(done) if !strange => Ok((tables, done)),
        _ => {
            let what = format!("{} is a database of something else", path.display());
            Err(StoreError::Corrupt(what))
        }
    }
}

/// Brings the tables to the newest version, once, however many processes open the file.
fn migrate(connection: &mut Connection, path: &Path) -> StoreResult<()> {
    if tables(connection, path)?.0 == Tables::Current {
        return Ok(());
    }
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    // Another process may have come first.
    let (_, done) = tables(&transaction, path)?;
    for migration in MIGRATIONS.iter().skip(done) {
        transaction.execute_batch(migration)?;
    }
    transaction.pragma_update(None, "user_version", MIGRATIONS.len() as i64)?;
    Ok(transaction.commit()?)
}
