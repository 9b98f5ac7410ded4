//! AP3000 / DNY codec.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PhyId(pub [u8; 4]);
impl std::fmt::Display for PhyId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        super::Hex(self.0).fmt(f)
    }
}
impl std::str::FromStr for PhyId {
    type Err = std::num::ParseIntError;
    fn from_str(s: &str) -> Result<Self, Self::Err> {
        u32::from_str_radix(s, 16).map(|v| Self(v.to_be_bytes()))
    }
}
