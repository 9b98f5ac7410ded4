//! Peers that misbehave, to see that the server stands them and that the others do not notice.
//!
//! | kind | does |
//! |---|---|
//! | garbage | 64 bytes that start no frame, each 100 ms |
//! | half frames | the first half of a frame, 1 s later the beginning of the next |
//! | silent | nothing at all |
//! | slow reader | 64 heartbeats each 20 ms, and reads none of the answers |
//! | slow writer | a good heartbeat, one byte each 100 ms |

use chargegate::protocol::bkv::device;

use super::bkv::gateway_id;
use super::charge::draw;
use super::{Device, NEVER, SECOND_US, ap3000, earliest};

/// How a peer misbehaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rudeness {
    /// Bytes that are no frames.
    Garbage,
    /// Frames without their second half.
    HalfFrames,
    /// Nothing.
    Silent,
    /// Requests whose answers stay unread.
    SlowReader,
    /// Requests one byte at a time.
    SlowWriter,
}

/// A peer that misbehaves.
#[derive(Debug)]
pub struct RudeDevice {
    rudeness: Rudeness,
    index: u32,
    turn: u64,
    due_us: u64,
    out: Vec<u8>,
}

impl RudeDevice {
    /// A peer; `index` picks its bytes and, for slow readers, its gateway id.
    pub const fn new(rudeness: Rudeness, index: u32) -> Self {
        Self { rudeness, index, turn: 0, due_us: NEVER, out: Vec::new() }
    }

    fn act(&mut self, now_us: u64) {
        self.turn = self.turn.wrapping_add(1);
        let after_us = match self.rudeness {
            Rudeness::Garbage => {
                let words = (0..8).flat_map(|word| draw(self.turn, &[u64::from(self.index), word]).to_le_bytes());
                self.out.extend(words);
                SECOND_US / 10
            }
            Rudeness::HalfFrames => {
                let start = self.out.len();
                device::heartbeat(&mut self.out, gateway_id(self.index), ICCID, FW, 20);
                self.out.truncate(start + 25);
                SECOND_US
            }
            Rudeness::Silent => return,
            Rudeness::SlowReader => {
                for _ in 0..64 {
                    device::heartbeat(&mut self.out, gateway_id(self.index), ICCID, FW, 20);
                }
                SECOND_US / 50
            }
            Rudeness::SlowWriter => {
                let start = self.out.len();
                device::heartbeat(&mut self.out, gateway_id(self.index), ICCID, FW, 20);
                let len = u64::try_from(self.out.len() - start).unwrap_or_default().max(1);
                let nth = usize::try_from((self.turn - 1) % len).unwrap_or_default();
                let byte = self.out.get(start + nth).copied().unwrap_or_default();
                self.out.truncate(start);
                self.out.push(byte);
                SECOND_US / 10
            }
        };
        self.due_us = now_us.saturating_add(after_us);
    }
}

const ICCID: &str = "89860448160000000000";
const FW: &str = "sim1.0";

/// Rude peers that use an id take it from the end of the range, away from the devices.
pub const fn rude_index(number: u32) -> u32 {
    ap3000::DEVICES_MAX - 1 - number
}

impl Device for RudeDevice {
    fn connected(&mut self, now_us: u64) {
        self.act(now_us);
    }

    fn receive(&mut self, _now_us: u64, _bytes: &[u8]) {}

    fn timeout(&mut self, now_us: u64) {
        if self.due_us <= now_us {
            self.act(now_us);
        }
    }

    fn poll_output(&mut self, out: &mut Vec<u8>) {
        out.append(&mut self.out);
    }

    fn poll_timeout(&self) -> Option<u64> {
        earliest([self.due_us])
    }

    fn disconnected(&mut self, _now_us: u64) {
        self.due_us = NEVER;
        self.out.clear();
    }

    fn reads(&self) -> bool {
        self.rudeness != Rudeness::SlowReader
    }
}
