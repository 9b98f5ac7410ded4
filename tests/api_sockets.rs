//! Settings of devices and network lists of gateways, as third parties see them, over a socket.
//!
//! Guard, server, handlers and the embedded store are the real ones; no device is connected.

use std::{
    net::Ipv4Addr,
    sync::{Arc, mpsc},
    time::{Duration, Instant},
};

use chargegate::{
    api::{
        auth::Authenticator,
        guard::{self, GuardConfig, GuardHandle},
        handlers::Api,
        overload::{Backlog, Limits},
        server::{Server, ServerConfig},
    },
    config::{self, ApiKey, Scope},
    gateway::{
        ShardId,
        directory::{Directory, PortCell, PortState},
    },
    model::{Command, DeviceId, HostValues, Order, OrderNumbers, Protocol},
    store::{
        Bind, CommandUpdate, Job, NetworkTold, Notify, Outcome, Reply, SettingsOutcome, Store,
        sqlite::{Options, SqliteStore},
    },
    telemetry::{Health, Metrics},
};
use parking_lot::Mutex;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// Nothing in a test takes this long; it only turns a hang into a failure.
const PATIENCE: Duration = Duration::from_secs(60);
const GATEWAY: &str = "86004459453005";
const CHARGER: &str = "40aace04";

#[expect(clippy::disallowed_methods, reason = "the clock enters here")]
fn now() -> (Instant, i64) {
    let unix = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    (Instant::now(), i64::try_from(unix.as_millis()).unwrap())
}

/// What the owners of devices are told.
#[derive(Default)]
struct Told {
    settings: Mutex<Vec<SettingsOutcome>>,
    networks: Mutex<Vec<NetworkTold>>,
}

impl Notify for Told {
    fn shard(&self, _: ShardId, _: Outcome) {}
    fn order_changed(&self, _: &Order, _: &[Command], _: &[i64]) {}
    fn commands_queued(&self, _: DeviceId) {}
    fn events_committed(&self, _: i64) {}
    fn settings_changed(&self, settings: &SettingsOutcome) {
        self.settings.lock().push(settings.clone());
    }
    fn network_changed(&self, told: &NetworkTold) {
        self.networks.lock().push(told.clone());
    }
}

struct Rig {
    // Declared in the order of stopping.
    guard: GuardHandle,
    _server: Server,
    api: Arc<Api>,
    store: Arc<SqliteStore>,
    told: Arc<Told>,
    agent: ureq::Agent,
    _dir: tempfile::TempDir,
}

impl Rig {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let told = Arc::new(Told::default());
        let notify = Arc::clone(&told) as Arc<dyn Notify>;
        let store = Arc::new(SqliteStore::open(Options::new(dir.path().join("chargegate.db")), notify).unwrap());
        let key = |name: &str, scopes: &[Scope]| ApiKey {
            name: name.to_owned(),
            key_sha256: Sha256::digest(name).into(),
            scopes: scopes.iter().copied().collect(),
            require_hmac: false,
            hmac_secret: None,
            ip_allow: Vec::new(),
            rate_per_s: 0,
        };
        let keys = vec![
            key("all", &[Scope::Read, Scope::Control, Scope::Admin]),
            key("operator", &[Scope::Read, Scope::Control]),
        ];
        let api = Arc::new(Api {
            directory: Arc::new(Directory::default()),
            store: Arc::clone(&store) as Arc<dyn Store>,
            numbers: Arc::new(OrderNumbers::new(*b"THD", 1)),
            backlog: Backlog::new(Limits::from(&config::Config::default().queue), || 0, || 0),
            in_progress: Arc::default(),
            metrics: Metrics::new(1),
            health: Arc::new(Health::new(1)),
            auth: Authenticator::new(keys, Duration::from_secs(300)),
            instance: "gateway-1".to_owned(),
            cards: Arc::default(),
            store_timeout: PATIENCE,
            firmware_dir: dir.path().join("firmware"),
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
        Self { guard, _server: server, api, store, told, agent, _dir: dir }
    }

    fn send(&self, method: &str, path: &str, key: &str, once: Option<&str>, body: Option<&Value>) -> (u16, Value) {
        let uri = format!("http://{}/api/v1/third{path}", self.guard.local_addr());
        let mut request = ureq::http::Request::builder().method(method).uri(uri).header("X-Api-Key", key);
        if let Some(once) = once {
            request = request.header("Idempotency-Key", once);
        }
        let mut response = match body {
            Some(body) => {
                let request = request.header("Content-Type", "application/json").body(body.to_string()).unwrap();
                self.agent.run(request).unwrap()
            }
            None => self.agent.run(request.body(()).unwrap()).unwrap(),
        };
        let text = response.body_mut().read_to_string().unwrap();
        (response.status().as_u16(), serde_json::from_str(&text).unwrap())
    }

    fn get(&self, path: &str) -> (u16, Value) {
        self.send("GET", path, "all", None, None)
    }

    fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        self.send("POST", path, "all", None, Some(body))
    }

