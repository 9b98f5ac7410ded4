//! Orders: creation, and the writes of a step that [`transition`] decided.

use super::{apply::Tx, command::NewCommand, rows::RequestRow};
use crate::{
    gateway::order::{Event, Facts, Step, Verdict, events, transition},
    model::{CardStart, Command, CommandBody, CommandState, DeviceId, EventType, Order, OrderStatus, Priority},
    store::{Created, NewOrder, OrderJob, OrderKey, OrderOutcome, OrderWish, StoreError, payload::Alarm},
};

/// Whether a paid charge was lost from sight and may still run to its end.
pub(super) fn is_lost(order: &Order) -> bool {
    order.status == OrderStatus::Failed
        && matches!(order.failure_reason.as_deref(), Some("device_offline" | "port_state_mismatch"))
}

/// Totals of a settlement.
pub(super) struct Totals<'a> {
    pub(super) duration_seconds: u32,
    pub(super) energy_wh: u32,
    pub(super) amount_cent: Option<u32>,
    pub(super) reason: &'static str,
    pub(super) reason_raw: Option<u8>,
    pub(super) matched: &'a str,
}

/// What causes a step.
pub(super) struct Cause<'a> {
    pub(super) event: Event,
    pub(super) at: i64,
    pub(super) epoch: Option<i64>,
    /// Replaces the step's own reason.
    pub(super) reason: Option<&'a str>,
    /// Stored by a step that stores totals.
    pub(super) totals: Option<Totals<'a>>,
    /// The request that asked for it.
    pub(super) request_id: Option<&'a str>,
}

impl Cause<'_> {
    /// An event without anything else to say of it.
    pub(super) const fn of(event: Event, at: i64) -> Self {
        Self { event, at, epoch: None, reason: None, totals: None, request_id: None }
    }
}

/// Where a new order is to run.
pub(super) struct Place {
    pub(super) device_id: DeviceId,
    pub(super) port_no: u16,
    pub(super) at: i64,
}

/// What a step did beside the order.
#[derive(Default)]
pub(super) struct Done {
    pub(super) commands: Vec<Command>,
    pub(super) withdrawn: Vec<i64>,
}

