//! The rows that most jobs read and write: orders, commands, counters of devices, settlements, events, answers.
//!
//! Each read looks into the [`Stage`](super::stage::Stage) first, each write goes there where there is one; jobs see no difference.

use super::{
    apply::Tx,
    bind::UPDATE_BIND,
    conn::{Row, Value, all, args, insert, insert_values, one, run, run_values, write},
    event::json,
    limits::signed,
    row::{device_id, order, order_columns, order_no, order_no_or_none, server_id},
    stage::Bulk,
};
use crate::{
    model::{Command, CommandBody, CommandState, DeviceId, Order, OrderNo, Priority, ServerId},
    store::{CommandRecord, Earlier, Idempotency, OrderWish, QueueEntry, Requester, StoreError},
};

/// Counters of a device, under the lock of its row.
#[derive(Clone, Debug)]
pub(in crate::store) struct Counters {
    /// Its epoch now.
    pub(super) session_epoch: i64,
    /// Last message id handed out.
    pub(super) msg_counter: i64,
    /// Last sequence number of its own events.
    pub(super) event_counter: i64,
    /// The instance that has the device.
    pub(super) owner: Option<ServerId>,
}

/// A row of `outbound_queue`.
#[derive(Clone, Debug)]
pub(in crate::store) struct CommandRow {
    pub(super) id: i64,
    pub(super) device_id: DeviceId,
    pub(super) order_no: Option<OrderNo>,
    pub(super) body: CommandBody,
    pub(super) priority: Priority,
    pub(super) state: CommandState,
    /// Of the last claim; `None`: never claimed, so never written.
    pub(super) epoch: Option<i64>,
    pub(super) msg_id: u32,
    pub(super) maybe_written: bool,
    pub(super) attempts: u8,
    pub(super) attempts_max: u8,
    pub(super) reason: Option<String>,
    pub(super) result: Option<String>,
    pub(super) request_id: Option<String>,
    pub(super) not_before: i64,
    pub(super) not_after: i64,
    pub(super) created_at: i64,
    pub(super) written_at: Option<i64>,
    pub(super) updated_at: i64,
}

/// Columns in the order [`command_row`] reads them.
macro_rules! command_row_columns {
    () => {
        "id, device_id, order_no, body, priority, state, epoch, msg_id, maybe_written, attempts, attempts_max, reason, result, \
         request_id, not_before, not_after, created_at, written_at, updated_at"
    };
}
pub(super) use command_row_columns;

pub(super) fn command_row(row: &Row<'_>) -> Result<CommandRow, StoreError> {
    let (body, state) = (row.text(3)?, row.text(5)?);
    Ok(CommandRow {
        id: row.get(0)?,
        device_id: device_id(row, 1)?,
        order_no: order_no_or_none(row, 2)?,
        body: serde_json::from_str(body).map_err(|_| row.corrupt(3, body))?,
        priority: super::row::priority(row, 4)?,
        state: CommandState::from_word(state).ok_or_else(|| row.corrupt(5, state))?,
        epoch: row.get(6)?,
        msg_id: row.get(7)?,
        maybe_written: row.get(8)?,
        attempts: row.get(9)?,
        attempts_max: row.get(10)?,
        reason: row.get(11)?,
        result: row.get(12)?,
        request_id: row.get(13)?,
        not_before: row.get(14)?,
        not_after: row.get(15)?,
        created_at: row.get(16)?,
        written_at: row.get(17)?,
        updated_at: row.get(18)?,
    })
}

/// A row as operators read it.
pub(super) fn queue_entry(row: &Row<'_>) -> Result<QueueEntry, StoreError> {
    let row = command_row(row)?;
    Ok(QueueEntry {
        priority: row.priority,
        attempts_max: row.attempts_max,
        msg_id: row.msg_id,
        epoch: row.epoch,
        maybe_written: row.maybe_written,
        not_before: row.not_before,
        command: CommandRecord {
            id: row.id,
            device_id: row.device_id,
            order_no: row.order_no,
            body: row.body,
            state: row.state.as_str().to_owned(),
            attempts: row.attempts,
            reason: row.reason,
            result: row.result,
            created_at: row.created_at,
            written_at: row.written_at,
            updated_at: row.updated_at,
            not_after: row.not_after,
            request_id: row.request_id,
        },
    })
}

