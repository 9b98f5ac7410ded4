//! What a scenario's run came to, for machines; the HTML report shows the same.

use std::collections::BTreeMap;
use std::fmt;

use chargegate::time::Rfc3339;
use serde::Serialize;

use crate::books::Verdict;
use crate::figures::{self, Figures};
use crate::measure::{Latency, Metric, Moment, Window};
use crate::processes::{Happened, Second};
use crate::report::{Percentiles, Totals};
use crate::scenario::Scenario;

/// Percentiles of a distribution.
const QUANTILES: [f64; 16] =
    [0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.975, 0.99, 0.995, 0.9975, 0.999, 0.9995, 0.9999, 0.99999, 1.0];

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Result {
    /// All thresholds hold.
    Passed,
    /// A threshold does not hold.
    Failed,
    /// The generator was late: latencies say nothing of the server.
    Invalid,
}

impl Result {
    /// The word in reports.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::Failed => "failed",
            Self::Invalid => "invalid",
        }
    }

    /// Exit status of the program.
    pub const fn exit_code(self) -> u8 {
        match self {
            Self::Passed => 0,
            Self::Failed => 1,
            Self::Invalid => 3,
        }
    }
}

/// A threshold and whether it holds.
#[derive(Clone, Debug, Serialize)]
pub struct Checked {
    /// As the scenario says it.
    pub threshold: String,
    /// The figure; `None`: there was nothing to measure.
    pub value: Option<f64>,
    /// Whether it holds.
    pub passed: bool,
}

/// A phase and its figures.
#[derive(Clone, Debug, Serialize)]
pub struct PhaseFigures {
    /// Its name.
    pub name: String,
    /// First second.
    pub from_s: u64,
    /// Behind the last second.
    pub to_s: u64,
    /// Whether it is left out of the run's figures.
    pub warm_up: bool,
    /// Its figures.
    pub figures: Figures,
}

/// The run second by second.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Series {
    /// Seconds from the begin, at their end.
    pub second: Vec<u64>,
    /// Devices connected.
    pub connected: Vec<i64>,
    /// Devices bound.
    pub bound: Vec<i64>,
    /// Charges running.
    pub charging: Vec<i64>,
    /// Devices bound in this second.
    pub binds: Vec<i64>,
    /// Records acknowledged in this second.
    pub settled: Vec<i64>,
    /// Requests without an answer, found in this second.
    pub lost: Vec<i64>,
    /// Connects that failed, connections closed by the server, unreadable bytes, in this second.
    pub errors: Vec<i64>,
    /// CPU time of the generator in percent of a core.
    pub cpu_percent: Vec<f64>,
    /// Latencies by metric; `None` where nothing was recorded.
    pub latencies: BTreeMap<&'static str, Vec<Option<Moment>>>,
}

/// Whether everything was as it should be.
#[derive(Clone, Debug, Serialize)]
pub struct Correctness {
    /// Requests whose answer never came.
    pub lost: i64,
    /// Requests without an answer on connections that the run itself closed.
    pub abandoned: i64,
    /// Frames that answer nothing, or the wrong thing, or cannot be read.
    pub mismatched: i64,
    /// Records that ended before the drain and were never acknowledged.
    pub unsettled: u64,
    /// Devices that never could connect.
    pub never_connected: i64,
    /// The comparison of ledgers and API.
    pub orders: Verdict,
    /// The first things that were not as they should be.
    pub remarks: Vec<String>,
    /// Answers of the API other than those meant, by request and error code; `transport`: they did not come.
    pub refusals: BTreeMap<String, u64>,
}

/// The generator itself.
#[derive(Clone, Debug, Serialize)]
pub struct Generator {
    /// How late it did what was to be done; `None`: nothing was.
    pub late: Option<Percentiles>,
    /// Longest p99 for which latencies mean something.
    pub late_max_ms: f64,
    /// Whether it was in time.
    pub in_time: bool,
    /// CPU time of all its processes in percent of a core.
    pub cpu_percent: f64,
}

