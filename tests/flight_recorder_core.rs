//! What the core records of a connection, finds again, and calls an anomaly.
//!
//! The core alone: bytes go in, binds are answered at once, and what it writes is told back to it as a driver does. Questions go the
//! way of all messages.

use std::{
    net::{IpAddr, Ipv4Addr},
    sync::{Arc, mpsc},
};

use chargegate::{
    gateway::{
        CloseReason, ConnId, ConnectionLimits, Core, CoreConfig, Effects, Listener, Message, Now, ShardId,
        anomaly::{ANOMALY_FRAMES_MAX, Anomaly},
        directory::Directory,
        inquiry::{Answer, ConnectionFilter, ConnectionPage, Inquiry, Question, RECALLED_MAX, Recalled, Reply},
    },
    model::{DeviceId, Protocol},
    protocol::{
        Direction,
        ap3000::{self, PhyId, encode::Header},
    },
    store::{Bound, Job, Outcome, Settled},
    telemetry::{Metrics, label::AnomalyKind},
};

const START_MS: i64 = 1_767_225_600_000;
const CHARGER: &str = "40aace04";

struct Gateway {
    core: Core,
    effects: Effects,
    now: Now,
    /// Whether binds are let in, where admission is `known`.
    admits: bool,
    /// Jobs that are no binds.
    jobs: Vec<Job>,
    metrics: Arc<Metrics>,
}

impl Gateway {
    fn new() -> Self {
        Self::with(CoreConfig::new(ShardId(0)))
    }

    fn with(config: CoreConfig) -> Self {
        let metrics = Metrics::new(1);
        let limits = Arc::new(ConnectionLimits::new(5_000, 5_000));
        let writer = metrics.claim_shard(0).unwrap();
        let core = Core::new(config, Arc::new(Directory::default()), limits, writer);
        let now = Now { mono_ms: 1, unix_ms: START_MS };
        Self { core, effects: Effects::default(), now, admits: true, jobs: Vec::new(), metrics }
    }

    fn pass(&mut self, ms: u64) {
        self.now.mono_ms += ms;
        self.now.unix_ms += ms as i64;
        self.core.timeout(self.now, &mut self.effects);
        self.carry_out();
    }

    fn accept_from(&mut self, peer: u8, listener: Listener) -> ConnId {
        self.core.accept(self.now, IpAddr::V4(Ipv4Addr::new(192, 0, 2, peer)), listener).unwrap()
    }

    fn accept(&mut self) -> ConnId {
        self.accept_from(1, Listener::Devices)
    }

    fn deliver(&mut self, conn: ConnId, bytes: &[u8]) {
        self.core.receive(self.now, conn, bytes, &mut self.effects);
        self.carry_out();
    }

    /// Tells the core what it wrote; what it closes needs nothing.
    fn carry_out(&mut self) {
        for (conn, range) in std::mem::take(&mut self.effects.writes) {
            self.core.sent(self.now, conn, &self.effects.tx[range]);
        }
        self.effects.tx.clear();
        self.effects.closes.clear();
        while let Some(job) = self.effects.jobs.pop_front() {
            match job {
                Job::Bind(bind) => self.bound(bind.device_id, bind.generation),
                other => self.jobs.push(other),
            }
        }
    }

    fn bound(&mut self, device_id: DeviceId, generation: u64) {
        let protocol = if matches!(device_id, DeviceId::Ap3000(_)) { Protocol::Ap3000 } else { Protocol::Bkv };
        let bound = Bound {
            device_id,
            generation,
            admitted: self.admits,
            first_seen: false,
            epoch: 7,
            protocol,
            networked: true,
            has_ota: false,
            heartbeat_interval_s: None,
            msg_id_first: 1,
            ports: Vec::new(),
            orders: Vec::new(),
            commands: Vec::new(),
            details: Box::default(),
            network: None,
            superseded: None,
        };
        self.message(Message::Outcome(Outcome::Bound(Box::new(bound))));
    }

    fn message(&mut self, message: Message) {
        self.core.message(self.now, message, &mut self.effects);
        self.carry_out();
    }

    fn ask(&mut self, question: Question) -> Answer {
        let (told, answer) = mpsc::channel();
        let reply = Reply::new(move |answer| told.send(answer).unwrap());
        self.message(Message::Inquiry(Box::new(Inquiry { question, reply })));
        for (reply, answer) in self.effects.answers.drain(..) {
            reply.send(answer);
        }
        answer.try_recv().unwrap()
    }

