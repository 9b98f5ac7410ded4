//! A whole run: threads, progress, drain, summary.
//!
//! ```text
//! connect and charge for `duration` ─> drain: nothing new is begun, until nothing is open ─> stop ─> summary
//! ```
//!
//! The drain ends when every record is settled and no request is on the way, at the latest after
//! [`Plan::drain`]. Charges that still run then are not waited for.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::api::{ApiClient, ApiPlan, ApiSummary};
use crate::device::activity::Activity;
use crate::device::{Behaviour, Rudeness};
use crate::engine::{Clock, Engine, Shared};
use crate::fleet::{Fleet, Protocol};
use crate::report::{Counters, Latencies, Summary, Totals};

/// How often the end of the run is looked for.
const TICK: Duration = Duration::from_millis(20);

/// What to simulate.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Device ports of the gateway's instances; devices connect to them in turn, by index.
    pub connect: Vec<SocketAddr>,
    /// Number of devices.
    pub devices: u32,
    /// What they speak.
    pub protocol: Protocol,
    /// Ports of a charger.
    pub ports: u8,
    /// Sockets of a gateway; 0 is standalone.
    pub sockets: u8,
    /// New connections per second; 0: they are opened as scheduled.
    pub ramp_per_s: u32,
    /// How long to run; `None`: until it is interrupted.
    pub duration: Option<Duration>,
    /// Longest wait for open answers at the end.
    pub drain: Duration,
    /// How the devices behave.
    pub behaviour: Behaviour,
    /// Loopback addresses to connect from; 0: the system chooses.
    pub source_addresses: u32,
    /// Further connections that misbehave.
    pub rude: Vec<(Rudeness, u32)>,
    /// Engine threads.
    pub threads: u32,
    /// Charges or commands asked for by REST.
    pub api: Option<ApiPlan>,
}

/// Runs `plan`; `interrupt` ends it early, and `progress` is called each second with the second and the totals.
///
/// # Errors
/// A thread could not be started, or an engine's poll failed.
pub fn run(plan: &Plan, interrupt: &AtomicBool, progress: impl FnMut(u64, &Totals)) -> io::Result<Summary> {
    run_with(plan, Extras::default(), interrupt, progress)
}

/// What a run may have besides its plan.
#[derive(Clone, Copy, Debug, Default)]
pub struct Extras {
    /// Cards and alarms at each device.
    pub activity: Activity,
    /// Further connections: AP3000 hosts. Nobody charges them by REST.
    pub hosts: u32,
    /// Chargers behind each host.
    pub sub_devices: u8,
    /// Index of the first device: processes that simulate one fleet together have each a part of it.
    pub first_device: u32,
    /// Index of the first host, each of which takes its own and those of the chargers behind it; `None`: behind the devices.
    pub first_host: Option<u32>,
}

/// As [`run`], with `extras`.
///
/// # Errors
/// As [`run`].
pub fn run_with(
    plan: &Plan,
    extras: Extras,
    interrupt: &AtomicBool,
    mut progress: impl FnMut(u64, &Totals),
) -> io::Result<Summary> {
    raise_file_limit();
    let shared = Shared {
        clock: Clock::start(),
        fleet: Arc::new(
            Fleet::new(plan.protocol, plan.devices, plan.ports, plan.sockets).from_index(extras.first_device),
        ),
        stop: Arc::default(),
        draining: Arc::default(),
        silent: Arc::default(),
    };
    let mut counters = Vec::new();
    let mut engines = Vec::new();
    for thread in 0..plan.threads.max(1) {
        let own = Arc::new(Counters::default());
        counters.push(Arc::clone(&own));
        let (plan, shared) = (plan.clone(), shared.clone());
        let run = move || Engine::new(&plan, extras, thread, shared, own)?.run();
        engines.push(std::thread::Builder::new().name(format!("engine-{thread}")).spawn(run)?);
    }
    let clients = plan.api.iter().flat_map(|api| (0..api.threads.max(1)).map(move |thread| (api.clone(), thread)));
    let mut api_threads = Vec::new();
    for (api, thread) in clients {
        let shared = shared.clone();
        let instances = plan.connect.len();
        let run = move || ApiClient::new(api, thread, instances, shared).run();
        api_threads.push(std::thread::Builder::new().name(format!("api-{thread}")).spawn(run)?);
    }

    let totals = || Totals::of(counters.iter().map(Arc::as_ref));
    let dead = |engines: &[JoinHandle<_>]| engines.iter().any(JoinHandle::is_finished);
    let mut shown = 0;
    let mut tick = || {
        std::thread::sleep(TICK);
        let now = Duration::from_micros(shared.clock.now_us());
        if now.as_secs() > shown {
            shown = now.as_secs();
            progress(shown, &totals());
        }
        now
    };
    let over = |now: Duration| plan.duration.is_some_and(|duration| now >= duration);
    let mut now = tick();
    while !over(now) && !interrupt.load(Relaxed) && !dead(&engines) {
        now = tick();
    }
    shared.draining.store(true, Relaxed);
    let mut api: Option<ApiSummary> = plan.api.as_ref().map(|_| ApiSummary::default());
    for thread in api_threads {
        if let (Some(api), Ok(part)) = (&mut api, thread.join()) {
            api.merge(&part);
        }
    }
    let drained_by = now + plan.drain;
    let open = |totals: Totals| totals.unsettled() > 0 || totals.outstanding() > 0;
    while open(totals()) && now < drained_by && !dead(&engines) {
        now = tick();
    }
    shared.stop.store(true, Relaxed);
    let mut latencies = Latencies::default();
    for engine in engines {
        latencies.merge(&engine.join().map_err(|_| io::Error::other("an engine thread panicked"))??);
    }
    Ok(Summary::new(plan.devices, now.as_secs_f64(), totals(), &latencies, api))
}

/// Each device needs a file descriptor. Failing leaves the limit as it is; connects then say so.
pub(crate) fn raise_file_limit() {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is a valid rlimit for the duration of both calls, which read or write nothing else.
    unsafe {
        if libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) == 0 {
            limit.rlim_cur = limit.rlim_max;
            libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit);
        }
    }
}
