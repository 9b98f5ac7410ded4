//! One connection: its calls under their deadline, its errors, its statements; the PostgreSQL side of
//! [`crate::store::sql::conn`].
//!
//! **Savepoints** cost two round trips a job, and hardly any job needs one. So a batch is first run without: [`Savepoints::None`]
//! makes them nothing, and whatever fails asks for the whole batch once more ([`PgSession::wants_savepoints`]), with savepoints.

use std::{
    cell::{Cell, RefCell},
    error::Error as _,
    fmt::Write as _,
    sync::Arc,
    time::Duration,
};

use bytes::BytesMut;
use postgres::{
    Client, Statement,
    error::SqlState,
    types::{FromSql, IsNull, ToSql, Type, to_sql_checked},
};
use rustc_hash::FxHashMap;
use smallvec::SmallVec;

use super::watch::Watch;
use crate::store::{
    StoreError,
    sql::{
        conn::{self, Row, Value},
        stage::Stage,
    },
};

/// Statements kept prepared; those whose text is made of a filter are more.
const STATEMENTS_MAX: usize = 256;

/// Numbers for commands taken at a time.
const COMMAND_IDS: i64 = 64;

/// A connection of one thread.
pub(in crate::store) struct PgSession {
    /// `None` only while it is dropped.
    client: RefCell<Option<Client>>,
    statements: RefCell<FxHashMap<Box<str>, Statement>>,
    /// Statements that the server knows by a name.
    named: RefCell<Vec<&'static str>>,
    watch: Arc<Watch>,
    /// For one call.
    limit: Duration,
    /// The server's process of this connection.
    pid: i32,
    savepoints: Cell<Savepoints>,
    in_transaction: Cell<bool>,
    /// Rows of the transaction under way, where it works on a stage.
    stage: RefCell<Option<Stage>>,
    /// Numbers for commands to come.
    command_ids: RefCell<Vec<i64>>,
    /// What the last failed call says.
    fault: Cell<Option<Fault>>,
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

/// What an error of the server means for whoever meets it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// The connection is gone, or is of no use.
    Lost,
    /// Others were in the way; the same again may well succeed.
    Conflict,
    /// Somebody else holds a row, and goes on holding it.
    Locked,
    /// The server cannot now.
    Unable,
    /// What was asked for cannot be done.
    Data,
}

/// How an error is to be taken.
pub(super) fn fault(error: &postgres::Error) -> Fault {
    let Some(state) = error.code() else {
        // Without an answer of the server: the connection, or a value that does not fit its column.
        let ours = error.source().is_some_and(|cause| !cause.is::<std::io::Error>()) && !error.is_closed();
        return if ours { Fault::Data } else { Fault::Lost };
    };
    match *state {
        SqlState::T_R_SERIALIZATION_FAILURE | SqlState::T_R_DEADLOCK_DETECTED => Fault::Conflict,
        SqlState::LOCK_NOT_AVAILABLE => Fault::Locked,
        // Its socket is closed behind these.
        SqlState::ADMIN_SHUTDOWN
        | SqlState::CRASH_SHUTDOWN
        | SqlState::CANNOT_CONNECT_NOW
        | SqlState::DATABASE_DROPPED
        | SqlState::IDLE_IN_TRANSACTION_SESSION_TIMEOUT => Fault::Lost,
        _ => match state.code().get(..2) {
            Some("08") => Fault::Lost,
            // What was asked: cardinality, data, constraints, syntax, privileges, views.
            Some("21" | "22" | "23" | "42" | "44" | "0A" | "54") => Fault::Data,
            // Full disk, out of memory, read-only after a failover, timeouts, errors of its own.
            _ => Fault::Unable,
        },
    }
}

/// An error as every other part of the store sees it.
pub(super) fn store_error(error: &postgres::Error) -> StoreError {
    match fault(error) {
        Fault::Lost | Fault::Conflict | Fault::Locked | Fault::Unable => StoreError::Unavailable(describe(error)),
        Fault::Data => StoreError::Statement(describe(error)),
    }
}

