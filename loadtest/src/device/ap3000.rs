//! An AP3000 charger (device-server protocol v8.6), and a host of several.
//!
//! ```text
//! connect ─> ICCID, 0x20, 0x22, 0x21 in one go
//!            0x20 again every heartbeat interval, 0x22 every 3 min, until answered; 0x22 then every 12 h
//!            0x21 every interval; two without an answer within 15 s: offline mode, until the next answer
//!            `link` after 30 s without traffic
//! 0x82 start ─> reply, port state 1, 0x06 after 0.5 s and then every 5 min
//! end ─> port state 2 or 3, record kept; 0x03 after 2 s, again every 30 min and after each connect until acknowledged;
//!        records go one at a time, the next 1 min after an acknowledgement
//! ```
//!
//! Periods of minutes that belong to charges are divided by the time factor; the rest keeps its time. The document does
//! not say when the first 0x06 comes, so it comes soon, as from the field's BKV gateways. Records, charges and what the
//! server set outlive connection and power; numbering and the memory of commands outlive the connection only. A command
//! that comes again under its message id is answered by the same bytes and not carried out again.
//!
//! | part | what it holds |
//! |---|---|
//! | [`requests`] | registration, heartbeats, time, sending of records |
//! | [`charging`] | charges and their records |
//! | [`commands`] | what each command does |
//! | [`parameters`] | settings, EEPROM, texts |
//! | [`cards`], [`offline`] | card swipes; charges without the server |
//! | [`firmware`] | reception of an image |
//! | [`host`] | one connection for many chargers |
//! | [`cabinet`] | alarms, doors, occupied bays |
//! | [`model`] | kinds of charger, faults on demand |
//! | [`mod@line`] | numbering, requests that wait, replies to repeat |

mod cabinet;
mod cards;
mod charging;
mod commands;
mod firmware;
mod host;
mod line;
mod model;
mod offline;
mod parameters;
mod requests;

use std::collections::VecDeque;
use std::fmt;

use chargegate::protocol::Step;
use chargegate::protocol::ap3000::codes::PortState;
use chargegate::protocol::ap3000::encode;
use chargegate::protocol::ap3000::{Item, Magics, PhyId, deframe, frame};

use super::charge::End;
use super::ledger::Ledger;
use super::{Behaviour, Device, Event, Events, Exchange, NEVER, Request, SECOND_US, Tail, Waiting, earliest};
use cards::Reader;
use charging::{Record, Running};
use firmware::Update;
use line::Line;
use model::Faults;
use parameters::Panel;

pub use cards::{BALANCE_ONLY, Card, Swipe, SwipeState};
pub use host::{HostDevice, HostModel, SUB_DEVICES_MAX};
pub use model::{Fault, Heartbeats, Model};
pub use parameters::{EEPROM_LEN, Parameters};

/// Most ports of a charger.
pub const PORTS_MAX: u8 = 16;
/// Printed number of device 0. All of [`DEVICES_MAX`] fit into 24 bits, clear of the vendor's fallback numbers.
pub const FIRST_NUMBER: u32 = 15_000_000;
/// Most simulated devices.
pub const DEVICES_MAX: u32 = 1_777_216;

/// Dual socket, also used for more.
const RECOGNITION_CODE: u8 = 0x04;
/// Both sides wait this long for an answer.
const REPLY_TIMEOUT_US: u64 = 15 * SECOND_US;
const LINK_AFTER_US: u64 = 30 * SECOND_US;
const TIME_RETRY_US: u64 = 180 * SECOND_US;
const TIME_AGAIN_US: u64 = 12 * 3600 * SECOND_US;
const MODULE_EVERY_US: u64 = 1800 * SECOND_US;
const FIRST_REPORT_US: u64 = SECOND_US / 2;
const SETTLE_AFTER_US: u64 = 2 * SECOND_US;
const REPORT_EVERY_S: u64 = 300;
const SETTLE_AGAIN_S: u64 = 1800;
const NEXT_RECORD_S: u64 = 60;
/// A device that knows 0x01 only says no more after this many without an answer.
const LEGACY_HEARTBEATS_MAX: u8 = 3;
/// Raw 85 is 20 °C.
const AMBIENT_TEMP: u8 = 85;

