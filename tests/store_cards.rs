//! Cards in the store: swipes, holds, charges and recharges, each once, and the sums that hold whatever happens.
//!
//! The last test runs random operations, replays among them, beside a model of the accounts, and after each compares balance and
//! hold of every card, the sums of the log and the open holds of the orders.

mod services;
mod store;

use std::{collections::BTreeMap, sync::Arc};

use chargegate::{
    gateway::{
        card::{CardMode, CardRefused, CardRules, NamedTariff, Rate},
        order::{Event, Verdict},
    },
    model::{
        Card, CardNo, CardState, ChargeMode, ChargeSpec, CommandBody, DeviceId, Order, OrderNo, OrderStatus, Origin,
        Protocol, TransactionKind,
    },
    pricing::Tariff,
    store::{
        Backstop, CardChange, CardFilter, CardJob, CardOutcome, CardVerdict, Created, Earlier, Idempotency, Job,
        NewOrder, Outcome, Settlement, SettlementEnd, SettlementKey, Swipe, Swiped, payload,
    },
};
use proptest::prelude::*;
use store::{Bench, T0, ap, ap_settlement, bkv, bkv_settlement, minutes};

const HOUR_MS: i64 = 3_600_000;

/// 1 cent a minute, and per name: `energy` 100 cents a kWh.
fn rules() -> CardRules {
    let tariffs = vec![
        NamedTariff { name: "time".into(), tariff: Tariff::Time { price_cent: 1, minutes: 1 } },
        NamedTariff { name: "energy".into(), tariff: Tariff::Energy { price_cent: 100 } },
    ];
    CardRules { tariffs, tariff: Some("time".into()), ..CardRules::default() }
}

fn bench() -> Bench {
    Bench::with_cards(tempfile::tempdir().unwrap(), Arc::new(rules()))
}

fn card_no(n: u32) -> CardNo {
    CardNo::from_uid(n.to_be_bytes())
}

fn swipe(device_id: DeviceId, port_no: u16, card: u32, epoch: i64) -> Swipe {
    let ap3000 = matches!(device_id, DeviceId::Ap3000(_));
    Swipe {
        ticket: 7,
        device_id,
        protocol: if ap3000 { Protocol::Ap3000 } else { Protocol::Bkv },
        card_no: card_no(card),
        port_no: Some(port_no),
        business_no: (!ap3000).then_some(77),
        unusable: false,
        verdict: None,
        epoch: Some(epoch),
        at: T0,
        deadline: T0 + 5_000,
    }
}

trait Cards {
    fn change(&self, card: u32, change: CardChange) -> CardOutcome;
    fn swiped(&self, swipe: Swipe) -> Swiped;
    fn charge_by_card(&self, new: NewOrder) -> Created;
    fn card(&self, card: u32) -> Card;
    /// Registers a card and gives it money.
    fn funded(&self, card: u32, cent: i64);
    fn settle_ap(&self, order: &Order, minutes: u32) -> Order;
    fn log_sums(&self, card: u32) -> (i64, i64);
}

impl Cards for Bench {
    fn change(&self, card: u32, change: CardChange) -> CardOutcome {
        let job = CardJob { card_no: card_no(card), change, at: T0, request_id: "r".into(), idempotency: None };
        match self.run(Job::Card(Box::new(job))) {
            Outcome::Card(outcome) => *outcome,
            other => panic!("{other:?}"),
        }
    }

    fn swiped(&self, swipe: Swipe) -> Swiped {
        match self.run(Job::Swipe(Box::new(swipe))) {
            Outcome::Swiped(swiped) => *swiped,
            other => panic!("{other:?}"),
        }
    }

    fn charge_by_card(&self, new: NewOrder) -> Created {
        match self.run(Job::CreateOrder(Box::new(new))) {
            Outcome::Created(created) => *created,
            other => panic!("{other:?}"),
        }
    }

    fn card(&self, card: u32) -> Card {
        self.read(move |reader| reader.card(&card_no(card))).expect("the card is registered")
    }

    fn funded(&self, card: u32, cent: i64) {
        assert!(matches!(self.change(card, register(CardState::NORMAL)), CardOutcome::Done { .. }));
        if cent > 0 {
            assert!(matches!(self.change(card, recharge(cent)), CardOutcome::Done { .. }));
        }
    }

    fn settle_ap(&self, order: &Order, minutes: u32) -> Order {
        let settled = self.settle(settlement(order, minutes));
        assert!(settled.stored);
        settled.order.unwrap()
    }

    fn log_sums(&self, card: u32) -> (i64, i64) {
        self.card_log_sums(card_no(card).as_str())
    }
}

fn register(state: CardState) -> CardChange {
    CardChange::Register { state, tariff: None, expires_at: None }
}

fn recharge(amount_cent: i64) -> CardChange {
    CardChange::Recharge { amount_cent, reference: None }
}

