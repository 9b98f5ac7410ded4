//! The logs of commands and of deliveries: a file of their own, so that their volume never waits in front of a settlement. A crash
//! may lose its last seconds; rows that do not fit the queue are dropped and counted.

use std::path::{Path, PathBuf};

use rusqlite::Connection;

use super::{db::BUSY_TIMEOUT, session::SqliteSession};
use crate::{
    model::ServerId,
    store::{
        CommandLogRow, DeliveryLogRow, StoreError,
        logs::{Log, Logs},
        sql::conn::{Conn, run, scalar},
    },
};

/// What each version of the file adds to the one before.
const STEPS: [&str; 3] = [
    "CREATE TABLE cmd_log (
         id        INTEGER PRIMARY KEY,
         at        INTEGER NOT NULL,
         device_id TEXT NOT NULL,
         direction TEXT NOT NULL CHECK (direction IN ('up', 'down')),
         command   INTEGER NOT NULL,
         msg_id    INTEGER NOT NULL,
         raw       BLOB NOT NULL
     ) STRICT;
     CREATE INDEX cmd_log_device_at ON cmd_log (device_id, at);
     CREATE INDEX cmd_log_at ON cmd_log (at);",
    "ALTER TABLE cmd_log ADD COLUMN epoch INTEGER;
     ALTER TABLE cmd_log ADD COLUMN instance TEXT;
     CREATE TABLE delivery_log (
         id         INTEGER PRIMARY KEY,
         at         INTEGER NOT NULL,
         endpoint   TEXT NOT NULL,
         pos        INTEGER NOT NULL,
         event_id   TEXT NOT NULL,
         event_type TEXT NOT NULL,
         key        TEXT NOT NULL,
         attempt    INTEGER NOT NULL,
         status     INTEGER,
         took_ms    INTEGER NOT NULL,
         outcome    TEXT NOT NULL CHECK (outcome IN ('delivered', 'retry', 'dead')),
         reason     TEXT,
         instance   TEXT
     ) STRICT;
     CREATE INDEX delivery_log_endpoint ON delivery_log (endpoint, id DESC);
     CREATE INDEX delivery_log_failed ON delivery_log (endpoint, outcome, id DESC) WHERE outcome <> 'delivered';
     CREATE INDEX delivery_log_pos ON delivery_log (pos);
     CREATE INDEX delivery_log_at ON delivery_log (at);",
    "DROP INDEX cmd_log_at;",
];
/// Pages of the write-ahead log at which a commit checkpoints: pages of an index are written again and again before that.
const CHECKPOINT_PAGES: u32 = 8_000;

/// `NAME-cmd_log.db` beside `NAME.db`.
pub(super) fn path_beside(path: &Path) -> PathBuf {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!("{stem}-cmd_log.db"))
}

pub(super) fn open(path: &Path) -> Result<SqliteSession, StoreError> {
    let session = SqliteSession::new(Connection::open(path)?);
    let conn = session.raw();
    conn.busy_timeout(BUSY_TIMEOUT)?;
    let version: i64 = scalar(Conn::Sqlite(&session), "PRAGMA user_version", ())?.unwrap_or(0);
    let newest = STEPS.len() as i64;
    if version > newest {
        return Err(StoreError::Corrupt(format!(
            "{} was written by a newer build: schema version {version}, this build knows {newest}",
            path.display()
        )));
    }
    let foreign =
        scalar::<i64>(Conn::Sqlite(&session), "SELECT 1 FROM sqlite_schema WHERE name = 'cmd_log'", ())?.is_some();
    if version == 0 && foreign {
        return Err(StoreError::Corrupt(format!(
            "{} holds a table `cmd_log` that chargegate did not make",
            path.display()
        )));
    }
    conn.pragma_update(None, "journal_mode", "wal")?;
    // NORMAL may lose the last commits at a power cut, never the file.
    conn.pragma_update(None, "synchronous", "NORMAL")?;
    conn.pragma_update(None, "wal_autocheckpoint", CHECKPOINT_PAGES)?;
    for (step, sql) in (1..).zip(STEPS) {
        if version < step {
            conn.execute_batch(&format!("BEGIN IMMEDIATE; {sql} PRAGMA user_version = {step}; COMMIT;"))?;
        }
    }
    Ok(session)
}

/// The file of the logs, as the thread of the logs writes it.
pub(super) struct LogFile {
    pub(super) session: SqliteSession,
    /// Who writes.
    pub(super) instance: Option<ServerId>,
}

impl Logs for LogFile {
    fn insert_commands(&mut self, rows: &[CommandLogRow]) -> Result<(), StoreError> {
        let transaction = self.session.raw().unchecked_transaction()?;
        let instance = self.instance.as_ref().map(ServerId::as_str);
        // Prepared once, and no values are copied: more rows are written here than anywhere else.
        let mut statement = self.session.raw().prepare_cached(
            "INSERT INTO cmd_log (at, device_id, direction, command, msg_id, raw, epoch, instance) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
        )?;
        for row in rows {
            let direction = if row.up { "up" } else { "down" };
            let device_id = row.device_id.to_string();
            statement.execute((
                row.at,
                device_id,
                direction,
                row.command,
                row.msg_id,
                &row.raw[..],
                row.epoch,
                instance,
            ))?;
        }
        drop(statement);
        Ok(transaction.commit()?)
    }

    fn insert_deliveries(&mut self, rows: &[DeliveryLogRow]) -> Result<(), StoreError> {
        let transaction = self.session.raw().unchecked_transaction()?;
        let instance = self.instance.as_ref().map(ServerId::as_str);
        for row in rows {
            run(
                Conn::Sqlite(&self.session),
                "INSERT INTO delivery_log (at, endpoint, pos, event_id, event_type, key, attempt, status, took_ms, \
                 outcome, reason, instance) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)",
                (
                    row.at,
                    &*row.endpoint,
                    row.pos,
                    &row.event_id,
                    &row.event_type,
                    &row.key,
                    row.attempt,
                    row.status,
                    row.took_ms,
                    row.outcome.as_str(),
                    &row.reason,
                    instance,
                ),
            )?;
        }
        Ok(transaction.commit()?)
    }

    fn prune(&mut self, log: Log, before: i64, rows_max: u32) -> Result<usize, StoreError> {
        run(Conn::Sqlite(&self.session), log.prune_sql(), (before, rows_max))
    }

    fn look_after(&mut self) {}
}