    fn recall(&mut self, device_id: DeviceId) -> Recalled {
        let Answer::Recalled(recalled) = self.ask(Question::RecallDevice(device_id)) else { panic!("no recall") };
        recalled
    }

    fn recall_connection(&mut self, conn: ConnId) -> Recalled {
        let Answer::Recalled(recalled) = self.ask(Question::RecallConnection(conn)) else { panic!("no recall") };
        recalled
    }

    fn anomalies(&mut self) -> Vec<Arc<Anomaly>> {
        let Answer::Anomalies(anomalies) = self.ask(Question::Anomalies) else { panic!("no anomalies") };
        anomalies
    }

    fn connections(&mut self, filter: ConnectionFilter, from: u32, skip: u64, limit: usize) -> ConnectionPage {
        let Answer::Connections(page) = self.ask(Question::Connections { filter, from, skip, limit }) else {
            panic!("no connections")
        };
        page
    }

    fn kinds(&mut self) -> Vec<AnomalyKind> {
        self.anomalies().iter().map(|anomaly| anomaly.kind).collect()
    }

    fn counted(&self, kind: &str) -> String {
        let mut text = String::new();
        self.metrics.render(&mut text);
        let name = format!("chargegate_anomalies_total{{kind=\"{kind}\"}} ");
        text.lines().find_map(|line| line.strip_prefix(&name)).unwrap().to_owned()
    }
}

fn device(id: &str) -> DeviceId {
    id.parse().unwrap()
}

fn vector(file: &str, name: &str) -> Vec<u8> {
    let text = std::fs::read_to_string(format!("{}/testdata/vectors/{file}", env!("CARGO_MANIFEST_DIR"))).unwrap();
    let records = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    let record = records.into_iter().find(|record| record["name"] == name).unwrap();
    let hex = record["hex"].as_str().unwrap();
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
}

fn header(id: &str, msg_id: u16) -> Header {
    Header { magic: *b"DNY", phy_id: id.parse::<PhyId>().unwrap(), msg_id }
}

/// A time request, the shortest frame there is.
fn time_request(id: &str, msg_id: u16) -> Vec<u8> {
    let mut frame = vec![b'D', b'N', b'Y', 9, 0];
    frame.extend(header(id, msg_id).phy_id.0);
    frame.extend(msg_id.to_le_bytes());
    frame.push(0x22);
    let sum = frame.iter().fold(0_u16, |sum, byte| sum.wrapping_add(u16::from(*byte)));
    frame.extend(sum.to_le_bytes());
    frame
}

fn time_reply(id: &str, msg_id: u16) -> Vec<u8> {
    let mut out = Vec::new();
    ap3000::encode::time_reply(&mut out, &header(id, msg_id), 0x22, (START_MS / 1000) as u32);
    out
}

/// Direction, whether skipped, bytes.
fn told(recalled: &Recalled) -> Vec<(Direction, bool, Vec<u8>)> {
    let frames = recalled.frames.iter();
    frames.map(|frame| (frame.label.direction, frame.label.skipped, frame.raw.to_vec())).collect()
}

#[test]
fn frames_replies_and_garbage_come_back_in_order() {
    let mut gateway = Gateway::new();
    let conn = gateway.accept();
    let first = time_request(CHARGER, 1);
    let mut bad = time_request(CHARGER, 2);
    *bad.last_mut().unwrap() ^= 1;
    let last = time_request(CHARGER, 3);
    gateway.deliver(conn, &first);
    gateway.deliver(conn, b"link");
    // The bad frame comes in two pieces, and noise is glued to the sound one behind it.
    gateway.deliver(conn, &bad[..7]);
    gateway.deliver(conn, &[&bad[7..], b"\x00\x01", &last[..]].concat());
    let garbage = [&bad[..], b"\x00\x01"].concat();
    let expected = [
        (Direction::Up, false, first),
        (Direction::Down, false, time_reply(CHARGER, 1)),
        (Direction::Up, false, b"link".to_vec()),
        (Direction::Up, true, garbage.clone()),
        (Direction::Up, false, last),
        (Direction::Down, false, time_reply(CHARGER, 3)),
    ];
    let recalled = gateway.recall(device(CHARGER));
    assert_eq!(told(&recalled), expected);
    assert!(recalled.open);
    assert_eq!(told(&gateway.recall_connection(conn)), expected);
    // The first frame came before the store gave the epoch.
    let epochs: Vec<u32> = recalled.frames.iter().map(|frame| frame.label.epoch).collect();
    assert_eq!((epochs[0], &epochs[2..]), (0, &[7, 7, 7, 7][..]));

    let anomalies = gateway.anomalies();
    let [anomaly] = &anomalies[..] else { panic!("{anomalies:?}") };
    assert_eq!((anomaly.kind, anomaly.device_id), (AnomalyKind::BadChecksum, Some(device(CHARGER))));
    assert_eq!(anomaly.detail, format!("{} bytes skipped", garbage.len()));
    assert_eq!(anomaly.frames.last().map(|frame| frame.raw.to_vec()), Some(garbage));
    assert_eq!(gateway.counted("bad_checksum"), "1");
}

