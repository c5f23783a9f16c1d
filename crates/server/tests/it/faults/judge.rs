//! What explains a failure, and what must hold whatever happens.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, Mutex},
    time::Duration,
};

use serde_json::Value;
use tokio::task::JoinSet;

use super::{
    clients::{Done, Failed, Failure},
    world::{APPS, Trouble, What, World},
};
use crate::{kill::Chance, process::http};

/// A token that somebody ended is known to be dead by all replicas after so long, in milliseconds.
const HEALED: i64 = 5_000;
/// For so long after something happened a lease may be held by who cannot use it.
const LEASE: i64 = 45_000;
/// A replica is its old self so long after a trouble.
const RECOVERED: i64 = 5_000;

/// Reads the simulator's log, which keeps the last calls only.
pub(super) struct Judge {
    calls: Arc<Mutex<Vec<Value>>>,
    reader: JoinSet<()>,
    control: String,
}

impl Judge {
    pub(super) fn start(world: &World) -> Self {
        let calls: Arc<Mutex<Vec<Value>>> = Arc::default();
        let mut reader = JoinSet::new();
        let (control, kept) = (world.sim.control.clone(), Arc::clone(&calls));
        reader.spawn(async move {
            let mut after = 0;
            loop {
                after = read_log(&control, after, &kept).await;
                tokio::time::sleep(Duration::from_secs(2)).await;
            }
        });
        Self { calls, reader, control: world.sim.control.clone() }
    }

    pub(super) async fn look(mut self, world: &World, done: Done, chance: &Chance) {
        self.reader.shutdown().await;
        let last = self.calls.lock().unwrap().last().map_or(0, seq);
        read_log(&self.control, last, &self.calls).await;
        let calls = std::mem::take(&mut *self.calls.lock().unwrap());
        let troubles = &world.troubles;

        let mut explained: BTreeMap<&str, usize> = BTreeMap::new();
        let mut defects = Vec::new();
        for failure in &done.failures {
            match explain(failure, troubles) {
                Some(why) => *explained.entry(why).or_default() += 1,
                None => defects.push(failure),
            }
        }
        let (fetches, rotations) = fetches(world, &calls).await;
        let happened = |is: &dyn Fn(What) -> bool| troubles.iter().filter(|it| is(it.what)).count();
        let rows = [
            ("answered calls", done.calls),
            ("logins, each at two replicas", done.logins),
            ("keys made", done.keys.len()),
            ("replicas killed", happened(&|it| matches!(it, What::Killed(_)))),
            ("replicas stopped beyond a lease", happened(&|it| matches!(it, What::Stopped(_)))),
            ("replicas cut off", happened(&|it| matches!(it, What::CutOff(_)))),
            ("replicas restarted in good order", happened(&|it| matches!(it, What::Rolled(_)))),
            ("restarts of the database", happened(&|it| it == What::Postgres)),
            ("restarts of Redis", happened(&|it| it == What::Redis)),
            ("tokens ended from outside", happened(&|it| matches!(it, What::Minted(_)))),
            ("tokens fetched", fetches),
            ("rotations", rotations),
            ("tokens fetched and not stored: leases lost", fetches.saturating_sub(rotations)),
            ("longest time without an answered call of an app, ms", done.longest_gap),
            ("failures", done.failures.len()),
        ];
        let explained = explained.iter().map(|(why, count)| (*why, *count));
        for (what, value) in rows.into_iter().chain(explained) {
            println!("| {what} | {value} |");
        }
        assert!(
            defects.is_empty(),
            "{} failures that nothing explains, such as {:#?}\n{}; {chance}",
            defects.len(),
            &defects[..defects.len().min(8)],
            world.story()
        );
        one_token_each(&done, troubles, chance);
        one_fetch_at_a_time(&calls, troubles, chance);
        codes_once(&calls, chance);
        let keys = world.folder.xinfu(&["key", "list", "--json"]).await.ok().json();
        let kept: BTreeSet<_> =
            keys.as_array().unwrap().iter().filter_map(|key| key["name"].as_str()).collect();
        for name in &done.keys {
            assert!(kept.contains(name.as_str()), "{name} was acknowledged and is lost; {chance}");
        }
    }
}

fn seq(call: &Value) -> u64 {
    call["seq"].as_u64().unwrap()
}

/// Keeps the calls after one that tell about promises, and answers which was the last of all.
async fn read_log(control: &str, after: u64, kept: &Mutex<Vec<Value>>) -> u64 {
    let url = format!("{control}/sim/calls?after={after}");
    let Some((200, answer)) = http("GET", &url, None, None).await else { return after };
    let log = answer["log"].as_array().unwrap();
    let told = ["/cgi-bin/token", "/cgi-bin/stable_token", "/sns/oauth2/access_token"];
    let told = log.iter().filter(|call| told.iter().any(|path| call["path"] == *path));
    kept.lock().unwrap().extend(told.cloned());
    log.last().map_or(after, seq)
}

