//! A BKV gateway with its sockets (integration guide V1.7; delays as seen in the field).
//!
//! ```text
//! connect ─ 2 s ─> heartbeat ─ 0.4 s ─> 1013          heartbeat every 60 s
//! 07, 17, 1007 start ─> reply with a business number ─ 0.5 s ─> 1017
//! 0B swipe ─> 0B order ─> 0F confirmation ─ 0.5 s ─> 1017
//! end ─> 02, 18, 0C or 1004 ── acknowledged ─ 1 s ─> 1017 with status 80
//!                           └─ three tries 10.5 s apart, 17 s later close; after the reconnect all over again
//! 0007 ─ 20 s ─> close; after the reconnect the heartbeat has another firmware
//! ```
//!
//! - Without sockets the device is standalone: socket 0 with two holes. A network list (08, 09, 0A) replaces that.
//! - 1D is answered by 1C, or as the options say. 1017 comes on changes and every 5 min, divided by the time factor while
//!   something charges.
//! - End reports go one at a time, because their acknowledgement names the socket only. A socket out of radio reach
//!   charges on, and its report waits until it is back.
//! - The device learns the time from heartbeat replies.
//!
//! | part | what it holds |
//! |---|---|
//! | [`charging`] | charges and their end reports |
//! | [`fees`] | prices by time of day |
//! | [`cards`] | card swipes, balances |
//! | [`commands`] | what each command does; exceptions, download |

mod cards;
mod charging;
mod commands;
mod fees;

use std::collections::VecDeque;
use std::fmt;

use chargegate::protocol::Step;
use chargegate::protocol::bkv::body::Period;
use chargegate::protocol::bkv::clock::DeviceTime;
use chargegate::protocol::bkv::command::packet_sub;
use chargegate::protocol::bkv::device::{self, Socket as SocketBody};
use chargegate::protocol::bkv::packet::{Event as EventBody, Packet, PacketHeader, Params};
use chargegate::protocol::bkv::report::HoleBlock;
use chargegate::protocol::bkv::{GatewayId, HoleStatus, deframe};

use super::charge::End;
use super::ledger::Ledger;
use super::{Behaviour, Device, Event, Events, Exchange, NEVER, Request, SECOND_US, Tail, Waiting, earliest};
use charging::{Record, Running, saturate};

pub use cards::{Swipe, SwipeState};
pub use commands::{Download, Trouble};

/// Most sockets a gateway can have.
pub const SOCKETS_MAX: u8 = 250;
/// Gateway id of device 0, as a number.
const FIRST_ID: u64 = 82_200_520_000_000;

const FIRST_HEARTBEAT_US: u64 = 2 * SECOND_US;
const TIMED_EVENT_US: u64 = SECOND_US * 2 / 5;
const PUSH_AFTER_START_US: u64 = SECOND_US / 2;
const PUSH_AFTER_END_US: u64 = SECOND_US;
const PUSH_EVERY_S: u64 = 300;
const END_AGAIN_US: u64 = SECOND_US * 21 / 2;
const END_TRIES: u8 = 3;
const CLOSE_AFTER_US: u64 = 17 * SECOND_US;
/// The simulated FTP server is slow.
const DOWNLOAD_US: u64 = 20 * SECOND_US;
/// A charge without load ends after this many seconds.
const NO_LOAD_S: u32 = 60;
/// Longest charge without an ordered time.
const DURATION_MAX_S: u32 = 36_000;
/// Pushes whose answer is awaited; an older one counts as unanswered.
const PUSHES_MAX: usize = 512;
const SOCKET_FW: [u8; 2] = [0x50, 0x36];
const TEMP_C: u8 = 28;
const RADIO: u8 = 0x1a;

/// The gateway id of a simulated device.
pub const fn gateway_id(index: u32) -> GatewayId {
    let mut id = [0; 7];
    let mut rest = FIRST_ID + index as u64;
    let mut at = id.len();
    while at > 0 {
        at -= 1;
        // Two decimal digits a byte.
        id[at] = (((rest / 10 % 10) << 4) | (rest % 10)) as u8;
        rest /= 100;
    }
    GatewayId(id)
}

/// Points on which gateways, or readings of the guide, differ.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// What answers 1D.
    pub query_reply: QueryReply,
    /// The time of a card order counts seconds, as its example in the guide suggests, not minutes.
    pub card_time_in_seconds: bool,
}

