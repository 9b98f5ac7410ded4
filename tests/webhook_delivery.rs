//! Webhooks are delivered at least once and in order per key, whatever a receiver does, and one receiver never harms another.
//!
//! Real HTTP on loopback against receivers that answer as each test tells them; the store is an in-memory log that keeps what
//! the contract says about cursors, parked rows and dead letters. Each test waits for a state with a deadline and then checks
//! what was received and stored; none measures time. Signatures are computed here again from their definition.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use chargegate::{
    model::{Card, CardNo, CardTransaction, CommandState, DeviceId, Firmware, Order, OrderNo, OtaTask, ServerId},
    store::{
        ApiKeyRecord, CardFilter, CommandLogRow, CommandRecord, DeliveryLogRow, DeliveryOutcome, DeliveryUpdate,
        DeviceFilter, DeviceRecord, Disabled, Earlier, EndpointProgress, EndpointRecord, EndpointStanding, EventRecord,
        FirmwareKey, FrameFilter, FrameRecord, Idempotency, InstanceRecord, Job, Latest, OrderFilter, OrderHistory,
        OtaFilter, Outcome, Page, ParamRecord, ParkedDelivery, PortRecord, QueueCounts, QueueEntry, QueueFilter,
        Queued, ReadCall, Reader, Reply, Store, StoreError, StoreHealth,
    },
    webhook::{
        BreakerSettings, BreakerState, Delivering, Endpoint, Pusher, Settings, Stopped, TEST_EVENT, TrialRefused, Tried,
    },
};
use hmac::{Hmac, Mac as _};
use parking_lot::{Condvar, Mutex};
use sha2::{Digest as _, Sha256};

/// Far beyond what any condition needs on a loaded machine.
const DEADLINE: Duration = Duration::from_secs(30);
/// A retry delay no test lives to see.
const NEVER: Duration = Duration::from_secs(3_000);
/// Of the fake log.
const FIRST_POS: i64 = 3;

/// A value and a way to wait for what becomes of it.
#[derive(Default)]
struct Watched<T> {
    value: Mutex<T>,
    changed: Condvar,
}

impl<T> Watched<T> {
    fn change<R>(&self, change: impl FnOnce(&mut T) -> R) -> R {
        let result = change(&mut self.value.lock());
        self.changed.notify_all();
        result
    }

    #[track_caller]
    fn wait(&self, what: &str, mut met: impl FnMut(&T) -> bool) {
        let mut value = self.value.lock();
        let waited = self.changed.wait_while_for(&mut value, |value| !met(value), DEADLINE);
        assert!(!waited.timed_out(), "waited in vain until {what}");
    }
}

/// Waits for what nobody announces.
#[track_caller]
fn eventually(what: &str, mut met: impl FnMut() -> bool) {
    let (never, pause) = (Watched::<()>::default(), Duration::from_millis(5));
    for _ in 0..DEADLINE.as_millis() / pause.as_millis() {
        if met() {
            return;
        }
        never.changed.wait_for(&mut never.value.lock(), pause);
    }
    panic!("waited in vain until {what}");
}

// The store

#[derive(Default)]
struct FakeStore {
    rows: Arc<Watched<Rows>>,
    /// The queue is full: jobs and queries come back.
    full: AtomicBool,
    /// After so many queries more, they wait until they are let go.
    held_after: Mutex<Option<usize>>,
    held: Mutex<Vec<ReadCall>>,
    /// Commits fail.
    failing: AtomicBool,
    health: StoreHealth,
}

#[derive(Default)]
struct Rows {
    log: Vec<EventRecord>,
    cursors: HashMap<String, i64>,
    parked: BTreeMap<(String, i64), ParkedDelivery>,
    dead: BTreeMap<(String, i64), ParkedDelivery>,
    disabled: HashMap<String, Disabled>,
    revisions: HashMap<String, i64>,
    /// The log of deliveries.
    attempts: Vec<DeliveryLogRow>,
    /// Keys of events that were read from the log.
    read: BTreeSet<String>,
}

impl Rows {
    fn cursor(&self, endpoint: &str) -> Option<i64> {
        self.cursors.get(endpoint).copied()
    }

    fn apply(&mut self, update: DeliveryUpdate) {
        match update {
            DeliveryUpdate::Cursor { endpoint, pos } => drop(self.cursors.insert(endpoint, pos)),
            DeliveryUpdate::Park(row) => drop(self.parked.insert((row.endpoint.clone(), row.pos), row)),
            DeliveryUpdate::Unpark { endpoint, pos } => {
                assert!(self.parked.remove(&(endpoint, pos)).is_some(), "{pos} was not parked");
            }
            DeliveryUpdate::Dead(row) => {
                self.parked.remove(&(row.endpoint.clone(), row.pos));
                self.dead.insert((row.endpoint.clone(), row.pos), row);
            }
            DeliveryUpdate::Disable { endpoint, reason, at } => {
                self.disabled.entry(endpoint).or_insert(Disabled { at, reason });
            }
        }
    }

    /// Parks events of an endpoint as a redrive and a redelivery do.
    fn park_again(&mut self, endpoint: &str, positions: &[i64]) {
        for &pos in positions {
            let at = (endpoint.to_owned(), pos);
            let event = self.log.iter().find(|event| event.pos == pos).unwrap();
            self.dead.remove(&at);
            self.parked.insert(
                at,
                ParkedDelivery {
                    endpoint: endpoint.to_owned(),
                    pos,
                    key: event.key.clone(),
                    attempts: 0,
                    next_at: 0,
                    reason: "redrive".to_owned(),
                },
            );
        }
        *self.revisions.entry(endpoint.to_owned()).or_default() += 1;
    }

    /// What the log of deliveries has of an event.
    fn attempts_of(&self, pos: i64) -> Vec<(&str, u8, Option<u16>, &str)> {
        let of_event = self.attempts.iter().filter(|row| row.pos == pos);
        of_event.map(|row| (&*row.endpoint, row.attempt, row.status, row.outcome.as_str())).collect()
    }

    fn with_events(
        &self,
        rows: &BTreeMap<(String, i64), ParkedDelivery>,
        endpoint: &str,
        limit: u32,
    ) -> Vec<(ParkedDelivery, EventRecord)> {
        rows.values()
            .filter(|row| row.endpoint == endpoint)
            .filter_map(|row| Some((row.clone(), self.log.iter().find(|event| event.pos == row.pos)?.clone())))
            .take(limit as usize)
            .collect()
    }
}

impl FakeStore {
    /// Appends events (type, key) and gives the last position.
    fn append(&self, events: &[(&str, &str)]) -> i64 {
        self.rows.change(|rows| {
            for (event_type, key) in events {
                // Positions rise, with gaps.
                let pos = rows.log.last().map_or(FIRST_POS, |event| event.pos + 2);
                let sequence_no = 1 + rows.log.iter().filter(|event| event.key == *key).count() as u32;
                rows.log.push(EventRecord {
                    pos,
                    event_id: format!("0190-{pos}"),
                    event_type: (*event_type).to_owned(),
                    key: (*key).to_owned(),
                    device_id: Some("40aace04".to_owned()),
                    order_no: Some((*key).to_owned()),
                    sequence_no,
                    at: 1_709_210_096_007,
                    data: r#"{"energy_wh":1500,"名":"桩"}"#.to_owned(),
                });
            }
            rows.log.last().map_or(0, |event| event.pos)
        })
    }
}

