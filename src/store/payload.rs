//! Objects as third parties read them, built the same for events and for the API.

use serde::{Serialize, Serializer};

use super::{CommandRecord, ParamRecord, PortRecord, SettingsOutcome};
use crate::api::envelope;
use crate::gateway::network::{NetworkList, Refresh};
use crate::model::{
    Card, CardNo, CardTransaction, DeviceId, Firmware, Order, OrderCard, OrderNo, OrderStatus, OtaTask, port_of_socket,
};
use crate::protocol::Hex;
use crate::time::Rfc3339;

/// HTTP status of [`accepted`].
pub const ACCEPTED: u16 = 202;

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
#[derive(Debug, Serialize)]
#[expect(missing_docs, reason = "the fields are those of the task")]
pub struct OtaObject<'a> {
    pub task_id: i64,
    pub device_id: DeviceId,
    pub method: &'static str,
    pub firmware: Option<FirmwareObject<'a>>,
    pub ftp_host: Option<std::net::Ipv4Addr>,
    pub ftp_port: Option<u16>,
    pub file: Option<&'a str>,
    pub verification: bool,
    pub force: bool,
    pub state: u8,
    pub state_text: &'static str,
    /// Percent.
    pub progress: u8,
    pub reason: Option<&'a str>,
    pub packets_total: u16,
    pub packets_acked: u16,
    pub created_at: Rfc3339,
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
#[derive(Debug, Serialize)]
#[expect(missing_docs, reason = "the fields are those of the image")]
pub struct FirmwareObject<'a> {
    pub firmware_id: i64,
    /// Lower-case hex.
    pub sha256: String,
    pub size: u32,
    pub name: &'a str,
    /// `V2.05`.
    pub version: Option<String>,
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
#[derive(Debug, Serialize)]
#[expect(missing_docs, reason = "the fields are those of the row")]
pub struct CommandObject<'a> {
    pub command_id: i64,
    pub device_id: DeviceId,
    pub command: &'static str,
    pub port_no: Option<u16>,
    pub order_no: Option<OrderNo>,
    pub state: &'a str,
    pub attempts: u8,
    pub reason: Option<&'a str>,
    pub result: Option<serde_json::Value>,
    pub request_id: Option<&'a str>,
    pub created_at: Rfc3339,
    pub written_at: Option<Rfc3339>,
    pub updated_at: Rfc3339,
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
#[derive(Debug, Serialize)]
#[expect(missing_docs, reason = "the fields are their words")]
pub struct ParamsObject<'a> {
    pub device_id: DeviceId,
    /// Whether some desired value is not yet confirmed.
    pub pending: bool,
    pub params: Vec<ParamObject<'a>>,
}

/// A parameter: what is wanted, what the device says, and whether the two are still to meet.
#[derive(Debug, Serialize)]
#[expect(missing_docs, reason = "the fields are their words")]
pub struct ParamObject<'a> {
    pub name: &'a str,
    /// BKV/GN; null: the device as a whole.
    pub socket: Option<u8>,
    pub desired: Option<&'a serde_json::Value>,
    pub reported: Option<&'a serde_json::Value>,
    pub pending: bool,
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
#[derive(Debug, Serialize)]
#[expect(missing_docs, reason = "the fields are their words")]
pub struct NetworkObject<'a> {
    pub device_id: DeviceId,
    pub channel: Option<u8>,
    /// Whether the gateway acknowledged all of it.
    pub confirmed: bool,
    /// The gateway did not take the list as a whole; it is sent again when the gateway comes back.
    pub refresh_failed: bool,
    pub sockets: Vec<SocketObject<'a>>,
}

/// A socket of a network list.
#[derive(Debug, Serialize)]
#[expect(missing_docs, reason = "the fields are their words")]
pub struct SocketObject<'a> {
    pub socket: u8,
    pub mac: Option<String>,
    pub uid: Option<&'a str>,
    /// `desired`, `confirmed`, `removing`.
    pub state: &'static str,
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
    let data = serde_json::json!({
        "device_id": device_id,
        "protocol": protocol,
        "name": details.name,
        "extensions": details.extensions,
        "fsk_frequency": details.fsk_frequency,
        "registered": registered,
    });
    let mut body = Vec::with_capacity(256);
    envelope::write_success(&mut body, &data, request_id, unix_ms)?;
    Ok(body)
}

