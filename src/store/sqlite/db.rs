//! The database file: opening, schema, transactions, checkpoints. Synchronous; the writer thread owns it.
//!
//! Files: `NAME` with `-wal` and `-shm` beside it, and `NAME.lock`, held while open: two writers would hand out the same epochs
//! and message ids. A crash leaves committed transactions in `-wal`; opening replays them.

use std::{
    fs::{File, OpenOptions},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use rusqlite::{Connection, OpenFlags};

use super::{session::SqliteSession, wal};
use crate::{
    gateway::card::CardRules,
    model::{OrderNumbers, ServerId},
    store::{
        Applied, Job, Latest, Limits, StoreError,
        sql::{
            apply::{Rules, apply, apply_latest},
            conn::{Conn, one, scalar},
        },
    },
};

mod embedded {
    refinery::embed_migrations!("migrations/sqlite");
}

const TABLES: [&str; 26] = [
    "devices",
    "gateway_sockets",
    "ports",
    "orders",
    "settlements",
    "settlement_quarantine",
    "outbound_queue",
    "events",
    "event_log",
    "log_bounds",
    "logged_events",
    "all_events",
    "event_cursors",
    "event_leases",
    "event_delivery",
    "idempotency_keys",
    "cards",
    "card_transactions",
    "card_balance_logs",
    "firmware",
    "ota_tasks",
    "instances",
    "api_keys",
    "webhook_endpoints",
    "managed_revision",
    "order_requests",
];
/// Statements are prepared once; there are fewer than this.
const STATEMENTS_MAX: usize = 128;
pub(super) const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// Page cache, KiB: the hot ends of the indexes of a few ten thousand devices.
const CACHE_KIB: i64 = 16 * 1024;

/// The open database.
#[derive(Debug)]
pub struct Db {
    session: SqliteSession,
    numbers: OrderNumbers,
    limits: Limits,
    cards: Arc<CardRules>,
    server_id: Option<ServerId>,
    /// Row changes up to the last checkpoint.
    checkpointed: u64,
    _lock: File,
}

impl Db {
    /// Opens the database and brings its schema up to date. A database that another process has open, that a newer build
    /// wrote, or that holds foreign tables of our names is refused and not changed.
    pub fn open(path: &Path, numbers: OrderNumbers) -> Result<Self, StoreError> {
        let lock = lock(path)?;
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        // Its commits sync, always: see `set_up`.
        let conn = Connection::open_with_flags_and_vfs(path, flags, wal::gathered()?)?;
        conn.busy_timeout(BUSY_TIMEOUT)?;
        let session = SqliteSession::new(conn);
        check_schema(&session, path)?;
        let mut conn = session.into_raw();
        set_up(&conn)?;
        embedded::migrations::runner()
            .run(&mut conn)
            .map_err(|error| StoreError::Statement(format!("migration of {}: {error}", path.display())))?;
        conn.pragma_update(None, "foreign_keys", true)?;
        conn.set_prepared_statement_cache_capacity(STATEMENTS_MAX);
        let session = SqliteSession::new(conn);
        let db = Self {
            session,
            numbers,
            limits: Limits::default(),
            cards: Arc::default(),
            server_id: None,
            checkpointed: 0,
            _lock: lock,
        };
        // Numbers go on behind those of the process before, also if the clock has stepped back since.
        db.numbers.next(db.newest()?.saturating_add(1));
        Ok(db)
    }

    /// Puts other time limits in force than the defaults.
    #[must_use]
    pub const fn with_limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Puts other rules for cards in force than the defaults.
    #[must_use]
    pub fn with_cards(mut self, cards: Arc<CardRules>) -> Self {
        self.cards = cards;
        self
    }

    /// Says what this instance is called in rows that keep who did something.
    #[must_use]
    pub fn with_server_id(mut self, server_id: Option<ServerId>) -> Self {
        self.server_id = server_id;
        self
    }

    /// Highest schema version this build knows.
    pub fn schema_version() -> i64 {
        embedded::migrations::runner().get_migrations().iter().map(|step| i64::from(step.version())).max().unwrap_or(0)
    }

    /// Applies jobs in one transaction and commits it; if one is refused, all of them again, each in its own savepoint. `now` is the
    /// store's clock, Unix ms.
    pub fn apply(&mut self, now: i64, jobs: &[Job]) -> Applied {
        let rules = Rules {
            numbers: &self.numbers,
            limits: self.limits,
            cards: &self.cards,
            instance: None,
            server_id: self.server_id.as_ref(),
        };
        self.session.take_savepoints(false);
        let applied = apply(self.conn(), rules, now, jobs);
        let refused = self.session.wants_savepoints();
        self.session.take_savepoints(true);
        if refused { apply(self.conn(), rules, now, jobs) } else { applied }
    }

    /// Writes latest values in one transaction.
    pub fn apply_latest(&mut self, rows: &[Latest]) -> Result<(), StoreError> {
        apply_latest(self.conn(), rows)
    }

    const fn conn(&self) -> Conn<'_> {
        Conn::Sqlite(&self.session)
    }

    /// Row changes since the last checkpoint.
    pub fn changes(&self) -> u64 {
        self.session.raw().total_changes().saturating_sub(self.checkpointed)
    }

    /// Moves what it can from the log into the database without waiting for readers; the log then starts over.
    pub fn checkpoint(&mut self) -> Result<(), StoreError> {
        self.checkpointed = self.session.raw().total_changes();
        let row = scalar::<i64>(self.conn(), "PRAGMA wal_checkpoint(PASSIVE)", ())?;
        debug_assert!(row.is_some(), "a checkpoint answers with a row");
        Ok(())
    }

    /// Gives back the pages it keeps in memory, if they are worth it; whether they were.
    pub(super) fn rest(&self) -> bool {
        self.session.rest()
    }

    /// Writes and commits a page, to see whether the disk takes one.
    pub fn probe(&mut self) -> Result<(), StoreError> {
        let version: i64 = scalar(self.conn(), "PRAGMA user_version", ())?.unwrap_or(0);
        Ok(self.session.raw().pragma_update(None, "user_version", (version + 1) & 0xFFFF)?)
    }

    /// The latest time stored, Unix ms; 0 in an empty database.
    pub fn newest(&self) -> Result<i64, StoreError> {
        let sql = "SELECT greatest(coalesce((SELECT at FROM events ORDER BY pos DESC LIMIT 1), 0), \
                   coalesce((SELECT max(last_seen_at) FROM devices), 0))";
        Ok(scalar(self.conn(), sql, ())?.unwrap_or(0))
    }

    #[cfg(test)]
    pub(super) const fn connection(&self) -> &Connection {
        self.session.raw()
    }
}

