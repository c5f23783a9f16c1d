//! The conformance suite: what every backend has to do alike, one function for each topic.
//!
//! A backend hands in how an empty store of its kind is made and how its clock is moved. A store
//! may come as several handles, which stand for several processes: the suite uses them in turn.

mod changes;
mod logins;
mod shared;

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use clock::Timestamp;
use futures_util::future::join_all;
use wechat::AppId;

use super::{
    Acquired, AppRow, Change, Changes, CredentialRow, KeyRow, Lease, PassKeyRow, Place, Shared,
    Store,
};
use crate::{
    app::{AppKind, Issuer},
    audit::{Actor, AuditEntry},
    credential::{CredentialId, CredentialKind, Trouble},
    ledger::{Budget, Spending, beijing_day},
    seal::Sealed,
};

/// Noon in Beijing, 2026-01-01: where the clocks of the tests start.
pub(super) const START: Timestamp = Timestamp::from_secs(1_767_240_000);

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(86_400);

/// One store through all its handles.
pub(super) struct Handles {
    stores: Vec<Arc<dyn Store>>,
    shared: Vec<Arc<dyn Shared>>,
    turn: AtomicUsize,
}

impl Handles {
    pub(super) fn of<S: Store + Shared + Clone + 'static>(handles: &[S]) -> Self {
        Self::apart(handles, handles)
    }

    /// Stores whose wake-ups come from elsewhere.
    pub(super) fn apart<S, T>(stores: &[S], shared: &[T]) -> Self
    where
        S: Store + Clone + 'static,
        T: Shared + Clone + 'static,
    {
        Self {
            stores: stores.iter().map(|it| Arc::new(it.clone()) as Arc<dyn Store>).collect(),
            shared: shared.iter().map(|it| Arc::new(it.clone()) as Arc<dyn Shared>).collect(),
            turn: AtomicUsize::new(0),
        }
    }

    /// The next handle.
    fn store(&self) -> &dyn Store {
        self.stores[self.turn.fetch_add(1, Ordering::Relaxed) % self.stores.len()].as_ref()
    }

    /// The next handle.
    fn shared(&self) -> &dyn Shared {
        self.shared[self.turn.fetch_add(1, Ordering::Relaxed) % self.shared.len()].as_ref()
    }

    async fn now(&self) -> Timestamp {
        self.store().now().await.unwrap()
    }

    /// Registers an app.
    async fn add_app(&self, name: &str) -> AppId {
        let row = app_row(name, 1);
        assert!(self.store().put_app(&row, &audit("app.add", name)).await.unwrap());
        row.app
    }

    async fn trouble(&self, id: &CredentialId) -> Option<Trouble> {
        let trouble = self.store().find_trouble(id).await.unwrap();
        let listed = self.store().list_troubles().await.unwrap();
        let listed = listed.into_iter().find(|(of, _)| of == id).map(|(_, trouble)| trouble);
        assert_eq!(trouble, listed);
        trouble
    }

    async fn changes(&self, after: u64) -> Changes {
        self.store().changes(after).await.unwrap()
    }

    async fn audit_len(&self) -> usize {
        self.store().list_audit(None, usize::MAX).await.unwrap().len()
    }
}

/// Puts a backend through the whole suite.
pub(super) async fn run(fresh: impl AsyncFn() -> Handles, fast_forward: impl AsyncFn(Duration)) {
    apps(&fresh().await).await;
    keys(&fresh().await, &fast_forward).await;
    credentials(&fresh().await).await;
    expiry_and_death(&fresh().await).await;
    use_and_disuse(&fresh().await).await;
    generations(&fresh().await, &fast_forward).await;
    troubles(&fresh().await).await;
    removal(&fresh().await).await;
    budgets(&fresh().await, &fast_forward).await;
    own_secrets(&fresh().await).await;
    pass_keys(&fresh().await).await;
    sealing(&fresh().await).await;
    audit_log(&fresh().await).await;
    changes::of_apps_and_keys(&fresh().await).await;
    changes::of_credentials(&fresh().await).await;
    logins::claims(&fresh().await, &fast_forward).await;
    logins::grants(&fresh().await).await;
    logins::lists_of_grants(&fresh().await).await;
    logins::sessions(&fresh().await, &fast_forward).await;
    logins::forgetting_a_user(&fresh().await).await;
    logins::forgetting_the_past(&fresh().await, &fast_forward).await;
    logins::sealing(&fresh().await).await;
    shared::leases(&fresh().await, &fast_forward).await;
    shared::wakes(&fresh().await).await;
}

/// Puts what replicas share through its part of the suite, where it is no store.
pub(super) async fn shared_alone(h: &Handles, fast_forward: &impl AsyncFn(Duration)) {
    shared::leases(h, fast_forward).await;
}