impl Tx<'_> {
    pub(super) fn find_by_key(&self, key: OrderKey) -> Result<Option<Order>, StoreError> {
        match key {
            OrderKey::No(order_no) => self.find_order(order_no),
            OrderKey::ActiveOn(device_id, port_no) => self.active_on(device_id, port_no),
        }
    }

    pub(super) fn create_order(&mut self, new: &NewOrder) -> Result<Created, StoreError> {
        if self.now > new.deadline {
            return Ok(Created::TooLate);
        }
        let (card, card_start) = match &new.card_no {
            None => (None, None),
            Some(card_no) => match self.requested(card_no, new)? {
                Ok((card, start)) => (Some(card), Some(start)),
                // The same order once more: its own hold may be what is missing now.
                Err(_) if self.find_order(new.order_no)?.is_some() => return self.not_created(new),
                Err(refused) => return Ok(Created::CardRefused(refused)),
            },
        };
        let place = Place { device_id: new.device_id, port_no: new.port_no, at: new.at };
        let order = Order {
            spec: new.spec.clone(),
            request_id: Some(new.request_id.clone()),
            card: card.map(Box::new),
            ..Order::pending(new.order_no, place.device_id, place.port_no, place.at)
        };
        match self.place_order(order, card_start, new.epoch)? {
            Some((order, command)) => {
                self.insert_request(&RequestRow {
                    order_no: order.order_no,
                    wish: OrderWish::Create,
                    request_id: &new.request_id,
                    requester: &new.requester,
                    idempotency: new.idempotency.as_ref(),
                    at: new.at,
                })?;
                Ok(Created::Order { order, command })
            }
            None => self.not_created(new),
        }
    }

    /// Inserts a new order with its first event, its hold and its start command; `None`: somebody holds the port, or the
    /// number exists.
    pub(super) fn place_order(
        &mut self,
        order: Order,
        card: Option<CardStart>,
        epoch: Option<i64>,
    ) -> Result<Option<(Order, Option<Command>)>, StoreError> {
        let at = order.created_at;
        // The single writer, or the lock of the device, makes the statements one.
        if self.end_pending(order.device_id, order.port_no)? || !self.insert_order(&order)? {
            return Ok(None);
        }
        self.hold(&order, at)?;
        self.order_events(&order, None, &[EventType::OrderCreated], None, at)?;
        let counters = self
            .next_msg_id(order.device_id)?
            .ok_or_else(|| StoreError::Statement(format!("device {} has no row", order.device_id)))?;
        let start = NewCommand {
            device_id: order.device_id,
            order_no: Some(order.order_no),
            body: CommandBody::Start { port_no: order.port_no, spec: order.spec.clone(), card },
            priority: Priority::Normal,
            attempts_max: 1,
            at,
            not_after: at + self.limits.valid_for_order,
            epoch,
            request_id: order.request_id.clone(),
        };
        let command = self.insert_command(start, counters)?;
        Ok(Some((order, command)))
    }

    /// Whether the port still shows the charge of an order that is over.
    pub(super) fn end_pending(&self, device_id: DeviceId, port_no: u16) -> Result<bool, StoreError> {
        Ok(self.pending_end_on(device_id, port_no)?.is_some())
    }

    /// Says why nothing was inserted: somebody holds the port, or this very order was created before.
    fn not_created(&self, new: &NewOrder) -> Result<Created, StoreError> {
        if let Some(order) = self.find_order(new.order_no)? {
            let same = order.device_id == new.device_id && order.port_no == new.port_no && order.spec == new.spec;
            return if same {
                Ok(Created::Order { order, command: None })
            } else {
                Err(StoreError::Statement(format!("order number {} is taken", new.order_no)))
            };
        }
        let holder = match self.active_on(new.device_id, new.port_no)? {
            Some(order) => Some(order.order_no),
            None => self.pending_end_on(new.device_id, new.port_no)?,
        };
        holder
            .map(|holder| Created::PortBusy { holder })
            .ok_or_else(|| StoreError::Statement(format!("order {} was not inserted", new.order_no)))
    }

    /// Applies an event to an order.
    pub(super) fn order_job(&mut self, job: &OrderJob) -> Result<OrderOutcome, StoreError> {
        let order = self.find_by_key(job.order)?;
        let Some(mut order) = order.filter(|order| job.device_id.is_none_or(|id| id == order.device_id)) else {
            return Ok(OrderOutcome {
                order: None,
                from: OrderStatus::Pending,
                verdict: Verdict::Refused,
                commands: Vec::new(),
                withdrawn: Vec::new(),
            });
        };
        // 0 means "no order" on the wire.
        let business_no = job.business_no.filter(|number| *number != 0 && order.business_no.is_none());
        let cause = Cause {
            request_id: job.request_id.as_deref(),
            epoch: job.epoch,
            reason: job.reason.as_deref(),
            ..Cause::of(job.event, job.at)
        };
        let outcome = self.handle(&mut order, business_no, &cause)?;
        let wish = match job.event {
            Event::Stop => Some(OrderWish::Stop),
            Event::Cancel => Some(OrderWish::Cancel),
            _ => None,
        };
        // One that found its wish under way was accepted as well; one that was refused did nothing.
        if let (Some(wish), Some(request_id), Verdict::Step(_) | Verdict::Unchanged) =
            (wish, &job.request_id, outcome.verdict)
        {
            self.insert_request(&RequestRow {
                order_no: order.order_no,
                wish,
                request_id,
                requester: &job.requester,
                idempotency: job.idempotency.as_ref(),
                at: job.at,
            })?;
        }
        Ok(outcome)
    }

    /// Lets [`transition`] decide, and writes what it said.
    pub(super) fn handle(
        &mut self,
        order: &mut Order,
        business_no: Option<u16>,
        cause: &Cause<'_>,
    ) -> Result<OrderOutcome, StoreError> {
        let from = order.status;
        let facts = self.facts(order)?;
        let verdict = transition(&facts, cause.event);
        let known = business_no.is_some() && order.settled_at.is_none();
        if known {
            order.business_no = business_no;
        }
        let done = match verdict {
            Verdict::Step(step) => self.write_step(order, &step, cause)?,
            Verdict::Unchanged | Verdict::Refused => {
                if known {
                    order.updated_at = cause.at;
                    self.update_order(order)?;
                }
                Done::default()
            }
        };
        Ok(OrderOutcome {
            order: Some(order.clone()),
            from,
            verdict,
            commands: done.commands,
            withdrawn: done.withdrawn,
        })
    }

    fn facts(&self, order: &Order) -> Result<Facts, StoreError> {
        Ok(Facts {
            status: order.status,
            // Asked only where it decides something.
            start_claimed: order.status == OrderStatus::Pending && self.start_claimed(order.order_no)?,
            charged: order.start_time.is_some(),
            stop_acked: order.stop_acked,
            settled: order.settled_at.is_some(),
            end_pending: order.device_end_pending,
            lost: is_lost(order),
        })
    }

    fn write_step(&mut self, order: &mut Order, step: &Step, cause: &Cause<'_>) -> Result<Done, StoreError> {
        let at = cause.at;
        let (from, charged) = (order.status, order.start_time.is_some());
        let mut late = None;
        order.stop_acked = step.stop_acked;
        order.device_end_pending = step.end_pending;
        order.updated_at = at;
        if let Some(totals) = cause.totals.as_ref().filter(|_| step.store_totals) {
            late = Some(from.is_final() && order.end_time.is_some_and(|end| at - end > self.limits.late_after));
            order.duration_seconds = Some(totals.duration_seconds);
            order.energy_wh = Some(totals.energy_wh);
            order.amount_cent = totals.amount_cent;
            order.end_reason = Some(totals.reason.to_owned());
            order.end_reason_raw = totals.reason_raw;
            order.settlement_match = Some(totals.matched.to_owned());
            order.settled_at = Some(at);
            order.start_time.get_or_insert_with(|| at - i64::from(totals.duration_seconds) * 1000);
        }
        if from != step.to {
            order.status = step.to;
            order.status_at = at;
            if step.to == OrderStatus::Charging {
                order.start_time.get_or_insert(at);
            }
            if step.to.is_final() {
                order.end_time = Some(at);
            }
            let own = step.reason.map(|reason| cause.reason.unwrap_or(reason));
            let fault = order.end_reason.as_deref().filter(|_| step.to == OrderStatus::Failed);
            if let Some(reason) = own.or(fault).map(str::to_owned) {
                order.failure_reason = Some(reason);
            }
        }
        let events: Vec<EventType> = events(from, step, charged).collect();
        order.sequence_no += events.len() as u32;
        self.update_order(order)?;
        if order.card.is_some() {
            let settled = cause.totals.as_ref().filter(|_| step.store_totals);
            self.card_step(order, settled, from.is_active() && step.to.is_final(), cause)?;
        }
        let mut done = Done::default();
        if step.store_totals {
            done.withdrawn = self.withdraw(order.order_no, None, CommandState::Withdrawn, "settled", at)?;
        } else if step.withdraw_start {
            let reason = step.reason.unwrap_or("withdrawn");
            done.withdrawn = self.withdraw(order.order_no, Some("start"), CommandState::Withdrawn, reason, at)?;
        } else if from.is_active() && step.to.is_final() {
            done.withdrawn =
                self.withdraw(order.order_no, Some("start"), CommandState::Expired, order.status.as_str(), at)?;
        }
        if step.send_stop {
            let asked = matches!(order.status, OrderStatus::Cancelling | OrderStatus::Stopping);
            let priority = if asked { Priority::High } else { Priority::Emergency };
            done.commands.extend(self.queue_stop(order, priority, at, cause.epoch, cause.request_id)?);
        }
        if let Some(reason) = step.alarm {
            self.order_alarm(order, reason, at)?;
        }
        self.order_events(order, Some(from), &events, late, at)?;
        Ok(done)
    }

    /// Raises an alarm about an order.
    pub(super) fn order_alarm(&mut self, order: &Order, reason: &'static str, at: i64) -> Result<(), StoreError> {
        let alarm = Alarm {
            device_id: order.device_id,
            port_no: order.port_no,
            order_no: Some(order.order_no),
            reason,
            detail: None,
        };
        self.alarm(&alarm, at)
    }
}