/// The machine of the generator.
#[derive(Clone, Debug, Serialize)]
pub struct Machine {
    /// Cores.
    pub cores: usize,
    /// Release of the kernel.
    pub kernel: String,
}

/// A run; see the module.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The scenario's name.
    pub name: String,
    /// How it ended.
    pub result: Result,
    /// Why it did not pass.
    pub reasons: Vec<String>,
    /// Whether somebody ended it early.
    pub interrupted: bool,
    /// When it began.
    pub begun_at: String,
    /// Seconds that the figures are of.
    pub measured_s: u64,
    /// Processes of the generator.
    pub processes: u32,
    /// Its machine.
    pub machine: Machine,
    /// The thresholds.
    pub thresholds: Vec<Checked>,
    /// Whether everything was as it should be.
    pub correctness: Correctness,
    /// The generator itself.
    pub generator: Generator,
    /// Figures of the run without its warm-up; counts of what went wrong are of all of it.
    pub figures: Figures,
    /// Figures by phase.
    pub phases: Vec<PhaseFigures>,
    /// Percentile and milliseconds of each latency, without the warm-up.
    pub distributions: BTreeMap<&'static str, Vec<(f64, f64)>>,
    /// Second by second.
    pub series: Series,
    /// The scenario, as it was run.
    pub scenario: Scenario,
}

/// Seconds added up.
#[derive(Default)]
struct Sum {
    seconds: u64,
    span: Totals,
    end: Totals,
    window: Window,
    cpu_us: u64,
}

impl Sum {
    fn add(&mut self, second: &Second, before: Option<&Second>) {
        self.seconds += 1;
        let earlier = before.map(|before| before.totals).unwrap_or_default();
        self.span = self.span.plus(&second.totals.since(&earlier));
        self.end = second.totals;
        self.cpu_us += second.cpu_us.saturating_sub(before.map_or(0, |before| before.cpu_us));
    }

    fn figures(&self) -> Figures {
        figures::of_span(self.seconds as f64, &self.span, &self.end, &self.window)
    }

    fn cpu_percent(&self) -> f64 {
        self.cpu_us as f64 / 1e4 / self.seconds.max(1) as f64
    }
}

