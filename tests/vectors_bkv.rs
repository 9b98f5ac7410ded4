//! Every recorded BKV/GN frame is judged as its record says, at the level it names, its fields come out exactly, and what
//! was read is written again byte for byte.
//!
//! The vectors hold the examples of the integration guide V1.7, its misprints included, and frames constructed beside
//! them. Server frames are also built from their fields alone, and device frames by the functions that a simulator uses.

use std::collections::BTreeSet;
use std::sync::LazyLock;

use chargegate::protocol::bkv::body::{Level, Period, SocketEntry, Start};
use chargegate::protocol::bkv::clock::{DeviceTime, TimeOfDay};
use chargegate::protocol::bkv::encode::{self, CardTerms, FeeOrder, PowerOrder};
use chargegate::protocol::bkv::packet::{FeeTier, PacketHeader, Params};
use chargegate::protocol::bkv::report::{HoleBlock, HoleState, SocketState};
use chargegate::protocol::bkv::{Body, Frame, GatewayId, command, decode_body, deframe, device};
use chargegate::protocol::{DecodeError, Direction, Hex, SkipReason, Step};
use proptest::prelude::*;
use serde::Deserialize;
use serde_json::{Value, json};

#[derive(Deserialize)]
struct Vector {
    name: String,
    hex: String,
    direction: String,
    cmd: String,
    seq: String,
    gateway_id: String,
    fields: Value,
    expect: String,
}

fn vectors() -> Vec<Vector> {
    let vectors: Vec<Vector> =
        include_str!("../testdata/vectors/bkv.jsonl").lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(vectors.len(), 73);
    vectors
}

fn accepted() -> impl Iterator<Item = (Vector, Vec<u8>)> {
    vectors().into_iter().filter(|vector| vector.expect == "accept").map(|vector| {
        let bytes = unhex(&vector.hex).unwrap();
        (vector, bytes)
    })
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    let digit = |digit: u8| char::from(digit).to_digit(16);
    let byte = |pair: &[u8; 2]| Some((digit(pair[0])? << 4 | digit(pair[1])?) as u8);
    rest.is_empty().then(|| pairs.iter().map(byte).collect())?
}

fn only_frame(bytes: &[u8]) -> Frame<'_> {
    match deframe(bytes) {
        Step::Item { item, consumed } if consumed == bytes.len() => item,
        other => panic!("not one whole frame: {other:?}"),
    }
}

#[test]
fn every_vector_is_judged_at_its_level() {
    for vector in vectors() {
        let bytes = unhex(&vector.hex);
        match (vector.expect.as_str(), bytes) {
            ("not_hex", bytes) => assert_eq!(bytes, None, "{}", vector.name),
            ("reject_frame", Some(bytes)) => {
                let found = drain(&bytes);
                assert!(found.frames.is_empty(), "{}", vector.name);
                assert!(!matches!(deframe(&bytes), Step::Item { .. }), "{}", vector.name);
            }
            ("reject_body", Some(bytes)) => {
                decode_body(&only_frame(&bytes)).expect_err(&vector.name);
            }
            ("accept", Some(bytes)) => {
                decode_body(&only_frame(&bytes)).unwrap_or_else(|error| panic!("{}: {error}", vector.name));
            }
            (expect, bytes) => panic!("{}: {expect} with {bytes:?}", vector.name),
        }
    }
}

#[test]
fn refusals_name_their_reason() {
    let first = |name: &str| {
        let vector = vectors().into_iter().find(|vector| vector.name == name).unwrap();
        let bytes = unhex(&vector.hex).unwrap();
        match deframe(&bytes) {
            Step::Skip { consumed, reason } => Some((consumed, reason)),
            Step::NeedMore => None,
            Step::Item { .. } => panic!("{name} passed"),
        }
    };
    assert_eq!(first("bad_checksum_down"), Some((1, SkipReason::BadChecksum)));
    assert_eq!(first("charge_start_time_07_down_badsum"), Some((1, SkipReason::BadChecksum)));
    assert_eq!(first("bad_tail_down"), Some((1, SkipReason::BadTail)));
    assert_eq!(first("bad_direction_down"), Some((1, SkipReason::BadDirection)));
    assert_eq!(first("charge_start_fee_1007_down_badlen"), None, "says more bytes than it has");

    let body = |name: &str| {
        let vector = vectors().into_iter().find(|vector| vector.name == name).unwrap();
        decode_body(&only_frame(&unhex(&vector.hex).unwrap())).map(|_| ()).unwrap_err()
    };
    let field = |error| match error {
        DecodeError::Truncated { field, need, have } => (field, need, have),
        DecodeError::Invalid { field, value, .. } => (field, value as usize, 0),
        other => panic!("{other}"),
    };
    assert_eq!(field(body("bad_inner_length_down")), ("inner_len", 5, 0));
    assert_eq!(field(body("bad_tlv_overrun_up")), ("tlv element", 64, 6));
    assert_eq!(field(body("bad_tlv_len1_up")), ("tlv len", 1, 0));
}

