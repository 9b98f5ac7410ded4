//! The gateway as operators run it: the real binary in a process of its own, with a data directory and ports of its own.
//!
//! Configured by `CHARGEGATE_*` variables only; the lines it prints at start name the ports the kernel chose. What it logs is
//! kept in a file and shown when a test fails. Nothing here sleeps to let something happen: [`until`] asks again until a deadline
//! that only turns a hang into a failure.
//!
//! - [`wire`]: scripted devices, byte by byte. [`driven`]: simulated devices. [`receiver`]: a third party that takes webhooks.

#![allow(dead_code, reason = "each test file uses its part")]

pub(crate) mod driven;
pub(crate) mod receiver;
pub(crate) mod wire;

use std::{
    env,
    fs::{self, File},
    io::{BufRead as _, BufReader},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, mpsc},
    thread,
    time::{Duration, Instant},
};

pub(crate) use chargegate::shard::launch::Engine;
use chargegate::shard::launch::{EngineChoice, prepare};
use serde_json::{Value, json};
use tempfile::TempDir;

/// Nothing in a test takes this long.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
/// Between two looks at a condition.
const LOOK_AGAIN: Duration = Duration::from_millis(5);
/// The key all gateways of the tests know, unless a test sets others.
pub(crate) const KEY: &str = "key-of-the-tests";
const THIRD: &str = "/api/v1/third";

