//! Passes, wrapped web tokens, revealed tokens, and who is let in while the store is away.

use std::sync::Arc;

use broker::{
    AppEntry, Broker, DeadPass, NotWrapped, PASS_HONOURED,
    audit::Actor,
    key::{Apps, ClientKey, NotKnown, Permission, Rights},
};
use clock::Timestamp;
use proptest::prelude::*;
use sim::Issuer as SimIssuer;
use wechat::{RefreshToken, WebToken};

use crate::harness::{APP, Backend, World, add_key, new_app, read, secs};

const PROBE: &str = "/cgi-bin/get_api_domain_ip";

fn issuer() -> broker::app::Issuer {
    broker::app::Issuer::Stable
}

/// Whose pass it is: the id of the key and the appid.
fn resolved(broker: &Broker, pass: &str) -> Result<(String, String), DeadPass> {
    let passed = broker.resolve_pass(pass)?;
    Ok((passed.key.id.clone(), passed.entry.app().id.to_string()))
}

fn issue(broker: &Broker, entry: &AppEntry, key: &ClientKey) -> String {
    broker.issue_pass(entry, key).expose().to_owned()
}

async fn key_with(broker: &Broker, name: &str, rights: Rights) -> Arc<ClientKey> {
    let new = broker.add_key(name, rights, None, &Actor::System).await.unwrap();
    broker.authenticate(new.expose()).unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_pass_is_honoured_for_longer_than_it_says_and_no_longer() {
    let (world, replica, entry) = World::with_app(Backend::Memory, issuer()).await;
    let broker = &replica.broker;
    let key = add_key(broker, "k").await;
    let made = broker.issue_pass(&entry, &key);
    assert_eq!(made.expires_in(), secs(7200));
    assert_eq!(PASS_HONOURED, secs(8100));
    assert!(!format!("{made:?}").contains(made.expose()));
    let pass = made.expose().to_owned();
    assert!(pass.starts_with("xt_") && pass.len() <= 160, "{}", pass.len());
    assert!(pass.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-'));
    let own = Ok((key.id.clone(), APP.to_owned()));
    assert_eq!(resolved(broker, &pass), own);
    world.pass(secs(8099)).await;
    assert_eq!(resolved(broker, &pass), own);
    world.pass(secs(2)).await;
    assert_eq!(resolved(broker, &pass), Err(DeadPass::Expired));
    // One of the far future is of a clock that was set back.
    let late = issue(broker, &entry, &key);
    assert_eq!(resolved(broker, &late), own);
    replica.stop().await;
}

#[tokio::test(start_paused = true)]
async fn what_a_key_may_is_asked_at_each_call() {
    let world = World::new(Backend::Memory).await;
    let broker = world.idle().await;
    let entry = world.add_app(&broker, APP, issuer()).await;
    let other = world.add_app(&broker, "wxother", issuer()).await;
    let only_app = Rights { apps: Apps::Only([APP.to_owned()].into()), ..Rights::all() };
    let key = key_with(&broker, "mortal", only_app).await;
    let pass = issue(&broker, &entry, &key);
    assert_eq!(resolved(&broker, &pass), Ok((key.id.clone(), APP.to_owned())));
    // A pass for an app that the key does not reach, made by whatever mistake.
    let stray = issue(&broker, &other, &key);
    assert_eq!(resolved(&broker, &stray), Err(DeadPass::Invalid));

    // An app that is removed and comes back is another one.
    broker.remove_app(APP, &Actor::System).await.unwrap();
    assert_eq!(resolved(&broker, &pass), Err(DeadPass::Invalid));
    world.pass(secs(1)).await;
    broker.add_app(new_app(APP, issuer()), &Actor::System).await.unwrap();
    assert_eq!(resolved(&broker, &pass), Err(DeadPass::Invalid));
    let again = issue(&broker, &broker.app(APP).unwrap(), &key);
    assert!(resolved(&broker, &again).is_ok());

    broker.revoke_key("mortal", &Actor::System).await.unwrap();
    assert_eq!(resolved(&broker, &again), Err(DeadPass::Invalid));

    let until = broker.now() + secs(100);
    let new = broker.add_key("brief", Rights::all(), Some(until), &Actor::System).await.unwrap();
    let brief = broker.authenticate(new.expose()).unwrap();
    let pass = issue(&broker, &other, &brief);
    assert!(resolved(&broker, &pass).is_ok());
    world.pass(secs(100)).await;
    assert_eq!(resolved(&broker, &pass), Err(DeadPass::Invalid));
}

#[tokio::test(start_paused = true)]
async fn replicas_resolve_each_others_passes_at_every_moment() {
    for backend in [Backend::Memory, Backend::Sqlite] {
        let world = World::new(backend).await;
        let (one, two) = (world.replica().await, world.replica().await);
        let entry = world.add_app(&one.broker, APP, issuer()).await;
        let key = add_key(&one.broker, "k").await;
        world.pass(secs(2)).await;
        let mut living: Vec<(String, Timestamp)> = Vec::new();
        let mut prefixes = std::collections::BTreeSet::new();
        // A day, in which the keys of passes change again and again.
        for round in 0..300 {
            let (from, to) = if round % 2 == 0 { (&one, &two) } else { (&two, &one) };
            let pass = issue(&from.broker, &entry, &key);
            prefixes.insert(pass[..11].to_owned());
            // Without asking the store: it was published long before.
            assert!(resolved(&to.broker, &pass).is_ok(), "round {round}");
            living.push((pass, from.broker.now()));
            living.retain(|(_, at)| *at + secs(8090) > from.broker.now());
            for (pass, at) in &living {
                assert!(resolved(&to.broker, pass).is_ok(), "round {round}: of {at:?}");
            }
            world.pass(secs(288)).await;
        }
        assert!((30..=40).contains(&prefixes.len()), "{} keys in a day", prefixes.len());
        one.stop().await;
        two.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_pass_key_is_used_a_minute_after_its_publication() {
    let (world, replica, entry) = World::with_app(Backend::Memory, issuer()).await;
    let key = add_key(&replica.broker, "k").await;
    let (store, _) = world.stores().await;
    let prefix = || issue(&replica.broker, &entry, &key)[3..11].to_owned();
    let mut used = vec![prefix()];
    for _ in 0..2000 {
        world.pass(secs(5)).await;
        let now = prefix();
        if used.contains(&now) {
            continue;
        }
        let rows = store.pass_keys().await.unwrap();
        let row = rows.iter().find(|row| row.id == now).unwrap();
        let age = replica.broker.now().since(row.published_at);
        assert!(age >= secs(60), "{age:?}");
        used.push(now);
    }
    assert!(used.len() >= 4, "{used:?}");
    replica.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_revoked_key_is_out_everywhere_within_two_seconds() {
    let world = World::new(Backend::Sqlite).await;
    let (one, two) = (world.replica().await, world.replica().await);
    let entry = world.add_app(&one.broker, APP, issuer()).await;
    let key = add_key(&one.broker, "k").await;
    world.pass(secs(2)).await;
    let pass = issue(&one.broker, &entry, &key);
    let wrapped = one.broker.wrap_web_token(&entry, &key, &WebToken::new("the user's")).unwrap();
    assert!(resolved(&two.broker, &pass).is_ok());
    assert!(two.broker.unwrap_web_token(&wrapped).is_ok());
    one.broker.revoke_key("k", &Actor::System).await.unwrap();
    world.pass(secs(2)).await;
    for replica in [&one, &two] {
        assert_eq!(resolved(&replica.broker, &pass), Err(DeadPass::Invalid));
        let unwrapped = replica.broker.unwrap_web_token(&wrapped);
        assert_eq!(unwrapped.unwrap_err(), NotWrapped::Invalid);
    }
    one.stop().await;
    two.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_pass_of_a_key_not_seen_yet_is_looked_up_but_made_up_ones_are_no_load() {
    let world = World::new(Backend::Memory).await;
    let one = world.idle().await;
    let entry = world.add_app(&one, APP, issuer()).await;
    let key = add_key(&one, "k").await;
    let two = world.idle().await;
    // The first one rotates, and the second one follows nothing.
    world.pass(secs(4 * 3600)).await;
    let three = world.idle().await;
    let pass = issue(&three, &entry, &key);
    assert_eq!(resolved(&two, &pass), Err(DeadPass::UnknownKey));
    assert!(two.resolve_pass_again(&pass).await.is_ok());
    assert!(resolved(&two, &pass).is_ok());

    let made_up = format!("xt_{}", "A".repeat(114));
    let before = world.memory.accesses();
    for _ in 0..1000 {
        assert!(two.resolve_pass_again(&made_up).await.is_err());
    }
    assert!(world.memory.accesses() - before <= 2);
}

#[tokio::test(start_paused = true)]
async fn who_is_let_in_while_the_store_is_away() {
    let (world, replica, entry) = World::with_app(Backend::Memory, issuer()).await;
    let broker = &replica.broker;
    let new = broker.add_key("k", Rights::all(), None, &Actor::System).await.unwrap();
    let key = broker.authenticate(new.expose()).unwrap();
    let pass = issue(broker, &entry, &key);
    let wrapped = broker.wrap_web_token(&entry, &key, &WebToken::new("the user's")).unwrap();
    // Nothing changes for a long time: that is no reason to doubt anything.
    world.pass(secs(3000)).await;
    assert!(broker.authenticate(new.expose()).is_ok());
    world.memory.set_reachable(false);
    world.pass(secs(260)).await;
    assert!(broker.authenticate(new.expose()).is_ok());
    assert!(resolved(broker, &pass).is_ok());
    assert!(resolved(broker, &issue(broker, &entry, &key)).is_ok());
    world.pass(secs(60)).await;
    assert_eq!(broker.authenticate(new.expose()).unwrap_err(), NotKnown::Stale);
    assert_eq!(resolved(broker, &pass), Err(DeadPass::Stale));
    let unwrapped = broker.unwrap_web_token(&wrapped).unwrap_err();
    assert_eq!(unwrapped, NotWrapped::Stale(NotKnown::Stale));
    world.memory.set_reachable(true);
    world.pass(secs(3)).await;
    assert!(broker.authenticate(new.expose()).is_ok());
    assert!(resolved(broker, &pass).is_ok());
    replica.stop().await;
}

#[tokio::test(start_paused = true)]
async fn passes_go_on_while_the_store_is_away_and_when_it_was_away_for_long() {
    let (world, replica, entry) = World::with_app(Backend::Memory, issuer()).await;
    let key = add_key(&replica.broker, "k").await;
    world.memory.set_reachable(false);
    world.pass(secs(4 * 3600)).await;
    issue(&replica.broker, &entry, &key);
    world.memory.set_reachable(true);
    world.pass(secs(90)).await;
    assert!(resolved(&replica.broker, &issue(&replica.broker, &entry, &key)).is_ok());
    replica.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_store_that_lost_its_pass_keys_stops_no_server() {
    let world = World::new(Backend::Sqlite).await;
    let replica = world.replica().await;
    let entry = world.add_app(&replica.broker, APP, issuer()).await;
    let key = add_key(&replica.broker, "k").await;
    let database = rusqlite::Connection::open(world.database()).unwrap();
    for damage in ["DELETE FROM pass_keys", "UPDATE pass_keys SET value = zeroblob(60)"] {
        database.execute_batch(damage).unwrap();
        for _ in 0..100 {
            let pass = issue(&replica.broker, &entry, &key);
            assert!(resolved(&replica.broker, &pass).is_ok(), "{damage}");
            world.pass(secs(2)).await;
        }
        // By now there is another key, which a server that starts finds.
        let late = world.replica().await;
        assert!(resolved(&late.broker, &issue(&replica.broker, &entry, &key)).is_ok(), "{damage}");
        late.stop().await;
    }
    replica.stop().await;
}

#[tokio::test(start_paused = true)]
async fn the_two_kinds_of_wrapped_tokens_are_not_mixed_and_open_for_nobody_else() {
    let world = World::new(Backend::Memory).await;
    let broker = world.idle().await;
    let entry = world.add_app(&broker, APP, issuer()).await;
    let key = add_key(&broker, "k").await;
    let (token, refresh) = (WebToken::new("the user's"), RefreshToken::new("renews it"));
    let web = broker.wrap_web_token(&entry, &key, &token).unwrap();
    let renews = broker.wrap_refresh_token(&entry, &key, &refresh).unwrap();
    let opened = broker.unwrap_web_token(&web).unwrap();
    assert_eq!((opened.token.expose(), &opened.key.id), ("the user's", &key.id));
    assert!(!format!("{opened:?}").contains("the user's"));
    assert_eq!(broker.unwrap_refresh_token(&renews).unwrap().token.expose(), "renews it");
    let swapped = [
        renews.clone(),
        renews.replace("xr_", "xw_"),
        issue(&broker, &entry, &key),
        issue(&broker, &entry, &key).replace("xt_", "xw_"),
        "the user's".to_owned(),
        "xw_".to_owned(),
        String::new(),
    ];
    for wrong in swapped {
        assert_eq!(broker.unwrap_web_token(&wrong).unwrap_err(), NotWrapped::Invalid, "{wrong}");
    }
    let wrong = web.replace("xw_", "xr_");
    assert_eq!(broker.unwrap_refresh_token(&wrong).unwrap_err(), NotWrapped::Invalid);
    assert_eq!(resolved(&broker, &web.replace("xw_", "xt_")).map_err(|_| ()), Err(()));

    // Thirty days later it still opens, in another process as well.
    world.pass(secs(30 * 86_400)).await;
    assert!(world.idle().await.unwrap_refresh_token(&renews).is_ok());

    let long = |length| WebToken::new("x".repeat(length));
    let wrapped = broker.wrap_web_token(&entry, &key, &long(300)).unwrap();
    assert!(wrapped.len() <= 512, "{}", wrapped.len());
    assert_eq!(broker.wrap_web_token(&entry, &key, &long(400)), None);
    broker.revoke_key("k", &Actor::System).await.unwrap();
    assert_eq!(broker.unwrap_web_token(&web).unwrap_err(), NotWrapped::Invalid);
}

#[tokio::test(start_paused = true)]
async fn who_comes_back_soon_for_a_revealed_token_has_it_checked() {
    let (world, replica, entry) = World::with_app(Backend::Memory, issuer()).await;
    let broker = &replica.broker;
    let rights = Rights { permissions: [Permission::Token].into(), reveal: true, ..Rights::all() };
    let key = key_with(broker, "reveal", rights).await;
    let other = add_key(broker, "other").await;
    let get = async || broker.token_for_reveal(&entry, &key).await.unwrap();
    let first = get().await;
    assert_eq!(world.calls(PROBE), 0);
    // Another key is another client.
    broker.token_for_reveal(&entry, &other).await.unwrap();
    assert_eq!(world.calls(PROBE), 0);
    // It works: it is looked at once, and stays.
    for _ in 0..5 {
        assert_eq!(get().await.generation, first.generation);
    }
    assert_eq!(world.calls(PROBE), 1);
    world.pass(secs(70)).await;
    assert_eq!(get().await.generation, first.generation);
    assert_eq!(world.calls(PROBE), 1, "long after is not soon after");
    // It is dead: the client has it replaced by asking again.
    world.sim.foreign_refresh(APP, SimIssuer::Stable, true).unwrap();
    let healed = get().await;
    assert_ne!(healed.generation, first.generation);
    assert_eq!(world.state(&healed), sim::TokenState::Live);
    replica.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_suspicion_without_a_token_is_about_the_one_there_is() {
    let (world, replica, entry) = World::with_app(Backend::Memory, issuer()).await;
    let broker = &replica.broker;
    let key = add_key(broker, "k").await;
    let before = read(broker, &entry).await;
    broker.suspect(&entry, &key).await;
    assert_eq!((world.calls(PROBE), read(broker, &entry).await.generation), (1, before.generation));
    world.pass(secs(11)).await;
    world.sim.foreign_refresh(APP, SimIssuer::Stable, true).unwrap();
    broker.suspect(&entry, &key).await;
    assert_ne!(read(broker, &entry).await.generation, before.generation);
    replica.stop().await;
}

#[test]
fn whatever_is_altered_does_not_open() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .unwrap();
    let (world, broker, pass, web) = runtime.block_on(async {
        let world = World::new(Backend::Memory).await;
        let broker = world.idle().await;
        let entry = world.add_app(&broker, APP, issuer()).await;
        let key = add_key(&broker, "k").await;
        let pass = issue(&broker, &entry, &key);
        let web = broker.wrap_web_token(&entry, &key, &WebToken::new("the user's")).unwrap();
        (world, broker, pass, web)
    });
    let alphabet: Vec<char> =
        ('A'..='Z').chain('a'..='z').chain('0'..='9').chain(['-', '_']).collect();
    for text in [&pass, &web] {
        for at in 0..text.len() {
            for letter in [alphabet[at % 64], alphabet[(at * 7 + 13) % 64], '=', ' ', '.'] {
                let mut altered: Vec<char> = text.chars().collect();
                if altered[at] == letter {
                    continue;
                }
                altered[at] = letter;
                let altered: String = altered.into_iter().collect();
                assert!(broker.resolve_pass(&altered).is_err(), "{at} {letter}");
                assert!(broker.unwrap_web_token(&altered).is_err(), "{at} {letter}");
            }
            assert!(broker.resolve_pass(&text[..at]).is_err());
            assert!(broker.unwrap_web_token(&text[..at]).is_err());
        }
        for more in ["A", "=", "==", " ", "\n"] {
            assert!(broker.resolve_pass(&format!("{text}{more}")).is_err());
            assert!(broker.unwrap_web_token(&format!("{text}{more}")).is_err());
        }
    }
    proptest!(|(word in "(xt_|xw_|xr_)?[A-Za-z0-9_-]{0,400}")| {
        prop_assert!(broker.resolve_pass(&word).is_err());
        prop_assert!(broker.unwrap_web_token(&word).is_err());
        prop_assert!(broker.unwrap_refresh_token(&word).is_err());
    });
    drop(world);
}
