//! Several processes on one store: leases, lost puts, a store out of reach.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use broker::{
    Broker, Refreshed,
    app::Issuer,
    audit::Actor,
    credential::{CredentialId, CredentialKind},
    store::{Acquired, CredentialRow, Lease, MemoryStore, Place, Shared, StoreError, StoreResult},
};
use clock::Timestamp;
use futures_util::future::join_all;
use sim::{Fault, FaultKind, TokenState};
use tokio_util::task::TaskTracker;

use crate::harness::{APP, Backend, Replica, World, read, sealer, secs};

const ISSUERS: [Issuer; 2] = [Issuer::Stable, Issuer::Classic];
const BACKENDS: [Backend; 2] = [Backend::Memory, Backend::Sqlite];

pub(crate) fn token_of(app: &str) -> CredentialId {
    CredentialId { app: app.parse().unwrap(), kind: CredentialKind::Token }
}

#[tokio::test(start_paused = true)]
async fn eight_processes_cost_one_fetch_per_rotation_and_see_each_others_tokens() {
    for backend in BACKENDS {
        let (world, first, _) = World::with_app(backend, Issuer::Classic).await;
        let mut replicas = vec![first];
        for _ in 0..3 {
            replicas.push(world.replica().await);
        }
        let mut commands = Vec::new();
        for _ in 0..4 {
            commands.push(world.idle().await);
        }
        let brokers: Vec<Broker> =
            replicas.iter().map(|it| it.broker.clone()).chain(commands).collect();
        let rounds = if matches!(backend, Backend::Memory) { 300 } else { 60 };
        let mut generation = 0;
        for _ in 0..rounds {
            let reads = brokers.iter().map(|broker| async {
                let entry = broker.app(APP).unwrap();
                (read(broker, &entry).await, world.clock.now())
            });
            for (view, _) in join_all(reads).await {
                assert_eq!(world.state(&view), TokenState::Live);
                generation = generation.max(view.generation);
            }
            world.pass(secs(300)).await;
        }
        assert_eq!(world.mint_calls(APP), generation, "{backend:?}");
        assert!(generation >= 2);
    }
}

