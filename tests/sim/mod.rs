//! The third driver of the core: virtual time, an in-memory network, and the real store applied in step.
//!
//! Fault model: connections may be cut between any two bytes delivered, the gateway may be lost at any moment with all its memory
//! (the database stays as committed, jobs that wait for the store are committed or lost, and nobody hears of it), the store may be
//! slow, and may refuse jobs for a while. Bytes are neither lost nor changed within a connection. Everything that is drawn is drawn
//! from one seed by the test, and replays identically.

#![allow(dead_code, reason = "each test uses its part")]

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap, VecDeque},
    net::{IpAddr, Ipv4Addr},
    path::PathBuf,
    sync::Arc,
};

use chargegate::{
    gateway::{
        ConnId, ConnectionLimits, Core, CoreConfig, Effects, Listener, Message, Now, OtaStart, ShardId, WantedEvents,
        card::CardRules, directory::Directory, order,
    },
    model::{
        ChargeMode, ChargeSpec, DeviceId, OrderNo, OrderNumbers, OrderStatus, OtaMethod, OtaState, OtaTask, PortStatus,
    },
    protocol::ap3000::update::Verification,
    store::{
        Backstop, Created, Job, NewFirmware, NewOrder, NewOtaTask, OrderJob, OrderKey, OrderOutcome, OtaJob,
        OtaOutcome, Outcome, Requester, sqlite::Db,
    },
    telemetry::Metrics,
};
use chargegate_loadtest::device::Device;

/// 2026-01-01T00:00:00Z.
pub(crate) const EPOCH_MS: i64 = 1_767_225_600_000;
const BACKSTOP_MS: u64 = 10_000;
const POLL_MS: u64 = 5_000;
/// From readiness until orders are timed out, and interrupted, by the backstop.
const GRACES_MS: [i64; 2] = [90_000, 600_000];

/// What happens to bytes under way: given how many, says how many pass before the connection is cut, and after how many
/// milliseconds the device comes back. `None`: all pass.
pub(crate) type Mishap = Box<dyn FnMut(usize) -> Option<(usize, u64)>>;

pub(crate) struct Peer {
    pub(crate) id: DeviceId,
    pub(crate) device: Box<dyn Device>,
    conn: Option<ConnId>,
    connect_at: u64,
    /// Its live entry among the wakes.
    wake: u64,
    /// Frames the gateway wrote, whole writes.
    pub(crate) received: Vec<Vec<u8>>,
    /// Nothing the gateway writes arrives.
    pub(crate) deaf: bool,
    /// Does not connect again.
    pub(crate) gone: bool,
    /// Keep no copy of what it was sent: for worlds with many devices.
    pub(crate) forgetful: bool,
}

impl Peer {
    /// When it next does something by itself.
    fn due(&self) -> u64 {
        let timer = self.device.poll_timeout().map(|us| us.div_ceil(1000));
        let connect = (self.conn.is_none() && !self.gone).then_some(self.connect_at);
        [timer, connect].into_iter().flatten().min().unwrap_or(u64::MAX)
    }
}

pub(crate) struct World {
    pub(crate) now_ms: u64,
    dir: tempfile::TempDir,
    /// `None` only while the gateway is lost.
    db: Option<Db>,
    reader: rusqlite::Connection,
    core: Core,
    directory: Arc<Directory>,
    effects: Effects,
    pub(crate) peers: Vec<Peer>,
    by_conn: HashMap<ConnId, usize>,
    /// When peers act; an entry that is not its peer's `wake` is stale.
    wakes: BinaryHeap<Reverse<(u64, usize)>>,
    /// Peers to be looked at at this instant.
    ready: Vec<usize>,
    config: CoreConfig,
    cards: Arc<CardRules>,
    numbers: OrderNumbers,
    /// The store refuses everything.
    pub(crate) store_down: bool,
    /// What becomes of bytes.
    pub(crate) mishap: Option<Mishap>,
    /// How many milliseconds the next jobs wait for the store; without it they do not.
    pub(crate) store_latency: Option<Box<dyn FnMut() -> u64>>,
    pending: VecDeque<(u64, Vec<Job>)>,
    /// Updates as created, and their images, by device.
    updates: HashMap<DeviceId, (OtaTask, Arc<[u8]>)>,
    /// Devices whose update is offered to their shard next.
    offers: Vec<DeviceId>,
    ready_ms: u64,
    backstop_at: u64,
    poll_at: u64,
}

