//! Cards from the reader to the wire: the core with the real store, bytes in and frames out.

mod fleet;

use chargegate::{
    gateway::{
        ConnId, Message,
        card::{CardMode, CardRules, NamedTariff},
    },
    model::{CardNo, CardState, ChargeMode, ChargeSpec, DeviceId},
    pricing::Tariff,
    protocol::ap3000::PhyId,
    store::{CardChange, CardJob, CardVerdict, Job},
    telemetry::label::ShardEvent,
};
use fleet::{Gateway, ap, bkv, bkv_heartbeat, bkv_up, heartbeat, registration, up};

const UID: [u8; 4] = [0x7A, 0x8D, 0x05, 0xDD];
const DIGITS: [u8; 6] = [0x12, 0x34, 0x56, 0x78, 0x90, 0x12];
const IDLE: u8 = 0;
const CHARGING: u8 = 1;
const FAULT: u8 = 0x0B;

/// 1 cent a minute.
fn rules() -> CardRules {
    let tariffs = vec![NamedTariff { name: "time".into(), tariff: Tariff::Time { price_cent: 1, minutes: 1 } }];
    CardRules { tariffs, tariff: Some("time".into()), ..CardRules::default() }
}

fn gateway() -> Gateway {
    Gateway::with_cards(rules(), |_| {})
}

fn change(gateway: &mut Gateway, card_no: &CardNo, change: CardChange) {
    let at = gateway.now().unix_ms;
    let job = CardJob { card_no: card_no.clone(), change, at, request_id: "r".into(), idempotency: None };
    gateway.call(Job::Card(Box::new(job)));
}

fn fund(gateway: &mut Gateway, card_no: &CardNo, amount_cent: i64) {
    change(gateway, card_no, CardChange::Register { state: CardState::NORMAL, tariff: None, expires_at: None });
    change(gateway, card_no, CardChange::Recharge { amount_cent, reference: None });
}

/// An AP3000 device with two ports, bound and quiet.
fn connect(gateway: &mut Gateway, id: DeviceId) -> ConnId {
    let conn = gateway.connect();
    gateway.receive(conn, &registration(id, 2));
    gateway.receive(conn, &heartbeat(id, &[IDLE, IDLE]));
    gateway.pass(1_000);
    gateway.take_written();
    conn
}

fn connect_bkv(gateway: &mut Gateway, id: DeviceId) -> ConnId {
    let conn = gateway.connect();
    gateway.receive(conn, &bkv_heartbeat(id));
    gateway.pass(1_000);
    gateway.take_written();
    conn
}

fn swipe(id: DeviceId, msg_id: u16, uid: [u8; 4], port: u8) -> Vec<u8> {
    up(id, msg_id, 0x02, &[&uid[..], &[0, port]].concat())
}

/// Card, state, rate mode, balance, port of a 02 reply.
fn reply_of(frame: &fleet::Down) -> ([u8; 4], u8, u8, u32, u8) {
    assert_eq!((frame.command, frame.data.len()), (0x02, 11));
    let data = &frame.data;
    let balance = u32::from_le_bytes(data[6..10].try_into().unwrap());
    (data[..4].try_into().unwrap(), data[4], data[5], balance, data[10])
}

fn bkv_swipe(id: DeviceId, business_no: u16, card: [u8; 6]) -> Vec<u8> {
    let mut body = vec![0, 31, 0x0B, 0, 0];
    body.extend(business_no.to_be_bytes());
    body.push(0x90);
    body.extend(card);
    body.extend([0; 20]);
    bkv_up(id, 0x0015, 0, &body)
}

fn inner(sub: u8, fields: &[u8]) -> Vec<u8> {
    [&[0, u8::try_from(fields.len()).unwrap(), sub], fields].concat()
}

