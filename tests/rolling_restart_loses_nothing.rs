//! A rolling upgrade: three gateways are stopped and started again, one after another, under load; nobody loses anything by it.
//!
//! Sixty devices charge, each connection at the next gateway, as behind a load balancer; third parties charge with idempotency keys,
//! stop, cancel, command and read the log, each request at the next gateway, and ask again where no answer came; a receiver takes the
//! webhooks. When all has come to rest:
//! - every order and command that was answered is stored, once; every record of a device is stored, once, with its totals;
//! - no device was told twice to start an order; each key took effect once and is answered the same again;
//! - positions of the log and sequences of orders are gapless, and every event of the log was delivered, those of one order in their
//!   order; a second delivery of an event is the first one again.

mod cluster;
mod gateway;
mod services;
mod storm;
mod witness;

use std::{
    collections::BTreeMap,
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread,
};

use chargegate_loadtest::engine::Clock;
use cluster::{Cluster, Options};
use gateway::{receiver::Receiver, until};
use serde_json::Value;
use storm::{
    Client, MS, Party, SetOnDrop, Told, answers_are_kept, device, drive, pause,
    verdict::{check, what_is_open},
};
use witness::{Draws, Shared, books::Books};

const GATEWAYS: usize = 3;
const DEVICES: u32 = 60;
const PARTIES: u64 = 3;
/// Between two restarts, so that the load comes back to all gateways.
const BETWEEN_MS: u64 = 1_500;
/// Everything has come to rest after this time, or never will.
const REST_US: u64 = 120_000 * MS;

#[test]
fn rolling_restart_loses_nothing() {
    let clock = Clock::start();
    let receiver = Receiver::start();
    let endpoints = receiver.endpoints();
    let variables = [
        ("CHARGEGATE_WEBHOOK_ALLOW_PRIVATE_TARGETS", "true"),
        ("CHARGEGATE_WEBHOOK_ENDPOINTS", endpoints.as_str()),
        ("CHARGEGATE_LOG_LEVEL", "warn"),
    ];
    let mut cluster = Cluster::start(GATEWAYS, &Options { variables: &variables, ..Options::default() });
    let devices_at: Vec<_> = cluster.gateways.iter().map(|gateway| gateway.devices).collect();
    let client = Client::new(&cluster.gateways.iter().map(|gateway| gateway.http).collect::<Vec<_>>());
    let devices: Vec<_> = (0..DEVICES).map(|index| device(index, true)).collect();
    let ids: Vec<_> = devices.iter().map(|(id, ..)| id.clone()).collect();
    let seen: BTreeMap<String, Shared> = devices.iter().map(|(id, _, seen)| (id.clone(), seen.clone())).collect();
    let (no_devices, no_parties, told) = (AtomicBool::new(false), AtomicBool::new(false), Mutex::<Told>::default());
    thread::scope(|scope| {
        for (number, (_, mut device, _)) in devices.into_iter().enumerate() {
            let (devices_at, no_devices) = (&devices_at, &no_devices);
            scope.spawn(move || drive(device.as_mut(), clock, devices_at, number, &|| no_devices.load(Relaxed)));
        }
        let _ends = (SetOnDrop(&no_devices), SetOnDrop(&no_parties));
        until("the devices are online", || seen.values().all(|seen| seen.lock().registered).then_some(()));
        for number in 0..PARTIES {
            let (client, draws) = (client.clone(), Draws::new(number));
            let party = Party { number, client, draws, devices: &ids, told: &told, stop: &no_parties };
            scope.spawn(move || party.run());
        }
        for number in 0..GATEWAYS {
            pause(BETWEEN_MS);
            let before = told.lock().unwrap().orders.len();
            assert!(cluster.gateways[number].sigterm().success(), "a stop that is not clean");
            cluster.gateways[number].start_again();
            cluster.is_ready(number);
            println!("gateway {number} is back, with {before} orders");
            until("orders go on", || (told.lock().unwrap().orders.len() > before).then_some(()));
        }
        pause(BETWEEN_MS);
        no_parties.store(true, Relaxed);
        println!("no more orders");
        let books = Books::postgres(&cluster.url);
        let rested_by = clock.now_us() + REST_US;
        while let Some(open) = what_is_open(&books, seen.values()) {
            assert!(clock.now_us() < rested_by, "{open}");
            pause(100);
        }
        println!("everything has come to rest");
        answers_are_kept(&client, &told.lock().unwrap());
        everything_is_delivered(&books, &receiver);
    });
    for gateway in &mut cluster.gateways {
        assert!(gateway.sigterm().success(), "a stop that is not clean");
    }
    check(&Books::postgres(&cluster.url), &seen, &told.lock().unwrap());
}

/// Every event of the log, those of one order in their order; more than once only as it was.
fn everything_is_delivered(books: &Books<'_>, receiver: &Receiver) {
    let log = books.events();
    let subscribed = |event_type: &str| !matches!(event_type, "device.heartbeat" | "charging.progress");
    let wanted: Vec<_> = log.iter().filter(|event| subscribed(&event.event_type)).collect();
    until("everything is delivered", || (receiver.count() >= wanted.len()).then_some(()));
    let delivered = until("each event is delivered", || {
        let mut first: BTreeMap<String, (usize, Value)> = BTreeMap::new();
        for (at, mut event) in receiver.events().into_iter().enumerate() {
            let id = event["event_id"].as_str().expect("an id").to_owned();
            event.as_object_mut().expect("an object").remove("nonce");
            let (_, before) = first.entry(id).or_insert_with(|| (at, event.clone()));
            assert_eq!(*before, event, "delivered again, and changed");
        }
        wanted.iter().all(|event| first.contains_key(&event.event_id)).then_some(first)
    });
    println!("{} events, delivered {} times", wanted.len(), receiver.count());
    let mut last: BTreeMap<&str, usize> = BTreeMap::new();
    for event in wanted {
        let (at, body) = &delivered[&event.event_id];
        assert_eq!((body["pos"].as_i64(), body["event_type"].as_str()), (Some(event.pos), Some(&*event.event_type)));
        let before = last.insert(&event.key, *at);
        assert!(before.is_none_or(|before| before < *at), "{body} came before what was before it");
    }
}
