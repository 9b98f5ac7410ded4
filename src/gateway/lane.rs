//! The lane of one device: commands that wait to be written, and written ones that wait for their reply.
//!
//! Invariants:
//! - Lowest priority number first, first come first within one; but a stop never overtakes its own start: it annihilates it
//!   while the start is unwritten.
//! - At the instant of writing four local facts are checked and nothing else: the deadline, the epoch, the binding's generation
//!   (by the caller), and that no withdrawal was seen (withdrawn commands leave the lane).
//! - Bounded: at most [`WAITING_MAX`] wait and [`IN_FLIGHT_MAX`] are in flight.
//!
//! Starts and stops are watched by the order's track; for named commands the lane itself keeps the time: one resend at half of the
//! reply's limit, then another attempt a minute after the one before, while the row allows.

use crate::{
    model::{Command, CommandBody, Completion, DeviceCall, OrderNo, Priority},
    telemetry::label::Label as _,
};

/// Commands that may wait per device.
pub(crate) const WAITING_MAX: usize = 16;
const IN_FLIGHT_MAX: usize = 8;
/// A named command is answered within this time.
const REPLY_MS: u64 = 10_000;
/// Parameters and network lists are, within this one.
const PARAMS_REPLY_MS: u64 = 15_000;
/// From one attempt to the next.
const ATTEMPT_MS: u64 = 60_000;
/// A written command is remembered this long for a late reply.
const REMEMBER_MS: u64 = 60_000;

/// Commands that wait for writing, by the place of their priority in [`Priority::ALL`].
pub(super) type Waits = [usize; Priority::ALL.len()];

/// Something to send.
#[derive(Clone, Debug)]
pub(super) enum Outgoing {
    /// A row of the command queue.
    Command(Box<Command>),
    /// A question of the gateway's own about a port; losing it is harmless.
    Ask {
        /// From 1.
        port_no: u16,
    },
    /// A stop of the gateway's own for a charge that should not run.
    Stop {
        /// The order.
        order_no: OrderNo,
        /// From 1.
        port_no: u16,
    },
}

impl Outgoing {
    pub(super) fn priority(&self) -> Priority {
        match self {
            Self::Command(command) => command.priority,
            Self::Ask { .. } => Priority::Low,
            Self::Stop { .. } => Priority::Emergency,
        }
    }

    pub(super) fn order_no(&self) -> Option<OrderNo> {
        match self {
            Self::Command(command) => command.order_no,
            Self::Ask { .. } => None,
            Self::Stop { order_no, .. } => Some(*order_no),
        }
    }

    pub(super) fn is_start(&self) -> bool {
        matches!(self, Self::Command(command) if matches!(command.body, CommandBody::Start { .. }))
    }

    pub(super) fn is_stop(&self) -> bool {
        match self {
            Self::Command(command) => matches!(command.body, CommandBody::Stop { .. }),
            Self::Stop { .. } => true,
            Self::Ask { .. } => false,
        }
    }

    pub(super) fn port_no(&self) -> u16 {
        match self {
            Self::Command(command) => command.body.port_no(),
            Self::Ask { port_no } | Self::Stop { port_no, .. } => *port_no,
        }
    }

    pub(super) fn call(&self) -> Option<&DeviceCall> {
        match self {
            Self::Command(command) => match &command.body {
                CommandBody::Call { call } => Some(call),
                _ => None,
            },
            Self::Ask { .. } | Self::Stop { .. } => None,
        }
    }

    fn attempts_max(&self) -> u8 {
        if let Self::Command(command) = self { command.attempts_max } else { 1 }
    }

    pub(super) fn row(&self) -> Option<i64> {
        if let Self::Command(command) = self { Some(command.id) } else { None }
    }

    /// Row and epoch of its claim.
    pub(super) fn claim(&self) -> Option<(i64, i64)> {
        if let Self::Command(command) = self { Some((command.id, command.epoch)) } else { None }
    }
}

/// How a reply names its command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ReplyKey {
    /// AP3000 command, or BKV/GN command and sub-command; 1C counts as 1D.
    pub(super) command: (u16, u16),
    /// Message id or sequence.
    pub(super) msg_id: u32,
}

#[derive(Debug)]
pub(super) struct InFlight {
    pub(super) what: Outgoing,
    pub(super) key: ReplyKey,
    pub(super) written_at: u64,
    pub(super) writes: u8,
    /// Attempts so far, resends not counted.
    attempts: u8,
    /// Not to be written after this (monotonic ms).
    pub(super) deadline: u64,
    /// When it is sent again, once; `u64::MAX`: not.
    resend_at: u64,
    /// When its reply is overdue; `u64::MAX`: its order's track knows.
    reply_by: u64,
}

