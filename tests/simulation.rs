//! Charges from end to end in virtual time: the real core and store, simulated devices that speak the real bytes.

mod sim;

use chargegate::{
    gateway::order::{Event, Verdict},
    model::{ChargeMode, DeviceId, OrderNo, OrderStatus},
    protocol::{Step, bkv},
};
use chargegate_loadtest::device::{Ap3000Device, Behaviour, BkvDevice};
use sim::World;

const MINUTE: u64 = 60_000;

fn ap3000(world: &mut World) -> usize {
    let device = Ap3000Device::new(0, 2, Behaviour::default());
    let id = device.phy_id().to_string();
    let peer = world.add(&id, device);
    world.run_until(10_000, "the device is online", |world| world.online(peer));
    peer
}

fn bkv(world: &mut World) -> usize {
    let device = BkvDevice::new(0, 0, Behaviour::default());
    let id = device.gateway_id().to_string();
    let peer = world.add(&id, device);
    world.run_until(10_000, "the device is online", |world| world.online(peer));
    peer
}

fn both(test: impl Fn(&mut World, usize)) {
    for add in [ap3000, bkv] {
        let mut world = World::new();
        let peer = add(&mut world);
        test(&mut world, peer);
    }
}

const MINUTES_3: ChargeMode = ChargeMode::Time { minutes: 3 };

#[test]
fn a_timed_charge_is_confirmed_charges_completes_and_settles() {
    both(|world, peer| {
        let order = world.charge(peer, 1, MINUTES_3);
        world.run_until(5_000, "confirmed", |world| world.status(order) != OrderStatus::Pending);
        world.run_until(MINUTE, "charging", |world| world.status(order) == OrderStatus::Charging);
        world.run_until(10 * MINUTE, "settled", |world| world.order(order).settled);
        let row = world.order(order);
        assert_eq!(row.status, OrderStatus::Completed, "{row:?}");
        assert_eq!(row.duration_seconds, Some(180));
        assert_eq!(
            world.events(order.as_str()),
            [
                "order.created",
                "order.confirmed",
                "charging.started",
                "charging.ended",
                "order.completed",
                "order.settled"
            ]
        );
        // The port is free again.
        let next = world.charge(peer, 1, MINUTES_3);
        world.run_until(MINUTE, "the next charges", |world| world.status(next) == OrderStatus::Charging);
    });
}

#[test]
fn heartbeats_are_told_outside_of_the_devices_sequence() {
    both(|world, peer| {
        world.run_for(3 * MINUTE);
        // Reading them checks that the numbered events have no gap.
        let events = world.events(&world.peers[peer].id.to_string());
        let heartbeats = events.iter().filter(|event| *event == "device.heartbeat").count();
        assert!((2..20).contains(&heartbeats), "{events:?}");
    });
}

#[test]
fn a_stop_ends_a_charge_as_stopped() {
    both(|world, peer| {
        let order = world.charge(peer, 1, ChargeMode::Time { minutes: 60 });
        world.run_until(MINUTE, "charging", |world| world.status(order) == OrderStatus::Charging);
        world.run_for(5 * MINUTE);
        assert!(matches!(world.order_event(order, Event::Stop), Verdict::Step(_)));
        assert_eq!(world.order_event(order, Event::Stop), Verdict::Unchanged);
        world.run_until(MINUTE, "settled", |world| world.order(order).settled);
        assert_eq!(world.status(order), OrderStatus::Stopped);
        let events = world.events(order.as_str());
        let tail = &events[3..];
        assert_eq!(tail, ["order.stopping", "charging.ended", "order.stopped", "order.settled"], "{events:?}");
    });
}

#[test]
fn a_cancel_before_charging_ends_as_cancelled() {
    both(|world, peer| {
        let order = world.charge(peer, 2, ChargeMode::Time { minutes: 60 });
        world.order_event(order, Event::Cancel);
        world.run_until(MINUTE, "cancelled", |world| world.status(order) == OrderStatus::Cancelled);
        world.run_for(10 * MINUTE);
        assert_eq!(world.status(order), OrderStatus::Cancelled);
        assert!(!world.order(order).end_pending);
    });
}

