//! What queries ask for and find: rows as every other part sees them, and the latest values that overwrite them.

use std::sync::Arc;

use crate::{
    gateway::params::Held,
    model::{
        CardState, CommandBody, CommandState, DeviceDetails, DeviceId, HostValues, OrderNo, OrderStatus, PortStatus,
        Priority, Protocol,
    },
};

/// A port as stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortRecord {
    /// The device.
    pub device_id: DeviceId,
    /// From 1.
    pub port_no: u16,
    /// BKV/GN.
    pub socket: Option<u8>,
    /// BKV/GN.
    pub hole: Option<u8>,
    /// Status.
    pub status: PortStatus,
    /// As the device sent it.
    pub raw_status: u8,
    /// 0.1 W.
    pub power_dw: u16,
    /// mA.
    pub current_ma: u16,
    /// 0.1 V.
    pub voltage_dv: u16,
    /// Wh of the running charge.
    pub energy_wh: u32,
    /// Seconds of the running charge.
    pub charged_seconds: u32,
    /// Unix ms of the report.
    pub updated_at: i64,
}

/// A device as stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceRecord {
    /// The device.
    pub device_id: DeviceId,
    /// Its protocol.
    pub protocol: Protocol,
    /// The decimal number under the QR code.
    pub printed_no: Option<u32>,
    /// Unix ms of the last inbound bytes.
    pub last_seen_at: Option<i64>,
    /// Unix ms of the last bind.
    pub connected_at: Option<i64>,
    /// Radio signal, raw.
    pub signal: Option<u8>,
    /// Firmware text.
    pub firmware: Option<String>,
    /// SIM.
    pub iccid: Option<String>,
    /// Epoch of the last bind.
    pub session_epoch: i64,
    /// Device type, or host type (AP3000).
    pub device_type: Option<u8>,
    /// Settings, and what it told of itself.
    pub details: DeviceDetails,
}

/// Latest values, written every few seconds.
#[derive(Clone, Debug)]
pub enum Latest {
    /// A device was heard, and told nothing new.
    Seen {
        /// The device.
        device_id: DeviceId,
        /// Unix ms.
        last_seen_at: i64,
        /// When it is offline if nothing more comes, Unix ms.
        offline_at: i64,
    },
    /// Device fields; `None` leaves the stored value.
    Device {
        /// The device.
        device_id: DeviceId,
        /// Unix ms.
        last_seen_at: i64,
        /// When it is offline if nothing more comes, Unix ms.
        offline_at: i64,
        /// Radio signal, raw.
        signal: Option<u8>,
        /// Firmware text.
        firmware: Option<String>,
        /// SIM.
        iccid: Option<String>,
        /// It showed a socket ≥ 1.
        networked: bool,
        /// Device type, or host type (AP3000).
        device_type: Option<u8>,
    },
    /// A port snapshot.
    Port(PortRecord),
    /// Progress of a running order.
    Progress {
        /// The order.
        order_no: OrderNo,
        /// Seconds so far.
        duration_seconds: u32,
        /// Wh so far.
        energy_wh: u32,
        /// Unix ms.
        at: i64,
    },
    /// What a device told of itself as a host, a cabinet or a module; `None` leaves the stored value.
    Host {
        /// The device.
        device_id: DeviceId,
        /// Of the communication module.
        imei: Option<String>,
        /// Firmware of the communication module.
        module_version: Option<String>,
        /// Host type; from a charger its device type.
        host_type: Option<u8>,
        /// Latest values.
        host: Option<Arc<HostValues>>,
    },
}

/// One command frame, either way.
#[derive(Clone, Debug)]
pub struct CommandLogRow {
    /// Unix ms.
    pub at: i64,
    /// The device.
    pub device_id: DeviceId,
    /// `up` or `down`.
    pub up: bool,
    /// Command code.
    pub command: u16,
    /// Message id or sequence.
    pub msg_id: u32,
    /// Epoch of the binding under which it came or went; `None`: the binding had none yet, or another connection has the device.
    pub epoch: Option<i64>,
    /// The frame, whole.
    pub raw: Vec<u8>,
}

