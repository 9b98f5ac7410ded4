//! Gateway between charging devices and third-party business systems.

pub mod api;
pub mod protocol;
pub mod time;