    fn delete(&self, path: &str) -> (u16, Value) {
        self.send("DELETE", path, "all", None, None)
    }

    fn run(&self, job: Job) -> Outcome {
        let (reply, answer) = mpsc::channel();
        let call = Box::new(move |outcome| drop(reply.send(outcome)));
        self.store.submit(job, Reply::Call(call)).expect("the queue has room");
        answer.recv_timeout(PATIENCE).expect("the store answers")
    }

    fn bind(&self, id: &str, protocol: Protocol) -> chargegate::store::Bound {
        let bind = Bind {
            device_id: id.parse().unwrap(),
            protocol,
            printed_no: None,
            known_only: false,
            generation: 1,
            at: now().1,
        };
        match self.run(Job::Bind(bind)) {
            Outcome::Bound(bound) => *bound,
            other => panic!("{other:?}"),
        }
    }

    /// The gateway says this to the command it was sent.
    fn answers(&self, command: &Command, state: chargegate::model::CommandState) {
        for state in [chargegate::model::CommandState::Written, state] {
            let update = CommandUpdate {
                id: command.id,
                state,
                order_no: None,
                attempts: 1,
                reason: None,
                result: None,
                at: now().1,
            };
            self.run(Job::Command(update));
        }
    }
}

#[track_caller]
fn data((status, answer): (u16, Value), expected: u16) -> Value {
    assert_eq!(status, expected, "{answer}");
    assert_eq!((&answer["code"], &answer["message"]), (&json!(0), &json!("success")));
    answer["data"].clone()
}

#[track_caller]
fn refused((status, answer): (u16, Value), expected: (u16, &str)) -> String {
    assert_eq!((status, answer["error"].as_str()), (expected.0, Some(expected.1)), "{answer}");
    answer["message"].as_str().unwrap().to_owned()
}

fn path(id: &str) -> String {
    format!("/devices/{id}")
}

fn sockets(id: &str) -> String {
    format!("/devices/{id}/sockets")
}

#[test]
fn settings_register_and_change_a_device() {
    let rig = Rig::new();
    refused(rig.get(&path(GATEWAY)), (404, "DEVICE_NOT_FOUND"));
    let made = data(rig.post(&path(GATEWAY), &json!({"protocol": "gn", "name": "yard 1", "extensions": true})), 200);
    assert_eq!(
        made,
        json!({
            "device_id": GATEWAY, "protocol": "gn", "name": "yard 1", "extensions": true, "fsk_frequency": null,
            "registered": true,
        })
    );
    let shown = data(rig.get(&path(GATEWAY)), 200);
    assert_eq!(
        (&shown["protocol"], &shown["name"], &shown["extensions"]),
        (&json!("gn"), &json!("yard 1"), &json!(true))
    );
    assert_eq!((&shown["online"], &shown["host"], &shown["imei"]), (&json!(false), &Value::Null, &Value::Null));
    // Only what is given changes; an empty name is none.
    let again = data(rig.post(&path(GATEWAY), &json!({"name": ""})), 200);
    assert_eq!((&again["registered"], &again["name"], &again["protocol"]), (&json!(false), &Value::Null, &json!("gn")));
    assert_eq!(again["extensions"], true);
    let charger = data(rig.post(&path(CHARGER), &json!({"fsk_frequency": 470, "protocol": "ap3000"})), 200);
    assert_eq!((&charger["protocol"], &charger["fsk_frequency"]), (&json!("ap3000"), &json!(470)));
    let shown = data(rig.get(&path(CHARGER)), 200);
    assert!(shown["printed_no"].is_number(), "an AP3000 device's follows from its id");
    let told = rig.told.settings.lock();
    let told: Vec<_> = told.iter().map(|settings| settings.device_id.to_string()).collect();
    assert_eq!(told, [GATEWAY, GATEWAY, CHARGER]);
    // The record says what a gateway speaks, whatever its connection says.
    assert_eq!(rig.bind(GATEWAY, Protocol::Bkv).protocol, Protocol::Gn);
}

