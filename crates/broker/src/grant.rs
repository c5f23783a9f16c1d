//! Grants: what users' authorisations left with us, and the profiles that can be read with them.

use std::{sync::Arc, time::Duration};

use clock::Timestamp;
use wechat::{Lang, OpenId, RedirectUri, Scope, UnionId, WebUser};

use crate::{
    AppEntry, Broker, ManageError,
    audit::Actor,
    key::ClientKey,
    login::{AuthorizeUrl, WrongKind},
    store::{StoreError, StoreResult},
};

/// How long a profile is told again without asking WeChat.
pub const PROFILE_LIFE: Duration = Duration::from_secs(3600);

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
    /// 40030, 42002 or 42007.
    pub errcode: i64,
}

/// How a profile is wanted.
#[derive(Clone, Debug, Default)]
pub struct ProfileQuery {
    /// The language of names of places.
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

impl Broker {
    /// What we hold of a user; `None`: nothing.
    pub async fn grants(
        &self,
        entry: &Arc<AppEntry>,
        openid: &OpenId,
    ) -> StoreResult<Option<UserGrants>> {
        todo!()
    }

    /// The users of an app of whom we hold grants, in the order of their openids, at most `limit`,
    /// those after `after`.
    pub async fn list_grants(
        &self,
        entry: &Arc<AppEntry>,
        after: Option<&OpenId>,
        limit: usize,
    ) -> StoreResult<Vec<UserGrants>> {
        todo!()
    }

    /// Forgets all that we hold of a user: grants, profile, unionid, sessions. `false`: there was
    /// nothing.
    pub async fn forget_user(
        &self,
        entry: &Arc<AppEntry>,
        openid: &OpenId,
        actor: &Actor,
    ) -> Result<bool, ManageError> {
        todo!()
    }

    /// The profile of a user, by the widest grant that lives, renewing its web token when needed.
    pub async fn profile(
        &self,
        entry: &Arc<AppEntry>,
        key: &ClientKey,
        openid: &OpenId,
        query: &ProfileQuery,
    ) -> Result<Profile, ProfileError> {
        todo!()
    }
}
