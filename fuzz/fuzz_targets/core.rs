//! The core of a shard under any sequence of inputs: connections, bytes in any pieces, outcomes of the store in any order and
//! kind, commands, and time.
//!
//! The store is a queue of jobs here; the input says which are answered, and how. After each input:
//!
//! - everything written to a connection is whole server frames;
//! - only open connections are closed, and each once;
//! - every job is counted until it has its outcome;
//! - no deadline that has passed is left.
//!
//! At the end the core is drained and must come to rest.
#![no_main]

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, LazyLock};

use chargegate::gateway::directory::Directory;
use chargegate::gateway::{
    CloseReason, ConnId, ConnectionLimits, Core, CoreConfig, Effects, Listener, Message, Now, ShardId, WantedEvents,
};
use chargegate::model::{
    ChargeMode, ChargeSpec, Command, CommandBody, DeviceId, Order, OrderNo, OrderStatus, Priority, Protocol,
};
use chargegate::protocol::ap3000::{self, Item, Magics, PhyId};
use chargegate::protocol::bkv::{self, GatewayId, command as bkv_command};
use chargegate::protocol::{Direction, Hex, Step};
use chargegate::shard::JOBS_MAX;
use chargegate::store::{Bound, Job, Outcome, Settled, StoreError};
use chargegate::telemetry::Metrics;
use libfuzzer_sys::fuzz_target;

/// Devices of each protocol: few, so that they meet themselves on several connections.
const DEVICES: u8 = 3;
/// Connections open at a time.
const CONNS_MAX: usize = 6;
const EPOCH_MS: i64 = 1_767_225_600_000;

/// What the API may have queued, as the store keeps it.
static COMMANDS: LazyLock<Vec<CommandBody>> = LazyLock::new(|| {
    let spec = |mode: &str| format!(r#"{{"mode":{mode},"paid_cent":100,"stop_when_full":true}}"#);
    let start = |mode: &str| format!(r#"{{"command":"start","port_no":1,"spec":{}}}"#, spec(mode));
    let mut texts: Vec<String> = [
        r#""full""#,
        r#"{"time":{"minutes":5}}"#,
        r#"{"energy":{"wh":500}}"#,
        r#"{"power":{"tiers":[{"power_dw":2000,"price_cent":10,"minutes":60}]}}"#,
        r#"{"service_fee":{"periods":[{"end_hour":23,"end_minute":59,"electricity_cent":1,"service_cent":2}],"by_energy":true}}"#,
    ]
    .map(start)
    .to_vec();
    texts.extend(
        [
            r#"{"command":"stop","port_no":1}"#,
            r#"{"command":"query","port_no":1}"#,
            r#"{"command":"query","port_no":60000}"#,
            r#"{"command":"call","call":{"ap3000":{"name":"reboot"}}}"#,
            r#"{"command":"call","call":{"ap3000":{"name":"query_status"}}}"#,
            r#"{"command":"call","call":{"ap3000":{"name":"host_reboot"}}}"#,
            r#"{"command":"call","call":{"ap3000":{"name":"query_params","group":"limits"}}}"#,
            r#"{"command":"call","call":{"gateway":{"name":"query_params","socket":1}}}"#,
            r#"{"command":"call","call":{"gateway":{"name":"query_socket","socket":0}}}"#,
            r#"{"command":"call","call":{"gateway":{"name":"network_remove","socket":3}}}"#,
        ]
        .map(str::to_owned),
    );
    texts.iter().map(|text| serde_json::from_str(text).unwrap_or_else(|error| panic!("{text}: {error}"))).collect()
});

/// The rest of the input.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn u8(&mut self) -> u8 {
        let (first, rest) = self.0.split_first().unwrap_or((&0, &[]));
        self.0 = rest;
        *first
    }

    fn u16(&mut self) -> u16 {
        u16::from_le_bytes([self.u8(), self.u8()])
    }

    /// Length and bytes.
    fn bytes(&mut self) -> &'a [u8] {
        let len = usize::from(self.u8()).min(self.0.len());
        let (bytes, rest) = self.0.split_at(len);
        self.0 = rest;
        bytes
    }
}

