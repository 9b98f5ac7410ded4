//! Accounts of cards: swipes, holds, charges, recharges.
//!
//! ```text
//! hold      held + hold                                  with the order
//! release   held − hold                                  when the order ends without a charge
//! charge    held − hold, balance − min(price, hold)      with the settlement
//! charge    balance − min(price, free)                   with a settlement after the release, or of an offline card
//! recharge  balance + amount
//! ```
//!
//! Every one of these goes through [`Tx::book`], which writes account and log together, inside the transaction of what caused
//! it. [`card`] decides how much; the table's checks refuse what would go below zero.

use super::{
    apply::Tx,
    conn::{Conn, all, insert, one, run, scalar},
    order::{Cause, Place, Totals},
    row::{card as card_of, card_columns, order_no},
    settle::NUMBER_TRIES_MAX,
};
use crate::{
    gateway::card::{self, CardMode, CardRefused},
    model::{
        Card, CardNo, CardStart, CardState, CardTransaction, DeviceId, EventType, Order, OrderCard, OrderNo, Origin,
        TransactionKind,
    },
    pricing::Usage,
    store::{
        CardChange, CardJob, CardOutcome, CardVerdict, NewOrder, OrderKey, Settlement, StoreError, Swipe, Swiped,
        payload::{CardSwiped, TransactionObject},
    },
};

/// Holds looked at per call of the backstop.
const HOLDS_MAX: u32 = 200;
/// AP3000 start mode of an offline card.
pub(super) const OFFLINE_CARD: u8 = 0;

/// One card.
pub(super) fn find_card(conn: Conn<'_>, card_no: &CardNo) -> Result<Option<Card>, StoreError> {
    one(conn, concat!("SELECT ", card_columns!(), " FROM cards WHERE card_no = $1"), [card_no.as_str()], card_of)
}

/// A change of an account.
struct Entry<'a> {
    kind: &'static str,
    balance_change: i64,
    held_change: i64,
    order_no: Option<&'a OrderNo>,
    transaction: Option<i64>,
    at: i64,
}

