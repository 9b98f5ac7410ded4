//! Several instances over one database, and one receiver: each event is delivered by one of them, and when that one leaves or dies
//! another goes on behind what it stored. Real PostgreSQL, real HTTP.

mod services;
mod store;

use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, TcpListener},
    sync::{Arc, OnceLock},
    thread,
    time::{Duration, Instant},
};

use chargegate::{
    gateway::ShardId,
    model::{Command, Order, ServerId},
    store::{
        Bind, DeliveryChange, EndpointJob, EndpointOutcome, Job, Notify, Outcome, Queued, Reply, Store,
        postgres::{self, PostgresStore},
    },
    webhook::{Endpoint, Pusher, Settings},
};
use parking_lot::Mutex;
use store::{PATIENCE, ap, postgres_database};

#[expect(clippy::disallowed_methods, reason = "the clock enters here")]
fn now() -> Instant {
    Instant::now()
}

fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = now() + PATIENCE;
    while !holds() {
        assert!(now() < deadline, "not in time: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// Takes every delivery and notes its key.
struct Receiver {
    port: u16,
    keys: Arc<Mutex<Vec<String>>>,
}

impl Receiver {
    fn start() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let port = listener.local_addr().expect("it is bound").port();
        let keys = Arc::new(Mutex::new(Vec::new()));
        let noted = Arc::clone(&keys);
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (Ok(mut stream), noted) = (stream, Arc::clone(&noted)) else { continue };
                thread::spawn(move || {
                    let mut held = Vec::new();
                    let mut buffer = [0; 4096];
                    while let Ok(read @ 1..) = stream.read(&mut buffer) {
                        held.extend_from_slice(&buffer[..read]);
                        let text = String::from_utf8_lossy(&held).into_owned();
                        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
                        let length = head.lines().find_map(|line| {
                            let (name, value) = line.split_once(':')?;
                            name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok())?
                        });
                        if body.len() < length.unwrap_or(0) {
                            continue;
                        }
                        let json: serde_json::Value = serde_json::from_str(body).expect("a JSON body");
                        noted.lock().push(json["device_phy_id"].as_str().unwrap_or_default().to_owned());
                        held.clear();
                        if stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").is_err() {
                            return;
                        }
                    }
                });
            }
        });
        Self { port, keys }
    }

    fn has(&self, devices: std::ops::Range<u32>) -> bool {
        let keys = self.keys.lock();
        devices.into_iter().all(|n| keys.contains(&ap(n).to_string()))
    }
}

#[derive(Default)]
struct Tells(OnceLock<Arc<Pusher>>);

impl Notify for Tells {
    fn shard(&self, _: ShardId, _: Outcome) {}
    fn order_changed(&self, _: &Order, _: &[Command], _: &[i64], _: Option<&ServerId>) {}
    fn commands_queued(&self, _: &Queued) {}
    fn events_committed(&self, pos: i64) {
        if let Some(pusher) = self.0.get() {
            pusher.events_committed(pos);
        }
    }
}

struct Instance {
    store: Arc<PostgresStore>,
    pusher: Arc<Pusher>,
}

impl Instance {
    fn start(url: &str, name: &str, port: u16) -> Self {
        let tells = Arc::new(Tells::default());
        let notify = Arc::clone(&tells) as Arc<dyn Notify>;
        let store = PostgresStore::open(postgres::Options::new(url, ServerId::new(name)), notify).expect("it opens");
        let store = Arc::new(store);
        let endpoint = Endpoint {
            name: "e".to_owned(),
            url: format!("http://127.0.0.1:{port}/"),
            secrets: vec!["secret".to_owned()],
            api_key: None,
            events: vec!["device.*".to_owned()],
        };
        let settings =
            Settings { allow_private_targets: true, instance: Some(ServerId::new(name)), ..Settings::default() };
        let pusher = Pusher::start(vec![endpoint], Arc::clone(&store) as Arc<dyn Store>, settings).expect("it starts");
        let pusher = Arc::new(pusher);
        assert!(tells.0.set(Arc::clone(&pusher)).is_ok());
        Self { store, pusher }
    }

    /// Registers devices, which is one event each.
    fn register(&self, devices: std::ops::Range<u32>) {
        let (told, answer) = std::sync::mpsc::channel();
        let count = devices.len();
        for n in devices {
            let bind = Bind {
                device_id: ap(n),
                protocol: chargegate::model::Protocol::Ap3000,
                printed_no: None,
                known_only: false,
                generation: 1,
                at: 1_800_000_000_000,
            };
            let told = told.clone();
            let reply = Reply::Call(Box::new(move |outcome| {
                told.send(matches!(outcome, Outcome::Bound(_))).unwrap_or_default();
            }));
            assert!(self.store.submit(Job::Bind(bind), reply).is_ok());
        }
        for _ in 0..count {
            assert_eq!(answer.recv_timeout(PATIENCE), Ok(true));
        }
    }
}

#[test]
fn one_instance_delivers_and_another_goes_on_behind_it() {
    let (url, receiver) = (postgres_database("lease"), Receiver::start());
    let a = Instance::start(&url, "a", receiver.port);
    let b = Instance::start(&url, "b", receiver.port);
    // The endpoint begins at the log's end; events that are told of are those behind it.
    let mut client = ::postgres::Client::connect(&url, ::postgres::NoTls).expect("it connects");
    eventually("somebody begins", || {
        client.query_one("SELECT count(*) FROM event_cursors", &[]).expect("it is asked").get::<_, i64>(0) == 1
    });
    a.register(1..100);
    b.register(100..200);
    eventually("all are delivered", || receiver.has(1..200));
    assert_eq!(receiver.keys.lock().len(), 199, "each by one instance");

    let owner = |client: &mut ::postgres::Client| -> String {
        client.query_one("SELECT owner FROM event_leases", &[]).expect("it is asked").get(0)
    };
    let (first, second) = if owner(&mut client) == "a" { (a, b) } else { (b, a) };
    first.pusher.stop(PATIENCE);
    second.register(200..300);
    eventually("the other goes on", || receiver.has(200..300));
    assert_eq!(receiver.keys.lock().len(), 299, "where the first one stored that it was");

    // A lease whose holder is gone ends by the database's clock.
    second.pusher.stop(PATIENCE);
    second.store.close(PATIENCE);
    client.execute("INSERT INTO event_leases VALUES ('e', 'dead', 1)", &[]).expect("it is taken");
    let third = Instance::start(&url, "c", receiver.port);
    third.register(300..310);
    eventually("a dead one's lease is taken over", || receiver.has(300..310));
    assert_eq!(receiver.keys.lock().len(), 309);

    // An operator may ask another instance than the one that delivers.
    let asked = Instance::start(&url, "d", receiver.port);
    let change =
        DeliveryChange::Redeliver { from_pos: 1, to_pos: 10, event_types: ["device.registered"].into(), rows_max: 100 };
    let (told, answer) = std::sync::mpsc::channel();
    let reply = Reply::Call(Box::new(move |outcome| drop(told.send(outcome))));
    let job = EndpointJob { endpoint: "e".to_owned(), change, at: 0 };
    assert!(asked.store.submit(Job::Endpoint(job), reply).is_ok());
    let done = answer.recv_timeout(PATIENCE).expect("it is answered");
    assert!(matches!(done, Outcome::Endpoint(EndpointOutcome { changed: 10, more_behind: None })), "{done:?}");
    asked.pusher.changed("e");
    eventually("who delivers finds it", || receiver.keys.lock().len() == 319);
    assert_eq!(owner(&mut client), "c");
}
