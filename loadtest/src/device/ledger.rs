//! What a device knows about its charges: each one begun, how it ended, and whether the server took the record.
//!
//! Totals are those of the wire, in its rounding, so that they can be compared with what the server stored to the last
//! digit. The ledger is the tester's, not the device's: it survives reboots and a cleared storage.

use std::collections::VecDeque;

use super::charge::End;

/// Charges kept per device; older ones are forgotten, and [`Ledger::begun`] still counts them.
pub const CHARGES_MAX: usize = 1024;

/// By what server and device name a charge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reference {
    /// AP3000: the order number.
    Order([u8; 16]),
    /// BKV: the business number, which repeats over time.
    Business(u16),
}

/// The card of a charge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CardNumber {
    /// AP3000: the UID.
    Uid([u8; 4]),
    /// AP3000: the number of a card whose UID is not its number.
    Long([u8; 16]),
    /// BKV: the printed number in BCD.
    Printed([u8; 6]),
}

/// How a charge was started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Start {
    /// By the server.
    Online,
    /// By the server, after a card was swiped.
    Card(CardNumber),
    /// By a card, without the server.
    OfflineCard(CardNumber),
    /// By this verification code, without the server.
    Code(u32),
}

/// Where a charge stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum State {
    /// Power is on.
    Running,
    /// It ended, and the server has not acknowledged the record.
    Unacknowledged,
    /// The server acknowledged the record; the device forgot it.
    Acknowledged,
    /// The record was deleted with the rest of the storage, and the server never acknowledged it.
    Erased,
}

/// A charge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its name on the wire.
    pub reference: Reference,
    /// The API's number of its port, from 1.
    pub port_no: u16,
    /// How it was started.
    pub start: Start,
    /// When it began, by the driver's clock.
    pub started_us: u64,
    /// When it ended, by the driver's clock.
    pub ended_us: Option<u64>,
    /// Seconds as reported at the end (BKV: whole minutes); 0 while it runs.
    pub duration_s: u32,
    /// Wh as reported at the end (AP3000: multiples of 10); 0 while it runs.
    pub energy_wh: u32,
    /// What it cost in 0.01 yuan, where the device computes that (BKV power tiers and fees).
    pub spent_cent: Option<u32>,
    /// Why it ended.
    pub end: Option<End>,
    /// That reason as reported: AP3000 the stop reason, BKV the status byte.
    pub end_code: Option<u8>,
    /// Where it stands.
    pub state: State,
}

/// Totals at the end of a charge.
#[derive(Clone, Copy, Debug)]
pub(super) struct Totals {
    pub(super) duration_s: u32,
    pub(super) energy_wh: u32,
    pub(super) spent_cent: Option<u32>,
    pub(super) end_code: u8,
}

/// The charges of a device, oldest first.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    entries: VecDeque<Entry>,
    forgotten: u64,
}

impl Ledger {
    /// The charges, oldest first; the newest [`CHARGES_MAX`].
    pub fn entries(&self) -> impl DoubleEndedIterator<Item = &Entry> + ExactSizeIterator {
        self.entries.iter()
    }

    /// The newest charge with this name.
    pub fn find(&self, reference: Reference) -> Option<&Entry> {
        self.entries.iter().rev().find(|entry| entry.reference == reference)
    }

    /// The newest charge.
    pub fn last(&self) -> Option<&Entry> {
        self.entries.back()
    }

    /// Charges begun so far.
    pub fn begun(&self) -> u64 {
        self.forgotten + u64::try_from(self.entries.len()).unwrap_or_default()
    }

    /// Charges in this state.
    pub fn count(&self, state: State) -> usize {
        self.entries.iter().filter(|entry| entry.state == state).count()
    }

    /// Notes a charge that begins, and gives the number under which it is found again.
    pub(super) fn begin(&mut self, reference: Reference, port_no: u16, start: Start, started_us: u64) -> u64 {
        if self.entries.len() == CHARGES_MAX {
            self.entries.pop_front();
            self.forgotten += 1;
        }
        self.entries.push_back(Entry {
            reference,
            port_no,
            start,
            started_us,
            ended_us: None,
            duration_s: 0,
            energy_wh: 0,
            spent_cent: None,
            end: None,
            end_code: None,
            state: State::Running,
        });
        self.begun() - 1
    }

    pub(super) fn end(&mut self, number: u64, ended_us: u64, end: End, totals: Totals) {
        if let Some(entry) = self.entry(number) {
            entry.ended_us = Some(ended_us);
            (entry.duration_s, entry.energy_wh) = (totals.duration_s, totals.energy_wh);
            (entry.spent_cent, entry.end_code) = (totals.spent_cent, Some(totals.end_code));
            entry.end = Some(end);
            entry.state = State::Unacknowledged;
        }
    }

    pub(super) fn set(&mut self, number: u64, state: State) {
        if let Some(entry) = self.entry(number) {
            entry.state = state;
        }
    }

    fn entry(&mut self, number: u64) -> Option<&mut Entry> {
        self.entries.get_mut(usize::try_from(number.checked_sub(self.forgotten)?).ok()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_are_kept_and_found_by_number() {
        let mut ledger = Ledger::default();
        let first = ledger.begin(Reference::Business(0), 1, Start::Online, 5);
        for number in 1..=1024 {
            ledger.begin(Reference::Business(number), 1, Start::Online, 5);
        }
        assert_eq!((ledger.entries().len(), ledger.begun()), (CHARGES_MAX, 1025));
        ledger.set(first, State::Erased);
        assert_eq!(ledger.count(State::Running), CHARGES_MAX, "a forgotten charge is changed in no other's place");
        let totals = Totals { duration_s: 60, energy_wh: 10, spent_cent: None, end_code: 3 };
        ledger.end(1024, 9, End::Duration, totals);
        let last = ledger.find(Reference::Business(1024)).unwrap();
        assert_eq!((last.duration_s, last.state, last.ended_us), (60, State::Unacknowledged, Some(9)));
        assert_eq!(ledger.entries().next().unwrap().reference, Reference::Business(1));
    }
}
