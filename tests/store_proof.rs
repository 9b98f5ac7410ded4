//! What a store keeps of how an order came about, through the contract alone: who asked for it and once only, its commands, frames
//! with the epoch and the instance they went under, its settlement however that was found, and what became of its events.

mod services;
mod store;

use std::net::IpAddr;

use chargegate::{
    gateway::order::{Event, Verdict},
    model::{CommandState, DeviceId, Order, OrderNo, OrderStatus, ServerId},
    store::{
        CommandLogRow, CommandUpdate, Created, DeliveryLogRow, DeliveryOutcome, DeliveryUpdate, FrameFilter,
        FrameRecord, Idempotency, Job, NewOrder, OrderHistory, OrderJob, OrderWish, Outcome, ParkedDelivery,
        RequestRecord, Requester, SettlementKey,
    },
};
use store::{Bench, T0, ap, ap_settlement, bkv, bkv_settlement, order_job, until};

const ALWAYS: (i64, i64) = (i64::MIN, i64::MAX);

fn requester(api_key: &str) -> Requester {
    Requester { api_key: Some(api_key.into()), client_ip: Some(IpAddr::from([192, 0, 2, 7])) }
}

fn once(api_key: &str, key: &str) -> Option<Idempotency> {
    Some(Idempotency {
        api_key: api_key.into(),
        route: "POST /charge".to_owned(),
        key: key.to_owned(),
        body_hash: [7; 32],
    })
}

fn history(bench: &Bench, order: &Order) -> OrderHistory {
    let order = order.clone();
    bench.read(move |reader| reader.order_history(&order, ALWAYS))
}

fn requests(bench: &Bench, no: OrderNo) -> Vec<RequestRecord> {
    history(bench, &bench.order(no)).requests
}

fn asks(event: Event, no: OrderNo, api_key: &str, request_id: &str, at: i64) -> OrderJob {
    OrderJob {
        request_id: Some(request_id.to_owned()),
        requester: requester(api_key),
        idempotency: once(api_key, request_id),
        ..order_job(no, event, at)
    }
}

#[test]
fn each_request_that_an_order_accepted_is_kept_once() {
    let bench = Bench::new();
    let epoch = Some(bench.bind(ap(1), T0).epoch);
    let new = NewOrder {
        request_id: "r-1".to_owned(),
        requester: requester("shop"),
        idempotency: once("shop", "k-1"),
        ..bench.new_order(ap(1), 1, epoch, T0)
    };
    let no = new.order_no;
    let created = bench.run(Job::CreateOrder(Box::new(new.clone())));
    assert!(matches!(created, Outcome::Created(_)));
    assert!(matches!(bench.run(Job::CreateOrder(Box::new(new.clone()))), Outcome::Repeated(_)));
    // The same job once more, as after a commit without an answer.
    let again = NewOrder { idempotency: None, ..new };
    let Outcome::Created(again) = bench.run(Job::CreateOrder(Box::new(again))) else { panic!("not answered") };
    assert!(matches!(*again, Created::Order { command: None, .. }));
    // The port is taken.
    let busy = NewOrder { requester: requester("shop"), ..bench.new_order(ap(1), 1, epoch, T0) };
    let busy_no = busy.order_no;
    let Outcome::Created(refused) = bench.run(Job::CreateOrder(Box::new(busy))) else { panic!("not answered") };
    assert!(matches!(*refused, Created::PortBusy { .. }));

    bench.happens(no, Event::StartAcked, epoch, T0 + 1);
    bench.happens(no, Event::Evidence, epoch, T0 + 2);
    assert_eq!(bench.order_job(asks(Event::Cancel, no, "shop", "r-2", T0 + 3)).verdict, Verdict::Refused);
    assert!(matches!(bench.order_job(asks(Event::Stop, no, "till", "r-3", T0 + 4)).verdict, Verdict::Step(_)));
    let repeated = bench.run(Job::Order(Box::new(asks(Event::Stop, no, "till", "r-3", T0 + 5))));
    assert!(matches!(repeated, Outcome::Repeated(_)));
    // Accepted as well: it was under way.
    assert_eq!(bench.order_job(asks(Event::Stop, no, "shop", "r-4", T0 + 6)).verdict, Verdict::Unchanged);
    // What no third party asked for is no request.
    bench.happens(no, Event::StopAcked, epoch, T0 + 7);

    let kept = requests(&bench.reopen(), no);
    let first = RequestRecord {
        wish: OrderWish::Create,
        request_id: "r-1".to_owned(),
        api_key: Some("shop".to_owned()),
        idempotency_key: Some("k-1".to_owned()),
        client_ip: Some("192.0.2.7".to_owned()),
        instance: Some(ServerId::new("test")),
        at: T0,
    };
    let stop = |request_id: &str, api_key: &str, at| RequestRecord {
        wish: OrderWish::Stop,
        request_id: request_id.to_owned(),
        api_key: Some(api_key.to_owned()),
        idempotency_key: Some(request_id.to_owned()),
        at,
        ..first.clone()
    };
    assert_eq!(kept, [first.clone(), stop("r-3", "till", T0 + 4), stop("r-4", "shop", T0 + 6)]);
    assert_ne!(busy_no, no);
}

