//! A device as its owner shard keeps it: binding and session, ports, orders, the command lane.
//!
//! What the wire says arrives here already translated ([`PortReport`], replies, settlements) by the protocol adapters
//! [`super::ap3000`] and [`super::bkv`]; what is to be sent leaves through them. Who is online, what an order does next and when a
//! command may go out is the same for all protocols and is decided here.

mod cards;
mod clock;
mod commands;
mod orders;
mod ota;
mod ports;
mod session;

pub(super) use ota::OtaShare;

use std::{num::NonZeroI64, sync::Arc};

use smallvec::SmallVec;

pub(super) use cards::Asked;
use cards::PendingSwipe;

use super::{
    directory::{Entry, Owner, PortCell},
    few::Few,
    index::Identified,
    lane::Lane,
    slots::Key,
    track::Track,
};
use crate::model::{DeviceId, OrderNo, PortStatus, Protocol};

/// A bind that the store did not take is submitted again.
const BIND_RETRY_MS: u64 = 1_000;
/// In place of the time of the next try: the bind waits for room among the shard's jobs, which asks for it.
const BIND_WAITS: u64 = u64::MAX - 1;
/// An own question is pointless later.
const ASK_MS: u64 = 10_000;
/// How often a device that went away is looked at until it can be forgotten.
const GONE_MS: u64 = 1_000;
/// Of so many flushes of a device one carries all it told of itself, known or not: what a store lost with a crash is there again.
const FLUSHES_WHOLE: u8 = 32;
/// Ports of a device: 250 sockets of two holes.
const PORTS_MAX: usize = 500;
/// So long after a record that the store did not take, the same one may come again: a BKV/GN gateway sends it three times about
/// 10.5 s apart, closes 17 s after the last, and comes back 6 s later (gateway protocol guide, end reports; as seen in the field).
const RECORD_AGAIN_MS: u64 = 30_000;
/// So long after a record another one may follow, which waited behind it.
const RECORD_FOLLOWS_MS: u64 = 2_000;
/// An order number that no track knows is asked for in the store at most this often.
const UNKNOWN_ORDER_MS: u64 = 60_000;

/// What a report says about whether a port charges.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Charging {
    /// It does: charging evidence.
    Yes,
    /// It does not.
    No,
    /// The report does not say, or says neither.
    Unclear,
}

/// Which order a report is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum About {
    /// AP3000 order field that holds a number of ours.
    Order(OrderNo),
    /// AP3000 order field of an offline charge, or a foreign one.
    Foreign,
    /// BKV/GN business number, not 0.
    Business(u16),
    /// BKV/GN business number 0: for no order that has a number.
    NoOrder,
    /// Not said.
    Nothing,
}

/// A port's state as a report gives it. `None`: the report leaves it out.
#[derive(Clone, Copy, Debug)]
pub(super) struct PortReport {
    pub(super) port_no: u16,
    pub(super) socket: Option<u8>,
    pub(super) hole: Option<u8>,
    /// New status and raw byte.
    pub(super) status: Option<(PortStatus, u8)>,
    pub(super) voltage_dv: Option<u16>,
    pub(super) power_dw: Option<u16>,
    pub(super) current_ma: Option<u16>,
    pub(super) energy_wh: Option<u32>,
    pub(super) charged_seconds: Option<u32>,
    pub(super) charging: Charging,
    pub(super) about: About,
    /// The port's socket is offline (BKV/GN).
    pub(super) offline: bool,
}

impl PortReport {
    pub(super) const fn of_port(port_no: u16) -> Self {
        Self {
            port_no,
            socket: None,
            hole: None,
            status: None,
            voltage_dv: None,
            power_dw: None,
            current_ma: None,
            energy_wh: None,
            charged_seconds: None,
            charging: Charging::Unclear,
            about: About::Nothing,
            offline: false,
        }
    }
}

/// How a device answered a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// Done. `business_no`: the device's number for a started order.
    Ok { business_no: Option<u16> },
    /// Not done, with the device's code. `relay_may_be_on`: power may flow all the same.
    No { code: u8, relay_may_be_on: bool },
}

