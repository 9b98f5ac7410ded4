//! An order as its owner shard follows it: evidence, deadlines, questions.
//!
//! A [`Track`] decides *when* something has happened to an order, from receive times; *what* becomes of the order is decided by
//! [`super::order::transition`] in the store's transaction. Its copy of the status is a hint for timing and never guards a write.
//!
//! A track outlives its order's end while the charge is unsettled, because a final order that still shows charging must be
//! stopped (or, if it was lost from sight, left to run).

use smallvec::SmallVec;

use super::{Now, OrderTimes, order::Event};
use crate::model::{Order, OrderNo, OrderStatus};

/// So long before an order fails for want of a load, its port is asked.
const NO_LOAD_ASK_BEFORE_MS: u64 = 30_000;
const RETURN_UNCLEAR_MS: u64 = 5 * 60_000;
/// Inbound items in a row that make a return credible.
const RETURN_STREAK: u32 = 3;
const STOP_RESENDS_MAX: u64 = 2;
/// The last one repeats.
const END_STOP_BACKOFF_MS: [u64; 5] = [10_000, 30_000, 60_000, 120_000, 300_000];
/// The device reported the end, and the store has not taken the report yet: it comes again, after 30 min at the latest
/// (device-server protocol v8.6, command 03).
const END_SEEN_MS: u64 = 45 * 60_000;
/// An event the store did not take is told again.
const RETELL_MS: u64 = 2_000;
/// So long after a port was idle it is asked again, where the record of its charge may be on the way.
const ASK_AGAIN_MS: u64 = 2_000;

/// What a track asks its device to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// Submit the event.
    Tell(Event),
    /// Ask for the port's state.
    Ask,
    /// Write the start again, with its message id.
    ResendStart,
    /// Write the stop again, with its message id.
    ResendStop,
    /// Send a stop that no command row asks for.
    Stop,
    /// Raise an alarm.
    Alarm(&'static str),
    /// A command was not acknowledged in time: counts against the score.
    AckTimedOut,
}

pub(super) type Actions = SmallVec<[Action; 2]>;

/// What the device knows that a track needs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Situation {
    pub(super) now: Now,
    /// A socket is bound.
    pub(super) connected: bool,
    /// Inbound items in a row since the bind.
    pub(super) streak: u32,
    /// A start may be resent without asking (AP3000).
    pub(super) resend_blindly: bool,
    pub(super) times: OrderTimes,
}

#[derive(Debug)]
pub(super) struct Track {
    pub(super) order_no: OrderNo,
    pub(super) port_no: u16,
    pub(super) status: OrderStatus,
    pub(super) business_no: Option<u16>,
    pub(super) settled: bool,
    end_pending: bool,
    lost: bool,
    created: u64,
    since: u64,
    start_written: Option<u64>,
    start_asked: bool,
    start_resent: bool,
    /// An earlier binding may have written the start: its port has to be seen idle twice before it is written again, because a device
    /// that comes back may answer before it sends the record of a charge that has ended.
    look_again: bool,
    /// When the port is asked again whether the start arrived; `u64::MAX`: never.
    ask_again_at: u64,
    /// What the device showed of the start: that it arrived, which the store may not know yet.
    arrived: Option<Event>,
    limit: u64,
    asked: bool,
    mismatch: Option<u64>,
    end_seen_until: u64,
    away: bool,
    evidence: bool,
    stop_resends: u64,
    end_stops: u32,
    end_stop_at: u64,
    told: Option<(Event, u64)>,
}

