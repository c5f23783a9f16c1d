//! P5: a kill at any moment loses no acknowledged write, and causes at most one fetch more.

use std::{
    collections::BTreeMap,
    hash::{BuildHasher, Hasher, RandomState},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use clock::Clock;
use serde_json::{Value, json};
use tokio_util::task::TaskTracker;

use crate::process::{Folder, SimProcess};

const SECRET: &str = "0123456789abcdef0123456789abcdef";
/// So many kills at least; more, up to a limit, until tokens have rotated often enough.
const ROUNDS: usize = 20;
const MOST_ROUNDS: usize = 60;
const GENERATIONS: i64 = 20;
/// A kill in the midst of a fetch leaves its lease behind: for nearly so long nobody else fetches.
const LEASE: Duration = Duration::from_secs(35);
/// Names the seed of a run that is to be repeated.
const SEED: &str = "XINFU_KILL_SEED";
/// Each has a lease of its own, and a kill in the midst of a fetch leaves it taken for up to 40
/// seconds; so there are several.
const STABLE: [&str; 8] = ["wx1", "wx2", "wx3", "wx4", "wx5", "wx6", "wx7", "wx8"];
const CLASSIC: &str = "wx9";

/// What was acknowledged so far.
#[derive(Default)]
struct Acknowledged {
    apps: Vec<String>,
    keys: Vec<String>,
    /// The newest generation that was served, by app.
    generations: BTreeMap<&'static str, i64>,
    /// Which token was served as which generation of which app, and when it ends, in seconds.
    tokens: BTreeMap<(&'static str, i64), (Value, i64)>,
    reads: usize,
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_loses_nothing_and_costs_one_fetch() {
    let mut chance = Chance::new();
    let all = || STABLE.into_iter().chain([CLASSIC]);
    let sim = SimProcess::start(&all().map(|app| (app, SECRET)).collect::<Vec<_>>()).await;
    // Tokens live for three seconds and are fetched slowly, so that many kills hit a fetch.
    sim.control("/sim/switches", &json!({"token_lifetime_secs": 3})).await;
    let slow = json!({"kind": "latency_after", "millis": 40, "path": "/cgi-bin/*"});
    sim.control("/sim/faults", &slow).await;
    let folder = Arc::new(Folder::ready(&sim).await);
    for app in all() {
        let issuer = if app == CLASSIC { "classic" } else { "stable" };
        folder.add_app(app, SECRET, &["--issuer", issuer]).await.ok();
    }
    let key = folder.add_key(&["reader", "--everything"]).await;

    let acknowledged = Arc::new(Mutex::new(Acknowledged::default()));
    let done = Arc::new(AtomicBool::new(false));
    let beside = TaskTracker::new();
    let writer = write_beside(Arc::clone(&folder), Arc::clone(&acknowledged), Arc::clone(&done));
    let loops =
        [beside.spawn(writer), beside.spawn(read_beside(Arc::clone(&folder), Arc::clone(&done)))];
    let mut kills = Vec::with_capacity(ROUNDS);
    let seen = || acknowledged.lock().unwrap().generations.values().sum::<i64>();
    while kills.len() < ROUNDS || (seen() < GENERATIONS && kills.len() < MOST_ROUNDS) {
        let mut server = folder.serve().await;
        let read = async |app: &'static str| {
            loop {
                let (status, token) = server.get(&format!("/v1/apps/{app}/token"), &key).await;
                if status == 200 {
                    let generation = token["generation"].as_i64().unwrap();
                    let mut acknowledged = acknowledged.lock().unwrap();
                    acknowledged.reads += 1;
                    let newest = acknowledged.generations.entry(app).or_default();
                    // What was served once is never taken back, over any number of kills.
                    assert!(generation >= *newest, "{app}: {generation} after {newest}; {chance}");
                    *newest = generation;
                    let (value, end) = (&token["access_token"], &token["expires_at"]);
                    let known = acknowledged.tokens.entry((app, generation));
                    let known = known.or_insert_with(|| (value.clone(), end.as_i64().unwrap()));
                    assert_eq!(&known.0, value, "{app}: two tokens as {generation}; {chance}");
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let read = futures_util::future::join_all(all().map(read));
        // A moment by chance, not a wait for anything.
        let moment = Duration::from_millis(chance.below(2_000));
        assert!(tokio::time::timeout(moment, read).await.is_err());
        server.process.kill().await;
        kills.push(Clock::real().now().as_millis());
        chance.next();
    }
    done.store(true, Ordering::Relaxed);
    for task in loops {
        task.await.unwrap();
    }

    // Whatever is left of a lease runs out, and the server goes on as if nothing had happened.
    sim.control("/sim/switches", &json!({"token_lifetime_secs": 7200})).await;
    let server = folder.serve().await;
    let recovers = STABLE.map(|app| server.answers(app, &key, 200, Duration::from_secs(60)));
    futures_util::future::join_all(recovers).await;

    let acknowledged = std::mem::take(&mut *acknowledged.lock().unwrap());
    let apps = folder.xinfu(&["app", "list", "--json"]).await.ok().json();
    let keys = folder.xinfu(&["key", "list", "--json"]).await.ok().json();
    assert!(acknowledged.apps.len() >= 3 && acknowledged.reads > ROUNDS, "{chance}");
    for app in &acknowledged.apps {
        assert!(apps.as_array().unwrap().iter().any(|it| it["appid"] == *app), "{app}; {chance}");
    }
    for name in &acknowledged.keys {
        assert!(keys.as_array().unwrap().iter().any(|it| it["name"] == *name), "{name}; {chance}");
    }
    let log = sim.log().await;
    let (mut all_fetches, mut all_generations, mut all_lost) = (0, 0, 0);
    for app in all() {
        let status = folder.xinfu(&["token", "status", app, "--json"]).await.ok().json();
        let generation = status["credentials"][0]["generation"].as_u64().unwrap();
        let newest = acknowledged.generations.get(app).copied().unwrap_or_default();
        assert!(i64::try_from(generation).unwrap() >= newest, "{app}; {chance}");
        let fetches = fetches_of(&log, app);
        // A life counts from when its fetch was sent, and none is sent before half of the life before
        // is over, by the same clock: no restart fetches what is there.
        let ends = acknowledged.tokens.range((app, 0)..=(app, i64::MAX));
        let ends: Vec<_> = ends.map(|((_, generation), (_, end))| (*generation, *end)).collect();
        let early = ends.windows(2).find(|two| two[1].0 == two[0].0 + 1 && two[1].1 <= two[0].1);
        assert!(early.is_none(), "{app}: fetched early: {early:?}; {chance}");
        let lost = left_leases(&fetches, &kills);
        assert!(
            fetches.len() as u64 <= generation + lost,
            "{app}: {} fetches, {generation} generations, {lost} hit by a kill; {chance}",
            fetches.len()
        );
        all_fetches += fetches.len();
        all_generations += generation;
        all_lost += lost;
    }
    println!(
        "{all_fetches} fetches, {all_generations} generations, {all_lost} hit by a kill; {chance}"
    );
    assert!(all_generations > all().count() as u64, "no token rotated; {chance}");
}

/// When each fetch of a token that WeChat has answered was sent, in milliseconds.
fn fetches_of(log: &[Value], app: &str) -> Vec<i64> {
    let paths = ["/cgi-bin/token", "/cgi-bin/stable_token"];
    let fetches = log.iter().filter(|call| {
        call["appid"] == app && call["errcode"] == 0 && paths.iter().any(|it| call["path"] == *it)
    });
    fetches.map(|call| call["sent_at"].as_i64().unwrap()).collect()
}

/// How many fetches a kill has hit before they were stored, at most: such a one leaves its lease
/// behind, so that the next fetch of the app comes when that has run out, or not any more.
fn left_leases(fetches: &[i64], kills: &[i64]) -> u64 {
    let lease = i64::try_from(LEASE.as_millis()).unwrap();
    let next = fetches.iter().skip(1).copied().chain([i64::MAX]);
    let hit = fetches.iter().zip(next).filter(|(sent, next)| {
        let killed = kills.iter().find(|kill| *kill >= sent);
        killed.is_some_and(|kill| kill < next && next.saturating_sub(**sent) >= lease)
    });
    hit.count() as u64
}

/// Adds apps and keys, and notes each that was acknowledged.
async fn write_beside(
    folder: Arc<Folder>,
    acknowledged: Arc<Mutex<Acknowledged>>,
    done: Arc<AtomicBool>,
) {
    let mut number = 0;
    while !done.load(Ordering::Relaxed) {
        number += 1;
        // Of a kind that has no token to fetch.
        let (app, name) = (format!("web{number}"), format!("key{number}"));
        folder.add_app(&app, SECRET, &["--kind", "website"]).await.ok();
        acknowledged.lock().unwrap().apps.push(app);
        folder.add_key(&[&name, "--allow", "token", "--all-apps"]).await;
        acknowledged.lock().unwrap().keys.push(name);
    }
}

/// Reads and refreshes tokens as a second and third process on the same file.
async fn read_beside(folder: Arc<Folder>, done: Arc<AtomicBool>) {
    while !done.load(Ordering::Relaxed) {
        // They may fail: a lease that a killed server held has to run out first.
        folder.xinfu(&["token", "get", "wx1"]).await;
        folder.xinfu(&["token", "status"]).await.ok();
    }
}

/// Chance with a seed that is told when a test fails.
pub(crate) struct Chance {
    seed: u64,
    state: u64,
}

impl Chance {
    #[expect(clippy::disallowed_methods, reason = "a run is repeated from outside")]
    pub(crate) fn new() -> Self {
        let given = std::env::var(SEED).ok().map(|seed| seed.parse().unwrap());
        let seed = given.unwrap_or_else(|| RandomState::new().build_hasher().finish() | 1);
        Self { seed, state: seed }
    }

    pub(crate) fn next(&mut self) {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
    }

    pub(crate) fn below(&self, limit: u64) -> u64 {
        self.state % limit
    }
}

impl std::fmt::Display for Chance {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{SEED}={}", self.seed)
    }
}