/// Runs each property on both engines.
#[macro_export]
macro_rules! on_both_engines {
    ($($property:ident)*) => {
        mod mio { $(#[test] fn $property() { super::$property($crate::gateway::Engine::Mio); })* }
        mod glommio { $(#[test] fn $property() { super::$property($crate::gateway::Engine::Glommio); })* }
    };
}

#[expect(clippy::disallowed_methods, reason = "the clock enters here")]
fn now() -> Instant {
    Instant::now()
}

/// Looks until there is something.
pub(crate) fn until<T>(what: &str, look: impl FnMut() -> Option<T>) -> T {
    until_or(look).unwrap_or_else(|| panic!("did not happen: {what}"))
}

fn until_or<T>(mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let began = now();
    loop {
        let found = look();
        if found.is_some() || now().duration_since(began) >= PATIENCE {
            return found;
        }
        thread::sleep(LOOK_AGAIN);
    }
}

/// Whether the kernel lets this engine run; says so where it does not.
fn is_allowed(engine: Engine) -> bool {
    match prepare(EngineChoice::Only(engine), 1) {
        Ok(_) => true,
        Err(error) => {
            eprintln!("not checked on {engine}: {error}");
            false
        }
    }
}

/// The binary, without any `CHARGEGATE_*` variable of the surroundings.
pub(crate) fn binary(directory: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_chargegate"));
    for (name, _) in env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("CHARGEGATE_")) {
        command.env_remove(name);
    }
    command.current_dir(directory).stdin(Stdio::null());
    command
}

fn set(variables: &mut Vec<(String, String)>, name: &str, value: &str) {
    variables.retain(|(other, _)| other != name);
    if !value.is_empty() {
        variables.push((name.to_owned(), value.to_owned()));
    }
}

/// A running gateway. Dropped, it is killed.
pub(crate) struct Gateway {
    child: Child,
    directory: Arc<TempDir>,
    variables: Vec<(String, String)>,
    agent: ureq::Agent,
    /// Where AP3000 and BKV devices connect.
    pub(crate) devices: SocketAddr,
    /// Where GN devices connect; the same as `devices` unless `CHARGEGATE_DEVICE_LISTEN_GN` is set.
    pub(crate) gn_devices: SocketAddr,
    /// REST API.
    pub(crate) http: SocketAddr,
    /// The key that this start printed.
    pub(crate) printed_key: Option<String>,
}

impl Gateway {
    /// Starts a gateway on ports of the kernel's choosing; `None` where the kernel refuses the engine. A variable given as the
    /// empty text is not set at all.
    pub(crate) fn start(engine: Engine, variables: &[(&str, &str)]) -> Option<Self> {
        if !is_allowed(engine) {
            return None;
        }
        Some(Self::try_start(engine, variables).unwrap_or_else(|failed| panic!("no start: {failed:?}")))
    }

    /// As [`Gateway::start`], where it may end before it is ready.
    pub(crate) fn try_start(engine: Engine, variables: &[(&str, &str)]) -> Result<Self, NoStart> {
        let keys = json!([{"name": "tests", "key": KEY}]).to_string();
        let engine = engine.to_string();
        let defaults = [
            ("CHARGEGATE_DATA_DIR", "data"),
            ("CHARGEGATE_DEVICE_LISTEN", "127.0.0.1:0"),
            ("CHARGEGATE_HTTP_LISTEN", "127.0.0.1:0"),
            ("CHARGEGATE_SHARD_COUNT", "2"),
            ("CHARGEGATE_SHARD_ENGINE", &engine),
            ("CHARGEGATE_API_KEYS", &keys),
        ];
        let mut all: Vec<(String, String)> = Vec::new();
        for (name, value) in defaults.iter().chain(variables) {
            set(&mut all, name, value);
        }
        let directory = Arc::new(tempfile::tempdir().expect("a temporary directory"));
        Self::launch(directory, all)
    }

    /// A second gateway on the directory of this one, with the same variables but for `variables`.
    pub(crate) fn start_beside(&self, variables: &[(&str, &str)]) -> Result<Self, NoStart> {
        let mut all = self.variables.clone();
        for (name, value) in variables {
            set(&mut all, name, value);
        }
        Self::launch(Arc::clone(&self.directory), all)
    }

    /// Starts again where a gateway was: same data, same ports.
    pub(crate) fn restart(mut self) -> Self {
        self.start_again();
        self
    }

    /// As [`Gateway::restart`], in its place. What it depends on may come back only while it tries, as under a supervisor.
    pub(crate) fn start_again(&mut self) {
        self.kill9();
        let (devices, gn_devices, http) =
            (self.devices.to_string(), self.gn_devices.to_string(), self.http.to_string());
        let mut ports = vec![("CHARGEGATE_DEVICE_LISTEN", devices.as_str()), ("CHARGEGATE_HTTP_LISTEN", &http)];
        if self.gn_devices != self.devices {
            ports.push(("CHARGEGATE_DEVICE_LISTEN_GN", &gn_devices));
        }
        // What an io_uring held the kernel gives back some time after the process's end.
        *self = until("the ports are free", || match self.start_beside(&ports) {
            Ok(gateway) => Some(gateway),
            Err(failed) if failed.stderr.contains("Address already in use") || failed.status.code() == Some(3) => None,
            Err(failed) => panic!("no start: {failed:?}"),
        });
    }

    fn launch(directory: Arc<TempDir>, variables: Vec<(String, String)>) -> Result<Self, NoStart> {
        let log = File::options().create(true).append(true).open(directory.path().join("log")).expect("a log file");
        let before = log.metadata().expect("it is open").len();
        let mut child = binary(directory.path())
            .envs(variables.iter().map(|(name, value)| (name, value)))
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .expect("the binary is built");
        let stdout = child.stdout.take().expect("it is piped");
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                // A test that ended reads no further.
                drop(sender.send(line));
            }
        });
        let keys = ["CHARGEGATE_API_KEYS", "CHARGEGATE_CONFIG"];
        let made_key = !variables.iter().any(|(name, _)| keys.contains(&name.as_str()));
        let (mut devices, mut gn_devices, mut http, mut printed_key) = (None, None, None, None);
        while http.is_none() || made_key && printed_key.is_none() {
            let Ok(line) = lines.recv_timeout(PATIENCE) else {
                drop(child.kill());
                let status = child.wait().expect("it was started");
                let log = fs::read(directory.path().join("log")).expect("it was made");
                let text = log.get(usize::try_from(before).expect("small")..).unwrap_or_default();
                return Err(NoStart { status, stderr: String::from_utf8_lossy(text).into_owned() });
            };
            let words: Vec<&str> = line.split_whitespace().collect();
            match words.as_slice() {
                ["devices", addr] => devices = addr.parse().ok(),
                ["GN", "devices", addr] => gn_devices = addr.parse().ok(),
                ["health", url, ..] => {
                    http = url.strip_prefix("http://").and_then(|rest| rest.split('/').next()?.parse().ok());
                }
                ["API", "key", key, ..] => printed_key = Some((*key).to_owned()),
                _ => {}
            }
        }
        let devices = devices.expect("printed before the HTTP address");
        let config = ureq::Agent::config_builder().timeout_global(Some(PATIENCE)).http_status_as_error(false).build();
        Ok(Self {
            child,
            directory,
            variables,
            agent: config.into(),
            devices,
            gn_devices: gn_devices.unwrap_or(devices),
            http: http.expect("the loop ended"),
            printed_key,
        })
    }

    /// Ends it as a power cut would.
    pub(crate) fn kill9(&mut self) {
        // It may have ended by itself.
        drop(self.child.kill());
        self.child.wait().expect("it was started");
    }

    /// Asks it to stop, and waits for its end.
    pub(crate) fn sigterm(&mut self) -> ExitStatus {
        self.signal(libc::SIGTERM);
        self.ended()
    }

    /// Its process.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Resident memory, bytes.
    pub(crate) fn resident(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("it runs");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("it is not a zombie");
        line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") * 1024
    }

    /// Sends it a signal.
    pub(crate) fn signal(&self, signal: libc::c_int) {
        let pid = libc::pid_t::try_from(self.child.id()).expect("a process id");
        // SAFETY: no memory is involved; the child is not waited for yet, so the id is its own.
        let sent = unsafe { libc::kill(pid, signal) };
        assert_eq!(sent, 0, "the process runs");
    }

    /// Waits until it ends.
    pub(crate) fn ended(&mut self) -> ExitStatus {
        until("the process ends", || self.child.try_wait().expect("it was started"))
    }

    /// What it logged since the first start in its directory.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.directory.path().join("log")).expect("it was made")
    }

    /// Its working directory; the data is in `data`.
    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// The database, read beside the gateway.
    pub(crate) fn database(&self) -> rusqlite::Connection {
        let path: PathBuf = self.directory.path().join("data/chargegate.db");
        rusqlite::Connection::open(path).expect("the gateway made it")
    }

    /// A request as third parties make it; a path without a leading slash is below the API's base.
    pub(crate) fn request(&self, method: &str, path: &str, key: Option<&str>, body: Option<&Value>) -> Answer {
        let mut request = self.builder(method, path, key);
        let bytes = body.map(Value::to_string);
        if bytes.is_some() {
            request = request.header("Content-Type", "application/json");
        }
        let request = request.body(bytes.unwrap_or_default()).expect("a sound request");
        Answer::of(self.agent.run(request).expect("an answer"))
    }

    /// POST of bytes that are no JSON.
    pub(crate) fn upload(&self, path: &str, key: Option<&str>, bytes: &[u8]) -> Answer {
        let request = self.builder("POST", path, key).body(bytes).expect("a sound request");
        Answer::of(self.agent.run(request).expect("an answer"))
    }

    /// POST with the tests' key and an idempotency key.
    pub(crate) fn post_once(&self, path: &str, idempotency_key: &str, body: &Value) -> Answer {
        let request = self.builder("POST", path, Some(KEY)).header("Idempotency-Key", idempotency_key);
        let request = request.header("Content-Type", "application/json").body(body.to_string());
        Answer::of(self.agent.run(request.expect("a sound request")).expect("an answer"))
    }

    fn builder(&self, method: &str, path: &str, key: Option<&str>) -> ureq::http::request::Builder {
        let path = if path.starts_with('/') { path.to_owned() } else { format!("{THIRD}/{path}") };
        let request = ureq::http::Request::builder().method(method).uri(format!("http://{}{path}", self.http));
        if let Some(key) = key { request.header("X-Api-Key", key) } else { request }
    }

    /// GET with the tests' key.
    pub(crate) fn get(&self, path: &str) -> Answer {
        self.request("GET", path, Some(KEY), None)
    }

    /// POST with the tests' key.
    pub(crate) fn post(&self, path: &str, body: &Value) -> Answer {
        self.request("POST", path, Some(KEY), Some(body))
    }

    /// Orders a charge that is accepted, and returns its number.
    pub(crate) fn charge(&self, device_id: &str, body: &Value) -> String {
        let answer = self.post(&format!("devices/{device_id}/charge"), body);
        assert_eq!((answer.status, &answer.body["code"]), (202, &json!(0)), "{}", answer.body);
        assert_eq!(answer.data()["status_text"], "pending");
        answer.data()["order_no"].as_str().expect("an order number").to_owned()
    }

    /// An order as it is now.
    pub(crate) fn order(&self, order_no: &str) -> Value {
        let answer = self.get(&format!("orders/{order_no}"));
        assert_eq!(answer.status, 200, "{}", answer.body);
        answer.data().clone()
    }

    /// Waits until an order has a status.
    pub(crate) fn order_becomes(&self, order_no: &str, status: &str) -> Value {
        let mut last = Value::Null;
        let found = until_or(|| {
            let answer = self.get(&format!("orders/{order_no}"));
            // Behind a fault a reader may still be on its way back to the store.
            assert!([200, 503].contains(&answer.status), "{}", answer.body);
            last = answer.body["data"].clone();
            (last["status_text"] == status).then(|| last.clone())
        });
        found.unwrap_or_else(|| panic!("order {order_no} did not become {status}: {last}\n{}", self.log()))
    }

    /// Waits until a device is online and has a port.
    pub(crate) fn knows_port(&self, device_id: &str, port_no: u16) -> Value {
        until(&format!("{device_id} has port {port_no}"), || {
            let answer = self.get(&format!("devices/{device_id}/status"));
            let ports = answer.body["data"]["ports"].as_array().cloned().unwrap_or_default();
            let port = ports.into_iter().find(|port| port["port_no"] == port_no)?;
            (answer.data()["online"] == true).then_some(port)
        })
    }

    /// The events of an order, from the event log.
    pub(crate) fn events_of(&self, order_no: &str) -> Vec<Value> {
        self.events().into_iter().filter(|event| event["order_no"] == order_no).collect()
    }

    /// The whole event log.
    pub(crate) fn events(&self) -> Vec<Value> {
        let (mut all, mut after) = (Vec::new(), 0);
        loop {
            let answer = self.get(&format!("events?after={after}&limit=500"));
            assert_eq!(answer.status, 200, "{}", answer.body);
            let items = answer.data()["items"].as_array().expect("a list").clone();
            if items.is_empty() {
                return all;
            }
            all.extend(items);
            after = answer.data()["next_after"].as_i64().expect("a position");
        }
    }

    /// A metric's value; labels are part of the name as it stands in the exposition.
    pub(crate) fn metric(&self, name: &str) -> u64 {
        let text = self.request("GET", "/metrics", None, None).text;
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        let value: f64 = line.unwrap_or_else(|| panic!("no metric {name}")).parse().expect("a number");
        value as u64
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.kill9();
        if thread::panicking() {
            eprintln!("log of the gateway:\n{}", self.log());
        }
    }
}

