//! Typed bodies of all commands; they borrow the frame and decode without allocation.
//!
//! ```text
//! 0x0000, 0x0007   fields
//! 0x0005, 0x0015   inner_len 2 | sub 1 | fields       inner_len counts the fields only
//! 0x1000           tagged packet, see `packet`
//! ```
//!
//! Bytes behind the fields known here are ignored, so that longer bodies of newer firmware stay readable; a body that is
//! too short is refused. Field names are those of the guide and, serialised, the keys of the project's test vectors.

use std::fmt;

use serde::{Serialize, Serializer};

use super::clock::{DeviceTime, TimeOfDay};
use super::command::{self, Decoder};
use super::frame::Frame;
use super::packet::{Event, Exception, FeeEnd, FeeStart, Packet, PacketReply, ParamQuery, ParamSet};
use super::records::{Record, Records};
use super::report::{EndReport, HoleBlock, SocketState, Sockets};
use super::status::HoleStatus;
use crate::protocol::{DecodeError, Hex, Input};

/// Length and sub-command in front of the fields of 0x0005 and 0x0015.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inner {
    /// Bytes behind the sub-command.
    pub len: u16,
    /// Sub-command.
    pub sub: u8,
}

/// A decoded body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Body<'a> {
    /// 0x0000 up.
    Heartbeat(Heartbeat<'a>),
    /// 0x0000 down.
    HeartbeatReply(HeartbeatReply),
    /// 0x0007 down.
    Ota(Ota<'a>),
    /// 0x0007 up, which the guide does not describe: logged, never answered.
    OtaReport(Raw<'a>),
    /// 0x0005 sub 08 down.
    SocketList(Inner, SocketList<'a>),
    /// 0x0005 sub 09 down.
    SocketAdd(Inner, SocketEntry),
    /// 0x0005 sub 0A down.
    SocketDelete(Inner, SocketOnly),
    /// 0x0005 sub 08, 09, 0A up.
    NetworkResult(Inner, NetworkResult),
    /// 0x0015 sub 1D down.
    SocketQuery(Inner, SocketOnly),
    /// 0x0015 sub 1C or 1D up.
    SocketReply(Inner, SocketReply<'a>),
    /// 0x0015 sub 07 down.
    Start(Inner, Start),
    /// 0x0015 sub 07 or 17 up.
    StartReply(Inner, StartReply),
    /// 0x0015 sub 17 down.
    PowerStart(Inner, PowerStart<'a>),
    /// 0x0015 sub 02 up.
    ChargeEnd(Inner, ChargeEnd),
    /// 0x0015 sub 18 up.
    PowerEnd(Inner, PowerEnd<'a>),
    /// 0x0015 sub 0C up.
    CardEnd(Inner, CardEnd<'a>),
    /// 0x0015 sub 0C, 02 or 18 down.
    EndAck(Inner, EndAck),
    /// 0x0015 sub 0B up.
    CardSwipe(Inner, CardSwipe),
    /// 0x0015 sub 0B down.
    CardOrder(Inner, CardOrder<'a>),
    /// 0x0015 sub 0F up.
    CardConfirm(Inner, HoleResult),
    /// 0x0015 sub 1A up.
    BalanceQuery(Inner, BalanceQuery),
    /// 0x0015 sub 1A down.
    BalanceReply(Inner, BalanceReply),
    /// 0x0015 sub 1B down.
    VoiceSet(Inner, VoiceSet<'a>),
    /// 0x0015 sub 1B up.
    VoiceReply(Inner, HoleResult),
    /// 0x0005 or 0x0015 whose sub-command has no decoder in this direction.
    Unread(Inner, Raw<'a>),
    /// 0x1000/1017 up.
    Push(Packet<'a>),
    /// 0x1000/1004 up.
    FeeEnd(FeeEnd<'a>),
    /// 0x1000/1010 up.
    Exception(Exception<'a>),
    /// 0x1000/1013 up.
    Event(Event<'a>),
    /// 0x1000: any reply.
    PacketReply(PacketReply<'a>),
    /// 0x1000/1007 down.
    FeeStart(FeeStart<'a>),
    /// 0x1000/1011 down.
    ParamSet(ParamSet<'a>),
    /// 0x1000/1012 down.
    ParamQuery(ParamQuery<'a>),
    /// 0x1000 whose sub-command has no decoder in this direction.
    Packet(Packet<'a>),
}

impl<'a> Body<'a> {
    /// The end report, from any of its four layouts.
    #[expect(clippy::wildcard_enum_match_arm, reason = "most bodies are something else")]
    pub fn end_report(&self) -> Option<EndReport> {
        Some(match self {
            Self::ChargeEnd(_, end) => end.block.report(),
            Self::PowerEnd(_, end) => end.report(),
            Self::CardEnd(_, end) => end.report(),
            Self::FeeEnd(end) => end.report,
            _ => return None,
        })
    }

    /// The socket states of a push or a query reply.
    #[expect(clippy::wildcard_enum_match_arm, reason = "most bodies are something else")]
    pub fn sockets(&self) -> Option<Sockets<'a>> {
        match self {
            Self::Push(packet) => Some(packet.sockets()),
            Self::SocketReply(_, reply) => Some(Sockets::of_reply(reply.state())),
            _ => None,
        }
    }

    /// The tagged packet of command 0x1000.
    #[expect(clippy::wildcard_enum_match_arm, reason = "most bodies are something else")]
    pub const fn packet(&self) -> Option<&Packet<'a>> {
        Some(match self {
            Self::Push(packet) | Self::Packet(packet) => packet,
            Self::FeeEnd(FeeEnd { packet, .. })
            | Self::Exception(Exception { packet, .. })
            | Self::Event(Event { packet, .. })
            | Self::PacketReply(PacketReply { packet, .. })
            | Self::FeeStart(FeeStart { packet, .. })
            | Self::ParamSet(ParamSet { packet, .. })
            | Self::ParamQuery(ParamQuery { packet, .. }) => packet,
            _ => return None,
        })
    }
}

/// Reads the body of a frame.
///
/// # Errors
/// [`DecodeError::Unknown`] for a command word in no table and [`DecodeError::NotDecoded`] for one that is only logged;
/// otherwise what is wrong with the body. The frame was sound either way, so the connection stays.
#[inline]
pub fn decode_body<'a>(frame: &Frame<'a>) -> Result<Body<'a>, DecodeError> {
    match frame.command {
        command::NETWORK | command::CONTROL => {
            let mut input = Input::new(frame.payload);
            let inner = Inner { len: input.u16_be("inner_len")?, sub: input.u8("sub")? };
            if usize::from(inner.len) != input.remaining() {
                let expected = "the number of bytes behind the sub-command";
                return Err(DecodeError::Invalid { field: "inner_len", expected, value: u64::from(inner.len) });
            }
            match decoder(frame, Some(u16::from(inner.sub))) {
                Some(Decoder::Inner(decode)) => decode(inner, &mut input),
                _ => raw(&mut input).map(|raw| Body::Unread(inner, raw)),
            }
        }
        command::PACKET => {
            let packet = Packet::parse(frame)?;
            match decoder(frame, Some(packet.command)) {
                Some(Decoder::Packet(decode)) => decode(packet),
                _ => Ok(Body::Packet(packet)),
            }
        }
        command => match decoder(frame, None) {
            Some(Decoder::Fixed(decode)) => decode(&mut Input::new(frame.payload)),
            _ if command::lookup(command, None).is_some() => Err(DecodeError::NotDecoded { command }),
            _ => Err(DecodeError::Unknown { command }),
        },
    }
}

#[inline]
fn decoder(frame: &Frame<'_>, sub: Option<u16>) -> Option<Decoder> {
    command::lookup(frame.command, sub)?.layout(frame.direction).map(|layout| layout.decoder)
}

/// ASCII text of fixed width, NUL padded. Other bytes are shown escaped.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Text<'a>(&'a [u8]);

impl<'a> Text<'a> {
    /// The bytes in front of the padding.
    pub fn as_bytes(&self) -> &'a [u8] {
        self.0.split(|byte| *byte == 0).next().unwrap_or_default()
    }
}

impl fmt::Display for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.as_bytes().escape_ascii(), f)
    }
}

impl fmt::Debug for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Text<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Bytes without a decoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Raw<'a> {
    /// The bytes.
    pub body: Hex<&'a [u8]>,
}

fn raw<'a>(input: &mut Input<'a>) -> Result<Raw<'a>, DecodeError> {
    Ok(Raw { body: Hex(input.rest()) })
}

/// 0x0000 up, every 60 s. A payload of another length than 29 bytes is read as far as it goes, because the answer keeps
/// the gateway's clock and connection alive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Heartbeat<'a> {
    /// SIM card number, 20 characters.
    pub iccid: Text<'a>,
    /// Firmware, 8 characters.
    pub fw: Text<'a>,
    /// Cellular signal, raw.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rssi: Option<u8>,
}

/// 0x0000 down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct HeartbeatReply {
    /// Local time; see [`DeviceTime::from_bcd`].
    pub server_time_bcd: Hex<[u8; 7]>,
}

/// 0x0007 down: fetch firmware by FTP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ota<'a> {
    /// 1 is the gateway itself.
    pub target: u8,
    /// Server's IPv4 address.
    pub ftp_ip: std::net::Ipv4Addr,
    /// Server's port.
    pub ftp_port: u16,
    /// File name, at most 13 characters.
    pub file: Text<'a>,
}

impl Serialize for Ota<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Fields<'a> {
            target: u8,
            ftp_ip: std::net::Ipv4Addr,
            ftp_port: u16,
            file: Text<'a>,
            file_field_len: usize,
        }
        let Self { target, ftp_ip, ftp_port, file } = *self;
        Fields { target, ftp_ip, ftp_port, file, file_field_len: file.0.len() }.serialize(serializer)
    }
}

/// One row of the network list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct SocketEntry {
    /// Socket number, 1..=250.
    pub socket: u8,
    /// Radio address, printed on the back.
    pub mac: Hex<[u8; 6]>,
}

impl Record for SocketEntry {
    const LEN: usize = 7;

    fn read(input: &mut Input<'_>) -> Result<Self, DecodeError> {
        Ok(Self { socket: input.u8("socket")?, mac: Hex(input.array("mac")?) })
    }
}

/// Sub 08 down: replaces the whole list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct SocketList<'a> {
    /// Radio channel, 1..=15.
    pub channel: u8,
    /// The new list.
    pub sockets: Records<'a, SocketEntry>,
}