fn settlement(order: &Order, minutes: u32) -> Settlement {
    let base = ap_settlement(order.device_id, order.port_no, *order.order_no.as_bytes(), 1, T0 + 60_000);
    Settlement { duration_seconds: minutes * 60, ..base }
}

fn amounts(order: &Order) -> (Option<i64>, bool, Option<i64>, Option<i64>, Option<i64>) {
    let card = order.card.as_deref().expect("a card pays");
    (card.hold_cent, card.hold_open, card.price_cent, card.charged_cent, card.unpaid_cent())
}

#[test]
fn a_swipe_holds_charges_and_releases() {
    let bench = bench();
    let epoch = bench.bind(ap(1), T0).epoch;
    bench.funded(1, 100);
    let swiped = bench.swiped(swipe(ap(1), 2, 1, epoch));
    assert_eq!((swiped.ticket, swiped.state, swiped.rate, swiped.balance), (7, CardState::NORMAL, Rate::Timed, 100));
    let order = swiped.order.unwrap();
    assert_eq!((order.port_no, order.status, order.origin), (2, OrderStatus::Pending, Origin::Device));
    assert_eq!(order.spec.mode, ChargeMode::Time { minutes: 100 });
    assert_eq!(amounts(&order), (Some(100), true, None, None, None));
    let command = swiped.command.expect("claimed for the live epoch");
    let CommandBody::Start { port_no: 2, card: Some(card), .. } = command.body else { panic!("{command:?}") };
    assert_eq!((card.business_no, card.announce, card.monthly), (None, 100, false));
    let account = bench.card(1);
    assert_eq!((account.balance_cent, account.held_cent, account.free_cent()), (100, 100, 0));
    assert_eq!(bench.order(order.order_no), order, "as stored");

    bench.happens(order.order_no, Event::StartAcked, None, T0 + 1);
    bench.happens(order.order_no, Event::Evidence, None, T0 + 2);
    let settled = bench.settle_ap(&order, 30);
    assert_eq!(amounts(&settled), (Some(100), false, Some(30), Some(30), Some(0)));
    assert_eq!(bench.order(order.order_no), settled);
    let account = bench.card(1);
    assert_eq!((account.balance_cent, account.held_cent), (70, 0));
    assert_eq!(bench.log_sums(1), (70, 0));

    // The record again, over a restart too: nothing is charged twice.
    let bench = bench.reopen();
    assert!(!bench.settle(settlement(&order, 30)).stored);
    assert_eq!(bench.card(1), account);
    let moved = bench.read(|reader| reader.card_transactions(&card_no(1), 1, 10)).rows;
    let told: Vec<_> = moved.iter().map(|moved| (moved.kind, moved.amount_cent, moved.balance_cent)).collect();
    assert_eq!(told, [(TransactionKind::Charge, -30, 70), (TransactionKind::Recharge, 100, 100)]);
    assert_eq!(moved[0].order_no, Some(order.order_no));
    assert!(bench.alarms().is_empty());
}

#[test]
fn events_tell_swipe_and_movement_before_the_settlement() {
    let bench = bench();
    let epoch = bench.bind(ap(1), T0).epoch;
    bench.funded(1, 100);
    let order = bench.swiped(swipe(ap(1), 1, 1, epoch)).order.unwrap();
    bench.settle_ap(&order, 5);
    let log = bench.log();
    let types: Vec<&str> = log.iter().map(|event| event.event_type.as_str()).collect();
    assert_eq!(
        types,
        [
            "device.registered",
            "card.transaction",
            "order.created",
            "card.swiped",
            "card.transaction",
            "order.completed",
            "order.settled"
        ]
    );
    let cards: Vec<_> = log.iter().filter(|event| event.event_type == "card.transaction").collect();
    assert_eq!((cards[0].key.as_str(), cards[0].sequence_no, cards[1].sequence_no), ("card:00000001", 1, 2));
    assert_eq!((&cards[1].device_id, &cards[1].order_no), (&None, &None));
    let data: serde_json::Value = serde_json::from_str(&cards[1].data).unwrap();
    assert_eq!((&data["order_no"], &data["amount_cent"]), (&order.order_no.as_str().into(), &(-5).into()));
    let swiped: serde_json::Value = serde_json::from_str(&log[3].data).unwrap();
    assert_eq!((&swiped["card_no"], &swiped["account_state"]), (&"00000001".into(), &0.into()));
    assert_eq!((&swiped["order_no"], log[3].key.as_str()), (&order.order_no.as_str().into(), "00000001"));
    let settled: serde_json::Value = serde_json::from_str(&log[6].data).unwrap();
    assert_eq!((&settled["charged_cent"], &settled["card_no"]), (&5.into(), &"00000001".into()));
}