impl Track {
    /// Follows an order from its committed state. `taken_over`: it was not followed by this shard before, so its clocks start
    /// now: nothing times out on account of our own absence.
    pub(super) fn new(order: &Order, now: Now, taken_over: bool, times: &OrderTimes) -> Self {
        let created = mono_of(now, order.created_at);
        let mut track = Self {
            order_no: order.order_no,
            port_no: order.port_no,
            status: order.status,
            business_no: order.business_no,
            settled: order.settled_at.is_some(),
            end_pending: order.device_end_pending,
            lost: is_lost(order),
            created,
            since: if taken_over { now.mono_ms } else { mono_of(now, order.status_at) },
            start_written: order.start_written_at.map(|at| mono_of(now, at)),
            start_asked: false,
            start_resent: false,
            look_again: false,
            ask_again_at: u64::MAX,
            arrived: None,
            limit: limit(order, now, times),
            asked: false,
            mismatch: None,
            end_seen_until: 0,
            away: false,
            evidence: false,
            stop_resends: 0,
            end_stops: 0,
            end_stop_at: now.mono_ms + END_STOP_BACKOFF_MS[0],
            told: None,
        };
        if taken_over && track.status == OrderStatus::Pending && track.start_written.is_some() {
            // The acknowledgement may have come while nobody listened.
            track.start_written = Some(now.mono_ms);
            track.start_resent = true;
        }
        track
    }

    /// Takes over the committed state after a change.
    pub(super) fn update(&mut self, order: &Order, now: Now, times: &OrderTimes) {
        if self.status != order.status {
            self.status = order.status;
            self.since = now.mono_ms;
            self.asked = false;
            self.mismatch = None;
            self.evidence = false;
            self.stop_resends = 0;
            if order.status == OrderStatus::Charging {
                self.away = false;
                self.limit = limit(order, now, times);
            }
        }
        if order.device_end_pending && !self.end_pending {
            self.end_stop_at = now.mono_ms + END_STOP_BACKOFF_MS[0];
        }
        self.end_pending = order.device_end_pending;
        self.lost = is_lost(order);
        self.settled = order.settled_at.is_some();
        self.business_no = order.business_no.or(self.business_no);
        self.told = None;
    }

    /// Whether nothing more can come of it.
    pub(super) const fn is_over(&self) -> bool {
        self.status.is_final() && self.settled
    }

    pub(super) const fn is_active(&self) -> bool {
        self.status.is_active()
    }

    /// The device reported the end of the charge, and the store has the report; or its report waits behind one that the store
    /// did not take.
    pub(super) fn end_seen(&mut self, now: Now) {
        self.end_seen_until = now.mono_ms + END_SEEN_MS;
    }

    /// The device reported the end of another charge. It keeps its records and sends one a minute (device-server protocol v8.6,
    /// command 03), so this order's may be behind that one: the wait for it begins anew.
    pub(super) fn record_may_follow(&mut self, now: Now) {
        if let Some(at) = &mut self.mismatch {
            *at = now.mono_ms;
        }
    }

    /// Whether it still matters what its port shows.
    pub(super) const fn wants_reports(&self) -> bool {
        self.status.is_active() || self.end_pending
    }

    /// The store could not commit what was told: tell again after a while.
    pub(super) fn retell(&mut self, now: Now) {
        // A change of the order that came in between took away what was told of its start, and it was not stored.
        let unknown = self.arrived.filter(|_| self.status == OrderStatus::Pending);
        self.told = self.told.map(|(event, _)| event).or(unknown).map(|event| (event, now.mono_ms + RETELL_MS));
    }

    /// The start was written to the socket.
    pub(super) fn start_written(&mut self, now: Now) {
        self.start_written.get_or_insert(now.mono_ms);
    }

    /// An earlier binding may have written the start, and nobody knows: the port is asked now. Idle, and idle again, it did not arrive and
    /// is written; charging, it did.
    pub(super) fn start_maybe_written(&mut self, now: Now) {
        self.look_again = true;
        if self.start_written.is_none() {
            self.start_written = Some(now.mono_ms);
            self.start_asked = true;
        }
    }

    pub(super) const fn was_start_written(&self) -> bool {
        self.start_written.is_some()
    }

    /// The device acknowledged the start.
    pub(super) fn start_acked(&mut self, now: Now, times: &OrderTimes) -> Option<Action> {
        let in_time = self.start_written.is_some_and(|at| now.mono_ms.saturating_sub(at) <= times.start_ack);
        let event = if in_time { Event::StartAcked } else { Event::StartAckedLate };
        self.arrived = Some(event);
        self.tell(event, now)
    }