#[test]
fn frame_headers_come_out() {
    for (vector, bytes) in accepted() {
        let frame = only_frame(&bytes);
        assert_eq!(frame.direction.as_str(), vector.direction, "{}", vector.name);
        assert_eq!(format!("{:#06x}", frame.command), vector.cmd, "{}", vector.name);
        assert_eq!(format!("{:08x}", frame.sequence), vector.seq, "{}", vector.name);
        assert_eq!(frame.gateway_id.to_string(), vector.gateway_id, "{}", vector.name);
        assert_eq!(frame.raw, bytes);
        let sub = if frame.command == 0x1000 { &vector.fields["cmd"] } else { &vector.fields["sub"] };
        let sub = sub.as_str().map(|text| u16::from_str_radix(&text[2..], 16).unwrap());
        assert_eq!(frame.sub(), sub, "{}", vector.name);
    }
}

#[test]
fn fields_come_out_exactly() {
    /// The guide's example of 17 under the other command word: the vectors give its body raw, and so does the codec.
    const NOT_DECODED: [&str; 1] = ["charge_start_power_17_down_cmd0005"];
    let mut raw = BTreeSet::new();
    for (vector, bytes) in accepted() {
        let body = decode_body(&only_frame(&bytes)).unwrap();
        assert_eq!(serde_json::to_value(body).unwrap(), vector.fields, "{}", vector.name);
        if matches!(body, Body::Unread(..) | Body::Packet(_) | Body::OtaReport(_)) {
            raw.insert(vector.name);
        }
    }
    assert_eq!(raw, NOT_DECODED.map(str::to_owned).into(), "vectors without a decoder");
}

/// Vectors that are not written back as they came, and why. None may stand here without need.
const NOT_WRITTEN_BACK: [(&str, &str); 0] = [];

#[test]
fn what_was_read_is_written_byte_for_byte() {
    let mut different = Vec::new();
    for (vector, bytes) in accepted() {
        let frame = only_frame(&bytes);
        let mut out = b"before".to_vec();
        encode::body(&mut out, &frame.header(), &decode_body(&frame).unwrap());
        if out[6..] != bytes {
            different.push(vector.name);
        }
    }
    assert_eq!(different, NOT_WRITTEN_BACK.map(|(name, _)| name));
}

/// Device frames whose values no function of `device` takes, and why. None may stand here without need.
const NOT_BUILT: [(&str, &str); 1] = [("status_push_1017_unknown_tag_up", "an unknown tag has no field")];

#[test]
fn device_frames_are_built_byte_for_byte() {
    let mut different = Vec::new();
    for (vector, bytes) in accepted().filter(|(vector, _)| vector.direction == "up") {
        let frame = only_frame(&bytes);
        if Hex(build_up(&frame)) != Hex(bytes.clone()) {
            different.push(vector.name);
        }
    }
    assert_eq!(different, NOT_BUILT.map(|(name, _)| name));
}

