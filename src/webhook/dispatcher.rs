//! The thread of one endpoint: moves events from the log into its [`Queue`], attempts to its senders, progress to the store.
//!
//! ```text
//! tail / store.read ──▶ queue ──▶ wire (kept connections) ◀──▶ receiver
//!                         │  ▲      ▲ new connections
//!        store.submit ◀───┘  └── senders (also all of TLS) ◀──▶ receiver
//! ```
//!
//! It never waits for one of them alone: reads, flushes, connections and what senders do come back through the inbox, whose capacity exceeds
//! what can be under way, and the wait for the wire's answers ends with each of them. A read or flush whose answer does not come in time is asked for again; its late answer misses by its ticket.
//!
//! What operators change, on whichever instance, is stored and found by looking: every few seconds, and at once where the change was
//! made here. Rows that others parked are taken over when the queue is at rest: nothing more is read, what was read is delivered or
//! parked, then all parked rows are loaded in the place of those in memory. So deliveries of a key keep their order, and memory its
//! bound, whatever was added.

use std::{
    net::TcpStream,
    panic::{self, AssertUnwindSafe},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering, fence},
    },
    time::{Duration, Instant},
};

use crossbeam::channel::{Receiver as Inbox, Sender, bounded};
use mio::Waker;

use super::{
    Shared,
    breaker::{Breaker, BreakerState, Charge},
    clock,
    counters::EndpointCounters,
    lease::Lease,
    queue::{Attempt, Limits, Queue, Step},
    retry::{Answer, Failure, Schedule, Verdict, classify},
    senders::Senders,
    subscription::Subscription,
    tail::Taken,
    transport::Receiver,
    wire::{self, Wire},
};
use crate::{
    gateway::Now,
    store::{
        DeliveryLogRow, DeliveryOutcome, DeliveryUpdate, EndpointProgress, EventRecord, Job, LeaseJob, Outcome,
        ParkedDelivery, ReadCall, Reader, Reply, StoreError,
    },
};

/// Events taken from the tail or the store at once.
const BATCH: usize = 256;
/// A query is asked again after this long without an answer.
const READ_WAIT_MS: u64 = 5_000;
/// So is a flush.
const FLUSH_WAIT_MS: u64 = 30_000;
/// Pause after a failed read or flush.
const PAUSE_MS: u64 = 1_000;
/// Pause while the tail has not begun.
const TAIL_WAIT_MS: u64 = 50;
/// How often to look for what operators changed.
const LOOK_EVERY_MS: u64 = 3_000;
/// A cursor that moved only over events nobody here wants is stored this many times less often.
const IDLE_FLUSH_FACTOR: u64 = 10;
/// Longest sleep; a lost wake costs at most this.
const SLEEP_MS_MAX: u64 = 10_000;
/// A log line of one kind per endpoint at most this often.
const LOG_EVERY_MS: u64 = 1_000;

/// What comes back to a dispatcher.
pub(super) enum Input {
    /// Look around: events, or a stop.
    Wake,
    /// An attempt ended.
    Answered { attempt: Attempt, answer: Answer, took: Duration },
    /// There is a connection for an attempt, or none; when it began.
    Connected { attempt: Attempt, connection: Result<TcpStream, Failure>, started: Instant },
    /// Events behind the asked position.
    Read { ticket: u64, from: Option<i64>, events: Result<Vec<EventRecord>, StoreError> },
    /// Where to go on.
    Resumed { ticket: u64, state: Result<Resumption, StoreError> },
    /// Parked rows.
    Parked { ticket: u64, loaded: Result<Loaded, StoreError> },
    /// How far the endpoint is, as stored.
    Looked { ticket: u64, progress: Result<Option<EndpointProgress>, StoreError> },
    /// Whether this instance is the one that delivers; `None`: the store failed.
    Leased { ticket: u64, held: Option<bool> },
    /// A batch of updates is committed, or not.
    Flushed { ticket: u64, committed: bool },
}

/// What the store knows of an endpoint.
#[derive(Debug)]
pub(super) struct Resumption {
    progress: Option<EndpointProgress>,
    last_pos: i64,
    parked: Vec<(ParkedDelivery, EventRecord)>,
}

/// Parked rows, and a revision that is not newer than they are.
#[derive(Debug)]
pub(super) struct Loaded {
    revision: i64,
    rows: Vec<(ParkedDelivery, EventRecord)>,
}

/// The way to a dispatcher.
pub(super) struct Mailbox {
    inputs: Sender<Input>,
    /// Ends the dispatcher's wait.
    waker: Waker,
    /// It waits, or is about to: whoever puts something in has to end that.
    waiting: AtomicBool,
    woken: AtomicBool,
    /// Somebody changed what is stored of the endpoint.
    changed: AtomicBool,
    /// Monotonic ms by which to be done; `u64::MAX`: no stop asked for.
    stop_by: AtomicU64,
}

impl Mailbox {
    /// `waker` ends the dispatcher's wait.
    pub(super) fn new(concurrency: usize, waker: Waker) -> (Arc<Self>, Inbox<Input>) {
        // One answer per attempt under way, one wake, and late answers of reads and flushes.
        let (inputs, inbox) = bounded(concurrency * 2 + 64);
        (
            Arc::new(Self {
                inputs,
                waker,
                waiting: AtomicBool::new(false),
                woken: AtomicBool::new(false),
                changed: AtomicBool::new(false),
                stop_by: AtomicU64::new(u64::MAX),
            }),
            inbox,
        )
    }

