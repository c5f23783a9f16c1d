//! The private servers that tests of this module talk to. `cargo xtask test` starts them.

use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
};
use tokio_util::task::{AbortOnDropHandle, TaskTracker};

/// The URL of PostgreSQL, as a user who may make databases.
pub(super) fn postgres() -> String {
    named_by("XINFU_TEST_POSTGRES")
}

/// The URL of Redis.
pub(super) fn redis() -> String {
    named_by("XINFU_TEST_REDIS")
}

/// The URL of the same Redis by TLS.
pub(super) fn redis_by_tls() -> String {
    named_by("XINFU_TEST_REDIS_TLS")
}

/// The URL of the same Redis by way of a Sentinel.
pub(super) fn redis_by_sentinel() -> String {
    named_by("XINFU_TEST_REDIS_SENTINEL")
}

/// The URL of a cluster of Redis.
pub(super) fn redis_cluster() -> String {
    named_by("XINFU_TEST_REDIS_CLUSTER")
}

/// The authority that has signed the certificates of the servers, which are for `localhost`.
pub(super) fn authority() -> Vec<u8> {
    std::fs::read(named_by("XINFU_TEST_CA")).unwrap()
}

#[expect(clippy::disallowed_methods, reason = "who starts the servers names them so")]
fn named_by(variable: &str) -> String {
    std::env::var(variable).unwrap_or_else(|_| {
        panic!("`cargo xtask test tests` starts the servers; or let {variable} name one by its URL")
    })
}

/// What stands before a server, and stops passing on what comes by the connections that there
/// are when it is told to.
pub(super) async fn gate(to: String) -> (String, watch::Sender<u32>, AbortOnDropHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let stalls = watch::Sender::new(0);
    let told = stalls.subscribe();
    let tasks = TaskTracker::new();
    let accepting = tasks.clone().spawn(async move {
        while let Ok((mut near, _)) = listener.accept().await {
            let (to, mut told) = (to.clone(), told.clone());
            told.mark_unchanged();
            tasks.spawn(async move {
                let mut far = TcpStream::connect(to).await.unwrap();
                tokio::select! {
                    _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
                    // Nobody is told that nothing comes any more.
                    _ = told.changed() => std::future::pending().await,
                }
            });
        }
    });
    (address, stalls, AbortOnDropHandle::new(accepting))
}
