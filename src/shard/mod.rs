//! Shards: one per core, each an engine that drives its own [`Core`].
//!
//! ```text
//!            ┌───────────────── one pinned thread ─────────────────┐
//! sockets ──▶│ engine (glommio | mio) ──▶ Driver ──▶ Core (pure)   │──▶ store jobs
//!            │        ◀── Io::write/close ──┘  ▲                   │
//!            └─────────────────────────────────┼───────────────────┘
//!                          mailbox (bounded, lock-free, wake when parked)
//! ```
//!
//! An engine owns sockets, the shared read buffer and the pending write buffers. [`Driver`] is what both engines share: it feeds
//! the core, carries its effects out, bounds the work per turn. The contract of a turn:
//!
//! 1. accept while [`Driver::accept_allowance`] is above zero; tell [`Driver::accepted`] and keep the socket under the slot;
//! 2. for each readable socket, one read into the shared buffer, then [`Driver::received`];
//! 3. [`Driver::turn`]: mailbox (bounded), timers, jobs, health tick; returns how long to wait at most;
//! 4. open or close the listeners, as [`Driver::draining`] says;
//! 5. if [`Driver::park`] says so, wait; then [`Driver::unpark`].
//!
//! No engine decides anything about a device.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use crate::{
    gateway::{AcceptRefused, CardAsk, CloseReason, ConnId, Core, Effects, Listener, Message, Now, ShardId},
    store::{Reply, Store},
};

mod clock;
#[cfg(target_os = "linux")]
mod glommio;
mod inquiries;
pub mod launch;
pub mod mailbox;
mod mio;
mod sockets;

pub use clock::Clock;
pub use inquiries::{Inquiries, Unanswered};
pub use launch::{Engine, EngineChoice, Prepared, Running, Seed, StartError};
pub use mailbox::{Mailbox, Wake};

/// Bytes read from a socket at a time; one buffer per shard.
pub const READ_BUFFER_BYTES: usize = 64 * 1024;
/// Bytes that may wait for one peer; beyond it the connection is closed.
pub const WRITE_BUFFER_BYTES_MAX: usize = 16 * 1024;
/// Messages handled per turn, so that a flood of outcomes does not starve the sockets.
const MESSAGES_PER_TURN: usize = 256;
/// Jobs of one shard that wait for room in the store's queue or for their outcome; the mailbox has room for all of them.
pub const JOBS_MAX: usize = 4096;
/// Capacity of a shard's mailbox: every job's outcome, and as many messages from other threads.
pub const MAILBOX_CAPACITY: usize = 2 * JOBS_MAX;
/// Connections accepted per listener and turn, so that a reconnect storm does not starve the devices that are connected.
const ACCEPTS_PER_TURN: usize = 64;
/// While accepting is paused and connections wait in the backlog, an engine asks for the allowance this often.
const ACCEPT_RETRY_MS: u64 = 20;
/// Longest wait of an engine: the health check wants a tick every second.
pub const WAIT_MS_MAX: u64 = 1000;

/// What the core asks of sockets; implemented by each engine.
pub trait Io {
    /// Writes now what the socket takes and keeps the rest (bounded by [`WRITE_BUFFER_BYTES_MAX`]).
    fn write(&mut self, conn: ConnId, bytes: &[u8]) -> Written;
    /// Closes the socket and frees its slot's resources. Never calls back.
    fn close(&mut self, conn: ConnId);
}

/// How a write went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Written {
    /// All of it is with the kernel.
    All,
    /// Some waits for the peer to drain.
    Blocked,
    /// More waits than allowed.
    Overflow,
    /// The socket is broken.
    Failed,
}

/// What a turn's accepting left for the next; of several listeners the greatest counts.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Accepting {
    /// No connection waits.
    Idle,
    /// Connections may wait, and accepting is paused or has failed.
    Paused,
    /// The turn's bound was reached.
    Busy,
}

impl Accepting {
    /// How long an engine may wait that would otherwise wait for `wait_ms`.
    fn wait_ms(self, wait_ms: u64) -> u64 {
        match self {
            Self::Idle => wait_ms,
            Self::Paused => wait_ms.min(ACCEPT_RETRY_MS),
            Self::Busy => 0,
        }
    }
}

/// Where questions for the third party that keeps the cards are put; bounded.
pub type Asks = crossbeam::channel::Sender<CardAsk>;

