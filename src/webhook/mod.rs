//! Webhooks: delivers the event log to third parties.
//!
//! At least once, per endpoint. Events of one key (order number or device id) arrive in the order of their positions, one at a
//! time: the next is sent when the one before it was accepted or became a dead letter. Events of different keys go in parallel,
//! 32 at a time, in no order. A key whose delivery failed is *parked*: its retry and everything behind it are stored and wait,
//! and the others go on. What a receiver may see twice is what was accepted and not yet stored as such (100 ms, or more behind a
//! slow delivery) when the gateway was killed; `event_id` names it. No transaction is open during HTTP.
//!
//! ```text
//! commit ─▶ feed thread ─▶ tail (newest events, shared)
//!                            │
//!          per endpoint:     ▼
//!                        dispatcher ─▶ queue (lanes per key) ─▶ up to 32 connections ─▶ receiver
//!                            │
//!                            ▼  one batch at a time: parked, dead, then the cursor
//!                          store
//! ```
//!
//! | answer | meaning |
//! |---|---|
//! | 2xx within 5 s | delivered |
//! | 410 | nothing is sent to the endpoint, by whichever instance, until an operator enables it; its cursor stays |
//! | other 4xx, except 408, 409, 425, 429; a refused target | dead letter |
//! | anything else | tried again after 1 s, 5 s, 30 s, 5 min, 1 h, then dead letter |
//!
//! Operators' changes (dead letters delivered again, ranges of the log, an endpoint disabled or enabled) are made in the store by
//! whichever instance is asked; who delivers finds them within seconds, on the asked instance at once. Each attempt is a row of the
//! log of deliveries, which is lossy.
//!
//! Where several instances share the store, one delivers to an endpoint: the one that holds its `lease`. Another takes over where
//! the stored progress ends; what the one before says later changes nothing.
//!
//! Endpoints share the tail and nothing else: a hung receiver holds its own senders. An endpoint that takes nothing (open
//! breaker, 410, full queue) is read for no further; its events stay in the log behind its cursor.
//!
//! What is absent: retries of anything but deliveries, and any knowledge of what an event means.
//!
//! Read next: `queue` for order and progress, `retry` for answers, `dispatcher` for the thread, `state` for what operators see,
//! `trial` for test events.

use std::{
    collections::HashSet,
    fmt, io,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use crossbeam::channel::{Receiver as Inbox, RecvTimeoutError, Sender, bounded};
use parking_lot::{Mutex, RwLock};

use crate::{
    gateway::WantedEvents,
    model::{EventType, ServerId},
    store::{EventRecord, ReadCall, Reader, Store, StoreError},
    telemetry::{Exposition, MetricSource},
};

mod body;
mod breaker;
mod cards;
mod clock;
mod counters;
mod dispatcher;
mod lease;
mod queue;
mod retry;
mod senders;
mod state;
mod subscription;
mod tail;
mod target;
mod transport;
mod trial;
mod wire;

pub use breaker::{BreakerSettings, BreakerState};
pub use cards::{Answered, CardDesk, CardSettings};
pub use counters::{EndpointCounters, LatencyBuckets};
pub use retry::{Failure, RETRY_AFTER_MAX};
pub use state::{Delivering, EndpointState};
pub use target::refused_address;
pub use trial::{TEST_EVENT, TrialRefused, Tried};

use clock::Clock;
use dispatcher::{Dispatcher, Ended, Mailbox};
use subscription::Subscription;
use tail::Tail;
use transport::Receiver;
use wire::Wire;

/// Events the feed reads at once.
const FEED_BATCH: u32 = 512;
/// Events committed without a word are found after this long.
const SAFETY_POLL: Duration = Duration::from_secs(10);
/// A query of the feed is asked again after this long without an answer.
const FEED_WAIT: Duration = Duration::from_secs(5);
/// Pause after a query of the feed failed.
const FEED_PAUSE: Duration = Duration::from_secs(1);
/// Beyond a stop's deadline, for threads to see it.
const STOP_GRACE: Duration = Duration::from_millis(500);

/// A third party's receiver, as configured.
#[derive(Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Unique; names the cursor, so a renamed endpoint is a new one.
    pub name: String,
    /// `http` or `https`.
    pub url: String,
    /// One, or two during rotation. Both sign `webhook-signature`, the first signs `X-Signature`.
    pub secrets: Vec<String>,
    /// Sent as `X-Api-Key`.
    pub api_key: Option<String>,
    /// Wanted types: `*`, `order.*`, or one type. `*` includes heartbeats and progress.
    pub events: Vec<String>,
}

