//! One view of the four end reports, and one of the two kinds of socket state.
//!
//! A gateway reports the same facts in different layouts: an end as 0x02, 0x18, 0x0C or tagged 1004, a state as a query
//! reply (1C or 1D) or as a tagged push (1017). Consumers settle and track through the types here and need not know.

use super::clock::DeviceTime;
use super::fields::fields;
use super::records::Records;
use super::status::HoleStatus;
use super::tlv::{Elements, Shape, key};

/// How a charge ended, from any of the four end reports.
///
/// Repeated reports are not byte-identical, because power and current are measured again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EndReport {
    /// Socket number, 0 on a standalone device.
    pub socket: u8,
    /// 0 or 1.
    pub hole: u8,
    /// Status of the moment before switch-off, so it still says charging.
    pub status: HoleStatus,
    /// The device's own order number; repeats over time.
    pub business_no: u16,
    /// Power in 0.1 W; `None` if a tagged report leaves it out.
    pub power_dw: Option<u16>,
    /// Current in mA; `None` if a tagged report leaves it out.
    pub current_ma: Option<u16>,
    /// Energy in Wh.
    pub energy_wh: u16,
    /// Charged time in minutes.
    pub charged_min: u16,
    /// Socket temperature in °C; `None` if a tagged report leaves it out.
    pub temp_c: Option<u8>,
    /// Radio signal of the socket, raw; absent in 1004.
    pub rssi: Option<u8>,
    /// Reason byte as sent (0x18, 1004). The guide lists no meanings.
    pub end_reason_raw: Option<u8>,
    /// Amount used up in 0.01 yuan (0x18, 0x0C).
    pub spent_cent: Option<u16>,
    /// Settlement power in 0.1 W (0x18, 0x0C).
    pub settle_power_dw: Option<u16>,
    /// When the device ended it, local time as sent (0x18, 1004).
    pub end_time: Option<DeviceTime>,
    /// Card that paid (0x0C).
    pub card: Option<[u8; 6]>,
    /// Electricity fee in 0.01 yuan (1004).
    pub electricity_fee_cent: Option<u16>,
    /// Service fee in 0.01 yuan (1004).
    pub service_fee_cent: Option<u16>,
}

fields! {
    /// One hole's block in a query reply, 14 bytes.
    pub struct HoleBlock {
        /// 0 or 1.
        hole: u8,
        /// Status byte.
        status: HoleStatus,
        /// Running order's number, 0 for none.
        business_no: u16,
        /// Voltage in 0.1 V.
        voltage_dv: u16,
        /// Power in 0.1 W.
        power_dw: u16,
        /// Current in mA.
        current_ma: u16,
        /// Energy of this order in Wh.
        energy_wh: u16,
        /// Charged time of this order in minutes.
        charged_min: u16,
    }
}

/// State of one hole. `None`: the report leaves the value out (or sends it in another size than the guide's), so the
/// last known value holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct HoleState {
    /// 0 or 1; without it the state belongs to no hole.
    pub hole: Option<u8>,
    /// Status byte.
    pub status: Option<HoleStatus>,
    /// Running order's number, 0 for none.
    pub business_no: Option<u16>,
    /// Voltage in 0.1 V.
    pub voltage_dv: Option<u16>,
    /// Power in 0.1 W.
    pub power_dw: Option<u16>,
    /// Current in mA.
    pub current_ma: Option<u16>,
    /// Energy of this order in Wh.
    pub energy_wh: Option<u16>,
    /// Charged time of this order in minutes.
    pub charged_min: Option<u16>,
}

impl From<HoleBlock> for HoleState {
    fn from(block: HoleBlock) -> Self {
        Self {
            hole: Some(block.hole),
            status: Some(block.status),
            business_no: Some(block.business_no),
            voltage_dv: Some(block.voltage_dv),
            power_dw: Some(block.power_dw),
            current_ma: Some(block.current_ma),
            energy_wh: Some(block.energy_wh),
            charged_min: Some(block.charged_min),
        }
    }
}

