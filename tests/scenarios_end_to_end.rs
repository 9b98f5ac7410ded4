//! A scenario against the real gateway: everything a scenario can let happen happens, and at the end every frame answered what was
//! asked, every order and record is in the API as the devices' ledgers have it, and nothing is lost.
//!
//! That each kind of disagreement is found is tested beside the comparison itself.

mod gateway;

use std::sync::Arc;

use chargegate_loadtest::{
    processes::run,
    report::json::{Report, Result},
    scenario::Scenario,
    worker::Target,
};

use gateway::{Engine, Gateway, KEY};

/// No threshold on a time: only what is lost, wrong or missing.
const SCENARIO: &str = r#"
name = "everything"
late_max = "60s"
drain = "60s"
thresholds = [
    "lost == 0", "mismatched == 0", "unsettled == 0", "never_connected == 0", "orders.wrong == 0",
    "orders.checked > 50", "api.charges > 30", "api.commands > 10", "api.stops > 0", "api.status.count > 50", "api.list.count > 5",
    "back/binds > 10", "api.failed == 0", "settled > 50",
]

[fleet]
devices = 60
ap3000_percent = 50
ports = 4
hosts = 2
sub_devices = 3
heartbeat = "2s"
time_factor = 60
threads = 2

[api]
charge_minutes = [1, 2]
stop_percent = 30

[[phase]]
name = "connect"
duration = "4s"
warm_up = true
connect = { devices = 60, per_s = 60 }

[[phase]]
name = "work"
duration = "8s"
charges_per_s = 8
commands_per_s = 3
reads_per_s = 20
lists_per_s = 2
settlements_per_s = 6
alarms_per_s = 1
rude = { garbage = 2, half_frames = 2, silent = 2, slow_readers = 1, slow_writers = 2 }

[[phase]]
name = "quiet"
duration = "8s"

[[phase]]
name = "back"
duration = "6s"
disconnect = { percent = 50, away = "1s", per_s = 100 }
"#;

fn everything(gateway: &Gateway) -> Report {
    let scenario = Scenario::parse(SCENARIO, &[]).expect("it is sound");
    let target = Target { connect: vec![gateway.devices], api: vec![gateway.http], key: KEY.to_owned(), secret: None };
    run(&scenario, &target, 1, None, &Arc::default(), |line| println!("{line}")).expect("it runs")
}

#[test]
fn every_frame_order_and_record_is_as_it_should_be() {
    let gateway = Gateway::start(Engine::Mio, &[]).expect("epoll is everywhere");
    let report = everything(&gateway);
    assert_eq!(report.result, Result::Passed, "{report}\n{:?}", report.correctness);
    assert_eq!(report.figure("quiet/api.charges"), Some(0.0), "{report}");
    // The store has just what was acknowledged.
    let stored: i64 =
        gateway.database().query_row("SELECT count(*) FROM settlements", [], |row| row.get(0)).expect("a count");
    assert_eq!(u64::try_from(stored).expect("a count"), report.correctness.orders.listed - unsettled_orders(&gateway));
}

/// Orders that have no record: refused, cancelled before they began, or given up.
fn unsettled_orders(gateway: &Gateway) -> u64 {
    let sql = "SELECT count(*) FROM orders WHERE settled_at IS NULL";
    gateway.database().query_row(sql, [], |row| row.get::<_, i64>(0)).expect("a count").unsigned_abs()
}
