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
//! | creations | orders with their event and claimed start, one request each from 64 clients, over distinct ports |
//! | settlements | first reports of AP3000 records of charging orders, 1,024 under way; each ends its order and appends its events |
//! | commands | named commands to distinct devices, each queued, claimed, written and acknowledged in four commits, 1,024 under way |
//!
//! Each round of each row has a database of its own; rounds of all rows alternate. The table shows medians.

#[path = "../tests/services/mod.rs"]
mod services;
mod store;

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
    #[arg(long, value_delimiter = ',', default_values_t = [4])]
    lanes: Vec<usize>,
    /// Settings of the server, as NAME=VALUE.
    #[arg(long = "set", value_delimiter = ' ', default_values_t = ["shared_buffers=256MB".to_owned(), "max_wal_size=4GB".to_owned()])]
    settings: Vec<String>,
    /// Passed by cargo.
    #[arg(long, hide = true)]
    bench: bool,
}

const ROWS: [&str; 3] = ["creations", "settlements", "commands"];

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
    let mut rates: Vec<[Vec<f64>; 3]> = args.lanes.iter().map(|_| Default::default()).collect();
    for round in 0..args.rounds {
        for (lanes, rates) in args.lanes.iter().zip(&mut rates) {
            for (row, rates) in rates.iter_mut().enumerate() {
                let url = server.database_like(&template, ROWS[row]);
                let elapsed = measure(&url, *lanes, row, args.jobs);
                rates.push(args.jobs as f64 / elapsed.as_secs_f64());
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
    println!("| jobs | lanes | per second, median | least | most |\n|---|---:|---:|---:|---:|");
    for (lanes, rates) in args.lanes.iter().zip(&mut rates) {
        for (row, rates) in ROWS.iter().zip(rates) {
            rates.sort_unstable_by(f64::total_cmp);
            let (least, most) = (rates[0], rates[rates.len() - 1]);
            println!("| {row} | {lanes} | {:.0} | {least:.0} | {most:.0} |", rates[rates.len() / 2]);
        }
    }
}

/// One round of one row on an empty database.
fn measure(url: &str, lanes: usize, row: usize, jobs: usize) -> Duration {
    let options = Options { clock: || AT, lanes, ..Options::new(url, ServerId::new("bench")) };
    let opened = PostgresStore::open(options, Arc::new(Nobody)).expect("a store");
    let numbers = OrderNumbers::new(*b"THD", 1);
    store::bind(&opened, if row == 2 { jobs } else { store::devices(jobs) });
    let (orders, creations): (Vec<_>, Vec<_>) = store::creations(&numbers, jobs).into_iter().unzip();
    let elapsed = match row {
        0 => timed(|| store::run(&opened, creations, CLIENTS)),
        1 => {
            store::run(&opened, creations, UNDER_WAY);
            store::run(&opened, store::evidence(&orders), UNDER_WAY);
            let settlements = store::settlements(&orders);
            timed(|| store::run(&opened, settlements, UNDER_WAY))
        }
        _ => timed(|| store::commands(&opened, jobs, UNDER_WAY)),
    };
    opened.close(Duration::from_secs(10));
    elapsed
}

fn timed(work: impl FnOnce()) -> Duration {
    let began = now();
    work();
    now().duration_since(began)
}
