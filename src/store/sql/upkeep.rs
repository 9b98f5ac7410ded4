//! What the store does for orders nobody owns, and for its own size: backstop and pruning.

use super::{
    apply::Tx,
    conn::{Conn, Row, all, one, run},
    limits::{Limits, signed},
    order::Cause,
    row::{device_id, order_no, server_id},
};
use crate::{
    gateway::order::{Event, Verdict},
    model::{DeviceId, OrderNo, ServerId},
    store::{Backstop, OrderOutcome, Prune, StoreError},
};

/// Orders and commands looked at per rule and call: the backstop must not hold up the durable jobs behind it.
const ROWS_MAX: u32 = 200;
/// A written command is answered, sent again or dead long before this.
const WRITTEN_MS: i64 = 600_000;

impl Tx<'_> {
    /// Confirmed orders have no rule of their own: their clock stands still while the device is away, which only an owner
    /// knows; the maximum duration ends them.
    pub(super) fn backstop(&mut self, backstop: &Backstop) -> Result<Vec<OrderOutcome>, StoreError> {
        let at = backstop.at;
        let Limits { orders, backstop_delay: behind, silent, .. } = self.limits;
        let due = |owner_after: u64| at - signed(owner_after) - behind;
        self.expire_commands(at)?;
        let mut outcomes = Vec::new();
        self.release_old_holds(at)?;
        if at >= backstop.offline_from {
            let ended = at.saturating_sub(backstop.offline_grace);
            let pending = self.since("o.status = 0", due(orders.start_total.max(orders.start_ack)), ended)?;
            self.happens(&pending, Event::StartTimedOut, at, &mut outcomes)?;
            let ending = self.since("o.status IN (8, 9)", due(orders.stop_total), ended)?;
            self.happens(&ending, Event::StopTimedOut, at, &mut outcomes)?;
            let longest = self.ours(
                "o.status IN (1, 2, 10) AND o.status_at <= $1 AND coalesce(o.start_time, o.created_at) + o.duration_max_ms <= $5",
                at - signed(orders.duration_least.min(orders.duration_open)),
                ended,
                due(0),
            )?;
            self.happens(&longest, Event::Stop, at, &mut outcomes)?;
        }
        if at >= backstop.interrupts_from {
            let ended = at.saturating_sub(backstop.interrupt_grace);
            let interrupted = self.since("o.status = 10", due(orders.interrupted), ended)?;
            self.happens(&interrupted, Event::ReturnTimedOut, at, &mut outcomes)?;
            let unseen = at - silent - behind;
            let silent = self.ours(
                "o.status = 2 AND o.status_at <= $1 AND coalesce(d.last_seen_at, 0) <= $5",
                unseen,
                ended,
                unseen,
            )?;
            self.happens(&silent, Event::Offline, at, &mut outcomes)?;
        }
        Ok(outcomes)
    }

    fn since(&self, status: &'static str, before: i64, ended: i64) -> Result<Vec<OrderNo>, StoreError> {
        self.ours(&format!("{status} AND o.status_at <= $1 AND o.status_at <= $5"), before, ended, before)
    }

    /// Orders that this instance looks after: those of its own devices, and of devices that nobody has, once the end of the
    /// instance that had them lies before `ended`. What another instance has, that one looks after.
    fn ours(&self, which: &str, before: i64, ended: i64, also: i64) -> Result<Vec<OrderNo>, StoreError> {
        let sql = format!(
            "SELECT o.order_no FROM orders o JOIN devices d ON d.device_id = o.device_id WHERE o.is_active = TRUE AND {which} \
             AND (d.owner = $3 OR d.owner IS NULL AND coalesce(d.owner_ended_at, 0) <= $4) \
             ORDER BY o.status_at LIMIT $2"
        );
        let instance = self.instance.map(ServerId::as_str);
        all(self.conn, &sql, (before, ROWS_MAX, instance, ended, also), |row| order_no(row, 0))
    }

    fn happens(
        &mut self,
        orders: &[OrderNo],
        event: Event,
        at: i64,
        outcomes: &mut Vec<OrderOutcome>,
    ) -> Result<(), StoreError> {
        for order_no in orders {
            // A savepoint each: one row that cannot be changed must not keep the others from their ends.
            let outcome = self.savepoint(|tx| {
                if !tx.lock_device_of(*order_no)? {
                    return Ok(None);
                }
                let Some(mut order) = tx.find_order(*order_no)? else { return Ok(None) };
                let cause = Cause::of(event, at);
                tx.handle(&mut order, None, &cause).map(Some)
            });
            match outcome {
                Ok(outcome) => {
                    outcomes.extend(outcome.filter(|outcome| matches!(outcome.verdict, Verdict::Step(_))));
                }
                Err(error @ StoreError::Unavailable(_)) => return Err(error),
                Err(error) => log::error!("order {order_no} cannot be ended: {error}"),
            }
        }
        Ok(())
    }

    /// Ends rows whose owner never told: unwritten ones behind their `not_after`, written ones after a long silence.
    fn expire_commands(&mut self, at: i64) -> Result<(), StoreError> {
        for (state, before) in [("queued", at), ("claimed", at - self.limits.backstop_delay)] {
            let late = all(
                self.conn,
                "SELECT q.id FROM outbound_queue q JOIN devices d ON d.device_id = q.device_id \
                 WHERE q.state = $1 AND q.is_open = TRUE AND q.not_after < $2 ORDER BY q.not_before LIMIT $3 FOR NO KEY UPDATE OF d SKIP LOCKED",
                (state, before, ROWS_MAX),
                |row| row.get::<i64>(0),
            )?;
            for id in late {
                run(
                    self.conn,
                    "UPDATE outbound_queue SET state = 'expired', reason = 'not_after', updated_at = $3 \
                     WHERE id = $1 AND state = $2",
                    (id, state, at),
                )?;
            }
        }
        let silent = all(
            self.conn,
            "SELECT q.id FROM outbound_queue q JOIN devices d ON d.device_id = q.device_id \
             WHERE q.state = 'written' AND q.is_open = TRUE AND q.not_after < $1 AND q.updated_at < $1 LIMIT $2 \
             FOR NO KEY UPDATE OF d SKIP LOCKED",
            (at - WRITTEN_MS, ROWS_MAX),
            |row| row.get::<i64>(0),
        )?;
        for id in silent {
            let dead = run(
                self.conn,
                "UPDATE outbound_queue SET state = 'dead', reason = 'no_answer', updated_at = $2 \
                 WHERE id = $1 AND state = 'written'",
                (id, at),
            )?;
            if dead > 0
                && let Some(row) = self.find_command(id)?
            {
                self.command_dead(&row, at)?;
            }
        }
        Ok(())
    }

    /// Takes the lock of a device, unless somebody has it: what is under way for the device need not be waited for, and the next
    /// call looks again. False: not taken, or there is no such device. Notes which instance has the device.
    pub(super) fn lock_device(&mut self, device_id: DeviceId) -> Result<bool, StoreError> {
        let found = one(
            self.conn,
            "SELECT d.device_id, d.owner FROM devices d WHERE d.device_id = $1 FOR NO KEY UPDATE OF d SKIP LOCKED",
            [device_id.to_string()],
            locked,
        )?;
        Ok(self.note_owner(found))
    }

    /// As [`Tx::lock_device`], for the device of an order.
    pub(super) fn lock_device_of(&mut self, order_no: OrderNo) -> Result<bool, StoreError> {
        let found = one(
            self.conn,
            "SELECT d.device_id, d.owner FROM devices d \
             WHERE d.device_id = (SELECT device_id FROM orders WHERE order_no = $1) FOR NO KEY UPDATE OF d SKIP LOCKED",
            [order_no.as_str()],
            locked,
        )?;
        Ok(self.note_owner(found))
    }

    fn note_owner(&mut self, locked: Option<(DeviceId, Option<ServerId>)>) -> bool {
        let Some((device_id, owner)) = locked else { return false };
        if let Some(owner) = owner.filter(|owner| Some(owner) != self.instance) {
            self.owners.insert(device_id, owner);
        }
        true
    }

    /// Deletes what is past its retention, and says whether there may be more. Orders and settlements stay: they are the money.
    /// Events go even if an endpoint has not had them yet; those are counted.
    pub(super) fn prune(&mut self, prune: &Prune) -> Result<bool, StoreError> {
        let rows_max = prune.rows_max;
        let events = all(self.conn, old_events(self.conn), (prune.events_before, rows_max), |row| row.get::<bool>(0))?;
        self.events_lost += events.iter().filter(|undelivered| **undelivered).count() as u64;
        if !events.is_empty() {
            run(self.conn, "DELETE FROM event_delivery WHERE pos < coalesce((SELECT first FROM log_bounds), 0)", ())?;
        }
        let commands = run(
            self.conn,
            // The oldest, whatever became of them: numbers rise with time, so that no index of times is needed. One that is still
            // open behind its retention holds its place until the backstop ends it.
            "DELETE FROM outbound_queue WHERE id IN (SELECT id FROM \
             (SELECT id, state, updated_at FROM outbound_queue ORDER BY id LIMIT $2) AS oldest \
             WHERE state IN ('acked', 'refused', 'expired', 'withdrawn', 'dead') AND updated_at < $1)",
            (prune.commands_before, rows_max),
        )?;
        let answers = run(
            self.conn,
            "DELETE FROM idempotency_keys WHERE (api_key, route, key) IN \
             (SELECT api_key, route, key FROM idempotency_keys WHERE created_at < $1 LIMIT $2)",
            (prune.answers_before, rows_max),
        )?;
        let rows_max = usize::try_from(rows_max).unwrap_or(usize::MAX);
        Ok([events.len(), commands, answers].into_iter().any(|rows| rows >= rows_max))
    }
}