/// An error with its causes, on one line.
pub(super) fn describe(error: &postgres::Error) -> String {
    if let Some(db) = error.as_db_error() {
        let mut text = format!("{} ({})", db.message(), db.code().code());
        if let Some(name) = db.constraint() {
            write!(text, ", constraint {name}").expect("writing to a String does not fail");
        }
        return text.replace('\n', " ");
    }
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        write!(text, ": {error}").expect("writing to a String does not fail");
        cause = error.source();
    }
    text.replace('\n', " ")
}

impl PgSession {
    pub(super) fn new(client: Client, watch: Arc<Watch>, limit: Duration, pid: i32) -> Self {
        Self {
            client: RefCell::new(Some(client)),
            statements: RefCell::default(),
            named: RefCell::default(),
            watch,
            limit,
            pid,
            savepoints: Cell::new(Savepoints::Real),
            in_transaction: Cell::new(false),
            stage: RefCell::new(None),
            command_ids: RefCell::default(),
            fault: Cell::new(None),
        }
    }

    /// The server's process of this connection.
    pub(super) const fn pid(&self) -> i32 {
        self.pid
    }

    /// What the last failed call was, since this was asked last.
    pub(super) fn take_fault(&self) -> Option<Fault> {
        self.fault.take()
    }

    /// Makes a call, within the limit.
    pub(super) fn call<T>(
        &self,
        body: impl FnOnce(&mut Client) -> Result<T, postgres::Error>,
    ) -> Result<T, StoreError> {
        let mut client = self.client.borrow_mut();
        let Some(client) = client.as_mut() else { return Err(StoreError::Unavailable("the session is closed".into())) };
        self.watch.arm(self.limit);
        let result = body(client);
        self.watch.disarm();
        result.map_err(|error| {
            self.fault.set(Some(fault(&error)));
            store_error(&error)
        })
    }
}

impl PgSession {
    /// Begins a transaction with `first` as its first statement, in one round trip. Without `savepoints` there are none until it
    /// ends.
    pub(super) fn begin(&self, first: &str, savepoints: bool) -> Result<(), StoreError> {
        self.savepoints.set(if savepoints { Savepoints::Real } else { Savepoints::None });
        self.fault.set(None);
        self.call(|client| client.batch_execute(&format!("BEGIN; {first}")))?;
        self.in_transaction.set(true);
        // What waits in a stage cannot be taken back to a savepoint.
        *self.stage.borrow_mut() = (!savepoints).then(Stage::default);
        Ok(())
    }

    /// Prepares a statement under a name of the server's, once for the session.
    pub(super) fn prepare_by_name(&self, name: &'static str, sql: &str) -> Result<(), StoreError> {
        if self.named.borrow().contains(&name) {
            return Ok(());
        }
        self.call(|client| client.batch_execute(&format!("PREPARE {name} AS {sql}")))?;
        self.named.borrow_mut().push(name);
        Ok(())
    }

    /// Commits. An error leaves it open whether it did; see [`PgSession::take_fault`].
    pub(super) fn commit(&self) -> Result<(), StoreError> {
        let stage = self.stage.take();
        debug_assert!(!stage.is_some_and(|stage| stage.is_dirty()), "everything is written before the commit");
        self.in_transaction.set(false);
        self.call(|client| client.batch_execute("COMMIT"))
    }

    /// Takes the transaction back, if one is open.
    pub(super) fn roll_back(&self) -> Result<(), StoreError> {
        self.stage.take();
        self.in_transaction.set(false);
        self.call(|client| client.batch_execute("ROLLBACK"))
    }

    /// Whether the transaction failed for want of a savepoint: nothing is known of the others of its jobs.
    pub(super) fn wants_savepoints(&self) -> bool {
        self.savepoints.get() == Savepoints::Wanted
    }

    pub(in crate::store) const fn in_transaction(&self) -> bool {
        self.in_transaction.get()
    }

    pub(in crate::store) fn savepoint(&self) -> Result<(), StoreError> {
        match self.savepoints.get() {
            Savepoints::None => Ok(()),
            Savepoints::Wanted => Err(wanted()),
            Savepoints::Real => {
                self.flush()?;
                self.call(|client| client.batch_execute("SAVEPOINT job"))
            }
        }
    }

