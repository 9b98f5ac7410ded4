//! The core of one shard: what the driver talks to.
//!
//! Drive it like this, always in this order: one input ([`Core::accept`], [`Core::receive`], [`Core::closed`], [`Core::message`],
//! [`Core::timeout`]), then carry out what it put into [`Effects`], then arm one timer for [`Core::poll_timeout`].
//!
//! A connection knows its devices and a device its connection, both by slot and generation, so whichever goes first leaves the
//! other a key that misses.

mod anomalies;
mod conns;
mod devices;
mod drain;
mod outcomes;
mod recall;

use std::{collections::VecDeque, net::IpAddr, sync::Arc, time::Duration};

use rustc_hash::FxHashMap;

use super::{
    AcceptRefused, Breaker, CloseReason, ConnId, ConnectionLimits, Effects, Listener, Message, Now, OrderTimes,
    ShardId, WantedEvents,
    accept::AcceptGate,
    anomaly::Anomalies,
    card::CardMode,
    conn::Conn,
    device::{Device, OtaShare},
    directory::{Directory, Untold},
    index::Index,
    lane::Waits,
    recorder::Recorder,
    slots::{Key, Slots},
    timers::{Timer, Timers},
};
use crate::{
    model::{DeviceId, EventType, OrderNo, Priority},
    protocol::{
        Direction,
        ap3000::{self, Magics},
        bkv,
        clock::DeviceTime,
    },
    shard::JOBS_MAX,
    store::{CommandLogRow, DeviceEvent, Job, Latest, SettlementKey},
    telemetry::{ShardWriter, label::ShardEvent},
};
use drain::Drain;

/// Settlements and reports of one shard that wait for their commit.
const SETTLEMENTS_MAX: usize = JOBS_MAX / 2;
/// Jobs under way above which a bind waits for room. A fleet that comes back leaves some for the reports of those who are there and
/// for what is told of each device behind its bind; as many settlements as there may be leave some for binds.
const BINDS_MAX: usize = JOBS_MAX / 4 * 3;
/// Jobs under way that are no settlements and no reports, above which a bind waits too: four batches of a store, so that none runs out of
/// work. What jobs take of memory lies between what stays for good, and is not given back whole.
const BINDS_OPEN_MAX: usize = JOBS_MAX / 4;
/// Binds that wait for room; one that finds no place here is tried again a second later.
const BINDS_WAITING_MAX: usize = 65_536;
/// Command of an AP3000 settlement and of its acknowledgement.
const SETTLEMENT_ACK: u8 = 0x03;

/// How long things may take; all in milliseconds.
#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    /// From accept to the recognised protocol.
    pub detect: u64,
    /// An incomplete frame is given up.
    pub frame: u64,
    /// A peer that does not drain its replies is closed.
    pub write: u64,
    /// AP3000 silence limit.
    pub idle_ap3000: u64,
    /// BKV/GN silence limit.
    pub idle_bkv: u64,
    /// AP3000: offline after this silence.
    pub session_ap3000: i64,
    /// BKV: offline after this silence.
    pub session_bkv: i64,
    /// GN: offline after this silence.
    pub session_gn: i64,
    /// AP3000 host with several devices: offline after this silence of the device's own.
    pub session_shared: i64,
    /// The host itself, which is heard of every half hour: offline after this silence of its own.
    pub session_host: i64,
    /// Between two questions for the state of all ports.
    pub port_sync: u64,
    /// AP3000: from command to command.
    pub command_gap: u64,
    /// From a change to the flush of latest values.
    pub flush: u64,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            detect: 10_000,
            frame: 10_000,
            write: 5_000,
            idle_ap3000: 540_000,
            idle_bkv: 300_000,
            session_ap3000: 70_000,
            session_bkv: 130_000,
            session_gn: 130_000,
            session_shared: 390_000,
            session_host: 3_630_000,
            port_sync: 300_000,
            command_gap: 500,
            flush: 3_000,
        }
    }
}

