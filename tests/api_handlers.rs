//! What third parties see of devices and orders, over a socket.
//!
//! Guard, server, handlers and the embedded store are the real ones; no device is connected. The live entries of the directory, which
//! a shard would write, are set here. Every test waits for answers only.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use chargegate::api::auth::Authenticator;
use chargegate::api::guard::{self, GuardConfig, GuardHandle};
use chargegate::api::handlers::Api;
use chargegate::api::overload::{Backlog, Limits};
use chargegate::api::server::{Server, ServerConfig};
use chargegate::config::{self, ApiKey, Scope, Scopes};
use chargegate::gateway::ShardId;
use chargegate::gateway::directory::{Directory, Entry, PortCell, PortState};
use chargegate::gateway::order::Event;
use chargegate::model::{Command, DeviceId, Order, OrderNo, OrderNumbers, PortStatus, Protocol};
use chargegate::store::sqlite::{Options, SqliteStore};
use chargegate::store::{
    Bind, Idempotency, Job, Notify, OrderJob, OrderKey, Outcome, Reader, Reply, Store, StoreError,
};
use chargegate::telemetry::health::{Component, ComponentState};
use chargegate::telemetry::{Health, Metrics};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// Nothing in a test takes this long; it only turns a hang into a failure.
const PATIENCE: Duration = Duration::from_secs(60);
const THIRD: &str = "/api/v1/third";

#[expect(clippy::disallowed_methods, reason = "the clock enters here")]
fn now() -> (Instant, i64) {
    let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    (Instant::now(), i64::try_from(unix.as_millis()).unwrap())
}

struct Deaf;

impl Notify for Deaf {
    fn shard(&self, _: ShardId, _: Outcome) {}
    fn order_changed(&self, _: &Order, _: &[Command], _: &[i64]) {}
    fn commands_queued(&self, _: DeviceId) {}
    fn events_committed(&self, _: i64) {}
}

/// A gateway without device connections.
struct Rig {
    // Declared in the order of stopping.
    guard: GuardHandle,
    _server: Server,
    api: Arc<Api>,
    store: Arc<SqliteStore>,
    /// What the shards say of their lanes.
    waiting: Arc<AtomicU64>,
    agent: ureq::Agent,
    dir: tempfile::TempDir,
}

struct Answer {
    status: u16,
    headers: BTreeMap<String, String>,
    text: String,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error} in {}", self.text))
    }

    /// `data` of an answer with this status, after checking its envelope.
    #[track_caller]
    fn data(&self, status: u16) -> Value {
        assert_eq!(self.status, status, "{}", self.text);
        let json = self.json();
        assert_eq!((&json["code"], &json["message"]), (&json!(0), &json!("success")));
        assert!(json["request_id"].is_string() && json["timestamp"].is_string());
        json["data"].clone()
    }

    /// Message of an error answer, after checking code and envelope.
    #[track_caller]
    fn error(&self, status: u16, code: &str) -> String {
        let json = self.json();
        assert_eq!((self.status, json["error"].as_str()), (status, Some(code)), "{}", self.text);
        assert_eq!(json["code"], status);
        assert!(json["request_id"].is_string() && json["timestamp"].is_string());
        json["message"].as_str().unwrap().to_owned()
    }
}

fn key(name: &str, scopes: impl IntoIterator<Item = Scope>) -> ApiKey {
    ApiKey {
        name: name.to_owned(),
        key_sha256: Sha256::digest(format!("key-{name}")).into(),
        scopes: scopes.into_iter().collect(),
        require_hmac: false,
        hmac_secret: None,
        ip_allow: Vec::new(),
        rate_per_s: 0,
    }
}