#[test]
fn a_deaf_device_times_out() {
    both(|world, peer| {
        world.peers[peer].deaf = true;
        let order = world.charge(peer, 1, MINUTES_3);
        world.run_until(16_000, "timeout", |world| world.status(order) == OrderStatus::Timeout);
        assert_eq!(world.events(order.as_str()), ["order.created", "order.timeout"]);
    });
}

#[test]
fn an_interrupted_charge_resumes() {
    both(|world, peer| {
        let order = world.charge(peer, 1, ChargeMode::Time { minutes: 60 });
        world.run_until(MINUTE, "charging", |world| world.status(order) == OrderStatus::Charging);
        // Back after it counts as offline (70 s, 130 s), and within the minute that is given for its return.
        let ap3000 = matches!(world.peers[peer].id, DeviceId::Ap3000(_));
        world.cut(peer, if ap3000 { 110_000 } else { 160_000 });
        world.run_until(140_000, "interrupted", |world| world.status(order) == OrderStatus::Interrupted);
        world.run_until(10 * MINUTE, "resumed", |world| world.status(order) == OrderStatus::Charging);
        world.run_until(90 * MINUTE, "settled", |world| world.order(order).settled);
        assert_eq!(world.status(order), OrderStatus::Completed);
        let events = world.events(order.as_str());
        assert_eq!(events[3..5], ["order.interrupted", "order.resumed"], "{events:?}");
    });
}

#[test]
fn a_device_that_stays_away_fails_its_order_and_settles_late() {
    both(|world, peer| {
        let order = world.charge(peer, 1, ChargeMode::Time { minutes: 20 });
        world.run_until(MINUTE, "charging", |world| world.status(order) == OrderStatus::Charging);
        world.cut(peer, 30 * MINUTE);
        world.run_until(10 * MINUTE, "failed", |world| world.status(order) == OrderStatus::Failed);
        assert_eq!(world.order(order).failure_reason.as_deref(), Some("device_offline"));
        world.run_until(40 * MINUTE, "settled late", |world| world.order(order).settled);
        assert_eq!(world.status(order), OrderStatus::Failed);
        assert_eq!(world.events(order.as_str()).last().map(String::as_str), Some("order.settled"));
    });
}

#[test]
fn a_restart_keeps_running_charges_charging() {
    both(|world, peer| {
        let order = world.charge(peer, 1, ChargeMode::Time { minutes: 20 });
        world.run_until(MINUTE, "charging", |world| world.status(order) == OrderStatus::Charging);
        world.restart();
        world.run_until(30 * MINUTE, "settled", |world| {
            let row = world.order(order);
            assert!(row.settled || row.status == OrderStatus::Charging, "{row:?}");
            row.settled
        });
        assert_eq!(world.status(order), OrderStatus::Completed);
        assert_eq!(world.events(order.as_str()).len(), 6);
    });
}

#[test]
fn a_settlement_waits_for_the_store() {
    both(|world, peer| {
        let order = world.charge(peer, 1, MINUTES_3);
        world.run_until(MINUTE, "charging", |world| world.status(order) == OrderStatus::Charging);
        world.store_down = true;
        world.run_for(5 * MINUTE);
        assert!(!world.order(order).settled);
        world.store_down = false;
        world.run_until(40 * MINUTE, "settled", |world| world.order(order).settled);
        assert_eq!(world.status(order), OrderStatus::Completed);
        assert_eq!(world.order(order).duration_seconds, Some(180));
    });
}

