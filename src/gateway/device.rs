//! A device as its owner shard keeps it: binding and session, ports, orders, the command lane.
//!
//! What the wire says arrives here already translated ([`PortReport`], replies, settlements) by the protocol adapters
//! [`super::ap3000`] and [`super::bkv`]; what is to be sent leaves through them. Who is online, what an order does next and when a
//! command may go out is the same for all protocols and is decided here.

use std::{sync::Arc, time::Duration};

use serde_json::json;
use smallvec::SmallVec;

use super::{
    Now, OrderTimes, ap3000, bkv,
    core::Cx,
    directory::{Entry, Owner, PortCell, PortState},
    lane::{InFlight, Lane, Outgoing, Pushed, ReplyKey, Waits},
    order::Event,
    slots::Key,
    track::{self, Action, Situation, Track},
};
use crate::{
    model::{
        Command, CommandBody, CommandState, DeviceId, EventType, Order, OrderNo, PortAddress, PortStatus, Protocol,
        socket_of_port,
    },
    protocol::Direction,
    store::{Bind, Bound, CommandLogRow, CommandUpdate, Job, Latest, OrderJob, OrderKey, payload::PortObject},
    telemetry::label::{OutboundFailure, ShardEvent},
    time::Rfc3339,
};

/// A bind that the store did not take is submitted again.
const BIND_RETRY_MS: u64 = 1_000;
/// An own question is pointless later.
const ASK_MS: u64 = 10_000;
/// How often a device that went away is looked at until it can be forgotten.
const GONE_MS: u64 = 1_000;
/// Ports of a device: 250 sockets of two holes.
const PORTS_MAX: usize = 500;
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
    key: Option<Key>,
    epoch: i64,
    bind_at: Option<u64>,
    streak: u32,
    bound_at: u64,
    absent_since: u64,
    sync_at: u64,
    dirty: bool,
    msg_id_first: u32,
    msg_id_used: u32,
    unknown_order_until: u64,
    ports: Arc<[PortCell]>,
    ports_dirty: SmallVec<[u16; 2]>,
    contrary: SmallVec<[u16; 1]>,
    progress: SmallVec<[(OrderNo, u32, u32); 1]>,
    tracks: Vec<Track>,
    lane: Lane,
}

impl Device {
    pub(super) fn new(id: DeviceId, protocol: Protocol, entry: Arc<Entry>) -> Self {
        let ports = entry.ports();
        Self {
            id,
            protocol,
            owner: Owner { shard: super::ShardId(u16::MAX), generation: 0 },
            conn: None,
            armed: u64::MAX,
            magic: [0; 3],
            sends_heartbeat: false,
            key: None,
            epoch: 0,
            bind_at: None,
            streak: 0,
            bound_at: 0,
            absent_since: 0,
            sync_at: u64::MAX,
            dirty: false,
            msg_id_first: 1,
            msg_id_used: 0,
            unknown_order_until: 0,
            ports,
            ports_dirty: SmallVec::new(),
            contrary: SmallVec::new(),
            progress: SmallVec::new(),
            tracks: Vec::new(),
            lane: Lane::default(),
            entry,
        }
    }

    // ---- session ----

    /// A connection carries the device from now on; the store is asked for its epoch.
    pub(super) fn bound(&mut self, cx: &mut Cx<'_>, conn: Key, key: Key, owner: Owner, shares_socket: bool) {
        let timeouts = &cx.shared.config.timeouts;
        let timeout = match self.protocol {
            Protocol::Ap3000 if shares_socket => timeouts.session_shared,
            Protocol::Ap3000 => timeouts.session_ap3000,
            Protocol::Bkv => timeouts.session_bkv,
            Protocol::Gn => timeouts.session_gn,
        };
        self.key = Some(key);
        self.conn = Some(conn);
        self.owner = owner;
        self.epoch = 0;
        self.streak = 0;
        self.bound_at = cx.now.mono_ms;
        // Spread by the id, so that a fleet that came back at once is not asked at once.
        let spread =
            u64::from(self.id.to_string().bytes().fold(0_u32, |hash, byte| hash.wrapping_mul(31) + u32::from(byte)));
        self.sync_at = cx.now.mono_ms + timeouts.port_sync + spread % timeouts.port_sync.max(1);
        self.entry.set_timeout(timeout);
        self.entry.set_connected_at(cx.now.unix_ms);
        self.entry.seen(cx.now.unix_ms);
        if let DeviceId::Ap3000(phy_id) = self.id
            && phy_id.is_fallback()
        {
            self.entry.set_fallback();
        }
        self.submit_bind(cx);
    }

    fn submit_bind(&mut self, cx: &mut Cx<'_>) {
        let printed_no = if let DeviceId::Ap3000(phy_id) = self.id { Some(phy_id.printed_number()) } else { None };
        let bind = Bind {
            device_id: self.id,
            protocol: self.protocol,
            printed_no,
            known_only: cx.shared.config.known_only,
            generation: self.owner.generation,
            at: cx.now.unix_ms,
        };
        let submitted = cx.job(Job::Bind(bind));
        self.bind_at = if submitted { None } else { Some(cx.now.mono_ms + BIND_RETRY_MS) };
    }

