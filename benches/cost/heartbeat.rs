//! Closed loop: CPU per heartbeat, throughput, and memory of idle connections.

use std::{collections::BTreeMap, path::Path, time::Duration};

use anyhow::Context as _;

use crate::{
    Args, LOAD_CPU, SERVER_CPU,
    load::{Load, Until},
    median,
    process::{self, Cost, Server},
    servers::{Contestant, contestants},
    support::record,
};

/// Figures of one server in one round.
struct Figure {
    cost: Cost,
    per_second: f64,
}

/// Resident bytes that the idle connections of one round took.
#[derive(Clone, Copy)]
struct Memory {
    user: f64,
    /// Slab of the whole system: both ends of each connection, and whatever else happened meanwhile.
    kernel: f64,
}

/// A server that does nothing for so long has started.
const STARTED: Duration = Duration::from_millis(500);

/// All figures by connections, window and server.
type Figures = BTreeMap<(usize, usize, usize), Vec<Figure>>;

pub(crate) fn run(args: &Args, data: &Path) -> anyhow::Result<()> {
    let contestants = contestants(&args.engines, &args.servers, data)?;
    process::pin(LOAD_CPU)?;
    let mut figures = Figures::new();
    let mut idle: BTreeMap<(usize, usize), Vec<Memory>> = BTreeMap::new();
    for round in 0..args.rounds {
        for &connections in &args.connections_or(&[100, 1_000, 15_000]) {
            for (index, contestant) in contestants.iter().enumerate() {
                let memory = measure(contestant, connections, args, |window, figure| {
                    figures.entry((connections, window, index)).or_default().push(figure);
                });
                let memory = memory.with_context(|| format!("{}, {connections} connections", contestant.name))?;
                idle.entry((connections, index)).or_default().push(memory);
            }
        }
        eprintln!("round {} of {} done", round + 1, args.rounds);
    }
    print(&contestants, &figures, &idle);
    leave(&contestants, &figures, &idle);
    Ok(())
}

fn measure(
    contestant: &Contestant,
    connections: usize,
    args: &Args,
    mut report: impl FnMut(usize, Figure),
) -> anyhow::Result<Memory> {
    let port = process::free_port()?;
    let server = Server::start(contestant.command(port), SERVER_CPU, port)?;
    // What a start goes on to touch is no connection's.
    server.settle(STARTED)?;
    let before = (server.resident()?, process::slab()?);
    let mut load = Load::connect(port, connections)?;
    // Each device is known to the server before anything is measured, and what its store has to write for that is written.
    load.run(Until::Messages(connections), 100)?;
    server.settle(contestant.quiet_for())?;
    let after = (server.resident()?, process::slab()?);
    let mut windows: Vec<usize> = args.windows.iter().map(|&window| window_of(window, connections)).collect();
    windows.dedup();
    let seconds = if contestant.gateway { args.seconds } else { args.seconds / 2.0 };
    let (warm_up, measured) = match args.messages {
        Some(messages) => (Until::Messages(messages / 10), Until::Messages(messages)),
        None => {
            (Until::Elapsed(Duration::from_secs_f64(seconds / 6.0)), Until::Elapsed(Duration::from_secs_f64(seconds)))
        }
    };
    for window in windows {
        load.run(warm_up, window)?;
        let cost = server.cost()?;
        let run = load.run(measured, window)?;
        let cost = server.cost()?.since(cost).per(run.answered);
        report(window, Figure { cost, per_second: run.answered as f64 / run.took.as_secs_f64() });
    }
    let each = |before: i64, after: i64| (after - before) as f64 / connections as f64;
    Ok(Memory { user: each(before.0, after.0), kernel: each(before.1, after.1) })
}

fn window_of(window: usize, connections: usize) -> usize {
    if window == 0 { connections } else { window.min(connections) }
}

/// As it stands in names of rows.
fn window_name(window: usize, connections: usize) -> String {
    if window == connections { "all".to_owned() } else { window.to_string() }
}

