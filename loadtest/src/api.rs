//! Charges free ports through the gateway's REST interface, and stops some charges again; or sends devices a command.
//!
//! A few threads, each at its share of the rate. Open loop: a slow answer delays no later request by more than the
//! thread is behind, and what a thread cannot catch up within a second is skipped and counted. With an infinite rate each
//! thread sends its next request at once behind the answer to the last.
//!
//! Devices and threads share a clock, so the time from the answer to the frame at the device is known too: of a request to
//! the instance that the device is connected to, and of one to another, apart. A device that has several ports may have a
//! frame held back behind another, for as long as its protocol wants a pause.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::fmt;
use std::ops::RangeInclusive;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use chargegate::signature::SignedRequest;
use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use crate::device::SECOND_US;
use crate::device::charge::draw;
use crate::engine::Shared;
use crate::post::Connection;
use crate::report::{Percentiles, latency_histogram};

const TIMEOUT: Duration = Duration::from_secs(10);
/// A port that was ordered is left alone this long, until the device has said that it charges.
const RESERVED_US: u64 = 5 * SECOND_US;
const SLEEP_MAX: Duration = Duration::from_millis(50);
/// A command that was not seen at its device by then is not waited for.
const SEEN_WITHIN_US: u64 = 5 * SECOND_US;
/// A device is left alone for this long behind a command that came to it: chargers lose what follows too soon.
const COMMAND_AGAIN_US: u64 = SECOND_US;
/// How often a thread that has nothing else to do looks whether commands were seen.
const LOOK_AGAIN: Duration = Duration::from_millis(2);
/// Different refusals told apart.
const REFUSALS_MAX: usize = 32;

/// What is asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ask {
    /// Charges on free ports.
    #[default]
    Charges,
    /// `locate` for chargers, `query_socket` for gateways; each device gets the next one a second behind the last at the earliest.
    Commands,
}

/// What to ask of the gateway.
#[derive(Clone, Debug)]
pub struct ApiPlan {
    /// Base URLs of the instances, without `/api/v1/third`; threads use them in turn. At least one.
    pub bases: Vec<String>,
    /// What for.
    pub ask: Ask,
    /// Nothing is asked for before this time of the run.
    pub after: Duration,
    /// `X-Api-Key`.
    pub key: String,
    /// Secret of a key that requires signed requests.
    pub secret: Option<String>,
    /// Charges or commands asked for per second; infinite: one behind the other.
    pub per_s: f64,
    /// Ordered minutes, drawn for each charge.
    pub minutes: RangeInclusive<u16>,
    /// Share of the charges stopped halfway, 0..=100.
    pub stop_percent: u8,
    /// Threads.
    pub threads: u32,
    /// As for the devices: when half of a charge has passed.
    pub time_factor: u32,
    /// Decides ports, minutes and stops.
    pub seed: u64,
}

/// Where a request went, seen from its device's connection.
#[derive(Clone, Copy, Debug)]
enum Way {
    /// To the instance that has the device.
    Same,
    /// To another.
    Other,
}

/// Times to the frame at the device.
#[derive(Clone, Debug, Default, Serialize)]
pub struct ToFrame {
    /// Commands seen at their devices.
    pub seen: u64,
    /// Accepted, and not seen within 5 s.
    pub unseen: u64,
    /// From the answer; 0 where the frame was there first.
    pub after_answer: Option<Percentiles>,
    /// From sending the request.
    pub after_request: Option<Percentiles>,
    #[serde(skip)]
    histograms: Option<Box<[Histogram<u64>; 2]>>,
}

impl ToFrame {
    fn record(&mut self, after_answer_us: u64, after_request_us: u64) {
        self.seen += 1;
        let [answer, request] = &mut **self.histograms();
        answer.saturating_record(after_answer_us);
        request.saturating_record(after_request_us);
    }

    fn histograms(&mut self) -> &mut Box<[Histogram<u64>; 2]> {
        self.histograms.get_or_insert_with(|| Box::new([latency_histogram(), latency_histogram()]))
    }

