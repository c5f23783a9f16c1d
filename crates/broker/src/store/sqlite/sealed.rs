//! Sealed values of all tables: which master keys they name, and sealing them anew.

use rusqlite::params;

use super::Write;
use crate::{
    seal::Sealed,
    store::{
        GrantId, Place, StoreResult,
        rows::{Columns, Row, number},
    },
};

/// Sealed values of all tables that are not sealed with one key: the kind of place, up to four
/// columns that name it, and the value. Two comparisons instead of one inequality let SQLite go by
/// the index on the key; for the largest table it needs them apart.
pub(super) const SEALED_OTHERWISE: &str = "\
     SELECT 'app-secret', app, NULL, NULL, NULL, secret_key, secret FROM apps \
         WHERE secret_key < ?1 OR secret_key > ?1 \
     UNION ALL SELECT 'credential', app, kind, generation, NULL, value_key, value \
         FROM credentials WHERE value_key < ?1 OR value_key > ?1 \
     UNION ALL SELECT 'own', name, NULL, NULL, NULL, value_key, value \
         FROM own_secrets WHERE value_key <> ?1 \
     UNION ALL SELECT 'pass-key', id, NULL, NULL, NULL, value_key, value \
         FROM pass_keys WHERE value_key <> ?1 \
     UNION ALL SELECT 'outcome', app, code, NULL, NULL, outcome_key, outcome \
         FROM claims WHERE outcome IS NOT NULL AND outcome_key <> ?1 \
     UNION ALL SELECT 'tokens', app, openid, scope, version, tokens_key, tokens \
         FROM grants WHERE tokens_key < ?1 \
     UNION ALL SELECT 'tokens', app, openid, scope, version, tokens_key, tokens \
         FROM grants WHERE tokens_key > ?1 \
     UNION ALL SELECT 'profile', app, openid, scope, NULL, profile_key, profile \
         FROM grants WHERE profile_key < ?1 \
     UNION ALL SELECT 'profile', app, openid, scope, NULL, profile_key, profile \
         FROM grants WHERE profile_key > ?1 \
     UNION ALL SELECT 'session-key', app, id, NULL, NULL, session_key_key, session_key \
         FROM mini_sessions WHERE session_key_key < ?1 OR session_key_key > ?1 \
     LIMIT ?2";

/// A row of [`SEALED_OTHERWISE`].
pub(super) fn sealed(row: &dyn Row) -> StoreResult<(Place, Sealed)> {
    let columns = Columns { row, table: "of sealed values", name: 2 };
    let grant = || -> StoreResult<GrantId> { columns.grant(1) };
    let place = match columns.read::<String>(0)?.as_str() {
        "app-secret" => Place::AppSecret(columns.parse(1)?),
        "credential" => Place::Credential(columns.credential(1)?, columns.count(3)?),
        "own" => Place::Own(columns.read(1)?),
        "pass-key" => Place::PassKey(columns.read(1)?),
        "outcome" => Place::Outcome(columns.parse(1)?, columns.read(2)?),
        "tokens" => Place::Tokens(grant()?, columns.read(4)?),
        "profile" => Place::Profile(grant()?),
        _ => Place::SessionKey(columns.parse(1)?, columns.read(2)?),
    };
    Ok((place, columns.sealed(5)?))
}

impl Write<'_> {
    /// Replaces a sealed value by another sealing of the same, if it is still `old`.
    pub(super) fn reseal(&self, place: &Place, old: &Sealed, new: &Sealed) -> StoreResult<bool> {
        let values = (&new.key, &new.bytes, &old.key, &old.bytes);
        let replaced = match place {
            Place::AppSecret(app) => self.execute(
                "UPDATE apps SET secret_key = ?1, secret = ?2 \
                 WHERE secret_key = ?3 AND secret = ?4 AND app = ?5",
                params![values.0, values.1, values.2, values.3, app.as_str()],
            ),
            Place::Credential(id, generation) => self.execute(
                "UPDATE credentials SET value_key = ?1, value = ?2 \
                 WHERE value_key = ?3 AND value = ?4 \
                     AND app = ?5 AND kind = ?6 AND generation = ?7",
                params![
                    values.0,
                    values.1,
                    values.2,
                    values.3,
                    id.app.as_str(),
                    id.kind.as_str(),
                    number(*generation)
                ],
            ),
            Place::Own(name) => self.execute(
                "UPDATE own_secrets SET value_key = ?1, value = ?2 \
                 WHERE value_key = ?3 AND value = ?4 AND name = ?5",
                params![values.0, values.1, values.2, values.3, name],
            ),
            Place::PassKey(id) => self.execute(
                "UPDATE pass_keys SET value_key = ?1, value = ?2 \
                 WHERE value_key = ?3 AND value = ?4 AND id = ?5",
                params![values.0, values.1, values.2, values.3, id],
            ),
            Place::Outcome(app, code) => self.execute(
                "UPDATE claims SET outcome_key = ?1, outcome = ?2 \
                 WHERE outcome_key = ?3 AND outcome = ?4 AND app = ?5 AND code = ?6",
                params![values.0, values.1, values.2, values.3, app.as_str(), code],
            ),
            Place::Tokens(id, version) => self.execute(
                "UPDATE grants SET tokens_key = ?1, tokens = ?2 \
                 WHERE tokens_key = ?3 AND tokens = ?4 \
                     AND app = ?5 AND openid = ?6 AND scope = ?7 AND version = ?8",
                params![
                    values.0,
                    values.1,
                    values.2,
                    values.3,
                    id.app.as_str(),
                    id.openid.as_str(),
                    id.scope.as_str(),
                    version
                ],
            ),
            Place::Profile(id) => self.execute(
                "UPDATE grants SET profile_key = ?1, profile = ?2 \
                 WHERE profile_key = ?3 AND profile = ?4 \
                     AND app = ?5 AND openid = ?6 AND scope = ?7",
                params![
                    values.0,
                    values.1,
                    values.2,
                    values.3,
                    id.app.as_str(),
                    id.openid.as_str(),
                    id.scope.as_str()
                ],
            ),
            Place::SessionKey(app, id) => self.execute(
                "UPDATE mini_sessions SET session_key_key = ?1, session_key = ?2 \
                 WHERE session_key_key = ?3 AND session_key = ?4 AND app = ?5 AND id = ?6",
                params![values.0, values.1, values.2, values.3, app.as_str(), id],
            ),
        };
        Ok(replaced? > 0)
    }
}