impl HoleState {
    #[inline]
    fn from_elements(elements: Elements<'_>) -> Self {
        let mut state = Self::default();
        for element in elements {
            match element.key {
                key::HOLE => state.hole = element.u8(),
                key::STATUS => state.status = element.u8().map(HoleStatus),
                key::BUSINESS_NO => state.business_no = element.u16(),
                key::VOLTAGE => state.voltage_dv = element.u16(),
                key::POWER => state.power_dw = element.u16(),
                key::CURRENT => state.current_ma = element.u16(),
                key::ENERGY => state.energy_wh = element.u16(),
                key::CHARGED_MIN => state.charged_min = element.u16(),
                _ => {}
            }
        }
        state
    }
}

/// State of one socket and its holes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketState<'a> {
    /// Socket number, 0 on a standalone device; without it the state belongs to no socket.
    pub socket: Option<u8>,
    /// Socket firmware, opaque; `FFFF` is unknown.
    pub fw: Option<[u8; 2]>,
    /// Temperature in °C.
    pub temp_c: Option<u8>,
    /// Radio signal, raw.
    pub rssi: Option<u8>,
    holes: Holes<'a>,
}

impl<'a> SocketState<'a> {
    pub(super) const fn from_blocks(
        socket: u8,
        fw: [u8; 2],
        temp_c: u8,
        rssi: u8,
        blocks: Records<'a, HoleBlock>,
    ) -> Self {
        Self {
            socket: Some(socket),
            fw: Some(fw),
            temp_c: Some(temp_c),
            rssi: Some(rssi),
            holes: Holes::Blocks(blocks),
        }
    }

    #[inline]
    fn from_elements(elements: Elements<'a>) -> Self {
        let mut state = Self { socket: None, fw: None, temp_c: None, rssi: None, holes: Holes::Elements(elements) };
        for element in elements {
            match element.key {
                key::SOCKET_NO => state.socket = element.u8(),
                key::SOCKET_FW => state.fw = element.array(),
                key::MCU_TEMP => state.temp_c = element.u8(),
                key::RSSI => state.rssi = element.u8(),
                _ => {}
            }
        }
        state
    }

    /// The holes reported, usually two.
    pub const fn holes(&self) -> Holes<'a> {
        self.holes
    }
}

/// A socket with two holes in a push, as the guide shows it and captured gateways send it.
pub(super) const SOCKET_LEN: usize = 102;
/// Its elements.
pub(super) static SOCKET: Shape<SOCKET_LEN> = Shape::new(&[
    (key::SOCKET_STATUS, 99),
    (key::SOCKET_NO, 1),
    (key::SOCKET_FW, 2),
    (key::MCU_TEMP, 1),
    (key::RSSI, 1),
    (key::HOLE_ATTRS, 38),
    (key::HOLE, 1),
    (key::STATUS, 1),
    (key::BUSINESS_NO, 2),
    (key::VOLTAGE, 2),
    (key::POWER, 2),
    (key::CURRENT, 2),
    (key::ENERGY, 2),
    (key::CHARGED_MIN, 2),
    (key::HOLE_ATTRS, 38),
    (key::HOLE, 1),
    (key::STATUS, 1),
    (key::BUSINESS_NO, 2),
    (key::VOLTAGE, 2),
    (key::POWER, 2),
    (key::CURRENT, 2),
    (key::ENERGY, 2),
    (key::CHARGED_MIN, 2),
]);
/// A hole in it.
const HOLE_LEN: usize = 41;
/// Both of them.
const HOLES_LEN: usize = 2 * HOLE_LEN;
/// Where they begin.
const HOLES_AT: usize = SOCKET_LEN - HOLES_LEN;