/// What explains that a client was not given something.
fn explain(failure: &Failure, troubles: &[Trouble]) -> Option<&'static str> {
    let Failure { what, node, app, from, until } = failure;
    // Whether something of a kind was wrong from `before` this failure on, or not long ago.
    let wrong = |before: i64, is: &dyn Fn(What) -> bool| {
        troubles.iter().any(|it| is(it.what) && it.from <= *until && from - before <= it.until)
    };
    let ended = |before| wrong(before, &|it| it == What::Minted(app));
    match what {
        Failed::Unanswered(_) if wrong(0, &|it| it == What::Killed(*node)) => {
            Some("no answer from a replica that was killed")
        }
        Failed::Unanswered(_) if wrong(0, &|it| it == What::Stopped(*node)) => {
            Some("no answer from a replica that was stopped")
        }
        // Each try of its has been judged by itself.
        Failed::Everywhere if wrong(0, &|it| matches!(it, What::Killed(_) | What::Stopped(_))) => {
            Some("no answer at all: replica after replica was killed or stopped")
        }
        Failed::Dead if ended(HEALED) => Some("a token that somebody outside had just ended"),
        Failed::Dead if ended(LEASE) && wrong(RECOVERED, &|it| it.befalls(*node)) => {
            Some("a token that somebody outside had ended, from a replica that could not know")
        }
        Failed::Dead if ended(LEASE) && wrong(LEASE, &|it| it.may_lose_a_lease()) => {
            Some("a token that somebody outside had ended, while its lease was lost")
        }
        Failed::Refused(503, _) | Failed::Unanswered(_)
            if ended(LEASE) && wrong(LEASE, &|it| it.may_lose_a_lease()) =>
        {
            Some("no token: somebody outside had ended it, and its lease or the store was lost")
        }
        Failed::NoLogin(503, _) if wrong(RECOVERED, &|it| it.keeps_from_store(*node)) => {
            Some("no login: the store was away")
        }
        Failed::NoLogin(409 | 503, _) if wrong(LEASE, &|it| it.may_lose_a_lease()) => {
            Some("no login: whether the code was spent is not known")
        }
        Failed::NotStored(_) if wrong(RECOVERED, &|it| it == What::Postgres) => {
            Some("not stored: the store was away")
        }
        _ => None,
    }
}

/// P2: one generation is one token, whoever serves it, but for what a replica keeps that could not
/// store it.
fn one_token_each(done: &Done, troubles: &[Trouble], chance: &Chance) {
    let mut known: HashMap<_, &String> = HashMap::new();
    for ((app, generation, token, node), at) in &done.tokens {
        let disturbed = troubles
            .iter()
            .any(|it| it.what.befalls(*node) && it.from <= *at && *at <= it.until + LEASE);
        if !disturbed {
            let first = known.entry((app, generation)).or_insert(token);
            assert_eq!(*first, token, "two tokens of {app} as {generation}; {chance}");
        }
    }
}

/// P1: at most one fetch at a time, but where a lease may have been lost.
fn one_fetch_at_a_time(calls: &[Value], troubles: &[Trouble], chance: &Chance) {
    for app in APPS {
        let fetches: Vec<_> = calls.iter().filter(|call| is_fetch(call, app)).collect();
        for two in fetches.windows(2) {
            let at = |call: &Value, what: &str| call[what].as_i64();
            let ends = at(two[0], "answered_at").unwrap_or(i64::MAX);
            let begins = at(two[1], "sent_at").unwrap();
            let lost = troubles.iter().any(|it| {
                it.what.may_lose_a_lease() && it.from <= begins && begins <= it.until + LEASE
            });
            assert!(ends <= begins || lost, "two at once: {two:?}; {chance}");
        }
    }
}

/// How many tokens our fetches have brought, and how many generations there were. P1: no more than
/// one for each generation and each lease that may have been lost.
async fn fetches(world: &World, calls: &[Value]) -> (usize, usize) {
    let (mut all_fetches, mut all_rotations) = (0, 0);
    let lost = world.troubles.iter().filter(|it| it.what.may_lose_a_lease()).count();
    for app in APPS {
        let status = world.folder.xinfu(&["token", "status", app, "--json"]).await.ok().json();
        let rotations = status["credentials"][0]["generation"].as_u64().unwrap();
        let rotations = usize::try_from(rotations).unwrap();
        let fetches = calls.iter().filter(|call| is_fetch(call, app));
        let tokens: BTreeSet<_> = fetches.filter_map(|call| call["answered"].as_str()).collect();
        assert!(
            tokens.len() <= rotations + lost,
            "{app}: {} tokens for {rotations} generations, {lost} leases lost at most",
            tokens.len()
        );
        all_fetches += tokens.len();
        all_rotations += rotations;
    }
    (all_fetches, all_rotations)
}

/// P6: no code goes to WeChat a second time.
fn codes_once(calls: &[Value], chance: &Chance) {
    let mut codes = BTreeSet::new();
    for call in calls.iter().filter(|call| call["path"] == "/sns/oauth2/access_token") {
        assert!(codes.insert(call["code"].as_str().unwrap()), "twice: {call}; {chance}");
    }
}

/// Whether a call is a fetch of an app's token by one of our replicas.
fn is_fetch(call: &Value, app: &str) -> bool {
    let paths = ["/cgi-bin/token", "/cgi-bin/stable_token"];
    call["appid"] == app
        && call["client_ip"].is_string()
        && paths.iter().any(|it| call["path"] == *it)
}
