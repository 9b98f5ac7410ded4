//! The state half of the core: connections, sessions, ports, orders, command pacing, timers. Inputs in, effects out.
//!
//! No socket, clock, thread or random number: the driver passes the time in and carries the effects out.

mod accept;
pub mod anomaly;
mod ap3000;
mod bkv;
mod call;
pub mod card;
pub mod charge;
mod conn;
mod core;
mod device;
pub mod directory;
mod effects;
mod few;
mod gn;
mod iccid;
pub mod inquiry;
mod lane;
pub mod network;
pub mod order;
pub mod ota;
pub mod params;
pub mod product;
pub mod recorder;
pub mod settlement;
mod slots;
mod timers;
mod times;
mod track;
mod wanted;

pub use self::call::FIRMWARE_FILE_MAX;
pub use self::core::{BkvReadings, Core, CoreConfig, Timeouts};
pub use accept::{Breaker, ConnectionLimits};
pub use effects::{AcceptRefused, CardAsk, CloseReason, ConnId, DrainPace, Effects, Listener, Message, OtaStart};
pub use times::OrderTimes;
pub use wanted::WantedEvents;

/// Index of a shard, from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ShardId(pub u16);

/// The time as a driver passes it in: both clocks read together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// Milliseconds since the process started; never steps back. Deadlines are counted on this one.
    pub mono_ms: u64,
    /// Unix milliseconds. Stored and sent to third parties.
    pub unix_ms: i64,
}

impl Now {
    /// Unix time of a monotonic instant near now.
    pub const fn unix_of(&self, mono_ms: u64) -> i64 {
        self.unix_ms.saturating_sub(self.mono_ms.saturating_sub(mono_ms).cast_signed())
    }
}
