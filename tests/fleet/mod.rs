//! The core with the real store, driven step by step: bytes in, frames out, time as the test says.

#![allow(dead_code, reason = "each test uses its part")]

use std::{
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
};

use chargegate::{
    gateway::{
        CardAsk, ConnId, ConnectionLimits, Core, CoreConfig, Effects, Listener, Message, Now, ShardId,
        card::CardRules,
        directory::{Directory, Entry},
    },
    model::{ChargeMode, ChargeSpec, DeviceId, OrderNo, OrderNumbers},
    protocol::{
        Direction,
        ap3000::{PhyId, encode as ap3000},
        bkv::{self, GatewayId},
    },
    store::{CommandLogRow, Created, Job, Networked, NewOrder, Outcome, Requester, Settings, StoreError, sqlite::Db},
    telemetry::{
        Metrics, ShardWriter,
        label::{Label, ShardEvent},
    },
};
use serde_json::Value;

/// 2026-01-01T00:00:00Z.
pub(crate) const EPOCH_MS: i64 = 1_767_225_600_000;
pub(crate) const DNY: [u8; 3] = *b"DNY";

pub(crate) struct Gateway {
    pub(crate) core: Core,
    pub(crate) directory: Arc<Directory>,
    metrics: Arc<Metrics>,
    db: Db,
    sql: rusqlite::Connection,
    effects: Effects,
    now_ms: u64,
    numbers: OrderNumbers,
    /// What was written, by connection.
    pub(crate) written: Vec<(ConnId, Vec<u8>)>,
    pub(crate) closed: Vec<ConnId>,
    pub(crate) log: Vec<CommandLogRow>,
    /// Questions to the third party that keeps the cards.
    pub(crate) asks: Vec<CardAsk>,
    /// Jobs wait here while this is set.
    pub(crate) store_waits: bool,
    /// Nothing is committed; only reports come to it.
    pub(crate) store_fails: bool,
    waiting: Vec<Job>,
    _dir: tempfile::TempDir,
}

/// A frame as the gateway wrote it to an AP3000 device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Down {
    pub(crate) magic: [u8; 3],
    pub(crate) phy_id: PhyId,
    pub(crate) msg_id: u16,
    pub(crate) command: u8,
    pub(crate) data: Vec<u8>,
}

impl Gateway {
    pub(crate) fn new() -> Self {
        Self::with(|_| {})
    }

    pub(crate) fn with(configure: impl FnOnce(&mut CoreConfig)) -> Self {
        Self::with_cards(CardRules::default(), configure)
    }

    /// The same with other rules for cards.
    pub(crate) fn with_cards(cards: CardRules, configure: impl FnOnce(&mut CoreConfig)) -> Self {
        let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        let path = dir.path().join("chargegate.db");
        let db = Db::open(&path, OrderNumbers::new(*b"THD", 1023)).unwrap().with_cards(Arc::new(cards.clone()));
        let sql = rusqlite::Connection::open(&path).unwrap();
        let directory = Arc::new(Directory::default());
        let limits = Arc::new(ConnectionLimits::new(1_000, 1_000));
        let metrics = Metrics::new(1);
        let mut config = CoreConfig { cards: cards.mode, ..CoreConfig::new(ShardId(0)) };
        configure(&mut config);
        let writer: ShardWriter = metrics.claim_shard(0).unwrap();
        let core = Core::new(config, Arc::clone(&directory), limits, writer);
        Self {
            core,
            directory,
            metrics,
            db,
            sql,
            effects: Effects::default(),
            now_ms: 1,
            numbers: OrderNumbers::new(*b"THD", 1),
            written: Vec::new(),
            closed: Vec::new(),
            log: Vec::new(),
            asks: Vec::new(),
            store_waits: false,
            store_fails: false,
            waiting: Vec::new(),
            _dir: dir,
        }
    }

    pub(crate) fn now(&self) -> Now {
        Now { mono_ms: self.now_ms, unix_ms: EPOCH_MS + i64::try_from(self.now_ms).unwrap() }
    }

    pub(crate) fn connect(&mut self) -> ConnId {
        self.connect_to(Listener::Devices)
    }