/// The physical id of a simulated device.
pub const fn phy_id(index: u32) -> PhyId {
    numbered(RECOGNITION_CODE, index)
}

const fn numbered(recognition_code: u8, index: u32) -> PhyId {
    match PhyId::from_parts(recognition_code, FIRST_NUMBER + index % DEVICES_MAX) {
        Some(phy_id) => phy_id,
        None => panic!("the first number and the number of devices fit 24 bits"),
    }
}

/// A charger; see the module.
#[derive(Debug)]
pub struct Ap3000Device {
    line: Line,
    index: u32,
    model: Model,
    /// Its address behind a host; 0 = it has the connection for itself.
    virtual_id: u8,
    behaviour: Behaviour,
    heartbeat_us: u64,
    /// `None`: as delivered.
    parameters: Option<Box<Parameters>>,
    panel: Panel,
    fw_version: u16,
    power_board_version: u16,
    ports: Box<[Port]>,
    door_bits: u32,
    connected: bool,
    registered: bool,
    /// Heartbeats in a row without an answer.
    missed: u8,
    /// 0x01 still to be sent beside 0x21.
    legacy_left: u8,
    module_us: u64,
    /// Our time, and the Unix seconds it was then.
    clock: (u64, u32),
    records: VecDeque<Record>,
    /// Cabinets: records that wait for an empty bay.
    occupied: Vec<Record>,
    reader: Option<Box<Reader>>,
    update: Option<Box<Update>>,
    faults: Faults,
    ledger: Ledger,
    tail: Tail,
    closing: Closing,
    /// Whether the driver knows that the connection is to be closed.
    close_told: bool,
}

/// Why the connection is to be closed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Closing {
    #[default]
    No,
    /// What is written still goes out; then the power is off for a moment.
    Reboot,
    /// The power is off at once.
    PowerCut,
}

#[derive(Debug)]
struct Port {
    state: PortState,
    charges: u32,
    running: Option<Box<Running>>,
}

impl Ap3000Device {
    /// The device with this index and number of ports (1..=[`PORTS_MAX`]), switched on and without a connection.
    pub fn new(index: u32, ports: u8, behaviour: Behaviour) -> Self {
        Self::with_model(index, ports, behaviour, Model::default())
    }

    /// As [`new`](Self::new), of another kind.
    pub fn with_model(index: u32, ports: u8, behaviour: Behaviour, model: Model) -> Self {
        let port = |port: u8| Port {
            state: if behaviour.plugged(index, u64::from(port)) { PortState::PLUGGED } else { PortState::IDLE },
            charges: 0,
            running: None,
        };
        Self {
            line: Line::new(model.magic, numbered(model.recognition_code, index)),
            index,
            model,
            virtual_id: 0,
            behaviour,
            heartbeat_us: behaviour.heartbeat_us,
            parameters: None,
            panel: Panel::default(),
            fw_version: model.fw_version,
            power_board_version: model.power_board_version,
            ports: (0..ports.clamp(1, PORTS_MAX)).map(port).collect(),
            door_bits: 0,
            connected: false,
            registered: false,
            missed: 0,
            legacy_left: if model.heartbeats == Heartbeats::Both { LEGACY_HEARTBEATS_MAX } else { 0 },
            module_us: NEVER,
            clock: (0, 0),
            records: VecDeque::new(),
            occupied: Vec::new(),
            reader: None,
            update: None,
            faults: Faults::default(),
            ledger: Ledger::default(),
            tail: Tail::default(),
            closing: Closing::No,
            close_told: false,
        }
    }

    /// Its id.
    pub const fn phy_id(&self) -> PhyId {
        self.line.phy_id
    }

    /// Magic of its frames.
    pub const fn magic(&self) -> [u8; 3] {
        self.line.magic
    }

    /// State of a port counted from 0.
    pub fn port_state(&self, port: u8) -> Option<PortState> {
        self.ports.get(usize::from(port)).map(|port| port.state)
    }