impl Rig {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(Options::new(dir.path().join("chargegate.db")), Arc::new(Deaf)).unwrap();
        let store = Arc::new(store);
        let waiting = Arc::new(AtomicU64::new(0));
        let lanes = Arc::clone(&waiting);
        let metrics = Metrics::new(1);
        let elsewhere = vec!["203.0.113.0/24".parse().unwrap()];
        let keys = vec![
            ApiKey { scopes: Scopes::ALL, ..key("all", []) },
            key("reader", [Scope::Read]),
            ApiKey { ip_allow: elsewhere, ..key("remote", [Scope::Read]) },
        ];
        let api = Arc::new(Api {
            directory: Arc::new(Directory::default()),
            store: Arc::clone(&store) as Arc<dyn Store>,
            numbers: Arc::new(OrderNumbers::new(*b"THD", 1)),
            backlog: Backlog::new(
                Limits::from(&config::Config::default().queue),
                move || lanes.load(Ordering::Relaxed),
                || 0,
            ),
            in_progress: Arc::default(),
            metrics,
            health: Arc::new(Health::new(1)),
            auth: Authenticator::new(keys, Duration::from_secs(300)),
            instance: "gateway-1".to_owned(),
            cards: Arc::default(),
            store_timeout: PATIENCE,
            firmware_dir: std::path::PathBuf::from("firmware"),
            start: now().0,
        });
        let mut config = GuardConfig::new((Ipv4Addr::LOCALHOST, 0).into());
        config.upstream_connections = 2;
        config.upstream_timeout = PATIENCE;
        let server =
            ServerConfig { socket_dir: dir.path().join("run"), workers: 2, body_bytes_max: config.body_bytes_max };
        let server = Server::start(&server, Arc::clone(&api).handler()).unwrap();
        let guard = guard::start(config, server.gate(), Arc::clone(&api).local_routes()).unwrap();
        let agent = ureq::Agent::config_builder()
            .timeout_global(Some(PATIENCE))
            .http_status_as_error(false)
            .allow_non_standard_methods(true)
            .proxy(None)
            .build()
            .new_agent();
        Self { guard, _server: server, api, store, waiting, agent, dir }
    }

    fn addr(&self) -> SocketAddr {
        self.guard.local_addr()
    }

    fn send(&self, method: &str, target: &str, api_key: Option<&str>, body: Option<&str>) -> Answer {
        let mut request = ureq::http::Request::builder().method(method).uri(format!("http://{}{target}", self.addr()));
        if let Some(api_key) = api_key {
            request = request.header("X-Api-Key", api_key);
        }
        self.run_request(request, method, body)
    }

    /// Posts with an idempotency key.
    fn send_once(&self, target: &str, key: &str, body: Option<&Value>) -> Answer {
        let request = ureq::http::Request::builder().method("POST").uri(format!("http://{}{target}", self.addr()));
        let request = request.header("X-Api-Key", "key-all").header("Idempotency-Key", key);
        self.run_request(request, "POST", body.map(Value::to_string).as_deref())
    }

    fn run_request(&self, request: ureq::http::request::Builder, method: &str, body: Option<&str>) -> Answer {
        let mut response = match body {
            Some(body) => {
                let request = request.header("Content-Type", "application/json").body(body.to_owned()).unwrap();
                self.agent.run(request).unwrap()
            }
            // A text, though empty, has a length; without one the client would send chunks.
            None if method == "POST" => self.agent.run(request.body(String::new()).unwrap()).unwrap(),
            None => self.agent.run(request.body(()).unwrap()).unwrap(),
        };
        let headers = response.headers().iter();
        let headers = headers.map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned())).collect();
        let text = response.body_mut().read_to_string().unwrap();
        Answer { status: response.status().as_u16(), headers, text }
    }

    fn get(&self, path: &str) -> Answer {
        self.send("GET", &format!("{THIRD}{path}"), Some("key-all"), None)
    }

    fn post(&self, path: &str, body: &Value) -> Answer {
        self.send("POST", &format!("{THIRD}{path}"), Some("key-all"), Some(&body.to_string()))
    }

    fn charge(&self, device_id: DeviceId, port_no: u16) -> Answer {
        self.post(&format!("/devices/{device_id}/charge"), &minutes(port_no))
    }

    fn charged(&self, device_id: DeviceId, port_no: u16) -> OrderNo {
        let data = self.charge(device_id, port_no).data(202);
        OrderNo::parse(data["order_no"].as_str().unwrap()).unwrap()
    }

    fn run(&self, job: Job) -> Outcome {
        let (reply, answer) = mpsc::channel();
        let call = Box::new(move |outcome| drop(reply.send(outcome)));
        self.store.submit(job, Reply::Call(call)).expect("the queue has room");
        answer.recv_timeout(PATIENCE).expect("the store answers")
    }

    fn read<T: Send + 'static>(
        &self,
        query: impl FnOnce(&mut dyn Reader) -> Result<T, StoreError> + Send + 'static,
    ) -> T {
        let (reply, answer) = mpsc::channel();
        let call =
            Box::new(move |reader: Result<&mut dyn Reader, StoreError>| drop(reply.send(reader.and_then(query))));
        assert!(self.store.read(call).is_ok(), "the queue has room");
        answer.recv_timeout(PATIENCE).expect("the reader answers").unwrap()
    }

    /// Makes a device known to the store, as a bind does; returns its epoch.
    fn record(&self, device_id: DeviceId, protocol: Protocol, printed_no: Option<u32>) -> i64 {
        match self.run(Job::Bind(Bind {
            device_id,
            protocol,
            printed_no,
            known_only: false,
            generation: 1,
            at: now().1,
        })) {
            Outcome::Bound(bound) => bound.epoch,
            other => panic!("{other:?}"),
        }
    }

    /// A connected device that was just seen, with ports in these states from port 1.
    fn connect(&self, device_id: DeviceId, protocol: Protocol, ports: &[PortStatus]) -> Arc<Entry> {
        let epoch = self.record(device_id, protocol, None);
        let entry = self.api.directory.bind(device_id, protocol, ShardId(0), 1).unwrap().entry;
        entry.set_epoch(epoch);
        entry.set_connected_at(now().1);
        entry.seen(now().1);
        // No test is so slow that its devices fall silent.
        entry.set_timeout(3_600_000);
        let state = |(port_no, status): (u16, &PortStatus)| {
            PortCell::new(&PortState { status: *status, updated_at: 1, ..PortState::unknown(port_no, None, None) })
        };
        entry.set_ports((1..).zip(ports).map(state).collect());
        entry
    }

    /// Lets something happen to an order that a device would report.
    fn happens(&self, order_no: OrderNo, event: Event) {
        let job = OrderJob {
            order: OrderKey::No(order_no),
            event,
            device_id: None,
            epoch: None,
            business_no: None,
            reason: None,
            at: now().1,
            request_id: None,
            idempotency: None,
        };
        assert!(matches!(self.run(Job::Order(Box::new(job))), Outcome::Order(_)));
    }
}