/// How the integration guide V1.7 is read where it contradicts itself.
#[derive(Clone, Copy, Debug)]
pub struct BkvReadings {
    /// Command word of 17.
    pub power_start_command: u16,
    /// Sub-command that acknowledges 02; the other form is added when the report comes again.
    pub charge_end_ack: u8,
    /// The time in 0B down is in seconds.
    pub card_time_in_seconds: bool,
}

impl Default for BkvReadings {
    fn default() -> Self {
        Self {
            power_start_command: bkv::command::CONTROL,
            charge_end_ack: bkv::command::sub::CARD_END,
            card_time_in_seconds: false,
        }
    }
}

/// What a core is told at start.
#[derive(Clone, Debug)]
pub struct CoreConfig {
    /// Its shard.
    pub shard: ShardId,
    /// AP3000 magics.
    pub magics: Magics,
    /// Readings of the BKV/GN guide.
    pub bkv: BkvReadings,
    /// Refuse devices that have no row.
    pub known_only: bool,
    /// Frames of a refused device after which its connection is closed.
    pub stranger_frames_max: u32,
    /// This shard's share of the accept rate, per second.
    pub accept_rate_per_s: u64,
    /// This shard's share of the accept burst.
    pub accept_burst: u64,
    /// When accepting pauses.
    pub breaker: Breaker,
    /// Share of garbage, in percent of the bytes received, above which a connection is closed.
    pub garbage_percent_max: u64,
    /// Which events are made only because somebody wants them; changes while the core runs.
    pub wanted: Arc<WantedEvents>,
    /// Whether the command log gets heartbeats and time requests too.
    pub log_heartbeats: bool,
    /// Bytes of this shard's flight recorder; 0: nothing is recorded.
    pub recorder_bytes: usize,
    /// Who decides what a swiped card may do.
    pub cards: CardMode,
    /// This shard's share of the packets of firmware per second.
    pub ota_packets_per_s: u64,
    /// Updates this shard may run at a time.
    pub ota_running_max: usize,
    /// Time limits.
    pub timeouts: Timeouts,
    /// Time limits of orders.
    pub orders: OrderTimes,
}

impl CoreConfig {
    /// The defaults, for one shard of one.
    pub fn new(shard: ShardId) -> Self {
        Self {
            shard,
            magics: Magics::default(),
            bkv: BkvReadings::default(),
            known_only: false,
            stranger_frames_max: 5,
            accept_rate_per_s: 10_000,
            accept_burst: 20_000,
            breaker: Breaker::default(),
            garbage_percent_max: 50,
            wanted: Arc::default(),
            log_heartbeats: false,
            recorder_bytes: 4 << 20,
            cards: CardMode::default(),
            ota_packets_per_s: 200,
            ota_running_max: 100,
            timeouts: Timeouts::default(),
            orders: OrderTimes::default(),
        }
    }
}

/// Where an acknowledgement goes when its report is stored.
#[derive(Clone, Copy, Debug)]
pub(super) enum Ack {
    Ap3000 {
        header: ap3000::encode::Header,
    },
    /// 02, 18 or 0C. `replay`: second form for a report that came again although it was acknowledged.
    BkvEnd {
        gateway_id: bkv::GatewayId,
        sub: u8,
        socket: u8,
        replay: Option<u8>,
    },
    BkvFeeEnd {
        gateway_id: bkv::GatewayId,
        header: bkv::packet::PacketHeader,
        socket: u8,
        hole: u8,
    },
    BkvException {
        gateway_id: bkv::GatewayId,
        header: bkv::packet::PacketHeader,
        socket: u8,
    },
}

#[derive(Clone, Copy, Debug)]
pub(super) struct WaitingAck {
    pub(super) conn: ConnId,
    pub(super) device_id: DeviceId,
    /// Under which the report came.
    pub(super) epoch: Option<i64>,
    pub(super) ack: Ack,
}