    /// Puts a port (counted from 0) without a charge into a state, e.g. a fault.
    pub fn set_port_state(&mut self, port: u8, state: PortState) {
        if let Some(port) = self.ports.get_mut(usize::from(port))
            && port.running.is_none()
        {
            port.state = state;
        }
    }

    /// Whether two heartbeats in a row went unanswered.
    pub const fn is_offline(&self) -> bool {
        self.missed >= 2
    }

    /// Its charges.
    pub const fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// Firmware version as in 0x20, hundredths.
    pub const fn fw_version(&self) -> u16 {
        self.fw_version
    }

    /// Firmware version of the power board as in 0x20, hundredths; 0 = there is none.
    pub const fn power_board_version(&self) -> u16 {
        self.power_board_version
    }

    /// The last firmware image that was received to its end, padding included; empty if none was.
    pub fn firmware(&self) -> &[u8] {
        self.update.as_ref().map_or(&[], |update| &update.image)
    }

    /// Makes something go wrong the next time there is an occasion. Faults of the same occasion add up, in order.
    pub fn set_fault(&mut self, fault: Fault) {
        self.faults.add(fault);
    }

    /// Plugs a charger into an idle port (counted from 0).
    pub fn plug(&mut self, port: u8) {
        if let Some(port) = self.ports.get_mut(usize::from(port))
            && port.state == PortState::IDLE
        {
            port.state = PortState::PLUGGED;
        }
    }

    /// Pulls the charger out of a port (counted from 0), which ends a running charge and empties a bay.
    pub fn unplug(&mut self, now_us: u64, port: u8) {
        self.end_charge(now_us, port, End::Unplugged);
        self.vacate(now_us, port);
        if let Some(port) = self.ports.get_mut(usize::from(port)) {
            port.state = PortState::IDLE;
        }
    }

    /// Takes the power away for a moment: the connection closes, charges go on afterwards.
    pub fn cut_power(&mut self, now_us: u64) {
        if self.connected {
            self.closing = Closing::PowerCut;
            self.line.out.clear();
        } else {
            self.power_cycled(now_us);
        }
    }

    /// When the connection is to hear from its module.
    fn link_us(&self) -> u64 {
        if self.virtual_id > 0 { NEVER } else { self.line.last_traffic_us.saturating_add(LINK_AFTER_US) }
    }

    fn update_timeout(&mut self, now_us: u64) {
        let Some(update) = &mut self.update else { return };
        if update.install_us <= now_us {
            match update.install() {
                (0xe1, version) => {
                    self.power_board_version = version;
                    self.registration_changed(now_us);
                }
                (_, version) => {
                    self.fw_version = version;
                    self.closing = Closing::Reboot;
                    if !self.connected {
                        self.power_cycled(now_us);
                    }
                }
            }
        } else if update.ask_us <= now_us && self.connected {
            self.ask_for_update(now_us);
        }
    }

    /// The host distributed an image that it received: the charger restarts with it.
    fn installed_by_host(&mut self, now_us: u64, version: u16) {
        self.fw_version = version;
        if self.connected {
            self.closing = Closing::Reboot;
        } else {
            self.power_cycled(now_us);
        }
    }

    /// The power is back.
    fn power_cycled(&mut self, now_us: u64) {
        (self.closing, self.close_told) = (Closing::No, false);
        self.line.power_cycled();
        self.missed = 0;
        self.clock = (now_us, 0);
        self.panel = Panel::default();
        self.reader = None;
        for record in &mut self.records {
            record.first_msg_id = None;
        }
        if let Some(update) = &mut self.update {
            update.power_cycled(now_us);
        }
        self.confirm_again(now_us);
    }
}