fn ap(n: u32) -> DeviceId {
    format!("{n:08x}").parse().unwrap()
}

fn bkv(n: u32) -> DeviceId {
    format!("{n:014}").parse().unwrap()
}

fn minutes(port_no: u16) -> Value {
    json!({"port_no": port_no, "mode": "time", "duration_minutes": 60, "paid_cent": 100})
}

const IDLE: [PortStatus; 2] = [PortStatus::Idle, PortStatus::Idle];

#[test]
fn a_charge_is_committed_before_it_is_accepted() {
    let rig = Rig::new();
    rig.connect(ap(1), Protocol::Ap3000, &IDLE);
    let answer = rig.charge(ap(1), 2);
    let data = answer.data(202);
    assert_eq!((&data["status"], &data["status_text"]), (&json!(0), &json!("pending")));
    let order_no = OrderNo::parse(data["order_no"].as_str().unwrap()).unwrap();
    let order = rig.read(move |reader| reader.order(order_no)).expect("the order is stored");
    assert_eq!((order.device_id, order.port_no), (ap(1), 2));
    assert_eq!(order.request_id.as_deref(), answer.json()["request_id"].as_str());
    let events = rig.read(move |reader| reader.order_events(order_no));
    assert_eq!(events.iter().map(|event| event.event_type.as_str()).collect::<Vec<_>>(), ["order.created"]);
    let database = rusqlite::Connection::open(rig.dir.path().join("chargegate.db")).unwrap();
    let command: (String, String) = database
        .query_row("SELECT kind, state FROM outbound_queue WHERE order_no = ?1", [order_no.as_str()], |row| {
            Ok((row.get(0)?, row.get(1)?))
        })
        .unwrap();
    assert_eq!(command, ("start".to_owned(), "claimed".to_owned()));

    let shown = rig.get(&format!("/orders/{order_no}")).data(200);
    assert_eq!((&shown["mode"], &shown["paid_cent"], &shown["end_time"]), (&json!("time"), &json!(100), &Value::Null));
    let created_at = shown["created_at"].as_str().unwrap();
    assert!(created_at.len() == 24 && created_at.ends_with('Z'), "{created_at}");
}

#[test]
fn each_mode_is_taken_by_its_protocol() {
    let rig = Rig::new();
    rig.connect(ap(1), Protocol::Ap3000, &[PortStatus::Idle; 4]);
    rig.connect(bkv(2), Protocol::Bkv, &[PortStatus::Idle; 4]);
    let tiers = json!([{"power_dw": 2000, "price_cent": 100, "minutes": 60}]);
    let periods = json!([{"end_hour": 23, "end_minute": 59, "electricity_cent": 50, "service_cent": 20}]);
    for (device_id, charge) in [
        (ap(1), json!({"port_no": 1, "mode": "full"})),
        (ap(1), json!({"port_no": 2, "mode": "energy", "energy_wh": 10, "stop_when_full": true})),
        (ap(1), json!({"port_no": 3, "mode": "time", "duration_minutes": 1092, "card_no": null})),
        (bkv(2), json!({"port_no": 1, "mode": "power", "tiers": tiers, "paid_cent": 100})),
        (bkv(2), json!({"port_no": 2, "mode": "service_fee", "fee_periods": periods, "paid_cent": 100})),
        (bkv(2), json!({"port_no": 3, "mode": "energy", "energy_wh": 65_535})),
    ] {
        rig.post(&format!("/devices/{device_id}/charge"), &charge).data(202);
    }
    let mut in_body = minutes(4);
    in_body["device_id"] = json!(bkv(2));
    rig.post("/order/create", &in_body).data(202);
    for (device_id, charge, named) in [
        (ap(1), json!({"port_no": 4, "mode": "power", "tiers": tiers}), "mode power"),
        (bkv(2), json!({"port_no": 4, "mode": "full"}), "mode full"),
        (bkv(2), json!({"port_no": 4, "mode": "energy", "energy_wh": 9, "stop_when_full": true}), "stop_when_full"),
    ] {
        let message = rig.post(&format!("/devices/{device_id}/charge"), &charge).error(400, "NOT_SUPPORTED");
        assert!(message.contains(named), "{message}");
    }
}

#[test]
fn of_two_charges_on_a_port_one_wins() {
    let rig = Rig::new();
    rig.connect(ap(1), Protocol::Ap3000, &IDLE);
    for port_no in 1..=2 {
        let answers: Vec<Answer> = std::thread::scope(|scope| {
            let calls = [(); 8].map(|()| scope.spawn(|| rig.charge(ap(1), port_no)));
            calls.into_iter().map(|call| call.join().unwrap()).collect()
        });
        let won: Vec<&Answer> = answers.iter().filter(|answer| answer.status == 202).collect();
        assert_eq!(won.len(), 1);
        let winner = &won[0].json()["data"]["order_no"];
        for lost in answers.iter().filter(|answer| answer.status != 202) {
            let message = lost.error(409, "PORT_BUSY");
            assert_eq!(&lost.json()["data"]["order_no"], winner);
            assert!(message.contains(winner.as_str().unwrap()), "{message}");
        }
    }
    assert_eq!(rig.get("/orders").data(200)["total"], 2);
    assert_eq!(rig.api.backlog.unwritten(), 0, "no call holds a place after its answer");
}

