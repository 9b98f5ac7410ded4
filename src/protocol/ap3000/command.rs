//! The table of all commands: who sends what, what is answered, and how the data is read.
//!
//! Sources: device-server protocol v8.6, host-server protocol v2.9. Sizes are those of the documents; shorter data is an
//! error, longer data is kept as extra bytes. Where a list is as long as a device says, the frame is the limit.

use std::ops::RangeInclusive;

use super::body::Body;
use super::frame::{DATA_MAX, Frame};
use super::wire::Layout as _;
use crate::protocol::{DecodeError, Direction, Input};

/// A row of the table.
#[derive(Debug)]
pub struct Command {
    /// Code on the wire.
    pub code: u8,
    /// Name used in logs, metrics and test vectors.
    pub name: &'static str,
    /// Who sends the request. `None` for commands between host and sub-device, which never reach the server, and for
    /// deleted ones.
    pub request: Option<Direction>,
    /// Whether the request is answered.
    pub reply: Reply,
    /// What the device sends under this code.
    pub up: Option<Layout>,
    /// What the server (or, on the local bus, the host) sends under this code.
    pub down: Option<Layout>,
}

/// Whether a request is answered. The answer carries the command and message id of the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reply {
    /// The sender repeats the request, or changes its state, without an answer.
    Mandatory,
    /// Answered, but the answer may be lost: the device restarts.
    BestEffort,
    /// Answered by another command.
    By(u8),
    /// Never answered.
    None,
}

/// The data of a command in one direction.
#[derive(Debug)]
pub struct Layout {
    /// Bytes of data in the shortest and longest documented form.
    pub size: RangeInclusive<usize>,
    /// Reads the data of a frame.
    pub decode: for<'a> fn(&'a [u8]) -> Result<Body<'a>, DecodeError>,
    /// Whether a body is one of this layout, so that it may be sent under the command.
    pub holds: for<'a> fn(&Body<'a>) -> bool,
}

impl Command {
    /// The layout of this command's data from this sender.
    #[inline]
    pub const fn layout(&self, direction: Direction) -> Option<&Layout> {
        match direction {
            Direction::Up => self.up.as_ref(),
            Direction::Down => self.down.as_ref(),
        }
    }
}

/// The row of a command code; `None` for codes in no document.
#[inline]
pub fn lookup(code: u8) -> Option<&'static Command> {
    *ROWS.get(usize::from(code))?
}

/// Reads the data of a frame.
///
/// # Errors
/// The command is not in the table, has no data defined for this sender, or its data ends inside a field.
#[inline]
pub fn decode_body<'a>(frame: &Frame<'a>, direction: Direction) -> Result<Body<'a>, DecodeError> {
    let command = u16::from(frame.command);
    let row = lookup(frame.command).ok_or(DecodeError::Unknown { command })?;
    let layout = row.layout(direction).ok_or(DecodeError::NotDecoded { command })?;
    (layout.decode)(frame.data)
}

/// Who probably sent a frame, for captures that do not say. Request and reply share their code, so the data decides:
///
/// 1. a command that only one side sends, by that side;
/// 2. data that is exactly a request is one: 0x8D with one byte is down;
/// 3. else data that is exactly a reply is one: 0x82 with 1, 17, 18 or 20 bytes is up, 0x21 with one byte is down;
/// 4. else data at least as long as the shortest request is one: 0x82 with 25 bytes and more is down.
///
/// Rule 2 is wrong for replies that look like their request: 0x72, and the one-byte results of 0x8D, 0x8F, 0x96, 0x97.
/// Unknown commands count as uplinks: there are many devices and one server.
pub fn guess_direction(frame: &Frame<'_>) -> Direction {
    let Some(row) = lookup(frame.command) else { return Direction::Up };
    let request = row.request.unwrap_or(Direction::Up);
    let reply = match request {
        Direction::Up => Direction::Down,
        Direction::Down => Direction::Up,
    };
    match (row.layout(request), row.layout(reply)) {
        (Some(asked), Some(answered)) => {
            let exact = |layout: &Layout| (layout.decode)(frame.data).is_ok_and(|body| body.extra().is_empty());
            if exact(asked) || (!exact(answered) && frame.data.len() >= *asked.size.start()) { request } else { reply }
        }
        (None, Some(_)) => reply,
        (Some(_) | None, None) => request,
    }
}

