//! Table of every command and sub-command: who starts it, what answers it, how its bodies are read.
//!
//! Rows of the integration guide V1.7 have decoders. The command words of an unconfirmed integrator extension are listed
//! as known, so that they are logged by name and never answered.

use std::ops::RangeInclusive;

use super::body::{Body, Inner, decode};
use super::packet::Packet;
use crate::protocol::Direction::{self, Down, Up};
use crate::protocol::{DecodeError, Input};

/// Heartbeat.
pub const HEARTBEAT: u16 = 0x0000;
/// Radio network list; length-prefixed sub-commands.
pub const NETWORK: u16 = 0x0005;
/// Firmware update.
pub const OTA: u16 = 0x0007;
/// Charging, card, voice; length-prefixed sub-commands.
pub const CONTROL: u16 = 0x0015;
/// Tagged packets with their own sub-command.
pub const PACKET: u16 = 0x1000;

/// Sub-commands of [`NETWORK`] and [`CONTROL`].
pub mod sub {
    #![expect(missing_docs, reason = "named as in the table")]
    pub const CHARGE_END: u8 = 0x02;
    pub const START: u8 = 0x07;
    pub const SOCKET_LIST: u8 = 0x08;
    pub const SOCKET_ADD: u8 = 0x09;
    pub const SOCKET_DELETE: u8 = 0x0A;
    pub const CARD: u8 = 0x0B;
    pub const CARD_END: u8 = 0x0C;
    pub const CARD_CONFIRM: u8 = 0x0F;
    pub const POWER_START: u8 = 0x17;
    pub const POWER_END: u8 = 0x18;
    pub const BALANCE: u8 = 0x1A;
    pub const VOICE: u8 = 0x1B;
    pub const SOCKET_REPLY: u8 = 0x1C;
    pub const SOCKET_QUERY: u8 = 0x1D;
}

/// Sub-commands of [`PACKET`].
pub mod packet_sub {
    #![expect(missing_docs, reason = "named as in the table")]
    pub const FEE_END: u16 = 0x1004;
    pub const FEE_START: u16 = 0x1007;
    pub const EXCEPTION: u16 = 0x1010;
    pub const PARAM_SET: u16 = 0x1011;
    pub const PARAM_QUERY: u16 = 0x1012;
    pub const EVENT: u16 = 0x1013;
    pub const PUSH: u16 = 0x1017;
}

/// One row.
#[derive(Debug)]
pub struct Command {
    /// Command word.
    pub command: u16,
    /// Sub-command; `None` where the command has none.
    pub sub: Option<u16>,
    /// Name in logs, `cmd_log` and `decode --json`.
    pub name: &'static str,
    /// Who starts the exchange.
    pub starts: Direction,
    /// Command and sub-command of every frame that answers it; empty if none does or none is described.
    pub replies: &'static [(u16, Option<u16>)],
    /// How a body sent by the device is read; `None`: logged only.
    pub up: Option<Layout>,
    /// How a body sent by the server is read; `None`: logged only.
    pub down: Option<Layout>,
}

/// How the bodies of one direction are read.
#[derive(Clone, Debug)]
pub struct Layout {
    /// Documented size in bytes: behind the sub-command for [`NETWORK`] and [`CONTROL`], else the whole payload. Larger
    /// bodies are read and their end ignored, smaller ones refused, except heartbeats.
    pub size: RangeInclusive<usize>,
    pub(super) decoder: Decoder,
}

/// A decoder by what stands in front of the fields.
#[derive(Clone, Copy, Debug)]
pub(super) enum Decoder {
    Fixed(for<'a> fn(Input<'a>) -> Result<Body<'a>, DecodeError>),
    Inner(for<'a> fn(Inner, Input<'a>) -> Result<Body<'a>, DecodeError>),
    Packet(for<'a> fn(Packet<'a>) -> Result<Body<'a>, DecodeError>),
}

impl Command {
    /// The layout of bodies sent in this direction.
    #[inline]
    pub const fn layout(&self, direction: Direction) -> Option<&Layout> {
        match direction {
            Up => self.up.as_ref(),
            Down => self.down.as_ref(),
        }
    }

    /// Whether the row belongs to the integrator extension: logged, never answered.
    pub const fn is_extension(&self) -> bool {
        self.up.is_none() && self.down.is_none()
    }
}

/// The row of a command and sub-command.
#[inline]
pub fn lookup(command: u16, sub: Option<u16>) -> Option<&'static Command> {
    match (command, sub) {
        (CONTROL, Some(sub)) => *CONTROL_ROWS.get(usize::from(sub))?,
        _ => TABLE.iter().find(|row| row.command == command && row.sub == sub),
    }
}

