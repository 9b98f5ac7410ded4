//! What the gateway does from end to end: real processes, real PostgreSQL with `fsync = on` and Redis, or the embedded store.
//!
//! ```text
//! this process: API clients ──HTTP──▶ instance 1 ─┬─▶ PostgreSQL, private
//!               simulated devices ◀──TCP── ...    └─▶ Redis, private
//! ```
//!
//! Clients and devices are threads of one process and share its clock, so the time from an answer to the frame at the device is
//! measured, not computed. Everything runs on one machine and shares its cores: figures are those of the whole, load included.
//!
//! ```sh
//! cargo bench --bench cluster                                # every scenario but `connections`, on 1 and 2 instances
//! cargo bench --bench cluster -- latency --instances 2 --rounds 5 --seconds 10
//! cargo bench --bench cluster -- orders --embedded
//! cargo bench --bench cluster -- connections                 # 50,001 devices on three instances, for three minutes
//! ```
//!
//! | scenario | what is measured |
//! |---|---|
//! | `latency` | 20 charges, then 20 named commands a second, each to another device: request to 202, 202 to the frame at the device; beside them, what a bare fsync takes |
//! | `orders` | charges from keep-alive clients, each with one request under way, over distinct ports; what follows an order until it charges is part of the load |
//! | `commands` | the same with named commands to distinct devices; acknowledged by the devices, as the store has it |
//! | `settlements` | end reports of AP3000 chargers, acknowledged after their commit: how many are offered is raised until no more are acknowledged |
//! | `connections` | resident memory of three instances with 50,001 devices that beat, and whether every heartbeat is answered |
//!
//! Data is in TMPDIR: set it to the disk that is meant. `connections` needs `ulimit -Hn` above 17,300 and as many ports for each of the
//! loopback addresses as `net.ipv4.ip_local_port_range` has by default.

#[path = "../../tests/gateway/mod.rs"]
mod gateway;
#[path = "../../tests/services/mod.rs"]
mod services;
#[path = "../support/mod.rs"]
mod support;

