//! The life of an order, as one pure function.
//!
//! [`transition`] takes what is known of an order and one event, and says what becomes of it. It performs nothing: the store
//! writes status, events, money and command rows of a [`Step`] in one transaction, and the owner shard acts on the
//! outcome. Every pair of status and event has a decided answer; the match has no wildcard, so a new event does not compile
//! until each status has its own.
//!
//! ```text
//! pending ──▶ confirmed ──▶ charging ◀──▶ interrupted        active
//!    │  └────────┼──▶ cancelling  └──▶ stopping ◀──┘          (2 can also be reached from 0)
//!    ▼           ▼        ▼                ▼
//! timeout     failed  cancelled        stopped    completed   final
//! ```
//!
//! Invariants:
//! - A settlement is never refused: money follows the device. On a final order it changes totals, not the status.
//! - A stop is asked for whenever the relay may be on for an order that will not be charged for.
//! - A final order never becomes active again.

use crate::model::{EventType, OrderStatus};

/// What the function needs to know of an order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Where it stands.
    pub status: OrderStatus,
    /// Whether its start command is (or may be) beyond recall: claimed by the owner shard.
    pub start_claimed: bool,
    /// Whether charging evidence was ever seen.
    pub charged: bool,
    /// Whether the device acknowledged a stop.
    pub stop_acked: bool,
    /// Whether totals are stored.
    pub settled: bool,
    /// Final, but the device still shows charging.
    pub end_pending: bool,
    /// Whether it failed because device or port state was lost: a paid charge that may still run to its end.
    pub lost: bool,
}

/// What can happen to an order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The device acknowledged the start within 10 s of its first write.
    StartAcked,
    /// The device acknowledged the start, too late.
    StartAckedLate,
    /// The device refused the start. `relay_may_be_on`: AP3000 results 03 and 09.
    StartRefused {
        /// Whether power may flow all the same.
        relay_may_be_on: bool,
    },
    /// The start was taken back before it was written.
    StartWithdrawn,
    /// 10 s since the first write, or 15 s since creation, without acknowledgement.
    StartTimedOut,
    /// The device shows that it charges for this order.
    Evidence,
    /// The third party cancels.
    Cancel,
    /// The third party stops, or the maximum duration is reached.
    Stop,
    /// 10 min confirmed without charging, the port asked once before.
    NoLoad,
    /// The device (BKV/GN: or its socket) went offline.
    Offline,
    /// After an interruption: evidence of this order and three inbound items in a row.
    Returned,
    /// 60 s interrupted without return.
    ReturnTimedOut,
    /// The port shows that it does not charge this order; asked once, and 90 s went by without a settlement.
    PortMismatch,
    /// The device acknowledged a stop.
    StopAcked,
    /// The device refused a stop.
    StopRefused,
    /// 30 s cancelling or stopping.
    StopTimedOut,
    /// The device reported the end.
    Settled(End),
}

/// How a settlement says the charge ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Stopped by the server.
    ByServer,
    /// Any other regular end.
    Normal,
    /// A fault of port, power or site.
    Fault,
}

/// What becomes of the order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Something changes.
    Step(Step),
    /// Already so: the same answer as before, nothing to write.
    Unchanged,
    /// Not possible in this status: counted, logged, and for an API call `ORDER_STATE`.
    Refused,
}

/// A change, with all that must be committed together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// The status afterwards.
    pub to: OrderStatus,
    /// Queue a stop command for the order's port.
    pub send_stop: bool,
    /// Withdraw the start command if it is not written.
    pub withdraw_start: bool,
    /// Store the settlement's totals and emit `order.settled`.
    pub store_totals: bool,
    /// The device acknowledged a stop.
    pub stop_acked: bool,
    /// New value of the end-pending mark.
    pub end_pending: bool,
    /// Emit `device.alarm` with this reason.
    pub alarm: Option<&'static str>,
    /// Reason stored with a failed, cancelled or timed-out order; for a refusal the device's code is put in by the caller.
    pub reason: Option<&'static str>,
}

impl Step {
    const fn to(facts: &Facts, to: OrderStatus) -> Self {
        Self {
            to,
            send_stop: false,
            withdraw_start: false,
            store_totals: false,
            stop_acked: facts.stop_acked,
            end_pending: facts.end_pending,
            alarm: None,
            reason: None,
        }
    }

    const fn stop(mut self) -> Self {
        self.send_stop = true;
        self
    }

    const fn because(mut self, reason: &'static str) -> Self {
        self.reason = Some(reason);
        self
    }

