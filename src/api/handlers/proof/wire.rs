//! Which frames of a device belong to an order, and what each of them is to it. Pure: rows in, rows out.
//!
//! | frame | belongs to the order |
//! |---|---|
//! | command down | under the message id of one of its commands; AP3000 also a stop that carries its number |
//! | reply up | under the message id of one of its commands |
//! | end report up | the bytes of its settlement; the same record again (AP3000: its number; BKV/GN: same hole, number, minutes and energy) |
//! | answer to an end report down | AP3000: under the report's message id; BKV/GN: for the report's socket, the next one behind it |
//!
//! A BKV/GN stop of the gateway's own, without a row, names a hole and no order: it is not told here.

use rustc_hash::FxHashMap;

use crate::model::{ChargeMode, CommandBody, DeviceId, Order, Origin, port_of_socket};
use crate::protocol::ap3000::codes::{ChargeResult, StartMode};
use crate::protocol::ap3000::{self, Magics};
use crate::protocol::bkv::command::{CONTROL, NETWORK, PACKET, packet_sub};
use crate::protocol::{Direction, Step, bkv};
use crate::store::{FrameFilter, FrameRecord, OrderCommand, SettlementRecord};

/// AP3000 start, stop and their replies.
const CHARGE_CONTROL: u16 = 0x82;
/// AP3000 end report and its answer.
const SETTLEMENT: u16 = 0x03;
/// Frames looked at per query: an order's own are a dozen, but its device has other ports.
const FRAMES_MAX: u32 = 5_000;
/// Tagged packets of BKV/GN without a message id are mostly pushes, one a minute and socket. An end report among them is looked for
/// this near to the settlement.
const NEAR_MS: i64 = 3_600_000;

/// What a frame is to its order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// A command of the order, which the list of commands has at `command`.
    Command { command: usize, write: u32, same_bytes: bool },
    /// A stop that the gateway sent by itself.
    OwnStop,
    /// The device's answer to a command; `None`: to a stop that the gateway sent by itself.
    Reply { command: Option<usize>, ok: bool, said: &'static str, code: u8 },
    /// The device reports the end. `again`: not for the first time.
    EndReport { again: bool },
    /// The gateway tells the device that its report is stored.
    EndAnswer,
}

/// A frame and what it is.
#[derive(Clone, Debug)]
pub(super) struct Told {
    pub(super) frame: FrameRecord,
    /// As it stands in the frame.
    pub(super) msg_id: u32,
    pub(super) part: Part,
}

/// Which frames have to be looked at.
pub(super) fn filters(order: &Order, commands: &[OrderCommand], between: (i64, i64)) -> Vec<FrameFilter> {
    let filter = |commands: &[u16], msg_ids, between| FrameFilter {
        device_id: order.device_id,
        between,
        commands: commands.to_vec(),
        msg_ids,
        limit: FRAMES_MAX + 1,
    };
    match order.device_id {
        DeviceId::Ap3000(_) => vec![filter(&[CHARGE_CONTROL, SETTLEMENT], None, between)],
        DeviceId::Gateway(_) => {
            let ids = commands.iter().map(|command| command.msg_id).collect();
            let mut filters = vec![
                filter(&[CONTROL, NETWORK, PACKET], Some(ids), between),
                filter(&[CONTROL], Some(vec![0]), between),
            ];
            if let (ChargeMode::ServiceFee { .. }, Some(at)) = (&order.spec.mode, order.settled_at) {
                filters.push(filter(&[PACKET], Some(vec![0]), (at - NEAR_MS, at + NEAR_MS)));
            }
            filters
        }
    }
}

/// Whether a query gave as much as it may.
pub(super) fn is_cut(found: &[FrameRecord]) -> bool {
    found.len() > FRAMES_MAX as usize
}

