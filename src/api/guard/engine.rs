//! The guard's loop: events in, bytes out.
//!
//! A turn: wait for events or the next deadline → move every connection that has an event, each for a bounded number of steps →
//! deadlines → accept. A connection with steps left over goes on in the next turn, after everybody else has had theirs.

use std::collections::VecDeque;
use std::io;
use std::mem::{self, MaybeUninit};
use std::net::{IpAddr, Shutdown, SocketAddr};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use mio::event::Event;
use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token, Waker};
use rustc_hash::FxHashMap;

use super::answer::{self, LocalAnswer, Tail};
use super::client::{Client, Clients, Inflow, Key, Phase, Then};
use super::counters::{GuardCounters, Refusal, add, set};
use super::head::{self, FIELDS_MAX, Head, HeadLimits, Parsed};
use super::timer::{NEVER, Timers};
use super::upload::{News, Spool, Stored, Ticket, WINDOW};
use super::upstream::{self, Exchange, Link, Progress, Slot, write_some};
use super::{CLIENT_IP_HEADER, Control, GuardConfig, LocalRoutes, REQUEST_ID_HEADER, UPLOAD_HEADER, millis};
use crate::api::error::{ApiError, ErrorCode};
use crate::api::message::Method;
use crate::api::rate::network_of;
use crate::api::server::{Gate, PROBE_TARGET};
use crate::protocol::Hex;
use crate::time::http_date;

/// Steps of one connection in a turn: a request with its answer is two.
const STEPS_PER_TURN: usize = 32;
/// Connections accepted in a turn.
const ACCEPTS_PER_TURN: usize = 64;
/// Bytes taken from a socket at once.
const READ_BYTES: usize = 16 << 10;
/// Bytes read and forgotten after a last answer.
const LINGER_BYTES_MAX: usize = 256 << 10;
/// Buffers of the loop above this size are given back after use.
const KEPT_BYTES_MAX: usize = 256 << 10;
/// `Retry-After` of the guard's own 503 answers.
const RETRY_AFTER_S: u32 = 1;

const LISTENER: Token = Token(0);
const WAKER: Token = Token(1);
/// Set in the tokens of client connections, above slot and generation.
const CLIENT_BIT: usize = 1 << 62;
/// Set in the tokens of connections to the server, above the slot.
const UPSTREAM_BIT: usize = 1 << 63;

const _: () = assert!(usize::BITS == 64, "tokens hold a slot, a generation and a kind");

const fn client_token(key: Key) -> Token {
    Token(CLIENT_BIT | (key.generation as usize) << 32 | key.slot as usize)
}

/// What a step led to.
enum Step {
    /// There may be more to do.
    On,
    /// Nothing to do before the next event or deadline.
    Wait,
    Close,
}

/// What became of a head.
enum HeadStep {
    More,
    /// So many bytes are used.
    Used(usize, Step),
}

pub(super) struct Engine {
    config: GuardConfig,
    gate: Arc<Gate>,
    local: LocalRoutes,
    control: Arc<Control>,
    counters: Arc<GuardCounters>,

    poll: Poll,
    waker: Arc<Waker>,
    /// `None` once stopping.
    listener: Option<TcpListener>,
    /// The listener may have connections.
    acceptable: bool,
    /// No `accept` before this time: the last one failed.
    accept_at: u64,

    clients: Clients,
    per_ip: FxHashMap<IpAddr, usize>,
    timers: Timers<Key>,
    /// Clients with steps left over from the last turn.
    ready: Vec<Key>,

    slots: Vec<Slot<Key>>,
    idle_slots: Vec<usize>,
    /// Slots that are neither vacant nor draining: at most `upstream_connections`.
    live_slots: usize,
    draining_slots: usize,
    /// The slot whose connection has yet to prove that a thread of tiny_http serves it.
    probing: Option<usize>,
    /// No deadline of a busy slot is earlier.
    upstream_deadline: u64,
    /// No connection to the server before this time: the last one failed.
    connect_at: u64,
    queue: VecDeque<Key>,

    /// Where bodies go that are written to files; `None`: there are none.
    spool: Option<Spool>,

    /// Sum of all clients' `charged`.
    buffered: usize,
    scratch: Vec<u8>,
    body: Vec<u8>,
    out: Vec<u8>,

    started: Instant,
    now: u64,
    unix_ms: i64,
    date: String,
    date_s: i64,
    next_id: u64,
    stop_at: u64,
}

impl Engine {
    pub(super) fn new(
        config: GuardConfig,
        gate: Arc<Gate>,
        local: LocalRoutes,
        control: Arc<Control>,
        counters: Arc<GuardCounters>,
    ) -> io::Result<Self> {
        let poll = Poll::new()?;
        let waker = Arc::new(Waker::new(poll.registry(), WAKER)?);
        let mut listener = TcpListener::bind(config.listen)?;
        poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
        let mut seed = [0; 8];
        getrandom::fill(&mut seed).map_err(|error| io::Error::other(error.to_string()))?;
        let (started, unix_ms) = now();
        let slots = (0..config.upstream_connections + config.draining_max).map(|_| Slot::Vacant).collect();
        let spool = config.upload.as_ref().map(|upload| Spool::start(upload, Arc::clone(&waker))).transpose()?;
        Ok(Self {
            config,
            gate,
            local,
            control,
            counters,
            poll,
            waker,
            listener: Some(listener),
            acceptable: false,
            accept_at: 0,
            clients: Clients::default(),
            per_ip: FxHashMap::default(),
            timers: Timers::new(),
            ready: Vec::new(),
            slots,
            idle_slots: Vec::new(),
            live_slots: 0,
            draining_slots: 0,
            probing: None,
            upstream_deadline: NEVER,
            connect_at: 0,
            queue: VecDeque::new(),
            spool,
            buffered: 0,
            scratch: vec![0; READ_BYTES],
            body: Vec::new(),
            out: Vec::new(),
            started,
            now: 0,
            unix_ms,
            date: http_date(unix_ms),
            date_s: unix_ms.div_euclid(1_000),
            next_id: u64::from_ne_bytes(seed),
            stop_at: NEVER,
        })
    }

