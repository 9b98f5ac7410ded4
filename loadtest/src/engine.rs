//! The sockets of many devices on one thread: mio, a heap of timers, one read buffer.
//!
//! ```text
//! ramp ──> connect ──> device.connected
//! poll ──> bytes ────> device.receive     ──> settle: output to the socket, events to the counters,
//! heap ──> due ──────> device.timeout         the wish to close, one entry in the heap
//! ```
//!
//! - A timer's device is told the time at which it was due, not the time at which its turn came. So what a device does evenly stays
//!   even however late the engine is, and the time to an answer counts from when the request was to be sent.
//! - A device has at most one live entry in the heap. An entry that is found early, because the deadline moved, is put
//!   back; one that was replaced by an earlier one is skipped.
//! - Bytes that the socket does not take wait in the peer's own buffer, bounded.
//! - A lost connection is opened again after 4 to 5 s, spread by index.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};
use socket2::{Domain, Protocol, Socket, Type};

use crate::device::activity::Active;
use crate::device::ap3000::SUB_DEVICES_MAX;
use crate::device::charge::draw;
use crate::device::{
    Ap3000Device, BkvDevice, Device, Event, HostDevice, RudeDevice, Rudeness, SECOND_US, ledger::Ledger, rude,
};
use crate::fleet::Fleet;
use crate::measure::{Metric, Recorder, Seconds};
use crate::report::{Counters, Latencies, add};
use crate::run::{Extras, Plan};
use crate::schedule::{Closing, Happening, Pace, Part, Stream, Timetable};
use crate::verify::{Checker, Finding};

/// Most bytes that wait for a socket; a server that takes fewer is left.
const UNSENT_MAX: usize = 256 * 1024;
/// Receive buffer of peers that do not read.
const UNREAD_MAX: usize = 4096;
/// A device tries again after this long.
const RECONNECT_US: u64 = 4 * SECOND_US;
const CONNECT_TIMEOUT_US: u64 = 10 * SECOND_US;
/// Connects begun in one turn, so that connected devices are served in between.
const CONNECTS_PER_TURN: u32 = 128;
/// Timers handled in one turn, so that answers are read in between.
const TIMERS_PER_TURN: u32 = 1024;
/// Longest sleep, so that the end of the run is noticed.
const SLEEP_MAX: Duration = Duration::from_millis(50);
const NEVER: u64 = u64::MAX;
/// Connections that misbehave are opened at this rate.
const RUDE_PER_S: f64 = 1000.0;
/// Devices looked at for one at which something can happen.
const PLACES_TRIED: u64 = 16;

/// The clock of all threads of a run.
#[derive(Clone, Copy, Debug)]
pub struct Clock(Instant);

impl Clock {
    /// A clock that counts from now.
    #[expect(clippy::disallowed_methods, reason = "the clock enters here")]
    pub fn start() -> Self {
        Self(Instant::now())
    }

    /// Microseconds since the start.
    #[expect(clippy::disallowed_methods, reason = "the clock enters here")]
    pub fn now_us(&self) -> u64 {
        u64::try_from(Instant::now().duration_since(self.0).as_micros()).unwrap_or(u64::MAX)
    }
}

/// What an engine shares with the rest of the run.
#[derive(Clone, Debug)]
pub struct Shared {
    /// The clock.
    pub clock: Clock,
    /// Which ports are free.
    pub fleet: Arc<Fleet>,
    /// Set when the run is over.
    pub stop: Arc<AtomicBool>,
    /// Set when no more devices and charges are to be begun. Lost connections still come back: records wait for them.
    pub draining: Arc<AtomicBool>,
    /// Set when devices are to say nothing more by themselves, so that the last answers can come.
    pub silent: Arc<AtomicBool>,
}

/// Connections that are opened in turn.
#[derive(Debug)]
struct Ramp {
    pace: Pace,
    peers: VecDeque<usize>,
}

/// Connections that misbehave until some time.
#[derive(Debug)]
struct RudeSpan {
    until_us: u64,
    peers: Vec<usize>,
}