    fn merge(&mut self, other: &Self) {
        self.seen += other.seen;
        self.unseen += other.unseen;
        if let Some(others) = &other.histograms {
            for (sum, part) in self.histograms().iter_mut().zip(&**others) {
                sum.add(part).expect("all histograms have the same bounds");
            }
        }
        if let Some(histograms) = &self.histograms {
            let [answer, request] = &**histograms;
            (self.after_answer, self.after_request) = (Percentiles::of(answer), Percentiles::of(request));
        }
    }
}

/// What the gateway answered.
#[derive(Clone, Debug, Serialize)]
pub struct ApiSummary {
    /// Length of the asking, in seconds.
    pub seconds: f64,
    /// Charges and commands accepted per second.
    pub accepted_per_s: f64,
    /// Charges asked for.
    pub charges: u64,
    /// Of those accepted.
    pub charges_accepted: u64,
    /// Commands asked for.
    pub commands: u64,
    /// Of those accepted.
    pub commands_accepted: u64,
    /// Stops asked for.
    pub stops: u64,
    /// Of those accepted.
    pub stops_accepted: u64,
    /// Charges and commands not asked for, because no free port or device was found.
    pub no_free_port: u64,
    /// Charges and commands not asked for, because the answers came too slowly.
    pub skipped: u64,
    /// Answers other than 202, by error code; `transport` for those that did not come.
    pub refusals: BTreeMap<String, u64>,
    /// Time to the answer of a charge, command or stop.
    #[serde(flatten)]
    pub latency: Option<Percentiles>,
    /// Times to the frame, of requests to the instance that has the device.
    pub same_instance: ToFrame,
    /// The same of requests to another instance.
    pub other_instance: ToFrame,
    #[serde(skip)]
    histogram: Histogram<u64>,
}

impl Default for ApiSummary {
    fn default() -> Self {
        Self {
            seconds: 0.0,
            accepted_per_s: 0.0,
            charges: 0,
            charges_accepted: 0,
            commands: 0,
            commands_accepted: 0,
            stops: 0,
            stops_accepted: 0,
            no_free_port: 0,
            skipped: 0,
            refusals: BTreeMap::new(),
            latency: None,
            same_instance: ToFrame::default(),
            other_instance: ToFrame::default(),
            histogram: latency_histogram(),
        }
    }
}

impl ApiSummary {
    /// Adds that of another thread.
    pub fn merge(&mut self, other: &Self) {
        // Threads begin and end together.
        self.seconds = self.seconds.max(other.seconds);
        self.charges += other.charges;
        self.charges_accepted += other.charges_accepted;
        self.commands += other.commands;
        self.commands_accepted += other.commands_accepted;
        let accepted = self.charges_accepted + self.commands_accepted;
        self.accepted_per_s = if self.seconds > 0.0 { accepted as f64 / self.seconds } else { 0.0 };
        self.same_instance.merge(&other.same_instance);
        self.other_instance.merge(&other.other_instance);
        self.stops += other.stops;
        self.stops_accepted += other.stops_accepted;
        self.no_free_port += other.no_free_port;
        self.skipped += other.skipped;
        for (code, count) in &other.refusals {
            *self.refusals.entry(code.clone()).or_default() += count;
        }
        self.histogram.add(&other.histogram).expect("all histograms have the same bounds");
        self.latency = Percentiles::of(&self.histogram);
    }

    fn refused(&mut self, code: &str) {
        let code = if self.refusals.len() < REFUSALS_MAX { code } else { "other" };
        *self.refusals.entry(code.to_owned()).or_default() += 1;
    }
}

impl fmt::Display for ApiSummary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "  api           {} charges asked, {} accepted; {} commands asked, {} accepted; {} stops asked, {} accepted; \
             {} skipped; {:.0}/s accepted",
            self.charges,
            self.charges_accepted,
            self.commands,
            self.commands_accepted,
            self.stops,
            self.stops_accepted,
            self.skipped + self.no_free_port,
            self.accepted_per_s
        )?;
        for (code, count) in &self.refusals {
            write!(f, ", {count} {code}")?;
        }
        if let Some(latency) = &self.latency {
            write!(f, "; {latency}")?;
        }
        for (way, times) in [("same", &self.same_instance), ("other", &self.other_instance)] {
            if let (Some(answer), Some(request)) = (&times.after_answer, &times.after_request) {
                write!(f, "\n  to the device, {way} instance: {} seen, {} not; ", times.seen, times.unseen)?;
                write!(f, "from the answer {answer}; from the request {request}")?;
            }
        }
        Ok(())
    }
}