#[test]
fn an_ap3000_swipe_is_answered_then_started_half_a_second_later() {
    let mut gateway = gateway();
    let conn = connect(&mut gateway, ap(1));
    fund(&mut gateway, &CardNo::from_uid(UID), 90);
    gateway.receive(conn, &swipe(ap(1), 50, UID, 1));
    let frames = gateway.frames(conn);
    assert_eq!(frames.len(), 1, "the reply alone");
    assert_eq!((reply_of(&frames[0]), frames[0].msg_id), ((UID, 0, 0, 90, 1), 50));
    gateway.pass(499);
    assert!(gateway.frames(conn).is_empty(), "the module loses what comes sooner");
    gateway.pass(1);
    let frames = gateway.frames(conn);
    let [start] = &frames[..] else { panic!("{frames:?}") };
    let order_no = gateway.value("SELECT order_no FROM orders").unwrap();
    // Rate mode, balance, port, start, seconds, order number; then the option that stops when full.
    assert_eq!(start.command, 0x82);
    assert_eq!(start.data[..9], [0, 90, 0, 0, 0, 1, 1, 0x18, 0x15], "90 min are 5400 s");
    assert_eq!(&start.data[9..25], order_no.as_bytes());
    assert_eq!((start.data.len(), start.data[35]), (36, 1));
    // Acknowledged, charged, and settled: the money moves.
    gateway.receive(conn, &up(ap(1), start.msg_id, 0x82, &[&[0], order_no.as_bytes(), &[1]].concat()));
    let mut record = vec![0xB0, 0x04, 0, 0, 5, 0, 1, 1, 0, 0, 0, 0, 1];
    record.extend(order_no.as_bytes());
    gateway.receive(conn, &up(ap(1), 60, 0x03, &record));
    gateway.receive(conn, &up(ap(1), 61, 0x03, &record));
    let acks = gateway.frames(conn);
    assert_eq!(acks.iter().filter(|frame| frame.command == 0x03).count(), 2);
    let account = gateway.value("SELECT balance_cent || ' ' || held_cent FROM cards");
    assert_eq!(account.as_deref(), Some("70 0"), "20 minutes");
}

#[test]
fn the_same_swipe_again_gets_the_same_reply_and_no_second_order() {
    let mut gateway = gateway();
    let conn = connect(&mut gateway, ap(1));
    fund(&mut gateway, &CardNo::from_uid(UID), 90);
    // Twice while the store is busy: one reply.
    gateway.store_waits = true;
    gateway.receive(conn, &swipe(ap(1), 50, UID, 0));
    gateway.receive(conn, &swipe(ap(1), 50, UID, 0));
    assert!(gateway.frames(conn).is_empty(), "nothing is said before the store has decided");
    gateway.store_goes_on();
    let first = gateway.frames(conn);
    assert_eq!(first.len(), 1);
    // The reply was lost: the frame comes again, and so does the reply, word for word.
    gateway.receive(conn, &swipe(ap(1), 50, UID, 0));
    assert_eq!(gateway.frames(conn), first);
    // The holder swipes once more, before and during the charge: told the same, and nothing is stopped.
    gateway.receive(conn, &swipe(ap(1), 51, UID, 0));
    gateway.pass(1_000);
    let frames = gateway.frames(conn);
    assert_eq!(frames.iter().map(|frame| frame.command).collect::<Vec<_>>(), [0x02, 0x82]);
    assert_eq!(reply_of(&frames[0]), reply_of(&first[0]));
    let order_no = gateway.value("SELECT order_no FROM orders").unwrap();
    let start = &frames[1];
    gateway.receive(conn, &up(ap(1), start.msg_id, 0x82, &[&[0], order_no.as_bytes(), &[0]].concat()));
    gateway.receive(conn, &heartbeat(ap(1), &[CHARGING, IDLE]));
    gateway.take_written();
    gateway.receive(conn, &swipe(ap(1), 52, UID, 0));
    gateway.pass(2_000);
    let frames = gateway.frames(conn);
    let [reply] = &frames[..] else { panic!("{frames:?}") };
    assert_eq!(reply_of(reply).1, 0);
    assert_eq!(gateway.value("SELECT count(*) || '' FROM orders").as_deref(), Some("1"));
    assert_eq!(gateway.value("SELECT status || '' FROM orders").as_deref(), Some("2"));
    // Another card on the port is told that it cannot be used.
    gateway.receive(conn, &swipe(ap(1), 53, [9; 4], 0));
    fund(&mut gateway, &CardNo::from_uid([8; 4]), 90);
    gateway.receive(conn, &swipe(ap(1), 54, [8; 4], 0));
    let states: Vec<u8> = gateway.frames(conn).iter().map(|frame| reply_of(frame).1).collect();
    assert_eq!(states, [1, 8]);
}

