//! From a configuration to a connection: hosts, proxy, certificates, time-outs.

use std::{
    error::Error as StdError,
    fmt,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use http::{HeaderValue, Uri, uri::Scheme};
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_rustls::HttpsConnectorBuilder;
use hyper_util::client::legacy::connect::{Connected, Connection, HttpConnector, proxy::Tunnel};
use percent_encoding::percent_decode_str;
use rustls::{ClientConfig, RootCertStore, crypto::aws_lc_rs};
use rustls_pki_types::{CertificateDer, pem::PemObject};
use tower::{Service, ServiceExt, util::BoxCloneSyncService};

use crate::{Resolver, forward::Lane, pool::Pool, resolve::Lookup};

/// How to reach WeChat.
#[derive(Clone)]
pub struct Config {
    /// The base URLs to try, in this order; `https`, or `http` for a simulator.
    pub hosts: Vec<Uri>,
    /// Where WeChat's pages for browsers are; `https`, or `http` for a simulator. No call goes
    /// there: addresses of pages begin with it.
    pub pages: Uri,
    /// Certificates, in PEM, to trust beside those of the public authorities.
    pub ca_pem: Option<Vec<u8>>,
    /// An HTTP proxy to go through by CONNECT, as `http://[user:password@]host:port`.
    pub proxy: Option<Uri>,
    /// Who tells the hosts' addresses. Through a proxy nobody is asked: the proxy resolves names,
    /// and its own name is the system's business.
    pub resolver: Resolver,
    /// How long it may take to connect: name, TCP, proxy and TLS together.
    pub connect_timeout: Duration,
    /// How long a call may take: all hosts together, up to the last byte of the answer.
    pub call_timeout: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            hosts: vec![
                Uri::from_static("https://api.weixin.qq.com"),
                Uri::from_static("https://api2.weixin.qq.com"),
            ],
            pages: Uri::from_static("https://open.weixin.qq.com"),
            ca_pem: None,
            proxy: None,
            resolver: Resolver::System,
            connect_timeout: Duration::from_secs(3),
            call_timeout: Duration::from_secs(8),
        }
    }
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("hosts", &self.hosts)
            .field("pages", &self.pages)
            .field("ca_pem", &self.ca_pem.as_ref().map(Vec::len))
            // The proxy's password stays out.
            .field("proxy", &self.proxy.as_ref().and_then(Uri::host))
            .field("resolver", &self.resolver)
            .field("connect_timeout", &self.connect_timeout)
            .field("call_timeout", &self.call_timeout)
            .finish()
    }
}

/// A configuration that no client can be built from.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// The list of hosts is empty.
    #[error("no host of WeChat is configured")]
    NoHost,
    /// The base URL of the pages has another scheme, a user, or a query.
    #[error("the pages of WeChat must be at `https://host[:port][/path]` or the same with `http`")]
    Pages,
    /// A base URL has another scheme, a user, or a query.
    #[error("a host of WeChat must be `https://host[:port][/path]` or the same with `http`")]
    Host,
    /// The extra certificates cannot be read, or there are none in the text.
    #[error("the extra certificates are not PEM with at least one certificate")]
    Certificates,
    /// The proxy's address has another scheme than `http`, or no host.
    #[error("the proxy must be `http://[user:password@]host:port`")]
    Proxy,
    /// The system's list of name servers cannot be read, or has none.
    #[error("the system's name servers cannot be told: {0}")]
    Resolver(String),
    /// A time-out is zero.
    #[error("a time-out must be longer than zero")]
    Timeout,
    /// The cryptography refused the TLS versions it was built with.
    #[error("TLS cannot be set up: {0}")]
    Tls(String),
}

pub(crate) type BoxError = Box<dyn StdError + Send + Sync>;

/// Whatever makes connections, with its type erased.
pub(crate) type Connector = BoxCloneSyncService<Uri, Conn, BoxError>;

impl Config {
    /// The hosts as calls use them.
    pub(crate) fn into_hosts(self) -> Result<Vec<Host>, ConfigError> {
        if self.hosts.is_empty() {
            return Err(ConfigError::NoHost);
        }
        if self.connect_timeout.is_zero() || self.call_timeout.is_zero() {
            return Err(ConfigError::Timeout);
        }
        self.hosts.iter().map(Host::of).collect::<Option<_>>().ok_or(ConfigError::Host)
    }

    /// What the addresses of pages begin with.
    pub(crate) fn pages_base(&self) -> Result<String, ConfigError> {
        Host::of(&self.pages).map(|host| host.base_url).ok_or(ConfigError::Pages)
    }

    /// A connector that puts TLS and the proxy on top of TCP.
    pub(crate) fn tcp_connector(&self) -> Result<Connector, ConfigError> {
        let resolver = match &self.proxy {
            Some(_) => &Resolver::System,
            None => &self.resolver,
        };
        let lookup = Lookup::of(resolver, self.connect_timeout)
            .map_err(|error| ConfigError::Resolver(error.to_string()))?;
        let mut tcp = HttpConnector::new_with_resolver(lookup);
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_keepalive(Some(Duration::from_secs(30)));
        tcp.set_connect_timeout(Some(self.connect_timeout));
        self.connector(tcp)
    }

