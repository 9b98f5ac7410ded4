//! Which update command a product takes, by the vendor's tables in [`update`](crate::protocol::ap3000::update).
//!
//! The type byte of the first generations is ambiguous, so those are told apart by recognition code and major version of
//! their firmware; the types from 10 hex on say it alone. What several products would answer differently is not guessed.

use crate::{
    model::OtaMethod,
    protocol::ap3000::{
        PhyId,
        update::{DEVICES, HOSTS, UpdateRow},
    },
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
        let mut commands = DEVICES.iter().chain(HOSTS).filter(|row| fits(row, self)).map(|row| row.path.command);
        let first = commands.next()?;
        if commands.any(|command| command != first) {
            return None;
        }
        OtaMethod::ALL.into_iter().find(|method| method.command() == Some(first))
    }
}

fn fits(row: &UpdateRow, product: Product) -> bool {
    let Product { device_type, recognition_code, major } = product;
    // The version tells the first generations apart; of the others the type says it alone, whatever version they have now.
    let of_first_generations = matches!(row.path.command, 0xF8 | 0xF9) || row.types.iter().all(|of| *of < 0x10);
    let by_version = of_first_generations && row.path.command != 0xFA;
    row.recognition_codes.contains(&recognition_code)
        && device_type.is_none_or(|device_type| row.types.contains(&device_type))
        && (!by_version || major.is_none_or(|major| major == row.fw_major))
}

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
