//! What explains a failure, and what must hold whatever happens.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::Ipv4Addr,
    sync::{Arc, Mutex},
    time::Duration,
};

use serde_json::Value;
use tokio::task::JoinSet;

use super::{
    clients::{Done, Failed, Failure, Seen},
    world::{APPS, AT_WECHAT, LIFE, Trouble, What, World},
};
use crate::{kill::Chance, process::http};

/// A token that somebody ended is replaced within this time, in milliseconds, which is far less than a
/// lease lasts; but where its lease was left behind.
const HEALED: i64 = 15_000;
/// So long after a token was fetched somebody first hears of it.
const HEARD: i64 = 5_000;
/// All replicas serve a new token so long after the first one that does.
const FOLLOWED: i64 = 3_000;
/// Longer than a lease lasts, and so longer than a call under one.
const LEASE: i64 = 45_000;
/// A replica is its old self so long after a trouble.
const RECOVERED: i64 = 5_000;
/// What WeChat has answered is stored so long after that.
const STORED: i64 = 1_000;
/// Who is answered with the token that it has asks again so long after that.
const SAME_AGAIN: i64 = 15_000;

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
        let mut troubles = world.troubles.clone();
        troubles.sort_by_key(|it| it.from);
        let troubles = &troubles[..];
        let ended = ends(&done, world, troubles, chance);

        let mut explained: BTreeMap<&str, usize> = BTreeMap::new();
        let mut defects = Vec::new();
        for failure in &done.failures {
            match explain(failure, troubles, &ended) {
                Some(why) => *explained.entry(why).or_default() += 1,
                None => defects.push(failure),
            }
        }
        let (mut calls_for_tokens, mut tokens, mut rotations) = (0, 0, 0);
        for app in APPS {
            let fetches = fetches(&calls, app);
            let generations = generations(world, app).await;
            one_fetch_at_a_time(&fetches, troubles, chance);
            no_fetch_again(&fetches, troubles, chance);
            let brought = no_more_than_rotations(&fetches, generations, troubles, chance);
            calls_for_tokens += fetches.iter().filter(|it| it.token.is_some()).count();
            tokens += brought;
            rotations += generations;
        }
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
            ("fetches: calls answered with a token", calls_for_tokens),
            ("tokens fetched", tokens),
            ("rotations", rotations),
            ("tokens fetched and not stored: leases lost", tokens.saturating_sub(rotations)),
            ("leases left behind", world.left_leases.len()),
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

/// The token of an app was ended by somebody outside.
struct Ended {
    app: &'static str,
    from: i64,
    /// The newest generation that it can have been.
    newest: u64,
    /// When a newer one was first served by a replica that could store it.
    replaced: i64,
    /// When each replica first served a newer one.
    known: BTreeMap<usize, i64>,
}

impl Ended {
    /// How long it took, in milliseconds, until it was replaced.
    fn took(&self) -> usize {
        usize::try_from(self.replaced - self.from).unwrap_or(0)
    }

    /// When all replicas that nothing kept from following served another one.
    fn healed(&self) -> i64 {
        self.replaced + FOLLOWED
    }

    /// Whether it may be why a call failed. Nobody heard of it before it was ended; and a replica that
    /// has served a newer token has no business with this one any more.
    fn may_fail(&self, failure: &Failure) -> bool {
        let is_it = match failure.what {
            Failed::Dead(Some(generation)) => generation <= self.newest,
            _ => true,
        };
        let unknown = self.known.get(&failure.node).is_none_or(|known| failure.from <= *known);
        self.app == failure.app && self.from <= failure.until && is_it && unknown
    }
}

