//! Grants: what users' authorisations left with us, and the profiles that can be read with them.

use std::{sync::Arc, time::Duration};

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD as URL_SAFE_NO_PAD};
use clock::Timestamp;
use serde::{Deserialize, Serialize};
use wechat::{
    IssuedGrant, Lang, OpenId, ProtocolError, RedirectUri, RefreshToken, Scope, UnionId, WebToken,
    WebUser,
};

use crate::{
    AppEntry, Broker, INVALID_TOKEN, ManageError,
    app::{App, AppKind},
    audit::{Actor, AuditEntry},
    key::ClientKey,
    login::{Authorize, AuthorizeUrl, WrongKind, scope_of},
    random::random_word,
    seal::Sealed,
    store::{
        Acquired, GrantId, GrantRow, Lease, PROFILE_KEPT, Place, ProfileRow, StoreError,
        StoreResult,
    },
};

/// How long a profile is told again without asking WeChat.
pub const PROFILE_LIFE: Duration = PROFILE_KEPT;

/// What we hold of one user of an app.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UserGrants {
    /// The user's id in the app.
    pub openid: OpenId,
    /// The user's id in the owner's Open Platform account, if it was ever learnt.
    pub unionid: Option<UnionId>,
    /// One for each scope, the widest first.
    pub grants: Vec<GrantView>,
}

/// The state of one grant. Its tokens are never shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GrantView {
    /// What the user consented to.
    pub scope: Scope,
    /// Whether it can still be used: there is a web token, or what renews it.
    pub is_live: bool,
    /// When the user authorised.
    pub authorised_at: Timestamp,
    /// When the web token ends or ended.
    pub token_expires_at: Timestamp,
    /// Until when the web token can be renewed: 30 days after the authorisation.
    pub renewable_until: Timestamp,
    /// Why it ended before its time.
    pub ended: Option<Ended>,
}

/// The end of a grant, as WeChat told it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    /// When we heard.
    pub at: Timestamp,
    /// 40030 (or 40029), 42002 or 42007.
    pub errcode: i64,
}

/// How a profile is wanted.
#[derive(Clone, Debug, Default)]
pub struct ProfileQuery {
    /// The language of names of places; Chinese as in China, if none is wanted.
    pub lang: Option<Lang>,
    /// From WeChat, even if a profile of less than [`PROFILE_LIFE`] is here.
    pub fresh: bool,
    /// Where the user would come back to, should they have to authorise again.
    pub redirect_uri: Option<RedirectUri>,
}

/// A user's profile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Profile {
    /// What `sns/userinfo` told, and the unionid if it was ever learnt.
    pub user: WebUser,
    /// The scope of the grant that it was read with.
    pub scope: Scope,
    /// When WeChat told it.
    pub fetched_at: Timestamp,
}

