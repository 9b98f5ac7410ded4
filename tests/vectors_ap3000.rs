//! Every frame of `testdata/vectors/ap3000.jsonl` is found, decodes to exactly the fields given there, and encodes back
//! to the same bytes; cut, split, damaged or surrounded by garbage, nothing but the damaged bytes is lost.

use std::fs;
use std::sync::LazyLock;

use chargegate::protocol::ap3000::encode;
use chargegate::protocol::ap3000::{Body, Frame, Item, Magics, decode_body, deframe, guess_direction, lookup};
use chargegate::protocol::{DecodeError, Direction, SkipReason, Step};
use proptest::prelude::*;
use serde_json::Value;

/// Commands whose vectors have no typed body yet. The list may only shrink.
const NOT_DECODED: &[&str] = &[];

struct Vector {
    name: String,
    bytes: Vec<u8>,
    json: Value,
}

impl Vector {
    fn is_frame(&self) -> bool {
        self.json["kind"] == "frame"
    }

    fn direction(&self) -> Direction {
        match self.json["direction"].as_str().unwrap() {
            "up" => Direction::Up,
            "down" => Direction::Down,
            other => panic!("{}: direction {other}", self.name),
        }
    }

    fn frame(&self) -> Frame<'_> {
        match deframe(&self.bytes, &Magics::default()) {
            Step::Item { item: Item::Frame(frame), consumed } => {
                assert_eq!(consumed, self.bytes.len(), "{}", self.name);
                frame
            }
            other => panic!("{}: {other:?}", self.name),
        }
    }
}

fn vectors() -> Vec<Vector> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/vectors/ap3000.jsonl");
    let vectors: Vec<Vector> = fs::read_to_string(path)
        .unwrap()
        .lines()
        .map(|line| {
            let json: Value = serde_json::from_str(line).unwrap();
            let name = json["name"].as_str().unwrap().to_owned();
            assert_eq!(json["expect"], "accept", "{name}");
            Vector { name, bytes: bytes_of(json["hex"].as_str().unwrap()), json }
        })
        .collect();
    assert!(vectors.len() >= 141, "only {} vectors", vectors.len());
    vectors
}

fn bytes_of(hex: &str) -> Vec<u8> {
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
}

fn frames(vectors: &[Vector]) -> impl Iterator<Item = &Vector> {
    vectors.iter().filter(|vector| vector.is_frame())
}

/// An item as bytes, and the bytes skipped so far, when everything is fed through one buffer in these reads.
fn read_all<'a>(reads: impl IntoIterator<Item = &'a [u8]>) -> (Vec<Vec<u8>>, Vec<u8>) {
    let magics = Magics::default();
    let (mut buf, mut items, mut skipped) = (Vec::new(), Vec::new(), Vec::new());
    for read in reads {
        buf.extend_from_slice(read);
        loop {
            let consumed = match deframe(&buf, &magics) {
                Step::Item { item, consumed } => {
                    if let Item::Frame(frame) = item {
                        assert_eq!(frame.raw, &buf[..consumed]);
                    }
                    items.push(buf[..consumed].to_vec());
                    consumed
                }
                Step::Skip { consumed, .. } => {
                    skipped.extend_from_slice(&buf[..consumed]);
                    consumed
                }
                Step::NeedMore => break,
            };
            assert!((1..=buf.len()).contains(&consumed));
            buf.drain(..consumed);
        }
    }
    (items, skipped)
}

#[test]
fn frame_fields() {
    for vector in frames(&vectors()) {
        let (frame, json) = (vector.frame(), &vector.json);
        let name = &vector.name;
        assert_eq!(format!("0x{:02X}", frame.command), json["cmd"], "{name}");
        assert_eq!(frame.msg_id, json["msg_id"], "{name}");
        assert_eq!(frame.phy_id.to_string(), json["phy_id_hex"], "{name}");
        assert_eq!(frame.phy_id.as_u32(), json["phy_id_le_u32"], "{name}");
        assert_eq!(frame.data.len() + 9, json["length_field"].as_u64().unwrap() as usize, "{name}");
        assert_eq!(json["checksum_ok"], true, "{name}");
        let row = lookup(frame.command).unwrap();
        assert!(name.starts_with(&format!("{:02X}_{}_", row.code, row.name)), "{name} is called {}", row.name);
    }
}

