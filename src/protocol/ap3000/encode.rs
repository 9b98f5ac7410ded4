//! Writes frames and the items between them. Nothing is allocated but the growth of the caller's buffer.
//!
//! Replies take the [`Header`] of the frame they answer, so magic, physical id and message id are copied.

use super::body::{
    Alarm, CardReply, CardSwipe, ChargeComplete, ChargeControl, ChargeControlReply, ChargingReport, Heartbeat,
    HostHeartbeat, HostStatus, LegacyHeartbeat, Limits, LocateDevice, ModifyCharge, OrderConfirm, OrderConfirmReply,
    Params11, Params12, Registration, ResultReply, Settlement, TimeReply,
};
use super::frame::{FRAME_MAX, Frame, ICCID_LEN, LINK, PhyId, checksum};
use super::wire::{Extra, Layout};

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
