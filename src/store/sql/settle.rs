//! Settlements: which order takes one, and what has been stored before.
//!
//! - AP3000: by order number; a record without an order makes one, already ended. A record's key is stored once.
//! - BKV/GN, whose numbers repeat: the open order with the number; else the newest unsettled one with it in
//!   `orders.match_window`; else the newest with a start that was (or may have been) written and no number whose times fit;
//!   else an orphan row and an alarm.

use super::{
    apply::Tx,
    conn::{one, run, scalar},
    order::{Cause, Totals},
    row::{order, order_columns},
    rows::SettlementRow,
};
use crate::{
    gateway::{
        order::{End, Event, Verdict},
        settlement::{ap3000_end, bkv_end},
    },
    model::{ChargeMode, ChargeSpec, EventType, Order, OrderNo, OrderStatus, Origin},
    protocol::bkv::status::{EndFacts, HoleStatus},
    store::{Settled, Settlement, SettlementEnd, SettlementKey, StoreError, payload::Alarm},
};

/// A charge may seem this much longer than the time since its start was written: minutes are rounded.
const FIT_SLACK_MS: i64 = 120_000;
/// Order numbers tried for a record without an order.
pub(super) const NUMBER_TRIES_MAX: u32 = 64;
/// AP3000 start mode of orders made by the server.
pub(super) const ONLINE: u8 = 1;

/// What was found for a BKV/GN settlement.
enum Match {
    Order(Box<Order>, &'static str),
    Replay(Box<Order>),
    None,
}

impl Tx<'_> {
    pub(super) fn settle(&mut self, settlement: &Settlement) -> Result<Settled, StoreError> {
        match settlement.key {
            SettlementKey::Ap3000 { start_mode, order_ref, .. } => {
                self.settle_ap3000(settlement, start_mode, order_ref)
            }
            SettlementKey::Bkv { business_no, .. } => self.settle_bkv(settlement, business_no),
        }
    }

    fn settle_ap3000(
        &mut self,
        settlement: &Settlement,
        start_mode: u8,
        order_ref: [u8; 16],
    ) -> Result<Settled, StoreError> {
        let key = key_bytes(settlement);
        let replay = self.settled_as(&key)?;
        if let Some(order_no) = replay {
            return Ok(replayed(settlement, self.find_order(order_no)?));
        }
        let named = OrderNo::from_bytes(order_ref).filter(|_| start_mode == ONLINE);
        let order = match named {
            Some(order_no) => self.find_order(order_no)?.filter(|order| order.device_id == settlement.device_id),
            None => None,
        };
        let settled = match order {
            Some(order) => self.settle_order(settlement, order, None, "exact")?,
            None => self.settle_without_order(settlement, order_ref)?,
        };
        self.insert_settlement(settlement, Some(&key), settled.order.as_ref())?;
        Ok(settled)
    }

    fn settle_bkv(&mut self, settlement: &Settlement, business_no: u16) -> Result<Settled, StoreError> {
        match self.match_bkv(settlement, business_no)? {
            Match::Replay(order) => Ok(replayed(settlement, Some(*order))),
            Match::Order(order, matched) => {
                let missing = (business_no != 0 && order.business_no.is_none()).then_some(business_no);
                let settled = self.settle_order(settlement, *order, missing, matched)?;
                self.insert_settlement(settlement, None, settled.order.as_ref())?;
                Ok(settled)
            }
            Match::None => {
                let stored = !self.is_known_orphan(settlement, business_no)?;
                if stored {
                    self.insert_settlement(settlement, None, None)?;
                    let alarm = Alarm {
                        device_id: settlement.device_id,
                        port_no: settlement.port_no,
                        order_no: None,
                        reason: "settlement_without_order",
                        detail: None,
                    };
                    self.alarm(&alarm, settlement.at)?;
                }
                Ok(Settled { stored, ..replayed(settlement, None) })
            }
        }
    }

