//! The embedded store: one SQLite database, one writer with group commit.
//!
//! ```text
//! shards, API ──▶ jobs (bounded) ──▶ writer thread ──▶ outcomes (bounded) ──▶ delivery thread ──▶ Reply, Notify
//!            ├──▶ latest values ───────┘ (when no job waits)
//!            ├──▶ queries (bounded) ──▶ 2 reader threads
//!            └──▶ command log (bounded, lossy) ──▶ log thread, a file of its own
//! ```
//!
//! Invariants:
//! - An outcome leaves the writer only after the commit that made it durable (`synchronous = FULL`).
//! - A batch is what waits when the writer is free, at most [`Options::batch_jobs_max`]: a lone job commits at once, a stream
//!   shares each sync of the disk. Nobody waits for a batch to fill.
//! - The order of insertion of events is the order of their commit, so `events.pos` is the log's position.
//!
//! Absent: rules of the domain ([`crate::gateway::order`] and [`crate::gateway::settlement`] decide), retries (whoever submitted
//! a job tries again).

mod apply;
mod call;
mod card;
mod cmd_log;
mod command;
mod counters;
mod db;
mod device;
mod event;
mod idempotency;
mod limits;
mod network;
mod order;
mod ota;
mod params;
mod read;
mod row;
mod settle;
#[cfg(test)]
mod tests;
mod upkeep;
mod writer;

pub use apply::Applied;
pub use counters::{COMMIT_BUCKETS_US, KINDS, StoreCounters};
pub use db::Db;
pub use limits::Limits;
pub use writer::{Options, SqliteStore};
