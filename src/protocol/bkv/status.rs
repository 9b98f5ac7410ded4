//! The hole status byte, and why a charge ended.
//!
//! The guide names seven conditions for eight bits; its worked example 0x98 ("online, metering ok, charging, no load,
//! temperature ok, current ok, power ok") and field captures fix all of them except bits 6 and 5.

use std::fmt;

use serde::ser::SerializeStruct;
use serde::{Serialize, Serializer};

/// Status of one hole, bit 7 first: online, metering fault, unclear, charging, no load, temperature, current, power.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct HoleStatus(pub u8);

impl HoleStatus {
    /// What both field-captured orders that ran out of time ended with.
    pub const QUOTA: Self = Self(0xB0);

    const fn has(self, mask: u8) -> bool {
        self.0 & mask != 0
    }

    /// Bit 7: the socket answers by radio.
    pub const fn online(self) -> bool {
        self.has(0x80)
    }

    /// Bit 6: metering fault. Never seen set; the reading follows the order of the guide's list.
    pub const fn meter_fault(self) -> bool {
        self.has(0x40)
    }

    /// Bit 5: "finished by quota" or a metering flag, seen only in 0xB0. No fault is raised from it.
    pub const fn bit5(self) -> bool {
        self.has(0x20)
    }

    /// Bit 4: the relay is closed for an order.
    pub const fn charging(self) -> bool {
        self.has(0x10)
    }

    /// Bit 3: nothing draws power; meaningful only while [`charging`](Self::charging).
    pub const fn no_load(self) -> bool {
        self.has(0x08)
    }

    /// Bit 2: temperature fault.
    pub const fn temp_fault(self) -> bool {
        self.has(0x04)
    }

    /// Bit 1: current fault.
    pub const fn current_fault(self) -> bool {
        self.has(0x02)
    }

    /// Bit 0: power fault.
    pub const fn power_fault(self) -> bool {
        self.has(0x01)
    }

    /// Whether this proves that an order draws power: charging and not without load.
    pub const fn charging_under_load(self) -> bool {
        self.charging() && !self.no_load()
    }

    /// The port status: 0 idle, 1 charging, 3 fault, 5 unknown.
    ///
    /// Not for end reports, whose status describes the moment before switch-off and still says charging.
    pub const fn port_status_code(self) -> u8 {
        if !self.online() {
            5
        } else if self.has(0x47) {
            3
        } else if self.charging() {
            1
        } else {
            0
        }
    }
}

impl fmt::Debug for HoleStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#04x}", self.0)
    }
}

impl Serialize for HoleStatus {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut object = serializer.serialize_struct("HoleStatus", 9)?;
        object.serialize_field("raw", &format_args!("{self:?}"))?;
        object.serialize_field("online", &self.online())?;
        object.serialize_field("bit6", &u8::from(self.meter_fault()))?;
        object.serialize_field("bit5", &u8::from(self.bit5()))?;
        object.serialize_field("charging", &self.charging())?;
        object.serialize_field("no_load", &self.no_load())?;
        object.serialize_field("temp_fault", &self.temp_fault())?;
        object.serialize_field("current_fault", &self.current_fault())?;
        object.serialize_field("power_fault", &self.power_fault())?;
        object.end()
    }
}

/// Why a charge ended, derived because the guide gives no list for its reason byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EndReason {
    /// The socket lost power or radio.
    PowerLost,
    /// Temperature fault.
    OverTemperature,
    /// Current fault.
    OverCurrent,
    /// Power fault.
    OverPower,
    /// Metering fault.
    MeterFault,
    /// Nothing drew power: unplugged or full.
    NoLoad,
    /// A stop command was acknowledged.
    StoppedByServer,
    /// The ordered time or energy is used up.
    QuotaReached,
    /// None of the above can be told.
    Unknown,
}

/// What is known when a charge has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EndFacts {
    /// Status byte of the end report.
    pub status: HoleStatus,
    /// Charged time from the report, in minutes.
    pub charged_min: u32,
    /// Energy from the report, in Wh.
    pub energy_wh: u32,
    /// Ordered time in minutes; `None` when the order is not bounded by time.
    pub ordered_min: Option<u32>,
    /// Ordered energy in Wh; `None` when the order is not bounded by energy.
    pub ordered_wh: Option<u32>,
    /// Whether the device acknowledged a stop command for this order.
    pub stop_acknowledged: bool,
}