use std::{
    collections::BTreeMap,
    io::{BufReader, Write as _},
    net::SocketAddr,
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use chargegate_loadtest::{
    api::{ApiPlan, ApiSummary, Ask, ToFrame},
    device::{Behaviour, Request, SECOND_US, activity::Activity},
    fleet::Protocol,
    report::{Percentiles, Summary, Totals},
    run::{Extras, Plan, run_with},
};
use clap::{Parser, ValueEnum};
use hdrhistogram::Histogram;
use serde_json::Value;

use gateway::{Engine, Gateway, KEY};
use services::{Persistence, Postgres, PostgresOptions, Redis};
use support::record;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Scenario {
    Latency,
    Orders,
    Commands,
    Settlements,
    Connections,
}

#[derive(Parser)]
struct Args {
    /// What to measure.
    #[arg(value_enum, default_values_t = [Scenario::Latency, Scenario::Orders, Scenario::Commands, Scenario::Settlements])]
    scenarios: Vec<Scenario>,
    /// Numbers of instances [default: 1,2; connections: 3].
    #[arg(long, value_delimiter = ',')]
    instances: Vec<usize>,
    /// One instance on SQLite.
    #[arg(long, conflicts_with = "instances")]
    embedded: bool,
    /// Seconds of measuring [default: 30; connections: 180].
    #[arg(long)]
    seconds: Option<u64>,
    /// Rounds of `latency` and `settlements`.
    #[arg(long, default_value_t = 1)]
    rounds: usize,
    /// API clients of `orders` and `commands`.
    #[arg(long, default_value_t = 64)]
    clients: u32,
    /// Simulated devices [default: what the scenario needs].
    #[arg(long)]
    devices: Option<u32>,
    /// Shards of each instance.
    #[arg(long, default_value_t = 1)]
    shards: u32,
    /// `store.lanes` of each instance.
    #[arg(long, default_value_t = 4)]
    lanes: u32,
    /// Settings of PostgreSQL, as NAME=VALUE.
    #[arg(long = "set", default_values_t = ["shared_buffers=256MB".to_owned(), "max_wal_size=4GB".to_owned()])]
    settings: Vec<String>,
    /// Be a simulator: first device, number of devices, where to connect, seconds.
    #[arg(long, hide = true, value_delimiter = ',')]
    part: Vec<String>,
    /// Passed by cargo.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() {
    let args = Args::parse();
    raise_descriptor_limit();
    if !args.part.is_empty() {
        return simulate_part(&args.part);
    }
    for scenario in &args.scenarios {
        let default: &[usize] = match scenario {
            _ if args.embedded => &[1],
            Scenario::Connections => &[3],
            _ => &[1, 2],
        };
        for instances in if args.instances.is_empty() { default } else { &args.instances } {
            let system = System::start(&args, *instances);
            println!("\n{scenario:?}, {}", system.name);
            match scenario {
                Scenario::Latency => latency(&args, &system),
                Scenario::Orders => orders(&args, &system),
                Scenario::Commands => commands(&args, &system),
                Scenario::Settlements => settlements(&args, &system),
                Scenario::Connections => connections(&args, &system),
            }
        }
    }
}

/// The gateway with what it needs. Dropped in this order, all of it ends.
struct System {
    name: String,
    instances: Vec<Gateway>,
    postgres: Option<(Postgres, String)>,
    _redis: Option<Redis>,
}

impl System {
    fn start(args: &Args, instances: usize) -> Self {
        let (shards, lanes) = (args.shards.to_string(), args.lanes.to_string());
        let mut variables = vec![
            ("CHARGEGATE_SHARD_COUNT", shards.as_str()),
            ("CHARGEGATE_LOG_LEVEL", "warn"),
            // Questions for ports would be taken for the commands that are waited for.
            ("CHARGEGATE_JOBS_PORT_SYNC_INTERVAL", "24h"),
        ];
        if args.embedded {
            let instance = Gateway::start(Engine::Mio, &variables).expect("epoll is everywhere");
            return Self { name: "embedded".to_owned(), instances: vec![instance], postgres: None, _redis: None };
        }
        let setting = |text: &String| {
            let (name, value) = text.split_once('=').expect("NAME=VALUE");
            (name.to_owned(), value.to_owned())
        };
        let settings = args.settings.iter().map(setting).collect();
        let (postgres, redis) =
            (Postgres::start(&PostgresOptions { fsync: true, settings }), Redis::start(Persistence::None));
        let (store, queue) = (postgres.database("bench"), redis.url());
        variables.extend([
            ("CHARGEGATE_STORE_URL", store.as_str()),
            ("CHARGEGATE_QUEUE_URL", &queue),
            ("CHARGEGATE_STORE_LANES", &lanes),
        ]);
        let start = |_| Gateway::start(Engine::Mio, &variables).expect("epoll is everywhere");
        let running = (0..instances).map(start).collect();
        let name = format!("PostgreSQL and Redis, {instances} instance{}", if instances == 1 { "" } else { "s" });
        Self { name, instances: running, postgres: Some((postgres, store)), _redis: Some(redis) }
    }

    /// What the simulator connects to.
    fn devices(&self) -> Vec<SocketAddr> {
        self.instances.iter().map(|instance| instance.devices).collect()
    }

    fn api(&self) -> Vec<String> {
        self.instances.iter().map(|instance| format!("http://{}", instance.http)).collect()
    }

    /// The rows of a query of whole numbers.
    fn query(&self, sql: &str) -> Vec<Vec<i64>> {
        match &self.postgres {
            Some((_, url)) => {
                let mut client = postgres::Client::connect(url, postgres::NoTls).expect("the server takes connections");
                let rows = client.query(sql, &[]).expect("a sound query");
                rows.iter().map(|row| (0..row.len()).map(|column| row.get(column)).collect()).collect()
            }
            None => {
                let database = self.instances[0].database();
                let mut query = database.prepare(sql).expect("a sound query");
                let columns = query.column_count();
                let row = |row: &rusqlite::Row<'_>| (0..columns).map(|column| row.get(column)).collect();
                let rows = query.query_map((), row).expect("a sound query");
                rows.collect::<Result<_, _>>().expect("whole numbers")
            }
        }
    }
}

/// Devices that connect at once, then beat once a minute.
const RAMP_PER_S: u32 = 2_000;
/// From the last connect to the first measurement: devices are bound, their rows committed, their sessions in Redis.
const SETTLE_S: u64 = 5;

fn plan(system: &System, devices: u32, ports: u8, time_factor: u32, seconds: u64, api: Option<ApiPlan>) -> Plan {
    let ramp_s = u64::from(devices.div_ceil(RAMP_PER_S)) + SETTLE_S;
    Plan {
        connect: system.devices(),
        devices,
        protocol: Protocol::Ap3000,
        ports,
        sockets: 0,
        ramp_per_s: RAMP_PER_S,
        duration: Some(Duration::from_secs(ramp_s + seconds)),
        drain: Duration::from_secs(10),
        behaviour: Behaviour { heartbeat_us: 60 * SECOND_US, time_factor, seed: 1, unplugged_percent: 0 },
        source_addresses: 4,
        rude: Vec::new(),
        threads: 1,
        api: api.map(|api| ApiPlan { after: Duration::from_secs(ramp_s), time_factor, ..api }),
    }
}

fn asking(system: &System, ask: Ask, per_s: f64, threads: u32, minutes: u16) -> ApiPlan {
    ApiPlan {
        bases: system.api(),
        ask,
        after: Duration::ZERO,
        key: KEY.to_owned(),
        secret: None,
        per_s,
        minutes: minutes..=minutes,
        stop_percent: 0,
        threads,
        time_factor: 1,
        seed: 1,
    }
}

fn simulate(plan: &Plan, extras: Extras, progress: impl FnMut(u64, &Totals)) -> Summary {
    run_with(plan, extras, &AtomicBool::new(false), progress).expect("the simulator runs")
}

fn latency(args: &Args, system: &System) {
    println!(
        "| request | to the device's instance | seen | 202 p50 | 202 p99 | 202 to frame p50 | p99 | request to frame p50 | p99 | fsync p50 | p99 |"
    );
    println!("|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|");
    for _ in 0..args.rounds {
        for (ask, row, name) in [(Ask::Charges, "charge", "charge"), (Ask::Commands, "command", "named command")] {
            latency_round(args, system, ask, row, name);
        }
    }
}

fn latency_round(args: &Args, system: &System, ask: Ask, row: &str, name: &str) {
    let api = asking(system, ask, 20.0, 4, 1);
    let plan = plan(system, args.devices.unwrap_or(2_000), 1, 60, args.seconds.unwrap_or(30), Some(api));
    let (summary, fsync) = beside_fsyncs(|| simulate(&plan, Extras::default(), |_, _| {}));
    let api = summary.api.expect("it was asked");
    complain(&api);
    let told = |what: &str, times: &Option<Percentiles>| {
        for (quantile, us) in times.iter().flat_map(|times| [("p50_ms", times.p50_us), ("p99_ms", times.p99_us)]) {
            record(&format!("latency/{row}/{what}/{quantile}"), "ms", us as f64 / 1e3);
        }
    };
    told("answer", &api.latency);
    for (way, what, times) in [("yes", "same", &api.same_instance), ("no", "other", &api.other_instance)] {
        if times.seen > 0 {
            told(what, &times.after_answer);
            let [(answer_50, answer_99), frame, whole, fsync] =
                [&api.latency, &times.after_answer, &times.after_request, &fsync].map(ms);
            println!(
                "| {name} | {way} | {} | {answer_50} | {answer_99} | {} | {} | {} | {} | {} | {} |",
                times.seen, frame.0, frame.1, whole.0, whole.1, fsync.0, fsync.1
            );
        }
    }
}

/// Between two of the fsyncs that are measured: few enough to be no load.
const FSYNC_PAUSE: Duration = Duration::from_millis(50);

/// Runs `body` and measures beside it how long a page takes to the disk that holds the database: what a commit cannot be below.
fn beside_fsyncs<T>(body: impl FnOnce() -> T) -> (T, Option<Percentiles>) {
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let measured = scope.spawn(|| {
            let mut file = tempfile::tempfile().expect("a file in TMPDIR");
            let mut us = Histogram::<u64>::new_with_bounds(1, 60_000_000, 3).expect("sound bounds");
            while !done.load(Ordering::Relaxed) {
                let began = now();
                file.write_all(&[0; 8_192]).and_then(|()| file.sync_data()).expect("room on the disk");
                us.saturating_record(u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX));
                thread::sleep(FSYNC_PAUSE);
            }
            Percentiles::of(&us)
        });
        let result = body();
        done.store(true, Ordering::Relaxed);
        (result, measured.join().expect("the disk writes"))
    })
}

