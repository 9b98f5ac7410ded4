//! One process's share of a scenario: its threads, a tick each second, and what is left at the end.
//!
//! ```text
//! build engines ─> begin ─> phases ─> drain: nothing new is begun, records are settled
//!                                       ─> silence: devices say nothing more, the last answers come ─> outcome
//! ```

use std::cell::Cell;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Barrier};
use std::thread::JoinHandle;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::asker::{Asker, Asking, Ordered};
use crate::books::{Book, Charged};
use crate::device::activity::Activity;
use crate::device::ap3000::SUB_DEVICES_MAX;
use crate::device::{Behaviour, SECOND_US};
use crate::engine::{Clock, Engine, Shared};
use crate::fleet::{Fleet, Protocol};
use crate::measure::{Recorder, Window};
use crate::report::{Counters, Totals};
use crate::run::{Extras, Plan, raise_file_limit};
use crate::scenario::Scenario;
use crate::schedule::{Part, Timetable};

const LOOK_AGAIN: Duration = Duration::from_millis(10);
/// Longest wait for the last answers, once nothing more is said.
const SILENCE_US: u64 = 5 * SECOND_US;

/// The gateway.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Target {
    /// Device ports of its instances; devices connect to them in turn.
    pub connect: Vec<SocketAddr>,
    /// Their APIs, in the same order; empty: nothing is asked, and nothing compared.
    pub api: Vec<SocketAddr>,
    /// `X-Api-Key`.
    pub key: String,
    /// Secret of a key that requires signed requests.
    pub secret: Option<String>,
}

/// What one process is to do.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Share {
    /// The whole scenario.
    pub scenario: Scenario,
    /// Where it happens.
    pub target: Target,
    /// Which process this is, from 0.
    pub process: u32,
    /// Of how many.
    pub processes: u32,
}

/// What a process counted and recorded in a second.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Tick {
    /// Which second ended, from 1.
    pub second: u64,
    /// Everything counted since the begin.
    pub totals: Totals,
    /// What was recorded in this second.
    pub window: Window,
    /// CPU time of this process since its start, microseconds.
    pub cpu_us: u64,
}

/// What is left at the end.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Outcome {
    /// Everything counted.
    pub totals: Totals,
    /// What was recorded behind the last tick.
    pub window: Window,
    /// Charges that the API accepted.
    pub ordered: Vec<Ordered>,
    /// What devices with charges know about them.
    pub books: Vec<Book>,
    /// Devices of this process that were never connected, of those that should be.
    pub never_connected: i64,
}

impl Outcome {
    /// Adds that of another process.
    pub fn add(&mut self, other: Self) {
        self.totals = self.totals.plus(&other.totals);
        self.window.add(&other.window);
        self.ordered.extend(other.ordered);
        self.books.extend(other.books);
        self.never_connected += other.never_connected;
    }
}

/// What a thread leaves behind.
type Left = io::Result<Vec<Book>>;

