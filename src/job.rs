//! Periodic work, on one thread that holds no state that matters after a crash.
//!
//! | job | every | does |
//! |---|---|---|
//! | gauges | 1 s | copies queue lengths and the store's state to metrics and readiness |
//! | history | 2 s | adds a sample to the console's ten minutes |
//! | order backstop | 10 s | timeouts by SQL for orders without a live owner |
//! | command poll | 5 s | finds queued commands whose wake-up was lost |
//! | memory | 5 s of calm after many connections | gives back what the allocator keeps of the burst |
//! | cleaner | 1 h | prunes by age, in batches, one a second while they are full |
//!
//! A job that finds the store's queue full is skipped and runs again at its next time.
//!
//! All of them run on every instance that shares the store, and nothing is done twice:
//! - The backstop looks after orders of this instance's devices and of those nobody has; the transition under the device's lock decides,
//!   so of two instances one finds the order changed. A device whose lock is taken is left for the next call.
//! - The command poll asks for this instance's own devices; the claim decides.
//! - Pruning deletes what nobody needs any more: who comes second finds less.
//!
//! Others that do: the driver of updates offers tasks to shards of devices that are connected here, and ends what is overdue under the
//! device's lock; the reaper (`cluster::instances`) is given each device once; webhooks are delivered by the holder of a lease.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use crate::{
    boot::Ticks,
    cluster::Link,
    gateway::directory::Directory,
    memory::{self, Calm},
    model::ServerId,
    router::Router,
    shard::Clock,
    store::{Backstop, Job, Outcome, Prune, Reply, Store},
    telemetry::{
        Metrics,
        health::{Component, ComponentState, Health},
        history::Sampler,
    },
    webhook::Pusher,
};

/// Devices told per command poll.
const POLL_DEVICES_MAX: u32 = 1_000;
/// Rows pruned per table and call.
const PRUNE_ROWS_MAX: u32 = 1_000;

/// How often jobs run, and from when on our own absence excuses nobody.
#[derive(Clone, Copy, Debug)]
pub struct Schedule {
    /// Of the order backstop.
    pub backstop: Duration,
    /// Of the command poll.
    pub command_poll: Duration,
    /// Of the cleaner.
    pub cleaner: Duration,
    /// How long rows are kept.
    pub retention: Retention,
    /// From readiness, or from when store and Redis were last away, until orders may be interrupted by the backstop.
    pub interrupt_grace: Duration,
    /// The same until orders may be timed out by the backstop.
    pub offline_grace: Duration,
}

/// Ages past which rows are pruned.
#[derive(Clone, Copy, Debug)]
pub struct Retention {
    /// Of events.
    pub events: Duration,
    /// Of commands that came to an end.
    pub commands: Duration,
    /// Of answers kept for idempotency keys.
    pub answers: Duration,
    /// Of the command log.
    pub command_log: Duration,
    /// Of the delivery log.
    pub delivery_log: Duration,
}

impl Retention {
    fn prune(&self, unix_ms: i64) -> Prune {
        let before = |age: Duration| unix_ms.saturating_sub(i64::try_from(age.as_millis()).unwrap_or(i64::MAX));
        Prune {
            events_before: before(self.events),
            commands_before: before(self.commands),
            answers_before: before(self.answers),
            log_before: before(self.command_log),
            delivery_log_before: before(self.delivery_log),
            rows_max: PRUNE_ROWS_MAX,
        }
    }
}

/// What the jobs work on.
pub struct Context {
    /// The store.
    pub store: Arc<dyn Store>,
    /// Redis, where there are several instances.
    pub link: Option<Arc<Link>>,
    /// Live devices.
    pub directory: Arc<Directory>,
    /// Tells shards of queued commands.
    pub router: Arc<Router>,
    /// Knows how far webhooks are behind.
    pub pusher: Arc<Pusher>,
    /// This instance, where there are several: it looks for commands of its own devices only.
    pub owner: Option<ServerId>,
    /// Gauges.
    pub metrics: Arc<Metrics>,
    /// Readiness.
    pub health: Arc<Health>,
    /// The process's clock.
    pub clock: Clock,
    /// The shards' ticks, for liveness.
    pub ticks: Ticks,
}

/// The jobs' thread.
#[derive(Debug)]
pub struct Jobs {
    stop: Arc<AtomicBool>,
    handle: JoinHandle<()>,
}

