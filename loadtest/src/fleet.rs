//! Which devices are simulated, and what others may know about them while they run.
//!
//! Ids follow from the index alone, so every run has the same devices. The engine notes which ports charge, the API
//! threads reserve the ones they are about to charge; no lock, because each word has one writer that matters and a stale
//! read only costs a refused request.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

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
}

impl Protocol {
    /// Whether the device with this index is a charger.
    pub const fn is_ap3000(self, index: u32) -> bool {
        match self {
            Self::Ap3000 => true,
            Self::Bkv => false,
            Self::Mix => index.is_multiple_of(2),
        }
    }
}

/// The devices of a run.
#[derive(Debug)]
pub struct Fleet {
    protocol: Protocol,
    ports: u16,
    holes: u16,
    devices: Box<[Shared]>,
}

/// Bit i is port i + 1.
#[derive(Debug, Default)]
struct Shared {
    /// Ports that charge, and whether the device is registered.
    state: AtomicU32,
    reserved: AtomicU32,
}

impl Fleet {
    /// `devices` devices: chargers with `ports` ports, gateways with `sockets` sockets (0 = standalone).
    pub fn new(protocol: Protocol, devices: u32, ports: u8, sockets: u8) -> Self {
        let holes = u16::from(sockets.max(1)) * 2;
        Self { protocol, ports: u16::from(ports), holes, devices: (0..devices).map(|_| Shared::default()).collect() }
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
        self.devices.get(usize::try_from(index).ok()?)
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
            let index = u32::try_from((random >> 16).wrapping_add(attempt * 7919) % devices).ok()?;
            let port_no = u16::try_from(random.wrapping_add(attempt) % u64::from(self.ports(index))).ok()? + 1;
            let (shared, bit) = (self.shared(index)?, 1 << (port_no - 1));
            let state = shared.state.load(Relaxed);
            let free = state & REGISTERED != 0 && state & bit == 0;
            (free && shared.reserved.fetch_or(bit, Relaxed) & bit == 0).then_some((index, port_no))
        })
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
}
