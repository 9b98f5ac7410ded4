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
//! - [`notes`]: what instances tell each other.
//! - The queue of waiting commands is in [`queue`](crate::queue).

pub mod guards;
pub mod link;
pub mod notes;
mod outbox;

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

pub use guards::Guards;
pub use link::{Back, Conn, Link, LinkError};
pub use notes::{Note, Notes};
pub(crate) use outbox::Outbox;

/// Which instance: the UUID it keeps in its data directory, as text.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub struct ServerId(Arc<str>);

impl ServerId {
    /// Takes the text as it is.
    pub fn new(text: impl Into<Arc<str>>) -> Self {
        Self(text.into())
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<String> for ServerId {
    fn from(text: String) -> Self {
        Self::new(text)
    }
}

impl From<ServerId> for String {
    fn from(id: ServerId) -> Self {
        id.as_str().to_owned()
    }
}

impl From<&str> for ServerId {
    fn from(text: &str) -> Self {
        Self::new(text)
    }
}

impl fmt::Display for ServerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for ServerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
