//! Slots with generations: a late key for a freed slot misses, it never hits the successor.

use crate::memory::MAPPED_BYTES;

/// A slot and the generation it had when the key was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Key {
    pub(super) slot: u32,
    pub(super) generation: u32,
}

#[derive(Debug)]
struct Slot<T> {
    generation: u32,
    value: Option<T>,
}

/// Values kept in chunks, so that growing never copies what is there and never doubles the memory.
///
/// A chunk is as large as the allocator needs it to map it by itself: what lives for long then does not lie between what comes and
/// goes, which could not be given back. Of a chunk only the pages that hold slots are touched.
#[derive(Debug)]
pub(super) struct Slots<T> {
    /// Each has room for [`Self::CHUNK`] and is never moved; all but the last are full.
    chunks: Vec<Vec<Slot<T>>>,
    /// Slots that were used and are empty.
    free: Vec<u32>,
    len: usize,
}

impl<T> Default for Slots<T> {
    fn default() -> Self {
        Self { chunks: Vec::new(), free: Vec::new(), len: 0 }
    }
}

impl<T> Slots<T> {
    /// Slots of a chunk.
    const CHUNK: usize = (MAPPED_BYTES / size_of::<Slot<T>>()).next_power_of_two();

    pub(super) const fn len(&self) -> usize {
        self.len
    }

    #[inline]
    fn slot(&self, slot: u32) -> Option<&Slot<T>> {
        self.chunks.get(slot as usize / Self::CHUNK)?.get(slot as usize % Self::CHUNK)
    }

    #[inline]
    fn slot_mut(&mut self, slot: u32) -> Option<&mut Slot<T>> {
        self.chunks.get_mut(slot as usize / Self::CHUNK)?.get_mut(slot as usize % Self::CHUNK)
    }

    pub(super) fn insert(&mut self, value: T) -> Key {
        self.len += 1;
        if let Some(slot) = self.free.pop()
            && let Some(place) = self.slot_mut(slot)
        {
            place.value = Some(value);
            return Key { slot, generation: place.generation };
        }
        let place = Slot { generation: 1, value: Some(value) };
        let slots = self.slots();
        match self.chunks.last_mut() {
            Some(last) if last.len() < Self::CHUNK => last.push(place),
            _ => {
                let mut chunk = Vec::with_capacity(Self::CHUNK);
                chunk.push(place);
                self.chunks.push(chunk);
            }
        }
        Key { slot: u32::try_from(slots).unwrap_or(u32::MAX), generation: 1 }
    }

    /// Slots that are, or were, used.
    fn slots(&self) -> usize {
        self.chunks.last().map_or(0, |last| (self.chunks.len() - 1) * Self::CHUNK + last.len())
    }

    #[inline]
    pub(super) fn get(&self, key: Key) -> Option<&T> {
        self.slot(key.slot).filter(|slot| slot.generation == key.generation)?.value.as_ref()
    }

    /// What is in a slot, with its key.
    pub(super) fn in_slot(&self, slot: u32) -> Option<(Key, &T)> {
        let place = self.slot(slot)?;
        Some((Key { slot, generation: place.generation }, place.value.as_ref()?))
    }

    #[inline]
    pub(super) fn get_mut(&mut self, key: Key) -> Option<&mut T> {
        self.slot_mut(key.slot).filter(|slot| slot.generation == key.generation)?.value.as_mut()
    }

    pub(super) fn remove(&mut self, key: Key) -> Option<T> {
        let slot = self.slot_mut(key.slot).filter(|slot| slot.generation == key.generation)?;
        let value = slot.value.take()?;
        slot.generation = slot.generation.wrapping_add(1).max(1);
        self.free.push(key.slot);
        self.len -= 1;
        Some(value)
    }

    /// What is in `count` slots from `from` on, and the slot behind them; `None`: there are no more.
    pub(super) fn range(&self, from: u32, count: u32) -> (impl Iterator<Item = (Key, &T)>, Option<u32>) {
        let until = from.saturating_add(count);
        let more = (until as usize) < self.slots();
        let values = (from..until).filter_map(|index| {
            let slot = self.slot(index)?;
            Some((Key { slot: index, generation: slot.generation }, slot.value.as_ref()?))
        });
        (values, more.then_some(until))
    }

    pub(super) fn keys(&self) -> impl Iterator<Item = Key> + '_ {
        self.chunks
            .iter()
            .flatten()
            .enumerate()
            .filter(|(_, slot)| slot.value.is_some())
            .map(|(index, slot)| Key { slot: u32::try_from(index).unwrap_or(u32::MAX), generation: slot.generation })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_late_key_misses_the_successor() {
        let mut slots = Slots::default();
        let first = slots.insert('a');
        assert_eq!(slots.remove(first), Some('a'));
        let second = slots.insert('b');
        assert_eq!(first.slot, second.slot);
        assert_eq!(slots.get(first), None);
        assert_eq!(slots.remove(first), None);
        assert_eq!(slots.get(second), Some(&'b'));
        assert_eq!(slots.len(), 1);
    }

    #[test]
    fn chunks_grow_and_keys_list_what_is_there() {
        // Large ones: some chunks of them.
        let mut slots = Slots::<[u64; 200]>::default();
        let keys: Vec<_> = (0..1000).map(|value| slots.insert([value; 200])).collect();
        assert!(slots.chunks.len() > 3);
        assert!(slots.chunks.iter().all(|chunk| chunk.capacity() == Slots::<[u64; 200]>::CHUNK), "none was moved");
        for key in keys.iter().step_by(2) {
            slots.remove(*key);
        }
        assert_eq!(slots.keys().count(), 500);
        assert!(slots.keys().all(|key| slots.get(key).is_some_and(|value| value[0] % 2 == 1)));
        let (mut paged, mut next) = (Vec::new(), Some(0));
        while let Some(from) = next {
            let (values, behind) = slots.range(from, 300);
            paged.extend(values.map(|(key, _)| key));
            next = behind;
        }
        assert!(paged.iter().copied().eq(slots.keys()));
    }
}
