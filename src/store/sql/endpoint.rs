//! Webhook endpoints: their progress, what operators change of it, and the log of their deliveries.
//!
//! A row of `event_delivery` at a position is parked or dead; a position up to the cursor without a row is delivered, or was not
//! wanted. So a redelivery is a parked row, and one that is there already says that the event is still to come.

use super::{
    apply::Tx,
    conn::{Arg, Conn, Row, Value, all, one, run, scalar},
    event::json,
    instance::{POSTGRES_NOW, SQLITE_NOW},
    row::{event, event_columns, server_id},
};
use crate::{
    model::ServerId,
    store::{
        DeadLetters, DeliveryChange, DeliveryLogRow, DeliveryOutcome, DeliveryUpdate, Disabled, EndpointJob,
        EndpointOutcome, EndpointProgress, EndpointStanding, EventRecord, Page, ParkedDelivery, StoreError,
    },
};

/// Columns in the order [`log_row`] reads them.
macro_rules! log_columns {
    () => {
        "at, endpoint, pos, event_id, event_type, key, attempt, status, took_ms, outcome, reason, instance"
    };
}
pub(super) use log_columns;

/// Entries of the delivery log are counted up to here: an operator who pages deeper wants a filter, and the reader is everybody's.
const LOG_TOTAL_MAX: u32 = 100_000;