impl Device for Ap3000Device {
    fn connected(&mut self, now_us: u64) {
        self.connected = true;
        self.line.last_traffic_us = now_us;
        if self.virtual_id == 0 {
            encode::iccid(&mut self.line.out, &iccid(self.index));
        }
        let modern = self.model.heartbeats != Heartbeats::Legacy;
        if !modern {
            self.missed = 0;
        }
        let module = self.model.module;
        for (request, sends) in [
            (Request::Registration, modern),
            (Request::Time, true),
            (Request::HostTime, module),
            (Request::Heartbeat, true),
        ] {
            if sends {
                self.send(now_us, request);
            }
        }
        if module {
            self.send_module(now_us);
        }
        let first_us = self.behaviour.first_interval(self.heartbeat_us, self.index);
        self.line.exchange(Request::Heartbeat).due_us = now_us.saturating_add(first_us);
        let due_us = if self.records.is_empty() { NEVER } else { now_us.saturating_add(SETTLE_AFTER_US) };
        self.line.exchange(Request::Settlement).due_us = due_us;
    }

    fn receive(&mut self, now_us: u64, bytes: &[u8]) {
        self.line.last_traffic_us = now_us;
        let magics = magics(self.line.magic);
        let mut tail = std::mem::take(&mut self.tail);
        tail.walk(bytes, |rest| match deframe(rest, &magics) {
            Step::Item { item, consumed } => {
                match item {
                    // A frame for another device is none of ours: one socket may carry many, but this one carries one.
                    Item::Frame(frame) if frame.phy_id == self.line.phy_id => self.handle_frame(now_us, &frame),
                    // Only modules greet and say `link`.
                    Item::Frame(_) | Item::Iccid(_) | Item::Link => self.line.events.push(Event::Malformed),
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
    }

    fn timeout(&mut self, now_us: u64) {
        self.charges_timeout(now_us);
        self.occupied_timeout(now_us);
        self.update_timeout(now_us);
        if !self.connected {
            return;
        }
        if self.heartbeat_deadline_us() <= now_us {
            self.give_up(Request::Heartbeat);
        }
        for request in Request::ALL {
            if self.line.exchanges[request.index()].due_us <= now_us {
                self.send(now_us, request);
            }
        }
        if self.module_us <= now_us {
            self.send_module(now_us);
        }
        if self.link_us() <= now_us {
            encode::link(&mut self.line.out);
            self.line.last_traffic_us = now_us;
        }
    }

    fn poll_output(&mut self, out: &mut Vec<u8>) {
        out.append(&mut self.line.out);
    }

    fn poll_timeout(&self) -> Option<u64> {
        let charges = self.ports.iter().filter_map(|port| port.running.as_deref()).map(|running| {
            let (ends_us, _) = running.charge.ends();
            if self.connected { ends_us.min(running.report_us) } else { ends_us }
        });
        let occupied = self.occupied.iter().map(|record| self.occupied_until_us(record));
        let update = self
            .update
            .iter()
            .map(|update| if self.connected { update.install_us.min(update.ask_us) } else { update.install_us });
        let connection = self
            .connected
            .then(|| self.line.due_us().min(self.heartbeat_deadline_us()).min(self.module_us).min(self.link_us()));
        earliest(charges.chain(occupied).chain(update).chain(connection))
    }

    fn disconnected(&mut self, now_us: u64) {
        self.connected = false;
        self.registered = false;
        self.tail = Tail::default();
        self.line.lost();
        self.confirms_lost();
        self.swipe_lost();
        self.module_us = NEVER;
        if self.closing != Closing::No {
            self.power_cycled(now_us);
        }
    }

    fn poll_event(&mut self) -> Option<Event> {
        self.line.events.pop()
    }

    fn poll_close(&mut self) -> bool {
        self.connected && self.closing != Closing::No && !std::mem::replace(&mut self.close_told, true)
    }

    fn ledgers(&self, each: &mut dyn FnMut(&dyn fmt::Display, &Ledger)) {
        each(&self.phy_id(), &self.ledger);
    }
}

/// A device knows its own magic only.
fn magics(own: [u8; 3]) -> Magics {
    Magics::new(&[own]).unwrap_or_default()
}

/// SIM number of a device: the country's prefix and the index.
fn iccid(index: u32) -> [u8; frame::ICCID_LEN] {
    let mut iccid = *b"89860448160000000000";
    let mut rest = index;
    for digit in iccid.iter_mut().rev().take(10) {
        *digit = b'0' + u8::try_from(rest % 10).unwrap_or_default();
        rest /= 10;
    }
    iccid
}
