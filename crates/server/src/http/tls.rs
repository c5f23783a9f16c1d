//! The certificate and key of a listener: of files, which are read again when they change, or of a
//! local authority, which makes new ones in time.

use std::{
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use arc_swap::ArcSwap;
use clock::Clock;
use rustls::{
    ServerConfig,
    crypto::{CryptoProvider, aws_lc_rs},
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use tokio_rustls::TlsAcceptor;

use crate::intercept::{Authority, InterceptError, NAMES, Renewal};

/// How often the files are compared with what is in use.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// How often the clock is looked at, which may be set back or forward meanwhile.
const LOOK_AT_THE_CLOCK_EVERY: Duration = Duration::from_secs(60);

/// How long to wait at least from one certificate, or the failure to make one, to the next.
const ISSUE_AT_MOST_EVERY: Duration = Duration::from_secs(600);

/// A certificate chain and its key. Cloning gives another handle to the same.
#[derive(Clone, Debug)]
pub struct Tls(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    provider: Arc<CryptoProvider>,
    config: Arc<ServerConfig>,
    current: Arc<Current>,
    source: Source,
}

/// Where certificates come from.
#[derive(Debug)]
enum Source {
    Files {
        cert: PathBuf,
        key: PathBuf,
        /// The bytes of both files as last read, good or bad, so that each change is told once.
        seen: Mutex<Files>,
    },
    Authority {
        authority: Box<Authority>,
        clock: Clock,
        /// When the first certificate is to be replaced.
        renewal: Renewal,
    },
}

/// What the two files hold.
type Files = (Vec<u8>, Vec<u8>);

/// Why a certificate and its key cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("cannot read `{}`: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A file does not hold what it should.
    #[error("`{}` holds no {what} in PEM", path.display())]
    Pem {
        /// The file.
        path: PathBuf,
        /// What it should hold.
        what: &'static str,
    },
    /// The two do not fit together, or the key is of a kind that is not supported.
    #[error("the certificate `{}` cannot be used with the key `{}`: {reason}", cert.display(), key.display())]
    Unusable {
        /// The file of the certificate chain.
        cert: PathBuf,
        /// The file of the key.
        key: PathBuf,
        /// Why not.
        reason: String,
    },
    /// A local authority makes none.
    #[error(transparent)]
    Intercept(#[from] InterceptError),
    /// What it made is of no use to TLS.
    #[error("TLS cannot be set up: {0}")]
    Tls(#[from] rustls::Error),
}

impl Tls {
    /// Reads a certificate chain and its private key.
    ///
    /// While a listener with it is being served, changed files are taken over within seconds. Bad
    /// ones are told in the log, and what was good stays in use.
    pub fn from_files(cert: impl Into<PathBuf>, key: impl Into<PathBuf>) -> Result<Self, TlsError> {
        let (cert, key) = (cert.into(), key.into());
        let provider = Arc::new(aws_lc_rs::default_provider());
        let files = (read(&cert)?, read(&key)?);
        let certified = certified_key(&provider, (&cert, &key), &files)?;
        let source = Source::Files { cert, key, seen: Mutex::new(files) };
        Ok(Self::of(source, provider, certified, None)?)
    }

    /// Makes certificates for WeChat's names; a client that asks for another name is refused.
    ///
    /// While a listener with it is being served, a new one is made when half of the time of the one
    /// in use is over by this clock. Connections go on.
    pub fn issued_by(authority: Authority, clock: Clock) -> Result<Self, TlsError> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let (certified, renewal) = issued(&authority, &clock, &provider)?;
        let source = Source::Authority { authority: Box::new(authority), clock, renewal };
        Ok(Self::of(source, provider, certified, Some(&NAMES))?)
    }

    fn of(
        source: Source,
        provider: Arc<CryptoProvider>,
        certified: CertifiedKey,
        names: Option<&'static [&'static str]>,
    ) -> Result<Self, rustls::Error> {
        let current = Arc::new(Current { certified: ArcSwap::from_pointee(certified), names });
        let mut config = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_cert_resolver(Arc::clone(&current) as Arc<dyn ResolvesServerCert>);
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self(Arc::new(Inner { provider, config: Arc::new(config), current, source })))
    }

    /// What takes connections through the handshake.
    pub(super) fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(Arc::clone(&self.0.config))
    }

    /// Sees to it that the certificate in use is a good one, for ever.
    pub(super) async fn keep(&self) {
        match &self.0.source {
            Source::Files { .. } => self.follow_files().await,
            Source::Authority { authority, clock, renewal } => {
                self.renew(authority, clock, *renewal).await;
            }
        }
    }

    /// Makes a new certificate whenever it is time, or the clock was set to before the one in use.
    async fn renew(&self, authority: &Authority, clock: &Clock, mut renewal: Renewal) {
        loop {
            let due_in = renewal.due_in(clock.now());
            if !due_in.is_zero() {
                tokio::time::sleep(due_in.min(LOOK_AT_THE_CLOCK_EVERY)).await;
                continue;
            }
            match issued(authority, clock, &self.0.provider) {
                Ok((certified, next)) => {
                    self.0.current.certified.store(Arc::new(certified));
                    renewal = next;
                    tracing::info!("made a new certificate for WeChat's names");
                }
                Err(err) => {
                    tracing::error!(error = %err, "no new certificate for WeChat's names was made");
                }
            }
            tokio::time::sleep(ISSUE_AT_MOST_EVERY).await;
        }
    }

    /// Takes changed files over, for ever.
    async fn follow_files(&self) {
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let this = self.clone();
            if let Err(err) = tokio::task::spawn_blocking(move || this.look()).await {
                tracing::error!(error = %err, "the certificate files cannot be looked at");
            }
        }
    }

    /// Looks at the files once.
    fn look(&self) {
        let Inner { provider, current, source, .. } = &*self.0;
        let Source::Files { cert, key, seen } = source else { return };
        let files = read(cert).and_then(|cert| Ok((cert, read(key)?)));
        let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = match &files {
            Ok(files) => *files != *seen,
            // Told once, like bad contents.
            Err(_) => *seen != Files::default(),
        };
        if !changed {
            return;
        }
        let read = files.and_then(|files| {
            let certified = certified_key(provider, (cert, key), &files);
            *seen = files;
            certified
        });
        match read {
            Ok(certified) => {
                current.certified.store(Arc::new(certified));
                tracing::info!(cert = %cert.display(), "took over a changed certificate");
            }
            Err(err) => {
                if matches!(err, TlsError::Read { .. }) {
                    *seen = Files::default();
                }
                tracing::error!(error = %err, "keeping the certificate in use: the new one is bad");
            }
        }
    }
}

