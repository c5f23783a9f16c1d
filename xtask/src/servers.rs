//! PostgreSQL and Redis for tests: private servers on free ports, in a folder that goes with them.

use std::{
    fs,
    net::TcpListener,
    os::unix::fs::chown,
    path::{Path, PathBuf},
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

/// Both servers, until they are dropped.
pub(crate) struct Servers {
    postgres: String,
    redis: String,
    _daemons: [Daemon; 2],
    // Last, so that the servers have ended when their folder goes.
    _folder: Folder,
}

impl Servers {
    /// Starts both. What is missing is installed, where that is possible.
    pub(crate) fn start(root: &Path) -> Result<Self> {
        tools::install(root, &[("redis-server", "redis-server")])?;
        if bin_of_postgres().is_none() {
            tools::install(root, &[("postgres", "postgresql")])?;
        }
        let folder = Folder::new()?;
        let (postgres, postgres_daemon) = start_postgres(&folder)?;
        let (redis, redis_daemon) = start_redis(&folder)?;
        Ok(Self { postgres, redis, _daemons: [postgres_daemon, redis_daemon], _folder: folder })
    }

    /// Tells a call where they are.
    #[must_use]
    pub(crate) fn lent_to(&self, call: Call) -> Call {
        call.env(POSTGRES, &self.postgres).env(REDIS, &self.redis)
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

fn start_postgres(folder: &Folder) -> Result<(String, Daemon)> {
    let bin = bin_of_postgres().context("PostgreSQL is not in /usr/lib/postgresql")?;
    let program = |name: &str| bin.join(name).display().to_string();
    let data = folder.path().join("postgres");
    fs::create_dir(&data)?;
    // PostgreSQL refuses to run as root.
    let id = |flag: &str, of: &str| -> Result<u32> {
        Ok(Call::new("id", Path::new("/"), [flag, of]).stdout()?.trim().parse()?)
    };
    let as_postgres: &[&str] = if Call::new("id", Path::new("/"), ["-u"]).stdout()?.trim() == "0" {
        chown(&data, Some(id("-u", "postgres")?), Some(id("-g", "postgres")?))?;
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
    let settings = [
        "listen_addresses=127.0.0.1",
        "unix_socket_directories=",
        "fsync=off",
        "max_connections=500",
        "shared_buffers=64MB",
    ];
    let mut args = vec!["-D", &path, "-p", &port];
    args.extend(settings.iter().flat_map(|setting| ["-c", setting]));
    let mut daemon =
        Daemon::start("postgres", None, folder.path(), &line(program("postgres"), &args), &[])?;
    daemon.until("answer", |_| {
        let call = Call::new(
            &program("pg_isready"),
            folder.path(),
            ["-q", "-h", "127.0.0.1", "-p", &port],
        );
        Ok(call.works().then_some(()))
    })?;
    Ok((format!("postgres://xinfu@127.0.0.1:{port}/postgres"), daemon))
}

fn start_redis(folder: &Folder) -> Result<(String, Daemon)> {
    let port = free_port()?.to_string();
    let line = [
        "redis-server",
        "--port",
        &port,
        "--bind",
        "127.0.0.1",
        "--save",
        "",
        "--appendonly",
        "no",
    ];
    let mut daemon = Daemon::start("redis", None, folder.path(), &line, &[])?;
    daemon.until("answer", |_| {
        let call = Call::new("redis-cli", folder.path(), ["-p", &port, "ping"]);
        Ok(call.works().then_some(()))
    })?;
    Ok((format!("redis://127.0.0.1:{port}/0"), daemon))
}

/// A port that nobody has at this moment.
fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}
