//! 5,000 devices of both protocols, and some that misbehave, charge at one gateway on each engine.
//!
//! The simulator's engine drives them over TCP. At the end every device must have connected and been answered, every request that
//! is owed an answer must have had one, every charge must be settled, and the gateway must stop with 0. The misbehaving peers see
//! to it that none of that holds only among the polite.

mod crash;

use std::{
    sync::{Mutex, PoisonError, atomic::AtomicBool},
    time::Duration,
};

use chargegate::shard::{Engine, EngineChoice, launch::prepare};
use chargegate_loadtest::{
    api::{ApiPlan, Ask},
    device::{Behaviour, Request, Rudeness, SECOND_US},
    fleet::Protocol,
    run::{Plan, run},
};
use crash::{Gateway, raise_descriptor_limit};

const DEVICES: u32 = 5_000;
/// One engine at a time: each run wants the whole machine.
static TURN: Mutex<()> = Mutex::new(());

fn serves_five_thousand(engine: &str) {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    raise_descriptor_limit();
    let mut gateway = Gateway::start(&[("SHARD_ENGINE", engine), ("SHARD_COUNT", "2"), ("LOG_LEVEL", "error")]);
    let plan = Plan {
        connect: vec![gateway.device],
        devices: DEVICES,
        protocol: Protocol::Mix,
        ports: 2,
        sockets: 0,
        ramp_per_s: 1_000,
        duration: Some(Duration::from_secs(18)),
        drain: Duration::from_secs(30),
        behaviour: Behaviour { heartbeat_us: 10 * SECOND_US, time_factor: 60, seed: 5, unplugged_percent: 0 },
        source_addresses: 0,
        rude: vec![
            (Rudeness::Garbage, 20),
            (Rudeness::HalfFrames, 20),
            (Rudeness::Silent, 20),
            (Rudeness::SlowReader, 20),
        ],
        threads: 1,
        api: Some(ApiPlan {
            bases: vec![format!("http://{}", gateway.http)],
            ask: Ask::Charges,
            after: Duration::ZERO,
            key: gateway.api_key(),
            secret: None,
            per_s: 60.0,
            minutes: 1..=3,
            stop_percent: 20,
            threads: 2,
            time_factor: 60,
            seed: 5,
        }),
    };
    let mut resident = 0;
    let summary = run(&plan, &AtomicBool::new(false), |second, totals| {
        resident = resident.max(gateway.resident());
        if second % 5 == 0 {
            println!("{engine} {}", totals.progress(second));
        }
    })
    .unwrap();
    println!("{engine}: at most {} MiB resident\n{summary}", resident / (1024 * 1024));

    let totals = &summary.totals;
    assert_eq!(totals.ever_connected, i64::from(DEVICES));
    assert_eq!(totals.registered, i64::from(DEVICES), "{summary}");
    assert_eq!(totals.closed_by_server, 0, "{summary}");
    assert_eq!(totals.malformed, 0, "{summary}");
    // Requests sent in the last moment of the run are on the way, not given up.
    for request in Request::ALL.into_iter().filter(|request| *request != Request::TimedEvent) {
        assert_eq!(totals.given_up[request as usize], 0, "{request:?}: {summary}");
    }
    assert!(totals.answered[Request::Heartbeat as usize] >= i64::from(DEVICES), "{summary}");
    assert!(totals.charges_ended > 100, "{summary}");
    assert_eq!(totals.unsettled(), 0, "{summary}");
    assert!(gateway.stop(), "stopped with an error:\n{}", gateway.log());
    let sql = gateway.sql();
    let count = |what: &str| sql.query_row(what, [], |row| row.get::<_, i64>(0)).unwrap();
    assert_eq!(count("SELECT count(*) FROM settlements WHERE order_no IS NOT NULL"), totals.settled);
    assert_eq!(count("SELECT count(*) FROM settlements WHERE order_no IS NULL"), 0);
    assert_eq!(count("SELECT count(*) FROM orders WHERE settled_at IS NOT NULL"), totals.settled);
}

#[test]
fn on_epoll() {
    serves_five_thousand("mio");
}

#[test]
fn on_io_uring() {
    if let Err(error) = prepare(EngineChoice::Only(Engine::Glommio), 1) {
        eprintln!("not checked on glommio: {error}");
        return;
    }
    serves_five_thousand("glommio");
}
