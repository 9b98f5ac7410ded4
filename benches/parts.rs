//! What the parts of the gateway cost that are neither codec nor core nor store: transitions of an order, timers, mailboxes,
//! signatures.

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use chargegate::api::auth::{Attempt, Authenticator};
use chargegate::config::{ApiKey, Scope, Scopes};
use chargegate::gateway::Message;
use chargegate::gateway::order::{End, Event, Facts, Verdict, transition};
use chargegate::model::OrderStatus;
use chargegate::shard::{Mailbox, Wake};
use chargegate::signature::{SignedRequest, standard_webhooks};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use sha2::{Digest as _, Sha256};

// The heap of deadlines is private to the core. It stands on nothing else, so that its source can be a part of this program, and
// the library has no door that only a bench goes through.
#[path = "../src/gateway/timers.rs"]
#[allow(dead_code, unused_imports, reason = "the core uses all of it")]
mod timers;

use timers::{Timer, Timers};

const EVENTS: [Event; 18] = [
    Event::StartAcked,
    Event::StartAckedLate,
    Event::StartRefused { relay_may_be_on: true },
    Event::StartWithdrawn,
    Event::StartTimedOut,
    Event::Evidence,
    Event::Cancel,
    Event::Stop,
    Event::NoLoad,
    Event::Offline,
    Event::Returned,
    Event::ReturnTimedOut,
    Event::PortMismatch,
    Event::StopAcked,
    Event::StopRefused,
    Event::StopTimedOut,
    Event::Settled(End::Normal),
    Event::Settled(End::Fault),
];

fn facts(status: OrderStatus) -> Facts {
    let charged = status == OrderStatus::Charging;
    Facts { status, start_claimed: true, charged, stop_acked: false, settled: false, end_pending: false, lost: false }
}

fn orders(c: &mut Criterion) {
    let mut group = c.benchmark_group("order");
    let life = [Event::StartAcked, Event::Evidence, Event::Stop, Event::StopAcked, Event::Settled(End::ByServer)];
    group.throughput(Throughput::Elements(life.len() as u64));
    group.bench_function("life_of_five_events", |b| {
        b.iter(|| {
            let mut facts = facts(OrderStatus::Pending);
            for event in life {
                if let Verdict::Step(step) = transition(black_box(&facts), black_box(event)) {
                    facts.status = step.to;
                    facts.charged |= step.to == OrderStatus::Charging;
                    facts.stop_acked |= step.stop_acked;
                    facts.settled |= step.store_totals;
                }
            }
            assert!(facts.settled, "the charge has ended");
            facts
        });
    });
    group.throughput(Throughput::Elements(EVENTS.len() as u64));
    group.bench_function("every_event_while_charging", |b| {
        let facts = facts(OrderStatus::Charging);
        b.iter(|| EVENTS.map(|event| transition(black_box(&facts), black_box(event))));
    });
    group.finish();
}

/// A device's deadline is this far away when it is armed, and a heartbeat moves it back by as much.
const AWAY_MS: u64 = 180_000;

fn deadlines(c: &mut Criterion) {
    let mut group = c.benchmark_group("timers");
    for owners in [15_000_u32, 60_000] {
        let mut timers = Timers::default();
        let mut armed = Vec::new();
        for owner in 0..owners {
            let mut note = u64::MAX;
            // Spread over the time that deadlines are away, in no order.
            timers.arm(&mut note, 1 + u64::from(owner) * 7_919 % AWAY_MS, Timer::Device(owner));
            armed.push(note);
        }
        // What a heartbeat does: the deadline moves back.
        let mut owner = 0;
        group.bench_function(BenchmarkId::new("arm_later", owners), |b| {
            b.iter(|| {
                owner = (owner + 1) % armed.len();
                let note = &mut armed[owner];
                let later = *note + AWAY_MS;
                timers.arm(black_box(note), later, Timer::Flush);
            });
        });
        // What a deadline does that has come: it is taken, and its owner arms the next one.
        group.bench_function(BenchmarkId::new("pop_and_arm", owners), |b| {
            b.iter(|| {
                let at = timers.next().expect("one for each owner");
                let (at, timer) = timers.pop(at).expect("it has come");
                let mut note = u64::MAX;
                timers.arm(&mut note, at + AWAY_MS, black_box(timer));
                at
            });
        });
    }
    group.finish();
}

