//! Ten minutes of a few figures, a sample every two seconds: what the console draws before it has seen anything itself.
//!
//! One thread, that of the jobs, samples; rates are differences between two samples by the monotonic clock. Readers copy under a
//! lock that nobody else takes, so no hot path knows of it. In memory only, at most 300 samples: about 30 KB.

use std::collections::VecDeque;
use std::time::Duration;

use parking_lot::Mutex;

use super::histogram::Counts;

/// Time between samples.
pub const SAMPLE_MS: u64 = 2_000;
/// Samples kept: ten minutes.
const SAMPLES_MAX: usize = 300;
/// Quantiles of latencies are over this many samples, 10 s: of a single one they would be noise.
const LATENCY_SAMPLES: usize = 5;
/// A sample may be this much early: the thread looks once a second, and is never on the spot.
const EARLY_MS: u64 = 500;

/// What is counted and measured at one moment; counts are since the start of the process.
#[derive(Clone, Debug)]
pub struct Totals {
    /// Open device connections.
    pub connections: u64,
    /// Devices with an online score of at least 50.
    pub devices_online: u64,
    /// Commands that wait to be written.
    pub commands_waiting: u64,
    /// Committed events that endpoints do not have yet.
    pub webhook_backlog: u64,
    /// Frames from devices.
    pub frames_in: u64,
    /// Frames to devices.
    pub frames_out: u64,
    /// HTTP responses.
    pub api_requests: u64,
    /// End reports committed.
    pub settlements: u64,
    /// From writing a command to the device's reply.
    pub ack_latency: Counts,
}

/// The figures of one moment; rates are of the time since the sample before.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sample {
    /// Unix milliseconds; grows from sample to sample.
    pub at: i64,
    /// As in [`Totals`].
    pub connections: u64,
    /// As in [`Totals`].
    pub devices_online: u64,
    /// Frames from devices, per second.
    pub frames_in_per_s: f64,
    /// Frames to devices, per second.
    pub frames_out_per_s: f64,
    /// Median of the last 10 s; `None`: no command was answered.
    pub ack_p50: Option<Duration>,
    /// 99th percentile of the last 10 s.
    pub ack_p99: Option<Duration>,
    /// As in [`Totals`].
    pub commands_waiting: u64,
    /// As in [`Totals`].
    pub webhook_backlog: u64,
    /// HTTP responses, per second.
    pub api_requests_per_s: f64,
    /// End reports committed, per second.
    pub settlements_per_s: f64,
}

/// The samples of the last ten minutes.
#[derive(Debug, Default)]
pub struct History(Mutex<VecDeque<Sample>>);

impl History {
    /// Samples later than `since` (Unix ms), oldest first; all where it is `None`.
    pub fn since(&self, since: Option<i64>) -> Vec<Sample> {
        let samples = self.0.lock();
        let from = samples.partition_point(|sample| since.is_some_and(|since| sample.at <= since));
        samples.range(from..).copied().collect()
    }

    fn push(&self, sample: Sample) {
        let mut samples = self.0.lock();
        // Of a wall clock that was set back the newer time is the true one; the order of the samples depends on it.
        while samples.back().is_some_and(|last| last.at >= sample.at) {
            samples.pop_back();
        }
        if samples.len() == SAMPLES_MAX {
            samples.pop_front();
        }
        samples.push_back(sample);
    }
}

/// Makes samples of totals. Belongs to the one thread that samples.
#[derive(Debug, Default)]
pub struct Sampler {
    /// The totals of the sample before, with their monotonic time.
    before: Option<(u64, Totals)>,
    /// The latencies of the samples before, oldest first.
    latencies: VecDeque<Counts>,
}

impl Sampler {
    /// Whether it is time for a sample.
    pub fn is_due(&self, mono_ms: u64) -> bool {
        self.before.as_ref().is_none_or(|(at, _)| mono_ms.saturating_sub(*at) + EARLY_MS >= SAMPLE_MS)
    }

