//! Runs of equal-sized records inside a body, read lazily.

use std::fmt;
use std::marker::PhantomData;

use serde::{Serialize, Serializer};

use crate::protocol::{DecodeError, Input};

/// A value of fixed size.
pub trait Record: Sized {
    /// Bytes per record.
    const LEN: usize;

    /// Reads one record; `field` names it in the error, unless it has fields of its own.
    ///
    /// # Errors
    /// The body ends inside the record.
    fn read(input: &mut Input<'_>, field: &'static str) -> Result<Self, DecodeError>;

    /// Appends the record: [`Record::LEN`] bytes.
    fn write(&self, out: &mut Vec<u8>);
}

/// A run of records that borrows its bytes and reads each on demand.
pub struct Records<'a, T> {
    /// The records that are left, and perhaps a part of one.
    bytes: &'a [u8],
    record: PhantomData<fn() -> T>,
}

impl<'a, T: Record> Records<'a, T> {
    /// Takes the bytes of the records; a last one that is cut short does not count.
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, record: PhantomData }
    }

    /// Writes `records` into `buffer`, in place of what it held, and borrows them from there.
    pub fn of(buffer: &'a mut Vec<u8>, records: impl IntoIterator<Item = T>) -> Self {
        buffer.clear();
        records.into_iter().for_each(|record| record.write(buffer));
        Self { bytes: buffer, record: PhantomData }
    }

    /// Takes `count` records from `input`.
    #[inline]
    pub(super) fn take(input: &mut Input<'a>, field: &'static str, count: u8) -> Result<Self, DecodeError> {
        let bytes = input.bytes(field, usize::from(count).saturating_mul(T::LEN))?;
        Ok(Self { bytes, record: PhantomData })
    }

    /// The bytes of the whole records that are left.
    pub const fn as_bytes(&self) -> &'a [u8] {
        match self.bytes.split_at_checked(self.len().saturating_mul(T::LEN)) {
            Some((whole, _)) => whole,
            None => &[],
        }
    }

    /// Number of records.
    pub const fn len(&self) -> usize {
        match self.bytes.len().checked_div(T::LEN) {
            Some(count) => count,
            None => 0,
        }
    }

    /// Whether there is none.
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
        let record = T::read(&mut input, "record").ok()?;
        self.bytes = input.rest();
        Some(record)
    }
}

/// Bytes behind the last whole record do not count.
impl<T: Record> PartialEq for Records<'_, T> {
    fn eq(&self, other: &Self) -> bool {
        self.as_bytes() == other.as_bytes()
    }
}

impl<T: Record> Eq for Records<'_, T> {}

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
