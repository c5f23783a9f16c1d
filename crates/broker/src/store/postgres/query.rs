//! Statements, and the rows that PostgreSQL answers.

use std::borrow::Cow;

use deadpool_postgres::{GenericClient, Object, Transaction};
use tokio_postgres::types::{ToSql, Type};

use super::Write;
use crate::store::{
    StoreError, StoreResult,
    rows::{Row, Value},
};

/// What statements are sent through: a connection, or a transaction on one. Each statement is
/// prepared once for a connection.
pub(super) trait Sql: Sync {
    /// What it is to the driver.
    type Client: GenericClient + Sync;

    fn client(&self) -> &Self::Client;

    /// Runs one statement and answers how many rows it wrote.
    async fn execute(&self, sql: &str, params: &[&(dyn ToSql + Sync)]) -> StoreResult<u64> {
        let statement = self.client().prepare_cached(sql).await?;
        Ok(self.client().execute(&statement, params).await?)
    }

    /// All rows that a statement answers.
    async fn all(
        &self,
        sql: &str,
        params: &[&(dyn ToSql + Sync)],
    ) -> StoreResult<Vec<tokio_postgres::Row>> {
        let statement = self.client().prepare_cached(sql).await?;
        Ok(self.client().query(&statement, params).await?)
    }

    /// The first row that a statement answers, if it answers one.
    async fn optional(
        &self,
        sql: &str,
        params: &[&(dyn ToSql + Sync)],
    ) -> StoreResult<Option<tokio_postgres::Row>> {
        Ok(self.all(sql, params).await?.into_iter().next())
    }

    /// The row that a statement always answers.
    async fn one(
        &self,
        sql: &str,
        params: &[&(dyn ToSql + Sync)],
    ) -> StoreResult<tokio_postgres::Row> {
        let none = || StoreError::Corrupt("a statement answered no row".to_owned());
        self.optional(sql, params).await?.ok_or_else(none)
    }
}

impl Sql for Object {
    type Client = Self;

    fn client(&self) -> &Self {
        self
    }
}

impl<'c> Sql for Write<'c> {
    type Client = Transaction<'c>;

    fn client(&self) -> &Transaction<'c> {
        &self.transaction
    }
}

impl Row for tokio_postgres::Row {
    fn value(&self, column: usize) -> Option<Value> {
        let value = match *self.columns().get(column)?.type_() {
            Type::INT8 => self.try_get::<_, Option<i64>>(column).ok()?.map(Value::Number),
            Type::BOOL => {
                self.try_get::<_, Option<bool>>(column).ok()?.map(|it| Value::Number(it.into()))
            }
            Type::TEXT => self.try_get::<_, Option<String>>(column).ok()?.map(Value::Text),
            Type::BYTEA => self.try_get::<_, Option<Vec<u8>>>(column).ok()?.map(Value::Bytes),
            _ => return None,
        };
        Some(value.unwrap_or(Value::Null))
    }

    fn column_name(&self, column: usize) -> &str {
        self.columns().get(column).map_or("?", |column| column.name())
    }
}

/// A text as PostgreSQL can hold it: without the character NUL, which WeChat's words may have.
pub(super) fn as_text(text: &str) -> Cow<'_, str> {
    if text.contains('\0') { text.replace('\0', "\u{fffd}").into() } else { text.into() }
}

impl From<tokio_postgres::Error> for StoreError {
    fn from(err: tokio_postgres::Error) -> Self {
        use tokio_postgres::error::SqlState;
        let Some(said) = err.as_db_error() else {
            return Self::Unavailable(super::open::with_causes(&err));
        };
        // The detail would tell values.
        let message = format!("PostgreSQL says: {} ({})", said.message(), said.code().code());
        match *said.code() {
            SqlState::DATA_CORRUPTED | SqlState::INDEX_CORRUPTED => Self::Corrupt(message),
            SqlState::UNDEFINED_TABLE
            | SqlState::UNDEFINED_COLUMN
            | SqlState::UNDEFINED_FUNCTION => Self::Unavailable(format!(
                "{message}: the tables are those of another version of xinfu"
            )),
            _ => Self::Unavailable(message),
        }
    }
}
