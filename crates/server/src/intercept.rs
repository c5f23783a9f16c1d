//! Standing in WeChat's place for SDKs that know no other: a local authority, and the certificates
//! that it signs for WeChat's names.
//!
//! Whoever trusts the authority trusts it for `weixin.qq.com` and what is below it, without the names
//! where payments are made, and for nothing else: name constraints see to that, wherever the key
//! goes. Java and others do not look for constraints in a certificate that they were told to trust,
//! only in those below it. So there are two: the *root* that clients trust, whose key nobody has,
//! because it is dropped when it has signed once; and the *issuer* below it, whose key signs for
//! WeChat's names. [`Authority::make`] makes both, [`Authority::load`] takes no others.

mod notes;

use std::{
    fmt, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use clock::Timestamp;
use rcgen::{
    BasicConstraints, CertificateParams, CidrSubnet, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, GeneralSubtree, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    NameConstraints, PKCS_ECDSA_P256_SHA256, date_time_ymd,
};
use rustls::{
    RootCertStore,
    client::{WebPkiServerVerifier, danger::ServerCertVerifier},
    crypto::aws_lc_rs,
};
use rustls_pki_types::{
    CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime, pem::PemObject,
};
use x509_parser::{
    certificate::X509Certificate,
    extensions::{ExtendedKeyUsage, GeneralName, NameConstraints as Found},
    prelude::FromDer,
};

use crate::config::secret_file;

pub use notes::{Places, environment, hosts, system_bundle};

/// The names that are answered in WeChat's place.
pub const NAMES: [&str; 5] = [
    "api.weixin.qq.com",
    "api2.weixin.qq.com",
    "sh.api.weixin.qq.com",
    "sz.api.weixin.qq.com",
    "hk.api.weixin.qq.com",
];

/// The domain that the authority is limited to.
pub const DOMAIN: &str = "weixin.qq.com";

/// Where payments are made: below [`DOMAIN`], and never to be answered by anybody else.
pub const PAYMENTS: &str = "mch.weixin.qq.com";

/// The root in the folder of an authority, for clients to trust.
pub const ROOT_FILE: &str = "ca.pem";
/// The folder in it that is ours alone.
pub const PRIVATE_FOLDER: &str = "private";
/// The issuer in that folder.
pub const ISSUER_FILE: &str = "issuer.pem";
/// Its key.
pub const KEY_FILE: &str = "issuer.key";

const DAY: Duration = Duration::from_secs(86_400);
/// How long an authority is good.
const AUTHORITY_LIFE: Duration = DAY.saturating_mul(3_650);
/// How long a certificate of it is good.
const LEAF_LIFE: Duration = DAY.saturating_mul(30);
/// How far clocks of clients may be behind.
const BACKDATED: Duration = Duration::from_secs(3_600);

/// What is wrong with an authority.
#[derive(Debug, thiserror::Error)]
pub enum InterceptError {
    /// A file cannot be read.
    #[error("cannot read `{}`: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The key is open to other users.
    #[error("`{}` is open to other users (mode {mode:04o})", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// A file does not hold what it should.
    #[error("`{}` holds no {what}", path.display())]
    Bad {
        /// The file.
        path: PathBuf,
        /// What it should hold.
        what: &'static str,
    },
    /// The certificate belongs to another key.
    #[error("`{}` is not the certificate of the key beside it", .0.display())]
    Strangers(PathBuf),
    /// The certificate could sign for other names than WeChat's.
    #[error("`{}` is not limited to `{DOMAIN}`, as `xinfu intercept init` makes it", .0.display())]
    Unlimited(PathBuf),
    /// Who trusts the root would not believe what the issuer signs.
    #[error("`{}` does not vouch for the issuer in `{PRIVATE_FOLDER}`: {reason}", root.display())]
    Apart {
        /// The root.
        root: PathBuf,
        /// Why not.
        reason: rustls::Error,
    },
    /// It has ended, or has not begun.
    #[error("the authority is not good now: it is from {from} to {until}")]
    Ended {
        /// When it begins.
        from: String,
        /// When it ends.
        until: String,
    },
    /// Cryptography failed.
    #[error("no certificate can be made: {0}")]
    Make(#[from] rcgen::Error),
}

/// A new authority: what its files hold.
pub struct NewAuthority {
    /// The root, in PEM.
    pub root_pem: String,
    /// The issuer, in PEM.
    pub issuer_pem: String,
    /// The issuer's key, in PEM.
    pub key_pem: String,
}

/// A local authority that signs for WeChat's names alone.
pub struct Authority {
    root: (PathBuf, CertificateDer<'static>),
    issuer: Issuer<'static, KeyPair>,
    issuer_cert: CertificateDer<'static>,
    from: Timestamp,
    until: Timestamp,
}

/// A certificate for [`NAMES`], and its key.
pub struct Leaf {
    /// The certificate, and the issuer's.
    pub chain: Vec<CertificateDer<'static>>,
    /// The key.
    pub key: PrivateKeyDer<'static>,
    /// When it is to be replaced.
    pub renewal: Renewal,
}

/// When a certificate is to be replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Renewal {
    /// When the certificate begins: a clock that is before it has been set back.
    from: Timestamp,
    /// When half of its time is over.
    at: Timestamp,
}

impl Renewal {
    /// How long the certificate may stay in use; zero when it is to be replaced now.
    pub fn due_in(&self, now: Timestamp) -> Duration {
        if now < self.from { Duration::ZERO } else { self.at.since(now) }
    }
}

impl Authority {
    /// Makes a new one, good for ten years.
    pub fn make(now: Timestamp) -> Result<NewAuthority, InterceptError> {
        let root_key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let root = limited("xinfu intercept CA (weixin.qq.com only)", 1, now);
        let root_cert = root.self_signed(&root_key)?;
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let issuer = limited("xinfu intercept issuer (weixin.qq.com only)", 0, now)
            .signed_by(&key, &Issuer::from_params(&root, &root_key))?;
        Ok(NewAuthority {
            root_pem: root_cert.pem(),
            issuer_pem: issuer.pem(),
            key_pem: key.serialize_pem(),
        })
    }

    /// Reads the one in a folder. One that may sign for other names is refused.
    pub fn load(folder: &Path) -> Result<Self, InterceptError> {
        let private = folder.join(PRIVATE_FOLDER);
        let (issuer_path, key_path) = (private.join(ISSUER_FILE), private.join(KEY_FILE));
        if let Some(mode) = secret_file::open_to_others(&key_path) {
            return Err(InterceptError::Open { path: key_path, mode });
        }
        let no_key = || InterceptError::Bad { path: key_path.clone(), what: "private key in PEM" };
        let key = String::from_utf8(read(&key_path)?).map_err(|_| no_key())?;
        // The error would quote the file; what it holds is secret.
        let key = KeyPair::from_pem(&key).map_err(|_| no_key())?;
        let root_path = folder.join(ROOT_FILE);
        let root_cert = certificate(&root_path)?;
        let issuer_cert = certificate(&issuer_path)?;

        let (_, root) = X509Certificate::from_der(&root_cert).map_err(|_| no_cert(&root_path))?;
        let (_, issuer) =
            X509Certificate::from_der(&issuer_cert).map_err(|_| no_cert(&issuer_path))?;
        if *issuer.public_key().subject_public_key.data != *key.public_key_raw() {
            return Err(InterceptError::Strangers(issuer_path));
        }
        if !is_limited(&issuer, 0) {
            return Err(InterceptError::Unlimited(issuer_path));
        }
        if !is_limited(&root, 1) {
            return Err(InterceptError::Unlimited(root_path));
        }
        let times = [root.validity(), issuer.validity()];
        let from = times.map(|time| Timestamp::from_secs(time.not_before.timestamp()));
        let until = times.map(|time| Timestamp::from_secs(time.not_after.timestamp()));
        Ok(Self {
            from: from[0].max(from[1]),
            until: until[0].min(until[1]),
            issuer: Issuer::from_ca_cert_der(&issuer_cert, key)?,
            issuer_cert,
            root: (root_path, root_cert),
        })
    }

    /// When it ends, and every certificate of it.
    pub fn until(&self) -> Timestamp {
        self.until
    }

    /// Signs a certificate for [`NAMES`] with a new key, and looks at it as a client does.
    pub fn issue(&self, now: Timestamp) -> Result<Leaf, InterceptError> {
        if now < self.from || now >= self.until {
            let (from, until) = (shown(self.from), shown(self.until));
            return Err(InterceptError::Ended { from, until });
        }
        let (from, until) = (self.from.max(now - BACKDATED), self.until.min(now + LEAF_LIFE));
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let mut params = CertificateParams::new(NAMES.map(str::to_owned))?;
        params.distinguished_name = name(NAMES[0]);
        set_validity(&mut params, from, until);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        let cert = params.signed_by(&key, &self.issuer)?;
        let chain = vec![cert.into(), self.issuer_cert.clone()];
        let (root, _) = &self.root;
        self.verify(&chain, now)
            .map_err(|reason| InterceptError::Apart { root: root.clone(), reason })?;
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let renewal = Renewal { from, at: now + until.since(now) / 2 };
        Ok(Leaf { chain, key, renewal })
    }

    /// Whether a client that trusts the root believes a chain.
    fn verify(
        &self,
        chain: &[CertificateDer<'static>],
        now: Timestamp,
    ) -> Result<(), rustls::Error> {
        let mut roots = RootCertStore::empty();
        roots.add(self.root.1.clone())?;
        let provider = Arc::new(aws_lc_rs::default_provider());
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider)
            .build()
            .map_err(|err| rustls::Error::General(err.to_string()))?;
        let now = UnixTime::since_unix_epoch(now.since(Timestamp::from_secs(0)));
        for name in NAMES {
            let name = ServerName::try_from(name)
                .map_err(|err| rustls::Error::General(err.to_string()))?;
            verifier.verify_server_cert(&chain[0], &chain[1..], &name, &[], now)?;
        }
        Ok(())
    }
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority").field("until", &self.until).finish_non_exhaustive()
    }
}

/// A time for people.
pub fn shown(at: Timestamp) -> String {
    jiff::Timestamp::from_second(at.as_secs())
        .map_or_else(|_| "an unknown time".to_owned(), |at| at.strftime("%Y-%m-%d").to_string())
}

/// A certificate that may sign for WeChat's names alone, through so many others at most.
fn limited(common: &str, depth: u8, now: Timestamp) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = name(common);
    set_validity(&mut params, now - BACKDATED, now + AUTHORITY_LIFE);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(depth));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    // Names of other kinds, such as those of mail, have no use here.
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.name_constraints = Some(NameConstraints {
        permitted_subtrees: vec![GeneralSubtree::DnsName(DOMAIN.to_owned())],
        // A limit of names says nothing about addresses.
        excluded_subtrees: vec![
            GeneralSubtree::DnsName(PAYMENTS.to_owned()),
            GeneralSubtree::IpAddress(CidrSubnet::from_v4_prefix([0; 4], 0)),
            GeneralSubtree::IpAddress(CidrSubnet::from_v6_prefix([0; 16], 0)),
        ],
    });
    params.use_authority_key_identifier_extension = true;
    params
}

