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

/// Uplinks of `testdata/vectors/ap3000.jsonl`.
const FRAMES: [(&str, &str); 4] = [
    ("heartbeat_2_ports", "444e5910003b37ab0401002198080200000905ee02"),
    ("heartbeat_10_ports", "444e591800d628d705020021a4080a000102030508090b0d10005a5404"),
    (
        "charging_report",
        "444e593800d628d7054000060901580207000130116211cc10211120230503234223414193991312684105408394119808d0\
         075b60de5ca95f0000a10e",
    ),
    (
        "settlement",
        "444e592e00d628d7052000031815260987000901000000000520230503234223414193991312684105fc08de5ca95f0000a2\
         0a",
    ),
];

fn decode<'a>(buf: &'a [u8], magics: &Magics) -> Result<Body<'a>, DecodeError> {
    let Step::Item { item: Item::Frame(frame), .. } = deframe(buf, magics) else { panic!("no frame") };
    decode_body(&frame, Direction::Up)
}

fn benches(c: &mut Criterion) {
    let magics = Magics::default();

    let mut group = c.benchmark_group("ap3000/decode");
    for (name, hex) in FRAMES {
        let frame = bytes_of(hex);
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

fn bytes_of(hex: &str) -> Vec<u8> {
    let (pairs, _) = hex.as_bytes().as_chunks::<2>();
    pairs.iter().map(|pair| u8::from_str_radix(str::from_utf8(pair).expect("hex is ASCII"), 16).expect("hex")).collect()
}

criterion_group!(codec, benches);
criterion_main!(codec);
