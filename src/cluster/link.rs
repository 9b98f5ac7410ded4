//! The connections to Redis: a few threads with one each, and the jobs that run on them.
//!
//! A job is two closures: `work` talks to Redis on a worker's connection, `done` gets what came of it, on the same thread, exactly
//! once. Where nothing can be sent (Redis is away, too many jobs wait, the link is closing) `done` is called at once, by whoever
//! submits. Jobs run in any order and next to each other; who needs an order submits the next job from the `done` of the last.
//!
//! ```text
//! submit ──▶ 4,096 jobs ──▶ workers ──▶ Redis     guards ──▶ 4,096 jobs ──▶ 2 workers of their own ──▶ Redis
//!                              │ failed: look at once
//!                              ▼
//!                           monitor ──every second──▶ Redis: up, down; restarted, emptied
//! ```
//!
//! - Only the monitor says *down* and *up*. While it is down, nothing is sent and jobs fail with its reason; the monitor tries again
//!   after 100 ms, doubling to 2 s, with jitter.
//! - A job has a time from its submission to its end. What waited too long is not sent; all its answers together have what is left.
//!   A connection that failed or timed out is not used again. So a server that hangs holds a worker for no longer than a job's time.
//! - `work` may have been carried out although it failed with [`LinkError::Timeout`] or [`LinkError::Lost`].
//! - A **marker** key, written once, tells an emptied Redis from one that kept its data: see [`Back`].
//! - Jobs of [`RedisOp::Guard`] have a queue and workers of their own: requests wait for them, and nothing else may hold them up.

mod conn;
mod counters;
mod monitor;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use std::{fmt, fs, io};

use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, TrySendError, bounded, select};
use parking_lot::{Condvar, Mutex};
use redis::{
    Client, Connection, ConnectionAddr, ErrorKind, IntoConnectionInfo, RedisError, RedisResult, ServerErrorKind,
    TlsCertificates,
};

use crate::config;
use crate::telemetry::label::{RedisFailure, RedisOp};
use crate::telemetry::{Exposition, MetricSource, health::ComponentState};

pub use conn::Conn;
pub use counters::LinkCounters;
use monitor::Monitor;

/// Jobs that may wait, in each of the two queues.
const JOBS_MAX: usize = 4_096;
/// Workers for jobs of [`RedisOp::Guard`].
const GUARD_WORKERS: usize = 2;
/// An idle worker looks this often whether its connection is still there.
const IDLE_ROUND: Duration = Duration::from_secs(10);

/// How the link connects and how long it waits.
#[derive(Clone)]
pub struct LinkSettings {
    /// `redis://` or `rediss://` (TLS), with user, password and database if need be.
    pub url: String,
    /// PEM file of the authorities whose certificates are accepted; `None`: those that the system trusts. `SSL_CERT_FILE` names others.
    pub ca_file: Option<PathBuf>,
    /// For a connection to be ready, name resolution excepted.
    pub connect_timeout: Duration,
    /// For a job that says nothing else, from submission to its end; and for each answer on other connections.
    pub command_timeout: Duration,
    /// Connections for jobs, those for guards not counted.
    pub workers: usize,
    /// How often the monitor looks.
    pub ping_interval: Duration,
}

impl LinkSettings {
    /// The defaults of the configuration.
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            ca_file: None,
            connect_timeout: Duration::from_secs(1),
            command_timeout: Duration::from_secs(1),
            workers: 4,
            ping_interval: Duration::from_secs(1),
        }
    }
}

impl LinkSettings {
    /// What is configured; `None` for the embedded queue.
    pub fn configured(queue: &config::Queue) -> Option<Self> {
        let config::QueueUrl::Redis(url) = &queue.url else { return None };
        let ca_file = (!queue.ca_file.is_empty()).then(|| PathBuf::from(&queue.ca_file));
        Some(Self {
            ca_file,
            connect_timeout: queue.connect_timeout,
            command_timeout: queue.timeout,
            workers: usize::try_from(queue.connections).unwrap_or(usize::MAX),
            ..Self::new(url)
        })
    }
}

