//! The API over a socket: guard, server, handlers and the embedded store are the real ones; no device is connected.
//!
//! The live entries of the directory, which a shard would write, are set by the tests. Every test waits for answers only.

#![allow(dead_code, reason = "each test uses its part")]

use std::{
    collections::BTreeMap,
    io::{Read as _, Write as _},
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpStream},
    path::PathBuf,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use chargegate::{
    api::{
        auth::{Authenticator, Shared},
        guard::{self, GuardConfig, GuardHandle},
        handlers::Api,
        live::Whereabouts,
        overload::{Backlog, Limits},
        server::{Server, ServerConfig},
    },
    cluster::sessions::Sessions,
    config::{self, ApiKey, Scope, Scopes},
    drain::Drain,
    gateway::{
        ShardId,
        directory::{Directory, Entry},
    },
    job::Retention,
    managed::{Configured, Managed},
    model::{Command, DeviceId, Order, OrderNumbers, Protocol, ServerId},
    protocol::ap3000::Magics,
    shard::Inquiries,
    store::{
        Bind, Bound, Job, NetworkTold, Notify, Outcome, Queued, Reader, Reply, SettingsOutcome, Store, StoreError,
        sqlite::{Options, SqliteStore},
    },
    telemetry::{Health, Metrics},
};
use parking_lot::Mutex;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

/// Nothing in a test takes this long; it only turns a hang into a failure.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
pub(crate) const THIRD: &str = "/api/v1/third";
/// The key that may do everything.
/// Longer than any test.
const KEPT: Retention = Retention {
    events: PATIENCE,
    commands: PATIENCE,
    answers: PATIENCE,
    command_log: PATIENCE,
    delivery_log: PATIENCE,
};
pub(crate) const ALL: &str = "key-all";

#[expect(clippy::disallowed_methods, reason = "the clock enters here")]
fn now() -> (Instant, SystemTime) {
    (Instant::now(), SystemTime::now())
}

/// Unix time in ms.
pub(crate) fn unix_ms() -> i64 {
    i64::try_from(now().1.duration_since(UNIX_EPOCH).unwrap().as_millis()).unwrap()
}

/// What the owners of devices are told.
#[derive(Default)]
pub(crate) struct Told {
    pub(crate) settings: Mutex<Vec<SettingsOutcome>>,
    pub(crate) networks: Mutex<Vec<NetworkTold>>,
}

impl Notify for Told {
    fn shard(&self, _: ShardId, _: Outcome) {}
    fn order_changed(&self, _: &Order, _: &[Command], _: &[i64], _: Option<&ServerId>) {}
    fn commands_queued(&self, _: &Queued) {}
    fn events_committed(&self, _: i64) {}
    fn settings_changed(&self, settings: &SettingsOutcome, _: Option<&ServerId>) {
        self.settings.lock().push(settings.clone());
    }
    fn network_changed(&self, told: &NetworkTold, _: Option<&ServerId>) {
        self.networks.lock().push(told.clone());
    }
}

/// The key `key-` and this name.
pub(crate) fn key(name: &str, scopes: impl IntoIterator<Item = Scope>) -> ApiKey {
    ApiKey {
        name: name.to_owned(),
        key_sha256: Sha256::digest(format!("key-{name}")).into(),
        scopes: scopes.into_iter().collect(),
        require_hmac: false,
        hmac_secret: None,
        ip_allow: Vec::new(),
        rate_per_s: 0,
        burst: 0,
    }
}

/// A gateway without device connections.
pub(crate) struct Rig {
    // Declared in the order of stopping.
    guard: GuardHandle,
    _server: Server,
    pub(crate) api: Arc<Api>,
    pub(crate) store: Arc<SqliteStore>,
    pub(crate) told: Arc<Told>,
    /// What the shards say of their lanes.
    pub(crate) waiting: Arc<AtomicU64>,
    pub(crate) agent: ureq::Agent,
    dir: tempfile::TempDir,
}

