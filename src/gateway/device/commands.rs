//! Commands: from the claimed row over the lane to the reply.

use std::time::Duration;

use super::{ASK_MS, Answer, Device};
use crate::{
    gateway::{
        ap3000, bkv,
        core::Cx,
        lane::{InFlight, Next, Outgoing, Pushed, ReplyKey, Unanswered, Waits},
        order::Event,
        slots::Key,
        track::Action,
    },
    model::{
        Command, CommandBody, CommandState, Completion, DeviceCall, DeviceId, OrderNo, PortAddress, Protocol,
        socket_of_port,
    },
    protocol::Direction,
    store::{Bound, CommandLogRow, CommandUpdate, Job},
    telemetry::label::{AnomalyKind, OutboundFailure, ShardEvent},
};

impl Device {
    pub(in crate::gateway) fn commands_waiting(&self) -> Waits {
        self.lane.waiting()
    }

    /// Asks the store for commands that are queued for this device.
    pub(in crate::gateway) fn claim(&mut self, cx: &mut Cx<'_>) {
        if let Some(epoch) = self.live_epoch() {
            cx.job(Job::Claim { device_id: self.id, epoch, at: cx.now.unix_ms });
        }
    }

    /// Commands of this device's epoch go into the lane.
    pub(in crate::gateway) fn commands_claimed(&mut self, cx: &mut Cx<'_>, commands: Vec<Command>) {
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
                let (port_no, order_no) = (outgoing.port_no(), outgoing.order_no());
                if let Some(key) = bkv::reply_key(&outgoing) {
                    self.lane.maybe_written(outgoing, key, cx.now.mono_ms.saturating_add(left), cx.now.mono_ms);
                }
                if let Some(track) = self.tracks.iter_mut().find(|track| Some(track.order_no) == order_no) {
                    track.start_maybe_written(cx.now);
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
                            device_id: self.id,
                            id,
                            epoch: self.epoch,
                            state: CommandState::Withdrawn,
                            order_no: None,
                            attempts: 0,
                            reason: Some("stopped_before_start"),
                            result: None,
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

    pub(super) fn waiting_changed(&self, cx: &mut Cx<'_>, before: &Waits) {
        let after = self.lane.waiting();
        cx.count_waiting(before, &after);
        self.entry.set_waiting(u32::try_from(after.iter().sum::<usize>()).unwrap_or(u32::MAX));
    }

    /// Asks for the state of a port; not stored, losing it is harmless.
    pub(in crate::gateway) fn ask(&mut self, cx: &mut Cx<'_>, port_no: u16) {
        // An AP3000 device always answers for all its ports.
        let port_no = if self.protocol == Protocol::Ap3000 { 0 } else { port_no };
        self.lane.push(Outgoing::Ask { port_no }, cx.now.mono_ms + ASK_MS);
    }

    /// Stops a charge that should not run. A BKV/GN stop names only the hole, so it is not sent when a newer order is active there.
    pub(super) fn stop_stray(&mut self, cx: &mut Cx<'_>, order_no: OrderNo, port_no: u16) {
        if self.tracks.iter().any(|track| track.port_no == port_no && track.is_active()) {
            return;
        }
        self.lane.push(Outgoing::Stop { order_no, port_no }, cx.now.mono_ms + ASK_MS);
    }

    /// Whether something waits to be written.
    pub(in crate::gateway) fn has_work(&self) -> bool {
        !self.lane.is_empty() || !self.tracks.is_empty() || self.has_ota()
    }

    /// Whether a deadline moved to an earlier time since the timer was set.
    pub(in crate::gateway) fn take_sooner(&mut self) -> bool {
        std::mem::take(&mut self.sooner)
    }

    /// Writes what may be written now.
    pub(in crate::gateway) fn pump(&mut self, cx: &mut Cx<'_>) {
        if !self.lane.is_empty() {
            self.pump_lane(cx);
        }
        if self.has_ota() {
            self.ota_pump(cx);
        }
    }

    fn pump_lane(&mut self, cx: &mut Cx<'_>) {
        let before = self.lane.waiting();
        while let Some(what) = self.lane.expired(cx.now.mono_ms) {
            if let Some((id, epoch)) = what.claim() {
                cx.shared.metrics.process().outbound_failed[OutboundFailure::Expired].inc();
                let update = CommandUpdate {
                    device_id: self.id,
                    id,
                    epoch,
                    state: CommandState::Expired,
                    order_no: None,
                    attempts: 0,
                    reason: Some("not_written_in_time"),
                    result: None,
                    at: cx.now.unix_ms,
                };
                cx.job(Job::Command(update));
            }
        }
        // The four facts: deadline (above), epoch (commands enter the lane only for the live one, and leave it with the
        // binding), generation (here), withdrawals (they leave the lane).
        let mine = self.entry.owner() == Some(self.owner);
        while let Some(conn) = self.conn.filter(|_| mine && self.epoch > 0) {
            let Some(next) = self.lane.next(cx.now.mono_ms) else { break };
            if let Outgoing::Stop { order_no, port_no } = next.what
                && self.tracks.iter().any(|t| t.port_no == port_no && t.order_no != order_no && t.is_active())
            {
                // The port changed hands while this waited: it would end the charge of another order.
                continue;
            }
            self.write(cx, conn, next);
        }
        self.waiting_changed(cx, &before);
    }

    pub(super) fn write(&mut self, cx: &mut Cx<'_>, conn: Key, next: Next) {
        let what = &next.what;
        let msg_id = match what {
            Outgoing::Command(command) => command.msg_id,
            Outgoing::Ask { .. } | Outgoing::Stop { .. } => self.own_msg_id(),
        };
        let Some(key) = self.send(cx, conn, what, msg_id) else {
            self.unsendable(cx, what);
            return;
        };
        let done = what.call().is_some_and(|call| call.completion() == Completion::Write);
        self.command_written(cx, what, if done { CommandState::Acked } else { CommandState::Written });
        let gap = if self.protocol == Protocol::Ap3000 { cx.shared.config.timeouts.command_gap } else { 0 };
        if done {
            self.lane.hold(cx.now.mono_ms + gap);
        } else {
            self.lane.written(next, key, cx.now.mono_ms, gap);
        }
    }

    /// A row was written for the first time by this process.
    fn command_written(&mut self, cx: &mut Cx<'_>, what: &Outgoing, state: CommandState) {
        let Outgoing::Command(command) = what else { return };
        cx.shared.metrics.outbound_sent.inc();
        let order_no = command.order_no.filter(|_| what.is_start());
        if let Some(track) = self.tracks.iter_mut().find(|track| Some(track.order_no) == order_no) {
            track.start_written(cx.now);
        }
        let update = CommandUpdate {
            device_id: self.id,
            id: command.id,
            epoch: command.epoch,
            state,
            order_no,
            attempts: 1,
            reason: None,
            result: None,
            at: cx.now.unix_ms,
        };
        cx.job(Job::Command(update));
    }

    /// Encodes and writes; `None`: the device's protocol has no such command.
    pub(super) fn send(&self, cx: &mut Cx<'_>, conn: Key, what: &Outgoing, msg_id: u32) -> Option<ReplyKey> {
        let start = cx.effects.tx.len();
        let readings = cx.shared.config.bkv;
        let mut key = None;
        cx.effects.write(conn.into(), |out| {
            key = match self.id {
                DeviceId::Ap3000(phy_id) => ap3000::encode(out, self.magic, phy_id, what, msg_id),
                // A named command says itself which socket it is for.
                DeviceId::Gateway(gateway_id) if what.call().is_some() => {
                    bkv::encode(out, gateway_id, 0, 0, what, msg_id, &readings)
                }
                DeviceId::Gateway(gateway_id) => {
                    let address = socket_of_port(what.port_no(), self.entry.networked());
                    match address {
                        Some(PortAddress::Hole { socket, hole }) => {
                            bkv::encode(out, gateway_id, socket, hole, what, msg_id, &readings)
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
        let (at, epoch) = (cx.now.unix_ms, self.live_epoch());
        cx.effects.log.push(CommandLogRow { at, device_id: self.id, up: false, command, msg_id, epoch, raw });
        Some(key)
    }

    /// A command that the protocol cannot express: refused where it was accepted, so this is a stored row of another time.
    pub(super) fn unsendable(&mut self, cx: &mut Cx<'_>, what: &Outgoing) {
        let Outgoing::Command(command) = what else { return };
        let update = CommandUpdate {
            device_id: self.id,
            id: command.id,
            epoch: command.epoch,
            state: CommandState::Dead,
            order_no: None,
            attempts: 0,
            reason: Some("not_supported"),
            result: None,
            at: cx.now.unix_ms,
        };
        cx.job(Job::Command(update));
        if let Some(order_no) = what.order_no().filter(|_| what.is_start()) {
            let event = Event::StartRefused { relay_may_be_on: false };
            self.tell(cx, order_no, event, None, Some("not_supported".into()));
        }
    }

    pub(super) fn resend(&mut self, cx: &mut Cx<'_>, order_no: OrderNo, stop: bool) {
        let Some(conn) = self.conn.filter(|_| self.entry.owner() == Some(self.owner)) else { return };
        let Some(in_flight) = self.lane.in_flight_mut(order_no, stop) else {
            // Another process wrote it, or this one for an earlier connection. A start is not repeated blindly.
            let track = self.tracks.iter().find(|track| stop && track.order_no == order_no);
            if let Some(port_no) = track.map(|track| track.port_no) {
                self.lane.push(Outgoing::Stop { order_no, port_no }, cx.now.mono_ms + ASK_MS);
            }
            return;
        };
        let first = in_flight.writes == 0;
        if first && cx.now.mono_ms >= in_flight.deadline {
            return;
        }
        in_flight.writes = in_flight.writes.saturating_add(1);
        let (what, msg_id) = (in_flight.what.clone(), in_flight.key.msg_id);
        if first {
            in_flight.written_at = cx.now.mono_ms;
            self.command_written(cx, &what, CommandState::Written);
        } else {
            cx.shared.metrics.events[ShardEvent::Resend].inc();
        }
        self.send(cx, conn, &what, msg_id);
        let gap = if self.protocol == Protocol::Ap3000 { cx.shared.config.timeouts.command_gap } else { 0 };
        self.lane.hold(cx.now.mono_ms + gap);
    }

    /// Whether some command waits for its reply.
    pub(in crate::gateway) fn awaits_reply(&self) -> bool {
        self.lane.awaits_reply()
    }

    /// Whether a command was written and may still be answered, or is about to be written.
    pub(in crate::gateway) fn owes_answer(&self, now: crate::gateway::Now) -> bool {
        self.lane.owes_answer(now.mono_ms)
    }

    /// Named commands whose reply is late: sent once more, tried again later, or given up.
    pub(super) fn replies_due(&mut self, cx: &mut Cx<'_>) {
        let connected = self.conn.filter(|_| self.entry.owner() == Some(self.owner));
        while let Some((what, msg_id)) = self.lane.resend_due(cx.now.mono_ms) {
            let Some(conn) = connected else { continue };
            cx.shared.metrics.events[ShardEvent::Resend].inc();
            self.send(cx, conn, &what, msg_id);
            self.hold_commands(cx);
        }
        while let Some(unanswered) = self.lane.unanswered(cx.now.mono_ms) {
            let completion = match &unanswered {
                Unanswered::GivenUp(in_flight) => in_flight.what.call().map(DeviceCall::completion),
                Unanswered::TriedAgain(completion) => Some(*completion),
            };
            if completion == Some(Completion::Reply) {
                cx.shared.metrics.process().outbound_failed[OutboundFailure::AckTimeout].inc();
                self.entry.ack_timed_out(cx.now.unix_ms);
            }
            if let Unanswered::GivenUp(in_flight) = unanswered {
                cx.shared.metrics.process().outbound_failed[OutboundFailure::Dead].inc();
                self.command_done(cx, &in_flight, CommandState::Dead, Some("no_reply"), None);
            }
        }
    }

    /// The device answered a named command: 0 is done, anything else is its refusal. `result`: what it said, as JSON.
    pub(in crate::gateway) fn call_replied(
        &mut self,
        cx: &mut Cx<'_>,
        key: ReplyKey,
        code: u8,
        result: impl FnOnce() -> Option<serde_json::Value>,
    ) {
        let Some(in_flight) = self.lane.reply(key) else {
            cx.shared.metrics.events[ShardEvent::ReplyUnmatched].inc();
            return;
        };
        let waited = cx.now.mono_ms.saturating_sub(in_flight.written_at);
        cx.shared.metrics.ack_latency.record(Duration::from_millis(waited));
        let result = result().map(|result| result.to_string());
        let state = if code == 0 { CommandState::Acked } else { CommandState::Refused };
        self.command_done(cx, &in_flight, state, (code != 0).then_some("device_refused"), result);
    }

    /// A report came that answers a named command, if one asked for it.
    pub(in crate::gateway) fn call_reported(
        &mut self,
        cx: &mut Cx<'_>,
        answers: impl Fn(&DeviceCall) -> bool,
        result: impl FnOnce() -> Option<serde_json::Value>,
    ) {
        if let Some(in_flight) = self.lane.reported(answers) {
            let result = result().map(|result| result.to_string());
            self.command_done(cx, &in_flight, CommandState::Acked, None, result);
        }
    }

    /// A message id of the gateway's own, from the block the store reserved for this epoch.
    pub(super) fn own_msg_id(&mut self) -> u32 {
        let offset = u32::from(self.msg_id_used);
        self.msg_id_used = (self.msg_id_used + 1) % (Bound::MSG_IDS as u8);
        self.msg_id_first.wrapping_add(offset).max(1)
    }

    /// The device answered a command.
    pub(in crate::gateway) fn reply(
        &mut self,
        cx: &mut Cx<'_>,
        key: ReplyKey,
        answer: impl FnOnce(&InFlight) -> Answer,
    ) {
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
        self.command_done(cx, &in_flight, state, None, None);
        let Some(order_no) = in_flight.what.order_no() else { return };
        if in_flight.what.is_start() {
            match answer {
                Answer::Ok { business_no } => {
                    let event = match self.tracks.iter_mut().find(|track| track.order_no == order_no) {
                        Some(track) => {
                            track.business_no = track.business_no.or(business_no);
                            track.start_acked(cx.now, &cx.shared.config.orders)
                        }
                        // Claimed by a poll, and nobody told of the order: what it is now, the answer to this says.
                        None if waited <= cx.shared.config.orders.start_ack => Some(Action::Tell(Event::StartAcked)),
                        None => Some(Action::Tell(Event::StartAckedLate)),
                    };
                    if let Some(Action::Tell(event)) = event {
                        self.tell(cx, order_no, event, business_no, None);
                    }
                }
                Answer::No { code, relay_may_be_on } => {
                    let port_no = in_flight.what.port_no();
                    cx.anomaly(self.id, AnomalyKind::StartRefused, || {
                        format!("start of order {order_no} on port {port_no} refused with code {code:#04x}")
                    });
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

    pub(super) fn command_done(
        &self,
        cx: &mut Cx<'_>,
        in_flight: &InFlight,
        state: CommandState,
        reason: Option<&'static str>,
        result: Option<String>,
    ) {
        if state == CommandState::Refused {
            cx.shared.metrics.process().outbound_failed[OutboundFailure::Refused].inc();
        }
        if let Some((id, epoch)) = in_flight.what.claim() {
            let (at, attempts) = (cx.now.unix_ms, in_flight.writes);
            let update =
                CommandUpdate { device_id: self.id, id, epoch, state, order_no: None, attempts, reason, result, at };
            cx.job(Job::Command(update));
        }
    }
}