    /// Never blocks. A full inbox needs no wake: its dispatcher has work and looks around after it.
    pub(super) fn wake(&self) {
        if !self.woken.swap(true, Ordering::AcqRel) {
            self.offer(Input::Wake);
        }
    }

    /// What is stored of the endpoint was changed by somebody else: look at it now. Never blocks.
    pub(super) fn look(&self) {
        self.changed.store(true, Ordering::Release);
        self.wake();
    }

    pub(super) fn stop(&self, by_ms: u64) {
        self.stop_by.store(by_ms, Ordering::Release);
        self.wake();
    }

    /// For threads of the store: a full inbox loses the input, and the dispatcher asks again at its deadline.
    fn offer(&self, input: Input) {
        self.inputs.try_send(input).ok();
        self.rouse();
    }

    /// For senders, which wait for room.
    fn put(&self, input: Input) {
        // Fails only when the dispatcher is gone.
        self.inputs.send(input).ok();
        self.rouse();
    }

    /// Ends the dispatcher's wait, behind what was put in.
    fn rouse(&self) {
        // Either this sees that it waits, or it sees what was put in.
        fence(Ordering::SeqCst);
        if self.waiting.load(Ordering::Relaxed)
            && self.waiting.swap(false, Ordering::AcqRel)
            && let Err(error) = self.waker.wake()
        {
            log::error!(error:%; "a webhook dispatcher was not woken: it looks around by itself");
        }
    }

    /// Whether the dispatcher may wait: nothing is in its inbox, and what comes from now on ends the wait.
    fn may_wait(&self, inbox: &Inbox<Input>) -> bool {
        self.waiting.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        inbox.is_empty()
    }
}

/// How an endpoint stopped.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Ended {
    /// Attempts that ended after the stop was asked for.
    pub(super) clean: usize,
    /// Attempts cut off at the deadline.
    pub(super) forced: usize,
    /// Progress that could not be stored: these events are delivered again.
    pub(super) unflushed: bool,
}

pub(super) struct Dispatcher {
    shared: Arc<Shared>,
    name: String,
    subscription: Subscription,
    receiver: Arc<Receiver>,
    counters: Arc<EndpointCounters>,
    mailbox: Arc<Mailbox>,
    inbox: Inbox<Input>,
    senders: Senders,
    wire: Wire,
    /// What ended there, until it is handled.
    ended: Vec<wire::Ended>,
    queue: Queue,
    schedule: Schedule,
    breaker: Breaker,
    limits: Limits,
    log: LogGate,
    lease: Lease,
    /// What there is to deliver is not this dispatcher's any more: the lease ended, or the backlog was skipped. All of it is dropped
    /// once nothing is under way.
    void: bool,
    /// Where a new endpoint begins; `None`: at the log's end.
    begin: Option<i64>,
    resumed: bool,
    disabled: bool,
    /// The receiver said so itself, and it is not stored yet.
    disabling: Disabling,
    /// Of what is stored, as far as it is taken over.
    revision: i64,
    /// Others changed the parked rows: they are to be loaded again.
    reload: bool,
    /// The look under way.
    looking: Option<Pending>,
    /// When to look next (monotonic ms).
    look_at_ms: u64,
    /// Attempts that are not in the log of deliveries yet.
    attempts: Vec<DeliveryLogRow>,
    /// When they go there at the latest (monotonic ms).
    attempts_due_ms: u64,
    log_name: Arc<str>,
    tickets: u64,
    /// The one query under way.
    reading: Option<Pending>,
    /// No query before this (monotonic ms).
    read_from_ms: u64,
    /// Updates that are not committed: under way, or to be tried again.
    batch: Option<Vec<DeliveryUpdate>>,
    flushing: Option<Pending>,
    flush_from_ms: u64,
    /// Since when there is progress to store, and how much of it are events of this endpoint.
    dirty: Option<Dirty>,
    stopped_clean: usize,
}

#[derive(Clone, Copy, Debug)]
struct Pending {
    ticket: u64,
    until_ms: u64,
}

/// A 410 on its way into the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Disabling {
    No,
    /// To be put into the next batch of updates.
    Wanted {
        at: i64,
    },
    /// In the batch that is under way.
    UnderWay,
}

#[derive(Clone, Copy, Debug)]
struct Dirty {
    since_ms: u64,
    events: usize,
}

