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
use super::encode;
use super::fields::{Fields, fields, read_field};
use super::frame::Frame;
use super::packet::{Event, Exception, FeeEnd, FeeStart, Packet, PacketReply, ParamQuery, ParamSet};
use super::records::{Record, Records};
use super::report::{EndReport, HoleBlock, SocketState, Sockets};
use super::status::HoleStatus;
use crate::protocol::{DecodeError, Direction, Hex, Input};

/// Length and sub-command in front of the fields of 0x0005 and 0x0015.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inner {
    /// Bytes behind the sub-command.
    pub len: u16,
    /// Sub-command.
    pub sub: u8,
}

impl Inner {
    /// In front of a body that is going to be written, which counts its length itself.
    pub const fn new(sub: u8) -> Self {
        Self { len: 0, sub }
    }

    /// Appends length, sub-command and fields.
    fn write<'a>(self, out: &mut Vec<u8>, fields: &impl Fields<'a>) {
        encode::inner_payload(out, self.sub, |out| fields.write(out));
    }
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
    /// Appends the payload of a frame with this body; the inner length is counted anew.
    ///
    /// What was read is written as it came, but for what its type does not hold: bytes behind the last field, in the typed
    /// packets (not in [`Body::Push`] and [`Body::Packet`]) tags of no meaning for them, and the order of tags.
    pub fn write(&self, out: &mut Vec<u8>) {
        match self {
            Self::Heartbeat(body) => body.write(out),
            Self::HeartbeatReply(body) => Record::write(body, out),
            Self::Ota(body) => body.write(out),
            Self::OtaReport(body) => body.write(out),
            Self::SocketList(inner, body) => inner.write(out, body),
            Self::SocketAdd(inner, body) => inner.write(out, body),
            Self::SocketDelete(inner, body) | Self::SocketQuery(inner, body) => inner.write(out, body),
            Self::NetworkResult(inner, body) => inner.write(out, body),
            Self::SocketReply(inner, body) => inner.write(out, body),
            Self::Start(inner, body) => inner.write(out, body),
            Self::StartReply(inner, body) => inner.write(out, body),
            Self::PowerStart(inner, body) => inner.write(out, body),
            Self::ChargeEnd(inner, body) => inner.write(out, body),
            Self::PowerEnd(inner, body) => inner.write(out, body),
            Self::CardEnd(inner, body) => inner.write(out, body),
            Self::EndAck(inner, body) => inner.write(out, body),
            Self::CardSwipe(inner, body) => inner.write(out, body),
            Self::CardOrder(inner, body) => inner.write(out, body),
            Self::CardConfirm(inner, body) | Self::VoiceReply(inner, body) => inner.write(out, body),
            Self::BalanceQuery(inner, body) => inner.write(out, body),
            Self::BalanceReply(inner, body) => inner.write(out, body),
            Self::VoiceSet(inner, body) => inner.write(out, body),
            Self::Unread(inner, body) => inner.write(out, body),
            Self::Push(packet) | Self::Packet(packet) => packet.write(out),
            Self::FeeEnd(body) => body.write(out),
            Self::Exception(body) => body.write(out),
            Self::Event(body) => body.write(out),
            Self::PacketReply(body) => body.write(out),
            Self::FeeStart(body) => body.write(out),
            Self::ParamSet(body) => body.write(out),
            Self::ParamQuery(body) => body.write(out),
        }
    }

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
    // Each way is a function of its own: none pays for the registers of another. Heartbeats come most, and go round the table.
    match (frame.command, frame.direction) {
        (command::HEARTBEAT, Direction::Up) => {
            Heartbeat::read(&mut Input::new(frame.payload), "body").map(Body::Heartbeat)
        }
        (command::NETWORK | command::CONTROL, _) => decode_inner(frame),
        (command::PACKET, _) => decode_packet(frame),
        _ => decode_fixed(frame),
    }
}

/// Reads a body with an inner length.
#[inline(never)]
fn decode_inner<'a>(frame: &Frame<'a>) -> Result<Body<'a>, DecodeError> {
    let mut input = Input::new(frame.payload);
    let inner = Inner { len: input.u16_be("inner_len")?, sub: input.u8("sub")? };
    if usize::from(inner.len) != input.remaining() {
        let expected = "the number of bytes behind the sub-command";
        return Err(DecodeError::Invalid { field: "inner_len", expected, value: u64::from(inner.len) });
    }
    match decoder(frame, Some(u16::from(inner.sub))) {
        Some(Decoder::Inner(decode)) => decode(inner, input),
        _ => Raw::read(&mut input, "body").map(|raw| Body::Unread(inner, raw)),
    }
}

