//! Gateway between charging devices and third-party business systems.
//!
//! ```text
//! device bytes ──▶ shard ──▶ gateway (pure) ──▶ store ──▶ router ──▶ shard, webhook
//!                              uses protocol       ▲
//! HTTP ──▶ api ────────────────────────────────────┘
//! ```
//!
//! | module | owns | must not touch |
//! |---|---|---|
//! | [`protocol`] | frames and typed bodies, both directions | sockets, clocks, threads, orders |
//! | [`gateway`] | connections, devices, commands and orders of one shard; the rules of an order; the directory | sockets, clocks, threads, SQL |
//! | [`shard`] | sockets, one engine per core, mailboxes | any decision about a device |
//! | [`store`] | what is durable, and who is told after a commit | rules: it writes what [`gateway::order`] decides |
//! | [`api`] | HTTP, keys, answers | devices: it reads the directory and submits jobs |
//! | [`queue`] | order of waiting commands: their ids | what a command is |
//! | [`cluster`] | Redis: what instances tell and share | what is durable |
//! | [`webhook`] | delivery of the event log | the meaning of an event |
//! | [`managed`] | keys and endpoints of the configuration and the store, put in force | what a change may be |
//! | [`router`] | the way from a commit to shards and webhooks | anything that waits |
//! | [`job`] | periodic work | state that matters after a crash |
//! | [`memory`] | when free memory goes back to the system | what holds memory |
//! | [`ota`] | images of firmware on their way to shards | when a packet is sent |
//! | [`telemetry`] | metrics, health, log lines | clocks, apart from the log's own stamp |
//! | [`config`] | checked configuration | what it configures |
//! | [`drain`] | sending all devices away, and taking them again | connections: shards close their own |
//! | [`console`] | the page that operators open | the gateway: the page asks the API |
//! | [`boot`] | start, reload and stop, stage by stage | everything once it runs |
//! | [`model`], [`pricing`], [`signature`], [`time`] | words of the domain, prices, signatures, calendar text | I/O, clocks |
//!
//! Paths of a heartbeat, a charge and a settlement, and the invariants by name: `docs/ARCHITECTURE.md`.

pub mod api;
pub mod boot;
pub mod cluster;
pub mod config;
pub mod console;
pub mod drain;
pub mod gateway;
pub mod job;
pub mod managed;
pub mod memory;
pub mod model;
pub mod ota;
pub mod pricing;
pub mod protocol;
pub mod queue;
pub mod router;
pub mod shard;
pub mod signature;
pub mod store;
pub mod telemetry;
pub mod time;
pub mod webhook;