impl fmt::Debug for LinkSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Not the URL, which may hold a password.
        f.debug_struct("LinkSettings").field("workers", &self.workers).finish_non_exhaustive()
    }
}

/// Why a job has no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LinkError {
    /// Nothing was sent: Redis is known to be away.
    #[error("redis is away: {0}")]
    Down(Arc<str>),
    /// Nothing was sent: too many jobs wait.
    #[error("{JOBS_MAX} jobs for redis wait already")]
    Full,
    /// Nothing was sent: the job's time was up when its turn came.
    #[error("redis did not get to it in time")]
    Late,
    /// Sent, and no answer in time.
    #[error("redis did not answer in time")]
    Timeout,
    /// The connection failed before the answer, or could not be made.
    #[error("connection to redis: {0}")]
    Lost(Arc<str>),
    /// An error reply, or an answer of another type than asked for.
    #[error("redis refused: {0}")]
    Refused(Arc<str>),
    /// Nothing was sent: the gateway stops.
    #[error("the connection to redis is closed")]
    Closed,
}

impl LinkError {
    /// The reason as a metric's label.
    pub const fn label(&self) -> RedisFailure {
        match self {
            Self::Down(_) => RedisFailure::Down,
            Self::Full => RedisFailure::Full,
            Self::Late => RedisFailure::Late,
            Self::Timeout => RedisFailure::Timeout,
            Self::Lost(_) => RedisFailure::Lost,
            Self::Refused(_) => RedisFailure::Refused,
            Self::Closed => RedisFailure::Closed,
        }
    }

    /// Whether a connection that it happened on must not be used again.
    pub const fn breaks_connection(&self) -> bool {
        matches!(self, Self::Timeout | Self::Lost(_))
    }
}

impl From<RedisError> for LinkError {
    fn from(error: RedisError) -> Self {
        match error.kind() {
            _ if error.is_timeout() => Self::Timeout,
            // A demoted or loading server is as good as gone: the next connection may find its successor.
            ErrorKind::Io | ErrorKind::Parse => Self::Lost(error.to_string().into()),
            ErrorKind::Server(
                ServerErrorKind::ReadOnly | ServerErrorKind::BusyLoading | ServerErrorKind::MasterDown,
            ) => Self::Lost(error.to_string().into()),
            _ => Self::Refused(error.to_string().into()),
        }
    }
}

/// Redis is there again, or was found without its data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Back {
    /// It is another process than before.
    pub restarted: bool,
    /// What was written before is gone, as far as this instance can tell: the marker is missing, or another one than before.
    pub emptied: bool,
    /// How long ago the marker was written, by Redis' clock: nothing in Redis is older. Short also where another instance found Redis
    /// emptied first, or where this one is starting.
    pub data_age: Duration,
}

/// Readiness of Redis.
#[derive(Debug)]
pub struct LinkHealth {
    /// Whether the last look of the monitor was answered.
    pub ready: AtomicBool,
    /// Of that answer, microseconds.
    pub latency_us: AtomicU64,
    /// Why it is not ready.
    pub reason: Mutex<Option<Arc<str>>>,
}

type OnBack = Arc<dyn Fn(Back) + Send + Sync>;
type Run = Box<dyn FnOnce(Result<&mut Conn, LinkError>) + Send>;

struct Job {
    deadline: Instant,
    run: Run,
}

/// What workers, monitor and callers share.
struct Shared {
    settings: LinkSettings,
    client: Client,
    health: LinkHealth,
    counters: LinkCounters,
    /// Raised each time Redis is back: a connection of an older one is stale.
    generation: AtomicU64,
    /// For those who wait until Redis is there; the flag says that the link closes.
    closing: Mutex<bool>,
    changed: Condvar,
    last_back: Mutex<Option<Back>>,
    on_back: Mutex<Vec<OnBack>>,
    /// Asks the monitor to look now. Full: it is about to.
    look: Sender<()>,
}

/// Jobs on their way to workers. The receiving end is kept for what is left when the workers have gone.
type Lane = (Sender<Job>, Receiver<Job>);