    /// The connection is gone.
    pub(super) fn unbound(&mut self, cx: &mut Cx<'_>) {
        self.conn = None;
        self.streak = 0;
        self.epoch = 0;
        self.bind_at = None;
        self.absent_since = cx.now.mono_ms;
        self.sync_at = u64::MAX;
        if self.entry.owner() == Some(self.owner) {
            self.entry.set_disconnected(cx.now.unix_ms);
        }
        let before = self.lane.waiting();
        // The rows stay claimed for an epoch that is over: the next bind claims them again.
        self.lane.clear_waiting();
        cx.count_waiting(&before, &Waits::default());
        self.entry.set_waiting(0);
    }

    /// The store answered the bind.
    pub(super) fn registered(&mut self, cx: &mut Cx<'_>, bound: Bound) {
        // The answer to an earlier binding says nothing of this one.
        let current = bound.generation == self.owner.generation && self.entry.owner() == Some(self.owner);
        if self.conn.is_none() || !current {
            return;
        }
        self.epoch = bound.epoch;
        self.protocol = bound.protocol;
        self.msg_id_first = bound.msg_id_first;
        self.msg_id_used = 0;
        self.entry.set_protocol(bound.protocol);
        if bound.networked {
            self.entry.set_networked();
        }
        self.entry.set_epoch(bound.epoch);
        let known: Vec<PortState> = bound.ports.iter().map(PortState::of_record).collect();
        self.add_ports(&known);
        let absent = if self.absent_since == 0 { 0 } else { cx.now.mono_ms.saturating_sub(self.absent_since) };
        let situation = self.situation(cx.now, &cx.shared.config.orders);
        for order in &bound.orders {
            let taken_over = !self.tracks.iter().any(|track| track.order_no == order.order_no);
            self.follow(cx, order, taken_over);
        }
        let actions: Vec<_> =
            self.tracks.iter_mut().map(|track| (track.order_no, track.bound(situation.now, absent))).collect();
        for (order_no, actions) in actions {
            self.act_all(cx, order_no, actions);
        }
        self.commands_claimed(cx, bound.commands);
        if self.ports.is_empty() && self.protocol != Protocol::Ap3000 {
            // A standalone device says nothing of its holes until it is asked.
            let hole = |hole| PortState::unknown(u16::from(hole) + 1, Some(0), Some(hole));
            if !self.entry.networked() {
                self.add_ports(&[hole(0), hole(1)]);
            }
            self.ask(cx, 1);
        }
        self.declare_online(cx);
    }

    fn declare_online(&mut self, cx: &mut Cx<'_>) {
        if self.epoch > 0 && self.entry.score(cx.now.unix_ms).online() && self.entry.declare(true) {
            cx.shared.directory.count_online(1);
            cx.event(self.id, EventType::DeviceOnline, self.status_json(cx.now));
        }
    }

    /// An inbound item came for the device.
    pub(super) fn item_came(&mut self, cx: &mut Cx<'_>) {
        self.entry.seen(cx.now.unix_ms);
        self.streak = self.streak.saturating_add(1);
        if !self.entry.declared_online() {
            self.declare_online(cx);
        }
        if !self.dirty
            && let Some(key) = self.key
        {
            self.dirty = true;
            cx.shared.dirty.push(key);
        }
        if self.tracks.iter().any(|track| track.status == crate::model::OrderStatus::Interrupted) {
            let situation = self.situation(cx.now, &cx.shared.config.orders);
            let returned: SmallVec<[(OrderNo, Action); 1]> = self
                .tracks
                .iter_mut()
                .filter_map(|track| track.returned(situation).map(|action| (track.order_no, action)))
                .collect();
            for (order_no, action) in returned {
                self.act(cx, order_no, action);
            }
        }
    }

    /// A heartbeat came: told where some endpoint wants to hear of each.
    pub(super) fn heartbeat(&self, cx: &mut Cx<'_>) {
        if cx.shared.config.heartbeat_events {
            let score = self.entry.score(cx.now.unix_ms).total();
            let data = json!({ "device_id": self.id, "signal": self.entry.signal(), "score": score });
            cx.event(self.id, EventType::DeviceHeartbeat, data);
        }
    }

    /// A binding whose epoch is known.
    pub(super) fn is_live(&self) -> bool {
        self.conn.is_some() && self.epoch > 0
    }

    pub(super) fn live_epoch(&self) -> Option<i64> {
        self.is_live().then_some(self.epoch)
    }

    /// Offline, unbound, and nothing to follow.
    pub(super) fn is_gone(&self, now: Now) -> bool {
        self.conn.is_none()
            && !self.dirty
            && !self.entry.declared_online()
            && !self.entry.score(now.unix_ms).alive
            && !self.tracks.iter().any(Track::is_active)
    }