#[test]
fn settings_are_for_administrators_and_checked() {
    let rig = Rig::new();
    let body = json!({"name": "yard"});
    refused(rig.send("POST", &path(GATEWAY), "operator", None, Some(&body)), (403, "FORBIDDEN"));
    let long = "x".repeat(65);
    for (id, body, code, part) in [
        (GATEWAY, json!({"protocol": "ap3000"}), "NOT_SUPPORTED", "its id says otherwise"),
        (CHARGER, json!({"protocol": "gn"}), "NOT_SUPPORTED", "its id says otherwise"),
        (CHARGER, json!({"extensions": true}), "NOT_SUPPORTED", "extensions"),
        (GATEWAY, json!({"fsk_frequency": 433}), "NOT_SUPPORTED", "fsk_frequency"),
        (GATEWAY, json!({"protocol": "modbus"}), "INVALID_PARAMETER", "ap3000, bkv, gn"),
        (GATEWAY, json!({"extensions": 1}), "INVALID_PARAMETER", "true or false"),
        (GATEWAY, json!({"name": long}), "INVALID_PARAMETER", "at most 64"),
        (GATEWAY, json!({"name": "a\nb"}), "INVALID_PARAMETER", "control character"),
        (CHARGER, json!({"fsk_frequency": 70_000}), "INVALID_PARAMETER", "0..=65535"),
        (GATEWAY, json!({"colour": "red"}), "INVALID_PARAMETER", "colour"),
    ] {
        let message = refused(rig.post(&path(id), &body), (400, code));
        assert!(message.contains(part), "{message}");
    }
    refused(rig.get(&path(GATEWAY)), (404, "DEVICE_NOT_FOUND"));
    // A key makes a repetition the same request.
    let first = rig.send("POST", &path(GATEWAY), "all", Some("k1"), Some(&body));
    let again = rig.send("POST", &path(GATEWAY), "all", Some("k1"), Some(&body));
    assert_eq!(first, again);
    assert_eq!(data(first, 200)["registered"], true);
}

#[test]
fn what_a_host_tells_is_shown() {
    let rig = Rig::new();
    rig.bind(CHARGER, Protocol::Ap3000);
    let device_id: DeviceId = CHARGER.parse().unwrap();
    let entry = rig.api.directory.bind(device_id, Protocol::Ap3000, ShardId(0), 1).unwrap().entry;
    entry.set_module(Some("866262040012345"), Some("GM5_V3.1"), Some(0x51));
    entry.set_host(Some(Arc::new(HostValues {
        smoke_alarm: Some(1),
        leak_current_ma: Some(12),
        ..HostValues::default()
    })));
    let shown = data(rig.get(&path(CHARGER)), 200);
    assert_eq!(
        (&shown["imei"], &shown["module_version"], &shown["host_type"]),
        (&json!("866262040012345"), &json!("GM5_V3.1"), &json!(0x51))
    );
    assert_eq!(shown["host"], json!({"smoke_alarm": 1, "leak_current_ma": 12}));
}

