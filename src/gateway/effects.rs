//! What goes into the core and what comes out of it.

use std::{collections::VecDeque, ops::Range, sync::Arc};

use super::{
    ShardId,
    inquiry::{Answer, Inquiry, Reply},
};
use crate::{
    model::{CardNo, Command, DeviceId, Order, OtaTask, Protocol},
    protocol::ap3000::update::Verification,
    store::{CardVerdict, CommandLogRow, Job, Latest, NetworkTold, Outcome, SettingsOutcome},
};

/// A connection: a slot of the shard and its generation. A late effect for a closed connection misses its successor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ConnId {
    /// Index, reused; engines keep sockets under it.
    pub slot: u32,
    /// Raised at each reuse.
    pub generation: u32,
}

/// Which listener a connection came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Listener {
    /// `device.listen`.
    Devices,
    /// `device.listen_gn`: BKV-family devices on it are GN.
    Gn,
}

/// Why a connection ended; the labels of `chargegate_tcp_closed_total`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CloseReason {
    /// The peer closed.
    Peer,
    /// Reading or writing failed.
    Io,
    /// No byte for the protocol's silence limit.
    Idle,
    /// No protocol recognised within the deadline.
    DetectTimeout,
    /// The first bytes start no known protocol.
    UnknownProtocol,
    /// Too large a share of the bytes was garbage.
    Garbage,
    /// The peer did not drain its replies in time.
    WriteStalled,
    /// More replies waited than allowed.
    WriteOverflow,
    /// A newer connection carries the device.
    Replaced,
    /// Its device is not in `devices` and admission is `known`.
    NotAdmitted,
    /// Over the limit of all connections: closed right after accept.
    LimitTotal,
    /// Over the limit of its address: closed right after accept.
    LimitPerIp,
    /// The gateway is draining or stopping.
    Drain,
    /// An operator asked for it.
    Admin,
}

impl CloseReason {
    /// All reasons, in the order of their metric labels.
    pub const ALL: [Self; 14] = [
        Self::Peer,
        Self::Io,
        Self::Idle,
        Self::DetectTimeout,
        Self::UnknownProtocol,
        Self::Garbage,
        Self::WriteStalled,
        Self::WriteOverflow,
        Self::Replaced,
        Self::NotAdmitted,
        Self::LimitTotal,
        Self::LimitPerIp,
        Self::Drain,
        Self::Admin,
    ];

    /// The label.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Peer => "peer",
            Self::Io => "io",
            Self::Idle => "idle",
            Self::DetectTimeout => "detect_timeout",
            Self::UnknownProtocol => "unknown_protocol",
            Self::Garbage => "garbage",
            Self::WriteStalled => "write_stalled",
            Self::WriteOverflow => "write_overflow",
            Self::Replaced => "replaced",
            Self::NotAdmitted => "not_admitted",
            Self::LimitTotal => "limit_total",
            Self::LimitPerIp => "limit_per_ip",
            Self::Drain => "drain",
            Self::Admin => "admin",
        }
    }
}

/// Why a connection was closed right after accept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AcceptRefused {
    /// `limits.max_connections` are open.
    Connections,
    /// `limits.max_connections_per_ip` are open from this address.
    ConnectionsPerIp,
}

/// How fast a shard closes its connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DrainPace {
    /// From one connection to the next, µs.
    pub gap_us: u64,
    /// How long answers are waited for once all other connections are closed, ms.
    pub patience_ms: u64,
}

impl DrainPace {
    /// All of them, now.
    pub const AT_ONCE: Self = Self { gap_us: 0, patience_ms: 0 };

    /// The pace of each of `shards` for `per_s` connections per second in all; 0 is all at once.
    pub const fn of_shard(per_s: u32, shards: usize, patience_ms: u64) -> Self {
        let gap_us = if per_s == 0 { 0 } else { 1_000_000 * shards as u64 / per_s as u64 };
        Self { gap_us, patience_ms }
    }
}