/// The certificate in use.
#[derive(Debug)]
struct Current {
    certified: ArcSwap<CertifiedKey>,
    /// The only names that it is shown for; without them, it is shown to everybody.
    names: Option<&'static [&'static str]>,
}

impl ResolvesServerCert for Current {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let is_shown = self.names.is_none_or(|names| {
            let asked = hello.server_name().unwrap_or_default();
            names.iter().any(|name| name.eq_ignore_ascii_case(asked))
        });
        is_shown.then(|| self.certified.load_full())
    }
}

/// A new certificate of an authority, and when to make the next.
fn issued(
    authority: &Authority,
    clock: &Clock,
    provider: &CryptoProvider,
) -> Result<(CertifiedKey, Renewal), TlsError> {
    let leaf = authority.issue(clock.now())?;
    let certified = CertifiedKey::from_der(leaf.chain, leaf.key, provider)?;
    Ok((certified, leaf.renewal))
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    std::fs::read(path).map_err(|source| TlsError::Read { path: path.to_owned(), source })
}

/// Makes sense of the files' contents, and checks that the two belong together.
fn certified_key(
    provider: &CryptoProvider,
    (cert, key): (&Path, &Path),
    (cert_pem, key_pem): &Files,
) -> Result<CertifiedKey, TlsError> {
    let pem = |path: &Path, what| TlsError::Pem { path: path.to_owned(), what };
    let chain = CertificateDer::pem_slice_iter(cert_pem)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|_| pem(cert, "certificate"))?;
    if chain.is_empty() {
        return Err(pem(cert, "certificate"));
    }
    // The error would quote the file; what it holds is secret.
    let secret = PrivateKeyDer::from_pem_slice(key_pem).map_err(|_| pem(key, "private key"))?;
    CertifiedKey::from_der(chain, secret, provider).map_err(|err| TlsError::Unusable {
        cert: cert.to_owned(),
        key: key.to_owned(),
        reason: err.to_string(),
    })
}
