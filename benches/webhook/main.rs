//! From a commit to the receivers: ten webhook endpoints, one of which hangs, and a stream of events through a real store.
//!
//! ```text
//! pacer ──jobs──▶ store ──commit──▶ pusher ──HTTP on loopback──▶ nine receivers that answer, one that does not
//! ```
//!
//! ```sh
//! TMPDIR=/var/tmp cargo bench --bench webhook                # SQLite; data in TMPDIR: set it to the disk that is meant
//! cargo bench --bench webhook -- --postgres                  # a private PostgreSQL with fsync = on
//! cargo bench --bench webhook -- --rate 500 --seconds 60
//! ```
//!
//! Events are committed at a steady rate whatever becomes of them (open loop), spread over 500 devices, and each goes to all endpoints.
//! The time of an event runs from when its commit is answered to when a receiver has its whole request; all threads share one process
//! and its clock, and one machine's cores. Each attempt is a row of the delivery log, as in production. The run fails unless each of the
//! nine got every event.

#[path = "../../tests/services/mod.rs"]
mod services;

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use chargegate::{
    gateway::ShardId,
    model::{Command, DeviceId, EventType, Order, Protocol, ServerId},
    store::{
        Bind, DeviceEvent, Job, Notify, Outcome, Queued, Reply, Store, StoreCounters,
        postgres::{self, PostgresStore},
        sqlite::{self, SqliteStore},
    },
    webhook::{Endpoint, Pusher, Settings},
};
use clap::Parser;
use hdrhistogram::Histogram;
use parking_lot::Mutex;
use serde_json::json;

use services::{Postgres, PostgresOptions};

const DEVICES: usize = 500;
const RECEIVERS: usize = 9;
/// Events of the first seconds count for nothing: connections are made, caches fill.
const WARM_UP_S: usize = 2;
/// For what is under way when the last event is committed.
const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Parser)]
struct Args {
    /// On a private PostgreSQL, not on SQLite.
    #[arg(long)]
    postgres: bool,
    /// Events a second.
    #[arg(long, default_value_t = 1_000)]
    rate: usize,
    /// Seconds of measuring.
    #[arg(long, default_value_t = 20)]
    seconds: usize,
    /// Passed by cargo.
    #[arg(long, hide = true)]
    bench: bool,
}

#[expect(clippy::disallowed_methods, reason = "the clock enters here")]
fn now() -> Instant {
    Instant::now()
}

/// When events were submitted and committed, µs since the start; 0: not yet.
struct Times {
    start: Instant,
    submitted: Vec<AtomicU64>,
    committed: Vec<AtomicU64>,
}

impl Times {
    fn us(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_micros()).unwrap_or(u64::MAX)
    }
}

fn main() {
    let args = Args::parse();
    let count = args.rate * (args.seconds + WARM_UP_S);
    let blank = || (0..count).map(|_| AtomicU64::new(0)).collect();
    let times = Arc::new(Times { start: now(), submitted: blank(), committed: blank() });
    let dir = tempfile::tempdir().expect("a directory");
    let server = args.postgres.then(|| Postgres::start(&PostgresOptions::default()));
    let tells = Arc::new(Tells::default());
    let opened = Opened::open(server.as_ref(), &dir, Arc::clone(&tells) as Arc<dyn Notify>);
    let store = opened.store();
    bind(store.as_ref());

    let skip = args.rate * WARM_UP_S;
    let receivers: Vec<_> = (0..RECEIVERS).map(|_| Receiver::start(&times, skip)).collect();
    let hung = hang();
    let endpoint = |(n, addr): (usize, SocketAddr)| Endpoint {
        name: format!("receiver-{n}"),
        url: format!("http://{addr}/hook"),
        secrets: vec!["secret".to_owned()],
        api_key: None,
        events: vec!["*".to_owned()],
    };
    let addresses = receivers.iter().map(|receiver| receiver.addr).chain([hung]);
    let settings = Settings {
        allow_private_targets: true,
        instance: args.postgres.then(|| ServerId::new("bench")),
        ..Settings::default()
    };
    let endpoints = addresses.enumerate().map(endpoint).collect();
    let pusher = Arc::new(Pusher::start(endpoints, Arc::clone(&store), settings).expect("it starts"));
    assert!(tells.0.set(Arc::clone(&pusher)).is_ok());
    wait("all endpoints are delivered to", || {
        pusher.counters().iter().all(|counters| counters.delivering.load(Ordering::Relaxed))
    });

    let cpu = cpu_us();
    pace(&store, &times, args.rate);
    wait("each receiver has every event", || receivers.iter().all(|receiver| receiver.taken() == count));
    let cpu = cpu_us() - cpu;
    report(&args, &receivers, &pusher, opened.counters(), cpu);
    pusher.stop(Duration::from_secs(1));
    store.close(PATIENCE);
}