impl Tx<'_> {
    /// One card, whose account nobody else changes until this transaction ends: cards go from device to device.
    fn lock_card(&self, card_no: &CardNo) -> Result<Option<Card>, StoreError> {
        if self.conn.staged(|stage| stage.known.foreign_cards.get(card_no).map(drop)).is_some() {
            return Ok(None);
        }
        one(
            self.conn,
            concat!("SELECT ", card_columns!(), " FROM cards WHERE card_no = $1 FOR NO KEY UPDATE"),
            [card_no.as_str()],
            card_of,
        )
    }

    /// Writes a change of an account and its log row.
    fn book(&self, card: &mut Card, entry: &Entry<'_>) -> Result<(), StoreError> {
        card.balance_cent += entry.balance_change;
        card.held_cent += entry.held_change;
        card.updated_at = entry.at;
        run(
            self.conn,
            "UPDATE cards SET balance_cent = $2, held_cent = $3, sequence_no = $4, updated_at = $5 WHERE card_no = $1",
            (card.card_no.as_str(), card.balance_cent, card.held_cent, card.sequence_no, card.updated_at),
        )?;
        run(
            self.conn,
            "INSERT INTO card_balance_logs \
             (card_no, kind, order_no, transaction_id, balance_change, held_change, balance_cent, held_cent, at) \
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
            (
                card.card_no.as_str(),
                entry.kind,
                entry.order_no.map(OrderNo::as_str),
                entry.transaction,
                entry.balance_change,
                entry.held_change,
                card.balance_cent,
                card.held_cent,
                entry.at,
            ),
        )?;
        Ok(())
    }

    /// Writes a movement of an account with its event. `held_change`: what becomes free with it.
    fn transact(
        &mut self,
        card: &mut Card,
        mut transaction: CardTransaction,
        held_change: i64,
        request_id: Option<&str>,
    ) -> Result<CardTransaction, StoreError> {
        let at = transaction.at;
        transaction.balance_cent = card.balance_cent + transaction.amount_cent;
        transaction.id = insert(
            self.conn,
            "INSERT INTO card_transactions (card_no, kind, order_no, amount_cent, price_cent, unpaid_cent, balance_cent, \
             reference, request_id, at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)",
            "id",
            (
                card.card_no.as_str(),
                transaction.kind.as_str(),
                transaction.order_no.as_ref().map(OrderNo::as_str),
                transaction.amount_cent,
                transaction.price_cent,
                transaction.unpaid_cent,
                transaction.balance_cent,
                &transaction.reference,
                request_id,
                at,
            ),
        )?;
        card.sequence_no += 1;
        let entry = Entry {
            kind: transaction.kind.as_str(),
            balance_change: transaction.amount_cent,
            held_change,
            order_no: transaction.order_no.as_ref(),
            transaction: Some(transaction.id),
            at,
        };
        self.book(card, &entry)?;
        self.card_event(card, EventType::CardTransaction, &TransactionObject::from(&transaction), at)?;
        Ok(transaction)
    }

    /// Holds what a new order's card is to pay.
    pub(super) fn hold(&self, order: &Order, at: i64) -> Result<(), StoreError> {
        let Some((card, hold)) = order.card.as_deref().and_then(|card| Some((card, card.hold_cent?))) else {
            return Ok(());
        };
        let mut account = self.account(&card.card_no)?;
        let entry = Entry {
            kind: "hold",
            balance_change: 0,
            held_change: hold,
            order_no: Some(&order.order_no),
            transaction: None,
            at,
        };
        self.book(&mut account, &entry)
    }

    fn account(&self, card_no: &CardNo) -> Result<Card, StoreError> {
        self.lock_card(card_no)?.ok_or_else(|| StoreError::Corrupt(format!("card {card_no} is gone")))
    }

    /// What a step of an order does to its card's account: a settlement charges it, an end that leaves nothing to settle gives
    /// the hold back.
    pub(super) fn card_step(
        &mut self,
        order: &mut Order,
        settled: Option<&Totals<'_>>,
        ended: bool,
        cause: &Cause<'_>,
    ) -> Result<(), StoreError> {
        if settled.is_some() {
            return self.charge(order, cause.at);
        }
        // An order that was never claimed is withdrawn by the stop or cancel itself.
        let never_started = order.start_written_at.is_none() && order.start_time.is_none();
        if ended && (card::releases_hold(cause.event) || never_started) {
            self.release(order, cause.at)?;
        }
        Ok(())
    }

    /// Charges an order that has its totals, once.
    pub(super) fn charge(&mut self, order: &mut Order, at: i64) -> Result<(), StoreError> {
        let Some(card) = order.card.as_deref_mut().filter(|card| card.charged_cent.is_none()) else { return Ok(()) };
        let Some(hold) = card.hold_cent else { return Ok(()) };
        let (duration_s, energy_wh) = (order.duration_seconds.unwrap_or(0), order.energy_wh.unwrap_or(0));
        let start_s = order.start_time.unwrap_or(at).div_euclid(1000);
        let usage = Usage { start_s, duration_s, energy_wh };
        let price = card::price(self.cards, card, &order.spec, usage, order.amount_cent);
        let mut account = self.account(&card.card_no)?;
        let (charged, held) =
            if card.hold_open { (price.min(hold), hold) } else { (price.min(account.free_cent()), 0) };
        card.price_cent = Some(price);
        card.charged_cent = Some(charged);
        card.hold_open = false;
        run(
            self.conn,
            "UPDATE orders SET hold_open = FALSE, price_cent = $2, charged_cent = $3 WHERE order_no = $1",
            (order.order_no.as_str(), price, charged),
        )?;
        let transaction = CardTransaction {
            id: 0,
            card_no: card.card_no.clone(),
            kind: TransactionKind::Charge,
            order_no: Some(order.order_no),
            amount_cent: -charged,
            price_cent: price,
            unpaid_cent: price - charged,
            balance_cent: 0,
            reference: None,
            at,
        };
        self.transact(&mut account, transaction, -held, order.request_id.as_deref())?;
        Ok(())
    }

    /// Gives an order's hold back, if it is still held.
    fn release(&self, order: &mut Order, at: i64) -> Result<(), StoreError> {
        let Some(card) = order.card.as_deref_mut().filter(|card| card.hold_open) else { return Ok(()) };
        card.hold_open = false;
        run(self.conn, "UPDATE orders SET hold_open = FALSE WHERE order_no = $1", [order.order_no.as_str()])?;
        let mut account = self.account(&card.card_no)?;
        let entry = Entry {
            kind: "release",
            balance_change: 0,
            held_change: -card.hold_cent.unwrap_or(0),
            order_no: Some(&order.order_no),
            transaction: None,
            at,
        };
        self.book(&mut account, &entry)
    }

    /// Gives back the holds of orders that ended long ago and were never settled.
    pub(super) fn release_old_holds(&mut self, at: i64) -> Result<(), StoreError> {
        let before = at.saturating_sub(self.cards.hold_after_end_ms);
        let orders = all(
            self.conn,
            "SELECT order_no FROM orders WHERE hold_open = TRUE AND end_time <= $1 ORDER BY end_time LIMIT $2",
            (before, HOLDS_MAX),
            |row| order_no(row, 0),
        )?;
        for order_no in orders {
            let released = self.savepoint(|tx| {
                if !tx.lock_device_of(order_no)? {
                    return Ok(false);
                }
                let Some(mut order) = tx.find_order(order_no)? else { return Ok(false) };
                tx.release(&mut order, at).map(|()| true)
            });
            match released {
                Ok(false) => {}
                Ok(true) => log::info!("order {order_no} was not settled in time: the hold of its card is given back"),
                Err(error @ StoreError::Unavailable(_)) => return Err(error),
                Err(error) => log::error!("the hold of order {order_no} cannot be given back: {error}"),
            }
        }
        Ok(())
    }

    /// Whether a card pays for what a third party orders, and with what.
    pub(super) fn requested(
        &self,
        card_no: &CardNo,
        new: &NewOrder,
    ) -> Result<Result<(OrderCard, CardStart), CardRefused>, StoreError> {
        let Some(account) = self.lock_card(card_no)? else { return Ok(Err(CardRefused::NotFound)) };
        Ok(card::requested(self.cards, &account, &new.spec, new.at).map(|(tariff, hold_cent)| {
            let paying = OrderCard {
                card_no: account.card_no.clone(),
                tariff,
                hold_cent: Some(hold_cent),
                hold_open: true,
                price_cent: None,
                charged_cent: None,
            };
            (paying, card::start(self.cards, &account, None))
        }))
    }

    /// The card of a charge that the device started by itself.
    pub(super) fn offline_card(&self, settlement: &Settlement) -> Result<Option<OrderCard>, StoreError> {
        use crate::store::SettlementKey;
        let offline = matches!(settlement.key, SettlementKey::Ap3000 { start_mode: OFFLINE_CARD, .. });
        let Some(card_no) = settlement.card_no.as_ref().filter(|_| offline) else { return Ok(None) };
        let mut paying = OrderCard {
            card_no: card_no.clone(),
            tariff: None,
            hold_cent: None,
            hold_open: false,
            price_cent: None,
            charged_cent: None,
        };
        if self.cards.mode == CardMode::Local
            && let Some(account) = self.lock_card(card_no)?
        {
            paying.hold_cent = Some(0);
            // A plan that covers the charge makes it free.
            let monthly = account.expires_at.is_some_and(|end| settlement.at < end);
            paying.tariff = self.cards.tariff_of(&account).filter(|_| !monthly).cloned();
        }
        Ok(Some(paying))
    }

    /// What a card may do at a device, and the order it gets.
    pub(super) fn swipe(&mut self, swipe: &Swipe) -> Result<Swiped, StoreError> {
        let mut swiped = Swiped {
            device_id: swipe.device_id,
            ticket: swipe.ticket,
            too_late: self.now > swipe.deadline,
            state: CardState::NOT_REGISTERED,
            rate: card::Rate::Timed,
            balance: 0,
            order: None,
            command: None,
            repeated: false,
            port_held: false,
        };
        if swiped.too_late {
            return Ok(swiped);
        }
        let account = match &swipe.verdict {
            Some(verdict) => {
                swiped.state = verdict.state;
                swiped.balance = verdict.balance_cent;
                None
            }
            None => {
                let account = self.lock_card(&swipe.card_no)?;
                if let Some(account) = &account {
                    swiped.state = card::standing(self.cards, account, swipe.at);
                    (swiped.rate, swiped.balance) = card::announced(self.cards, account);
                }
                account
            }
        };
        if let Some(port_no) = swipe.port_no {
            if let Some(order) = self.find_by_key(OrderKey::ActiveOn(swipe.device_id, port_no))? {
                let same = order.card.as_deref().is_some_and(|card| card.card_no == swipe.card_no);
                if same {
                    // As the first answer: the swipe came again, or the holder swiped once more. It stops nothing.
                    let hold = order.card.as_deref().filter(|card| card.hold_open).and_then(|card| card.hold_cent);
                    swiped.state = CardState::NORMAL;
                    if swiped.rate != card::Rate::Monthly {
                        swiped.balance = swiped.balance.saturating_add(u32::try_from(hold.unwrap_or(0)).unwrap_or(0));
                    }
                    (swiped.order, swiped.repeated) = (Some(order), true);
                    return Ok(swiped);
                }
                swiped.port_held = true;
            }
            swiped.port_held |= self.end_pending(swipe.device_id, port_no)?;
            if swiped.state == CardState::NORMAL {
                swiped.state = if !self.device_exists(swipe.device_id)? {
                    CardState::DEVICE_NOT_REGISTERED
                } else if swiped.port_held || swipe.unusable {
                    CardState::PORT_FAULT
                } else {
                    self.swipe_order(swipe, account.as_ref(), port_no, &mut swiped)?
                };
            }
        }
        let told = CardSwiped {
            card_no: &swipe.card_no,
            device_id: swipe.device_id,
            port_no: swipe.port_no,
            account_state: swiped.state.code(),
            account_state_text: swiped.state.as_str(),
            order_no: swiped.order.as_ref().map(|order| order.order_no),
        };
        self.device_event(swipe.device_id, EventType::CardSwiped, &told, swipe.at)?;
        Ok(swiped)
    }

    fn device_exists(&self, device_id: DeviceId) -> Result<bool, StoreError> {
        let row: Option<i64> =
            scalar(self.conn, "SELECT 1 FROM devices WHERE device_id = $1", [device_id.to_string()])?;
        Ok(row.is_some())
    }

    /// Makes the order of a swipe and says what its holder is told.
    fn swipe_order(
        &mut self,
        swipe: &Swipe,
        account: Option<&Card>,
        port_no: u16,
        swiped: &mut Swiped,
    ) -> Result<CardState, StoreError> {
        let card_no = swipe.card_no.clone();
        let mut paying = OrderCard {
            card_no,
            tariff: None,
            hold_cent: None,
            hold_open: false,
            price_cent: None,
            charged_cent: None,
        };
        let (spec, start) = match (account, &swipe.verdict) {
            (Some(account), _) => match card::swiped(self.cards, account, swipe.protocol, swipe.at) {
                Ok(terms) => {
                    (paying.tariff, paying.hold_cent, paying.hold_open) = (terms.tariff, Some(terms.hold_cent), true);
                    (terms.spec, card::start(self.cards, account, swipe.business_no))
                }
                Err(state) => return Ok(state),
            },
            (None, Some(CardVerdict { balance_cent, spec, .. })) => {
                let spec = spec.clone().unwrap_or_else(|| card::open_spec(self.cards, swipe.protocol));
                (spec, CardStart { business_no: swipe.business_no, announce: *balance_cent, monthly: false })
            }
            (None, None) => return Ok(CardState::NOT_REGISTERED),
        };
        let place = Place { device_id: swipe.device_id, port_no, at: swipe.at };
        let mut order = Order {
            spec,
            origin: Origin::Device,
            business_no: swipe.business_no.filter(|number| *number != 0),
            card: Some(Box::new(paying)),
            ..Order::pending(self.numbers.next(self.now), place.device_id, place.port_no, place.at)
        };
        // The port is free, as was seen above; only the number may be taken, as with records that make orders.
        for _ in 0..NUMBER_TRIES_MAX {
            match self.place_order(order.clone(), Some(start.clone()), swipe.epoch)? {
                Some((order, command)) => {
                    (swiped.order, swiped.command) = (Some(order), command);
                    return Ok(CardState::NORMAL);
                }
                None => order.order_no = self.numbers.next(self.now),
            }
        }
        Err(StoreError::Statement(format!("the order of card {} was not inserted", swipe.card_no)))
    }

    pub(super) fn card_job(&mut self, job: &CardJob) -> Result<CardOutcome, StoreError> {
        let found = self.lock_card(&job.card_no)?;
        let mut card = match (&job.change, found) {
            (CardChange::Register { state, tariff, expires_at }, None) => {
                let (card_no, at) = (job.card_no.clone(), job.at);
                let card = Card {
                    card_no,
                    state: *state,
                    tariff: tariff.clone(),
                    expires_at: *expires_at,
                    balance_cent: 0,
                    held_cent: 0,
                    sequence_no: 0,
                    created_at: at,
                    updated_at: at,
                };
                let inserted = run(
                    self.conn,
                    "INSERT INTO cards (card_no, state, tariff, expires_at, created_at, updated_at) \
                     VALUES ($1, $2, $3, $4, $5, $5) ON CONFLICT DO NOTHING",
                    (card.card_no.as_str(), card.state.code(), &card.tariff, card.expires_at, at),
                )?;
                let done = CardOutcome::Done { card, transaction: None };
                return Ok(if inserted > 0 { done } else { CardOutcome::Exists });
            }
            (CardChange::Register { .. }, Some(_)) => return Ok(CardOutcome::Exists),
            (CardChange::Update { .. } | CardChange::Recharge { .. }, None) => return Ok(CardOutcome::NotFound),
            (CardChange::Update { .. } | CardChange::Recharge { .. }, Some(card)) => card,
        };
        let transaction = match &job.change {
            CardChange::Recharge { amount_cent, reference } => {
                if card.balance_cent.saturating_add(*amount_cent) > Card::BALANCE_MAX {
                    return Ok(CardOutcome::TooMuch { balance_cent: card.balance_cent });
                }
                let transaction = CardTransaction {
                    id: 0,
                    card_no: card.card_no.clone(),
                    kind: TransactionKind::Recharge,
                    order_no: None,
                    amount_cent: *amount_cent,
                    price_cent: *amount_cent,
                    unpaid_cent: 0,
                    balance_cent: 0,
                    reference: reference.clone(),
                    at: job.at,
                };
                Some(self.transact(&mut card, transaction, 0, Some(&job.request_id))?)
            }
            CardChange::Update { state, tariff, expires_at } => {
                card.state = state.unwrap_or(card.state);
                if let Some(tariff) = tariff {
                    card.tariff.clone_from(tariff);
                }
                card.expires_at = expires_at.unwrap_or(card.expires_at);
                card.updated_at = job.at;
                run(
                    self.conn,
                    "UPDATE cards SET state = $2, tariff = $3, expires_at = $4, updated_at = $5 WHERE card_no = $1",
                    (card.card_no.as_str(), card.state.code(), &card.tariff, card.expires_at, card.updated_at),
                )?;
                None
            }
            CardChange::Register { .. } => None,
        };
        Ok(CardOutcome::Done { card, transaction })
    }
}
