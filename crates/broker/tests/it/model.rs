//! A model of a token's life: random sequences of time passing, foreign refreshes, upstream faults,
//! reads, reports and restarts, over two servers and a command line on one store. What must hold is
//! checked after every step, by what the simulated WeChat knows and has logged.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use broker::{
    AppEntry, Broker, Refreshed, TokenError, TokenView, app::Issuer, audit::Actor,
    store::CredentialRow,
};
use clock::Timestamp;
use futures_util::future::join_all;
use proptest::prelude::*;
use proptest_state_machine::{ReferenceStateMachine, StateMachineTest, prop_state_machine};
use sim::{BadNumber, CallEntry, Fault, FaultKind, Switches, TokenState};

use crate::harness::{APP, Backend, Replica, World, secs};

const BROKERS: usize = 3;

/// How long tokens live here, in seconds: short, so that much of the time is close to their end.
const LIFE: u64 = 900;

/// One thing that happens.
#[derive(Clone, Debug)]
enum Step {
    /// Time passes; timers fire as they fall due.
    Pass(u64),
    /// The machine slept: the clock jumps.
    Jump(u64),
    /// A service reads through one of the brokers.
    Read(usize),
    /// Services read through all brokers at once.
    ReadTogether,
    /// A command opens the store, is left waiting, and then reads: what it remembers is old.
    ReadLate(u64),
    /// A reader goes away while it waits.
    Abandon(usize),
    /// A service reports the token that it read last.
    Report(usize),
    /// A person asks for another token, at the command line.
    Ask,
    /// Somebody outside mints; with `kill` the token before ends at once.
    Foreign { kill: bool },
    /// So many of the next calls go wrong in one way, or all until WeChat is well again.
    Fault(Option<u64>, FaultKind),
    /// WeChat is well again.
    Heal,
    /// A server is restarted.
    Restart(usize),
}