/// Writes a device frame again from the values that were read, by the function for it.
fn build_up(frame: &Frame<'_>) -> Vec<u8> {
    let (out, id, sequence) = (&mut Vec::new(), frame.gateway_id, frame.sequence);
    match &decode_body(frame).unwrap() {
        Body::Heartbeat(beat) => {
            let text = |bytes| str::from_utf8(bytes).unwrap();
            device::heartbeat(out, id, text(beat.iccid.as_bytes()), text(beat.fw.as_bytes()), beat.rssi.unwrap());
        }
        body @ Body::Push(_) => {
            let holes: Vec<Vec<HoleBlock>> = body.sockets().unwrap().map(|socket| blocks(&socket)).collect();
            let sockets: Vec<_> = body.sockets().unwrap().zip(&holes).map(|(s, holes)| socket(&s, holes)).collect();
            device::push(out, id, &sockets);
        }
        body @ Body::SocketReply(inner, _) => {
            let state = body.sockets().unwrap().next().unwrap();
            device::socket_reply(out, id, sequence, inner.sub, &socket(&state, &blocks(&state)));
        }
        Body::StartReply(inner, reply) => device::start_reply(out, id, sequence, inner.sub, reply),
        Body::NetworkResult(inner, result) => {
            device::network_result(out, id, sequence, inner.sub, result.result == 1);
        }
        Body::ChargeEnd(_, end) => device::charge_end(out, id, end),
        Body::PowerEnd(_, end) => device::power_end(out, id, end),
        Body::CardEnd(_, end) => device::card_end(out, id, end),
        Body::CardSwipe(_, swipe) => device::card_swipe(out, id, swipe),
        Body::CardConfirm(_, confirm) => device::card_confirm(out, id, sequence, confirm),
        Body::BalanceQuery(_, query) => device::balance_query(out, id, query),
        Body::VoiceReply(_, reply) => device::voice_reply(out, id, sequence, reply),
        Body::FeeEnd(end) => device::fee_end(out, id, &end.report, end.tier_results),
        Body::Exception(exception) => device::exception(out, id, exception),
        Body::Event(event) => device::event(out, id, event),
        Body::PacketReply(reply) => {
            let (socket, ok) = (reply.socket.unwrap(), reply.ack == 1);
            match reply.packet.command {
                command::packet_sub::PARAM_SET => device::param_set_reply(out, id, sequence, socket, ok),
                command::packet_sub::PARAM_QUERY => {
                    device::param_query_reply(out, id, sequence, socket, ok, &reply.params);
                }
                other => panic!("no device frame is recorded for {other:#06x}"),
            }
        }
        other => panic!("{other:?}"),
    }
    std::mem::take(out)
}

fn blocks(socket: &SocketState<'_>) -> Vec<HoleBlock> {
    let block = |hole: HoleState| HoleBlock {
        hole: hole.hole.unwrap(),
        status: hole.status.unwrap(),
        business_no: hole.business_no.unwrap(),
        voltage_dv: hole.voltage_dv.unwrap(),
        power_dw: hole.power_dw.unwrap(),
        current_ma: hole.current_ma.unwrap(),
        energy_wh: hole.energy_wh.unwrap(),
        charged_min: hole.charged_min.unwrap(),
    };
    socket.holes().map(block).collect()
}

fn socket<'a>(state: &SocketState<'_>, holes: &'a [HoleBlock]) -> device::Socket<'a> {
    let (socket, fw) = (state.socket.unwrap(), state.fw.unwrap());
    device::Socket { socket, fw, temp_c: state.temp_c.unwrap(), rssi: state.rssi.unwrap(), holes }
}

#[test]
fn server_frames_are_built_from_their_fields_byte_for_byte() {
    for (vector, bytes) in accepted().filter(|(vector, _)| vector.direction == "down") {
        let built = rebuild(&vector).unwrap_or_else(|| panic!("{} has no encoder", vector.name));
        assert_eq!(Hex(built), Hex(bytes), "{}", vector.name);
    }
}