#[test]
fn bodies_have_exactly_the_fields() {
    let mut not_decoded = Vec::new();
    let vectors = vectors();
    for vector in frames(&vectors) {
        match decode_body(&vector.frame(), vector.direction()) {
            Ok(body) => {
                assert_eq!(serde_json::to_value(body).unwrap(), vector.json["fields"], "{}", vector.name);
            }
            Err(DecodeError::NotDecoded { .. }) => not_decoded.push(vector.name.as_str()),
            Err(error) => panic!("{}: {error}", vector.name),
        }
    }
    assert_eq!(not_decoded, NOT_DECODED);
}

/// Vectors that are not written back as they came, and why. None may stand here without need.
const NOT_WRITTEN_BACK: [(&str, &str); 0] = [];

#[test]
fn what_was_read_is_written_byte_for_byte() {
    let (mut different, magics) = (Vec::new(), Magics::default());
    for vector in vectors() {
        let mut out = b"before".to_vec();
        let mut rest = &vector.bytes[..];
        while let Step::Item { item, consumed } = deframe(rest, &magics) {
            match item {
                Item::Iccid(iccid) => encode::iccid(&mut out, iccid),
                Item::Link => encode::link(&mut out),
                Item::Frame(frame) => {
                    let direction = if vector.is_frame() { vector.direction() } else { Direction::Up };
                    let body = decode_body(&frame, direction).unwrap();
                    let len = encode::message(&mut out, &frame.header(), direction, frame.command, &body);
                    assert_eq!(len, Ok(consumed), "{}", vector.name);
                }
            }
            rest = &rest[consumed..];
        }
        assert!(rest.is_empty(), "{}", vector.name);
        if out[6..] != vector.bytes {
            different.push(vector.name);
        }
    }
    assert_eq!(different, NOT_WRITTEN_BACK.map(|(name, _)| name));
}

#[test]
fn truncated_frames_ask_for_more() {
    for vector in vectors() {
        if vector.name.starts_with("stream_") {
            continue;
        }
        for len in 0..vector.bytes.len() {
            assert_eq!(deframe(&vector.bytes[..len], &Magics::default()), Step::NeedMore, "{} at {len}", vector.name);
        }
    }
}

/// A body that ends early lacks optional fields, or is refused: never does it gain or change a field.
#[test]
fn truncated_bodies_lose_fields_or_are_refused() {
    for vector in frames(&vectors()) {
        let frame = vector.frame();
        let size = lookup(frame.command).unwrap().layout(vector.direction()).unwrap().size.clone();
        let whole = &vector.json["fields"];
        for len in 0..frame.data.len() {
            let cut = Frame { data: &frame.data[..len], ..frame };
            match decode_body(&cut, vector.direction()) {
                Ok(body) => {
                    assert!(len >= *size.start(), "{} at {len}: {body:?}", vector.name);
                    for (key, value) in serde_json::to_value(body).unwrap().as_object().unwrap() {
                        let rest = matches!(key.as_str(), "chunk" | "eeprom_data" | "extra_hex");
                        let same = match (rest, value.as_str(), whole[key].as_str()) {
                            (true, Some(part), Some(whole)) => whole.starts_with(part),
                            _ => *value == whole[key],
                        };
                        assert!(same, "{} at {len}: {key}", vector.name);
                    }
                }
                Err(DecodeError::Truncated { need, have, .. }) => assert!(have < need, "{} at {len}", vector.name),
                Err(error) => panic!("{} at {len}: {error}", vector.name),
            }
        }
    }
}

