//! Firmware update: which device takes which packets, and an image cut into them (device-server protocol v8.6,
//! host-server protocol v2.9).
//!
//! Who is updated when, and what follows a reply, is not decided here.

use super::body::OtaPacket;
use super::wire::{Extra, Rest};

/// Bytes of firmware in a packet of E0, E1, E2 and FA.
pub const CHUNK: usize = 200;
/// Bytes of firmware in a packet of F8 and F9.
pub const CHUNK_LEGACY: usize = 256;

/// How a device is updated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UpdatePath {
    /// The device as the vendor's table calls it.
    pub product: &'static str,
    /// Command of the packets.
    pub command: u8,
    /// Command by which the device asks for an update, or for its restart; `None`: it never asks.
    pub request: Option<u8>,
    /// Bytes of firmware per packet.
    pub chunk: usize,
}

impl UpdatePath {
    /// For a device in no row. The vendor gives no such rule: use it only after an operator has confirmed the device.
    pub const UNLISTED: Self = Self { product: "unlisted", command: 0xe0, request: Some(0xe0), chunk: CHUNK };
}

/// A row of the vendor's tables.
#[derive(Clone, Copy, Debug)]
pub struct UpdateRow {
    /// What the row is the answer to.
    pub path: UpdatePath,
    /// Type bytes of 0x20 or 0x01; of a host those of 0x11.
    pub types: &'static [u8],
    /// Whether the oldest firmware of the row sends no type at all.
    pub typeless: bool,
    /// Recognition codes, see [`PhyId::recognition_code`](super::PhyId::recognition_code).
    pub recognition_codes: &'static [u8],
    /// Major number of the firmware: its version divided by 100.
    pub fw_major: u16,
}

/// How a device is updated; `None` if the tables do not know it.
///
/// Types alone are ambiguous: 02 with firmware 1 is an old LoRa device, with 2 or 3 an old RS-485 one. A host is recognised
/// by its recognition code 09 or 0A. `fw_major` is the firmware version divided by 100.
pub fn update_path(device_type: Option<u8>, recognition_code: u8, fw_major: u16) -> Option<UpdatePath> {
    let fits = |row: &&UpdateRow| {
        row.recognition_codes.contains(&recognition_code)
            && row.fw_major == fw_major
            && device_type.map_or(row.typeless, |device_type| row.types.contains(&device_type))
    };
    DEVICES.iter().chain(HOSTS).find(fits).map(|row| row.path)
}

macro_rules! rows {
    ($( $product:literal [$($ty:literal)*] $($typeless:ident)?, [$($code:literal)*], $major:literal,
        $command:literal $($request:literal)?, $chunk:ident; )*) => {
        &[$(
            UpdateRow {
                path: UpdatePath { product: $product, command: $command, request: request!($($request)?), chunk: $chunk },
                types: &[$($ty),*],
                typeless: typeless!($($typeless)?),
                recognition_codes: &[$($code),*],
                fw_major: $major,
            },
        )*]
    };
}

macro_rules! request {
    () => {
        None
    };
    ($request:literal) => {
        Some($request)
    };
}

macro_rules! typeless {
    () => {
        false
    };
    (or_none) => {
        true
    };
}