impl Tx<'_> {
    pub(super) fn deliver(&self, updates: &[DeliveryUpdate]) -> Result<(), StoreError> {
        let mut judged: Option<(&str, bool)> = None;
        for update in updates {
            let endpoint = update.endpoint();
            let elsewhere = match judged {
                Some((judged, elsewhere)) if judged == endpoint => elsewhere,
                _ => self.is_leased_elsewhere(endpoint)?,
            };
            judged = Some((endpoint, elsewhere));
            if elsewhere {
                continue;
            }
            match update {
                DeliveryUpdate::Cursor { endpoint, pos } => run(
                    self.conn,
                    "INSERT INTO event_cursors (endpoint, pos) VALUES ($1, $2) \
                     ON CONFLICT (endpoint) DO UPDATE SET pos = greatest(event_cursors.pos, excluded.pos)",
                    (endpoint, pos),
                )?,
                DeliveryUpdate::Park(parked) => self.set_delivery("parked", parked)?,
                DeliveryUpdate::Unpark { endpoint, pos } => run(
                    self.conn,
                    "DELETE FROM event_delivery WHERE endpoint = $1 AND pos = $2 AND state = 'parked'",
                    (endpoint, pos),
                )?,
                DeliveryUpdate::Dead(parked) => self.set_delivery("dead", parked)?,
                DeliveryUpdate::Disable { endpoint, reason, at } => self.disable(endpoint, reason, *at)?,
            };
        }
        Ok(())
    }

    fn set_delivery(&self, state: &str, parked: &ParkedDelivery) -> Result<usize, StoreError> {
        run(
            self.conn,
            "INSERT INTO event_delivery (endpoint, state, pos, key, attempts, next_at, reason) \
             VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT (endpoint, pos) DO UPDATE SET state = excluded.state, \
             attempts = excluded.attempts, next_at = excluded.next_at, reason = excluded.reason",
            (&parked.endpoint, state, parked.pos, &parked.key, parked.attempts, parked.next_at, &parked.reason),
        )
    }

    /// An endpoint that has no cursor yet gets one at the log's end, as it would by itself.
    fn disable(&self, endpoint: &str, reason: &str, at: i64) -> Result<usize, StoreError> {
        run(
            self.conn,
            "INSERT INTO event_cursors (endpoint, pos, disabled_at, disabled_reason) \
             VALUES ($1, (SELECT coalesce(last, 0) FROM log_bounds), $2, $3) ON CONFLICT (endpoint) DO UPDATE \
             SET disabled_at = excluded.disabled_at, disabled_reason = excluded.disabled_reason \
             WHERE event_cursors.disabled_at IS NULL",
            (endpoint, at, reason),
        )
    }

    pub(super) fn endpoint_job(&mut self, job: &EndpointJob) -> Result<EndpointOutcome, StoreError> {
        let (endpoint, at) = (job.endpoint.as_str(), job.at);
        let (changed, more_behind) = match &job.change {
            DeliveryChange::Disable { reason } => (self.disable(endpoint, reason, at)?, None),
            DeliveryChange::Enable { skip_backlog } => (self.enable(endpoint, *skip_backlog, at)?, None),
            DeliveryChange::Redrive(which) => self.dead_letters(endpoint, which, |given| {
                given.push(Value::Int(at));
                let at = given.len();
                format!("UPDATE event_delivery SET state = 'parked', attempts = 0, next_at = ${at}, reason = 'redrive'")
            })?,
            DeliveryChange::Purge(which) => {
                self.dead_letters(endpoint, which, |_| "DELETE FROM event_delivery".to_owned())?
            }
            DeliveryChange::Redeliver { from_pos, to_pos, event_types, rows_max } => {
                self.redeliver(endpoint, (*from_pos, *to_pos), event_types, *rows_max, at)?
            }
        };
        let looks_again = match &job.change {
            DeliveryChange::Enable { skip_backlog } => *skip_backlog,
            DeliveryChange::Redrive(_) | DeliveryChange::Redeliver { .. } => changed > 0,
            DeliveryChange::Disable { .. } | DeliveryChange::Purge(_) => false,
        };
        if looks_again {
            run(self.conn, "UPDATE event_cursors SET revision = revision + 1 WHERE endpoint = $1", [endpoint])?;
        }
        Ok(EndpointOutcome { changed: changed as u64, more_behind })
    }

    fn enable(&self, endpoint: &str, skip_backlog: bool, at: i64) -> Result<usize, StoreError> {
        let mut skipped = 0;
        if skip_backlog {
            skipped = run(
                self.conn,
                "UPDATE event_delivery SET state = 'dead', reason = 'skipped', next_at = $2 \
                 WHERE endpoint = $1 AND state = 'parked'",
                (endpoint, at),
            )?;
            run(
                self.conn,
                "UPDATE event_cursors SET pos = greatest(pos, (SELECT coalesce(last, 0) FROM log_bounds)) \
                 WHERE endpoint = $1",
                [endpoint],
            )?;
        }
        run(
            self.conn,
            "UPDATE event_cursors SET disabled_at = NULL, disabled_reason = NULL \
             WHERE endpoint = $1 AND disabled_at IS NOT NULL",
            [endpoint],
        )?;
        Ok(skipped)
    }

    /// Runs a statement on dead letters: its part before WHERE, which may add values.
    fn dead_letters(
        &self,
        endpoint: &str,
        which: &DeadLetters,
        statement: impl FnOnce(&mut Vec<Value<'_>>) -> String,
    ) -> Result<(usize, Option<i64>), StoreError> {
        match which {
            DeadLetters::At(positions) => {
                let mut values = vec![endpoint.value(), Value::Text(json(positions)?.into())];
                let sql = format!(
                    "{} WHERE endpoint = $1 AND state = 'dead' \
                     AND pos IN (SELECT CAST(value AS bigint) FROM json_array_elements_text($2::json))",
                    statement(&mut values)
                );
                Ok((run(self.conn, &sql, values.as_slice())?, None))
            }
            DeadLetters::Behind { pos, rows_max } => {
                let last: Option<i64> = scalar::<Option<i64>>(
                    self.conn,
                    "SELECT max(pos) FROM (SELECT pos FROM event_delivery WHERE endpoint = $1 AND state = 'dead' \
                     AND pos > $2 ORDER BY pos LIMIT $3) piece",
                    (endpoint, pos, rows_max),
                )?
                .flatten();
                let Some(last) = last else { return Ok((0, None)) };
                let mut values = vec![endpoint.value(), Value::Int(*pos), Value::Int(last)];
                let sql = format!(
                    "{} WHERE endpoint = $1 AND state = 'dead' AND pos > $2 AND pos <= $3",
                    statement(&mut values)
                );
                let changed = run(self.conn, &sql, values.as_slice())?;
                let full = u32::try_from(changed).is_ok_and(|changed| changed >= *rows_max);
                Ok((changed, full.then_some(last)))
            }
        }
    }

    fn redeliver(
        &self,
        endpoint: &str,
        (from_pos, to_pos): (i64, i64),
        event_types: &[&str],
        rows_max: u32,
        at: i64,
    ) -> Result<(usize, Option<i64>), StoreError> {
        let cursor: Option<i64> = scalar(self.conn, "SELECT pos FROM event_cursors WHERE endpoint = $1", [endpoint])?;
        // What lies beyond is delivered anyway.
        let Some(to_pos) = cursor.map(|cursor| cursor.min(to_pos)) else { return Ok((0, None)) };
        let Some((first_pos, last_pos)) = bounds(self.conn)? else { return Ok((0, None)) };
        let (from_pos, to_pos) = (from_pos.max(first_pos), to_pos.min(last_pos));
        let last = to_pos.min(from_pos.saturating_add(i64::from(rows_max) - 1));
        if last < from_pos {
            return Ok((0, None));
        }
        let changed = run(
            self.conn,
            &format!(
                "INSERT INTO event_delivery (endpoint, state, pos, key, attempts, next_at, reason) \
                 SELECT CAST($1 AS text), 'parked', e.pos, e.key, 0, CAST($2 AS bigint), 'redelivery' FROM {} \
                 WHERE e.event_type IN (SELECT value FROM json_array_elements_text($5::json)) \
                 ON CONFLICT (endpoint, pos) DO UPDATE SET state = excluded.state, attempts = excluded.attempts, \
                 next_at = excluded.next_at, reason = excluded.reason WHERE event_delivery.state = 'dead'",
                logged_between(self.conn, "$3", "$4")
            ),
            (endpoint, at, from_pos, last, json(&event_types)?),
        )?;
        Ok((changed, (last < to_pos).then_some(last)))
    }
}

