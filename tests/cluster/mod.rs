//! Several gateways over one PostgreSQL and one Redis, all of them real processes.
//!
//! Each gateway has a data directory and ports of its own, as if it had a machine of its own. The PostgreSQL and the Redis belong to
//! this cluster alone: channels of Redis are not separated by its logical databases, and a test may kill either.
//!
//! A module of the tests that have a `gateway` and `services`.

#![allow(dead_code, reason = "each test uses its part")]

use std::{
    fs,
    net::TcpListener,
    sync::atomic::{AtomicU16, Ordering::Relaxed},
};

use parking_lot::Mutex;
use postgres::{Client, NoTls, SimpleQueryMessage};
use redis::Commands as _;
use serde_json::{Value, json};

use crate::{
    gateway::{Answer, Engine, Gateway, KEY, NoStart, until},
    services::{Persistence, Postgres, PostgresOptions, Redis},
};

/// Below the range that outgoing connections use: none of them takes the port of a gateway that is down. Others that start gateways
/// at fixed ports begin elsewhere in it.
const PORTS: std::ops::Range<u16> = 11_000..31_000;

/// A row as text; `None`: NULL.
pub(crate) type Row = Vec<Option<String>>;

/// What a cluster is started with, beyond its number of gateways.
#[derive(Clone, Debug)]
pub(crate) struct Options<'a> {
    /// Whether a commit waits for the disk.
    pub(crate) fsync: bool,
    pub(crate) persistence: Persistence,
    /// Variables of all gateways.
    pub(crate) variables: &'a [(&'a str, &'a str)],
    /// Variables of some gateways.
    pub(crate) own: &'a [(usize, &'a str, &'a str)],
}

impl Default for Options<'_> {
    fn default() -> Self {
        Self { fsync: false, persistence: Persistence::None, variables: &[], own: &[] }
    }
}

/// Ends its parts in this order when dropped: gateways first.
pub(crate) struct Cluster {
    pub(crate) gateways: Vec<Gateway>,
    pub(crate) postgres: Postgres,
    pub(crate) redis: Redis,
    /// Of the gateways' database.
    pub(crate) url: String,
    sql: Mutex<Option<Client>>,
}

impl Cluster {
    /// Starts servers and gateways; each gateway is ready.
    pub(crate) fn start(gateways: usize, options: &Options<'_>) -> Self {
        let mut cluster = Self::without_gateways(options);
        for number in 0..gateways {
            let own: Vec<_> = options.own.iter().filter(|(of, ..)| *of == number).collect();
            let own = own.iter().map(|(_, name, value)| (*name, *value));
            let variables: Vec<_> = options.variables.iter().copied().chain(own).collect();
            let gateway = cluster.gateway(&variables).unwrap_or_else(|failed| panic!("no start: {failed:?}"));
            cluster.gateways.push(gateway);
        }
        for number in 0..gateways {
            cluster.is_ready(number);
        }
        cluster
    }

    /// Starts the servers and makes an empty database.
    pub(crate) fn without_gateways(options: &Options<'_>) -> Self {
        let postgres = Postgres::start(&PostgresOptions { fsync: options.fsync, ..PostgresOptions::default() });
        let redis = Redis::start(options.persistence);
        let url = postgres.database("cluster");
        Self { gateways: Vec::new(), postgres, redis, url, sql: Mutex::default() }
    }

    /// Gateways that are started from now on have an empty database.
    pub(crate) fn take_another_database(&mut self) {
        self.url = self.postgres.database("cluster");
        self.sql = Mutex::default();
    }

    /// Starts one more gateway, which the cluster does not keep.
    pub(crate) fn gateway(&self, variables: &[(&str, &str)]) -> Result<Gateway, NoStart> {
        let (devices, http, queue) = (free_address(), free_address(), self.redis.url());
        let keys = json!([{"name": "tests", "key": KEY}, {"name": "storm", "key": "key-of-the-storm"}]).to_string();
        let own = [
            ("CHARGEGATE_STORE_URL", self.url.as_str()),
            ("CHARGEGATE_QUEUE_URL", &queue),
            ("CHARGEGATE_DEVICE_LISTEN", &devices),
            ("CHARGEGATE_HTTP_LISTEN", &http),
            ("CHARGEGATE_API_KEYS", &keys),
        ];
        let all: Vec<_> = own.into_iter().chain(variables.iter().copied()).collect();
        Gateway::try_start(Engine::Mio, &all)
    }

    /// Waits until a gateway says that it is ready.
    pub(crate) fn is_ready(&self, number: usize) {
        until(&format!("gateway {number} is ready"), || (self.readyz(number).status == 200).then_some(()));
    }

    pub(crate) fn readyz(&self, number: usize) -> Answer {
        self.gateways[number].request("GET", "/readyz", None, None)
    }

