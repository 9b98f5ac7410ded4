//! Devices of a shard by id, four bytes each: the table holds slots, and the id is read where the slot is.
//!
//! Open addressing with linear probing, at least half empty. A device that goes closes the gap behind it, so nothing is left
//! that marks a deleted place.

use std::hash::BuildHasher as _;

use rustc_hash::FxBuildHasher;

use super::slots::{Key, Slots};
use crate::model::DeviceId;

/// What is found by its id.
pub(super) trait Identified {
    fn device_id(&self) -> DeviceId;
}

/// The table.
#[derive(Debug, Default)]
pub(super) struct Index {
    /// Slot + 1; 0: empty. A power of two of them.
    places: Box<[u32]>,
    len: usize,
}

const PLACES_MIN: usize = 16;

impl Index {
    /// The key of a device.
    pub(super) fn get<T: Identified>(&self, devices: &Slots<T>, device_id: DeviceId) -> Option<Key> {
        self.place_of(devices, device_id).map(|(_, key)| key)
    }

    /// Adds a device that is in its slot, and not in the table.
    pub(super) fn insert<T: Identified>(&mut self, devices: &Slots<T>, key: Key) {
        if (self.len + 1) * 2 > self.places.len() {
            self.grow(devices);
        }
        self.put(devices, key.slot);
        self.len += 1;
    }

    /// Takes a device out that is still in its slot.
    pub(super) fn remove<T: Identified>(&mut self, devices: &Slots<T>, device_id: DeviceId) {
        let Some((mut gap, _)) = self.place_of(devices, device_id) else { return };
        self.len -= 1;
        let mask = self.places.len() - 1;
        let mut place = gap;
        loop {
            place = (place + 1) & mask;
            let Some(wanted) = self.slot_at(place).map(|slot| self.first_place(devices, slot)) else { break };
            // One that is looked for from behind the gap on stays; one from before it, or from the gap itself, moves up.
            if (place.wrapping_sub(wanted) & mask) >= (place.wrapping_sub(gap) & mask) {
                self.places.swap(gap, place);
                gap = place;
            }
        }
        if let Some(gap) = self.places.get_mut(gap) {
            *gap = 0;
        }
    }

    fn place_of<T: Identified>(&self, devices: &Slots<T>, device_id: DeviceId) -> Option<(usize, Key)> {
        let mut place = self.begin(device_id)?;
        while let Some(slot) = self.slot_at(place) {
            if let Some((key, device)) = devices.in_slot(slot)
                && device.device_id() == device_id
            {
                return Some((place, key));
            }
            place = (place + 1) & (self.places.len() - 1);
        }
        None
    }

    fn slot_at(&self, place: usize) -> Option<u32> {
        self.places.get(place)?.checked_sub(1)
    }

    /// Where a device is looked for first; `None`: the table has no places yet.
    fn begin(&self, device_id: DeviceId) -> Option<usize> {
        let mask = self.places.len().checked_sub(1)?;
        Some(FxBuildHasher.hash_one(device_id) as usize & mask)
    }

    fn first_place<T: Identified>(&self, devices: &Slots<T>, slot: u32) -> usize {
        devices.in_slot(slot).and_then(|(_, device)| self.begin(device.device_id())).unwrap_or(0)
    }

    fn put<T: Identified>(&mut self, devices: &Slots<T>, slot: u32) {
        let mut place = self.first_place(devices, slot);
        while self.slot_at(place).is_some() {
            place = (place + 1) & (self.places.len() - 1);
        }
        if let Some(place) = self.places.get_mut(place) {
            *place = slot + 1;
        }
    }

    fn grow<T: Identified>(&mut self, devices: &Slots<T>) {
        let places = vec![0; (self.places.len() * 2).max(PLACES_MIN)].into_boxed_slice();
        for slot in std::mem::replace(&mut self.places, places).iter().filter_map(|slot| slot.checked_sub(1)) {
            self.put(devices, slot);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use crate::protocol::ap3000::PhyId;

    impl Identified for DeviceId {
        fn device_id(&self) -> DeviceId {
            *self
        }
    }

    /// Beside a map of the standard library, over thousands of devices that come and go.
    #[test]
    fn finds_what_a_map_finds() {
        let (mut devices, mut index, mut map) = (Slots::default(), Index::default(), HashMap::new());
        let mut state = 1_u32;
        for step in 0..60_000 {
            // A plain generator: the same devices in each run.
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let limit = if step < 30_000 { 4_000 } else { 60 };
            let id = DeviceId::Ap3000(PhyId(((state >> 16) % limit).to_le_bytes()));
            assert_eq!(index.get(&devices, id), map.get(&id).copied());
            match map.remove(&id) {
                Some(key) => {
                    index.remove(&devices, id);
                    devices.remove(key);
                }
                None => {
                    let key = devices.insert(id);
                    index.insert(&devices, key);
                    map.insert(id, key);
                }
            }
            assert_eq!(index.len, map.len());
        }
        assert!(map.iter().all(|(id, key)| index.get(&devices, *id) == Some(*key)));
        assert_eq!(index.places.iter().filter(|place| **place != 0).count(), map.len());
    }
}
