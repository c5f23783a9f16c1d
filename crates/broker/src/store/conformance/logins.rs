//! What logins leave behind: claims, grants, unionids, sessions.

use wechat::{Lang, OpenId, Scope, UnionId};

use super::*;
use crate::store::{
    CLAIM_KEPT, Claim, GRANT_KEPT, GrantId, GrantRow, Kept, OUTCOME_KEPT, PROFILE_KEPT, ProfileRow,
    SessionRow,
};

const SECOND: Duration = Duration::from_secs(1);

fn claim_row(app: &AppId, code: u8, owner: &str, now: Timestamp) -> Claim {
    Claim {
        app: app.clone(),
        code: [code; 32],
        client: "key_1".to_owned(),
        proof: Some([9; 32]),
        owner: owner.to_owned(),
        claimed_at: now,
        deadline: now + MINUTE,
        settled_at: None,
        outcome: None,
    }
}

fn grant_row(app: &AppId, openid: &str, scope: Scope, version: &str) -> GrantRow {
    GrantRow {
        id: GrantId { app: app.clone(), openid: OpenId::new(openid), scope },
        version: version.to_owned(),
        tokens: Some(sealed("k1", &format!("tokens of {version}"))),
        token_expires_at: START + HOUR * 2,
        authorised_at: START,
        client: "key_1".to_owned(),
        redirect_uri: Some("https://a.example/cb?x=1".to_owned()),
        ended: None,
        profile: None,
    }
}

fn session_row(app: &AppId, id: u8, openid: &str) -> SessionRow {
    SessionRow {
        app: app.clone(),
        id: [id; 32],
        openid: OpenId::new(openid),
        session_key: sealed("k1", &format!("session key {id}")),
        expires_at: START + DAY,
    }
}

fn profile_row(lang: Lang) -> ProfileRow {
    ProfileRow { value: sealed("k1", "profile"), lang, fetched_at: START + MINUTE }
}

impl Handles {
    /// Has a claim of its own settled with what is to be kept.
    async fn keep(&self, app: &AppId, code: u8, kept: &Kept) -> bool {
        let claim = claim_row(app, code, "me", self.now().await);
        assert_eq!(self.store().claim_code(&claim).await.unwrap(), None);
        let outcome = sealed("k1", "outcome");
        self.store().settle_claim(app, &[code; 32], "me", &outcome, kept).await.unwrap()
    }

    async fn claim(&self, app: &AppId, code: u8) -> Option<Claim> {
        self.store().find_claim(app, &[code; 32]).await.unwrap()
    }

    async fn grants(&self, app: &AppId, openid: &str) -> Vec<GrantRow> {
        self.store().grants(app, &OpenId::new(openid)).await.unwrap()
    }

    async fn unionid(&self, app: &AppId, openid: &str) -> Option<String> {
        let found = self.store().unionid(app, &OpenId::new(openid)).await.unwrap();
        found.map(|unionid| unionid.as_str().to_owned())
    }

    async fn session(&self, app: &AppId, id: u8) -> Option<SessionRow> {
        self.store().find_session(app, &[id; 32]).await.unwrap()
    }
}

