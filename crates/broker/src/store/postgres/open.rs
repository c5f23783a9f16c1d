//! Reaching a database: its URL, its connections, the version of its tables.

use std::{error::Error, fmt, sync::Arc, time::Duration};

use deadpool_postgres::{
    ClientWrapper, Hook, HookError, Manager, ManagerConfig, Object, Pool, PoolError,
    RecyclingMethod, Runtime,
};
use rustls::{
    ClientConfig, RootCertStore,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, pem::PemObject},
};
use tokio::{sync::watch, time::Instant};
use tokio_postgres::config::{Host, SslMode, TargetSessionAttrs};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::{
    PATIENCE, PostgresStore,
    shared::{LOOK_EVERY, Wakes},
};
use crate::store::{StoreError, StoreResult};

/// What leads from each version of the database to the next; the version is in `xinfu_version`.
const MIGRATIONS: [&str; 1] = [include_str!("migrations/0001.sql")];

/// So many connections a process opens at most, beside the one that listens.
const CONNECTIONS: usize = 10;

/// How long reaching the database may take.
const CONNECT: Duration = Duration::from_secs(3);

/// How long to wait for one of the connections, when all are in use.
const WAIT: Duration = Duration::from_secs(4);

/// What the database holds each of our sessions to, in case that we are gone and it does not know:
/// no statement, no wait for a lock and no idle transaction keeps others waiting for long.
const SESSION: &str = "SET statement_timeout = '5s'; SET lock_timeout = '4s'; \
     SET idle_in_transaction_session_timeout = '5s'; SET synchronous_commit = on; \
     SET client_min_messages = warning";

/// What one migration after another is done under.
const MIGRATING: i64 = 8_243_109_876_543_210_003;

/// Where a database is, and how to get in.
#[derive(Clone)]
pub struct PostgresUrl {
    config: tokio_postgres::Config,
    tls: MakeRustlsConnect,
}

/// Why a URL names no database that can be reached. Never holds the URL, which may hold a password.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PostgresUrlError {
    /// It cannot be read. Why is not told: the driver would quote what may be a password.
    #[error(
        "is no URL of PostgreSQL such as `postgres://user:password@host:port/database?sslmode=require`; \
         in a password, what is neither letter nor digit is written as % and two digits"
    )]
    Url,
    /// It names no host or no database.
    #[error("names no {0}")]
    Missing(&'static str),
    /// The certificates are not PEM, or there is none.
    #[error("is to be trusted by certificates that are not PEM with at least one certificate")]
    Certificates,
    /// The cryptography refused.
    #[error("cannot be reached with TLS: {0}")]
    Tls(String),
}

impl PostgresUrl {
    /// Reads `postgres://user:password@host:port/database?sslmode=require`, as libpq understands it,
    /// several hosts and `options` included. Without `sslmode`, a host that is not this machine must
    /// speak TLS, and this machine need not. Whoever speaks TLS must show a certificate for its name, by the authorities in
    /// `ca_pem` or, without, the public ones: `require` is what libpq calls `verify-full`.
    pub fn parse(url: &str, ca_pem: Option<&[u8]>) -> Result<Self, PostgresUrlError> {
        let verified = ["sslmode=verify-full", "sslmode=verify-ca"]
            .iter()
            .fold(url.to_owned(), |url, mode| url.replace(mode, "sslmode=require"));
        let mut config: tokio_postgres::Config =
            verified.parse().map_err(|_| PostgresUrlError::Url)?;
        if config.get_hosts().is_empty() {
            return Err(PostgresUrlError::Missing("host"));
        }
        if config.get_dbname().is_none_or(str::is_empty) {
            return Err(PostgresUrlError::Missing("database"));
        }
        if !url.contains("sslmode=") {
            let here = config.get_hosts().iter().all(is_here);
            config.ssl_mode(if here { SslMode::Disable } else { SslMode::Require });
        }
        if config.get_hosts().len() > 1 && !url.contains("target_session_attrs=") {
            // Of several, one is the primary.
            config.target_session_attrs(TargetSessionAttrs::ReadWrite);
        }
        config
            .application_name("xinfu")
            .connect_timeout(CONNECT)
            .keepalives_idle(Duration::from_secs(10))
            .keepalives_interval(Duration::from_secs(2))
            .keepalives_retries(3)
            .tcp_user_timeout(PATIENCE);
        let mut roots = RootCertStore::empty();
        match ca_pem {
            None => roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned()),
            Some(pem) => {
                for certificate in CertificateDer::pem_slice_iter(pem) {
                    let certificate = certificate.map_err(|_| PostgresUrlError::Certificates)?;
                    roots.add(certificate).map_err(|_| PostgresUrlError::Certificates)?;
                }
                if roots.is_empty() {
                    return Err(PostgresUrlError::Certificates);
                }
            }
        }
        let tls = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|err| PostgresUrlError::Tls(err.to_string()))?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Self { config, tls: MakeRustlsConnect::new(tls) })
    }

    /// Whether passwords and tokens could be read on the way.
    pub fn is_open(&self) -> bool {
        self.config.get_ssl_mode() != SslMode::Require
            && !self.config.get_hosts().iter().all(is_here)
    }

    /// A connection of its own, and what drives it.
    pub(super) async fn connect(
        &self,
    ) -> StoreResult<
        (
            tokio_postgres::Client,
            tokio_postgres::Connection<
                tokio_postgres::Socket,
                <MakeRustlsConnect as tokio_postgres::tls::MakeTlsConnect<
                    tokio_postgres::Socket,
                >>::Stream,
            >,
        ),
    > {
        Ok(self.config.connect(self.tls.clone()).await?)
    }
}

