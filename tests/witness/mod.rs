//! What a device saw: a simulated device whose bytes are read as they pass, to be compared with the store afterwards.
//!
//! Rules that need no store are judged on the spot and noted as [`Seen::faults`]:
//! - AP3000: all starts of one order carry one message id.
//! - BKV: a start does not come a second time unless the socket was asked for in between.

#![allow(dead_code, reason = "each test uses its part")]

pub(crate) mod audit;
pub(crate) mod books;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::{Arc, Mutex, MutexGuard},
};

use chargegate::{
    model::{DeviceId, OrderNo},
    protocol::{
        Direction, Step,
        ap3000::{
            self, Item, Magics,
            body::{Body as ApBody, ChargeControl},
            codes::StopReason,
        },
        bkv::{self, Body as BkvBody},
    },
};
use chargegate_loadtest::device::{Device, Event, charge::draw};

/// Reads and writes that are kept of a device.
const TRACE_MAX: usize = 200;

fn unix_ms() -> u128 {
    std::time::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_millis())
}

/// A sequence of draws from one seed.
#[derive(Clone, Debug)]
pub(crate) struct Draws(u64, u64);

impl Draws {
    pub(crate) const fn new(seed: u64) -> Self {
        Self(seed, 0)
    }

    /// Evenly in `0..below`.
    pub(crate) fn below(&mut self, below: u64) -> u64 {
        self.1 += 1;
        draw(self.0, &[self.1]) % below.max(1)
    }

    pub(crate) fn within(&mut self, from: u64, to: u64) -> u64 {
        from + self.below(to - from + 1)
    }

    pub(crate) fn percent(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

/// The record of a charge, as its device sends it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Record {
    pub(crate) device_id: String,
    pub(crate) port_no: u16,
    /// AP3000.
    pub(crate) order_no: Option<OrderNo>,
    /// BKV.
    pub(crate) business_no: Option<u16>,
    pub(crate) duration_seconds: u32,
    pub(crate) energy_wh: u32,
    /// The charge ran to an end of its own (AP3000; a BKV report does not tell).
    pub(crate) own_end: bool,
}

/// Everything a device saw.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    /// Records that the server acknowledged, in their order.
    pub(crate) acknowledged: Vec<Record>,
    sent: Option<Record>,
    /// Charges begun and not ended.
    pub(crate) running: usize,
    /// Records not acknowledged.
    pub(crate) unsettled: usize,
    pub(crate) started: usize,
    /// Start frames that came, copies included.
    pub(crate) starts: usize,
    /// Messages ids of starts: AP3000 by order, BKV by socket, hole and id, with whether the socket was asked for since.
    start_ids: BTreeMap<OrderNo, u16>,
    asked: BTreeMap<(u8, u8, u32), bool>,
    /// Message ids of commands to show where the device is (AP3000).
    pub(crate) located: BTreeSet<u16>,
    /// Rules broken.
    pub(crate) faults: Vec<String>,
    /// The device is switched on and the server answered.
    pub(crate) registered: bool,
    /// What passed last, a line for each read or write: Unix ms, direction, bytes.
    trace: VecDeque<String>,
}

impl Seen {
    /// Nothing is charged, and nothing waits to be settled.
    pub(crate) const fn is_quiet(&self) -> bool {
        self.running == 0 && self.unsettled == 0
    }

    /// For a person to read.
    pub(crate) fn trace(&self) -> impl Iterator<Item = &String> {
        self.trace.iter()
    }

    fn note(&mut self, what: &str, bytes: &[u8]) {
        if self.trace.len() == TRACE_MAX {
            self.trace.pop_front();
        }
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        self.trace.push_back(format!("{} {what} {hex}", unix_ms()));
    }

    /// Whether a start of this order came (AP3000).
    pub(crate) fn was_started(&self, order_no: OrderNo) -> bool {
        self.start_ids.contains_key(&order_no)
    }
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Shared(Arc<Mutex<Seen>>);

impl Shared {
    pub(crate) fn lock(&self) -> MutexGuard<'_, Seen> {
        self.0.lock().unwrap()
    }
}

/// A device and its witness.
pub(crate) struct Witness<D> {
    id: DeviceId,
    device: D,
    seen: Shared,
    events: VecDeque<Event>,
    tail: Vec<u8>,
}

impl<D: Device> Witness<D> {
    pub(crate) fn new(id: &str, device: D) -> (Self, Shared) {
        let seen = Shared::default();
        let id = id.parse().unwrap();
        let witness = Self { id, device, seen: seen.clone(), events: VecDeque::new(), tail: Vec::new() };
        (witness, seen)
    }

    /// What happened is taken before the next bytes are: an acknowledgement belongs to the record sent last.
    fn take_events(&mut self) {
        let mut seen = self.seen.lock();
        while let Some(event) = self.device.poll_event() {
            match event {
                Event::Registered => seen.registered = true,
                Event::ChargeStarted(_) => {
                    seen.running += 1;
                    seen.started += 1;
                }
                Event::ChargeEnded(_) => {
                    seen.running -= 1;
                    seen.unsettled += 1;
                }
                Event::Settled => {
                    seen.unsettled -= 1;
                    let record = seen.sent.take().expect("an acknowledged record was sent");
                    seen.acknowledged.push(record);
                }
                Event::Malformed => seen.faults.push(format!("{}: the server sent no frame", self.id)),
                Event::Sent(_)
                | Event::Answered(..)
                | Event::Unanswered(_)
                | Event::Command
                | Event::ChargeRefused(_)
                | Event::OfflineMode => {}
            }
            self.events.push_back(event);
        }
    }

