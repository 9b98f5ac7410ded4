//! Queries for what is kept of one order: bounded, and each by an index.
//!
//! Settlements of AP3000 are found by the key they are stored under, so that their table needs no index for this: it would be
//! written with every one of them. Those of BKV/GN have no key, and an index of their own.

use super::{
    conn::{Conn, Row, all},
    endpoint::{log_columns, log_row},
    event::json,
    row::{order_no_or_none, server_id},
    rows::{command_row, command_row_columns, request_columns},
};
use crate::{
    model::{DeviceId, Order, OrderNo, Origin},
    store::{
        DeliveryLogRow, EventRecord, FrameFilter, FrameRecord, OrderCommand, OrderHistory, OrderWish, RequestRecord,
        SettlementRecord, StoreError, WaitingDelivery,
    },
};

/// Rows of most lists.
const ROWS_MAX: usize = OrderHistory::ROWS_MAX;
/// Settlements of an order, and orphans near it.
const SETTLEMENTS_MAX: u32 = 20;
/// AP3000 start modes of a device's own records: card, code, and what is not known yet.
const OWN_START_MODES: [u8; 4] = [0, 3, 2, 4];
/// AP3000 start mode of orders made by the server.
const ONLINE: u8 = 1;

/// What is kept of an order, whose events are given.
pub(super) fn history(
    conn: Conn<'_>,
    order: &Order,
    events: Vec<EventRecord>,
    between: (i64, i64),
) -> Result<OrderHistory, StoreError> {
    let mut settlements = settlements(conn, order)?;
    settlements.extend(orphans(conn, order, between)?);
    // An event without a place in the log yet was delivered to nobody.
    let positions: Vec<i64> = events.iter().map(|event| event.pos).filter(|pos| *pos > 0).collect();
    let positions = json(&positions)?;
    Ok(OrderHistory {
        requests: requests(conn, order.order_no)?,
        commands: commands(conn, order.order_no)?,
        settlements,
        events,
        deliveries: deliveries(conn, &positions)?,
        waiting: waiting(conn, &positions)?,
    })
}

/// Requests that the order accepted, oldest first.
fn requests(conn: Conn<'_>, order_no: OrderNo) -> Result<Vec<RequestRecord>, StoreError> {
    all(
        conn,
        concat!("SELECT ", request_columns!(), " FROM order_requests WHERE order_no = $1 ORDER BY id LIMIT $2"),
        (order_no.as_str(), ROWS_MAX),
        |row| {
            let wish = row.text(1)?;
            Ok(RequestRecord {
                wish: OrderWish::from_word(wish).ok_or_else(|| row.corrupt(1, wish))?,
                request_id: row.get(2)?,
                api_key: row.get(3)?,
                idempotency_key: row.get(4)?,
                client_ip: row.get(5)?,
                instance: server_id(row, 6)?,
                at: row.get(7)?,
            })
        },
    )
}

/// Commands of the order, oldest first.
fn commands(conn: Conn<'_>, order_no: OrderNo) -> Result<Vec<OrderCommand>, StoreError> {
    let rows = all(
        conn,
        concat!("SELECT ", command_row_columns!(), " FROM outbound_queue WHERE order_no = $1 ORDER BY id LIMIT $2"),
        (order_no.as_str(), ROWS_MAX),
        command_row,
    )?;
    let command = |row: super::rows::CommandRow| {
        let (msg_id, epoch, maybe_written) = (row.msg_id, row.epoch, row.maybe_written);
        OrderCommand { record: row.record(), msg_id, epoch, maybe_written }
    };
    Ok(rows.into_iter().map(command).collect())
}

/// Frames of a device, oldest first.
pub(super) fn frames(conn: Conn<'_>, filter: &FrameFilter) -> Result<Vec<FrameRecord>, StoreError> {
    const ANY_ID: &str = "SELECT id, at, direction, command, msg_id, raw, epoch, instance FROM cmd_log \
         WHERE device_id = $1 AND at >= $2 AND at <= $3 \
         AND command IN (SELECT CAST(value AS integer) FROM json_array_elements_text($4::json)) ORDER BY at, id LIMIT $5";
    const THESE_IDS: &str = "SELECT id, at, direction, command, msg_id, raw, epoch, instance FROM cmd_log \
         WHERE device_id = $1 AND at >= $2 AND at <= $3 \
         AND command IN (SELECT CAST(value AS integer) FROM json_array_elements_text($4::json)) \
         AND msg_id IN (SELECT CAST(value AS bigint) FROM json_array_elements_text($6::json)) ORDER BY at, id LIMIT $5";
    let FrameFilter { device_id, between: (from, to), commands, msg_ids, limit } = filter;
    let (device_id, commands) = (device_id.to_string(), json(commands)?);
    match msg_ids {
        None => all(conn, ANY_ID, (device_id, from, to, commands, limit), frame),
        Some(ids) => all(conn, THESE_IDS, (device_id, from, to, commands, limit, json(ids)?), frame),
    }
}