/// Where shards find each other, and the store them.
#[derive(Debug)]
pub struct Peers {
    mailboxes: Vec<Mailbox>,
}

impl Peers {
    /// All mailboxes by shard.
    pub const fn new(mailboxes: Vec<Mailbox>) -> Self {
        Self { mailboxes }
    }

    /// The mailbox of a shard.
    pub fn mailbox(&self, shard: ShardId) -> Option<&Mailbox> {
        self.mailboxes.get(usize::from(shard.0))
    }

    /// All mailboxes.
    pub fn all(&self) -> &[Mailbox] {
        &self.mailboxes
    }
}

/// The part of a shard that both engines share.
pub struct Driver {
    core: Core,
    clock: Clock,
    mailbox: Mailbox,
    peers: Arc<Peers>,
    store: Arc<dyn Store>,
    asks: Option<Asks>,
    tick: Arc<AtomicU64>,
    effects: Effects,
    /// When the next turn is due at the latest, monotonic ms; the first never is.
    due_ms: u64,
}

impl Driver {
    /// Joins a core to its mailbox, peers and store. `tick` is stamped with the monotonic time of every turn.
    pub fn new(
        core: Core,
        clock: Clock,
        mailbox: Mailbox,
        peers: Arc<Peers>,
        store: Arc<dyn Store>,
        tick: Arc<AtomicU64>,
    ) -> Self {
        let due_ms = u64::MAX;
        let effects = Effects::default();
        Self { core, clock, mailbox, peers, store, asks: None, tick, effects, due_ms }
    }

    /// Gives swiped cards to the third party that keeps them.
    #[must_use]
    pub fn with_asks(mut self, asks: Option<Asks>) -> Self {
        self.asks = asks;
        self
    }

    /// How many connections may be accepted now. 0 pauses: the backlog queues, and the engine asks again within
    /// [`ACCEPT_RETRY_MS`].
    pub fn accept_allowance(&mut self) -> usize {
        if self.core.is_draining() { 0 } else { self.core.accept_allowance(self.clock.now()) }
    }

    /// A socket was accepted. `Ok`: keep it under this slot. `Err`: close it at once (counted by the core).
    pub fn accepted(&mut self, peer: IpAddr, listener: Listener) -> Result<ConnId, AcceptRefused> {
        self.core.accept(self.clock.now(), peer, listener)
    }

