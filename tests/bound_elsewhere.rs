//! A shard that hears that another process bound its device lets go of it: a BKV/GN connection is closed, an AP3000 socket loses the
//! id and does not take it back at once, nothing is told of the device, and it is gone from the directory. A bind of its own that
//! is newer, or under way, is not given up.

use std::{
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
};

use chargegate::{
    gateway::{
        ConnId, ConnectionLimits, Core, CoreConfig, Effects, Listener, Message, Now, ShardId, directory::Directory,
    },
    model::DeviceId,
    protocol::{
        ap3000::{
            self, PhyId,
            body::Heartbeat,
            encode::Header,
            wire::{Extra, U8s},
        },
        bkv,
    },
    store::{Bound, Job, Outcome},
    telemetry::Metrics,
};

struct Rig {
    core: Core,
    directory: Arc<Directory>,
    effects: Effects,
    now: Now,
    epoch: i64,
    /// Devices a bind was submitted for.
    binds: Vec<DeviceId>,
    /// Events submitted.
    events: Vec<String>,
}

impl Rig {
    fn new() -> Self {
        let directory = Arc::new(Directory::default());
        let limits = Arc::new(ConnectionLimits::new(10, 10));
        let metrics = Metrics::new(1).claim_shard(0).unwrap();
        let core = Core::new(CoreConfig::new(ShardId(0)), Arc::clone(&directory), limits, metrics);
        let now = Now { mono_ms: 1, unix_ms: 1_767_225_600_000 };
        let (effects, binds, events) = (Effects::default(), Vec::new(), Vec::new());
        Self { core, directory, effects, now, epoch: 5, binds, events }
    }

    fn connect(&mut self) -> ConnId {
        self.core.accept(self.now, IpAddr::V4(Ipv4Addr::LOCALHOST), Listener::Devices).unwrap()
    }

    /// Delivers bytes and answers the jobs that follow; `answer_binds` false: the store is silent. Returns the bytes written.
    fn deliver(&mut self, conn: ConnId, bytes: &[u8], answer_binds: bool) -> usize {
        self.pass(1_000);
        self.core.receive(self.now, conn, bytes, &mut self.effects);
        self.answer(answer_binds);
        let written = self.effects.tx.len();
        self.effects.tx.clear();
        self.effects.writes.clear();
        written
    }

    fn pass(&mut self, ms: u64) {
        self.now.mono_ms += ms;
        self.now.unix_ms += i64::try_from(ms).unwrap();
    }

    fn answer(&mut self, answer_binds: bool) {
        while let Some(job) = self.effects.jobs.pop_front() {
            match job {
                Job::Bind(bind) => {
                    self.binds.push(bind.device_id);
                    if answer_binds {
                        let bound = Bound::new(&bind, self.epoch);
                        self.tell(Message::Outcome(Outcome::Bound(Box::new(bound))));
                    }
                }
                Job::Device(event) => self.events.push(event.event_type.as_str().to_owned()),
                _ => {}
            }
        }
    }

    fn tell(&mut self, message: Message) {
        self.core.message(self.now, message, &mut self.effects);
    }
}

fn beat(gateway_id: &str) -> (DeviceId, Vec<u8>) {
    let mut out = Vec::new();
    let gateway_id: bkv::GatewayId = gateway_id.parse().unwrap();
    bkv::device::heartbeat(&mut out, gateway_id, "89860463112070319417", "1.0.0", 20);
    (DeviceId::Gateway(gateway_id), out)
}

fn ap3000_beat(phy_id: &str) -> (DeviceId, Vec<u8>) {
    let mut out = Vec::new();
    let phy_id: PhyId = phy_id.parse().unwrap();
    let heartbeat = Heartbeat {
        voltage: 2200,
        port_count: 1,
        port_states: U8s::new(&[0]),
        signal: Some(20),
        ambient_temp: Some(90),
        extra: Extra::NONE,
    };
    ap3000::encode::heartbeat(&mut out, &Header { magic: *b"DNY", phy_id, msg_id: 1 }, &heartbeat);
    (DeviceId::Ap3000(phy_id), out)
}

#[test]
fn a_bkv_connection_is_closed_and_nothing_is_told() {
    for fenced in [false, true] {
        let mut rig = Rig::new();
        let conn = rig.connect();
        let (device_id, frame) = beat("86100000000001");
        assert!(rig.deliver(conn, &frame, true) > 0);
        assert_eq!(rig.directory.online(), 1);
        let says = |epoch| match fenced {
            false => Message::BoundElsewhere { device_id, epoch },
            true => Message::Outcome(Outcome::Fenced { device_id, epoch }),
        };
        rig.tell(says(5));
        assert!(rig.effects.closes.is_empty() && rig.directory.find(device_id).is_some(), "its own epoch");
        rig.events.clear();
        rig.tell(says(6));
        rig.answer(true);
        assert_eq!(rig.effects.closes, [conn]);
        assert!(rig.directory.find(device_id).is_none());
        assert_eq!(rig.directory.online(), 0);
        assert!(rig.events.is_empty(), "{:?}", rig.events);
    }
}

#[test]
fn an_ap3000_socket_loses_the_id_for_a_while_and_keeps_the_others() {
    let mut rig = Rig::new();
    let conn = rig.connect();
    let ((lost, lost_frame), (kept, kept_frame)) = (ap3000_beat("40aace04"), ap3000_beat("41aace04"));
    rig.deliver(conn, &lost_frame, true);
    rig.deliver(conn, &kept_frame, true);
    rig.binds.clear();
    rig.tell(Message::BoundElsewhere { device_id: lost, epoch: 6 });
    assert!(rig.effects.closes.is_empty());
    rig.deliver(conn, &lost_frame, true);
    rig.deliver(conn, &kept_frame, true);
    assert!(rig.binds.is_empty() && rig.directory.find(lost).is_none() && rig.directory.find(kept).is_some());
    // The other socket may be gone by now.
    rig.pass(60_000);
    rig.epoch = 7;
    rig.deliver(conn, &lost_frame, true);
    assert_eq!(rig.binds, [lost]);
    assert_eq!(rig.directory.find(lost).and_then(|entry| entry.live_epoch()), Some(7));
}

#[test]
fn a_bind_under_way_is_not_given_up() {
    let mut rig = Rig::new();
    let (old, new) = (rig.connect(), rig.connect());
    let (device_id, frame) = beat("86100000000001");
    rig.deliver(old, &frame, true);
    rig.deliver(new, &frame, false);
    assert_eq!(std::mem::take(&mut rig.effects.closes), [old], "replaced");
    rig.tell(Message::BoundElsewhere { device_id, epoch: 6 });
    assert!(rig.effects.closes.is_empty());
    assert!(rig.directory.find(device_id).is_some_and(|entry| entry.connected()));
}