impl HoleState {
    /// Reads a hole of a [`SOCKET`].
    #[inline]
    fn from_shape(hole: &[u8; HOLE_LEN]) -> Self {
        let &[_, _, _, _, _, _, number, _, _, _, status, _, _, _, b0, b1, ref measured @ ..] = hole;
        let &[_, _, _, v0, v1, _, _, _, p0, p1, _, _, _, c0, c1, _, _, _, e0, e1, _, _, _, m0, m1] = measured;
        Self {
            hole: Some(number),
            status: Some(HoleStatus(status)),
            business_no: Some(u16::from_be_bytes([b0, b1])),
            voltage_dv: Some(u16::from_be_bytes([v0, v1])),
            power_dw: Some(u16::from_be_bytes([p0, p1])),
            current_ma: Some(u16::from_be_bytes([c0, c1])),
            energy_wh: Some(u16::from_be_bytes([e0, e1])),
            charged_min: Some(u16::from_be_bytes([m0, m1])),
        }
    }
}

impl<'a> SocketState<'a> {
    /// Reads a [`SOCKET`].
    #[inline]
    fn from_shape(socket: &'a [u8; SOCKET_LEN]) -> Option<Self> {
        let (socket, holes) = socket.split_last_chunk::<HOLES_LEN>()?;
        let [.., number, _, _, _, f0, f1, _, _, _, temp_c, _, _, _, rssi] = *socket.first_chunk::<HOLES_AT>()?;
        let (holes, _) = holes.as_chunks();
        Some(Self {
            socket: Some(number),
            fw: Some([f0, f1]),
            temp_c: Some(temp_c),
            rssi: Some(rssi),
            holes: Holes::Shape(holes),
        })
    }
}

/// Iterates the holes of a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holes<'a> {
    /// Blocks of a query reply.
    Blocks(Records<'a, HoleBlock>),
    /// A socket's elements in a push.
    Elements(Elements<'a>),
    /// The same in a push of the usual shape.
    Shape(&'a [[u8; HOLE_LEN]]),
}

impl Iterator for Holes<'_> {
    type Item = HoleState;

    #[inline]
    fn next(&mut self) -> Option<HoleState> {
        match self {
            Self::Blocks(blocks) => blocks.next().map(HoleState::from),
            Self::Elements(elements) => {
                let hole = elements.find(|element| element.key == key::HOLE_ATTRS)?;
                hole.children().map(HoleState::from_elements)
            }
            Self::Shape(holes) => {
                let (hole, rest) = holes.split_first()?;
                *holes = rest;
                Some(HoleState::from_shape(hole))
            }
        }
    }
}

/// Iterates the sockets of a push or query reply.
#[derive(Clone, Copy, Debug)]
pub struct Sockets<'a>(Source<'a>);

#[derive(Clone, Copy, Debug)]
enum Source<'a> {
    Reply(Option<SocketState<'a>>),
    /// `container` is what is left of the one being read, `packet` the elements behind it.
    Push {
        container: Option<Elements<'a>>,
        packet: Elements<'a>,
    },
    /// The same where all are [`SOCKET`]s.
    Shape(&'a [[u8; SOCKET_LEN]]),
}

impl<'a> Sockets<'a> {
    pub(super) const fn of_reply(state: SocketState<'a>) -> Self {
        Self(Source::Reply(Some(state)))
    }

    pub(super) const fn of_push(packet: Elements<'a>) -> Self {
        Self(Source::Push { container: None, packet })
    }

    pub(super) const fn of_shape(sockets: &'a [[u8; SOCKET_LEN]]) -> Self {
        Self(Source::Shape(sockets))
    }
}

impl<'a> Iterator for Sockets<'a> {
    type Item = SocketState<'a>;

    #[inline]
    fn next(&mut self) -> Option<SocketState<'a>> {
        match &mut self.0 {
            Source::Reply(state) => state.take(),
            Source::Push { container, packet } => next_socket(container, packet).map(SocketState::from_elements),
            Source::Shape(sockets) => {
                let (socket, rest) = sockets.split_first()?;
                *sockets = rest;
                SocketState::from_shape(socket)
            }
        }
    }
}

/// The elements of the next socket of a push, over all its containers.
pub(super) fn next_socket<'a>(container: &mut Option<Elements<'a>>, packet: &mut Elements<'a>) -> Option<Elements<'a>> {
    loop {
        if let Some(socket) = container.as_mut().and_then(Elements::split_socket) {
            return Some(socket);
        }
        *container = packet.find(|element| element.key == key::SOCKET_STATUS)?.children();
    }
}
