//! How a list of fields becomes a body: each body reads its fields in wire order and writes them in the same.
//!
//! A value of fixed size is a [`Record`]; a body that ends with a list implements [`Fields`] only. Bytes behind the last
//! field are left to the caller, who ignores them.

use std::net::Ipv4Addr;

use super::clock::{DeviceTime, TimeOfDay};
use super::records::{Record, Records};
use super::status::HoleStatus;
use crate::protocol::{DecodeError, Hex, Input};

/// The fields of a body behind its sub-command.
pub trait Fields<'a>: Sized {
    /// Reads them.
    ///
    /// # Errors
    /// The body ends inside a field.
    fn read(input: &mut Input<'a>, field: &'static str) -> Result<Self, DecodeError>;

    /// Appends them.
    fn write(&self, out: &mut Vec<u8>);
}

impl<'a, T: Record> Fields<'a> for T {
    #[inline]
    fn read(input: &mut Input<'a>, field: &'static str) -> Result<Self, DecodeError> {
        T::read(input, field)
    }

    #[inline]
    fn write(&self, out: &mut Vec<u8>) {
        T::write(self, out);
    }
}

/// All whole records up to the end of the body; a rest shorter than a record is ignored.
impl<'a, T: Record> Fields<'a> for Records<'a, T> {
    #[inline]
    fn read(input: &mut Input<'a>, _: &'static str) -> Result<Self, DecodeError> {
        Ok(Self::new(input.rest()))
    }

    fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.as_bytes());
    }
}

macro_rules! numbers {
    ($($number:ty: $len:literal $read:ident;)*) => { $(
        impl Record for $number {
            const LEN: usize = $len;

            #[inline]
            fn read(input: &mut Input<'_>, field: &'static str) -> Result<Self, DecodeError> {
                input.$read(field)
            }

            #[inline]
            fn write(&self, out: &mut Vec<u8>) {
                out.extend_from_slice(&self.to_be_bytes());
            }
        }
    )* };
}

numbers! {
    u8: 1 u8;
    u16: 2 u16_be;
    u32: 4 u32_be;
}

impl<const N: usize> Record for Hex<[u8; N]> {
    const LEN: usize = N;

    #[inline]
    fn read(input: &mut Input<'_>, field: &'static str) -> Result<Self, DecodeError> {
        input.array(field).map(Self)
    }

    #[inline]
    fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.0);
    }
}

impl Record for HoleStatus {
    const LEN: usize = 1;

    #[inline]
    fn read(input: &mut Input<'_>, field: &'static str) -> Result<Self, DecodeError> {
        input.u8(field).map(Self)
    }

    #[inline]
    fn write(&self, out: &mut Vec<u8>) {
        out.push(self.0);
    }
}

impl Record for Ipv4Addr {
    const LEN: usize = 4;

    fn read(input: &mut Input<'_>, field: &'static str) -> Result<Self, DecodeError> {
        input.array::<4>(field).map(Self::from)
    }

    fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.octets());
    }
}

/// The plain binary form of 0x18; tags carry BCD.
impl Record for DeviceTime {
    const LEN: usize = 7;

    fn read(input: &mut Input<'_>, field: &'static str) -> Result<Self, DecodeError> {
        input.array(field).map(Self::from_binary)
    }

    fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.to_binary());
    }
}

impl Record for TimeOfDay {
    const LEN: usize = 2;

    fn read(input: &mut Input<'_>, field: &'static str) -> Result<Self, DecodeError> {
        input.array(field).map(|[hour, minute]| Self { hour, minute })
    }

    fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&[self.hour, self.minute]);
    }
}

/// Declares a body: its struct, its JSON, and how it is read and written.
///
/// Without a lifetime it is a [`Record`]; with one it may hold others that have one, and lists. `name: Type = count,` is a
/// list of as many records as the named field says (the two must agree when written); a list without a count goes on to
/// the end of the body.
macro_rules! fields {
    (
        $(#[$meta:meta])*
        pub struct $name:ident { $( $(#[$field_meta:meta])* $field:ident: $ty:ty, )* }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
        pub struct $name { $( $(#[$field_meta])* pub $field: $ty, )* }

        impl $crate::protocol::bkv::records::Record for $name {
            const LEN: usize = 0 $( + <$ty as $crate::protocol::bkv::records::Record>::LEN )*;

            #[inline]
            fn read(
                input: &mut $crate::protocol::Input<'_>,
                _: &'static str,
            ) -> Result<Self, $crate::protocol::DecodeError> {
                // One check for the whole record; the compiler then drops those at each field.
                if input.remaining() < Self::LEN {
                    return Err(Self::cut_field(*input));
                }
                Ok(Self { $( $field: $crate::protocol::bkv::records::Record::read(input, stringify!($field))?, )* })
            }

            fn write(&self, out: &mut Vec<u8>) {
                $( $crate::protocol::bkv::records::Record::write(&self.$field, out); )*
            }
        }

        impl $name {
            /// The field inside which the body ends.
            #[cold]
            fn cut_field(mut input: $crate::protocol::Input<'_>) -> $crate::protocol::DecodeError {
                $(
                    let field = <$ty as $crate::protocol::bkv::records::Record>::read(&mut input, stringify!($field));
                    if let Err(error) = field {
                        return error;
                    }
                )*
                $crate::protocol::DecodeError::Trailing { extra: input.remaining() }
            }
        }
    };
    (
        $(#[$meta:meta])*
        pub struct $name:ident<'a> { $( $(#[$field_meta:meta])* $field:ident: $ty:ty $(= $count:ident)?, )* }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
        pub struct $name<'a> { $( $(#[$field_meta])* pub $field: $ty, )* }

        impl<'a> $crate::protocol::bkv::fields::Fields<'a> for $name<'a> {
            #[inline]
            fn read(
                input: &mut $crate::protocol::Input<'a>,
                _: &'static str,
            ) -> Result<Self, $crate::protocol::DecodeError> {
                $( let $field = read_field!(input, $field: $ty $(= $count)?); )*
                Ok(Self { $( $field, )* })
            }

            fn write(&self, out: &mut Vec<u8>) {
                $(
                    $(
                        debug_assert_eq!(
                            self.$field.len(),
                            usize::from(self.$count),
                            concat!(stringify!($count), " must count ", stringify!($field)),
                        );
                    )?
                    $crate::protocol::bkv::fields::Fields::write(&self.$field, out);
                )*
            }
        }
    };
}

macro_rules! read_field {
    ($input:ident, $field:ident: $ty:ty = $count:ident) => {
        <$ty>::take($input, stringify!($field), $count)?
    };
    ($input:ident, $field:ident: $ty:ty) => {
        <$ty as $crate::protocol::bkv::fields::Fields<'a>>::read($input, stringify!($field))?
    };
}

pub(super) use {fields, read_field};
