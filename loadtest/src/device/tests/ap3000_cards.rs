//! Cards, offline charges, verification codes.

use chargegate::protocol::ap3000::body::{Body, CardReply, ChargeControl};
use chargegate::protocol::ap3000::codes::{AccountState, ChargeResult, RateMode, StartMode, StopReason};
use chargegate::protocol::ap3000::encode;
use chargegate::protocol::ap3000::offline::{OfflineOrder, Starter, VerificationCode};
use chargegate::protocol::ap3000::wire::{Extra, Raw};

use super::ap3000::{ORDER, Sent, charger};
use super::*;
use crate::device::ap3000::{BALANCE_ONLY, Card, SwipeState};
use crate::device::ledger::{CardNumber, Start, State};

const CARD: Card = Card::new([0x7a, 0x8d, 0x05, 0xdd]);
const UNIX_S: u32 = 1_604_934_878;

impl Wire<Ap3000Device> {
    /// Card, port and message id of each 0x02 that was sent.
    fn swipes(&mut self) -> Vec<([u8; 4], u8, u16)> {
        self.bodies(|msg_id, body| match body {
            Body::CardSwipe(swipe) => Some((swipe.card_id.0, swipe.port, msg_id)),
            _ => None,
        })
    }

    fn answer(&mut self, msg_id: u16, port: u8, account_state: AccountState) -> CardReply<'static> {
        let reply = CardReply {
            card_id: Raw(CARD.id),
            account_state,
            rate_mode: RateMode::TIMED,
            balance_or_expiry: 1234,
            port,
            extra: Extra::NONE,
        };
        let mut frame = Vec::new();
        encode::card_reply(&mut frame, &self.header(msg_id), &reply);
        self.receive(&frame);
        reply
    }

    fn set_clock(&mut self) {
        let mut frame = Vec::new();
        encode::time_reply(&mut frame, &self.header(2), 0x22, UNIX_S);
        self.receive(&frame);
    }
}

#[test]
fn a_card_charges_by_the_start_that_follows() {
    let mut wire = charger();
    wire.items();
    assert!(wire.device.swipe(wire.now_us, &CARD, 1));
    assert!(!wire.device.swipe(wire.now_us, &CARD, 0), "one at a time");
    wire.device.poll_output(&mut wire.sent);
    let [(card, port, msg_id)] = wire.swipes()[..] else { panic!("one swipe") };
    assert_eq!((card, port), (CARD.id, 1));
    let reply = wire.answer(msg_id, 1, AccountState::NORMAL);
    assert_eq!(wire.device.last_swipe().unwrap().state, SwipeState::Answered(reply));
    assert_eq!(wire.device.ledger().begun(), 0, "an answer starts nothing");
    wire.pass(SECOND_US);
    assert_eq!(wire.start(7, 1, 60), ChargeResult::SUCCESS);
    assert_eq!(wire.device.last_swipe().unwrap().state, SwipeState::Charging(reply));
    assert_eq!(wire.device.ledger().last().unwrap().start, Start::Card(CardNumber::Uid(CARD.id)));
    wire.pass(62 * SECOND_US);
    let settlement = wire.settlements()[0].1;
    assert_eq!((settlement.start_mode, settlement.card_or_code.0), (StartMode::ONLINE, [0; 4]));
}

#[test]
fn a_refused_or_late_card_is_not_charged() {
    for (state, wait_us) in [(AccountState::BALANCE, SECOND_US), (AccountState::NORMAL, 16 * SECOND_US)] {
        let mut wire = charger();
        wire.device.swipe(wire.now_us, &CARD, 0);
        wire.device.poll_output(&mut wire.sent);
        let msg_id = wire.swipes()[0].2;
        wire.answer(msg_id, 0, state);
        wire.pass(wait_us);
        assert_eq!(wire.start(7, 0, 60), ChargeResult::SUCCESS, "somebody else's start");
        assert_eq!(wire.device.ledger().last().unwrap().start, Start::Online);
    }
}

#[test]
fn a_swipe_without_answer_goes_out_once_more() {
    let mut wire = charger();
    wire.items();
    wire.device.swipe(wire.now_us, &Card::long(*b"0123456789ABCDEF"), BALANCE_ONLY);
    wire.pass(15 * SECOND_US);
    let swipes = wire.bodies(|msg_id, body| match body {
        Body::CardSwipe(swipe) => Some((msg_id, swipe.card_type, swipe.long_card.unwrap().as_bytes().to_vec())),
        _ => None,
    });
    assert_eq!(swipes.len(), 2);
    assert_eq!(swipes[0], swipes[1], "the same message id");
    assert_eq!((swipes[0].1, &swipes[0].2[..]), (4, &b"0123456789ABCDEF"[..]));
    wire.pass(60 * SECOND_US);
    assert_eq!(wire.swipes(), []);
    assert_eq!(wire.device.last_swipe().unwrap().state, SwipeState::Unanswered);
    let cards = |event: &Event| matches!(event, Event::Sent(Request::Card) | Event::Unanswered(Request::Card));
    assert_eq!(wire.events().iter().filter(|event| cards(event)).count(), 4);
    wire.device.disconnected(wire.now_us);
    assert!(!wire.device.swipe(wire.now_us, &CARD, 0), "no connection");
}

