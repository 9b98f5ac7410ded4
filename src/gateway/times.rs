//! How long an order may stay in one place. The owner shard acts on these; the store's backstop acts later, on the same values.

use crate::model::ChargeMode;

/// Time limits of orders, all in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OrderTimes {
    /// From the first write of a start to its acknowledgement.
    pub start_ack: u64,
    /// From an order's creation to its acknowledgement, where the start was not written.
    pub start_total: u64,
    /// From the written start to its repetition (AP3000) or the question for the hole's state (BKV, GN).
    pub start_resend: u64,
    /// From acknowledgement to charging, while the device is connected.
    pub no_load: u64,
    /// From interruption to the device's return.
    pub interrupted: u64,
    /// From a port that no longer charges to its settlement.
    pub settlement: u64,
    /// From the wish to stop to its acknowledgement.
    pub stop_total: u64,
    /// From one write of a stop to the next.
    pub stop_resend: u64,
    /// A charge may last this much longer than ordered.
    pub overrun: u64,
    /// A charge with an ordered duration may last at least this long.
    pub duration_least: u64,
    /// A charge without an ordered duration may last this long.
    pub duration_open: u64,
    /// Stops for an order that is final while its device still charges; a number, not a time.
    pub end_stops_max: u32,
}

impl Default for OrderTimes {
    fn default() -> Self {
        Self {
            start_ack: 10_000,
            start_total: 15_000,
            start_resend: 5_000,
            no_load: 10 * 60_000,
            interrupted: 60_000,
            settlement: 90_000,
            stop_total: 30_000,
            stop_resend: 10_000,
            overrun: 10 * 60_000,
            duration_least: 2 * 3_600_000,
            duration_open: 10 * 3_600_000,
            end_stops_max: 5,
        }
    }
}

impl OrderTimes {
    /// The longest a charge may last.
    pub fn duration_max(&self, mode: &ChargeMode) -> u64 {
        mode.minutes().map_or(self.duration_open, |minutes| {
            u64::from(minutes).saturating_mul(60_000).saturating_add(self.overrun).max(self.duration_least)
        })
    }
}