/// Without the secrets, and without the URL, which may hold one.
impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Endpoint").field("name", &self.name).field("events", &self.events).finish_non_exhaustive()
    }
}

/// How deliveries are made.
#[derive(Clone, Debug)]
pub struct Settings {
    /// For a whole attempt: name, connection, request and answer.
    pub timeout: Duration,
    /// Delays before the retries; as many retries as delays, at most 255.
    pub retry_delays: Vec<Duration>,
    /// Attempts under way per endpoint, from 1. Each is a thread while it lasts.
    pub concurrency: usize,
    /// Send to loopback, link-local, private and similar addresses too.
    pub allow_private_targets: bool,
    /// Events per endpoint in memory that are not delivered, parked or dead, from 1.
    pub undone_max: usize,
    /// Parked events per endpoint in memory at which the log is read no further, from 1.
    pub parked_max: usize,
    /// Progress is stored after this long …
    pub flush_every: Duration,
    /// … or this many events.
    pub flush_events: usize,
    /// When to stop asking a receiver that does not answer.
    pub breaker: BreakerSettings,
    /// Seed of the retries' jitter.
    pub jitter_seed: u64,
    /// This instance, where several share the store: one of them delivers to an endpoint at a time.
    pub instance: Option<ServerId>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(5),
            retry_delays: [1, 5, 30, 300, 3_600].map(Duration::from_secs).to_vec(),
            concurrency: 32,
            allow_private_targets: false,
            undone_max: 1_024,
            parked_max: 4_096,
            flush_every: Duration::from_millis(100),
            flush_events: 100,
            breaker: BreakerSettings::default(),
            jitter_seed: 0,
            instance: None,
        }
    }
}