    pub(crate) fn connect_to(&mut self, listener: Listener) -> ConnId {
        self.core.accept(self.now(), IpAddr::V4(Ipv4Addr::LOCALHOST), listener).unwrap()
    }

    pub(crate) fn disconnect(&mut self, conn: ConnId) {
        self.core.closed(self.now(), conn, chargegate::gateway::CloseReason::Peer, &mut self.effects);
        self.carry_out();
    }

    pub(crate) fn receive(&mut self, conn: ConnId, bytes: &[u8]) {
        self.core.receive(self.now(), conn, bytes, &mut self.effects);
        self.carry_out();
    }

    pub(crate) fn message(&mut self, message: Message) {
        self.core.message(self.now(), message, &mut self.effects);
        self.carry_out();
    }

    /// Lets time pass, deadline by deadline.
    pub(crate) fn pass(&mut self, ms: u64) {
        let until = self.now_ms + ms;
        while self.now_ms < until {
            let due = self.core.poll_timeout().unwrap_or(until);
            self.now_ms = due.clamp(self.now_ms + 1, until);
            self.core.timeout(self.now(), &mut self.effects);
            self.carry_out();
        }
    }

    /// The store does what waited for it.
    pub(crate) fn store_goes_on(&mut self) {
        self.store_waits = false;
        self.carry_out();
    }

    fn carry_out(&mut self) {
        loop {
            // As a driver does after each turn: what became due, or has a new deadline.
            self.core.timeout(self.now(), &mut self.effects);
            let tx = std::mem::take(&mut self.effects.tx);
            for (conn, range) in std::mem::take(&mut self.effects.writes) {
                self.written.push((conn, tx[range].to_vec()));
            }
            self.closed.append(&mut self.effects.closes);
            self.log.append(&mut self.effects.log);
            self.asks.append(&mut self.effects.asks);
            let latest = std::mem::take(&mut self.effects.latest);
            self.db.apply_latest(&latest).unwrap();
            self.waiting.extend(self.effects.jobs.drain(..));
            if self.waiting.is_empty() || self.store_waits {
                return;
            }
            let jobs = std::mem::take(&mut self.waiting);
            for outcome in self.apply(&jobs) {
                self.core.message(self.now(), Message::Outcome(outcome), &mut self.effects);
            }
        }
    }

    fn apply(&mut self, jobs: &[Job]) -> Vec<Outcome> {
        if self.store_fails {
            let failed = |job: &Job| {
                let Job::Report(report) = job else { panic!("{job:?}") };
                let error = StoreError::Unavailable("down".into());
                let (device_id, ticket) = (Some(report.event.device_id), Some(report.ticket));
                Outcome::Failed { device_id, key: None, ticket, error }
            };
            return jobs.iter().map(failed).collect();
        }
        let now = self.now();
        let applied = self.db.apply(now.unix_ms, jobs);
        assert!(applied.error.is_none(), "{:?}", applied.error);
        for queued in applied.queued {
            self.core.message(now, Message::CommandsQueued(queued.device_id), &mut self.effects);
        }
        applied.outcomes
    }

    /// What an API call does: a job, and whoever must know is told.
    pub(crate) fn call(&mut self, job: Job) -> Outcome {
        let outcome = self.apply(&[job]).remove(0);
        let now = self.now();
        match &outcome {
            Outcome::Created(created) => {
                if let Created::Order { order, command } = created.as_ref() {
                    let commands = command.iter().cloned().collect();
                    let message =
                        Message::OrderChanged { order: Box::new(order.clone()), commands, withdrawn: Vec::new() };
                    self.core.message(now, message, &mut self.effects);
                }
            }
            Outcome::Settings(settings) => {
                self.core.message(now, Message::SettingsChanged(settings.clone()), &mut self.effects);
            }
            Outcome::Networked(Networked::Changed(told)) => {
                self.core.message(now, Message::NetworkChanged(told.clone()), &mut self.effects);
            }
            _ => {}
        }
        self.carry_out();
        outcome
    }