/// Something taken from the lane to be written now.
#[derive(Debug)]
pub(super) struct Next {
    pub(super) what: Outgoing,
    deadline: u64,
    writes: u8,
    attempts: u8,
}

/// What becomes of a named command without a reply.
#[derive(Debug)]
pub(super) enum Unanswered {
    /// No attempt is left.
    GivenUp(InFlight),
    /// It waits for its next attempt; what was to complete it.
    TriedAgain(Completion),
}

#[derive(Debug)]
struct Waiting {
    what: Outgoing,
    deadline: u64,
    /// A further attempt waits for this.
    not_before: u64,
    writes: u8,
    attempts: u8,
}

#[derive(Debug, Default)]
pub(super) struct Lane {
    /// Most devices have no commands.
    held: Option<Box<Held>>,
    pace_until: u64,
}

#[derive(Debug, Default)]
struct Held {
    waiting: Vec<Waiting>,
    in_flight: Vec<InFlight>,
}

/// What became of something pushed.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Pushed {
    /// It waits.
    Queued,
    /// It was a stop whose start had not been written: both are gone; the start's and the stop's rows.
    Annihilated { order_no: Option<OrderNo>, start: Option<i64>, stop: Option<i64> },
    /// The same row (or question) is there already.
    Known,
    /// The lane is full.
    Full,
}

impl Lane {
    fn waits(&self) -> &[Waiting] {
        self.held.as_ref().map_or(&[], |held| &held.waiting)
    }

    fn in_flight(&self) -> &[InFlight] {
        self.held.as_ref().map_or(&[], |held| &held.in_flight)
    }

    fn flying(&mut self) -> &mut [InFlight] {
        self.held.as_mut().map_or(&mut [], |held| &mut held.in_flight)
    }

    /// To put something in.
    fn hold_more(&mut self) -> &mut Held {
        self.held.get_or_insert_default()
    }

    /// Keeps, of what waits and of what is in flight, what `waits` and `flies` say.
    fn keep(&mut self, waits: impl FnMut(&Waiting) -> bool, flies: impl FnMut(&InFlight) -> bool) {
        if let Some(held) = &mut self.held {
            held.waiting.retain(waits);
            held.in_flight.retain(flies);
            self.tidy();
        }
    }

    fn take_waiting(&mut self, index: usize) -> Option<Waiting> {
        let held = self.held.as_mut().filter(|held| index < held.waiting.len())?;
        let waiting = held.waiting.remove(index);
        self.tidy();
        Some(waiting)
    }

    fn take_in_flight(&mut self, index: usize) -> Option<InFlight> {
        let held = self.held.as_mut().filter(|held| index < held.in_flight.len())?;
        let in_flight = held.in_flight.remove(index);
        self.tidy();
        Some(in_flight)
    }

    fn tidy(&mut self) {
        self.held.take_if(|held| held.waiting.is_empty() && held.in_flight.is_empty());
    }

    /// Commands that wait for writing, questions not counted.
    pub(super) fn waiting(&self) -> Waits {
        let mut waits = Waits::default();
        for waiting in self.waits().iter().filter(|waiting| waiting.what.row().is_some() && waiting.attempts == 0) {
            waits[waiting.what.priority().index()] += 1;
        }
        waits
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waits().is_empty()
    }

    /// Queues something that must be written before `deadline` (monotonic ms).
    pub(super) fn push(&mut self, what: Outgoing, deadline: u64) -> Pushed {
        if let Some(row) = what.row()
            && let Some(Held { waiting, in_flight }) = self.held.as_deref_mut()
        {
            let waiting = waiting.iter_mut().map(|waiting| &mut waiting.what);
            let in_flight = in_flight.iter_mut().map(|in_flight| &mut in_flight.what);
            if let Some(known) = waiting.chain(in_flight).find(|known| known.row() == Some(row)) {
                // Claimed again: what becomes of it is told under the newer claim.
                *known = what;
                return Pushed::Known;
            }
        }
        if let Outgoing::Ask { port_no } = what
            && self
                .waits()
                .iter()
                .any(|waiting| matches!(waiting.what, Outgoing::Ask { port_no: other } if other == port_no))
        {
            return Pushed::Known;
        }
        if what.is_stop() {
            let order_no = what.order_no();
            let start = self.waits().iter().position(|w| w.what.is_start() && w.what.order_no() == order_no);
            if let Some(start) = start {
                let start = self.take_waiting(start).and_then(|start| start.what.row());
                return Pushed::Annihilated { order_no, start, stop: what.row() };
            }
        }
        // Rows are bounded where they are accepted; a row that is claimed must not be lost here for the sake of questions.
        if what.row().is_none() && self.waits().len() >= WAITING_MAX {
            return Pushed::Full;
        }
        let place = self.waits().partition_point(|waiting| waiting.what.priority() <= what.priority());
        self.hold_more().waiting.insert(place, Waiting { what, deadline, not_before: 0, writes: 0, attempts: 0 });
        Pushed::Queued
    }