/// Shared connections to Redis. Cheap to call from any thread; [`Link::submit`] never waits.
pub struct Link {
    shared: Arc<Shared>,
    jobs: Lane,
    guard_jobs: Lane,
    /// Nothing is ever sent: dropping it tells the threads to stop.
    stop: Mutex<Option<Sender<()>>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Link {
    /// Connects, checks that Redis answers, and starts the threads.
    ///
    /// # Errors
    /// The URL is none, Redis cannot be reached or refuses the login, or the system refuses a thread. The text names the server, never
    /// the password.
    pub fn open(settings: LinkSettings) -> Result<Arc<Self>, OpenError> {
        let client = client(&settings)?;
        let server = client.get_connection_info().addr().to_string();
        let (look, looked) = bounded(1);
        let (stop, stopped) = bounded(0);
        let (jobs, guard_jobs): (Lane, Lane) = (bounded(JOBS_MAX), bounded(JOBS_MAX));
        let (waiting, guards_waiting) = (jobs.1.clone(), guard_jobs.1.clone());
        let workers = settings.workers.max(1);
        let shared = Arc::new(Shared {
            settings,
            client,
            health: LinkHealth {
                ready: AtomicBool::new(false),
                latency_us: AtomicU64::new(0),
                reason: Mutex::new(Some("not connected yet".into())),
            },
            counters: LinkCounters::default(),
            generation: AtomicU64::new(0),
            closing: Mutex::new(false),
            changed: Condvar::new(),
            last_back: Mutex::new(None),
            on_back: Mutex::new(Vec::new()),
            look,
        });
        let monitor =
            Monitor::connect(Arc::clone(&shared)).map_err(|cause| OpenError::Unreachable { server, cause })?;
        let link =
            Arc::new(Self { shared, jobs, guard_jobs, stop: Mutex::new(Some(stop)), threads: Mutex::new(Vec::new()) });
        let monitor_stop = stopped.clone();
        link.spawn("redis-monitor".to_owned(), move |_| monitor.run(&looked, &monitor_stop))?;
        for index in 0..workers {
            let (waiting, stopped) = (waiting.clone(), stopped.clone());
            link.spawn(format!("redis-{index}"), move |shared| work(&shared, &waiting, &stopped))?;
        }
        for index in 0..GUARD_WORKERS {
            let (waiting, stopped) = (guards_waiting.clone(), stopped.clone());
            link.spawn(format!("redis-guard-{index}"), move |shared| work(&shared, &waiting, &stopped))?;
        }
        Ok(link)
    }

    fn spawn(&self, name: String, run: impl FnOnce(Arc<Shared>) + Send + 'static) -> Result<(), OpenError> {
        let shared = Arc::clone(&self.shared);
        let handle = thread::Builder::new().name(name).spawn(move || run(shared)).map_err(OpenError::Thread)?;
        self.threads.lock().push(handle);
        Ok(())
    }

    /// Runs `work` on a connection within the default time, then `done` with what came of it. See [`Link::submit_within`].
    pub fn submit<T: 'static>(
        &self,
        op: RedisOp,
        work: impl FnOnce(&mut Conn) -> RedisResult<T> + Send + 'static,
        done: impl FnOnce(Result<T, LinkError>) + Send + 'static,
    ) {
        self.submit_within(self.shared.settings.command_timeout, op, work, done);
    }

