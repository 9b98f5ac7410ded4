//! What every store does, job by job, through the contract alone: each job kind, replays, guards, claims, order of events,
//! settlement matching, quarantine, deadlines, backstop.

mod services;
mod store;

use std::{sync::Barrier, thread};

use chargegate::{
    gateway::order::{Event, Verdict},
    model::{
        ChargeMode, ChargeSpec, CommandBody, CommandState, DeviceId, EventType, Order, OrderNo, OrderStatus, Origin,
        PortStatus, Priority, Protocol, ServerId,
    },
    store::{
        Backstop, Bind, Bound, CommandUpdate, Created, DeadLetters, DeliveryChange, DeliveryLogRow, DeliveryOutcome,
        DeliveryUpdate, DeviceEvent, DeviceFilter, DeviceReport, Disabled, Earlier, EndpointJob, EndpointOutcome,
        EndpointProgress, Idempotency, InstanceJob, InstanceOutcome, Job, Latest, LeaseJob, NewOrder, OrderFilter,
        OrderJob, OrderKey, OrderOutcome, Outcome, Page, ParkedDelivery, PortRecord, Prune, QueueCounts, QueueFilter,
        Released, Settlement, SettlementEnd, SettlementKey, payload,
    },
};
use store::{Bench, T0, ap, ap_settlement, bkv, bkv_settlement, open_sqlite, order_job, until};

const SECOND: i64 = 1000;
const MINUTE: i64 = 60 * SECOND;
const HOUR: i64 = 60 * MINUTE;

fn update(id: i64, state: CommandState, at: i64) -> CommandUpdate {
    CommandUpdate {
        device_id: ap(1),
        id,
        epoch: i64::MAX,
        state,
        order_no: None,
        attempts: 1,
        reason: None,
        result: None,
        at,
    }
}

/// A BKV order whose start was written at `at`.
fn written_bkv_order(bench: &Bench, device: DeviceId, epoch: i64, at: i64) -> Order {
    let (order, command) = bench.created(device, 1, Some(epoch), at);
    let written = CommandUpdate {
        device_id: device,
        order_no: Some(order.order_no),
        ..update(command.expect("claimed").id, CommandState::Written, at)
    };
    assert!(matches!(bench.run(Job::Command(written)), Outcome::Done));
    order
}

/// A BKV order that charges under a business number.
fn charging_bkv_order(bench: &Bench, device: DeviceId, epoch: i64, business_no: u16, at: i64) -> Order {
    let order = written_bkv_order(bench, device, epoch, at);
    let job = order_job(order.order_no, Event::StartAcked, at);
    bench.order_job(OrderJob { business_no: Some(business_no), ..job });
    bench.happens(order.order_no, Event::Evidence, Some(epoch), at);
    bench.order(order.order_no)
}