impl fmt::Display for PostgresUrl {
    /// Without user and password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("postgres://")?;
        let ports = self.config.get_ports();
        for (at, host) in self.config.get_hosts().iter().enumerate() {
            if at > 0 {
                f.write_str(",")?;
            }
            match host {
                Host::Tcp(name) => f.write_str(name)?,
                #[cfg(unix)]
                Host::Unix(path) => write!(f, "{}", path.display())?,
            }
            if let Some(port) = ports.get(at).or(ports.first()) {
                write!(f, ":{port}")?;
            }
        }
        write!(f, "/{}", self.config.get_dbname().unwrap_or_default())
    }
}

impl fmt::Debug for PostgresUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PostgresUrl({self})")
    }
}

impl PartialEq for PostgresUrl {
    fn eq(&self, other: &Self) -> bool {
        self.config == other.config
    }
}

impl Eq for PostgresUrl {}

/// Whether a host is this machine.
fn is_here(host: &Host) -> bool {
    match host {
        Host::Tcp(name) => {
            let ip = name.trim_matches(['[', ']']).parse::<std::net::IpAddr>();
            name == "localhost" || ip.is_ok_and(|ip| ip.to_canonical().is_loopback())
        }
        #[cfg(unix)]
        Host::Unix(_) => true,
    }
}

impl PostgresStore {
    /// Opens the store in the database that `url` names, and makes its tables if need be, also when
    /// many processes do so at once. A database that a newer version has written is refused.
    ///
    /// Must be called within a tokio runtime: connections are driven by tasks of their own, which
    /// end with the store.
    pub async fn open(url: &PostgresUrl) -> StoreResult<Self> {
        Self::open_looking(url, LOOK_EVERY).await
    }

    /// Opens the store; a change that nobody tells is noticed within `look_every`.
    pub(super) async fn open_looking(url: &PostgresUrl, look_every: Duration) -> StoreResult<Self> {
        let store = Self::unopened(url, look_every)?;
        store.on(async |db| migrate(db).await).await?;
        Ok(store)
    }

    /// The store before anybody has asked the database for anything.
    pub(super) fn unopened(url: &PostgresUrl, look_every: Duration) -> StoreResult<Self> {
        let wakes = Arc::new(Wakes::of(url.clone(), look_every));
        let away_until = Arc::new(watch::Sender::new(Instant::now()));
        Ok(Self { pool: pool(url)?, wakes, away_until })
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
        .create_timeout(Some(CONNECT))
        .wait_timeout(Some(WAIT))
        .runtime(Runtime::Tokio1)
        .build()
        .map_err(|err| StoreError::Unavailable(with_causes(&err)))
}

/// Brings the tables to the newest version, once, however many processes open the database.
async fn migrate(db: &mut Object) -> StoreResult<()> {
    let transaction = db.transaction().await?;
    transaction.execute("SELECT pg_advisory_xact_lock($1)", &[&MIGRATING]).await?;
    transaction
        .batch_execute("CREATE TABLE IF NOT EXISTS xinfu_version (version BIGINT NOT NULL)")
        .await?;
    let row = transaction.query_opt("SELECT version FROM xinfu_version", &[]).await?;
    let version = row.as_ref().map_or(0, |row| row.get::<_, i64>(0));
    let newest = MIGRATIONS.len() as i64;
    if version > newest {
        return Err(StoreError::Corrupt(format!(
            "the database is of version {version}, and this xinfu knows versions up to {newest}: \
             run a newer xinfu"
        )));
    }
    if version == newest {
        return Ok(());
    }
    let done = usize::try_from(version).unwrap_or(0);
    for migration in MIGRATIONS.iter().skip(done) {
        transaction.batch_execute(migration).await?;
    }
    let sql = match row {
        None => "INSERT INTO xinfu_version (version) VALUES ($1)",
        Some(_) => "UPDATE xinfu_version SET version = $1",
    };
    transaction.execute(sql, &[&newest]).await?;
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
