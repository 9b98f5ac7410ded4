//! This instance among those that share the store: says that it lives, and takes care of what others left behind.
//!
//! | what | every | does |
//! |---|---|---|
//! | beat | 3 s | says that this instance lives, by the database's clock |
//! | reaper | 10 s | takes their devices from instances that were not heard of for 15 s |
//!
//! All instances reap; the store gives each device to one of them. A device that is nobody's keeps its waiting commands until its
//! next bind claims them; its mirrored session loses its connection; its orders have their grace from then on.
//!
//! Who finds that it was taken for dead joins again and takes those of its devices back that nobody has bound since.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crossbeam::channel::bounded;
use parking_lot::Mutex;

use super::ServerId;
use super::sessions::Sessions;
use crate::gateway::directory::Directory;
use crate::queue::Queue;
use crate::shard::Clock;
use crate::store::{InstanceJob, InstanceOutcome, Job, Outcome, Released, Reply, Store, StoreError};
use crate::telemetry::{Counter, Exposition, MetricSource, Metrics};

const BEAT_MS: u64 = 3_000;
const REAP_MS: u64 = 10_000;
/// An instance that was not heard of for so long is dead.
const DEAD_AFTER_MS: i64 = 15_000;
/// Looks again so soon while there is more to be taken.
const REAP_MORE_MS: u64 = 100;
const ROUND: Duration = Duration::from_millis(500);
/// For an answer of the store while starting and stopping.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// Devices adopted by one job.
const ADOPT_MAX: usize = 500;

/// What the thread works with.
pub struct Context {
    /// Rows of instances and devices.
    pub store: Arc<dyn Store>,
    /// Devices of this instance.
    pub directory: Arc<Directory>,
    /// What dead ones told of their devices.
    pub sessions: Arc<Sessions>,
    /// Their queues.
    pub queue: Arc<dyn Queue>,
    /// Connections to tell of.
    pub metrics: Arc<Metrics>,
    /// This instance.
    pub own: ServerId,
    /// The process's clock.
    pub clock: Clock,
}

/// Why this instance could not join.
#[derive(Debug, thiserror::Error)]
pub enum InstanceError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The system refuses a thread.
    #[error("cannot start a thread: {0}")]
    Thread(#[from] std::io::Error),
}

/// The running thread.
pub struct Instances {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

struct Shared {
    context: Context,
    stopping: AtomicBool,
    draining: AtomicBool,
    /// The next beat is not waited for.
    beat_now: AtomicBool,
    /// It was taken for dead.
    forgotten: AtomicBool,
    /// There is more to be reaped.
    more: AtomicBool,
    counters: Counters,
}

#[derive(Default)]
struct Counters {
    beats: Counter,
    beats_failed: Counter,
    released: Counter,
    rejoined: Counter,
}

impl Instances {
    /// Joins, and takes its devices from the life of this instance before. To be called before any device can connect.
    ///
    /// # Errors
    /// The store fails or does not answer, or the system refuses a thread.
    pub fn start(context: Context) -> Result<Arc<Self>, InstanceError> {
        let shared = Arc::new(Shared {
            context,
            stopping: AtomicBool::new(false),
            draining: AtomicBool::new(false),
            beat_now: AtomicBool::new(false),
            forgotten: AtomicBool::new(false),
            more: AtomicBool::new(false),
            counters: Counters::default(),
        });
        shared.join()?;
        while let InstanceOutcome::Released(released) =
            shared.ask(InstanceJob::Release { server: shared.context.own.clone() })?
        {
            shared.tell_released(&released);
            if released.iter().all(|one| one.all) {
                break;
            }
        }
        let running = Arc::clone(&shared);
        let thread = thread::Builder::new().name("instances".into()).spawn(move || running.run())?;
        Ok(Arc::new(Self { shared, thread: Mutex::new(Some(thread)) }))
    }

    /// From now on the beat, the next one of which comes at once, says whether this instance sends its devices away.
    pub fn drain(&self, draining: bool) {
        self.shared.draining.store(draining, Ordering::Release);
        self.shared.beat_now.store(true, Ordering::Release);
        if let Some(thread) = self.thread.lock().as_ref() {
            thread.thread().unpark();
        }
    }

    /// Ends the thread and leaves. What still names this instance is taken care of by the others, or by its next start.
    pub fn stop(&self) {
        self.shared.stopping.store(true, Ordering::Release);
        if let Some(thread) = self.thread.lock().take() {
            thread.thread().unpark();
            drop(thread.join());
        }
        let leave = InstanceJob::Leave { server: self.shared.context.own.clone() };
        if let Err(error) = self.shared.ask(leave) {
            log::warn!(target: "chargegate::cluster", error:% = error; "this instance did not leave: it will be found dead");
        }
    }
}

impl MetricSource for Instances {
    fn render(&self, to: &mut Exposition<'_>) {
        let counters = &self.shared.counters;
        for (name, help, counter) in [
            ("chargegate_instance_beats_total", "Signs of life stored.", &counters.beats),
            ("chargegate_instance_beats_failed_total", "Signs of life that were not stored.", &counters.beats_failed),
            ("chargegate_instance_rejoined_total", "Times this instance was taken for dead.", &counters.rejoined),
            ("chargegate_instance_released_total", "Devices of dead instances released.", &counters.released),
        ] {
            to.counter(name, help, counter.get());
        }
    }
}

impl Shared {
    fn run(self: Arc<Self>) {
        let mut clock = self.context.clock;
        let start = clock.refresh().mono_ms;
        let (mut beat_at, mut reap_at) = (start, start);
        while !self.stopping.load(Ordering::Acquire) {
            let now = clock.refresh().mono_ms;
            if self.forgotten.swap(false, Ordering::AcqRel) {
                self.rejoin();
            }
            if self.beat_now.swap(false, Ordering::AcqRel) || now >= beat_at {
                beat_at = now + BEAT_MS;
                self.beat();
            }
            if self.more.swap(false, Ordering::AcqRel) {
                reap_at = reap_at.min(now + REAP_MORE_MS);
            }
            if now >= reap_at {
                reap_at = now + REAP_MS;
                self.reap();
            }
            thread::park_timeout(ROUND);
        }
    }

