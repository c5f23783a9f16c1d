//! What logins leave behind, in the file.

use async_trait::async_trait;
use clock::Timestamp;
use rusqlite::{Connection, named_params, params};
use wechat::{AppId, OpenId, UnionId};

use super::{SqliteStore, Write, query};
use crate::{
    audit::AuditEntry,
    seal::Sealed,
    store::{
        StoreResult,
        logins::{
            CLAIM_KEPT, Claim, GRANT_KEPT, GrantId, GrantRow, Kept, Logins, OUTCOME_KEPT,
            PROFILE_KEPT, ProfileRow, SessionRow,
        },
        rows::{self, CLAIM, GRANT, SESSION, columns, number},
    },
};

fn find_claim(db: &Connection, app: &AppId, code: &[u8; 32]) -> StoreResult<Option<Claim>> {
    let sql = format!("{CLAIM} WHERE app = ?1 AND code = ?2");
    query::first(db, &sql, params![app.as_str(), code], rows::claim)
}

impl Write<'_> {
    fn put_grant(&self, row: &GrantRow) -> StoreResult<()> {
        let stored = query::first(
            &self.transaction,
            "SELECT app, authorised_at FROM grants WHERE app = ?1 AND openid = ?2 AND scope = ?3",
            [row.id.app.as_str(), row.id.openid.as_str(), row.id.scope.as_str()],
            rows::authorised_at,
        )?;
        if stored.is_some_and(|stored| !row.goes_over(stored, self.now)) {
            return Ok(());
        }
        let (tokens_key, tokens) = columns(row.tokens.as_ref());
        let profile = row.profile.as_ref();
        let (profile_key, profile_value) = columns(profile.map(|profile| &profile.value));
        self.execute(
            "INSERT OR REPLACE INTO grants (app, openid, scope, version, tokens_key, tokens, \
                 token_expires_at, authorised_at, client, redirect_uri, ended_at, ended_errcode, \
                 profile_key, profile, profile_lang, profile_fetched_at) \
             VALUES (:app, :openid, :scope, :version, :tokens_key, :tokens, \
                 :token_expires_at, :authorised_at, :client, :redirect_uri, :ended_at, :ended_errcode, \
                 :profile_key, :profile, :profile_lang, :profile_fetched_at)",
            named_params! {
                ":app": row.id.app.as_str(),
                ":openid": row.id.openid.as_str(),
                ":scope": row.id.scope.as_str(),
                ":version": row.version,
                ":tokens_key": tokens_key,
                ":tokens": tokens,
                ":token_expires_at": row.token_expires_at.as_millis(),
                ":authorised_at": row.authorised_at.as_millis(),
                ":client": row.client,
                ":redirect_uri": row.redirect_uri,
                ":ended_at": row.ended.map(|(at, _)| at.as_millis()),
                ":ended_errcode": row.ended.map(|(_, errcode)| errcode),
                ":profile_key": profile_key,
                ":profile": profile_value,
                ":profile_lang": profile.map(|it| it.lang.as_str()),
                ":profile_fetched_at": profile.map(|it| it.fetched_at.as_millis()),
            },
        )?;
        Ok(())
    }

    fn put_session(&self, row: &SessionRow) -> StoreResult<()> {
        self.execute(
            "INSERT INTO mini_sessions (app, id, openid, session_key_key, session_key, expires_at) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            params![
                row.app.as_str(),
                row.id,
                row.openid.as_str(),
                row.session_key.key,
                row.session_key.bytes,
                row.expires_at.as_millis(),
            ],
        )?;
        Ok(())
    }

    fn learn(&self, app: &AppId, openid: &OpenId, unionid: Option<&UnionId>) -> StoreResult<()> {
        if let Some(unionid) = unionid {
            self.execute(
                "INSERT INTO unionids (app, openid, unionid) VALUES (?1, ?2, ?3) \
                 ON CONFLICT (app, openid) DO UPDATE SET unionid = ?3",
                [app.as_str(), openid.as_str(), unionid.as_str()],
            )?;
        }
        Ok(())
    }

    fn keep(&self, kept: &Kept) -> StoreResult<()> {
        match kept {
            Kept::Nothing => Ok(()),
            Kept::Grant(row, unionid) => {
                self.learn(&row.id.app, &row.id.openid, unionid.as_ref())?;
                self.put_grant(row)
            }
            Kept::Session(row, unionid) => {
                self.learn(&row.app, &row.openid, unionid.as_ref())?;
                self.put_session(row)
            }
        }
    }
}

