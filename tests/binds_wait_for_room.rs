//! A fleet that comes back at once: binds wait for room among the shard's jobs, and go in as others are answered, not a second later.

use std::{
    collections::HashSet,
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
};

use chargegate::{
    gateway::{
        CloseReason, ConnId, ConnectionLimits, Core, CoreConfig, Effects, Listener, Message, Now, ShardId,
        directory::Directory,
    },
    model::DeviceId,
    shard::JOBS_MAX,
    store::{Bind, Bound, Job, Outcome, StoreError},
    telemetry::Metrics,
};

const DEVICES: usize = 3 * JOBS_MAX;

struct Fleet {
    core: Core,
    effects: Effects,
    now: Now,
    conns: Vec<ConnId>,
}

impl Fleet {
    fn new() -> Self {
        let limits = Arc::new(ConnectionLimits::new(DEVICES, DEVICES));
        let metrics = Metrics::new(1).claim_shard(0).unwrap();
        let mut config = CoreConfig::new(ShardId(0));
        (config.accept_rate_per_s, config.accept_burst) = (1_000_000, 1_000_000);
        let core = Core::new(config, Arc::new(Directory::default()), limits, metrics);
        let now = Now { mono_ms: 1, unix_ms: 1_767_225_600_000 };
        Self { core, effects: Effects::default(), now, conns: Vec::new() }
    }

    /// A device connects and beats.
    fn connect(&mut self, nth: usize) {
        let conn = self.core.accept(self.now, IpAddr::V4(Ipv4Addr::LOCALHOST), Listener::Devices).unwrap();
        self.conns.push(conn);
        self.core.receive(self.now, conn, &heartbeat(nth), &mut self.effects);
        assert!(!self.effects.tx.is_empty(), "a heartbeat is answered whether its device is bound or not");
        self.effects.tx.clear();
        self.effects.writes.clear();
    }

    fn binds(&mut self) -> Vec<Bind> {
        let jobs = self.effects.jobs.drain(..);
        jobs.filter_map(|job| if let Job::Bind(bind) = job { Some(bind) } else { None }).collect()
    }

    fn answer(&mut self, outcome: Outcome) {
        self.core.message(self.now, Message::Outcome(outcome), &mut self.effects);
    }
}

/// An AP3000 heartbeat of two ports.
fn heartbeat(nth: usize) -> Vec<u8> {
    let mut frame = b"DNY\x10\x00".to_vec();
    frame.extend([(nth & 0xFF) as u8, (nth >> 8) as u8, 1, 4]);
    frame.extend([1, 0, 0x21, 0x98, 0x08, 2, 0, 0, 9, 5]);
    let sum: u16 = frame.iter().map(|byte| u16::from(*byte)).sum();
    frame.extend(sum.to_le_bytes());
    frame
}

#[test]
fn a_storm_of_binds_goes_in_as_room_is_made() {
    let mut fleet = Fleet::new();
    (0..DEVICES).for_each(|nth| fleet.connect(nth));
    let mut open = fleet.binds();
    assert!(open.len() <= JOBS_MAX / 4 * 3, "{} leave no room for what other devices report", open.len());
    let mut bound = 0;
    // No time passes: what waits needs no timer.
    while let Some(bind) = open.pop() {
        fleet.answer(Outcome::Bound(Box::new(Bound::new(&bind, 1))));
        bound += 1;
        let told = std::mem::take(&mut fleet.effects.jobs);
        for job in told {
            match job {
                Job::Bind(bind) => open.push(bind),
                // The device is online.
                Job::Device(_) => fleet.answer(Outcome::Done),
                other => panic!("{other:?}"),
            }
        }
        let binds = fleet.binds();
        open.extend(binds);
    }
    assert_eq!(bound, DEVICES);
    assert_eq!(fleet.core.jobs_under_way(), 0);
}

#[test]
fn a_device_that_went_while_its_bind_waited_is_not_bound() {
    let mut fleet = Fleet::new();
    (0..DEVICES).for_each(|nth| fleet.connect(nth));
    let open = fleet.binds();
    let asked: HashSet<DeviceId> = open.iter().map(|bind| bind.device_id).collect();
    // All who wait go, and one comes back.
    for conn in fleet.conns.split_off(open.len()) {
        fleet.core.closed(fleet.now, conn, CloseReason::Peer, &mut fleet.effects);
    }
    fleet.connect(DEVICES - 1);
    let mut after = Vec::new();
    for bind in open {
        fleet.answer(Outcome::Bound(Box::new(Bound::new(&bind, 1))));
        for job in std::mem::take(&mut fleet.effects.jobs) {
            match job {
                Job::Bind(bind) => after.push(bind.device_id),
                Job::Device(_) => fleet.answer(Outcome::Done),
                other => panic!("{other:?}"),
            }
        }
        after.extend(fleet.binds().iter().map(|bind| bind.device_id));
    }
    let [back] = after[..] else { panic!("{} were bound", after.len()) };
    assert!(!asked.contains(&back));
}

/// A store that answers nothing but failures is asked again, each device once at a time.
#[test]
fn binds_that_failed_are_tried_again_later() {
    let mut fleet = Fleet::new();
    (0..DEVICES).for_each(|nth| fleet.connect(nth));
    let mut failed = 0;
    while let Some(Job::Bind(bind)) = fleet.effects.jobs.pop_front() {
        let error = StoreError::Unavailable("it is away".to_owned());
        fleet.answer(Outcome::Failed { device_id: Some(bind.device_id), key: None, ticket: None, error });
        failed += 1;
    }
    assert_eq!(failed, DEVICES, "each was tried once");
    fleet.now.mono_ms += 1_000;
    fleet.now.unix_ms += 1_000;
    fleet.core.timeout(fleet.now, &mut fleet.effects);
    assert!(!fleet.binds().is_empty(), "a second later they are tried again");
}
