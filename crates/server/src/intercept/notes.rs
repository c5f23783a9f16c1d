//! What has to be told to others: the lines of a hosts file, and how programs come to trust the
//! authority.

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
};

use super::NAMES;

/// Where systems keep the authorities that they trust, in one file.
const BUNDLES: [&str; 5] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// The files that programs are pointed to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Places {
    /// The certificate of the authority alone.
    pub cert: PathBuf,
    /// The system's authorities, and this one.
    pub bundle: PathBuf,
    /// Java's authorities, and this one.
    pub java: PathBuf,
}

/// The authorities that this system trusts, in PEM.
pub fn system_bundle() -> Option<String> {
    let texts = BUNDLES.iter().filter_map(|path| std::fs::read_to_string(path).ok());
    texts.into_iter().find(|text| text.contains("-----BEGIN CERTIFICATE-----"))
}

/// The lines that lead WeChat's names to an address.
pub fn hosts(address: IpAddr) -> String {
    NAMES.map(|name| format!("{address} {name}\n")).concat()
}

/// A path as shells take it, bare where it can be: not everybody who reads such lines takes quotes
/// off.
fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = |c: char| c.is_alphanumeric() || "/._-+:@".contains(c);
    if text.chars().all(plain) { text } else { format!("'{}'", text.replace('\'', r"'\''")) }
}

/// How programs come to trust the authority, by language.
pub fn environment(places: &Places) -> String {
    let (cert, bundle) = (quoted(&places.cert), quoted(&places.bundle));
    let java = quoted(&places.java);
    format!(
        "# Lines for the environment of a service whose SDK is led to xinfu; one language is enough.\n\
         \n\
         # Python: requests, httpx, aiohttp\n\
         REQUESTS_CA_BUNDLE={bundle}\n\
         SSL_CERT_FILE={bundle}\n\
         \n\
         # Node\n\
         NODE_EXTRA_CA_CERTS={cert}\n\
         \n\
         # Java: two commands once, then the variable\n\
         # cp \"$JAVA_HOME/lib/security/cacerts\" {java} && chmod u+w {java}\n\
         # keytool -importcert -noprompt -alias xinfu-intercept -file {cert} -keystore {java} -storepass changeit\n\
         JAVA_TOOL_OPTIONS=-Djavax.net.ssl.trustStore={java}\n\
         \n\
         # PHP: not variables but lines of php.ini\n\
         # curl.cainfo = {bundle}\n\
         # openssl.cafile = {bundle}\n\
         \n\
         # Go\n\
         SSL_CERT_FILE={bundle}\n\
         \n\
         # curl, or for one call: curl --cacert {cert}\n\
         CURL_CA_BUNDLE={bundle}\n"
    )
}
