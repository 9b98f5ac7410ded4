//! A reader over borrowed bytes that cannot read past their end.
//!
//! Both byte orders live here because the two vendor protocols differ: AP3000 is little-endian, BKV/GN big-endian.
//! No method panics; each names the field it was reading when the bytes ran out.

use std::fmt;

use serde::{Serialize, Serializer};

/// Why a frame's body could not be read. The frame itself was sound, so the connection stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The body ends inside a field.
    #[error("body ends inside {field}: need {need} bytes, have {have}")]
    Truncated {
        /// Field name as in the vendor document.
        field: &'static str,
        /// Bytes the field needs.
        need: usize,
        /// Bytes that were left.
        have: usize,
    },
    /// A field holds a value that its layout forbids.
    #[error("{field} must be {expected}, got {value}")]
    Invalid {
        /// Field name as in the vendor document.
        field: &'static str,
        /// What the document allows.
        expected: &'static str,
        /// The value found.
        value: u64,
    },
    /// Bytes are left over where the layout is closed.
    #[error("{extra} bytes left after the last field")]
    Trailing {
        /// Number of bytes left.
        extra: usize,
    },
    /// The command is in the table but its body has no decoder.
    #[error("command {command:#06x} is known but not decoded")]
    NotDecoded {
        /// Command code.
        command: u16,
    },
    /// The command is in no table.
    #[error("command {command:#06x} is unknown")]
    Unknown {
        /// Command code.
        command: u16,
    },
}

/// Bytes still to be read.
#[derive(Clone, Copy, Debug)]
pub struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    /// Reads from the start of `bytes`.
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// Bytes not read yet.
    pub const fn remaining(&self) -> usize {
        self.0.len()
    }

    /// Whether all bytes have been read.
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Takes all that is left.
    pub const fn rest(&mut self) -> &'a [u8] {
        let rest = self.0;
        self.0 = &[];
        rest
    }

    /// Takes `N` bytes.
    #[inline]
    pub fn array<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], DecodeError> {
        let Some((head, rest)) = self.0.split_first_chunk() else {
            return Err(DecodeError::Truncated { field, need: N, have: self.0.len() });
        };
        self.0 = rest;
        Ok(*head)
    }

    /// Takes `len` bytes.
    #[inline]
    pub fn bytes(&mut self, field: &'static str, len: usize) -> Result<&'a [u8], DecodeError> {
        let Some((head, rest)) = self.0.split_at_checked(len) else {
            return Err(DecodeError::Truncated { field, need: len, have: self.0.len() });
        };
        self.0 = rest;
        Ok(head)
    }

    /// Takes one byte.
    #[inline]
    pub fn u8(&mut self, field: &'static str) -> Result<u8, DecodeError> {
        self.array::<1>(field).map(|[byte]| byte)
    }

    /// Takes a little-endian u16.
    #[inline]
    pub fn u16_le(&mut self, field: &'static str) -> Result<u16, DecodeError> {
        self.array(field).map(u16::from_le_bytes)
    }

    /// Takes a little-endian u32.
    #[inline]
    pub fn u32_le(&mut self, field: &'static str) -> Result<u32, DecodeError> {
        self.array(field).map(u32::from_le_bytes)
    }

    /// Takes a big-endian u16.
    #[inline]
    pub fn u16_be(&mut self, field: &'static str) -> Result<u16, DecodeError> {
        self.array(field).map(u16::from_be_bytes)
    }

    /// Takes a big-endian u32.
    #[inline]
    pub fn u32_be(&mut self, field: &'static str) -> Result<u32, DecodeError> {
        self.array(field).map(u32::from_be_bytes)
    }
}

/// Bytes shown and serialised as lower-case hex without separators.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Hex<T: AsRef<[u8]>>(pub T);

impl<T: AsRef<[u8]>> fmt::Display for Hex<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        const PIECE: usize = 16;
        // Ids are written by the thousand: whole pieces, not digit by digit.
        let digit = |value: u8| DIGITS.get(usize::from(value)).copied().unwrap_or_default();
        let mut text = [0; 2 * PIECE];
        for bytes in self.0.as_ref().chunks(PIECE) {
            for (pair, byte) in text.as_chunks_mut::<2>().0.iter_mut().zip(bytes) {
                *pair = [digit(byte >> 4), digit(byte & 15)];
            }
            let written = text.get(..bytes.len().saturating_mul(2)).unwrap_or_default();
            f.write_str(std::str::from_utf8(written).map_err(|_| fmt::Error)?)?;
        }
        Ok(())
    }
}

impl<T: AsRef<[u8]>> fmt::Debug for Hex<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl<T: AsRef<[u8]>> Serialize for Hex<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}
