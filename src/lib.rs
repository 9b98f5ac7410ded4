//! Gateway between charging devices and third-party business systems.

pub mod gateway;
pub mod model;
pub mod protocol;
pub mod store;
pub mod webhook;