impl Dispatcher {
    pub(super) fn new(
        shared: Arc<Shared>,
        name: &str,
        subscription: Subscription,
        receiver: Arc<Receiver>,
        counters: Arc<EndpointCounters>,
        (mailbox, inbox, wire): (Arc<Mailbox>, Inbox<Input>, Wire),
        begin: Option<i64>,
    ) -> Self {
        let settings = &shared.settings;
        let limits = Limits {
            in_flight_max: settings.concurrency,
            undone_max: settings.undone_max,
            parked_max: settings.parked_max,
        };
        let senders = {
            let (receiver, mailbox) = (Arc::clone(&receiver), Arc::clone(&mailbox));
            Senders::new(
                settings.concurrency,
                Box::new(move |attempt| {
                    let started = clock::instant();
                    // A lost answer would block its key for good.
                    if receiver.is_plain() {
                        let connection = panic::catch_unwind(AssertUnwindSafe(|| receiver.connect()))
                            .unwrap_or(Err(Failure::Internal));
                        mailbox.put(Input::Connected { attempt, connection, started });
                        return;
                    }
                    let answer = panic::catch_unwind(AssertUnwindSafe(|| receiver.post(&attempt.event)))
                        .unwrap_or(Answer::None(Failure::Internal));
                    let took = clock::instant().saturating_duration_since(started);
                    mailbox.put(Input::Answered { attempt, answer, took });
                }),
            )
        };
        Self {
            name: name.to_owned(),
            subscription,
            receiver,
            counters,
            mailbox,
            inbox,
            senders,
            wire,
            ended: Vec::new(),
            queue: Queue::resume(name, limits, 0),
            schedule: Schedule::new(settings.retry_delays.clone(), settings.jitter_seed),
            breaker: Breaker::new(settings.breaker, settings.jitter_seed),
            limits,
            log: LogGate::default(),
            lease: Lease::new(settings.instance.is_some(), ms(settings.timeout)),
            void: false,
            begin,
            resumed: false,
            disabled: false,
            disabling: Disabling::No,
            revision: 0,
            reload: false,
            looking: None,
            look_at_ms: 0,
            attempts: Vec::new(),
            attempts_due_ms: u64::MAX,
            log_name: Arc::from(name),
            tickets: 0,
            reading: None,
            read_from_ms: 0,
            batch: None,
            flushing: None,
            flush_from_ms: 0,
            dirty: None,
            stopped_clean: 0,
            shared,
        }
    }

    /// Runs until a stop is done, or its deadline.
    pub(super) fn run(mut self) -> Ended {
        // Going on brings what is stored now.
        self.look_at_ms = self.shared.clock.now().mono_ms.saturating_add(LOOK_EVERY_MS);
        loop {
            // Before looking around: what comes after this look wakes again.
            self.mailbox.woken.store(false, Ordering::Release);
            let now = self.shared.clock.now();
            let stop_by = self.mailbox.stop_by.load(Ordering::Acquire);
            let stopping = stop_by != u64::MAX;
            if !stopping {
                self.keep_lease(now);
                self.look(now);
                if self.lease.is_held(now.mono_ms) && !self.void {
                    self.read(now);
                    self.start_attempts(now);
                }
            }
            self.flush(now, stopping);
            self.log_attempts(now, stopping);
            self.publish(now);
            if stopping && (self.is_done() || now.mono_ms >= stop_by) {
                return self.end();
            }
            let wait = Duration::from_millis(self.poll_timeout(now, stop_by).saturating_sub(now.mono_ms));
            let wait = if self.mailbox.may_wait(&self.inbox) { wait } else { Duration::ZERO };
            self.wire.wait(wait, &mut self.ended);
            self.mailbox.waiting.store(false, Ordering::Relaxed);
            // Bounded by the inbox, so that a busy receiver cannot keep us from the rest.
            for _ in 0..self.inbox.len() {
                let Ok(input) = self.inbox.try_recv() else { break };
                self.handle(input, stopping);
            }
            self.handle_ended(stopping);
        }
    }

    fn is_done(&self) -> bool {
        self.queue.in_flight() == 0 && self.batch.is_none() && !(self.resumed && self.has_updates())
    }

    fn has_updates(&self) -> bool {
        self.queue.has_updates() || matches!(self.disabling, Disabling::Wanted { .. })
    }

    fn end(self) -> Ended {
        self.counters.delivering.store(false, Ordering::Relaxed);
        self.give_lease_back();
        let ended = Ended { clean: self.stopped_clean, forced: self.queue.in_flight(), unflushed: !self.is_done() };
        self.receiver.shutdown();
        ended
    }

    /// When to look around again without an input (monotonic ms). Everything in the past was just looked at.
    fn poll_timeout(&self, now: Now, stop_by: u64) -> u64 {
        let flush = match (self.flushing, &self.batch, self.dirty) {
            (Some(pending), ..) => Some(pending.until_ms),
            (None, Some(_), _) => Some(self.flush_from_ms),
            (None, None, dirty) => dirty.map(|dirty| dirty.due_ms(self.shared.settings.flush_every)),
        };
        let mut at = now.mono_ms.saturating_add(SLEEP_MS_MAX).min(stop_by).min(flush.unwrap_or(u64::MAX));
        at = at.min(self.attempts_due_ms);
        if stop_by == u64::MAX {
            let read = self.reading.map_or(self.read_from_ms, |pending| pending.until_ms);
            let lease = self.lease.poll_timeout(now.mono_ms);
            let look = self.looking.map_or(self.look_at_ms, |pending| pending.until_ms);
            let timeouts = [Some(read), Some(look), self.queue.poll_timeout(), self.breaker.poll_timeout(), lease];
            at = timeouts.into_iter().flatten().filter(|timeout| *timeout > now.mono_ms).fold(at, u64::min);
        }
        at
    }

