//! The rules of the stable issuer over random histories.

use proptest::prelude::*;
use sim::TokenState;

use crate::harness::{APP, World, pass};

#[derive(Clone, Debug)]
enum Step {
    Pass(u64),
    Ask,
    Force,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        1 => (0u64..40).prop_map(Step::Pass),
        1 => (40u64..600).prop_map(Step::Pass),
        1 => (6_500u64..7_300).prop_map(Step::Pass),
        2 => Just(Step::Ask),
        3 => Just(Step::Force),
    ];
    proptest::collection::vec(step, 1..120)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_stable_issuer_keeps_its_rules(steps in steps()) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .build()
            .unwrap();
        runtime.block_on(check(steps));
    }
}

async fn check(steps: Vec<Step>) {
    let world = World::new().await;
    // What the answers so far say: the last token, when it runs out, the granted forces.
    let mut last: Option<(String, i64)> = None;
    let mut granted_at: Vec<i64> = Vec::new();
    let mut seen: Vec<String> = Vec::new();
    for step in steps {
        let force = match step {
            Step::Pass(seconds) => {
                pass(seconds).await;
                continue;
            }
            Step::Ask => false,
            Step::Force => true,
        };
        let now = world.sim.now().as_secs();
        let answer = world.stable(force).await;
        let day = |secs: i64| (secs + 8 * 3600).div_euclid(86_400);
        let today = granted_at.iter().filter(|at| day(**at) == day(now)).count();
        if force && today == 20 {
            assert_eq!(answer.errcode(), 45009);
            continue;
        }
        let (token, left) = (answer.token(), answer.expires_in());
        assert!((300..=7200).contains(&left), "{left}");
        assert_eq!(world.sim.token_state(APP, &token), TokenState::Live);

        let granted = force && granted_at.last().is_none_or(|last| now - last >= 30);
        if let Some((old, runs_out)) = &last {
            let same = *old == token;
            assert_eq!(same, !granted && runs_out - now >= 300, "{old} {token}");
            assert!(!same || *runs_out == now + i64::try_from(left).unwrap());
        }
        if granted {
            granted_at.push(now);
        }
        last = Some((token.clone(), now + i64::try_from(left).unwrap()));
        if !seen.contains(&token) {
            seen.push(token);
        }
        let live = world.sim.current_tokens(APP).live;
        assert!(live.len() <= 2, "{live:?}");
        for dead in seen.iter().rev().skip(2) {
            assert_ne!(world.sim.token_state(APP, dead), TokenState::Live);
        }
    }
}
