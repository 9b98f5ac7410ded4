//! Objects as third parties read them, built the same for events and for the API.

use serde::{Serialize, Serializer};
use utoipa::ToSchema;

use super::{CommandRecord, ParamRecord, PortRecord, SettingsOutcome};
use crate::api::envelope;
use crate::gateway::network::{NetworkList, Refresh};
use crate::model::{
    Card, CardNo, CardState, CardTransaction, ChargeMode, CommandState, DeviceId, Firmware, Order, OrderCard, OrderNo,
    OrderStatus, OtaMethod, OtaState, OtaTask, PortStatus, Protocol, TransactionKind, port_of_socket,
};
use crate::protocol::Hex;
use crate::time::Rfc3339;

mod managed;

pub use managed::{EndpointObject, KeyObject, Origin, ShownEndpoint, ShownKey, endpoint_answer, key_answer};

/// HTTP status of [`accepted`].
pub const ACCEPTED: u16 = 202;

/// HTTP status of the answer to a request that made something.
pub const CREATED: u16 = 201;

/// The whole answer to a request that an order accepted. The store keeps it for the request's idempotency key in the same
/// transaction, and the API sends it: both get the same bytes, because they depend on the arguments alone.
///
/// # Errors
/// None in practice: the data are numbers and text.
pub fn accepted(order: &Order, request_id: &str, unix_ms: i64) -> serde_json::Result<Vec<u8>> {
    let data = Accepted { order_no: order.order_no, status: order.status.code(), status_text: order.status.as_str() };
    let mut body = Vec::with_capacity(256);
    envelope::write_success(&mut body, &data, request_id, unix_ms)?;
    Ok(body)
}

/// The whole answer to a request that queued a command; as [`accepted`].
///
/// # Errors
/// None in practice, as for [`accepted`].
pub fn command_accepted(command: &CommandRecord, request_id: &str, unix_ms: i64) -> serde_json::Result<Vec<u8>> {
    let mut body = Vec::with_capacity(256);
    envelope::write_success(&mut body, &CommandObject::from(command), request_id, unix_ms)?;
    Ok(body)
}

/// The whole answer to a request that changed parameters; as [`accepted`].
///
/// # Errors
/// None in practice, as for [`accepted`].
pub fn params_accepted(
    device_id: DeviceId,
    params: &[ParamRecord],
    request_id: &str,
    unix_ms: i64,
) -> serde_json::Result<Vec<u8>> {
    let mut body = Vec::with_capacity(1024);
    envelope::write_success(&mut body, &ParamsObject::new(device_id, params), request_id, unix_ms)?;
    Ok(body)
}

/// The whole answer to a request that began an update; as [`accepted`].
///
/// # Errors
/// None in practice, as for [`accepted`].
pub fn ota_accepted(task: &OtaTask, request_id: &str, unix_ms: i64) -> serde_json::Result<Vec<u8>> {
    let mut body = Vec::with_capacity(512);
    envelope::write_success(&mut body, &OtaObject::from(task), request_id, unix_ms)?;
    Ok(body)
}

/// An update of a device.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Update)]
#[expect(missing_docs, reason = "the fields are those of the task")]
pub struct OtaObject<'a> {
    pub task_id: i64,
    pub device_id: DeviceId,
    #[schema(value_type = OtaMethod)]
    pub method: &'static str,
    /// The image; `null` where the gateway sends none.
    pub firmware: Option<FirmwareObject<'a>>,
    /// BKV/GN: where the gateway fetches the file.
    #[schema(value_type = Option<String>)]
    pub ftp_host: Option<std::net::Ipv4Addr>,
    pub ftp_port: Option<u16>,
    pub file: Option<&'a str>,
    /// Whether the verification packet is appended.
    pub verification: bool,
    /// Whether it goes on although an order is active.
    pub force: bool,
    /// 0 pending, 1 sent, 2 in progress, 3 done, 4 failed.
    #[schema(maximum = 4)]
    pub state: u8,
    #[schema(value_type = OtaState)]
    pub state_text: &'static str,
    /// Percent.
    #[schema(maximum = 100)]
    pub progress: u8,
    /// Why it failed, one word.
    pub reason: Option<&'a str>,
    pub packets_total: u16,
    pub packets_acked: u16,
    pub created_at: Rfc3339,
    /// When the first frame went out.
    pub sent_at: Option<Rfc3339>,
    pub ended_at: Option<Rfc3339>,
    pub updated_at: Rfc3339,
}