impl CommandRow {
    /// As its device's shard is given it; `None`: it was never claimed.
    pub(super) fn claimed(&self) -> Option<Command> {
        Some(Command {
            id: self.id,
            device_id: self.device_id,
            order_no: self.order_no,
            body: self.body.clone(),
            priority: self.priority,
            msg_id: self.msg_id,
            epoch: self.epoch?,
            not_after: self.not_after,
            maybe_written: self.maybe_written,
            attempts_max: self.attempts_max,
        })
    }

    /// As third parties read it.
    pub(super) fn record(self) -> CommandRecord {
        CommandRecord {
            id: self.id,
            device_id: self.device_id,
            order_no: self.order_no,
            body: self.body,
            state: self.state.as_str().to_owned(),
            attempts: self.attempts,
            reason: self.reason,
            result: self.result,
            created_at: self.created_at,
            written_at: self.written_at,
            updated_at: self.updated_at,
            not_after: self.not_after,
            request_id: self.request_id,
        }
    }

    /// Neither written nor ended.
    pub(super) const fn is_unwritten(&self) -> bool {
        matches!(self.state, CommandState::Queued | CommandState::Claimed)
    }

    /// Not ended.
    pub(super) const fn is_unfinished(&self) -> bool {
        matches!(self.state, CommandState::Queued | CommandState::Claimed | CommandState::Written)
    }
}

/// A settlement's row.
pub(super) struct SettlementRow<'a> {
    pub(super) key: Option<&'a [u8]>,
    pub(super) device_id: DeviceId,
    pub(super) port_no: u16,
    pub(super) order_no: Option<OrderNo>,
    pub(super) business_no: Option<u16>,
    pub(super) duration_seconds: u32,
    pub(super) energy_wh: u32,
    pub(super) amount_cent: Option<u32>,
    pub(super) raw: &'a [u8],
    pub(super) at: i64,
}

/// An event's row.
pub(super) struct EventRow<'a> {
    pub(super) event_id: &'a str,
    pub(super) event_type: &'static str,
    pub(super) key: &'a str,
    pub(super) device_id: Option<&'a str>,
    pub(super) order_no: Option<&'a str>,
    /// 0: outside the key's sequence.
    pub(super) sequence_no: u32,
    pub(super) at: i64,
    pub(super) data: &'a str,
}

/// A request's row.
pub(super) struct RequestRow<'a> {
    pub(super) order_no: OrderNo,
    pub(super) wish: OrderWish,
    pub(super) request_id: &'a str,
    pub(super) requester: &'a Requester,
    pub(super) idempotency: Option<&'a Idempotency>,
    pub(super) at: i64,
}

/// Columns of [`INSERT_REQUEST`].
macro_rules! request_columns {
    () => {
        "order_no, wish, request_id, api_key, idempotency_key, client_ip, instance, at"
    };
}
pub(super) use request_columns;

static UPDATE_COUNTERS: Bulk = Bulk {
    each: "UPDATE devices SET msg_counter = $2, event_counter = $3 WHERE device_id = $1",
    many: "UPDATE devices AS d SET msg_counter = v.msg_counter, event_counter = v.event_counter \
           FROM UNNEST($1::text[], $2::bigint[], $3::bigint[]) AS v(device_id, msg_counter, event_counter) \
           WHERE d.device_id = v.device_id",
    rank: 0,
    keyed: true,
};

static UPDATE_ORDER: Bulk = Bulk {
    each: "UPDATE orders SET status = $2, business_no = $3, start_time = $4, end_time = $5, duration_seconds = $6, \
           energy_wh = $7, amount_cent = $8, end_reason = $9, end_reason_raw = $10, failure_reason = $11, \
           start_written_at = $12, stop_acked = $13, settled_at = $14, settlement_match = $15, device_end_pending = $16, \
           sequence_no = $17, status_at = $18, updated_at = $19 WHERE order_no = $1",
    many: "UPDATE orders AS o SET status = v.status, business_no = v.business_no, start_time = v.start_time, \
           end_time = v.end_time, duration_seconds = v.duration_seconds, energy_wh = v.energy_wh, \
           amount_cent = v.amount_cent, end_reason = v.end_reason, end_reason_raw = v.end_reason_raw, \
           failure_reason = v.failure_reason, start_written_at = v.start_written_at, stop_acked = v.stop_acked, \
           settled_at = v.settled_at, settlement_match = v.settlement_match, device_end_pending = v.device_end_pending, \
           sequence_no = v.sequence_no, status_at = v.status_at, updated_at = v.updated_at \
           FROM UNNEST($1::text[], $2::smallint[], $3::int[], $4::bigint[], $5::bigint[], $6::bigint[], $7::bigint[], \
           $8::bigint[], $9::text[], $10::smallint[], $11::text[], $12::bigint[], $13::boolean[], $14::bigint[], \
           $15::text[], $16::boolean[], $17::bigint[], $18::bigint[], $19::bigint[]) \
           AS v(order_no, status, business_no, start_time, end_time, duration_seconds, energy_wh, amount_cent, \
           end_reason, end_reason_raw, failure_reason, start_written_at, stop_acked, settled_at, settlement_match, \
           device_end_pending, sequence_no, status_at, updated_at) WHERE o.order_no = v.order_no",
    rank: 0,
    keyed: true,
};

