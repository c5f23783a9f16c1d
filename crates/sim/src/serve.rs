//! The sockets: connections, requests read whole, answers whole or broken on purpose.

use std::{
    error::Error,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderValue, Request, Response, header};
use http_body_util::{BodyExt, Limited};
use hyper::{
    body::{Body, Frame, Incoming, SizeHint},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use percent_encoding::percent_decode_str;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    Sim, api,
    content::file_of,
    control,
    exchange::{Call, Reply},
    pages::{self, Visit, is_page},
};

/// The most bytes of a request body.
const BODY_LIMIT: usize = 1 << 20;

/// The most bytes of one that brings a file: a video of 100 MB, and what is around it.
const FILE_LIMIT: usize = 110 << 20;

impl Sim {
    /// Answers on `api` as WeChat does, and on `control` as its master, until `shutdown`.
    ///
    /// On return all its tasks have ended. Calls in flight are cut off. A panic in one of the tasks
    /// ends all of them, and panics here.
    pub async fn serve(
        self,
        api: TcpListener,
        control: Option<TcpListener>,
        shutdown: impl Future<Output = ()>,
    ) {
        let address = |listener: &TcpListener| {
            listener.local_addr().map(|address| address.to_string()).unwrap_or_default()
        };
        tracing::warn!(
            api = address(&api),
            control = control.as_ref().map(address),
            seed = self.seed(),
            "This is a simulated WeChat, not the real one: its tokens open nothing.",
        );
        let tasks = Tasks::default();
        let stop = CancellationToken::new();
        let _stop_when_dropped = stop.clone().drop_guard();
        let mut shutdown = std::pin::pin!(shutdown);
        loop {
            let (port, accepted) = tokio::select! {
                biased;
                () = &mut shutdown => break,
                () = tasks.panicked.cancelled() => break,
                accepted = api.accept() => (Port::Api, accepted),
                accepted = accept(control.as_ref()) => (Port::Control, accepted),
            };
            match accepted {
                Ok((stream, peer)) => {
                    let connection = Connection {
                        sim: self.clone(),
                        port,
                        ip: peer.ip().to_canonical(),
                        tasks: tasks.clone(),
                        stop: stop.clone(),
                    };
                    tasks.spawn(connection.run_tcp(stream));
                }
                // Out of file descriptors, most likely; those who wait are served later.
                Err(error) => {
                    tracing::warn!(%error, "The simulator could not accept a connection.");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
        stop.cancel();
        tasks.tracker.close();
        tasks.tracker.wait().await;
        assert!(!tasks.panicked.is_cancelled(), "a task of the simulated WeChat panicked");
    }

    /// Answers as WeChat does on one connection, which `ip` has made, until it ends. For who brings
    /// connections that are no TCP: a reset is an end without an answer there.
    pub async fn serve_connection<S>(self, stream: S, ip: IpAddr)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let stop = CancellationToken::new();
        let _stop_when_dropped = stop.clone().drop_guard();
        let tasks = Tasks::default();
        let connection = Connection { sim: self, port: Port::Api, ip, tasks: tasks.clone(), stop };
        drop(connection.run(stream).await);
        // WeChat goes on with what it has begun.
        tasks.tracker.close();
        tasks.tracker.wait().await;
        assert!(!tasks.panicked.is_cancelled(), "a task of the simulated WeChat panicked");
    }
}

async fn accept(listener: Option<&TcpListener>) -> std::io::Result<(TcpStream, SocketAddr)> {
    match listener {
        Some(listener) => listener.accept().await,
        None => std::future::pending().await,
    }
}

/// What runs for the sockets. A panic is no answer that WeChat could give, so it must not pass for
/// one: it raises the alarm.
#[derive(Clone, Default)]
struct Tasks {
    tracker: TaskTracker,
    panicked: CancellationToken,
}

impl Tasks {
    fn spawn<F>(&self, task: F) -> JoinHandle<F::Output>
    where
        F: Future<Output: Send> + Send + 'static,
    {
        let alarm = Alarm(self.panicked.clone());
        self.tracker.spawn(async move {
            let _alarm = alarm;
            task.await
        })
    }
}

/// Rings when it is dropped by a panic.
struct Alarm(CancellationToken);

impl Drop for Alarm {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.cancel();
        }
    }
}

