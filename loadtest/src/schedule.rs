//! The times at which a scenario's things are to be done.
//!
//! Nothing here knows how long anything took: the nth connection, request or card has its time from the beginning, and whoever is
//! late does it late, at its old time. Several threads and processes each take every nth of the same sequence.

use crate::device::SECOND_US;
use crate::scenario::{Phase, Rude, Scenario};

/// One of several that share a sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// Which, from 0.
    pub nth: u32,
    /// Of how many.
    pub of: u32,
}

impl Part {
    /// All of it.
    pub const WHOLE: Self = Self { nth: 0, of: 1 };

    /// The part of this part that is `nth` of `of`.
    #[must_use]
    pub const fn part(self, nth: u32, of: u32) -> Self {
        Self { nth: self.nth * of + nth, of: self.of * of }
    }

    /// How many of `count` things belong to it.
    pub const fn share(self, count: u32) -> u32 {
        let of = if self.of == 0 { 1 } else { self.of };
        count / of + if self.nth < count % of { 1 } else { 0 }
    }

    /// How many of `count` belong to parts before it.
    pub fn before(self, count: u32) -> u32 {
        let of = self.of.max(1);
        count / of * self.nth + self.nth.min(count % of)
    }
}

/// Times of things that are to be done evenly.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    from_us: u64,
    per_s: f64,
    nth: u64,
    step: u64,
}

impl Pace {
    /// This part of `per_s` things a second from `from_us` on.
    pub fn new(from_us: u64, per_s: f64, part: Part) -> Self {
        Self { from_us, per_s, nth: u64::from(part.nth), step: u64::from(part.of.max(1)) }
    }

    /// When the next is due; after a day's worth of years never.
    pub fn due_us(&self) -> u64 {
        // Of the number, not by adding up: an interval that is no whole number of microseconds makes no drift.
        let after_us = self.nth as f64 * 1e6 / self.per_s;
        if after_us.is_finite() { self.from_us.saturating_add(after_us as u64) } else { u64::MAX }
    }

    /// The next is done.
    pub fn advance(&mut self) {
        self.nth += self.step;
    }

    /// The same, later.
    #[must_use]
    pub const fn shifted(mut self, by_us: u64) -> Self {
        self.from_us = self.from_us.saturating_add(by_us);
        self
    }
}

/// Something that is done at a rate, until the end of a phase.
#[derive(Clone, Copy, Debug)]
pub struct Stream<T> {
    /// When.
    pub pace: Pace,
    /// Not from here on.
    pub until_us: u64,
    /// What.
    pub what: T,
}

impl<T: Copy> Stream<T> {
    /// When it is to be done next; `u64::MAX` if never again.
    pub fn due_us(&self) -> u64 {
        let due_us = self.pace.due_us();
        if due_us < self.until_us { due_us } else { u64::MAX }
    }

    fn shifted(self, by_us: u64) -> Self {
        Self { pace: self.pace.shifted(by_us), until_us: self.until_us.saturating_add(by_us), ..self }
    }
}

/// What happens at devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Happening {
    /// A charger charges by a card without the gateway, and reports that.
    OfflineCharge,
    /// A card is swiped that asks the gateway.
    Card,
    /// An alarm goes off.
    Alarm,
}

/// What is asked of the API.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Question {
    /// A charge.
    Charge,
    /// A named command.
    Command,
    /// A device's status.
    Status,
    /// A page of orders.
    List,
}

/// Connections that are opened at a rate.
#[derive(Clone, Debug)]
pub struct Opening {
    /// When.
    pub pace: Pace,
    /// How many, of this part.
    pub devices: u32,
}

/// Connections that are closed, and opened again.
#[derive(Clone, Copy, Debug)]
pub struct Closing {
    /// When all of them are closed.
    pub at_us: u64,
    /// Share of them in percent.
    pub percent: u8,
    /// When they come back.
    pub back: Pace,
}

/// Connections that misbehave for a time.
#[derive(Clone, Copy, Debug)]
pub struct RudeSpan {
    /// From here on.
    pub from_us: u64,
    /// Until here.
    pub until_us: u64,
    /// How many, of this part.
    pub rude: Rude,
}

/// All times of one part of a scenario.
#[derive(Clone, Debug, Default)]
pub struct Timetable {
    /// New connections.
    pub openings: Vec<Opening>,
    /// Lost ones.
    pub closings: Vec<Closing>,
    /// What happens at devices.
    pub happenings: Vec<Stream<Happening>>,
    /// What the API is asked.
    pub questions: Vec<Stream<Question>>,
    /// Who misbehaves.
    pub rude: Vec<RudeSpan>,
}