struct Peer {
    conn: ConnId,
    /// The last frame written to it.
    last: Vec<u8>,
}

struct World {
    core: Core,
    effects: Effects,
    now: Now,
    magics: Magics,
    peers: Vec<Peer>,
    jobs: VecDeque<Job>,
    epochs: HashMap<DeviceId, i64>,
    rows: i64,
}

fuzz_target!(|data: &[u8]| {
    let mut input = Input(data);
    let mut world = World::new(input.u8());
    while !input.0.is_empty() {
        world.step(&mut input);
        world.check();
    }
    world.finish();
});

impl World {
    fn new(flags: u8) -> Self {
        let config = CoreConfig {
            known_only: flags & 1 == 1,
            wanted: Arc::new(WantedEvents::new(flags & 4 == 4, flags & 2 == 2)),
            log_heartbeats: flags & 8 == 8,
            ..CoreConfig::new(ShardId(0))
        };
        let limits = Arc::new(ConnectionLimits::new(CONNS_MAX, CONNS_MAX));
        let metrics = Metrics::new(1).claim_shard(0).expect("the first");
        Self {
            core: Core::new(config, Arc::new(Directory::default()), limits, metrics),
            effects: Effects::default(),
            now: Now { mono_ms: 1, unix_ms: EPOCH_MS },
            magics: Magics::default(),
            peers: Vec::new(),
            jobs: VecDeque::new(),
            epochs: HashMap::new(),
            rows: 0,
        }
    }

    fn step(&mut self, input: &mut Input<'_>) {
        match input.u8() % 16 {
            0 => self.accept(if input.u8() & 1 == 0 { Listener::Devices } else { Listener::Gn }),
            1 => {
                let (which, bytes) = (input.u8(), input.bytes());
                self.receive(which, bytes);
            }
            2 | 3 => self.ap3000_frame(input),
            4 | 5 => self.bkv_frame(input),
            6 => self.reply(input),
            7 => {
                let ms = u64::from(input.u16());
                self.wait(ms);
            }
            // Long enough for silence and retries.
            8 => {
                let ms = u64::from(input.u16()) * 64;
                self.wait(ms);
            }
            9 | 10 => self.answer(usize::from(input.u8()), true),
            11 => self.answer(usize::from(input.u8()), false),
            12 => {
                let which = usize::from(input.u8());
                if !self.peers.is_empty() {
                    let at = which % self.peers.len();
                    let peer = self.peers.remove(at);
                    let reason = if which & 1 == 0 { CloseReason::Peer } else { CloseReason::Io };
                    self.core.closed(self.now, peer.conn, reason, &mut self.effects);
                }
            }
            13 => self.order(input),
            14 => {
                let device_id = device(input.u8());
                match input.u8() % 4 {
                    0 => self.tell(Message::Superseded { device_id, generation: u64::from(input.u8()) }),
                    1 => self.tell(Message::CommandsQueued(device_id)),
                    _ => {
                        self.tell(Message::CommandsQueued(device_id));
                        self.carry_out();
                        let command = self.command(device_id, input);
                        self.claimed(device_id, command);
                    }
                }
            }
            _ => {
                let (which, kind) = (input.u8(), input.u8());
                if let Some(conn) = self.peer(which).map(|peer| peer.conn) {
                    match kind % 4 {
                        0 => self.core.write_blocked(self.now, conn),
                        1 => self.core.write_drained(conn),
                        2 => self.core.sent(usize::from(kind)),
                        _ => self.core.accept_failed(self.now, true),
                    }
                }
            }
        }
    }

    fn peer(&self, which: u8) -> Option<&Peer> {
        self.peers.get(usize::from(which).checked_rem(self.peers.len())?)
    }