pub(super) fn app_row(name: &str, revision: u64) -> AppRow {
    AppRow {
        app: name.parse().unwrap(),
        alias: None,
        kind: AppKind::MiniProgram,
        issuer: Issuer::Stable,
        secret: sealed("k1", name),
        revision,
        created_at: START,
        updated_at: START + Duration::from_secs(revision),
    }
}

pub(super) fn sealed(key: &str, text: &str) -> Sealed {
    Sealed { key: key.to_owned(), bytes: text.as_bytes().to_vec() }
}

pub(super) fn audit(action: &str, object: &str) -> AuditEntry {
    AuditEntry {
        at: START,
        actor: Actor::Operator("ann".to_owned()),
        action: action.to_owned(),
        object: object.to_owned(),
        detail: "by hand, «quoted»".to_owned(),
    }
}

pub(super) fn token(app: &AppId) -> CredentialId {
    CredentialId { app: app.clone(), kind: CredentialKind::Token }
}

fn ticket(app: &AppId) -> CredentialId {
    CredentialId { app: app.clone(), kind: CredentialKind::JsapiTicket }
}

/// A row of a life of two hours that began at [`START`].
pub(super) fn credential_row(id: &CredentialId, generation: u64) -> CredentialRow {
    CredentialRow {
        id: id.clone(),
        generation,
        value: sealed("k1", &format!("{id}/{generation}")),
        hash: [generation as u8; 32],
        sent: START,
        answered: START + Duration::from_millis(150),
        expires_at: START + HOUR * 2,
        refresh_at: START + HOUR,
        dead: false,
        used_at: START,
    }
}

pub(super) fn key_row(id: &str, byte: u8) -> KeyRow {
    KeyRow {
        id: id.to_owned(),
        name: format!("key {byte}"),
        hash: [byte; 32],
        rights: r#"{"permissions":["token"],"apps":"all","paths":[]}"#.to_owned(),
        created_at: START,
        expires_at: Some(START + DAY),
        revoked_at: None,
    }
}

/// Puts a row over the generation just before its own.
pub(super) async fn put_next(store: &dyn Store, row: &CredentialRow) -> super::StoreResult<bool> {
    store.put_credential(row, row.generation.saturating_sub(1)).await
}

pub(super) fn a_trouble() -> Trouble {
    Trouble {
        errcode: Some(40164),
        errmsg: Some("invalid ip".to_owned()),
        reason: "this IP is not allowed".to_owned(),
        rid: Some("rid-1".to_owned()),
        action: Some("put 192.0.2.1 on the list".to_owned()),
        since: START,
        last: START + MINUTE,
        failures: 3,
        retry_at: Some(START + MINUTE * 5),
        only_here: false,
    }
}

/// How many of the answers are `true`.
fn wins<E: std::fmt::Debug>(answers: Vec<Result<bool, E>>) -> usize {
    answers.into_iter().filter(|answer| *answer.as_ref().unwrap()).count()
}

async fn apps(h: &Handles) {
    assert_eq!(h.store().list_apps().await.unwrap(), []);
    let wx1: AppId = "wx1".parse().unwrap();
    assert_eq!(h.store().find_app(&wx1).await.unwrap(), None);
    let put = async |row: &AppRow| h.store().put_app(row, &audit("app.put", "x")).await.unwrap();

    // Only revision 1 of an app that is not there adds it.
    assert!(!put(&app_row("wx1", 2)).await);
    assert!(!put(&app_row("wx1", 0)).await);
    assert_eq!(h.audit_len().await, 0, "what was not written is not audited");
    let first = AppRow { alias: Some("shop".to_owned()), ..app_row("wx1", 1) };
    assert!(put(&first).await);
    assert_eq!(h.store().find_app(&wx1).await.unwrap(), Some(first.clone()));
    assert!(!put(&first).await, "it is there already");
    assert_eq!(h.audit_len().await, 1);

    // Only the next revision replaces it.
    assert!(!put(&AppRow { revision: 3, ..first.clone() }).await);
    let second = AppRow {
        alias: Some("store".to_owned()),
        kind: AppKind::Official,
        issuer: Issuer::Classic,
        secret: sealed("k2", "another"),
        revision: 2,
        created_at: first.created_at,
        ..app_row("wx1", 2)
    };
    assert!(put(&second).await);
    assert_eq!(h.store().find_app(&wx1).await.unwrap(), Some(second.clone()));
    assert!(!put(&second).await);
    assert!(put(&AppRow { revision: 3, ..second.clone() }).await, "its own alias is not taken");

    // A name is unique over appids and aliases.
    let named = |alias: &str| AppRow { alias: Some(alias.to_owned()), ..app_row("wx0", 1) };
    assert!(!put(&named("store")).await, "an alias of another app");
    assert!(!put(&named("wx1")).await, "the appid of another app");
    assert!(!put(&app_row("store", 1)).await, "an appid that is an alias");
    assert!(put(&named("shop")).await, "the old alias is free again");
    assert!(!put(&AppRow { revision: 2, ..named("wx1") }).await, "also when replacing");
    let ids: Vec<_> = h.store().list_apps().await.unwrap().into_iter().map(|row| row.app).collect();
    assert_eq!(ids, ["wx0".parse().unwrap(), wx1], "by appid");
    assert_eq!(h.audit_len().await, 4);

    // One of many wins.
    let row = app_row("wx9", 1);
    let answers =
        join_all((0..8).map(|_| async { h.store().put_app(&row, &audit("app.put", "wx9")).await }));
    assert_eq!(wins(answers.await), 1);
    assert_eq!(h.audit_len().await, 5);
}

