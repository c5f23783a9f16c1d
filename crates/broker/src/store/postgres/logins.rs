//! What logins leave behind, in the database.

use std::time::Duration;

use async_trait::async_trait;
use clock::Timestamp;
use wechat::{AppId, OpenId, UnionId};

use super::{
    PostgresStore, Write,
    query::{Sql, as_text},
};
use crate::{
    audit::AuditEntry,
    seal::Sealed,
    slot::SET_BACK,
    store::{
        GrantId, StoreResult,
        logins::{
            CLAIM_KEPT, Claim, GRANT_KEPT, GrantRow, Kept, Logins, OUTCOME_KEPT, PROFILE_KEPT,
            ProfileRow, SessionRow,
        },
        rows::{self, CLAIM, GRANT, SESSION, columns, number},
    },
};

impl Write<'_> {
    /// Puts a grant, unless the stored one goes over it: the rule of `GrantRow::goes_over`, decided
    /// while the row is ours.
    async fn put_grant(&self, row: &GrantRow) -> StoreResult<()> {
        let (tokens_key, tokens) = columns(row.tokens.as_ref());
        let profile = row.profile.as_ref();
        let (profile_key, profile_value) = columns(profile.map(|profile| &profile.value));
        let set_back = i64::try_from(SET_BACK.as_millis()).unwrap_or(i64::MAX);
        self.execute(
            "INSERT INTO grants AS stored (app, openid, scope, version, tokens_key, tokens, \
                 token_expires_at, authorised_at, client, redirect_uri, ended_at, ended_errcode, \
                 profile_key, profile, profile_lang, profile_fetched_at) \
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16) \
             ON CONFLICT (app, openid, scope) DO UPDATE SET version = $4, tokens_key = $5, \
                 tokens = $6, token_expires_at = $7, authorised_at = $8, client = $9, \
                 redirect_uri = $10, ended_at = $11, ended_errcode = $12, profile_key = $13, \
                 profile = $14, profile_lang = $15, profile_fetched_at = $16 \
             WHERE stored.authorised_at <= $8 \
                 OR stored.authorised_at > xinfu_now() + $17::BIGINT",
            &[
                &row.id.app.as_str(),
                &row.id.openid.as_str(),
                &row.id.scope.as_str(),
                &row.version,
                &tokens_key,
                &tokens,
                &row.token_expires_at.as_millis(),
                &row.authorised_at.as_millis(),
                &row.client,
                &row.redirect_uri.as_deref().map(as_text),
                &row.ended.map(|(at, _)| at.as_millis()),
                &row.ended.map(|(_, errcode)| errcode),
                &profile_key,
                &profile_value,
                &profile.map(|it| it.lang.as_str()),
                &profile.map(|it| it.fetched_at.as_millis()),
                &set_back,
            ],
        )
        .await?;
        Ok(())
    }

    async fn put_session(&self, row: &SessionRow) -> StoreResult<()> {
        self.execute(
            "INSERT INTO mini_sessions (app, id, openid, session_key_key, session_key, expires_at) \
             VALUES ($1, $2, $3, $4, $5, $6)",
            &[
                &row.app.as_str(),
                &row.id.as_slice(),
                &row.openid.as_str(),
                &row.session_key.key,
                &row.session_key.bytes,
                &row.expires_at.as_millis(),
            ],
        )
        .await?;
        Ok(())
    }

    async fn learn(
        &self,
        app: &AppId,
        openid: &OpenId,
        unionid: Option<&UnionId>,
    ) -> StoreResult<()> {
        if let Some(unionid) = unionid {
            self.execute(
                "INSERT INTO unionids (app, openid, unionid) VALUES ($1, $2, $3) \
                 ON CONFLICT (app, openid) DO UPDATE SET unionid = $3",
                &[&app.as_str(), &openid.as_str(), &unionid.as_str()],
            )
            .await?;
        }
        Ok(())
    }

    async fn keep(&self, kept: &Kept) -> StoreResult<()> {
        match kept {
            Kept::Nothing => Ok(()),
            Kept::Grant(row, unionid) => {
                // The grant before the unionid, as everywhere.
                self.put_grant(row).await?;
                self.learn(&row.id.app, &row.id.openid, unionid.as_ref()).await
            }
            Kept::Session(row, unionid) => {
                self.learn(&row.app, &row.openid, unionid.as_ref()).await?;
                self.put_session(row).await
            }
        }
    }
}

