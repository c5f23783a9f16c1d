//! What logins leave behind: claims on codes, grants, unionids, and sessions of mini programs.

use std::time::Duration;

use async_trait::async_trait;
use clock::Timestamp;
use wechat::{AppId, Lang, OpenId, Scope, UnionId};

use super::StoreResult;
use crate::{audit::AuditEntry, seal::Sealed, slot::SET_BACK};

/// A claim on a code is remembered for so long, far beyond the code's life: addresses with a code
/// in them are shared and kept, and none of them shall lead to a call.
pub const CLAIM_KEPT: Duration = Duration::from_secs(30 * 86_400);
/// What an exchange gave is told again for so long.
pub const OUTCOME_KEPT: Duration = Duration::from_secs(600);
/// A profile is kept for so long.
pub const PROFILE_KEPT: Duration = Duration::from_secs(3600);
/// A grant is remembered for so long after the authorisation, and can no longer be used for most
/// of that time.
pub const GRANT_KEPT: Duration = Duration::from_secs(180 * 86_400);

/// The right to exchange a code, and what came of it. Nobody but its owner exchanges the code, and
/// it never passes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The app.
    pub app: AppId,
    /// Keyed hash of the code.
    pub code: [u8; 32],
    /// The id of the client key that brought it.
    pub client: String,
    /// Keyed hash of what proves a repeat to be the same browser's or request's.
    pub proof: Option<[u8; 32]>,
    /// Who exchanges it; unique for each claim.
    pub owner: String,
    /// When it was made.
    pub claimed_at: Timestamp,
    /// Until when its owner must have settled it: one that has not by then died or cannot reach the
    /// store, and nobody else knows whether the code is spent.
    pub deadline: Timestamp,
    /// When it was settled.
    pub settled_at: Option<Timestamp>,
    /// What the exchange gave, sealed; gone [`OUTCOME_KEPT`] after it was settled.
    pub outcome: Option<Sealed>,
}

/// Which grant: of a user of an app, by scope.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GrantId {
    /// The app.
    pub app: AppId,
    /// The user.
    pub openid: OpenId,
    /// What the user consented to.
    pub scope: Scope,
}

/// One grant as stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GrantRow {
    /// Which grant.
    pub id: GrantId,
    /// A random word, another one each time that the tokens are written.
    pub version: String,
    /// Web token and refresh token, sealed together; `None`: the grant has ended.
    pub tokens: Option<Sealed>,
    /// When the web token ends.
    pub token_expires_at: Timestamp,
    /// When the user authorised.
    pub authorised_at: Timestamp,
    /// The id of the client key that brought the code.
    pub client: String,
    /// Where the user came back to, and would come back to.
    pub redirect_uri: Option<String>,
    /// When WeChat said that the grant has ended, and by which errcode.
    pub ended: Option<(Timestamp, i64)>,
    /// The profile that was last read with it.
    pub profile: Option<ProfileRow>,
}

impl GrantRow {
    /// Whether it goes over one that was authorised at `stored`: two callbacks of a user may be
    /// settled in another order than they were authorised in.
    pub(super) fn goes_over(&self, stored: Timestamp, now: Timestamp) -> bool {
        // One of the future was stored before the clock was set back.
        stored <= self.authorised_at || stored > now + SET_BACK
    }
}

/// A profile as stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProfileRow {
    /// The profile, sealed.
    pub value: Sealed,
    /// The language that it was asked for in.
    pub lang: Lang,
    /// When WeChat told it.
    pub fetched_at: Timestamp,
}

/// A session of a mini program's user as stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionRow {
    /// The app.
    pub app: AppId,
    /// Keyed hash of the session's id.
    pub id: [u8; 32],
    /// The user.
    pub openid: OpenId,
    /// The session key, sealed.
    pub session_key: Sealed,
    /// Until when it is kept.
    pub expires_at: Timestamp,
}

/// What is kept of an exchange beside its outcome.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kept {
    /// Nothing: it failed, or the user is a made-up one.
    Nothing,
    /// A grant, and the unionid if it was told.
    Grant(GrantRow, Option<UnionId>),
    /// A session, and the unionid if it was told.
    Session(SessionRow, Option<UnionId>),
}

/// What logins leave behind. The contract of [`super::Store`] holds for every method. Nothing here
/// is in the change log: no process keeps any of it in memory.
#[async_trait]
pub trait Logins: Send + Sync {
    /// Claims a code for `claim.owner`, unless there is a claim on it already, which is answered.
    /// A claim stays when its app is removed. `None`: the code is theirs to exchange.
    async fn claim_code(&self, claim: &Claim) -> StoreResult<Option<Claim>>;

    /// The claim on a code.
    async fn find_claim(&self, app: &AppId, code: &[u8; 32]) -> StoreResult<Option<Claim>>;

    /// Takes back a claim that is not settled, because nothing was sent to WeChat. `false`: it is
    /// settled, or another owner's.
    async fn give_up_claim(&self, app: &AppId, code: &[u8; 32], owner: &str) -> StoreResult<bool>;

    /// Settles a claim as of [`super::Store::now`], and keeps what the exchange left in our hands:
    /// a grant replaces the one there was, unless that is of a later authorisation, and a unionid the
    /// one that was known. The claim is settled also when its app is gone, and then nothing is kept. `false`: it is settled already, or
    /// another owner's; nothing was written.
    async fn settle_claim(
        &self,
        app: &AppId,
        code: &[u8; 32],
        owner: &str,
        outcome: &Sealed,
        kept: &Kept,
    ) -> StoreResult<bool>;

    /// The grants of a user, by scope.
    async fn grants(&self, app: &AppId, openid: &OpenId) -> StoreResult<Vec<GrantRow>>;

    /// The grants of the first `limit` users of an app, by openid and scope, those after `after`.
    async fn list_grants(
        &self,
        app: &AppId,
        after: Option<&OpenId>,
        limit: usize,
    ) -> StoreResult<Vec<GrantRow>>;

    /// Replaces the tokens and the end of the grant whose version is `over`; its profile goes when it
    /// has ended; the rest stays. `false`: it has another, or is gone.
    async fn put_tokens(&self, row: &GrantRow, over: &str) -> StoreResult<bool>;

    /// Keeps the profile that was read with a grant, and the unionid if the profile told it.
    /// `false`: the grant is gone, and nothing was written.
    async fn put_profile(
        &self,
        id: &GrantId,
        profile: &ProfileRow,
        unionid: Option<&UnionId>,
    ) -> StoreResult<bool>;

    /// The unionid of a user, if it was ever learnt.
    async fn unionid(&self, app: &AppId, openid: &OpenId) -> StoreResult<Option<UnionId>>;

    /// A session that has not expired.
    async fn find_session(&self, app: &AppId, id: &[u8; 32]) -> StoreResult<Option<SessionRow>>;

    /// Forgets all about a user: grants, profiles, unionid, sessions. Claims stay. `false`: there
    /// was nothing, and the audit entry was not written.
    async fn forget_user(
        &self,
        app: &AppId,
        openid: &OpenId,
        audit: &AuditEntry,
    ) -> StoreResult<bool>;

    /// Forgets what is kept for a time only and has had it: claims, outcomes, grants, profiles,
    /// sessions, at most `limit` of each. Answers how many it forgot.
    async fn forget_past_logins(&self, limit: usize) -> StoreResult<usize>;
}
