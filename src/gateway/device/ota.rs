//! The update of a device's firmware: when the push may send, and what is stored of it.
//!
//! Packets have the lowest priority: they go out when nothing else may, keep the pause between commands, and take their place in
//! the fleet's rate. While an order is active the update rests, unless it is forced. What happened goes to the store one step
//! after the other; the task's row decides whether the update goes on.

use smallvec::SmallVec;

use super::Device;
use crate::{
    gateway::{
        OtaStart,
        core::Cx,
        ota::{Out, Push, Step},
        slots::Key,
        track::Track,
    },
    model::{DeviceId, FtpSource, OtaMethod, OtaState, Protocol},
    protocol::{
        Direction,
        ap3000::{
            codes::UpdateResult,
            encode::{self, Header},
        },
        bkv::{command::OTA, encode as bkv_encode},
    },
    store::{CommandLogRow, Job, OtaJob, OtaStep, OtaUpdate},
    telemetry::label::ShardEvent,
};

/// A step that the store did not take is submitted again.
const STORE_RETRY_MS: u64 = 1_000;
/// So is one whose answer does not come; the store takes a step twice without harm.
const STORE_ANSWER_MS: u64 = 60_000;

/// An update under way.
#[derive(Debug)]
pub(in crate::gateway) struct Ota {
    task_id: i64,
    way: Way,
    force: bool,
    /// Its first frame since it was taken up is on the wire.
    begun: bool,
    /// Nothing more is sent: it ended, or its binding did.
    over: bool,
    /// Its place in the fleet's rate, monotonic ms.
    slot: Option<u64>,
    /// What is to be stored, in order. The first is with the store while `in_store`.
    outbox: SmallVec<[(u64, OtaStep); 2]>,
    in_store: bool,
    retry_at: u64,
    ticket: u64,
}

#[derive(Debug)]
enum Way {
    /// The image is sent packet by packet.
    Push(Push),
    /// The device fetches a file. `before`: its firmware when it was told to.
    Ftp { source: FtpSource, before: Option<String>, told: bool },
    /// The device knows where to look.
    SelfUpdate,
    /// This device cannot be updated so.
    Impossible,
}

/// What is to be sent now.
#[derive(Clone, Copy, Debug)]
enum Due {
    Packet(Out),
    Ftp,
    SelfUpdate,
}

/// This shard's part of all updates.
#[derive(Debug)]
pub(in crate::gateway) struct OtaShare {
    /// Updates that may run at a time.
    running_max: usize,
    running: usize,
    /// Between two packets, µs.
    interval_us: u64,
    /// The next free place, µs of the monotonic clock.
    next_us: u64,
}

impl OtaShare {
    pub(in crate::gateway) fn new(packets_per_s: u64, running_max: usize) -> Self {
        Self { running_max, running: 0, interval_us: 1_000_000 / packets_per_s.max(1), next_us: 0 }
    }

    /// Takes the next place in the rate, monotonic ms.
    fn reserve(&mut self, now_ms: u64) -> u64 {
        let at = self.next_us.max(now_ms.saturating_mul(1_000));
        self.next_us = at + self.interval_us;
        at.div_ceil(1_000)
    }

    pub(in crate::gateway) const fn ended(&mut self) {
        self.running = self.running.saturating_sub(1);
    }
}

impl Device {
    /// The task and its image are there: begins or goes on. Nothing happens where the device cannot be reached or too many updates
    /// run; it is offered again.
    pub(in crate::gateway) fn ota_start(&mut self, cx: &mut Cx<'_>, start: OtaStart) {
        let OtaStart { task, image, verification } = start;
        if !self.is_live() {
            return;
        }
        if let Some(ota) = &self.ota {
            if ota.task_id == task.id || !ota.outbox.is_empty() {
                return;
            }
            self.ota_ended(cx);
        }
        if cx.shared.ota.running >= cx.shared.ota.running_max {
            return;
        }
        let mut refused = "not_supported";
        let way = match (task.method, self.id, image) {
            (OtaMethod::Ftp, DeviceId::Gateway(_), _) => match task.ftp {
                Some(source) => Way::Ftp { source, before: task.firmware_before.clone(), told: task.sent_at.is_some() },
                None => Way::Impossible,
            },
            (OtaMethod::SelfUpdate, DeviceId::Ap3000(_), _) => Way::SelfUpdate,
            (method, DeviceId::Ap3000(_), Some(image)) => {
                match Push::new(method, image, verification, task.packets_acked) {
                    Ok(push) if push.total() == task.packets_total => Way::Push(push),
                    Ok(_) | Err(_) => {
                        refused = "image_does_not_fit";
                        Way::Impossible
                    }
                }
            }
            _ => Way::Impossible,
        };
        cx.shared.ota.running += 1;
        let impossible = matches!(way, Way::Impossible);
        self.ota = Some(Box::new(Ota {
            task_id: task.id,
            way,
            force: task.force,
            begun: false,
            over: false,
            slot: None,
            outbox: SmallVec::new(),
            in_store: false,
            retry_at: u64::MAX,
            ticket: 0,
        }));
        if impossible {
            self.ota_over(cx, OtaStep::Failed(refused));
        }
        self.ota_firmware_seen(cx);
    }