pub(super) fn progress(conn: Conn<'_>, endpoint: &str) -> Result<Option<EndpointProgress>, StoreError> {
    let sql = "SELECT pos, revision, disabled_at, disabled_reason FROM event_cursors WHERE endpoint = $1";
    one(conn, sql, [endpoint], |row| progress_of(row, 0))
}

fn progress_of(row: &Row<'_>, first: usize) -> Result<EndpointProgress, StoreError> {
    let reason = row.text_or_null(first + 3)?.unwrap_or_default().to_owned();
    Ok(EndpointProgress {
        cursor: row.get(first)?,
        revision: row.get(first + 1)?,
        disabled: row.get::<Option<i64>>(first + 2)?.map(|at| Disabled { at, reason }),
    })
}

/// All that have a cursor, by name.
pub(super) fn standings(conn: Conn<'_>) -> Result<Vec<EndpointStanding>, StoreError> {
    let now = match conn {
        Conn::Sqlite(_) => SQLITE_NOW,
        Conn::Postgres(_) => POSTGRES_NOW,
    };
    let sql = format!(
        "SELECT c.endpoint, l.owner, c.pos, c.revision, c.disabled_at, c.disabled_reason FROM event_cursors c \
         LEFT JOIN event_leases l ON l.endpoint = c.endpoint AND l.lease_until >= {now} ORDER BY c.endpoint"
    );
    let mut records = all(conn, &sql, (), |row| {
        let (endpoint, owner) = (row.get(0)?, server_id(row, 1)?);
        Ok(EndpointStanding { endpoint, progress: progress_of(row, 2)?, owner, parked: 0, dead: 0 })
    })?;
    let counts =
        all(conn, "SELECT endpoint, state, count(*) FROM event_delivery GROUP BY endpoint, state", (), |row| {
            Ok((row.get::<String>(0)?, row.text(1)? == "dead", row.get::<u64>(2)?))
        })?;
    for (endpoint, dead, count) in counts {
        if let Some(record) = records.iter_mut().find(|record| record.endpoint == endpoint) {
            *if dead { &mut record.dead } else { &mut record.parked } = count;
        }
    }
    Ok(records)
}

/// Parked or dead deliveries with their events, by position.
pub(super) fn deliveries(
    conn: Conn<'_>,
    endpoint: &str,
    state: &str,
    limit: u32,
    offset: u64,
) -> Result<Vec<(ParkedDelivery, EventRecord)>, StoreError> {
    let event_of_delivery = match conn {
        Conn::Sqlite(_) => "logged_events e ON e.pos = d.pos",
        Conn::Postgres(_) => "LATERAL logged_between(d.pos, d.pos) e ON TRUE",
    };
    all(
        conn,
        &format!(
            "SELECT {}, d.attempts, d.next_at, d.reason, d.key FROM event_delivery d JOIN {event_of_delivery} \
             WHERE d.endpoint = $1 AND d.state = $2 ORDER BY d.pos LIMIT $3 OFFSET $4",
            event_columns!()
        ),
        (endpoint, state, limit, offset),
        |row| {
            let event = event(row)?;
            let parked = ParkedDelivery {
                endpoint: endpoint.to_owned(),
                pos: event.pos,
                key: row.get(12)?,
                attempts: row.get(9)?,
                next_at: row.get(10)?,
                reason: row.get(11)?,
            };
            Ok((parked, event))
        },
    )
}