#[test]
fn a_cancelled_order_says_by_whom() {
    let bench = Bench::new();
    bench.bind(ap(1), T0);
    let (order, _) = bench.created(ap(1), 1, None, T0);
    let cancel = OrderJob { idempotency: None, ..asks(Event::Cancel, order.order_no, "till", "r-9", T0 + 1) };
    assert!(matches!(bench.order_job(cancel).verdict, Verdict::Step(_)));
    let kept = requests(&bench, order.order_no);
    let of = |record: &RequestRecord| (record.wish, record.api_key.clone(), record.idempotency_key.clone());
    assert_eq!(
        kept.iter().map(of).collect::<Vec<_>>(),
        [(OrderWish::Create, None, None), (OrderWish::Cancel, Some("till".to_owned()), None)]
    );
}

#[test]
fn many_requests_at_once_are_all_kept() {
    let bench = Bench::new();
    bench.bind(ap(1), T0);
    let orders: Vec<_> = (1..=40).map(|port_no| bench.new_order(ap(1), port_no, None, T0)).collect();
    let answers: Vec<_> = orders.iter().map(|new| bench.submit(Job::CreateOrder(Box::new(new.clone())))).collect();
    for answer in answers {
        assert!(matches!(answer.recv_timeout(store::PATIENCE), Ok(Outcome::Created(_))));
    }
    for new in orders {
        assert_eq!(requests(&bench, new.order_no).len(), 1);
        assert_eq!(bench.event_types(new.order_no), ["order.created"]);
    }
}

#[test]
fn commands_tell_their_message_id_and_epoch() {
    let bench = Bench::new();
    let epoch = bench.bind(ap(1), T0).epoch;
    let (order, start) = bench.created(ap(1), 1, Some(epoch), T0);
    let start = start.expect("claimed");
    let written = CommandUpdate {
        device_id: ap(1),
        id: start.id,
        epoch,
        state: CommandState::Written,
        order_no: Some(order.order_no),
        attempts: 1,
        reason: None,
        result: None,
        at: T0 + 5,
    };
    bench.run(Job::Command(written.clone()));
    bench.run(Job::Command(CommandUpdate { state: CommandState::Acked, attempts: 2, at: T0 + 9, ..written }));
    bench.happens(order.order_no, Event::StartAcked, Some(epoch), T0 + 9);
    bench.happens(order.order_no, Event::Cancel, None, T0 + 10);
    let commands = history(&bench, &order).commands;
    let [first, stop] = &commands[..] else { panic!("{commands:?}") };
    assert_eq!((first.record.id, first.msg_id, first.epoch), (start.id, start.msg_id, Some(epoch)));
    assert_eq!((first.record.attempts, first.record.state.as_str()), (2, "acked"));
    assert_eq!((first.record.written_at, first.maybe_written), (Some(T0 + 5), false));
    assert_eq!((stop.record.body.as_str(), stop.epoch, stop.record.written_at), ("stop", None, None));
    assert!(stop.msg_id > first.msg_id);
}

fn logged(bench: &Bench, filter: &FrameFilter, count: usize) -> Vec<FrameRecord> {
    let mut found = Vec::new();
    until("the log is written", || {
        let filter = filter.clone();
        found = bench.read(move |reader| reader.frames(&filter));
        found.len() == count
    });
    found
}