#[expect(clippy::disallowed_methods, reason = "the clock enters here")]
fn now() -> Instant {
    Instant::now()
}

fn orders(args: &Args, system: &System) {
    let api = asking(system, Ask::Charges, f64::INFINITY, args.clients, 900);
    let plan = plan(system, args.devices.unwrap_or(8_000), 10, 1, args.seconds.unwrap_or(30), Some(api));
    let summary = simulate(&plan, Extras::default(), |_, _| {});
    let api = summary.api.as_ref().expect("it was asked");
    complain(api);
    print_rate("orders", args.clients, api);
    println!(
        "{} charges began at the devices, {} starts were refused there",
        summary.totals.charges_started, summary.totals.charges_refused
    );
    let stored = system.query("SELECT CAST(status AS BIGINT), count(*) FROM orders GROUP BY status ORDER BY status");
    println!("orders in the store by status: {}", pairs(&stored));
}

fn commands(args: &Args, system: &System) {
    let api = asking(system, Ask::Commands, f64::INFINITY, args.clients, 1);
    let plan = plan(system, args.devices.unwrap_or(12_000), 1, 1, args.seconds.unwrap_or(30), Some(api));
    let summary = simulate(&plan, Extras::default(), |_, _| {});
    let api = summary.api.as_ref().expect("it was asked");
    complain(api);
    print_rate("commands", args.clients, api);
    let acked = "SELECT count(*), coalesce(max(updated_at) - min(created_at), 0) FROM outbound_queue \
                 WHERE kind = 'locate' AND state = 'acked'";
    let acked = system.query(acked);
    let (count, ms) = (acked[0][0], acked[0][1]);
    println!("{count} acknowledged by their devices, {:.0} per second", count as f64 * 1e3 / ms.max(1) as f64);
    let others =
        system.query("SELECT count(*), count(*) FROM outbound_queue WHERE kind = 'locate' AND state <> 'acked'");
    println!("{} in another state", others[0][0]);
}