    pub(super) fn situation(&self, now: Now, times: &OrderTimes) -> Situation {
        Situation {
            now,
            connected: self.conn.is_some(),
            streak: self.streak,
            resend_blindly: self.protocol == Protocol::Ap3000,
            times: *times,
        }
    }

    fn status_json(&self, now: Now) -> serde_json::Value {
        let score = self.entry.score(now.unix_ms);
        json!({
            "device_id": self.id,
            "protocol": self.protocol,
            "online": score.online(),
            "score": score.total(),
            "last_seen_at": Rfc3339(self.entry.last_seen()),
        })
    }

    // ---- ports ----

    /// Adds ports that are not known yet.
    pub(super) fn add_ports(&mut self, states: &[PortState]) {
        let missing = |state: &&PortState| self.ports.iter().all(|cell| cell.port_no != state.port_no);
        if !states.iter().any(|state| missing(&state)) {
            return;
        }
        let mut all: Vec<PortState> = self.ports.iter().map(PortCell::load).collect();
        all.extend(states.iter().filter(missing));
        all.truncate(PORTS_MAX);
        all.sort_by_key(|state| state.port_no);
        self.entry.set_ports(all.iter().map(PortCell::new).collect());
        self.ports = self.entry.ports();
    }

    /// Makes AP3000 ports 1 to `count` known.
    pub(super) fn add_numbered_ports(&mut self, count: u8) {
        if usize::from(count) > self.ports.len() {
            let states: Vec<_> = (1..=u16::from(count)).map(|no| PortState::unknown(no, None, None)).collect();
            self.add_ports(&states);
        }
    }

    /// Whether a report would change nothing: same status and voltage, and no order follows the port.
    pub(super) fn port_unchanged(&self, port_no: u16, status: PortStatus, raw: u8, voltage_dv: u16) -> bool {
        self.tracks.is_empty()
            && self.ports.iter().any(|cell| cell.port_no == port_no && cell.shows(status, raw, voltage_dv))
    }

    /// Takes a report of one port.
    pub(super) fn port_report(&mut self, cx: &mut Cx<'_>, report: &PortReport) {
        let Some(cell) = self.ports.iter().find(|cell| cell.port_no == report.port_no) else {
            if self.ports.len() < PORTS_MAX && report.port_no > 0 {
                self.add_ports(&[PortState::unknown(report.port_no, report.socket, report.hole)]);
                if self.ports.iter().any(|cell| cell.port_no == report.port_no) {
                    self.port_report(cx, report);
                }
            }
            return;
        };
        let before = cell.load();
        let mut state = before;
        if let Some((status, raw)) = report.status {
            state.status = status;
            state.raw_status = raw;
        }
        state.voltage_dv = report.voltage_dv.unwrap_or(state.voltage_dv);
        state.power_dw = report.power_dw.unwrap_or(state.power_dw);
        state.current_ma = report.current_ma.unwrap_or(state.current_ma);
        state.energy_wh = report.energy_wh.unwrap_or(state.energy_wh);
        state.charged_seconds = report.charged_seconds.unwrap_or(state.charged_seconds);
        state.updated_at = cx.now.unix_ms;
        cell.store(&state);
        if !self.ports_dirty.contains(&report.port_no) {
            self.ports_dirty.push(report.port_no);
        }
        if before.status != state.status && before.updated_at != 0 {
            let port = PortObject::new(&state.record(self.id), state.order_no);
            let mut data = serde_json::to_value(port).unwrap_or_default();
            if let Some(object) = data.as_object_mut() {
                object.insert("device_id".into(), self.id.to_string().into());
                object.insert("old_status".into(), before.status.code().into());
                object.insert("new_status".into(), state.status.code().into());
            }
            cx.event(self.id, EventType::PortStatusChanged, data);
        }
        if !self.tracks.is_empty() || matches!(report.about, About::Order(_)) {
            self.orders_report(cx, report);
        }
    }

    // ---- orders ----

    fn orders_report(&mut self, cx: &mut Cx<'_>, report: &PortReport) {
        let port_no = report.port_no;
        let situation = self.situation(cx.now, &cx.shared.config.orders);
        if report.offline {
            let offline: SmallVec<[_; 1]> = self
                .tracks
                .iter_mut()
                .filter(|track| track.port_no == port_no)
                .filter_map(|track| track.offline(cx.now).map(|action| (track.order_no, action)))
                .collect();
            for (order_no, action) in offline {
                self.act(cx, order_no, action);
            }
            return;
        }
        match report.charging {
            Charging::Unclear => {}
            Charging::No => {
                self.contrary.retain(|port| *port != port_no);
                let idle: SmallVec<[_; 1]> = self
                    .tracks
                    .iter_mut()
                    .filter(|track| track.port_no == port_no)
                    .filter_map(|track| track.not_charging(situation).map(|action| (track.order_no, action)))
                    .collect();
                for (order_no, action) in idle {
                    if action == Action::Ask {
                        cx.shared.metrics.process().port_mismatches.inc();
                    }
                    self.act(cx, order_no, action);
                }
                // A final order whose port is off has nothing more to show.
                self.tracks.retain(|track| track.port_no != port_no || track.wants_reports());
            }
            Charging::Yes => self.evidence(cx, report),
        }
        if let (Some(seconds), Some(energy)) = (report.charged_seconds, report.energy_wh)
            && let Some(order_no) = self.order_of(report)
        {
            self.progress.retain(|(other, ..)| *other != order_no);
            self.progress.push((order_no, seconds, energy));
            if cx.shared.config.progress_events {
                let data = json!({
                    "order_no": order_no, "device_id": self.id, "port_no": port_no,
                    "duration_seconds": seconds, "energy_wh": energy, "power_dw": report.power_dw,
                });
                cx.order_event(self.id, order_no, EventType::ChargingProgress, data);
            }
        }
    }