impl World {
    pub(crate) fn new() -> Self {
        let wanted = Arc::new(WantedEvents::new(true, false));
        Self::with(CoreConfig { wanted, ..CoreConfig::new(ShardId(0)) })
    }

    pub(crate) fn with(config: CoreConfig) -> Self {
        Self::with_cards(config, CardRules::default())
    }

    pub(crate) fn with_cards(config: CoreConfig, cards: CardRules) -> Self {
        let (dir, cards) = (directory(), Arc::new(cards));
        let db = Some(open(&dir, &cards));
        let reader = rusqlite::Connection::open(path(&dir)).unwrap();
        let (core, directory) = gateway(&config);
        Self {
            now_ms: 1,
            dir,
            db,
            reader,
            core,
            directory,
            effects: Effects::default(),
            peers: Vec::new(),
            by_conn: HashMap::new(),
            wakes: BinaryHeap::new(),
            ready: Vec::new(),
            config,
            cards,
            numbers: OrderNumbers::new(*b"THD", 1),
            store_down: false,
            mishap: None,
            store_latency: None,
            pending: VecDeque::new(),
            updates: HashMap::new(),
            offers: Vec::new(),
            ready_ms: 1,
            backstop_at: BACKSTOP_MS,
            poll_at: POLL_MS,
        }
    }

    pub(crate) fn now(&self) -> Now {
        Now { mono_ms: self.now_ms, unix_ms: unix_ms(self.now_ms) }
    }

    pub(crate) fn add(&mut self, id: &str, device: impl Device + 'static) -> usize {
        let id = id.parse().unwrap();
        let device = Box::new(device);
        let connect_at = self.now_ms;
        let peer = Peer {
            id,
            device,
            conn: None,
            connect_at,
            wake: u64::MAX,
            received: Vec::new(),
            deaf: false,
            gone: false,
            forgetful: false,
        };
        self.peers.push(peer);
        let index = self.peers.len() - 1;
        self.ready.push(index);
        index
    }

    /// What a test did to a peer may make it act now.
    pub(crate) fn poke(&mut self, index: usize) {
        self.ready.push(index);
    }

    /// Notes when a peer acts next.
    fn arm(&mut self, index: usize) {
        let due = self.peers[index].due();
        if self.peers[index].wake != due {
            self.peers[index].wake = due;
            if due != u64::MAX {
                self.wakes.push(Reverse((due, index)));
            }
        }
    }

    /// The next instant a peer acts at.
    fn next_wake(&mut self) -> Option<u64> {
        while let Some(Reverse((at, index))) = self.wakes.peek().copied() {
            if self.peers[index].wake == at {
                return Some(at);
            }
            self.wakes.pop();
        }
        None
    }

    /// Lets `ms` pass, event by event.
    pub(crate) fn run_for(&mut self, ms: u64) {
        let until = self.now_ms + ms;
        self.run_until_time(until, |_| false);
    }

    /// Runs until `done`, at most for `ms`.
    pub(crate) fn run_until(&mut self, ms: u64, what: &str, done: impl FnMut(&mut Self) -> bool) {
        let until = self.now_ms + ms;
        assert!(self.run_until_time(until, done), "not within {ms} ms: {what}\n{}", self.dump());
    }

    fn run_until_time(&mut self, until: u64, mut done: impl FnMut(&mut Self) -> bool) -> bool {
        loop {
            self.step();
            if done(self) {
                return true;
            }
            let peers = self.next_wake().into_iter();
            let store = self.pending.front().map(|(due, _)| *due);
            let jobs = [Some(self.backstop_at), Some(self.poll_at), store].into_iter().flatten();
            let next = peers.chain(self.core.poll_timeout()).chain(jobs).filter(|at| *at > self.now_ms).min();
            let next = next.unwrap_or(until).min(until);
            if self.now_ms >= until {
                return false;
            }
            self.now_ms = next.max(self.now_ms + 1).min(until);
        }
    }

