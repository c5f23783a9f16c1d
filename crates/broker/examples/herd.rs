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
    net::{TcpListener, TcpStream},
    sync::{Notify, oneshot},
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
    let calls = Arc::new(AtomicU64::new(0));
    let (answers, answered) = oneshot::channel();
    let mut wechat = JoinSet::new();
    wechat.spawn(answer_when_told(listener, Arc::clone(&all_wait), Arc::clone(&calls), answers));

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
    let answered = answered.await?;
    let answered = answered.duration_since(begun).as_secs_f64();
    let times = || woken.iter().map(|at| at.load(Ordering::Relaxed));
    if times().any(|at| at == 0) {
        return Err("not everybody got the token".into());
    }
    let after = |at: Option<u64>| (at.unwrap_or_default() as f64 / 1e9 - answered) * 1e3;
    let (first, last) = (after(times().min()), after(times().max()));
    let fetches = calls.load(Ordering::Relaxed);
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

/// Takes every call for a token and counts it, answers the first when it is told to, and sends when
/// it did.
async fn answer_when_told(
    listener: TcpListener,
    told: Arc<Notify>,
    calls: Arc<AtomicU64>,
    answered: oneshot::Sender<Instant>,
) -> Result<(), Failure> {
    const BODY: &str = r#"{"access_token":"token-of-the-example","expires_in":7200}"#;
    let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length:";
    let (mut first, _) = listener.accept().await?;
    read_call(&mut first, &calls).await?;
    // Any other that comes is counted, and hears nothing.
    let mut others = JoinSet::new();
    others.spawn(async move {
        let mut open = Vec::new();
        while let Ok((mut stream, _)) = listener.accept().await {
            if read_call(&mut stream, &calls).await.is_ok() {
                open.push(stream);
            }
        }
    });
    told.notified().await;
    let at = Instant::now();
    first.write_all(format!("{head} {}\r\n\r\n{BODY}", BODY.len()).as_bytes()).await?;
    answered.send(at).map_err(|_| "nobody wants to know")?;
    others.join_next().await;
    Ok(())
}

async fn read_call(stream: &mut TcpStream, calls: &AtomicU64) -> Result<(), Failure> {
    if stream.read(&mut [0; 4096]).await? == 0 {
        return Err("nobody asked".into());
    }
    calls.fetch_add(1, Ordering::Relaxed);
    Ok(())
}
