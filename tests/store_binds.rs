//! Binds in one batch with what else happens to their devices: each sees what the jobs before it did, whether they are committed or not.

mod services;
mod store;

use std::sync::mpsc::Receiver;

use chargegate::{
    gateway::network::Given,
    model::{CommandBody, DeviceId, OrderStatus, Protocol},
    store::{Bind, Bound, Created, Job, NetworkChange, NetworkJob, Networked, Outcome, Settings},
};
use store::{Bench, PATIENCE, T0, ap, ap_settlement, bkv};

/// Devices that do the same at the same time, over all lanes of the store.
const DEVICES: u32 = 24;

fn bind(device_id: DeviceId, at: i64) -> Job {
    let protocol = if matches!(device_id, DeviceId::Ap3000(_)) { Protocol::Ap3000 } else { Protocol::Bkv };
    Job::Bind(Bind { device_id, protocol, printed_no: None, known_only: false, generation: 1, at })
}

fn settings(device_id: DeviceId) -> Job {
    Job::Settings(Box::new(Settings {
        device_id,
        protocol: None,
        extensions: Some(true),
        name: Some("by the gate".to_owned()),
        fsk_frequency: None,
        at: T0,
        request_id: "request".to_owned(),
        idempotency: None,
    }))
}

/// Submits the jobs of all devices, each device's in their order, without waiting in between: while the first batch of a lane is written,
/// the others gather for the next one.
fn together(bench: &Bench, jobs: impl Fn(u32) -> Vec<Job>) -> Vec<Vec<Outcome>> {
    let answers: Vec<Vec<Receiver<Outcome>>> =
        (0..DEVICES).map(|n| jobs(n).into_iter().map(|job| bench.submit(job)).collect()).collect();
    let answer = |answer: Receiver<Outcome>| answer.recv_timeout(PATIENCE).expect("the store answers");
    answers.into_iter().map(|answers| answers.into_iter().map(answer).collect()).collect()
}

fn bound(outcome: &Outcome) -> &Bound {
    if let Outcome::Bound(bound) = outcome { bound } else { panic!("{outcome:?}") }
}

#[test]
fn a_bind_sees_the_orders_of_jobs_before_it() {
    let bench = Bench::new();
    (0..DEVICES).for_each(|n| assert_eq!(bench.bind(ap(n), T0).epoch, 1));
    let orders: Vec<_> = (0..DEVICES).map(|n| bench.new_order(ap(n), 1, Some(1), T0)).collect();
    let outcomes = together(&bench, |n| {
        let new = orders[n as usize].clone();
        let order_no = new.order_no;
        let settlement = ap_settlement(ap(n), 1, *order_no.as_bytes(), 1, T0 + 3);
        vec![
            Job::CreateOrder(Box::new(new)),
            bind(ap(n), T0 + 1),
            bind(ap(n), T0 + 2),
            Job::Settle(Box::new(settlement)),
            bind(ap(n), T0 + 4),
        ]
    });
    for (outcomes, new) in outcomes.iter().zip(&orders) {
        let [created, second, third, settled, fourth] = &outcomes[..] else { panic!("{outcomes:?}") };
        let Outcome::Created(created) = created else { panic!("{created:?}") };
        let Created::Order { command: Some(start), .. } = &**created else { panic!("{created:?}") };
        for (outcome, epoch) in [(second, 2), (third, 3)] {
            let bound = bound(outcome);
            assert_eq!((bound.epoch, bound.orders.len(), bound.first_seen), (epoch, 1, false));
            assert_eq!((bound.orders[0].order_no, bound.orders[0].status), (new.order_no, OrderStatus::Pending));
            let [command] = &bound.commands[..] else { panic!("{:?}", bound.commands) };
            assert!(matches!(command.body, CommandBody::Start { .. }) && command.maybe_written);
            assert_eq!((command.id, command.msg_id, command.epoch), (start.id, start.msg_id, epoch));
        }
        assert!(bound(third).msg_id_first >= bound(second).msg_id_first + Bound::MSG_IDS);
        let Outcome::Settled(settled) = settled else { panic!("{settled:?}") };
        assert!(settled.stored);
        let last = bound(fourth);
        assert_eq!((last.epoch, last.orders.len(), last.commands.len()), (4, 0, 0));
    }
    for n in 0..DEVICES {
        assert_eq!(bench.bind(ap(n), T0 + 5).epoch, 5, "what was told is what is stored");
    }
}

#[test]
fn devices_never_seen_are_registered_once() {
    let bench = Bench::new();
    let outcomes = together(&bench, |n| {
        // Every third was given settings first, which make its row.
        let mut jobs = if n % 3 == 0 { vec![settings(ap(n)), settings(bkv(n))] } else { Vec::new() };
        jobs.extend([bind(ap(n), T0), bind(bkv(n), T0), bind(ap(n), T0 + 1), bind(bkv(n), T0 + 1)]);
        jobs
    });
    for (n, outcomes) in (0..DEVICES).zip(&outcomes) {
        let (before, binds) = outcomes.split_at(outcomes.len() - 4);
        for outcome in before {
            let Outcome::Settings(settings) = outcome else { panic!("{outcome:?}") };
            assert!(settings.registered);
        }
        for (nth, outcome) in binds.iter().enumerate() {
            let bound = bound(outcome);
            let (epoch, first_seen) = if nth < 2 { (1, before.is_empty()) } else { (2, false) };
            assert_eq!(
                (bound.epoch, bound.first_seen, bound.details.extensions),
                (epoch, first_seen, !before.is_empty())
            );
        }
        for device_id in [ap(n), bkv(n)] {
            let told =
                bench.log().into_iter().filter(|event| event.device_id.as_deref() == Some(&*device_id.to_string()));
            let told: Vec<_> = told.map(|event| (event.event_type, event.sequence_no)).collect();
            assert_eq!(told, [("device.registered".to_owned(), 1)]);
        }
    }
}

#[test]
fn a_bind_sees_the_network_list_of_the_job_before_it() {
    let bench = Bench::new();
    (0..DEVICES).for_each(|n| assert!(bench.bind(bkv(n), T0).network.is_none()));
    let outcomes = together(&bench, |n| {
        let given = |socket| Given { socket, mac: [0, 0, 0, 0, 0xAA, socket], uid: None };
        let change = NetworkChange::Replace { channel: 7, sockets: vec![given(1), given(2)] };
        let job = NetworkJob { device_id: bkv(n), change, at: T0, request_id: "request".to_owned(), idempotency: None };
        vec![bind(bkv(n), T0 + 1), Job::Network(Box::new(job)), bind(bkv(n), T0 + 2)]
    });
    for outcomes in &outcomes {
        let [before, changed, after] = &outcomes[..] else { panic!("{outcomes:?}") };
        assert!(bound(before).network.is_none() && !bound(before).networked);
        let Outcome::Networked(Networked::Changed(told)) = changed else { panic!("{changed:?}") };
        let after = bound(after);
        assert_eq!(after.network.as_ref().map(|list| list.sockets.len()), Some(told.list.sockets.len()));
        assert!(after.networked);
        let ports: Vec<u16> = after.ports.iter().map(|port| port.port_no).collect();
        assert_eq!(ports, [1, 2, 3, 4]);
        assert_eq!(after.commands.len(), 1, "the list is sent: {:?}", after.commands);
    }
}