/// Opens a connection that only reads, the logs beside it too; the writers must have both open.
pub(super) fn open_reader(path: &Path, logs: &Path) -> Result<SqliteSession, StoreError> {
    let conn = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    conn.busy_timeout(BUSY_TIMEOUT)?;
    conn.pragma_update(None, "cache_size", -CACHE_KIB)?;
    conn.execute("ATTACH DATABASE ?1 AS logs", [logs.to_string_lossy()])?;
    conn.set_prepared_statement_cache_capacity(STATEMENTS_MAX);
    Ok(SqliteSession::new(conn))
}

fn lock(path: &Path) -> Result<File, StoreError> {
    let unavailable = |what: &str, error: &dyn std::fmt::Display| {
        StoreError::Unavailable(format!("{what} {}: {error}", path.display()))
    };
    if let Some(dir) = path.parent().filter(|dir| !dir.as_os_str().is_empty()) {
        std::fs::create_dir_all(dir).map_err(|error| unavailable("cannot make the directory of", &error))?;
    }
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(PathBuf::from(name));
    let file = file.map_err(|error| unavailable("cannot make the lock of", &error))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => {
            Err(StoreError::Unavailable(format!("{} is in use by another process", path.display())))
        }
        Err(std::fs::TryLockError::Error(error)) => Err(unavailable("cannot lock", &error)),
    }
}

/// Refuses what is not ours. Reads only.
fn check_schema(session: &SqliteSession, path: &Path) -> Result<(), StoreError> {
    let conn = Conn::Sqlite(session);
    let exists = |name: &str| -> Result<bool, StoreError> {
        Ok(scalar::<i64>(conn, "SELECT 1 FROM sqlite_schema WHERE name = $1", [name])?.is_some())
    };
    let refused = |why: String| Err(StoreError::Corrupt(format!("{} {why}", path.display())));
    if !exists("refinery_schema_history")? {
        for table in TABLES {
            if exists(table)? {
                return refused(format!("holds a table `{table}` that chargegate did not make"));
            }
        }
        return Ok(());
    }
    let known = Db::schema_version();
    let newest: i64 = scalar(conn, "SELECT coalesce(max(version), 0) FROM refinery_schema_history", ())?.unwrap_or(0);
    if newest > known {
        return refused(format!("was written by a newer build: schema version {newest}, this build knows {known}"));
    }
    for step in embedded::migrations::runner().get_migrations() {
        let applied = one(
            conn,
            "SELECT name, checksum FROM refinery_schema_history WHERE version = $1",
            [i64::from(step.version())],
            |row| Ok((row.get::<String>(0)?, row.get::<String>(1)?)),
        )?;
        if applied.is_some_and(|(name, sum)| name != step.name() || sum != step.checksum().to_string()) {
            return refused(format!("was not made by chargegate: its schema version {} differs", step.version()));
        }
    }
    Ok(())
}

fn set_up(conn: &Connection) -> Result<(), StoreError> {
    let journal: String = conn.pragma_update_and_check(None, "journal_mode", "wal", |row| row.get(0))?;
    if journal != "wal" {
        return Err(StoreError::Unavailable(format!("the file system refuses WAL: journal mode is {journal}")));
    }
    conn.pragma_update(None, "synchronous", "FULL")?;
    // Checkpoints are run between batches, not inside a commit that somebody waits for.
    conn.pragma_update(None, "wal_autocheckpoint", 0)?;
    conn.pragma_update(None, "temp_store", "MEMORY")?;
    conn.pragma_update(None, "cache_size", -CACHE_KIB)?;
    let synchronous: i64 = conn.pragma_query_value(None, "synchronous", |row| row.get(0))?;
    assert!(synchronous == 2, "synchronous must be FULL (2), is {synchronous}");
    Ok(())
}
