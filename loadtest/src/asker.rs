//! Asks the API at the times of a timetable, on one thread.
//!
//! Open loop: each request has its time from the beginning, whatever the answers take. What a busy server cannot take waits, and that
//! wait is part of its latency. Orders are remembered for the comparison at the end.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use chargegate::signature::SignedRequest;
use serde::{Deserialize, Serialize};

use crate::device::SECOND_US;
use crate::device::charge::draw;
use crate::engine::Shared;
use crate::http::{Answer, Clients};
use crate::measure::{Metric, Recorder, Seconds};
use crate::report::{Counters, add};
use crate::schedule::{Question, Stream};

/// A port that was ordered is left alone this long, until the device has said that it charges.
const RESERVED_US: u64 = 5 * SECOND_US;
/// A device is left alone for this long behind a command.
const COMMAND_AGAIN_US: u64 = SECOND_US;
/// A frame that was not seen at its device by then is not waited for.
const SEEN_WITHIN_US: u64 = 5 * SECOND_US;
/// Requests begun in one turn, so that answers are read in between.
const REQUESTS_PER_TURN: u32 = 256;
const SLEEP_MAX_US: u64 = 20_000;
/// While frames are waited for.
const LOOK_AGAIN_US: u64 = 2_000;
/// Longest wait for the last answers.
const LAST_ANSWERS_US: u64 = 10 * SECOND_US;
const THIRD: &str = "/api/v1/third";

/// A charge that the API accepted.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Ordered {
    /// Its number.
    pub order_no: String,
    /// Of the device, as the API knows it.
    pub device_id: String,
    /// From 1.
    pub port_no: u16,
}

/// How the API is asked.
#[derive(Clone, Debug)]
pub struct Asking {
    /// The instances; devices are spread over them by index.
    pub bases: Vec<SocketAddr>,
    /// `X-Api-Key`.
    pub key: String,
    /// Secret of a key that requires signed requests.
    pub secret: Option<String>,
    /// Keep-alive connections.
    pub connections: u32,
    /// Least and most ordered minutes.
    pub minutes: [u16; 2],
    /// Share of the charges stopped halfway, in percent.
    pub stop_percent: u8,
    /// As for the devices.
    pub time_factor: u32,
    /// Decides ports, minutes and stops.
    pub seed: u64,
}

enum About {
    Charge { index: u32, port_no: u16, minutes: u16 },
    Stop,
    Command { index: u32 },
    Status,
    List,
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Later {
    Release(u32, u16),
    ReleaseDevice(u32),
    Stop(String, u64),
}

struct OnItsWay {
    index: u32,
    metric: Metric,
    answered_us: u64,
}

#[derive(Deserialize)]
struct Accepted {
    data: Created,
}

#[derive(Default, Deserialize)]
struct Refusal {
    error: Option<String>,
}

#[derive(Deserialize)]
struct Created {
    order_no: String,
}

/// Asks; see the module.
pub struct Asker {
    asking: Asking,
    streams: Vec<Stream<Question>>,
    clients: Clients<About>,
    later: BinaryHeap<Reverse<(u64, Later)>>,
    on_their_way: VecDeque<OnItsWay>,
    shared: Shared,
    counters: Arc<Counters>,
    recorder: Arc<Recorder>,
    seconds: Seconds,
    drawn: u64,
    nonces: u64,
    orders: Vec<Ordered>,
}

impl Asker {
    /// Asks what these streams say, and counts and records second by second from `begins_us` on.
    ///
    /// # Errors
    /// The system gives no poll.
    pub fn new(
        asking: Asking,
        streams: Vec<Stream<Question>>,
        begins_us: u64,
        shared: Shared,
        counters: Arc<Counters>,
        recorder: Arc<Recorder>,
    ) -> io::Result<Self> {
        let connections = usize::try_from(asking.connections).unwrap_or(1);
        let clients = Clients::new(asking.bases.clone(), connections)?;
        Ok(Self {
            asking,
            streams,
            clients,
            later: BinaryHeap::new(),
            on_their_way: VecDeque::new(),
            shared,
            seconds: Seconds::new(begins_us, Arc::clone(&counters), Arc::clone(&recorder)),
            counters,
            recorder,
            drawn: 0,
            nonces: 0,
            orders: Vec::new(),
        })
    }

    /// Asks until the run is draining and the last answers are there.
    ///
    /// # Errors
    /// Polling fails.
    pub fn run(mut self) -> io::Result<Vec<Ordered>> {
        let mut over_us = None;
        while !self.shared.stop.load(Relaxed) {
            let now_us = self.now_us();
            if self.shared.draining.load(Relaxed) && over_us.is_none() {
                over_us = Some(now_us + LAST_ANSWERS_US);
                self.streams.clear();
            }
            let next_us = self.ask_due(now_us).min(self.do_later(now_us));
            self.look_for_frames(now_us);
            if over_us.is_some_and(|over_us| self.is_done() || over_us <= now_us) {
                break;
            }
            let longest_us = if self.on_their_way.is_empty() { SLEEP_MAX_US } else { LOOK_AGAIN_US };
            let wait_us = next_us.saturating_sub(self.shared.clock.now_us()).min(longest_us);
            let clock = self.shared.clock;
            // Rounded up, because polls wait whole milliseconds and waking early would spin.
            for answer in self.clients.answers(|| clock.now_us(), Duration::from_millis(wait_us.div_ceil(1000)))? {
                self.handle(answer);
            }
        }
        Ok(self.orders)
    }

