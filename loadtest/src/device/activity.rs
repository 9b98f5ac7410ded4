//! What happens at devices without the server: cards are swiped, alarms go off.
//!
//! Each device draws its own moments from the seed, so a run repeats and the rate of a fleet is even.

use std::fmt;

use chargegate::protocol::ap3000::codes::{AlarmType, PortState};
use chargegate::protocol::bkv::HoleStatus;

use super::ap3000::{Ap3000Device, Card, HostDevice};
use super::bkv::{BkvDevice, Trouble};
use super::charge::draw;
use super::ledger::Ledger;
use super::{Device, Event, NEVER, earliest};
use crate::schedule::Happening;

/// Printed number of the first simulated card; BKV shows it with leading zeros.
pub const FIRST_CARD: u32 = 1_000_000_000;
/// Most simulated cards.
pub const CARDS_MAX: u32 = 1_000_000;
/// Seconds of a charge that a card begins without the server.
const OFFLINE_S: u32 = 600;

/// How much happens at a device.
#[derive(Clone, Copy, Debug)]
pub struct Activity {
    /// Mean time between two cards; `u64::MAX`: never.
    pub swipe_every_us: u64,
    /// Share of the cards that charge without the server, 0..=100. BKV gateways cannot do that and ask.
    pub offline_percent: u8,
    /// Number of different cards, at most [`CARDS_MAX`].
    pub cards: u32,
    /// Mean time between two alarms; `u64::MAX`: never.
    pub alarm_every_us: u64,
}

impl Default for Activity {
    /// Nothing happens.
    fn default() -> Self {
        Self { swipe_every_us: NEVER, offline_percent: 0, cards: 100, alarm_every_us: NEVER }
    }
}

/// A device at which something can happen. `random` picks the port.
pub trait Place: Device {
    /// Somebody holds the card with this printed number to a free port.
    fn swipe_card(&mut self, now_us: u64, random: u64, card: u32, offline: bool);

    /// An alarm goes off.
    fn raise_alarm(&mut self, now_us: u64, random: u64);
}

/// The `random`th of those that `free` finds.
fn pick<T>(random: u64, free: impl Iterator<Item = T>) -> Option<T> {
    let mut free: Vec<T> = free.collect();
    let count = u64::try_from(free.len()).ok().filter(|count| *count > 0)?;
    Some(free.swap_remove(usize::try_from(random % count).ok()?))
}

impl Place for Ap3000Device {
    fn swipe_card(&mut self, now_us: u64, random: u64, card: u32, offline: bool) {
        let free = |port: &u8| matches!(self.port_state(*port), Some(PortState::PLUGGED | PortState::FULL));
        let Some(port) = pick(random, (0..super::ap3000::PORTS_MAX).filter(free)) else { return };
        let card = Card::new(card.to_be_bytes());
        if offline {
            self.offline_charge(now_us, &card, port, Some(OFFLINE_S));
        } else {
            self.swipe(now_us, &card, port);
        }
    }

    fn raise_alarm(&mut self, now_us: u64, random: u64) {
        if let Some(alarm) = pick(random, AlarmType::ALL.iter()) {
            self.alarm(now_us, *alarm, 0, None);
        }
    }
}

impl Place for BkvDevice {
    fn swipe_card(&mut self, now_us: u64, random: u64, card: u32, _offline: bool) {
        let holes = self.sockets().flat_map(|(socket, _)| [(socket, 0), (socket, 1)]);
        let free = holes.filter(|(socket, hole)| self.hole_status(*socket, *hole) == Some(HoleStatus(0x80)));
        if let Some((socket, hole)) = pick(random, free) {
            self.swipe(now_us, printed(card), socket, hole);
        }
    }

    fn raise_alarm(&mut self, now_us: u64, random: u64) {
        if let Some((socket, _)) = pick(random, self.sockets()) {
            self.exception(now_us, Trouble::of_socket(socket, 8));
        }
    }
}

impl Place for HostDevice {
    fn swipe_card(&mut self, now_us: u64, random: u64, card: u32, offline: bool) {
        if let Some(sub) = self.pick_sub(random) {
            sub.swipe_card(now_us, random >> 8, card, offline);
        }
    }

    fn raise_alarm(&mut self, now_us: u64, random: u64) {
        if let Some(sub) = self.pick_sub(random) {
            sub.raise_alarm(now_us, random >> 8);
        }
    }
}

