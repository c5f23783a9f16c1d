//! Queries, and the rows that SQLite answers.

use rusqlite::{Connection, Params, Row, types::ValueRef};

use crate::store::{
    StoreResult,
    rows::{self, Value},
};

impl rows::Row for Row<'_> {
    fn value(&self, column: usize) -> Option<Value> {
        Some(match self.get_ref(column).ok()? {
            ValueRef::Null => Value::Null,
            ValueRef::Integer(number) => Value::Number(number),
            ValueRef::Text(text) => Value::Text(str::from_utf8(text).ok()?.to_owned()),
            ValueRef::Blob(bytes) => Value::Bytes(bytes.to_vec()),
            ValueRef::Real(_) => return None,
        })
    }

    fn column_name(&self, column: usize) -> &str {
        self.as_ref().column_name(column).unwrap_or("?")
    }
}

/// All rows that a query answers.
pub(super) fn all<T>(
    connection: &Connection,
    sql: &str,
    params: impl Params,
    read: impl Fn(&dyn rows::Row) -> StoreResult<T>,
) -> StoreResult<Vec<T>> {
    each(connection, sql, params, read)?.into_iter().collect()
}

/// All rows that a query answers and that can be read. One that cannot is logged and left out.
pub(super) fn readable<T>(
    connection: &Connection,
    sql: &str,
    params: impl Params,
    read: impl Fn(&dyn rows::Row) -> StoreResult<T>,
) -> StoreResult<Vec<T>> {
    rows::readable(each(connection, sql, params, read)?)
}

fn each<T>(
    connection: &Connection,
    sql: &str,
    params: impl Params,
    read: impl Fn(&dyn rows::Row) -> StoreResult<T>,
) -> StoreResult<Vec<StoreResult<T>>> {
    let mut statement = connection.prepare_cached(sql)?;
    let mut rows = statement.query(params)?;
    let mut answer = Vec::new();
    while let Some(row) = rows.next()? {
        answer.push(read(row));
    }
    Ok(answer)
}

/// The first row that a query answers, if it answers any.
pub(super) fn first<T>(
    connection: &Connection,
    sql: &str,
    params: impl Params,
    read: impl Fn(&dyn rows::Row) -> StoreResult<T>,
) -> StoreResult<Option<T>> {
    let mut statement = connection.prepare_cached(sql)?;
    let mut rows = statement.query(params)?;
    rows.next()?.map(|row| read(row)).transpose()
}
