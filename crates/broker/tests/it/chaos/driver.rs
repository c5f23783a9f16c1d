//! The world: replicas, WeChat, the store, what gives leases, the time, and what happens to them by the dice.

use std::{
    net::{IpAddr, Ipv4Addr},
    sync::{Arc, Mutex},
    time::Duration,
};

use broker::{
    Broker, Parts, Proof, TokenError, TokenView,
    app::Issuer,
    audit::Actor,
    key::{ClientKey, Rights},
};
use clock::{Clock, Timestamp};
use sim::{AppSpec, Fault, FaultKind, Sim, Switches, UserSpec, Wire, wire};
use tokio::runtime::{Builder, Runtime};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use wechat::AuthCode;

use super::{
    judge::{Heard, Judge, Refused, Reported, Seen, Told, Wrong},
    leases::Leases,
    link::{Far, Link, PATIENCE, SLOW},
    outsider::Outsider,
    panics,
    records::{Records, sealer_of},
};
use crate::{
    day::Dice,
    harness::{START, new_app, secret_of},
};

/// The apps, and how their tokens are minted.
pub(super) const APPS: [(&str, Issuer); 3] = [
    ("wx00000000000000aa", Issuer::Stable),
    ("wx00000000000000ab", Issuer::Stable),
    ("wx00000000000000ba", Issuer::Classic),
];
/// Tokens live for so long here, so that they rotate often.
pub(super) const LIFE: Duration = Duration::from_secs(600);
/// The time moves on by so much, for everybody.
const STEP: Duration = Duration::from_millis(100);
/// So long things happen.
const TROUBLE: Duration = Duration::from_secs(30 * 60);
/// So long nothing happens any more.
const PEACE: Duration = Duration::from_secs(4 * 60);

pub(super) struct Chaos {
    seed: u64,
    dice: Dice,
    clock: Clock,
    sim: Sim,
    wechat: Runtime,
    nodes: Vec<Node>,
    /// What gives leases, if that is not the store.
    leases: Option<Leases>,
    judge: Judge,
    /// What was done at the store.
    records: Records,
    /// What services heard.
    heard: Arc<Mutex<Heard>>,
    /// The key of all services.
    key: Option<String>,
    /// The master keys that replicas start with; the last one seals.
    master_keys: &'static [&'static str],
    outsider: Option<Outsider>,
    /// Whether services read tokens all the time.
    services: bool,
    story: Vec<String>,
}

/// One replica.
struct Node {
    ip: IpAddr,
    link: Link,
    wire: Wire,
    /// How far its clock is from the store's, in seconds.
    wrong: i64,
    state: State,
    /// When each of its two ways is mended.
    link_cut_until: Option<Timestamp>,
    wire_cut_until: Option<Timestamp>,
}

enum State {
    Up(Running),
    /// As by SIGSTOP: until when, and for how long so far.
    Stopped(Running, Timestamp, Duration),
    Down(Timestamp),
}

struct Running {
    runtime: Runtime,
    broker: Broker,
    key: Arc<ClientKey>,
}

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_time().start_paused(true).build().unwrap()
}

/// Lets the time of a runtime go on; its timers fire when their time has come.
async fn pass(time: Duration) {
    tokio::time::sleep(time).await;
}

impl Chaos {
    pub(super) fn new(seed: u64) -> Self {
        let mut dice = Dice::new(seed);
        let wrong = (0..3 + dice.roll(3)).map(|_| [0, 0, 600, -600][dice.roll(4) as usize]);
        let wrong: Vec<_> = wrong.collect();
        let mut chaos = Self::with(seed, dice, &wrong, Leases::dice(seed));
        chaos.outsider = Outsider::by(&mut chaos.dice);
        if chaos.dice.roll(3) == 0 {
            // WeChat goes on with a token for longer, so that it comes back when another is due.
            let switches = chaos.sim.switches();
            chaos.sim.set_switches(Switches { stable_roll_secs: 200, ..switches });
        }
        chaos.services = true;
        chaos.let_services_read(0);
        chaos
    }

    /// One replica, to which nothing happens by itself.
    pub(super) fn lone() -> Self {
        Self::with(1, Dice::new(1), &[0], None)
    }