impl Store for FakeStore {
    fn submit(&self, job: Job, reply: Reply) -> Result<(), (Job, Reply)> {
        if self.full.load(Ordering::SeqCst) {
            return Err((job, reply));
        }
        let Job::Delivery(updates) = job else { panic!("webhooks submit deliveries only") };
        let Reply::Call(reply) = reply else { panic!("progress without a reply") };
        if self.failing.load(Ordering::SeqCst) {
            let error = StoreError::Unavailable("told to fail".to_owned());
            reply(Outcome::Failed { device_id: None, key: None, ticket: None, error });
        } else {
            self.rows.change(|rows| updates.into_iter().for_each(|update| rows.apply(update)));
            reply(Outcome::Done);
        }
        Ok(())
    }

    fn coalesce(&self, _: &mut Vec<Latest>) -> bool {
        false
    }

    fn append(&self, _: Vec<CommandLogRow>) {}

    fn append_deliveries(&self, attempts: Vec<DeliveryLogRow>) {
        self.rows.change(|rows| rows.attempts.extend(attempts));
    }

    fn read(&self, call: ReadCall) -> Result<(), ReadCall> {
        if self.full.load(Ordering::SeqCst) {
            return Err(call);
        }
        if let Some(left) = self.held_after.lock().as_mut() {
            if *left == 0 {
                self.held.lock().push(call);
                return Ok(());
            }
            *left -= 1;
        }
        let mut reader = FakeReader(Arc::clone(&self.rows));
        call(Ok(&mut reader));
        Ok(())
    }

    fn health(&self) -> &StoreHealth {
        &self.health
    }

    fn close(&self, _: Duration) {}
}

struct FakeReader(Arc<Watched<Rows>>);

fn absent<T>() -> Result<T, StoreError> {
    Err(StoreError::Unavailable("not in this store".to_owned()))
}

impl Reader for FakeReader {
    fn order(&mut self, _: OrderNo) -> Result<Option<Order>, StoreError> {
        absent()
    }
    fn orders(&mut self, _: &OrderFilter, _: u32, _: u32) -> Result<Page<Order>, StoreError> {
        absent()
    }
    fn order_events(&mut self, _: OrderNo) -> Result<Vec<EventRecord>, StoreError> {
        absent()
    }
    fn api_keys(&mut self) -> Result<Vec<ApiKeyRecord>, StoreError> {
        absent()
    }
    fn webhook_endpoints(&mut self) -> Result<Vec<EndpointRecord>, StoreError> {
        absent()
    }
    fn managed_revision(&mut self) -> Result<i64, StoreError> {
        absent()
    }
    fn order_history(&mut self, _: &Order, _: (i64, i64)) -> Result<OrderHistory, StoreError> {
        absent()
    }
    fn frames(&mut self, _: &FrameFilter) -> Result<Vec<FrameRecord>, StoreError> {
        absent()
    }
    fn device(&mut self, _: DeviceId) -> Result<Option<DeviceRecord>, StoreError> {
        absent()
    }
    fn ports(&mut self, _: DeviceId) -> Result<Vec<PortRecord>, StoreError> {
        absent()
    }
    fn active_orders(&mut self, _: DeviceId) -> Result<Vec<Order>, StoreError> {
        absent()
    }
    fn devices(&mut self, _: &DeviceFilter, _: u32, _: u32) -> Result<Page<DeviceRecord>, StoreError> {
        absent()
    }
    fn earlier(&mut self, _: &Idempotency) -> Result<Option<Earlier>, StoreError> {
        absent()
    }
    fn card(&mut self, _: &CardNo) -> Result<Option<Card>, StoreError> {
        absent()
    }
    fn cards(&mut self, _: &CardFilter, _: u32, _: u32) -> Result<Page<Card>, StoreError> {
        absent()
    }
    fn card_transactions(&mut self, _: &CardNo, _: u32, _: u32) -> Result<Page<CardTransaction>, StoreError> {
        absent()
    }
    fn command(&mut self, _: DeviceId, _: i64) -> Result<Option<CommandRecord>, StoreError> {
        absent()
    }
    fn commands(
        &mut self,
        _: DeviceId,
        _: Option<CommandState>,
        _: u32,
        _: u32,
    ) -> Result<Page<CommandRecord>, StoreError> {
        absent()
    }
    fn params(&mut self, _: DeviceId) -> Result<Vec<ParamRecord>, StoreError> {
        absent()
    }
    fn network(&mut self, _: DeviceId) -> Result<Option<chargegate::gateway::network::NetworkList>, StoreError> {
        absent()
    }
    fn instances(&mut self) -> Result<Vec<InstanceRecord>, StoreError> {
        absent()
    }
    fn queue(&mut self, _: &QueueFilter, _: u32, _: u32) -> Result<Page<QueueEntry>, StoreError> {
        absent()
    }
    fn queue_counts(&mut self) -> Result<QueueCounts, StoreError> {
        absent()
    }
    fn queued(&mut self, _: &[i64]) -> Result<Vec<Queued>, StoreError> {
        absent()
    }
    fn devices_with_queued_commands(&mut self, _: Option<&ServerId>, _: u32) -> Result<Vec<DeviceId>, StoreError> {
        absent()
    }
    fn firmware(&mut self, _: FirmwareKey) -> Result<Option<Firmware>, StoreError> {
        absent()
    }
    fn firmware_list(&mut self, _: Option<u8>, _: u32, _: u32) -> Result<Page<Firmware>, StoreError> {
        absent()
    }
    fn ota_task(&mut self, _: i64) -> Result<Option<OtaTask>, StoreError> {
        absent()
    }
    fn ota_tasks(&mut self, _: &OtaFilter, _: u32, _: u32) -> Result<Page<OtaTask>, StoreError> {
        absent()
    }
    fn open_ota_task(&mut self, _: DeviceId) -> Result<Option<OtaTask>, StoreError> {
        absent()
    }
    fn devices_with_open_ota(&mut self, _: Option<DeviceId>, _: u32) -> Result<Vec<DeviceId>, StoreError> {
        absent()
    }

    fn events_after(&mut self, pos: i64, limit: u32) -> Result<Vec<EventRecord>, StoreError> {
        self.0.change(|rows| {
            let events: Vec<_> =
                rows.log.iter().filter(|event| event.pos > pos).take(limit as usize).cloned().collect();
            rows.read.extend(events.iter().map(|event| event.key.clone()));
            Ok(events)
        })
    }

    fn pos_at(&mut self, _: i64) -> Result<i64, StoreError> {
        absent()
    }
    fn deliveries(
        &mut self,
        _: &str,
        _: Option<DeliveryOutcome>,
        _: u32,
        _: u32,
    ) -> Result<Page<DeliveryLogRow>, StoreError> {
        absent()
    }
    fn deliveries_of_event(&mut self, _: i64, _: u32, _: u32) -> Result<Page<DeliveryLogRow>, StoreError> {
        absent()
    }
    fn dead_letters(&mut self, _: &str, _: u32, _: u32) -> Result<Page<(ParkedDelivery, EventRecord)>, StoreError> {
        absent()
    }

    fn endpoint(&mut self, endpoint: &str) -> Result<Option<EndpointProgress>, StoreError> {
        let rows = self.0.value.lock();
        Ok(rows.cursor(endpoint).map(|cursor| EndpointProgress {
            cursor,
            revision: rows.revisions.get(endpoint).copied().unwrap_or(0),
            disabled: rows.disabled.get(endpoint).cloned(),
        }))
    }

    fn standings(&mut self) -> Result<Vec<EndpointStanding>, StoreError> {
        let names: Vec<String> = self.0.value.lock().cursors.keys().cloned().collect();
        let mut standings = Vec::new();
        for endpoint in names {
            let progress = self.endpoint(&endpoint)?.expect("it has a cursor");
            let rows = self.0.value.lock();
            let count = |rows: &BTreeMap<(String, i64), ParkedDelivery>| {
                rows.keys().filter(|(name, _)| *name == endpoint).count() as u64
            };
            let (parked, dead) = (count(&rows.parked), count(&rows.dead));
            drop(rows);
            standings.push(EndpointStanding { endpoint, progress, owner: None, parked, dead });
        }
        Ok(standings)
    }