    fn step(&mut self) {
        self.periodic();
        // Everything that happens at this instant, until nothing more does.
        for _ in 0..1_000 {
            let mut busy = self.store_done(self.now_ms);
            while self.next_wake().is_some_and(|at| at <= self.now_ms) {
                if let Some(Reverse((_, index))) = self.wakes.pop() {
                    self.peers[index].wake = u64::MAX;
                    self.ready.push(index);
                }
            }
            // In the order of their numbers, so that a seed replays.
            let mut ready = std::mem::take(&mut self.ready);
            ready.sort_unstable();
            ready.dedup();
            for index in ready {
                busy |= self.step_peer(index);
                self.arm(index);
            }
            let now = self.now();
            self.core.timeout(now, &mut self.effects);
            busy |= self.carry_out();
            if !busy && self.ready.is_empty() {
                return;
            }
        }
        panic!("the world does not come to rest at {} ms", self.now_ms);
    }

    fn step_peer(&mut self, index: usize) -> bool {
        let (now, now_us) = (self.now(), self.now_ms * 1000);
        let peer = &mut self.peers[index];
        if peer.conn.is_none() && !peer.gone && peer.connect_at <= self.now_ms {
            let ip = IpAddr::V4(Ipv4Addr::LOCALHOST);
            let conn = self.core.accept(now, ip, Listener::Devices).expect("accepted");
            peer.conn = Some(conn);
            self.by_conn.insert(conn, index);
            peer.device.connected(now_us);
        }
        if peer.device.poll_timeout().is_some_and(|at| at <= now_us) {
            peer.device.timeout(now_us);
        }
        while peer.device.poll_event().is_some() {}
        let mut out = Vec::new();
        peer.device.poll_output(&mut out);
        let closes = peer.device.poll_close();
        let Some(conn) = peer.conn else { return false };
        if !out.is_empty() {
            let mishap = self.mishap.as_mut().and_then(|mishap| mishap(out.len()));
            let passes = mishap.map_or(out.len(), |(passes, _)| passes);
            if passes > 0 {
                self.core.receive(now, conn, &out[..passes], &mut self.effects);
            }
            if let Some((_, back_after_ms)) = mishap {
                self.cut(index, back_after_ms);
            }
        }
        if closes {
            self.cut(index, 4_000);
        }
        self.carry_out();
        !out.is_empty() || closes
    }

    /// Cuts a connection; the device comes back after `back_after_ms`.
    pub(crate) fn cut(&mut self, index: usize, back_after_ms: u64) {
        let (now, now_us) = (self.now(), self.now_ms * 1000);
        let peer = &mut self.peers[index];
        if let Some(conn) = peer.conn.take() {
            self.by_conn.remove(&conn);
            self.ready.push(index);
            peer.device.disconnected(now_us);
            peer.connect_at = self.now_ms + back_after_ms;
            self.core.closed(now, conn, chargegate::gateway::CloseReason::Peer, &mut self.effects);
            self.carry_out();
        }
    }

    fn carry_out(&mut self) -> bool {
        let mut busy = false;
        loop {
            let now_us = self.now_ms * 1000;
            let tx = std::mem::take(&mut self.effects.tx);
            for (conn, range) in std::mem::take(&mut self.effects.writes) {
                busy = true;
                let now = Now { mono_ms: self.now_ms, unix_ms: unix_ms(self.now_ms) };
                self.core.sent(now, conn, &tx[range.clone()]);
                let Some(index) = self.by_conn.get(&conn).copied() else { continue };
                self.ready.push(index);
                let peer = &mut self.peers[index];
                if peer.deaf {
                    continue;
                }
                let mishap = self.mishap.as_mut().and_then(|mishap| mishap(range.len()));
                let passes = range.start..range.start + mishap.map_or_else(|| range.len(), |(passes, _)| passes);
                if !peer.forgetful {
                    peer.received.push(tx[passes.clone()].to_vec());
                }
                peer.device.receive(now_us, &tx[passes]);
                if let Some((_, back_after_ms)) = mishap {
                    peer.conn = None;
                    self.by_conn.remove(&conn);
                    peer.device.disconnected(now_us);
                    peer.connect_at = self.now_ms + back_after_ms;
                    self.core.closed(now, conn, chargegate::gateway::CloseReason::Peer, &mut self.effects);
                }
            }
            for conn in std::mem::take(&mut self.effects.closes) {
                busy = true;
                if let Some(index) = self.by_conn.remove(&conn) {
                    self.ready.push(index);
                    let peer = &mut self.peers[index];
                    peer.conn = None;
                    peer.device.disconnected(now_us);
                    peer.connect_at = self.now_ms + 4_000;
                }
            }
            let latest = std::mem::take(&mut self.effects.latest);
            if !latest.is_empty() && !self.store_down {
                self.db.as_mut().unwrap().apply_latest(&latest).unwrap();
            }
            self.effects.log.clear();
            let jobs: Vec<Job> = self.effects.jobs.drain(..).collect();
            if jobs.is_empty() {
                return busy;
            }
            busy = true;
            let latency = self.store_latency.as_mut().map_or(0, |latency| latency());
            let behind = self.pending.back().map_or(0, |(due, _)| *due);
            self.pending.push_back(((self.now_ms + latency).max(behind), jobs));
            self.store_done(self.now_ms);
        }
    }

