//! Instances that share a store and Redis: what one that is gone had becomes nobody's, in the store and in the mirror; one that was only
//! taken for dead takes its devices back; and a new life of an instance begins without devices.

mod services;
mod store;

use std::{
    sync::{Arc, mpsc},
    thread,
    time::{Duration, Instant},
};

use chargegate::{
    cluster::{
        instances::{Context, Instances},
        link::{Link, LinkSettings},
        sessions::{RemoteDevice, Sessions},
    },
    gateway::{ShardId, directory::Directory},
    model::{DeviceId, Protocol, ServerId},
    queue::{Entry, Queue, RedisQueue},
    shard::Clock,
    store::{InstanceJob, InstanceOutcome, Job, Outcome},
    telemetry::Metrics,
};
use store::{Bench, PATIENCE, T0, ap};

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

/// The parts of an instance that others see.
struct Parts {
    own: ServerId,
    directory: Arc<Directory>,
    sessions: Arc<Sessions>,
    queue: Arc<RedisQueue>,
}

impl Parts {
    fn new(url: &str, name: &str) -> Self {
        let link = Link::open(LinkSettings::new(url)).expect("Redis answers");
        let own = ServerId::new(name);
        let directory = Arc::new(Directory::default().with_changes());
        let queue = Arc::new(RedisQueue::new(Arc::clone(&link), &own));
        let clock = Clock::since(now());
        let sessions =
            Sessions::start(link, Arc::clone(&directory), own.clone(), clock, Arc::new(|_, _| {})).expect("a thread");
        Self { own, directory, sessions, queue }
    }

    fn enlist(&self, bench: &Bench) -> Arc<Instances> {
        let context = Context {
            store: Arc::clone(&bench.store),
            directory: Arc::clone(&self.directory),
            sessions: Arc::clone(&self.sessions),
            queue: Arc::clone(&self.queue) as Arc<dyn Queue>,
            metrics: Metrics::new(1),
            own: self.own.clone(),
            clock: Clock::since(now()),
        };
        Instances::start(context).expect("it joins")
    }

    /// Binds a device, and waits until the mirror says so.
    fn bind(&self, bench: &Bench, device_id: DeviceId) {
        let epoch = bench.bind(device_id, T0).epoch;
        run(bench, InstanceJob::Adopt { server: self.own.clone(), devices: vec![(device_id, epoch)] });
        let entry = self.directory.bind(device_id, Protocol::Ap3000, ShardId(0), 1).expect("the newest").entry;
        entry.set_epoch(epoch);
        eventually("it is mirrored", || self.found(device_id).filter(RemoteDevice::connected));
    }

    fn found(&self, device_id: DeviceId) -> Option<RemoteDevice> {
        let (told, found) = mpsc::channel();
        self.sessions.lookup(device_id, move |found| told.send(found).unwrap_or_default());
        found.recv_timeout(PATIENCE).expect("a lookup is answered").ok().flatten()
    }
}

fn run(bench: &Bench, job: InstanceJob) -> InstanceOutcome {
    match bench.run(Job::Instance(job)) {
        Outcome::Instance(outcome) => outcome,
        other => panic!("{other:?}"),
    }
}

/// Devices with waiting commands that this instance has.
fn has(bench: &Bench, server: &ServerId) -> Vec<DeviceId> {
    let server = server.clone();
    bench.read(move |reader| reader.devices_with_queued_commands(Some(&server), 10))
}

fn names(bench: &Bench) -> Vec<String> {
    bench.read(|reader| reader.instances()).iter().map(|one| one.server.to_string()).collect()
}

#[test]
fn what_one_that_is_gone_had_becomes_nobodys() {
    let (url, bench) = (services::redis().database(), Bench::new());
    let (a, b) = (Parts::new(&url, "a"), Parts::new(&url, "b"));
    let first = a.enlist(&bench);
    a.bind(&bench, ap(1));
    bench.created(ap(1), 1, None, T0 + 1);
    assert_eq!(has(&bench, &a.own), [ap(1)]);
    b.queue.push(&a.own, vec![Entry { id: 7, device_id: None, priority: chargegate::model::Priority::Low, at_ns: 1 }]);
    // It leaves the store and nothing else, as one that is killed and found dead.
    first.stop();
    assert_eq!(names(&bench), ["a"], "it still has a device");

    let second = b.enlist(&bench);
    eventually("its devices are nobody's", || has(&bench, &a.own).is_empty().then_some(()));
    eventually("it is not an instance any more", || (names(&bench) == ["b"]).then_some(()));
    // So shortly after Redis was found empty nothing is concluded from what is in it; what a life before left is one's own.
    assert!(!b.sessions.is_settled());
    assert!(has(&bench, &b.own).is_empty());
    second.stop();
    assert!(names(&bench).is_empty());
}

#[test]
fn a_new_life_begins_without_the_devices_of_the_one_before() {
    let (url, bench) = (services::redis().database(), Bench::new());
    let before = Parts::new(&url, "a");
    before.enlist(&bench).stop();
    run(&bench, InstanceJob::Join { server: before.own.clone(), version: "1".to_owned() });
    before.bind(&bench, ap(1));
    bench.created(ap(1), 1, None, T0 + 1);

    let other = Parts::new(&url, "other");
    assert!(other.found(ap(1)).is_some_and(|found| found.connected()));
    // The same name, as after a kill: its memory is empty, what it wrote is still there.
    let again = Parts::new(&url, "a");
    let running = again.enlist(&bench);
    assert!(has(&bench, &again.own).is_empty());
    eventually("nobody takes it for connected", || other.found(ap(1)).filter(|found| !found.connected()));
    running.stop();
}

#[test]
fn one_that_was_taken_for_dead_takes_its_devices_back() {
    let (url, bench) = (services::redis().database(), Bench::new());
    let a = Parts::new(&url, "a");
    let running = a.enlist(&bench);
    a.bind(&bench, ap(1));
    bench.created(ap(1), 1, None, T0 + 1);
    let by = ServerId::new("other");
    let InstanceOutcome::Released(released) = run(&bench, InstanceJob::Reap { by, dead_after_ms: -1 }) else {
        panic!("it is reaped")
    };
    assert_eq!(released[0].devices, [ap(1)]);
    eventually("it is there again", || (names(&bench) == ["a"]).then_some(()));
    eventually("with its device", || (has(&bench, &a.own) == [ap(1)]).then_some(()));
    running.stop();
}
