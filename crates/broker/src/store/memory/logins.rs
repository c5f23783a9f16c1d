//! What logins leave behind, in memory.

use std::collections::BTreeMap;

use async_trait::async_trait;
use clock::Timestamp;
use wechat::{AppId, OpenId, UnionId};

use super::MemoryStore;
use crate::{
    audit::AuditEntry,
    seal::Sealed,
    store::{
        Place, StoreResult,
        logins::{
            CLAIM_KEPT, Claim, GRANT_KEPT, GrantId, GrantRow, Kept, Logins, OUTCOME_KEPT,
            PROFILE_KEPT, ProfileRow, SessionRow,
        },
    },
};

/// A hash under which an app has something.
type Key = (AppId, [u8; 32]);

#[derive(Debug, Default)]
pub(super) struct LoginState {
    claims: BTreeMap<Key, Claim>,
    grants: BTreeMap<GrantId, GrantRow>,
    unionids: BTreeMap<(AppId, OpenId), UnionId>,
    sessions: BTreeMap<Key, SessionRow>,
}

impl LoginState {
    /// Forgets what goes with an app.
    pub(super) fn forget_app(&mut self, app: &AppId) {
        self.grants.retain(|id, _| id.app != *app);
        self.unionids.retain(|(of, _), _| of != app);
        self.sessions.retain(|(of, _), _| of != app);
    }

    /// The sealed values, each with its place.
    pub(super) fn sealed(&self) -> impl Iterator<Item = (Place, &Sealed)> {
        let outcomes = self.claims.values().filter_map(|claim| {
            let place = Place::Outcome(claim.app.clone(), claim.code);
            claim.outcome.as_ref().map(|outcome| (place, outcome))
        });
        let tokens = self.grants.values().filter_map(|row| {
            let place = Place::Tokens(row.id.clone(), row.version.clone());
            row.tokens.as_ref().map(|tokens| (place, tokens))
        });
        let profiles = self.grants.values().filter_map(|row| {
            let place = Place::Profile(row.id.clone());
            row.profile.as_ref().map(|profile| (place, &profile.value))
        });
        let sessions = self.sessions.values().map(|session| {
            (Place::SessionKey(session.app.clone(), session.id), &session.session_key)
        });
        outcomes.chain(tokens).chain(profiles).chain(sessions)
    }

    /// The sealed value at a place of logins.
    pub(super) fn sealed_at(&mut self, place: &Place) -> Option<&mut Sealed> {
        match place {
            Place::Outcome(app, code) => {
                self.claims.get_mut(&(app.clone(), *code))?.outcome.as_mut()
            }
            Place::Tokens(id, version) => {
                let row = self.grants.get_mut(id).filter(|row| row.version == *version)?;
                row.tokens.as_mut()
            }
            Place::Profile(id) => {
                let profile = self.grants.get_mut(id)?.profile.as_mut()?;
                Some(&mut profile.value)
            }
            Place::SessionKey(app, id) => {
                let session = self.sessions.get_mut(&(app.clone(), *id))?;
                Some(&mut session.session_key)
            }
            Place::AppSecret(_) | Place::Credential(..) | Place::Own(_) | Place::PassKey(_) => None,
        }
    }

    fn learn(&mut self, app: &AppId, openid: &OpenId, unionid: Option<&UnionId>) {
        if let Some(unionid) = unionid {
            self.unionids.insert((app.clone(), openid.clone()), unionid.clone());
        }
    }

    fn keep(&mut self, kept: &Kept, now: Timestamp) {
        match kept {
            Kept::Nothing => {}
            Kept::Grant(row, unionid) => {
                self.learn(&row.id.app, &row.id.openid, unionid.as_ref());
                if self
                    .grants
                    .get(&row.id)
                    .is_none_or(|stored| row.goes_over(stored.authorised_at, now))
                {
                    self.grants.insert(row.id.clone(), row.clone());
                }
            }
            Kept::Session(row, unionid) => {
                self.learn(&row.app, &row.openid, unionid.as_ref());
                self.sessions.insert((row.app.clone(), row.id), row.clone());
            }
        }
    }
}

#[async_trait]
impl Logins for MemoryStore {
    async fn claim_code(&self, claim: &Claim) -> StoreResult<Option<Claim>> {
        self.write(|state, _| {
            let key = (claim.app.clone(), claim.code);
            if let Some(claimed) = state.logins.claims.get(&key) {
                return Some(claimed.clone());
            }
            state.logins.claims.insert(key, claim.clone());
            None
        })
    }

    async fn find_claim(&self, app: &AppId, code: &[u8; 32]) -> StoreResult<Option<Claim>> {
        Ok(self.state()?.logins.claims.get(&(app.clone(), *code)).cloned())
    }

    async fn give_up_claim(&self, app: &AppId, code: &[u8; 32], owner: &str) -> StoreResult<bool> {
        self.write(|state, _| {
            let key = (app.clone(), *code);
            let claims = &mut state.logins.claims;
            let theirs = claims
                .get(&key)
                .is_some_and(|claim| claim.owner == owner && claim.settled_at.is_none());
            if theirs {
                claims.remove(&key);
            }
            theirs
        })
    }

