//! The wire half of the core: bytes to typed frames and back.
//!
//! No I/O, no clock, no allocation while decoding: frames borrow the caller's buffer, typed bodies borrow
//! the frame, encoders write into a caller's `Vec<u8>`. Every byte string gives a value, "need more", or an
//! error; input never panics.
//!
//! - [`detect`] decides from the first bytes which codec a connection speaks.
//! - [`ap3000`] is the AP3000 / DNY protocol (device-server v8.6, host-server v2.9), little-endian.
//! - [`bkv`] is the networked-socket gateway protocol V1.7, big-endian; GN shares its frame.
//!
//! Each codec folder has `frame.rs` (deframer), `command.rs` (table of all commands), `body.rs` (typed
//! bodies), `encode.rs`.
#![warn(
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm
)]

mod input;

pub mod ap3000;
pub mod bkv;
pub mod detect;

pub use input::{DecodeError, Hex, Input};

/// Who sent a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// Device to server.
    Up,
    /// Server to device.
    Down,
}

impl Direction {
    /// The word used in logs, `cmd_log` and `decode --json`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Down => "down",
        }
    }
}