    /// Says that something happened, unless just that was said and is not answered.
    pub(super) fn tell(&mut self, event: Event, now: Now) -> Option<Action> {
        if self.told.is_some_and(|(told, until)| told == event && now.mono_ms < until) {
            return None;
        }
        self.told = Some((event, u64::MAX));
        Some(Action::Tell(event))
    }

    /// The port shows that it charges for this order.
    pub(super) fn evidence(&mut self, situation: Situation) -> Option<Action> {
        self.mismatch = None;
        self.away = false;
        match self.status {
            OrderStatus::Pending | OrderStatus::Confirmed if self.start_written.is_some() => {
                self.arrived.get_or_insert(Event::Evidence);
                self.tell(Event::Evidence, situation.now)
            }
            OrderStatus::Interrupted => {
                self.evidence = true;
                self.returned(situation)
            }
            OrderStatus::Completed
            | OrderStatus::Cancelled
            | OrderStatus::Stopped
            | OrderStatus::Failed
            | OrderStatus::Timeout
                if !self.settled && !self.end_pending =>
            {
                self.tell(Event::Evidence, situation.now)
            }
            OrderStatus::Pending
            | OrderStatus::Confirmed
            | OrderStatus::Charging
            | OrderStatus::Cancelling
            | OrderStatus::Stopping
            | OrderStatus::Completed
            | OrderStatus::Cancelled
            | OrderStatus::Stopped
            | OrderStatus::Failed
            | OrderStatus::Timeout => None,
        }
    }

    /// Whether its port was asked if the start arrived, and nothing showed that it did.
    pub(super) fn doubts_start(&self) -> bool {
        self.status == OrderStatus::Pending && self.start_asked && !self.start_resent && self.arrived.is_none()
    }

    /// The port shows that it does not charge for this order. `record_may_come`: the device has records that are not stored, so
    /// this may be a charge that has ended.
    pub(super) fn not_charging(&mut self, situation: Situation, record_may_come: bool) -> Option<Action> {
        self.away = false;
        match self.status {
            OrderStatus::Charging | OrderStatus::Interrupted => {
                if self.mismatch.is_none() {
                    self.mismatch = Some(situation.now.mono_ms);
                    return Some(Action::Ask);
                }
                None
            }
            OrderStatus::Pending if self.doubts_start() && (record_may_come || self.look_again) => {
                self.look_again = record_may_come;
                self.ask_again_at = situation.now.mono_ms + ASK_AGAIN_MS;
                None
            }
            // Answers shortly after one another are one look.
            OrderStatus::Pending if self.doubts_start() && self.ask_again_at != u64::MAX => None,
            OrderStatus::Pending if self.doubts_start() => {
                // Asked at half the time, and the hole is idle: the start did not arrive.
                self.start_resent = true;
                Some(Action::ResendStart)
            }
            status if status.is_final() && self.end_pending => self.tell(Event::PortMismatch, situation.now),
            _ => None,
        }
    }

    /// The device, or the port's socket, went away.
    pub(super) fn offline(&mut self, now: Now) -> Option<Action> {
        self.away = true;
        (self.status == OrderStatus::Charging).then(|| self.tell(Event::Offline, now)).flatten()
    }

    /// The device was bound again after `absent_ms`. Clocks that stand still while it is away are moved.
    pub(super) fn bound(&mut self, now: Now, absent_ms: u64) -> Actions {
        self.away = false;
        let mut actions = Actions::new();
        match self.status {
            OrderStatus::Confirmed => {
                self.since = self.since.saturating_add(absent_ms).min(now.mono_ms);
                actions.push(Action::Ask);
            }
            OrderStatus::Interrupted | OrderStatus::Pending if self.start_written.is_some() => {
                if let Some(event) = self.arrived.filter(|_| self.status == OrderStatus::Pending) {
                    actions.extend(self.tell(event, now));
                }
                actions.push(Action::Ask);
            }
            status if status.is_final() && self.end_pending && !self.lost => {
                // The store sends one stop with each bind; more follow while the connection lasts.
                self.end_stops = 0;
                self.end_stop_at = now.mono_ms + END_STOP_BACKOFF_MS[0];
            }
            _ => {}
        }
        actions
    }