/// Builds a server frame from the record's fields alone.
fn rebuild(vector: &Vector) -> Option<Vec<u8>> {
    let fields = &vector.fields;
    let number = |key: &str| fields[key].as_u64().unwrap_or_else(|| panic!("{}: {key}", vector.name));
    let byte = |key: &str| number(key) as u8;
    let word = |key: &str| number(key) as u16;
    let id: GatewayId = vector.gateway_id.parse().unwrap();
    let seq = u32::from_str_radix(&vector.seq, 16).unwrap();
    let command = u16::from_str_radix(&vector.cmd[2..], 16).unwrap();
    let code = |key: &str| fields[key].as_str().map(|text| u16::from_str_radix(&text[2..], 16).unwrap());
    let entry =
        |value: &Value| SocketEntry { socket: value["socket"].as_u64().unwrap() as u8, mac: Hex(array(&value["mac"])) };
    let mut out = Vec::new();
    let place = || (byte("socket"), byte("hole"));
    match (command, code("sub").or_else(|| code("cmd"))) {
        (0x0000, None) => {
            let time = DeviceTime::from_bcd(array(&fields["server_time_bcd"])).to_unix().unwrap();
            encode::heartbeat_reply(&mut out, id, time);
        }
        (0x0007, None) => {
            let ip = fields["ftp_ip"].as_str().unwrap().parse().unwrap();
            encode::ota(&mut out, id, seq, ip, word("ftp_port"), fields["file"].as_str().unwrap());
        }
        (0x0005, Some(0x08)) => {
            let sockets: Vec<_> = fields["sockets"].as_array().unwrap().iter().map(entry).collect();
            encode::socket_list(&mut out, id, seq, byte("channel"), &sockets);
        }
        (0x0005, Some(0x09)) => encode::socket_add(&mut out, id, seq, &entry(fields)),
        (0x0005, Some(0x0A)) => encode::socket_delete(&mut out, id, seq, byte("socket")),
        (0x0015, Some(0x1D)) => encode::socket_query(&mut out, id, seq, byte("socket")),
        (0x0015, Some(0x07)) => {
            let start = match (byte("switch"), byte("mode")) {
                (0, _) => Start::stop(byte("socket"), byte("hole")),
                (_, 1) => Start::time(byte("socket"), byte("hole"), word("minutes")),
                (_, _) => Start::energy(byte("socket"), byte("hole"), word("energy_wh")),
            };
            encode::start(&mut out, id, seq, &start);
        }
        (command, Some(0x17)) => {
            // Under 0x0005 the record holds the same body raw.
            let same = vectors().into_iter().find(|other| other.name == "charge_start_power_17_down").unwrap();
            let fields = if fields["body"].is_string() { &same.fields } else { fields };
            let levels = read_levels(fields);
            let order = PowerOrder {
                socket: fields["socket"].as_u64().unwrap() as u8,
                hole: fields["hole"].as_u64().unwrap() as u8,
                on: fields["switch"] == 1,
                paid_cent: fields["paid_cent"].as_u64().unwrap() as u16,
                levels: &levels,
            };
            encode::power_start(&mut out, id, seq, command, &order);
        }
        (0x0015, Some(sub @ (0x02 | 0x0C | 0x18))) => {
            encode::end_ack(&mut out, id, sub as u8, byte("socket"), number("result") == 1);
        }
        (0x0015, Some(0x0B)) => {
            let levels = if fields["levels"].is_array() { read_levels(fields) } else { Vec::new() };
            let terms = match (byte("switch"), byte("mode")) {
                (0, _) => CardTerms::Refused,
                (_, 1) => CardTerms::Time(word("time")),
                (_, 2) => CardTerms::Energy(word("energy_wh")),
                (_, _) => CardTerms::Power(word("paid_cent"), &levels),
            };
            encode::card_order(&mut out, id, seq, place(), word("business_no"), terms);
        }
        (0x0015, Some(0x1A)) => {
            let balance = number("balance_cent") as u32;
            encode::balance_reply(&mut out, id, seq, place(), array(&fields["card"]), balance);
        }
        (0x0015, Some(0x1B)) => {
            let period = |value: &Value| Period { start: time(&value["start"]), end: time(&value["end"]) };
            let periods: Vec<_> = fields["periods"].as_array().unwrap().iter().map(period).collect();
            encode::voice_set(&mut out, id, seq, place(), number("buzzer") == 1, number("voice") == 1, &periods);
        }
        (0x1000, Some(sub)) => {
            let header = PacketHeader {
                frame_seq: array(&fields["frame_seq"]),
                gateway_id: fields["gateway_id"].as_str().unwrap().parse().unwrap(),
            };
            match sub {
                0x1017 => encode::push_ack(&mut out, id, header, number("ack") == 1),
                0x1004 => {
                    encode::fee_end_ack(&mut out, id, header, byte("socket_no"), byte("hole"), number("ack") == 1)
                }
                0x1010 => encode::exception_ack(&mut out, id, header, byte("socket_no"), number("ack") == 1),
                0x1013 => encode::event_ack(&mut out, id, header, byte("socket_no"), number("ack") == 1),
                0x1012 => encode::param_query(&mut out, id, seq, byte("socket_no")),
                0x1011 => {
                    let word = |key: &str| fields[key].as_u64().map(|value| value as u16);
                    let params = Params {
                        full_charge_delay_s: word("full_charge_delay_s"),
                        no_load_delay_s: word("no_load_delay_s"),
                        full_power_threshold_dw: word("full_power_threshold_dw"),
                        no_load_power_threshold_dw: word("no_load_power_threshold_dw"),
                        high_temp_threshold: word("high_temp_threshold").map(|value| value as u8),
                        power_limit_dw: word("power_limit_dw"),
                        max_charge_min: word("max_charge_min"),
                        ..Params::default()
                    };
                    encode::param_set(&mut out, id, seq, byte("socket_no"), &params);
                }
                0x1007 => {
                    let tier = |tier: &Value| FeeTier {
                        end: time(&tier["end_hhmm"]),
                        electricity_cent_per_kwh: tier["electricity_cent_per_kwh"].as_u64().unwrap() as u16,
                        service_cent_per_kwh: tier["service_cent_per_kwh"].as_u64().unwrap() as u16,
                    };
                    let tiers: Vec<_> = fields["fee_tiers"].as_array().unwrap().iter().map(tier).collect();
                    let order = FeeOrder {
                        socket: byte("socket_no"),
                        hole: byte("hole"),
                        on: number("switch") == 1,
                        paid_amount_cent: word("paid_amount_cent"),
                        service_fee_mode: byte("service_fee_mode"),
                        tiers: &tiers,
                    };
                    encode::fee_start(&mut out, id, seq, &order);
                }
                _ => return None,
            }
        }
        _ => return None,
    }
    Some(out)
}

