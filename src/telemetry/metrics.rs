//! Every metric of the gateway, and their rendering as Prometheus text.
//!
//! ```text
//! shard 0 ── ShardWriter ──> ShardMetrics ──┐
//! shard 1 ── ShardWriter ──> ShardMetrics ──┼── render ──> text
//! all other threads ───────> Metrics fields ┤
//! store, pusher, HTTP ─────> MetricSource ──┘
//! ```
//!
//! Invariants: a [`ShardMetrics`] has one writer, because only its [`ShardWriter`] reaches it, each is handed out once
//! and cannot be shared between threads; no shard writes a cache line that another thread writes; label sets are
//! closed, so the text has a bound.

use std::array;
use std::cell::Cell;
use std::fmt;
use std::marker::PhantomData;
use std::ops::Deref;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Weak};

use parking_lot::RwLock;

use super::cell::{Counter, Gauge, Labelled, LocalCounter, LocalGauge};
use super::exposition::{Exposition, MetricSource};
use super::histogram::{Counts, LocalHistogram, Merged, SharedHistogram};
use super::history::{History, Totals};
use super::label::{AnomalyKind, DecodeFailure, Label, OrderFailure, OutboundFailure, ShardEvent, StatusClass};
use super::process;
use crate::gateway::CloseReason;
use crate::model::Priority;
use crate::protocol::Direction;

/// Order states by status code, as label values.
const ORDER_STATES: [&str; 11] = [
    "pending",
    "confirmed",
    "charging",
    "completed",
    "cancelled",
    "stopped",
    "failed",
    "timeout",
    "cancelling",
    "stopping",
    "interrupted",
];

/// Command words of BKV and GN; frames with another one are counted as `other`.
const BKV_WORDS: [u16; 5] = [0x0000, 0x0005, 0x0007, 0x0015, 0x1000];

/// Frames by command, both directions. A cell per possible code, so that counting needs no lookup.
#[derive(Debug)]
pub struct FrameCounts {
    ap3000: [[LocalCounter; 256]; 2],
    /// By position in [`BKV_WORDS`] and low byte of the sub-command.
    bkv: [[[LocalCounter; 256]; BKV_WORDS.len()]; 2],
    bkv_other: [LocalCounter; 2],
}

impl Default for FrameCounts {
    fn default() -> Self {
        let row = || array::from_fn(|_| LocalCounter::default());
        Self {
            ap3000: array::from_fn(|_| row()),
            bkv: array::from_fn(|_| array::from_fn(|_| row())),
            bkv_other: Default::default(),
        }
    }
}

impl FrameCounts {
    /// Counts an AP3000 frame.
    #[inline]
    pub fn ap3000(&self, direction: Direction, command: u8) {
        self.ap3000[direction.index()][usize::from(command)].inc();
    }

    /// All frames of a direction.
    fn total(&self, direction: Direction) -> u64 {
        let side = direction.index();
        let cells = self.ap3000[side].iter().chain(self.bkv[side].iter().flatten()).chain([&self.bkv_other[side]]);
        cells.map(LocalCounter::get).fold(0, u64::wrapping_add)
    }

    /// Counts a BKV or GN frame. `sub` is the sub-command, 0 where the word has none; its high byte is not counted apart.
    #[inline]
    pub fn bkv(&self, direction: Direction, word: u16, sub: u16) {
        let [_, sub] = sub.to_be_bytes();
        match BKV_WORDS.iter().position(|known| *known == word) {
            Some(index) => self.bkv[direction.index()][index][usize::from(sub)].inc(),
            None => self.bkv_other[direction.index()].inc(),
        }
    }
}

