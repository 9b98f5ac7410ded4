//! A list that is nearly always empty, and costs one word while it is.
//!
//! What most devices never have (orders, commands, swipes, a part of a frame) is kept in these: thirty thousand empty vectors would
//! be most of a megabyte. The memory goes back with the last element.

use std::ops::{Deref, DerefMut};

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

impl<T> From<Vec<T>> for Few<T> {
    fn from(values: Vec<T>) -> Self {
        Self((!values.is_empty()).then(|| Box::new(values)))
    }
}

impl<T> Few<T> {
    /// Appends a value.
    pub(super) fn push(&mut self, value: T) {
        self.0.get_or_insert_default().push(value);
    }

    /// Inserts a value at a place that is at most the length.
    pub(super) fn insert(&mut self, index: usize, value: T) {
        self.0.get_or_insert_default().insert(index, value);
    }

    /// Takes the value at a place, where there is one; those behind it move up.
    pub(super) fn remove(&mut self, index: usize) -> Option<T> {
        let values = self.0.as_deref_mut().filter(|values| index < values.len())?;
        let value = values.remove(index);
        self.tidy();
        Some(value)
    }

    /// Keeps those that `keep` says.
    pub(super) fn retain(&mut self, keep: impl FnMut(&T) -> bool) {
        if let Some(values) = &mut self.0 {
            values.retain(keep);
            self.tidy();
        }
    }

    /// Empties it.
    pub(super) fn clear(&mut self) {
        self.0 = None;
    }

    /// Takes all of it.
    pub(super) fn take(&mut self) -> Vec<T> {
        self.0.take().map_or_else(Vec::new, |values| *values)
    }

    fn tidy(&mut self) {
        if self.is_empty() {
            self.0 = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_word_that_lets_go_of_its_memory() {
        assert_eq!(size_of::<Few<[u8; 100]>>(), size_of::<usize>());
        let mut few = Few::default();
        assert_eq!(few.remove(0), None);
        few.push(2);
        few.insert(0, 1);
        few.push(3);
        assert_eq!(&*few, [1, 2, 3]);
        assert_eq!((few.remove(1), few.remove(2)), (Some(2), None));
        few.retain(|value| *value == 3);
        assert_eq!(&*few, [3]);
        assert_eq!(few.remove(0), Some(3));
        assert!(few.0.is_none(), "the last took the memory with it");
        few.push(4);
        assert_eq!(few.take(), [4]);
        assert!(few.0.is_none());
        assert!(Few::from(Vec::<u8>::new()).0.is_none());
    }
}
