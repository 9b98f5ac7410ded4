//! `/devices/{id}` (settings) and `/devices/{id}/sockets`: what an operator keeps of a device, and the network list of a gateway.
//!
//! The stored list is the desired one. 202 means that it is committed; the gateway is told next, and each socket shows whether it
//! has taken it.

use serde::{Serialize, Serializer};
use serde_json::json;
use utoipa::ToSchema;

use super::audit;
use super::body::Fields;
use super::call::{Next, not_done, reading, submit};
use super::commands::admitted;
use super::{no_device, now};
use crate::api::error::{ApiError, ErrorCode};
use crate::api::message::Request;
use crate::gateway::network::{Given, NetworkList};
use crate::model::{DeviceId, Protocol, port_of_socket};
use crate::store::{Job, NetworkChange, NetworkJob, Networked, Outcome, Settings, payload};

/// Characters of a device's name.
const NAME_MAX: usize = 64;
/// Characters of a socket's printed id.
const UID_MAX: usize = 32;
/// Sockets of a gateway.
const SOCKETS_MAX: usize = 250;

/// The body that sets what is kept of a device. What is left out stays.
#[derive(ToSchema)]
#[expect(dead_code, reason = "a schema: the body is read field by field")]
pub(in crate::api) struct SettingsRequest {
    /// As the id allows: BKV and GN look alike.
    protocol: Option<Protocol>,
    /// BKV/GN: whether the integrator's extension commands are taken.
    extensions: Option<bool>,
    /// A name for it, without control characters.
    #[schema(max_length = 64)]
    name: Option<String>,
    /// AP3000 host: frequency for its sub-devices, MHz.
    fsk_frequency: Option<u16>,
}

/// The body that changes a network list.
#[derive(ToSchema)]
#[serde(tag = "action", rename_all = "snake_case")]
#[expect(dead_code, reason = "a schema: the body is read field by field")]
pub(in crate::api) enum NetworkRequest {
    /// Replaces the whole list.
    Refresh {
        /// Radio channel.
        #[schema(minimum = 1, maximum = 15)]
        channel: u8,
        /// All sockets, numbers and addresses once each.
        #[schema(max_items = 250)]
        sockets: Vec<SocketRequest>,
    },
    /// Adds a socket.
    Add {
        /// Its number.
        #[schema(minimum = 1, maximum = 250)]
        socket: u8,
        /// As printed on the back: 6 bytes in hex.
        #[schema(pattern = "^[0-9A-Fa-f]{12}$")]
        mac: String,
        /// As printed on the front; never sent.
        #[schema(min_length = 1, max_length = 32, pattern = "^[ -~]+$")]
        uid: Option<String>,
    },
}

/// A socket of a network list.
#[derive(ToSchema)]
#[expect(dead_code, reason = "a schema: the body is read field by field")]
pub(in crate::api) struct SocketRequest {
    /// Its number.
    #[schema(minimum = 1, maximum = 250)]
    socket: u8,
    /// As printed on the back: 6 bytes in hex.
    #[schema(pattern = "^[0-9A-Fa-f]{12}$")]
    mac: String,
    /// As printed on the front; never sent.
    #[schema(min_length = 1, max_length = 32, pattern = "^[ -~]+$")]
    uid: Option<String>,
}

/// Sets what is kept of a device, and registers it where it was never seen.
pub(super) fn settings(device_id: DeviceId, request: &Request) -> Result<Next, ApiError> {
    let mut fields = Fields::of(request)?;
    let protocol = fields.word("protocol", &["ap3000", "bkv", "gn"])?.and_then(Protocol::from_word);
    let extensions = fields.flag("extensions")?;
    let name = if fields.has("name") { fields.text("name")? } else { None };
    let fsk_frequency = fields.number("fsk_frequency", 0..=u16::MAX)?;
    fields.finish(&["protocol", "extensions", "name", "fsk_frequency"])?;
    let own = match device_id {
        DeviceId::Ap3000(_) => matches!(protocol, None | Some(Protocol::Ap3000)),
        DeviceId::Gateway(_) => protocol != Some(Protocol::Ap3000),
    };
    if let Some(protocol) = protocol.filter(|_| !own) {
        let message = format!("protocol of {device_id} cannot be {}: its id says otherwise", protocol.as_str());
        return Err(ApiError::new(ErrorCode::NotSupported, message));
    }
    let foreign = match device_id {
        DeviceId::Ap3000(_) => extensions.map(|_| "extensions"),
        DeviceId::Gateway(_) => fsk_frequency.map(|_| "fsk_frequency"),
    };
    if let Some(foreign) = foreign {
        return Err(ApiError::new(ErrorCode::NotSupported, format!("{foreign} is not supported by {device_id}")));
    }
    if let Some(name) =
        name.as_deref().filter(|name| name.chars().count() > NAME_MAX || name.chars().any(char::is_control))
    {
        let message =
            format!("name must have at most {NAME_MAX} characters, none of them a control character, got {name:?}");
        return Err(ApiError::invalid(message));
    }
    let at = now().unix_ms;
    let mut settings = Settings {
        device_id,
        protocol: protocol.filter(|protocol| *protocol != Protocol::Ap3000),
        extensions,
        name,
        fsk_frequency,
        at,
        request_id: request.request_id.clone(),
        idempotency: None,
    };
    Ok(Box::new(move |call| {
        settings.idempotency = call.idempotency().cloned();
        submit(call, Job::Settings(Box::new(settings)), move |call, outcome| match outcome {
            Outcome::Settings(outcome) => {
                audit::done(&call, if outcome.registered { "device.register" } else { "device.settings" }, device_id);
                let body = payload::settings(&outcome, call.request_id(), at);
                call.written(payload::OK, body);
            }
            other => call.error(&not_done(&other)),
        });
    }))
}