/// Reads a tagged packet; those that come most without a walk.
#[inline(never)]
fn decode_packet<'a>(frame: &Frame<'a>) -> Result<Body<'a>, DecodeError> {
    if let Some(packet) = Packet::usual_push(frame) {
        return Ok(Body::Push(packet));
    }
    if let Some(end) = FeeEnd::usual(frame) {
        return Ok(Body::FeeEnd(end));
    }
    walk_packet(frame)
}

/// Reads a packet of any shape.
#[inline(never)]
fn walk_packet<'a>(frame: &Frame<'a>) -> Result<Body<'a>, DecodeError> {
    let packet = Packet::parse(frame)?;
    match decoder(frame, Some(packet.command)) {
        Some(Decoder::Packet(decode)) => decode(packet),
        _ => Ok(Body::Packet(packet)),
    }
}

/// Reads a body without sub-command.
#[inline(never)]
fn decode_fixed<'a>(frame: &Frame<'a>) -> Result<Body<'a>, DecodeError> {
    let command = frame.command;
    match decoder(frame, None) {
        Some(Decoder::Fixed(decode)) => decode(Input::new(frame.payload)),
        _ if command::lookup(command, None).is_some() => Err(DecodeError::NotDecoded { command }),
        _ => Err(DecodeError::Unknown { command }),
    }
}

#[inline]
fn decoder(frame: &Frame<'_>, sub: Option<u16>) -> Option<Decoder> {
    command::lookup(frame.command, sub)?.layout(frame.direction).map(|layout| layout.decoder)
}

/// ASCII text of fixed width, NUL padded. Other bytes are shown escaped.
#[derive(Clone, Copy)]
pub struct Text<'a>(&'a [u8]);

impl<'a> Text<'a> {
    /// A text; padded when it is written, and cut off where its field ends.
    pub const fn new(text: &'a [u8]) -> Self {
        Self(text)
    }

    fn write(self, out: &mut Vec<u8>, width: usize) {
        let padding = std::iter::repeat(&0);
        out.extend(self.0.iter().chain(padding).take(width));
    }

    /// The bytes without the padding, but with what stands behind a NUL.
    const fn unpadded(self) -> &'a [u8] {
        let mut text = self.0;
        while let [head @ .., 0] = text {
            text = head;
        }
        text
    }

    /// The bytes in front of the padding.
    pub fn as_bytes(&self) -> &'a [u8] {
        self.0.split(|byte| *byte == 0).next().unwrap_or_default()
    }
}

/// Padding does not count.
impl PartialEq for Text<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.unpadded() == other.unpadded()
    }
}

impl Eq for Text<'_> {}

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

impl<'a> Fields<'a> for Raw<'a> {
    fn read(input: &mut Input<'a>, _: &'static str) -> Result<Self, DecodeError> {
        Ok(Self { body: Hex(input.rest()) })
    }

    fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.body.0);
    }
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

impl<'a> Fields<'a> for Heartbeat<'a> {
    #[inline]
    fn read(input: &mut Input<'a>, _: &'static str) -> Result<Self, DecodeError> {
        let bytes = input.rest();
        let (iccid, bytes) = bytes.split_at_checked(ICCID_LEN).unwrap_or((bytes, &[]));
        let (fw, bytes) = bytes.split_at_checked(FW_LEN).unwrap_or((bytes, &[]));
        Ok(Self { iccid: Text(iccid), fw: Text(fw), rssi: bytes.first().copied() })
    }

    fn write(&self, out: &mut Vec<u8>) {
        match (self.rssi, self.fw.0) {
            (Some(rssi), _) => {
                self.iccid.write(out, ICCID_LEN);
                self.fw.write(out, FW_LEN);
                out.push(rssi);
            }
            // A short one ends with the last field it has.
            (None, []) => out.extend(self.iccid.0.iter().take(ICCID_LEN)),
            (None, fw) => {
                self.iccid.write(out, ICCID_LEN);
                out.extend(fw.iter().take(FW_LEN));
            }
        }
    }
}

fields! {
    /// 0x0000 down.
    pub struct HeartbeatReply {
        /// Local time; see [`DeviceTime::from_bcd`].
        server_time_bcd: Hex<[u8; 7]>,
    }
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

impl Ota<'_> {
    /// The only target the guide shows: the gateway itself.
    pub const GATEWAY: u8 = 1;
}

