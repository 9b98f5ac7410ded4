//! Durable throughput of the embedded store through its contract: every job is answered after a commit with
//! `synchronous = FULL`. Figures depend on how long the disk's sync takes.

mod store;

use std::{sync::Arc, time::Duration};

use chargegate::{
    model::OrderNumbers,
    store::sqlite::{Options, SqliteStore},
};
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};

use store::{AT, CLIENTS, Nobody, UNDER_WAY};

const CHARGES: usize = 8192;

struct Bench {
    store: SqliteStore,
    numbers: OrderNumbers,
    _dir: tempfile::TempDir,
}

impl Bench {
    fn new(devices: usize) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let options = Options { clock: || AT, ..Options::new(dir.path().join("bench.db")) };
        let store = SqliteStore::open(options, Arc::new(Nobody)).expect("a store");
        store::bind(&store, devices);
        Self { store, numbers: OrderNumbers::new(*b"THD", 1), _dir: dir }
    }
}

fn durable(c: &mut Criterion) {
    let mut group = c.benchmark_group("durable");
    group.throughput(Throughput::Elements(CHARGES as u64)).sample_size(10).measurement_time(Duration::from_secs(10));
    let with_creations = || {
        let bench = Bench::new(store::devices(CHARGES));
        let (orders, jobs): (Vec<_>, Vec<_>) = store::creations(&bench.numbers, CHARGES).into_iter().unzip();
        (bench, orders, jobs)
    };
    let charging = || {
        let (bench, orders, jobs) = with_creations();
        store::run(&bench.store, jobs, UNDER_WAY);
        store::run(&bench.store, store::evidence(&orders), UNDER_WAY);
        let jobs = store::settlements(&orders);
        (bench, jobs)
    };
    // The store is returned, so that closing it is not measured.
    group.bench_function("settlements", |b| {
        b.iter_batched(
            charging,
            |(bench, jobs)| {
                store::run(&bench.store, jobs, UNDER_WAY);
                bench
            },
            BatchSize::PerIteration,
        );
    });
    group.bench_function("creations, 64 clients", |b| {
        b.iter_batched(
            with_creations,
            |(bench, _, jobs)| {
                store::run(&bench.store, jobs, CLIENTS);
                bench
            },
            BatchSize::PerIteration,
        );
    });
    group.bench_function("commands", |b| {
        b.iter_batched(
            || Bench::new(CHARGES),
            |bench| {
                store::commands(&bench.store, CHARGES, UNDER_WAY);
                bench
            },
            BatchSize::PerIteration,
        );
    });
    group.finish();
}

criterion_group!(benches, durable);
criterion_main!(benches);