    fn ticket(&mut self, now: Now, wait_ms: u64) -> Pending {
        self.tickets += 1;
        Pending { ticket: self.tickets, until_ms: now.mono_ms.saturating_add(wait_ms) }
    }

    // Lease

    /// Asks for the lease when it is time to, and forgets what there was to deliver when it ended: whoever holds it next, this
    /// instance included, goes on where the stored progress ends.
    fn keep_lease(&mut self, now: Now) {
        if self.resumed && !self.lease.is_held(now.mono_ms) && !self.void {
            self.void = true;
            self.reading = None;
            log::warn!(endpoint = self.name.as_str(); "another instance may deliver to the webhook endpoint: this one stops");
        }
        if self.void && self.queue.in_flight() == 0 && self.flushing.is_none() {
            self.void = false;
            self.resumed = false;
            self.reload = false;
            self.disabling = Disabling::No;
            self.queue = Queue::resume(&self.name, self.limits, 0);
            (self.batch, self.dirty) = (None, None);
        }
        if !self.lease.wants_asking(now.mono_ms) {
            return;
        }
        let Some(owner) = self.shared.settings.instance.clone() else { return };
        self.tickets += 1;
        let (ticket, mailbox) = (self.tickets, Arc::clone(&self.mailbox));
        let reply = Reply::Call(Box::new(move |outcome| {
            let held = if let Outcome::Leased(held) = outcome { Some(held) } else { None };
            mailbox.offer(Input::Leased { ticket, held });
        }));
        let for_ms = i64::try_from(self.lease.for_ms()).unwrap_or(i64::MAX);
        let job = Job::Lease(LeaseJob { endpoint: self.name.clone(), owner, for_ms });
        self.lease.asked(ticket, now.mono_ms);
        if self.shared.store.submit(job, reply).is_err() {
            self.lease.failed(ticket, now.mono_ms);
        }
    }

    /// Another instance need not wait for its end.
    fn give_lease_back(&self) {
        if let Some(owner) = self.shared.settings.instance.clone() {
            let job = Job::Lease(LeaseJob { endpoint: self.name.clone(), owner, for_ms: 0 });
            // It ends by itself.
            drop(self.shared.store.submit(job, Reply::None));
        }
    }

    // Looking

    /// Asks the store for what operators changed, when it is time to.
    fn look(&mut self, now: Now) {
        if self.looking.is_some_and(|pending| now.mono_ms >= pending.until_ms) {
            self.looking = None;
            self.look_at_ms = now.mono_ms.saturating_add(PAUSE_MS);
            self.log_store("no answer to a query", now);
        }
        if self.mailbox.changed.swap(false, Ordering::AcqRel) {
            // The answer under way may be of before the change.
            self.looking = None;
            self.look_at_ms = now.mono_ms;
        }
        if self.looking.is_some() || now.mono_ms < self.look_at_ms {
            return;
        }
        let pending = self.ticket(now, READ_WAIT_MS);
        let (mailbox, name) = (Arc::clone(&self.mailbox), self.name.clone());
        let call: ReadCall = Box::new(move |reader| {
            let progress = reader.and_then(|reader| reader.endpoint(&name));
            mailbox.offer(Input::Looked { ticket: pending.ticket, progress });
        });
        match self.shared.store.read(call) {
            Ok(()) => self.looking = Some(pending),
            Err(_) => {
                self.look_at_ms = now.mono_ms.saturating_add(PAUSE_MS);
                self.log_store("its queue of queries is full", now);
            }
        }
    }

    fn handle_looked(&mut self, ticket: u64, progress: Result<Option<EndpointProgress>, StoreError>, now: Now) {
        if self.looking.is_none_or(|pending| pending.ticket != ticket) {
            return;
        }
        self.looking = None;
        self.look_at_ms = now.mono_ms.saturating_add(LOOK_EVERY_MS);
        match progress {
            Ok(Some(progress)) => self.take_over(&progress),
            Ok(None) => {}
            Err(error) => {
                self.look_at_ms = now.mono_ms.saturating_add(PAUSE_MS);
                self.log_store(&error.to_string(), now);
            }
        }
    }

    fn take_over(&mut self, progress: &EndpointProgress) {
        if self.disabling == Disabling::No {
            self.set_disabled(progress.disabled.as_ref().map(|disabled| disabled.reason.as_str()));
        }
        if self.resumed && !self.void && progress.revision != self.revision {
            if progress.cursor > self.queue.cursor() {
                // Nobody else moves it while the lease is held: the backlog was skipped.
                self.void = true;
                self.reading = None;
            } else {
                self.reload = true;
            }
        }
    }

    fn set_disabled(&mut self, reason: Option<&str>) {
        if self.disabled == reason.is_some() {
            return;
        }
        self.disabled = reason.is_some();
        self.counters.disabled.store(self.disabled, Ordering::Relaxed);
        match reason {
            Some(reason) => log::warn!(
                endpoint = self.name.as_str(), reason;
                "webhook endpoint is disabled: nothing is sent to it until it is enabled, its events are kept"
            ),
            None => log::info!(endpoint = self.name.as_str(); "webhook endpoint is enabled"),
        }
    }

    // Reading

