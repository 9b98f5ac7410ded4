//! The embedded store: one SQLite database, one writer with group commit.
//!
//! ```text
//! shards, API ──▶ jobs (bounded) ──▶ writer thread ──▶ outcomes (bounded) ──▶ delivery thread ──▶ Reply, Notify
//!            ├──▶ latest values ───────┘ (when no job waits)
//!            ├──▶ queries (bounded) ──▶ 2 reader threads
//!            └──▶ logs (bounded, lossy) ──▶ log thread, a file of its own
//! ```
//!
//! Invariants:
//! - An outcome leaves the writer only after the commit that made it durable (`synchronous = FULL`).
//! - A batch is what waits when the writer is free, at most [`Options::batch_jobs_max`]: a lone job commits at once, a stream
//!   shares each sync of the disk. Nobody waits for a batch to fill.
//! - Pages of the write-ahead log are written many at a time, and all of them before the log is synced (`wal`).
//! - The order of insertion of events is the order of their commit, so `events.pos` is the log's position.
//!
//! Absent: rules of the domain ([`crate::gateway::order`] and [`crate::gateway::settlement`] decide), retries (whoever submitted
//! a job tries again).

mod cmd_log;
mod db;
mod session;
#[cfg(test)]
mod tests;
mod wal;
mod writer;

pub use db::Db;
pub(in crate::store) use session::{SqliteSession, cell};
pub use writer::{Options, SqliteStore};