fn read_levels(fields: &Value) -> Vec<Level> {
    let level = |level: &Value| {
        let word = |key: &str| level[key].as_u64().unwrap() as u16;
        Level { power_dw: word("power_dw"), price_cent: word("price_cent"), minutes: word("minutes") }
    };
    fields["levels"].as_array().unwrap().iter().map(level).collect()
}

fn array<const N: usize>(value: &Value) -> [u8; N] {
    unhex(value.as_str().unwrap()).unwrap().try_into().unwrap()
}

fn time(value: &Value) -> TimeOfDay {
    let (hour, minute) = value.as_str().unwrap().split_once(':').unwrap();
    TimeOfDay { hour: hour.parse().unwrap(), minute: minute.parse().unwrap() }
}

/// What a stream came down to.
#[derive(Debug, Default, PartialEq, Eq)]
struct Found {
    frames: Vec<Vec<u8>>,
    skipped: usize,
}

/// Steps through `bytes` until more are needed; gives what was found and how many bytes are spent.
fn step_all(bytes: &[u8], found: &mut Found) -> usize {
    let mut at = 0;
    loop {
        match deframe(&bytes[at..]) {
            Step::Item { item, consumed } => {
                assert_eq!(item.raw.len(), consumed);
                found.frames.push(item.raw.to_vec());
                at += consumed;
            }
            Step::Skip { consumed, .. } => {
                assert!(consumed > 0);
                found.skipped += consumed;
                at += consumed;
            }
            Step::NeedMore => return at,
        }
    }
}

fn drain(bytes: &[u8]) -> Found {
    let mut found = Found::default();
    step_all(bytes, &mut found);
    found
}

#[test]
fn every_truncation_asks_for_more() {
    for (vector, bytes) in accepted() {
        for len in 0..bytes.len() {
            assert_eq!(deframe(&bytes[..len]), Step::NeedMore, "{} cut to {len}", vector.name);
        }
    }
}

/// A body cut short under an agreeing inner length is refused below the documented size, and never taken for another.
#[test]
fn every_body_cut_short_is_refused() {
    for (vector, bytes) in accepted() {
        let frame = only_frame(&bytes);
        let prefixed = matches!(frame.command, 0x0005 | 0x0015);
        let whole = decode_body(&frame).unwrap();
        for len in 0..frame.payload.len() {
            let mut payload = frame.payload[..len].to_vec();
            if prefixed && let Some(inner_len) = len.checked_sub(3) {
                payload[..2].copy_from_slice(&(inner_len as u16).to_be_bytes());
            }
            let body = decode_body(&Frame { payload: &payload, ..frame });
            let label = format!("{} cut to {len}: {body:?}", vector.name);
            match (whole, body) {
                (_, Err(_)) => {}
                // Answered whatever its length.
                (Body::Heartbeat(_), Ok(Body::Heartbeat(_))) => {}
                // Kept raw, so nothing can be missing.
                (Body::Unread(..), Ok(Body::Unread(..))) => {}
                // Whole records only: the cut costs at least one of them.
                (Body::SocketReply(_, whole), Ok(Body::SocketReply(_, cut))) => {
                    assert!(cut.holes.len() < whole.holes.len(), "{label}");
                }
                (Body::SocketList(_, whole), Ok(Body::SocketList(_, cut))) => {
                    assert!(cut.sockets.len() < whole.sockets.len(), "{label}");
                }
                // A cut between two elements loses those behind it.
                (whole, Ok(cut)) => {
                    let (whole, cut) = (whole.packet().expect(&label), cut.packet().expect(&label));
                    assert!(
                        cut.command == whole.command && cut.elements().count() < whole.elements().count(),
                        "{label}"
                    );
                }
            }
        }
    }
}

