//! Writes frames and the items between them. Nothing is allocated but the growth of the caller's buffer.
//!
//! [`body`] writes every command of the table in both directions, as its data is read; [`message`] checks beside that who
//! sends what under which command. The frames that a charge needs have functions of their own, which cannot fail.
//!
//! Replies take the [`Header`] of the frame they answer, so magic, physical id and message id are copied.

use super::body::{
    Alarm, Body, CardReply, CardSwipe, ChargeComplete, ChargeControl, ChargeControlReply, ChargingReport, Heartbeat,
    HostHeartbeat, HostStatus, LegacyHeartbeat, Limits, LocateDevice, ModifyCharge, OrderConfirm, OrderConfirmReply,
    Params11, Params12, Registration, ResultReply, Settlement, TimeReply,
};
use super::frame::{FRAME_MAX, Frame, ICCID_LEN, LINK, PhyId, checksum};
use super::lookup;
use super::wire::{Extra, Layout};
use crate::protocol::Direction;

/// Longest frame that is sent: the vendor's limit per packet.
pub const FRAME_SENT_MAX: usize = 256;
/// Longest frame of the firmware packets F8 and F9, whose chunk alone is 256 bytes.
pub const FRAME_SENT_MAX_LEGACY_OTA: usize = 274;

/// What a frame says besides command and data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Magic of the device's own frames.
    pub magic: [u8; 3],
    /// The device that speaks or is spoken to.
    pub phy_id: PhyId,
    /// New for a command, kept in a resend, copied in a reply.
    pub msg_id: u16,
}

impl Frame<'_> {
    /// The header of a reply to this frame.
    pub const fn header(&self) -> Header {
        Header { magic: self.magic, phy_id: self.phy_id, msg_id: self.msg_id }
    }
}

/// The data does not fit into a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("frame of command {command:#04x} must have at most {max} bytes, got {got}")]
pub struct FrameTooLong {
    /// Command code.
    pub command: u8,
    /// Longest frame of this command.
    pub max: usize,
    /// Length the frame would have.
    pub got: usize,
}

/// Appends a frame with the data that `body` appends, and returns its length.
///
/// # Errors
/// The frame is longer than [`FRAME_SENT_MAX`] (F8, F9: [`FRAME_SENT_MAX_LEGACY_OTA`]); `out` is then as before.
pub fn frame(
    out: &mut Vec<u8>,
    magic: [u8; 3],
    phy_id: PhyId,
    msg_id: u16,
    command: u8,
    body: impl FnOnce(&mut Vec<u8>),
) -> Result<usize, FrameTooLong> {
    let start = out.len();
    let got = append(out, &Header { magic, phy_id, msg_id }, command, body);
    let max = if matches!(command, 0xf8 | 0xf9) { FRAME_SENT_MAX_LEGACY_OTA } else { FRAME_SENT_MAX };
    if got > max {
        out.truncate(start);
        return Err(FrameTooLong { command, max, got });
    }
    Ok(got)
}

/// Appends a frame with this data, and returns its length.
///
/// # Errors
/// As [`frame`].
pub fn body<'a>(
    out: &mut Vec<u8>,
    header: &Header,
    command: u8,
    body: &impl Layout<'a>,
) -> Result<usize, FrameTooLong> {
    frame(out, header.magic, header.phy_id, header.msg_id, command, |out| body.write(out))
}

/// Why a body is not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    /// The table of commands has another layout for this sender, or none.
    #[error("command {command:#04x} {} does not carry this body", direction.as_str())]
    Misplaced {
        /// Command code.
        command: u8,
        /// Who would send it.
        direction: Direction,
    },
    /// The frame would be too long.
    #[error(transparent)]
    TooLong(#[from] FrameTooLong),
}

/// Appends a frame with a body that this sender may send under this command, and returns its length.
///
/// # Errors
/// The table of commands says otherwise, or the frame is longer than [`frame`] allows; `out` is then as before.
pub fn message(
    out: &mut Vec<u8>,
    header: &Header,
    direction: Direction,
    command: u8,
    body: &Body<'_>,
) -> Result<usize, EncodeError> {
    let layout = lookup(command).and_then(|row| row.layout(direction));
    if !layout.is_some_and(|layout| (layout.holds)(body)) {
        return Err(EncodeError::Misplaced { command, direction });
    }
    Ok(frame(out, header.magic, header.phy_id, header.msg_id, command, |out| body.write(out))?)
}

/// Appends a frame of a command without data: 0x81, 0x87, 0x88, 0x90–0x93, 0xE4 and others down, 0x22 and 0x12 up.
pub fn empty(out: &mut Vec<u8>, header: &Header, command: u8) {
    append_fitting(out, header, command, |_| {});
}