/// Does a share. `begin` is called when everything is built, and returns when all processes are to begin; `tick` is called each second.
///
/// # Errors
/// A thread could not be started, or an engine's poll failed.
pub fn work(
    share: &Share,
    interrupt: &AtomicBool,
    begin: impl FnOnce() -> io::Result<()>,
    mut tick: impl FnMut(Tick),
) -> io::Result<Outcome> {
    raise_file_limit();
    let scenario = &share.scenario;
    let part = Part { nth: share.process, of: share.processes.max(1) };
    let (plan, extras) = plan(scenario, &share.target, part);
    let fleet = &scenario.fleet;
    let threads = fleet.threads.max(1);
    let shared = Shared {
        clock: Clock::start(),
        fleet: Arc::new(
            Fleet::new(plan.protocol, plan.devices, plan.ports, plan.sockets).from_index(extras.first_device),
        ),
        stop: Arc::default(),
        draining: Arc::default(),
        silent: Arc::default(),
    };
    let built = Arc::new(Barrier::new(usize::try_from(threads).unwrap_or(1) + 1));
    let begun = Arc::new(Barrier::new(usize::try_from(threads).unwrap_or(1) + 1));
    let (origin_us, drain_us) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(u64::MAX)));
    let (mut counters, mut recorders) = (Vec::new(), Vec::new());
    let mut engines: Vec<JoinHandle<Left>> = Vec::new();
    for nth in 0..threads {
        let (own, recorder) = (Arc::new(Counters::default()), Arc::new(Recorder::default()));
        counters.push(Arc::clone(&own));
        recorders.push(Arc::clone(&recorder));
        let timetable = Timetable::new(scenario, part, Part { nth, of: threads });
        let (plan, shared) = (plan.clone(), shared.clone());
        let (built, begun) = (Arc::clone(&built), Arc::clone(&begun));
        let (origin_us, drain_us) = (Arc::clone(&origin_us), Arc::clone(&drain_us));
        let run = move || {
            let engine = Engine::new(&plan, extras, nth, shared, own);
            built.wait();
            begun.wait();
            let mut engine = engine?;
            let origin_us = origin_us.load(Relaxed);
            engine.schedule(timetable.shifted(origin_us), origin_us, part.part(nth, threads), recorder);
            engine.run()?;
            Ok(books(&engine, drain_us.load(Relaxed)))
        };
        engines.push(std::thread::Builder::new().name(format!("engine-{nth}")).spawn(run)?);
    }
    built.wait();
    begin()?;
    // What is due at the begin is not late because threads have to wake.
    let origin = shared.clock.now_us() + 100_000;
    origin_us.store(origin, Relaxed);
    begun.wait();
    let mut asker = None;
    if !share.target.api.is_empty() && scenario.asks() {
        let (own, recorder) = (Arc::new(Counters::default()), Arc::new(Recorder::default()));
        counters.push(Arc::clone(&own));
        recorders.push(Arc::clone(&recorder));
        let questions = Timetable::new(scenario, part, Part::WHOLE).shifted(origin).questions;
        let asking = asking(scenario, &share.target, part);
        let asks = Asker::new(asking, questions, origin, shared.clone(), own, recorder)?;
        asker = Some(std::thread::Builder::new().name("api".to_owned()).spawn(move || asks.run())?);
    }

    let totals = || Totals::of(counters.iter().map(Arc::as_ref));
    // Processes have clocks of their own; the begin is what they share.
    let from_begin = |mut window: Window| {
        window.connects_from_us = window.connects_from_us.map(|us| us.saturating_sub(origin));
        window.bound_until_us = window.bound_until_us.map(|us| us.saturating_sub(origin));
        window
    };
    // The next second, once it is over for all threads; nothing changes any more for one that is gone.
    let next_second = || {
        let is_over = recorders.iter().all(|recorder| recorder.has_second() || recorder.is_closed())
            && recorders.iter().any(|recorder| recorder.has_second());
        is_over.then(|| {
            let (mut totals, mut window) = (Totals::default(), Window::default());
            for (recorder, counters) in recorders.iter().zip(&counters) {
                let (counted, recorded) =
                    recorder.take_second().unwrap_or_else(|| (Totals::of([&**counters]), recorder.take()));
                totals = totals.plus(&counted);
                window.add(&recorded);
            }
            (totals, from_begin(window))
        })
    };
    let dead = |engines: &[JoinHandle<Left>]| engines.iter().any(JoinHandle::is_finished);
    let told = Cell::new(0);
    let mut wait = || {
        std::thread::sleep(LOOK_AGAIN);
        while let Some((totals, window)) = next_second() {
            told.set(told.get() + 1);
            tick(Tick { second: told.get(), totals, window, cpu_us: cpu_us() });
        }
        shared.clock.now_us()
    };
    let over_us = origin + scenario.seconds() * SECOND_US;
    let mut now_us = wait();
    // The last second belongs to the last phase, so it is told before the drain.
    let last_second = |now_us: u64| told.get() < scenario.seconds() && now_us < over_us + SILENCE_US;
    while (now_us < over_us || last_second(now_us)) && !interrupt.load(Relaxed) && !dead(&engines) {
        now_us = wait();
    }
    drain_us.store(now_us, Relaxed);
    shared.draining.store(true, Relaxed);
    let drained_by_us = now_us + scenario.drain.us();
    let answered = |asker: &Option<JoinHandle<_>>| asker.as_ref().is_none_or(JoinHandle::is_finished);
    while now_us < drained_by_us && !dead(&engines) && (totals().unsettled() > 0 || !answered(&asker)) {
        now_us = wait();
    }
    shared.silent.store(true, Relaxed);
    let silent_by_us = now_us + SILENCE_US;
    while now_us < silent_by_us && !dead(&engines) && totals().awaited > 0 {
        now_us = wait();
    }
    shared.stop.store(true, Relaxed);
    let mut outcome = Outcome::default();
    for engine in engines {
        outcome.books.extend(engine.join().map_err(|_| io::Error::other("an engine thread panicked"))??);
    }
    if let Some(asker) = asker {
        outcome.ordered = asker.join().map_err(|_| io::Error::other("the API thread panicked"))??;
    }
    outcome.totals = totals();
    let mut rest = Window::default();
    recorders.iter().for_each(|recorder| rest.add(&recorder.take()));
    outcome.window = from_begin(rest);
    outcome.never_connected = outcome.totals.attempted - outcome.totals.ever_connected;
    Ok(outcome)
}

