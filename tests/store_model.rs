//! Random operations on the store beside a model in memory: every answer and every stored order agrees, over restarts too.
//!
//! The model keeps [`Facts`] and a counter per order and asks the same pure function what an event does, so what is tested is
//! that the store keeps facts whole: guards, claims, sequences, money once.

mod services;
mod store;

use std::collections::BTreeSet;

use chargegate::{
    gateway::order::{Event, Facts, Verdict, events, transition},
    model::{OrderNo, OrderStatus},
    store::{Created, Job, Outcome},
};
use proptest::prelude::*;
use store::{Bench, T0, ap, ap_settlement};

const DEVICES: u32 = 2;
const PORTS: u16 = 2;

#[derive(Clone, Debug)]
enum Operation {
    Bind(u32),
    Claim(u32),
    Create {
        device: u32,
        port: u16,
        live: bool,
    },
    /// To one of the orders made so far.
    Happens(usize, Event),
    Settle(usize, u8),
    /// A record of an offline card; few numbers, so that replays happen.
    Card(u32, u8),
    Restart,
}

fn operation() -> impl Strategy<Value = Operation> {
    let device = || 1..=DEVICES;
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
        Event::Returned,
        Event::ReturnTimedOut,
        Event::PortMismatch,
        Event::StopAcked,
        Event::StopRefused,
        Event::StopTimedOut,
    ]);
    prop_oneof![
        2 => device().prop_map(Operation::Bind),
        1 => device().prop_map(Operation::Claim),
        6 => (device(), 1..=PORTS, any::<bool>())
            .prop_map(|(device, port, live)| Operation::Create { device, port, live }),
        14 => (any::<prop::sample::Index>(), event).prop_map(|(order, event)| Operation::Happens(order.index(64), event)),
        3 => (any::<prop::sample::Index>(), prop::sample::select(vec![1, 6, 7]))
            .prop_map(|(order, reason)| Operation::Settle(order.index(64), reason)),
        1 => (device(), 0..3u8).prop_map(|(device, number)| Operation::Card(device, number)),
        1 => Just(Operation::Restart),
    ]
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Start {
    Queued,
    Claimed,
    Gone,
}

#[derive(Clone, Debug)]
struct ModelOrder {
    no: OrderNo,
    device: u32,
    port: u16,
    facts: Facts,
    start: Start,
    sequence_no: u32,
}

#[derive(Default)]
struct Model {
    epochs: [i64; DEVICES as usize + 1],
    orders: Vec<ModelOrder>,
    cards: BTreeSet<(u32, u8)>,
}

impl Model {
    fn holder(&self, device: u32, port: u16) -> Option<&ModelOrder> {
        let on_port = |order: &&ModelOrder| order.device == device && order.port == port;
        let on = || self.orders.iter().filter(on_port);
        on().find(|order| order.facts.status.is_active()).or_else(|| on().rfind(|order| order.facts.end_pending))
    }

    /// Starts that a claim takes up: of pending orders, not claimed yet, or claimed for an older epoch.
    fn claim(&mut self, device: u32, again: bool) -> BTreeSet<OrderNo> {
        let wanted = |order: &&mut ModelOrder| {
            let start = order.start == Start::Queued || (again && order.start == Start::Claimed);
            order.device == device && order.facts.status == OrderStatus::Pending && start
        };
        let orders = self.orders.iter_mut().filter(wanted);
        orders.map(|order| (order.start = Start::Claimed, order.no).1).collect()
    }
}

impl ModelOrder {
    fn happens(&mut self, event: Event) -> Verdict {
        let facts = Facts { start_claimed: self.start == Start::Claimed, ..self.facts };
        let verdict = transition(&facts, event);
        let Verdict::Step(step) = verdict else { return verdict };
        self.sequence_no += events(facts.status, &step, facts.charged).count() as u32;
        let lost = matches!(step.reason, Some("device_offline" | "port_state_mismatch"));
        self.facts = Facts {
            status: step.to,
            start_claimed: false,
            charged: facts.charged || step.to == OrderStatus::Charging || step.store_totals,
            stop_acked: step.stop_acked,
            settled: facts.settled || step.store_totals,
            end_pending: step.end_pending,
            lost: facts.lost || lost,
        };
        if step.to.is_final() && self.start == Start::Queued {
            self.start = Start::Gone;
        }
        verdict
    }
}

fn starts(commands: &[chargegate::model::Command]) -> BTreeSet<OrderNo> {
    commands.iter().filter(|c| c.body.as_str() == "start").filter_map(|c| c.order_no).collect()
}