/// What all devices of the shard share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) config: CoreConfig,
    pub(super) directory: Arc<Directory>,
    pub(super) timers: Timers,
    pub(super) metrics: ShardWriter,
    pub(super) settlements: FxHashMap<SettlementKey, WaitingAck>,
    pub(super) reports: FxHashMap<u64, WaitingAck>,
    pub(super) report_ticket: u64,
    pub(super) dirty: Vec<Key>,
    /// Devices whose bind waits for room, first come first served. Some may have gone since.
    binds_waiting: VecDeque<DeviceId>,
    /// Second of the wall clock, and how BKV/GN are told it: a heartbeat's answer needs no calendar.
    wall: (i64, [u8; 7]),
    pub(super) ota: OtaShare,
    recorder: Recorder,
    anomalies: Anomalies,
    jobs: usize,
    commands_waiting: Waits,
}

impl Shared {
    /// The time as BKV/GN are told it.
    pub(super) fn wall_bcd(&mut self, now: Now) -> [u8; 7] {
        let second = now.unix_ms / 1000;
        if self.wall.0 != second {
            self.wall = (second, DeviceTime::from_unix(second).to_bcd());
        }
        self.wall.1
    }

    /// Whether a bind may be submitted now.
    fn has_bind_room(&self) -> bool {
        let reports = self.settlements.len() + self.reports.len();
        self.jobs < BINDS_MAX && self.jobs.saturating_sub(reports) < BINDS_OPEN_MAX
    }

    fn count_waiting(&mut self, before: &Waits, after: &Waits) {
        let all = Priority::ALL.into_iter().zip(&mut self.commands_waiting);
        for ((priority, waiting), (before, after)) in all.zip(before.iter().zip(after)) {
            *waiting = (*waiting + after).saturating_sub(*before);
            self.metrics.commands_waiting[priority].set(*waiting as u64);
        }
    }
}

/// One input's surroundings.
pub(super) struct Cx<'a> {
    pub(super) now: Now,
    pub(super) shared: &'a mut Shared,
    pub(super) effects: &'a mut Effects,
}