impl<'a> Fields<'a> for Ota<'a> {
    fn read(input: &mut Input<'a>, _: &'static str) -> Result<Self, DecodeError> {
        Ok(Self {
            target: input.u8("target")?,
            ftp_ip: Record::read(input, "ftp_ip")?,
            ftp_port: input.u16_be("ftp_port")?,
            file: Text(input.bytes("file", OTA_FILE_LEN)?),
        })
    }

    fn write(&self, out: &mut Vec<u8>) {
        out.push(self.target);
        Record::write(&self.ftp_ip, out);
        Record::write(&self.ftp_port, out);
        self.file.write(out, OTA_FILE_LEN);
    }
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
        Fields { target, ftp_ip, ftp_port, file, file_field_len: OTA_FILE_LEN }.serialize(serializer)
    }
}

fields! {
    /// One row of the network list.
    pub struct SocketEntry {
        /// Socket number, 1..=250.
        socket: u8,
        /// Radio address, printed on the back.
        mac: Hex<[u8; 6]>,
    }
}

fields! {
    /// Sub 08 down: replaces the whole list.
    pub struct SocketList<'a> {
        /// Radio channel, 1..=15.
        channel: u8,
        /// The new list.
        sockets: Records<'a, SocketEntry>,
    }
}

fields! {
    /// A body that only names a socket.
    pub struct SocketOnly {
        /// Socket number.
        socket: u8,
    }
}

fields! {
    /// Reply to a change of the network list.
    pub struct NetworkResult {
        /// 1 is success, 0 failure.
        result: u8,
    }
}

fields! {
    /// Reply to a socket query.
    pub struct SocketReply<'a> {
        /// Socket number.
        socket: u8,
        /// Socket firmware, opaque.
        fw: Hex<[u8; 2]>,
        /// Temperature in °C.
        temp_c: u8,
        /// Radio signal, raw.
        rssi: u8,
        /// The holes.
        holes: Records<'a, HoleBlock>,
    }
}

impl<'a> SocketReply<'a> {
    const fn state(&self) -> SocketState<'a> {
        SocketState::from_blocks(self.socket, self.fw.0, self.temp_c, self.rssi, self.holes)
    }
}

fields! {
    /// Sub 07 down: start by time or energy, or stop.
    pub struct Start {
        /// Socket number.
        socket: u8,
        /// 0 or 1.
        hole: u8,
        /// 1 on, 0 off; with 0 the device ignores the rest.
        switch: u8,
        /// 1 time, 0 energy. Not the numbering of the card commands.
        mode: u8,
        /// 1..=900, or 0 when the mode is energy.
        minutes: u16,
        /// In Wh, or 0 when the mode is time.
        energy_wh: u16,
    }
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

fields! {
    /// Sub 07 or 17 up. The guide does not show the reply to 17; it is read like that to 07.
    pub struct StartReply {
        /// 1 is success, 0 refused.
        result: u8,
        /// Socket number.
        socket: u8,
        /// 0 or 1.
        hole: u8,
        /// The device's number for the new order; may be 0 in the reply to a stop.
        business_no: u16,
    }
}

fields! {
    /// One power tier: `price_cent` buys `minutes` minutes while the power is at most `power_dw`.
    pub struct Level {
        /// Upper limit in 0.1 W.
        power_dw: u16,
        /// In 0.01 yuan.
        price_cent: u16,
        /// In minutes.
        minutes: u16,
    }
}

fields! {
    /// Sub 17 down: start by power tiers.
    pub struct PowerStart<'a> {
        /// Socket number.
        socket: u8,
        /// 0 or 1.
        hole: u8,
        /// 1 on, 0 off.
        switch: u8,
        /// What the tiers are charged against.
        #[serde(flatten)]
        tariff: Tariff<'a>,
    }
}

fields! {
    /// Amount and tiers of a power order.
    pub struct Tariff<'a> {
        /// Amount paid in 0.01 yuan.
        paid_cent: u16,
        /// 1..=5.
        level_count: u8,
        /// The tiers.
        levels: Records<'a, Level> = level_count,
    }
}

fields! {
    /// The 17 bytes that begin every end report but 1004.
    pub struct EndBlock {
        /// Socket number.
        socket: u8,
        /// Socket firmware, opaque.
        fw: Hex<[u8; 2]>,
        /// Temperature in °C.
        temp_c: u8,
        /// Radio signal, raw.
        rssi: u8,
        /// 0 or 1.
        hole: u8,
        /// Status of the moment before switch-off.
        status: HoleStatus,
        /// The device's order number.
        business_no: u16,
        /// Power in 0.1 W.
        power_dw: u16,
        /// Current in mA.
        current_ma: u16,
        /// Energy in Wh.
        energy_wh: u16,
        /// Charged time in minutes.
        charged_min: u16,
    }
}

