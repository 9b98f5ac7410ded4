//! The words of the domain: devices, ports, orders, commands, settlements, events.
//!
//! Plain values shared by the core, the store, the API and the webhooks. No I/O and no clock; all times are Unix
//! milliseconds UTC, money is integer cents, energy integer watt-hours.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize, Serializer};

use crate::protocol::{ap3000::PhyId, bkv::GatewayId};

mod call;
mod card;
mod fleet;
mod order_no;
mod ota;
mod ports;
mod server_id;

pub use call::{Ap3000Call, Completion, DeviceCall, GatewayCall, ModifiedLimit, NetworkSocket, ParamGroup, SubDevice};
pub use card::{Card, CardNo, CardStart, CardState, CardTransaction, OrderCard, TransactionKind};
pub use fleet::{DeviceDetails, HostValues, SubDeviceKind};
pub use order_no::{OrderNo, OrderNumbers};
pub use ota::{Firmware, FtpSource, OtaMethod, OtaState, OtaTask, progress as ota_progress};
pub use ports::{PortAddress, PortStatus, port_of_socket, socket_of_port};
pub use server_id::ServerId;

/// A device as third parties name it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DeviceId {
    /// Four wire-order bytes, shown as 8 lower-case hex digits, as in the QR code.
    Ap3000(PhyId),
    /// The gateway's 14 digits.
    Gateway(GatewayId),
}

impl fmt::Display for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ap3000(id) => id.fmt(f),
            Self::Gateway(id) => id.fmt(f),
        }
    }
}

impl fmt::Debug for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for DeviceId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A text that is neither 8 nor 14 hex digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a device id is 8 hex digits (AP3000) or 14 digits (BKV/GN)")]
pub struct BadDeviceId;

impl FromStr for DeviceId {
    type Err = BadDeviceId;

    fn from_str(text: &str) -> Result<Self, BadDeviceId> {
        // Ids are stored and indexed as text, so the upper-case spelling must not name a second device.
        if text.bytes().any(|byte| byte.is_ascii_uppercase()) {
            return Err(BadDeviceId);
        }
        match text.len() {
            8 => text.parse().map(Self::Ap3000).map_err(|_| BadDeviceId),
            14 => text.parse().map(Self::Gateway).map_err(|_| BadDeviceId),
            _ => Err(BadDeviceId),
        }
    }
}

/// Which protocol a device speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// AP3000 / DNY.
    Ap3000,
    /// Networked-socket gateway, vendor guide V1.7.
    Bkv,
    /// The same frame, operated as a networked gateway.
    Gn,
}

impl Protocol {
    /// All, in the order of their metric labels.
    pub const ALL: [Self; 3] = [Self::Ap3000, Self::Bkv, Self::Gn];

    /// The word used in the API, the store and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ap3000 => "ap3000",
            Self::Bkv => "bkv",
            Self::Gn => "gn",
        }
    }

    /// Reads the word back.
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|protocol| protocol.as_str() == word)
    }
}

/// Where an order stands. The numbers are an interface: they are stored and sent to third parties.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum OrderStatus {
    /// Created, the device has not confirmed.
    Pending = 0,
    /// The device acknowledged the start.
    Confirmed = 1,
    /// Charging evidence was seen.
    Charging = 2,
    /// The device ended it.
    Completed = 3,
    /// Cancelled by the third party before it charged.
    Cancelled = 4,
    /// Stopped by the third party.
    Stopped = 5,
    /// Failed: refused, faulted, or the device went away.
    Failed = 6,
    /// No confirmation in time.
    Timeout = 7,
    /// Cancel under way.
    Cancelling = 8,
    /// Stop under way.
    Stopping = 9,
    /// The device went offline while charging.
    Interrupted = 10,
}

impl OrderStatus {
    /// All statuses in numeric order.
    pub const ALL: [Self; 11] = [
        Self::Pending,
        Self::Confirmed,
        Self::Charging,
        Self::Completed,
        Self::Cancelled,
        Self::Stopped,
        Self::Failed,
        Self::Timeout,
        Self::Cancelling,
        Self::Stopping,
        Self::Interrupted,
    ];

    /// The number stored and sent.
    pub const fn code(self) -> u8 {
        self as u8
    }

