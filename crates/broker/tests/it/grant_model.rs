//! A model of a grant's life: random sequences of authorisations, callbacks that come twice, time
//! passing, renewals, revocations, upstream faults and restarts, over two servers and a command line
//! on one store. What must hold is checked after every step, by what the simulated WeChat knows and
//! has logged.

use std::{collections::HashSet, sync::Arc};

use broker::{
    AppEntry, Broker, ExchangeError, Identity, ProfileError, ProfileQuery, Proof, audit::Actor,
    key::ClientKey, store::CLAIM_KEPT,
};
use clock::Timestamp;
use futures_util::future::join_all;
use proptest::prelude::*;
use proptest_state_machine::{ReferenceStateMachine, StateMachineTest, prop_state_machine};
use sim::{CallEntry, Fault, FaultKind, Revocation, Scope};
use wechat::{AuthCode, OpenId};

use crate::harness::{
    APP, Backend, Desk, EXCHANGE, NICKNAME, OPENID, RENEW, Replica, USERINFO, World, secs,
};

const BROKERS: usize = 3;
const DAY: u64 = 86_400;

/// One thing that happens.
#[derive(Clone, Debug)]
enum Step {
    /// A user comes back with a code, through one of the brokers.
    LogIn { broker: usize, wide: bool },
    /// The same callback arrives at all brokers at once.
    LogInTwice { wide: bool },
    /// A code that was brought before comes again.
    Repeat { broker: usize, same_browser: bool },
    /// A service reads the profile.
    Read { broker: usize, fresh: bool },
    /// Services read the profile through all brokers at once.
    ReadTogether,
    /// The clock jumps.
    Jump(u64),
    /// The user takes the authorisation back, or changes the password.
    Revoke(Revocation),
    /// Everything about the user is forgotten.
    Forget,
    /// So many of the next calls go wrong in one way.
    Fault(u64, FaultKind),
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
        Just(FaultKind::BadGateway { processed: true }),
        Just(FaultKind::TruncatedBody {}),
        Just(FaultKind::LatencyBefore { millis: 1_500 }),
        Just(FaultKind::LatencyAfter { millis: 1_500 }),
        Just(FaultKind::LatencyAfter { millis: 30_000 }),
        Just(FaultKind::WebTokenEnds {}),
    ]
}

/// The reference knows nothing: what must hold follows from what the machine remembers.
struct Reference<const SQLITE: bool>;

impl<const SQLITE: bool> ReferenceStateMachine for Reference<SQLITE> {
    type State = ();
    type Transition = Step;

    fn init_state() -> BoxedStrategy<()> {
        Just(()).boxed()
    }

    fn transitions((): &()) -> BoxedStrategy<Step> {
        let one = || 0..BROKERS;
        prop_oneof![
            3 => (one(), any::<bool>()).prop_map(|(broker, wide)| Step::LogIn { broker, wide }),
            2 => any::<bool>().prop_map(|wide| Step::LogInTwice { wide }),
            3 => (one(), any::<bool>())
                .prop_map(|(broker, same_browser)| Step::Repeat { broker, same_browser }),
            5 => (one(), any::<bool>()).prop_map(|(broker, fresh)| Step::Read { broker, fresh }),
            3 => Just(Step::ReadTogether),
            4 => (1..3 * 3_600_u64).prop_map(Step::Jump),
            1 => (DAY..20 * DAY).prop_map(Step::Jump),
            1 => Just(Step::Revoke(Revocation::Revoked)),
            1 => Just(Step::Revoke(Revocation::PasswordChanged)),
            1 => Just(Step::Forget),
            3 => (1..4_u64, fault_kinds()).prop_map(|(count, kind)| Step::Fault(count, kind)),
            3 => Just(Step::Heal),
            1 => (0..BROKERS - 1).prop_map(Step::Restart),
        ]
        .boxed()
    }

    fn apply((): (), _step: &Step) {}
}

/// A code that was brought, when, and what it gave.
struct Brought {
    code: AuthCode,
    at: Timestamp,
    answer: Result<Identity, ExchangeError>,
}

