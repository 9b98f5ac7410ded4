//! A host: one connection for up to 50 chargers, and an id of its own (host-server protocol v2.9).
//!
//! ```text
//! connect ─> ICCID, 0x12, 0x11, 0x17, 0x35, then each charger's 0x20, 0x22, 0x21
//!            0x12 every 3 min until answered, then every 12 h; 0x11 and 0x17 every 30 min
//!            0x3B after 30 s, then every 2 h, answered by 0x3A
//! 0xFA trigger ─> packet 0 ─> packets ─> restart with the new version          F9 hosts: packets at once
//! 0xE2 ─> image for the chargers, which restart with the new version
//! ```
//!
//! Frames go by the id in them. A charger that restarts leaves the connection for 4 s; the connection stays. When 0x35 is
//! sent is not documented: here with each connect, and on demand.

use std::fmt;

use chargegate::protocol::ap3000::body::{
    Body, FskParams, FskRequest, HostHeartbeat, HostOta, HostStatus, OtaPacket, OtaReply, ServerAddress,
    SubDeviceVersions,
};
use chargegate::protocol::ap3000::codes::UpdateResult;
use chargegate::protocol::ap3000::encode::{self, Header};
use chargegate::protocol::ap3000::update::update_path;
use chargegate::protocol::ap3000::wire::{Extra, SubDeviceType, SubDeviceTypes, Text};
use chargegate::protocol::ap3000::{Frame, Item, PhyId, decode_body, deframe};
use chargegate::protocol::{Direction, Step};

use super::commands::{Taken, ask_for_first, take_packet};
use super::firmware::{ASK_EVERY_US, Accepts, Update};
use super::line::Line;
use super::model::{Fault, Faults};
use super::{
    Ap3000Device, LINK_AFTER_US, MODULE_EVERY_US, Model, NEVER, Request, SECOND_US, TIME_AGAIN_US, TIME_RETRY_US,
    iccid, magics, numbered,
};
use crate::device::ledger::Ledger;
use crate::device::{Behaviour, Device, Event, Tail, earliest};

/// Most chargers behind a host.
pub const SUB_DEVICES_MAX: u8 = 50;

const BACK_AFTER_US: u64 = 4 * SECOND_US;
const RADIO_AFTER_US: u64 = 30 * SECOND_US;
const RADIO_EVERY_US: u64 = 2 * 3600 * SECOND_US;

/// A kind of host.
#[derive(Clone, Copy, Debug)]
pub struct HostModel {
    /// Magic of its frames.
    pub magic: [u8; 3],
    /// 0x09, or 0x0A with leakage protection.
    pub recognition_code: u8,
    /// Host type of 0x11.
    pub host_type: u8,
    /// Firmware as delivered, hundredths.
    pub fw_version: u16,
    /// Whether it asks for its radio parameters (0x3B).
    pub asks_for_radio: bool,
}

impl Default for HostModel {
    /// New LoRa host.
    fn default() -> Self {
        Self { magic: *b"DNY", recognition_code: 0x09, host_type: 0x03, fw_version: 501, asks_for_radio: true }
    }
}

impl HostModel {
    /// Old RS-485 host, updated by F9.
    pub fn legacy() -> Self {
        Self { host_type: 0x01, fw_version: 203, asks_for_radio: false, ..Self::default() }
    }
}

/// A host with its chargers; see the module.
#[derive(Debug)]
pub struct HostDevice {
    line: Line,
    index: u32,
    model: HostModel,
    fw_version: u16,
    frequency: u16,
    sub_ids: Vec<PhyId>,
    server: Option<(String, u16)>,
    status: HostStatus<'static>,
    subs: Vec<Sub>,
    clock: (u64, u32),
    connected: bool,
    registered: bool,
    heartbeat_us: u64,
    status_us: u64,
    own: Update,
    unified: Update,
    faults: Faults,
    tail: Tail,
    closing: Closing,
    close_told: bool,
}

#[derive(Debug)]
struct Sub {
    device: Ap3000Device,
    /// When a charger that restarts is back.
    back_us: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Closing {
    #[default]
    No,
    /// Only the communication module restarts.
    Module,
    Reboot,
    PowerCut,
}

impl HostDevice {
    /// The host with this index. Its chargers, at most [`SUB_DEVICES_MAX`], are the devices with the indexes behind it.
    pub fn new(index: u32, sub_devices: u8, ports: u8, behaviour: Behaviour) -> Self {
        Self::with_model(index, sub_devices, ports, behaviour, HostModel::default(), Model::default())
    }