/// What one shard counts. Aligned to two cache lines, which processors fetch together.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct ShardMetrics {
    /// Connections accepted, whether kept or not.
    pub accepted: LocalCounter,
    /// Connections closed.
    pub closed: Labelled<CloseReason, LocalCounter, { <CloseReason as Label>::COUNT }>,
    /// Bytes read from devices.
    pub received_bytes: LocalCounter,
    /// Bytes written to devices.
    pub sent_bytes: LocalCounter,
    /// What happened besides traffic.
    pub events: Labelled<ShardEvent, LocalCounter, { ShardEvent::COUNT }>,
    /// Commands that wait to be written.
    pub commands_waiting: Labelled<Priority, LocalGauge, { <Priority as Label>::COUNT }>,
    /// Open connections.
    pub connections: LocalGauge,
    /// Frames by command.
    pub frames: FrameCounts,
    /// Bytes that made no typed frame.
    pub decode_failures: Labelled<DecodeFailure, LocalCounter, { DecodeFailure::COUNT }>,
    /// What went wrong between devices and the gateway, repetitions included.
    pub anomalies: Labelled<AnomalyKind, LocalCounter, { AnomalyKind::COUNT }>,
    /// Commands written to a socket.
    pub outbound_sent: LocalCounter,
    /// From writing a command to the device's reply.
    pub ack_latency: LocalHistogram,
    /// How much later than due the loop turned.
    pub loop_lag: LocalHistogram,
    /// Messages in the mailbox at the last turn.
    pub mailbox_depth: LocalGauge,
    /// Reports that wait for their commit before they are acknowledged.
    pub reports_waiting: LocalGauge,
    /// Reports dropped because too many waited; their devices send them again.
    pub reports_dropped: LocalCounter,
    /// Log lines that a [`LogGate`](super::LogGate) kept back.
    pub logs_suppressed: LocalCounter,
}

/// All metrics of the process.
pub struct Metrics {
    shards: Box<[ShardMetrics]>,
    claimed: Box<[AtomicBool]>,
    sources: RwLock<Vec<Weak<dyn MetricSource>>>,
    /// Devices with an online score of at least 50.
    pub devices_online: Gauge,
    /// Orders created.
    pub orders_created: Counter,
    /// Orders that reached `completed`.
    pub orders_completed: Counter,
    /// Orders that reached `failed`.
    pub orders_failed: Labelled<OrderFailure, Counter, { OrderFailure::COUNT }>,
    transitions: [[Counter; ORDER_STATES.len()]; ORDER_STATES.len()],
    /// Events refused by the order table.
    pub transitions_refused: Counter,
    /// Commands that did not reach their end.
    pub outbound_failed: Labelled<OutboundFailure, Counter, { OutboundFailure::COUNT }>,
    /// Jobs set aside because they can never be stored.
    pub quarantined: Counter,
    /// Ports whose stored state was not the device's.
    pub port_mismatches: Counter,
    /// Responses by class of status.
    pub http_responses: Labelled<StatusClass, Counter, { StatusClass::COUNT }>,
    /// From a complete request to its response.
    pub http_latency: SharedHistogram,
    /// End reports committed by this instance, repeated ones included.
    pub settlements: Counter,
    /// The last minutes, for the console.
    pub history: History,
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").field("shards", &self.shards.len()).finish_non_exhaustive()
    }
}

/// A shard's only way to its metrics. It may move to the shard's thread, but not be shared.
#[derive(Debug)]
pub struct ShardWriter {
    metrics: Arc<Metrics>,
    index: usize,
    not_shared: PhantomData<Cell<()>>,
}

impl Deref for ShardWriter {
    type Target = ShardMetrics;

    #[inline]
    fn deref(&self) -> &ShardMetrics {
        &self.metrics.shards[self.index]
    }
}

impl ShardWriter {
    /// The metrics of the whole process, for what is rare enough to be shared.
    pub fn process(&self) -> &Metrics {
        &self.metrics
    }
}

impl Drop for ShardWriter {
    /// A shard that is started again may take the place; its counts go on.
    fn drop(&mut self) {
        self.metrics.claimed[self.index].store(false, Relaxed);
    }
}

