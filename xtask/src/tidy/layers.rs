//! Who may import whom, and who owns which external crate.

use std::path::Path;

use anyhow::{Context, Result};
use serde_json::Value;

use super::Finding;
use crate::command::Call;

/// A crate of the workspace with the crates of the workspace that it may import, and those that
/// only its tests may import besides.
struct Layer {
    name: &'static str,
    imports: &'static [&'static str],
    tests_import: &'static [&'static str],
}

const LAYERS: [Layer; 6] = [
    Layer { name: "clock", imports: &[], tests_import: &[] },
    Layer { name: "wechat", imports: &[], tests_import: &[] },
    Layer { name: "broker", imports: &["clock", "wechat"], tests_import: &["sim"] },
    Layer { name: "sim", imports: &["clock"], tests_import: &[] },
    Layer {
        name: "server",
        imports: &["clock", "wechat", "broker", "sim"],
        tests_import: &["sim"],
    },
    Layer { name: "xtask", imports: &[], tests_import: &[] },
];

/// Imports that must be optional: `server` is complete without the simulator.
const OPTIONAL: [(&str, &str); 1] = [("server", "sim")];

/// External crates with the only crates that may name them.
const OWNERS: [(&str, &[&str]); 16] = [
    ("axum", &["server", "sim"]),
    ("clap", &["server"]),
    ("deadpool-postgres", &["broker"]),
    ("governor", &["broker"]),
    ("multer", &["sim"]),
    ("prometheus-client", &["server"]),
    ("qrcode", &["sim"]),
    ("redis", &["broker"]),
    ("rusqlite", &["broker"]),
    // The server's tests make databases with it.
    ("tokio-postgres", &["broker", "server"]),
    ("tokio-postgres-rustls", &["broker"]),
    ("hickory-resolver", &["wechat"]),
    ("x509-parser", &["server"]),
    ("hyper", &["wechat", "server", "sim"]),
    ("hyper-util", &["wechat", "server", "sim"]),
    ("hyper-rustls", &["wechat", "server", "sim"]),
];

/// Crates that are built for no target and no feature: there is one TLS stack, one provider of
/// cryptography and one HTTP client.
const BANNED: [&str; 5] = ["openssl", "openssl-sys", "native-tls", "ring", "reqwest"];

/// Applies all rules of this file.
pub(super) fn check(root: &Path) -> Result<Vec<Finding>> {
    let args = ["metadata", "--no-deps", "--format-version", "1", "--locked"];
    let metadata = Call::cargo(root, args).stdout()?;
    let mut findings = Vec::new();
    for package in packages(&metadata)? {
        findings.extend(imports(&package));
    }

    // The lock file is no witness: it lists optional crates that no feature switches on.
    let args = [
        "tree",
        "--workspace",
        "--locked",
        "--all-features",
        "--target",
        "all",
        "--edges",
        "normal,build,dev",
        "--prefix",
        "none",
        "--format",
        "{p}",
    ];
    findings.extend(banned(&Call::cargo(root, args).stdout()?));
    Ok(findings)
}

struct Package {
    name: String,
    dependencies: Vec<Dependency>,
}

struct Dependency {
    name: String,
    is_ours: bool,
    for_tests: bool,
    optional: bool,
}

fn packages(metadata: &str) -> Result<Vec<Package>> {
    let metadata: Value = serde_json::from_str(metadata).context("read cargo's metadata")?;
    let list = |value: &Value, key: &str| value[key].as_array().cloned().unwrap_or_default();
    let text = |value: &Value, key: &str| value[key].as_str().unwrap_or_default().to_owned();
    let dependency = |value: &Value| Dependency {
        name: text(value, "name"),
        is_ours: value["path"].is_string(),
        for_tests: value["kind"] == "dev",
        optional: value["optional"] == true,
    };
    let package = |value: &Value| Package {
        name: text(value, "name"),
        dependencies: list(value, "dependencies").iter().map(dependency).collect(),
    };
    Ok(list(&metadata, "packages").iter().map(package).collect())
}

