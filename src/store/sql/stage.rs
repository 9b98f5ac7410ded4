//! What a transaction on PostgreSQL has read and not yet written.
//!
//! A round trip costs more than most statements. So the rows a batch of jobs needs are read in a few statements at its start
//! ([`super::prefetch`]), jobs find them here, and what they write waits here until a statement or two write it, from arrays.
//!
//! Whoever changes anything of a device holds the lock of its row, so what was read of it stays true until the commit. A statement
//! that goes to the database directly has everything written before it; one that writes also makes everything read before
//! forgotten, since it may have changed it. The embedded store has no round trips and does without.

use std::{borrow::Cow, fmt::Write as _};

use rustc_hash::{FxHashMap, FxHashSet};

use super::{
    bind::BindRow,
    conn::Value,
    rows::{CommandRow, Counters},
};
use crate::{
    model::{CardNo, DeviceId, Order, OrderNo},
    store::{Earlier, Idempotency},
};

/// A write that can wait, as one row and as many.
#[derive(Debug)]
pub(in crate::store) struct Bulk {
    /// For one row.
    pub(super) each: &'static str,
    /// The same with an array for each value.
    pub(super) many: &'static str,
    /// Writes of one rank go to the database as one statement, in which none sees what another does: no two of a rank write the same
    /// row. Lower ranks are made first: a port is given up before the next order takes it.
    pub(super) rank: u8,
    /// The first value names the row: a later write of it replaces an earlier one.
    pub(super) keyed: bool,
}

/// Rows that wait for one statement.
struct Group {
    bulk: &'static Bulk,
    rows: Vec<Vec<Value<'static>>>,
    /// Keyed: where the row with this first value is.
    places: FxHashMap<Value<'static>, usize>,
}

/// Rows read, and rows to write.
#[derive(Default)]
pub(in crate::store) struct Stage {
    groups: Vec<Group>,
    pub(super) known: Known,
}

/// Rows as they are, or will be with what waits to be written. An absent entry is not known; `None` is known not to exist.
#[derive(Default)]
pub(super) struct Known {
    pub(super) orders: FxHashMap<OrderNo, Option<Order>>,
    /// All orders that hold a port, or still show on it.
    pub(super) ports: FxHashMap<(DeviceId, u16), Vec<OrderNo>>,
    pub(super) commands: FxHashMap<i64, CommandRow>,
    /// All commands of an order.
    pub(super) commands_of: FxHashMap<OrderNo, Vec<i64>>,
    /// All commands of a device that have not come to an end.
    pub(super) unfinished: FxHashMap<DeviceId, Vec<i64>>,
    pub(super) devices: FxHashMap<DeviceId, Option<Counters>>,
    /// AP3000 records by their key, and the order each is of.
    pub(super) settled: FxHashMap<Vec<u8>, Option<OrderNo>>,
    pub(super) answers: Vec<(Idempotency, Option<Earlier>)>,
    /// Cards that are not registered.
    pub(super) foreign_cards: FxHashSet<CardNo>,
    /// What a bind asks of its device; taken by the first bind, which changes it.
    pub(super) binds: FxHashMap<DeviceId, BindRow>,
    /// All orders of a device that hold a port, or still show on it.
    pub(super) held: FxHashMap<DeviceId, Vec<OrderNo>>,
}

impl Known {
    /// An order is as `order` says from now on: it holds its port, or does not.
    pub(super) fn hold(&mut self, order: &Order, holds: bool) {
        let port = self.ports.get_mut(&(order.device_id, order.port_no));
        for holders in port.into_iter().chain(self.held.get_mut(&order.device_id)) {
            holders.retain(|no| *no != order.order_no);
            if holds {
                holders.push(order.order_no);
            }
        }
    }
}

impl Stage {
    /// Whether anything waits to be written.
    pub(in crate::store) fn is_dirty(&self) -> bool {
        !self.groups.is_empty()
    }

    /// What was read may not be true any more.
    pub(in crate::store) fn forget(&mut self) {
        debug_assert!(!self.is_dirty(), "nothing is forgotten before it is written");
        self.known = Known::default();
    }

    /// Keeps a row until [`Stage::take`].
    pub(super) fn push(&mut self, bulk: &'static Bulk, row: Vec<Value<'static>>) {
        let place = self.groups.iter().position(|group| std::ptr::eq(group.bulk, bulk));
        let place = place.unwrap_or_else(|| {
            self.groups.push(Group { bulk, rows: Vec::new(), places: FxHashMap::default() });
            self.groups.len() - 1
        });
        let Some(group) = self.groups.get_mut(place) else { return };
        if bulk.keyed
            && let Some(key) = row.first()
        {
            if let Some(old) = group.places.get(key).and_then(|place| group.rows.get_mut(*place)) {
                *old = row;
                return;
            }
            group.places.insert(key.clone(), group.rows.len());
        }
        group.rows.push(row);
    }

