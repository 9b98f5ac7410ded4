//! The shipped scenarios against a gateway of the release build: what `chargegate-sim scenario` would say, recorded as figures.
//!
//! ```text
//! this process: the scenario's devices and API clients, open loop ──TCP, HTTP──▶ gateway, one shard ──▶ SQLite, or PostgreSQL with fsync
//! ```
//!
//! ```sh
//! cargo bench --bench scenarios                                   # the reconnect storm, embedded
//! cargo bench --bench scenarios -- reconnect_storm --rounds 5
//! cargo bench --bench scenarios -- settlement_storm --postgres --html target/bench
//! cargo bench --bench scenarios -- steady --set fleet.devices=5000
//! ```
//!
//! Both sides share the machine's cores, so the generator's own CPU and lateness are printed with the figures. A round whose generator
//! was late is printed and not recorded: its latencies are not the gateway's. Limits of the gateway are as delivered: it accepts 10,000
//! connections a second, and 20,000 at once after a quiet time, which is more than a storm here brings.
//!
//! Data is in TMPDIR: set it to the disk that is meant. Needs `ulimit -Hn` above 17,300.

#[path = "../../tests/gateway/mod.rs"]
mod gateway;
#[path = "../../tests/services/mod.rs"]
mod services;
#[path = "../support/mod.rs"]
mod support;

use std::{env, fs, path::PathBuf, sync::Arc};

use chargegate_loadtest::{
    processes::{needed, run, worker},
    report::{html, json::Report, json::Result},
    scenario::Scenario,
    worker::Target,
};
use clap::Parser;

use gateway::{Engine, Gateway, KEY};
use services::{Persistence, Postgres, PostgresOptions, Redis};
use support::record;

#[derive(Parser)]
struct Args {
    /// Names of files in loadtest/scenarios, without `.toml`.
    #[arg(default_values_t = ["reconnect_storm".to_owned()])]
    scenarios: Vec<String>,
    /// How often each.
    #[arg(long, default_value_t = 1)]
    rounds: u32,
    /// On PostgreSQL with fsync, and Redis, instead of SQLite.
    #[arg(long)]
    postgres: bool,
    /// Shards of the gateway.
    #[arg(long, default_value_t = 1)]
    shards: u32,
    /// Put a value in the place of the file's, as `chargegate-sim scenario --set`.
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Write the pages of the last rounds into this directory.
    #[arg(long, value_name = "DIRECTORY")]
    html: Option<PathBuf>,
    /// Show each second.
    #[arg(long)]
    progress: bool,
    /// Passed by cargo.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() {
    // A further process of a scenario.
    if env::args().nth(1).as_deref() == Some("worker") {
        return worker().expect("its parent tells it what to do");
    }
    let args = Args::parse();
    for name in &args.scenarios {
        let path = format!("{}/loadtest/scenarios/{name}.toml", env!("CARGO_MANIFEST_DIR"));
        let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
        let scenario = Scenario::parse(&text, &args.set).unwrap_or_else(|error| panic!("{path}: {error}"));
        for round in 1..=args.rounds {
            println!("\nround {round}, {}", if args.postgres { "PostgreSQL and Redis" } else { "embedded" });
            let report = measure(&args, &scenario);
            println!("{report}");
            if let Some(directory) = &args.html {
                fs::create_dir_all(directory).expect("a directory for pages");
                fs::write(directory.join(format!("{name}.html")), html::page(&report)).expect("a page");
            }
            figures(&args, &scenario, &report);
        }
    }
}

fn measure(args: &Args, scenario: &Scenario) -> Report {
    let servers = args.postgres.then(|| {
        let settings = vec![("shared_buffers".into(), "256MB".into()), ("max_wal_size".into(), "4GB".into())];
        let postgres = Postgres::start(&PostgresOptions { fsync: true, settings });
        let redis = Redis::start(Persistence::None);
        let (store, queue) = (postgres.database("bench"), redis.url());
        (postgres, redis, store, queue)
    });
    let shards = args.shards.to_string();
    let mut variables = vec![
        ("CHARGEGATE_SHARD_COUNT", shards.as_str()),
        ("CHARGEGATE_LOG_LEVEL", "warn"),
        // Questions for ports would be taken for the commands that are waited for.
        ("CHARGEGATE_JOBS_PORT_SYNC_INTERVAL", "24h"),
    ];
    if let Some((_, _, store, queue)) = &servers {
        variables.extend([("CHARGEGATE_STORE_URL", store.as_str()), ("CHARGEGATE_QUEUE_URL", queue)]);
    }
    let gateway = Gateway::start(Engine::Mio, &variables).expect("epoll is everywhere");
    let target = Target { connect: vec![gateway.devices], api: vec![gateway.http], key: KEY.to_owned(), secret: None };
    let program = env::current_exe().expect("this program");
    let report = run(scenario, &target, needed(scenario), Some(&program), &Arc::default(), |line| {
        if args.progress {
            println!("{line}");
        }
    });
    report.expect("the scenario runs")
}

/// The rows of a scenario, from the phase that they are about.
fn figures(args: &Args, scenario: &Scenario, report: &Report) {
    if report.result == Result::Invalid {
        return println!("not recorded: the generator was late");
    }
    let store = if args.postgres { "postgres/" } else { "" };
    let rows: &[(&str, &str, &str)] = match scenario.name.as_str() {
        "reconnect_storm" => &[
            ("storm/{}bound_per_s", "/s", "storm/bound_per_s"),
            ("storm/{}heartbeat_p99_ms", "ms", "storm/heartbeat.p99_ms"),
            ("storm/{}api_p99_ms", "ms", "storm/api.status.p99_ms"),
            ("storm/{}back_per_s", "/s", "back/bound_per_s"),
            ("storm/{}generator_late_p99_ms", "ms", "storm/late.p99_ms"),
            ("storm/{}generator_cpu_percent", "%", "sim.cpu_percent"),
        ],
        "steady" => &[
            ("steady/{}heartbeats_per_s", "/s", "steady/heartbeat.per_s"),
            ("steady/{}heartbeat_p99_ms", "ms", "steady/heartbeat.p99_ms"),
        ],
        "settlement_storm" => &[
            ("settlement_storm/{}settled_per_s", "/s", "records/settled_per_s"),
            ("settlement_storm/{}p99_ms", "ms", "settlement.p99_ms"),
        ],
        "command_storm" => &[
            ("command_storm/{}accepted_per_s", "/s", "commands/api.commands_per_s"),
            ("command_storm/{}frame_p99_ms", "ms", "frame.command.p99_ms"),
        ],
        _ => &[],
    };
    for (row, unit, figure) in rows {
        if let Some(value) = report.figure(figure) {
            record(&row.replace("{}", store), unit, value);
        }
    }
}