    /// A connector that puts TLS and the proxy on top of `dial`.
    pub(crate) fn connector<C>(&self, dial: C) -> Result<Connector, ConfigError>
    where
        C: Service<Uri> + Clone + Send + Sync + 'static,
        C::Response: Read + Write + Connection + Send + Unpin + 'static,
        C::Future: Send + 'static,
        C::Error: Into<BoxError>,
    {
        let Some(proxy) = &self.proxy else { return self.over_tls(dial) };

        let authority = proxy.authority().ok_or(ConfigError::Proxy)?.as_str();
        if proxy.scheme().is_some_and(|scheme| *scheme != Scheme::HTTP) {
            return Err(ConfigError::Proxy);
        }
        let (user, address) = match authority.rsplit_once('@') {
            Some((user, address)) => (Some(user), address),
            None => (None, authority),
        };
        let address = Uri::builder().scheme(Scheme::HTTP).authority(address).path_and_query("/");
        let mut tunnel = Tunnel::new(address.build().map_err(|_| ConfigError::Proxy)?, dial);
        if let Some(user) = user {
            let plain: Vec<u8> = percent_decode_str(user).collect();
            let basic = format!("Basic {}", BASE64_STANDARD.encode(plain));
            let basic = HeaderValue::from_str(&basic).map_err(|_| ConfigError::Proxy)?;
            tunnel = tunnel.with_auth(basic);
        }
        self.over_tls(tunnel)
    }

    fn over_tls<C>(&self, dial: C) -> Result<Connector, ConfigError>
    where
        C: Service<Uri> + Clone + Send + Sync + 'static,
        C::Response: Read + Write + Connection + Send + Unpin + 'static,
        C::Future: Send + 'static,
        C::Error: Into<BoxError>,
    {
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(self.tls()?)
            .https_or_http()
            .enable_http1()
            .wrap_connector(dial);
        let limit = self.connect_timeout;
        Ok(BoxCloneSyncService::new(tower::service_fn(move |host: Uri| {
            let connecting = connector.clone().oneshot(host);
            async move {
                let stream = tokio::time::timeout(limit, connecting).await;
                Ok(Conn::new(stream.map_err(|_| TimedOut(limit))??))
            }
        })))
    }

    fn tls(&self) -> Result<ClientConfig, ConfigError> {
        let mut roots = RootCertStore::empty();
        roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
        if let Some(pem) = &self.ca_pem {
            let extra: Vec<_> = CertificateDer::pem_slice_iter(pem)
                .collect::<Result<_, _>>()
                .map_err(|_| ConfigError::Certificates)?;
            if extra.is_empty() {
                return Err(ConfigError::Certificates);
            }
            for certificate in extra {
                roots.add(certificate).map_err(|_| ConfigError::Certificates)?;
            }
        }
        let tls = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| ConfigError::Tls(error.to_string()))?;
        Ok(tls.with_root_certificates(roots).with_no_client_auth())
    }
}

/// One of WeChat's hosts.
pub(crate) struct Host {
    /// Scheme, authority and path, without a slash at the end.
    pub base_url: String,
    /// The authority, for errors.
    pub name: String,
}

impl Host {
    fn of(url: &Uri) -> Option<Self> {
        let scheme = url.scheme_str().filter(|scheme| matches!(*scheme, "http" | "https"))?;
        let name = url.authority()?.as_str();
        if name.contains('@') || url.query().is_some() {
            return None;
        }
        // A proxy would take 443 for a port that is not written out.
        let port = if scheme == "http" && url.port().is_none() { ":80" } else { "" };
        let path = url.path().trim_end_matches('/');
        Some(Self { base_url: format!("{scheme}://{name}{port}{path}"), name: name.to_owned() })
    }

    /// The way to it for calls that are carried.
    pub(crate) fn lane(&self, connector: &Connector) -> Option<Lane> {
        let base: Uri = self.base_url.parse().ok()?;
        let host = format!("{}://{}", base.scheme_str()?, base.authority()?).parse().ok()?;
        Some(Lane {
            pool: Pool::new(host, connector.clone()),
            path: base.path().trim_end_matches('/').to_owned(),
            authority: HeaderValue::from_str(&self.name).ok()?,
            name: self.name.clone(),
        })
    }
}

/// The connection took longer than it may.
#[derive(Debug, thiserror::Error)]
#[error("no connection within {:.1} s", .0.as_secs_f32())]
struct TimedOut(Duration);

/// A connection with its type erased, which remembers whether it has served a call.
pub(crate) struct Conn {
    stream: Box<dyn Stream>,
    served: Served,
}

/// Whether a connection has brought an answer before. All copies are of the same connection.
#[derive(Clone, Default)]
pub(crate) struct Served(Arc<AtomicBool>);

impl Served {
    /// Notes an answer, and says whether there was one before.
    pub(crate) fn note(&self) -> bool {
        self.0.swap(true, Ordering::Relaxed)
    }

    /// Whether the connection has brought an answer.
    pub(crate) fn before(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

impl Conn {
    fn new(stream: impl Stream + 'static) -> Self {
        Self { stream: Box::new(stream), served: Served::default() }
    }
}

impl Connection for Conn {
    fn connected(&self) -> Connected {
        self.stream.connected().extra(self.served.clone())
    }
}

impl Read for Conn {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: ReadBufCursor<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut *self.stream).poll_read(cx, buf)
    }
}

impl Write for Conn {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut *self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut *self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut *self.stream).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[std::io::IoSlice<'_>],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut *self.stream).poll_write_vectored(cx, bufs)
    }
}

/// What a connection must be able to do, in one name.
trait Stream: Read + Write + Connection + Send + Unpin {}

impl<T: Read + Write + Connection + Send + Unpin> Stream for T {}

/// What the errors from here say, innermost last, each once.
pub(crate) fn reason(error: &(dyn StdError + 'static)) -> String {
    let mut parts: Vec<String> = Vec::new();
    let mut next = Some(error);
    while let Some(error) = next {
        let said = error.to_string();
        // Wrappers repeat what they wrap.
        if parts.last().is_none_or(|last| !last.contains(&said)) {
            parts.push(said);
        }
        next = error.source();
    }
    parts.join(": ")
}