    /// The order a report is about, as far as the tracks tell.
    fn order_of(&self, report: &PortReport) -> Option<OrderNo> {
        let on_port = |track: &&Track| track.port_no == report.port_no && track.is_active();
        match report.about {
            About::Order(order_no) => self.tracks.iter().find(|track| track.order_no == order_no),
            About::Business(no) => self.tracks.iter().filter(on_port).find(|track| track.business_no == Some(no)),
            About::Foreign => None,
            About::Nothing => self.tracks.iter().find(on_port),
        }
        .map(|track| track.order_no)
    }

    fn evidence(&mut self, cx: &mut Cx<'_>, report: &PortReport) {
        let port_no = report.port_no;
        let situation = self.situation(cx.now, &cx.shared.config.orders);
        let mut business_no = None;
        let index = match report.about {
            About::Order(order_no) => {
                let index = self.tracks.iter().position(|track| track.order_no == order_no);
                let contrary =
                    self.tracks.iter().any(|t| t.port_no == port_no && t.is_active() && t.order_no != order_no);
                self.note_contrary(port_no, contrary);
                if index.is_none() {
                    self.ask_for_unknown(cx, order_no);
                }
                index
            }
            About::Foreign => {
                self.note_contrary(port_no, true);
                None
            }
            About::Business(no) => {
                business_no = Some(no);
                let on_port = |track: &Track| track.port_no == port_no;
                let known = self.tracks.iter().position(|t| on_port(t) && t.business_no == Some(no));
                // A running order without a number yet takes the first one its hole shows after the start.
                known.or_else(|| {
                    let numberless = |t: &Track| on_port(t) && t.business_no.is_none() && t.was_start_written();
                    self.tracks.iter().position(|t| numberless(t) && t.is_active())
                })
            }
            About::Nothing if self.contrary.contains(&port_no) => None,
            About::Nothing => {
                let on_port = |track: &Track| track.port_no == port_no;
                let active = self.tracks.iter().position(|track| on_port(track) && track.is_active());
                active.or_else(|| self.tracks.iter().position(on_port))
            }
        };
        let Some(track) = index.and_then(|index| self.tracks.get_mut(index)) else { return };
        let order_no = track.order_no;
        // A BKV/GN hole that charges under a new number has answered the start, whatever became of its reply.
        let answers =
            business_no.is_some() && track.business_no.is_none() && track.status == crate::model::OrderStatus::Pending;
        if answers {
            track.business_no = business_no;
            let acked = track.start_acked(cx.now, &cx.shared.config.orders);
            if let Some(in_flight) = self.lane.take_start(order_no) {
                self.command_done(cx, &in_flight, CommandState::Acked, None);
            }
            if let Some(Action::Tell(event)) = acked {
                self.tell(cx, order_no, event, business_no, None);
            }
        }
        let Some(track) = self.tracks.iter_mut().find(|track| track.order_no == order_no) else { return };
        if let Some(Action::Tell(event)) = track.evidence(situation) {
            self.tell(cx, order_no, event, business_no, None);
        }
    }

    /// The device reported the end of a charge, which is on its way to the store.
    pub(super) fn end_reported(&mut self, cx: &Cx<'_>, port_no: u16, about: About) {
        let report = PortReport { about, ..PortReport::of_port(port_no) };
        let order_no = self.order_of(&report);
        for track in &mut self.tracks {
            if Some(track.order_no) == order_no {
                track.end_seen(cx.now);
            } else {
                track.record_may_follow(cx.now);
            }
        }
    }

    /// A record of the device was not stored, so it is not acknowledged. An AP3000 device keeps all others behind it.
    pub(super) fn record_refused(&mut self, cx: &Cx<'_>) {
        if self.protocol == Protocol::Ap3000 {
            self.tracks.iter_mut().for_each(|track| track.end_seen(cx.now));
        }
    }

    fn note_contrary(&mut self, port_no: u16, contrary: bool) {
        self.contrary.retain(|port| *port != port_no);
        if contrary {
            self.contrary.push(port_no);
        }
    }

