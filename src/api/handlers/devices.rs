//! `/devices`: what is known of devices: live where some instance has them, else as stored.

use std::sync::Arc;

use rustc_hash::FxHashMap;
use serde::Serialize;
use utoipa::ToSchema;

use super::call::{Call, Next, located, read, reading};
use super::orders::OrderBody;
use super::{Api, List, no_device, now};
use crate::api::error::ApiError;
use crate::api::live::Live;
use crate::api::route::{Page, Query};
use crate::gateway::directory::{PortState, Score};
use crate::model::{DeviceId, HostValues, Order, Protocol, ServerId};
use crate::store::payload::{OrderObject, PortObject};
use crate::store::{DeviceFilter, DeviceRecord, PortRecord, Reader};
use crate::time::Rfc3339;

/// Characters of a search; a name has at most as many.
const SEARCH_LEN_MAX: usize = 64;

/// Why the score is what it is.
#[derive(Clone, Copy, Serialize, ToSchema)]
struct ScoreParts {
    /// 100 or 0.
    alive: i32,
    /// −20 or 0.
    tcp_down: i32,
    /// −30 or 0.
    ack_timeout: i32,
}

impl From<Score> for ScoreParts {
    fn from(score: Score) -> Self {
        Self { alive: score.base(), tcp_down: score.tcp_down_part(), ack_timeout: score.ack_timeout_part() }
    }
}

/// What changes while a device is connected: the part of a device that memory knows.
#[derive(Serialize, ToSchema)]
#[schema(as = DeviceStatus)]
pub(in crate::api) struct Status {
    device_id: DeviceId,
    protocol: Protocol,
    /// Whether its score is 50 or more.
    online: bool,
    /// The sum of its parts; a start needs 50.
    score: i32,
    score_parts: ScoreParts,
    /// When its last bytes came.
    last_seen_at: Option<Rfc3339>,
    /// When it connected last.
    connected_at: Option<Rfc3339>,
    /// The instance that has it.
    instance: Option<ServerId>,
    /// Radio signal, as sent.
    signal: Option<u8>,
    ports: Vec<PortObject>,
}

impl Status {
    /// Of a device that some instance has, or had last.
    pub(super) fn live(api: &Api, live: &Live, unix_ms: i64) -> Self {
        let device_id = live.device_id();
        let score = live.score(unix_ms);
        let port = |state: &PortState| PortObject::new(&state.record(device_id), state.order_no);
        Self {
            device_id,
            protocol: live.protocol(),
            online: score.online(),
            score: score.total(),
            score_parts: score.into(),
            last_seen_at: known(live.last_seen()),
            connected_at: known(live.connected_at()),
            instance: live.instance(api.whereabouts.own()).cloned(),
            signal: live.signal(),
            ports: live.ports().iter().map(port).collect(),
        }
    }

    /// Of a device that is only stored: it is not connected, so it is offline.
    fn stored(record: &DeviceRecord, ports: &[PortRecord]) -> Self {
        let score = Score { alive: false, tcp_down: false, ack_timeout: false };
        Self {
            device_id: record.device_id,
            protocol: record.protocol,
            online: score.online(),
            score: score.total(),
            score_parts: score.into(),
            last_seen_at: record.last_seen_at.map(Rfc3339),
            connected_at: record.connected_at.map(Rfc3339),
            instance: None,
            signal: record.signal,
            ports: ports.iter().map(|port| PortObject::new(port, None)).collect(),
        }
    }
}

/// 0 stands for "never in this process".
fn known(unix_ms: i64) -> Option<Rfc3339> {
    (unix_ms != 0).then_some(Rfc3339(unix_ms))
}

/// A device, whole.
#[derive(Serialize, ToSchema)]
#[schema(as = Device)]
pub(in crate::api) struct DeviceObject {
    device_id: DeviceId,
    protocol: Protocol,
    /// The decimal number under the QR code.
    printed_no: Option<u32>,
    /// Whether its score is 50 or more.
    online: bool,
    /// The sum of its parts; a start needs 50.
    score: i32,
    score_parts: ScoreParts,
    /// When its last bytes came.
    last_seen_at: Option<Rfc3339>,
    /// When it connected last.
    connected_at: Option<Rfc3339>,
    /// The instance that has it.
    instance: Option<ServerId>,
    /// Radio signal, as sent.
    signal: Option<u8>,
    /// Firmware, as the device names it.
    firmware: Option<String>,
    /// The SIM.
    iccid: Option<String>,
    /// The operator's name for it.
    name: Option<String>,
    /// BKV/GN: the integrator's extension commands are taken.
    extensions: bool,
    /// Of the communication module.
    imei: Option<String>,
    /// Firmware of the communication module.
    module_version: Option<String>,
    /// Host type; from a charger its device type.
    host_type: Option<u8>,
    /// AP3000 host: the frequency set for its sub-devices, MHz.
    fsk_frequency: Option<u16>,
    /// What it tells of itself as a host or a cabinet.
    host: Option<HostValues>,
    ports: Vec<PortObject>,
    #[schema(value_type = Vec<OrderObject<'_>>)]
    active_orders: Vec<OrderBody>,
}