#[test]
fn a_request_of_one_idempotency_key_has_its_effect_once() {
    let rig = Rig::new();
    let entry = rig.connect(ap(1), Protocol::Ap3000, &IDLE);
    let charge = format!("{THIRD}/devices/{}/charge", ap(1));
    let first = rig.send_once(&charge, "pay-1", Some(&minutes(1)));
    first.data(202);
    assert!(!first.headers.contains_key("idempotency-replayed"));
    // What the first one started would refuse the second.
    let order_no = OrderNo::parse(first.json()["data"]["order_no"].as_str().unwrap()).unwrap();
    rig.happens(order_no, Event::StartAcked);
    rig.happens(order_no, Event::Evidence);
    let charging = PortState { status: PortStatus::Charging, updated_at: 1, ..PortState::unknown(1, None, None) };
    entry.set_ports([PortCell::new(&charging)].into_iter().collect());
    rig.charge(ap(1), 1).error(409, "PORT_BUSY");
    let again = rig.send_once(&charge, "pay-1", Some(&minutes(1)));
    assert_eq!((again.status, &again.text), (202, &first.text), "the very bytes");
    assert_eq!(again.headers["idempotency-replayed"], "true");
    assert_eq!(again.headers["content-type"], first.headers["content-type"]);
    let message = rig.send_once(&charge, "pay-1", Some(&minutes(2))).error(422, "IDEMPOTENCY_MISMATCH");
    assert_eq!(message, "Idempotency-Key \"pay-1\" was used with another body");

    // The key of one path says nothing of another, and a refusal leaves it free.
    let cancel = format!("{THIRD}/orders/{order_no}/cancel");
    rig.send_once(&cancel, "pay-1", None).error(409, "ORDER_STATE");
    let stop = format!("{THIRD}/orders/{order_no}/stop");
    let stopped = rig.send_once(&stop, "pay-1", None);
    assert_eq!(stopped.data(202)["status_text"], "stopping");
    rig.happens(order_no, Event::StopAcked);
    assert_eq!(rig.send_once(&stop, "pay-1", None).text, stopped.text);
    rig.send("POST", &stop, Some("key-all"), None).error(409, "ORDER_STATE");
    rig.send_once(&cancel, "pay-1", None).error(409, "ORDER_STATE");
    assert_eq!(rig.get("/orders").data(200)["total"], 1);

    for key in ["", &"k".repeat(256)] {
        rig.send_once(&stop, key, None).error(400, "INVALID_PARAMETER");
    }
    rig.send_once(&stop, &"k".repeat(255), None).error(409, "ORDER_STATE");
}

#[test]
fn a_request_whose_twin_is_under_way_waits_for_its_answer() {
    let rig = Rig::new();
    rig.connect(ap(1), Protocol::Ap3000, &IDLE);
    let charge = format!("{THIRD}/devices/{}/charge", ap(1));
    let twin =
        Idempotency { api_key: "all".into(), route: format!("POST {charge}"), key: "k".to_owned(), body_hash: [0; 32] };
    let claim = rig.api.in_progress.claim(twin).unwrap();
    let refused = rig.send_once(&charge, "k", Some(&minutes(1)));
    refused.error(409, "IDEMPOTENCY_IN_PROGRESS");
    assert_eq!(refused.headers["retry-after"], "1");
    drop(claim);
    rig.send_once(&charge, "k", Some(&minutes(1))).data(202);
    // Whoever has an answer may ask again at once.
    for _ in 0..20 {
        rig.send_once(&charge, "k", Some(&minutes(1))).data(202);
    }
    assert_eq!(rig.get("/orders").data(200)["total"], 1);
}

#[test]
fn a_stop_by_number_is_claimed_by_the_commit_that_makes_it() {
    let rig = Rig::new();
    rig.connect(ap(1), Protocol::Ap3000, &IDLE);
    let order_no = rig.charged(ap(1), 1);
    rig.happens(order_no, Event::StartAcked);
    rig.happens(order_no, Event::Evidence);
    rig.post(&format!("/orders/{order_no}/stop"), &json!({})).data(202);
    let database = rusqlite::Connection::open(rig.dir.path().join("chargegate.db")).unwrap();
    let state: String =
        database.query_row("SELECT state FROM outbound_queue WHERE kind = 'stop'", (), |row| row.get(0)).unwrap();
    assert_eq!(state, "claimed");
}

#[test]
fn devices_that_cannot_start_take_no_order() {
    let rig = Rig::new();
    let message = rig.charge(ap(1), 1).error(404, "DEVICE_NOT_FOUND");
    assert_eq!(message, "there is no device 00000001");
    rig.record(ap(2), Protocol::Ap3000, None);
    rig.charge(ap(2), 1).error(400, "DEVICE_OFFLINE");
    // The socket went down, and nothing has come since.
    rig.connect(ap(3), Protocol::Ap3000, &IDLE).set_disconnected(now().1);
    rig.charge(ap(3), 1).error(400, "DEVICE_OFFLINE");
    // Connected, but silent.
    rig.connect(ap(4), Protocol::Ap3000, &IDLE).seen(1);
    let message = rig.charge(ap(4), 1).error(400, "DEVICE_OFFLINE");
    assert_eq!(message, "device 00000004 is offline: its score is 0, a start needs 50");
    rig.connect(ap(5), Protocol::Ap3000, &IDLE).set_fallback();
    rig.charge(ap(5), 1).error(400, "DEVICE_OFFLINE");
    assert_eq!(rig.get("/orders").data(200)["total"], 0);
}