    fn accept(&mut self, listener: Listener) {
        let accepted = self.core.accept(self.now, IpAddr::V4(Ipv4Addr::LOCALHOST), listener);
        assert_eq!(accepted.is_ok(), self.peers.len() < CONNS_MAX, "{accepted:?} with {}", self.peers.len());
        if let Ok(conn) = accepted {
            self.peers.push(Peer { conn, last: Vec::new() });
        }
    }

    /// Delivers bytes, cut in two where the input says.
    fn receive(&mut self, which: u8, bytes: &[u8]) {
        let Some(conn) = self.peer(which).map(|peer| peer.conn) else { return };
        let cut = (usize::from(which) / CONNS_MAX).min(bytes.len());
        let (head, tail) = bytes.split_at(cut);
        for piece in [head, tail].into_iter().filter(|piece| !piece.is_empty()) {
            self.core.receive(self.now, conn, piece, &mut self.effects);
            self.carry_out();
        }
    }

    fn ap3000_frame(&mut self, input: &mut Input<'_>) {
        let (which, id, msg_id, command) = (input.u8(), input.u8(), u16::from(input.u8()), input.u8());
        let data = input.bytes();
        let mut frame = Vec::new();
        let DeviceId::Ap3000(phy_id) = device(id % DEVICES) else { return };
        let written = ap3000::encode::frame(&mut frame, *b"DNY", phy_id, msg_id, command, |out| {
            out.extend_from_slice(data);
        });
        if written.is_ok() {
            self.receive(which, &frame);
        }
    }

    fn bkv_frame(&mut self, input: &mut Input<'_>) {
        let (which, id, sequence, row) = (input.u8(), input.u8(), u32::from(input.u8()), input.u8());
        let fields = input.bytes();
        let row = &bkv_command::TABLE[usize::from(row) % bkv_command::TABLE.len()];
        let DeviceId::Gateway(id) = device(DEVICES + id % DEVICES) else { return };
        let mut frame = Vec::new();
        let header = bkv::encode::Header::up(row.command, sequence, id);
        match (row.command, row.sub) {
            (bkv_command::NETWORK | bkv_command::CONTROL, Some(sub)) => {
                let body = bkv::body::Raw { body: Hex(fields) };
                bkv::encode::fields(&mut frame, &header, sub as u8, &body);
            }
            (bkv_command::PACKET, Some(sub)) => {
                let tags = bkv::packet::PacketHeader::new(sequence, id);
                bkv::encode::packet(&mut frame, Direction::Up, sequence, id, tags, sub, |out| {
                    out.extend_from_slice(fields);
                });
            }
            (command, _) => {
                bkv::encode::frame(&mut frame, Direction::Up, command, sequence, id, |out| {
                    out.extend_from_slice(fields)
                });
            }
        }
        self.receive(which, &frame);
    }

    /// Answers the last frame that was written to a connection, under its command and number.
    fn reply(&mut self, input: &mut Input<'_>) {
        let (which, data) = (input.u8(), input.bytes());
        let Some(peer) = self.peer(which) else { return };
        let mut reply = Vec::new();
        if let Step::Item { item: Item::Frame(frame), .. } = ap3000::deframe(&peer.last, &self.magics) {
            let (phy_id, msg_id) = (frame.phy_id, frame.msg_id);
            let written = ap3000::encode::frame(&mut reply, frame.magic, phy_id, msg_id, frame.command, |out| {
                out.extend_from_slice(data);
            });
            if written.is_err() {
                return;
            }
        } else if let Step::Item { item: frame, .. } = bkv::deframe(&peer.last) {
            let header = bkv::encode::Header::up(frame.command, frame.sequence, frame.gateway_id);
            match frame.sub() {
                Some(sub) if frame.command == bkv_command::PACKET => {
                    let tags = bkv::packet::PacketHeader::new(frame.sequence, frame.gateway_id);
                    let id = frame.gateway_id;
                    bkv::encode::packet(&mut reply, Direction::Up, frame.sequence, id, tags, sub, |out| {
                        out.extend_from_slice(data);
                    });
                }
                Some(sub) => bkv::encode::fields(&mut reply, &header, sub as u8, &bkv::body::Raw { body: Hex(data) }),
                None => return,
            }
        } else {
            return;
        }
        self.receive(which, &reply);
    }

