//! The configuration as meant.

use std::{
    collections::BTreeSet,
    fmt, io,
    net::{IpAddr, SocketAddr},
    num::NonZeroU32,
    path::{Component, PathBuf},
    time::Duration,
};

use ::http::Uri;
use broker::{
    Bounds,
    seal::Sealer,
    store::{PostgresUrl, PostgresUrlError, RedisUrl},
};
use clock::Clock;
use wechat::Resolver;

use super::{
    ConfigError,
    file::{STORE, Typed},
    log, secret_file, span,
};
use crate::{
    http::{Limits, Tls, TlsError},
    intercept::{Authority, InterceptError},
};

/// What xinfu is told to do.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where state is kept.
    pub store: StorePlace,
    /// Where what replicas only share is kept.
    pub shared: SharedPlace,
    /// The listener for services.
    pub api: Listener,
    /// The listener for operators, if there is one.
    pub admin: Option<Listener>,
    /// The listener in WeChat's place, where there is one.
    pub intercept: Option<Intercept>,
    /// The way to WeChat.
    pub upstream: wechat::Config,
    /// The file that holds the proxy with its password.
    pub proxy_file: Option<PathBuf>,
    /// The file that holds the store's URL.
    pub store_file: Option<PathBuf>,
    /// The file that holds the URL of what is shared.
    pub shared_file: Option<PathBuf>,
    /// The master keys; at least one.
    pub master_keys: Vec<MasterKeyFile>,
    /// The id of the one to seal with, which is among them.
    pub seal_with: String,
    /// What a client may take of the server.
    pub limits: Limits,
    /// How callers are treated.
    pub bounds: Bounds,
    /// How logs are written.
    pub log_format: LogFormat,
    /// What is logged, as directives.
    pub log_level: String,
}

/// Where state is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StorePlace {
    /// In a SQLite file.
    Sqlite(PathBuf),
    /// In a database of PostgreSQL.
    Postgres(Box<PostgresUrl>),
}

impl fmt::Display for StorePlace {
    /// Without any password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sqlite(path) => write!(f, "{}", path.display()),
            Self::Postgres(url) => write!(f, "{url}"),
        }
    }
}

/// Where what replicas only share is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SharedPlace {
    /// With everything else.
    Store,
    /// In another database of PostgreSQL.
    Postgres(Box<PostgresUrl>),
    /// In Redis.
    Redis(Box<RedisUrl>),
}

/// Where to listen, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listener {
    /// Address and port.
    pub address: SocketAddr,
    /// Certificate and key, when it speaks TLS.
    pub tls: Option<TlsFiles>,
}

/// Where to stand in WeChat's place, and on whose authority.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Intercept {
    /// Address and port.
    pub address: SocketAddr,
    /// The folder of the local authority.
    pub authority: PathBuf,
}

/// The two files of a listener that speaks TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// The certificate chain.
    pub cert: PathBuf,
    /// The private key.
    pub key: PathBuf,
}

/// A master key and where it lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MasterKeyFile {
    /// The name that sealed values know it by.
    pub id: String,
    /// The file that holds it.
    pub file: PathBuf,
}

/// How logs are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Human,
    /// One JSON object a line.
    Json,
}

impl Settings {
    /// Resolves what was typed.
    pub fn of(typed: &Typed) -> Result<Self, ConfigError> {
        let (master_keys, seal_with) = master_keys(typed)?;
        let store = store(typed)?;
        Ok(Self {
            shared: shared(typed, &store)?,
            store,
            api: api_listener(typed)?,
            admin: admin_listener(typed)?,
            intercept: intercept(typed)?,
            upstream: upstream(typed)?,
            proxy_file: typed.raw.upstream.proxy_file.as_ref().map(|file| typed.path(file)),
            store_file: typed.raw.store_file.as_ref().map(|file| typed.path(file)),
            shared_file: typed.raw.shared_file.as_ref().map(|file| typed.path(file)),
            master_keys,
            seal_with,
            limits: limits(typed)?,
            bounds: bounds(typed)?,
            log_format: log_format(typed)?,
            log_level: log_level(typed)?,
        })
    }

