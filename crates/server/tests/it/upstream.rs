//! A WeChat that does on its sockets exactly what a test says, and notes every byte.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tokio_util::task::TaskTracker;

/// What is done with one call.
#[derive(Clone, Debug)]
pub(crate) enum Act {
    /// Takes in the whole call, then writes this, and keeps the connection.
    Reply(Vec<u8>),
    /// The same, and closes the connection.
    ReplyAndClose(Vec<u8>),
    /// Writes this as soon as the head is there, then takes in the rest of the call.
    ReplyEarly(Vec<u8>),
    /// Writes this as soon as the head is there, and closes without taking in the rest.
    ReplyEarlyAndClose(Vec<u8>),
    /// Takes in the whole call, and resets the connection.
    Reset,
    /// Takes in the whole call, and closes the connection.
    Close,
    /// Takes in the whole call, and never answers.
    Silence,
    /// Takes in the head only, and never answers.
    Deaf,
    /// Writes one piece after the other, with time in between.
    Pieces(Vec<Vec<u8>>, Duration),
}

/// A call as it came.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
    /// Which connection it came on.
    pub(crate) connection: usize,
}

impl Seen {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (key, value) = line.split_once(": ")?;
            key.eq_ignore_ascii_case(name).then_some(value)
        })
    }

    pub(crate) fn target(&self) -> &str {
        self.head.split(' ').nth(1).unwrap_or_default()
    }
}

/// The upstream. Calls for tokens are answered with `real-token-N`, N rising when
/// [`Upstream::rotate`] is called; everything else by the acts in their order, the last one for ever.
#[derive(Clone)]
pub(crate) struct Upstream(Arc<Inner>);

struct Inner {
    address: SocketAddr,
    acts: Vec<Act>,
    next: AtomicUsize,
    token: AtomicUsize,
    seen: Mutex<Vec<Seen>>,
    connections: AtomicUsize,
    open: AtomicUsize,
}

/// A JSON answer.
pub(crate) fn json(body: &str) -> Vec<u8> {
    let length = body.len();
    format!("HTTP/1.1 200 OK\r\ncontent-type: application/json; encoding=utf-8\r\ncontent-length: {length}\r\n\r\n{body}")
        .into_bytes()
}

impl Upstream {
    pub(crate) async fn start(tasks: &TaskTracker, acts: impl Into<Vec<Act>>) -> Self {
        let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let this = Self(Arc::new(Inner {
            address: tcp.local_addr().unwrap(),
            acts: acts.into(),
            next: AtomicUsize::new(0),
            token: AtomicUsize::new(1),
            seen: Mutex::default(),
            connections: AtomicUsize::new(0),
            open: AtomicUsize::new(0),
        }));
        let (accepting, server) = (tasks.clone(), this.clone());
        tasks.spawn(async move {
            while let Ok((stream, _)) = tcp.accept().await {
                stream.set_nodelay(true).unwrap();
                let number = server.0.connections.fetch_add(1, Ordering::Relaxed);
                let server = server.clone();
                accepting.spawn(async move {
                    server.0.open.fetch_add(1, Ordering::Relaxed);
                    server.connection(stream, number).await;
                    server.0.open.fetch_sub(1, Ordering::Relaxed);
                });
            }
        });
        this
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.0.address
    }

