//! API keys and webhook endpoints, of the configuration and of the admin API, put in force on this instance.
//!
//! ```text
//! configuration, SIGHUP ──┐
//! store ──every 2 s, and ─┼─▶ follower ──keys──▶ Authenticator
//!   at once when told ────┘      │
//!                                └──endpoints, newest list──▶ pusher's thread ──▶ Pusher::reload, which waits for deliveries to end
//! ```
//!
//! Each change in the store raises a revision; a follower that finds it raised reads everything again. It is told by the instance that
//! made the change: here by [`Managed::follow`], which has the answer wait until the change is in force on this instance, elsewhere by
//! a note; where that is lost, by its poll. While the store is away what was known last stays in force.
//!
//! Absent: what a change may be (the handlers and the store's transaction), and how keys and endpoints are used.

use std::{
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicUsize, Ordering::Relaxed},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, bounded};
use parking_lot::{Condvar, Mutex, RwLock};

mod merge;

pub use merge::Configured;

use crate::{
    api::auth::Authenticator,
    store::{Job, ManagedChange, ManagedJob, Reader, Reply, Store, StoreError},
    telemetry::{Counter, Exposition, MetricSource},
    webhook::{Endpoint, Pusher},
};
use merge::{LeftOut, Merged, Rows, Why, merge};

/// A change elsewhere whose note was lost is in force after this long.
const POLL: Duration = Duration::from_secs(2);
/// A query without an answer for this long is given up. An answer to a client may wait for one.
const READ_WAIT: Duration = Duration::from_secs(2);
/// Words to the follower that may wait; behind it, changes are found by the poll and answers do not wait for them.
const WORDS_MAX: usize = 256;
/// A reload that failed is tried again after this long.
const RETRY: Duration = Duration::from_secs(2);

/// Called when a change is in force here.
type Then = Box<dyn FnOnce() + Send>;

enum Word {
    /// Look whether there is something new.
    Look,
    /// The same, and call this when it is in force.
    Follow(Then),
    /// The configuration is another one.
    Configured,
    Stop,
}

/// Tells the follower that something changed. Cheap to copy.
#[derive(Clone)]
pub struct Waker(Sender<Word>);

impl Waker {
    /// Never waits; a lost word is made up for by the poll.
    pub fn wake(&self) {
        drop(self.0.try_send(Word::Look));
    }
}

impl fmt::Debug for Waker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Waker")
    }
}

/// Why a look at the store or a reload failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Failure {
    /// The store is away.
    Unavailable,
    /// What is stored is not understood, or a query failed.
    Data,
    /// Too many queries wait.
    Busy,
    /// No answer.
    Timeout,
    /// The pusher refused a list, or lacks a thread.
    Pusher,
}

impl Failure {
    const ALL: [Self; 5] = [Self::Unavailable, Self::Data, Self::Busy, Self::Timeout, Self::Pusher];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Unavailable => "unavailable",
            Self::Data => "data",
            Self::Busy => "busy",
            Self::Timeout => "timeout",
            Self::Pusher => "pusher",
        }
    }
}

impl From<&StoreError> for Failure {
    fn from(error: &StoreError) -> Self {
        match error {
            StoreError::Unavailable(_) => Self::Unavailable,
            StoreError::Corrupt(_) | StoreError::Statement(_) => Self::Data,
        }
    }
}

/// What is counted.
#[derive(Debug, Default)]
pub struct ManagedCounters {
    revision: AtomicI64,
    keys: AtomicUsize,
    endpoints: AtomicUsize,
    shadowed: AtomicUsize,
    refused: AtomicUsize,
    reloads: Counter,
    pusher_reloads: Counter,
    failures: [Counter; Failure::ALL.len()],
    /// Answers that did not wait until the change was in force.
    unfollowed: Counter,
}

impl ManagedCounters {
    fn failed(&self, failure: Failure) {
        if let Some(counter) = self.failures.get(failure as usize) {
            counter.inc();
        }
    }
}

/// The list of endpoints on its way to the pusher: the newest one counts.
#[derive(Default)]
struct Wanted {
    endpoints: Vec<Endpoint>,
    stored: Vec<String>,
    closed: bool,
}

