//! Device simulator and load generator for chargegate.
//!
//! - [`device`] the devices: state machines without I/O, which tests also drive in virtual time.
//! - [`engine`] their sockets: many devices on one thread.
//! - [`fleet`] which devices there are, and which ports are free; [`api`] charges those ports by REST.
//! - [`http`] the connections it does that on.
//! - [`report`] counters, latencies, the progress line and the summary.
//! - [`run`] puts it together for a [`Plan`](run::Plan).
//!
//! Load that is scheduled by time and judged by figures:
//!
//! - [`scenario`] what happens when, as TOML; [`schedule`] the times of all of it.
//! - [`worker`] one process's share of a scenario, [`processes`] all of them and what they found together.
//! - [`asker`] requests to the API at their times; [`http`] their connections.
//! - [`verify`] whether each frame of the server answers what was asked; [`books`] whether the API knows what the devices know.
//! - [`measure`] latencies second by second, [`figures`] their names and thresholds.
//!
//! Only [`engine`] touches device sockets; only [`api`] (by [`post`]), [`http`] and [`books`] the gateway's REST interface.

pub mod api;
pub mod asker;
pub mod books;
pub mod device;
pub mod engine;
pub mod figures;
pub mod fleet;
mod head;
pub mod http;
pub mod measure;
pub mod post;
pub mod processes;
pub mod report;
pub mod run;
pub mod scenario;
pub mod schedule;
pub mod verify;
pub mod worker;
