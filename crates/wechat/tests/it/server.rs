//! A server that follows a script, one line per request, and remembers what it was asked.

use std::{
    collections::VecDeque,
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex},
};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};
use tokio_rustls::TlsAcceptor;
use wechat::{AppId, AppSecret, Client, Config, GlobalToken};

/// What the server does with a request.
pub(crate) enum Reply {
    /// Answers HTTP 200 with this body, and keeps the connection.
    Json(&'static str),
    /// Writes these bytes and closes.
    Raw(Vec<u8>),
    /// Writes these bytes and then nothing, for ever.
    Stuck(&'static str),
    /// Resets the connection after the first bytes of the request.
    Reset,
    /// Tunnels to this address, as a proxy does.
    Tunnel(SocketAddr),
}

pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    seen: Arc<Mutex<Seen>>,
    /// Ends the server when dropped.
    _tasks: JoinSet<()>,
}

#[derive(Default)]
struct Seen {
    script: VecDeque<Reply>,
    requests: Vec<String>,
    connections: usize,
}

pub(crate) const TOKEN_BODY: &str = r#"{"access_token":"ACCESS_TOKEN","expires_in":7200}"#;

impl Server {
    pub(crate) async fn start(script: impl IntoIterator<Item = Reply>) -> Self {
        Self::listen(script, None).await
    }

    pub(crate) async fn start_tls(
        script: impl IntoIterator<Item = Reply>,
        tls: TlsAcceptor,
    ) -> Self {
        Self::listen(script, Some(tls)).await
    }

    async fn listen(script: impl IntoIterator<Item = Reply>, tls: Option<TlsAcceptor>) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Seen { script: script.into_iter().collect(), ..Seen::default() };
        let seen = Arc::new(Mutex::new(seen));
        let mut tasks = JoinSet::new();
        tasks.spawn(accept(listener, tls, seen.clone()));
        Self { address, seen, _tasks: tasks }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The requests so far: head with line ends as `\n`, an empty line, body.
    pub(crate) fn requests(&self) -> Vec<String> {
        self.seen.lock().unwrap().requests.clone()
    }

    pub(crate) fn connections(&self) -> usize {
        self.seen.lock().unwrap().connections
    }
}

/// An address that refuses connections.
pub(crate) async fn closed_port() -> String {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    format!("http://{}", listener.local_addr().unwrap())
}

pub(crate) fn config(hosts: &[String]) -> Config {
    Config { hosts: hosts.iter().map(|host| host.parse().unwrap()).collect(), ..Config::default() }
}

pub(crate) fn client(hosts: &[String]) -> Client {
    Client::new(config(hosts)).unwrap()
}

pub(crate) fn app() -> AppId {
    "wx0123456789abcdef".parse().unwrap()
}

/// A secret with characters that a query must encode.
pub(crate) fn secret() -> AppSecret {
    AppSecret::new("c4n4ry+s3cr3t/&")
}

/// A token with characters that a query must encode.
pub(crate) fn token() -> GlobalToken {
    GlobalToken::new("c4n4ry=t0k3n?")
}

async fn accept(listener: TcpListener, tls: Option<TlsAcceptor>, seen: Arc<Mutex<Seen>>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let (stream, _) = accepted.unwrap();
                seen.lock().unwrap().connections += 1;
                let (seen, tls) = (seen.clone(), tls.clone());
                connections.spawn(async move {
                    match tls {
                        None => serve(stream, &seen).await,
                        // A client that does not trust us is part of the tests.
                        Some(tls) => if let Ok(stream) = tls.accept(stream).await {
                            serve(stream, &seen).await;
                        },
                    }
                });
            }
            Some(ended) = connections.join_next() => ended.unwrap(),
        }
    }
}

async fn serve(mut stream: impl AsyncRead + AsyncWrite + Unpin, seen: &Mutex<Seen>) {
    loop {
        // The script's line is taken when the request has begun, not when the connection has.
        let mut first = [0; 4];
        if stream.read_exact(&mut first).await.is_err() {
            return;
        }
        let reply = seen.lock().unwrap().script.pop_front();
        if matches!(reply, Some(Reply::Reset)) {
            seen.lock().unwrap().requests.push("reset".to_owned());
            // What is left unread makes the system reset the connection.
            return;
        }
        let request = read_request(&mut stream, &first).await;
        seen.lock().unwrap().requests.push(request);
        match reply.expect("a request that the script does not foresee") {
            Reply::Json(body) => {
                let answer = format!(
                    "HTTP/1.1 200 OK\r\nContent-Type: application/json; encoding=utf-8\r\n\
                     Content-Length: {}\r\n\r\n{body}",
                    body.len()
                );
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
            Reply::Raw(bytes) => {
                // The client may have read enough before the end.
                let _ = stream.write_all(&bytes).await;
                let _ = stream.shutdown().await;
                return;
            }
            Reply::Stuck(bytes) => {
                stream.write_all(bytes.as_bytes()).await.unwrap();
                std::future::pending::<()>().await;
            }
            Reply::Tunnel(to) => {
                stream.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").await.unwrap();
                let mut other = TcpStream::connect(to).await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut stream, &mut other).await;
                return;
            }
            Reply::Reset => unreachable!(),
        }
    }
}

async fn read_request(stream: &mut (impl AsyncRead + Unpin), first: &[u8]) -> String {
    let mut head = first.to_vec();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    let head = String::from_utf8(head).unwrap().replace("\r\n", "\n");
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
    let mut body = vec![0; length.map_or(0, |length| length.parse().unwrap())];
    stream.read_exact(&mut body).await.unwrap();
    head + std::str::from_utf8(&body).unwrap()
}