    /// A device charges for an order of ours that is not followed here: the store knows what that means.
    fn ask_for_unknown(&mut self, cx: &mut Cx<'_>, order_no: OrderNo) {
        if self.epoch > 0 && cx.now.mono_ms >= self.unknown_order_until {
            self.unknown_order_until = cx.now.mono_ms + UNKNOWN_ORDER_MS;
            self.tell(cx, order_no, Event::Evidence, None, None);
        }
    }

    fn follow(&mut self, cx: &Cx<'_>, order: &Order, taken_over: bool) {
        let (now, times) = (cx.now, &cx.shared.config.orders);
        match self.tracks.iter_mut().find(|track| track.order_no == order.order_no) {
            Some(track) => track.update(order, now, times),
            None => {
                if order.status.is_active() {
                    // The port belongs to this order now.
                    self.tracks.retain(|track| track.port_no != order.port_no || track.is_active());
                    self.note_contrary(order.port_no, false);
                }
                self.tracks.push(Track::new(order, now, taken_over, times));
            }
        }
        self.tracks.retain(|track| !track.is_over());
        if let Some(cell) = self.ports.iter().find(|cell| cell.port_no == order.port_no) {
            let holds = order.status.is_active() || order.device_end_pending;
            let held = cell.load().order_no;
            if holds {
                cell.set_order(Some(order.order_no));
            } else if held == Some(order.order_no) {
                cell.set_order(None);
            }
        }
    }

    /// An order was created or changed, and is committed.
    pub(super) fn order_changed(&mut self, cx: &mut Cx<'_>, order: &Order, commands: Vec<Command>, withdrawn: &[i64]) {
        self.follow(cx, order, false);
        let before = self.lane.waiting();
        self.lane.withdraw(withdrawn);
        self.waiting_changed(cx, &before);
        self.commands_claimed(cx, commands);
    }

    /// A job of this device was not committed: what it told is told again.
    pub(super) fn job_failed(&mut self, cx: &mut Cx<'_>) {
        for track in &mut self.tracks {
            track.retell(cx.now);
        }
        if self.conn.is_some() && self.epoch == 0 && self.bind_at.is_none() {
            self.bind_at = Some(cx.now.mono_ms + BIND_RETRY_MS);
        }
    }

    fn act_all(&mut self, cx: &mut Cx<'_>, order_no: OrderNo, actions: track::Actions) {
        for action in actions {
            self.act(cx, order_no, action);
        }
    }

    fn act(&mut self, cx: &mut Cx<'_>, order_no: OrderNo, action: Action) {
        let track = self.tracks.iter().find(|track| track.order_no == order_no);
        let (port_no, business_no) = track.map_or((0, None), |track| (track.port_no, track.business_no));
        match action {
            Action::Tell(event) => self.tell(cx, order_no, event, business_no, None),
            Action::Ask => self.ask(cx, port_no),
            Action::ResendStart => self.resend(cx, order_no, false),
            Action::ResendStop => self.resend(cx, order_no, true),
            Action::Stop => self.stop_stray(cx, order_no, port_no),
            Action::Alarm(reason) => {
                log::warn!(
                    target: "chargegate::order",
                    order_no:% = order_no, device_id:% = self.id, port_no = port_no, reason = reason; "alarm"
                );
                let data = json!({ "reason": reason, "order_no": order_no, "port_no": port_no });
                cx.event(self.id, EventType::DeviceAlarm, data);
            }
            Action::AckTimedOut => {
                cx.shared.metrics.process().outbound_failed[OutboundFailure::AckTimeout].inc();
                self.entry.ack_timed_out(cx.now.unix_ms);
            }
        }
    }

    fn tell(
        &mut self,
        cx: &mut Cx<'_>,
        order_no: OrderNo,
        event: Event,
        business_no: Option<u16>,
        reason: Option<String>,
    ) {
        let job = OrderJob {
            order: OrderKey::No(order_no),
            event,
            device_id: Some(self.id),
            epoch: self.live_epoch(),
            business_no,
            reason,
            at: cx.now.unix_ms,
            request_id: None,
            idempotency: None,
        };
        if !cx.job(Job::Order(Box::new(job)))
            && let Some(track) = self.tracks.iter_mut().find(|track| track.order_no == order_no)
        {
            track.retell(cx.now);
        }
    }

    // ---- commands ----

    pub(super) fn commands_waiting(&self) -> Waits {
        self.lane.waiting()
    }

    /// Asks the store for commands that are queued for this device.
    pub(super) fn claim(&mut self, cx: &mut Cx<'_>) {
        if let Some(epoch) = self.live_epoch() {
            cx.job(Job::Claim { device_id: self.id, epoch, at: cx.now.unix_ms });
        }
    }