#[test]
fn an_offline_card_is_settled_when_the_server_is_back() {
    let mut wire = charger();
    wire.set_clock();
    wire.pass(10 * SECOND_US);
    wire.device.disconnected(wire.now_us);
    assert!(wire.device.offline_charge(wire.now_us, &CARD, 1, Some(600)));
    assert!(!wire.device.offline_charge(wire.now_us, &CARD, 1, Some(600)), "the port is taken");
    wire.pass(700 * SECOND_US);
    wire.sent.clear();
    wire.device.connected(wire.now_us);
    wire.pass(2 * SECOND_US);
    let (msg_id, settlement) = wire.settlements()[0];
    assert_eq!((settlement.start_mode, settlement.card_or_code.0), (StartMode::CARD, CARD.id));
    assert_eq!((settlement.duration_s, settlement.stop_reason), (600, StopReason::DURATION));
    let order = OfflineOrder::parse(settlement.start_mode, settlement.order_no.0).unwrap();
    assert_eq!((order.starter, order.port), (Starter::Card(Raw(CARD.id)), 1));
    assert_eq!(order.time.to_unix(), Some(i64::from(UNIX_S) + 10));
    assert_eq!(order.printed_number, wire.device.phy_id().printed_number());
    wire.acknowledge(0x03, msg_id);
    let entry = wire.device.ledger().last().unwrap();
    assert_eq!((entry.start, entry.state), (Start::OfflineCard(CardNumber::Uid(CARD.id)), State::Acknowledged));
}

/// Its numbers tell charges apart by the second, the card and the port. Where charging runs fast the next could begin within the second.
#[test]
fn a_device_makes_no_order_number_twice() {
    let fast = Behaviour { time_factor: 3600, ..Behaviour::default() };
    let mut wire = Wire::connect(Ap3000Device::new(0, 2, fast));
    assert!(wire.device.offline_charge(wire.now_us, &CARD, 1, Some(600)));
    wire.pass(SECOND_US / 5);
    assert!(wire.device.ledger().last().unwrap().end.is_some());
    assert!(!wire.device.offline_charge(wire.now_us, &CARD, 1, Some(600)), "the server would take it for the first");
    assert!(wire.device.offline_charge(wire.now_us, &CARD, 0, Some(600)));
    wire.pass(SECOND_US);
    assert!(wire.device.offline_charge(wire.now_us, &CARD, 1, Some(600)));
    assert_eq!(wire.device.ledger().begun(), 3);
}

#[test]
fn an_offline_charge_is_reported_and_stopped_under_its_own_number() {
    let mut wire = charger();
    wire.items();
    assert!(wire.device.offline_charge(wire.now_us, &CARD, 0, None));
    wire.pass(SECOND_US);
    let orders = wire.bodies(|_, body| match body {
        Body::ChargingReport(report) => Some((report.start_mode, report.order_no.0)),
        _ => None,
    });
    let [(StartMode::CARD, order_no)] = orders[..] else { panic!("{orders:?}") };
    assert_eq!(order_no[..7], [0x19, 0x70, 0x01, 0x01, 0x08, 0x00, 0x01], "the clock was never set");
    assert_eq!(wire.control(1, &ChargeControl::stop(0, ORDER)).0, ChargeResult::SAME_STATE);
    assert_eq!(wire.control(2, &ChargeControl::stop(0, order_no)).0, ChargeResult::SUCCESS);
}

#[test]
fn a_verification_code_is_good_for_some_minutes() {
    let mut wire = charger();
    wire.set_clock();
    let code = VerificationCode::at(wire.device.phy_id(), 0, UNIX_S);
    assert!(!wire.device.code_charge(wire.now_us, code, 1, Some(60)), "another port");
    wire.pass(60 * SECOND_US);
    assert!(wire.device.code_charge(wire.now_us, code, 0, Some(60)));
    wire.pass(62 * SECOND_US);
    let settlement = wire.settlements()[0].1;
    assert_eq!(settlement.start_mode, StartMode::CODE);
    assert_eq!(VerificationCode::from_field(settlement.card_or_code), Some(code));
    let order = OfflineOrder::parse(settlement.start_mode, settlement.order_no.0).unwrap();
    assert_eq!((order.starter, order.port), (Starter::Code(code), 0));
    wire.pass(300 * SECOND_US);
    assert!(!wire.device.code_charge(wire.now_us, code, 0, Some(60)), "too late");
    assert_eq!(wire.items().into_iter().filter(|item| *item == Sent::Frame(0x82, 0)).count(), 0);
}
