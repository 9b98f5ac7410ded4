//! Orders: tracks fed with reports, and what they want done.

use serde_json::json;
use smallvec::SmallVec;

use super::{About, BIND_RETRY_MS, Charging, Device, PortReport, RECORD_AGAIN_MS, RECORD_FOLLOWS_MS, UNKNOWN_ORDER_MS};
use crate::{
    gateway::{
        Now,
        core::Cx,
        order::Event,
        track::{Action, Actions, Track},
    },
    model::{Command, CommandState, EventType, Order, OrderNo, Protocol},
    store::{Job, OrderJob, OrderKey, Requester},
    telemetry::label::{AnomalyKind, OutboundFailure},
};

impl Device {
    pub(super) fn orders_report(&mut self, cx: &mut Cx<'_>, report: &PortReport) {
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
                self.note_contrary(port_no, false);
                let record_may_come = self.tracks.iter().any(|track| track.port_no == port_no && track.doubts_start())
                    && self.record_may_come(cx);
                let idle: SmallVec<[_; 1]> = self
                    .tracks
                    .iter_mut()
                    .filter(|track| track.port_no == port_no)
                    .filter_map(|track| {
                        track.not_charging(situation, record_may_come).map(|action| (track.order_no, action))
                    })
                    .collect();
                for (order_no, action) in idle {
                    if action == Action::Ask {
                        cx.shared.metrics.process().port_mismatches.inc();
                        cx.anomaly(self.id, AnomalyKind::PortMismatch, || {
                            format!("port {port_no} does not charge, and order {order_no} on it does")
                        });
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
            let progress = &mut self.seldom().progress;
            progress.retain(|(other, ..)| *other != order_no);
            progress.push((order_no, seconds, energy));
            if cx.shared.config.wanted.progress() {
                let data = json!({
                    "order_no": order_no, "device_id": self.id, "port_no": port_no,
                    "duration_seconds": seconds, "energy_wh": energy, "power_dw": report.power_dw,
                });
                cx.order_event(self.id, order_no, EventType::ChargingProgress, data);
            }
        }
    }

    /// The order a report is about, as far as the tracks tell.
    pub(super) fn order_of(&self, report: &PortReport) -> Option<OrderNo> {
        let on_port = |track: &&Track| track.port_no == report.port_no && track.is_active();
        match report.about {
            About::Order(order_no) => self.tracks.iter().find(|track| track.order_no == order_no),
            About::Business(no) => self.tracks.iter().filter(on_port).find(|track| track.business_no == Some(no)),
            About::Foreign => None,
            About::NoOrder => self.tracks.iter().filter(on_port).find(|track| track.business_no.is_none()),
            About::Nothing => self.tracks.iter().find(on_port),
        }
        .map(|track| track.order_no)
    }

    pub(super) fn evidence(&mut self, cx: &mut Cx<'_>, report: &PortReport) {
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
            About::NoOrder => {
                let numberless = |t: &Track| t.port_no == port_no && t.business_no.is_none() && t.is_active();
                self.tracks.iter().position(numberless)
            }
            About::Nothing if self.is_contrary(port_no) => None,
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
                self.command_done(cx, &in_flight, CommandState::Acked, None, None);
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
    /// True: it is the charge that holds the port.
    pub(in crate::gateway) fn end_reported(&mut self, cx: &Cx<'_>, port_no: u16, about: About) -> bool {
        let report = PortReport { about, ..PortReport::of_port(port_no) };
        let order_no = self.order_of(&report);
        let holds = self
            .tracks
            .iter()
            .any(|track| Some(track.order_no) == order_no && track.is_active() && track.port_no == port_no);
        for track in &mut *self.tracks {
            if Some(track.order_no) == order_no {
                track.end_seen(cx.now);
            } else {
                track.record_may_follow(cx.now);
            }
        }
        if self.protocol != Protocol::Ap3000 {
            self.records_may_come(cx, RECORD_FOLLOWS_MS);
        }
        holds
    }

    /// A record of the device was not stored, so it is not acknowledged and comes again. An AP3000 device keeps all others behind it.
    pub(in crate::gateway) fn record_refused(&mut self, cx: &Cx<'_>) {
        if self.protocol == Protocol::Ap3000 {
            self.tracks.iter_mut().for_each(|track| track.end_seen(cx.now));
        } else {
            self.records_may_come(cx, RECORD_AGAIN_MS);
        }
    }

    fn records_may_come(&mut self, cx: &Cx<'_>, for_ms: u64) {
        let until = &mut self.seldom().records_until;
        *until = (*until).max(cx.now.mono_ms + for_ms);
    }

    /// Whether the device ended charges of which the store may not know: an idle hole does not show then that a start never arrived.
    fn record_may_come(&self, cx: &Cx<'_>) -> bool {
        let told = self.seldom.as_ref().is_some_and(|seldom| cx.now.mono_ms < seldom.records_until);
        told || cx.is_settling(self.id)
    }

    pub(super) fn note_contrary(&mut self, port_no: u16, contrary: bool) {
        if contrary == self.is_contrary(port_no) {
            return;
        }
        let ports = &mut self.seldom().contrary;
        if contrary {
            ports.push(port_no);
        } else {
            ports.retain(|port| *port != port_no);
        }
    }

    fn is_contrary(&self, port_no: u16) -> bool {
        self.seldom.as_ref().is_some_and(|seldom| seldom.contrary.contains(&port_no))
    }

    /// A device charges for an order of ours that is not followed here: the store knows what that means.
    pub(super) fn ask_for_unknown(&mut self, cx: &mut Cx<'_>, order_no: OrderNo) {
        let until = self.seldom.as_ref().map_or(0, |seldom| seldom.unknown_order_until);
        if self.epoch > 0 && cx.now.mono_ms >= until {
            self.seldom().unknown_order_until = cx.now.mono_ms + UNKNOWN_ORDER_MS;
            self.tell(cx, order_no, Event::Evidence, None, None);
        }
    }

    pub(in crate::gateway) fn follow(&mut self, cx: &Cx<'_>, order: &Order, taken_over: bool) {
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
            if holds && held != Some(order.order_no) {
                cell.set_order(Some(order.order_no));
                self.entry.mark();
            } else if !holds && held == Some(order.order_no) {
                cell.set_order(None);
                self.entry.mark();
            }
        }
    }

    /// An order was created or changed, and is committed.
    pub(in crate::gateway) fn order_changed(
        &mut self,
        cx: &mut Cx<'_>,
        order: &Order,
        commands: Vec<Command>,
        withdrawn: &[i64],
    ) {
        self.follow(cx, order, false);
        let before = self.lane.waiting();
        self.lane.withdraw(withdrawn);
        self.waiting_changed(cx, &before);
        self.commands_claimed(cx, commands);
    }

    /// What was told of its orders had no effect: it is told again, or judged afresh.
    pub(in crate::gateway) fn retell(&mut self, now: Now) {
        for track in &mut *self.tracks {
            track.retell(now);
        }
    }

    /// A job of this device was not committed: what it told is told again.
    pub(in crate::gateway) fn job_failed(&mut self, cx: &mut Cx<'_>) {
        self.retell(cx.now);
        self.ota_job_failed(cx);
        if self.conn.is_some() && self.epoch == 0 && self.bind_at == u64::MAX {
            self.bind_at = cx.now.mono_ms + BIND_RETRY_MS;
        }
    }

    pub(super) fn act_all(&mut self, cx: &mut Cx<'_>, order_no: OrderNo, actions: Actions) {
        for action in actions {
            self.act(cx, order_no, action);
        }
    }

    pub(super) fn act(&mut self, cx: &mut Cx<'_>, order_no: OrderNo, action: Action) {
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

    pub(super) fn tell(
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
            fence: self.fence(),
            business_no,
            reason,
            at: cx.now.unix_ms,
            request_id: None,
            requester: Requester::default(),
            idempotency: None,
        };
        if !cx.job(Job::Order(Box::new(job)))
            && let Some(track) = self.tracks.iter_mut().find(|track| track.order_no == order_no)
        {
            track.retell(cx.now);
        }
    }
}