#[test]
fn frames_are_found_with_epoch_and_instance() {
    let bench = Bench::new();
    let frame = |device_id: DeviceId, at, up, command, msg_id, epoch| CommandLogRow {
        at,
        device_id,
        up,
        command,
        msg_id,
        epoch,
        raw: vec![command as u8, msg_id as u8],
    };
    bench.store.append(vec![
        frame(ap(1), T0, false, 0x82, 7, Some(3)),
        frame(ap(2), T0, false, 0x82, 7, Some(1)),
        frame(ap(1), T0 + 1, true, 0x06, 7, Some(3)),
        frame(ap(1), T0 + 2, true, 0x82, 7, None),
        frame(ap(1), T0 + 3, false, 0x82, u32::MAX, Some(i64::MAX)),
        frame(ap(1), T0 + 9, true, 0x03, 8, Some(4)),
    ]);
    let all = FrameFilter { device_id: ap(1), between: ALWAYS, commands: vec![0x82, 0x03], msg_ids: None, limit: 10 };
    let found = logged(&bench, &all, 4);
    let brief = |frame: &FrameRecord| (frame.at - T0, frame.up, frame.command, frame.msg_id, frame.epoch);
    assert_eq!(
        found.iter().map(brief).collect::<Vec<_>>(),
        [
            (0, false, 0x82, 7, Some(3)),
            (2, true, 0x82, 7, None),
            (3, false, 0x82, u32::MAX, Some(i64::MAX)),
            (9, true, 0x03, 8, Some(4)),
        ]
    );
    assert!(found.iter().all(|frame| frame.instance == Some(ServerId::new("test"))));
    assert_eq!(found[0].raw, [0x82, 7]);
    assert!(found.is_sorted_by_key(|frame| frame.id));
    let ids = FrameFilter { msg_ids: Some(vec![7, u32::MAX]), ..all.clone() };
    assert_eq!(logged(&bench, &ids, 3)[2].msg_id, u32::MAX);
    let none = FrameFilter { msg_ids: Some(Vec::new()), ..all.clone() };
    assert_eq!(logged(&bench, &none, 0), []);
    let between = FrameFilter { between: (T0 + 1, T0 + 3), ..all.clone() };
    assert_eq!(logged(&bench, &between, 2)[0].at, T0 + 2);
    assert_eq!(logged(&bench, &FrameFilter { limit: 1, ..all }, 1)[0].at, T0);
}

#[test]
fn a_settlement_is_found_however_it_came_to_its_order() {
    let bench = Bench::new();
    let epoch = Some(bench.bind(ap(1), T0).epoch);
    let settled = |order: &Order| {
        let rows = history(&bench, &bench.order(order.order_no)).settlements;
        rows.into_iter().map(|row| (row.order_no, row.at, row.raw)).collect::<Vec<_>>()
    };
    // By its number.
    let (online, _) = bench.created(ap(1), 2, epoch, T0);
    assert_eq!(settled(&online), []);
    bench.settle(ap_settlement(ap(1), 2, *online.order_no.as_bytes(), 1, T0 + 1));
    let raw = online.order_no.as_bytes().to_vec();
    assert_eq!(settled(&online), [(Some(online.order_no), T0 + 1, raw.clone())]);
    // By its number, though the record names another port.
    let (moved, _) = bench.created(ap(1), 2, epoch, T0 + 2);
    bench.settle(ap_settlement(ap(1), 5, *moved.order_no.as_bytes(), 1, T0 + 3));
    assert_eq!(settled(&moved), [(Some(moved.order_no), T0 + 3, moved.order_no.as_bytes().to_vec())]);
    // Of the device's own making.
    let mut own = ap_settlement(ap(1), 3, *b"\x00\x01ABCDEFGHIJKLM\xFF", 1, T0 + 4);
    if let SettlementKey::Ap3000 { start_mode, duration_seconds, energy_raw, .. } = &mut own.key {
        (*start_mode, *duration_seconds, *energy_raw) = (3, 1800, 50);
    }
    let own = bench.settle(own).order.expect("an order was made");
    assert_eq!(settled(&own).len(), 1);

    bench.bind(bkv(1), T0);
    let order = charging_bkv(&bench, 7, T0 + 10);
    assert!(bench.settle(bkv_settlement(bkv(1), 7, 10, 100, T0 + 20)).stored);
    assert!(!bench.settle(bkv_settlement(bkv(1), 7, 10, 100, T0 + 21)).stored, "a replay");
    let stray = bench.settle(bkv_settlement(bkv(1), 99, 5, 50, T0 + 30));
    assert!(stray.order.is_none());
    let raw = |number: u16| number.to_be_bytes().to_vec();
    assert_eq!(settled(&order), [(Some(order.order_no), T0 + 20, raw(7)), (None, T0 + 30, raw(99))]);
    let order = bench.order(order.order_no);
    let early = bench.read(move |reader| reader.order_history(&order, (T0, T0 + 29)));
    assert_eq!(early.settlements.len(), 1, "the stray one came later");
}

