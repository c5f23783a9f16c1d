//! The change log: what each write appends.

use std::collections::BTreeSet;

use super::*;

/// Follows the change log.
struct Follower<'h> {
    h: &'h Handles,
    at: u64,
}

impl Follower<'_> {
    /// Checks what was appended since the last look.
    async fn check(&mut self, what: &str, expected: &[Change]) {
        let changes = self.h.changes(self.at).await;
        assert_eq!(changes.entries.as_deref(), Some(expected), "{what}");
        assert_eq!(changes.latest > self.at, !expected.is_empty(), "{what}");
        self.at = changes.latest;
    }
}

pub(super) async fn of_apps_and_keys(h: &Handles) {
    let mut log = Follower { h, at: 0 };
    log.check("nothing yet", &[]).await;
    assert_eq!(h.changes(1).await.entries, None, "beyond the end");
    let (entry, app) = (audit("x.y", "z"), "wx1".parse().unwrap());
    let changed = Change::App("wx1".parse().unwrap());

    for (revision, expected) in [(1, true), (1, false), (2, true)] {
        let row = app_row("wx1", revision);
        assert_eq!(h.store().put_app(&row, &entry).await.unwrap(), expected);
        let expected = if expected { vec![changed.clone()] } else { vec![] };
        log.check("put_app", &expected).await;
    }
    assert!(h.store().add_key(&key_row("key_1", 1), &entry).await.unwrap());
    log.check("add_key", &[Change::Keys]).await;
    assert!(!h.store().add_key(&key_row("key_1", 1), &entry).await.unwrap());
    log.check("add_key refused", &[]).await;
    assert!(h.store().revoke_key("key_1", &entry).await.unwrap());
    log.check("revoke_key", &[Change::Keys]).await;
    assert!(!h.store().revoke_key("key_1", &entry).await.unwrap());
    log.check("revoke_key refused", &[]).await;

    let secret = sealed("k1", "wx1");
    let place = Place::AppSecret("wx1".parse().unwrap());
    assert!(h.store().reseal(&place, &secret, &sealed("k2", "wx1")).await.unwrap());
    h.store().own_secret("hash", &secret).await.unwrap();
    h.store().add_audit(&entry).await.unwrap();
    let budget = Budget { per_day: 5, burst: 5, every: MINUTE };
    h.store().spend(&app, "token", &budget).await.unwrap();
    log.check("reseal, own_secret, add_audit, spend", &[]).await;
    assert!(h.store().remove_app(&app, &entry).await.unwrap());
    log.check("remove_app", std::slice::from_ref(&changed)).await;
    assert!(!h.store().remove_app(&app, &entry).await.unwrap());
    log.check("remove_app refused", &[]).await;

    // From the beginning: each once, in the order of their first appearance.
    assert_eq!(h.changes(0).await.entries, Some(vec![changed, Change::Keys]));
    assert_eq!(h.changes(log.at).await, Changes { latest: log.at, entries: Some(vec![]) });
    assert_eq!(h.changes(log.at + 1).await, Changes { latest: log.at, entries: None });
    assert_eq!(h.changes(u64::MAX).await, Changes { latest: log.at, entries: None });
}

pub(super) async fn of_credentials(h: &Handles) {
    let app = h.add_app("wx1").await;
    let (id, other) = (token(&app), ticket(&app));
    let changed = [Change::Credential(id.clone())];
    let mut log = Follower { h, at: h.changes(0).await.latest };
    let row = credential_row(&id, 1);
    let after = START + HOUR * 9;

    h.store().set_trouble(&id, 1, Some(&a_trouble())).await.unwrap();
    log.check("set_trouble", &changed).await;
    assert!(put_next(h.store(), &row).await.unwrap());
    log.check("put_credential", &changed).await;
    assert!(!put_next(h.store(), &row).await.unwrap());
    log.check("put_credential refused", &[]).await;
    assert!(h.store().set_expiry(&id, 1, after, after).await.unwrap());
    log.check("set_expiry", &changed).await;
    assert!(!h.store().set_expiry(&id, 2, after, after).await.unwrap());
    log.check("set_expiry refused", &[]).await;
    assert!(h.store().mark_dead(&id, 1).await.unwrap());
    log.check("mark_dead", &changed).await;
    assert!(!h.store().mark_dead(&id, 1).await.unwrap());
    log.check("mark_dead refused", &[]).await;
    h.store().set_used(&id, after).await.unwrap();
    log.check("set_used alters nothing that is read again", &[]).await;
    assert!(!h.store().drop_unused(&id, START).await.unwrap());
    h.store().set_trouble(&id, 1, None).await.unwrap();
    log.check("drop_unused refused, no trouble that was none", &[]).await;
    assert!(h.store().drop_unused(&id, after).await.unwrap());
    log.check("drop_unused", &changed).await;

    assert!(put_next(h.store(), &row).await.unwrap());
    h.store().set_trouble(&other, 1, Some(&a_trouble())).await.unwrap();
    log.check("two", &[Change::Credential(id.clone()), Change::Credential(other.clone())]).await;
    h.store().set_trouble(&other, 1, Some(&a_trouble())).await.unwrap();
    log.check("the same trouble", &[]).await;
    assert!(h.store().remove_app(&app, &audit("app.remove", "wx1")).await.unwrap());
    let found = h.changes(log.at).await.entries.unwrap();
    assert_eq!(found[0], Change::App(app));
    let rest: BTreeSet<_> = found[1..]
        .iter()
        .map(|change| match change {
            Change::Credential(id) => id.clone(),
            change => panic!("{change:?}"),
        })
        .collect();
    assert_eq!(rest, BTreeSet::from([id, other]), "its credentials go with it");
}