macro_rules! layout {
    () => {
        None
    };
    ($name:ident $size:expr) => {
        Some(Layout {
            size: $size,
            decode: |data| super::body::$name::read(&mut Input::new(data)).map(Body::$name),
            holds: |body| matches!(body, Body::$name(_)),
        })
    };
}

macro_rules! request {
    (Up) => {
        Some(Direction::Up)
    };
    (Down) => {
        Some(Direction::Down)
    };
    (Local) => {
        None
    };
}

macro_rules! commands {
    ($(
        $code:literal $constant:ident $name:literal $request:ident $reply:ident $(($by:literal))?
        up($($up:ident $up_size:expr)?) down($($down:ident $down_size:expr)?);
    )*) => {
        /// The codes of all commands, by their names in the table.
        pub mod code {
            $(
                #[doc = concat!("`", $name, "`")]
                pub const $constant: u8 = $code;
            )*
        }

        /// All commands of both documents, by code.
        pub static COMMANDS: &[Command] = &[$(
            Command {
                code: $code,
                name: $name,
                request: request!($request),
                reply: Reply::$reply $(($by))?,
                up: layout!($($up $up_size)?),
                down: layout!($($down $down_size)?),
            },
        )*];
    };
}

/// The row of each code.
static ROWS: [Option<&Command>; 256] = rows(COMMANDS);

#[expect(
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    reason = "evaluated by the compiler: a mistake does not build"
)]
const fn rows(commands: &[Command]) -> [Option<&Command>; 256] {
    let mut rows = [None; 256];
    let mut row = 0;
    while row < commands.len() {
        assert!(row == 0 || commands[row - 1].code < commands[row].code, "rows must be sorted by code");
        rows[commands[row].code as usize] = Some(&commands[row]);
        row += 1;
    }
    rows
}

