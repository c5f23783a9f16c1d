//! Clients behind a load balancer, and everything that they were not given.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use clock::Clock;
use futures_util::future::join_all;
use http::{Request, header};
use http_body_util::{BodyExt, Full};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::world::{APPS, World};
use crate::process::{Folder, PATIENCE, eventually};

/// After so long a client gives up a call that may have to wait for something.
const LIMIT: Duration = Duration::from_secs(15);
/// After so long it gives up a call that is answered from memory.
const AT_ONCE: Duration = Duration::from_secs(3);
/// A call that is not answered is made again, so many times in all.
const TRIES: usize = 3;
/// How often the load balancer asks whether a replica is ready, and how long it waits for that.
const HEALTH: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(1));
/// After so long a client uses a connection no more: well before a server closes it, which takes
/// `limits.header_read_timeout`.
const IDLE: Duration = Duration::from_secs(3);
/// So many users log in to each app.
const USERS: u64 = 20;
/// What WeChat says to a token that does not work.
const DEAD: [i64; 3] = [40001, 40014, 42001];

/// What a client was not given.
#[derive(Clone, Debug)]
pub(super) struct Failure {
    pub(super) what: Failed,
    pub(super) node: usize,
    pub(super) app: &'static str,
    /// In milliseconds.
    pub(super) from: i64,
    pub(super) until: i64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Failed {
    /// No whole answer came.
    Unanswered(String),
    /// A call that only needs a token was refused.
    Refused(u16, Value),
    /// The token that was given does not work; its generation, where the client hears of that.
    Dead(Option<u64>),
    /// A login came to nothing: an answer's status, if there was an answer. Its code was brought to
    /// another replica too.
    NoLogin { status: Option<u16>, answer: Value, other: usize },
    /// Replicas were asked one after the other, and none answered.
    Everywhere,
    /// A change was not stored.
    NotStored(String),
}

/// A token of an app that was served: its generation, itself, and by which replica.
pub(super) type Served = (&'static str, u64, String, usize);

/// When a token was served.
pub(super) struct Seen {
    pub(super) first: i64,
    pub(super) last: i64,
    /// Whether it ever worked.
    pub(super) worked: bool,
}

/// What all clients did.
#[derive(Default)]
pub(super) struct Done {
    pub(super) calls: usize,
    pub(super) logins: usize,
    pub(super) failures: Vec<Failure>,
    pub(super) tokens: HashMap<Served, Seen>,
    /// The names of the keys that were made.
    pub(super) keys: Vec<String>,
    /// When a call for an app last worked, and the longest time in which none did.
    last: BTreeMap<&'static str, i64>,
    pub(super) longest_gap: usize,
}

/// Running clients.
pub(super) struct Clients {
    known: Known,
    loops: JoinSet<()>,
    _watchers: JoinSet<()>,
}

impl Clients {
    pub(super) async fn start(world: &World) -> Self {
        let key = world.folder.add_key(&["clients", "--everything"]).await;
        for app in APPS {
            let users = (0..USERS).map(|it| json!({"appid": app, "openid": openid(it)}));
            world.sim.control("/sim/users", &Value::from_iter(users)).await;
        }
        let urls = world.urls();
        let known = Known {
            healthy: Arc::new(urls.iter().map(|_| AtomicBool::new(true)).collect()),
            urls: Arc::new(urls),
            turn: Arc::default(),
            sim: world.sim.api.clone(),
            control: world.sim.control.clone(),
            key,
            clock: Clock::real(),
            http: Client::builder(TokioExecutor::new())
                .pool_timer(TokioTimer::new())
                .pool_idle_timeout(IDLE)
                .build_http(),
            over: Arc::default(),
            done: Arc::default(),
        };
        // All have heard of the key.
        let heard = eventually(PATIENCE, || world.is_of_one_mind(&known.key)).await;
        heard.expect("all replicas serve");
        let (mut loops, mut watchers) = (JoinSet::new(), JoinSet::new());
        for node in 0..known.urls.len() {
            watchers.spawn(known.clone().watch(node));
        }
        for app in APPS {
            for _ in 0..2 {
                loops.spawn(known.clone().read_tokens(app));
                loops.spawn(known.clone().call_wechat(app));
            }
            loops.spawn(known.clone().poll(app));
            loops.spawn(known.clone().log_in(app));
        }
        loops.spawn(known.clone().make_keys(Arc::clone(&world.folder)));
        Self { known, loops, _watchers: watchers }
    }

    pub(super) fn key(&self) -> &str {
        &self.known.key
    }

    /// Ends them, and answers what they did.
    pub(super) async fn end(mut self) -> Done {
        self.known.over.store(true, Ordering::Relaxed);
        while let Some(ended) = self.loops.join_next().await {
            ended.unwrap();
        }
        std::mem::take(&mut *self.known.done.lock().unwrap())
    }
}

fn openid(user: u64) -> String {
    format!("oUser{user:023}")
}

/// The URL of a call to WeChat that tells whether a token works.
pub(super) fn trial(sim: &str, token: &str) -> String {
    format!("{sim}/cgi-bin/user/info?access_token={token}&openid={}", openid(0))
}

/// Whether the token works, by what WeChat has answered.
pub(super) fn works(answer: &Value) -> bool {
    let errcode = answer["errcode"].as_i64().unwrap_or(0);
    assert!(errcode == 0 || DEAD.contains(&errcode), "{answer}");
    errcode == 0
}

/// An answer: its status and its body.
type Answer = (u16, Value);

/// What every client knows.
#[derive(Clone)]
struct Known {
    urls: Arc<Vec<String>>,
    /// Which replicas the load balancer takes for ready.
    healthy: Arc<Vec<AtomicBool>>,
    turn: Arc<AtomicUsize>,
    sim: String,
    control: String,
    key: String,
    clock: Clock,
    http: Client<HttpConnector, Full<Bytes>>,
    over: Arc<AtomicBool>,
    done: Arc<Mutex<Done>>,
}

impl Known {
    fn now(&self) -> i64 {
        self.clock.now().as_millis()
    }

    fn goes_on(&self) -> bool {
        !self.over.load(Ordering::Relaxed)
    }

    /// Makes a call; without a whole answer, says why.
    async fn call(&self, url: &str, body: Option<&Value>) -> Result<Answer, String> {
        let call = tokio::time::timeout(LIMIT, self.call_patiently(url, body)).await;
        call.unwrap_or(Err("no answer in time".to_owned()))
    }

    async fn call_patiently(&self, url: &str, body: Option<&Value>) -> Result<Answer, String> {
        let method = if body.is_some() { "POST" } else { "GET" };
        let body = body.map(Value::to_string).unwrap_or_default();
        let request = Request::builder()
            .method(method)
            .uri(url)
            .header(header::AUTHORIZATION, format!("Bearer {}", self.key))
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::from(body))
            .unwrap();
        let answer = self.http.request(request).await.map_err(|err| format!("{err:?}"))?;
        let status = answer.status().as_u16();
        let body = answer.into_body().collect().await.map_err(|err| format!("{err:?}"))?;
        Ok((status, serde_json::from_slice(&body.to_bytes()).unwrap_or_default()))
    }

    /// Asks again and again whether a replica is ready, as a load balancer does.
    async fn watch(self, node: usize) {
        let (every, limit) = HEALTH;
        let url = format!("{}/readyz", self.urls[node]);
        loop {
            let ready = tokio::time::timeout(limit, self.call(&url, None)).await;
            let ready = matches!(ready, Ok(Ok((200, _))));
            self.healthy[node].store(ready, Ordering::Relaxed);
            tokio::time::sleep(every).await;
        }
    }

    /// The replica that the load balancer chooses: the next one that is ready, if any is.
    fn next(&self) -> usize {
        let (all, turn) = (self.urls.len(), self.turn.fetch_add(1, Ordering::Relaxed));
        let mut in_turn = (0..all).map(|at| (turn + at) % all);
        in_turn.find(|node| self.healthy[*node].load(Ordering::Relaxed)).unwrap_or(turn % all)
    }

    fn fail(&self, what: Failed, node: usize, app: &'static str, from: i64) {
        let failure = Failure { what, node, app, from, until: self.now() };
        self.done.lock().unwrap().failures.push(failure);
    }

    fn worked(&self, app: &'static str) {
        let (now, mut done) = (self.now(), self.done.lock().unwrap());
        done.calls += 1;
        let last = done.last.insert(app, now).unwrap_or(now);
        let gap = usize::try_from(now - last).unwrap_or(0);
        done.longest_gap = done.longest_gap.max(gap);
    }

    /// Asks a replica, and another one where no answer came within a limit.
    async fn ask(&self, app: &'static str, path: &str, limit: Duration) -> Option<(usize, Answer)> {
        let begun = self.now();
        for _ in 0..TRIES {
            let node = self.next();
            let (from, url) = (self.now(), format!("{}{path}", self.urls[node]));
            let asked = tokio::time::timeout(limit, self.call_patiently(&url, None)).await;
            let why = match asked.unwrap_or(Err("no answer in time".to_owned())) {
                Ok(answer) => return Some((node, answer)),
                Err(why) => why,
            };
            self.fail(Failed::Unanswered(why), node, app, from);
        }
        self.fail(Failed::Everywhere, 0, app, begun);
        None
    }

    /// Calls WeChat with a token; answers whether the token works.
    async fn works(&self, token: &str) -> bool {
        let (_, answer) = self.call(&trial(&self.sim, token), None).await.unwrap();
        works(&answer)
    }

    /// A service that gets tokens, uses them, and reports those that do not work.
    async fn read_tokens(self, app: &'static str) {
        while self.goes_on() {
            tokio::time::sleep(Duration::from_millis(10)).await;
            let from = self.now();
            let Some((node, (status, answer))) =
                self.ask(app, &format!("/v1/apps/{app}/token"), AT_ONCE).await
            else {
                continue;
            };
            if !self.took(node, app, (status, answer.clone()), from).await {
                // Dead: the report of it is answered with the token to use now.
                let Some(token) = answer["access_token"].as_str() else { continue };
                let from = self.now();
                let report = json!({"access_token": token, "errcode": 40001});
                let url = format!("{}/v1/apps/{app}/token/report", self.urls[node]);
                match self.call(&url, Some(&report)).await {
                    Ok(answer) => drop(self.took(node, app, answer, from).await),
                    Err(why) => self.fail(Failed::Unanswered(why), node, app, from),
                }
            }
        }
    }

    /// Takes a token that a replica has given, and uses it. Answers whether it works.
    async fn took(&self, node: usize, app: &'static str, answer: Answer, from: i64) -> bool {
        let (status, answer) = answer;
        let Some(token) = answer["access_token"].as_str() else {
            self.fail(Failed::Refused(status, answer), node, app, from);
            return false;
        };
        let generation = answer["generation"].as_u64().unwrap();
        let (served, now) = ((app, generation, token.to_owned(), node), self.now());
        let works = self.works(token).await;
        {
            let mut done = self.done.lock().unwrap();
            let unseen = Seen { first: now, last: now, worked: false };
            let seen = done.tokens.entry(served).or_insert(unseen);
            // Two clients may have heard it in another order than they tried it.
            seen.first = seen.first.min(now);
            seen.last = seen.last.max(now);
            seen.worked |= works;
        }
        if works {
            self.worked(app);
        } else {
            self.fail(Failed::Dead(Some(generation)), node, app, from);
        }
        works
    }

    /// A service that calls WeChat through a replica.
    async fn call_wechat(self, app: &'static str) {
        while self.goes_on() {
            tokio::time::sleep(Duration::from_millis(10)).await;
            let from = self.now();
            let path = format!("/wx/{app}/cgi-bin/user/info?openid={}", openid(0));
            let Some((node, (status, answer))) = self.ask(app, &path, LIMIT).await else {
                continue;
            };
            let errcode = answer["errcode"].as_i64().unwrap_or(0);
            if status == 200 && answer["openid"].is_string() {
                self.worked(app);
            } else if DEAD.contains(&errcode) {
                self.fail(Failed::Dead(None), node, app, from);
            } else {
                self.fail(Failed::Refused(status, answer), node, app, from);
            }
        }
    }

    /// A service that waits for each new token.
    async fn poll(self, app: &'static str) {
        let mut generation = 0;
        while self.goes_on() {
            let from = self.now();
            let path = format!("/v1/apps/{app}/token?after={generation}&wait=5");
            let Some((node, (status, answer))) = self.ask(app, &path, LIMIT).await else {
                continue;
            };
            match (status, answer["generation"].as_u64()) {
                (200, Some(newer)) => generation = newer,
                // Also when it drains: somebody else is asked then.
                (204, None) => tokio::time::sleep(Duration::from_millis(50)).await,
                _ => self.fail(Failed::Refused(status, answer), node, app, from),
            }
        }
    }

    /// Users who log in. Each code comes to two replicas at once, as a callback that is repeated.
    async fn log_in(self, app: &'static str) {
        for number in 0.. {
            if !self.goes_on() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
            let user = openid(number % USERS);
            let wanted = json!({"openid": user, "scope": "snsapi_base"});
            let url = format!("{}/sim/apps/{app}/codes", self.control);
            let (_, issued) = self.call(&url, Some(&wanted)).await.unwrap();
            let body = json!({"code": issued["code"], "binding": "browser"});
            let (one, two) = (self.next(), self.next());
            let both = [(one, two), (two, one)].map(async |(node, other)| {
                let from = self.now();
                let url = format!("{}/v1/apps/{app}/oauth/exchange", self.urls[node]);
                match self.call(&url, Some(&body)).await {
                    Ok((200, answer)) => assert_eq!(answer["openid"], user.as_str()),
                    Ok((status, answer)) => {
                        let failed = Failed::NoLogin { status: Some(status), answer, other };
                        self.fail(failed, node, app, from);
                    }
                    Err(why) => {
                        let failed = Failed::NoLogin { status: None, answer: json!(why), other };
                        self.fail(failed, node, app, from);
                    }
                }
            });
            join_all(both).await;
            self.done.lock().unwrap().logins += 1;
        }
    }

    /// An operator who makes one key after the other.
    async fn make_keys(self, folder: Arc<Folder>) {
        for number in 0.. {
            if !self.goes_on() {
                return;
            }
            let (from, name) = (self.now(), format!("key{number}"));
            let made = folder.xinfu(&["key", "add", &name, "--allow", "token", "--all-apps"]).await;
            if made.code == Some(0) {
                self.done.lock().unwrap().keys.push(name);
            } else {
                self.fail(Failed::NotStored(made.err), 0, APPS[0], from);
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }
}