pub(super) fn dead_letters(
    conn: Conn<'_>,
    endpoint: &str,
    page: u32,
    size: u32,
) -> Result<Page<(ParkedDelivery, EventRecord)>, StoreError> {
    let count = "SELECT count(*) FROM event_delivery WHERE endpoint = $1 AND state = 'dead'";
    let total = scalar::<u64>(conn, count, [endpoint])?.unwrap_or(0);
    let rows = deliveries(conn, endpoint, "dead", size, offset(page, size))?;
    Ok(Page { rows, total })
}

fn offset(page: u32, size: u32) -> u64 {
    u64::from(page.saturating_sub(1)) * u64::from(size)
}

/// The position that everything older than `at` lies below. Times rise with positions but for corrections of clocks, and what of
/// these lies on the wrong side is found on it.
pub(super) fn pos_at(conn: Conn<'_>, at: i64) -> Result<i64, StoreError> {
    let Some((mut low, last)) = bounds(conn)? else { return Ok(0) };
    let mut high = last + 1;
    let sql = format!("SELECT e.at FROM {}", logged_between(conn, "$1", "$2"));
    while low < high {
        let middle = low + (high - low) / 2;
        match scalar::<i64>(conn, &sql, (middle, middle))? {
            Some(event_at) if event_at < at => low = middle + 1,
            _ => high = middle,
        }
    }
    Ok(low)
}

/// First and last position of the log, which has no gaps; `None`: it is empty.
fn bounds(conn: Conn<'_>) -> Result<Option<(i64, i64)>, StoreError> {
    let bounds = one(conn, "SELECT first, last FROM log_bounds", (), |row| {
        Ok(row.get::<Option<i64>>(0)?.zip(row.get::<Option<i64>>(1)?))
    })?;
    Ok(bounds.flatten())
}

/// Events `e` from one position to another, as a table to select from.
fn logged_between(conn: Conn<'_>, first: &str, last: &str) -> String {
    match conn {
        Conn::Sqlite(_) => format!("(SELECT * FROM logged_events WHERE pos >= {first} AND pos <= {last}) e"),
        Conn::Postgres(_) => format!("logged_between({first}, {last}) e"),
    }
}

/// The log of deliveries to an endpoint, newest first.
pub(super) fn log_of_endpoint(
    conn: Conn<'_>,
    endpoint: &str,
    outcome: Option<DeliveryOutcome>,
    page: u32,
    size: u32,
) -> Result<Page<DeliveryLogRow>, StoreError> {
    let mut condition = "endpoint = $1".to_owned();
    let mut values = vec![Value::Text(endpoint.to_owned().into())];
    if let Some(outcome) = outcome {
        condition += " AND outcome = $2";
        if outcome != DeliveryOutcome::Delivered {
            // The condition of the index for those that failed, which are few.
            condition += " AND outcome <> 'delivered'";
        }
        values.push(outcome.as_str().value());
    }
    log_page(conn, &condition, "id DESC", values, page, size)
}

/// The log of deliveries of an event, in their order.
pub(super) fn log_of_event(conn: Conn<'_>, pos: i64, page: u32, size: u32) -> Result<Page<DeliveryLogRow>, StoreError> {
    log_page(conn, "pos = $1", "id", vec![Value::Int(pos)], page, size)
}

fn log_page(
    conn: Conn<'_>,
    condition: &str,
    order: &str,
    values: Vec<Value<'_>>,
    page: u32,
    size: u32,
) -> Result<Page<DeliveryLogRow>, StoreError> {
    let count =
        format!("SELECT count(*) FROM (SELECT 1 FROM delivery_log WHERE {condition} LIMIT {LOG_TOTAL_MAX}) counted");
    let total = scalar::<u64>(conn, &count, values.as_slice())?.unwrap_or(0);
    let sql = format!(
        "SELECT {} FROM delivery_log WHERE {condition} ORDER BY {order} LIMIT {size} OFFSET {}",
        log_columns!(),
        offset(page, size)
    );
    let rows = all(conn, &sql, values.as_slice(), log_row)?;
    Ok(Page { rows, total })
}

pub(super) fn log_row(row: &Row<'_>) -> Result<DeliveryLogRow, StoreError> {
    let outcome = row.text(9)?;
    Ok(DeliveryLogRow {
        at: row.get(0)?,
        endpoint: row.text(1)?.into(),
        pos: row.get(2)?,
        event_id: row.get(3)?,
        event_type: row.get(4)?,
        key: row.get(5)?,
        attempt: row.get(6)?,
        status: row.get(7)?,
        took_ms: row.get(8)?,
        outcome: DeliveryOutcome::from_word(outcome).ok_or_else(|| row.corrupt(9, outcome))?,
        reason: row.get(10)?,
        instance: row.text_or_null(11)?.map(ServerId::new),
    })
}
