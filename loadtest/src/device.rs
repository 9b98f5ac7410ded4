//! Simulated devices as state machines without I/O: bytes in, bytes out, time passed in.
//!
//! No socket, clock, thread or randomness: `now_us` is an argument, and everything that looks random is drawn from a
//! seed and the device's index, so that a run repeats. The simulator drives them over TCP; tests drive them over memory
//! in virtual time.
//!
//! ```text
//!                     ┌──────────── poll_output ───────────> bytes
//! connected, receive  │
//! timeout ────────> Device ──────── poll_event ────────────> what happened
//! disconnected        │
//!                     └──────────── poll_timeout, poll_close > when to call again
//! ```
//!
//! - [`ap3000`] charger with 1 to 16 ports, [`bkv`] gateway with sockets, [`rude`] peers that misbehave.
//! - [`activity`] what happens at them without the server.
//! - [`charge`] the power model they share, [`ledger`] what each of them knows about its charges.

pub mod activity;
pub mod ap3000;
pub mod bkv;
pub mod charge;
pub mod ledger;
pub mod rude;

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub use ap3000::{Ap3000Device, HostDevice};
pub use bkv::BkvDevice;
pub use rude::{RudeDevice, Rudeness};

use crate::schedule::Happening;
use ledger::Ledger;

/// Microseconds of a second.
pub const SECOND_US: u64 = 1_000_000;
/// Later than every deadline.
const NEVER: u64 = u64::MAX;

/// A device seen from its wire.
///
/// Times are microseconds of any clock that does not go back. After each call of `connected`, `receive`, `timeout` or
/// `disconnected` the driver takes [`poll_output`](Self::poll_output), then [`poll_event`](Self::poll_event) until
/// `None`, then asks [`poll_close`](Self::poll_close), then arms one timer for [`poll_timeout`](Self::poll_timeout).
pub trait Device {
    /// The connection is open. A device connects again and again; what it must not forget it keeps.
    fn connected(&mut self, now_us: u64);

    /// Bytes from the server, split anywhere.
    fn receive(&mut self, now_us: u64, bytes: &[u8]);

    /// The time of [`poll_timeout`](Self::poll_timeout) has come. Calling earlier does nothing.
    fn timeout(&mut self, now_us: u64);

    /// Appends the bytes to send.
    fn poll_output(&mut self, out: &mut Vec<u8>);

    /// When [`timeout`](Self::timeout) is due. May be set while disconnected: a charge goes on without a connection.
    fn poll_timeout(&self) -> Option<u64>;

    /// The connection is gone.
    fn disconnected(&mut self, now_us: u64);

    /// The next thing that happened, oldest first. Only the newest [`EVENTS_MAX`] are kept.
    fn poll_event(&mut self) -> Option<Event> {
        None
    }

    /// Whether the device wants to close the connection and open a new one; true once per wish.
    fn poll_close(&mut self) -> bool {
        false
    }

    /// Whether the device takes bytes from its connection at all.
    fn reads(&self) -> bool {
        true
    }

    /// Nothing more is to happen by itself; what was begun goes on.
    fn quieten(&mut self) {}

    /// Something happens at the device, if it is one at which it can. `random` picks where, and which card.
    fn happen(&mut self, _now_us: u64, _what: Happening, _random: u64) {}

    /// Shows what each charger and gateway here knows about its charges, with the id under which the API knows it.
    fn ledgers(&self, _each: &mut dyn FnMut(&dyn fmt::Display, &Ledger)) {}
}

/// A device that is driven in one place and asked or told in another: a test keeps a clone, makes the device swipe a
/// card, and reads its ledger while a driver owns the other clone.
impl<D: Device> Device for Arc<Mutex<D>> {
    fn connected(&mut self, now_us: u64) {
        locked(self).connected(now_us);
    }

    fn receive(&mut self, now_us: u64, bytes: &[u8]) {
        locked(self).receive(now_us, bytes);
    }

    fn timeout(&mut self, now_us: u64) {
        locked(self).timeout(now_us);
    }

    fn poll_output(&mut self, out: &mut Vec<u8>) {
        locked(self).poll_output(out);
    }

    fn poll_timeout(&self) -> Option<u64> {
        locked(self).poll_timeout()
    }

    fn disconnected(&mut self, now_us: u64) {
        locked(self).disconnected(now_us);
    }

    fn poll_event(&mut self) -> Option<Event> {
        locked(self).poll_event()
    }

    fn poll_close(&mut self) -> bool {
        locked(self).poll_close()
    }

    fn reads(&self) -> bool {
        locked(self).reads()
    }

    fn quieten(&mut self) {
        locked(self).quieten();
    }

    fn happen(&mut self, now_us: u64, what: Happening, random: u64) {
        locked(self).happen(now_us, what, random);
    }

    fn ledgers(&self, each: &mut dyn FnMut(&dyn fmt::Display, &Ledger)) {
        locked(self).ledgers(each);
    }
}

/// A holder that panicked is a test that failed; what it left is still a device.
fn locked<D>(device: &Arc<Mutex<D>>) -> MutexGuard<'_, D> {
    device.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How a device behaves, beyond its protocol.
#[derive(Clone, Copy, Debug)]
pub struct Behaviour {
    /// Time between heartbeats, until the server sets another.
    pub heartbeat_us: u64,
    /// Seconds of charging that pass in a second. Scales charges and the periods of minutes that belong to them;
    /// heartbeats, answers and radio delays keep their time. At least 1.
    pub time_factor: u32,
    /// Decides power, full batteries and empty ports.
    pub seed: u64,
    /// Share of the ports without a charger plugged in, 0..=100.
    pub unplugged_percent: u8,
}