impl Jobs {
    /// Starts the thread. The moment of the call counts as readiness.
    ///
    /// # Errors
    /// The thread could not be started.
    pub fn start(context: Context, schedule: Schedule) -> std::io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let handle = thread::Builder::new().name("jobs".into()).spawn(move || run(context, schedule, &stopped))?;
        Ok(Self { stop, handle })
    }

    /// Ends the thread after the job it is at.
    pub fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.handle.thread().unpark();
        drop(self.handle.join());
    }
}

fn run(context: Context, schedule: Schedule, stop: &AtomicBool) {
    let Context { store, link, directory, router, pusher, owner, metrics, health, mut clock, ticks } = context;
    let mut sampler = Sampler::default();
    let mut calm = Calm::default();
    let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let unix = |at: i64, after: Duration| at.saturating_add(i64::try_from(after.as_millis()).unwrap_or(i64::MAX));
    let signed = |duration: Duration| i64::try_from(duration.as_millis()).unwrap_or(i64::MAX);
    let ready = clock.refresh();
    // Nobody is charged with a silence in which nothing could be stored, or other instances not be heard.
    let mut present_since = ready.unix_ms;
    let mut backstop_at = ready.mono_ms + millis(schedule.backstop);
    let mut poll_at = ready.mono_ms + millis(schedule.command_poll);
    let mut clean_at = ready.mono_ms + millis(schedule.cleaner);
    // A batch that was full is followed by the next in the next round: pruning keeps up with what is written, and never holds
    // the jobs behind it up for long.
    let more_to_prune = Arc::new(AtomicBool::new(false));
    while !stop.load(Ordering::Relaxed) {
        let now = clock.refresh();
        ticks.publish(&health);
        health.observe(now.mono_ms);
        metrics.devices_online.set(u64::try_from(directory.online()).unwrap_or(0));
        if sampler.is_due(now.mono_ms) {
            sampler.sample(now.mono_ms, now.unix_ms, metrics.totals(pusher.backlog()), &metrics.history);
        }
        health.set(Component::Database, database_state(store.as_ref()));
        if let Some(link) = &link {
            health.set(Component::Redis, link.state());
        }
        let stored = store.health().ready.load(Ordering::Relaxed);
        if !stored || link.as_ref().is_some_and(|link| !link.is_up()) {
            present_since = now.unix_ms;
        }
        if now.mono_ms >= backstop_at {
            backstop_at = now.mono_ms + millis(schedule.backstop);
            let job = Backstop {
                at: now.unix_ms,
                interrupts_from: unix(present_since, schedule.interrupt_grace),
                offline_from: unix(present_since, schedule.offline_grace),
                interrupt_grace: signed(schedule.interrupt_grace),
                offline_grace: signed(schedule.offline_grace),
            };
            drop(store.submit(Job::Backstop(job), Reply::None));
        }
        if now.mono_ms >= poll_at {
            poll_at = now.mono_ms + millis(schedule.command_poll);
            let (router, owner) = (Arc::clone(&router), owner.clone());
            drop(store.read(Box::new(move |reader| {
                let devices =
                    reader.and_then(|reader| reader.devices_with_queued_commands(owner.as_ref(), POLL_DEVICES_MAX));
                devices.into_iter().flatten().for_each(|device_id| router.commands_waiting(device_id));
            })));
        }
        if now.mono_ms >= clean_at || more_to_prune.swap(false, Ordering::Relaxed) {
            clean_at = now.mono_ms + millis(schedule.cleaner);
            let more = Arc::clone(&more_to_prune);
            let reply = Reply::Call(Box::new(move |outcome| {
                more.store(matches!(outcome, Outcome::Pruned { more: true }), Ordering::Relaxed);
            }));
            drop(store.submit(Job::Prune(schedule.retention.prune(now.unix_ms)), reply));
        }
        if calm.after_burst(now.mono_ms, metrics.accepted()) {
            memory::give_back();
        }
        thread::park_timeout(Duration::from_secs(1));
    }
}

/// The store's state as readiness shows it.
pub fn database_state(store: &dyn Store) -> ComponentState {
    let health = store.health();
    if health.ready.load(Ordering::Relaxed) {
        return ComponentState::ok(Duration::from_micros(health.commit_us.load(Ordering::Relaxed)));
    }
    let reason = health.reason.lock().clone();
    ComponentState::Error { error: reason.unwrap_or_else(|| "not ready yet".to_owned()) }
}