/// One thread's devices.
pub struct Engine {
    poll: Poll,
    peers: Vec<Peer>,
    /// Polite peers that no ramp has, in order.
    fresh: VecDeque<usize>,
    ramps: Vec<Ramp>,
    closings: Vec<Closing>,
    /// Peers to be disconnected, a few in each turn.
    going: VecDeque<usize>,
    happenings: Vec<Stream<Happening>>,
    rude_spans: Vec<RudeSpan>,
    seed: u64,
    /// Draws so far.
    drawn: u64,
    /// Where latencies are recorded, if somebody wants them second by second.
    recorder: Option<Arc<Recorder>>,
    seconds: Option<Seconds>,
    /// Whether the devices were told that the run ends.
    quiet: bool,
    timers: BinaryHeap<Reverse<(u64, usize)>>,
    /// Devices connect to these in turn, by index.
    connect: Box<[SocketAddr]>,
    source_addresses: u32,
    shared: Shared,
    counters: Arc<Counters>,
    latencies: Latencies,
    read_buffer: Box<[u8]>,
    out: Vec<u8>,
}

struct Peer {
    device: Box<dyn Device>,
    index: u32,
    link: Link,
    unsent: Vec<u8>,
    /// Time of the live entry in the heap.
    armed_us: u64,
    registered: bool,
    attempted: bool,
    ever_connected: bool,
    rude: bool,
    /// Whether it is one device, not a host of many.
    single: bool,
    /// Never to be connected again.
    retired: bool,
    /// Time of the last call of the device: its clock does not go back.
    last_us: u64,
    /// When the connection that is not bound yet was to be opened; [`NEVER`]: it is bound.
    wanted_us: u64,
    checker: Option<Box<Checker>>,
}

enum Link {
    /// Not to be connected before this time.
    Down(u64),
    Connecting(TcpStream, u64),
    Up(TcpStream),
}

impl Engine {
    /// The devices whose index leaves the rest `thread` when divided by the plan's threads, with what happens at them.
    ///
    /// # Errors
    /// The system gives no poll.
    pub fn new(plan: &Plan, extras: Extras, thread: u32, shared: Shared, counters: Arc<Counters>) -> io::Result<Self> {
        let threads = plan.threads.max(1);
        let mine = |count: u32| (0..count).filter(move |index| index % threads == thread);
        let mut peers = Vec::new();
        let rude = plan.rude.iter().flat_map(|(rudeness, count)| mine(*count).map(|_| *rudeness));
        for (number, rudeness) in (0..).zip(rude) {
            let index = rude::rude_index(number * threads + thread);
            peers.push(Peer::new(Box::new(RudeDevice::new(rudeness, index)), index, true));
        }
        peers.extend(mine(plan.devices).map(|nth| {
            let index = extras.first_device.saturating_add(nth);
            let device: Box<dyn Device> = if plan.protocol.is_ap3000(index) {
                let device = Ap3000Device::new(index, plan.ports, plan.behaviour);
                Box::new(Active::new(device, extras.activity, plan.behaviour.seed, index))
            } else {
                let device = BkvDevice::new(index, plan.sockets, plan.behaviour);
                Box::new(Active::new(device, extras.activity, plan.behaviour.seed, index))
            };
            Peer::new(device, index, false)
        }));
        // Behind the devices of the plan, each with room for the chargers behind it.
        peers.extend(mine(extras.hosts).map(|host| {
            let first = extras.first_host.unwrap_or_else(|| extras.first_device.saturating_add(plan.devices));
            let index = first.saturating_add(host.saturating_mul(u32::from(SUB_DEVICES_MAX) + 1));
            let device = HostDevice::new(index, extras.sub_devices, plan.ports, plan.behaviour);
            let device = Active::new(device, extras.activity, plan.behaviour.seed, index);
            Peer { single: false, ..Peer::new(Box::new(device), index, false) }
        }));
        let mut engine = Self {
            poll: Poll::new()?,
            fresh: (0..peers.len()).collect(),
            peers,
            ramps: Vec::new(),
            closings: Vec::new(),
            going: VecDeque::new(),
            happenings: Vec::new(),
            rude_spans: Vec::new(),
            seed: plan.behaviour.seed,
            drawn: 0,
            recorder: None,
            seconds: None,
            quiet: false,
            timers: BinaryHeap::new(),
            connect: plan.connect.clone().into(),
            source_addresses: plan.source_addresses,
            shared,
            counters,
            latencies: Latencies::default(),
            read_buffer: vec![0; 64 * 1024].into_boxed_slice(),
            out: Vec::with_capacity(4096),
        };
        if plan.ramp_per_s > 0 {
            let per_s = f64::from(plan.ramp_per_s.div_ceil(threads).max(1));
            let peers = std::mem::take(&mut engine.fresh);
            engine.ramps.push(Ramp { pace: Pace::new(0, per_s, Part::WHOLE), peers });
        }
        Ok(engine)
    }

