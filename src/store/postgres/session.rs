//! One connection: its calls under their deadline, its errors, its statements.

use std::{
    cell::{Cell, RefCell},
    error::Error as _,
    fmt::Write as _,
    sync::Arc,
    time::Duration,
};

use postgres::{Client, error::SqlState};

use super::watch::Watch;
use crate::store::StoreError;

/// A connection of one thread.
pub(in crate::store) struct PgSession {
    /// `None` only while it is dropped.
    client: RefCell<Option<Client>>,
    watch: Arc<Watch>,
    /// For one call.
    limit: Duration,
    /// The server's process of this connection.
    pid: i32,
    /// What the last failed call says of the transaction.
    fault: Cell<Option<Fault>>,
}

/// What an error of the server means for whoever meets it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// The connection is gone, or is of no use.
    Lost,
    /// Others were in the way; the same again may well succeed.
    Conflict,
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
        SqlState::T_R_SERIALIZATION_FAILURE | SqlState::T_R_DEADLOCK_DETECTED | SqlState::LOCK_NOT_AVAILABLE => {
            Fault::Conflict
        }
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
        Fault::Lost | Fault::Conflict | Fault::Unable => StoreError::Unavailable(describe(error)),
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
        Self { client: RefCell::new(Some(client)), watch, limit, pid, fault: Cell::new(None) }
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
