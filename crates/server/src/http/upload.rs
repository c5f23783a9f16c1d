//! The body of a call that is carried, on its way in.
//!
//! A small body is kept, so that the call can be sent again; a larger one is passed on as it comes.
//! What is left of a body when its call is answered early is read and dropped for a while: a client
//! that is still sending would otherwise lose the answer with the connection.

use std::{
    error::Error as StdError,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::http::{HeaderMap, header};
use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt, combinators::UnsyncBoxBody};
use hyper::body::{Body, Frame, SizeHint};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, Sleep, sleep, timeout, timeout_at},
};
use tokio_util::task::TaskTracker;
use wechat::Upload;

use super::Limits;

type BoxError = Box<dyn StdError + Send + Sync>;

/// How bodies that arrive are treated. Cloning gives another handle to the same.
#[derive(Clone, Debug)]
pub(super) struct Uploads {
    /// The most bytes of one that is kept.
    keep: usize,
    /// How much may be kept at the same time, in KiB.
    room: Arc<Semaphore>,
    /// The most bytes of any.
    most: u64,
    /// How long a client may pause.
    patience: Duration,
    /// Bodies that are read to be dropped.
    lingering: TaskTracker,
}

impl Uploads {
    pub(super) fn new(limits: &Limits) -> Self {
        Self {
            keep: limits.kept_body,
            room: Arc::new(Semaphore::new(limits.kept_bodies.div_ceil(1024))),
            most: limits.call_body as u64,
            patience: limits.request_timeout,
            lingering: TaskTracker::new(),
        }
    }

    /// Waits until no body is read any more to be dropped; each ends with its connection.
    pub(super) async fn ended(&self) {
        self.lingering.close();
        self.lingering.wait().await;
    }

    /// Takes a body over, before anything of it was read.
    pub(super) fn arriving<B>(&self, headers: &HeaderMap, body: B) -> Arriving
    where
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let ended = body.is_end_stream();
        Arriving {
            body: (!ended).then(|| UnsyncBoxBody::new(body.map_err(Into::into))),
            read: None,
            room: None,
            left: self.most,
            patience: self.patience,
            alarm: None,
            waiting: false,
            faults: Faults::default(),
            // It sends nothing before it is told to, which happens when the body is first asked for.
            silent: headers.contains_key(header::EXPECT),
            lingering: self.lingering.clone(),
        }
    }

    /// Takes in a body that is to be looked at, up to `most` bytes.
    pub(super) async fn whole(&self, mut body: Arriving, most: usize) -> Result<Bytes, Fault> {
        let mut whole = BytesMut::new();
        let read = async {
            while let Some(bytes) = body.next().await {
                let bytes = bytes?;
                if whole.len() + bytes.len() > most {
                    return Err(Fault::TooLarge);
                }
                whole.extend_from_slice(&bytes);
            }
            Ok(())
        };
        // Nobody has proven anything yet: all of it comes within the time of one pause.
        match timeout(self.patience, read).await {
            Ok(read) => read?,
            Err(_) => return Err(body.failed(Fault::Stalled)),
        }
        Ok(whole.freeze())
    }

    /// Keeps a body if it is small enough and there is room; else only its beginning is taken in.
    pub(super) async fn keep(&self, mut body: Arriving) -> Result<Kept, Fault> {
        if body.is_end_stream() {
            return Ok(Kept::Whole { bytes: Bytes::new(), _room: None });
        }
        let hint = body.size_hint();
        if hint.lower() > self.most {
            return Err(Fault::TooLarge);
        }
        if hint.lower() > self.keep as u64 {
            return Ok(Kept::passing(body));
        }
        let size =
            hint.exact().map_or(self.keep, |size| usize::try_from(size).unwrap_or(self.keep));
        let room = u32::try_from(size.div_ceil(1024)).unwrap_or(u32::MAX);
        let Ok(room) = Arc::clone(&self.room).try_acquire_many_owned(room) else {
            return Ok(Kept::passing(body));
        };
        // Copied together: many small pieces would take more room than their bytes.
        let mut whole = BytesMut::with_capacity(hint.exact().map_or(0, |_| size));
        let deadline = Instant::now() + self.patience;
        loop {
            let Ok(bytes) = timeout_at(deadline, body.next()).await else {
                // One that comes by drops keeps no room from the others.
                body.room = Some(fitted(room, whole.len()));
                body.read = (!whole.is_empty()).then(|| Bytes::copy_from_slice(&whole));
                return Ok(Kept::passing(body));
            };
            let Some(bytes) = bytes else { break };
            let bytes = bytes?;
            if whole.is_empty() && body.is_end_stream() && bytes.len() <= self.keep {
                return Ok(Kept::Whole { bytes, _room: Some(room) });
            }
            whole.extend_from_slice(&bytes);
            if whole.len() > self.keep {
                body.read = Some(whole.freeze());
                body.room = Some(room);
                return Ok(Kept::passing(body));
            }
        }
        // One that did not say how long it would be had room for the longest, and has grown by
        // doubling.
        let room = fitted(room, whole.len());
        Ok(Kept::Whole { bytes: Bytes::copy_from_slice(&whole), _room: Some(room) })
    }
}