/// Records per second that the chargers are to have first, and how much more each time until the gateway keeps up no longer.
const OFFERED_FIRST: f64 = 3_000.0;
const OFFERED_STEP: f64 = 1.5;

/// Cards that charge without the gateway leave a record at the charger at the end of each short charge. How many end per second is
/// given; it is raised until no more are acknowledged: chargers whose records wait send them again, and what is measured then is
/// how much is sent again.
fn settlements(args: &Args, system: &System) {
    println!("| offered/s | acknowledged/s | sent again/s | report to acknowledgement | CPU µs for each |");
    println!("|---:|---:|---:|---|---|");
    let mut first = OFFERED_FIRST;
    for _ in 0..args.rounds {
        let (mut best, mut offered) = (0.0_f64, first);
        loop {
            let acknowledged = settlements_at(args, system, offered);
            let grew = acknowledged > best * 1.05;
            best = best.max(acknowledged);
            if !grew || acknowledged < offered * 0.9 {
                break;
            }
            offered *= OFFERED_STEP;
        }
        println!("settlements acknowledged per second, at most: {best:.0}");
        // Later rounds need not look for it from so far below.
        first = (best / OFFERED_STEP).max(OFFERED_FIRST / OFFERED_STEP);
        let store = if system.postgres.is_some() { "postgres" } else { "embedded" };
        if system.instances.len() == 1 {
            record(&format!("settlements/{store}/per_s"), "/s", best);
        }
    }
    let stored = system.query("SELECT count(*), count(DISTINCT key) FROM settlements");
    println!("{} in the store, {} different", stored[0][0], stored[0][1]);
}