#[test]
fn cards_that_may_not_charge_are_told_and_make_no_order() {
    let bench = bench();
    let epoch = bench.bind(ap(1), T0).epoch;
    let told = |swipe: Swipe| {
        let swiped = bench.swiped(swipe);
        assert!(swiped.order.is_none() && swiped.command.is_none());
        swiped.state
    };
    assert_eq!(told(swipe(ap(1), 1, 9, epoch)), CardState::NOT_REGISTERED);
    bench.funded(1, 0);
    assert_eq!(told(swipe(ap(1), 1, 1, epoch)), CardState::INSUFFICIENT_BALANCE);
    bench.change(1, recharge(50));
    assert_eq!(told(Swipe { unusable: true, ..swipe(ap(1), 1, 1, epoch) }), CardState::PORT_FAULT);
    assert_eq!(told(swipe(ap(2), 1, 1, epoch)), CardState::DEVICE_NOT_REGISTERED);
    for state in CardState::ALL.iter().skip(1) {
        let update = CardChange::Update { state: Some(*state), tariff: None, expires_at: None };
        assert!(matches!(bench.change(1, update), CardOutcome::Done { .. }));
        assert_eq!(told(swipe(ap(1), 1, 1, epoch)), *state);
    }
    let late = bench.swiped(Swipe { deadline: T0 - 1, ..swipe(ap(1), 1, 1, epoch) });
    assert!(late.too_late && late.order.is_none());
    assert_eq!((bench.card(1).balance_cent, bench.card(1).held_cent), (50, 0));
}

#[test]
fn a_balance_query_makes_nothing() {
    let bench = bench();
    let epoch = bench.bind(ap(1), T0).epoch;
    bench.funded(1, 100);
    bench.swiped(swipe(ap(1), 1, 1, epoch)).order.unwrap();
    bench.change(1, recharge(20));
    let query = Swipe { port_no: None, ..swipe(ap(1), 1, 1, epoch) };
    let answer = bench.swiped(query.clone());
    assert_eq!((answer.state, answer.balance, answer.order), (CardState::NORMAL, 20, None));
    let unknown = bench.swiped(Swipe { card_no: card_no(9), ..query.clone() });
    assert_eq!((unknown.state, unknown.balance), (CardState::NOT_REGISTERED, 0));
    let plan = CardChange::Update { state: None, tariff: None, expires_at: Some(Some(T0 + HOUR_MS)) };
    bench.change(1, plan);
    let answer = bench.swiped(query);
    assert_eq!((answer.rate, i64::from(answer.balance)), (Rate::Monthly, (T0 + HOUR_MS) / 1000));
}

#[test]
fn a_second_swipe_on_a_held_port_makes_no_second_order() {
    let bench = bench();
    let epoch = bench.bind(ap(1), T0).epoch;
    bench.funded(1, 100);
    bench.funded(2, 100);
    let first = bench.swiped(swipe(ap(1), 1, 1, epoch));
    let order_no = first.order.unwrap().order_no;
    for event in [Event::StartAcked, Event::Evidence] {
        let again = bench.swiped(swipe(ap(1), 1, 1, epoch));
        assert!(again.repeated && again.command.is_none());
        assert_eq!((again.order.unwrap().order_no, again.state, again.balance), (order_no, CardState::NORMAL, 100));
        let other = bench.swiped(swipe(ap(1), 1, 2, epoch));
        assert_eq!((other.state, other.order, other.port_held), (CardState::PORT_FAULT, None, true));
        bench.happens(order_no, event, None, T0);
    }
    assert_eq!((bench.order(order_no).status, bench.card(1).held_cent), (OrderStatus::Charging, 100));
    // The same card elsewhere: its money is held already.
    assert_eq!(bench.swiped(swipe(ap(1), 2, 1, epoch)).state, CardState::INSUFFICIENT_BALANCE);
}

#[test]
fn an_order_that_never_charged_gives_its_hold_back_at_its_end() {
    let bench = bench();
    let epoch = bench.bind(ap(1), T0).epoch;
    bench.funded(1, 100);
    for (event, status) in [
        (Event::StartRefused { relay_may_be_on: false }, OrderStatus::Failed),
        (Event::StartTimedOut, OrderStatus::Timeout),
        (Event::StartWithdrawn, OrderStatus::Failed),
    ] {
        let order_no = bench.swiped(swipe(ap(1), 1, 1, epoch)).order.unwrap().order_no;
        assert_eq!(bench.card(1).held_cent, 100);
        let ended = bench.happens(order_no, event, None, T0).order.unwrap();
        assert_eq!((ended.status, amounts(&ended)), (status, (Some(100), false, None, None, None)), "{event:?}");
        assert_eq!(bench.card(1).held_cent, 0, "{event:?}");
    }
    // Withdrawn before it was claimed.
    let unclaimed = Swipe { epoch: None, ..swipe(ap(1), 1, 1, epoch) };
    let order_no = bench.swiped(unclaimed).order.unwrap().order_no;
    assert_eq!(bench.happens(order_no, Event::Cancel, None, T0).order.unwrap().status, OrderStatus::Cancelled);
    assert_eq!((bench.card(1).held_cent, bench.log_sums(1)), (0, (100, 0)));
}

