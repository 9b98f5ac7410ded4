//! One-byte codes of the protocol and what they mean.
//!
//! A code that is in no table keeps its number: devices get new ones with each firmware. Their text is then "unknown".

use std::fmt;

use serde::Serialize;

macro_rules! codes {
    ($(
        $(#[$meta:meta])*
        $name:ident { $( $value:literal $constant:ident $text:literal, )* }
    )*) => { $(
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
        #[serde(transparent)]
        pub struct $name(pub u8);

        impl $name {
            $(
                #[doc = concat!("Code ", stringify!($value), ": ", $text, ".")]
                pub const $constant: Self = Self($value);
            )*

            /// All codes the vendor documents.
            pub const ALL: &[Self] = &[$( Self($value), )*];

            /// What the code means, "unknown" if the vendor does not say.
            pub const fn text(self) -> &'static str {
                match self.0 {
                    $( $value => $text, )*
                    _ => "unknown",
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{} ({:02x})", self.text(), self.0)
            }
        }
    )* };
}

codes! {
    /// State of a port in 0x01 and 0x21. 0x06 uses a short list of its own, see
    /// [`ReportState`].
    PortState {
        0x00 IDLE "idle",
        0x01 CHARGING "charging",
        0x02 PLUGGED "charger plugged in, not charging",
        0x03 FULL "charger plugged in, full",
        0x04 NO_METERING "port cannot be metered",
        0x05 FLOATING "float charging",
        0x06 STORAGE_DAMAGED "storage damaged",
        0x07 SPRING_JAMMED "socket spring jammed",
        0x08 FUSE_BLOWN "bad contact or fuse blown",
        0x09 RELAY_WELDED "relay welded",
        0x0a HALL_SWITCH_DAMAGED "plug sensor damaged",
        0x0b PRECHECK_RELAY_BROKEN "pre-check: relay broken or fuse blown",
        0x0c NOT_ASSIGNED "not assigned",
        0x0d PRECHECK_SHORT "pre-check: load short-circuit",
        0x0e PRECHECK_RELAY_WELDED "filtered pre-check: relay welded",
        0x0f CARD_READER_DAMAGED "card reader chip damaged",
        0x10 DETECTION_FAULT "detection circuit fault",
    }

    /// State of a port in the charging report 0x06. Other values are errors of the device, to be ignored.
    ReportState {
        0x01 CHARGING "charging",
        0x02 WAITING "scanned, waiting for the charger",
        0x03 FULL "full",
        0x05 FLOATING "float charging",
    }

    /// How a charge was started.
    StartMode {
        0x00 CARD "offline card",
        0x01 ONLINE "started by the server",
        0x03 CODE "verification code",
    }

    /// How a charge is counted, in 0x02 and 0x82. 0x8A uses [`ModifyMode`].
    RateMode {
        0x00 TIMED "timed",
        0x01 MONTHLY "monthly",
        0x02 METERED "metered",
        0x03 PER_USE "per use",
    }

    /// How a running charge goes on after 0x8A.
    ModifyMode {
        0x00 TIMED "timed, no stop when full",
        0x01 TIMED_FULL "timed, stop when full",
        0x02 METERED_FULL "metered, stop when full",
    }

    /// State of the card holder's account, in the 0x02 reply.
    AccountState {
        0x00 NORMAL "normal",
        0x01 NOT_REGISTERED "card not registered",
        0x02 PLEASE_BIND "please bind the card",
        0x03 PLEASE_UNBIND "please unbind the card",
        0x04 MONTHLY_TWICE "monthly user swiped twice",
        0x05 MONTHLY_COUNT "monthly user over count limit",
        0x06 BALANCE "balance insufficient",
        0x07 MONTHLY_EXPIRED "monthly plan expired",
        0x08 PORT_FAULT "port fault",
        0x09 REKEY "balance card to be made a user card",
        0x0a MONTHLY_TIME "monthly user over time limit",
        0x0b FOREIGN_CARD "card of another public account",
        0x0c DEVICE_NOT_REGISTERED "device not registered",
        0x0d BUY_MONTHLY "please buy a monthly plan",
        0x0e AREA_BALANCE "cross-area, balance insufficient",
        0x0f MONTHLY_DEVICE "monthly device, not usable",
        0x10 MONTHLY_DEVICE_AREA "monthly device, cross-area, not usable",
        0x11 TEMPORARY_DEVICE "temporary device, not usable",
        0x12 TEMPORARY_DEVICE_AREA "temporary device, cross-area, not usable",
    }

    /// Why a charge ended, in 0x03 and 0x43.
    StopReason {
        0x01 FULL "full, stopped by itself",
        0x02 DURATION_MAX "maximum charge time",
        0x03 DURATION "preset time reached",
        0x04 ENERGY "preset energy reached",
        0x05 UNPLUGGED "unplugged by user",
        0x06 OVERLOAD "overload",
        0x07 SERVER "stopped by server",
        0x08 DYNAMIC_OVERLOAD "dynamic overload",
        0x09 POWER_MIN "power too low",
        0x0a AMBIENT_HOT "ambient too hot",
        0x0b PORT_HOT "port too hot",
        0x0c OVER_CURRENT "over-current",
        0x0d UNPLUGGED_JAMMED "unplugged, perhaps jammed spring",
        0x0e NO_POWER "no power, perhaps bad contact or fuse",
        0x0f PRECHECK_RELAY_BROKEN "pre-check: relay broken or fuse blown",
        0x10 WATER "water ingress",
        0x11 FIRE_PORT "fire suppression, this port",
        0x12 FIRE_OTHER_PORT "fire suppression, another port",
        0x13 PASSWORD "cabinet opened with user password",
        0x14 DOOR_OPEN "cabinet door not closed",
        0x15 EXTERNAL "external operation",
        0x16 CARD "card operation",
        0x17 SERVER_FORCED "forced stop by server",
        0x18 FIRE_SYSTEM "fire system triggered",
        0x19 STORAGE "storage error",
        0x1a OVER_VOLTAGE "over-voltage",
        0x1b UNDER_VOLTAGE "under-voltage",
        0x1c LOW_POWER "low power",
    }

    /// Result of a start or stop, in the 0x82 reply.
    ChargeResult {
        0x00 SUCCESS "success",
        0x01 NOT_PLUGGED "no charger plugged in",
        0x02 SAME_STATE "port already in the requested state",
        0x03 PORT_FAULT "port fault",
        0x04 NO_PORT "no such port",
        0x05 SEVERAL_WAITING "several ports waiting",
        0x06 POWER_TOO_HIGH "total power too high",
        0x07 STORAGE_DAMAGED "storage damaged",
        0x08 PRECHECK_RELAY_BROKEN "pre-check: relay broken or fuse blown",
        0x09 PRECHECK_RELAY_WELDED "pre-check: relay welded",
        0x0a PRECHECK_SHORT "pre-check: load short-circuit",
        0x0b SMOKE "smoke alarm",
        0x0c OVER_VOLTAGE "over-voltage",
        0x0d UNDER_VOLTAGE "under-voltage",
        0x0e NO_RESPONSE "no response",
    }

    /// Kind of alarm 0x42.
    AlarmType {
        0x01 MAINS_LOST "mains lost",
        0x02 WATER "water",
        0x03 FIRE_SENSOR "fire sensor of a port",
        0x04 SMOKE "smoke",
        0x05 TEMPERATURE "temperature",
        0x06 WATER_LEVEL "water level",
        0x07 DOOR_SPRUNG "cabinet door sprung open",
    }

    /// Result of a firmware packet E0, E1, E2. F8, F9 and FA know only the first two.
    UpdateResult {
        0x00 OK "ok, send next",
        0x01 RESEND "packet error, resend",
        0x02 BAD_SUM "byte sum of the image is wrong",
        0x03 WRONG_DEVICE_TYPE "wrong device type",
        0x04 NO_CHECK_PACKET "update has no verification packet",
        0x05 REFUSED "device type refused",
    }
}

impl PortState {
    /// Whether the port gives power to an order.
    pub const fn is_charging(self) -> bool {
        matches!(self, Self::CHARGING | Self::FLOATING)
    }
}

impl ReportState {
    /// Whether the port gives power to an order.
    pub const fn is_charging(self) -> bool {
        matches!(self, Self::CHARGING | Self::FLOATING)
    }
}

impl StopReason {
    /// Whether the charge ended by a fault of the device, the charger or the site.
    pub const fn is_fault(self) -> bool {
        matches!(self.0, 0x06 | 0x08 | 0x0a..=0x0c | 0x0e..=0x12 | 0x14 | 0x18..=0x1b)
    }

    /// Whether the server asked for the end.
    pub const fn is_by_server(self) -> bool {
        matches!(self, Self::SERVER | Self::SERVER_FORCED)
    }
}

impl ChargeResult {
    /// Whether a start that failed with this result may have closed the relay all the same: the vendor marks the port
    /// fault as executed, and a welded relay conducts.
    pub const fn may_be_on(self) -> bool {
        matches!(self, Self::PORT_FAULT | Self::PRECHECK_RELAY_WELDED)
    }
}

/// Port status of the product for a port state of 0x01 or 0x21: 0 idle, 1 charging, 2 occupied, 3 fault, 4 finished,
/// 5 unknown. Undocumented states count as faults.
pub const fn port_status_code(raw: u8) -> u8 {
    match PortState(raw) {
        PortState::IDLE => 0,
        PortState::CHARGING | PortState::FLOATING => 1,
        PortState::PLUGGED => 2,
        PortState::FULL => 4,
        PortState::NOT_ASSIGNED => 5,
        _ => 3,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn port_status_of_every_state() {
        for raw in 0..=u8::MAX {
            let expected = match raw {
                0x00 => 0,
                0x01 | 0x05 => 1,
                0x02 => 2,
                0x03 => 4,
                0x0c => 5,
                _ => 3,
            };
            assert_eq!(port_status_code(raw), expected, "{}", PortState(raw));
        }
    }

    #[test]
    fn fault_ends_are_the_listed_ones() {
        let faults: Vec<u8> = (0..=u8::MAX).filter(|raw| StopReason(*raw).is_fault()).collect();
        assert_eq!(faults, [0x06, 0x08, 0x0a, 0x0b, 0x0c, 0x0e, 0x0f, 0x10, 0x11, 0x12, 0x14, 0x18, 0x19, 0x1a, 0x1b]);
        assert!(StopReason::ALL.iter().all(|reason| !(reason.is_fault() && reason.is_by_server())));
    }

    #[test]
    fn text_of_known_and_unknown_codes() {
        assert_eq!(StopReason(0x07).to_string(), "stopped by server (07)");
        assert_eq!(StopReason(0xee).to_string(), "unknown (ee)");
        assert_eq!(PortState::ALL.len(), 0x11);
        assert_eq!(StopReason::ALL.len(), 0x1c);
    }
}
