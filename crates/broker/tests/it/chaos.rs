//! Several replicas in one deterministic simulation, with everything that may happen to them:
//! networks cut, leases forgotten, processes killed or stopped for longer than a lease lasts, clocks that are wrong,
//! WeChat in all its moods.
//!
//! Each replica, and WeChat, has a runtime of its own whose time stands still between steps; one
//! thread drives them in turn, so that a seed tells all that happens. What must hold is read off the
//! simulator's log of calls, and off what was done at the store. To repeat one seed alone: `cargo xtask chaos --seed N`.

mod crash;
mod driver;
mod fetches;
mod judge;
mod leases;
mod link;
mod outsider;
mod panics;
mod records;

use std::ops::Range;

use self::driver::Chaos;

/// Names the seeds of a run that is asked for from outside, as `from..to`.
const SEEDS: &str = "XINFU_CHAOS_SEEDS";

#[expect(clippy::disallowed_methods, reason = "a run is repeated from outside")]
fn seeds(usual: Range<u64>) -> Range<u64> {
    let Ok(given) = std::env::var(SEEDS) else { return usual };
    let (from, to) = given.split_once("..").expect("`from..to`");
    from.parse().expect("a number")..to.parse().expect("a number")
}

fn hold_for(usual: Range<u64>) {
    let (seeds, mut held_back) = (seeds(usual.clone()), [0; 2]);
    for seed in seeds.clone() {
        println!("seed {seed}");
        let mut chaos = Chaos::new(seed);
        chaos.run();
        for (api, times) in ["token", "stable_token/force"].iter().zip(&mut held_back) {
            *times += chaos.held_back(api);
        }
    }
    let pushed = held_back.iter().all(|times| *times > 0);
    assert!(pushed || seeds != usual, "no budget held anybody back: {held_back:?}");
}

#[test]
fn what_must_hold_holds_for_the_first_hundred_seeds() {
    hold_for(0..100);
}

#[test]
fn what_must_hold_holds_for_the_second_hundred_seeds() {
    hold_for(100..200);
}

#[test]
#[should_panic(expected = "tasks have panicked")]
fn a_panic_in_a_task_of_a_replica_is_not_passed_over() {
    let mut chaos = Chaos::lone();
    chaos.on(0, async |_| panic!("on purpose"));
    chaos.pass(std::time::Duration::from_secs(1));
    chaos.nobody_panicked();
}

#[test]
fn a_seed_tells_all_that_happens() {
    let told = |seed| {
        let mut chaos = Chaos::new(seed);
        chaos.run();
        chaos.story()
    };
    assert_eq!(told(7), told(7));
    assert_ne!(told(7), told(8));
}