    /// Reads the master key files.
    pub fn sealer(&self) -> Result<Sealer, ConfigError> {
        let read = |key: &MasterKeyFile| {
            Ok((key.id.clone(), secret_file::read_master_key(&key.id, &key.file)?))
        };
        let keys = self.master_keys.iter().map(read).collect::<Result<Vec<_>, ConfigError>>()?;
        Sealer::new(keys, &self.seal_with).map_err(|err| ConfigError::new(err.to_string()))
    }

    /// Reads the certificate and the key of the listener for services, when it speaks TLS.
    pub fn tls(&self) -> Result<Option<Tls>, ConfigError> {
        self.api.tls("api")
    }

    /// Reads the local authority, where there is a listener in WeChat's place.
    pub fn authority(&self) -> Result<Option<Authority>, ConfigError> {
        let Some(Intercept { authority: folder, .. }) = &self.intercept else { return Ok(None) };
        let problem = |err: InterceptError| {
            let hint = match &err {
                InterceptError::Open { path, .. } => format!(
                    "`chmod 600 {}` closes it; if others may have read it, make a new authority",
                    path.display()
                ),
                InterceptError::Read { source, .. } if source.kind() != io::ErrorKind::NotFound => {
                    "the user that xinfu runs as must be able to read it".to_owned()
                }
                _ => format!("`xinfu intercept init --dir {}` makes one", folder.display()),
            };
            ConfigError::new(format!("`listen.intercept_ca` cannot be used: {err}")).hint(hint)
        };
        let authority = Authority::load(folder).map_err(problem)?;
        // What it signs is worth something to those who trust it.
        authority.issue(Clock::real().now()).map_err(problem)?;
        Ok(Some(authority))
    }

    /// Where secrets are open to others, on the way or in a file: what is so, and what to do.
    pub fn in_the_clear(&self) -> Vec<(String, &'static str)> {
        let mut found = Vec::new();
        if let Some(warning) = self.proxy_file.as_deref().and_then(secret_file::open_to_everybody) {
            found.push((warning, "`chmod 600` closes it to other users"));
        }
        for file in [self.store_file.as_deref(), self.shared_file.as_deref()].into_iter().flatten()
        {
            if let Some(warning) = secret_file::open_to_everybody(file) {
                found.push((warning, "`chmod 600` closes it to other users"));
            }
        }
        if let StorePlace::Postgres(url) = &self.store
            && url.is_open()
        {
            let what = format!(
                "`store` is `{url}`, and need not speak TLS: tokens can be read on the way"
            );
            found.push((what, "set `sslmode=require`"));
        }
        let shared = match &self.shared {
            SharedPlace::Postgres(url) if url.is_open() => {
                Some((url.to_string(), "set `sslmode=require`"))
            }
            SharedPlace::Redis(url) if url.is_open() => Some((url.to_string(), "use `rediss`")),
            _ => None,
        };
        if let Some((url, remedy)) = shared {
            let what = format!(
                "`shared` is `{url}`, and need not speak TLS: its password can be read on the way"
            );
            found.push((what, remedy));
        }
        let address = self.api.address;
        if self.api.tls.is_none() && !address.ip().to_canonical().is_loopback() {
            found.push((
                format!("`listen.api` is `{address}` without TLS: keys and tokens can be read on the way"),
                "set `listen.api_tls_cert` and `listen.api_tls_key`, or put TLS in front of it",
            ));
        }
        if let Some(url) = self.upstream.hosts.iter().find(|url| is_open(url)) {
            let host = url.host().unwrap_or_default();
            found.push((
                format!(
                    "`upstream.base_urls` calls `{host}` without TLS: AppSecrets can be read on the way"
                ),
                "use `https://`",
            ));
        }
        found
    }
}

impl Listener {
    /// Reads the certificate and the key, when it speaks TLS. `name` is its key in `listen`.
    pub fn tls(&self, name: &str) -> Result<Option<Tls>, ConfigError> {
        let Some(TlsFiles { cert, key }) = &self.tls else { return Ok(None) };
        let problem = |err: TlsError| {
            let file = match &err {
                TlsError::Read { path, .. } | TlsError::Pem { path, .. } if path == key => "key",
                _ => "cert",
            };
            ConfigError::new(format!("`listen.{name}_tls_{file}` cannot be used: {err}"))
        };
        Tls::from_files(cert, key).map(Some).map_err(problem)
    }
}