impl Cx<'_> {
    /// Submits a durable change; false: too many are under way.
    pub(super) fn job(&mut self, job: Job) -> bool {
        if self.shared.jobs >= JOBS_MAX {
            self.shared.metrics.events[ShardEvent::JobRefused].inc();
            return false;
        }
        self.shared.jobs += 1;
        self.effects.jobs.push_back(job);
        true
    }

    /// Whether a bind may be submitted now.
    pub(super) fn has_bind_room(&self) -> bool {
        self.shared.has_bind_room()
    }

    /// The device is asked for its bind when others are answered; false: too many wait for that.
    pub(super) fn bind_later(&mut self, device_id: DeviceId) -> bool {
        let has_room = self.shared.binds_waiting.len() < BINDS_WAITING_MAX;
        if has_room {
            self.shared.binds_waiting.push_back(device_id);
        }
        has_room
    }

    /// Submits an event; one that finds too many jobs under way is lost and counted.
    pub(super) fn event(&mut self, device_id: DeviceId, event_type: EventType, data: serde_json::Value) {
        let (at, data) = (self.now.unix_ms, data.into());
        self.job(Job::Device(Box::new(DeviceEvent { device_id, event_type, data, order_no: None, fence: None, at })));
    }

    /// Submits what only the owner of a device may say of it: void where `fence` is not its newest epoch.
    pub(super) fn declare(
        &mut self,
        device_id: DeviceId,
        event_type: EventType,
        data: serde_json::Value,
        fence: Option<i64>,
    ) {
        let (at, data) = (self.now.unix_ms, data.into());
        self.job(Job::Device(Box::new(DeviceEvent { device_id, event_type, data, order_no: None, fence, at })));
    }

    /// Submits an event of an order that changes nothing in it.
    pub(super) fn order_event(
        &mut self,
        device_id: DeviceId,
        order_no: OrderNo,
        event_type: EventType,
        data: serde_json::Value,
    ) {
        let (at, data) = (self.now.unix_ms, data.into());
        self.job(Job::Device(Box::new(DeviceEvent {
            device_id,
            event_type,
            data,
            order_no: Some(order_no),
            fence: None,
            at,
        })));
    }

    /// Submits a settlement, or lets a resend join the one under way. False: there is no room, and the device sends it again.
    pub(super) fn settle(&mut self, key: SettlementKey, waiting: WaitingAck, job: impl FnOnce() -> Job) -> bool {
        if let Some(under_way) = self.shared.settlements.get_mut(&key) {
            *under_way = waiting;
            self.shared.metrics.events[ShardEvent::SettlementJoined].inc();
            return true;
        }
        if self.shared.settlements.len() >= SETTLEMENTS_MAX || !self.job(job()) {
            self.shared.metrics.reports_dropped.inc();
            return false;
        }
        self.shared.metrics.events[ShardEvent::Settlement].inc();
        self.shared.settlements.insert(key, waiting);
        true
    }

    /// Whether a settlement of a device is under way. Looks at all that are.
    pub(super) fn is_settling(&self, device_id: DeviceId) -> bool {
        self.shared.settlements.values().any(|waiting| waiting.device_id == device_id)
    }

    /// A number that comes back with an outcome.
    pub(super) fn ticket(&mut self) -> u64 {
        let ticket = self.shared.report_ticket;
        self.shared.report_ticket += 1;
        ticket
    }

    /// Submits a report that is acknowledged once it is stored.
    pub(super) fn report(&mut self, waiting: WaitingAck, event: DeviceEvent) {
        if self.shared.reports.len() >= SETTLEMENTS_MAX {
            self.shared.metrics.reports_dropped.inc();
            return;
        }
        let ticket = self.ticket();
        if self.job(Job::Report(Box::new(crate::store::DeviceReport { ticket, event }))) {
            self.shared.reports.insert(ticket, waiting);
        } else {
            self.shared.metrics.reports_dropped.inc();
        }
    }

    /// Notes how the number of waiting commands of a device changed.
    pub(super) fn count_waiting(&mut self, before: &Waits, after: &Waits) {
        self.shared.count_waiting(before, after);
    }

    /// Acknowledges a report on a connection that is still open.
    fn acknowledge(&mut self, waiting: WaitingAck) {
        let WaitingAck { conn, device_id, epoch, ack } = waiting;
        let frames = &self.shared.metrics.frames;
        let of_gateway = |command, sub| {
            frames.bkv(Direction::Down, command, sub);
            (command, 0)
        };
        let (command, msg_id) = match ack {
            Ack::Ap3000 { header } => {
                frames.ap3000(Direction::Down, SETTLEMENT_ACK);
                (u16::from(SETTLEMENT_ACK), u32::from(header.msg_id))
            }
            Ack::BkvEnd { sub, .. } => of_gateway(bkv::command::CONTROL, u16::from(sub)),
            Ack::BkvFeeEnd { .. } => of_gateway(bkv::command::PACKET, bkv::command::packet_sub::FEE_END),
            Ack::BkvException { .. } => of_gateway(bkv::command::PACKET, bkv::command::packet_sub::EXCEPTION),
        };
        let start = self.effects.tx.len();
        self.effects.write(conn, |out| match ack {
            Ack::Ap3000 { header } => ap3000::encode::result_reply(out, &header, SETTLEMENT_ACK, 0),
            Ack::BkvEnd { gateway_id, sub, socket, .. } => bkv::encode::end_ack(out, gateway_id, sub, socket, true),
            Ack::BkvFeeEnd { gateway_id, header, socket, hole } => {
                bkv::encode::fee_end_ack(out, gateway_id, header, socket, hole, true);
            }
            Ack::BkvException { gateway_id, header, socket } => {
                bkv::encode::exception_ack(out, gateway_id, header, socket, true);
            }
        });
        let raw = self.effects.tx.get(start..).unwrap_or_default().to_vec();
        let at = self.now.unix_ms;
        self.effects.log.push(CommandLogRow { at, device_id, up: false, command, msg_id, epoch, raw });
    }
}