/// Chargers: type, recognition codes, firmware major, command of the packets and of the request, chunk.
pub static DEVICES: &[UpdateRow] = rows! {
    "old RS-485" [0x01 0x02 0x03 0x06] or_none, [0x03 0x04], 2, 0xf8 0x05, CHUNK_LEGACY;
    "old RS-485 high power" [0x01 0x02 0x03 0x07] or_none, [0x03 0x04], 3, 0xf8 0x05, CHUNK_LEGACY;
    "old LoRa" [0x02], [0x03 0x04], 1, 0xe0 0xe0, CHUNK;
    "old LoRa high power" [0x05], [0x03 0x04], 1, 0xe0 0xe0, CHUNK;
    "old NB" [0x08], [0x03 0x04], 1, 0xe0 0xe0, CHUNK;
    "old NB high power" [0x09], [0x03 0x04], 1, 0xe0 0xe0, CHUNK;
    "old wireless" [0x0a], [0x03 0x04], 1, 0xe0 0xe0, CHUNK;
    "old wireless high power" [0x0b], [0x03 0x04], 1, 0xe0 0xe0, CHUNK;
    "earliest 10-port" [0x70] or_none, [0x05], 1, 0xf8 0x05, CHUNK_LEGACY;
    "earliest 16-port" [0x70] or_none, [0x06], 1, 0xf8 0x05, CHUNK_LEGACY;
    "earliest 10-port (Dipeng)" [0x71] or_none, [0x05], 2, 0xf8 0x05, CHUNK_LEGACY;
    "earliest 16-port (Dipeng)" [0x71] or_none, [0x06], 2, 0xf8 0x05, CHUNK_LEGACY;
    "old 10-port" [0x01 0x02 0x03 0x04] or_none, [0x05], 3, 0xf8 0x05, CHUNK_LEGACY;
    "old 10-port (Dipeng/Bingjun)" [0x01 0x02 0x03 0x04] or_none, [0x05], 4, 0xf8 0x05, CHUNK_LEGACY;
    "old 16-port (Yangtao)" [0x01 0x02 0x03 0x04] or_none, [0x06], 6, 0xf8 0x05, CHUNK_LEGACY;
    "new RS-485" [0x10], [0x04], 1, 0xe0 0xe0, CHUNK;
    "new NB" [0x14], [0x04], 1, 0xe0 0xe0, CHUNK;
    "new 10/16-port" [0x20], [0x05 0x06], 1, 0xe0 0xe0, CHUNK;
    "new RS-485 dual-mode" [0x21], [0x04], 2, 0xe0 0xe0, CHUNK;
    "new NB dual-mode" [0x22], [0x04], 2, 0xe0 0xe0, CHUNK;
    "new GM35 dual-mode" [0x23], [0x04], 3, 0xe0 0xe0, CHUNK;
    "new WiFi dual-mode" [0x24], [0x04], 3, 0xe0 0xe0, CHUNK;
    "new LoRa dual-mode" [0x25], [0x04], 4, 0xe0 0xe0, CHUNK;
    "new HW3000 dual-mode" [0x26], [0x04], 5, 0xe0 0xe0, CHUNK;
    "new GM5 dual-mode" [0x27], [0x04], 3, 0xe0 0xe0, CHUNK;
    "new RS-485 dual-mode F460" [0x28], [0x04], 6, 0xe0 0xe0, CHUNK;
    "new 10/16-port F460" [0x29], [0x05 0x06], 2, 0xe0 0xe0, CHUNK;
    "new 12-port F460" [0x30], [0x07], 1, 0xe0 0xe0, CHUNK;
};

/// Hosts: type, recognition codes, firmware major, command of the packets and of the request, chunk.
pub static HOSTS: &[UpdateRow] = rows! {
    "old RS-485 host" [0x01] or_none, [0x09 0x0a], 2, 0xf9 0x15, CHUNK_LEGACY;
    "old LoRa host" [0x02], [0x09 0x0a], 1, 0xfa 0xfa, CHUNK;
    "new LoRa host" [0x03], [0x09 0x0a], 5, 0xfa, CHUNK;
    "433 MHz host" [0x04], [0x09 0x0a], 6, 0xfa, CHUNK;
    "AP262 LoRa host" [0x05], [0x09 0x0a], 2, 0xfa, CHUNK;
    "AP262 combined host" [0x50], [0x09 0x0a], 3, 0xfa, CHUNK;
    "leakage-protection host" [0x51], [0x09 0x0a], 4, 0xfa, CHUNK;
};

