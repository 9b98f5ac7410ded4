//! Durable throughput of the embedded store through its contract: every job is answered after a commit with
//! `synchronous = FULL`. Figures depend on how long the disk's sync takes.
//!
//! ```sh
//! cargo bench --bench store_sqlite                           # data in TMPDIR: set it to the disk that is meant
//! cargo bench --bench store_sqlite -- --rounds 3 --rows settlements,creations
//! ```
//!
//! | row | what is counted |
//! |---|---|
//! | first_binds | devices seen for the first time, 1,024 under way |
//! | binds | the same devices again, as after a restart |
//! | creations | orders with their event and claimed start, one request each from 64 clients, over distinct ports |
//! | settlements | first reports of AP3000 records of charging orders, 1,024 under way; each ends its order and appends its events |
//! | records | records of AP3000 cards that charged without the gateway, 1,024 under way; each makes an order that has ended |
//! | commands | named commands to distinct devices, each queued, claimed, written and acknowledged in four commits, 1,024 under way |
//! | latest | latest values of devices with one port, as a fleet that beats hands them over; not durable |
//!
//! Each round of each row has a file of its own; rounds of all rows alternate. The table shows medians, and the CPU time per job of the
//! thread that writes.

mod store;
#[path = "support/mod.rs"]
mod support;

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use chargegate::{
    model::{OrderNumbers, PortStatus},
    store::{
        Latest, PortRecord, Store,
        sqlite::{Options, SqliteStore},
    },
};
use clap::Parser;

use store::{AT, CLIENTS, Nobody, UNDER_WAY};

#[derive(Parser)]
struct Args {
    /// Rounds of each row.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Jobs of a round.
    #[arg(long, default_value_t = 20_000)]
    jobs: usize,
    /// Which rows.
    #[arg(long, value_delimiter = ',', default_values_t = ROWS.map(str::to_owned))]
    rows: Vec<String>,
    /// Passed by cargo.
    #[arg(long, hide = true)]
    bench: bool,
}

const ROWS: [&str; 7] = ["first_binds", "binds", "creations", "settlements", "records", "commands", "latest"];
/// Devices of one hand-over of latest values.
const HAND_OVER: usize = 1_000;

#[expect(clippy::disallowed_methods, reason = "the clock enters here")]
fn now() -> Instant {
    Instant::now()
}

/// One round of one row.
#[derive(Clone, Copy)]
struct Figure {
    per_second: f64,
    /// CPU time of the writing thread per job.
    writer_us: f64,
}

fn main() {
    let args = Args::parse();
    let mut all: Vec<Vec<Figure>> = args.rows.iter().map(|_| Vec::new()).collect();
    for _ in 0..args.rounds {
        for (row, figures) in args.rows.iter().zip(&mut all) {
            let figure = measure(row, args.jobs);
            support::record(&format!("store/embedded/{row}/per_s"), "/s", figure.per_second);
            figures.push(figure);
        }
    }
    println!("| jobs | per second, median | least | most | CPU µs each, writer |");
    println!("|---|---:|---:|---:|---:|");
    for (row, figures) in args.rows.iter().zip(&all) {
        let sorted = |of: fn(&Figure) -> f64| {
            let mut all: Vec<f64> = figures.iter().map(of).collect();
            all.sort_unstable_by(f64::total_cmp);
            all
        };
        let (rates, cpu) = (sorted(|figure| figure.per_second), sorted(|figure| figure.writer_us));
        let middle = figures.len() / 2;
        let (Some(least), Some(most)) = (rates.first(), rates.last()) else { continue };
        println!("| {row} | {:.0} | {least:.0} | {most:.0} | {:.1} |", rates[middle], cpu[middle]);
    }
}

fn measure(row: &str, jobs: usize) -> Figure {
    let dir = tempfile::tempdir().expect("a directory");
    let options = Options { clock: || AT, ..Options::new(dir.path().join("bench.db")) };
    let opened = SqliteStore::open(options, Arc::new(Nobody)).expect("a store");
    let timed = |work: &mut dyn FnMut()| {
        let (cpu, began) = (writer_us(), now());
        work();
        let seconds = now().duration_since(began).as_secs_f64();
        Figure { per_second: jobs as f64 / seconds, writer_us: (writer_us() - cpu) / jobs as f64 }
    };
    let numbers = OrderNumbers::new(*b"THD", 1);
    let charges = |opened: &SqliteStore| -> (Vec<_>, Vec<_>) {
        store::bind(opened, store::devices(jobs));
        store::creations(&numbers, jobs).into_iter().unzip()
    };
    let figure = match row {
        "first_binds" => timed(&mut || store::bind(&opened, jobs)),
        "binds" => {
            store::bind(&opened, jobs);
            timed(&mut || store::bind(&opened, jobs))
        }
        "creations" => {
            let mut creations = Some(charges(&opened).1);
            timed(&mut || store::run(&opened, creations.take().expect("once"), CLIENTS))
        }
        "settlements" => {
            let (orders, creations) = charges(&opened);
            store::run(&opened, creations, UNDER_WAY);
            store::run(&opened, store::evidence(&orders), UNDER_WAY);
            let mut settlements = Some(store::settlements(&orders));
            timed(&mut || store::run(&opened, settlements.take().expect("once"), UNDER_WAY))
        }
        "records" => {
            store::bind(&opened, store::RECORDING);
            let mut records = Some(store::records(jobs));
            timed(&mut || store::run(&opened, records.take().expect("once"), UNDER_WAY))
        }
        "commands" => {
            store::bind(&opened, jobs);
            timed(&mut || store::commands(&opened, jobs, UNDER_WAY))
        }
        "latest" => {
            store::bind(&opened, jobs);
            beat(&opened, jobs, 1);
            timed(&mut || beat(&opened, jobs, 2))
        }
        other => panic!("there is no row `{other}`; there are {}", ROWS.join(", ")),
    };
    opened.close(Duration::from_secs(10));
    figure
}

/// Latest values of each of `devices` once, and waits until they are written.
fn beat(store: &SqliteStore, devices: usize, nth: i64) {
    let written = || store.counters().latest_rows.load(Ordering::Relaxed);
    let before = written();
    let at = AT + nth;
    let mut rows = Vec::new();
    for n in 0..devices {
        let device_id = store::device(n);
        rows.push(Latest::Device {
            device_id,
            last_seen_at: at,
            offline_at: at + 180_000,
            signal: Some(20),
            firmware: None,
            iccid: None,
            networked: false,
            device_type: Some(4),
        });
        rows.push(Latest::Port(PortRecord {
            device_id,
            port_no: 1,
            socket: None,
            hole: None,
            status: PortStatus::Idle,
            raw_status: 0,
            power_dw: 0,
            current_ma: 0,
            voltage_dv: 2200,
            energy_wh: 0,
            charged_seconds: 0,
            updated_at: at,
        }));
        if rows.len() >= 2 * HAND_OVER || n + 1 == devices {
            while !store.coalesce(&mut rows) {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }
    while written() - before < 2 * devices as u64 {
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// CPU time of this process's writer, which lives as long as its store, by the scheduler's count.
fn writer_us() -> f64 {
    let tasks = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let of_writer = tasks.filter_map(|task| {
        let name = std::fs::read_to_string(task.path().join("comm")).ok()?;
        let spent = std::fs::read_to_string(task.path().join("schedstat")).ok()?;
        (name.trim() == "store-writer").then(|| spent.split(' ').next()?.parse::<f64>().ok()).flatten()
    });
    of_writer.sum::<f64>() / 1e3
}