/// A network list as third parties read it.
struct NetworkBody {
    device_id: DeviceId,
    list: NetworkList,
}

impl Serialize for NetworkBody {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        payload::NetworkObject::new(self.device_id, &self.list).serialize(serializer)
    }
}

/// The list of a gateway.
pub(super) fn list(device_id: DeviceId) -> Result<Next, ApiError> {
    check_networked(device_id)?;
    Ok(reading(move |reader| {
        let list = reader.network(device_id)?.ok_or_else(|| no_device(device_id))?;
        Ok(NetworkBody { device_id, list })
    }))
}

/// Replaces the list, or adds to it.
pub(super) fn change(device_id: DeviceId, request: &Request) -> Result<Next, ApiError> {
    check_networked(device_id)?;
    let mut fields = Fields::of(request)?;
    let action = fields.word("action", &["refresh", "add"])?;
    let change = match fields.required("action", action)? {
        "refresh" => {
            let channel = fields.number("channel", 1..=15)?;
            let channel = fields.required("channel", channel)?;
            let given = fields.objects("sockets")?;
            let given = fields.required("sockets", given)?;
            fields.finish(&["action", "channel", "sockets"])?;
            if given.len() > SOCKETS_MAX {
                let message = format!("sockets must be an array of at most {SOCKETS_MAX} objects, got {}", given.len());
                return Err(ApiError::invalid(message));
            }
            let mut sockets: Vec<Given> = Vec::with_capacity(given.len());
            for (index, mut fields) in given.into_iter().enumerate() {
                let socket = read_socket(&mut fields)?;
                fields.finish(&["socket", "mac", "uid"])?;
                if sockets.iter().any(|other| other.socket == socket.socket) {
                    return Err(ApiError::invalid(format!("sockets[{index}].socket {} is given twice", socket.socket)));
                }
                if sockets.iter().any(|other| other.mac == socket.mac) {
                    return Err(ApiError::invalid(format!("sockets[{index}].mac is given twice")));
                }
                sockets.push(socket);
            }
            NetworkChange::Replace { channel, sockets }
        }
        _ => {
            let socket = read_socket(&mut fields)?;
            fields.finish(&["action", "socket", "mac", "uid"])?;
            NetworkChange::Add(socket)
        }
    };
    send(device_id, change, request)
}

/// Takes a socket out of the list.
pub(super) fn remove(device_id: DeviceId, id: i64, request: &Request) -> Result<Next, ApiError> {
    check_networked(device_id)?;
    Fields::none(request)?;
    let socket = u8::try_from(id).ok().filter(|socket| (1..=250).contains(socket));
    let socket =
        socket.ok_or_else(|| ApiError::invalid(format!("socket in the path must be a number in 1..=250, got {id}")))?;
    send(device_id, NetworkChange::Remove(socket), request)
}

fn check_networked(device_id: DeviceId) -> Result<(), ApiError> {
    match device_id {
        DeviceId::Gateway(_) => Ok(()),
        DeviceId::Ap3000(_) => {
            let message = format!("{device_id} is an AP3000 device: it has no network list");
            Err(ApiError::new(ErrorCode::NotSupported, message))
        }
    }
}

fn read_socket(fields: &mut Fields) -> Result<Given, ApiError> {
    let socket = fields.number("socket", 1..=250_u8)?;
    let socket = fields.required("socket", socket)?;
    let mac = fields.hex("mac", 6..=6)?.and_then(|mac| mac.try_into().ok());
    let mac = fields.required("mac", mac)?;
    Ok(Given { socket, mac, uid: fields.ascii("uid", 1..=UID_MAX)? })
}

fn send(device_id: DeviceId, change: NetworkChange, request: &Request) -> Result<Next, ApiError> {
    let at = now().unix_ms;
    let mut job = NetworkJob { device_id, change, at, request_id: request.request_id.clone(), idempotency: None };
    Ok(admitted(device_id, move |call, place| {
        job.idempotency = call.idempotency().cloned();
        let removed = if let NetworkChange::Remove(socket) = &job.change { Some(*socket) } else { None };
        submit(call, Job::Network(Box::new(job)), move |call, outcome| {
            drop(place);
            let networked = match outcome {
                Outcome::Networked(networked) => networked,
                other => return call.error(&not_done(&other)),
            };
            match networked {
                Networked::Changed(told) => {
                    let body = payload::network_accepted(device_id, &told.list, call.request_id(), at);
                    call.written(payload::ACCEPTED, body);
                }
                Networked::NoDevice => call.error(&no_device(device_id)),
                Networked::NotListed => {
                    let socket = removed.unwrap_or_default();
                    let message = format!("socket {socket} is not in the network list of {device_id}");
                    call.error(&ApiError::new(ErrorCode::NotFound, message));
                }
                Networked::Taken(taken) => call.error(&ApiError::invalid(taken.to_string())),
                Networked::Busy { socket, port_no, holder } => {
                    let message = format!(
                        "socket {socket} cannot go: its port {port_no} is held by order {holder} \
                         (ports {} and {})",
                        port_of_socket(socket, 0),
                        port_of_socket(socket, 1)
                    );
                    let data = json!({"order_no": holder, "port_no": port_no, "socket": socket});
                    call.error(&ApiError::new(ErrorCode::PortBusy, message).with_data(data));
                }
            }
        });
    }))
}