    /// Runs `work` on a connection, then `done` with what came of it, both on a worker's thread; `done` at once and here where nothing can
    /// be sent, so the caller must hold no lock that `done` takes. `within` counts from now to the last answer. Neither closure may block
    /// on anything but this connection.
    pub fn submit_within<T: 'static>(
        &self,
        within: Duration,
        op: RedisOp,
        work: impl FnOnce(&mut Conn) -> RedisResult<T> + Send + 'static,
        done: impl FnOnce(Result<T, LinkError>) + Send + 'static,
    ) {
        let shared = Arc::clone(&self.shared);
        let run: Run = Box::new(move |connection| {
            let result = connection.and_then(|connection| {
                let began = now();
                let result = work(connection).map_err(LinkError::from);
                shared.counters.latency[op].record(now().duration_since(began));
                result
            });
            if let Err(error) = &result {
                shared.counters.failed(error);
            }
            done(result);
        });
        if !self.is_up() {
            run(Err(self.shared.why_down()));
            return;
        }
        let (jobs, left) = if op == RedisOp::Guard { &self.guard_jobs } else { &self.jobs };
        match jobs.try_send(Job { deadline: now() + within, run }) {
            // The workers may have gone just now.
            Ok(()) if *self.shared.closing.lock() && !self.is_up() => fail_left(&self.shared, left),
            Ok(()) => {}
            Err(TrySendError::Full(job)) => (job.run)(Err(LinkError::Full)),
            Err(TrySendError::Disconnected(job)) => (job.run)(Err(LinkError::Closed)),
        }
    }

    /// Runs `work` and waits for it: for threads that may wait, never from a `done`.
    ///
    /// # Errors
    /// As [`LinkError`] says. It may have been carried out although it was [`LinkError::Timeout`] or [`LinkError::Lost`].
    pub fn call<T: Send + 'static>(
        &self,
        within: Duration,
        op: RedisOp,
        work: impl FnOnce(&mut Conn) -> RedisResult<T> + Send + 'static,
    ) -> Result<T, LinkError> {
        let (answer, answered) = bounded(1);
        self.submit_within(within, op, work, move |result| drop(answer.try_send(result)));
        // A worker may be at its connection, or at a job of many answers: some more patience than the job itself has.
        match answered.recv_timeout(within.saturating_mul(2) + self.shared.settings.connect_timeout) {
            Ok(result) => result,
            Err(RecvTimeoutError::Timeout) => Err(LinkError::Timeout),
            Err(RecvTimeoutError::Disconnected) => Err(LinkError::Closed),
        }
    }

    /// Calls `on_back`, on the monitor's thread, each time Redis is back or found emptied from now on. It must not block.
    pub fn on_back(&self, on_back: impl Fn(Back) + Send + Sync + 'static) {
        self.shared.on_back.lock().push(Arc::new(on_back));
    }

    /// How Redis was found at start, or last came back.
    pub fn last_back(&self) -> Back {
        let none = Back { restarted: false, emptied: false, data_age: Duration::ZERO };
        self.shared.last_back.lock().unwrap_or(none)
    }

    /// Whether Redis answers, as far as is known.
    pub fn is_up(&self) -> bool {
        self.shared.is_up()
    }

    /// For `/readyz` and whoever shows it.
    pub fn health(&self) -> &LinkHealth {
        &self.shared.health
    }

    /// The same as `/readyz` shows it.
    pub fn state(&self) -> ComponentState {
        let health = self.health();
        if health.ready.load(Ordering::Relaxed) {
            return ComponentState::ok(Duration::from_micros(health.latency_us.load(Ordering::Relaxed)));
        }
        ComponentState::Error { error: self.shared.why_down().to_string() }
    }

    /// Counters since start.
    pub fn counters(&self) -> &LinkCounters {
        &self.shared.counters
    }

    /// Raised each time Redis is back; a connection made under another one is stale.
    pub fn generation(&self) -> u64 {
        self.shared.generation.load(Ordering::Acquire)
    }

    /// Waits until Redis is there, the link closes, or the time is up. Returns whether it is there.
    pub fn wait_up(&self, at_most: Duration) -> bool {
        let deadline = now() + at_most;
        let mut closing = self.shared.closing.lock();
        while !self.is_up() && !*closing {
            if self.shared.changed.wait_until(&mut closing, deadline).timed_out() {
                break;
            }
        }
        self.is_up() && !*closing
    }

    /// A connection for a thread that keeps one of its own, because it blocks on it or subscribes. Each answer on it has the default time.
    ///
    /// # Errors
    /// Redis is known to be away, or cannot be reached within the connect timeout.
    pub fn connect(&self) -> Result<Connection, LinkError> {
        if !self.is_up() {
            return Err(self.shared.why_down());
        }
        let connected = self.shared.connect(self.shared.settings.connect_timeout);
        if connected.is_err() {
            self.look();
        }
        connected
    }

    /// For who finds a connection of its own broken: the monitor looks now, not at its next second.
    pub fn look(&self) {
        self.shared.look_now();
    }

    /// The default time of a job.
    pub fn command_timeout(&self) -> Duration {
        self.shared.settings.command_timeout
    }

    /// Runs the jobs that wait, ends the threads and waits for them. Jobs submitted from now on fail.
    pub fn close(&self) {
        drop(self.stop.lock().take());
        *self.shared.closing.lock() = true;
        self.shared.changed.notify_all();
        let threads = std::mem::take(&mut *self.threads.lock());
        for thread in threads {
            // The last reference may be dropped by a job's own closure, on a worker.
            if thread.thread().id() != thread::current().id() && thread.join().is_err() {
                log::error!(target: "chargegate::cluster", "a redis thread ended by a panic");
            }
        }
        self.shared.set_down("closed".into());
        fail_left(&self.shared, &self.jobs.1);
        fail_left(&self.shared, &self.guard_jobs.1);
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.close();
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link").field("health", &self.shared.health).finish_non_exhaustive()
    }
}