impl DeviceObject {
    /// Puts together what memory and store know; memory is newer.
    fn new(
        live: Option<(Status, &Live)>,
        record: Option<DeviceRecord>,
        stored_ports: &[PortRecord],
        active: Vec<Order>,
    ) -> Option<Self> {
        let details = record.as_ref().map(|record| record.details.clone()).unwrap_or_default();
        let (mut imei, mut module_version) = (details.imei, details.module_version);
        let (mut host_type, mut host) = (details.host_type, details.host);
        let mut iccid = record.as_ref().and_then(|record| record.iccid.clone());
        let mut firmware = record.as_ref().and_then(|record| record.firmware.clone());
        let mut status = match (live, &record) {
            (Some((mut status, live)), record) => {
                iccid = live.iccid().or(iccid);
                firmware = live.firmware().or(firmware);
                // Of a device that another instance has, these are as that one stored them last.
                if let Some(entry) = live.local() {
                    imei = entry.imei().or(imei);
                    module_version = entry.module_version().or(module_version);
                    host_type = entry.host_type().or(host_type);
                    host = entry.host().as_deref().cloned().or(host);
                }
                if let Some(record) = record {
                    status.signal = status.signal.or(record.signal);
                    status.last_seen_at = status.last_seen_at.or_else(|| record.last_seen_at.map(Rfc3339));
                    status.connected_at = status.connected_at.or_else(|| record.connected_at.map(Rfc3339));
                }
                if status.ports.is_empty() {
                    status.ports = stored_ports.iter().map(|port| PortObject::new(port, None)).collect();
                }
                status
            }
            (None, Some(record)) => Status::stored(record, stored_ports),
            (None, None) => return None,
        };
        for port in &mut status.ports {
            let holder = active.iter().find(|order| order.port_no == port.port_no);
            port.order_no = holder.map(|order| order.order_no).or(port.order_no);
        }
        Some(Self {
            device_id: status.device_id,
            protocol: status.protocol,
            printed_no: record.and_then(|record| record.printed_no),
            online: status.online,
            score: status.score,
            score_parts: status.score_parts,
            last_seen_at: status.last_seen_at,
            connected_at: status.connected_at,
            instance: status.instance,
            signal: status.signal,
            firmware,
            iccid,
            name: details.name,
            extensions: details.extensions,
            imei,
            module_version,
            host_type,
            fsk_frequency: details.fsk_frequency,
            host,
            ports: status.ports,
            active_orders: active.into_iter().map(OrderBody).collect(),
        })
    }
}

/// What the store knows of a device.
struct Stored {
    record: Option<DeviceRecord>,
    ports: Vec<PortRecord>,
    active: Vec<Order>,
}

impl Stored {
    /// Ports are read only where `live` has none.
    fn read(
        reader: &mut dyn Reader,
        device_id: DeviceId,
        record: Option<DeviceRecord>,
        live: Option<&Live>,
    ) -> Result<Self, ApiError> {
        let active = reader.active_orders(device_id)?;
        let known = live.is_some_and(|live| !live.ports().is_empty());
        let ports = if known { Vec::new() } else { reader.ports(device_id)? };
        Ok(Self { record, ports, active })
    }

    /// The device, with what is known of it live.
    fn with(self, api: &Api, live: Option<&Live>) -> Option<DeviceObject> {
        let live = live.map(|live| (Status::live(api, live, now().unix_ms), live));
        DeviceObject::new(live, self.record, &self.ports, self.active)
    }
}

/// One device with its ports and active orders.
pub(super) fn one(device_id: DeviceId) -> Next {
    located(device_id, move |api, live| {
        let api = Arc::clone(api);
        Ok(reading(move |reader| {
            let record = reader.device(device_id)?;
            let stored = Stored::read(reader, device_id, record, live.as_ref())?;
            stored.with(&api, live.as_ref()).ok_or_else(|| no_device(device_id))
        }))
    })
}

