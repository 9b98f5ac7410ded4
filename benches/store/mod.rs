//! What the benches of both stores submit: charges, their evidence and settlements, records without an order, named commands;
//! always through the contract.

#![allow(dead_code, reason = "each bench uses its part")]

use std::sync::mpsc;

use chargegate::{
    gateway::{ShardId, order::Event},
    model::{
        Ap3000Call, CardNo, ChargeMode, ChargeSpec, Command, CommandState, DeviceCall, DeviceId, Order, OrderNo,
        OrderNumbers, Priority, Protocol, ServerId,
    },
    store::{
        Bind, Called, CommandUpdate, Job, NewCall, NewOrder, Notify, OrderJob, OrderKey, Outcome, Queued, Reply,
        Requester, Settlement, SettlementEnd, SettlementKey, Store,
    },
};

/// The stores' clock stands still: no deadline passes.
pub(crate) const AT: i64 = 1_800_000_000_000;
/// Ports that each device has orders on.
pub(crate) const PORTS: u16 = 10;
/// Jobs under way at once, as from many devices.
pub(crate) const UNDER_WAY: usize = 1024;
/// API clients, each with one request under way.
pub(crate) const CLIENTS: usize = 64;

/// Nobody is told anything.
pub(crate) struct Nobody;

impl Notify for Nobody {
    fn shard(&self, _: ShardId, _: Outcome) {}
    fn order_changed(&self, _: &Order, _: &[Command], _: &[i64], _: Option<&ServerId>) {}
    fn commands_queued(&self, _: &Queued) {}
    fn events_committed(&self, _: i64) {}
}

pub(crate) fn device(n: usize) -> DeviceId {
    format!("{n:08x}").parse().expect("8 hex digits")
}

/// Submits all jobs, at most `under_way` unanswered, and waits for the last answer.
pub(crate) fn run(store: &dyn Store, jobs: Vec<Job>, under_way: usize) {
    let mut jobs = jobs.into_iter();
    converse(store, under_way, |_| jobs.next(), |_, outcome| check(&outcome));
}

/// Talks to the store on `under_way` lines at a time: `next` says what a line submits, `None` that it has ended; `answered` takes the
/// answer before `next` is asked again.
pub(crate) fn converse(
    store: &dyn Store,
    under_way: usize,
    mut next: impl FnMut(usize) -> Option<Job>,
    mut answered: impl FnMut(usize, Outcome),
) {
    let (answer, answers) = mpsc::sync_channel(under_way);
    let mut open = 0;
    let mut submit = |line: usize| {
        let Some(job) = next(line) else { return false };
        let answer = answer.clone();
        let call = Box::new(move |outcome| answer.send((line, outcome)).expect("the bench listens"));
        store.submit(job, Reply::Call(call)).expect("the queue has room");
        true
    };
    for line in 0..under_way {
        open += usize::from(submit(line));
    }
    while open > 0 {
        let (line, outcome) = answers.recv().expect("an answer");
        answered(line, outcome);
        open -= usize::from(!submit(line));
    }
}

pub(crate) fn check(outcome: &Outcome) {
    assert!(!matches!(outcome, Outcome::Failed { .. } | Outcome::Fenced { .. }), "{outcome:?}");
}

/// Makes `count` devices and binds each once, so that its epoch is 1.
pub(crate) fn bind(store: &dyn Store, count: usize) {
    let bind = |n| {
        let protocol = Protocol::Ap3000;
        Job::Bind(Bind { device_id: device(n), protocol, printed_no: None, known_only: false, generation: 1, at: AT })
    };
    run(store, (0..count).map(bind).collect(), UNDER_WAY);
}

/// Devices that `charges` charges need.
pub(crate) const fn devices(charges: usize) -> usize {
    charges.div_ceil(PORTS as usize)
}

/// One order for each port of each device.
pub(crate) fn creations(numbers: &OrderNumbers, charges: usize) -> Vec<(OrderNo, Job)> {
    let creation = |n: usize| {
        let new = NewOrder {
            order_no: numbers.next(AT),
            device_id: device(n / usize::from(PORTS)),
            port_no: 1 + (n % usize::from(PORTS)) as u16,
            spec: ChargeSpec { mode: ChargeMode::Time { minutes: 60 }, paid_cent: Some(100), stop_when_full: false },
            epoch: Some(1),
            at: AT,
            deadline: AT + 1,
            request_id: "a request".to_owned(),
            requester: Requester::default(),
            card_no: None,
            idempotency: None,
        };
        (new.order_no, Job::CreateOrder(Box::new(new)))
    };
    (0..charges).map(creation).collect()
}

/// Each order charges.
pub(crate) fn evidence(orders: &[OrderNo]) -> Vec<Job> {
    let evidence = |order_no: &OrderNo| {
        Job::Order(Box::new(OrderJob {
            order: OrderKey::No(*order_no),
            event: Event::Evidence,
            device_id: None,
            epoch: Some(1),
            fence: None,
            business_no: None,
            reason: None,
            at: AT,
            request_id: None,
            requester: Requester::default(),
            idempotency: None,
        }))
    };
    orders.iter().map(evidence).collect()
}