fn report(args: &Args, receivers: &[Receiver], pusher: &Pusher, counters: &StoreCounters, cpu_us: f64) {
    let histogram = || Histogram::<u64>::new_with_bounds(1, 60_000_000, 3).expect("sound bounds");
    let (mut all, mut from_submit) = (histogram(), histogram());
    for receiver in receivers {
        let taken = receiver.taken.lock();
        all.add(&taken.latency).expect("the same bounds");
        from_submit.add(&taken.from_submit).expect("the same bounds");
    }
    let store = if args.postgres { "PostgreSQL" } else { "SQLite" };
    println!(
        "{store}: {} events/s for {} s to {RECEIVERS} receivers, {} deliveries measured; one endpoint hangs",
        args.rate,
        args.seconds,
        all.len(),
    );
    println!("| ms | p50 | p90 | p99 | p99.9 | max |");
    println!("|---|---|---|---|---|---|");
    for (name, histogram) in [("commit to receiver", &all), ("submit to receiver", &from_submit)] {
        let at = |quantile| histogram.value_at_quantile(quantile) as f64 / 1e3;
        println!(
            "| {name} | {:.1} | {:.1} | {:.1} | {:.1} | {:.1} |",
            at(0.5),
            at(0.9),
            at(0.99),
            at(0.999),
            histogram.max() as f64 / 1e3
        );
    }
    let hung = pusher.counters().pop().expect("ten endpoints");
    println!(
        "hung endpoint: breaker {}, {} in flight, {} parked",
        hung.breaker().as_str(),
        hung.in_flight.load(Ordering::Relaxed),
        hung.parked.load(Ordering::Relaxed)
    );
    println!(
        "delivery log: {} rows written, {} dropped; CPU {:.0} µs per delivery, receivers included",
        counters.delivery_rows.load(Ordering::Relaxed),
        counters.delivery_dropped.load(Ordering::Relaxed),
        cpu_us / all.len() as f64
    );
}

/// Submits events at a steady rate.
fn pace(store: &Arc<dyn Store>, times: &Arc<Times>, rate: usize) {
    let (began, count) = (times.us(), times.submitted.len());
    for n in 0..count {
        let due = began + (n * 1_000_000 / rate) as u64;
        if let Some(early) = due.checked_sub(times.us())
            && early > 0
        {
            thread::sleep(Duration::from_micros(early));
        }
        let event = DeviceEvent {
            device_id: device(n % DEVICES),
            event_type: EventType::PortStatusChanged,
            data: json!({"n": n, "port_no": 1, "status": 1, "status_text": "charging", "power_dw": 2000, "energy_wh": n}),
            order_no: None,
            fence: None,
            at: unix_ms(),
        };
        times.submitted[n].store(times.us(), Ordering::Relaxed);
        let committed = Arc::clone(times);
        let reply = Reply::Call(Box::new(move |outcome| {
            assert!(matches!(outcome, Outcome::Done), "{outcome:?}");
            committed.committed[n].store(committed.us(), Ordering::Release);
        }));
        assert!(store.submit(Job::Device(Box::new(event)), reply).is_ok(), "the queue has room");
    }
}

fn device(n: usize) -> DeviceId {
    format!("{n:08x}").parse().expect("8 hex digits")
}

#[expect(clippy::disallowed_methods, reason = "the clock enters here")]
fn unix_ms() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("a time of this century");
    i64::try_from(since.as_millis()).expect("a time of this century")
}

/// Registers the devices, before anybody is told of them.
fn bind(store: &dyn Store) {
    let (told, answers) = std::sync::mpsc::channel();
    for n in 0..DEVICES {
        let job = Job::Bind(Bind {
            device_id: device(n),
            protocol: Protocol::Ap3000,
            printed_no: None,
            known_only: false,
            generation: 1,
            at: unix_ms(),
        });
        let told = told.clone();
        let reply =
            Reply::Call(Box::new(move |outcome| told.send(matches!(outcome, Outcome::Bound(_))).unwrap_or_default()));
        assert!(store.submit(job, reply).is_ok(), "the queue has room");
    }
    for _ in 0..DEVICES {
        assert_eq!(answers.recv_timeout(PATIENCE), Ok(true));
    }
}