    fn read_down(&mut self) {
        let (mut at, magics) = (0, Magics::default());
        while let Some(rest) = self.tail.get(at..).filter(|rest| !rest.is_empty()) {
            let mut seen = self.seen.lock();
            at += match self.id {
                DeviceId::Ap3000(_) => match ap3000::deframe(rest, &magics) {
                    Step::Item { item, consumed } => {
                        if let Item::Frame(frame) = item {
                            ap3000_down(&mut seen, &frame);
                        }
                        consumed
                    }
                    Step::Skip { consumed, .. } => consumed,
                    Step::NeedMore => break,
                },
                DeviceId::Gateway(_) => match bkv::deframe(rest) {
                    Step::Item { item, consumed } => {
                        bkv_down(&mut seen, &item);
                        consumed
                    }
                    Step::Skip { consumed, .. } => consumed,
                    Step::NeedMore => break,
                },
            };
        }
        self.tail.drain(..at);
    }

    fn read_up(&self, mut bytes: &[u8]) {
        let magics = Magics::default();
        while !bytes.is_empty() {
            let consumed = match self.id {
                DeviceId::Ap3000(_) => match ap3000::deframe(bytes, &magics) {
                    Step::Item { item, consumed } => {
                        if let Item::Frame(frame) = item {
                            self.ap3000_up(&frame);
                        }
                        consumed
                    }
                    Step::Skip { consumed, .. } => consumed,
                    Step::NeedMore => return,
                },
                DeviceId::Gateway(_) => match bkv::deframe(bytes) {
                    Step::Item { item, consumed } => {
                        self.bkv_up(&item);
                        consumed
                    }
                    Step::Skip { consumed, .. } => consumed,
                    Step::NeedMore => return,
                },
            };
            bytes = bytes.get(consumed..).unwrap_or_default();
        }
    }

    fn ap3000_up(&self, frame: &ap3000::Frame<'_>) {
        let Ok(ApBody::Settlement(body)) = ap3000::decode_body(frame, Direction::Up) else { return };
        self.seen.lock().sent = Some(Record {
            device_id: self.id.to_string(),
            port_no: u16::from(body.port) + 1,
            order_no: OrderNo::from_bytes(body.order_no.0),
            business_no: None,
            duration_seconds: u32::from(body.duration_s),
            energy_wh: u32::from(body.energy) * 10,
            own_end: body.stop_reason != StopReason::SERVER,
        });
    }

    fn bkv_up(&self, frame: &bkv::Frame<'_>) {
        let Ok(BkvBody::ChargeEnd(_, end)) = bkv::decode_body(frame) else { return };
        self.seen.lock().sent = Some(Record {
            device_id: self.id.to_string(),
            port_no: u16::from(end.block.socket.saturating_sub(1)) * 2 + u16::from(end.block.hole) + 1,
            order_no: None,
            business_no: Some(end.block.business_no),
            duration_seconds: u32::from(end.block.charged_min) * 60,
            energy_wh: u32::from(end.block.energy_wh),
            own_end: end.block.status == bkv::HoleStatus::QUOTA,
        });
    }
}

fn ap3000_down(seen: &mut Seen, frame: &ap3000::Frame<'_>) {
    let control = match ap3000::decode_body(frame, Direction::Down) {
        Ok(ApBody::ChargeControl(control)) => control,
        Ok(ApBody::LocateDevice(_)) => {
            seen.located.insert(frame.msg_id);
            return;
        }
        _ => return,
    };
    if control.charge_cmd != ChargeControl::START {
        return;
    }
    seen.starts += 1;
    let order_no = OrderNo::from_bytes(control.order_no.0).expect("a start names an order");
    let first = *seen.start_ids.entry(order_no).or_insert(frame.msg_id);
    if first != frame.msg_id {
        seen.faults.push(format!("{order_no} was started with message ids {first} and {}", frame.msg_id));
    }
}

fn bkv_down(seen: &mut Seen, frame: &bkv::Frame<'_>) {
    match bkv::decode_body(frame) {
        Ok(BkvBody::SocketQuery(_, query)) => {
            seen.asked
                .iter_mut()
                .filter(|((socket, ..), _)| *socket == query.socket)
                .for_each(|(_, asked)| *asked = true);
        }
        Ok(BkvBody::Start(_, start)) if start.switch == 1 => {
            seen.starts += 1;
            let copy = seen.asked.insert((start.socket, start.hole, frame.sequence), false);
            if copy == Some(false) {
                seen.faults.push(format!("start {} came twice, and nobody asked in between", frame.sequence));
            }
        }
        _ => {}
    }
}

impl<D: Device> Device for Witness<D> {
    fn connected(&mut self, now_us: u64) {
        self.seen.lock().note("connected", &[]);
        self.device.connected(now_us);
        self.take_events();
    }

    fn receive(&mut self, now_us: u64, bytes: &[u8]) {
        self.seen.lock().note("down", bytes);
        self.tail.extend_from_slice(bytes);
        self.read_down();
        self.device.receive(now_us, bytes);
        self.take_events();
    }

    fn timeout(&mut self, now_us: u64) {
        self.device.timeout(now_us);
        self.take_events();
    }

    fn poll_output(&mut self, out: &mut Vec<u8>) {
        let start = out.len();
        self.device.poll_output(out);
        if out.len() > start {
            self.seen.lock().note("up", &out[start..]);
        }
        self.read_up(&out[start..]);
    }

    fn poll_timeout(&self) -> Option<u64> {
        self.device.poll_timeout()
    }

    fn disconnected(&mut self, now_us: u64) {
        self.tail.clear();
        self.device.disconnected(now_us);
        self.seen.lock().registered = false;
        self.take_events();
    }

    fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    fn poll_close(&mut self) -> bool {
        self.device.poll_close()
    }
}