    /// Commands of this device's epoch go into the lane.
    pub(super) fn commands_claimed(&mut self, cx: &mut Cx<'_>, commands: Vec<Command>) {
        if commands.is_empty() {
            return;
        }
        let before = self.lane.waiting();
        for command in commands {
            // Claimed for a binding that is over: the next one claims it again.
            if Some(command.epoch) != self.live_epoch() {
                continue;
            }
            let left = u64::try_from(command.not_after.saturating_sub(cx.now.unix_ms)).unwrap_or(0);
            let is_start = matches!(command.body, CommandBody::Start { .. });
            let left = if is_start { left.min(cx.shared.config.orders.start_total) } else { left };
            let maybe_written = command.maybe_written && is_start && self.protocol != Protocol::Ap3000;
            let outgoing = Outgoing::Command(Box::new(command));
            if maybe_written {
                // A BKV/GN start is never sent blindly a second time: the hole is asked first.
                let port_no = outgoing.port_no();
                if let Some(key) = bkv::reply_key(&outgoing) {
                    self.lane.written(outgoing, key, cx.now.mono_ms, 0);
                }
                self.ask(cx, port_no);
                continue;
            }
            let deadline = cx.now.mono_ms.saturating_add(left);
            match self.lane.push(outgoing, deadline) {
                Pushed::Queued | Pushed::Known | Pushed::Full => {}
                Pushed::Annihilated { order_no, start, stop } => {
                    for id in [start, stop].into_iter().flatten() {
                        cx.job(Job::Command(CommandUpdate {
                            id,
                            state: CommandState::Withdrawn,
                            order_no: None,
                            attempts: 0,
                            reason: Some("stopped_before_start"),
                            at: cx.now.unix_ms,
                        }));
                    }
                    if let Some(order_no) = order_no {
                        self.tell(cx, order_no, Event::StartWithdrawn, None, None);
                    }
                }
            }
        }
        self.waiting_changed(cx, &before);
    }

    fn waiting_changed(&self, cx: &mut Cx<'_>, before: &Waits) {
        let after = self.lane.waiting();
        cx.count_waiting(before, &after);
        self.entry.set_waiting(u32::try_from(after.iter().sum::<usize>()).unwrap_or(u32::MAX));
    }

    /// Asks for the state of a port; not stored, losing it is harmless.
    pub(super) fn ask(&mut self, cx: &mut Cx<'_>, port_no: u16) {
        // An AP3000 device always answers for all its ports.
        let port_no = if self.protocol == Protocol::Ap3000 { 0 } else { port_no };
        self.lane.push(Outgoing::Ask { port_no }, cx.now.mono_ms + ASK_MS);
    }

    /// Stops a charge that should not run. A BKV/GN stop names only the hole, so it is not sent when a newer order is active there.
    fn stop_stray(&mut self, cx: &mut Cx<'_>, order_no: OrderNo, port_no: u16) {
        if self.tracks.iter().any(|track| track.port_no == port_no && track.is_active()) {
            return;
        }
        self.lane.push(Outgoing::Stop { order_no, port_no }, cx.now.mono_ms + ASK_MS);
    }

    /// Whether something waits to be written.
    pub(super) fn has_work(&self) -> bool {
        !self.lane.is_empty() || !self.tracks.is_empty()
    }

    /// Writes what may be written now.
    pub(super) fn pump(&mut self, cx: &mut Cx<'_>) {
        if self.lane.is_empty() {
            return;
        }
        let before = self.lane.waiting();
        while let Some(what) = self.lane.expired(cx.now.mono_ms) {
            if let Some(id) = what.row() {
                cx.shared.metrics.process().outbound_failed[OutboundFailure::Expired].inc();
                let update = CommandUpdate {
                    id,
                    state: CommandState::Expired,
                    order_no: None,
                    attempts: 0,
                    reason: Some("not_written_in_time"),
                    at: cx.now.unix_ms,
                };
                cx.job(Job::Command(update));
            }
        }
        // The four facts: deadline (above), epoch (commands enter the lane only for the live one, and leave it with the
        // binding), generation (here), withdrawals (they leave the lane).
        let mine = self.entry.owner() == Some(self.owner);
        while let Some(conn) = self.conn.filter(|_| mine && self.epoch > 0) {
            let Some(what) = self.lane.next(cx.now.mono_ms) else { break };
            self.write(cx, conn, what);
        }
        self.waiting_changed(cx, &before);
    }

    fn write(&mut self, cx: &mut Cx<'_>, conn: Key, what: Outgoing) {
        let msg_id = match &what {
            Outgoing::Command(command) => command.msg_id,
            Outgoing::Ask { .. } | Outgoing::Stop { .. } => self.own_msg_id(),
        };
        let Some(key) = self.send(cx, conn, &what, msg_id) else {
            self.unsendable(cx, &what);
            return;
        };
        if let Outgoing::Command(command) = &what {
            cx.shared.metrics.outbound_sent.inc();
            let is_start = what.is_start();
            let order_no = command.order_no.filter(|_| is_start);
            if let Some(track) = self.tracks.iter_mut().find(|track| Some(track.order_no) == order_no) {
                track.start_written(cx.now);
            }
            let update = CommandUpdate {
                id: command.id,
                state: CommandState::Written,
                order_no,
                attempts: 1,
                reason: None,
                at: cx.now.unix_ms,
            };
            cx.job(Job::Command(update));
        }
        let gap = if self.protocol == Protocol::Ap3000 { cx.shared.config.timeouts.command_gap } else { 0 };
        self.lane.written(what, key, cx.now.mono_ms, gap);
    }

