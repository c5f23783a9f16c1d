//! The real binary, its simulator, and folders for both.

use std::{
    fs::File,
    path::{Path, PathBuf},
    process::Stdio,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    process::{Child, Command},
    time::Instant,
};

/// A running server follows a change of the store within this time.
pub(crate) const FOLLOWED: Duration = Duration::from_secs(2);
/// Nothing here takes longer on a machine that works.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);
/// A server that stops has ended by then: calls under way may go on for 30 seconds.
const STOPPED: Duration = Duration::from_secs(40);

/// What a process printed, and how it ended.
pub(crate) struct Printed {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Printed {
    /// The same, having worked.
    #[track_caller]
    pub(crate) fn ok(self) -> Self {
        assert_eq!(self.code, Some(0), "{}{}", self.out, self.err);
        self
    }

    /// The same, having failed with this code.
    #[track_caller]
    pub(crate) fn failed(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "{}{}", self.out, self.err);
        self
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|_| panic!("no JSON: {}", self.out))
    }
}

/// A folder with a configuration in it, and the variables that every command here is given.
pub(crate) struct Folder {
    folder: TempDir,
    variables: Vec<(String, String)>,
}

impl Folder {
    /// An empty one.
    pub(crate) fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap(), variables: Vec::new() }
    }

    /// One that `xinfu init` has filled, for a server on a free port and a simulated WeChat.
    pub(crate) async fn ready(sim: &SimProcess) -> Self {
        Self::ready_for(&sim.api).await
    }

    /// The same for a simulated WeChat at this URL.
    pub(crate) async fn ready_for(wechat: &str) -> Self {
        let mut folder = Self::new();
        folder.xinfu(&["init"]).await.ok();
        folder.set("XINFU_LISTEN_API", "127.0.0.1:0");
        // Servers of other tests run beside this one.
        folder.set("XINFU_LISTEN_ADMIN", "off");
        folder.set("XINFU_UPSTREAM_BASE_URLS", wechat);
        folder
    }

    pub(crate) fn set(&mut self, name: &str, value: &str) {
        self.variables.push((name.to_owned(), value.to_owned()));
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    /// Runs a command to its end.
    pub(crate) async fn xinfu(&self, args: &[&str]) -> Printed {
        self.xinfu_with("", args).await
    }

    /// Runs a command to its end, with something at its standard input.
    pub(crate) async fn xinfu_with(&self, input: &str, args: &[&str]) -> Printed {
        let mut command = self.command(args);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        // A command that does not read its input may have ended by now.
        let _ = stdin.write_all(input.as_bytes()).await;
        drop(stdin);
        let limit = tokio::time::timeout(3 * PATIENCE, child.wait_with_output()).await;
        let output = limit.unwrap_or_else(|_| panic!("`xinfu {args:?}` does not end")).unwrap();
        Printed {
            code: output.status.code(),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// Registers an app.
    pub(crate) async fn add_app(&self, appid: &str, secret: &str, args: &[&str]) -> Printed {
        let fixed = ["app", "add", appid, "--secret-file", "-"];
        self.xinfu_with(secret, &[&fixed, args].concat()).await
    }

    /// Makes a client key, and answers it.
    pub(crate) async fn add_key(&self, args: &[&str]) -> String {
        let printed = self.xinfu(&[&["key", "add"], args].concat()).await.ok();
        printed.out.trim().to_owned()
    }

    /// Starts the server, one more where one runs, and waits until it says that it serves.
    pub(crate) async fn serve(&self) -> Server {
        let process = self.start(self.command(&["serve"]));
        let line = process.first_line("serves").await;
        let url = line.split_whitespace().find(|word| word.starts_with("http")).unwrap();
        Server { url: url.trim_end_matches(',').to_owned(), process }
    }

    /// Starts a command that goes on.
    pub(crate) fn start(&self, command: Command) -> Process {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("serve-{}", COUNT.fetch_add(1, Ordering::Relaxed));
        Process::start(command, &self.path(&name))
    }

    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_xinfu"));
        command.args(args).kill_on_drop(true);
        self.at_home(&mut command);
        command
    }

    /// Lets a command run here, with the variables of this folder and no others.
    pub(crate) fn at_home(&self, command: &mut Command) {
        command.current_dir(self.folder.path()).env_clear();
        command.envs(self.variables.iter().map(|(name, value)| (name, value)));
    }
}

/// A process that goes on, and what it has printed so far.
pub(crate) struct Process {
    child: Child,
    out: PathBuf,
    err: PathBuf,
}

impl Process {
    /// Starts it; its output goes to two files, whose names begin with `name`.
    pub(crate) fn start(mut command: Command, name: &Path) -> Self {
        let file = |end: &str| {
            let path = PathBuf::from(format!("{}.{end}", name.display()));
            let file = File::options().create(true).append(true).open(&path).unwrap();
            (path, file)
        };
        let ((out, out_file), (err, err_file)) = (file("out"), file("err"));
        // What an earlier process of this name has printed is read already.
        out_file.set_len(0).unwrap();
        command.stdin(Stdio::null()).stdout(out_file).stderr(err_file);
        Self { child: command.spawn().unwrap(), out, err }
    }

    /// Waits for a line that holds a word.
    pub(crate) async fn first_line(&self, word: &str) -> String {
        eventually(PATIENCE, || async {
            let text = self.out();
            let whole = text.rfind('\n').map_or("", |end| &text[..end]);
            whole.lines().find(|line| line.contains(word)).map(str::to_owned)
        })
        .await
        .unwrap_or_else(|| panic!("it never printed `{word}`: {}{}", self.out(), self.err()))
    }

    pub(crate) fn out(&self) -> String {
        std::fs::read_to_string(&self.out).unwrap()
    }

    pub(crate) fn err(&self) -> String {
        std::fs::read_to_string(&self.err).unwrap()
    }

    /// Kills it as nothing can be prepared for.
    pub(crate) async fn kill(&mut self) {
        self.child.kill().await.unwrap();
    }

    /// Whether it has ended.
    pub(crate) fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// Sends it a signal.
    pub(crate) async fn signal(&self, signal: &str) {
        send_signal(signal, &self.child.id().unwrap().to_string()).await;
    }

    /// Asks it to end, and answers its exit code if it has ended by now.
    pub(crate) async fn ask_to_end(&mut self) -> Option<i32> {
        self.signal("TERM").await;
        self.child.try_wait().unwrap()?.code()
    }

    /// Asks it to end, and answers its exit code.
    pub(crate) async fn terminate(&mut self) -> Option<i32> {
        if let Some(code) = self.ask_to_end().await {
            return Some(code);
        }
        let ended = tokio::time::timeout(STOPPED, self.child.wait()).await;
        let ended = ended.unwrap_or_else(|_| panic!("it does not end: {}", self.err()));
        ended.unwrap().code()
    }
}

/// Sends a signal to a process.
pub(crate) async fn send_signal(signal: &str, pid: &str) {
    let sent = Command::new("kill").args(["-s", signal, pid]).status().await.unwrap();
    assert!(sent.success());
}

/// A running server.
pub(crate) struct Server {
    pub(crate) url: String,
    pub(crate) process: Process,
}

impl Server {
    pub(crate) async fn get(&self, path: &str, key: &str) -> (u16, Value) {
        http("GET", &format!("{}{path}", self.url), Some(key), None).await.unwrap_or_default()
    }

    pub(crate) async fn post(&self, path: &str, key: &str, body: &Value) -> (u16, Value) {
        let url = format!("{}{path}", self.url);
        http("POST", &url, Some(key), Some(body)).await.unwrap_or_default()
    }

    pub(crate) async fn delete(&self, path: &str, key: &str) -> (u16, Value) {
        http("DELETE", &format!("{}{path}", self.url), Some(key), None).await.unwrap_or_default()
    }

    /// Waits until a token read is answered with a status.
    pub(crate) async fn answers(&self, app: &str, key: &str, status: u16, limit: Duration) {
        let path = format!("/v1/apps/{app}/token");
        let seen = eventually(limit, || async {
            let (seen, _) = self.get(&path, key).await;
            (seen == status).then_some(())
        });
        if seen.await.is_none() {
            let last = self.get(&path, key).await;
            panic!("{app} is not answered with {status} within {limit:?}, but with {last:?}");
        }
    }
}

/// A running simulator.
pub(crate) struct SimProcess {
    pub(crate) api: String,
    pub(crate) control: String,
    pub(crate) process: Process,
    _folder: TempDir,
}

impl SimProcess {
    /// Starts one that knows these apps, by appid and secret.
    pub(crate) async fn start(apps: &[(&str, &str)]) -> Self {
        Self::start_with(apps, &[]).await
    }

    /// The same with variables.
    pub(crate) async fn start_with(apps: &[(&str, &str)], variables: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_xinfu"));
        command.args(["sim", "--listen", "127.0.0.1:0", "--control", "127.0.0.1:0", "--seed", "7"]);
        for (appid, secret) in apps {
            command.arg("--app").arg(format!("{appid}:{secret}"));
        }
        command.env_clear().kill_on_drop(true).envs(variables.iter().copied());
        let process = Process::start(command, &folder.path().join("sim"));
        let line = process.first_line("simulated WeChat").await;
        let mut urls = line.split([' ', ',']).filter(|word| word.starts_with("http"));
        let (api, control) = (urls.next().unwrap().to_owned(), urls.next().unwrap().to_owned());
        Self { api, control, process, _folder: folder }
    }

    /// Does something at the control port.
    pub(crate) async fn control(&self, path: &str, body: &Value) -> Value {
        let url = format!("{}{path}", self.control);
        let (status, answer) = http("POST", &url, None, Some(body)).await.unwrap();
        assert_eq!(status, 200, "{path}: {answer}");
        answer
    }

    /// How often a path was called for an app, with success or at all.
    pub(crate) async fn count(&self, path: &str, appid: &str, errcode: Option<i64>) -> u64 {
        let url = format!("{}/sim/calls?limit=0", self.control);
        let (_, calls) = http("GET", &url, None, None).await.unwrap();
        let totals = calls["totals"].as_array().unwrap().iter();
        totals
            .filter(|total| total["path"] == path && total["appid"] == appid)
            .filter(|total| errcode.is_none_or(|errcode| total["errcode"] == errcode))
            .map(|total| total["count"].as_u64().unwrap())
            .sum()
    }

    /// All calls so far, oldest first.
    pub(crate) async fn log(&self) -> Vec<Value> {
        let url = format!("{}/sim/calls", self.control);
        let (_, calls) = http("GET", &url, None, None).await.unwrap();
        calls["log"].as_array().unwrap().clone()
    }

    /// Ends the token of an app before its time.
    pub(crate) async fn kill_token(&self, appid: &str, issuer: &str) {
        let path = format!("/sim/apps/{appid}/foreign-refresh");
        self.control(&path, &json!({"issuer": issuer, "kill": true})).await;
    }
}

/// Makes a call. `None`: there was no whole answer.
pub(crate) async fn http(
    method: &str,
    url: &str,
    key: Option<&str>,
    body: Option<&Value>,
) -> Option<(u16, Value)> {
    let rest = url.strip_prefix("http://").unwrap();
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    let key = key.map(|key| format!("Authorization: Bearer {key}\r\n")).unwrap_or_default();
    let body = body.map(Value::to_string).unwrap_or_default();
    let head = format!(
        "{method} /{path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{key}\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    let exchange = async {
        let mut stream = TcpStream::connect(host).await.ok()?;
        stream.write_all(format!("{head}{body}").as_bytes()).await.ok()?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.ok()?;
        let answer = String::from_utf8(answer).ok()?;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        let status = head.split(' ').nth(1)?.parse().ok()?;
        // What is no JSON is a text.
        Some((status, serde_json::from_str(body).unwrap_or_else(|_| Value::from(body))))
    };
    tokio::time::timeout(PATIENCE, exchange).await.ok()?
}

/// Looks again and again until there is something, or the time is over.
pub(crate) async fn eventually<T, F: Future<Output = Option<T>>>(
    limit: Duration,
    mut look: impl FnMut() -> F,
) -> Option<T> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(found) = look().await {
            return Some(found);
        }
        if Instant::now() > deadline {
            return None;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
