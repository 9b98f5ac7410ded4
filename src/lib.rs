//! Gateway between charging devices and third-party business systems.

pub mod api;
pub mod boot;
pub mod config;
pub mod gateway;
pub mod job;
pub mod model;
pub mod protocol;
pub mod router;
pub mod shard;
pub mod signature;
pub mod store;
pub mod telemetry;
pub mod time;
pub mod webhook;