/// The record of each order, in the order of [`creations`].
pub(crate) fn settlements(orders: &[OrderNo]) -> Vec<Job> {
    let settlement = |(n, order_no): (usize, &OrderNo)| {
        let device_id = device(n / usize::from(PORTS));
        let port = (n % usize::from(PORTS)) as u8;
        let key = SettlementKey::Ap3000 {
            device_id,
            port,
            start_mode: 1,
            order_ref: *order_no.as_bytes(),
            duration_seconds: 0,
            energy_raw: 0,
        };
        Job::Settle(Box::new(Settlement {
            key,
            device_id,
            port_no: u16::from(port) + 1,
            duration_seconds: 1800,
            energy_wh: 500,
            amount_cent: None,
            end: SettlementEnd::Ap3000 { reason: 1 },
            epoch: Some(1),
            card_no: None,
            at: AT,
            raw: vec![0; 50],
        }))
    };
    orders.iter().enumerate().map(settlement).collect()
}

/// Devices that `count` records without an order come from: a record of each in turn.
pub(crate) const RECORDING: usize = 4_000;

/// Records of cards that charged without the gateway, of [`RECORDING`] devices: each makes an order that has ended.
pub(crate) fn records(count: usize) -> Vec<Job> {
    let record = |n: usize| {
        // Devices come in no order; 16 ports and 1,000 cards, as in `cluster -- settlements`.
        let (device_id, port) = (device(n * 1_637 % RECORDING), (n / RECORDING % 16) as u8);
        let card_no = CardNo::parse(&format!("a{:07x}", n * 7 % 1_000)).expect("a card's number");
        let (duration_seconds, mut order_ref) = ((n / 97 % 3_600) as u16, [0; 16]);
        order_ref[8..].copy_from_slice(&(n as u64).to_be_bytes());
        let key =
            SettlementKey::Ap3000 { device_id, port, start_mode: 0, order_ref, duration_seconds, energy_raw: 300 };
        Job::Settle(Box::new(Settlement {
            key,
            device_id,
            port_no: u16::from(port) + 1,
            duration_seconds: duration_seconds.into(),
            energy_wh: 300,
            amount_cent: None,
            end: SettlementEnd::Ap3000 { reason: 1 },
            epoch: Some(1),
            card_no: Some(card_no),
            at: AT,
            raw: vec![0; 50],
        }))
    };
    (0..count).map(record).collect()
}

/// A named command on its way: queued, claimed, written, acknowledged, each step after the commit of the one before.
#[derive(Clone, Copy)]
enum Step {
    Call,
    Claim,
    Written(i64),
    Acked(i64),
    Done,
}

/// Sends one named command to each of `count` devices, `under_way` of them at a time, and waits until all are acknowledged.
pub(crate) fn commands(store: &dyn Store, count: usize, under_way: usize) {
    // What each line does next, and to which device.
    let mut lines: Vec<(usize, Step)> = vec![(0, Step::Done); under_way];
    let mut begun = 0;
    let lines = std::cell::RefCell::new(&mut lines);
    let next = |line: usize| {
        let mut lines = lines.borrow_mut();
        let (n, step) = &mut lines[line];
        if matches!(step, Step::Done) {
            if begun == count {
                return None;
            }
            (*n, *step) = (begun, Step::Call);
            begun += 1;
        }
        Some(job_of(*n, *step))
    };
    let answered = |line: usize, outcome: Outcome| {
        check(&outcome);
        let mut lines = lines.borrow_mut();
        let step = &mut lines[line].1;
        *step = match (*step, outcome) {
            (Step::Call, Outcome::Called(Called::Queued(_))) => Step::Claim,
            (Step::Claim, Outcome::Claimed { commands, .. }) => {
                let [command] = commands.as_slice() else { panic!("one command waits, not {commands:?}") };
                Step::Written(command.id)
            }
            (Step::Written(id), Outcome::Done) => Step::Acked(id),
            (Step::Acked(_), Outcome::Done) => Step::Done,
            (_, outcome) => panic!("{outcome:?}"),
        };
    };
    converse(store, under_way, next, answered);
}

fn job_of(n: usize, step: Step) -> Job {
    let update = |id, state| {
        let result = (state == CommandState::Acked).then(|| r#"{"result":0}"#.to_owned());
        let device_id = device(n);
        Job::Command(CommandUpdate {
            device_id,
            id,
            epoch: 1,
            state,
            order_no: None,
            attempts: 1,
            reason: None,
            result,
            at: AT,
        })
    };
    match step {
        Step::Call => Job::Call(Box::new(NewCall {
            device_id: device(n),
            call: DeviceCall::Ap3000(Ap3000Call::Locate { seconds: 1 }),
            priority: Priority::Low,
            attempts_max: 1,
            waiting_max: 16,
            at: AT,
            not_after: AT + 300_000,
            request_id: "a request".to_owned(),
            idempotency: None,
        })),
        Step::Claim => Job::Claim { device_id: device(n), epoch: 1, at: AT },
        Step::Written(id) => update(id, CommandState::Written),
        Step::Acked(id) => update(id, CommandState::Acked),
        Step::Done => unreachable!("a line that is done begins anew"),
    }
}
