//! Durable throughput of the clustered store through its contract, on a private PostgreSQL with `fsync = on`: every job is answered after
//! its commit. Figures depend on how long the disk's sync takes, and on who else uses the cores: the server runs beside the bench.
//!
//! ```sh
//! cargo bench --bench store_postgres                         # data in TMPDIR: set it to the disk that is meant
//! cargo bench --bench store_postgres -- --lanes 2,4,8 --rounds 3
//! ```
//!
//! | row | what is counted |
//! |---|---|
//! | first binds | devices seen for the first time, 1,024 under way |
//! | binds | the same devices again, as after a restart |
//! | creations | orders with their event and claimed start, one request each from 64 clients, over distinct ports |
//! | settlements | first reports of AP3000 records of charging orders, 1,024 under way; each ends its order and appends its events |
//! | records | records of AP3000 cards that charged without the gateway, 1,024 under way; each makes an order that has ended |
//! | commands | named commands to distinct devices, each queued, claimed, written and acknowledged in four commits, 1,024 under way |
//!
//! Each round of each row has a database of its own; rounds of all rows alternate. The table shows medians. CPU time per job, of this
//! process and of all of the server's, says what a machine whose cores nobody else uses could do.

#[path = "../tests/services/mod.rs"]
mod services;
mod store;
mod support;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use chargegate::{
    model::{OrderNumbers, ServerId},
    store::{
        Store as _,
        postgres::{Options, PostgresStore, Timeouts, migrate},
    },
};
use clap::Parser;

use services::{Postgres, PostgresOptions};
use store::{AT, CLIENTS, Nobody, UNDER_WAY};

#[derive(Parser)]
struct Args {
    /// Rounds of each row.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Orders, settlements and commands of a round.
    #[arg(long, default_value_t = 20_000)]
    jobs: usize,
    /// Transactions under way at a time (`store.lanes`).
    #[arg(long, value_delimiter = ',', default_values_t = [2])]
    lanes: Vec<usize>,
    /// Settings of the server, as NAME=VALUE.
    #[arg(long = "set", value_delimiter = ' ', default_values_t = ["shared_buffers=256MB".to_owned(), "max_wal_size=4GB".to_owned()])]
    settings: Vec<String>,
    /// Passed by cargo.
    #[arg(long, hide = true)]
    bench: bool,
}

const ROWS: [&str; 6] = ["first binds", "binds", "creations", "settlements", "records", "commands"];

#[expect(clippy::disallowed_methods, reason = "the clock enters here")]
fn now() -> Instant {
    Instant::now()
}

fn main() {
    let args = Args::parse();
    let setting = |text: &String| {
        let (name, value) = text.split_once('=').expect("NAME=VALUE");
        (name.to_owned(), value.to_owned())
    };
    let settings = args.settings.iter().map(setting).collect();
    let server = Postgres::start(&PostgresOptions { fsync: true, settings });
    let template = server.database("template");
    migrate(&template, Timeouts::default()).expect("the schema");
    // By lanes and row.
    let mut all: Vec<[Vec<Figure>; ROWS.len()]> = args.lanes.iter().map(|_| Default::default()).collect();
    for round in 0..args.rounds {
        for (lanes, rows) in args.lanes.iter().zip(&mut all) {
            for (row, figures) in rows.iter_mut().enumerate() {
                let url = server.database_like(&template, &ROWS[row].replace(' ', "_"));
                let figure = measure(&server, &url, *lanes, row, args.jobs);
                // Others than the default are compared here, by whoever asks for them.
                if args.lanes.len() == 1 {
                    let name = format!("store/postgres/{}", ROWS[row].replace(' ', "_"));
                    support::record(&format!("{name}/per_s"), "/s", figure.per_second);
                    support::record(&format!("{name}/cpu_us/here"), "µs", figure.own_us);
                    support::record(&format!("{name}/cpu_us/postgres"), "µs", figure.server_us);
                }
                figures.push(figure);
                let (_, name) = url.rsplit_once('/').expect("a URL of this server");
                // What one round leaves to vacuum and to write out shall not slow the next one.
                let drop = format!("DROP DATABASE \"{name}\"");
                let mut client = server.client();
                client
                    .batch_execute(&drop)
                    .and_then(|()| client.batch_execute("CHECKPOINT"))
                    .expect("nobody is connected");
            }
        }
        eprintln!("round {} of {} done", round + 1, args.rounds);
    }
    println!("| jobs | lanes | per second, median | least | most | CPU µs each, here | PostgreSQL |");
    println!("|---|---:|---:|---:|---:|---:|---:|");
    for (lanes, rows) in args.lanes.iter().zip(&all) {
        for (row, figures) in ROWS.iter().zip(rows) {
            let sorted = |of: fn(&Figure) -> f64| {
                let mut all: Vec<f64> = figures.iter().map(of).collect();
                all.sort_unstable_by(f64::total_cmp);
                all
            };
            let median = |of| sorted(of)[figures.len() / 2];
            let rates = sorted(|figure| figure.per_second);
            println!(
                "| {row} | {lanes} | {:.0} | {:.0} | {:.0} | {:.0} | {:.0} |",
                rates[rates.len() / 2],
                rates[0],
                rates[rates.len() - 1],
                median(|figure| figure.own_us),
                median(|figure| figure.server_us),
            );
        }
    }
}

