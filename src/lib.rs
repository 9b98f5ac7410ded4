//! Gateway between charging devices and third-party business systems.

pub mod protocol;
