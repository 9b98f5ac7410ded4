//! AP3000 / DNY codec: little-endian frames between chargers, their gateways ("hosts") and the server.
//!
//! Sources: device-server protocol v8.6 and host-server protocol v2.9.
//!
//! ```text
//! | magic 3 | length 2 LE | physical id 4 | message id 2 LE | command 1 | data n | checksum 2 LE |
//! ```
//!
//! `length` counts from the physical id to the end of the checksum (9 + n). The checksum is the sum of every byte
//! before it, magic and length included, modulo 65536.
//!
//! Values stay as the device sent them: no unit is converted here, and codes keep their number when the vendor adds
//! new ones ([`codes`] gives the known ones a text). Fields were appended over the years, so a body that ends early
//! lacks its last fields, and one that is longer than documented keeps the rest in `extra`.
//!
//! - [`frame`] finds frames in the byte stream.
//! - [`command`] is the table of all commands, and decodes a frame's body through it.
//! - [`body`] holds one type per data layout; [`wire`] the field types they are made of.
//! - [`encode`] writes frames.
//! - [`update`] cuts firmware into packets and knows which device takes which; [`offline`] is what a device makes up
//!   without the server: order numbers and verification codes.

pub mod body;
pub mod codes;
pub mod command;
pub mod encode;
pub mod frame;
pub mod offline;
pub mod update;
pub mod wire;

#[cfg(test)]
mod tests;

pub use body::Body;
pub use command::code;
pub use command::{Command, Reply, decode_body, guess_direction, lookup};
pub use frame::{Frame, Item, Magics, MagicsError, PhyId, deframe};