async fn keys(h: &Handles, fast_forward: &impl AsyncFn(Duration)) {
    let add = async |row: &KeyRow| h.store().add_key(row, &audit("key.add", "x")).await.unwrap();
    let revoke = async |id: &str| h.store().revoke_key(id, &audit("key.revoke", id)).await.unwrap();
    assert_eq!(h.store().list_keys().await.unwrap(), []);

    let late = KeyRow { created_at: START + HOUR, expires_at: None, ..key_row("key_a", 1) };
    let (one, other) = (key_row("key_c", 2), key_row("key_b", 3));
    for row in [&late, &one, &other] {
        assert!(add(row).await);
    }
    assert!(!add(&key_row("key_a", 9)).await, "the id is taken");
    assert!(!add(&key_row("key_z", 2)).await, "the hash is taken");
    let listed = h.store().list_keys().await.unwrap();
    assert_eq!(listed, [one.clone(), other, late], "oldest first");
    assert_eq!(h.audit_len().await, 3);

    fast_forward(HOUR).await;
    let now = h.now().await;
    let answers = join_all(
        (0..4)
            .map(|_| async { h.store().revoke_key("key_c", &audit("key.revoke", "key_c")).await }),
    );
    assert_eq!(wins(answers.await), 1);
    assert!(!revoke("key_c").await, "it is revoked already");
    assert!(!revoke("key_0").await, "there is none");
    assert_eq!(h.audit_len().await, 4);
    let listed = h.store().list_keys().await.unwrap();
    let revoked = listed[0].revoked_at.unwrap();
    assert!(revoked >= now && revoked <= h.now().await);
    assert_eq!(listed[0], KeyRow { revoked_at: Some(revoked), ..one });
    assert_eq!(listed[1].revoked_at, None);
    assert!(!add(&key_row("key_c", 2)).await, "a revoked key is not added again");
}

async fn credentials(h: &Handles) {
    let app = h.add_app("wx1").await;
    let id = token(&app);
    let put = async |row: &CredentialRow| put_next(h.store(), row).await.unwrap();
    assert_eq!(h.store().find_credential(&id).await.unwrap(), None);
    assert_eq!(h.store().list_credentials().await.unwrap(), []);

    assert!(!put(&credential_row(&id, 0)).await);
    assert!(!put(&credential_row(&id, 2)).await, "there is no generation 1");
    let first = credential_row(&id, 1);
    assert!(put(&first).await);
    assert!(!put(&first).await);
    assert_eq!(h.store().find_credential(&id).await.unwrap(), Some(first));

    // Every column comes back as it was put, and the one before is replaced as a whole.
    assert!(h.store().mark_dead(&id, 1).await.unwrap());
    let second = CredentialRow {
        value: sealed("k2", "another"),
        sent: START + MINUTE,
        answered: START + MINUTE * 2,
        expires_at: START + HOUR * 3,
        refresh_at: START + HOUR * 2,
        used_at: START + HOUR,
        ..credential_row(&id, 2)
    };
    assert!(put(&second).await);
    assert_eq!(h.store().find_credential(&id).await.unwrap(), Some(second.clone()));
    assert!(!put(&CredentialRow { generation: 4, ..second.clone() }).await);
    assert!(!put(&CredentialRow { generation: 1, ..second.clone() }).await);

    // Somebody may have asked for it meanwhile.
    let dead = CredentialRow { dead: true, used_at: START, ..credential_row(&id, 3) };
    assert!(put(&dead).await);
    let stored = h.store().find_credential(&id).await.unwrap().unwrap();
    assert_eq!(stored, CredentialRow { used_at: START + HOUR, ..dead });

    // Kinds and apps are apart.
    let other = h.add_app("wx2").await;
    let rows = [credential_row(&ticket(&app), 1), credential_row(&token(&other), 1)];
    for row in &rows {
        assert!(put(row).await);
    }
    let mut listed = h.store().list_credentials().await.unwrap();
    listed.sort_by(|a, b| a.id.cmp(&b.id));
    let [first, second] = rows;
    assert_eq!(listed, [stored, first, second]);

    // Generations may be left out, when a process went on without the store.
    let far = credential_row(&ticket(&app), 5);
    assert!(!h.store().put_credential(&far, 2).await.unwrap());
    assert!(!h.store().put_credential(&credential_row(&ticket(&app), 1), 1).await.unwrap());
    assert!(h.store().put_credential(&far, 1).await.unwrap());

    // Two who put the same generation: the row is that of the one who was told so.
    let one = CredentialRow { value: sealed("k1", "one"), ..credential_row(&id, 4) };
    let two = CredentialRow { value: sealed("k1", "two"), ..credential_row(&id, 4) };
    let (first, second) = tokio::join!(put_next(h.store(), &one), put_next(h.store(), &two));
    assert_ne!(first.clone().unwrap(), second.unwrap());
    let winner = if first.unwrap() { one } else { two };
    assert_eq!(h.store().find_credential(&id).await.unwrap().unwrap().value, winner.value);

    assert!(!put(&credential_row(&token(&"wx9".parse().unwrap()), 1)).await, "not registered");
}