fn locked(row: &Row<'_>) -> Result<(DeviceId, Option<ServerId>), StoreError> {
    Ok((device_id(row, 0)?, server_id(row, 1)?))
}

/// Deletes events older than `$1`, `$2` at most, and says of each whether an endpoint has not had it yet. The newest stays: where
/// rows make positions, none is given twice.
const fn old_events(conn: Conn<'_>) -> &'static str {
    match conn {
        // `at` rises with `pos` but for clock corrections, so the first young row ends the search.
        Conn::Sqlite(_) => {
            "DELETE FROM events WHERE pos IN (SELECT pos FROM events WHERE pos < \
             coalesce((SELECT pos FROM events WHERE at >= $1 ORDER BY pos LIMIT 1), (SELECT max(pos) FROM events)) \
             ORDER BY pos LIMIT $2) \
             RETURNING pos > (SELECT coalesce(min(pos), 9223372036854775807) FROM event_cursors)"
        }
        Conn::Postgres(_) => {
            // The first young row ends it here as well: what is left has no gaps, which reading the log relies on.
            "WITH oldest AS MATERIALIZED (SELECT e.pos, e.id, e.at FROM log_bounds b, \
             LATERAL logged_between(b.first, least(b.first + $2::bigint, b.last) - 1) e), \
             old AS MATERIALIZED (SELECT pos, id FROM oldest WHERE pos < \
             coalesce((SELECT min(pos) FROM oldest WHERE at >= $1), 9223372036854775807)), \
             gone AS (DELETE FROM events e USING old WHERE e.id = old.id), \
             kept AS MATERIALIZED (SELECT max(pos) + 1 AS pos FROM old), \
             emptied AS (DELETE FROM event_runs r USING kept WHERE r.pos < kept.pos AND r.pos + r.count <= kept.pos), \
             cut AS (UPDATE event_runs r SET pos = kept.pos, id = r.id + (kept.pos - r.pos), \
             count = r.count - (kept.pos - r.pos) FROM kept WHERE r.pos < kept.pos AND r.pos + r.count > kept.pos) \
             SELECT pos > (SELECT coalesce(min(pos), 9223372036854775807) FROM event_cursors) FROM old"
        }
    }
}