    fn parked(&mut self, endpoint: &str, limit: u32) -> Result<Vec<(ParkedDelivery, EventRecord)>, StoreError> {
        let rows = self.0.value.lock();
        Ok(rows.with_events(&rows.parked, endpoint, limit))
    }

    fn last_pos(&mut self) -> Result<i64, StoreError> {
        Ok(self.0.value.lock().log.last().map_or(0, |event| event.pos))
    }
}

// The receiver

#[derive(Clone, Debug)]
struct Request {
    line: String,
    headers: HashMap<String, String>,
    body: Vec<u8>,
}

impl Request {
    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }

    fn event_id(&self) -> &str {
        self.header("webhook-id")
    }

    fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    fn key(&self) -> String {
        self.json()["order_no"].as_str().unwrap().to_owned()
    }

    fn sequence_no(&self) -> u64 {
        self.json()["sequence_no"].as_u64().unwrap()
    }
}

enum Answer {
    Status(u16),
    With(u16, String),
    /// Byte for byte.
    Raw(&'static str),
    /// Closes the connection instead.
    Close,
    /// Answers 200 when the gate opens.
    Wait(Arc<Watched<bool>>),
}

type Script = dyn Fn(&Request) -> Answer + Send + Sync;

struct Receiver {
    addr: SocketAddr,
    got: Arc<Watched<Vec<Request>>>,
    connections: Arc<AtomicUsize>,
}

impl Receiver {
    fn new(script: impl Fn(&Request) -> Answer + Send + Sync + 'static) -> Self {
        Self::on(TcpListener::bind("127.0.0.1:0").unwrap(), script)
    }

    fn on(listener: TcpListener, script: impl Fn(&Request) -> Answer + Send + Sync + 'static) -> Self {
        let addr = listener.local_addr().unwrap();
        let (got, connections) = (Arc::new(Watched::default()), Arc::new(AtomicUsize::new(0)));
        let (script, gotten, opened): (Arc<Script>, _, _) =
            (Arc::new(script), Arc::clone(&got), Arc::clone(&connections));
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                opened.fetch_add(1, Ordering::SeqCst);
                let (script, got) = (Arc::clone(&script), Arc::clone(&gotten));
                thread::spawn(move || serve(stream, &*script, &got));
            }
        });
        Self { addr, got, connections }
    }

    fn endpoint(&self, name: &str) -> Endpoint {
        Endpoint {
            name: name.to_owned(),
            url: format!("http://{}/hook", self.addr),
            secrets: vec!["text secret".to_owned()],
            api_key: None,
            events: vec!["*".to_owned()],
        }
    }

    #[track_caller]
    fn wait(&self, what: &str, met: impl FnMut(&Vec<Request>) -> bool) {
        self.got.wait(what, met);
    }

    fn requests(&self) -> Vec<Request> {
        self.got.value.lock().clone()
    }
}

fn serve(stream: TcpStream, script: &Script, got: &Watched<Vec<Request>>) {
    let mut writer = stream.try_clone().unwrap();
    let mut reader = BufReader::new(stream);
    while let Some(request) = read_request(&mut reader) {
        let answer = script(&request);
        got.change(|got| got.push(request));
        let (status, headers) = match answer {
            Answer::Status(status) => (status, String::new()),
            Answer::With(status, headers) => (status, headers),
            Answer::Raw(answer) => {
                if writer.write_all(answer.as_bytes()).is_err() {
                    return;
                }
                continue;
            }
            Answer::Close => return,
            Answer::Wait(gate) => {
                gate.wait("the gate opens", |open| *open);
                (200, String::new())
            }
        };
        let head = format!("HTTP/1.1 {status} Said\r\ncontent-length: 2\r\n{headers}\r\nok");
        if writer.write_all(head.as_bytes()).is_err() {
            return;
        }
    }
}

fn read_request(reader: &mut BufReader<TcpStream>) -> Option<Request> {
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).ok()? == 0 {
            return None;
        }
        match line.trim_end() {
            "" => break,
            line => lines.push(line.to_owned()),
        }
    }
    let mut lines = lines.into_iter();
    let line = lines.next()?;
    let headers: HashMap<_, _> = lines
        .filter_map(|line| line.split_once(':').map(|(name, value)| (name.to_lowercase(), value.trim().to_owned())))
        .collect();
    let mut body = vec![0; headers.get("content-length")?.parse().ok()?];
    reader.read_exact(&mut body).ok()?;
    Some(Request { line, headers, body })
}

// Scenes

fn settings() -> Settings {
    Settings {
        retry_delays: vec![Duration::from_millis(5); 3],
        allow_private_targets: true,
        flush_every: Duration::from_millis(5),
        ..Settings::default()
    }
}

/// A store with a cursor at its beginning for each endpoint, so that nothing appended before the start is passed over.
fn store(endpoints: &[&str]) -> Arc<FakeStore> {
    let store = Arc::new(FakeStore::default());
    store.rows.change(|rows| rows.cursors.extend(endpoints.iter().map(|&name| (name.to_owned(), 0))));
    store
}

fn start(store: &Arc<FakeStore>, endpoints: Vec<Endpoint>, settings: Settings) -> Pusher {
    Pusher::start(endpoints, Arc::clone(store) as Arc<dyn Store>, settings).unwrap()
}

