//! Byte sums of short frames, sixteen or thirty-two bytes at a time.
//!
//! The compiler adds up the bytes of a block with one instruction on x86-64 (`psadbw`). Frames are so short that a loop over what is
//! left of the last block would take most of the time: instead the last bytes that make a block are taken once more, without those that
//! were added already.

const BLOCK: usize = 16;
/// From three blocks on, two are added up at once.
const LARGE: usize = 2 * BLOCK;

/// Taken from place `LARGE - N + n` on, `N` long: leaves the last `n` bytes of a block of `N`.
const LAST: [u8; 2 * LARGE] = {
    let mut mask = [0; 2 * LARGE];
    mask.split_at_mut(LARGE).1.copy_from_slice(&[0xFF; LARGE]);
    mask
};

/// Modulo 65536.
#[inline]
pub(super) fn sum_u16(bytes: &[u8]) -> u16 {
    if bytes.len() >= LARGE + BLOCK { sum_of_blocks::<LARGE>(bytes) } else { sum_of_blocks::<BLOCK>(bytes) }
}

#[inline]
fn sum_of_blocks<const N: usize>(bytes: &[u8]) -> u16 {
    let (blocks, tail) = bytes.as_chunks::<N>();
    let sum = blocks.iter().fold(0u16, |sum, block| sum.wrapping_add(of_block(block)));
    match last_bytes::<N>(bytes, tail.len()) {
        Some(rest) => sum.wrapping_add(of_block(&rest)),
        None => tail.iter().fold(sum, |sum, byte| sum.wrapping_add(u16::from(*byte))),
    }
}

/// Modulo 256: blocks are added byte by byte, and only their sum is added up.
#[inline]
pub(super) fn sum_u8(bytes: &[u8]) -> u8 {
    let (blocks, tail) = bytes.as_chunks::<BLOCK>();
    let Some(rest) = last_bytes::<BLOCK>(bytes, tail.len()) else {
        return bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
    };
    let [_, low] = of_block(&blocks.iter().fold(rest, each(u8::wrapping_add))).to_be_bytes();
    low
}

/// The last `count` bytes, behind zeros; `None`: there is no whole block.
#[inline]
fn last_bytes<const N: usize>(bytes: &[u8], count: usize) -> Option<[u8; N]> {
    let mask = LAST.get(const { LARGE.saturating_sub(N) }..)?.get(count..)?.first_chunk()?;
    Some(each(|byte, mask| byte & mask)(*bytes.last_chunk()?, mask))
}

#[inline]
fn of_block<const N: usize>(block: &[u8; N]) -> u16 {
    block.iter().fold(0u16, |sum, byte| sum.wrapping_add(u16::from(*byte)))
}

/// Joins two blocks byte by byte.
#[inline]
fn each<const N: usize>(join: impl Fn(u8, u8) -> u8) -> impl Fn([u8; N], &[u8; N]) -> [u8; N] {
    move |mut to, from| {
        to.iter_mut().zip(from).for_each(|(to, from)| *to = join(*to, *from));
        to
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_length_is_added_up_whole() {
        let bytes: Vec<u8> = (0..600u32).map(|at| (at * 167 + 13).to_le_bytes()[0] | 0x80).collect();
        for from in 0..40 {
            for until in from..bytes.len() {
                let bytes = &bytes[from..until];
                let sum: u32 = bytes.iter().copied().map(u32::from).sum();
                assert_eq!(u32::from(sum_u16(bytes)), sum % 65536, "{from}..{until}");
                assert_eq!(u32::from(sum_u8(bytes)), sum % 256, "{from}..{until}");
            }
        }
        assert_eq!(sum_u16(&[0xFF; 4096]), 0xFF_u16.wrapping_mul(4096));
    }
}