/// What the file says that the second key names, or the value of the first, with the name of the key
/// that said it. There is one at most.
fn url_of<'t>(
    typed: &Typed,
    (key, file_key): (&'t str, &'t str),
    url: Option<&String>,
    file: Option<&String>,
) -> Result<Option<(&'t str, String)>, ConfigError> {
    let Some(file) = file else { return Ok(url.map(|url| (key, url.clone()))) };
    if url.is_some() {
        return Err(typed.problem(key, format!("and `{file_key}` exclude each other")));
    }
    let problem = |err| typed.problem(file_key, format!("cannot be used: {err}"));
    let read = secret_file::read_secret(&typed.path(file)).map_err(problem)?;
    Ok(Some((file_key, read)))
}

/// The certificates in the file that a key names.
fn ca_of(typed: &Typed, key: &str, file: &Option<String>) -> Result<Option<Vec<u8>>, ConfigError> {
    let Some(file) = file else { return Ok(None) };
    let path = typed.path(file);
    let problem = |err| format!("cannot be read from `{}`: {err}", path.display());
    std::fs::read(&path).map(Some).map_err(|err| typed.problem(key, problem(err)))
}

/// The place of a store, by the key that says it and the one that names the certificates to trust
/// there. The text is not quoted: a URL may hold a password.
fn store_place(
    typed: &Typed,
    (key, text): (&str, &str),
    (ca_key, ca_file): (&str, &Option<String>),
) -> Result<StorePlace, ConfigError> {
    match text.split_once(':') {
        Some(("sqlite", path)) if !path.is_empty() => {
            if ca_file.is_some() {
                return Err(typed.problem(ca_key, "means something only for PostgreSQL"));
            }
            let path = match path.strip_prefix("//") {
                None => path,
                Some(absolute) if absolute.starts_with('/') => absolute,
                Some(_) => {
                    return Err(typed
                        .problem(key, "is a URL with a host, which a file has not")
                        .hint(
                            "write `sqlite:xinfu.db`, or `sqlite:/abs/path` with the whole path",
                        ));
                }
            };
            let path = typed.path(path);
            let parts = path.components().filter(|part| *part != Component::CurDir);
            Ok(StorePlace::Sqlite(parts.collect()))
        }
        Some(("postgres" | "postgresql", _)) => {
            let problem = |err: PostgresUrlError| match err {
                PostgresUrlError::Certificates => typed.problem(ca_key, err.to_string()),
                PostgresUrlError::NotHeeded("sslrootcert") => typed
                    .problem(key, err.to_string())
                    .hint(format!("`{ca_key}` names the certificates to trust")),
                _ => typed.problem(key, err.to_string()),
            };
            let ca = ca_of(typed, ca_key, ca_file)?;
            let url = PostgresUrl::parse(text, ca.as_deref()).map_err(problem)?;
            Ok(StorePlace::Postgres(Box::new(url)))
        }
        _ => Err(typed
            .problem(key, "is no place that is known")
            .hint("write `sqlite:xinfu.db`, or `postgres://user:password@host/database`")),
    }
}

fn store(typed: &Typed) -> Result<StorePlace, ConfigError> {
    let raw = &typed.raw;
    let said = Some(&raw.store).filter(|store| *store != STORE);
    let named = url_of(typed, ("store", "store_file"), said, raw.store_file.as_ref())?;
    let (key, text) = named.unwrap_or(("store", STORE.to_owned()));
    store_place(typed, (key, &text), ("store_ca_file", &raw.store_ca_file))
}

fn shared(typed: &Typed, store: &StorePlace) -> Result<SharedPlace, ConfigError> {
    let raw = &typed.raw;
    let named =
        url_of(typed, ("shared", "shared_file"), raw.shared.as_ref(), raw.shared_file.as_ref())?;
    let ca_file = ("shared_ca_file", &raw.shared_ca_file);
    let Some((key, text)) = named else {
        return match ca_file.1 {
            Some(_) => Err(typed.problem(ca_file.0, "means nothing without `shared`")),
            None => Ok(SharedPlace::Store),
        };
    };
    if text.starts_with("redis") {
        let ca = ca_of(typed, ca_file.0, ca_file.1)?;
        return RedisUrl::parse(&text, ca.as_deref())
            .map(|url| SharedPlace::Redis(Box::new(url)))
            .map_err(|err| typed.problem(key, err.to_string()));
    }
    match store_place(typed, (key, &text), ca_file)? {
        same if same == *store => Ok(SharedPlace::Store),
        StorePlace::Postgres(url) => Ok(SharedPlace::Postgres(url)),
        StorePlace::Sqlite(_) => Err(typed
            .problem(key, "is another file than that of `store`")
            .hint("leave it out to share by the store, or write `rediss://:password@host`")),
    }
}