#[test]
fn raw_items() {
    for vector in vectors() {
        let step = deframe(&vector.bytes, &Magics::default());
        if vector.name.starts_with("iccid_") {
            let Step::Item { item: Item::Iccid(iccid), consumed: 20 } = step else { panic!("{step:?}") };
            assert_eq!(str::from_utf8(iccid).unwrap(), vector.json["fields"]["iccid"]);
        } else if vector.name.starts_with("link_") {
            assert_eq!(step, Step::Item { item: Item::Link, consumed: 4 });
        } else {
            assert!(vector.is_frame() || vector.name == "stream_mixed_constructed", "{}", vector.name);
        }
    }
}

#[test]
fn mixed_stream_in_any_two_reads_and_byte_by_byte() {
    let vectors = vectors();
    let stream = vectors.iter().find(|vector| vector.name == "stream_mixed_constructed").unwrap();
    let expected: Vec<Vec<u8>> = stream.json["fields"]["segments"]
        .as_array()
        .unwrap()
        .iter()
        .map(|segment| match segment["type"].as_str().unwrap() {
            "iccid" => segment["value"].as_str().unwrap().as_bytes().to_vec(),
            "link" => b"link".to_vec(),
            "frame" => vectors.iter().find(|vector| segment["vector"] == vector.name).unwrap().bytes.clone(),
            other => panic!("segment {other}"),
        })
        .collect();
    assert_eq!(read_all([&stream.bytes[..]]).0, expected);
    for at in 0..=stream.bytes.len() {
        let (head, tail) = stream.bytes.split_at(at);
        assert_eq!(read_all([head, tail]), (expected.clone(), Vec::new()), "split at {at}");
    }
    assert_eq!(read_all(stream.bytes.chunks(1)), (expected, Vec::new()));
}

#[test]
fn all_frames_in_one_stream_in_any_two_reads_and_byte_by_byte() {
    let vectors = vectors();
    let expected: Vec<Vec<u8>> = frames(&vectors).map(|vector| vector.bytes.clone()).collect();
    let stream = expected.concat();
    assert_eq!(read_all(stream.chunks(1)), (expected.clone(), Vec::new()));
    for pair in expected.windows(2) {
        let stream = pair.concat();
        for at in 0..=stream.len() {
            let (head, tail) = stream.split_at(at);
            assert_eq!(read_all([head, tail]), (pair.to_vec(), Vec::new()), "split at {at}");
        }
    }
}

#[test]
fn garbage_between_frames_costs_only_the_garbage() {
    let vectors = vectors();
    let frames: Vec<&[u8]> = frames(&vectors).map(|vector| &vector.bytes[..]).collect();
    let damaged = {
        let mut frame = frames[0].to_vec();
        *frame.last_mut().unwrap() ^= 0xff;
        frame
    };
    let garbage: [&[u8]; 9] = [
        b"\0",
        b"\xff\xfe\xfd\xfc",
        b"GET / HTTP/1.1\r\n\r\n",
        b"D",
        b"DNDN",
        b"lin",
        b"8986",
        b"DNY\xff\xff",
        &damaged,
    ];
    for garbage in garbage {
        let mut stream = Vec::new();
        let mut skipped = Vec::new();
        for frame in &frames {
            stream.extend_from_slice(garbage);
            skipped.extend_from_slice(garbage);
            stream.extend_from_slice(frame);
        }
        assert_eq!(read_all([&stream[..]]), (frames.iter().map(|frame| frame.to_vec()).collect(), skipped));
    }
}

#[test]
fn damaged_length_or_checksum_is_named() {
    for vector in frames(&vectors()) {
        let mut bytes = vector.bytes.clone();
        *bytes.last_mut().unwrap() ^= 0x01;
        let step = deframe(&bytes, &Magics::default());
        assert!(matches!(step, Step::Skip { reason: SkipReason::BadChecksum, .. }), "{}: {step:?}", vector.name);
        bytes[4] = 0xff;
        let step = deframe(&bytes, &Magics::default());
        assert!(matches!(step, Step::Skip { reason: SkipReason::BadLength, .. }), "{}: {step:?}", vector.name);
    }
}

