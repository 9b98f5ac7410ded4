//! What was acknowledged survives whatever ends or hangs.
//!
//! Real processes serve simulated devices over TCP while third parties charge, stop, cancel, command and read the log of events by
//! REST, all at once. At seeded moments processes are killed, stopped or hung, one or two at a time, and started again on the same
//! data and ports. When everything has come to rest, the store is compared with what third parties and devices were told:
//! - each order and each command answered 202 exists; a request with an idempotency key took effect once, and its answer is kept;
//! - each record that a device was told is stored is stored once, with its totals; nothing else is; the sums agree;
//! - each event that somebody was shown is where it was, unchanged, and there are no gaps before or behind it;
//! - no port ever had two orders, no device was told to start an order twice; each command that is said to be done was seen by its
//!   device; nothing is left waiting; long charges went on as if nothing were.
//!
//! | mode | processes | faults |
//! |---|---|---|
//! | `embedded` | one gateway | kill -9, SIGTERM |
//! | `clustered-1` | one gateway, PostgreSQL, Redis | the same; SIGSTOP for a while; PostgreSQL killed, stopped, hung; Redis killed, emptied, hung |
//! | `clustered-3` | three gateways, PostgreSQL, Redis | the same |
//!
//! In the environment: `SEED` is the first seed, `RUNS` how many there are, `MODE` one of the modes, else `embedded`. A seed replays its faults and
//! requests, as far as real processes do.

mod crash;
mod services;
mod storm;
mod witness;

use std::{
    collections::BTreeMap,
    env,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread,
};

use chargegate::model::OrderNo;
use chargegate_loadtest::engine::Clock;
use crash::Gateway;
use serde_json::{Value, json};
use services::{Persistence, Postgres, PostgresOptions, Redis};
use storm::{
    Client, KEY, MS, Party, SetOnDrop, Told, answers_are_kept, device, drive, pause,
    verdict::{check, what_is_open},
};
use witness::{Draws, Shared, books::Books};

const ROUNDS: u32 = 4;
/// Of a run that is there to be short.
const ROUNDS_SHORT: u32 = 2;
const DEVICES: u32 = 24;
const PARTIES: u64 = 3;
const SEED: u64 = 3;
/// Its first two rounds end two gateways, PostgreSQL and Redis, which comes back empty.
const SEED_SHORT: u64 = 78;
/// Everything has come to rest after this time, or never will.
const REST_US: u64 = 120_000 * MS;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Embedded,
    Clustered { gateways: usize },
}

impl Mode {
    fn of(name: &str) -> Self {
        match name {
            "embedded" => Self::Embedded,
            "clustered-1" => Self::Clustered { gateways: 1 },
            "clustered-3" => Self::Clustered { gateways: 3 },
            _ => panic!("MODE is embedded, clustered-1 or clustered-3, not {name}"),
        }
    }

    const fn gateways(self) -> usize {
        match self {
            Self::Embedded => 1,
            Self::Clustered { gateways } => gateways,
        }
    }
}

/// What happens to a process; a gateway by its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    GatewayKilled(usize),
    GatewayStopped(usize),
    GatewayHangs(usize),
    PostgresKilled,
    PostgresStopped,
    PostgresHangs,
    RedisKilled,
    RedisLost,
    RedisEmptied,
    RedisHangs,
}

impl Fault {
    fn draw(mode: Mode, draws: &mut Draws) -> Self {
        let gateway = usize::try_from(draws.below(mode.gateways() as u64)).unwrap();
        let kind = draws.below(100);
        if mode == Mode::Embedded {
            return if kind < 80 { Self::GatewayKilled(gateway) } else { Self::GatewayStopped(gateway) };
        }
        match kind {
            0..35 => Self::GatewayKilled(gateway),
            35..40 => Self::GatewayStopped(gateway),
            40..50 => Self::GatewayHangs(gateway),
            50..65 => Self::PostgresKilled,
            65..70 => Self::PostgresStopped,
            70..75 => Self::PostgresHangs,
            75..82 => Self::RedisKilled,
            82..90 => Self::RedisLost,
            90..95 => Self::RedisEmptied,
            _ => Self::RedisHangs,
        }
    }

    /// Which process: two faults of one process are not had at once.
    const fn process(self) -> usize {
        match self {
            Self::GatewayKilled(number) | Self::GatewayStopped(number) | Self::GatewayHangs(number) => number,
            Self::PostgresKilled | Self::PostgresStopped | Self::PostgresHangs => 100,
            Self::RedisKilled | Self::RedisLost | Self::RedisEmptied | Self::RedisHangs => 101,
        }
    }
}

