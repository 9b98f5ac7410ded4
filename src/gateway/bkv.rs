//! BKV/GN between the wire and the device: frames to reports and replies, commands to frames.
//!
//! Everything a gateway reports is answered at once, except end reports and exceptions, which are acknowledged after their
//! commit. Business numbers tie an order to what its hole shows.

use serde_json::json;

use super::{
    BkvReadings, ConnId, Core, Effects, Now, call,
    core::{Ack, Cx, WaitingAck},
    device::{About, Answer, Asked, Charging, Device, PortReport},
    gn,
    lane::{Outgoing, ReplyKey},
    slots::Key,
};
use crate::{
    model::{
        CardNo, CardStart, ChargeMode, CommandBody, DeviceCall, DeviceId, EventType, GatewayCall, PortStatus,
        PowerTier, port_of_socket,
    },
    protocol::{
        Direction,
        bkv::{
            Body, Frame, GatewayId,
            body::{Level, Start},
            clock::TimeOfDay,
            command::{CONTROL, NETWORK, PACKET, packet_sub, sub},
            decode_body,
            encode::{self, CardTerms, FeeOrder, PowerOrder},
            packet::{Exception, FeeTier},
            report::{EndReport, HoleState},
        },
    },
    store::{CommandLogRow, DeviceEvent, Job, Settlement, SettlementEnd, SettlementKey},
    telemetry::label::{AnomalyKind, ShardEvent},
};

impl Core {
    pub(super) fn bkv_frame(&mut self, now: Now, conn: Key, frame: &Frame<'_>, effects: &mut Effects) {
        let protocol = gn::protocol_of(self.listener(conn));
        if frame.direction == Direction::Down {
            self.shared_mut().metrics.events[ShardEvent::WrongDirection].inc();
            let device_id = DeviceId::Gateway(frame.gateway_id);
            let mut cx = Cx { now, shared: self.shared_mut(), effects };
            cx.anomaly(device_id, AnomalyKind::BadDirection, || "a frame that only a server sends".to_owned());
            return;
        }
        let device_id = DeviceId::Gateway(frame.gateway_id);
        let device = self.device_of(now, conn, device_id, protocol, effects);
        if self.is_asked(conn) {
            return;
        }
        self.shared_mut().metrics.frames.bkv(Direction::Up, frame.command, frame.sub().unwrap_or(0));
        // A device that is bound here was admitted.
        if device.is_none() && self.stranger(now, conn, device_id, effects) {
            return;
        }
        // Looked at in its place: it is large, and moving it costs more than reading it did.
        let decoded = decode_body(frame);
        let body = match &decoded {
            Ok(body) => body,
            Err(error) => {
                // A heartbeat of another length still wants the time.
                if frame.command == 0 {
                    let seconds = now.unix_ms / 1000;
                    effects.write(conn.into(), |out| encode::heartbeat_reply(out, frame.gateway_id, seconds));
                    self.shared_mut().metrics.frames.bkv(Direction::Down, frame.command, 0);
                }
                self.gn_unread(now, device, frame, *error, effects);
                return;
            }
        };
        let sent = effects.tx.len();
        let time_bcd = self.shared_mut().wall_bcd(now);
        answer(conn.into(), frame.gateway_id, body, time_bcd, effects);
        if effects.tx.len() > sent {
            // A reply has the command and sub-command of what it answers.
            self.shared_mut().metrics.frames.bkv(Direction::Down, frame.command, frame.sub().unwrap_or(0));
        }
        let epoch = device.and_then(|key| self.device(key)).and_then(Device::live_epoch);
        let mut refused = false;
        if let Some(report) = body.end_report() {
            let ack = end_ack(frame.gateway_id, body, &report, self.config().bkv.charge_end_ack);
            let waiting = WaitingAck { conn: conn.into(), device_id, epoch, ack };
            let mut cx = Cx { now, shared: self.shared_mut(), effects };
            refused = !settle(&mut cx, device_id, waiting, &report, epoch, frame.raw);
        }
        if let Body::Exception(exception) = body {
            let header = exception.packet.header;
            let ack = Ack::BkvException { gateway_id: frame.gateway_id, header, socket: exception.socket };
            let waiting = WaitingAck { conn: conn.into(), device_id, epoch, ack };
            let event = exception_event(device_id, exception, now);
            Cx { now, shared: self.shared_mut(), effects }.report(waiting, event);
        }
        if self.config().log_heartbeats || frame.command != 0 {
            effects.log.push(CommandLogRow {
                at: now.unix_ms,
                device_id,
                up: true,
                command: frame.command,
                msg_id: frame.sequence,
                epoch,
                raw: frame.raw.to_vec(),
            });
        }
        if let Some(device) = device {
            self.on_frame(now, device, effects, |device, cx| {
                if refused {
                    device.record_refused(cx);
                }
                device.bkv(cx, conn, frame, body);
            });
        }
    }
}

