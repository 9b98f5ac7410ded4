//! Counters, latencies, and how they are shown.
//!
//! Each engine thread owns one [`Counters`], which only it writes; readers add them up.

/// Writes to a `String`, which cannot fail.
macro_rules! put {
    ($out:expr, $($argument:tt)*) => {
        $out.push_str(&format!($($argument)*))
    };
}

pub mod chart;
pub mod html;
pub mod json;

use std::fmt;
use std::sync::atomic::{AtomicI64, Ordering::Relaxed};

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use crate::device::{Event, Request};

/// Longest latency told apart, in microseconds.
const LATENCY_US_MAX: u64 = 120_000_000;

macro_rules! counters {
    ($( $(#[$meta:meta])* $name:ident, )*) => {
        /// What one engine thread counts. Gauges go up and down, everything else only up.
        #[derive(Debug, Default)]
        pub struct Counters {
            $( $(#[$meta])* pub $name: AtomicI64, )*
            /// Requests sent, by [`Request`].
            pub sent: [AtomicI64; Request::COUNT],
            /// Requests answered, by [`Request`].
            pub answered: [AtomicI64; Request::COUNT],
            /// Requests given up, by [`Request`].
            pub given_up: [AtomicI64; Request::COUNT],
        }

        /// The sum of all [`Counters`] at one time.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
        pub struct Totals {
            $( $(#[$meta])* pub $name: i64, )*
            /// Requests sent, by [`Request`].
            #[serde(skip)]
            pub sent: [i64; Request::COUNT],
            /// Requests answered, by [`Request`].
            #[serde(skip)]
            pub answered: [i64; Request::COUNT],
            /// Requests given up, by [`Request`].
            #[serde(skip)]
            pub given_up: [i64; Request::COUNT],
        }

        impl Totals {
            /// Adds up the counters of all threads.
            pub fn of<'a>(counters: impl IntoIterator<Item = &'a Counters>) -> Self {
                let mut totals = Self::default();
                for counters in counters {
                    $( totals.$name += counters.$name.load(Relaxed); )*
                    for request in 0..Request::COUNT {
                        totals.sent[request] += counters.sent[request].load(Relaxed);
                        totals.answered[request] += counters.answered[request].load(Relaxed);
                        totals.given_up[request] += counters.given_up[request].load(Relaxed);
                    }
                }
                totals
            }

            /// The sum of two parts of a fleet.
            #[must_use]
            pub fn plus(&self, other: &Self) -> Self {
                self.with(other, |own, others| own + others)
            }

            /// What was counted since `earlier`; gauges are differences too.
            #[must_use]
            pub fn since(&self, earlier: &Self) -> Self {
                self.with(earlier, |now, then| now - then)
            }

            fn with(&self, other: &Self, each: impl Fn(i64, i64) -> i64) -> Self {
                let all = |own: &[i64; Request::COUNT], others: &[i64; Request::COUNT]| {
                    std::array::from_fn(|at| each(own[at], others[at]))
                };
                Self {
                    $( $name: each(self.$name, other.$name), )*
                    sent: all(&self.sent, &other.sent),
                    answered: all(&self.answered, &other.answered),
                    given_up: all(&self.given_up, &other.given_up),
                }
            }
        }
    };
}

counters! {
    /// Devices whose first connect was tried.
    attempted,
    /// Devices that were connected at least once.
    ever_connected,
    /// Gauge: devices connected.
    connected,
    /// Gauge: devices connected and answered.
    registered,
    /// Connects that failed.
    connect_errors,
    /// Connections closed by the server or the network.
    closed_by_server,
    /// Connections that devices closed, to begin anew.
    closed_by_device,
    /// Commands understood.
    commands,
    /// Gauge: charges running.
    charging,
    /// Charges begun.
    charges_started,
    /// Starts refused by a device.
    charges_refused,
    /// Charges ended, each to be settled.
    charges_ended,
    /// Charges settled.
    settled,
    /// Bytes or bodies from the server that could not be read.
    malformed,
    /// Times a device went to offline mode.
    offline_mode,
    /// Gauge: connections that misbehave.
    rude_connected,
    /// Connections that misbehaved and were closed by the server.
    rude_closed,
    /// Bytes sent.
    bytes_sent,
    /// Bytes received.
    bytes_received,
    /// Times a device was registered on a connection.
    binds,
    /// Gauge: requests on the wire that are owed an answer.
    awaited,
    /// Requests on the wire whose answer never came: the connection was lost under them, or the run ended.
    lost,
    /// Requests without an answer on connections that the run closed.
    abandoned,
    /// Frames of the server that answer nothing, or the wrong thing.
    mismatched,
    /// Answers of the API as they are meant.
    api_answered,
    /// Charges accepted.
    api_charges,
    /// Stops accepted.
    api_stops,
    /// Commands accepted.
    api_commands,
    /// Answers of the API other than those meant.
    api_refused,
    /// Requests to the API whose answer did not come.
    api_failed,
    /// Requests not made: no free port or device was found, or too many waited for a connection.
    api_unsent,
}

impl Counters {
    /// Counts an event of a device. What belongs to its connection is counted by the engine.
    pub fn count(&self, event: Event) {
        let of = |counters: &[AtomicI64; Request::COUNT], request: Request| add(&counters[request as usize], 1);
        match event {
            Event::Sent(request) => of(&self.sent, request),
            Event::Answered(request, _) => of(&self.answered, request),
            Event::Unanswered(request) => of(&self.given_up, request),
            Event::Registered => add(&self.registered, 1),
            Event::Command => add(&self.commands, 1),
            Event::ChargeStarted(_) => {
                add(&self.charges_started, 1);
                add(&self.charging, 1);
            }
            Event::ChargeRefused(_) => add(&self.charges_refused, 1),
            Event::ChargeEnded(_) => {
                add(&self.charges_ended, 1);
                add(&self.charging, -1);
            }
            Event::Settled => add(&self.settled, 1),
            Event::OfflineMode => add(&self.offline_mode, 1),
            Event::Malformed => add(&self.malformed, 1),
        }
    }
}

/// Adds to a counter that only this thread writes, so no atomic addition is needed.
pub fn add(counter: &AtomicI64, change: i64) {
    counter.store(counter.load(Relaxed) + change, Relaxed);
}

impl Totals {
    /// Records that devices still keep.
    pub const fn unsettled(&self) -> i64 {
        self.charges_ended - self.settled
    }

    /// Requests on the way that are owed an answer.
    pub fn outstanding(&self) -> i64 {
        owed().map(|request| self.sent[request] - self.answered[request] - self.given_up[request]).sum()
    }

    /// Requests that were owed an answer and got none, those on the way included.
    pub fn unanswered(&self) -> i64 {
        owed().map(|request| self.sent[request] - self.answered[request]).sum()
    }

    fn errors(&self) -> i64 {
        self.connect_errors + self.closed_by_server + self.malformed + self.given_up.iter().sum::<i64>()
            - self.given_up[Request::TimedEvent as usize]
    }

    /// What went wrong at connections, as the progress line counts it.
    pub fn connection_errors(&self) -> i64 {
        self.connect_errors + self.closed_by_server + self.malformed
    }

    /// The line that is shown each second.
    pub fn progress(&self, second: u64) -> String {
        let (heartbeat, settlement) = (Request::Heartbeat as usize, Request::Settlement as usize);
        format!(
            "{second:>5} s  connected {}  registered {}  heartbeats {} sent {} answered  charging {}  \
             settlements {} sent {} acknowledged  errors {}",
            self.connected,
            self.registered,
            self.sent[heartbeat],
            self.answered[heartbeat],
            self.charging,
            self.sent[settlement],
            self.settled,
            self.errors(),
        )
    }
}

/// Nobody owes an answer to the event that the guide does not know.
fn owed() -> impl Iterator<Item = usize> {
    Request::ALL.into_iter().filter(|request| *request != Request::TimedEvent).map(|request| request as usize)
}

/// Times from request to answer, in microseconds.
#[derive(Clone, Debug)]
pub struct Latencies([Histogram<u64>; Request::COUNT]);

impl Default for Latencies {
    fn default() -> Self {
        Self(std::array::from_fn(|_| latency_histogram()))
    }
}

/// A histogram for microseconds up to two minutes, three digits exact.
pub fn latency_histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, LATENCY_US_MAX, 3).expect("the bounds are valid")
}

impl Latencies {
    /// Records an answer.
    pub fn record(&mut self, request: Request, after_us: u64) {
        self.0[request as usize].saturating_record(after_us);
    }

    /// Adds those of another thread.
    pub fn merge(&mut self, other: &Self) {
        for (sum, part) in self.0.iter_mut().zip(&other.0) {
            sum.add(part).expect("all histograms have the same bounds");
        }
    }
}

/// Percentiles of a histogram, in microseconds.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Percentiles {
    /// Half are faster.
    pub p50_us: u64,
    /// 90 of 100 are faster.
    pub p90_us: u64,
    /// 99 of 100 are faster.
    pub p99_us: u64,
    /// 999 of 1000 are faster.
    pub p999_us: u64,
    /// The slowest.
    pub max_us: u64,
}

impl Percentiles {
    /// Those of `histogram`, `None` if it is empty.
    pub fn of(histogram: &Histogram<u64>) -> Option<Self> {
        let at = |quantile| histogram.value_at_quantile(quantile);
        (!histogram.is_empty()).then(|| Self {
            p50_us: at(0.5),
            p90_us: at(0.9),
            p99_us: at(0.99),
            p999_us: at(0.999),
            max_us: histogram.max(),
        })
    }
}

impl fmt::Display for Percentiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [p50, p90, p99, p999, max] = [self.p50_us, self.p90_us, self.p99_us, self.p999_us, self.max_us].map(Micros);
        write!(f, "p50 {p50}  p90 {p90}  p99 {p99}  p99.9 {p999}  max {max}")
    }
}

