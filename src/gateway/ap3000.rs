//! AP3000 between the wire and the device: frames to reports and replies, commands to frames.
//!
//! Replies go first and at once; they never wait for the store, except the acknowledgement of a settlement, which follows its
//! commit. An older socket whose device has moved on is still answered, and its settlements are still stored.

mod host;

use host::UpdateRequest;

use super::{
    ConnId, Core, Effects, Now, call,
    core::{Ack, WaitingAck},
    device::{About, Answer, Asked, Charging, Device, PortReport},
    lane::{InFlight, Outgoing, ReplyKey},
    slots::Key,
};
use crate::{
    gateway::core::Cx,
    model::{
        Ap3000Call, CardNo, CardStart, ChargeMode, ChargeSpec, CommandBody, DeviceCall, DeviceId, OrderNo, OtaMethod,
        PortStatus, Protocol,
    },
    protocol::{
        Direction,
        ap3000::{
            Body, Frame, PhyId,
            body::{CardReply, ChargeControl, OrderConfirmReply, Registration, Settlement},
            codes::{
                AccountState, ChargeResult, PortState, RateMode, ReportState, StartMode, StopReason, port_status_code,
            },
            decode_body,
            encode::{self, Header},
            wire::Extra,
        },
    },
    store::{self, CommandLogRow, Job, SettlementEnd, SettlementKey},
};

const CHARGE_CONTROL: u16 = 0x82;
/// A host asks for the update that failed (host-server protocol v2.9).
const HOST_UPDATE_REQUEST: u8 = 0x15;
/// Wh in the wire's 0.01 kWh.
const WIRE_WH_PER_UNIT: u32 = 10;

impl Core {
    pub(super) fn ap3000_frame(&mut self, now: Now, conn: Key, frame: &Frame<'_>, effects: &mut Effects) {
        let device_id = DeviceId::Ap3000(frame.phy_id);
        let device = self.device_of(now, conn, device_id, Protocol::Ap3000, effects);
        if let Some(device) = device {
            // Its commands go out in the same dress, also the first ones, which may wait for nothing but the store.
            self.set_magic(device, frame.magic);
        }
        if self.is_asked(conn) {
            return;
        }
        self.shared_mut().metrics.frames.ap3000(Direction::Up, frame.command);
        // A device that is bound here was admitted.
        if device.is_none() && self.stranger(now, conn, device_id, effects) {
            return;
        }
        // Looked at in its place: it is large, and moving it costs more than reading it did.
        let decoded = decode_body(frame, Direction::Up);
        let body = match &decoded {
            Ok(body) => body,
            Err(error) => {
                self.refused_body(
                    device_id,
                    u16::from(frame.command),
                    *error,
                    now,
                    frame.raw,
                    u32::from(frame.msg_id),
                    device,
                    effects,
                );
                if let Some(device) = device {
                    self.on_frame(now, device, effects, |_, _| {});
                }
                return;
            }
        };
        let header = frame.header();
        let legacy_heartbeat_answered =
            device.and_then(|key| self.device(key)).is_none_or(|device| !device.sends_heartbeat);
        let sent = effects.tx.len();
        answer(ConnId::from(conn), &header, frame.command, body, legacy_heartbeat_answered, now, effects);
        if matches!(body, Body::Empty(_)) && frame.command == HOST_UPDATE_REQUEST {
            // A host whose update failed asks for it again: 0 where there is one to give.
            let updating =
                device.and_then(|key| self.device(key)).is_some_and(|device| device.is_updated_by(OtaMethod::F9));
            let result = u8::from(!updating);
            effects.write(conn.into(), |out| encode::result_reply(out, &header, frame.command, result));
        }
        if effects.tx.len() > sent {
            // A reply has the command of what it answers.
            self.shared_mut().metrics.frames.ap3000(Direction::Down, frame.command);
        }
        if let (Body::CardSwipe(swipe), None) = (body, device) {
            // Another connection has the device: no order would start here.
            let reply = CardReply {
                card_id: swipe.card_id,
                account_state: AccountState::DEVICE_NOT_REGISTERED,
                rate_mode: RateMode::TIMED,
                balance_or_expiry: 0,
                port: swipe.port,
                extra: Extra::NONE,
            };
            effects.write(ConnId::from(conn), |out| encode::card_reply(out, &header, &reply));
            self.shared_mut().metrics.frames.ap3000(Direction::Down, frame.command);
        }
        if let Body::FskRequest(request) = body {
            self.answer_fsk(now, conn, device, &header, request, effects);
        }
        let epoch = device.and_then(|key| self.device(key)).and_then(Device::live_epoch);
        let mut refused = false;
        if let Body::Settlement(settlement) = body {
            let waiting = WaitingAck { conn: conn.into(), device_id, epoch, ack: Ack::Ap3000 { header } };
            let mut cx = Cx { now, shared: self.shared_mut(), effects };
            refused = !settle(&mut cx, device_id, waiting, settlement, epoch, frame.raw);
        }
        if self.config().log_heartbeats || !matches!(frame.command, 0x01 | 0x21 | 0x22 | 0x12) {
            effects.log.push(CommandLogRow {
                at: now.unix_ms,
                device_id,
                up: true,
                command: u16::from(frame.command),
                msg_id: u32::from(frame.msg_id),
                epoch,
                raw: frame.raw.to_vec(),
            });
        }
        if let Some(device) = device {
            self.on_frame(now, device, effects, |device, cx| {
                if refused {
                    device.record_refused(cx);
                }
                device.ap3000(cx, conn, frame, body);
            });
        }
    }
}

