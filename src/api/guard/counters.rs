//! What the guard counts. Every refusal has a reason; reasons are a closed set, so they are safe as metric labels.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::telemetry::{Exposition, MetricSource};

macro_rules! refusals {
    ($($(#[$doc:meta])* $variant:ident = $label:literal;)*) => {
        /// Why the guard refused a connection or a request, or gave one up.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Refusal {
            $($(#[$doc])* $variant,)*
        }

        impl Refusal {
            /// All reasons, in the order of their counters.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// The metric label.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $label,)*
                }
            }
        }

        const REFUSALS: usize = [$(Refusal::$variant,)*].len();
    };
}

refusals! {
    /// The total of connections was reached; closed without a word.
    ConnectionsFull = "connections_full";
    /// The address had its share of connections; closed without a word.
    ConnectionsPerIp = "connections_per_ip";
    /// Not HTTP/1.x, or a head that breaks its grammar: 400.
    BadHead = "bad_head";
    /// More bytes or more fields than a head may have: 431.
    HeadTooLarge = "head_too_large";
    /// The head began but did not end in time: 408.
    HeadTimeout = "head_timeout";
    /// `Transfer-Encoding`, of any kind: 400.
    TransferEncoding = "transfer_encoding";
    /// A body longer than the limit: 413.
    BodyTooLarge = "body_too_large";
    /// The body did not end in time: 408.
    BodyTimeout = "body_timeout";
    /// All bodies and answers in memory together reached their limit: 503, or closed while answering.
    BuffersFull = "buffers_full";
    /// The client did not read its answer in time; closed.
    WriteTimeout = "write_timeout";
    /// Nothing was asked for too long; closed without a word.
    IdleTimeout = "idle_timeout";
    /// Too many requests waited for a connection to the server: 503.
    QueueFull = "queue_full";
    /// A request waited too long for a connection to the server: 503.
    QueueTimeout = "queue_timeout";
    /// The server did not answer in time: 503.
    UpstreamTimeout = "upstream_timeout";
    /// The server closed the connection instead of answering: 503.
    UpstreamClosed = "upstream_closed";
    /// The server's answer was too long or not HTTP with a `Content-Length`: 500.
    UpstreamInvalid = "upstream_invalid";
    /// A local route panicked: 500.
    LocalPanic = "local_panic";
    /// The guard's own stop ended the connection before its answer was out.
    Stopped = "stopped";
    /// As many uploads as may be were under way: 503.
    UploadsFull = "uploads_full";
    /// An upload could not be written: 503.
    UploadFailed = "upload_failed";
}

/// The guard's counters; written by its thread, read by anyone.
#[derive(Debug, Default)]
pub struct GuardCounters {
    /// Connections taken from the listener, refused ones included.
    pub accepted: AtomicU64,
    /// Errors of `accept` itself: out of descriptors, out of memory.
    pub accept_errors: AtomicU64,
    /// Connections open now.
    pub open: AtomicU64,
    /// Requests answered by a local route.
    pub local: AtomicU64,
    /// Requests handed to the server.
    pub relayed: AtomicU64,
    /// Requests waiting for a connection to the server now.
    pub queued: AtomicU64,
    /// Connections to the server that were given up and still wait for their late answer, now.
    pub draining: AtomicU64,
    /// Bytes of bodies and answers held now.
    pub buffered: AtomicU64,
    refused: [AtomicU64; REFUSALS],
}

impl GuardCounters {
    /// How often `reason` occurred.
    pub fn refused(&self, reason: Refusal) -> u64 {
        self.refused.get(reason as usize).map_or(0, |count| count.load(Ordering::Relaxed))
    }

    pub(super) fn refuse(&self, reason: Refusal) {
        if let Some(count) = self.refused.get(reason as usize) {
            add(count, 1);
        }
    }
}

impl MetricSource for GuardCounters {
    fn render(&self, to: &mut Exposition<'_>) {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let name = "chargegate_http_refused_total";
        to.family(name, "counter", "HTTP connections and requests refused or given up, by reason.");
        for reason in Refusal::ALL {
            to.sample(name, &[("reason", reason.as_str())], self.refused(*reason));
        }
        for (name, help, count) in [
            ("chargegate_http_accepted_total", "HTTP connections accepted, whether kept or not.", &self.accepted),
            (
                "chargegate_http_accept_errors_total",
                "HTTP connections that could not be accepted.",
                &self.accept_errors,
            ),
            ("chargegate_http_local_total", "HTTP requests answered from memory.", &self.local),
            ("chargegate_http_relayed_total", "HTTP requests handed to the server.", &self.relayed),
        ] {
            to.counter(name, help, load(count));
        }
        for (name, help, value) in [
            ("chargegate_http_connections", "Open HTTP connections.", &self.open),
            ("chargegate_http_queued", "HTTP requests waiting for a connection to the server.", &self.queued),
            ("chargegate_http_draining", "Connections to the server that wait for a late answer.", &self.draining),
            ("chargegate_http_buffered_bytes", "Bytes of HTTP bodies and answers held.", &self.buffered),
        ] {
            to.gauge(name, help, load(value));
        }
    }
}

/// Counters have one writer, so relaxed order is enough: readers want totals, not a moment.
pub(super) fn add(counter: &AtomicU64, count: u64) {
    counter.fetch_add(count, Ordering::Relaxed);
}

pub(super) fn set(gauge: &AtomicU64, value: usize) {
    gauge.store(value as u64, Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_has_its_own_counter_and_label() {
        let counters = GuardCounters::default();
        for (index, &reason) in Refusal::ALL.iter().enumerate() {
            assert_eq!(reason as usize, index);
            counters.refuse(reason);
            assert_eq!(counters.refused(reason), 1);
            assert!(Refusal::ALL.iter().skip(index + 1).all(|other| other.as_str() != reason.as_str()));
        }
    }
}