/// What answers a socket query.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum QueryReply {
    /// Sub-command 1C, as in the guide's frame.
    #[default]
    Sub1C,
    /// Sub-command 1D, as in the guide's text.
    Sub1D,
    /// A push, as in the field.
    Push,
}

/// Something that goes wrong, once, the next time there is an occasion. Commands are named by sub-command: 07, 17, 08,
/// 09, 0A, 0B, 1B, 1D, 1007, 1011, 1012.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The reply to this command gets lost; the command is carried out.
    ReplyLost(u16),
    /// This command is not carried out, and its reply says so.
    Refused(u16),
    /// A firmware file cannot be fetched.
    DownloadFails,
}

#[derive(Debug, Default)]
struct Faults(Vec<Fault>);

impl Faults {
    /// Whether this fault waited; it is over now.
    fn is(&mut self, fault: Fault) -> bool {
        let at = self.0.iter().position(|waiting| *waiting == fault);
        at.map(|at| self.0.remove(at)).is_some()
    }

    fn is_refused(&mut self, sub: u16) -> bool {
        self.is(Fault::Refused(sub))
    }
}

/// A gateway; see the module.
#[derive(Debug)]
pub struct BkvDevice {
    gateway_id: GatewayId,
    index: u32,
    behaviour: Behaviour,
    options: Options,
    sockets: Vec<Socket>,
    connected: bool,
    registered: bool,
    /// The server's clock when a heartbeat was last answered: our time, Unix seconds.
    clock: Option<(u64, i64)>,
    next_business_no: u16,
    /// Counts firmware updates.
    fw_minor: u16,
    heartbeat: Exchange,
    timed_event: Exchange,
    settlement: Exchange,
    balance_query: Exchange,
    exception: Exchange,
    tries: u8,
    pushes: VecDeque<u64>,
    records: VecDeque<Record>,
    swipes: Vec<Swipe>,
    balance: Option<([u8; 6], u32)>,
    /// Exceptions to be acknowledged, and how often each was sent.
    troubles: VecDeque<(Trouble, u8)>,
    download: Option<Download>,
    faults: Faults,
    ledger: Ledger,
    tail: Tail,
    out: Vec<u8>,
    events: Events,
    closing: bool,
}

#[derive(Debug)]
struct Socket {
    number: u8,
    mac: [u8; 6],
    /// Whether the gateway hears it.
    online: bool,
    holes: [Hole; 2],
    push_us: u64,
    params: Params,
    voice: Option<Voice>,
}

#[derive(Debug)]
struct Hole {
    plugged: bool,
    charges: u32,
    running: Option<Box<Running>>,
}

/// The voice window of a socket (1B).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Voice {
    /// Whether the buzzer is on inside the periods.
    pub buzzer: bool,
    /// Whether the voice is on inside the periods.
    pub voice: bool,
    /// At most two.
    pub periods: Vec<Period>,
}

impl BkvDevice {
    /// The device with this index: standalone with `sockets` 0, else with sockets 1 to `sockets` (at most
    /// [`SOCKETS_MAX`]) already in its network list.
    pub fn new(index: u32, sockets: u8, behaviour: Behaviour) -> Self {
        Self::with_options(index, sockets, behaviour, Options::default())
    }

    /// As [`new`](Self::new), with other readings of the guide.
    pub fn with_options(index: u32, sockets: u8, behaviour: Behaviour, options: Options) -> Self {
        let numbers = if sockets == 0 { 0..=0 } else { 1..=sockets.min(SOCKETS_MAX) };
        Self {
            gateway_id: gateway_id(index),
            index,
            behaviour,
            options,
            sockets: numbers.map(|number| Socket::new(number, index, &behaviour)).collect(),
            connected: false,
            registered: false,
            clock: None,
            next_business_no: 1,
            fw_minor: 0,
            heartbeat: Exchange::IDLE,
            timed_event: Exchange::IDLE,
            settlement: Exchange::IDLE,
            balance_query: Exchange::IDLE,
            exception: Exchange::IDLE,
            tries: 0,
            pushes: VecDeque::new(),
            records: VecDeque::new(),
            swipes: Vec::new(),
            balance: None,
            troubles: VecDeque::new(),
            download: None,
            faults: Faults::default(),
            ledger: Ledger::default(),
            tail: Tail::default(),
            out: Vec::new(),
            events: Events::default(),
            closing: false,
        }
    }

    /// Its id.
    pub const fn gateway_id(&self) -> GatewayId {
        self.gateway_id
    }