/// A body that only names a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct SocketOnly {
    /// Socket number.
    pub socket: u8,
}

/// Reply to a change of the network list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct NetworkResult {
    /// 1 is success, 0 failure.
    pub result: u8,
}

/// Reply to a socket query.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct SocketReply<'a> {
    /// Socket number.
    pub socket: u8,
    /// Socket firmware, opaque.
    pub fw: Hex<[u8; 2]>,
    /// Temperature in °C.
    pub temp_c: u8,
    /// Radio signal, raw.
    pub rssi: u8,
    /// The holes.
    pub holes: Records<'a, HoleBlock>,
}

impl<'a> SocketReply<'a> {
    const fn state(&self) -> SocketState<'a> {
        SocketState::from_blocks(self.socket, self.fw.0, self.temp_c, self.rssi, self.holes)
    }
}

/// Sub 07 down: start by time or energy, or stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Start {
    /// Socket number.
    pub socket: u8,
    /// 0 or 1.
    pub hole: u8,
    /// 1 on, 0 off; with 0 the device ignores the rest.
    pub switch: u8,
    /// 1 time, 0 energy. Not the numbering of the card commands.
    pub mode: u8,
    /// 1..=900, or 0 when the mode is energy.
    pub minutes: u16,
    /// In Wh, or 0 when the mode is time.
    pub energy_wh: u16,
}

