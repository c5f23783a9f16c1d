//! PostgreSQL and Redis for tests, a Sentinel and a cluster too: private servers on free ports, in a
//! folder that goes with them.

use std::{
    fs,
    net::TcpListener,
    os::unix::fs::chown,
    path::{Path, PathBuf},
    process,
};

use anyhow::{Context, Result};

use crate::{
    bench::{place::Folder, process::Daemon},
    command::Call,
    tools,
};

/// Where the tests look for PostgreSQL: a URL of a user that may make databases.
const POSTGRES: &str = "XINFU_TEST_POSTGRES";
/// Where the tests look for Redis: a URL.
const REDIS: &str = "XINFU_TEST_REDIS";
/// Where they look for the same Redis by TLS, for a Sentinel that knows it as `main`, for a cluster.
const REDIS_BY_TLS: &str = "XINFU_TEST_REDIS_TLS";
const SENTINEL: &str = "XINFU_TEST_REDIS_SENTINEL";
const CLUSTER: &str = "XINFU_TEST_REDIS_CLUSTER";
/// The file of the authority that has signed the certificates of both, for `localhost`.
const CA: &str = "XINFU_TEST_CA";

/// A PostgreSQL and a Redis that tests may kill: they are started again, and write who they are to
/// `frail-postgres.pid` and `frail-redis.pid` in the folder that the last one names.
const FRAIL_POSTGRES: &str = "XINFU_TEST_FRAIL_POSTGRES";
const FRAIL_REDIS: &str = "XINFU_TEST_FRAIL_REDIS";
const FRAIL_PIDS: &str = "XINFU_TEST_FRAIL_PIDS";

/// Whether a test can give a process a network of its own: `yes` or `no`.
const NAMESPACES: &str = "XINFU_TEST_NAMESPACES";

/// Runs a program again whenever it ends, a second later; its number goes to the file `$0`.
const SUPERVISOR: &str = r#"
trap 'over=yes; kill -INT $pid' TERM
while [ -z "$over" ]; do
  "$@" & pid=$!
  echo $pid > "$0"
  wait $pid
  # A signal ends the waiting, not the program.
  wait $pid
  [ -n "$over" ] || sleep 1
done
"#;

/// The servers, until they are dropped.
pub(crate) struct Servers {
    variables: Vec<(&'static str, String)>,
    _daemons: Vec<Daemon>,
    // Last, so that the servers have ended when their folder goes.
    _folder: Folder,
}

impl Servers {
    /// Starts all. What is missing is installed, where that is possible.
    pub(crate) fn start(root: &Path) -> Result<Self> {
        tools::install(root, &[("redis-server", "redis-server"), ("openssl", "openssl")])?;
        install_postgres(root)?;
        let folder = Folder::new()?;
        let tls = Certificates::new(&folder)?;
        let loose = ["fsync=off"];
        let postgres = Postgres::start("postgres", &folder, &tls, &[], &loose)?;
        let name = "frail-postgres";
        let frail = supervised(&folder, name);
        let frail_postgres = Postgres::start(name, &folder, &tls, &frail, &loose)?;
        let redis = Redis::start("redis", &folder, &[], Some(&tls))?;
        let frail_redis = Redis::start_by(
            &supervised(&folder, "frail-redis"),
            "frail-redis",
            &folder,
            &[],
            None,
        )?;
        let cluster = Redis::start("cluster", &folder, &["--cluster-enabled", "yes"], None)?;
        let all_slots = ["cluster", "addslotsrange", "0", "16383"];
        Call::new("redis-cli", folder.path(), ["-p", &cluster.port].iter().chain(&all_slots))
            .run()?;
        let monitor = format!("sentinel monitor main 127.0.0.1 {} 1\n", redis.port);
        let settings = folder.write("sentinel.conf", &monitor)?.display().to_string();
        let sentinel = Redis::start("sentinel", &folder, &[&settings, "--sentinel"], None)?;
        let variables = vec![
            (POSTGRES, postgres.url("postgres")),
            (REDIS, format!("redis://127.0.0.1:{}/0", redis.port)),
            (REDIS_BY_TLS, format!("rediss://localhost:{}/0", redis.tls_port.unwrap_or_default())),
            (SENTINEL, format!("redis+sentinel://127.0.0.1:{}/main/0", sentinel.port)),
            (CLUSTER, format!("redis+cluster://127.0.0.1:{}", cluster.port)),
            (CA, tls.ca),
            (FRAIL_POSTGRES, frail_postgres.url("postgres")),
            (FRAIL_REDIS, format!("redis://127.0.0.1:{}/0", frail_redis.port)),
            (FRAIL_PIDS, folder.path().display().to_string()),
            (NAMESPACES, namespaces(root)?.to_owned()),
        ];
        let daemons = vec![
            postgres.daemon,
            frail_postgres.daemon,
            redis.daemon,
            frail_redis.daemon,
            cluster.daemon,
            sentinel.daemon,
        ];
        Ok(Self { variables, _daemons: daemons, _folder: folder })
    }