/// The rows of [`CONTROL`] by sub-command, because it has most of them.
static CONTROL_ROWS: [Option<&Command>; CONTROL_SUBS] = rows_of(CONTROL);
/// One more than its highest sub-command.
const CONTROL_SUBS: usize = 0x1E;

#[expect(
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    reason = "evaluated by the compiler: a mistake does not build"
)]
const fn rows_of(command: u16) -> [Option<&'static Command>; CONTROL_SUBS] {
    let mut rows = [None; CONTROL_SUBS];
    let mut row = 0;
    while row < TABLE.len() {
        if let (true, Some(sub)) = (TABLE[row].command == command, TABLE[row].sub) {
            assert!(rows[sub as usize].is_none(), "a sub-command has one row");
            rows[sub as usize] = Some(&TABLE[row]);
        }
        row += 1;
    }
    rows
}

/// A size with no documented limit but the frame's.
const OPEN: usize = super::frame::PAYLOAD_LEN_MAX;
/// Size of the three header elements of a packet.
const HEADER: usize = 26;

const fn fixed(
    size: RangeInclusive<usize>,
    decoder: for<'a> fn(Input<'a>) -> Result<Body<'a>, DecodeError>,
) -> Option<Layout> {
    Some(Layout { size, decoder: Decoder::Fixed(decoder) })
}

const fn inner(
    size: RangeInclusive<usize>,
    decoder: for<'a> fn(Inner, Input<'a>) -> Result<Body<'a>, DecodeError>,
) -> Option<Layout> {
    Some(Layout { size, decoder: Decoder::Inner(decoder) })
}

const fn packet(decoder: for<'a> fn(Packet<'a>) -> Result<Body<'a>, DecodeError>) -> Option<Layout> {
    Some(Layout { size: HEADER..=OPEN, decoder: Decoder::Packet(decoder) })
}

const fn row(
    (command, sub): (u16, Option<u16>),
    name: &'static str,
    starts: Direction,
    replies: &'static [(u16, Option<u16>)],
    up: Option<Layout>,
    down: Option<Layout>,
) -> Command {
    Command { command, sub, name, starts, replies, up, down }
}

const fn extension(command: u16, name: &'static str, starts: Direction) -> Command {
    row((command, None), name, starts, &[], None, None)
}

const fn network(sub: u8) -> (u16, Option<u16>) {
    (NETWORK, Some(sub as u16))
}

const fn control(sub: u8) -> (u16, Option<u16>) {
    (CONTROL, Some(sub as u16))
}

const fn tagged(sub: u16) -> (u16, Option<u16>) {
    (PACKET, Some(sub))
}

