//! The books, compared with what devices saw and with themselves. Everything must have come to rest.

use std::{
    collections::BTreeMap,
    hash::{DefaultHasher, Hash as _, Hasher as _},
};

use super::{
    Record,
    books::{Books, Row},
};

/// A stored settlement, and whether its order has the same totals.
struct Stored {
    order_no: Option<String>,
    business_no: Option<String>,
    agrees: bool,
}

/// Each record that a device was told is stored is stored once, with its totals and for an order, and nothing else is.
pub(crate) fn records_are_stored_once(books: &Books<'_>, records: &[Record]) {
    let mut stored: BTreeMap<[String; 4], Vec<Stored>> = BTreeMap::new();
    for row in books.rows(
        "SELECT s.device_id, s.port_no, s.duration_seconds, s.energy_wh, s.order_no, s.business_no, o.settled_at \
         FROM settlements s LEFT JOIN orders o ON o.order_no = s.order_no \
         AND o.duration_seconds = s.duration_seconds AND o.energy_wh = s.energy_wh AND o.port_no = s.port_no",
    ) {
        let [device_id, port_no, duration, energy, order_no, business_no, settled_at]: [_; 7] = row.try_into().unwrap();
        let totals = [device_id, port_no, duration, energy].map(Option::unwrap);
        let settlement = Stored { order_no, business_no, agrees: settled_at.is_some() };
        stored.entry(totals).or_default().push(settlement);
    }
    for record in records {
        let totals = [
            record.device_id.clone(),
            record.port_no.to_string(),
            record.duration_seconds.to_string(),
            record.energy_wh.to_string(),
        ];
        let is_it = |stored: &&Stored| {
            let order_no = record.order_no.as_ref().is_none_or(|no| stored.order_no.as_deref() == Some(no.as_str()));
            let business_no = record.business_no.map(|no| no.to_string());
            order_no && (business_no.is_none() || stored.business_no == business_no)
        };
        let found: Vec<&Stored> = stored.get(&totals).into_iter().flatten().filter(is_it).collect();
        let agreeing = found.iter().filter(|stored| stored.agrees).count();
        assert_eq!((found.len(), agreeing), (1, 1), "{record:?}\n{}", of_port(books, record));
    }
    let sums = |from: &str| {
        ["count(*)", "sum(duration_seconds)", "sum(energy_wh)"]
            .map(|sum| books.number(&format!("SELECT {sum} FROM {from}")))
    };
    let total = |of: fn(&Record) -> u32| records.iter().map(|record| i64::from(of(record))).sum::<i64>();
    let seen = [
        i64::try_from(records.len()).unwrap(),
        total(|record| record.duration_seconds),
        total(|record| record.energy_wh),
    ];
    assert_eq!(sums("settlements"), seen);
    assert_eq!(sums("orders WHERE settled_at IS NOT NULL"), seen);
}

/// What is stored of a record's port, for a person to read.
fn of_port(books: &Books<'_>, record: &Record) -> String {
    let place = format!("device_id = '{}' AND port_no = {}", record.device_id, record.port_no);
    let order = format!(
        "SELECT 'order', created_at, order_no, status, failure_reason, business_no, start_written_at, settled_at, \
         settlement_match, duration_seconds, energy_wh FROM orders WHERE {place} ORDER BY 2"
    );
    let settlement = format!(
        "SELECT 'settlement', at, order_no, business_no, duration_seconds, energy_wh FROM settlements \
         WHERE {place} ORDER BY 2"
    );
    let command = format!(
        "SELECT 'command', created_at, order_no, kind, state, reason, msg_id, epoch, maybe_written, attempts, \
         written_at, updated_at FROM outbound_queue \
         WHERE order_no IN (SELECT order_no FROM orders WHERE {place}) ORDER BY 2"
    );
    let line = |row: Row| {
        let values: Vec<String> = row.into_iter().map(|value| value.unwrap_or_else(|| "-".to_owned())).collect();
        values.join(" ") + "\n"
    };
    [order, settlement, command].iter().flat_map(|query| books.rows(query)).map(line).collect()
}

/// Positions, and the numbers of each key.
pub(crate) fn events_are_gapless(books: &Books<'_>) {
    assert_eq!(books.events_waiting(), 0, "every event has its place");
    let mut last: BTreeMap<String, u32> = BTreeMap::new();
    let mut last_pos = 0;
    for event in books.events() {
        assert_eq!(event.pos, last_pos + 1, "positions are gapless");
        last_pos = event.pos;
        if event.sequence_no > 0 {
            let before = last.insert(event.key.clone(), event.sequence_no).unwrap_or(0);
            assert_eq!(event.sequence_no, before + 1, "{}", event.key);
        }
    }
    assert!(last_pos > 0);
}

/// Follows the log: which order is active on which port. Gives a digest of the log.
pub(crate) fn orders_live_one_after_the_other(books: &Books<'_>) -> u64 {
    /// Where an order is.
    struct Place {
        port: (String, u16),
        /// The gateway had no part in the charge.
        of_device: bool,
    }
    let mut places: BTreeMap<String, Place> = BTreeMap::new();
    for row in books.rows("SELECT order_no, device_id, port_no, length(device_ref) FROM orders") {
        let [order_no, device_id, port_no, device_ref]: [_; 4] = row.try_into().unwrap();
        let port = (device_id.unwrap(), port_no.unwrap().parse().unwrap());
        places.insert(order_no.unwrap(), Place { port, of_device: device_ref.is_some() });
    }
    let mut digest = DefaultHasher::new();
    let mut active: BTreeMap<(String, u16), String> = BTreeMap::new();
    let mut ended: BTreeMap<String, String> = BTreeMap::new();
    for stored in books.events() {
        let event = stored.event_type;
        (&event, &stored.key, stored.at, &stored.data).hash(&mut digest);
        let Some(order_no) = stored.order_no else { continue };
        let place = places.get(&order_no).expect("an event tells of an order that is stored");
        // The record of a charge the gateway had no part in: its order begins at its end.
        if place.of_device {
            assert!(!active.values().any(|holder| *holder == order_no), "{order_no} of a device holds a port");
            continue;
        }
        match event.as_str() {
            "order.created" => {
                let before = active.insert(place.port.clone(), order_no.clone());
                assert_eq!(before, None, "{order_no} was created while another order held the port");
            }
            "order.timeout" | "order.cancelled" | "order.stopped" | "order.completed" | "order.failed" => {
                let before = active.remove(&place.port);
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