fn keyed(keys: &[&'static str], each: usize) -> Vec<(&'static str, &'static str)> {
    (0..each).flat_map(|_| keys.iter().map(|&key| ("order.created", key))).collect()
}

/// Keys and sequence numbers as received.
fn sequences(requests: &[Request]) -> BTreeMap<String, Vec<u64>> {
    let mut sequences = BTreeMap::<String, Vec<u64>>::new();
    for request in requests {
        sequences.entry(request.key()).or_default().push(request.sequence_no());
    }
    sequences
}

fn hex_hmac(secret: &[u8], text: &[u8]) -> String {
    let mac = Hmac::<Sha256>::new_from_slice(secret).unwrap().chain_update(text);
    mac.finalize().into_bytes().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn both_signatures_verify_over_what_was_received() {
    let receiver = Receiver::new(|_| Answer::Status(204));
    let store = store(&["erp"]);
    let endpoint = Endpoint {
        url: format!("http://{}/in/hook?site=7&x=%20y", receiver.addr),
        secrets: vec!["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw".to_owned(), "the old one".to_owned()],
        api_key: Some("key-1".to_owned()),
        ..receiver.endpoint("erp")
    };
    let pusher = start(&store, vec![endpoint], settings());
    let pos = store.append(&[("order.settled", "THD1")]);
    pusher.events_committed(pos);
    receiver.wait("one request", |got| got.len() == 1);

    let request = &receiver.requests()[0];
    assert_eq!(request.line, "POST /in/hook?site=7&x=%20y HTTP/1.1");
    assert_eq!(request.header("content-type"), "application/json");
    assert_eq!(request.header("user-agent"), concat!("chargegate/", env!("CARGO_PKG_VERSION")));
    assert_eq!(request.header("x-api-key"), "key-1");

    let (timestamp, nonce) = (request.header("x-timestamp"), request.header("x-nonce"));
    let digest: String = Sha256::digest(&request.body).iter().map(|byte| format!("{byte:02x}")).collect();
    let canonical = format!("POST\n/in/hook?site=7&x=%20y\n{timestamp}\n{nonce}\n{digest}");
    assert_eq!(
        request.header("x-signature"),
        hex_hmac(b"whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", canonical.as_bytes())
    );

    assert_eq!(request.header("webhook-timestamp"), timestamp);
    let signed = [request.event_id().as_bytes(), b".", timestamp.as_bytes(), b".", &request.body].concat();
    let standard = |key: &[u8]| {
        let mac = Hmac::<Sha256>::new_from_slice(key).unwrap().chain_update(&signed);
        format!("v1,{}", STANDARD.encode(mac.finalize().into_bytes()))
    };
    let new = STANDARD.decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
    assert_eq!(request.header("webhook-signature"), format!("{} {}", standard(&new), standard(b"the old one")));

    assert_eq!(
        request.json(),
        serde_json::json!({
            "event_id": format!("0190-{pos}"),
            "event_type": "order.settled",
            "device_phy_id": "40aace04",
            "order_no": "THD1",
            "sequence_no": 1,
            "pos": pos,
            "timestamp": "2024-02-29T12:34:56.007Z",
            "nonce": nonce,
            "data": { "energy_wh": 1500, "名": "桩" },
        })
    );
}

#[test]
fn a_connection_is_kept_for_as_long_as_its_answers_end() {
    // In order, because they are of one key; the last one says itself that it closes.
    let answers = Mutex::new(
        [
            "HTTP/1.1 204 Said\r\n\r\n",
            "HTTP/1.1 200 Said\r\nContent-Length: 5\r\n\r\ntaken",
            "HTTP/1.1 200 Said\r\nTransfer-Encoding: chunked\r\n\r\n5\r\ntaken\r\n0\r\nX-Sum: 1\r\n\r\n",
            "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 Said\r\nContent-Length: 0\r\n\r\n",
            "HTTP/1.1 200 Said\r\nConnection: close\r\nContent-Length: 0\r\n\r\n",
        ]
        .into_iter(),
    );
    let receiver = Receiver::new(move |_| Answer::Raw(answers.lock().next().unwrap_or("HTTP/1.1 200 Said\r\n\r\n")));
    let store = store(&["erp"]);
    let pusher = start(&store, vec![receiver.endpoint("erp")], settings());
    let last = store.append(&keyed(&["KEY"], 6));
    pusher.events_committed(last);
    receiver.wait("all six", |got| got.len() == 6);
    store.rows.wait("all are stored as delivered", |rows| rows.cursor("erp") == Some(last));
    assert_eq!(receiver.connections.load(Ordering::SeqCst), 2, "the sixth came on a second connection");
    let sent: Vec<_> = receiver.requests().iter().map(|request| request.sequence_no()).collect();
    assert_eq!(sent, [1, 2, 3, 4, 5, 6]);
}

#[test]
fn what_is_no_answer_in_http_fails_and_is_tried_again() {
    let nonsense = Mutex::new(["SSH-2.0-OpenSSH_9.6\r\n\r\n", "HTTP/1.1 2"].into_iter());
    let receiver = Receiver::new(move |_| nonsense.lock().next().map_or(Answer::Status(200), Answer::Raw));
    let store = store(&["erp"]);
    let settings = Settings { retry_delays: vec![Duration::from_millis(1); 3], ..settings() };
    let pusher =
        start(&store, vec![receiver.endpoint("erp")], Settings { timeout: Duration::from_millis(500), ..settings });
    let last = store.append(&keyed(&["KEY"], 1));
    pusher.events_committed(last);
    store.rows.wait("it is stored as delivered", |rows| rows.cursor("erp") == Some(last) && rows.parked.is_empty());
    let failures: HashMap<_, _> = pusher.counters()[0].failures().collect();
    assert_eq!((failures["protocol"], failures["timeout"]), (1, 1));
}

#[test]
fn a_url_with_a_user_is_delivered_to_in_order_too() {
    let receiver = Receiver::new(|_| Answer::Status(200));
    let store = store(&["erp"]);
    let url = format!("http://gateway:word@{}/hook", receiver.addr);
    let pusher = start(&store, vec![Endpoint { url, ..receiver.endpoint("erp") }], settings());
    let last = store.append(&keyed(&["KEY"], 3));
    pusher.events_committed(last);
    receiver.wait("all three", |got| got.len() == 3);
    let requests = receiver.requests();
    for (n, request) in (1..).zip(&requests) {
        assert_eq!((request.sequence_no(), request.line.as_str()), (n, "POST /hook HTTP/1.1"));
        assert_eq!(request.header("authorization"), format!("Basic {}", STANDARD.encode("gateway:word")));
    }
}

#[test]
fn events_of_a_key_arrive_in_order_under_retries() {
    let failures = Mutex::new(HashMap::<String, u32>::new());
    let receiver = Receiver::new(move |request| {
        let mut failures = failures.lock();
        let seen = failures.entry(request.event_id().to_owned()).or_default();
        *seen += 1;
        // Every third event fails twice, in different ways.
        match (request.sequence_no() % 3, *seen) {
            (0, 1) => Answer::Status(500),
            (0, 2) => Answer::Close,
            _ => Answer::Status(200),
        }
    });
    let store = store(&["erp"]);
    let pusher = start(&store, vec![receiver.endpoint("erp")], settings());
    let last = store.append(&keyed(&["A", "B", "C", "D"], 20));
    pusher.events_committed(last);
    store.rows.wait("all is delivered", |rows| rows.cursor("erp") == Some(last) && rows.parked.is_empty());

    for (key, received) in sequences(&receiver.requests()) {
        let expected: Vec<u64> = (1..=20).flat_map(|seq| vec![seq; if seq % 3 == 0 { 3 } else { 1 }]).collect();
        assert_eq!(received, expected, "{key}");
    }
    assert!(store.rows.value.lock().dead.is_empty());

    // An attempt differs from the one before in its nonce and signatures only.
    let requests = receiver.requests();
    let attempts: Vec<_> =
        requests.iter().filter(|request| request.key() == "A" && request.sequence_no() == 3).collect();
    let (first, second) = (attempts[0], attempts[1]);
    assert_eq!(first.event_id(), second.event_id());
    assert_ne!(first.header("x-nonce"), second.header("x-nonce"));
    let body = String::from_utf8(first.body.clone()).unwrap();
    assert_eq!(body.replace(first.header("x-nonce"), second.header("x-nonce")).as_bytes(), second.body);
}

#[test]
fn a_parked_key_blocks_only_itself() {
    let receiver = Receiver::new(|request| Answer::Status(if request.key() == "BAD" { 503 } else { 200 }));
    let store = store(&["erp"]);
    let pusher = start(&store, vec![receiver.endpoint("erp")], Settings { retry_delays: vec![NEVER], ..settings() });
    let last = store.append(&keyed(&["BAD", "A", "B"], 30));
    pusher.events_committed(last);
    store.rows.wait("the others are delivered", |rows| rows.cursor("erp") == Some(last));

    let received = sequences(&receiver.requests());
    assert_eq!(received["BAD"], [1]);
    assert_eq!((received["A"].len(), received["B"].len()), (30, 30));
    let rows = store.rows.value.lock();
    let attempts: Vec<_> =
        rows.parked.values().map(|row| (row.key.as_str(), row.attempts, row.reason.as_str())).collect();
    assert_eq!(attempts[0], ("BAD", 1, "http_503"));
    assert_eq!(attempts[1..], vec![("BAD", 0, "behind"); 29]);
}

#[test]
fn a_hung_endpoint_delays_no_other() {
    let gate = Arc::new(Watched::default());
    let hold = Arc::clone(&gate);
    let hung = Receiver::new(move |_| Answer::Wait(Arc::clone(&hold)));
    let sound: Vec<_> = (0..9).map(|_| Receiver::new(|_| Answer::Status(200))).collect();
    let names: Vec<String> = (0..9).map(|number| format!("sound-{number}")).collect();
    let store = store(&names.iter().map(String::as_str).chain(["hung"]).collect::<Vec<_>>());
    let mut endpoints: Vec<_> = sound.iter().zip(&names).map(|(receiver, name)| receiver.endpoint(name)).collect();
    endpoints.push(hung.endpoint("hung"));
    let pusher = start(&store, endpoints, Settings { timeout: NEVER, undone_max: 40, ..settings() });
    let keys: Vec<&'static str> = (0..50).map(|number| &*format!("K{number}").leak()).collect();
    let mut last = 0;
    for _ in 0..10 {
        last = store.append(&keyed(&keys, 1));
        pusher.events_committed(last);
    }
    store.rows.wait("the sound ones are done", |rows| names.iter().all(|name| rows.cursor(name) == Some(last)));
    hung.wait("as many attempts as it may have", |got| got.len() == 32);
    assert!(store.rows.value.lock().cursor("hung") < Some(FIRST_POS));

    // Nothing of it was lost either: it takes up where it hung.
    gate.change(|open| *open = true);
    store.rows.wait("the hung one is done", |rows| rows.cursor("hung") == Some(last));
    assert_eq!(hung.requests().len(), 500);
}

#[test]
fn status_410_disables_for_good_until_somebody_enables_and_loses_nothing() {
    let gone = Arc::new(AtomicBool::new(true));
    let answer = Arc::clone(&gone);
    let receiver = Receiver::new(move |_| Answer::Status(if answer.load(Ordering::SeqCst) { 410 } else { 200 }));
    let other = Receiver::new(|_| Answer::Status(200));
    let store = store(&["erp", "other"]);
    let endpoints = vec![receiver.endpoint("erp"), other.endpoint("other")];
    let pusher = start(&store, endpoints.clone(), settings());
    let first = store.append(&keyed(&["A"], 1));
    pusher.events_committed(first);
    let disabled = |rows: &Rows| rows.disabled.get("erp").map(|disabled| disabled.reason.clone());
    store.rows.wait("the store knows", |rows| disabled(rows).as_deref() == Some("http_410"));

    let last = store.append(&keyed(&["A", "B"], 5));
    pusher.events_committed(last);
    store.rows.wait("the other goes on", |rows| rows.cursor("other") == Some(last));
    assert_eq!(receiver.requests().len(), 1);

    // The receiver is back, but nobody said so: neither a reload nor a restart is somebody.
    gone.store(false, Ordering::SeqCst);
    assert_eq!(pusher.reload(endpoints.clone(), DEADLINE).unwrap(), Stopped::default());
    assert_eq!(pusher.stop(DEADLINE).unflushed, 0);
    drop(pusher);
    let pusher = start(&store, endpoints, settings());
    let last = store.append(&keyed(&["B"], 1));
    pusher.events_committed(last);
    store.rows.wait("the other goes on", |rows| rows.cursor("other") == Some(last));
    eventually("it is known to be disabled", || pusher.counters()[0].disabled.load(Ordering::SeqCst));
    assert_eq!(receiver.requests().len(), 1);
    let mut reader = FakeReader(Arc::clone(&store.rows));
    let states = pusher.states(&mut reader).unwrap();
    assert_eq!((states[0].0.as_str(), states[0].1.state), ("erp", Delivering::Disabled));
    assert_eq!(states[0].1.disabled_reason.as_deref(), Some("http_410"));
    assert_eq!((states[1].1.state, states[1].1.backlog), (Delivering::Delivering, 0));

    store.rows.change(|rows| rows.disabled.clear());
    pusher.changed("erp");
    store.rows.wait("it goes on behind its cursor", |rows| rows.cursor("erp") == Some(last));
    assert_eq!(sequences(&receiver.requests())["A"], [1, 1, 2, 3, 4, 5, 6]);
    store.rows.wait("each attempt is logged", |rows| rows.attempts_of(first).len() == 3);
    let rows = store.rows.value.lock();
    let mut attempts = rows.attempts_of(first);
    attempts.retain(|attempt| attempt.0 == "erp");
    assert_eq!(attempts, [("erp", 1, Some(410), "retry"), ("erp", 1, Some(200), "delivered")]);
    assert!(rows.parked.is_empty() && rows.dead.is_empty());
}

#[test]
fn an_endpoint_enabled_without_its_backlog_goes_on_at_the_end() {
    let receiver = Receiver::new(|request| Answer::Status(if request.key() == "GONE" { 410 } else { 200 }));
    let store = store(&["erp"]);
    let pusher = start(&store, vec![receiver.endpoint("erp")], settings());
    pusher.events_committed(store.append(&keyed(&["GONE"], 1)));
    store.rows.wait("it is disabled", |rows| !rows.disabled.is_empty());
    let skipped = store.append(&keyed(&["A"], 5));
    pusher.events_committed(skipped);
    store.rows.change(|rows| {
        rows.disabled.clear();
        rows.cursors.insert("erp".to_owned(), skipped);
        rows.revisions.insert("erp".to_owned(), 1);
    });
    pusher.changed("erp");
    let last = store.append(&keyed(&["A"], 1));
    pusher.events_committed(last);
    store.rows.wait("it goes on", |rows| rows.cursor("erp") == Some(last));
    assert_eq!(sequences(&receiver.requests())["A"], [6]);
}

#[test]
fn what_comes_back_is_delivered_in_the_order_of_its_key() {
    let down = Arc::new(AtomicBool::new(true));
    let answer = Arc::clone(&down);
    let receiver = Receiver::new(move |request| {
        let status = match (request.key().as_str(), request.sequence_no()) {
            ("K", 1 | 2) if answer.load(Ordering::SeqCst) => 422,
            ("K", 3) if answer.load(Ordering::SeqCst) => 503,
            _ => 200,
        };
        Answer::Status(status)
    });
    let store = store(&["erp"]);
    let parking = Settings { retry_delays: vec![NEVER], ..settings() };
    let pusher = start(&store, vec![receiver.endpoint("erp")], parking);
    let last = store.append(&keyed(&["K", "OTHER"], 5));
    pusher.events_committed(last);
    store.rows.wait("two are dead, the third parks the rest", |rows| {
        rows.dead.len() == 2 && rows.parked.len() == 3 && rows.cursor("erp") == Some(last)
    });
    let dead: Vec<i64> = store.rows.value.lock().dead.values().map(|row| row.pos).collect();
    let delivered = |requests: &[Request]| sequences(requests)["OTHER"].clone();
    assert_eq!(delivered(&receiver.requests()), [1, 2, 3, 4, 5]);

    // The third is not due for long: what comes back goes in front of it, and does not push it.
    down.store(false, Ordering::SeqCst);
    store.rows.change(|rows| rows.park_again("erp", &dead));
    pusher.changed("erp");
    store.rows.wait("they are delivered", |rows| rows.parked.len() == 3 && rows.dead.is_empty());
    let third = store.rows.value.lock().parked.keys().next().unwrap().1;
    assert_eq!(sequences(&receiver.requests())["K"], [1, 2, 3, 1, 2]);
    // As if it were redelivered: it is parked already, and due when the operator says so.
    store.rows.change(|rows| rows.park_again("erp", &[third]));
    pusher.changed("erp");
    store.rows.wait("all are delivered", |rows| rows.parked.is_empty());
    assert_eq!(sequences(&receiver.requests())["K"], [1, 2, 3, 1, 2, 3, 4, 5]);
    assert_eq!(delivered(&receiver.requests()), [1, 2, 3, 4, 5], "nothing else came again");
    store.rows.wait("each attempt is logged", |rows| rows.attempts_of(third).len() == 2);
    let rows = store.rows.value.lock();
    assert_eq!(rows.attempts_of(third), [("erp", 1, Some(503), "retry"), ("erp", 1, Some(200), "delivered")]);
    assert_eq!(rows.attempts_of(dead[0]), [("erp", 1, Some(422), "dead"), ("erp", 1, Some(200), "delivered")]);
}

#[test]
fn a_change_made_elsewhere_is_found_without_a_word() {
    let receiver = Receiver::new(|_| Answer::Status(200));
    let store = store(&["erp"]);
    let pusher = start(&store, vec![receiver.endpoint("erp")], settings());
    let last = store.append(&keyed(&["A"], 3));
    pusher.events_committed(last);
    store.rows.wait("all are delivered", |rows| rows.cursor("erp") == Some(last));
    store.rows.change(|rows| rows.park_again("erp", &[FIRST_POS + 2]));
    store.rows.wait("one is delivered again", |rows| rows.parked.is_empty());
    assert_eq!(sequences(&receiver.requests())["A"], [1, 2, 3, 2]);
    store.rows.change(|rows| {
        let disabled = Disabled { at: 1, reason: "operator".to_owned() };
        rows.disabled.insert("erp".to_owned(), disabled);
    });
    eventually("it is disabled", || pusher.counters()[0].disabled.load(Ordering::SeqCst));
}

#[test]
fn a_test_event_is_signed_and_guarded_and_one_at_a_time() {
    let gate = Arc::new(Watched::default());
    let hold = Arc::clone(&gate);
    let receiver = Receiver::new(move |_| Answer::Wait(Arc::clone(&hold)));
    let refused = Endpoint { name: "private".to_owned(), ..receiver.endpoint("") };
    let store = store(&["erp", "private"]);
    let disabled = Disabled { at: 1, reason: "operator".to_owned() };
    store.rows.change(|rows| drop(rows.disabled.insert("erp".to_owned(), disabled)));
    let pusher = start(&store, vec![receiver.endpoint("erp")], settings());
    let tried = Arc::new(Watched::<Vec<Tried>>::default());
    let test = |pusher: &Pusher, name: &str, within| {
        let tried = Arc::clone(&tried);
        pusher.test(name, within, move |what| tried.change(|all| all.push(what)))
    };
    assert_eq!(test(&pusher, "other", DEADLINE), Err(TrialRefused::Unknown));
    assert_eq!(test(&pusher, "erp", DEADLINE), Ok(()));
    assert_eq!(test(&pusher, "erp", DEADLINE), Err(TrialRefused::Busy));
    receiver.wait("it is sent", |got| got.len() == 1);
    gate.change(|open| *open = true);
    tried.wait("it is answered", |all| all.len() == 1);
    let first = tried.value.lock()[0].clone();
    assert_eq!((first.delivered, first.status, first.reason), (true, Some(200), None));
    let sent = receiver.requests().remove(0);
    assert_eq!((sent.json()["event_type"].as_str(), sent.json()["pos"].as_i64()), (Some(TEST_EVENT), Some(0)));
    let id = sent.event_id().to_owned();
    let signed = [id.as_bytes(), b".", sent.header("webhook-timestamp").as_bytes(), b".", &sent.body].concat();
    let mac = Hmac::<Sha256>::new_from_slice(b"text secret").unwrap().chain_update(signed);
    let signature = format!("v1,{}", STANDARD.encode(mac.finalize().into_bytes()));
    assert_eq!(sent.header("webhook-signature"), signature);

    // Shorter than the time of an attempt, where who asks waits no longer.
    gate.change(|open| *open = false);
    assert_eq!(test(&pusher, "erp", Duration::from_millis(20)), Ok(()));
    tried.wait("it is given up", |all| all.len() == 2);
    let second = tried.value.lock()[1].clone();
    assert_eq!((second.delivered, second.status, second.reason.as_deref()), (false, None, Some("timeout")));
    gate.change(|open| *open = true);

    let guarded = start(&store, vec![refused], Settings { allow_private_targets: false, ..settings() });
    let connections = receiver.connections.load(Ordering::SeqCst);
    assert_eq!(test(&guarded, "private", DEADLINE), Ok(()));
    tried.wait("it is refused", |all| all.len() == 3);
    assert_eq!(tried.value.lock()[2].reason.as_deref(), Some("target_refused"));
    assert_eq!(receiver.connections.load(Ordering::SeqCst), connections);
    assert!(store.rows.value.lock().attempts.is_empty(), "no event of the log was sent");
}

#[test]
fn final_answers_go_to_the_dead_letters_at_once_and_others_after_all_retries() {
    let receiver = Receiver::new(|request| match (request.key().as_str(), request.sequence_no()) {
        ("FINAL", 1) => Answer::Status(422),
        ("OFTEN", 1) => Answer::Status(429),
        ("CLOSE", 1) => Answer::Close,
        ("MOVED", 1) => Answer::With(302, "location: http://127.0.0.1:1/\r\n".to_owned()),
        _ => Answer::Status(200),
    });
    let store = store(&["erp"]);
    let pusher = start(&store, vec![receiver.endpoint("erp")], settings());
    let last = store.append(&keyed(&["FINAL", "OFTEN", "CLOSE", "MOVED"], 2));
    pusher.events_committed(last);
    store.rows.wait("all have ended", |rows| {
        rows.cursor("erp") == Some(last) && rows.parked.is_empty() && rows.dead.len() == 4
    });
    let rows = store.rows.value.lock();
    let dead: Vec<_> = rows.dead.values().map(|row| (row.key.as_str(), row.attempts, row.reason.as_str())).collect();
    assert_eq!(
        dead,
        [("FINAL", 1, "http_422"), ("OFTEN", 4, "http_429"), ("CLOSE", 4, "closed"), ("MOVED", 4, "http_302")]
    );
    drop(rows);
    // One request per counted attempt, and the key's next event after the dead one.
    let received = sequences(&receiver.requests());
    assert_eq!(received["FINAL"], [1, 2]);
    for key in ["OFTEN", "MOVED"] {
        assert_eq!(received[key], [1, 1, 1, 1, 2], "{key}");
    }
    // A kept connection that is closed without an answer is no attempt: the same one goes on on a new connection.
    assert!((5..=9).contains(&received["CLOSE"].len()) && received["CLOSE"].is_sorted());
    let counters = &pusher.counters()[0];
    let failures: HashMap<_, _> = counters.failures().collect();
    assert_eq!((failures["http_4xx"], failures["http_3xx"], failures["closed"]), (5, 4, 4));
    assert_eq!((counters.dead.load(Ordering::SeqCst), counters.retried.load(Ordering::SeqCst)), (4, 9));
    assert_eq!(counters.delivered.load(Ordering::SeqCst), 4);
}

#[test]
fn retry_after_is_obeyed_within_its_bound() {
    let receiver = Receiver::new(|request| match request.key().as_str() {
        "SOON" => Answer::With(503, "retry-after: 600\r\n".to_owned()),
        "LATE" => Answer::With(429, "Retry-After: 999999999\r\n".to_owned()),
        _ => Answer::Status(200),
    });
    let store = store(&["erp"]);
    let pusher = start(&store, vec![receiver.endpoint("erp")], settings());
    let last = store.append(&keyed(&["SOON", "LATE"], 1));
    pusher.events_committed(last);
    store.rows.wait("both are parked", |rows| rows.parked.len() == 2);
    let rows = store.rows.value.lock();
    let asked = |key: &str| {
        let requests = receiver.requests();
        let sent = requests.iter().find(|request| request.key() == key).unwrap();
        let sent_ms = sent.header("x-timestamp").parse::<i64>().unwrap() * 1_000;
        rows.parked.values().find(|row| row.key == key).unwrap().next_at - sent_ms
    };
    assert!(asked("SOON") >= 600_000);
    // A bound of an hour, and a quarter of jitter; a minute for the answer.
    assert!((3_600_000..3_600_000 * 5 / 4 + 60_000).contains(&asked("LATE")));
}

#[test]
fn a_restart_goes_on_where_the_last_run_stopped() {
    let receiver = Receiver::new(|request| Answer::Status(if request.key() == "BAD" { 500 } else { 200 }));
    let store = store(&["erp"]);
    let parking = || Settings { retry_delays: vec![NEVER, NEVER], ..settings() };
    let pusher = start(&store, vec![receiver.endpoint("erp")], parking());
    let first = store.append(&keyed(&["A", "BAD", "B"], 10));
    pusher.events_committed(first);
    store.rows.wait("the first part is done", |rows| rows.cursor("erp") == Some(first));
    assert_eq!(pusher.stop(DEADLINE), Stopped::default());
    drop(pusher);

    // More than the tail of a fresh start: the log itself has to be read.
    let last = store.append(&keyed(&["A", "BAD", "B"], 200));
    // The parked ones are due now.
    store.rows.change(|rows| rows.parked.values_mut().for_each(|row| row.next_at = 0));
    let pusher = start(&store, vec![receiver.endpoint("erp")], parking());
    store.rows.wait("the second part is done", |rows| {
        rows.cursor("erp") == Some(last) && rows.parked.values().next().is_some_and(|row| row.attempts == 2)
    });
    let received = sequences(&receiver.requests());
    let once: Vec<u64> = (1..=210).collect();
    assert_eq!((&received["A"], &received["B"]), (&once, &once));
    assert_eq!(received["BAD"], [1, 1]);
    assert_eq!(store.rows.value.lock().parked.len(), 210);
    assert_eq!(pusher.counters()[0].cursor.load(Ordering::SeqCst), last);
}

#[test]
fn progress_that_was_not_stored_is_delivered_again_never_lost() {
    let receiver = Receiver::new(|_| Answer::Status(200));
    let store = store(&["erp"]);
    let pusher = start(&store, vec![receiver.endpoint("erp")], settings());
    store.failing.store(true, Ordering::SeqCst);
    let last = store.append(&keyed(&["A", "B"], 20));
    pusher.events_committed(last);
    let counters = pusher.counters();
    eventually("all are delivered", || counters[0].delivered.load(Ordering::SeqCst) == 40);
    eventually("none is under way", || counters[0].in_flight.load(Ordering::SeqCst) == 0);
    // The store stays down over the end of this run.
    assert_eq!(pusher.stop(Duration::ZERO), Stopped { unflushed: 1, ..Stopped::default() });
    assert_eq!(store.rows.value.lock().cursor("erp"), Some(0));

    store.failing.store(false, Ordering::SeqCst);
    let _pusher = start(&store, vec![receiver.endpoint("erp")], settings());
    store.rows.wait("the cursor is stored", |rows| rows.cursor("erp") == Some(last));
    let twice: Vec<u64> = (1..=20).chain(1..=20).collect();
    assert_eq!(sequences(&receiver.requests())["A"], twice);
}

#[test]
fn a_store_that_comes_back_gets_the_progress() {
    let receiver = Receiver::new(|_| Answer::Status(200));
    let store = store(&["erp"]);
    store.full.store(true, Ordering::SeqCst);
    let pusher = start(&store, vec![receiver.endpoint("erp")], settings());
    let first = store.append(&keyed(&["A"], 3));
    pusher.events_committed(first);
    store.full.store(false, Ordering::SeqCst);
    store.rows.wait("it began after all", |rows| rows.cursor("erp") == Some(first));
    store.failing.store(true, Ordering::SeqCst);
    let last = store.append(&keyed(&["A"], 3));
    pusher.events_committed(last);
    receiver.wait("delivery goes on", |got| got.len() == 6);
    store.failing.store(false, Ordering::SeqCst);
    store.rows.wait("progress is stored", |rows| rows.cursor("erp") == Some(last));
    assert_eq!(sequences(&receiver.requests())["A"], [1, 2, 3, 4, 5, 6]);
}

#[test]
fn a_new_endpoint_begins_at_the_end_of_the_log() {
    let receiver = Receiver::new(|_| Answer::Status(200));
    let store = store(&[]);
    let before = store.append(&keyed(&["OLD"], 5));
    let pusher = start(&store, vec![receiver.endpoint("erp")], settings());
    store.rows.wait("the cursor is stored at once", |rows| rows.cursor("erp") == Some(before));
    let last = store.append(&keyed(&["NEW"], 1));
    pusher.events_committed(last);
    store.rows.wait("the new event is delivered", |rows| rows.cursor("erp") == Some(last));
    assert_eq!(sequences(&receiver.requests()).into_keys().collect::<Vec<_>>(), ["NEW"]);
}

#[test]
fn what_is_committed_after_the_start_is_delivered_however_late_the_endpoint_asks() {
    let receiver = Receiver::new(|_| Answer::Status(200));
    let store = store(&[]);
    store.append(&keyed(&["OLD"], 5));
    // The store is so busy that after one query nobody hears from it.
    *store.held_after.lock() = Some(1);
    let pusher = start(&store, vec![receiver.endpoint("erp")], settings());
    let last = store.append(&keyed(&["NEW"], 1));
    *store.held_after.lock() = None;
    for call in store.held.lock().drain(..) {
        call(Ok(&mut FakeReader(Arc::clone(&store.rows))));
    }
    pusher.events_committed(last);
    store.rows.wait("the new event is delivered", |rows| rows.cursor("erp") == Some(last));
    assert_eq!(sequences(&receiver.requests()).into_keys().collect::<Vec<_>>(), ["NEW"]);
}

#[test]
fn nobody_reads_the_log_while_there_are_no_endpoints() {
    let receiver = Receiver::new(|_| Answer::Status(200));
    let store = store(&[]);
    let before = store.append(&keyed(&["OLDER"], 1));
    let pusher = start(&store, Vec::new(), settings());
    eventually("the end of the log is known", || pusher.last_pos() == before);
    let before = store.append(&keyed(&["OLD"], 5));
    pusher.events_committed(before);
    assert_eq!(pusher.last_pos(), before);
    pusher.reload(vec![receiver.endpoint("erp")], DEADLINE).unwrap();
    let last = store.append(&keyed(&["NEW"], 2));
    pusher.events_committed(last);
    store.rows.wait("the new events are delivered", |rows| rows.cursor("erp") == Some(last));
    pusher.reload(Vec::new(), DEADLINE).unwrap();
    let between = store.append(&keyed(&["BETWEEN"], 5));
    pusher.events_committed(between);
    store.rows.change(|rows| rows.cursors.clear());
    pusher.reload(vec![receiver.endpoint("erp")], DEADLINE).unwrap();
    let last = store.append(&keyed(&["NEWEST"], 1));
    pusher.events_committed(last);
    store.rows.wait("the newest event is delivered", |rows| rows.cursor("erp") == Some(last));
    assert_eq!(sequences(&receiver.requests()).into_keys().collect::<Vec<_>>(), ["NEW", "NEWEST"]);
    assert_eq!(store.rows.value.lock().read.iter().collect::<Vec<_>>(), ["NEW", "NEWEST"]);
}

#[test]
fn only_wanted_types_are_sent_and_the_cursor_passes_the_rest() {
    let receiver = Receiver::new(|_| Answer::Status(200));
    let store = store(&["erp"]);
    let events = vec!["order.*".to_owned(), "charging.progress".to_owned()];
    let pusher = start(&store, vec![Endpoint { events, ..receiver.endpoint("erp") }], settings());
    for (event_type, wanted) in [
        ("order.created", true),
        ("charging.progress", true),
        ("charging.started", false),
        ("device.heartbeat", false),
        ("orders", false),
    ] {
        assert_eq!(pusher.subscribes(event_type), wanted, "{event_type}");
    }
    let last = store.append(&[("device.online", "A"), ("order.created", "A"), ("port.status_changed", "A")]);
    pusher.events_committed(last);
    store.rows.wait("the cursor is at the end", |rows| rows.cursor("erp") == Some(last));
    let received: Vec<_> = receiver.requests().iter().map(|request| request.json()["event_type"].clone()).collect();
    assert_eq!(received, ["order.created"]);

    assert_eq!(pusher.reload(Vec::new(), DEADLINE).unwrap(), Stopped::default());
    assert!(!pusher.subscribes("order.created") && !pusher.subscribes("charging.progress"));
}

#[test]
fn private_targets_are_refused_before_a_connection_is_made() {
    let receiver = Receiver::new(|_| Answer::Status(200));
    let port = receiver.addr.port();
    let hosts = ["127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]", "0.0.0.0", "2130706433", "127.1"];
    let store = store(&hosts);
    let endpoints = hosts.iter().map(|host| {
        let url = format!("{}://{host}:{port}/hook", if *host == "localhost" { "https" } else { "http" });
        Endpoint { url, ..receiver.endpoint(host) }
    });
    let pusher = start(&store, endpoints.collect(), Settings { allow_private_targets: false, ..settings() });
    let last = store.append(&keyed(&["A"], 1));
    pusher.events_committed(last);
    store.rows.wait("all are dead letters", |rows| rows.dead.len() == hosts.len());
    for row in store.rows.value.lock().dead.values() {
        // The last two are names to the gateway; to the system's resolver they are loopback in disguise.
        let names = ["2130706433", "127.1"].contains(&row.endpoint.as_str());
        assert!(row.reason == "target_refused" || names && row.reason == "dns", "{row:?}");
        assert_eq!(row.attempts, if row.reason == "dns" { 4 } else { 1 });
    }
    assert_eq!(receiver.connections.load(Ordering::SeqCst), 0);
}

#[test]
fn an_open_breaker_consumes_no_attempt() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    drop(listener);
    let store = store(&["erp"]);
    let endpoint = Endpoint { url: format!("http://{addr}/hook"), ..Receiver::new(|_| Answer::Close).endpoint("erp") };
    let short = Duration::from_millis(2);
    let pusher = start(
        &store,
        vec![endpoint],
        Settings {
            retry_delays: vec![short],
            breaker: BreakerSettings { failures: 3, open_min: short, open_max: short * 4 },
            concurrency: 1,
            ..settings()
        },
    );
    let keys: Vec<&'static str> = (0..20).map(|number| &*format!("K{number}").leak()).collect();
    let last = store.append(&keyed(&keys, 2));
    pusher.events_committed(last);
    let counters = Arc::clone(&pusher.counters()[0]);
    let refused = || counters.failures().find(|(label, _)| *label == "connect").unwrap().1;
    // Far more failed probes than all attempts of all events together would be.
    eventually("many probes failed", || refused() > 100);
    assert_ne!(counters.breaker(), BreakerState::Closed);
    let dead = counters.dead.load(Ordering::SeqCst);
    assert!(dead <= 1, "{dead} died of what came before it opened");

    let receiver = Receiver::on(TcpListener::bind(addr).unwrap(), |_| Answer::Status(200));
    store.rows.wait("all is delivered", |rows| rows.cursor("erp") == Some(last) && rows.parked.is_empty());
    eventually("the breaker is closed", || counters.breaker() == BreakerState::Closed);
    assert_eq!(receiver.requests().len() as u64 + dead, 40);
    assert_eq!(counters.dead.load(Ordering::SeqCst), dead);
}

#[test]
fn tls_that_cannot_be_had_is_a_failure_of_its_own() {
    let store = store(&["erp"]);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("https://{}/hook", listener.local_addr().unwrap());
    // A server of plain HTTP takes the handshake for a bad request and says so in plain text.
    thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            stream.write_all(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n").ok();
            // The peer closes when it has read this.
            stream.read_to_end(&mut Vec::new()).ok();
        }
    });
    let endpoint = Endpoint {
        name: "erp".to_owned(),
        url,
        secrets: vec!["s".to_owned()],
        api_key: None,
        events: vec!["*".to_owned()],
    };
    let pusher = start(&store, vec![endpoint], settings());
    pusher.events_committed(store.append(&keyed(&["A"], 1)));
    store.rows.wait("it is a dead letter", |rows| rows.dead.len() == 1);
    assert_eq!(store.rows.value.lock().dead.values().next().unwrap().reason, "tls");
}