    fn wait(&mut self, ms: u64) {
        self.now.mono_ms += ms;
        self.now.unix_ms += ms as i64;
        self.core.timeout(self.now, &mut self.effects);
        let next = self.core.poll_timeout();
        assert!(next.is_none_or(|at| at > self.now.mono_ms), "a deadline that has passed is left: {next:?}");
    }

    /// Gives a job its outcome.
    fn answer(&mut self, which: usize, ok: bool) {
        let Some(job) = which.checked_rem(self.jobs.len()).and_then(|at| self.jobs.remove(at)) else { return };
        let outcome = self.outcome(job, ok);
        self.tell(Message::Outcome(outcome));
    }

    fn outcome(&mut self, job: Job, ok: bool) -> Outcome {
        if !ok {
            let (device_id, key) = match &job {
                Job::Bind(bind) => (Some(bind.device_id), None),
                Job::Order(job) => (job.device_id, None),
                Job::Settle(settlement) => (Some(settlement.device_id), Some(settlement.key)),
                _ => (None, None),
            };
            let ticket = if let Job::Report(report) = &job { Some(report.ticket) } else { None };
            return Outcome::Failed { device_id, key, ticket, error: StoreError::Unavailable("down".into()) };
        }
        match job {
            Job::Bind(bind) => {
                let epoch = self.epochs.entry(bind.device_id).or_insert(0);
                *epoch += 1;
                Outcome::Bound(Box::new(Bound {
                    admitted: !bind.known_only || self.rows & 1 == 0,
                    networked: bind.protocol != Protocol::Ap3000 && self.rows & 2 == 0,
                    has_ota: self.rows & 4 == 4,
                    ..Bound::new(&bind, *epoch)
                }))
            }
            Job::Settle(settlement) => Outcome::Settled(Box::new(Settled {
                key: settlement.key,
                stored: true,
                order: None,
                from: None,
                withdrawn: Vec::new(),
                quarantined: false,
            })),
            Job::Report(report) => Outcome::Reported { device_id: report.event.device_id, ticket: report.ticket },
            Job::Claim { device_id, .. } => Outcome::Claimed { device_id, commands: Vec::new(), orders: Vec::new() },
            _ => Outcome::Done,
        }
    }

    fn command(&mut self, device_id: DeviceId, input: &mut Input<'_>) -> Command {
        self.rows += 1;
        let which = usize::from(input.u8());
        let body = COMMANDS[which % COMMANDS.len()].clone();
        Command {
            id: self.rows,
            device_id,
            order_no: Some(order_no(input.u8())),
            body,
            priority: Priority::ALL[which / COMMANDS.len() % Priority::ALL.len()],
            msg_id: u32::from(input.u8()),
            epoch: self.epochs.get(&device_id).copied().unwrap_or(1),
            not_after: self.now.unix_ms + i64::from(input.u16()),
            maybe_written: input.u8() & 1 == 1,
            attempts_max: 3,
        }
    }

    fn tell(&mut self, message: Message) {
        self.core.message(self.now, message, &mut self.effects);
    }

    /// Answers a claim that is under way with a command.
    fn claimed(&mut self, device_id: DeviceId, command: Command) {
        let claim = |job: &Job| matches!(job, Job::Claim { device_id: of, .. } if *of == device_id);
        if let Some(at) = self.jobs.iter().position(claim) {
            self.jobs.remove(at);
            self.tell(Message::Outcome(Outcome::Claimed { device_id, commands: vec![command], orders: Vec::new() }));
        }
    }