#[derive(Serialize)]
struct ChargeRequest {
    port_no: u16,
    mode: &'static str,
    duration_minutes: u16,
}

#[derive(Deserialize)]
struct Answer {
    error: Option<String>,
    data: Option<Created>,
}

#[derive(Deserialize)]
struct Created {
    order_no: Option<String>,
}

/// What is to be done later.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Later {
    Release(u32, u16),
    ReleaseDevice(u32),
    Stop(String),
}

/// An accepted request whose frame was not seen at its device yet.
struct OnItsWay {
    index: u32,
    way: Way,
    requested_us: u64,
    answered_us: u64,
}

/// One thread's share of the requests.
pub struct ApiClient {
    plan: ApiPlan,
    thread: u32,
    /// Of the gateway; devices are spread over them by index.
    instances: u32,
    shared: Shared,
    /// For a base that is plain HTTP.
    connection: Option<Connection>,
    /// For others.
    agent: ureq::Agent,
    on_their_way: VecDeque<OnItsWay>,
    later: BinaryHeap<Reverse<(u64, Later)>>,
    drawn: u64,
    summary: ApiSummary,
}

impl ApiClient {
    /// A client for the share `thread` of the plan's threads; devices are connected to `instances` instances.
    pub fn new(plan: ApiPlan, thread: u32, instances: usize, shared: Shared) -> Self {
        let config = ureq::Agent::config_builder().timeout_global(Some(TIMEOUT)).http_status_as_error(false).build();
        let base = plan.bases.get(base_of(&plan, thread));
        Self {
            connection: base.and_then(|base| Connection::to(base, TIMEOUT)),
            plan,
            thread,
            instances: u32::try_from(instances).unwrap_or(u32::MAX).max(1),
            shared,
            agent: config.into(),
            on_their_way: VecDeque::new(),
            later: BinaryHeap::new(),
            drawn: 0,
            summary: ApiSummary::default(),
        }
    }

    /// Asks until the run is draining.
    pub fn run(mut self) -> ApiSummary {
        let threads = f64::from(self.plan.threads.max(1));
        let closed_loop = self.plan.per_s.is_infinite();
        let interval_us = interval_us(self.plan.per_s / threads);
        let from_us = u64::try_from(self.plan.after.as_micros()).unwrap_or(u64::MAX).max(self.shared.clock.now_us());
        // Spread, so that a slow rate is no burst of all threads.
        let mut due_us =
            from_us.saturating_add(interval_us / u64::from(self.plan.threads.max(1)) * u64::from(self.thread));
        while !self.shared.draining.load(Relaxed) && !self.shared.stop.load(Relaxed) {
            let now_us = self.shared.clock.now_us();
            self.do_later(now_us);
            self.look_for_frames(now_us);
            if due_us <= now_us {
                if closed_loop {
                    due_us = now_us;
                } else {
                    if now_us - due_us > SECOND_US {
                        let behind = (now_us - due_us) / interval_us;
                        self.summary.skipped += behind;
                        due_us += behind * interval_us;
                    }
                    due_us += interval_us;
                }
                let found = match self.plan.ask {
                    Ask::Charges => self.charge(),
                    Ask::Commands => self.command(),
                };
                if !found && closed_loop {
                    due_us = now_us + 1_000;
                }
            }
            let next_us = self.later.peek().map_or(due_us, |Reverse((later_us, _))| due_us.min(*later_us));
            let wait = Duration::from_micros(next_us.saturating_sub(self.shared.clock.now_us()));
            if !wait.is_zero() {
                std::thread::sleep(wait.min(if self.on_their_way.is_empty() { SLEEP_MAX } else { LOOK_AGAIN }));
            }
        }
        self.summary.seconds = Duration::from_micros(self.shared.clock.now_us().saturating_sub(from_us)).as_secs_f64();
        while !self.on_their_way.is_empty() && !self.shared.stop.load(Relaxed) {
            self.look_for_frames(self.shared.clock.now_us());
            std::thread::sleep(LOOK_AGAIN);
        }
        // Its own percentiles are made by merging.
        let mut summary = ApiSummary::default();
        summary.merge(&self.summary);
        summary
    }