impl Rig {
    /// It knows [`ALL`] and these keys.
    pub(crate) fn new(keys: impl IntoIterator<Item = ApiKey>) -> Self {
        Self::beside(keys, None, |_| None)
    }

    /// The same, as one of several instances: `others` know of nonces and rates, `mirror` is made of its directory.
    pub(crate) fn beside(
        keys: impl IntoIterator<Item = ApiKey>,
        others: Option<Arc<dyn Shared>>,
        mirror: impl FnOnce(&Arc<Directory>) -> Option<Arc<Sessions>>,
    ) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let told = Arc::new(Told::default());
        let notify = Arc::clone(&told) as Arc<dyn Notify>;
        let store = Arc::new(SqliteStore::open(Options::new(dir.path().join("chargegate.db")), notify).unwrap());
        let waiting = Arc::new(AtomicU64::new(0));
        let lanes = Arc::clone(&waiting);
        let all = ApiKey { scopes: Scopes::ALL, ..key("all", []) };
        let keys = std::iter::once(all).chain(keys).collect();
        let auth = Authenticator::new(Vec::new(), Duration::from_secs(300));
        let auth = if let Some(others) = others { auth.with_shared(others) } else { auth };
        let auth = Arc::new(auth);
        let configured = Configured { keys, ..Configured::default() };
        let managed =
            Managed::start(Arc::clone(&store) as Arc<dyn Store>, Arc::clone(&auth), configured).expect("a fresh store");
        let directory = Arc::new(Directory::default().with_changes());
        let mirror = mirror(&directory);
        let health = Arc::new(Health::new(1));
        let api = Arc::new(Api {
            directory: Arc::clone(&directory),
            store: Arc::clone(&store) as Arc<dyn Store>,
            numbers: Arc::new(OrderNumbers::new(*b"THD", 1)),
            backlog: Backlog::new(
                Limits::from(&config::Config::default().queue),
                move || lanes.load(Ordering::Relaxed),
                || 0,
            ),
            in_progress: Arc::default(),
            metrics: Metrics::new(1),
            drain: Arc::new(Drain::new(Arc::clone(&health), Vec::new(), 0, |_| ())),
            health,
            auth,
            managed,
            inquiries: Inquiries::start(Vec::new()).unwrap(),
            magics: Magics::default(),
            whereabouts: Whereabouts::new(directory, ServerId::new("gateway-1"), mirror),
            cards: Arc::default(),
            store_timeout: PATIENCE,
            firmware_dir: dir.path().join("firmware"),
            retention: KEPT,
            pusher: OnceLock::new(),
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
        Self { guard, _server: server, api, store, told, waiting, agent, dir }
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        self.guard.local_addr()
    }

    pub(crate) fn database(&self) -> PathBuf {
        self.dir.path().join("chargegate.db")
    }

    fn request(&self, method: &str, target: &str, api_key: Option<&str>) -> ureq::http::request::Builder {
        let request = ureq::http::Request::builder().method(method).uri(format!("http://{}{target}", self.addr()));
        if let Some(api_key) = api_key { request.header("X-Api-Key", api_key) } else { request }
    }

    /// A request for any target.
    pub(crate) fn send(&self, method: &str, target: &str, api_key: Option<&str>, body: Option<&str>) -> Answer {
        self.run_request(self.request(method, target, api_key), method, body)
    }

    /// Posts with an idempotency key.
    pub(crate) fn send_once(&self, target: &str, api_key: &str, once: &str, body: Option<&Value>) -> Answer {
        let request = self.request("POST", target, Some(api_key)).header("Idempotency-Key", once);
        self.run_request(request, "POST", body.map(Value::to_string).as_deref())
    }

    /// A request with headers of its own.
    pub(crate) fn send_with(&self, method: &str, target: &str, headers: &[(&str, &str)], body: Option<&str>) -> Answer {
        let request = self.request(method, target, None);
        let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
        self.run_request(request, method, body)
    }

    /// Bytes on a connection of their own, and all that comes back until it ends.
    pub(crate) fn exchange(&self, bytes: &[u8]) -> Answer {
        let mut stream = TcpStream::connect(self.addr()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(bytes).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        let (head, text) = text.split_once("\r\n\r\n").expect("an answer with a head");
        let mut lines = head.lines();
        let status = lines.next().and_then(|line| line.split(' ').nth(1)).and_then(|status| status.parse().ok());
        let fields = lines.filter_map(|line| line.split_once(": "));
        let headers = fields.map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned())).collect();
        Answer { status: status.expect("a status line"), headers, text: text.to_owned() }
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

    /// As all that follow: with the key that may do everything, for a path below the API's base.
    pub(crate) fn get(&self, path: &str) -> Answer {
        self.send("GET", &format!("{THIRD}{path}"), Some(ALL), None)
    }

    pub(crate) fn post(&self, path: &str, body: &Value) -> Answer {
        self.send("POST", &format!("{THIRD}{path}"), Some(ALL), Some(&body.to_string()))
    }

    pub(crate) fn delete(&self, path: &str) -> Answer {
        self.send("DELETE", &format!("{THIRD}{path}"), Some(ALL), None)
    }

    /// Has a job done by the store.
    pub(crate) fn run(&self, job: Job) -> Outcome {
        let (reply, answer) = mpsc::channel();
        let call = Box::new(move |outcome| drop(reply.send(outcome)));
        self.store.submit(job, Reply::Call(call)).expect("the queue has room");
        answer.recv_timeout(PATIENCE).expect("the store answers")
    }

    pub(crate) fn read<T: Send + 'static>(
        &self,
        query: impl FnOnce(&mut dyn Reader) -> Result<T, StoreError> + Send + 'static,
    ) -> T {
        let (reply, answer) = mpsc::channel();
        let call =
            Box::new(move |reader: Result<&mut dyn Reader, StoreError>| drop(reply.send(reader.and_then(query))));
        assert!(self.store.read(call).is_ok(), "the queue has room");
        answer.recv_timeout(PATIENCE).expect("the reader answers").unwrap()
    }