impl Start {
    /// Charge for `minutes`, 1..=900.
    pub const fn time(socket: u8, hole: u8, minutes: u16) -> Self {
        Self { socket, hole, switch: 1, mode: 1, minutes, energy_wh: 0 }
    }

    /// Charge `energy_wh` Wh.
    pub const fn energy(socket: u8, hole: u8, energy_wh: u16) -> Self {
        Self { socket, hole, switch: 1, mode: 0, minutes: 0, energy_wh }
    }

    /// Stop whatever runs on the hole.
    pub const fn stop(socket: u8, hole: u8) -> Self {
        Self { socket, hole, switch: 0, mode: 1, minutes: 0, energy_wh: 0 }
    }
}

/// Sub 07 or 17 up. The guide does not show the reply to 17; it is read like that to 07.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct StartReply {
    /// 1 is success, 0 refused.
    pub result: u8,
    /// Socket number.
    pub socket: u8,
    /// 0 or 1.
    pub hole: u8,
    /// The device's number for the new order; may be 0 in the reply to a stop.
    pub business_no: u16,
}

/// One power tier: `price_cent` buys `minutes` minutes while the power is at most `power_dw`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Level {
    /// Upper limit in 0.1 W.
    pub power_dw: u16,
    /// In 0.01 yuan.
    pub price_cent: u16,
    /// In minutes.
    pub minutes: u16,
}

