//! A list that is nearly always empty, and costs one word while it is.
//!
//! What most devices never have (orders) is kept in these: thirty thousand empty vectors would
//! be most of a megabyte. The memory goes back with the last element.

use std::ops::{Deref, DerefMut};

use super::slots::Key;

/// As a `Vec`, of one word.
#[derive(Clone, Debug)]
pub(super) struct Few<T>(#[expect(clippy::box_collection, reason = "one word while it is empty")] Option<Box<Vec<T>>>);

impl<T> Default for Few<T> {
    fn default() -> Self {
        Self(None)
    }
}

impl<T> Deref for Few<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        self.0.as_deref().map_or(&[], Vec::as_slice)
    }
}

impl<T> DerefMut for Few<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        self.0.as_deref_mut().map_or(&mut [], Vec::as_mut_slice)
    }
}

impl<T> Few<T> {
    /// Appends a value.
    pub(super) fn push(&mut self, value: T) {
        self.0.get_or_insert_default().push(value);
    }

    /// Keeps those that `keep` says.
    pub(super) fn retain(&mut self, keep: impl FnMut(&T) -> bool) {
        if let Some(values) = &mut self.0 {
            values.retain(keep);
            self.tidy();
        }
    }

    fn tidy(&mut self) {
        if self.is_empty() {
            self.0 = None;
        }
    }
}

/// Keys of which there is nearly always one, in two words.
#[derive(Debug, Default)]
pub(super) enum Keys {
    #[default]
    None,
    One(Key),
    #[expect(clippy::box_collection, reason = "one word beside the key")]
    Many(Box<Vec<Key>>),
}

const _: () = assert!(size_of::<Keys>() == 16, "what the devices of a connection take of it, bytes");

impl Deref for Keys {
    type Target = [Key];

    fn deref(&self) -> &[Key] {
        match self {
            Self::None => &[],
            Self::One(key) => std::slice::from_ref(key),
            Self::Many(keys) => keys,
        }
    }
}

impl Keys {
    /// Appends a key.
    pub(super) fn push(&mut self, key: Key) {
        match self {
            Self::None => *self = Self::One(key),
            Self::One(first) => *self = Self::Many(Box::new(vec![*first, key])),
            Self::Many(keys) => keys.push(key),
        }
    }

    /// Keeps those that `keep` says.
    pub(super) fn retain(&mut self, mut keep: impl FnMut(&Key) -> bool) {
        match self {
            Self::None => {}
            Self::One(key) => {
                if !keep(key) {
                    *self = Self::None;
                }
            }
            Self::Many(keys) => {
                keys.retain(keep);
                match keys[..] {
                    [] => *self = Self::None,
                    [key] => *self = Self::One(key),
                    _ => {}
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_come_and_go_as_in_a_list() {
        let key = |slot| Key { slot, generation: 1 };
        let (mut keys, mut list) = (Keys::default(), Vec::new());
        for round in 0..4_u32 {
            for slot in 0..round {
                keys.push(key(slot));
                list.push(key(slot));
                assert_eq!(&*keys, list);
            }
            for slot in (0..round).rev() {
                keys.retain(|key| key.slot != slot);
                list.retain(|key| key.slot != slot);
                assert_eq!(&*keys, list);
            }
            assert!(matches!(keys, Keys::None));
        }
    }

    #[test]
    fn one_word_that_lets_go_of_its_memory() {
        assert_eq!(size_of::<Few<[u8; 100]>>(), size_of::<usize>());
        let mut few = Few::default();
        few.retain(|_| true);
        assert!(few.0.is_none());
        for value in 1..4 {
            few.push(value);
        }
        assert_eq!(&*few, [1, 2, 3]);
        few.retain(|value| *value == 3);
        assert_eq!(&*few, [3]);
        few.retain(|_| false);
        assert!(few.0.is_none(), "the last took the memory with it");
    }
}