/// One round of one row.
struct Figure {
    per_second: f64,
    /// CPU time per job, of this process.
    own_us: f64,
    /// The same of the server's processes.
    server_us: f64,
}

/// One round of one row on an empty database.
fn measure(server: &Postgres, url: &str, lanes: usize, row: usize, jobs: usize) -> Figure {
    let options = Options { clock: || AT, lanes, ..Options::new(url, ServerId::new("bench")) };
    let opened = PostgresStore::open(options, Arc::new(Nobody)).expect("a store");
    let numbers = OrderNumbers::new(*b"THD", 1);
    match row {
        0 => {}
        1 | 5 => store::bind(&opened, jobs),
        4 => store::bind(&opened, store::RECORDING),
        _ => store::bind(&opened, store::devices(jobs)),
    }
    let (orders, creations): (Vec<_>, Vec<_>) = store::creations(&numbers, jobs).into_iter().unzip();
    let timed = |work: &mut dyn FnMut()| {
        let (own, theirs, began) = (cpu_us("/proc/self"), server_cpu_us(server), now());
        work();
        let seconds = now().duration_since(began).as_secs_f64();
        Figure {
            per_second: jobs as f64 / seconds,
            own_us: (cpu_us("/proc/self") - own) / jobs as f64,
            server_us: (server_cpu_us(server) - theirs) / jobs as f64,
        }
    };
    let mut creations = Some(creations);
    let mut create = |under_way| store::run(&opened, creations.take().expect("once"), under_way);
    let figure = match row {
        0 | 1 => timed(&mut || store::bind(&opened, jobs)),
        2 => timed(&mut || create(CLIENTS)),
        3 => {
            create(UNDER_WAY);
            store::run(&opened, store::evidence(&orders), UNDER_WAY);
            let mut settlements = Some(store::settlements(&orders));
            timed(&mut || store::run(&opened, settlements.take().expect("once"), UNDER_WAY))
        }
        4 => {
            let mut records = Some(store::records(jobs));
            timed(&mut || store::run(&opened, records.take().expect("once"), UNDER_WAY))
        }
        _ => timed(&mut || store::commands(&opened, jobs, UNDER_WAY)),
    };
    opened.close(Duration::from_secs(10));
    figure
}

/// CPU time of the server's processes that live now; those of the store live as long as it is open.
fn server_cpu_us(server: &Postgres) -> f64 {
    let pids = server.client().query("SELECT pid FROM pg_stat_activity", &[]).expect("the server answers");
    pids.iter().map(|row| cpu_us(&format!("/proc/{}", row.get::<_, i32>(0)))).sum()
}

/// CPU time of a process's threads by the scheduler's count; 0: it has ended.
fn cpu_us(process: &str) -> f64 {
    let tasks = std::fs::read_dir(format!("{process}/task")).into_iter().flatten().flatten();
    let spent = tasks.filter_map(|task| {
        let schedstat = std::fs::read_to_string(task.path().join("schedstat")).ok()?;
        schedstat.split(' ').next()?.parse::<f64>().ok()
    });
    spent.sum::<f64>() / 1e3
}
