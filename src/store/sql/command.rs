//! Rows of `outbound_queue`, the only truth about commands.
//!
//! ```text
//! queued ──▶ claimed(epoch) ──▶ written ──▶ acked | refused | dead
//!    └────────────┴──▶ expired | withdrawn
//! ```
//!
//! A claim is valid for one epoch of its device. A row claimed for an older epoch is claimed again with the same message id and
//! marked `maybe_written`.

use serde_json::json;

use super::{
    apply::Tx,
    limits::signed,
    rows::{CommandRow, Counters},
};
use crate::{
    model::{Command, CommandBody, CommandState, DeviceId, EventType, Order, OrderNo, OrderStatus, Priority, ServerId},
    store::{CommandUpdate, Outcome, Queued, StoreError},
};

const END_PENDING_BACKOFF_MS: i64 = 10_000;
/// Doublings of it at most: 320 s.
const END_PENDING_DOUBLINGS_MAX: u32 = 5;

pub(super) struct NewCommand {
    pub(super) device_id: DeviceId,
    pub(super) order_no: Option<OrderNo>,
    pub(super) body: CommandBody,
    pub(super) priority: Priority,
    pub(super) attempts_max: u8,
    pub(super) at: i64,
    pub(super) not_after: i64,
    /// Claimed at once if this is the device's epoch.
    pub(super) epoch: Option<i64>,
    pub(super) request_id: Option<String>,
}

/// What a command's row says of its device.
pub(super) struct Addressed {
    pub(super) msg_id: u32,
    /// The device's epoch now.
    pub(super) session_epoch: i64,
    /// The instance that has the device.
    pub(super) owner: Option<ServerId>,
}

