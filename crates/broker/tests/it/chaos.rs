//! Several replicas in one deterministic simulation, with everything that may happen to them:
//! networks cut, processes killed or stopped for longer than a lease lasts, clocks that are wrong,
//! WeChat in all its moods.
//!
//! Each replica, and WeChat, has a runtime of its own whose time stands still between steps; one
//! thread drives them in turn, so that a seed tells all that happens. What must hold is read off the
//! simulator's log of calls. To repeat one seed alone: `cargo xtask chaos --seed N`.

mod crash;
mod driver;
mod judge;
mod link;

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

fn hold_for(seeds: Range<u64>) {
    for seed in seeds {
        println!("seed {seed}");
        Chaos::new(seed).run();
    }
}

#[test]
fn what_must_hold_holds_for_the_first_hundred_seeds() {
    hold_for(seeds(0..100));
}

#[test]
fn what_must_hold_holds_for_the_second_hundred_seeds() {
    hold_for(seeds(100..200));
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
