//! BKV / GN codec: the networked-socket gateway protocol (integration guide V1.7), big-endian.
//!
//! A gateway talks by radio to many sockets, each with two holes; one TCP connection carries them all. "BKV" and "GN"
//! name two server-side readings of this one frame, so one codec serves both.
//!
//! ```text
//! bytes ── frame::deframe ──> Frame ── body::decode_body ──> Body ──┬─ end_report() ──> EndReport
//!                                        command::lookup            └─ sockets() ─────> SocketState, HoleState
//! ```
//!
//! - [`frame`] cuts frames out of the stream; [`command`] is the table of every command and sub-command.
//! - [`body`] holds the typed bodies, which read and write themselves through [`fields`]; [`tlv`] the element grammar of
//!   command 0x1000 and [`packet`] its bodies.
//! - [`status`] reads the hole status byte and derives why a charge ended; [`report`] gives one view of the four
//!   end reports and of the two kinds of socket state.
//! - [`encode`] writes server frames, [`device`] the frames a gateway sends; [`clock`] is the wire's local time.
//!
//! Only the charge bookkeeping is absent: which order a report belongs to is decided by its consumer.

pub mod body;
pub mod command;
pub mod device;
pub mod encode;
pub mod fields;
pub mod frame;
pub mod packet;
pub mod records;
pub mod report;
pub mod status;
pub mod tlv;

#[cfg(test)]
mod tests;

pub use super::clock;
pub use body::{Body, decode_body};
pub use frame::{Frame, GatewayId, deframe};
pub use report::{EndReport, HoleState, SocketState};
pub use status::{EndReason, HoleStatus};