async fn expiry_and_death(h: &Handles) {
    let app = h.add_app("wx1").await;
    let id = token(&app);
    let (expires_at, refresh_at) = (START + HOUR * 5, START + HOUR * 4);
    let set_expiry =
        async |generation| h.store().set_expiry(&id, generation, expires_at, refresh_at).await;
    assert!(!set_expiry(1).await.unwrap(), "there is none");
    assert!(!h.store().mark_dead(&id, 1).await.unwrap(), "there is none");

    assert!(put_next(h.store(), &credential_row(&id, 1)).await.unwrap());
    assert!(put_next(h.store(), &credential_row(&id, 2)).await.unwrap());
    h.store().set_trouble(&id, 1, Some(&a_trouble())).await.unwrap();
    for generation in [1, 3] {
        assert!(!set_expiry(generation).await.unwrap());
        assert!(!h.store().mark_dead(&id, generation).await.unwrap());
    }
    let untouched = h.store().find_credential(&id).await.unwrap();
    assert_eq!(untouched, Some(credential_row(&id, 2)));
    assert_eq!(h.trouble(&id).await, Some(a_trouble()));

    assert!(set_expiry(2).await.unwrap());
    let expected = CredentialRow { expires_at, refresh_at, ..credential_row(&id, 2) };
    assert_eq!(h.store().find_credential(&id).await.unwrap(), Some(expected.clone()));
    assert_eq!(h.trouble(&id).await, None);

    let answers = join_all((0..4).map(|_| async { h.store().mark_dead(&id, 2).await }));
    assert_eq!(wins(answers.await), 1, "it is dead already");
    let dead = CredentialRow { dead: true, ..expected };
    assert_eq!(h.store().find_credential(&id).await.unwrap(), Some(dead));
}

async fn use_and_disuse(h: &Handles) {
    let app = h.add_app("wx1").await;
    let id = ticket(&app);
    let used_at = async || h.store().find_credential(&id).await.unwrap().map(|row| row.used_at);
    h.store().set_used(&id, START).await.unwrap();
    assert_eq!(used_at().await, None, "nothing to record it in");
    assert!(!h.store().drop_unused(&id, START).await.unwrap(), "nothing to drop");

    assert!(put_next(h.store(), &credential_row(&id, 1)).await.unwrap());
    assert!(put_next(h.store(), &credential_row(&id, 2)).await.unwrap());
    h.store().set_used(&id, START + HOUR).await.unwrap();
    assert_eq!(used_at().await, Some(START + HOUR));
    h.store().set_used(&id, START + MINUTE).await.unwrap();
    assert_eq!(used_at().await, Some(START + HOUR), "it never goes back");
    let minutes = 61..90;
    join_all(minutes.map(|minute| async move {
        h.store()
            .set_used(&ticket(&"wx1".parse().unwrap()), START + MINUTE * minute)
            .await
            .unwrap();
    }))
    .await;
    assert_eq!(used_at().await, Some(START + MINUTE * 89));

    h.store().set_trouble(&id, 1, Some(&a_trouble())).await.unwrap();
    assert!(put_next(h.store(), &credential_row(&token(&app), 1)).await.unwrap());
    let before = START + MINUTE * 89 - Duration::from_millis(1);
    assert!(!h.store().drop_unused(&id, before).await.unwrap(), "somebody has asked");
    assert_eq!(used_at().await, Some(START + MINUTE * 89));
    assert!(h.store().drop_unused(&id, START + MINUTE * 89).await.unwrap());
    assert_eq!(used_at().await, None);
    assert_eq!(h.trouble(&id).await, None);
    assert_eq!(h.store().find_generation(&id, &[1; 32]).await.unwrap(), None);
    assert!(h.store().find_credential(&token(&app)).await.unwrap().is_some(), "only that one");
    assert!(put_next(h.store(), &credential_row(&id, 1)).await.unwrap(), "it starts anew");
}