fn backstop(bench: &Bench, at: i64) -> Vec<OrderOutcome> {
    match bench.run(Job::Backstop(Backstop {
        at,
        interrupts_from: 0,
        offline_from: 0,
        interrupt_grace: 0,
        offline_grace: 0,
    })) {
        Outcome::Backstop(outcomes) => outcomes,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_bind_registers_once_and_raises_the_epoch_for_good() {
    let bench = Bench::new();
    let first = bench.bind(ap(1), T0);
    let second = bench.bind(ap(1), T0 + 1);
    assert!(first.admitted && first.first_seen && !second.first_seen);
    assert_eq!((first.epoch, second.epoch), (1, 2));
    assert!(second.msg_id_first >= first.msg_id_first + Bound::MSG_IDS);
    let bench = bench.reopen();
    let third = bench.bind(ap(1), T0 + 2);
    assert_eq!(third.epoch, 3);
    assert!(third.msg_id_first >= second.msg_id_first + Bound::MSG_IDS);
    let types: Vec<String> = bench.log().into_iter().map(|event| event.event_type).collect();
    assert_eq!(types, ["device.registered"]);
}

#[test]
fn admission_known_refuses_devices_without_a_row() {
    let bench = Bench::new();
    let bind = Bind {
        device_id: ap(9),
        protocol: Protocol::Ap3000,
        printed_no: None,
        known_only: true,
        generation: 1,
        at: T0,
    };
    let Outcome::Bound(bound) = bench.run(Job::Bind(bind.clone())) else { panic!() };
    assert!(!bound.admitted && !bound.first_seen);
    assert!(bench.read(|reader| reader.device(ap(9))).is_none());
    bench.bind(ap(9), T0);
    let Outcome::Bound(bound) = bench.run(Job::Bind(bind)) else { panic!() };
    assert!(bound.admitted);
}

#[test]
fn a_record_that_says_gn_wins_over_bkv() {
    let bench = Bench::new();
    let bind = |protocol| {
        let bind = Bind { device_id: bkv(1), protocol, printed_no: None, known_only: false, generation: 1, at: T0 };
        let Outcome::Bound(bound) = bench.run(Job::Bind(bind)) else { panic!() };
        bound.protocol
    };
    assert_eq!(bind(Protocol::Bkv), Protocol::Bkv);
    assert_eq!(bind(Protocol::Gn), Protocol::Gn);
    assert_eq!(bind(Protocol::Bkv), Protocol::Gn);
}

#[test]
fn a_creation_with_the_live_epoch_is_claimed_and_one_without_is_queued() {
    let bench = Bench::new();
    let epoch = bench.bind(ap(1), T0).epoch;
    let (order, command) = bench.created(ap(1), 1, Some(epoch), T0);
    let command = command.expect("claimed");
    assert_eq!((command.epoch, command.order_no, command.priority), (epoch, Some(order.order_no), Priority::Normal));
    assert_eq!(command.not_after, T0 + 30 * SECOND);
    assert!(matches!(command.body, CommandBody::Start { port_no: 1, .. }));
    assert_eq!(bench.event_types(order.order_no), ["order.created"]);
    let (_, stale) = bench.created(ap(1), 2, Some(epoch - 1), T0);
    let (_, unbound) = bench.created(ap(1), 3, None, T0);
    assert!(stale.is_none() && unbound.is_none());
    bench.settle_down();
    assert_eq!(*bench.told.queued.lock(), [ap(1), ap(1)]);
    assert_eq!(bench.told.orders.lock().len(), 3);
    assert_eq!(bench.read(|reader| reader.devices_with_queued_commands(None, 10)), [ap(1)]);
}

#[test]
fn the_queue_is_listed_newest_first_and_counted_by_state() {
    let bench = Bench::new();
    let epoch = bench.bind(ap(1), T0).epoch;
    bench.bind(ap(2), T0);
    let (_, first) = bench.created(ap(1), 1, Some(epoch), T0);
    let first = first.expect("claimed");
    let (_, second) = bench.created(ap(1), 2, Some(epoch), T0 + 1);
    let second = second.expect("claimed");
    let (queued, _) = bench.created(ap(2), 1, None, T0 + 2);
    for (id, state) in [(first.id, CommandState::Acked), (second.id, CommandState::Written)] {
        assert!(matches!(bench.run(Job::Command(update(id, state, T0 + 3))), Outcome::Done));
    }
    let counts = bench.read(|reader| reader.queue_counts());
    assert_eq!(counts, QueueCounts { queued: 1, claimed: 0, written: 1 });

    let list = |device_id, state| bench.read(move |reader| reader.queue(&QueueFilter { device_id, state }, 1, 20));
    let open = list(None, None);
    let shown: Vec<_> = open.rows.iter().map(|row| (row.command.order_no, row.command.state.as_str())).collect();
    assert_eq!(shown, [(Some(queued.order_no), "queued"), (second.order_no, "written")]);
    assert_eq!(open.total, 2, "those that have not ended");
    let (waits, written) = (&open.rows[0], &open.rows[1]);
    assert_eq!((waits.epoch, waits.command.written_at, waits.priority), (None, None, Priority::Normal));
    assert_eq!((written.epoch, written.msg_id), (Some(epoch), second.msg_id));
    assert_eq!((written.command.attempts, written.command.written_at), (1, Some(T0 + 3)));
    assert_eq!(list(Some(ap(1)), None).rows, std::slice::from_ref(written));
    let acked = list(None, Some(CommandState::Acked));
    assert_eq!((acked.total, acked.rows[0].command.id), (1, first.id));
    assert_eq!(list(Some(ap(2)), Some(CommandState::Acked)).total, 0);
    assert_eq!(bench.read(|reader| reader.queue(&QueueFilter::default(), 2, 1)).rows, std::slice::from_ref(written));
}

#[test]
#[expect(clippy::needless_collect, reason = "all threads run before the first is joined")]
fn of_parallel_creations_on_one_port_exactly_one_wins() {
    let bench = Bench::new();
    bench.bind(ap(1), T0);
    let barrier = Barrier::new(8);
    let results: Vec<Created> = thread::scope(|scope| {
        let create = || {
            barrier.wait();
            bench.create(ap(1), 1, None, T0)
        };
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(create)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let winners: Vec<_> = results
        .iter()
        .filter_map(|created| if let Created::Order { order, .. } = created { Some(order.order_no) } else { None })
        .collect();
    let [winner] = winners[..] else { panic!("{winners:?}") };
    let busy = results.iter().filter(|created| matches!(created, Created::PortBusy { holder } if *holder == winner));
    assert_eq!(busy.count(), 7);
    assert_eq!(bench.read(|reader| reader.active_orders(ap(1))).len(), 1);
}

#[test]
fn a_creation_behind_its_deadline_inserts_nothing() {
    let bench = Bench::new();
    bench.bind(ap(1), T0);
    let create = |deadline| {
        let mut new = bench.new_order(ap(1), 1, None, T0);
        new.deadline = deadline;
        bench.run(Job::CreateOrder(Box::new(new)))
    };
    let late = create(T0 - 1);
    assert!(matches!(late, Outcome::Created(created) if matches!(*created, Created::TooLate)));
    assert_eq!(bench.read(|reader| reader.orders(&OrderFilter::default(), 1, 10)).total, 0);
    let in_time = create(T0);
    assert!(matches!(in_time, Outcome::Created(created) if matches!(*created, Created::Order { .. })));
}

#[test]
fn a_creation_submitted_twice_is_one_order() {
    let bench = Bench::new();
    let epoch = bench.bind(ap(1), T0).epoch;
    let new = bench.new_order(ap(1), 1, Some(epoch), T0);
    for _ in 0..2 {
        let Outcome::Created(created) = bench.run(Job::CreateOrder(Box::new(new.clone()))) else { panic!() };
        assert!(matches!(*created, Created::Order { order, .. } if order.order_no == new.order_no));
    }
    assert_eq!(bench.event_types(new.order_no), ["order.created"]);
    assert_eq!(bench.read(|reader| reader.orders(&OrderFilter::default(), 1, 10)).total, 1);
}

#[test]
fn a_charge_emits_its_events_in_order_and_is_settled_once() {
    let bench = Bench::new();
    let epoch = bench.bind(ap(1), T0).epoch;
    let (order, command) = bench.created(ap(1), 1, Some(epoch), T0);
    let no = order.order_no;
    let written = update(command.unwrap().id, CommandState::Written, T0 + 1);
    bench.run(Job::Command(CommandUpdate { order_no: Some(no), ..written }));
    bench.happens(no, Event::StartAcked, Some(epoch), T0 + 2);
    bench.happens(no, Event::Evidence, Some(epoch), T0 + 3);
    let settlement = ap_settlement(ap(1), 1, *no.as_bytes(), 0x03, T0 + 30 * MINUTE);
    let settled = bench.settle(settlement.clone());
    assert!(settled.stored && !settled.quarantined);
    assert_eq!(settled.from, Some(OrderStatus::Charging));
    let types = bench.event_types(no);
    assert_eq!(
        types,
        ["order.created", "order.confirmed", "charging.started", "charging.ended", "order.completed", "order.settled"]
    );
    let order = bench.order(no);
    assert_eq!(order.status, OrderStatus::Completed);
    assert_eq!((order.duration_seconds, order.energy_wh), (Some(1800), Some(500)));
    assert_eq!((order.end_reason.as_deref(), order.end_reason_raw), (Some("time_reached"), Some(3)));
    assert_eq!((order.start_written_at, order.start_time), (Some(T0 + 1), Some(T0 + 3)));
    assert_eq!((order.end_time, order.sequence_no), (Some(T0 + 30 * MINUTE), 6));
    let last: serde_json::Value = serde_json::from_str(&bench.events(no)[5].data).unwrap();
    assert_eq!((&last["late"], &last["old_status"], &last["new_status"]), (&false.into(), &2.into(), &3.into()));
    assert_eq!(last["status_text"], "completed");
    for at in [T0 + 31 * MINUTE, T0 + 3 * HOUR] {
        let replay = bench.settle(Settlement { at, ..settlement.clone() });
        assert!(!replay.stored && !replay.quarantined);
        assert_eq!(replay.order.unwrap().order_no, no);
    }
    assert_eq!(bench.order(no), order);
    assert_eq!(bench.event_types(no), types);
}

#[test]
fn refused_and_repeated_events_write_nothing_but_a_missing_business_number() {
    let bench = Bench::new();
    let epoch = bench.bind(bkv(1), T0).epoch;
    let order = written_bkv_order(&bench, bkv(1), epoch, T0);
    let no = order.order_no;
    assert_eq!(bench.happens(no, Event::NoLoad, None, T0 + 1).verdict, Verdict::Refused);
    bench.happens(no, Event::StartAcked, None, T0 + 2);
    let before = bench.order(no);
    let again = OrderJob { business_no: Some(7), ..order_job(no, Event::StartAcked, T0 + 3) };
    assert_eq!(bench.order_job(again).verdict, Verdict::Unchanged);
    let other = OrderJob { business_no: Some(8), ..order_job(no, Event::StartAcked, T0 + 4) };
    bench.order_job(other);
    let after = bench.order(no);
    assert_eq!(after, Order { business_no: Some(7), updated_at: T0 + 3, ..before });
    assert_eq!(bench.event_types(no), ["order.created", "order.confirmed"]);
}

#[test]
fn an_order_job_may_name_a_port_and_checks_the_device() {
    let bench = Bench::new();
    bench.bind(ap(1), T0);
    let (order, _) = bench.created(ap(1), 4, None, T0);
    let wrong = OrderJob { device_id: Some(ap(2)), ..order_job(order.order_no, Event::Cancel, T0) };
    assert!(bench.order_job(wrong).order.is_none());
    let idle = OrderJob { order: OrderKey::ActiveOn(ap(1), 3), ..order_job(order.order_no, Event::Stop, T0) };
    assert!(bench.order_job(idle).order.is_none());
    let named = OrderJob { order: OrderKey::ActiveOn(ap(1), 4), ..order_job(order.order_no, Event::Stop, T0) };
    assert_eq!(bench.order_job(named).order.unwrap().status, OrderStatus::Cancelled);
}

#[test]
fn a_cancel_takes_an_unclaimed_start_back_and_stops_a_claimed_one() {
    let bench = Bench::new();
    let epoch = bench.bind(ap(1), T0).epoch;
    let (unclaimed, _) = bench.created(ap(1), 1, None, T0);
    let outcome = bench.happens(unclaimed.order_no, Event::Cancel, Some(epoch), T0 + 1);
    assert_eq!(outcome.order.unwrap().status, OrderStatus::Cancelled);
    assert!(outcome.commands.is_empty() && outcome.withdrawn.is_empty());
    assert!(bench.bind(ap(1), T0 + 2).commands.is_empty(), "a withdrawn start is not claimed");

    let epoch = epoch + 1;
    let (claimed, start) = bench.created(ap(1), 2, Some(epoch), T0);
    let start = start.unwrap();
    let outcome = bench.happens(claimed.order_no, Event::Cancel, Some(epoch), T0 + 3);
    assert_eq!(outcome.order.unwrap().status, OrderStatus::Cancelling);
    let [stop] = &outcome.commands[..] else { panic!("{:?}", outcome.commands) };
    assert!(matches!(stop.body, CommandBody::Stop { port_no: 2 }));
    assert_eq!((stop.priority, stop.epoch), (Priority::High, epoch));
    assert_ne!(stop.msg_id, start.msg_id);
    let again = bench.happens(claimed.order_no, Event::Cancel, Some(epoch), T0 + 4);
    assert_eq!(again.verdict, Verdict::Unchanged);
    bench.happens(claimed.order_no, Event::StartAcked, Some(epoch), T0 + 5);
    bench.happens(claimed.order_no, Event::StopAcked, Some(epoch), T0 + 6);
    let order = bench.order(claimed.order_no);
    assert_eq!((order.status, order.stop_acked), (OrderStatus::Cancelled, true));
    assert_eq!(
        bench.event_types(claimed.order_no),
        ["order.created", "order.cancelling", "order.cancelled"],
        "a stop already under way is used again"
    );
}

#[test]
fn a_timeout_reports_its_claimed_start_as_withdrawn() {
    let bench = Bench::new();
    let epoch = bench.bind(ap(1), T0).epoch;
    let (order, start) = bench.created(ap(1), 1, Some(epoch), T0);
    let outcome = bench.happens(order.order_no, Event::StartTimedOut, Some(epoch), T0 + 15 * SECOND);
    assert_eq!(outcome.withdrawn, [start.unwrap().id]);
    let order = outcome.order.unwrap();
    assert_eq!((order.status, order.failure_reason.as_deref()), (OrderStatus::Timeout, Some("start_timeout")));
    assert!(bench.bind(ap(1), T0 + 16 * SECOND).commands.is_empty());
}

#[test]
fn a_refusal_keeps_the_devices_code() {
    let bench = Bench::new();
    let epoch = bench.bind(ap(1), T0).epoch;
    let (order, _) = bench.created(ap(1), 1, Some(epoch), T0);
    let refused = Event::StartRefused { relay_may_be_on: true };
    let job = OrderJob { reason: Some("device_refused_03".to_owned()), ..order_job(order.order_no, refused, T0 + 1) };
    let outcome = bench.order_job(OrderJob { epoch: Some(epoch), ..job });
    let order = outcome.order.unwrap();
    assert_eq!(order.failure_reason.as_deref(), Some("device_refused_03"));
    assert!(order.device_end_pending);
    assert_eq!(outcome.commands[0].priority, Priority::Emergency);
    let Created::PortBusy { holder } = bench.create(ap(1), 1, Some(epoch), T0 + 2) else { panic!() };
    assert_eq!(holder, order.order_no, "the port waits for the device's end");
    bench.happens(order.order_no, Event::PortMismatch, Some(epoch), T0 + 3);
    bench.created(ap(1), 1, Some(epoch), T0 + 4);
}

#[test]
fn of_two_ends_a_port_waits_for_the_newest_is_named() {
    let bench = Bench::new();
    let epoch = bench.bind(ap(1), T0).epoch;
    let over = |port_no, at| {
        let (order, _) = bench.created(ap(1), port_no, Some(epoch), at);
        bench.happens(order.order_no, Event::StartRefused { relay_may_be_on: false }, Some(epoch), at);
        order.order_no
    };
    for (port_no, newest_first) in [(1, false), (2, true)] {
        let (older, newer) = (over(port_no, T0 + 1), over(port_no, T0 + 2));
        let shown = if newest_first { [newer, older] } else { [older, newer] };
        for order_no in shown {
            bench.happens(order_no, Event::Evidence, Some(epoch), T0 + 3);
        }
        let Created::PortBusy { holder } = bench.create(ap(1), port_no, Some(epoch), T0 + 4) else { panic!() };
        assert_eq!(holder, newer);
        bench.happens(newer, Event::PortMismatch, Some(epoch), T0 + 5);
        let Created::PortBusy { holder } = bench.create(ap(1), port_no, Some(epoch), T0 + 6) else { panic!() };
        assert_eq!(holder, older);
    }
}

#[test]
fn binds_claim_what_is_still_wanted_with_the_same_message_id() {
    let bench = Bench::new();
    let epoch = bench.bind(ap(1), T0).epoch;
    let (_, claimed) = bench.created(ap(1), 1, Some(epoch), T0);
    let (queued, _) = bench.created(ap(1), 2, None, T0);
    let (written, start) = bench.created(ap(1), 3, Some(epoch), T0);
    let start = start.unwrap();
    bench.run(Job::Command(CommandUpdate {
        order_no: Some(written.order_no),
        ..update(start.id, CommandState::Written, T0)
    }));
    let bench = bench.reopen();
    let bound = bench.bind(ap(1), T0 + 14 * SECOND);
    let found: Vec<_> = bound.commands.iter().map(|c| (c.body.port_no(), c.maybe_written, c.epoch)).collect();
    assert_eq!(found, [(1, true, bound.epoch), (2, false, bound.epoch)]);
    assert_eq!(bound.commands[0].msg_id, claimed.unwrap().msg_id);
    assert_eq!(bound.orders.len(), 3);
    assert_eq!(bound.commands[1].order_no, Some(queued.order_no));
    let late = bench.bind(ap(1), T0 + 16 * SECOND);
    assert!(late.commands.is_empty(), "a start older than 15 s does not fire");
}

#[test]
fn a_claim_needs_the_live_epoch() {
    let bench = Bench::new();
    let epoch = bench.bind(ap(1), T0).epoch;
    bench.created(ap(1), 1, None, T0);
    let claim = |epoch| match bench.run(Job::Claim { device_id: ap(1), epoch, at: T0 + 1 }) {
        Outcome::Claimed { commands, .. } => Ok(commands.len()),
        Outcome::Fenced { device_id, epoch } => Err((device_id, epoch)),
        other => panic!("{other:?}"),
    };
    assert_eq!(claim(epoch - 1), Err((ap(1), epoch)));
    assert_eq!(claim(epoch), Ok(1));
    assert_eq!(claim(epoch), Ok(0), "claimed is claimed");
}

#[test]
fn what_an_older_epoch_saw_is_void_but_for_its_settlement() {
    let bench = Bench::new();
    let old = bench.bind(ap(1), T0).epoch;
    let (order, start) = bench.created(ap(1), 1, Some(old), T0);
    let no = order.order_no;
    assert!(start.is_some());
    let told = |job: Job| match bench.run(job) {
        Outcome::Fenced { device_id, epoch } => Err((device_id, epoch)),
        Outcome::Order(outcome) => Ok(outcome.order.map(|order| order.status)),
        Outcome::Done => Ok(None),
        other => panic!("{other:?}"),
    };
    let event = |event, fence, at| {
        let job = OrderJob { device_id: Some(ap(1)), epoch: fence, fence, ..order_job(no, event, at) };
        told(Job::Order(Box::new(job)))
    };
    let presence = |event_type, fence| {
        let data = serde_json::json!({}).into();
        let event = DeviceEvent { device_id: ap(1), event_type, data, order_no: None, fence, at: T0 + 3 };
        told(Job::Device(Box::new(event)))
    };
    assert_eq!(event(Event::StartAcked, Some(old), T0 + 1), Ok(Some(OrderStatus::Confirmed)), "no newer bind yet");

    let new = bench.bind(ap(1), T0 + 2).epoch;
    let before = (bench.order(no), bench.log().len());
    for void in [Event::Evidence, Event::Offline, Event::StopAcked, Event::StartAckedLate, Event::NoLoad] {
        assert_eq!(event(void, Some(old), T0 + 3), Err((ap(1), new)), "{void:?}");
    }
    assert_eq!(presence(EventType::DeviceOffline, Some(old)), Err((ap(1), new)));
    assert_eq!((bench.order(no), bench.log().len()), before, "nothing was written");
    assert_eq!(event(Event::Evidence, Some(new), T0 + 4), Ok(Some(OrderStatus::Charging)));
    assert_eq!(event(Event::Offline, Some(old), T0 + 5), Err((ap(1), new)));
    assert_eq!(presence(EventType::DeviceOffline, Some(new)), Ok(None));
    // Who is no shard, or waits for its own epoch, is not fenced.
    assert_eq!(event(Event::Stop, None, T0 + 6), Ok(Some(OrderStatus::Stopping)));

    let settled = bench.settle(Settlement { epoch: Some(old), ..ap_settlement(ap(1), 1, *no.as_bytes(), 1, T0 + 7) });
    assert!(settled.stored, "a zombie's settlement is true money");
    assert_eq!(bench.order(no).energy_wh, Some(500));

    // A row that was claimed again belongs to the newer claim.
    let (order, start) = bench.created(ap(1), 2, Some(new), T0 + 8);
    let (no, id) = (order.order_no, start.unwrap().id);
    let command = |state, epoch| {
        let update = CommandUpdate { epoch, order_no: Some(no), ..update(id, state, T0 + 9) };
        bench.run(Job::Command(update));
        let state = bench.read(move |reader| reader.command(ap(1), id)).unwrap().state;
        (state, bench.order(no).start_written_at)
    };
    let newest = bench.bind(ap(1), T0 + 9);
    assert_eq!(newest.commands.iter().map(|command| command.id).collect::<Vec<_>>(), [id]);
    assert_eq!(command(CommandState::Written, new), ("claimed".to_owned(), None));
    assert_eq!(command(CommandState::Dead, new), ("claimed".to_owned(), None));
    assert_eq!(command(CommandState::Written, newest.epoch), ("written".to_owned(), Some(T0 + 9)));
}

fn instance(bench: &Bench, job: InstanceJob) -> InstanceOutcome {
    match bench.run(Job::Instance(job)) {
        Outcome::Instance(outcome) => outcome,
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_a_dead_instance_had_is_nobodys_once() {
    let bench = Bench::new();
    let (a, b) = (ServerId::new("a"), ServerId::new("b"));
    let join = |server: &ServerId| InstanceJob::Join { server: server.clone(), version: "1".to_owned() };
    let beat = |server: &ServerId| InstanceJob::Beat { server: server.clone(), connections: 7, draining: true };
    let adopt = |server: &ServerId, devices| InstanceJob::Adopt { server: server.clone(), devices };
    for server in [&a, &b] {
        assert_eq!(instance(&bench, join(server)), InstanceOutcome::Joined);
    }
    assert_eq!(instance(&bench, beat(&a)), InstanceOutcome::Beaten { known: true });
    let found = bench.read(|reader| reader.instances());
    let shown: Vec<_> = found.iter().map(|one| (one.server.as_str(), one.connections, one.draining)).collect();
    assert_eq!(shown, [("a", 7, true), ("b", 0, false)]);

    // The devices are bound by whoever the store is; then nobody has them, and `a` says that it does.
    let epochs: Vec<_> = (1..=3).map(|n| (ap(n), bench.bind(ap(n), T0).epoch)).collect();
    if let Some(own) = bench.instance() {
        instance(&bench, InstanceJob::Release { server: own });
    }
    let mut wrong = epochs.clone();
    wrong[2].1 -= 1;
    instance(&bench, adopt(&a, wrong));
    bench.created(ap(1), 1, None, T0 + 1);
    bench.created(ap(3), 1, None, T0 + 1);
    let owner = a.clone();
    let queued = bench.read(move |reader| reader.devices_with_queued_commands(Some(&owner), 10));
    assert_eq!(queued, [ap(1)], "an older epoch adopts nothing");

    let reap = |dead_after_ms| instance(&bench, InstanceJob::Reap { by: b.clone(), dead_after_ms });
    assert_eq!(reap(HOUR), InstanceOutcome::Released(Vec::new()), "it was heard of just now");
    let released = Released { server: a.clone(), devices: vec![ap(1), ap(2)], all: true };
    assert_eq!(reap(-1), InstanceOutcome::Released(vec![released]));
    assert_eq!(reap(-1), InstanceOutcome::Released(Vec::new()), "once");
    let owner = a.clone();
    assert!(bench.read(move |reader| reader.devices_with_queued_commands(Some(&owner), 10)).is_empty());

    // Who was only taken for dead finds out, and takes its devices back.
    assert_eq!(instance(&bench, beat(&a)), InstanceOutcome::Beaten { known: false });
    assert_eq!(instance(&bench, join(&a)), InstanceOutcome::Joined);
    instance(&bench, adopt(&a, epochs));
    assert_eq!(instance(&bench, InstanceJob::Leave { server: a.clone() }), InstanceOutcome::Done);
    let InstanceOutcome::Released(released) = reap(HOUR) else { panic!() };
    assert_eq!(released[0].devices, [ap(1), ap(2), ap(3)], "who left is dead at once");
    assert_eq!(bench.read(|reader| reader.instances()).len(), 1);
}

#[test]
fn orders_of_a_dead_instance_have_their_grace() {
    let bench = Bench::new();
    let epoch = bench.bind(ap(1), T0).epoch;
    let (order, _) = bench.created(ap(1), 1, Some(epoch), T0);
    for event in [Event::StartAcked, Event::Evidence] {
        bench.happens(order.order_no, event, Some(epoch), T0 + 1);
    }
    let other = ServerId::new("another");
    if let Some(own) = bench.instance() {
        instance(&bench, InstanceJob::Release { server: own });
    }
    instance(&bench, InstanceJob::Adopt { server: other.clone(), devices: vec![(ap(1), epoch)] });
    let late = T0 + 24 * HOUR;
    let backstop = |at, interrupt_grace| {
        let job = Backstop { at, interrupts_from: 0, offline_from: i64::MAX, interrupt_grace, offline_grace: 0 };
        match bench.run(Job::Backstop(job)) {
            Outcome::Backstop(outcomes) => outcomes.len(),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(backstop(late, 0), 0, "it is another instance's");
    instance(&bench, InstanceJob::Release { server: other });
    // The database's clock, which tells the end, need not be that of the test.
    assert_eq!(backstop(late, i64::MAX / 2), 0, "its end is too near");
    assert_eq!(backstop(late, 0), 1);
    assert_eq!(bench.order(order.order_no).status, OrderStatus::Interrupted);
}

#[test]
fn one_instance_holds_the_lease_of_an_endpoint() {
    let bench = Bench::new();
    let lease = |owner: &str, for_ms| {
        let job = LeaseJob { endpoint: "e".to_owned(), owner: ServerId::new(owner), for_ms };
        match bench.run(Job::Lease(job)) {
            Outcome::Leased(held) => held,
            other => panic!("{other:?}"),
        }
    };
    assert!(lease("a", HOUR));
    assert!(lease("a", HOUR), "renewed");
    assert!(!lease("b", HOUR));
    assert!(!lease("a", 0), "given back");
    assert!(lease("b", -1), "already over");
    assert!(lease("a", HOUR), "taken over");
    let cursor = |pos| Job::Delivery(vec![DeliveryUpdate::Cursor { endpoint: "e".to_owned(), pos }]);
    bench.run(cursor(5));
    let stored = bench.read(|reader| reader.endpoint("e")).map(|progress| progress.cursor);
    let expected = if bench.instance().is_some() { None } else { Some(5) };
    assert_eq!(stored, expected, "progress of who does not hold it is void, where there are several");
    if let Some(own) = bench.instance() {
        assert!(!lease("a", 0));
        assert!(lease(own.as_str(), HOUR));
        bench.run(cursor(7));
        assert_eq!(bench.read(|reader| reader.endpoint("e")).map(|progress| progress.cursor), Some(7));
    }
}

#[test]
fn command_rows_never_go_back() {
    let bench = Bench::new();
    let epoch = bench.bind(ap(1), T0).epoch;
    let (order, start) = bench.created(ap(1), 1, Some(epoch), T0);
    let id = start.unwrap().id;
    bench.happens(order.order_no, Event::StartTimedOut, Some(epoch), T0 + 1);
    // Written in the same instant as it was withdrawn: the row stays withdrawn, the order knows the write.
    let written = CommandUpdate { order_no: Some(order.order_no), ..update(id, CommandState::Written, T0 + 2) };
    bench.run(Job::Command(written));
    bench.run(Job::Command(update(id, CommandState::Dead, T0 + 3)));
    assert_eq!(bench.order(order.order_no).start_written_at, Some(T0 + 2));
    assert!(bench.log().iter().all(|event| event.event_type != "command.dead"));

    let (_, start) = bench.created(ap(1), 2, Some(epoch), T0);
    let id = start.unwrap().id;
    for state in [CommandState::Written, CommandState::Dead, CommandState::Acked, CommandState::Dead] {
        let update = CommandUpdate { reason: Some("ack_timeout"), ..update(id, state, T0 + 4) };
        bench.run(Job::Command(update));
    }
    assert_eq!(bench.log().iter().filter(|event| event.event_type == "command.dead").count(), 1);
}

#[test]
fn a_stop_waits_for_the_bind() {
    let bench = Bench::new();
    let epoch = bench.bind(ap(1), T0).epoch;
    let (order, _) = bench.created(ap(1), 1, Some(epoch), T0);
    for event in [Event::StartAcked, Event::Evidence, Event::Offline] {
        bench.happens(order.order_no, event, Some(epoch), T0 + 1);
    }
    let outcome = bench.happens(order.order_no, Event::Stop, None, T0 + 2);
    assert!(outcome.commands.is_empty());
    bench.settle_down();
    assert_eq!(*bench.told.queued.lock(), [ap(1)]);
    let bound = bench.bind(ap(1), T0 + 3);
    let [stop] = &bound.commands[..] else { panic!("{:?}", bound.commands) };
    assert!(matches!(stop.body, CommandBody::Stop { port_no: 1 }) && !stop.maybe_written);
}

#[test]
fn a_bkv_stop_is_never_made_for_a_final_order_while_another_holds_the_port() {
    let bench = Bench::new();
    let epoch = bench.bind(bkv(1), T0).epoch;
    let old = charging_bkv_order(&bench, bkv(1), epoch, 5, T0);
    bench.happens(old.order_no, Event::Stop, Some(epoch), T0 + 1);
    bench.happens(old.order_no, Event::StopTimedOut, Some(epoch), T0 + 31 * SECOND);
    let (new, _) = bench.created(bkv(1), 1, Some(epoch), T0 + 32 * SECOND);
    let late = bench.happens(old.order_no, Event::StartAckedLate, Some(epoch), T0 + 33 * SECOND);
    assert!(matches!(late.verdict, Verdict::Step(step) if step.send_stop));
    assert!(late.commands.is_empty());
    let bound = bench.bind(bkv(1), T0 + 34 * SECOND);
    let for_new = bound.commands.iter().all(|command| command.order_no == Some(new.order_no));
    assert!(for_new, "{:?}", bound.commands);
}

#[test]
fn what_charges_on_after_its_end_is_stopped_again_at_binds() {
    let bench = Bench::new();
    let epoch = bench.bind(ap(1), T0).epoch;
    let (order, _) = bench.created(ap(1), 1, Some(epoch), T0);
    bench.happens(order.order_no, Event::StartTimedOut, Some(epoch), T0 + 1);
    bench.happens(order.order_no, Event::StartAckedLate, Some(epoch), T0 + 2);
    assert_eq!(bench.alarms(), ["start_ack_late"]);
    let mut stops = 1;
    for hour in 1..10 {
        let bound = bench.bind(ap(1), T0 + hour * HOUR);
        assert_eq!(bound.orders.len(), 1);
        stops += bound.commands.len();
    }
    assert_eq!(stops, 5);
    assert_eq!(bench.alarms(), ["start_ack_late", "device_end_pending"]);
}

#[test]
fn a_settlement_of_an_ended_order_adds_totals_and_is_late() {
    let bench = Bench::new();
    let epoch = bench.bind(ap(1), T0).epoch;
    let (order, _) = bench.created(ap(1), 1, Some(epoch), T0);
    for event in [Event::StartAcked, Event::Evidence, Event::Offline, Event::ReturnTimedOut] {
        bench.happens(order.order_no, event, Some(epoch), T0 + 1);
    }
    let no = order.order_no;
    let settled = bench.settle(ap_settlement(ap(1), 1, *no.as_bytes(), 0x01, T0 + HOUR));
    assert!(settled.stored);
    let order = settled.order.unwrap();
    assert_eq!((order.status, order.failure_reason.as_deref()), (OrderStatus::Failed, Some("device_offline")));
    assert_eq!(order.energy_wh, Some(500));
    let last: serde_json::Value = serde_json::from_str(&bench.events(no).last().unwrap().data).unwrap();
    assert_eq!(last["late"], true);
}

#[test]
fn a_fault_end_fails_the_order_with_the_faults_word() {
    let bench = Bench::new();
    let epoch = bench.bind(ap(1), T0).epoch;
    let (order, start) = bench.created(ap(1), 1, Some(epoch), T0);
    let settled = bench.settle(ap_settlement(ap(1), 1, *order.order_no.as_bytes(), 0x06, T0 + HOUR));
    let order = settled.order.unwrap();
    assert_eq!((order.status, order.failure_reason.as_deref()), (OrderStatus::Failed, Some("overload")));
    assert_eq!(order.start_time, Some(T0 + HOUR - 30 * MINUTE), "the end minus the duration");
    assert_eq!(settled.withdrawn, [start.unwrap().id]);
    assert_eq!(bench.event_types(order.order_no), ["order.created", "order.failed", "order.settled"]);
}

#[test]
fn an_ap3000_record_without_an_order_makes_one_that_has_ended() {
    let bench = Bench::new();
    bench.bind(ap(1), T0);
    bench.bind(ap(2), T0);
    let card = |duration_seconds, energy_raw, reason| {
        let mut settlement = ap_settlement(ap(1), 2, [0x20; 16], reason, T0);
        let key = SettlementKey::Ap3000 {
            device_id: ap(1),
            port: 1,
            start_mode: 0,
            order_ref: [0x20; 16],
            duration_seconds,
            energy_raw,
        };
        settlement.key = key;
        settlement
    };
    let first = bench.settle(card(1800, 50, 1));
    let order = first.order.unwrap();
    assert!(first.stored && first.from.is_none());
    assert_eq!((order.origin, order.status), (Origin::Device, OrderStatus::Completed));
    assert_eq!(order.device_ref.as_deref(), Some(&[0x20; 16][..]));
    assert_eq!(bench.event_types(order.order_no), ["order.completed", "order.settled"]);
    let replay = bench.settle(card(1800, 50, 1));
    assert!(!replay.stored);
    assert_eq!(replay.order.unwrap().order_no, order.order_no);
    let collides = bench.settle(card(60, 1, 0x0B));
    assert!(collides.stored, "same number, another charge");
    assert_eq!(collides.order.unwrap().status, OrderStatus::Failed);

    // Another device's number is nobody's order here.
    let (foreign, _) = bench.created(ap(2), 1, None, T0);
    let settled = bench.settle(ap_settlement(ap(1), 1, *foreign.order_no.as_bytes(), 1, T0));
    assert_ne!(settled.order.unwrap().order_no, foreign.order_no);
    assert_eq!(bench.order(foreign.order_no).status, OrderStatus::Pending);
}

#[test]
fn a_restart_repeats_no_order_number() {
    let mut bench = Bench::new();
    bench.bind(ap(1), T0);
    let mut made = std::collections::BTreeSet::new();
    // The clock stands still: numbers must not depend on it having moved.
    for number in 0..4 {
        let settled = bench.settle(ap_settlement(ap(1), 1, [number; 16], 1, T0));
        assert!(settled.stored && made.insert(settled.order.unwrap().order_no));
        bench = bench.reopen();
    }
}

#[test]
fn a_bkv_settlement_goes_to_the_open_order_with_its_number() {
    let bench = Bench::new();
    let epoch = bench.bind(bkv(1), T0).epoch;
    let old = charging_bkv_order(&bench, bkv(1), epoch, 5, T0);
    bench.happens(old.order_no, Event::PortMismatch, Some(epoch), T0 + MINUTE);
    let open = charging_bkv_order(&bench, bkv(1), epoch, 5, T0 + 2 * MINUTE);
    let settled = bench.settle(bkv_settlement(bkv(1), 5, 60, 400, T0 + 62 * MINUTE));
    let order = settled.order.unwrap();
    assert_eq!((order.order_no, order.settlement_match.as_deref()), (open.order_no, Some("exact")));
    assert_eq!((order.status, order.end_reason.as_deref()), (OrderStatus::Completed, Some("quota_reached")));

    // The resend belongs to the order that is settled, not to the older one with the same number.
    let replay = bench.settle(bkv_settlement(bkv(1), 5, 60, 400, T0 + 63 * MINUTE));
    assert!(!replay.stored);
    assert_eq!(replay.order.unwrap().order_no, open.order_no);
    assert!(bench.order(old.order_no).settled_at.is_none());

    // Other totals are another charge: the unsettled one's.
    let settled = bench.settle(bkv_settlement(bkv(1), 5, 1, 3, T0 + 64 * MINUTE));
    let order = settled.order.unwrap();
    assert_eq!((order.order_no, order.settlement_match.as_deref()), (old.order_no, Some("recent")));
    assert_eq!(order.status, OrderStatus::Failed, "a final status stays");
}

#[test]
fn a_bkv_settlement_without_a_known_number_is_inferred_where_the_times_fit() {
    let bench = Bench::new();
    let epoch = bench.bind(bkv(1), T0).epoch;
    let order = written_bkv_order(&bench, bkv(1), epoch, T0);
    // 60 minutes cannot have been charged 10 minutes after the start was written.
    let orphan = bench.settle(bkv_settlement(bkv(1), 9, 60, 400, T0 + 10 * MINUTE));
    assert!(orphan.stored && orphan.order.is_none());
    let replay = bench.settle(bkv_settlement(bkv(1), 9, 60, 400, T0 + 11 * MINUTE));
    assert!(!replay.stored && replay.order.is_none());
    assert_eq!(bench.alarms(), ["settlement_without_order"]);
    let settled = bench.settle(bkv_settlement(bkv(1), 10, 60, 400, T0 + 60 * MINUTE));
    let found = settled.order.unwrap();
    assert_eq!((found.order_no, found.settlement_match.as_deref()), (order.order_no, Some("inferred")));
    assert_eq!((found.business_no, found.status), (Some(10), OrderStatus::Completed));
    let replay = bench.settle(bkv_settlement(bkv(1), 10, 60, 400, T0 + 61 * MINUTE));
    assert!(!replay.stored && replay.order.is_some());
}

#[test]
fn a_bkv_number_older_than_a_day_is_forgotten() {
    let bench = Bench::new();
    let epoch = bench.bind(bkv(1), T0 - 30 * HOUR).epoch;
    let old = charging_bkv_order(&bench, bkv(1), epoch, 5, T0 - 30 * HOUR);
    bench.happens(old.order_no, Event::PortMismatch, Some(epoch), T0 - 29 * HOUR);
    let settled = bench.settle(bkv_settlement(bkv(1), 5, 60, 400, T0));
    assert!(settled.stored && settled.order.is_none());
    // Without a written start nothing is inferred either.
    bench.created(bkv(1), 1, None, T0);
    assert!(bench.settle(bkv_settlement(bkv(1), 6, 1, 1, T0 + HOUR)).order.is_none());
}

#[test]
fn a_bkv_end_while_stopping_is_the_stops_doing_unless_it_says_otherwise() {
    let bench = Bench::new();
    let epoch = bench.bind(bkv(1), T0).epoch;
    let end = |business_no: u16, status: u8| {
        let at = T0 + i64::from(business_no) * HOUR;
        let order = charging_bkv_order(&bench, bkv(1), epoch, business_no, at);
        bench.happens(order.order_no, Event::Stop, Some(epoch), at + 1);
        let mut settlement = bkv_settlement(bkv(1), business_no, 10, 50, at + 10 * MINUTE);
        settlement.end = SettlementEnd::Bkv { status, reason: Some(2) };
        let order = bench.settle(settlement).order.unwrap();
        assert_eq!(order.end_reason_raw, Some(2));
        order.status
    };
    assert_eq!(end(1, 0x90), OrderStatus::Stopped);
    assert_eq!(end(2, 0x98), OrderStatus::Completed);
    assert_eq!(end(3, 0x94), OrderStatus::Failed);
}

#[test]
fn a_settlement_that_cannot_be_applied_is_quarantined_and_harms_no_other() {
    let bench = Bench::new();
    bench.bind(ap(1), T0);
    let (order, _) = bench.created(ap(1), 1, None, T0);
    // No device row: the order it would make cannot exist.
    let poison = ap_settlement(ap(77), 1, [0xFF; 16], 1, T0);
    let good = ap_settlement(ap(1), 1, *order.order_no.as_bytes(), 1, T0);
    let answers = [poison.clone(), good, poison].map(|settlement| bench.submit(Job::Settle(Box::new(settlement))));
    let [first, second, third] = answers.map(|answer| match answer.recv().unwrap() {
        Outcome::Settled(settled) => settled,
        other => panic!("{other:?}"),
    });
    assert!(first.quarantined && !first.stored && third.quarantined);
    assert!(second.stored && !second.quarantined);
    assert_eq!(bench.alarms(), ["settlement_quarantined"], "raised once");
    assert!(bench.store.health().ready.load(std::sync::atomic::Ordering::Relaxed));
}

#[test]
fn device_events_have_a_sequence_of_their_own_and_progress_has_none() {
    let bench = Bench::new();
    bench.bind(ap(1), T0);
    let (order, _) = bench.created(ap(1), 1, None, T0);
    let event = |event_type, data: serde_json::Value| {
        let data = data.into();
        DeviceEvent { device_id: ap(1), event_type, data, order_no: None, fence: None, at: T0 }
    };
    let data = serde_json::json!({ "order_no": order.order_no });
    let progress = EventType::ChargingProgress;
    for event in [
        event(EventType::DeviceOnline, data.clone()),
        DeviceEvent { order_no: Some(order.order_no), ..event(progress, serde_json::json!({ "energy_wh": 5 })) },
        event(EventType::DeviceHeartbeat, data.clone()),
    ] {
        assert!(matches!(bench.run(Job::Device(Box::new(event))), Outcome::Done));
    }
    let report = DeviceReport { ticket: 42, event: event(EventType::DeviceAlarm, data) };
    let outcome = bench.run(Job::Report(Box::new(report)));
    assert!(matches!(outcome, Outcome::Reported { ticket: 42, device_id } if device_id == ap(1)));
    let told: Vec<_> = bench.log().into_iter().map(|e| (e.event_type, e.key, e.sequence_no)).collect();
    let (device, no) = (ap(1).to_string(), order.order_no.to_string());
    let expected = [
        ("device.registered", &device, 1),
        ("order.created", &no, 1),
        ("device.online", &device, 2),
        ("charging.progress", &no, 0),
        ("device.heartbeat", &device, 0),
        ("device.alarm", &device, 3),
    ];
    assert_eq!(told, expected.map(|(event_type, key, number)| (event_type.to_owned(), key.clone(), number)));
    let log = bench.log();
    let progress = log.iter().find(|event| event.event_type == "charging.progress").unwrap();
    assert_eq!((progress.order_no.as_ref(), progress.device_id.as_ref()), (Some(&no), Some(&device)));
    bench.settle_down();
    assert_eq!(*bench.told.pos.lock(), bench.read(|reader| reader.last_pos()));
}

#[test]
fn the_backstop_ends_what_nobody_owns_and_respects_grace() {
    let bench = Bench::new();
    let epoch = bench.bind(ap(1), T0).epoch;
    let orders: Vec<Order> = (1..=5).map(|port| bench.created(ap(1), port, Some(epoch), T0).0).collect();
    let to = |index: usize, events: &[Event]| {
        for event in events {
            bench.happens(orders[index].order_no, *event, Some(epoch), T0);
        }
    };
    let (acked, charging) = ([Event::StartAcked], [Event::StartAcked, Event::Evidence]);
    to(1, &acked);
    to(2, &charging);
    to(3, &[Event::StartAcked, Event::Evidence, Event::Offline]);
    to(4, &[Event::StartAcked, Event::Evidence, Event::Stop]);
    let statuses = || orders.iter().map(|order| bench.order(order.order_no).status.code()).collect::<Vec<_>>();
    assert!(backstop(&bench, T0 + 44 * SECOND).is_empty());
    let held = Backstop {
        at: T0 + 24 * HOUR,
        interrupts_from: i64::MAX,
        offline_from: i64::MAX,
        interrupt_grace: 0,
        offline_grace: 0,
    };
    assert!(matches!(bench.run(Job::Backstop(held)), Outcome::Backstop(outcomes) if outcomes.is_empty()));
    backstop(&bench, T0 + 45 * SECOND);
    assert_eq!(statuses(), [7, 1, 2, 10, 9]);
    backstop(&bench, T0 + 90 * SECOND);
    assert_eq!(statuses(), [7, 1, 2, 6, 5]);
    // The device has been silent for longer than any session lasts: 390 s, a flush of 3 s, and 30 s behind the owner.
    backstop(&bench, T0 + 422 * SECOND);
    assert_eq!(statuses(), [7, 1, 2, 6, 5]);
    backstop(&bench, T0 + 423 * SECOND);
    assert_eq!(statuses(), [7, 1, 10, 6, 5]);
    assert_eq!(bench.order(orders[2].order_no).status_at, T0 + 423 * SECOND);
    backstop(&bench, T0 + 513 * SECOND);
    assert_eq!(statuses(), [7, 1, 6, 6, 5]);
    // A confirmed order ends by its maximum: 60 + 10 min, but at least 2 h, and 30 s behind the owner.
    backstop(&bench, T0 + 2 * HOUR + 29 * SECOND);
    assert_eq!(statuses(), [7, 1, 6, 6, 5]);
    let outcomes = backstop(&bench, T0 + 2 * HOUR + 30 * SECOND);
    assert_eq!(outcomes.len(), 1);
    assert_eq!(statuses(), [7, 9, 6, 6, 5]);
    bench.settle_down();
    let told = bench.told.orders.lock().iter().filter(|(order, ..)| order.order_no == orders[1].order_no).count();
    assert_eq!(told, 3, "created, confirmed, stopping");
}

#[test]
fn a_device_that_is_seen_is_not_interrupted() {
    let bench = Bench::new();
    let epoch = bench.bind(ap(1), T0).epoch;
    let (order, _) = bench.created(ap(1), 1, Some(epoch), T0);
    for event in [Event::StartAcked, Event::Evidence] {
        bench.happens(order.order_no, event, Some(epoch), T0);
    }
    let seen = Latest::Device {
        device_id: ap(1),
        last_seen_at: T0 + 10 * MINUTE,
        offline_at: T0 + 12 * MINUTE,
        signal: Some(20),
        firmware: Some("5.1".to_owned()),
        iccid: None,
        networked: false,
        device_type: Some(0x21),
    };
    assert!(bench.store.coalesce(&mut vec![seen]));
    // Closing writes what was handed over.
    let bench = bench.reopen();
    backstop(&bench, T0 + 11 * MINUTE);
    assert_eq!(bench.order(order.order_no).status, OrderStatus::Charging);
    let device = bench.read(|reader| reader.device(ap(1))).unwrap();
    assert_eq!((device.last_seen_at, device.signal), (Some(T0 + 10 * MINUTE), Some(20)));
    assert_eq!(device.firmware.as_deref(), Some("5.1"));
    bench.bind(ap(2), T0);
    let found = |online, at| {
        let filter = DeviceFilter { online: Some((online, at)), ..DeviceFilter::default() };
        let page = bench.read(move |reader| reader.devices(&filter, 1, 10));
        page.rows.into_iter().map(|row| row.device_id).collect::<Vec<_>>()
    };
    assert_eq!((found(true, T0 + 11 * MINUTE), found(false, T0 + 11 * MINUTE)), (vec![ap(1)], vec![ap(2)]));
    assert_eq!((found(true, T0 + 12 * MINUTE), found(false, T0 + 12 * MINUTE)), (vec![], vec![ap(1), ap(2)]));
}

#[test]
fn a_device_that_is_only_heard_keeps_what_it_told() {
    let bench = Bench::new();
    bench.bind(ap(1), T0);
    let told = Latest::Device {
        device_id: ap(1),
        last_seen_at: T0 + 10 * MINUTE,
        offline_at: T0 + 12 * MINUTE,
        signal: Some(20),
        firmware: Some("5.1".to_owned()),
        iccid: Some("89860446191890123456".to_owned()),
        networked: false,
        device_type: Some(0x21),
    };
    let seen = |minutes| Latest::Seen {
        device_id: ap(1),
        last_seen_at: T0 + minutes * MINUTE,
        offline_at: T0 + (minutes + 2) * MINUTE,
    };
    let stranger = Latest::Seen { device_id: ap(404), last_seen_at: T0, offline_at: T0 };
    // Together, and the older one later.
    assert!(bench.store.coalesce(&mut vec![told, seen(11), stranger]));
    let bench = bench.reopen();
    assert!(bench.store.coalesce(&mut vec![seen(9)]));
    let bench = bench.reopen();
    let device = bench.read(|reader| reader.device(ap(1))).unwrap();
    assert_eq!((device.last_seen_at, device.signal), (Some(T0 + 11 * MINUTE), Some(20)));
    assert_eq!(device.firmware.as_deref(), Some("5.1"));
    assert_eq!(device.iccid.as_deref(), Some("89860446191890123456"));
    assert!(bench.read(|reader| reader.device(ap(404))).is_none(), "no row is made");
    let online_at = |at| {
        let filter = DeviceFilter { online: Some((true, at)), ..DeviceFilter::default() };
        bench.read(move |reader| reader.devices(&filter, 1, 10)).rows.len()
    };
    assert_eq!((online_at(T0 + 13 * MINUTE - 1), online_at(T0 + 13 * MINUTE)), (1, 0));
}

#[test]
fn latest_values_keep_the_latest_and_never_touch_settled_totals() {
    let bench = Bench::new();
    bench.bind(ap(1), T0);
    let (order, _) = bench.created(ap(1), 1, None, T0);
    let no = order.order_no;
    let port = |status, updated_at, device_id| PortRecord {
        device_id,
        port_no: 1,
        socket: None,
        hole: None,
        status,
        raw_status: 1,
        power_dw: 2200,
        current_ma: 1000,
        voltage_dv: 2200,
        energy_wh: 100,
        charged_seconds: 60,
        updated_at,
    };
    let progress =
        |energy_wh| Latest::Progress { order_no: no, duration_seconds: 60, energy_wh, at: T0 + i64::from(energy_wh) };
    let mut rows = vec![
        Latest::Port(port(PortStatus::Charging, T0 + 2, ap(1))),
        Latest::Port(port(PortStatus::Idle, T0 + 1, ap(1))),
        Latest::Port(port(PortStatus::Idle, T0, ap(404))),
        progress(7),
    ];
    assert!(bench.store.coalesce(&mut rows) && rows.is_empty());
    let bench = bench.reopen();
    assert_eq!(bench.read(|reader| reader.ports(ap(1))), [port(PortStatus::Charging, T0 + 2, ap(1))]);
    assert_eq!(bench.order(no).energy_wh, Some(7));
    assert_eq!(bench.bind(ap(1), T0 + 3).ports.len(), 1);
    bench.settle(ap_settlement(ap(1), 1, *no.as_bytes(), 1, T0 + HOUR));
    assert!(bench.store.coalesce(&mut vec![progress(8)]));
    let bench = bench.reopen();
    assert_eq!(bench.order(no).energy_wh, Some(500));
}

#[test]
fn delivery_progress_moves_forward() {
    let bench = Bench::new();
    for n in 1..=4 {
        bench.bind(ap(n), T0);
    }
    let parked = |pos, attempts| ParkedDelivery {
        endpoint: "shop".to_owned(),
        pos,
        key: ap(pos as u32).to_string(),
        attempts,
        next_at: T0 + 1000,
        reason: "http_500".to_owned(),
    };
    let cursor = |pos| DeliveryUpdate::Cursor { endpoint: "shop".to_owned(), pos };
    assert_eq!(bench.read(|reader| reader.endpoint("shop")).map(|progress| progress.cursor), None);
    let updates = vec![DeliveryUpdate::Park(parked(1, 1)), DeliveryUpdate::Park(parked(2, 1)), cursor(4), cursor(3)];
    bench.run(Job::Delivery(updates));
    assert_eq!(bench.read(|reader| reader.endpoint("shop")).map(|progress| progress.cursor), Some(4));
    let waiting = bench.read(|reader| reader.parked("shop", 10));
    assert_eq!(waiting.iter().map(|(parked, event)| (parked.pos, event.pos)).collect::<Vec<_>>(), [(1, 1), (2, 2)]);
    let unpark = DeliveryUpdate::Unpark { endpoint: "shop".to_owned(), pos: 1 };
    bench.run(Job::Delivery(vec![unpark, DeliveryUpdate::Dead(parked(2, 5))]));
    assert!(bench.read(|reader| reader.parked("shop", 10)).is_empty());
    let dead = bench.read(|reader| reader.dead_letters("shop", 1, 10)).rows;
    assert_eq!(dead.iter().map(|(dead, _)| (dead.pos, dead.attempts)).collect::<Vec<_>>(), [(2, 5)]);
    assert!(bench.read(|reader| reader.dead_letters("other", 1, 10)).rows.is_empty());
}

fn parked_at(pos: i64, attempts: u8) -> ParkedDelivery {
    ParkedDelivery {
        endpoint: "shop".to_owned(),
        pos,
        key: ap(pos as u32).to_string(),
        attempts,
        next_at: T0 + 1000,
        reason: "http_500".to_owned(),
    }
}

fn change(bench: &Bench, change: DeliveryChange) -> EndpointOutcome {
    let job = EndpointJob { endpoint: "shop".to_owned(), change, at: T0 + 50 };
    match bench.run(Job::Endpoint(job)) {
        Outcome::Endpoint(outcome) => outcome,
        other => panic!("{other:?}"),
    }
}

fn progress(bench: &Bench) -> EndpointProgress {
    bench.read(|reader| reader.endpoint("shop")).expect("it has a cursor")
}

fn dead_at(bench: &Bench) -> Vec<i64> {
    bench.read(|reader| reader.dead_letters("shop", 1, 100)).rows.iter().map(|(dead, _)| dead.pos).collect()
}

/// Positions, attempts and reasons of what is parked.
fn waiting(bench: &Bench) -> Vec<(i64, u8, String)> {
    let rows = bench.read(|reader| reader.parked("shop", 100));
    rows.into_iter().map(|(row, _)| (row.pos, row.attempts, row.reason)).collect()
}

/// Eight events, up to the sixth of which an endpoint is: 2 and 4 to 6 are dead letters, 3 is parked.
fn endpoint_with_dead_letters() -> Bench {
    let bench = Bench::new();
    for n in 1..=8 {
        bench.bind(ap(n), T0 + i64::from(n));
    }
    bench.settle_down();
    let mut updates: Vec<_> = [2, 4, 5, 6].map(|pos| DeliveryUpdate::Dead(parked_at(pos, 6))).into();
    updates.push(DeliveryUpdate::Park(parked_at(3, 2)));
    updates.push(DeliveryUpdate::Cursor { endpoint: "shop".to_owned(), pos: 6 });
    bench.run(Job::Delivery(updates));
    bench
}

#[test]
fn dead_letters_are_listed_redriven_and_purged() {
    let bench = endpoint_with_dead_letters();
    let page = bench.read(|reader| reader.dead_letters("shop", 2, 3));
    assert_eq!((page.total, page.rows.iter().map(|(dead, event)| (dead.pos, event.pos)).collect()), (4, vec![(6, 6)]));
    let before = progress(&bench).revision;

    // One that is parked, or of no event at all, is nobody's dead letter.
    let some = DeadLetters::At(vec![2, 3, 77]);
    assert_eq!(
        change(&bench, DeliveryChange::Redrive(some.clone())),
        EndpointOutcome { changed: 1, more_behind: None }
    );
    assert_eq!(waiting(&bench), [(2, 0, "redrive".to_owned()), (3, 2, "http_500".to_owned())]);
    assert_eq!(bench.read(|reader| reader.parked("shop", 1))[0].0.next_at, T0 + 50);
    assert!(progress(&bench).revision > before, "whoever delivers looks again");
    assert_eq!(change(&bench, DeliveryChange::Redrive(some)).changed, 0);

    // All of them, a piece at a time.
    let behind = |pos| DeadLetters::Behind { pos, rows_max: 2 };
    let first = change(&bench, DeliveryChange::Redrive(behind(0)));
    assert_eq!(first, EndpointOutcome { changed: 2, more_behind: Some(5) });
    let before = progress(&bench).revision;
    let second = change(&bench, DeliveryChange::Purge(behind(5)));
    assert_eq!(second, EndpointOutcome { changed: 1, more_behind: None });
    assert_eq!(progress(&bench).revision, before, "what is gone concerns nobody");
    assert!(dead_at(&bench).is_empty());
    assert_eq!(waiting(&bench).iter().map(|row| row.0).collect::<Vec<_>>(), [2, 3, 4, 5]);
    assert_eq!(change(&bench, DeliveryChange::Purge(DeadLetters::At(vec![3]))).changed, 0, "it is not dead");
}

#[test]
fn a_range_is_redelivered_but_for_what_is_still_to_come() {
    let bench = endpoint_with_dead_letters();
    let redeliver = |from_pos, to_pos, event_types: &[&'static str], rows_max| {
        let event_types = event_types.into();
        change(&bench, DeliveryChange::Redeliver { from_pos, to_pos, event_types, rows_max })
    };
    assert_eq!(redeliver(1, 100, &["order.created"], 100).changed, 0, "nothing it wants");
    let first = redeliver(1, 100, &["order.created", "device.registered"], 3);
    assert_eq!(first, EndpointOutcome { changed: 2, more_behind: Some(3) }, "3 is parked already");
    let rest = redeliver(4, 100, &["device.registered"], 100);
    assert_eq!(rest, EndpointOutcome { changed: 3, more_behind: None }, "7 and 8 are delivered anyway");
    assert_eq!(
        waiting(&bench).iter().map(|(pos, attempts, _)| (*pos, *attempts)).collect::<Vec<_>>(),
        [(1, 0), (2, 0), (3, 2), (4, 0), (5, 0), (6, 0)]
    );
    assert!(dead_at(&bench).is_empty());
    assert_eq!(redeliver(1, 6, &["device.registered"], 100).changed, 0);
    // Times are positions.
    for (at, pos) in [(T0, 1), (T0 + 1, 1), (T0 + 5, 5), (T0 + 8, 8), (T0 + 9, 9)] {
        assert_eq!(bench.read(move |reader| reader.pos_at(at)), pos, "{at}");
    }
}

#[test]
fn a_disabled_endpoint_stays_so_until_it_is_enabled_and_may_skip_its_backlog() {
    let bench = endpoint_with_dead_letters();
    let disabled = |at: i64, reason: &str| Some(Disabled { at, reason: reason.to_owned() });
    let gone =
        |at, reason: &str| DeliveryUpdate::Disable { endpoint: "shop".to_owned(), reason: reason.to_owned(), at };
    bench.run(Job::Delivery(vec![gone(T0 + 5, "http_410"), gone(T0 + 6, "later")]));
    assert_eq!(progress(&bench).disabled, disabled(T0 + 5, "http_410"));
    let bench = bench.reopen();
    assert_eq!(progress(&bench).disabled, disabled(T0 + 5, "http_410"));
    bench.run(Job::Delivery(vec![DeliveryUpdate::Cursor { endpoint: "shop".to_owned(), pos: 7 }]));
    assert!(progress(&bench).disabled.is_some(), "what was under way is stored");

    let before = progress(&bench).revision;
    change(&bench, DeliveryChange::Enable { skip_backlog: false });
    assert_eq!(progress(&bench), EndpointProgress { cursor: 7, revision: before, disabled: None });
    change(&bench, DeliveryChange::Disable { reason: "by hand".to_owned() });
    assert_eq!(progress(&bench).disabled, disabled(T0 + 50, "by hand"));
    assert_eq!(change(&bench, DeliveryChange::Enable { skip_backlog: true }).changed, 1);
    let skipped = progress(&bench);
    assert_eq!((skipped.cursor, skipped.disabled), (8, None));
    assert!(skipped.revision > before);
    assert!(waiting(&bench).is_empty());
    assert_eq!(dead_at(&bench), [2, 3, 4, 5, 6], "what was parked can still be had");

    // One that has no cursor yet gets it.
    let job = |change| EndpointJob { endpoint: "new".to_owned(), change, at: T0 };
    bench.run(Job::Endpoint(job(DeliveryChange::Disable { reason: "early".to_owned() })));
    let early = bench.read(|reader| reader.endpoint("new")).expect("a cursor");
    assert_eq!((early.cursor, early.disabled), (8, disabled(T0, "early")));
    let standings = bench.read(|reader| reader.standings());
    let counts: Vec<_> = standings.iter().map(|one| (one.endpoint.as_str(), one.parked, one.dead)).collect();
    assert_eq!(counts, [("new", 0, 0), ("shop", 0, 5)]);
    assert_eq!(standings[1].owner, None);
    if let Some(own) = bench.instance() {
        bench.run(Job::Lease(LeaseJob { endpoint: "shop".to_owned(), owner: own.clone(), for_ms: HOUR }));
        assert_eq!(bench.read(|reader| reader.standings())[1].owner, Some(own));
    }
}

#[test]
fn the_log_of_deliveries_is_read_newest_first_and_pruned() {
    let bench = Bench::new();
    let row = |n: i64, endpoint: &str, outcome, status| DeliveryLogRow {
        at: T0 + n,
        endpoint: endpoint.into(),
        pos: n % 3,
        event_id: format!("e-{n}"),
        event_type: "order.created".to_owned(),
        key: "THD0000000000001".to_owned(),
        attempt: 1,
        status,
        took_ms: 7,
        outcome,
        reason: (outcome != Delivered).then(|| "http_500".to_owned()),
        instance: None,
    };
    use DeliveryOutcome::{Dead, Delivered, Retry};
    let mut rows: Vec<_> = (0..10).map(|n| row(n, "shop", Delivered, Some(200))).collect();
    rows.extend([row(10, "shop", Retry, None), row(11, "shop", Dead, Some(500)), row(12, "other", Dead, Some(500))]);
    bench.store.append_deliveries(rows.clone());
    let shop = |outcome, page, size| bench.read(move |reader| reader.deliveries("shop", outcome, page, size));
    until("the rows are written", || bench.read(|reader| reader.deliveries("other", None, 1, 1)).total == 1);
    let times = |page: Page<DeliveryLogRow>| page.rows.iter().map(|row| row.at - T0).collect::<Vec<_>>();
    assert_eq!(shop(None, 1, 3).total, 12);
    assert_eq!(times(shop(None, 2, 5)), [6, 5, 4, 3, 2]);
    assert_eq!(times(shop(Some(Delivered), 1, 2)), [9, 8]);
    let dead = shop(Some(Dead), 1, 10);
    assert_eq!((dead.total, dead.rows.len()), (1, 1));
    let stored = DeliveryLogRow { instance: dead.rows[0].instance.clone(), ..rows[11].clone() };
    assert_eq!(dead.rows[0], stored);
    assert_eq!(dead.rows[0].instance, Some(ServerId::new("test")));
    assert_eq!(shop(Some(Retry), 1, 10).rows[0].status, None);
    let of_event = bench.read(|reader| reader.deliveries_of_event(0, 1, 3));
    assert_eq!((of_event.total, times(of_event)), (5, vec![0, 3, 6]), "of all endpoints, in their order");

    // More than one piece.
    drop(bench.run(Job::Prune(Prune { delivery_log_before: T0 + 11, ..Prune::all(0, 2) })));
    until("what is old is gone", || shop(None, 1, 10).total == 1);
    assert_eq!(bench.read(|reader| reader.deliveries("other", None, 1, 1)).total, 1);
}

#[test]
fn pruning_is_bounded_and_never_repeats_a_position() {
    let bench = Bench::new();
    for n in 1..=5 {
        bench.bind(ap(n), T0 + i64::from(n));
    }
    let prune = |before, rows_max| {
        bench.settle_down();
        drop(bench.run(Job::Prune(Prune::all(before, rows_max))));
    };
    prune(T0 + 3, 1);
    assert_eq!(bench.log().first().unwrap().pos, 2);
    prune(T0 + 3, 100);
    assert_eq!(bench.log().first().unwrap().pos, 3);
    prune(T0 + 1000, 100);
    assert_eq!(bench.log().iter().map(|event| event.pos).collect::<Vec<_>>(), [5]);
    bench.bind(ap(6), T0 + 6);
    bench.settle_down();
    assert_eq!(bench.read(|reader| reader.last_pos()), 6);
}

fn asked(key: &str, body: u8) -> Option<Idempotency> {
    Some(Idempotency {
        api_key: "shop".into(),
        route: "POST /charge".to_owned(),
        key: key.to_owned(),
        body_hash: [body; 32],
    })
}

fn repeated(outcome: Outcome) -> Earlier {
    match outcome {
        Outcome::Repeated(earlier) => earlier,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_charge_of_one_idempotency_key_is_created_once_and_answered_the_same() {
    let bench = Bench::new();
    bench.bind(ap(1), T0);
    let create = |key, body, port_no| {
        let new = NewOrder { idempotency: asked(key, body), ..bench.new_order(ap(1), port_no, None, T0) };
        bench.run(Job::CreateOrder(Box::new(new)))
    };
    let Outcome::Created(created) = create("k", 1, 1) else { panic!("not created") };
    let Created::Order { order, .. } = *created else { panic!("{created:?}") };
    let answer = Earlier::Answer { status: 202, body: payload::accepted(&order, "request", T0).unwrap() };
    // The order is another one by now, and would be answered differently.
    bench.happens(order.order_no, Event::Cancel, None, T0 + 1);
    let changes = |bench: &Bench| (bench.told.orders.lock().len(), bench.log().len());
    bench.settle_down();
    let before = changes(&bench);
    assert_eq!(repeated(create("k", 1, 1)), answer);
    assert_eq!(repeated(create("k", 2, 1)), Earlier::Mismatch);
    bench.settle_down();
    assert_eq!(changes(&bench), before, "nothing was changed, and nobody told");
    assert_eq!(bench.read(|reader| reader.earlier(&asked("k", 1).unwrap())), Some(answer.clone()));
    for other in [
        Idempotency { api_key: "other".into(), ..asked("k", 1).unwrap() },
        Idempotency { route: "POST /stop".to_owned(), ..asked("k", 1).unwrap() },
        Idempotency { key: "K".to_owned(), ..asked("k", 1).unwrap() },
    ] {
        assert_eq!(bench.read(move |reader| reader.earlier(&other)), None);
    }
    let bench = bench.reopen();
    assert_eq!(bench.read(|reader| reader.earlier(&asked("k", 1).unwrap())), Some(answer));
    bench.run(Job::Prune(Prune { answers_before: T0 + 1, ..Prune::all(0, 10) }));
    assert_eq!(bench.read(|reader| reader.earlier(&asked("k", 1).unwrap())), None);
}

#[test]
fn a_refused_request_leaves_its_idempotency_key_free() {
    let bench = Bench::new();
    bench.bind(ap(1), T0);
    let (holder, _) = bench.created(ap(1), 1, None, T0);
    let busy = NewOrder { idempotency: asked("k", 1), ..bench.new_order(ap(1), 1, None, T0) };
    let late = NewOrder { idempotency: asked("k", 1), deadline: T0 - 1, ..bench.new_order(ap(1), 2, None, T0) };
    for new in [busy, late] {
        assert!(matches!(bench.run(Job::CreateOrder(Box::new(new))), Outcome::Created(_)));
    }
    let job = |event| OrderJob { idempotency: asked("k", 1), ..order_job(holder.order_no, event, T0) };
    assert_eq!(bench.order_job(job(Event::ReturnTimedOut)).verdict, Verdict::Refused);
    assert_eq!(bench.read(|reader| reader.earlier(&asked("k", 1).unwrap())), None);
    assert!(matches!(bench.order_job(job(Event::Cancel)).verdict, Verdict::Step(_)));
    let body = payload::accepted(&bench.order(holder.order_no), "", T0).unwrap();
    let again = repeated(bench.run(Job::Order(Box::new(job(Event::Cancel)))));
    assert_eq!(again, Earlier::Answer { status: 202, body });
}

#[test]
fn lists_filter_and_page() {
    let bench = Bench::new();
    for n in 1..=3 {
        bench.bind(ap(n), T0);
    }
    bench.bind(bkv(1), T0);
    for port in 1..=3 {
        bench.created(ap(1), port, None, T0 + i64::from(port));
    }
    bench.created(ap(2), 1, None, T0);
    let mine = OrderFilter { device_id: Some(ap(1)), ..OrderFilter::default() };
    let page = bench.read(move |reader| reader.orders(&mine, 2, 2));
    assert_eq!((page.total, page.rows.len(), page.rows[0].port_no), (3, 1, 1));
    let none = OrderFilter { status: Some(OrderStatus::Charging), ..OrderFilter::default() };
    assert_eq!(bench.read(move |reader| reader.orders(&none, 1, 10)).total, 0);
    let created = |from: Option<i64>, to: Option<i64>| {
        let filter = OrderFilter {
            device_id: Some(ap(1)),
            created_from: from.map(|ms| T0 + ms),
            created_to: to.map(|ms| T0 + ms),
            ..OrderFilter::default()
        };
        let page = bench.read(move |reader| reader.orders(&filter, 1, 10));
        assert_eq!(page.total, page.rows.len() as u64);
        page.rows.iter().map(|order| order.port_no).collect::<Vec<_>>()
    };
    assert_eq!(created(None, None), [3, 2, 1]);
    assert_eq!(created(Some(2), None), [3, 2], "from is in");
    assert_eq!(created(None, Some(2)), [1], "to is out");
    assert_eq!(created(Some(2), Some(3)), [2]);
    let devices = |filter: DeviceFilter| {
        let page = bench.read(move |reader| reader.devices(&filter, 1, 10));
        page.rows.into_iter().map(|device| device.device_id).collect::<Vec<_>>()
    };
    let gateways = DeviceFilter { protocol: Some(Protocol::Bkv), ..DeviceFilter::default() };
    assert_eq!(devices(gateways), [bkv(1)]);
    let among = DeviceFilter { among: Some(vec![ap(1), ap(3)]), ..DeviceFilter::default() };
    assert_eq!(devices(among), [ap(1), ap(3)]);
    let except = DeviceFilter { except: Some(vec![ap(1), ap(3)]), ..DeviceFilter::default() };
    assert_eq!(devices(except), [bkv(1), ap(2)]);
    assert!(devices(DeviceFilter { among: Some(Vec::new()), ..DeviceFilter::default() }).is_empty());
    let found = |search: &str| devices(DeviceFilter { search: Some(search.to_owned()), ..DeviceFilter::default() });
    let id = ap(2).to_string();
    assert_eq!((found(&id), found(&id[..id.len() - 1]).contains(&ap(2))), (vec![ap(2)], true));
    assert_eq!(found(&bkv(1).to_string().to_uppercase()), [bkv(1)]);
    for nothing in ["%", "_", "\\", "no such name"] {
        assert_eq!(found(nothing), [], "{nothing}");
    }
}

#[test]
fn orders_of_one_moment_have_an_order_and_pages_neither_lose_nor_repeat_one() {
    let bench = Bench::new();
    for n in 1..=7 {
        bench.bind(ap(n), T0);
    }
    let mut numbers: Vec<OrderNo> = (1..=7).map(|n| bench.created(ap(n), 1, None, T0).0.order_no).collect();
    numbers.sort_by_key(|no| std::cmp::Reverse(no.to_string()));
    let all = OrderFilter::default;
    let pages = (1..=4).flat_map(|page| bench.read(move |reader| reader.orders(&all(), page, 2)).rows);
    assert_eq!(pages.map(|order| order.order_no).collect::<Vec<_>>(), numbers);
    for page in [5, u32::MAX] {
        let behind = bench.read(move |reader| reader.orders(&all(), page, 200));
        assert_eq!((behind.total, behind.rows.len()), (7, 0));
    }
}

#[test]
fn orders_are_found_by_business_number_and_commands_by_state() {
    let bench = Bench::new();
    bench.bind(bkv(1), T0);
    let (order, _) = bench.created(bkv(1), 1, None, T0);
    bench.created(bkv(1), 2, None, T0);
    bench.order_job(OrderJob { business_no: Some(77), ..order_job(order.order_no, Event::StartAcked, T0 + 1) });
    let found = |business_no| {
        let filter = OrderFilter { business_no: Some(business_no), ..OrderFilter::default() };
        bench
            .read(move |reader| reader.orders(&filter, 1, 10))
            .rows
            .iter()
            .map(|order| order.port_no)
            .collect::<Vec<_>>()
    };
    assert_eq!((found(77), found(78)), (vec![1], vec![]));
    let commands = |state| {
        let page = bench.read(move |reader| reader.commands(bkv(1), state, 1, 10));
        assert_eq!(page.total, page.rows.len() as u64);
        page.rows.iter().map(|command| command.state.clone()).collect::<Vec<_>>()
    };
    let all = commands(None);
    assert_eq!(all.len(), 2);
    for state in CommandState::ALL {
        let expected: Vec<_> = all.iter().filter(|word| *word == state.as_str()).cloned().collect();
        assert_eq!(commands(Some(state)), expected);
    }
}

#[test]
fn every_charge_spec_reads_back() {
    let bench = Bench::new();
    bench.bind(bkv(1), T0);
    let tier = chargegate::model::PowerTier { power_dw: 2000, price_cent: 25, minutes: 60 };
    let period = chargegate::model::FeePeriod { end_hour: 23, end_minute: 59, electricity_cent: 60, service_cent: 40 };
    let modes = [
        ChargeMode::Full,
        ChargeMode::Time { minutes: 1 },
        ChargeMode::Energy { wh: 65_535 },
        ChargeMode::Power { tiers: vec![tier] },
        ChargeMode::ServiceFee { periods: vec![period], by_energy: true },
    ];
    for (port_no, mode) in (1..).zip(modes) {
        let spec = ChargeSpec { mode, paid_cent: None, stop_when_full: true };
        let new = NewOrder { spec: spec.clone(), ..bench.new_order(bkv(1), port_no, None, T0) };
        let no = new.order_no;
        bench.run(Job::CreateOrder(Box::new(new)));
        assert_eq!(bench.order(no).spec, spec);
    }
    let bound = bench.bind(bkv(1), T0 + 1);
    assert_eq!(bound.commands.len(), 5);
}

#[test]
fn a_closed_store_gives_jobs_back_and_one_process_holds_the_database() {
    let bench = Bench::new();
    let embedded = !store::ON_POSTGRES;
    if embedded {
        let again = open_sqlite(bench.dir.path(), &bench.told);
        assert!(again.is_err_and(|error| error.to_string().contains("in use")));
    }
    bench.store.close(store::PATIENCE);
    let job = Job::Prune(Prune::all(0, 1));
    assert!(bench.store.submit(job, chargegate::store::Reply::None).is_err());
    assert!(!bench.store.health().ready.load(std::sync::atomic::Ordering::Relaxed));
    if embedded {
        assert!(open_sqlite(bench.dir.path(), &bench.told).is_ok());
    }
}