impl Tx<'_> {
    /// Takes the device's next message id, with what a command must know of its device; `None`: no such device.
    pub(super) fn next_msg_id(&self, device_id: DeviceId) -> Result<Option<Addressed>, StoreError> {
        let Some(mut counters) = self.counters(device_id)? else { return Ok(None) };
        counters.msg_counter += 1;
        self.save_counters(device_id, &counters)?;
        let Counters { session_epoch, msg_counter, owner, .. } = counters;
        Ok(Some(Addressed { msg_id: msg_counter as u32, session_epoch, owner }))
    }

    /// Inserts a command: claimed (and returned) when `epoch` is live, else queued.
    pub(super) fn insert_command(&mut self, new: NewCommand, to: Addressed) -> Result<Option<Command>, StoreError> {
        Ok(self.insert_command_row(new, to)?.claimed())
    }

    /// As [`Tx::insert_command`], with the whole row.
    pub(super) fn insert_command_row(&mut self, new: NewCommand, to: Addressed) -> Result<CommandRow, StoreError> {
        let epoch = new.epoch.filter(|epoch| *epoch == to.session_epoch);
        let mut row = CommandRow {
            id: 0,
            device_id: new.device_id,
            order_no: new.order_no,
            body: new.body,
            priority: new.priority,
            state: if epoch.is_some() { CommandState::Claimed } else { CommandState::Queued },
            epoch,
            msg_id: to.msg_id,
            maybe_written: false,
            attempts: 0,
            attempts_max: new.attempts_max,
            reason: None,
            result: None,
            request_id: new.request_id,
            not_before: new.at,
            not_after: new.not_after,
            created_at: new.at,
            written_at: None,
            updated_at: new.at,
        };
        self.add_command(&mut row)?;
        if epoch.is_none() {
            let CommandRow { id, device_id, priority, created_at: at, .. } = row;
            self.queued.push(Queued { id, device_id, priority, at, owner: to.owner });
        }
        Ok(row)
    }

    /// Queues a stop for an order, unless one is under way or it would stop somebody else. `request_id`: who asked for it.
    pub(super) fn queue_stop(
        &mut self,
        order: &Order,
        priority: Priority,
        at: i64,
        epoch: Option<i64>,
        request_id: Option<&str>,
    ) -> Result<Option<Command>, StoreError> {
        // A BKV stop names only the hole: it would end the charge of whoever is there now.
        if matches!(order.device_id, DeviceId::Gateway(_)) && order.status.is_final() && self.port_taken(order)? {
            return Ok(None);
        }
        let rows = self.commands_of(order.order_no)?;
        let is_stop = |row: &&CommandRow| matches!(row.body, CommandBody::Stop { .. });
        let unfinished = rows.iter().rev().filter(is_stop).find(|row| row.is_unfinished() && row.not_after > at);
        match unfinished {
            Some(row) if row.state == CommandState::Written => Ok(None),
            Some(row) => match epoch {
                Some(epoch) => self.claim_row(row.clone(), epoch, at),
                None => Ok(None),
            },
            None => {
                let Some(counters) = self.next_msg_id(order.device_id)? else { return Ok(None) };
                let new = NewCommand {
                    device_id: order.device_id,
                    order_no: Some(order.order_no),
                    body: CommandBody::Stop { port_no: order.port_no },
                    priority,
                    attempts_max: 1,
                    at,
                    not_after: at + self.limits.valid_for_order,
                    epoch,
                    request_id: request_id.map(str::to_owned),
                };
                self.insert_command(new, counters)
            }
        }
    }

    /// Whether another order is active on the order's port.
    fn port_taken(&self, order: &Order) -> Result<bool, StoreError> {
        let other = self.active_on(order.device_id, order.port_no)?;
        Ok(other.is_some_and(|other| other.order_no != order.order_no))
    }

    /// Claims a row that is queued or claimed for an older epoch, if this one is the device's.
    fn claim_row(&self, row: CommandRow, epoch: i64, at: i64) -> Result<Option<Command>, StoreError> {
        let claimable = row.state == CommandState::Queued
            || (row.state == CommandState::Claimed && row.epoch.is_some_and(|claimed| claimed < epoch));
        let live = self.counters(row.device_id)?.is_some_and(|counters| counters.session_epoch == epoch);
        if claimable && live { self.claimed(row, epoch, at).map(Some) } else { Ok(None) }
    }

    fn claimed(&self, mut row: CommandRow, epoch: i64, at: i64) -> Result<Command, StoreError> {
        row.maybe_written |= row.state == CommandState::Claimed;
        row.state = CommandState::Claimed;
        row.epoch = Some(epoch);
        row.updated_at = at;
        self.save_command(&row)?;
        row.claimed().ok_or_else(|| StoreError::Statement(format!("command {} was not claimed", row.id)))
    }

    /// Claims what waits for a device and is still wanted.
    pub(super) fn claim(&self, device_id: DeviceId, epoch: i64, at: i64) -> Result<Vec<Command>, StoreError> {
        let mut commands = Vec::new();
        for row in self.unfinished_of(device_id)? {
            let older = row.epoch.is_some_and(|claimed| claimed < epoch);
            let waits = match row.state {
                CommandState::Queued => true,
                CommandState::Claimed => older,
                CommandState::Written => older && row.attempts_max > 1,
                CommandState::Acked
                | CommandState::Refused
                | CommandState::Expired
                | CommandState::Withdrawn
                | CommandState::Dead => false,
            };
            if waits && row.not_before <= at && row.not_after > at && self.is_wanted(&row, at)? {
                commands.push(self.claimed(row, epoch, at)?);
            }
        }
        Ok(commands)
    }

    /// Whether a command still serves its order: a start while the order is pending and young (one that is not claimed in time
    /// is not claimed at all: the owner times the order out); a stop while the order is being ended, or is final without a
    /// settlement and nobody else holds a BKV/GN port.
    fn is_wanted(&self, row: &CommandRow, at: i64) -> Result<bool, StoreError> {
        let Some(order_no) = row.order_no else { return Ok(true) };
        let Some(order) = self.find_order(order_no)? else { return Ok(false) };
        Ok(match row.body {
            CommandBody::Start { .. } => {
                order.status == OrderStatus::Pending && order.created_at + signed(self.limits.orders.start_total) > at
            }
            CommandBody::Stop { .. } if order.settled_at.is_some() => false,
            CommandBody::Stop { .. } if order.status.is_final() => {
                let named_by_hole = matches!(order.device_id, DeviceId::Gateway(_));
                !(order.stop_acked || named_by_hole && self.port_taken(&order)?)
            }
            CommandBody::Stop { .. } => matches!(order.status, OrderStatus::Cancelling | OrderStatus::Stopping),
            _ => true,
        })
    }

    /// As [`Tx::claim`], for a shard that claims under an epoch it may have lost.
    pub(super) fn claim_live(&self, device_id: DeviceId, epoch: i64, at: i64) -> Result<Vec<Command>, StoreError> {
        let live = self.counters(device_id)?.map(|counters| counters.session_epoch);
        if live != Some(epoch) {
            return Ok(Vec::new());
        }
        let mut commands = self.claim(device_id, epoch, at)?;
        commands.sort_by_key(|command| (command.priority, command.id));
        Ok(commands)
    }

    /// Whether the start command is beyond recall: it was claimed, so it may have been written.
    pub(super) fn start_claimed(&self, order_no: OrderNo) -> Result<bool, StoreError> {
        let rows = self.commands_of(order_no)?;
        let start = rows.iter().rev().find(|row| matches!(row.body, CommandBody::Start { .. }));
        Ok(start.is_some_and(|row| {
            !matches!(row.state, CommandState::Queued | CommandState::Withdrawn) && row.epoch.is_some()
        }))
    }

    /// Takes unwritten commands of an order back and returns the claimed ones, which their shard must drop. `kind` `None`: all.
    pub(super) fn withdraw(
        &self,
        order_no: OrderNo,
        kind: Option<&str>,
        state: CommandState,
        reason: &str,
        at: i64,
    ) -> Result<Vec<i64>, StoreError> {
        let mut claimed = Vec::new();
        for mut row in self.commands_of(order_no)? {
            if !row.is_unwritten() || kind.is_some_and(|kind| kind != row.body.as_str()) {
                continue;
            }
            row.state = state;
            row.reason = Some(reason.to_owned());
            row.updated_at = at;
            self.save_command(&row)?;
            claimed.extend(row.epoch.map(|_| row.id));
        }
        Ok(claimed)
    }

    /// Stops again what goes on charging after its order's end: at each bind, with growing distance, a few times. A stop that
    /// is under way already is left alone.
    pub(super) fn stop_again(&mut self, order: &Order, epoch: i64, at: i64) -> Result<Option<Command>, StoreError> {
        let unwanted = order.status.is_final() && order.device_end_pending && !order.stop_acked;
        if !unwanted || order.settled_at.is_some() || super::order::is_lost(order) {
            return Ok(None);
        }
        let rows = self.commands_of(order.order_no)?;
        let mut stops = 0;
        let mut last = 0;
        for row in rows.iter().filter(|row| matches!(row.body, CommandBody::Stop { .. })) {
            stops += 1;
            last = last.max(row.created_at);
        }
        let stops_max = self.limits.orders.end_stops_max;
        if stops >= stops_max || last + (END_PENDING_BACKOFF_MS << stops.min(END_PENDING_DOUBLINGS_MAX)) > at {
            return Ok(None);
        }
        let command = self.queue_stop(order, Priority::Emergency, at, Some(epoch), None)?;
        if command.is_some() && stops + 1 == stops_max {
            self.order_alarm(order, "device_end_pending", at)?;
        }
        Ok(command)
    }

    /// Moves a row on, never back.
    ///
    /// What follows from it may be a command for the same device, claimed where it is connected.
    pub(super) fn update_command(&mut self, update: &CommandUpdate) -> Result<Outcome, StoreError> {
        let Some(mut row) = self.find_command(update.id)? else { return Ok(Outcome::Done) };
        if row.epoch.unwrap_or(0) > update.epoch {
            return Ok(Outcome::Done);
        }
        let is_start = matches!(row.body, CommandBody::Start { .. }) && row.order_no == update.order_no;
        // A start that was withdrawn in the instant it was written has been written all the same: the order keeps the time.
        if let (CommandState::Written, Some(order_no), true) = (update.state, update.order_no, is_start) {
            self.start_written(order_no, update.at)?;
        }
        // Rows are queued and claimed by the store alone.
        if matches!(update.state, CommandState::Queued | CommandState::Claimed) || !row.is_unfinished() {
            return Ok(Outcome::Done);
        }
        row.state = update.state;
        row.attempts = row.attempts.max(update.attempts);
        row.reason = update.reason.map(str::to_owned).or(row.reason);
        row.result = update.result.clone().or(row.result);
        if matches!(update.state, CommandState::Written | CommandState::Acked) {
            row.written_at = row.written_at.or(Some(update.at));
        }
        row.updated_at = update.at;
        self.save_command(&row)?;
        if update.state == CommandState::Dead {
            self.command_dead(&row, update.at)?;
        }
        let ended = matches!(
            update.state,
            CommandState::Acked | CommandState::Refused | CommandState::Dead | CommandState::Expired
        );
        if ended { self.command_answered(&row, update) } else { Ok(Outcome::Done) }
    }

    /// Tells that a command was given up.
    pub(super) fn command_dead(&mut self, command: &CommandRow, at: i64) -> Result<(), StoreError> {
        let data = json!({
            "device_id": command.device_id,
            "order_no": command.order_no,
            "port_no": command.body.port_no(),
            "command": command.body.as_str(),
            "attempts": command.attempts,
            "reason": command.reason,
        });
        self.device_event(command.device_id, EventType::CommandDead, &data, at)
    }
}
