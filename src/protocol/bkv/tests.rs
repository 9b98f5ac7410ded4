//! Properties over generated frames: what is written is read back, and any bytes are survived.

use proptest::collection::vec;
use proptest::prelude::*;

use super::body::{
    BalanceQuery, BalanceReply, CardEnd, CardOrder, CardSwipe, ChargeEnd, EndAck, EndBlock, HoleResult, Level, Ota,
    Period, PowerEnd, PowerStart, Raw as Unread, SocketEntry, Start, StartReply, Text, Usage,
};
use super::clock::{DeviceTime, TimeOfDay};
use super::command::{self, packet_sub, sub};
use super::encode::{CardTerms, FeeOrder, PowerOrder};
use super::packet::{
    Event, Exception, FeeEnd, FeeStart, FeeTier, Packet, PacketHeader, PacketReply, ParamQuery, ParamSet, Params,
};
use super::records::{Record, Records};
use super::report::{EndReport, HoleBlock, HoleState, SocketState};
use super::{Body, Frame, GatewayId, HoleStatus, decode_body, deframe, device, encode};
use crate::protocol::{Direction, Hex, Step};

fn only_frame(bytes: &[u8]) -> Frame<'_> {
    match deframe(bytes) {
        Step::Item { item, consumed } => {
            assert_eq!(consumed, bytes.len());
            item
        }
        other @ (Step::Skip { .. } | Step::NeedMore) => panic!("not a frame: {other:?}"),
    }
}

/// Reads one written frame back and checks what every frame must keep.
fn read_back(bytes: &[u8], direction: Direction, sequence: u32) -> Body<'_> {
    let frame = only_frame(bytes);
    assert_eq!((frame.direction, frame.sequence, frame.gateway_id), (direction, sequence, ID));
    let body = decode_body(&frame).unwrap();
    serde_json::to_value(body).unwrap();
    body
}

const ID: GatewayId = GatewayId([0x82, 0x20, 0x05, 0x20, 0x00, 0x48, 0x69]);

prop_compose! {
    fn end_block()(place: [u8; 6], fw: [u8; 2], words: [u16; 5]) -> EndBlock {
        let [socket, temp_c, rssi, hole, status, _] = place;
        let [business_no, power_dw, current_ma, energy_wh, charged_min] = words;
        EndBlock {
            socket, fw: Hex(fw), temp_c, rssi, hole, status: HoleStatus(status),
            business_no, power_dw, current_ma, energy_wh, charged_min,
        }
    }
}

prop_compose! {
    fn hole_block()(hole: u8, status: u8, words: [u16; 6]) -> HoleBlock {
        let [business_no, voltage_dv, power_dw, current_ma, energy_wh, charged_min] = words;
        HoleBlock {
            hole, status: HoleStatus(status), business_no, voltage_dv, power_dw, current_ma, energy_wh, charged_min,
        }
    }
}

prop_compose! {
    fn level()([power_dw, price_cent, minutes]: [u16; 3]) -> Level {
        Level { power_dw, price_cent, minutes }
    }
}

prop_compose! {
    /// Whatever two decimal digits hold, and a year of four.
    fn device_time()(year in 0u16..=9999, [month, day, hour, minute, second] in [0u8..=99, 0u8..=99, 0u8..=99, 0u8..=99, 0u8..=99])
        -> DeviceTime
    {
        DeviceTime { year, month, day, hour, minute, second }
    }
}

prop_compose! {
    fn fee_tier()(hour: u8, minute: u8, [electricity_cent_per_kwh, service_cent_per_kwh]: [u16; 2]) -> FeeTier {
        FeeTier { end: TimeOfDay { hour, minute }, electricity_cent_per_kwh, service_cent_per_kwh }
    }
}

/// A byte that is not what was sent: any, or one that turns an element into another.
fn damage() -> impl Strategy<Value = Option<(prop::sample::Index, u8)>> {
    proptest::option::of((any::<prop::sample::Index>(), prop_oneof![any::<u8>(), 0_u8..6, Just(0x94), Just(0x84)]))
}

/// The payload with that byte, and without its last few.
fn damaged(payload: &[u8], damage: Option<(prop::sample::Index, u8)>, cut: usize) -> Vec<u8> {
    let mut payload = payload.to_vec();
    payload.truncate(payload.len().saturating_sub(cut));
    if let Some((at, byte)) = damage {
        *at.get_mut(&mut payload) = byte;
    }
    payload
}

type SocketValues = (Option<u8>, Option<[u8; 2]>, Option<u8>, Option<u8>, Vec<HoleState>);

/// All that a push says of its sockets.
fn values_of_sockets(packet: &Packet<'_>) -> Vec<SocketValues> {
    let state = |socket: SocketState<'_>| {
        (socket.socket, socket.fw, socket.temp_c, socket.rssi, socket.holes().collect::<Vec<_>>())
    };
    packet.sockets().map(state).collect()
}

fn records<T: Record>(bytes: &[u8]) -> Records<'_, T> {
    Records::new(bytes)
}

