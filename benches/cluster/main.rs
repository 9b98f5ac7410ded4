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
//! cargo bench --bench cluster -- settlements --embedded --kill   # what was acknowledged is in the store, also after a kill -9
//! cargo bench --bench cluster -- connections                 # 50,001 devices on three instances, for three minutes, then storms
//! ```
//!
//! | scenario | what is measured |
//! |---|---|
//! | `latency` | 20 charges, then 20 named commands a second, each to another device: request to 202, 202 to the frame at the device; beside them, what a bare fsync takes |
//! | `orders` | charges from keep-alive clients, each with one request under way, over distinct ports; what follows an order until it charges is part of the load |
//! | `commands` | the same with named commands to distinct devices; acknowledged by the devices, as the store has it |
//! | `settlements` | end reports of AP3000 chargers, acknowledged after their commit: how many are offered is raised until no more are acknowledged |
//! | `connections` | three instances with 50,001 devices: how fast devices never seen are accepted and bound, memory of the instances and of the kernel while they beat, whether every heartbeat is answered; then, with the same devices again, one instance and all of them killed and started again, until every device is bound |
//!
//! `orders` and `commands` also say how much CPU time each accepted request cost, process by process, with all that follows it; with
//! `--statements` which statements PostgreSQL ran for it.
//!
//! Data is in TMPDIR: set it to the disk that is meant. `connections` needs `ulimit -Hn` above 17,300 and as many ports for each of the
//! loopback addresses as `net.ipv4.ip_local_port_range` has by default.

#[path = "../support/cpu.rs"]
mod cpu;
#[path = "../../tests/gateway/mod.rs"]
mod gateway;
#[path = "../../tests/services/mod.rs"]
mod services;
mod spent;
#[path = "../support/mod.rs"]
mod support;

use std::{
    collections::BTreeMap,
    fmt,
    io::{self, BufReader, Write as _},
    net::SocketAddr,
    ops::Range,
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
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
use spent::Watch;
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
    /// Rounds of each scenario, each on an empty system.
    #[arg(long, default_value_t = 1)]
    rounds: u32,
    /// Storms of each kind in `connections`.
    #[arg(long, default_value_t = 1)]
    storms: usize,
    /// Print what PostgreSQL did for each request of `orders` and `commands`, statement by statement; costs some of its time.
    #[arg(long)]
    statements: bool,
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
    #[arg(long, default_value_t = 2)]
    lanes: u32,
    /// Kill the gateway amid 10,000 `settlements` a second, as a power cut would, and start it again.
    #[arg(long)]
    kill: bool,
    /// Settings of PostgreSQL, as NAME=VALUE.
    #[arg(long = "set", default_values_t = ["shared_buffers=256MB".to_owned(), "max_wal_size=4GB".to_owned()])]
    settings: Vec<String>,
    /// Devices of `connections` that connect per second, over all instances.
    #[arg(long, default_value_t = 12_000)]
    ramp: u32,
    /// Be a simulator: first device, number of devices, where to connect, how many per second.
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
            for _ in 0..args.rounds {
                let mut system = System::start(&args, *instances);
                println!("\n{scenario:?}, {}", system.name);
                match scenario {
                    Scenario::Latency => latency(&args, &system),
                    Scenario::Orders => orders(&args, &system),
                    Scenario::Commands => commands(&args, &system),
                    Scenario::Settlements => settlements(&args, &mut system),
                    Scenario::Connections => connections(&args, &mut system),
                }
            }
        }
    }
}

