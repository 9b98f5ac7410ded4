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
    conn::{all, insert, one, run, scalar},
    event::json,
    limits::signed,
    row::{active, command, command_columns, server_id},
};
use crate::{
    model::{Command, CommandBody, CommandState, DeviceId, EventType, Order, OrderNo, Priority, ServerId},
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
        let id = device_id.to_string();
        run(self.conn, "UPDATE devices SET msg_counter = msg_counter + 1 WHERE device_id = $1", [&id])?;
        one(self.conn, "SELECT msg_counter, session_epoch, owner FROM devices WHERE device_id = $1", [&id], |row| {
            Ok(Addressed { msg_id: row.get::<i64>(0)? as u32, session_epoch: row.get(1)?, owner: server_id(row, 2)? })
        })
    }

    /// Inserts a command: claimed (and returned) when `epoch` is live, else queued.
    pub(super) fn insert_command(&mut self, new: NewCommand, to: Addressed) -> Result<Option<Command>, StoreError> {
        Ok(self.insert_command_row(new, to)?.1)
    }

    /// As [`Tx::insert_command`], with the row's id.
    pub(super) fn insert_command_row(
        &mut self,
        new: NewCommand,
        to: Addressed,
    ) -> Result<(i64, Option<Command>), StoreError> {
        let epoch = new.epoch.filter(|epoch| *epoch == to.session_epoch);
        let state = if epoch.is_some() { CommandState::Claimed } else { CommandState::Queued };
        let msg_id = to.msg_id;
        let id = insert(
            self.conn,
            "INSERT INTO outbound_queue \
             (device_id, order_no, kind, body, priority, state, epoch, msg_id, not_before, not_after, created_at, \
             updated_at, attempts_max, request_id) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $9, $9, $11, $12)",
            "id",
            (
                new.device_id.to_string(),
                new.order_no.as_ref().map(OrderNo::as_str),
                new.body.as_str(),
                json(&new.body)?,
                new.priority.code(),
                state.as_str(),
                epoch,
                msg_id,
                new.at,
                new.not_after,
                new.attempts_max,
                &new.request_id,
            ),
        )?;
        let Some(epoch) = epoch else {
            let NewCommand { device_id, priority, at, .. } = new;
            self.queued.push(Queued { id, device_id, priority, at, owner: to.owner });
            return Ok((id, None));
        };
        let command = Command {
            id,
            device_id: new.device_id,
            order_no: new.order_no,
            body: new.body,
            priority: new.priority,
            msg_id,
            epoch,
            not_after: new.not_after,
            maybe_written: false,
            attempts_max: new.attempts_max,
        };
        Ok((id, Some(command)))
    }

    /// Queues a stop for an order, unless one is under way or it would stop somebody else.
    pub(super) fn queue_stop(
        &mut self,
        order: &Order,
        priority: Priority,
        at: i64,
        epoch: Option<i64>,
    ) -> Result<Option<Command>, StoreError> {
        // A BKV stop names only the hole: it would end the charge of whoever is there now.
        if matches!(order.device_id, DeviceId::Gateway(_)) && order.status.is_final() && self.port_taken(order)? {
            return Ok(None);
        }
        let unfinished: Option<(i64, bool)> = one(
            self.conn,
            "SELECT id, state = 'written' FROM outbound_queue WHERE order_no = $1 AND kind = 'stop' \
             AND state IN ('queued', 'claimed', 'written') AND not_after > $2 ORDER BY id DESC LIMIT 1",
            (order.order_no.as_str(), at),
            |row| Ok((row.get(0)?, row.get(1)?)),
        )?;
        match unfinished {
            Some((_, true)) => Ok(None),
            Some((id, false)) => match epoch {
                Some(epoch) => self.claim_row(id, epoch, at),
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
                    request_id: None,
                };
                self.insert_command(new, counters)
            }
        }
    }

    /// Whether another order is active on the order's port.
    fn port_taken(&self, order: &Order) -> Result<bool, StoreError> {
        let other: Option<i64> = scalar(
            self.conn,
            concat!(
                "SELECT 1 FROM orders WHERE device_id = $1 AND port_no = $2 AND order_no <> $3 AND status IN ",
                active!()
            ),
            (order.device_id.to_string(), order.port_no, order.order_no.as_str()),
        )?;
        Ok(other.is_some())
    }

    /// Claims one row that is queued or claimed for an older epoch.
    fn claim_row(&self, id: i64, epoch: i64, at: i64) -> Result<Option<Command>, StoreError> {
        one(
            self.conn,
            concat!(
                "UPDATE outbound_queue SET maybe_written = maybe_written OR state = 'claimed', state = 'claimed', \
                 epoch = $2, updated_at = $3 \
                 WHERE id = $1 AND (state = 'queued' OR (state = 'claimed' AND epoch < $2)) \
                 AND $2 = (SELECT session_epoch FROM devices d WHERE d.device_id = outbound_queue.device_id) RETURNING ",
                command_columns!()
            ),
            (id, epoch, at),
            command,
        )
    }

    /// Claims what waits for a device and is still wanted: a start while its order is pending and young; a stop while its order
    /// is being ended, or is final without a settlement and nobody else holds a BKV/GN port.
    pub(super) fn claim(&self, device_id: DeviceId, epoch: i64, at: i64) -> Result<Vec<Command>, StoreError> {
        let waiting: Option<i64> = scalar(
            self.conn,
            "SELECT 1 FROM outbound_queue WHERE device_id = $1 AND (state IN ('queued', 'claimed') \
             OR (state = 'written' AND attempts_max > 1 AND epoch < $2)) LIMIT 1",
            (device_id.to_string(), epoch),
        )?;
        if waiting.is_none() {
            return Ok(Vec::new());
        }
        let named_by_hole = matches!(device_id, DeviceId::Gateway(_));
        all(
            self.conn,
            concat!(
                "UPDATE outbound_queue AS q SET maybe_written = maybe_written OR state = 'claimed', state = 'claimed', \
                 epoch = $2, updated_at = $3 \
                 WHERE q.device_id = $1 AND (q.state = 'queued' OR (q.state = 'claimed' AND q.epoch < $2) \
                 OR (q.state = 'written' AND q.attempts_max > 1 AND q.epoch < $2)) AND q.not_before <= $3 AND q.not_after > $3 \
                 AND (q.order_no IS NULL OR EXISTS (SELECT 1 FROM orders o WHERE o.order_no = q.order_no AND CASE q.kind \
                 WHEN 'start' THEN o.status = 0 AND o.created_at + $4 > $3 \
                 WHEN 'stop' THEN o.settled_at IS NULL AND (o.status IN (8, 9) OR (o.status BETWEEN 3 AND 7 \
                 AND NOT o.stop_acked AND NOT ($5 AND EXISTS (SELECT 1 FROM orders other \
                 WHERE other.device_id = o.device_id AND other.port_no = o.port_no AND other.status IN ",
                active!(),
                ")))) ELSE TRUE END)) RETURNING ",
                command_columns!()
            ),
            // A start that is not claimed in time is not claimed at all: the owner times the order out.
            (device_id.to_string(), epoch, at, signed(self.limits.orders.start_total), named_by_hole),
            command,
        )
    }

    /// As [`Tx::claim`], for a shard that claims under an epoch it may have lost.
    pub(super) fn claim_live(&self, device_id: DeviceId, epoch: i64, at: i64) -> Result<Vec<Command>, StoreError> {
        let live: Option<i64> =
            scalar(self.conn, "SELECT session_epoch FROM devices WHERE device_id = $1", [device_id.to_string()])?;
        if live != Some(epoch) {
            return Ok(Vec::new());
        }
        let mut commands = self.claim(device_id, epoch, at)?;
        commands.sort_by_key(|command| (command.priority, command.id));
        Ok(commands)
    }

    /// Whether the start command is beyond recall: it was claimed, so it may have been written.
    pub(super) fn start_claimed(&self, order_no: OrderNo) -> Result<bool, StoreError> {
        let claimed: Option<bool> = scalar(
            self.conn,
            "SELECT state NOT IN ('queued', 'withdrawn') AND epoch IS NOT NULL FROM outbound_queue \
             WHERE order_no = $1 AND kind = 'start' ORDER BY id DESC LIMIT 1",
            [order_no.as_str()],
        )?;
        Ok(claimed.unwrap_or(false))
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
        let rows = all(
            self.conn,
            "SELECT id, epoch IS NOT NULL FROM outbound_queue WHERE order_no = $1 AND (kind = $2 OR $2 IS NULL) \
             AND state IN ('queued', 'claimed')",
            (order_no.as_str(), kind),
            |row| Ok((row.get::<i64>(0)?, row.get::<bool>(1)?)),
        )?;
        for (id, _) in &rows {
            run(
                self.conn,
                "UPDATE outbound_queue SET state = $2, reason = $3, updated_at = $4 WHERE id = $1",
                (id, state.as_str(), reason, at),
            )?;
        }
        Ok(rows.into_iter().filter_map(|(id, claimed)| claimed.then_some(id)).collect())
    }

    /// Stops again what goes on charging after its order's end: at each bind, with growing distance, a few times. A stop that
    /// is under way already is left alone.
    pub(super) fn stop_again(&mut self, order: &Order, epoch: i64, at: i64) -> Result<Option<Command>, StoreError> {
        let unwanted = order.status.is_final() && order.device_end_pending && !order.stop_acked;
        if !unwanted || order.settled_at.is_some() || super::order::is_lost(order) {
            return Ok(None);
        }
        let (stops, last): (u32, i64) = one(
            self.conn,
            "SELECT count(*), coalesce(max(created_at), 0) FROM outbound_queue WHERE order_no = $1 AND kind = 'stop'",
            [order.order_no.as_str()],
            |row| Ok((row.get(0)?, row.get(1)?)),
        )?
        .unwrap_or_default();
        let stops_max = self.limits.orders.end_stops_max;
        if stops >= stops_max || last + (END_PENDING_BACKOFF_MS << stops.min(END_PENDING_DOUBLINGS_MAX)) > at {
            return Ok(None);
        }
        let command = self.queue_stop(order, Priority::Emergency, at, Some(epoch))?;
        if command.is_some() && stops + 1 == stops_max {
            self.order_alarm(order, "device_end_pending", at)?;
        }
        Ok(command)
    }

    /// Moves a row on, never back.
    ///
    /// What follows from it may be a command for the same device, claimed where it is connected.
    pub(super) fn update_command(&mut self, update: &CommandUpdate) -> Result<Outcome, StoreError> {
        // A start that was withdrawn in the instant it was written has been written all the same: the order keeps the time.
        if let (CommandState::Written, Some(order_no)) = (update.state, update.order_no) {
            run(
                self.conn,
                "UPDATE orders SET start_written_at = $2, updated_at = greatest(updated_at, $2) \
                 WHERE order_no = $1 AND start_written_at IS NULL \
                 AND EXISTS (SELECT 1 FROM outbound_queue WHERE id = $3 AND order_no = $1 AND kind = 'start' \
                 AND coalesce(epoch, 0) <= $4)",
                (order_no.as_str(), update.at, update.id, update.epoch),
            )?;
        }
        // Rows are queued and claimed by the store alone.
        if matches!(update.state, CommandState::Queued | CommandState::Claimed) {
            return Ok(Outcome::Done);
        }
        let changed = run(
            self.conn,
            "UPDATE outbound_queue SET state = $2, attempts = greatest(attempts, $3), reason = coalesce($4, reason), \
             result = coalesce($6, result), written_at = CASE WHEN $2 IN ('written', 'acked') THEN coalesce(written_at, $5) ELSE written_at END, updated_at = $5 \
             WHERE id = $1 AND state IN ('queued', 'claimed', 'written') AND coalesce(epoch, 0) <= $7",
            (update.id, update.state.as_str(), update.attempts, update.reason, update.at, &update.result, update.epoch),
        )?;
        if changed > 0 && update.state == CommandState::Dead {
            self.command_dead(update.id, update.at)?;
        }
        let ended = matches!(
            update.state,
            CommandState::Acked | CommandState::Refused | CommandState::Dead | CommandState::Expired
        );
        if changed == 0 || !ended {
            return Ok(Outcome::Done);
        }
        self.command_answered(update)
    }

    /// Tells that a command was given up.
    pub(super) fn command_dead(&mut self, id: i64, at: i64) -> Result<(), StoreError> {
        let dead = one(
            self.conn,
            concat!("SELECT ", command_columns!(), ", attempts, reason FROM outbound_queue WHERE id = $1"),
            [id],
            |row| Ok((command(row)?, row.get::<u8>(10)?, row.get::<Option<String>>(11)?)),
        )?;
        let Some((command, attempts, reason)) = dead else { return Ok(()) };
        let data = json!({
            "device_id": command.device_id,
            "order_no": command.order_no,
            "port_no": command.body.port_no(),
            "command": command.body.as_str(),
            "attempts": attempts,
            "reason": reason,
        });
        self.device_event(command.device_id, EventType::CommandDead, &data, at)
    }
}
