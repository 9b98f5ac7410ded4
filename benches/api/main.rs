//! What the API does for clients over real sockets, through the guard: reads from memory, and orders that are committed.
//!
//! ```text
//! this process: keep-alive clients, one thread ──HTTP──▶ gateway, a process of its own ──▶ SQLite, or PostgreSQL with fsync
//!               simulated devices, one thread  ◀──TCP──     └─ beats, and starts of the orders
//! ```
//!
//! Each client has one request under way and sends the next one when it has the answer. Everything runs on one machine and shares
//! its cores: the figures are those of the whole, clients and devices included. Answers are counted by status, and anything but the status
//! that is meant is said.
//!
//! ```sh
//! cargo bench --bench api                             # all scenarios, embedded
//! cargo bench --bench api -- status --devices 10000   # reads while ten thousand devices beat every minute
//! cargo bench --bench api -- orders --postgres
//! cargo bench --bench api -- status lists --rounds 5 --seconds 5
//! ```
//!
//! | scenario | what is measured |
//! |---|---|
//! | `status` | `GET /devices/{id}/status` of a device with ten ports |
//! | `lists` | `GET /devices` with a page of 20: a worker and a reader of the store for each |
//! | `orders` | `POST /devices/{id}/charge`, each on another port, to the 202 behind the commit |
//!
//! Data is in TMPDIR: set it to the disk that is meant.

#[path = "../../tests/gateway/mod.rs"]
mod gateway;
#[path = "../../tests/services/mod.rs"]
mod services;
#[path = "../support/mod.rs"]
mod support;

use std::{
    collections::BTreeMap,
    io::{ErrorKind, Read as _, Write as _},
    net::SocketAddr,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};

use chargegate_loadtest::{
    device::{Behaviour, SECOND_US},
    fleet::{Fleet, Protocol},
    run::{Extras, Plan, run_with},
};
use clap::{Parser, ValueEnum};
use hdrhistogram::Histogram;
use mio::{Events, Interest, Poll, Token, net::TcpStream};

use gateway::{Engine, Gateway, KEY, until};
use services::{Persistence, Postgres, PostgresOptions, Redis};
use support::record;

const PORTS: u8 = 10;
/// Devices that connect in a second.
const RAMP_PER_S: u32 = 2_000;
const READ_BYTES: usize = 64 << 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Scenario {
    Status,
    Lists,
    Orders,
}

#[derive(Parser)]
struct Args {
    /// What to measure.
    #[arg(value_enum, default_values_t = [Scenario::Status, Scenario::Lists, Scenario::Orders])]
    scenarios: Vec<Scenario>,
    /// On PostgreSQL with fsync, and Redis, instead of SQLite.
    #[arg(long)]
    postgres: bool,
    /// Keep-alive clients.
    #[arg(long, default_value_t = 64)]
    clients: usize,
    /// Seconds of measuring in each round.
    #[arg(long, default_value_t = 15)]
    seconds: u64,
    /// Rounds of each scenario, with one gateway.
    #[arg(long, default_value_t = 1)]
    rounds: u64,
    /// Simulated devices [default: 1; orders: as many as 3,000 orders per second need].
    #[arg(long)]
    devices: Option<u32>,
    /// Threads of `http.workers`.
    #[arg(long, default_value_t = 4)]
    workers: u32,
    /// Passed by cargo.
    #[arg(long, hide = true)]
    bench: bool,
}

#[expect(clippy::disallowed_methods, reason = "the clock enters here")]
fn now() -> Instant {
    Instant::now()
}

fn main() {
    let args = Args::parse();
    raise_descriptor_limit();
    println!(
        "| scenario | store | devices | answers/s | p50 ms | p99 ms | slowest ms |\n|---|---|---:|---:|---:|---:|---:|"
    );
    for scenario in &args.scenarios {
        run(&args, *scenario);
    }
}

