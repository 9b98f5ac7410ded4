//! `chargegate-sim`: simulated devices for a gateway.
//!
//! | exit code | `run` | `scenario` |
//! |---:|---|---|
//! | 0 | all went well | all thresholds hold |
//! | 1 | devices could not connect, or charges remained unsettled | a threshold does not hold |
//! | 2 | usage error | usage error, or the scenario is not sound |
//! | 3 | | the generator itself was late: its latencies say nothing |

use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Args, Parser, Subcommand};

use chargegate_loadtest::api::{ApiPlan, Ask};
use chargegate_loadtest::device::activity::{Activity, CARDS_MAX};
use chargegate_loadtest::device::ap3000::SUB_DEVICES_MAX;
use chargegate_loadtest::device::{Behaviour, Rudeness};
use chargegate_loadtest::fleet::Protocol;
use chargegate_loadtest::http::base_address;
use chargegate_loadtest::processes;
use chargegate_loadtest::report::html;
use chargegate_loadtest::run::{Extras, Plan, run_with};
use chargegate_loadtest::scenario::{Scenario, Span};
use chargegate_loadtest::worker::Target;

/// Simulated charging devices.
#[derive(Parser)]
#[command(name = "chargegate-sim", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Connect devices to a gateway and let them work.
    Run(Box<RunArgs>),
    /// Do what a scenario says, and judge the figures by its thresholds.
    Scenario(ScenarioArgs),
    /// One process of a scenario; it is told its share.
    #[command(hide = true)]
    Worker,
}

#[derive(Args)]
struct ScenarioArgs {
    /// The scenario, as TOML.
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Only read it and say what it is.
    #[arg(long)]
    check: bool,
    /// Device ports of the gateway's instances; devices connect to them in turn.
    #[arg(long, value_name = "HOST:PORT", value_delimiter = ',', required_unless_present = "check", value_parser = address)]
    connect: Vec<SocketAddr>,
    /// Base URLs of their APIs, in the same order, e.g. http://127.0.0.1:7055.
    #[arg(long, value_name = "URL", value_delimiter = ',', requires = "api_key", value_parser = base)]
    api: Vec<SocketAddr>,
    /// API key.
    #[arg(long, value_name = "KEY", env = "CHARGEGATE_SIM_API_KEY", hide_env_values = true)]
    api_key: Option<String>,
    /// Secret of a key that requires signed requests.
    #[arg(long, value_name = "SECRET", env = "CHARGEGATE_SIM_API_SECRET", hide_env_values = true)]
    api_secret: Option<String>,
    /// Processes that share the fleet [default: as many as its connections need].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=64))]
    processes: Option<u32>,
    /// Write the report as JSON; - is standard output, and progress goes to standard error.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write the report as a page.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Put a value in the place of the file's: KEY, fleet.KEY, api.KEY or PHASE.KEY.
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
}

#[derive(Args)]
struct RunArgs {
    /// Device ports of the gateway's instances; devices connect to them in turn.
    #[arg(long, value_name = "HOST:PORT", value_delimiter = ',', required = true, value_parser = address)]
    connect: Vec<SocketAddr>,
    /// Number of devices.
    #[arg(long, default_value_t = 300, value_parser = clap::value_parser!(u32).range(0..=1_000_000))]
    devices: u32,
    /// Index of the first device: several simulators that are one fleet have each a part of it.
    #[arg(long, value_name = "INDEX", default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=1_000_000))]
    first_device: u32,
    /// What they speak.
    #[arg(long, value_enum, default_value = "mix")]
    protocol: Protocol,
    /// Ports of an AP3000 charger.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=16))]
    ports: u8,
    /// Networked sockets of a BKV gateway; 0 is a standalone device.
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u8).range(0..=250))]
    sockets: u8,
    /// Further connections: AP3000 hosts with chargers behind them.
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=10_000))]
    hosts: u32,
    /// Chargers behind each host.
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u8).range(1..=i64::from(SUB_DEVICES_MAX)))]
    sub_devices: u8,
    /// New connections per second.
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..))]
    ramp_per_s: u32,
    /// Time between heartbeats, e.g. 60s.
    #[arg(long, default_value = "60s", value_parser = duration)]
    heartbeat: Duration,
    /// How long to run, e.g. 90s or 5m; without it, until interrupted.
    #[arg(long, value_parser = duration)]
    duration: Option<Duration>,
    /// Longest wait for open answers at the end.
    #[arg(long, default_value = "16s", value_parser = duration)]
    drain: Duration,
    /// Seconds of charging that pass in a second.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..=3600))]
    time_factor: u32,
    /// Share of the ports without a charger, in percent.
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u8).range(0..=100))]
    unplugged_percent: u8,
    /// Decides power, batteries, and which ports are charged.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Loopback addresses (127.x.y.z) to connect from; 0: the system chooses.
    #[arg(long, value_name = "N", default_value_t = 0)]
    source_addresses: u32,
    /// Threads for the devices.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    threads: u32,
    /// Print the summary as JSON, and progress to standard error.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    activity: ActivityArgs,
    #[command(flatten)]
    api: ApiArgs,
    #[command(flatten)]
    rude: RudeArgs,
}

