//! What an idle connection with its device takes of the heap: bytes, counted by the allocator of this test.
//!
//! Binds as many devices as one shard is made for, lets each beat and each flush go by, and counts what is still allocated: the
//! core's and the directory's share, with what doubling and rounding waste. Deterministic, and no other thread allocates here. The
//! engine adds one row of its table of sockets (`src/shard/mio.rs` asserts how large it is).
//!
//! `cargo test --test connection_memory -- --nocapture` shows the blocks by size.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::{Cell, RefCell},
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
};

use chargegate::{
    gateway::{
        ConnId, ConnectionLimits, Core, CoreConfig, Effects, Listener, Message, Now, ShardId, directory::Directory,
    },
    store::{Bound, Job, Outcome, PortRecord},
    telemetry::Metrics,
};

/// Connections of one shard.
const CONNECTIONS: u32 = 15_000;
/// Bytes that a connection may take, with its device and two ports.
const BYTES_MAX: usize = 680;
/// Sizes that are told apart; a larger block is counted with the last.
const SIZES_MAX: usize = 4096;
/// What the C library's allocator gives out: its header, rounded up.
const GRAIN: usize = 16;

struct Counting;

thread_local! {
    static LIVE_BYTES: Cell<usize> = const { Cell::new(0) };
    /// Blocks by size in grains.
    static BLOCKS: RefCell<[u32; SIZES_MAX]> = const { RefCell::new([0; SIZES_MAX]) };
}

/// Bytes that a block of this size takes.
fn taken(size: usize) -> usize {
    (size + size_of::<usize>()).next_multiple_of(GRAIN).max(2 * GRAIN)
}

fn count(size: usize, blocks: i32) {
    let taken = taken(size);
    LIVE_BYTES.with(|live| {
        live.set(if blocks > 0 { live.get().wrapping_add(taken) } else { live.get().wrapping_sub(taken) });
    });
    BLOCKS.with_borrow_mut(|by_size| {
        let count = &mut by_size[(taken / GRAIN).min(SIZES_MAX - 1)];
        *count = count.wrapping_add_signed(blocks);
    });
}

// SAFETY: every call is passed on to the system allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size(), 1);
        // SAFETY: the caller's contract is the system allocator's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        count(layout.size(), -1);
        // SAFETY: as above.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn vector(file: &str, name: &str) -> Vec<u8> {
    let text = std::fs::read_to_string(format!("{}/testdata/vectors/{file}", env!("CARGO_MANIFEST_DIR"))).unwrap();
    let records = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    let record = records.into_iter().find(|record| record["name"] == name).unwrap();
    let hex = record["hex"].as_str().unwrap();
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
}

/// Makes `frame` one of device number `index`.
fn address(frame: &mut [u8], index: u32) {
    if frame.starts_with(b"DNY") {
        frame[5..9].copy_from_slice(&(0x0400_0001 + index).to_le_bytes());
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
}

struct Gateway {
    core: Core,
    effects: Effects,
    now: Now,
    /// Ports a bind finds in the store.
    ports: Vec<PortRecord>,
}

impl Gateway {
    fn new() -> Self {
        let limits = Arc::new(ConnectionLimits::new(60_000, 60_000));
        let metrics = Metrics::new(1).claim_shard(0).unwrap();
        // The recorder's size is fixed, however many connections there are.
        let config = CoreConfig { recorder_bytes: 0, accept_burst: 60_000, ..CoreConfig::new(ShardId(0)) };
        let core = Core::new(config, Arc::new(Directory::default()), limits, metrics);
        let now = Now { mono_ms: 1, unix_ms: 1_767_225_600_000 };
        Self { core, effects: Effects::default(), now, ports: Vec::new() }
    }

    /// Carries out what came of an input, and answers binds.
    fn settle(&mut self) {
        while let Some(job) = self.effects.jobs.pop_front() {
            let outcome = match job {
                Job::Bind(bind) => {
                    let of = |port: &PortRecord| PortRecord { device_id: bind.device_id, ..port.clone() };
                    let ports = self.ports.iter().map(of).collect();
                    Outcome::Bound(Box::new(Bound { ports, ..Bound::new(&bind, 1) }))
                }
                _ => Outcome::Done,
            };
            self.core.message(self.now, Message::Outcome(outcome), &mut self.effects);
        }
        for (conn, range) in self.effects.writes.drain(..) {
            self.core.sent(self.now, conn, &self.effects.tx[range]);
        }
        self.effects.tx.clear();
        self.effects.log.clear();
        self.effects.latest.clear();
    }

    fn pass(&mut self, ms: u32) {
        self.now.mono_ms += u64::from(ms);
        self.now.unix_ms += i64::from(ms);
        self.core.timeout(self.now, &mut self.effects);
        self.settle();
    }
}

/// Bytes allocated for each of [`CONNECTIONS`] connections, each with a device that sends `frames` again and again.
fn bytes_per_connection(what: &str, frames: &[Vec<u8>]) -> usize {
    let mut gateway = Gateway::new();
    let mut frames = frames.to_vec();
    let mut conns: Vec<ConnId> = Vec::with_capacity(CONNECTIONS as usize);
    let before = LIVE_BYTES.get();
    let blocks_before = BLOCKS.with_borrow(|blocks| *blocks);
    for index in 0..CONNECTIONS {
        if index % 100 == 0 {
            gateway.pass(10);
        }
        let peer = IpAddr::V4(Ipv4Addr::from_bits(0x0A00_0000 + index));
        let conn = gateway.core.accept(gateway.now, peer, Listener::Devices).unwrap();
        conns.push(conn);
        for frame in &mut frames {
            address(frame, index);
            gateway.core.receive(gateway.now, conn, frame, &mut gateway.effects);
            gateway.settle();
        }
    }
    // A few more beats, over flushes and questions for the ports.
    for _ in 0..15 {
        gateway.pass(30_000);
        for (index, conn) in (0..).zip(&conns) {
            let last = frames.last_mut().unwrap();
            address(last, index);
            gateway.core.receive(gateway.now, *conn, last, &mut gateway.effects);
            gateway.settle();
        }
        gateway.pass(30_000);
    }
    assert_eq!(gateway.core.connections(), CONNECTIONS as usize, "{what}: all are open");
    // What one input leaves behind is no connection's.
    gateway.effects = Effects::default();
    let bytes = (LIVE_BYTES.get() - before) / CONNECTIONS as usize;
    println!("{what}: {bytes} bytes for each connection");
    // Printing allocates.
    let blocks = BLOCKS.with_borrow(|blocks| *blocks);
    for (grains, (now, before)) in blocks.iter().zip(&blocks_before).enumerate() {
        let count = now.wrapping_sub(*before).cast_signed();
        if count.unsigned_abs() >= CONNECTIONS / 256 {
            let each = f64::from(count) / f64::from(CONNECTIONS);
            println!("  {each:6.3} blocks of {} bytes: {:.0}", grains * GRAIN, each * (grains * GRAIN) as f64);
        }
    }
    bytes
}

#[test]
fn a_connection_of_an_idle_charger_with_two_ports_is_small() {
    let frames = [vector("ap3000.jsonl", "21_heartbeat_up_vendor")];
    let bytes = bytes_per_connection("AP3000", &frames);
    assert!(bytes <= BYTES_MAX, "{bytes}");
}

#[test]
fn a_connection_of_an_idle_gateway_with_two_holes_is_small() {
    let frames = [vector("bkv.jsonl", "heartbeat_up")];
    let bytes = bytes_per_connection("BKV", &frames);
    assert!(bytes <= BYTES_MAX, "{bytes}");
}
