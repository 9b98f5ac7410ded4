//! The SQLite side of [`crate::store::sql::conn`]: statements, values and rows.
//!
//! **Savepoints**: with one open, SQLite keeps a copy of each page that is changed, for every job anew, and hardly any job needs it. So
//! a batch is first run without, as on PostgreSQL: whatever is refused asks for the whole batch once more
//! ([`SqliteSession::wants_savepoints`]), with savepoints.

use std::cell::{Cell as StdCell, RefCell};

use rusqlite::{
    CachedStatement, Connection, ErrorCode, ToSql, ffi, params_from_iter,
    types::{ToSqlOutput, ValueRef},
};
use rustc_hash::FxHashMap;

use crate::store::{
    StoreError,
    sql::conn::{Args, Cell, Row, Value, sqlite_text},
};

/// A connection with the statements it has seen, in its own dialect.
#[derive(Debug)]
pub(in crate::store) struct SqliteSession {
    conn: Connection,
    texts: RefCell<FxHashMap<Box<str>, Box<str>>>,
    savepoints: StdCell<Savepoints>,
}

/// How savepoints are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Savepoints {
    /// They are nothing, and nothing may be rolled back to one.
    None,
    /// As [`Savepoints::None`], and something would have been.
    Wanted,
    Real,
}

/// Statements whose text is made of a filter differ; beyond this many they are not remembered.
const TEXTS_MAX: usize = 512;

/// Less than this is not worth giving back: it would be read again with the next statement.
const WORTH_BYTES: usize = 512 * 1024;

impl SqliteSession {
    pub(super) fn new(conn: Connection) -> Self {
        Self { conn, texts: RefCell::default(), savepoints: StdCell::new(Savepoints::Real) }
    }

    pub(super) fn into_raw(self) -> Connection {
        self.conn
    }

    /// The connection itself, for what only SQLite has.
    pub(super) const fn raw(&self) -> &Connection {
        &self.conn
    }

    /// Gives back the pages it keeps in memory, if they are worth it; whether they were.
    pub(super) fn rest(&self) -> bool {
        let worth_it = self.cache_bytes() >= WORTH_BYTES;
        worth_it && self.conn.execute_batch("PRAGMA shrink_memory").is_ok()
    }

    /// What its pages take in memory.
    fn cache_bytes(&self) -> usize {
        let (mut now, mut most) = (0, 0);
        // SAFETY: the handle is open as long as `self` lives and used by this thread alone; both places are valid.
        let code = unsafe {
            ffi::sqlite3_db_status(self.conn.handle(), ffi::SQLITE_DBSTATUS_CACHE_USED, &raw mut now, &raw mut most, 0)
        };
        if code == ffi::SQLITE_OK { usize::try_from(now).unwrap_or(0) } else { 0 }
    }

    pub(in crate::store) fn in_transaction(&self) -> bool {
        !self.conn.is_autocommit()
    }

    /// Whether the transactions to come have savepoints.
    pub(super) fn take_savepoints(&self, real: bool) {
        self.savepoints.set(if real { Savepoints::Real } else { Savepoints::None });
    }

    /// Whether a transaction failed for want of a savepoint: nothing is known of the others of its jobs.
    pub(super) fn wants_savepoints(&self) -> bool {
        self.savepoints.get() == Savepoints::Wanted
    }

    pub(in crate::store) fn savepoint(&self) -> Result<(), StoreError> {
        self.with_savepoints("SAVEPOINT job")
    }

    pub(in crate::store) fn roll_back_to_savepoint(&self) -> Result<(), StoreError> {
        if self.savepoints.get() == Savepoints::None {
            self.savepoints.set(Savepoints::Wanted);
        }
        self.with_savepoints("ROLLBACK TO job")
    }

    pub(in crate::store) fn release_savepoint(&self) -> Result<(), StoreError> {
        self.with_savepoints("RELEASE job")
    }

    fn with_savepoints(&self, sql: &str) -> Result<(), StoreError> {
        match self.savepoints.get() {
            Savepoints::None => Ok(()),
            Savepoints::Wanted => Err(StoreError::Unavailable("the batch is run again, with savepoints".into())),
            Savepoints::Real => self.run(sql, &[]).map(drop),
        }
    }

