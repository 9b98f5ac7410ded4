//! What a heartbeat costs the server, beside a bare epoll loop that only reads 50 bytes and writes 28, and beside servers in Go
//! and on tokio that do the same.
//!
//! ```text
//! core 0: server, a fresh process per round        core 1: this process, N connections
//! ```
//!
//! | scenario | what is measured |
//! |---|---|
//! | `heartbeat` | closed loop: CPU per heartbeat and throughput, by connections and heartbeats outstanding; idle memory |
//! | `growth` | open loop: CPU, latency and memory of the gateway by connections and rate |
//! | `syscalls` | system calls per heartbeat, counted by strace |
//! | `start` | from the start of the process to `/readyz` 200, with an empty store |
//!
//! Servers alternate within a round; tables show medians over rounds, and the median of the ratios within each round, so that
//! what disturbs the whole machine for a while disturbs all servers. The cost is CPU time of the server's process, all threads,
//! from the scheduler's own nanosecond counts; its split into user and system time comes from the coarser `utime` and `stime`.
//!
//! ```sh
//! scripts/bench-peers                                        # builds the servers in Go and on tokio, left out otherwise
//! cargo bench --bench cost                                   # heartbeats: the gateway on both engines, and the peers
//! cargo bench --bench cost -- --quick                        # one size, few rounds
//! cargo bench --bench cost -- growth start
//! cargo bench --bench cost -- --server 'other=./echo {port}' # another server beside them
//! ```

mod bare;
mod growth;
mod heartbeat;
mod load;
mod process;
mod servers;
mod start;
mod syscalls;

#[path = "../support/mod.rs"]
mod support;

use clap::{Parser, ValueEnum};

/// Core of the servers and core of the load.
const SERVER_CPU: usize = 0;
const LOAD_CPU: usize = 1;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Scenario {
    Heartbeat,
    Growth,
    Syscalls,
    Start,
}

#[derive(Parser)]
struct Args {
    /// What to measure.
    #[arg(value_enum, default_values_t = [Scenario::Heartbeat])]
    scenarios: Vec<Scenario>,
    /// Fewer rounds, 15,000 connections and a window of 1,000 only.
    #[arg(long)]
    quick: bool,
    /// Rounds; each runs every server once per number of connections.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Numbers of connections [default: 100, 1,000 and 15,000; growth: 1,000 to 15,000].
    #[arg(long, value_delimiter = ',')]
    connections: Vec<usize>,
    /// Heartbeats outstanding at a time; 0: one on every connection.
    #[arg(long, value_delimiter = ',', default_values_t = [50, 1_000, 0])]
    windows: Vec<usize>,
    /// Growth: heartbeats a second.
    #[arg(long, value_delimiter = ',', default_values_t = [5_000, 10_000, 20_000, 40_000])]
    rates: Vec<u32>,
    /// Seconds that each window, or each rate, is measured for; servers that do nothing by themselves are measured for half of
    /// it. By default a gateway writes latest values every three seconds.
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    /// Messages measured per round and window, instead of a time.
    #[arg(long)]
    messages: Option<usize>,
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

impl Args {
    /// The numbers of connections asked for, or these.
    fn connections_or(&self, default: &[usize]) -> Vec<usize> {
        if self.connections.is_empty() { default.to_vec() } else { self.connections.clone() }
    }
}

fn main() -> anyhow::Result<()> {
    let mut args = Args::parse();
    if let Some(port) = args.bare {
        return bare::run(port);
    }
    if args.quick {
        args.rounds = args.rounds.min(3);
        args.connections = vec![15_000];
        args.windows = vec![1_000];
        args.rates = vec![10_000];
    }
    process::raise_descriptor_limit();
    let data = tempfile::tempdir()?;
    for scenario in &args.scenarios {
        match scenario {
            // Not pinned: as an operator starts it.
            Scenario::Start => start::run(&args, data.path())?,
            Scenario::Heartbeat => heartbeat::run(&args, data.path())?,
            Scenario::Growth => growth::run(&args, data.path())?,
            Scenario::Syscalls => syscalls::run(&args, data.path())?,
        }
        println!();
    }
    Ok(())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() % 2 {
        0 => f64::midpoint(values[middle - 1], values[middle]),
        _ => values[middle],
    }
}