pub(super) async fn claims(h: &Handles, fast_forward: &impl AsyncFn(Duration)) {
    let app = h.add_app("wx1").await;
    let (before, first) = (h.changes(0).await, claim_row(&app, 1, "me", h.now().await));
    let claim = async |claim: &Claim| h.store().claim_code(claim).await.unwrap();
    assert_eq!(h.claim(&app, 1).await, None);
    assert_eq!(claim(&first).await, None, "it is theirs");
    assert_eq!(h.claim(&app, 1).await, Some(first.clone()));

    // Nobody else gets it, whoever asks, also not when its deadline has passed.
    let second = Claim { client: "key_2".to_owned(), ..claim_row(&app, 1, "you", first.deadline) };
    assert_eq!(claim(&second).await, Some(first.clone()));
    fast_forward(HOUR).await;
    assert_eq!(claim(&second).await, Some(first.clone()));
    let other_app = claim_row(&"wx2".parse().unwrap(), 1, "you", first.claimed_at);
    assert_eq!(claim(&other_app).await, None, "a code is one of its app");

    // Only its owner settles it, once.
    let (outcome, kept) = (sealed("k1", "outcome"), Kept::Nothing);
    let settle = async |code: u8, owner: &str, outcome: &Sealed| {
        h.store().settle_claim(&app, &[code; 32], owner, outcome, &kept).await.unwrap()
    };
    assert!(!settle(1, "you", &outcome).await);
    assert!(!settle(2, "me", &outcome).await);
    assert!(settle(1, "me", &outcome).await);
    let settled =
        Claim { settled_at: Some(h.now().await), outcome: Some(outcome.clone()), ..first.clone() };
    assert_eq!(h.claim(&app, 1).await, Some(settled.clone()));
    assert!(!settle(1, "me", &sealed("k1", "other")).await);
    assert_eq!(claim(&second).await, Some(settled.clone()));

    // A settled one is not taken back; another is, by its owner.
    let give_up =
        async |code: u8, owner| h.store().give_up_claim(&app, &[code; 32], owner).await.unwrap();
    assert!(!give_up(1, "me").await);
    let without_proof = Claim { proof: None, ..claim_row(&app, 2, "me", h.now().await) };
    assert_eq!(claim(&without_proof).await, None);
    assert_eq!(h.claim(&app, 2).await, Some(without_proof));
    assert!(!give_up(2, "you").await);
    assert!(give_up(2, "me").await);
    assert!(!give_up(2, "me").await);
    assert_eq!(h.claim(&app, 2).await, None);
    assert_eq!(claim(&claim_row(&app, 2, "you", h.now().await)).await, None, "free again");

    // It outlives its app.
    assert!(h.store().remove_app(&app, &audit("app.remove", "wx1")).await.unwrap());
    assert_eq!(h.claim(&app, 1).await, Some(settled));
    let grant = Kept::Grant(grant_row(&app, "o1", Scope::Base, "v1"), None);
    let settled = h.store().settle_claim(&app, &[2; 32], "you", &outcome, &grant).await.unwrap();
    assert!(settled, "the claim is settled though the app is gone");
    h.add_app("wx1").await;
    assert_eq!(h.grants(&app, "o1").await, [], "and nothing was kept");
    assert_eq!(h.changes(before.latest).await.entries.unwrap().len(), 1, "the app alone");

    // One of many wins.
    let now = h.now().await;
    let rivals: Vec<_> = (0..10).map(|at| claim_row(&app, 7, &format!("o{at}"), now)).collect();
    let answers = join_all(rivals.iter().map(claim)).await;
    assert_eq!(answers.iter().filter(|answer| answer.is_none()).count(), 1);
    let owner = h.claim(&app, 7).await.unwrap().owner;
    assert!(answers.iter().flatten().all(|claimed| claimed.owner == owner));
}