    const fn alarm(mut self, reason: &'static str) -> Self {
        self.alarm = Some(reason);
        self
    }

    const fn end_pending(mut self, pending: bool) -> Self {
        self.end_pending = pending;
        self
    }

    const fn withdraw(mut self) -> Self {
        self.withdraw_start = true;
        self
    }

    const fn totals(mut self) -> Self {
        self.store_totals = true;
        self.end_pending = false;
        self
    }

    const fn acked(mut self) -> Self {
        self.stop_acked = true;
        self
    }
}

/// Decides what `event` does to the order.
pub fn transition(facts: &Facts, event: Event) -> Verdict {
    use Event as E;
    use OrderStatus as S;
    let to = |status| Step::to(facts, status);
    let stay = || Step::to(facts, facts.status);
    match facts.status {
        S::Pending => match event {
            E::StartAcked => Verdict::Step(to(S::Confirmed)),
            E::StartAckedLate => {
                Verdict::Step(to(S::Timeout).because("start_ack_late").stop().end_pending(true).alarm("start_ack_late"))
            }
            E::StartRefused { relay_may_be_on } => Verdict::Step(refused(to(S::Failed), relay_may_be_on)),
            E::StartWithdrawn => Verdict::Step(to(S::Failed).because("start_not_sent")),
            E::StartTimedOut => Verdict::Step(to(S::Timeout).because("start_timeout").withdraw()),
            E::Evidence | E::Returned => Verdict::Step(to(S::Charging)),
            E::Cancel | E::Stop if !facts.start_claimed => {
                Verdict::Step(to(S::Cancelled).because("cancelled_before_start").withdraw())
            }
            E::Cancel | E::Stop => Verdict::Step(to(S::Cancelling).stop()),
            E::Settled(end) => Verdict::Step(to(ended(end)).totals()),
            E::NoLoad
            | E::Offline
            | E::ReturnTimedOut
            | E::PortMismatch
            | E::StopAcked
            | E::StopRefused
            | E::StopTimedOut => Verdict::Refused,
        },
        S::Confirmed => match event {
            E::StartAcked | E::StartAckedLate => Verdict::Unchanged,
            E::Evidence | E::Returned => Verdict::Step(to(S::Charging)),
            E::Cancel => Verdict::Step(to(S::Cancelling).stop()),
            E::Stop => Verdict::Step(to(S::Stopping).stop()),
            E::NoLoad => Verdict::Step(to(S::Failed).because("no_load").stop()),
            // Its clocks stand still while the device is away; it is asked on return.
            E::Offline => Verdict::Unchanged,
            E::Settled(end) => Verdict::Step(to(ended(end)).totals()),
            E::StartRefused { .. }
            | E::StartWithdrawn
            | E::StartTimedOut
            | E::ReturnTimedOut
            | E::PortMismatch
            | E::StopAcked
            | E::StopRefused
            | E::StopTimedOut => Verdict::Refused,
        },
        S::Charging => match event {
            E::StartAcked | E::StartAckedLate | E::Evidence | E::Returned => Verdict::Unchanged,
            E::Stop => Verdict::Step(to(S::Stopping).stop()),
            E::Offline => Verdict::Step(to(S::Interrupted)),
            E::PortMismatch => Verdict::Step(to(S::Failed).because("port_state_mismatch")),
            E::Settled(end) => Verdict::Step(to(ended(end)).totals()),
            E::Cancel
            | E::StartRefused { .. }
            | E::StartWithdrawn
            | E::StartTimedOut
            | E::NoLoad
            | E::ReturnTimedOut
            | E::StopAcked
            | E::StopRefused
            | E::StopTimedOut => Verdict::Refused,
        },
        S::Interrupted => match event {
            // Evidence alone may be one stale frame; the return needs three items in a row.
            E::StartAcked | E::StartAckedLate | E::Evidence | E::Offline => Verdict::Unchanged,
            E::Returned => Verdict::Step(to(S::Charging)),
            E::Stop => Verdict::Step(to(S::Stopping).stop()),
            E::ReturnTimedOut => Verdict::Step(to(S::Failed).because("device_offline")),
            E::PortMismatch => Verdict::Step(to(S::Failed).because("port_state_mismatch")),
            E::Settled(end) => Verdict::Step(to(ended(end)).totals()),
            E::Cancel
            | E::StartRefused { .. }
            | E::StartWithdrawn
            | E::StartTimedOut
            | E::NoLoad
            | E::StopAcked
            | E::StopRefused
            | E::StopTimedOut => Verdict::Refused,
        },
        S::Cancelling => match event {
            E::StartAcked | E::StartAckedLate => Verdict::Step(stay().stop()),
            E::StartRefused { relay_may_be_on } => {
                let step = to(S::Cancelled).because("start_refused");
                Verdict::Step(if relay_may_be_on { step.stop().end_pending(true) } else { step })
            }
            E::StartWithdrawn => Verdict::Step(to(S::Cancelled).because("cancelled_before_start")),
            E::Cancel | E::Stop | E::Evidence | E::Returned | E::Offline => Verdict::Unchanged,
            E::StopAcked => Verdict::Step(to(S::Cancelled).acked()),
            // The owner asks the port and resends at 10 s and 20 s.
            E::StopRefused => Verdict::Unchanged,
            E::StopTimedOut => Verdict::Step(unacknowledged(to(S::Cancelled), facts)),
            E::Settled(end) => Verdict::Step(to(ended_on_request(end, S::Cancelled)).totals()),
            E::StartTimedOut | E::NoLoad | E::ReturnTimedOut | E::PortMismatch => Verdict::Refused,
        },
        S::Stopping => match event {
            E::StartAcked | E::StartAckedLate | E::Evidence | E::Returned | E::Offline => Verdict::Unchanged,
            E::Cancel | E::Stop => Verdict::Unchanged,
            E::StopAcked => Verdict::Step(to(S::Stopped).acked()),
            E::StopRefused => Verdict::Unchanged,
            E::StopTimedOut => Verdict::Step(unacknowledged(to(S::Stopped), facts)),
            E::Settled(end) => Verdict::Step(to(ended_on_request(end, S::Stopped)).totals()),
            E::StartRefused { .. }
            | E::StartWithdrawn
            | E::StartTimedOut
            | E::NoLoad
            | E::ReturnTimedOut
            | E::PortMismatch => Verdict::Refused,
        },
        S::Completed | S::Cancelled | S::Stopped | S::Failed | S::Timeout => match event {
            E::Settled(_) if facts.settled => Verdict::Unchanged,
            E::Settled(_) => Verdict::Step(stay().totals()),
            // Settled is settled: what still shows on the port belongs to somebody else.
            E::Evidence | E::Returned | E::StartAcked | E::StartAckedLate if facts.settled => Verdict::Refused,
            E::StartAcked | E::StartAckedLate if facts.end_pending => Verdict::Unchanged,
            E::StartAcked | E::StartAckedLate => Verdict::Step(stay().stop().end_pending(true).alarm("start_ack_late")),
            E::Evidence | E::Returned if facts.end_pending => Verdict::Unchanged,
            // A charge that was paid for and lost from sight runs to its end; others are stopped.
            E::Evidence | E::Returned if facts.lost => Verdict::Step(stay().end_pending(true)),
            E::Evidence | E::Returned => Verdict::Step(stay().stop().end_pending(true)),
            E::StopAcked if facts.stop_acked => Verdict::Unchanged,
            E::StopAcked => Verdict::Step(stay().acked()),
            E::PortMismatch if facts.end_pending => Verdict::Step(stay().end_pending(false)),
            E::Cancel
            | E::Stop
            | E::StartRefused { .. }
            | E::StartWithdrawn
            | E::StartTimedOut
            | E::NoLoad
            | E::Offline
            | E::ReturnTimedOut
            | E::PortMismatch
            | E::StopRefused
            | E::StopTimedOut => Verdict::Refused,
        },
    }
}