/// A gateway that ended before it was ready.
#[derive(Debug)]
pub(crate) struct NoStart {
    pub(crate) status: ExitStatus,
    pub(crate) stderr: String,
}

/// An HTTP answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// `Null` where the body is no JSON.
    pub(crate) body: Value,
    pub(crate) text: String,
    pub(crate) headers: ureq::http::HeaderMap,
}

impl Answer {
    fn of(mut response: ureq::http::Response<ureq::Body>) -> Self {
        let text = response.body_mut().read_to_string().expect("a whole body");
        let body = serde_json::from_str(&text).unwrap_or(Value::Null);
        Self { status: response.status().as_u16(), body, text, headers: response.headers().clone() }
    }

    /// `data` of the envelope.
    pub(crate) fn data(&self) -> &Value {
        &self.body["data"]
    }

    /// Checks that it is an error in the envelope, and returns its message.
    #[track_caller]
    pub(crate) fn refused(&self, status: u16, code: &str) -> &str {
        assert_eq!((self.status, &self.body["error"]), (status, &json!(code)), "{}", self.text);
        assert_eq!(self.body["code"], status, "{}", self.text);
        for field in ["request_id", "timestamp"] {
            assert!(self.body[field].is_string(), "{field}: {}", self.text);
        }
        self.body["message"].as_str().expect("a message")
    }
}