static INSERT_ORDER: Bulk = Bulk {
    each: concat!(
        "INSERT INTO orders (",
        order_columns!(),
        ", duration_max_ms) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, \
         $20, $21, $22, $23, $24, $25, $26, $27, $28, $29, $30, $31, $32, $33) ON CONFLICT DO NOTHING"
    ),
    many: concat!(
        "INSERT INTO orders (",
        order_columns!(),
        ", duration_max_ms) SELECT * FROM UNNEST($1::text[], $2::text[], $3::int[], $4::smallint[], $5::text[], \
         $6::text[], $7::bytea[], $8::int[], $9::bigint[], $10::bigint[], $11::bigint[], $12::bigint[], $13::bigint[], \
         $14::text[], $15::smallint[], $16::text[], $17::bigint[], $18::boolean[], $19::bigint[], $20::text[], \
         $21::boolean[], $22::bigint[], $23::text[], $24::bigint[], $25::bigint[], $26::bigint[], $27::text[], \
         $28::text[], $29::bigint[], $30::boolean[], $31::bigint[], $32::bigint[], $33::bigint[])"
    ),
    rank: 1,
    keyed: true,
};

static UPDATE_COMMAND: Bulk = Bulk {
    each: "UPDATE outbound_queue SET state = $2, epoch = $3, maybe_written = $4, attempts = $5, reason = $6, result = $7, \
           written_at = $8, updated_at = $9 WHERE id = $1",
    many: "UPDATE outbound_queue AS q SET state = v.state, epoch = v.epoch, maybe_written = v.maybe_written, \
           attempts = v.attempts, reason = v.reason, result = v.result, written_at = v.written_at, \
           updated_at = v.updated_at FROM UNNEST($1::bigint[], $2::text[], $3::bigint[], $4::boolean[], $5::smallint[], \
           $6::text[], $7::text[], $8::bigint[], $9::bigint[]) \
           AS v(id, state, epoch, maybe_written, attempts, reason, result, written_at, updated_at) WHERE q.id = v.id",
    rank: 1,
    keyed: true,
};

static INSERT_COMMAND: Bulk = Bulk {
    each: concat!(
        "INSERT INTO outbound_queue (",
        command_row_columns!(),
        ", kind) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20)"
    ),
    many: concat!(
        "INSERT INTO outbound_queue (",
        command_row_columns!(),
        ", kind) SELECT * FROM UNNEST($1::bigint[], $2::text[], $3::text[], $4::text[], $5::smallint[], $6::text[], \
         $7::bigint[], $8::bigint[], $9::boolean[], $10::smallint[], $11::smallint[], $12::text[], $13::text[], $14::text[], \
         $15::bigint[], $16::bigint[], $17::bigint[], $18::bigint[], $19::bigint[], $20::text[])"
    ),
    rank: 1,
    keyed: true,
};

static INSERT_SETTLEMENT: Bulk = Bulk {
    each: "INSERT INTO settlements \
           (key, device_id, port_no, order_no, business_no, duration_seconds, energy_wh, amount_cent, raw, at) \
           VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)",
    many: "INSERT INTO settlements \
           (key, device_id, port_no, order_no, business_no, duration_seconds, energy_wh, amount_cent, raw, at) \
           SELECT * FROM UNNEST($1::bytea[], $2::text[], $3::int[], $4::text[], $5::int[], $6::bigint[], $7::bigint[], \
           $8::bigint[], $9::bytea[], $10::bigint[])",
    rank: 1,
    keyed: false,
};

/// Events of a batch get their ids in the order they were told: a set-returning function alone keeps its order.
static INSERT_EVENT: Bulk = Bulk {
    each: "INSERT INTO events (event_id, event_type, key, device_id, order_no, sequence_no, at, data) \
           VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
    many: "INSERT INTO events (event_id, event_type, key, device_id, order_no, sequence_no, at, data) \
           SELECT * FROM UNNEST($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::bigint[], $7::bigint[], \
           $8::text[])",
    rank: 1,
    keyed: false,
};