struct Micros(u64);

impl fmt::Display for Micros {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            us @ ..1_000 => write!(f, "{us} us"),
            us @ 1_000..1_000_000 => write!(f, "{}.{:02} ms", us / 1_000, us % 1_000 / 10),
            us => write!(f, "{}.{:02} s", us / 1_000_000, us % 1_000_000 / 10_000),
        }
    }
}

/// One kind of request in the summary.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct RequestLine {
    /// Which.
    pub request: &'static str,
    /// Sent.
    pub sent: i64,
    /// Answered.
    pub answered: i64,
    /// Sent and not answered until the end.
    pub unanswered: i64,
    /// `None` if none was answered.
    #[serde(flatten)]
    pub latency: Option<Percentiles>,
}

/// The result of a run.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    /// Whether all devices connected and all charges were settled.
    pub ok: bool,
    /// Length of the run, the wait for the last answers included.
    pub seconds: f64,
    /// Devices that were to connect.
    pub devices: u32,
    /// Devices that never could.
    pub never_connected: i64,
    /// Ended charges that the server has not acknowledged.
    pub unsettled: i64,
    /// Requests that were owed an answer and got none.
    pub unanswered: i64,
    /// Everything counted.
    pub totals: Totals,
    /// Requests of the devices.
    pub requests: Vec<RequestLine>,
    /// What the gateway's API did, if it was asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub api: Option<crate::api::ApiSummary>,
}