    /// An inbound item came: it may complete a return.
    pub(super) fn returned(&mut self, situation: Situation) -> Option<Action> {
        let back = self.status == OrderStatus::Interrupted && self.evidence && situation.streak >= RETURN_STREAK;
        back.then(|| self.tell(Event::Returned, situation.now)).flatten()
    }

    /// What is due.
    pub(super) fn poll(&mut self, situation: Situation) -> Actions {
        let (now, times) = (situation.now, situation.times);
        let mut actions = Actions::new();
        if let Some((event, at)) = self.told {
            if at > now.mono_ms {
                return actions;
            }
            self.told = None;
            // What followed from a deadline is judged afresh; what the device said is said again.
            if !is_deadline(event) {
                actions.extend(self.tell(event, now));
                return actions;
            }
        }
        let since = now.mono_ms.saturating_sub(self.since);
        match self.status {
            OrderStatus::Pending => {
                let written = self.start_written.map(|at| now.mono_ms.saturating_sub(at));
                match written {
                    None if now.mono_ms.saturating_sub(self.created) >= times.start_total => {
                        actions.extend(self.tell(Event::StartTimedOut, now));
                    }
                    Some(waited) if waited >= times.start_ack => {
                        actions.push(Action::AckTimedOut);
                        actions.extend(self.tell(Event::StartTimedOut, now));
                    }
                    Some(_) if now.mono_ms >= self.ask_again_at && situation.connected => {
                        self.ask_again_at = u64::MAX;
                        actions.push(Action::Ask);
                    }
                    Some(waited) if waited >= times.start_resend && situation.connected => {
                        if situation.resend_blindly && !self.start_resent {
                            self.start_resent = true;
                            actions.push(Action::ResendStart);
                        } else if !situation.resend_blindly && !self.start_asked {
                            self.start_asked = true;
                            actions.push(Action::Ask);
                        }
                    }
                    Some(_) | None => {}
                }
            }
            OrderStatus::Confirmed if situation.connected => {
                if since >= times.no_load {
                    actions.extend(self.tell(Event::NoLoad, now));
                } else if since >= no_load_ask(&times) && !self.asked {
                    self.asked = true;
                    actions.push(Action::Ask);
                }
            }
            OrderStatus::Charging | OrderStatus::Interrupted => {
                if self.mismatch.is_some_and(|at| now.mono_ms >= self.mismatch_until(at, &times)) {
                    actions.extend(self.tell(Event::PortMismatch, now));
                } else if self.status == OrderStatus::Charging && now.mono_ms >= self.limit {
                    actions.extend(self.tell(Event::Stop, now));
                } else if self.status == OrderStatus::Interrupted {
                    let gone = self.away || !situation.connected;
                    if gone && since >= times.interrupted {
                        actions.extend(self.tell(Event::ReturnTimedOut, now));
                    } else if !gone && since >= RETURN_UNCLEAR_MS {
                        actions.extend(self.tell(Event::PortMismatch, now));
                    }
                }
            }
            OrderStatus::Cancelling | OrderStatus::Stopping => {
                if since >= times.stop_total {
                    actions.extend(self.tell(Event::StopTimedOut, now));
                } else if self.stop_resend_after(&times).is_some_and(|after| since >= after) {
                    if self.stop_resends == 0 && situation.connected {
                        actions.push(Action::AckTimedOut);
                    }
                    self.stop_resends += 1;
                    actions.push(Action::ResendStop);
                }
            }
            status if status.is_final() && self.stops_on_end(situation) && now.mono_ms >= self.end_stop_at => {
                if self.end_stops < times.end_stops_max {
                    let step = usize::try_from(self.end_stops).unwrap_or(usize::MAX);
                    self.end_stops += 1;
                    self.end_stop_at = now.mono_ms + END_STOP_BACKOFF_MS[step.min(END_STOP_BACKOFF_MS.len() - 1)];
                    actions.push(Action::Stop);
                } else {
                    self.end_stop_at = u64::MAX;
                    actions.push(Action::Alarm("stop_ignored"));
                }
            }
            _ => {}
        }
        actions
    }

