//! All processes of a scenario: they begin together, and what they count and record is added up.
//!
//! ```text
//! parent ── share as a line of JSON, then "go" ──> chargegate-sim worker (stdin)
//!        <── "ready", a line each second, the outcome ── (stdout)
//! ```
//!
//! One process does its share in the parent itself. A worker whose parent is gone stops, because its input ends.

use std::collections::BTreeMap;
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use anyhow::{Context as _, bail};
use serde::{Deserialize, Serialize};

use crate::books::{Reader, Verdict, unix_ms};
use crate::measure::{Latency, Metric, Moment, Window};
use crate::report::Totals;
use crate::report::json::Report;
use crate::scenario::{CONNECTIONS_PER_PROCESS, Scenario};
use crate::worker::{Outcome, Share, Target, Tick, work};

/// A worker that says nothing for this long, beyond its longest silence, is dead.
const SILENT_MAX: Duration = Duration::from_secs(60);
/// Clocks of the gateway and of this machine may differ by this much.
const SKEW_MS: i64 = 5_000;

/// A line of a worker.
#[derive(Serialize, Deserialize)]
enum Line {
    Ready,
    Tick(Box<Tick>),
    Outcome(Box<Outcome>),
    Failed(String),
}

/// A second of the whole run.
#[derive(Clone, Debug)]
pub struct Second {
    /// Which, from 1.
    pub second: u64,
    /// Everything counted since the begin.
    pub totals: Totals,
    /// Latencies by [`Metric`].
    pub moments: Vec<Option<Moment>>,
    /// CPU time of all processes of the run, microseconds.
    pub cpu_us: u64,
}

/// What happened, before it is judged.
#[derive(Debug, Default)]
pub struct Happened {
    /// Second by second.
    pub seconds: Vec<Second>,
    /// What was recorded in each phase, and behind the last.
    pub windows: Vec<Window>,
    /// What is left at the end.
    pub outcome: Outcome,
    /// Unix time of the begin, ms.
    pub begun_ms: i64,
    /// Whether somebody ended it early.
    pub interrupted: bool,
}

/// Adds up what the processes tell.
struct Sum<'a, P> {
    scenario: &'a Scenario,
    processes: u32,
    /// Seconds that some have told, and how many.
    told: BTreeMap<u64, (Tick, u32)>,
    happened: Happened,
    progress: P,
}

impl<P: FnMut(&str)> Sum<'_, P> {
    fn take(&mut self, tick: Tick) {
        let second = tick.second;
        let told = match self.told.remove(&second) {
            None => (tick, 1),
            Some((mut sum, count)) => {
                sum.totals = sum.totals.plus(&tick.totals);
                sum.window.add(&tick.window);
                sum.cpu_us += tick.cpu_us;
                (sum, count + 1)
            }
        };
        if told.1 < self.processes {
            self.told.insert(second, told);
            return;
        }
        // Only percentiles are kept of a second; its buckets go into those of its phase.
        let (Tick { totals, window, cpu_us, .. }, _) = told;
        let phase = self.scenario.spans().position(|(_, _, to)| second <= to).unwrap_or(self.scenario.phase.len());
        self.happened.windows.resize_with(self.scenario.phase.len() + 1, Window::default);
        self.happened.windows[phase].add(&window);
        let moments = Metric::ALL.iter().map(|metric| window.latency(*metric).map(Latency::moment)).collect();
        let second = Second { second, totals, moments, cpu_us };
        (self.progress)(&line(self.scenario, &second, self.happened.seconds.last()));
        self.happened.seconds.push(second);
    }
}

/// How many processes a scenario needs.
pub fn needed(scenario: &Scenario) -> u32 {
    scenario.connections().div_ceil(CONNECTIONS_PER_PROCESS).max(1)
}