impl<'a> From<&'a OtaTask> for OtaObject<'a> {
    fn from(task: &'a OtaTask) -> Self {
        let ftp = task.ftp.as_ref();
        Self {
            task_id: task.id,
            device_id: task.device_id,
            method: task.method.as_str(),
            firmware: task.firmware.as_ref().map(FirmwareObject::from),
            ftp_host: ftp.map(|ftp| ftp.host),
            ftp_port: ftp.map(|ftp| ftp.port),
            file: ftp.map(|ftp| ftp.file.as_str()),
            verification: task.verification,
            force: task.force,
            state: task.state.code(),
            state_text: task.state.as_str(),
            progress: task.progress(),
            reason: task.reason.as_deref(),
            packets_total: task.packets_total,
            packets_acked: task.packets_acked,
            created_at: Rfc3339(task.created_at),
            sent_at: task.sent_at.map(Rfc3339),
            ended_at: task.ended_at.map(Rfc3339),
            updated_at: Rfc3339(task.updated_at),
        }
    }
}

/// An image.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Firmware)]
#[expect(missing_docs, reason = "the fields are those of the image")]
pub struct FirmwareObject<'a> {
    pub firmware_id: i64,
    /// SHA-256 of the image, lower-case hex.
    #[schema(pattern = "^[0-9a-f]{64}$")]
    pub sha256: String,
    /// Bytes.
    pub size: u32,
    pub name: &'a str,
    /// `V2.05`.
    #[schema(pattern = "^V[0-9]+[.][0-9]{2}$")]
    pub version: Option<String>,
    /// The type it is for, by the vendor's tables.
    pub device_type: Option<u8>,
    pub created_at: Rfc3339,
}

impl<'a> From<&'a Firmware> for FirmwareObject<'a> {
    fn from(firmware: &'a Firmware) -> Self {
        Self {
            firmware_id: firmware.id,
            sha256: Hex(firmware.sha256).to_string(),
            size: firmware.size,
            name: &firmware.name,
            version: firmware.version.map(|version| format!("V{}.{:02}", version / 100, version % 100)),
            device_type: firmware.device_type,
            created_at: Rfc3339(firmware.created_at),
        }
    }
}

macro_rules! shown_as {
    ($($record:ty => $object:ident;)*) => { $(
        /// As third parties read it, fields in their order.
        impl Serialize for $record {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                $object::from(self).serialize(serializer)
            }
        }
    )* };
}

shown_as! {
    CommandRecord => CommandObject;
    Firmware => FirmwareObject;
    OtaTask => OtaObject;
}

/// A command of the queue.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Command)]
#[expect(missing_docs, reason = "the fields are those of the row")]
pub struct CommandObject<'a> {
    pub command_id: i64,
    pub device_id: DeviceId,
    /// Its name: one of those that can be asked for, or what orders, cards, updates and parameters need.
    pub command: &'static str,
    /// The port it is for, if it is for one.
    pub port_no: Option<u16>,
    /// The order it serves, if it serves one.
    pub order_no: Option<OrderNo>,
    #[schema(value_type = CommandState)]
    pub state: &'a str,
    /// Writes so far.
    pub attempts: u8,
    /// Why it ended as it did.
    pub reason: Option<&'a str>,
    /// The fields of the reply, by the vendor's names.
    #[schema(value_type = Value)]
    pub result: Option<serde_json::Value>,
    /// The request that made it.
    pub request_id: Option<&'a str>,
    pub created_at: Rfc3339,
    /// When it was first written.
    pub written_at: Option<Rfc3339>,
    pub updated_at: Rfc3339,
    /// It is not written after this time.
    pub not_after: Rfc3339,
}

impl<'a> From<&'a CommandRecord> for CommandObject<'a> {
    fn from(record: &'a CommandRecord) -> Self {
        Self {
            command_id: record.id,
            device_id: record.device_id,
            command: record.body.as_str(),
            port_no: Some(record.body.port_no()).filter(|port_no| *port_no > 0),
            order_no: record.order_no,
            state: &record.state,
            attempts: record.attempts,
            reason: record.reason.as_deref(),
            result: record.result.as_deref().and_then(|result| serde_json::from_str(result).ok()),
            request_id: record.request_id.as_deref(),
            created_at: Rfc3339(record.created_at),
            written_at: record.written_at.map(Rfc3339),
            updated_at: Rfc3339(record.updated_at),
            not_after: Rfc3339(record.not_after),
        }
    }
}