impl Metrics {
    /// Metrics for this many shards, all zero.
    pub fn new(shards: usize) -> Arc<Self> {
        Arc::new(Self {
            shards: (0..shards).map(|_| ShardMetrics::default()).collect(),
            claimed: (0..shards).map(|_| AtomicBool::new(false)).collect(),
            sources: RwLock::default(),
            devices_online: Gauge::default(),
            orders_created: Counter::default(),
            orders_completed: Counter::default(),
            orders_failed: Labelled::default(),
            transitions: Default::default(),
            transitions_refused: Counter::default(),
            outbound_failed: Labelled::default(),
            quarantined: Counter::default(),
            port_mismatches: Counter::default(),
            http_responses: Labelled::default(),
            http_latency: SharedHistogram::default(),
            settlements: Counter::default(),
            history: History::default(),
        })
    }

    /// The writer of shard `index`, or `None` while another one lives or when there is no such shard.
    pub fn claim_shard(self: &Arc<Self>, index: usize) -> Option<ShardWriter> {
        let taken = self.claimed.get(index)?.swap(true, Relaxed);
        (!taken).then(|| ShardWriter { metrics: Arc::clone(self), index, not_shared: PhantomData })
    }

    /// Joins what another part counts. It is left out once that part is gone.
    pub fn join(&self, source: &Arc<impl MetricSource + 'static>) {
        let source: Weak<dyn MetricSource> = Arc::downgrade(source) as _;
        self.sources.write().push(source);
    }

    /// Counts an order's change from one status code to another; codes outside 0 to 10 are a bug of the caller.
    pub fn order_transition(&self, from: u8, to: u8) {
        let cell = self.transitions.get(usize::from(from)).and_then(|row| row.get(usize::from(to)));
        debug_assert!(cell.is_some(), "order status out of range: {from} to {to}");
        if let Some(cell) = cell {
            cell.inc();
        }
    }

    /// Commands of this instance that wait to be written to a device.
    pub fn commands_waiting(&self) -> u64 {
        self.sum(|shard| shard.commands_waiting.iter().map(|(_, waiting)| waiting.get()).sum())
    }

    /// Commands of this instance that wait to be written to a device, by priority.
    pub fn commands_waiting_of(&self, priority: Priority) -> u64 {
        self.sum(|shard| shard.commands_waiting[priority].get())
    }

    /// Open device connections of this instance.
    pub fn connections(&self) -> u64 {
        self.sum(|shard| shard.connections.get())
    }

    /// Everything that has a history, now; `webhook_backlog` is known to the pusher.
    pub fn totals(&self, webhook_backlog: u64) -> Totals {
        Totals {
            connections: self.connections(),
            devices_online: self.devices_online.get(),
            commands_waiting: self.commands_waiting(),
            webhook_backlog,
            frames_in: self.sum(|shard| shard.frames.total(Direction::Up)),
            frames_out: self.sum(|shard| shard.frames.total(Direction::Down)),
            api_requests: self.http_responses.iter().map(|(_, count)| count.get()).fold(0, u64::wrapping_add),
            settlements: self.settlements.get(),
            ack_latency: Counts::of_local(self.shards.iter().map(|shard| &shard.ack_latency)),
        }
    }

    /// Device connections accepted since start.
    pub fn accepted(&self) -> u64 {
        self.sum(|shard| shard.accepted.get())
    }

    fn sum(&self, value: impl Fn(&ShardMetrics) -> u64) -> u64 {
        self.shards.iter().map(value).fold(0, u64::wrapping_add)
    }

    /// Appends all metrics as Prometheus text format 0.0.4.
    pub fn render(&self, out: &mut String) {
        let to = &mut Exposition(out);
        self.render_connections(to);
        self.render_frames(to);
        self.render_orders(to);
        self.render_commands(to);
        self.render_reports(to);
        self.render_http(to);
        for source in self.sources.read().iter().filter_map(Weak::upgrade) {
            source.render(to);
        }
        to.family("chargegate_build_info", "gauge", "Always 1; the labels tell what runs.");
        to.sample("chargegate_build_info", &[("version", env!("CARGO_PKG_VERSION"))], 1);
        process::render(to);
    }