fn print(contestants: &[Contestant], figures: &Figures, idle: &BTreeMap<(usize, usize), Vec<Memory>>) {
    println!(
        "| connections | window | server | user µs | system µs | total µs | shard µs | ratio to bare | messages/s | to go |"
    );
    println!("|---:|---:|---|---:|---:|---:|---:|---:|---:|---:|");
    for (&(connections, window, index), rounds) in figures {
        let of = |value: fn(&Figure) -> f64| median(rounds.iter().map(value).collect());
        let shard = match of(|figure| figure.cost.shard_us) {
            0.0 => String::new(),
            us => format!("{us:.2}"),
        };
        let to_go = against_go(contestants, figures, connections, window, index);
        println!(
            "| {connections} | {window} | {} | {:.2} | {:.2} | {:.2} | {shard} | {:.2} | {:.0} | {} |",
            contestants[index].name,
            of(|figure| figure.cost.user_us),
            of(|figure| figure.cost.system_us),
            of(|figure| figure.cost.total_us),
            median(against_bare(figures, connections, window, index, |cost| cost.total_us)),
            of(|figure| figure.per_second),
            if to_go.is_empty() { String::new() } else { format!("{:.2}", median(to_go)) },
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

/// CPU per message, or a part of it, over all that of the bare loop, round by round.
fn against_bare(
    figures: &Figures,
    connections: usize,
    window: usize,
    index: usize,
    part: fn(&Cost) -> f64,
) -> Vec<f64> {
    let (own, bare) = (&figures[&(connections, window, index)], &figures[&(connections, window, 0)]);
    own.iter().zip(bare).map(|(own, bare)| part(&own.cost) / bare.cost.total_us).collect()
}

/// Throughput over that of the server in Go, round by round; nothing without it.
fn against_go(
    contestants: &[Contestant],
    figures: &Figures,
    connections: usize,
    window: usize,
    index: usize,
) -> Vec<f64> {
    let Some(go) = contestants.iter().position(|contestant| contestant.name == "go") else { return Vec::new() };
    let (own, go) = (&figures[&(connections, window, index)], &figures[&(connections, window, go)]);
    own.iter().zip(go).map(|(own, go)| own.per_second / go.per_second).collect()
}

fn leave(contestants: &[Contestant], figures: &Figures, idle: &BTreeMap<(usize, usize), Vec<Memory>>) {
    for (&(connections, window, index), rounds) in figures {
        let contestant = &contestants[index];
        let row = format!("cost/{connections}/{}/{}", window_name(window, connections), contestant.name);
        for Figure { cost, per_second } in rounds {
            record(&format!("{row}/user_us"), "µs", cost.user_us);
            record(&format!("{row}/system_us"), "µs", cost.system_us);
            record(&format!("{row}/total_us"), "µs", cost.total_us);
            record(&format!("{row}/per_s"), "/s", *per_second);
            if contestant.gateway {
                record(&format!("{row}/shard_us"), "µs", cost.shard_us);
            }
        }
        let ratios = against_bare(figures, connections, window, index, |cost| cost.total_us);
        ratios.into_iter().for_each(|ratio| record(&format!("{row}/ratio"), "×", ratio));
        if contestant.gateway {
            let ratios = against_bare(figures, connections, window, index, |cost| cost.shard_us);
            ratios.into_iter().for_each(|ratio| record(&format!("{row}/shard_ratio"), "×", ratio));
        }
        let to_go = against_go(contestants, figures, connections, window, index);
        to_go.into_iter().for_each(|ratio| record(&format!("{row}/to_go"), "×", ratio));
    }
    for (&(connections, index), rounds) in idle {
        let row = format!("cost/{connections}/{}", contestants[index].name);
        for memory in rounds {
            record(&format!("{row}/resident_bytes"), "bytes", memory.user);
            record(&format!("{row}/slab_bytes"), "bytes", memory.kernel);
        }
    }
}