    /// End reports that the server has not acknowledged.
    pub fn unsettled(&self) -> usize {
        self.records.len()
    }

    /// Its charges.
    pub const fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// Status of a hole, `None` if there is no such socket.
    pub fn hole_status(&self, socket: u8, hole: u8) -> Option<HoleStatus> {
        let socket = self.sockets.iter().find(|known| known.number == socket)?;
        socket.holes.get(usize::from(hole)).map(|hole| socket.status(hole))
    }

    /// Numbers and MACs of the network list; number 0 is the standalone socket.
    pub fn sockets(&self) -> impl Iterator<Item = (u8, [u8; 6])> {
        self.sockets.iter().map(|socket| (socket.number, socket.mac))
    }

    /// The voice window of a socket, if one was set.
    pub fn voice(&self, socket: u8) -> Option<&Voice> {
        self.sockets.iter().find(|known| known.number == socket)?.voice.as_ref()
    }

    /// The firmware that was last to be fetched.
    pub const fn last_download(&self) -> Option<&Download> {
        self.download.as_ref()
    }

    /// Firmware as in the heartbeat.
    pub fn firmware_name(&self) -> String {
        format!("sim1.{}", self.fw_minor)
    }

    /// Makes something go wrong the next time there is an occasion. Faults of the same occasion add up, in order.
    pub fn set_fault(&mut self, fault: Fault) {
        self.faults.0.push(fault);
    }

    /// Plugs a charger into a hole; a charge that began without load stays without.
    pub fn plug(&mut self, socket: u8, hole: u8) {
        if let Some(hole) = self.hole_mut(socket, hole) {
            hole.plugged = true;
        }
    }

    /// Pulls the charger out of a hole, which ends a running charge.
    pub fn unplug(&mut self, now_us: u64, socket: u8, hole: u8) {
        self.end_charge(now_us, socket, hole, End::Unplugged);
        if let Some(hole) = self.hole_mut(socket, hole) {
            hole.plugged = false;
        }
    }

    /// Takes a socket out of radio reach, or brings it back.
    pub fn set_online(&mut self, now_us: u64, number: u8, online: bool) {
        let Some(socket) = self.sockets.iter_mut().find(|socket| socket.number == number) else { return };
        if socket.online != online {
            socket.online = online;
            socket.push_us = now_us;
            if self.settlement.due_us == NEVER && self.next_record().is_some() {
                self.settlement.due_us = now_us;
            }
        }
    }

    fn voltage_dv(&self) -> u16 {
        2200 + u16::try_from(self.index % 60).unwrap_or_default()
    }

    fn exchange(&mut self, request: Request) -> &mut Exchange {
        match request {
            Request::Heartbeat => &mut self.heartbeat,
            Request::TimedEvent => &mut self.timed_event,
            Request::Balance => &mut self.balance_query,
            Request::Exception => &mut self.exception,
            _ => &mut self.settlement,
        }
    }

    /// Notes that a request went out. BKV reports carry no number, so an answer belongs to the last copy.
    fn sent(&mut self, now_us: u64, request: Request, again_us: u64) {
        let due_us = now_us.saturating_add(again_us);
        let waiting = Some(Waiting { msg_id: 0, sent_us: now_us });
        let before = std::mem::replace(self.exchange(request), Exchange { due_us, waiting });
        if before.waiting.is_some() {
            self.events.push(Event::Unanswered(request));
        }
        self.events.push(Event::Sent(request));
    }

    fn answered(&mut self, now_us: u64, request: Request) -> bool {
        let Some(waiting) = self.exchange(request).waiting.take() else { return false };
        self.events.push(Event::Answered(request, now_us.saturating_sub(waiting.sent_us)));
        true
    }

    fn send_heartbeat(&mut self, now_us: u64) {
        let iccid = "89860448160000000000";
        let firmware = self.firmware_name();
        device::heartbeat(&mut self.out, self.gateway_id, iccid, &firmware, 31);
        let first = self.heartbeat.waiting.is_none() && !self.registered;
        let again_us = self.behaviour.heartbeat_us;
        let again_us = if first { self.behaviour.first_interval(again_us, self.index) } else { again_us };
        self.sent(now_us, Request::Heartbeat, again_us);
    }