    /// Adds a sample. Of the first totals nothing can be said yet: they are only where rates begin.
    pub fn sample(&mut self, mono_ms: u64, unix_ms: i64, totals: Totals, to: &History) {
        if let Some((at, before)) = &self.before {
            let seconds = mono_ms.saturating_sub(*at).max(1) as f64 / 1e3;
            let rate = |now: u64, then: u64| now.wrapping_sub(then) as f64 / seconds;
            let ack = |quantile| totals.ack_latency.quantile_since(self.latencies.front()?, quantile);
            to.push(Sample {
                at: unix_ms,
                connections: totals.connections,
                devices_online: totals.devices_online,
                frames_in_per_s: rate(totals.frames_in, before.frames_in),
                frames_out_per_s: rate(totals.frames_out, before.frames_out),
                ack_p50: ack(0.5),
                ack_p99: ack(0.99),
                commands_waiting: totals.commands_waiting,
                webhook_backlog: totals.webhook_backlog,
                api_requests_per_s: rate(totals.api_requests, before.api_requests),
                settlements_per_s: rate(totals.settlements, before.settlements),
            });
        }
        if self.latencies.len() == LATENCY_SAMPLES {
            self.latencies.pop_front();
        }
        self.latencies.push_back(totals.ack_latency.clone());
        self.before = Some((mono_ms, totals));
    }
}

#[cfg(test)]
mod tests {
    use super::super::LocalHistogram;
    use super::*;

    fn totals(count: u64, acks: &LocalHistogram) -> Totals {
        Totals {
            connections: count,
            devices_online: count,
            commands_waiting: 0,
            webhook_backlog: 0,
            frames_in: 10 * count,
            frames_out: 0,
            api_requests: count,
            settlements: 0,
            ack_latency: Counts::of_local([acks]),
        }
    }

    #[test]
    fn rates_are_of_the_time_between_two_samples() {
        let (history, mut sampler, acks) = (History::default(), Sampler::default(), LocalHistogram::default());
        sampler.sample(1_000, 50_000, totals(5, &acks), &history);
        assert_eq!(history.since(None), []);
        acks.record(Duration::from_millis(8));
        sampler.sample(5_000, 54_000, totals(13, &acks), &history);
        let [sample] = history.since(None)[..] else { panic!("one sample") };
        assert_eq!((sample.at, sample.connections), (54_000, 13));
        assert_eq!((sample.frames_in_per_s, sample.api_requests_per_s), (20.0, 2.0));
        assert_eq!(sample.ack_p50, sample.ack_p99);
        assert!(sample.ack_p50.is_some_and(|p50| p50.as_millis() == 8));
    }

    #[test]
    fn an_answer_counts_for_ten_seconds() {
        let (history, mut sampler, acks) = (History::default(), Sampler::default(), LocalHistogram::default());
        sampler.sample(0, 1, totals(0, &acks), &history);
        acks.record(Duration::from_millis(8));
        for sample in 1..=8 {
            sampler.sample(sample * SAMPLE_MS, 1 + sample as i64, totals(0, &acks), &history);
        }
        let seen: Vec<bool> = history.since(None).iter().map(|sample| sample.ack_p99.is_some()).collect();
        assert_eq!(seen, [true, true, true, true, true, false, false, false]);
    }

    #[test]
    fn the_oldest_go_and_a_reader_asks_for_what_it_lacks() {
        let (history, mut sampler, acks) = (History::default(), Sampler::default(), LocalHistogram::default());
        for sample in 0..=SAMPLES_MAX as u64 + 2 {
            sampler.sample(sample * SAMPLE_MS, sample as i64, totals(sample, &acks), &history);
        }
        let all = history.since(None);
        assert_eq!((all.len(), all[0].at), (SAMPLES_MAX, 3));
        assert_eq!(history.since(Some(300)).iter().map(|sample| sample.at).collect::<Vec<_>>(), [301, 302]);
        assert_eq!(history.since(Some(302)), []);
    }

    #[test]
    fn a_clock_set_back_keeps_the_order() {
        let (history, mut sampler, acks) = (History::default(), Sampler::default(), LocalHistogram::default());
        for (sample, at) in [10, 20, 30, 15, 25].into_iter().enumerate() {
            sampler.sample(sample as u64 * SAMPLE_MS, at, totals(0, &acks), &history);
        }
        assert_eq!(history.since(None).iter().map(|sample| sample.at).collect::<Vec<_>>(), [15, 25]);
    }

    #[test]
    fn due_every_two_seconds_though_the_thread_looks_once_a_second() {
        let (history, mut sampler, acks) = (History::default(), Sampler::default(), LocalHistogram::default());
        assert!(sampler.is_due(0));
        sampler.sample(0, 1, totals(0, &acks), &history);
        assert_eq!([1_000, 1_999, 2_001].map(|at| sampler.is_due(at)), [false, true, true]);
    }
}
