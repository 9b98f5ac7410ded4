//! BKV / GN codec.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GatewayId(pub [u8; 7]);
impl std::fmt::Display for GatewayId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        super::Hex(self.0).fmt(f)
    }
}
impl std::str::FromStr for GatewayId {
    type Err = std::num::ParseIntError;
    fn from_str(s: &str) -> Result<Self, Self::Err> {
        u64::from_str_radix(s, 16).map(|v| {
            let mut b = [0; 7];
            b.copy_from_slice(&v.to_be_bytes()[1..]);
            Self(b)
        })
    }
}
