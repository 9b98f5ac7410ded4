//! One set of statements for two databases.
//!
//! Statements are written in PostgreSQL's dialect. SQLite gets them after a few replacements ([`sqlite_text`]); whatever has no
//! counterpart there by replacement is not used. Values go in as [`Value`] and come out as [`Cell`], so that the code above never
//! sees which database it is.

use std::borrow::Cow;

use smallvec::SmallVec;

use super::stage::{Bulk, Stage};
use crate::store::{StoreError, postgres::PgSession, sqlite::SqliteSession};

/// A connection that statements are run on, within whatever transaction it has open.
#[derive(Clone, Copy)]
pub(in crate::store) enum Conn<'a> {
    /// The embedded database.
    Sqlite(&'a SqliteSession),
    /// The database that instances share.
    Postgres(&'a PgSession),
}

/// A value of a statement.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(in crate::store) enum Value<'a> {
    Null,
    Int(i64),
    Bool(bool),
    Text(Cow<'a, str>),
    Bytes(Cow<'a, [u8]>),
    /// Values of one column, for statements that write many rows; PostgreSQL only.
    Array(Vec<Self>),
}

impl Value<'_> {
    /// A copy that borrows nothing.
    pub(in crate::store) fn into_owned(self) -> Value<'static> {
        match self {
            Self::Null => Value::Null,
            Self::Int(value) => Value::Int(value),
            Self::Bool(value) => Value::Bool(value),
            Self::Text(value) => Value::Text(Cow::Owned(value.into_owned())),
            Self::Bytes(value) => Value::Bytes(Cow::Owned(value.into_owned())),
            Self::Array(values) => Value::Array(values.into_iter().map(Value::into_owned).collect()),
        }
    }
}

/// A value of a row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(in crate::store) enum Cell<'a> {
    Null,
    Int(i64),
    Bool(bool),
    Text(&'a str),
    Bytes(&'a [u8]),
}

/// A row of an answer.
pub(in crate::store) enum Row<'a> {
    Sqlite(&'a rusqlite::Row<'a>),
    Postgres(&'a postgres::Row),
}

impl Row<'_> {
    /// The column's value, as a type that can hold it.
    pub(in crate::store) fn get<T: Column>(&self, column: usize) -> Result<T, StoreError> {
        let cell = self.cell(column)?;
        T::from_cell(cell).ok_or_else(|| self.corrupt(column, format_args!("{cell:?}")))
    }

    /// The column's text.
    pub(in crate::store) fn text(&self, column: usize) -> Result<&str, StoreError> {
        self.text_or_null(column)?.ok_or_else(|| self.corrupt(column, "NULL"))
    }

    /// The column's text; `None`: NULL.
    pub(in crate::store) fn text_or_null(&self, column: usize) -> Result<Option<&str>, StoreError> {
        match self.cell(column)? {
            Cell::Null => Ok(None),
            Cell::Text(text) => Ok(Some(text)),
            other => Err(self.corrupt(column, format_args!("{other:?}"))),
        }
    }

    /// Says that a column does not hold what this build writes.
    pub(in crate::store) fn corrupt(&self, column: usize, value: impl std::fmt::Display) -> StoreError {
        StoreError::Corrupt(format!("{} is `{value}`", self.column_name(column)))
    }

    fn cell(&self, column: usize) -> Result<Cell<'_>, StoreError> {
        match self {
            Self::Sqlite(row) => crate::store::sqlite::cell(row, column),
            Self::Postgres(row) => crate::store::postgres::cell(row, column),
        }
    }

    fn column_name(&self, column: usize) -> &str {
        match self {
            Self::Sqlite(row) => row.as_ref().column_name(column).unwrap_or("a column"),
            Self::Postgres(row) => row.columns().get(column).map_or("a column", postgres::Column::name),
        }
    }
}

/// What a [`Cell`] can be read as.
pub(in crate::store) trait Column: Sized {
    /// `None`: another type, or out of range.
    fn from_cell(cell: Cell<'_>) -> Option<Self>;
}

macro_rules! integers {
    ($($int:ty),*) => {$(
        impl Column for $int {
            fn from_cell(cell: Cell<'_>) -> Option<Self> {
                if let Cell::Int(value) = cell { Self::try_from(value).ok() } else { None }
            }
        }
        impl Arg for $int {
            fn value(&self) -> Value<'_> {
                // What does not fit is no number of ours; the database refuses it by its own range.
                Value::Int(i64::try_from(*self).unwrap_or(i64::MAX))
            }
        }
    )*};
}
integers!(i64, u64, u32, u16, u8, usize);