/// The live status. The store is asked only for devices that no instance has told of.
pub(super) fn status(device_id: DeviceId) -> Next {
    located(device_id, move |_, live| {
        let Some(live) = live else {
            return Ok(reading(move |reader| {
                let record = reader.device(device_id)?.ok_or_else(|| no_device(device_id))?;
                Ok(Status::stored(&record, &reader.ports(device_id)?))
            }));
        };
        Ok(Box::new(move |call| {
            let status = Status::live(call.api(), &live, now().unix_ms);
            call.success(200, &status);
        }))
    })
}

/// A page of devices by id.
pub(super) fn list(api: &Arc<Api>, query: &Query<'_>) -> Result<Next, ApiError> {
    let page = query.page()?;
    let online: Option<bool> = query.parsed("online", "true or false")?;
    let protocol = match query.value("protocol") {
        None => None,
        Some(word) => Some(Protocol::from_word(word).ok_or_else(|| {
            let words = Protocol::ALL.map(Protocol::as_str).join(", ");
            ApiError::invalid(format!("protocol must be one of {words}, got {word:?}"))
        })?),
    };
    let mut filter = DeviceFilter {
        protocol,
        printed_no: query.parsed("printed_no", "a number in 0..=4294967295")?,
        search: query.value("search").map(search).transpose()?,
        ..DeviceFilter::default()
    };
    match online {
        // What others have is known to all by the store alone, a few seconds late.
        Some(online) if api.whereabouts.is_shared() => filter.online = Some((online, now().unix_ms)),
        Some(true) => filter.among = Some(online_devices(api)),
        Some(false) => filter.except = Some(online_devices(api)),
        None => {}
    }
    Ok(Box::new(move |call| {
        read(call, move |call, reader| {
            let api = Arc::clone(call.api());
            match reader.and_then(|reader| Rows::read(&api, reader, &filter, page)) {
                Ok(rows) => rows.answer(&api, call, page),
                Err(error) => call.error(&error),
            }
        });
    }))
}

/// What somebody remembers of a device: the beginning of its id, part of its name, or its printed number.
fn search(text: &str) -> Result<String, ApiError> {
    if (1..=SEARCH_LEN_MAX).contains(&text.chars().count()) {
        return Ok(text.to_owned());
    }
    Err(ApiError::invalid(format!("search must be 1 to {SEARCH_LEN_MAX} characters, got {}", text.chars().count())))
}

/// A page of devices as the store has them, each with what this instance has of it.
struct Rows {
    devices: Vec<(DeviceId, Stored, Option<Live>)>,
    total: u64,
}

impl Rows {
    fn read(api: &Api, reader: &mut dyn Reader, filter: &DeviceFilter, page: Page) -> Result<Self, ApiError> {
        let found = reader.devices(filter, page.page, page.size)?;
        let row = |record: DeviceRecord| {
            let device_id = record.device_id;
            let live = api.whereabouts.here(device_id);
            Ok((device_id, Stored::read(reader, device_id, Some(record), live.as_ref())?, live))
        };
        let devices = found.rows.into_iter().map(row).collect::<Result<_, ApiError>>()?;
        Ok(Self { devices, total: found.total })
    }

    /// Asks the mirror for those that are not here, and answers.
    fn answer(mut self, api: &Arc<Api>, call: Call, page: Page) {
        let elsewhere = self.devices.iter().filter(|(.., live)| live.is_none());
        let elsewhere: Vec<DeviceId> = elsewhere.map(|(device_id, ..)| *device_id).collect();
        let asking = Arc::clone(api);
        let api = Arc::clone(api);
        asking.whereabouts.find_elsewhere(elsewhere, move |found| {
            let mut found: FxHashMap<DeviceId, Live> = match found {
                Ok(found) => found.into_iter().map(|live| (live.device_id(), live)).collect(),
                Err(error) => return call.error(&error.into()),
            };
            let mut items = Vec::with_capacity(self.devices.len());
            for (device_id, stored, live) in self.devices.drain(..) {
                items.extend(stored.with(&api, live.or_else(|| found.remove(&device_id)).as_ref()));
            }
            call.success(200, &List::new(items, self.total, page));
        });
    }
}

/// Of one instance alone, memory decides who is online, and knows it to the millisecond.
fn online_devices(api: &Api) -> Vec<DeviceId> {
    let unix_ms = now().unix_ms;
    let mut online = Vec::new();
    api.directory.visit(|entry| {
        if entry.score(unix_ms).online() {
            online.push(entry.device_id());
        }
    });
    online
}
