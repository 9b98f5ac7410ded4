//! What the instances of one gateway tell each other and share, by way of Redis.
//!
//! ```text
//! callers ──jobs──▶ Link: workers, one connection each ──▶ Redis ──pub/sub──▶ notes thread ──▶ handler
//!                     └ monitor: is it there, was it restarted, was it emptied
//! ```
//!
//! Nothing here is durable, and losing all of it loses nothing: rows in the store decide, Redis only says where to look and what to
//! look at first. Every wait has a deadline, every queue a bound; while Redis is away, jobs fail at once with the reason.
//!
//! - [`link`]: connections, health, and the jobs that run on them.
//! - [`guards`]: nonces and rates that hold for all together.
//! - [`sessions`]: which instance has a device, and what it knows of it.
//! - [`instances`]: who lives, and what becomes of what a dead one had.
//! - [`inbox`]: what becomes of ids and notes that come in.
//! - [`notes`]: what instances tell each other.
//! - The queue of waiting commands is in [`queue`](crate::queue).

pub mod guards;
pub mod inbox;
pub mod instances;
pub mod link;
mod member;
pub mod notes;
mod outbox;
pub mod sessions;

pub use crate::model::ServerId;
pub use guards::Guards;
pub use link::{Back, Conn, Link, LinkError};
pub use member::{JoinError, Member};
pub use notes::{Note, Notes};
pub(crate) use outbox::Outbox;
