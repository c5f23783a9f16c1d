//! Rows of a database, read back, whichever database it is. One that cannot be read is named, its
//! values never.

use std::{fmt, str::FromStr};

use clock::Timestamp;
use wechat::{OpenId, UnionId};

use super::{
    AppRow, Change, Claim, CredentialRow, GrantId, GrantRow, KeyRow, Lease, PassKeyRow, ProfileRow,
    SessionRow, StoreError, StoreResult,
};
use crate::{
    audit::{Actor, AuditEntry},
    credential::{CredentialId, Trouble},
    ledger::LedgerRow,
    seal::Sealed,
};

/// What a column holds.
#[derive(Debug)]
pub(super) enum Value {
    /// Nothing.
    Null,
    /// A number, an instant in milliseconds, or a truth (0 or 1).
    Number(i64),
    /// A text.
    Text(String),
    /// Bytes.
    Bytes(Vec<u8>),
}

/// A row as a database has answered it.
pub(super) trait Row {
    /// What a column holds; `None`: it cannot be read, or is of a type that no column of ours has.
    fn value(&self, column: usize) -> Option<Value>;
    /// The name of a column.
    fn column_name(&self, column: usize) -> &str;
}

/// What a column is read as.
pub(super) trait FromValue: Sized {
    /// The value; `None`: the column holds something else.
    fn from_value(value: Value) -> Option<Self>;
}

impl FromValue for i64 {
    fn from_value(value: Value) -> Option<Self> {
        if let Value::Number(number) = value { Some(number) } else { None }
    }
}

impl FromValue for bool {
    fn from_value(value: Value) -> Option<Self> {
        i64::from_value(value).map(|number| number != 0)
    }
}

impl FromValue for String {
    fn from_value(value: Value) -> Option<Self> {
        if let Value::Text(text) = value { Some(text) } else { None }
    }
}

impl FromValue for Vec<u8> {
    fn from_value(value: Value) -> Option<Self> {
        if let Value::Bytes(bytes) = value { Some(bytes) } else { None }
    }
}

impl FromValue for [u8; 32] {
    fn from_value(value: Value) -> Option<Self> {
        Vec::from_value(value)?.try_into().ok()
    }
}

impl<T: FromValue> FromValue for Option<T> {
    fn from_value(value: Value) -> Option<Self> {
        if let Value::Null = value { Some(None) } else { T::from_value(value).map(Some) }
    }
}

/// What could be read of the rows that a query answered. One that could not is logged and left out.
pub(super) fn readable<T>(rows: impl IntoIterator<Item = StoreResult<T>>) -> StoreResult<Vec<T>> {
    let mut answer = Vec::new();
    for row in rows {
        match row {
            Ok(one) => answer.push(one),
            Err(err @ StoreError::Corrupt(_)) => {
                tracing::error!(error = %err, "a row is left out");
            }
            Err(err) => return Err(err),
        }
    }
    Ok(answer)
}

/// A number as a database holds it. Ours never come near its end.
pub(super) fn number(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// Both columns of a sealed value that may be missing.
pub(super) fn columns(sealed: Option<&Sealed>) -> (Option<&str>, Option<&[u8]>) {
    (sealed.map(|it| it.key.as_str()), sealed.map(|it| it.bytes.as_slice()))
}

/// The columns of one row.
pub(super) struct Columns<'r> {
    pub(super) row: &'r dyn Row,
    pub(super) table: &'static str,
    /// So many columns at the start name the row; none of them is secret.
    pub(super) name: usize,
}