impl HostDevice {
    fn pick_sub(&mut self, random: u64) -> Option<&mut Ap3000Device> {
        let at = pick(random, 0..self.sub_devices().count())?;
        self.sub_device(at)
    }
}

/// A number as twelve decimal digits.
fn printed(number: u32) -> [u8; 6] {
    let (mut digits, mut rest) = ([0; 6], number);
    for byte in digits.iter_mut().rev() {
        let pair = u8::try_from(rest % 100).unwrap_or_default();
        *byte = ((pair / 10) << 4) | (pair % 10);
        rest /= 100;
    }
    digits
}

/// A device at which things happen.
#[derive(Debug)]
pub struct Active<D> {
    device: D,
    activity: Activity,
    seed: [u64; 2],
    /// Things that happened, for the next draw.
    nth: u64,
    swipe_us: u64,
    alarm_us: u64,
}

impl<D: Place> Active<D> {
    /// `device`, with its own draws from `seed` by `index`. The first things happen within twice the mean time.
    pub fn new(device: D, activity: Activity, seed: u64, index: u32) -> Self {
        let mut active =
            Self { device, activity, seed: [seed, u64::from(index)], nth: 0, swipe_us: NEVER, alarm_us: NEVER };
        (active.swipe_us, active.alarm_us) =
            (active.next(0, activity.swipe_every_us), active.next(0, activity.alarm_every_us));
        active
    }

    fn random(&mut self) -> u64 {
        self.nth += 1;
        draw(self.seed[0], &[self.seed[1], self.nth, 0x6163_7476])
    }

    /// A moment after `now_us`, on average `every_us` away.
    fn next(&mut self, now_us: u64, every_us: u64) -> u64 {
        if every_us == NEVER {
            return NEVER;
        }
        now_us.saturating_add(1 + self.random() % every_us.saturating_mul(2).max(1))
    }

    fn happen(&mut self, now_us: u64) {
        if self.swipe_us <= now_us {
            self.swipe_us = self.next(now_us, self.activity.swipe_every_us);
            let (random, who, how) = (self.random(), self.random(), self.random());
            let cards = u64::from(self.activity.cards.clamp(1, CARDS_MAX));
            let card = FIRST_CARD + u32::try_from(who % cards).unwrap_or_default();
            self.device.swipe_card(now_us, random, card, how % 100 < u64::from(self.activity.offline_percent));
        }
        if self.alarm_us <= now_us {
            self.alarm_us = self.next(now_us, self.activity.alarm_every_us);
            let random = self.random();
            self.device.raise_alarm(now_us, random);
        }
    }
}

impl<D: Place> Device for Active<D> {
    fn connected(&mut self, now_us: u64) {
        self.device.connected(now_us);
    }

    fn receive(&mut self, now_us: u64, bytes: &[u8]) {
        self.device.receive(now_us, bytes);
    }

    fn timeout(&mut self, now_us: u64) {
        self.device.timeout(now_us);
        self.happen(now_us);
    }

    fn poll_output(&mut self, out: &mut Vec<u8>) {
        self.device.poll_output(out);
    }

    fn poll_timeout(&self) -> Option<u64> {
        let own = self.swipe_us.min(self.alarm_us);
        earliest([own, self.device.poll_timeout().unwrap_or(NEVER)])
    }

    fn disconnected(&mut self, now_us: u64) {
        self.device.disconnected(now_us);
    }

    fn poll_event(&mut self) -> Option<Event> {
        self.device.poll_event()
    }

    fn poll_close(&mut self) -> bool {
        self.device.poll_close()
    }

    fn reads(&self) -> bool {
        self.device.reads()
    }

    fn quieten(&mut self) {
        (self.swipe_us, self.alarm_us) = (NEVER, NEVER);
        self.device.quieten();
    }

    fn happen(&mut self, now_us: u64, what: Happening, random: u64) {
        let cards = u64::from(self.activity.cards.clamp(1, CARDS_MAX));
        let card = FIRST_CARD + u32::try_from((random >> 32) % cards).unwrap_or_default();
        match what {
            Happening::OfflineCharge => self.device.swipe_card(now_us, random, card, true),
            Happening::Card => self.device.swipe_card(now_us, random, card, false),
            Happening::Alarm => self.device.raise_alarm(now_us, random),
        }
    }

    fn ledgers(&self, each: &mut dyn FnMut(&dyn fmt::Display, &Ledger)) {
        self.device.ledgers(each);
    }
}