/// Appends the one-byte reply to a command; 0 is success.
pub fn result_reply(out: &mut Vec<u8>, header: &Header, command: u8, result: u8) {
    append_fitting(out, header, command, |out| ResultReply { result, extra: Extra::NONE }.write(out));
}

/// Appends the reply to a time request, 0x22 or 0x12.
pub fn time_reply(out: &mut Vec<u8>, header: &Header, command: u8, timestamp: u32) {
    append_fitting(out, header, command, |out| TimeReply { timestamp, extra: Extra::NONE }.write(out));
}

/// Appends the ICCID greeting of a module.
pub fn iccid(out: &mut Vec<u8>, iccid: &[u8; ICCID_LEN]) {
    out.extend_from_slice(iccid);
}

/// Appends the keepalive of a module.
pub fn link(out: &mut Vec<u8>) {
    out.extend_from_slice(&LINK);
}

macro_rules! encoders {
    ($( $(#[$meta:meta])* $name:ident = $code:literal $body:ident; )*) => { $(
        $(#[$meta])*
        pub fn $name(out: &mut Vec<u8>, header: &Header, body: &$body<'_>) {
            append_fitting(out, header, $code, |out| body.write(out));
        }
    )* };
}

encoders! {
    /// Appends 0x82 down: start or stop a charge.
    charge_control = 0x82 ChargeControl;
    /// Appends 0x8A down: change a running charge.
    modify_charge = 0x8a ModifyCharge;
    /// Appends the reply to a card swipe.
    card_reply = 0x02 CardReply;
    /// Appends the reply to an order confirmation.
    order_confirm_reply = 0x04 OrderConfirmReply;
    /// Appends 0x96 down: speak and flash.
    locate_device = 0x96 LocateDevice;
    /// Appends 0x83 down.
    set_params_1_1 = 0x83 Params11;
    /// Appends 0x84 down.
    set_params_1_2 = 0x84 Params12;
    /// Appends 0x85 down.
    set_limits = 0x85 Limits;

    /// Appends 0x20 up.
    registration = 0x20 Registration;
    /// Appends 0x21 up.
    heartbeat = 0x21 Heartbeat;
    /// Appends 0x01 up, of at most 98 ports.
    legacy_heartbeat = 0x01 LegacyHeartbeat;
    /// Appends 0x02 up.
    card_swipe = 0x02 CardSwipe;
    /// Appends 0x03 up.
    settlement = 0x03 Settlement;
    /// Appends 0x04 up.
    order_confirm = 0x04 OrderConfirm;
    /// Appends 0x06 up.
    charging_report = 0x06 ChargingReport;
    /// Appends 0x42 up.
    alarm = 0x42 Alarm;
    /// Appends 0x43 up.
    charge_complete = 0x43 ChargeComplete;
    /// Appends the reply to 0x82.
    charge_control_reply = 0x82 ChargeControlReply;
    /// Appends 0x11 up.
    host_heartbeat = 0x11 HostHeartbeat;
    /// Appends 0x17 up.
    host_status = 0x17 HostStatus;
}

/// Appends 0x81 down: makes the device send 0x20 and 0x21 or 0x01; there is no reply of its own.
pub fn query_status(out: &mut Vec<u8>, header: &Header) {
    empty(out, header, 0x81);
}

/// Appends 0x22 up.
pub fn time_request(out: &mut Vec<u8>, header: &Header) {
    empty(out, header, 0x22);
}

/// Appends a frame of a layout that fits into a frame, unless the caller made up [`Extra`] bytes or ports.
#[inline]
fn append_fitting(out: &mut Vec<u8>, header: &Header, command: u8, body: impl FnOnce(&mut Vec<u8>)) {
    let len = append(out, header, command, body);
    debug_assert!(len <= FRAME_MAX, "no receiver accepts a frame of {len} bytes");
}

/// Appends a frame, fills in length and checksum, and returns how long it is.
#[inline]
fn append(out: &mut Vec<u8>, header: &Header, command: u8, body: impl FnOnce(&mut Vec<u8>)) -> usize {
    let start = out.len();
    let [m0, m1, m2] = header.magic;
    let [p0, p1, p2, p3] = header.phy_id.0;
    let [i0, i1] = header.msg_id.to_le_bytes();
    out.extend_from_slice(&[m0, m1, m2, 0, 0, p0, p1, p2, p3, i0, i1, command]);
    body(out);
    let frame = out.get_mut(start..).unwrap_or_default();
    let len = frame.len().saturating_add(2);
    if let Some([_, _, _, l0, l1, ..]) = frame.first_chunk_mut::<12>() {
        // From the physical id to the end of the checksum.
        [*l0, *l1] = u16::try_from(len.saturating_sub(5)).unwrap_or(u16::MAX).to_le_bytes();
    }
    let sum = checksum(frame).to_le_bytes();
    out.extend_from_slice(&sum);
    len
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::protocol::Step;
    use crate::protocol::ap3000::codes::{ChargeResult, RateMode, ReportState, StartMode, StopReason};
    use crate::protocol::ap3000::wire::{Raw, U8s, U16sLe};
    use crate::protocol::ap3000::{Item, Magics, decode_body, deframe};

    const HEADER: Header =
        Header { magic: [0x44, 0x22, 0x4e], phy_id: PhyId([0x40, 0xaa, 0xce, 0x04]), msg_id: 0xfffe };

    /// What a receiver reads from the one frame in `out`.
    fn received(out: &[u8], command: u8, direction: Direction) -> Body<'_> {
        let Step::Item { item: Item::Frame(frame), consumed } = deframe(out, &Magics::default()) else {
            panic!("no frame")
        };
        assert_eq!((frame.header(), frame.command, consumed), (HEADER, command, out.len()));
        decode_body(&frame, direction).unwrap()
    }

    fn data(body: &impl Layout<'static>) -> Vec<u8> {
        let mut out = Vec::new();
        body.write(&mut out);
        out
    }

    #[test]
    fn absent_fields_at_the_end_are_left_out() {
        let start = ChargeControl::start(RateMode::METERED, 3, 200, [0xab; 16]);
        assert_eq!(data(&start).len(), 25);
        assert_eq!(data(&ChargeControl { overload_power: Some(0), ..start }).len(), 29);
        let full = data(&ChargeControl { force_full_stop: Some(1), ..start });
        // The short-circuit check stays on, everything else keeps the device's setting.
        assert_eq!(full[25..], [0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 1]);
    }

    #[test]
    fn stop_carries_port_and_order() {
        let mut out = Vec::new();
        charge_control(&mut out, &HEADER, &ChargeControl::stop(9, *b"CG0123456789ABCD"));
        let Body::ChargeControl(stop) = received(&out, 0x82, Direction::Down) else { panic!() };
        assert_eq!((stop.port, stop.charge_cmd, stop.order_no), (9, ChargeControl::STOP, Raw(*b"CG0123456789ABCD")));
        assert_eq!(out.len(), 14 + 25);
    }

    #[test]
    fn simple_replies() {
        let mut out = Vec::new();
        result_reply(&mut out, &HEADER, 0x21, 0);
        assert_eq!(received(&out, 0x21, Direction::Down), Body::ResultReply(ResultReply::default()));
        out.clear();
        time_reply(&mut out, &HEADER, 0x12, 1_604_934_878);
        let expected = TimeReply { timestamp: 1_604_934_878, extra: Extra::NONE };
        assert_eq!(received(&out, 0x12, Direction::Down), Body::TimeReply(expected));
        out.clear();
        query_status(&mut out, &HEADER);
        assert!(matches!(received(&out, 0x81, Direction::Down), Body::Empty(_)));
    }

    #[test]
    fn greeting_and_keepalive() {
        let mut out = Vec::new();
        iccid(&mut out, b"89860448161870064815");
        link(&mut out);
        let magics = Magics::default();
        assert!(matches!(deframe(&out, &magics), Step::Item { item: Item::Iccid(b"89860448161870064815"), .. }));
        assert_eq!(deframe(&out[20..], &magics), Step::Item { item: Item::Link, consumed: 4 });
    }

    #[test]
    fn too_long_a_frame_leaves_the_buffer_alone() {
        for (command, max) in [(0x95, FRAME_SENT_MAX), (0xf8, FRAME_SENT_MAX_LEGACY_OTA)] {
            let mut out = b"before".to_vec();
            let mut write = |len| frame(&mut out, *b"DNY", PhyId::default(), 1, command, |out| out.resize(6 + len, 0));
            assert_eq!(write(max + 12 + 1 - 14), Err(FrameTooLong { command, max, got: max + 1 }));
            assert_eq!(write(max + 12 - 14), Ok(max));
            assert_eq!(out.len(), 6 + max);
        }
    }

    /// The first `present` of the optional fields, as on the wire.
    fn opt<T>(present: usize, index: usize, value: T) -> Option<T> {
        (index < present).then_some(value)
    }

    proptest! {
        #[test]
        fn charge_control_round_trip(
            (rate, balance_or_expiry, port, charge_cmd) in any::<(u8, u32, u8, u8)>(),
            (duration_or_energy, order, n) in (any::<u16>(), any::<[u8; 16]>(), 0usize..=10),
            (words, bytes) in any::<([u16; 3], [u8; 7])>(),
        ) {
            let sent = ChargeControl {
                rate_mode: RateMode(rate), balance_or_expiry, port, charge_cmd, duration_or_energy, order_no: Raw(order),
                max_duration_s: opt(n, 0, words[0]), overload_power: opt(n, 1, words[1]), qr_light: opt(n, 2, bytes[0]),
                long_charge: opt(n, 3, bytes[1]), extra_float_s: opt(n, 4, words[2]),
                skip_short_check: opt(n, 5, bytes[2]), ignore_unplug: opt(n, 6, bytes[3]),
                force_full_stop: opt(n, 7, bytes[4]), full_power_w: opt(n, 8, bytes[5]),
                full_power_max_min: opt(n, 9, bytes[6]), extra: Extra::NONE,
            };
            let mut out = Vec::new();
            charge_control(&mut out, &HEADER, &sent);
            prop_assert_eq!(received(&out, 0x82, Direction::Down), Body::ChargeControl(sent));
        }

        #[test]
        fn heartbeats_round_trip(
            states in prop::collection::vec(any::<u8>(), 0..=40),
            power in prop::collection::vec(any::<[u8; 4]>(), 40),
            (voltage, fw_version, a, b, n) in (any::<u16>(), any::<u16>(), any::<u8>(), any::<u8>(), 0usize..=2),
        ) {
            let port_count = u8::try_from(states.len()).unwrap();
            let (now, peak): (Vec<[u8; 2]>, Vec<[u8; 2]>) =
                power.iter().take(states.len()).map(|[a, b, c, d]| ([*a, *b], [*c, *d])).unzip();
            let (now, peak) = (now.concat(), peak.concat());
            let sent = Heartbeat {
                voltage, port_count, port_states: U8s::new(&states),
                signal: opt(n, 0, a), ambient_temp: opt(n, 1, b), extra: Extra::NONE,
            };
            let mut out = Vec::new();
            heartbeat(&mut out, &HEADER, &sent);
            prop_assert_eq!(received(&out, 0x21, Direction::Up), Body::Heartbeat(sent));

            let sent = LegacyHeartbeat {
                fw_version, voltage, port_count, port_states: U8s::new(&states),
                port_power: U16sLe::new(&now),
                port_peak_power: U16sLe::new(&peak),
                virtual_id: opt(n, 0, a), signal: opt(n, 1, b), ..LegacyHeartbeat::default()
            };
            out.clear();
            legacy_heartbeat(&mut out, &HEADER, &sent);
            prop_assert_eq!(received(&out, 0x01, Direction::Up), Body::LegacyHeartbeat(sent));
        }

        #[test]
        fn charge_uplinks_round_trip(
            (w, order, card) in any::<([u16; 8], [u8; 16], [u8; 4])>(),
            (b, t, n) in (any::<[u8; 4]>(), any::<u32>(), 0usize..=8),
        ) {
            let mut out = Vec::new();
            let sent = Settlement {
                duration_s: w[0], max_power: w[1], energy: w[2], port: b[0], start_mode: StartMode(b[1]),
                card_or_code: Raw(card), stop_reason: StopReason(b[2]), order_no: Raw(order),
                second_max_power: opt(n, 0, w[3]), timestamp: opt(n, 1, t), occupancy_min: opt(n, 2, w[4]),
                extra: Extra::NONE,
            };
            settlement(&mut out, &HEADER, &sent);
            prop_assert_eq!(received(&out, 0x03, Direction::Up), Body::Settlement(sent));

            let sent = ChargingReport {
                port: b[0], port_state: ReportState(b[1]), duration_s: w[0], energy: w[1], start_mode: StartMode(b[2]),
                power_now: w[2], power_max: w[3], power_min: w[4], power_avg: w[5], order_no: Raw(order),
                segment_energy_raw: opt(n, 0, w[6]), peak_power: opt(n, 1, w[7]), voltage: opt(n, 2, w[0]),
                current_ma: opt(n, 3, w[1]), ambient_temp: opt(n, 4, b[3]), port_temp: opt(n, 5, b[0]),
                timestamp: opt(n, 6, t), occupancy_min: opt(n, 7, w[2]), extra: Extra::NONE,
            };
            out.clear();
            charging_report(&mut out, &HEADER, &sent);
            prop_assert_eq!(received(&out, 0x06, Direction::Up), Body::ChargingReport(sent));

            let sent = ChargeControlReply {
                result: ChargeResult(b[0]), order_no: opt(n, 0, Raw(order)), port: opt(n, 1, b[1]),
                pending_ports: opt(n, 2, w[0]), extra: Extra::NONE,
            };
            out.clear();
            charge_control_reply(&mut out, &HEADER, &sent);
            prop_assert_eq!(received(&out, 0x82, Direction::Up), Body::ChargeControlReply(sent));

            let sent = Registration {
                fw_version: w[0], port_count: b[0], virtual_id: b[1], device_type: b[2],
                work_mode: opt(n, 0, b[3]), power_board_version: opt(n, 1, w[1]), extra: Extra::NONE,
            };
            out.clear();
            registration(&mut out, &HEADER, &sent);
            prop_assert_eq!(received(&out, 0x20, Direction::Up), Body::Registration(sent));
        }
    }
}