/// The core of one shard.
#[derive(Debug)]
pub struct Core {
    shared: Shared,
    limits: Arc<ConnectionLimits>,
    gate: AcceptGate,
    accept_armed: u64,
    flush_armed: u64,
    conns: Slots<Conn>,
    devices: Slots<Device>,
    by_id: Index,
    latest: Vec<Latest>,
    body_log_at: u64,
    /// Connections are being closed; nothing is accepted.
    drain: Option<Drain>,
    drain_armed: u64,
    /// The shard ends when nothing is left.
    stopping: bool,
}

impl From<Key> for ConnId {
    fn from(key: Key) -> Self {
        Self { slot: key.slot, generation: key.generation }
    }
}

impl From<ConnId> for Key {
    fn from(conn: ConnId) -> Self {
        Self { slot: conn.slot, generation: conn.generation }
    }
}

impl Core {
    /// A core without connections.
    pub fn new(
        config: CoreConfig,
        directory: Arc<Directory>,
        limits: Arc<ConnectionLimits>,
        metrics: ShardWriter,
    ) -> Self {
        let gate = AcceptGate::new(config.accept_rate_per_s, config.accept_burst, config.breaker);
        let ota = OtaShare::new(config.ota_packets_per_s, config.ota_running_max);
        let recorder = Recorder::new(config.recorder_bytes);
        let shared = Shared {
            config,
            directory,
            timers: Timers::default(),
            metrics,
            settlements: FxHashMap::default(),
            reports: FxHashMap::default(),
            report_ticket: 1,
            dirty: Vec::new(),
            binds_waiting: VecDeque::new(),
            wall: (0, DeviceTime::from_unix(0).to_bcd()),
            ota,
            recorder,
            anomalies: Anomalies::default(),
            jobs: 0,
            commands_waiting: Waits::default(),
        };
        Self {
            shared,
            limits,
            gate,
            accept_armed: u64::MAX,
            flush_armed: u64::MAX,
            conns: Slots::default(),
            devices: Slots::default(),
            by_id: Index::default(),
            latest: Vec::new(),
            body_log_at: 0,
            drain: None,
            drain_armed: u64::MAX,
            stopping: false,
        }
    }

    /// Its shard.
    pub const fn shard(&self) -> ShardId {
        self.shared.config.shard
    }

    /// Connections open.
    pub const fn connections(&self) -> usize {
        self.conns.len()
    }

    /// Commands that wait to be written.
    pub fn commands_waiting(&self) -> usize {
        self.shared.commands_waiting.iter().sum()
    }

    /// Jobs without an outcome.
    pub const fn jobs_under_way(&self) -> usize {
        self.shared.jobs
    }

    /// How many connections may be accepted now; at 0 the timer is armed for when it will be more.
    pub fn accept_allowance(&mut self, now: Now) -> usize {
        let allowance = self.gate.allowance(now.mono_ms);
        if allowance == 0 {
            let at = self.gate.opens_at(now.mono_ms);
            self.shared.timers.arm(&mut self.accept_armed, at, Timer::Accept);
        }
        allowance
    }

    /// A connection was accepted.
    ///
    /// # Errors
    /// A limit is reached: close it at once.
    pub fn accept(&mut self, now: Now, peer: IpAddr, listener: Listener) -> Result<ConnId, AcceptRefused> {
        self.gate.accepted();
        let peer = peer.to_canonical();
        let accepted = self.limits.enter(peer).inspect_err(|refused| {
            let reason = match refused {
                AcceptRefused::Connections => CloseReason::LimitTotal,
                AcceptRefused::ConnectionsPerIp => CloseReason::LimitPerIp,
            };
            self.shared.metrics.closed[reason].inc();
        })?;
        self.shared.metrics.accepted.inc();
        self.shared.metrics.connections.inc();
        let key = self.conns.insert(Conn::new(peer, listener, accepted, now.mono_ms));
        self.arm_conn(now, key);
        Ok(key.into())
    }

    /// Accepting failed; `exhausted`: for want of descriptors or memory.
    pub fn accept_failed(&mut self, now: Now, exhausted: bool) {
        if exhausted {
            self.shared.metrics.events[ShardEvent::AcceptExhausted].inc();
            if self.gate.exhausted(now.mono_ms) {
                log::warn!(target: "chargegate::accept", "out of descriptors or memory: accepting pauses");
            }
        }
    }