/// Parameters of a device.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Params)]
#[expect(missing_docs, reason = "the fields are their words")]
pub struct ParamsObject<'a> {
    pub device_id: DeviceId,
    /// Whether some desired value is not yet confirmed.
    pub pending: bool,
    pub params: Vec<ParamObject<'a>>,
}

/// A parameter: what is wanted, what the device says, and whether the two are still to meet.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Param)]
#[expect(missing_docs, reason = "the fields are their words")]
pub struct ParamObject<'a> {
    /// By the vendor's name.
    pub name: &'a str,
    /// BKV/GN: the socket; `null`: the device as a whole.
    pub socket: Option<u8>,
    /// What it shall be; `null`: nobody said.
    #[schema(value_type = Value)]
    pub desired: Option<&'a serde_json::Value>,
    /// What the device says it is; `null`: it did not say.
    #[schema(value_type = Value)]
    pub reported: Option<&'a serde_json::Value>,
    /// Whether the two are still to meet.
    pub pending: bool,
    /// Why the device does not take what is desired.
    pub refused: Option<&'a str>,
    pub desired_at: Option<Rfc3339>,
    pub reported_at: Option<Rfc3339>,
}

impl<'a> ParamsObject<'a> {
    /// All of `params`.
    pub fn new(device_id: DeviceId, params: &'a [ParamRecord]) -> Self {
        let params: Vec<_> = params
            .iter()
            .map(|param| ParamObject {
                name: &param.held.name,
                socket: matches!(device_id, DeviceId::Gateway(_)).then_some(param.socket),
                desired: param.held.desired.as_ref(),
                reported: param.held.reported.as_ref(),
                pending: param.held.is_pending(),
                refused: param.refused.as_deref(),
                desired_at: param.desired_at.map(Rfc3339),
                reported_at: param.reported_at.map(Rfc3339),
            })
            .collect();
        Self { device_id, pending: params.iter().any(|param| param.pending), params }
    }
}

/// The whole answer to a change of a network list; as [`accepted`].
///
/// # Errors
/// None in practice, as for [`accepted`].
pub fn network_accepted(
    device_id: DeviceId,
    list: &NetworkList,
    request_id: &str,
    unix_ms: i64,
) -> serde_json::Result<Vec<u8>> {
    let mut body = Vec::with_capacity(1024);
    envelope::write_success(&mut body, &NetworkObject::new(device_id, list), request_id, unix_ms)?;
    Ok(body)
}

/// The network list of a gateway.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = NetworkList)]
#[expect(missing_docs, reason = "the fields are their words")]
pub struct NetworkObject<'a> {
    pub device_id: DeviceId,
    /// Radio channel, 1 to 15; `null` before the first list.
    #[schema(minimum = 1, maximum = 15)]
    pub channel: Option<u8>,
    /// Whether the gateway acknowledged all of it.
    pub confirmed: bool,
    /// The gateway did not take the list as a whole; it is sent again when the gateway comes back.
    pub refresh_failed: bool,
    pub sockets: Vec<SocketObject<'a>>,
}

/// A socket of a network list.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Socket)]
#[expect(missing_docs, reason = "the fields are their words")]
pub struct SocketObject<'a> {
    /// 1 to 250.
    #[schema(minimum = 1, maximum = 250)]
    pub socket: u8,
    /// 6 bytes in hex.
    #[schema(pattern = "^[0-9a-f]{12}$")]
    pub mac: Option<String>,
    /// As printed on the front.
    pub uid: Option<&'a str>,
    /// `desired`: to be told to the gateway; `confirmed`: the gateway has taken it; `removing`: to be taken out.
    #[schema(pattern = "^(desired|confirmed|removing)$")]
    pub state: &'static str,
    /// Why the gateway did not take it: `device_refused`, `no_reply`.
    pub refused: Option<&'a str>,
    /// API ports of its two holes; none while it is being removed.
    pub ports: Vec<u16>,
    pub confirmed_at: Option<Rfc3339>,
    pub updated_at: Rfc3339,
}

