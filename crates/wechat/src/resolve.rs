//! From a host's name to its addresses.
//!
//! [`Resolver::System`] asks as every program of the machine does, the hosts file first.
//! [`Resolver::Dns`] asks name servers only. Where a hosts file leads WeChat's names to us, this is
//! what keeps a call to WeChat from coming back to us.

use std::{
    future::Future,
    io,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
    vec,
};

use hickory_resolver::{
    TokioResolver,
    config::{
        ConnectionConfig, LookupIpStrategy, NameServerConfig, ResolveHosts, ResolverConfig,
        ResolverOpts,
    },
    net::{NetError, runtime::TokioRuntimeProvider},
    system_conf::read_system_conf,
};
use hyper_util::client::legacy::connect::dns::{GaiResolver, Name};
use tokio::time::Instant;
use tower::Service;

use crate::connect::BoxError;

/// Who tells the addresses of WeChat's hosts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Resolver {
    /// The system, which looks into the hosts file first.
    #[default]
    System,
    /// Name servers alone: the hosts file is not asked, answers are kept for as long as they say.
    /// A name that leads to this machine is an error, never a call to ourselves.
    Dns {
        /// The servers; those that the system has configured when there are none.
        servers: Vec<SocketAddr>,
    },
}

/// Where nothing of WeChat's can be.
#[derive(Debug, thiserror::Error)]
#[error(
    "the name servers say that `{name}` is at {address}, which is this machine; one that reads the \
     hosts file may be among them, so `upstream.dns_servers` should name others"
)]
struct LeadsHere {
    name: String,
    address: IpAddr,
}

/// A [`Resolver`] at work.
#[derive(Clone)]
pub(crate) enum Lookup {
    System(GaiResolver),
    Dns(Arc<Dns>),
}

impl Lookup {
    /// Gets ready to ask; a single question takes no longer than a fraction of `limit`.
    pub(crate) fn of(resolver: &Resolver, limit: Duration) -> Result<Self, BoxError> {
        Ok(match resolver {
            Resolver::System => Self::System(GaiResolver::new()),
            Resolver::Dns { servers } => Self::Dns(Arc::new(Dns::new(servers, limit)?)),
        })
    }
}

impl Service<Name> for Lookup {
    type Response = vec::IntoIter<SocketAddr>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, name: Name) -> Self::Future {
        match self {
            Self::System(system) => {
                let asking = system.call(name);
                Box::pin(async move { Ok(asking.await?.collect::<Vec<_>>().into_iter()) })
            }
            Self::Dns(dns) => {
                let dns = Arc::clone(dns);
                Box::pin(async move { Ok(dns.addresses(name.as_str()).await?.into_iter()) })
            }
        }
    }
}

/// What asks name servers.
pub(crate) struct Dns {
    servers: Vec<SocketAddr>,
    limit: Duration,
    current: Mutex<Current>,
}

/// The resolver in use, and when the system's configuration was read for it.
struct Current {
    resolver: Arc<TokioResolver>,
    read_at: Instant,
}

impl Dns {
    fn new(servers: &[SocketAddr], limit: Duration) -> Result<Self, NetError> {
        let resolver = Arc::new(resolver(servers, limit)?);
        let current = Mutex::new(Current { resolver, read_at: Instant::now() });
        Ok(Self { servers: servers.to_vec(), limit, current })
    }

    async fn addresses(&self, name: &str) -> Result<Vec<SocketAddr>, BoxError> {
        let resolver =
            Arc::clone(&self.current.lock().unwrap_or_else(PoisonError::into_inner).resolver);
        let found = match resolver.lookup_ip(name).await {
            Ok(found) => found,
            Err(err) => {
                self.read_again().await;
                return Err(err.into());
            }
        };
        if let Some(address) = found.iter().find(|address| is_here(*address)) {
            return Err(LeadsHere { name: name.to_owned(), address }.into());
        }
        let addresses: Vec<_> = found.iter().map(|address| SocketAddr::new(address, 0)).collect();
        if addresses.is_empty() {
            let words = format!("the name servers know no address of `{name}`");
            return Err(io::Error::new(io::ErrorKind::NotFound, words).into());
        }
        Ok(addresses)
    }

    /// The system's name servers may be others by now; the next question goes to those.
    async fn read_again(&self) {
        /// How often the configuration is read at most: what was kept is lost with each time.
        const EVERY: Duration = Duration::from_secs(10);
        if !self.servers.is_empty() {
            return;
        }
        {
            let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
            if current.read_at.elapsed() < EVERY {
                return;
            }
            current.read_at = Instant::now();
        }
        let limit = self.limit;
        let read = tokio::task::spawn_blocking(move || resolver(&[], limit)).await;
        // When it cannot be read, the servers in use are as good as any.
        if let Ok(Ok(resolver)) = read {
            let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
            current.resolver = Arc::new(resolver);
        }
    }
}

/// A resolver that asks these servers, or those of the system.
fn resolver(servers: &[SocketAddr], limit: Duration) -> Result<TokioResolver, NetError> {
    let (config, options) = if servers.is_empty() {
        read_system_conf()?
    } else {
        let servers = servers.iter().map(|server| server_at(*server)).collect();
        (ResolverConfig::from_name_servers(servers), ResolverOpts::default())
    };
    resolver_of(config, options, limit)
}