    /// Bytes came on a connection.
    pub fn receive(&mut self, now: Now, conn: ConnId, bytes: &[u8], effects: &mut Effects) {
        let key = Key::from(conn);
        let Some(state) = self.conns.get_mut(key) else { return };
        state.last_rx = now.mono_ms;
        state.received += bytes.len() as u64;
        self.shared.metrics.received_bytes.add(bytes.len() as u64);
        // A socket with one device: every byte is a sign of its life. With several, each has to speak for itself.
        if let ([device], false) = (&*state.devices, state.shared)
            && let Some(device) = self.devices.get(*device)
        {
            device.entry.seen(now.unix_ms);
        }
        match state.tail.take() {
            None => {
                let used = self.drain(now, key, bytes, effects);
                self.keep_tail(now, key, bytes.get(used..).unwrap_or_default(), effects);
            }
            Some(mut tail) => {
                tail.bytes.extend_from_slice(bytes);
                let used = self.drain(now, key, &tail.bytes, effects);
                self.return_tail(now, key, tail, used, effects);
            }
        }
        self.list_noted(now);
    }

    /// A connection ended; the engine has closed it or closes it now.
    pub fn closed(&mut self, now: Now, conn: ConnId, reason: CloseReason, effects: &mut Effects) {
        self.forget_conn(now, conn.into(), reason, effects);
    }

    /// Bytes were taken by a socket, or by the buffer before it.
    pub fn sent(&mut self, now: Now, conn: ConnId, bytes: &[u8]) {
        self.shared.metrics.sent_bytes.add(bytes.len() as u64);
        self.record_sent(now, conn, bytes);
    }

    /// A peer has bytes to drain.
    pub fn write_blocked(&mut self, now: Now, conn: ConnId) {
        let key = Key::from(conn);
        if let Some(state) = self.conns.get_mut(key)
            && state.seldom().blocked_since == 0
        {
            state.set_blocked(now.mono_ms);
            self.arm_conn(now, key);
        }
    }

    /// The peer drained them.
    pub fn write_drained(&mut self, conn: ConnId) {
        if let Some(state) = self.conns.get_mut(conn.into()) {
            state.set_blocked(0);
        }
    }

    /// A message came.
    pub fn message(&mut self, now: Now, message: Message, effects: &mut Effects) {
        match message {
            Message::Outcome(outcome) => {
                self.shared.jobs = self.shared.jobs.saturating_sub(1);
                self.outcome(now, outcome, effects);
                self.bind_waiting(now, effects);
            }
            Message::OrderChanged { order, commands, withdrawn } => {
                self.with_device(now, order.device_id, effects, |device, cx| {
                    device.order_changed(cx, &order, commands, &withdrawn);
                });
            }
            Message::CommandsQueued(device_id) => {
                self.with_device(now, device_id, effects, Device::claim);
            }
            Message::CardAnswer { device_id, ticket, verdict } => {
                self.with_device(now, device_id, effects, |device, cx| device.card_answered(cx, ticket, verdict));
            }
            Message::SettingsChanged(settings) => {
                self.with_device(now, settings.device_id, effects, |device, cx| {
                    device.settings_changed(cx, &settings);
                });
            }
            Message::NetworkChanged(told) => {
                self.with_device(now, told.device_id, effects, |device, cx| device.network_changed(cx, &told));
            }
            Message::Superseded { device_id, generation } => self.superseded(now, device_id, generation, effects),
            Message::BoundElsewhere { device_id, epoch } => {
                self.bound_elsewhere(now, device_id, epoch, effects);
            }
            Message::Drain(pace) => self.begin_drain(now, pace, effects),
            Message::Undrain => self.end_drain(),
            Message::Stop(pace) => {
                self.stopping = true;
                self.begin_drain(now, pace, effects);
            }
            Message::OtaStart(start) => {
                self.with_device(now, start.task.device_id, effects, |device, cx| device.ota_start(cx, *start));
            }
            Message::OtaEnded { device_id, task_id } => {
                self.with_device(now, device_id, effects, |device, cx| device.ota_cancelled(cx, task_id));
            }
            Message::Inquiry(inquiry) => self.inquired(now, *inquiry, effects),
        }
        self.list_noted(now);
    }