    /// Makes a device known to the store, as its connection does.
    pub(crate) fn bind(&self, device_id: DeviceId, protocol: Protocol, printed_no: Option<u32>) -> Bound {
        let bind = Bind { device_id, protocol, printed_no, known_only: false, generation: 1, at: unix_ms() };
        match self.run(Job::Bind(bind)) {
            Outcome::Bound(bound) => *bound,
            other => panic!("{other:?}"),
        }
    }

    /// The live entry of a device that was bound, connected, and just seen.
    pub(crate) fn entry(&self, device_id: DeviceId, protocol: Protocol, epoch: i64) -> Arc<Entry> {
        let entry = self.api.directory.bind(device_id, protocol, ShardId(0), 1).unwrap().entry;
        entry.set_epoch(epoch);
        entry.set_connected_at(unix_ms());
        entry.seen(unix_ms());
        // No test is so slow that its devices fall silent.
        entry.set_timeout(3_600_000);
        entry
    }
}

/// An HTTP answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) text: String,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error} in {}", self.text))
    }

    /// `data` of an answer with this status, after checking its envelope.
    #[track_caller]
    pub(crate) fn data(&self, status: u16) -> Value {
        assert_eq!(self.status, status, "{}", self.text);
        let json = self.json();
        assert_eq!((&json["code"], &json["message"]), (&json!(0), &json!("success")));
        assert!(json["request_id"].is_string() && json["timestamp"].is_string());
        json["data"].clone()
    }

    /// Message of an error answer, after checking code and envelope.
    #[track_caller]
    pub(crate) fn error(&self, status: u16, code: &str) -> String {
        let json = self.json();
        assert_eq!((self.status, json["error"].as_str()), (status, Some(code)), "{}", self.text);
        assert_eq!(json["code"], status);
        assert!(json["request_id"].is_string() && json["timestamp"].is_string());
        json["message"].as_str().unwrap().to_owned()
    }
}