impl EndBlock {
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

fields! {
    /// What a power order used, at the end of 0x18 and 0x0C.
    pub struct Usage<'a> {
        /// Amount used up in 0.01 yuan.
        spent_cent: u16,
        /// Settlement power in 0.1 W, roughly the maximum during the order.
        settle_power_dw: u16,
        /// 0 unless the order was by power.
        level_count: u8,
        /// Minutes spent in each tier.
        level_minutes: Records<'a, u16> = level_count,
    }
}

impl Usage<'_> {
    const fn add_to(&self, report: EndReport) -> EndReport {
        EndReport { spent_cent: Some(self.spent_cent), settle_power_dw: Some(self.settle_power_dw), ..report }
    }
}

fields! {
    /// Sub 02 up: an order by time or energy ended.
    pub struct ChargeEnd {
        /// The common block.
        #[serde(flatten)]
        block: EndBlock,
    }
}

fields! {
    /// Sub 18 up: an order by power tiers ended.
    pub struct PowerEnd<'a> {
        /// The common block.
        #[serde(flatten)]
        block: EndBlock,
        /// Local time; plain binary, unlike 1004.
        end_time: DeviceTime,
        /// No list in the guide; see [`EndReason::derive`](super::EndReason::derive).
        end_reason: u8,
        /// What was used.
        #[serde(flatten)]
        usage: Usage<'a>,
    }
}

impl PowerEnd<'_> {
    fn report(&self) -> EndReport {
        let (end_time, end_reason_raw) = (Some(self.end_time), Some(self.end_reason));
        self.usage.add_to(EndReport { end_time, end_reason_raw, ..self.block.report() })
    }
}

fields! {
    /// Sub 0C up: an order paid by card ended.
    pub struct CardEnd<'a> {
        /// The common block.
        #[serde(flatten)]
        block: EndBlock,
        /// The printed number is these 12 digits.
        card: Hex<[u8; 6]>,
        /// 0 is an online card.
        card_type: u8,
        /// 1 time, 2 energy, 3 power.
        mode: u8,
        /// What was used; zeros unless the mode is power.
        #[serde(flatten)]
        usage: Usage<'a>,
    }
}

impl CardEnd<'_> {
    fn report(&self) -> EndReport {
        self.usage.add_to(EndReport { card: Some(self.card.0), ..self.block.report() })
    }
}

fields! {
    /// Acknowledges an end report.
    pub struct EndAck {
        /// Socket number.
        socket: u8,
        /// 1 is success.
        result: u8,
    }
}

fields! {
    /// Sub 0B up: a card was swiped.
    pub struct CardSwipe {
        /// Socket number.
        socket: u8,
        /// 0 or 1.
        hole: u8,
        /// The device's number; the order copies it.
        business_no: u16,
        /// Says charging before any order runs; not to be believed.
        status: HoleStatus,
        /// The printed number is these 12 digits.
        card: Hex<[u8; 6]>,
        /// Zeros: offline cards are not supported.
        offline_card_data: Hex<[u8; 20]>,
    }
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

impl<'a> Fields<'a> for CardOrder<'a> {
    fn read(input: &mut Input<'a>, _: &'static str) -> Result<Self, DecodeError> {
        let mut order = Self {
            socket: input.u8("socket")?,
            hole: input.u8("hole")?,
            business_no: input.u16_be("business_no")?,
            switch: input.u8("switch")?,
            mode: input.u8("mode")?,
            time: input.u16_be("time")?,
            energy_wh: input.u16_be("energy_wh")?,
            tariff: None,
        };
        if order.mode == Self::POWER {
            order.tariff = Some(Tariff::read(input, "tariff")?);
        }
        Ok(order)
    }

    fn write(&self, out: &mut Vec<u8>) {
        debug_assert_eq!(self.mode == Self::POWER, self.tariff.is_some(), "a tariff goes with the power mode");
        out.extend_from_slice(&[self.socket, self.hole]);
        Record::write(&self.business_no, out);
        out.extend_from_slice(&[self.switch, self.mode]);
        Record::write(&self.time, out);
        Record::write(&self.energy_wh, out);
        if let Some(tariff) = &self.tariff {
            tariff.write(out);
        }
    }
}