#[derive(Debug)]
pub(super) struct Device {
    pub(super) id: DeviceId,
    pub(super) protocol: Protocol,
    pub(super) entry: Arc<Entry>,
    pub(super) owner: Owner,
    /// The bound connection.
    pub(super) conn: Option<Key>,
    /// Live entry in the timer heap; `u64::MAX`: none.
    pub(super) armed: u64,
    /// Magic of its AP3000 frames.
    pub(super) magic: [u8; 3],
    /// It sent 0x21: 0x01 is not answered any more.
    pub(super) sends_heartbeat: bool,
    /// BKV/GN: its record allows the integrator's extension.
    pub(super) extensions: bool,
    /// AP3000 host: what its record sets, MHz.
    pub(super) fsk_frequency: Option<u16>,
    /// What it told as a host is not in the latest values yet.
    pub(super) host_dirty: bool,
    /// Some port changed since the last flush.
    ports_dirty: bool,
    /// Its socket carries, or carried, other devices too.
    shares_socket: bool,
    /// It told as a host, and has no ports.
    host_only: bool,
    /// A deadline may be sooner than the timer is set.
    sooner: bool,
    /// How often it beats, where it said so.
    beat_interval_s: Option<u16>,
    dirty: bool,
    /// How often its latest values were taken, modulo 256.
    flushes: u8,
    /// Of [`Bound::MSG_IDS`](crate::store::Bound::MSG_IDS).
    msg_id_used: u8,
    msg_id_first: u32,
    streak: u16,
    epoch: i64,
    /// Newest epoch the store told; `None` while it is asked for the next.
    known_epoch: Option<NonZeroI64>,
    /// When the bind is submitted again; [`BIND_WAITS`]: once there is room; `u64::MAX`: it is submitted.
    bind_at: u64,
    absent_since: u64,
    sync_at: u64,
    ports: Arc<[PortCell]>,
    tracks: Few<Track>,
    lane: Lane,
    /// What most devices do not have; see [`Device::seldom`].
    seldom: Option<Box<Seldom>>,
    ota: Option<Box<ota::Ota>>,
}

/// Of a device that charges, that was held a card to, or whose network list changes. Kept until the flush that finds it empty, so
/// that what comes with each report allocates nothing.
#[derive(Debug, Default)]
struct Seldom {
    /// BKV/GN: sockets that are being taken out of the network list.
    leaving: Vec<u8>,
    /// Ports that charge for another order than the one that holds them.
    contrary: SmallVec<[u16; 1]>,
    /// Seconds and Wh of orders, for the latest values.
    progress: SmallVec<[(OrderNo, u32, u32); 1]>,
    swipes: Vec<PendingSwipe>,
    unknown_order_until: u64,
    /// Until when records of ended charges may come that the store does not have; monotonic ms.
    records_until: u64,
}

impl Seldom {
    fn is_empty(&self, now_ms: u64) -> bool {
        let Self { leaving, contrary, progress, swipes, unknown_order_until, records_until } = self;
        leaving.is_empty()
            && contrary.is_empty()
            && progress.is_empty()
            && swipes.is_empty()
            && *unknown_order_until <= now_ms
            && *records_until <= now_ms
    }
}

impl Identified for Device {
    fn device_id(&self) -> DeviceId {
        self.id
    }
}

impl Device {
    pub(super) fn new(id: DeviceId, protocol: Protocol, entry: Arc<Entry>) -> Self {
        let ports = entry.ports();
        Self {
            id,
            protocol,
            owner: Owner::NOBODY,
            conn: None,
            armed: u64::MAX,
            magic: [0; 3],
            sends_heartbeat: false,
            extensions: false,
            fsk_frequency: None,
            host_dirty: false,
            ports_dirty: false,
            shares_socket: false,
            host_only: false,
            sooner: false,
            beat_interval_s: None,
            dirty: false,
            flushes: 0,
            msg_id_used: 0,
            msg_id_first: 1,
            streak: 0,
            epoch: 0,
            known_epoch: None,
            bind_at: u64::MAX,
            absent_since: 0,
            sync_at: u64::MAX,
            ports,
            tracks: Few::default(),
            lane: Lane::default(),
            seldom: None,
            ota: None,
            entry,
        }
    }

    /// What most devices do not have, to put something in.
    fn seldom(&mut self) -> &mut Seldom {
        self.seldom.get_or_insert_default()
    }
}