impl Columns<'_> {
    pub(super) fn read<T: FromValue>(&self, column: usize) -> StoreResult<T> {
        let value = self.row.value(column).and_then(T::from_value);
        value.ok_or_else(|| self.unreadable(column))
    }

    pub(super) fn parse<T: FromStr>(&self, column: usize) -> StoreResult<T> {
        let text: String = self.read(column)?;
        text.parse().map_err(|_| self.unreadable(column))
    }

    pub(super) fn count<T: TryFrom<i64>>(&self, column: usize) -> StoreResult<T> {
        T::try_from(self.read::<i64>(column)?).map_err(|_| self.unreadable(column))
    }

    fn time(&self, column: usize) -> StoreResult<Timestamp> {
        Ok(Timestamp::from_millis(self.read(column)?))
    }

    fn time_if_any(&self, column: usize) -> StoreResult<Option<Timestamp>> {
        Ok(self.read::<Option<i64>>(column)?.map(Timestamp::from_millis))
    }

    /// The credential that `column` and the next name.
    pub(super) fn credential(&self, column: usize) -> StoreResult<CredentialId> {
        Ok(CredentialId { app: self.parse(column)?, kind: self.parse(column + 1)? })
    }

    /// The sealed value in `column` and the next.
    pub(super) fn sealed(&self, column: usize) -> StoreResult<Sealed> {
        Ok(Sealed { key: self.read(column)?, bytes: self.read(column + 1)? })
    }

    /// The sealed value in `column` and the next, if there is one.
    fn sealed_if_any(&self, column: usize) -> StoreResult<Option<Sealed>> {
        let key = self.read::<Option<String>>(column)?;
        key.map(|key| Ok(Sealed { key, bytes: self.read(column + 1)? })).transpose()
    }

    /// The grant that `column` and the next two name.
    pub(super) fn grant(&self, column: usize) -> StoreResult<GrantId> {
        Ok(GrantId {
            app: self.parse(column)?,
            openid: self.openid(column + 1)?,
            scope: self.parse(column + 2)?,
        })
    }

    fn openid(&self, column: usize) -> StoreResult<OpenId> {
        Ok(OpenId::new(self.read::<String>(column)?))
    }

    fn unreadable(&self, column: usize) -> StoreError {
        let column = self.row.column_name(column);
        StoreError::Corrupt(format!("table {}, row {self}, column {column}", self.table))
    }
}

impl fmt::Display for Columns<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for column in 0..self.name {
            if column > 0 {
                f.write_str("/")?;
            }
            match self.row.value(column) {
                Some(Value::Text(text)) => f.write_str(&text)?,
                Some(Value::Number(number)) => write!(f, "{number}")?,
                _ => f.write_str("?")?,
            }
        }
        Ok(())
    }
}

pub(super) const APP: &str = "SELECT app, alias, kind, issuer, secret_key, secret, revision, created_at, updated_at \
     FROM apps";

pub(super) fn app(row: &dyn Row) -> StoreResult<AppRow> {
    let columns = Columns { row, table: "apps", name: 1 };
    Ok(AppRow {
        app: columns.parse(0)?,
        alias: columns.read(1)?,
        kind: columns.parse(2)?,
        issuer: columns.parse(3)?,
        secret: columns.sealed(4)?,
        revision: columns.count(6)?,
        created_at: columns.time(7)?,
        updated_at: columns.time(8)?,
    })
}

pub(super) const KEY: &str =
    "SELECT id, name, hash, rights, created_at, expires_at, revoked_at FROM client_keys";

pub(super) fn key(row: &dyn Row) -> StoreResult<KeyRow> {
    let columns = Columns { row, table: "client_keys", name: 1 };
    Ok(KeyRow {
        id: columns.read(0)?,
        name: columns.read(1)?,
        hash: columns.read(2)?,
        rights: columns.read(3)?,
        created_at: columns.time(4)?,
        expires_at: columns.time_if_any(5)?,
        revoked_at: columns.time_if_any(6)?,
    })
}

pub(super) const CREDENTIAL: &str = "SELECT app, kind, generation, value_key, value, hash, sent, answered, expires_at, refresh_at, \
     dead, used_at FROM credentials";

pub(super) fn credential(row: &dyn Row) -> StoreResult<CredentialRow> {
    let columns = Columns { row, table: "credentials", name: 2 };
    Ok(CredentialRow {
        id: columns.credential(0)?,
        generation: columns.count(2)?,
        value: columns.sealed(3)?,
        hash: columns.read(5)?,
        sent: columns.time(6)?,
        answered: columns.time(7)?,
        expires_at: columns.time(8)?,
        refresh_at: columns.time(9)?,
        dead: columns.read(10)?,
        used_at: columns.time(11)?,
    })
}