    /// Takes what is to be written now; pacing holds it back, and commands the number in flight. A question is not among those: whether
    /// a start arrived is asked also of a device that answers nothing else.
    pub(super) fn next(&mut self, now_ms: u64) -> Option<Next> {
        if now_ms < self.pace_until {
            return None;
        }
        let has_room = self.in_flight().len() < IN_FLIGHT_MAX;
        let may_go = |what: &Outgoing| has_room || matches!(what, Outgoing::Ask { .. });
        let ready = self.waits().iter().position(|waiting| waiting.not_before <= now_ms && may_go(&waiting.what))?;
        let Waiting { what, deadline, writes, attempts, .. } = self.take_waiting(ready)?;
        Some(Next { what, deadline, writes, attempts })
    }

    /// Takes what was not written before its deadline.
    pub(super) fn expired(&mut self, now_ms: u64) -> Option<Outgoing> {
        let late = self.waits().iter().position(|waiting| waiting.deadline <= now_ms)?;
        self.take_waiting(late).map(|late| late.what)
    }

    /// Notes a write. Commands to one device keep `gap_ms` between them.
    pub(super) fn written(&mut self, next: Next, key: ReplyKey, now_ms: u64, gap_ms: u64) {
        self.pace_until = now_ms + gap_ms;
        let Next { what, deadline, writes, attempts } = next;
        let (resend_at, reply_by) = match what.call() {
            None => (u64::MAX, u64::MAX),
            Some(call) => {
                let limit = if call.sets_params() || call.is_network() { PARAMS_REPLY_MS } else { REPLY_MS };
                let resend = call.is_idempotent() && call.completion() == Completion::Reply;
                (if resend { now_ms + limit / 2 } else { u64::MAX }, now_ms + limit)
            }
        };
        if !matches!(what, Outgoing::Ask { .. }) {
            let (writes, attempts) = (writes.saturating_add(1), attempts.saturating_add(1));
            self.hold_more().in_flight.push(InFlight {
                what,
                key,
                written_at: now_ms,
                writes,
                attempts,
                deadline,
                resend_at,
                reply_by,
            });
        }
    }

    /// Notes that an earlier binding may have written this, and nobody knows; this one may before `deadline` (monotonic ms).
    pub(super) fn maybe_written(&mut self, what: Outgoing, key: ReplyKey, deadline: u64, now_ms: u64) {
        if let Some(known) = self.flying().iter_mut().find(|in_flight| in_flight.what.row() == what.row()) {
            // Written by this process: what becomes of it is told under the newer claim.
            known.what = what;
            return;
        }
        let (resend_at, reply_by) = (u64::MAX, u64::MAX);
        let written_at = now_ms;
        self.hold_more().in_flight.push(InFlight {
            what,
            key,
            written_at,
            writes: 0,
            attempts: 1,
            deadline,
            resend_at,
            reply_by,
        });
    }

    /// The next named command to be sent a second time, and its message id.
    pub(super) fn resend_due(&mut self, now_ms: u64) -> Option<(Outgoing, u32)> {
        let in_flight = self.flying().iter_mut().find(|in_flight| in_flight.resend_at <= now_ms)?;
        in_flight.resend_at = u64::MAX;
        in_flight.writes = in_flight.writes.saturating_add(1);
        Some((in_flight.what.clone(), in_flight.key.msg_id))
    }