    /// The status of a stored number.
    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.get(usize::from(code)).copied()
    }

    /// The word sent as `status_text`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Confirmed => "confirmed",
            Self::Charging => "charging",
            Self::Completed => "completed",
            Self::Cancelled => "cancelled",
            Self::Stopped => "stopped",
            Self::Failed => "failed",
            Self::Timeout => "timeout",
            Self::Cancelling => "cancelling",
            Self::Stopping => "stopping",
            Self::Interrupted => "interrupted",
        }
    }

    /// Whether no event but a settlement can still matter.
    pub const fn is_final(self) -> bool {
        matches!(self, Self::Completed | Self::Cancelled | Self::Stopped | Self::Failed | Self::Timeout)
    }

    /// Whether the order holds its port.
    pub const fn is_active(self) -> bool {
        !self.is_final()
    }
}

/// What a third party orders. Protocol limits are checked by [`crate::gateway::charge`] before an order exists.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChargeSpec {
    /// Quantity that ends the charge.
    pub mode: ChargeMode,
    /// Amount paid by the end user, cents; announced to devices that show it.
    pub paid_cent: Option<u32>,
    /// Also stop when the battery is full, although a time or energy is set.
    pub stop_when_full: bool,
}

/// Quantity that ends a charge.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ChargeMode {
    /// Until the battery is full (AP3000).
    Full,
    /// Minutes: AP3000 1–1092, BKV/GN 1–900.
    Time {
        /// Ordered minutes.
        minutes: u16,
    },
    /// Watt-hours: AP3000 in steps of 10 up to 655,350; BKV/GN 1–65,535.
    Energy {
        /// Ordered energy, Wh.
        wh: u32,
    },
    /// Power tiers (BKV/GN): what `paid_cent` buys depends on the power drawn.
    Power {
        /// One to five tiers, by rising power.
        tiers: Vec<PowerTier>,
    },
    /// Electricity plus service fee by time of day (BKV/GN).
    ServiceFee {
        /// Periods of the day, the last ends at 23:59.
        periods: Vec<FeePeriod>,
        /// Whether the service fee is charged by energy; else by time.
        by_energy: bool,
    },
}

impl ChargeMode {
    /// The word of the API's `mode`.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Time { .. } => "time",
            Self::Energy { .. } => "energy",
            Self::Power { .. } => "power",
            Self::ServiceFee { .. } => "service_fee",
        }
    }

    /// Ordered minutes, where the mode has a duration.
    pub const fn minutes(&self) -> Option<u16> {
        if let Self::Time { minutes } = self { Some(*minutes) } else { None }
    }

    /// Ordered energy in Wh, where the mode has one.
    pub const fn energy_wh(&self) -> Option<u32> {
        if let Self::Energy { wh } = self { Some(*wh) } else { None }
    }
}

/// `price_cent` buys `minutes` while the power is at most `power_dw` (integration guide V1.7, sub-command 17).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PowerTier {
    /// Upper limit, 0.1 W.
    pub power_dw: u16,
    /// Cents.
    pub price_cent: u16,
    /// Minutes.
    pub minutes: u16,
}

/// A period of the day and its prices (integration guide V1.7, tag 83).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FeePeriod {
    /// Hour of the period's end, 0–23.
    pub end_hour: u8,
    /// Minute of the period's end, 0–59.
    pub end_minute: u8,
    /// Electricity, 0.01 yuan per kWh.
    pub electricity_cent: u16,
    /// Service fee, 0.01 yuan.
    pub service_cent: u16,
}

/// Where an order came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A REST call.
    Api,
    /// Somebody at the device: a swiped card, or the device's own record of an offline card or code.
    Device,
}

impl Origin {
    /// The word in the store.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Api => "api",
            Self::Device => "device",
        }
    }
}

