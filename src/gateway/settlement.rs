//! How a charge ended, read from what its settlement says.
//!
//! AP3000 devices give a reason of their own. BKV/GN devices give the hole's status before switch-off and, for some reports, a
//! reason byte without a published list, so the reason is derived. Pure functions.

use super::order::End;

/// The end an AP3000 stop reason names, and its word (device-server protocol v8.6, table "stop reason" of command 03).
///
/// Faults are those of port, power or site; an unknown number is a regular end, as the charge took place.
pub const fn ap3000_end(reason: u8) -> (End, &'static str) {
    match reason {
        0x01 => (End::Normal, "full"),
        0x02 => (End::Normal, "max_time"),
        0x03 => (End::Normal, "time_reached"),
        0x04 => (End::Normal, "energy_reached"),
        0x05 => (End::Normal, "unplugged"),
        0x06 => (End::Fault, "overload"),
        0x07 => (End::ByServer, "stopped_by_server"),
        0x08 => (End::Fault, "dynamic_overload"),
        0x09 => (End::Normal, "power_too_low"),
        0x0A => (End::Fault, "ambient_too_hot"),
        0x0B => (End::Fault, "port_too_hot"),
        0x0C => (End::Fault, "over_current"),
        0x0D => (End::Normal, "unplugged_or_jammed"),
        0x0E => (End::Fault, "no_power"),
        0x0F => (End::Fault, "relay_or_fuse_broken"),
        0x10 => (End::Fault, "water_ingress"),
        0x11 => (End::Fault, "fire_suppression_this_port"),
        0x12 => (End::Fault, "fire_suppression_other_port"),
        0x13 => (End::Normal, "cabinet_opened"),
        0x14 => (End::Fault, "door_not_closed"),
        0x15 => (End::Normal, "external_operation"),
        0x16 => (End::Normal, "card_operation"),
        0x17 => (End::ByServer, "forced_by_server"),
        0x18 => (End::Fault, "fire_system"),
        0x19 => (End::Fault, "storage_error"),
        0x1A => (End::Fault, "over_voltage"),
        0x1B => (End::Fault, "under_voltage"),
        0x1C => (End::Normal, "low_power"),
        _ => (End::Normal, "unknown"),
    }
}

/// What a BKV/GN end is derived from.
#[derive(Clone, Copy, Debug, Default)]
pub struct BkvEnd {
    /// Hole status before switch-off.
    pub status: u8,
    /// Charged minutes.
    pub minutes: u32,
    /// Charged Wh.
    pub energy_wh: u32,
    /// Ordered minutes, where the order has them.
    pub ordered_minutes: Option<u16>,
    /// Ordered Wh, where the order has them.
    pub ordered_wh: Option<u32>,
    /// The device acknowledged a stop for this order.
    pub stop_acked: bool,
    /// The order is being cancelled or stopped.
    pub stop_asked: bool,
}

/// The end a BKV/GN report shows, and its word. The faults of the status byte come first, then an acknowledged stop, then the
/// quota. The guide lists no reason codes, so the raw byte is kept beside and decides nothing.
///
/// A report that shows nothing of its own while a stop is under way is that stop's doing: it may overtake the acknowledgement.
pub fn bkv_end(end: &BkvEnd) -> (End, &'static str) {
    let shows = |mask: u8| end.status & mask != 0;
    let quota = end.ordered_minutes.is_some_and(|minutes| end.minutes >= u32::from(minutes))
        || end.ordered_wh.is_some_and(|wh| end.energy_wh >= wh)
        || end.status == 0xB0;
    if !shows(0x80) {
        (End::Normal, "power_lost")
    } else if shows(0x04) {
        (End::Fault, "over_temperature")
    } else if shows(0x02) {
        (End::Fault, "over_current")
    } else if shows(0x01) {
        (End::Fault, "over_power")
    } else if shows(0x40) {
        (End::Fault, "meter_fault")
    } else if shows(0x08) {
        (End::Normal, "no_load")
    } else if end.stop_acked {
        (End::ByServer, "stopped_by_server")
    } else if quota {
        (End::Normal, "quota_reached")
    } else if end.stop_asked {
        (End::ByServer, "stopped_by_server")
    } else {
        (End::Normal, "unknown")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ap3000_faults_are_exactly_those_of_port_power_and_site() {
        let faults: Vec<u8> = (0..=255).filter(|reason| ap3000_end(*reason).0 == End::Fault).collect();
        let listed = [0x06, 0x08, 0x0A, 0x0B, 0x0C, 0x0E, 0x0F, 0x10, 0x11, 0x12, 0x14, 0x18, 0x19, 0x1A, 0x1B];
        assert_eq!(faults, listed);
        let by_server: Vec<u8> = (0..=255).filter(|reason| ap3000_end(*reason).0 == End::ByServer).collect();
        assert_eq!(by_server, [0x07, 0x17]);
    }

    #[test]
    fn bkv_ends_are_derived_in_order() {
        let ordered = BkvEnd { minutes: 30, ordered_minutes: Some(60), ..BkvEnd::default() };
        let end = |status| bkv_end(&BkvEnd { status, ..ordered });
        assert_eq!(end(0x00), (End::Normal, "power_lost"));
        assert_eq!(end(0x94), (End::Fault, "over_temperature"));
        assert_eq!(end(0x97), (End::Fault, "over_temperature"));
        assert_eq!(end(0x93), (End::Fault, "over_current"));
        assert_eq!(end(0x91), (End::Fault, "over_power"));
        assert_eq!(end(0xD0), (End::Fault, "meter_fault"));
        assert_eq!(end(0x98), (End::Normal, "no_load"));
        assert_eq!(end(0xB0), (End::Normal, "quota_reached"));
        assert_eq!(end(0x90), (End::Normal, "unknown"));
        let acked = BkvEnd { status: 0x90, stop_acked: true, ..ordered };
        assert_eq!(bkv_end(&acked), (End::ByServer, "stopped_by_server"));
        assert_eq!(bkv_end(&BkvEnd { status: 0x94, ..acked }), (End::Fault, "over_temperature"));
        let asked = BkvEnd { status: 0x90, stop_asked: true, ..ordered };
        assert_eq!(bkv_end(&asked), (End::ByServer, "stopped_by_server"));
        assert_eq!(bkv_end(&BkvEnd { minutes: 60, ..asked }), (End::Normal, "quota_reached"));
        assert_eq!(
            bkv_end(&BkvEnd { status: 0x90, energy_wh: 500, ordered_wh: Some(500), ..BkvEnd::default() }),
            (End::Normal, "quota_reached")
        );
    }
}