static INSERT_ANSWER: Bulk = Bulk {
    each: "INSERT INTO idempotency_keys (api_key, route, key, body_hash, status, response, created_at) \
           VALUES ($1, $2, $3, $4, $5, $6, $7)",
    many: "INSERT INTO idempotency_keys (api_key, route, key, body_hash, status, response, created_at) \
           SELECT * FROM UNNEST($1::text[], $2::text[], $3::text[], $4::bytea[], $5::smallint[], $6::bytea[], $7::bigint[])",
    rank: 1,
    keyed: false,
};

static INSERT_REQUEST: Bulk = Bulk {
    each: concat!("INSERT INTO order_requests (", request_columns!(), ") VALUES ($1, $2, $3, $4, $5, $6, $7, $8)"),
    many: concat!(
        "INSERT INTO order_requests (",
        request_columns!(),
        ") SELECT * FROM UNNEST($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[], \
         $8::bigint[])"
    ),
    rank: 1,
    keyed: false,
};

/// Texts of an order's row that are made for it.
struct OrderTexts {
    device: String,
    spec: String,
    tariff: Option<String>,
}

impl OrderTexts {
    fn of(order: &Order) -> Result<Self, StoreError> {
        let tariff = order.card.as_deref().and_then(|card| card.tariff.as_ref());
        Ok(Self {
            device: order.device_id.to_string(),
            spec: json(&order.spec)?,
            tariff: tariff.map(json).transpose()?,
        })
    }
}

/// Orders that hold a port: active ones, and those whose device still shows their charge.
pub(super) const fn holds_port(order: &Order) -> bool {
    order.status.is_active() || order.device_end_pending
}

