//! Apps, keys, sealing: what an operator does.

use std::sync::Arc;

use broker::{
    AppChange, Applied, Broker, ManageError, NewApp, OpenError, Parts, Rekeyed,
    app::Issuer,
    audit::Actor,
    key::{Apps, Permission, Rights},
    seal::{SealError, Sealer},
};
use tokio_util::task::TaskTracker;
use wechat::AppSecret;

use crate::harness::{APP, Backend, World, new_app, open_sqlite, read, secs};

fn operator() -> Actor {
    Actor::Operator("wang".to_owned())
}

#[tokio::test(start_paused = true)]
async fn apps_are_added_changed_and_removed_with_an_audit_entry_each() {
    let world = World::new(Backend::Sqlite).await;
    let broker = world.idle().await;
    let app = NewApp { alias: Some("shop".to_owned()), ..new_app(APP, Issuer::Stable) };
    broker.add_app(app.clone(), &operator()).await.unwrap();
    assert!(broker.app("shop").is_some());
    let again = broker.add_app(app, &operator()).await.unwrap_err();
    assert_eq!(again, ManageError::NameTaken(APP.to_owned()));
    let thief = NewApp { alias: Some("shop".to_owned()), ..new_app("wx2", Issuer::Stable) };
    let taken = broker.add_app(thief, &operator()).await.unwrap_err();
    assert_eq!(taken, ManageError::NameTaken("shop".to_owned()));
    let change =
        AppChange { alias: Some(None), issuer: Some(Issuer::Classic), ..AppChange::default() };
    broker.change_app("shop", change, &operator()).await.unwrap();
    assert!(broker.app("shop").is_none());
    assert_eq!(broker.app(APP).unwrap().app().issuer, Issuer::Classic);
    broker.remove_app(APP, &operator()).await.unwrap();
    assert!(broker.app(APP).is_none());
    let audit = broker.audit(10).await.unwrap();
    let actions: Vec<_> = audit.iter().map(|(_, entry)| entry.action.as_str()).collect();
    assert_eq!(actions, ["app.remove", "app.change", "app.add"]);
    assert!(audit.iter().all(|(_, entry)| entry.actor == operator() && entry.object == APP));
}

#[tokio::test(start_paused = true)]
async fn bad_names_and_secrets_are_refused_by_name() {
    let world = World::new(Backend::Memory).await;
    let broker = world.idle().await;
    let field = |err: ManageError| match err {
        ManageError::Invalid { field, .. } => field,
        other => panic!("{other}"),
    };
    for alias in ["", "a b", "店", "../x", APP] {
        let app = NewApp { alias: Some(alias.to_owned()), ..new_app(APP, Issuer::Stable) };
        assert_eq!(field(broker.add_app(app, &operator()).await.unwrap_err()), "alias", "{alias}");
    }
    for secret in ["", "with blank", "密", "line\n"] {
        let app = NewApp { secret: AppSecret::new(secret), ..new_app(APP, Issuer::Stable) };
        assert_eq!(field(broker.add_app(app, &operator()).await.unwrap_err()), "secret");
    }
    for name in ["", "tab\t", &"x".repeat(65)] {
        let made = broker.add_key(name, Rights::all(), None, &operator()).await;
        assert_eq!(field(made.unwrap_err()), "name");
    }
}

#[tokio::test(start_paused = true)]
async fn applying_a_list_twice_changes_nothing_the_second_time() {
    let world = World::new(Backend::Memory).await;
    let broker = world.idle().await;
    broker.add_app(new_app("wxold", Issuer::Stable), &operator()).await.unwrap();
    broker.add_app(new_app("wxkept", Issuer::Stable), &operator()).await.unwrap();
    let list = vec![
        NewApp { alias: Some("kept".to_owned()), ..new_app("wxkept", Issuer::Stable) },
        new_app("wxnew", Issuer::Classic),
    ];
    let applied = broker.apply_apps(list.clone(), true, &operator()).await.unwrap();
    assert_eq!(
        (&applied.added[..], &applied.changed[..], &applied.removed[..]),
        (&["wxnew".to_owned()][..], &["wxkept".to_owned()][..], &["wxold".to_owned()][..])
    );
    let again = broker.apply_apps(list, true, &operator()).await.unwrap();
    assert_eq!(again.unchanged.len(), 2);
    assert!(again.added.is_empty() && again.changed.is_empty() && again.removed.is_empty());
}

fn named(id: &str, alias: Option<&str>) -> NewApp {
    NewApp { alias: alias.map(str::to_owned), ..new_app(id, Issuer::Stable) }
}

