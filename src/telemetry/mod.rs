//! What the gateway says about itself: log lines, metrics, health.
//!
//! Nothing here reads a clock, except the log backend, which stamps its lines; times are arguments in milliseconds of
//! one monotonic clock of the process. Nothing here waits for another thread's work: shards record into counters that
//! only they write, and a scrape reads them from another thread.
//!
//! - [`log`] is the backend of the `log` crate, and [`LogGate`], which keeps a reason from flooding it.
//! - [`metrics`] holds every metric by name and renders them as Prometheus text.
//! - [`history`] keeps ten minutes of a few figures, for the console.
//! - [`health`] knows whether shards still turn and whether the server is ready.

pub mod health;
pub mod histogram;
pub mod history;
pub mod label;
pub mod log;
pub mod metrics;

mod cell;
mod exposition;
mod process;

pub use cell::{Counter, Gauge, Labelled, LocalCounter, LocalGauge};
pub use exposition::{Exposition, MetricSource};
pub use health::Health;
pub use histogram::{LocalHistogram, SharedHistogram};
pub use history::History;
pub use log::LogGate;
pub use metrics::{Metrics, ShardMetrics, ShardWriter};