/// Replies that need nothing but the frame.
fn answer(conn: ConnId, gateway_id: GatewayId, body: &Body<'_>, time_bcd: [u8; 7], effects: &mut Effects) {
    match body {
        Body::Heartbeat(_) => effects.write(conn, |out| encode::heartbeat_reply_at(out, gateway_id, time_bcd)),
        Body::Push(packet) => {
            let header = packet.header;
            effects.write(conn, |out| encode::push_ack(out, gateway_id, header, true));
        }
        Body::Event(event) => {
            let header = event.packet.header;
            effects.write(conn, |out| encode::event_ack(out, gateway_id, header, event.socket.unwrap_or(0), true));
        }
        _ => {}
    }
}

fn end_ack(gateway_id: GatewayId, body: &Body<'_>, report: &EndReport, charge_end_ack: u8) -> Ack {
    let socket = report.socket;
    match body {
        Body::FeeEnd(end) => Ack::BkvFeeEnd { gateway_id, header: end.packet.header, socket, hole: report.hole },
        Body::PowerEnd(..) => Ack::BkvEnd { gateway_id, sub: sub::POWER_END, socket, replay: None },
        Body::ChargeEnd(..) => {
            let other = if charge_end_ack == sub::CHARGE_END { sub::CARD_END } else { sub::CHARGE_END };
            Ack::BkvEnd { gateway_id, sub: charge_end_ack, socket, replay: Some(other) }
        }
        _ => Ack::BkvEnd { gateway_id, sub: sub::CARD_END, socket, replay: None },
    }
}

/// False: there is no room for it.
fn settle(
    cx: &mut Cx<'_>,
    device_id: DeviceId,
    waiting: WaitingAck,
    report: &EndReport,
    epoch: Option<i64>,
    raw: &[u8],
) -> bool {
    let key = SettlementKey::Bkv {
        device_id,
        socket: report.socket,
        hole: report.hole,
        business_no: report.business_no,
        minutes: report.charged_min,
        energy_wh: report.energy_wh,
    };
    let fees = match (report.electricity_fee_cent, report.service_fee_cent) {
        (None, None) => None,
        (electricity, service) => Some(u32::from(electricity.unwrap_or(0)) + u32::from(service.unwrap_or(0))),
    };
    let at = cx.now.unix_ms;
    cx.settle(key, waiting, || {
        Job::Settle(Box::new(Settlement {
            key,
            device_id,
            port_no: port_of_socket(report.socket, report.hole),
            duration_seconds: u32::from(report.charged_min) * 60,
            energy_wh: u32::from(report.energy_wh),
            amount_cent: report.spent_cent.map(u32::from).or(fees),
            end: SettlementEnd::Bkv { status: report.status.0, reason: report.end_reason_raw },
            epoch,
            card_no: None,
            at,
            raw: raw.to_vec(),
        }))
    })
}