    /// Accepting failed. Exhaustion of descriptors or memory trips the breaker, anything else is the peer's affair.
    pub fn accept_failed(&mut self, error: &io::Error) {
        let exhausted =
            matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM | libc::ENOBUFS));
        self.core.accept_failed(self.clock.now(), exhausted);
    }

    /// Bytes came.
    pub fn received(&mut self, conn: ConnId, bytes: &[u8], io: &mut impl Io) {
        self.core.receive(self.clock.now(), conn, bytes, &mut self.effects);
        self.carry_out(io);
    }

    /// The peer closed, or the socket failed. The engine has closed it or closes it now; the core forgets it.
    pub fn closed(&mut self, conn: ConnId, reason: CloseReason, io: &mut impl Io) {
        self.core.closed(self.clock.now(), conn, reason, &mut self.effects);
        self.carry_out(io);
    }

    /// What waited for the peer has been drained.
    pub fn drained(&mut self, conn: ConnId) {
        self.core.write_drained(conn);
    }

    /// Mailbox, timers, jobs, tick. Returns the longest wait in milliseconds; 0: more work is ready.
    pub fn turn(&mut self, io: &mut impl Io) -> u64 {
        let now = self.clock.refresh();
        self.tick.store(now.mono_ms, Ordering::Relaxed);
        self.core.turn_began(now.mono_ms.saturating_sub(self.due_ms), self.mailbox.len());
        let wait_ms = self.work(now, io);
        self.due_ms = now.mono_ms.saturating_add(wait_ms);
        wait_ms
    }

    fn work(&mut self, now: Now, io: &mut impl Io) -> u64 {
        for _ in 0..MESSAGES_PER_TURN {
            let Some(message) = self.mailbox.take() else { break };
            self.core.message(now, message, &mut self.effects);
            self.carry_out(io);
        }
        self.core.timeout(now, &mut self.effects);
        self.carry_out(io);
        self.submit_jobs();
        if !self.mailbox.is_empty() {
            return 0;
        }
        let timer = self.core.poll_timeout().map_or(WAIT_MS_MAX, |at| at.saturating_sub(now.mono_ms));
        // Jobs that found the store's queue full are handed over again soon.
        let jobs = if self.effects.jobs.is_empty() { WAIT_MS_MAX } else { 5 };
        timer.min(jobs).min(WAIT_MS_MAX)
    }

    /// The time of this turn.
    pub const fn now(&self) -> Now {
        self.clock.now()
    }

    /// Refreshes the clock: call once after each wait.
    pub fn awake(&mut self) {
        self.clock.refresh();
    }

    /// Announces the wait; false: do not wait.
    pub fn park(&self) -> bool {
        self.mailbox.park()
    }

    /// After the wait.
    pub fn unpark(&self) {
        self.mailbox.unpark();
    }

    /// Whether the shard was told to stop and has nothing left to do.
    pub fn finished(&self) -> bool {
        self.core.is_stopped() && self.effects.jobs.is_empty()
    }

    /// Whether the listeners are to be closed; else they are to be open.
    pub const fn draining(&self) -> bool {
        self.core.is_draining()
    }

    fn carry_out(&mut self, io: &mut impl Io) {
        // Carrying an effect out can cause the next (a failed write closes), so this goes on until nothing is left;
        // each round closes a connection, so it ends.
        while self.effects.has_io() {
            let Effects { tx, writes, closes, .. } = &mut self.effects;
            let mut failed: smallvec::SmallVec<[(ConnId, CloseReason); 2]> = smallvec::SmallVec::new();
            for (conn, range) in writes.drain(..) {
                let Some(bytes) = tx.get(range) else { continue };
                match io.write(conn, bytes) {
                    Written::All => self.core.sent(self.clock.now(), conn, bytes),
                    Written::Blocked => {
                        self.core.sent(self.clock.now(), conn, bytes);
                        self.core.write_blocked(self.clock.now(), conn);
                    }
                    Written::Overflow => failed.push((conn, CloseReason::WriteOverflow)),
                    Written::Failed => failed.push((conn, CloseReason::Io)),
                }
            }
            tx.clear();
            // Nearly every round is one write and nothing else, and nothing else has to cost nothing.
            if !closes.is_empty() {
                for conn in closes.drain(..) {
                    io.close(conn);
                }
            }
            for (conn, reason) in failed {
                self.core.closed(self.clock.now(), conn, reason, &mut self.effects);
                io.close(conn);
            }
        }
        if !self.effects.answers.is_empty() {
            for (reply, answer) in self.effects.answers.drain(..) {
                reply.send(answer);
            }
        }
        if !self.effects.tells.is_empty() {
            for (shard, message) in self.effects.tells.drain(..) {
                let told = self.peers.mailbox(shard).is_none_or(|mailbox| mailbox.send(message).is_ok());
                self.core.told(told);
            }
        }
    }

    /// Hands questions over. One that finds no room is answered at once, with nothing.
    fn submit_asks(&mut self) {
        for ask in std::mem::take(&mut self.effects.asks) {
            let (device_id, ticket) = (ask.device_id, ask.ticket);
            if self.asks.as_ref().is_none_or(|asks| asks.try_send(ask).is_err()) {
                let unanswered = Message::CardAnswer { device_id, ticket, verdict: None };
                self.core.message(self.clock.now(), unanswered, &mut self.effects);
            }
        }
    }

    fn submit_jobs(&mut self) {
        self.submit_asks();
        let shard = self.core.shard();
        while let Some(job) = self.effects.jobs.pop_front() {
            if let Err((job, _)) = self.store.submit(job, Reply::Shard(shard)) {
                self.effects.jobs.push_front(job);
                break;
            }
        }
        if !self.effects.log.is_empty() {
            self.store.append(std::mem::take(&mut self.effects.log));
        }
        if !self.effects.latest.is_empty() && !self.store.coalesce(&mut self.effects.latest) {
            self.core.latest_refused(&mut self.effects.latest);
        }
    }
}

/// Which addresses a shard listens on.
#[derive(Clone, Copy, Debug)]
pub struct ListenAddress {
    /// The address.
    pub addr: SocketAddr,
    /// What it says about its devices.
    pub listener: Listener,
}