fn api_listener(typed: &Typed) -> Result<Listener, ConfigError> {
    let raw = &typed.raw.listen;
    listener(typed, "api", &raw.api, (&raw.api_tls_cert, &raw.api_tls_key))
}

fn admin_listener(typed: &Typed) -> Result<Option<Listener>, ConfigError> {
    let raw = &typed.raw.listen;
    if raw.admin == "off" {
        return Ok(None);
    }
    listener(typed, "admin", &raw.admin, (&raw.admin_tls_cert, &raw.admin_tls_key)).map(Some)
}

/// A listener by its name, its address, and the files of its certificate and key.
fn listener(
    typed: &Typed,
    name: &str,
    address: &str,
    files: (&Option<String>, &Option<String>),
) -> Result<Listener, ConfigError> {
    let key = format!("listen.{name}");
    let address = address.parse().map_err(|_| {
        let expected = "an address and a port, such as `127.0.0.1:7080` or `[::]:7080`";
        typed.problem(&key, format!("is `{address}`; {expected} is expected"))
    })?;
    let tls = match files {
        (None, None) => None,
        (Some(cert), Some(key)) => Some(TlsFiles { cert: typed.path(cert), key: typed.path(key) }),
        (Some(_), None) => {
            let problem = format!("needs `{key}_tls_key` too");
            return Err(typed.problem(&format!("{key}_tls_cert"), problem));
        }
        (None, Some(_)) => {
            let problem = format!("needs `{key}_tls_cert` too");
            return Err(typed.problem(&format!("{key}_tls_key"), problem));
        }
    };
    Ok(Listener { address, tls })
}

fn intercept(typed: &Typed) -> Result<Option<Intercept>, ConfigError> {
    let raw = &typed.raw.listen;
    let Some(text) = &raw.intercept else { return Ok(None) };
    let address = text.parse().map_err(|_| {
        let expected = "an address and a port, such as `127.0.0.1:443`";
        typed.problem("listen.intercept", format!("is `{text}`; {expected} is expected"))
    })?;
    Ok(Some(Intercept { address, authority: typed.path(&raw.intercept_ca) }))
}

fn resolver(typed: &Typed) -> Result<Resolver, ConfigError> {
    /// The port of name servers.
    const DNS: u16 = 53;
    let raw = &typed.raw.upstream;
    let intercepts = typed.raw.listen.intercept.is_some();
    let by_dns = match raw.resolver.as_deref() {
        None => intercepts,
        Some("dns") => true,
        Some("system") if intercepts => {
            let problem = "is `system` while `listen.intercept` is set: the hosts file would lead \
                           calls to WeChat back here";
            return Err(typed.problem("upstream.resolver", problem).hint("let it be `dns`"));
        }
        Some("system") => false,
        Some(other) => {
            let problem = format!("is `{other}`; `system` or `dns` is allowed");
            return Err(typed.problem("upstream.resolver", problem));
        }
    };
    if !by_dns && !raw.dns_servers.is_empty() {
        let problem = "means something only where `upstream.resolver` is `dns`";
        return Err(typed.problem("upstream.dns_servers", problem));
    }
    let server = |text: &String| {
        let parsed = text.parse().or_else(|_| text.parse().map(|ip| SocketAddr::new(ip, DNS)));
        parsed.map_err(|_| {
            let problem = format!("holds `{text}`; `address` or `address:port` is expected");
            typed.problem("upstream.dns_servers", problem)
        })
    };
    let servers = raw.dns_servers.iter().map(server).collect::<Result<_, _>>()?;
    Ok(if by_dns { Resolver::Dns { servers } } else { Resolver::System })
}