/// Runs a scenario and judges it; `program` is `chargegate-sim` for more than one process. `progress` is called each second with
/// a line to show.
///
/// # Errors
/// It cannot be run: too few processes, a process that failed, no API where one is asked.
pub fn run(
    scenario: &Scenario,
    target: &Target,
    processes: u32,
    program: Option<&Path>,
    interrupt: &Arc<AtomicBool>,
    progress: impl FnMut(&str),
) -> anyhow::Result<Report> {
    if scenario.asks() && target.api.is_empty() {
        bail!("the scenario asks the API: give --api and --api-key");
    }
    if processes < needed(scenario) {
        bail!(
            "{} connections need {} processes of at most {CONNECTIONS_PER_PROCESS}",
            scenario.connections(),
            needed(scenario)
        );
    }
    let share = |process| Share { scenario: scenario.clone(), target: target.clone(), process, processes };
    let happened = Happened { begun_ms: unix_ms(), ..Happened::default() };
    let mut sum = Sum { scenario, processes, told: BTreeMap::new(), happened, progress };
    let outcome = if processes == 1 {
        work(&share(0), interrupt, || Ok(()), |tick| sum.take(tick))?
    } else {
        let program = program.context("the program is not known")?;
        let mut children = Children::start(program, (0..processes).map(share))?;
        children.finish(interrupt, |tick| sum.take(tick))?
    };
    // A last second that only some have told is left out.
    let happened = Happened { outcome, interrupted: interrupt.load(Relaxed), ..sum.happened };
    let verdict = judge(scenario, target, &happened);
    Ok(Report::new(scenario, processes, &happened, verdict))
}

/// Compares the devices' ledgers with the API.
fn judge(scenario: &Scenario, target: &Target, happened: &Happened) -> Verdict {
    let mut verdict = Verdict::default();
    let Outcome { books, ordered, .. } = &happened.outcome;
    verdict.count_unsettled(books);
    let Some(base) = target.api.first() else {
        verdict.skipped = Some("no API was given".to_owned());
        return verdict;
    };
    if scenario.api.verify_orders_max == 0 {
        verdict.skipped = Some("api.verify_orders_max is 0".to_owned());
        return verdict;
    }
    if books.is_empty() && ordered.is_empty() {
        return verdict;
    }
    let mut reader = Reader::new(*base, target.key.clone(), target.secret.clone());
    let (from_ms, to_ms) = (happened.begun_ms - SKEW_MS, unix_ms() + SKEW_MS);
    match reader.count(from_ms, to_ms) {
        Ok(count) if count > u64::from(scenario.api.verify_orders_max) => {
            verdict.skipped = Some(format!("{count} orders are more than api.verify_orders_max"));
        }
        Ok(_) => match reader.orders(from_ms, to_ms) {
            Ok(listed) => verdict.compare(ordered, books, &listed, unix_ms()),
            Err(error) => verdict.skipped = Some(format!("{error:#}")),
        },
        Err(error) => verdict.skipped = Some(format!("{error:#}")),
    }
    verdict
}

/// The line that is shown each second.
fn line(scenario: &Scenario, second: &Second, before: Option<&Second>) -> String {
    let phase = scenario.spans().find(|(_, _, to)| second.second <= *to).map_or("drain", |(phase, ..)| &phase.name);
    let moment = |metric: Metric| second.moments.get(metric as usize).copied().flatten();
    let count = |metric| moment(metric).map_or(0, |moment| moment.count);
    let p99 = |metric| moment(metric).map_or_else(|| "–".to_owned(), |moment| format!("{:.1} ms", moment.p99_ms));
    let since = second.totals.since(&before.map(|before| before.totals).unwrap_or_default());
    let api = since.api_answered + since.api_refused + since.api_failed;
    let totals = &second.totals;
    format!(
        "{:>5} s {phase:<10} connected {}  bound {} (+{})  heartbeats {}/s p99 {}  API {api}/s p99 {}  settled {}/s  lost {}  errors {}",
        second.second,
        totals.connected,
        totals.registered,
        since.binds,
        count(Metric::Heartbeat),
        p99(Metric::Heartbeat),
        p99(Metric::ApiStatus),
        since.settled,
        totals.lost,
        totals.connection_errors() + totals.mismatched + totals.api_refused + totals.api_failed,
    )
}

/// Workers and what they say.
struct Children {
    children: Vec<(Child, Option<ChildStdin>)>,
    lines: mpsc::Receiver<(usize, Line)>,
}

impl Children {
    fn start(program: &Path, shares: impl Iterator<Item = Share>) -> anyhow::Result<Self> {
        let (sender, lines) = mpsc::sync_channel(256);
        let mut this = Self { children: Vec::new(), lines };
        for (nth, share) in shares.enumerate() {
            let mut command = Command::new(program);
            command.arg("worker").stdin(Stdio::piped()).stdout(Stdio::piped());
            let mut child = command.spawn().with_context(|| format!("{}", program.display()))?;
            let stdin = child.stdin.take();
            let stdout = child.stdout.take().context("it is piped")?;
            this.children.push((child, stdin));
            let sender = sender.clone();
            std::thread::Builder::new().name(format!("worker-{nth}")).spawn(move || {
                for text in BufReader::new(stdout).lines().map_while(Result::ok) {
                    let line = serde_json::from_str(&text).unwrap_or_else(|error| Line::Failed(error.to_string()));
                    if sender.send((nth, line)).is_err() {
                        return;
                    }
                }
                // The run may be over already.
                drop(sender.send((nth, Line::Failed("it ended".to_owned()))));
            })?;
            this.tell(nth, &serde_json::to_string(&share)?)?;
        }
        Ok(this)
    }