/// What was ended, and when it was replaced.
fn ends(done: &Done, world: &World, troubles: &[Trouble], chance: &Chance) -> Vec<Ended> {
    let minted = troubles.iter().filter_map(|it| match it.what {
        What::Minted(app) => Some((app, it.from)),
        _ => None,
    });
    // What a replica serves that can store nothing helps nobody else: it counts from when it can.
    let stored = |node: usize, seen: &Seen| {
        let kept = troubles.iter().filter(|it| it.what.keeps_from_store(node));
        let after = |at, it: &Trouble| if it.from <= at && at <= it.until { it.until } else { at };
        let at = kept.fold(seen.first, after);
        (at <= seen.last).then_some(at)
    };
    let ended = |(app, from): (&'static str, i64)| {
        let served = || done.tokens.iter().filter(move |((it, ..), _)| *it == app);
        // One that never worked was fetched before it was ended, and served after that.
        let is_old =
            |seen: &Seen| seen.first <= from || (!seen.worked && seen.first <= from + HEARD);
        let old = served().filter(|(_, seen)| is_old(seen));
        let newest = old.map(|((_, generation, ..), _)| *generation).max().unwrap_or(0);
        let newer = || served().filter(move |((_, generation, ..), _)| *generation > newest);
        let mut known = BTreeMap::new();
        for ((.., node), seen) in newer() {
            let first = known.entry(*node).or_insert(seen.first);
            *first = seen.first.min(*first);
        }
        let replaced = newer().filter_map(|((.., node), seen)| stored(*node, seen)).min();
        let replaced = replaced.or_else(|| known.values().min().copied());
        let replaced = replaced.unwrap_or_else(|| panic!("{app} was never healed; {chance}"));
        // Whoever had the lease could not give it back: all wait until it runs out.
        let left = world
            .left_leases
            .iter()
            .any(|(it, at)| *it == app && *at <= replaced && from - LEASE <= *at);
        let limit = if left { LEASE + HEALED } else { HEALED };
        // Nothing is stored while the store is away.
        let away = troubles.iter().filter(|it| matches!(it.what, What::Postgres | What::Redis));
        let away = away.filter(|it| it.from <= replaced && from <= it.until);
        let since = away.map(|it| it.until).max().map_or(from, |back| back.max(from));
        assert!(
            replaced - since <= limit,
            "{app} was ended at {from} and replaced after {} ms; {}; {chance}",
            replaced - from,
            world.story()
        );
        Ended { app, from, newest, replaced, known }
    };
    minted.map(ended).collect()
}

/// What explains that a client was not given something.
fn explain(failure: &Failure, troubles: &[Trouble], ended: &[Ended]) -> Option<&'static str> {
    let Failure { what, node, from, until, .. } = failure;
    // Whether something of a kind was wrong meanwhile, or not longer ago than `before`.
    let wrong = |before: i64, is: &dyn Fn(What) -> bool| {
        troubles.iter().any(|it| is(it.what) && it.from <= *until && from - before <= it.until)
    };
    let being_healed = ended.iter().any(|it| it.may_fail(failure) && *from <= it.healed());
    // A replica cannot know what was done while it, or what it stands on, was in trouble; and a token
    // that was ended longer ago than any lives explains nothing.
    let cannot_know = ended.iter().any(|end| {
        let kept_from_knowing = |it: &Trouble| {
            let lasted = it.until - it.from + RECOVERED;
            it.what.befalls(*node)
                && it.from <= end.healed()
                && it.from <= *until
                && *from <= it.until + RECOVERED
                && *from <= end.from + millis(LIFE) + lasted
        };
        end.may_fail(failure) && troubles.iter().any(kept_from_knowing)
    });
    match what {
        Failed::Unanswered(_) | Failed::NoLogin { status: None, .. }
            if wrong(0, &|it| it == What::Killed(*node)) =>
        {
            Some("no answer from a replica that was killed")
        }
        Failed::Unanswered(_) | Failed::NoLogin { status: None, .. }
            if wrong(0, &|it| it == What::Stopped(*node)) =>
        {
            Some("no answer from a replica that was stopped")
        }
        // Each try of its has been judged by itself.
        Failed::Everywhere if wrong(0, &|it| matches!(it, What::Killed(_) | What::Stopped(_))) => {
            Some("no answer at all: each try was judged by itself")
        }
        Failed::Dead(_) if being_healed => Some("a token that somebody outside had ended"),
        Failed::Dead(_) if cannot_know => {
            Some("a token that somebody outside had ended, from a replica that could not know")
        }
        Failed::Refused(503, _) if being_healed => Some("no token: somebody outside had ended it"),
        Failed::Refused(503, _) if cannot_know => {
            Some("no token: somebody outside had ended it, and the store was away")
        }
        Failed::NoLogin { status: Some(503), .. }
            if wrong(RECOVERED, &|it| it.keeps_from_store(*node)) =>
        {
            Some("no login: the store was away")
        }
        // Who has the code's claim waits for the store with what WeChat has answered, and whoever was
        // brought the code too waits for that.
        Failed::NoLogin { status: None | Some(409 | 503), other, .. }
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
    for ((app, generation, token, node), seen) in &done.tokens {
        let disturbed = troubles.iter().any(|it| {
            it.what.keeps_from_store(*node)
                && it.from <= seen.first
                && seen.first <= it.until + RECOVERED
        });
        if !disturbed {
            let first = known.entry((app, generation)).or_insert(token);
            assert_eq!(*first, token, "two tokens of {app} as {generation}; {chance}");
        }
    }
}