/// The room that so many bytes take; the rest is given back.
fn fitted(mut room: OwnedSemaphorePermit, bytes: usize) -> OwnedSemaphorePermit {
    let surplus = room.num_permits().saturating_sub(bytes.div_ceil(1024));
    drop(room.split(surplus));
    room
}

/// A body that is ready to be sent.
pub(super) enum Kept {
    /// All of it, as often as it is needed.
    Whole {
        bytes: Bytes,
        /// The room that it takes, until it is dropped.
        _room: Option<OwnedSemaphorePermit>,
    },
    /// It is passed on as it comes: once. And what went wrong with it.
    Passing(Option<Upload>, Faults),
}

impl Kept {
    fn passing(body: Arriving) -> Self {
        let faults = body.faults.clone();
        Self::Passing(Some(Upload::stream(UnsyncBoxBody::new(body))), faults)
    }

    /// The body to send. One that passes is there once.
    pub(super) fn upload(&mut self) -> Upload {
        match self {
            Self::Whole { bytes, .. } if bytes.is_empty() => Upload::Nothing,
            Self::Whole { bytes, .. } => Upload::Whole(bytes.clone()),
            Self::Passing(upload, _) => upload.take().unwrap_or_default(),
        }
    }

    /// Whether it can be sent again.
    pub(super) fn is_whole(&self) -> bool {
        matches!(self, Self::Whole { .. })
    }

    /// What will have gone wrong with it on its way in.
    pub(super) fn faults(&self) -> Faults {
        match self {
            Self::Whole { .. } => Faults::default(),
            Self::Passing(_, faults) => faults.clone(),
        }
    }
}

/// Why a body did not arrive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Fault {
    /// It broke off, or its chunks are broken.
    #[error("the body broke off, or its chunks are broken")]
    Broken = 1,
    /// It stopped coming.
    #[error("the body did not arrive in time")]
    Stalled = 2,
    /// It is longer than it may be.
    #[error("the body is longer than it may be")]
    TooLarge = 3,
}

/// What went wrong with a body that is passed on, told to whoever waits for the answer.
#[derive(Clone, Debug, Default)]
pub(super) struct Faults(Arc<AtomicU8>);

impl Faults {
    fn note(&self, fault: Fault) {
        self.0.store(fault as u8, Ordering::Relaxed);
    }

    /// What went wrong.
    pub(super) fn read(&self) -> Option<Fault> {
        match self.0.load(Ordering::Relaxed) {
            0 => None,
            2 => Some(Fault::Stalled),
            3 => Some(Fault::TooLarge),
            _ => Some(Fault::Broken),
        }
    }
}

/// The body of a request, as it arrives.
pub(super) struct Arriving {
    /// What is still to come; `None` when it is over.
    body: Option<UnsyncBoxBody<Bytes, BoxError>>,
    /// What was read already.
    read: Option<Bytes>,
    /// The room that it takes, until all is sent: whoever takes it may hold it for long.
    room: Option<OwnedSemaphorePermit>,
    /// How many bytes it may still have.
    left: u64,
    patience: Duration,
    alarm: Option<Pin<Box<Sleep>>>,
    waiting: bool,
    faults: Faults,
    /// The client waits with it until it is asked to send it, which has not happened.
    silent: bool,
    lingering: TaskTracker,
}

