//! Which update command a product takes (device-server protocol v8.6 and host-server protocol v2.9, tables of device types).
//!
//! The type byte of the first generations is ambiguous, so those are told apart by recognition code and major version of
//! their firmware; the types from 10 hex on say it alone. What several products would answer differently is not guessed.

use crate::{
    model::OtaMethod,
    protocol::ap3000::PhyId,
};

/// What is known of an AP3000 device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Product {
    /// Device type, or host type; `None`: it never said.
    pub device_type: Option<u8>,
    /// Recognition code: the top byte of its id.
    pub recognition_code: u8,
    /// Major version of its firmware; `None`: it never said.
    pub major: Option<u16>,
}

impl Product {
    /// A device by its id, and by what it said of itself. `firmware`: as `V2.05`.
    pub fn new(phy_id: PhyId, device_type: Option<u8>, firmware: Option<&str>) -> Self {
        let major = firmware.and_then(|text| text.strip_prefix('V')?.split('.').next()?.parse().ok());
        Self { device_type, recognition_code: phy_id.recognition_code(), major }
    }

    /// The command that updates its firmware; `None`: not known for sure.
    pub fn update_method(self) -> Option<OtaMethod> {
        let mut methods = ROWS.iter().filter(|row| row.fits(self)).map(|row| row.method);
        let first = methods.next()?;
        methods.all(|method| method == first).then_some(first)
    }
}

struct Row {
    codes: &'static [u8],
    types: &'static [u8],
    /// The major version that tells it apart; `None`: the type does.
    major: Option<u16>,
    method: OtaMethod,
}

impl Row {
    fn fits(&self, product: Product) -> bool {
        let Product { device_type, recognition_code, major } = product;
        self.codes.contains(&recognition_code)
            && device_type.is_none_or(|device_type| self.types.contains(&device_type))
            && (self.major.is_none() || major.is_none() || self.major == major)
    }
}

const fn row(codes: &'static [u8], types: &'static [u8], major: u16, method: OtaMethod) -> Row {
    Row { codes, types, major: Some(major), method }
}

const fn by_type(codes: &'static [u8], types: &'static [u8], method: OtaMethod) -> Row {
    Row { codes, types, major: None, method }
}

const SOCKETS: &[u8] = &[0x03, 0x04];
const TEN_PORTS: &[u8] = &[0x05];
const SIXTEEN_PORTS: &[u8] = &[0x06];
const HOSTS: &[u8] = &[0x09, 0x0A];

const ROWS: &[Row] = &[
    // Old RS-485, and its high-power model.
    row(SOCKETS, &[0x01, 0x02, 0x03, 0x06], 2, OtaMethod::F8),
    row(SOCKETS, &[0x01, 0x02, 0x03, 0x07], 3, OtaMethod::F8),
    // Old LoRa, NB and wireless, each with its high-power model.
    row(SOCKETS, &[0x02, 0x05, 0x08, 0x09, 0x0A, 0x0B], 1, OtaMethod::E0),
    // The earliest chargers of 10 and 16 ports.
    row(TEN_PORTS, &[0x70], 1, OtaMethod::F8),
    row(SIXTEEN_PORTS, &[0x70], 1, OtaMethod::F8),
    row(TEN_PORTS, &[0x71], 2, OtaMethod::F8),
    row(SIXTEEN_PORTS, &[0x71], 2, OtaMethod::F8),
    // Old chargers of 10 and 16 ports.
    row(TEN_PORTS, &[0x01, 0x02, 0x03, 0x04], 3, OtaMethod::F8),
    row(TEN_PORTS, &[0x01, 0x02, 0x03, 0x04], 4, OtaMethod::F8),
    row(SIXTEEN_PORTS, &[0x01, 0x02, 0x03, 0x04], 6, OtaMethod::F8),
    // All newer ones.
    by_type(&[0x04], &[0x10, 0x14, 0x21, 0x22, 0x23, 0x24, 0x25, 0x26, 0x27, 0x28], OtaMethod::E0),
    by_type(&[0x05, 0x06], &[0x20, 0x29], OtaMethod::E0),
    by_type(&[0x07], &[0x30], OtaMethod::E0),
    // Hosts.
    row(HOSTS, &[0x01], 2, OtaMethod::F9),
    by_type(HOSTS, &[0x02, 0x03, 0x04, 0x05, 0x50, 0x51], OtaMethod::Fa),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn method(recognition_code: u8, device_type: Option<u8>, major: Option<u16>) -> Option<OtaMethod> {
        Product { device_type, recognition_code, major }.update_method()
    }

    #[test]
    fn old_types_need_the_version() {
        for (code, device_type, major, expected) in [
            (0x03, 0x02, 1, Some(OtaMethod::E0)),
            (0x04, 0x02, 2, Some(OtaMethod::F8)),
            (0x04, 0x02, 3, Some(OtaMethod::F8)),
            (0x04, 0x02, 4, None),
            (0x04, 0x07, 3, Some(OtaMethod::F8)),
            (0x04, 0x06, 3, None),
            (0x05, 0x04, 4, Some(OtaMethod::F8)),
            (0x06, 0x04, 4, None),
            (0x06, 0x04, 6, Some(OtaMethod::F8)),
            (0x05, 0x71, 2, Some(OtaMethod::F8)),
        ] {
            assert_eq!(method(code, Some(device_type), Some(major)), expected, "{code:#x} {device_type:#x} {major}");
        }
        assert_eq!(method(0x04, Some(0x02), None), None, "E0 or F8");
        assert_eq!(method(0x04, Some(0x01), None), Some(OtaMethod::F8), "all of this type take the same");
    }

    #[test]
    fn new_types_say_it_alone() {
        assert_eq!(method(0x04, Some(0x21), None), Some(OtaMethod::E0));
        assert_eq!(method(0x04, Some(0x21), Some(9)), Some(OtaMethod::E0));
        assert_eq!(method(0x07, Some(0x30), Some(1)), Some(OtaMethod::E0));
        assert_eq!(method(0x07, Some(0x21), Some(1)), None);
    }

    #[test]
    fn hosts_take_their_own() {
        assert_eq!(method(0x09, Some(0x01), Some(2)), Some(OtaMethod::F9));
        assert_eq!(method(0x09, Some(0x05), Some(2)), Some(OtaMethod::Fa));
        assert_eq!(method(0x0A, Some(0x51), None), Some(OtaMethod::Fa));
        assert_eq!(method(0x09, None, None), None);
    }

    #[test]
    fn what_is_not_in_the_table_is_not_guessed() {
        assert_eq!(method(0x76, Some(0x21), Some(2)), None);
        assert_eq!(method(0x04, Some(0xFF), Some(1)), None);
        assert_eq!(method(0x04, None, Some(2)), None, "F8, or a newer one");
    }

    #[test]
    fn versions_are_read_as_devices_show_them() {
        let phy_id = PhyId([0x40, 0xaa, 0xce, 0x04]);
        let product = |firmware| Product::new(phy_id, Some(0x02), firmware);
        assert_eq!(product(Some("V2.05")).major, Some(2));
        assert_eq!(product(Some("V12.05")).major, Some(12));
        assert_eq!([product(None).major, product(Some("205")).major, product(Some("V")).major], [None; 3]);
        assert_eq!(product(None).recognition_code, 0x04);
    }
}