    /// Tells a call where they are.
    #[must_use]
    pub(crate) fn lent_to(&self, call: Call) -> Call {
        self.variables.iter().fold(call, |call, (name, value)| call.env(name, value))
    }
}

/// Whether networks of one's own can be made, which is for root; and not for each: containers that
/// let root have another network may keep it from naming one, or from a wire to it.
fn namespaces(root: &Path) -> Result<&'static str> {
    if !Call::new("unshare", root, ["--net", "true"]).works() {
        return Ok("no");
    }
    tools::install(root, &[("ip", "iproute2")])?;
    let ip = |line: &str| Call::new("ip", root, line.split(' ')).works();
    let (name, device) = (format!("xinfu-{}", process::id()), format!("xf{}", process::id()));
    let wire = format!("link add {device} type veth peer name {device} netns {name}");
    let made = ip(&format!("netns add {name}"));
    let laid = made && ip(&wire);
    // The wire goes with it.
    let removed = made && ip(&format!("netns delete {name}"));
    Ok(if laid && removed { "yes" } else { "no" })
}

/// An authority, and a certificate of it for this machine; the paths of their files.
pub(crate) struct Certificates {
    ca: String,
    cert: String,
    key: String,
}

impl Certificates {
    /// Makes them.
    pub(crate) fn new(folder: &Folder) -> Result<Self> {
        let path = |name: &str| folder.path().join(name).display().to_string();
        let (ca, ca_key) = (path("ca.pem"), path("ca.key"));
        let (cert, key) = (path("cert.pem"), path("cert.key"));
        let make = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"];
        let make = |args: &[&str]| {
            Call::new(
                "openssl",
                folder.path(),
                make.iter().chain(&["-nodes", "-days", "2"]).chain(args),
            )
            .stdout()
        };
        make(&["-subj", "/CN=xinfu tests", "-keyout", &ca_key, "-out", &ca])?;
        make(&[
            "-subj",
            "/CN=localhost",
            "-addext",
            "subjectAltName=DNS:localhost",
            "-addext",
            "basicConstraints=critical,CA:FALSE",
            "-CA",
            &ca,
            "-CAkey",
            &ca_key,
            "-keyout",
            &key,
            "-out",
            &cert,
        ])?;
        Ok(Self { ca, cert, key })
    }
}

/// The folder of PostgreSQL's programs, the newest if there are several: Debian keeps most of them
/// out of the path.
fn bin_of_postgres() -> Option<PathBuf> {
    let versions = fs::read_dir("/usr/lib/postgresql").ok()?;
    let version = |path: &Path| path.file_name()?.to_str()?.parse::<u32>().ok();
    let found = versions.flatten().map(|entry| entry.path());
    let newest =
        found.filter(|path| path.join("bin/postgres").is_file()).max_by_key(|it| version(it));
    Some(newest?.join("bin"))
}

/// What stands before the line of a program that is started again when it ends.
fn supervised(folder: &Folder, name: &str) -> Vec<String> {
    let pid = folder.path().join(format!("{name}.pid")).display().to_string();
    ["sh", "-c", SUPERVISOR].map(str::to_owned).into_iter().chain([pid]).collect()
}

/// Installs PostgreSQL when it is missing.
pub(crate) fn install_postgres(root: &Path) -> Result<()> {
    if bin_of_postgres().is_some() {
        return Ok(());
    }
    // Debian keeps the server itself out of the path.
    tools::install(root, &[("pg_ctlcluster", "postgresql")])
}

/// A PostgreSQL of our own.
pub(crate) struct Postgres {
    port: String,
    bin: PathBuf,
    pub(crate) daemon: Daemon,
}