/// `data` of [`accepted`]: where the order stands now.
#[derive(Serialize)]
struct Accepted {
    order_no: OrderNo,
    status: u8,
    status_text: &'static str,
}

/// An order.
#[derive(Clone, Copy, Debug, Serialize)]
#[expect(missing_docs, reason = "the fields are those of the order")]
pub struct OrderObject<'a> {
    pub order_no: OrderNo,
    pub device_id: DeviceId,
    pub port_no: u16,
    pub status: u8,
    pub status_text: &'static str,
    pub mode: &'static str,
    pub paid_cent: Option<u32>,
    pub start_time: Option<Rfc3339>,
    pub end_time: Option<Rfc3339>,
    pub duration_seconds: Option<u32>,
    pub energy_wh: Option<u32>,
    pub amount_cent: Option<u32>,
    pub end_reason: Option<&'a str>,
    pub end_reason_raw: Option<u8>,
    pub business_no: Option<u16>,
    pub failure_reason: Option<&'a str>,
    pub card_no: Option<&'a CardNo>,
    pub hold_cent: Option<i64>,
    pub price_cent: Option<i64>,
    pub charged_cent: Option<i64>,
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
#[derive(Clone, Copy, Debug, Serialize)]
pub struct OrderEvent<'a> {
    /// The order after the step.
    #[serde(flatten)]
    pub order: OrderObject<'a>,
    /// Status before; `None` for `order.created`.
    pub old_status: Option<u8>,
    /// Status after.
    pub new_status: u8,
    /// Only `order.settled`: the order had been final for more than 60 s.
    #[serde(skip_serializing_if = "Option::is_none")]
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
#[derive(Clone, Copy, Debug, Serialize)]
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
    pub detail: Option<&'a str>,
}

/// A port.
#[derive(Clone, Copy, Debug, Serialize)]
#[expect(missing_docs, reason = "the fields are those of the port")]
pub struct PortObject {
    pub port_no: u16,
    pub socket: Option<u8>,
    pub hole: Option<u8>,
    pub status: u8,
    pub status_text: &'static str,
    pub raw_status: u8,
    pub power_dw: u16,
    pub current_ma: u16,
    pub voltage_dv: u16,
    pub energy_wh: u32,
    pub charged_seconds: u32,
    pub order_no: Option<OrderNo>,
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
#[derive(Clone, Debug, Serialize)]
#[expect(missing_docs, reason = "the fields are those of the card")]
pub struct CardObject<'a> {
    pub card_no: &'a CardNo,
    /// The decimal number on an M1 card.
    pub printed_no: Option<String>,
    pub state: u8,
    pub state_text: &'static str,
    pub tariff: Option<&'a str>,
    pub expires_at: Option<Rfc3339>,
    pub balance_cent: i64,
    pub held_cent: i64,
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
#[derive(Clone, Copy, Debug, Serialize)]
#[expect(missing_docs, reason = "the fields are those of the movement")]
pub struct TransactionObject<'a> {
    pub transaction_id: i64,
    pub card_no: &'a CardNo,
    pub kind: &'static str,
    pub order_no: Option<OrderNo>,
    pub amount_cent: i64,
    pub price_cent: i64,
    pub unpaid_cent: i64,
    pub balance_cent: i64,
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
#[derive(Clone, Copy, Debug, Serialize)]
pub struct CardSwiped<'a> {
    /// The card.
    pub card_no: &'a CardNo,
    /// The device.
    pub device_id: DeviceId,
    /// From 1; `None`: a question for the balance.
    pub port_no: Option<u16>,
    /// What the holder was told.
    pub account_state: u8,
    /// In one word.
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

/// `data` of [`card_answer`]: the card as it is now, and the movement where there was one.
#[derive(Serialize)]
struct Changed<'a> {
    #[serde(flatten)]
    card: CardObject<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    transaction: Option<TransactionObject<'a>>,
}