    fn render_connections(&self, to: &mut Exposition<'_>) {
        to.counter("chargegate_tcp_accepted_total", "Device connections accepted.", self.accepted());
        to.family("chargegate_tcp_closed_total", "counter", "Device connections closed, by reason.");
        for reason in <CloseReason as Label>::ALL {
            let count = self.sum(|shard| shard.closed[*reason].get());
            to.sample("chargegate_tcp_closed_total", &[("reason", reason.as_str())], count);
        }
        let received = self.sum(|shard| shard.received_bytes.get());
        to.counter("chargegate_tcp_received_bytes_total", "Bytes received from devices.", received);
        let sent = self.sum(|shard| shard.sent_bytes.get());
        to.counter("chargegate_tcp_sent_bytes_total", "Bytes sent to devices.", sent);
        self.render_per_shard(to, "chargegate_tcp_connections", "Open device connections, by shard.", |shard| {
            shard.connections.get()
        });
        to.gauge("chargegate_devices_online", "Devices online on this instance.", self.devices_online.get());
        self.render_per_shard(to, "chargegate_shard_mailbox_depth", "Messages waiting for a shard.", |shard| {
            shard.mailbox_depth.get()
        });
        let lag = "chargegate_shard_loop_lag_seconds";
        to.family(lag, "histogram", "How much later than due shard loops turned.");
        to.histogram(lag, &[], &Merged::of_local(self.shards.iter().map(|shard| &shard.loop_lag)));
        let name = "chargegate_shard_events_total";
        to.family(name, "counter", "What happened in shards besides traffic, by event.");
        for event in ShardEvent::ALL {
            to.sample(name, &[("event", event.as_str())], self.sum(|shard| shard.events[*event].get()));
        }
        let suppressed = self.sum(|shard| shard.logs_suppressed.get());
        to.counter("chargegate_log_suppressed_total", "Log lines kept back by rate limits.", suppressed);
    }

    fn render_per_shard(&self, to: &mut Exposition<'_>, name: &str, help: &str, value: impl Fn(&ShardMetrics) -> u64) {
        to.family(name, "gauge", help);
        for (index, shard) in self.shards.iter().enumerate() {
            to.sample(name, &[("shard", &index.to_string())], value(shard));
        }
    }

    /// Only commands that were seen: most codes never are.
    fn render_frames(&self, to: &mut Exposition<'_>) {
        let name = "chargegate_frames_total";
        to.family(name, "counter", "Frames from (up) and to (down) devices, by protocol and command.");
        let mut sample = |protocol: &str, command: &str, direction: Direction, count: u64| {
            if count > 0 {
                let labels = [("protocol", protocol), ("cmd", command), ("direction", direction.as_str())];
                to.sample(name, &labels, count);
            }
        };
        for direction in Direction::ALL {
            let side = direction.index();
            for command in 0..256 {
                let count = self.sum(|shard| shard.frames.ap3000[side][command].get());
                sample("ap3000", &format!("{command:02x}"), *direction, count);
            }
            for (index, word) in BKV_WORDS.iter().enumerate() {
                for sub in 0..256 {
                    let count = self.sum(|shard| shard.frames.bkv[side][index][sub].get());
                    sample("bkv", &format!("{word:04x}/{sub:02x}"), *direction, count);
                }
            }
            sample("bkv", "other", *direction, self.sum(|shard| shard.frames.bkv_other[side].get()));
        }
        to.family("chargegate_decode_errors_total", "counter", "Received bytes that made no typed frame, by kind.");
        for kind in DecodeFailure::ALL {
            let count = self.sum(|shard| shard.decode_failures[*kind].get());
            to.sample("chargegate_decode_errors_total", &[("kind", kind.as_str())], count);
        }
        let name = "chargegate_anomalies_total";
        to.family(name, "counter", "What went wrong between devices and the gateway, by kind.");
        for kind in AnomalyKind::ALL {
            to.sample(name, &[("kind", kind.as_str())], self.sum(|shard| shard.anomalies[*kind].get()));
        }
    }