/// Acknowledged records per second where `offered` charges end per second.
fn settlements_at(args: &Args, system: &System, offered: f64) -> f64 {
    let devices = args.devices.unwrap_or(4_000);
    let seconds = args.seconds.unwrap_or(5).max(2);
    let swipe_every_us = (f64::from(devices) / offered * SECOND_US as f64) as u64;
    let activity = Activity { swipe_every_us, offline_percent: 100, cards: 1_000, ..Activity::default() };
    let plan = plan(system, devices, 16, 3_600, seconds, None);
    let before = system.query("SELECT count(*) FROM settlements")[0][0];
    let last = plan.duration.unwrap_or_default().as_secs();
    // Each second of the measured time: acknowledged, sent, CPU time.
    let mut marks: Vec<(u64, i64, i64, BTreeMap<String, f64>)> = Vec::new();
    let summary = simulate(&plan, Extras { activity, ..Extras::default() }, |second, totals| {
        if (last - seconds..last).contains(&second) {
            marks.push((second, totals.settled, totals.sent[Request::Settlement as usize], cpu_us()));
        }
    });
    let [(second_0, settled_0, sent_0, cpu_0), .., (second_1, settled_1, sent_1, cpu_1)] = &marks[..] else {
        panic!("{} seconds were measured", marks.len())
    };
    let (settled, sent) = (settled_1 - settled_0, sent_1 - sent_0);
    let per_second = |count: i64| count as f64 / (second_1 - second_0) as f64;
    let each = cpu_1.iter().map(|(who, us)| {
        let us = (us - cpu_0.get(who).unwrap_or(&0.0)) / settled.max(1) as f64;
        (who, us)
    });
    let each: Vec<String> = each.filter(|(_, us)| *us >= 1.0).map(|(who, us)| format!("{who} {us:.0}")).collect();
    let line = summary.requests.iter().find(|line| line.request == "settlement");
    let latency = line.and_then(|line| line.latency.as_ref()).map(ToString::to_string).unwrap_or_default();
    println!(
        "| {offered:.0} | {:.0} | {:.0} | {latency} | {} |",
        per_second(settled),
        per_second((sent - settled).max(0)),
        each.join(", ")
    );
    let stored = system.query("SELECT count(*) FROM settlements")[0][0] - before;
    assert!(stored >= summary.totals.settled, "{} acknowledged, {stored} in the store", summary.totals.settled);
    per_second(settled)
}

/// CPU time by the scheduler's count of this process, and of the processes it started: the gateway's by thread, others by program.
fn cpu_us() -> BTreeMap<String, f64> {
    let mut spent = BTreeMap::new();
    let own = std::process::id();
    let text = |path: String| std::fs::read_to_string(path).unwrap_or_default();
    // Descendants: the server's processes are children of its first.
    let mut ours = vec![own];
    let mut at = 0;
    while let Some(pid) = ours.get(at).copied() {
        at += 1;
        let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
        for task in tasks {
            let task = task.path().display().to_string();
            ours.extend(
                text(format!("{task}/children")).split(' ').filter_map(|child| child.trim().parse::<u32>().ok()),
            );
            let process = text(format!("/proc/{pid}/comm"));
            let who = match process.trim() {
                _ if pid == own => "simulator".to_owned(),
                "chargegate" => text(format!("{task}/comm"))
                    .trim()
                    .trim_end_matches(|c: char| c.is_ascii_digit() || c == '-')
                    .to_owned(),
                other => other.to_owned(),
            };
            let us = text(format!("{task}/schedstat")).split(' ').next().and_then(|ns| ns.parse::<f64>().ok());
            *spent.entry(who).or_default() += us.unwrap_or(0.0) / 1e3;
        }
    }
    spent
}

fn connections(args: &Args, system: &System) {
    let instances = u32::try_from(system.instances.len()).expect("few");
    let devices = args.devices.unwrap_or(50_001);
    let seconds = args.seconds.unwrap_or(180);
    let before: Vec<u64> = system.instances.iter().map(resident_kib).collect();
    let share = devices.div_ceil(instances);
    let ramp_s = u64::from(share.div_ceil(RAMP_PER_S / instances)) + SETTLE_S;
    let parts: Vec<Part> = (0..instances)
        .map(|nth| {
            let count = share.min(devices - share * nth);
            Part::start(share * nth, count, system.devices()[nth as usize], ramp_s + seconds, RAMP_PER_S / instances)
        })
        .collect();
    println!(
        "| second | devices connected | online | resident KiB of each instance | together MiB |\n|---:|---:|---:|---|---:|"
    );
    let mut second = 0;
    while second + 20 < ramp_s + seconds {
        thread::sleep(Duration::from_secs(20));
        second += 20;
        let resident: Vec<u64> = system.instances.iter().map(resident_kib).collect();
        let sum = |name: &str| system.instances.iter().map(|instance| instance.metric(name)).sum::<u64>();
        let connected = (0..args.shards).map(|shard| sum(&format!("chargegate_tcp_connections{{shard=\"{shard}\"}}")));
        let (connected, online) = (connected.sum::<u64>(), sum("chargegate_devices_online"));
        let together = resident.iter().sum::<u64>() / 1024;
        println!("| {second} | {connected} | {online} | {resident:?} | {together} |");
    }
    println!("resident KiB before the first device: {before:?}");
    for part in parts {
        println!("{}", part.finish());
    }
}