#[derive(Clone, Copy)]
enum Port {
    Api,
    Control,
}

/// One connection and what its requests need.
#[derive(Clone)]
struct Connection {
    sim: Sim,
    port: Port,
    ip: IpAddr,
    tasks: Tasks,
    stop: CancellationToken,
}

impl Connection {
    async fn run_tcp(self, stream: TcpStream) {
        // Answers are single writes; waiting for more only delays them.
        let _ = stream.set_nodelay(true);
        if let Some(stream) = self.run(stream).await {
            // Closing without lingering sends a reset instead of an orderly end.
            let _ = stream.set_zero_linger();
        }
    }

    /// Answers until the connection ends. Gives it back when it is to be reset.
    async fn run<S>(self, stream: S) -> Option<S>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let stop = self.stop.clone();
        let service = service_fn(move |request| self.clone().answer(request));
        let mut connection =
            http1::Builder::new().half_close(true).serve_connection(TokioIo::new(stream), service);
        let ended = tokio::select! {
            biased;
            () = stop.cancelled() => return None,
            ended = &mut connection => ended,
        };
        let reset = |error: &hyper::Error| error.source().is_some_and(|cause| cause.is::<Reset>());
        ended.is_err_and(|error| reset(&error)).then(|| connection.into_parts().io.into_inner())
    }

    async fn answer(self, request: Request<Incoming>) -> Result<Response<Payload>, Reset> {
        let (head, body) = request.into_parts();
        // A body that is too large or breaks off is as unreadable as one that is no JSON.
        let text = |name| head.headers.get(name).and_then(|value| value.to_str().ok());
        let uploads = head.uri.path() == api::MEDIA_UPLOAD;
        let multipart = text(header::CONTENT_TYPE).filter(|_| uploads);
        let limit = if multipart.is_some() { FILE_LIMIT } else { BODY_LIMIT };
        let body = Limited::new(body, limit).collect().await;
        let body = body.map(|body| body.to_bytes()).unwrap_or_else(|_| Bytes::from_static(b"\0"));
        match self.port {
            Port::Control => {
                let (status, json) = control::answer(
                    &self.sim,
                    &head.method,
                    head.uri.path(),
                    query(&head.uri),
                    body,
                )
                .await;
                let mut response = Response::new(Payload::whole(json.to_string().into()));
                *response.status_mut() = status;
                let json = HeaderValue::from_static("application/json");
                response.headers_mut().insert(header::CONTENT_TYPE, json);
                Ok(response)
            }
            Port::Api if is_page(head.uri.path()) => {
                let visit = Visit {
                    method: head.method,
                    path: head.uri.path().to_owned(),
                    target: head.uri.query().unwrap_or_default().to_owned(),
                    query: query(&head.uri),
                    headers: head.headers,
                    body,
                };
                let response = pages::answer(&self.sim, &visit);
                Ok(response.map(|page| Payload::whole(page.into())))
            }
            Port::Api => {
                let call = Call {
                    file: file_of(multipart, body.clone()).await,
                    range: text(header::RANGE).map(str::to_owned),
                    method: head.method,
                    path: head.uri.path().to_owned(),
                    query: query(&head.uri),
                    json: serde_json::from_slice(&body).ok(),
                    body,
                    ip: self.ip,
                    sent: self.sim.now(),
                };
                // WeChat goes on with a call whose caller has left, and so does this task.
                let exchange = exchange(self.sim, call, self.stop);
                match self.tasks.spawn(exchange).await {
                    Ok(Some(reply)) => Ok(respond(reply)),
                    Ok(None) | Err(_) => Err(Reset),
                }
            }
        }
    }
}