    /// The task ended without this device's doing.
    pub(in crate::gateway) fn ota_cancelled(&mut self, cx: &mut Cx<'_>, task_id: i64) {
        if self.ota.as_ref().is_some_and(|ota| ota.task_id == task_id) {
            self.ota_ended(cx);
        }
    }

    /// Whether an update runs, or something of it is not stored yet.
    pub(in crate::gateway) const fn has_ota(&self) -> bool {
        self.ota.is_some()
    }

    /// Whether the update under way uses this command.
    pub(in crate::gateway) fn is_updated_by(&self, method: OtaMethod) -> bool {
        self.push().is_some_and(|push| push.method() == method)
    }

    fn push(&self) -> Option<&Push> {
        match self.ota.as_deref() {
            Some(Ota { way: Way::Push(push), over: false, .. }) => Some(push),
            _ => None,
        }
    }

    fn push_mut(&mut self) -> Option<&mut Push> {
        match self.ota.as_deref_mut() {
            Some(Ota { way: Way::Push(push), over: false, .. }) => Some(push),
            _ => None,
        }
    }

    fn ota_ended(&mut self, cx: &mut Cx<'_>) {
        if self.ota.take().is_some() {
            cx.shared.ota.ended();
        }
    }

    /// The binding ended: the next one goes on behind what is stored.
    pub(super) fn ota_unbound(&mut self, cx: &mut Cx<'_>) {
        match &mut self.ota {
            Some(ota) if ota.outbox.is_empty() => self.ota_ended(cx),
            Some(ota) => ota.over = true,
            None => {}
        }
    }

    /// The device answered a packet.
    pub(in crate::gateway) fn ota_reply(
        &mut self,
        cx: &mut Cx<'_>,
        command: u8,
        message_id: u16,
        result: UpdateResult,
        packet_no: u16,
    ) {
        let Some(push) = self.push_mut().filter(|push| push.method().command() == Some(command)) else {
            cx.shared.metrics.events[ShardEvent::ReplyUnmatched].inc();
            return;
        };
        let step = push.reply(message_id, result, packet_no);
        if step == Step::Ignored {
            cx.shared.metrics.events[ShardEvent::ReplyUnmatched].inc();
        }
        self.ota_step(cx, step);
    }

    /// The device wants its update from packet 1.
    pub(in crate::gateway) fn ota_requested(&mut self, cx: &mut Cx<'_>, method: OtaMethod) {
        if let Some(push) = self.push_mut().filter(|push| push.method() == method) {
            let step = push.start_requested();
            self.ota_step(cx, step);
        }
    }

    /// A device that fetched its firmware shows another one than before.
    pub(in crate::gateway) fn ota_firmware_seen(&mut self, cx: &mut Cx<'_>) {
        let Some(Ota { way: Way::Ftp { before: Some(before), told: true, .. }, over: false, .. }) = self.ota.as_deref()
        else {
            return;
        };
        if self.entry.firmware().is_some_and(|firmware| firmware != *before) {
            self.ota_over(cx, OtaStep::Done);
        }
    }

    fn ota_step(&mut self, cx: &mut Cx<'_>, step: Step) {
        match step {
            Step::Ignored | Step::Send => {}
            Step::Store(packets) => self.ota_store(cx, OtaStep::Acked(packets)),
            Step::Failed(reason) => self.ota_over(cx, OtaStep::Failed(reason)),
        }
    }