#[test]
fn replies_written_together_are_recorded_one_by_one() {
    for (file, name) in [("ap3000.jsonl", "21_heartbeat_up_vendor"), ("bkv.jsonl", "heartbeat_up")] {
        let heartbeat = vector(file, name);
        let mut gateway = Gateway::new();
        let conn = gateway.accept();
        gateway.deliver(conn, &heartbeat);
        gateway.deliver(conn, &heartbeat.repeat(3));
        let frames = told(&gateway.recall_connection(conn));
        let (ups, downs): (Vec<_>, Vec<_>) =
            frames[frames.len() - 6..].iter().partition(|(way, ..)| *way == Direction::Up);
        assert_eq!((ups.len(), downs.len()), (3, 3), "{name}");
        assert!(ups.iter().all(|(_, skipped, raw)| !skipped && *raw == heartbeat), "{name}");
        assert!(downs.iter().all(|down| *down == downs[0]), "{name}");
    }
}

#[test]
fn frames_outlive_their_connection_and_not_their_ring() {
    let config = CoreConfig { recorder_bytes: 64 * 1024, ..CoreConfig::new(ShardId(0)) };
    let mut gateway = Gateway::with(config);
    let old = gateway.accept();
    gateway.deliver(old, &time_request(CHARGER, 1));
    // The connection ends inside a frame.
    gateway.deliver(old, &time_request(CHARGER, 2)[..10]);
    gateway.core.closed(gateway.now, old, CloseReason::Peer, &mut gateway.effects);
    gateway.pass(10);
    let new = gateway.accept();
    assert_eq!(new.slot, old.slot, "the slot is used again");
    gateway.deliver(new, &time_request(CHARGER, 3));
    let recalled = gateway.recall(device(CHARGER));
    let ups: Vec<_> = told(&recalled).into_iter().filter(|(way, ..)| *way == Direction::Up).collect();
    assert_eq!(
        ups,
        [
            (Direction::Up, false, time_request(CHARGER, 1)),
            (Direction::Up, true, time_request(CHARGER, 2)[..10].to_vec()),
            (Direction::Up, false, time_request(CHARGER, 3)),
        ]
    );
    let ended: Vec<_> = recalled.ended.iter().map(|ended| (ended.conn, ended.reason)).collect();
    assert_eq!(ended, [(old, CloseReason::Peer)]);
    let of_old = gateway.recall_connection(old);
    assert_eq!((of_old.open, of_old.frames.len()), (false, 3));
    assert!(of_old.frames.iter().all(|frame| frame.conn == old));

    // Others write the ring full: nothing of this device is left, and nothing else is shown for it.
    let loud = gateway.accept();
    for msg_id in 0..2_000 {
        gateway.deliver(loud, &time_request("01000004", msg_id));
    }
    let recalled = gateway.recall(device(CHARGER));
    assert_eq!((recalled.open, recalled.frames.len()), (true, 0));
    assert_eq!(gateway.recall_connection(old).frames, []);
    assert_eq!(gateway.recall(device("01000004")).frames.len(), RECALLED_MAX);
}