    fn match_bkv(&self, settlement: &Settlement, business_no: u16) -> Result<Match, StoreError> {
        let device_id = settlement.device_id.to_string();
        let place = (&device_id, settlement.port_no, business_no, settlement.at - self.limits.match_window);
        if business_no != 0 {
            let open = one(
                self.conn,
                concat!(
                    "SELECT ",
                    order_columns!(),
                    " FROM orders WHERE device_id = $1 AND port_no = $2 AND business_no = $3 AND is_active = TRUE",
                ),
                (&device_id, settlement.port_no, business_no),
                order,
            )?;
            if let Some(order) = open {
                return Ok(Match::Order(Box::new(order), "exact"));
            }
            // Checked before older unsettled orders: the number of one of them may have come round again, and the resend of a
            // stored settlement must not settle it.
            let newest = one(
                self.conn,
                concat!(
                    "SELECT ",
                    order_columns!(),
                    " FROM orders WHERE device_id = $1 AND port_no = $2 AND created_at >= $4 AND business_no = $3 \
                     AND settled_at IS NOT NULL ORDER BY created_at DESC, order_no DESC LIMIT 1"
                ),
                place,
                order,
            )?;
            if let Some(order) = newest.filter(|order| has_totals(order, settlement)) {
                return Ok(Match::Replay(Box::new(order)));
            }
            let recent = one(
                self.conn,
                concat!(
                    "SELECT ",
                    order_columns!(),
                    " FROM orders WHERE device_id = $1 AND port_no = $2 AND created_at >= $4 AND business_no = $3 \
                     AND settled_at IS NULL ORDER BY created_at DESC, order_no DESC LIMIT 1"
                ),
                place,
                order,
            )?;
            if let Some(order) = recent {
                return Ok(Match::Order(Box::new(order), "recent"));
            }
        }
        let duration_ms = i64::from(settlement.duration_seconds) * 1000;
        // A crash may come between the write of a start and the record of it: one that was claimed, and is not known to have
        // stayed unwritten, may have been written from its creation on.
        let inferred = one(
            self.conn,
            concat!(
                "SELECT ",
                order_columns!(),
                " FROM orders WHERE device_id = $1 AND port_no = $2 AND created_at >= $4 AND business_no IS NULL \
                 AND settled_at IS NULL AND coalesce(start_written_at, (SELECT min(q.created_at) \
                 FROM outbound_queue q WHERE q.order_no = orders.order_no AND q.kind = 'start' AND q.epoch IS NOT NULL \
                 AND coalesce(q.reason, '') NOT IN ('not_written_in_time', 'stopped_before_start'))) <= $3 \
                 ORDER BY created_at DESC, order_no DESC LIMIT 1"
            ),
            (
                &device_id,
                settlement.port_no,
                settlement.at - (duration_ms - FIT_SLACK_MS).max(0),
                settlement.at - self.limits.match_window,
            ),
            order,
        )?;
        Ok(inferred.map_or(Match::None, |order| Match::Order(Box::new(order), "inferred")))
    }

    fn is_known_orphan(&self, settlement: &Settlement, business_no: u16) -> Result<bool, StoreError> {
        let id: Option<i64> = scalar(
            self.conn,
            "SELECT id FROM settlements WHERE device_id = $1 AND port_no = $2 AND at >= $6 AND order_no IS NULL \
             AND business_no = $3 AND duration_seconds = $4 AND energy_wh = $5",
            (
                settlement.device_id.to_string(),
                settlement.port_no,
                business_no,
                settlement.duration_seconds,
                settlement.energy_wh,
                settlement.at - self.limits.match_window,
            ),
        )?;
        Ok(id.is_some())
    }

    fn settle_order(
        &mut self,
        settlement: &Settlement,
        mut order: Order,
        business_no: Option<u16>,
        matched: &'static str,
    ) -> Result<Settled, StoreError> {
        let (end, reason, reason_raw) = end_of(settlement, Some(&order));
        let totals = Totals {
            duration_seconds: settlement.duration_seconds,
            energy_wh: settlement.energy_wh,
            amount_cent: settlement.amount_cent,
            reason,
            reason_raw,
            matched,
        };
        let cause =
            Cause { epoch: settlement.epoch, totals: Some(totals), ..Cause::of(Event::Settled(end), settlement.at) };
        let outcome = self.handle(&mut order, business_no, &cause)?;
        Ok(Settled {
            key: settlement.key,
            stored: matches!(outcome.verdict, Verdict::Step(_)),
            order: outcome.order,
            from: Some(outcome.from),
            withdrawn: outcome.withdrawn,
            quarantined: false,
        })
    }

    /// An offline card or code, or a number this store never gave: the device's own record becomes an order that has ended.
    fn settle_without_order(&mut self, settlement: &Settlement, order_ref: [u8; 16]) -> Result<Settled, StoreError> {
        let (end, reason, reason_raw) = end_of(settlement, None);
        let at = settlement.at;
        let status = if end == End::Fault { OrderStatus::Failed } else { OrderStatus::Completed };
        let last = if end == End::Fault { EventType::OrderFailed } else { EventType::OrderCompleted };
        let told = [last, EventType::OrderSettled];
        let mut order = Order {
            order_no: self.numbers.next(self.now),
            device_id: settlement.device_id,
            port_no: settlement.port_no,
            status,
            spec: ChargeSpec { mode: ChargeMode::Full, paid_cent: None, stop_when_full: false },
            card: self.offline_card(settlement)?.map(Box::new),
            origin: Origin::Device,
            device_ref: Some(order_ref.to_vec()),
            business_no: None,
            start_time: Some(at - i64::from(settlement.duration_seconds) * 1000),
            end_time: Some(at),
            duration_seconds: Some(settlement.duration_seconds),
            energy_wh: Some(settlement.energy_wh),
            amount_cent: settlement.amount_cent,
            end_reason: Some(reason.to_owned()),
            end_reason_raw: reason_raw,
            failure_reason: (end == End::Fault).then(|| reason.to_owned()),
            start_written_at: None,
            stop_acked: false,
            settled_at: Some(at),
            settlement_match: None,
            device_end_pending: false,
            sequence_no: told.len() as u32,
            request_id: None,
            created_at: at,
            status_at: at,
            updated_at: at,
        };
        // A number of our own making names nothing yet; should it all the same, the batch is run again and finds it taken.
        self.conn.staged(|stage| stage.known.orders.entry(order.order_no).or_insert(None).is_none().then_some(()));
        let mut tries = 1;
        while !self.insert_order(&order)? {
            // Another part of the process may have been given the same salt; money is not refused for a number.
            if tries == NUMBER_TRIES_MAX {
                return Err(StoreError::Statement(format!("order number {} is taken", order.order_no)));
            }
            tries += 1;
            order.order_no = self.numbers.next(self.now);
        }
        self.charge(&mut order, at)?;
        self.order_events(&order, None, &told, Some(false), at)?;
        Ok(Settled {
            key: settlement.key,
            stored: true,
            order: Some(order),
            from: None,
            withdrawn: Vec::new(),
            quarantined: false,
        })
    }

