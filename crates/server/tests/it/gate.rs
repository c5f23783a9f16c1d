//! What stands between a server and another one, and lets nothing through when it is told so.

use std::net::Ipv4Addr;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
};
use tokio_util::task::{AbortOnDropHandle, TaskTracker};

/// What a gate does with connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// Passes everything on.
    Open,
    /// Keeps what comes, as a network that swallows everything.
    Swallowing,
    /// Ends connections, and takes no new ones.
    Refusing,
}

/// A way to another server.
pub(crate) struct Gate {
    /// Where it listens, as host and port.
    pub(crate) host: String,
    way: watch::Sender<Way>,
    _task: AbortOnDropHandle<()>,
}

impl Gate {
    /// One before the server at a host and port.
    pub(crate) async fn before(host: &str) -> Self {
        Self::at(Ipv4Addr::LOCALHOST, host).await
    }

    /// The same at an address of this machine.
    pub(crate) async fn at(address: Ipv4Addr, host: &str) -> Self {
        let listener = TcpListener::bind((address, 0)).await.unwrap();
        let (at, to) = (listener.local_addr().unwrap().to_string(), host.to_owned());
        let way = watch::Sender::new(Way::Open);
        let watched = way.subscribe();
        let tasks = TaskTracker::new();
        let task = tasks.clone().spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                tasks.spawn(carry(near, to.clone(), watched.clone()));
            }
        });
        Self { host: at, way, _task: AbortOnDropHandle::new(task) }
    }

    pub(crate) fn set(&self, way: Way) {
        self.way.send_replace(way);
    }
}

/// Carries one connection, until one of the two ends it or it is refused.
async fn carry(near: TcpStream, to: String, mut way: watch::Receiver<Way>) {
    let mut refused = way.clone();
    let carried = async {
        way.wait_for(|way| *way == Way::Open).await.ok()?;
        let far = TcpStream::connect(&to).await.ok()?;
        let ((near_in, near_out), (far_in, far_out)) = (near.into_split(), far.into_split());
        tokio::select! {
            () = pass(near_in, far_out, way.clone()) => {}
            () = pass(far_in, near_out, way.clone()) => {}
        }
        Some(())
    };
    tokio::select! {
        _ = carried => {}
        _ = refused.wait_for(|way| *way == Way::Refusing) => {}
    }
}

/// Passes bytes on while the gate is open; while it is shut they wait.
async fn pass(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut way: watch::Receiver<Way>) {
    let mut buffer = vec![0; 16 * 1024];
    while let Ok(length @ 1..) = from.read(&mut buffer).await {
        let open = way.wait_for(|way| *way == Way::Open).await.is_ok();
        if !open || to.write_all(&buffer[..length]).await.is_err() {
            return;
        }
    }
}