/// A BKV order that charges under a number.
fn charging_bkv(bench: &Bench, business_no: u16, at: i64) -> Order {
    let (order, _) = bench.created(bkv(1), 1, None, at);
    let job = order_job(order.order_no, Event::StartAcked, at);
    bench.order_job(OrderJob { business_no: Some(business_no), ..job });
    bench.happens(order.order_no, Event::Evidence, None, at);
    assert_eq!(bench.order(order.order_no).status, OrderStatus::Charging);
    order
}

fn attempt(endpoint: &str, pos: i64, attempt: u8, status: Option<u16>, at: i64) -> DeliveryLogRow {
    DeliveryLogRow {
        at,
        endpoint: endpoint.into(),
        pos,
        event_id: format!("id-{pos}"),
        event_type: "order.created".to_owned(),
        key: "key".to_owned(),
        attempt,
        status,
        took_ms: 12,
        outcome: if status == Some(200) { DeliveryOutcome::Delivered } else { DeliveryOutcome::Retry },
        reason: None,
        instance: None,
    }
}

#[test]
fn deliveries_of_an_orders_events_are_found() {
    let bench = Bench::new();
    bench.bind(ap(1), T0);
    let (order, _) = bench.created(ap(1), 1, None, T0);
    let (other, _) = bench.created(ap(1), 2, None, T0);
    let pos_of = |order: &Order| bench.events(order.order_no)[0].pos;
    let (pos, other_pos) = (pos_of(&order), pos_of(&other));
    bench.store.append_deliveries(vec![
        attempt("shop", pos, 1, None, T0 + 1),
        attempt("till", pos, 1, Some(200), T0 + 2),
        attempt("shop", other_pos, 1, Some(200), T0 + 3),
        attempt("shop", pos, 2, Some(500), T0 + 4),
    ]);
    let parked = |pos, endpoint: &str| ParkedDelivery {
        endpoint: endpoint.to_owned(),
        pos,
        key: order.order_no.to_string(),
        attempts: 2,
        next_at: T0 + 9,
        reason: "http_500".to_owned(),
    };
    bench.run(Job::Delivery(vec![
        DeliveryUpdate::Park(parked(pos, "shop")),
        DeliveryUpdate::Dead(parked(pos, "gone")),
        DeliveryUpdate::Park(parked(other_pos, "shop")),
    ]));
    until("the log is written", || history(&bench, &order).deliveries.len() == 3);
    let history = history(&bench, &order);
    let attempts: Vec<_> =
        history.deliveries.iter().map(|row| (&*row.endpoint, row.attempt, row.status, row.at - T0)).collect();
    assert_eq!(attempts, [("shop", 1, None, 1), ("till", 1, Some(200), 2), ("shop", 2, Some(500), 4)]);
    assert_eq!((history.deliveries[1].took_ms, history.deliveries[1].outcome), (12, DeliveryOutcome::Delivered));
    assert_eq!(history.deliveries[1].instance, Some(ServerId::new("test")));
    let waiting: Vec<_> = history.waiting.iter().map(|row| (row.endpoint.as_str(), row.dead, row.attempts)).collect();
    assert_eq!(waiting, [("gone", true, 2), ("shop", false, 2)]);
    assert_eq!(history.events.len(), 1);
}