/// Why the endpoints cannot be used. Nothing was started or changed.
#[derive(Debug, thiserror::Error)]
pub enum EndpointError {
    /// A field of an endpoint.
    #[error("webhook endpoint {name:?}: {field} {reason}")]
    Invalid {
        /// The endpoint.
        name: String,
        /// Its field.
        field: &'static str,
        /// What is wrong with the field.
        reason: &'static str,
    },
    /// Two endpoints of one name would share a cursor.
    #[error("webhook endpoint {0:?} is configured twice")]
    Duplicate(String),
    /// No randomness for nonces.
    #[error("no random bytes for webhook nonces")]
    Random(#[source] io::Error),
    /// No thread.
    #[error("cannot start a webhook thread")]
    Thread(#[source] io::Error),
}

/// How a stop, or the stops of a reload, went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stopped {
    /// Attempts that ended by themselves.
    pub clean: usize,
    /// Attempts cut off at the deadline; their events are delivered again.
    pub forced: usize,
    /// Endpoints whose last progress was not stored in time; its events are delivered again.
    pub unflushed: usize,
}

/// Delivers the event log to the endpoints. Cheap to ask from any thread.
pub struct Pusher {
    shared: Arc<Shared>,
    running: Mutex<Vec<Running>>,
    feed: Mutex<Option<JoinHandle<()>>>,
    feed_wake: Sender<()>,
}

impl MetricSource for Pusher {
    fn render(&self, to: &mut Exposition<'_>) {
        counters::render(&self.counters(), self.last_pos(), to);
    }
}

/// What all threads of the pusher share.
struct Shared {
    store: Arc<dyn Store>,
    settings: Settings,
    clock: Clock,
    tail: Tail,
    /// Newest position known to be committed.
    last_pos: AtomicI64,
    /// The endpoints that run. Locked for moments only.
    known: RwLock<Vec<Arc<Known>>>,
    /// Test events under way.
    trials: AtomicUsize,
    /// The two types that exist only if somebody wants them, for shards, which take no lock.
    wanted: Arc<WantedEvents>,
    stopping: AtomicBool,
}

struct Running {
    endpoint: Endpoint,
    known: Arc<Known>,
    ended: Inbox<Ended>,
}

/// What others than its dispatcher know of an endpoint.
struct Known {
    subscription: Subscription,
    counters: Arc<EndpointCounters>,
    mailbox: Arc<Mailbox>,
    receiver: Arc<Receiver>,
    /// A test event is under way.
    trial: AtomicBool,
}

impl Known {
    fn name(&self) -> &str {
        &self.counters.name
    }
}

/// An endpoint that passed all checks.
struct Checked {
    endpoint: Endpoint,
    subscription: Subscription,
    receiver: Receiver,
}

impl Pusher {
    /// Starts delivering: each endpoint goes on behind its stored cursor, a new one begins at the log's end.
    ///
    /// # Errors
    /// See [`EndpointError`]; nothing runs then.
    pub fn start(endpoints: Vec<Endpoint>, store: Arc<dyn Store>, settings: Settings) -> Result<Self, EndpointError> {
        let settings = Settings {
            concurrency: settings.concurrency.max(1),
            undone_max: settings.undone_max.max(1),
            parked_max: settings.parked_max.max(1),
            ..settings
        };
        let shared = Arc::new(Shared {
            store,
            settings,
            clock: Clock::start(),
            tail: Tail::default(),
            last_pos: AtomicI64::new(0),
            known: RwLock::default(),
            trials: AtomicUsize::new(0),
            wanted: Arc::default(),
            stopping: AtomicBool::new(false),
        });
        let checked = shared.check(endpoints)?;
        // Before anybody else asks the store.
        let begin = shared.begin();
        // One wake is as good as many.
        let (feed_wake, woken) = bounded(1);
        let feeding = Arc::clone(&shared);
        let feed = thread::Builder::new()
            .name("webhook-feed".to_owned())
            .spawn(move || feeding.feed(&woken))
            .map_err(EndpointError::Thread)?;
        let pusher = Self { shared, running: Mutex::default(), feed: Mutex::new(Some(feed)), feed_wake };
        let mut running = pusher.running.lock();
        let started = checked.into_iter().try_for_each(|checked| {
            running.push(pusher.shared.run(checked, None, begin)?);
            Ok(())
        });
        pusher.announce(&running);
        drop(running);
        match started {
            Ok(()) => Ok(pusher),
            Err(error) => {
                pusher.stop(Duration::ZERO);
                Err(error)
            }
        }
    }

    /// Events up to `pos` are committed. Never blocks.
    pub fn events_committed(&self, pos: i64) {
        self.shared.last_pos.fetch_max(pos, Ordering::AcqRel);
        if !self.shared.is_idle() {
            self.feed_wake.try_send(()).ok();
        }
    }

    /// Whether any endpoint wants events of this type. Takes no lock for the types that are made only if so.
    pub fn subscribes(&self, event_type: &str) -> bool {
        if event_type == EventType::ChargingProgress.as_str() {
            self.shared.wanted.progress()
        } else if event_type == EventType::DeviceHeartbeat.as_str() {
            self.shared.wanted.heartbeat()
        } else {
            self.shared.known.read().iter().any(|known| known.subscription.wants(event_type))
        }
    }

    /// Which of the types that are made only on request some endpoint wants; follows every reload.
    pub fn wanted(&self) -> Arc<WantedEvents> {
        Arc::clone(&self.shared.wanted)
    }

    /// Counters of the endpoints that run.
    pub fn counters(&self) -> Vec<Arc<EndpointCounters>> {
        self.shared.known.read().iter().map(|known| Arc::clone(&known.counters)).collect()
    }

    /// Newest committed position, as far as the pusher was told or found. Backlog of an endpoint: this minus its cursor.
    pub fn last_pos(&self) -> i64 {
        self.shared.last_pos.load(Ordering::Acquire)
    }

    /// What is stored of an endpoint was changed by an operator's request to this instance: it is looked at now, and not within
    /// seconds as by other instances. Never blocks.
    pub fn changed(&self, endpoint: &str) {
        if let Some(known) = self.shared.known(endpoint) {
            known.mailbox.look();
        }
    }

