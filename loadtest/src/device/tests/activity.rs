//! Devices at which things happen by themselves.

use chargegate::protocol::Direction;
use chargegate::protocol::Step;
use chargegate::protocol::ap3000::body::Body;
use chargegate::protocol::ap3000::{Item, Magics, decode_body, deframe};
use chargegate::protocol::bkv;

use super::*;
use crate::device::activity::{Active, Activity, FIRST_CARD};

const BUSY: Activity =
    Activity { swipe_every_us: 20 * SECOND_US, offline_percent: 0, cards: 3, alarm_every_us: 50 * SECOND_US };

/// Printed numbers of the swiped cards, and the number of alarms, of a charger in an hour.
fn charger_in_an_hour(activity: Activity) -> (Vec<u32>, usize, Vec<Event>) {
    let device = Ap3000Device::new(1, 4, Behaviour { time_factor: 60, ..Behaviour::default() });
    let mut wire = Wire::connect(Active::new(device, activity, 7, 1));
    wire.pass(3600 * SECOND_US);
    let (mut cards, mut alarms, mut at) = (Vec::new(), 0, 0);
    while let Step::Item { item, consumed } = deframe(&wire.sent[at..], &Magics::default()) {
        if let Item::Frame(frame) = item {
            match decode_body(&frame, Direction::Up).unwrap() {
                Body::CardSwipe(swipe) => cards.push(u32::from_be_bytes(swipe.card_id.0)),
                Body::Alarm(_) => alarms += 1,
                _ => {}
            }
        }
        at += consumed;
    }
    let events = wire.events();
    (cards, alarms, events)
}

#[test]
fn cards_and_alarms_come_at_the_rate_they_should() {
    let (cards, alarms, _) = charger_in_an_hour(BUSY);
    assert!((40..=80).contains(&alarms), "about 72, got {alarms}");
    assert!(cards.len() > 60, "each is sent twice, and blocks the reader for 30 s; got {}", cards.len());
    assert!(cards.iter().all(|card| (FIRST_CARD..FIRST_CARD + 3).contains(card)));
    assert!((FIRST_CARD..FIRST_CARD + 3).all(|card| cards.contains(&card)));
    assert_eq!(charger_in_an_hour(BUSY).0, cards, "a run repeats");
}

#[test]
fn offline_cards_charge_without_asking() {
    let (cards, _, events) = charger_in_an_hour(Activity { offline_percent: 100, ..BUSY });
    assert_eq!(cards.len(), 0);
    let count = |wanted: fn(&Event) -> bool| events.iter().filter(|event| wanted(event)).count();
    let (started, ended) = (
        count(|event| matches!(event, Event::ChargeStarted(_))),
        count(|event| matches!(event, Event::ChargeEnded(_))),
    );
    assert!(started > 100 && started - ended <= 4, "{started} started, {ended} ended");
}

#[test]
fn nothing_happens_by_default() {
    assert_eq!(
        Active::new(Ap3000Device::new(1, 2, Behaviour::default()), Activity::default(), 7, 1).poll_timeout(),
        None
    );
    let (cards, alarms, _) = charger_in_an_hour(Activity::default());
    assert_eq!((cards.len(), alarms), (0, 0));
}

#[test]
fn gateways_swipe_and_except() {
    let mut wire = Wire::connect(Active::new(BkvDevice::new(1, 2, Behaviour::default()), BUSY, 7, 1));
    wire.pass(600 * SECOND_US);
    let (mut swipes, mut exceptions, mut at) = (Vec::new(), 0, 0);
    while let Step::Item { item, consumed } = bkv::deframe(&wire.sent[at..]) {
        match bkv::decode_body(&item).unwrap() {
            bkv::Body::CardSwipe(_, swipe) => swipes.push(swipe.card.0),
            bkv::Body::Exception(_) => exceptions += 1,
            _ => {}
        }
        at += consumed;
    }
    assert!(swipes.len() > 5 && exceptions > 5, "{} swipes, {exceptions} exceptions", swipes.len());
    assert!(swipes.iter().all(|card| card[..5] == [0, 0x10, 0, 0, 0] && card[5] < 3));
}

#[test]
fn a_quiet_device_begins_nothing_more() {
    let mut wire = Wire::connect(Active::new(Ap3000Device::new(1, 2, Behaviour::default()), BUSY, 7, 1));
    wire.device.quieten();
    wire.events();
    wire.pass(3600 * SECOND_US);
    let cards = wire.events().into_iter().filter(|event| matches!(event, Event::Sent(Request::Card)));
    assert_eq!(cards.count(), 0);
}