const fn refused(step: Step, relay_may_be_on: bool) -> Step {
    let step = step.because("start_refused");
    if relay_may_be_on { step.stop().end_pending(true) } else { step }
}

const fn unacknowledged(step: Step, facts: &Facts) -> Step {
    if facts.stop_acked { step } else { step.because("stop_unacknowledged").alarm("stop_unacknowledged") }
}

const fn ended(end: End) -> OrderStatus {
    match end {
        End::ByServer | End::Normal => OrderStatus::Completed,
        End::Fault => OrderStatus::Failed,
    }
}

const fn ended_on_request(end: End, requested: OrderStatus) -> OrderStatus {
    match end {
        End::ByServer => requested,
        End::Normal => OrderStatus::Completed,
        End::Fault => OrderStatus::Failed,
    }
}

/// The events of a step in the order they are emitted; `order.settled` is the last of its transaction.
pub fn events(from: OrderStatus, step: &Step, charged: bool) -> impl Iterator<Item = EventType> {
    let (transition, ended) = if from == step.to {
        (None, None)
    } else {
        let resumed = from == OrderStatus::Interrupted && step.to == OrderStatus::Charging;
        let event = if resumed { EventType::OrderResumed } else { entered(step.to) };
        (Some(event), (step.to.is_final() && charged).then_some(EventType::ChargingEnded))
    };
    ended.into_iter().chain(transition).chain(step.store_totals.then_some(EventType::OrderSettled))
}

