//! Time to find and decode one AP3000 frame, and to write one, without I/O.
//!
//! `cargo bench --bench codec_ap3000`. "decode" is what a read costs per frame: deframer, checksum and typed body. "skip" is
//! what garbage costs.

use std::hint::black_box;

use chargegate::protocol::ap3000::body::{Body, ChargeControl};
use chargegate::protocol::ap3000::codes::RateMode;
use chargegate::protocol::ap3000::encode::{self, Header};
use chargegate::protocol::ap3000::{Item, Magics, PhyId, decode_body, deframe};
use chargegate::protocol::{DecodeError, Direction, Step};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

/// Uplinks, by what they are called here and in `testdata/vectors/ap3000.jsonl`: the heartbeats of chargers, of the generation before them,
/// of hosts and of cabinets; the progress of a charge in three lengths; and its end.
const FRAMES: [(&str, &str); 9] = [
    ("heartbeat_2_ports", "21_heartbeat_up_vendor"),
    ("heartbeat_10_ports", "21_heartbeat_up_ten_ports"),
    ("heartbeat_legacy", "01_legacy_heartbeat_up_vendor"),
    ("heartbeat_host", "11_host_heartbeat_up_vendor"),
    ("heartbeat_cabinet", "41_cabinet_heartbeat_up_doors"),
    ("charging_report", "06_charging_report_up_full"),
    ("charging_report_vendor", "06_charging_report_up_vendor"),
    ("charging_report_short", "06_charging_report_up_short"),
    ("settlement", "03_settlement_up_full"),
];

fn vector(name: &str) -> Vec<u8> {
    let text = include_str!("../testdata/vectors/ap3000.jsonl");
    let line = text.lines().find(|line| line.contains(&format!("\"{name}\""))).expect("a vector of this name");
    let record: serde_json::Value = serde_json::from_str(line).expect("a line of JSON");
    let (pairs, _) = record["hex"].as_str().expect("its bytes").as_bytes().as_chunks::<2>();
    pairs.iter().map(|pair| u8::from_str_radix(str::from_utf8(pair).expect("ASCII"), 16).expect("hex")).collect()
}

fn decode<'a>(buf: &'a [u8], magics: &Magics) -> Result<Body<'a>, DecodeError> {
    let Step::Item { item: Item::Frame(frame), .. } = deframe(buf, magics) else { panic!("no frame") };
    decode_body(&frame, Direction::Up)
}

fn benches(c: &mut Criterion) {
    let magics = Magics::default();

    let mut group = c.benchmark_group("ap3000/decode");
    for (name, of) in FRAMES {
        let frame = vector(of);
        assert!(decode(&frame, &magics).is_ok(), "{name}");
        group.throughput(Throughput::Elements(1));
        // Looked at in its place, as the gateway does: handing a body over by value costs more than reading it.
        group.bench_function(name, |b| {
            b.iter(|| {
                black_box(&decode(black_box(&frame), black_box(&magics)));
            });
        });
    }
    group.finish();

    let mut group = c.benchmark_group("ap3000/skip");
    let noise = vec![0xa5; 4096];
    group.throughput(Throughput::Bytes(4096));
    group.bench_function("noise_4096", |b| b.iter(|| black_box(deframe(black_box(&noise), black_box(&magics)))));
    group.finish();

    let mut group = c.benchmark_group("ap3000/encode");
    let header = Header { magic: *b"DNY", phy_id: PhyId([0x40, 0xaa, 0xce, 0x04]), msg_id: 7 };
    let mut out = Vec::with_capacity(64);
    group.throughput(Throughput::Elements(1));
    group.bench_function("heartbeat_reply", |b| {
        b.iter(|| {
            out.clear();
            encode::result_reply(&mut out, black_box(&header), 0x21, 0);
            black_box(out.len())
        });
    });
    let start = ChargeControl::start(RateMode::TIMED, 1, 3600, *b"CG0123456789ABCD");
    group.bench_function("start", |b| {
        b.iter(|| {
            out.clear();
            encode::charge_control(&mut out, black_box(&header), black_box(&start));
            black_box(out.len())
        });
    });
    group.finish();
}

criterion_group!(codec, benches);
criterion_main!(codec);