    /// Applies the jobs whose time has come, in their order, and hands the outcomes over.
    fn store_done(&mut self, until: u64) -> bool {
        let mut busy = false;
        while self.pending.front().is_some_and(|(due, _)| *due <= until) {
            let Some((_, jobs)) = self.pending.pop_front() else { break };
            busy = true;
            for outcome in self.apply(jobs) {
                let now = self.now();
                if let Outcome::Bound(bound) = &outcome
                    && bound.has_ota
                {
                    self.offers.push(bound.device_id);
                }
                self.core.message(now, Message::Outcome(outcome), &mut self.effects);
            }
        }
        busy | self.offer()
    }

    /// What the thread that reads images does: offers open updates to the shard, as far as the device has them.
    fn offer(&mut self) -> bool {
        let mut offered = false;
        for device_id in std::mem::take(&mut self.offers) {
            let Some((task, image)) = self.updates.get(&device_id) else { continue };
            let open: Option<(u8, u16)> = self
                .reader
                .query_row(
                    "SELECT state, packets_acked FROM ota_tasks WHERE task_id = ?1 AND state IN (0, 1, 2)",
                    [task.id],
                    |row| Ok((row.get(0)?, row.get(1)?)),
                )
                .ok();
            let Some((state, packets_acked)) = open else { continue };
            let task = OtaTask { state: OtaState::from_code(state).unwrap(), packets_acked, ..task.clone() };
            let verification = task
                .firmware
                .as_ref()
                .filter(|_| task.verification)
                .map(|firmware| Verification::of(image, firmware.device_type.unwrap(), firmware.version.unwrap()));
            let start = OtaStart { task, image: Some(Arc::clone(image)), verification };
            let now = self.now();
            self.core.message(now, Message::OtaStart(Box::new(start)), &mut self.effects);
            offered = true;
        }
        offered
    }

    /// Orders an update; false where the device has one.
    pub(crate) fn update(&mut self, peer: usize, method: OtaMethod, device_type: u8, image: Arc<[u8]>) -> bool {
        use sha2::{Digest as _, Sha256};
        let (device_id, at) = (self.peers[peer].id, self.now().unix_ms);
        let firmware = NewFirmware {
            sha256: Sha256::digest(&image).into(),
            size: u32::try_from(image.len()).unwrap(),
            name: "image".into(),
            version: Some(699),
            device_type: Some(device_type),
            at,
        };
        let firmware_id = match self.call(Job::Ota(Box::new(OtaJob::AddFirmware(firmware)))) {
            Outcome::Ota(outcome) => match *outcome {
                OtaOutcome::Firmware { firmware, .. } => firmware.id,
                other => panic!("{other:?}"),
            },
            _ => return false,
        };
        let verified = method == OtaMethod::E0;
        let new = NewOtaTask {
            device_id,
            method,
            firmware_id: Some(firmware_id),
            ftp: None,
            verification: verified,
            force: false,
            packets_total: method.packets(image.len(), verified).unwrap(),
            at,
            request_id: "test".into(),
            idempotency: None,
        };
        let Outcome::Ota(outcome) = self.call(Job::Ota(Box::new(OtaJob::Create(new)))) else { return false };
        let OtaOutcome::Created(task) = *outcome else { return false };
        self.updates.insert(device_id, (task, image));
        self.offers.push(device_id);
        self.offer();
        self.carry_out();
        true
    }

    /// The image of a device's newest update.
    pub(crate) fn image(&self, peer: usize) -> Option<(i64, &[u8])> {
        self.updates.get(&self.peers[peer].id).map(|(task, image)| (task.id, image.as_ref()))
    }

