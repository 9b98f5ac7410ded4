//! `/devices/{id}/commands` and `/devices/{id}/params`: named commands and parameters of a device.
//!
//! A command is queued and answered 202 with its id; what the device says to it is read from the row. A device that is away gets
//! it when it comes back, while it is valid.

use std::sync::Arc;

use serde::{Serialize, Serializer};
use utoipa::ToSchema;

use super::body::Fields;
use super::call::{Call, Next, located, not_done, reading, submit};
use super::{Api, List, RETRY_AFTER_S, no_device, now};
use crate::api::error::{ApiError, ErrorCode};
use crate::api::message::Request;
use crate::api::overload::Reservation;
use crate::api::route::Query;
use crate::gateway::params;
use crate::model::{
    Ap3000Call, CommandState, DeviceCall, DeviceId, GatewayCall, ModifiedLimit, OrderNo, Priority, Protocol, SubDevice,
};
use crate::protocol::ap3000::{PhyId, offline::VerificationCode};
use crate::store::{Called, Job, NewCall, Outcome, ParamRecord, WantedParams, payload};
use crate::time::Rfc3339;

/// How long a command is valid where the request does not say.
const VALID_S: u32 = 300;
/// Longest validity: a day.
const VALID_S_MAX: u32 = 86_400;
/// How far a device's clock may be off for a code to be taken.
const CODE_SLACK_S: i64 = 120;
/// Attempts of commands that may be repeated.
const ATTEMPTS_MAX: u8 = 3;

/// Commands of AP3000 devices, by name.
const AP3000_COMMANDS: [&str; 17] = [
    "query_status",
    "reboot",
    "clear_storage",
    "locate",
    "play_voice",
    "modify_charge",
    "eeprom_read",
    "eeprom_write",
    "temporary_qr",
    "open_door",
    "stop_keep_door",
    "trigger_self_update",
    "host_reboot",
    "module_reboot",
    "clear_sub_device_update_data",
    "set_server_address",
    "set_fsk_params",
];
/// Commands of BKV and GN gateways, by name.
const GATEWAY_COMMANDS: [&str; 2] = ["query_socket", "set_voice"];