    /// Does what the timetable says, counts and records second by second from `begins_us` on, and checks each frame. For a plan
    /// without a ramp, before the run; `part` is this thread's of all.
    pub fn schedule(&mut self, timetable: Timetable, begins_us: u64, part: Part, recorder: Arc<Recorder>) {
        self.seconds = Some(Seconds::new(begins_us, Arc::clone(&self.counters), Arc::clone(&recorder)));
        self.recorder = Some(recorder);
        for peer in &mut self.peers {
            peer.checker = Some(Box::default());
        }
        let hosts = self.peers.len() - self.fresh.iter().filter(|at| self.peers[**at].single).count();
        let mut hosts = self.fresh.split_off(self.fresh.len() - hosts);
        for opening in timetable.openings {
            let devices = usize::try_from(opening.devices).unwrap_or(usize::MAX).min(self.fresh.len());
            let mut peers: VecDeque<usize> = self.fresh.drain(..devices).collect();
            peers.append(&mut hosts);
            self.ramps.push(Ramp { pace: opening.pace, peers });
        }
        self.closings = timetable.closings;
        self.happenings = timetable.happenings;
        for span in timetable.rude {
            let kinds = [
                (Rudeness::Garbage, span.rude.garbage),
                (Rudeness::HalfFrames, span.rude.half_frames),
                (Rudeness::Silent, span.rude.silent),
                (Rudeness::SlowReader, span.rude.slow_readers),
                (Rudeness::SlowWriter, span.rude.slow_writers),
            ];
            let first = self.peers.len();
            for (rudeness, count) in kinds {
                for _ in 0..count {
                    // Numbers of their own among all threads; behind the devices, of which there are far more numbers.
                    let nth = u32::try_from(self.peers.len()).unwrap_or_default();
                    let index = rude::rude_index(nth.wrapping_mul(part.of).wrapping_add(part.nth) % 1_000_000);
                    self.peers.push(Peer::new(Box::new(RudeDevice::new(rudeness, index)), index, true));
                }
            }
            let peers = first..self.peers.len();
            let pace = Pace::new(span.from_us, RUDE_PER_S, Part::WHOLE);
            self.ramps.push(Ramp { pace, peers: peers.clone().collect() });
            self.rude_spans.push(RudeSpan { until_us: span.until_us, peers: peers.collect() });
        }
    }

    /// Runs until the run is stopped.
    ///
    /// # Errors
    /// Polling fails; failures of single connections are counted.
    pub fn run(&mut self) -> io::Result<Latencies> {
        let mut events = Events::with_capacity(1024);
        while !self.shared.stop.load(Relaxed) {
            let now_us = self.now_us();
            if !self.quiet && self.shared.draining.load(Relaxed) {
                self.quiet = true;
                self.peers.iter_mut().for_each(|peer| peer.device.quieten());
            }
            self.close_next(now_us);
            let ramp_us = self.connect_next(now_us);
            let happening_us = self.happen_next(now_us);
            let timer_us = self.fire(now_us);
            let sleep_us = ramp_us.min(happening_us).min(timer_us).saturating_sub(now_us);
            // Rounded up: epoll waits whole milliseconds, and waking before a deadline would spin.
            let sleep = Duration::from_millis(sleep_us.div_ceil(1000)).min(SLEEP_MAX);
            if let Err(error) = self.poll.poll(&mut events, Some(sleep))
                && error.kind() != io::ErrorKind::Interrupted
            {
                return Err(error);
            }
            for event in &events {
                self.handle_ready(event.token().0, event.is_writable());
            }
        }
        // What is still owed an answer gets none.
        for at in 0..self.peers.len() {
            self.unanswered(at, false);
        }
        Ok(std::mem::take(&mut self.latencies))
    }