async fn generations(h: &Handles, fast_forward: &impl AsyncFn(Duration)) {
    let app = h.add_app("wx1").await;
    let id = token(&app);
    let start = h.now().await;
    let row = |generation: u64, hash: u8, life: Duration| CredentialRow {
        hash: [hash; 32],
        expires_at: start + life,
        ..credential_row(&id, generation)
    };
    let find = async |hash: u8| h.store().find_generation(&id, &[hash; 32]).await.unwrap();
    assert_eq!(find(1).await, None);
    assert!(put_next(h.store(), &row(1, 1, HOUR * 2)).await.unwrap());
    assert_eq!(find(1).await, Some(1), "the current one");
    assert!(put_next(h.store(), &row(2, 2, HOUR * 3)).await.unwrap());
    assert!(put_next(h.store(), &row(3, 3, HOUR * 4)).await.unwrap());
    assert_eq!((find(1).await, find(2).await, find(3).await), (Some(1), Some(2), Some(3)));
    assert_eq!(find(9).await, None, "unknown");
    assert_eq!(h.store().find_generation(&ticket(&app), &[1; 32]).await.unwrap(), None);

    // The same value again counts as the newest that had it.
    assert!(put_next(h.store(), &row(4, 2, HOUR * 4)).await.unwrap());
    assert_eq!(find(2).await, Some(4));

    // A life ends as it was stated, at its last instant.
    fast_forward(HOUR * 2 - Duration::from_millis(1)).await;
    assert_eq!(find(1).await, Some(1));
    fast_forward(Duration::from_millis(1)).await;
    assert_eq!(find(1).await, None);
    assert_eq!(find(3).await, Some(3));

    // A life that is stated longer later lasts longer; one that is cut short is still remembered
    // by those who were told of the longer one.
    assert!(h.store().set_expiry(&id, 4, start + HOUR * 6, start).await.unwrap());
    assert!(h.store().set_expiry(&id, 4, start + HOUR, start).await.unwrap());
    assert!(put_next(h.store(), &row(5, 5, HOUR * 3)).await.unwrap());
    fast_forward(HOUR * 3).await;
    assert_eq!((find(2).await, find(3).await), (Some(4), None));
    assert_eq!(find(5).await, None, "the current one has expired too");
    fast_forward(HOUR).await;
    assert_eq!(find(2).await, None);
    assert!(put_next(h.store(), &row(6, 6, HOUR * 8)).await.unwrap());
    assert_eq!((find(2).await, find(6).await), (None, Some(6)));
}

async fn troubles(h: &Handles) {
    let app = h.add_app("wx1").await;
    let (id, stranger) = (token(&app), token(&"wx9".parse().unwrap()));
    let set = async |id: &CredentialId, trouble: Option<&Trouble>| {
        h.store().set_trouble(id, 1, trouble).await.unwrap();
    };
    assert_eq!(h.store().list_troubles().await.unwrap(), []);
    set(&id, None).await;
    assert_eq!(h.trouble(&id).await, None);

    set(&id, Some(&a_trouble())).await;
    assert_eq!(h.trouble(&id).await, Some(a_trouble()), "there need be no row");
    let bare = Trouble { errcode: None, rid: None, action: None, retry_at: None, ..a_trouble() };
    set(&id, Some(&bare)).await;
    assert_eq!(h.trouble(&id).await, Some(bare));
    assert_eq!(h.trouble(&ticket(&app)).await, None);
    set(&stranger, Some(&a_trouble())).await;
    assert_eq!(h.trouble(&stranger).await, None, "not registered");
    set(&stranger, None).await;

    // What was found wrong with the app as it was says nothing of the app as it is.
    assert!(!h.store().set_trouble(&id, 2, Some(&a_trouble())).await.unwrap());
    assert!(h.store().set_trouble(&id, 1, Some(&a_trouble())).await.unwrap());
    let changed = app_row("wx1", 2);
    assert!(h.store().put_app(&changed, &audit("app.change", "wx1")).await.unwrap());
    assert_eq!(h.trouble(&id).await, None, "a change may have mended it");
    assert!(!h.store().set_trouble(&id, 1, Some(&a_trouble())).await.unwrap());
    assert_eq!(h.trouble(&id).await, None);

    let set = async |id: &CredentialId, trouble: Option<&Trouble>| {
        h.store().set_trouble(id, 2, trouble).await.unwrap();
    };
    set(&id, None).await;
    assert_eq!(h.trouble(&id).await, None);
    set(&id, Some(&a_trouble())).await;
    assert!(!put_next(h.store(), &credential_row(&id, 2)).await.unwrap());
    assert_eq!(h.trouble(&id).await, Some(a_trouble()), "what was refused clears nothing");
    assert!(put_next(h.store(), &credential_row(&id, 1)).await.unwrap());
    assert_eq!(h.trouble(&id).await, None);
}

