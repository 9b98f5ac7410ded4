//! Runs of equal-sized records inside a body, read lazily.

use std::fmt;
use std::marker::PhantomData;

use serde::{Serialize, Serializer};

use crate::protocol::{DecodeError, Input};

/// A value of fixed size that occurs in runs.
pub trait Record: Sized {
    /// Bytes per record.
    const LEN: usize;

    /// Reads one record.
    fn read(input: &mut Input<'_>) -> Result<Self, DecodeError>;
}

impl Record for u16 {
    const LEN: usize = 2;

    fn read(input: &mut Input<'_>) -> Result<Self, DecodeError> {
        input.u16_be("word")
    }
}

/// A run of records that borrows the frame and reads each on demand.
pub struct Records<'a, T> {
    bytes: &'a [u8],
    record: PhantomData<fn() -> T>,
}

impl<'a, T: Record> Records<'a, T> {
    /// Takes `count` records from `input`.
    pub(super) fn take(input: &mut Input<'a>, field: &'static str, count: u8) -> Result<Self, DecodeError> {
        let bytes = input.bytes(field, usize::from(count).saturating_mul(T::LEN))?;
        Ok(Self { bytes, record: PhantomData })
    }

    /// Takes all whole records that are left; a rest shorter than a record is ignored.
    pub(super) const fn rest(input: &mut Input<'a>) -> Self {
        Self { bytes: input.rest(), record: PhantomData }
    }

    /// Number of whole records.
    pub const fn len(&self) -> usize {
        match self.bytes.len().checked_div(T::LEN) {
            Some(count) => count,
            None => 0,
        }
    }

    /// Whether there is no whole record.
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl<T> Clone for Records<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Records<'_, T> {}

impl<T: Record> Iterator for Records<'_, T> {
    type Item = T;

    #[inline]
    fn next(&mut self) -> Option<T> {
        let mut input = Input::new(self.bytes);
        let record = T::read(&mut input).ok()?;
        self.bytes = input.rest();
        Some(record)
    }
}

impl<T> PartialEq for Records<'_, T> {
    fn eq(&self, other: &Self) -> bool {
        self.bytes == other.bytes
    }
}

impl<T> Eq for Records<'_, T> {}

impl<T: Record + fmt::Debug> fmt::Debug for Records<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(*self).finish()
    }
}

impl<T: Record + Serialize> Serialize for Records<'_, T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(*self)
    }
}