/// The processes.
struct World {
    gateways: Vec<Gateway>,
    /// The database's URL.
    store: Option<(Postgres, String)>,
    queue: Option<Redis>,
}

impl World {
    fn start(mode: Mode) -> Self {
        let keys = json!([{"name": "storm", "key": KEY}]).to_string();
        let mut settings = vec![("SHARD_COUNT", "2"), ("LOG_LEVEL", "error"), ("API_KEYS", keys.as_str())];
        let clustered = matches!(mode, Mode::Clustered { .. });
        let postgres = clustered.then(|| Postgres::start(&PostgresOptions::default()));
        let store = postgres.map(|postgres| {
            let url = postgres.database("storm");
            (postgres, url)
        });
        let queue = clustered.then(|| Redis::start(Persistence::EverySecond));
        let queue_url = queue.as_ref().map(Redis::url).unwrap_or_default();
        if let Some((_, url)) = &store {
            settings.extend([("STORE_URL", url.as_str()), ("QUEUE_URL", &queue_url)]);
        }
        let gateways = (0..mode.gateways()).map(|_| Gateway::start(&settings)).collect();
        Self { gateways, store, queue }
    }

    fn postgres(&mut self) -> &mut Postgres {
        &mut self.store.as_mut().expect("only a clustered world has these faults").0
    }

    fn redis(&mut self) -> &mut Redis {
        self.queue.as_mut().expect("only a clustered world has these faults")
    }

    fn strike(&mut self, fault: Fault) {
        match fault {
            Fault::GatewayKilled(number) => self.gateways[number].kill(),
            Fault::GatewayStopped(number) => {
                let gateway = &mut self.gateways[number];
                assert!(gateway.stop(), "stopped with an error:\n{}", gateway.log());
            }
            Fault::GatewayHangs(number) => self.gateways[number].signal(libc::SIGSTOP),
            Fault::PostgresKilled => self.postgres().kill9(),
            Fault::PostgresStopped => self.postgres().stop_fast(),
            Fault::PostgresHangs => self.postgres().pause(),
            Fault::RedisKilled | Fault::RedisLost => self.redis().kill9(),
            Fault::RedisEmptied => self.redis().flush(),
            Fault::RedisHangs => self.redis().pause(),
        }
    }

    fn repair(&mut self, fault: Fault) {
        match fault {
            Fault::GatewayKilled(number) | Fault::GatewayStopped(number) => self.gateways[number].start_again(),
            Fault::GatewayHangs(number) => self.gateways[number].signal(libc::SIGCONT),
            Fault::PostgresKilled | Fault::PostgresStopped => self.postgres().restart(),
            Fault::PostgresHangs => self.postgres().resume(),
            Fault::RedisKilled => self.redis().restart(),
            Fault::RedisLost => self.redis().restart_empty(),
            Fault::RedisEmptied => {}
            Fault::RedisHangs => self.redis().resume(),
        }
    }

    fn all_gateways_run(&mut self) {
        for gateway in &mut self.gateways {
            assert!(gateway.runs(), "a gateway ended by itself:\n{}", gateway.log());
        }
    }

    fn books(&self) -> Books<'static> {
        match &self.store {
            None => Books::File(self.gateways[0].sql()),
            Some((_, url)) => Books::postgres(url),
        }
    }
}

#[test]
fn what_was_acknowledged_survives() {
    let number = |name: &str, default| env::var(name).map_or(default, |value| value.parse().expect("a number"));
    let (first, runs) = (number("SEED", SEED), number("RUNS", 1));
    let modes = env::var("MODE").map_or_else(|_| vec![Mode::Embedded], |name| vec![Mode::of(&name)]);
    let mut failed = Vec::new();
    for seed in first..first + runs {
        for &mode in &modes {
            println!("{mode:?}, seed {seed}");
            // What one seed finds must not keep the others from being tried.
            if catch_unwind(AssertUnwindSafe(|| storm(mode, seed, ROUNDS))).is_err() {
                println!("{mode:?}, seed {seed}: FAILED");
                failed.push((mode, seed));
            }
        }
    }
    assert!(failed.is_empty(), "failed: {failed:?}");
}