/// Picks the order's own out of its device's frames, which are in the order of the log.
pub(super) fn of_order(
    order: &Order,
    commands: &[OrderCommand],
    settlements: &[SettlementRecord],
    frames: Vec<FrameRecord>,
) -> Vec<Told> {
    let mut writes = Writes::default();
    let mut told = Vec::new();
    match order.device_id {
        DeviceId::Ap3000(_) => {
            let mut reports = Ap3000Reports::default();
            for frame in frames {
                let parsed = ap3000_part(order, commands, settlements, &frame, &mut writes, &mut reports);
                told.extend(parsed.map(|(msg_id, part)| Told { frame, msg_id, part }));
            }
        }
        DeviceId::Gateway(_) => {
            let mut reports = BkvReports::default();
            for frame in frames {
                let parsed = bkv_part(order, commands, settlements, &frame, &mut writes, &mut reports);
                told.extend(parsed.map(|(msg_id, part)| Told { frame, msg_id, part }));
            }
        }
    }
    told
}

/// How often each command was written, and how it looked the first time.
#[derive(Default)]
struct Writes {
    of: FxHashMap<usize, (u32, Vec<u8>)>,
}

impl Writes {
    fn written(&mut self, command: usize, raw: &[u8]) -> Part {
        let (write, first) = self.of.entry(command).or_insert_with(|| (0, raw.to_vec()));
        *write += 1;
        Part::Command { command, write: *write, same_bytes: first == raw }
    }

    fn count(&self, command: usize) -> u32 {
        self.of.get(&command).map_or(0, |(write, _)| *write)
    }
}

#[derive(Default)]
struct Ap3000Reports {
    seen: bool,
    /// Message ids of reports of the order that are not answered yet.
    open: Vec<u16>,
}

fn ap3000_part(
    order: &Order,
    commands: &[OrderCommand],
    settlements: &[SettlementRecord],
    record: &FrameRecord,
    writes: &mut Writes,
    reports: &mut Ap3000Reports,
) -> Option<(u32, Part)> {
    let magics = Magics::new(&[*record.raw.first_chunk()?]).ok()?;
    let Step::Item { item: ap3000::Item::Frame(frame), .. } = ap3000::deframe(&record.raw, &magics) else {
        return None;
    };
    let direction = if record.up { Direction::Up } else { Direction::Down };
    let body = ap3000::decode_body(&frame, direction).ok();
    let number = order.order_no.as_bytes();
    let by_id = || commands.iter().position(|command| command.msg_id & 0xFFFF == u32::from(frame.msg_id));
    let part = match (u16::from(frame.command), record.up, body) {
        (CHARGE_CONTROL, false, body) => match (by_id(), body) {
            (Some(command), _) => writes.written(command, &record.raw),
            (None, Some(ap3000::Body::ChargeControl(control))) if control.order_no.0 == *number => Part::OwnStop,
            (None, _) => return None,
        },
        (CHARGE_CONTROL, true, Some(ap3000::Body::ChargeControlReply(reply))) => {
            let names_it = reply.order_no.is_some_and(|no| no.0 == *number);
            let command = by_id();
            if command.is_none() && !names_it {
                return None;
            }
            let is_start = command.and_then(|command| commands.get(command)).is_some_and(is_start);
            // A resent start finds the port as its first copy left it.
            let done_before = is_start
                && names_it
                && reply.result == ChargeResult::SAME_STATE
                && command.is_some_and(|command| writes.count(command) > 1);
            let ok = reply.result == ChargeResult::SUCCESS || done_before;
            let said = if ok { "ok" } else { reply.result.text() };
            Part::Reply { command, ok, said, code: reply.result.0 }
        }
        (SETTLEMENT, true, Some(ap3000::Body::Settlement(report))) => {
            let reference = match order.origin {
                Origin::Api => &number[..],
                Origin::Device => order.device_ref.as_deref().unwrap_or_default(),
            };
            let online = report.start_mode == StartMode::ONLINE;
            let names_it = report.order_no.0 == *reference && online == (order.origin == Origin::Api);
            reports.open.retain(|open| *open != frame.msg_id);
            let is_stored = |row: &SettlementRecord| row.order_no == Some(order.order_no) && row.raw == record.raw;
            if !names_it && !settlements.iter().any(is_stored) {
                return None;
            }
            reports.open.push(frame.msg_id);
            Part::EndReport { again: std::mem::replace(&mut reports.seen, true) }
        }
        (SETTLEMENT, false, _) => {
            let open = reports.open.iter().position(|open| *open == frame.msg_id)?;
            reports.open.swap_remove(open);
            Part::EndAnswer
        }
        _ => return None,
    };
    Some((frame.msg_id.into(), part))
}

