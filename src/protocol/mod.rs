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
//! - [`clock`] is the local time that both put on the wire.
//! - [`explain`] says what stands in captured bytes.
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
mod sum;

pub mod ap3000;
pub mod bkv;
pub mod clock;
pub mod detect;
pub mod explain;

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

/// What a deframer found at the start of a buffer.
///
/// The caller loops: consume what the step says and call again, until [`Step::NeedMore`]. A frame that stays incomplete for
/// 10 s is abandoned by the caller, which then drops one byte and calls again (both vendor documents are silent here).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step<T> {
    /// A whole item stands at the start of the buffer.
    Item {
        /// The item; borrows the buffer.
        item: T,
        /// Its length in bytes, at least 1.
        consumed: usize,
    },
    /// Bytes that are not part of any item.
    Skip {
        /// How many, at least 1. Scanning goes on behind them.
        consumed: usize,
        /// Why they were refused.
        reason: SkipReason,
    },
    /// The buffer is empty or holds the beginning of an item.
    NeedMore,
}

/// Why a deframer skipped bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SkipReason {
    /// Bytes between frames that start nothing.
    Noise,
    /// A frame whose length field is outside the protocol's range.
    BadLength,
    /// A frame whose checksum does not agree.
    BadChecksum,
    /// A frame that does not end with its tail bytes (BKV/GN).
    BadTail,
    /// A frame whose direction byte contradicts its magic (BKV/GN).
    BadDirection,
}

impl SkipReason {
    /// All reasons, in the order of their metric labels.
    pub const ALL: [Self; 5] = [Self::Noise, Self::BadLength, Self::BadChecksum, Self::BadTail, Self::BadDirection];

    /// The label used in metrics and `decode --json`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Noise => "noise",
            Self::BadLength => "bad_length",
            Self::BadChecksum => "bad_checksum",
            Self::BadTail => "bad_tail",
            Self::BadDirection => "bad_direction",
        }
    }
}