#[async_trait]
impl Logins for SqliteStore {
    async fn claim_code(&self, claim: &Claim) -> StoreResult<Option<Claim>> {
        let claim = claim.clone();
        self.write(move |write| {
            if let Some(claimed) = find_claim(&write.transaction, &claim.app, &claim.code)? {
                return Ok(Some(claimed));
            }
            let (outcome_key, outcome) = columns(claim.outcome.as_ref());
            write.execute(
                "INSERT INTO claims (app, code, client, proof, owner, claimed_at, deadline, \
                     settled_at, outcome_key, outcome) \
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
                params![
                    claim.app.as_str(),
                    claim.code,
                    claim.client,
                    claim.proof,
                    claim.owner,
                    claim.claimed_at.as_millis(),
                    claim.deadline.as_millis(),
                    claim.settled_at.map(Timestamp::as_millis),
                    outcome_key,
                    outcome,
                ],
            )?;
            Ok(None)
        })
        .await
    }

    async fn find_claim(&self, app: &AppId, code: &[u8; 32]) -> StoreResult<Option<Claim>> {
        let (app, code) = (app.clone(), *code);
        self.read(move |db| find_claim(db, &app, &code)).await
    }

    async fn give_up_claim(&self, app: &AppId, code: &[u8; 32], owner: &str) -> StoreResult<bool> {
        let (app, code, owner) = (app.clone(), *code, owner.to_owned());
        self.write(move |write| {
            let given_up = write.execute(
                "DELETE FROM claims \
                 WHERE app = ?1 AND code = ?2 AND owner = ?3 AND settled_at IS NULL",
                params![app.as_str(), code, owner],
            )?;
            Ok(given_up > 0)
        })
        .await
    }

    async fn settle_claim(
        &self,
        app: &AppId,
        code: &[u8; 32],
        owner: &str,
        outcome: &Sealed,
        kept: &Kept,
    ) -> StoreResult<bool> {
        let (app, code, owner) = (app.clone(), *code, owner.to_owned());
        let (outcome, kept) = (outcome.clone(), kept.clone());
        self.write(move |write| {
            let settled = write.execute(
                "UPDATE claims SET settled_at = ?4, outcome_key = ?5, outcome = ?6 \
                 WHERE app = ?1 AND code = ?2 AND owner = ?3 AND settled_at IS NULL",
                params![
                    app.as_str(),
                    code,
                    owner,
                    write.now.as_millis(),
                    outcome.key,
                    outcome.bytes,
                ],
            )?;
            if settled == 0 {
                return Ok(false);
            }
            if write.has_app(&app)? {
                write.keep(&kept)?;
            }
            Ok(true)
        })
        .await
    }

    async fn grants(&self, app: &AppId, openid: &OpenId) -> StoreResult<Vec<GrantRow>> {
        let (app, openid) = (app.clone(), openid.clone());
        self.read(move |db| {
            let sql = format!("{GRANT} WHERE app = ?1 AND openid = ?2 ORDER BY scope");
            let mut grants =
                query::readable(db, &sql, [app.as_str(), openid.as_str()], rows::grant)?;
            grants.sort_by(|one, other| one.id.cmp(&other.id));
            Ok(grants)
        })
        .await
    }

    async fn list_grants(
        &self,
        app: &AppId,
        after: Option<&OpenId>,
        limit: usize,
    ) -> StoreResult<Vec<GrantRow>> {
        let (app, after) = (app.clone(), after.map_or(String::new(), |it| it.as_str().to_owned()));
        let limit = number(limit as u64);
        self.read(move |db| {
            let sql = format!(
                "{GRANT} WHERE app = ?1 AND openid IN \
                     (SELECT DISTINCT openid FROM grants WHERE app = ?1 AND openid > ?2 \
                      ORDER BY openid LIMIT ?3) \
                 ORDER BY openid"
            );
            let mut grants =
                query::readable(db, &sql, params![app.as_str(), after, limit], rows::grant)?;
            grants.sort_by(|one, other| one.id.cmp(&other.id));
            Ok(grants)
        })
        .await
    }

    async fn put_tokens(&self, row: &GrantRow, over: &str) -> StoreResult<bool> {
        let (row, over) = (row.clone(), over.to_owned());
        self.write(move |write| {
            let (tokens_key, tokens) = columns(row.tokens.as_ref());
            let put = write.execute(
                "UPDATE grants SET version = ?5, tokens_key = ?6, tokens = ?7, \
                     token_expires_at = ?8, ended_at = ?9, ended_errcode = ?10, \
                     profile_key = iif(?9 IS NULL, profile_key, NULL), \
                     profile = iif(?9 IS NULL, profile, NULL) \
                 WHERE app = ?1 AND openid = ?2 AND scope = ?3 AND version = ?4",
                params![
                    row.id.app.as_str(),
                    row.id.openid.as_str(),
                    row.id.scope.as_str(),
                    over,
                    row.version,
                    tokens_key,
                    tokens,
                    row.token_expires_at.as_millis(),
                    row.ended.map(|(at, _)| at.as_millis()),
                    row.ended.map(|(_, errcode)| errcode),
                ],
            )?;
            Ok(put > 0)
        })
        .await
    }