/// The credential that is all that a query answers.
pub(super) fn credential_id(row: &dyn Row) -> StoreResult<CredentialId> {
    Columns { row, table: "credentials", name: 2 }.credential(0)
}

/// The generation that is the only column of a query on `credentials` or their history.
pub(super) fn generation(row: &dyn Row) -> StoreResult<u64> {
    Columns { row, table: "credentials", name: 0 }.count(0)
}

pub(super) const TROUBLE: &str = "SELECT app, kind, errcode, reason, errmsg, rid, action, since, last, \
     failures, retry_at FROM troubles";

pub(super) fn trouble(row: &dyn Row) -> StoreResult<(CredentialId, Trouble)> {
    let columns = Columns { row, table: "troubles", name: 2 };
    let trouble = Trouble {
        errcode: columns.read(2)?,
        reason: columns.read(3)?,
        errmsg: columns.read(4)?,
        rid: columns.read(5)?,
        action: columns.read(6)?,
        since: columns.time(7)?,
        last: columns.time(8)?,
        failures: columns.count(9)?,
        retry_at: columns.time_if_any(10)?,
        only_here: false,
    };
    Ok((columns.credential(0)?, trouble))
}

pub(super) const LEDGER: &str = "SELECT app, api, day, used, rested_at FROM ledger";

pub(super) fn ledger(row: &dyn Row) -> StoreResult<LedgerRow> {
    let columns = Columns { row, table: "ledger", name: 3 };
    Ok(LedgerRow {
        api: columns.read(1)?,
        day: columns.read(2)?,
        used: columns.count(3)?,
        rested_at: columns.time(4)?,
    })
}

pub(super) const AUDIT: &str = "SELECT number, at, actor, action, object, detail FROM audit";

pub(super) fn audit(row: &dyn Row) -> StoreResult<(u64, AuditEntry)> {
    let columns = Columns { row, table: "audit", name: 1 };
    let entry = AuditEntry {
        at: columns.time(1)?,
        actor: Actor::from_text(&columns.read::<String>(2)?),
        action: columns.read(3)?,
        object: columns.read(4)?,
        detail: columns.read(5)?,
    };
    Ok((columns.count(0)?, entry))
}

pub(super) const CHANGE: &str = "SELECT number, app, kind FROM changes";

pub(super) fn change(row: &dyn Row) -> StoreResult<Change> {
    let columns = Columns { row, table: "changes", name: 1 };
    let has = |column| Ok::<_, StoreError>(columns.read::<Option<String>>(column)?.is_some());
    Ok(match (has(1)?, has(2)?) {
        (false, false) => Change::Keys,
        (false, true) => Change::PassKeys,
        (true, false) => Change::App(columns.parse(1)?),
        (true, true) => Change::Credential(columns.credential(1)?),
    })
}

/// The keys of passes.
pub(super) const PASS_KEY: &str = "SELECT id, value_key, value, published_at FROM pass_keys";

pub(super) fn pass_key(row: &dyn Row) -> StoreResult<PassKeyRow> {
    let columns = Columns { row, table: "pass_keys", name: 1 };
    Ok(PassKeyRow { id: columns.read(0)?, key: columns.sealed(1)?, published_at: columns.time(3)? })
}

/// A sealed value by its name.
pub(super) const OWN: &str = "SELECT name, value_key, value FROM own_secrets";

pub(super) fn own(row: &dyn Row) -> StoreResult<Sealed> {
    Columns { row, table: "own_secrets", name: 1 }.sealed(1)
}

pub(super) const LEASE: &str = "SELECT name, owner, until FROM leases";

pub(super) fn lease(row: &dyn Row) -> StoreResult<Lease> {
    let columns = Columns { row, table: "leases", name: 1 };
    Ok(Lease { name: columns.read(0)?, owner: columns.read(1)?, until: columns.time(2)? })
}

