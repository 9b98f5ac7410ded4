//! What a heartbeat costs the server, beside a bare epoll loop that only reads 50 bytes and writes 28.
//!
//! ```text
//! core 0: server, a fresh process per round        core 1: this process, N connections, one heartbeat outstanding on each at most
//! ```
//!
//! Servers alternate within a round; the table shows medians over rounds, and the median of the ratios within each round, so that
//! what disturbs the whole machine for a while disturbs all servers. The cost is CPU time of the server's process, all threads,
//! from the scheduler's own nanosecond counts; its split into user and system time comes from the coarser `utime` and `stime`.
//!
//! ```sh
//! cargo bench --bench cost                                   # the gateway on both engines
//! cargo bench --bench cost -- --quick                        # one size, few rounds
//! cargo bench --bench cost -- --server 'go=./echo {port}'    # another server beside them
//! ```

mod bare;
mod load;
mod process;

use std::{collections::BTreeMap, path::PathBuf, process::Command};

use anyhow::Context as _;
use clap::Parser;

use load::Load;
use process::{Cost, Server};

/// Core of the servers and core of the load.
const SERVER_CPU: usize = 0;
const LOAD_CPU: usize = 1;

#[derive(Parser)]
struct Args {
    /// Fewer rounds, 15,000 connections and a window of 1,000 only.
    #[arg(long)]
    quick: bool,
    /// Rounds; each runs every server once per number of connections.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Numbers of connections.
    #[arg(long, value_delimiter = ',', default_values_t = [100, 1_000, 15_000])]
    connections: Vec<usize>,
    /// Heartbeats outstanding at a time; 0: one on every connection.
    #[arg(long, value_delimiter = ',', default_values_t = [50, 1_000, 0])]
    windows: Vec<usize>,
    /// Messages measured per round and window.
    #[arg(long, default_value_t = 600_000)]
    messages: usize,
    /// Engines to run the gateway on.
    #[arg(long, value_delimiter = ',', default_values_t = ["mio".to_owned(), "glommio".to_owned()])]
    engines: Vec<String>,
    /// Another server as NAME=COMMAND; `{port}` in it is replaced. Its words are split at spaces.
    #[arg(long = "server")]
    servers: Vec<String>,
    /// Be the bare server on this port.
    #[arg(long, hide = true)]
    bare: Option<u16>,
    /// Passed by cargo.
    #[arg(long, hide = true)]
    bench: bool,
}

/// Figures of one server in one round.
struct Figure {
    cost: Cost,
    per_second: f64,
}

/// All figures by connections, window and server.
type Figures = BTreeMap<(usize, usize, usize), Vec<Figure>>;

fn main() -> anyhow::Result<()> {
    let mut args = Args::parse();
    if let Some(port) = args.bare {
        return bare::run(port);
    }
    if args.quick {
        args.rounds = args.rounds.min(3);
        args.connections = vec![15_000];
        args.windows = vec![1_000];
        args.messages = args.messages.min(300_000);
    }
    let data = std::env::temp_dir().join(format!("chargegate-cost-{}", std::process::id()));
    let contestants = contestants(&args, &data)?;
    process::raise_descriptor_limit();
    process::pin(LOAD_CPU)?;
    let mut figures = Figures::new();
    let mut idle: BTreeMap<(usize, usize), Vec<Memory>> = BTreeMap::new();
    for round in 0..args.rounds {
        for &connections in &args.connections {
            for (index, contestant) in contestants.iter().enumerate() {
                let memory = measure(contestant, connections, &args, |window, figure| {
                    figures.entry((connections, window, index)).or_default().push(figure);
                });
                let memory = memory.with_context(|| format!("{}, {connections} connections", contestant.name))?;
                idle.entry((connections, index)).or_default().push(memory);
            }
        }
        eprintln!("round {} of {} done", round + 1, args.rounds);
    }
    if data.exists() {
        std::fs::remove_dir_all(&data)?;
    }
    print(&contestants, &figures, &idle);
    Ok(())
}

struct Contestant {
    name: String,
    command: Box<dyn Fn(u16) -> Command>,
}