async fn removal(h: &Handles) {
    let (app, other) = (h.add_app("wx1").await, h.add_app("wx2").await);
    let budget = Budget { per_day: 5, burst: 5, every: Duration::from_secs(1) };
    for app in [&app, &other] {
        assert!(put_next(h.store(), &credential_row(&token(app), 1)).await.unwrap());
        h.store().set_trouble(&ticket(app), 1, Some(&a_trouble())).await.unwrap();
        h.store().spend(app, "token", &budget).await.unwrap();
    }
    let unknown: AppId = "wx9".parse().unwrap();
    let remove = async |app| h.store().remove_app(app, &audit("app.remove", "x")).await.unwrap();
    assert!(!remove(&unknown).await, "there is none");
    assert_eq!(h.audit_len().await, 2);
    let ledger = h.store().ledger(&app).await.unwrap();
    assert!(remove(&app).await);
    assert!(!remove(&app).await);
    assert_eq!(h.audit_len().await, 3);

    // The app is gone with what belongs to it, and nothing else is.
    assert_eq!(h.store().find_app(&app).await.unwrap(), None);
    assert_eq!(h.store().find_credential(&token(&app)).await.unwrap(), None);
    assert_eq!(h.store().find_generation(&token(&app), &[1; 32]).await.unwrap(), None);
    assert_eq!(h.trouble(&ticket(&app)).await, None);
    assert_eq!(h.store().ledger(&app).await.unwrap(), ledger, "but the ledger stays");
    assert_eq!(ledger.len(), 1);
    assert!(h.store().find_app(&other).await.unwrap().is_some());
    assert!(h.store().find_credential(&token(&other)).await.unwrap().is_some());
    assert_eq!(h.store().find_generation(&token(&other), &[1; 32]).await.unwrap(), Some(1));
    assert_eq!(h.trouble(&ticket(&other)).await, Some(a_trouble()));

    // One that comes back starts anew, with what is left of its quota.
    assert!(!put_next(h.store(), &credential_row(&token(&app), 2)).await.unwrap());
    h.add_app("wx1").await;
    assert_eq!(h.store().find_credential(&token(&app)).await.unwrap(), None);
    assert_eq!(h.store().find_generation(&token(&app), &[1; 32]).await.unwrap(), None);
    let spending = h.store().spend(&app, "token", &budget).await.unwrap();
    assert_eq!(spending, Spending::Granted { used: 2 });

    // A put that meets a removal leaves nothing behind.
    let (row, entry) = (credential_row(&token(&app), 1), audit("app.remove", "wx1"));
    let (put, removed) =
        tokio::join!(put_next(h.store(), &row), h.store().remove_app(&app, &entry));
    put.unwrap();
    assert!(removed.unwrap());
    assert_eq!(h.store().find_credential(&token(&app)).await.unwrap(), None);
}

async fn budgets(h: &Handles, fast_forward: &impl AsyncFn(Duration)) {
    let app: AppId = "wx1".parse().unwrap();
    let granted = async |api: &str, budget: Budget| {
        let app = &app;
        let answers =
            join_all((0..100).map(|_| async move { h.store().spend(app, api, &budget).await }));
        let mut used: Vec<_> = answers
            .await
            .into_iter()
            .filter_map(|answer| match answer.unwrap() {
                Spending::Granted { used } => Some(used),
                Spending::Refused { .. } => None,
            })
            .collect();
        used.sort_unstable();
        used
    };
    assert_eq!(h.store().ledger(&app).await.unwrap(), []);

    // A hundred at once get no more than a day's budget, or a burst.
    let a_day = Budget { per_day: 40, burst: 100, every: Duration::from_secs(1) };
    assert_eq!(granted("token", a_day).await, Vec::from_iter(1..=40));
    let a_burst = Budget { per_day: 1000, burst: 7, every: HOUR };
    assert_eq!(granted("ticket", a_burst).await, Vec::from_iter(1..=7));
    let refused = h.store().spend(&app, "token", &a_day).await.unwrap();
    assert!(matches!(refused, Spending::Refused { day: true, .. }));
    let refused = h.store().spend(&app, "ticket", &a_burst).await.unwrap();
    let retry_at = h.now().await + HOUR;
    assert_eq!(refused, Spending::Refused { retry_at, day: false });

    let today = beijing_day(h.now().await);
    let rows = h.store().ledger(&app).await.unwrap();
    let seen = rows.iter().map(|row| (row.day, row.api.as_str(), row.used)).collect::<Vec<_>>();
    assert_eq!(seen, [(today, "ticket", 7), (today, "token", 40)]);
    assert_eq!(rows[0].rested_at, h.now().await + HOUR * 7);
    let other: AppId = "wx2".parse().unwrap();
    assert_eq!(h.store().ledger(&other).await.unwrap(), [], "apps are apart");

    // The burst comes back one by one, also over midnight; the day's budget with the day.
    fast_forward(HOUR).await;
    assert_eq!(granted("ticket", a_burst).await, [8]);
    fast_forward(DAY - HOUR).await;
    assert_eq!(granted("token", a_day).await, Vec::from_iter(1..=40));
    assert_eq!(granted("ticket", a_burst).await, Vec::from_iter(1..=7));
    let rows = h.store().ledger(&app).await.unwrap();
    let seen = rows.iter().map(|row| (row.day - today, row.used)).collect::<Vec<_>>();
    assert_eq!(seen, [(1, 7), (1, 40), (0, 8), (0, 40)], "newest day first");

    // It reaches 62 days back, also when nothing was spent since.
    fast_forward(DAY * 61).await;
    assert_eq!(h.store().ledger(&app).await.unwrap().len(), 4);
    fast_forward(DAY).await;
    assert_eq!(h.store().ledger(&app).await.unwrap().len(), 2);
    assert_eq!(granted("token", a_day).await.len(), 40);
    assert_eq!(h.store().ledger(&app).await.unwrap().len(), 3);
    fast_forward(DAY).await;
    assert_eq!(h.store().ledger(&app).await.unwrap().len(), 1);
}