impl Tx<'_> {
    pub(super) fn find_order(&self, no: OrderNo) -> Result<Option<Order>, StoreError> {
        if let Some(known) = self.conn.staged(|stage| stage.known.orders.get(&no).cloned()) {
            return Ok(known);
        }
        one(self.conn, concat!("SELECT ", order_columns!(), " FROM orders WHERE order_no = $1"), [no.as_str()], order)
    }

    /// The order that is active on a port.
    pub(super) fn active_on(&self, device: DeviceId, port_no: u16) -> Result<Option<Order>, StoreError> {
        let known = self.conn.staged(|stage| {
            let holders = stage.known.ports.get(&(device, port_no))?;
            let mut orders = holders.iter().filter_map(|no| stage.known.orders.get(no)?.as_ref());
            Some(orders.find(|order| order.status.is_active()).cloned())
        });
        if let Some(known) = known {
            return Ok(known);
        }
        one(
            self.conn,
            concat!(
                "SELECT ",
                order_columns!(),
                " FROM orders WHERE device_id = $1 AND port_no = $2 AND is_active = TRUE",
            ),
            (device.to_string(), port_no),
            order,
        )
    }

    /// The newest order whose charge the port still shows behind its end. There may be two: one that was over before the other
    /// began, and whose charge the device named again afterwards.
    pub(super) fn pending_end_on(&self, device: DeviceId, port_no: u16) -> Result<Option<OrderNo>, StoreError> {
        let known = self.conn.staged(|stage| {
            let holders = stage.known.ports.get(&(device, port_no))?;
            let orders = holders.iter().filter_map(|no| stage.known.orders.get(no)?.as_ref());
            let pending = orders.filter(|order| order.device_end_pending);
            Some(pending.map(|order| (order.created_at, order.order_no)).max().map(|(_, no)| no))
        });
        if let Some(known) = known {
            return Ok(known);
        }
        one(
            self.conn,
            "SELECT order_no FROM orders WHERE device_id = $1 AND port_no = $2 AND device_end_pending = TRUE \
             ORDER BY created_at DESC, order_no DESC LIMIT 1",
            (device.to_string(), port_no),
            |row| order_no(row, 0),
        )
    }

    /// Orders of a device that are active, or that its ports still show behind their end, by port.
    pub(super) fn held_by(&self, device: DeviceId) -> Result<Vec<Order>, StoreError> {
        let known = self.conn.staged(|stage| {
            let holders = stage.known.held.get(&device)?;
            holders.iter().map(|no| stage.known.orders.get(no).cloned().flatten()).collect::<Option<Vec<_>>>()
        });
        if let Some(mut known) = known {
            known.sort_by_key(|order| (order.port_no, order.created_at));
            return Ok(known);
        }
        all(
            self.conn,
            concat!(
                "SELECT ",
                order_columns!(),
                " FROM orders WHERE device_id = $1 AND is_active = TRUE UNION ALL SELECT ",
                order_columns!(),
                " FROM orders WHERE device_id = $1 AND device_end_pending = TRUE AND is_active = FALSE ORDER BY port_no, created_at"
            ),
            [device.to_string()],
            order,
        )
    }

    /// Inserts an order; false when its port is taken or its number exists. A device without a row has none: a record of it is
    /// for quarantine.
    pub(super) fn insert_order(&self, order: &Order) -> Result<bool, StoreError> {
        // The embedded store has a foreign key instead; here the row is known already, and its lock held.
        if self.conn.is_shared() && self.counters(order.device_id)?.is_none() {
            return Err(StoreError::Statement(format!("device {} has no row", order.device_id)));
        }
        let texts = OrderTexts::of(order)?;
        let values = self.order_values(order, &texts);
        let place = (order.device_id, order.port_no);
        let staged = self.conn.staged(|stage| {
            let known = &mut stage.known;
            let mut taken = known.orders.get(&order.order_no)?.is_some();
            // One that has ended needs no port.
            if order.status.is_active() {
                let active = |no: &OrderNo| matches!(known.orders.get(no), Some(Some(held)) if held.status.is_active());
                taken |= known.ports.get(&place)?.iter().any(active);
            }
            if taken {
                return Some(false);
            }
            known.hold(order, holds_port(order));
            known.orders.insert(order.order_no, Some(order.clone()));
            known.commands_of.insert(order.order_no, Vec::new());
            stage.push(&INSERT_ORDER, values.iter().cloned().map(Value::into_owned).collect());
            Some(true)
        });
        staged.map_or_else(|| Ok(run_values(self.conn, INSERT_ORDER.each, &values)? > 0), Ok)
    }

    /// Writes what a step changes of an order.
    pub(super) fn update_order(&self, order: &Order) -> Result<(), StoreError> {
        let values = args![
            order.order_no.as_str(),
            order.status.code(),
            order.business_no,
            order.start_time,
            order.end_time,
            order.duration_seconds,
            order.energy_wh,
            order.amount_cent,
            order.end_reason,
            order.end_reason_raw,
            order.failure_reason,
            order.start_written_at,
            order.stop_acked,
            order.settled_at,
            order.settlement_match,
            order.device_end_pending,
            order.sequence_no,
            order.status_at,
            order.updated_at,
        ]
        .map(Value::into_owned);
        if !self.conn.is_staged() {
            return run(self.conn, UPDATE_ORDER.each, values).map(drop);
        }
        let texts = OrderTexts::of(order)?;
        let whole = self.order_values(order, &texts);
        let staged = self.conn.staged(|stage| {
            let known = &mut stage.known;
            // One that was not read may hold a port that is thought to be free.
            known.orders.get(&order.order_no)?;
            known.hold(order, holds_port(order));
            known.orders.insert(order.order_no, Some(order.clone()));
            let key = Value::Text(order.order_no.as_str().to_owned().into());
            if stage.waits(&INSERT_ORDER, &key) {
                stage.push(&INSERT_ORDER, whole.map(Value::into_owned).to_vec());
            } else {
                stage.push(&UPDATE_ORDER, values.to_vec());
            }
            Some(())
        });
        if staged.is_none() {
            run(self.conn, UPDATE_ORDER.each, values)?;
        }
        Ok(())
    }

    /// Keeps when an order's start was written first.
    pub(super) fn start_written(&self, order_no: OrderNo, at: i64) -> Result<(), StoreError> {
        if self.conn.is_shared() {
            if let Some(mut order) = self.find_order(order_no)?.filter(|order| order.start_written_at.is_none()) {
                order.start_written_at = Some(at);
                order.updated_at = order.updated_at.max(at);
                self.update_order(&order)?;
            }
            return Ok(());
        }
        // Nothing of it is in an index. Naming the columns that are costs SQLite two searches in each, and a page of most.
        run(
            self.conn,
            "UPDATE orders SET start_written_at = $2, updated_at = greatest(updated_at, $2) \
             WHERE order_no = $1 AND start_written_at IS NULL",
            (order_no.as_str(), at),
        )
        .map(drop)
    }

    /// The values of [`INSERT_ORDER`].
    fn order_values<'a>(&self, order: &'a Order, texts: &'a OrderTexts) -> [Value<'a>; 33] {
        fn int(value: impl Into<i64>) -> Value<'static> {
            Value::Int(value.into())
        }
        fn int_or_null(value: Option<impl Into<i64>>) -> Value<'static> {
            value.map_or(Value::Null, int)
        }
        fn text<'a>(value: impl Into<Option<&'a str>>) -> Value<'a> {
            value.into().map_or(Value::Null, |value| Value::Text(value.into()))
        }
        let card = order.card.as_deref();
        [
            text(order.order_no.as_str()),
            text(texts.device.as_str()),
            int(order.port_no),
            int(order.status.code()),
            text(texts.spec.as_str()),
            text(order.origin.as_str()),
            order.device_ref.as_deref().map_or(Value::Null, |bytes| Value::Bytes(bytes.into())),
            int_or_null(order.business_no),
            int_or_null(order.start_time),
            int_or_null(order.end_time),
            int_or_null(order.duration_seconds),
            int_or_null(order.energy_wh),
            int_or_null(order.amount_cent),
            text(order.end_reason.as_deref()),
            int_or_null(order.end_reason_raw),
            text(order.failure_reason.as_deref()),
            int_or_null(order.start_written_at),
            Value::Bool(order.stop_acked),
            int_or_null(order.settled_at),
            text(order.settlement_match.as_deref()),
            Value::Bool(order.device_end_pending),
            int(order.sequence_no),
            text(order.request_id.as_deref()),
            int(order.created_at),
            int(order.status_at),
            int(order.updated_at),
            text(card.map(|card| card.card_no.as_str())),
            text(texts.tariff.as_deref()),
            int_or_null(card.and_then(|card| card.hold_cent)),
            Value::Bool(card.is_some_and(|card| card.hold_open)),
            int_or_null(card.and_then(|card| card.price_cent)),
            int_or_null(card.and_then(|card| card.charged_cent)),
            int(signed(self.limits.orders.duration_max(&order.spec.mode))),
        ]
    }

    /// All commands of an order, oldest first.
    pub(super) fn commands_of(&self, no: OrderNo) -> Result<Vec<CommandRow>, StoreError> {
        let known = self.conn.staged(|stage| {
            let ids = stage.known.commands_of.get(&no)?;
            ids.iter().map(|id| stage.known.commands.get(id).cloned()).collect::<Option<Vec<_>>>()
        });
        if let Some(known) = known {
            return Ok(known);
        }
        all(
            self.conn,
            concat!("SELECT ", command_row_columns!(), " FROM outbound_queue WHERE order_no = $1 ORDER BY id"),
            [no.as_str()],
            command_row,
        )
    }

    /// Commands of a device that have not come to an end, oldest first.
    pub(super) fn unfinished_of(&self, device: DeviceId) -> Result<Vec<CommandRow>, StoreError> {
        let known = self.conn.staged(|stage| {
            let ids = stage.known.unfinished.get(&device)?;
            ids.iter().map(|id| stage.known.commands.get(id).cloned()).collect::<Option<Vec<_>>>()
        });
        if let Some(known) = known {
            return Ok(known.into_iter().filter(CommandRow::is_unfinished).collect());
        }
        all(
            self.conn,
            concat!(
                "SELECT ",
                command_row_columns!(),
                " FROM outbound_queue WHERE device_id = $1 AND is_open = TRUE ORDER BY id"
            ),
            [device.to_string()],
            command_row,
        )
    }

    pub(super) fn find_command(&self, id: i64) -> Result<Option<CommandRow>, StoreError> {
        if let Some(known) = self.conn.staged(|stage| stage.known.commands.get(&id).cloned()) {
            return Ok(Some(known));
        }
        one(
            self.conn,
            concat!("SELECT ", command_row_columns!(), " FROM outbound_queue WHERE id = $1"),
            [id],
            command_row,
        )
    }

    /// Inserts a command and numbers it.
    pub(super) fn add_command(&self, row: &mut CommandRow) -> Result<(), StoreError> {
        if let Some(id) = self.conn.next_command_id()? {
            row.id = id;
            let values = command_values(row)?;
            let staged = self.conn.staged(|stage| {
                let known = &mut stage.known;
                known.commands.insert(row.id, row.clone());
                if let Some(ids) = row.order_no.and_then(|no| known.commands_of.get_mut(&no)) {
                    ids.push(row.id);
                }
                if let Some(ids) = known.unfinished.get_mut(&row.device_id) {
                    ids.push(row.id);
                }
                stage.push(&INSERT_COMMAND, values.to_vec());
                Some(())
            });
            if staged.is_none() {
                run(self.conn, INSERT_COMMAND.each, values.as_slice())?;
            }
            return Ok(());
        }
        row.id = insert(
            self.conn,
            "INSERT INTO outbound_queue (device_id, order_no, kind, body, priority, state, epoch, msg_id, not_before, \
             not_after, created_at, updated_at, attempts_max, request_id) \
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)",
            "id",
            (
                row.device_id.to_string(),
                row.order_no.as_ref().map(OrderNo::as_str),
                row.body.as_str(),
                json(&row.body)?,
                row.priority.code(),
                row.state.as_str(),
                row.epoch,
                row.msg_id,
                row.not_before,
                row.not_after,
                row.created_at,
                row.updated_at,
                row.attempts_max,
                &row.request_id,
            ),
        )?;
        Ok(())
    }

    /// Writes what changes of a command.
    pub(super) fn save_command(&self, row: &CommandRow) -> Result<(), StoreError> {
        let values = args![
            row.id,
            row.state.as_str(),
            row.epoch,
            row.maybe_written,
            row.attempts,
            row.reason,
            row.result,
            row.written_at,
            row.updated_at,
        ]
        .map(Value::into_owned);
        if !self.conn.is_staged() {
            return run(self.conn, UPDATE_COMMAND.each, values).map(drop);
        }
        let whole = command_values(row)?;
        let staged = self.conn.staged(|stage| {
            stage.known.commands.get(&row.id)?;
            stage.known.commands.insert(row.id, row.clone());
            if stage.waits(&INSERT_COMMAND, &Value::Int(row.id)) {
                stage.push(&INSERT_COMMAND, whole);
            } else {
                stage.push(&UPDATE_COMMAND, values.to_vec());
            }
            Some(())
        });
        if staged.is_none() {
            run(self.conn, UPDATE_COMMAND.each, values)?;
        }
        Ok(())
    }

    /// Counters of a device; `None`: no such device.
    pub(super) fn counters(&self, device: DeviceId) -> Result<Option<Counters>, StoreError> {
        if let Some(known) = self.conn.staged(|stage| stage.known.devices.get(&device).cloned()) {
            return Ok(known);
        }
        one(
            self.conn,
            "SELECT session_epoch, msg_counter, event_counter, owner FROM devices WHERE device_id = $1 FOR NO KEY UPDATE",
            [device.to_string()],
            |row| counters(row, 0),
        )
    }

    pub(super) fn save_counters(&self, device: DeviceId, counters: &Counters) -> Result<(), StoreError> {
        let id = device.to_string();
        let values = args![id, counters.msg_counter, counters.event_counter].map(Value::into_owned);
        let staged = self.conn.staged(|stage| {
            stage.known.devices.get(&device)?;
            stage.known.devices.insert(device, Some(counters.clone()));
            // A bind writes them as well.
            if !stage.amend(&UPDATE_BIND, &values) {
                stage.push(&UPDATE_COUNTERS, values.to_vec());
            }
            Some(())
        });
        if staged.is_none() {
            run(self.conn, UPDATE_COUNTERS.each, values)?;
        }
        Ok(())
    }

    /// The order that took an AP3000 record before; `None`: the record is new.
    pub(super) fn settled_as(&self, key: &[u8]) -> Result<Option<OrderNo>, StoreError> {
        if let Some(known) = self.conn.staged(|stage| stage.known.settled.get(key).copied()) {
            return Ok(known);
        }
        one(self.conn, "SELECT order_no FROM settlements WHERE key = $1", [key], |row| order_no(row, 0))
    }

    pub(super) fn insert_settlement_row(&self, row: &SettlementRow<'_>) -> Result<(), StoreError> {
        if let (Some(key), Some(no)) = (row.key, row.order_no) {
            self.conn.staged(|stage| stage.known.settled.insert(key.to_vec(), Some(no)));
        }
        let (device, order_no) = (row.device_id.to_string(), row.order_no.as_ref().map(OrderNo::as_str));
        let values = args![
            row.key,
            device,
            row.port_no,
            order_no,
            row.business_no,
            row.duration_seconds,
            row.energy_wh,
            row.amount_cent,
            row.raw,
            row.at,
        ];
        write(self.conn, &INSERT_SETTLEMENT, values)
    }

    /// Inserts an event; its row's number where the database gives it at once.
    pub(super) fn insert_event_row(&self, row: &EventRow<'_>) -> Result<i64, StoreError> {
        let values = args![
            row.event_id,
            row.event_type,
            row.key,
            row.device_id,
            row.order_no,
            row.sequence_no,
            row.at,
            row.data,
        ];
        if self.conn.is_staged() {
            return write(self.conn, &INSERT_EVENT, values).map(|()| 0);
        }
        insert_values(self.conn, INSERT_EVENT.each, "id", &values)
    }

    /// What a request was answered before.
    pub(super) fn earlier(&self, asked: Option<&Idempotency>) -> Result<Option<Earlier>, StoreError> {
        let Some(asked) = asked else { return Ok(None) };
        let known = self.conn.staged(|stage| {
            let same = |(known, _): &&(Idempotency, Option<Earlier>)| {
                (&known.api_key, &known.route, &known.key) == (&asked.api_key, &asked.route, &asked.key)
            };
            let (known, earlier) = stage.known.answers.iter().rev().find(same)?;
            let same_body = known.body_hash == asked.body_hash;
            Some(earlier.clone().map(|earlier| if same_body { earlier } else { Earlier::Mismatch }))
        });
        match known {
            Some(known) => Ok(known),
            None => super::idempotency::earlier(self.conn, asked),
        }
    }

    /// Notes who asked for what was done to an order.
    pub(super) fn insert_request(&self, row: &RequestRow<'_>) -> Result<(), StoreError> {
        let values = args![
            row.order_no.as_str(),
            row.wish.as_str(),
            row.request_id,
            row.requester.api_key.as_deref(),
            row.idempotency.map(|asked| &asked.key),
            row.requester.client_ip.map(|ip| ip.to_string()),
            self.server_id.map(ServerId::as_str),
            row.at,
        ]
        .map(Value::into_owned);
        write(self.conn, &INSERT_REQUEST, values)
    }

    pub(super) fn insert_answer(&self, asked: &Idempotency, status: u16, body: Vec<u8>) -> Result<(), StoreError> {
        let values = args![&*asked.api_key, asked.route, asked.key, asked.body_hash, status, body, self.now]
            .map(Value::into_owned);
        write(self.conn, &INSERT_ANSWER, values)?;
        let answer = Earlier::Answer { status, body };
        self.conn.staged(|stage| {
            stage.known.answers.push((asked.clone(), Some(answer)));
            Some(())
        });
        Ok(())
    }
}