fn run(operations: Vec<Operation>) {
    let mut bench = Bench::new();
    let mut model = Model::default();
    for device in 1..=DEVICES {
        model.epochs[device as usize] = bench.bind(ap(device), T0).epoch;
    }
    for operation in operations {
        match operation {
            Operation::Bind(device) => {
                let bound = bench.bind(ap(device), T0);
                model.epochs[device as usize] += 1;
                assert_eq!(bound.epoch, model.epochs[device as usize]);
                assert_eq!(starts(&bound.commands), model.claim(device, true));
                let found: BTreeSet<OrderNo> = bound.orders.iter().map(|order| order.order_no).collect();
                let holds = |order: &&ModelOrder| order.facts.status.is_active() || order.facts.end_pending;
                let own = model.orders.iter().filter(|order| order.device == device).filter(holds);
                assert_eq!(found, own.map(|order| order.no).collect());
            }
            Operation::Claim(device) => {
                let epoch = model.epochs[device as usize];
                let Outcome::Claimed { commands, .. } = bench.run(Job::Claim { device_id: ap(device), epoch, at: T0 })
                else {
                    panic!()
                };
                assert_eq!(starts(&commands), model.claim(device, false));
            }
            Operation::Create { device, port, live } => {
                let epoch = live.then_some(model.epochs[device as usize]);
                let new = bench.new_order(ap(device), port, epoch, T0);
                let no = new.order_no;
                let Outcome::Created(created) = bench.run(Job::CreateOrder(Box::new(new))) else { panic!() };
                match (*created, model.holder(device, port)) {
                    (Created::PortBusy { holder }, Some(order)) => assert_eq!(holder, order.no),
                    (Created::Order { order, command }, None) => {
                        assert_eq!((order.order_no, command.is_some()), (no, live));
                        let facts = Facts {
                            status: OrderStatus::Pending,
                            start_claimed: false,
                            charged: false,
                            stop_acked: false,
                            settled: false,
                            end_pending: false,
                            lost: false,
                        };
                        let start = if live { Start::Claimed } else { Start::Queued };
                        model.orders.push(ModelOrder { no, device, port, facts, start, sequence_no: 1 });
                    }
                    (created, holder) => panic!("{created:?} while {holder:?} holds the port"),
                }
            }
            Operation::Happens(index, event) => {
                let count = model.orders.len().max(1);
                let Some(order) = model.orders.get_mut(index % count) else { continue };
                let from = order.facts.status;
                let outcome = bench.happens(order.no, event, Some(model.epochs[order.device as usize]), T0);
                assert_eq!((outcome.from, outcome.verdict), (from, order.happens(event)), "{event:?} {order:?}");
            }
            Operation::Settle(index, reason) => {
                let count = model.orders.len().max(1);
                let Some(order) = model.orders.get_mut(index % count) else { continue };
                let settlement = ap_settlement(ap(order.device), order.port, *order.no.as_bytes(), reason, T0);
                let settled = bench.settle(settlement);
                assert_eq!(settled.stored, !order.facts.settled);
                let end = chargegate::gateway::settlement::ap3000_end(reason).0;
                order.happens(Event::Settled(end));
            }
            Operation::Card(device, number) => {
                let mut settlement = ap_settlement(ap(device), 1, [number; 16], 1, T0);
                if let chargegate::store::SettlementKey::Ap3000 { start_mode, .. } = &mut settlement.key {
                    *start_mode = 0;
                }
                let settled = bench.settle(settlement);
                assert_eq!(settled.stored, model.cards.insert((device, number)));
            }
            Operation::Restart => bench = bench.reopen(),
        }
    }
    for order in &model.orders {
        let stored = bench.order(order.no);
        assert_eq!(stored.status, order.facts.status);
        assert_eq!(stored.sequence_no, order.sequence_no);
        assert_eq!(stored.settled_at.is_some(), order.facts.settled);
        assert_eq!(stored.device_end_pending, order.facts.end_pending);
        assert_eq!(stored.end_time.is_some(), order.facts.status.is_final());
        assert_eq!(bench.event_types(order.no).len() as u32, order.sequence_no);
    }
    let log = bench.log();
    let settled = log.iter().filter(|event| event.event_type == "order.settled").count();
    let expected = model.orders.iter().filter(|order| order.facts.settled).count() + model.cards.len();
    assert_eq!(settled, expected, "money once");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: if store::ON_POSTGRES { 8 } else { 48 }, max_shrink_iters: 200, ..ProptestConfig::default() })]

    #[test]
    fn the_store_agrees_with_a_model(operations in prop::collection::vec(operation(), 1..80)) {
        run(operations);
    }
}