    /// Shows what each device knows about its charges.
    pub fn ledgers(&self, each: &mut dyn FnMut(&dyn std::fmt::Display, &Ledger)) {
        self.peers.iter().for_each(|peer| peer.device.ledgers(each));
    }

    /// Connects the devices whose turn has come; gives the time of the next one.
    fn connect_next(&mut self, now_us: u64) -> u64 {
        if self.shared.draining.load(Relaxed) {
            return NEVER;
        }
        let mut budget = CONNECTS_PER_TURN;
        let mut next_us = NEVER;
        let mut ramps = std::mem::take(&mut self.ramps);
        for ramp in &mut ramps {
            while let Some(&at) = ramp.peers.front() {
                let turn_us = ramp.pace.due_us();
                if turn_us > now_us || budget == 0 {
                    next_us = next_us.min(turn_us.max(now_us));
                    break;
                }
                budget -= 1;
                ramp.peers.pop_front();
                ramp.pace.advance();
                self.begin(at, turn_us, now_us);
            }
        }
        ramps.retain(|ramp| !ramp.peers.is_empty());
        self.ramps = ramps;
        next_us
    }

    /// Opens the connection of a peer whose turn was at `turn_us`.
    fn begin(&mut self, at: usize, turn_us: u64, now_us: u64) {
        if matches!(self.peers[at].link, Link::Up(_)) {
            // Its turn to go has not come yet.
            self.hang_up(at, now_us);
        }
        let peer = &mut self.peers[at];
        if !matches!(peer.link, Link::Down(_)) || peer.retired {
            return;
        }
        peer.wanted_us = turn_us;
        if !peer.rude && !std::mem::replace(&mut peer.attempted, true) {
            add(&self.counters.attempted, 1);
        }
        if let Some(recorder) = self.recorder.as_ref().filter(|_| !self.peers[at].rude) {
            let mut window = recorder.window();
            window.record(Metric::Late, now_us.saturating_sub(turn_us));
            let first_us = window.connects_from_us.map_or(turn_us, |from_us| from_us.min(turn_us));
            window.connects_from_us = Some(first_us);
        }
        self.connect(at, now_us);
        self.settle(at, now_us);
    }

    /// Closes the connections whose time is over.
    fn close_next(&mut self, now_us: u64) {
        while let Some(at) = self.rude_spans.iter().position(|span| span.until_us <= now_us) {
            for at in self.rude_spans.swap_remove(at).peers {
                self.peers[at].retired = true;
                self.hang_up(at, now_us);
            }
        }
        if self.shared.draining.load(Relaxed) {
            return;
        }
        while let Some(at) = self.closings.iter().position(|closing| closing.at_us <= now_us) {
            let closing = self.closings.swap_remove(at);
            let mut peers = VecDeque::new();
            for at in 0..self.peers.len() {
                let peer = &self.peers[at];
                let chosen =
                    draw(self.seed, &[u64::from(peer.index), closing.at_us]) % 100 < u64::from(closing.percent);
                if chosen && !peer.rude && matches!(peer.link, Link::Up(_)) {
                    peers.push_back(at);
                }
            }
            self.going.extend(&peers);
            self.ramps.push(Ramp { pace: closing.back, peers });
        }
        for _ in 0..CONNECTS_PER_TURN {
            let Some(at) = self.going.pop_front() else { return };
            if matches!(self.peers[at].link, Link::Up(_)) {
                self.hang_up(at, now_us);
            }
        }
    }

    /// Closes a connection because the run wants it; it is not opened again by itself.
    fn hang_up(&mut self, at: usize, now_us: u64) {
        self.unanswered(at, true);
        match self.peers[at].link {
            Link::Up(_) => {
                self.close(at, now_us);
                self.peers[at].link = Link::Down(NEVER);
                self.settle(at, now_us);
            }
            Link::Connecting(..) | Link::Down(_) => self.peers[at].link = Link::Down(NEVER),
        }
    }