/// All rows. The frequent ones stand first, because [`lookup`] scans.
pub static TABLE: &[Command] = &[
    row(
        (HEARTBEAT, None),
        "heartbeat",
        Up,
        &[(HEARTBEAT, None)],
        fixed(29..=29, decode::heartbeat),
        fixed(7..=7, decode::heartbeat_reply),
    ),
    row(
        tagged(packet_sub::PUSH),
        "status_push",
        Up,
        &[tagged(packet_sub::PUSH)],
        packet(decode::push),
        packet(decode::packet_reply),
    ),
    row(
        control(sub::START),
        "start",
        Down,
        &[control(sub::START)],
        inner(5..=5, decode::start_reply),
        inner(8..=8, decode::start),
    ),
    row(
        control(sub::CHARGE_END),
        "charge_end",
        Up,
        &[control(sub::CARD_END), control(sub::CHARGE_END)],
        inner(17..=17, decode::charge_end),
        inner(2..=2, decode::end_ack),
    ),
    row(
        control(sub::SOCKET_QUERY),
        "socket_query",
        Down,
        &[control(sub::SOCKET_REPLY), control(sub::SOCKET_QUERY), tagged(packet_sub::PUSH)],
        inner(5..=OPEN, decode::socket_reply),
        inner(1..=1, decode::socket_query),
    ),
    row(control(sub::SOCKET_REPLY), "socket_reply", Up, &[], inner(5..=OPEN, decode::socket_reply), None),
    row(
        control(sub::POWER_START),
        "power_start",
        Down,
        &[control(sub::POWER_START), network(sub::POWER_START)],
        inner(5..=5, decode::start_reply),
        inner(6..=36, decode::power_start),
    ),
    row(
        control(sub::POWER_END),
        "power_end",
        Up,
        &[control(sub::POWER_END)],
        inner(30..=40, decode::power_end),
        inner(2..=2, decode::end_ack),
    ),
    row(
        tagged(packet_sub::FEE_START),
        "fee_start",
        Down,
        &[tagged(packet_sub::FEE_START)],
        packet(decode::packet_reply),
        packet(decode::fee_start),
    ),
    row(
        tagged(packet_sub::FEE_END),
        "fee_end",
        Up,
        &[tagged(packet_sub::FEE_END)],
        packet(decode::fee_end),
        packet(decode::packet_reply),
    ),
    row(
        control(sub::CARD),
        "card_swipe",
        Up,
        &[control(sub::CARD)],
        inner(31..=31, decode::card_swipe),
        inner(10..=43, decode::card_order),
    ),
    row(control(sub::CARD_CONFIRM), "card_confirm", Up, &[], inner(3..=3, decode::card_confirm), None),
    row(
        control(sub::CARD_END),
        "card_end",
        Up,
        &[control(sub::CARD_END)],
        inner(30..=40, decode::card_end),
        inner(2..=2, decode::end_ack),
    ),
    row(
        control(sub::BALANCE),
        "balance",
        Up,
        &[control(sub::BALANCE)],
        inner(8..=8, decode::balance_query),
        inner(12..=12, decode::balance_reply),
    ),
    row(
        control(sub::VOICE),
        "voice",
        Down,
        &[control(sub::VOICE)],
        inner(3..=3, decode::voice_reply),
        inner(5..=13, decode::voice_set),
    ),
    row(
        network(sub::SOCKET_LIST),
        "socket_list",
        Down,
        &[network(sub::SOCKET_LIST)],
        inner(1..=1, decode::network_result),
        inner(1..=OPEN, decode::socket_list),
    ),
    row(
        network(sub::SOCKET_ADD),
        "socket_add",
        Down,
        &[network(sub::SOCKET_ADD)],
        inner(1..=1, decode::network_result),
        inner(7..=7, decode::socket_add),
    ),
    row(
        network(sub::SOCKET_DELETE),
        "socket_delete",
        Down,
        &[network(sub::SOCKET_DELETE)],
        inner(1..=1, decode::network_result),
        inner(1..=1, decode::socket_delete),
    ),
    // The guide's example of 17 carries this command word, its text the other; only a reply is read under it.
    row(
        network(sub::POWER_START),
        "power_start",
        Down,
        &[control(sub::POWER_START), network(sub::POWER_START)],
        inner(5..=5, decode::start_reply),
        None,
    ),
    row((OTA, None), "ota", Down, &[], fixed(0..=OPEN, decode::ota_report), fixed(20..=20, decode::ota)),
    row(
        tagged(packet_sub::EXCEPTION),
        "exception",
        Up,
        &[tagged(packet_sub::EXCEPTION)],
        packet(decode::exception),
        packet(decode::packet_reply),
    ),
    row(
        tagged(packet_sub::EVENT),
        "event",
        Up,
        &[tagged(packet_sub::EVENT)],
        packet(decode::event),
        packet(decode::packet_reply),
    ),
    row(
        tagged(packet_sub::PARAM_SET),
        "param_set",
        Down,
        &[tagged(packet_sub::PARAM_SET)],
        packet(decode::packet_reply),
        packet(decode::param_set),
    ),
    row(
        tagged(packet_sub::PARAM_QUERY),
        "param_query",
        Down,
        &[tagged(packet_sub::PARAM_QUERY)],
        packet(decode::packet_reply),
        packet(decode::param_query),
    ),
    extension(0x1001, "ext_socket_query", Down),
    extension(0x2000, "ext_control", Down),
    extension(0x2001, "ext_control_end", Up),
    extension(0x3000, "ext_param_set", Down),
    extension(0x3001, "ext_param_query", Down),
    extension(0x4000, "ext_exception", Up),
    extension(0x000B, "ext_card_swipe", Up),
    extension(0x000C, "ext_card_end", Up),
    extension(0x000F, "ext_card_confirm", Up),
    extension(0x0017, "ext_power_start", Down),
    extension(0x0018, "ext_power_end", Up),
    extension(0x001A, "ext_balance", Up),
    extension(0x001B, "ext_voice", Down),
    extension(0x001D, "ext_socket_query", Down),
    extension(0x000D, "ext_000d", Up),
    extension(0x000E, "ext_000e", Up),
    extension(0x0019, "ext_0019", Up),
    extension(0x0001, "ext_params_1", Down),
    extension(0x0002, "ext_params_2", Down),
    extension(0x0003, "ext_params_3", Down),
    extension(0x0004, "ext_params_4", Down),
];