#[test]
fn ports_that_cannot_start_take_no_order() {
    let rig = Rig::new();
    let entry = rig.connect(ap(1), Protocol::Ap3000, &PortStatus::ALL);
    for (port_no, status, code) in [
        (1, 202, ""),
        (2, 409, "PORT_BUSY"),
        (3, 202, ""),
        (4, 409, "PORT_FAULT"),
        (5, 202, ""),
        (6, 202, ""),
        (7, 404, "PORT_NOT_FOUND"),
    ] {
        let answer = rig.charge(ap(1), port_no);
        assert_eq!(answer.status, status, "port {port_no}: {}", answer.text);
        assert!(answer.json()["error"].as_str().is_none_or(|found| found == code));
    }
    let holder = OrderNo::new(*b"THD", 9);
    entry.ports()[1].set_order(Some(holder));
    let answer = rig.charge(ap(1), 2);
    answer.error(409, "PORT_BUSY");
    assert_eq!(answer.json()["data"]["order_no"], json!(holder));
}

#[test]
fn a_wrong_charge_is_refused_by_name_and_value() {
    let rig = Rig::new();
    rig.connect(ap(1), Protocol::Ap3000, &IDLE);
    rig.connect(bkv(2), Protocol::Bkv, &IDLE);
    for (device_id, charge, message) in [
        (ap(1), json!({"mode": "full"}), "port_no is missing"),
        (ap(1), json!({"port_no": 0, "mode": "full"}), "port_no must be a whole number in 1..=65535, got 0"),
        (ap(1), json!({"port_no": "1", "mode": "full"}), "port_no must be a whole number in 1..=65535, got \"1\""),
        (ap(1), json!({"port_no": 1}), "mode is missing"),
        (
            ap(1),
            json!({"port_no": 1, "mode": "fast"}),
            "mode must be one of time, energy, full, power, service_fee, got \"fast\"",
        ),
        (ap(1), json!({"port_no": 1, "mode": "time"}), "duration_minutes is missing"),
        (
            ap(1),
            json!({"port_no": 1, "mode": "time", "duration_minutes": 1093}),
            "duration_minutes must be 1..=1092 for ap3000, got 1093",
        ),
        (
            ap(1),
            json!({"port_no": 1, "mode": "time", "duration_minutes": 1.5}),
            "duration_minutes must be a whole number in 1..=65535, got 1.5",
        ),
        (
            ap(1),
            json!({"port_no": 1, "mode": "energy", "energy_wh": 15}),
            "energy_wh must be a multiple of 10 for ap3000, got 15",
        ),
        (ap(1), json!({"port_no": 1, "mode": "full", "energy_wh": 100}), "energy_wh does not belong to mode full"),
        (
            ap(1),
            json!({"port_no": 1, "mode": "full", "stop_when_full": 1}),
            "stop_when_full must be true or false, got 1",
        ),
        (
            ap(1),
            json!({"port_no": 1, "mode": "full", "paid_cent": -1}),
            "paid_cent must be a whole number in 0..=4294967295, got -1",
        ),
        (bkv(2), json!({"port_no": 1, "mode": "power", "tiers": []}), "tiers (number) must be 1..=5 for bkv, got 0"),
        (
            bkv(2),
            json!({"port_no": 1, "mode": "power", "tiers": [{"power_dw": 1, "price_cent": 1}]}),
            "tiers[0].minutes is missing",
        ),
        (
            bkv(2),
            json!({"port_no": 1, "mode": "service_fee", "fee_periods": [{"end_hour": 24, "end_minute": 0}]}),
            "fee_periods[0].end_hour must be a whole number in 0..=23, got 24",
        ),
    ] {
        let answer = rig.post(&format!("/devices/{device_id}/charge"), &charge);
        assert_eq!(answer.error(400, "INVALID_PARAMETER"), message, "{charge}");
    }
    let unknown = rig.post(&format!("/devices/{}/charge", ap(1)), &json!({"port_no": 1, "mode": "full", "colour": 1}));
    assert!(
        unknown.error(400, "INVALID_PARAMETER").starts_with("field colour is not known, there are port_no, mode, ")
    );
    let charge = format!("{THIRD}/devices/{}/charge", ap(1));
    let broken = rig.send("POST", &charge, Some("key-all"), Some("{\"port_no\":1,"));
    let message = broken.error(400, "INVALID_PARAMETER");
    assert_eq!(message, "body is not JSON: EOF while parsing a value at line 1 column 13");
    let empty = rig.send("POST", &charge, Some("key-all"), None).error(400, "INVALID_PARAMETER");
    assert_eq!(empty, "body is empty, it must be a JSON object");
    let missing = rig.post("/order/create", &minutes(1)).error(400, "INVALID_PARAMETER");
    assert_eq!(missing, "device_id is missing");
    assert_eq!(rig.get("/orders").data(200)["total"], 0);
}