/// Replies that need nothing but the frame.
fn answer(
    conn: ConnId,
    header: &Header,
    command: u8,
    body: &Body<'_>,
    legacy_heartbeat_answered: bool,
    now: Now,
    effects: &mut Effects,
) {
    match body {
        Body::Heartbeat(_) | Body::Registration(_) => {
            effects.write(conn, |out| encode::result_reply(out, header, command, 0));
        }
        Body::LegacyHeartbeat(_) if legacy_heartbeat_answered => {
            effects.write(conn, |out| encode::result_reply(out, header, command, 0));
        }
        Body::Empty(_) if matches!(command, 0x22 | 0x12) => {
            let seconds = u32::try_from(now.unix_ms / 1000).unwrap_or(u32::MAX);
            effects.write(conn, |out| encode::time_reply(out, header, command, seconds));
        }
        Body::OrderConfirm(confirm) => {
            let reply = OrderConfirmReply { port: confirm.port, result: 0, extra: Extra::NONE };
            effects.write(conn, |out| encode::order_confirm_reply(out, header, &reply));
        }
        _ => {}
    }
}

/// False: there is no room for it.
fn settle(
    cx: &mut Cx<'_>,
    device_id: DeviceId,
    waiting: WaitingAck,
    body: &Settlement<'_>,
    epoch: Option<i64>,
    raw: &[u8],
) -> bool {
    let online = body.start_mode == StartMode::ONLINE;
    let key = SettlementKey::Ap3000 {
        device_id,
        port: body.port,
        start_mode: body.start_mode.0,
        order_ref: body.order_no.0,
        duration_seconds: if online { 0 } else { body.duration_s },
        energy_raw: if online { 0 } else { body.energy },
    };
    let at = cx.now.unix_ms;
    cx.settle(key, waiting, || {
        Job::Settle(Box::new(store::Settlement {
            key,
            device_id,
            port_no: u16::from(body.port) + 1,
            duration_seconds: u32::from(body.duration_s),
            energy_wh: u32::from(body.energy) * WIRE_WH_PER_UNIT,
            amount_cent: None,
            end: SettlementEnd::Ap3000 { reason: body.stop_reason.0 },
            epoch,
            card_no: (body.start_mode == StartMode::CARD).then(|| CardNo::from_uid(body.card_or_code.0)),
            at,
            raw: raw.to_vec(),
        }))
    })
}

