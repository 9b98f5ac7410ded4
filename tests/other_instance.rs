//! What is asked of one instance for a device of another reaches that one: commands by its queue, everything else by notes; and what
//! is lost on the way is found by its poll. Real Redis; one store for both, whose rows say who has which device.

mod services;
mod store;

use std::{
    sync::{
        Arc, Barrier,
        atomic::{AtomicU32, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use chargegate::{
    cluster::{
        Note, Notes,
        inbox::{Context, Inbox},
        link::{Link, LinkSettings},
    },
    gateway::{Message, ShardId, directory::Directory, order::Event},
    model::{DeviceId, OrderStatus, Priority, Protocol, ServerId},
    queue::{Entry, Queue, RedisQueue},
    router::{Peers, Router},
    shard::{Mailbox, Wake},
    store::{
        Job, Notify, Outcome, Reader, Settings, StoreError,
        sqlite::{Options, SqliteStore},
    },
    telemetry::Metrics,
};
use store::{Bench, PATIENCE, T0, ap, clock};

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

struct NoWake;

impl Wake for NoWake {
    fn wake(&self) {}
}

/// One instance, but for its shard, whose mailbox the test empties.
struct Instance {
    own: ServerId,
    directory: Arc<Directory>,
    router: Arc<Router>,
    mailbox: Mailbox,
    queue: Arc<RedisQueue>,
    notes: Arc<Notes>,
}

impl Instance {
    fn new(url: &str, name: &str) -> Self {
        let link = Link::open(LinkSettings::new(url)).expect("Redis answers");
        let own = ServerId::new(name);
        let directory = Arc::new(Directory::default());
        let mailbox = Mailbox::new(64, Box::new(NoWake));
        let router = Arc::new(Router::new(Arc::clone(&directory), Metrics::new(1), vec![mailbox.clone()]));
        let queue = Arc::new(RedisQueue::new(Arc::clone(&link), &own));
        let notes = Arc::new(Notes::start(link, own.clone()).expect("threads"));
        let peers = Peers { own: own.clone(), queue: Arc::clone(&queue) as Arc<dyn Queue>, notes: Arc::clone(&notes) };
        router.join_peers(peers);
        Self { own, directory, router, mailbox, queue, notes }
    }

    fn next(&self, what: &str) -> Message {
        eventually(what, || self.mailbox.take())
    }
}

struct Two {
    a: Instance,
    b: Instance,
    inbox: Arc<Inbox>,
    bench: Bench,
}

impl Two {
    /// The store tells `a`; `b` listens.
    fn start(url: &str) -> Self {
        // Channels are the same in all of a server's databases: what another test's instances say must not be heard here.
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let (a, b) = (Instance::new(url, &format!("a{number}")), Instance::new(url, &format!("b{number}")));
        let mut bench = Bench::new();
        bench.store.close(PATIENCE);
        let options = Options { clock, ..Options::new(bench.dir.path().join("chargegate.db")) };
        let store = SqliteStore::open(options, Arc::clone(&a.router) as Arc<dyn Notify>).expect("it opens");
        bench.store = Arc::new(store);
        let context = Context {
            store: Arc::clone(&bench.store),
            router: Arc::clone(&b.router),
            own: b.own.clone(),
            unsequenced: Arc::new(|| {}),
        };
        let inbox = Inbox::start(context, Arc::clone(&b.queue) as Arc<dyn Queue>).expect("a thread");
        let hearing = Arc::clone(&inbox);
        let (told, listens) = mpsc::channel();
        let hear = move |note| {
            let first = note == Note::Reconnected;
            hearing.heard(note);
            if first {
                told.send(()).unwrap_or_default();
            }
        };
        b.notes.listen(hear).expect("a thread");
        listens.recv_timeout(PATIENCE).expect("it listens");
        let two = Self { a, b, inbox, bench };
        two.finish_polls();
        two
    }

    /// Waits until what was asked of the readers has been answered: both are held at once, so neither is still at something else.
    fn finish_polls(&self) {
        let (told, met) = mpsc::channel();
        let both = Arc::new(Barrier::new(2));
        for _ in 0..2 {
            let (told, both) = (told.clone(), Arc::clone(&both));
            let call = Box::new(move |_: Result<&mut dyn Reader, StoreError>| {
                both.wait();
                told.send(()).unwrap_or_default();
            });
            assert!(self.bench.store.read(call).is_ok(), "there is room");
        }
        for _ in 0..2 {
            met.recv_timeout(PATIENCE).expect("both answer");
        }
    }

    /// Binds the device at `b`.
    fn bind(&self, device_id: DeviceId) -> i64 {
        let epoch = self.bench.bind(device_id, T0).epoch;
        self.gives(device_id, self.b.own.as_str());
        let entry = self.b.directory.bind(device_id, Protocol::Ap3000, ShardId(0), 1).expect("the newest").entry;
        entry.set_epoch(epoch);
        epoch
    }

    fn gives(&self, device_id: DeviceId, owner: &str) {
        let conn = rusqlite::Connection::open(self.bench.dir.path().join("chargegate.db")).expect("it opens");
        conn.busy_timeout(PATIENCE).expect("it waits");
        let sql = "UPDATE devices SET owner = ?2 WHERE device_id = ?1";
        assert_eq!(conn.execute(sql, (device_id.to_string(), owner)).expect("it is set"), 1);
    }
}

#[test]
fn a_command_reaches_the_instance_that_has_its_device() {
    let two = Two::start(&services::redis().database());
    let epoch = two.bind(ap(1));
    let (order, command) = two.bench.created(ap(1), 1, None, T0 + 1);
    assert!(command.is_none(), "it is claimed by who has the device");
    assert!(matches!(two.b.next("a wake-up"), Message::CommandsQueued(id) if id == ap(1)));
    let Outcome::Claimed { commands, orders, .. } = two.bench.run(Job::Claim { device_id: ap(1), epoch, at: T0 + 2 })
    else {
        panic!("it is claimed")
    };
    assert_eq!((commands.len(), orders.len()), (1, 1));
    assert_eq!(orders[0].order_no, order.order_no, "the shard hears of the order with the claim of its start");

    let stopped = two.bench.happens(order.order_no, Event::Stop, None, T0 + 3);
    assert_eq!(stopped.order.map(|order| order.status), Some(OrderStatus::Cancelling));
    assert!(matches!(two.b.next("the stop"), Message::CommandsQueued(id) if id == ap(1)));
    // The embedded store knows of no other instance.
    two.a.router.order_changed(&two.bench.order(order.order_no), &[], &[7], Some(&two.b.own));
    match two.b.next("the order") {
        Message::OrderChanged { order: changed, withdrawn, .. } => {
            assert_eq!((changed.order_no, changed.status), (order.order_no, OrderStatus::Cancelling));
            assert_eq!(withdrawn, [7]);
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_command_that_came_to_the_wrong_instance_is_passed_on_or_left_for_the_bind() {
    let two = Two::start(&services::redis().database());
    two.bind(ap(1));
    two.bind(ap(2));
    two.bench.created(ap(1), 1, None, T0 + 1);
    two.bench.created(ap(2), 1, None, T0 + 1);
    for _ in 0..2 {
        assert!(matches!(two.b.next("a wake-up"), Message::CommandsQueued(_)));
    }
    two.gives(ap(1), two.a.own.as_str());
    // Nobody listens there: its entry waits for the bind like the row.
    two.gives(ap(2), "nobody");
    let ids = |device| two.bench.read(move |reader| reader.commands(device, None, 1, 10)).rows[0].id;
    let entry = |device| Entry { id: ids(device), device_id: None, priority: Priority::Normal, at_ns: T0 * 1_000_000 };
    two.a.queue.push(&two.b.own, vec![entry(ap(1)), entry(ap(2))]);
    let popped = eventually("it comes back", || {
        two.a.queue.pop(10, Duration::from_millis(100)).ok().filter(|ids| !ids.is_empty())
    });
    assert_eq!(popped, [ids(ap(1))]);
    two.finish_polls();
    assert!(two.b.mailbox.is_empty());
}

#[test]
fn an_entry_that_names_its_device_wakes_the_shard_without_a_look_at_the_row() {
    let two = Two::start(&services::redis().database());
    two.bind(ap(1));
    // The row is not there: only the claim would look for it.
    let entry = Entry { id: i64::MAX, device_id: Some(ap(1)), priority: Priority::Normal, at_ns: T0 * 1_000_000 };
    two.a.queue.push(&two.b.own, vec![entry]);
    assert!(matches!(two.b.next("a wake-up"), Message::CommandsQueued(device_id) if device_id == ap(1)));
}

#[test]
fn what_changes_in_a_device_is_told_to_who_has_it() {
    let two = Two::start(&services::redis().database());
    two.bind(ap(1));
    let settings = Settings {
        device_id: ap(1),
        protocol: None,
        extensions: Some(true),
        name: Some("roof".to_owned()),
        fsk_frequency: None,
        at: T0,
        request_id: "r".to_owned(),
        idempotency: None,
    };
    let Outcome::Settings(outcome) = two.bench.run(Job::Settings(Box::new(settings))) else { panic!("they are set") };
    two.a.router.settings_changed(&outcome, Some(&two.b.own));
    match two.b.next("settings") {
        Message::SettingsChanged(told) => {
            assert_eq!((told.device_id, told.details.name.as_deref()), (ap(1), Some("roof")));
        }
        other => panic!("{other:?}"),
    }
    two.a.router.superseded(ap(1), 9, &two.b.own);
    let told = two.b.next("it lost the device");
    assert!(matches!(told, Message::BoundElsewhere { device_id, epoch: 9 } if device_id == ap(1)), "{told:?}");
}

#[test]
fn what_was_lost_on_the_way_is_found_by_the_poll() {
    let two = Two::start(&services::redis().database());
    two.bind(ap(1));
    two.bench.created(ap(1), 1, None, T0 + 1);
    two.b.next("a wake-up");
    two.inbox.poll();
    assert!(matches!(two.b.next("the poll's"), Message::CommandsQueued(id) if id == ap(1)));
    two.gives(ap(1), two.a.own.as_str());
    let own = two.b.own.clone();
    let polled = two.bench.read(move |reader| reader.devices_with_queued_commands(Some(&own), 10));
    assert!(polled.is_empty(), "others poll for theirs");
    two.inbox.poll();
    two.finish_polls();
    assert!(two.b.mailbox.is_empty(), "others poll for theirs");
}