    /// Encodes and writes; `None`: the device's protocol has no such command.
    fn send(&self, cx: &mut Cx<'_>, conn: Key, what: &Outgoing, msg_id: u32) -> Option<ReplyKey> {
        let start = cx.effects.tx.len();
        let mut key = None;
        cx.effects.write(conn.into(), |out| {
            key = match self.id {
                DeviceId::Ap3000(phy_id) => ap3000::encode(out, self.magic, phy_id, what, msg_id),
                DeviceId::Gateway(gateway_id) => {
                    let address = socket_of_port(what.port_no(), self.entry.networked());
                    match address {
                        Some(PortAddress::Hole { socket, hole }) => {
                            bkv::encode(out, gateway_id, socket, hole, what, msg_id)
                        }
                        Some(PortAddress::Port(_)) | None => None,
                    }
                }
            };
        });
        let key = key?;
        let (command, sub) = key.command;
        match self.id {
            // A command of this family is one byte.
            DeviceId::Ap3000(_) => cx.shared.metrics.frames.ap3000(Direction::Down, command.to_be_bytes()[1]),
            DeviceId::Gateway(_) => cx.shared.metrics.frames.bkv(Direction::Down, command, sub),
        }
        let raw = cx.effects.tx.get(start..).unwrap_or_default().to_vec();
        cx.effects.log.push(CommandLogRow { at: cx.now.unix_ms, device_id: self.id, up: false, command, msg_id, raw });
        Some(key)
    }

    /// A command that the protocol cannot express: refused where it was accepted, so this is a stored row of another time.
    fn unsendable(&mut self, cx: &mut Cx<'_>, what: &Outgoing) {
        let Outgoing::Command(command) = what else { return };
        let update = CommandUpdate {
            id: command.id,
            state: CommandState::Dead,
            order_no: None,
            attempts: 0,
            reason: Some("not_supported"),
            at: cx.now.unix_ms,
        };
        cx.job(Job::Command(update));
        if let Some(order_no) = what.order_no().filter(|_| what.is_start()) {
            let event = Event::StartRefused { relay_may_be_on: false };
            self.tell(cx, order_no, event, None, Some("not_supported".into()));
        }
    }

    fn resend(&mut self, cx: &mut Cx<'_>, order_no: OrderNo, stop: bool) {
        let Some(conn) = self.conn.filter(|_| self.entry.owner() == Some(self.owner)) else { return };
        let Some(in_flight) = self.lane.in_flight_mut(order_no, stop) else { return };
        in_flight.writes = in_flight.writes.saturating_add(1);
        let (what, msg_id) = (in_flight.what.clone(), in_flight.key.msg_id);
        cx.shared.metrics.events[ShardEvent::Resend].inc();
        self.send(cx, conn, &what, msg_id);
        let gap = if self.protocol == Protocol::Ap3000 { cx.shared.config.timeouts.command_gap } else { 0 };
        self.lane.hold(cx.now.mono_ms + gap);
    }

    /// A message id of the gateway's own, from the block the store reserved for this epoch.
    fn own_msg_id(&mut self) -> u32 {
        let offset = self.msg_id_used % Bound::MSG_IDS;
        self.msg_id_used = self.msg_id_used.wrapping_add(1);
        self.msg_id_first.wrapping_add(offset).max(1)
    }

    /// The device answered a command.
    pub(super) fn reply(&mut self, cx: &mut Cx<'_>, key: ReplyKey, answer: impl FnOnce(&InFlight) -> Answer) {
        let Some(in_flight) = self.lane.reply(key) else {
            cx.shared.metrics.events[ShardEvent::ReplyUnmatched].inc();
            return;
        };
        let waited = cx.now.mono_ms.saturating_sub(in_flight.written_at);
        cx.shared.metrics.ack_latency.record(Duration::from_millis(waited));
        let answer = answer(&in_flight);
        let state = match answer {
            Answer::Ok { .. } => CommandState::Acked,
            Answer::No { .. } => CommandState::Refused,
        };
        self.command_done(cx, &in_flight, state, None);
        let Some(order_no) = in_flight.what.order_no() else { return };
        if in_flight.what.is_start() {
            match answer {
                Answer::Ok { business_no } => {
                    let event = match self.tracks.iter_mut().find(|track| track.order_no == order_no) {
                        Some(track) => {
                            track.business_no = track.business_no.or(business_no);
                            track.start_acked(cx.now, &cx.shared.config.orders)
                        }
                        None => Some(Action::Tell(Event::StartAckedLate)),
                    };
                    if let Some(Action::Tell(event)) = event {
                        self.tell(cx, order_no, event, business_no, None);
                    }
                }
                Answer::No { code, relay_may_be_on } => {
                    let reason = Some(format!("device_refused_{code:02x}"));
                    self.tell(cx, order_no, Event::StartRefused { relay_may_be_on }, None, reason);
                }
            }
        } else if in_flight.what.is_stop() {
            match answer {
                Answer::Ok { .. } => self.tell(cx, order_no, Event::StopAcked, None, None),
                Answer::No { .. } => {
                    self.tell(cx, order_no, Event::StopRefused, None, None);
                    self.ask(cx, in_flight.what.port_no());
                }
            }
        }
    }