#[test]
fn a_stop_lets_attempts_end_and_counts_those_it_cuts() {
    for open in [true, false] {
        let gate = Arc::new(Watched::default());
        let hold = Arc::clone(&gate);
        let receiver = Receiver::new(move |_| Answer::Wait(Arc::clone(&hold)));
        let store = store(&["erp"]);
        let pusher = start(&store, vec![receiver.endpoint("erp")], Settings { timeout: NEVER, ..settings() });
        let last = store.append(&keyed(&["A", "B"], 1));
        pusher.events_committed(last);
        receiver.wait("both are under way", |got| got.len() == 2);
        if open {
            thread::scope(|scope| {
                let stopping = scope.spawn(|| pusher.stop(DEADLINE));
                gate.change(|open| *open = true);
                let stopped = stopping.join().unwrap();
                assert!(stopped.clean <= 2 && stopped.forced == 0 && stopped.unflushed == 0, "{stopped:?}");
            });
            assert_eq!(store.rows.value.lock().cursor("erp"), Some(last));
        } else {
            let stopped = pusher.stop(Duration::from_millis(20));
            assert_eq!(stopped, Stopped { clean: 0, forced: 2, unflushed: 1 });
            assert!(store.rows.value.lock().cursor("erp") < Some(FIRST_POS));
        }
        assert_eq!(pusher.stop(DEADLINE), Stopped::default());
    }
}