fn imports(package: &Package) -> Vec<Finding> {
    let name = package.name.as_str();
    let manifest = if name == "xtask" {
        "xtask/Cargo.toml".to_owned()
    } else {
        format!("crates/{name}/Cargo.toml")
    };
    let Some(layer) = LAYERS.iter().find(|layer| layer.name == name) else {
        return vec![Finding::new(
            &manifest,
            1,
            "a new crate needs its line in the table of layers",
        )];
    };
    let mut findings = Vec::new();
    for dependency in &package.dependencies {
        let import = dependency.name.as_str();
        let allowed = if dependency.is_ours {
            layer.imports.contains(&import)
                || dependency.for_tests && layer.tests_import.contains(&import)
        } else {
            OWNERS.iter().all(|(owned, by)| *owned != import || by.contains(&name))
        };
        if !allowed {
            findings.push(Finding::new(
                &manifest,
                1,
                format!("`{name}` may not import `{import}`"),
            ));
        }
        if OPTIONAL.contains(&(name, import)) && !dependency.for_tests && !dependency.optional {
            let message = format!("`{import}` must be an optional dependency of `{name}`");
            findings.push(Finding::new(&manifest, 1, message));
        }
    }
    findings
}

fn banned(tree: &str) -> Vec<Finding> {
    let is_built = |name: &&str| tree.lines().any(|line| line.split(' ').next() == Some(*name));
    let found = BANNED.into_iter().filter(is_built);
    found
        .map(|name| {
            let message =
                format!("`{name}` is built; `cargo tree --target all -i {name}` tells why");
            Finding::new("Cargo.lock", 1, message)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The messages for a package of this name whose only dependency is `import`.
    fn check_import(name: &str, import: &str, more: &str) -> Vec<String> {
        let metadata = format!(
            r#"{{"packages":[{{"name":"{name}","dependencies":[{{"name":"{import}"{more}}}]}}]}}"#
        );
        let packages = packages(&metadata).unwrap();
        packages.iter().flat_map(imports).map(|finding| finding.message).collect()
    }

    const OURS: &str = r#","path":"/x""#;
    const OURS_FOR_TESTS: &str = r#","path":"/x","kind":"dev""#;
    const NO_FINDING: [String; 0] = [];

    #[test]
    fn an_import_against_the_layers_is_found() {
        assert_eq!(check_import("broker", "wechat", OURS), NO_FINDING);
        assert_eq!(check_import("broker", "sim", OURS), ["`broker` may not import `sim`"]);
        assert_eq!(check_import("broker", "sim", OURS_FOR_TESTS), NO_FINDING);
        assert_eq!(check_import("wechat", "clock", OURS_FOR_TESTS).len(), 1);
        // An oracle shares no code with what it judges.
        assert_eq!(check_import("sim", "wechat", OURS).len(), 1);
        assert_eq!(check_import("new", "clock", OURS).len(), 1);
    }

    #[test]
    fn the_simulator_is_optional_in_the_server() {
        assert_eq!(check_import("server", "sim", r#","path":"/x","optional":true"#), NO_FINDING);
        assert_eq!(check_import("server", "sim", OURS).len(), 1);
        assert_eq!(check_import("server", "sim", OURS_FOR_TESTS), NO_FINDING);
    }

    #[test]
    fn an_external_crate_stays_with_its_owner() {
        assert_eq!(check_import("server", "axum", ""), NO_FINDING);
        assert_eq!(check_import("broker", "axum", ""), ["`broker` may not import `axum`"]);
        assert_eq!(check_import("server", "rusqlite", r#","kind":"dev""#).len(), 1);
        assert_eq!(check_import("broker", "tokio", ""), NO_FINDING);
    }

    #[test]
    fn a_banned_crate_is_found_by_its_whole_name() {
        assert_eq!(banned("rustls v0.23.0\nring-like v1.0.0 (*)\n"), []);
        assert_eq!(banned("rustls v0.23.0\nring v0.17.14 (*)\n").len(), 1);
    }
}
