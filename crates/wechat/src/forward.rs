//! Carrying any call to WeChat and its answer back, both as streams.
//!
//! Nothing here knows what is carried: which headers may travel, which token stands in the query and
//! whether a call is sent again are the caller's decisions. What is known here is how to send a call
//! without sending it twice, and how WeChat's answers begin.

use std::{
    collections::VecDeque,
    fmt,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http::{
    HeaderMap, HeaderValue, Method, Request, StatusCode, Uri,
    header::{CONTENT_ENCODING, CONTENT_LENGTH, HOST, TRANSFER_ENCODING},
};
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::time::{Instant, Sleep, sleep, sleep_until};

use crate::{
    Client, ErrcodeScan, Scanned, TransportError,
    connect::{BoxError, reason},
    error::redacted,
    pool::{Lease, Pool},
};

/// A call to carry.
pub struct Forward {
    /// Its method.
    pub method: Method,
    /// Path and query, beginning with `/`. It may hold secrets.
    pub path_and_query: String,
    /// Its headers, without `Host` and without those that are about one connection only.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Upload,
}

/// Shows neither the query nor the headers: both may hold secrets.
impl fmt::Debug for Forward {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.path_and_query.split('?').next();
        f.debug_struct("Forward")
            .field("method", &self.method)
            .field("path", &path)
            .field("body", &self.body)
            .finish_non_exhaustive()
    }
}

/// The body of a call.
#[derive(Default)]
pub enum Upload {
    /// None.
    #[default]
    Nothing,
    /// All of it is there.
    Whole(Bytes),
    /// It comes by and by.
    Stream(Stream),
}

impl Upload {
    /// A body that comes by and by.
    pub fn stream(body: UnsyncBoxBody<Bytes, BoxError>) -> Self {
        Self::Stream(Stream { body, moved: Moved::now() })
    }
}

/// A body that comes by and by.
pub struct Stream {
    body: UnsyncBoxBody<Bytes, BoxError>,
    moved: Moved,
}

/// When WeChat last took a piece of a body, told to whoever watches over it.
#[derive(Clone)]
struct Moved {
    since: Instant,
    /// In milliseconds since then; [`Moved::WAITING`] while the next piece is not there to be taken.
    last: Arc<AtomicU64>,
}

impl Moved {
    const WAITING: u64 = u64::MAX;

    fn now() -> Self {
        Self { since: Instant::now(), last: Arc::default() }
    }

    fn note(&self, waiting: bool) {
        let passed = u64::try_from(self.since.elapsed().as_millis()).unwrap_or(Self::WAITING - 1);
        self.last.store(if waiting { Self::WAITING } else { passed }, Ordering::Relaxed);
    }

    fn last(&self) -> Instant {
        match self.last.load(Ordering::Relaxed) {
            Self::WAITING => Instant::now(),
            passed => self.since + Duration::from_millis(passed),
        }
    }
}

impl fmt::Debug for Upload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nothing => f.write_str("Nothing"),
            Self::Whole(bytes) => write!(f, "Whole({} bytes)", bytes.len()),
            Self::Stream(_) => f.write_str("Stream"),
        }
    }
}