struct Shared {
    store: Arc<dyn Store>,
    auth: Arc<Authenticator>,
    configured: RwLock<Arc<Configured>>,
    wanted: Mutex<Wanted>,
    changed: Condvar,
    counters: Arc<ManagedCounters>,
}

/// Keeps keys and endpoints in force. Cheap to ask from any thread.
pub struct Managed {
    shared: Arc<Shared>,
    words: Sender<Word>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

/// Keys and endpoints cannot be put in force.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// They cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The system refuses a thread.
    #[error("cannot start a thread: {0}")]
    Thread(#[from] std::io::Error),
}

impl Managed {
    /// Reads what there is, puts the keys in force, and follows the store from then on. Waits for the first read, so that no request is
    /// judged by less than all keys.
    ///
    /// # Errors
    /// The store cannot be read, or the system refuses a thread.
    pub fn start(store: Arc<dyn Store>, auth: Arc<Authenticator>, configured: Configured) -> Result<Self, StartError> {
        let shared = Arc::new(Shared {
            store,
            auth,
            configured: RwLock::new(Arc::new(configured)),
            wanted: Mutex::default(),
            changed: Condvar::new(),
            counters: Arc::default(),
        });
        let mut follower =
            Follower { shared: Arc::clone(&shared), rows: Rows::default(), failing: None, left_out: Vec::new() };
        if let Some(rows) = shared.read(None).map_err(ReadFailed::into_error)? {
            follower.rows = rows;
        }
        follower.apply();
        let (words, heard) = bounded(WORDS_MAX);
        let thread = thread::Builder::new().name("managed".to_owned()).spawn(move || follower.run(&heard))?;
        Ok(Self { shared, words, threads: Mutex::new(vec![thread]) })
    }

    /// The configuration that is in force.
    pub fn configured(&self) -> Arc<Configured> {
        Arc::clone(&self.shared.configured.read())
    }

    /// Another configuration is in force from now on.
    pub fn configure(&self, configured: Configured) {
        *self.shared.configured.write() = Arc::new(configured);
        // Waits at most while the follower, which has deadlines, is at work: a configuration must not be lost.
        drop(self.words.send(Word::Configured));
    }

    /// Has a committed change put in force here, and then calls `then`, on the follower's thread. Never waits. Where the follower is
    /// behind or the store does not answer, `then` is called all the same.
    pub fn follow(&self, then: impl FnOnce() + Send + 'static) {
        if let Err(refused) = self.words.try_send(Word::Follow(Box::new(then))) {
            self.shared.counters.unfollowed.inc();
            if let Word::Follow(then) = refused.into_inner() {
                then();
            }
        }
    }

    /// For who hears of changes made elsewhere.
    pub fn waker(&self) -> Waker {
        Waker(self.words.clone())
    }

    /// What is counted.
    pub fn counters(&self) -> &Arc<ManagedCounters> {
        &self.shared.counters
    }

    /// All endpoints now, for the pusher to start with.
    pub fn endpoints(&self) -> Vec<Endpoint> {
        self.shared.wanted.lock().endpoints.clone()
    }

    /// Has the pusher, which was started with `running`, follow from now on. To be called once. `deadline` is how long a reload waits for
    /// deliveries of endpoints that end.
    ///
    /// # Errors
    /// The system refuses a thread.
    pub fn join_pusher(
        &self,
        pusher: Arc<Pusher>,
        running: Vec<Endpoint>,
        deadline: Duration,
    ) -> Result<(), std::io::Error> {
        let shared = Arc::clone(&self.shared);
        let thread = thread::Builder::new()
            .name("managed-pusher".to_owned())
            .spawn(move || shared.push(&pusher, running, deadline))?;
        self.threads.lock().push(thread);
        Ok(())
    }

    /// Ends the threads; a reload under way ends first. To be called before the pusher stops.
    pub fn stop(&self) {
        self.shared.wanted.lock().closed = true;
        self.shared.changed.notify_all();
        drop(self.words.send(Word::Stop));
        for thread in std::mem::take(&mut *self.threads.lock()) {
            // The last answer may be the last that holds this.
            if thread.thread().id() != thread::current().id() && thread.join().is_err() {
                log::error!(target: "chargegate::managed", "a thread ended by a panic");
            }
        }
    }
}

impl Drop for Managed {
    fn drop(&mut self) {
        self.stop();
    }
}

impl fmt::Debug for Managed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Managed").field("counters", &self.shared.counters).finish_non_exhaustive()
    }
}

