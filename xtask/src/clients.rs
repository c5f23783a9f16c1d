//! `cargo xtask test clients`: SDKs that nobody here wrote, against xinfu and the simulator.
//!
//! The clients are in `clients/`, in three languages. Here they are installed at their pinned
//! versions, a simulator and a server are started, and each client is given a file that describes
//! that world; and the lines that the demonstration prints are pasted. A client fails by its exit
//! status; the figures of the load are checked here: through xinfu no call may fail.

use std::{
    ffi::OsStr,
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use crate::command::{Call, Stopwatch};

/// The app whose token is the stable issuer's, and the one on the classic issuer.
const APP: &str = "wx00000000000000aa";
const CLASSIC: &str = "wx00000000000000bb";
/// Apps on the classic issuer, one for each load.
const LOADED: [&str; 2] = ["wx00000000000000c0", "wx00000000000000c1"];
/// Apps that no server here holds, for those who go straight to WeChat: one for each run, since each
/// uses up a day's quota.
const STRAIGHT: [&str; 6] = [
    "wx00000000000000d0",
    "wx00000000000000d1",
    "wx00000000000000d2",
    "wx00000000000000d3",
    "wx00000000000000d4",
    "wx00000000000000d5",
];
const SECRET: &str = "0123456789abcdef0123456789abcdef";
const OPENID: &str = "oABCDEFGHIJKLMNOPQRSTUVWXYZ0";
const NICKNAME: &str = "小明 🌏";

/// Far above what any of it takes; a hang ends here.
const LIMIT: Duration = Duration::from_secs(900);

/// Installs everything, and runs all clients.
pub(crate) fn run(root: &Path) -> Result<()> {
    let place = root.join("target/clients");
    fs::create_dir_all(&place)?;
    let python = install_python(root, &place)?;
    let node = install_node(root, &place)?;
    let rust = install_rust(root, &place)?;
    Call::cargo(root, ["build", "--locked"]).run()?;

    let world = World::start(root, &place)?;
    let clients: [(&str, Vec<PathBuf>); 3] = [
        ("wechatpy", vec![python.clone(), root.join("clients/python/walk.py")]),
        ("node", vec!["node".into(), node.join("walk.js")]),
        ("rust", vec![rust]),
    ];
    for (name, command) in clients {
        let described = world.describe(name, CLASSIC, &[])?;
        world.in_it(call(root, &command, &described)).run_within(LIMIT)?;
    }
    untouched(root, &python, &world.xinfu)?;
    pasted(root, &python, &node)?;
    let loads = [
        ("python-load", vec![python, root.join("clients/python/load.py")]),
        ("node-load", vec!["node".into(), node.join("load.js")]),
    ];
    let of_loads = [(LOADED[0], &STRAIGHT[..2]), (LOADED[1], &STRAIGHT[2..])];
    let mut figures = Vec::new();
    for ((name, command), (classic, straight)) in loads.into_iter().zip(of_loads) {
        let described = world.describe(name, classic, straight)?;
        let printed = world.in_it(call(root, &command, &described)).stdout()?;
        let rows: Vec<Value> =
            serde_json::from_str(&printed).context("a load prints its figures")?;
        figures.extend(rows);
    }
    print_figures(&figures);
    check_figures(&figures)
}

/// The lines that the demonstration prints to be pasted, all of them, in one shell.
fn pasted(root: &Path, python: &Path, node: &Path) -> Result<()> {
    let mut demo = Command::new(root.join("target/debug/xinfu"));
    demo.args(["demo", "--port-base", "0"]).stderr(Stdio::null());
    let (_demo, printed) = start(&mut demo, "Ctrl-C ends it")?;
    let lines = printed.iter().skip_while(|line| !line.contains("Lines to paste")).skip(1);
    let lines = lines.take_while(|line| !line.contains("Ctrl-C"));
    let programs = python.parent().context("an interpreter lies in a folder")?;
    let mut script = vec![format!("PATH='{}':$PATH", programs.display())];
    script.extend(lines.map(|line| line.trim_start().to_owned()));
    ensure!(script.len() > 20, "the demonstration prints lines to paste: {printed:?}");
    let said = Call::new("bash", root, ["-eu", "-c", &script.join("\n")])
        .env("NODE_PATH", node.join("node_modules"))
        .stdout()
        .context("the lines that `xinfu demo` prints to be pasted")?;
    // What each of them shows, and how often: a follower read by curl, by Python and by Node, and
    // the one refusal that the foreign refresh causes.
    let shown = [
        ("\"subscribe\":1", 1),
        ("'subscribe': 1", 1),
        (" subscribe: 1", 1),
        ("\"errcode\":40001,\"errmsg\"", 1),
    ];
    for (what, times) in shown {
        let found = said.matches(what).count();
        ensure!(found == times, "`{what}` is shown {found} times, not {times}:\n{said}");
    }
    println!("the lines of the demonstration, pasted");
    Ok(())
}

/// wechatpy as it is, where xinfu stands in WeChat's place: in a mount and a network namespace of
/// its own. Only root can make these; for others this part is left out, in so many words.
fn untouched(root: &Path, python: &Path, xinfu: &Path) -> Result<()> {
    if Call::new("id", root, ["-u"]).stdout()?.trim() != "0" {
        println!("wechatpy, untouched: LEFT OUT, since only root can make namespaces");
        return Ok(());
    }
    let alone = ["--mount", "--net"];
    Call::new("unshare", root, [&alone[..], &["true"]].concat())
        .run()
        .context("root cannot make namespaces here: a container needs `--cap-add SYS_ADMIN`")?;
    let folder = root.join("target/clients/intercepted");
    if folder.exists() {
        fs::remove_dir_all(&folder)?;
    }
    fs::create_dir_all(&folder)?;
    let script = root.join("clients/python/intercepted.py");
    let args = [python, &script, xinfu, &folder].map(Path::as_os_str);
    let args = alone.map(OsStr::new).into_iter().chain(args);
    Call::new("unshare", root, args).run_within(LIMIT)
}

/// A virtual environment with wechatpy in it; answers its interpreter.
fn install_python(root: &Path, place: &Path) -> Result<PathBuf> {
    let how = "Python 3 with venv is needed; to install it, on Debian as root: \
               `apt-get install python3 python3-venv`";
    let folder = place.join("python");
    let python = folder.join("bin/python3");
    if !python.exists() {
        let venv = [Path::new("-m"), Path::new("venv"), &folder];
        Call::new("python3", root, venv).run().context(how)?;
    }
    let requirements = "clients/python/requirements.txt";
    let pip =
        ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r", requirements];
    Call::new(&python.to_string_lossy(), root, pip).run()?;
    Ok(python)
}

/// The clients of Node beside their packages; answers the folder.
fn install_node(root: &Path, place: &Path) -> Result<PathBuf> {
    let how = "Node.js with npm is needed; to install it, on Debian as root: `apt-get install nodejs npm`";
    let folder = place.join("node");
    fs::create_dir_all(&folder)?;
    for file in fs::read_dir(root.join("clients/node"))? {
        let file = file?.path();
        let name = file.file_name().context("a file has a name")?;
        if file.is_file() {
            fs::copy(&file, folder.join(name))?;
        }
    }
    let npm = ["ci", "--silent", "--no-audit", "--no-fund"];
    Call::new("npm", &folder, npm).run().context(how)?;
    Ok(folder)
}

/// The client in Rust, built outside of the workspace; answers the program.
fn install_rust(root: &Path, place: &Path) -> Result<PathBuf> {
    let target = place.join("rust");
    let args = ["build", "--quiet", "--locked", "--manifest-path", "clients/rust/Cargo.toml"];
    Call::cargo(root, args).env("CARGO_TARGET_DIR", &target).run()?;
    Ok(target.join("debug/clients"))
}

/// A simulated WeChat and a server, running.
struct World {
    folder: PathBuf,
    xinfu: PathBuf,
    config: PathBuf,
    sim: String,
    control: String,
    api: String,
    _processes: Vec<Running>,
}

/// A process that ends with us.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

impl World {
    fn start(root: &Path, place: &Path) -> Result<Self> {
        let folder = place.join("world");
        if folder.exists() {
            fs::remove_dir_all(&folder)?;
        }
        fs::create_dir_all(&folder)?;
        let xinfu = root.join("target/debug/xinfu");
        let mut sim = Command::new(&xinfu);
        sim.args(["sim", "--listen", "127.0.0.1:0", "--control", "127.0.0.1:0", "--seed", "1"]);
        let apps: Vec<&str> = [APP, CLASSIC].into_iter().chain(LOADED).chain(STRAIGHT).collect();
        for app in &apps {
            sim.arg("--app").arg(format!("{app}:{SECRET}"));
        }
        let (simulator, printed) = start(&mut sim, "simulated WeChat on ")?;
        let mut urls = printed
            .iter()
            .flat_map(|line| line.split(' '))
            .filter(|word| word.starts_with("http://"));
        let mut url = || urls.next().map(|url| url.trim_end_matches(',').to_owned());
        let sim = url().context("the simulator tells its address")?;
        let control = url().context("the simulator tells its control port")?;
        let users = apps.iter().map(|app| {
            json!({"appid": app, "openid": OPENID, "nickname": NICKNAME, "unionid": "oUNION"})
        });
        post(root, &format!("{control}/sim/users"), &users.collect())?;

        let world = Self {
            config: folder.join("xinfu.toml"),
            folder,
            xinfu,
            sim,
            control,
            api: String::new(),
            _processes: vec![simulator],
        };
        world.init()?;
        let mut serve = Command::new(&world.xinfu);
        serve.arg("--config").arg(&world.config).arg("serve").envs(world.variables());
        let (server, printed) = start(&mut serve, " serves ")?;
        let mut words = printed.iter().flat_map(|line| line.split(' '));
        let api = words.find(|word| word.starts_with("http://"));
        let api = api.context("the server tells its address")?.trim_end_matches(',').to_owned();
        let mut processes = world._processes;
        processes.push(server);
        Ok(Self { api, _processes: processes, ..world })
    }

    /// A configuration, a master key, two apps.
    fn init(&self) -> Result<()> {
        self.call(&["init"]).stdout()?;
        let secret = self.folder.join("secret");
        fs::write(&secret, SECRET)?;
        let classic = [CLASSIC].into_iter().chain(LOADED).map(|app| (app, "classic"));
        for (app, issuer) in [(APP, "stable")].into_iter().chain(classic) {
            let secret = secret.to_string_lossy();
            self.xinfu(&["app", "add", app, "--issuer", issuer, "--secret-file", &secret])?;
        }
        Ok(())
    }

    /// What differs from the configuration that `xinfu init` writes.
    fn variables(&self) -> [(&'static str, &str); 4] {
        [
            ("XINFU_LISTEN_API", "127.0.0.1:0"),
            ("XINFU_LISTEN_ADMIN", "off"),
            ("XINFU_UPSTREAM_BASE_URLS", &self.sim),
            ("XINFU_LOG", "warn"),
        ]
    }

    fn call(&self, args: &[&str]) -> Call {
        let call = Call::new(&self.xinfu.to_string_lossy(), &self.folder, args);
        self.in_it(call)
    }

    /// A call that takes place in this world.
    fn in_it(&self, call: Call) -> Call {
        self.variables().into_iter().fold(call, |call, (name, value)| call.env(name, value))
    }

    fn xinfu(&self, args: &[&str]) -> Result<String> {
        let config = self.config.to_string_lossy();
        self.call(&[&["--config", &*config], args].concat()).stdout()
    }

    /// Waits until the server, which follows the store, knows a key.
    #[expect(clippy::disallowed_methods, reason = "there is no runtime here to block")]
    fn await_key(&self, key: &str) -> Result<()> {
        const PATIENCE: Duration = Duration::from_secs(10);
        let url = format!("{}/v1/apps/{APP}/token", self.api);
        let header = format!("Authorization: Bearer {key}");
        let watch = Stopwatch::start();
        while watch.elapsed() < PATIENCE {
            let ask = ["--silent", "--fail", "--output", "/dev/null", "--header", &header, &url];
            if Call::new("curl", &self.folder, ask).works() {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        bail!("a running server does not hear of a new key")
    }

    /// Writes down what a client is to know, with a key of its own.
    fn describe(&self, name: &str, classic: &str, straight: &[&str]) -> Result<PathBuf> {
        let key = self.xinfu(&["key", "add", name, "--everything"])?;
        self.await_key(key.trim())?;
        let config = self.config.to_string_lossy();
        let world = json!({
            "api": self.api,
            "sim": self.sim,
            "sim_control": self.control,
            "appid": APP,
            "classic_appid": classic,
            "straight_appids": straight,
            "secret": SECRET,
            "openid": OPENID,
            "nickname": NICKNAME,
            "key": key.trim(),
            "key_name": name,
            "command": [self.xinfu.to_string_lossy(), "--config", &config],
        });
        let path = self.folder.join(format!("{name}.json"));
        fs::write(&path, world.to_string())?;
        Ok(path)
    }
}

/// Starts a process, and waits for the line that says that it is ready; answers all lines up to it.
fn start(command: &mut Command, ready: &str) -> Result<(Running, Vec<String>)> {
    let name = format!("{command:?}");
    let mut child = command.stdout(Stdio::piped()).spawn().context(name.clone())?;
    let out = child.stdout.take().context("its output is piped")?;
    let running = Running(child);
    let mut lines = BufReader::new(out).lines();
    let mut printed = Vec::new();
    let watch = Stopwatch::start();
    while watch.elapsed() < LIMIT {
        let line = lines.next().with_context(|| format!("{name} ended before it was ready"))??;
        let is_ready = line.contains(ready);
        printed.push(line);
        if is_ready {
            // Whoever writes on must find a reader.
            std::thread::spawn(move || lines.for_each(drop));
            return Ok((running, printed));
        }
    }
    bail!("{name} was not ready in time")
}

fn post(root: &Path, url: &str, body: &Value) -> Result<()> {
    let body = body.to_string();
    Call::new("curl", root, ["--silent", "--show-error", "--fail", "--data", &body, url])
        .stdout()
        .map(drop)
}

fn call(root: &Path, command: &[PathBuf], described: &Path) -> Call {
    let (program, args) = command.split_first().expect("every client has a program");
    let args = args.iter().map(PathBuf::as_path).chain([described]);
    Call::new(&program.to_string_lossy(), root, args)
}

fn print_figures(figures: &[Value]) {
    println!("\n8 processes, 200 calls each, while the app's token is ended again and again:");
    let heads = ["failed", "fetches", "token ended"];
    println!(
        "{:<15} {:<28} {:<8} {:>13} {:>9} {:>12}",
        "client", "case", "through", heads[0], heads[1], heads[2]
    );
    for row in figures {
        for (label, run) in [("xinfu", &row["xinfu"]), ("nothing", &row["straight"])] {
            let text = |name: &str| row[name].as_str().unwrap_or_default().to_owned();
            let failed = format!("{} of {}", run["failed"], run["calls"]);
            println!(
                "{:<15} {:<28} {label:<8} {failed:>13} {:>9} {:>12}",
                text("client"),
                text("case"),
                run["fetched"].to_string(),
                run["refreshes"].to_string()
            );
        }
    }
}

/// Through xinfu nothing fails, although the token was ended; without it something does.
fn check_figures(figures: &[Value]) -> Result<()> {
    let count = |row: &Value, through: &str, what: &str| {
        row[through][what].as_u64().with_context(|| format!("a load counts `{what}`: {row}"))
    };
    let mut failed_without = 0;
    for row in figures {
        let failed = count(row, "xinfu", "failed")?;
        ensure!(failed == 0, "{failed} calls through xinfu failed: {row}");
        ensure!(count(row, "xinfu", "refreshes")? > 0, "nobody ended the token: {row}");
        failed_without += count(row, "straight", "failed")?;
    }
    ensure!(failed_without > 0, "nothing failed without xinfu, so this has shown nothing");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_through_xinfu_is_one() {
        let row = |failed: u64, refreshes: u64, without: u64| {
            let through = json!({"failed": failed, "refreshes": refreshes});
            json!({"xinfu": through, "straight": {"failed": without}})
        };
        assert!(check_figures(&[row(0, 3, 9), row(0, 1, 0)]).is_ok());
        for wrong in [row(1, 3, 9), row(0, 0, 9), row(0, 3, 0), json!({})] {
            assert!(check_figures(&[wrong]).is_err());
        }
        assert!(check_figures(&[]).is_err());
    }
}