#[test]
fn a_start_is_refused_while_too_much_waits_and_a_stop_is_not() {
    let rig = Rig::new();
    let entry = rig.connect(ap(1), Protocol::Ap3000, &IDLE);
    rig.charged(ap(1), 1);
    rig.waiting.store(1_001, Ordering::Relaxed);
    let refused = rig.charge(ap(1), 2);
    refused.error(503, "QUEUE_OVERLOADED");
    assert_eq!(refused.headers["retry-after"], "1");
    rig.post(&format!("/devices/{}/stop", ap(1)), &json!({"port_no": 1})).data(202);
    rig.waiting.store(1_000, Ordering::Relaxed);
    rig.charged(ap(1), 2);
    rig.waiting.store(0, Ordering::Relaxed);
    entry.set_waiting(16);
    rig.charge(ap(1), 1).error(503, "QUEUE_OVERLOADED");
}

#[test]
fn stop_and_cancel_follow_the_order() {
    let rig = Rig::new();
    rig.connect(ap(1), Protocol::Ap3000, &IDLE);
    let stop = format!("/devices/{}/stop", ap(1));
    let on = |port_no: u16| json!({"port_no": port_no});
    let nothing = rig.post(&stop, &on(1)).error(404, "ORDER_NOT_FOUND");
    assert_eq!(nothing, "nothing runs on port 1 of 00000001");
    rig.post(&stop, &on(9)).error(404, "PORT_NOT_FOUND");
    rig.post(&format!("/devices/{}/stop", ap(7)), &on(1)).error(404, "DEVICE_NOT_FOUND");

    // The start is claimed, so a stop has to follow it; the same answer as often as it is asked.
    let first = rig.charged(ap(1), 1);
    for _ in 0..2 {
        let data = rig.post(&stop, &on(1)).data(202);
        assert_eq!(data, json!({"order_no": first, "status": 8, "status_text": "cancelling"}));
    }
    rig.happens(first, Event::StopAcked);
    rig.post(&stop, &on(1)).error(404, "ORDER_NOT_FOUND");
    for way in ["stop", "cancel"] {
        let refused = rig.send("POST", &format!("{THIRD}/orders/{first}/{way}"), Some("key-all"), None);
        let message = refused.error(409, "ORDER_STATE");
        assert!(message.starts_with(&format!("order {first} is cancelled and cannot be ")), "{message}");
        assert_eq!(refused.json()["data"]["status_text"], "cancelled");
    }

    let second = rig.charged(ap(1), 2);
    rig.happens(second, Event::StartAcked);
    rig.happens(second, Event::Evidence);
    let refused = rig.post("/order/cancel", &json!({"order_no": second})).error(409, "ORDER_STATE");
    assert_eq!(refused, format!("order {second} is charging and cannot be cancelled"));
    for body in [
        json!({"order_no": second, "device_id": ap(9)}),
        json!({"order_no": second, "device_id": ap(1), "port_no": 1}),
        json!({"order_no": OrderNo::new(*b"THD", 1)}),
    ] {
        rig.post("/order/stop", &body).error(404, "ORDER_NOT_FOUND");
    }
    for body in [
        json!({"order_no": second}),
        json!({"order_no": second, "device_id": ap(1), "port_no": 2}),
        json!({"device_id": ap(1), "port_no": 2}),
    ] {
        assert_eq!(rig.post("/order/stop", &body).data(202)["status_text"], "stopping", "{body}");
    }
    for body in [json!({}), json!({"device_id": ap(1)}), json!({"port_no": 1}), json!({"order_no": "THD"})] {
        rig.post("/order/cancel", &body).error(400, "INVALID_PARAMETER");
    }
}