/// The optional last packet of E0, E1 and E2, by which the device checks the whole image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verification {
    /// Sum of all firmware bytes; the padding of the last packet does not change it.
    pub byte_sum: u32,
    /// Device type the image is for.
    pub device_type: u8,
    /// Firmware version of the image, hundredths.
    pub fw_version: u16,
}

/// First bytes of a verification packet.
const VERIFICATION_HEAD: [u8; 8] = [0xa1, 0xa2, 0xa3, 0xa4, 0xa5, 0xa6, 0xa7, 0xa8];

impl Verification {
    /// Of this firmware.
    pub fn of(firmware: &[u8], device_type: u8, fw_version: u16) -> Self {
        let byte_sum = firmware.iter().fold(0u32, |sum, byte| sum.wrapping_add(u32::from(*byte)));
        Self { byte_sum, device_type, fw_version }
    }

    /// The packet's chunk.
    pub fn to_chunk(self) -> [u8; CHUNK] {
        let mut chunk = [0; CHUNK];
        let [s0, s1, s2, s3] = self.byte_sum.to_le_bytes();
        let [v0, v1] = self.fw_version.to_le_bytes();
        let fields = [s0, s1, s2, s3, self.device_type, v0, v1];
        chunk.iter_mut().zip(VERIFICATION_HEAD.into_iter().chain(fields)).for_each(|(to, from)| *to = from);
        chunk
    }

    /// Reads a chunk; `None` if it is no verification packet.
    pub fn from_chunk(chunk: &[u8]) -> Option<Self> {
        let [head @ .., s0, s1, s2, s3, device_type, v0, v1] = *chunk.first_chunk::<15>()?;
        let padding = chunk.get(15..)?;
        let whole = head == VERIFICATION_HEAD && chunk.len() == CHUNK && padding.iter().all(|byte| *byte == 0);
        whole.then_some(Self {
            byte_sum: u32::from_le_bytes([s0, s1, s2, s3]),
            device_type,
            fw_version: u16::from_le_bytes([v0, v1]),
        })
    }
}

/// Firmware as a row of packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Image<'a> {
    firmware: &'a [u8],
    chunk: usize,
    total_packets: u16,
    verification: Option<Verification>,
}

/// Why an image cannot be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ImageError {
    /// There is no firmware.
    #[error("image is empty")]
    Empty,
    /// The chunk is none of the protocol's.
    #[error("chunk must have {CHUNK} or {CHUNK_LEGACY} bytes, got {got}")]
    Chunk {
        /// Bytes per packet asked for.
        got: usize,
    },
    /// Packets are counted in 16 bits.
    #[error("image must have at most 65535 packets, got {got}")]
    TooLong {
        /// Number of packets.
        got: usize,
    },
    /// Packets of 256 bytes have no verification packet.
    #[error("packets of {CHUNK_LEGACY} bytes have no verification packet")]
    NoVerification,
}

impl<'a> Image<'a> {
    /// Cuts `firmware` into chunks of [`UpdatePath::chunk`] bytes, with a verification packet behind them if one is given.
    ///
    /// # Errors
    /// The image is empty or too long, the chunk is unknown, or it does not go with a verification packet.
    pub fn new(firmware: &'a [u8], chunk: usize, verification: Option<Verification>) -> Result<Self, ImageError> {
        if firmware.is_empty() {
            return Err(ImageError::Empty);
        }
        if !matches!(chunk, CHUNK | CHUNK_LEGACY) {
            return Err(ImageError::Chunk { got: chunk });
        }
        if verification.is_some() && chunk != CHUNK {
            return Err(ImageError::NoVerification);
        }
        let packets = firmware.len().div_ceil(chunk).saturating_add(usize::from(verification.is_some()));
        let total_packets = u16::try_from(packets).map_err(|_| ImageError::TooLong { got: packets })?;
        Ok(Self { firmware, chunk, total_packets, verification })
    }

    /// Number of packets, the verification packet included.
    pub const fn total_packets(&self) -> u16 {
        self.total_packets
    }