pub(super) async fn grants(h: &Handles) {
    let app = h.add_app("wx1").await;
    let wide = grant_row(&app, "o1", Scope::UserInfo, "v1");
    let unionid = Some(UnionId::new("u1"));
    assert!(h.keep(&app, 1, &Kept::Grant(wide.clone(), unionid)).await);
    assert_eq!(h.grants(&app, "o1").await, std::slice::from_ref(&wide));
    assert_eq!(h.unionid(&app, "o1").await.as_deref(), Some("u1"));

    // Scopes are apart; a unionid that is not told is not unlearnt.
    let base = GrantRow { redirect_uri: None, ..grant_row(&app, "o1", Scope::Base, "v2") };
    assert!(h.keep(&app, 2, &Kept::Grant(base.clone(), None)).await);
    assert_eq!(h.grants(&app, "o1").await, [base.clone(), wide.clone()]);
    assert_eq!(h.unionid(&app, "o1").await.as_deref(), Some("u1"));
    assert_eq!(h.grants(&app, "o2").await, []);
    assert_eq!(h.unionid(&app, "o2").await, None);

    // The tokens of one version are replaced, once, and nothing but them.
    let put = async |row: &GrantRow, over: &str| h.store().put_tokens(row, over).await.unwrap();
    let ended = GrantRow {
        version: "v3".to_owned(),
        tokens: None,
        token_expires_at: START + HOUR * 4,
        ended: Some((START + HOUR, 42007)),
        authorised_at: START + DAY,
        redirect_uri: Some("https://b.example".to_owned()),
        profile: Some(profile_row(Lang::En)),
        ..wide.clone()
    };
    assert!(!put(&ended, "v2").await, "that is the other scope's");
    assert!(
        !put(
            &GrantRow {
                id: GrantId { openid: OpenId::new("o2"), ..wide.id.clone() },
                ..ended.clone()
            },
            "v1"
        )
        .await
    );
    assert!(put(&ended, "v1").await);
    assert!(!put(&ended, "v1").await);
    let GrantRow { authorised_at, redirect_uri, profile, .. } = wide.clone();
    let stored = GrantRow { authorised_at, redirect_uri, profile, ..ended };
    assert_eq!(h.grants(&app, "o1").await, [base.clone(), stored.clone()]);

    // A profile is kept with its grant.
    let profile = profile_row(Lang::ZhTw);
    let learn = Some(UnionId::new("u2"));
    let keep = async |id: &GrantId, profile: &ProfileRow| {
        h.store().put_profile(id, profile, learn.as_ref()).await.unwrap()
    };
    assert!(!keep(&GrantId { scope: Scope::Login, ..wide.id.clone() }, &profile).await);
    assert_eq!(h.unionid(&app, "o1").await.as_deref(), Some("u1"));
    assert!(keep(&wide.id, &profile).await);
    let with_profile = GrantRow { profile: Some(profile), ..stored };
    assert_eq!(h.grants(&app, "o1").await, [base.clone(), with_profile]);
    assert_eq!(h.unionid(&app, "o1").await.as_deref(), Some("u2"));

    // A new authorisation replaces all of the grant of its scope.
    let again = grant_row(&app, "o1", Scope::UserInfo, "v4");
    assert!(h.keep(&app, 3, &Kept::Grant(again.clone(), None)).await);
    assert_eq!(h.grants(&app, "o1").await, [base.clone(), again.clone()]);

    // One that was authorised before it and comes late does not, but its unionid is learnt.
    let late = grant_row(&app, "o1", Scope::UserInfo, "v5");
    let late = GrantRow { authorised_at: START - SECOND, ..late };
    assert!(h.keep(&app, 4, &Kept::Grant(late, Some(UnionId::new("u3")))).await);
    assert_eq!(h.grants(&app, "o1").await, [base.clone(), again]);
    assert_eq!(h.unionid(&app, "o1").await.as_deref(), Some("u3"));
    // What a clock far ahead has written is no obstacle for ever.
    let ahead = GrantRow {
        authorised_at: START + DAY * 99,
        ..grant_row(&app, "o1", Scope::UserInfo, "v6")
    };
    assert!(h.keep(&app, 5, &Kept::Grant(ahead, None)).await);
    let now =
        GrantRow { authorised_at: START + DAY * 2, ..grant_row(&app, "o1", Scope::UserInfo, "v7") };
    assert!(h.keep(&app, 6, &Kept::Grant(now.clone(), None)).await);
    assert_eq!(h.grants(&app, "o1").await, [base, now.clone()]);

    // With the end of a grant its profile goes.
    assert!(keep(&now.id, &profile_row(Lang::ZhCn)).await);
    let renewed = GrantRow { version: "v8".to_owned(), ..now.clone() };
    assert!(put(&renewed, "v7").await);
    assert!(h.grants(&app, "o1").await[1].profile.is_some(), "a renewal leaves it");
    let over =
        GrantRow { version: "v9".to_owned(), tokens: None, ended: Some((START, 42007)), ..now };
    assert!(put(&over, "v8").await);
    assert_eq!(h.grants(&app, "o1").await[1], over);
}

pub(super) async fn lists_of_grants(h: &Handles) {
    let (app, other) = (h.add_app("wx1").await, h.add_app("wx2").await);
    let mut code = 0;
    for (app, openid, scope) in [
        (&app, "o2", Scope::UserInfo),
        (&app, "o3", Scope::Base),
        (&app, "o1", Scope::Base),
        (&app, "o2", Scope::Base),
        (&other, "o0", Scope::Base),
    ] {
        code += 1;
        let kept = Kept::Grant(grant_row(app, openid, scope, "v"), None);
        assert!(h.keep(app, code, &kept).await);
    }
    let list = async |after: Option<&str>, limit| {
        let after = after.map(OpenId::new);
        let rows = h.store().list_grants(&app, after.as_ref(), limit).await.unwrap();
        let named =
            rows.iter().map(|row| format!("{} {}", row.id.openid.as_str(), row.id.scope.as_str()));
        named.collect::<Vec<_>>()
    };
    let all = ["o1 snsapi_base", "o2 snsapi_base", "o2 snsapi_userinfo", "o3 snsapi_base"];
    assert_eq!(list(None, 10).await, all);
    assert_eq!(list(None, 2).await, all[..3], "the limit counts users");
    assert_eq!(list(Some("o1"), 1).await, all[1..3]);
    assert_eq!(list(Some("o2"), 9).await, all[3..]);
    assert_eq!(list(Some("o3"), 9).await, Vec::<String>::new());
    assert_eq!(list(None, 0).await, Vec::<String>::new());
}