    fn ota_over(&mut self, cx: &mut Cx<'_>, step: OtaStep) {
        if let Some(ota) = &mut self.ota {
            ota.over = true;
        }
        if let OtaStep::Failed(reason) = step {
            cx.shared.metrics.events[ShardEvent::OtaFailed].inc();
            log::warn!(target: "chargegate::ota", device_id:% = self.id, reason = reason; "update failed");
        }
        self.ota_store(cx, step);
    }

    fn ota_store(&mut self, cx: &mut Cx<'_>, step: OtaStep) {
        let Some(ota) = &mut self.ota else { return };
        ota.ticket += 1;
        ota.outbox.push((ota.ticket, step));
        if !ota.in_store {
            self.ota_submit(cx);
        }
    }

    fn ota_submit(&mut self, cx: &mut Cx<'_>) {
        let (device_id, epoch, at) = (self.id, self.epoch, cx.now.unix_ms);
        let Some(ota) = &mut self.ota else { return };
        let Some((ticket, step)) = ota.outbox.first() else { return };
        let update = OtaUpdate { id: ota.task_id, device_id, epoch, ticket: *ticket, step: step.clone(), at };
        ota.in_store = cx.job(Job::Ota(Box::new(OtaJob::Update(update))));
        ota.retry_at = cx.now.mono_ms + if ota.in_store { STORE_ANSWER_MS } else { STORE_RETRY_MS };
    }

    /// A step is committed; `state`: where the task stands now.
    pub(in crate::gateway) fn ota_stored(&mut self, cx: &mut Cx<'_>, task_id: i64, ticket: u64, state: OtaState) {
        let Some(ota) = &mut self.ota else { return };
        if ota.task_id != task_id || ota.outbox.first().is_none_or(|(first, _)| *first != ticket) {
            return;
        }
        let (_, step) = ota.outbox.remove(0);
        ota.in_store = false;
        ota.retry_at = u64::MAX;
        if state.is_final() || ota.over && ota.outbox.is_empty() {
            log::info!(
                target: "chargegate::ota",
                task_id = task_id, device_id:% = self.id, state = state.as_str(); "update leaves the device"
            );
            return self.ota_ended(cx);
        }
        if let (Way::Push(push), OtaStep::Acked(packets)) = (&mut ota.way, step) {
            push.stored(packets);
        }
        self.ota_submit(cx);
    }

    /// A job of this device was not committed; it may have been this one.
    pub(super) fn ota_job_failed(&mut self, cx: &Cx<'_>) {
        if let Some(ota) = &mut self.ota
            && ota.in_store
        {
            ota.in_store = false;
            ota.retry_at = cx.now.mono_ms + STORE_RETRY_MS;
        }
    }

    /// What is due.
    pub(super) fn ota_poll(&mut self, cx: &mut Cx<'_>) {
        let Some(ota) = &self.ota else { return };
        if ota.retry_at <= cx.now.mono_ms {
            self.ota_submit(cx);
        }
        if !self.ota_rests()
            && let Some(push) = self.push_mut()
        {
            let step = push.timeout(cx.now.mono_ms);
            self.ota_step(cx, step);
        }
    }

    /// An order is active, and the update is not forced.
    fn ota_rests(&self) -> bool {
        self.ota.as_ref().is_some_and(|ota| !ota.force) && self.tracks.iter().any(Track::is_active)
    }

    fn ota_due(&self) -> Option<Due> {
        let ota = self.ota.as_ref().filter(|ota| !ota.over)?;
        match &ota.way {
            Way::Push(push) => push.next().map(Due::Packet),
            // What it has now must be known, to tell when it has something else.
            Way::Ftp { told, .. } => (!told && self.entry.firmware().is_some()).then_some(Due::Ftp),
            Way::SelfUpdate => (!ota.begun).then_some(Due::SelfUpdate),
            Way::Impossible => None,
        }
    }

    /// When [`Device::ota_poll`] or [`Device::ota_pump`] has something to do, monotonic ms; `u64::MAX`: nothing is due.
    pub(super) fn ota_deadline(&self) -> u64 {
        let Some(ota) = &self.ota else { return u64::MAX };
        if !self.is_live() || self.ota_rests() {
            return ota.retry_at;
        }
        let send = if self.ota_due().is_some() { ota.slot.unwrap_or(0).max(self.lane.paced_until()) } else { u64::MAX };
        let reply = self.push().map_or(u64::MAX, Push::deadline);
        ota.retry_at.min(send).min(reply)
    }