fn exception_event(device_id: DeviceId, exception: &Exception<'_>, now: Now) -> DeviceEvent {
    let data = json!({
        "device_id": device_id,
        "reason": "exception",
        "socket": exception.socket,
        "states": exception.states,
        "reasons": exception.reasons,
        "voltages_dv": exception.voltages_dv,
        "leakages": exception.leakages,
        "overtemps": exception.overtemps,
        "statuses": exception.statuses.map(|status| status.map(|status| status.0)),
    });
    let (data, at) = (data.into(), now.unix_ms);
    DeviceEvent { device_id, event_type: EventType::DeviceAlarm, data, order_no: None, fence: None, at }
}

impl Device {
    fn bkv(&mut self, cx: &mut Cx<'_>, conn: Key, frame: &Frame<'_>, body: &Body<'_>) {
        match body {
            Body::Heartbeat(heartbeat) => {
                if let Some(rssi) = heartbeat.rssi {
                    self.entry.set_signal(rssi);
                }
                self.entry.set_firmware(heartbeat.fw.as_bytes());
                self.ota_firmware_seen(cx);
                self.entry.set_iccid_bytes(heartbeat.iccid.as_bytes());
                self.heartbeat(cx);
            }
            Body::Push(_) | Body::SocketReply(..) => {
                for socket in body.sockets().into_iter().flatten() {
                    let Some(number) = socket.socket else { continue };
                    if self.is_leaving(number) {
                        continue;
                    }
                    self.saw_socket(number);
                    if self.awaits_reply() {
                        let asked = GatewayCall::QuerySocket { socket: number };
                        let answers = |call: &DeviceCall| matches!(call, DeviceCall::Gateway(call) if *call == asked);
                        self.call_reported(cx, answers, || serde_json::to_value(body).ok());
                    }
                    for hole in socket.holes() {
                        self.hole_state(cx, number, &hole);
                    }
                }
            }
            Body::StartReply(inner, reply) => {
                let key = ReplyKey { command: (CONTROL, u16::from(inner.sub)), msg_id: frame.sequence };
                let business_no = Some(reply.business_no).filter(|no| *no != 0);
                let result = reply.result;
                self.reply(cx, key, |_| started(result, business_no));
            }
            Body::CardSwipe(_, swipe) if swipe.hole <= 1 => {
                self.saw_socket(swipe.socket);
                let asked = Asked::BkvSwipe {
                    gateway_id: frame.gateway_id,
                    socket: swipe.socket,
                    hole: swipe.hole,
                    business_no: swipe.business_no,
                };
                self.card_swiped(cx, conn.into(), asked, CardNo::from_digits(swipe.card.0));
            }
            Body::BalanceQuery(_, query) => {
                let (socket, hole, card) = (query.socket, query.hole, query.card.0);
                let asked = Asked::BkvBalance { gateway_id: frame.gateway_id, socket, hole, card };
                self.card_swiped(cx, conn.into(), asked, CardNo::from_digits(card));
            }
            Body::CardConfirm(_, confirm) => {
                let key = ReplyKey { command: (CONTROL, u16::from(sub::CARD_CONFIRM)), msg_id: frame.sequence };
                let result = confirm.result;
                self.reply(cx, key, |_| started(result, None));
            }
            Body::PacketReply(reply) if reply.packet.command != packet_sub::FEE_START => {
                let key = ReplyKey { command: (PACKET, reply.packet.command), msg_id: frame.sequence };
                self.call_replied(cx, key, refusal(reply.ack), || serde_json::to_value(body).ok());
            }
            // An unconfirmed variant of 08 carries a list of 14-byte entries behind their count: no answer to a command.
            Body::NetworkResult(inner, reply) if inner.len > 1 && inner.len == 1 + 14 * u16::from(reply.result) => {}
            Body::NetworkResult(inner, reply) => {
                let key = ReplyKey { command: (NETWORK, u16::from(inner.sub)), msg_id: frame.sequence };
                self.call_replied(cx, key, refusal(reply.result), || serde_json::to_value(body).ok());
            }
            Body::VoiceReply(inner, reply) => {
                let key = ReplyKey { command: (CONTROL, u16::from(inner.sub)), msg_id: frame.sequence };
                self.call_replied(cx, key, refusal(reply.result), || serde_json::to_value(body).ok());
            }
            Body::PacketReply(reply) => {
                let key = ReplyKey { command: (PACKET, reply.packet.command), msg_id: frame.sequence };
                let (ack, business_no) = (reply.ack, reply.business_no.filter(|no| *no != 0));
                self.reply(cx, key, |_| started(ack, business_no));
            }
            _ => {
                if let Some(report) = body.end_report() {
                    self.saw_socket(report.socket);
                    let port_no = port_of_socket(report.socket, report.hole);
                    let known = About::Business(report.business_no);
                    self.end_reported(cx, port_no, if report.business_no == 0 { About::Nothing } else { known });
                }
            }
        }
    }