#[test]
fn cards_that_may_not_charge_hear_why_and_start_nothing() {
    let mut gateway = gateway();
    let conn = connect(&mut gateway, ap(1));
    let card_no = CardNo::from_uid(UID);
    gateway.receive(conn, &swipe(ap(1), 10, UID, 0));
    fund(&mut gateway, &card_no, 1);
    gateway.receive(conn, &heartbeat(ap(1), &[FAULT, IDLE]));
    gateway.receive(conn, &swipe(ap(1), 11, UID, 0));
    for (msg_id, state) in (20..).zip(CardState::ALL.iter().skip(1)) {
        change(&mut gateway, &card_no, CardChange::Update { state: Some(*state), tariff: None, expires_at: None });
        gateway.receive(conn, &swipe(ap(1), msg_id, UID, 1));
    }
    gateway.pass(2_000);
    let frames = gateway.frames(conn);
    assert!(frames.iter().all(|frame| matches!(frame.command, 0x02 | 0x21)), "no start");
    let states: Vec<u8> = frames.iter().filter(|frame| frame.command == 0x02).map(|frame| reply_of(frame).1).collect();
    assert_eq!(states[..2], [1, 8]);
    assert_eq!(states[2..], (1..=0x12).collect::<Vec<u8>>());
    // A module without a number of its own takes no orders.
    let fallback = DeviceId::Ap3000(PhyId::from_parts(4, 12_000_000).unwrap());
    let conn = connect(&mut gateway, fallback);
    gateway.receive(conn, &swipe(fallback, 10, UID, 0));
    assert_eq!(reply_of(&gateway.frames(conn)[0]).1, 0x0C);
    assert_eq!(gateway.value("SELECT count(*) || '' FROM orders").as_deref(), Some("0"));
    assert_eq!(gateway.counted(ShardEvent::CardRefused), 2 + 0x12 + 1);
}

#[test]
fn port_ff_asks_for_the_balance_only() {
    let mut gateway = gateway();
    let conn = connect(&mut gateway, ap(1));
    let card_no = CardNo::from_uid(UID);
    fund(&mut gateway, &card_no, 4_321);
    gateway.receive(conn, &swipe(ap(1), 10, UID, 0xFF));
    assert_eq!(reply_of(&gateway.frames(conn)[0]), (UID, 0, 0, 4_321, 0xFF));
    let end_s = 1_800_000_000;
    let plan = CardChange::Update { state: None, tariff: None, expires_at: Some(Some(end_s * 1000)) };
    change(&mut gateway, &card_no, plan);
    gateway.receive(conn, &swipe(ap(1), 11, UID, 0xFF));
    assert_eq!(reply_of(&gateway.frames(conn)[0]), (UID, 0, 1, u32::try_from(end_s).unwrap(), 0xFF));
    gateway.pass(2_000);
    assert!(gateway.frames(conn).is_empty());
    // With a plan the charge runs until full, at the monthly rate.
    gateway.receive(conn, &swipe(ap(1), 12, UID, 0));
    gateway.pass(1_000);
    let frames = gateway.frames(conn);
    assert_eq!((frames[1].command, frames[1].data[0], &frames[1].data[7..9]), (0x82, 1, &[0, 0][..]));
}

#[test]
fn a_long_number_is_the_card() {
    let mut gateway = gateway();
    let conn = connect(&mut gateway, ap(1));
    let number = *b"3301000012345678";
    fund(&mut gateway, &CardNo::from_long(&number).unwrap(), 70);
    let data = [&[0, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0, 16][..], &number].concat();
    gateway.receive(conn, &up(ap(1), 10, 0x02, &data));
    assert_eq!(reply_of(&gateway.frames(conn)[0]), ([0; 4], 0, 0, 70, 0));
    assert_eq!(gateway.value("SELECT card_no FROM orders").as_deref(), Some("3301000012345678"));
}

#[test]
fn a_swipe_that_the_store_takes_too_long_for_is_not_answered() {
    let mut gateway = gateway();
    let conn = connect(&mut gateway, ap(1));
    fund(&mut gateway, &CardNo::from_uid(UID), 90);
    gateway.store_waits = true;
    gateway.receive(conn, &swipe(ap(1), 50, UID, 0));
    gateway.pass(13_000);
    gateway.store_goes_on();
    gateway.pass(1_000);
    assert!(gateway.frames(conn).iter().all(|frame| !matches!(frame.command, 0x02 | 0x82)));
    assert_eq!(gateway.value("SELECT count(*) || '' FROM orders").as_deref(), Some("0"));
    assert_eq!(gateway.counted(ShardEvent::CardSwipeLost), 1);
    // The device sends it once more after 15 s.
    gateway.receive(conn, &swipe(ap(1), 50, UID, 0));
    assert_eq!(reply_of(&gateway.frames(conn)[0]).1, 0);
}

#[test]
fn without_accounts_no_card_is_registered() {
    let mut gateway = Gateway::with_cards(CardRules { mode: CardMode::Off, ..rules() }, |_| {});
    let conn = connect(&mut gateway, ap(1));
    gateway.store_waits = true;
    gateway.receive(conn, &swipe(ap(1), 50, UID, 0));
    assert_eq!(reply_of(&gateway.frames(conn)[0]).1, 1, "at once, without the store");
}

