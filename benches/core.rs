//! Cost of a heartbeat in the core: bytes in, reply out, carried out by a driver that only counts.
//!
//! With one connection everything stays in the processor's caches; with 15,000, as many as one shard is made for, each heartbeat
//! comes for a connection that was last touched 15,000 heartbeats ago. Without and with the flight recorder.
//!
//! And of the coalescer: what devices have told since the last flush, however often, becomes one latest value each.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use chargegate::gateway::directory::Directory;
use chargegate::gateway::{ConnId, ConnectionLimits, Core, CoreConfig, Effects, Listener, Message, Now, ShardId};
use chargegate::model::{DeviceId, Protocol};
use chargegate::store::{Bound, Job, Outcome};
use chargegate::telemetry::Metrics;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

const CONNECTIONS: [u32; 2] = [1, 15_000];
/// `store.flush_interval`, ms.
const FLUSH_MS: u64 = 3_000;

#[expect(clippy::disallowed_methods, reason = "the clock enters here")]
fn now() -> Instant {
    Instant::now()
}

fn vector(file: &str, name: &str) -> Vec<u8> {
    let text = std::fs::read_to_string(format!("{}/testdata/vectors/{file}", env!("CARGO_MANIFEST_DIR"))).unwrap();
    let line = text.lines().find(|line| line.contains(&format!("\"{name}\""))).unwrap();
    let record: serde_json::Value = serde_json::from_str(line).unwrap();
    let hex = record["hex"].as_str().unwrap();
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
}

/// The vector as device number `index` sends it.
fn of_device(vector: &[u8], index: u32) -> Vec<u8> {
    let mut frame = vector.to_vec();
    if frame.starts_with(b"DNY") {
        frame[5..9].copy_from_slice(&(0x0400_0000 | index).to_le_bytes());
        let sum_at = frame.len() - 2;
        let sum: u16 = frame[..sum_at].iter().copied().map(u16::from).sum();
        frame[sum_at..].copy_from_slice(&sum.to_le_bytes());
    } else {
        let digits = format!("{:014}", 82_231_214_000_000 + u64::from(index));
        for (at, byte) in frame[11..18].iter_mut().enumerate() {
            *byte = u8::from_str_radix(&digits[2 * at..2 * at + 2], 16).unwrap();
        }
        let sum_at = frame.len() - 3;
        frame[sum_at] = frame[2..sum_at].iter().fold(0, |sum: u8, byte| sum.wrapping_add(*byte));
    }
    frame
}

struct Gateway {
    core: Core,
    effects: Effects,
    conns: Vec<(ConnId, Vec<u8>)>,
    next: usize,
    now: Now,
}

impl Gateway {
    fn new(config: CoreConfig, vector: &[u8], connections: u32) -> Self {
        let limits = Arc::new(ConnectionLimits::new(60_000, 60_000));
        let metrics = Metrics::new(1).claim_shard(0).unwrap();
        let config = CoreConfig { accept_burst: 60_000, ..config };
        let mut core = Core::new(config, Arc::new(Directory::default()), limits, metrics);
        let now = Now { mono_ms: 1, unix_ms: 1_767_225_600_000 };
        let mut gateway = {
            let accept = |index| {
                let conn = core.accept(now, IpAddr::V4(Ipv4Addr::LOCALHOST), Listener::Devices).unwrap();
                (conn, of_device(vector, index))
            };
            let conns = (0..connections).map(accept).collect();
            Self { core, effects: Effects::default(), conns, next: 0, now }
        };
        for _ in 0..3 * connections {
            gateway.heartbeat();
            gateway.settle();
        }
        gateway
    }

    /// One heartbeat of the next device, and what the gateway writes for it.
    fn heartbeat(&mut self) -> usize {
        let Self { core, effects, conns, next, now } = self;
        let (conn, frame) = &conns[*next];
        *next = (*next + 1) % conns.len();
        core.receive(*now, *conn, frame, effects);
        let written = effects.tx.len();
        for (conn, range) in effects.writes.drain(..) {
            core.sent(*now, conn, &effects.tx[range]);
        }
        effects.tx.clear();
        written
    }