#[test]
fn a_hold_outlives_the_order_until_its_settlement_or_an_hour() {
    let bench = bench();
    let epoch = bench.bind(ap(1), T0).epoch;
    bench.funded(1, 100);
    let stopped = || {
        let order = bench.swiped(swipe(ap(1), 1, 1, epoch)).order.unwrap();
        for event in [Event::StartAcked, Event::Evidence, Event::Stop, Event::StopAcked] {
            bench.happens(order.order_no, event, None, T0);
        }
        bench.order(order.order_no)
    };
    let order = stopped();
    assert_eq!((order.status, bench.card(1).held_cent), (OrderStatus::Stopped, 100));
    let settled = bench.settle_ap(&order, 40);
    assert_eq!((settled.status, amounts(&settled).3), (OrderStatus::Stopped, Some(40)));
    assert_eq!((bench.card(1).balance_cent, bench.card(1).held_cent), (60, 0));

    // Not settled within the hour: the hold goes back, and what comes later takes what is free.
    let order = stopped();
    let backstop = |at| {
        drop(bench.run(Job::Backstop(Backstop {
            at,
            interrupts_from: i64::MAX,
            offline_from: i64::MAX,
            interrupt_grace: 0,
            offline_grace: 0,
        })))
    };
    backstop(T0 + HOUR_MS - 1);
    assert_eq!(bench.card(1).held_cent, 60);
    backstop(T0 + HOUR_MS);
    assert_eq!((bench.card(1).held_cent, bench.order(order.order_no).card.unwrap().hold_open), (0, false));
    let settled = bench.settle_ap(&order, 60);
    assert_eq!(amounts(&settled), (Some(60), false, Some(60), Some(60), Some(0)));
    assert_eq!((bench.card(1).balance_cent, bench.log_sums(1)), (0, (0, 0)));
}

#[test]
fn a_late_settlement_takes_what_is_free_and_notes_the_rest() {
    let bench = bench();
    let epoch = bench.bind(ap(1), T0).epoch;
    bench.funded(1, 50);
    let order = bench.swiped(swipe(ap(1), 1, 1, epoch)).order.unwrap();
    bench.happens(order.order_no, Event::StartTimedOut, None, T0);
    // Meanwhile the money is held for another charge, but for 20 cents.
    let other = bench.swiped(swipe(ap(1), 2, 1, epoch)).order.unwrap();
    bench.change(1, recharge(20));
    let settled = bench.settle_ap(&order, 45);
    assert_eq!(amounts(&settled), (Some(50), false, Some(45), Some(20), Some(25)));
    assert_eq!((bench.card(1).balance_cent, bench.card(1).held_cent), (50, 50));
    let settled = bench.settle_ap(&other, 50);
    assert_eq!((amounts(&settled).3, bench.card(1).balance_cent, bench.card(1).held_cent), (Some(50), 0, 0));
    let moved = bench.read(|reader| reader.card_transactions(&card_no(1), 1, 10)).rows;
    assert_eq!((moved[1].price_cent, moved[1].amount_cent, moved[1].unpaid_cent), (45, -20, 25));
}

#[test]
fn a_request_with_a_card_holds_or_is_refused() {
    let bench = bench();
    let epoch = bench.bind(ap(1), T0).epoch;
    bench.funded(1, 60);
    let new = |port_no, spec: ChargeSpec| NewOrder {
        spec,
        card_no: Some(card_no(1)),
        ..bench.new_order(ap(1), port_no, Some(epoch), T0)
    };
    let unknown = NewOrder { card_no: Some(card_no(9)), ..new(1, minutes(10)) };
    assert!(matches!(bench.charge_by_card(unknown), Created::CardRefused(CardRefused::NotFound)));
    let Created::CardRefused(refused) = bench.charge_by_card(new(1, minutes(61))) else { panic!() };
    assert_eq!(refused, CardRefused::Insufficient { free_cent: 60, needed_cent: 61 });
    let first = new(1, minutes(40));
    let Created::Order { order, command } = bench.charge_by_card(first.clone()) else { panic!() };
    assert_eq!((amounts(&order).0, order.origin), (Some(40), Origin::Api));
    let CommandBody::Start { card: Some(card), .. } = command.unwrap().body else { panic!() };
    assert_eq!((card.business_no, card.announce), (None, 60));
    // The same order once more: created, and held once.
    assert!(matches!(bench.charge_by_card(first), Created::Order { command: None, .. }));
    assert!(
        matches!(bench.charge_by_card(new(1, minutes(5))), Created::PortBusy { holder } if holder == order.order_no)
    );
    assert_eq!(bench.card(1).held_cent, 40, "a busy port holds nothing");
    let Created::Order { order: rest, .. } =
        bench.charge_by_card(new(2, ChargeSpec { mode: ChargeMode::Full, ..minutes(1) }))
    else {
        panic!()
    };
    assert_eq!((amounts(&rest).0, bench.card(1).free_cent()), (Some(20), 0));
    // More than was held: the rest stays unpaid.
    let settled = bench.settle_ap(&rest, 30);
    assert_eq!(amounts(&settled), (Some(20), false, Some(30), Some(20), Some(10)));
    assert_eq!((bench.card(1).balance_cent, bench.card(1).held_cent), (40, 40));
}