    /// Lets things happen whose time has come; gives the time of the next.
    fn happen_next(&mut self, now_us: u64) -> u64 {
        if self.shared.draining.load(Relaxed) {
            return NEVER;
        }
        let mut next_us = NEVER;
        for nth in 0..self.happenings.len() {
            loop {
                let due_us = self.happenings[nth].due_us();
                if due_us > now_us {
                    next_us = next_us.min(due_us);
                    break;
                }
                self.happenings[nth].pace.advance();
                if let Some(recorder) = &self.recorder {
                    recorder.record(Metric::Late, now_us - due_us);
                }
                self.happen(self.happenings[nth].what, now_us);
            }
        }
        next_us
    }

    fn happen(&mut self, what: Happening, now_us: u64) {
        self.drawn += 1;
        let random = draw(self.seed, &[self.drawn, 0x6861_7070]);
        let peers = u64::try_from(self.peers.len()).unwrap_or_default().max(1);
        let place = (0..PLACES_TRIED).find_map(|attempt| {
            let at = usize::try_from((random >> 8).wrapping_add(attempt.wrapping_mul(7919)) % peers).ok()?;
            let peer = self.peers.get(at)?;
            let fits = what != Happening::OfflineCharge || !peer.single || self.shared.fleet.is_ap3000(peer.index);
            (peer.registered && !peer.rude && fits).then_some(at)
        });
        if let Some(at) = place {
            let peer = &mut self.peers[at];
            peer.last_us = peer.last_us.max(now_us);
            peer.device.happen(now_us, what, random);
            self.settle(at, now_us);
        }
    }

    /// Handles what is due; gives the time of the next deadline.
    fn fire(&mut self, now_us: u64) -> u64 {
        if self.shared.silent.load(Relaxed) {
            return NEVER;
        }
        let mut budget = TIMERS_PER_TURN;
        while let Some(&Reverse((due_us, at))) = self.timers.peek() {
            if due_us > now_us || budget == 0 {
                return due_us;
            }
            budget -= 1;
            self.timers.pop();
            if self.peers[at].armed_us == due_us {
                self.fire_one(at, due_us, now_us);
            }
        }
        NEVER
    }

    /// Handles what was due at a peer at `due_us`.
    fn fire_one(&mut self, at: usize, due_us: u64, now_us: u64) {
        let peer = &mut self.peers[at];
        peer.armed_us = NEVER;
        match &peer.link {
            Link::Down(down_us) if *down_us <= now_us => {
                let turn_us = *down_us;
                // Of a connect that failed, or a connection that the server closed.
                peer.wanted_us = peer.wanted_us.min(turn_us);
                self.connect(at, now_us);
            }
            Link::Connecting(_, deadline_us) if *deadline_us <= now_us => self.connect_failed(at, now_us),
            Link::Up(_) => {
                if let Some(recorder) = self.recorder.as_ref().filter(|_| !peer.rude) {
                    recorder.record(Metric::Late, now_us.saturating_sub(due_us));
                }
            }
            Link::Down(_) | Link::Connecting(..) => {}
        }
        let peer = &mut self.peers[at];
        // Who misbehaves does not make up for what it missed.
        peer.last_us = peer.last_us.max(if peer.rude { now_us } else { due_us });
        let device_us = peer.last_us;
        peer.device.timeout(device_us);
        self.settle(at, device_us);
    }

    fn connect(&mut self, at: usize, now_us: u64) {
        let opened = self.open(&self.peers[at]).and_then(|mut stream| {
            self.poll.registry().register(&mut stream, Token(at), Interest::READABLE | Interest::WRITABLE)?;
            Ok(stream)
        });
        match opened {
            Ok(stream) => {
                self.peers[at].link = Link::Connecting(stream, now_us.saturating_add(CONNECT_TIMEOUT_US));
            }
            Err(error) => {
                log::warn!("connect: {error}");
                self.connect_failed(at, now_us);
            }
        }
    }