impl Device {
    fn ap3000(&mut self, cx: &mut Cx<'_>, conn: Key, frame: &Frame<'_>, body: &Body<'_>) {
        match body {
            Body::Heartbeat(heartbeat) => {
                self.sends_heartbeat = true;
                if let Some(signal) = heartbeat.signal {
                    self.entry.set_signal(signal);
                }
                self.heartbeat(cx);
                self.ap3000_reported(cx, body);
                self.port_states(cx, heartbeat.port_count, heartbeat.voltage, heartbeat.port_states.iter(), |_| None);
            }
            Body::LegacyHeartbeat(heartbeat) => {
                if let Some(signal) = heartbeat.signal {
                    self.entry.set_signal(signal);
                }
                if let Some(device_type) = heartbeat.device_type {
                    self.entry.set_device_type(device_type);
                }
                // Devices that send both kinds are told of by the other.
                if !self.sends_heartbeat {
                    self.heartbeat(cx);
                    self.set_firmware(heartbeat.fw_version);
                }
                self.ap3000_reported(cx, body);
                let power = heartbeat.port_power;
                let states = heartbeat.port_states.iter();
                self.port_states(cx, heartbeat.port_count, heartbeat.voltage, states, |index| power.get(index));
            }
            Body::Registration(registration) => self.registration(cx, registration),
            Body::ChargingReport(report) => {
                let charging = if report.port_state.is_charging() { Charging::Yes } else { Charging::Unclear };
                let status = match report.port_state {
                    ReportState::FULL => Some((PortStatus::Finished, PortState::FULL.0)),
                    ReportState::CHARGING | ReportState::FLOATING => Some((PortStatus::Charging, report.port_state.0)),
                    _ => None,
                };
                self.port_report(
                    cx,
                    &PortReport {
                        status,
                        voltage_dv: report.voltage,
                        power_dw: Some(report.power_now),
                        current_ma: report.current_ma,
                        energy_wh: Some(u32::from(report.energy) * WIRE_WH_PER_UNIT),
                        charged_seconds: Some(u32::from(report.duration_s)),
                        charging,
                        about: about(report.start_mode, report.order_no.0),
                        ..PortReport::of_port(u16::from(report.port) + 1)
                    },
                );
            }
            Body::OrderConfirm(confirm) => self.port_report(
                cx,
                &PortReport {
                    charged_seconds: Some(u32::from(confirm.duration_s)),
                    charging: Charging::Yes,
                    about: about(confirm.start_mode, confirm.order_no.0),
                    ..PortReport::of_port(u16::from(confirm.port) + 1)
                },
            ),
            Body::ChargeComplete(complete) => self.port_report(
                cx,
                &PortReport {
                    status: Some((PortStatus::Finished, PortState::FULL.0)),
                    energy_wh: Some(u32::from(complete.energy) * WIRE_WH_PER_UNIT),
                    charged_seconds: Some(u32::from(complete.duration_s)),
                    about: about(complete.start_mode, complete.order_no.0),
                    ..PortReport::of_port(u16::from(complete.port) + 1)
                },
            ),
            Body::ChargeControlReply(reply) => {
                let key = ReplyKey { command: (CHARGE_CONTROL, 0), msg_id: u32::from(frame.msg_id) };
                let result = reply.result;
                self.reply(cx, key, |in_flight| charge_answer(in_flight, result, reply.order_no.map(|raw| raw.0)));
            }
            Body::ResultReply(reply) => self.ap3000_replied(cx, frame, reply.result, body),
            Body::EepromReadReply(reply) => self.ap3000_replied(cx, frame, reply.result, body),
            Body::CabinetStopReply(reply) => self.ap3000_replied(cx, frame, reply.result, body),
            Body::Params11(params) => {
                self.beats_every(cx, Some(params.heartbeat_interval_s));
                self.ap3000_replied(cx, frame, 0, body);
            }
            // Queries are answered by the values alone.
            Body::Params12(_) | Body::Limits(_) | Body::UserCard(_) => {
                self.ap3000_replied(cx, frame, 0, body);
            }
            Body::Settlement(settlement) => {
                let about = about(settlement.start_mode, settlement.order_no.0);
                let port_no = u16::from(settlement.port) + 1;
                // The next heartbeat would say so too, minutes later; a record of an earlier charge says nothing of the port.
                if self.end_reported(cx, port_no, about)
                    && let Some(state) = port_state_after(settlement.stop_reason)
                {
                    let status = PortStatus::from_code(port_status_code(state.0));
                    let report = PortReport { status: Some((status, state.0)), ..PortReport::of_port(port_no) };
                    self.port_report(cx, &report);
                }
            }
            Body::CardSwipe(swipe) => {
                let long = swipe.long_card.and_then(|number| CardNo::from_long(number.as_bytes()));
                let card_no = long.unwrap_or_else(|| CardNo::from_uid(swipe.card_id.0));
                let asked = Asked::Ap3000 { header: frame.header(), card_id: swipe.card_id, port: swipe.port };
                self.card_swiped(cx, conn.into(), asked, card_no);
            }
            Body::Alarm(alarm) => self.alarm(cx, alarm),
            Body::PortEvent(event) => self.port_event(cx, event),
            Body::CabinetHeartbeat(beat) => self.cabinet(cx, beat),
            Body::HostHeartbeat(beat) => self.host_heartbeat(cx, beat),
            Body::HostStatus(status) => self.host_status(cx, status),
            Body::SubDeviceVersions(versions) => self.sub_devices(versions),
            Body::FirmwareUpdateRequest(wanted) => {
                let request = UpdateRequest {
                    command: frame.command,
                    device_type: wanted.device_type,
                    fw_version: wanted.fw_version,
                    package_type: wanted.package_type,
                };
                self.update_requested(cx, request);
            }
            Body::OtaReply(reply) if reply.packet_no == 0 && !self.has_ota() => {
                self.update_requested(cx, UpdateRequest::of(frame.command));
            }
            Body::OtaReply(reply) => self.ota_reply(cx, frame.command, frame.msg_id, reply.result, reply.packet_no),
            Body::Empty(_) if frame.command == HOST_UPDATE_REQUEST => {
                self.update_requested(cx, UpdateRequest::of(frame.command))
            }
            _ => {}
        }
    }