    pub(crate) fn settings(&self, device_id: DeviceId) -> Settings {
        Settings {
            device_id,
            protocol: None,
            extensions: None,
            name: None,
            fsk_frequency: None,
            at: self.now().unix_ms,
            request_id: "request".to_owned(),
            idempotency: None,
        }
    }

    pub(crate) fn charge(&mut self, device_id: DeviceId, port_no: u16) -> OrderNo {
        let at = self.now().unix_ms;
        let order_no = self.numbers.next(at);
        let new = NewOrder {
            order_no,
            device_id,
            port_no,
            spec: ChargeSpec { mode: ChargeMode::Time { minutes: 60 }, paid_cent: None, stop_when_full: false },
            epoch: self.entry(device_id).live_epoch(),
            at,
            deadline: at + 5_000,
            request_id: "request".to_owned(),
            requester: Requester::default(),
            card_no: None,
            idempotency: None,
        };
        let outcome = self.call(Job::CreateOrder(Box::new(new)));
        assert!(matches!(&outcome, Outcome::Created(made) if matches!(**made, Created::Order { .. })), "{outcome:?}");
        order_no
    }

    #[track_caller]
    pub(crate) fn entry(&self, device_id: DeviceId) -> Arc<Entry> {
        self.directory.find(device_id).expect("the device is known")
    }

    pub(crate) fn online(&self, device_id: DeviceId) -> bool {
        self.directory.find(device_id).is_some_and(|entry| entry.score(self.now().unix_ms).online())
    }

    pub(crate) fn counted(&self, event: ShardEvent) -> u64 {
        self.metric(&format!("event=\"{}\"", Label::as_str(event)))
    }

    pub(crate) fn decode_errors(&self, kind: &str) -> u64 {
        self.metric(&format!("chargegate_decode_errors_total{{kind=\"{kind}\"}}"))
    }

    /// The value of the first sample whose name and labels contain this.
    fn metric(&self, part: &str) -> u64 {
        let mut text = String::new();
        self.metrics.render(&mut text);
        let line = text.lines().find(|line| line.contains(part)).expect("a sample");
        line.rsplit(' ').next().and_then(|value| value.parse().ok()).expect("a number")
    }

    /// `data` of the device's alarms, in order.
    pub(crate) fn alarms(&self, device_id: DeviceId) -> Vec<Value> {
        self.events(device_id, "device.alarm")
    }

    pub(crate) fn events(&self, device_id: DeviceId, event_type: &str) -> Vec<Value> {
        let mut statement =
            self.sql.prepare("SELECT data FROM events WHERE device_id = ?1 AND event_type = ?2 ORDER BY pos").unwrap();
        let rows = statement.query_map([&device_id.to_string(), event_type], |row| row.get::<_, String>(0)).unwrap();
        rows.map(|text| serde_json::from_str(&text.unwrap()).unwrap()).collect()
    }

    pub(crate) fn status(&self, order_no: OrderNo) -> u8 {
        self.sql
            .query_row("SELECT status FROM orders WHERE order_no = ?1", [order_no.as_str()], |row| row.get(0))
            .unwrap()
    }

    /// One value of the database as text.
    pub(crate) fn value(&self, query: &str) -> Option<String> {
        self.sql.query_row(query, [], |row| row.get(0)).unwrap()
    }

    /// What was written since the last call.
    pub(crate) fn take_written(&mut self) -> Vec<(ConnId, Vec<u8>)> {
        std::mem::take(&mut self.written)
    }

    /// AP3000 frames written to a connection since the last call.
    pub(crate) fn frames(&mut self, conn: ConnId) -> Vec<Down> {
        let written = self.take_written();
        let bytes: Vec<u8> = written.into_iter().filter(|(to, _)| *to == conn).flat_map(|(_, bytes)| bytes).collect();
        let mut frames = Vec::new();
        let mut rest = &bytes[..];
        while let [m0, m1, m2, l0, l1, p0, p1, p2, p3, i0, i1, command, tail @ ..] = rest {
            let len = usize::from(u16::from_le_bytes([*l0, *l1])) - 9;
            frames.push(Down {
                magic: [*m0, *m1, *m2],
                phy_id: PhyId([*p0, *p1, *p2, *p3]),
                msg_id: u16::from_le_bytes([*i0, *i1]),
                command: *command,
                data: tail[..len].to_vec(),
            });
            rest = &tail[len + 2..];
        }
        assert!(rest.is_empty(), "whole frames");
        frames
    }