fn upstream(typed: &Typed) -> Result<wechat::Config, ConfigError> {
    /// A call must end well before the lease under which it is made.
    const CALL: Duration = Duration::from_secs(30);
    let raw = &typed.raw.upstream;
    let hosts = raw.base_urls.iter().map(|url| {
        url.parse::<Uri>().map_err(|_| typed.problem("upstream.base_urls", "holds what is no URL"))
    });
    let hosts = hosts.collect::<Result<Vec<_>, _>>()?;
    let pages = raw
        .pages_url
        .parse::<Uri>()
        .map_err(|_| typed.problem("upstream.pages_url", "is no URL"))?;
    let ca_pem = match &raw.ca_file {
        None => None,
        Some(file) => {
            let path = typed.path(file);
            let problem = |err| format!("cannot be read from `{}`: {err}", path.display());
            let pem = std::fs::read(&path)
                .map_err(|err| typed.problem("upstream.ca_file", problem(err)))?;
            Some(pem)
        }
    };
    let (proxy_key, proxy) = match (&raw.proxy, &raw.proxy_file) {
        (Some(_), Some(_)) => {
            return Err(
                typed.problem("upstream.proxy", "and `upstream.proxy_file` exclude each other")
            );
        }
        (Some(proxy), None) => ("upstream.proxy", Some(proxy.clone())),
        (None, Some(file)) => {
            let read = secret_file::read_secret(&typed.path(file)).map_err(|err| {
                typed.problem("upstream.proxy_file", format!("cannot be used: {err}"))
            });
            ("upstream.proxy_file", Some(read?))
        }
        (None, None) => ("upstream.proxy", None),
    };
    let proxy = proxy.map(|url| {
        let url = url.parse::<Uri>().ok().filter(|url| url.scheme_str() == Some("http"));
        let expected = "is no URL such as `http://[user:password@]host:port`";
        url.ok_or_else(|| typed.problem(proxy_key, expected))
    });
    let proxy = proxy.transpose()?;
    let connect_timeout = span(typed, "upstream.connect_timeout", &raw.connect_timeout, CALL)?;
    let call_timeout = span(typed, "upstream.call_timeout", &raw.call_timeout, CALL)?;
    if connect_timeout > call_timeout {
        let problem = format!(
            "is `{}`, longer than `upstream.call_timeout`, `{}`, of which it is a part",
            raw.connect_timeout, raw.call_timeout
        );
        return Err(typed.problem("upstream.connect_timeout", problem));
    }
    let resolver = resolver(typed)?;
    let config =
        wechat::Config { hosts, pages, ca_pem, proxy, resolver, connect_timeout, call_timeout };
    // What is wrong with the rest is known to the client alone; building one makes no connection.
    wechat::Client::new(config.clone()).map_err(|err| {
        let key = match err {
            wechat::ConfigError::Certificates => "upstream.ca_file",
            wechat::ConfigError::Pages => "upstream.pages_url",
            wechat::ConfigError::Proxy => proxy_key,
            wechat::ConfigError::Resolver(_) => "upstream.resolver",
            wechat::ConfigError::Timeout => "upstream.call_timeout",
            _ => "upstream.base_urls",
        };
        typed.problem(key, format!("cannot be used: {err}"))
    })?;
    Ok(config)
}

/// Whether calls to a URL can be read outside of this machine.
fn is_open(url: &Uri) -> bool {
    let host = url.host().unwrap_or_default().trim_matches(['[', ']']);
    let here = host == "localhost"
        || host.parse::<IpAddr>().is_ok_and(|ip| ip.to_canonical().is_loopback());
    url.scheme_str() == Some("http") && !here
}

fn limits(typed: &Typed) -> Result<Limits, ConfigError> {
    /// The longest span that makes sense here.
    const LONGEST: Duration = Duration::from_secs(600);
    let raw = &typed.raw.limits;
    let number = |key: &str, value: u64, least: u64, most: u64| {
        if (least..=most).contains(&value) {
            return Ok(usize::try_from(value).unwrap_or(usize::MAX));
        }
        Err(typed.problem(key, format!("is {value}; {least} to {most} is allowed")))
    };
    let time = |key: &str, text: &str| span(typed, key, text, LONGEST);
    Ok(Limits {
        body: number("limits.body", raw.body, 1, 1 << 30)?,
        header_bytes: number("limits.header_bytes", raw.header_bytes, 8 * 1024, 1 << 20)?,
        header_count: number("limits.header_count", raw.header_count, 10, 1_000)?,
        header_read_timeout: time("limits.header_read_timeout", &raw.header_read_timeout)?,
        request_timeout: time("limits.request_timeout", &raw.request_timeout)?,
        write_timeout: time("limits.write_timeout", &raw.write_timeout)?,
        connections: number("limits.connections", raw.connections, 1, 1 << 20)?,
        drain: match span::parse(&raw.drain) {
            Some(Duration::ZERO) => Duration::ZERO,
            _ => time("limits.drain", &raw.drain)?,
        },
        grace: time("limits.grace", &raw.grace)?,
        batch: number("limits.batch", raw.batch, 1, 1_000_000)?,
        call_body: number("limits.call_body", raw.call_body, 1, 1 << 40)?,
        kept_body: number("limits.kept_body", raw.kept_body, 0, 1 << 30)?,
        kept_bodies: number("limits.kept_bodies", raw.kept_bodies, 0, 1 << 40)?,
        call_patience: time("limits.call_patience", &raw.call_patience)?,
    })
}