#[test]
fn a_full_parking_stops_the_reading_and_empties_again() {
    let sound = Arc::new(AtomicBool::new(false));
    let answer = Arc::clone(&sound);
    let receiver = Receiver::new(move |_| Answer::Status(if answer.load(Ordering::SeqCst) { 200 } else { 500 }));
    let store = store(&["erp"]);
    let few = Settings { retry_delays: vec![NEVER], undone_max: 4, parked_max: 8, ..settings() };
    let pusher = start(&store, vec![receiver.endpoint("erp")], few.clone());
    let last = store.append(&keyed(&["A", "B", "C"], 20));
    pusher.events_committed(last);
    store.rows.wait("the parking is full", |rows| rows.parked.len() >= 8);
    pusher.stop(DEADLINE);
    let parked = store.rows.value.lock().parked.len();
    assert!(parked < 12, "{parked}");

    sound.store(true, Ordering::SeqCst);
    store.rows.change(|rows| rows.parked.values_mut().for_each(|row| row.next_at = 0));
    // Fewer than are parked: they are loaded in parts.
    let pusher = start(&store, vec![receiver.endpoint("erp")], Settings { undone_max: 2, parked_max: 2, ..few });
    store.rows.wait("all is delivered", |rows| rows.cursor("erp") == Some(last) && rows.parked.is_empty());
    for (key, received) in sequences(&receiver.requests()) {
        let mut received = received;
        received.dedup();
        assert_eq!(received, (1..=20).collect::<Vec<u64>>(), "{key}");
    }
    drop(pusher);
}