impl<'a> NetworkObject<'a> {
    /// All of `list`.
    pub fn new(device_id: DeviceId, list: &'a NetworkList) -> Self {
        let sockets = list.sockets.iter().map(|listed| SocketObject {
            socket: listed.socket,
            mac: listed.mac.map(|mac| Hex(mac).to_string()),
            uid: listed.uid.as_deref(),
            state: listed.state.as_str(),
            refused: listed.refused.as_deref(),
            ports: if listed.is_wanted() {
                vec![port_of_socket(listed.socket, 0), port_of_socket(listed.socket, 1)]
            } else {
                Vec::new()
            },
            confirmed_at: listed.confirmed_at.map(Rfc3339),
            updated_at: Rfc3339(listed.updated_at),
        });
        Self {
            device_id,
            channel: list.channel,
            confirmed: list.is_confirmed(),
            refresh_failed: list.refresh == Refresh::Failed,
            sockets: sockets.collect(),
        }
    }
}

/// HTTP status of [`settings`].
pub const OK: u16 = 200;

/// The whole answer to settings of a device, as [`accepted`].
///
/// # Errors
/// None in practice: the data are numbers and text.
pub fn settings(outcome: &SettingsOutcome, request_id: &str, unix_ms: i64) -> serde_json::Result<Vec<u8>> {
    let SettingsOutcome { device_id, registered, protocol, details } = outcome;
    let data = SettingsObject {
        device_id: *device_id,
        protocol: *protocol,
        name: details.name.as_deref(),
        extensions: details.extensions,
        fsk_frequency: details.fsk_frequency,
        registered: *registered,
    };
    let mut body = Vec::with_capacity(256);
    envelope::write_success(&mut body, &data, request_id, unix_ms)?;
    Ok(body)
}

/// What is kept of a device now.
#[derive(Serialize, ToSchema)]
#[schema(as = DeviceSettings)]
#[expect(missing_docs, reason = "the fields are those of the device")]
pub struct SettingsObject<'a> {
    pub device_id: DeviceId,
    pub protocol: Protocol,
    pub name: Option<&'a str>,
    pub extensions: bool,
    pub fsk_frequency: Option<u16>,
    /// Whether the device was not known before.
    pub registered: bool,
}

/// Where the order stands now.
#[derive(Serialize, ToSchema)]
#[schema(as = Accepted)]
pub struct Accepted {
    order_no: OrderNo,
    #[schema(maximum = 10)]
    status: u8,
    #[schema(value_type = OrderStatus)]
    status_text: &'static str,
}

/// An order.
#[derive(Clone, Copy, Debug, Serialize, ToSchema)]
#[schema(as = Order)]
#[expect(missing_docs, reason = "the fields are those of the order")]
pub struct OrderObject<'a> {
    pub order_no: OrderNo,
    pub device_id: DeviceId,
    /// From 1.
    pub port_no: u16,
    /// 0 pending, 1 confirmed, 2 charging, 3 completed, 4 cancelled, 5 stopped, 6 failed, 7 timeout, 8 cancelling, 9 stopping, 10 interrupted.
    #[schema(maximum = 10)]
    pub status: u8,
    #[schema(value_type = OrderStatus)]
    pub status_text: &'static str,
    #[schema(value_type = ChargeMode)]
    pub mode: &'static str,
    /// Cents, as the request said.
    pub paid_cent: Option<u32>,
    /// When it began to charge.
    pub start_time: Option<Rfc3339>,
    /// When it ended.
    pub end_time: Option<Rfc3339>,
    /// Seconds charged so far, or in all.
    pub duration_seconds: Option<u32>,
    /// Wh charged so far, or in all.
    pub energy_wh: Option<u32>,
    /// Cents, as the device counted them.
    pub amount_cent: Option<u32>,
    /// Why the charge ended, one word.
    pub end_reason: Option<&'a str>,
    /// The same as the device sent it.
    pub end_reason_raw: Option<u8>,
    /// BKV/GN: the number the device knows it by.
    pub business_no: Option<u16>,
    /// Why it failed, one word.
    pub failure_reason: Option<&'a str>,
    /// The card that pays, if one does.
    #[schema(value_type = Option<CardNo>)]
    pub card_no: Option<&'a CardNo>,
    /// Cents held of the card for it.
    pub hold_cent: Option<i64>,
    /// Cents it cost by the tariff.
    pub price_cent: Option<i64>,
    /// Cents the card was charged.
    pub charged_cent: Option<i64>,
    /// Cents of the price beyond what was held.
    pub unpaid_cent: Option<i64>,
    pub request_id: Option<&'a str>,
    pub created_at: Rfc3339,
    pub updated_at: Rfc3339,
}