#[test]
fn a_bkv_swipe_copies_the_number_and_settles_by_it() {
    let bench = bench();
    let epoch = bench.bind(bkv(1), T0).epoch;
    bench.funded(1, 30);
    let swiped = bench.swiped(swipe(bkv(1), 1, 1, epoch));
    let order = swiped.order.unwrap();
    assert_eq!((order.business_no, &order.spec.mode), (Some(77), &ChargeMode::Time { minutes: 30 }));
    let CommandBody::Start { card: Some(card), .. } = swiped.command.unwrap().body else { panic!() };
    assert_eq!(card.business_no, Some(77));
    bench.happens(order.order_no, Event::StartAcked, None, T0);
    // Beyond the ordered time nothing is charged; the amount of a mode that counts none is not a price.
    let end = Settlement { amount_cent: Some(0), ..bkv_settlement(bkv(1), 77, 31, 200, T0 + 1000) };
    let settled = bench.settle(end.clone()).order.unwrap();
    assert_eq!((settled.order_no, amounts(&settled).3, bench.card(1).balance_cent), (order.order_no, Some(30), 0));
    assert!(!bench.settle(end).stored);
    assert_eq!(bench.log_sums(1), (0, 0));
}

#[test]
fn an_offline_card_pays_what_it_has_once() {
    let bench = bench();
    bench.bind(ap(1), T0);
    bench.funded(1, 20);
    let record = |n: u8, card: Option<CardNo>, start_mode| {
        let base = ap_settlement(ap(1), 1, [n; 16], 1, T0);
        let SettlementKey::Ap3000 { device_id, port, order_ref, .. } = base.key else { panic!() };
        let key =
            SettlementKey::Ap3000 { device_id, port, start_mode, order_ref, duration_seconds: 1800, energy_raw: 50 };
        Settlement { key, card_no: card, ..base }
    };
    let settled = bench.settle(record(1, Some(card_no(1)), 0)).order.unwrap();
    assert_eq!((settled.origin, settled.status), (Origin::Device, OrderStatus::Completed));
    assert_eq!(amounts(&settled), (Some(0), false, Some(30), Some(20), Some(10)));
    assert!(!bench.settle(record(1, Some(card_no(1)), 0)).stored);
    assert_eq!((bench.card(1).balance_cent, bench.log_sums(1)), (0, (0, 0)));
    // A card nobody knows pays nothing and is named all the same; a verification code names none.
    let stranger = bench.settle(record(2, Some(card_no(9)), 0)).order.unwrap();
    assert_eq!(amounts(&stranger), (None, false, None, None, None));
    assert!(bench.settle(record(3, Some(card_no(1)), 3)).order.unwrap().card.is_none());
    assert!(bench.alarms().is_empty());
}

#[test]
fn a_monthly_card_charges_without_price_until_its_end() {
    let bench = bench();
    let epoch = bench.bind(ap(1), T0).epoch;
    bench.funded(1, 0);
    bench.change(1, CardChange::Update { state: None, tariff: None, expires_at: Some(Some(T0 + 1)) });
    let order = bench.swiped(swipe(ap(1), 1, 1, epoch)).order.unwrap();
    assert_eq!((&order.spec.mode, amounts(&order).0), (&ChargeMode::Full, Some(0)));
    let settled = bench.settle_ap(&order, 300);
    assert_eq!(amounts(&settled), (Some(0), false, Some(0), Some(0), Some(0)));
    let later = Swipe { at: T0 + 1, ..swipe(ap(1), 1, 1, epoch) };
    assert_eq!(bench.swiped(later).state, CardState::MONTHLY_EXPIRED);
}

#[test]
fn a_third_partys_verdict_decides_without_an_account() {
    let rules = CardRules { mode: CardMode::Webhook, ..rules() };
    let bench = Bench::with_cards(tempfile::tempdir().unwrap(), Arc::new(rules));
    let epoch = bench.bind(ap(1), T0).epoch;
    let asked = |state, spec| {
        let verdict = Some(CardVerdict { state, balance_cent: 900, spec });
        bench.swiped(Swipe { verdict, ..swipe(ap(1), 1, 5, epoch) })
    };
    let refused = asked(CardState::FOREIGN_CARD, None);
    assert_eq!((refused.state, refused.order, refused.balance), (CardState::FOREIGN_CARD, None, 900));
    let order = asked(CardState::NORMAL, Some(minutes(30))).order.unwrap();
    assert_eq!((&order.spec, amounts(&order)), (&minutes(30), (None, false, None, None, None)));
    let settled = bench.settle_ap(&order, 30);
    assert_eq!(amounts(&settled).3, None, "the third party charges its own card");
    let open = asked(CardState::NORMAL, None).order.unwrap();
    assert_eq!(open.spec.mode, ChargeMode::Full);
}