#[test]
fn a_frame_that_waits_for_the_store_is_recorded_once() {
    for admits in [true, false] {
        let mut gateway = Gateway::with(CoreConfig { known_only: true, ..CoreConfig::new(ShardId(0)) });
        gateway.admits = admits;
        let conn = gateway.accept();
        let both = [time_request(CHARGER, 1), time_request(CHARGER, 2)];
        gateway.deliver(conn, &both.concat());
        let recalled = gateway.recall_connection(conn);
        let ups: Vec<_> = told(&recalled).into_iter().filter(|(way, ..)| *way == Direction::Up).collect();
        assert_eq!(ups, both.map(|frame| (Direction::Up, false, frame)), "admitted: {admits}");
        if !admits {
            // What a device sent that is turned away is found under its id when its connection is closed.
            for msg_id in 3..10 {
                gateway.deliver(conn, &time_request(CHARGER, msg_id));
            }
            let recalled = gateway.recall(device(CHARGER));
            assert_eq!(recalled.ended.first().map(|ended| ended.reason), Some(CloseReason::NotAdmitted));
            assert!(recalled.frames.len() >= 5);
        }
    }
}

#[test]
fn of_a_shared_socket_a_device_sees_its_own() {
    let (host, sub) = ("09000009", "04000004");
    let mut gateway = Gateway::new();
    let conn = gateway.accept();
    for (id, msg_id) in [(host, 1), (sub, 1), (host, 2), (sub, 2)] {
        gateway.deliver(conn, &time_request(id, msg_id));
    }
    gateway.deliver(conn, b"link");
    for id in [host, sub] {
        let recalled = gateway.recall(device(id));
        let expected = [
            (Direction::Up, false, time_request(id, 1)),
            (Direction::Down, false, time_reply(id, 1)),
            (Direction::Up, false, time_request(id, 2)),
            (Direction::Down, false, time_reply(id, 2)),
            (Direction::Up, false, b"link".to_vec()),
        ];
        assert_eq!(told(&recalled), expected, "{id}");
        assert_eq!(recalled.frames.last().map(|frame| frame.label.epoch), Some(0), "of which of them is not known");
    }
    assert_eq!(gateway.recall_connection(conn).frames.len(), 9);
}

#[test]
fn a_device_that_moves_takes_its_frames_along() {
    let mut gateway = Gateway::new();
    for (id, first, second) in [
        (CHARGER, time_request(CHARGER, 1), time_request(CHARGER, 2)),
        ("82231214002700", vector("bkv.jsonl", "heartbeat_up"), vector("bkv.jsonl", "heartbeat_up")),
    ] {
        let id = if id == CHARGER { device(id) } else { gateway_of(&first) };
        let (old, new) = (gateway.accept(), gateway.accept());
        gateway.deliver(old, &first);
        gateway.deliver(new, &second);
        let recalled = gateway.recall(id);
        let ups: Vec<_> = recalled.frames.iter().filter(|frame| frame.label.direction == Direction::Up).collect();
        assert_eq!(ups.iter().map(|frame| frame.conn).collect::<Vec<_>>(), [old, new], "{id}");
        let ended: Vec<_> = recalled.ended.iter().map(|ended| (ended.conn, ended.reason)).collect();
        assert_eq!(ended, [(old, CloseReason::Replaced)], "{id}");
    }
}

fn gateway_of(frame: &[u8]) -> DeviceId {
    let digits: String = frame[11..18].iter().map(|byte| format!("{byte:02x}")).collect();
    device(&digits)
}