    /// Calls other than those for tokens and probes.
    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.0.seen.lock().unwrap().clone()
    }

    /// How many connections there are.
    pub(crate) fn open(&self) -> usize {
        self.0.open.load(Ordering::Relaxed)
    }

    /// From now on another token is handed out, and the one before is dead.
    pub(crate) fn rotate(&self) {
        self.0.token.fetch_add(1, Ordering::Relaxed);
    }

    async fn connection(&self, mut stream: TcpStream, connection: usize) {
        let mut read = Vec::new();
        loop {
            let Some(head) = read_head(&mut stream, &mut read).await else { return };
            let mut seen = Seen { head, connection, ..Seen::default() };
            let path = seen.target().split('?').next().unwrap_or_default().to_owned();
            if matches!(path.as_str(), "/cgi-bin/stable_token" | "/cgi-bin/get_api_domain_ip") {
                let Some(_) = read_body(&mut stream, &mut read, &seen).await else { return };
                let number = self.0.token.load(Ordering::Relaxed);
                let answer = if path.ends_with("token") {
                    format!(r#"{{"access_token":"real-token-{number}","expires_in":7200}}"#)
                } else if seen.target().contains(&format!("real-token-{number}")) {
                    r#"{"ip_list":[]}"#.to_owned()
                } else {
                    r#"{"errcode":40001,"errmsg":"invalid credential"}"#.to_owned()
                };
                if stream.write_all(&json(&answer)).await.is_err() {
                    return;
                }
                continue;
            }
            let at = self.0.next.fetch_add(1, Ordering::Relaxed);
            let act = self.0.acts[at.min(self.0.acts.len() - 1)].clone();
            match &act {
                Act::ReplyEarly(bytes) => {
                    let _ = stream.write_all(bytes).await;
                }
                Act::ReplyEarlyAndClose(bytes) => {
                    self.note(&seen);
                    let _ = stream.write_all(bytes).await;
                    return;
                }
                Act::Deaf => {
                    self.note(&seen);
                    std::future::pending::<()>().await;
                }
                _ => {}
            }
            let body = read_body(&mut stream, &mut read, &seen).await;
            seen.body = body.clone().unwrap_or_default();
            self.note(&seen);
            if body.is_none() {
                return;
            }
            match act {
                Act::Reply(bytes) => {
                    if stream.write_all(&bytes).await.is_err() {
                        return;
                    }
                }
                Act::ReplyAndClose(bytes) => {
                    let _ = stream.write_all(&bytes).await;
                    return;
                }
                Act::Reset => {
                    stream.set_zero_linger().unwrap();
                    return;
                }
                Act::Close => return,
                Act::Silence => {
                    // Until the other side has had enough.
                    let _ = stream.read(&mut [0]).await;
                    return;
                }
                Act::Pieces(pieces, pause) => {
                    for piece in pieces {
                        if stream.write_all(&piece).await.is_err() {
                            return;
                        }
                        tokio::time::sleep(pause).await;
                    }
                }
                Act::ReplyEarly(_) | Act::ReplyEarlyAndClose(_) | Act::Deaf => {}
            }
        }
    }

    fn note(&self, seen: &Seen) {
        self.0.seen.lock().unwrap().push(seen.clone());
    }
}

/// Reads up to the end of a head; what comes after it stays in `read`.
async fn read_head(stream: &mut TcpStream, read: &mut Vec<u8>) -> Option<String> {
    loop {
        if let Some(end) = read.windows(4).position(|four| four == b"\r\n\r\n") {
            let head = String::from_utf8(read.drain(..end + 4).collect()).ok()?;
            return Some(head);
        }
        if stream.read_buf(read).await.ok()? == 0 {
            return None;
        }
    }
}

/// Reads a body by its length or its chunks. `None`: it broke off.
async fn read_body(stream: &mut TcpStream, read: &mut Vec<u8>, seen: &Seen) -> Option<Vec<u8>> {
    if seen.header("transfer-encoding") == Some("chunked") {
        let mut body = Vec::new();
        loop {
            let end = loop {
                match read.windows(2).position(|two| two == b"\r\n") {
                    Some(end) => break end,
                    None if stream.read_buf(read).await.ok()? == 0 => return None,
                    None => {}
                }
            };
            let size = std::str::from_utf8(&read[..end]).ok()?;
            let size = usize::from_str_radix(size, 16).ok()?;
            read.drain(..end + 2);
            while read.len() < size + 2 {
                if stream.read_buf(read).await.ok()? == 0 {
                    return None;
                }
            }
            body.extend(read.drain(..size));
            read.drain(..2);
            if size == 0 {
                return Some(body);
            }
        }
    }
    let length: usize = seen.header("content-length").map_or(0, |length| length.parse().unwrap());
    while read.len() < length {
        if stream.read_buf(read).await.ok()? == 0 {
            return None;
        }
    }
    Some(read.drain(..length).collect())
}