    /// A reply to a command of ours; its fields are the command's result.
    fn ap3000_replied(&mut self, cx: &mut Cx<'_>, frame: &Frame<'_>, code: u8, body: &Body<'_>) {
        let key = ReplyKey { command: (u16::from(frame.command), 0), msg_id: u32::from(frame.msg_id) };
        self.call_replied(cx, key, code, || serde_json::to_value(body).ok());
    }

    /// The device says how it is, by itself or because 0x81 asked.
    fn ap3000_reported(&mut self, cx: &mut Cx<'_>, body: &Body<'_>) {
        if self.awaits_reply() {
            let answers = |call: &DeviceCall| matches!(call, DeviceCall::Ap3000(Ap3000Call::QueryStatus));
            self.call_reported(cx, answers, || serde_json::to_value(body).ok());
        }
    }

    fn registration(&mut self, cx: &Cx<'_>, registration: &Registration<'_>) {
        self.set_firmware(registration.fw_version);
        self.entry.set_device_type(registration.device_type);
        self.add_numbered_ports(registration.port_count);
        self.is_charger(cx);
    }

    fn port_states(
        &mut self,
        cx: &mut Cx<'_>,
        count: u8,
        voltage: u16,
        states: impl Iterator<Item = u8>,
        power: impl Fn(usize) -> Option<u16>,
    ) {
        self.add_numbered_ports(count);
        self.is_charger(cx);
        for (index, raw) in states.enumerate() {
            let port_no = u16::try_from(index + 1).unwrap_or(u16::MAX);
            let status = PortStatus::from_code(port_status_code(raw));
            let power_dw = power(index);
            // A port that shows what it showed, and that no order concerns, needs nothing done: this is nearly every heartbeat.
            if power_dw.is_none() && self.port_unchanged(port_no, status, raw, voltage) {
                continue;
            }
            let charging = match status {
                PortStatus::Charging => Charging::Yes,
                PortStatus::Idle | PortStatus::Occupied | PortStatus::Fault => Charging::No,
                // Full: the settlement is still to come.
                PortStatus::Finished | PortStatus::Unknown => Charging::Unclear,
            };
            self.port_report(
                cx,
                &PortReport {
                    status: Some((status, raw)),
                    voltage_dv: Some(voltage),
                    power_dw,
                    charging,
                    ..PortReport::of_port(port_no)
                },
            );
        }
    }
}