    pub(super) fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.as_ref().map_or_else(|| Err(io::ErrorKind::NotConnected.into()), TcpListener::local_addr)
    }

    pub(super) fn waker(&self) -> Arc<Waker> {
        Arc::clone(&self.waker)
    }

    pub(super) fn run(mut self) {
        let mut events = Events::with_capacity(1_024);
        self.connect_missing();
        while !self.is_done() {
            if let Err(error) = self.poll.poll(&mut events, self.poll_timeout())
                && error.kind() != io::ErrorKind::Interrupted
            {
                // Cannot happen with a live epoll instance; without one nothing can be served.
                log::error!("http guard stops: epoll failed: {error}");
                break;
            }
            self.tick();
            for event in &events {
                self.handle_event(event);
            }
            for key in mem::take(&mut self.ready) {
                self.turn(key, |client| client.in_ready = false);
            }
            self.handle_deadlines();
            self.accept();
            self.publish();
        }
        for key in self.clients.keys() {
            if let Some(client) = self.clients.take(key) {
                if client.phase != Phase::Head {
                    self.counters.refuse(Refusal::Stopped);
                }
                self.close(key, client);
            }
        }
        self.publish();
    }

    fn is_done(&self) -> bool {
        self.listener.is_none() && (self.clients.open() == 0 || self.now >= self.stop_at)
    }

    fn poll_timeout(&self) -> Option<Duration> {
        if !self.ready.is_empty() {
            return Some(Duration::ZERO);
        }
        let mut next = self.timers.next().unwrap_or(NEVER).min(self.upstream_deadline).min(self.stop_at);
        if self.acceptable && self.listener.is_some() {
            next = next.min(self.accept_at);
        }
        if self.wants_connection() && self.has_vacancy() {
            next = next.min(self.connect_at);
        }
        (next != NEVER).then(|| Duration::from_millis(next.saturating_sub(self.now)))
    }

    fn tick(&mut self) {
        let (instant, unix_ms) = now();
        let elapsed = instant.saturating_duration_since(self.started).as_millis();
        self.now = u64::try_from(elapsed).unwrap_or(NEVER - 1);
        self.unix_ms = unix_ms;
        let unix_s = unix_ms.div_euclid(1_000);
        if unix_s != self.date_s {
            self.date_s = unix_s;
            self.date = http_date(unix_ms);
        }
    }

    fn after(&self, timeout: Duration) -> u64 {
        self.now.saturating_add(millis(timeout))
    }

    fn publish(&self) {
        set(&self.counters.open, self.clients.open());
        set(&self.counters.queued, self.queue.len());
        set(&self.counters.draining, self.draining_slots);
        set(&self.counters.buffered, self.buffered);
    }

    fn handle_event(&mut self, event: &Event) {
        let Token(token) = event.token();
        if token & UPSTREAM_BIT != 0 {
            self.handle_upstream(token & !UPSTREAM_BIT);
        } else if token & CLIENT_BIT != 0 {
            let key =
                Key { slot: (token & 0xffff_ffff) as u32, generation: (token >> 32) as u32 & Clients::GENERATION_MASK };
            if event.is_error() || event.is_write_closed() {
                if let Some(client) = self.clients.take(key) {
                    self.close(key, client);
                }
                return;
            }
            self.turn(key, |client| {
                client.readable |= event.is_readable() || event.is_read_closed();
                client.read_closed |= event.is_read_closed();
            });
        } else if event.token() == LISTENER {
            self.acceptable = true;
        } else {
            self.handle_stop();
            self.handle_news();
        }
    }

    fn handle_stop(&mut self) {
        let within_ms = self.control.stop_within_ms.load(Ordering::Acquire);
        if within_ms == NEVER {
            return;
        }
        self.stop_at = self.now.saturating_add(within_ms);
        self.listener = None;
        for key in self.clients.keys() {
            if let Some(mut client) = self.clients.take(key) {
                client.keep_alive = false;
                if client.phase == Phase::Head && client.input.is_empty() {
                    self.close(key, client);
                } else {
                    self.clients.put(key, client);
                }
            }
        }
    }

    fn handle_deadlines(&mut self) {
        while let Some(entry) = self.timers.poll(self.now) {
            let key = entry.1;
            let Some(mut client) = self.clients.take(key) else { continue };
            let step = if self.timers.expired(&mut client.alarm, entry, self.now) {
                self.handle_timeout(key, &mut client)
            } else {
                Step::Wait
            };
            self.settle(key, client, step);
        }
        if self.upstream_deadline <= self.now {
            self.give_up_overdue();
        }
        self.connect_missing();
    }

    fn handle_timeout(&mut self, key: Key, client: &mut Client) -> Step {
        let limit = |timeout: Duration| format!("{} ms", timeout.as_millis());
        match client.phase {
            Phase::Head if client.input.is_empty() => {
                self.counters.refuse(Refusal::IdleTimeout);
                Step::Close
            }
            Phase::Head => {
                let message = format!("the head must arrive within {}", limit(self.config.head_timeout));
                let error = ApiError::new(ErrorCode::RequestTimeout, message);
                self.refuse_for_good(key, client, Refusal::HeadTimeout, &error)
            }
            Phase::Body { missing } => {
                let message = format!(
                    "the body must arrive within {}, {missing} bytes are missing",
                    limit(self.config.body_timeout)
                );
                let error = ApiError::new(ErrorCode::RequestTimeout, message);
                self.refuse_for_good(key, client, Refusal::BodyTimeout, &error)
            }
            Phase::Upload { missing } => {
                let timeout = self.config.upload.as_ref().map_or(self.config.body_timeout, |upload| upload.timeout);
                let message = if missing == 0 {
                    format!("the body must be written within {}", limit(timeout))
                } else {
                    format!("the body must arrive within {}, {missing} bytes are missing", limit(timeout))
                };
                let error = ApiError::new(ErrorCode::RequestTimeout, message);
                self.refuse_for_good(key, client, Refusal::BodyTimeout, &error)
            }
            Phase::Queued => {
                self.queue.retain(|queued| *queued != key);
                self.refuse_for_now(key, client, Refusal::QueueTimeout)
            }
            // A relayed request has its deadline with the exchange.
            Phase::Relayed { .. } => Step::Wait,
            Phase::Writing { .. } => {
                self.counters.refuse(Refusal::WriteTimeout);
                Step::Close
            }
            Phase::Lingering { .. } => Step::Close,
        }
    }

    // Accepting.

    fn accept(&mut self) {
        if !self.acceptable || self.now < self.accept_at {
            return;
        }
        for _ in 0..ACCEPTS_PER_TURN {
            let Some(listener) = &self.listener else { return };
            match listener.accept() {
                Ok((stream, peer)) => {
                    add(&self.counters.accepted, 1);
                    self.admit(stream, peer.ip().to_canonical());
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.acceptable = false;
                    return;
                }
                Err(error) if matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted) => {
                }
                Err(error) => {
                    // Out of descriptors or memory, most likely: the connection stays in the backlog, and the next
                    // attempt comes by the clock, since edge-triggered events will not repeat it.
                    if self.counters.accept_errors.fetch_add(1, Ordering::Relaxed).is_power_of_two() {
                        log::warn!("http guard cannot accept: {error}");
                    }
                    self.accept_at = self.after(self.config.retry_pause);
                    return;
                }
            }
        }
    }

    fn admit(&mut self, mut stream: TcpStream, ip: IpAddr) {
        if self.clients.open() >= self.config.connections_max {
            return self.counters.refuse(Refusal::ConnectionsFull);
        }
        let of_this_ip = self.per_ip.entry(network_of(ip)).or_insert(0);
        if *of_this_ip >= self.config.connections_per_ip_max {
            return self.counters.refuse(Refusal::ConnectionsPerIp);
        }
        // Answers are written whole, so waiting to fill a segment gains nothing. Failing to say so harms nothing.
        stream.set_nodelay(true).ok();
        let key = self.clients.reserve();
        *of_this_ip += 1;
        let interest = Interest::READABLE | Interest::WRITABLE;
        let registered = self.poll.registry().register(&mut stream, client_token(key), interest);
        let mut client = Box::new(Client::new(stream, ip));
        if let Err(error) = registered {
            log::warn!("http guard cannot watch a connection: {error}");
            return self.close(key, client);
        }
        let deadline = self.after(self.config.head_timeout);
        self.timers.set(&mut client.alarm, key, deadline);
        self.clients.put(key, client);
    }

    fn close(&mut self, key: Key, mut client: Box<Client>) {
        match client.phase {
            Phase::Queued => self.queue.retain(|queued| *queued != key),
            Phase::Relayed { slot } => {
                if let Some(Slot::Busy(_, exchange)) = self.slots.get_mut(slot) {
                    exchange.client = None;
                }
            }
            Phase::Head
            | Phase::Body { .. }
            | Phase::Upload { .. }
            | Phase::Writing { .. }
            | Phase::Lingering { .. } => {}
        }
        self.discard_upload(&mut client);
        self.discharge(&mut client);
        let network = network_of(client.ip);
        if let Some(count) = self.per_ip.get_mut(&network) {
            *count -= 1;
            if *count == 0 {
                self.per_ip.remove(&network);
            }
        }
        self.clients.release(key);
    }

    // Client connections.

    /// Moves one client on as far as it goes in a turn.
    fn turn(&mut self, key: Key, prepare: impl FnOnce(&mut Client)) {
        let Some(mut client) = self.clients.take(key) else { return };
        prepare(&mut client);
        self.settle(key, client, Step::On);
    }

    /// Goes on from `step`, then puts the client back or closes it.
    fn settle(&mut self, key: Key, mut client: Box<Client>, mut step: Step) {
        let mut left = STEPS_PER_TURN;
        loop {
            match step {
                Step::Wait => break,
                Step::Close => return self.close(key, client),
                Step::On if left == 0 => {
                    if !mem::replace(&mut client.in_ready, true) {
                        self.ready.push(key);
                    }
                    break;
                }
                Step::On => left -= 1,
            }
            step = match client.phase {
                Phase::Head => self.step_head(key, &mut client),
                Phase::Body { missing } => self.step_body(key, &mut client, missing),
                Phase::Upload { missing } => self.step_upload(&mut client, missing),
                Phase::Queued | Phase::Relayed { .. } => Step::Wait,
                Phase::Writing { then } => self.step_write(key, &mut client, then),
                Phase::Lingering { bytes_left } => self.step_linger(&mut client, bytes_left),
            };
        }
        self.clients.put(key, client);
    }

    fn step_head(&mut self, key: Key, client: &mut Client) -> Step {
        if !client.input.is_empty() {
            let due = client.input.len() >= client.parse_at || head::may_end(&client.input, client.searched);
            client.searched = client.input.len();
            if due {
                let mut input = mem::take(&mut client.input);
                if let HeadStep::Used(used, step) = self.handle_head(key, client, &input) {
                    if used < input.len() {
                        input.drain(..used);
                        client.input = input;
                    }
                    (client.searched, client.parse_at) = (0, 0);
                    return step;
                }
                // A head that trickles in is looked at each time it has doubled, not with each byte.
                client.parse_at = (input.len() * 2).min(self.config.head_bytes_max);
                client.input = input;
            }
        }

        let mut scratch = mem::take(&mut self.scratch);
        let step = match client.read(&mut scratch) {
            Inflow::Blocked => Step::Wait,
            Inflow::Ended => Step::Close,
            Inflow::Bytes(read) => {
                let bytes = scratch.get(..read).unwrap_or_default();
                // The usual request is whole in one read, and is then never copied.
                let used = if client.input.is_empty() { self.handle_head(key, client, bytes) } else { HeadStep::More };
                match used {
                    HeadStep::Used(used, step) => {
                        client.input.extend_from_slice(bytes.get(used..).unwrap_or_default());
                        step
                    }
                    HeadStep::More => {
                        if client.input.is_empty() {
                            client.searched = read;
                            client.parse_at = (read * 2).min(self.config.head_bytes_max);
                            self.arm(key, client, self.config.head_timeout);
                        }
                        client.input.extend_from_slice(bytes);
                        Step::On
                    }
                }
            }
        };
        self.scratch = scratch;
        step
    }

    fn handle_head(&mut self, key: Key, client: &mut Client, bytes: &[u8]) -> HeadStep {
        let limits = HeadLimits {
            head_bytes_max: self.config.head_bytes_max,
            body_bytes_max: self.config.body_bytes_max,
            upload: self.config.upload.as_ref().map(|upload| (upload.path, upload.bytes_max)),
        };
        let mut fields = [const { MaybeUninit::uninit() }; FIELDS_MAX];
        let parsed = match head::parse(bytes, &mut fields, limits) {
            Ok(Some(parsed)) => parsed,
            Ok(None) => return HeadStep::More,
            Err(bad) => {
                client.request_id = bad.request_id.map_or_else(|| self.make_request_id(), str::to_owned);
                client.bodiless = false;
                let (reason, error) = bad.error.reaction();
                return HeadStep::Used(bytes.len(), self.refuse_for_good(key, client, reason, &error));
            }
        };
        client.keep_alive = parsed.keep_alive && self.listener.is_some();
        client.announce_keep_alive = parsed.announce_keep_alive;
        client.bodiless = parsed.method == "HEAD";
        client.request_id.clear();
        match parsed.request_id {
            Some(id) => client.request_id.push_str(id),
            None => client.request_id = self.make_request_id(),
        }
        if let Some(step) = self.answer_locally(key, client, &parsed) {
            // The body of such a request has no reader; the connection ends instead.
            return HeadStep::Used(if parsed.content_length == 0 { parsed.len } else { bytes.len() }, step);
        }

        let body = bytes.get(parsed.len..).unwrap_or_default();
        let body = body.get(..parsed.content_length).unwrap_or(body);
        let used = parsed.len + body.len();
        if parsed.is_upload && parsed.content_length > 0 {
            return self.begin_upload(key, client, &parsed, body, bytes.len());
        }
        if !self.charge(client, parsed.len + parsed.content_length) {
            let error = ApiError::not_ready("too many bytes are waiting", RETRY_AFTER_S);
            return HeadStep::Used(bytes.len(), self.refuse_for_good(key, client, Refusal::BuffersFull, &error));
        }
        write_upstream_head(&mut client.request, &parsed, parsed.content_length, client.ip, &client.request_id);
        client.request.extend_from_slice(body);
        let missing = parsed.content_length - body.len();
        if missing == 0 {
            return HeadStep::Used(used, self.submit(key, client));
        }
        if parsed.expect_continue && body.is_empty() && !self.send_continue(client) {
            return HeadStep::Used(used, Step::Close);
        }
        client.phase = Phase::Body { missing };
        self.arm(key, client, self.config.body_timeout);
        HeadStep::Used(used, Step::On)
    }

    /// Asks the local routes. `None` if they do not have this one.
    fn answer_locally(&mut self, key: Key, client: &mut Client, parsed: &Parsed<'_, '_>) -> Option<Step> {
        let head = Head {
            method: Method::from_token(parsed.method),
            target: parsed.target,
            client_ip: client.ip,
            request_id: &client.request_id,
            unix_ms: self.unix_ms,
            fields: parsed.fields,
        };
        self.body.clear();
        let answer = match catch_unwind(AssertUnwindSafe(|| (self.local)(&head, &mut self.body))) {
            Ok(answer) => answer?,
            Err(_) => {
                self.counters.refuse(Refusal::LocalPanic);
                self.body.clear();
                let error = ApiError::new(ErrorCode::Internal, "the request could not be answered");
                LocalAnswer::error(&head, &mut self.body, &error)
            }
        };
        add(&self.counters.local, 1);
        client.keep_alive &= parsed.content_length == 0;
        Some(self.answer_from_body(key, client, &answer))
    }

    /// The interim answer is smaller than any send buffer; a socket that does not take it whole is not worth a state of its own.
    fn send_continue(&mut self, client: &mut Client) -> bool {
        const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";
        write_some(&mut client.stream, CONTINUE).is_ok_and(|written| written == CONTINUE.len())
    }

    fn step_body(&mut self, key: Key, client: &mut Client, missing: usize) -> Step {
        debug_assert!(client.input.is_empty(), "all that came with the head was taken then");
        let mut scratch = mem::take(&mut self.scratch);
        let step = match client.read(&mut scratch) {
            Inflow::Blocked => Step::Wait,
            Inflow::Ended => Step::Close,
            Inflow::Bytes(read) => {
                let bytes = scratch.get(..read).unwrap_or_default();
                let (body, rest) = bytes.split_at(read.min(missing));
                client.request.extend_from_slice(body);
                client.input.extend_from_slice(rest);
                match missing - body.len() {
                    0 => self.submit(key, client),
                    missing => {
                        client.phase = Phase::Body { missing };
                        Step::On
                    }
                }
            }
        };
        self.scratch = scratch;
        step
    }

    // Uploads.

    /// Sends the body of this request to a file. `len`: of all bytes that came, which are used up where it is refused.
    fn begin_upload(
        &mut self,
        key: Key,
        client: &mut Client,
        parsed: &Parsed<'_, '_>,
        body: &[u8],
        len: usize,
    ) -> HeadStep {
        let timeout = self.config.upload.as_ref().map_or(self.config.body_timeout, |upload| upload.timeout);
        if !self.charge(client, parsed.len + WINDOW * READ_BYTES) {
            let error = ApiError::not_ready("too many bytes are waiting", RETRY_AFTER_S);
            return HeadStep::Used(len, self.refuse_for_good(key, client, Refusal::BuffersFull, &error));
        }
        let Some(upload) = self.spool.as_mut().and_then(|spool| spool.begin(key)) else {
            let error = ApiError::not_ready("too many uploads are under way", RETRY_AFTER_S);
            return HeadStep::Used(len, self.refuse_for_good(key, client, Refusal::UploadsFull, &error));
        };
        client.upload = Some(upload);
        write_upstream_head(&mut client.request, parsed, 0, client.ip, &client.request_id);
        if parsed.expect_continue && body.is_empty() && !self.send_continue(client) {
            return HeadStep::Used(parsed.len, Step::Close);
        }
        self.spool_bytes(client, parsed.content_length, body);
        self.arm(key, client, timeout);
        HeadStep::Used(parsed.len + body.len(), Step::On)
    }

    /// Passes bytes of the body on; `missing` were not here before them.
    fn spool_bytes(&self, client: &mut Client, missing: usize, bytes: &[u8]) {
        let missing = missing - bytes.len();
        client.phase = Phase::Upload { missing };
        if let (Some(spool), Some(upload)) = (&self.spool, &mut client.upload) {
            if !bytes.is_empty() {
                spool.bytes(upload, bytes);
            }
            if missing == 0 {
                spool.end(upload);
            }
        }
    }

    fn step_upload(&mut self, client: &mut Client, missing: usize) -> Step {
        debug_assert!(missing == 0 || client.input.is_empty(), "all that came with the head was taken then");
        let waiting = client.upload.as_ref().map_or(0, |upload| upload.waiting);
        if missing == 0 || waiting >= WINDOW {
            return Step::Wait;
        }
        let mut scratch = mem::take(&mut self.scratch);
        let step = match client.read(&mut scratch) {
            Inflow::Blocked => Step::Wait,
            Inflow::Ended => Step::Close,
            Inflow::Bytes(read) => {
                let bytes = scratch.get(..read).unwrap_or_default();
                let (body, rest) = bytes.split_at(read.min(missing));
                client.input.extend_from_slice(rest);
                self.spool_bytes(client, missing, body);
                Step::On
            }
        };
        self.scratch = scratch;
        step
    }

    fn handle_news(&mut self) {
        while let Some(news) = self.spool.as_mut().and_then(Spool::news) {
            let (key, ticket) = match news {
                News::Gone => continue,
                News::Took(key, ticket) | News::Whole(key, ticket, _) | News::Failed(key, ticket) => (key, ticket),
            };
            let Some(mut client) = self.clients.take(key) else { continue };
            let step = match client.upload.as_mut().filter(|upload| upload.ticket == ticket) {
                None => Step::Wait,
                Some(upload) => match news {
                    News::Whole(_, _, stored) => self.finish_upload(key, &mut client, ticket, &stored),
                    News::Failed(..) => {
                        let error = ApiError::not_ready("the upload could not be written", RETRY_AFTER_S);
                        self.refuse_for_good(key, &mut client, Refusal::UploadFailed, &error)
                    }
                    News::Took(..) | News::Gone => {
                        upload.waiting -= 1;
                        Step::On
                    }
                },
            };
            self.settle(key, client, step);
        }
    }

    /// The body is in its file: the request goes on without it.
    fn finish_upload(&mut self, key: Key, client: &mut Client, ticket: Ticket, stored: &Stored) -> Step {
        let head_end = client.request.len().saturating_sub(b"\r\n".len());
        client.request.truncate(head_end);
        let (name, sha256) = (ticket.file_name(), Hex(stored.sha256));
        let field = format!("{UPLOAD_HEADER}: {name} {sha256} {}\r\n\r\n", stored.bytes);
        client.request.extend_from_slice(field.as_bytes());
        self.submit(key, client)
    }

    fn discard_upload(&self, client: &mut Client) {
        if let (Some(spool), Some(upload)) = (&self.spool, client.upload.take()) {
            spool.discard(&upload);
        }
    }

    fn step_write(&mut self, key: Key, client: &mut Client, then: Then) -> Step {
        while let Some(rest) = client.output.get(client.written..).filter(|rest| !rest.is_empty()) {
            match write_some(&mut client.stream, rest) {
                Ok(0) => return Step::Close,
                Ok(written) => client.written += written,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Step::Wait,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return Step::Close,
            }
        }
        (client.output, client.written) = (Vec::new(), 0);
        self.discharge(client);
        self.follow(key, client, then)
    }

    fn step_linger(&mut self, client: &mut Client, bytes_left: usize) -> Step {
        let mut scratch = mem::take(&mut self.scratch);
        let step = match client.read(&mut scratch) {
            Inflow::Blocked => Step::Wait,
            Inflow::Ended => Step::Close,
            Inflow::Bytes(read) if read >= bytes_left => Step::Close,
            Inflow::Bytes(read) => {
                client.phase = Phase::Lingering { bytes_left: bytes_left - read };
                Step::On
            }
        };
        self.scratch = scratch;
        step
    }

    // Answers.

    /// Answers with an error after which the stream cannot be read on.
    fn refuse_for_good(&mut self, key: Key, client: &mut Client, reason: Refusal, error: &ApiError) -> Step {
        client.keep_alive = false;
        client.input = Vec::new();
        self.refuse(key, client, reason, error)
    }

    /// Answers 503; the connection stays, since the request was read whole.
    fn refuse_for_now(&mut self, key: Key, client: &mut Client, reason: Refusal) -> Step {
        let message = match reason {
            Refusal::QueueFull => "too many requests are waiting",
            Refusal::QueueTimeout => "all workers stayed busy",
            Refusal::UpstreamTimeout => "the request was not answered in time, its outcome is unknown",
            _ => "the request could not be answered, its outcome is unknown",
        };
        self.refuse(key, client, reason, &ApiError::not_ready(message, RETRY_AFTER_S))
    }

    fn refuse(&mut self, key: Key, client: &mut Client, reason: Refusal, error: &ApiError) -> Step {
        self.counters.refuse(reason);
        client.request = Vec::new();
        if client.request_id.is_empty() {
            client.request_id = self.make_request_id();
        }
        self.body.clear();
        log::debug!(
            request_id = client.request_id.as_str(), client_ip:% = client.ip, reason = reason.as_str(), status = error.status();
            "request refused at the door"
        );
        let answer = LocalAnswer::error_of(error, &mut self.body, &client.request_id, self.unix_ms);
        self.answer_from_body(key, client, &answer)
    }

    fn answer_from_body(&mut self, key: Key, client: &mut Client, answer: &LocalAnswer) -> Step {
        self.out.clear();
        answer::write_local(&mut self.out, answer, self.body.len(), tail(&self.date, client));
        if !client.bodiless {
            self.out.extend_from_slice(&self.body);
        }
        if self.body.capacity() > KEPT_BYTES_MAX {
            self.body = Vec::new();
        }
        self.send(key, client)
    }

    /// Writes `self.out` to the client, now or as it takes it.
    fn send(&mut self, key: Key, client: &mut Client) -> Step {
        self.discard_upload(client);
        self.discharge(client);
        let then = if client.keep_alive { Then::NextRequest } else { Then::Linger };
        let mut written = 0;
        while let Some(rest) = self.out.get(written..).filter(|rest| !rest.is_empty()) {
            match write_some(&mut client.stream, rest) {
                Ok(0) => return Step::Close,
                Ok(count) => written += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let rest = rest.to_vec();
                    if !self.charge(client, rest.len()) {
                        self.counters.refuse(Refusal::BuffersFull);
                        return Step::Close;
                    }
                    (client.output, client.written) = (rest, 0);
                    client.phase = Phase::Writing { then };
                    self.arm(key, client, self.config.write_timeout);
                    return Step::Wait;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return Step::Close,
            }
        }
        if self.out.capacity() > KEPT_BYTES_MAX {
            self.out = Vec::new();
        }
        self.follow(key, client, then)
    }

    /// What comes after an answer that is out.
    fn follow(&mut self, key: Key, client: &mut Client, then: Then) -> Step {
        // A stop may have come while the answer was being written.
        if then == Then::NextRequest && self.listener.is_some() {
            client.phase = Phase::Head;
            let timeout = if client.input.is_empty() { self.config.idle_timeout } else { self.config.head_timeout };
            self.arm(key, client, timeout);
            return Step::On;
        }
        if client.stream.shutdown(Shutdown::Write).is_err() {
            return Step::Close;
        }
        client.input = Vec::new();
        client.phase = Phase::Lingering { bytes_left: LINGER_BYTES_MAX };
        self.arm(key, client, self.config.linger_timeout);
        Step::On
    }

    fn arm(&mut self, key: Key, client: &mut Client, timeout: Duration) {
        let deadline = self.after(timeout);
        self.timers.set(&mut client.alarm, key, deadline);
    }

    /// Adds to the sum of all buffers, unless that would go over the limit.
    fn charge(&mut self, client: &mut Client, bytes: usize) -> bool {
        if self.buffered.saturating_add(bytes) > self.config.buffered_bytes_max {
            return false;
        }
        self.buffered += bytes;
        client.charged += bytes;
        true
    }

    fn discharge(&mut self, client: &mut Client) {
        self.buffered -= mem::take(&mut client.charged);
    }

    /// Sixteen hex digits, distinct within a run and unlikely to repeat across runs.
    fn make_request_id(&mut self) -> String {
        // An odd step visits all 2^64 values.
        self.next_id = self.next_id.wrapping_add(0x9e37_79b9_7f4a_7c15);
        format!("{:016x}", self.next_id)
    }

    // The server's side.

    /// Hands a complete request to the server, or queues it.
    fn submit(&mut self, key: Key, client: &mut Client) -> Step {
        if self.queue.is_empty() && self.relay(key, client) {
            return Step::Wait;
        }
        if self.queue.len() >= self.config.queue_requests_max {
            return self.refuse_for_now(key, client, Refusal::QueueFull);
        }
        self.queue.push_back(key);
        client.phase = Phase::Queued;
        self.arm(key, client, self.config.queue_timeout);
        Step::Wait
    }

    /// Puts the client's request on an idle connection; `false` if there is none.
    fn relay(&mut self, key: Key, client: &mut Client) -> bool {
        let deadline = self.after(self.config.upstream_timeout);
        let generation = self.gate.generation();
        while let Some(index) = self.idle_slots.pop() {
            let Some(slot) = self.slots.get_mut(index) else { continue };
            let Slot::Idle(mut link) = mem::replace(slot, Slot::Vacant) else { continue };
            let mut exchange = Exchange::new(Some(key), mem::take(&mut client.request), deadline);
            exchange.bodiless = client.bodiless;
            // A connection that took no byte cannot have delivered the request, so another one may.
            if link.generation != generation || (exchange.send(&mut link) == Progress::Closed && exchange.sent == 0) {
                client.request = exchange.request;
                self.live_slots -= 1;
                self.connect_missing();
                continue;
            }
            *slot_mut(&mut self.slots, index) = Slot::Busy(link, exchange);
            self.upstream_deadline = self.upstream_deadline.min(deadline);
            client.phase = Phase::Relayed { slot: index };
            self.timers.set(&mut client.alarm, key, NEVER);
            add(&self.counters.relayed, 1);
            return true;
        }
        false
    }

    /// Gives idle connections to the requests that waited longest.
    fn feed(&mut self) {
        while !self.idle_slots.is_empty() {
            let Some(key) = self.queue.pop_front() else { return };
            let Some(mut client) = self.clients.take(key) else { continue };
            if !self.relay(key, &mut client) {
                self.queue.push_front(key);
            }
            self.clients.put(key, client);
        }
    }

    fn handle_upstream(&mut self, index: usize) {
        let Some(slot) = self.slots.get_mut(index) else { return };
        let mut over = None;
        match mem::replace(slot, Slot::Vacant) {
            Slot::Vacant => {}
            Slot::Idle(mut link) => {
                if link.has_ended(&mut self.scratch) {
                    self.idle_slots.retain(|idle| *idle != index);
                    self.live_slots -= 1;
                } else {
                    *slot = Slot::Idle(link);
                }
            }
            Slot::Busy(mut link, mut exchange) => {
                let mut progress = exchange.send(&mut link);
                if progress == Progress::Blocked {
                    progress = exchange.receive(&mut link, &mut self.scratch, self.config.answer_bytes_max);
                }
                match progress {
                    Progress::Blocked => *slot = Slot::Busy(link, exchange),
                    Progress::Answered => {
                        *slot = Slot::Idle(link);
                        self.idle_slots.push(index);
                        over = Some((exchange, progress));
                    }
                    Progress::Closed | Progress::Invalid => {
                        self.live_slots -= 1;
                        over = Some((exchange, progress));
                    }
                }
            }
            Slot::Draining(mut link) => {
                if link.has_ended(&mut self.scratch) {
                    self.draining_slots -= 1;
                } else {
                    *slot = Slot::Draining(link);
                }
            }
        }
        if let Some((exchange, progress)) = over {
            if self.probing == Some(index) {
                self.probing = None;
                if progress != Progress::Answered {
                    self.connect_at = self.after(self.config.retry_pause);
                }
            }
            // Requests that waited go before a next one of this client.
            self.feed();
            self.finish(exchange, progress);
        }
        self.connect_missing();
        self.feed();
    }

    /// Answers the client of an exchange that is over.
    fn finish(&mut self, exchange: Exchange<Key>, progress: Progress) {
        let Some(key) = exchange.client else { return };
        let Some(mut client) = self.clients.take(key) else { return };
        let step = match progress {
            Progress::Answered => {
                let mut fields = upstream::no_fields();
                match upstream::parse_answer(&exchange.answer, &mut fields, exchange.bodiless) {
                    Ok(Some(parsed)) => {
                        let body = exchange.answer.get(parsed.head_len..).unwrap_or_default();
                        self.out.clear();
                        answer::write_relayed(&mut self.out, &parsed, body, tail(&self.date, &client));
                        self.send(key, &mut client)
                    }
                    Ok(None) | Err(_) => self.answer_invalid(key, &mut client),
                }
            }
            Progress::Invalid => self.answer_invalid(key, &mut client),
            Progress::Closed | Progress::Blocked => self.refuse_for_now(key, &mut client, Refusal::UpstreamClosed),
        };
        self.settle(key, client, step);
    }

    fn answer_invalid(&mut self, key: Key, client: &mut Client) -> Step {
        let error = ApiError::new(ErrorCode::Internal, "the answer could not be relayed");
        self.refuse(key, client, Refusal::UpstreamInvalid, &error)
    }

    /// Answers the clients whose requests the server did not answer in time, and replaces the connections.
    fn give_up_overdue(&mut self) {
        self.upstream_deadline = NEVER;
        for index in 0..self.slots.len() {
            let slot = slot_mut(&mut self.slots, index);
            let Slot::Busy(_, exchange) = slot else { continue };
            if exchange.deadline > self.now {
                self.upstream_deadline = self.upstream_deadline.min(exchange.deadline);
                continue;
            }
            exchange.deadline = NEVER;
            let client = exchange.client.take();
            if self.draining_slots < self.config.draining_max
                && let Slot::Busy(link, _) = mem::replace(slot, Slot::Vacant)
            {
                link.shut();
                *slot = Slot::Draining(link);
                self.draining_slots += 1;
                self.live_slots -= 1;
            }
            if self.probing == Some(index) {
                self.probing = None;
            }
            if let Some(key) = client
                && let Some(mut client) = self.clients.take(key)
            {
                let step = self.refuse_for_now(key, &mut client, Refusal::UpstreamTimeout);
                self.settle(key, client, step);
            }
        }
        self.connect_missing();
        self.feed();
    }

    const fn wants_connection(&self) -> bool {
        self.live_slots < self.config.upstream_connections && self.probing.is_none()
    }

    fn has_vacancy(&self) -> bool {
        self.slots.iter().any(|slot| matches!(slot, Slot::Vacant))
    }

    /// Opens the next connection, if the pool is not full and the one before has been proven. All are opened at the
    /// start: later, descriptors may be scarce.
    ///
    /// One at a time, because tiny_http gives a connection to a thread that it thinks is waiting, and of several that come
    /// at once some would wait for ever behind others that never end. The answer to a probe shows that this one has its thread.
    fn connect_missing(&mut self) {
        if !self.wants_connection() || self.now < self.connect_at {
            return;
        }
        let Some(index) = self.slots.iter().position(|slot| matches!(slot, Slot::Vacant)) else { return };
        let generation = self.gate.generation();
        let deadline = self.after(self.config.upstream_timeout);
        let mut probe = Exchange::new(None, format!("GET {PROBE_TARGET} HTTP/1.1\r\n\r\n").into_bytes(), deadline);
        let connected = self.connect(index, generation).and_then(|mut link| match probe.send(&mut link) {
            Progress::Blocked => Ok(link),
            Progress::Answered | Progress::Closed | Progress::Invalid => Err(io::ErrorKind::BrokenPipe.into()),
        });
        match connected {
            Ok(link) => {
                *slot_mut(&mut self.slots, index) = Slot::Busy(link, probe);
                self.live_slots += 1;
                self.probing = Some(index);
                self.upstream_deadline = self.upstream_deadline.min(deadline);
            }
            Err(error) => {
                // A full backlog is no reason for a new listener.
                if error.kind() != io::ErrorKind::WouldBlock {
                    self.gate.report_unreachable(generation);
                    log::debug!("http guard cannot reach the server: {error}");
                }
                self.connect_at = self.after(self.config.retry_pause);
            }
        }
    }

    fn connect(&self, index: usize, generation: u64) -> io::Result<Link> {
        let mut link = Link::connect(&self.gate.path(generation), generation)?;
        let interest = Interest::READABLE | Interest::WRITABLE;
        self.poll.registry().register(&mut link.stream, Token(UPSTREAM_BIT | index), interest)?;
        Ok(link)
    }
}