#[test]
fn the_price_is_the_one_agreed_when_it_was_ordered() {
    let bench = bench();
    let epoch = bench.bind(ap(1), T0).epoch;
    bench.funded(1, 100);
    let order = bench.swiped(swipe(ap(1), 1, 1, epoch)).order.unwrap();
    bench.change(1, CardChange::Update { state: None, tariff: Some(Some("energy".into())), expires_at: None });
    assert_eq!(amounts(&bench.settle_ap(&order, 30)).2, Some(30), "by time, as ordered");
    let order = bench.swiped(swipe(ap(1), 1, 1, epoch)).order.unwrap();
    assert_eq!(order.spec.mode, ChargeMode::Energy { wh: 700 });
    assert_eq!(amounts(&bench.settle_ap(&order, 30)).2, Some(50), "500 Wh at 100 cents a kWh");
}

#[test]
fn accounts_are_registered_once_changed_and_listed() {
    let bench = bench();
    assert_eq!(bench.change(1, recharge(1)), CardOutcome::NotFound);
    bench.funded(1, 10);
    bench.funded(2, 0);
    assert_eq!(bench.change(1, register(CardState::NORMAL)), CardOutcome::Exists);
    assert_eq!(bench.change(1, recharge(Card::BALANCE_MAX)), CardOutcome::TooMuch { balance_cent: 10 });
    assert!(matches!(bench.change(1, recharge(Card::BALANCE_MAX - 10)), CardOutcome::Done { .. }));
    let update = CardChange::Update {
        state: Some(CardState::FOREIGN_CARD),
        tariff: Some(Some("energy".into())),
        expires_at: Some(Some(5)),
    };
    let CardOutcome::Done { card, transaction: None } = bench.change(2, update) else { panic!() };
    assert_eq!(
        (card.state, card.tariff.as_deref(), card.expires_at),
        (CardState::FOREIGN_CARD, Some("energy"), Some(5))
    );
    assert_eq!(bench.card(2), card);
    let update = CardChange::Update { state: None, tariff: Some(None), expires_at: Some(None) };
    let CardOutcome::Done { card, .. } = bench.change(2, update) else { panic!() };
    assert_eq!((card.state, card.tariff, card.expires_at), (CardState::FOREIGN_CARD, None, None));
    let list = |state| bench.read(move |reader| reader.cards(&CardFilter { state }, 1, 10));
    assert_eq!(list(None).total, 2);
    let found = list(Some(CardState::FOREIGN_CARD));
    assert_eq!((found.total, &found.rows[0].card_no), (1, &card_no(2)));
}

#[test]
fn a_recharge_with_a_key_is_made_once() {
    let bench = bench();
    bench.funded(1, 0);
    let ask = |amount_cent, request: &str| {
        let asked = Idempotency {
            api_key: "shop".into(),
            route: "POST /cards/x/recharge".into(),
            key: "k".into(),
            body_hash: [amount_cent as u8; 32],
        };
        let (request_id, change) = (request.to_owned(), recharge(amount_cent));
        let job = CardJob { card_no: card_no(1), change, at: T0, request_id, idempotency: Some(asked) };
        bench.run(Job::Card(Box::new(job)))
    };
    let Outcome::Card(first) = ask(30, "first") else { panic!() };
    let CardOutcome::Done { card, transaction } = *first else { panic!() };
    let body = payload::card_answer(&card, transaction.as_ref(), "first", T0).unwrap();
    let Outcome::Repeated(earlier) = ask(30, "second") else { panic!() };
    assert_eq!(earlier, Earlier::Answer { status: payload::card_status(false), body });
    assert!(matches!(ask(31, "third"), Outcome::Repeated(Earlier::Mismatch)));
    assert_eq!((bench.card(1).balance_cent, bench.log_sums(1)), (30, (30, 0)));
}

// The model.

const CARDS: u32 = 2;
const PORTS: u16 = 3;

#[derive(Clone, Debug)]
enum Operation {
    Swipe {
        card: u32,
        port: u16,
        live: bool,
    },
    Request {
        card: u32,
        port: u16,
        minutes: u16,
    },
    Happens(usize, Event),
    Settle {
        order: usize,
        minutes: u32,
    },
    Offline {
        card: u32,
        record: u8,
        minutes: u16,
    },
    Recharge {
        card: u32,
        cent: i64,
        key: u8,
    },
    /// Holds of orders that ended are given back.
    HourLater,
    Restart,
}