    fn is_done(&self) -> bool {
        let stops = self.later.iter().any(|Reverse((_, later))| matches!(later, Later::Stop(..)));
        self.clients.open() == 0 && self.on_their_way.is_empty() && !stops
    }

    fn ask_due(&mut self, now_us: u64) -> u64 {
        let mut next_us = u64::MAX;
        let mut budget = REQUESTS_PER_TURN;
        for nth in 0..self.streams.len() {
            loop {
                let due_us = self.streams[nth].due_us();
                if due_us > now_us || budget == 0 {
                    next_us = next_us.min(due_us.max(now_us));
                    break;
                }
                budget -= 1;
                self.streams[nth].pace.advance();
                self.recorder.record(Metric::Late, now_us - due_us);
                self.question(self.streams[nth].what, now_us, due_us);
            }
        }
        next_us
    }

    fn random(&mut self) -> u64 {
        self.drawn += 1;
        draw(self.asking.seed, &[self.drawn, 0x6173_6b73])
    }

    /// The instance that has a device.
    fn base(&self, index: u32) -> usize {
        usize::try_from(index).unwrap_or_default() % self.asking.bases.len().max(1)
    }

    fn question(&mut self, question: Question, now_us: u64, due_us: u64) {
        let random = self.random();
        let fleet = Arc::clone(&self.shared.fleet);
        match question {
            Question::Charge => {
                let Some((index, port_no)) = fleet.reserve(random) else { return add(&self.counters.api_unsent, 1) };
                let [least, most] = self.asking.minutes;
                let span = u64::from(most.saturating_sub(least)) + 1;
                let minutes = least.saturating_add(u16::try_from(self.random() % span).unwrap_or_default());
                fleet.expect_command(index);
                let path = format!("{THIRD}/devices/{}/charge", fleet.device_id(index));
                let body = format!(r#"{{"port_no":{port_no},"mode":"time","duration_minutes":{minutes}}}"#);
                let bytes = self.request("POST", &path, &body);
                self.send(now_us, self.base(index), due_us, bytes, About::Charge { index, port_no, minutes });
            }
            Question::Command => {
                let Some(index) = fleet.reserve_device(random) else { return add(&self.counters.api_unsent, 1) };
                fleet.expect_command(index);
                let body = if fleet.is_ap3000(index) {
                    r#"{"command":"locate","seconds":1}"#
                } else {
                    r#"{"command":"query_socket","socket":0}"#
                };
                let path = format!("{THIRD}/devices/{}/commands", fleet.device_id(index));
                let bytes = self.request("POST", &path, body);
                self.send(now_us, self.base(index), due_us, bytes, About::Command { index });
            }
            Question::Status => {
                let Some(index) = fleet.registered(random) else { return add(&self.counters.api_unsent, 1) };
                let bytes = self.request("GET", &format!("{THIRD}/devices/{}/status", fleet.device_id(index)), "");
                self.send(now_us, self.base(index), due_us, bytes, About::Status);
            }
            Question::List => {
                let bytes = self.request("GET", &format!("{THIRD}/orders?page=1&size=20"), "");
                let base = usize::try_from(random % 1024).unwrap_or_default() % self.asking.bases.len().max(1);
                self.send(now_us, base, due_us, bytes, About::List);
            }
        }
    }

    fn send(&mut self, now_us: u64, base: usize, due_us: u64, bytes: Vec<u8>, about: About) {
        if let Err(about) = self.clients.ask(now_us, base, due_us, bytes, about) {
            add(&self.counters.api_unsent, 1);
            self.give_back(now_us, &about);
        }
    }

    /// The ports or the device of a request that was not accepted are free again.
    fn give_back(&mut self, now_us: u64, about: &About) {
        match about {
            About::Charge { index, port_no, .. } => self.shared.fleet.release(*index, *port_no),
            About::Command { index } => {
                self.later.push(Reverse((now_us + COMMAND_AGAIN_US, Later::ReleaseDevice(*index))));
            }
            About::Stop | About::Status | About::List => {}
        }
    }

    fn request(&mut self, method: &str, path: &str, body: &str) -> Vec<u8> {
        let mut head = format!("{method} {path} HTTP/1.1\r\nHost: gateway\r\nX-Api-Key: {}\r\n", self.asking.key);
        if !body.is_empty() {
            head += &format!("Content-Type: application/json\r\nContent-Length: {}\r\n", body.len());
        }
        if let Some(secret) = &self.asking.secret {
            self.nonces += 1;
            let timestamp = unix_s().to_string();
            let nonce = format!("load-{}-{timestamp}-{}", std::process::id(), self.nonces);
            let signed = SignedRequest { method, path, timestamp: &timestamp, nonce: &nonce, body: body.as_bytes() };
            let signature = signed.sign(secret);
            head += &format!("X-Signature: {signature}\r\nX-Timestamp: {timestamp}\r\nX-Nonce: {nonce}\r\n");
        }
        head += "\r\n";
        head += body;
        head.into_bytes()
    }

    /// What happens now, in the second that it belongs to.
    fn now_us(&mut self) -> u64 {
        let now_us = self.shared.clock.now_us();
        self.seconds.reach(now_us);
        now_us
    }

    fn handle(&mut self, answer: Answer<About>) {
        let now_us = self.now_us();
        let (metric, meant) = match answer.about {
            About::Charge { .. } => (Metric::ApiCharge, 202),
            About::Stop => (Metric::ApiStop, 202),
            About::Command { .. } => (Metric::ApiCommand, 202),
            About::Status => (Metric::ApiStatus, 200),
            About::List => (Metric::ApiList, 200),
        };
        let Some((status, body)) = answer.answered else {
            add(&self.counters.api_failed, 1);
            self.recorder.window().refused("transport");
            return self.give_back(now_us, &answer.about);
        };
        self.recorder.record(metric, now_us.saturating_sub(answer.due_us));
        if status != meant {
            add(&self.counters.api_refused, 1);
            let refusal: Refusal = serde_json::from_slice(&body).unwrap_or_default();
            let code = refusal.error.unwrap_or_else(|| status.to_string());
            self.recorder.window().refused(&format!("{} {code}", metric.as_str()));
            return self.give_back(now_us, &answer.about);
        }
        add(&self.counters.api_answered, 1);
        match answer.about {
            About::Charge { index, port_no, minutes } => self.charged(now_us, index, port_no, minutes, &body),
            About::Stop => add(&self.counters.api_stops, 1),
            About::Command { index } => {
                add(&self.counters.api_commands, 1);
                let metric = Metric::CommandFrame;
                self.on_their_way.push_back(OnItsWay { index, metric, answered_us: now_us });
            }
            About::Status | About::List => {}
        }
    }

    fn charged(&mut self, now_us: u64, index: u32, port_no: u16, minutes: u16, body: &[u8]) {
        add(&self.counters.api_charges, 1);
        self.on_their_way.push_back(OnItsWay { index, metric: Metric::ChargeFrame, answered_us: now_us });
        self.later.push(Reverse((now_us + RESERVED_US, Later::Release(index, port_no))));
        let Ok(Accepted { data: Created { order_no } }) = serde_json::from_slice(body) else {
            add(&self.counters.mismatched, 1);
            return self.recorder.window().remark(|| "api.charge: a 202 without order_no".to_owned());
        };
        if self.random() % 100 < u64::from(self.asking.stop_percent) {
            let half_us = u64::from(minutes) * 30 * SECOND_US / u64::from(self.asking.time_factor.max(1));
            let path = format!("{THIRD}/orders/{order_no}/stop");
            let base = u64::try_from(self.base(index)).unwrap_or_default();
            self.later.push(Reverse((now_us + half_us, Later::Stop(path, base))));
        }
        let device_id = self.shared.fleet.device_id(index);
        self.orders.push(Ordered { order_no, device_id, port_no });
    }

    fn do_later(&mut self, now_us: u64) -> u64 {
        while self.later.peek().is_some_and(|Reverse((due_us, _))| *due_us <= now_us) {
            match self.later.pop() {
                Some(Reverse((_, Later::Release(index, port_no)))) => self.shared.fleet.release(index, port_no),
                Some(Reverse((_, Later::ReleaseDevice(index)))) => self.shared.fleet.release_device(index),
                Some(Reverse((due_us, Later::Stop(path, base)))) => {
                    let bytes = self.request("POST", &path, "{}");
                    self.recorder.record(Metric::Late, now_us - due_us);
                    self.send(now_us, usize::try_from(base).unwrap_or_default(), due_us, bytes, About::Stop);
                }
                None => break,
            }
        }
        self.later.peek().map_or(u64::MAX, |Reverse((due_us, _))| *due_us)
    }

    fn look_for_frames(&mut self, now_us: u64) {
        while let Some(first) = self.on_their_way.front() {
            let seen_us = self.shared.fleet.command_us(first.index);
            if seen_us.is_none() && now_us < first.answered_us + SEEN_WITHIN_US {
                return;
            }
            let Some(first) = self.on_their_way.pop_front() else { return };
            if let Some(us) = seen_us {
                self.recorder.record(first.metric, us.saturating_sub(first.answered_us));
            }
            if first.metric == Metric::CommandFrame {
                let again_us = seen_us.unwrap_or(now_us) + COMMAND_AGAIN_US;
                self.later.push(Reverse((again_us, Later::ReleaseDevice(first.index))));
            }
        }
    }
}

/// The gateway compares the signature's time with its own clock.
#[expect(clippy::disallowed_methods, reason = "the clock enters here")]
fn unix_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}