/// A short run; long ones are those of the test above with a mode.
#[test]
fn what_a_cluster_acknowledged_survives() {
    storm(Mode::Clustered { gateways: 3 }, SEED_SHORT, ROUNDS_SHORT);
}

fn storm(mode: Mode, seed: u64, rounds: u32) {
    let clock = Clock::start();
    let mut world = World::start(mode);
    let devices_at: Vec<_> = world.gateways.iter().map(|gateway| gateway.device).collect();
    let client = Client::new(&world.gateways.iter().map(|gateway| gateway.http).collect::<Vec<_>>());
    let (no_devices, no_parties) = (AtomicBool::new(false), AtomicBool::new(false));
    let told = Mutex::<Told>::default();
    let hasty: Vec<_> = (0..DEVICES).map(|index| device(index, true)).collect();
    let steady: Vec<_> = (DEVICES..DEVICES + 2).map(|index| device(index, false)).collect();
    let [ids, steady_ids] = [&hasty, &steady].map(|all| all.iter().map(|(id, ..)| id.clone()).collect::<Vec<_>>());
    let seen: BTreeMap<String, Shared> =
        hasty.iter().chain(&steady).map(|(id, _, seen)| (id.clone(), seen.clone())).collect();
    thread::scope(|scope| {
        for (number, (_, mut device, _)) in hasty.into_iter().chain(steady).enumerate() {
            let (devices_at, no_devices) = (&devices_at, &no_devices);
            scope.spawn(move || drive(device.as_mut(), clock, devices_at, number, &|| no_devices.load(Relaxed)));
        }
        let _ends = (SetOnDrop(&no_devices), SetOnDrop(&no_parties));
        let long: Vec<_> = steady_ids.iter().map(|id| charge_when_online(&client, id, clock)).collect();
        for number in 0..PARTIES {
            let draws = Draws::new(seed.wrapping_add(number << 32));
            let client = client.clone();
            let party = Party { number, client, draws, devices: &ids, told: &told, stop: &no_parties };
            scope.spawn(move || party.run());
        }
        let mut draws = Draws::new(seed);
        for round in 0..rounds {
            pause(draws.within(1_500, 5_000));
            let mut faults = vec![Fault::draw(mode, &mut draws)];
            if draws.percent(25) {
                let second = Fault::draw(mode, &mut draws);
                faults.extend((second.process() != faults[0].process()).then_some(second));
            }
            println!("round {round}: {faults:?} with {} orders", told.lock().unwrap().orders.len());
            faults.iter().for_each(|fault| world.strike(*fault));
            let down = if draws.percent(30) { 0 } else { draws.within(10, 4_000) };
            pause(down);
            // What a gateway depends on comes back before or after it; a supervisor starts it until it stays.
            faults.sort_by_key(|fault| std::cmp::Reverse(fault.process()));
            faults.iter().for_each(|fault| world.repair(*fault));
        }
        pause(3_000);
        world.all_gateways_run();
        no_parties.store(true, Relaxed);
        long.iter().for_each(|order_no| stop_long_charge(&client, order_no, clock));
        let books = world.books();
        let rested_by = clock.now_us() + REST_US;
        while let Some(open) = what_is_open(&books, seen.values()) {
            assert!(clock.now_us() < rested_by, "{open}");
            world.all_gateways_run();
            pause(100);
        }
        answers_are_kept(&client, &told.lock().unwrap());
        assert_long_charges_went_on(&books, &long);
    });
    for gateway in &mut world.gateways {
        assert!(gateway.stop(), "stopped with an error:\n{}", gateway.log());
    }
    check(&world.books(), &seen, &told.lock().unwrap());
}

/// Orders an hour, as soon as the device takes orders, and waits until it charges.
fn charge_when_online(client: &Client, device_id: &str, clock: Clock) -> String {
    let deadline = clock.now_us() + 30_000 * MS;
    let order_no = loop {
        if let Some(order_no) = client.charge(device_id, 1, 60) {
            break order_no;
        }
        assert!(clock.now_us() < deadline, "{device_id} does not come online");
        pause(50);
    };
    loop {
        let (_, answer) = client.get(&format!("/orders/{order_no}")).unwrap();
        if answer["data"]["status"] == 2 {
            return order_no;
        }
        assert!(clock.now_us() < deadline, "{answer}");
        pause(50);
    }
}

