//! The configuration as typed: what `xinfu.toml` and the environment say, and the table of keys
//! that the reference and the commented file are made from.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use super::{
    Complaint, ConfigError, Environment, complaint,
    env::{MASTER_KEYS, variable_of},
};

/// A key of the configuration, as the reference describes it.
#[derive(Clone, Debug)]
pub struct Key {
    /// Its section; empty at the top.
    pub section: &'static str,
    /// Its name in the section.
    pub key: &'static str,
    /// What it means.
    pub doc: &'static str,
    /// A value to show where there is no default.
    pub example: &'static str,
}

impl Key {
    /// Section and name: `listen.api`.
    pub fn name(&self) -> String {
        if self.section.is_empty() {
            self.key.to_owned()
        } else {
            format!("{}.{}", self.section, self.key)
        }
    }
}

/// Makes the structs and the table of keys from one description, so that they cannot differ.
macro_rules! configuration {
    (
        top { $($(#[doc = $top_doc:literal])+ $top:ident: $top_type:ty = $top_default:expr, $top_example:literal;)+ }
        $($(#[doc = $about:literal])+ $path:ident: $section:ident {
            $($(#[doc = $doc:literal])+ $key:ident: $type:ty = $default:expr, $example:literal;)+
        })+
    ) => {
        /// The whole configuration as typed, defaults filled in.
        #[derive(Clone, Deserialize, Serialize)]
        #[serde(deny_unknown_fields, default)]
        pub struct RawConfig {
            $($(#[doc = $top_doc])+ pub $top: $top_type,)+
            /// The master keys that stored secrets are sealed with.
            pub master_keys: Vec<RawMasterKey>,
            $($(#[doc = $about])+ pub $path: $section,)+
        }

        impl Default for RawConfig {
            fn default() -> Self {
                Self {
                    $($top: $top_default,)+
                    master_keys: Vec::new(),
                    $($path: $section::default(),)+
                }
            }
        }

        $(
            $(#[doc = $about])+
            #[derive(Clone, Deserialize, Serialize)]
            #[serde(deny_unknown_fields, default)]
            pub struct $section {
                $($(#[doc = $doc])+ pub $key: $type,)+
            }

            impl Default for $section {
                fn default() -> Self {
                    Self { $($key: $default,)+ }
                }
            }
        )+

        impl RawConfig {
            /// Every key, in the order of the reference. The master keys are not in it.
            pub fn keys() -> Vec<Key> {
                vec![
                    $(Key {
                        section: "",
                        key: stringify!($top),
                        doc: concat!($($top_doc, "\n"),+),
                        example: $top_example,
                    },)+
                    $($(Key {
                        section: stringify!($path),
                        key: stringify!($key),
                        doc: concat!($($doc, "\n"),+),
                        example: $example,
                    },)+)+
                ]
            }

            /// The sections with what each is about.
            pub fn sections() -> Vec<(&'static str, &'static str)> {
                vec![$((stringify!($path), concat!($($about, "\n"),+)),)+]
            }
        }
    };
}

/// Where state is unless somebody says otherwise.
pub(super) const STORE: &str = "sqlite:xinfu.db";

configuration! {
    top {
        /// Where apps, client keys and current tokens are kept: `sqlite:` and the path of a file,
        /// as in `sqlite:xinfu.db` or `sqlite:/var/lib/xinfu/xinfu.db`, for one machine; or a database
        /// of PostgreSQL for any number of replicas, `postgres://user:password@host/database`. A host
        /// that is not this machine must speak TLS, unless `?sslmode=disable` is said.
        store: String = STORE.to_owned(), "";
        /// A file that holds what `store` would say, for a URL with a password.
        store_file: Option<String> = None, "\"store-url\"";
        /// Certificates in PEM by which PostgreSQL is trusted, instead of the public authorities.
        store_ca_file: Option<String> = None, "\"postgres-ca.pem\"";
        /// Where replicas keep what they only share, leases and wake-ups: with everything else unless
        /// it names a Redis or another database of PostgreSQL.
        /// `redis://user:password@host:port/db`,
        /// `redis+sentinel://user:password@host:port,host:port/primary/db` or
        /// `redis+cluster://user:password@host:port,host:port`; `rediss` is the same with TLS.
        shared: Option<String> = None, "\"rediss://:password@redis.internal\"";
        /// A file that holds what `shared` would say, for a URL with a password.
        shared_file: Option<String> = None, "\"shared-url\"";
        /// Certificates in PEM by which what `shared` names is trusted, instead of the public
        /// authorities.
        shared_ca_file: Option<String> = None, "\"redis-ca.pem\"";
        /// The id of the master key that new secrets are sealed with. Needed when there are several.
        /// Before it names a new key, each server must have been restarted with that key.
        seal_with: Option<String> = None, "\"k1\"";
    }
    /// Where xinfu listens. Every listener takes a certificate and a key file, which are read
    /// again when they change.
    listen: RawListen {
        /// The listener for services: an address and a port.
        api: String = "127.0.0.1:7080".to_owned(), "";
        /// The certificate chain of the listener for services, in PEM. With `api_tls_key` it
        /// speaks TLS only.
        api_tls_cert: Option<String> = None, "\"tls/cert.pem\"";
        /// The private key that belongs to `api_tls_cert`, in PEM.
        api_tls_key: Option<String> = None, "\"tls/key.pem\"";
        /// The listener for operators and their monitoring: metrics and health. Who reaches it needs
        /// no key. `off`: there is none.
        admin: String = "127.0.0.1:7082".to_owned(), "";
        /// The certificate chain of the listener for operators, in PEM.
        admin_tls_cert: Option<String> = None, "\"tls/cert.pem\"";
        /// The private key that belongs to `admin_tls_cert`, in PEM.
        admin_tls_key: Option<String> = None, "\"tls/key.pem\"";
        /// The listener that stands in WeChat's place for SDKs that know no other address; there is
        /// none unless this is set. SDKs call port 443. See `docs/guide/intercept.md`.
        intercept: Option<String> = None, "\"127.0.0.1:443\"";
        /// The folder of the authority that `xinfu intercept init` made, which signs the
        /// certificates of that listener.
        intercept_ca: String = "intercept".to_owned(), "";
    }
    /// The way to WeChat.
    upstream: RawUpstream {
        /// The base URLs of WeChat's API. The next one is tried when the one before cannot be
        /// reached.
        base_urls: Vec<String> =
            vec!["https://api.weixin.qq.com".to_owned(), "https://api2.weixin.qq.com".to_owned()], "";
        /// Where WeChat's pages for browsers are, on which users consent. Other than WeChat's own
        /// for the simulator only.
        pages_url: String = "https://open.weixin.qq.com".to_owned(), "";
        /// Certificates in PEM to trust beside those of the public authorities.
        ca_file: Option<String> = None, "\"ca.pem\"";
        /// An HTTP proxy to go through by CONNECT: `http://[user:password@]host:port`.
        proxy: Option<String> = None, "\"http://proxy.internal:3128\"";
        /// A file that holds what `proxy` would say, for a proxy with a password.
        proxy_file: Option<String> = None, "\"proxy-url\"";
        /// Who tells the addresses of the base URLs: `system`, which looks into the hosts file first,
        /// or `dns`, which asks name servers only. `dns` unless told otherwise where
        /// `listen.intercept` is set, else `system`. A proxy resolves by itself.
        resolver: Option<String> = None, "\"dns\"";
        /// The name servers of the resolver `dns`, as `address` or `address:port`; those of the
        /// system when there are none. Needed where the system's server reads the hosts file too.
        dns_servers: Vec<String> = Vec::new(), "";
        /// How long it may take to connect: name, TCP, proxy and TLS together.
        connect_timeout: String = "3s".to_owned(), "";
        /// How long a call may take: all base URLs together, up to the last byte of the answer. The
        /// exchange of a code may take 20 seconds in any case, because there is no second one.
        call_timeout: String = "8s".to_owned(), "";
    }
    /// What a client may take of the server, per request and per listener.
    limits: RawLimits {
        /// The most bytes of a request's body.
        body: u64 = 1024 * 1024, "";
        /// The most bytes of a request's head; at least 8192.
        header_bytes: u64 = 32 * 1024, "";
        /// The most header fields of a request.
        header_count: u64 = 100, "";
        /// How long a client may take for a request's head, and a connection be idle.
        header_read_timeout: String = "10s".to_owned(), "";
        /// How long a request may take; long polls have the time they ask for in addition.
        request_timeout: String = "30s".to_owned(), "";
        /// How long a client may leave an answer untaken; then its connection is closed.
        write_timeout: String = "30s".to_owned(), "";
        /// The most connections of a listener; more wait to be accepted.
        connections: u64 = 10_000, "";
        /// How long a stopping server still accepts connections while `/readyz` says that it drains:
        /// as long as a load balancer needs to notice, such as `5s`. `0s` without one.
        drain: String = "0s".to_owned(), "";
        /// How long requests in flight may go on when the server has stopped accepting.
        grace: String = "30s".to_owned(), "";
        /// The most openids of one batch.
        batch: u64 = 10_000, "";
        /// The most bytes of the body of a call that is carried to WeChat, such as an upload.
        call_body: u64 = 128 * 1024 * 1024, "";
        /// The most bytes of such a body that is kept until WeChat has answered, so that the call
        /// can be sent again when its token turns out to be dead.
        kept_body: u64 = 1024 * 1024, "";
        /// The most bytes of all bodies that are kept at the same time. Beyond it, bodies are passed
        /// on without being kept.
        kept_bodies: u64 = 64 * 1024 * 1024, "";
        /// How long WeChat may take to begin its answer to a call that is carried, to go on with
        /// it, or to take more of the call.
        call_patience: String = "30s".to_owned(), "";
        /// How long client keys are taken for good while the store cannot be reached: so long a key
        /// that was revoked meanwhile may go on to work.
        stale_keys_max: String = "300s".to_owned(), "";
        /// How many calls of a client key are carried to WeChat in a minute, a sixth of them at
        /// once; 0 for as many as it likes. Beyond it WeChat's 45011 is answered.
        key_calls_per_minute: u32 = 60_000, "";
        /// The same for all calls with the token of one app.
        app_calls_per_minute: u32 = 120_000, "";
    }
    /// What is logged, always to standard error.
    log: RawLog {
        /// `human` for people, `json` for machines: one object a line.
        format: String = "human".to_owned(), "";
        /// `error`, `warn`, `info`, `debug`, `trace` or `off`; or directives by module, such as
        /// `info,broker=debug`. `XINFU_LOG` goes before it.
        level: String = "info".to_owned(), "";
    }
}

/// A master key as typed.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct RawMasterKey {
    /// The name that sealed values know it by. Never give one name to two keys.
    pub id: String,
    /// The file that holds its 32 bytes as base64 or hexadecimal text, readable by its owner only.
    pub file: String,
}

/// Where a value comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Nobody said anything.
    Default,
    /// The file.
    File,
    /// An environment variable.
    Environment,
}

/// The configuration as typed, with the origin of each value.
#[derive(Clone)]
pub struct Typed {
    /// What was typed.
    pub raw: RawConfig,
    file: Option<PathBuf>,
    in_file: BTreeSet<String>,
    in_environment: BTreeSet<String>,
}

impl Typed {
    /// Reads the text of a file, and lays the environment over it.
    pub fn read(
        file: Option<(&Path, &str)>,
        environment: &Environment,
    ) -> Result<Self, ConfigError> {
        let mut table = Table::new();
        if let Some((path, text)) = file {
            toml::from_str::<RawConfig>(text).map_err(|err| in_file(path, text, &err))?;
            table = text.parse().map_err(|err| in_file(path, text, &err))?;
        }
        let in_file = RawConfig::keys()
            .iter()
            .map(Key::name)
            .chain(["master_keys".to_owned()])
            .filter(|name| find(&table, name).is_some())
            .collect();
        let in_environment = overlay(&mut table, environment)?;
        let raw = table.try_into().map_err(|err: toml::de::Error| {
            ConfigError::new(format!(
                "the environment: {}",
                complaint::without_value(err.message())
            ))
        })?;
        Ok(Self { raw, file: file.map(|(path, _)| path.to_owned()), in_file, in_environment })
    }

    /// Where the value of a key comes from.
    pub fn origin(&self, key: &str) -> Origin {
        if self.in_environment.contains(key) {
            Origin::Environment
        } else if self.in_file.contains(key) {
            Origin::File
        } else {
            Origin::Default
        }
    }

    /// The file, where there is one.
    pub fn file(&self) -> Option<&Path> {
        self.file.as_deref()
    }

    /// A path of the configuration: relative ones start at the folder of the file.
    pub fn path(&self, text: &str) -> PathBuf {
        let folder = self.file.as_deref().and_then(Path::parent);
        folder.map_or_else(|| PathBuf::from(text), |folder| folder.join(text))
    }

    /// What to say about the value of a key that cannot be used.
    pub fn problem(&self, key: &str, problem: impl std::fmt::Display) -> ConfigError {
        let place = match (self.origin(key), &self.file) {
            (Origin::Environment, _) if key == "master_keys" => format!("`{MASTER_KEYS}`"),
            (Origin::Environment, _) => format!("`{}`", variable_of(key)),
            (_, Some(file)) => format!("`{}`: `{key}`", file.display()),
            (_, None) => format!("`{key}`"),
        };
        ConfigError::new(format!("{place} {problem}"))
    }
}

/// The default of a key as TOML; `None` when it has none.
pub(crate) fn default_of(name: &str) -> Option<Value> {
    let defaults = Table::try_from(RawConfig::default()).unwrap_or_default();
    find(&defaults, name).cloned()
}

/// The value of a dotted name.
pub(crate) fn find<'a>(table: &'a Table, name: &str) -> Option<&'a Value> {
    match name.split_once('.') {
        None => table.get(name),
        Some((section, key)) => table.get(section)?.as_table()?.get(key),
    }
}

/// Puts what the environment says in the place of what the file says. Answers which keys.
fn overlay(table: &mut Table, environment: &Environment) -> Result<BTreeSet<String>, ConfigError> {
    let mut found = BTreeSet::new();
    for key in RawConfig::keys() {
        let name = key.name();
        let variable = variable_of(&name);
        let Some(text) = environment.find(&variable) else { continue };
        let value = match default_of(&name) {
            Some(Value::Integer(_)) => text
                .parse()
                .map(Value::Integer)
                .map_err(|_| ConfigError::new(format!("`{variable}` is not a whole number")))?,
            Some(Value::Array(_)) => {
                Value::Array(text.split(',').map(|part| part.trim().into()).collect())
            }
            _ => text.into(),
        };
        let section = match key.section {
            "" => &mut *table,
            section => table
                .entry(section)
                .or_insert_with(|| Table::new().into())
                .as_table_mut()
                .ok_or_else(|| ConfigError::new(format!("`{section}` is not a section")))?,
        };
        section.insert(key.key.to_owned(), value);
        found.insert(name);
    }
    if let Some(text) = environment.find(MASTER_KEYS) {
        let keys: Option<Vec<Value>> = text.split(',').map(master_key).collect();
        let expected = "must be `id=file`, several separated by commas";
        let keys = keys.ok_or_else(|| ConfigError::new(format!("`{MASTER_KEYS}` {expected}")))?;
        table.insert("master_keys".to_owned(), keys.into());
        found.insert("master_keys".to_owned());
    }
    Ok(found)
}

fn master_key(text: &str) -> Option<Value> {
    let (id, file) = text.trim().split_once('=')?;
    let key = [("id".to_owned(), id.into()), ("file".to_owned(), file.into())];
    Some(Value::Table(key.into_iter().collect()))
}

/// Words an error of the file by line and key. The line itself stays out: it may hold a password.
fn in_file(path: &Path, text: &str, err: &toml::de::Error) -> ConfigError {
    let Complaint { line, key, words } = Complaint::of(text, err);
    let line = line.map(|line| format!(" line {line}")).unwrap_or_default();
    let key = key.map(|key| format!("`{key}`: ")).unwrap_or_default();
    ConfigError::new(format!("`{}`{line}: {key}{words}", path.display()))
        .hint("`xinfu reference config` lists all keys")
}