#[derive(Args)]
#[command(next_help_heading = "What happens at the devices")]
struct ActivityArgs {
    /// Cards swiped per second, over all connections. Their printed numbers are 1000000000 and up; on BKV gateways they have
    /// twelve digits.
    #[arg(long, value_name = "RATE", value_parser = rate)]
    cards_per_s: Option<f64>,
    /// Number of different cards.
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=i64::from(CARDS_MAX)))]
    cards: u32,
    /// Share of the cards at AP3000 chargers that charge without asking the gateway, in percent.
    #[arg(long, value_name = "PERCENT", default_value_t = 0, value_parser = clap::value_parser!(u8).range(0..=100))]
    offline_share: u8,
    /// Alarms (AP3000) and exceptions (BKV) per second, over all connections.
    #[arg(long, value_name = "RATE", value_parser = rate)]
    alarms_per_s: Option<f64>,
}

#[derive(Args)]
#[command(next_help_heading = "Charges and commands by REST")]
struct ApiArgs {
    /// Base URLs of the API, e.g. http://127.0.0.1:7055; requests go to them in turn. With several, in the order of
    /// --connect: times of requests to the device's instance and to another are told apart.
    #[arg(long, value_name = "URL", value_delimiter = ',', requires = "api_key")]
    api: Vec<String>,
    /// API key.
    #[arg(long, value_name = "KEY")]
    api_key: Option<String>,
    /// Secret of a key that requires signed requests.
    #[arg(long, value_name = "SECRET")]
    api_secret: Option<String>,
    /// Charges per second; max: each thread asks again as soon as it has an answer.
    #[arg(long, value_name = "RATE", default_value_t = 5.0, value_parser = rate_or_max)]
    charges_per_s: f64,
    /// Named commands per second instead of charges, each to another device; max as above.
    #[arg(long, value_name = "RATE", value_parser = rate_or_max)]
    commands_per_s: Option<f64>,
    /// When requests begin, e.g. 20s after the start.
    #[arg(long, value_name = "TIME", value_parser = duration)]
    api_after: Option<Duration>,
    /// Ordered minutes, as a number or first..last.
    #[arg(long, default_value = "1..3", value_parser = minutes)]
    charge_minutes: (u16, u16),
    /// Share of the charges stopped halfway, in percent.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u8).range(0..=100))]
    stop_percent: u8,
    /// Threads for requests.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=256))]
    api_threads: u32,
}

#[derive(Args)]
#[command(next_help_heading = "Connections that misbehave")]
struct RudeArgs {
    /// Send bytes that are no frames.
    #[arg(long, value_name = "N", num_args = 0..=1, default_value_t = 0, default_missing_value = "1")]
    garbage: u32,
    /// Send frames without their second half.
    #[arg(long, value_name = "N", num_args = 0..=1, default_value_t = 0, default_missing_value = "1")]
    half_frames: u32,
    /// Send nothing.
    #[arg(long, value_name = "N", num_args = 0..=1, default_value_t = 0, default_missing_value = "1")]
    silent: u32,
    /// Send requests and never read the answers.
    #[arg(long, value_name = "N", num_args = 0..=1, default_value_t = 0, default_missing_value = "1")]
    slow_readers: u32,
}

