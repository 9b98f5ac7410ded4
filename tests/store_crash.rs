//! What was acknowledged survives `kill -9`, once: a child process submits jobs and prints every acknowledged outcome; it is
//! killed at seeded moments, the database is opened again, and the next child goes on in it.
//!
//! After each kill: every acknowledged order, settlement and transition is there; each order's events are gapless and single;
//! nothing that was not submitted is there; sequence of epochs and message ids goes on.

mod services;
mod store;

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Command, Stdio},
    sync::{Arc, mpsc},
};

use chargegate::{
    gateway::order::Event,
    model::{EventType, OrderNo, OrderNumbers, OrderStatus},
    store::{Bind, Created, DeviceEvent, DeviceReport, Job, NewOrder, OrderFilter, Outcome, Reply, Requester, Store},
};
use store::{Bench, T0, Told, ap, ap_settlement, open_sqlite, order_job};

const DIR: &str = "STORE_CRASH_DIR";
const ROUND: &str = "STORE_CRASH_ROUND";
const ROUNDS: u32 = 8;
const DEVICES: u32 = 40;
const SEED: u64 = 0x5EED_0001;

/// splitmix64.
fn random(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// Prints one line as a whole; a line without its end was not acknowledged.
fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    out.write_all(format!("{line}\n").as_bytes()).and_then(|()| out.flush()).expect("the parent listens");
}

/// The child: charges on all devices at once, for ever. Not a test of its own: it runs only when the parent starts it.
#[test]
fn child() {
    let (Ok(dir), Ok(round)) = (std::env::var(DIR), std::env::var(ROUND)) else { return };
    let round: u32 = round.parse().unwrap();
    let told = Arc::new(Told::default());
    let store = open_sqlite(Path::new(&dir), &told).unwrap();
    let numbers = OrderNumbers::new(*b"THD", u64::from(round) + 1);
    std::thread::scope(|scope| {
        for device in 1..=DEVICES {
            let (store, numbers) = (&*store, &numbers);
            scope.spawn(move || charge_for_ever(store, numbers, device, round));
        }
    });
}

fn ask(store: &dyn Store, job: Job) -> Outcome {
    let (reply, answer) = mpsc::channel();
    let call = Box::new(move |outcome| drop(reply.send(outcome)));
    store.submit(job, Reply::Call(call)).expect("the queue has room");
    answer.recv().expect("the store answers")
}

fn charge_for_ever(store: &dyn Store, numbers: &OrderNumbers, device: u32, round: u32) {
    let device_id = ap(device);
    // Later rounds lie later, so that orders left over by a kill are timed out by their own settlement below.
    let mut at = T0 + i64::from(round) * 3_600_000;
    let bind = Bind {
        device_id,
        protocol: chargegate::model::Protocol::Ap3000,
        printed_no: None,
        known_only: false,
        generation: 1,
        at,
    };
    let Outcome::Bound(bound) = ask(store, Job::Bind(bind)) else { panic!() };
    say(&format!("bound {device} {} {}", bound.epoch, bound.msg_id_first));
    let mut left: Vec<OrderNo> = bound.orders.iter().map(|order| order.order_no).collect();
    for ticket in 0.. {
        at += 1;
        for order_no in left.drain(..) {
            settle(store, order_no, device, at);
        }
        let new = NewOrder {
            order_no: numbers.next(at),
            device_id,
            port_no: 1,
            spec: store::minutes(60),
            epoch: Some(bound.epoch),
            at,
            deadline: T0 + 5000,
            request_id: String::new(),
            requester: Requester::default(),
            card_no: None,
            idempotency: None,
        };
        let order_no = new.order_no;
        say(&format!("submit {order_no}"));
        match ask(store, Job::CreateOrder(Box::new(new))) {
            Outcome::Created(created) if matches!(*created, Created::Order { .. }) => {
                say(&format!("created {order_no}"));
            }
            other => panic!("{other:?}"),
        }
        for event in [Event::StartAcked, Event::Evidence] {
            let Outcome::Order(outcome) = ask(store, Job::Order(Box::new(order_job(order_no, event, at)))) else {
                panic!()
            };
            say(&format!("status {order_no} {}", outcome.order.unwrap().status.code()));
        }
        settle(store, order_no, device, at);
        // A resend, as after a lost acknowledgement.
        settle(store, order_no, device, at);
        let data = serde_json::json!({ "ticket": format!("{round}/{device}/{ticket}") }).into();
        let event =
            DeviceEvent { device_id, event_type: EventType::DeviceAlarm, data, order_no: None, fence: None, at };
        ask(store, Job::Report(Box::new(DeviceReport { ticket, event })));
        say(&format!("reported {round}/{device}/{ticket}"));
    }
}

fn settle(store: &dyn Store, order_no: OrderNo, device: u32, at: i64) {
    let settlement = ap_settlement(ap(device), 1, *order_no.as_bytes(), 1, at);
    match ask(store, Job::Settle(Box::new(settlement))) {
        Outcome::Settled(settled) if !settled.quarantined => say(&format!("settled {order_no}")),
        other => panic!("{other:?}"),
    }
}

