//! The database, compared with what devices saw and with itself. Everything must have come to rest.

use std::{
    collections::BTreeMap,
    hash::{DefaultHasher, Hash as _, Hasher as _},
};

use chargegate::model::OrderNo;

use super::Record;

/// Each record that a device was told is stored is stored once, with its totals and for an order, and nothing else is.
pub(crate) fn records_are_stored_once(sql: &rusqlite::Connection, records: &[Record]) {
    for record in records {
        let (count, settled): (u32, u32) = sql
            .query_row(
                "SELECT count(*), count(o.settled_at) FROM settlements s LEFT JOIN orders o ON o.order_no = s.order_no \
                 AND o.duration_seconds = s.duration_seconds AND o.energy_wh = s.energy_wh AND o.port_no = s.port_no \
                 WHERE s.device_id = ?1 AND s.port_no = ?2 AND s.duration_seconds = ?3 AND s.energy_wh = ?4 \
                 AND (?5 IS NULL OR s.order_no = ?5) AND (?6 IS NULL OR s.business_no = ?6)",
                (
                    &record.device_id,
                    record.port_no,
                    record.duration_seconds,
                    record.energy_wh,
                    record.order_no.as_ref().map(OrderNo::as_str),
                    record.business_no,
                ),
                |row| Ok((row.get(0)?, row.get(1)?)),
            )
            .unwrap();
        assert_eq!((count, settled), (1, 1), "{record:?}\n{}", of_port(sql, record));
    }
    let sums = |query: &str| -> (i64, i64, i64) {
        sql.query_row(query, [], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?))).unwrap()
    };
    let total = |of: fn(&Record) -> u32| records.iter().map(|record| i64::from(of(record))).sum::<i64>();
    let seen = (
        i64::try_from(records.len()).unwrap(),
        total(|record| record.duration_seconds),
        total(|record| record.energy_wh),
    );
    assert_eq!(sums("SELECT count(*), sum(duration_seconds), sum(energy_wh) FROM settlements"), seen);
    let orders = "SELECT count(*), sum(duration_seconds), sum(energy_wh) FROM orders WHERE settled_at IS NOT NULL";
    assert_eq!(sums(orders), seen);
}

/// What is stored of a record's port, for a person to read.
fn of_port(sql: &rusqlite::Connection, record: &Record) -> String {
    let place = (&record.device_id, record.port_no);
    let mut text = String::new();
    for query in [
        "SELECT 'order', created_at, order_no, status, failure_reason, business_no, start_written_at, settled_at, \
         settlement_match, duration_seconds, energy_wh FROM orders WHERE device_id = ?1 AND port_no = ?2 ORDER BY 2",
        "SELECT 'settlement', at, order_no, business_no, duration_seconds, energy_wh FROM settlements \
         WHERE device_id = ?1 AND port_no = ?2 ORDER BY 2",
        "SELECT 'command', c.created_at, c.order_no, c.kind, c.state, c.reason, c.msg_id, c.epoch, c.maybe_written, \
         c.attempts, c.written_at, c.updated_at FROM outbound_queue c JOIN orders o ON o.order_no = c.order_no \
         WHERE o.device_id = ?1 AND o.port_no = ?2 ORDER BY 2",
    ] {
        let mut statement = sql.prepare(query).unwrap();
        let columns = statement.column_count();
        let mut rows = statement.query(place).unwrap();
        while let Some(row) = rows.next().unwrap() {
            let values: Vec<_> = (0..columns).map(|at| row.get::<_, rusqlite::types::Value>(at).unwrap()).collect();
            text += &format!("{values:?}\n");
        }
    }
    text.replace("Integer", "").replace("Text", "")
}

/// Positions, and the numbers of each key.
pub(crate) fn events_are_gapless(sql: &rusqlite::Connection) {
    let mut statement = sql.prepare("SELECT pos, key, sequence_no FROM events ORDER BY pos").unwrap();
    let mut rows = statement.query([]).unwrap();
    let mut last: BTreeMap<String, u32> = BTreeMap::new();
    let mut last_pos = 0;
    while let Some(row) = rows.next().unwrap() {
        let (pos, key, sequence_no): (i64, String, u32) =
            (row.get(0).unwrap(), row.get(1).unwrap(), row.get(2).unwrap());
        assert_eq!(pos, last_pos + 1, "positions are gapless");
        last_pos = pos;
        if sequence_no > 0 {
            let before = last.insert(key.clone(), sequence_no).unwrap_or(0);
            assert_eq!(sequence_no, before + 1, "{key}");
        }
    }
    assert!(last_pos > 0);
}

/// Follows the log: which order is active on which port. Gives a digest of the log.
pub(crate) fn orders_live_one_after_the_other(sql: &rusqlite::Connection) -> u64 {
    let mut digest = DefaultHasher::new();
    let mut statement = sql
        .prepare(
            "SELECT e.event_type, e.key, e.at, e.order_no, e.data, o.device_id, o.port_no, o.device_ref IS NOT NULL FROM events e \
             LEFT JOIN orders o ON o.order_no = e.order_no ORDER BY e.pos",
        )
        .unwrap();
    let mut rows = statement.query([]).unwrap();
    let mut active: BTreeMap<(String, u16), String> = BTreeMap::new();
    let mut ended: BTreeMap<String, String> = BTreeMap::new();
    while let Some(row) = rows.next().unwrap() {
        let (event, key, at, data): (String, String, i64, String) =
            (row.get(0).unwrap(), row.get(1).unwrap(), row.get(2).unwrap(), row.get(4).unwrap());
        (&event, &key, at, &data).hash(&mut digest);
        let Some(order_no) = row.get::<_, Option<String>>(3).unwrap() else { continue };
        // The record of a charge the gateway had no part in: its order begins at its end.
        if row.get::<_, bool>(7).unwrap() {
            assert!(!active.values().any(|holder| *holder == order_no), "{order_no} of a device holds a port");
            continue;
        }
        let place = (row.get(5).unwrap(), row.get(6).unwrap());
        match event.as_str() {
            "order.created" => {
                let before = active.insert(place, order_no.clone());
                assert_eq!(before, None, "{order_no} was created while another order held the port");
            }
            "order.timeout" | "order.cancelled" | "order.stopped" | "order.completed" | "order.failed" => {
                let before = active.remove(&place);
                assert_eq!(before.as_ref(), Some(&order_no), "{event}");
                assert_eq!(ended.insert(order_no.clone(), event.clone()), None, "{order_no} ended twice");
            }
            "order.settled" => {}
            _ => {
                let end = ended.get(&order_no);
                assert!(!event.starts_with("order.") || end.is_none(), "{event} after {end:?} of {order_no}");
            }
        }
    }
    assert!(active.is_empty(), "{active:?}");
    digest.finish()
}
