//! Durable throughput of the embedded store through its contract: every job is answered after a commit with
//! `synchronous = FULL`. Figures depend on how long the disk's sync takes.

use std::{
    sync::{Arc, mpsc},
    time::Duration,
};

use chargegate::{
    gateway::{ShardId, order::Event},
    model::{ChargeMode, ChargeSpec, Command, DeviceId, Order, OrderNo, OrderNumbers, Protocol, ServerId},
    store::{
        Bind, Job, NewOrder, Notify, OrderJob, OrderKey, Outcome, Queued, Reply, Settlement, SettlementEnd,
        SettlementKey, Store,
        sqlite::{Options, SqliteStore},
    },
};
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};

const AT: i64 = 1_800_000_000_000;
const CHARGES: usize = 8192;
const PORTS: u16 = 10;
/// Jobs under way at once, as from many devices and API clients.
const UNDER_WAY: usize = 1024;
/// API clients, each with one request under way.
const CLIENTS: usize = 64;

struct Nobody;

impl Notify for Nobody {
    fn shard(&self, _: ShardId, _: Outcome) {}
    fn order_changed(&self, _: &Order, _: &[Command], _: &[i64], _: Option<&ServerId>) {}
    fn commands_queued(&self, _: &Queued) {}
    fn events_committed(&self, _: i64) {}
}

fn device(n: usize) -> DeviceId {
    format!("{n:08x}").parse().expect("8 hex digits")
}

/// Submits all jobs, at most `under_way` unanswered, and waits for the last answer.
fn run(store: &SqliteStore, jobs: Vec<Job>, under_way: usize) {
    let (answer, answers) = mpsc::sync_channel(under_way);
    let mut open = 0;
    for job in jobs {
        if open == under_way {
            check(&answers.recv().expect("an answer"));
            open -= 1;
        }
        let answer = answer.clone();
        let call = Box::new(move |outcome| answer.send(outcome).expect("the bench listens"));
        store.submit(job, Reply::Call(call)).expect("the queue has room");
        open += 1;
    }
    (0..open).for_each(|_| check(&answers.recv().expect("an answer")));
}

fn check(outcome: &Outcome) {
    assert!(!matches!(outcome, Outcome::Failed { .. }), "{outcome:?}");
}

struct Bench {
    store: SqliteStore,
    numbers: OrderNumbers,
    _dir: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let options = Options { clock: || AT, ..Options::new(dir.path().join("bench.db")) };
        let store = SqliteStore::open(options, Arc::new(Nobody)).expect("a store");
        let bind = |n| {
            let protocol = Protocol::Ap3000;
            Job::Bind(Bind {
                device_id: device(n),
                protocol,
                printed_no: None,
                known_only: false,
                generation: 1,
                at: AT,
            })
        };
        run(&store, (0..CHARGES.div_ceil(usize::from(PORTS))).map(bind).collect(), UNDER_WAY);
        Self { store, numbers: OrderNumbers::new(*b"THD", 1), _dir: dir }
    }

    /// One order for each port of each device.
    fn creations(&self) -> Vec<(OrderNo, Job)> {
        let creation = |n: usize| {
            let new = NewOrder {
                order_no: self.numbers.next(AT),
                device_id: device(n / usize::from(PORTS)),
                port_no: 1 + (n % usize::from(PORTS)) as u16,
                spec: ChargeSpec {
                    mode: ChargeMode::Time { minutes: 60 },
                    paid_cent: Some(100),
                    stop_when_full: false,
                },
                epoch: Some(1),
                at: AT,
                deadline: AT + 1,
                request_id: "a request".to_owned(),
                card_no: None,
                idempotency: None,
            };
            (new.order_no, Job::CreateOrder(Box::new(new)))
        };
        (0..CHARGES).map(creation).collect()
    }

    fn settlements(orders: &[OrderNo]) -> Vec<Job> {
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

    fn evidence(orders: &[OrderNo]) -> Vec<Job> {
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
                idempotency: None,
            }))
        };
        orders.iter().map(evidence).collect()
    }
}

fn durable(c: &mut Criterion) {
    let mut group = c.benchmark_group("durable");
    group.throughput(Throughput::Elements(CHARGES as u64)).sample_size(10).measurement_time(Duration::from_secs(10));
    let with_creations = || {
        let bench = Bench::new();
        let (orders, jobs): (Vec<_>, Vec<_>) = bench.creations().into_iter().unzip();
        (bench, orders, jobs)
    };
    let charging = || {
        let (bench, orders, jobs) = with_creations();
        run(&bench.store, jobs, UNDER_WAY);
        run(&bench.store, Bench::evidence(&orders), UNDER_WAY);
        let jobs = Bench::settlements(&orders);
        (bench, jobs)
    };
    // The store is returned, so that closing it is not measured.
    group.bench_function("settlements", |b| {
        b.iter_batched(
            charging,
            |(bench, jobs)| {
                run(&bench.store, jobs, UNDER_WAY);
                bench
            },
            BatchSize::PerIteration,
        );
    });
    group.bench_function("creations, 64 clients", |b| {
        b.iter_batched(
            with_creations,
            |(bench, _, jobs)| {
                run(&bench.store, jobs, CLIENTS);
                bench
            },
            BatchSize::PerIteration,
        );
    });
    group.finish();
}

criterion_group!(benches, durable);
criterion_main!(benches);
