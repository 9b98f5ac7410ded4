//! Device simulator and load generator for chargegate.
//!
//! - [`device`] the devices: state machines without I/O, which tests also drive in virtual time.
//! - [`engine`] their sockets: many devices on one thread.
//! - [`fleet`] which devices there are, and which ports are free; [`api`] charges those ports by REST.
//! - [`http`] the connections it does that on.
//! - [`report`] counters, latencies, the progress line and the summary.
//! - [`run`] puts it together for a [`Plan`](run::Plan).
//!
//! Only [`engine`] touches device sockets, only [`api`] the gateway's REST interface.

pub mod api;
pub mod device;
pub mod engine;
pub mod fleet;
pub mod http;
pub mod report;
pub mod run;