#[tokio::test(start_paused = true)]
async fn processes_that_start_together_fetch_once() {
    for issuer in ISSUERS {
        for backend in BACKENDS {
            let world = World::new(backend).await;
            let first = world.idle().await;
            world.add_app(&first, APP, issuer).await;
            world.sim.set_fault(Fault::new(FaultKind::LatencyBefore { millis: 700 }));
            let brokers = join_all((0..6).map(|_| world.idle())).await;
            let reads = brokers.iter().map(|broker| async {
                let entry = broker.app(APP).unwrap();
                read(broker, &entry).await
            });
            let views = join_all(reads).await;
            assert!(views.iter().all(|view| view.token == views[0].token));
            assert_eq!(world.mint_calls(APP), 1, "{issuer:?} {backend:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_token_refreshed_by_one_is_served_by_all_within_a_second() {
    for backend in BACKENDS {
        let (world, one, entry) = World::with_app(backend, Issuer::Stable).await;
        let two = world.replica().await;
        let there = two.broker.app(APP).unwrap();
        let old = read(&two.broker, &there).await;
        world.sim.foreign_refresh(APP, sim::Issuer::Stable, true).unwrap();
        let waiting = two.broker.token_after(&there, None, old.generation, secs(30));
        let report = async {
            one.broker.report(&entry, None, &old.token, 40001).await.unwrap();
            world.clock.now()
        };
        let (woken, stored_at) = tokio::join!(waiting, report);
        let took = world.clock.now().since(stored_at);
        assert_eq!(woken.unwrap().unwrap().generation, old.generation + 1);
        assert!(took <= secs(1), "{backend:?}: {took:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn who_stops_does_not_wait_for_a_lease_of_others() {
    for issuer in ISSUERS {
        let world = World::new(Backend::Memory).await;
        let replica = world.replica().await;
        let (_, shared) = world.stores().await;
        // Somebody has it who does not go on.
        let name = token_of(APP).to_string();
        shared.acquire(&name, "stopped", secs(40)).await.unwrap();
        world.add_app(&replica.broker, APP, issuer).await;
        world.pass(secs(3)).await;
        let stopped = tokio::time::timeout(secs(1), replica.stop()).await;
        assert!(stopped.is_ok(), "{issuer:?}: it waits");
        assert_eq!(world.mint_calls(APP), 0);
    }
}

/// Ten minutes, forwards and backwards: longer than any margin that there is.
#[tokio::test(start_paused = true)]
async fn a_replica_whose_clock_is_wrong_does_no_harm() {
    for issuer in ISSUERS {
        for wrong in [600, -600] {
            let (world, right, _) = World::with_app(Backend::Memory, issuer).await;
            let odd = world.replica_ahead(wrong).await;
            let about = format!("{issuer:?}, {wrong} s");
            let mut generation = 0;
            for round in 0..288 {
                for replica in [&odd, &right] {
                    let view = read(&replica.broker, &replica.broker.app(APP).unwrap()).await;
                    assert_eq!(world.state(&view), TokenState::Live, "{about}, round {round}");
                    let left = view.expires_at.since(world.clock.now());
                    let told = view.expires_in;
                    assert!(left.abs_diff(told) <= secs(2), "{about}: {left:?}, told {told:?}");
                    generation = view.generation;
                }
                world.pass(secs(300)).await;
            }
            assert_eq!(world.mint_calls(APP), generation, "{about}");
            assert!(generation >= 12, "{about}: {generation}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_lease_left_by_a_killed_process_is_waited_for_and_taken_over() {
    let world = World::new(Backend::Memory).await;
    let broker = world.idle().await;
    let entry = world.add_app(&broker, APP, Issuer::Classic).await;
    let (_, shared) = world.stores().await;
    let name = token_of(APP).to_string();
    let got = shared.acquire(&name, "somebody-killed", secs(30)).await.unwrap();
    assert!(matches!(got, Acquired::Yes(_)));
    assert!(broker.token(&entry, None, Duration::ZERO).await.is_err(), "patience ends");
    assert_eq!(world.mint_calls(APP), 0);
    world.pass(secs(25)).await;
    assert_eq!(read(&broker, &entry).await.generation, 1);
    assert_eq!(world.mint_calls(APP), 1);
}

/// Another process stores a generation while ours is fetching: as if our lease had run out.
pub(crate) async fn overtake(
    world: &World,
    generation: u64,
    token: &str,
    sent: Timestamp,
    answered: Timestamp,
) {
    let (store, _) = world.stores().await;
    let place = Place::Credential(token_of(APP), generation);
    let row = CredentialRow {
        id: token_of(APP),
        generation,
        value: sealer().seal(&place.binding(), token.as_bytes()),
        hash: [9; 32],
        sent,
        answered,
        expires_at: sent + secs(7200),
        refresh_at: sent + secs(6930),
        dead: false,
        used_at: sent,
    };
    assert!(store.put_credential(&row, generation - 1).await.unwrap());
}

/// What fetches: a command, or a server, whose memory follows what others store meanwhile.
#[derive(Clone, Copy, Debug)]
enum Fetcher {
    Command,
    Server,
}

const FETCHERS: [Fetcher; 2] = [Fetcher::Command, Fetcher::Server];

/// WeChat takes two seconds to answer, once.
fn slow() -> Fault {
    Fault::new(FaultKind::LatencyAfter { millis: 2_000 }).times(1)
}

/// A first fetch that takes two seconds, and what happens one second into it.
async fn raced(
    fetcher: Fetcher,
    issuer: Issuer,
    meanwhile: impl AsyncFnOnce(&World),
) -> (World, Broker, Option<Replica>) {
    let world = World::new(Backend::Memory).await;
    world.sim.set_fault(slow());
    let (broker, server) = match fetcher {
        Fetcher::Command => (world.idle().await, None),
        Fetcher::Server => {
            let server = world.replica().await;
            (server.broker.clone(), Some(server))
        }
    };
    let entry = world.add_app(&broker, APP, issuer).await;
    let reader = broker.token(&entry, None, Duration::ZERO);
    let other = async {
        world.pass(secs(1)).await;
        meanwhile(&world).await;
    };
    let (view, ()) = tokio::join!(reader, other);
    assert!(view.is_ok(), "{view:?}");
    world.pass(secs(2)).await;
    (world, broker, server)
}

#[tokio::test(start_paused = true)]
async fn a_stable_put_that_loses_asks_once_more() {
    for fetcher in FETCHERS {
        let (world, broker, _server) = raced(fetcher, Issuer::Stable, async |world: &World| {
            let now = world.clock.now();
            overtake(world, 1, "83_of_somebody_confused", now, now).await;
        })
        .await;
        let view = read(&broker, &broker.app(APP).unwrap()).await;
        assert_eq!(view.generation, 2, "{fetcher:?}");
        assert_eq!(world.state(&view), TokenState::Live, "what WeChat says now has won");
        assert_eq!(broker.counters().read().puts_lost, 1);
        assert_eq!(world.mint_calls(APP), 2);
    }
}

#[tokio::test(start_paused = true)]
async fn a_check_or_a_drill_whose_put_loses_asks_once_more_too() {
    for drill in [false, true] {
        let (world, replica, entry) = World::with_app(Backend::Memory, Issuer::Stable).await;
        let broker = &replica.broker;
        let old = read(broker, &entry).await;
        world.sim.foreign_refresh(APP, sim::Issuer::Stable, true).unwrap();
        world.sim.set_fault(slow());
        let work = async {
            if drill {
                broker.kill_leaked(&entry, &Actor::System, |_| {}).await.unwrap();
            } else {
                broker.report(&entry, None, &old.token, 40001).await.unwrap();
            }
        };
        let other = async {
            world.pass(secs(1)).await;
            let now = world.clock.now();
            overtake(&world, 2, "83_of_somebody_confused", now, now).await;
        };
        tokio::join!(work, other);
        let view = read(broker, &entry).await;
        assert_eq!(world.state(&view), TokenState::Live, "drill: {drill}");
        assert_eq!(broker.counters().read().puts_lost, 1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_classic_put_that_loses_wins_when_its_mint_was_later() {
    for fetcher in FETCHERS {
        let (world, broker, _server) = raced(fetcher, Issuer::Classic, async |world: &World| {
            // Theirs was minted long before ours was asked for.
            let then = world.clock.now() - secs(60);
            overtake(world, 1, "83_minted_earlier", then, then + secs(1)).await;
        })
        .await;
        let view = read(&broker, &broker.app(APP).unwrap()).await;
        assert_eq!((view.generation, world.state(&view)), (2, TokenState::Live), "{fetcher:?}");
        assert_eq!(world.mint_calls(APP), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_classic_put_that_loses_is_dropped_when_its_mint_was_earlier() {
    for fetcher in FETCHERS {
        let (world, broker, _server) = raced(fetcher, Issuer::Classic, async |world: &World| {
            let token = world.sim.foreign_refresh(APP, sim::Issuer::Classic, false).unwrap();
            let later = world.clock.now() + secs(5);
            overtake(world, 1, &token, later, later + secs(1)).await;
        })
        .await;
        let view = read(&broker, &broker.app(APP).unwrap()).await;
        assert_eq!((view.generation, world.state(&view)), (1, TokenState::Live), "{fetcher:?}");
        assert!(view.expires_in > secs(7000));
    }
}

#[tokio::test(start_paused = true)]
async fn a_classic_put_that_loses_with_overlapping_times_trusts_the_stored_one_for_five_minutes() {
    for fetcher in FETCHERS {
        let (_world, broker, _server) = raced(fetcher, Issuer::Classic, async |world: &World| {
            let token = world.sim.foreign_refresh(APP, sim::Issuer::Classic, false).unwrap();
            let now = world.clock.now();
            overtake(world, 1, &token, now - Duration::from_millis(500), now).await;
        })
        .await;
        let entry = broker.app(APP).unwrap();
        let view = read(&broker, &entry).await;
        assert_eq!(view.generation, 1, "{fetcher:?}");
        let left = view.expires_in;
        assert!(left <= secs(300) && left > secs(290), "{fetcher:?}: {left:?}");
        let status = broker.status(&entry);
        let before_the_end = view.expires_at.since(status[0].refresh_at.unwrap());
        assert_eq!(before_the_end, secs(60));
    }
}

#[tokio::test(start_paused = true)]
async fn a_classic_mint_that_nobody_hears_of_shortens_the_life_of_the_token_before() {
    let (world, server, entry) = World::with_app(Backend::Memory, Issuer::Classic).await;
    let first = read(&server.broker, &entry).await;
    world.pass(secs(600)).await;
    world.sim.set_fault(Fault::new(FaultKind::ResetAfter {}).times(1));
    let command = world.idle().await;
    let there = command.app(APP).unwrap();
    let refreshed = command.refresh_now(&there, &Actor::System).await.unwrap();
    assert!(matches!(refreshed, Refreshed::Failed(_)), "{refreshed:?}");
    for _ in 0..60 {
        world.pass(secs(10)).await;
        let view = read(&server.broker, &entry).await;
        assert_eq!(world.state(&view), TokenState::Live);
    }
    assert_eq!(read(&server.broker, &entry).await.generation, first.generation + 1);
}

#[tokio::test(start_paused = true)]
async fn a_classic_mint_that_is_refused_leaves_the_token_before_its_life() {
    let (world, server, entry) = World::with_app(Backend::Memory, Issuer::Classic).await;
    let first = read(&server.broker, &entry).await;
    let refused = FaultKind::Errcode { code: 40164, ip: None, message: None };
    for fault in [refused, FaultKind::Errcode { code: -1, ip: None, message: None }] {
        world.sim.set_fault(Fault::new(fault).times(1));
        let refreshed = server.broker.refresh_now(&entry, &Actor::System).await.unwrap();
        assert!(matches!(refreshed, Refreshed::Failed(_)), "{refreshed:?}");
        let view = read(&server.broker, &entry).await;
        assert_eq!((view.generation, view.expires_at), (first.generation, first.expires_at));
    }
    let (store, _) = world.stores().await;
    let row = store.find_credential(&token_of(APP)).await.unwrap().unwrap();
    assert_eq!(row.expires_at, first.expires_at);
}

#[tokio::test(start_paused = true)]
async fn with_the_store_out_of_reach_stable_goes_on_and_classic_never_mints() {
    // Leases are kept with the state, or somewhere that is still within reach.
    let cases = ISSUERS.into_iter().flat_map(|issuer| [(issuer, false), (issuer, true)]);
    for (issuer, apart) in cases {
        let world = World::new(Backend::Memory).await;
        let (store, with_it) = world.stores().await;
        let leases: Arc<dyn Shared> = Arc::new(MemoryStore::new(world.clock.clone()));
        let replica = world.replica_on(store, if apart { leases } else { with_it }).await;
        let entry = world.add_app(&replica.broker, APP, issuer).await;
        let first = read(&replica.broker, &entry).await;
        world.pass(secs(6000)).await;
        world.memory.set_reachable(false);
        world.pass(secs(2000)).await;
        let while_away = replica.broker.token(&entry, None, Duration::ZERO).await;
        let about = format!("{issuer:?}, {apart}");
        match issuer {
            Issuer::Stable => {
                let view = while_away.unwrap_or_else(|err| panic!("{about}: {err}"));
                assert_eq!(world.state(&view), TokenState::Live);
                assert_ne!(view.token, first.token);
                assert!(replica.broker.counters().read().fetches_alone > 0, "{about}");
                // What somebody outside ends is replaced all the same.
                world.sim.foreign_refresh(APP, sim::Issuer::Stable, true).unwrap();
                let healed = replica.broker.report(&entry, None, &view.token, 40001).await;
                assert_eq!(world.state(&healed.unwrap()), TokenState::Live, "{about}");
            }
            Issuer::Classic => {
                assert!(while_away.is_err());
                assert_eq!(world.mint_calls(APP), 1);
            }
        }
        world.memory.set_reachable(true);
        world.pass(secs(40)).await;
        let view = read(&replica.broker, &entry).await;
        assert_eq!(world.state(&view), TokenState::Live, "{about}: back without a restart");
        let (store, _) = world.stores().await;
        let row = store.find_credential(&token_of(APP)).await.unwrap().unwrap();
        assert_eq!(row.generation, view.generation, "{about}: what was kept is stored now");
    }
}

#[tokio::test(start_paused = true)]
async fn a_running_server_follows_what_a_command_does() {
    for backend in BACKENDS {
        let world = World::new(backend).await;
        let server = world.replica().await;
        let command = world.idle().await;
        world.add_app(&command, APP, Issuer::Stable).await;
        world.pass(secs(2)).await;
        let entry = server.broker.app(APP).expect("the server knows the app by now");
        assert!(server.broker.token_now(&entry, None, Duration::ZERO).is_some(), "and its token");
        let all = broker::key::Rights::all();
        let actor = Actor::System;
        let key = command.add_key("shop", all, None, &actor).await.unwrap();
        world.pass(secs(2)).await;
        assert!(server.broker.authenticate(key.expose()).is_ok());
        command.revoke_key(&key.id, &actor).await.unwrap();
        command.remove_app(APP, &actor).await.unwrap();
        world.pass(secs(2)).await;
        assert!(server.broker.authenticate(key.expose()).is_err());
        assert!(server.broker.app(APP).is_none());
        let calls = world.sim.calls().log.len();
        world.pass(secs(8000)).await;
        assert_eq!(world.sim.calls().log.len(), calls, "nothing is fetched for a removed app");
    }
}

/// A [`Shared`] that is held up, as a process is that the machine stops for a while.
struct HeldUp {
    inner: MemoryStore,
    /// The first look at the clock takes this long.
    once: Mutex<Option<Duration>>,
    /// What it told is heard this much later.
    heard: Mutex<Option<Duration>>,
    /// Each release takes this long.
    release: Mutex<Duration>,
}

#[async_trait]
impl Shared for HeldUp {
    async fn now(&self) -> StoreResult<Timestamp> {
        let held_up = self.once.lock().unwrap().take();
        if let Some(time) = held_up {
            tokio::time::sleep(time).await;
        }
        let now = Shared::now(&self.inner).await;
        let held_up = self.heard.lock().unwrap().take();
        if let Some(time) = held_up {
            tokio::time::sleep(time).await;
        }
        now
    }

    async fn acquire(&self, name: &str, owner: &str, ttl: Duration) -> StoreResult<Acquired> {
        self.inner.acquire(name, owner, ttl).await
    }

    async fn renew(&self, lease: &Lease, ttl: Duration) -> StoreResult<Option<Lease>> {
        self.inner.renew(lease, ttl).await
    }

    async fn release(&self, lease: &Lease) -> StoreResult<()> {
        let held_up = *self.release.lock().unwrap();
        tokio::time::sleep(held_up).await;
        self.inner.release(lease).await
    }

    async fn wake(&self) -> StoreResult<()> {
        self.inner.wake().await
    }

    async fn woken(&self, cursor: u64) -> StoreResult<u64> {
        self.inner.woken(cursor).await
    }
}

/// What gives leases is away, while the store is not.
struct Away;

#[async_trait]
impl Shared for Away {
    async fn now(&self) -> StoreResult<Timestamp> {
        Err(away())
    }

    async fn acquire(&self, _: &str, _: &str, _: Duration) -> StoreResult<Acquired> {
        Err(away())
    }

    async fn renew(&self, _: &Lease, _: Duration) -> StoreResult<Option<Lease>> {
        Err(away())
    }

    async fn release(&self, _: &Lease) -> StoreResult<()> {
        Err(away())
    }

    async fn wake(&self) -> StoreResult<()> {
        Err(away())
    }

    async fn woken(&self, _: u64) -> StoreResult<u64> {
        std::future::pending().await
    }
}

fn away() -> StoreError {
    StoreError::Unavailable("nobody is there".to_owned())
}

#[tokio::test(start_paused = true)]
async fn after_an_outage_everything_is_read_again_in_a_few_statements() {
    const APPS: u64 = 50;
    let world = World::new(Backend::Memory).await;
    let replica = world.replica().await;
    for number in 0..APPS {
        let appid = format!("wx{number}");
        let entry = world.add_app(&replica.broker, &appid, Issuer::Stable).await;
        read(&replica.broker, &entry).await;
    }
    world.memory.set_reachable(false);
    world.pass(secs(40)).await;
    assert!(!replica.broker.reaches_store(), "it looks every half a minute");
    let before = world.memory.accesses();
    world.memory.set_reachable(true);
    world.pass(secs(3)).await;
    assert!(replica.broker.reaches_store());
    let accesses = world.memory.accesses() - before;
    assert!(accesses < APPS, "{accesses} accesses");
}

#[tokio::test(start_paused = true)]
async fn without_leases_a_token_is_read_again_before_it_is_fetched() {
    let (world, one, entry) = World::with_app(Backend::Memory, Issuer::Stable).await;
    let old = read(&one.broker, &entry).await;
    let store = Arc::new(world.memory.clone());
    let two = world.broker_on(store, Arc::new(Away), TaskTracker::new()).await;
    let there = two.app(APP).unwrap();
    assert_eq!(read(&two, &there).await.generation, old.generation);
    world.pass(old.expires_in).await;
    let new = read(&one.broker, &entry).await;
    assert_ne!(new.generation, old.generation);
    // It heard of nothing, and what it has is over.
    assert_eq!(read(&two, &there).await.generation, new.generation);
    assert_eq!(world.mint_calls(APP), 2);
    assert_eq!(two.counters().read().fetches_alone, 0);
}

#[tokio::test(start_paused = true)]
async fn who_has_no_leases_keeps_nobody_else_from_minting() {
    let world = World::new(Backend::Memory).await;
    world.add_app(&world.idle().await, APP, Issuer::Classic).await;
    let store = Arc::new(world.memory.clone());
    let two = world.replica_on(store, Arc::new(Away)).await;
    let there = two.broker.app(APP).unwrap();
    world.pass(secs(1)).await;
    let refused = two.broker.token(&there, None, Duration::ZERO).await;
    assert!(refused.is_err(), "it has tried, and may not mint: {refused:?}");
    let one = world.replica().await;
    let entry = one.broker.app(APP).unwrap();
    let first = read(&one.broker, &entry).await;
    for generation in 2..5 {
        world.pass(first.expires_in - secs(200)).await;
        for (broker, entry) in [(&one.broker, &entry), (&two.broker, &there)] {
            assert_eq!(read(broker, entry).await.generation, generation);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_ran_out_before_sending_is_noticed() {
    check_that_nothing_is_sent(Some(secs(45)), None).await;
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_ran_out_before_its_clock_was_heard_is_noticed() {
    check_that_nothing_is_sent(None, Some(secs(45))).await;
}

/// A process looks at the clock of its lease just before it sends, and is held up at that.
async fn check_that_nothing_is_sent(once: Option<Duration>, heard: Option<Duration>) {
    let world = World::new(Backend::Memory).await;
    let broker = world.idle().await;
    let entry = world.add_app(&broker, APP, Issuer::Classic).await;
    let held_up = HeldUp {
        inner: world.memory.clone(),
        once: Mutex::new(once),
        heard: Mutex::new(heard),
        release: Mutex::default(),
    };
    let store = Arc::new(world.memory.clone());
    let late = world.broker_on(store, Arc::new(held_up), TaskTracker::new()).await;
    let there = late.app(APP).unwrap();
    assert!(late.token(&there, None, Duration::ZERO).await.is_err(), "patience ends");
    world.pass(secs(31)).await;
    let quick = read(&broker, &entry).await;
    world.pass(secs(60)).await;
    assert_eq!(quick.generation, 1);
    assert_eq!(world.mint_calls(APP), 1, "the late one sends nothing without its lease");
    assert_eq!(late.counters().read().leases_lost, 1);
}

#[tokio::test(start_paused = true)]
async fn what_falls_due_while_a_lease_is_given_back_is_not_forgotten() {
    let world = World::new(Backend::Memory).await;
    let leases = MemoryStore::new(world.clock.clone());
    let shared = HeldUp {
        inner: leases,
        once: Mutex::default(),
        heard: Mutex::default(),
        release: Mutex::default(),
    };
    let shared = Arc::new(shared);
    let store = Arc::new(world.memory.clone());
    let server = world.replica_on(store, Arc::clone(&shared) as Arc<dyn Shared>).await;
    let entry = world.add_app(&server.broker, APP, Issuer::Classic).await;
    let first = read(&server.broker, &entry).await;
    *shared.release.lock().unwrap() = secs(30);
    // The store is away as the refresh begins, too shortly for anybody else to notice; and the next
    // try falls due while the lease is given back.
    let status = server.broker.status(&entry);
    let due = status[0].refresh_at.unwrap().since(world.clock.now());
    world.pass(due - secs(1)).await;
    world.memory.set_reachable(false);
    world.pass(secs(3)).await;
    world.memory.set_reachable(true);
    world.pass(secs(100)).await;
    let now = server.broker.token_now(&entry, None, Duration::ZERO).unwrap();
    assert_eq!(now.generation, first.generation + 1, "nobody had to read for that");
}