    fn random(&mut self) -> u64 {
        self.drawn += 1;
        draw(self.plan.seed, &[u64::from(self.thread), self.drawn, 0x6170_6900])
    }

    fn do_later(&mut self, now_us: u64) {
        while self.later.peek().is_some_and(|Reverse((due_us, _))| *due_us <= now_us) {
            match self.later.pop() {
                Some(Reverse((_, Later::Release(index, port_no)))) => self.shared.fleet.release(index, port_no),
                Some(Reverse((_, Later::ReleaseDevice(index)))) => self.shared.fleet.release_device(index),
                Some(Reverse((_, Later::Stop(order_no)))) => {
                    self.summary.stops += 1;
                    if self.post(&format!("/api/v1/third/orders/{order_no}/stop"), b"{}").is_some() {
                        self.summary.stops_accepted += 1;
                    }
                }
                None => return,
            }
        }
    }

    /// Notes of accepted requests whose frames were seen when that was.
    fn look_for_frames(&mut self, now_us: u64) {
        // One at a time may be held back by its device's pause; the others behind it lose nothing by waiting.
        while let Some(first) = self.on_their_way.front() {
            let seen_us = self.shared.fleet.command_us(first.index);
            if seen_us.is_none() && now_us < first.answered_us + SEEN_WITHIN_US {
                return;
            }
            let Some(first) = self.on_their_way.pop_front() else { return };
            let times = match first.way {
                Way::Same => &mut self.summary.same_instance,
                Way::Other => &mut self.summary.other_instance,
            };
            match seen_us {
                Some(us) => {
                    times.record(us.saturating_sub(first.answered_us), us.saturating_sub(first.requested_us));
                }
                None => times.unseen += 1,
            }
            if self.plan.ask == Ask::Commands {
                let again_us = seen_us.unwrap_or(now_us) + COMMAND_AGAIN_US;
                self.later.push(Reverse((again_us, Later::ReleaseDevice(first.index))));
            }
        }
    }

    /// Which of the base URLs is used, by this thread.
    fn base(&self) -> u32 {
        u32::try_from(base_of(&self.plan, self.thread)).unwrap_or(u32::MAX)
    }

    /// Posts a request that is to bring a frame to a device.
    fn post_to(&mut self, index: u32, path: &str, body: &[u8]) -> Option<Answer> {
        let way = if self.instances == 1 || index % self.instances == self.base() { Way::Same } else { Way::Other };
        self.shared.fleet.expect_command(index);
        let requested_us = self.shared.clock.now_us();
        let answer = self.post(path, body)?;
        let answered_us = self.shared.clock.now_us();
        self.on_their_way.push_back(OnItsWay { index, way, requested_us, answered_us });
        Some(answer)
    }

    /// Sends a command; false if there is no device for one.
    fn command(&mut self) -> bool {
        let random = self.random();
        let Some(index) = self.shared.fleet.reserve_device(random) else {
            self.summary.no_free_port += 1;
            return false;
        };
        let body: &[u8] = if self.shared.fleet.is_ap3000(index) {
            br#"{"command":"locate","seconds":1}"#
        } else {
            br#"{"command":"query_socket","socket":0}"#
        };
        let path = format!("/api/v1/third/devices/{}/commands", self.shared.fleet.device_id(index));
        self.summary.commands += 1;
        if self.post_to(index, &path, body).is_some() {
            self.summary.commands_accepted += 1;
        } else {
            let again_us = self.shared.clock.now_us() + COMMAND_AGAIN_US;
            self.later.push(Reverse((again_us, Later::ReleaseDevice(index))));
        }
        true
    }