fn operation() -> impl Strategy<Value = Operation> {
    let card = || 1..=CARDS;
    let order = || any::<prop::sample::Index>().prop_map(|index| index.index(32));
    let event = prop::sample::select(vec![
        Event::StartAcked,
        Event::StartAckedLate,
        Event::StartRefused { relay_may_be_on: false },
        Event::StartRefused { relay_may_be_on: true },
        Event::StartWithdrawn,
        Event::StartTimedOut,
        Event::Evidence,
        Event::Cancel,
        Event::Stop,
        Event::NoLoad,
        Event::Offline,
        Event::ReturnTimedOut,
        Event::PortMismatch,
        Event::StopAcked,
        Event::StopTimedOut,
    ]);
    prop_oneof![
        5 => (card(), 1..=PORTS, any::<bool>()).prop_map(|(card, port, live)| Operation::Swipe { card, port, live }),
        3 => (card(), 1..=PORTS, 0..120_u16).prop_map(|(card, port, minutes)| Operation::Request { card, port, minutes }),
        10 => (order(), event).prop_map(|(order, event)| Operation::Happens(order, event)),
        4 => (order(), 0..200_u32).prop_map(|(order, minutes)| Operation::Settle { order, minutes }),
        1 => (card(), 0..3_u8, 0..60_u16).prop_map(|(card, record, minutes)| Operation::Offline { card, record, minutes }),
        3 => (card(), 1..150_i64, 0..4_u8).prop_map(|(card, cent, key)| Operation::Recharge { card, cent, key }),
        1 => Just(Operation::HourLater),
        1 => Just(Operation::Restart),
    ]
}

#[derive(Clone, Debug)]
struct ModelOrder {
    no: OrderNo,
    card: u32,
    port: u16,
    hold: i64,
    open: bool,
    charged: Option<i64>,
}

#[derive(Default)]
struct Model {
    balances: BTreeMap<u32, i64>,
    orders: Vec<ModelOrder>,
    keys: BTreeMap<(u32, u8), i64>,
    records: BTreeMap<u8, ()>,
}

impl Model {
    fn held(&self, card: u32) -> i64 {
        self.orders.iter().filter(|order| order.card == card && order.open).map(|order| order.hold).sum()
    }

    fn free(&self, card: u32) -> i64 {
        self.balances[&card] - self.held(card)
    }
}

