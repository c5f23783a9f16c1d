//! Where Redis is: the three kinds of URL, and how each is reached.

use std::{fmt, net::IpAddr, sync::Arc, time::Duration};

use ::redis::{
    AsyncConnectionConfig, Client, ConnectionAddr, ConnectionInfo, IntoConnectionInfo, Pipeline,
    RedisFuture, RedisResult, TlsCertificates, TlsMode, Value,
    aio::{ConnectionLike, MultiplexedConnection, PubSubSink, PubSubStream},
    cluster::{ClusterClient, ClusterClientBuilder},
    cluster_async::ClusterConnection,
    sentinel::{SentinelClient, SentinelClientBuilder, SentinelServerType},
};

/// How long reaching a server may take, and how long an answer of one.
pub(super) const ANSWER: Duration = Duration::from_secs(3);

/// Where Sentinels are unless the URL says otherwise.
const SENTINEL_PORT: u16 = 26379;

/// What keys and channels begin with, unless the URL names something else.
const PREFIX: &str = "xinfu";

/// Where Redis is, and how to get in.
#[derive(Clone)]
pub struct RedisUrl {
    way: Way,
    prefix: String,
    /// The URL without user and password.
    shown: String,
    open: bool,
}

/// How the server to talk to is found.
#[derive(Clone)]
enum Way {
    One(Box<Client>),
    Sentinel(Arc<tokio::sync::Mutex<SentinelClient>>),
    /// The cluster, and each node by itself: any of them tells what was published.
    Cluster(Box<ClusterClient>, Vec<Client>),
}

/// Why a URL names no Redis that can be reached. Never holds the URL, which may hold a password.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RedisUrlError {
    /// It is none of the three.
    #[error(
        "is none of `redis://user:password@host:port/db`, \
         `redis+sentinel://user:password@host:port,host:port/primary/db` and \
         `redis+cluster://user:password@host:port,host:port`, or the same with `rediss`"
    )]
    Form,
    /// A part of it cannot be used.
    #[error("cannot be used: {0}")]
    Part(String),
}

