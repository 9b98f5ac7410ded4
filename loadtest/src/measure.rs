//! Latencies, second by second.
//!
//! Each thread that measures owns a [`Recorder`], and ends its seconds by itself ([`Seconds`]) before it counts what happened after
//! them. The run takes a second when all threads have ended it, and adds it up. So what belongs to a warm-up is left out, nothing is
//! counted in the phase before because somebody looked late, and a report can show how a latency went over time. Times begin when
//! something was *to be* done, not when it was: a generator or server that stalls shows in the figures.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hdrhistogram::Histogram;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::device::SECOND_US;
use crate::report::{Counters, Percentiles, Totals, latency_histogram};

/// Remarks kept of a window and of a run.
pub const REMARKS_MAX: usize = 20;

macro_rules! metrics {
    ($( $(#[$meta:meta])* $name:ident $word:literal, )*) => {
        /// What is timed.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Metric {
            $( $(#[$meta])* $name, )*
        }

        impl Metric {
            /// All, in the order of the report.
            pub const ALL: [Self; [$(stringify!($name)),*].len()] = [$( Self::$name ),*];
            /// How many there are.
            pub const COUNT: usize = Self::ALL.len();

            /// Its name in figures.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $( Self::$name => $word, )*
                }
            }
        }
    };
}

metrics! {
    /// A heartbeat to its answer.
    Heartbeat "heartbeat",
    /// From the time a connection was to be opened to the first answer that makes a device known.
    Bind "bind",
    /// AP3000 0x20 to its answer.
    Registration "registration",
    /// A question for the time to its answer.
    Time "time",
    /// The first copy of a record to its acknowledgement.
    Settlement "settlement",
    /// BKV 1017 to its answer.
    StatusPush "status_push",
    /// A card to its answer.
    Card "card",
    /// Other requests of devices.
    Other "other",
    /// Reads of a device's status.
    ApiStatus "api.status",
    /// Reads of a page of orders.
    ApiList "api.list",
    /// Charges asked for.
    ApiCharge "api.charge",
    /// Stops asked for.
    ApiStop "api.stop",
    /// Commands asked for.
    ApiCommand "api.command",
    /// From the 202 of a charge to a frame at its device; 0 where that was there first.
    ChargeFrame "frame.charge",
    /// The same of commands.
    CommandFrame "frame.command",
    /// How late the generator did what was to be done.
    Late "late",
}

/// Percentiles of a second.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Moment {
    /// How many were recorded.
    pub count: u64,
    /// Median, ms.
    pub p50_ms: f64,
    /// 99 of 100, ms.
    pub p99_ms: f64,
    /// The slowest, ms.
    pub max_ms: f64,
}

/// Latencies in microseconds, as buckets that can be sent and added up.
#[derive(Clone, Debug)]
pub struct Latency(pub Histogram<u64>);

impl Default for Latency {
    fn default() -> Self {
        Self(latency_histogram())
    }
}

impl Latency {
    /// Adds those of another.
    pub fn add(&mut self, other: &Self) {
        if !other.0.is_empty() {
            self.0.add(&other.0).expect("all histograms have the same bounds");
        }
    }

    /// A quantile in milliseconds.
    pub fn ms(&self, quantile: f64) -> f64 {
        self.0.value_at_quantile(quantile) as f64 / 1e3
    }

    /// What is kept of a second.
    pub fn moment(&self) -> Moment {
        Moment { count: self.0.len(), p50_ms: self.ms(0.5), p99_ms: self.ms(0.99), max_ms: self.ms(1.0) }
    }

    /// Percentiles, `None` if nothing was recorded.
    pub fn percentiles(&self) -> Option<Percentiles> {
        Percentiles::of(&self.0)
    }
}

impl Serialize for Latency {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let buckets = self.0.iter_recorded().map(|bucket| (bucket.value_iterated_to(), bucket.count_at_value()));
        serializer.collect_seq(buckets)
    }
}

impl<'de> Deserialize<'de> for Latency {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut latency = Self::default();
        for (value, count) in Vec::<(u64, u64)>::deserialize(deserializer)? {
            latency.0.saturating_record_n(value, count);
        }
        Ok(latency)
    }
}

/// What was recorded in some time.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Window {
    /// By [`Metric`]; what is missing at the end is empty.
    latencies: Vec<Option<Latency>>,
    /// When the first connection was to be opened, on the run's clock in microseconds.
    pub connects_from_us: Option<u64>,
    /// When the last device was bound.
    pub bound_until_us: Option<u64>,
    /// The first things that were not as they should be.
    pub remarks: Vec<String>,
    /// Answers of the API that were not those meant, by error code; `transport` for those that did not come.
    pub refusals: BTreeMap<String, u64>,
}

impl Window {
    /// Latencies of one kind.
    pub fn latency(&self, metric: Metric) -> Option<&Latency> {
        self.latencies.get(metric as usize)?.as_ref().filter(|latency| !latency.0.is_empty())
    }

    /// Records a latency.
    pub fn record(&mut self, metric: Metric, us: u64) {
        self.slot(metric as usize).0.saturating_record(us);
    }

    fn slot(&mut self, at: usize) -> &mut Latency {
        if self.latencies.len() <= at {
            self.latencies.resize_with(Metric::COUNT, || None);
        }
        self.latencies[at].get_or_insert_default()
    }

    /// Keeps a remark, of the first few.
    pub fn remark(&mut self, remark: impl FnOnce() -> String) {
        if self.remarks.len() < REMARKS_MAX {
            self.remarks.push(remark());
        }
    }

    /// Counts an answer of the API that was not the one meant.
    pub fn refused(&mut self, code: &str) {
        let code = if self.refusals.len() < REMARKS_MAX { code } else { "other" };
        *self.refusals.entry(code.to_owned()).or_default() += 1;
    }

