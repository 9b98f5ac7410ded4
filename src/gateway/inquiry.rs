//! What other threads may ask a shard, and what it answers. A shard answers at once, from memory, and with bounded work: what
//! needs more is asked for a page at a time.

use std::{fmt, net::IpAddr, sync::Arc};

use super::{
    ConnId, Listener,
    anomaly::Anomaly,
    recorder::{Ended, Recorded},
};
use crate::model::{DeviceId, Protocol};

/// Frames of an answer.
pub const RECALLED_MAX: usize = 128;
/// Connections looked at for one answer.
pub const CONNECTIONS_SEEN_MAX: u32 = 1024;

/// A question and the way back. Dropped (mailbox full): whoever asks is told at once; a shard that does not answer is waited for
/// by them, not here.
#[derive(Debug)]
pub struct Inquiry {
    /// What is asked.
    pub question: Question,
    /// Where the answer goes.
    pub reply: Reply,
}

/// The way back. It must not block.
pub struct Reply(Box<dyn FnOnce(Answer) + Send>);

impl Reply {
    /// Calls `take` on the shard's thread.
    pub fn new(take: impl FnOnce(Answer) + Send + 'static) -> Self {
        Self(Box::new(take))
    }

    /// Answers.
    pub fn send(self, answer: Answer) {
        (self.0)(answer);
    }
}

impl fmt::Debug for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Reply")
    }
}

/// What is asked.
#[derive(Clone, Debug)]
pub enum Question {
    /// The last frames of a device, over the connections it had here.
    RecallDevice(DeviceId),
    /// The last frames of a connection, open or ended.
    RecallConnection(ConnId),
    /// Connections in the order of their slots.
    Connections {
        /// Which.
        filter: ConnectionFilter,
        /// The first slot that is looked at.
        from: u32,
        /// Matching ones that are counted only.
        skip: u64,
        /// How many of those behind them are told.
        limit: usize,
    },
    /// What went wrong, the newest first.
    Anomalies,
    /// Closes the connection of a device.
    Disconnect(DeviceId),
}

/// What a shard answers.
#[derive(Debug)]
pub enum Answer {
    /// To a recall.
    Recalled(Recalled),
    /// To [`Question::Connections`].
    Connections(ConnectionPage),
    /// To [`Question::Anomalies`].
    Anomalies(Vec<Arc<Anomaly>>),
    /// To [`Question::Disconnect`]. `None`: the device has no connection here.
    Disconnected(Option<Disconnected>),
}

/// Frames that are left.
#[derive(Debug, Default)]
pub struct Recalled {
    /// Whether the connection, or one of the device, is open.
    pub open: bool,
    /// Oldest first, [`RECALLED_MAX`] at most.
    pub frames: Vec<Recorded>,
    /// The connections that ended, the last one first.
    pub ended: Vec<Ended>,
}

/// Which connections; `None`: any.
#[derive(Clone, Copy, Debug, Default)]
pub struct ConnectionFilter {
    /// That carry this device.
    pub device_id: Option<DeviceId>,
    /// That came in on this listener.
    pub listener: Option<Listener>,
    /// That speak this.
    pub protocol: Option<Protocol>,
}

/// Some of the connections.
#[derive(Debug, Default)]
pub struct ConnectionPage {
    /// Those asked for.
    pub connections: Vec<ConnectionInfo>,
    /// All that matched, skipped ones included.
    pub matched: u64,
    /// Where to look on; `None`: there are no more.
    pub next: Option<u32>,
}

/// A connection as operators see it.
#[derive(Clone, Debug)]
pub struct ConnectionInfo {
    /// Which.
    pub conn: ConnId,
    /// Its peer.
    pub peer: IpAddr,
    /// Where it came in.
    pub listener: Listener,
    /// What it speaks; `None`: not known yet.
    pub protocol: Option<Protocol>,
    /// The devices it carries.
    pub devices: Vec<DeviceId>,
    /// Unix ms.
    pub connected_at: i64,
    /// Unix ms of the last byte.
    pub last_seen_at: i64,
    /// Bytes received.
    pub bytes_in: u64,
    /// Bytes written.
    pub bytes_out: u64,
    /// Of those received, bytes that were no frame.
    pub garbage_bytes: u64,
    /// The peer does not drain what is written to it.
    pub blocked: bool,
}

/// A connection that was closed because somebody asked for it.
#[derive(Clone, Debug)]
pub struct Disconnected {
    /// Which.
    pub conn: ConnId,
    /// The devices it carried.
    pub devices: Vec<DeviceId>,
}
