//! What the books say after a storm, compared with what third parties and devices were told.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::Told;
use crate::witness::{Record, Shared, audit, books::Books};

/// What has not come to rest. A written command whose reply nobody heard is given up much later.
pub(crate) fn what_is_open<'a>(books: &Books<'_>, seen: impl Iterator<Item = &'a Shared>) -> Option<String> {
    let loud = seen.filter(|seen| !seen.lock().is_quiet()).count();
    let orders = books.number("SELECT count(*) FROM orders WHERE status IN (0, 1, 2, 8, 9, 10)");
    let commands = books.rows(
        "SELECT id, device_id, order_no, kind, state, epoch, attempts FROM outbound_queue \
         WHERE state IN ('queued', 'claimed')",
    );
    let events = books.events_waiting();
    let open = format!("{loud} devices, {orders} orders, {events} events, commands {commands:?} are open");
    (loud > 0 || orders > 0 || events > 0 || !commands.is_empty()).then_some(open)
}

/// Everything has come to rest, and the gateways have stopped.
pub(crate) fn check(books: &Books<'_>, seen: &BTreeMap<String, Shared>, told: &Told) {
    let faults: Vec<_> = seen.values().flat_map(|seen| seen.lock().faults.clone()).collect();
    assert!(faults.is_empty(), "{faults:#?}");
    let records: Vec<Record> = seen.values().flat_map(|seen| seen.lock().acknowledged.clone()).collect();
    let started: usize = seen.values().map(|seen| seen.lock().started).sum();
    println!(
        "{} orders, {started} charges, {} commands, {} events shown",
        told.orders.len(),
        told.commands.len(),
        told.events.len()
    );
    assert_eq!(records.len(), started, "each charge at a device has one record");
    assert!(started > 30, "the storm was a breeze: {started} charges");
    for row in books.rows("SELECT DISTINCT device_id FROM settlements WHERE order_no IS NULL") {
        let device = row.into_iter().flatten().next().unwrap();
        println!("{device} charged without an order:");
        seen[&device].lock().trace().for_each(|line| println!("{line}"));
    }
    audit::records_are_stored_once(books, &records);
    audit::events_are_gapless(books);
    audit::orders_live_one_after_the_other(books);
    orders_are_stored(books, told);
    commands_are_stored(books, seen, told);
    events_are_as_shown(books, told);
    for (what, query) in [
        (
            "two start commands for one order",
            "SELECT order_no FROM outbound_queue WHERE kind = 'start' GROUP BY order_no HAVING count(*) > 1",
        ),
        ("two settlements for one order", "SELECT order_no FROM settlements GROUP BY order_no HAVING count(*) > 1"),
        (
            "a request with an idempotency key took effect twice",
            "SELECT request_id FROM orders WHERE request_id LIKE 'party-%' GROUP BY request_id HAVING count(*) > 1",
        ),
        ("a settlement in quarantine", "SELECT device_id, error FROM settlement_quarantine"),
    ] {
        let found = books.rows(query);
        assert!(found.is_empty(), "{what}: {found:?}");
    }
}

fn orders_are_stored(books: &Books<'_>, told: &Told) {
    let rows = books.rows("SELECT order_no, device_id, port_no FROM orders");
    let stored: BTreeMap<String, (String, u64)> = rows
        .into_iter()
        .map(|row| {
            let [order_no, device_id, port_no] = <[_; 3]>::try_from(row).unwrap().map(Option::unwrap);
            (order_no, (device_id, port_no.parse().unwrap()))
        })
        .collect();
    for (order_no, place) in &told.orders {
        assert_eq!(stored.get(order_no), Some(place), "{order_no}");
    }
}

/// Each is stored; each that is said to be done was seen by its device.
fn commands_are_stored(books: &Books<'_>, seen: &BTreeMap<String, Shared>, told: &Told) {
    let rows = books.rows("SELECT id, device_id, state, msg_id FROM outbound_queue WHERE kind = 'locate'");
    let mut stored = BTreeMap::new();
    for row in rows {
        let [id, device_id, state, msg_id] = <[_; 4]>::try_from(row).unwrap().map(Option::unwrap);
        stored.insert(id.parse::<u64>().unwrap(), (device_id, state, msg_id.parse::<u16>().unwrap()));
    }
    for (id, device_id) in &told.commands {
        let (stored_for, ..) = stored.get(id).unwrap_or_else(|| panic!("command {id} of {device_id} is missing"));
        assert_eq!(stored_for, device_id, "{id}");
    }
    for (id, (device_id, state, msg_id)) in &stored {
        let was_seen = seen[device_id].lock().located.contains(msg_id);
        assert!(state != "acked" || was_seen, "command {id} is acked, and {device_id} never saw it");
    }
    let acked = stored.values().filter(|(_, state, _)| state == "acked").count();
    assert!(acked > 0, "no command was done: {stored:?}");
}

fn events_are_as_shown(books: &Books<'_>, told: &Told) {
    let stored: BTreeMap<i64, _> = books.events().into_iter().map(|event| (event.pos, event)).collect();
    for (pos, shown) in &told.events {
        let event = stored.get(pos).unwrap_or_else(|| panic!("{shown} is missing"));
        let data: Value = serde_json::from_str(&event.data).unwrap();
        let stored = [json!(event.event_id), json!(event.event_type), json!(event.sequence_no), data];
        assert_eq!(stored, ["event_id", "event_type", "sequence_no", "data"].map(|field| shown[field].clone()));
    }
}
