//! What one instance holds of its devices is what another one finds of them: written soon, never over a newer binding, written again
//! by its owner when Redis lost it, removed when its owner leaves. Against a real Redis; instances are the mirror's own parts with a
//! directory each, whose entries the tests set as shards do.

mod services;

use std::{
    sync::{Arc, mpsc},
    thread,
    time::{Duration, Instant},
};

use chargegate::{
    cluster::{
        LinkError,
        link::{Link, LinkSettings},
        sessions::{RemoteDevice, Sessions},
    },
    gateway::{
        ShardId,
        directory::{Directory, Entry, PortCell, PortState},
    },
    model::{DeviceId, OrderNo, PortStatus, Protocol, ServerId},
    shard::Clock,
};
use services::{Persistence, Redis};

/// Only turns a hang into a failure.
const PATIENCE: Duration = Duration::from_secs(60);

#[expect(clippy::disallowed_methods, reason = "the clock enters here")]
fn now() -> Instant {
    Instant::now()
}

fn eventually<T>(what: &str, mut found: impl FnMut() -> Option<T>) -> T {
    let deadline = now() + PATIENCE;
    loop {
        if let Some(found) = found() {
            return found;
        }
        assert!(now() < deadline, "not in time: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

struct Instance {
    sessions: Arc<Sessions>,
    directory: Arc<Directory>,
    server: ServerId,
    link: Arc<Link>,
    /// Devices that others bound, and under which epoch.
    newer: mpsc::Receiver<(DeviceId, i64)>,
}

impl Instance {
    fn start(url: &str, name: &str) -> Self {
        let link = Link::open(LinkSettings {
            command_timeout: Duration::from_millis(300),
            ping_interval: Duration::from_millis(50),
            ..LinkSettings::new(url)
        })
        .expect("Redis answers");
        let directory = Arc::new(Directory::default().with_changes());
        let (told, newer) = mpsc::channel();
        let server = ServerId::new(name);
        let sessions = Sessions::start(
            Arc::clone(&link),
            Arc::clone(&directory),
            server.clone(),
            Clock::since(now()),
            Arc::new(move |device_id, epoch| told.send((device_id, epoch)).unwrap_or_default()),
        )
        .expect("a thread");
        Self { sessions, directory, server, link, newer }
    }

    fn bind(&self, device_id: DeviceId, epoch: i64) -> Arc<Entry> {
        let entry = self.directory.bind(device_id, Protocol::Bkv, ShardId(0), 1).expect("the newest").entry;
        entry.set_timeout(130_000);
        entry.seen(1_000_000);
        entry.set_epoch(epoch);
        entry
    }

    fn lookup(&self, device_id: DeviceId) -> Result<Option<RemoteDevice>, LinkError> {
        let (told, found) = mpsc::channel();
        self.sessions.lookup(device_id, move |found| told.send(found).unwrap_or_default());
        found.recv_timeout(PATIENCE).expect("a lookup is answered")
    }

    /// Waits until the mirror says of the device what is wanted.
    fn finds(&self, device_id: DeviceId, what: &str, wanted: impl Fn(&RemoteDevice) -> bool) -> RemoteDevice {
        eventually(what, || self.lookup(device_id).ok().flatten().filter(&wanted))
    }
}

fn device(n: u64) -> DeviceId {
    format!("{n:014}").parse().expect("14 digits")
}

fn ports(status: PortStatus, order_no: Option<OrderNo>) -> Vec<PortCell> {
    vec![PortCell::new(&PortState { status, order_no, updated_at: 5, ..PortState::unknown(1, Some(0), Some(0)) })]
}

#[test]
fn others_find_what_the_owner_knows_and_what_becomes_of_it() {
    let url = services::redis().database();
    let (a, b) = (Instance::start(&url, "a"), Instance::start(&url, "b"));
    assert_eq!(b.lookup(device(1)), Ok(None));
    let order_no = OrderNo::new(*b"THD", 9);
    let entry = a.bind(device(1), 3);
    entry.set_ports(ports(PortStatus::Charging, Some(order_no)));
    let found = b.finds(device(1), "bound", |found| found.connected() && found.ports().count() == 1);
    assert_eq!((found.server(), found.epoch(), found.protocol()), (&a.server, 3, Protocol::Bkv));
    assert_eq!(found.ports().next(), entry.port(1));
    assert_eq!(found.clocks().score(1_000_001, 300_000), entry.score(1_000_001));

    entry.ports()[0].store(&PortState { status: PortStatus::Fault, ..entry.port(1).unwrap() });
    entry.ports()[0].set_order(None);
    entry.mark();
    let port = |found: &RemoteDevice| found.ports().next().map(|port| (port.status, port.order_no));
    b.finds(device(1), "a fault", |found| port(found) == Some((PortStatus::Fault, None)));

    entry.set_disconnected(1_000_500);
    let found = b.finds(device(1), "unbound", |found| !found.connected());
    assert_eq!((found.clocks().last_tcp_down, found.epoch()), (1_000_500, 3), "the key stays");

    let ids: Vec<DeviceId> = (1..=3).map(device).collect();
    a.bind(device(3), 1);
    b.finds(device(3), "the third", RemoteDevice::connected);
    let (told, found) = mpsc::channel();
    b.sessions.lookup_many(ids, move |found| told.send(found).unwrap_or_default());
    let found = found.recv_timeout(PATIENCE).unwrap().unwrap();
    assert_eq!(found.iter().map(RemoteDevice::device_id).collect::<Vec<_>>(), [device(1), device(3)]);
}

#[test]
fn a_session_is_never_written_over_a_newer_one_and_its_writer_is_told() {
    let url = services::redis().database();
    let (a, b) = (Instance::start(&url, "a"), Instance::start(&url, "b"));
    let old = a.bind(device(1), 3);
    b.finds(device(1), "bound at a", |found| found.server() == &a.server);
    b.bind(device(1), 4);
    a.finds(device(1), "bound at b", |found| found.server() == &b.server);
    old.set_disconnected(1_000_700);
    assert_eq!(a.newer.recv_timeout(PATIENCE), Ok((device(1), 4)));
    let found = a.lookup(device(1)).unwrap().unwrap();
    assert!(found.connected() && found.server() == &b.server, "{found:?}");
    assert!(b.newer.try_recv().is_err());

    // Who leaves takes nothing of others with him.
    a.bind(device(2), 1);
    b.finds(device(2), "bound at a", RemoteDevice::connected);
    a.sessions.stop();
    assert_eq!(b.lookup(device(2)), Ok(None));
    assert!(b.lookup(device(1)).unwrap().is_some_and(|found| found.connected()));
}

#[test]
fn what_a_dead_instance_left_has_no_connection() {
    let url = services::redis().database();
    let (a, b) = (Instance::start(&url, "a"), Instance::start(&url, "b"));
    a.bind(device(1), 3);
    b.finds(device(1), "bound at a", RemoteDevice::connected);
    b.bind(device(2), 3);
    a.finds(device(2), "bound at b", RemoteDevice::connected);
    // As after a kill: nothing is removed, and nobody writes any more.
    a.link.close();
    b.sessions.drop_connections(&a.server, &[device(1), device(2)], 1_234);
    let found = b.finds(device(1), "dropped", |found| !found.connected());
    assert_eq!((found.clocks().last_tcp_down, found.epoch()), (1_234, 3));
    assert!(b.lookup(device(2)).unwrap().is_some_and(|found| found.connected()), "it is b's");
}

#[test]
fn an_emptied_redis_is_filled_again_by_the_owners() {
    let mut redis = Redis::start(Persistence::None);
    let (a, b) = (Instance::start(&redis.url(), "a"), Instance::start(&redis.url(), "b"));
    a.bind(device(1), 3);
    a.bind(device(2), 3).set_disconnected(77);
    b.finds(device(1), "bound at a", RemoteDevice::connected);
    b.finds(device(2), "unbound at a", |found| !found.connected());
    redis.flush();
    b.finds(device(1), "written again", RemoteDevice::connected);
    b.finds(device(2), "written again", |found| found.clocks().last_tcp_down == 77);
    assert!(!b.sessions.is_settled(), "what is missing may only be late");
    redis.restart_empty();
    b.finds(device(1), "written to the new one", RemoteDevice::connected);
}

#[test]
fn without_an_answer_a_lookup_fails() {
    let redis = Redis::start(Persistence::None);
    let a = Instance::start(&redis.url(), "a");
    a.bind(device(1), 3);
    a.finds(device(1), "bound", RemoteDevice::connected);
    redis.pause();
    let failed = a.lookup(device(1));
    redis.resume();
    assert!(failed.is_err(), "{failed:?}");
    a.finds(device(1), "there again", RemoteDevice::connected);
}