impl Default for Behaviour {
    fn default() -> Self {
        Self { heartbeat_us: 60 * SECOND_US, time_factor: 1, seed: 1, unplugged_percent: 0 }
    }
}

impl Behaviour {
    /// `seconds` of charging on the device's clock.
    fn scaled(&self, seconds: u64) -> u64 {
        seconds.saturating_mul(SECOND_US) / u64::from(self.time_factor.max(1))
    }

    /// The first heartbeats of devices that connected together are spread over half an interval.
    fn first_interval(&self, heartbeat_us: u64, index: u32) -> u64 {
        let half = heartbeat_us / 2;
        half + charge::draw(self.seed, &[u64::from(index), 0x6265_6174]) % half.max(1)
    }

    /// Whether a charger is plugged in.
    fn plugged(&self, index: u32, port: u64) -> bool {
        charge::draw(self.seed, &[u64::from(index), port, 0x706c_7567]) % 100 >= u64::from(self.unplugged_percent)
    }
}

macro_rules! requests {
    ($( $(#[$meta:meta])* $name:ident $word:literal, )*) => {
        /// What a device asks of the server and wants an answer to.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Request {
            $( $(#[$meta])* $name, )*
        }

        impl Request {
            /// All, in the order of the report.
            pub const ALL: [Self; [$(stringify!($name)),*].len()] = [$( Self::$name ),*];
            /// How many kinds there are.
            pub const COUNT: usize = Self::ALL.len();

            /// The word in the report.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $( Self::$name => $word, )*
                }
            }
        }
    };
}

requests! {
    /// AP3000 0x20.
    Registration "registration",
    /// AP3000 0x21 or 0x01, BKV 0x0000.
    Heartbeat "heartbeat",
    /// AP3000 0x22.
    Time "time",
    /// AP3000 0x03, BKV end reports.
    Settlement "settlement",
    /// BKV 1017.
    StatusPush "status_push",
    /// BKV 1013; the guide does not know it, so an answer is not owed.
    TimedEvent "timed_event",
    /// AP3000 0x02, BKV 0B.
    Card "card",
    /// BKV 1A.
    Balance "balance",
    /// BKV 1010.
    Exception "exception",
    /// AP3000 0x04.
    OrderConfirm "order_confirm",
    /// AP3000 0x12.
    HostTime "host_time",
    /// AP3000 0x15.
    HostUpdate "host_update",
    /// AP3000 0x3B.
    HostRadio "host_radio",
}

impl Request {
    const fn index(self) -> usize {
        self as usize
    }
}

/// Something that happened in a device. Each [`Sent`](Self::Sent) is followed by an `Answered` or an `Unanswered`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The server answered for the first time on this connection.
    Registered,
    /// A request went out, or went out again.
    Sent(Request),
    /// Its answer came after this many microseconds.
    Answered(Request, u64),
    /// No answer came before it was sent again, given up, or the connection was lost.
    Unanswered(Request),
    /// A command of the server was understood and done or refused.
    Command,
    /// A charge began on the API's port (counted from 1).
    ChargeStarted(u16),
    /// A start was refused with this code.
    ChargeRefused(u8),
    /// A charge ended on the API's port (counted from 1), and its record waits to be settled.
    ChargeEnded(u16),
    /// The server acknowledged the record of a charge; the device forgot it.
    Settled,
    /// Two heartbeats in a row went unanswered.
    OfflineMode,
    /// The server sent something that is no frame, or a body that cannot be read.
    Malformed,
}

/// Most events kept for a driver that does not take them; more than one call makes with 250 sockets.
pub const EVENTS_MAX: usize = 1024;

#[derive(Debug, Default)]
struct Events(VecDeque<Event>);

impl Events {
    fn push(&mut self, event: Event) {
        if self.0.len() == EVENTS_MAX {
            self.0.pop_front();
        }
        self.0.push_back(event);
    }

    fn pop(&mut self) -> Option<Event> {
        self.0.pop_front()
    }
}

/// One kind of request: when it is due, and the copy that waits for its answer.
#[derive(Clone, Copy, Debug)]
struct Exchange {
    due_us: u64,
    waiting: Option<Waiting>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Waiting {
    msg_id: u16,
    sent_us: u64,
}

impl Exchange {
    const IDLE: Self = Self { due_us: NEVER, waiting: None };
}

/// Bytes of an item that is not complete yet.
#[derive(Debug, Default)]
pub(crate) struct Tail(Vec<u8>);

impl Tail {
    /// Walks `bytes`, preceded by what was left over, with `step`: it is given the bytes still to be read, says how many
    /// it consumed, and `None` when it needs more.
    pub(crate) fn walk(&mut self, bytes: &[u8], mut step: impl FnMut(&[u8]) -> Option<usize>) {
        if self.0.is_empty() {
            let consumed = consume(bytes, &mut step);
            self.0.extend_from_slice(bytes.get(consumed..).unwrap_or_default());
        } else {
            self.0.extend_from_slice(bytes);
            let consumed = consume(&self.0, &mut step);
            self.0.drain(..consumed);
        }
    }
}

/// How many bytes `step` consumed before it needed more.
fn consume(bytes: &[u8], step: &mut impl FnMut(&[u8]) -> Option<usize>) -> usize {
    let mut consumed = 0;
    while let Some(rest) = bytes.get(consumed..).filter(|rest| !rest.is_empty()) {
        let Some(len) = step(rest) else { break };
        consumed += len.max(1);
    }
    consumed.min(bytes.len())
}

/// The earliest of several deadlines.
fn earliest(deadlines: impl IntoIterator<Item = u64>) -> Option<u64> {
    deadlines.into_iter().min().filter(|deadline| *deadline != NEVER)
}

#[cfg(test)]
mod tests;