#[test]
fn a_bkv_swipe_is_answered_by_its_order() {
    let mut gateway = gateway();
    let conn = connect_bkv(&mut gateway, bkv(1));
    fund(&mut gateway, &CardNo::from_digits(DIGITS), 90);
    gateway.receive(conn, &bkv_swipe(bkv(1), 77, DIGITS));
    let frames = gateway.bkv_frames(conn);
    let [(0x0015, sequence, order)] = &frames[..] else { panic!("{frames:?}") };
    assert_ne!(*sequence, 0);
    // Socket 0, hole 0, number 77, on, mode time, 90 min, no energy.
    assert_eq!(*order, inner(0x0B, &[0, 0, 0, 77, 1, 1, 0, 90, 0, 0]));
    // The swipe again: the same order once more, under its sequence.
    gateway.receive(conn, &bkv_swipe(bkv(1), 77, DIGITS));
    assert_eq!(gateway.bkv_frames(conn), frames);
    gateway.receive(conn, &bkv_up(bkv(1), 0x0015, *sequence, &inner(0x0F, &[0, 0, 1])));
    assert_eq!(gateway.value("SELECT status || '' FROM orders").as_deref(), Some("1"));
    assert_eq!(gateway.value("SELECT state FROM outbound_queue").as_deref(), Some("acked"));
    // Confirmed: one more swipe is not answered, as a refusal is a switch-off.
    gateway.receive(conn, &bkv_swipe(bkv(1), 78, DIGITS));
    gateway.receive(conn, &bkv_swipe(bkv(1), 79, [9; 6]));
    let quiet = gateway.bkv_frames(conn);
    assert!(quiet.is_empty(), "{quiet:?}");
    // The end: 20 minutes, 100 Wh, mode time.
    let mut end = vec![0, 0x50, 0x36, 25, 20, 0, 0x90, 0, 77, 0, 0, 0, 0, 0, 100, 0, 20];
    end.extend(DIGITS);
    end.extend([0, 1, 0, 0, 0, 0, 0]);
    for _ in 0..2 {
        gateway.receive(conn, &bkv_up(bkv(1), 0x0015, 0, &inner(0x0C, &end)));
        assert!(gateway.bkv_frames(conn).iter().any(|(_, _, body)| *body == inner(0x0C, &[0, 1])), "acknowledged");
    }
    let account = gateway.value("SELECT balance_cent || ' ' || held_cent FROM cards");
    assert_eq!(account.as_deref(), Some("70 0"));
    assert_eq!(gateway.value("SELECT charged_cent || ' ' || status FROM orders").as_deref(), Some("20 3"));
}

#[test]
fn a_bkv_card_that_may_not_charge_is_switched_off() {
    let mut gateway = gateway();
    let conn = connect_bkv(&mut gateway, bkv(1));
    gateway.receive(conn, &bkv_swipe(bkv(1), 77, DIGITS));
    let frames = gateway.bkv_frames(conn);
    let [(0x0015, sequence, refusal)] = &frames[..] else { panic!("{frames:?}") };
    assert_ne!(*sequence, 0);
    assert_eq!(*refusal, inner(0x0B, &[0, 0, 0, 77, 0, 1, 0, 0, 0, 0]));
    // A refusal of the order by the device ends it, and gives the hold back.
    fund(&mut gateway, &CardNo::from_digits(DIGITS), 90);
    gateway.receive(conn, &bkv_swipe(bkv(1), 78, DIGITS));
    let sequence = gateway.bkv_frames(conn)[0].1;
    gateway.receive(conn, &bkv_up(bkv(1), 0x0015, sequence, &inner(0x0F, &[0, 0, 0])));
    let order = gateway.value("SELECT status || ' ' || failure_reason || ' ' || hold_open FROM orders");
    assert_eq!(order.as_deref(), Some("6 device_refused_00 0"));
    assert_eq!(gateway.value("SELECT held_cent || '' FROM cards").as_deref(), Some("0"));
}

#[test]
fn a_bkv_balance_has_a_fresh_sequence_each_time() {
    let mut gateway = gateway();
    let conn = connect_bkv(&mut gateway, bkv(1));
    fund(&mut gateway, &CardNo::from_digits(DIGITS), 0x1389);
    let query = bkv_up(bkv(1), 0x0015, 0, &inner(0x1A, &[&[0, 1][..], &DIGITS].concat()));
    let mut sequences = Vec::new();
    for _ in 0..2 {
        gateway.receive(conn, &query);
        let frames = gateway.bkv_frames(conn);
        let [(0x0015, sequence, body)] = &frames[..] else { panic!("{frames:?}") };
        assert_eq!(*body, inner(0x1A, &[&[0, 1][..], &DIGITS, &[0, 0, 0x13, 0x89]].concat()));
        sequences.push(*sequence);
    }
    assert!(sequences[0] != 0 && sequences[1] != 0 && sequences[0] != sequences[1]);
}

