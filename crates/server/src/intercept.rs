//! Standing in WeChat's place for SDKs that know no other: a local authority, and the certificates
//! that it signs for WeChat's names.
//!
//! Whoever trusts the authority trusts it for `weixin.qq.com` and what is below it, and for nothing
//! else: name constraints in its certificate see to that, wherever its key goes. [`Authority::make`]
//! makes one, [`Authority::load`] takes no other.

mod notes;

use std::{fmt, io, path::Path, path::PathBuf, time::Duration};

use clock::Timestamp;
use rcgen::{
    BasicConstraints, CertificateParams, CidrSubnet, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, GeneralSubtree, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    NameConstraints, PKCS_ECDSA_P256_SHA256, date_time_ymd,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, pem::PemObject};
use x509_parser::{
    certificate::X509Certificate, extensions::GeneralName, extensions::NameConstraints as Found,
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

/// The certificate of the authority in its folder, for clients to trust.
pub const CERT_FILE: &str = "ca.pem";
/// Its key.
pub const KEY_FILE: &str = "ca.key";

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

/// A new authority: what its two files hold.
pub struct NewAuthority {
    /// The certificate, in PEM.
    pub cert_pem: String,
    /// The key, in PEM.
    pub key_pem: String,
}

/// A local authority that signs for WeChat's names alone.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    from: Timestamp,
    until: Timestamp,
}

/// A certificate for [`NAMES`], and its key.
pub struct Leaf {
    /// The certificate.
    pub cert: CertificateDer<'static>,
    /// The key.
    pub key: PrivateKeyDer<'static>,
    /// When half of its time is over.
    pub renew_at: Timestamp,
}

impl Authority {
    /// Makes a new one, good for ten years.
    pub fn make(now: Timestamp) -> Result<NewAuthority, InterceptError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = name("xinfu intercept CA (weixin.qq.com only)");
        set_validity(&mut params, now - BACKDATED, now + AUTHORITY_LIFE);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.name_constraints = Some(NameConstraints {
            permitted_subtrees: vec![GeneralSubtree::DnsName(DOMAIN.to_owned())],
            excluded_subtrees: vec![
                GeneralSubtree::IpAddress(CidrSubnet::from_v4_prefix([0; 4], 0)),
                GeneralSubtree::IpAddress(CidrSubnet::from_v6_prefix([0; 16], 0)),
            ],
        });
        let cert = params.self_signed(&key)?;
        Ok(NewAuthority { cert_pem: cert.pem(), key_pem: key.serialize_pem() })
    }

    /// Reads the one in a folder. One that may sign for other names is refused.
    pub fn load(folder: &Path) -> Result<Self, InterceptError> {
        let (cert_path, key_path) = (folder.join(CERT_FILE), folder.join(KEY_FILE));
        if let Some(mode) = secret_file::open_to_others(&key_path) {
            return Err(InterceptError::Open { path: key_path, mode });
        }
        let no_key = || InterceptError::Bad { path: key_path.clone(), what: "private key in PEM" };
        let no_cert =
            || InterceptError::Bad { path: cert_path.clone(), what: "certificate in PEM" };
        let key = String::from_utf8(read(&key_path)?).map_err(|_| no_key())?;
        // The error would quote the file; what it holds is secret.
        let key = KeyPair::from_pem(&key).map_err(|_| no_key())?;
        let cert = CertificateDer::from_pem_slice(&read(&cert_path)?).map_err(|_| no_cert())?;

        let (_, parsed) = X509Certificate::from_der(&cert).map_err(|_| no_cert())?;
        if *parsed.public_key().subject_public_key.data != *key.public_key_raw() {
            return Err(InterceptError::Strangers(cert_path));
        }
        if !is_limited(&parsed) {
            return Err(InterceptError::Unlimited(cert_path));
        }
        let validity = parsed.validity();
        let from = Timestamp::from_secs(validity.not_before.timestamp());
        let until = Timestamp::from_secs(validity.not_after.timestamp());
        Ok(Self { issuer: Issuer::from_ca_cert_der(&cert, key)?, from, until })
    }

    /// When it ends, and every certificate of it.
    pub fn until(&self) -> Timestamp {
        self.until
    }

    /// Whether it is good now.
    pub fn check_time(&self, now: Timestamp) -> Result<(), InterceptError> {
        if now < self.from || now >= self.until {
            let (from, until) = (shown(self.from), shown(self.until));
            return Err(InterceptError::Ended { from, until });
        }
        Ok(())
    }

    /// Signs a certificate for [`NAMES`] with a new key.
    pub fn issue(&self, now: Timestamp) -> Result<Leaf, InterceptError> {
        self.check_time(now)?;
        let until = self.until.min(now + LEAF_LIFE);
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let mut params = CertificateParams::new(NAMES.map(str::to_owned))?;
        params.distinguished_name = name(NAMES[0]);
        set_validity(&mut params, now - BACKDATED, until);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        let cert = params.signed_by(&key, &self.issuer)?;
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        Ok(Leaf { cert: cert.into(), key, renew_at: now + until.since(now) / 2 })
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

/// Whether a certificate is of an authority with the limits of [`Authority::make`] or narrower ones.
fn is_limited(cert: &X509Certificate<'_>) -> bool {
    let is_last = cert.basic_constraints().ok().flatten().is_some_and(|basic| {
        basic.critical && basic.value.ca && basic.value.path_len_constraint == Some(0)
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
    let excludes = |length: usize| {
        let is_all = |bytes: &[u8]| bytes.len() == length && bytes.iter().all(|byte| *byte == 0);
        let trees = excluded_subtrees.as_deref().unwrap_or_default();
        trees.iter().any(|tree| matches!(tree.base, GeneralName::IPAddress(bytes) if is_all(bytes)))
    };
    // An address and its mask: 4 and 4 bytes, 16 and 16 bytes.
    is_last && names.critical && is_ours && excludes(8) && excludes(32)
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

fn read(path: &Path) -> Result<Vec<u8>, InterceptError> {
    std::fs::read(path).map_err(|source| InterceptError::Read { path: path.to_owned(), source })
}