impl Column for bool {
    fn from_cell(cell: Cell<'_>) -> Option<Self> {
        match cell {
            Cell::Bool(value) => Some(value),
            Cell::Int(value @ (0 | 1)) => Some(value == 1),
            Cell::Int(_) | Cell::Null | Cell::Text(_) | Cell::Bytes(_) => None,
        }
    }
}

impl Column for String {
    fn from_cell(cell: Cell<'_>) -> Option<Self> {
        if let Cell::Text(text) = cell { Some(text.to_owned()) } else { None }
    }
}

impl Column for Vec<u8> {
    fn from_cell(cell: Cell<'_>) -> Option<Self> {
        if let Cell::Bytes(bytes) = cell { Some(bytes.to_owned()) } else { None }
    }
}

impl<const N: usize> Column for [u8; N] {
    fn from_cell(cell: Cell<'_>) -> Option<Self> {
        if let Cell::Bytes(bytes) = cell { bytes.try_into().ok() } else { None }
    }
}

impl<T: Column> Column for Option<T> {
    fn from_cell(cell: Cell<'_>) -> Option<Self> {
        if cell == Cell::Null { Some(None) } else { T::from_cell(cell).map(Some) }
    }
}

/// What can be a value of a statement.
pub(in crate::store) trait Arg {
    fn value(&self) -> Value<'_>;
}

impl Arg for bool {
    fn value(&self) -> Value<'_> {
        Value::Bool(*self)
    }
}

impl Arg for str {
    fn value(&self) -> Value<'_> {
        Value::Text(Cow::Borrowed(self))
    }
}

impl Arg for String {
    fn value(&self) -> Value<'_> {
        Value::Text(Cow::Borrowed(self))
    }
}

impl Arg for [u8] {
    fn value(&self) -> Value<'_> {
        Value::Bytes(Cow::Borrowed(self))
    }
}

impl Arg for Vec<u8> {
    fn value(&self) -> Value<'_> {
        Value::Bytes(Cow::Borrowed(self))
    }
}

impl<const N: usize> Arg for [u8; N] {
    fn value(&self) -> Value<'_> {
        Value::Bytes(Cow::Borrowed(self))
    }
}

impl Arg for Value<'_> {
    fn value(&self) -> Value<'_> {
        self.clone()
    }
}

impl<T: Arg> Arg for Option<T> {
    fn value(&self) -> Value<'_> {
        self.as_ref().map_or(Value::Null, Arg::value)
    }
}

impl<T: Arg + ?Sized> Arg for &T {
    fn value(&self) -> Value<'_> {
        (**self).value()
    }
}

/// Values of one statement; few enough to lie on the stack.
pub(in crate::store) type Values<'a> = SmallVec<[Value<'a>; 12]>;

/// All values of a statement: a tuple, an array, [`args!`] or `()`.
pub(in crate::store) trait Args {
    fn values(&self) -> Values<'_>;
}

impl Args for () {
    fn values(&self) -> Values<'_> {
        Values::new()
    }
}

impl<T: Arg, const N: usize> Args for [T; N] {
    fn values(&self) -> Values<'_> {
        self.iter().map(Arg::value).collect()
    }
}

impl<T: Arg> Args for &[T] {
    fn values(&self) -> Values<'_> {
        self.iter().map(Arg::value).collect()
    }
}

macro_rules! tuples {
    ($(($($name:ident),+))*) => {$(
        impl<$($name: Arg),+> Args for ($($name,)+) {
            fn values(&self) -> Values<'_> {
                #[expect(non_snake_case, reason = "one name for type and value")]
                let ($($name,)+) = self;
                smallvec::smallvec![$($name.value()),+]
            }
        }
    )*};
}
tuples! {
    (A, B)
    (A, B, C)
    (A, B, C, D)
    (A, B, C, D, E)
    (A, B, C, D, E, F)
    (A, B, C, D, E, F, G)
    (A, B, C, D, E, F, G, H)
    (A, B, C, D, E, F, G, H, I)
    (A, B, C, D, E, F, G, H, I, J)
    (A, B, C, D, E, F, G, H, I, J, K)
    (A, B, C, D, E, F, G, H, I, J, K, L)
    (A, B, C, D, E, F, G, H, I, J, K, L, M)
    (A, B, C, D, E, F, G, H, I, J, K, L, M, N)
}