impl Arriving {
    async fn next(&mut self) -> Option<Result<Bytes, Fault>> {
        std::future::poll_fn(|cx| self.poll_next(cx)).await
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Fault>>> {
        if let Some(bytes) = self.read.take() {
            return Poll::Ready(Some(Ok(bytes)));
        }
        loop {
            let Some(body) = &mut self.body else { return Poll::Ready(None) };
            self.silent = false;
            let Poll::Ready(frame) = Pin::new(body).poll_frame(cx) else {
                let patience = self.patience;
                let alarm = self.alarm.get_or_insert_with(|| Box::pin(sleep(patience)));
                if !std::mem::replace(&mut self.waiting, true) {
                    alarm.as_mut().reset(Instant::now() + patience);
                }
                ready!(alarm.as_mut().poll(cx));
                return Poll::Ready(Some(Err(self.failed(Fault::Stalled))));
            };
            self.waiting = false;
            match frame {
                None => self.body = None,
                Some(Err(_)) => return Poll::Ready(Some(Err(self.failed(Fault::Broken)))),
                Some(Ok(frame)) => {
                    // Trailers are about this connection, and are not passed on.
                    let Ok(bytes) = frame.into_data() else { continue };
                    let Some(left) = self.left.checked_sub(bytes.len() as u64) else {
                        return Poll::Ready(Some(Err(self.failed(Fault::TooLarge))));
                    };
                    self.left = left;
                    return Poll::Ready(Some(Ok(bytes)));
                }
            }
        }
    }

    fn failed(&mut self, fault: Fault) -> Fault {
        self.faults.note(fault);
        // The rest of one that is too large is still dropped in good order.
        if fault != Fault::TooLarge {
            self.body = None;
        }
        fault
    }
}

impl Body for Arriving {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let bytes = ready!(self.poll_next(cx));
        Poll::Ready(bytes.map(|bytes| bytes.map(Frame::data).map_err(Into::into)))
    }

    fn is_end_stream(&self) -> bool {
        self.read.is_none() && self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        let read = self.read.as_ref().map_or(0, |bytes| bytes.len() as u64);
        let rest =
            self.body.as_ref().map(Body::size_hint).unwrap_or_else(|| SizeHint::with_exact(0));
        let mut hint = SizeHint::new();
        hint.set_lower(rest.lower() + read);
        if let Some(upper) = rest.upper() {
            hint.set_upper(upper + read);
        }
        hint
    }
}

impl Drop for Arriving {
    fn drop(&mut self) {
        /// As long as other servers linger.
        const LINGER: Duration = Duration::from_secs(30);
        const PAUSE: Duration = Duration::from_secs(5);
        let Some(mut rest) = self.body.take().filter(|body| !body.is_end_stream()) else { return };
        if self.silent {
            return;
        }
        self.lingering.spawn(async move {
            let until = Instant::now() + LINGER;
            while let Ok(Some(Ok(_))) = timeout(PAUSE, rest.frame()).await {
                if Instant::now() > until {
                    break;
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use futures_util::stream;
    use http_body_util::StreamBody;

    use super::*;

    /// A body of so many pieces of a hundred bytes that does not say how long it is.
    fn arriving(uploads: &Uploads, pieces: usize) -> Arriving {
        let piece = || Ok::<_, BoxError>(Frame::data(Bytes::from_static(&[7; 100])));
        let body = StreamBody::new(stream::iter((0..pieces).map(move |_| piece())));
        uploads.arriving(&HeaderMap::new(), body)
    }

    fn uploads() -> Uploads {
        let limits = Limits { kept_body: 4096, kept_bodies: 8192, ..Limits::default() };
        Uploads::new(&limits)
    }

    #[tokio::test]
    async fn a_kept_body_takes_the_room_that_it_needs() {
        let uploads = uploads();
        let mut kept = uploads.keep(arriving(&uploads, 11)).await.unwrap();
        assert_eq!(uploads.room.available_permits(), 6);
        for _ in 0..2 {
            assert_eq!(kept.upload().collect().await.unwrap().to_bytes(), [7; 1100].as_slice());
        }
        drop(kept);
        assert_eq!(uploads.room.available_permits(), 8);
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_comes_by_drops_is_passed_on_and_keeps_no_room_from_others() {
        let uploads = uploads();
        let drops = stream::unfold(0, |count| async move {
            sleep(Duration::from_secs(20)).await;
            let piece = Ok::<_, BoxError>(Frame::data(Bytes::from_static(b"x")));
            (count < 10).then_some((piece, count + 1))
        });
        let body = uploads.arriving(&HeaderMap::new(), StreamBody::new(Box::pin(drops)));
        let mut kept = uploads.keep(body).await.unwrap();
        assert!(!kept.is_whole());
        assert_eq!(uploads.room.available_permits(), 7);
        assert_eq!(kept.upload().collect().await.unwrap().to_bytes(), "xxxxxxxxxx");
        assert_eq!(uploads.room.available_permits(), 8);
    }

    #[tokio::test]
    async fn what_was_read_of_a_body_that_is_too_large_takes_room_until_it_is_sent() {
        let uploads = uploads();
        let mut kept = uploads.keep(arriving(&uploads, 60)).await.unwrap();
        assert!(!kept.is_whole());
        let mut upload = kept.upload();
        let first = upload.frame().await.unwrap().unwrap().into_data().unwrap();
        assert_eq!(first, [7; 4100].as_slice());
        assert_eq!(uploads.room.available_permits(), 4);
        assert_eq!(upload.collect().await.unwrap().to_bytes(), [7; 1900].as_slice());
        assert_eq!(uploads.room.available_permits(), 8);
    }
}
