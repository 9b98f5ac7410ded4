//! What is kept of how an order came about: who asked, what was queued, what went over the wire, what was settled and delivered.
//!
//! Rows as they are stored, nothing joined: which frame belongs to which order is for whoever knows the protocols.

use super::{CommandRecord, DeliveryLogRow, EventRecord};
use crate::model::{DeviceId, OrderNo, ServerId};

/// What a request wanted of an order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OrderWish {
    /// To be made and started.
    Create,
    /// To be stopped.
    Stop,
    /// To be cancelled.
    Cancel,
}

impl OrderWish {
    /// The word in the table and in answers.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Stop => "stop",
            Self::Cancel => "cancel",
        }
    }

    /// The wish of a word.
    pub fn from_word(word: &str) -> Option<Self> {
        [Self::Create, Self::Stop, Self::Cancel].into_iter().find(|wish| wish.as_str() == word)
    }
}

/// A request that an order accepted. A repetition that was answered from its idempotency key is none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestRecord {
    /// What it wanted.
    pub wish: OrderWish,
    /// As in its answer.
    pub request_id: String,
    /// Name of the API key.
    pub api_key: Option<String>,
    /// What it came with.
    pub idempotency_key: Option<String>,
    /// Where it came from.
    pub client_ip: Option<String>,
    /// The instance that committed it.
    pub instance: Option<ServerId>,
    /// Unix ms.
    pub at: i64,
}

/// A command of an order, with what its frames are known by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OrderCommand {
    /// As third parties read it.
    pub record: CommandRecord,
    /// Message id or sequence of all its frames. AP3000 frames carry the lower 16 bits.
    pub msg_id: u32,
    /// Epoch of its last claim; `None`: it was never claimed.
    pub epoch: Option<i64>,
    /// A claim ended without word of whether it had been written.
    pub maybe_written: bool,
}

/// Which frames of a device are wanted.
#[derive(Clone, Debug)]
pub struct FrameFilter {
    /// The device.
    pub device_id: DeviceId,
    /// Unix ms, both included.
    pub between: (i64, i64),
    /// Command codes; at least one.
    pub commands: Vec<u16>,
    /// Message ids as logged; `None`: any.
    pub msg_ids: Option<Vec<u32>>,
    /// Frames at most; one more than wanted tells that there are more.
    pub limit: u32,
}

/// All that is kept of how an order came about, but for its frames; each list oldest first.
#[derive(Clone, Debug, Default)]
pub struct OrderHistory {
    /// At most [`OrderHistory::ROWS_MAX`].
    pub requests: Vec<RequestRecord>,
    /// At most [`OrderHistory::ROWS_MAX`].
    pub commands: Vec<OrderCommand>,
    /// What settled the order, and behind it what was reported for its port and settled none.
    pub settlements: Vec<SettlementRecord>,
    /// In their sequence.
    pub events: Vec<EventRecord>,
    /// Of these events, at most [`OrderHistory::ROWS_MAX`].
    pub deliveries: Vec<DeliveryLogRow>,
    /// Endpoints that these events wait for or were given up for, at most [`OrderHistory::ROWS_MAX`].
    pub waiting: Vec<WaitingDelivery>,
}

impl OrderHistory {
    /// Rows of most lists.
    pub const ROWS_MAX: usize = 500;
}

/// A frame of the command log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FrameRecord {
    /// Its place in the log.
    pub id: i64,
    /// Unix ms of its receipt, or of its hand-over to the socket.
    pub at: i64,
    /// From the device.
    pub up: bool,
    /// Command code.
    pub command: u16,
    /// Message id or sequence, as in the frame; of commands of the gateway as counted, before it is cut to the frame's field.
    pub msg_id: u32,
    /// The frame, whole.
    pub raw: Vec<u8>,
    /// Epoch of the binding under which it came or went.
    pub epoch: Option<i64>,
    /// The instance that had the connection.
    pub instance: Option<ServerId>,
}

/// A settlement as stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SettlementRecord {
    /// Its id.
    pub id: i64,
    /// The order it settled; `None`: no order was found for it.
    pub order_no: Option<OrderNo>,
    /// From 1.
    pub port_no: u16,
    /// The device's number of the charge (BKV/GN).
    pub business_no: Option<u16>,
    /// Seconds.
    pub duration_seconds: u32,
    /// Wh.
    pub energy_wh: u32,
    /// Cents, where the device says.
    pub amount_cent: Option<u32>,
    /// The frame, whole.
    pub raw: Vec<u8>,
    /// Unix ms of its receipt.
    pub at: i64,
}

/// An event that an endpoint does not have yet, or will not get.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WaitingDelivery {
    /// Endpoint name.
    pub endpoint: String,
    /// Given up.
    pub dead: bool,
    /// The event's position.
    pub pos: i64,
    /// Attempts made.
    pub attempts: u32,
    /// Earliest next attempt, Unix ms; of one that was given up, of the last.
    pub next_at: i64,
    /// What went wrong last.
    pub reason: String,
}