    /// An order of the API, new or changed, with or without a command.
    fn order(&mut self, input: &mut Input<'_>) {
        let device_id = device(input.u8());
        let flags = input.u8();
        let commands = if flags & 1 == 0 { vec![self.command(device_id, input)] } else { Vec::new() };
        let withdrawn = if flags & 2 == 2 { vec![self.rows - 1] } else { Vec::new() };
        let Some(status) = OrderStatus::from_code(flags >> 2 & 0x0f) else { return };
        let (order_no, port_no) = (order_no(input.u8()), u16::from(input.u8() % 4));
        let order = Order {
            status,
            spec: ChargeSpec { mode: ChargeMode::Time { minutes: 5 }, paid_cent: None, stop_when_full: false },
            business_no: (flags & 0x40 != 0).then(|| input.u16()),
            device_end_pending: flags & 0x80 != 0,
            ..Order::pending(order_no, device_id, port_no, self.now.unix_ms)
        };
        let message = Message::OrderChanged { order: Box::new(order), commands, withdrawn };
        self.tell(message);
    }

    fn carry_out(&mut self) {
        let tx = std::mem::take(&mut self.effects.tx);
        let mut end = 0;
        for (conn, range) in std::mem::take(&mut self.effects.writes) {
            assert_eq!(range.start, end, "bytes between two writes");
            end = range.end;
            // A command that its device does not know leaves a write of nothing.
            let Some(last) = last_frame(&tx[range], &self.magics) else { continue };
            // An acknowledgement may be late for its connection, and the engine drops it.
            if let Some(peer) = self.peers.iter_mut().find(|peer| peer.conn == conn) {
                peer.last = last;
            }
        }
        assert_eq!(end, tx.len(), "bytes for nobody");
        for conn in std::mem::take(&mut self.effects.closes) {
            let at = self.peers.iter().position(|peer| peer.conn == conn).expect("closed twice");
            self.peers.swap_remove(at);
        }
        self.jobs.extend(self.effects.jobs.drain(..));
        self.effects.log.clear();
        self.effects.latest.clear();
        self.effects.tells.clear();
    }

    fn check(&mut self) {
        self.carry_out();
        assert_eq!(self.core.connections(), self.peers.len());
        assert_eq!(self.core.jobs_under_way(), self.jobs.len());
        assert!(self.jobs.len() <= JOBS_MAX);
    }

    /// Drains the core; it comes to rest once all its jobs have their outcomes.
    fn finish(&mut self) {
        self.tell(Message::Drain);
        self.check();
        for _ in 0..1_000 {
            if self.jobs.is_empty() {
                break;
            }
            self.answer(0, true);
            self.check();
        }
        assert!(self.peers.is_empty(), "connections are left");
        assert!(self.core.is_idle(), "{} jobs are left", self.jobs.len());
    }
}

/// The last of the whole server frames that `bytes` are.
fn last_frame(mut bytes: &[u8], magics: &Magics) -> Option<Vec<u8>> {
    let mut last = None;
    while !bytes.is_empty() {
        let consumed = if bytes.starts_with(&[0xfc]) {
            let Step::Item { item, consumed } = bkv::deframe(bytes) else { panic!("no frame: {:?}", Hex(bytes)) };
            assert_eq!(item.direction, Direction::Down);
            bkv::decode_body(&item).unwrap_or_else(|error| panic!("{error}: {:?}", Hex(item.raw)));
            consumed
        } else {
            let Step::Item { item: Item::Frame(frame), consumed } = ap3000::deframe(bytes, magics) else {
                panic!("no frame: {:?}", Hex(bytes))
            };
            ap3000::decode_body(&frame, Direction::Down)
                .unwrap_or_else(|error| panic!("{error}: {:?}", Hex(frame.raw)));
            consumed
        };
        let (frame, rest) = bytes.split_at(consumed);
        last = Some(frame.to_vec());
        bytes = rest;
    }
    last
}

/// The first devices are AP3000, the others gateways.
fn device(which: u8) -> DeviceId {
    match which % (2 * DEVICES) {
        number @ 0..DEVICES => DeviceId::Ap3000(PhyId([number, 0xaa, 0xce, 0x04])),
        number => DeviceId::Gateway(GatewayId([0x82, 0x20, 0x05, 0x20, 0x00, 0x48, number])),
    }
}

fn order_no(which: u8) -> OrderNo {
    OrderNo::new(*b"FUZ", u64::from(which % 4))
}
