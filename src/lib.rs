//! Gateway between charging devices and third-party business systems.

pub mod boot;
pub mod config;
pub mod protocol;
pub mod signature;
pub mod telemetry;