fn plan(scenario: &Scenario, target: &Target, part: Part) -> (Plan, Extras) {
    let fleet = &scenario.fleet;
    let plan = Plan {
        connect: target.connect.clone(),
        devices: part.share(fleet.devices),
        protocol: Protocol::Share(fleet.ap3000_percent),
        ports: fleet.ports,
        sockets: fleet.sockets,
        ramp_per_s: 0,
        duration: None,
        drain: scenario.drain.0,
        behaviour: Behaviour {
            heartbeat_us: fleet.heartbeat.us().max(1),
            time_factor: fleet.time_factor,
            seed: scenario.seed,
            unplugged_percent: fleet.unplugged_percent,
        },
        source_addresses: fleet.source_addresses,
        rude: Vec::new(),
        threads: fleet.threads,
        api: None,
    };
    let extras = Extras {
        activity: Activity { cards: 1000, ..Activity::default() },
        hosts: part.share(fleet.hosts),
        sub_devices: fleet.sub_devices,
        first_device: part.before(fleet.devices),
        // Behind the devices of all processes.
        first_host: Some(fleet.devices + part.before(fleet.hosts) * (u32::from(SUB_DEVICES_MAX) + 1)),
    };
    (plan, extras)
}

fn asking(scenario: &Scenario, target: &Target, part: Part) -> Asking {
    Asking {
        bases: target.api.clone(),
        key: target.key.clone(),
        secret: target.secret.clone(),
        connections: scenario.api.connections,
        minutes: scenario.api.charge_minutes,
        stop_percent: scenario.api.stop_percent,
        time_factor: scenario.fleet.time_factor,
        // Every process draws its own.
        seed: scenario.seed.wrapping_add(u64::from(part.nth) << 32),
    }
}

fn books(engine: &Engine, drain_us: u64) -> Vec<Book> {
    let mut books = Vec::new();
    engine.ledgers(&mut |device_id, ledger| {
        let charges: Vec<Charged> = ledger.entries().map(|entry| Charged::of(entry, drain_us)).collect();
        if !charges.is_empty() {
            books.push(Book { device_id: device_id.to_string(), charges });
        }
    });
    books
}

/// CPU time of this process, user and system.
pub fn cpu_us() -> u64 {
    // SAFETY: all bytes zero are a valid rusage.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: `usage` is a valid place for the result.
    let failed = unsafe { libc::getrusage(libc::RUSAGE_SELF, &raw mut usage) } != 0;
    let us = |time: libc::timeval| time.tv_sec.saturating_mul(1_000_000).saturating_add(time.tv_usec);
    if failed { 0 } else { u64::try_from(us(usage.ru_utime).saturating_add(us(usage.ru_stime))).unwrap_or_default() }
}