async fn own_secrets(h: &Handles) {
    let own = async |name: &str, fresh: &str| {
        h.store().own_secret(name, &sealed("k1", fresh)).await.unwrap()
    };
    assert_eq!(own("hash", "first").await, sealed("k1", "first"));
    assert_eq!(own("hash", "second").await, sealed("k1", "first"));
    assert_eq!(own("other", "second").await, sealed("k1", "second"));
    let fresh: Vec<_> = (0..10).map(|at| format!("fresh {at}")).collect();
    let answers = join_all(fresh.iter().map(|fresh| own("race", fresh))).await;
    assert!(answers.iter().all(|answer| *answer == answers[0]), "all get the same answer");
    assert_eq!(own("race", "late").await, answers[0]);
}

async fn pass_keys(h: &Handles) {
    let row = |id: &str, at: u64| PassKeyRow {
        id: id.to_owned(),
        key: sealed("k1", id),
        published_at: START + MINUTE * u32::try_from(at).unwrap(),
    };
    let add = async |id: &str, at: u64, last: Option<&str>, forget: u64| {
        let forget_before = row("", forget).published_at;
        h.store().add_pass_key(&row(id, at), last, forget_before).await.unwrap()
    };
    let all = async || h.store().pass_keys().await.unwrap();
    assert_eq!(all().await, []);
    let before = h.changes(0).await.latest;
    assert!(!add("a", 1, Some("z"), 0).await, "there is none");
    assert!(add("a", 1, None, 0).await);
    assert!(!add("b", 2, None, 0).await, "somebody was first");
    assert!(add("b", 2, Some("a"), 0).await);
    assert!(!add("c", 3, Some("a"), 9).await, "and again, and nothing is forgotten");
    assert!(!add("a", 3, Some("b"), 9).await, "the id is taken");
    assert_eq!(all().await, [row("a", 1), row("b", 2)]);
    assert_eq!(h.changes(before).await.entries, Some(vec![Change::PassKeys]));
    // Of those that want to be next, one is.
    let racers: Vec<_> = (0..10).map(|at| format!("racer {at}")).collect();
    let added = join_all(racers.iter().map(|id| add(id, 3, Some("b"), 0))).await;
    assert_eq!(added.iter().filter(|added| **added).count(), 1);
    let last = all().await.pop().unwrap().id;
    // Forgotten is what is past, and the order is that of adding, also when a clock was set back.
    assert!(add("d", 0, Some(&last), 2).await);
    let left: Vec<_> = all().await.into_iter().map(|row| row.id).collect();
    assert_eq!(left, ["b", last.as_str(), "d"]);

    let place = Place::PassKey("b".to_owned());
    let (old, new) = (sealed("k1", "b"), sealed("k2", "b"));
    assert_eq!(h.store().sealed_otherwise("k2", 1).await.unwrap(), [(place.clone(), old.clone())]);
    assert!(h.store().reseal(&place, &old, &new).await.unwrap());
    assert!(!h.store().reseal(&place, &old, &new).await.unwrap());
    assert_eq!(h.store().sealing_keys().await.unwrap(), ["k1", "k2"]);
    assert_eq!(all().await[0].key, new);
}

