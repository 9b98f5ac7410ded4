//! From a commit to the receivers: ten webhook endpoints, one of which hangs, and a stream of events through a real store.
//!
//! ```text
//! pacer ──jobs──▶ store ──commit──▶ pusher ──HTTP on loopback──▶ nine receivers that answer, one that does not
//! ```
//!
//! ```sh
//! TMPDIR=/var/tmp cargo bench --bench webhook                # SQLite; data in TMPDIR: set it to the disk that is meant
//! cargo bench --bench webhook -- --postgres                  # a private PostgreSQL with fsync = on
//! cargo bench --bench webhook -- --rate 300,500,1000 --rounds 5 --seconds 10
//! ```
//!
//! Events are committed at a steady rate whatever becomes of them (open loop), spread over 500 devices, and each goes to all endpoints.
//! The time of an event runs from when its commit is answered to when a receiver has its whole request; all threads share one process
//! and its clock, and one machine's cores. Each attempt is a row of the delivery log, as in production. The run fails unless each of the
//! nine got every event. The receivers are one thread, and CPU time is printed by thread, so that what they cost can be told from what the
//! gateway does.

#[path = "../../tests/services/mod.rs"]
mod services;
#[path = "../support/mod.rs"]
mod support;

use std::{
    collections::BTreeMap,
    fs,
    io::{ErrorKind, Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
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
use mio::{
    Events, Interest, Poll, Token,
    net::{TcpListener, TcpStream},
};
use parking_lot::Mutex;
use serde::Deserialize;
use serde_json::json;

use services::{Postgres, PostgresOptions};
use support::record;

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
    /// Events a second; several rates alternate.
    #[arg(long, value_delimiter = ',', default_values_t = [1_000])]
    rate: Vec<usize>,
    /// Deliver by threads and the HTTP client, as to endpoints with TLS, but without the TLS.
    #[arg(long)]
    threads: bool,
    /// Rounds of each rate.
    #[arg(long, default_value_t = 1)]
    rounds: usize,
    /// Seconds of measuring in each round.
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
    for _ in 0..args.rounds {
        args.rate.iter().for_each(|rate| round(&args, *rate));
    }
}

/// A store of its own, ten endpoints, and events at one rate.
fn round(args: &Args, rate: usize) {
    let count = rate * (args.seconds + WARM_UP_S);
    let blank = || (0..count).map(|_| AtomicU64::new(0)).collect();
    let times = Arc::new(Times { start: now(), submitted: blank(), committed: blank() });
    let dir = tempfile::tempdir().expect("a directory");
    let server = args.postgres.then(|| Postgres::start(&PostgresOptions::default()));
    let tells = Arc::new(Tells::default());
    let opened = Opened::open(server.as_ref(), &dir, Arc::clone(&tells) as Arc<dyn Notify>);
    let store = opened.store();
    bind(store.as_ref());

    let receivers = Receivers::start(&times, rate * WARM_UP_S);
    // A user in the URL is more than is written without the HTTP client.
    let user = if args.threads { "bench@" } else { "" };
    let endpoint = |(n, addr): (usize, &SocketAddr)| Endpoint {
        name: format!("receiver-{n}"),
        url: format!("http://{user}{addr}/hook"),
        secrets: vec!["secret".to_owned()],
        api_key: None,
        events: vec!["*".to_owned()],
    };
    let settings = Settings {
        allow_private_targets: true,
        instance: args.postgres.then(|| ServerId::new("bench")),
        ..Settings::default()
    };
    let endpoints = receivers.addresses.iter().enumerate().map(endpoint).collect();
    let pusher = Arc::new(Pusher::start(endpoints, Arc::clone(&store), settings).expect("it starts"));
    assert!(tells.0.set(Arc::clone(&pusher)).is_ok());
    wait("all endpoints are delivered to", || {
        pusher.counters().iter().all(|counters| counters.delivering.load(Ordering::Relaxed))
    });

    let before = cpu_by_thread();
    pace(&store, &times, rate);
    wait("each receiver has every event", || receivers.taken() == count * RECEIVERS);
    let mut cpu = cpu_by_thread();
    for (thread, us) in &mut cpu {
        *us -= before.get(thread).unwrap_or(&0.0);
    }
    report(args, rate, &receivers, &pusher, opened.counters(), &cpu);
    pusher.stop(Duration::from_secs(1));
    store.close(PATIENCE);
    receivers.stop();
}

fn report(
    args: &Args,
    rate: usize,
    receivers: &Receivers,
    pusher: &Pusher,
    counters: &StoreCounters,
    cpu: &BTreeMap<String, f64>,
) {
    let taken = receivers.taken.lock();
    let (all, from_submit) = (&taken.latency, &taken.from_submit);
    let store = if args.postgres { "PostgreSQL" } else { "SQLite" };
    println!(
        "{store}: {rate} events/s for {} s to {RECEIVERS} receivers, {} deliveries measured; one endpoint hangs",
        args.seconds,
        all.len(),
    );
    println!("| ms | p50 | p90 | p99 | p99.9 | max |");
    println!("|---|---|---|---|---|---|");
    for (name, histogram) in [("commit to receiver", all), ("submit to receiver", from_submit)] {
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
    let row = if args.threads { "webhook/threads" } else { "webhook" };
    record(&format!("{row}/{rate}/p99_ms"), "ms", all.value_at_quantile(0.99) as f64 / 1e3);
    let hung = pusher.counters().pop().expect("ten endpoints");
    println!(
        "hung endpoint: breaker {}, {} in flight, {} parked",
        hung.breaker().as_str(),
        hung.in_flight.load(Ordering::Relaxed),
        hung.parked.load(Ordering::Relaxed)
    );
    println!(
        "delivery log: {} rows written, {} dropped",
        counters.delivery_rows.load(Ordering::Relaxed),
        counters.delivery_dropped.load(Ordering::Relaxed),
    );
    let deliveries = (rate * (args.seconds + WARM_UP_S) * RECEIVERS) as f64;
    let of = |wanted: &dyn Fn(&str) -> bool| {
        cpu.iter().filter(|(thread, _)| wanted(thread)).map(|(_, us)| us).sum::<f64>() / deliveries
    };
    let webhook = of(&|thread| thread.starts_with("webhook"));
    println!(
        "CPU per delivery: {webhook:.1} µs webhooks, {:.1} receivers, {:.1} everything else (commits, queries, logs, pacing)",
        of(&|thread| thread == RECEIVER_THREAD),
        of(&|thread| thread != RECEIVER_THREAD && !thread.starts_with("webhook")),
    );
    record(&format!("{row}/{rate}/cpu_us"), "µs", webhook);
    let by_thread: Vec<String> = cpu.iter().map(|(thread, us)| format!("{thread} {:.1}", us / deliveries)).collect();
    println!("by thread: {}", by_thread.join(", "));
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
            data:
                json!({"n": n, "port_no": 1, "status": 1, "status_text": "charging", "power_dw": 2000, "energy_wh": n})
                    .into(),
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

/// CPU time of this process by the names of its threads, µs.
fn cpu_by_thread() -> BTreeMap<String, f64> {
    let mut sums = BTreeMap::new();
    for task in fs::read_dir("/proc/self/task").expect("Linux").map_while(Result::ok) {
        let read = |file: &str| fs::read_to_string(task.path().join(file));
        // A thread may end meanwhile.
        let (Ok(name), Ok(times)) = (read("comm"), read("schedstat")) else { continue };
        let ns: f64 = times.split(' ').next().and_then(|ns| ns.parse().ok()).expect("nanoseconds on the CPU first");
        let name = name.trim_end().trim_end_matches(|last: char| last.is_ascii_digit() || last == '-');
        // The first thread is called like this program.
        let is_first = task.file_name().to_str() == Some(std::process::id().to_string().as_str());
        let name = if is_first { "pacer" } else { name };
        *sums.entry(name.to_owned()).or_default() += ns / 1e3;
    }
    sums
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

/// What the receivers got.
struct Taken {
    /// By event and receiver.
    seen: Vec<bool>,
    latency: Histogram<u64>,
    from_submit: Histogram<u64>,
}

const RECEIVER_THREAD: &str = "receivers";
const ANSWER: &[u8] = b"HTTP/1.1 204 No Content\r\n\r\n";

/// Nine that answer 204 at once, and one that takes connections and bytes and says nothing: one thread.
struct Receivers {
    /// The silent one is last.
    addresses: Vec<SocketAddr>,
    taken: Arc<Mutex<Taken>>,
    count: Arc<AtomicU64>,
    stopping: Arc<AtomicBool>,
    thread: thread::JoinHandle<()>,
}

/// A connection to a receiver.
struct Connection {
    receiver: usize,
    stream: TcpStream,
    read: Vec<u8>,
}

/// What of a delivery is looked at.
#[derive(Deserialize)]
struct Delivery {
    data: Data,
}

#[derive(Deserialize)]
struct Data {
    /// Registrations of devices have no number.
    n: Option<usize>,
}

impl Receivers {
    fn start(times: &Arc<Times>, skip: usize) -> Self {
        let listen = |_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0).into()).expect("a port");
        let listeners: Vec<_> = (0..=RECEIVERS).map(listen).collect();
        let addresses = listeners.iter().map(|listener| listener.local_addr().expect("it is bound")).collect();
        let histogram = || Histogram::new_with_bounds(1, 60_000_000, 3).expect("sound bounds");
        let seen = vec![false; times.submitted.len() * RECEIVERS];
        let taken = Arc::new(Mutex::new(Taken { seen, latency: histogram(), from_submit: histogram() }));
        let (count, stopping) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let thread = {
            let (times, taken, count, stopping) =
                (Arc::clone(times), Arc::clone(&taken), Arc::clone(&count), Arc::clone(&stopping));
            let note = move |receiver, body: &[u8]| {
                let at = times.us();
                let delivery: Delivery = serde_json::from_slice(body).expect("JSON of a delivery");
                if let Some(n) = delivery.data.n {
                    note(&taken, &count, &times, (receiver, n), at, skip);
                }
            };
            thread::Builder::new().name(RECEIVER_THREAD.to_owned()).spawn(move || receive(listeners, &stopping, note))
        };
        Self { addresses, taken, count, stopping, thread: thread.expect("a thread") }
    }

    /// Deliveries, each counted once.
    fn taken(&self) -> usize {
        usize::try_from(self.count.load(Ordering::Acquire)).unwrap_or(usize::MAX)
    }

    fn stop(self) {
        self.stopping.store(true, Ordering::Release);
        self.thread.join().expect("the receivers end");
    }
}

/// Takes connections and requests until it is to stop. `note` is told of each body, and whose it is.
fn receive(mut listeners: Vec<TcpListener>, stopping: &AtomicBool, note: impl Fn(usize, &[u8])) {
    let mut poll = Poll::new().expect("epoll is everywhere");
    for (n, listener) in listeners.iter_mut().enumerate() {
        poll.registry().register(listener, Token(n), Interest::READABLE).expect("a descriptor");
    }
    let first = listeners.len();
    let mut connections: Vec<Option<Connection>> = Vec::new();
    let mut events = Events::with_capacity(256);
    while !stopping.load(Ordering::Acquire) {
        poll.poll(&mut events, Some(Duration::from_millis(100))).expect("epoll works");
        for event in &events {
            let Token(token) = event.token();
            let Some(index) = token.checked_sub(first) else {
                while let Ok((mut stream, _)) = listeners[token].accept() {
                    let token_of = Token(first + connections.len());
                    poll.registry().register(&mut stream, token_of, Interest::READABLE).expect("a descriptor");
                    connections.push(Some(Connection { receiver: token, stream, read: Vec::new() }));
                }
                continue;
            };
            if connections[index].as_mut().is_some_and(|connection| !connection.ready(&note)) {
                connections[index] = None;
            }
        }
    }
}

impl Connection {
    /// Takes what came; `false`: the connection is over.
    fn ready(&mut self, note: &impl Fn(usize, &[u8])) -> bool {
        loop {
            let used = self.read.len();
            self.read.resize(used + 4_096, 0);
            let got = match self.stream.read(&mut self.read[used..]) {
                Ok(0) => return false,
                Ok(got) => got,
                Err(error) if error.kind() == ErrorKind::WouldBlock => 0,
                Err(_) => return false,
            };
            self.read.truncate(used + got);
            if self.receiver == RECEIVERS {
                self.read.clear();
            }
            while let Some((body, end)) = request(&self.read) {
                note(self.receiver, &self.read[body..end]);
                self.read.drain(..end);
                if self.stream.write_all(ANSWER).is_err() {
                    return false;
                }
            }
            // Less than asked for: there was no more.
            if got < 4_096 {
                return true;
            }
        }
    }
}

fn note(taken: &Mutex<Taken>, count: &AtomicU64, times: &Times, (receiver, n): (usize, usize), at: u64, skip: usize) {
    let mut taken = taken.lock();
    if std::mem::replace(&mut taken.seen[n * RECEIVERS + receiver], true) {
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

/// Where the body of a whole request begins and ends.
fn request(read: &[u8]) -> Option<(usize, usize)> {
    let mut fields = [httparse::EMPTY_HEADER; 32];
    let mut request = httparse::Request::new(&mut fields);
    let httparse::Status::Complete(body) = request.parse(read).expect("HTTP") else { return None };
    let length = request.headers.iter().find(|field| field.name.eq_ignore_ascii_case("content-length"));
    let length: usize = std::str::from_utf8(length.expect("a length").value).expect("digits").parse().expect("digits");
    (read.len() >= body + length).then_some((body, body + length))
}