    /// Takes events from the tail, or asks the store for what the tail does not have.
    fn read(&mut self, now: Now) {
        if self.reading.is_some_and(|pending| now.mono_ms >= pending.until_ms) {
            self.reading = None;
            self.log_store("no answer to a query", now);
        }
        if self.reading.is_some() || now.mono_ms < self.read_from_ms || self.disabled {
            return;
        }
        let name = self.name.clone();
        let parked_limit = self.queue.parked_limit();
        if !self.resumed {
            self.query(
                now,
                move |reader| {
                    Ok(Resumption {
                        // First, so that what changes meanwhile is looked at again.
                        progress: reader.endpoint(&name)?,
                        last_pos: reader.last_pos()?,
                        parked: reader.parked(&name, parked_limit)?,
                    })
                },
                |ticket, state| Input::Resumed { ticket, state },
            );
            return;
        }
        if self.reload || self.queue.wants_parked() {
            // Not before the store knows what became of the rows loaded last, else they would come again.
            if self.queue.is_settled() && self.batch.is_none() && !self.has_updates() {
                let load = move |reader: &mut dyn Reader| {
                    let revision = reader.endpoint(&name)?.map_or(0, |progress| progress.revision);
                    Ok(Loaded { revision, rows: reader.parked(&name, parked_limit)? })
                };
                self.query(now, load, |ticket, loaded| Input::Parked { ticket, loaded });
            }
            return;
        }
        loop {
            let room = self.queue.room();
            if room == 0 {
                return;
            }
            let pos = self.queue.read_pos();
            match self.shared.tail.after(pos, room.min(BATCH), |event| self.subscription.wants(&event.event_type)) {
                Taken::Events { events, read_pos } => {
                    self.touch(now, 0);
                    self.queue.handle_events(events, read_pos, now);
                }
                Taken::UpToDate => return,
                Taken::Behind { from } => {
                    let limit = u32::try_from(room.min(BATCH)).unwrap_or(u32::MAX);
                    self.query(
                        now,
                        move |reader| reader.events_after(pos, limit),
                        move |ticket, events| Input::Read { ticket, from, events },
                    );
                    return;
                }
            }
        }
    }