#[test]
fn bkv_card_time_may_be_in_seconds() {
    let mut gateway = Gateway::with_cards(rules(), |config| config.bkv.card_time_in_seconds = true);
    let conn = connect_bkv(&mut gateway, bkv(1));
    fund(&mut gateway, &CardNo::from_digits(DIGITS), 600);
    gateway.receive(conn, &bkv_swipe(bkv(1), 1, DIGITS));
    let [high, low] = 36_000_u16.to_be_bytes();
    assert_eq!(gateway.bkv_frames(conn)[0].2, inner(0x0B, &[0, 0, 0, 1, 1, 1, high, low, 0, 0]));
}

#[test]
fn a_third_party_decides_where_it_keeps_the_cards() {
    let mut gateway = Gateway::with_cards(CardRules { mode: CardMode::Webhook, ..rules() }, |_| {});
    let conn = connect(&mut gateway, ap(1));
    gateway.receive(conn, &swipe(ap(1), 50, UID, 1));
    gateway.receive(conn, &swipe(ap(1), 50, UID, 1));
    assert!(gateway.frames(conn).is_empty());
    let asks = std::mem::take(&mut gateway.asks);
    let [ask] = &asks[..] else { panic!("{asks:?}") };
    assert_eq!((ask.card_no.as_str(), ask.device_id, ask.port_no), ("7a8d05dd", ap(1), Some(2)));
    let spec = ChargeSpec { mode: ChargeMode::Energy { wh: 500 }, paid_cent: None, stop_when_full: false };
    let verdict = CardVerdict { state: CardState::NORMAL, balance_cent: 77, spec: Some(spec) };
    let (device_id, ticket) = (ask.device_id, ask.ticket);
    gateway.message(Message::CardAnswer { device_id, ticket, verdict: Some(verdict.clone()) });
    gateway.pass(500);
    let frames = gateway.frames(conn);
    assert_eq!(reply_of(&frames[0]), (UID, 0, 0, 77, 1));
    assert_eq!((frames[1].command, &frames[1].data[..9]), (0x82, &[2, 77, 0, 0, 0, 1, 1, 50, 0][..]));
    // Said twice, it is done once.
    gateway.message(Message::CardAnswer { device_id, ticket, verdict: Some(verdict) });
    assert_eq!(gateway.value("SELECT count(*) || '' FROM orders").as_deref(), Some("1"));
    // Unanswered is refused.
    gateway.take_written();
    gateway.receive(conn, &swipe(ap(1), 51, UID, 0));
    let ticket = gateway.asks[0].ticket;
    gateway.message(Message::CardAnswer { device_id, ticket, verdict: None });
    assert_eq!(reply_of(&gateway.frames(conn)[0]).1, 8);
    assert_eq!(gateway.counted(ShardEvent::CardUnanswered), 1);
    // Too late is nothing.
    gateway.asks.clear();
    gateway.receive(conn, &swipe(ap(1), 52, UID, 0));
    let ticket = gateway.asks[0].ticket;
    gateway.pass(13_000);
    gateway.take_written();
    let verdict = CardVerdict { state: CardState::NORMAL, balance_cent: 77, spec: None };
    gateway.message(Message::CardAnswer { device_id, ticket, verdict: Some(verdict) });
    assert!(gateway.frames(conn).is_empty());
    assert_eq!(gateway.value("SELECT count(*) || '' FROM orders").as_deref(), Some("1"));
}

#[test]
fn an_offline_card_is_charged_by_its_record() {
    let mut gateway = gateway();
    let conn = connect(&mut gateway, ap(1));
    fund(&mut gateway, &CardNo::from_uid(UID), 15);
    let mut record = vec![0xB0, 0x04, 0, 0, 5, 0, 0, 0];
    record.extend(UID);
    record.push(1);
    record.extend(*b"offline card 001");
    gateway.receive(conn, &up(ap(1), 60, 0x03, &record));
    let order =
        gateway.value("SELECT card_no || ' ' || price_cent || ' ' || charged_cent || ' ' || origin FROM orders");
    assert_eq!(order.as_deref(), Some("7a8d05dd 20 15 device"));
    assert_eq!(gateway.value("SELECT balance_cent || '' FROM cards").as_deref(), Some("0"));
}