#[test]
fn a_network_list_is_kept_and_confirmed_socket_by_socket() {
    use chargegate::model::CommandState::{Acked, Refused};
    let rig = Rig::new();
    refused(rig.get(&sockets(GATEWAY)), (404, "DEVICE_NOT_FOUND"));
    let list = json!({"action": "refresh", "channel": 3, "sockets": [
        {"socket": 2, "mac": "0000000000aa", "uid": "A-0002"}, {"socket": 1, "mac": "0000000000AB"},
    ]});
    refused(rig.post(&sockets(GATEWAY), &list), (404, "DEVICE_NOT_FOUND"));
    rig.bind(GATEWAY, Protocol::Bkv);
    let empty = data(rig.get(&sockets(GATEWAY)), 200);
    assert_eq!((&empty["channel"], &empty["confirmed"], &empty["sockets"]), (&Value::Null, &json!(true), &json!([])));
    let first = rig.send("POST", &sockets(GATEWAY), "operator", Some("k1"), Some(&list));
    assert_eq!(rig.send("POST", &sockets(GATEWAY), "operator", Some("k1"), Some(&list)), first);
    let stored = data(first, 202);
    assert_eq!((&stored["channel"], &stored["confirmed"]), (&json!(3), &json!(false)));
    let shown: Vec<_> = stored["sockets"]
        .as_array()
        .unwrap()
        .iter()
        .map(|s| (&s["socket"], &s["mac"], &s["state"], &s["ports"]))
        .collect();
    assert_eq!(
        shown,
        [
            (&json!(1), &json!("0000000000ab"), &json!("desired"), &json!([1, 2])),
            (&json!(2), &json!("0000000000aa"), &json!("desired"), &json!([3, 4])),
        ]
    );
    let ports = data(rig.get(&path(GATEWAY)), 200)["ports"].clone();
    let ports: Vec<_> = ports.as_array().unwrap().iter().map(|port| (&port["port_no"], &port["socket"])).collect();
    assert_eq!(
        ports,
        [(1, 1), (2, 1), (3, 2), (4, 2)]
            .map(|(port, socket)| (json!(port), json!(socket)))
            .iter()
            .map(|(a, b)| (a, b))
            .collect::<Vec<_>>()
    );
    // The gateway comes, is sent the list, and takes it.
    let bound = rig.bind(GATEWAY, Protocol::Bkv);
    assert_eq!(bound.commands.len(), 1);
    rig.answers(&bound.commands[0], Acked);
    let confirmed = data(rig.get(&sockets(GATEWAY)), 200);
    assert_eq!((&confirmed["confirmed"], &confirmed["sockets"][1]["uid"]), (&json!(true), &json!("A-0002")));
    assert!(confirmed["sockets"][0]["confirmed_at"].is_string());
    // One more, which it refuses.
    let added = data(rig.post(&sockets(GATEWAY), &json!({"action": "add", "socket": 9, "mac": "0000000000ac"})), 202);
    assert_eq!((&added["sockets"][2]["state"], &added["sockets"][2]["ports"]), (&json!("desired"), &json!([17, 18])));
    let bound = rig.bind(GATEWAY, Protocol::Bkv);
    rig.answers(&bound.commands[0], Refused);
    let shown = data(rig.get(&sockets(GATEWAY)), 200);
    assert_eq!((&shown["sockets"][2]["refused"], &shown["confirmed"]), (&json!("device_refused"), &json!(false)));
    // One less.
    let removed = data(rig.delete(&format!("{}/2", sockets(GATEWAY))), 202);
    assert_eq!((&removed["sockets"][1]["state"], &removed["sockets"][1]["ports"]), (&json!("removing"), &json!([])));
    assert_eq!(data(rig.get(&path(GATEWAY)), 200)["ports"].as_array().unwrap().len(), 4);
    let told = rig.told.networks.lock();
    assert_eq!(told.len(), 3, "its owner hears of each change once");
}