    /// BKV/GN frames written to a connection since the last call: command, sequence, payload.
    pub(crate) fn bkv_frames(&mut self, conn: ConnId) -> Vec<(u16, u32, Vec<u8>)> {
        let written = self.take_written();
        let bytes: Vec<u8> = written.into_iter().filter(|(to, _)| *to == conn).flat_map(|(_, bytes)| bytes).collect();
        let mut frames = Vec::new();
        let mut rest = &bytes[..];
        while let [0xFC, 0xFF, l0, l1, c0, c1, s0, s1, s2, s3, 0, tail @ ..] = rest {
            let len = usize::from(u16::from_be_bytes([*l0, *l1])) - 17;
            frames.push((
                u16::from_be_bytes([*c0, *c1]),
                u32::from_be_bytes([*s0, *s1, *s2, *s3]),
                tail[7..7 + len].to_vec(),
            ));
            rest = &tail[7 + len + 3..];
        }
        assert!(rest.is_empty(), "whole frames");
        frames
    }
}

/// An AP3000 frame from a device.
pub(crate) fn up_as(magic: [u8; 3], id: DeviceId, msg_id: u16, command: u8, data: &[u8]) -> Vec<u8> {
    let DeviceId::Ap3000(phy_id) = id else { panic!("{id} is no AP3000") };
    let mut out = Vec::new();
    ap3000::frame(&mut out, magic, phy_id, msg_id, command, |out| out.extend_from_slice(data)).unwrap();
    out
}

pub(crate) fn up(id: DeviceId, msg_id: u16, command: u8, data: &[u8]) -> Vec<u8> {
    up_as(DNY, id, msg_id, command, data)
}

/// A registration with this many ports.
pub(crate) fn registration(id: DeviceId, ports: u8) -> Vec<u8> {
    up(id, 1, 0x20, &[100, 0, ports, 1, 0x20])
}

/// A heartbeat with these port states.
pub(crate) fn heartbeat(id: DeviceId, states: &[u8]) -> Vec<u8> {
    let count = u8::try_from(states.len()).unwrap();
    up(id, 2, 0x21, &[&[0x98, 0x08, count], states].concat())
}

/// A BKV/GN frame from a gateway.
pub(crate) fn bkv_up(id: DeviceId, command: u16, sequence: u32, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    bkv::encode::frame(&mut out, Direction::Up, command, sequence, gateway_id(id), |out| {
        out.extend_from_slice(payload)
    });
    out
}

pub(crate) fn gateway_id(id: DeviceId) -> GatewayId {
    let DeviceId::Gateway(gateway_id) = id else { panic!("{id} is no gateway") };
    gateway_id
}

pub(crate) fn bkv_heartbeat(id: DeviceId) -> Vec<u8> {
    let mut out = Vec::new();
    bkv::device::heartbeat(&mut out, gateway_id(id), "89860463112070319417", "1.0.0", 20);
    out
}

/// A tagged packet with these elements behind its header.
pub(crate) fn packet(id: DeviceId, sub: u16, elements: &[u8]) -> Vec<u8> {
    let [s1, s0] = sub.to_be_bytes();
    let mut payload = vec![4, 1, 1, s1, s0, 0x0A, 1, 2, 0, 0, 0, 0, 0, 0, 0, 0, 9, 1, 3];
    payload.extend(gateway_id(id).0);
    payload.extend(elements);
    bkv_up(id, 0x1000, 0, &payload)
}

/// An element of a tagged packet.
pub(crate) fn tag(key: u8, value: &[u8]) -> Vec<u8> {
    let mut element = vec![u8::try_from(value.len() + 2).unwrap(), 1, key];
    element.extend(value);
    element
}

pub(crate) fn ap(n: u32) -> DeviceId {
    format!("{n:08x}").parse().unwrap()
}

pub(crate) fn bkv(n: u32) -> DeviceId {
    format!("{n:014}").parse().unwrap()
}