fn run(operations: &[Operation]) -> Result<(), TestCaseError> {
    let mut bench = bench();
    let mut model = Model::default();
    let epoch = bench.bind(ap(1), T0).epoch;
    for card in 1..=CARDS {
        bench.funded(card, 0);
        model.balances.insert(card, 0);
    }
    for operation in operations {
        match operation.clone() {
            Operation::Swipe { card, port, live } => {
                let swiped = bench.swiped(Swipe { epoch: live.then_some(epoch), ..swipe(ap(1), port, card, epoch) });
                if let Some(order) = swiped.order.filter(|_| !swiped.repeated) {
                    let hold = model.free(card).min(600);
                    prop_assert_eq!(amounts(&order), (Some(hold), true, None, None, None));
                    model.orders.push(ModelOrder { no: order.order_no, card, port, hold, open: true, charged: None });
                }
            }
            Operation::Request { card, port, minutes: ordered } => {
                let mode = if ordered == 0 { ChargeMode::Full } else { ChargeMode::Time { minutes: ordered } };
                let spec = ChargeSpec { mode, ..minutes(1) };
                let new = bench.new_order(ap(1), port, Some(epoch), T0);
                let created = bench.charge_by_card(NewOrder { spec, card_no: Some(card_no(card)), ..new });
                let needed = if ordered == 0 { model.free(card).max(1) } else { i64::from(ordered) };
                match created {
                    Created::Order { order, .. } => {
                        prop_assert_eq!(amounts(&order).0, Some(needed));
                        let no = order.order_no;
                        model.orders.push(ModelOrder { no, card, port, hold: needed, open: true, charged: None });
                    }
                    Created::CardRefused(refused) => {
                        let expected = CardRefused::Insufficient { free_cent: model.free(card), needed_cent: needed };
                        prop_assert_eq!(refused, expected);
                        prop_assert!(needed > model.free(card));
                    }
                    Created::PortBusy { .. } => {}
                    Created::TooLate => prop_assert!(false),
                }
            }
            Operation::Happens(index, event) => {
                let Some(order) = model.orders.get_mut(index) else { continue };
                let outcome = bench.happens(order.no, event, None, T0);
                let stored = outcome.order.unwrap();
                // When a hold goes back is tested above; here, that it only does so for a final order, and once.
                let open = stored.card.as_deref().unwrap().hold_open;
                prop_assert!(order.open || !open);
                prop_assert!(open || !order.open || stored.status.is_final());
                let stepped = matches!(outcome.verdict, Verdict::Step(_));
                prop_assert!(open == order.open || stepped);
                order.open = open;
            }
            Operation::Settle { order: index, minutes } => {
                let Some(order) = model.orders.get(index).cloned() else { continue };
                let stored = bench.order(order.no);
                let settled = bench.settle(settlement(&stored, minutes));
                prop_assert_eq!(settled.stored, order.charged.is_none());
                if settled.stored {
                    let ordered = stored.spec.mode.minutes().map_or(u32::MAX, u32::from);
                    let price = i64::from(minutes.min(ordered));
                    let most = if order.open { order.hold } else { model.free(order.card) };
                    let charged = price.min(most);
                    let expected = (Some(order.hold), false, Some(price), Some(charged), Some(price - charged));
                    prop_assert_eq!(amounts(&settled.order.unwrap()), expected);
                    *model.balances.get_mut(&order.card).unwrap() -= charged;
                    (model.orders[index].open, model.orders[index].charged) = (false, Some(charged));
                }
            }
            Operation::Offline { card, record, minutes } => {
                let key = SettlementKey::Ap3000 {
                    device_id: ap(1),
                    port: 0,
                    start_mode: 0,
                    order_ref: [record; 16],
                    duration_seconds: 0,
                    energy_raw: 0,
                };
                let settled = bench.settle(Settlement {
                    key,
                    duration_seconds: u32::from(minutes) * 60,
                    end: SettlementEnd::Ap3000 { reason: 1 },
                    card_no: Some(card_no(card)),
                    ..ap_settlement(ap(1), 1, [record; 16], 1, T0)
                });
                prop_assert_eq!(settled.stored, model.records.insert(record, ()).is_none());
                if settled.stored {
                    let charged = i64::from(minutes).min(model.free(card));
                    *model.balances.get_mut(&card).unwrap() -= charged;
                    prop_assert_eq!(amounts(&settled.order.unwrap()).3, Some(charged));
                }
            }
            Operation::Recharge { card, cent, key } => {
                let asked = Idempotency {
                    api_key: "shop".into(),
                    route: format!("POST /cards/{card}/recharge"),
                    key: key.to_string(),
                    body_hash: [cent as u8; 32],
                };
                let (request_id, change) = ("r".to_owned(), recharge(cent));
                let job = CardJob { card_no: card_no(card), change, at: T0, request_id, idempotency: Some(asked) };
                match (bench.run(Job::Card(Box::new(job))), model.keys.get(&(card, key))) {
                    (Outcome::Card(outcome), None) => {
                        let done = matches!(*outcome, CardOutcome::Done { .. });
                        prop_assert!(done);
                        model.keys.insert((card, key), cent);
                        *model.balances.get_mut(&card).unwrap() += cent;
                    }
                    (Outcome::Repeated(Earlier::Answer { .. }), Some(before)) => prop_assert_eq!(*before, cent),
                    (Outcome::Repeated(Earlier::Mismatch), Some(before)) => prop_assert_ne!(*before, cent),
                    other => prop_assert!(false, "{:?}", other),
                }
            }
            Operation::HourLater => {
                let backstop = Backstop {
                    at: T0 + HOUR_MS,
                    interrupts_from: i64::MAX,
                    offline_from: i64::MAX,
                    interrupt_grace: 0,
                    offline_grace: 0,
                };
                drop(bench.run(Job::Backstop(backstop)));
                for order in &mut model.orders {
                    order.open &= bench.order(order.no).status.is_active();
                }
            }
            Operation::Restart => bench = bench.reopen(),
        }
        for card in 1..=CARDS {
            let account = bench.card(card);
            prop_assert_eq!((account.balance_cent, account.held_cent), (model.balances[&card], model.held(card)));
            prop_assert!(account.held_cent >= 0 && account.free_cent() >= 0);
            prop_assert_eq!(bench.log_sums(card), (account.balance_cent, account.held_cent));
        }
    }
    // Each movement is there once, and their sum is the balance.
    for card in 1..=CARDS {
        let moved = bench.read(move |reader| reader.card_transactions(&card_no(card), 1, 1000)).rows;
        prop_assert_eq!(moved.iter().map(|moved| moved.amount_cent).sum::<i64>(), model.balances[&card]);
        let mut orders: Vec<_> = moved.iter().filter_map(|moved| moved.order_no).collect();
        let charges = orders.len();
        orders.sort_unstable();
        orders.dedup();
        prop_assert_eq!(orders.len(), charges);
    }
    for order in &model.orders {
        let stored = bench.order(order.no);
        let card = stored.card.as_deref().unwrap();
        prop_assert_eq!((stored.port_no, card.hold_open, card.charged_cent), (order.port, order.open, order.charged));
    }
    prop_assert!(!bench.alarms().iter().any(|reason| reason == "settlement_quarantined"));
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: if store::ON_POSTGRES { 8 } else { 32 }, max_shrink_iters: 400, ..ProptestConfig::default() })]

    #[test]
    fn accounts_agree_with_a_model_whatever_happens(operations in prop::collection::vec(operation(), 1..60)) {
        run(&operations)?;
    }
}