    /// The packet with this number, counted from 1; `None` if there is none. The last chunk of firmware is filled up with
    /// zeros, which the vendor does not ask for and every device takes.
    pub fn packet<'b>(&self, packet_no: u16, buffer: &'b mut [u8; CHUNK_LEGACY]) -> Option<OtaPacket<'b>> {
        let index = usize::from(packet_no.checked_sub(1)?);
        let chunk: &'b mut [u8] = buffer.get_mut(..self.chunk)?;
        chunk.fill(0);
        let fill = |from: &[u8], chunk: &mut [u8]| chunk.iter_mut().zip(from).for_each(|(to, from)| *to = *from);
        match (self.firmware.chunks(self.chunk).nth(index), self.verification) {
            (Some(firmware), _) => fill(firmware, chunk),
            (None, Some(verification)) if packet_no == self.total_packets => fill(&verification.to_chunk(), chunk),
            (None, _) => return None,
        }
        let total_packets = self.total_packets;
        Some(OtaPacket { total_packets, packet_no, chunk: Rest(chunk), extra: Extra::NONE })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::protocol::ap3000::encode::{self, Header};
    use crate::protocol::ap3000::{PhyId, lookup};

    /// The vendor's worked example: 300 bytes, byte i = i mod 256, type 29, version 205.
    #[test]
    fn worked_example() {
        let firmware: Vec<u8> = (0u16..300).map(|i| i.to_le_bytes()[0]).collect();
        let verification = Verification::of(&firmware, 0x29, 205);
        let image = Image::new(&firmware, CHUNK, Some(verification)).unwrap();
        assert_eq!((verification.byte_sum, image.total_packets()), (0x8332, 3));

        let mut buffer = [0xff; CHUNK_LEGACY];
        let packet = image.packet(3, &mut buffer).unwrap();
        let head = [0xa1, 0xa2, 0xa3, 0xa4, 0xa5, 0xa6, 0xa7, 0xa8, 0x32, 0x83, 0, 0, 0x29, 0xcd, 0];
        assert_eq!((&packet.chunk.0[..15], packet.chunk.0.len()), (&head[..], CHUNK));
        assert!(packet.chunk.0[15..].iter().all(|byte| *byte == 0));
        assert_eq!((packet.total_packets, packet.packet_no), (3, 3));

        let packet = image.packet(2, &mut buffer).unwrap();
        assert_eq!(packet.chunk.0, [&firmware[200..], &[0; 100]].concat());
        assert_eq!(image.packet(0, &mut buffer), None);
        assert_eq!(image.packet(4, &mut buffer), None);
    }

    #[test]
    fn images_that_cannot_be_sent() {
        let verification = Some(Verification { byte_sum: 0, device_type: 0, fw_version: 0 });
        assert_eq!(Image::new(&[], CHUNK, None), Err(ImageError::Empty));
        assert_eq!(Image::new(&[0], 128, None), Err(ImageError::Chunk { got: 128 }));
        assert_eq!(Image::new(&[0], CHUNK_LEGACY, verification), Err(ImageError::NoVerification));
        let longest = vec![0; 65_535 * CHUNK];
        assert_eq!(Image::new(&longest, CHUNK, None).unwrap().total_packets(), u16::MAX);
        assert_eq!(Image::new(&longest, CHUNK, verification), Err(ImageError::TooLong { got: 65_536 }));
    }

    /// No device fits two rows, and each row's packet fits into a frame of its command.
    #[test]
    fn rows_are_sound() {
        for recognition_code in 0..=0x0b {
            for device_type in (0..=u8::MAX).map(Some).chain([None]) {
                for fw_major in 0..=10 {
                    let rows = DEVICES.iter().chain(HOSTS).filter(|row| {
                        row.recognition_codes.contains(&recognition_code)
                            && row.fw_major == fw_major
                            && device_type.map_or(row.typeless, |device_type| row.types.contains(&device_type))
                    });
                    let paths: Vec<_> = rows.map(|row| row.path).collect();
                    assert!(paths.len() <= 1, "{paths:?}");
                    assert_eq!(update_path(device_type, recognition_code, fw_major), paths.first().copied());
                }
            }
        }
        for row in DEVICES.iter().chain(HOSTS) {
            let UpdatePath { command, request, chunk, product } = row.path;
            assert!(lookup(command).unwrap().down.is_some(), "{product}");
            assert!(request.is_none_or(|request| lookup(request).unwrap().up.is_some()), "{product}");
            let mut buffer = [0; CHUNK_LEGACY];
            let packet = Image::new(&[1], chunk, None).unwrap().packet(1, &mut buffer).unwrap();
            let header = Header { magic: *b"DNY", phy_id: PhyId::default(), msg_id: 1 };
            assert_eq!(encode::body(&mut Vec::new(), &header, command, &packet), Ok(14 + 4 + chunk), "{product}");
        }
        assert_eq!((DEVICES.len(), HOSTS.len()), (28, 7));
    }

    #[test]
    fn a_type_says_little_without_code_and_firmware() {
        let command = |device_type, recognition_code, fw_major| {
            update_path(device_type, recognition_code, fw_major).map(|path| (path.command, path.request, path.chunk))
        };
        assert_eq!(command(Some(0x02), 0x04, 1), Some((0xe0, Some(0xe0), 200)));
        assert_eq!(command(Some(0x02), 0x04, 2), Some((0xf8, Some(0x05), 256)));
        assert_eq!(command(Some(0x02), 0x05, 3), Some((0xf8, Some(0x05), 256)));
        assert_eq!(command(Some(0x02), 0x09, 1), Some((0xfa, Some(0xfa), 200)));
        assert_eq!(command(None, 0x06, 6), Some((0xf8, Some(0x05), 256)));
        assert_eq!(command(None, 0x09, 2), Some((0xf9, Some(0x15), 256)));
        assert_eq!(command(Some(0x51), 0x0a, 4), Some((0xfa, None, 200)));
        assert_eq!(command(Some(0x29), 0x06, 2), Some((0xe0, Some(0xe0), 200)));
        assert_eq!(command(Some(0x29), 0x06, 3), None);
        assert_eq!(command(Some(0x77), 0x04, 1), None);
        assert_eq!(command(None, 0x04, 1), None);
    }

    proptest! {
        #[test]
        fn packets_carry_the_whole_image(
            firmware in prop::collection::vec(any::<u8>(), 1..2000), legacy: bool, verified: bool,
            device_type: u8, fw_version: u16,
        ) {
            let chunk = if legacy { CHUNK_LEGACY } else { CHUNK };
            let verification =
                (verified && !legacy).then(|| Verification::of(&firmware, device_type, fw_version));
            let image = Image::new(&firmware, chunk, verification).unwrap();
            let mut buffer = [0xff; CHUNK_LEGACY];
            let mut received = Vec::new();
            for packet_no in 1..=image.total_packets() {
                let packet = image.packet(packet_no, &mut buffer).unwrap();
                prop_assert_eq!(packet.chunk.0.len(), chunk);
                received.extend_from_slice(packet.chunk.0);
            }
            prop_assert_eq!(image.packet(image.total_packets().saturating_add(1), &mut buffer), None);
            if let Some(verification) = verification {
                let last = received.split_off(received.len().saturating_sub(CHUNK));
                prop_assert_eq!(Verification::from_chunk(&last), Some(verification));
                prop_assert_eq!(Verification::of(&received, device_type, fw_version), verification);
            }
            let padding = received.strip_prefix(&firmware[..]).unwrap();
            prop_assert!(padding.len() < chunk && padding.iter().all(|byte| *byte == 0));
        }

        #[test]
        fn any_chunk_is_judged(chunk in prop::collection::vec(any::<u8>(), 0..300)) {
            prop_assert_eq!(Verification::from_chunk(&chunk), None);
        }
    }
}