fn run(args: &Args, scenario: Scenario) {
    let least = if scenario == Scenario::Orders { 3_000 * args.seconds * args.rounds / u64::from(PORTS) } else { 1 };
    let devices = args.devices.unwrap_or_else(|| u32::try_from(least).unwrap_or(u32::MAX));
    let servers = args.postgres.then(|| {
        let settings = vec![("shared_buffers".into(), "256MB".into()), ("max_wal_size".into(), "4GB".into())];
        let postgres = Postgres::start(&PostgresOptions { fsync: true, settings });
        let redis = Redis::start(Persistence::None);
        let (store, queue) = (postgres.database("bench"), redis.url());
        (postgres, redis, store, queue)
    });
    let workers = args.workers.to_string();
    let mut variables = vec![
        ("CHARGEGATE_SHARD_COUNT", "1"),
        ("CHARGEGATE_LOG_LEVEL", "warn"),
        ("CHARGEGATE_JOBS_PORT_SYNC_INTERVAL", "24h"),
        ("CHARGEGATE_HTTP_WORKERS", &workers),
    ];
    if let Some((_, _, store, queue)) = &servers {
        variables.extend([("CHARGEGATE_STORE_URL", store.as_str()), ("CHARGEGATE_QUEUE_URL", queue)]);
    }
    let gateway = Gateway::start(Engine::Mio, &variables).expect("epoll is everywhere");
    let interrupt = AtomicBool::new(false);
    let plan = plan(gateway.devices, devices);
    thread::scope(|scope| {
        let simulated = scope.spawn(|| run_with(&plan, Extras::default(), &interrupt, |_, _| {}));
        until("the devices are online", || {
            (gateway.metric("chargegate_devices_online") >= u64::from(devices)).then_some(())
        });
        let fleet = Fleet::new(Protocol::Ap3000, devices, PORTS, 0);
        let one = fleet.device_id(0);
        until("the ports are known", || {
            let status = gateway.get(&format!("devices/{one}/status"));
            (status.data()["ports"].as_array().is_some_and(|ports| ports.len() == usize::from(PORTS))).then_some(())
        });
        let target = |path: &str| format!("/api/v1/third{path}");
        let meant = if scenario == Scenario::Orders { 202 } else { 200 };
        let mut places = (1..=u16::from(PORTS)).flat_map(|port_no| (0..devices).map(move |index| (index, port_no)));
        let mut next: Requests<'_> = match scenario {
            Scenario::Status => fixed(&target(&format!("/devices/{one}/status"))),
            Scenario::Lists => fixed(&target("/devices")),
            Scenario::Orders => Box::new(move |request| {
                let Some((index, port_no)) = places.next() else { return false };
                let target = target(&format!("/devices/{}/charge", fleet.device_id(index)));
                let body = format!(r#"{{"port_no":{port_no},"mode":"time","duration_minutes":900,"paid_cent":100}}"#);
                write_request(request, "POST", &target, &body);
                true
            }),
        };
        for _ in 0..args.rounds {
            let clients = Clients::new(gateway.http, args.clients, &mut next);
            let measured = clients.run(Duration::from_secs(args.seconds));
            measured.print(scenario, if args.postgres { "PostgreSQL" } else { "SQLite" }, devices, meant);
            measured.record(&row(scenario, args.postgres, devices), meant);
        }
        interrupt.store(true, Relaxed);
        drop(simulated.join());
    });
}

/// The row of a scenario, without what of it.
fn row(scenario: Scenario, postgres: bool, devices: u32) -> String {
    match scenario {
        Scenario::Status if devices > 1 => "api/status_beside".to_owned(),
        Scenario::Status => "api/status".to_owned(),
        Scenario::Lists => "api/devices".to_owned(),
        Scenario::Orders => format!("api/orders/{}", if postgres { "postgres" } else { "embedded" }),
    }
}

fn plan(connect: SocketAddr, devices: u32) -> Plan {
    Plan {
        connect: vec![connect],
        devices,
        protocol: Protocol::Ap3000,
        ports: PORTS,
        sockets: 0,
        ramp_per_s: RAMP_PER_S,
        duration: None,
        drain: Duration::ZERO,
        behaviour: Behaviour { heartbeat_us: 60 * SECOND_US, time_factor: 1, seed: 1, unplugged_percent: 0 },
        source_addresses: 4,
        rude: Vec::new(),
        threads: 1,
        api: None,
    }
}

fn fixed(target: &str) -> Requests<'static> {
    let mut fixed = Vec::new();
    write_request(&mut fixed, "GET", target, "");
    Box::new(move |request| {
        request.extend_from_slice(&fixed);
        true
    })
}

fn write_request(out: &mut Vec<u8>, method: &str, target: &str, body: &str) {
    let body_fields = match body.len() {
        0 => String::new(),
        len => format!("Content-Type: application/json\r\nContent-Length: {len}\r\n"),
    };
    let head = format!("{method} {target} HTTP/1.1\r\nHost: gateway\r\nX-Api-Key: {KEY}\r\n{body_fields}\r\n");
    out.extend_from_slice(head.as_bytes());
    out.extend_from_slice(body.as_bytes());
}

struct Client {
    stream: TcpStream,
    request: Vec<u8>,
    sent: usize,
    answer: Vec<u8>,
    since: Instant,
}

/// Writes the next request; `false`: there is none left.
type Requests<'a> = Box<dyn FnMut(&mut Vec<u8>) -> bool + 'a>;

/// Keep-alive clients, each with one request under way.
struct Clients<'a, 'n> {
    poll: Poll,
    clients: Vec<Client>,
    next: &'n mut Requests<'a>,
    exhausted: bool,
}

struct Measured {
    latency_us: Histogram<u64>,
    by_status: BTreeMap<u16, u64>,
    took: Duration,
    exhausted: bool,
}