    /// The gateway's own jobs: timeouts of orders without a live owner, and commands whose wake-up was lost.
    fn periodic(&mut self) {
        let now = self.now();
        if self.now_ms >= self.backstop_at {
            self.backstop_at = self.now_ms + BACKSTOP_MS;
            let [offline_from, interrupts_from] = GRACES_MS.map(|grace| unix_ms(self.ready_ms) + grace);
            let job = Job::Backstop(Backstop {
                at: now.unix_ms,
                interrupts_from,
                offline_from,
                interrupt_grace: 0,
                offline_grace: 0,
            });
            for outcome in self.apply(vec![job]) {
                let Outcome::Backstop(outcomes) = outcome else { continue };
                for OrderOutcome { order, commands, withdrawn, .. } in outcomes {
                    let Some(order) = order else { continue };
                    let message = Message::OrderChanged { order: Box::new(order), commands, withdrawn };
                    self.core.message(now, message, &mut self.effects);
                }
            }
        }
        if self.now_ms >= self.poll_at {
            self.poll_at = self.now_ms + POLL_MS;
            for device_id in self.devices_with_queued_commands() {
                self.core.message(now, Message::CommandsQueued(device_id), &mut self.effects);
            }
        }
    }

    fn devices_with_queued_commands(&self) -> Vec<DeviceId> {
        let query = "SELECT DISTINCT device_id FROM outbound_queue WHERE state = 'queued'";
        let mut statement = self.reader.prepare_cached(query).unwrap();
        let devices = statement.query_map([], |row| row.get::<_, String>(0)).unwrap();
        devices.map(|id| id.unwrap().parse().unwrap()).collect()
    }

    fn apply(&mut self, jobs: Vec<Job>) -> Vec<Outcome> {
        if self.store_down {
            return jobs.iter().map(refused).collect();
        }
        let now = self.now();
        let applied = self.db.as_mut().unwrap().apply(now.unix_ms, &jobs);
        assert!(applied.error.is_none(), "{:?}", applied.error);
        for queued in applied.queued {
            self.core.message(now, Message::CommandsQueued(queued.device_id), &mut self.effects);
        }
        applied.outcomes
    }

    /// A message of another thread.
    pub(crate) fn tell(&mut self, message: Message) {
        let now = self.now();
        self.core.message(now, message, &mut self.effects);
        self.carry_out();
    }

    /// What an API call does: a job, and the owner is told.
    pub(crate) fn call(&mut self, job: Job) -> Outcome {
        // One queue leads to the store.
        self.store_done(u64::MAX);
        let outcome = self.apply(vec![job]).remove(0);
        let (now, mut changed) = (self.now(), None);
        match &outcome {
            Outcome::Created(created) => {
                if let Created::Order { order, command } = created.as_ref() {
                    changed = Some((order.clone(), command.iter().cloned().collect(), Vec::new()));
                }
            }
            Outcome::Order(step) => {
                let OrderOutcome { order, commands, withdrawn, .. } = step.as_ref();
                changed = order.clone().map(|order| (order, commands.clone(), withdrawn.clone()));
            }
            _ => {}
        }
        if let Some((order, commands, withdrawn)) = changed {
            let message = Message::OrderChanged { order: Box::new(order), commands, withdrawn };
            self.core.message(now, message, &mut self.effects);
        }
        self.carry_out();
        outcome
    }

    pub(crate) fn charge(&mut self, peer: usize, port_no: u16, mode: ChargeMode) -> OrderNo {
        let device_id = self.peers[peer].id;
        let epoch = self.directory.find(device_id).and_then(|entry| entry.live_epoch());
        assert!(epoch.is_some(), "{device_id} is bound");
        let created = self.create(device_id, port_no, mode);
        let Ok(Created::Order { order, .. }) = created else { panic!("{created:?}") };
        order.order_no
    }

    /// The same as the API does it: `None` where it is refused.
    pub(crate) fn try_charge(&mut self, peer: usize, port_no: u16, mode: ChargeMode) -> Option<OrderNo> {
        let device_id = self.peers[peer].id;
        let entry = self.directory.find(device_id)?;
        let free =
            entry.port(port_no).is_some_and(|port| !matches!(port.status, PortStatus::Charging | PortStatus::Fault));
        if !free || !entry.connected() || !entry.score(self.now().unix_ms).online() {
            return None;
        }
        match self.create(device_id, port_no, mode) {
            Ok(Created::Order { order, .. }) => Some(order.order_no),
            Ok(Created::PortBusy { .. } | Created::TooLate | Created::CardRefused(_)) | Err(_) => None,
        }
    }