/// Takes a call through latency, decision and latency. `None` resets the connection.
async fn exchange(sim: Sim, call: Call, stop: CancellationToken) -> Option<Reply> {
    let arrival = sim.state().arrive(&call);
    wait(arrival.latency_before(), &stop).await?;
    let decided = {
        let mut state = sim.state();
        let now = sim.now();
        state.decide(&call, &arrival, now)
    };
    wait(arrival.latency_after().saturating_add(decided.delay), &stop).await?;
    if arrival.is_reset() {
        return None;
    }
    let now = sim.now();
    sim.state().calls.answered(decided.seq, now);
    Some(decided.reply)
}

/// Waits; `None` when the simulator stops meanwhile.
async fn wait(millis: u64, stop: &CancellationToken) -> Option<()> {
    if millis == 0 {
        return Some(());
    }
    tokio::select! {
        () = stop.cancelled() => None,
        () = tokio::time::sleep(Duration::from_millis(millis)) => Some(()),
    }
}

fn respond(reply: Reply) -> Response<Payload> {
    let full = reply.body.len();
    let payload =
        if reply.truncated { Payload::half(&reply.body) } else { Payload::whole(reply.body) };
    let mut response = Response::new(payload);
    *response.status_mut() = reply.status;
    let headers = response.headers_mut();
    if let Ok(content_type) = HeaderValue::from_str(&reply.content_type) {
        headers.insert(header::CONTENT_TYPE, content_type);
    }
    for (name, value) in reply.headers {
        if let Ok(value) = HeaderValue::from_str(&value) {
            headers.insert(name, value);
        }
    }
    if let Ok(date) = HeaderValue::from_str(&reply.date) {
        headers.insert(header::DATE, date);
    }
    headers.insert(header::CONTENT_LENGTH, full.into());
    response
}

fn query(uri: &http::Uri) -> Vec<(String, String)> {
    pairs(uri.query().unwrap_or_default())
}

/// The parameters of a query or a form, decoded.
pub(crate) fn pairs(text: &str) -> Vec<(String, String)> {
    let decode =
        |text: &str| percent_decode_str(&text.replace('+', " ")).decode_utf8_lossy().into_owned();
    let pairs = text.split('&').filter(|pair| !pair.is_empty());
    let split = |pair: &str| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        (decode(key), decode(value))
    };
    pairs.map(split).collect()
}

/// The connection is reset without an answer.
#[derive(Debug, thiserror::Error)]
#[error("the simulator resets this connection")]
struct Reset;

/// The body breaks off.
#[derive(Debug, thiserror::Error)]
#[error("the simulator breaks this body off")]
struct BrokenOff;

/// A body in one piece, or its first half and an end of the connection.
struct Payload {
    piece: Option<Bytes>,
    /// What follows the piece.
    then: Then,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Then {
    End,
    /// A pause in which the piece leaves for the network.
    Flush,
    Break,
}

impl Payload {
    const fn whole(body: Bytes) -> Self {
        Self { piece: Some(body), then: Then::End }
    }

    fn half(body: &Bytes) -> Self {
        Self { piece: Some(body.slice(..body.len() / 2)), then: Then::Flush }
    }
}

impl Body for Payload {
    type Data = Bytes;
    type Error = BrokenOff;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BrokenOff>>> {
        if let Some(piece) = self.piece.take() {
            return Poll::Ready(Some(Ok(Frame::data(piece))));
        }
        match self.then {
            Then::End => Poll::Ready(None),
            Then::Flush => {
                self.then = Then::Break;
                context.waker().wake_by_ref();
                Poll::Pending
            }
            Then::Break => Poll::Ready(Some(Err(BrokenOff))),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match (&self.piece, self.then) {
            (Some(piece), Then::End) => SizeHint::with_exact(piece.len() as u64),
            _ => SizeHint::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_a_panic_rings() {
        let tasks = Tasks::default();
        assert_eq!(tasks.spawn(async { 7 }).await.ok(), Some(7));
        let cut_off = tasks.spawn(std::future::pending::<()>());
        cut_off.abort();
        assert!(cut_off.await.is_err_and(|error| error.is_cancelled()));
        assert!(!tasks.panicked.is_cancelled());
        let _left: JoinHandle<()> = tasks.spawn(async { panic!("a bug") });
        tasks.panicked.cancelled().await;
    }
}