impl Summary {
    /// Judges a run.
    pub fn new(
        devices: u32,
        seconds: f64,
        totals: Totals,
        latencies: &Latencies,
        api: Option<crate::api::ApiSummary>,
    ) -> Self {
        let never_connected = totals.attempted - totals.ever_connected;
        let requests = Request::ALL.into_iter().map(|request| {
            let index = request as usize;
            RequestLine {
                request: request.as_str(),
                sent: totals.sent[index],
                answered: totals.answered[index],
                unanswered: totals.sent[index] - totals.answered[index],
                latency: Percentiles::of(&latencies.0[index]),
            }
        });
        Self {
            ok: never_connected == 0 && totals.unsettled() == 0,
            seconds,
            devices,
            never_connected,
            unsettled: totals.unsettled(),
            unanswered: totals.unanswered(),
            totals,
            requests: requests.filter(|line| line.sent > 0).collect(),
            api,
        }
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let totals = &self.totals;
        writeln!(f, "{} devices, {:.1} s", self.devices, self.seconds)?;
        writeln!(
            f,
            "  connections   {} devices connected, {} never; {} failed connects, {} closed by the server, {} by devices",
            totals.ever_connected,
            self.never_connected,
            totals.connect_errors,
            totals.closed_by_server,
            totals.closed_by_device
        )?;
        for line in &self.requests {
            write!(f, "  {:<13} {} sent, {} unanswered", line.request, line.sent, line.unanswered)?;
            match &line.latency {
                Some(latency) => writeln!(f, "; {latency}")?,
                None => writeln!(f)?,
            }
        }
        writeln!(
            f,
            "  charges       {} started, {} refused, {} ended, {} settled, {} still running",
            totals.charges_started, totals.charges_refused, totals.charges_ended, totals.settled, totals.charging
        )?;
        if totals.rude_connected + totals.rude_closed > 0 {
            writeln!(
                f,
                "  misbehaving   {} connected, closed {} times by the server",
                totals.rude_connected, totals.rude_closed
            )?;
        }
        if let Some(api) = &self.api {
            writeln!(f, "{api}")?;
        }
        writeln!(
            f,
            "  other         {} commands, {} malformed, {} times offline mode, {} bytes out, {} bytes in",
            totals.commands, totals.malformed, totals.offline_mode, totals.bytes_sent, totals.bytes_received
        )?;
        let verdict = if self.ok { "ok" } else { "NOT OK" };
        write!(f, "{verdict}: {} unanswered, {} charges not settled", self.unanswered, self.unsettled)
    }
}