/// Why nothing was read.
struct ReadFailed {
    failure: Failure,
    error: StoreError,
}

impl ReadFailed {
    fn into_error(self) -> StoreError {
        self.error
    }
}

impl Shared {
    /// Reads everything; `None`: the revision is `known`.
    fn read(&self, known: Option<i64>) -> Result<Option<Rows>, ReadFailed> {
        let unavailable = |failure, what: &str| ReadFailed { failure, error: StoreError::Unavailable(what.to_owned()) };
        let (tell, told) = bounded(1);
        let query = move |reader: &mut dyn Reader| {
            // The revision first: what changes meanwhile has a newer one, and is read again.
            let revision = reader.managed_revision()?;
            if known == Some(revision) {
                return Ok(None);
            }
            Ok(Some(Rows { revision, keys: reader.api_keys()?, endpoints: reader.webhook_endpoints()? }))
        };
        let call = Box::new(move |reader: Result<&mut dyn Reader, StoreError>| {
            // Nobody waits any more where it cannot be sent.
            drop(tell.try_send(reader.and_then(query)));
        });
        if self.store.read(call).is_err() {
            return Err(unavailable(Failure::Busy, "too many queries wait"));
        }
        match told.recv_timeout(READ_WAIT) {
            Ok(Ok(rows)) => Ok(rows),
            Ok(Err(error)) => Err(ReadFailed { failure: Failure::from(&error), error }),
            Err(_) => Err(unavailable(Failure::Timeout, "keys and endpoints were not read in time")),
        }
    }

    /// Brings each new list of endpoints to the pusher.
    fn push(&self, pusher: &Pusher, mut running: Vec<Endpoint>, deadline: Duration) {
        let mut stored = self.wanted.lock().stored.clone();
        let mut retry = None;
        loop {
            let mut wanted = self.wanted.lock();
            let same = |wanted: &Wanted, running: &[Endpoint]| !wanted.closed && wanted.endpoints == running;
            match retry {
                None => self.changed.wait_while(&mut wanted, |wanted| same(wanted, &running)),
                Some(after) => {
                    self.changed.wait_while_for(&mut wanted, |wanted| !wanted.closed, after);
                }
            }
            if wanted.closed {
                return;
            }
            let endpoints = wanted.endpoints.clone();
            let stored_before = std::mem::replace(&mut stored, wanted.stored.clone());
            drop(wanted);
            match pusher.reload(endpoints.clone(), deadline) {
                Ok(_) => {
                    retry = None;
                    self.counters.pusher_reloads.inc();
                    running = endpoints;
                }
                Err(error) => {
                    retry = Some(RETRY);
                    self.counters.failed(Failure::Pusher);
                    log::error!(target: "chargegate::managed", error:% = error; "webhook endpoints are not in force");
                }
            }
            for name in stored_before.into_iter().filter(|name| running.iter().all(|one| one.name != *name)) {
                self.forget(name);
            }
        }
    }

    /// Has the store forget the last words of an endpoint that is gone.
    fn forget(&self, name: String) {
        let change = ManagedChange::ForgetEndpoint { name };
        let job = ManagedJob { change, at: 0, request_id: String::new(), idempotency: None };
        // Lost, it costs a figure its sense, and nothing else.
        drop(self.store.submit(Job::Managed(Box::new(job)), Reply::None));
    }
}

/// The thread that follows the store.
struct Follower {
    shared: Arc<Shared>,
    /// Read last.
    rows: Rows,
    /// Of the last look.
    failing: Option<Failure>,
    /// Rows that were not in force last; each is logged once.
    left_out: Vec<LeftOut>,
}

impl Follower {
    fn run(mut self, words: &Receiver<Word>) {
        loop {
            let first = match words.recv_timeout(POLL) {
                Ok(word) => Some(word),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => return,
            };
            let (mut thens, mut configured, mut stopping) = (Vec::new(), false, false);
            // One look answers all that wait.
            for word in first.into_iter().chain(words.try_iter().take(WORDS_MAX)) {
                match word {
                    Word::Look => {}
                    Word::Follow(then) => thens.push(then),
                    Word::Configured => configured = true,
                    Word::Stop => stopping = true,
                }
            }
            if !stopping {
                self.look(configured);
            }
            for then in thens {
                // Its panic is its own: who follows goes on.
                if catch_unwind(AssertUnwindSafe(then)).is_err() {
                    log::error!(target: "chargegate::managed", "an answer panicked");
                }
            }
            if stopping {
                return;
            }
        }
    }