    async fn put_profile(
        &self,
        id: &GrantId,
        profile: &ProfileRow,
        unionid: Option<&UnionId>,
    ) -> StoreResult<bool> {
        let (id, profile, unionid) = (id.clone(), profile.clone(), unionid.cloned());
        self.write(move |write| {
            let put = write.execute(
                "UPDATE grants SET profile_key = ?4, profile = ?5, profile_lang = ?6, \
                     profile_fetched_at = ?7 \
                 WHERE app = ?1 AND openid = ?2 AND scope = ?3",
                params![
                    id.app.as_str(),
                    id.openid.as_str(),
                    id.scope.as_str(),
                    profile.value.key,
                    profile.value.bytes,
                    profile.lang.as_str(),
                    profile.fetched_at.as_millis(),
                ],
            )?;
            if put == 0 {
                return Ok(false);
            }
            write.learn(&id.app, &id.openid, unionid.as_ref())?;
            Ok(true)
        })
        .await
    }

    async fn unionid(&self, app: &AppId, openid: &OpenId) -> StoreResult<Option<UnionId>> {
        let (app, openid) = (app.clone(), openid.clone());
        self.read(move |db| {
            let sql = "SELECT app, openid, unionid FROM unionids WHERE app = ?1 AND openid = ?2";
            query::first(db, sql, [app.as_str(), openid.as_str()], rows::unionid)
        })
        .await
    }

    async fn find_session(&self, app: &AppId, id: &[u8; 32]) -> StoreResult<Option<SessionRow>> {
        let (app, id, clock) = (app.clone(), *id, self.inner.clock.clone());
        self.read(move |db| {
            let sql = format!("{SESSION} WHERE app = ?1 AND id = ?2 AND expires_at > ?3");
            let now = clock.now().as_millis();
            query::first(db, &sql, params![app.as_str(), id, now], rows::session)
        })
        .await
    }

    async fn forget_user(
        &self,
        app: &AppId,
        openid: &OpenId,
        audit: &AuditEntry,
    ) -> StoreResult<bool> {
        let (app, openid, audit) = (app.clone(), openid.clone(), audit.clone());
        self.write(move |write| {
            let mut forgotten = 0;
            for table in ["grants", "unionids", "mini_sessions"] {
                let sql = format!("DELETE FROM {table} WHERE app = ?1 AND openid = ?2");
                forgotten += write.execute(&sql, [app.as_str(), openid.as_str()])?;
            }
            if forgotten == 0 {
                return Ok(false);
            }
            write.audit(&audit)?;
            Ok(true)
        })
        .await
    }

    async fn forget_past_logins(&self, limit: usize) -> StoreResult<usize> {
        let limit = number(limit as u64);
        self.write(move |write| {
            let before = |kept: std::time::Duration| (write.now - kept).as_millis();
            let mut forgotten = 0;
            for (sql, since) in [
                (
                    "DELETE FROM claims WHERE (app, code) IN \
                         (SELECT app, code FROM claims WHERE claimed_at <= ?1 LIMIT ?2)",
                    before(CLAIM_KEPT),
                ),
                (
                    "UPDATE claims SET outcome_key = NULL, outcome = NULL WHERE (app, code) IN \
                         (SELECT app, code FROM claims \
                          WHERE settled_at <= ?1 AND outcome IS NOT NULL LIMIT ?2)",
                    before(OUTCOME_KEPT),
                ),
                (
                    "DELETE FROM grants WHERE (app, openid, scope) IN \
                         (SELECT app, openid, scope FROM grants \
                          WHERE authorised_at <= ?1 LIMIT ?2)",
                    before(GRANT_KEPT),
                ),
                (
                    "UPDATE grants SET profile_key = NULL, profile = NULL \
                     WHERE (app, openid, scope) IN \
                         (SELECT app, openid, scope FROM grants \
                          WHERE profile_fetched_at <= ?1 AND profile IS NOT NULL LIMIT ?2)",
                    before(PROFILE_KEPT),
                ),
                (
                    "DELETE FROM mini_sessions WHERE (app, id) IN \
                         (SELECT app, id FROM mini_sessions WHERE expires_at <= ?1 LIMIT ?2)",
                    write.now.as_millis(),
                ),
            ] {
                forgotten += write.execute(sql, [since, limit])?;
            }
            Ok(forgotten)
        })
        .await
    }
}