    /// 1013, as the field's devices send it; its tag 5A is not explained.
    fn send_timed_event(&mut self, now_us: u64) {
        let event = EventBody {
            packet: Packet::new(packet_sub::EVENT, PacketHeader::new(0, self.gateway_id)),
            socket: Some(self.sockets.first().map_or(0, |socket| socket.number)),
            hole: Some(0x7f),
            event_time: Some(DeviceTime::from_unix(self.unix_s(now_us))),
            tag_5a: Some(1),
        };
        device::event(&mut self.out, self.gateway_id, &event);
        self.sent(now_us, Request::TimedEvent, NEVER);
    }

    /// The server's time as far as the device knows it; 1970 before the first answer.
    fn unix_s(&self, now_us: u64) -> i64 {
        let Some((then_us, unix_s)) = self.clock else { return 0 };
        let since_s = now_us.saturating_sub(then_us) / SECOND_US;
        unix_s.saturating_add(i64::try_from(since_s).unwrap_or_default())
    }

    fn push(&mut self, now_us: u64, at: usize) {
        let voltage_dv = self.voltage_dv();
        let Some(socket) = self.sockets.get_mut(at) else { return };
        let every_us = if socket.is_charging() {
            self.behaviour.scaled(PUSH_EVERY_S).max(SECOND_US)
        } else {
            PUSH_EVERY_S * SECOND_US
        };
        socket.push_us = now_us.saturating_add(every_us);
        let holes = socket.blocks(now_us, voltage_dv);
        device::push(&mut self.out, self.gateway_id, &[socket.body(&holes)]);
        if self.pushes.len() == PUSHES_MAX {
            self.pushes.pop_front();
            self.events.push(Event::Unanswered(Request::StatusPush));
        }
        self.pushes.push_back(now_us);
        self.events.push(Event::Sent(Request::StatusPush));
    }

    fn push_by(&mut self, number: u8, push_us: u64) {
        if let Some(socket) = self.sockets.iter_mut().find(|socket| socket.number == number) {
            socket.push_us = socket.push_us.min(push_us);
        }
    }

    fn hole_mut(&mut self, socket: u8, hole: u8) -> Option<&mut Hole> {
        let socket = self.sockets.iter_mut().find(|known| known.number == socket)?;
        socket.holes.get_mut(usize::from(hole))
    }
}

impl Device for BkvDevice {
    fn connected(&mut self, now_us: u64) {
        self.connected = true;
        self.closing = false;
        self.tries = 0;
        let first_us = now_us.saturating_add(FIRST_HEARTBEAT_US);
        self.heartbeat.due_us = first_us;
        self.timed_event.due_us = first_us.saturating_add(TIMED_EVENT_US);
        // The first frame of a connection is a heartbeat.
        self.settlement.due_us = if self.next_record().is_none() { NEVER } else { first_us };
        self.exception.due_us = if self.troubles.is_empty() { NEVER } else { first_us };
        for socket in &mut self.sockets {
            let every_us = now_us.saturating_add(PUSH_EVERY_S * SECOND_US);
            socket.push_us = if socket.is_charging() { first_us } else { every_us };
        }
    }

    fn receive(&mut self, now_us: u64, bytes: &[u8]) {
        let mut tail = std::mem::take(&mut self.tail);
        tail.walk(bytes, |rest| match deframe(rest) {
            Step::Item { item, consumed } => {
                self.handle_frame(now_us, &item);
                Some(consumed)
            }
            Step::Skip { consumed, .. } => {
                self.events.push(Event::Malformed);
                Some(consumed)
            }
            Step::NeedMore => None,
        });
        self.tail = tail;
        if self.connected && self.settlement.due_us <= now_us {
            self.settle(now_us);
        }
    }

    fn timeout(&mut self, now_us: u64) {
        self.charges_timeout(now_us);
        self.download_timeout(now_us);
        if !self.connected {
            return;
        }
        if self.heartbeat.due_us <= now_us {
            self.send_heartbeat(now_us);
        }
        if self.timed_event.due_us <= now_us {
            self.send_timed_event(now_us);
        }
        if self.settlement.due_us <= now_us {
            self.settle(now_us);
        }
        if self.exception.due_us <= now_us {
            self.send_exception(now_us);
        }
        self.give_up_swipes(now_us);
        for at in 0..self.sockets.len() {
            if self.sockets.get(at).is_some_and(|socket| socket.push_us <= now_us) {
                self.push(now_us, at);
            }
        }
    }

    fn poll_output(&mut self, out: &mut Vec<u8>) {
        out.append(&mut self.out);
    }