impl Report {
    /// Judges what happened.
    pub fn new(scenario: &Scenario, processes: u32, happened: &Happened, verdict: Verdict) -> Self {
        let mut whole = Sum::default();
        let mut phases = Vec::new();
        let before = |at: usize| at.checked_sub(1).and_then(|at| happened.seconds.get(at));
        for ((phase, from_s, to_s), window) in scenario.spans().zip(&happened.windows) {
            let mut sum = Sum { window: window.clone(), ..Sum::default() };
            if !phase.warm_up {
                whole.window.add(window);
            }
            let of_phase = |second: &Second| (from_s + 1..=to_s).contains(&second.second);
            for (at, second) in happened.seconds.iter().enumerate().filter(|(_, second)| of_phase(second)) {
                sum.add(second, before(at));
                if !phase.warm_up {
                    whole.add(second, before(at));
                }
            }
            let (name, warm_up) = (phase.name.clone(), phase.warm_up);
            phases.push(PhaseFigures { name, from_s, to_s, warm_up, figures: sum.figures() });
        }
        let outcome = &happened.outcome;
        let mut figures = whole.figures();
        let mut remarks = Window::default();
        happened.windows.iter().for_each(|window| remarks.add(window));
        remarks.add(&outcome.window);
        let correctness = Correctness {
            lost: outcome.totals.lost,
            abandoned: outcome.totals.abandoned,
            mismatched: outcome.totals.mismatched,
            unsettled: verdict.unsettled,
            never_connected: outcome.never_connected,
            orders: verdict,
            remarks: remarks.remarks,
            refusals: remarks.refusals,
        };
        // What goes wrong in a warm-up, or is found out at the end, is wrong all the same.
        for (name, value) in [
            ("lost", correctness.lost as f64),
            ("abandoned", correctness.abandoned as f64),
            ("mismatched", correctness.mismatched as f64),
            ("unsettled", correctness.unsettled as f64),
            ("never_connected", correctness.never_connected as f64),
            ("sim.cpu_percent", whole.cpu_percent()),
        ] {
            figures.insert(name.to_owned(), value);
        }
        if correctness.orders.skipped.is_none() {
            figures.insert("orders.checked".to_owned(), correctness.orders.checked as f64);
            figures.insert("orders.wrong".to_owned(), correctness.orders.wrong as f64);
        }
        let late = whole.window.latency(Metric::Late).and_then(Latency::percentiles);
        let late_max_ms = scenario.late_max.us() as f64 / 1e3;
        let in_time = late.is_none_or(|late| late.p99_us as f64 / 1e3 <= late_max_ms);
        let thresholds: Vec<Checked> = scenario
            .thresholds
            .iter()
            .map(|threshold| {
                let from = match threshold.phase() {
                    None => Some(&figures),
                    Some(name) => phases.iter().find(|phase| phase.name == name).map(|phase| &phase.figures),
                };
                let value = from.and_then(|figures| figures.get(threshold.figure()).copied());
                let passed = value.is_some_and(|value| threshold.holds(value));
                Checked { threshold: threshold.to_string(), value, passed }
            })
            .collect();
        let failed = |latency: bool| {
            scenario
                .thresholds
                .iter()
                .zip(&thresholds)
                .any(|(threshold, checked)| !checked.passed && threshold.is_latency() == latency)
        };
        let result = if failed(false) || (in_time && failed(true)) {
            Result::Failed
        } else if in_time {
            Result::Passed
        } else {
            Result::Invalid
        };
        let mut reasons: Vec<String> = thresholds
            .iter()
            .filter(|checked| !checked.passed)
            .map(|checked| {
                let value = checked
                    .value
                    .map_or_else(|| "nothing to measure".to_owned(), |value| format!("it is {}", Short(value)));
                format!("{}: {value}", checked.threshold)
            })
            .collect();
        if !in_time {
            let p99_ms = late.map_or(0.0, |late| late.p99_us as f64 / 1e3);
            reasons.push(format!("the generator was late, p99 {p99_ms:.1} ms: its latencies are not the server's"));
        }
        let distributions = Metric::ALL
            .into_iter()
            .filter_map(|metric| {
                let latency = whole.window.latency(metric)?;
                let ms = |quantile: f64| latency.0.value_at_quantile(quantile) as f64 / 1e3;
                Some((metric.as_str(), QUANTILES.map(|quantile| (quantile * 100.0, ms(quantile))).to_vec()))
            })
            .collect();
        Self {
            name: scenario.name.clone(),
            result,
            reasons,
            interrupted: happened.interrupted,
            begun_at: Rfc3339(happened.begun_ms).to_string(),
            measured_s: whole.seconds,
            processes,
            machine: Machine::here(),
            thresholds,
            correctness,
            generator: Generator { late, late_max_ms, in_time, cpu_percent: whole.cpu_percent() },
            figures,
            phases,
            distributions,
            series: series(&happened.seconds),
            scenario: scenario.clone(),
        }
    }

    /// A figure by its name; with a phase in front, of that phase.
    pub fn figure(&self, name: &str) -> Option<f64> {
        let (figures, figure) = match name.split_once('/') {
            Some((phase, figure)) => (&self.phases.iter().find(|one| one.name == phase)?.figures, figure),
            None => (&self.figures, name),
        };
        figures.get(figure).copied()
    }
}

fn series(seconds: &[Second]) -> Series {
    let mut series = Series::default();
    let moment = |second: &Second, metric: Metric| second.moments.get(metric as usize).copied().flatten();
    let used: Vec<Metric> = Metric::ALL
        .into_iter()
        .filter(|metric| seconds.iter().any(|second| moment(second, *metric).is_some()))
        .collect();
    let mut before = (Totals::default(), 0);
    for second in seconds {
        let (totals, since) = (second.totals, second.totals.since(&before.0));
        series.second.push(second.second);
        series.connected.push(totals.connected);
        series.bound.push(totals.registered);
        series.charging.push(totals.charging);
        series.binds.push(since.binds);
        series.settled.push(since.settled);
        series.lost.push(since.lost);
        series.errors.push(since.connection_errors());
        series.cpu_percent.push(second.cpu_us.saturating_sub(before.1) as f64 / 1e4);
        for metric in &used {
            series.latencies.entry(metric.as_str()).or_default().push(moment(second, *metric));
        }
        before = (totals, second.cpu_us);
    }
    series
}