fn main() -> ExitCode {
    let args = match Cli::parse().command {
        Command::Run(args) => args,
        Command::Scenario(args) => return scenario(args),
        Command::Worker => {
            return match processes::worker() {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => failed(&error),
            };
        }
    };
    let json = args.json;
    let extras = extras(&args);
    match simulate(&plan(*args), extras, json) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => failed(&error),
    }
}

fn failed(error: &anyhow::Error) -> ExitCode {
    eprintln!("chargegate-sim: {error:#}");
    ExitCode::FAILURE
}

fn scenario(args: ScenarioArgs) -> ExitCode {
    let read = std::fs::read_to_string(&args.file).map_err(|error| error.to_string());
    let scenario = match read.and_then(|text| Scenario::parse(&text, &args.set).map_err(|error| error.to_string())) {
        Ok(scenario) => scenario,
        Err(error) => {
            eprintln!("chargegate-sim: {}: {error}", args.file.display());
            return ExitCode::from(2);
        }
    };
    if args.check {
        println!(
            "{}: {} s in {} phases, {} connections in at least {} processes, {} thresholds",
            scenario.name,
            scenario.seconds(),
            scenario.phase.len(),
            scenario.connections(),
            processes::needed(&scenario),
            scenario.thresholds.len()
        );
        return ExitCode::SUCCESS;
    }
    match judge(&scenario, args) {
        Ok(code) => ExitCode::from(code),
        Err(error) => failed(&error),
    }
}

fn judge(scenario: &Scenario, args: ScenarioArgs) -> anyhow::Result<u8> {
    let ScenarioArgs { connect, api, api_key, api_secret, .. } = args;
    let target = Target { connect, api, key: api_key.unwrap_or_default(), secret: api_secret };
    let count = args.processes.unwrap_or_else(|| processes::needed(scenario));
    let program = std::env::current_exe().context("this program")?;
    let to_stdout = args.json.as_ref().is_some_and(|path| path.as_os_str() == "-");
    let show = |line: &dyn std::fmt::Display| if to_stdout { eprintln!("{line}") } else { println!("{line}") };
    let interrupt = interruptible()?;
    let report = processes::run(scenario, &target, count, Some(&program), &interrupt, |line| show(&line))?;
    show(&report);
    if let Some(path) = &args.html {
        std::fs::write(path, html::page(&report)).with_context(|| format!("{}", path.display()))?;
    }
    if let Some(path) = &args.json {
        let text = serde_json::to_string(&report)?;
        if to_stdout {
            println!("{text}");
        } else {
            std::fs::write(path, text).with_context(|| format!("{}", path.display()))?;
        }
    }
    Ok(report.result.exit_code())
}

/// Set by the first SIGINT or SIGTERM; the second ends the process at once.
fn interruptible() -> anyhow::Result<Arc<AtomicBool>> {
    let interrupt = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register_conditional_shutdown(signal, 130, Arc::clone(&interrupt))
            .and_then(|_| signal_hook::flag::register(signal, Arc::clone(&interrupt)))
            .context("signal handlers")?;
    }
    Ok(interrupt)
}

fn simulate(plan: &Plan, extras: Extras, json: bool) -> anyhow::Result<bool> {
    let interrupt = interruptible()?;
    let summary = run_with(plan, extras, &interrupt, |second, totals| {
        let line = totals.progress(second);
        if json {
            eprintln!("{line}");
        } else {
            println!("{line}");
        }
    })?;
    if json {
        println!("{}", serde_json::to_string(&summary)?);
    } else {
        println!("{summary}");
    }
    Ok(summary.ok)
}

fn extras(args: &RunArgs) -> Extras {
    let connections = f64::from(args.devices) + f64::from(args.hosts);
    // A rate of the fleet is a time between two at each device; a rate is above 0, and the cast saturates.
    let every_us = |rate: Option<f64>| rate.map_or(u64::MAX, |rate| (connections * 1e6 / rate) as u64);
    let activity = Activity {
        swipe_every_us: every_us(args.activity.cards_per_s),
        offline_percent: args.activity.offline_share,
        cards: args.activity.cards,
        alarm_every_us: every_us(args.activity.alarms_per_s),
    };
    Extras {
        activity,
        hosts: args.hosts,
        sub_devices: args.sub_devices,
        first_device: args.first_device,
        first_host: None,
    }
}