    /// Sends what the update wants sent, if nothing else is to be. Called behind the lane, which goes first.
    pub(super) fn ota_pump(&mut self, cx: &mut Cx<'_>) {
        if self.ota_rests() {
            if let Some(push) = self.push_mut() {
                push.rest();
            }
            return;
        }
        let mine = self.entry.owner() == Some(self.owner);
        let Some(conn) = self.conn.filter(|_| mine && self.epoch > 0) else { return };
        let (Some(due), now) = (self.ota_due(), cx.now.mono_ms) else { return };
        if now < self.lane.paced_until() {
            return;
        }
        let Some(ota) = &mut self.ota else { return };
        let slot = *ota.slot.get_or_insert_with(|| cx.shared.ota.reserve(now));
        if slot > now {
            return;
        }
        ota.slot = None;
        self.ota_write(cx, conn, due);
    }

    fn ota_write(&mut self, cx: &mut Cx<'_>, conn: Key, due: Due) {
        let firmware_before = self.entry.firmware();
        let own_id = self.own_msg_id();
        let magic = self.magic;
        let Some(ota) = &mut self.ota else { return };
        let start = cx.effects.tx.len();
        let (command, msg_id) = match (&mut ota.way, due, self.id) {
            (Way::Push(push), Due::Packet(out), DeviceId::Ap3000(phy_id)) => {
                let header = Header { magic, phy_id, msg_id: push.message_id() };
                let byte = push.method().command().unwrap_or_default();
                cx.effects.write(conn.into(), |tx| match out {
                    Out::Trigger => encode::empty(tx, &header, byte),
                    Out::Packet(no) => {
                        let fits = push.packet(no, |packet| encode::body(tx, &header, byte, packet));
                        debug_assert!(matches!(fits, Some(Ok(_))), "every packet of an image fits its command");
                    }
                });
                push.written(cx.now.mono_ms);
                (u16::from(byte), u32::from(header.msg_id))
            }
            (Way::Ftp { source, before, told }, Due::Ftp, DeviceId::Gateway(gateway_id)) => {
                cx.effects.write(conn.into(), |tx| {
                    bkv_encode::ota(tx, gateway_id, own_id, source.host, source.port, &source.file);
                });
                before.clone_from(&firmware_before);
                *told = true;
                (OTA, own_id)
            }
            (Way::SelfUpdate, Due::SelfUpdate, DeviceId::Ap3000(phy_id)) => {
                let msg_id = u16::try_from(own_id & 0xFFFF).unwrap_or(1);
                cx.effects.write(conn.into(), |tx| encode::empty(tx, &Header { magic, phy_id, msg_id }, 0xE4));
                (0xE4, own_id)
            }
            _ => return,
        };
        match self.id {
            DeviceId::Ap3000(_) => cx.shared.metrics.frames.ap3000(Direction::Down, command.to_be_bytes()[1]),
            DeviceId::Gateway(_) => cx.shared.metrics.frames.bkv(Direction::Down, command, 0),
        }
        cx.shared.metrics.events[ShardEvent::OtaPacket].inc();
        let raw = cx.effects.tx.get(start..).unwrap_or_default().to_vec();
        let (at, epoch) = (cx.now.unix_ms, self.live_epoch());
        cx.effects.log.push(CommandLogRow { at, device_id: self.id, up: false, command, msg_id, epoch, raw });
        let gap = if self.protocol == Protocol::Ap3000 { cx.shared.config.timeouts.command_gap } else { 0 };
        self.lane.hold(cx.now.mono_ms + gap);
        let begun = self.ota.as_mut().is_some_and(|ota| std::mem::replace(&mut ota.begun, true));
        if !begun {
            self.ota_store(cx, OtaStep::Sent { firmware_before });
        }
        if matches!(due, Due::SelfUpdate) {
            self.ota_over(cx, OtaStep::Done);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::OtaShare;

    #[test]
    fn packets_take_places_a_fixed_time_apart() {
        let mut share = OtaShare::new(400, 1);
        assert_eq!([0; 5].map(|now| share.reserve(now)), [0, 3, 5, 8, 10]);
        assert_eq!(share.reserve(1_000), 1_000, "what was not used is not made up for");
        assert_eq!(share.reserve(1_000), 1_003);
        assert_eq!(OtaShare::new(0, 1).interval_us, 1_000_000, "none a second would be for ever");
    }
}