    fn render_orders(&self, to: &mut Exposition<'_>) {
        to.counter("chargegate_orders_created_total", "Orders created.", self.orders_created.get());
        to.counter("chargegate_orders_completed_total", "Orders completed.", self.orders_completed.get());
        render_counters(to, "chargegate_orders_failed_total", "Orders failed.", "reason", &self.orders_failed);
        let name = "chargegate_order_transitions_total";
        to.family(name, "counter", "Changes of order status.");
        for (from, row) in ORDER_STATES.iter().zip(&self.transitions) {
            for (state, counter) in ORDER_STATES.iter().zip(row) {
                if counter.get() > 0 {
                    to.sample(name, &[("from", from), ("to", state)], counter.get());
                }
            }
        }
        let refused = self.transitions_refused.get();
        to.counter("chargegate_order_transitions_refused_total", "Order events refused.", refused);
        let mismatches = self.port_mismatches.get();
        to.counter("chargegate_port_mismatches_total", "Ports whose stored state was not the device's.", mismatches);
    }

    fn render_commands(&self, to: &mut Exposition<'_>) {
        let name = "chargegate_outbound_queue_length";
        to.family(name, "gauge", "Commands accepted and not yet written, by priority.");
        for priority in <Priority as Label>::ALL {
            let waiting = self.sum(|shard| shard.commands_waiting[*priority].get());
            to.sample(name, &[("priority", Label::as_str(*priority))], waiting);
        }
        let sent = self.sum(|shard| shard.outbound_sent.get());
        to.counter("chargegate_outbound_sent_total", "Commands written to devices.", sent);
        let help = "Commands that did not reach their end.";
        render_counters(to, "chargegate_outbound_failed_total", help, "reason", &self.outbound_failed);
        let name = "chargegate_ack_latency_seconds";
        to.family(name, "histogram", "From writing a command to the device's reply.");
        to.histogram(name, &[], &Merged::of_local(self.shards.iter().map(|shard| &shard.ack_latency)));
    }

    fn render_reports(&self, to: &mut Exposition<'_>) {
        let settled = self.settlements.get();
        to.counter("chargegate_settlements_total", "End reports committed, repeated ones included.", settled);
        let name = "chargegate_settlements_quarantined_total";
        to.counter(name, "Reports set aside because they cannot be stored.", self.quarantined.get());
        let waiting = self.sum(|shard| shard.reports_waiting.get());
        to.gauge("chargegate_reports_waiting", "Reports waiting for their commit.", waiting);
        let dropped = self.sum(|shard| shard.reports_dropped.get());
        to.counter("chargegate_reports_dropped_total", "Reports dropped because too many waited.", dropped);
    }

    fn render_http(&self, to: &mut Exposition<'_>) {
        let help = "HTTP responses, by class of status.";
        render_counters(to, "chargegate_http_responses_total", help, "status", &self.http_responses);
        let name = "chargegate_http_latency_seconds";
        to.family(name, "histogram", "From a complete HTTP request to its response.");
        to.histogram(name, &[], &Merged::of_shared(&self.http_latency));
    }
}