#[tokio::test(start_paused = true)]
async fn aliases_move_and_swap_in_any_order() {
    let world = World::new(Backend::Sqlite).await;
    let broker = world.idle().await;
    let apply = async |list: &[(&str, Option<&str>)]| {
        let list = list.iter().map(|(id, alias)| named(id, *alias)).collect();
        broker.apply_apps(list, false, &operator()).await.unwrap()
    };
    let id = |name: &str| broker.app(name).map(|entry| entry.app().id.as_str().to_owned());
    apply(&[("wx1", Some("a")), ("wx2", Some("b")), ("wx3", Some("c"))]).await;
    // A ring; then one alias goes to a new app, and another becomes an appid.
    let done = apply(&[("wx1", Some("b")), ("wx2", Some("c")), ("wx3", Some("a"))]).await;
    assert_eq!(done.changed.len(), 3);
    assert_eq!(["a", "b", "c"].map(|name| id(name).unwrap()), ["wx3", "wx1", "wx2"]);
    let done = apply(&[("wx4", Some("b")), ("a", None), ("wx1", None), ("wx3", Some("d"))]).await;
    assert_eq!(done.added, ["wx4", "a"]);
    assert_eq!(done.changed, ["wx1", "wx3"]);
    assert_eq!(["a", "b", "c", "d"].map(|name| id(name).unwrap()), ["a", "wx4", "wx2", "wx3"]);
    let again = apply(&[("wx4", Some("b")), ("a", None), ("wx1", None), ("wx3", Some("d"))]).await;
    assert_eq!(again.unchanged.len(), 4);
}

#[tokio::test(start_paused = true)]
async fn a_list_that_is_wrong_anywhere_changes_nothing() {
    let world = World::new(Backend::Memory).await;
    let broker = world.idle().await;
    broker.add_app(named("wxold", Some("old")), &operator()).await.unwrap();
    broker.add_app(named("wx1", Some("one")), &operator()).await.unwrap();
    let blank = NewApp { secret: AppSecret::new("a b"), ..named("wx3", None) };
    let good = || named("wx2", Some("two"));
    for (last, prune, words) in [
        (named("wx3", Some("a b")), true, "apps[1] wx3: `alias` has 1 to 64"),
        (blank, true, "apps[1] wx3: `secret` has"),
        (named("wx2", None), true, "apps[1] wx2: `appid` `wx2` is a name of apps[0] wx2 too"),
        (named("wx3", Some("two")), true, "apps[1] wx3: `alias` `two` is a name of apps[0] wx2"),
        (named("wx3", Some("wx2")), true, "apps[1] wx3: `alias` `wx2` is a name of apps[0] wx2"),
        (named("two", None), true, "apps[1] two: `appid` `two` is a name of apps[0] wx2"),
        (named("wx3", Some("old")), false, "`old` is a name of app `wxold`, which stays"),
        (named("wx3", Some("wxold")), false, "`wxold` is a name of app `wxold`, which stays"),
        (named("old", None), false, "apps[1] old: `appid` `old` is a name of app `wxold`"),
    ] {
        let refused = broker.apply_apps(vec![good(), last], prune, &operator()).await.unwrap_err();
        assert!(refused.to_string().contains(words), "{refused}");
        assert!(matches!(refused.error, ManageError::Invalid { .. }), "{refused:?}");
        assert_eq!(refused.done, Applied::default());
        assert_eq!(broker.audit(10).await.unwrap().len(), 2, "{words}");
    }
    // What is pruned leaves its names.
    let list = vec![named("old", Some("wxold"))];
    let done = broker.apply_apps(list, true, &operator()).await.unwrap();
    assert_eq!((done.added.len(), done.removed.len()), (1, 2));
}

#[tokio::test(start_paused = true)]
async fn what_was_applied_before_the_store_failed_is_told() {
    let world = World::new(Backend::Memory).await;
    let dir = tempfile::TempDir::new().unwrap();
    let store = Arc::new(open_sqlite(dir.path(), &world.clock).await);
    let broker = world.broker_on(Arc::clone(&store) as _, store, TaskTracker::new()).await;
    broker.add_app(named("wx1", None), &operator()).await.unwrap();
    let refuses = "CREATE TRIGGER refuses BEFORE INSERT ON apps WHEN NEW.app = 'wx3'
                   BEGIN SELECT RAISE(ABORT, 'the disk is full'); END";
    let file = rusqlite::Connection::open(dir.path().join("xinfu.db")).unwrap();
    file.execute_batch(refuses).unwrap();

    let list = vec![named("wx1", Some("one")), named("wx2", None), named("wx3", None)];
    let failed = broker.apply_apps(list, true, &operator()).await.unwrap_err();
    assert!(failed.to_string().starts_with("apps[2] wx3: "), "{failed}");
    assert!(matches!(failed.error, ManageError::Store(_)), "{failed:?}");
    assert_eq!(failed.done.changed, ["wx1"]);
    assert_eq!(failed.done.added, ["wx2"]);
}