/// The ids of the master keys that sealed values name. Goes from each to the next by the indexes,
/// since there are few of them however many values there are.
pub(super) const SEALING_KEYS: &str = "WITH RECURSIVE known (key) AS (SELECT '' \
     UNION ALL SELECT (SELECT min(later.key) FROM \
         (SELECT min(secret_key) AS key FROM apps WHERE secret_key > known.key \
         UNION ALL SELECT min(value_key) FROM credentials WHERE value_key > known.key \
         UNION ALL SELECT min(value_key) FROM own_secrets WHERE value_key > known.key \
         UNION ALL SELECT min(value_key) FROM pass_keys WHERE value_key > known.key \
         UNION ALL SELECT min(outcome_key) FROM claims \
             WHERE outcome IS NOT NULL AND outcome_key > known.key \
         UNION ALL SELECT min(tokens_key) FROM grants WHERE tokens_key > known.key \
         UNION ALL SELECT min(profile_key) FROM grants WHERE profile_key > known.key \
         UNION ALL SELECT min(session_key_key) FROM mini_sessions \
             WHERE session_key_key > known.key) later) \
     FROM known WHERE known.key IS NOT NULL) \
     SELECT key FROM known WHERE key <> '' ORDER BY 1";

/// The id of a master key that is all that a query answers.
pub(super) fn sealing_key(row: &dyn Row) -> StoreResult<String> {
    Columns { row, table: "of sealed values", name: 1 }.read(0)
}

pub(super) const CLAIM: &str = "SELECT app, code, client, proof, owner, claimed_at, deadline, \
     settled_at, outcome_key, outcome FROM claims";

pub(super) fn claim(row: &dyn Row) -> StoreResult<Claim> {
    let columns = Columns { row, table: "claims", name: 1 };
    Ok(Claim {
        app: columns.parse(0)?,
        code: columns.read(1)?,
        client: columns.read(2)?,
        proof: columns.read(3)?,
        owner: columns.read(4)?,
        claimed_at: columns.time(5)?,
        deadline: columns.time(6)?,
        settled_at: columns.time_if_any(7)?,
        outcome: columns.sealed_if_any(8)?,
    })
}

pub(super) const GRANT: &str = "SELECT app, openid, scope, version, tokens_key, tokens, \
     token_expires_at, authorised_at, client, redirect_uri, ended_at, ended_errcode, profile_key, \
     profile, profile_lang, profile_fetched_at FROM grants";

pub(super) fn grant(row: &dyn Row) -> StoreResult<GrantRow> {
    // Openids are personal: the row is named by its app only.
    let columns = Columns { row, table: "grants", name: 1 };
    let profile = columns.sealed_if_any(12)?.map(|value| {
        Ok::<_, StoreError>(ProfileRow {
            value,
            lang: columns.parse(14)?,
            fetched_at: columns.time(15)?,
        })
    });
    let ended = columns.time_if_any(10)?;
    Ok(GrantRow {
        id: columns.grant(0)?,
        version: columns.read(3)?,
        tokens: columns.sealed_if_any(4)?,
        token_expires_at: columns.time(6)?,
        authorised_at: columns.time(7)?,
        client: columns.read(8)?,
        redirect_uri: columns.read(9)?,
        ended: ended.map(|at| Ok::<_, StoreError>((at, columns.read(11)?))).transpose()?,
        profile: profile.transpose()?,
    })
}

/// The second column of a query on `grants`.
pub(super) fn authorised_at(row: &dyn Row) -> StoreResult<Timestamp> {
    Columns { row, table: "grants", name: 1 }.time(1)
}

/// The unionid of a query on all columns of `unionids`.
pub(super) fn unionid(row: &dyn Row) -> StoreResult<UnionId> {
    Ok(UnionId::new(Columns { row, table: "unionids", name: 1 }.read::<String>(2)?))
}

pub(super) const SESSION: &str =
    "SELECT app, id, openid, session_key_key, session_key, expires_at FROM mini_sessions";

pub(super) fn session(row: &dyn Row) -> StoreResult<SessionRow> {
    let columns = Columns { row, table: "mini_sessions", name: 1 };
    Ok(SessionRow {
        app: columns.parse(0)?,
        id: columns.read(1)?,
        openid: columns.openid(2)?,
        session_key: columns.sealed(3)?,
        expires_at: columns.time(5)?,
    })
}