macro_rules! commands {
    ($($(#[$attribute:meta])* $name:ident { $($(#[$of_field:meta])* $field:ident: $type:ty,)* })*) => {
        /// A named command of the device's protocol.
        #[derive(ToSchema)]
        #[serde(tag = "command", rename_all = "snake_case")]
        #[expect(dead_code, reason = "a schema: the body is read field by field")]
        pub(in crate::api) enum CommandRequest {
            $(
                $(#[$attribute])*
                $name {
                    $($(#[$of_field])* $field: $type,)*
                    /// Seconds from now within which it may be written.
                    #[schema(minimum = 1, maximum = 86400, default = 300)]
                    valid_seconds: Option<u32>,
                },
            )*
        }
    };
}

commands! {
    /// AP3000: asks for a heartbeat, which is the result.
    QueryStatus {}
    /// AP3000: restarts the device.
    Reboot {}
    /// AP3000: clears its storage.
    ClearStorage {}
    /// AP3000: makes it show where it is.
    Locate {
        /// For how long.
        #[schema(minimum = 1, maximum = 255)]
        seconds: u8,
    }
    /// AP3000: speaks. The vendor calls it unusable.
    PlayVoice {
        /// Numbers of the pieces to speak.
        #[schema(value_type = Vec<u8>, min_items = 1, max_items = 200)]
        segments: Vec<u8>,
        /// Whether what is spoken now is cut off.
        #[schema(default = false)]
        interrupt: Option<bool>,
    }
    /// AP3000: changes the limit of a running charge: `duration_seconds` or `energy_wh`, totals since the start.
    ModifyCharge {
        /// The port.
        #[schema(minimum = 1, maximum = 255)]
        port_no: u16,
        /// Seconds in all.
        #[schema(minimum = 1)]
        duration_seconds: Option<u16>,
        /// Wh in all.
        #[schema(minimum = 10, maximum = 655350, multiple_of = 10)]
        energy_wh: Option<u32>,
        /// With `duration_seconds`: whether it also ends when the battery is full.
        #[schema(default = false)]
        stop_when_full: Option<bool>,
    }
    /// AP3000: reads the EEPROM.
    EepromRead {
        /// First byte.
        address: u16,
        /// Bytes.
        #[schema(minimum = 1, maximum = 32)]
        length: u8,
    }
    /// AP3000: writes the EEPROM.
    EepromWrite {
        /// First byte.
        address: u16,
        /// The bytes in hex.
        #[schema(pattern = "^([0-9A-Fa-f]{2}){1,32}$")]
        data: String,
    }
    /// AP3000: shows a QR code for a while.
    TemporaryQr {
        /// Its text.
        #[schema(min_length = 1, max_length = 200, pattern = "^[ -~]+$")]
        text: String,
    }
    /// AP3000 cabinet: opens a door.
    OpenDoor {
        /// The port behind it.
        #[schema(minimum = 1, maximum = 255)]
        port_no: u16,
    }
    /// AP3000 cabinet: ends a charge and keeps the door shut.
    StopKeepDoor {
        /// The port.
        #[schema(minimum = 1, maximum = 255)]
        port_no: u16,
        /// The order on it.
        order_no: OrderNo,
    }
    /// AP3000: has the device update itself; done once it is written.
    TriggerSelfUpdate {}
    /// AP3000 host: restarts the host.
    HostReboot {}
    /// AP3000 host: restarts the communication module.
    ModuleReboot {}
    /// AP3000 host: forgets the image it keeps for its sub-devices.
    ClearSubDeviceUpdateData {}
    /// AP3000 host: sends it to another server. **A wrong value loses the host for good.**
    SetServerAddress {
        /// Name or address.
        #[schema(min_length = 1, max_length = 45, pattern = "^[ -~]+$")]
        address: String,
        /// Port.
        #[schema(minimum = 1)]
        port: u16,
        /// Kind of communication module.
        #[schema(minimum = 1, maximum = 3)]
        module_type: u8,
        /// Whether the second socket is used.
        #[schema(default = true)]
        second_socket: Option<bool>,
    }
    /// AP3000 host: the radio to its sub-devices.
    SetFskParams {
        /// MHz.
        frequency: u16,
        /// Device ids.
        #[schema(max_items = 50)]
        sub_devices: Vec<String>,
    }
    /// BKV/GN: asks a socket for its state.
    QuerySocket {
        /// The socket.
        #[schema(maximum = 250)]
        socket: u8,
    }
    /// BKV/GN: what a socket may say, and when.
    SetVoice {
        /// The socket; 254: all.
        #[schema(maximum = 254)]
        socket: u8,
        /// The hole.
        #[schema(maximum = 1, default = 1)]
        hole: Option<u8>,
        /// Whether it may beep.
        buzzer: bool,
        /// Whether it may speak.
        voice: bool,
        /// When it is quiet.
        #[schema(max_items = 2)]
        periods: Option<Vec<VoicePeriod>>,
    }
}

/// A period of the day.
#[derive(ToSchema)]
#[expect(dead_code, reason = "a schema: the body is read field by field")]
pub(in crate::api) struct VoicePeriod {
    /// Hour of its start.
    #[schema(maximum = 23)]
    start_hour: u8,
    /// Minute of its start.
    #[schema(maximum = 59)]
    start_minute: u8,
    /// Hour of its end.
    #[schema(maximum = 23)]
    end_hour: u8,
    /// Minute of its end.
    #[schema(maximum = 59)]
    end_minute: u8,
}

/// The body that says what parameters shall be: some of them, or `refresh`.
#[derive(ToSchema)]
#[expect(dead_code, reason = "a schema: the body is read field by field")]
pub(in crate::api) struct ParamsRequest {
    /// Values by the vendor's names; names and types are those of the device's protocol.
    params: Option<std::collections::BTreeMap<String, serde_json::Value>>,
    /// BKV/GN, required there: the socket; 0 is the gateway.
    #[schema(maximum = 250)]
    socket: Option<u8>,
    /// Whether the device is only asked what it has.
    #[schema(default = false)]
    refresh: Option<bool>,
}

/// A code for the keypad.
#[derive(Serialize, ToSchema)]
#[schema(as = VerificationCode)]
pub(in crate::api) struct CodeObject {
    device_id: DeviceId,
    port_no: u8,
    /// Six digits.
    #[schema(pattern = "^[0-9]{6}$")]
    code: String,
    valid_from: Rfc3339,
    valid_until: Rfc3339,
}

/// The protocol family of a device id: all that commands depend on.
const fn family(device_id: DeviceId) -> Protocol {
    match device_id {
        DeviceId::Ap3000(_) => Protocol::Ap3000,
        DeviceId::Gateway(_) => Protocol::Bkv,
    }
}

/// Queues a named command.
pub(super) fn create(api: &Arc<Api>, device_id: DeviceId, request: &Request) -> Result<Next, ApiError> {
    let mut fields = Fields::of(request)?;
    let valid_s = fields.number("valid_seconds", 1..=VALID_S_MAX)?.unwrap_or(VALID_S);
    let call = read_call(fields, device_id)?;
    send(api, device_id, call, valid_s, &request.request_id)
}

/// Queues a call, once the instance has room for it.
pub(super) fn send(
    api: &Arc<Api>,
    device_id: DeviceId,
    call: DeviceCall,
    valid_s: u32,
    request_id: &str,
) -> Result<Next, ApiError> {
    let at = now().unix_ms;
    let mut new = NewCall {
        device_id,
        attempts_max: if call.is_idempotent() { ATTEMPTS_MAX } else { 1 },
        call,
        priority: Priority::Low,
        waiting_max: api.backlog.per_device_max(),
        at,
        not_after: at + i64::from(valid_s) * 1000,
        request_id: request_id.to_owned(),
        idempotency: None,
    };
    Ok(admitted(device_id, move |call, place| {
        new.idempotency = call.idempotency().cloned();
        submit(call, Job::Call(Box::new(new)), move |call, outcome| called(call, device_id, at, outcome, place));
    }))
}

/// Goes on once this instance and the device have room for one command more.
pub(super) fn admitted(device_id: DeviceId, then: impl FnOnce(Call, Reservation) + Send + 'static) -> Next {
    located(device_id, move |api, live| {
        let place = admit(api, Priority::Low, live.map_or(0, |live| live.waiting()))?;
        Ok(Box::new(move |call| then(call, place)))
    })
}

/// A place among the commands that wait; `waiting`: those that wait for the device already.
pub(super) fn admit(api: &Api, priority: Priority, waiting: u32) -> Result<Reservation, ApiError> {
    api.backlog.admit(priority, waiting).map_err(|overload| {
        ApiError::new(ErrorCode::QueueOverloaded, overload.to_string()).with_retry_after(RETRY_AFTER_S)
    })
}

fn called(call: Call, device_id: DeviceId, at: i64, outcome: Outcome, place: Reservation) {
    drop(place);
    match outcome {
        Outcome::Called(Called::Queued(record)) => {
            log::info!(
                command_id = record.id, device_id:% = device_id, command = record.body.as_str(),
                request_id = call.request_id();
                "command queued"
            );
            let body = payload::command_accepted(&record, call.request_id(), at);
            call.written(payload::ACCEPTED, body);
        }
        Outcome::Called(Called::NoDevice) => call.error(&no_device(device_id)),
        Outcome::Called(Called::Full) => {
            let message = format!("as many commands as allowed wait for device {device_id}");
            call.error(&ApiError::new(ErrorCode::QueueOverloaded, message).with_retry_after(RETRY_AFTER_S));
        }
        other => call.error(&not_done(&other)),
    }
}

/// Commands of a device, newest first.
pub(super) fn list(device_id: DeviceId, query: &Query<'_>) -> Result<Next, ApiError> {
    let page = query.page()?;
    let state = query.value("state").map(state).transpose()?;
    Ok(reading(move |reader| {
        if reader.device(device_id)?.is_none() {
            return Err(no_device(device_id));
        }
        let found = reader.commands(device_id, state, page.page, page.size)?;
        Ok(List::new(found.rows, found.total, page))
    }))
}

/// A row state, by its word.
fn state(text: &str) -> Result<CommandState, ApiError> {
    CommandState::from_word(text).ok_or_else(|| {
        let words = CommandState::ALL.map(CommandState::as_str).join(", ");
        ApiError::invalid(format!("state must be one of {words}, got {text:?}"))
    })
}

/// One command: its state, and what the device said.
pub(super) fn one(device_id: DeviceId, id: i64) -> Next {
    reading(move |reader| {
        let missing = || ApiError::new(ErrorCode::NotFound, format!("device {device_id} has no command {id}"));
        reader.command(device_id, id)?.ok_or_else(missing)
    })
}

/// The code that a person types on a keypad model to start a charge now, also where the device has no connection (device-server
/// protocol v8.6, command 03, verification code). It starts a charge, so it wants the scope of one.
pub(super) fn verification_code(device_id: DeviceId, query: &Query<'_>) -> Result<Next, ApiError> {
    let DeviceId::Ap3000(phy_id) = device_id else {
        return Err(ApiError::new(ErrorCode::NotSupported, "verification codes are not supported by bkv and gn"));
    };
    let port_no = query.parsed("port_no", "a number in 1..=255")?;
    let port_no: u8 = port_no.ok_or_else(|| ApiError::invalid("port_no is missing"))?;
    let port = port_no.checked_sub(1).ok_or_else(|| ApiError::invalid("port_no must be a number in 1..=255, got 0"))?;
    let unix_s = now().unix_ms / 1000;
    let minute = unix_s - unix_s.rem_euclid(60);
    let code = VerificationCode::at(phy_id, port, u32::try_from(minute).unwrap_or(u32::MAX));
    let data = CodeObject {
        device_id,
        port_no,
        code: format!("{:06}", code.as_u32()),
        valid_from: Rfc3339((minute - CODE_SLACK_S) * 1000),
        valid_until: Rfc3339((minute + 60 + CODE_SLACK_S) * 1000),
    };
    Ok(Box::new(move |call| call.success(200, &data)))
}

/// Parameters as third parties read them.
struct ParamsBody {
    device_id: DeviceId,
    params: Vec<ParamRecord>,
}

impl Serialize for ParamsBody {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        payload::ParamsObject::new(self.device_id, &self.params).serialize(serializer)
    }
}

/// Parameters of a device: desired, reported, pending.
pub(super) fn params(device_id: DeviceId) -> Next {
    reading(move |reader| {
        if reader.device(device_id)?.is_none() {
            return Err(no_device(device_id));
        }
        Ok(ParamsBody { device_id, params: reader.params(device_id)? })
    })
}

/// Says what parameters of a device shall be, or asks it what they are.
pub(super) fn set_params(device_id: DeviceId, request: &Request) -> Result<Next, ApiError> {
    let mut fields = Fields::of(request)?;
    let protocol = family(device_id);
    let refresh = fields.flag("refresh")?.unwrap_or(false);
    let socket = fields.number("socket", 0..=250_u8)?;
    let socket = match (device_id, socket) {
        (DeviceId::Gateway(_), socket) => fields.required("socket", socket)?,
        (DeviceId::Ap3000(_), None) => 0,
        (DeviceId::Ap3000(_), Some(_)) => return Err(ApiError::invalid("AP3000 parameters have no socket")),
    };
    let given = fields.object("params")?.unwrap_or_default();
    if given.is_empty() && !refresh {
        return Err(ApiError::invalid("params is missing: give values by name, or refresh: true"));
    }
    fields.finish(&["params", "socket", "refresh"])?;
    let mut values = Vec::with_capacity(given.len());
    for (name, value) in given {
        let Some(param) = params::find(protocol, &name) else {
            let names: Vec<_> = params::of(protocol).iter().map(|param| param.name).collect();
            let word = protocol_word(device_id);
            let message = format!("params.{name} is no parameter of {word}, there are {}", names.join(", "));
            return Err(ApiError::new(ErrorCode::NotSupported, message));
        };
        param
            .kind
            .check(&value)
            .map_err(|expected| ApiError::invalid(format!("params.{name} must be {expected}, got {value}")))?;
        values.push((name, value));
    }
    let at = now().unix_ms;
    let mut wanted = WantedParams {
        device_id,
        socket,
        values,
        refresh,
        at,
        request_id: request.request_id.clone(),
        idempotency: None,
    };
    Ok(admitted(device_id, move |call, place| {
        wanted.idempotency = call.idempotency().cloned();
        submit(call, Job::SetParams(Box::new(wanted)), move |call, outcome| {
            drop(place);
            match outcome {
                Outcome::Params(Some(params)) => {
                    let body = payload::params_accepted(device_id, &params, call.request_id(), at);
                    call.written(payload::ACCEPTED, body);
                }
                Outcome::Params(None) => call.error(&no_device(device_id)),
                other => call.error(&not_done(&other)),
            }
        });
    }))
}

/// Says that a protocol lacks something.
pub(super) fn not_supported(device_id: DeviceId, what: &str, there_are: &[&str]) -> ApiError {
    let message =
        format!("{what} is not supported by {}, there are {}", protocol_word(device_id), there_are.join(", "));
    ApiError::new(ErrorCode::NotSupported, message)
}

const fn protocol_word(device_id: DeviceId) -> &'static str {
    match device_id {
        DeviceId::Ap3000(_) => "ap3000",
        DeviceId::Gateway(_) => "bkv and gn",
    }
}

fn read_call(mut fields: Fields, device_id: DeviceId) -> Result<DeviceCall, ApiError> {
    let given = fields.text("command")?;
    let name = fields.required("command", given)?;
    let (call, known) = match device_id {
        DeviceId::Ap3000(_) => {
            let (call, known) = read_ap3000(&mut fields, &name, device_id)?;
            (DeviceCall::Ap3000(call), known)
        }
        DeviceId::Gateway(_) => {
            let (call, known) = read_gateway(&mut fields, &name, device_id)?;
            (DeviceCall::Gateway(call), known)
        }
    };
    fields.finish(&[&["command", "valid_seconds"], known].concat())?;
    Ok(call)
}

/// Reads a required field.
macro_rules! required {
    ($fields:ident, $name:literal, $read:expr) => {{
        let given = $read?;
        $fields.required($name, given)?
    }};
}

fn read_ap3000(
    fields: &mut Fields,
    name: &str,
    device_id: DeviceId,
) -> Result<(Ap3000Call, &'static [&'static str]), ApiError> {
    let port = |fields: &mut Fields| -> Result<u16, ApiError> {
        let given = fields.number("port_no", 1..=255_u16)?;
        fields.required("port_no", given)
    };
    Ok(match name {
        "query_status" => (Ap3000Call::QueryStatus, &[]),
        "reboot" => (Ap3000Call::Reboot, &[]),
        "clear_storage" => (Ap3000Call::ClearStorage, &[]),
        "locate" => {
            let seconds = required!(fields, "seconds", fields.number("seconds", 1..=255_u8));
            (Ap3000Call::Locate { seconds }, &["seconds"])
        }
        "play_voice" => {
            let interrupt = fields.flag("interrupt")?.unwrap_or(false);
            let segments = required!(fields, "segments", fields.bytes("segments", 1..=200));
            (Ap3000Call::PlayVoice { interrupt, segments }, &["interrupt", "segments"])
        }
        "modify_charge" => {
            let port_no = port(fields)?;
            let seconds = fields.number("duration_seconds", 1..=u16::MAX)?;
            let energy_wh = fields.number("energy_wh", 10..=655_350_u32)?;
            let stop_when_full = fields.flag("stop_when_full")?;
            let limit = match (seconds, energy_wh) {
                (Some(seconds), None) => {
                    ModifiedLimit::Time { seconds, stop_when_full: stop_when_full.unwrap_or(false) }
                }
                (None, Some(wh)) if wh % 10 == 0 && stop_when_full != Some(false) => {
                    ModifiedLimit::Energy { centi_kwh: u16::try_from(wh / 10).unwrap_or(u16::MAX) }
                }
                (None, Some(wh)) if wh % 10 != 0 => {
                    return Err(ApiError::invalid(format!("energy_wh must be a multiple of 10, got {wh}")));
                }
                (None, Some(_)) => {
                    return Err(ApiError::invalid(
                        "stop_when_full cannot be false with energy_wh: it always stops when full",
                    ));
                }
                (None, None) => return Err(ApiError::invalid("duration_seconds or energy_wh is missing")),
                (Some(_), Some(_)) => {
                    return Err(ApiError::invalid("duration_seconds and energy_wh exclude each other"));
                }
            };
            let known = &["port_no", "duration_seconds", "energy_wh", "stop_when_full"];
            (Ap3000Call::ModifyCharge { port_no, limit }, known)
        }
        "eeprom_read" => {
            let address = required!(fields, "address", fields.number("address", 0..=u16::MAX));
            let length = required!(fields, "length", fields.number("length", 1..=32_u8));
            (Ap3000Call::EepromRead { address, length }, &["address", "length"])
        }
        "eeprom_write" => {
            let address = required!(fields, "address", fields.number("address", 0..=u16::MAX));
            let data = required!(fields, "data", fields.hex("data", 1..=32));
            (Ap3000Call::EepromWrite { address, data }, &["address", "data"])
        }
        "temporary_qr" => {
            let text = required!(fields, "text", fields.ascii("text", 1..=200));
            (Ap3000Call::TemporaryQr { text }, &["text"])
        }
        "open_door" => (Ap3000Call::OpenDoor { port_no: port(fields)? }, &["port_no"]),
        "stop_keep_door" => {
            let order_no = required!(fields, "order_no", fields.order_no());
            (Ap3000Call::StopKeepDoor { port_no: port(fields)?, order_no }, &["port_no", "order_no"])
        }
        "trigger_self_update" => (Ap3000Call::TriggerSelfUpdate, &[]),
        "host_reboot" => (Ap3000Call::HostReboot, &[]),
        "module_reboot" => (Ap3000Call::ModuleReboot, &[]),
        "clear_sub_device_update_data" => (Ap3000Call::ClearSubDeviceUpdateData, &[]),
        "set_server_address" => {
            let address = required!(fields, "address", fields.ascii("address", 1..=45));
            let port = required!(fields, "port", fields.number("port", 1..=u16::MAX));
            let module_type = required!(fields, "module_type", fields.number("module_type", 1..=3_u8));
            let second_socket = fields.flag("second_socket")?.unwrap_or(true);
            let known = &["address", "port", "module_type", "second_socket"];
            (Ap3000Call::SetServerAddress { address, port, module_type, second_socket }, known)
        }
        "set_fsk_params" => {
            let frequency = required!(fields, "frequency", fields.number("frequency", 0..=u16::MAX));
            let given = required!(fields, "sub_devices", fields.texts("sub_devices", 0..=50));
            let mut sub_devices = Vec::with_capacity(given.len());
            for text in given {
                let id: PhyId = text.parse().map_err(|_| {
                    ApiError::invalid(format!("sub_devices must hold ids of 8 hex digits, got {text:?}"))
                })?;
                sub_devices.push(SubDevice(id));
            }
            (Ap3000Call::SetFskParams { frequency, sub_devices }, &["frequency", "sub_devices"])
        }
        other => return Err(not_supported(device_id, &format!("command {other:?}"), &AP3000_COMMANDS)),
    })
}

fn read_gateway(
    fields: &mut Fields,
    name: &str,
    device_id: DeviceId,
) -> Result<(GatewayCall, &'static [&'static str]), ApiError> {
    Ok(match name {
        "query_socket" => {
            let socket = required!(fields, "socket", fields.number("socket", 0..=250_u8));
            (GatewayCall::QuerySocket { socket }, &["socket"])
        }
        "set_voice" => {
            let socket = required!(fields, "socket", fields.number("socket", 0..=254_u8));
            let hole = fields.number("hole", 0..=1_u8)?.unwrap_or(1);
            let buzzer = required!(fields, "buzzer", fields.flag("buzzer"));
            let voice = required!(fields, "voice", fields.flag("voice"));
            let mut periods = Vec::new();
            for mut period in fields.objects("periods")?.unwrap_or_default() {
                let start_hour = required!(period, "start_hour", period.number("start_hour", 0..=23_u8));
                let start_minute = required!(period, "start_minute", period.number("start_minute", 0..=59_u8));
                let end_hour = required!(period, "end_hour", period.number("end_hour", 0..=23_u8));
                let end_minute = required!(period, "end_minute", period.number("end_minute", 0..=59_u8));
                period.finish(&["start_hour", "start_minute", "end_hour", "end_minute"])?;
                periods.push([start_hour, start_minute, end_hour, end_minute]);
            }
            if periods.len() > 2 {
                let message = format!("periods must have at most 2 entries, got {}", periods.len());
                return Err(ApiError::invalid(message));
            }
            let call = GatewayCall::SetVoice { socket, hole, buzzer, voice, periods };
            (call, &["socket", "hole", "buzzer", "voice", "periods"])
        }
        other => return Err(not_supported(device_id, &format!("command {other:?}"), &GATEWAY_COMMANDS)),
    })
}