fn bounds(typed: &Typed) -> Result<Bounds, ConfigError> {
    const DAY: Duration = Duration::from_secs(86_400);
    let raw = &typed.raw.limits;
    /// A server that has nothing to do looks at its store every half a minute.
    const LEAST: Duration = Duration::from_secs(60);
    let stale_keys_max = span(typed, "limits.stale_keys_max", &raw.stale_keys_max, DAY)?;
    if stale_keys_max < LEAST {
        let problem = format!("is `{}`; at least `60s` is allowed", raw.stale_keys_max);
        return Err(typed.problem("limits.stale_keys_max", problem));
    }
    Ok(Bounds {
        stale_keys_max,
        key_calls_per_minute: NonZeroU32::new(raw.key_calls_per_minute),
        app_calls_per_minute: NonZeroU32::new(raw.app_calls_per_minute),
    })
}

fn span(typed: &Typed, key: &str, text: &str, longest: Duration) -> Result<Duration, ConfigError> {
    let problem = |what: String| typed.problem(key, format!("is `{text}`; {what}"));
    let span =
        span::parse(text).ok_or_else(|| problem(format!("{} is expected", span::EXPECTED)))?;
    if span.is_zero() || span > longest {
        let longest = span::words(longest);
        return Err(problem(format!("more than 0 and at most {longest} is allowed")));
    }
    Ok(span)
}

fn master_keys(typed: &Typed) -> Result<(Vec<MasterKeyFile>, String), ConfigError> {
    let raw = &typed.raw;
    let mut seen = BTreeSet::new();
    for key in &raw.master_keys {
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        if key.id.is_empty() || key.id.len() > 64 || !key.id.chars().all(plain) {
            let problem = "holds an id that has not 1 to 64 characters of A-Z a-z 0-9 _ -";
            return Err(typed.problem("master_keys", problem));
        }
        if !seen.insert(key.id.as_str()) {
            let problem = format!("holds the id `{}` twice", key.id);
            return Err(typed.problem("master_keys", problem));
        }
    }
    let seal_with = match (&raw.seal_with, raw.master_keys.as_slice()) {
        (_, []) => {
            return Err(typed
                .problem("master_keys", "is empty, and secrets are never stored open")
                .hint("`xinfu init` makes a master key"));
        }
        (Some(id), _) if seen.contains(id.as_str()) => id.clone(),
        (Some(id), _) => {
            let problem = format!("is `{id}`, and no master key has that id");
            return Err(typed.problem("seal_with", problem));
        }
        (None, [only]) => only.id.clone(),
        (None, _) => {
            let problem = "is needed when there are several master keys";
            return Err(typed.problem("seal_with", problem));
        }
    };
    let place = |key: &super::file::RawMasterKey| MasterKeyFile {
        id: key.id.clone(),
        file: typed.path(&key.file),
    };
    Ok((raw.master_keys.iter().map(place).collect(), seal_with))
}

fn log_format(typed: &Typed) -> Result<LogFormat, ConfigError> {
    match typed.raw.log.format.as_str() {
        "human" => Ok(LogFormat::Human),
        "json" => Ok(LogFormat::Json),
        other => {
            Err(typed.problem("log.format", format!("is `{other}`; `human` or `json` is allowed")))
        }
    }
}

fn log_level(typed: &Typed) -> Result<String, ConfigError> {
    let level = &typed.raw.log.level;
    let problem = || typed.problem("log.level", format!("is `{level}`; {}", log::EXPECTED));
    log::directives(level).ok_or_else(problem)
}