#[async_trait]
impl Logins for PostgresStore {
    async fn claim_code(&self, claim: &Claim) -> StoreResult<Option<Claim>> {
        let (outcome_key, outcome) = columns(claim.outcome.as_ref());
        let sql = "INSERT INTO claims (app, code, client, proof, owner, claimed_at, deadline, \
                 settled_at, outcome_key, outcome) \
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) \
             ON CONFLICT (app, code) DO NOTHING";
        loop {
            let claimed = self.on(async |db| {
                db.execute(
                    sql,
                    &[
                        &claim.app.as_str(),
                        &claim.code.as_slice(),
                        &claim.client,
                        &claim.proof.as_ref().map(<[u8; 32]>::as_slice),
                        &claim.owner,
                        &claim.claimed_at.as_millis(),
                        &claim.deadline.as_millis(),
                        &claim.settled_at.map(Timestamp::as_millis),
                        &outcome_key,
                        &outcome,
                    ],
                )
                .await
            });
            if claimed.await? > 0 {
                return Ok(None);
            }
            // None: it was given up in between.
            if let Some(claim) = self.find_claim(&claim.app, &claim.code).await? {
                return Ok(Some(claim));
            }
        }
    }

    async fn find_claim(&self, app: &AppId, code: &[u8; 32]) -> StoreResult<Option<Claim>> {
        let sql = format!("{CLAIM} WHERE app = $1 AND code = $2");
        self.first(&sql, &[&app.as_str(), &code.as_slice()], rows::claim).await
    }

    async fn give_up_claim(&self, app: &AppId, code: &[u8; 32], owner: &str) -> StoreResult<bool> {
        let sql = "DELETE FROM claims \
             WHERE app = $1 AND code = $2 AND owner = $3 AND settled_at IS NULL";
        let given_up = self
            .on(async |db| db.execute(sql, &[&app.as_str(), &code.as_slice(), &owner]).await)
            .await?;
        Ok(given_up > 0)
    }

    async fn settle_claim(
        &self,
        app: &AppId,
        code: &[u8; 32],
        owner: &str,
        outcome: &Sealed,
        kept: &Kept,
    ) -> StoreResult<bool> {
        self.write(async |write| {
            let settled = write
                .execute(
                    "UPDATE claims SET settled_at = xinfu_now(), outcome_key = $4, outcome = $5 \
                     WHERE app = $1 AND code = $2 AND owner = $3 AND settled_at IS NULL",
                    &[&app.as_str(), &code.as_slice(), &owner, &outcome.key, &outcome.bytes],
                )
                .await?;
            if settled == 0 {
                return Ok(false);
            }
            if write.keeps_app(app).await? {
                write.keep(kept).await?;
            }
            Ok(true)
        })
        .await
    }

    async fn grants(&self, app: &AppId, openid: &OpenId) -> StoreResult<Vec<GrantRow>> {
        let sql = format!("{GRANT} WHERE app = $1 AND openid = $2");
        let mut grants =
            self.readable(&sql, &[&app.as_str(), &openid.as_str()], rows::grant).await?;
        grants.sort_by(|one, other| one.id.cmp(&other.id));
        Ok(grants)
    }

    async fn list_grants(
        &self,
        app: &AppId,
        after: Option<&OpenId>,
        limit: usize,
    ) -> StoreResult<Vec<GrantRow>> {
        let (after, limit) = (after.map_or("", OpenId::as_str), number(limit as u64));
        let sql = format!(
            "{GRANT} WHERE app = $1 AND openid IN \
                 (SELECT DISTINCT openid FROM grants WHERE app = $1 AND openid > $2 \
                  ORDER BY openid LIMIT $3)"
        );
        let mut grants = self.readable(&sql, &[&app.as_str(), &after, &limit], rows::grant).await?;
        grants.sort_by(|one, other| one.id.cmp(&other.id));
        Ok(grants)
    }

    async fn put_tokens(&self, row: &GrantRow, over: &str) -> StoreResult<bool> {
        let (tokens_key, tokens) = columns(row.tokens.as_ref());
        let sql = "UPDATE grants SET version = $5, tokens_key = $6, tokens = $7, \
                 token_expires_at = $8, ended_at = $9, ended_errcode = $10, \
                 profile_key = CASE WHEN $9::BIGINT IS NULL THEN profile_key END, \
                 profile = CASE WHEN $9::BIGINT IS NULL THEN profile END \
             WHERE app = $1 AND openid = $2 AND scope = $3 AND version = $4";
        let put = self.on(async |db| {
            db.execute(
                sql,
                &[
                    &row.id.app.as_str(),
                    &row.id.openid.as_str(),
                    &row.id.scope.as_str(),
                    &over,
                    &row.version,
                    &tokens_key,
                    &tokens,
                    &row.token_expires_at.as_millis(),
                    &row.ended.map(|(at, _)| at.as_millis()),
                    &row.ended.map(|(_, errcode)| errcode),
                ],
            )
            .await
        });
        Ok(put.await? > 0)
    }

