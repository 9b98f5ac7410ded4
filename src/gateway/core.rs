//! The core of a shard.

use std::{net::IpAddr, sync::Arc};

use super::{AcceptRefused, CloseReason, ConnId, Effects, Listener, Message, Now, ShardId, directory::Directory};
use crate::store::Latest;

/// What a core is told at start.
#[derive(Clone, Debug)]
pub struct CoreConfig {
    /// Its shard.
    pub shard: ShardId,
}

/// The core of a shard.
#[derive(Debug)]
pub struct Core {
    config: CoreConfig,
    directory: Arc<Directory>,
}

impl Core {
    /// A core without connections.
    pub const fn new(config: CoreConfig, directory: Arc<Directory>) -> Self {
        Self { config, directory }
    }

    /// Its shard.
    pub const fn shard(&self) -> ShardId {
        self.config.shard
    }

    /// How many connections may be accepted now.
    pub fn accept_allowance(&mut self, _now: Now) -> usize {
        let _ = &self.directory;
        64
    }

    /// A connection was accepted.
    pub fn accept(&mut self, _now: Now, _peer: IpAddr, _listener: Listener) -> Result<ConnId, AcceptRefused> {
        Err(AcceptRefused::Connections)
    }

    /// Accepting failed; `exhausted`: for want of descriptors or memory.
    pub fn accept_failed(&mut self, _now: Now, _exhausted: bool) {}

    /// Bytes came on a connection.
    pub fn receive(&mut self, _now: Now, _conn: ConnId, _bytes: &[u8], _effects: &mut Effects) {}

    /// A connection ended; the engine has closed it or closes it now.
    pub fn closed(&mut self, _now: Now, _conn: ConnId, _reason: CloseReason, _effects: &mut Effects) {}

    /// A peer has bytes to drain.
    pub fn write_blocked(&mut self, _now: Now, _conn: ConnId) {}

    /// The peer drained them.
    pub fn write_drained(&mut self, _conn: ConnId) {}

    /// A message came.
    pub fn message(&mut self, _now: Now, _message: Message, _effects: &mut Effects) {}

    /// Handles deadlines that have passed.
    pub fn timeout(&mut self, _now: Now, _effects: &mut Effects) {}

    /// The next deadline, monotonic ms.
    pub fn poll_timeout(&self) -> Option<u64> {
        None
    }

    /// Whether a message for another shard arrived.
    pub fn told(&mut self, _arrived: bool) {}

    /// Latest values the store had no room for: kept for the next flush.
    pub fn latest_refused(&mut self, _rows: &mut Vec<Latest>) {}

    /// Whether nothing is under way: after a drain, the shard may end.
    pub fn is_idle(&self) -> bool {
        true
    }
}