impl EndReason {
    /// Derives the reason; the first condition that holds wins, faults before normal ends.
    ///
    /// The reason byte of 0x18 and tag 2F is no input: the guide's two examples, both ended by missing load, carry
    /// different values, so it is only kept and shown.
    pub fn derive(facts: &EndFacts) -> Self {
        let status = facts.status;
        let reached = |used: u32, ordered: Option<u32>| ordered.is_some_and(|ordered| used >= ordered);
        if !status.online() {
            Self::PowerLost
        } else if status.temp_fault() {
            Self::OverTemperature
        } else if status.current_fault() {
            Self::OverCurrent
        } else if status.power_fault() {
            Self::OverPower
        } else if status.meter_fault() {
            Self::MeterFault
        } else if status.no_load() {
            Self::NoLoad
        } else if facts.stop_acknowledged {
            Self::StoppedByServer
        } else if status == HoleStatus::QUOTA
            || reached(facts.charged_min, facts.ordered_min)
            || reached(facts.energy_wh, facts.ordered_wh)
        {
            Self::QuotaReached
        } else {
            Self::Unknown
        }
    }

    /// Whether the end counts as a fault rather than a normal end.
    pub const fn is_fault(self) -> bool {
        match self {
            Self::OverTemperature | Self::OverCurrent | Self::OverPower | Self::MeterFault => true,
            Self::PowerLost | Self::NoLoad | Self::StoppedByServer | Self::QuotaReached | Self::Unknown => false,
        }
    }

    /// The word used in events and the API.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::PowerLost => "power_lost",
            Self::OverTemperature => "over_temperature",
            Self::OverCurrent => "over_current",
            Self::OverPower => "over_power",
            Self::MeterFault => "meter_fault",
            Self::NoLoad => "no_load",
            Self::StoppedByServer => "stopped_by_server",
            Self::QuotaReached => "quota_reached",
            Self::Unknown => "unknown",
        }
    }
}

impl fmt::Display for EndReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn port_status_of_every_byte() {
        for raw in 0..=u8::MAX {
            let expected = if raw < 0x80 {
                5
            } else if raw & 0b0100_0111 != 0 {
                3
            } else if raw & 0x10 != 0 {
                1
            } else {
                0
            };
            assert_eq!(HoleStatus(raw).port_status_code(), expected, "{raw:#04x}");
        }
        assert_eq!([0x00, 0x80, 0x90, 0x98, 0xB0].map(|raw| HoleStatus(raw).port_status_code()), [5, 0, 1, 1, 1]);
    }

    #[test]
    fn the_first_condition_wins() {
        let facts = EndFacts {
            status: HoleStatus(0x90),
            charged_min: 10,
            energy_wh: 20,
            ordered_min: None,
            ordered_wh: None,
            stop_acknowledged: false,
        };
        let by_status =
            |raw| EndReason::derive(&EndFacts { status: HoleStatus(raw), stop_acknowledged: true, ..facts });
        assert_eq!(by_status(0x1F), EndReason::PowerLost);
        assert_eq!(by_status(0xDF), EndReason::OverTemperature);
        assert_eq!(by_status(0xDB), EndReason::OverCurrent);
        assert_eq!(by_status(0xD9), EndReason::OverPower);
        assert_eq!(by_status(0xD8), EndReason::MeterFault);
        assert_eq!(by_status(0x98), EndReason::NoLoad);
        assert_eq!(by_status(0xB0), EndReason::StoppedByServer);
        assert_eq!(EndReason::derive(&facts), EndReason::Unknown);
        assert_eq!(EndReason::derive(&EndFacts { status: HoleStatus::QUOTA, ..facts }), EndReason::QuotaReached);
        for (ordered_min, ordered_wh, reason) in [
            (Some(10), None, EndReason::QuotaReached),
            (Some(11), None, EndReason::Unknown),
            (None, Some(20), EndReason::QuotaReached),
            (None, Some(21), EndReason::Unknown),
        ] {
            assert_eq!(EndReason::derive(&EndFacts { ordered_min, ordered_wh, ..facts }), reason);
        }
    }
}