#[derive(Default)]
struct Acknowledged {
    submitted: BTreeSet<String>,
    created: BTreeSet<String>,
    settled: BTreeSet<String>,
    /// Highest status before the end.
    status: BTreeMap<String, u8>,
    reported: BTreeSet<String>,
    epochs: BTreeMap<String, (i64, u32)>,
}

impl Acknowledged {
    fn hear(&mut self, line: &str) {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            ["bound", device, epoch, msg_id] => {
                let now = (epoch.parse().unwrap(), msg_id.parse().unwrap());
                let before = self.epochs.insert(device.to_owned(), now);
                assert!(before.is_none_or(|before| before.0 < now.0 && before.1 + 32 <= now.1), "{before:?} {now:?}");
            }
            ["submit", no] => drop(self.submitted.insert(no.to_owned())),
            ["created", no] => drop(self.created.insert(no.to_owned())),
            ["settled", no] => drop(self.settled.insert(no.to_owned())),
            ["status", no, status] => drop(self.status.insert(no.to_owned(), status.parse().unwrap())),
            ["reported", ticket] => drop(self.reported.insert(ticket.to_owned())),
            // What the test harness prints itself.
            _ => {}
        }
    }
}

/// Runs a child, kills it after a number of lines, and hears what it said until its pipe ends.
fn run_and_kill(dir: &Path, round: u32, lines: u64, heard: &mut Acknowledged) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child", "--nocapture", "--test-threads", "1"])
        .env(DIR, dir)
        .env(ROUND, round.to_string())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let mut line = Vec::new();
    let mut count = 0;
    loop {
        line.clear();
        let read = out.read_until(b'\n', &mut line).unwrap();
        if read == 0 || line.last() != Some(&b'\n') {
            break;
        }
        heard.hear(&String::from_utf8_lossy(&line));
        count += 1;
        if count == lines {
            child.kill().unwrap();
        }
    }
    let status = child.wait().unwrap();
    assert!(!status.success() && count >= lines, "the child ended by itself after {count} lines: {status}");
}

fn check(bench: &Bench, heard: &Acknowledged) {
    let mut page = 1;
    let mut stored = BTreeMap::new();
    loop {
        let orders = bench.read(move |reader| reader.orders(&OrderFilter::default(), page, 500));
        if orders.rows.is_empty() {
            break;
        }
        page += 1;
        stored.extend(orders.rows.into_iter().map(|order| (order.order_no.to_string(), order)));
    }
    let log = bench.log();
    let mut events: BTreeMap<&str, Vec<(u32, &str)>> = BTreeMap::new();
    for event in &log {
        events.entry(&event.key).or_default().push((event.sequence_no, &event.event_type));
    }
    for (key, events) in &events {
        let numbers: Vec<u32> = events.iter().map(|(number, _)| *number).collect();
        assert_eq!(numbers, (1..=events.len() as u32).collect::<Vec<_>>(), "events of {key}: {events:?}");
    }
    for no in &heard.created {
        assert!(stored.contains_key(no), "acknowledged order {no} is missing");
    }
    for no in &heard.settled {
        assert!(stored.get(no).is_some_and(|order| order.settled_at.is_some()), "settlement of {no} is missing");
    }
    for (no, status) in &heard.status {
        let order = &stored[no];
        assert!(order.status.code() >= *status, "{no} was {status}, is {:?}", order.status);
    }
    for (no, order) in &stored {
        assert!(heard.submitted.contains(no), "{no} was never submitted");
        let told: Vec<&str> = events[no.as_str()].iter().map(|(_, event_type)| *event_type).collect();
        let once = |event_type| told.iter().filter(|told| **told == event_type).count();
        assert_eq!(once("order.created"), 1);
        assert_eq!(once("order.settled"), usize::from(order.settled_at.is_some()), "{no}: {told:?}");
        assert_eq!(once("charging.started"), usize::from(told.contains(&"charging.started")));
        assert_eq!(order.sequence_no as usize, told.len());
        assert_eq!(order.settled_at.is_some(), order.status == OrderStatus::Completed);
    }
    let mut tickets = BTreeMap::new();
    for event in log.iter().filter(|event| event.event_type == "device.alarm") {
        let data: serde_json::Value = serde_json::from_str(&event.data).unwrap();
        *tickets.entry(data["ticket"].as_str().unwrap().to_owned()).or_insert(0) += 1;
    }
    assert!(tickets.values().all(|count| *count == 1));
    for ticket in &heard.reported {
        assert!(tickets.contains_key(ticket), "report {ticket} is missing");
    }
}

#[test]
fn acknowledged_outcomes_survive_kill_9_once() {
    let mut dir = tempfile::tempdir().unwrap();
    let mut heard = Acknowledged::default();
    let mut seed = SEED;
    eprintln!("seed {SEED:#x}");
    for round in 0..ROUNDS {
        // From within the first binds to well into the charges.
        let lines = 1 + random(&mut seed) % 3000;
        run_and_kill(dir.path(), round, lines, &mut heard);
        let bench = Bench::in_dir(dir);
        check(&bench, &heard);
        dir = bench.into_dir();
    }
    eprintln!("{} orders, {} settlements acknowledged", heard.created.len(), heard.settled.len());
    assert!(heard.settled.len() > 100, "the rounds reached settlements");
}