impl Record for Level {
    const LEN: usize = 6;

    fn read(input: &mut Input<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            power_dw: input.u16_be("power_dw")?,
            price_cent: input.u16_be("price_cent")?,
            minutes: input.u16_be("minutes")?,
        })
    }
}

/// Sub 17 down: start by power tiers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct PowerStart<'a> {
    /// Socket number.
    pub socket: u8,
    /// 0 or 1.
    pub hole: u8,
    /// 1 on, 0 off.
    pub switch: u8,
    /// What the tiers are charged against.
    #[serde(flatten)]
    pub tariff: Tariff<'a>,
}

/// Amount and tiers of a power order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Tariff<'a> {
    /// Amount paid in 0.01 yuan.
    pub paid_cent: u16,
    /// 1..=5.
    pub level_count: u8,
    /// The tiers.
    pub levels: Records<'a, Level>,
}

impl<'a> Tariff<'a> {
    fn read(input: &mut Input<'a>) -> Result<Self, DecodeError> {
        let paid_cent = input.u16_be("paid_cent")?;
        let level_count = input.u8("level_count")?;
        Ok(Self { paid_cent, level_count, levels: Records::take(input, "levels", level_count)? })
    }
}

/// The 17 bytes that begin every end report but 1004.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct EndBlock {
    /// Socket number.
    pub socket: u8,
    /// Socket firmware, opaque.
    pub fw: Hex<[u8; 2]>,
    /// Temperature in °C.
    pub temp_c: u8,
    /// Radio signal, raw.
    pub rssi: u8,
    /// 0 or 1.
    pub hole: u8,
    /// Status of the moment before switch-off.
    pub status: HoleStatus,
    /// The device's order number.
    pub business_no: u16,
    /// Power in 0.1 W.
    pub power_dw: u16,
    /// Current in mA.
    pub current_ma: u16,
    /// Energy in Wh.
    pub energy_wh: u16,
    /// Charged time in minutes.
    pub charged_min: u16,
}

impl EndBlock {
    /// One bound check for the whole block: this is on the path of every end report.
    #[inline]
    fn read(input: &mut Input<'_>) -> Result<Self, DecodeError> {
        let [socket, f0, f1, temp_c, rssi, hole, status, b0, b1, p0, p1, c0, c1, e0, e1, m0, m1] =
            input.array("end block")?;
        Ok(Self {
            socket,
            fw: Hex([f0, f1]),
            temp_c,
            rssi,
            hole,
            status: HoleStatus(status),
            business_no: u16::from_be_bytes([b0, b1]),
            power_dw: u16::from_be_bytes([p0, p1]),
            current_ma: u16::from_be_bytes([c0, c1]),
            energy_wh: u16::from_be_bytes([e0, e1]),
            charged_min: u16::from_be_bytes([m0, m1]),
        })
    }

    const fn report(&self) -> EndReport {
        EndReport {
            socket: self.socket,
            hole: self.hole,
            status: self.status,
            business_no: self.business_no,
            power_dw: Some(self.power_dw),
            current_ma: Some(self.current_ma),
            energy_wh: self.energy_wh,
            charged_min: self.charged_min,
            temp_c: Some(self.temp_c),
            rssi: Some(self.rssi),
            end_reason_raw: None,
            spent_cent: None,
            settle_power_dw: None,
            end_time: None,
            card: None,
            electricity_fee_cent: None,
            service_fee_cent: None,
        }
    }
}

/// What a power order used, at the end of 0x18 and 0x0C.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Usage<'a> {
    /// Amount used up in 0.01 yuan.
    pub spent_cent: u16,
    /// Settlement power in 0.1 W, roughly the maximum during the order.
    pub settle_power_dw: u16,
    /// 0 unless the order was by power.
    pub level_count: u8,
    /// Minutes spent in each tier.
    pub level_minutes: Records<'a, u16>,
}

impl<'a> Usage<'a> {
    fn read(input: &mut Input<'a>) -> Result<Self, DecodeError> {
        let spent_cent = input.u16_be("spent_cent")?;
        let settle_power_dw = input.u16_be("settle_power_dw")?;
        let level_count = input.u8("level_count")?;
        let level_minutes = Records::take(input, "level_minutes", level_count)?;
        Ok(Self { spent_cent, settle_power_dw, level_count, level_minutes })
    }

    const fn add_to(&self, report: EndReport) -> EndReport {
        EndReport { spent_cent: Some(self.spent_cent), settle_power_dw: Some(self.settle_power_dw), ..report }
    }
}

