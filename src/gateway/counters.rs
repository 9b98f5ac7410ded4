//! What a core counts. Plain numbers of one shard; the driver publishes them after each turn.

use super::effects::CloseReason;
use crate::{model::Protocol, protocol::SkipReason};

/// What a core counts.
#[derive(Clone, Debug)]
pub struct Counters {
    /// Connections accepted.
    pub accepted: u64,
    /// Connections closed right after accept, over a limit.
    pub refused: u64,
    /// Accepting failed for want of descriptors or memory.
    pub exhausted: u64,
    /// Connections ended, by reason.
    pub closed: [u64; CloseReason::ALL.len()],
    /// Bytes received.
    pub received_bytes: u64,
    /// Frames received, by protocol.
    pub frames: [u64; Protocol::ALL.len()],
    /// Bytes skipped, by reason.
    pub skipped: [u64; SkipReason::ALL.len()],
    /// Sound frames whose body could not be read.
    pub bodies_refused: u64,
    /// Commands in no table, or not decoded.
    pub commands_unknown: u64,
    /// Valid frames of the wrong direction.
    pub wrong_direction: u64,
    /// Frames of devices that are not admitted.
    pub strangers: u64,
    /// Binds.
    pub binds: u64,
    /// Binds that took a device from another connection.
    pub takeovers: u64,
    /// Commands written.
    pub commands_written: u64,
    /// Commands written again.
    pub commands_resent: u64,
    /// Commands that expired unwritten.
    pub commands_expired: u64,
    /// Commands refused by the device.
    pub commands_refused: u64,
    /// Commands not acknowledged in time.
    pub ack_timeouts: u64,
    /// Replies that match no command under way.
    pub replies_unmatched: u64,
    /// Settlements submitted.
    pub settlements: u64,
    /// Resends that joined a settlement under way.
    pub settlements_joined: u64,
    /// Settlements dropped because too many are under way: the device sends again.
    pub settlements_dropped: u64,
    /// Jobs not submitted because too many are under way.
    pub jobs_refused: u64,
    /// Jobs the store could not commit.
    pub jobs_failed: u64,
    /// Messages to other shards that found a full mailbox.
    pub tells_lost: u64,
    /// Port reports that contradict the order on the port.
    pub port_mismatches: u64,
    /// Milliseconds from a command's write to its reply, by powers of two.
    pub ack_latency: [u64; 18],
    /// Their sum, ms.
    pub ack_latency_sum: u64,
}

impl Default for Counters {
    fn default() -> Self {
        Self {
            accepted: 0,
            refused: 0,
            exhausted: 0,
            closed: [0; CloseReason::ALL.len()],
            received_bytes: 0,
            frames: [0; Protocol::ALL.len()],
            skipped: [0; SkipReason::ALL.len()],
            bodies_refused: 0,
            commands_unknown: 0,
            wrong_direction: 0,
            strangers: 0,
            binds: 0,
            takeovers: 0,
            commands_written: 0,
            commands_resent: 0,
            commands_expired: 0,
            commands_refused: 0,
            ack_timeouts: 0,
            replies_unmatched: 0,
            settlements: 0,
            settlements_joined: 0,
            settlements_dropped: 0,
            jobs_refused: 0,
            jobs_failed: 0,
            tells_lost: 0,
            port_mismatches: 0,
            ack_latency: [0; 18],
            ack_latency_sum: 0,
        }
    }
}

impl Counters {
    /// Records the time from a command's write to its reply.
    pub(super) fn acked_after(&mut self, ms: u64) {
        let bucket = (u64::BITS - ms.leading_zeros()) as usize;
        let last = self.ack_latency.len() - 1;
        self.ack_latency[bucket.min(last)] += 1;
        self.ack_latency_sum += ms;
    }
}