#[test]
fn devices_are_shown_live_and_from_the_store() {
    let rig = Rig::new();
    rig.record(ap(1), Protocol::Ap3000, Some(42));
    let entry = rig.connect(bkv(2), Protocol::Bkv, &IDLE);
    entry.set_signal(21);
    entry.set_iccid("89860000000000000001");
    let order_no = rig.charged(bkv(2), 1);

    let live = rig.get(&format!("/devices/{}", bkv(2))).data(200);
    assert_eq!((&live["online"], &live["score"], &live["instance"]), (&json!(true), &json!(100), &json!("gateway-1")));
    assert_eq!(live["score_parts"], json!({"alive": 100, "tcp_down": 0, "ack_timeout": 0}));
    assert_eq!((&live["signal"], &live["iccid"]), (&json!(21), &json!("89860000000000000001")));
    assert_eq!(live["active_orders"][0]["order_no"], json!(order_no));
    assert_eq!(live["ports"].as_array().unwrap().len(), 2);
    assert_eq!((&live["ports"][0]["port_no"], &live["ports"][0]["order_no"]), (&json!(1), &json!(order_no)));
    let fields = [
        "device_id",
        "protocol",
        "printed_no",
        "online",
        "score",
        "score_parts",
        "last_seen_at",
        "connected_at",
        "instance",
        "signal",
        "firmware",
        "iccid",
        "name",
        "extensions",
        "imei",
        "module_version",
        "host_type",
        "fsk_frequency",
        "host",
        "ports",
        "active_orders",
    ];
    assert!(fields.iter().all(|field| live.get(field).is_some()) && live.as_object().unwrap().len() == fields.len());

    let stored = rig.get(&format!("/devices/{}", ap(1))).data(200);
    assert_eq!((&stored["online"], &stored["score"], &stored["printed_no"]), (&json!(false), &json!(0), &json!(42)));
    assert_eq!(stored["instance"], Value::Null);
    rig.get(&format!("/devices/{}", ap(9))).error(404, "DEVICE_NOT_FOUND");
    rig.get(&format!("/devices/{}/status", ap(9))).error(404, "DEVICE_NOT_FOUND");
    assert_eq!(rig.get(&format!("/devices/{}/status", ap(1))).data(200)["online"], false);

    let ids = |query: &str| -> Vec<String> {
        let data = rig.get(&format!("/devices{query}")).data(200);
        let items = data["items"].as_array().unwrap();
        assert_eq!(data["total"], items.len());
        items.iter().map(|item| item["device_id"].as_str().unwrap().to_owned()).collect()
    };
    let (stored, live) = (ap(1).to_string(), bkv(2).to_string());
    assert_eq!(ids(""), [live.as_str(), stored.as_str()]);
    for (query, id) in [
        ("?online=true", &live),
        ("?online=false", &stored),
        ("?protocol=bkv", &live),
        ("?printed_no=42&online=false", &stored),
    ] {
        assert_eq!(ids(query), std::slice::from_ref(id), "{query}");
    }
    assert!(ids("?protocol=gn").is_empty());
    for query in ["online=1", "protocol=x", "printed_no=-1", "size=201", "page=0", "colour=red"] {
        rig.get(&format!("/devices?{query}")).error(400, "INVALID_PARAMETER");
    }
}

#[test]
fn a_live_status_needs_no_store() {
    let rig = Rig::new();
    rig.connect(ap(1), Protocol::Ap3000, &IDLE);
    rig.store.close(PATIENCE);
    let path = format!("/devices/{}/status", ap(1));
    let status = rig.get(&path).data(200);
    assert_eq!((&status["online"], &status["ports"][1]["status_text"]), (&json!(true), &json!("idle")));
    let path = format!("{THIRD}{path}");
    rig.send("GET", &path, None, None).error(401, "UNAUTHORIZED");
    for answer in [rig.get("/orders"), rig.charge(ap(1), 1)] {
        answer.error(503, "NOT_READY");
        assert_eq!(answer.headers["retry-after"], "1");
    }
}

#[test]
fn orders_and_events_come_in_pages() {
    let rig = Rig::new();
    rig.connect(ap(1), Protocol::Ap3000, &[PortStatus::Idle; 5]);
    rig.connect(ap(2), Protocol::Ap3000, &IDLE);
    let mut numbers: Vec<OrderNo> = (1..=5).map(|port_no| rig.charged(ap(1), port_no)).collect();
    rig.happens(numbers[4], Event::StartAcked);
    rig.charged(ap(2), 1);
    numbers.reverse();
    let mut paged = Vec::new();
    for page in 1..=3 {
        let data = rig.get(&format!("/orders?device_id={}&page={page}&size=2", ap(1))).data(200);
        assert_eq!((&data["total"], &data["page"], &data["size"]), (&json!(5), &json!(page), &json!(2)));
        paged.extend(data["items"].as_array().unwrap().iter().map(|order| order["order_no"].clone()));
    }
    assert_eq!(json!(paged), json!(numbers), "newest first");
    for (query, total) in [
        ("", 6),
        ("?port_no=1", 2),
        ("?status=0", 5),
        ("?status=confirmed", 1),
        ("?status=completed", 0),
        ("?page=4294967295&size=200", 6),
    ] {
        assert_eq!(rig.get(&format!("/orders{query}")).data(200)["total"], total, "{query}");
    }
    for query in ["status=11", "status=x", "port_no=0", "device_id=1", "from=1"] {
        rig.get(&format!("/orders?{query}")).error(400, "INVALID_PARAMETER");
    }

    let confirmed = numbers[0];
    let events = rig.get(&format!("/orders/{confirmed}/events")).data(200);
    assert_eq!(events["total"], 2);
    assert_eq!(events["items"][1]["event_type"], "order.confirmed");
    assert_eq!(events["items"][1]["data"]["new_status"], 1);
    let second = rig.get(&format!("/orders/{confirmed}/events?page=2&size=1")).data(200);
    assert_eq!(second["items"][0]["sequence_no"], 2);
    let unknown = OrderNo::new(*b"THD", 1);
    rig.get(&format!("/orders/{unknown}")).error(404, "ORDER_NOT_FOUND");
    rig.get(&format!("/orders/{unknown}/events")).error(404, "ORDER_NOT_FOUND");

    let by_port = rig.get(&format!("/order/query?device_id={}&port_no=5", ap(1))).data(200);
    assert_eq!(by_port, rig.get(&format!("/order/query?order_no={confirmed}")).data(200));
    rig.get(&format!("/order/query?device_id={}&port_no=2", ap(2))).error(404, "ORDER_NOT_FOUND");
    rig.get(&format!("/order/query?device_id={}&port_no=2", ap(9))).error(404, "DEVICE_NOT_FOUND");
    rig.get("/order/query").error(400, "INVALID_PARAMETER");

    let all = rig.get("/events").data(200);
    let all = all["items"].as_array().unwrap();
    let (mut after, mut walked) = (0, Vec::new());
    loop {
        let data = rig.get(&format!("/events?after={after}&limit=3")).data(200);
        let items = data["items"].as_array().unwrap();
        after = data["next_after"].as_i64().unwrap();
        if items.is_empty() {
            break;
        }
        walked.extend(items.iter().cloned());
    }
    assert_eq!(&walked, all, "walking the log finds all of it");
    assert!(walked.is_sorted_by_key(|event| event["pos"].as_i64()));
    for query in ["after=-1", "after=x", "limit=0", "limit=501", "size=1"] {
        rig.get(&format!("/events?{query}")).error(400, "INVALID_PARAMETER");
    }
}