    /// Waits until a gateway is not ready because of a part, and gives the reason.
    pub(crate) fn is_not_ready(&self, number: usize, part: &str) -> String {
        until(&format!("gateway {number} is not ready because of {part}"), || {
            let answer = self.readyz(number);
            let reason = answer.body[part]["error"].as_str().filter(|reason| !reason.is_empty())?.to_owned();
            (answer.status == 503 && answer.body[part]["status"] == "error").then_some(reason)
        })
    }

    /// What a gateway is called in answers, rows and keys.
    pub(crate) fn server_id(&self, number: usize) -> String {
        let path = self.gateways[number].directory().join("data/server_id");
        fs::read_to_string(path).expect("it was made at the first start").trim().to_owned()
    }

    /// All rows of a query.
    pub(crate) fn rows(&self, query: &str) -> Vec<Row> {
        let mut slot = self.sql.lock();
        let messages = loop {
            let kept = slot.take();
            let is_new = kept.is_none();
            let mut client = kept.unwrap_or_else(|| Client::connect(&self.url, NoTls).expect("it takes connections"));
            match client.simple_query(query) {
                Ok(messages) => {
                    *slot = Some(client);
                    break messages;
                }
                // A server that was restarted has ended the last connection.
                Err(error) => assert!(!is_new, "{query}: {error}"),
            }
        };
        let rows = messages.iter().filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => Some(row),
            _ => None,
        });
        rows.map(|row| (0..row.len()).map(|at| row.get(at).map(str::to_owned)).collect()).collect()
    }

    /// The one value of a query, as text; `None`: no row, or NULL.
    pub(crate) fn value(&self, query: &str) -> Option<String> {
        self.rows(query).into_iter().next()?.into_iter().next()?
    }

    /// The one number of a query; NULL is 0.
    pub(crate) fn number(&self, query: &str) -> i64 {
        self.value(query).map_or(0, |value| value.parse().expect("a number"))
    }

    /// The epoch of a device's last bind, as stored; 0: never bound.
    pub(crate) fn epoch(&self, device_id: &str) -> i64 {
        self.number(&format!("SELECT session_epoch FROM devices WHERE device_id = '{device_id}'"))
    }

    /// A device's session as mirrored; `None`: there is none.
    pub(crate) fn session(&self, device_id: &str) -> Option<Value> {
        let text: Option<String> = self.redis.client().get(format!("session:device:{device_id}")).expect("an answer");
        text.map(|text| serde_json::from_str(&text).expect("JSON"))
    }

    /// Waits until a gateway's API shows a device online on the instance `on`.
    pub(crate) fn shows(&self, number: usize, device_id: &str, on: usize) -> Value {
        let instance = self.server_id(on);
        until(&format!("gateway {number} shows {device_id} on gateway {on}"), || {
            let status = self.gateways[number].get(&format!("devices/{device_id}/status"));
            let has_ports = status.data()["ports"].as_array().is_some_and(|ports| !ports.is_empty());
            let shown = status.data()["online"] == true && status.data()["instance"] == json!(instance);
            (shown && has_ports).then(|| status.data().clone())
        })
    }
}

fn free_address() -> String {
    static NEXT: AtomicU16 = AtomicU16::new(10_000);
    let len = PORTS.end - PORTS.start;
    let first = u16::try_from(std::process::id() % u32::from(len)).expect("below the length");
    loop {
        let at = (u32::from(first) + u32::from(NEXT.fetch_add(1, Relaxed))) % u32::from(len);
        let port = PORTS.start + u16::try_from(at).expect("below the length");
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return format!("127.0.0.1:{port}");
        }
    }
}

/// Waits until a gateway's log tells of an order to the end, and checks that it tells this; events have their places in the log a
/// moment after they are committed.
#[track_caller]
pub(crate) fn assert_tells(gateway: &Gateway, order_no: &str, expected: &[&str]) {
    let last = expected.last().expect("a story has an end");
    let events = until(&format!("{last} of {order_no} is in the log"), || {
        let events = gateway.events_of(order_no);
        events.iter().any(|event| event["event_type"] == *last).then_some(events)
    });
    assert_whole_story(&events, expected);
}

/// Sequence numbers of an order's events are 1, 2, 3, … in this order, and no event is told twice.
#[track_caller]
pub(crate) fn assert_whole_story(events: &[Value], expected: &[&str]) {
    let types: Vec<_> = events.iter().filter_map(|event| event["event_type"].as_str()).collect();
    assert_eq!(types, expected);
    let numbers: Vec<_> = events.iter().filter_map(|event| event["sequence_no"].as_u64()).collect();
    assert_eq!(numbers, (1..=expected.len() as u64).collect::<Vec<_>>());
    let mut ids: Vec<_> = events.iter().filter_map(|event| event["event_id"].as_str()).collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), events.len(), "each has an id of its own");
}