    /// Puts `values` over the first ones of the row with this key that waits to be written by `bulk`; false: none waits. The key is the
    /// first of them.
    pub(super) fn amend(&mut self, bulk: &'static Bulk, values: &[Value<'static>]) -> bool {
        let Some(group) = self.groups.iter_mut().find(|group| std::ptr::eq(group.bulk, bulk)) else { return false };
        let place = values.first().and_then(|key| group.places.get(key));
        let Some(row) = place.and_then(|place| group.rows.get_mut(*place)) else { return false };
        for (old, new) in row.iter_mut().zip(values) {
            *old = new.clone();
        }
        true
    }

    /// Whether a row with this key waits to be written by `bulk`.
    pub(super) fn waits(&self, bulk: &'static Bulk, key: &Value<'static>) -> bool {
        self.groups.iter().any(|group| std::ptr::eq(group.bulk, bulk) && group.places.contains_key(key))
    }

    /// Takes what waits, as statements with an array for each value, in the order they must be made: one for each rank.
    pub(in crate::store) fn take(&mut self) -> Vec<(Cow<'static, str>, Vec<Value<'static>>)> {
        let mut groups = std::mem::take(&mut self.groups);
        // Also within a rank: the same tables make the same text, whatever came first, and it is prepared once.
        groups.sort_by_key(|group| (group.bulk.rank, group.bulk.many));
        let mut statements: Vec<(Cow<'static, str>, Vec<Value<'static>>)> = Vec::new();
        let mut last = None;
        for Group { bulk, rows, .. } in groups {
            let values = columns(rows);
            match statements.last_mut().filter(|_| last == Some(bulk.rank)) {
                Some((sql, before)) => {
                    *sql = Cow::Owned(both(sql, bulk.many, before.len()));
                    before.extend(values);
                }
                None => statements.push((Cow::Borrowed(bulk.many), values)),
            }
            last = Some(bulk.rank);
        }
        statements
    }
}

/// One statement that does what two do. The values of `second` come behind the `taken` ones of the first.
fn both(first: &str, second: &str, taken: usize) -> String {
    // What is one of several already goes on.
    let mut sql = match first.rsplit_once(MAIN) {
        Some((others, main)) => format!("{others}, w{taken} AS ({main}){MAIN}"),
        None => format!("WITH w{taken} AS ({first}){MAIN}"),
    };
    let mut parts = second.split('$');
    sql.push_str(parts.next().unwrap_or_default());
    for part in parts {
        let digits = part.bytes().take_while(u8::is_ascii_digit).count();
        let (number, rest) = part.split_at(digits);
        let number = number.parse::<usize>().unwrap_or_default() + taken;
        write!(sql, "${number}{rest}").expect("writing to a String does not fail");
    }
    sql
}

/// Parts the statement itself from those that it makes beside.
const MAIN: &str = "\n";

/// Rows to columns.
fn columns(rows: Vec<Vec<Value<'static>>>) -> Vec<Value<'static>> {
    let mut columns: Vec<Vec<Value<'static>>> = Vec::new();
    let count = rows.len();
    for row in rows {
        if columns.is_empty() {
            columns.resize_with(row.len(), || Vec::with_capacity(count));
        }
        for (column, value) in columns.iter_mut().zip(row) {
            column.push(value);
        }
    }
    columns.into_iter().map(Value::Array).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    static SECOND: Bulk = Bulk { each: "", many: "second", rank: 2, keyed: true };
    static FIRST: Bulk = Bulk { each: "", many: "first", rank: 1, keyed: false };

    #[test]
    fn writes_are_made_by_rank_and_the_last_one_of_a_row_counts() {
        let mut stage = Stage::default();
        assert!(!stage.is_dirty() && !stage.amend(&SECOND, &[Value::Int(1)]));
        stage.push(&SECOND, vec![Value::Int(1), Value::Bool(false)]);
        stage.push(&FIRST, vec![Value::Int(9)]);
        stage.push(&SECOND, vec![Value::Int(2), Value::Bool(false)]);
        stage.push(&SECOND, vec![Value::Int(1), Value::Bool(true)]);
        stage.push(&FIRST, vec![Value::Int(9)]);
        assert!(stage.waits(&SECOND, &Value::Int(2)) && !stage.waits(&SECOND, &Value::Int(3)));
        assert!(stage.amend(&SECOND, &[Value::Int(2), Value::Bool(true)]) && !stage.amend(&SECOND, &[Value::Int(3)]));
        let taken = stage.take();
        assert_eq!(taken.iter().map(|(sql, _)| &**sql).collect::<Vec<_>>(), ["first", "second"]);
        assert_eq!(taken[0].1, [Value::Array(vec![Value::Int(9), Value::Int(9)])]);
        let keys = Value::Array(vec![Value::Int(1), Value::Int(2)]);
        assert_eq!(taken[1].1, [keys, Value::Array(vec![Value::Bool(true), Value::Bool(true)])]);
        assert!(!stage.is_dirty());
    }

    #[test]
    fn writes_of_one_rank_are_one_statement_with_values_of_its_own() {
        static ONE: Bulk = Bulk { each: "", many: "a $1, $2, $10", rank: 1, keyed: false };
        static TWO: Bulk = Bulk { each: "", many: "b $1", rank: 1, keyed: false };
        static THREE: Bulk = Bulk { each: "", many: "c $2, $1", rank: 1, keyed: false };
        let mut stage = Stage::default();
        // In whatever order they come.
        stage.push(&THREE, vec![Value::Int(4), Value::Int(5)]);
        stage.push(&SECOND, vec![Value::Int(6)]);
        stage.push(&ONE, vec![Value::Int(1), Value::Int(2)]);
        stage.push(&TWO, vec![Value::Int(3)]);
        let values = |from: i64, to: i64| (from..=to).map(|n| Value::Array(vec![Value::Int(n)])).collect::<Vec<_>>();
        let text = "WITH w2 AS (a $1, $2, $10), w3 AS (b $3)\nc $5, $4";
        assert_eq!(stage.take(), [(text.into(), values(1, 5)), ("second".into(), values(6, 6))]);
        stage.push(&THREE, vec![Value::Int(1), Value::Int(2)]);
        assert_eq!(stage.take(), [("c $2, $1".into(), values(1, 2))]);
    }
}