fn render_counters<L: Label, const N: usize>(
    to: &mut Exposition<'_>,
    name: &str,
    help: &str,
    label: &str,
    counters: &Labelled<L, Counter, N>,
) {
    to.family(name, "counter", help);
    for (value, counter) in counters.iter() {
        to.sample(name, &[(label, value.as_str())], counter.get());
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn rendered(metrics: &Metrics) -> String {
        let mut text = String::new();
        metrics.render(&mut text);
        text
    }

    #[test]
    fn fixed_names() {
        let text = rendered(&Metrics::new(1));
        for (name, kind) in [
            ("tcp_accepted_total", "counter"),
            ("tcp_closed_total", "counter"),
            ("tcp_received_bytes_total", "counter"),
            ("devices_online", "gauge"),
            ("orders_created_total", "counter"),
            ("orders_completed_total", "counter"),
            ("orders_failed_total", "counter"),
            ("outbound_queue_length", "gauge"),
            ("outbound_sent_total", "counter"),
            ("outbound_failed_total", "counter"),
        ] {
            assert!(text.contains(&format!("# TYPE chargegate_{name} {kind}\n")), "{name}");
        }
        assert!(text.contains("chargegate_tcp_closed_total{reason=\"idle\"} 0\n"));
        assert!(text.contains("chargegate_outbound_queue_length{priority=\"high\"} 0\n"));
    }

    #[test]
    fn shards_are_summed() {
        let metrics = Metrics::new(2);
        let shards = [metrics.claim_shard(0).unwrap(), metrics.claim_shard(1).unwrap()];
        for shard in &shards {
            shard.accepted.add(2);
            shard.closed[CloseReason::Garbage].inc();
            shard.frames.ap3000(Direction::Up, 0x21);
            shard.frames.bkv(Direction::Down, 0x1000, 0x1017);
            shard.frames.bkv(Direction::Up, 0x7777, 0);
            shard.ack_latency.record(Duration::from_millis(3));
        }
        metrics.devices_online.set(2);
        let text = rendered(&metrics);
        for line in [
            "chargegate_tcp_accepted_total 4",
            "chargegate_devices_online 2",
            "chargegate_tcp_closed_total{reason=\"garbage\"} 2",
            "chargegate_frames_total{protocol=\"ap3000\",cmd=\"21\",direction=\"up\"} 2",
            "chargegate_frames_total{protocol=\"bkv\",cmd=\"1000/17\",direction=\"down\"} 2",
            "chargegate_frames_total{protocol=\"bkv\",cmd=\"other\",direction=\"up\"} 2",
            "chargegate_ack_latency_seconds_bucket{le=\"0.0025\"} 0",
            "chargegate_ack_latency_seconds_bucket{le=\"0.005\"} 2",
            "chargegate_ack_latency_seconds_bucket{le=\"+Inf\"} 2",
            "chargegate_ack_latency_seconds_sum 0.006",
            "chargegate_ack_latency_seconds_count 2",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} in\n{text}");
        }
    }

    #[test]
    fn one_writer_per_shard() {
        let metrics = Metrics::new(1);
        let writer = metrics.claim_shard(0).unwrap();
        writer.accepted.inc();
        assert!(metrics.claim_shard(0).is_none());
        assert!(metrics.claim_shard(1).is_none());
        drop(writer);
        metrics.claim_shard(0).unwrap().accepted.inc();
        assert!(rendered(&metrics).contains("chargegate_tcp_accepted_total 2\n"));
    }

    #[test]
    fn transitions_by_name() {
        let metrics = Metrics::new(1);
        metrics.order_transition(0, 1);
        metrics.order_transition(1, 10);
        let text = rendered(&metrics);
        assert!(text.contains("chargegate_order_transitions_total{from=\"pending\",to=\"confirmed\"} 1\n"));
        assert!(text.contains("chargegate_order_transitions_total{from=\"confirmed\",to=\"interrupted\"} 1\n"));
    }

    #[test]
    fn process_figures_are_there() {
        let text = rendered(&Metrics::new(1));
        for name in [
            "process_resident_memory_bytes",
            "process_open_fds",
            "process_max_fds",
            "process_cpu_seconds_total",
            "process_start_time_seconds",
        ] {
            assert!(text.contains(&format!("\n{name} ")), "{name}");
        }
    }
}