/// Counters from column `first` on: epoch, message ids, events, owner.
pub(super) fn counters(row: &Row<'_>, first: usize) -> Result<Counters, StoreError> {
    Ok(Counters {
        session_epoch: row.get(first)?,
        msg_counter: row.get(first + 1)?,
        event_counter: row.get(first + 2)?,
        owner: server_id(row, first + 3)?,
    })
}

/// The values of [`INSERT_COMMAND`].
fn command_values(row: &CommandRow) -> Result<Vec<Value<'static>>, StoreError> {
    let device = row.device_id.to_string();
    let body = json(&row.body)?;
    Ok(args![
        row.id,
        device,
        row.order_no.as_ref().map(OrderNo::as_str),
        body,
        row.priority.code(),
        row.state.as_str(),
        row.epoch,
        row.msg_id,
        row.maybe_written,
        row.attempts,
        row.attempts_max,
        row.reason,
        row.result,
        row.request_id,
        row.not_before,
        row.not_after,
        row.created_at,
        row.written_at,
        row.updated_at,
        row.body.as_str(),
    ]
    .map(Value::into_owned)
    .to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::sql::stage::Stage;

    #[test]
    fn requests_of_orders_cost_no_statement_of_their_own() {
        let mut stage = Stage::default();
        let row = |values: usize| vec![Value::Null; values];
        stage.push(&INSERT_REQUEST, row(8));
        stage.push(&INSERT_EVENT, row(8));
        stage.push(&INSERT_REQUEST, row(8));
        let statements = stage.take();
        let [(sql, values)] = &statements[..] else { panic!("{statements:?}") };
        assert!(sql.contains("INTO events") && sql.contains("INTO order_requests") && values.len() == 16, "{sql}");
        assert_eq!(values.iter().filter(|values| matches!(values, Value::Array(rows) if rows.len() == 2)).count(), 8);
    }
}