    fn connect_failed(&mut self, at: usize, now_us: u64) {
        add(&self.counters.connect_errors, 1);
        self.peers[at].down(now_us);
    }

    fn open(&self, peer: &Peer) -> io::Result<TcpStream> {
        let nth = usize::try_from(peer.index).unwrap_or_default() % self.connect.len().max(1);
        let Some(&server) = self.connect.get(nth) else { return Err(io::Error::other("nowhere to connect to")) };
        let socket = Socket::new(Domain::for_address(server), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_nonblocking(true)?;
        socket.set_tcp_nodelay(true)?;
        if !peer.device.reads() {
            // So that what stays unread soon fills the server's buffers instead of this one.
            socket.set_recv_buffer_size(UNREAD_MAX)?;
        }
        if self.source_addresses > 0 && server.is_ipv4() {
            let source = source_address(peer.index % self.source_addresses);
            socket.bind(&SocketAddr::new(IpAddr::V4(source), 0).into())?;
        }
        match socket.connect(&server.into()) {
            Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => return Err(error),
            Ok(()) | Err(_) => {}
        }
        Ok(TcpStream::from_std(socket.into()))
    }

    /// What happens now, in the second that it belongs to.
    fn now_us(&mut self) -> u64 {
        let now_us = self.shared.clock.now_us();
        if let Some(seconds) = &mut self.seconds {
            seconds.reach(now_us);
        }
        now_us
    }

    fn handle_ready(&mut self, at: usize, writable: bool) {
        let now_us = self.now_us();
        // First what was due before, so that the device's clock goes only forward.
        if !self.shared.silent.load(Relaxed) {
            while self.peers[at].armed_us <= now_us {
                self.fire_one(at, self.peers[at].armed_us, now_us);
            }
        }
        self.peers[at].last_us = now_us.max(self.peers[at].last_us);
        if let Link::Connecting(stream, _) = &self.peers[at].link {
            match connect_result(stream) {
                Ok(false) => return,
                Ok(true) => self.connected(at, now_us),
                Err(error) => {
                    log::debug!("connect: {error}");
                    self.connect_failed(at, now_us);
                }
            }
        }
        if self.peers[at].device.reads() {
            self.read(at, now_us);
        }
        if writable {
            self.flush(at, now_us);
        }
        self.settle(at, now_us);
    }

    fn connected(&mut self, at: usize, now_us: u64) {
        let peer = &mut self.peers[at];
        let Link::Connecting(stream, _) = std::mem::replace(&mut peer.link, Link::Down(NEVER)) else { return };
        peer.link = Link::Up(stream);
        if peer.rude {
            add(&self.counters.rude_connected, 1);
        } else {
            add(&self.counters.connected, 1);
            if !std::mem::replace(&mut peer.ever_connected, true) {
                add(&self.counters.ever_connected, 1);
            }
        }
        peer.device.connected(now_us);
    }

    /// Reads until the socket is empty, as edge-triggered readiness requires.
    fn read(&mut self, at: usize, now_us: u64) {
        loop {
            let peer = &mut self.peers[at];
            let Link::Up(stream) = &mut peer.link else { return };
            match stream.read(&mut self.read_buffer) {
                Ok(0) => return self.lost(at, now_us),
                Ok(len) => {
                    add(&self.counters.bytes_received, i64::try_from(len).unwrap_or_default());
                    let bytes = self.read_buffer.get(..len).unwrap_or_default();
                    if let Some(checker) = &mut peer.checker {
                        let before = checker.owed();
                        let counters = &self.counters;
                        let recorder = self.recorder.as_deref();
                        checker.received(now_us, bytes, &mut |finding| note(counters, recorder, peer.index, finding));
                        add(&counters.awaited, i64::from(checker.owed()) - i64::from(before));
                    }
                    peer.device.receive(now_us, bytes);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    log::debug!("read: {error}");
                    return self.lost(at, now_us);
                }
            }
        }
    }

    fn lost(&mut self, at: usize, now_us: u64) {
        let counter = if self.peers[at].rude { &self.counters.rude_closed } else { &self.counters.closed_by_server };
        add(counter, 1);
        self.close(at, now_us);
    }

    /// The connection goes: answers that are owed do not come, because the run wants it so or because they are lost.
    fn unanswered(&mut self, at: usize, wanted: bool) {
        let Some(checker) = &mut self.peers[at].checker else { return };
        let owed = i64::from(checker.closed());
        if owed > 0 {
            add(&self.counters.awaited, -owed);
            add(if wanted { &self.counters.abandoned } else { &self.counters.lost }, owed);
            if let Some(recorder) = self.recorder.as_ref().filter(|_| !wanted) {
                let index = self.peers[at].index;
                let id = || self.shared.fleet.device_id(index);
                recorder.window().remark(|| format!("{}: {owed} requests got no answer", id()));
            }
        }
    }

    fn close(&mut self, at: usize, now_us: u64) {
        self.unanswered(at, false);
        let peer = &mut self.peers[at];
        if peer.rude {
            add(&self.counters.rude_connected, -1);
        } else {
            add(&self.counters.connected, -1);
        }
        peer.down(now_us);
        peer.device.disconnected(now_us);
        if std::mem::take(&mut peer.registered) {
            add(&self.counters.registered, -1);
            self.shared.fleet.set_registered(peer.index, false);
        }
    }

    /// Writes what waits for the socket.
    fn flush(&mut self, at: usize, now_us: u64) {
        let peer = &mut self.peers[at];
        let Link::Up(stream) = &mut peer.link else { return };
        if peer.unsent.is_empty() {
            return;
        }
        match write_some(stream, &peer.unsent) {
            Ok(written) => {
                add(&self.counters.bytes_sent, i64::try_from(written).unwrap_or_default());
                peer.unsent.drain(..written);
            }
            Err(error) => {
                log::debug!("write: {error}");
                self.lost(at, now_us);
            }
        }
    }

    /// Takes a device's outputs after it was called.
    fn settle(&mut self, at: usize, now_us: u64) {
        self.take_output(at, now_us);
        self.take_events(at, now_us);
        if self.peers[at].device.poll_close() && matches!(self.peers[at].link, Link::Up(_)) {
            add(&self.counters.closed_by_device, 1);
            self.close(at, now_us);
            self.take_events(at, now_us);
        }
        let peer = &mut self.peers[at];
        let deadline_us = peer.deadline_us();
        if deadline_us < peer.armed_us {
            peer.armed_us = deadline_us;
            self.timers.push(Reverse((deadline_us, at)));
        }
    }

    fn take_output(&mut self, at: usize, now_us: u64) {
        self.out.clear();
        let peer = &mut self.peers[at];
        peer.device.poll_output(&mut self.out);
        let Link::Up(stream) = &mut peer.link else { return };
        if self.out.is_empty() {
            return;
        }
        if let Some(checker) = &mut peer.checker {
            let before = checker.owed();
            let counters = &self.counters;
            let recorder = self.recorder.as_deref();
            checker.sent(now_us, &self.out, &mut |finding| note(counters, recorder, peer.index, finding));
            add(&counters.awaited, i64::from(checker.owed()) - i64::from(before));
        }
        let waiting = !peer.unsent.is_empty();
        match if waiting { Ok(0) } else { write_some(stream, &self.out) } {
            Ok(written) => {
                add(&self.counters.bytes_sent, i64::try_from(written).unwrap_or_default());
                peer.unsent.extend_from_slice(self.out.get(written..).unwrap_or_default());
                if peer.unsent.len() > UNSENT_MAX {
                    log::debug!("device {}: the server does not read", peer.index);
                    self.lost(at, now_us);
                }
            }
            Err(error) => {
                log::debug!("write: {error}");
                self.lost(at, now_us);
            }
        }
    }

    fn take_events(&mut self, at: usize, now_us: u64) {
        let peer = &mut self.peers[at];
        while let Some(event) = peer.device.poll_event() {
            self.counters.count(event);
            match event {
                Event::Registered => {
                    peer.registered = true;
                    self.shared.fleet.set_registered(peer.index, true);
                    add(&self.counters.binds, 1);
                    let wanted_us = std::mem::replace(&mut peer.wanted_us, NEVER);
                    if let Some(recorder) = self.recorder.as_ref().filter(|_| wanted_us != NEVER) {
                        let mut window = recorder.window();
                        window.record(Metric::Bind, now_us.saturating_sub(wanted_us));
                        window.bound_until_us = window.bound_until_us.max(Some(now_us));
                    }
                }
                Event::Answered(request, after_us) => self.latencies.record(request, after_us),
                Event::Command => self.shared.fleet.note_command(peer.index, now_us),
                Event::ChargeStarted(port_no) => self.shared.fleet.set_charging(peer.index, port_no, true),
                Event::ChargeEnded(port_no) => self.shared.fleet.set_charging(peer.index, port_no, false),
                Event::Sent(_)
                | Event::Unanswered(_)
                | Event::ChargeRefused(_)
                | Event::Settled
                | Event::OfflineMode
                | Event::Malformed => {}
            }
        }
    }
}

impl Peer {
    fn new(device: Box<dyn Device>, index: u32, rude: bool) -> Self {
        Self {
            device,
            index,
            link: Link::Down(NEVER),
            unsent: Vec::new(),
            armed_us: NEVER,
            registered: false,
            attempted: false,
            ever_connected: false,
            rude,
            single: true,
            retired: false,
            last_us: 0,
            wanted_us: NEVER,
            checker: None,
        }
    }