const fn entered(status: OrderStatus) -> EventType {
    match status {
        OrderStatus::Pending => EventType::OrderCreated,
        OrderStatus::Confirmed => EventType::OrderConfirmed,
        OrderStatus::Charging => EventType::ChargingStarted,
        OrderStatus::Completed => EventType::OrderCompleted,
        OrderStatus::Cancelled => EventType::OrderCancelled,
        OrderStatus::Stopped => EventType::OrderStopped,
        OrderStatus::Failed => EventType::OrderFailed,
        OrderStatus::Timeout => EventType::OrderTimeout,
        OrderStatus::Cancelling => EventType::OrderCancelling,
        OrderStatus::Stopping => EventType::OrderStopping,
        OrderStatus::Interrupted => EventType::OrderInterrupted,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::OrderStatus as S;

    const EVENTS: [Event; 20] = [
        Event::StartAcked,
        Event::StartAckedLate,
        Event::StartRefused { relay_may_be_on: false },
        Event::StartRefused { relay_may_be_on: true },
        Event::StartWithdrawn,
        Event::StartTimedOut,
        Event::Evidence,
        Event::Cancel,
        Event::Stop,
        Event::NoLoad,
        Event::Offline,
        Event::Returned,
        Event::ReturnTimedOut,
        Event::PortMismatch,
        Event::StopAcked,
        Event::StopRefused,
        Event::StopTimedOut,
        Event::Settled(End::ByServer),
        Event::Settled(End::Normal),
        Event::Settled(End::Fault),
    ];

    const fn facts(status: OrderStatus) -> Facts {
        let start_claimed = true;
        Facts {
            status,
            start_claimed,
            charged: false,
            stop_acked: false,
            settled: false,
            end_pending: false,
            lost: false,
        }
    }

    /// A verdict as the table writes it: target status by number, then s stop, w withdraw, t totals, a stop acknowledged,
    /// p end pending, ! alarm; `=` unchanged, `x` refused.
    fn shown(verdict: Verdict) -> String {
        let Verdict::Step(step) = verdict else {
            return if verdict == Verdict::Unchanged { "=" } else { "x" }.to_owned();
        };
        let marks = [
            (step.send_stop, 's'),
            (step.withdraw_start, 'w'),
            (step.store_totals, 't'),
            (step.stop_acked, 'a'),
            (step.end_pending, 'p'),
            (step.alarm.is_some(), '!'),
        ];
        let marks: String = marks.into_iter().filter_map(|(set, mark)| set.then_some(mark)).collect();
        format!("{}{marks}", step.to.code())
    }

    /// One row per status, one column per event of [`EVENTS`]: acked, acked late, refused, refused with relay on, withdrawn, start
    /// timed out, evidence, cancel, stop, no load, offline, returned, return timed out, mismatch, stop acked, stop refused,
    /// stop timed out, settled by server, normally, by fault.
    const TABLE: [(OrderStatus, &str); 11] = [
        (S::Pending, "1 7sp! 6 6sp 6 7w 2 8s 8s x x 2 x x x x x 3t 3t 6t"),
        (S::Confirmed, "= = x x x x 2 8s 9s 6s = 2 x x x x x 3t 3t 6t"),
        (S::Charging, "= = x x x x = x 9s x 10 = x 6 x x x 3t 3t 6t"),
        (S::Completed, "3sp! 3sp! x x x x 3sp x x x x 3sp x x 3a x x 3t 3t 3t"),
        (S::Cancelled, "4sp! 4sp! x x x x 4sp x x x x 4sp x x 4a x x 4t 4t 4t"),
        (S::Stopped, "5sp! 5sp! x x x x 5sp x x x x 5sp x x 5a x x 5t 5t 5t"),
        (S::Failed, "6sp! 6sp! x x x x 6sp x x x x 6sp x x 6a x x 6t 6t 6t"),
        (S::Timeout, "7sp! 7sp! x x x x 7sp x x x x 7sp x x 7a x x 7t 7t 7t"),
        (S::Cancelling, "8s 8s 4 4sp 4 x = = = x = = x x 4a = 4! 4t 3t 6t"),
        (S::Stopping, "= = x x x x = = = x = = x x 5a = 5! 5t 3t 6t"),
        (S::Interrupted, "= = x x x x = x 9s x = 2 6 6 x x x 3t 3t 6t"),
    ];

    #[test]
    fn every_pair_of_status_and_event_is_decided() {
        for (status, row) in TABLE {
            let row: Vec<&str> = row.split(' ').collect();
            assert_eq!(row.len(), EVENTS.len(), "{status:?}");
            for (event, expected) in EVENTS.into_iter().zip(row) {
                assert_eq!(shown(transition(&facts(status), event)), expected, "{status:?} × {event:?}");
            }
        }
    }

    fn all_facts() -> impl Iterator<Item = Facts> {
        S::ALL
            .into_iter()
            .flat_map(|status| {
                (0..64_u8).map(move |bits| Facts {
                    status,
                    start_claimed: bits & 1 != 0,
                    charged: bits & 2 != 0,
                    stop_acked: bits & 4 != 0,
                    settled: bits & 8 != 0,
                    end_pending: bits & 16 != 0,
                    lost: bits & 32 != 0,
                })
            })
            // Only a final order can be settled or have its end pending, and only a failed one be lost.
            .filter(|facts| facts.status.is_final() || !(facts.settled || facts.end_pending))
            .filter(|facts| facts.status == S::Failed || !facts.lost)
    }

    #[test]
    fn invariants_hold_for_all_facts_and_events() {
        for facts in all_facts() {
            for event in EVENTS {
                let verdict = transition(&facts, event);
                if let Event::Settled(_) = event {
                    // A settlement is never refused; totals are stored once.
                    assert_ne!(verdict, Verdict::Refused, "{facts:?} {event:?}");
                    if !facts.settled || facts.status.is_active() {
                        assert!(matches!(verdict, Verdict::Step(Step { store_totals: true, .. })), "{facts:?}");
                    }
                }
                let Verdict::Step(step) = verdict else { continue };
                if facts.status.is_final() {
                    assert_eq!(step.to, facts.status, "a final order keeps its status: {facts:?} {event:?}");
                }
                assert!(!step.store_totals || !step.end_pending, "{facts:?} {event:?}");
                let ends_unpaid = matches!(step.to, S::Timeout | S::Cancelled | S::Failed) && step.end_pending;
                assert!(!ends_unpaid || facts.status.is_final() || step.send_stop, "{facts:?} {event:?}");
            }
        }
    }

    #[test]
    fn an_unclaimed_start_is_withdrawn_at_once() {
        let unclaimed = Facts { start_claimed: false, ..facts(S::Pending) };
        assert_eq!(shown(transition(&unclaimed, Event::Cancel)), "4w");
        assert_eq!(shown(transition(&unclaimed, Event::Stop)), "4w");
    }

    #[test]
    fn a_lost_charge_runs_on_and_any_other_is_stopped() {
        let lost = Facts { lost: true, ..facts(S::Failed) };
        assert_eq!(shown(transition(&lost, Event::Evidence)), "6p");
        let pending = Facts { end_pending: true, ..facts(S::Timeout) };
        assert_eq!(shown(transition(&pending, Event::Evidence)), "=");
        assert_eq!(shown(transition(&pending, Event::PortMismatch)), "7");
        assert_eq!(shown(transition(&pending, Event::Settled(End::Normal))), "7t");
        let settled = Facts { settled: true, ..facts(S::Completed) };
        assert_eq!(shown(transition(&settled, Event::Evidence)), "x");
        assert_eq!(shown(transition(&settled, Event::Settled(End::Normal))), "=");
    }

    #[test]
    fn events_are_told_in_order() {
        let told = |from, event, charged| {
            let Verdict::Step(step) = transition(&facts(from), event) else { panic!("{from:?} {event:?}") };
            events(from, &step, charged).map(EventType::as_str).collect::<Vec<_>>()
        };
        assert_eq!(told(S::Pending, Event::StartAcked, false), ["order.confirmed"]);
        assert_eq!(told(S::Confirmed, Event::Evidence, false), ["charging.started"]);
        assert_eq!(told(S::Interrupted, Event::Returned, true), ["order.resumed"]);
        let settled = Event::Settled(End::Normal);
        assert_eq!(told(S::Charging, settled, true), ["charging.ended", "order.completed", "order.settled"]);
        assert_eq!(told(S::Pending, settled, false), ["order.completed", "order.settled"]);
        assert_eq!(told(S::Timeout, settled, false), ["order.settled"]);
        assert_eq!(told(S::Cancelling, Event::StopAcked, false), ["order.cancelled"]);
        assert_eq!(told(S::Stopping, Event::StopAcked, true), ["charging.ended", "order.stopped"]);
    }
}