/// All accepted frames end to end.
fn stream() -> (Vec<u8>, Vec<Vec<u8>>) {
    let frames: Vec<_> = accepted().map(|(_, bytes)| bytes).collect();
    (frames.concat(), frames)
}

#[test]
fn every_split_into_two_reads_gives_the_same_frames() {
    for (vector, bytes) in accepted() {
        let twice = [&bytes[..], &bytes[..]].concat();
        for split in 0..=twice.len() {
            let mut found = Found::default();
            let spent = step_all(&twice[..split], &mut found);
            step_all(&twice[spent..], &mut found);
            assert_eq!(found, Found { frames: vec![bytes.clone(); 2], skipped: 0 }, "{} at {split}", vector.name);
        }
    }
}

#[test]
fn byte_by_byte_gives_the_same_frames() {
    let (bytes, frames) = stream();
    let mut found = Found::default();
    let mut held = Vec::new();
    for byte in bytes {
        held.push(byte);
        let spent = step_all(&held, &mut found);
        held.drain(..spent);
    }
    assert_eq!(found, Found { frames, skipped: 0 });
    assert!(held.is_empty());
}

#[test]
fn garbage_between_frames_costs_only_itself() {
    let (_, frames) = stream();
    // Half magics, tails, a whole magic with an impossible length, and lengths that a following frame cannot satisfy.
    for garbage in [
        &[0x00][..],
        &[0xFC],
        &[0xFC, 0xEE],
        &[0xFE, 0xFF],
        &[0xFC, 0xFC, 0xFC],
        &[0xFC, 0xFE, 0, 0],
        b"GET / HTTP/1.1\r\n\r\n",
    ] {
        let mut bytes = Vec::new();
        for frame in &frames {
            bytes.extend_from_slice(garbage);
            bytes.extend_from_slice(frame);
        }
        let skipped = garbage.len() * frames.len();
        assert_eq!(drain(&bytes), Found { frames: frames.clone(), skipped }, "{garbage:02x?}");
    }
}

#[test]
fn a_frame_inside_a_broken_frame_is_found() {
    let (_, frames) = stream();
    for frame in &frames {
        // A head that claims the frame behind it as its own payload, and fails at the tail.
        let mut bytes = vec![0xFC, 0xFE, 0, 17];
        bytes.extend_from_slice(frame);
        bytes.extend_from_slice(&[0; 17]);
        assert_eq!(drain(&bytes).frames, std::slice::from_ref(frame));
    }
}

#[test]
fn the_tail_inside_a_payload_ends_nothing() {
    let id = GatewayId([0xFC, 0xEE, 0xFC, 0xEE, 0xFC, 0xEE, 0xFC]);
    let mut bytes = Vec::new();
    encode::frame(&mut bytes, Direction::Up, 0xFCEE, 0xFCEE_FCEE, id, |out| out.extend([0xFC, 0xEE].repeat(100)));
    let frame = only_frame(&bytes);
    assert_eq!(frame.payload, [0xFC, 0xEE].repeat(100));
    assert_eq!(decode_body(&frame), Err(DecodeError::Unknown { command: 0xFCEE }));
}