fn usage(bytes: &[u8], spent_cent: u16, settle_power_dw: u16) -> Usage<'_> {
    Usage {
        spent_cent,
        settle_power_dw,
        level_count: u8::try_from(bytes.len() / 2).unwrap(),
        level_minutes: records(bytes),
    }
}

proptest! {
    #[test]
    fn heartbeats(iccid in "[0-9A-F]{20}", fw in "[ -~]{0,8}", rssi: u8, unix_s in 0_i64..200_000_000_000) {
        let mut bytes = Vec::new();
        device::heartbeat(&mut bytes, ID, &iccid, &fw, rssi);
        let Body::Heartbeat(beat) = read_back(&bytes, Direction::Up, 0) else { panic!() };
        prop_assert_eq!((beat.iccid.as_bytes(), beat.fw.as_bytes(), beat.rssi), (iccid.as_bytes(), fw.as_bytes(), Some(rssi)));

        let mut bytes = Vec::new();
        encode::heartbeat_reply(&mut bytes, ID, unix_s);
        let Body::HeartbeatReply(reply) = read_back(&bytes, Direction::Down, 0) else { panic!() };
        prop_assert_eq!(DeviceTime::from_bcd(reply.server_time_bcd.0).to_unix(), Some(unix_s));
    }

    #[test]
    fn starts_and_their_replies(
        [socket, hole, switch, mode, result] in any::<[u8; 5]>(), [minutes, energy_wh, business_no] in any::<[u16; 3]>(),
        sequence: u32, sub in prop_oneof![Just(sub::START), Just(sub::POWER_START)],
    ) {
        let mut bytes = Vec::new();
        let start = Start { socket, hole, switch, mode, minutes, energy_wh };
        encode::start(&mut bytes, ID, sequence, &start);
        let Body::Start(_, read) = read_back(&bytes, Direction::Down, sequence) else { panic!() };
        prop_assert_eq!(read, start);

        let mut bytes = Vec::new();
        let reply = StartReply { result, socket, hole, business_no };
        device::start_reply(&mut bytes, ID, sequence, sub, &reply);
        let Body::StartReply(inner, read) = read_back(&bytes, Direction::Up, sequence) else { panic!() };
        prop_assert_eq!((inner.sub, read), (sub, reply));

        let mut bytes = Vec::new();
        device::fee_start_reply(&mut bytes, ID, sequence, &reply);
        let Body::PacketReply(read) = read_back(&bytes, Direction::Up, sequence) else { panic!() };
        prop_assert_eq!(
            (read.ack, read.socket, read.hole, read.business_no),
            (result, Some(socket), Some(hole), Some(business_no))
        );
    }

    #[test]
    fn power_and_fee_starts(
        [socket, hole, service_fee_mode] in any::<[u8; 3]>(), on: bool, paid: u16, sequence: u32,
        levels in vec(level(), 0..=5), tiers in vec(fee_tier(), 0..=42),
    ) {
        let mut bytes = Vec::new();
        let order = PowerOrder { socket, hole, on, paid_cent: paid, levels: &levels };
        encode::power_start(&mut bytes, ID, sequence, command::CONTROL, &order);
        let Body::PowerStart(_, PowerStart { socket: s, hole: h, switch, tariff }) =
            read_back(&bytes, Direction::Down, sequence) else { panic!() };
        prop_assert_eq!((s, h, switch, tariff.paid_cent), (socket, hole, u8::from(on), paid));
        prop_assert_eq!((usize::from(tariff.level_count), tariff.levels.collect::<Vec<_>>()), (levels.len(), levels));

        let mut bytes = Vec::new();
        let order = FeeOrder { socket, hole, on, paid_amount_cent: paid, service_fee_mode, tiers: &tiers };
        encode::fee_start(&mut bytes, ID, sequence, &order);
        let Body::FeeStart(read) = read_back(&bytes, Direction::Down, sequence) else { panic!() };
        prop_assert_eq!(read.packet.header, PacketHeader::new(sequence, ID));
        prop_assert_eq!((read.socket, read.hole, read.switch), (socket, hole, u8::from(on)));
        prop_assert_eq!((read.paid_amount_cent, read.service_fee_mode), (Some(paid), Some(service_fee_mode)));
        prop_assert_eq!(read.tiers.collect::<Vec<_>>(), tiers);
    }

    #[test]
    fn end_reports(
        block in end_block(), card: [u8; 6], time: [u8; 7], [reason, card_type, mode] in any::<[u8; 3]>(),
        [spent, settle, electricity, service] in any::<[u16; 4]>(),
        minutes in vec(any::<[u8; 2]>(), 0..=5), tiers in vec(any::<u8>(), 0..=42),
    ) {
        let minutes = minutes.concat();
        let usage = usage(&minutes, spent, settle);
        let common = |report: EndReport| {
            assert_eq!((report.socket, report.hole, report.status), (block.socket, block.hole, block.status));
            assert_eq!((report.business_no, report.energy_wh, report.charged_min),
                (block.business_no, block.energy_wh, block.charged_min));
            assert_eq!((report.power_dw, report.current_ma, report.temp_c),
                (Some(block.power_dw), Some(block.current_ma), Some(block.temp_c)));
            report
        };

        let mut bytes = Vec::new();
        device::charge_end(&mut bytes, ID, &ChargeEnd { block });
        let body = read_back(&bytes, Direction::Up, 0);
        let report = common(body.end_report().unwrap());
        prop_assert_eq!((report.rssi, report.end_reason_raw, report.spent_cent, report.card), (Some(block.rssi), None, None, None));
        let Body::ChargeEnd(_, end) = body else { panic!() };
        prop_assert_eq!(end, ChargeEnd { block });

        let mut bytes = Vec::new();
        let sent = PowerEnd { block, end_time: DeviceTime::from_binary(time), end_reason: reason, usage };
        device::power_end(&mut bytes, ID, &sent);
        let body = read_back(&bytes, Direction::Up, 0);
        let report = common(body.end_report().unwrap());
        prop_assert_eq!((report.end_time, report.end_reason_raw), (Some(sent.end_time), Some(reason)));
        prop_assert_eq!((report.spent_cent, report.settle_power_dw), (Some(spent), Some(settle)));
        let Body::PowerEnd(_, end) = body else { panic!() };
        prop_assert_eq!(end, sent);

        let mut bytes = Vec::new();
        let sent = CardEnd { block, card: Hex(card), card_type, mode, usage };
        device::card_end(&mut bytes, ID, &sent);
        let body = read_back(&bytes, Direction::Up, 0);
        let report = common(body.end_report().unwrap());
        prop_assert_eq!((report.card, report.spent_cent), (Some(card), Some(spent)));
        let Body::CardEnd(_, end) = body else { panic!() };
        prop_assert_eq!(end, sent);

        let mut bytes = Vec::new();
        let sent = EndReport {
            rssi: None,
            end_reason_raw: Some(reason),
            end_time: Some(DeviceTime::from_unix(i64::from(spent).saturating_mul(86_413))),
            electricity_fee_cent: Some(electricity),
            service_fee_cent: Some(service),
            ..report
        };
        let sent = EndReport { card: None, spent_cent: None, settle_power_dw: None, ..sent };
        device::fee_end(&mut bytes, ID, &sent, &tiers);
        let body = read_back(&bytes, Direction::Up, 0);
        prop_assert_eq!(body.end_report(), Some(sent));
        let Body::FeeEnd(end) = body else { panic!() };
        prop_assert_eq!(end.tier_results, tiers);
    }

    #[test]
    fn socket_states(
        sockets in vec((any::<[u8; 3]>(), any::<[u8; 2]>(), vec(hole_block(), 0..=5)), 0..=4), sequence: u32,
        sub in prop_oneof![Just(sub::SOCKET_REPLY), Just(sub::SOCKET_QUERY)],
    ) {
        let sockets: Vec<_> = sockets.iter().map(|([socket, temp_c, rssi], fw, holes)| device::Socket {
            socket: *socket, fw: *fw, temp_c: *temp_c, rssi: *rssi, holes,
        }).collect();
        let same = |body: Body<'_>, sent: &[device::Socket<'_>]| {
            let read: Vec<_> = body.sockets().unwrap().collect();
            assert_eq!(read.len(), sent.len());
            for (read, sent) in read.iter().zip(sent) {
                assert_eq!((read.socket, read.fw), (Some(sent.socket), Some(sent.fw)));
                assert_eq!((read.temp_c, read.rssi), (Some(sent.temp_c), Some(sent.rssi)));
                let holes: Vec<_> = sent.holes.iter().copied().map(HoleState::from).collect();
                assert_eq!(read.holes().collect::<Vec<_>>(), holes);
            }
        };
        let mut bytes = Vec::new();
        device::push(&mut bytes, ID, &sockets);
        same(read_back(&bytes, Direction::Up, 0), &sockets);
        for socket in sockets {
            let mut bytes = Vec::new();
            device::socket_reply(&mut bytes, ID, sequence, sub, &socket);
            same(read_back(&bytes, Direction::Up, sequence), &[socket]);
        }
    }

    #[test]
    fn acknowledgements(
        [socket, hole] in any::<[u8; 2]>(), ok: bool, frame_seq: [u8; 8], id: [u8; 7],
        sub in prop_oneof![Just(sub::CHARGE_END), Just(sub::CARD_END), Just(sub::POWER_END)],
    ) {
        let mut bytes = Vec::new();
        encode::end_ack(&mut bytes, ID, sub, socket, ok);
        let Body::EndAck(inner, read) = read_back(&bytes, Direction::Down, 0) else { panic!() };
        prop_assert_eq!((inner.sub, read), (sub, EndAck { socket, result: u8::from(ok) }));

        let header = PacketHeader { frame_seq, gateway_id: GatewayId(id) };
        type Write<'a> = &'a dyn Fn(&mut Vec<u8>);
        let packets: [(Write<'_>, Option<u8>, Option<u8>); 4] = [
            (&|out| encode::push_ack(out, ID, header, ok), None, None),
            (&|out| encode::fee_end_ack(out, ID, header, socket, hole, ok), Some(socket), Some(hole)),
            (&|out| encode::exception_ack(out, ID, header, socket, ok), Some(socket), None),
            (&|out| encode::event_ack(out, ID, header, socket, ok), Some(socket), None),
        ];
        for (write, socket, hole) in packets {
            let mut bytes = Vec::new();
            write(&mut bytes);
            let Body::PacketReply(read) = read_back(&bytes, Direction::Down, 0) else { panic!() };
            prop_assert_eq!((read.packet.header, read.ack), (header, u8::from(ok)));
            prop_assert_eq!((read.socket, read.hole, read.business_no), (socket, hole, None));
        }
    }

    #[test]
    fn network_and_queries(socket: u8, channel: u8, macs in vec((any::<u8>(), any::<[u8; 6]>()), 1..=250), sequence: u32, ok: bool) {
        let sockets: Vec<_> = macs.iter().map(|(socket, mac)| SocketEntry { socket: *socket, mac: Hex(*mac) }).collect();
        let mut bytes = Vec::new();
        encode::socket_list(&mut bytes, ID, sequence, channel, &sockets);
        let Body::SocketList(_, list) = read_back(&bytes, Direction::Down, sequence) else { panic!() };
        prop_assert_eq!((list.channel, list.sockets.collect::<Vec<_>>()), (channel, sockets.clone()));

        let mut bytes = Vec::new();
        encode::socket_add(&mut bytes, ID, sequence, &sockets[0]);
        let Body::SocketAdd(_, entry) = read_back(&bytes, Direction::Down, sequence) else { panic!() };
        prop_assert_eq!(entry, sockets[0]);

        let mut bytes = Vec::new();
        encode::socket_delete(&mut bytes, ID, sequence, socket);
        let Body::SocketDelete(_, read) = read_back(&bytes, Direction::Down, sequence) else { panic!() };
        prop_assert_eq!(read.socket, socket);

        let mut bytes = Vec::new();
        encode::socket_query(&mut bytes, ID, sequence, socket);
        let Body::SocketQuery(_, read) = read_back(&bytes, Direction::Down, sequence) else { panic!() };
        prop_assert_eq!(read.socket, socket);

        for sub in [sub::SOCKET_LIST, sub::SOCKET_ADD, sub::SOCKET_DELETE] {
            let mut bytes = Vec::new();
            device::network_result(&mut bytes, ID, sequence, sub, ok);
            let Body::NetworkResult(inner, read) = read_back(&bytes, Direction::Up, sequence) else { panic!() };
            prop_assert_eq!((inner.sub, read.result), (sub, u8::from(ok)));
        }
    }

    #[test]
    fn cards_parameters_and_updates(
        place: (u8, u8), card: [u8; 6], balance_cent: u32, business_no: u16, sequence: u32, words: [Option<u16>; 6],
        high_temp_threshold: Option<u8>, levels in vec(level(), 1..=5), file in "[A-Z0-9.]{1,13}", ip: [u8; 4], port: u16,
    ) {
        let (socket, hole) = place;
        let mut bytes = Vec::new();
        encode::balance_reply(&mut bytes, ID, sequence, place, card, balance_cent);
        let Body::BalanceReply(_, reply) = read_back(&bytes, Direction::Down, sequence) else { panic!() };
        prop_assert_eq!(reply, BalanceReply { query: BalanceQuery { socket, hole, card: Hex(card) }, balance_cent });

        for terms in [CardTerms::Time(port), CardTerms::Energy(port), CardTerms::Power(port, &levels), CardTerms::Refused] {
            let mut bytes = Vec::new();
            encode::card_order(&mut bytes, ID, sequence, place, business_no, terms);
            let Body::CardOrder(_, order) = read_back(&bytes, Direction::Down, sequence) else { panic!() };
            prop_assert_eq!((order.socket, order.hole, order.business_no), (socket, hole, business_no));
            let CardOrder { switch, mode, time, energy_wh, tariff, .. } = order;
            let expected = match terms {
                CardTerms::Time(time) => (1, 1, time, 0),
                CardTerms::Energy(energy_wh) => (1, 2, 0, energy_wh),
                CardTerms::Power(..) => (1, 3, 0, 0),
                CardTerms::Refused => (0, 1, 0, 0),
            };
            prop_assert_eq!((switch, mode, time, energy_wh), expected);
            let tariff = tariff.map(|tariff| (tariff.paid_cent, tariff.levels.collect::<Vec<_>>()));
            prop_assert_eq!(tariff, (mode == 3).then(|| (port, levels.clone())));
        }

        let [a, b, c, d, e, f] = words;
        let params = Params {
            full_charge_delay_s: a, no_load_delay_s: b, full_power_threshold_dw: c, no_load_power_threshold_dw: d,
            power_limit_dw: e, max_charge_min: f, high_temp_threshold, ..Params::default()
        };
        let mut bytes = Vec::new();
        encode::param_set(&mut bytes, ID, sequence, socket, &params);
        let Body::ParamSet(read) = read_back(&bytes, Direction::Down, sequence) else { panic!() };
        prop_assert_eq!((read.socket, read.params), (socket, params));

        let mut bytes = Vec::new();
        encode::ota(&mut bytes, ID, sequence, ip.into(), port, &file);
        let Body::Ota(Ota { target, ftp_ip, ftp_port, file: read }) = read_back(&bytes, Direction::Down, sequence)
            else { panic!() };
        prop_assert_eq!((target, ftp_ip.octets(), ftp_port, Text::as_bytes(&read)), (1, ip, port, file.as_bytes()));
    }

    #[test]
    fn card_uplinks_and_voice(
        [socket, hole, status, result, sub_voice] in any::<[u8; 5]>(), business_no: u16, card: [u8; 6],
        offline_card_data: [u8; 20], sequence: u32, periods in vec(any::<[u8; 4]>(), 0..=2), [buzzer, voice] in any::<[bool; 2]>(),
    ) {
        let mut out = Vec::new();
        let swipe = CardSwipe {
            socket, hole, business_no, status: HoleStatus(status), card: Hex(card), offline_card_data: Hex(offline_card_data),
        };
        device::card_swipe(&mut out, ID, &swipe);
        let Body::CardSwipe(_, read) = read_back(&out, Direction::Up, 0) else { panic!() };
        prop_assert_eq!(read, swipe);

        let (mut confirm_out, mut voice_out, sent) = (Vec::new(), Vec::new(), HoleResult { socket, hole, result });
        device::card_confirm(&mut confirm_out, ID, sequence, &sent);
        device::voice_reply(&mut voice_out, ID, sequence, &sent);
        let Body::CardConfirm(_, confirm) = read_back(&confirm_out, Direction::Up, sequence) else { panic!() };
        let Body::VoiceReply(_, voiced) = read_back(&voice_out, Direction::Up, sequence) else { panic!() };
        prop_assert_eq!((confirm, voiced), (sent, sent));

        let mut out = Vec::new();
        let query = BalanceQuery { socket, hole, card: Hex(card) };
        device::balance_query(&mut out, ID, &query);
        let Body::BalanceQuery(_, read) = read_back(&out, Direction::Up, 0) else { panic!() };
        prop_assert_eq!(read, query);

        let mut out = Vec::new();
        let at = |hour, minute| TimeOfDay { hour, minute };
        let periods: Vec<_> =
            periods.into_iter().map(|[a, b, c, d]| Period { start: at(a, b), end: at(c, d) }).collect();
        encode::voice_set(&mut out, ID, sequence, (sub_voice, hole), buzzer, voice, &periods);
        let Body::VoiceSet(_, read) = read_back(&out, Direction::Down, sequence) else { panic!() };
        prop_assert_eq!((read.socket, read.hole), (sub_voice, hole));
        prop_assert_eq!((read.buzzer, read.voice), (u8::from(buzzer), u8::from(voice)));
        prop_assert_eq!(read.periods.collect::<Vec<_>>(), periods);
    }

    /// Packets with any of their optional tags present.
    #[test]
    fn packets_with_any_tags(
        bytes in vec(any::<Option<u8>>(), 24), words in vec(any::<Option<u16>>(), 12), base: Option<u32>,
        socket: u8, sequence: u32, time in device_time(), [ack, hole, switch] in any::<[u8; 3]>(),
        tiers in vec(fee_tier(), 0..=42), sub in prop::sample::select(packet_subs()),
    ) {
        let (byte, word) = (|at: usize| bytes[at], |at: usize| words[at]);
        let header = PacketHeader::new(sequence, ID);
        let exception = Exception {
            states: [byte(0), byte(1), byte(2)], reasons: [byte(3), byte(4), byte(5)], voltages_dv: [word(0), word(1)],
            leakages: [word(2), word(3)], overtemps: [byte(6), byte(7)],
            statuses: [byte(8).map(HoleStatus), byte(9).map(HoleStatus)], ..Exception::new(header, socket)
        };
        let event = Event {
            packet: Packet::new(packet_sub::EVENT, header), socket: byte(0), hole: byte(1),
            event_time: byte(2).and(Some(time)), tag_5a: word(0),
        };
        let mut tier_bytes = Vec::new();
        let start = FeeStart {
            packet: Packet::new(packet_sub::FEE_START, header), socket, hole, switch, charge_mode: byte(0),
            control_type: byte(1), tag_f4: byte(2), paid_amount_cent: word(0), service_fee_mode: byte(3),
            tier_count: byte(4), tiers: Records::of(&mut tier_bytes, tiers.iter().copied()),
        };
        let set = Params {
            full_charge_delay_s: word(0), no_load_delay_s: word(1), full_power_threshold_dw: word(2),
            no_load_power_threshold_dw: word(3), high_temp_threshold: byte(0), power_limit_dw: word(4),
            max_charge_min: word(5), ..Params::default()
        };
        let all = Params {
            overcurrent_limit_ma: word(6), trickle_threshold_pct: byte(1), key_base_amount: base, anti_pulse_time: word(7),
            tags_98_to_9b: [byte(2), byte(3), byte(4), byte(5)], ..set
        };
        let reply = PacketReply {
            packet: Packet::new(sub, header), ack, socket: byte(6), hole: byte(7), business_no: word(8),
            params: if sub == packet_sub::PARAM_QUERY { all } else { Params::default() },
        };
        let report = EndReport {
            socket, hole, status: HoleStatus(switch), business_no: 7, power_dw: word(0), current_ma: word(1), energy_wh: 8,
            charged_min: 9, temp_c: byte(0), rssi: byte(1), end_reason_raw: byte(2), spent_cent: None,
            settle_power_dw: None, end_time: byte(3).and(Some(time)), card: None, electricity_fee_cent: word(2),
            service_fee_cent: word(3),
        };
        let end = FeeEnd {
            packet: Packet::new(packet_sub::FEE_END, header), report, charge_mode: byte(4), tier_count: byte(5),
            tier_results: &[1, 2, 3, 4, 5, 6],
        };
        let param_set = ParamSet { packet: Packet::new(packet_sub::PARAM_SET, header), socket, params: set };
        let query = ParamQuery { packet: Packet::new(packet_sub::PARAM_QUERY, header), socket };

        let up = encode::Header::up(command::PACKET, sequence, ID);
        let down = encode::Header::down(command::PACKET, sequence, ID);
        let answers = if matches!(sub, packet_sub::FEE_START | packet_sub::PARAM_SET | packet_sub::PARAM_QUERY) { up } else { down };
        for (header, body) in [
            (up, Body::Exception(exception)), (up, Body::Event(event)), (down, Body::FeeStart(start)),
            (answers, Body::PacketReply(reply)), (up, Body::FeeEnd(end)), (down, Body::ParamSet(param_set)),
            (down, Body::ParamQuery(query)),
        ] {
            let mut out = Vec::new();
            encode::body(&mut out, &header, &body);
            let read = read_back(&out, header.direction, sequence);
            prop_assert_eq!(read.packet().unwrap().header, body.packet().unwrap().header);
            prop_assert_eq!(without_elements(read), body);
            let mut again = Vec::new();
            encode::body(&mut again, &header, &read);
            prop_assert_eq!(again, out);
        }
    }

    /// The short cut for the usual push says what the walk says, or nothing.
    #[test]
    fn the_usual_push_is_read_like_any_other(
        sockets in vec((any::<[u8; 3]>(), any::<[u8; 2]>(), [hole_block(), hole_block()]), 1..=4),
        damage in damage(), cut in 0_usize..3,
    ) {
        let sockets: Vec<_> = sockets.iter().map(|([socket, temp_c, rssi], fw, holes)| device::Socket {
            socket: *socket, fw: *fw, temp_c: *temp_c, rssi: *rssi, holes,
        }).collect();
        let mut bytes = Vec::new();
        device::push(&mut bytes, ID, &sockets);
        let frame = only_frame(&bytes);
        let payload = damaged(frame.payload, damage, cut);
        let frame = Frame { payload: &payload, ..frame };
        let short = Packet::usual_push(&frame);
        prop_assert!(short.is_some() || damage.is_some() || cut > 0);
        if let Some(short) = short {
            let walked = Packet::parse(&frame).unwrap();
            prop_assert_eq!((short.command, short.header, short.odd_types), (walked.command, walked.header, walked.odd_types));
            prop_assert_eq!(short.elements(), walked.elements());
            prop_assert_eq!(serde_json::to_value(short).unwrap(), serde_json::to_value(walked).unwrap());
            prop_assert_eq!(values_of_sockets(&short), values_of_sockets(&walked));
            prop_assert_eq!(decode_body(&frame), Ok(Body::Push(short)));
        }
        let downlink = Frame { direction: Direction::Down, ..frame };
        prop_assert_eq!(Packet::usual_push(&downlink), None);
    }

    /// So does the one for the usual fee end.
    #[test]
    fn the_usual_fee_end_is_read_like_any_other(
        [socket, hole, status, temp_c, reason] in any::<[u8; 5]>(), time in device_time(), tiers in vec(any::<u8>(), 0..=60),
        [business_no, power_dw, current_ma, energy_wh, charged_min, electricity, service] in any::<[u16; 7]>(),
        damage in damage(), cut in 0_usize..3,
    ) {
        let report = EndReport {
            socket, hole, status: HoleStatus(status), business_no, power_dw: Some(power_dw), current_ma: Some(current_ma),
            energy_wh, charged_min, temp_c: Some(temp_c), rssi: None, end_reason_raw: Some(reason), spent_cent: None,
            settle_power_dw: None, end_time: Some(time), card: None, electricity_fee_cent: Some(electricity),
            service_fee_cent: Some(service),
        };
        let mut bytes = Vec::new();
        device::fee_end(&mut bytes, ID, &report, &tiers);
        let frame = only_frame(&bytes);
        let payload = damaged(frame.payload, damage, cut);
        let frame = Frame { payload: &payload, ..frame };
        let short = FeeEnd::usual(&frame);
        prop_assert!(short.is_some() || damage.is_some() || cut > 0);
        if let Some(short) = short {
            prop_assert_eq!(FeeEnd::read(Packet::parse(&frame).unwrap()), Ok(short));
            prop_assert_eq!(decode_body(&frame), Ok(Body::FeeEnd(short)));
        }
        let downlink = Frame { direction: Direction::Down, ..frame };
        prop_assert_eq!(FeeEnd::usual(&downlink), None);
    }

    #[test]
    fn partial_pushes(
        socket: Option<u8>, fw: Option<[u8; 2]>, temp_c: Option<u8>, rssi: Option<u8>,
        holes in vec((any::<[Option<u8>; 2]>(), any::<[Option<u16>; 6]>()), 0..=4),
    ) {
        let hole = |([hole, status], [business_no, voltage_dv, power_dw, current_ma, energy_wh, charged_min]): &([_; 2], [_; 6])| {
            let status: Option<u8> = *status;
            HoleState {
                hole: *hole, status: status.map(HoleStatus), business_no: *business_no, voltage_dv: *voltage_dv,
                power_dw: *power_dw, current_ma: *current_ma, energy_wh: *energy_wh, charged_min: *charged_min,
            }
        };
        let holes: Vec<_> = holes.iter().map(hole).collect();
        let mut out = Vec::new();
        device::partial_push(&mut out, ID, socket, fw, temp_c, rssi, &holes);
        let read: Vec<_> = read_back(&out, Direction::Up, 0).sockets().unwrap().collect();
        let [read] = &read[..] else {
            prop_assert!(read.is_empty() && out.len() == 21 + 26 + 3, "an empty container is no socket");
            return Ok(());
        };
        prop_assert_eq!((read.socket, read.fw, read.temp_c, read.rssi), (socket, fw, temp_c, rssi));
        prop_assert_eq!(read.holes().collect::<Vec<_>>(), holes);
    }

    /// Whatever arrives, each step makes progress, steps never overrun, and each frame is what its bytes say.
    #[test]
    fn any_bytes_are_survived(bytes in vec(prop_oneof![3 => any::<u8>(), 1 => Just(0xFC), 1 => Just(0xFE), 2 => Just(0)], 0..512)) {
        walk(&bytes);
    }

    /// Any payload under any command word, in a sound frame: a body or an error, readable to the end.
    #[test]
    fn any_payload_is_survived(
        row in 0..command::TABLE.len(), up: bool, sub in any::<u16>(), known: bool, fix_len: bool,
        mut payload in vec(prop_oneof![any::<u8>(), 0_u8..8, Just(0x94), Just(0x5B)], 0..300),
    ) {
        let row = &command::TABLE[row];
        let sub = row.sub.filter(|_| known).unwrap_or(sub);
        match row.command {
            command::PACKET => {
                payload.splice(0..0, [4, 1, 1, sub.to_be_bytes()[0], sub.to_be_bytes()[1]]);
            }
            command::NETWORK | command::CONTROL if fix_len => {
                let len = u16::try_from(payload.len()).unwrap().to_be_bytes();
                payload.splice(0..0, [len[0], len[1], sub.to_be_bytes()[1]]);
            }
            _ => {}
        }
        let mut bytes = Vec::new();
        let direction = if up { Direction::Up } else { Direction::Down };
        encode::frame(&mut bytes, direction, row.command, 0, ID, |out| out.extend_from_slice(&payload));
        prop_assert_eq!(only_frame(&bytes).payload, &payload[..]);
        walk(&bytes);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// Bodies of every row in both directions and in every length: what is read is written, up to the last field known,
    /// and that is read as before.
    #[test]
    fn every_row_in_every_length(bytes in vec(prop_oneof![3 => any::<u8>(), 2 => 0u8..6], 64), count in 0u8..3) {
        for row in command::TABLE.iter().filter(|row| row.command != command::PACKET) {
            for direction in [Direction::Up, Direction::Down] {
                let Some(layout) = row.layout(direction) else { continue };
                let (min, mut read_any) = (*layout.size.start(), false);
                for len in min..=layout.size.end().saturating_add(1).min(min.saturating_add(25)) {
                    let mut fields = bytes[..len].to_vec();
                    // Where the last fixed field counts a list, the list shall fit.
                    if let Some(last) = min.checked_sub(1).and_then(|last| fields.get_mut(last)) {
                        *last = count;
                    }
                    let head = encode::Header { direction, command: row.command, sequence: 7, gateway_id: ID };
                    let mut out = Vec::new();
                    match row.sub {
                        Some(sub) => {
                            encode::fields(&mut out, &head, u8::try_from(sub).unwrap(), &Unread { body: Hex(&fields) });
                        }
                        None => {
                            encode::frame(&mut out, direction, row.command, 7, ID, |out| out.extend_from_slice(&fields));
                        }
                    }
                    let Ok(body) = decode_body(&only_frame(&out)) else { continue };
                    let mut again = Vec::new();
                    encode::body(&mut again, &head, &body);
                    let written = &only_frame(&again).payload[row.sub.map_or(0, |_| 3)..];
                    prop_assert!(fields.starts_with(written), "{} {:?}: {:02x?} of {:02x?}", row.name, direction, written, fields);
                    prop_assert!(written.len() >= min.min(fields.len()), "{} {:?}", row.name, direction);
                    let read = decode_body(&only_frame(&again)).unwrap();
                    let (mut before, mut after) = (serde_json::to_value(body).unwrap(), serde_json::to_value(read).unwrap());
                    for value in [&mut before, &mut after] {
                        value.as_object_mut().unwrap().remove("inner_len");
                    }
                    prop_assert_eq!(before, after);
                    read_any = true;
                }
                // A card order of power tiers needs the luck of a small count.
                prop_assert!(read_any || row.sub == Some(0x0B), "{} {:?} is never read", row.name, direction);
            }
        }
    }
}

/// The sub-commands that are answered.
fn packet_subs() -> Vec<u16> {
    command::TABLE.iter().filter(|row| row.command == command::PACKET).filter_map(|row| row.sub).collect()
}

/// A typed packet as it was before it was written.
#[expect(clippy::wildcard_enum_match_arm, reason = "the others are no typed packets")]
fn without_elements(body: Body<'_>) -> Body<'_> {
    let bare = |packet: Packet<'_>| Packet::new(packet.command, packet.header);
    match body {
        Body::FeeEnd(body) => Body::FeeEnd(FeeEnd { packet: bare(body.packet), ..body }),
        Body::Exception(body) => Body::Exception(Exception { packet: bare(body.packet), ..body }),
        Body::Event(body) => Body::Event(Event { packet: bare(body.packet), ..body }),
        Body::PacketReply(body) => Body::PacketReply(PacketReply { packet: bare(body.packet), ..body }),
        Body::FeeStart(body) => Body::FeeStart(FeeStart { packet: bare(body.packet), ..body }),
        Body::ParamSet(body) => Body::ParamSet(ParamSet { packet: bare(body.packet), ..body }),
        Body::ParamQuery(body) => Body::ParamQuery(ParamQuery { packet: bare(body.packet), ..body }),
        other => panic!("{other:?}"),
    }
}

fn walk(bytes: &[u8]) {
    let mut rest = bytes;
    loop {
        match deframe(rest) {
            Step::Item { item, consumed } => {
                assert_eq!(item.raw, &rest[..consumed]);
                if let Ok(body) = decode_body(&item) {
                    serde_json::to_string(&body).unwrap();
                    assert!(!format!("{body:?} {:?}", body.end_report()).is_empty());
                    assert!(
                        body.sockets().into_iter().flatten().flat_map(|socket| socket.holes()).count() < bytes.len()
                    );
                }
                rest = &rest[consumed..];
            }
            Step::Skip { consumed, .. } => {
                assert!(consumed >= 1);
                rest = &rest[consumed..];
            }
            Step::NeedMore => return,
        }
    }
}

#[test]
fn table_rows_are_sound() {
    for (at, row) in command::TABLE.iter().enumerate() {
        let twin = command::TABLE.iter().position(|other| (other.command, other.sub) == (row.command, row.sub));
        assert_eq!(twin, Some(at), "{} stands twice", row.name);
        assert!(std::ptr::eq(command::lookup(row.command, row.sub).unwrap(), row));
        for (command, sub) in row.replies {
            let reply = command::lookup(*command, *sub).unwrap_or_else(|| panic!("{} has an unknown reply", row.name));
            let answers = match row.starts {
                Direction::Up => Direction::Down,
                Direction::Down => Direction::Up,
            };
            assert!(reply.layout(answers).is_some(), "{} cannot come {}", reply.name, answers.as_str());
        }
    }
    assert!(command::lookup(0x0015, Some(0x7E)).is_none());
    assert!(command::lookup(0x9999, None).is_none());
}

/// Bodies of zeros: the smallest documented size is read, one byte less is refused, more is tolerated.
#[test]
fn table_sizes_are_what_decoders_need() {
    let decodes = |row: &command::Command, direction, len: usize| {
        let mut bytes = Vec::new();
        encode::frame(&mut bytes, direction, row.command, 0, ID, |out| {
            if let Some(sub) = row.sub {
                out.extend_from_slice(&u16::try_from(len).unwrap().to_be_bytes());
                out.push(u8::try_from(sub).unwrap());
            }
            out.resize(out.len() + len, 0);
        });
        decode_body(&only_frame(&bytes)).is_ok()
    };
    let mut walked = 0;
    for row in command::TABLE.iter().filter(|row| row.command != command::PACKET) {
        for direction in [Direction::Up, Direction::Down] {
            let Some(layout) = row.layout(direction) else { continue };
            let min = *layout.size.start();
            assert!(decodes(row, direction, min), "{} {} of {min}", row.name, direction.as_str());
            assert!(decodes(row, direction, min + 1), "{} {} of {}", row.name, direction.as_str(), min + 1);
            if min > 0 && (row.command, direction) != (command::HEARTBEAT, Direction::Up) {
                assert!(!decodes(row, direction, min - 1), "{} {} of {}", row.name, direction.as_str(), min - 1);
            }
            walked += 1;
        }
    }
    assert_eq!(walked, 31);
}

#[test]
fn a_text_ends_at_its_first_nul() {
    // Neighbours of a NUL that a search by words could take for one, and more NULs behind the first.
    for filler in [1, 0x80, 0xFF, b'0'] {
        for len in 0..40 {
            let mut text = vec![filler; len];
            assert_eq!(Text::new(&text).as_bytes(), text);
            for nul in (0..len).rev() {
                text[nul] = 0;
                assert_eq!(Text::new(&text).as_bytes(), vec![filler; nul], "{nul} of {len}");
            }
        }
    }
}