#[test]
fn a_charge_is_settled_although_its_start_was_not_recorded() {
    both(|world, peer| {
        // The start is on the wire, that it is waits for the store, and the gateway is lost until the charge is over.
        world.store_latency = Some(Box::new(|| 1_000));
        let order = world.charge(peer, 1, ChargeMode::Time { minutes: 1 });
        world.run_for(10);
        world.restart();
        world.store_latency = None;
        world.stay_away(peer, 3 * MINUTE);
        world.run_until(40 * MINUTE, "settled", |world| world.order(order).settled);
        assert_eq!(world.order(order).duration_seconds, Some(60));
        assert_eq!(world.count("SELECT count(*) FROM settlements WHERE order_no IS NULL"), 0);
    });
}

#[test]
fn a_start_that_was_not_written_in_time_is_never_sent() {
    // Commands of an AP3000 device wait for each other, so the second start is not written when the connection goes.
    let mut world = World::new();
    let peer = ap3000(&mut world);
    let first = world.charge(peer, 1, ChargeMode::Time { minutes: 60 });
    let second = world.charge(peer, 2, MINUTES_3);
    world.run_for(100);
    world.cut(peer, 40_000);
    world.run_until(MINUTE, "timeout", |world| world.status(second) == OrderStatus::Timeout);
    world.run_until(5 * MINUTE, "the first charges", |world| world.status(first) == OrderStatus::Charging);
    world.run_for(5 * MINUTE);
    let starts = |order: OrderNo| {
        let frames = world.peers[peer].received.iter();
        frames.filter(|frame| frame.windows(16).any(|bytes| bytes == order.as_bytes())).count()
    };
    assert!(starts(first) > 0);
    assert_eq!(starts(second), 0);
}

#[test]
fn records_that_come_one_a_minute_are_waited_for() {
    // An AP3000 device sends the next record a minute after an acknowledgement, so the last of eight comes after seven.
    let mut world = World::new();
    let device = Ap3000Device::new(0, 8, Behaviour::default());
    let id = device.phy_id().to_string();
    let peer = world.add(&id, device);
    world.run_until(10_000, "the device is online", |world| world.online(peer));
    let orders: Vec<_> = (1..=8).map(|port_no| world.charge(peer, port_no, MINUTES_3)).collect();
    world.run_until(30 * MINUTE, "all settled", |world| orders.iter().all(|order| world.order(*order).settled));
    for order in orders {
        assert_eq!(world.status(order), OrderStatus::Completed, "{:?}", world.order(order));
    }
}

#[test]
fn records_behind_one_that_the_store_refused_are_waited_for() {
    let mut world = World::new();
    let peer = ap3000(&mut world);
    let orders = [1, 2].map(|port_no| world.charge(peer, port_no, MINUTES_3));
    world.run_until(MINUTE, "charging", |world| orders.iter().all(|no| world.status(*no) == OrderStatus::Charging));
    world.store_down = true;
    world.run_for(5 * MINUTE);
    world.store_down = false;
    // The device sends the first again after half an hour, and the other behind it.
    world.run_until(45 * MINUTE, "all settled", |world| orders.iter().all(|order| world.order(*order).settled));
    assert_eq!(orders.map(|order| world.status(order)), [OrderStatus::Completed; 2]);
}

/// A BKV gateway whose minute takes a second, and an order of one minute of which nothing but the start left the gateway.
fn quick_charge(world: &mut World) -> (usize, OrderNo) {
    let device = BkvDevice::new(0, 0, Behaviour { time_factor: 60, ..Behaviour::default() });
    let id = device.gateway_id().to_string();
    let peer = world.add(&id, device);
    world.run_until(10_000, "the device is online", |world| world.online(peer));
    // The start is on the wire, and that it is waits for the store.
    world.store_latency = Some(Box::new(|| 1_000));
    let order = world.charge(peer, 1, ChargeMode::Time { minutes: 1 });
    world.run_for(10);
    world.store_latency = None;
    (peer, order)
}

fn is_question(frame: &[u8]) -> bool {
    match bkv::deframe(frame) {
        Step::Item { item, .. } => matches!(bkv::decode_body(&item), Ok(bkv::Body::SocketQuery(..))),
        Step::Skip { .. } | Step::NeedMore => false,
    }
}