    /// Takes a named command whose reply is overdue; one with an attempt left is put back.
    pub(super) fn unanswered(&mut self, now_ms: u64) -> Option<Unanswered> {
        let index = self.in_flight().iter().position(|in_flight| in_flight.reply_by <= now_ms)?;
        let in_flight = self.take_in_flight(index)?;
        let not_before = in_flight.written_at + ATTEMPT_MS;
        if in_flight.attempts >= in_flight.what.attempts_max() || not_before >= in_flight.deadline {
            return Some(Unanswered::GivenUp(in_flight));
        }
        let completion = in_flight.what.call().map_or(Completion::Reply, DeviceCall::completion);
        let InFlight { what, deadline, writes, attempts, .. } = in_flight;
        let place = self.waits().partition_point(|waiting| waiting.what.priority() <= what.priority());
        self.hold_more().waiting.insert(place, Waiting { what, deadline, not_before, writes, attempts });
        Some(Unanswered::TriedAgain(completion))
    }

    /// Whether something written waits for its reply.
    pub(super) fn awaits_reply(&self) -> bool {
        !self.in_flight().is_empty()
    }

    /// Whether a command was written and may still be answered, or may be written now.
    pub(super) fn owes_answer(&self, now_ms: u64) -> bool {
        // Starts and stops are answered sooner than parameters; what stays in flight longer waits for late replies.
        self.in_flight().iter().any(|in_flight| now_ms < in_flight.written_at.saturating_add(PARAMS_REPLY_MS))
            || self.waits().iter().any(|waiting| waiting.what.row().is_some() && waiting.not_before <= now_ms)
    }

    /// Takes a named command that a report answers.
    pub(super) fn reported(&mut self, answers: impl Fn(&DeviceCall) -> bool) -> Option<InFlight> {
        let index = self.in_flight().iter().position(|in_flight| in_flight.what.call().is_some_and(&answers))?;
        self.take_in_flight(index)
    }

    /// Holds the next command back (a reply that the vendor counts as a command).
    pub(super) fn hold(&mut self, until_ms: u64) {
        self.pace_until = self.pace_until.max(until_ms);
    }

    /// Until when commands are held back, monotonic ms.
    pub(super) const fn paced_until(&self) -> u64 {
        self.pace_until
    }

    /// The written start or stop of an order, to be written again.
    pub(super) fn in_flight_mut(&mut self, order_no: OrderNo, stop: bool) -> Option<&mut InFlight> {
        let wanted = |what: &Outgoing| if stop { what.is_stop() } else { what.is_start() };
        self.flying().iter_mut().find(|f| f.what.order_no() == Some(order_no) && wanted(&f.what))
    }

    /// Takes the command that a reply answers.
    pub(super) fn reply(&mut self, key: ReplyKey) -> Option<InFlight> {
        let index = self.in_flight().iter().position(|in_flight| in_flight.key == key)?;
        self.take_in_flight(index)
    }

    /// Takes the written start of an order: evidence answered it.
    pub(super) fn take_start(&mut self, order_no: OrderNo) -> Option<InFlight> {
        let index = self.in_flight().iter().position(|f| f.what.is_start() && f.what.order_no() == Some(order_no))?;
        self.take_in_flight(index)
    }

    /// Takes what was written long ago and never answered.
    pub(super) fn forgotten(&mut self, now_ms: u64) -> Option<InFlight> {
        let index = self.in_flight().iter().position(|f| now_ms.saturating_sub(f.written_at) >= REMEMBER_MS)?;
        self.take_in_flight(index)
    }

    /// Drops withdrawn rows that are not written.
    pub(super) fn withdraw(&mut self, rows: &[i64]) {
        self.keep(|waiting| waiting.what.row().is_none_or(|row| !rows.contains(&row)), |_| true);
    }

    /// Drops written named commands for which nobody waits any more.
    pub(super) fn forget_calls(&mut self, which: impl Fn(&DeviceCall) -> bool) {
        self.keep(|_| true, |in_flight| !in_flight.what.call().is_some_and(&which));
    }

    /// Drops everything unwritten: the binding it was claimed for is gone, the next one claims it again.
    pub(super) fn clear_waiting(&mut self) {
        self.keep(|_| false, |_| true);
    }

    /// When something is due, monotonic ms; `u64::MAX`: nothing.
    pub(super) fn deadline(&self, connected: bool) -> u64 {
        let expiry = self.waits().iter().map(|waiting| waiting.deadline).min().unwrap_or(u64::MAX);
        let forget = self.in_flight().iter().map(|f| f.written_at + REMEMBER_MS).min().unwrap_or(u64::MAX);
        let reply = self.in_flight().iter().map(|f| f.resend_at.min(f.reply_by)).min().unwrap_or(u64::MAX);
        let ready = self.waits().iter().map(|waiting| waiting.not_before.max(self.pace_until)).min();
        let write = ready.filter(|_| connected).unwrap_or(u64::MAX);
        expiry.min(forget).min(reply).min(write)
    }
}