    /// Those of these types of events that an endpoint wants; `None`: there is no such endpoint.
    pub fn types_wanted(&self, endpoint: &str, types: &[&'static str]) -> Option<Arc<[&'static str]>> {
        let known = self.shared.known(endpoint)?;
        Some(types.iter().copied().filter(|event_type| known.subscription.wants(event_type)).collect())
    }

    /// Whether there is such an endpoint.
    pub fn knows(&self, endpoint: &str) -> bool {
        self.shared.known(endpoint).is_some()
    }

    /// Committed events behind the cursors of the endpoints that run, over all of them.
    pub fn backlog(&self) -> u64 {
        let last_pos = self.last_pos();
        let behind = |known: &Arc<Known>| last_pos.saturating_sub(known.counters.cursor.load(Ordering::Relaxed));
        self.shared.known.read().iter().map(|known| u64::try_from(behind(known)).unwrap_or(0)).sum()
    }

    /// Takes over a new list of endpoints: stops what is gone or changed (within the deadline), starts what is new or changed.
    /// Blocks as long; equal endpoints are not disturbed, and what is disabled stays so.
    ///
    /// # Errors
    /// See [`EndpointError`]; a list that is refused changes nothing. Where a thread cannot be started, the endpoints before it
    /// run and the rest do not.
    pub fn reload(&self, endpoints: Vec<Endpoint>, deadline: Duration) -> Result<Stopped, EndpointError> {
        let checked = self.shared.check(endpoints)?;
        let begin = self.shared.begin();
        let mut running = self.running.lock();
        let (kept, gone): (Vec<_>, Vec<_>) =
            running.drain(..).partition(|running| checked.iter().any(|checked| checked.endpoint == running.endpoint));
        let counters: Vec<_> = gone.iter().map(|gone| Arc::clone(&gone.known.counters)).collect();
        // The old dispatcher has to be gone before a new one takes its cursor.
        let stopped = self.shared.stop(gone, deadline);
        running.extend(kept);
        let started = checked.into_iter().try_for_each(|checked| {
            if running.iter().any(|running| running.endpoint == checked.endpoint) {
                return Ok(());
            }
            let counters = counters.iter().find(|counters| counters.name == checked.endpoint.name);
            running.push(self.shared.run(checked, counters.cloned(), begin)?);
            Ok(())
        });
        self.announce(&running);
        started.map(|()| stopped)
    }

    /// Starts nothing new, lets attempts under way end and stores the progress, within the deadline. A second call does nothing.
    pub fn stop(&self, deadline: Duration) -> Stopped {
        self.shared.stopping.store(true, Ordering::Release);
        self.feed_wake.try_send(()).ok();
        let running = std::mem::take(&mut *self.running.lock());
        let stopped = self.shared.stop(running, deadline);
        self.announce(&[]);
        if let Some(feed) = self.feed.lock().take()
            && feed.is_finished()
        {
            feed.join().ok();
        }
        stopped
    }

    /// Makes the running endpoints known to feed, shards and handlers.
    fn announce(&self, running: &[Running]) {
        let wants = |event_type: EventType| running.iter().any(|one| one.known.subscription.wants(event_type.as_str()));
        self.shared.wanted.set(wants(EventType::DeviceHeartbeat), wants(EventType::ChargingProgress));
        *self.shared.known.write() = running.iter().map(|running| Arc::clone(&running.known)).collect();
        if running.is_empty() {
            // The next endpoint finds no ring, reads the log itself, and the ring begins at the log's end of that time.
            self.shared.tail.end();
        }
        // The first endpoint ends the feed's rest.
        self.feed_wake.try_send(()).ok();
        // One that looked before it was known looks again: what came meanwhile was told to the others only.
        self.shared.wake_all();
    }
}

impl Drop for Pusher {
    fn drop(&mut self) {
        self.stop(Duration::ZERO);
    }
}

impl fmt::Debug for Pusher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pusher").field("last_pos", &self.last_pos()).finish_non_exhaustive()
    }
}