    /// Adds what was recorded elsewhere or later.
    pub fn add(&mut self, other: &Self) {
        for (at, latency) in other.latencies.iter().enumerate() {
            if let Some(latency) = latency.as_ref().filter(|latency| !latency.0.is_empty()) {
                self.slot(at).add(latency);
            }
        }
        self.connects_from_us = self.connects_from_us.into_iter().chain(other.connects_from_us).min();
        self.bound_until_us = self.bound_until_us.max(other.bound_until_us);
        for remark in &other.remarks {
            self.remark(|| remark.clone());
        }
        for (code, count) in &other.refusals {
            *self.refusals.entry(code.clone()).or_default() += count;
        }
    }

    /// From the first connection that was to be opened to the last device bound, in microseconds.
    pub fn binding_us(&self) -> Option<u64> {
        Some(self.bound_until_us?.saturating_sub(self.connects_from_us?)).filter(|us| *us > 0)
    }
}

/// Where one thread records.
#[derive(Debug, Default)]
pub struct Recorder {
    window: Mutex<Window>,
    /// Seconds that are over, in order, with everything counted until their end; the run takes one when all threads have one.
    over: Mutex<VecDeque<(Totals, Window)>>,
    /// The thread is gone: nothing is counted or recorded any more.
    closed: AtomicBool,
}

impl Recorder {
    /// The window that is recorded now.
    pub fn window(&self) -> MutexGuard<'_, Window> {
        self.window.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records a latency.
    pub fn record(&self, metric: Metric, us: u64) {
        self.window().record(metric, us);
    }

    /// Whether a second is over that was not taken.
    pub fn has_second(&self) -> bool {
        !self.over().is_empty()
    }

    /// Whether its thread is gone.
    pub fn is_closed(&self) -> bool {
        self.closed.load(Relaxed)
    }

    /// The oldest second that is over: what was recorded in it, and everything counted until its end. `None`: there is none.
    pub fn take_second(&self) -> Option<(Totals, Window)> {
        self.over().pop_front()
    }

    /// Takes whatever was recorded and not taken.
    pub fn take(&self) -> Window {
        let mut all = Window::default();
        self.over().drain(..).for_each(|(_, window)| all.add(&window));
        all.add(&std::mem::take(&mut *self.window()));
        all
    }

    fn over(&self) -> MutexGuard<'_, VecDeque<(Totals, Window)>> {
        self.over.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Ends the seconds of a thread that counts and records.
#[derive(Debug)]
pub struct Seconds {
    counters: Arc<Counters>,
    recorder: Arc<Recorder>,
    ends_us: u64,
}

impl Seconds {
    /// Those from `begins_us` on, of the thread that alone writes these.
    pub const fn new(begins_us: u64, counters: Arc<Counters>, recorder: Arc<Recorder>) -> Self {
        Self { counters, recorder, ends_us: begins_us.saturating_add(SECOND_US) }
    }

    /// It is `now_us`: what is counted from here on belongs to the second of that. To be called whenever the clock was read.
    pub fn reach(&mut self, now_us: u64) {
        while now_us >= self.ends_us {
            let window = std::mem::take(&mut *self.recorder.window());
            self.recorder.over().push_back((Totals::of([&*self.counters]), window));
            self.ends_us = self.ends_us.saturating_add(SECOND_US);
        }
    }
}

impl Drop for Seconds {
    fn drop(&mut self) {
        self.recorder.closed.store(true, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_add_up_and_survive_a_pipe() {
        let (mut one, mut two) = (Window::default(), Window::default());
        for us in [100, 200, 1_000_000] {
            one.record(Metric::Heartbeat, us);
        }
        two.record(Metric::Heartbeat, 50_000);
        two.record(Metric::Late, 3);
        (one.connects_from_us, two.connects_from_us, two.bound_until_us) = (Some(9), Some(5), Some(12));
        let sent: Window = serde_json::from_str(&serde_json::to_string(&two).unwrap()).unwrap();
        one.add(&sent);
        let heartbeats = one.latency(Metric::Heartbeat).unwrap().percentiles().unwrap();
        assert_eq!(one.latency(Metric::Heartbeat).unwrap().0.len(), 4);
        assert!((999_000..=1_001_000).contains(&heartbeats.max_us), "{heartbeats:?}");
        assert_eq!((one.binding_us(), one.latency(Metric::Late).map(|late| late.0.len())), (Some(7), Some(1)));
        assert!(one.latency(Metric::Bind).is_none());
    }

    #[test]
    fn what_happens_behind_a_second_is_not_counted_in_it_however_late_it_is_taken() {
        let (counters, recorder) = (Arc::new(Counters::default()), Arc::new(Recorder::default()));
        let mut seconds = Seconds::new(100, Arc::clone(&counters), Arc::clone(&recorder));
        let mut bind = |at_us| {
            seconds.reach(at_us);
            crate::report::add(&counters.binds, 1);
            recorder.record(Metric::Bind, at_us);
        };
        bind(100 + SECOND_US - 1);
        assert!(!recorder.has_second());
        bind(100 + SECOND_US);
        bind(100 + 3 * SECOND_US);
        let taken: Vec<_> = std::iter::from_fn(|| recorder.take_second())
            .map(|(totals, window)| (totals.binds, window.latency(Metric::Bind).map_or(0, |latency| latency.0.len())))
            .collect();
        assert_eq!(taken, [(1, 1), (2, 1), (2, 0)]);
        assert_eq!(recorder.take().latency(Metric::Bind).map(|latency| latency.0.len()), Some(1));
        assert!(!recorder.is_closed());
        drop(seconds);
        assert!(recorder.is_closed());
    }
}
