//! Reception of firmware, packet by packet, and what becomes of it.
//!
//! ```text
//! packet 1 ─> begin anew            the expected one ─> keep, acknowledge        the one before ─> acknowledge again
//! any other, or a bad length ─> result 1 with the number that is expected
//! last ─> byte sum, type, version checked if it is a verification packet ─> 2 s later restart with the new version
//! ```
//!
//! A lost connection interrupts nothing. A power cut does: after it the device asks to begin at packet 1 (E0 and FA:
//! packet 0 under the command itself; F8: 0x05; F9: 0x15), at once and every 3 min. F8 and F9 devices do the same after
//! three packets in a row that were wrong.

use chargegate::protocol::ap3000::body::OtaPacket;
use chargegate::protocol::ap3000::codes::UpdateResult;
use chargegate::protocol::ap3000::update::{CHUNK, CHUNK_LEGACY, Verification};

use super::{NEVER, SECOND_US};

/// A device restarts this long after the last acknowledgement.
const INSTALL_AFTER_US: u64 = 2 * SECOND_US;
/// An interrupted device asks again and again.
pub(super) const ASK_EVERY_US: u64 = 180 * SECOND_US;
/// Wrong packets in a row after which the legacy protocols begin anew: two retransmissions failed.
const FAILURES_MAX: u8 = 3;

/// What a device takes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Accepts {
    pub(super) device_type: u8,
    pub(super) fw_version: u16,
    pub(super) wants_check_packet: bool,
}

/// Reception of one device.
#[derive(Debug)]
pub(super) struct Update {
    /// Command of the packets; 0 if none came yet.
    pub(super) command: u8,
    total: u16,
    next: u16,
    failures: u8,
    received: Vec<u8>,
    /// The last image that was complete, without padding taken off.
    pub(super) image: Vec<u8>,
    version: u16,
    pub(super) install_us: u64,
    /// When to ask for packet 1; `NEVER` unless an update was interrupted.
    pub(super) ask_us: u64,
}

impl Default for Update {
    fn default() -> Self {
        Self {
            command: 0,
            total: 0,
            next: 1,
            failures: 0,
            received: Vec::new(),
            image: Vec::new(),
            version: 0,
            install_us: NEVER,
            ask_us: NEVER,
        }
    }
}

/// The acknowledgement of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ack {
    pub(super) result: UpdateResult,
    /// The packet that was received, or with result 1 the one that is expected.
    pub(super) packet_no: u16,
    /// The legacy protocols begin anew.
    pub(super) gave_up: bool,
}

/// Bytes of a packet's chunk.
const fn chunk_len(command: u8) -> usize {
    if matches!(command, 0xf8 | 0xf9) { CHUNK_LEGACY } else { CHUNK }
}

impl Update {
    /// Takes a packet of `command`.
    pub(super) fn packet(&mut self, now_us: u64, command: u8, packet: &OtaPacket<'_>, accepts: Accepts) -> Ack {
        let OtaPacket { total_packets: total, packet_no, chunk, .. } = *packet;
        self.ask_us = NEVER;
        let (len, last) = (chunk.0.len(), packet_no == total);
        let sound = (1..=total).contains(&packet_no)
            && (len == chunk_len(command) || (last && (1..chunk_len(command)).contains(&len)));
        if !sound {
            return self.refuse(command);
        }
        if packet_no == 1 {
            self.begin(command, total);
        } else if (self.command, self.total) != (command, total) {
            self.begin(command, total);
            return self.refuse(command);
        }
        if packet_no != self.next {
            let again = packet_no + 1 == self.next;
            return if again { Ack::ok(packet_no) } else { self.refuse(command) };
        }
        self.failures = 0;
        if last {
            return self.finish(now_us, packet, accepts);
        }
        self.received.extend_from_slice(chunk.0);
        self.next += 1;
        Ack::ok(packet_no)
    }

    fn begin(&mut self, command: u8, total: u16) {
        self.received.clear();
        (self.command, self.total, self.next, self.failures, self.install_us) = (command, total, 1, 0, NEVER);
    }

    fn refuse(&mut self, command: u8) -> Ack {
        self.failures += 1;
        let gave_up = matches!(command, 0xf8 | 0xf9) && self.failures >= FAILURES_MAX;
        let packet_no = if self.command == command { self.next } else { 1 };
        if gave_up {
            self.begin(command, 0);
        }
        Ack { result: UpdateResult::RESEND, packet_no, gave_up }
    }

    /// The device refused a packet for reasons of its own.
    pub(super) fn failed(&mut self, command: u8, packet_no: u16, result: UpdateResult) -> Ack {
        if result == UpdateResult::RESEND {
            return Ack { packet_no, ..self.refuse(command) };
        }
        self.abort(packet_no, result)
    }

    fn abort(&mut self, packet_no: u16, result: UpdateResult) -> Ack {
        self.begin(0, 0);
        Ack { result, packet_no, gave_up: false }
    }

    fn finish(&mut self, now_us: u64, packet: &OtaPacket<'_>, accepts: Accepts) -> Ack {
        let check = Verification::from_chunk(packet.chunk.0).filter(|_| packet.packet_no > 1);
        let result = match check {
            Some(check) => {
                self.version = check.fw_version;
                if check.byte_sum != Verification::of(&self.received, 0, 0).byte_sum {
                    UpdateResult::BAD_SUM
                } else if check.device_type != accepts.device_type {
                    UpdateResult::WRONG_DEVICE_TYPE
                } else {
                    UpdateResult::OK
                }
            }
            None if accepts.wants_check_packet => UpdateResult::NO_CHECK_PACKET,
            None => {
                // A bare image does not say its version; the simulator counts on.
                self.version = accepts.fw_version.wrapping_add(1);
                self.received.extend_from_slice(packet.chunk.0);
                UpdateResult::OK
            }
        };
        if result != UpdateResult::OK {
            return self.abort(packet.packet_no, result);
        }
        self.image = std::mem::take(&mut self.received);
        self.next = self.next.saturating_add(1);
        self.install_us = now_us.saturating_add(INSTALL_AFTER_US);
        Ack::ok(packet.packet_no)
    }

    /// What was received is in force from now on; gives command and version.
    pub(super) const fn install(&mut self) -> (u8, u16) {
        self.install_us = NEVER;
        (self.command, self.version)
    }

    /// 0xE4: the device fetches the next version by itself.
    pub(super) const fn download(&mut self, done_us: u64, fw_version: u16) {
        self.install_us = done_us;
        self.version = fw_version.wrapping_add(1);
    }

    /// Power was gone: an unfinished update has to begin anew, and a finished one is in force.
    pub(super) fn power_cycled(&mut self, now_us: u64) {
        if self.is_receiving() {
            self.ask_us = now_us;
            self.begin(self.command, 0);
        }
    }

    /// Whether packets are missing.
    pub(super) const fn is_receiving(&self) -> bool {
        self.command != 0 && self.next > 1 && self.next <= self.total
    }
}

impl Ack {
    const fn ok(packet_no: u16) -> Self {
        Self { result: UpdateResult::OK, packet_no, gave_up: false }
    }
}