fn plan(args: RunArgs) -> Plan {
    let (ApiArgs { api, api_key, .. }, rude) = (&args.api, &args.rude);
    let api = api_key.clone().filter(|_| !api.is_empty()).map(|key| ApiPlan {
        bases: api.iter().map(|base| base.trim_end_matches('/').to_owned()).collect(),
        ask: if args.api.commands_per_s.is_some() { Ask::Commands } else { Ask::Charges },
        after: args.api.api_after.unwrap_or_default(),
        key,
        secret: args.api.api_secret.clone(),
        per_s: args.api.commands_per_s.unwrap_or(args.api.charges_per_s),
        minutes: args.api.charge_minutes.0..=args.api.charge_minutes.1,
        stop_percent: args.api.stop_percent,
        threads: args.api.api_threads,
        time_factor: args.time_factor,
        seed: args.seed,
    });
    Plan {
        connect: args.connect,
        devices: args.devices,
        protocol: args.protocol,
        ports: args.ports,
        sockets: args.sockets,
        ramp_per_s: args.ramp_per_s,
        duration: args.duration,
        drain: args.drain,
        behaviour: Behaviour {
            heartbeat_us: u64::try_from(args.heartbeat.as_micros()).unwrap_or(u64::MAX).max(1),
            time_factor: args.time_factor,
            seed: args.seed,
            unplugged_percent: args.unplugged_percent,
        },
        source_addresses: args.source_addresses,
        rude: vec![
            (Rudeness::Garbage, rude.garbage),
            (Rudeness::HalfFrames, rude.half_frames),
            (Rudeness::Silent, rude.silent),
            (Rudeness::SlowReader, rude.slow_readers),
        ],
        threads: args.threads,
        api,
    }
}

fn address(text: &str) -> Result<SocketAddr, String> {
    let mut found = text.to_socket_addrs().map_err(|error| error.to_string())?;
    found.next().ok_or_else(|| "the name has no address".to_owned())
}

fn base(text: &str) -> Result<SocketAddr, String> {
    base_address(text).map_err(|error| error.to_string())
}

/// A number with ms, s, m or h, above 0.
fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("must be a number with ms, s, m or h, got {text:?}");
    Span::parse(text).ok().map(|span| span.0).filter(|duration| !duration.is_zero()).ok_or_else(wrong)
}

fn minutes(text: &str) -> Result<(u16, u16), String> {
    let wrong = || format!("must be minutes in 1..=900 as a number or first..last, got {text:?}");
    let (first, last) = text.split_once("..").unwrap_or((text, text));
    let [first, last] = [first, last].map(|minutes| minutes.parse().map_err(|_| wrong()));
    let (first, last) = (first?, last?);
    if first < 1 || last < first || last > 900 { Err(wrong()) } else { Ok((first, last)) }
}

fn rate(text: &str) -> Result<f64, String> {
    let wrong = || format!("must be a number above 0 and at most 100000, got {text:?}");
    text.parse().ok().filter(|rate: &f64| *rate > 0.0 && *rate <= 100_000.0).ok_or_else(wrong)
}

fn rate_or_max(text: &str) -> Result<f64, String> {
    if text == "max" { Ok(f64::INFINITY) } else { rate(text) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_read() {
        assert_eq!(duration("60s"), Ok(Duration::from_secs(60)));
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        for bad in ["", "60", "s", "0s", "1.5s", "-1s", "99999999999999999999s", "18446744073709551615h"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
        assert_eq!(minutes("1..3"), Ok((1, 3)));
        assert_eq!(minutes("900"), Ok((900, 900)));
        for bad in ["0", "3..1", "1..901", "x", "1..", ""] {
            assert!(minutes(bad).is_err(), "{bad}");
        }
        assert!(rate("0").is_err() && rate("NaN").is_err() && rate("inf").is_err() && rate("0.5").is_ok());
        assert_eq!(rate_or_max("max"), Ok(f64::INFINITY));
    }

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory as _;
        Cli::command().debug_assert();
    }
}