    /// When [`Track::poll`] has something to do, monotonic ms; `u64::MAX`: nothing is due.
    pub(super) fn deadline(&self, situation: Situation) -> u64 {
        if let Some((_, at)) = self.told {
            return at;
        }
        let times = situation.times;
        match self.status {
            OrderStatus::Pending => match self.start_written {
                None => self.created + times.start_total,
                Some(at) => {
                    let half_done = !situation.connected
                        || if situation.resend_blindly { self.start_resent } else { self.start_asked };
                    let by = at + if half_done { times.start_ack } else { times.start_ack.min(times.start_resend) };
                    if situation.connected { by.min(self.ask_again_at) } else { by }
                }
            },
            OrderStatus::Confirmed if situation.connected => {
                self.since + if self.asked { times.no_load } else { no_load_ask(&times) }
            }
            OrderStatus::Charging => {
                self.limit.min(self.mismatch.map_or(u64::MAX, |at| self.mismatch_until(at, &times)))
            }
            OrderStatus::Interrupted => {
                let gone = self.away || !situation.connected;
                let clear = self.since + if gone { times.interrupted } else { RETURN_UNCLEAR_MS };
                clear.min(self.mismatch.map_or(u64::MAX, |at| self.mismatch_until(at, &times)))
            }
            OrderStatus::Cancelling | OrderStatus::Stopping => {
                self.since + self.stop_resend_after(&times).unwrap_or(u64::MAX).min(times.stop_total)
            }
            status if status.is_final() && self.stops_on_end(situation) => self.end_stop_at,
            _ => u64::MAX,
        }
    }

    /// When a port that stopped charging at `at` makes the order fail, if no settlement comes.
    fn mismatch_until(&self, at: u64, times: &OrderTimes) -> u64 {
        (at + times.settlement).max(self.end_seen_until)
    }

    /// From the wish to stop to the next repetition of the stop, if one is left.
    fn stop_resend_after(&self, times: &OrderTimes) -> Option<u64> {
        (self.stop_resends < STOP_RESENDS_MAX).then(|| times.stop_resend * (self.stop_resends + 1))
    }

    fn stops_on_end(&self, situation: Situation) -> bool {
        self.end_pending && !self.settled && !self.lost && situation.connected
    }
}

/// Events that follow from a deadline, not from what the device said.
const fn is_deadline(event: Event) -> bool {
    match event {
        Event::StartTimedOut
        | Event::NoLoad
        | Event::ReturnTimedOut
        | Event::PortMismatch
        | Event::StopTimedOut
        | Event::Stop => true,
        Event::StartAcked
        | Event::StartAckedLate
        | Event::StartRefused { .. }
        | Event::StartWithdrawn
        | Event::Evidence
        | Event::Cancel
        | Event::Offline
        | Event::Returned
        | Event::StopAcked
        | Event::StopRefused
        | Event::Settled(_) => false,
    }
}

fn is_lost(order: &Order) -> bool {
    order.status == OrderStatus::Failed
        && matches!(order.failure_reason.as_deref(), Some("device_offline" | "port_state_mismatch"))
}

/// Monotonic time of a Unix time; times before the process's start become its start.
fn mono_of(now: Now, unix_ms: i64) -> u64 {
    let ago = u64::try_from(now.unix_ms.saturating_sub(unix_ms)).unwrap_or(0);
    now.mono_ms.saturating_sub(ago).max(1)
}

/// From acknowledgement to the question for the port.
const fn no_load_ask(times: &OrderTimes) -> u64 {
    times.no_load.saturating_sub(NO_LOAD_ASK_BEFORE_MS)
}

/// When the charge has lasted too long.
fn limit(order: &Order, now: Now, times: &OrderTimes) -> u64 {
    let Some(start) = order.start_time else { return u64::MAX };
    let elapsed = u64::try_from(now.unix_ms.saturating_sub(start)).unwrap_or(0);
    now.mono_ms.saturating_add(times.duration_max(&order.spec.mode).saturating_sub(elapsed))
}