    fn beat(self: &Arc<Self>) {
        let Context { own, metrics, .. } = &self.context;
        let connections = u32::try_from(metrics.connections()).unwrap_or(u32::MAX);
        let draining = self.draining.load(Ordering::Acquire);
        let job = InstanceJob::Beat { server: own.clone(), connections, draining };
        let shared = Arc::clone(self);
        self.submit(job, move |outcome| match outcome {
            Some(InstanceOutcome::Beaten { known }) => {
                shared.counters.beats.inc();
                if !known {
                    shared.forgotten.store(true, Ordering::Release);
                }
            }
            _ => shared.counters.beats_failed.inc(),
        });
    }

    fn reap(self: &Arc<Self>) {
        let job = InstanceJob::Reap { by: self.context.own.clone(), dead_after_ms: DEAD_AFTER_MS };
        let shared = Arc::clone(self);
        self.submit(job, move |outcome| {
            if let Some(InstanceOutcome::Released(released)) = outcome {
                shared.tell_released(&released);
                shared.more.fetch_or(released.iter().any(|one| !one.all), Ordering::AcqRel);
            }
        });
    }

    /// Says in the mirror what is so in the store.
    fn tell_released(&self, released: &[Released]) {
        let Context { sessions, queue, own, clock, .. } = &self.context;
        let mut clock = *clock;
        for Released { server, devices, all } in released {
            self.counters.released.add(devices.len() as u64);
            let is_own = server == own;
            // After Redis was emptied, what is there was written by who lives.
            if is_own || sessions.is_settled() {
                sessions.drop_connections(server, devices, clock.refresh().unix_ms);
            }
            if !devices.is_empty() {
                log::warn!(
                    target: "chargegate::cluster", server:% = server, devices = devices.len();
                    "devices of an instance that is gone are free"
                );
            }
            if *all && !is_own {
                queue.forget(server);
            }
        }
    }

    fn join(&self) -> Result<(), StoreError> {
        let server = self.context.own.clone();
        self.ask(InstanceJob::Join { server, version: env!("CARGO_PKG_VERSION").to_owned() }).map(drop)
    }

    /// After it was taken for dead: joins again, with the devices it still has.
    fn rejoin(&self) {
        self.counters.rejoined.inc();
        log::warn!(target: "chargegate::cluster", "this instance was taken for dead: it joins again");
        let mut devices = Vec::new();
        self.context
            .directory
            .visit(|entry| devices.extend(entry.live_epoch().map(|epoch| (entry.device_id(), epoch))));
        let adopted = self.join().and_then(|()| {
            devices.chunks(ADOPT_MAX).try_for_each(|devices| {
                let (server, devices) = (self.context.own.clone(), devices.to_vec());
                self.ask(InstanceJob::Adopt { server, devices }).map(drop)
            })
        });
        if let Err(error) = adopted {
            log::warn!(target: "chargegate::cluster", error:% = error; "this instance did not join again");
            self.forgotten.store(true, Ordering::Release);
        }
    }

    fn submit(&self, job: InstanceJob, done: impl FnOnce(Option<InstanceOutcome>) + Send + 'static) {
        let reply = Reply::Call(Box::new(move |outcome| {
            done(if let Outcome::Instance(outcome) = outcome { Some(outcome) } else { None });
        }));
        if let Err((_, Reply::Call(done))) = self.context.store.submit(Job::Instance(job), reply) {
            let error = StoreError::Unavailable("too many changes wait".to_owned());
            done(Outcome::Failed { device_id: None, key: None, ticket: None, error });
        }
    }

    /// Submits and waits: for threads that may.
    fn ask(&self, job: InstanceJob) -> Result<InstanceOutcome, StoreError> {
        let (told, answer) = bounded(1);
        let reply = Reply::Call(Box::new(move |outcome| drop(told.try_send(outcome))));
        let full = || StoreError::Unavailable("too many changes wait".to_owned());
        self.context.store.submit(Job::Instance(job), reply).map_err(|_| full())?;
        match answer.recv_timeout(ANSWER_WITHIN) {
            Ok(Outcome::Instance(outcome)) => Ok(outcome),
            Ok(Outcome::Failed { error, .. }) => Err(error),
            Ok(other) => Err(StoreError::Statement(format!("an instance was answered {other:?}"))),
            Err(_) => Err(StoreError::Unavailable("the store did not answer in time".to_owned())),
        }
    }
}
