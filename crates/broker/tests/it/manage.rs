//! Apps, keys, sealing: what an operator does.

use broker::{
    AppChange, Broker, ManageError, NewApp, OpenError, Parts,
    app::Issuer,
    audit::Actor,
    key::{Apps, Permission, Rights},
    seal::{SealError, Sealer},
};
use tokio_util::task::TaskTracker;
use wechat::AppSecret;

use crate::harness::{APP, Backend, World, new_app, read, secs};

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
    };
    let unknown = Rights { apps: Apps::Only(["nobody".to_owned()].into()), ..rights.clone() };
    let refused = broker.add_key("x", unknown, None, &operator()).await.unwrap_err();
    assert_eq!(refused, ManageError::NoSuchApp("nobody".to_owned()));

    let until = world.clock.now() + secs(100);
    let new = broker.add_key("orders", rights, Some(until), &operator()).await.unwrap();
    let key = broker.authenticate(new.expose()).unwrap();
    assert!(key.may(Permission::Token) && !key.may(Permission::Users));
    assert!(key.reaches(&APP.parse().unwrap()) && !key.reaches(&"wxother".parse().unwrap()));
    assert!(broker.authenticate(&new.expose()[1..]).is_none());
    assert!(broker.authenticate("").is_none());
    world.pass(secs(100)).await;
    assert!(broker.authenticate(new.expose()).is_none(), "expired");

    let second = broker.add_key("orders", Rights::all(), None, &operator()).await.unwrap();
    let by_name = broker.revoke_key("orders", &operator()).await;
    assert!(matches!(by_name, Err(ManageError::Invalid { field: "key", .. })), "two have the name");
    broker.revoke_key(&second.id, &operator()).await.unwrap();
    assert!(broker.authenticate(second.expose()).is_none());
    let twice = broker.revoke_key(&second.id, &operator()).await.unwrap_err();
    assert_eq!(twice, ManageError::NoSuchKey(second.id.clone()));
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
    let resealed = both.rekey(&operator()).await.unwrap();
    assert!(resealed >= 3, "secret, token, own secret: {resealed}");
    assert_eq!(both.rekey(&operator()).await.unwrap(), 0);
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