    fn poll_timeout(&self) -> Option<u64> {
        let charges = self.sockets.iter().flat_map(|socket| &socket.holes);
        let charges = charges.filter_map(|hole| hole.running.as_ref()).map(|running| running.charge.ends().0);
        let connection = self.connected.then(|| {
            let pushes = self.sockets.iter().map(|socket| socket.push_us).min().unwrap_or(NEVER);
            let own = [&self.heartbeat, &self.timed_event, &self.settlement, &self.exception];
            own.iter().map(|exchange| exchange.due_us).fold(pushes.min(self.swipes_due_us()), u64::min)
        });
        let download = self.download.as_ref().map(|download| download.done_us);
        earliest(charges.chain(download).chain(connection))
    }

    fn disconnected(&mut self, _now_us: u64) {
        self.connected = false;
        self.registered = false;
        self.tail = Tail::default();
        self.out.clear();
        for request in
            [Request::Heartbeat, Request::TimedEvent, Request::Settlement, Request::Balance, Request::Exception]
        {
            if self.exchange(request).waiting.take().is_some() {
                self.events.push(Event::Unanswered(request));
            }
        }
        self.give_up_swipes(NEVER);
        for _ in self.pushes.drain(..) {
            self.events.push(Event::Unanswered(Request::StatusPush));
        }
    }

    fn poll_event(&mut self) -> Option<Event> {
        self.events.pop()
    }

    fn poll_close(&mut self) -> bool {
        self.connected && std::mem::take(&mut self.closing)
    }

    fn ledgers(&self, each: &mut dyn FnMut(&dyn fmt::Display, &Ledger)) {
        each(&self.gateway_id, &self.ledger);
    }
}

impl Socket {
    fn new(number: u8, index: u32, behaviour: &Behaviour) -> Self {
        let hole =
            |hole| Hole { plugged: behaviour.plugged(index, port_no(number, hole).into()), charges: 0, running: None };
        Self {
            number,
            mac: [0; 6],
            online: true,
            holes: [hole(0), hole(1)],
            push_us: NEVER,
            params: PARAMS,
            voice: None,
        }
    }

    fn is_charging(&self) -> bool {
        self.holes.iter().any(|hole| hole.running.is_some())
    }

    fn blocks(&self, now_us: u64, voltage_dv: u16) -> [HoleBlock; 2] {
        [0, 1].map(|number: u8| {
            let hole = &self.holes[usize::from(number)];
            let idle = HoleBlock {
                hole: number,
                status: self.status(hole),
                business_no: 0,
                voltage_dv,
                power_dw: 0,
                current_ma: 0,
                energy_wh: 0,
                charged_min: 0,
            };
            hole.running.as_ref().map_or(idle, |running| HoleBlock {
                business_no: running.business_no,
                power_dw: running.charge.power_dw(),
                current_ma: running.charge.current_ma(voltage_dv),
                energy_wh: saturate(running.charge.energy_wh(now_us)),
                charged_min: saturate(running.charge.elapsed_s(now_us) / 60),
                ..idle
            })
        })
    }

    fn status(&self, hole: &Hole) -> HoleStatus {
        if self.online { hole.status() } else { HoleStatus(0) }
    }

    const fn body<'a>(&self, holes: &'a [HoleBlock]) -> SocketBody<'a> {
        SocketBody { socket: self.number, fw: SOCKET_FW, temp_c: TEMP_C, rssi: RADIO, holes }
    }
}

impl Hole {
    fn status(&self) -> HoleStatus {
        match &self.running {
            None => HoleStatus(0x80),
            Some(running) if running.charge.power_dw() == 0 => HoleStatus(0x98),
            Some(_) => HoleStatus(0x90),
        }
    }
}

/// The API's number of a hole: standalone holes are ports 1 and 2, as are those of socket 1.
fn port_no(socket: u8, hole: u8) -> u16 {
    u16::from(socket.saturating_sub(1)) * 2 + u16::from(hole) + 1
}

/// Parameters as delivered, in the manner of the guide's example.
const PARAMS: Params = Params {
    full_charge_delay_s: Some(3600),
    no_load_delay_s: Some(60),
    full_power_threshold_dw: Some(300),
    no_load_power_threshold_dw: Some(30),
    high_temp_threshold: Some(85),
    power_limit_dw: Some(10_000),
    max_charge_min: Some(600),
    overcurrent_limit_ma: Some(10_000),
    trickle_threshold_pct: Some(20),
    key_base_amount: Some(0),
    anti_pulse_time: Some(0),
    tags_98_to_9b: [Some(1), Some(0), Some(0), Some(0)],
};
