//! Which devices are simulated, and what others may know about them while they run.
//!
//! Ids follow from the index alone, so every run has the same devices. The engine notes which ports charge, the API
//! threads reserve the ones they are about to charge; no lock, because each word has one writer that matters and a stale
//! read only costs a refused request.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

use crate::device::{ap3000, bkv};

/// Ports of a device that can be told apart here; higher ones are never chosen for a charge.
const PORTS_MAX: u16 = 31;
const REGISTERED: u32 = 1 << 31;

/// What the devices speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Protocol {
    /// Chargers.
    Ap3000,
    /// Gateways.
    Bkv,
    /// Chargers at even indexes, gateways at odd ones.
    Mix,
    /// This percentage of chargers, the others gateways, mixed.
    #[value(skip)]
    Share(u8),
}

impl Protocol {
    /// Whether the device with this index is a charger.
    pub const fn is_ap3000(self, index: u32) -> bool {
        match self {
            Self::Ap3000 => true,
            Self::Bkv => false,
            Self::Mix => index.is_multiple_of(2),
            // 37 and 100 have no common divisor: each hundred devices has the share, spread.
            Self::Share(percent) => (index % 100) * 37 % 100 < percent as u32,
        }
    }
}

/// The devices of a run.
#[derive(Debug)]
pub struct Fleet {
    protocol: Protocol,
    ports: u16,
    holes: u16,
    /// Index of the first device.
    first: u32,
    devices: Box<[Shared]>,
}

/// Bit i is port i + 1.
#[derive(Debug, Default)]
struct Shared {
    /// Ports that charge, and whether the device is registered.
    state: AtomicU32,
    reserved: AtomicU32,
    /// When the first command came since one was expected; 0: none did.
    command_us: AtomicU64,
}

impl Fleet {
    /// `devices` devices: chargers with `ports` ports, gateways with `sockets` sockets (0 = standalone).
    pub fn new(protocol: Protocol, devices: u32, ports: u8, sockets: u8) -> Self {
        let holes = u16::from(sockets.max(1)) * 2;
        let devices = (0..devices).map(|_| Shared::default()).collect();
        Self { protocol, ports: u16::from(ports), holes, first: 0, devices }
    }

    /// The same number of devices from this index on.
    #[must_use]
    pub fn from_index(self, first: u32) -> Self {
        Self { first, ..self }
    }

    /// Whether a device is a charger.
    pub const fn is_ap3000(&self, index: u32) -> bool {
        self.protocol.is_ap3000(index)
    }

    /// The id under which the API knows a device.
    pub fn device_id(&self, index: u32) -> String {
        if self.protocol.is_ap3000(index) {
            ap3000::phy_id(index).to_string()
        } else {
            bkv::gateway_id(index).to_string()
        }
    }

    fn ports(&self, index: u32) -> u16 {
        let ports = if self.protocol.is_ap3000(index) { self.ports } else { self.holes };
        ports.min(PORTS_MAX)
    }

    fn shared(&self, index: u32) -> Option<&Shared> {
        self.devices.get(usize::try_from(index.checked_sub(self.first)?).ok()?)
    }

    /// Notes that a device is registered, or no longer.
    pub fn set_registered(&self, index: u32, registered: bool) {
        self.set(index, REGISTERED, registered);
    }

    /// Notes that a port (counted from 1) charges, or no longer.
    pub fn set_charging(&self, index: u32, port_no: u16, charging: bool) {
        if (1..=PORTS_MAX).contains(&port_no) {
            self.set(index, 1 << (port_no - 1), charging);
        }
    }

    fn set(&self, index: u32, bit: u32, on: bool) {
        let Some(shared) = self.shared(index) else { return };
        if on {
            shared.state.fetch_or(bit, Relaxed);
        } else {
            shared.state.fetch_and(!bit, Relaxed);
        }
    }

    /// Reserves a free port of a registered device, near a random place; `None` if the few places tried are taken.
    pub fn reserve(&self, random: u64) -> Option<(u32, u16)> {
        let devices = u64::try_from(self.devices.len()).ok().filter(|devices| *devices > 0)?;
        (0..32).find_map(|attempt: u64| {
            let index = self.first + u32::try_from((random >> 16).wrapping_add(attempt * 7919) % devices).ok()?;
            let port_no = u16::try_from(random.wrapping_add(attempt) % u64::from(self.ports(index))).ok()? + 1;
            let (shared, bit) = (self.shared(index)?, 1 << (port_no - 1));
            let state = shared.state.load(Relaxed);
            let free = state & REGISTERED != 0 && state & bit == 0;
            (free && shared.reserved.fetch_or(bit, Relaxed) & bit == 0).then_some((index, port_no))
        })
    }

