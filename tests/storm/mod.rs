//! A storm of charges and commands: simulated devices over TCP, and third parties who charge, stop, cancel, command and read the log
//! of events by REST. Everybody goes on over whatever happens to the gateways, and keeps what was told.
//!
//! A module of the tests that have a `witness`.

#![allow(dead_code, reason = "each test uses its part")]

pub(crate) mod verdict;

use std::{
    collections::BTreeMap,
    io::{ErrorKind, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    thread,
    time::Duration,
};

use chargegate_loadtest::{
    device::{Ap3000Device, Behaviour, BkvDevice, Device},
    engine::Clock,
};
use serde_json::{Value, json};

use crate::witness::{Draws, Shared, Witness};

pub(crate) const MS: u64 = 1_000;
/// The key that all gateways know.
pub(crate) const KEY: &str = "key-of-the-storm";
/// An answer that does not come is no answer.
const ANSWER: Duration = Duration::from_secs(10);

/// Waits a little before looking again.
pub(crate) fn pause(ms: u64) {
    thread::park_timeout(Duration::from_millis(ms));
}

/// Also where an assertion fails: threads that go on would keep the test from ending.
pub(crate) struct SetOnDrop<'a>(pub(crate) &'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

/// The device with this index, and its id. `hasty`: minutes pass as seconds.
pub(crate) fn device(index: u32, hasty: bool) -> (String, Box<dyn Device + Send>, Shared) {
    // Few minutes, because a BKV gateway's lost start is recognised by its times.
    let time_factor = if hasty { 60 } else { 1 };
    let behaviour = Behaviour { time_factor, ..Behaviour::default() };
    if index.is_multiple_of(2) {
        let device = Ap3000Device::new(index, 2, behaviour);
        let id = device.phy_id().to_string();
        let (witness, seen) = Witness::new(&id, device);
        (id, Box::new(witness), seen)
    } else {
        let device = BkvDevice::new(index, 0, behaviour);
        let id = device.gateway_id().to_string();
        let (witness, seen) = Witness::new(&id, device);
        (id, Box::new(witness), seen)
    }
}

/// Drives a device over TCP until `stop`; what it reads and writes may end anywhere. Where there are several gateways, each
/// connection is made to the next, as a load balancer would.
pub(crate) fn drive(
    device: &mut dyn Device,
    clock: Clock,
    addresses: &[SocketAddr],
    first: usize,
    stop: &dyn Fn() -> bool,
) {
    let mut addresses = addresses.iter().cycle().skip(first);
    while !stop() {
        let address = addresses.next().expect("there is a gateway");
        if let Ok(mut stream) = TcpStream::connect_timeout(address, Duration::from_secs(2)) {
            stream.set_nodelay(true).unwrap();
            stream.set_read_timeout(Some(Duration::from_millis(10))).unwrap();
            device.connected(clock.now_us());
            while !stop() && exchange(device, clock, &mut stream).is_ok() {}
            device.disconnected(clock.now_us());
        }
        pause(100);
        if device.poll_timeout().is_some_and(|at| at <= clock.now_us()) {
            device.timeout(clock.now_us());
        }
    }
}

fn exchange(device: &mut dyn Device, clock: Clock, stream: &mut TcpStream) -> std::io::Result<()> {
    if device.poll_timeout().is_some_and(|at| at <= clock.now_us()) {
        device.timeout(clock.now_us());
    }
    let mut out = Vec::new();
    device.poll_output(&mut out);
    stream.write_all(&out)?;
    while device.poll_event().is_some() {}
    if device.poll_close() {
        return Err(ErrorKind::ConnectionAborted.into());
    }
    let mut bytes = [0; 4096];
    match stream.read(&mut bytes) {
        Ok(0) => Err(ErrorKind::UnexpectedEof.into()),
        Ok(len) => {
            device.receive(clock.now_us(), &bytes[..len]);
            Ok(())
        }
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => Ok(()),
        Err(error) => Err(error),
    }
}

/// A status and a body.
pub(crate) type Answer = (u16, Value);

/// A client of the REST interface of all gateways, each request at the next; requests fail while a gateway is down.
#[derive(Clone)]
pub(crate) struct Client {
    agent: ureq::Agent,
    bases: Vec<String>,
    turn: Arc<AtomicUsize>,
}

impl Client {
    pub(crate) fn new(gateways: &[SocketAddr]) -> Self {
        let config = ureq::Agent::config_builder().timeout_global(Some(ANSWER)).http_status_as_error(false).build();
        let bases = gateways.iter().map(|address| format!("http://{address}/api/v1/third")).collect();
        Self { agent: config.into(), bases, turn: Arc::default() }
    }

    fn url(&self, path: &str) -> String {
        let turn = self.turn.fetch_add(1, Relaxed) % self.bases.len();
        format!("{}{path}", self.bases[turn])
    }

    pub(crate) fn get(&self, path: &str) -> Option<Answer> {
        let mut response = self.agent.get(self.url(path)).header("X-Api-Key", KEY).call().ok()?;
        Some((response.status().as_u16(), response.body_mut().read_json().ok()?))
    }

    pub(crate) fn post(&self, path: &str, body: &Value) -> Option<Answer> {
        let request = self.agent.post(self.url(path)).header("X-Api-Key", KEY);
        let mut response = request.send_json(body).ok()?;
        Some((response.status().as_u16(), response.body_mut().read_json().ok()?))
    }

    /// A request that takes effect once, however often it is made with this key.
    pub(crate) fn post_once(&self, path: &str, key: &str, body: &Value) -> Option<Answer> {
        let request = self.agent.post(self.url(path)).header("X-Api-Key", KEY);
        let request = request.header("Idempotency-Key", key).header("X-Request-Id", key);
        let mut response = request.send_json(body).ok()?;
        Some((response.status().as_u16(), response.body_mut().read_json().ok()?))
    }

    /// The order's number, if the answer was 202.
    pub(crate) fn charge(&self, device_id: &str, port_no: u64, minutes: u64) -> Option<String> {
        order_no(self.post(&format!("/devices/{device_id}/charge"), &charge_of(port_no, minutes))?)
    }
}

fn charge_of(port_no: u64, minutes: u64) -> Value {
    json!({"port_no": port_no, "mode": "time", "duration_minutes": minutes})
}

fn order_no((status, answer): Answer) -> Option<String> {
    match status {
        202 => Some(answer["data"]["order_no"].as_str().unwrap().to_owned()),
        400 | 404 | 409 | 503 => None,
        _ => panic!("{status} {answer}"),
    }
}

/// A charge that was asked for with a key until it was answered.
pub(crate) struct Once {
    path: String,
    body: Value,
    order_no: String,
}

/// What clients were told.
#[derive(Default)]
pub(crate) struct Told {
    /// Orders answered 202: device and port.
    pub(crate) orders: BTreeMap<String, (String, u64)>,
    /// The same by their idempotency keys, where they had one.
    pub(crate) once: BTreeMap<String, Once>,
    /// All idempotency keys, answered or not.
    pub(crate) keys: Vec<String>,
    /// Commands answered 202: device.
    pub(crate) commands: BTreeMap<u64, String>,
    /// Events shown, by position.
    pub(crate) events: BTreeMap<i64, Value>,
}

/// One of the third parties.
pub(crate) struct Party<'a> {
    pub(crate) number: u64,
    pub(crate) client: Client,
    pub(crate) draws: Draws,
    pub(crate) devices: &'a [String],
    pub(crate) told: &'a Mutex<Told>,
    pub(crate) stop: &'a AtomicBool,
}