struct Nobody;

impl Wake for Nobody {
    fn wake(&self) {}
}

/// Messages that a shard takes in one turn at most.
const TURN: usize = 256;

fn mailboxes(c: &mut Criterion) {
    let mut group = c.benchmark_group("mailbox");
    group.throughput(Throughput::Elements(TURN as u64));
    let mailbox = Mailbox::new(16_384, Box::new(Nobody));
    group.bench_function("send_and_take_256", |b| {
        b.iter(|| {
            for _ in 0..TURN {
                assert!(mailbox.send(black_box(Message::Undrain)).is_ok(), "there is room");
            }
            std::iter::from_fn(|| mailbox.take()).count()
        });
    });
    // The sender runs ahead as far as the mailbox has room, so this is what both sides take together, caches between them
    // included.
    let ended = Arc::new(AtomicBool::new(false));
    let sender = {
        let (mailbox, ended) = (mailbox.clone(), Arc::clone(&ended));
        std::thread::spawn(move || {
            while !ended.load(Ordering::Relaxed) {
                if mailbox.send(Message::Undrain).is_err() {
                    std::thread::yield_now();
                }
            }
        })
    };
    group.bench_function("take_256_of_another_thread", |b| {
        b.iter(|| {
            let mut taken = 0;
            while taken < TURN {
                match mailbox.take() {
                    Some(_) => taken += 1,
                    None => std::thread::yield_now(),
                }
            }
            taken
        });
    });
    ended.store(true, Ordering::Relaxed);
    sender.join().expect("it only sends");
    group.finish();
}

const BODY: &[u8] =
    br#"{"port_no":1,"mode":"time","duration_minutes":60,"paid_cent":100,"third_order_no":"T20260101000001"}"#;
const SECRET: &str = "a secret of thirty-two characters";
const KEY: &str = "a key that a third party was given";

fn signatures(c: &mut Criterion) {
    let mut group = c.benchmark_group("signing");
    let request = SignedRequest {
        method: "POST",
        path: "/api/v1/third/devices/04ab37b0/charge",
        timestamp: "1767225600",
        nonce: "5f2b6c1e-0a7d-4c58-9d2e-3c7b8a1f6e90",
        body: BODY,
    };
    let signature = request.sign(SECRET);
    assert!(request.verify(SECRET, &signature), "its own");
    group.bench_function("verify_request", |b| b.iter(|| request.verify(black_box(SECRET), black_box(&signature))));
    group.bench_function("sign_request", |b| b.iter(|| request.sign(black_box(SECRET))));

    let event = BODY.repeat(5);
    group.bench_function("standard_webhooks_500_bytes", |b| {
        b.iter(|| standard_webhooks([black_box(SECRET)], "evt_0123456789", 1_767_225_600, black_box(&event)));
    });
    group.bench_function("standard_webhooks_two_secrets", |b| {
        b.iter(|| standard_webhooks([black_box(SECRET), KEY], "evt_0123456789", 1_767_225_600, black_box(&event)));
    });

    let key = ApiKey {
        name: "third".to_owned(),
        key_sha256: Sha256::digest(KEY).into(),
        scopes: Scopes::ALL,
        require_hmac: false,
        hmac_secret: None,
        ip_allow: Vec::new(),
        rate_per_s: 0,
        burst: 0,
    };
    let authenticator = Authenticator::new(vec![key], Duration::from_secs(300));
    let attempt = Attempt {
        method: "GET",
        target: "/api/v1/third/devices/04ab37b0/status",
        body: &[],
        body_sha256: None,
        client_ip: IpAddr::V4(Ipv4Addr::LOCALHOST),
        api_key: Some(KEY),
        timestamp: None,
        nonce: None,
        signature: None,
    };
    let check = || authenticator.check(black_box(&attempt), Scope::Read, 1_767_225_600_000).outcome.is_ok();
    assert!(check(), "its key");
    group.bench_function("check_key", |b| b.iter(check));
    group.finish();
}

criterion_group!(benches, orders, deadlines, mailboxes, signatures);
criterion_main!(benches);