#[tokio::test(start_paused = true)]
async fn keys_reach_what_they_were_given_and_die_when_revoked_or_expired() {
    let world = World::new(Backend::Sqlite).await;
    let broker = world.idle().await;
    let app = NewApp { alias: Some("shop".to_owned()), ..new_app(APP, Issuer::Stable) };
    broker.add_app(app, &operator()).await.unwrap();
    broker.add_app(new_app("wxother", Issuer::Stable), &operator()).await.unwrap();
    let rights = Rights {
        permissions: [Permission::Token].into(),
        apps: Apps::Only(["shop".to_owned()].into()),
        paths: Vec::new(),
        reveal: false,
    };
    let unknown = Rights { apps: Apps::Only(["nobody".to_owned()].into()), ..rights.clone() };
    let refused = broker.add_key("x", unknown, None, &operator()).await.unwrap_err();
    assert_eq!(refused, ManageError::NoSuchApp("nobody".to_owned()));

    let until = world.clock.now() + secs(100);
    let new = broker.add_key("orders", rights, Some(until), &operator()).await.unwrap();
    let key = broker.authenticate(new.expose()).unwrap();
    assert!(key.may(Permission::Token) && !key.may(Permission::Users));
    assert!(key.reaches(&APP.parse().unwrap()) && !key.reaches(&"wxother".parse().unwrap()));
    assert!(broker.authenticate(&new.expose()[1..]).is_err());
    assert!(broker.authenticate("").is_err());
    world.pass(secs(100)).await;
    assert!(broker.authenticate(new.expose()).is_err(), "expired");

    let second = broker.add_key("orders", Rights::all(), None, &operator()).await.unwrap();
    let third = broker.add_key("orders", Rights::all(), None, &operator()).await.unwrap();
    let by_name = broker.revoke_key("orders", &operator()).await;
    assert!(matches!(by_name, Err(ManageError::Invalid { field: "key", .. })), "two have the name");
    broker.revoke_key(&third.id, &operator()).await.unwrap();
    assert!(broker.authenticate(second.expose()).is_ok());
    // Neither the revoked one nor the expired one is in the way any more.
    broker.revoke_key("orders", &operator()).await.unwrap();
    assert!(broker.authenticate(second.expose()).is_err());
    let twice = broker.revoke_key(&second.id, &operator()).await.unwrap_err();
    assert_eq!(twice, ManageError::NoSuchKey(second.id.clone()));
}

#[tokio::test(start_paused = true)]
async fn only_who_may_read_the_token_has_it_revealed() {
    let world = World::new(Backend::Memory).await;
    let broker = world.idle().await;
    let with = |permission| Rights {
        permissions: [permission].into(),
        apps: Apps::All,
        paths: Vec::new(),
        reveal: true,
    };
    let refused = broker.add_key("k", with(Permission::Proxy), None, &operator()).await;
    assert!(matches!(refused, Err(ManageError::Invalid { field: "reveal", .. })));
    let new = broker.add_key("k", with(Permission::Token), None, &operator()).await.unwrap();
    assert!(broker.authenticate(new.expose()).unwrap().rights.reveal);
    // Whoever has the token may call every path.
    let held_to_paths = Rights {
        permissions: [Permission::Token, Permission::Proxy].into(),
        paths: vec!["/cgi-bin/user/*".to_owned()],
        ..with(Permission::Token)
    };
    let refused = broker.add_key("k", held_to_paths, None, &operator()).await;
    assert!(matches!(refused, Err(ManageError::Invalid { field: "reveal", .. })));
}

#[tokio::test(start_paused = true)]
async fn the_paths_of_a_key_are_paths() {
    let world = World::new(Backend::Memory).await;
    let broker = world.idle().await;
    let with = |permission, path: &str| Rights {
        permissions: [permission].into(),
        apps: Apps::All,
        paths: vec!["/cgi-bin/menu/get".to_owned(), path.to_owned()],
        reveal: false,
    };
    for good in ["/cgi-bin/user/info", "/cgi-bin/user/*", "/*", "/a-b._~/c"] {
        let rights = with(Permission::Proxy, good);
        let new = broker.add_key("k", rights.clone(), None, &operator()).await.unwrap();
        assert_eq!(broker.authenticate(new.expose()).unwrap().rights, rights);
    }
    for bad in [
        "",
        "/",
        "*",
        "cgi-bin/user",
        "/a*",
        "/a/*/b",
        "/a//b",
        "/a/",
        "/a/../b",
        "/./a",
        "/a?x=1",
        "/a%20b",
        "/a b",
        "/a;b",
        "/a\\b",
        "/店",
    ] {
        let made = broker.add_key("k", with(Permission::Proxy, bad), None, &operator()).await;
        let refused = made.unwrap_err();
        assert!(matches!(refused, ManageError::Invalid { field: "paths", .. }), "{bad}");
    }
    let useless = with(Permission::Token, "/cgi-bin/user/info");
    let refused = broker.add_key("k", useless, None, &operator()).await.unwrap_err();
    assert!(refused.to_string().contains("the permission `proxy`"), "{refused}");
}