    /// Starts a query whose result comes back as an input.
    fn query<T: Send + 'static>(
        &mut self,
        now: Now,
        ask: impl FnOnce(&mut dyn Reader) -> Result<T, StoreError> + Send + 'static,
        input: impl FnOnce(u64, Result<T, StoreError>) -> Input + Send + 'static,
    ) {
        let pending = self.ticket(now, READ_WAIT_MS);
        let mailbox = Arc::clone(&self.mailbox);
        let call: ReadCall = Box::new(move |reader| mailbox.offer(input(pending.ticket, reader.and_then(ask))));
        match self.shared.store.read(call) {
            Ok(()) => self.reading = Some(pending),
            Err(_) => {
                self.read_from_ms = now.mono_ms.saturating_add(PAUSE_MS);
                self.log_store("its queue of queries is full", now);
            }
        }
    }

    /// Takes a query's result, if it is the one waited for.
    fn result_of<T>(&mut self, ticket: u64, result: Result<T, StoreError>, now: Now) -> Option<T> {
        if self.reading.is_none_or(|pending| pending.ticket != ticket) {
            return None;
        }
        self.reading = None;
        match result {
            Ok(value) => Some(value),
            Err(error) => {
                self.read_from_ms = now.mono_ms.saturating_add(PAUSE_MS);
                self.log_store(&error.to_string(), now);
                None
            }
        }
    }

    fn handle_resumed(&mut self, state: Resumption, now: Now) {
        let Resumption { progress, last_pos, parked } = state;
        let Some(progress) = progress else {
            // A new endpoint is told what happens from now on. From when on is stored first, else a crash would move it.
            let pos = self.begin.map_or(last_pos, |begin| begin.min(last_pos));
            log::info!(endpoint = self.name.as_str(), pos; "new webhook endpoint begins at the log's end");
            self.batch.get_or_insert_with(|| vec![DeliveryUpdate::Cursor { endpoint: self.name.clone(), pos }]);
            self.read_from_ms = now.mono_ms.saturating_add(PAUSE_MS);
            return;
        };
        let cursor = progress.cursor;
        self.take_over(&progress);
        self.revision = progress.revision;
        if cursor > last_pos {
            log::warn!(endpoint = self.name.as_str(), cursor, last_pos; "webhook cursor lies behind the log's end: set back");
        }
        self.queue = Queue::resume(&self.name, self.limits, cursor.min(last_pos));
        let rows = parked.len();
        self.handle_parked(parked, now);
        self.resumed = true;
        let backlog = last_pos.saturating_sub(cursor);
        log::info!(endpoint = self.name.as_str(), cursor, backlog, parked = rows; "webhook endpoint goes on");
    }

    fn handle_parked(&mut self, rows: Vec<(ParkedDelivery, EventRecord)>, now: Now) {
        let complete = u32::try_from(rows.len()).is_ok_and(|rows| rows < self.queue.parked_limit());
        self.queue.handle_parked(rows, complete, now);
    }

    fn handle_read(&mut self, from: Option<i64>, events: Vec<EventRecord>, now: Now) {
        if let Some(last) = events.last() {
            let read_pos = last.pos;
            let wants = |event: &EventRecord| self.subscription.wants(&event.event_type);
            let wanted = events.into_iter().filter(wants).map(Arc::new).collect();
            self.queue.handle_events(wanted, read_pos, now);
            self.touch(now, 0);
        } else if let Some(from) = from {
            // The log holds nothing between here and where the ring began.
            self.queue.handle_events(Vec::new(), from, now);
        } else {
            self.read_from_ms = now.mono_ms.saturating_add(TAIL_WAIT_MS);
        }
    }

    // Attempts

    fn start_attempts(&mut self, now: Now) {
        // What is parked waits for the rows that others added to it.
        if self.reload && !self.queue.has_undone() {
            return;
        }
        while !self.disabled && self.queue.has_attempt(now) && self.breaker.permit(now) {
            let Some(attempt) = self.queue.poll_attempt(now) else { break };
            if attempt.made > 0 {
                self.counters.retried.fetch_add(1, Ordering::Relaxed);
            }
            let at = clock::instant();
            let kept = if self.receiver.may_reuse() { self.wire.take_idle(at) } else { None };
            match kept {
                Some(kept) => self.send(kept, attempt, at),
                None if self.hand_over(attempt, now) => {}
                None => break,
            }
        }
        self.handle_ended(false);
    }

    /// Sends an attempt that began at `started` on a connection.
    fn send(&mut self, connection: usize, attempt: Attempt, started: Instant) {
        let Some((bytes, unix_s)) = self.receiver.write_request(&attempt.event) else {
            self.wire.put_back(connection, started);
            self.ended.push(wire::Ended::failed(attempt, Failure::Data, started));
            return;
        };
        let deadline = started + self.receiver.timeout();
        let request = wire::Request { attempt, bytes, unix_s, started, deadline };
        self.wire.send(connection, request, &mut self.ended);
    }

    /// Gives an attempt to a thread; false: there is none.
    fn hand_over(&mut self, attempt: Attempt, now: Now) -> bool {
        let Err((attempt, error)) = self.senders.push(attempt) else { return true };
        // Costs an attempt that was not made: rare enough not to deserve a state of its own.
        if self.log.permits(LogKind::Thread, now) {
            log::error!(endpoint = self.name.as_str(), error:%; "no thread for webhook deliveries");
        }
        self.breaker.handle_unknown(now);
        self.count_failure(Failure::Internal);
        let reason = Failure::Internal.reason().into_owned();
        self.queue.handle_step(&attempt.key, Step::Park { delay: Duration::from_millis(PAUSE_MS), reason }, now);
        self.touch(now, 1);
        false
    }

    /// Handles what ended on the wire.
    fn handle_ended(&mut self, stopping: bool) {
        if self.ended.is_empty() {
            return;
        }
        let now = self.shared.clock.now();
        let mut ended = std::mem::take(&mut self.ended);
        for ended in ended.drain(..) {
            match ended {
                wire::Ended::Answered { attempt, answer, took } => {
                    self.handle_answered(&attempt, answer, took, now);
                    self.stopped_clean += usize::from(stopping);
                }
                wire::Ended::Cut(attempt) => {
                    // What comes of no thread for it is as for every attempt.
                    let _handed_over = self.hand_over(attempt, now);
                }
            }
        }
        // Its room is used again; nothing has ended meanwhile.
        self.ended = ended;
    }

    fn handle_connected(&mut self, attempt: Attempt, connection: Result<TcpStream, Failure>, started: Instant) {
        let adopted = connection.and_then(|stream| self.wire.adopt(stream).map_err(|_| Failure::Internal));
        match adopted {
            Ok(connection) => self.send(connection, attempt, started),
            Err(failure) => self.ended.push(wire::Ended::failed(attempt, failure, started)),
        }
    }

    fn handle_answered(&mut self, attempt: &Attempt, answer: Answer, took: Duration, now: Now) {
        let verdict = classify(answer);
        let before = self.breaker.state();
        let charge = match answer {
            Answer::Status { .. } => {
                self.counters.attempt_latency.record(took);
                self.breaker.handle_answered();
                Charge::Counts
            }
            Answer::None(failure) if failure.is_unanswered() => self.breaker.handle_unanswered(now),
            Answer::None(_) => {
                self.breaker.handle_unknown(now);
                Charge::Counts
            }
        };
        self.log_breaker(before, now);
        let (outcome, step) = match verdict {
            Verdict::Delivered => {
                self.counters.delivered.fetch_add(1, Ordering::Relaxed);
                let age_ms = u64::try_from(now.unix_ms.saturating_sub(attempt.event.at)).unwrap_or(0);
                self.counters.delivery_latency.record(Duration::from_millis(age_ms));
                (DeliveryOutcome::Delivered, Step::Delivered)
            }
            Verdict::Disable => {
                let failure = Failure::Status(410);
                self.count_failure(failure);
                if self.disabling == Disabling::No {
                    self.disabling = Disabling::Wanted { at: now.unix_ms };
                    self.set_disabled(Some(&failure.reason()));
                }
                (DeliveryOutcome::Retry, Step::Hold)
            }
            Verdict::Retry(failure, _) if charge == Charge::Free => {
                self.count_failure(failure);
                self.log_failure(attempt, failure, "held", now);
                (DeliveryOutcome::Retry, Step::Hold)
            }
            Verdict::Retry(failure, retry_after) => {
                self.count_failure(failure);
                match self.schedule.delay(attempt.made.saturating_add(1), retry_after) {
                    Some(delay) => {
                        self.log_failure(attempt, failure, "parked", now);
                        (DeliveryOutcome::Retry, Step::Park { delay, reason: failure.reason().into_owned() })
                    }
                    None => (DeliveryOutcome::Dead, self.dead(attempt, failure, now)),
                }
            }
            Verdict::Drop(failure) => {
                self.count_failure(failure);
                (DeliveryOutcome::Dead, self.dead(attempt, failure, now))
            }
        };
        self.note_attempt(attempt, answer, outcome, took, now);
        self.touch(now, 1);
        self.queue.handle_step(&attempt.key, step, now);
    }

    /// Notes an attempt for the log of deliveries.
    fn note_attempt(&mut self, attempt: &Attempt, answer: Answer, outcome: DeliveryOutcome, took: Duration, now: Now) {
        if self.attempts.is_empty() {
            self.attempts_due_ms = now.mono_ms.saturating_add(ms(self.shared.settings.flush_every));
        }
        let event = &attempt.event;
        self.attempts.push(DeliveryLogRow {
            at: now.unix_ms,
            endpoint: Arc::clone(&self.log_name),
            pos: event.pos,
            event_id: event.event_id.clone(),
            event_type: event.event_type.clone(),
            key: event.key.clone(),
            attempt: attempt.made.saturating_add(1),
            status: answer.status(),
            took_ms: u32::try_from(took.as_millis()).unwrap_or(u32::MAX),
            outcome,
            reason: answer.failure().map(|failure| failure.reason().into_owned()),
            instance: None,
        });
    }

    /// Hands the attempts to the log of deliveries when there are enough of them, or they waited long enough.
    fn log_attempts(&mut self, now: Now, stopping: bool) {
        let due = now.mono_ms >= self.attempts_due_ms || self.attempts.len() >= self.shared.settings.flush_events;
        if !self.attempts.is_empty() && (due || stopping) {
            self.attempts_due_ms = u64::MAX;
            self.shared.store.append_deliveries(std::mem::take(&mut self.attempts));
        }
    }

    fn dead(&mut self, attempt: &Attempt, failure: Failure, now: Now) -> Step {
        self.counters.dead.fetch_add(1, Ordering::Relaxed);
        if failure == Failure::TargetRefused {
            if self.log.permits(LogKind::Refused, now) {
                log::error!(
                    endpoint = self.name.as_str(), event_id = attempt.event.event_id.as_str();
                    "webhook target resolves to an address that may not be sent to; events go to the dead letters \
                     (webhook.allow_private_targets permits it)"
                );
            }
        } else if self.log.permits(LogKind::Dead, now) {
            log::error!(
                endpoint = self.name.as_str(),
                event_id = attempt.event.event_id.as_str(),
                key = attempt.event.key.as_str(),
                attempts = attempt.made.saturating_add(1),
                reason:% = failure.reason();
                "webhook delivery is a dead letter"
            );
        }
        Step::Dead { reason: failure.reason().into_owned() }
    }

    fn count_failure(&self, failure: Failure) {
        if let Some(count) = self.counters.failed.get(failure.label_index()) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    // Progress

    /// Notes progress of `events` events.
    fn touch(&mut self, now: Now, events: usize) {
        let dirty = self.dirty.get_or_insert(Dirty { since_ms: now.mono_ms, events: 0 });
        if dirty.events == 0 && events > 0 {
            dirty.since_ms = now.mono_ms;
        }
        dirty.events += events;
    }

    /// Submits progress when it is due. One batch is under way at a time, so batches are committed in their order.
    fn flush(&mut self, now: Now, stopping: bool) {
        if self.flushing.is_some_and(|pending| now.mono_ms >= pending.until_ms) {
            self.flushing = None;
            self.log_store("no answer to a flush", now);
        }
        if self.flushing.is_some() {
            return;
        }
        let settings = &self.shared.settings;
        if self.batch.is_none() {
            let due = self.dirty.is_some_and(|dirty| {
                dirty.events >= settings.flush_events || now.mono_ms >= dirty.due_ms(settings.flush_every)
            });
            let awaited = stopping || self.reload && self.queue.is_settled();
            if !self.resumed || !(due || awaited) {
                return;
            }
            self.batch = self.queue.poll_updates();
            if let Disabling::Wanted { at } = self.disabling {
                let (endpoint, reason) = (self.name.clone(), Failure::Status(410).reason().into_owned());
                self.batch.get_or_insert_default().push(DeliveryUpdate::Disable { endpoint, reason, at });
                self.disabling = Disabling::UnderWay;
            }
            if !self.has_updates() {
                self.dirty = None;
            }
        }
        if now.mono_ms < self.flush_from_ms {
            return;
        }
        let Some(batch) = &self.batch else { return };
        let (updates, name) = (batch.clone(), self.name.clone());
        let pending = self.ticket(now, FLUSH_WAIT_MS);
        let mailbox = Arc::clone(&self.mailbox);
        let reply = Reply::Call(Box::new(move |outcome| {
            let committed = match outcome {
                Outcome::Failed { error, .. } => {
                    log::warn!(endpoint = name.as_str(), error:%; "webhook progress was not stored");
                    false
                }
                _ => true,
            };
            mailbox.offer(Input::Flushed { ticket: pending.ticket, committed });
        }));
        match self.shared.store.submit(Job::Delivery(updates), reply) {
            Ok(()) => self.flushing = Some(pending),
            Err(_) => {
                self.flush_from_ms = now.mono_ms.saturating_add(self.flush_pause_ms());
                self.log_store("its queue of jobs is full", now);
            }
        }
    }

    fn flush_pause_ms(&self) -> u64 {
        ms(self.shared.settings.flush_every).max(1)
    }

    fn handle_flushed(&mut self, ticket: u64, committed: bool, now: Now) {
        if self.flushing.is_none_or(|pending| pending.ticket != ticket) {
            return;
        }
        self.flushing = None;
        if !committed {
            self.flush_from_ms = now.mono_ms.saturating_add(PAUSE_MS);
            return;
        }
        self.batch = None;
        if self.disabling == Disabling::UnderWay {
            self.disabling = Disabling::No;
            // The answer under way may be of before.
            (self.looking, self.look_at_ms) = (None, now.mono_ms);
        }
        if !self.resumed {
            // The first cursor is stored.
            self.read_from_ms = 0;
        }
    }

    fn handle(&mut self, input: Input, stopping: bool) {
        let now = self.shared.clock.now();
        match input {
            Input::Wake => {}
            Input::Answered { attempt, answer, took } => {
                self.handle_answered(&attempt, answer, took, now);
                self.stopped_clean += usize::from(stopping);
            }
            Input::Connected { attempt, connection, started } => {
                self.handle_connected(attempt, connection, started);
            }
            Input::Read { ticket, from, events } => {
                if let Some(events) = self.result_of(ticket, events, now) {
                    self.handle_read(from, events, now);
                }
            }
            Input::Resumed { ticket, state } => {
                if let Some(state) = self.result_of(ticket, state, now) {
                    self.handle_resumed(state, now);
                }
            }
            Input::Parked { ticket, loaded } => {
                if let Some(loaded) = self.result_of(ticket, loaded, now) {
                    self.handle_parked(loaded.rows, now);
                    (self.revision, self.reload) = (loaded.revision, false);
                }
            }
            Input::Looked { ticket, progress } => self.handle_looked(ticket, progress, now),
            Input::Flushed { ticket, committed } => self.handle_flushed(ticket, committed, now),
            Input::Leased { ticket, held: Some(held) } => self.lease.answered(ticket, held, now.mono_ms),
            Input::Leased { ticket, held: None } => self.lease.failed(ticket, now.mono_ms),
        }
    }

    // Telling

    fn publish(&self, now: Now) {
        let gauge = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
        self.counters.parked.store(gauge(self.queue.parked()), Ordering::Relaxed);
        self.counters.in_flight.store(gauge(self.queue.in_flight()), Ordering::Relaxed);
        self.counters.set_breaker(self.breaker.state());
        let delivering = self.resumed && !self.void && self.lease.is_held(now.mono_ms);
        self.counters.delivering.store(delivering, Ordering::Relaxed);
        if self.resumed {
            self.counters.cursor.store(self.queue.cursor(), Ordering::Relaxed);
        }
    }

    fn log_failure(&mut self, attempt: &Attempt, failure: Failure, then: &str, now: Now) {
        if self.log.permits(LogKind::Failed, now) {
            log::warn!(
                endpoint = self.name.as_str(),
                event_id = attempt.event.event_id.as_str(),
                key = attempt.event.key.as_str(),
                attempt = attempt.made.saturating_add(1),
                reason:% = failure.reason(),
                then;
                "webhook delivery failed"
            );
        }
    }

    fn log_breaker(&mut self, before: BreakerState, now: Now) {
        let after = self.breaker.state();
        if before != after && self.log.permits(LogKind::Breaker, now) {
            log::warn!(endpoint = self.name.as_str(), state = after.as_str(); "webhook breaker changed");
        }
    }

    fn log_store(&mut self, what: &str, now: Now) {
        if self.log.permits(LogKind::Store, now) {
            log::warn!(endpoint = self.name.as_str(), what; "webhook endpoint waits for the store");
        }
    }
}

impl Dirty {
    fn due_ms(self, flush_every: Duration) -> u64 {
        let factor = if self.events == 0 { IDLE_FLUSH_FACTOR } else { 1 };
        self.since_ms.saturating_add(ms(flush_every).saturating_mul(factor))
    }
}

fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[derive(Clone, Copy, Debug)]
enum LogKind {
    Failed,
    Dead,
    Refused,
    Breaker,
    Store,
    Thread,
}

/// Lets one line of each kind through per [`LOG_EVERY_MS`]; the counters have the rest.
#[derive(Debug, Default)]
struct LogGate([u64; 6]);

impl LogGate {
    fn permits(&mut self, kind: LogKind, now: Now) -> bool {
        let Some(next) = self.0.get_mut(kind as usize) else { return true };
        let permitted = now.mono_ms >= *next;
        if permitted {
            *next = now.mono_ms.saturating_add(LOG_EVERY_MS);
        }
        permitted
    }
}