    fn saw_socket(&mut self, socket: u8) {
        if socket >= 1 && !self.entry.networked() {
            self.becomes_networked();
        }
    }

    fn hole_state(&mut self, cx: &mut Cx<'_>, socket: u8, state: &HoleState) {
        let Some(hole) = state.hole.filter(|hole| *hole <= 1) else { return };
        let status = state.status.map(|status| (PortStatus::from_code(status.port_status_code()), status.0));
        let charging = match state.status {
            Some(status) if !status.online() => Charging::Unclear,
            Some(status) if status.charging_under_load() => Charging::Yes,
            Some(status) if !status.charging() => Charging::No,
            // Power is on and nothing draws it.
            Some(_) | None => Charging::Unclear,
        };
        let about = match state.business_no {
            Some(0) => About::NoOrder,
            Some(no) => About::Business(no),
            None => About::Nothing,
        };
        self.port_report(
            cx,
            &PortReport {
                port_no: port_of_socket(socket, hole),
                socket: Some(socket),
                hole: Some(hole),
                status,
                voltage_dv: state.voltage_dv,
                power_dw: state.power_dw,
                current_ma: state.current_ma,
                energy_wh: state.energy_wh.map(u32::from),
                charged_seconds: state.charged_min.map(|minutes| u32::from(minutes) * 60),
                charging,
                about,
                offline: state.status.is_some_and(|status| !status.online()),
            },
        );
    }
}

const fn started(result: u8, business_no: Option<u16>) -> Answer {
    if result == 1 { Answer::Ok { business_no } } else { Answer::No { code: result, relay_may_be_on: false } }
}

/// BKV/GN say 1 for done and 0 for not done.
const fn refusal(result: u8) -> u8 {
    if result == 1 { 0 } else { 1 }
}

/// How the reply to a command will name it; `None` for what has no reply of its own.
pub(super) fn reply_key(what: &Outgoing) -> Option<ReplyKey> {
    let (command, msg_id) = match what {
        Outgoing::Command(command) => match &command.body {
            // The order of a swipe is confirmed by a frame of its own, under its sequence.
            CommandBody::Start { card: Some(CardStart { business_no: Some(_), .. }), .. } => {
                ((CONTROL, u16::from(sub::CARD_CONFIRM)), command.msg_id)
            }
            CommandBody::Start { spec, .. } => match spec.mode {
                ChargeMode::Full => return None,
                ChargeMode::Time { .. } | ChargeMode::Energy { .. } => {
                    ((CONTROL, u16::from(sub::START)), command.msg_id)
                }
                ChargeMode::Power { .. } => ((CONTROL, u16::from(sub::POWER_START)), command.msg_id),
                ChargeMode::ServiceFee { .. } => ((PACKET, packet_sub::FEE_START), command.msg_id),
            },
            CommandBody::Stop { .. } => ((CONTROL, u16::from(sub::START)), command.msg_id),
            CommandBody::Query { .. } | CommandBody::Call { .. } => return None,
        },
        Outgoing::Ask { .. } | Outgoing::Stop { .. } => return None,
    };
    Some(ReplyKey { command, msg_id })
}