/// A call for a token of an app by one of our replicas.
struct Fetch<'a> {
    node: usize,
    sent: i64,
    /// When it was answered, or given up.
    over: i64,
    /// What stands for the token that it was answered with.
    token: Option<&'a str>,
    call: &'a Value,
}

impl Fetch<'_> {
    /// Whether its replica, or what keeps leases and tokens, was in trouble while it was under way,
    /// shortly before, or until what it brought was stored: only then it may have had no lease, and
    /// what it brought may be lost.
    fn is_disturbed(&self, troubles: &[Trouble]) -> bool {
        troubles.iter().any(|it| {
            it.what.befalls(self.node)
                && it.from <= self.over + STORED
                && self.sent <= it.until + RECOVERED
        })
    }
}

/// The calls for tokens of an app, in the order in which they were sent.
fn fetches<'a>(calls: &'a [Value], app: &str) -> Vec<Fetch<'a>> {
    let paths = ["/cgi-bin/token", "/cgi-bin/stable_token"];
    let is_fetch =
        |call: &&Value| call["appid"] == app && paths.iter().any(|it| call["path"] == *it);
    let fetch = |call: &'a Value| {
        let address = call["client_ip"].as_str().and_then(|it| it.parse::<Ipv4Addr>().ok());
        let node = AT_WECHAT.iter().position(|it| Some(*it) == address);
        let sent = call["sent_at"].as_i64().unwrap();
        Fetch {
            node: node.unwrap_or_else(|| panic!("no replica has sent {call}")),
            sent,
            over: call["answered_at"].as_i64().unwrap_or(sent + LEASE),
            token: call["answered"].as_str(),
            call,
        }
    };
    let mut fetches: Vec<_> = calls.iter().filter(is_fetch).map(fetch).collect();
    fetches.sort_by_key(|it| it.sent);
    fetches
}

/// The number of an app's newest generation.
async fn generations(world: &World, app: &str) -> usize {
    let status = world.folder.xinfu(&["token", "status", app, "--json"]).await.ok().json();
    usize::try_from(status["credentials"][0]["generation"].as_u64().unwrap()).unwrap()
}

/// P1: at most one fetch at a time, but for those of a replica that may have had no lease.
fn one_fetch_at_a_time(fetches: &[Fetch<'_>], troubles: &[Trouble], chance: &Chance) {
    for (at, later) in fetches.iter().enumerate() {
        for earlier in fetches[..at].iter().filter(|it| later.sent < it.over) {
            let excused = earlier.is_disturbed(troubles) || later.is_disturbed(troubles);
            assert!(excused, "two at once: {} {}; {chance}", earlier.call, later.call);
        }
    }
}

/// P1: who has a lease reads the store first, so that it does not ask for what another has just
/// brought; but when what was brought may be lost, or WeChat went on with the token.
fn no_fetch_again(fetches: &[Fetch<'_>], troubles: &[Trouble], chance: &Chance) {
    let mut brought: HashMap<&str, &Fetch<'_>> = HashMap::new();
    for again in fetches {
        let Some(before) = again.token.and_then(|token| brought.insert(token, again)) else {
            continue;
        };
        let excused = before.is_disturbed(troubles)
            || again.is_disturbed(troubles)
            || before.over + SAME_AGAIN <= again.sent;
        assert!(excused, "fetched again: {} {}; {chance}", before.call, again.call);
    }
}

/// P1: each token that was fetched is a generation, but for those that may be lost. Answers how many
/// tokens there were.
fn no_more_than_rotations(
    fetches: &[Fetch<'_>],
    generations: usize,
    troubles: &[Trouble],
    chance: &Chance,
) -> usize {
    let all: BTreeSet<_> = fetches.iter().filter_map(|it| it.token).collect();
    let undisturbed = fetches.iter().filter(|it| !it.is_disturbed(troubles));
    let safe: BTreeSet<_> = undisturbed.filter_map(|it| it.token).collect();
    let lost = all.len() - safe.len();
    assert!(
        all.len() <= generations + lost,
        "{} tokens for {generations} generations, {lost} lost at most; {chance}",
        all.len()
    );
    all.len()
}

/// P6: no code goes to WeChat a second time.
fn codes_once(calls: &[Value], chance: &Chance) {
    let mut codes = BTreeSet::new();
    for call in calls.iter().filter(|call| call["path"] == "/sns/oauth2/access_token") {
        assert!(codes.insert(call["code"].as_str().unwrap()), "twice: {call}; {chance}");
    }
}

fn millis(span: Duration) -> i64 {
    i64::try_from(span.as_millis()).unwrap()
}