/// Sub 02 up: an order by time or energy ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct ChargeEnd {
    /// The common block.
    #[serde(flatten)]
    pub block: EndBlock,
}

/// Sub 18 up: an order by power tiers ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct PowerEnd<'a> {
    /// The common block.
    #[serde(flatten)]
    pub block: EndBlock,
    /// Local time; plain binary, unlike 1004.
    pub end_time: DeviceTime,
    /// No list in the guide; see [`EndReason::derive`](super::EndReason::derive).
    pub end_reason: u8,
    /// What was used.
    #[serde(flatten)]
    pub usage: Usage<'a>,
}

impl PowerEnd<'_> {
    fn report(&self) -> EndReport {
        let (end_time, end_reason_raw) = (Some(self.end_time), Some(self.end_reason));
        self.usage.add_to(EndReport { end_time, end_reason_raw, ..self.block.report() })
    }
}

/// Sub 0C up: an order paid by card ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct CardEnd<'a> {
    /// The common block.
    #[serde(flatten)]
    pub block: EndBlock,
    /// The printed number is these 12 digits.
    pub card: Hex<[u8; 6]>,
    /// 0 is an online card.
    pub card_type: u8,
    /// 1 time, 2 energy, 3 power.
    pub mode: u8,
    /// What was used; zeros unless the mode is power.
    #[serde(flatten)]
    pub usage: Usage<'a>,
}

impl CardEnd<'_> {
    fn report(&self) -> EndReport {
        self.usage.add_to(EndReport { card: Some(self.card.0), ..self.block.report() })
    }
}

/// Acknowledges an end report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct EndAck {
    /// Socket number.
    pub socket: u8,
    /// 1 is success.
    pub result: u8,
}

/// Sub 0B up: a card was swiped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct CardSwipe {
    /// Socket number.
    pub socket: u8,
    /// 0 or 1.
    pub hole: u8,
    /// The device's number; the order copies it.
    pub business_no: u16,
    /// Says charging before any order runs; not to be believed.
    pub status: HoleStatus,
    /// The printed number is these 12 digits.
    pub card: Hex<[u8; 6]>,
    /// Zeros: offline cards are not supported.
    pub offline_card_data: Hex<[u8; 20]>,
}

/// Sub 0B down: the order for a swiped card.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct CardOrder<'a> {
    /// Socket number.
    pub socket: u8,
    /// 0 or 1.
    pub hole: u8,
    /// Copied from the swipe.
    pub business_no: u16,
    /// 1 on; 0 refuses the card (assumed, the guide shows no refusal).
    pub switch: u8,
    /// 1 time, 2 energy, 3 power.
    pub mode: u8,
    /// Minutes by analogy with 07; the guide's example only makes sense in seconds.
    pub time: u16,
    /// In Wh.
    pub energy_wh: u16,
    /// Only in mode 3.
    #[serde(flatten)]
    pub tariff: Option<Tariff<'a>>,
}

/// A result for one hole (0F and 1B up). Unlike the reply to 07, the result stands last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct HoleResult {
    /// Socket number.
    pub socket: u8,
    /// 0 or 1.
    pub hole: u8,
    /// 1 is success, 0 failure.
    pub result: u8,
}

/// Sub 1A up: what is on the card?
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct BalanceQuery {
    /// Socket number.
    pub socket: u8,
    /// 0 or 1.
    pub hole: u8,
    /// The printed number is these 12 digits.
    pub card: Hex<[u8; 6]>,
}

/// Sub 1A down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct BalanceReply {
    /// Copied from the query.
    #[serde(flatten)]
    pub query: BalanceQuery,
    /// In 0.01 yuan.
    pub balance_cent: u32,
}

/// A time window of the day.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Period {
    /// First minute.
    pub start: TimeOfDay,
    /// Last minute.
    pub end: TimeOfDay,
}

impl Record for Period {
    const LEN: usize = 4;

    fn read(input: &mut Input<'_>) -> Result<Self, DecodeError> {
        let [start_hour, start_minute, end_hour, end_minute] = input.array("period")?;
        Ok(Self {
            start: TimeOfDay { hour: start_hour, minute: start_minute },
            end: TimeOfDay { hour: end_hour, minute: end_minute },
        })
    }
}

