//! Charges free ports through the gateway's REST interface, and stops some charges again.
//!
//! A few threads, each at its share of the rate. Open loop: a slow answer delays no later request by more than the
//! thread is behind, and what a thread cannot catch up within a second is skipped and counted.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
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
use crate::report::{Percentiles, latency_histogram};

const TIMEOUT: Duration = Duration::from_secs(10);
/// A port that was ordered is left alone this long, until the device has said that it charges.
const RESERVED_US: u64 = 5 * SECOND_US;
const SLEEP_MAX: Duration = Duration::from_millis(50);
/// Different refusals told apart.
const REFUSALS_MAX: usize = 32;

/// What to ask of the gateway.
#[derive(Clone, Debug)]
pub struct ApiPlan {
    /// Base URL, without `/api/v1/third`.
    pub base: String,
    /// `X-Api-Key`.
    pub key: String,
    /// Secret of a key that requires signed requests.
    pub secret: Option<String>,
    /// Charges asked for per second.
    pub charges_per_s: f64,
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

/// What the gateway answered.
#[derive(Clone, Debug, Serialize)]
pub struct ApiSummary {
    /// Charges asked for.
    pub charges: u64,
    /// Of those accepted.
    pub charges_accepted: u64,
    /// Stops asked for.
    pub stops: u64,
    /// Of those accepted.
    pub stops_accepted: u64,
    /// Charges not asked for, because no free port was found.
    pub no_free_port: u64,
    /// Charges not asked for, because the answers came too slowly.
    pub skipped: u64,
    /// Answers other than 202, by error code; `transport` for those that did not come.
    pub refusals: BTreeMap<String, u64>,
    /// Time to the answer of a charge or stop.
    #[serde(flatten)]
    pub latency: Option<Percentiles>,
    #[serde(skip)]
    histogram: Histogram<u64>,
}

impl Default for ApiSummary {
    fn default() -> Self {
        Self {
            charges: 0,
            charges_accepted: 0,
            stops: 0,
            stops_accepted: 0,
            no_free_port: 0,
            skipped: 0,
            refusals: BTreeMap::new(),
            latency: None,
            histogram: latency_histogram(),
        }
    }
}

impl ApiSummary {
    /// Adds that of another thread.
    pub fn merge(&mut self, other: &Self) {
        self.charges += other.charges;
        self.charges_accepted += other.charges_accepted;
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
            "  api           {} charges asked, {} accepted; {} stops asked, {} accepted; {} skipped",
            self.charges,
            self.charges_accepted,
            self.stops,
            self.stops_accepted,
            self.skipped + self.no_free_port
        )?;
        for (code, count) in &self.refusals {
            write!(f, ", {count} {code}")?;
        }
        if let Some(latency) = &self.latency {
            write!(f, "; {latency}")?;
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
    Stop(String),
}

/// One thread's share of the requests.
pub struct ApiClient {
    plan: ApiPlan,
    thread: u32,
    shared: Shared,
    agent: ureq::Agent,
    later: BinaryHeap<Reverse<(u64, Later)>>,
    drawn: u64,
    summary: ApiSummary,
}

impl ApiClient {
    /// A client for the share `thread` of the plan's threads.
    pub fn new(plan: ApiPlan, thread: u32, shared: Shared) -> Self {
        let config = ureq::Agent::config_builder().timeout_global(Some(TIMEOUT)).http_status_as_error(false).build();
        Self {
            plan,
            thread,
            shared,
            agent: config.into(),
            later: BinaryHeap::new(),
            drawn: 0,
            summary: ApiSummary::default(),
        }
    }

    /// Asks until the run is draining.
    pub fn run(mut self) -> ApiSummary {
        let threads = f64::from(self.plan.threads.max(1));
        let interval_us = interval_us(self.plan.charges_per_s / threads);
        let mut due_us = self.shared.clock.now_us();
        while !self.shared.draining.load(Relaxed) && !self.shared.stop.load(Relaxed) {
            let now_us = self.shared.clock.now_us();
            self.do_later(now_us);
            if due_us <= now_us {
                if now_us - due_us > SECOND_US {
                    let behind = (now_us - due_us) / interval_us;
                    self.summary.skipped += behind;
                    due_us += behind * interval_us;
                }
                due_us += interval_us;
                self.charge();
            }
            let next_us = self.later.peek().map_or(due_us, |Reverse((later_us, _))| due_us.min(*later_us));
            let wait = Duration::from_micros(next_us.saturating_sub(self.shared.clock.now_us()));
            std::thread::sleep(wait.min(SLEEP_MAX));
        }
        self.summary.latency = Percentiles::of(&self.summary.histogram);
        self.summary
    }

    fn random(&mut self) -> u64 {
        self.drawn += 1;
        draw(self.plan.seed, &[u64::from(self.thread), self.drawn, 0x6170_6900])
    }

    fn do_later(&mut self, now_us: u64) {
        while self.later.peek().is_some_and(|Reverse((due_us, _))| *due_us <= now_us) {
            match self.later.pop() {
                Some(Reverse((_, Later::Release(index, port_no)))) => self.shared.fleet.release(index, port_no),
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

    fn charge(&mut self) {
        let random = self.random();
        let Some((index, port_no)) = self.shared.fleet.reserve(random) else {
            self.summary.no_free_port += 1;
            return;
        };
        let span = u64::from(self.plan.minutes.end().saturating_sub(*self.plan.minutes.start())) + 1;
        let extra = u16::try_from(self.random() % span).unwrap_or_default();
        let minutes = self.plan.minutes.start().saturating_add(extra);
        let request = ChargeRequest { port_no, mode: "time", duration_minutes: minutes };
        let body = serde_json::to_vec(&request).unwrap_or_default();
        let path = format!("/api/v1/third/devices/{}/charge", self.shared.fleet.device_id(index));
        self.summary.charges += 1;
        let Some(created) = self.post(&path, &body) else {
            self.shared.fleet.release(index, port_no);
            return;
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

    fn send(&mut self, path: &str, body: &[u8]) -> Result<(u16, Answer), ureq::Error> {
        let mut request = self
            .agent
            .post(format!("{}{path}", self.plan.base))
            .header("Content-Type", "application/json")
            .header("X-Api-Key", &self.plan.key);
        if let Some(secret) = &self.plan.secret {
            self.drawn += 1;
            let timestamp = unix_s().to_string();
            let nonce = format!("sim-{timestamp}-{}-{}", self.thread, self.drawn);
            let signed = SignedRequest { method: "POST", path, timestamp: &timestamp, nonce: &nonce, body };
            request = request
                .header("X-Signature", signed.sign(secret))
                .header("X-Timestamp", &timestamp)
                .header("X-Nonce", &nonce);
        }
        let mut response = request.send(body)?;
        let status = response.status().as_u16();
        // A body that is no JSON is still an answer with a status.
        let answer = response.body_mut().read_json().unwrap_or(Answer { error: None, data: None });
        Ok((status, answer))
    }
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