impl<'a> From<&'a Order> for OrderObject<'a> {
    fn from(order: &'a Order) -> Self {
        let card = order.card.as_deref();
        Self {
            order_no: order.order_no,
            device_id: order.device_id,
            port_no: order.port_no,
            status: order.status.code(),
            status_text: order.status.as_str(),
            mode: order.spec.mode.as_str(),
            paid_cent: order.spec.paid_cent,
            start_time: order.start_time.map(Rfc3339),
            end_time: order.end_time.map(Rfc3339),
            duration_seconds: order.duration_seconds,
            energy_wh: order.energy_wh,
            amount_cent: order.amount_cent,
            end_reason: order.end_reason.as_deref(),
            end_reason_raw: order.end_reason_raw,
            business_no: order.business_no,
            failure_reason: order.failure_reason.as_deref(),
            card_no: card.map(|card| &card.card_no),
            hold_cent: card.and_then(|card| card.hold_cent),
            price_cent: card.and_then(|card| card.price_cent),
            charged_cent: card.and_then(|card| card.charged_cent),
            unpaid_cent: card.and_then(OrderCard::unpaid_cent),
            request_id: order.request_id.as_deref(),
            created_at: Rfc3339(order.created_at),
            updated_at: Rfc3339(order.updated_at),
        }
    }
}

/// `data` of an order's event.
#[derive(Clone, Copy, Debug, Serialize, ToSchema)]
pub struct OrderEvent<'a> {
    /// The order after the step.
    #[serde(flatten)]
    pub order: OrderObject<'a>,
    /// Status before; `null` for `order.created`.
    #[schema(maximum = 10)]
    pub old_status: Option<u8>,
    /// Status after.
    #[schema(maximum = 10)]
    pub new_status: u8,
    /// Only `order.settled`: the order had been final for more than 60 s.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub late: Option<bool>,
}

impl<'a> OrderEvent<'a> {
    /// The order as it is after a step from `from`.
    pub fn new(order: &'a Order, from: Option<OrderStatus>, late: Option<bool>) -> Self {
        let new_status = order.status.code();
        Self { order: order.into(), old_status: from.map(OrderStatus::code), new_status, late }
    }
}

/// `data` of `device.alarm` as the store raises it.
#[derive(Clone, Copy, Debug, Serialize, ToSchema)]
pub struct Alarm<'a> {
    /// The device.
    pub device_id: DeviceId,
    /// From 1.
    pub port_no: u16,
    /// The order it is about.
    pub order_no: Option<OrderNo>,
    /// What happened, one word.
    pub reason: &'static str,
    /// More of it, e.g. an error text.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub detail: Option<&'a str>,
}

/// A port.
#[derive(Clone, Copy, Debug, Serialize, ToSchema)]
#[schema(as = Port)]
#[expect(missing_docs, reason = "the fields are those of the port")]
pub struct PortObject {
    /// From 1.
    pub port_no: u16,
    /// BKV/GN: the socket.
    pub socket: Option<u8>,
    /// BKV/GN: the hole of the socket, 0 or 1.
    pub hole: Option<u8>,
    /// 0 idle, 1 charging, 2 occupied, 3 fault, 4 finished, 5 unknown.
    #[schema(maximum = 5)]
    pub status: u8,
    #[schema(value_type = PortStatus)]
    pub status_text: &'static str,
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
    /// The order that holds it.
    pub order_no: Option<OrderNo>,
    /// When it was reported last; `null` before the first report.
    pub updated_at: Option<Rfc3339>,
}

impl PortObject {
    /// A port and the order that holds it. `updated_at` is null before the first report.
    pub fn new(port: &PortRecord, order_no: Option<OrderNo>) -> Self {
        Self {
            port_no: port.port_no,
            socket: port.socket,
            hole: port.hole,
            status: port.status.code(),
            status_text: port.status.as_str(),
            raw_status: port.raw_status,
            power_dw: port.power_dw,
            current_ma: port.current_ma,
            voltage_dv: port.voltage_dv,
            energy_wh: port.energy_wh,
            charged_seconds: port.charged_seconds,
            order_no,
            updated_at: (port.updated_at != 0).then_some(Rfc3339(port.updated_at)),
        }
    }
}

