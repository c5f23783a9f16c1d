//! Where a database is: its URL, what of it is heeded, and how it is reached.

use std::{fmt, sync::Arc, time::Duration};

use rustls::{
    ClientConfig, RootCertStore,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, pem::PemObject},
};
use tokio_postgres::{
    Config,
    config::{Host, SslMode, TargetSessionAttrs},
};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::PATIENCE;
use crate::store::StoreResult;

/// How long reaching the database may take.
const CONNECT: Duration = Duration::from_secs(2);

/// The parameters of a URL that are heeded.
const HEEDED: [&str; 11] = [
    "application_name",
    "channel_binding",
    "dbname",
    "host",
    "load_balance_hosts",
    "options",
    "password",
    "port",
    "sslmode",
    "target_session_attrs",
    "user",
];

/// Those that libpq heeds and we do not: leaving one out unseen might mean less safety than was
/// asked for. No other name is ever quoted, since it may be a part of a password.
const NOT_HEEDED: [&str; 36] = [
    "client_encoding",
    "connect_timeout",
    "fallback_application_name",
    "gssdelegation",
    "gssencmode",
    "gsslib",
    "hostaddr",
    "keepalives",
    "keepalives_count",
    "keepalives_idle",
    "keepalives_interval",
    "keepalives_retries",
    "krbsrvname",
    "max_protocol_version",
    "min_protocol_version",
    "passfile",
    "replication",
    "require_auth",
    "requirepeer",
    "requiressl",
    "scram_client_key",
    "scram_server_key",
    "service",
    "servicefile",
    "ssl_max_protocol_version",
    "ssl_min_protocol_version",
    "sslcert",
    "sslcertmode",
    "sslcompression",
    "sslcrl",
    "sslcrldir",
    "sslkey",
    "sslnegotiation",
    "sslpassword",
    "sslrootcert",
    "sslsni",
];

/// Where a database is, and how to get in.
#[derive(Clone)]
pub struct PostgresUrl {
    pub(super) config: Config,
    pub(super) tls: MakeRustlsConnect,
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
    /// It has a parameter of libpq that means nothing here.
    #[error("has the parameter `{0}`, which is not heeded here; these are: `{heeded}`", heeded = HEEDED.join("`, `"))]
    NotHeeded(&'static str),
    /// It has a parameter that nobody knows.
    #[error("has a parameter that is unknown; these are known: `{heeded}`", heeded = HEEDED.join("`, `"))]
    Unknown,
    /// A parameter has a value that means nothing.
    #[error("has a value of `{0}` that means nothing here")]
    Value(&'static str),
    /// It says in an unknown way whether to speak TLS.
    #[error(
        "has an `sslmode` that is none of `disable`, `prefer`, `require`, `verify-ca` and `verify-full`"
    )]
    SslMode,
    /// The certificates are not PEM, or there is none.
    #[error("is to be trusted by certificates that are not PEM with at least one certificate")]
    Certificates,
    /// The cryptography refused.
    #[error("cannot be reached with TLS: {0}")]
    Tls(String),
}

/// What the part of a URL after the question mark says.
struct Query<'u> {
    /// Name and value as they stand there, but for `sslmode`.
    pairs: Vec<(&'static str, &'u str)>,
    ssl_mode: Option<SslMode>,
}

impl<'u> Query<'u> {
    fn parse(text: &'u str) -> Result<Self, PostgresUrlError> {
        let mut query = Self { pairs: Vec::new(), ssl_mode: None };
        for pair in text.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').ok_or(PostgresUrlError::Url)?;
            let Some(name) = HEEDED.into_iter().find(|heeded| *heeded == name) else {
                let known = NOT_HEEDED.into_iter().find(|known| *known == name);
                return Err(known.map_or(PostgresUrlError::Unknown, PostgresUrlError::NotHeeded));
            };
            if name != "sslmode" {
                query.pairs.push((name, value));
                continue;
            }
            query.ssl_mode = Some(match value {
                "disable" => SslMode::Disable,
                "prefer" => SslMode::Prefer,
                // Whoever speaks TLS with us is verified in full.
                "require" | "verify-ca" | "verify-full" => SslMode::Require,
                _ => return Err(PostgresUrlError::SslMode),
            });
        }
        Ok(query)
    }

    fn says(&self, name: &str) -> bool {
        self.pairs.iter().any(|(said, _)| *said == name)
    }

    /// The same as the driver reads it. `before` is the URL up to the question mark.
    fn config(&self, before: &str) -> Result<Config, PostgresUrlError> {
        let pairs: Vec<_> =
            self.pairs.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let read = |before: &str, query: &str| format!("{before}?{query}").parse::<Config>();
        read(before, &pairs.join("&")).map_err(|_| {
            let refused = |pair: &String| read("postgres://host/database", pair).is_err();
            let culprit = pairs.iter().position(refused);
            culprit.map_or(PostgresUrlError::Url, |at| PostgresUrlError::Value(self.pairs[at].0))
        })
    }
}

impl PostgresUrl {
    /// Reads `postgres://user:password@host:port/database?sslmode=require`, as libpq understands it,
    /// several hosts and `options` included; what of it is not heeded is refused. Without `sslmode`,
    /// a host that is not this machine must speak TLS, and this machine need not. Whoever speaks TLS
    /// must show a certificate for its name, by the authorities in `ca_pem` or, without, the public
    /// ones: `require` is what libpq calls `verify-full`.
    pub fn parse(url: &str, ca_pem: Option<&[u8]>) -> Result<Self, PostgresUrlError> {
        let rest = url.strip_prefix("postgres://").or_else(|| url.strip_prefix("postgresql://"));
        let rest = rest.ok_or(PostgresUrlError::Url)?;
        let (who, place) = rest.split_once('@').unwrap_or(("", rest));
        // Readers of such a URL do not agree where it ends, and one would show what another takes for
        // a part of the password.
        if who.contains(['/', '?', '#']) || place.contains('@') {
            return Err(PostgresUrlError::Url);
        }
        let (before, query) = match place.split_once('?') {
            Some((_, query)) => (&url[..url.len() - query.len() - 1], query),
            None => (url, ""),
        };
        let query = Query::parse(query)?;
        let mut config = query.config(before)?;
        let (hosts, ports) = (config.get_hosts().len(), config.get_ports().len());
        if hosts == 0 {
            return Err(PostgresUrlError::Missing("host"));
        }
        if config.get_dbname().is_none_or(str::is_empty) {
            return Err(PostgresUrlError::Missing("database"));
        }
        if ports > 1 && ports != hosts {
            return Err(PostgresUrlError::Value("port"));
        }
        let here = config.get_hosts().iter().all(is_here);
        let by_place = if here { SslMode::Disable } else { SslMode::Require };
        config.ssl_mode(query.ssl_mode.unwrap_or(by_place));
        if hosts > 1 && !query.says("target_session_attrs") {
            // Of several, one is the primary.
            config.target_session_attrs(TargetSessionAttrs::ReadWrite);
        }
        if !query.says("application_name") {
            config.application_name("xinfu");
        }
        config
            .connect_timeout(CONNECT)
            .keepalives_idle(Duration::from_secs(10))
            .keepalives_interval(Duration::from_secs(2))
            .keepalives_retries(3)
            .tcp_user_timeout(PATIENCE);
        Ok(Self { config, tls: tls(ca_pem)? })
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

/// How to speak TLS with whom the authorities in `ca_pem` or, without, the public ones vouch for.
fn tls(ca_pem: Option<&[u8]>) -> Result<MakeRustlsConnect, PostgresUrlError> {
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
    Ok(MakeRustlsConnect::new(tls))
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