impl Shared {
    fn check(&self, endpoints: Vec<Endpoint>) -> Result<Vec<Checked>, EndpointError> {
        let mut names = HashSet::new();
        let check = |endpoint: Endpoint| {
            let bad = |field, reason| EndpointError::Invalid { name: endpoint.name.clone(), field, reason };
            if endpoint.name.is_empty() {
                return Err(bad("name", "is empty"));
            }
            if !names.insert(endpoint.name.clone()) {
                return Err(EndpointError::Duplicate(endpoint.name));
            }
            let subscription = Subscription::new(&endpoint.events)
                .ok_or_else(|| bad("events", "must be types, families like \"order.*\", or \"*\", and at least one"))?;
            let receiver = Receiver::new(&endpoint, &self.settings, self.clock)?;
            Ok(Checked { endpoint, subscription, receiver })
        };
        endpoints.into_iter().map(check).collect()
    }

    /// Where endpoints that the store does not know begin: at the log's end now, and not whenever their threads come to ask. What is
    /// committed after a start is delivered. `None`: the store does not say; the end is then where it is found.
    fn begin(&self) -> Option<i64> {
        self.ask(|reader| reader.last_pos()).ok()
    }

    /// Starts an endpoint's dispatcher; its senders come with its work.
    fn run(
        self: &Arc<Self>,
        checked: Checked,
        counters: Option<Arc<EndpointCounters>>,
        begin: Option<i64>,
    ) -> Result<Running, EndpointError> {
        let Checked { endpoint, subscription, receiver } = checked;
        let counters = counters.unwrap_or_else(|| Arc::new(EndpointCounters::new(&endpoint.name)));
        // Until the store says so.
        counters.disabled.store(false, Ordering::Relaxed);
        let (wire, waker) = Wire::new().map_err(EndpointError::Thread)?;
        let (mailbox, inbox) = Mailbox::new(self.settings.concurrency, waker);
        let receiver = Arc::new(receiver);
        let dispatcher = Dispatcher::new(
            Arc::clone(self),
            &endpoint.name,
            subscription.clone(),
            Arc::clone(&receiver),
            Arc::clone(&counters),
            (Arc::clone(&mailbox), inbox, wire),
            begin,
        );
        let (end, ended) = bounded(1);
        thread::Builder::new()
            .name("webhook-queue".to_owned())
            .spawn(move || end.send(dispatcher.run()))
            .map_err(EndpointError::Thread)?;
        let known = Arc::new(Known { subscription, counters, mailbox, receiver, trial: AtomicBool::new(false) });
        Ok(Running { endpoint, known, ended })
    }

    fn known(&self, endpoint: &str) -> Option<Arc<Known>> {
        self.known.read().iter().find(|known| known.name() == endpoint).map(Arc::clone)
    }

    fn stop(&self, running: Vec<Running>, deadline: Duration) -> Stopped {
        let by_ms =
            self.clock.now().mono_ms.saturating_add(u64::try_from(deadline.as_millis()).unwrap_or(u64::MAX / 2));
        running.iter().for_each(|running| running.known.mailbox.stop(by_ms));
        let until = clock::instant() + deadline + STOP_GRACE;
        running.iter().fold(Stopped::default(), |stopped, running| {
            let ended =
                running.ended.recv_deadline(until).unwrap_or_else(|_| Ended { unflushed: true, ..Ended::default() });
            Stopped {
                clean: stopped.clean + ended.clean,
                forced: stopped.forced + ended.forced,
                unflushed: stopped.unflushed + usize::from(ended.unflushed),
            }
        })
    }