    /// As [`new`](Self::new), of another kind.
    pub fn with_model(
        index: u32,
        sub_devices: u8,
        ports: u8,
        behaviour: Behaviour,
        model: HostModel,
        sub_model: Model,
    ) -> Self {
        let sub = |virtual_id: u8| {
            let device = Ap3000Device::with_model(
                index + u32::from(virtual_id),
                ports,
                behaviour,
                Model {
                    // The magic is the connection's, and the module the host's.
                    magic: model.magic,
                    module: false,
                    ..sub_model
                },
            );
            Sub { device: Ap3000Device { virtual_id, ..device }, back_us: NEVER }
        };
        Self {
            line: Line::new(model.magic, numbered(model.recognition_code, index)),
            index,
            model,
            fw_version: model.fw_version,
            frequency: if model.asks_for_radio { 470 } else { 0 },
            sub_ids: Vec::new(),
            server: None,
            status: HostStatus { breaker_state: 1, temp: 25, voltage: 2210, ..HostStatus::default() },
            subs: (1..=sub_devices.min(SUB_DEVICES_MAX)).map(sub).collect(),
            clock: (0, 0),
            connected: false,
            registered: false,
            heartbeat_us: NEVER,
            status_us: NEVER,
            own: Update::default(),
            unified: Update::default(),
            faults: Faults::default(),
            tail: Tail::default(),
            closing: Closing::No,
            close_told: false,
        }
    }

    /// Its own id.
    pub const fn phy_id(&self) -> PhyId {
        self.line.phy_id
    }

    /// Its chargers.
    pub fn sub_devices(&self) -> impl Iterator<Item = &Ap3000Device> {
        self.subs.iter().map(|sub| &sub.device)
    }

    /// A charger by its place, counted from 0.
    pub fn sub_device(&mut self, at: usize) -> Option<&mut Ap3000Device> {
        self.subs.get_mut(at).map(|sub| &mut sub.device)
    }

    /// Firmware version as in 0x11, hundredths.
    pub const fn fw_version(&self) -> u16 {
        self.fw_version
    }

    /// The last image for the host itself that was received to its end.
    pub fn firmware(&self) -> &[u8] {
        &self.own.image
    }

    /// The image for the chargers that it stores.
    pub fn sub_firmware(&self) -> &[u8] {
        &self.unified.image
    }

    /// Name and port of 0x34. The host stays where it is.
    pub fn server(&self) -> Option<(&str, u16)> {
        self.server.as_ref().map(|(name, port)| (name.as_str(), *port))
    }

    /// Radio frequency in MHz; 0 = none.
    pub const fn frequency(&self) -> u16 {
        self.frequency
    }

    /// The chargers of the last 0x3A.
    pub fn radio_sub_ids(&self) -> &[PhyId] {
        &self.sub_ids
    }

    /// The host's clock in Unix seconds, counted from 0 until the server gave it the time.
    pub fn unix_s(&self, now_us: u64) -> u32 {
        let since_s = now_us.saturating_sub(self.clock.0) / SECOND_US;
        self.clock.1.saturating_add(u32::try_from(since_s).unwrap_or(u32::MAX))
    }

    /// Makes something go wrong the next time there is an occasion, with the host itself.
    pub fn set_fault(&mut self, fault: Fault) {
        self.faults.add(fault);
    }

    /// What 0x17 says from now on: at once if there is a connection, then every 30 min.
    pub fn set_status(&mut self, now_us: u64, status: HostStatus<'static>) {
        self.status = status;
        if self.connected {
            self.send_status(now_us);
        }
    }

    /// Sends 0x35. False without a connection.
    pub fn report_versions(&mut self, now_us: u64) -> bool {
        if !self.connected {
            return false;
        }
        let mut types: Vec<SubDeviceType> = Vec::new();
        for device in self.subs.iter().map(|sub| &sub.device) {
            let this = SubDeviceType {
                device_type: device.model.device_type,
                reserved: 0,
                min_version: device.fw_version,
                phy_id: device.phy_id().as_u32(),
            };
            match types.iter_mut().find(|known| known.device_type == this.device_type) {
                Some(known) if this.min_version < known.min_version => *known = this,
                Some(_) => {}
                None => types.push(this),
            }
        }
        let (mut buffer, type_count) = (Vec::new(), u8::try_from(types.len()).unwrap_or(SUB_DEVICES_MAX));
        let versions =
            SubDeviceVersions { type_count, types: SubDeviceTypes::of(&mut buffer, types), extra: Extra::NONE };
        let header = self.line.header(now_us);
        self.line.write(&header, 0x35, &versions);
        true
    }