    fn command_done(&self, cx: &mut Cx<'_>, in_flight: &InFlight, state: CommandState, reason: Option<&'static str>) {
        if state == CommandState::Refused {
            cx.shared.metrics.process().outbound_failed[OutboundFailure::Refused].inc();
        }
        if let Some(id) = in_flight.what.row() {
            let at = cx.now.unix_ms;
            let update = CommandUpdate { id, state, order_no: None, attempts: in_flight.writes, reason, at };
            cx.job(Job::Command(update));
        }
    }

    // ---- time ----

    /// What is due.
    pub(super) fn poll(&mut self, cx: &mut Cx<'_>) {
        let now = cx.now;
        if self.bind_at.is_some_and(|at| at <= now.mono_ms) {
            self.submit_bind(cx);
        }
        if self.entry.declared_online() && !self.entry.score(now.unix_ms).online() && self.entry.declare(false) {
            cx.shared.directory.count_online(-1);
            cx.event(self.id, EventType::DeviceOffline, self.status_json(now));
            let offline: SmallVec<[_; 2]> = self
                .tracks
                .iter_mut()
                .filter_map(|track| track.offline(now).map(|action| (track.order_no, action)))
                .collect();
            for (order_no, action) in offline {
                self.act(cx, order_no, action);
            }
        }
        let situation = self.situation(now, &cx.shared.config.orders);
        let due: SmallVec<[_; 2]> =
            self.tracks.iter_mut().map(|track| (track.order_no, track.poll(situation))).collect();
        for (order_no, actions) in due {
            self.act_all(cx, order_no, actions);
        }
        while let Some(in_flight) = self.lane.forgotten(now.mono_ms) {
            self.command_done(cx, &in_flight, CommandState::Dead, Some("no_reply"));
        }
        if self.sync_at <= now.mono_ms && self.is_live() {
            self.sync_at = now.mono_ms + cx.shared.config.timeouts.port_sync;
            let sockets: Vec<u16> = match self.protocol {
                Protocol::Ap3000 => vec![1],
                // One question per socket: holes come in pairs.
                Protocol::Bkv | Protocol::Gn => {
                    self.ports.iter().filter(|cell| cell.port_no % 2 == 1).map(|cell| cell.port_no).collect()
                }
            };
            for port_no in sockets {
                self.ask(cx, port_no);
            }
        }
    }

    /// When [`Device::poll`] or [`Device::pump`] has something to do, monotonic ms; `u64::MAX`: nothing is due.
    pub(super) fn deadline(&self, now: Now, times: &OrderTimes) -> u64 {
        let left = u64::try_from(self.entry.offline_at().saturating_sub(now.unix_ms)).unwrap_or(0);
        let offline = if self.entry.declared_online() || left > 0 {
            now.mono_ms + left
        } else if self.conn.is_none() && !self.tracks.iter().any(Track::is_active) {
            // Gone, once its latest values are flushed.
            now.mono_ms + GONE_MS
        } else {
            u64::MAX
        };
        let situation = self.situation(now, times);
        let tracks = self.tracks.iter().map(|track| track.deadline(situation)).min().unwrap_or(u64::MAX);
        let lane = self.lane.deadline(self.is_live());
        offline.min(tracks).min(lane).min(self.bind_at.unwrap_or(u64::MAX)).min(self.sync_at)
    }

    /// Puts what changed since the last flush into the latest values.
    pub(super) fn flush(&mut self, cx: &mut Cx<'_>) {
        self.dirty = false;
        cx.effects.latest.push(Latest::Device {
            device_id: self.id,
            last_seen_at: self.entry.last_seen(),
            signal: self.entry.signal(),
            firmware: self.entry.firmware(),
            iccid: self.entry.iccid(),
            networked: self.entry.networked(),
        });
        for port_no in std::mem::take(&mut self.ports_dirty) {
            if let Some(cell) = self.ports.iter().find(|cell| cell.port_no == port_no) {
                cx.effects.latest.push(Latest::Port(cell.load().record(self.id)));
            }
        }
        for (order_no, duration_seconds, energy_wh) in std::mem::take(&mut self.progress) {
            let at = cx.now.unix_ms;
            cx.effects.latest.push(Latest::Progress { order_no, duration_seconds, energy_wh, at });
        }
    }

    /// Holds commands back behind a reply that the vendor counts as one.
    pub(super) fn hold_commands(&mut self, cx: &Cx<'_>) {
        self.lane.hold(cx.now.mono_ms + cx.shared.config.timeouts.command_gap);
    }
}