#[test]
fn each_kind_is_listed_with_frames() {
    let mut gateway = Gateway::new();
    let conn = gateway.accept();
    gateway.deliver(conn, &time_request(CHARGER, 1));
    // A sound frame of a command that no table has.
    let mut unknown = time_request(CHARGER, 2);
    unknown[11] = 0xEE;
    let sum = unknown[..12].iter().fold(0_u16, |sum, byte| sum.wrapping_add(u16::from(*byte)));
    unknown[12..].copy_from_slice(&sum.to_le_bytes());
    gateway.deliver(conn, &unknown);
    let anomalies = gateway.anomalies();
    assert_eq!(anomalies[0].kind, AnomalyKind::UnknownCommand);
    assert!(anomalies[0].detail.starts_with("command 0xee: "), "{}", anomalies[0].detail);
    assert_eq!(anomalies[0].frames.last().map(|frame| frame.raw.to_vec()), Some(unknown.clone()));

    // The same again within the minute is counted and not listed; the count of the process goes on.
    gateway.deliver(conn, &unknown);
    gateway.deliver(conn, &unknown);
    assert_eq!(gateway.kinds(), [AnomalyKind::UnknownCommand]);
    assert_eq!((gateway.anomalies()[0].count, gateway.counted("unknown_command")), (3, "3".to_owned()));

    for (outcome, kind) in
        [((true, false), AnomalyKind::SettlementOrphan), ((false, true), AnomalyKind::SettlementQuarantined)]
    {
        gateway.deliver(conn, &settlement_of_charger());
        let Some(Job::Settle(job)) = gateway.jobs.iter().rfind(|job| matches!(job, Job::Settle(_))) else {
            panic!("no settlement")
        };
        let settled = Settled {
            key: job.key,
            stored: outcome.0,
            order: None,
            from: None,
            withdrawn: Vec::new(),
            quarantined: outcome.1,
        };
        gateway.message(Message::Outcome(Outcome::Settled(Box::new(settled))));
        let newest = &gateway.anomalies()[0];
        assert_eq!((newest.kind, newest.device_id), (kind, Some(device(CHARGER))));
        assert!(newest.frames.iter().any(|frame| *frame.raw == *settlement_of_charger()), "{kind:?}");
    }

    // A gateway that sends what servers send.
    let bkv = gateway.accept();
    gateway.deliver(bkv, &vector("bkv.jsonl", "heartbeat_up"));
    gateway.deliver(bkv, &vector("bkv.jsonl", "heartbeat_reply_down"));
    assert_eq!(gateway.kinds()[0], AnomalyKind::BadDirection);
    gateway.core.closed(gateway.now, bkv, CloseReason::WriteOverflow, &mut gateway.effects);
    gateway.pass(1);
    let newest = &gateway.anomalies()[0];
    assert_eq!((newest.kind, newest.conn), (AnomalyKind::WriteOverflow, Some(bkv)));
    assert!(newest.frames.iter().any(|frame| frame.raw[..] == vector("bkv.jsonl", "heartbeat_up")[..]));

    // Garbage without end closes; until then nobody knows which device it is.
    let noisy = gateway.accept_from(9, Listener::Devices);
    gateway.deliver(noisy, b"DNY");
    gateway.deliver(noisy, &[0; 4_000]);
    let newest: Vec<_> = gateway.anomalies().into_iter().take(2).collect();
    assert_eq!(newest.first().map(|anomaly| anomaly.kind), Some(AnomalyKind::GarbageClosed));
    for anomaly in &newest {
        assert_eq!((anomaly.device_id, anomaly.peer), (None, Some(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 9)))));
        let frame = anomaly.frames.last().unwrap();
        assert_eq!((frame.label.skipped, frame.raw.len(), frame.length), (true, 512, 4_003));
    }
    assert!(gateway.anomalies().iter().all(|anomaly| anomaly.frames.len() <= ANOMALY_FRAMES_MAX));
}

/// The vendor's settlement, of the device of these tests.
fn settlement_of_charger() -> Vec<u8> {
    let mut frame = vector("ap3000.jsonl", "03_settlement_up_full");
    frame[5..9].copy_from_slice(&header(CHARGER, 0).phy_id.0);
    let sum_at = frame.len() - 2;
    let sum = frame[..sum_at].iter().fold(0_u16, |sum, byte| sum.wrapping_add(u16::from(*byte)));
    frame[sum_at..].copy_from_slice(&sum.to_le_bytes());
    frame
}

#[test]
fn a_device_that_goes_back_and_forth_is_flapping() {
    let mut gateway = Gateway::new();
    for bind in 1..=5 {
        let conn = gateway.accept();
        gateway.deliver(conn, &time_request(CHARGER, bind));
        gateway.pass(1_000);
    }
    assert_eq!(gateway.kinds(), []);
    let conn = gateway.accept();
    gateway.deliver(conn, &time_request(CHARGER, 6));
    let anomalies = gateway.anomalies();
    assert_eq!((anomalies[0].kind, &*anomalies[0].detail), (AnomalyKind::Flapping, "bound 6 times within a minute"));
    let ups = anomalies[0].frames.iter().filter(|frame| frame.label.direction == Direction::Up);
    assert_eq!(ups.count(), 6, "over all its connections");
    gateway.pass(60_000);
    let conn = gateway.accept();
    gateway.deliver(conn, &time_request(CHARGER, 7));
    assert_eq!(gateway.anomalies().len(), 1, "a new minute");
}