    /// Command of its own firmware packets.
    fn update_command(&self) -> u8 {
        let path = update_path(Some(self.model.host_type), self.model.recognition_code, self.fw_version / 100);
        path.map_or(0xfa, |path| path.command)
    }

    fn send(&mut self, now_us: u64, request: Request) {
        self.line.give_up(request);
        let (command, again_us) = match request {
            Request::HostTime => (0x12, TIME_RETRY_US),
            Request::HostUpdate => (0x15, NEVER),
            Request::HostRadio => {
                let header = self.line.header(now_us);
                let asked = FskRequest { frequency: self.frequency, extra: Extra::NONE };
                self.line.write(&header, 0x3b, &asked);
                return self.line.sent(now_us, request, header.msg_id, RADIO_EVERY_US);
            }
            _ => return,
        };
        let header = self.line.header(now_us);
        encode::empty(&mut self.line.out, &header, command);
        self.line.sent(now_us, request, header.msg_id, again_us);
    }

    fn send_heartbeat(&mut self, now_us: u64) {
        let iccid = iccid(self.index);
        let heartbeat = HostHeartbeat {
            fw_version: self.fw_version,
            rtc_module: 2,
            timestamp: self.unix_s(now_us),
            signal: 25,
            module_type: 6,
            iccid: Text::new(&iccid),
            host_type: Some(self.model.host_type),
            frequency: Some(self.frequency),
            imei: Text::new(b"860000000000000"),
            module_version: Text::new(b"sim"),
            extra: Extra::NONE,
        };
        let header = self.line.header(now_us);
        encode::host_heartbeat(&mut self.line.out, &header, &heartbeat);
        self.heartbeat_us = now_us.saturating_add(MODULE_EVERY_US);
    }

    fn send_status(&mut self, now_us: u64) {
        let header = self.line.header(now_us);
        encode::host_status(&mut self.line.out, &header, &self.status);
        self.status_us = now_us.saturating_add(MODULE_EVERY_US);
    }

    fn route(&mut self, now_us: u64, frame: &Frame<'_>) {
        if frame.phy_id == self.line.phy_id {
            return self.handle_frame(now_us, frame);
        }
        match self.subs.iter_mut().find(|sub| sub.device.phy_id() == frame.phy_id) {
            // A charger that restarts hears nothing.
            Some(sub) if sub.back_us == NEVER => sub.device.handle_frame(now_us, frame),
            Some(_) => {}
            None => self.line.events.push(Event::Malformed),
        }
    }

    fn handle_frame(&mut self, now_us: u64, frame: &Frame<'_>) {
        if self.closing == Closing::PowerCut {
            return;
        }
        if self.line.repeat(frame) {
            return;
        }
        let Ok(body) = decode_body(frame, Direction::Down) else {
            return self.line.events.push(Event::Malformed);
        };
        let (header, start) = (frame.header(), self.line.out.len());
        match (frame.command, &body) {
            (0x12, Body::TimeReply(time)) => {
                if self.line.answered(now_us, Request::HostTime, frame.msg_id, None) {
                    self.clock = (now_us, time.timestamp);
                    self.line.exchange(Request::HostTime).due_us = now_us.saturating_add(TIME_AGAIN_US);
                    if !std::mem::replace(&mut self.registered, true) {
                        self.line.events.push(Event::Registered);
                    }
                }
                return;
            }
            (0x15, Body::ResultReply(_)) => {
                self.line.answered(now_us, Request::HostUpdate, frame.msg_id, None);
                return;
            }
            (command, body) => {
                self.line.events.push(Event::Command);
                self.handle_command(now_us, &header, command, body);
            }
        }
        self.line.remember(frame, start);
        if self.faults.is(Fault::ReplyLost(frame.command)) {
            self.line.out.truncate(start);
        }
    }