    /// The feed thread: appends to the tail what is committed and wakes the dispatchers.
    fn feed(&self, woken: &Inbox<()>) {
        let mut failing = false;
        while !self.stopping.load(Ordering::Acquire) {
            let wait = match self.feed_once() {
                // A full batch: there may be more.
                Ok(events) if events == FEED_BATCH as usize => Duration::ZERO,
                Ok(_) => {
                    failing = false;
                    SAFETY_POLL
                }
                Err(error) => {
                    if !failing {
                        log::warn!(error:%; "webhooks wait for the store");
                    }
                    failing = true;
                    FEED_PAUSE
                }
            };
            match woken.recv_timeout(wait) {
                Ok(()) | Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    /// Whether nobody reads the log: there are no endpoints.
    fn is_idle(&self) -> bool {
        self.known.read().is_empty()
    }

    /// Number of new events.
    fn feed_once(&self) -> Result<usize, StoreError> {
        if self.is_idle() {
            // It may have begun one just when the last endpoint went.
            self.tail.end();
            if self.last_pos.load(Ordering::Acquire) == 0 {
                self.ask_last_pos()?;
            }
            return Ok(0);
        }
        let Some(to) = self.tail.to() else {
            let last_pos = self.ask_last_pos()?;
            self.tail.begin(last_pos);
            self.wake_all();
            return Ok(0);
        };
        let events: Vec<EventRecord> = self.ask(move |reader| reader.events_after(to, FEED_BATCH))?;
        let count = events.len();
        if let Some(last) = events.last() {
            self.last_pos.fetch_max(last.pos, Ordering::AcqRel);
            self.tail.append(events);
            self.wake_all();
        }
        Ok(count)
    }

    /// Position of the log's last event, kept.
    fn ask_last_pos(&self) -> Result<i64, StoreError> {
        let last_pos = self.ask(|reader| reader.last_pos())?;
        self.last_pos.fetch_max(last_pos, Ordering::AcqRel);
        Ok(last_pos)
    }

    fn wake_all(&self) {
        self.known.read().iter().for_each(|known| known.mailbox.wake());
    }

    /// Runs a query and waits for its result, at most [`FEED_WAIT`].
    fn ask<T: Send + 'static>(
        &self,
        ask: impl FnOnce(&mut dyn Reader) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (answer, answered) = bounded(1);
        let call: ReadCall = Box::new(move |reader| {
            answer.try_send(reader.and_then(ask)).ok();
        });
        if self.store.read(call).is_err() {
            return Err(StoreError::Unavailable("the queue of queries is full".to_owned()));
        }
        answered
            .recv_timeout(FEED_WAIT)
            .unwrap_or_else(|_| Err(StoreError::Unavailable("no answer to a query".to_owned())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(change: impl FnOnce(&mut Endpoint)) -> Endpoint {
        let mut endpoint = Endpoint {
            name: "erp".to_owned(),
            url: "https://example.com/hook?token=hidden".to_owned(),
            secrets: vec!["hidden".to_owned()],
            api_key: Some("hidden".to_owned()),
            events: vec!["*".to_owned()],
        };
        change(&mut endpoint);
        endpoint
    }

    fn refusal(endpoint: &Endpoint) -> String {
        Receiver::new(endpoint, &Settings::default(), Clock::start()).err().unwrap().to_string()
    }

    #[test]
    fn debug_shows_no_secret() {
        assert!(!format!("{:?}", endpoint(|_| {})).contains("hidden"));
    }

    #[test]
    fn bad_endpoints_are_named_with_their_field() {
        for (bad, text) in [
            (endpoint(|endpoint| endpoint.url = "ftp://example.com".to_owned()), "url must begin with"),
            (endpoint(|endpoint| endpoint.url = "/hook".to_owned()), "url must begin with"),
            (endpoint(|endpoint| endpoint.url = "http://a b".to_owned()), "url is not a URL"),
            (endpoint(|endpoint| endpoint.url = format!("http://a/{}", "x".repeat(2_048))), "url is longer"),
            (endpoint(|endpoint| endpoint.secrets.clear()), "secret must be one"),
            (endpoint(|endpoint| endpoint.secrets = vec!["a".to_owned(); 3]), "secret must be one"),
            (endpoint(|endpoint| endpoint.secrets = vec![String::new()]), "secret is empty"),
            (endpoint(|endpoint| endpoint.secrets = vec!["whsec_!".to_owned()]), "secret is not base64"),
            (endpoint(|endpoint| endpoint.api_key = Some("a\nb".to_owned())), "api_key cannot be sent"),
        ] {
            let refusal = refusal(&bad);
            assert!(refusal.starts_with(&format!("webhook endpoint \"erp\": {text}")), "{refusal}");
        }
    }
}