    /// Replicas whose clocks are wrong by so many seconds; with dice for the leases if those are apart from
    /// the store.
    fn with(seed: u64, dice: Dice, wrong: &[i64], leases: Option<Dice>) -> Self {
        panics::count();
        let clock = Clock::by_hand(START);
        let records = Records::by(&clock);
        let mut leases = leases.map(|dice| Leases::by(dice, &clock, &records));
        let mut judge = Judge::new(seed, leases.is_some());
        let sim = Sim::new(sim::Options {
            switches: Switches { token_lifetime_secs: LIFE.as_secs(), ..Switches::default() },
            ..sim::Options::new(clock.clone(), seed)
        });
        let store = Far::by(&clock);
        let wechat = runtime();
        let mut nodes = Vec::new();
        for (number, wrong) in wrong.iter().copied().enumerate() {
            let ip = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1 + u8::try_from(number).unwrap()));
            let (wire, end) = wire(ip);
            let _entered = wechat.enter();
            TaskTracker::new().spawn(end.serve(sim.clone()));
            judge.goes_wrong(Wrong::Down, ip, START, None);
            if let Some(leases) = &mut leases {
                leases.add(ip);
            }
            nodes.push(Node {
                ip,
                link: Link::of(ip, &store, &records),
                wire,
                wrong,
                state: State::Down(START),
                link_cut_until: None,
                wire_cut_until: None,
            });
        }
        for (appid, _) in APPS {
            sim.add_app(AppSpec::new(appid, secret_of(appid)));
        }
        let story = Vec::new();
        let mut chaos = Self {
            seed,
            dice,
            clock,
            sim,
            wechat,
            nodes,
            leases,
            judge,
            records,
            heard: Arc::default(),
            key: None,
            master_keys: &["k1"],
            outsider: None,
            services: false,
            story,
        };
        chaos.start(0);
        chaos.register();
        chaos
    }

    fn now(&self) -> Timestamp {
        self.clock.now()
    }

    fn tell(&mut self, what: &str) {
        let at = self.now().since(START).as_secs_f64();
        self.story.push(format!("{at:.1} {what}"));
    }

    /// All that happened, in words.
    pub(super) fn story(self) -> String {
        let calls = self.sim.calls().log;
        let calls = calls.iter().map(|call| {
            let ip = call.client_ip.map(|ip| ip.to_string()).unwrap_or_default();
            format!("{} {} {ip} {} {:?}", call.seq, call.sent_at, call.path, call.errcode)
        });
        self.story.into_iter().chain(calls).collect::<Vec<_>>().join("\n")
    }

    fn register(&mut self) {
        let State::Up(Running { runtime, broker, .. }) = &self.nodes[0].state else {
            panic!("the first one is up")
        };
        runtime.block_on(async {
            for (appid, issuer) in APPS {
                broker.add_app(new_app(appid, issuer), &Actor::System).await.unwrap();
            }
        });
    }

    /// Starts a replica, unless it cannot reach the store.
    fn start(&mut self, at: usize) {
        let (now, node) = (self.clock.now(), &mut self.nodes[at]);
        let runtime = runtime();
        let config = wechat::Config {
            hosts: vec!["http://api.test".parse().unwrap()],
            pages: "http://open.test".parse().unwrap(),
            ..wechat::Config::default()
        };
        let (link, wire, wrong) = (node.link.clone(), node.wire.clone(), node.wrong);
        let shared = self.leases.as_ref().map_or(&link, |leases| leases.link(at)).clone();
        let (known, sealer) = (self.key.clone(), sealer_of(self.master_keys));
        let opened = runtime.block_on(async {
            let broker = Broker::open(Parts {
                store: Arc::new(link),
                shared: Arc::new(shared),
                wechat: wechat::Client::with_connector(config, wire).unwrap(),
                clock: Clock::following_timers(now.offset_millis(wrong * 1000)),
                sealer,
                tasks: TaskTracker::new(),
                bounds: broker::Bounds::default(),
            })
            .await
            .ok()?;
            let key = match known {
                Some(key) => key,
                None => {
                    let new = broker.add_key("services", Rights::all(), None, &Actor::System).await;
                    new.ok()?.expose().to_owned()
                }
            };
            let service = broker.authenticate(&key).ok()?;
            let running = broker.clone();
            TaskTracker::new().spawn(async move { running.run(CancellationToken::new()).await });
            Some((broker, service, key))
        });
        node.state = match opened {
            Some((broker, service, key)) => {
                self.key = Some(key);
                self.judge.mended(Wrong::Down, node.ip, now);
                State::Up(Running { runtime, broker, key: service })
            }
            None => State::Down(now + Duration::from_secs(5)),
        };
        let up = matches!(node.state, State::Up(_));
        self.tell(&format!("start {at}: {up}"));
        if up && self.services {
            self.let_services_read(at);
        }
    }

    /// Services read tokens of a replica, and report those that do not work.
    fn let_services_read(&mut self, at: usize) {
        let node = &self.nodes[at];
        let State::Up(Running { runtime, broker, key }) = &node.state else { return };
        let _entered = runtime.enter();
        let ip = node.ip;
        for (app, (appid, _)) in APPS.iter().enumerate() {
            let (broker, key, sim) = (broker.clone(), Arc::clone(key), self.sim.clone());
            let (clock, heard) = (self.clock.clone(), Arc::clone(&self.heard));
            let mut dice = Dice::new(self.seed * 1_000 + (at * 10 + app) as u64);
            TaskTracker::new().spawn(async move {
                loop {
                    tokio::time::sleep(Duration::from_millis(500 + dice.roll(3_000))).await;
                    let Some(entry) = broker.app(appid) else { continue };
                    let asked = clock.now();
                    let read = broker.token(&entry, Some(&key), Duration::ZERO).await;
                    let at = clock.now();
                    let view = match read {
                        Ok(view) => view,
                        Err(err) => {
                            let refused = Refused { ip, appid, asked, at, why: err.to_string() };
                            heard.lock().unwrap().refused.push(refused);
                            continue;
                        }
                    };
                    let state = sim.token_state(appid, view.token.expose());
                    let seen = Seen { ip, appid, asked, at, state, view: view.clone() };
                    heard.lock().unwrap().seen.push(seen);
                    if state != sim::TokenState::Live {
                        heard.lock().unwrap().reported.push(Reported { ip, appid, at });
                        drop(broker.report(&entry, Some(&key), &view.token, 40001).await);
                    }
                }
            });
        }
    }

    pub(super) fn sim(&self) -> &Sim {
        &self.sim
    }

    pub(super) fn records(&self) -> &Records {
        &self.records
    }

    pub(super) fn link(&self, at: usize) -> &Link {
        &self.nodes[at].link
    }

    fn running(&self, at: usize) -> &Running {
        let State::Up(running) = &self.nodes[at].state else { panic!("replica {at} is up") };
        running
    }

    pub(super) fn broker(&self, at: usize) -> &Broker {
        &self.running(at).broker
    }

    /// A service's key.
    pub(super) fn key(&self, at: usize) -> Arc<ClientKey> {
        Arc::clone(&self.running(at).key)
    }

    /// Does something on a replica while the time goes on.
    pub(super) fn on<Job>(&self, at: usize, job: impl FnOnce(Broker) -> Job)
    where
        Job: Future<Output = ()> + Send + 'static,
    {
        let Running { runtime, broker, .. } = self.running(at);
        let _entered = runtime.enter();
        TaskTracker::new().spawn(job(broker.clone()));
    }

    /// Reads a token of a replica.
    pub(super) fn read(&self, at: usize, appid: &str) -> Result<TokenView, TokenError> {
        let Running { runtime, broker, .. } = self.running(at);
        let entry = broker.app(appid).expect("it is registered");
        runtime.block_on(broker.token(&entry, None, Duration::ZERO))
    }

    /// Waits for something that a replica does, or that is done where it could.
    pub(super) fn wait_for<T>(&self, at: usize, job: impl Future<Output = T>) -> T {
        self.running(at).runtime.block_on(job)
    }

    /// Ends a replica, and starts it with these master keys.
    pub(super) fn restart_with(&mut self, at: usize, master_keys: &'static [&'static str]) {
        self.master_keys = master_keys;
        self.kill(at);
        self.step();
    }

    /// Ends a replica as SIGKILL does. It is started again at once.
    pub(super) fn kill(&mut self, at: usize) {
        self.kill_for(at, Duration::ZERO);
    }

    /// The same, and it is started again after so long.
    pub(super) fn kill_for(&mut self, at: usize, time: Duration) {
        self.nodes[at].state = State::Down(self.clock.now() + time);
    }

    /// Lets the time go on for everybody.
    pub(super) fn pass(&mut self, time: Duration) {
        let end = self.now() + time;
        while self.now() < end {
            self.step();
        }
    }

    pub(super) fn run(&mut self) {
        let end = START + TROUBLE;
        while self.now() < end {
            if self.now().as_millis() % 1_000 == 0 {
                self.happen();
                self.let_leases_fail();
                self.let_the_outsider_act();
            }
            self.step();
        }
        self.make_peace();
        while self.now() < end + PEACE {
            self.step();
        }
        self.judge();
    }

    /// Lets the time go on by a step, for everybody.
    fn step(&mut self) {
        self.clock.advance(STEP);
        let now = self.clock.now();
        self.wechat.block_on(pass(STEP));
        if let Some(leases) = &mut self.leases {
            leases.step(now);
        }
        for at in 0..self.nodes.len() {
            let node = &mut self.nodes[at];
            if node.link_cut_until.is_some_and(|until| until <= now) {
                node.link_cut_until = None;
                node.link.cut(None);
            }
            if node.wire_cut_until.is_some_and(|until| until <= now) {
                node.wire_cut_until = None;
                node.wire.cut(false);
            }
            match &mut node.state {
                State::Up(running) => running.runtime.block_on(pass(STEP)),
                State::Stopped(_, until, so_far) => {
                    *so_far += STEP;
                    if *until <= now {
                        self.go_on(at);
                    }
                }
                State::Down(until) => {
                    if *until <= now {
                        self.start(at);
                    }
                }
            }
        }
    }

    /// A replica that was stopped finds that time has passed.
    fn go_on(&mut self, at: usize) {
        let node = &mut self.nodes[at];
        let down = State::Down(self.clock.now());
        let State::Stopped(running, _, so_far) = std::mem::replace(&mut node.state, down) else {
            return;
        };
        running.runtime.block_on(async { tokio::time::advance(so_far).await });
        node.state = State::Up(running);
        self.tell(&format!("go on {at}"));
    }

    /// What happens in a second.
    fn happen(&mut self) {
        let now = self.now();
        for at in 0..self.nodes.len() {
            let roll = self.dice.roll(1_000);
            let mut secs = |most: u64| Duration::from_secs(1 + self.dice.roll(most));
            let node = &mut self.nodes[at];
            let what = match roll {
                0..2 => {
                    let until = now + secs(90);
                    let until = node.link_cut_until.map_or(until, |other| other.max(until));
                    node.link.cut(Some(PATIENCE));
                    node.link_cut_until = Some(until);
                    self.judge.goes_wrong(Wrong::Alone, node.ip, now, Some(until));
                    "store cut"
                }
                2..5 => {
                    let until = now + secs(60);
                    let until = node.wire_cut_until.map_or(until, |other| other.max(until));
                    node.wire.cut(true);
                    node.wire_cut_until = Some(until);
                    self.judge.goes_wrong(Wrong::CutOff, node.ip, now, Some(until));
                    "WeChat cut"
                }
                5..6 => {
                    let until = now + secs(100);
                    let down = State::Down(until);
                    match std::mem::replace(&mut node.state, down) {
                        State::Up(running) => {
                            node.state = State::Stopped(running, until, Duration::ZERO);
                            self.judge.goes_wrong(Wrong::Stopped, node.ip, now, Some(until));
                        }
                        other => node.state = other,
                    }
                    "stopped"
                }
                6..8 => {
                    let until = now + secs(30);
                    if let State::Up(_) = node.state {
                        // Its runtime goes with all of its tasks, as by SIGKILL.
                        node.state = State::Down(until);
                        self.judge.goes_wrong(Wrong::Down, node.ip, now, None);
                    }
                    "killed"
                }
                8..14 => {
                    let millis = 1 + self.dice.roll(800);
                    node.link.slow(millis);
                    self.judge.mended(Wrong::Slow, node.ip, now);
                    if millis > SLOW {
                        self.judge.goes_wrong(Wrong::Slow, node.ip, now, None);
                    }
                    "slow"
                }
                _ => continue,
            };
            self.tell(&format!("{what} {at}"));
        }
        match self.dice.roll(120) {
            0 => self.set_fault(),
            1 => {
                let (appid, issuer) = APPS[self.dice.roll(3) as usize];
                let issuer = match issuer {
                    Issuer::Stable => sim::Issuer::Stable,
                    Issuer::Classic => sim::Issuer::Classic,
                };
                let kill = self.dice.roll(2) == 0;
                self.sim.foreign_refresh(appid, issuer, kill).unwrap();
                self.tell(&format!("foreign refresh of {appid}, {kill}"));
            }
            2..22 => self.log_in(),
            _ => {}
        }
    }

    fn let_leases_fail(&mut self) {
        let now = self.now();
        let Some(leases) = &mut self.leases else { return };
        for what in leases.happen(now, &mut self.judge) {
            self.tell(&what);
        }
    }

    /// Somebody outside ends an app's token, again and again.
    fn let_the_outsider_act(&mut self) {
        let now = self.now();
        let Some(outsider) = self.outsider.as_ref().filter(|it| it.acts_at(now)) else { return };
        let healed = outsider.act(&self.sim, now);
        self.judge.ended(outsider.appid, now, healed);
        self.tell("the outsider acts");
    }

    fn set_fault(&mut self) {
        let kinds = [
            FaultKind::Errcode { code: -1, ip: None, message: None },
            FaultKind::Errcode { code: 45011, ip: None, message: None },
            FaultKind::LatencyBefore { millis: 5_000 },
            FaultKind::LatencyAfter { millis: 5_000 },
            FaultKind::ResetBefore {},
            FaultKind::ResetAfter {},
            FaultKind::BadGateway { processed: false },
            FaultKind::BadGateway { processed: true },
            FaultKind::TruncatedBody {},
            FaultKind::EmptyBody {},
        ];
        let kind = kinds[self.dice.roll(kinds.len() as u64) as usize].clone();
        self.tell(&format!("{kind:?}"));
        self.sim.set_fault(Fault::new(kind).times(1 + self.dice.roll(5)));
    }

    /// A user comes back with a code, and three replicas are asked to exchange it, one of them by
    /// another browser.
    fn log_in(&mut self) {
        let (appid, _) = APPS[self.dice.roll(3) as usize];
        let openid = format!("oUser{:023}", self.dice.roll(20));
        self.sim.add_user(UserSpec::new(appid, &openid)).unwrap();
        let code = self.sim.issue_code(appid, &openid, sim::Scope::Base, false).unwrap();
        let other = self.dice.roll(3);
        for nth in 0..3 {
            let at = self.dice.roll(self.nodes.len() as u64) as usize;
            let State::Up(Running { runtime, broker, key }) = &self.nodes[at].state else {
                continue;
            };
            let _entered = runtime.enter();
            let (broker, key, code) = (broker.clone(), Arc::clone(key), code.clone());
            let heard = Arc::clone(&self.heard);
            let binding = if nth == other { "another browser" } else { "a browser" };
            TaskTracker::new().spawn(async move {
                let Some(entry) = broker.app(appid) else { return };
                let (proof, brought) = (Proof::Binding(binding), AuthCode::new(code.as_str()));
                let answer = broker.exchange(&entry, &key, &brought, proof, None).await;
                heard.lock().unwrap().told.push(Told { code, binding, answer });
            });
        }
    }

    /// Mends everything.
    fn make_peace(&mut self) {
        self.tell("peace");
        self.sim.clear_faults();
        let now = self.now();
        if let Some(leases) = &mut self.leases {
            leases.make_peace(now, &mut self.judge);
        }
        for at in 0..self.nodes.len() {
            let node = &mut self.nodes[at];
            for wrong in [Wrong::Alone, Wrong::Slow, Wrong::CutOff, Wrong::Stopped] {
                self.judge.mended(wrong, node.ip, now);
            }
            node.link.cut(None);
            node.link.slow(2);
            node.wire.cut(false);
            (node.link_cut_until, node.wire_cut_until) = (None, None);
            match &mut node.state {
                State::Stopped(..) => self.go_on(at),
                State::Down(until) => *until = now,
                State::Up(_) => {}
            }
        }
    }

    /// No task has panicked, of a replica or of anybody else: nobody else would hear of it.
    pub(super) fn nobody_panicked(&self) {
        assert_eq!(panics::counted(), 0, "tasks have panicked (seed {})", self.seed);
    }

    /// How often a budget held somebody back.
    pub(super) fn held_back(&self, api: &str) -> usize {
        let written = self.records.read();
        written.spent.iter().filter(|it| it.api == api && !it.granted).count()
    }

    fn judge(&self) {
        self.nobody_panicked();
        let heard = self.heard.lock().unwrap();
        self.judge.look(&self.sim, &self.records.read(), &heard);
        // All is well again, without a restart of anything.
        let peace = START + TROUBLE + PEACE - Duration::from_secs(60);
        for Node { ip, .. } in &self.nodes {
            for (appid, _) in APPS {
                let late = heard.seen.iter().filter(|it| it.at > peace && it.ip == *ip);
                let fine = late.filter(|it| it.appid == appid);
                assert!(
                    // What somebody outside did may show as late as this.
                    fine.clone().rev().take(4).any(|it| it.state == sim::TokenState::Live),
                    "{ip} does not serve {appid} again: {:?}, {:?} (seed {})",
                    fine.map(|it| (it.at, it.state)).collect::<Vec<_>>(),
                    heard
                        .refused
                        .iter()
                        .filter(|it| it.at > peace && (it.ip, it.appid) == (*ip, appid))
                        .map(|it| (it.at, it.why.as_str()))
                        .collect::<Vec<_>>(),
                    self.seed
                );
            }
        }
    }
}