#[derive(Default)]
struct BkvReports {
    seen: bool,
    /// Socket of a report of the order that is not answered yet.
    open: Option<u8>,
    /// Socket and time of the last answer: a report that came again is answered in two forms at once.
    answered: Option<(u8, i64)>,
}

fn bkv_part(
    order: &Order,
    commands: &[OrderCommand],
    settlements: &[SettlementRecord],
    record: &FrameRecord,
    writes: &mut Writes,
    reports: &mut BkvReports,
) -> Option<(u32, Part)> {
    let Step::Item { item: frame, .. } = bkv::deframe(&record.raw) else { return None };
    let sequence = frame.sequence;
    let by_id = || commands.iter().position(|command| sequence != 0 && command.msg_id == sequence);
    if !record.up
        && let Some(command) = by_id()
    {
        return Some((sequence, writes.written(command, &record.raw)));
    }
    let body = bkv::decode_body(&frame).ok()?;
    let part = if record.up {
        if let Some(report) = body.end_report() {
            let same = |settlement: &SettlementRecord| {
                settlement.raw == record.raw
                    || settlement.port_no == port_of_socket(report.socket, report.hole)
                        && settlement.business_no == Some(report.business_no)
                        && settlement.duration_seconds == u32::from(report.charged_min) * 60
                        && settlement.energy_wh == u32::from(report.energy_wh)
            };
            let ours = settlements.iter().filter(|settlement| settlement.order_no == Some(order.order_no));
            if !ours.into_iter().any(same) {
                return None;
            }
            reports.open = Some(report.socket);
            Part::EndReport { again: std::mem::replace(&mut reports.seen, true) }
        } else {
            let command = by_id()?;
            let result = match &body {
                bkv::Body::StartReply(_, reply) => reply.result,
                bkv::Body::CardConfirm(_, confirm) => confirm.result,
                bkv::Body::PacketReply(reply) => reply.ack,
                _ => return None,
            };
            let ok = result == 1;
            Part::Reply { command: Some(command), ok, said: if ok { "ok" } else { "failure" }, code: result }
        }
    } else {
        let socket = match &body {
            bkv::Body::EndAck(_, ack) => ack.socket,
            bkv::Body::PacketReply(reply) if reply.packet.command == packet_sub::FEE_END => reply.socket?,
            _ => return None,
        };
        let once_more = reports.answered == Some((socket, record.at));
        if reports.open != Some(socket) && !once_more {
            return None;
        }
        reports.open = None;
        reports.answered = Some((socket, record.at));
        Part::EndAnswer
    };
    Some((sequence, part))
}