    fn create(&mut self, device_id: DeviceId, port_no: u16, mode: ChargeMode) -> Result<Created, Outcome> {
        let now = self.now();
        let order_no = self.numbers.next(now.unix_ms);
        let epoch = self.directory.find(device_id).and_then(|entry| entry.live_epoch());
        let order = NewOrder {
            order_no,
            device_id,
            port_no,
            spec: ChargeSpec { paid_cent: paid(&mode), mode, stop_when_full: false },
            epoch,
            at: now.unix_ms,
            deadline: now.unix_ms + 5_000,
            request_id: "test".into(),
            requester: Requester::default(),
            card_no: None,
            idempotency: None,
        };
        match self.call(Job::CreateOrder(Box::new(order))) {
            Outcome::Created(created) => Ok(*created),
            other => Err(other),
        }
    }

    pub(crate) fn order_event(&mut self, order_no: OrderNo, event: order::Event) -> order::Verdict {
        self.try_order_event(order_no, event).expect("the store takes it")
    }

    /// `None` where the store does not take it.
    pub(crate) fn try_order_event(&mut self, order_no: OrderNo, event: order::Event) -> Option<order::Verdict> {
        let now = self.now();
        let device_id = self.order(order_no).device_id;
        let epoch = self.directory.find(device_id).and_then(|entry| entry.live_epoch());
        let job = OrderJob {
            order: OrderKey::No(order_no),
            event,
            device_id: None,
            epoch,
            fence: None,
            business_no: None,
            reason: None,
            at: now.unix_ms,
            request_id: None,
            requester: Requester::default(),
            idempotency: None,
        };
        match self.call(Job::Order(Box::new(job))) {
            Outcome::Order(outcome) => Some(outcome.verdict),
            Outcome::Failed { .. } => None,
            other => panic!("{other:?}"),
        }
    }

    /// The gateway is lost with all its memory and started again on the same database.
    pub(crate) fn restart(&mut self) {
        for (index, peer) in self.peers.iter_mut().enumerate() {
            if peer.conn.take().is_some() {
                peer.device.disconnected(self.now_ms * 1000);
                peer.connect_at = self.now_ms + 1_000;
                self.ready.push(index);
            }
        }
        self.by_conn.clear();
        let (core, directory) = gateway(&self.config);
        (self.core, self.directory) = (core, directory);
        self.effects = Effects::default();
        self.pending.clear();
        (self.ready_ms, self.backstop_at, self.poll_at) =
            (self.now_ms, self.now_ms + BACKSTOP_MS, self.now_ms + POLL_MS);
        self.db = None;
        self.db = Some(open(&self.dir, &self.cards));
    }

    /// A device without a connection comes back after `ms`.
    pub(crate) fn stay_away(&mut self, peer: usize, ms: u64) {
        self.peers[peer].connect_at = self.now_ms + ms;
        self.arm(peer);
    }

    /// What waits for the store is still committed; the gateway is lost before it hears of it.
    pub(crate) fn restart_after_commit(&mut self) {
        for (_, jobs) in std::mem::take(&mut self.pending) {
            self.apply(jobs);
        }
        self.restart();
    }

    /// Ports the gateway knows of a device.
    pub(crate) fn ports(&self, peer: usize) -> usize {
        self.directory.find(self.peers[peer].id).map_or(0, |entry| entry.ports().len())
    }

    pub(crate) fn online(&self, peer: usize) -> bool {
        let entry = self.directory.find(self.peers[peer].id);
        entry.is_some_and(|entry| entry.live_epoch().is_some() && entry.declared_online())
    }

    pub(crate) const fn sql(&self) -> &rusqlite::Connection {
        &self.reader
    }

    pub(crate) fn order(&self, order_no: OrderNo) -> Row {
        let sql = "SELECT device_id, status, duration_seconds, settled_at, device_end_pending, failure_reason \
                   FROM orders WHERE order_no = ?1";
        self.sql()
            .query_row(sql, [order_no.as_str()], |row| {
                Ok(Row {
                    device_id: row.get::<_, String>(0)?.parse().unwrap(),
                    status: OrderStatus::from_code(row.get(1)?).unwrap(),
                    duration_seconds: row.get(2)?,
                    settled: row.get::<_, Option<i64>>(3)?.is_some(),
                    end_pending: row.get(4)?,
                    failure_reason: row.get(5)?,
                })
            })
            .unwrap()
    }