/// What a port shows when its charge has ended for this reason; `None`: a fault, whose state the device alone knows.
fn port_state_after(reason: StopReason) -> Option<PortState> {
    match reason {
        StopReason::FULL => Some(PortState::FULL),
        StopReason::UNPLUGGED | StopReason::UNPLUGGED_JAMMED => Some(PortState::IDLE),
        reason if reason.is_fault() => None,
        _ => Some(PortState::PLUGGED),
    }
}

fn about(start_mode: StartMode, order_no: [u8; 16]) -> About {
    if start_mode != StartMode::ONLINE {
        return About::Foreign;
    }
    OrderNo::from_bytes(order_no).map_or(About::Foreign, About::Order)
}

fn charge_answer(in_flight: &InFlight, result: ChargeResult, order_no: Option<[u8; 16]>) -> Answer {
    let ours = order_no.is_some() && order_no == in_flight.what.order_no().map(|no| *no.as_bytes());
    // A resent start finds the port in the requested state because its first copy put it there.
    let done_before = in_flight.what.is_start() && in_flight.writes > 1 && ours && result == ChargeResult::SAME_STATE;
    if result == ChargeResult::SUCCESS || done_before {
        return Answer::Ok { business_no: None };
    }
    Answer::No { code: result.0, relay_may_be_on: result.may_be_on() }
}

/// Appends the frame of a command; `None`: AP3000 has no such command.
pub(super) fn encode(
    out: &mut Vec<u8>,
    magic: [u8; 3],
    phy_id: PhyId,
    what: &Outgoing,
    msg_id: u32,
) -> Option<ReplyKey> {
    let wire_msg_id = u16::try_from(msg_id & 0xFFFF).unwrap_or(0);
    let header = Header { magic, phy_id, msg_id: wire_msg_id };
    let key = |command: u16| Some(ReplyKey { command: (command, 0), msg_id: u32::from(wire_msg_id) });
    let order_no = what.order_no().map(|no| *no.as_bytes()).unwrap_or_default();
    let port = |port_no: u16| port_no.checked_sub(1).and_then(|port| u8::try_from(port).ok());
    match what {
        Outgoing::Command(command) => match &command.body {
            CommandBody::Start { port_no, spec, card } => {
                encode::charge_control(out, &header, &start(spec, card.as_ref(), port(*port_no)?, order_no)?);
                key(CHARGE_CONTROL)
            }
            CommandBody::Stop { port_no } => {
                encode::charge_control(out, &header, &ChargeControl::stop(port(*port_no)?, order_no));
                key(CHARGE_CONTROL)
            }
            CommandBody::Query { .. } => {
                encode::query_status(out, &header);
                key(0x81)
            }
            CommandBody::Call { call: DeviceCall::Ap3000(call) } => {
                call::encode_ap3000(out, &header, call)?;
                key(u16::from(call::ap3000_command(call)))
            }
            CommandBody::Call { call: DeviceCall::Gateway(_) } => None,
        },
        Outgoing::Stop { port_no, .. } => {
            encode::charge_control(out, &header, &ChargeControl::stop(port(*port_no)?, order_no));
            key(CHARGE_CONTROL)
        }
        Outgoing::Ask { .. } => {
            encode::query_status(out, &header);
            key(0x81)
        }
    }
}

fn start(spec: &ChargeSpec, card: Option<&CardStart>, port: u8, order_no: [u8; 16]) -> Option<ChargeControl<'static>> {
    let (rate_mode, quantity) = match &spec.mode {
        ChargeMode::Full => (RateMode::TIMED, 0),
        ChargeMode::Time { minutes } => (RateMode::TIMED, minutes.checked_mul(60)?),
        ChargeMode::Energy { wh } => (RateMode::METERED, u16::try_from(wh / WIRE_WH_PER_UNIT).ok()?),
        ChargeMode::Power { .. } | ChargeMode::ServiceFee { .. } => return None,
    };
    let mut control = ChargeControl::start(rate_mode, port, quantity, order_no);
    control.balance_or_expiry = card.map_or_else(|| spec.paid_cent.unwrap_or(0), |card| card.announce);
    if card.is_some_and(|card| card.monthly) && quantity == 0 {
        control.rate_mode = RateMode::MONTHLY;
    }
    if spec.stop_when_full && quantity > 0 {
        control.force_full_stop = Some(1);
    }
    Some(control)
}