impl Postgres {
    /// Starts one; `before` stands before its line.
    pub(crate) fn start(
        name: &'static str,
        folder: &Folder,
        tls: &Certificates,
        before: &[String],
        settings: &[&str],
    ) -> Result<Self> {
        let bin = bin_of_postgres().context("PostgreSQL is not in /usr/lib/postgresql")?;
        let program = |name: &str| bin.join(name).display().to_string();
        let data = folder.path().join(name);
        fs::create_dir(&data)?;
        // PostgreSQL refuses to run as root.
        let id = |flag: &str, of: &str| -> Result<u32> {
            Ok(Call::new("id", Path::new("/"), [flag, of]).stdout()?.trim().parse()?)
        };
        // It wants the key to be its own.
        let key = folder.path().join(format!("{name}.key"));
        fs::copy(&tls.key, &key)?;
        let as_postgres: &[&str] =
            if Call::new("id", Path::new("/"), ["-u"]).stdout()?.trim() == "0" {
                for path in [&data, &key] {
                    chown(path, Some(id("-u", "postgres")?), Some(id("-g", "postgres")?))?;
                }
                &["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]
            } else {
                &[]
            };
        let path = data.display().to_string();
        let line = |program: String, args: &[&str]| -> Vec<String> {
            let before = as_postgres.iter().map(|word| (*word).to_owned());
            before.chain([program]).chain(args.iter().map(|word| (*word).to_owned())).collect()
        };
        // An order of letters that is not that of their bytes, as most databases have.
        let init = ["-D", &path, "-U", "xinfu", "-A", "trust", "-E", "UTF8", "--no-sync"];
        let init = line(
            program("initdb"),
            &[&init[..], &["--locale-provider=icu", "--icu-locale=en"]].concat(),
        );
        Call::new(&init[0], folder.path(), &init[1..]).stdout()?;
        let port = free_port()?.to_string();
        let (cert, key) =
            (format!("ssl_cert_file={}", tls.cert), format!("ssl_key_file={}", key.display()));
        let fixed = [
            "ssl=on",
            &cert,
            &key,
            "listen_addresses=127.0.0.1",
            "unix_socket_directories=",
            "max_connections=500",
            "shared_buffers=64MB",
        ];
        let mut args = vec!["-D", &path, "-p", &port];
        args.extend(fixed.iter().chain(settings).flat_map(|setting| ["-c", setting]));
        let line = [before, &line(program("postgres"), &args)].concat();
        let mut daemon = Daemon::start(name, None, folder.path(), &line, &[])?;
        daemon.until("answer", |_| {
            let call = Call::new(
                &program("pg_isready"),
                folder.path(),
                ["-q", "-h", "127.0.0.1", "-p", &port],
            );
            Ok(call.works().then_some(()))
        })?;
        Ok(Self { port, bin, daemon })
    }

    /// The URL of a database.
    pub(crate) fn url(&self, database: &str) -> String {
        format!("postgres://xinfu@127.0.0.1:{}/{database}", self.port)
    }

    /// What a database answers to a statement, in plain text.
    pub(crate) fn ask(&self, database: &str, sql: &str) -> Result<String> {
        let psql = self.bin.join("psql").display().to_string();
        Call::new(&psql, Path::new("/"), ["-XAtqc", sql, &self.url(database)]).stdout()
    }
}

/// A server of the family.
struct Redis {
    port: String,
    tls_port: Option<String>,
    daemon: Daemon,
}

impl Redis {
    fn start(
        name: &'static str,
        folder: &Folder,
        settings: &[&str],
        tls: Option<&Certificates>,
    ) -> Result<Self> {
        Self::start_by(&[], name, folder, settings, tls)
    }

    /// The same, with something before its line.
    fn start_by(
        before: &[String],
        name: &'static str,
        folder: &Folder,
        settings: &[&str],
        tls: Option<&Certificates>,
    ) -> Result<Self> {
        let (port, tls_port) = (free_port()?.to_string(), free_port()?.to_string());
        let nodes = format!("{name}-nodes.conf");
        let mut line: Vec<&str> = before.iter().map(String::as_str).collect();
        line.push("redis-server");
        line.extend(settings.iter().take_while(|setting| !setting.starts_with("--")));
        line.extend(["--port", &port, "--bind", "127.0.0.1"]);
        line.extend(settings.iter().skip_while(|setting| !setting.starts_with("--")));
        if !settings.contains(&"--sentinel") {
            line.extend(["--save", "", "--appendonly", "no", "--cluster-config-file", &nodes]);
        }
        if let Some(tls) = tls {
            line.extend(["--tls-port", &tls_port, "--tls-auth-clients", "no"]);
            line.extend(["--tls-cert-file", &tls.cert, "--tls-key-file", &tls.key]);
            line.extend(["--tls-ca-cert-file", &tls.ca]);
        }
        let mut daemon = Daemon::start(name, None, folder.path(), &line, &[])?;
        daemon.until("answer", |_| {
            let call = Call::new("redis-cli", folder.path(), ["-p", &port, "ping"]);
            Ok(call.works().then_some(()))
        })?;
        Ok(Self { port, tls_port: tls.map(|_| tls_port), daemon })
    }
}

/// A port that nobody has at this moment.
fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}