/// A resolver that never asks the hosts file, whatever the configuration says.
fn resolver_of(
    config: ResolverConfig,
    mut options: ResolverOpts,
    limit: Duration,
) -> Result<TokioResolver, NetError> {
    /// How long a wrong "there is no such name" is believed.
    const NO_ANSWER_KEPT: Duration = Duration::from_secs(10);
    /// How often a question is asked before it is given up.
    const ATTEMPTS: u32 = 2;
    options.use_hosts_file = ResolveHosts::Never;
    // A name with a dot is a whole name. Containers are told otherwise (`ndots:5`), and would ask
    // for `api.weixin.qq.com` in each domain of their own before they ask for itself.
    options.ndots = 1;
    options.ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
    options.negative_max_ttl = Some(NO_ANSWER_KEPT);
    options.timeout = limit / (ATTEMPTS + 1);
    options.attempts = ATTEMPTS as usize;
    TokioResolver::builder_with_config(config, TokioRuntimeProvider::default())
        .with_options(options)
        .build()
}

fn server_at(server: SocketAddr) -> NameServerConfig {
    let mut config = NameServerConfig::udp_and_tcp(server.ip());
    for connection in &mut config.connections {
        let ConnectionConfig { port, .. } = connection;
        *port = server.port();
    }
    config
}

/// Whether an address is one of this machine, whichever machine it is.
fn is_here(address: IpAddr) -> bool {
    let address = address.to_canonical();
    address.is_loopback() || address.is_unspecified()
}

#[cfg(test)]
mod tests {
    use tokio::{net::UdpSocket, task::JoinSet};

    use super::*;

    /// A name server that knows one IPv4 address for every name, and counts the questions.
    async fn name_server(address: [u8; 4]) -> (SocketAddr, Arc<Mutex<Vec<u8>>>, JoinSet<()>) {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let at = socket.local_addr().unwrap();
        let kinds = Arc::new(Mutex::new(Vec::new()));
        let asked = Arc::clone(&kinds);
        let mut serving = JoinSet::new();
        serving.spawn(async move {
            let mut buffer = [0; 512];
            while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
                let question = &buffer[12..length];
                let name = question.iter().position(|byte| *byte == 0).unwrap();
                let question = &question[..name + 5];
                let kind = question[name + 2];
                asked.lock().unwrap().push(kind);
                let answers = u8::from(kind == 1);
                let mut answer = buffer[..2].to_vec();
                answer.extend([0x81, 0x80, 0, 1, 0, answers, 0, 0, 0, 0]);
                answer.extend(question);
                if answers == 1 {
                    answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 1, 0, 0, 4]);
                    answer.extend(address);
                }
                socket.send_to(&answer, from).await.unwrap();
            }
        });
        (at, kinds, serving)
    }

    #[tokio::test]
    async fn name_servers_are_asked_once_for_as_long_as_they_say() {
        let (server, asked, _serving) = name_server([192, 0, 2, 7]).await;
        let dns = Dns::new(&[server], Duration::from_secs(30)).unwrap();
        for _ in 0..3 {
            let found = dns.addresses("api.weixin.qq.com").await.unwrap();
            assert_eq!(found, ["192.0.2.7:0".parse().unwrap()]);
        }
        let kinds = |kind: u8| asked.lock().unwrap().iter().filter(|asked| **asked == kind).count();
        assert_eq!(kinds(1), 1);
        dns.addresses("api2.weixin.qq.com").await.unwrap();
        assert_eq!(kinds(1), 2);
    }

    #[tokio::test]
    async fn a_whole_name_is_asked_for_before_any_domain_is_added() {
        let (server, asked, _serving) = name_server([192, 0, 2, 7]).await;
        // As Kubernetes writes it.
        let domain = "svc.cluster.local.".parse().unwrap();
        let servers = vec![server_at(server)];
        let config = ResolverConfig::from_parts(None, vec![domain], servers);
        let mut options = ResolverOpts::default();
        options.ndots = 5;
        let resolver = resolver_of(config, options, Duration::from_secs(30)).unwrap();
        let found = resolver.lookup_ip("api.weixin.qq.com").await.unwrap();
        assert_eq!(found.query().name().to_string(), "api.weixin.qq.com.");
        assert_eq!(asked.lock().unwrap().len(), 2, "one question for each kind of address");
    }

    #[tokio::test]
    async fn a_name_that_leads_to_this_machine_is_an_error() {
        let (server, _, _serving) = name_server([127, 0, 0, 1]).await;
        let dns = Dns::new(&[server], Duration::from_secs(30)).unwrap();
        let error = dns.addresses("api.weixin.qq.com").await.unwrap_err().to_string();
        assert!(error.contains("`api.weixin.qq.com` is at 127.0.0.1"), "{error}");
        assert!(error.contains("upstream.dns_servers"), "{error}");
    }

    #[test]
    fn this_machine_is_known_in_every_notation() {
        for here in ["127.0.0.1", "127.8.9.1", "::1", "::ffff:127.0.0.1", "0.0.0.0", "::"] {
            assert!(is_here(here.parse().unwrap()), "{here}");
        }
        for elsewhere in ["10.0.0.1", "223.5.5.5", "fe80::1", "240e::1"] {
            assert!(!is_here(elsewhere.parse().unwrap()), "{elsewhere}");
        }
    }
}