/// A card.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = Card)]
#[expect(missing_docs, reason = "the fields are those of the card")]
pub struct CardObject<'a> {
    #[schema(value_type = CardNo)]
    pub card_no: &'a CardNo,
    /// The decimal number on an M1 card.
    pub printed_no: Option<String>,
    /// What the card is told at a reader; 0 charges.
    #[schema(maximum = 18)]
    pub state: u8,
    #[schema(value_type = CardState)]
    pub state_text: &'static str,
    /// The tariff of the configuration; `null`: the one for cards that name none.
    pub tariff: Option<&'a str>,
    /// A monthly card charges without price until then; `null`: it is none.
    pub expires_at: Option<Rfc3339>,
    /// Cents.
    pub balance_cent: i64,
    /// Cents of it held for orders.
    pub held_cent: i64,
    /// Cents of it that may be held.
    pub free_cent: i64,
    pub created_at: Rfc3339,
    pub updated_at: Rfc3339,
}

impl<'a> From<&'a Card> for CardObject<'a> {
    fn from(card: &'a Card) -> Self {
        Self {
            card_no: &card.card_no,
            printed_no: card.card_no.printed_no(),
            state: card.state.code(),
            state_text: card.state.as_str(),
            tariff: card.tariff.as_deref(),
            expires_at: card.expires_at.map(Rfc3339),
            balance_cent: card.balance_cent,
            held_cent: card.held_cent,
            free_cent: card.free_cent(),
            created_at: Rfc3339(card.created_at),
            updated_at: Rfc3339(card.updated_at),
        }
    }
}

/// A movement of a card, and `data` of `card.transaction`.
#[derive(Clone, Copy, Debug, Serialize, ToSchema)]
#[schema(as = CardTransaction)]
#[expect(missing_docs, reason = "the fields are those of the movement")]
pub struct TransactionObject<'a> {
    pub transaction_id: i64,
    #[schema(value_type = CardNo)]
    pub card_no: &'a CardNo,
    #[schema(value_type = TransactionKind)]
    pub kind: &'static str,
    /// The order a charge was for.
    pub order_no: Option<OrderNo>,
    /// Cents added, or taken where negative.
    pub amount_cent: i64,
    /// Cents the charge cost, or that were paid in.
    pub price_cent: i64,
    /// Cents of the price that were not taken.
    pub unpaid_cent: i64,
    /// Cents of the card after it.
    pub balance_cent: i64,
    /// The caller's own word for a recharge.
    pub reference: Option<&'a str>,
    pub at: Rfc3339,
}

impl<'a> From<&'a CardTransaction> for TransactionObject<'a> {
    fn from(transaction: &'a CardTransaction) -> Self {
        Self {
            transaction_id: transaction.id,
            card_no: &transaction.card_no,
            kind: transaction.kind.as_str(),
            order_no: transaction.order_no,
            amount_cent: transaction.amount_cent,
            price_cent: transaction.price_cent,
            unpaid_cent: transaction.unpaid_cent,
            balance_cent: transaction.balance_cent,
            reference: transaction.reference.as_deref(),
            at: Rfc3339(transaction.at),
        }
    }
}

/// `data` of `card.swiped`.
#[derive(Clone, Copy, Debug, Serialize, ToSchema)]
pub struct CardSwiped<'a> {
    /// The card.
    #[schema(value_type = CardNo)]
    pub card_no: &'a CardNo,
    /// The device.
    pub device_id: DeviceId,
    /// From 1; `null`: a question for the balance.
    pub port_no: Option<u16>,
    /// What the holder was told.
    #[schema(maximum = 18)]
    pub account_state: u8,
    /// In one word.
    #[schema(value_type = CardState)]
    pub account_state_text: &'static str,
    /// The order the swipe made.
    pub order_no: Option<OrderNo>,
}

/// HTTP status of [`card_answer`].
pub const fn card_status(registered: bool) -> u16 {
    if registered { 201 } else { 200 }
}

/// The whole answer to a request that changed a card; the store keeps it for the request's idempotency key, as with [`accepted`].
///
/// # Errors
/// None in practice: the data are numbers and text.
pub fn card_answer(
    card: &Card,
    transaction: Option<&CardTransaction>,
    request_id: &str,
    unix_ms: i64,
) -> serde_json::Result<Vec<u8>> {
    let data = Changed { card: card.into(), transaction: transaction.map(Into::into) };
    let mut body = Vec::with_capacity(512);
    envelope::write_success(&mut body, &data, request_id, unix_ms)?;
    Ok(body)
}

/// The card as it is now, and the movement where there was one.
#[derive(Serialize, ToSchema)]
#[schema(as = ChangedCard)]
pub struct Changed<'a> {
    #[serde(flatten)]
    card: CardObject<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    transaction: Option<TransactionObject<'a>>,
}