    async fn put_profile(
        &self,
        id: &GrantId,
        profile: &ProfileRow,
        unionid: Option<&UnionId>,
    ) -> StoreResult<bool> {
        self.write(async |write| {
            // The app before what belongs to it, as everywhere.
            if !write.keeps_app(&id.app).await? {
                return Ok(false);
            }
            let put = write
                .execute(
                    "UPDATE grants SET profile_key = $4, profile = $5, profile_lang = $6, \
                         profile_fetched_at = $7 \
                     WHERE app = $1 AND openid = $2 AND scope = $3",
                    &[
                        &id.app.as_str(),
                        &id.openid.as_str(),
                        &id.scope.as_str(),
                        &profile.value.key,
                        &profile.value.bytes,
                        &profile.lang.as_str(),
                        &profile.fetched_at.as_millis(),
                    ],
                )
                .await?;
            if put == 0 {
                return Ok(false);
            }
            write.learn(&id.app, &id.openid, unionid).await?;
            Ok(true)
        })
        .await
    }

    async fn unionid(&self, app: &AppId, openid: &OpenId) -> StoreResult<Option<UnionId>> {
        let sql = "SELECT app, openid, unionid FROM unionids WHERE app = $1 AND openid = $2";
        self.first(sql, &[&app.as_str(), &openid.as_str()], rows::unionid).await
    }

    async fn find_session(&self, app: &AppId, id: &[u8; 32]) -> StoreResult<Option<SessionRow>> {
        let sql =
            format!("{SESSION} WHERE app = $1 AND id = $2 AND expires_at > (SELECT xinfu_now())");
        self.first(&sql, &[&app.as_str(), &id.as_slice()], rows::session).await
    }

    async fn forget_user(
        &self,
        app: &AppId,
        openid: &OpenId,
        audit: &AuditEntry,
    ) -> StoreResult<bool> {
        self.write(async |write| {
            // Nobody logs in at the app until this has ended: else half of a login might stay.
            let sql = "SELECT app FROM apps WHERE app = $1 FOR UPDATE";
            write.optional(sql, &[&app.as_str()]).await?;
            let mut forgotten = 0;
            for table in ["grants", "unionids", "mini_sessions"] {
                let sql = format!("DELETE FROM {table} WHERE app = $1 AND openid = $2");
                forgotten += write.execute(&sql, &[&app.as_str(), &openid.as_str()]).await?;
            }
            if forgotten == 0 {
                return Ok(false);
            }
            write.audit(audit).await?;
            Ok(true)
        })
        .await
    }

    async fn forget_past_logins(&self, limit: usize) -> StoreResult<usize> {
        let limit = number(limit as u64);
        self.write(async |write| {
            let now = Timestamp::from_millis(write.one("SELECT xinfu_now()", &[]).await?.get(0));
            let before = |kept: Duration| (now - kept).as_millis();
            // Replicas do this side by side, each with rows of its own. Which ones is looked up once:
            // a plan that did so again for each row would go beyond the limit.
            let past = [
                (
                    "WITH past AS MATERIALIZED \
                         (SELECT app, code FROM claims WHERE claimed_at <= $1 LIMIT $2 \
                          FOR UPDATE SKIP LOCKED) \
                     DELETE FROM claims WHERE (app, code) IN (SELECT * FROM past)",
                    before(CLAIM_KEPT),
                ),
                (
                    "WITH past AS MATERIALIZED \
                         (SELECT app, code FROM claims \
                          WHERE settled_at <= $1 AND outcome IS NOT NULL LIMIT $2 \
                          FOR UPDATE SKIP LOCKED) \
                     UPDATE claims SET outcome_key = NULL, outcome = NULL \
                     WHERE (app, code) IN (SELECT * FROM past)",
                    before(OUTCOME_KEPT),
                ),
                (
                    "WITH past AS MATERIALIZED \
                         (SELECT app, openid, scope FROM grants WHERE authorised_at <= $1 LIMIT $2 \
                          FOR UPDATE SKIP LOCKED) \
                     DELETE FROM grants WHERE (app, openid, scope) IN (SELECT * FROM past)",
                    before(GRANT_KEPT),
                ),
                (
                    "WITH past AS MATERIALIZED \
                         (SELECT app, openid, scope FROM grants \
                          WHERE profile_fetched_at <= $1 AND profile IS NOT NULL LIMIT $2 \
                          FOR UPDATE SKIP LOCKED) \
                     UPDATE grants SET profile_key = NULL, profile = NULL \
                     WHERE (app, openid, scope) IN (SELECT * FROM past)",
                    before(PROFILE_KEPT),
                ),
                (
                    "WITH past AS MATERIALIZED \
                         (SELECT app, id FROM mini_sessions WHERE expires_at <= $1 LIMIT $2 \
                          FOR UPDATE SKIP LOCKED) \
                     DELETE FROM mini_sessions WHERE (app, id) IN (SELECT * FROM past)",
                    now.as_millis(),
                ),
            ];
            let mut forgotten = 0;
            for (sql, since) in past {
                let rows = write.execute(sql, &[&since, &limit]).await?;
                forgotten += usize::try_from(rows).unwrap_or(usize::MAX);
            }
            Ok(forgotten)
        })
        .await
    }
}