impl Timetable {
    /// The times of a thread of a process. Things that are done at a rate are dealt out to all threads of all processes in turn,
    /// devices to processes and then to their threads.
    pub fn new(scenario: &Scenario, process: Part, thread: Part) -> Self {
        let mut timetable = Self::default();
        let mut connected = 0;
        for (phase, from_s, to_s) in scenario.spans() {
            timetable.add(scenario, phase, [process, thread], [from_s * SECOND_US, to_s * SECOND_US], &mut connected);
        }
        timetable
    }

    fn add(
        &mut self,
        scenario: &Scenario,
        phase: &Phase,
        [process, thread]: [Part; 2],
        [from_us, until_us]: [u64; 2],
        connected: &mut u32,
    ) {
        let part = process.part(thread.nth, thread.of);
        let share = |count: u32| thread.share(process.share(count));
        if let Some(connect) = phase.connect {
            // Of the sum: so that phases together connect just the devices that there are here.
            let before = share(*connected);
            *connected = connected.saturating_add(connect.devices);
            let devices = share(*connected) - before;
            self.openings.push(Opening { pace: Pace::new(from_us, connect.per_s, part), devices });
        }
        if let Some(lost) = phase.disconnect {
            let back = Pace::new(from_us + lost.away.us(), lost.per_s, part);
            self.closings.push(Closing { at_us: from_us, percent: lost.percent, back });
        }
        if phase.rude.count() > 0 {
            let Rude { garbage, half_frames, silent, slow_readers, slow_writers } = phase.rude;
            let [garbage, half_frames, silent, slow_readers, slow_writers] =
                [garbage, half_frames, silent, slow_readers, slow_writers].map(share);
            let rude = Rude { garbage, half_frames, silent, slow_readers, slow_writers };
            self.rude.push(RudeSpan { from_us, until_us, rude });
        }
        let share_per_s =
            f64::from(scenario.fleet.devices) * phase.charging_percent / 100.0 / phase.seconds().max(1) as f64;
        for (per_s, what) in [
            (phase.charges_per_s + share_per_s, Question::Charge),
            (phase.commands_per_s, Question::Command),
            (phase.reads_per_s, Question::Status),
            (phase.lists_per_s, Question::List),
        ] {
            if per_s > 0.0 {
                self.questions.push(Stream { pace: Pace::new(from_us, per_s, part), until_us, what });
            }
        }
        for (per_s, what) in [
            (phase.settlements_per_s, Happening::OfflineCharge),
            (phase.cards_per_s, Happening::Card),
            (phase.alarms_per_s, Happening::Alarm),
        ] {
            if per_s > 0.0 {
                self.happenings.push(Stream { pace: Pace::new(from_us, per_s, part), until_us, what });
            }
        }
    }

    /// The same, later.
    #[must_use]
    pub fn shifted(mut self, by_us: u64) -> Self {
        for opening in &mut self.openings {
            opening.pace = opening.pace.shifted(by_us);
        }
        for closing in &mut self.closings {
            closing.at_us = closing.at_us.saturating_add(by_us);
            closing.back = closing.back.shifted(by_us);
        }
        self.happenings.iter_mut().for_each(|stream| *stream = stream.shifted(by_us));
        self.questions.iter_mut().for_each(|stream| *stream = stream.shifted(by_us));
        for rude in &mut self.rude {
            (rude.from_us, rude.until_us) = (rude.from_us.saturating_add(by_us), rude.until_us.saturating_add(by_us));
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_share_one_even_sequence() {
        let mut times: Vec<u64> = Vec::new();
        for process in 0..3 {
            for thread in 0..2 {
                let part = Part { nth: process, of: 3 }.part(thread, 2);
                let mut pace = Pace::new(1_000_000, 3.0, part);
                for _ in 0..4 {
                    times.push(pace.due_us());
                    pace.advance();
                }
            }
        }
        times.sort_unstable();
        let expected: Vec<u64> = (0..24).map(|nth| 1_000_000 + (f64::from(nth) * 1e6 / 3.0) as u64).collect();
        assert_eq!(times, expected);
    }

    #[test]
    fn nothing_is_dealt_out_twice_or_forgotten() {
        for count in [0, 1, 5, 7, 100] {
            let parts = (0..7).map(|nth| Part { nth, of: 7 });
            let mut before = 0;
            for part in parts {
                assert_eq!(part.before(count), before);
                before += part.share(count);
            }
            assert_eq!(before, count);
        }
    }
}