/// Values of [`CardOrder::mode`]; not the numbering of [`Start::mode`].
impl CardOrder<'_> {
    /// By time.
    pub const TIME: u8 = 1;
    /// By energy.
    pub const ENERGY: u8 = 2;
    /// By power tiers; the only one with a tariff.
    pub const POWER: u8 = 3;
}

fields! {
    /// A result for one hole (0F and 1B up). Unlike the reply to 07, the result stands last.
    pub struct HoleResult {
        /// Socket number.
        socket: u8,
        /// 0 or 1.
        hole: u8,
        /// 1 is success, 0 failure.
        result: u8,
    }
}

fields! {
    /// Sub 1A up: what is on the card?
    pub struct BalanceQuery {
        /// Socket number.
        socket: u8,
        /// 0 or 1.
        hole: u8,
        /// The printed number is these 12 digits.
        card: Hex<[u8; 6]>,
    }
}

fields! {
    /// Sub 1A down.
    pub struct BalanceReply {
        /// Copied from the query.
        #[serde(flatten)]
        query: BalanceQuery,
        /// In 0.01 yuan.
        balance_cent: u32,
    }
}

fields! {
    /// A time window of the day.
    pub struct Period {
        /// First minute.
        start: TimeOfDay,
        /// Last minute.
        end: TimeOfDay,
    }
}

fields! {
    /// Sub 1B down: inside the periods, buzzer and voice are set as given.
    pub struct VoiceSet<'a> {
        /// Socket number; 254 is every socket of the gateway.
        socket: u8,
        /// Meaning not explained.
        hole: u8,
        /// 1 on, 0 off.
        buzzer: u8,
        /// 1 on, 0 off.
        voice: u8,
        /// 0..=2.
        period_count: u8,
        /// The periods.
        periods: Records<'a, Period> = period_count,
    }
}

/// Decoders by the rows of [`command::TABLE`].
pub(super) mod decode {
    use super::*;

    type Decoded<'a> = Result<Body<'a>, DecodeError>;

    macro_rules! decoders {
        (fixed { $($fixed:ident => $fixed_body:ident;)* }
         inner { $($inner:ident => $inner_body:ident;)* }
         packet { $($packet:ident => $packet_body:ident;)* }) => {
            $( pub(in super::super) fn $fixed<'a>(mut input: Input<'a>) -> Decoded<'a> {
                Fields::read(&mut input, "body").map(Body::$fixed_body)
            } )*
            $( pub(in super::super) fn $inner<'a>(inner: Inner, mut input: Input<'a>) -> Decoded<'a> {
                Fields::read(&mut input, "body").map(|body| Body::$inner_body(inner, body))
            } )*
            $( pub(in super::super) fn $packet(packet: Packet<'_>) -> Decoded<'_> {
                $packet_body::read(packet).map(Body::$packet_body)
            } )*
        };
    }

    decoders! {
        fixed {
            heartbeat => Heartbeat;
            heartbeat_reply => HeartbeatReply;
            ota => Ota;
            ota_report => OtaReport;
        }
        inner {
            socket_list => SocketList;
            socket_add => SocketAdd;
            socket_delete => SocketDelete;
            socket_query => SocketQuery;
            socket_reply => SocketReply;
            start => Start;
            start_reply => StartReply;
            power_start => PowerStart;
            charge_end => ChargeEnd;
            power_end => PowerEnd;
            card_end => CardEnd;
            end_ack => EndAck;
            card_swipe => CardSwipe;
            card_order => CardOrder;
            card_confirm => CardConfirm;
            balance_query => BalanceQuery;
            balance_reply => BalanceReply;
            voice_set => VoiceSet;
            voice_reply => VoiceReply;
        }
        packet {
            fee_end => FeeEnd;
            exception => Exception;
            event => Event;
            packet_reply => PacketReply;
            fee_start => FeeStart;
            param_set => ParamSet;
            param_query => ParamQuery;
        }
    }

    /// An unconfirmed variant answers 08 with the list (count, 14 bytes each); its count must not pass for a result.
    pub(in super::super) fn network_result(inner: Inner, mut input: Input<'_>) -> Decoded<'_> {
        if input.remaining() > 1 {
            return Raw::read(&mut input, "body").map(|raw| Body::Unread(inner, raw));
        }
        Record::read(&mut input, "body").map(|result| Body::NetworkResult(inner, result))
    }

    pub(in super::super) fn push(packet: Packet<'_>) -> Decoded<'_> {
        Ok(Body::Push(packet))
    }
}

/// Width of the ICCID in a heartbeat.
const ICCID_LEN: usize = 20;
/// Width of the firmware in a heartbeat.
const FW_LEN: usize = 8;
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
