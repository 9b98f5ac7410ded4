//! Cost of reading one BKV/GN frame: cut it out of the buffer, decode its body, walk what a gateway looks at.

use std::hint::black_box;

use chargegate::protocol::Step;
use chargegate::protocol::bkv::{Body, Frame, HoleState, decode_body, deframe, encode};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

fn vector(name: &str) -> Vec<u8> {
    let line = include_str!("../testdata/vectors/bkv.jsonl").lines().find(|line| line.contains(&format!("\"{name}\"")));
    let record: serde_json::Value = serde_json::from_str(line.unwrap()).unwrap();
    let hex = record["hex"].as_str().unwrap();
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
}

fn cut(bytes: &[u8]) -> Frame<'_> {
    match deframe(bytes) {
        Step::Item { item, .. } => item,
        other => panic!("not a frame: {other:?}"),
    }
}

fn read(c: &mut Criterion) {
    let mut group = c.benchmark_group("bkv_read");
    for (label, name) in [
        ("heartbeat", "heartbeat_up"),
        ("push", "status_push_1017_charging_up"),
        ("push_two_sockets", "status_push_1017_two_sockets_up"),
        ("query_reply", "socket_query_reply_1d_up"),
        ("end", "charge_end_02_up"),
        ("fee_end", "charge_end_fee_1004_up"),
    ] {
        let bytes = vector(name);
        group.throughput(Throughput::Bytes(bytes.len() as u64));
        group.bench_function(format!("{label}_deframe"), |b| b.iter(|| cut(black_box(&bytes)).sequence));
        group.bench_function(format!("{label}_decode"), |b| {
            b.iter(|| black_box(decode_body(&cut(black_box(&bytes))).is_ok()));
        });
        group.bench_function(format!("{label}_walk"), |b| {
            b.iter(|| {
                let frame = cut(black_box(&bytes));
                let body = decode_body(&frame);
                let Ok(body) = &body else { panic!("{label} does not decode") };
                walk(body)
            });
        });
    }
    group.finish();
}

fn walk(body: &Body<'_>) -> u32 {
    if let Body::Heartbeat(beat) = body {
        return u32::from(beat.rssi.unwrap_or_default());
    }
    if let Some(end) = body.end_report() {
        return u32::from(end.energy_wh);
    }
    let energy = |hole: HoleState| u32::from(hole.energy_wh.unwrap_or_default());
    body.sockets().into_iter().flatten().flat_map(|socket| socket.holes()).map(energy).sum()
}

fn write(c: &mut Criterion) {
    let mut group = c.benchmark_group("bkv_write");
    let heartbeat = vector("heartbeat_up");
    let id = cut(&heartbeat).gateway_id;
    let push = vector("status_push_1017_charging_up");
    let Ok(Body::Push(packet)) = decode_body(&cut(&push)) else { panic!("not a push") };
    let mut out = Vec::with_capacity(256);
    group.bench_function("heartbeat_reply", |b| {
        b.iter(|| {
            out.clear();
            encode::heartbeat_reply(&mut out, black_box(id), black_box(1_596_098_745));
            out.len()
        });
    });
    group.bench_function("push_ack", |b| {
        b.iter(|| {
            out.clear();
            encode::push_ack(&mut out, black_box(id), black_box(packet.header), true);
            out.len()
        });
    });
    group.finish();
}

criterion_group!(benches, read, write);
criterion_main!(benches);