impl Body for Upload {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match self.get_mut() {
            Self::Nothing => Poll::Ready(None),
            this @ Self::Whole(_) => match std::mem::take(this) {
                Self::Whole(bytes) if !bytes.is_empty() => {
                    Poll::Ready(Some(Ok(Frame::data(bytes))))
                }
                _ => Poll::Ready(None),
            },
            Self::Stream(Stream { body, moved }) => {
                let frame = Pin::new(body).poll_frame(cx);
                moved.note(frame.is_pending());
                frame
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Nothing => true,
            Self::Whole(bytes) => bytes.is_empty(),
            Self::Stream(stream) => stream.body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Nothing => SizeHint::with_exact(0),
            Self::Whole(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Self::Stream(stream) => stream.body.size_hint(),
        }
    }
}

/// What a call is answered: its head, and a body that streams.
#[derive(Debug)]
pub struct Forwarded {
    /// The HTTP status.
    pub status: StatusCode,
    /// The headers, also those that are about this connection only.
    pub headers: HeaderMap,
    /// The body.
    pub body: Download,
}

impl Forwarded {
    /// The errcode that the answer begins with: a number or a text of digits, at the top level of a
    /// JSON object, within the first 4 KiB. Reads no further than it has to; nothing of the body is
    /// lost by it. `None`: it has none, or is compressed.
    ///
    /// An error is an answer that broke off, or stopped coming, before that was known.
    pub async fn errcode(&mut self) -> Result<Option<i64>, TransportError> {
        let encoding = self.headers.get(CONTENT_ENCODING);
        if encoding.is_some_and(|encoding| encoding != "identity") {
            return Ok(None);
        }
        let mut scan = ErrcodeScan::default();
        loop {
            let frame = std::future::poll_fn(|cx| self.body.poll_more(cx)).await;
            let scanned = match frame {
                None => return Ok(None),
                Some(Err(error)) => return Err(broken(&error)),
                Some(Ok(frame)) => {
                    let whole = self.body.looked_at.is_empty() && self.body.rest.is_end_stream();
                    let scanned = match frame.data_ref() {
                        Some(data) if whole => scan.feed_whole(data),
                        Some(data) => scan.feed(data),
                        None => Scanned::More,
                    };
                    self.body.looked_at.push_back(frame);
                    scanned
                }
            };
            match scanned {
                Scanned::More => {}
                Scanned::Nothing => return Ok(None),
                Scanned::Errcode(code) => return Ok(Some(code)),
            }
        }
    }
}

fn broken(error: &BrokenOff) -> TransportError {
    TransportError { sent: true, reason: error.to_string() }
}

/// The body of an answer.
pub struct Download {
    /// What was looked at already.
    looked_at: VecDeque<Frame<Bytes>>,
    rest: Incoming,
    /// The connection, until the answer is over.
    lease: Option<Lease>,
    patience: Duration,
    /// Goes off when the next piece takes too long; only made when a piece has to be waited for.
    alarm: Option<Pin<Box<Sleep>>>,
    /// Whether a piece is waited for. A reader that does not ask is not WeChat's delay.
    waiting: bool,
}

/// An answer that did not come to its end.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BrokenOff {
    /// The connection broke.
    #[error("the answer broke off: {0}")]
    Broken(String),
    /// Nothing came for too long.
    #[error("the answer stopped coming")]
    Stalled,
}

impl Download {
    /// The next piece off the connection.
    fn poll_more(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BrokenOff>>> {
        let Poll::Ready(frame) = Pin::new(&mut self.rest).poll_frame(cx) else {
            let patience = self.patience;
            let alarm = self.alarm.get_or_insert_with(|| Box::pin(sleep(patience)));
            if !std::mem::replace(&mut self.waiting, true) {
                alarm.as_mut().reset(Instant::now() + patience);
            }
            ready!(alarm.as_mut().poll(cx));
            // Without its lease the connection is closed.
            self.lease = None;
            return Poll::Ready(Some(Err(BrokenOff::Stalled)));
        };
        self.waiting = false;
        let frame = match frame {
            Some(Ok(frame)) => Some(frame),
            Some(Err(error)) => {
                self.lease = None;
                return Poll::Ready(Some(Err(BrokenOff::Broken(reason(&error)))));
            }
            None => None,
        };
        // Of one in chunks, only its end is the end.
        if (frame.is_none() || self.rest.is_end_stream())
            && let Some(lease) = self.lease.take()
        {
            lease.put_back();
        }
        Poll::Ready(frame.map(Ok))
    }
}

impl Body for Download {
    type Data = Bytes;
    type Error = BrokenOff;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BrokenOff>>> {
        match self.looked_at.pop_front() {
            Some(frame) => Poll::Ready(Some(Ok(frame))),
            None => self.poll_more(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.looked_at.is_empty() && self.rest.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let looked_at = self.looked_at.iter().filter_map(Frame::data_ref);
        let looked_at: u64 = looked_at.map(|data| data.len() as u64).sum();
        let rest = self.rest.size_hint();
        let mut hint = SizeHint::new();
        hint.set_lower(rest.lower() + looked_at);
        if let Some(upper) = rest.upper() {
            hint.set_upper(upper + looked_at);
        }
        hint
    }
}

impl fmt::Debug for Download {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Download").field("size", &self.size_hint()).finish_non_exhaustive()
    }
}

/// One of WeChat's hosts, as forwarded calls see it.
pub(crate) struct Lane {
    pub(crate) pool: Pool,
    /// The path of its base URL, without a slash at the end.
    pub(crate) path: String,
    pub(crate) authority: HeaderValue,
    /// For errors.
    pub(crate) name: String,
}

impl Client {
    /// Carries a call to the first host that can be reached, and answers with what it answers;
    /// redirects are not followed. It is sent once: the next host, and the next connection, are
    /// tried only while no byte of the call was sent.
    ///
    /// `patience` is how long WeChat may take to begin its answer, to go on with it, or to take
    /// more of the call; `secret` is what of the call must not appear in an error.
    pub async fn forward(
        &self,
        call: Forward,
        patience: Duration,
        secret: &str,
    ) -> Result<Forwarded, TransportError> {
        let Forward { method, path_and_query, headers, body } = call;
        let mut request = Request::new(body);
        *request.method_mut() = method;
        *request.headers_mut() = headers;
        let mut reasons: Vec<String> = Vec::new();
        for lane in self.lanes() {
            match lane.carry(request, &path_and_query, patience).await {
                Ok(answer) => return Ok(answer),
                Err(Missed { unsent: Some(unsent), reason }) => {
                    request = unsent;
                    reasons.push(format!("{}: {reason}", lane.name));
                }
                Err(Missed { unsent: None, reason }) => {
                    reasons.push(format!("{}: {reason}", lane.name));
                    let reason = redacted(&reasons.join("; "), &[secret]);
                    return Err(TransportError { sent: true, reason });
                }
            }
        }
        let reason = redacted(&reasons.join("; "), &[secret]);
        Err(TransportError { sent: false, reason })
    }
}

/// A call without an answer.
struct Missed {
    /// The call, when nothing of it was sent.
    unsent: Option<Request<Upload>>,
    reason: String,
}

impl Missed {
    fn unsent(request: Request<Upload>, reason: String) -> Self {
        Self { unsent: Some(request), reason }
    }

