//! Numbers of SIM cards, ten bytes each.

/// A number of 20 digits, which is what SIM cards have; some carry letters up to F. Anything else a device may say stays text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Iccid([u8; Self::LEN / 2]);

impl Iccid {
    const LEN: usize = 20;

    /// The number, if these bytes are one.
    pub(super) fn pack(text: &[u8]) -> Option<Self> {
        let text: &[u8; Self::LEN] = text.try_into().ok()?;
        // Nearly all are decimal, and one comes with each heartbeat.
        Self::pack_decimal(text).or_else(|| Self::pack_hexadecimal(text))
    }

    /// Eight digits at a time.
    fn pack_decimal(text: &[u8; Self::LEN]) -> Option<Self> {
        const LOW: u64 = 0x0F0F_0F0F_0F0F_0F0F;
        const ZEROS: u64 = 0x3030_3030_3030_3030;
        const SIXES: u64 = 0x0606_0606_0606_0606;
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p, q, r, s, t] = *text;
        let mut wrong = 0;
        let mut pack = |digits| {
            let word = u64::from_be_bytes(digits);
            // A digit has 3 above its value, also when the value is raised by six.
            wrong |= (word & !LOW) ^ ZEROS | (word.wrapping_add(SIXES) & !LOW) ^ ZEROS;
            let word = word & LOW;
            let word = (word | word >> 4) & 0x00FF_00FF_00FF_00FF;
            let word = (word | word >> 8) & 0x0000_FFFF_0000_FFFF;
            ((word | word >> 16) as u32).to_be_bytes()
        };
        let [p0, p1, p2, p3] = pack([a, b, c, d, e, f, g, h]);
        let [p4, p5, p6, p7] = pack([i, j, k, l, m, n, o, p]);
        let [_, _, p8, p9] = pack([b'0', b'0', b'0', b'0', q, r, s, t]);
        (wrong == 0).then_some(Self([p0, p1, p2, p3, p4, p5, p6, p7, p8, p9]))
    }

    fn pack_hexadecimal(text: &[u8; Self::LEN]) -> Option<Self> {
        let (mut packed, mut wrong) = ([0; Self::LEN / 2], 0);
        for (to, pair) in packed.iter_mut().zip(text.as_chunks::<2>().0) {
            let [high, low] = pair.map(|byte| VALUES[usize::from(byte)]);
            wrong |= high | low;
            *to = high << 4 | low;
        }
        (wrong & NO_DIGIT == 0).then_some(Self(packed))
    }

    /// As text.
    pub(super) fn text(self) -> String {
        let digit = |value: u8| char::from(DIGITS[usize::from(value)]);
        self.0.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
    }
}

const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
const NO_DIGIT: u8 = 0x80;
/// What a byte stands for.
const VALUES: [u8; 256] = {
    let mut values = [NO_DIGIT; 256];
    let mut value = 0;
    while value < DIGITS.len() {
        values[DIGITS[value] as usize] = value as u8;
        value += 1;
    }
    values
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn twenty_digits_come_back_as_they_were() {
        for text in ["89860446191890123456", "898600D0123456789012", "00000000000000000000", "FFFFFFFFFFFFFFFFFFFF"] {
            assert_eq!(Iccid::pack(text.as_bytes()).map(Iccid::text).as_deref(), Some(text));
        }
        for at in 0..Iccid::LEN {
            for digit in *DIGITS {
                let mut text = *b"89860446191890123456";
                text[at] = digit;
                assert_eq!(Iccid::pack(&text).map(Iccid::text).as_deref(), str::from_utf8(&text).ok());
            }
        }
    }

    #[test]
    fn anything_else_is_no_number() {
        for text in ["", "8986044619189012345", "898604461918901234567", "8986044619189012345 ", "8986044619189012345d"]
        {
            assert_eq!(Iccid::pack(text.as_bytes()), None, "{text}");
        }
        assert_eq!(Iccid::pack(&[0; 20]), None);
        // One wrong byte, wherever it is.
        let digits = b"89860446191890123456";
        for at in 0..digits.len() {
            for wrong in (0..=u8::MAX).filter(|byte| !byte.is_ascii_digit() && !(b'A'..=b'F').contains(byte)) {
                let mut text = *digits;
                text[at] = wrong;
                assert_eq!(Iccid::pack(&text), None, "{wrong:#04x} at {at}");
            }
        }
        assert_eq!(Iccid::pack(&[0xFF; 20]), None);
    }
}