impl Party<'_> {
    pub(crate) fn run(mut self) {
        let mut mine: Vec<String> = Vec::new();
        let (mut after, mut keys) = (0, 0);
        while !self.stop.load(Relaxed) {
            match self.draws.below(20) {
                kind @ 0..10 => {
                    let device_id = self.somebody();
                    let (port_no, minutes) = (self.draws.within(1, 2), self.draws.within(1, 2));
                    let order_no = if kind < 5 {
                        self.client.charge(&device_id, port_no, minutes)
                    } else {
                        keys += 1;
                        let key = format!("party-{}-{keys}", self.number);
                        self.charge_once(&device_id, &key, &charge_of(port_no, minutes))
                    };
                    if let Some(order_no) = order_no {
                        self.told.lock().unwrap().orders.insert(order_no.clone(), (device_id, port_no));
                        mine.push(order_no);
                    }
                }
                kind @ 10..16 => {
                    let back = usize::try_from(self.draws.below(mine.len().min(8) as u64)).unwrap();
                    if let Some(order_no) = mine.len().checked_sub(1 + back).and_then(|at| mine.get(at)) {
                        let what = if kind < 12 { "cancel" } else { "stop" };
                        let answer = self.client.post(&format!("/orders/{order_no}/{what}"), &json!({}));
                        if let Some((status, answer)) = answer {
                            assert!(matches!(status, 202 | 409 | 503), "{order_no}: {status} {answer}");
                        }
                    }
                }
                16 => self.command(),
                _ => after = self.read_events(after),
            }
            pause(2);
        }
    }

    fn somebody(&mut self) -> String {
        self.devices[usize::try_from(self.draws.below(self.devices.len() as u64)).unwrap()].clone()
    }

    /// Asks until there is an answer that says what became of it.
    fn charge_once(&self, device_id: &str, key: &str, body: &Value) -> Option<String> {
        let path = format!("/devices/{device_id}/charge");
        self.told.lock().unwrap().keys.push(key.to_owned());
        while !self.stop.load(Relaxed) {
            match self.client.post_once(&path, key, body) {
                None | Some((503, _)) => {}
                Some((409, answer)) if answer["error"] == "IDEMPOTENCY_IN_PROGRESS" => {}
                Some(answer) => {
                    let order_no = order_no(answer)?;
                    let once = Once { path, body: body.clone(), order_no: order_no.clone() };
                    self.told.lock().unwrap().once.insert(key.to_owned(), once);
                    return Some(order_no);
                }
            }
            pause(50);
        }
        None
    }

    /// A command that is no start and no stop; simulated gateways of BKV know none that means nothing to charges.
    fn command(&mut self) {
        let device_id = self.somebody();
        let body = json!({"command": "locate", "seconds": 1, "valid_seconds": 30});
        match self.client.post(&format!("/devices/{device_id}/commands"), &body) {
            Some((202, answer)) => {
                let id = answer["data"]["command_id"].as_u64().unwrap();
                self.told.lock().unwrap().commands.insert(id, device_id);
            }
            None | Some((400 | 404 | 503, _)) => {}
            Some((status, answer)) => panic!("{status} {answer}"),
        }
    }

    /// Gives the position of the last event shown.
    fn read_events(&self, mut after: i64) -> i64 {
        let Some((200, answer)) = self.client.get(&format!("/events?after={after}&limit=500")) else { return after };
        for event in answer["data"]["items"].as_array().unwrap() {
            let pos = event["pos"].as_i64().unwrap();
            assert_eq!(pos, after + 1, "the log has a gap");
            after = pos;
            let shown = self.told.lock().unwrap().events.insert(pos, event.clone());
            assert!(shown.as_ref().is_none_or(|shown| shown == event), "{event}, and before {shown:?}");
        }
        after
    }
}

/// Every charge that was asked for with a key and answered is answered the same again.
pub(crate) fn answers_are_kept(client: &Client, told: &Told) {
    for (key, once) in &told.once {
        let (status, answer) = client.post_once(&once.path, key, &once.body).expect("the gateways run");
        assert_eq!((status, &answer["data"]["order_no"]), (202, &json!(once.order_no)), "{key}: {answer}");
    }
}