struct Machine<const SQLITE: bool> {
    runtime: tokio::runtime::Runtime,
    world: World,
    key: Arc<ClientKey>,
    servers: [Option<Replica>; BROKERS - 1],
    last: Option<Brought>,
    /// When the user last authorised us to read the profile, as far as we heard; `None`: never, or
    /// it was taken back.
    wide: Option<Timestamp>,
    faulty: bool,
}

impl<const SQLITE: bool> Machine<SQLITE> {
    /// One of the servers, or a command, which opens the store each time.
    async fn broker(&self, n: usize) -> (Broker, Arc<AppEntry>) {
        let broker = match self.servers.get(n) {
            Some(server) => server.as_ref().expect("no restart is under way").broker.clone(),
            None => self.world.idle().await,
        };
        let entry = broker.app(APP).expect("the app is registered");
        (broker, entry)
    }

    fn issue(&self, wide: bool) -> AuthCode {
        let scope = if wide { Scope::UserInfo } else { Scope::Base };
        AuthCode::new(self.world.sim.issue_code(APP, OPENID, scope, false).unwrap())
    }

    async fn exchange(
        &self,
        n: usize,
        code: &AuthCode,
        binding: &str,
    ) -> Result<Identity, ExchangeError> {
        let (broker, entry) = self.broker(n).await;
        broker.exchange(&entry, &self.key, code, Proof::Binding(binding), None).await
    }

    /// What a code that was not brought before has given.
    fn brought(&mut self, code: AuthCode, answer: Result<Identity, ExchangeError>) {
        match &answer {
            Ok(identity) => {
                assert_eq!(identity.openid.as_str(), OPENID);
                if identity.scope.reads_profiles() {
                    self.wide = Some(self.world.clock.now());
                }
            }
            Err(ExchangeError::MaybeSpent(_) | ExchangeError::Refused(_)) => {
                assert!(self.faulty, "{answer:?}");
            }
            other => panic!("{other:?} to a fresh code"),
        }
        self.last = Some(Brought { code, at: self.world.clock.now(), answer });
    }

    async fn repeat(&mut self, n: usize, same_browser: bool) {
        let Some(Brought { code, at, answer }) = &self.last else { return };
        let kept = self.world.clock.now().since(*at);
        if kept + secs(60) > CLAIM_KEPT {
            return;
        }
        let again = self.exchange(n, code, if same_browser { "b" } else { "other" }).await;
        if !same_browser {
            assert_eq!(again, Err(ExchangeError::CodeUsed));
        } else if kept > secs(601) {
            assert_eq!(again, Err(ExchangeError::NoLongerTold));
        } else if kept < secs(550) {
            assert_eq!(again, *answer);
        }
    }

    /// Whether our grant must give a profile: yes, no, or it ends just about now.
    fn lives(&self) -> Option<bool> {
        let Some(authorised) = self.wide else { return Some(false) };
        let age = self.world.clock.now().since(authorised);
        match age.as_secs() {
            ..2_591_000 => Some(true),
            // A token that was got in the last moment lives two hours more.
            2_591_000..2_600_000 => None,
            _ => Some(false),
        }
    }

    async fn read(&self, n: usize, fresh: bool) {
        let (broker, entry) = self.broker(n).await;
        let query = ProfileQuery { fresh, ..ProfileQuery::default() };
        let openid = OpenId::new(OPENID);
        match (broker.profile(&entry, &self.key, &openid, &query).await, self.lives()) {
            (Ok(profile), lives) => {
                assert_eq!(profile.user.nickname, NICKNAME);
                // What was revoked is not noticed before WeChat is asked.
                assert!(lives != Some(false) || !fresh, "a profile without a grant");
            }
            (Err(ProfileError::Reauthorize { why, .. }), lives) => {
                // WeChat may refuse a token again as soon as it is renewed.
                let refused = self.faulty && why.contains("even after its renewal");
                assert!(lives != Some(true) || refused, "{why}");
            }
            (Err(err), _) => assert!(self.faulty, "{err}"),
        }
    }