/// More values than a tuple takes.
macro_rules! args {
    ($($value:expr),* $(,)?) => {
        [$($crate::store::sql::conn::Arg::value(&$value)),*]
    };
}
pub(in crate::store) use args;

/// The first row, if there is one.
pub(in crate::store) fn one<T>(
    conn: Conn<'_>,
    sql: &str,
    args: impl Args,
    read: impl FnOnce(&Row<'_>) -> Result<T, StoreError>,
) -> Result<Option<T>, StoreError> {
    match conn {
        Conn::Sqlite(session) => session.one(sql, &args.values(), read),
        Conn::Postgres(session) => session.one(sql, &args.values(), read),
    }
}

/// All rows.
pub(in crate::store) fn all<T>(
    conn: Conn<'_>,
    sql: &str,
    args: impl Args,
    read: impl FnMut(&Row<'_>) -> Result<T, StoreError>,
) -> Result<Vec<T>, StoreError> {
    match conn {
        Conn::Sqlite(session) => session.all(sql, &args.values(), read),
        Conn::Postgres(session) => session.all(sql, &args.values(), read),
    }
}

/// Runs a statement and gives the number of rows it changed.
pub(in crate::store) fn run(conn: Conn<'_>, sql: &str, args: impl Args) -> Result<usize, StoreError> {
    match conn {
        Conn::Sqlite(session) => session.run(sql, &args.values()),
        Conn::Postgres(session) => session.run(sql, &args.values()),
    }
}

/// As [`run`], with values that are there already.
pub(in crate::store) fn run_values(conn: Conn<'_>, sql: &str, values: &[Value<'_>]) -> Result<usize, StoreError> {
    match conn {
        Conn::Sqlite(session) => session.run(sql, values),
        Conn::Postgres(session) => session.run(sql, values),
    }
}

/// Runs a statement once for each row of values, prepared once; `done` hears how each went, and its error ends it.
pub(in crate::store) fn run_each(
    conn: Conn<'_>,
    sql: &str,
    rows: impl IntoIterator<Item = impl Args>,
    mut done: impl FnMut(Result<usize, StoreError>) -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    match conn {
        Conn::Sqlite(session) => session.run_each(sql, rows, done),
        Conn::Postgres(session) => rows.into_iter().try_for_each(|row| done(session.run(sql, &row.values()))),
    }
}

/// Inserts one row and gives what the database numbered it with, in column `id`.
pub(in crate::store) fn insert(conn: Conn<'_>, sql: &str, id: &str, args: impl Args) -> Result<i64, StoreError> {
    insert_values(conn, sql, id, &args.values())
}

/// As [`insert`], with values that are there already.
pub(in crate::store) fn insert_values(
    conn: Conn<'_>,
    sql: &str,
    id: &str,
    values: &[Value<'_>],
) -> Result<i64, StoreError> {
    match conn {
        // A RETURNING clause costs SQLite more than the statement.
        Conn::Sqlite(session) => session.insert(sql, values).inspect(|_| debug_assert!(!id.is_empty())),
        Conn::Postgres(session) => session.insert(sql, id, values),
    }
}

/// Makes a write that can wait: at once, or with others of its kind where there is a stage.
pub(in crate::store) fn write<const N: usize>(
    conn: Conn<'_>,
    bulk: &'static Bulk,
    values: [Value<'_>; N],
) -> Result<(), StoreError> {
    if conn.is_staged() {
        let row = values.map(Value::into_owned).to_vec();
        conn.staged(|stage| {
            stage.push(bulk, row);
            Some(())
        });
        return Ok(());
    }
    run_values(conn, bulk.each, &values).map(drop)
}

/// The first column of the first row.
pub(in crate::store) fn scalar<T: Column>(conn: Conn<'_>, sql: &str, args: impl Args) -> Result<Option<T>, StoreError> {
    one(conn, sql, args, |row| row.get(0))
}

impl Conn<'_> {
    /// Asks the stage; `None`: there is none, or it does not know.
    pub(in crate::store) fn staged<T>(self, ask: impl FnOnce(&mut Stage) -> Option<T>) -> Option<T> {
        match self {
            Conn::Sqlite(_) => None,
            Conn::Postgres(session) => session.staged(ask),
        }
    }

    /// Whether others write to the database at the same time.
    pub(in crate::store) const fn is_shared(self) -> bool {
        match self {
            Conn::Sqlite(_) => false,
            Conn::Postgres(_) => true,
        }
    }

    /// Whether writes wait in a stage.
    pub(in crate::store) fn is_staged(self) -> bool {
        match self {
            Conn::Sqlite(_) => false,
            Conn::Postgres(session) => session.is_staged(),
        }
    }

    /// The number of the next command; `None`: the database numbers rows as they come.
    pub(in crate::store) fn next_command_id(self) -> Result<Option<i64>, StoreError> {
        match self {
            Conn::Sqlite(_) => Ok(None),
            Conn::Postgres(session) => session.next_command_id(),
        }
    }

    /// Whether a transaction is open; some errors end it by themselves.
    pub(in crate::store) fn in_transaction(self) -> bool {
        match self {
            Conn::Sqlite(session) => session.in_transaction(),
            Conn::Postgres(session) => session.in_transaction(),
        }
    }

    /// Begins a savepoint; the innermost is meant by what follows.
    pub(in crate::store) fn savepoint(self) -> Result<(), StoreError> {
        match self {
            Conn::Sqlite(session) => session.savepoint(),
            Conn::Postgres(session) => session.savepoint(),
        }
    }

    /// Takes back what was done since the savepoint, which stays.
    pub(in crate::store) fn roll_back_to_savepoint(self) -> Result<(), StoreError> {
        match self {
            Conn::Sqlite(session) => session.roll_back_to_savepoint(),
            Conn::Postgres(session) => session.roll_back_to_savepoint(),
        }
    }

    /// Ends the savepoint; what was done stands.
    pub(in crate::store) fn release_savepoint(self) -> Result<(), StoreError> {
        match self {
            Conn::Sqlite(session) => session.release_savepoint(),
            Conn::Postgres(session) => session.release_savepoint(),
        }
    }
}

/// A statement as SQLite reads it.
pub(in crate::store) fn sqlite_text(sql: &str) -> String {
    const REPLACED: [(&str, &str); 9] = [
        // The scalar functions of several arguments; the aggregates have one.
        ("greatest(", "max("),
        ("least(", "min("),
        // One writer: nobody else can change what was read.
        (" FOR NO KEY UPDATE OF d SKIP LOCKED", ""),
        (" FOR NO KEY UPDATE", ""),
        (" FOR UPDATE", ""),
        // Flags are integers, and partial indexes say so.
        ("= TRUE", "= 1"),
        ("= FALSE", "= 0"),
        ("json_array_elements_text(", "json_each("),
        ("::json", ""),
    ];
    let mut text = sql.replace('$', "?");
    for (from, to) in REPLACED {
        if text.contains(from) {
            text = text.replace(from, to);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sqlite_reads_the_same_statements() {
        let text = sqlite_text("UPDATE t SET a = greatest(a, $1), f = TRUE WHERE id = $2 AND hold_open = FALSE");
        assert_eq!(text, "UPDATE t SET a = max(a, ?1), f = 1 WHERE id = ?2 AND hold_open = 0");
        assert_eq!(sqlite_text("SELECT 1 FROM t WHERE a = $1 FOR NO KEY UPDATE"), "SELECT 1 FROM t WHERE a = ?1");
        assert_eq!(
            sqlite_text("SELECT 1 FROM outbound_queue q WHERE q.is_open = TRUE"),
            "SELECT 1 FROM outbound_queue q WHERE q.is_open = 1"
        );
        assert_eq!(
            sqlite_text("SELECT 1 WHERE a IN (SELECT value FROM json_array_elements_text($1::json))"),
            "SELECT 1 WHERE a IN (SELECT value FROM json_each(?1))"
        );
    }

    #[test]
    fn values_and_cells_keep_their_ranges() {
        assert_eq!(u8::from_cell(Cell::Int(256)), None);
        assert_eq!(u8::from_cell(Cell::Int(255)), Some(255));
        assert_eq!(<Option<u8>>::from_cell(Cell::Null), Some(None));
        assert_eq!(<Option<u8>>::from_cell(Cell::Int(-1)), None);
        assert_eq!(bool::from_cell(Cell::Int(2)), None);
        assert_eq!(Some("x").value(), Value::Text(Cow::Borrowed("x")));
        assert_eq!(None::<i64>.value(), Value::Null);
        assert_eq!((1_u8, "a").values().len(), 2);
    }
}
