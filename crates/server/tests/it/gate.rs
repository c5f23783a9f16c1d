//! What stands between a server and another one, and lets nothing through when it is told so.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpSocket, TcpStream, lookup_host,
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
        Self::at(Ipv4Addr::LOCALHOST, Ipv4Addr::UNSPECIFIED, host).await
    }

    /// The same at an address of this machine; the server sees who comes by it at the address
    /// `seen`, if that is one.
    pub(crate) async fn at(address: Ipv4Addr, seen: Ipv4Addr, host: &str) -> Self {
        let listener = TcpListener::bind((address, 0)).await.unwrap();
        let (at, to) = (listener.local_addr().unwrap().to_string(), host.to_owned());
        let way = watch::Sender::new(Way::Open);
        let watched = way.subscribe();
        let tasks = TaskTracker::new();
        let task = tasks.clone().spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                tasks.spawn(carry(near, (seen, to.clone()), watched.clone()));
            }
        });
        Self { host: at, way, _task: AbortOnDropHandle::new(task) }
    }

    pub(crate) fn set(&self, way: Way) {
        self.way.send_replace(way);
    }
}

/// Carries one connection, until one of the two ends it or it is refused.
async fn carry(near: TcpStream, far: (Ipv4Addr, String), mut way: watch::Receiver<Way>) {
    let mut refused = way.clone();
    let carried = async {
        way.wait_for(|way| *way == Way::Open).await.ok()?;
        let far = connect(far.0, &far.1).await.ok()?;
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

/// Connects from an address to a server.
async fn connect(from: Ipv4Addr, to: &str) -> io::Result<TcpStream> {
    let to = lookup_host(to).await?.find(SocketAddr::is_ipv4).ok_or(io::ErrorKind::NotFound)?;
    let socket = TcpSocket::new_v4()?;
    socket.bind((from, 0).into())?;
    socket.connect(to).await
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