#[test]
fn a_socket_with_an_order_stays() {
    let rig = Rig::new();
    rig.bind(GATEWAY, Protocol::Bkv);
    let list = json!({"action": "refresh", "channel": 3, "sockets": [{"socket": 1, "mac": "0000000000aa"}]});
    data(rig.post(&sockets(GATEWAY), &list), 202);
    let epoch = rig.bind(GATEWAY, Protocol::Bkv).epoch;
    let device_id: DeviceId = GATEWAY.parse().unwrap();
    let entry = rig.api.directory.bind(device_id, Protocol::Bkv, ShardId(0), 1).unwrap().entry;
    entry.set_epoch(epoch);
    entry.seen(now().1);
    entry.set_timeout(3_600_000);
    entry.set_ports(vec![PortCell::new(&PortState::unknown(2, Some(1), Some(1)))]);
    let charge = json!({"port_no": 2, "mode": "time", "duration_minutes": 5});
    let order_no = data(rig.post(&format!("{}/charge", path(GATEWAY)), &charge), 202)["order_no"].clone();
    let empty = json!({"action": "refresh", "channel": 3, "sockets": []});
    for answer in [rig.delete(&format!("{}/1", sockets(GATEWAY))), rig.post(&sockets(GATEWAY), &empty)] {
        assert_eq!(answer.1["data"], json!({"order_no": order_no, "port_no": 2, "socket": 1}));
        let message = refused(answer, (409, "PORT_BUSY"));
        assert!(message.contains(order_no.as_str().unwrap()), "{message}");
    }
    assert_eq!(data(rig.get(&sockets(GATEWAY)), 200)["sockets"][0]["state"], "desired");
}

#[test]
fn network_lists_are_checked() {
    let rig = Rig::new();
    rig.bind(GATEWAY, Protocol::Bkv);
    rig.bind(CHARGER, Protocol::Ap3000);
    let one = json!({"socket": 1, "mac": "0000000000aa"});
    let refresh = |channel: Value, sockets: Value| json!({"action": "refresh", "channel": channel, "sockets": sockets});
    data(rig.post(&sockets(GATEWAY), &refresh(json!(3), json!([one]))), 202);
    for answer in [
        rig.get(&sockets(CHARGER)),
        rig.post(&sockets(CHARGER), &refresh(json!(3), json!([one]))),
        rig.delete(&format!("{}/1", sockets(CHARGER))),
    ] {
        refused(answer, (400, "NOT_SUPPORTED"));
    }
    for (body, part) in [
        (json!({"action": "clear"}), "refresh, add"),
        (json!({}), "action is missing"),
        (refresh(json!(16), json!([one])), "channel must be a whole number in 1..=15, got 16"),
        (refresh(Value::Null, json!([one])), "channel is missing"),
        (json!({"action": "refresh", "channel": 3}), "sockets is missing"),
        (refresh(json!(3), json!([one, one])), "sockets[1].socket 1 is given twice"),
        (refresh(json!(3), json!([one, {"socket": 2, "mac": "0000000000AA"}])), "sockets[1].mac is given twice"),
        (refresh(json!(3), json!([{"socket": 251, "mac": "0000000000aa"}])), "sockets[0].socket"),
        (refresh(json!(3), json!([{"socket": 1, "mac": "00000000aa"}])), "sockets[0].mac"),
        (refresh(json!(3), json!([{"socket": 1}])), "sockets[0].mac is missing"),
        (refresh(json!(3), json!([{"socket": 1, "mac": "0000000000aa", "id": 1}])), "sockets[0].id"),
        (json!({"action": "add", "socket": 0, "mac": "0000000000aa"}), "socket must be"),
        (json!({"action": "add", "socket": 1, "mac": "0000000000ff"}), "socket 1 is in the list with another mac"),
        (json!({"action": "add", "socket": 2, "mac": "0000000000aa"}), "the mac is in the list as socket 1"),
        (json!({"action": "add", "socket": 2, "mac": "0000000000ab", "channel": 3}), "channel"),
    ] {
        let message = refused(rig.post(&sockets(GATEWAY), &body), (400, "INVALID_PARAMETER"));
        assert!(message.contains(part), "{message}");
    }
    refused(rig.delete(&format!("{}/7", sockets(GATEWAY))), (404, "NOT_FOUND"));
    refused(rig.delete(&format!("{}/0", sockets(GATEWAY))), (400, "INVALID_PARAMETER"));
    refused(rig.delete(&format!("{}/x", sockets(GATEWAY))), (400, "INVALID_PARAMETER"));
    assert_eq!(rig.told.networks.lock().len(), 1, "what is refused changes nothing");
}