/// An order row, whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Order {
    /// 16 ASCII characters.
    pub order_no: OrderNo,
    /// The device.
    pub device_id: DeviceId,
    /// From 1.
    pub port_no: u16,
    /// Where it stands.
    pub status: OrderStatus,
    /// What was ordered; for the device's own records, [`ChargeMode::Full`].
    pub spec: ChargeSpec,
    /// Who made it.
    pub origin: Origin,
    /// The 16 bytes of the device's own record.
    pub device_ref: Option<Vec<u8>>,
    /// Number the BKV/GN device gave this order.
    pub business_no: Option<u16>,
    /// When charging evidence first came, or the settlement's end minus its duration.
    pub start_time: Option<i64>,
    /// When the order became final.
    pub end_time: Option<i64>,
    /// Settled duration, seconds; before that the latest progress.
    pub duration_seconds: Option<u32>,
    /// Settled energy, Wh; before that the latest progress.
    pub energy_wh: Option<u32>,
    /// Amount reported by the device, cents.
    pub amount_cent: Option<u32>,
    /// Reason text of the settlement.
    pub end_reason: Option<String>,
    /// Reason code as the device sent it.
    pub end_reason_raw: Option<u8>,
    /// Why the order failed, timed out or was cancelled.
    pub failure_reason: Option<String>,
    /// When the start was first written to the device's socket.
    pub start_written_at: Option<i64>,
    /// Whether the device acknowledged a stop for this order.
    pub stop_acked: bool,
    /// When totals were stored; `None` while unsettled.
    pub settled_at: Option<i64>,
    /// How a BKV settlement found its order: `exact`, `recent`, `inferred`.
    pub settlement_match: Option<String>,
    /// Final, but the device still shows charging: the port takes no orders.
    pub device_end_pending: bool,
    /// Counter of this order's events.
    pub sequence_no: u32,
    /// Request that created it.
    pub request_id: Option<String>,
    /// The card that pays; `None`: no card.
    pub card: Option<Box<OrderCard>>,
    /// Creation.
    pub created_at: i64,
    /// When `status` last changed.
    pub status_at: i64,
    /// Last change of any field.
    pub updated_at: i64,
}

impl Order {
    /// A new order of the API as it is before its start, for the caller to fill in.
    pub const fn pending(order_no: OrderNo, device_id: DeviceId, port_no: u16, at: i64) -> Self {
        Self {
            order_no,
            device_id,
            port_no,
            status: OrderStatus::Pending,
            spec: ChargeSpec { mode: ChargeMode::Full, paid_cent: None, stop_when_full: false },
            origin: Origin::Api,
            device_ref: None,
            business_no: None,
            start_time: None,
            end_time: None,
            duration_seconds: None,
            energy_wh: None,
            amount_cent: None,
            end_reason: None,
            end_reason_raw: None,
            failure_reason: None,
            start_written_at: None,
            stop_acked: false,
            settled_at: None,
            settlement_match: None,
            device_end_pending: false,
            sequence_no: 1,
            request_id: None,
            card: None,
            created_at: at,
            status_at: at,
            updated_at: at,
        }
    }
}

/// A command for a device, as claimed: the row it came from decides, this is its copy in memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Command {
    /// Row of `outbound_queue`.
    pub id: i64,
    /// The device.
    pub device_id: DeviceId,
    /// The order it serves.
    pub order_no: Option<OrderNo>,
    /// What to send.
    pub body: CommandBody,
    /// Order of sending.
    pub priority: Priority,
    /// Message id (AP3000, low 16 bits) or sequence (BKV/GN); kept over resends.
    pub msg_id: u32,
    /// Session epoch of the claim.
    pub epoch: i64,
    /// Not to be written after this wall time (store's clock).
    pub not_after: i64,
    /// An earlier claim of this row ended without word whether it was written.
    pub maybe_written: bool,
    /// How often it may be tried, a minute apart, while `not_after` allows.
    pub attempts_max: u8,
}

/// What a command asks of the device. Stored as JSON in the row; the shard encodes it for the device's protocol.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "snake_case")]
pub enum CommandBody {
    /// Start a charge.
    Start {
        /// From 1.
        port_no: u16,
        /// What was ordered.
        spec: ChargeSpec,
        /// A card pays for it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        card: Option<CardStart>,
    },
    /// Stop the order's charge.
    Stop {
        /// From 1.
        port_no: u16,
    },
    /// Ask for the port's state.
    Query {
        /// From 1.
        port_no: u16,
    },
    /// A named command of the device's protocol.
    Call {
        /// Which.
        call: DeviceCall,
    },
}

impl CommandBody {
    /// The word in `outbound_queue.kind` and in logs.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Start { .. } => "start",
            Self::Stop { .. } => "stop",
            Self::Query { .. } => "query",
            Self::Call { call } => call.as_str(),
        }
    }

    /// The port it is for; 0: the device as a whole.
    pub const fn port_no(&self) -> u16 {
        match self {
            Self::Start { port_no, .. } | Self::Stop { port_no } | Self::Query { port_no } => *port_no,
            Self::Call { call } => match call.port_no() {
                Some(port_no) => port_no,
                None => 0,
            },
        }
    }
}

/// Lowest number first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Priority {
    /// The gateway's own safety commands.
    Emergency = 0,
    /// Stop and cancel.
    High = 1,
    /// Start.
    Normal = 2,
    /// Queries and parameters.
    Low = 5,
    /// Statistics and firmware.
    Idle = 9,
}