    fn tell(&mut self, nth: usize, line: &str) -> io::Result<()> {
        let stdin = self.children.get_mut(nth).and_then(|(_, stdin)| stdin.as_mut());
        let stdin = stdin.ok_or_else(|| io::Error::other("the worker is gone"))?;
        stdin.write_all(line.as_bytes())?;
        stdin.write_all(b"\n")?;
        stdin.flush()
    }

    fn finish(&mut self, interrupt: &AtomicBool, mut tick: impl FnMut(Tick)) -> anyhow::Result<Outcome> {
        let count = self.children.len();
        let (mut ready, mut ended, mut told_to_stop) = (0, vec![false; count], false);
        let mut sum = Outcome::default();
        let mut silent = Duration::ZERO;
        let wait = Duration::from_millis(100);
        while ended.iter().any(|ended| !ended) {
            if interrupt.load(Relaxed) && !told_to_stop {
                told_to_stop = true;
                // Their input ends.
                self.children.iter_mut().for_each(|(_, stdin)| *stdin = None);
            }
            match self.lines.recv_timeout(wait) {
                Ok((_, Line::Ready)) => {
                    ready += 1;
                    if ready == count && !told_to_stop {
                        for nth in 0..count {
                            self.tell(nth, "go")?;
                        }
                    }
                }
                Ok((_, Line::Tick(one))) => tick(*one),
                Ok((nth, Line::Outcome(outcome))) => {
                    ended[nth] = true;
                    sum.add(*outcome);
                }
                Ok((nth, Line::Failed(_))) if ended[nth] => {}
                Ok((nth, Line::Failed(error))) => bail!("worker {nth}: {error}"),
                Err(RecvTimeoutError::Timeout) => {
                    silent += wait;
                    if silent > SILENT_MAX {
                        bail!("a worker says nothing");
                    }
                    continue;
                }
                Err(RecvTimeoutError::Disconnected) => bail!("the workers ended"),
            }
            silent = Duration::ZERO;
        }
        Ok(sum)
    }
}

impl Drop for Children {
    fn drop(&mut self) {
        for (child, stdin) in &mut self.children {
            *stdin = None;
            // Those that ended are only waited for.
            drop(child.kill());
            drop(child.wait());
        }
    }
}

/// The part of a worker: a share from the input, lines to the output.
///
/// # Errors
/// Input or output end, or the share cannot be done.
pub fn worker() -> anyhow::Result<()> {
    let mut input = BufReader::new(io::stdin());
    let mut text = String::new();
    input.read_line(&mut text)?;
    let share: Share = serde_json::from_str(&text).context("the share")?;
    let interrupt = Arc::new(AtomicBool::new(false));
    let say = |line: &Line| -> io::Result<()> {
        let text = serde_json::to_string(line)?;
        let mut out = io::stdout().lock();
        out.write_all(text.as_bytes())?;
        out.write_all(b"\n")?;
        out.flush()
    };
    let begin = || {
        say(&Line::Ready)?;
        let mut go = String::new();
        if input.read_line(&mut go)? == 0 {
            return Err(io::Error::other("the parent is gone"));
        }
        let interrupt = Arc::clone(&interrupt);
        std::thread::Builder::new().name("input".to_owned()).spawn(move || {
            // Nothing more comes; the end is what is waited for.
            while matches!(input.read_line(&mut String::new()), Ok(1..)) {}
            interrupt.store(true, Relaxed);
        })?;
        Ok(())
    };
    let worked = work(&share, &interrupt, begin, |tick| {
        if say(&Line::Tick(Box::new(tick))).is_err() {
            interrupt.store(true, Relaxed);
        }
    });
    match worked {
        Ok(outcome) => say(&Line::Outcome(Box::new(outcome)))?,
        Err(error) => say(&Line::Failed(error.to_string()))?,
    }
    Ok(())
}
