//! The certificate and key of a listener, read again when their files change.

use std::{
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use arc_swap::ArcSwap;
use rustls::{
    ServerConfig,
    crypto::{CryptoProvider, aws_lc_rs},
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use tokio_rustls::TlsAcceptor;

/// How often the files are compared with what is in use.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// A certificate chain and its key, from two PEM files. Cloning gives another handle to the same.
#[derive(Clone, Debug)]
pub struct Tls(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    cert: PathBuf,
    key: PathBuf,
    provider: Arc<CryptoProvider>,
    config: Arc<ServerConfig>,
    current: Arc<Current>,
    /// The bytes of both files as last read, good or bad, so that each change is told once.
    seen: Mutex<Files>,
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
        let current = Arc::new(Current(ArcSwap::from_pointee(certified)));
        let mut config = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(|err| TlsError::Unusable {
                cert: cert.clone(),
                key: key.clone(),
                reason: err.to_string(),
            })?
            .with_no_client_auth()
            .with_cert_resolver(Arc::clone(&current) as Arc<dyn ResolvesServerCert>);
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        let config = Arc::new(config);
        Ok(Self(Arc::new(Inner { cert, key, provider, config, current, seen: Mutex::new(files) })))
    }

    /// What takes connections through the handshake.
    pub(super) fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(Arc::clone(&self.0.config))
    }

    /// Takes changed files over, for ever.
    pub(super) async fn follow_files(&self) {
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
        let Inner { cert, key, provider, current, seen, .. } = &*self.0;
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
                current.0.store(Arc::new(certified));
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
struct Current(ArcSwap<CertifiedKey>);

impl ResolvesServerCert for Current {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.load_full())
    }
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