/// Sub 1B down: inside the periods, buzzer and voice are set as given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct VoiceSet<'a> {
    /// Socket number; 254 is every socket of the gateway.
    pub socket: u8,
    /// Meaning not explained.
    pub hole: u8,
    /// 1 on, 0 off.
    pub buzzer: u8,
    /// 1 on, 0 off.
    pub voice: u8,
    /// 0..=2.
    pub period_count: u8,
    /// The periods.
    pub periods: Records<'a, Period>,
}

/// Decoders by the rows of [`command::TABLE`].
pub(super) mod decode {
    use super::*;

    type Decoded<'a> = Result<Body<'a>, DecodeError>;

    pub(in super::super) fn heartbeat<'a>(input: &mut Input<'a>) -> Decoded<'a> {
        let bytes = input.rest();
        let (iccid, bytes) = bytes.split_at_checked(20).unwrap_or((bytes, &[]));
        let (fw, bytes) = bytes.split_at_checked(8).unwrap_or((bytes, &[]));
        Ok(Body::Heartbeat(Heartbeat { iccid: Text(iccid), fw: Text(fw), rssi: bytes.first().copied() }))
    }

    pub(in super::super) fn heartbeat_reply<'a>(input: &mut Input<'a>) -> Decoded<'a> {
        Ok(Body::HeartbeatReply(HeartbeatReply { server_time_bcd: Hex(input.array("server_time_bcd")?) }))
    }

    pub(in super::super) fn ota<'a>(input: &mut Input<'a>) -> Decoded<'a> {
        Ok(Body::Ota(Ota {
            target: input.u8("target")?,
            ftp_ip: input.array::<4>("ftp_ip")?.into(),
            ftp_port: input.u16_be("ftp_port")?,
            file: Text(input.bytes("file", OTA_FILE_LEN)?),
        }))
    }

    pub(in super::super) fn ota_report<'a>(input: &mut Input<'a>) -> Decoded<'a> {
        raw(input).map(Body::OtaReport)
    }

    pub(in super::super) fn socket_list<'a>(inner: Inner, input: &mut Input<'a>) -> Decoded<'a> {
        Ok(Body::SocketList(inner, SocketList { channel: input.u8("channel")?, sockets: Records::rest(input) }))
    }

    pub(in super::super) fn socket_add<'a>(inner: Inner, input: &mut Input<'a>) -> Decoded<'a> {
        Ok(Body::SocketAdd(inner, SocketEntry::read(input)?))
    }

    pub(in super::super) fn socket_delete<'a>(inner: Inner, input: &mut Input<'a>) -> Decoded<'a> {
        Ok(Body::SocketDelete(inner, SocketOnly { socket: input.u8("socket")? }))
    }

    /// An unconfirmed variant answers 08 with the list (count, 14 bytes each); its count must not pass for a result.
    pub(in super::super) fn network_result<'a>(inner: Inner, input: &mut Input<'a>) -> Decoded<'a> {
        if input.remaining() > 1 {
            return raw(input).map(|raw| Body::Unread(inner, raw));
        }
        Ok(Body::NetworkResult(inner, NetworkResult { result: input.u8("result")? }))
    }

    pub(in super::super) fn socket_query<'a>(inner: Inner, input: &mut Input<'a>) -> Decoded<'a> {
        Ok(Body::SocketQuery(inner, SocketOnly { socket: input.u8("socket")? }))
    }

    pub(in super::super) fn socket_reply<'a>(inner: Inner, input: &mut Input<'a>) -> Decoded<'a> {
        let reply = SocketReply {
            socket: input.u8("socket")?,
            fw: Hex(input.array("fw")?),
            temp_c: input.u8("temp_c")?,
            rssi: input.u8("rssi")?,
            holes: Records::rest(input),
        };
        Ok(Body::SocketReply(inner, reply))
    }

    pub(in super::super) fn start<'a>(inner: Inner, input: &mut Input<'a>) -> Decoded<'a> {
        let start = Start {
            socket: input.u8("socket")?,
            hole: input.u8("hole")?,
            switch: input.u8("switch")?,
            mode: input.u8("mode")?,
            minutes: input.u16_be("minutes")?,
            energy_wh: input.u16_be("energy_wh")?,
        };
        Ok(Body::Start(inner, start))
    }

    pub(in super::super) fn start_reply<'a>(inner: Inner, input: &mut Input<'a>) -> Decoded<'a> {
        let reply = StartReply {
            result: input.u8("result")?,
            socket: input.u8("socket")?,
            hole: input.u8("hole")?,
            business_no: input.u16_be("business_no")?,
        };
        Ok(Body::StartReply(inner, reply))
    }

    pub(in super::super) fn power_start<'a>(inner: Inner, input: &mut Input<'a>) -> Decoded<'a> {
        let start = PowerStart {
            socket: input.u8("socket")?,
            hole: input.u8("hole")?,
            switch: input.u8("switch")?,
            tariff: Tariff::read(input)?,
        };
        Ok(Body::PowerStart(inner, start))
    }

    pub(in super::super) fn charge_end<'a>(inner: Inner, input: &mut Input<'a>) -> Decoded<'a> {
        Ok(Body::ChargeEnd(inner, ChargeEnd { block: EndBlock::read(input)? }))
    }

    pub(in super::super) fn power_end<'a>(inner: Inner, input: &mut Input<'a>) -> Decoded<'a> {
        let end = PowerEnd {
            block: EndBlock::read(input)?,
            end_time: DeviceTime::from_binary(input.array("end_time")?),
            end_reason: input.u8("end_reason")?,
            usage: Usage::read(input)?,
        };
        Ok(Body::PowerEnd(inner, end))
    }

    pub(in super::super) fn card_end<'a>(inner: Inner, input: &mut Input<'a>) -> Decoded<'a> {
        let end = CardEnd {
            block: EndBlock::read(input)?,
            card: Hex(input.array("card")?),
            card_type: input.u8("card_type")?,
            mode: input.u8("mode")?,
            usage: Usage::read(input)?,
        };
        Ok(Body::CardEnd(inner, end))
    }

    pub(in super::super) fn end_ack<'a>(inner: Inner, input: &mut Input<'a>) -> Decoded<'a> {
        Ok(Body::EndAck(inner, EndAck { socket: input.u8("socket")?, result: input.u8("result")? }))
    }

    pub(in super::super) fn card_swipe<'a>(inner: Inner, input: &mut Input<'a>) -> Decoded<'a> {
        let swipe = CardSwipe {
            socket: input.u8("socket")?,
            hole: input.u8("hole")?,
            business_no: input.u16_be("business_no")?,
            status: HoleStatus::read(input)?,
            card: Hex(input.array("card")?),
            offline_card_data: Hex(input.array("offline_card_data")?),
        };
        Ok(Body::CardSwipe(inner, swipe))
    }

    pub(in super::super) fn card_order<'a>(inner: Inner, input: &mut Input<'a>) -> Decoded<'a> {
        let mut order = CardOrder {
            socket: input.u8("socket")?,
            hole: input.u8("hole")?,
            business_no: input.u16_be("business_no")?,
            switch: input.u8("switch")?,
            mode: input.u8("mode")?,
            time: input.u16_be("time")?,
            energy_wh: input.u16_be("energy_wh")?,
            tariff: None,
        };
        if order.mode == 3 {
            order.tariff = Some(Tariff::read(input)?);
        }
        Ok(Body::CardOrder(inner, order))
    }

    pub(in super::super) fn card_confirm<'a>(inner: Inner, input: &mut Input<'a>) -> Decoded<'a> {
        Ok(Body::CardConfirm(inner, hole_result(input)?))
    }

    pub(in super::super) fn balance_query<'a>(inner: Inner, input: &mut Input<'a>) -> Decoded<'a> {
        Ok(Body::BalanceQuery(inner, balance(input)?))
    }

    pub(in super::super) fn balance_reply<'a>(inner: Inner, input: &mut Input<'a>) -> Decoded<'a> {
        let reply = BalanceReply { query: balance(input)?, balance_cent: input.u32_be("balance_cent")? };
        Ok(Body::BalanceReply(inner, reply))
    }

    pub(in super::super) fn voice_set<'a>(inner: Inner, input: &mut Input<'a>) -> Decoded<'a> {
        let socket = input.u8("socket")?;
        let hole = input.u8("hole")?;
        let buzzer = input.u8("buzzer")?;
        let voice = input.u8("voice")?;
        let period_count = input.u8("period_count")?;
        let periods = Records::take(input, "periods", period_count)?;
        Ok(Body::VoiceSet(inner, VoiceSet { socket, hole, buzzer, voice, period_count, periods }))
    }

    pub(in super::super) fn voice_reply<'a>(inner: Inner, input: &mut Input<'a>) -> Decoded<'a> {
        Ok(Body::VoiceReply(inner, hole_result(input)?))
    }

    pub(in super::super) fn push(packet: Packet<'_>) -> Decoded<'_> {
        Ok(Body::Push(packet))
    }

    pub(in super::super) fn fee_end(packet: Packet<'_>) -> Decoded<'_> {
        FeeEnd::new(packet).map(Body::FeeEnd)
    }

    pub(in super::super) fn exception(packet: Packet<'_>) -> Decoded<'_> {
        Exception::new(packet).map(Body::Exception)
    }

    pub(in super::super) fn event(packet: Packet<'_>) -> Decoded<'_> {
        Ok(Body::Event(Event::new(packet)))
    }

    pub(in super::super) fn packet_reply(packet: Packet<'_>) -> Decoded<'_> {
        PacketReply::new(packet).map(Body::PacketReply)
    }

    pub(in super::super) fn fee_start(packet: Packet<'_>) -> Decoded<'_> {
        FeeStart::new(packet).map(Body::FeeStart)
    }

    pub(in super::super) fn param_set(packet: Packet<'_>) -> Decoded<'_> {
        ParamSet::new(packet).map(Body::ParamSet)
    }

    pub(in super::super) fn param_query(packet: Packet<'_>) -> Decoded<'_> {
        ParamQuery::new(packet).map(Body::ParamQuery)
    }

    fn hole_result(input: &mut Input<'_>) -> Result<HoleResult, DecodeError> {
        Ok(HoleResult { socket: input.u8("socket")?, hole: input.u8("hole")?, result: input.u8("result")? })
    }

    fn balance(input: &mut Input<'_>) -> Result<BalanceQuery, DecodeError> {
        Ok(BalanceQuery { socket: input.u8("socket")?, hole: input.u8("hole")?, card: Hex(input.array("card")?) })
    }
}

/// Width of the file name in 0x0007.
pub const OTA_FILE_LEN: usize = 13;

impl Serialize for Body<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct WithInner<'b, T> {
            inner_len: u16,
            inner_len_ok: bool,
            sub: String,
            #[serde(flatten)]
            body: &'b T,
        }
        fn inner<S: Serializer, T: Serialize>(inner: &Inner, body: &T, serializer: S) -> Result<S::Ok, S::Error> {
            let sub = format!("{:#04x}", inner.sub);
            WithInner { inner_len: inner.len, inner_len_ok: true, sub, body }.serialize(serializer)
        }
        match self {
            Self::Heartbeat(body) => body.serialize(serializer),
            Self::HeartbeatReply(body) => body.serialize(serializer),
            Self::Ota(body) => body.serialize(serializer),
            Self::OtaReport(body) => body.serialize(serializer),
            Self::SocketList(head, body) => inner(head, body, serializer),
            Self::SocketAdd(head, body) => inner(head, body, serializer),
            Self::SocketDelete(head, body) | Self::SocketQuery(head, body) => inner(head, body, serializer),
            Self::NetworkResult(head, body) => inner(head, body, serializer),
            Self::SocketReply(head, body) => inner(head, body, serializer),
            Self::Start(head, body) => inner(head, body, serializer),
            Self::StartReply(head, body) => inner(head, body, serializer),
            Self::PowerStart(head, body) => inner(head, body, serializer),
            Self::ChargeEnd(head, body) => inner(head, body, serializer),
            Self::PowerEnd(head, body) => inner(head, body, serializer),
            Self::CardEnd(head, body) => inner(head, body, serializer),
            Self::EndAck(head, body) => inner(head, body, serializer),
            Self::CardSwipe(head, body) => inner(head, body, serializer),
            Self::CardOrder(head, body) => inner(head, body, serializer),
            Self::CardConfirm(head, body) | Self::VoiceReply(head, body) => inner(head, body, serializer),
            Self::BalanceQuery(head, body) => inner(head, body, serializer),
            Self::BalanceReply(head, body) => inner(head, body, serializer),
            Self::VoiceSet(head, body) => inner(head, body, serializer),
            Self::Unread(head, body) => inner(head, body, serializer),
            Self::Push(packet) | Self::Packet(packet) => packet.serialize(serializer),
            Self::FeeEnd(FeeEnd { packet, .. })
            | Self::Exception(Exception { packet, .. })
            | Self::Event(Event { packet, .. })
            | Self::PacketReply(PacketReply { packet, .. })
            | Self::FeeStart(FeeStart { packet, .. })
            | Self::ParamSet(ParamSet { packet, .. })
            | Self::ParamQuery(ParamQuery { packet, .. }) => packet.serialize(serializer),
        }
    }
}