fn wait(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = now() + PATIENCE;
    while !holds() {
        assert!(now() < deadline, "not in time: {what}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// CPU time of this process, µs.
fn cpu_us() -> f64 {
    // SAFETY: all-zero is a valid `rusage`, and the call writes nothing else.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_SELF, &raw mut usage);
        usage
    };
    let us = |time: libc::timeval| time.tv_sec as f64 * 1e6 + time.tv_usec as f64;
    us(usage.ru_utime) + us(usage.ru_stime)
}

enum Opened {
    Sqlite(Arc<SqliteStore>),
    Postgres(Arc<PostgresStore>),
}

impl Opened {
    fn open(server: Option<&Postgres>, dir: &tempfile::TempDir, notify: Arc<dyn Notify>) -> Self {
        match server {
            None => {
                let options = sqlite::Options::new(dir.path().join("bench.db"));
                Self::Sqlite(Arc::new(SqliteStore::open(options, notify).expect("a store")))
            }
            Some(server) => {
                let options = postgres::Options::new(server.database("webhook"), ServerId::new("bench"));
                Self::Postgres(Arc::new(PostgresStore::open(options, notify).expect("a store")))
            }
        }
    }

    fn store(&self) -> Arc<dyn Store> {
        match self {
            Self::Sqlite(store) => Arc::clone(store) as Arc<dyn Store>,
            Self::Postgres(store) => Arc::clone(store) as Arc<dyn Store>,
        }
    }

    fn counters(&self) -> &StoreCounters {
        match self {
            Self::Sqlite(store) => store.counters(),
            Self::Postgres(store) => store.counters(),
        }
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

/// What a receiver got.
struct Taken {
    seen: Vec<bool>,
    latency: Histogram<u64>,
    from_submit: Histogram<u64>,
}

/// Answers 204 at once.
struct Receiver {
    addr: SocketAddr,
    taken: Arc<Mutex<Taken>>,
    count: Arc<AtomicU64>,
}

impl Receiver {
    fn start(times: &Arc<Times>, skip: usize) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let addr = listener.local_addr().expect("it is bound");
        let histogram = || Histogram::new_with_bounds(1, 60_000_000, 3).expect("sound bounds");
        let seen = vec![false; times.submitted.len()];
        let taken = Arc::new(Mutex::new(Taken { seen, latency: histogram(), from_submit: histogram() }));
        let count = Arc::new(AtomicU64::new(0));
        let receiver = Self { addr, taken: Arc::clone(&taken), count: Arc::clone(&count) };
        let times = Arc::clone(times);
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (times, taken, count) = (Arc::clone(&times), Arc::clone(&taken), Arc::clone(&count));
                thread::spawn(move || {
                    let mut writer = stream.try_clone().expect("a second handle");
                    let mut reader = BufReader::new(stream);
                    while let Some(body) = request(&mut reader) {
                        let at = times.us();
                        let json: serde_json::Value = serde_json::from_slice(&body).expect("JSON");
                        // Registrations of devices have no number.
                        if let Some(n) = json["data"]["n"].as_u64().and_then(|n| usize::try_from(n).ok()) {
                            note(&taken, &count, &times, n, at, skip);
                        }
                        if writer.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").is_err() {
                            return;
                        }
                    }
                });
            }
        });
        receiver
    }

    fn taken(&self) -> usize {
        usize::try_from(self.count.load(Ordering::Acquire)).unwrap_or(usize::MAX)
    }
}

fn note(taken: &Mutex<Taken>, count: &AtomicU64, times: &Times, n: usize, at: u64, skip: usize) {
    let mut taken = taken.lock();
    if std::mem::replace(&mut taken.seen[n], true) {
        return;
    }
    if n >= skip {
        // A receiver may be faster than whoever is told of the commit.
        let committed = times.committed[n].load(Ordering::Acquire);
        let latency = if committed == 0 { 1 } else { at.saturating_sub(committed).max(1) };
        taken.latency.record(latency).expect("within a minute");
        let submitted = times.submitted[n].load(Ordering::Relaxed);
        taken.from_submit.record(at.saturating_sub(submitted).max(1)).expect("within a minute");
    }
    drop(taken);
    count.fetch_add(1, Ordering::Release);
}

/// The body of the next request on a connection.
fn request(reader: &mut BufReader<TcpStream>) -> Option<Vec<u8>> {
    let mut length = 0;
    let mut line = String::new();
    loop {
        line.clear();
        if reader.read_line(&mut line).ok()? == 0 {
            return None;
        }
        let line = line.trim_end();
        if line.is_empty() {
            break;
        }
        if let Some((name, value)) = line.split_once(':')
            && name.eq_ignore_ascii_case("content-length")
        {
            length = value.trim().parse().ok()?;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    Some(body)
}

/// Takes connections, reads what comes, and says nothing.
fn hang() -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    let addr = listener.local_addr().expect("it is bound");
    thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            thread::spawn(move || {
                let mut buffer = [0; 4096];
                while matches!(stream.read(&mut buffer), Ok(1..)) {}
            });
        }
    });
    addr
}