pub(super) const fn is_start(command: &OrderCommand) -> bool {
    matches!(command.record.body, CommandBody::Start { .. })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{ChargeSpec, CommandState, OrderNo};
    use crate::protocol::ap3000::body::{ChargeControl, ChargeControlReply, Settlement};
    use crate::protocol::ap3000::encode::{self, Header};
    use crate::protocol::ap3000::wire::Raw;
    use crate::protocol::bkv::body::{ChargeEnd, EndBlock};
    use crate::protocol::bkv::{HoleStatus, device, encode as bkv_encode};
    use crate::store::CommandRecord;

    fn order(device_id: &str) -> Order {
        Order::pending(OrderNo::parse("THD6H0BG6NY8TR00").unwrap(), device_id.parse().unwrap(), 1, 1_000)
    }

    fn start(order: &Order, msg_id: u32) -> OrderCommand {
        let spec = ChargeSpec { mode: ChargeMode::Full, paid_cent: None, stop_when_full: false };
        let record = CommandRecord {
            id: 42,
            device_id: order.device_id,
            order_no: Some(order.order_no),
            body: CommandBody::Start { port_no: 1, spec, card: None },
            state: CommandState::Acked.as_str().to_owned(),
            attempts: 1,
            reason: None,
            result: None,
            created_at: 1_000,
            written_at: Some(1_001),
            updated_at: 1_002,
            not_after: 31_000,
            request_id: None,
        };
        OrderCommand { record, msg_id, epoch: Some(1), maybe_written: false }
    }

    fn record(at: i64, up: bool, raw: Vec<u8>) -> FrameRecord {
        FrameRecord { id: at, at, up, command: 0, msg_id: 0, raw, epoch: Some(1), instance: None }
    }

    fn ap3000(at: i64, up: bool, msg_id: u16, write: impl FnOnce(&mut Vec<u8>, &Header)) -> FrameRecord {
        let DeviceId::Ap3000(phy_id) = order("40aace04").device_id else { panic!("an AP3000 id") };
        let mut raw = Vec::new();
        write(&mut raw, &Header { magic: *b"DNY", phy_id, msg_id });
        record(at, up, raw)
    }

    fn control(at: i64, msg_id: u16, order_no: [u8; 16]) -> FrameRecord {
        ap3000(at, false, msg_id, |raw, header| encode::charge_control(raw, header, &ChargeControl::stop(0, order_no)))
    }

    fn reply(at: i64, msg_id: u16, result: ChargeResult, order_no: [u8; 16]) -> FrameRecord {
        let reply = ChargeControlReply { result, order_no: Some(Raw(order_no)), ..ChargeControlReply::default() };
        ap3000(at, true, msg_id, |raw, header| encode::charge_control_reply(raw, header, &reply))
    }

    fn report(at: i64, msg_id: u16, order_no: [u8; 16]) -> FrameRecord {
        let report = Settlement { start_mode: StartMode::ONLINE, order_no: Raw(order_no), ..Settlement::default() };
        ap3000(at, true, msg_id, |raw, header| encode::settlement(raw, header, &report))
    }

    fn answer(at: i64, msg_id: u16) -> FrameRecord {
        ap3000(at, false, msg_id, |raw, header| encode::result_reply(raw, header, 0x03, 0))
    }

    fn parts(order: &Order, commands: &[OrderCommand], frames: Vec<FrameRecord>) -> Vec<(i64, Part)> {
        let told = of_order(order, commands, &[], frames);
        told.into_iter().map(|told| (told.frame.at, told.part)).collect()
    }

    #[test]
    fn an_ap3000_command_is_known_by_the_lower_half_of_its_id() {
        let order = order("40aace04");
        let (number, other) = (*order.order_no.as_bytes(), [9; 16]);
        let commands = [start(&order, 0x0005_0007)];
        let frames = vec![
            control(1, 7, number),
            control(2, 8, other),
            reply(3, 8, ChargeResult::SUCCESS, other),
            control(4, 7, number),
            reply(5, 7, ChargeResult::SAME_STATE, number),
            record(6, true, b"link".to_vec()),
        ];
        let write = |write| Part::Command { command: 0, write, same_bytes: true };
        let done = Part::Reply { command: Some(0), ok: true, said: "ok", code: 2 };
        assert_eq!(parts(&order, &commands, frames), [(1, write(1)), (4, write(2)), (5, done)]);
    }

    #[test]
    fn a_refusal_says_what_the_device_said() {
        let order = order("40aace04");
        let number = *order.order_no.as_bytes();
        let frames = vec![control(1, 7, number), reply(2, 7, ChargeResult::SAME_STATE, number)];
        let [_, (_, Part::Reply { ok: false, said, code: 2, .. })] = parts(&order, &[start(&order, 7)], frames)[..]
        else {
            panic!("a start that was written once is not done before")
        };
        assert_eq!(said, ChargeResult::SAME_STATE.text());
    }

    #[test]
    fn a_stop_without_a_row_is_known_by_the_orders_number() {
        let order = order("40aace04");
        let number = *order.order_no.as_bytes();
        let frames = vec![control(1, 3, number), reply(2, 3, ChargeResult::SUCCESS, number), control(3, 4, [9; 16])];
        let done = Part::Reply { command: None, ok: true, said: "ok", code: 0 };
        assert_eq!(parts(&order, &[], frames), [(1, Part::OwnStop), (2, done)]);
    }

    #[test]
    fn an_answer_belongs_to_the_last_report_with_its_id() {
        let order = order("40aace04");
        let (number, other) = (*order.order_no.as_bytes(), [9; 16]);
        let frames = vec![
            report(1, 5, number),
            // Counted anew behind a restart of the device: the same id, another record.
            report(2, 5, other),
            answer(3, 5),
            report(4, 6, number),
            answer(5, 6),
            answer(6, 6),
        ];
        let (first, again) = (Part::EndReport { again: false }, Part::EndReport { again: true });
        assert_eq!(parts(&order, &[], frames), [(1, first), (4, again), (5, Part::EndAnswer)]);
    }

    #[test]
    fn a_bkv_report_is_known_by_its_charge_and_its_answer_by_the_socket() {
        let order = order("86100000000001");
        let DeviceId::Gateway(gateway_id) = order.device_id else { panic!("a gateway") };
        let end = |at, socket, business_no| {
            let block = EndBlock {
                socket,
                fw: crate::protocol::Hex([1, 2]),
                temp_c: 30,
                rssi: 20,
                hole: 0,
                status: HoleStatus(0x90),
                business_no,
                power_dw: 0,
                current_ma: 0,
                energy_wh: 100,
                charged_min: 10,
            };
            let mut raw = Vec::new();
            device::charge_end(&mut raw, gateway_id, &ChargeEnd { block });
            record(at, true, raw)
        };
        let ack = |at, socket| {
            let mut raw = Vec::new();
            bkv_encode::end_ack(&mut raw, gateway_id, 0x0C, socket, true);
            record(at, false, raw)
        };
        let settlement = SettlementRecord {
            id: 1,
            order_no: Some(order.order_no),
            port_no: 1,
            business_no: Some(7),
            duration_seconds: 600,
            energy_wh: 100,
            amount_cent: None,
            raw: Vec::new(),
            at: 1,
        };
        let stray = SettlementRecord { id: 2, order_no: None, business_no: Some(8), ..settlement.clone() };
        let frames = vec![
            end(1, 0, 7),
            ack(2, 1),
            ack(3, 0),
            // Answered in two forms at once.
            ack(3, 0),
            end(4, 0, 8),
            ack(5, 0),
            end(6, 0, 7),
        ];
        let told = of_order(&order, &[], &[settlement, stray], frames);
        let parts: Vec<_> = told.into_iter().map(|told| (told.frame.at, told.part)).collect();
        let (first, again) = (Part::EndReport { again: false }, Part::EndReport { again: true });
        assert_eq!(parts, [(1, first), (3, Part::EndAnswer), (3, Part::EndAnswer), (6, again)]);
    }

    #[test]
    fn pushes_of_a_gateway_are_not_looked_at() {
        let order = order("86100000000001");
        let ids = |filter: &FrameFilter| (filter.commands.clone(), filter.msg_ids.clone());
        let asked: Vec<_> = filters(&order, &[start(&order, 9)], (0, 1)).iter().map(ids).collect();
        assert_eq!(asked, [(vec![CONTROL, NETWORK, PACKET], Some(vec![9])), (vec![CONTROL], Some(vec![0]))]);
    }
}