fn contestants(args: &Args, data: &std::path::Path) -> anyhow::Result<Vec<Contestant>> {
    let this = std::env::current_exe()?;
    let bare = move |port: u16| {
        let mut command = Command::new(&this);
        command.args(["--bare", &port.to_string()]);
        command
    };
    let mut all = vec![Contestant { name: "bare".into(), command: Box::new(bare) }];
    for engine in args.engines.iter().filter(|engine| !engine.is_empty()) {
        let (engine, data) = (engine.clone(), data.to_owned());
        let name = format!("gateway, {engine}");
        all.push(Contestant {
            name,
            command: Box::new(move |port| gateway(port, &engine, data.join(port.to_string()))),
        });
    }
    for server in &args.servers {
        let (name, line) = server.split_once('=').context("--server wants NAME=COMMAND")?;
        let line = line.to_owned();
        let command = move |port: u16| {
            let line = line.replace("{port}", &port.to_string());
            let mut words = line.split_whitespace();
            let mut command = Command::new(words.next().unwrap_or_default());
            command.args(words);
            command
        };
        all.push(Contestant { name: name.to_owned(), command: Box::new(command) });
    }
    Ok(all)
}

/// The release gateway as an operator starts it, with one shard and an empty data directory.
fn gateway(port: u16, engine: &str, data: PathBuf) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_chargegate"));
    command
        .arg("serve")
        .env("CHARGEGATE_DATA_DIR", data)
        .env("CHARGEGATE_DEVICE_LISTEN", format!("127.0.0.1:{port}"))
        .env("CHARGEGATE_HTTP_LISTEN", "127.0.0.1:0")
        .env("CHARGEGATE_SHARD_COUNT", "1")
        .env("CHARGEGATE_SHARD_ENGINE", engine);
    command
}

/// Resident bytes that the idle connections of one round took.
#[derive(Clone, Copy)]
struct Memory {
    user: f64,
    /// Slab of the whole system: both ends of each connection, and whatever else happened meanwhile.
    kernel: f64,
}

fn measure(
    contestant: &Contestant,
    connections: usize,
    args: &Args,
    mut report: impl FnMut(usize, Figure),
) -> anyhow::Result<Memory> {
    let port = process::free_port()?;
    let server = Server::start((contestant.command)(port), SERVER_CPU, port)?;
    let before = (server.resident()?, process::slab()?);
    let mut load = Load::connect(port, connections)?;
    // Each device is known to the server before anything is measured.
    load.run(connections, 100)?;
    let after = (server.resident()?, process::slab()?);
    let mut windows: Vec<usize> = args.windows.iter().map(|&window| window_of(window, connections)).collect();
    windows.dedup();
    for window in windows {
        load.run(args.messages / 10, window)?;
        let cost = server.cost()?;
        let took = load.run(args.messages, window)?;
        let cost = server.cost()?.since(cost).per(args.messages);
        report(window, Figure { cost, per_second: args.messages as f64 / took.as_secs_f64() });
    }
    let each = |before: i64, after: i64| (after - before) as f64 / connections as f64;
    Ok(Memory { user: each(before.0, after.0), kernel: each(before.1, after.1) })
}

fn window_of(window: usize, connections: usize) -> usize {
    if window == 0 { connections } else { window.min(connections) }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() % 2 {
        0 => f64::midpoint(values[middle - 1], values[middle]),
        _ => values[middle],
    }
}

fn print(contestants: &[Contestant], figures: &Figures, idle: &BTreeMap<(usize, usize), Vec<Memory>>) {
    println!("| connections | window | server | user µs | system µs | total µs | ratio to bare | messages/s |");
    println!("|---:|---:|---|---:|---:|---:|---:|---:|");
    for (&(connections, window, index), rounds) in figures {
        let of = |value: fn(&Figure) -> f64| median(rounds.iter().map(value).collect());
        let bare = &figures[&(connections, window, 0)];
        let ratios = rounds.iter().zip(bare).map(|(figure, bare)| figure.cost.total_us / bare.cost.total_us);
        println!(
            "| {connections} | {window} | {} | {:.2} | {:.2} | {:.2} | {:.2} | {:.0} |",
            contestants[index].name,
            of(|figure| figure.cost.user_us),
            of(|figure| figure.cost.system_us),
            of(|figure| figure.cost.total_us),
            median(ratios.collect()),
            of(|figure| figure.per_second),
        );
    }
    println!();
    println!("| connections | server | resident bytes each | kernel slab each, both ends |");
    println!("|---:|---|---:|---:|");
    for (&(connections, index), rounds) in idle {
        let of = |value: fn(&Memory) -> f64| median(rounds.iter().map(value).collect());
        let name = &contestants[index].name;
        println!("| {connections} | {name} | {:.0} | {:.0} |", of(|memory| memory.user), of(|memory| memory.kernel));
    }
}