    /// Puts in force what is new in the store, or in the configuration.
    fn look(&mut self, configured: bool) {
        let found = self.shared.read(Some(self.rows.revision));
        let failing = found.as_ref().err().map(|failed| failed.failure);
        let news = match found {
            Ok(Some(rows)) => {
                self.rows = rows;
                true
            }
            Ok(None) => false,
            Err(ReadFailed { failure, error }) => {
                self.shared.counters.failed(failure);
                if self.failing != Some(failure) {
                    log::warn!(
                        target: "chargegate::managed", reason = failure.as_str(), error:% = error;
                        "keys and endpoints stay as they were known last"
                    );
                }
                false
            }
        };
        self.failing = failing;
        if news || configured {
            self.apply();
        }
    }

    fn apply(&mut self) {
        let shared = Arc::clone(&self.shared);
        let configured = Arc::clone(&shared.configured.read());
        let Merged { keys, endpoints, stored, left_out } = merge(&configured, &self.rows);
        for left in left_out.iter().filter(|left| !self.left_out.contains(left)) {
            let (what, name) = (left.what, left.name.as_str());
            match left.why {
                Why::Shadowed => {
                    log::warn!(target: "chargegate::managed", what, name; "the configuration has one of this name: it counts")
                }
                Why::SameKey => {
                    log::warn!(target: "chargegate::managed", what, name; "the configuration has this key: it counts")
                }
                Why::Refused(field) => {
                    log::error!(target: "chargegate::managed", what, name, field; "a row is not understood, and not in force")
                }
            }
        }
        let counters = &shared.counters;
        let refused = left_out.iter().filter(|left| matches!(left.why, Why::Refused(_))).count();
        counters.refused.store(refused, Relaxed);
        counters.shadowed.store(left_out.len() - refused, Relaxed);
        counters.keys.store(keys.len(), Relaxed);
        counters.endpoints.store(endpoints.len(), Relaxed);
        counters.revision.store(self.rows.revision, Relaxed);
        counters.reloads.inc();
        self.left_out = left_out;
        shared.auth.reload(keys);
        let mut wanted = shared.wanted.lock();
        (wanted.endpoints, wanted.stored) = (endpoints, stored);
        drop(wanted);
        shared.changed.notify_all();
    }
}

impl MetricSource for ManagedCounters {
    fn render(&self, to: &mut Exposition<'_>) {
        let help = "Revision of the keys and endpoints in the store that are in force here.";
        to.gauge("chargegate_managed_revision", help, self.revision.load(Relaxed));
        let name = "chargegate_managed_entries";
        to.family(name, "gauge", "API keys and webhook endpoints in force, of the configuration and of the store.");
        for (kind, count) in [("key", &self.keys), ("endpoint", &self.endpoints)] {
            to.sample(name, &[("kind", kind)], count.load(Relaxed));
        }
        let name = "chargegate_managed_left_out";
        to.family(name, "gauge", "Keys and endpoints of the store that are not in force, by why not.");
        for (why, count) in [("shadowed", &self.shadowed), ("refused", &self.refused)] {
            to.sample(name, &[("why", why)], count.load(Relaxed));
        }
        let name = "chargegate_managed_reloads_total";
        to.family(name, "counter", "Times that keys and endpoints were put in force anew.");
        for (what, count) in [("keys", &self.reloads), ("endpoints", &self.pusher_reloads)] {
            to.sample(name, &[("what", what)], count.get());
        }
        let name = "chargegate_managed_failures_total";
        to.family(name, "counter", "Times that keys and endpoints could not be read or put in force, by reason.");
        for (failure, count) in Failure::ALL.into_iter().zip(&self.failures) {
            to.sample(name, &[("reason", failure.as_str())], count.get());
        }
        let help = "Changes that were answered before they were in force here.";
        to.counter("chargegate_managed_unfollowed_total", help, self.unfollowed.get());
    }
}
