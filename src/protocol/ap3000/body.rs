//! One type per data layout.
//!
//! Field names are those of `testdata/vectors/ap3000.jsonl`, values are raw. Where no unit is given: money 0.01 CNY,
//! voltage 0.1 V, power 0.1 W, energy 0.01 kWh, firmware versions in hundredths, times in Unix seconds, ports counted
//! from 0, uplink temperatures °C + 65 with 0 for "no sensor".

mod cabinet;
mod charge;
mod host;
mod parameters;
mod update;

use serde::{Serialize, Serializer};

use super::wire::Layout;

pub use cabinet::{Alarm, CabinetHeartbeat, CabinetStop, CabinetStopReply, ChargeComplete, MultiFunction, PortEvent};
pub use charge::{
    CardReply, CardSwipe, ChargeControl, ChargeControlReply, ChargingReport, Empty, Heartbeat, LegacyHeartbeat,
    LocateDevice, ModifyCharge, OrderConfirm, OrderConfirmReply, Registration, ResultReply, Settlement, TimeReply,
};
pub use host::{
    FskParams, FskRequest, HostHeartbeat, HostPoll, HostStatus, ReservedFd, ReservedFdReply, ReservedFe, ServerAddress,
    SubDeviceTest, SubDeviceVersions,
};
pub use parameters::{
    EepromRead, EepromReadReply, EepromWrite, Limits, Params11, Params12, Params13, PlayVoice, QrUrl, TcMode,
    TemporaryQr, UserCard, WorkMode,
};
pub use update::{FirmwareUpdateRequest, HostOta, OtaPacket, OtaReply};

macro_rules! bodies {
    ($( $(#[$meta:meta])* $name:ident, )*) => {
        /// The data of a frame. Serialises as the object of its fields.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Body<'a> {
            $( $(#[$meta])* $name($name<'a>), )*
        }

        impl<'a> Body<'a> {
            /// Appends the data, as [`Layout::write`].
            pub fn write(&self, out: &mut Vec<u8>) {
                match self {
                    $( Self::$name(body) => body.write(out), )*
                }
            }

            /// Bytes behind the last documented field.
            pub fn extra(&self) -> &'a [u8] {
                match self {
                    $( Self::$name(body) => body.extra(), )*
                }
            }
        }

        impl Serialize for Body<'_> {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                match self {
                    $( Self::$name(body) => body.serialize(serializer), )*
                }
            }
        }
    };
}

bodies! {
    /// Commands and requests without data.
    Empty,
    /// The one-byte reply of most commands.
    ResultReply,
    /// 0x01 up.
    LegacyHeartbeat,
    /// 0x20 up.
    Registration,
    /// 0x21 up.
    Heartbeat,
    /// 0x22 and 0x12 down.
    TimeReply,
    /// 0x02 up.
    CardSwipe,
    /// 0x02 down.
    CardReply,
    /// 0x03 up.
    Settlement,
    /// 0x04 up.
    OrderConfirm,
    /// 0x04 down.
    OrderConfirmReply,
    /// 0x06 up.
    ChargingReport,
    /// 0x82 down.
    ChargeControl,
    /// 0x82 up.
    ChargeControlReply,
    /// 0x8A down.
    ModifyCharge,
    /// 0x96 down.
    LocateDevice,
    /// 0x41 up.
    CabinetHeartbeat,
    /// 0x42 up.
    Alarm,
    /// 0x43 up.
    ChargeComplete,
    /// 0x44 up.
    PortEvent,
    /// 0x72 down.
    CabinetStop,
    /// 0x72 up.
    CabinetStopReply,
    /// 0x98 down.
    MultiFunction,
    /// 0x83 down, 0x90 up.
    Params11,
    /// 0x84 down, 0x91 up.
    Params12,
    /// 0x97 down.
    Params13,
    /// 0x85 down, 0x92 up.
    Limits,
    /// 0x86 down, 0x93 up.
    UserCard,
    /// 0x8B down.
    EepromRead,
    /// 0x8B up.
    EepromReadReply,
    /// 0x8C down.
    EepromWrite,
    /// 0x8D down.
    WorkMode,
    /// 0x8F down.
    TcMode,
    /// 0x8E down.
    QrUrl,
    /// 0x95 down.
    TemporaryQr,
    /// 0x89 down.
    PlayVoice,
    /// 0x05 up.
    FirmwareUpdateRequest,
    /// 0xE0, 0xE1, 0xE2, 0xF8, 0xF9 down.
    OtaPacket,
    /// 0xE0, 0xE1, 0xE2, 0xF8, 0xF9, 0xFA up.
    OtaReply,
    /// 0xFA down.
    HostOta,
    /// 0x11 up.
    HostHeartbeat,
    /// 0x17 up.
    HostStatus,
    /// 0x34 down, 0x0A.
    ServerAddress,
    /// 0x35 up.
    SubDeviceVersions,
    /// 0x3A down.
    FskParams,
    /// 0x3B up.
    FskRequest,
    /// 0x09.
    SubDeviceTest,
    /// 0x00.
    HostPoll,
    /// 0xFD down.
    ReservedFd,
    /// 0xFD up.
    ReservedFdReply,
    /// 0xFE down.
    ReservedFe,
}
