//! What goes into the latest values: a device that only beats is heard, and what it says of itself goes along when it is new.

use std::{
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
};

use chargegate::{
    gateway::{
        CloseReason, ConnId, ConnectionLimits, Core, CoreConfig, Effects, Listener, Message, Now, ShardId,
        directory::Directory,
    },
    shard::JOBS_MAX,
    store::{Bound, Job, Latest, Outcome},
    telemetry::Metrics,
};

/// Longer than the interval of flushes.
const FLUSH_MS: u64 = 4_000;
/// Of so many flushes one carries everything.
const WHOLE: usize = 32;

struct Gateway {
    core: Core,
    effects: Effects,
    now: Now,
}

impl Gateway {
    fn new() -> Self {
        let limits = Arc::new(ConnectionLimits::new(10, 10));
        let metrics = Metrics::new(1).claim_shard(0).unwrap();
        let core = Core::new(CoreConfig::new(ShardId(0)), Arc::new(Directory::default()), limits, metrics);
        Self { core, effects: Effects::default(), now: Now { mono_ms: 1, unix_ms: 1_767_225_600_000 } }
    }

    fn connect(&mut self) -> ConnId {
        self.core.accept(self.now, IpAddr::V4(Ipv4Addr::LOCALHOST), Listener::Devices).unwrap()
    }

    fn settle(&mut self) {
        while let Some(job) = self.effects.jobs.pop_front() {
            let outcome = match job {
                Job::Bind(bind) => Outcome::Bound(Box::new(Bound::new(&bind, 1))),
                _ => Outcome::Done,
            };
            self.core.message(self.now, Message::Outcome(outcome), &mut self.effects);
        }
        self.effects.tx.clear();
        self.effects.writes.clear();
    }

    /// A heartbeat, and what the flush behind it says of the device.
    fn beat(&mut self, conn: ConnId, frame: &[u8]) -> Latest {
        self.core.receive(self.now, conn, frame, &mut self.effects);
        self.settle();
        self.core.timeout(self.now, &mut self.effects);
        self.now.mono_ms += FLUSH_MS;
        self.now.unix_ms += FLUSH_MS.cast_signed();
        self.core.timeout(self.now, &mut self.effects);
        let of_devices = |row: &Latest| matches!(row, Latest::Seen { .. } | Latest::Device { .. });
        let mut rows: Vec<Latest> = self.effects.latest.drain(..).filter(of_devices).collect();
        assert_eq!(rows.len(), 1, "{rows:?}");
        rows.remove(0)
    }
}

/// A heartbeat of a BKV gateway with this signal and firmware.
fn heartbeat(signal: u8, firmware: &[u8; 7]) -> Vec<u8> {
    let text = std::fs::read_to_string(format!("{}/testdata/vectors/bkv.jsonl", env!("CARGO_MANIFEST_DIR"))).unwrap();
    let line = text.lines().find(|line| line.contains("\"heartbeat_up\"")).unwrap();
    let record: serde_json::Value = serde_json::from_str(line).unwrap();
    let hex = record["hex"].as_str().unwrap();
    let mut frame: Vec<u8> =
        (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect();
    // | … | iccid 20 | firmware 7, 0 | signal 1 | sum 1 | tail 2 |
    frame[38..45].copy_from_slice(firmware);
    frame[46] = signal;
    let sum_at = frame.len() - 3;
    frame[sum_at] = frame[2..sum_at].iter().fold(0, |sum: u8, byte| sum.wrapping_add(*byte));
    frame
}

/// Signal, firmware and number of the SIM, as far as they are told.
fn told(row: &Latest) -> (Option<u8>, Option<&str>, Option<&str>) {
    match row {
        Latest::Device { signal, firmware, iccid, .. } => (*signal, firmware.as_deref(), iccid.as_deref()),
        _ => (None, None, None),
    }
}

const ICCID: &str = "89860463112070319417";
const ALL: (Option<u8>, Option<&str>, Option<&str>) = (Some(31), Some("cV.1r46"), Some(ICCID));
const NOTHING: (Option<u8>, Option<&str>, Option<&str>) = (None, None, None);

#[test]
fn what_a_device_says_of_itself_is_told_when_it_is_new() {
    let mut gateway = Gateway::new();
    let conn = gateway.connect();
    let beat = heartbeat(31, b"cV.1r46");
    assert_eq!(told(&gateway.beat(conn, &beat)), ALL);
    let seen = gateway.beat(conn, &beat);
    let heard = gateway.now.unix_ms - FLUSH_MS.cast_signed();
    assert!(
        matches!(seen, Latest::Seen { last_seen_at, offline_at, .. } if last_seen_at == heard && offline_at > heard)
    );
    assert_eq!(told(&gateway.beat(conn, &heartbeat(30, b"cV.1r46"))), (Some(30), None, None));
    assert_eq!(told(&gateway.beat(conn, &heartbeat(30, b"cV.1r47"))), (None, Some("cV.1r47"), None));
    assert_eq!(told(&gateway.beat(conn, &heartbeat(30, b"cV.1r47"))), NOTHING);
}

#[test]
fn all_of_it_is_told_again_after_a_bind_and_now_and_then() {
    let mut gateway = Gateway::new();
    let conn = gateway.connect();
    let beat = heartbeat(31, b"cV.1r46");
    gateway.beat(conn, &beat);
    let whole = (0..3 * WHOLE).filter(|_| told(&gateway.beat(conn, &beat)) == ALL).count();
    assert_eq!(whole, 3);
    gateway.core.closed(gateway.now, conn, CloseReason::Peer, &mut gateway.effects);
    gateway.settle();
    let conn = gateway.connect();
    assert_eq!(told(&gateway.beat(conn, &beat)), ALL);
    assert_eq!(told(&gateway.beat(conn, &beat)), NOTHING);
}

#[test]
fn what_found_no_room_and_was_dropped_is_told_again() {
    let mut gateway = Gateway::new();
    let conn = gateway.connect();
    let beat = heartbeat(31, b"cV.1r46");
    let row = gateway.beat(conn, &beat);
    assert_eq!(told(&row), ALL);
    // More than is kept of what a store refuses: the oldest goes.
    let mut refused = vec![row];
    refused.extend((0..JOBS_MAX).map(|_| gateway_of_another_name()));
    gateway.core.latest_refused(&mut refused);
    gateway.core.receive(gateway.now, conn, &beat, &mut gateway.effects);
    gateway.settle();
    gateway.core.timeout(gateway.now, &mut gateway.effects);
    gateway.now.mono_ms += FLUSH_MS;
    gateway.core.timeout(gateway.now, &mut gateway.effects);
    assert_eq!(gateway.effects.latest.len(), JOBS_MAX + 1, "what was kept, and the new one");
    assert_eq!(gateway.effects.latest.last().map(told), Some(ALL));
}

/// A row of a device that is not here.
fn gateway_of_another_name() -> Latest {
    Latest::Seen { device_id: "82200520009999".parse().unwrap(), last_seen_at: 1, offline_at: 2 }
}