#[test]
fn paths_methods_and_query_keys_are_known() {
    let rig = Rig::new();
    rig.get("/nowhere").error(404, "NOT_FOUND");
    let wrong = rig.get(&format!("/devices/{}/charge", ap(1)));
    wrong.error(405, "METHOD_NOT_ALLOWED");
    assert_eq!(wrong.headers["allow"], "POST");
    rig.send("DELETE", &format!("{THIRD}/orders"), Some("key-all"), None).error(405, "METHOD_NOT_ALLOWED");
    let message = rig.get("/orders?colour=red").error(400, "INVALID_PARAMETER");
    assert_eq!(message, "query key \"colour\" is not known here");
    rig.get("/devices/40AACE04").error(400, "INVALID_PARAMETER");
    rig.send("POST", "/healthz", None, Some("{}")).error(405, "METHOD_NOT_ALLOWED");
    rig.send("GET", "/metrics?x=1", None, None).error(400, "INVALID_PARAMETER");
    let request = ureq::http::Request::post(format!("http://{}{THIRD}/order/stop", rig.addr()))
        .header("X-Api-Key", "key-all")
        .header("Content-Type", "text/plain")
        .body("{}".to_owned());
    assert_eq!(rig.agent.run(request.unwrap()).unwrap().status(), 415);
}

#[test]
fn callers_have_keys_scopes_and_addresses() {
    let rig = Rig::new();
    let orders = format!("{THIRD}/orders");
    let stop = format!("{THIRD}/order/stop");
    rig.send("GET", &orders, None, None).error(401, "UNAUTHORIZED");
    rig.send("GET", &orders, Some("key-none"), None).error(401, "UNAUTHORIZED");
    rig.send("GET", &orders, Some("key-reader"), None).data(200);
    let message = rig.send("POST", &stop, Some("key-reader"), Some("{}")).error(403, "FORBIDDEN");
    assert_eq!(message, "key reader does not have the scope control");
    let message = rig.send("GET", &orders, Some("key-remote"), None).error(403, "FORBIDDEN");
    assert_eq!(message, "key remote may not be used from 127.0.0.1");
    rig.api.auth.reload(vec![key("reader", [Scope::Control])]);
    rig.send("GET", &orders, Some("key-reader"), None).error(403, "FORBIDDEN");
    rig.send("GET", &orders, Some("key-all"), None).error(401, "UNAUTHORIZED");
}

#[test]
fn an_oversize_body_is_refused() {
    let rig = Rig::new();
    let mut stream = TcpStream::connect(rig.addr()).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let head = format!("POST {THIRD}/order/create HTTP/1.1\r\nX-Api-Key: key-all\r\nContent-Length: 65537\r\n\r\n");
    stream.write_all(head.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 413 ") && answer.contains("\"PAYLOAD_TOO_LARGE\""), "{answer}");
}

#[test]
fn health_readiness_and_metrics_need_no_key() {
    let rig = Rig::new();
    let get = |path: &str| rig.send("GET", path, None, None);
    assert_eq!((get("/healthz").status, get("/healthz").json()["alive"].clone()), (200, json!(true)));
    let starting = get("/readyz");
    assert_eq!((starting.status, &starting.json()["devices"]["status"]), (503, &json!("starting")));
    for component in [Component::Devices, Component::Http] {
        rig.api.health.set(component, ComponentState::ok(Duration::from_millis(1)));
    }
    rig.api.health.set(Component::Redis, ComponentState::Skipped);
    rig.api.health.set_stage("ready", true);
    // A commit is what proves the database.
    rig.record(ap(1), Protocol::Ap3000, None);
    let ready = get("/readyz");
    assert_eq!(ready.status, 200, "{}", ready.text);
    let ready = ready.json();
    assert_eq!((&ready["redis"]["status"], &ready["database"]["status"]), (&json!("skipped"), &json!("ok")));
    assert!(ready["database"]["latency_ms"].is_number());
    let metrics = get("/metrics");
    assert_eq!(metrics.headers["content-type"], "text/plain; version=0.0.4; charset=utf-8");
    assert!(metrics.text.contains("\nchargegate_http_responses_total{status=\"5xx\"} 1\n"), "{}", metrics.text);
    assert!(rig.store.health().ready.load(Ordering::Relaxed));
}
