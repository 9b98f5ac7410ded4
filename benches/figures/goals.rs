//! What is to be reached, row by row.

/// What a median has to keep to.
#[derive(Clone, Copy)]
pub(crate) enum Bound {
    AtMost(f64),
    Below(f64),
    AtLeast(f64),
}

impl Bound {
    pub(crate) fn is_met(self, value: f64) -> bool {
        match self {
            Self::AtMost(most) => value <= most,
            Self::Below(limit) => value < limit,
            Self::AtLeast(least) => value >= least,
        }
    }

    pub(crate) const fn sign(self) -> &'static str {
        match self {
            Self::AtMost(_) => "≤",
            Self::Below(_) => "<",
            Self::AtLeast(_) => "≥",
        }
    }

    pub(crate) const fn value(self) -> f64 {
        match self {
            Self::AtMost(value) | Self::Below(value) | Self::AtLeast(value) => value,
        }
    }
}

pub(crate) struct Goal {
    pub(crate) what: &'static str,
    pub(crate) row: &'static str,
    pub(crate) bound: Bound,
}

const fn goal(what: &'static str, row: &'static str, bound: Bound) -> Goal {
    Goal { what, row, bound }
}

use Bound::{AtLeast, AtMost, Below};

/// All goals, in the order in which they are shown. A row that is the median of ratios within rounds is as good on a busy
/// machine as on an idle one; the others want an idle one.
pub(crate) const GOALS: &[Goal] = &[
    goal(
        "CPU per heartbeat over a bare loop, 15,000 connections, 50 outstanding",
        "cost/15000/50/mio/ratio",
        AtMost(1.15),
    ),
    goal("… 1,000 outstanding", "cost/15000/1000/mio/ratio", AtMost(1.15)),
    goal("… one outstanding on each", "cost/15000/all/mio/ratio", AtMost(1.15)),
    goal("its user-space part, 50 outstanding", "cost/15000/50/mio/user_us", Below(0.7)),
    goal("… 1,000 outstanding", "cost/15000/1000/mio/user_us", Below(0.7)),
    goal("… one outstanding on each", "cost/15000/all/mio/user_us", Below(0.7)),
    goal("throughput over Go's, 15,000 connections, 50 outstanding", "cost/15000/50/mio/to_go", AtLeast(1.0)),
    goal("… 1,000 outstanding", "cost/15000/1000/mio/to_go", AtLeast(1.0)),
    goal("… one outstanding on each", "cost/15000/all/mio/to_go", AtLeast(1.0)),
    goal("resident memory of an idle connection, of 15,000 BKV", "cost/15000/mio/resident_bytes", AtMost(1024.0)),
    goal("… of 50,000 of all kinds, three instances", "fleet/bytes_per_device", AtMost(1024.0)),
    goal("decode an AP3000 heartbeat, 2 ports", "ap3000/decode/heartbeat_2_ports", AtMost(25.0)),
    goal("… 10 ports", "ap3000/decode/heartbeat_10_ports", AtMost(25.0)),
    goal("… of the generation before", "ap3000/decode/heartbeat_legacy", AtMost(25.0)),
    goal("… of a host", "ap3000/decode/heartbeat_host", AtMost(25.0)),
    goal("… of a cabinet", "ap3000/decode/heartbeat_cabinet", AtMost(25.0)),
    goal("decode an AP3000 charging report", "ap3000/decode/charging_report", AtMost(25.0)),
    goal("decode a BKV heartbeat", "bkv_read/heartbeat_decode", AtMost(25.0)),
    goal("decode a BKV status push", "bkv_read/push_decode", AtMost(25.0)),
    goal("… of two sockets", "bkv_read/push_two_sockets_decode", AtMost(25.0)),
    goal("charge, 202 to frame, same instance, median", "latency/charge/same/p50_ms", Below(3.0)),
    goal("… 99th percentile", "latency/charge/same/p99_ms", Below(10.0)),
    goal("charge, 202 to frame, other instance, median", "latency/charge/other/p50_ms", Below(3.0)),
    goal("… 99th percentile", "latency/charge/other/p99_ms", Below(10.0)),
    goal("command, 202 to frame, same instance, median", "latency/command/same/p50_ms", Below(3.0)),
    goal("… 99th percentile", "latency/command/same/p99_ms", Below(10.0)),
    goal("command, 202 to frame, other instance, median", "latency/command/other/p50_ms", Below(3.0)),
    goal("… 99th percentile", "latency/command/other/p99_ms", Below(10.0)),
    goal("commands acknowledged, PostgreSQL and Redis", "commands/postgres/per_s", AtLeast(2_000.0)),
    goal("… embedded", "commands/embedded/per_s", AtLeast(2_000.0)),
    goal("orders created over HTTP, 64 clients, PostgreSQL with fsync", "orders/postgres/per_s", AtLeast(2_000.0)),
    goal("… embedded", "orders/embedded/per_s", AtLeast(2_000.0)),
    goal(
        "orders created at the store's contract, 64 clients, PostgreSQL",
        "store/postgres/creations/per_s",
        AtLeast(2_000.0),
    ),
    goal("… embedded", "store/embedded/creations/per_s", AtLeast(2_000.0)),
    goal("durable settlements from devices, PostgreSQL with fsync", "settlements/postgres/per_s", AtLeast(10_000.0)),
    goal("… embedded", "settlements/embedded/per_s", AtLeast(10_000.0)),
    goal(
        "durable settlements at the store's contract, PostgreSQL",
        "store/postgres/settlements/per_s",
        AtLeast(10_000.0),
    ),
    goal("… embedded", "store/embedded/settlements/per_s", AtLeast(10_000.0)),
    goal("GET /devices/{id}/status, 64 clients through the guard", "api/status/per_s", AtLeast(20_000.0)),
    goal("… 99th percentile", "api/status/p99_ms", Below(10.0)),
    goal("… while 10,000 devices beat", "api/status_beside/per_s", AtLeast(10_000.0)),
    goal("storm of 15,000 devices: bound", "storm/bound_per_s", AtLeast(5_000.0)),
    goal("… heartbeats of the connected, 99th percentile", "storm/heartbeat_p99_ms", Below(1_000.0)),
    goal("… API reads, 99th percentile", "storm/api_p99_ms", Below(10.0)),
    goal("webhook, commit to receiver, 1,000 events/s over ten, one hung", "webhook/1000/p99_ms", Below(50.0)),
    goal("connections on three instances", "fleet/connections", AtLeast(50_000.0)),
    goal("… resident memory together", "fleet/resident_mb", Below(150.0)),
    goal("start to ready, empty store", "start/ready_ms", Below(1_000.0)),
];