fn fault_kinds() -> impl Strategy<Value = FaultKind> {
    let errcode = |code| FaultKind::Errcode { code, ip: None, message: None };
    prop_oneof![
        Just(errcode(-1)),
        Just(errcode(45011)),
        Just(FaultKind::ResetBefore {}),
        Just(FaultKind::ResetAfter {}),
        Just(FaultKind::BadGateway { processed: false }),
        Just(FaultKind::TruncatedBody {}),
        Just(FaultKind::EmptyBody {}),
        Just(FaultKind::LatencyBefore { millis: 1_500 }),
        Just(FaultKind::LatencyAfter { millis: 1_500 }),
        Just(FaultKind::ExpiresIn { r#as: BadNumber::Missing }),
        Just(FaultKind::ExpiresIn { r#as: BadNumber::Huge }),
        Just(FaultKind::ExpiresIn { r#as: BadNumber::String }),
    ]
}

/// The reference knows nothing but the issuer: what must hold is independent of the history, apart
/// from what the machine itself remembers.
struct Reference<const SQLITE: bool>;

impl<const SQLITE: bool> ReferenceStateMachine for Reference<SQLITE> {
    type State = bool;
    type Transition = Step;

    fn init_state() -> BoxedStrategy<bool> {
        any::<bool>().boxed()
    }

    fn transitions(_classic: &bool) -> BoxedStrategy<Step> {
        // On SQLite time passes slowly, since servers look for changes of the file; so it jumps.
        let (longest, jumps) = if SQLITE { (200, 5) } else { (1_500_u64, 1) };
        let count = prop_oneof![(1..6_u64).prop_map(Some), Just(None)];
        prop_oneof![
            6 => (1..longest).prop_map(Step::Pass),
            jumps => (1..2_000_u64).prop_map(Step::Jump),
            5 => (0..BROKERS).prop_map(Step::Read),
            3 => Just(Step::ReadTogether),
            2 => (1..longest).prop_map(Step::ReadLate),
            1 => (0..BROKERS).prop_map(Step::Abandon),
            4 => (0..BROKERS).prop_map(Step::Report),
            1 => Just(Step::Ask),
            2 => any::<bool>().prop_map(|kill| Step::Foreign { kill }),
            5 => (count, fault_kinds()).prop_map(|(count, kind)| Step::Fault(count, kind)),
            2 => Just(Step::Heal),
            1 => (0..BROKERS - 1).prop_map(Step::Restart),
        ]
        .boxed()
    }

    fn apply(classic: bool, _step: &Step) -> bool {
        classic
    }
}

struct Machine<const SQLITE: bool> {
    runtime: tokio::runtime::Runtime,
    world: World,
    issuer: Issuer,
    servers: [Option<Replica>; BROKERS - 1],
    last_read: Option<TokenView>,
    /// Tokens that somebody outside may have ended.
    doomed: HashSet<String>,
    seen: HashSet<String>,
    /// The newest row of the store at the last look.
    row: Option<CredentialRow>,
    /// The classic mints whose answer got lost.
    lost: Vec<Timestamp>,
    /// Calls that a person asked for, by their numbers in the log, and when they were made.
    asked: HashMap<u64, Timestamp>,
    faulty: bool,
}

/// Whether a token has arrived here by this call.
fn arrived(call: &CallEntry, patience: Duration) -> bool {
    call.errcode == Some(0) && call.answered_at.is_some() && !got_lost(call, patience)
}

/// Whether WeChat has done what the call asked for and we do not hear of it: the answer was broken,
/// or the machine slept while it was under way and the caller's patience of so long is over.
fn got_lost(call: &CallEntry, patience: Duration) -> bool {
    const BROKEN: [&str; 3] = ["reset_after", "truncated_body", "empty_body"];
    let broken = call.faults.iter().any(|fault| BROKEN.contains(fault));
    let late = call.answered_at.is_some_and(|at| {
        Timestamp::from_millis(at).since(Timestamp::from_millis(call.sent_at)) >= patience
    });
    call.errcode == Some(0) && (broken || late)
}

impl<const SQLITE: bool> Machine<SQLITE> {
    /// One of the servers, or a command, which opens the store each time.
    async fn broker(&self, n: usize) -> Broker {
        match self.servers.get(n) {
            Some(server) => server.as_ref().expect("no restart is under way").broker.clone(),
            None => self.world.idle().await,
        }
    }

    fn entry(broker: &Broker) -> Arc<AppEntry> {
        broker.app(APP).expect("the app is registered")
    }

    fn doom_all(&mut self) {
        let now = self.world.sim.current_tokens(APP);
        self.doomed.extend(now.live);
        self.doomed.extend(self.seen.iter().cloned());
    }

    fn search_lost_mints(&mut self) {
        let log = self.world.sim.calls().log;
        let patience = self.world.wechat.budget();
        let lost =
            log.iter().filter(|call| call.path == "/cgi-bin/token" && got_lost(call, patience));
        self.lost = lost.map(|call| Timestamp::from_millis(call.decided_at)).collect();
    }

    /// How many mints since a token's own we have not heard of.
    fn lost_since(&self, view: &TokenView) -> usize {
        let minted_by = view.expires_at - secs(LIFE);
        self.lost.iter().filter(|at| minted_by <= **at).count()
    }

    /// Whether a token may have ended without our knowing: somebody outside minted, or two mints
    /// that we have not heard of have gone over it. One leaves it WeChat's overlap, and is reckoned
    /// with.
    fn is_doomed(&self, view: &TokenView) -> bool {
        self.doomed.contains(view.token.expose()) || self.lost_since(view) >= 2
    }

    /// What a service got must be a token that works, unless something outside ended it.
    fn check_served(&mut self, view: &TokenView) {
        self.search_lost_mints();
        let token = view.token.expose().to_owned();
        let state = self.world.state(view);
        let row = self.row.as_ref().filter(|row| row.generation == view.generation);
        assert!(row.is_none_or(|row| !row.dead), "a token known to be dead was served");
        let doomed = self.is_doomed(view);
        let fine = state == TokenState::Live || (state == TokenState::Superseded && doomed);
        assert!(fine, "served a token that is {state:?}; doomed: {doomed}");
        self.seen.insert(token);
        self.last_read = Some(view.clone());
    }

    async fn read(&mut self, n: usize) {
        let broker = self.broker(n).await;
        match broker.token(&Self::entry(&broker), None, Duration::ZERO).await {
            Ok(view) => self.check_served(&view),
            Err(err) => self.check_refused(&err),
        }
    }

    /// A reader may be refused only while WeChat fails, and only when there is nothing left: what
    /// was read last is served as long as it lives. On classic, a mint that a person asked for may
    /// have ended it unless its answer said otherwise.
    fn check_refused(&self, err: &TokenError) {
        assert!(self.faulty, "{err}");
        let Some(view) = &self.last_read else { return };
        let minted_by = view.expires_at - secs(LIFE);
        let in_doubt = self.issuer == Issuer::Classic
            && self.asked.values().any(|asked_at| minted_by <= *asked_at);
        let lives = self.world.state(view) == TokenState::Live
            && !in_doubt
            && view.expires_at > self.world.clock.now()
            && self.lost_since(view) == 0
            && !self.is_doomed(view);
        assert!(!lives, "refused although generation {} lives: {err}", view.generation);
    }

    async fn report(&mut self, n: usize) {
        let Some(view) = self.last_read.clone() else { return };
        let broker = self.broker(n).await;
        let before = self.world.state(&view);
        let current = self.generation().await == view.generation;
        match broker.report(&Self::entry(&broker), None, &view.token, 40001).await {
            Ok(now) => {
                assert!(now.generation >= view.generation);
                // Of an older generation nothing is checked: the current token is the answer.
                if !self.faulty && before != TokenState::Live && current {
                    assert_eq!(self.world.state(&now), TokenState::Live, "a report heals");
                }
                self.check_served(&now);
            }
            Err(err) => assert!(self.faulty, "{err}"),
        }
    }

    /// The current row, as the store has it.
    async fn stored(&self) -> Option<CredentialRow> {
        let (store, _) = self.world.stores().await;
        store.list_credentials().await.unwrap().pop()
    }

    async fn generation(&self) -> u64 {
        self.stored().await.map_or(0, |row| row.generation)
    }

    async fn step(&mut self, step: Step) {
        match step {
            Step::Pass(time) => self.world.pass(secs(time)).await,
            Step::Jump(time) => {
                // Nothing can help a machine that sleeps between the last look at its lease and the
                // call: two fetches are then within the promise, and this model has none of that.
                for server in self.servers.iter().flatten() {
                    server.broker.settled().await;
                }
                tokio::time::advance(secs(time)).await;
                // What was due in between is refreshed at once.
                self.world.pass(secs(2)).await;
            }
            Step::Read(n) => self.read(n).await,
            Step::ReadTogether => {
                let brokers = join_all((0..BROKERS).map(|n| self.broker(n))).await;
                let reads = brokers.iter().map(|broker| async {
                    broker.token(&Self::entry(broker), None, Duration::ZERO).await
                });
                for read in join_all(reads).await {
                    match read {
                        Ok(view) => self.check_served(&view),
                        Err(err) => self.check_refused(&err),
                    }
                }
            }
            Step::ReadLate(time) => {
                let command = self.world.idle().await;
                self.world.pass(secs(time)).await;
                match command.token(&Self::entry(&command), None, Duration::ZERO).await {
                    // It does not follow what others do, so its token may have been replaced.
                    Ok(view) => assert_ne!(self.world.state(&view), TokenState::Expired),
                    Err(err) => assert!(self.faulty, "{err}"),
                }
            }
            Step::Abandon(n) => {
                let broker = self.broker(n).await;
                let entry = Self::entry(&broker);
                let read = broker.token(&entry, None, Duration::ZERO);
                let _ = tokio::time::timeout(Duration::from_millis(5), read).await;
            }
            Step::Report(n) => {
                // Longer than the verdict of an earlier check is kept.
                self.world.pass(secs(11)).await;
                self.report(n).await;
            }
            Step::Ask => {
                let last = self.world.sim.calls().log.last().map_or(0, |call| call.seq);
                let command = self.world.idle().await;
                let refreshed = command.refresh_now(&Self::entry(&command), &Actor::System).await;
                if let Refreshed::Failed(trouble) = refreshed.unwrap() {
                    assert!(self.faulty, "{trouble:?}");
                }
                let calls = self.world.sim.calls_after(last, usize::MAX).log;
                let made = |call: &CallEntry| (call.seq, Timestamp::from_millis(call.sent_at));
                self.asked.extend(calls.iter().map(made));
            }
            Step::Foreign { kill } => {
                self.doom_all();
                let issuer = match self.issuer {
                    Issuer::Stable => sim::Issuer::Stable,
                    Issuer::Classic => sim::Issuer::Classic,
                };
                self.world.sim.foreign_refresh(APP, issuer, kill).unwrap();
            }
            Step::Fault(count, kind) => {
                self.faulty = true;
                self.world.sim.set_fault(Fault { count, ..Fault::new(kind) });
            }
            Step::Heal => {
                self.world.sim.clear_faults();
                // The longest back-off, and a moment for the refresh.
                self.world.pass(secs(240)).await;
                self.faulty = false;
            }
            Step::Restart(n) => {
                self.servers[n].take().expect("no restart is under way").stop().await;
                self.servers[n] = Some(self.world.replica().await);
            }
        }
        self.search_lost_mints();
    }

    /// No token is replaced long before its end, unless something outside may have ended it, a
    /// person asked, or its life could not be read.
    fn check_replaced(&self, log: &[CallEntry]) {
        const LEAST: i64 = 500_000;
        let patience = self.world.wechat.budget();
        let mut last: Option<&CallEntry> = None;
        let mut ended = false;
        for call in log {
            // A mint for a person that may have got through ends what was before it.
            ended |= self.asked.contains_key(&call.seq);
            if call.errcode != Some(0) {
                continue;
            }
            match call.path.as_str() {
                "(foreign)" => ended = true,
                "/cgi-bin/token" | "/cgi-bin/stable_token" if arrived(call, patience) => {
                    ended |= call.faults.contains(&"expires_in");
                    let Some(before) = last.replace(call) else { continue };
                    if before.answered == call.answered {
                        last = Some(before);
                        continue;
                    }
                    let early = call.decided_at - before.decided_at < LEAST;
                    assert!(!early || ended, "replaced early: {before:?} {call:?}");
                    // Another's stable token may have been old when it came.
                    let stable = self.issuer == Issuer::Stable;
                    ended = (ended && stable) || call.faults.contains(&"expires_in");
                }
                "/cgi-bin/token" | "/cgi-bin/stable_token" => ended = true,
                _ => {}
            }
        }
    }

    /// What the simulated WeChat saw: never two fetches at once, never more than the budget, and
    /// every token that arrived was stored as one generation.
    async fn check_calls(&mut self) {
        let log = self.world.sim.calls().log;
        let fetches: Vec<_> = log
            .iter()
            .filter(|call| matches!(call.path.as_str(), "/cgi-bin/token" | "/cgi-bin/stable_token"))
            .collect();
        let patience = self.world.wechat.budget().as_millis() as i64;
        for pair in fetches.windows(2) {
            // WeChat may go on with a call that its caller has given up.
            let end = pair[0].answered_at.unwrap_or(pair[0].decided_at);
            let end = end.min(pair[0].sent_at + patience);
            assert!(pair[1].sent_at >= end, "two fetches at once: {:?} {:?}", pair[0], pair[1]);
        }
        // No budget lets calls come faster than this, whatever goes wrong.
        let since = self.world.clock.now().since(crate::harness::START).as_secs() as usize;
        let budget = if self.issuer == Issuer::Classic { 10 + since / 60 } else { 50 + since * 5 };
        assert!(fetches.len() <= budget + 1, "{} calls in {since} s", fetches.len());

        self.check_replaced(&log);
        let arrived: HashSet<_> = fetches
            .iter()
            .filter(|call| arrived(call, self.world.wechat.budget()))
            .filter_map(|call| call.answered.clone())
            .collect();
        self.row = self.stored().await;
        let generation = self.generation().await;
        let under_way = self.world.sim.faults().iter().any(|set| set.fault.count != Some(0));
        if !under_way {
            assert_eq!(arrived.len() as u64, generation, "fetches and rotations differ");
        }
    }
}

impl<const SQLITE: bool> StateMachineTest for Machine<SQLITE> {
    type SystemUnderTest = Self;
    type Reference = Reference<SQLITE>;

    fn init_test(classic: &bool) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .build()
            .unwrap();
        let issuer = if *classic { Issuer::Classic } else { Issuer::Stable };
        let backend = if SQLITE { Backend::Sqlite } else { Backend::Memory };
        let (world, servers) = runtime.block_on(async {
            let world = World::new(backend).await;
            world.sim.set_switches(Switches { token_lifetime_secs: LIFE, ..Switches::default() });
            let one = world.replica().await;
            world.add_app(&one.broker, APP, issuer).await;
            let two = world.replica().await;
            world.pass(secs(4)).await;
            (world, [Some(one), Some(two)])
        });
        Self {
            runtime,
            world,
            issuer,
            servers,
            last_read: None,
            doomed: HashSet::new(),
            seen: HashSet::new(),
            row: None,
            lost: Vec::new(),
            asked: HashMap::new(),
            faulty: false,
        }
    }

    fn apply(mut state: Self, _classic: &bool, step: Step) -> Self {
        let runtime = std::mem::replace(
            &mut state.runtime,
            tokio::runtime::Builder::new_current_thread().build().unwrap(),
        );
        runtime.block_on(async {
            state.step(step).await;
            // Flights under way end before what they did is counted.
            state.world.pass(secs(4)).await;
            state.check_calls().await;
        });
        state.runtime = runtime;
        state
    }
}

prop_state_machine! {
    #![proptest_config(ProptestConfig { cases: 200, max_shrink_iters: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_tokens_life_in_memory(sequential 1..40 => Machine<false>);
}

prop_state_machine! {
    #![proptest_config(ProptestConfig { cases: 40, max_shrink_iters: 50, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_tokens_life_on_sqlite(sequential 20..40 => Machine<true>);
}