    pub(in crate::store) fn one<T>(
        &self,
        sql: &str,
        values: &[Value<'_>],
        read: impl FnOnce(&Row<'_>) -> Result<T, StoreError>,
    ) -> Result<Option<T>, StoreError> {
        let mut statement = self.prepare(sql)?;
        let mut rows = statement.query(params_from_iter(values))?;
        rows.next()?.map(|row| read(&Row::Sqlite(row))).transpose()
    }

    pub(in crate::store) fn all<T>(
        &self,
        sql: &str,
        values: &[Value<'_>],
        mut read: impl FnMut(&Row<'_>) -> Result<T, StoreError>,
    ) -> Result<Vec<T>, StoreError> {
        let mut statement = self.prepare(sql)?;
        let mut rows = statement.query(params_from_iter(values))?;
        let mut all = Vec::new();
        while let Some(row) = rows.next()? {
            all.push(read(&Row::Sqlite(row))?);
        }
        Ok(all)
    }

    pub(in crate::store) fn run(&self, sql: &str, values: &[Value<'_>]) -> Result<usize, StoreError> {
        Ok(self.prepare(sql)?.execute(params_from_iter(values))?)
    }

    pub(in crate::store) fn run_each(
        &self,
        sql: &str,
        rows: impl IntoIterator<Item = impl Args>,
        mut done: impl FnMut(Result<usize, StoreError>) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let mut statement = self.prepare(sql)?;
        rows.into_iter()
            .try_for_each(|row| done(statement.execute(params_from_iter(&row.values())).map_err(StoreError::from)))
    }

    pub(in crate::store) fn insert(&self, sql: &str, values: &[Value<'_>]) -> Result<i64, StoreError> {
        self.run(sql, values)?;
        Ok(self.conn.last_insert_rowid())
    }

    fn prepare(&self, sql: &str) -> Result<CachedStatement<'_>, StoreError> {
        if let Some(text) = self.texts.borrow().get(sql) {
            return Ok(self.conn.prepare_cached(text)?);
        }
        let text = sqlite_text(sql);
        let statement = self.conn.prepare_cached(&text)?;
        let mut texts = self.texts.borrow_mut();
        if texts.len() < TEXTS_MAX {
            texts.insert(sql.into(), text.into());
        }
        Ok(statement)
    }
}

impl ToSql for Value<'_> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(match self {
            Value::Null => ValueRef::Null,
            Value::Int(value) => ValueRef::Integer(*value),
            Value::Bool(value) => ValueRef::Integer(i64::from(*value)),
            Value::Text(text) => ValueRef::Text(text.as_bytes()),
            Value::Bytes(bytes) => ValueRef::Blob(bytes),
            Value::Array(_) => return Err(rusqlite::Error::ToSqlConversionFailure("SQLite has no arrays".into())),
        }))
    }
}

/// A column of a row.
pub(in crate::store) fn cell<'a>(row: &'a rusqlite::Row<'_>, column: usize) -> Result<Cell<'a>, StoreError> {
    Ok(match row.get_ref(column)? {
        ValueRef::Null => Cell::Null,
        ValueRef::Integer(value) => Cell::Int(value),
        ValueRef::Text(text) => Cell::Text(std::str::from_utf8(text).map_err(rusqlite::Error::from)?),
        ValueRef::Blob(bytes) => Cell::Bytes(bytes),
        ValueRef::Real(value) => return Err(StoreError::Corrupt(format!("a column is {value}, no integer"))),
    })
}

impl From<rusqlite::Error> for StoreError {
    /// The split decides who suffers: what the environment did fails a whole batch and is tried again, what a job's data did
    /// fails that job alone.
    fn from(error: rusqlite::Error) -> Self {
        use rusqlite::Error as E;
        match &error {
            E::SqliteFailure(failure, _) => match failure.code {
                ErrorCode::ConstraintViolation | ErrorCode::TypeMismatch | ErrorCode::TooBig => {
                    Self::Statement(error.to_string())
                }
                ErrorCode::Unknown if failure.extended_code == ffi::SQLITE_ERROR => Self::Statement(error.to_string()),
                ErrorCode::ApiMisuse | ErrorCode::ParameterOutOfRange => Self::Statement(error.to_string()),
                _ => Self::Unavailable(error.to_string()),
            },
            E::FromSqlConversionFailure(..)
            | E::IntegralValueOutOfRange(..)
            | E::InvalidColumnType(..)
            | E::Utf8Error(..) => Self::Corrupt(error.to_string()),
            _ => Self::Statement(error.to_string()),
        }
    }
}