    /// Ends the turn, which arms the flush, and lets its interval pass.
    fn wait_for_flush(&mut self) {
        self.core.timeout(self.now, &mut self.effects);
        self.now.mono_ms += FLUSH_MS;
        self.now.unix_ms += FLUSH_MS.cast_signed();
    }

    /// The flush that is due; how many latest values there are.
    fn flush(&mut self) -> usize {
        self.core.timeout(self.now, &mut self.effects);
        self.effects.latest.drain(..).count()
    }

    /// Answers binds and forgets everything else that is not bytes.
    fn settle(&mut self) {
        while let Some(job) = self.effects.jobs.pop_front() {
            if let Job::Bind(bind) = job {
                let protocol = match bind.device_id {
                    DeviceId::Ap3000(_) => Protocol::Ap3000,
                    DeviceId::Gateway(_) => Protocol::Bkv,
                };
                let bound = Bound {
                    device_id: bind.device_id,
                    generation: bind.generation,
                    admitted: true,
                    first_seen: false,
                    epoch: 1,
                    protocol,
                    networked: false,
                    has_ota: false,
                    heartbeat_interval_s: None,
                    msg_id_first: 1,
                    ports: Vec::new(),
                    orders: Vec::new(),
                    commands: Vec::new(),
                    details: Box::default(),
                    network: None,
                    superseded: None,
                };
                self.core.message(self.now, Message::Outcome(Outcome::Bound(Box::new(bound))), &mut self.effects);
            } else {
                self.core.message(self.now, Message::Outcome(Outcome::Done), &mut self.effects);
            }
        }
        self.effects.log.clear();
        self.effects.tx.clear();
        self.effects.writes.clear();
    }
}

fn heartbeats(c: &mut Criterion) {
    let mut group = c.benchmark_group("core_heartbeat");
    for (label, file, name) in
        [("ap3000", "ap3000.jsonl", "21_heartbeat_up_vendor"), ("bkv", "bkv.jsonl", "heartbeat_up")]
    {
        for connections in CONNECTIONS {
            let vector = vector(file, name);
            for (recorder, recorder_bytes) in [("off", 0), ("on", 4 << 20)] {
                let config = CoreConfig { recorder_bytes, ..CoreConfig::new(ShardId(0)) };
                let mut gateway = Gateway::new(config, &vector, connections);
                assert!(gateway.heartbeat() > 0, "answered");
                let name = format!("{label}/{connections}/recorder_{recorder}");
                group.bench_function(name, |b| b.iter(|| gateway.heartbeat()));
            }
        }
    }
    group.finish();
}

fn flushes(c: &mut Criterion) {
    const DEVICES: u32 = 15_000;
    let mut group = c.benchmark_group("core_flush");
    group.throughput(Throughput::Elements(u64::from(DEVICES)));
    // What leads up to a flush takes ten times as long and is not measured.
    group.sample_size(10).measurement_time(Duration::from_millis(300));
    for (label, file, name) in
        [("ap3000", "ap3000.jsonl", "21_heartbeat_up_vendor"), ("bkv", "bkv.jsonl", "heartbeat_up")]
    {
        let mut gateway = Gateway::new(CoreConfig::new(ShardId(0)), &vector(file, name), DEVICES);
        group.bench_function(format!("{label}/{DEVICES}"), |b| {
            b.iter_custom(|rounds| {
                let mut spent = Duration::ZERO;
                for _ in 0..rounds {
                    for _ in 0..2 * DEVICES {
                        gateway.heartbeat();
                    }
                    gateway.settle();
                    gateway.wait_for_flush();
                    let began = now();
                    let values = gateway.flush();
                    spent += began.elapsed();
                    assert!(values >= DEVICES as usize, "one of each device");
                }
                spent
            });
        });
    }
    group.finish();
}

criterion_group!(benches, heartbeats, flushes);
criterion_main!(benches);