#[test]
fn connections_are_listed_page_by_page_and_by_filter() {
    let mut gateway = Gateway::new();
    let mut conns: Vec<ConnId> = (0..2_500).map(|_| gateway.accept()).collect();
    conns.sort_by_key(|conn| conn.slot);
    let charger = gateway.accept_from(7, Listener::Devices);
    gateway.deliver(charger, &time_request(CHARGER, 1));
    let gn = gateway.accept_from(8, Listener::Gn);
    gateway.deliver(gn, &vector("bkv.jsonl", "heartbeat_up"));
    let all = ConnectionFilter::default();
    let (mut found, mut total, mut from, mut answers) = (Vec::new(), 0, 0, 0);
    loop {
        let page = gateway.connections(all, from, 1_000_u64.saturating_sub(total), 200 - found.len());
        found.extend(page.connections.iter().map(|info| info.conn));
        total += page.matched;
        answers += 1;
        match page.next {
            Some(next) => from = next,
            None => break,
        }
    }
    assert_eq!((total, answers), (2_502, 3));
    assert_eq!(found, conns[1_000..1_200]);

    let by_device = ConnectionFilter { device_id: Some(device(CHARGER)), ..all };
    let page = gateway.connections(by_device, 0, 0, 10);
    let [info] = &page.connections[..] else { panic!("{page:?}") };
    assert_eq!((info.conn, info.protocol, info.listener), (charger, Some(Protocol::Ap3000), Listener::Devices));
    assert_eq!(info.devices, [device(CHARGER)]);
    let (bytes_in, bytes_out) = (time_request(CHARGER, 1).len() as u64, time_reply(CHARGER, 1).len() as u64);
    assert_eq!((info.bytes_in, info.bytes_out, info.garbage_bytes, info.blocked), (bytes_in, bytes_out, 0, false));
    assert_eq!((info.connected_at, info.last_seen_at), (START_MS, START_MS));

    for (filter, expected) in [
        (ConnectionFilter { listener: Some(Listener::Gn), ..all }, vec![gn]),
        (ConnectionFilter { protocol: Some(Protocol::Ap3000), ..all }, vec![charger]),
        (ConnectionFilter { listener: Some(Listener::Gn), protocol: Some(Protocol::Ap3000), ..all }, vec![]),
    ] {
        let mut found = Vec::new();
        let mut next = Some(0);
        while let Some(from) = next {
            let page = gateway.connections(filter, from, 0, 10);
            found.extend(page.connections.iter().map(|info| info.conn));
            next = page.next;
        }
        assert_eq!(found, expected, "{filter:?}");
    }
}

#[test]
fn an_operator_closes_a_connection() {
    let mut gateway = Gateway::new();
    let conn = gateway.accept();
    gateway.deliver(conn, &time_request(CHARGER, 1));
    let Answer::Disconnected(Some(closed)) = gateway.ask(Question::Disconnect(device(CHARGER))) else {
        panic!("not closed")
    };
    assert_eq!((closed.conn, closed.devices), (conn, vec![device(CHARGER)]));
    assert_eq!(gateway.core.connections(), 0);
    let recalled = gateway.recall(device(CHARGER));
    assert_eq!(recalled.ended.first().map(|ended| (ended.conn, ended.reason)), Some((conn, CloseReason::Admin)));
    assert!(!recalled.open);
    assert_eq!(recalled.frames.len(), 2);
    assert!(matches!(gateway.ask(Question::Disconnect(device(CHARGER))), Answer::Disconnected(None)));
}

#[test]
fn without_a_recorder_everything_else_is_as_ever() {
    let mut gateway = Gateway::with(CoreConfig { recorder_bytes: 0, ..CoreConfig::new(ShardId(0)) });
    let conn = gateway.accept();
    gateway.deliver(conn, &time_request(CHARGER, 1));
    gateway.deliver(conn, b"\x00\x01");
    gateway.deliver(conn, &time_request(CHARGER, 2));
    let recalled = gateway.recall(device(CHARGER));
    assert_eq!((recalled.open, recalled.frames.len()), (true, 0));
    let anomalies = gateway.anomalies();
    assert_eq!((anomalies[0].kind, anomalies[0].frames.len()), (AnomalyKind::Noise, 0));
}