    async fn step(&mut self, step: Step) {
        match step {
            Step::LogIn { broker, wide } => {
                let code = self.issue(wide);
                let answer = self.exchange(broker, &code, "b").await;
                self.brought(code, answer);
            }
            Step::LogInTwice { wide } => {
                let code = self.issue(wide);
                let all = (0..BROKERS).map(|n| self.exchange(n, &code, "b"));
                let mut answers = join_all(all).await;
                let answer = answers.remove(0);
                assert!(answers.iter().all(|other| *other == answer), "{answer:?} {answers:?}");
                self.brought(code, answer);
            }
            Step::Repeat { broker, same_browser } => self.repeat(broker, same_browser).await,
            Step::Read { broker, fresh } => self.read(broker, fresh).await,
            Step::ReadTogether => {
                join_all((0..BROKERS).map(|n| self.read(n, true))).await;
            }
            Step::Jump(time) => {
                tokio::time::advance(secs(time)).await;
                self.world.pass(secs(2)).await;
            }
            Step::Revoke(why) => {
                self.world.sim.revoke_grant(APP, OPENID, why).unwrap();
                self.wide = None;
            }
            Step::Forget => {
                let (broker, entry) = self.broker(BROKERS).await;
                let openid = OpenId::new(OPENID);
                broker.forget_user(&entry, &openid, &Actor::System).await.unwrap();
                self.wide = None;
            }
            Step::Fault(count, kind) => {
                self.faulty = true;
                self.world.sim.set_fault(Fault::new(kind).on("/sns/*").times(count));
            }
            Step::Heal => {
                self.world.sim.clear_faults();
                self.faulty = false;
            }
            Step::Restart(n) => {
                self.servers[n].take().expect("no restart is under way").stop().await;
                self.servers[n] = Some(self.world.replica().await);
            }
        }
    }

    /// What the simulated WeChat saw: no code twice, never two renewals at once, and no token
    /// where it does not belong.
    fn check_calls(&self) {
        let log = self.world.sim.calls().log;
        let of = |path: &'static str| log.iter().filter(move |call| call.path == path);
        let mut codes = HashSet::new();
        for call in of(EXCHANGE) {
            assert!(codes.insert(call.code.clone()), "a code was exchanged twice: {call:?}");
        }
        let patience = self.world.wechat.budget().as_millis() as i64;
        let end = |call: &CallEntry| {
            // WeChat may go on with a call that its caller has given up.
            call.answered_at.unwrap_or(call.decided_at).min(call.sent_at + patience)
        };
        for pair in of(RENEW).collect::<Vec<_>>().windows(2) {
            assert!(pair[1].sent_at >= end(pair[0]), "two renewals at once: {pair:?}");
        }
        let wrong =
            |call: &&CallEntry| matches!(call.errcode, Some(48001 | 40003 | 40030 | 42001 | 42002));
        let wrong: Vec<_> = of(RENEW).chain(of(USERINFO)).filter(wrong).collect();
        assert!(wrong.is_empty(), "a token where it does not belong: {wrong:?}");
    }
}

impl<const SQLITE: bool> StateMachineTest for Machine<SQLITE> {
    type SystemUnderTest = Self;
    type Reference = Reference<SQLITE>;

    fn init_test((): &()) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .build()
            .unwrap();
        let backend = if SQLITE { Backend::Sqlite } else { Backend::Memory };
        let (world, key, servers) = runtime.block_on(async {
            let Desk { world, replica, key, .. } = Desk::new(backend).await;
            let two = world.replica().await;
            world.pass(secs(4)).await;
            (world, key, [Some(replica), Some(two)])
        });
        Self { runtime, world, key, servers, last: None, wide: None, faulty: false }
    }

    fn apply(mut state: Self, (): &(), step: Step) -> Self {
        let runtime = std::mem::replace(
            &mut state.runtime,
            tokio::runtime::Builder::new_current_thread().build().unwrap(),
        );
        runtime.block_on(async {
            state.step(step).await;
            state.check_calls();
        });
        state.runtime = runtime;
        state
    }
}

prop_state_machine! {
    #![proptest_config(ProptestConfig { cases: 400, max_shrink_iters: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_grants_life_in_memory(sequential 1..40 => Machine<false>);
}

prop_state_machine! {
    #![proptest_config(ProptestConfig { cases: 40, max_shrink_iters: 50, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_grants_life_on_sqlite(sequential 20..40 => Machine<true>);
}