commands! {
    0x00 HOST_POLL "host_poll" Local None up() down(HostPoll 1..=1);
    0x01 LEGACY_HEARTBEAT "legacy_heartbeat" Up Mandatory up(LegacyHeartbeat 5..=DATA_MAX) down(ResultReply 1..=1);
    0x02 CARD_SWIPE "card_swipe" Up Mandatory up(CardSwipe 6..=268) down(CardReply 11..=11);
    0x03 SETTLEMENT "settlement" Up Mandatory up(Settlement 29..=37) down(ResultReply 1..=1);
    0x04 ORDER_CONFIRM "order_confirm" Up Mandatory up(OrderConfirm 24..=24) down(OrderConfirmReply 2..=2);
    0x05 FIRMWARE_UPDATE_REQUEST "firmware_update_request" Up None up(FirmwareUpdateRequest 0..=7) down();
    0x06 CHARGING_REPORT "charging_report" Up None up(ChargingReport 31..=47) down();
    0x09 SUB_DEVICE_TEST "sub_device_test" Local None up(SubDeviceTest 8..=8) down();
    0x0a SUB_DEVICE_SET_HOST_ADDRESS "sub_device_set_host_address" Local None up(ServerAddress 50..=50) down();
    0x11 HOST_HEARTBEAT "host_heartbeat" Up None up(HostHeartbeat 9..=71) down();
    0x12 HOST_TIME_REQUEST "host_time_request" Up Mandatory up(Empty 0..=0) down(TimeReply 4..=4);
    0x15 HOST_UPDATE_REQUEST_LEGACY "host_update_request_legacy" Up Mandatory up(Empty 0..=0) down(ResultReply 1..=1);
    0x17 HOST_STATUS "host_status" Up None up(HostStatus 18..=23) down();
    0x20 REGISTRATION "registration" Up Mandatory up(Registration 5..=8) down(ResultReply 1..=1);
    0x21 HEARTBEAT "heartbeat" Up Mandatory up(Heartbeat 3..=260) down(ResultReply 1..=1);
    0x22 TIME_REQUEST "time_request" Up Mandatory up(Empty 0..=0) down(TimeReply 4..=4);
    0x31 HOST_REBOOT "host_reboot" Down Mandatory up(ResultReply 1..=1) down(Empty 0..=0);
    0x32 MODULE_REBOOT "module_reboot" Down Mandatory up(ResultReply 1..=1) down(Empty 0..=0);
    0x33 CLEAR_SUB_DEVICE_UPDATE_DATA "clear_sub_device_update_data" Down Mandatory up(ResultReply 1..=1) down(Empty 0..=0);
    0x34 SET_SERVER_ADDRESS "set_server_address" Down Mandatory up(ResultReply 1..=1) down(ServerAddress 50..=50);
    0x35 SUB_DEVICE_VERSIONS "sub_device_versions" Up None up(SubDeviceVersions 1..=DATA_MAX) down();
    0x3a SET_FSK_PARAMS "set_fsk_params" Down Mandatory up(ResultReply 1..=1) down(FskParams 6..=DATA_MAX);
    0x3b REQUEST_FSK_PARAMS "request_fsk_params" Up By(0x3a) up(FskRequest 2..=2) down();
    0x41 CABINET_HEARTBEAT "cabinet_heartbeat" Up None up(CabinetHeartbeat 9..=9) down();
    0x42 ALARM "alarm" Up None up(Alarm 2..=3) down();
    0x43 CHARGE_COMPLETE_NOTICE "charge_complete_notice" Up None up(ChargeComplete 29..=29) down();
    0x44 PORT_EVENT "port_event" Up None up(PortEvent 18..=18) down();
    0x72 CABINET_STOP_KEEP_DOOR "cabinet_stop_keep_door" Down Mandatory up(CabinetStopReply 17..=17) down(CabinetStop 17..=17);
    0x81 QUERY_STATUS "query_status" Down None up() down(Empty 0..=0);
    0x82 CHARGE_CONTROL "charge_control" Down Mandatory up(ChargeControlReply 1..=20) down(ChargeControl 25..=38);
    0x83 SET_PARAMS_1_1 "set_params_1_1" Down Mandatory up(ResultReply 1..=1) down(Params11 11..=11);
    0x84 SET_PARAMS_1_2 "set_params_1_2" Down Mandatory up(ResultReply 1..=1) down(Params12 23..=23);
    0x85 SET_LIMITS "set_limits" Down Mandatory up(ResultReply 1..=1) down(Limits 4..=8);
    0x86 SET_USER_CARD "set_user_card" Down Mandatory up(ResultReply 1..=1) down(UserCard 13..=13);
    0x87 REBOOT "reboot" Down BestEffort up(ResultReply 1..=1) down(Empty 0..=0);
    0x88 CLEAR_STORAGE "clear_storage" Down Mandatory up(ResultReply 1..=1) down(Empty 0..=0);
    0x89 PLAY_VOICE "play_voice" Down Mandatory up(ResultReply 1..=1) down(PlayVoice 2..=257);
    0x8a MODIFY_CHARGE "modify_charge" Down Mandatory up(ResultReply 1..=1) down(ModifyCharge 4..=4);
    0x8b EEPROM_READ "eeprom_read" Down Mandatory up(EepromReadReply 1..=33) down(EepromRead 3..=3);
    0x8c EEPROM_WRITE "eeprom_write" Down Mandatory up(ResultReply 1..=1) down(EepromWrite 3..=35);
    0x8d SET_WORK_MODE "set_work_mode" Down Mandatory up(ResultReply 1..=1) down(WorkMode 1..=1);
    0x8e SET_QR_URL "set_qr_url" Down Mandatory up(ResultReply 1..=1) down(QrUrl 76..=76);
    0x8f SET_TC_MODE "set_tc_mode" Down Mandatory up(ResultReply 1..=1) down(TcMode 1..=1);
    0x90 QUERY_PARAMS_1_1 "query_params_1_1" Down Mandatory up(Params11 11..=11) down(Empty 0..=0);
    0x91 QUERY_PARAMS_1_2 "query_params_1_2" Down Mandatory up(Params12 23..=23) down(Empty 0..=0);
    0x92 QUERY_LIMITS "query_limits" Down Mandatory up(Limits 4..=8) down(Empty 0..=0);
    0x93 QUERY_USER_CARD "query_user_card" Down Mandatory up(UserCard 13..=13) down(Empty 0..=0);
    0x94 DELETED "deleted" Local None up() down();
    0x95 TEMPORARY_QR "temporary_qr" Down Mandatory up(ResultReply 1..=1) down(TemporaryQr 200..=200);
    0x96 LOCATE_DEVICE "locate_device" Down Mandatory up(ResultReply 1..=1) down(LocateDevice 1..=1);
    0x97 SET_PARAMS_1_3 "set_params_1_3" Down Mandatory up(ResultReply 1..=1) down(Params13 1..=1);
    0x98 MULTI_FUNCTION "multi_function" Down Mandatory up(ResultReply 1..=1) down(MultiFunction 2..=2);
    0xe0 OTA_SUB_DEVICE "ota_sub_device" Down Mandatory up(OtaReply 3..=3) down(OtaPacket 4..=204);
    0xe1 OTA_POWER_BOARD "ota_power_board" Down Mandatory up(OtaReply 3..=3) down(OtaPacket 4..=204);
    0xe2 OTA_HOST_UNIFIED "ota_host_unified" Down Mandatory up(OtaReply 3..=3) down(OtaPacket 4..=204);
    0xe4 TRIGGER_SELF_UPDATE "trigger_self_update" Down None up() down(Empty 0..=0);
    0xf8 OTA_LEGACY "ota_legacy" Down Mandatory up(OtaReply 3..=3) down(OtaPacket 4..=260);
    0xf9 HOST_OTA_LEGACY "host_ota_legacy" Down Mandatory up(OtaReply 3..=3) down(OtaPacket 4..=260);
    0xfa HOST_OTA "host_ota" Down Mandatory up(OtaReply 3..=3) down(HostOta 0..=204);
    0xfd RESERVED_FD "reserved_fd" Down Mandatory up(ReservedFdReply 2..=2) down(ReservedFd 17..=17);
    0xfe RESERVED_FE "reserved_fe" Down None up() down(ReservedFe 12..=12);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::ap3000::PhyId;

    const BOTH: [Direction; 2] = [Direction::Up, Direction::Down];

    #[test]
    fn every_code_has_its_row_or_none() {
        for code in 0..=u8::MAX {
            let row = COMMANDS.iter().find(|row| row.code == code);
            assert_eq!(lookup(code).map(|row| row.name), row.map(|row| row.name), "{code:#04x}");
        }
        assert_eq!(COMMANDS.len(), 61, "codes in the documents' index");
    }

    #[test]
    fn names_are_unique_words() {
        for (index, row) in COMMANDS.iter().enumerate() {
            assert!(row.name.chars().all(|c| c == '_' || c.is_ascii_lowercase() || c.is_ascii_digit()), "{}", row.name);
            assert!(COMMANDS.iter().skip(index + 1).all(|other| other.name != row.name), "{} twice", row.name);
        }
    }

    #[test]
    fn requests_and_answers_have_layouts() {
        for row in COMMANDS {
            let Some(request) = row.request else {
                assert_eq!(row.reply, Reply::None, "{}", row.name);
                continue;
            };
            assert!(row.layout(request).is_some(), "{} has no request", row.name);
            let reply = if request == Direction::Up { Direction::Down } else { Direction::Up };
            let answered = match row.reply {
                Reply::Mandatory | Reply::BestEffort => row.layout(reply).is_some(),
                Reply::By(code) => row.layout(reply).is_none() && lookup(code).unwrap().layout(reply).is_some(),
                Reply::None => row.layout(reply).is_none(),
            };
            assert!(answered, "{}: {:?}", row.name, row.reply);
        }
    }

    /// Zeros of every length: short ones end inside a field, long ones have extra bytes, and the shortest and the longest
    /// documented form are read to their end. Lists are empty here, since a zero counts them.
    #[test]
    fn sizes_agree_with_the_decoders() {
        for row in COMMANDS {
            for layout in BOTH.iter().filter_map(|direction| row.layout(*direction)) {
                let (min, max) = (*layout.size.start(), *layout.size.end());
                assert!(min <= max && max <= DATA_MAX, "{}", row.name);
                for len in 0..=max + 2 {
                    let data = vec![0; len];
                    match (layout.decode)(&data) {
                        Ok(body) => {
                            assert!(len >= min, "{} at {len}", row.name);
                            assert!(len != min || body.extra().is_empty(), "{} at {len}", row.name);
                            let mut out = Vec::new();
                            body.write(&mut out);
                            assert_eq!(out, data, "{} at {len}", row.name);
                        }
                        Err(DecodeError::Truncated { need, have, .. }) => {
                            assert!(have < need, "{} at {len}", row.name);
                            assert!(len != min && len < max, "{} at {len}", row.name);
                        }
                        Err(error) => panic!("{} at {len}: {error}", row.name),
                    }
                }
            }
        }
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        let frame =
            |command| Frame { magic: *b"DNY", phy_id: PhyId::default(), msg_id: 0, command, data: &[], raw: &[] };
        assert_eq!(decode_body(&frame(0x07), Direction::Up), Err(DecodeError::Unknown { command: 0x07 }));
        assert_eq!(decode_body(&frame(0x81), Direction::Up), Err(DecodeError::NotDecoded { command: 0x81 }));
        assert_eq!(decode_body(&frame(0x94), Direction::Down), Err(DecodeError::NotDecoded { command: 0x94 }));
        assert_eq!(
            decode_body(&Frame { data: &[0x98, 0x08, 2, 0], ..frame(0x21) }, Direction::Up).unwrap_err().to_string(),
            "body ends inside port_states: need 2 bytes, have 1"
        );
        assert_eq!(
            decode_body(&Frame { data: &[0x98], ..frame(0x21) }, Direction::Up).unwrap_err().to_string(),
            "body ends inside voltage: need 2 bytes, have 1"
        );
    }

    #[test]
    fn direction_by_length() {
        let guess = |command, len: usize| {
            let data = vec![0; len];
            guess_direction(&Frame {
                magic: *b"DNY",
                phy_id: PhyId::default(),
                msg_id: 0,
                command,
                data: &data,
                raw: &[],
            })
        };
        for len in [1, 17, 18, 20] {
            assert_eq!(guess(0x82, len), Direction::Up, "{len} bytes");
        }
        for len in 25..45 {
            assert_eq!(guess(0x82, len), Direction::Down, "{len} bytes");
        }
        assert_eq!((guess(0x21, 1), guess(0x21, 3), guess(0x21, 9)), (Direction::Down, Direction::Up, Direction::Up));
        assert_eq!((guess(0x22, 0), guess(0x22, 4)), (Direction::Up, Direction::Down));
        assert_eq!((guess(0x02, 8), guess(0x02, 11)), (Direction::Up, Direction::Down));
        assert_eq!(
            (guess(0xfa, 0), guess(0xfa, 3), guess(0xfa, 204)),
            (Direction::Down, Direction::Up, Direction::Down)
        );
        assert_eq!((guess(0x87, 0), guess(0x87, 1)), (Direction::Down, Direction::Up));
        assert_eq!(guess(0x07, 5), Direction::Up);
    }
}
