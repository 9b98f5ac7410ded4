//! What kind of charger is simulated, and what goes wrong with it on demand.

use chargegate::protocol::ap3000::codes::UpdateResult;

/// How a charger reports itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heartbeats {
    /// 0x20 and 0x21.
    Modern,
    /// 0x01 only; after three without an answer it says no more until it connects again.
    Legacy,
    /// 0x20, 0x21 and 0x01; 0x01 until a 0x21 is answered, at most three times.
    Both,
}

/// A kind of charger.
#[derive(Clone, Copy, Debug)]
pub struct Model {
    /// Magic of its frames; OEM devices have others than `DNY`.
    pub magic: [u8; 3],
    /// Top byte of the physical id.
    pub recognition_code: u8,
    /// Device type of 0x20.
    pub device_type: u8,
    /// Firmware as delivered, hundredths.
    pub fw_version: u16,
    /// Firmware of the power board as delivered, hundredths; 0 = it has none.
    pub power_board_version: u16,
    /// How it reports itself.
    pub heartbeats: Heartbeats,
    /// 0x04 in place of 0x06, as before 06/2019.
    pub confirms_orders: bool,
    /// Charging cabinet: 0x41, 0x43 and 0x44, doors, 0x72; the record waits until the bay is empty.
    pub cabinet: bool,
    /// It has a communication module of its own and sends 0x11 and 0x12.
    pub module: bool,
    /// Command of its firmware packets: 0xE0 or 0xF8.
    pub update_command: u8,
    /// Whether it refuses firmware without a verification packet.
    pub wants_check_packet: bool,
    /// Whether 0x8D can switch it to card mode.
    pub switches_work_mode: bool,
    /// Highest overload power that 0x85 may set, 0.1 W.
    pub overload_power_max: u16,
}

impl Default for Model {
    /// New RS-485 dual-mode charger.
    fn default() -> Self {
        Self {
            magic: *b"DNY",
            recognition_code: 0x04,
            device_type: 0x21,
            fw_version: 206,
            power_board_version: 0,
            heartbeats: Heartbeats::Modern,
            confirms_orders: false,
            cabinet: false,
            module: false,
            update_command: 0xe0,
            wants_check_packet: false,
            switches_work_mode: true,
            overload_power_max: 20_000,
        }
    }
}

impl Model {
    /// Old RS-485 charger: 0x01, 0x04, F8.
    pub fn legacy() -> Self {
        Self {
            device_type: 0x02,
            fw_version: 205,
            heartbeats: Heartbeats::Legacy,
            confirms_orders: true,
            update_command: 0xf8,
            switches_work_mode: false,
            ..Self::default()
        }
    }

    /// Charging cabinet on a new 12-port board.
    pub fn cabinet() -> Self {
        Self { recognition_code: 0x07, device_type: 0x30, fw_version: 102, cabinet: true, ..Self::default() }
    }
}

/// Something that goes wrong, once, the next time there is an occasion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The reply to this command gets lost; the command is carried out.
    ReplyLost(u8),
    /// This command is not carried out, and its reply has this result; one whose reply has none is not answered.
    Refused(u8, u8),
    /// The acknowledgement of this firmware packet gets lost.
    UpdateAckLost(u16),
    /// This firmware packet is not taken, and its acknowledgement has this result.
    UpdateRefused(u16, UpdateResult),
    /// Power fails when this firmware packet arrives.
    UpdatePowerCut(u16),
}

/// The faults that wait for their occasion.
#[derive(Debug, Default)]
pub(super) struct Faults(Vec<Fault>);

impl Faults {
    pub(super) fn add(&mut self, fault: Fault) {
        self.0.push(fault);
    }

    /// Takes the first fault that `read` makes something of.
    pub(super) fn take<T>(&mut self, read: impl Fn(Fault) -> Option<T>) -> Option<T> {
        let (at, value) = self.0.iter().enumerate().find_map(|(at, fault)| Some((at, read(*fault)?)))?;
        self.0.remove(at);
        Some(value)
    }

    /// Whether this fault waited; it is over now.
    pub(super) fn is(&mut self, fault: Fault) -> bool {
        self.take(|waiting| (waiting == fault).then_some(())).is_some()
    }
}