    /// Reserves a whole registered device, near a random place; `None` if the few places tried are taken.
    pub fn reserve_device(&self, random: u64) -> Option<u32> {
        let devices = u64::try_from(self.devices.len()).ok().filter(|devices| *devices > 0)?;
        (0..32).find_map(|attempt: u64| {
            let index = self.first + u32::try_from((random >> 16).wrapping_add(attempt * 7919) % devices).ok()?;
            let shared = self.shared(index)?;
            let registered = shared.state.load(Relaxed) & REGISTERED != 0;
            let free = || shared.reserved.compare_exchange(0, u32::MAX, Relaxed, Relaxed).is_ok();
            (registered && free()).then_some(index)
        })
    }

    /// A registered device near a random place; `None` if the few places tried have none.
    pub fn registered(&self, random: u64) -> Option<u32> {
        let devices = u64::try_from(self.devices.len()).ok().filter(|devices| *devices > 0)?;
        (0..32).find_map(|attempt: u64| {
            let index = self.first + u32::try_from((random >> 16).wrapping_add(attempt * 7919) % devices).ok()?;
            (self.shared(index)?.state.load(Relaxed) & REGISTERED != 0).then_some(index)
        })
    }

    /// Gives a reserved device back.
    pub fn release_device(&self, index: u32) {
        if let Some(shared) = self.shared(index) {
            shared.reserved.store(0, Relaxed);
        }
    }

    /// The time of the next command to a device is to be noted.
    pub fn expect_command(&self, index: u32) {
        if let Some(shared) = self.shared(index) {
            shared.command_us.store(0, Relaxed);
        }
    }

    /// Notes when a command came.
    pub fn note_command(&self, index: u32, now_us: u64) {
        if let Some(shared) = self.shared(index)
            && shared.command_us.load(Relaxed) == 0
        {
            shared.command_us.store(now_us.max(1), Relaxed);
        }
    }

    /// When the expected command came.
    pub fn command_us(&self, index: u32) -> Option<u64> {
        Some(self.shared(index)?.command_us.load(Relaxed)).filter(|us| *us > 0)
    }

    /// Gives a reserved port back.
    pub fn release(&self, index: u32, port_no: u16) {
        if let Some(shared) = self.shared(index) {
            shared.reserved.fetch_and(!(1 << port_no.saturating_sub(1).min(PORTS_MAX)), Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_follow_from_the_index() {
        let fleet = Fleet::new(Protocol::Mix, 4, 2, 0);
        assert_eq!(fleet.device_id(0), "c0e1e404", "printed number 15000000");
        assert_eq!(fleet.device_id(1), "82200520000001");
        assert_eq!(fleet.device_id(ap3000::DEVICES_MAX - 2), "feffff04");
        assert_eq!(Fleet::new(Protocol::Bkv, 1, 2, 0).device_id(12_345), "82200520012345");
    }

    #[test]
    fn only_free_ports_of_registered_devices_are_reserved() {
        let fleet = Fleet::new(Protocol::Ap3000, 1, 2, 0);
        assert_eq!(fleet.reserve(0), None);
        fleet.set_registered(0, true);
        fleet.set_charging(0, 1, true);
        assert_eq!(fleet.reserve(0), Some((0, 2)));
        assert_eq!(fleet.reserve(0), None);
        fleet.release(0, 2);
        fleet.set_charging(0, 1, false);
        assert_eq!(fleet.reserve(0), Some((0, 1)));
    }

    #[test]
    fn a_fleet_may_begin_at_any_index() {
        let fleet = Fleet::new(Protocol::Ap3000, 2, 1, 0).from_index(7);
        assert_eq!(fleet.device_id(7), Fleet::new(Protocol::Ap3000, 8, 1, 0).device_id(7));
        fleet.set_registered(8, true);
        assert_eq!(fleet.reserve_device(0), Some(8));
        assert_eq!(fleet.reserve_device(0), None);
        assert_eq!(fleet.reserve(0), None, "its ports are reserved with it");
        fleet.release_device(8);
        assert_eq!(fleet.reserve(0), Some((8, 1)));
    }

    #[test]
    fn the_first_command_after_it_was_expected_counts() {
        let fleet = Fleet::new(Protocol::Ap3000, 1, 1, 0);
        fleet.note_command(0, 5);
        fleet.expect_command(0);
        assert_eq!(fleet.command_us(0), None);
        fleet.note_command(0, 7);
        fleet.note_command(0, 9);
        assert_eq!(fleet.command_us(0), Some(7));
    }
}