#[tokio::test(start_paused = true)]
async fn token_reads_are_audited_in_aggregate() {
    let (world, replica, entry) = World::with_app(Backend::Memory, Issuer::Stable).await;
    let new = replica.broker.add_key("k", Rights::all(), None, &operator()).await.unwrap();
    read(&replica.broker, &entry).await;
    let key = replica.broker.authenticate(new.expose()).unwrap();
    for _ in 0..25 {
        replica.broker.token(&entry, Some(&key), secs(0)).await.unwrap();
    }
    world.pass(secs(3601)).await;
    let audit = replica.broker.audit(1).await.unwrap();
    assert_eq!(audit[0].1.action, "token.read");
    assert_eq!(audit[0].1.detail, "25 times; 0 unfounded reports");
    assert_eq!(audit[0].1.actor, Actor::Key(new.id.clone()));
}

#[tokio::test(start_paused = true)]
async fn a_value_that_does_not_open_keeps_no_other_from_being_sealed_anew() {
    let world = World::new(Backend::Sqlite).await;
    let broker = world.idle().await;
    world.add_app(&broker, APP, Issuer::Stable).await;
    broker.add_app(new_app("wxaltered", Issuer::Stable), &operator()).await.unwrap();
    let alter = "UPDATE apps SET secret = zeroblob(64) WHERE app = 'wxaltered'";
    rusqlite::Connection::open(world.database()).unwrap().execute_batch(alter).unwrap();
    let both = open_with(&world, two_keys("k2")).await.unwrap();
    let Rekeyed { resealed, left } = both.rekey(&operator()).await.unwrap();
    assert!(resealed >= 2, "{resealed}");
    assert!(left.len() == 1 && left[0].contains("app-secret/wxaltered"), "{left:?}");
}

fn two_keys(seal_with: &str) -> Sealer {
    Sealer::new([("k1".to_owned(), [7; 32]), ("k2".to_owned(), [8; 32])], seal_with).unwrap()
}

async fn open_with(world: &World, sealer: Sealer) -> Result<Broker, OpenError> {
    let (store, shared) = world.stores().await;
    let parts = Parts {
        store,
        shared,
        wechat: world.wechat.clone(),
        clock: world.clock.clone(),
        sealer,
        tasks: TaskTracker::new(),
        bounds: broker::Bounds::default(),
    };
    Broker::open(parts).await
}

#[tokio::test(start_paused = true)]
async fn master_keys_are_changed_while_a_server_serves() {
    let (world, replica, entry) = World::with_app(Backend::Sqlite, Issuer::Stable).await;
    let before = read(&replica.broker, &entry).await;
    replica.stop().await;

    let both = open_with(&world, two_keys("k2")).await.unwrap();
    let entry = both.app(APP).unwrap();
    let Rekeyed { resealed, left } = both.rekey(&operator()).await.unwrap();
    assert!(resealed >= 3 && left.is_empty(), "secret, token, own secret: {resealed}");
    assert_eq!(both.rekey(&operator()).await.unwrap().resealed, 0);
    assert_eq!(both.sealing_keys().await.unwrap(), ["k2"]);
    assert_eq!(read(&both, &entry).await.token, before.token);

    let only_new = Sealer::new([("k2".to_owned(), [8; 32])], "k2").unwrap();
    let reopened = open_with(&world, only_new).await.unwrap();
    let entry = reopened.app(APP).unwrap();
    assert_eq!(read(&reopened, &entry).await.token, before.token);
    let healed = reopened.report(&entry, None, &before.token, 40001).await.unwrap();
    assert_eq!(healed.token, before.token, "hashes survive a change of master keys");

    let only_old = Sealer::new([("k1".to_owned(), [7; 32])], "k1").unwrap();
    let refused = open_with(&world, only_old).await.unwrap_err();
    assert_eq!(refused, OpenError::Seal(SealError::UnknownKey("k2".to_owned())));
    let impostor = Sealer::new([("k2".to_owned(), [9; 32])], "k2").unwrap();
    assert!(open_with(&world, impostor).await.is_err(), "another key under the same id");
}