/// The gateway with what it needs. Dropped in this order, all of it ends.
struct System {
    name: String,
    instances: Vec<Gateway>,
    postgres: Option<(Postgres, String)>,
    redis: Option<Redis>,
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
            return Self { name: "embedded".to_owned(), instances: vec![instance], postgres: None, redis: None };
        }
        let setting = |text: &String| {
            let (name, value) = text.split_once('=').expect("NAME=VALUE");
            (name.to_owned(), value.to_owned())
        };
        let mut settings: Vec<_> = args.settings.iter().map(setting).collect();
        if args.statements {
            settings.push(("shared_preload_libraries".to_owned(), "pg_stat_statements".to_owned()));
            settings.push(("pg_stat_statements.track_planning".to_owned(), "on".to_owned()));
        }
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
        Self { name, instances: running, postgres: Some((postgres, store)), redis: Some(redis) }
    }

    /// What its figures are called.
    fn row(&self) -> String {
        match (&self.postgres, self.instances.len()) {
            (None, _) => "embedded".to_owned(),
            (Some(_), 1) => "postgres".to_owned(),
            (Some(_), instances) => format!("postgres{instances}"),
        }
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

/// As [`simulate`], with what the clients' requests cost while they asked.
fn watched(args: &Args, system: &System, plan: &Plan) -> (Summary, Watch) {
    let mut watch = Watch::new(system, args.statements);
    let from = plan.api.as_ref().map_or(0, |api| api.after.as_secs());
    let to = plan.duration.unwrap_or_default().as_secs();
    let summary = simulate(plan, Extras::default(), |second, _| match second {
        second if second == from => watch.begin(system),
        second if second == to => watch.end(system),
        _ => {}
    });
    (summary, watch)
}

fn latency(args: &Args, system: &System) {
    println!(
        "| request | to the device's instance | seen | 202 p50 | 202 p99 | 202 to frame p50 | p99 | request to frame p50 | p99 | fsync p50 | p99 |"
    );
    println!("|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|");
    for (ask, row, name) in [(Ask::Charges, "charge", "charge"), (Ask::Commands, "command", "named command")] {
        latency_of(args, system, ask, row, name);
    }
}

fn latency_of(args: &Args, system: &System, ask: Ask, row: &str, name: &str) {
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
    told("fsync", &fsync);
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
    let (summary, watch) = watched(args, system, &plan);
    let api = summary.api.as_ref().expect("it was asked");
    complain(api);
    print_rate("orders", args.clients, api);
    let row = format!("orders/{}", system.row());
    record(&format!("{row}/per_s"), "/s", api.accepted_per_s);
    watch.print(&row, api.charges_accepted);
    println!(
        "{} charges began at the devices, {} starts were refused there",
        summary.totals.charges_started, summary.totals.charges_refused
    );
    let stored = system.query("SELECT CAST(status AS BIGINT), count(*) FROM orders GROUP BY status ORDER BY status");
    println!("orders in the store by status: {}", pairs(&stored));
}

fn commands(args: &Args, system: &System) {
    let api = asking(system, Ask::Commands, f64::INFINITY, args.clients, 1);
    let seconds = args.seconds.unwrap_or(30);
    let plan = plan(system, args.devices.unwrap_or(12_000), 1, 1, seconds, Some(api));
    let (summary, watch) = watched(args, system, &plan);
    let api = summary.api.as_ref().expect("it was asked");
    complain(api);
    print_rate("commands", args.clients, api);
    // Those that were acknowledged while the clients went on asking: what is left behind at the end does not count.
    let acked = format!(
        "SELECT count(*), coalesce(sum(CASE WHEN updated_at <= {} + (SELECT min(created_at) FROM outbound_queue \
         WHERE kind = 'locate') THEN 1 ELSE 0 END), 0) FROM outbound_queue WHERE kind = 'locate' AND state = 'acked'",
        seconds * 1_000
    );
    let acked = system.query(&acked);
    let (count, rate) = (acked[0][0], acked[0][1] as f64 / seconds as f64);
    println!("{count} acknowledged by their devices, {rate:.0} per second");
    let row = format!("commands/{}", system.row());
    record(&format!("{row}/per_s"), "/s", rate);
    record(&format!("{row}/accepted_per_s"), "/s", api.accepted_per_s);
    watch.print(&row, api.commands_accepted);
    let others =
        system.query("SELECT count(*), count(*) FROM outbound_queue WHERE kind = 'locate' AND state <> 'acked'");
    println!("{} in another state", others[0][0]);
}

/// Records per second that the chargers are to have first, and how much more each time until the gateway keeps up no longer.
const OFFERED_FIRST: f64 = 3_000.0;
const OFFERED_STEP: f64 = 1.5;
/// As many as there are meant to be: what a kill may lose is what waits for its commit.
const OFFERED_AT_KILL: f64 = 10_000.0;

/// Cards that charge without the gateway leave a record at the charger at the end of each short charge. How many end per second is
/// given; it is raised until no more are acknowledged: chargers whose records wait send them again, and what is measured then is
/// how much is sent again.
fn settlements(args: &Args, system: &mut System) {
    println!("| offered/s | acknowledged/s | sent again/s | report to acknowledgement | CPU µs for each |");
    println!("|---:|---:|---:|---|---|");
    let (mut best, mut offered) = (0.0_f64, if args.kill { OFFERED_AT_KILL } else { OFFERED_FIRST });
    for step in 0.. {
        let acknowledged = settlements_at(args, system, step, offered);
        let grew = acknowledged > best * 1.05;
        best = best.max(acknowledged);
        if args.kill || !grew || acknowledged < offered * 0.9 {
            break;
        }
        offered *= OFFERED_STEP;
    }
    println!("settlements acknowledged per second, at most: {best:.0}");
    let store = if system.postgres.is_some() { "postgres" } else { "embedded" };
    if system.instances.len() == 1 {
        record(&format!("settlements/{store}/per_s"), "/s", best);
    }
    let stored = system.query("SELECT count(*), count(DISTINCT key) FROM settlements");
    println!("{} in the store, {} different", stored[0][0], stored[0][1]);
}

/// Acknowledged records per second where `offered` charges end per second. Each step has devices of its own: those of an earlier one
/// would begin to count their records anew, and one that is like an old one is a replay.
fn settlements_at(args: &Args, system: &mut System, step: u32, offered: f64) -> f64 {
    let devices = args.devices.unwrap_or(4_000);
    let seconds = args.seconds.unwrap_or(5).max(2);
    let swipe_every_us = (f64::from(devices) / offered * SECOND_US as f64) as u64;
    let activity = Activity { swipe_every_us, offline_percent: 100, cards: 1_000, ..Activity::default() };
    let plan = plan(system, devices, 16, 3_600, seconds, None);
    let before = system.query("SELECT count(*) FROM settlements")[0][0];
    let last = plan.duration.unwrap_or_default().as_secs();
    // Each second of the measured time: acknowledged, sent, CPU time.
    let mut marks: Vec<(u64, i64, i64, BTreeMap<String, f64>)> = Vec::new();
    let extras = Extras { activity, first_device: step * devices, ..Extras::default() };
    let summary = simulate(&plan, extras, |second, totals| {
        if (last - seconds..last).contains(&second) {
            marks.push((second, totals.settled, totals.sent[Request::Settlement as usize], cpu_us()));
        }
        if args.kill && second == last - seconds / 2 {
            system.instances.iter_mut().for_each(Gateway::kill9);
            system.instances.iter_mut().for_each(Gateway::start_again);
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
    if args.kill {
        println!("killed amid it: {} acknowledged, {stored} in the store", summary.totals.settled);
    }
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

/// Seconds between two lines of the table of `connections`.
const LINE_S: u64 = 20;
/// Between two looks at a counter while devices come: short beside what is measured, and rare enough to cost nothing.
const LOOK: Duration = Duration::from_millis(200);
/// How long devices may take to come, and to come back.
const ALL_THERE: Duration = Duration::from_secs(600);

/// Two fleets, one after the other: devices never seen, which stay and beat for the seconds of measuring, and the same devices again, of
/// whose instances one is killed and started again, then all of them.
fn connections(args: &Args, system: &mut System) {
    let devices = args.devices.unwrap_or(50_001);
    let empty = Memory::of(system);
    println!("resident KiB before the first device: {:?}", empty.resident_kib);
    let fleet = Simulated::start(args, system, devices);
    let joined = fleet.joined(system);
    println!("devices never seen: {joined}");
    rate("fleet/accept_per_s", joined.accepted_per_s);
    rate("fleet/first_bound_per_s", joined.bound_per_s);
    thread::sleep(Duration::from_secs(SETTLE_S));
    println!("| second | devices online | resident KiB of each instance | together MB |\n|---:|---:|---|---:|");
    let began = now();
    let seconds = args.seconds.unwrap_or(180);
    loop {
        let resident = Memory::of(system).resident_kib;
        let together = resident.iter().sum::<u64>() as f64 * 1024.0 / 1e6;
        let second = now().duration_since(began).as_secs();
        println!("| {second} | {} | {resident:?} | {together:.1} |", system.sum(ONLINE));
        if second >= seconds {
            break;
        }
        thread::sleep(Duration::from_secs(LINE_S.min(seconds - second)));
    }
    let full = Memory::of(system);
    let each = |after: u64, before: u64| (after as f64 - before as f64) / f64::from(devices);
    let resident = |memory: &Memory| memory.resident_kib.iter().sum::<u64>() * 1024;
    let user = each(resident(&full), resident(&empty));
    let (slab, buffers) = (each(full.slab, empty.slab), each(full.buffers, empty.buffers));
    println!(
        "for each device: {user:.0} bytes of the instances, {slab:.0} of the kernel's slab and {buffers:.0} of socket buffers;"
    );
    println!("what is the kernel's is of both ends of a connection, and of whatever else the machine did meanwhile");
    record("fleet/connections", "", system.sum(ONLINE) as f64);
    record("fleet/resident_mb", "MB", resident(&full) as f64 / 1e6);
    record("fleet/bytes_per_device", "bytes", user);
    record("fleet/kernel_bytes_per_device", "bytes", (slab + buffers) / 2.0);
    fleet.finish();

    if args.storms == 0 {
        return;
    }
    // Nobody is online after a start; before it, those of the first fleet are, for their grace.
    for instance in &mut system.instances {
        instance.start_again();
    }
    let fleet = Simulated::start(args, system, devices);
    let joined = fleet.joined(system);
    println!("the same devices again: {joined}");
    rate("fleet/bound_per_s", joined.bound_per_s);
    for round in 0..args.storms {
        let nth = round % system.instances.len();
        let one = fleet.storm(system, nth..nth + 1);
        println!("one instance killed and started again: {one}");
        record("fleet/recovery_s", "s", one.all_s);
        let all = 0..system.instances.len();
        let all = fleet.storm(system, all);
        println!("all instances killed and started again: {all}");
        record("fleet/recovery_all_s", "s", all.all_s);
    }
    fleet.finish();
}

/// Leaves a rate; a rise that came between two looks has none.
fn rate(row: &str, per_s: f64) {
    if per_s.is_finite() {
        record(row, "/s", per_s);
    }
}

const ONLINE: &str = "chargegate_devices_online";
const ACCEPTED: &str = "chargegate_tcp_accepted_total";

impl System {
    /// A counter or gauge of all instances.
    fn sum(&self, name: &str) -> u64 {
        self.instances.iter().map(|instance| instance.metric(name)).sum()
    }
}

/// What is held now.
struct Memory {
    resident_kib: Vec<u64>,
    /// Bytes of the kernel's objects: sockets, files, epoll entries.
    slab: u64,
    /// Bytes of what waits in TCP's sockets.
    buffers: u64,
}

impl Memory {
    fn of(system: &System) -> Self {
        let number = |file: &str, line: &str, after: &str| {
            let text = std::fs::read_to_string(file).unwrap_or_else(|error| panic!("{file}: {error}"));
            let line = text.lines().find_map(|text| text.strip_prefix(line)).expect("a line of every kernel");
            let mut words = line.split_whitespace().skip_while(|word| !after.is_empty() && *word != after);
            if !after.is_empty() {
                words.next();
            }
            words.next().and_then(|word| word.parse::<u64>().ok()).expect("a number")
        };
        Self {
            resident_kib: system.instances.iter().map(|instance| instance.resident() / 1024).collect(),
            slab: number("/proc/meminfo", "Slab:", "") * 1024,
            buffers: number("/proc/net/sockstat", "TCP:", "mem") * 4096,
        }
    }
}

/// How devices came.
struct Joined {
    devices: u64,
    accepted_per_s: f64,
    bound_per_s: f64,
    /// Until all were bound.
    all_s: f64,
}

impl fmt::Display for Joined {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { devices, accepted_per_s, bound_per_s, all_s } = self;
        write!(f, "{devices} bound after {all_s:.1} s; accepted {accepted_per_s:.0}/s, bound {bound_per_s:.0}/s")
    }
}

/// The middle of a rise: from a tenth to nine tenths of what there is in the end.
#[derive(Default)]
struct Rise(Vec<(f64, u64)>);

impl Rise {
    fn per_s(&self, whole: u64) -> f64 {
        let at = |share: u64| self.0.iter().find(|(_, count)| *count >= whole * share / 10);
        match (at(1), at(9)) {
            (Some(first), Some(last)) if last.0 > first.0 => (last.1 - first.1) as f64 / (last.0 - first.0),
            _ => f64::NAN,
        }
    }
}

/// Simulators, one for each instance.
struct Simulated {
    parts: Vec<Part>,
    share: u32,
    devices: u32,
    began: Instant,
}

impl Simulated {
    fn start(args: &Args, system: &System, devices: u32) -> Self {
        let instances = u32::try_from(system.instances.len()).expect("few");
        let share = devices.div_ceil(instances);
        let began = now();
        let part = |nth: u32| {
            let (first, count) = (share * nth, share.min(devices - share * nth));
            Part::start(first, count, system.devices()[nth as usize], (args.ramp / instances).max(1))
        };
        Self { parts: (0..instances).map(part).collect(), share, devices, began }
    }

    /// Waits until all devices are bound.
    fn joined(&self, system: &System) -> Joined {
        watch(system, 0..system.instances.len(), u64::from(self.devices), self.began)
    }

    /// Kills instances as a power cut would, starts them again, and waits until their devices are back. The time is from when the
    /// last of them listens.
    fn storm(&self, system: &mut System, which: Range<usize>) -> Joined {
        for instance in &mut system.instances[which.clone()] {
            instance.kill9();
        }
        for instance in &mut system.instances[which.clone()] {
            instance.start_again();
        }
        let last = u64::from(self.devices) - u64::from(self.share) * (self.parts.len() as u64 - 1);
        let devices = which.clone().map(|nth| if nth + 1 == self.parts.len() { last } else { self.share.into() }).sum();
        watch(system, which, devices, now())
    }

    fn finish(self) {
        for part in self.parts {
            println!("{}", part.finish());
        }
    }
}

/// Looks on until `devices` are bound at `which` of the instances.
fn watch(system: &System, which: Range<usize>, devices: u64, began: Instant) -> Joined {
    let (mut accepted, mut bound) = (Rise::default(), Rise::default());
    loop {
        let sum =
            |name: &str| system.instances[which.clone()].iter().map(|instance| instance.metric(name)).sum::<u64>();
        let all_s = now().duration_since(began).as_secs_f64();
        let online = sum(ONLINE);
        accepted.0.push((all_s, sum(ACCEPTED)));
        bound.0.push((all_s, online));
        if online >= devices {
            let (accepted_per_s, bound_per_s) = (accepted.per_s(devices), bound.per_s(devices));
            return Joined { devices, accepted_per_s, bound_per_s, all_s };
        }
        assert!(all_s < ALL_THERE.as_secs_f64(), "{online} of {devices} devices are bound after {all_s:.0} s");
        thread::sleep(LOOK);
    }
}

/// A simulator process: one has descriptors for the devices of one instance only.
struct Part(Child);

impl Part {
    fn start(first: u32, count: u32, connect: SocketAddr, ramp_per_s: u32) -> Self {
        let mut command = Command::new(std::env::current_exe().expect("this program"));
        command.arg(format!("--part={first},{count},{connect},{ramp_per_s}"));
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        Self(command.spawn().expect("this program runs again"))
    }

    /// Ends it and says what came of it.
    fn finish(mut self) -> String {
        drop(self.0.stdin.take());
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

impl Drop for Part {
    fn drop(&mut self) {
        // After an end in order there is nothing to kill.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

fn simulate_part(part: &[String]) {
    let [first, count, connect, ramp] = part else { panic!("four words") };
    let number = |text: &str| text.parse::<u32>().expect("a number");
    let plan = Plan {
        connect: vec![connect.parse().expect("an address")],
        devices: number(count),
        protocol: Protocol::Mix,
        ports: 2,
        sockets: 0,
        ramp_per_s: number(ramp),
        duration: None,
        drain: Duration::from_secs(10),
        behaviour: Behaviour { heartbeat_us: 60 * SECOND_US, time_factor: 1, seed: 1, unplugged_percent: 0 },
        source_addresses: 8,
        rude: Vec::new(),
        threads: 1,
        api: None,
    };
    let extras = Extras { first_device: number(first), ..Extras::default() };
    let stop = Arc::new(AtomicBool::new(false));
    let over = Arc::clone(&stop);
    thread::spawn(move || {
        // The bench closes it when it has seen enough, and its end closes it too.
        drop(io::copy(&mut io::stdin(), &mut io::sink()));
        over.store(true, Ordering::Relaxed);
    });
    let summary = run_with(&plan, extras, &stop, |_, _| {}).expect("the simulator runs");
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