/// What other threads tell a shard. Every variant says what happens if it is dropped (mailbox full) and who tries again.
#[derive(Debug)]
pub enum Message {
    /// A job came to an end. Never dropped: the mailbox has room for every job under way.
    Outcome(Outcome),
    /// An order of one of the shard's devices was created or changed by the API or the backstop. Dropped: a start expires unwritten
    /// and the order times out by the backstop; a stop is claimed again by the safety poll.
    OrderChanged {
        /// The order, as committed.
        order: Box<Order>,
        /// Commands claimed for the shard's epoch.
        commands: Vec<Command>,
        /// Rows to drop from the device's lane.
        withdrawn: Vec<i64>,
    },
    /// Commands are queued for a device. Dropped: the safety poll says it again.
    CommandsQueued(DeviceId),
    /// Another shard bound the device. Dropped: the entry's generation fences every write all the same.
    Superseded {
        /// The device.
        device_id: DeviceId,
        /// The generation that lost it.
        generation: u64,
    },
    /// Another process bound the device under this epoch. Dropped: what the shard tells of the device is answered
    /// [`Outcome::Fenced`], which says the same.
    BoundElsewhere {
        /// The device.
        device_id: DeviceId,
        /// A binding of an older epoch is over.
        epoch: i64,
    },
    /// A third party answered what a swiped card may do. Dropped: the device is not answered, and the holder swipes again.
    CardAnswer {
        /// The device.
        device_id: DeviceId,
        /// As asked.
        ticket: u64,
        /// `None`: no answer, or none that can be understood.
        verdict: Option<CardVerdict>,
    },
    /// An operator changed what is kept of a device. Dropped: in force from the next bind.
    SettingsChanged(Box<SettingsOutcome>),
    /// The network list of a gateway changed. Dropped: in force from the next bind; a command that was taken back may be written.
    NetworkChanged(Box<NetworkTold>),
    /// Accept no more and close the connections one after another; what is under way goes on. Dropped: whoever asked is told, and
    /// asks again; again is the same.
    Drain(DrainPace),
    /// Accept again and close no more. Dropped: as above.
    Undrain,
    /// As [`Message::Drain`], and end when nothing is open or under way. Sent again until the shard has ended.
    Stop(DrainPace),
    /// A question from another thread; see there.
    Inquiry(Box<Inquiry>),
    /// An update and its image, for a device of the shard. Dropped: it is offered again.
    OtaStart(Box<OtaStart>),
    /// An update ended without its shard's doing. Dropped: the next step that is stored says so.
    OtaEnded {
        /// The device.
        device_id: DeviceId,
        /// The task.
        task_id: i64,
    },
}

/// An open update, with what it needs.
#[derive(Debug)]
pub struct OtaStart {
    /// As stored.
    pub task: OtaTask,
    /// The image, where the gateway sends one.
    pub image: Option<Arc<[u8]>>,
    /// What its verification packet says, where it has one.
    pub verification: Option<Verification>,
}

/// A question to a third party: what may this card do? Dropped: the card is refused.
#[derive(Clone, Debug)]
pub struct CardAsk {
    /// Who asks.
    pub shard: ShardId,
    /// Comes back with the answer.
    pub ticket: u64,
    /// The device.
    pub device_id: DeviceId,
    /// Its protocol.
    pub protocol: Protocol,
    /// The card.
    pub card_no: CardNo,
    /// From 1; `None`: only the balance is asked for.
    pub port_no: Option<u16>,
    /// The device's number for the order to come (BKV/GN).
    pub business_no: Option<u16>,
    /// When it was swiped, Unix ms.
    pub at: i64,
}

/// What an input made necessary. One per shard, reused: in the steady state nothing in it allocates.
#[derive(Debug, Default)]
pub struct Effects {
    /// Bytes of all `writes`, one after the other.
    pub tx: Vec<u8>,
    /// Bytes for a connection, in order.
    pub writes: Vec<(ConnId, Range<usize>)>,
    /// Connections to close, after the writes.
    pub closes: Vec<ConnId>,
    /// Durable changes, in order. Bounded by [`crate::shard::JOBS_MAX`] under way.
    pub jobs: VecDeque<Job>,
    /// Command-log rows.
    pub log: Vec<CommandLogRow>,
    /// Latest values.
    pub latest: Vec<Latest>,
    /// Questions to the third party that keeps the cards.
    pub asks: Vec<CardAsk>,
    /// Messages for other shards.
    pub tells: Vec<(ShardId, Message)>,
    /// Answers to other threads.
    pub answers: Vec<(Reply, Answer)>,
}

impl Effects {
    /// Whether sockets are concerned.
    pub const fn has_io(&self) -> bool {
        !self.writes.is_empty() || !self.closes.is_empty()
    }

    /// Appends what `encode` writes to the bytes for `conn`; neighbouring writes to one connection become one.
    pub(super) fn write(&mut self, conn: ConnId, encode: impl FnOnce(&mut Vec<u8>)) {
        let start = self.tx.len();
        encode(&mut self.tx);
        let end = self.tx.len();
        // What cannot be said in the device's protocol is not sent, and is no write.
        if end == start {
            return;
        }
        match self.writes.last_mut() {
            Some((last, range)) if *last == conn && range.end == start => range.end = end,
            _ => self.writes.push((conn, start..end)),
        }
    }
}