    fn handle_command(&mut self, now_us: u64, header: &Header, command: u8, body: &Body<'_>) {
        let refused = self.faults.take(|fault| match fault {
            Fault::Refused(refused, result) if refused == command => Some(result),
            _ => None,
        });
        let refused_packet = |packet_no| {
            let result = UpdateResult(refused?);
            Some(OtaReply { result, packet_no, extra: Extra::NONE })
        };
        match body {
            Body::HostOta(HostOta::Packet(packet)) | Body::OtaPacket(packet) => {
                return match refused_packet(packet.packet_no) {
                    Some(reply) => self.line.write(header, command, &reply),
                    None => self.handle_packet(now_us, header, command, packet),
                };
            }
            Body::HostOta(HostOta::Trigger) => {
                if let Some(reply) = refused_packet(0) {
                    return self.line.write(header, command, &reply);
                }
                self.own.ask_us = now_us.saturating_add(ASK_EVERY_US);
                return ask_for_first(&mut self.line, header, command);
            }
            _ => {}
        }
        if let Some(result) = refused {
            return self.line.result(header, command, result);
        }
        match (command, body) {
            (0x31, Body::Empty(_)) => self.closing = Closing::Reboot,
            (0x32, Body::Empty(_)) => self.closing = Closing::Module,
            (0x33, Body::Empty(_)) => self.unified = Update::default(),
            (_, Body::ServerAddress(address)) => self.set_server(address),
            (_, Body::FskParams(params)) => self.set_radio(now_us, header.msg_id, params),
            // Commands for chargers.
            _ => return,
        }
        self.line.result(header, command, 0);
    }

    fn set_server(&mut self, address: &ServerAddress<'_>) {
        let name = String::from_utf8_lossy(address.server_addr.as_bytes()).into_owned();
        self.server = Some((name, address.server_port));
    }

    /// 0x3A, asked for or not.
    fn set_radio(&mut self, now_us: u64, msg_id: u16, params: &FskParams<'_>) {
        self.line.answered(now_us, Request::HostRadio, msg_id, None);
        self.frequency = params.frequency;
        self.sub_ids = params.sub_ids.iter().map(|id| PhyId(id.to_le_bytes())).collect();
    }

    /// FA or F9 for the host, E2 for its chargers.
    fn handle_packet(&mut self, now_us: u64, header: &Header, command: u8, packet: &OtaPacket<'_>) {
        let own = Accepts { device_type: self.model.host_type, fw_version: self.fw_version, wants_check_packet: false };
        let first = self.subs.first().map(|sub| &sub.device);
        let (update, accepts) = match (command, first) {
            (0xe2, Some(sub)) => {
                let (device_type, fw_version) = (sub.model.device_type, sub.fw_version);
                (&mut self.unified, Accepts { device_type, fw_version, wants_check_packet: true })
            }
            (command, _) if command == self.update_command() => (&mut self.own, own),
            _ => return,
        };
        match take_packet(&mut self.line, &mut self.faults, update, (now_us, *header, command), packet, accepts) {
            Taken::Kept => {}
            Taken::GaveUp => self.ask_for_update(now_us),
            Taken::PowerCut => {
                self.closing = Closing::PowerCut;
                self.line.out.clear();
            }
        }
    }

    fn ask_for_update(&mut self, now_us: u64) {
        self.own.ask_us = now_us.saturating_add(ASK_EVERY_US);
        if self.update_command() == 0xf9 {
            self.send(now_us, Request::HostUpdate);
        } else {
            let header = self.line.header(now_us);
            ask_for_first(&mut self.line, &header, 0xfa);
        }
    }

    fn update_timeout(&mut self, now_us: u64) {
        if self.own.install_us <= now_us {
            (_, self.fw_version) = self.own.install();
            if self.connected {
                self.closing = Closing::Reboot;
            } else {
                self.power_cycled(now_us);
            }
        } else if self.own.ask_us <= now_us && self.connected {
            self.ask_for_update(now_us);
        }
        if self.unified.install_us <= now_us {
            let (_, version) = self.unified.install();
            let device_type = self.subs.first().map(|sub| sub.device.model.device_type);
            for sub in self.subs.iter_mut().filter(|sub| Some(sub.device.model.device_type) == device_type) {
                sub.device.installed_by_host(now_us, version);
            }
        }
    }

    /// Takes the wishes of chargers to restart, and brings those back whose time has come.
    fn restart_subs(&mut self, now_us: u64) {
        for sub in &mut self.subs {
            if sub.device.poll_close() {
                // Its last words are out already.
                self.line.out.append(&mut sub.device.line.out);
                sub.device.disconnected(now_us);
                sub.back_us = now_us.saturating_add(BACK_AFTER_US);
            } else if sub.back_us <= now_us && self.connected {
                sub.back_us = NEVER;
                sub.device.connected(now_us);
            }
        }
    }

    /// The power is back.
    fn power_cycled(&mut self, now_us: u64) {
        self.line.power_cycled();
        self.clock = (now_us, 0);
        self.own.power_cycled(now_us);
        self.unified.power_cycled(now_us);
        // Nobody asks for an image of others again.
        self.unified.ask_us = NEVER;
    }