    /// Handles deadlines that have passed.
    pub fn timeout(&mut self, now: Now, effects: &mut Effects) {
        while let Some((at, timer)) = self.shared.timers.pop(now.mono_ms) {
            match timer {
                Timer::Conn(slot) => self.conn_timeout(now, slot, at, effects),
                Timer::Device(slot) => self.device_timeout(now, slot, at, effects),
                Timer::Flush => {
                    self.flush_armed = u64::MAX;
                    self.flush(now, effects);
                }
                Timer::Accept => self.accept_armed = u64::MAX,
                Timer::Drain => self.drain_armed = u64::MAX,
            }
        }
        self.drain_on(now, effects);
        self.list_noted(now);
        if !self.shared.dirty.is_empty() {
            self.shared.timers.arm(
                &mut self.flush_armed,
                now.mono_ms + self.shared.config.timeouts.flush,
                Timer::Flush,
            );
        }
    }

    /// The next deadline, monotonic ms.
    pub fn poll_timeout(&self) -> Option<u64> {
        self.shared.timers.next()
    }

    /// The driver's turn began `late_ms` after it was due, with this many messages waiting.
    pub fn turn_began(&self, late_ms: u64, messages: usize) {
        self.shared.metrics.loop_lag.record(Duration::from_millis(late_ms));
        self.shared.metrics.mailbox_depth.set(messages as u64);
        self.shared.metrics.reports_waiting.set((self.shared.settlements.len() + self.shared.reports.len()) as u64);
    }

    /// Whether a message for another shard arrived.
    pub fn told(&mut self, arrived: bool) {
        if !arrived {
            self.shared.metrics.events[ShardEvent::TellLost].inc();
        }
    }

    /// Latest values the store had no room for: kept for the next flush.
    pub fn latest_refused(&mut self, rows: &mut Vec<Latest>) {
        self.latest.append(rows);
        // Newer values follow within seconds; what is kept is bounded by what one flush makes.
        let excess = self.latest.len().saturating_sub(JOBS_MAX);
        for row in self.latest.drain(..excess) {
            // What was to be told only once is told again.
            if let Latest::Device { device_id, .. } = row
                && let Some(entry) = self.shared.directory.find(device_id)
            {
                entry.tell(Untold::ALL);
            }
        }
    }

    /// Whether the shard accepts no more and closes its connections.
    pub const fn is_draining(&self) -> bool {
        self.drain.is_some()
    }

    /// Whether the shard was told to stop and has nothing left to do.
    pub fn is_stopped(&self) -> bool {
        self.stopping && self.shared.jobs == 0 && self.conns.len() == 0 && self.shared.dirty.is_empty()
    }

    /// Submits binds that waited for room.
    fn bind_waiting(&mut self, now: Now, effects: &mut Effects) {
        while self.shared.has_bind_room()
            && let Some(device_id) = self.shared.binds_waiting.pop_front()
        {
            let key = self.key_of(device_id);
            let mut cx = Cx { now, shared: &mut self.shared, effects };
            if let Some(device) = key.and_then(|key| self.devices.get_mut(key)) {
                device.bind_on(&mut cx);
            }
        }
        if self.shared.binds_waiting.is_empty() {
            // The storm is over.
            self.shared.binds_waiting = VecDeque::new();
        }
    }

    fn flush(&mut self, now: Now, effects: &mut Effects) {
        effects.latest.append(&mut self.latest);
        let mut cx = Cx { now, shared: &mut self.shared, effects };
        for device_key in std::mem::take(&mut cx.shared.dirty) {
            if let Some(device) = self.devices.get_mut(device_key) {
                device.flush(&mut cx);
            }
        }
    }
}
