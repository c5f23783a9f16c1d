//! Connections: kept, counted, encrypted, and ended in good order.

use std::{path::Path, sync::Arc, time::Duration};

use rcgen::{CertifiedKey, KeyPair, generate_simple_self_signed};
use rustls::{ClientConfig, RootCertStore, pki_types::ServerName};
use server::http::{Limits, ProblemType, Tls, TlsError};
use sim::{Fault, FaultKind};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{Instant, timeout},
};
use tokio_rustls::TlsConnector;

use crate::harness::{APP, Answer, OPENID, Setup, World, pass};

const HEALTH: &[u8] = b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n";

/// Reads one answer whose length is stated, and leaves the connection open.
async fn read_answer(stream: &mut (impl AsyncReadExt + Unpin)) -> Answer {
    let mut received = Vec::new();
    loop {
        let mut buffer = [0; 4096];
        let read = stream.read(&mut buffer).await.unwrap();
        assert_ne!(read, 0, "the connection ended");
        received.extend_from_slice(&buffer[..read]);
        let Some(answer) = Answer::parse(&received) else { continue };
        let length: usize = answer.header("content-length").unwrap().parse().unwrap();
        if answer.body.len() >= length {
            return answer;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_connection_serves_many_requests() {
    let world = World::new().await;
    let mut stream = TcpStream::connect(world.api).await.unwrap();
    for _ in 0..3 {
        stream.write_all(HEALTH).await.unwrap();
        assert_eq!(read_answer(&mut stream).await.status, 200);
        pass(5).await;
    }
    // After a refusal it goes on too.
    stream.write_all(b"GET /v1/nowhere HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    assert_eq!(read_answer(&mut stream).await.status, 404);
    stream.write_all(HEALTH).await.unwrap();
    assert_eq!(read_answer(&mut stream).await.status, 200);
    // Idle, it is closed.
    assert_eq!(stream.read(&mut [0; 16]).await.unwrap(), 0);
}

#[tokio::test(start_paused = true)]
async fn too_many_connections_wait() {
    let limits = Limits {
        connections: 2,
        header_read_timeout: Duration::from_secs(600),
        ..Limits::default()
    };
    let world = World::with(Setup { limits, ..Setup::default() }).await;
    let mut open = Vec::new();
    for _ in 0..2 {
        let mut stream = TcpStream::connect(world.api).await.unwrap();
        stream.write_all(HEALTH).await.unwrap();
        assert_eq!(read_answer(&mut stream).await.status, 200);
        open.push(stream);
    }
    let mut third = TcpStream::connect(world.api).await.unwrap();
    third.write_all(HEALTH).await.unwrap();
    let waits = timeout(Duration::from_secs(60), read_answer(&mut third)).await;
    assert!(waits.is_err(), "it waits");
    open.pop();
    assert_eq!(read_answer(&mut third).await.status, 200);
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_finishes_what_is_in_flight() {
    let world = World::new().await;
    world.token().await;
    let slow = FaultKind::LatencyBefore { millis: 3000 };
    world.sim.set_fault(Fault::new(slow).on("/cgi-bin/user/info"));
    let mut idle = TcpStream::connect(world.api).await.unwrap();
    idle.write_all(HEALTH).await.unwrap();
    read_answer(&mut idle).await;
    let mut silent = TcpStream::connect(world.api).await.unwrap();

    let begun = Instant::now();
    let shutdown = async {
        pass(1).await;
        world.shutdown.cancel();
        world.served().await;
        begun.elapsed()
    };
    let user = format!("/v1/apps/{APP}/users/{OPENID}");
    let poll = format!("/v1/apps/{APP}/token?after=1&wait=60");
    let polled = async { (world.get(&poll).await, begun.elapsed()) };
    let (user, (polled, polled_at), served) = tokio::join!(world.get(&user), polled, shutdown);
    assert_eq!(user.status, 200, "{user:?}");
    assert_eq!((polled.status, polled_at.as_secs()), (204, 1));
    assert_eq!(served.as_secs(), 3);
    assert_eq!(idle.read(&mut [0; 16]).await.unwrap(), 0, "idle connections are closed");
    assert_eq!(silent.read(&mut [0; 16]).await.unwrap(), 0);
    assert!(TcpStream::connect(world.api).await.is_err(), "nobody listens any more");
}

#[tokio::test(start_paused = true)]
async fn a_load_balancer_hears_of_a_shutdown() {
    let limits = Limits { drain: Duration::from_secs(5), ..Limits::default() };
    let world = World::with(Setup { limits, ..Setup::default() }).await;
    world.token().await;
    let poll = format!("/v1/apps/{APP}/token?after=1&wait=60");
    let begun = Instant::now();
    let shutdown = async {
        assert_eq!(world.get("/readyz").await.status, 200);
        pass(1).await;
        world.shutdown.cancel();
        for _ in 0..4 {
            pass(1).await;
            // Each on a connection of its own.
            let ready = world.get("/readyz").await;
            ready.check_problem(ProblemType::Draining);
            assert_eq!(world.token().await["generation"], 1);
        }
        world.served().await;
        begun.elapsed().as_secs()
    };
    let polled = async { (world.get(&poll).await.status, begun.elapsed().as_secs()) };
    assert_eq!(tokio::join!(polled, shutdown), ((204, 1), 6));
    assert!(TcpStream::connect(world.api).await.is_err(), "nobody listens any more");
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_has_an_end() {
    let limits = Limits { grace: Duration::from_secs(2), ..Limits::default() };
    let world = World::with(Setup { limits, ..Setup::default() }).await;
    world.token().await;
    let slow = FaultKind::LatencyBefore { millis: 6000 };
    world.sim.set_fault(Fault::new(slow).on("/cgi-bin/user/info"));
    let key = &world.key;
    let request = format!(
        "GET /v1/apps/{APP}/users/{OPENID} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\n\r\n"
    );
    let begun = Instant::now();
    let shutdown = async {
        pass(1).await;
        world.shutdown.cancel();
        world.served().await;
    };
    let (received, ()) = tokio::join!(world.exchange(request.as_bytes()), shutdown);
    assert!(received.is_empty());
    assert_eq!(begun.elapsed().as_secs(), 3);
}

/// A certificate for localhost, written to the two files.
fn write_certificate(dir: &Path) -> CertifiedKey<KeyPair> {
    let made = generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    std::fs::write(dir.join("cert.pem"), made.cert.pem()).unwrap();
    std::fs::write(dir.join("key.pem"), made.signing_key.serialize_pem()).unwrap();
    made
}

/// Asks over TLS, trusting one certificate only.
async fn ask_over_tls(world: &World, trusted: &CertifiedKey<KeyPair>) -> Option<Answer> {
    let mut roots = RootCertStore::empty();
    roots.add(trusted.cert.der().clone()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let tcp = TcpStream::connect(world.api).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    let mut stream = TlsConnector::from(Arc::new(config)).connect(name, tcp).await.ok()?;
    stream.write_all(HEALTH).await.unwrap();
    Some(read_answer(&mut stream).await)
}

#[tokio::test(start_paused = true)]
async fn certificates_are_read_again() {
    let dir = TempDir::new().unwrap();
    let file = |name: &str| dir.path().join(name);
    let first = write_certificate(dir.path());
    let tls = Tls::from_files(file("cert.pem"), file("key.pem")).unwrap();
    let world = World::with(Setup { tls: Some(tls), ..Setup::default() }).await;
    assert_eq!(ask_over_tls(&world, &first).await.unwrap().status, 200);

    let second = write_certificate(dir.path());
    pass(10).await;
    assert_eq!(ask_over_tls(&world, &second).await.unwrap().status, 200);
    assert!(ask_over_tls(&world, &first).await.is_none());

    // Bad files change nothing, whatever is bad about them.
    for (name, bad) in
        [("cert.pem", ""), ("key.pem", "-----BEGIN PRIVATE KEY-----\n"), ("key.pem", "")]
    {
        let good = std::fs::read(file(name)).unwrap();
        std::fs::write(file(name), bad).unwrap();
        pass(10).await;
        assert_eq!(ask_over_tls(&world, &second).await.unwrap().status, 200);
        std::fs::write(file(name), good).unwrap();
        pass(10).await;
    }
    std::fs::remove_file(file("cert.pem")).unwrap();
    pass(10).await;
    assert_eq!(ask_over_tls(&world, &second).await.unwrap().status, 200);
    let third = write_certificate(dir.path());
    pass(10).await;
    assert_eq!(ask_over_tls(&world, &third).await.unwrap().status, 200);

    // Who speaks plain HTTP is shown the door, who says nothing too.
    assert_ne!(world.exchange(HEALTH).await.first(), Some(&b'H'));
    let begun = Instant::now();
    assert!(world.exchange(b"").await.is_empty());
    assert_eq!(begun.elapsed().as_secs(), 10);
}

#[test]
fn unusable_certificates_are_refused_by_name() {
    let dir = TempDir::new().unwrap();
    let file = |name: &str| dir.path().join(name);
    let missing = Tls::from_files(file("cert.pem"), file("key.pem")).unwrap_err();
    assert!(matches!(missing, TlsError::Read { .. }) && missing.to_string().contains("cert.pem"));
    write_certificate(dir.path());
    let other = generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    std::fs::write(file("key.pem"), other.signing_key.serialize_pem()).unwrap();
    let strangers = Tls::from_files(file("cert.pem"), file("key.pem")).unwrap_err();
    assert!(matches!(strangers, TlsError::Unusable { .. }), "{strangers}");
    std::fs::write(file("key.pem"), "nothing").unwrap();
    let empty = Tls::from_files(file("cert.pem"), file("key.pem")).unwrap_err();
    assert!(empty.to_string().contains("no private key"), "{empty}");
}

#[tokio::test(start_paused = true)]
async fn the_limits_of_a_request_are_the_servers() {
    let limits = Limits { body: 64, batch: 2, ..Limits::default() };
    let world = World::with(Setup { limits, ..Setup::default() }).await;
    let path = format!("/v1/apps/{APP}/users/batch");
    let answer = world.post(&path, r#"{"openids":["a","b","c"]}"#).await;
    let problem = answer.check_problem(ProblemType::Invalid);
    assert!(problem["detail"].as_str().unwrap().contains("1 to 2"), "{problem}");
    let long = format!(r#"{{"openids":["{}"]}}"#, "a".repeat(64));
    let problem = world.post(&path, &long).await.check_problem(ProblemType::BodyTooLarge);
    assert!(problem["detail"].as_str().unwrap().contains("64 bytes"), "{problem}");
}