/// It is charging still, and is stopped as soon as a gateway can.
fn stop_long_charge(client: &Client, order_no: &str, clock: Clock) {
    let deadline = clock.now_us() + 30_000 * MS;
    let until_ready = |what: &str, ask: &dyn Fn() -> Option<(u16, Value)>| loop {
        match ask() {
            Some((status, answer)) if status != 503 => return (status, answer),
            answer => assert!(clock.now_us() < deadline, "{order_no} is not {what}: {answer:?}"),
        }
        pause(50);
    };
    let (_, order) = until_ready("shown", &|| client.get(&format!("/orders/{order_no}")));
    assert_eq!(order["data"]["status"], 2, "{order_no} is charging still: {order}");
    let (status, answer) = until_ready("stopped", &|| client.post(&format!("/orders/{order_no}/stop"), &json!({})));
    assert_eq!(status, 202, "{answer}");
}

fn assert_long_charges_went_on(books: &Books<'_>, long: &[String]) {
    let events = books.events();
    for order_no in long {
        let told: Vec<_> =
            events.iter().filter(|event| event.key == *order_no).map(|event| &event.event_type).collect();
        let before = ["order.created", "order.confirmed", "charging.started", "order.stopping"];
        assert!(told.iter().take(4).eq(&before), "{order_no}: {told:?}");
    }
}

/// An AP3000 device is given half a second between commands: the second start waits, its device goes away, the gateway is lost.
/// Whoever comes back after the start's time must not find it.
#[test]
fn a_start_that_was_not_written_does_not_fire_late() {
    let clock = Clock::start();
    let mut gateway = Gateway::start(&[
        ("SHARD_COUNT", "1"),
        ("LOG_LEVEL", "error"),
        ("API_KEYS", &json!([{"name": "storm", "key": KEY}]).to_string()),
    ]);
    let client = Client::new(&[gateway.http]);
    let address = [gateway.device];
    let (id, mut device, seen) = device(1_000, true);
    let away = Arc::new(AtomicBool::new(false));
    let (orders, ordered_us) = thread::scope(|scope| {
        let gone = SetOnDrop(&away);
        let (device, seen, away) = (&mut device, &seen, &away);
        scope.spawn(move || {
            drive(device.as_mut(), clock, &address, 0, &|| away.load(Relaxed) || seen.lock().starts > 0);
        });
        let deadline = clock.now_us() + 30_000 * MS;
        let first = loop {
            if let Some(order_no) = client.charge(&id, 1, 2) {
                break order_no;
            }
            assert!(clock.now_us() < deadline, "{id} does not come online");
            pause(20);
        };
        let second = client.charge(&id, 2, 2);
        // It goes by itself once it has the first start.
        while seen.lock().starts == 0 && clock.now_us() < deadline {
            pause(5);
        }
        drop(gone);
        (second.map(|second| [first, second]), clock.now_us())
    });
    let Some(mut orders) = orders else {
        println!("the device was gone before the second order");
        return;
    };
    // One that was accepted before the store had answered the bind is claimed after it, and the other may come first.
    if seen.lock().was_started(OrderNo::parse(&orders[1]).unwrap()) {
        orders.reverse();
    }
    let [first, second] = orders;
    gateway.kill();
    gateway.start_again();
    // A start is good for 30 s.
    while clock.now_us() < ordered_us + 31_000 * MS {
        pause(100);
    }
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let is_done = &done;
        let device = &mut device;
        let settled = scope.spawn(move || drive(device.as_mut(), clock, &address, 0, &|| is_done.load(Relaxed)));
        let ends = SetOnDrop(&done);
        let deadline = clock.now_us() + 60_000 * MS;
        let is_final = |order_no: &String| {
            let answer = client.get(&format!("/orders/{order_no}"));
            answer.is_some_and(|(_, answer)| matches!(answer["data"]["status"].as_u64(), Some(3..=7)))
        };
        while !(is_final(&first) && is_final(&second) && seen.lock().is_quiet()) {
            assert!(clock.now_us() < deadline, "the orders stay open");
            pause(50);
        }
        drop(ends);
        settled.join().unwrap();
    });
    let [first, second]: [OrderNo; 2] = [first, second].map(|order_no| OrderNo::parse(&order_no).unwrap());
    assert!(seen.lock().was_started(first));
    assert!(!seen.lock().was_started(second), "it fired late");
    let status: u8 = gateway
        .sql()
        .query_row("SELECT status FROM orders WHERE order_no = ?1", [second.as_str()], |row| row.get(0))
        .unwrap();
    assert_eq!(status, 7, "timeout");
}