    fn sent(reason: String) -> Self {
        Self { unsent: None, reason }
    }
}

impl Lane {
    async fn carry(
        &self,
        mut request: Request<Upload>,
        path_and_query: &str,
        patience: Duration,
    ) -> Result<Forwarded, Missed> {
        let uri = if self.path.is_empty() {
            path_and_query.parse()
        } else {
            Uri::try_from(format!("{}{path_and_query}", self.path))
        };
        let Ok(uri) = uri else {
            return Err(Missed::unsent(request, "the address is no URL".to_owned()));
        };
        *request.uri_mut() = uri;
        request.headers_mut().insert(HOST, self.authority.clone());
        if request.body().size_hint().exact().is_none() {
            // Not said, hyper takes a GET for one without a body.
            let chunked = HeaderValue::from_static("chunked");
            request.headers_mut().insert(TRANSFER_ENCODING, chunked);
        }
        let empty = matches!(request.body(), Upload::Nothing);
        if empty && matches!(*request.method(), Method::POST | Method::PUT | Method::PATCH) {
            // Not said, some gateways ask for the length.
            request.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from_static("0"));
        }
        loop {
            let (mut lease, kept) = match self.pool.kept() {
                Some(lease) => (lease, true),
                None => match self.pool.connect().await {
                    Ok(lease) => (lease, false),
                    Err(error) => return Err(Missed::unsent(request, reason(&*error))),
                },
            };
            lease.will_carry(&request.body().size_hint());
            let moved = match request.body() {
                Upload::Stream(stream) => Some(stream.moved.clone()),
                Upload::Nothing | Upload::Whole(_) => None,
            };
            let answer = tokio::select! {
                biased;
                answer = lease.sender().try_send_request(request) => answer,
                () = stalled(moved, patience) => {
                    let waited = patience.as_secs_f32();
                    return Err(Missed::sent(format!("no answer within {waited:.1} s")));
                }
            };
            match answer {
                Ok(answer) => return Ok(received(answer, lease, patience)),
                Err(mut error) => match error.take_message() {
                    // The connection broke before it was used. A new one has no such excuse.
                    Some(unsent) if kept => request = unsent,
                    Some(unsent) => {
                        return Err(Missed::unsent(unsent, reason(&error.into_error())));
                    }
                    None => return Err(Missed::sent(reason(&error.into_error()))),
                },
            }
        }
    }
}

/// Ends when nothing has moved for so long.
async fn stalled(moved: Option<Moved>, patience: Duration) {
    let Some(moved) = moved else { return sleep(patience).await };
    let mut until = Instant::now() + patience;
    while Instant::now() < until {
        sleep_until(until).await;
        until = moved.last() + patience;
    }
}

fn received(answer: http::Response<Incoming>, lease: Lease, patience: Duration) -> Forwarded {
    let (head, rest) = answer.into_parts();
    let over = rest.is_end_stream();
    let mut lease = Some(lease);
    if over && let Some(lease) = lease.take() {
        lease.put_back();
    }
    let (looked_at, alarm, waiting) = (VecDeque::new(), None, false);
    let body = Download { looked_at, rest, lease, patience, alarm, waiting };
    Forwarded { status: head.status, headers: head.headers, body }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_does_not_show_its_secrets() {
        let headers = HeaderMap::from_iter([(HOST, HeaderValue::from_static("secret"))]);
        let path_and_query = "/cgi-bin/user/get?access_token=secret".to_owned();
        let body = Upload::Whole(Bytes::from_static(b"secret"));
        let shown = format!("{:?}", Forward { method: Method::GET, path_and_query, headers, body });
        assert!(shown.contains("/cgi-bin/user/get") && !shown.contains("secret"), "{shown}");
    }
}