impl Priority {
    /// All, in order.
    pub const ALL: [Self; 5] = [Self::Emergency, Self::High, Self::Normal, Self::Low, Self::Idle];

    /// The number stored.
    pub const fn code(self) -> u8 {
        self as u8
    }

    /// The priority of a stored number.
    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|priority| priority.code() == code)
    }
}

/// Row states of `outbound_queue`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CommandState {
    /// Accepted, not claimed.
    Queued,
    /// Claimed by an instance for an epoch.
    Claimed,
    /// On the socket.
    Written,
    /// The device answered ok.
    Acked,
    /// The device answered no.
    Refused,
    /// Its `not_after` passed, or the order moved on, before it was written.
    Expired,
    /// Taken back before it was written.
    Withdrawn,
    /// Written, all attempts used, never answered.
    Dead,
}

impl CommandState {
    /// All states.
    pub const ALL: [Self; 8] = [
        Self::Queued,
        Self::Claimed,
        Self::Written,
        Self::Acked,
        Self::Refused,
        Self::Expired,
        Self::Withdrawn,
        Self::Dead,
    ];

    /// The word in the store.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Claimed => "claimed",
            Self::Written => "written",
            Self::Acked => "acked",
            Self::Refused => "refused",
            Self::Expired => "expired",
            Self::Withdrawn => "withdrawn",
            Self::Dead => "dead",
        }
    }

    /// Reads the word in the store.
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == word)
    }
}

/// Event types sent to third parties.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "each variant is its wire word")]
pub enum EventType {
    DeviceRegistered,
    DeviceOnline,
    DeviceOffline,
    DeviceAlarm,
    DeviceHeartbeat,
    PortStatusChanged,
    OrderCreated,
    OrderConfirmed,
    OrderTimeout,
    OrderCancelling,
    OrderCancelled,
    OrderStopping,
    OrderStopped,
    OrderCompleted,
    OrderFailed,
    OrderInterrupted,
    OrderResumed,
    OrderSettled,
    ChargingStarted,
    ChargingProgress,
    ChargingEnded,
    CommandDead,
    CardSwiped,
    CardTransaction,
    OtaProgress,
}

impl EventType {
    /// All types.
    pub const ALL: [Self; 25] = [
        Self::DeviceRegistered,
        Self::DeviceOnline,
        Self::DeviceOffline,
        Self::DeviceAlarm,
        Self::DeviceHeartbeat,
        Self::PortStatusChanged,
        Self::OrderCreated,
        Self::OrderConfirmed,
        Self::OrderTimeout,
        Self::OrderCancelling,
        Self::OrderCancelled,
        Self::OrderStopping,
        Self::OrderStopped,
        Self::OrderCompleted,
        Self::OrderFailed,
        Self::OrderInterrupted,
        Self::OrderResumed,
        Self::OrderSettled,
        Self::ChargingStarted,
        Self::ChargingProgress,
        Self::ChargingEnded,
        Self::CommandDead,
        Self::CardSwiped,
        Self::CardTransaction,
        Self::OtaProgress,
    ];

    /// The word in `event_type`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::DeviceRegistered => "device.registered",
            Self::DeviceOnline => "device.online",
            Self::DeviceOffline => "device.offline",
            Self::DeviceAlarm => "device.alarm",
            Self::DeviceHeartbeat => "device.heartbeat",
            Self::PortStatusChanged => "port.status_changed",
            Self::OrderCreated => "order.created",
            Self::OrderConfirmed => "order.confirmed",
            Self::OrderTimeout => "order.timeout",
            Self::OrderCancelling => "order.cancelling",
            Self::OrderCancelled => "order.cancelled",
            Self::OrderStopping => "order.stopping",
            Self::OrderStopped => "order.stopped",
            Self::OrderCompleted => "order.completed",
            Self::OrderFailed => "order.failed",
            Self::OrderInterrupted => "order.interrupted",
            Self::OrderResumed => "order.resumed",
            Self::OrderSettled => "order.settled",
            Self::ChargingStarted => "charging.started",
            Self::ChargingProgress => "charging.progress",
            Self::ChargingEnded => "charging.ended",
            Self::CommandDead => "command.dead",
            Self::CardSwiped => "card.swiped",
            Self::CardTransaction => "card.transaction",
            Self::OtaProgress => "ota.progress",
        }
    }
}