    /// Drops the socket and plans the next connect.
    fn down(&mut self, now_us: u64) {
        self.unsent = Vec::new();
        if self.retired {
            self.link = Link::Down(NEVER);
            return;
        }
        let spread_us = u64::from(self.index % 1000) * 1000;
        self.link = Link::Down(now_us.saturating_add(RECONNECT_US + spread_us));
    }

    fn deadline_us(&self) -> u64 {
        let link_us = match &self.link {
            Link::Down(due_us) | Link::Connecting(_, due_us) => *due_us,
            Link::Up(_) => NEVER,
        };
        self.device.poll_timeout().unwrap_or(NEVER).min(link_us)
    }
}

/// Counts what a checker found, and keeps the first few remarks.
fn note(counters: &Counters, recorder: Option<&Recorder>, index: u32, finding: Finding) {
    match finding {
        Finding::Answered(metric, us) => {
            if let Some(recorder) = recorder {
                recorder.record(metric, us);
            }
        }
        Finding::Command => {}
        Finding::Lost(_) => add(&counters.lost, 1),
        Finding::Unreadable | Finding::WrongDevice(_) | Finding::WrongNumber(_) | Finding::Unexpected(_) => {
            add(&counters.mismatched, 1);
            if let Some(recorder) = recorder {
                recorder.window().remark(|| format!("device {index}: {finding:x?}"));
            }
        }
    }
}

/// Whether a connect is complete.
fn connect_result(stream: &TcpStream) -> io::Result<bool> {
    if let Some(error) = stream.take_error()? {
        return Err(error);
    }
    match stream.peer_addr() {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(false),
        Err(error) => Err(error),
    }
}

/// Writes until the socket is full; gives how much it took.
#[expect(clippy::disallowed_methods, reason = "the count is handled here")]
fn write_some(stream: &mut TcpStream, bytes: &[u8]) -> io::Result<usize> {
    let mut written = 0;
    while let Some(rest) = bytes.get(written..).filter(|rest| !rest.is_empty()) {
        match stream.write(rest) {
            Ok(len) => written += len,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(written)
}

/// The nth loopback address from 127.1.0.1 on, 254 in each 127.x.y.
pub fn source_address(nth: u32) -> Ipv4Addr {
    let [_, _, x, y] = (256 + nth / 254).to_be_bytes();
    Ipv4Addr::new(127, x, y, u8::try_from(nth % 254 + 1).unwrap_or(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn source_addresses_are_distinct_hosts() {
        assert_eq!(source_address(0).to_string(), "127.1.0.1");
        assert_eq!(source_address(253).to_string(), "127.1.0.254");
        assert_eq!(source_address(254).to_string(), "127.1.1.1");
        assert_eq!(source_address(254 * 256).to_string(), "127.2.0.1");
    }
}
