//! The transactions and queries of the store, written once for both databases.
//!
//! `conn` hides which database it is; `apply` runs a batch of jobs in one transaction; `order`, `settle`, `command`, `call`,
//! `card`, `params`, `network`, `ota`, `managed`, `bind`, `device`, `endpoint` and `event` are what jobs do to their tables; `idempotency` makes
//! them happen once; `upkeep` is the backstop and pruning; `read` answers queries, `proof` those for all that is kept of one order.
//!
//! Absent: connections, threads, retries (they are the databases' own modules) and rules of the domain
//! ([`crate::gateway::order`] and [`crate::gateway::settlement`] decide).

pub(super) mod apply;
mod bind;
mod call;
mod card;
mod command;
pub(super) mod conn;
mod device;
mod endpoint;
mod event;
mod idempotency;
mod instance;
mod limits;
mod managed;
mod network;
mod order;
mod ota;
mod params;
mod prefetch;
mod proof;
pub(super) mod read;
mod row;
mod rows;
mod settle;
pub(super) mod stage;
mod upkeep;

pub use apply::Applied;
pub use limits::Limits;