    pub(crate) fn status(&self, order_no: OrderNo) -> OrderStatus {
        self.order(order_no).status
    }

    /// A number that a query gives.
    pub(crate) fn count(&self, query: &str) -> i64 {
        self.sql().query_row(query, [], |row| row.get(0)).unwrap()
    }

    /// Event types of a key, in the order of the log.
    pub(crate) fn events(&self, key: &str) -> Vec<String> {
        let sql = self.sql();
        let mut statement =
            sql.prepare("SELECT event_type, sequence_no FROM events WHERE key = ?1 ORDER BY pos").unwrap();
        let rows = statement.query_map([key], |row| Ok((row.get::<_, String>(0)?, row.get::<_, u32>(1)?))).unwrap();
        let rows: Vec<_> = rows.map(Result::unwrap).collect();
        let numbers: Vec<u32> = rows.iter().map(|(_, no)| *no).filter(|no| *no > 0).collect();
        assert!(numbers.windows(2).all(|pair| pair[1] == pair[0] + 1), "gapless: {rows:?}");
        rows.into_iter().map(|(event, _)| event).collect()
    }

    pub(crate) fn dump(&self) -> String {
        let sql = self.sql();
        let mut text = format!("now {} ms\n", self.now_ms);
        let mut statement = sql.prepare("SELECT order_no, status, failure_reason FROM orders").unwrap();
        let mut rows = statement.query([]).unwrap();
        while let Some(row) = rows.next().unwrap() {
            let (no, status, reason): (String, u8, Option<String>) =
                (row.get(0).unwrap(), row.get(1).unwrap(), row.get(2).unwrap());
            text += &format!("{no} {:?} {reason:?}\n", OrderStatus::from_code(status));
        }
        let mut statement = sql.prepare("SELECT key, event_type FROM events ORDER BY pos").unwrap();
        let mut rows = statement.query([]).unwrap();
        while let Some(row) = rows.next().unwrap() {
            text += &format!("{} {}\n", row.get::<_, String>(0).unwrap(), row.get::<_, String>(1).unwrap());
        }
        text
    }
}

#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) device_id: DeviceId,
    pub(crate) status: OrderStatus,
    pub(crate) duration_seconds: Option<u32>,
    pub(crate) settled: bool,
    pub(crate) end_pending: bool,
    pub(crate) failure_reason: Option<String>,
}

/// What buys power: the modes in which the device reckons.
fn paid(mode: &ChargeMode) -> Option<u32> {
    matches!(mode, ChargeMode::Power { .. } | ChargeMode::ServiceFee { .. }).then_some(200)
}

fn unix_ms(now_ms: u64) -> i64 {
    EPOCH_MS + i64::try_from(now_ms).unwrap()
}

fn refused(job: &Job) -> Outcome {
    let (device_id, key) = match job {
        Job::Bind(bind) => (Some(bind.device_id), None),
        Job::Order(job) => (job.device_id, None),
        Job::Settle(settlement) => (Some(settlement.device_id), Some(settlement.key)),
        Job::Ota(job) => match &**job {
            OtaJob::Update(update) => (Some(update.device_id), None),
            _ => (None, None),
        },
        _ => (None, None),
    };
    let error = chargegate::store::StoreError::Unavailable("down".into());
    let ticket = if let Job::Report(report) = job { Some(report.ticket) } else { None };
    Outcome::Failed { device_id, key, ticket, error }
}

fn gateway(config: &CoreConfig) -> (Core, Arc<Directory>) {
    let directory = Arc::new(Directory::default());
    let limits = Arc::new(ConnectionLimits::new(1_000_000, 1_000_000));
    let metrics = Metrics::new(1).claim_shard(0).unwrap();
    let core = Core::new(config.clone(), Arc::clone(&directory), limits, metrics);
    (core, directory)
}

/// In memory where there is such a place: what the disk can lose is tested with real processes.
fn directory() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

fn path(dir: &tempfile::TempDir) -> PathBuf {
    dir.path().join("chargegate.db")
}

fn open(dir: &tempfile::TempDir, cards: &Arc<CardRules>) -> Db {
    Db::open(&path(dir), OrderNumbers::new(*b"THD", 1023)).unwrap().with_cards(Arc::clone(cards))
}