impl RedisUrl {
    /// Reads one of
    /// - `redis://user:password@host:port/db`, one server;
    /// - `redis+sentinel://user:password@host:port,host:port/primary/db`: the Sentinels know under
    ///   that name which server is the primary; user and password are those of the servers,
    ///   `?sentinel_password=` is that of the Sentinels, whose port is 26379 unless said otherwise;
    /// - `redis+cluster://user:password@host:port,host:port`, some nodes of a cluster.
    ///
    /// `rediss` instead of `redis` is TLS, and who answers must show a certificate for its name, by
    /// the authorities in `ca_pem` or, without, the public ones. `?prefix=name` keeps two xinfus
    /// apart on one Redis.
    pub fn parse(url: &str, ca_pem: Option<&[u8]>) -> Result<Self, RedisUrlError> {
        let (scheme, rest) = url.split_once("://").ok_or(RedisUrlError::Form)?;
        let (scheme, kind) = scheme.split_once('+').map_or((scheme, ""), |(one, two)| (one, two));
        if !["redis", "rediss"].contains(&scheme) {
            return Err(RedisUrlError::Form);
        }
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (mut prefix, mut sentinel_password) = (PREFIX.to_owned(), None);
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            match pair.split_once('=') {
                Some(("prefix", "")) => {
                    return Err(RedisUrlError::Part("the prefix is empty".to_owned()));
                }
                Some(("prefix", value)) => value.clone_into(&mut prefix),
                Some(("sentinel_password", value)) if kind == "sentinel" => {
                    sentinel_password = Some(decoded(value)?);
                }
                _ => {
                    let known = "the parameters are `prefix=` and, for Sentinels, \
                         `sentinel_password=`";
                    return Err(RedisUrlError::Part(known.to_owned()));
                }
            }
        }
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let (user, hosts) = match authority.rsplit_once('@') {
            Some((user, hosts)) => (format!("{user}@"), hosts),
            None => (String::new(), authority),
        };
        let tls = scheme == "rediss";
        let certificates =
            TlsCertificates { client_tls: None, root_cert: ca_pem.map(<[u8]>::to_vec) };
        let info = |host: &str, path: &str| -> Result<ConnectionInfo, RedisUrlError> {
            let url = format!("{scheme}://{user}{host}/{path}");
            url.into_connection_info().map_err(part)
        };
        let client = |info: ConnectionInfo| match tls {
            true => Client::build_with_tls(info, certificates.clone()).map_err(part),
            false => Client::open(info).map_err(part),
        };
        let with_port = |host: &str| match (kind, split_port(host)) {
            ("sentinel", (_, None)) => format!("{host}:{SENTINEL_PORT}"),
            _ => host.to_owned(),
        };
        let hosts: Vec<_> = hosts.split(',').map(with_port).collect();
        let way = match kind {
            "" if hosts.len() == 1 => Way::One(Box::new(client(info(&hosts[0], path)?)?)),
            "sentinel" => {
                let (primary, db) = path.split_once('/').unwrap_or((path, ""));
                if primary.is_empty() {
                    return Err(RedisUrlError::Part(
                        "the name of the primary is missing".to_owned(),
                    ));
                }
                let infos: Vec<_> =
                    hosts.iter().map(|host| info(host, db)).collect::<Result<_, _>>()?;
                let redis = infos[0].redis_settings().clone();
                let addresses: Vec<ConnectionAddr> =
                    infos.iter().map(|info| info.addr().clone()).collect();
                let mut builder =
                    SentinelClientBuilder::new(addresses, primary, SentinelServerType::Master)
                        .map_err(part)?
                        .set_client_to_redis_db(redis.db());
                if let Some(user) = redis.username() {
                    builder = builder.set_client_to_redis_username(user);
                }
                if let Some(password) = redis.password() {
                    builder = builder.set_client_to_redis_password(password);
                }
                if let Some(password) = sentinel_password {
                    builder = builder.set_client_to_sentinel_password(password);
                }
                if tls {
                    builder = builder
                        .set_client_to_redis_tls_mode(TlsMode::Secure)
                        .set_client_to_redis_certificates(certificates.clone())
                        .set_client_to_sentinel_certificates(certificates.clone());
                }
                let client = builder.build().map_err(part)?;
                Way::Sentinel(Arc::new(tokio::sync::Mutex::new(client)))
            }
            "cluster" if path.is_empty() => {
                let infos: Vec<_> =
                    hosts.iter().map(|host| info(host, "")).collect::<Result<_, _>>()?;
                let mut builder =
                    ClusterClientBuilder::new(infos.clone()).connection_timeout(ANSWER);
                if tls {
                    builder = builder.certs(certificates.clone());
                }
                let nodes = infos.into_iter().map(client).collect::<Result<_, _>>()?;
                Way::Cluster(Box::new(builder.build().map_err(part)?), nodes)
            }
            _ => return Err(RedisUrlError::Form),
        };
        let here = hosts.iter().all(|host| is_here(host));
        let shown = match kind {
            "" => format!("{scheme}://{}/{path}", hosts[0]),
            kind => format!("{scheme}+{kind}://{}/{path}", hosts.join(",")),
        };
        Ok(Self { way, prefix, shown, open: !tls && !here })
    }

    /// Whether the password could be read on the way.
    pub fn is_open(&self) -> bool {
        self.open
    }

    /// The key of a lease.
    pub(super) fn key_of(&self, lease: &str) -> String {
        // In braces, so that all are in one slot of a cluster, and go by the clock of one node.
        format!("{{{}}}:lease:{lease}", self.prefix)
    }

    /// Where wake-ups are published.
    pub(super) fn channel(&self) -> String {
        format!("{}:changes", self.prefix)
    }

    /// A connection to the server, the primary, or the cluster.
    pub(super) async fn connect(&self) -> RedisResult<Connection> {
        // How long an answer may take is for whoever asks.
        let settings = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(ANSWER))
            .set_response_timeout(None);
        Ok(match &self.way {
            Way::One(client) => {
                let got = client.get_multiplexed_async_connection_with_config(&settings);
                Connection::One(got.await?)
            }
            Way::Sentinel(client) => {
                let mut client = client.lock().await;
                let got = client.get_async_connection_with_config(&settings);
                Connection::One(got.await?)
            }
            Way::Cluster(client, _) => Connection::Cluster(client.get_async_connection().await?),
        })
    }

    /// What is published from now on, and what the connection is asked by.
    pub(super) async fn subscribe(&self) -> RedisResult<(PubSubSink, PubSubStream)> {
        let hear = async |client: &Client| {
            let mut heard = client.get_async_pubsub().await?;
            heard.subscribe(self.channel()).await?;
            Ok(heard.split())
        };
        match &self.way {
            Way::One(client) => hear(client).await,
            Way::Sentinel(client) => {
                let client = client.lock().await.async_get_client().await?;
                hear(&client).await
            }
            Way::Cluster(_, nodes) => {
                let mut answer = hear(&nodes[0]).await;
                for node in &nodes[1..] {
                    if answer.is_ok() {
                        break;
                    }
                    answer = hear(node).await;
                }
                answer
            }
        }
    }
}

