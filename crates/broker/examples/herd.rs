//! How soon those who wait for a token have it: many tasks, one fetch.
//!
//! `cargo run --release -p broker --example herd -- 10000`
//!
//! Prints, in milliseconds from when WeChat's answer was written, when the first task and the last
//! one went on; and how often WeChat was asked. The store is in memory: what a disk takes to keep the
//! token comes before the first.

use std::{
    io::Write as _,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use broker::{
    Bounds, Broker, NewApp, Parts,
    app::{AppKind, Issuer},
    audit::Actor,
    seal::Sealer,
    store::MemoryStore,
};
use clock::Clock;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    sync::Notify,
    task::JoinSet,
    time::Instant,
};
use tokio_util::task::TaskTracker;

const APP: &str = "wx00000000000000aa";

type Failure = Box<dyn std::error::Error + Send + Sync>;

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let readers: usize = std::env::args().nth(1).as_deref().unwrap_or("10000").parse()?;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let host = format!("http://{}", listener.local_addr()?);
    let all_wait = Arc::new(Notify::new());
    let mut wechat = JoinSet::new();
    wechat.spawn(answer_when_told(listener, Arc::clone(&all_wait)));

    let broker = broker(&host).await?;
    let entry = broker.app(APP).ok_or("the app is not there")?;
    let waiting = TaskTracker::new();
    let begun = Instant::now();
    let woken: Arc<[AtomicU64]> = (0..readers).map(|_| AtomicU64::new(0)).collect();
    for reader in 0..readers {
        let (broker, entry, woken) = (broker.clone(), Arc::clone(&entry), Arc::clone(&woken));
        waiting.spawn(async move {
            if broker.token(&entry, None, Duration::ZERO).await.is_ok() {
                let nanos = u64::try_from(begun.elapsed().as_nanos()).unwrap_or(u64::MAX);
                woken[reader].store(nanos, Ordering::Relaxed);
            }
        });
    }
    // None of them can be done before it is told to answer.
    tokio::time::sleep(Duration::from_millis(300)).await;
    all_wait.notify_one();
    waiting.close();
    waiting.wait().await;
    let answered = wechat.join_next().await.ok_or("nobody has answered")???;
    let answered = answered.duration_since(begun).as_secs_f64();
    let times = || woken.iter().map(|at| at.load(Ordering::Relaxed));
    if times().any(|at| at == 0) {
        return Err("not everybody got the token".into());
    }
    let after = |at: Option<u64>| (at.unwrap_or_default() as f64 / 1e9 - answered) * 1e3;
    let fetches = broker.counters().read().rotations;
    let (first, last) = (after(times().min()), after(times().max()));
    writeln!(std::io::stdout(), "first {first:.2} last {last:.2} fetches {fetches}")?;
    Ok(())
}

async fn broker(host: &str) -> Result<Broker, Failure> {
    let wechat = wechat::Client::new(wechat::Config {
        hosts: vec![host.parse()?],
        pages: host.parse()?,
        ..wechat::Config::default()
    })?;
    let memory = MemoryStore::new(Clock::real());
    let broker = Broker::open(Parts {
        store: Arc::new(memory.clone()),
        shared: Arc::new(memory),
        wechat,
        clock: Clock::real(),
        sealer: Sealer::new([("k1".to_owned(), [7; 32])], "k1")?,
        tasks: TaskTracker::new(),
        bounds: Bounds::default(),
    })
    .await?;
    let app = NewApp {
        id: APP.parse()?,
        alias: None,
        kind: AppKind::Official,
        issuer: Issuer::Stable,
        secret: wechat::AppSecret::new("0123456789abcdef0123456789abcdef".to_owned()),
    };
    broker.add_app(app, &Actor::System).await?;
    Ok(broker)
}

/// Takes one call for a token, and answers it when it is told to; says when it did.
async fn answer_when_told(listener: TcpListener, told: Arc<Notify>) -> Result<Instant, Failure> {
    const BODY: &str = r#"{"access_token":"token-of-the-example","expires_in":7200}"#;
    let (mut stream, _) = listener.accept().await?;
    let read = stream.read(&mut [0; 4096]).await?;
    if read == 0 {
        return Err("nobody asked".into());
    }
    told.notified().await;
    let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length:";
    let answered = Instant::now();
    stream.write_all(format!("{head} {}\r\n\r\n{BODY}", BODY.len()).as_bytes()).await?;
    Ok(answered)
}
