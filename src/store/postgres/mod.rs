//! The clustered store: one PostgreSQL database, any number of instances.
//!
//! ```text
//! shards, API ──▶ jobs, by device ──▶ lanes, a connection each ──▶ outcomes ──▶ delivery thread ──▶ Reply, Notify
//!            │                              └──wake──▶ sequencer: positions of events ──▶ Notify
//!            ├──▶ latest values ──▶ 1 thread, by the hundred
//!            ├──▶ queries ──▶ reader threads
//!            └──▶ logs, lossy ──▶ 1 thread, by the thousand
//! ```
//!
//! Invariants:
//! - An outcome leaves a lane only after the commit that made it durable (`synchronous_commit = on`, asserted).
//! - The row of a device is the lock of everything that belongs to it, over all instances: a lane takes the rows of its batch in the
//!   order of their ids before it reads anything.
//! - Jobs of one device are applied in the order they were submitted: they go to one lane.
//! - No call lasts for ever ([`watch`]), and no answer comes late: a connection that did not answer in time is gone.
//! - Lanes take turns ([`turn`]): one reads and writes while the others commit and their jobs gather.
//! - Events have their position in the log from one sequencer ([`sequencer`]), after their commit.
//!
//! Absent: statements (they are those of every store, [`crate::store::sql`]), rules of the domain, retries of jobs.

mod cmd_log;
mod connect;
mod lane;
mod latest;
mod link;
mod migrate;
mod sequencer;
mod session;
mod store;
mod tls;
mod turn;
mod watch;

pub use connect::Timeouts;
pub use sequencer::{SequencerState, SequencerWake};
pub(in crate::store) use session::{PgSession, cell};
use store::Shared;
pub use store::{Options, PostgresStore};

use crate::store::StoreError;

/// Whether a URL can be used, as far as it says by itself.
pub fn check_url(url: &str) -> Result<(), StoreError> {
    connect::check(url)
}

/// Brings the schema up to date; returns the database's name, and the schema's version before and after.
pub fn migrate(url: &str, timeouts: Timeouts) -> Result<(String, i64, i64), StoreError> {
    let connector = connect::Connector::new(url, timeouts)?;
    let (before, after) = migrate::migrate(&connector)?;
    Ok((connector.name().to_owned(), before, after))
}

/// Highest schema version this build knows.
pub fn schema_version() -> i64 {
    migrate::schema_version()
}