    fn link_us(&self) -> u64 {
        self.line.last_traffic_us.saturating_add(LINK_AFTER_US)
    }
}

impl Device for HostDevice {
    fn connected(&mut self, now_us: u64) {
        self.connected = true;
        self.line.last_traffic_us = now_us;
        encode::iccid(&mut self.line.out, &iccid(self.index));
        self.send(now_us, Request::HostTime);
        self.send_heartbeat(now_us);
        self.send_status(now_us);
        self.report_versions(now_us);
        if self.model.asks_for_radio {
            self.line.exchange(Request::HostRadio).due_us = now_us.saturating_add(RADIO_AFTER_US);
        }
        for sub in &mut self.subs {
            sub.back_us = NEVER;
            sub.device.connected(now_us);
        }
    }

    fn receive(&mut self, now_us: u64, bytes: &[u8]) {
        self.line.last_traffic_us = now_us;
        let magics = magics(self.line.magic);
        let mut tail = std::mem::take(&mut self.tail);
        tail.walk(bytes, |rest| match deframe(rest, &magics) {
            Step::Item { item, consumed } => {
                match item {
                    Item::Frame(frame) => self.route(now_us, &frame),
                    Item::Iccid(_) | Item::Link => self.line.events.push(Event::Malformed),
                }
                Some(consumed)
            }
            Step::Skip { consumed, .. } => {
                self.line.events.push(Event::Malformed);
                Some(consumed)
            }
            Step::NeedMore => None,
        });
        self.tail = tail;
        self.restart_subs(now_us);
    }

    fn timeout(&mut self, now_us: u64) {
        for sub in &mut self.subs {
            sub.device.timeout(now_us);
        }
        self.update_timeout(now_us);
        self.restart_subs(now_us);
        if !self.connected {
            return;
        }
        for request in [Request::HostTime, Request::HostRadio] {
            if self.line.exchange(request).due_us <= now_us {
                self.send(now_us, request);
            }
        }
        if self.heartbeat_us <= now_us {
            self.send_heartbeat(now_us);
        }
        if self.status_us <= now_us {
            self.send_status(now_us);
        }
        // Whatever a charger says is traffic too.
        let said = self.subs.iter().map(|sub| sub.device.line.last_traffic_us).max().unwrap_or_default();
        self.line.last_traffic_us = self.line.last_traffic_us.max(said);
        if self.link_us() <= now_us {
            encode::link(&mut self.line.out);
            self.line.last_traffic_us = now_us;
        }
    }

    fn poll_output(&mut self, out: &mut Vec<u8>) {
        out.append(&mut self.line.out);
        for sub in &mut self.subs {
            out.append(&mut sub.device.line.out);
        }
    }

    fn poll_timeout(&self) -> Option<u64> {
        let subs = self.subs.iter().filter_map(|sub| sub.device.poll_timeout());
        let updates = [&self.own, &self.unified];
        let updates =
            updates.map(|update| if self.connected { update.install_us.min(update.ask_us) } else { update.install_us });
        let connection = self.connected.then(|| {
            let back_us = self.subs.iter().map(|sub| sub.back_us).min().unwrap_or(NEVER);
            self.line.due_us().min(self.heartbeat_us).min(self.status_us).min(self.link_us()).min(back_us)
        });
        earliest(subs.chain(updates).chain(connection))
    }

    fn disconnected(&mut self, now_us: u64) {
        self.connected = false;
        self.registered = false;
        self.tail = Tail::default();
        self.line.lost();
        (self.heartbeat_us, self.status_us) = (NEVER, NEVER);
        for sub in self.subs.iter_mut().filter(|sub| sub.back_us == NEVER) {
            sub.device.disconnected(now_us);
        }
        self.close_told = false;
        if matches!(std::mem::take(&mut self.closing), Closing::Reboot | Closing::PowerCut) {
            self.power_cycled(now_us);
        }
    }

    fn poll_event(&mut self) -> Option<Event> {
        if let Some(event) = self.line.events.pop() {
            return Some(event);
        }
        // The connection registers once, with the host.
        let of_subs = self.subs.iter_mut().flat_map(|sub| std::iter::from_fn(|| sub.device.poll_event()));
        of_subs.into_iter().find(|event| *event != Event::Registered)
    }

    fn poll_close(&mut self) -> bool {
        self.connected && self.closing != Closing::No && !std::mem::replace(&mut self.close_told, true)
    }

    fn ledgers(&self, each: &mut dyn FnMut(&dyn fmt::Display, &Ledger)) {
        self.subs.iter().for_each(|sub| sub.device.ledgers(each));
    }
}