impl<'a, 'n> Clients<'a, 'n> {
    fn new(to: SocketAddr, count: usize, next: &'n mut Requests<'a>) -> Self {
        let poll = Poll::new().expect("epoll is everywhere");
        let clients = (0..count).map(|index| {
            let stream = std::net::TcpStream::connect(to).expect("the gateway listens");
            stream.set_nodelay(true).expect("it is a TCP socket");
            stream.set_nonblocking(true).expect("it is a socket");
            let mut stream = TcpStream::from_std(stream);
            let interest = Interest::READABLE | Interest::WRITABLE;
            poll.registry().register(&mut stream, Token(index), interest).expect("a descriptor");
            Client { stream, request: Vec::new(), sent: 0, answer: Vec::new(), since: now() }
        });
        let clients = clients.collect();
        Self { poll, clients, next, exhausted: false }
    }

    fn run(mut self, duration: Duration) -> Measured {
        let began = now();
        let mut measured = Measured {
            latency_us: Histogram::new(3).expect("three digits"),
            by_status: BTreeMap::new(),
            took: Duration::ZERO,
            exhausted: false,
        };
        let mut events = Events::with_capacity(1_024);
        let mut scratch = vec![0; READ_BYTES];
        for index in 0..self.clients.len() {
            self.ask(index);
        }
        while began.elapsed() < duration && !self.exhausted {
            self.poll.poll(&mut events, Some(Duration::from_millis(100))).expect("epoll works");
            for event in &events {
                let Token(index) = event.token();
                self.send(index);
                if event.is_readable() && self.receive(index, &mut scratch, &mut measured) {
                    self.ask(index);
                }
            }
        }
        measured.took = began.elapsed();
        measured.exhausted = self.exhausted;
        measured
    }

    fn ask(&mut self, index: usize) {
        let client = &mut self.clients[index];
        client.request.clear();
        client.sent = 0;
        if !(self.next)(&mut client.request) {
            self.exhausted = true;
            return;
        }
        client.since = now();
        self.send(index);
    }

    #[expect(clippy::disallowed_methods, reason = "a non-blocking write whose count is kept")]
    fn send(&mut self, index: usize) {
        let client = &mut self.clients[index];
        while client.sent < client.request.len() {
            match client.stream.write(&client.request[client.sent..]) {
                Ok(count) => client.sent += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) => panic!("the gateway takes no more: {error}"),
            }
        }
    }

    /// Reads what there is; `true` once the answer is whole.
    fn receive(&mut self, index: usize, scratch: &mut [u8], measured: &mut Measured) -> bool {
        let client = &mut self.clients[index];
        loop {
            match client.stream.read(scratch) {
                Ok(0) => panic!("the gateway closed a connection"),
                Ok(count) => client.answer.extend_from_slice(&scratch[..count]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return false,
                Err(error) => panic!("the gateway gives no more: {error}"),
            }
            let mut fields = [httparse::EMPTY_HEADER; 32];
            let mut answer = httparse::Response::new(&mut fields);
            let Ok(httparse::Status::Complete(head)) = answer.parse(&client.answer) else { continue };
            let length = answer.headers.iter().find(|field| field.name == "Content-Length").expect("a length");
            let length: usize = std::str::from_utf8(length.value).expect("digits").parse().expect("digits");
            if client.answer.len() < head + length {
                continue;
            }
            *measured.by_status.entry(answer.code.expect("a status")).or_default() += 1;
            let micros = u64::try_from(client.since.elapsed().as_micros()).unwrap_or(u64::MAX);
            measured.latency_us.record(micros).expect("it fits any time");
            client.answer.clear();
            return true;
        }
    }
}

impl Measured {
    fn per_s(&self, meant: u16) -> f64 {
        let count = self.by_status.get(&meant).copied().unwrap_or(0);
        count as f64 / self.took.as_secs_f64()
    }

    fn ms(&self, quantile: f64) -> f64 {
        self.latency_us.value_at_quantile(quantile) as f64 / 1e3
    }

    fn record(&self, row: &str, meant: u16) {
        record(&format!("{row}/per_s"), "/s", self.per_s(meant));
        record(&format!("{row}/p99_ms"), "ms", self.ms(0.99));
    }

    fn print(&self, scenario: Scenario, store: &str, devices: u32, meant: u16) {
        println!(
            "| {scenario:?} | {store} | {devices} | {:.0} | {:.2} | {:.2} | {:.2} |",
            self.per_s(meant),
            self.ms(0.5),
            self.ms(0.99),
            self.ms(1.0)
        );
        let others: Vec<String> = self
            .by_status
            .iter()
            .filter(|(status, _)| **status != meant)
            .map(|(status, count)| format!("{count} × {status}"))
            .collect();
        if !others.is_empty() {
            println!("also answered: {}", others.join(", "));
        }
        if self.exhausted {
            println!("every port was used up: give more --devices");
        }
    }
}

fn raise_descriptor_limit() {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is a valid place for the result.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } == 0 {
        limit.rlim_cur = limit.rlim_max;
        // SAFETY: `limit` is valid for the call; without it there are fewer devices, which the simulator says.
        unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) };
    }
}
