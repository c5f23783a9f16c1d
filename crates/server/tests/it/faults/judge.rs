//! What explains a failure, and what must hold whatever happens.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, Mutex},
    time::Duration,
};

use serde_json::Value;
use tokio::task::JoinSet;

use super::{
    clients::{Done, Failed, Failure, Served},
    world::{APPS, Trouble, What, World},
};
use crate::{kill::Chance, process::http};

/// A token that somebody ended is replaced within this time, and all replicas follow, in
/// milliseconds; but where its lease was lost.
const HEALED: i64 = 5_000;
/// All replicas serve a new token so long after the first one that does.
const FOLLOWED: i64 = 3_000;
/// For so long after something happened a lease may be held by who cannot use it.
const LEASE: i64 = 45_000;
/// A replica is its old self so long after a trouble.
const RECOVERED: i64 = 5_000;

/// So many calls back, each has been answered by now.
const UNDER_WAY: u64 = 1_000;

/// Reads the simulator's log, which keeps the last calls only.
pub(super) struct Judge {
    calls: Arc<Mutex<BTreeMap<u64, Value>>>,
    reader: JoinSet<()>,
    control: String,
}

impl Judge {
    pub(super) fn start(world: &World) -> Self {
        let calls = Arc::default();
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
        // It reads until it is told to stop, or it has found that calls are missing.
        assert!(
            self.reader.try_join_next().is_none(),
            "the simulator's log was not read; {chance}"
        );
        self.reader.shutdown().await;
        let last = self.calls.lock().unwrap().last_key_value().map_or(0, |(last, _)| *last);
        read_log(&self.control, last.saturating_sub(UNDER_WAY), &self.calls).await;
        let calls: Vec<_> =
            std::mem::take(&mut *self.calls.lock().unwrap()).into_values().collect();
        let troubles = &world.troubles;
        let ended: Vec<_> = ends(&done, troubles, chance).collect();

        let mut explained: BTreeMap<&str, usize> = BTreeMap::new();
        let mut defects = Vec::new();
        for failure in &done.failures {
            match explain(failure, troubles, &ended) {
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
            (
                "longest time until a token that was ended was replaced, ms",
                ended.iter().map(Ended::took).max().unwrap_or(0),
            ),
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

/// Keeps the calls after one that tell about promises, and answers after which to read on: what was
/// not answered yet is read again.
async fn read_log(control: &str, after: u64, kept: &Mutex<BTreeMap<u64, Value>>) -> u64 {
    let seq = |call: &Value| call["seq"].as_u64().unwrap();
    let url = format!("{control}/sim/calls?after={after}");
    let Some((200, answer)) = http("GET", &url, None, None).await else { return after };
    let log = answer["log"].as_array().unwrap();
    assert!(log.first().is_none_or(|first| seq(first) == after + 1), "the log has lost calls");
    let told = ["/cgi-bin/token", "/cgi-bin/stable_token", "/sns/oauth2/access_token"];
    let told = log.iter().filter(|call| told.iter().any(|path| call["path"] == *path));
    kept.lock().unwrap().extend(told.map(|call| (seq(call), call.clone())));
    log.last().map_or(after, |last| seq(last).saturating_sub(UNDER_WAY).max(after))
}

/// The token of an app was ended by somebody outside, and all replicas within reach had another one
/// `healed`.
struct Ended {
    app: &'static str,
    from: i64,
    healed: i64,
}

impl Ended {
    /// How long it took, in milliseconds, until the first of them had another one.
    fn took(&self) -> usize {
        usize::try_from(self.healed - FOLLOWED - self.from).unwrap_or(0)
    }
}

/// What was ended, and when it was healed: a newer generation was served by a replica that nothing
/// kept from following, or by any if there was none such.
fn ends<'a>(
    done: &'a Done,
    troubles: &'a [Trouble],
    chance: &'a Chance,
) -> impl Iterator<Item = Ended> + 'a {
    let minted = troubles.iter().filter_map(|it| match it.what {
        What::Minted(app) => Some((app, it.from)),
        _ => None,
    });
    minted.map(move |(app, from)| {
        // What a replica serves that can store nothing has no number that others know.
        let befallen = |node: usize, at: i64| {
            troubles.iter().any(|it| it.what.befalls(node) && it.from <= at && at <= it.until)
        };
        let served = || done.tokens.iter().filter(move |((it, ..), _)| *it == app);
        let calm = || served().filter(|((.., node), at)| !befallen(*node, **at));
        let before = calm().filter(|(_, at)| **at <= from);
        let newest = before.map(|((_, generation, ..), _)| *generation).max().unwrap_or(0);
        let is_newer =
            |((_, generation, ..), at): &(&Served, &i64)| **at > from && *generation > newest;
        let healed = calm().filter(is_newer).map(|(_, at)| *at).min();
        let healed = healed.or_else(|| served().filter(is_newer).map(|(_, at)| *at).min());
        let healed = healed.unwrap_or_else(|| panic!("{app} was never healed; {chance}"));
        // Who had the lease may have been unable to use it or to give it back.
        let lost = troubles.iter().any(|it| {
            let happened = if let What::Stopped(_) = it.what { it.from } else { it.until };
            it.what.may_lose_a_lease() && it.from <= healed && from - LEASE <= happened
        });
        let limit = if lost { LEASE + HEALED } else { HEALED };
        assert!(healed - from <= limit, "{app} was healed after {} ms; {chance}", healed - from);
        Ended { app, from, healed: healed + FOLLOWED }
    })
}

/// What explains that a client was not given something.
fn explain(failure: &Failure, troubles: &[Trouble], ended: &[Ended]) -> Option<&'static str> {
    let Failure { what, node, app, from, until } = failure;
    // Whether something of a kind was wrong meanwhile, or not longer ago than `before`.
    let wrong = |before: i64, is: &dyn Fn(What) -> bool| {
        troubles.iter().any(|it| is(it.what) && it.from <= *until && from - before <= it.until)
    };
    let being_healed =
        ended.iter().any(|it| it.app == *app && it.from <= *until && *from <= it.healed);
    let cannot_know = wrong(RECOVERED, &|it| it.befalls(*node))
        && ended.iter().any(|it| it.app == *app && it.from <= *until);
    match what {
        Failed::Unanswered(_) if wrong(0, &|it| it == What::Killed(*node)) => {
            Some("no answer from a replica that was killed")
        }
        Failed::Unanswered(_) if wrong(0, &|it| it == What::Stopped(*node)) => {
            Some("no answer from a replica that was stopped")
        }
        // Each try of its has been judged by itself.
        Failed::Everywhere if being_healed || wrong(0, &|it| matches!(it, What::Killed(_))) => {
            Some("no answer at all: each try was judged by itself")
        }
        Failed::Dead if being_healed => Some("a token that somebody outside had ended"),
        Failed::Dead if cannot_know => {
            Some("a token that somebody outside had ended, from a replica that could not know")
        }
        Failed::Refused(503, _) | Failed::Unanswered(_) if being_healed => {
            Some("no token: somebody outside had ended it")
        }
        Failed::Refused(503, _) if cannot_know => {
            Some("no token: somebody outside had ended it, and the store was away")
        }
        Failed::NoLogin { status: 503, .. }
            if wrong(RECOVERED, &|it| it.keeps_from_store(*node)) =>
        {
            Some("no login: the store was away")
        }
        Failed::NoLogin { status: 409 | 503, other, .. }
            if wrong(0, &|it| it.befalls(*node) || it.befalls(*other)) =>
        {
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
            .any(|it| it.what.befalls(*node) && it.from <= *at && *at <= it.until + RECOVERED);
        if !disturbed {
            let first = known.entry((app, generation)).or_insert(token);
            assert_eq!(*first, token, "two tokens of {app} as {generation}; {chance}");
        }
    }
}

/// P1: at most one fetch at a time, but for those that go on alone without a lease, and for one that
/// was stopped after it had seen to its lease.
fn one_fetch_at_a_time(calls: &[Value], troubles: &[Trouble], chance: &Chance) {
    for app in APPS {
        let fetches: Vec<_> = calls.iter().filter(|call| is_fetch(call, app)).collect();
        for two in fetches.windows(2) {
            let at = |call: &Value, what: &str| call[what].as_i64();
            let ends = at(two[0], "answered_at").unwrap_or(i64::MAX);
            let begins = at(two[1], "sent_at").unwrap();
            let excused = troubles.iter().any(|it| {
                let from = match it.what {
                    What::CutOff(_) | What::Postgres | What::Redis => it.from,
                    What::Stopped(_) => it.until,
                    What::Killed(_) | What::Rolled(_) | What::Minted(_) => return false,
                };
                from <= begins && begins <= it.until + RECOVERED
            });
            assert!(ends <= begins || excused, "two at once: {two:?}; {chance}");
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
