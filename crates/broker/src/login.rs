//! Logins: from the page where a user consents to the identity that comes back.
//!
//! A code is exchanged at most once, whatever happens. Whoever brings one first claims it in the
//! store, before anything is sent to WeChat, and the claim outlives the code. What the exchange
//! gave is told again for 10 minutes, to those who prove that they are who brought it first; to
//! all others the code is used, and WeChat is not called.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use clock::Timestamp;
use wechat::{
    AppId, AuthCode, AuthorizePage, IssuedGrant, LoginState, OpenId, RedirectUri, Scope, UnionId,
};

use crate::{
    AppEntry, Broker,
    app::{App, AppKind},
    claim::Outcome,
    key::ClientKey,
    random::random_bytes,
    store::{Kept, StoreError},
};

/// A wish to send a user to WeChat.
#[derive(Clone, Debug)]
pub struct Authorize {
    /// Where WeChat sends the browser with the code.
    pub redirect_uri: RedirectUri,
    /// What is asked for; `None`: the narrowest that the app's kind has.
    pub scope: Option<Scope>,
    /// What comes back beside the code; `None`: 32 random characters.
    pub state: Option<LoginState>,
    /// Asks for consent even where WeChat would not.
    pub force_popup: bool,
    /// Shows the page as a snapshot, for tests.
    pub force_snapshot: bool,
    /// The page with the QR code in English.
    pub in_english: bool,
}

/// Where to send the user.
#[derive(Clone, PartialEq, Eq)]
pub struct AuthorizeUrl {
    /// The address of WeChat's page.
    pub url: String,
    /// The state in it.
    pub state: LoginState,
}

impl fmt::Debug for AuthorizeUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The address holds the state.
        f.write_str("AuthorizeUrl([redacted])")
    }
}

/// What shows that a repeat comes from who brought the code first.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Proof<'a> {
    /// Nothing: every repeat is somebody else's.
    None,
    /// A value that the caller keeps in the browser's cookie or session, and never in a URL.
    Binding(&'a str),
    /// The key under which a service repeats its own request when an answer got lost.
    IdempotencyKey(&'a str),
}

impl fmt::Debug for Proof<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "None",
            Self::Binding(_) => "Binding([redacted])",
            Self::IdempotencyKey(_) => "IdempotencyKey([redacted])",
        })
    }
}

/// Who a user is, as the exchange of a code told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The user's id in this app.
    pub openid: OpenId,
    /// The user's id in the owner's Open Platform account, from this exchange or remembered; never
    /// the openid.
    pub unionid: Option<UnionId>,
    /// The widest scope that the user consented to.
    pub scope: Scope,
    /// The user looks at a snapshot of the page: the ids are made up and nothing was kept.
    pub is_snapshot_user: bool,
    /// When the web token ends. It is kept for the user, unless the ids are made up.
    pub expires_at: Timestamp,
}

/// The kind of an app does not go with what was asked of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{problem}")]
pub struct WrongKind {
    /// The parameter that does not go with it, if it is one.
    pub field: Option<&'static str>,
    /// Why.
    pub(crate) problem: &'static str,
}

impl WrongKind {
    pub(crate) const fn new(problem: &'static str) -> Self {
        Self { field: None, problem }
    }
}