/// Only replies that look exactly like their request are taken for it.
#[test]
fn direction_is_guessed_but_for_look_alikes() {
    let vectors = vectors();
    let wrong: Vec<&str> = frames(&vectors)
        .filter(|vector| guess_direction(&vector.frame()) != vector.direction())
        .map(|vector| vector.name.as_str())
        .collect();
    assert_eq!(
        wrong,
        [
            "8D_set_work_mode_up_vendor",
            "8F_set_tc_mode_up_ok",
            "72_cabinet_stop_keep_door_up_ok",
            "96_locate_device_up_ok",
            "97_set_params_1_3_up_ok",
        ]
    );
}

proptest! {
    #[test]
    fn any_bytes_make_progress(
        noise in prop::collection::vec(
            prop_oneof![
                4 => prop::collection::vec(any::<u8>(), 0..40),
                1 => Just(b"DNY\x0a\0".to_vec()),
                1 => Just(b"link".to_vec()),
                1 => Just(b"8986".to_vec()),
                1 => prop::collection::vec(prop::sample::select(&b"DNYlink8986\x09\0"[..]), 0..40),
            ],
            0..20,
        ),
        at in any::<prop::sample::Index>(),
    ) {
        let stream = noise.concat();
        let (whole, skipped) = read_all([&stream[..]]);
        prop_assert!(whole.concat().len() + skipped.len() <= stream.len());
        let (head, tail) = stream.split_at(at.index(stream.len() + 1));
        prop_assert_eq!(&read_all([head, tail]).0, &whole);
        prop_assert_eq!(&read_all(stream.chunks(1)).0, &whole);
    }

    /// Frames, greetings, noise, halves of frames and damaged ones: what is found does not depend on how it is read.
    #[test]
    fn any_reads_give_the_same_items(
        parts in prop::collection::vec((any::<prop::sample::Index>(), 0..6u8, any::<prop::sample::Index>()), 1..12),
        reads in prop::collection::vec(1..80usize, 1..8),
    ) {
        static PARTS: LazyLock<Vec<Vec<u8>>> = LazyLock::new(|| vectors().into_iter().map(|v| v.bytes).collect());
        let mut stream = Vec::new();
        for (which, kind, at) in parts {
            let mut part = which.get(&PARTS).clone();
            match kind {
                0 => part = b"link8986DNY\xff\xff"[..at.index(14)].to_vec(),
                1 => part.truncate(at.index(part.len())),
                2 => *at.get_mut(&mut part) ^= 0x10,
                _ => {}
            }
            stream.extend(part);
        }
        let mut pieces = Vec::new();
        let mut rest = &stream[..];
        for len in reads.iter().copied().cycle() {
            if rest.is_empty() {
                break;
            }
            let (piece, later) = rest.split_at(len.min(rest.len()));
            pieces.push(piece);
            rest = later;
        }
        prop_assert_eq!(read_all(pieces), read_all([&stream[..]]));
    }

    #[test]
    fn any_data_is_a_body_or_an_error(command: u8, data in prop::collection::vec(any::<u8>(), 0..503)) {
        let mut bytes = Vec::new();
        let header = encode::Header { magic: *b"DNY", phy_id: Default::default(), msg_id: 1 };
        let encoded = encode::frame(&mut bytes, *b"DNY", header.phy_id, 1, command, |out| out.extend_from_slice(&data));
        let frame = Frame { magic: *b"DNY", phy_id: header.phy_id, msg_id: 1, command, data: &data, raw: &bytes };
        let _ = guess_direction(&frame);
        for direction in [Direction::Up, Direction::Down] {
            if let Ok(body) = decode_body(&frame, direction) {
                serde_json::to_value(body).unwrap();
                let again: Vec<u8> = write(&body);
                let body_again = Frame { data: &again, ..frame };
                prop_assert_eq!(decode_body(&body_again, direction), Ok(body));
            }
        }
        prop_assert_eq!(encoded.is_ok(), bytes.len() == data.len() + 14);
    }
}

fn write(body: &Body<'_>) -> Vec<u8> {
    let mut out = Vec::new();
    body.write(&mut out);
    out
}
