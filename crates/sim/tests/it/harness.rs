//! A simulator on loopback, and a client that sees every byte.

use std::{io, net::SocketAddr, time::Duration};

use clock::{Clock, Timestamp};
use serde_json::Value;
use sim::{AppSpec, Options, Sim, Switches};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// The app that every world has.
pub(crate) const APP: &str = "wx0123456789abcdef";
pub(crate) const SECRET: &str = "0123456789abcdef0123456789abcdef";
/// Another one.
pub(crate) const OTHER: &str = "wxfedcba9876543210";
/// Noon of 2026-09-17 in Beijing.
pub(crate) const NOON: i64 = 20_713 * 86_400 + 4 * 3600;

pub(crate) struct World {
    pub(crate) sim: Sim,
    pub(crate) api: SocketAddr,
    pub(crate) control: SocketAddr,
    shutdown: CancellationToken,
    serving: JoinHandle<()>,
}

impl World {
    /// The believed behaviour, on a clock that follows paused timers.
    pub(crate) async fn new() -> Self {
        Self::with(Switches::default()).await
    }

    pub(crate) async fn with(switches: Switches) -> Self {
        let clock = Clock::following_timers(Timestamp::from_secs(NOON));
        Self::of(Options { switches, ..Options::new(clock, 42) }).await
    }

    pub(crate) async fn of(options: Options) -> Self {
        let sim = Sim::new(options);
        sim.add_app(AppSpec::new(APP, SECRET));
        sim.add_app(AppSpec::new(OTHER, SECRET));
        let api = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let control = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (at, control_at) = (api.local_addr().unwrap(), control.local_addr().unwrap());
        let shutdown = CancellationToken::new();
        let until = shutdown.clone().cancelled_owned();
        let serving = TaskTracker::new().spawn(sim.clone().serve(api, Some(control), until));
        Self { sim, api: at, control: control_at, shutdown, serving }
    }

    /// Ends the simulator; fails when a task of it panicked.
    pub(crate) async fn stop(mut self) {
        self.shutdown.cancel();
        (&mut self.serving).await.unwrap();
    }

    pub(crate) async fn get(&self, target: &str) -> Answer {
        ask(self.api, "GET", target, b"").await.unwrap()
    }

    pub(crate) async fn post(&self, target: &str, body: &str) -> Answer {
        ask(self.api, "POST", target, body.as_bytes()).await.unwrap()
    }

    /// A classic token call of an app.
    pub(crate) async fn classic_of(&self, appid: &str) -> Answer {
        self.get(&classic_target(appid, SECRET)).await
    }

    pub(crate) async fn classic(&self) -> String {
        self.classic_of(APP).await.token()
    }

    /// A stable token call of the app.
    pub(crate) async fn stable(&self, force: bool) -> Answer {
        self.post("/cgi-bin/stable_token", &stable_body(APP, SECRET, force)).await
    }

    /// The errcode of a business call with a token, 0 for success.
    pub(crate) async fn probe(&self, token: &str) -> i64 {
        self.get(&format!("/cgi-bin/get_api_domain_ip?access_token={token}")).await.errcode()
    }

    pub(crate) async fn command(&self, method: &str, path: &str, body: &str) -> Answer {
        ask(self.control, method, path, body.as_bytes()).await.unwrap()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // Untold, it ends by a panic of one of its tasks only.
        let died = self.serving.is_finished() && !self.shutdown.is_cancelled();
        self.shutdown.cancel();
        assert!(!died || std::thread::panicking(), "the simulated WeChat panicked");
    }
}

pub(crate) fn classic_target(appid: &str, secret: &str) -> String {
    format!("/cgi-bin/token?grant_type=client_credential&appid={appid}&secret={secret}")
}

pub(crate) fn stable_body(appid: &str, secret: &str, force: bool) -> String {
    serde_json::json!({
        "grant_type": "client_credential", "appid": appid, "secret": secret, "force_refresh": force,
    })
    .to_string()
}

pub(crate) async fn pass(seconds: u64) {
    tokio::time::advance(Duration::from_secs(seconds)).await;
}

/// An answer, byte by byte.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (key, value) = line.split_once(": ")?;
            key.eq_ignore_ascii_case(name).then_some(value)
        })
    }

    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("no JSON: {self:?}"))
    }

    pub(crate) fn errcode(&self) -> i64 {
        self.json().get("errcode").map_or(0, |code| code.as_i64().unwrap())
    }

    pub(crate) fn errmsg(&self) -> String {
        self.json()["errmsg"].as_str().unwrap_or_else(|| panic!("no text: {self:?}")).to_owned()
    }

    pub(crate) fn token(&self) -> String {
        let json = self.json();
        json["access_token"].as_str().unwrap_or_else(|| panic!("no token: {json}")).to_owned()
    }

    pub(crate) fn expires_in(&self) -> u64 {
        self.json()["expires_in"].as_u64().unwrap_or_else(|| panic!("no life: {self:?}"))
    }
}

/// One request on its own connection.
pub(crate) async fn ask(
    to: SocketAddr,
    method: &str,
    target: &str,
    body: &[u8],
) -> io::Result<Answer> {
    ask_as(to, method, target, &[], body).await
}

/// One request with headers of its own.
pub(crate) async fn ask_as(
    to: SocketAddr,
    method: &str,
    target: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> io::Result<Answer> {
    let length = body.len();
    let headers: String =
        headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let mut request = format!(
        "{method} {target} HTTP/1.1\r\nhost: sim\r\nconnection: close\r\n\
         content-length: {length}\r\n{headers}\r\n"
    )
    .into_bytes();
    request.extend_from_slice(body);
    let received = exchange(to, &request).await?;
    let end = received.windows(4).position(|four| four == b"\r\n\r\n");
    let end = end.ok_or(io::ErrorKind::UnexpectedEof)?;
    let head = String::from_utf8(received[..end].to_vec()).unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    Ok(Answer { status, head, body: received[end + 4..].to_vec() })
}

/// Sends bytes, and reads until the other side ends the connection.
pub(crate) async fn exchange(to: SocketAddr, request: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(to).await?;
    stream.write_all(request).await?;
    let mut received = Vec::new();
    stream.read_to_end(&mut received).await?;
    Ok(received)
}