/// Slots are as many as the pool was made with, and indexes come from there.
fn slot_mut(slots: &mut [Slot<Key>], index: usize) -> &mut Slot<Key> {
    &mut slots[index]
}

fn tail<'a>(date: &'a str, client: &'a Client) -> Tail<'a> {
    Tail {
        date,
        request_id: &client.request_id,
        keep_alive: client.keep_alive,
        announce_keep_alive: client.announce_keep_alive,
    }
}

/// Rewrites a head for the server from nothing but what was checked.
fn write_upstream_head(
    out: &mut Vec<u8>,
    parsed: &Parsed<'_, '_>,
    content_length: usize,
    ip: IpAddr,
    request_id: &str,
) {
    use std::io::Write;

    out.clear();
    out.reserve(parsed.len + content_length.min(READ_BYTES));
    let mut put = |text: std::fmt::Arguments<'_>| {
        let written = out.write_fmt(text);
        debug_assert!(written.is_ok(), "a Vec takes all bytes");
    };
    put(format_args!("{} {} HTTP/1.1\r\n", parsed.method, parsed.target));
    put(format_args!("{CLIENT_IP_HEADER}: {ip}\r\n{REQUEST_ID_HEADER}: {request_id}\r\n"));
    put(format_args!("Content-Length: {content_length}\r\n"));
    for field in parsed.fields {
        if let (Some(_), Some(value)) = (head::forwarded_index(field.name), head::ascii(field.value)) {
            put(format_args!("{}: {value}\r\n", field.name));
        }
    }
    put(format_args!("\r\n"));
}

/// Monotonic time and Unix milliseconds.
#[expect(clippy::disallowed_methods, reason = "the clock enters here")]
fn now() -> (Instant, i64) {
    let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    (Instant::now(), i64::try_from(unix.as_millis()).unwrap_or(i64::MAX))
}