async fn sealing(h: &Handles) {
    assert_eq!(h.store().sealing_keys().await.unwrap(), Vec::<String>::new());
    assert_eq!(h.store().sealed_otherwise("k1", 10).await.unwrap(), []);
    let app = h.add_app("wx1").await;
    let id = token(&app);
    let row = CredentialRow { value: sealed("k0", "value"), ..credential_row(&id, 1) };
    assert!(put_next(h.store(), &row).await.unwrap());
    h.store().own_secret("hash", &sealed("k2", "own")).await.unwrap();
    h.store().own_secret("other", &sealed("k1", "own")).await.unwrap();
    assert_eq!(h.store().sealing_keys().await.unwrap(), ["k0", "k1", "k2"]);

    let otherwise = async |key: &str, limit| {
        let mut found = h.store().sealed_otherwise(key, limit).await.unwrap();
        found.sort_by_key(|(place, _)| place.binding());
        found
    };
    let secret = (Place::AppSecret(app.clone()), sealed("k1", "wx1"));
    let value = (Place::Credential(id.clone(), 1), sealed("k0", "value"));
    let own = (Place::Own("hash".to_owned()), sealed("k2", "own"));
    let other = (Place::Own("other".to_owned()), sealed("k1", "own"));
    assert_eq!(otherwise("k1", 10).await, [value.clone(), own.clone()]);
    assert_eq!(
        otherwise("k9", 10).await,
        [secret.clone(), value.clone(), own.clone(), other.clone()]
    );
    assert_eq!(otherwise("k9", 3).await.len(), 3);
    assert_eq!(otherwise("k9", 0).await, []);

    // Only the value that was read is replaced, and only where it stood.
    let reseal = async |place: &Place, old: &Sealed, new: &Sealed| {
        h.store().reseal(place, old, new).await.unwrap()
    };
    let new = sealed("k9", "again");
    for (place, old) in [&secret, &value, &own] {
        assert!(!reseal(place, &Sealed { key: "k8".to_owned(), ..old.clone() }, &new).await);
        assert!(!reseal(place, &Sealed { bytes: vec![1], ..old.clone() }, &new).await);
    }
    assert!(!reseal(&Place::AppSecret("wx9".parse().unwrap()), &secret.1, &new).await);
    assert!(!reseal(&Place::Credential(id.clone(), 2), &value.1, &new).await);
    assert!(!reseal(&Place::Credential(ticket(&app), 1), &value.1, &new).await);
    assert!(!reseal(&Place::Own("none".to_owned()), &own.1, &new).await);
    for (place, old) in [&secret, &value, &own, &other] {
        let (one, two) = (sealed("k9", "one"), sealed("k9", "two"));
        let (first, second) =
            tokio::join!(h.store().reseal(place, old, &one), h.store().reseal(place, old, &two));
        assert_ne!(first.unwrap(), second.unwrap(), "one of two wins at {place:?}");
        assert!(!reseal(place, old, &new).await);
    }
    assert_eq!(h.store().sealing_keys().await.unwrap(), ["k9"]);
    assert_eq!(otherwise("k9", 10).await, []);
    assert_eq!(otherwise("k1", 10).await.len(), 4);

    // Nothing else of the rows has changed.
    let stored = h.store().find_app(&app).await.unwrap().unwrap();
    assert_eq!(AppRow { secret: secret.1, ..stored }, app_row("wx1", 1));
    let stored = h.store().find_credential(&id).await.unwrap().unwrap();
    assert_eq!(CredentialRow { value: value.1, ..stored }, row);
    let own = h.store().own_secret("other", &sealed("k1", "fresh")).await.unwrap();
    assert_eq!(own.key, "k9");
}

async fn audit_log(h: &Handles) {
    let list = async |before, limit| h.store().list_audit(before, limit).await.unwrap();
    assert_eq!(list(None, 10).await, []);
    let actors = [Actor::System, Actor::Key("key_1".to_owned()), Actor::Operator("a:b".to_owned())];
    let entry = |at: usize| AuditEntry {
        at: START + MINUTE * at as u32,
        actor: actors[at % 3].clone(),
        ..audit("token.refresh", &format!("object {at}"))
    };
    for at in 0..7 {
        h.store().add_audit(&entry(at)).await.unwrap();
    }
    let all = list(None, 100).await;
    let entries: Vec<_> = all.iter().map(|(_, entry)| entry.clone()).collect();
    assert_eq!(entries, (0..7).rev().map(entry).collect::<Vec<_>>(), "newest first");
    assert!(all.is_sorted_by(|newer, older| newer.0 > older.0));

    let mut paged = list(None, 3).await;
    assert_eq!(paged.len(), 3);
    while let Some((last, _)) = paged.last() {
        let page = list(Some(*last), 3).await;
        if page.is_empty() {
            break;
        }
        paged.extend(page);
    }
    assert_eq!(paged, all);
    assert_eq!(list(Some(0), 3).await, []);
    assert_eq!(list(Some(u64::MAX), 100).await, all);
    assert_eq!(list(None, 0).await, []);

    let numbers = join_all((0..10).map(|at| async move {
        h.store().add_audit(&audit("x.y", &at.to_string())).await.unwrap();
    }));
    numbers.await;
    let numbers: BTreeSet<_> = list(None, 100).await.into_iter().map(|(at, _)| at).collect();
    assert_eq!(numbers.len(), 17);
}
