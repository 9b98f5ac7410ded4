//! Open loop: what the gateway takes at a given number of connections and a given rate of heartbeats.

use std::{collections::BTreeMap, path::Path, time::Duration};

use anyhow::Context as _;

use crate::{
    Args, LOAD_CPU, SERVER_CPU,
    load::{Load, Until, now},
    median,
    process::{self, Server},
    servers::{Contestant, contestants},
    support::record,
};

/// One rate in one round.
struct Figure {
    /// Of one core.
    cpu_percent: f64,
    p50_ms: f64,
    p99_ms: f64,
    resident_mb: f64,
}

/// Before a rate is measured it is offered for this part of its time.
const WARM_UP: f64 = 0.2;

pub(crate) fn run(args: &Args, data: &Path) -> anyhow::Result<()> {
    // The engine that comes first: growth compares sizes, not servers.
    let engines = args.engines.iter().take(1).cloned().collect::<Vec<_>>();
    let contestants = contestants(&engines, &[], data)?;
    let gateway = contestants.iter().find(|contestant| contestant.gateway).context("growth wants an engine")?;
    process::pin(LOAD_CPU)?;
    let mut figures: BTreeMap<(usize, u32), Vec<Figure>> = BTreeMap::new();
    for round in 0..args.rounds {
        for &connections in &args.connections_or(&[1_000, 5_000, 10_000, 15_000]) {
            measure(gateway, connections, args, |rate, figure| {
                figures.entry((connections, rate)).or_default().push(figure);
            })
            .with_context(|| format!("{connections} connections"))?;
        }
        eprintln!("round {} of {} done", round + 1, args.rounds);
    }
    println!("| connections | heartbeats/s | CPU, % of a core | p50 ms | p99 ms | resident MB |");
    println!("|---:|---:|---:|---:|---:|---:|");
    for ((connections, rate), rounds) in &figures {
        let of = |value: fn(&Figure) -> f64| median(rounds.iter().map(value).collect());
        println!(
            "| {connections} | {rate} | {:.1} | {:.3} | {:.3} | {:.1} |",
            of(|figure| figure.cpu_percent),
            of(|figure| figure.p50_ms),
            of(|figure| figure.p99_ms),
            of(|figure| figure.resident_mb)
        );
        for figure in rounds {
            let row = format!("growth/{connections}/{rate}");
            record(&format!("{row}/cpu_percent"), "%", figure.cpu_percent);
            record(&format!("{row}/p50_ms"), "ms", figure.p50_ms);
            record(&format!("{row}/p99_ms"), "ms", figure.p99_ms);
            record(&format!("{row}/resident_mb"), "MB", figure.resident_mb);
        }
    }
    Ok(())
}

fn measure(
    gateway: &Contestant,
    connections: usize,
    args: &Args,
    mut report: impl FnMut(u32, Figure),
) -> anyhow::Result<()> {
    let port = process::free_port()?;
    let server = Server::start(gateway.command(port), SERVER_CPU, port)?;
    let mut load = Load::connect(port, connections)?;
    load.run(Until::Messages(connections), 100)?;
    server.settle(gateway.quiet_for())?;
    for &rate in &args.rates {
        load.offer(rate, Duration::from_secs_f64(args.seconds * WARM_UP))?;
        let (cost, began) = (server.cost()?, now());
        let latency_us = load.offer(rate, Duration::from_secs_f64(args.seconds))?;
        let used_us = server.cost()?.since(cost).total_us;
        let ms = |quantile: f64| latency_us.value_at_quantile(quantile) as f64 / 1e3;
        let figure = Figure {
            cpu_percent: 100.0 * used_us / began.elapsed().as_micros() as f64,
            p50_ms: ms(0.5),
            p99_ms: ms(0.99),
            resident_mb: server.resident()? as f64 / 1e6,
        };
        report(rate, figure);
    }
    Ok(())
}