impl Machine {
    fn here() -> Self {
        let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        Self {
            cores: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            kernel: kernel.trim().to_owned(),
        }
    }
}

/// A number with as many digits as somebody reads.
pub struct Short(pub f64);

impl fmt::Display for Short {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let size = self.0.abs();
        if (size - size.round()).abs() < 1e-9 || size >= 1000.0 {
            write!(f, "{:.0}", self.0)
        } else if size >= 100.0 {
            write!(f, "{:.1}", self.0)
        } else {
            write!(f, "{:.2}", self.0)
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let figure = |name: &str| Short(self.figures.get(name).copied().unwrap_or_default());
        writeln!(
            f,
            "{}: {} devices, {} s measured, {} processes",
            self.name, self.scenario.fleet.devices, self.measured_s, self.processes
        )?;
        for metric in Metric::ALL {
            let property = |property: &str| figure(&format!("{}.{property}", metric.as_str()));
            if property("count").0 > 0.0 {
                writeln!(
                    f,
                    "  {:<14} {:>9}  {:>9}/s   p50 {:>8} ms   p90 {:>8} ms   p99 {:>8} ms   p99.9 {:>8} ms   max {:>8} ms",
                    metric.as_str(),
                    property("count").to_string(),
                    property("per_s").to_string(),
                    property("p50_ms").to_string(),
                    property("p90_ms").to_string(),
                    property("p99_ms").to_string(),
                    property("p999_ms").to_string(),
                    property("max_ms").to_string(),
                )?;
            }
        }
        writeln!(
            f,
            "  devices        {} bound at the end of the measured time, {} binds ({}/s until all were), {} never connected",
            figure("bound"),
            figure("binds"),
            figure("bound_per_s"),
            figure("never_connected")
        )?;
        writeln!(
            f,
            "  charges        {} accepted, {} begun, {} ended, {} settled ({}/s); commands {} accepted",
            figure("api.charges"),
            figure("charges_started"),
            figure("charges_ended"),
            figure("settled"),
            figure("settled_per_s"),
            figure("api.commands")
        )?;
        let correctness = &self.correctness;
        write!(
            f,
            "  correctness    {} lost, {} mismatched, {} unsettled; ",
            correctness.lost, correctness.mismatched, correctness.unsettled
        )?;
        match &correctness.orders.skipped {
            Some(why) => writeln!(f, "orders were not compared: {why}")?,
            None => writeln!(
                f,
                "{} orders and records compared, {} wrong",
                correctness.orders.checked, correctness.orders.wrong
            )?,
        }
        for remark in correctness.orders.details.iter().chain(&correctness.remarks).take(8) {
            writeln!(f, "                 {remark}")?;
        }
        for (code, count) in &correctness.refusals {
            writeln!(f, "                 {count} × {code}")?;
        }
        let late_ms = self.generator.late.map_or(0.0, |late| late.p99_us as f64 / 1e3);
        writeln!(f, "  generator      late p99 {} ms, {:.0} % of a core", Short(late_ms), self.generator.cpu_percent)?;
        for Checked { threshold, value, passed } in &self.thresholds {
            let value = value.map_or_else(|| "–".to_owned(), |value| Short(value).to_string());
            writeln!(f, "  {} {threshold:<40} {value}", if *passed { "pass" } else { "FAIL" })?;
        }
        write!(f, "{}", self.result.as_str())?;
        if self.result == Result::Invalid {
            write!(f, " for latencies: the generator was late")?;
        }
        Ok(())
    }
}
