//! The exposition is Prometheus text with every part of the gateway joined to it: each family once, with HELP and TYPE, its samples
//! behind it, counters named `_total`, histograms cumulative. The rules are those of `promtool check metrics` and of the text
//! format 0.0.4.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use chargegate::{
    api::{guard::GuardCounters, server::ServerCounters},
    gateway::ShardId,
    model::{Command, Order, Priority, ServerId},
    protocol::Direction,
    store::{
        Notify, Outcome, Queued, Store,
        sqlite::{Options, SqliteStore},
    },
    telemetry::Metrics,
    webhook::{Endpoint, Pusher, Settings},
};

struct Deaf;

impl Notify for Deaf {
    fn shard(&self, _: ShardId, _: Outcome) {}
    fn order_changed(&self, _: &Order, _: &[Command], _: &[i64], _: Option<&ServerId>) {}
    fn commands_queued(&self, _: &Queued) {}
    fn events_committed(&self, _: i64) {}
}

fn rendered(metrics: &Metrics) -> String {
    let mut text = String::new();
    metrics.render(&mut text);
    text
}

#[test]
fn families_are_sound() {
    let dir = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(Options::new(dir.path().join("chargegate.db")), Arc::new(Deaf)).unwrap();
    let store = Arc::new(store);
    let endpoint = |name: &str| Endpoint {
        name: name.to_owned(),
        url: "https://receiver.example/".to_owned(),
        secrets: vec!["secret".to_owned()],
        api_key: None,
        events: vec!["*".to_owned()],
    };
    let endpoints = vec![endpoint("shop"), endpoint("archive")];
    let pusher = Pusher::start(endpoints, Arc::clone(&store) as Arc<dyn Store>, Settings::default()).unwrap();
    let pusher = Arc::new(pusher);
    let (guard, server) = (Arc::new(GuardCounters::default()), Arc::new(ServerCounters::default()));

    let metrics = Metrics::new(2);
    let shard = metrics.claim_shard(1).unwrap();
    shard.frames.ap3000(Direction::Up, 0xff);
    shard.frames.bkv(Direction::Down, 0x1000, 0x1017);
    shard.commands_waiting[Priority::High].set(3);
    shard.ack_latency.record(Duration::from_millis(3));
    metrics.order_transition(0, 1);
    metrics.join(&store);
    metrics.join(&pusher);
    metrics.join(&guard);
    metrics.join(&server);
    let text = rendered(&metrics);
    assert!(text.ends_with('\n'));

    let (mut families, mut series) = (HashSet::new(), HashSet::new());
    let mut below: HashMap<String, f64> = HashMap::new();
    let (mut family, mut kind) = ("", "");
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            let (name, help) = help.split_once(' ').unwrap();
            assert!(help.len() > 1 && families.insert(name), "{line}");
            let (typed, found) = lines.next().unwrap().strip_prefix("# TYPE ").unwrap().split_once(' ').unwrap();
            assert_eq!(typed, name);
            assert_eq!(name.ends_with("_total"), found == "counter", "{name} {found}");
            (family, kind) = (name, found);
            continue;
        }
        let (id, value) = line.rsplit_once(' ').unwrap();
        let value: f64 = value.parse().unwrap();
        assert!(value >= 0.0, "{line}");
        assert!(series.insert(id), "twice: {line}");
        let name = id.split('{').next().unwrap();
        let suffix = name.strip_prefix(family).unwrap_or_else(|| panic!("{line} under {family}"));
        let allowed: &[&str] = if kind == "histogram" { &["_bucket", "_sum", "_count"] } else { &[""] };
        assert!(allowed.contains(&suffix), "{line}");
        if suffix == "_bucket" {
            let others = id.split("le=\"").next().unwrap().to_owned();
            let before = below.insert(others, value).unwrap_or(0.0);
            assert!(before <= value, "not cumulative: {line}");
        }
    }
    for line in [
        "chargegate_outbound_queue_length{priority=\"high\"} 3",
        "chargegate_outbound_queue_length{priority=\"normal\"} 0",
        "chargegate_events_pushed_total{endpoint=\"shop\"} 0",
        "chargegate_events_failed_total{endpoint=\"archive\",reason=\"timeout\"} 0",
        "chargegate_http_refused_total{reason=\"body_timeout\"} 0",
        "chargegate_http_pending 0",
    ] {
        assert!(text.lines().any(|found| found == line), "{line} in\n{text}");
    }

    // Its value is whatever the pusher has just asked of the store.
    assert!(series.contains("chargegate_store_queue_length{queue=\"jobs\"}"), "in\n{text}");

    drop(guard);
    assert!(!rendered(&metrics).contains("chargegate_http_refused_total"), "a part that is gone is left out");
    pusher.stop(Duration::from_secs(60));
}