fn resident_kib(instance: &Gateway) -> u64 {
    instance.metric("process_resident_memory_bytes") / 1024
}

/// A simulator process: one has descriptors for the devices of one instance only.
struct Part(Child);

impl Part {
    fn start(first: u32, count: u32, connect: SocketAddr, seconds: u64, ramp_per_s: u32) -> Self {
        let mut command = Command::new(std::env::current_exe().expect("this program"));
        command.arg(format!("--part={first},{count},{connect},{seconds},{ramp_per_s}")).stdout(Stdio::piped());
        Self(command.spawn().expect("this program runs again"))
    }

    /// Waits for its end and says what came of it.
    fn finish(mut self) -> String {
        let out = self.0.stdout.take().expect("it is piped");
        let summary: Value = serde_json::from_reader(BufReader::new(out)).expect("a summary");
        drop(self.0.wait());
        let heartbeats =
            summary["requests"].as_array().into_iter().flatten().find(|line| line["request"] == "heartbeat");
        let heartbeats = heartbeats.unwrap_or(&Value::Null);
        format!(
            "{} devices, {} never connected, closed by the server {}; heartbeats {} sent, {} not answered, p50 {} us, p99 {} us, slowest {} us",
            summary["devices"],
            summary["never_connected"],
            summary["totals"]["closed_by_server"],
            heartbeats["sent"],
            heartbeats["unanswered"],
            heartbeats["p50_us"],
            heartbeats["p99_us"],
            heartbeats["max_us"],
        )
    }
}

fn simulate_part(part: &[String]) {
    let [first, count, connect, seconds, ramp] = part else { panic!("five words") };
    let number = |text: &str| text.parse::<u32>().expect("a number");
    let plan = Plan {
        connect: vec![connect.parse().expect("an address")],
        devices: number(count),
        protocol: Protocol::Mix,
        ports: 2,
        sockets: 0,
        ramp_per_s: number(ramp),
        duration: Some(Duration::from_secs(number(seconds).into())),
        drain: Duration::from_secs(10),
        behaviour: Behaviour { heartbeat_us: 60 * SECOND_US, time_factor: 1, seed: 1, unplugged_percent: 0 },
        source_addresses: 8,
        rude: Vec::new(),
        threads: 1,
        api: None,
    };
    let extras = Extras { first_device: number(first), ..Extras::default() };
    let summary = simulate(&plan, extras, |_, _| {});
    println!("{}", serde_json::to_string(&summary).expect("a summary is JSON"));
}

fn print_rate(what: &str, clients: u32, api: &ApiSummary) {
    println!(
        "| {what}, {clients} clients | accepted/s | 202 p50 | p99 | 202 to frame, same instance p50 | p99 | other p50 | p99 |"
    );
    println!("|---|---:|---:|---:|---:|---:|---:|---:|");
    let frame = |times: &ToFrame| ms(&times.after_answer);
    let (answer, same, other) = (ms(&api.latency), frame(&api.same_instance), frame(&api.other_instance));
    println!(
        "| | {:.0} | {} | {} | {} | {} | {} | {} |",
        api.accepted_per_s, answer.0, answer.1, same.0, same.1, other.0, other.1
    );
    let unseen = api.same_instance.unseen + api.other_instance.unseen;
    println!(
        "{} accepted, {unseen} of them not seen at their devices within 5 s",
        api.charges_accepted + api.commands_accepted
    );
}

fn complain(api: &ApiSummary) {
    for (code, count) in &api.refusals {
        println!("{count} answered {code}");
    }
    if api.no_free_port + api.skipped > 0 {
        println!("{} times no free port or device, {} requests skipped", api.no_free_port, api.skipped);
    }
}

/// Median and 99th percentile in milliseconds.
fn ms(times: &Option<Percentiles>) -> (String, String) {
    let text = |us: u64| format!("{:.2} ms", us as f64 / 1e3);
    times.as_ref().map_or_else(|| ("–".into(), "–".into()), |times| (text(times.p50_us), text(times.p99_us)))
}

fn pairs(rows: &[Vec<i64>]) -> String {
    rows.iter().map(|row| format!("{} × {}", row[0], row[1])).collect::<Vec<_>>().join(", ")
}

fn raise_descriptor_limit() {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: both calls are given a valid structure.
    unsafe {
        libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit);
        limit.rlim_cur = limit.rlim_max;
        libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit);
    }
}