fn frame(row: &Row<'_>) -> Result<FrameRecord, StoreError> {
    Ok(FrameRecord {
        id: row.get(0)?,
        at: row.get(1)?,
        up: row.text(2)? == "up",
        command: row.get(3)?,
        msg_id: row.get(4)?,
        raw: row.get(5)?,
        epoch: row.get(6)?,
        instance: server_id(row, 7)?,
    })
}

/// Columns in the order [`settlement`] reads them.
macro_rules! settlement_columns {
    () => {
        "id, order_no, port_no, business_no, duration_seconds, energy_wh, amount_cent, raw, at"
    };
}

fn settlement(row: &Row<'_>) -> Result<SettlementRecord, StoreError> {
    Ok(SettlementRecord {
        id: row.get(0)?,
        order_no: order_no_or_none(row, 1)?,
        port_no: row.get(2)?,
        business_no: row.get(3)?,
        duration_seconds: row.get(4)?,
        energy_wh: row.get(5)?,
        amount_cent: row.get(6)?,
        raw: row.get(7)?,
        at: row.get(8)?,
    })
}

/// Settlements of the order.
fn settlements(conn: Conn<'_>, order: &Order) -> Result<Vec<SettlementRecord>, StoreError> {
    let no = order.order_no.as_str();
    let DeviceId::Ap3000(_) = order.device_id else {
        return all(
            conn,
            concat!(
                "SELECT ",
                settlement_columns!(),
                " FROM settlements WHERE key IS NULL AND order_no = $1 ORDER BY id LIMIT $2"
            ),
            (no, SETTLEMENTS_MAX),
            settlement,
        );
    };
    let (modes, reference) = match order.origin {
        Origin::Api => (&[ONLINE][..], no.as_bytes()),
        Origin::Device => (&OWN_START_MODES[..], order.device_ref.as_deref().unwrap_or_default()),
    };
    let device = order.device_id.to_string().into_bytes();
    let port = u8::try_from(order.port_no.saturating_sub(1)).unwrap_or(u8::MAX);
    let mut found = Vec::new();
    for mode in modes {
        found.extend(by_key(conn, no, &[&device[..], &[port, *mode], reference].concat())?);
    }
    if found.is_empty() && order.settled_at.is_some() {
        // A record that named the order with another port than the order's.
        found = by_key(conn, no, &device)?;
    }
    Ok(found)
}

/// Settlements of the order whose keys begin like this.
fn by_key(conn: Conn<'_>, order_no: &str, begin: &[u8]) -> Result<Vec<SettlementRecord>, StoreError> {
    // No key has this many bytes behind its device.
    let end = [begin, &[u8::MAX; 32]].concat();
    all(
        conn,
        concat!(
            "SELECT ",
            settlement_columns!(),
            " FROM settlements WHERE key >= $1 AND key <= $2 AND order_no = $3 ORDER BY id LIMIT $4"
        ),
        (begin, end, order_no, SETTLEMENTS_MAX),
        settlement,
    )
}

/// Settlements on the order's port for which no order was found.
fn orphans(conn: Conn<'_>, order: &Order, (from, to): (i64, i64)) -> Result<Vec<SettlementRecord>, StoreError> {
    all(
        conn,
        concat!(
            "SELECT ",
            settlement_columns!(),
            " FROM settlements WHERE device_id = $1 AND port_no = $2 AND at >= $3 AND at <= $4 AND order_no IS NULL \
             ORDER BY at, id LIMIT $5"
        ),
        (order.device_id.to_string(), order.port_no, from, to, SETTLEMENTS_MAX),
        settlement,
    )
}

/// Attempts to deliver these events, oldest first.
fn deliveries(conn: Conn<'_>, positions: &str) -> Result<Vec<DeliveryLogRow>, StoreError> {
    all(
        conn,
        concat!(
            "SELECT ",
            log_columns!(),
            " FROM delivery_log WHERE pos IN (SELECT CAST(value AS bigint) FROM json_array_elements_text($1::json)) \
             ORDER BY at, id LIMIT $2"
        ),
        (positions, ROWS_MAX),
        log_row,
    )
}

/// Which of these events wait for which endpoints, or were given up.
fn waiting(conn: Conn<'_>, positions: &str) -> Result<Vec<WaitingDelivery>, StoreError> {
    all(
        conn,
        "SELECT endpoint, state, pos, attempts, next_at, reason FROM event_delivery \
         WHERE pos IN (SELECT CAST(value AS bigint) FROM json_array_elements_text($1::json)) ORDER BY pos, endpoint LIMIT $2",
        (positions, ROWS_MAX),
        |row| {
            Ok(WaitingDelivery {
                endpoint: row.get(0)?,
                dead: row.text(1)? == "dead",
                pos: row.get(2)?,
                attempts: row.get(3)?,
                next_at: row.get(4)?,
                reason: row.get(5)?,
            })
        },
    )
}