/// Why there is no profile.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProfileError {
    /// The app's kind has no web authorisation.
    #[error(transparent)]
    WrongKind(#[from] WrongKind),
    /// No grant that reads profiles lives: the user must authorise.
    #[error("{why}")]
    Reauthorize {
        /// What ended, or was never there, for people.
        why: String,
        /// Where to send the user; `None` when no redirect URI is known for this key.
        authorize: Option<Box<AuthorizeUrl>>,
    },
    /// WeChat, or the way to it.
    #[error(transparent)]
    WeChat(#[from] wechat::Error),
    /// Somebody else is renewing the web token and brings nothing.
    #[error("the renewal under way takes too long")]
    Deadline,
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A web token with less left than this is renewed before it is used.
const NEARLY_OVER: Duration = Duration::from_secs(60);
/// A web token is renewed until so long after the authorisation. WeChat: a refresh token lives 30
/// days, and is not renewed itself.
const RENEWABLE: Duration = Duration::from_secs(30 * 86_400);
/// The codes by which WeChat says that a refresh token is of no use any more: unknown (40030, or
/// as its documents say 40029), over (42002), or ended by the user (42007).
const ENDED: [i64; 4] = [40030, 40029, 42002, 42007];

/// Whether a code at `sns/userinfo` means that the token is of no use: then the renewal tells whether
/// the grant is over.
fn ends_token(errcode: i64) -> bool {
    INVALID_TOKEN.contains(&errcode) || errcode == 42007
}

/// The tokens of a grant, as they are sealed.
#[derive(Serialize, Deserialize)]
struct Tokens {
    access_token: String,
    refresh_token: String,
}

/// Beyond WeChat's answer, a renewal needs so long at most to be stored.
const TO_STORE: Duration = Duration::from_secs(5);

/// Why a web token is to be renewed.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Why {
    /// Its life is over, or nearly.
    Over,
    /// WeChat refused it.
    Refused,
}

/// What became of a grant that was to be renewed.
#[derive(Clone)]
pub(crate) enum Renewed {
    /// It has a token.
    Live(Box<GrantRow>),
    /// It has ended, or is gone.
    Over,
}

impl GrantRow {
    fn renewable_until(&self) -> Timestamp {
        self.authorised_at + RENEWABLE
    }

    /// Whether there is a web token, or what renews it.
    fn is_live(&self, now: Timestamp) -> bool {
        self.tokens.is_some() && (now < self.token_expires_at || now < self.renewable_until())
    }

    /// The profile, if it is young enough and was asked for in this language.
    fn known_profile(&self, lang: Lang, now: Timestamp) -> Option<&ProfileRow> {
        let profile = self.profile.as_ref()?;
        let young = profile.fetched_at <= now && now < profile.fetched_at + PROFILE_LIFE;
        (young && profile.lang == lang).then_some(profile)
    }
}

impl Broker {
    /// The grants of a user, and the unionid; `None`: neither is held.
    pub async fn grants(
        &self,
        entry: &Arc<AppEntry>,
        openid: &OpenId,
    ) -> StoreResult<Option<UserGrants>> {
        let app = entry.app().id.clone();
        let rows = self.0.store.grants(&app, openid).await?;
        if let Some(user) = self.by_user(entry, rows).await?.pop() {
            return Ok(Some(user));
        }
        let unionid = self.0.store.unionid(&app, openid).await?;
        let without_grants = |unionid| UserGrants {
            openid: openid.clone(),
            unionid: Some(unionid),
            grants: Vec::new(),
        };
        Ok(unionid.map(without_grants))
    }

    /// The users of an app of whom we hold grants, in the order of their openids, at most `limit`,
    /// those after `after`.
    pub async fn list_grants(
        &self,
        entry: &Arc<AppEntry>,
        after: Option<&OpenId>,
        limit: usize,
    ) -> StoreResult<Vec<UserGrants>> {
        let rows = self.0.store.list_grants(&entry.app().id, after, limit).await?;
        self.by_user(entry, rows).await
    }

    /// Forgets all that we hold of a user: grants, profile, unionid, sessions. `false`: there was
    /// nothing. A login that is under way ends after it, and is kept.
    pub async fn forget_user(
        &self,
        entry: &Arc<AppEntry>,
        openid: &OpenId,
        actor: &Actor,
    ) -> Result<bool, ManageError> {
        let app = entry.app().id.clone();
        let audit = AuditEntry {
            at: self.now(),
            actor: actor.clone(),
            action: "grant.remove".to_owned(),
            object: app.as_str().to_owned(),
            // Who was forgotten is not remembered in full.
            detail: format!("{openid:?}"),
        };
        Ok(self.0.store.forget_user(&app, openid, &audit).await?)
    }

    /// The profile of a user, by the widest grant that lives, renewing its web token when needed.
    pub async fn profile(
        &self,
        entry: &Arc<AppEntry>,
        key: &ClientKey,
        openid: &OpenId,
        query: &ProfileQuery,
    ) -> Result<Profile, ProfileError> {
        let app = Arc::clone(&entry.app());
        scope_of(&app, None)?;
        let mut rows = self.0.store.grants(&app.id, openid).await?;
        rows.sort_by_key(|row| std::cmp::Reverse(row.id.scope));
        let (now, lang) = (self.now(), query.lang.unwrap_or(Lang::ZhCn));
        let usable = |row: &&GrantRow| row.id.scope.reads_profiles() && row.is_live(now);
        for row in rows.iter().filter(usable) {
            let known = row.known_profile(lang, now).filter(|_| !query.fresh);
            let read = match known {
                Some(known) => Some(self.open_profile(&row.id, known)?),
                None => self.read_profile(&app, row.clone(), lang).await?,
            };
            if let Some(mut profile) = read {
                if profile.user.unionid.is_none() {
                    profile.user.unionid = self.0.store.unionid(&app.id, openid).await?;
                }
                return Ok(profile);
            }
        }
        self.reauthorize(entry, key, &rows, query)
    }

    /// A new grant for what WeChat answered to a request of `sent`.
    pub(crate) fn new_grant(
        &self,
        app: &App,
        issued: &IssuedGrant,
        sent: Timestamp,
        (client, redirect_uri): (String, Option<String>),
    ) -> GrantRow {
        let id =
            GrantId { app: app.id.clone(), openid: issued.openid.clone(), scope: issued.scope };
        let version = random_word::<9>();
        GrantRow {
            tokens: Some(self.seal_tokens(&id, &version, issued)),
            id,
            version,
            token_expires_at: sent + issued.expires_in,
            authorised_at: sent,
            client,
            redirect_uri,
            ended: None,
            profile: None,
        }
    }

    async fn by_user(
        &self,
        entry: &Arc<AppEntry>,
        rows: Vec<GrantRow>,
    ) -> StoreResult<Vec<UserGrants>> {
        let now = self.now();
        let mut users: Vec<UserGrants> = Vec::new();
        for row in rows {
            let view = GrantView {
                scope: row.id.scope,
                is_live: row.is_live(now),
                authorised_at: row.authorised_at,
                token_expires_at: row.token_expires_at,
                renewable_until: row.renewable_until(),
                ended: row.ended.map(|(at, errcode)| Ended { at, errcode }),
            };
            match users.last_mut().filter(|user| user.openid == row.id.openid) {
                Some(user) => user.grants.insert(0, view),
                None => {
                    let openid = row.id.openid;
                    let unionid = self.0.store.unionid(&entry.app().id, &openid).await?;
                    users.push(UserGrants { openid, unionid, grants: vec![view] });
                }
            }
        }
        Ok(users)
    }

    /// Reads a profile with a grant. A token that is nearly over, or that WeChat refuses, is renewed
    /// once. `None`: the grant has ended.
    async fn read_profile(
        &self,
        app: &App,
        mut row: GrantRow,
        lang: Lang,
    ) -> Result<Option<Profile>, ProfileError> {
        let now = self.now();
        if row.token_expires_at <= now + NEARLY_OVER && now < row.renewable_until() {
            let lives = now < row.token_expires_at;
            match self.renewed(&row, Why::Over).await {
                Ok(Renewed::Live(new)) => row = *new,
                Ok(Renewed::Over) => return Ok(None),
                Err(err) if lives => tracing::warn!(
                    app.id = %app.id,
                    error = %err,
                    "{}: a web token is not renewed yet; it is used while it lives",
                    app.id
                ),
                Err(err) => return Err(err),
            }
        }
        let mut refused = false;
        loop {
            let Some(tokens) = self.open_tokens(&row)? else { return Ok(None) };
            let token = WebToken::new(tokens.access_token);
            let fetched_at = self.now();
            match self.0.wechat.web_user(&token, &row.id.openid, Some(lang)).await {
                Ok(user) => return self.keep_profile(&row.id, user, lang, fetched_at).await,
                Err(wechat::Error::Api(error)) if ends_token(error.code) => {
                    tracing::info!(
                        app.id = %app.id,
                        wechat.errcode = error.code,
                        wechat.rid = error.rid,
                        "{}: WeChat refused a web token before its end",
                        app.id
                    );
                    // One that is refused as soon as it is renewed is of no use, whatever it is.
                    if std::mem::replace(&mut refused, true) {
                        return Ok(None);
                    }
                    match self.renewed(&row, Why::Refused).await? {
                        Renewed::Live(new) => row = *new,
                        Renewed::Over => return Ok(None),
                    }
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    async fn keep_profile(
        &self,
        id: &GrantId,
        user: WebUser,
        lang: Lang,
        fetched_at: Timestamp,
    ) -> Result<Option<Profile>, ProfileError> {
        if user.openid != id.openid {
            let reason = "it is the profile of another user".to_owned();
            return Err(wechat::Error::from(ProtocolError { reason, status: 200 }).into());
        }
        let text = serde_json::to_string(&user).expect("a profile is plain data");
        let value = self.0.sealer.seal(&Place::Profile(id.clone()).binding(), text.as_bytes());
        let row = ProfileRow { value, lang, fetched_at };
        // One whose grant has gone meanwhile, or that cannot be stored, is told all the same.
        if let Err(err) = self.0.store.put_profile(id, &row, user.unionid.as_ref()).await {
            tracing::warn!(app.id = %id.app, error = %err, "{}: a profile was not kept", id.app);
        }
        Ok(Some(Profile { user, scope: id.scope, fetched_at }))
    }

    /// Renews the web token of a grant, together with all who want this version of it renewed.
    async fn renewed(&self, row: &GrantRow, why: Why) -> Result<Renewed, ProfileError> {
        let (broker, seen) = (self.clone(), row.clone());
        let work = async move { broker.renew(&seen, why).await };
        let key = (row.id.clone(), row.version.clone(), why);
        self.0
            .renewals
            .join(&self.0.tasks, key, work)
            .await
            .unwrap_or_else(|| Err(StoreError::Unavailable("the renewal died".to_owned()).into()))
    }

    /// One at a time for each grant, in all processes. What another one does meanwhile is what was
    /// wanted, and a token that lives is not waited for.
    async fn renew(&self, seen: &GrantRow, why: Why) -> Result<Renewed, ProfileError> {
        /// How often to look at what the holder of the lease does.
        const LOOK: Duration = Duration::from_millis(200);
        let GrantId { app, openid, scope } = &seen.id;
        let user = self.0.hasher.hash(&format!("grant/{}/{}", openid.as_str(), scope.as_str()));
        let name = format!("grant/{app}/{}", URL_SAFE_NO_PAD.encode(&user[..16]));
        let owner = random_word::<12>();
        // A holder who is alive ends in time; one who was killed does not keep a user for long.
        let lease_life = self.0.wechat.budget() + TO_STORE;
        let enough = tokio::time::Instant::now() + lease_life + TO_STORE;
        while tokio::time::Instant::now() < enough {
            let lease = match self.0.shared.acquire(&name, &owner, lease_life).await? {
                Acquired::Yes(lease) => lease,
                Acquired::HeldUntil(_) => {
                    if why == Why::Over && self.now() < seen.token_expires_at {
                        return Ok(Renewed::Live(Box::new(seen.clone())));
                    }
                    tokio::time::sleep(LOOK).await;
                    match self.find_grant(&seen.id).await? {
                        Some(now) if now.version == seen.version => continue,
                        Some(now) if now.is_live(self.now()) => {
                            return Ok(Renewed::Live(Box::new(now)));
                        }
                        _ => return Ok(Renewed::Over),
                    }
                }
            };
            let worked = self.renew_with_lease(seen, &lease).await;
            self.release(&lease).await;
            if let Some(renewed) = worked? {
                return Ok(renewed);
            }
        }
        Err(ProfileError::Deadline)
    }

    /// `None`: the lease may end before WeChat answers.
    async fn renew_with_lease(
        &self,
        seen: &GrantRow,
        lease: &Lease,
    ) -> Result<Option<Renewed>, ProfileError> {
        let Some(row) = self.find_grant(&seen.id).await? else { return Ok(Some(Renewed::Over)) };
        if !row.is_live(self.now()) {
            return Ok(Some(Renewed::Over));
        }
        if row.version != seen.version {
            return Ok(Some(Renewed::Live(Box::new(row))));
        }
        let Some(tokens) = self.open_tokens(&row)? else { return Ok(Some(Renewed::Over)) };
        if row.renewable_until() <= self.now() {
            return Ok(Some(Renewed::Over));
        }
        if lease.until < self.shared_time().await? + self.0.wechat.budget() {
            return Ok(None);
        }
        self.0.counters.renewals.add();
        let sent = self.now();
        let refresh_token = RefreshToken::new(tokens.refresh_token);
        let version = random_word::<9>();
        let new = match self.0.wechat.refresh_web_token(&row.id.app, &refresh_token).await {
            Ok(issued) if issued.openid != row.id.openid => {
                let reason = "it is the token of another user".to_owned();
                return Err(wechat::Error::from(ProtocolError { reason, status: 200 }).into());
            }
            Ok(issued) => GrantRow {
                tokens: Some(self.seal_tokens(&row.id, &version, &issued)),
                token_expires_at: sent + issued.expires_in,
                version,
                ..row
            },
            Err(wechat::Error::Api(error)) if ENDED.contains(&error.code) => {
                tracing::info!(
                    app.id = %row.id.app,
                    wechat.errcode = error.code,
                    wechat.rid = error.rid,
                    "{}: a grant has ended; its user must authorise again",
                    row.id.app
                );
                self.0.counters.grants_ended.add();
                GrantRow { tokens: None, ended: Some((sent, error.code)), version, ..row }
            }
            Err(error) => return Err(error.into()),
        };
        if !self.patiently(|| self.0.store.put_tokens(&new, &seen.version)).await? {
            // One that was replaced or forgotten meanwhile stays so. But while the store was away,
            // somebody may have heard that the refresh token is over because this one replaced it.
            let stored = self.find_grant(&new.id).await?;
            let ended = stored.filter(|it| {
                it.ended.is_some() && it.authorised_at == new.authorised_at && new.tokens.is_some()
            });
            let Some(ended) = ended else { return Ok(None) };
            if !self.patiently(|| self.0.store.put_tokens(&new, &ended.version)).await? {
                return Ok(None);
            }
        }
        Ok(Some(if new.tokens.is_some() { Renewed::Live(Box::new(new)) } else { Renewed::Over }))
    }

    async fn find_grant(&self, id: &GrantId) -> StoreResult<Option<GrantRow>> {
        let rows = self.0.store.grants(&id.app, &id.openid).await?;
        Ok(rows.into_iter().find(|row| row.id == *id))
    }

    fn reauthorize(
        &self,
        entry: &Arc<AppEntry>,
        key: &ClientKey,
        rows: &[GrantRow],
        query: &ProfileQuery,
    ) -> Result<Profile, ProfileError> {
        let app = Arc::clone(&entry.app());
        let wide = rows.iter().find(|row| row.id.scope.reads_profiles());
        let why = match (rows.first(), wide) {
            (None, _) => "the user has not authorised the app, or long ago",
            (Some(_), None) => "the user has let the app know the openid only (snsapi_base)",
            (Some(_), Some(wide)) if wide.is_live(self.now()) => {
                "WeChat refuses the user's web token even after its renewal"
            }
            (Some(_), Some(_)) => "the user's authorisation has ended",
        };
        // One service's addresses are not another's.
        let stored = wide.or(rows.first()).filter(|row| row.client == key.id);
        let stored = stored.and_then(|row| row.redirect_uri.as_deref());
        let redirect_uri = query
            .redirect_uri
            .clone()
            .or_else(|| stored.and_then(|uri| uri.parse().ok()))
            .or_else(|| self.0.redirects.last(&app.id, key));
        let scope = match app.kind {
            AppKind::Website => Scope::Login,
            _ => Scope::UserInfo,
        };
        let authorize = redirect_uri.map(|redirect_uri| {
            self.authorize_page(
                &app,
                &Authorize {
                    redirect_uri,
                    scope: Some(scope),
                    state: None,
                    force_popup: false,
                    force_snapshot: false,
                    in_english: false,
                },
            )
        });
        let authorize = authorize.transpose()?.map(Box::new);
        Err(ProfileError::Reauthorize { why: why.to_owned(), authorize })
    }

    fn seal_tokens(&self, id: &GrantId, version: &str, issued: &IssuedGrant) -> Sealed {
        let tokens = Tokens {
            access_token: issued.token.expose().to_owned(),
            refresh_token: issued.refresh_token.expose().to_owned(),
        };
        let text = serde_json::to_string(&tokens).expect("tokens are plain data");
        let place = Place::Tokens(id.clone(), version.to_owned());
        self.0.sealer.seal(&place.binding(), text.as_bytes())
    }

    fn open_tokens(&self, row: &GrantRow) -> StoreResult<Option<Tokens>> {
        let Some(tokens) = &row.tokens else { return Ok(None) };
        let text = self.open_sealed(&Place::Tokens(row.id.clone(), row.version.clone()), tokens)?;
        let tokens = serde_json::from_str(&text)
            .map_err(|_| StoreError::Corrupt("the tokens of a grant are none".to_owned()))?;
        Ok(Some(tokens))
    }

    fn open_profile(&self, id: &GrantId, row: &ProfileRow) -> StoreResult<Profile> {
        let text = self.open_sealed(&Place::Profile(id.clone()), &row.value)?;
        let user = serde_json::from_str(&text)
            .map_err(|_| StoreError::Corrupt("a profile is none".to_owned()))?;
        Ok(Profile { user, scope: id.scope, fetched_at: row.fetched_at })
    }
}