    /// Asks for a charge; false if there is no port for one.
    fn charge(&mut self) -> bool {
        let random = self.random();
        let Some((index, port_no)) = self.shared.fleet.reserve(random) else {
            self.summary.no_free_port += 1;
            return false;
        };
        let span = u64::from(self.plan.minutes.end().saturating_sub(*self.plan.minutes.start())) + 1;
        let extra = u16::try_from(self.random() % span).unwrap_or_default();
        let minutes = self.plan.minutes.start().saturating_add(extra);
        let request = ChargeRequest { port_no, mode: "time", duration_minutes: minutes };
        let body = serde_json::to_vec(&request).unwrap_or_default();
        let path = format!("/api/v1/third/devices/{}/charge", self.shared.fleet.device_id(index));
        self.summary.charges += 1;
        let Some(created) = self.post_to(index, &path, &body) else {
            self.shared.fleet.release(index, port_no);
            return true;
        };
        self.summary.charges_accepted += 1;
        let now_us = self.shared.clock.now_us();
        self.later.push(Reverse((now_us + RESERVED_US, Later::Release(index, port_no))));
        if self.random() % 100 < u64::from(self.plan.stop_percent)
            && let Some(order_no) = created.data.and_then(|data| data.order_no)
        {
            let half_us = u64::from(minutes) * 30 * SECOND_US / u64::from(self.plan.time_factor.max(1));
            self.later.push(Reverse((now_us + half_us, Later::Stop(order_no))));
        }
        true
    }

    /// Posts, and counts. `None` if the answer is not 202.
    fn post(&mut self, path: &str, body: &[u8]) -> Option<Answer> {
        let from_us = self.shared.clock.now_us();
        let answered = self.send(path, body);
        let after_us = self.shared.clock.now_us() - from_us;
        match answered {
            Ok((status, answer)) => {
                self.summary.histogram.saturating_record(after_us);
                if status == 202 {
                    return Some(answer);
                }
                self.summary.refused(&answer.error.unwrap_or_else(|| format!("status {status}")));
            }
            Err(error) => {
                log::debug!("{path}: {error}");
                self.summary.refused("transport");
            }
        }
        None
    }

    fn send(&mut self, path: &str, body: &[u8]) -> anyhow::Result<(u16, Answer)> {
        let mut headers = vec![("X-Api-Key", self.plan.key.as_str())];
        let (timestamp, nonce, signature);
        if let Some(secret) = &self.plan.secret {
            self.drawn += 1;
            timestamp = unix_s().to_string();
            nonce = format!("sim-{timestamp}-{}-{}", self.thread, self.drawn);
            signature = SignedRequest { method: "POST", path, timestamp: &timestamp, nonce: &nonce, body }.sign(secret);
            headers.extend([("X-Signature", &*signature), ("X-Timestamp", &*timestamp), ("X-Nonce", &*nonce)]);
        }
        // A body that is no JSON is still an answer with a status.
        let none = Answer { error: None, data: None };
        if let Some(connection) = &mut self.connection {
            let (status, answer) = connection.post(self.shared.clock.now_us(), path, &headers, body)?;
            return Ok((status, serde_json::from_slice(answer).unwrap_or(none)));
        }
        let base = self.plan.bases.get(base_of(&self.plan, self.thread)).map_or("", String::as_str);
        let mut request = self.agent.post(format!("{base}{path}")).header("Content-Type", "application/json");
        for (name, value) in headers {
            request = request.header(name, value);
        }
        let mut response = request.send(body)?;
        let status = response.status().as_u16();
        Ok((status, response.body_mut().read_json().unwrap_or(none)))
    }
}

/// Which of the base URLs a thread uses.
fn base_of(plan: &ApiPlan, thread: u32) -> usize {
    usize::try_from(thread).unwrap_or_default() % plan.bases.len().max(1)
}

/// Time between requests at a rate; a day for rates that are none.
fn interval_us(per_s: f64) -> u64 {
    let interval = Duration::try_from_secs_f64(1.0 / per_s).unwrap_or(Duration::from_secs(86_400));
    u64::try_from(interval.as_micros()).unwrap_or(u64::MAX).clamp(1, 86_400 * SECOND_US)
}

/// The gateway compares the signature's time with its own clock.
#[expect(clippy::disallowed_methods, reason = "the clock enters here")]
fn unix_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}
