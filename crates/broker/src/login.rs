//! Logins: from the page where a user consents to the identity that comes back.
//!
//! A code is exchanged at most once, whatever happens. Whoever brings one first claims it in the
//! store, before anything is sent to WeChat, and the claim outlives the code. What the exchange
//! gave is told again for 10 minutes, to those who prove that they are who brought it first; to
//! all others the code is used, and WeChat is not called.

use std::sync::Arc;

use clock::Timestamp;
use wechat::{AuthCode, LoginState, OpenId, RedirectUri, Scope, UnionId};

use crate::{AppEntry, Broker, key::ClientKey, store::StoreError};

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
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuthorizeUrl {
    /// The address of WeChat's page.
    pub url: String,
    /// The state in it.
    pub state: LoginState,
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
    /// When the web token ends that is kept for the user.
    pub expires_at: Timestamp,
}

/// The kind of an app does not go with what was asked of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct WrongKind(pub(crate) &'static str);

/// Why a code gave no identity.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExchangeError {
    /// The app's kind has no such logins.
    #[error(transparent)]
    WrongKind(#[from] WrongKind),
    /// The code was brought before, and nothing proves that it was by the same browser.
    #[error("the code was used before, and nothing proves that this is the same browser")]
    CodeUsed,
    /// The code was sent to WeChat, and its answer is lost: the user must authorise again.
    #[error("the code was sent to WeChat and no answer came back: {0}")]
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
    /// The page to send a user's browser to. Remembers the redirect URI for users of this key who
    /// have to authorise again.
    pub fn authorize_url(
        &self,
        entry: &Arc<AppEntry>,
        key: &ClientKey,
        wanted: &Authorize,
    ) -> Result<AuthorizeUrl, WrongKind> {
        todo!("{entry:p} {key:?} {wanted:?}")
    }

    /// Exchanges a code for the user's identity, and keeps the grant. `redirect_uri` is where the
    /// user came back to, and would come back to when the grant has ended.
    pub async fn exchange(
        &self,
        entry: &Arc<AppEntry>,
        key: &ClientKey,
        code: &AuthCode,
        proof: Proof<'_>,
        redirect_uri: Option<&RedirectUri>,
    ) -> Result<Identity, ExchangeError> {
        todo!()
    }
}