    fn insert_settlement(
        &self,
        settlement: &Settlement,
        key: Option<&[u8]>,
        order: Option<&Order>,
    ) -> Result<(), StoreError> {
        let business_no = match settlement.key {
            SettlementKey::Ap3000 { .. } => None,
            SettlementKey::Bkv { business_no, .. } => Some(business_no),
        };
        self.insert_settlement_row(&SettlementRow {
            key,
            device_id: settlement.device_id,
            port_no: settlement.port_no,
            order_no: order.map(|order| order.order_no),
            business_no,
            duration_seconds: settlement.duration_seconds,
            energy_wh: settlement.energy_wh,
            amount_cent: settlement.amount_cent,
            raw: &settlement.raw,
            at: settlement.at,
        })
    }

    /// Keeps a settlement that could not be applied, once, and raises an alarm.
    pub(super) fn quarantine(&mut self, settlement: &Settlement, error: &StoreError) -> Result<Settled, StoreError> {
        let error = error.to_string();
        let inserted = run(
            self.conn,
            "INSERT INTO settlement_quarantine (device_id, port_no, raw, error, at) VALUES ($1, $2, $3, $4, $5) \
             ON CONFLICT DO NOTHING",
            (settlement.device_id.to_string(), settlement.port_no, &settlement.raw, &error, settlement.at),
        )?;
        if inserted > 0 {
            let alarm = Alarm {
                device_id: settlement.device_id,
                port_no: settlement.port_no,
                order_no: None,
                reason: "settlement_quarantined",
                detail: Some(&error),
            };
            self.alarm(&alarm, settlement.at)?;
        }
        Ok(Settled { quarantined: true, ..replayed(settlement, None) })
    }
}

fn replayed(settlement: &Settlement, order: Option<Order>) -> Settled {
    let from = order.as_ref().map(|order| order.status);
    Settled { key: settlement.key, stored: false, order, from, withdrawn: Vec::new(), quarantined: false }
}

fn has_totals(order: &Order, settlement: &Settlement) -> bool {
    order.duration_seconds == Some(settlement.duration_seconds) && order.energy_wh == Some(settlement.energy_wh)
}

fn end_of(settlement: &Settlement, order: Option<&Order>) -> (End, &'static str, Option<u8>) {
    match settlement.end {
        SettlementEnd::Ap3000 { reason } => {
            let (end, word) = ap3000_end(reason);
            (end, word, Some(reason))
        }
        SettlementEnd::Bkv { status, reason } => {
            let asked = |order: &Order| matches!(order.status, OrderStatus::Cancelling | OrderStatus::Stopping);
            let facts = EndFacts {
                status: HoleStatus(status),
                charged_min: settlement.duration_seconds / 60,
                energy_wh: settlement.energy_wh,
                ordered_min: order.and_then(|order| order.spec.mode.minutes()).map(u32::from),
                ordered_wh: order.and_then(|order| order.spec.mode.energy_wh()),
                stop_acknowledged: order.is_some_and(|order| order.stop_acked),
            };
            let (end, word) = bkv_end(&facts, order.is_some_and(asked));
            (end, word, reason)
        }
    }
}

/// | device id text | port 1 | start mode 1 | order field 16 | duration 2 | energy 2 |
pub(super) fn key_bytes(settlement: &Settlement) -> Vec<u8> {
    match settlement.key {
        SettlementKey::Ap3000 { device_id, port, start_mode, order_ref, duration_seconds, energy_raw } => {
            let mut key = device_id.to_string().into_bytes();
            key.extend([port, start_mode]);
            key.extend(order_ref);
            key.extend(duration_seconds.to_be_bytes());
            key.extend(energy_raw.to_be_bytes());
            key
        }
        SettlementKey::Bkv { .. } => Vec::new(),
    }
}
