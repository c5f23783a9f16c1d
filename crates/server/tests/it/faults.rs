//! Three real replicas under load while everything around them fails: processes are killed or stopped
//! for longer than a lease lasts, the database and Redis die and come back, replicas are cut off, two
//! clocks are wrong by ten minutes, and somebody outside ends tokens.
//!
//! Whatever a client was not given has to be explained by what happened at that moment, or the test
//! fails and names it. For longer: `cargo xtask faults --minutes N`.

mod clients;
mod judge;
mod network;
mod world;

use std::time::Duration;

use self::{
    clients::Clients,
    judge::Judge,
    world::{
        CLASSIC,
        Happening::{Cut, GoOn, Kill, Mend, Mint, Pause, Postgres, Redis, Roll, Stop},
        STABLE, World,
    },
};
use crate::{
    cluster::Sharing,
    gate::Way,
    kill::Chance,
    process::{PATIENCE, eventually},
};

/// Names for how many minutes it goes on, at least.
const MINUTES: &str = "XINFU_FAULTS_MINUTES";

#[tokio::test(flavor = "multi_thread")]
async fn whatever_fails_on_postgres_is_explained() {
    go_through(Sharing::Postgres).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_fails_on_postgres_with_redis_is_explained() {
    go_through(Sharing::Redis).await;
}

#[expect(clippy::disallowed_methods, reason = "a longer run is asked for from outside")]
fn minutes() -> u64 {
    std::env::var(MINUTES).map_or(0, |minutes| minutes.parse().expect("a number of minutes"))
}

async fn go_through(sharing: Sharing) {
    let mut chance = Chance::new();
    let mut world = World::start(sharing).await;
    let clients = Clients::start(&world).await;
    let judge = Judge::start(&world);
    let begun = world.now();
    let enough = i64::try_from(minutes() * 60_000).unwrap();
    for round in 0.. {
        let nodes = [round % 3, (round + 1) % 3, (round + 2) % 3];
        go_round(&mut world, nodes, &mut chance).await;
        if round % 2 == 0 {
            // Not more often: a budget holds what is minted on classic.
            world.happen(Mint(CLASSIC)).await;
        }
        if world.now() - begun >= enough {
            break;
        }
    }
    // All is well again, without a restart of anything.
    let settled = eventually(4 * PATIENCE, || world.is_of_one_mind(clients.key()));
    settled.await.unwrap_or_else(|| panic!("no peace: {}; {chance}", world.story()));
    let seconds = (world.now() - begun) / 1_000;
    let done = clients.end().await;
    let cut_by = world.cut_by();
    println!("{sharing:?}, three replicas, cut off by {cut_by}, {seconds} s; {chance}");
    judge.look(&world, done, &chance).await;
}

/// Everything happens once, while one replica is stopped.
async fn go_round(world: &mut World, [stopped, other, last]: [usize; 3], chance: &mut Chance) {
    let happenings = [
        Stop(stopped),
        Mint(STABLE[0]),
        Kill(other),
        Kill(last),
        Postgres("KILL"),
        Mint(STABLE[1]),
        Redis,
        Cut(other, Way::Swallowing),
        Mint(STABLE[0]),
        Pause(Duration::from_secs(9)),
        Mend(other),
        Roll(last),
        Mint(STABLE[1]),
        Postgres("INT"),
        Cut(last, Way::Refusing),
        Roll(other),
        Pause(Duration::from_secs(5)),
        Mend(last),
        GoOn(stopped),
    ];
    for happening in happenings {
        world.happen(happening).await;
        tokio::time::sleep(Duration::from_millis(200 + chance.below(1_500))).await;
        chance.next();
    }
}