    pub(in crate::store) fn roll_back_to_savepoint(&self) -> Result<(), StoreError> {
        match self.savepoints.get() {
            Savepoints::None | Savepoints::Wanted => {
                self.savepoints.set(Savepoints::Wanted);
                Err(wanted())
            }
            Savepoints::Real => self.call(|client| client.batch_execute("ROLLBACK TO SAVEPOINT job")),
        }
    }

    pub(in crate::store) fn release_savepoint(&self) -> Result<(), StoreError> {
        match self.savepoints.get() {
            Savepoints::None => Ok(()),
            Savepoints::Wanted => Err(wanted()),
            Savepoints::Real => self.call(|client| client.batch_execute("RELEASE SAVEPOINT job")),
        }
    }

    pub(in crate::store) fn one<T>(
        &self,
        sql: &str,
        values: &[Value<'_>],
        read: impl FnOnce(&Row<'_>) -> Result<T, StoreError>,
    ) -> Result<Option<T>, StoreError> {
        let rows = self.query(sql, values)?;
        rows.first().map(|row| read(&Row::Postgres(row))).transpose()
    }

    pub(in crate::store) fn all<T>(
        &self,
        sql: &str,
        values: &[Value<'_>],
        mut read: impl FnMut(&Row<'_>) -> Result<T, StoreError>,
    ) -> Result<Vec<T>, StoreError> {
        self.query(sql, values)?.iter().map(|row| read(&Row::Postgres(row))).collect()
    }

    pub(in crate::store) fn run(&self, sql: &str, values: &[Value<'_>]) -> Result<usize, StoreError> {
        self.flush()?;
        self.forget();
        self.execute(sql, values)
    }

    fn execute(&self, sql: &str, values: &[Value<'_>]) -> Result<usize, StoreError> {
        let statement = self.prepared(sql)?;
        let rows = self.call(|client| client.execute(&statement, &params(values)))?;
        Ok(usize::try_from(rows).unwrap_or(usize::MAX))
    }

    pub(in crate::store) fn insert(&self, sql: &str, id: &str, values: &[Value<'_>]) -> Result<i64, StoreError> {
        let row = self.one(&format!("{sql} RETURNING {id}"), values, |row| row.get(0))?;
        row.ok_or_else(|| StoreError::Statement("a row that was inserted has no number".into()))
    }

    fn query(&self, sql: &str, values: &[Value<'_>]) -> Result<Vec<postgres::Row>, StoreError> {
        self.flush()?;
        if !sql.starts_with("SELECT") {
            self.forget();
        }
        self.rows(sql, values)
    }

    fn rows(&self, sql: &str, values: &[Value<'_>]) -> Result<Vec<postgres::Row>, StoreError> {
        let statement = self.prepared(sql)?;
        self.call(|client| client.query(&statement, &params(values)))
    }

    /// As [`conn::Conn::staged`].
    pub(in crate::store) fn staged<T>(&self, ask: impl FnOnce(&mut Stage) -> Option<T>) -> Option<T> {
        self.stage.borrow_mut().as_mut().and_then(ask)
    }

    pub(in crate::store) fn is_staged(&self) -> bool {
        self.stage.borrow().is_some()
    }

    /// Writes what waits in the stage.
    pub(super) fn flush(&self) -> Result<(), StoreError> {
        let statements = self.stage.borrow_mut().as_mut().map(Stage::take);
        for (sql, columns) in statements.into_iter().flatten() {
            // Which job wrote the row that is refused is not known.
            self.execute(&sql, &columns).inspect_err(|_| self.savepoints.set(Savepoints::Wanted))?;
        }
        Ok(())
    }

    /// A statement may have changed what was read before.
    fn forget(&self) {
        if let Some(stage) = self.stage.borrow_mut().as_mut() {
            stage.forget();
        }
    }

    /// Numbers for commands, taken many at a time; `None`: without a stage rows are numbered as they come.
    pub(in crate::store) fn next_command_id(&self) -> Result<Option<i64>, StoreError> {
        if !self.is_staged() {
            return Ok(None);
        }
        if let Some(id) = self.command_ids.borrow_mut().pop() {
            return Ok(Some(id));
        }
        let sql = "SELECT nextval(pg_get_serial_sequence('outbound_queue', 'id')) FROM generate_series(1, $1)";
        let rows = self.rows(sql, &[Value::Int(COMMAND_IDS)])?;
        let ids = rows.iter().map(|row| row.try_get(0)).collect::<Result<Vec<i64>, _>>();
        let mut ids = ids.map_err(|error| StoreError::Corrupt(describe(&error)))?;
        ids.reverse();
        let next = ids.pop();
        *self.command_ids.borrow_mut() = ids;
        Ok(next)
    }

    /// The statement of a text, prepared once.
    pub(super) fn prepared(&self, sql: &str) -> Result<Statement, StoreError> {
        if let Some(statement) = self.statements.borrow().get(sql) {
            return Ok(statement.clone());
        }
        let statement = self.call(|client| client.prepare(sql))?;
        let mut statements = self.statements.borrow_mut();
        if statements.len() < STATEMENTS_MAX {
            statements.insert(sql.into(), statement.clone());
        }
        Ok(statement)
    }
}

fn wanted() -> StoreError {
    StoreError::Unavailable("the batch is run again, with savepoints".into())
}

fn params<'v>(values: &'v [Value<'_>]) -> SmallVec<[&'v (dyn ToSql + Sync); 16]> {
    values.iter().map(|value| value as &(dyn ToSql + Sync)).collect()
}

/// A number goes into any integer column it fits.
impl ToSql for Value<'_> {
    fn to_sql(&self, ty: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn std::error::Error + Sync + Send>> {
        match self {
            Value::Null => Ok(IsNull::Yes),
            Value::Int(value) => match *ty {
                Type::INT2 => i16::try_from(*value)?.to_sql(ty, out),
                Type::INT4 => i32::try_from(*value)?.to_sql(ty, out),
                Type::INT8 => value.to_sql(ty, out),
                _ => Err(format!("a number is no {ty}").into()),
            },
            Value::Bool(value) if *ty == Type::BOOL => value.to_sql(ty, out),
            Value::Text(text) if [Type::TEXT, Type::VARCHAR, Type::JSON, Type::UNKNOWN].contains(ty) => {
                text.as_ref().to_sql(&Type::TEXT, out)
            }
            Value::Bytes(bytes) if *ty == Type::BYTEA => bytes.as_ref().to_sql(ty, out),
            Value::Array(values) => values.to_sql(ty, out),
            Value::Bool(_) | Value::Text(_) | Value::Bytes(_) => {
                Err(format!("a value of another type is no {ty}").into())
            }
        }
    }

    fn accepts(_: &Type) -> bool {
        true
    }

    to_sql_checked!();
}

/// A column of a row.
pub(in crate::store) fn cell(row: &postgres::Row, column: usize) -> Result<conn::Cell<'_>, StoreError> {
    let known = row.try_get::<_, Option<Known<'_>>>(column).map_err(|error| StoreError::Corrupt(describe(&error)))?;
    Ok(known.map_or(conn::Cell::Null, |known| known.0))
}

/// A value of the types that the schema uses.
struct Known<'a>(conn::Cell<'a>);

impl<'a> FromSql<'a> for Known<'a> {
    fn from_sql(ty: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn std::error::Error + Sync + Send>> {
        Ok(Self(match *ty {
            Type::BOOL => conn::Cell::Bool(bool::from_sql(ty, raw)?),
            Type::INT2 => conn::Cell::Int(i16::from_sql(ty, raw)?.into()),
            Type::INT4 => conn::Cell::Int(i32::from_sql(ty, raw)?.into()),
            Type::INT8 => conn::Cell::Int(i64::from_sql(ty, raw)?),
            Type::BYTEA => conn::Cell::Bytes(raw),
            _ => conn::Cell::Text(<&str>::from_sql(&Type::TEXT, raw)?),
        }))
    }

    fn accepts(ty: &Type) -> bool {
        [Type::BOOL, Type::INT2, Type::INT4, Type::INT8, Type::BYTEA, Type::TEXT, Type::VARCHAR, Type::NAME]
            .contains(ty)
    }
}

impl Drop for PgSession {
    fn drop(&mut self) {
        // The crate says good-bye, which may wait as any other call.
        self.watch.arm(GOODBYE);
        drop(self.client.borrow_mut().take());
        self.watch.disarm();
    }
}

/// For ending a session.
const GOODBYE: Duration = Duration::from_secs(1);