pub(super) async fn sessions(h: &Handles, fast_forward: &impl AsyncFn(Duration)) {
    let (app, other) = (h.add_app("wx1").await, h.add_app("wx2").await);
    let (one, two) = (session_row(&app, 1, "o1"), session_row(&app, 2, "o1"));
    assert!(h.keep(&app, 1, &Kept::Session(one.clone(), Some(UnionId::new("u1")))).await);
    assert!(h.keep(&app, 2, &Kept::Session(two.clone(), None)).await);
    assert_eq!(h.session(&app, 1).await, Some(one.clone()));
    assert_eq!(h.session(&app, 2).await, Some(two));
    assert_eq!(h.session(&app, 3).await, None);
    assert_eq!(h.session(&other, 1).await, None);
    assert_eq!(h.unionid(&app, "o1").await.as_deref(), Some("u1"));

    fast_forward(DAY - SECOND).await;
    assert_eq!(h.session(&app, 1).await, Some(one));
    fast_forward(SECOND).await;
    assert_eq!(h.session(&app, 1).await, None);
}

pub(super) async fn forgetting_a_user(h: &Handles) {
    let (app, other) = (h.add_app("wx1").await, h.add_app("wx2").await);
    let mut code = 0;
    for app in [&app, &other] {
        for openid in ["o1", "o2"] {
            let unionid = Some(UnionId::new("u"));
            let grant = Kept::Grant(grant_row(app, openid, Scope::UserInfo, "v"), unionid);
            let base = Kept::Grant(grant_row(app, openid, Scope::Base, "v"), None);
            let session = Kept::Session(session_row(app, code, openid), None);
            for kept in [grant, base, session] {
                code += 1;
                assert!(h.keep(app, code, &kept).await);
            }
        }
    }
    let entries = h.audit_len().await;
    let forget = async |openid: &str| {
        let entry = audit("grant.remove", "wx1");
        h.store().forget_user(&app, &OpenId::new(openid), &entry).await.unwrap()
    };
    assert!(!forget("o9").await);
    assert_eq!(h.audit_len().await, entries);
    assert!(forget("o1").await);
    assert!(!forget("o1").await);
    assert_eq!(h.audit_len().await, entries + 1);
    assert_eq!((h.grants(&app, "o1").await.len(), h.unionid(&app, "o1").await), (0, None));
    assert_eq!(h.session(&app, 0).await, None);
    assert!(h.claim(&app, 1).await.is_some(), "a code stays used");
    for (app, openid, session) in [(&app, "o2", 3), (&other, "o1", 6), (&other, "o2", 9)] {
        assert_eq!(h.grants(app, openid).await.len(), 2);
        assert!(h.unionid(app, openid).await.is_some());
        assert!(h.session(app, session).await.is_some());
    }

    // What is left goes with its app.
    assert!(h.store().remove_app(&app, &audit("app.remove", "wx1")).await.unwrap());
    h.add_app("wx1").await;
    assert_eq!((h.grants(&app, "o2").await.len(), h.unionid(&app, "o2").await), (0, None));
    assert_eq!(h.session(&app, 3).await, None);
    assert_eq!(h.grants(&other, "o2").await.len(), 2);
}

pub(super) async fn forgetting_the_past(h: &Handles, fast_forward: &impl AsyncFn(Duration)) {
    let app = h.add_app("wx1").await;
    let forget = async |limit| h.store().forget_past_logins(limit).await.unwrap();
    for code in 1..=3 {
        let kept = match code {
            1 => Kept::Session(session_row(&app, 1, "o1"), None),
            _ => Kept::Grant(grant_row(&app, &format!("o{code}"), Scope::Base, "v"), None),
        };
        assert!(h.keep(&app, code, &kept).await);
    }
    let open = claim_row(&app, 4, "me", h.now().await);
    assert_eq!(h.store().claim_code(&open).await.unwrap(), None);
    let id = h.grants(&app, "o2").await[0].id.clone();
    let profile = ProfileRow { fetched_at: START, ..profile_row(Lang::ZhCn) };
    assert!(h.store().put_profile(&id, &profile, None).await.unwrap());
    fast_forward(OUTCOME_KEPT - SECOND).await;
    assert_eq!(forget(10).await, 0);

    // First the outcomes, some at a time. The claims stay, settled or not.
    fast_forward(SECOND).await;
    assert_eq!((forget(2).await, forget(10).await, forget(10).await), (2, 1, 0));
    for code in 1..=3 {
        let claim = h.claim(&app, code).await.unwrap();
        assert!(claim.outcome.is_none() && claim.settled_at.is_some());
    }
    assert_eq!(h.claim(&app, 4).await, Some(open));

    // Then the profile, the session, the claims, the grants.
    fast_forward(PROFILE_KEPT - OUTCOME_KEPT - SECOND).await;
    assert_eq!(forget(10).await, 0);
    fast_forward(SECOND).await;
    assert_eq!((forget(10).await, forget(10).await), (1, 0));
    assert_eq!(h.grants(&app, "o2").await[0].profile, None);
    fast_forward(DAY - PROFILE_KEPT).await;
    assert_eq!((forget(10).await, h.session(&app, 1).await), (1, None));
    fast_forward(CLAIM_KEPT - DAY - SECOND).await;
    assert_eq!(forget(10).await, 0);
    fast_forward(SECOND).await;
    assert_eq!((forget(3).await, forget(10).await, forget(10).await), (3, 1, 0));
    assert_eq!(h.claim(&app, 1).await, None);
    assert_eq!(h.grants(&app, "o2").await.len(), 1);
    fast_forward(GRANT_KEPT - CLAIM_KEPT).await;
    assert_eq!((forget(1).await, forget(10).await, forget(10).await), (1, 1, 0));
    assert_eq!(h.grants(&app, "o2").await, []);
}