/// Whether a certificate has the limits of [`limited`], or narrower ones.
fn is_limited(cert: &X509Certificate<'_>, depth: u32) -> bool {
    let is_ca = cert.basic_constraints().ok().flatten().is_some_and(|basic| {
        basic.critical && basic.value.ca && basic.value.path_len_constraint == Some(depth)
    });
    let is_for_servers = cert.extended_key_usage().ok().flatten().is_some_and(|usage| {
        let ExtendedKeyUsage { any, client_auth, code_signing, email_protection, .. } = usage.value;
        usage.value.server_auth && !(*any || *client_auth || *code_signing || *email_protection)
    });
    let Ok(Some(names)) = cert.name_constraints() else { return false };
    let Found { permitted_subtrees, excluded_subtrees } = &names.value;
    let below = format!(".{DOMAIN}");
    let permitted = permitted_subtrees.as_deref().unwrap_or_default();
    let is_ours = permitted.iter().any(|tree| matches!(tree.base, GeneralName::DNSName(_)))
        && permitted.iter().all(|tree| match tree.base {
            GeneralName::DNSName(name) => name == DOMAIN || name.ends_with(&below),
            _ => false,
        });
    let excluded = excluded_subtrees.as_deref().unwrap_or_default();
    let excludes_addresses = |length: usize| {
        let is_all = |bytes: &[u8]| bytes.len() == length && bytes.iter().all(|byte| *byte == 0);
        excluded
            .iter()
            .any(|tree| matches!(tree.base, GeneralName::IPAddress(bytes) if is_all(bytes)))
    };
    let excludes_payments =
        excluded.iter().any(|tree| matches!(tree.base, GeneralName::DNSName(PAYMENTS)));
    // An address and its mask: 4 and 4 bytes, 16 and 16 bytes.
    let excludes_all = excludes_payments && excludes_addresses(8) && excludes_addresses(32);
    is_ca && is_for_servers && names.critical && is_ours && excludes_all
}

/// Sets the time that a certificate is good for.
fn set_validity(params: &mut CertificateParams, from: Timestamp, until: Timestamp) {
    let since_epoch = |at: Timestamp| at.since(Timestamp::from_secs(0));
    params.not_before = date_time_ymd(1970, 1, 1) + since_epoch(from);
    params.not_after = date_time_ymd(1970, 1, 1) + since_epoch(until);
}

fn name(common: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common);
    name
}

/// The certificate in a file.
fn certificate(path: &Path) -> Result<CertificateDer<'static>, InterceptError> {
    CertificateDer::from_pem_slice(&read(path)?).map_err(|_| no_cert(path))
}

fn no_cert(path: &Path) -> InterceptError {
    InterceptError::Bad { path: path.to_owned(), what: "certificate in PEM" }
}

fn read(path: &Path) -> Result<Vec<u8>, InterceptError> {
    std::fs::read(path).map_err(|source| InterceptError::Read { path: path.to_owned(), source })
}
