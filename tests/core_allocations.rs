//! A heartbeat of a bound device costs no allocation: not in the codec, not in the session, not in the reply.
//!
//! Counts the calls of the allocator on this thread around the core's own entry points, once everything that grows has grown.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
};

use chargegate::{
    gateway::{
        ConnId, ConnectionLimits, Core, CoreConfig, Effects, Listener, Message, Now, ShardId,
        directory::Directory,
        inquiry::{Answer, Inquiry, Question, RECALLED_MAX, Reply},
    },
    model::Protocol,
    store::{Bound, Job, Outcome},
    telemetry::Metrics,
};

struct Counting;

thread_local! {
    static CALLS: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: every call is passed on to the system allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        CALLS.with(|calls| calls.set(calls.get() + 1));
        // SAFETY: the caller's contract is the system allocator's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

struct Gateway {
    core: Core,
    effects: Effects,
    conn: ConnId,
    now: Now,
}

impl Gateway {
    fn new() -> Self {
        Self::with(CoreConfig::new(ShardId(0)))
    }

    fn with(config: CoreConfig) -> Self {
        let limits = Arc::new(ConnectionLimits::new(10, 10));
        let metrics = Metrics::new(1).claim_shard(0).unwrap();
        let mut core = Core::new(config, Arc::new(Directory::default()), limits, metrics);
        let now = Now { mono_ms: 1, unix_ms: 1_767_225_600_000 };
        let conn = core.accept(now, IpAddr::V4(Ipv4Addr::LOCALHOST), Listener::Devices).unwrap();
        Self { core, effects: Effects::default(), conn, now }
    }

    /// Delivers bytes, answers binds, and drops the rest of the effects. Returns the bytes written.
    fn deliver(&mut self, bytes: &[u8]) -> usize {
        self.now.mono_ms += 1_000;
        self.now.unix_ms += 1_000;
        self.core.receive(self.now, self.conn, bytes, &mut self.effects);
        while let Some(job) = self.effects.jobs.pop_front() {
            if let Job::Bind(bind) = job {
                let bound = Bound {
                    device_id: bind.device_id,
                    generation: bind.generation,
                    admitted: true,
                    first_seen: false,
                    epoch: 1,
                    protocol: Protocol::Bkv,
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
                let message = Message::Outcome(Outcome::Bound(Box::new(bound)));
                self.core.message(self.now, message, &mut self.effects);
            }
        }
        let written = self.effects.tx.len();
        for (conn, range) in self.effects.writes.drain(..) {
            self.core.sent(self.now, conn, &self.effects.tx[range]);
        }
        self.effects.tx.clear();
        self.effects.log.clear();
        written
    }

    fn allocations_of(&mut self, bytes: &[u8]) -> usize {
        for _ in 0..3 {
            assert!(self.deliver(bytes) > 0, "answered");
        }
        let before = CALLS.with(Cell::get);
        for _ in 0..100 {
            self.deliver(bytes);
        }
        CALLS.with(Cell::get) - before
    }
}

fn vector(file: &str, name: &str) -> Vec<u8> {
    let text = std::fs::read_to_string(format!("{}/testdata/vectors/{file}", env!("CARGO_MANIFEST_DIR"))).unwrap();
    let records = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    let record = records.into_iter().find(|record| record["name"] == name).unwrap();
    let hex = record["hex"].as_str().unwrap();
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
}

#[test]
fn an_ap3000_heartbeat_allocates_nothing() {
    let heartbeat = vector("ap3000.jsonl", "21_heartbeat_up_vendor");
    assert_eq!(Gateway::new().allocations_of(&heartbeat), 0);
}

#[test]
fn a_bkv_heartbeat_allocates_nothing() {
    let heartbeat = vector("bkv.jsonl", "heartbeat_up");
    assert_eq!(Gateway::new().allocations_of(&heartbeat), 0);
}

/// Both ways, and around the end of the ring: a recorder of 64 KiB is full after a few hundred heartbeats.
#[test]
fn recording_allocates_nothing() {
    for (file, name) in [("ap3000.jsonl", "21_heartbeat_up_vendor"), ("bkv.jsonl", "heartbeat_up")] {
        let heartbeat = vector(file, name);
        let mut gateway = Gateway::with(CoreConfig { recorder_bytes: 64 * 1024, ..CoreConfig::new(ShardId(0)) });
        let total: usize = (0..20).map(|_| gateway.allocations_of(&heartbeat)).sum();
        assert_eq!(total, 0, "{name}");
        let (told, answer) = std::sync::mpsc::channel();
        let reply = Reply::new(move |answer| told.send(answer).unwrap());
        let question = Question::RecallConnection(gateway.conn);
        let inquiry = Message::Inquiry(Box::new(Inquiry { question, reply }));
        gateway.core.message(gateway.now, inquiry, &mut gateway.effects);
        for (reply, answer) in gateway.effects.answers.drain(..) {
            reply.send(answer);
        }
        let Ok(Answer::Recalled(recalled)) = answer.recv() else { panic!("{name}") };
        assert_eq!(recalled.frames.len(), RECALLED_MAX, "{name}");
        let ups = recalled.frames.iter().filter(|frame| frame.raw[..] == heartbeat[..]).count();
        assert_eq!(ups, RECALLED_MAX / 2, "{name}: each with its reply");
    }
}

#[test]
fn heartbeats_that_arrive_together_are_answered_in_one_write() {
    let heartbeat = vector("bkv.jsonl", "heartbeat_up");
    let mut gateway = Gateway::new();
    let one = gateway.deliver(&heartbeat);
    gateway.deliver(&heartbeat);
    gateway.core.receive(gateway.now, gateway.conn, &heartbeat.repeat(3), &mut gateway.effects);
    assert_eq!(gateway.effects.writes.len(), 1);
    assert_eq!(gateway.effects.tx.len(), 3 * 28);
    assert!(one >= 28, "the first is followed by a question for the holes");
}
