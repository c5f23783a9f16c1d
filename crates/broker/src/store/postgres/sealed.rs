//! Sealed values of all tables: which master keys they name, and sealing them anew.

use deadpool_postgres::Object;
use tokio_postgres::types::ToSql;

use super::query::Sql;
use crate::{
    seal::Sealed,
    store::{
        GrantId, Place, StoreResult,
        rows::{Columns, Row, number},
    },
};

/// Sealed values of all tables that are not sealed with one key: the kind of place, up to four texts,
/// a number and a hash that name it, and the value. Two comparisons instead of one inequality let the
/// indexes on the keys serve.
pub(super) const SEALED_OTHERWISE: &str = "\
     (SELECT 'app-secret' AS place, app, NULL AS one, NULL AS two, NULL AS three, \
             NULL::BIGINT AS number, NULL::BYTEA AS hash, secret_key, secret \
         FROM apps WHERE secret_key < $1 OR secret_key > $1 LIMIT $2) \
     UNION ALL (SELECT 'credential', app, kind, NULL, NULL, generation, NULL, value_key, value \
         FROM credentials WHERE value_key < $1 OR value_key > $1 LIMIT $2) \
     UNION ALL (SELECT 'own', name, NULL, NULL, NULL, NULL, NULL, value_key, value \
         FROM own_secrets WHERE value_key <> $1 LIMIT $2) \
     UNION ALL (SELECT 'pass-key', id, NULL, NULL, NULL, NULL, NULL, value_key, value \
         FROM pass_keys WHERE value_key <> $1 LIMIT $2) \
     UNION ALL (SELECT 'outcome', app, NULL, NULL, NULL, NULL, code, outcome_key, outcome \
         FROM claims WHERE outcome IS NOT NULL AND outcome_key <> $1 LIMIT $2) \
     UNION ALL (SELECT 'tokens', app, openid, scope, version, NULL, NULL, tokens_key, tokens \
         FROM grants WHERE tokens_key < $1 OR tokens_key > $1 LIMIT $2) \
     UNION ALL (SELECT 'profile', app, openid, scope, NULL, NULL, NULL, profile_key, profile \
         FROM grants WHERE profile_key < $1 OR profile_key > $1 LIMIT $2) \
     UNION ALL (SELECT 'session-key', app, NULL, NULL, NULL, NULL, id, session_key_key, session_key \
         FROM mini_sessions WHERE session_key_key < $1 OR session_key_key > $1 LIMIT $2) \
     LIMIT $2";

/// A row of [`SEALED_OTHERWISE`].
pub(super) fn sealed(row: &dyn Row) -> StoreResult<(Place, Sealed)> {
    let columns = Columns { row, table: "of sealed values", name: 2 };
    let grant = || -> StoreResult<GrantId> { columns.grant(1) };
    let place = match columns.read::<String>(0)?.as_str() {
        "app-secret" => Place::AppSecret(columns.parse(1)?),
        "credential" => Place::Credential(columns.credential(1)?, columns.count(5)?),
        "own" => Place::Own(columns.read(1)?),
        "pass-key" => Place::PassKey(columns.read(1)?),
        "outcome" => Place::Outcome(columns.parse(1)?, columns.read(6)?),
        "tokens" => Place::Tokens(grant()?, columns.read(4)?),
        "profile" => Place::Profile(grant()?),
        _ => Place::SessionKey(columns.parse(1)?, columns.read(6)?),
    };
    Ok((place, columns.sealed(7)?))
}

/// Replaces a sealed value by another sealing of the same, if it is still `old`.
pub(super) async fn reseal(
    db: &Object,
    place: &Place,
    old: &Sealed,
    new: &Sealed,
) -> StoreResult<bool> {
    let text = |it: &str| -> Value { Box::new(it.to_owned()) };
    let grant = |id: &GrantId| {
        vec![
            ("app", text(id.app.as_str())),
            ("openid", text(id.openid.as_str())),
            ("scope", text(id.scope.as_str())),
        ]
    };
    let (table, key, value, mut row) = match place {
        Place::AppSecret(app) => {
            ("apps", "secret_key", "secret", vec![("app", text(app.as_str()))])
        }
        Place::Credential(id, generation) => {
            let generation: Value = Box::new(number(*generation));
            let row = vec![
                ("app", text(id.app.as_str())),
                ("kind", text(id.kind.as_str())),
                ("generation", generation),
            ];
            ("credentials", "value_key", "value", row)
        }
        Place::Own(name) => ("own_secrets", "value_key", "value", vec![("name", text(name))]),
        Place::PassKey(id) => ("pass_keys", "value_key", "value", vec![("id", text(id))]),
        Place::Outcome(app, code) => {
            let row = vec![("app", text(app.as_str())), ("code", hash(code))];
            ("claims", "outcome_key", "outcome", row)
        }
        Place::Tokens(id, version) => {
            let mut row = grant(id);
            row.push(("version", text(version)));
            ("grants", "tokens_key", "tokens", row)
        }
        Place::Profile(id) => ("grants", "profile_key", "profile", grant(id)),
        Place::SessionKey(app, id) => {
            let row = vec![("app", text(app.as_str())), ("id", hash(id))];
            ("mini_sessions", "session_key_key", "session_key", row)
        }
    };
    row.push((key, text(&old.key)));
    row.push((value, Box::new(old.bytes.clone())));
    let mut sql = format!("UPDATE {table} SET {key} = $1, {value} = $2 WHERE TRUE");
    let mut params: Vec<&(dyn ToSql + Sync)> = vec![&new.key, &new.bytes];
    for (column, value) in &row {
        params.push(value.as_ref());
        sql.push_str(&format!(" AND {column} = ${}", params.len()));
    }
    Ok(db.execute(&sql, &params).await? > 0)
}

/// A value to compare a column with.
type Value = Box<dyn ToSql + Sync + Send>;

fn hash(bytes: &[u8; 32]) -> Value {
    Box::new(bytes.to_vec())
}