fn bkv_starts(world: &World, peer: usize) -> usize {
    let start = |frame: &&Vec<u8>| match bkv::deframe(frame) {
        Step::Item { item, .. } => {
            matches!(bkv::decode_body(&item), Ok(bkv::Body::Start(_, start)) if start.switch == 1)
        }
        Step::Skip { .. } | Step::NeedMore => false,
    };
    world.peers[peer].received.iter().filter(start).count()
}

/// It was charged once, and that is what the order is billed by.
fn assert_charged_once(world: &mut World, peer: usize, order: OrderNo) {
    world.run_until(MINUTE, "settled", |world| world.order(order).settled);
    world.run_for(MINUTE);
    assert_eq!(bkv_starts(world, peer), 1);
    assert_eq!(world.count("SELECT count(*) FROM settlements"), 1);
    assert_eq!(world.order(order).duration_seconds, Some(60));
}

#[test]
fn a_start_of_an_earlier_binding_that_never_arrived_is_sent_after_two_looks() {
    let mut world = World::new();
    let peer = bkv(&mut world);
    // Claimed, and lost on the way with the gateway.
    world.peers[peer].deaf = true;
    world.store_latency = Some(Box::new(|| 1_000));
    let order = world.charge(peer, 1, MINUTES_3);
    world.run_for(10);
    world.peers[peer].deaf = false;
    world.store_latency = None;
    world.restart();
    world.run_until(10_000, "charging", |world| world.status(order) == OrderStatus::Charging);
    assert_eq!(bkv_starts(&world, peer), 1);
    let asked = world.peers[peer].received.iter().filter(|frame| is_question(frame)).count();
    assert!(asked > 1, "{asked}");
    world.run_until(10 * MINUTE, "settled", |world| world.order(order).settled);
}

#[test]
fn a_charge_whose_end_the_store_did_not_take_is_not_started_again() {
    let mut world = World::new();
    let (peer, order) = quick_charge(&mut world);
    // Another gateway takes over, and its store is away when the device comes with the end of the charge.
    world.restart();
    world.store_down = true;
    world.run_for(4_000);
    world.store_down = false;
    assert_charged_once(&mut world, peer, order);
}

#[test]
fn a_charge_whose_start_the_device_answered_is_not_started_again() {
    let mut world = World::new();
    let (peer, order) = quick_charge(&mut world);
    world.store_down = true;
    world.run_for(500);
    // The device comes back when it has charged.
    world.cut(peer, 2_000);
    world.run_for(6_000);
    world.store_down = false;
    assert_charged_once(&mut world, peer, order);
}

/// Everything that can go wrong for a few seconds after a start, in forty orders.
#[test]
fn no_start_comes_twice_whatever_happens_after_it() {
    let draw = |seed: u64, n: u64, below: u64| chargegate_loadtest::device::charge::draw(seed, &[n]) % below;
    for seed in 0..40 {
        let mut world = World::new();
        let (peer, order) = quick_charge(&mut world);
        for round in 0..6 {
            match draw(seed, round * 3, 5) {
                0 => world.restart(),
                1 => world.cut(peer, draw(seed, round * 3 + 1, 3_000)),
                2 | 3 => world.store_down = !world.store_down,
                _ => world.restart_after_commit(),
            }
            world.run_for(draw(seed, round * 3 + 2, 2_500));
        }
        world.store_down = false;
        let starts = bkv_starts(&world, peer);
        world.run_for(2 * MINUTE);
        assert!(bkv_starts(&world, peer) <= 1, "seed {seed}: {starts} starts, and more");
        let orphans = world.count("SELECT count(*) FROM settlements WHERE order_no IS NULL");
        let charges = world.count("SELECT count(*) FROM settlements");
        assert_eq!((charges, orphans), (1, 0), "seed {seed}: {:?}", world.order(order));
    }
}