/// An event as third parties read it.
#[derive(Clone, Debug, PartialEq)]
pub struct EventRecord {
    /// Position in the log, rising.
    pub pos: i64,
    /// Stable over retries.
    pub event_id: String,
    /// What happened.
    pub event_type: String,
    /// Order number or device id: deliveries of one key keep their order.
    pub key: String,
    /// The device.
    pub device_id: Option<String>,
    /// The order.
    pub order_no: Option<String>,
    /// The key's own counter; 0 for progress.
    pub sequence_no: u32,
    /// Unix ms.
    pub at: i64,
    /// JSON text of `data`.
    pub data: String,
}

/// Restricts a list of orders.
#[derive(Clone, Debug, Default)]
pub struct OrderFilter {
    /// Only this device.
    pub device_id: Option<DeviceId>,
    /// Only this port.
    pub port_no: Option<u16>,
    /// Only this status.
    pub status: Option<OrderStatus>,
    /// Only with this business number (BKV, GN).
    pub business_no: Option<u16>,
    /// Only those created at this time or later, Unix ms.
    pub created_from: Option<i64>,
    /// Only those created before this time, Unix ms.
    pub created_to: Option<i64>,
}

/// Restricts a list of devices.
#[derive(Clone, Debug, Default)]
pub struct DeviceFilter {
    /// Only this protocol.
    pub protocol: Option<Protocol>,
    /// Only this printed number.
    pub printed_no: Option<u32>,
    /// Only ids that begin with it, names that have it in them, and the printed number that it is; in any case.
    pub search: Option<String>,
    /// Only those online, or only those offline, at this time (Unix ms), by the latest values stored: seconds old.
    pub online: Option<(bool, i64)>,
    /// Only these (for `online`, which memory decides).
    pub among: Option<Vec<DeviceId>>,
    /// All but these.
    pub except: Option<Vec<DeviceId>>,
}

/// Restricts a list of cards.
#[derive(Clone, Debug, Default)]
pub struct CardFilter {
    /// Only this state.
    pub state: Option<CardState>,
}

/// One page of a list.
#[derive(Clone, Debug)]
pub struct Page<T> {
    /// Rows of the page.
    pub rows: Vec<T>,
    /// Rows in all.
    pub total: u64,
}

/// A parameter of a device as stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParamRecord {
    /// 0: the device as a whole.
    pub socket: u8,
    /// Name, desired and reported value.
    pub held: Held,
    /// Why the device does not take what is desired.
    pub refused: Option<String>,
    /// Unix ms.
    pub desired_at: Option<i64>,
    /// Unix ms.
    pub reported_at: Option<i64>,
}

/// A row of the command queue as third parties read it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommandRecord {
    /// Its id.
    pub id: i64,
    /// The device.
    pub device_id: DeviceId,
    /// The order it serves.
    pub order_no: Option<OrderNo>,
    /// What is sent.
    pub body: CommandBody,
    /// Row state.
    pub state: String,
    /// Writes so far.
    pub attempts: u8,
    /// Why it ended as it did.
    pub reason: Option<String>,
    /// What the device said, JSON text.
    pub result: Option<String>,
    /// Unix ms.
    pub created_at: i64,
    /// Unix ms of the first write.
    pub written_at: Option<i64>,
    /// Unix ms.
    pub updated_at: i64,
    /// Unix ms.
    pub not_after: i64,
    /// Request that made it.
    pub request_id: Option<String>,
}

/// A row of the command queue with what its delivery is about, for operators.
#[derive(Clone, Debug, PartialEq)]
pub struct QueueEntry {
    /// What third parties see of it.
    pub command: CommandRecord,
    /// Of those that wait, who goes first.
    pub priority: Priority,
    /// Attempts it has.
    pub attempts_max: u8,
    /// Message id or sequence on the wire.
    pub msg_id: u32,
    /// Of the last claim; `None`: never claimed, so never written.
    pub epoch: Option<i64>,
    /// An earlier binding may have written it.
    pub maybe_written: bool,
    /// Unix ms; not claimed before.
    pub not_before: i64,
}

/// Restricts a list of commands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueFilter {
    /// Only those of this device.
    pub device_id: Option<DeviceId>,
    /// Only those in this state; `None`: those that have not ended.
    pub state: Option<CommandState>,
}

/// Commands that have not ended, by state, over all instances.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueCounts {
    /// Nobody has them.
    pub queued: u64,
    /// An instance has them and has not written them.
    pub claimed: u64,
    /// On the socket, without an answer yet.
    pub written: u64,
}
