//! Which codec a connection speaks, decided once from its first bytes.
//!
//! | First bytes | Codec |
//! |---|---|
//! | a configured magic (3 bytes) | AP3000 |
//! | `38 39 38 36`, the ICCID greeting of the communication module | AP3000 |
//! | `6c 69 6e 6b`, its keepalive `link` | AP3000 |
//! | `fc fe` or `fc ff` | BKV/GN |
//!
//! No magic may begin with one of the others, see [`Magics::new`], so the order does not matter.

use super::ap3000::Magics;
use super::ap3000::frame::{ICCID_HEAD, LINK};

/// The codec of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Detected {
    /// AP3000 / DNY.
    Ap3000,
    /// BKV or GN, which share their frame.
    Bkv,
}

/// What the first bytes say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detection {
    /// The codec is certain.
    Known(Detected),
    /// No byte yet, or the beginning of something known: three bytes at most.
    NeedMore,
    /// No codec starts like this.
    Unknown,
}

/// Decides from the first bytes of a connection; four are always enough.
pub fn detect(first: &[u8], magics: &Magics) -> Detection {
    let ap3000 = magics.iter().map(|magic| (&magic[..], Detected::Ap3000));
    let rest: [(&[u8], _); 4] = [
        (&ICCID_HEAD, Detected::Ap3000),
        (&LINK, Detected::Ap3000),
        (&[0xfc, 0xfe], Detected::Bkv),
        (&[0xfc, 0xff], Detected::Bkv),
    ];
    let mut detection = Detection::Unknown;
    for (head, codec) in ap3000.chain(rest) {
        if first.starts_with(head) {
            return Detection::Known(codec);
        }
        if head.starts_with(first) {
            detection = Detection::NeedMore;
        }
    }
    detection
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_head_and_every_prefix_of_it() {
        let heads: [(&[u8], Detected); 6] = [
            (b"DNY", Detected::Ap3000),
            (&[0x44, 0x22, 0x4e], Detected::Ap3000),
            (b"8986", Detected::Ap3000),
            (b"link", Detected::Ap3000),
            (&[0xfc, 0xfe], Detected::Bkv),
            (&[0xfc, 0xff], Detected::Bkv),
        ];
        let magics = Magics::default();
        for (head, codec) in heads {
            for len in 0..head.len() {
                assert_eq!(detect(&head[..len], &magics), Detection::NeedMore, "{head:02x?} cut at {len}");
                let mut wrong = head[..=len].to_vec();
                wrong[len] = 0x00;
                assert_eq!(detect(&wrong, &magics), Detection::Unknown, "{wrong:02x?}");
            }
            assert_eq!(detect(head, &magics), Detection::Known(codec));
            assert_eq!(detect(&[head, b"\0\0\0\0\0"].concat(), &magics), Detection::Known(codec));
        }
    }

    #[test]
    fn only_configured_magics_count() {
        let magics = Magics::new(&[*b"ABC"]).unwrap();
        assert_eq!(detect(b"ABCx", &magics), Detection::Known(Detected::Ap3000));
        assert_eq!(detect(b"DNY", &magics), Detection::Unknown);
    }
}
