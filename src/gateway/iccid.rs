//! Numbers of SIM cards, ten bytes each.

/// A number of 20 digits, which is what SIM cards have; some carry letters up to F. Anything else a device may say stays text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Iccid([u8; Self::LEN / 2]);

impl Iccid {
    const LEN: usize = 20;

    /// The number, if these bytes are one.
    pub(super) fn pack(text: &[u8]) -> Option<Self> {
        let text: &[u8; Self::LEN] = text.try_into().ok()?;
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
    }

    #[test]
    fn anything_else_is_no_number() {
        for text in ["", "8986044619189012345", "898604461918901234567", "8986044619189012345 ", "8986044619189012345d"]
        {
            assert_eq!(Iccid::pack(text.as_bytes()), None, "{text}");
        }
        assert_eq!(Iccid::pack(&[0; 20]), None);
        assert_eq!(Iccid::pack(&[0xFF; 20]), None);
    }
}