/// Appends the frame of a command; `None`: BKV/GN has no such command.
pub(super) fn encode(
    out: &mut Vec<u8>,
    gateway_id: GatewayId,
    socket: u8,
    hole: u8,
    what: &Outgoing,
    msg_id: u32,
    readings: &BkvReadings,
) -> Option<ReplyKey> {
    let stop = |out: &mut Vec<u8>| {
        encode::start(out, gateway_id, msg_id, &Start::stop(socket, hole));
        Some(ReplyKey { command: (CONTROL, u16::from(sub::START)), msg_id })
    };
    let query = |out: &mut Vec<u8>| {
        encode::socket_query(out, gateway_id, msg_id, socket);
        Some(ReplyKey { command: (CONTROL, u16::from(sub::SOCKET_QUERY)), msg_id })
    };
    match what {
        Outgoing::Ask { .. } => query(out),
        Outgoing::Stop { .. } => stop(out),
        Outgoing::Command(command) => match &command.body {
            CommandBody::Query { .. } => query(out),
            CommandBody::Call { call: DeviceCall::Gateway(call) } => {
                call::encode_gateway(out, gateway_id, msg_id, call)
            }
            CommandBody::Call { call: DeviceCall::Ap3000(_) } => None,
            CommandBody::Stop { .. } => stop(out),
            CommandBody::Start { spec, card, .. } => {
                let paid = u16::try_from(spec.paid_cent.unwrap_or(0)).ok()?;
                if let Some(business_no) = card.as_ref().and_then(|card| card.business_no) {
                    let levels;
                    let terms = match &spec.mode {
                        ChargeMode::Time { minutes } if readings.card_time_in_seconds => {
                            CardTerms::Time(minutes.checked_mul(60)?)
                        }
                        ChargeMode::Time { minutes } => CardTerms::Time(*minutes),
                        ChargeMode::Energy { wh } => CardTerms::Energy(u16::try_from(*wh).ok()?),
                        ChargeMode::Power { tiers } => {
                            levels = levels_of(tiers);
                            CardTerms::Power(paid, &levels)
                        }
                        ChargeMode::Full | ChargeMode::ServiceFee { .. } => return None,
                    };
                    encode::card_order(out, gateway_id, msg_id, (socket, hole), business_no, terms);
                    return reply_key(what);
                }
                match &spec.mode {
                    ChargeMode::Full => return None,
                    ChargeMode::Time { minutes } => {
                        encode::start(out, gateway_id, msg_id, &Start::time(socket, hole, *minutes));
                    }
                    ChargeMode::Energy { wh } => {
                        let wh = u16::try_from(*wh).ok()?;
                        encode::start(out, gateway_id, msg_id, &Start::energy(socket, hole, wh));
                    }
                    ChargeMode::Power { tiers } => {
                        let levels = levels_of(tiers);
                        let order = PowerOrder { socket, hole, on: true, paid_cent: paid, levels: &levels };
                        encode::power_start(out, gateway_id, msg_id, readings.power_start_command, &order);
                    }
                    ChargeMode::ServiceFee { periods, by_energy } => {
                        let tiers: Vec<FeeTier> = periods
                            .iter()
                            .map(|period| FeeTier {
                                end: TimeOfDay { hour: period.end_hour, minute: period.end_minute },
                                electricity_cent_per_kwh: period.electricity_cent,
                                service_cent_per_kwh: period.service_cent,
                            })
                            .collect();
                        let order = FeeOrder {
                            socket,
                            hole,
                            on: true,
                            paid_amount_cent: paid,
                            service_fee_mode: u8::from(*by_energy),
                            tiers: &tiers,
                        };
                        encode::fee_start(out, gateway_id, msg_id, &order);
                    }
                }
                reply_key(what)
            }
        },
    }
}

fn levels_of(tiers: &[PowerTier]) -> Vec<Level> {
    let level =
        |tier: &PowerTier| Level { power_dw: tier.power_dw, price_cent: tier.price_cent, minutes: tier.minutes };
    tiers.iter().map(level).collect()
}