impl MetricSource for Link {
    fn render(&self, to: &mut Exposition<'_>) {
        self.shared.counters.render(self.is_up(), self.jobs.0.len() + self.guard_jobs.0.len(), to);
    }
}

/// Why there is no link.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The URL cannot be used.
    #[error("queue.url is no redis URL: {0}")]
    Url(String),
    /// The file of authorities cannot be used.
    #[error("queue.ca_file {} {problem}", path.display())]
    Authorities {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// The server does not answer, or not as it should.
    #[error("redis at {server} cannot be used: {cause}")]
    Unreachable {
        /// Address without user and password.
        server: String,
        /// What happened.
        cause: LinkError,
    },
    /// The system refused a thread.
    #[error("no thread for redis: {0}")]
    Thread(#[source] io::Error),
}

fn client(settings: &LinkSettings) -> Result<Client, OpenError> {
    // The library's text of a refused URL does not repeat it.
    let invalid = |error: RedisError| OpenError::Url(error.to_string());
    let info = settings.url.as_str().into_connection_info().map_err(invalid)?;
    // Each connection would begin with a command that old servers refuse.
    let login = info.redis_settings().clone().set_skip_set_lib_name();
    let keepalive = socket2::TcpKeepalive::new()
        .with_time(Duration::from_secs(15))
        .with_interval(Duration::from_secs(5))
        .with_retries(3);
    let tcp = info.tcp_settings().clone().set_nodelay(true).set_keepalive(keepalive);
    let encrypted = match info.addr() {
        ConnectionAddr::TcpTls { insecure: true, .. } => {
            return Err(OpenError::Url("certificates are always checked, \"#insecure\" is not supported".to_owned()));
        }
        ConnectionAddr::TcpTls { .. } => true,
        _ => false,
    };
    let info = info.set_redis_settings(login).set_tcp_settings(tcp);
    match &settings.ca_file {
        Some(path) if encrypted => {
            let unusable = |problem: String| OpenError::Authorities { path: path.clone(), problem };
            let root_cert = Some(fs::read(path).map_err(|error| unusable(error.to_string()))?);
            let certificates = TlsCertificates { client_tls: None, root_cert };
            Client::build_with_tls(info, certificates).map_err(|error| unusable(error.to_string()))
        }
        _ => Client::open(info).map_err(invalid),
    }
}

impl Shared {
    fn is_up(&self) -> bool {
        self.health.ready.load(Ordering::Acquire)
    }

    fn why_down(&self) -> LinkError {
        let reason = self.health.reason.lock().clone();
        if *self.closing.lock() {
            LinkError::Closed
        } else {
            LinkError::Down(reason.unwrap_or_else(|| "unknown".into()))
        }
    }

    fn set_down(&self, reason: Arc<str>) {
        *self.health.reason.lock() = Some(reason);
        self.health.ready.store(false, Ordering::Release);
    }

    fn set_up(&self) {
        self.generation.fetch_add(1, Ordering::AcqRel);
        *self.health.reason.lock() = None;
        let closing = self.closing.lock();
        self.health.ready.store(true, Ordering::Release);
        drop(closing);
        self.changed.notify_all();
    }

    fn look_now(&self) {
        // Full means that it is asked to already.
        self.look.try_send(()).ok();
    }

    fn connect(&self, within: Duration) -> Result<Connection, LinkError> {
        let connection = self.client.get_connection_with_timeout(at_least_a_moment(within))?;
        set_timeout(&connection, self.settings.command_timeout)?;
        self.counters.connections.inc();
        Ok(connection)
    }
}

/// Fails what waits when no worker is left to do so.
fn fail_left(shared: &Shared, jobs: &Receiver<Job>) {
    for job in jobs.try_iter() {
        (job.run)(Err(shared.why_down()));
    }
}

/// A worker's connection and the generation it was made under.
struct Held {
    connection: Conn,
    generation: u64,
}

fn work(shared: &Arc<Shared>, jobs: &Receiver<Job>, stopped: &Receiver<()>) {
    let mut held = None;
    drop(hold(shared, &mut held, shared.settings.connect_timeout));
    loop {
        select! {
            recv(jobs) -> job => match job {
                Ok(job) => run(shared, &mut held, job),
                Err(_) => return,
            },
            recv(stopped) -> _ => {
                // What waits is run; after that, nothing more comes that anybody waits for.
                while let Ok(job) = jobs.try_recv() {
                    run(shared, &mut held, job);
                }
                return;
            },
            default(IDLE_ROUND) => look_after(shared, &mut held),
        }
    }
}

fn run(shared: &Arc<Shared>, held: &mut Option<Held>, job: Job) {
    let left = job.deadline.saturating_duration_since(now());
    let ready = if left.is_zero() { Err(LinkError::Late) } else { hold(shared, held, left) };
    let failed = ready.is_err();
    if catch_unwind(AssertUnwindSafe(|| (job.run)(ready))).is_err() {
        // How far it got on the connection is unknown.
        *held = None;
        shared.counters.panics.inc();
        log::error!(target: "chargegate::cluster", "a job for redis panicked");
        return;
    }
    if held.as_ref().is_some_and(|held| held.connection.is_broken()) {
        *held = None;
        shared.look_now();
    } else if failed && !left.is_zero() && shared.is_up() {
        shared.look_now();
    }
}

/// The worker's connection for a job of this length, made anew if Redis was away since.
fn hold<'a>(shared: &Arc<Shared>, held: &'a mut Option<Held>, within: Duration) -> Result<&'a mut Conn, LinkError> {
    if !shared.is_up() {
        *held = None;
        return Err(shared.why_down());
    }
    let generation = shared.generation.load(Ordering::Acquire);
    if held.as_ref().is_none_or(|held| held.generation != generation) {
        *held = None;
        let connection = Conn::new(shared.connect(within.min(shared.settings.connect_timeout))?);
        *held = Some(Held { connection, generation });
    }
    match held {
        Some(held) => held.connection.begin(within).map(|()| &mut held.connection),
        None => Err(LinkError::Late),
    }
}

/// Keeps an idle connection from being found dead by the next job.
fn look_after(shared: &Arc<Shared>, held: &mut Option<Held>) {
    let timeout = shared.settings.command_timeout;
    let Ok(connection) = hold(shared, held, timeout) else { return };
    if redis::cmd("PING").exec(connection).is_err() {
        *held = None;
        shared.look_now();
    }
}

fn set_timeout(connection: &Connection, timeout: Duration) -> Result<(), LinkError> {
    let timeout = Some(at_least_a_moment(timeout));
    connection.set_read_timeout(timeout)?;
    connection.set_write_timeout(timeout)?;
    Ok(())
}

/// No time at all would mean no limit.
fn at_least_a_moment(timeout: Duration) -> Duration {
    timeout.max(Duration::from_millis(1))
}

#[expect(clippy::disallowed_methods, reason = "the clock enters here")]
fn now() -> Instant {
    Instant::now()
}