pub(super) async fn sealing(h: &Handles) {
    let app = h.add_app("wx1").await;
    let grant = grant_row(&app, "o1", Scope::UserInfo, "v1");
    assert!(h.keep(&app, 1, &Kept::Grant(grant.clone(), None)).await);
    assert!(h.keep(&app, 2, &Kept::Session(session_row(&app, 2, "o1"), None)).await);
    let profile = ProfileRow { value: sealed("k3", "profile"), ..profile_row(Lang::ZhCn) };
    assert!(h.store().put_profile(&grant.id, &profile, None).await.unwrap());
    let open = claim_row(&app, 3, "me", h.now().await);
    assert_eq!(h.store().claim_code(&open).await.unwrap(), None, "it has nothing sealed");
    assert_eq!(h.store().sealing_keys().await.unwrap(), ["k1", "k3"]);

    let places = [
        (Place::AppSecret(app.clone()), sealed("k1", "wx1")),
        (Place::Outcome(app.clone(), [1; 32]), sealed("k1", "outcome")),
        (Place::Outcome(app.clone(), [2; 32]), sealed("k1", "outcome")),
        (Place::Profile(grant.id.clone()), sealed("k3", "profile")),
        (Place::SessionKey(app.clone(), [2; 32]), sealed("k1", "session key 2")),
        (Place::Tokens(grant.id.clone(), "v1".to_owned()), sealed("k1", "tokens of v1")),
    ];
    let otherwise = async |key: &str| {
        let mut found = h.store().sealed_otherwise(key, 10).await.unwrap();
        found.sort_by_key(|(place, _)| place.binding());
        found
    };
    assert_eq!(otherwise("k9").await, places);
    assert_eq!(otherwise("k1").await, places[3..4]);
    let bindings: BTreeSet<_> = places.iter().map(|(place, _)| place.binding()).collect();
    assert_eq!(bindings.len(), places.len());
    assert!(
        !bindings.iter().any(|binding| binding.contains("o1")),
        "people read them: {bindings:?}"
    );

    let reseal = async |place: &Place, old: &Sealed, new: &Sealed| {
        h.store().reseal(place, old, new).await.unwrap()
    };
    let new = sealed("k9", "again");
    let elsewhere = GrantId { scope: Scope::Base, ..grant.id.clone() };
    assert!(!reseal(&Place::Tokens(grant.id.clone(), "v2".to_owned()), &places[5].1, &new).await);
    assert!(!reseal(&Place::Profile(elsewhere), &places[3].1, &new).await);
    assert!(!reseal(&Place::SessionKey(app.clone(), [3; 32]), &places[4].1, &new).await);
    assert!(!reseal(&Place::Outcome(app.clone(), [3; 32]), &places[1].1, &new).await);
    for (place, old) in &places {
        assert!(!reseal(place, &Sealed { bytes: vec![1], ..old.clone() }, &new).await);
        assert!(reseal(place, old, &new).await, "{place:?}");
        assert!(!reseal(place, old, &new).await, "{place:?}");
    }
    assert_eq!(h.store().sealing_keys().await.unwrap(), ["k9"]);
    assert_eq!(otherwise("k9").await, []);
    let stored = &h.grants(&app, "o1").await[0];
    assert_eq!(stored.tokens, Some(new.clone()));
    assert_eq!(stored.profile, Some(ProfileRow { value: new, ..profile }));
}