    async fn settle_claim(
        &self,
        app: &AppId,
        code: &[u8; 32],
        owner: &str,
        outcome: &Sealed,
        kept: &Kept,
    ) -> StoreResult<bool> {
        self.write(|state, now| {
            let claim = state.logins.claims.get_mut(&(app.clone(), *code));
            let theirs = claim.filter(|claim| claim.owner == owner && claim.settled_at.is_none());
            let Some(claim) = theirs else { return false };
            claim.settled_at = Some(now);
            claim.outcome = Some(outcome.clone());
            if state.apps.contains_key(app) {
                state.logins.keep(kept, now);
            }
            true
        })
    }

    async fn grants(&self, app: &AppId, openid: &OpenId) -> StoreResult<Vec<GrantRow>> {
        let state = self.state()?;
        let of_user = state.logins.grants.values();
        Ok(of_user.filter(|row| row.id.app == *app && row.id.openid == *openid).cloned().collect())
    }

    async fn list_grants(
        &self,
        app: &AppId,
        after: Option<&OpenId>,
        limit: usize,
    ) -> StoreResult<Vec<GrantRow>> {
        let state = self.state()?;
        let later =
            state.logins.grants.values().filter(|row| {
                row.id.app == *app && after.is_none_or(|after| row.id.openid > *after)
            });
        let mut users = 0;
        let mut last = None;
        let page = later.take_while(|row| {
            if last != Some(&row.id.openid) {
                users += 1;
                last = Some(&row.id.openid);
            }
            users <= limit
        });
        Ok(page.cloned().collect())
    }

    async fn put_tokens(&self, row: &GrantRow, over: &str) -> StoreResult<bool> {
        self.write(|state, _| {
            let stored = state.logins.grants.get_mut(&row.id);
            let Some(stored) = stored.filter(|stored| stored.version == over) else { return false };
            stored.version.clone_from(&row.version);
            stored.tokens.clone_from(&row.tokens);
            stored.token_expires_at = row.token_expires_at;
            stored.ended = row.ended;
            if row.ended.is_some() {
                stored.profile = None;
            }
            true
        })
    }

    async fn put_profile(
        &self,
        id: &GrantId,
        profile: &ProfileRow,
        unionid: Option<&UnionId>,
    ) -> StoreResult<bool> {
        self.write(|state, _| {
            let Some(stored) = state.logins.grants.get_mut(id) else { return false };
            stored.profile = Some(profile.clone());
            state.logins.learn(&id.app, &id.openid, unionid);
            true
        })
    }

    async fn unionid(&self, app: &AppId, openid: &OpenId) -> StoreResult<Option<UnionId>> {
        Ok(self.state()?.logins.unionids.get(&(app.clone(), openid.clone())).cloned())
    }

    async fn find_session(&self, app: &AppId, id: &[u8; 32]) -> StoreResult<Option<SessionRow>> {
        let session = self.state()?.logins.sessions.get(&(app.clone(), *id)).cloned();
        Ok(session.filter(|session| self.time() < session.expires_at))
    }

    async fn forget_user(
        &self,
        app: &AppId,
        openid: &OpenId,
        audit: &AuditEntry,
    ) -> StoreResult<bool> {
        self.write(|state, _| {
            let logins = &mut state.logins;
            let before = logins.grants.len() + logins.unionids.len() + logins.sessions.len();
            logins.grants.retain(|id, _| id.app != *app || id.openid != *openid);
            logins.unionids.remove(&(app.clone(), openid.clone()));
            logins.sessions.retain(|(of, _), row| of != app || row.openid != *openid);
            let after = logins.grants.len() + logins.unionids.len() + logins.sessions.len();
            if after == before {
                return false;
            }
            state.audit.push(audit.clone());
            true
        })
    }

    async fn forget_past_logins(&self, limit: usize) -> StoreResult<usize> {
        self.write(|state, now| {
            let logins = &mut state.logins;
            let past = |at: Timestamp, kept| at + kept <= now;
            let mut forgotten = 0;
            let claims = |_: &Key, claim: &mut Claim| past(claim.claimed_at, CLAIM_KEPT);
            forgotten += logins.claims.extract_if(.., claims).take(limit).count();
            let told = |claim: &&mut Claim| {
                claim.outcome.is_some() && claim.settled_at.is_some_and(|at| past(at, OUTCOME_KEPT))
            };
            for claim in logins.claims.values_mut().filter(told).take(limit) {
                claim.outcome = None;
                forgotten += 1;
            }
            let grants = |_: &GrantId, row: &mut GrantRow| past(row.authorised_at, GRANT_KEPT);
            forgotten += logins.grants.extract_if(.., grants).take(limit).count();
            let seen = |row: &&mut GrantRow| {
                row.profile.as_ref().is_some_and(|it| past(it.fetched_at, PROFILE_KEPT))
            };
            for row in logins.grants.values_mut().filter(seen).take(limit) {
                row.profile = None;
                forgotten += 1;
            }
            let sessions = |_: &Key, row: &mut SessionRow| row.expires_at <= now;
            forgotten + logins.sessions.extract_if(.., sessions).take(limit).count()
        })
    }
}
