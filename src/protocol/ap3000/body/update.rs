//! Firmware update (device-server protocol v8.6, host-server protocol v2.9).

use serde::{Serialize, Serializer};

use crate::protocol::ap3000::codes::UpdateResult;
use crate::protocol::ap3000::wire::{Extra, Layout, Rest, filler, layout};
use crate::protocol::{DecodeError, Input};

layout! {
    /// 0x05: the device asks for an update. Old devices send no data and mean "start again at packet 1".
    pub struct FirmwareUpdateRequest {}
    optional {
        /// Own type.
        device_type: u8,
        /// Own firmware version, hundredths.
        fw_version: u16,
        /// Which image it wants.
        package_type: u32,
    }
}

layout! {
    /// A piece of firmware.
    pub struct OtaPacket {
        /// Number of packets, the verification packet included.
        total_packets: u16,
        /// First = 1.
        packet_no: u16,
        /// 256 bytes with F8 and F9, else 200; the last one may be shorter.
        chunk: Rest<'a>,
    }
}

layout! {
    /// Reply to a piece of firmware. From a host with FA, packet 0 asks to begin.
    pub struct OtaReply {
        /// F8, F9 and FA know only the first two.
        result: UpdateResult,
        /// Packet received.
        packet_no: u16,
    }
}

/// 0xFA down: without data it asks the host to begin, else it is a packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HostOta<'a> {
    /// Ask the host to begin.
    #[default]
    Trigger,
    /// A piece of firmware.
    Packet(OtaPacket<'a>),
}

impl<'a> Layout<'a> for HostOta<'a> {
    fn read(input: &mut Input<'a>) -> Result<Self, DecodeError> {
        if input.is_empty() { Ok(Self::Trigger) } else { OtaPacket::read(input).map(Self::Packet) }
    }

    fn write(&self, out: &mut Vec<u8>) {
        match self {
            Self::Trigger => {}
            Self::Packet(packet) => packet.write(out),
        }
    }

    fn extra(&self) -> &'a [u8] {
        &[]
    }
}

impl Serialize for HostOta<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Trigger => super::Empty::default().serialize(serializer),
            Self::Packet(packet) => packet.serialize(serializer),
        }
    }
}