/// Why a code gave no identity.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExchangeError {
    /// The app's kind has no such logins.
    #[error(transparent)]
    WrongKind(#[from] WrongKind),
    /// The code was brought before, and nothing proves that it was by the same browser.
    #[error("the code was used before, and nothing proves that this is the same browser")]
    CodeUsed,
    /// The same brought it before, too long ago to be told again what it gave.
    #[error("the code was used before, too long ago to be told again what it gave")]
    NoLongerTold,
    /// The code was sent to WeChat, and its answer is lost: the user must authorise again.
    #[error("the code was sent to WeChat, and whether it is spent is not known: {0}")]
    MaybeSpent(String),
    /// WeChat refused; the code is of no use any more.
    #[error(transparent)]
    Refused(wechat::ApiError),
    /// WeChat could not be reached: the code was not sent, and may be brought again.
    #[error(transparent)]
    Unreachable(wechat::TransportError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Broker {
    /// The page to send a user's browser to. Remembers the redirect URI without its query, in this
    /// process, for users of this key who have to authorise again.
    pub fn authorize_url(
        &self,
        entry: &Arc<AppEntry>,
        key: &ClientKey,
        wanted: &Authorize,
    ) -> Result<AuthorizeUrl, WrongKind> {
        let app = entry.app();
        let page = self.authorize_page(&app, wanted)?;
        self.0.redirects.remember(&app.id, key, &wanted.redirect_uri);
        Ok(page)
    }

    pub(crate) fn authorize_page(
        &self,
        app: &App,
        wanted: &Authorize,
    ) -> Result<AuthorizeUrl, WrongKind> {
        let scope = scope_of(app, wanted.scope)?;
        let state = wanted.state.clone().unwrap_or_else(random_state);
        let url = self.0.wechat.authorize_url(&AuthorizePage {
            app: &app.id,
            redirect_uri: &wanted.redirect_uri,
            scope,
            state: &state,
            force_popup: wanted.force_popup,
            force_snapshot: wanted.force_snapshot,
            in_english: wanted.in_english,
        });
        Ok(AuthorizeUrl { url, state })
    }

    /// Exchanges a code for the user's identity, and keeps the grant. `redirect_uri` is the one
    /// that was given for the page, where the user would come back to when the grant has ended.
    pub async fn exchange(
        &self,
        entry: &Arc<AppEntry>,
        key: &ClientKey,
        code: &AuthCode,
        proof: Proof<'_>,
        redirect_uri: Option<&RedirectUri>,
    ) -> Result<Identity, ExchangeError> {
        // A mini program has none.
        scope_of(&entry.app(), None)?;
        let redirect_uri = redirect_uri.cloned();
        let redirect_uri = redirect_uri.or_else(|| self.0.redirects.last(&entry.app().id, key));
        let back_to = (key.id.clone(), redirect_uri.map(|uri| uri.as_str().to_owned()));
        let for_wechat = code.clone();
        let exchange = async move |broker: Self, app: Arc<App>| {
            let sent = broker.now();
            match broker.0.wechat.exchange_code(&app.id, &app.secret, &for_wechat).await {
                Ok(issued) => Ok(broker.identity(&app, issued, sent, back_to).await),
                Err(error) => Ok((Outcome::of(error)?, Kept::Nothing)),
            }
        };
        match self.exchange_once(entry, key, code, proof, exchange).await?.succeeded()? {
            Outcome::Identity { openid, unionid, scope, is_snapshot_user, expires_at } => {
                Ok(Identity {
                    openid: OpenId::new(openid),
                    unionid: unionid.map(UnionId::new),
                    scope: scope.parse().unwrap_or(Scope::Base),
                    is_snapshot_user,
                    expires_at: Timestamp::from_millis(expires_at),
                })
            }
            _ => Err(ExchangeError::CodeUsed),
        }
    }

    /// What an answer of WeChat's tells of a user, and the grant to keep. Of a user who does not
    /// exist nothing is kept.
    async fn identity(
        &self,
        app: &App,
        issued: IssuedGrant,
        sent: Timestamp,
        back_to: (String, Option<String>),
    ) -> (Outcome, Kept) {
        let expires_at = sent + issued.expires_in;
        let (unionid, kept) = if issued.is_snapshot_user {
            (issued.unionid.clone(), Kept::Nothing)
        } else {
            let unionid = self.known_unionid(app, &issued.openid, issued.unionid.as_ref()).await;
            let row = self.new_grant(app, &issued, sent, back_to);
            (unionid, Kept::Grant(row, issued.unionid.clone()))
        };
        let outcome = Outcome::Identity {
            openid: issued.openid.as_str().to_owned(),
            unionid: unionid.map(|unionid| unionid.as_str().to_owned()),
            scope: issued.scope.as_str().to_owned(),
            is_snapshot_user: issued.is_snapshot_user,
            expires_at: expires_at.as_millis(),
        };
        (outcome, kept)
    }
}

/// The scope to ask for: the narrowest that the app's kind has, unless another of its scopes is
/// wanted.
pub(crate) fn scope_of(app: &App, wanted: Option<Scope>) -> Result<Scope, WrongKind> {
    match (app.kind, wanted) {
        (AppKind::MiniProgram, _) => Err(WrongKind::new(
            "a mini program has no page where users authorise: it logs in by `wx.login`, and its \
             code goes to `mini/login`",
        )),
        (AppKind::Website, None | Some(Scope::Login)) => Ok(Scope::Login),
        (AppKind::Website, Some(_)) => {
            let problem = "a website app has the scope `snsapi_login` only";
            Err(WrongKind { field: Some("scope"), problem })
        }
        (AppKind::Official | AppKind::Test, Some(Scope::Login)) => {
            let problem = "only a website app has the scope `snsapi_login`";
            Err(WrongKind { field: Some("scope"), problem })
        }
        (AppKind::Official | AppKind::Test, wanted) => Ok(wanted.unwrap_or(Scope::Base)),
    }
}

/// A state that nobody guesses.
pub(crate) fn random_state() -> LoginState {
    let hex: String = random_bytes::<16>().iter().map(|byte| format!("{byte:02x}")).collect();
    hex.parse().expect("hexadecimal digits are a state")
}

/// Where users of each client key come back to, by app: for those who have to authorise again and
/// of whose grant it is not known. Without the query, which may be one user's.
#[derive(Default)]
pub(crate) struct Redirects(Mutex<HashMap<(AppId, String), RedirectUri>>);

impl Redirects {
    fn remember(&self, app: &AppId, key: &ClientKey, uri: &RedirectUri) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.insert((app.clone(), key.id.clone()), uri.without_query());
    }

    pub(crate) fn last(&self, app: &AppId, key: &ClientKey) -> Option<RedirectUri> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(&(app.clone(), key.id.clone())).cloned()
    }
}
