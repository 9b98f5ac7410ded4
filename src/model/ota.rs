//! Firmware and its way to devices.

use std::net::Ipv4Addr;

use super::DeviceId;

/// How firmware reaches a device (device-server protocol v8.6, host-server protocol v2.9, integration guide V1.7).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OtaMethod {
    /// AP3000 command E0: a charger.
    E0,
    /// AP3000 command E1: a charger's power board.
    E1,
    /// AP3000 command E2: all chargers behind a host, by the host.
    E2,
    /// AP3000 command F8: a charger of the first generations.
    F8,
    /// AP3000 command F9: a host of the first generation.
    F9,
    /// AP3000 command FA: a host.
    Fa,
    /// BKV/GN command 0007: the gateway fetches a file by FTP.
    Ftp,
    /// AP3000 command E4: the device downloads by itself.
    SelfUpdate,
}

impl OtaMethod {
    /// All methods.
    pub const ALL: [Self; 8] =
        [Self::E0, Self::E1, Self::E2, Self::F8, Self::F9, Self::Fa, Self::Ftp, Self::SelfUpdate];

    /// The word in the API and the store.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::E0 => "e0",
            Self::E1 => "e1",
            Self::E2 => "e2",
            Self::F8 => "f8",
            Self::F9 => "f9",
            Self::Fa => "fa",
            Self::Ftp => "ftp",
            Self::SelfUpdate => "self_update",
        }
    }

    /// Reads the word back.
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|method| method.as_str() == word)
    }

    /// Bytes of a packet's piece of the image; `None`: the gateway sends no image.
    pub const fn chunk_bytes(self) -> Option<usize> {
        match self {
            Self::E0 | Self::E1 | Self::E2 | Self::Fa => Some(200),
            Self::F8 | Self::F9 => Some(256),
            Self::Ftp | Self::SelfUpdate => None,
        }
    }

    /// The AP3000 command; `None` for [`OtaMethod::Ftp`].
    pub const fn command(self) -> Option<u8> {
        match self {
            Self::E0 => Some(0xE0),
            Self::E1 => Some(0xE1),
            Self::E2 => Some(0xE2),
            Self::F8 => Some(0xF8),
            Self::F9 => Some(0xF9),
            Self::Fa => Some(0xFA),
            Self::SelfUpdate => Some(0xE4),
            Self::Ftp => None,
        }
    }

    /// Packets of an image; `None`: none are sent, or there are more than a packet number can say.
    pub fn packets(self, image_bytes: usize, verification: bool) -> Option<u16> {
        u16::try_from(image_bytes.div_ceil(self.chunk_bytes()?) + usize::from(verification)).ok()
    }
}

/// Where an update stands. The numbers are an interface: they are stored and sent to third parties.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum OtaState {
    /// Nothing was sent yet.
    Pending = 0,
    /// The first frame is on the wire.
    Sent = 1,
    /// The device took at least one packet.
    InProgress = 2,
    /// The device took all of it.
    Done = 3,
    /// Given up, or cancelled.
    Failed = 4,
}

impl OtaState {
    /// All, in numeric order.
    pub const ALL: [Self; 5] = [Self::Pending, Self::Sent, Self::InProgress, Self::Done, Self::Failed];

    /// The number stored and sent.
    pub const fn code(self) -> u8 {
        self as u8
    }

    /// The state of a stored number.
    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.get(usize::from(code)).copied()
    }

    /// The word sent as `state_text`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Sent => "sent",
            Self::InProgress => "in_progress",
            Self::Done => "done",
            Self::Failed => "failed",
        }
    }

    /// Whether the task is over.
    pub const fn is_final(self) -> bool {
        matches!(self, Self::Done | Self::Failed)
    }
}

/// An image, as stored; its bytes are in a file named by the hash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Firmware {
    /// Row.
    pub id: i64,
    /// Of the image.
    pub sha256: [u8; 32],
    /// Bytes of the image.
    pub size: u32,
    /// Chosen by the operator.
    pub name: String,
    /// Hundredths: 205 is V2.05. Part of the verification packet.
    pub version: Option<u16>,
    /// Device type it is for. Part of the verification packet.
    pub device_type: Option<u8>,
    /// Unix ms of the first upload.
    pub created_at: i64,
}

/// The file a BKV/GN gateway is told to fetch (integration guide V1.7, command 0007).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FtpSource {
    /// The FTP server.
    pub host: Ipv4Addr,
    /// Its port.
    pub port: u16,
    /// 1 to 13 ASCII characters.
    pub file: String,
}

/// One update of one device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OtaTask {
    /// Row.
    pub id: i64,
    /// The device; for E2, F9 and FA the host.
    pub device_id: DeviceId,
    /// How.
    pub method: OtaMethod,
    /// What is sent; `None` where the device fetches it.
    pub firmware: Option<Firmware>,
    /// From where the device fetches it ([`OtaMethod::Ftp`]).
    pub ftp: Option<FtpSource>,
    /// A verification packet follows the image.
    pub verification: bool,
    /// Goes on although an order is active.
    pub force: bool,
    /// Where it stands.
    pub state: OtaState,
    /// Why it failed.
    pub reason: Option<String>,
    /// Packets in all; 0 where none are sent.
    pub packets_total: u16,
    /// Packets the device took; it goes on behind them.
    pub packets_acked: u16,
    /// The device's firmware when the first frame was sent ([`OtaMethod::Ftp`]).
    pub firmware_before: Option<String>,
    /// Unix ms of the first frame.
    pub sent_at: Option<i64>,
    /// Unix ms of the end.
    pub ended_at: Option<i64>,
    /// Unix ms.
    pub created_at: i64,
    /// Unix ms of the last change.
    pub updated_at: i64,
}

impl OtaTask {
    /// 0 to 100.
    pub fn progress(&self) -> u8 {
        match self.state {
            OtaState::Done => 100,
            _ => progress(self.packets_acked, self.packets_total),
        }
    }
}

/// Share of `total` that `acked` is, in whole percent; 0 of 0 is 0.
pub fn progress(acked: u16, total: u16) -> u8 {
    let percent = u32::from(acked) * 100 / u32::from(total).max(1);
    u8::try_from(percent.min(100)).unwrap_or(100)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_and_numbers_read_back() {
        for method in OtaMethod::ALL {
            assert_eq!(OtaMethod::from_word(method.as_str()), Some(method));
        }
        for (code, state) in (0..).zip(OtaState::ALL) {
            assert_eq!((state.code(), OtaState::from_code(code)), (code, Some(state)));
        }
        assert_eq!((OtaMethod::from_word("E0"), OtaState::from_code(5)), (None, None));
    }

    #[test]
    fn packets_count_the_last_piece_and_the_verification() {
        assert_eq!(OtaMethod::E0.packets(300, true), Some(3));
        assert_eq!(OtaMethod::E0.packets(400, false), Some(2));
        assert_eq!(OtaMethod::F8.packets(257, false), Some(2));
        assert_eq!(OtaMethod::E0.packets(65_535 * 200, false), Some(65_535));
        assert_eq!(OtaMethod::E0.packets(65_535 * 200, true), None);
        assert_eq!(OtaMethod::Ftp.packets(300, false), None);
    }

    #[test]
    fn progress_is_whole_percent() {
        assert_eq!(
            [(0, 0), (0, 3), (1, 3), (2, 3), (3, 3)].map(|(acked, total)| progress(acked, total)),
            [0, 0, 33, 66, 100]
        );
    }
}