#[test]
fn the_longest_frame_passes() {
    let id = GatewayId::default();
    let sockets: Vec<_> = (1..=250).map(|socket| SocketEntry { socket, mac: Hex([socket; 6]) }).collect();
    let mut bytes = Vec::new();
    encode::socket_list(&mut bytes, id, 1, 1, &sockets);
    assert_eq!(bytes.len(), 1771 + 4);
    let body = decode_body(&only_frame(&bytes)).unwrap();
    let Body::SocketList(_, list) = body else { panic!("{body:?}") };
    assert_eq!((list.sockets.len(), list.sockets.collect::<Vec<_>>()), (250, sockets));

    let mut bytes = Vec::new();
    encode::frame(&mut bytes, Direction::Up, 7, 0, id, |out| out.resize(out.len() + 4096 - 17, 0));
    assert_eq!(only_frame(&bytes).payload.len(), 4096 - 17);
}

#[test]
fn vectors_use_every_row_the_guide_describes() {
    let mut seen = BTreeSet::new();
    for (_, bytes) in accepted() {
        let frame = only_frame(&bytes);
        let row = command::lookup(frame.command, frame.sub()).expect("every vector is in the table");
        seen.insert((row.command, row.sub, frame.direction == Direction::Up));
    }
    let missing: Vec<_> = command::TABLE
        .iter()
        .flat_map(|row| [(row, Direction::Up), (row, Direction::Down)])
        .filter(|(row, direction)| row.layout(*direction).is_some())
        .filter(|(row, direction)| !seen.contains(&(row.command, row.sub, *direction == Direction::Up)))
        .map(|(row, direction)| format!("{} {}", row.name, direction.as_str()))
        .collect();
    // Neither is described or recorded anywhere.
    assert_eq!(missing, ["fee_start up", "power_start up", "ota up"]);
}

#[test]
fn known_words_of_the_extension_are_logged_only() {
    let id = GatewayId::default();
    for row in command::TABLE.iter().filter(|row| row.is_extension()) {
        let mut bytes = Vec::new();
        encode::frame(&mut bytes, Direction::Up, row.command, 0, id, |out| out.push(1));
        let error = decode_body(&only_frame(&bytes)).unwrap_err();
        assert_eq!(error, DecodeError::NotDecoded { command: row.command }, "{}", row.name);
    }
}

#[test]
fn an_opaque_packet_is_known_but_not_decoded() {
    let mut bytes = Vec::new();
    encode::frame(&mut bytes, Direction::Up, 0x1000, 0, GatewayId::default(), |out| out.extend([0x4A, 1, 1]));
    assert_eq!(decode_body(&only_frame(&bytes)), Err(DecodeError::NotDecoded { command: 0x1000 }));
}

#[test]
fn unknown_sub_commands_survive_as_numbers() {
    let mut bytes = Vec::new();
    encode::frame(&mut bytes, Direction::Up, 0x0015, 0, GatewayId::default(), |out| {
        out.extend([0, 2, 0x7E, 0xAB, 0xCD])
    });
    let body = decode_body(&only_frame(&bytes)).unwrap();
    let fields = json!({ "inner_len": 2, "inner_len_ok": true, "sub": "0x7e", "body": "abcd" });
    assert_eq!(serde_json::to_value(body).unwrap(), fields);
}

proptest! {
    /// Frames, noise, halves of frames and damaged ones: what is found does not depend on how it is read.
    #[test]
    fn any_reads_give_the_same_frames(
        parts in prop::collection::vec((any::<prop::sample::Index>(), 0..6u8, any::<prop::sample::Index>()), 1..12),
        reads in prop::collection::vec(1..80usize, 1..8),
    ) {
        static FRAMES: LazyLock<Vec<Vec<u8>>> = LazyLock::new(|| stream().1);
        let mut bytes = Vec::new();
        for (which, kind, at) in parts {
            let mut part = which.get(&FRAMES).clone();
            match kind {
                0 => part = vec![0xFC; at.index(4)],
                1 => part.truncate(at.index(part.len())),
                2 => *at.get_mut(&mut part) ^= 0x10,
                _ => {}
            }
            bytes.extend(part);
        }
        let mut found = Found::default();
        let mut held = Vec::new();
        let mut rest = &bytes[..];
        for len in reads.iter().copied().cycle() {
            let (read, later) = rest.split_at(len.min(rest.len()));
            held.extend_from_slice(read);
            let spent = step_all(&held, &mut found);
            held.drain(..spent);
            rest = later;
            if rest.is_empty() {
                break;
            }
        }
        prop_assert_eq!(found.frames.concat().len() + found.skipped + held.len(), bytes.len());
        prop_assert_eq!(found, drain(&bytes));
    }
}