impl fmt::Display for RedisUrl {
    /// Without user and password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

impl fmt::Debug for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RedisUrl({self})")
    }
}

impl PartialEq for RedisUrl {
    fn eq(&self, other: &Self) -> bool {
        (&self.shown, &self.prefix) == (&other.shown, &other.prefix)
    }
}

impl Eq for RedisUrl {}

/// A problem as the driver tells it, which never tells passwords.
#[expect(clippy::needless_pass_by_value, reason = "what errors are mapped by takes them")]
fn part(err: ::redis::RedisError) -> RedisUrlError {
    RedisUrlError::Part(err.to_string())
}

fn decoded(text: &str) -> Result<String, RedisUrlError> {
    let decoded = percent_encoding::percent_decode_str(text).decode_utf8();
    Ok(decoded.map_err(|_| RedisUrlError::Form)?.into_owned())
}

/// A host and its port, if it names one.
fn split_port(host: &str) -> (&str, Option<u16>) {
    let split = host.rsplit_once(':');
    let split = split.and_then(|(name, port)| Some((name, port.parse().ok()?)));
    split.map_or((host, None), |(name, port)| (name, Some(port)))
}

/// Whether a host is this machine.
fn is_here(host: &str) -> bool {
    let (name, _) = split_port(host);
    let ip = name.trim_matches(['[', ']']).parse::<IpAddr>();
    name == "localhost" || ip.is_ok_and(|ip| ip.to_canonical().is_loopback())
}

/// A connection, to one server or to a cluster.
#[derive(Clone)]
pub(super) enum Connection {
    One(MultiplexedConnection),
    Cluster(ClusterConnection),
}

impl ConnectionLike for Connection {
    fn req_packed_command<'a>(&'a mut self, cmd: &'a ::redis::Cmd) -> RedisFuture<'a, Value> {
        match self {
            Self::One(connection) => connection.req_packed_command(cmd),
            Self::Cluster(connection) => connection.req_packed_command(cmd),
        }
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        cmd: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        match self {
            Self::One(connection) => connection.req_packed_commands(cmd, offset, count),
            Self::Cluster(connection) => connection.req_packed_commands(cmd, offset, count),
        }
    }

    fn get_db(&self) -> i64 {
        match self {
            Self::One(connection) => connection.get_db(),
            Self::Cluster(connection) => connection.get_db(),
        }
    }
}
