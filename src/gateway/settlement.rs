//! How a charge ended, read from what its settlement says.
//!
//! AP3000 devices give a reason of their own. BKV/GN devices give the hole's status before switch-off and, for some reports, a
//! reason byte without a published list, so the reason is derived. Pure functions.

use super::order::End;
use crate::protocol::{
    ap3000::codes::StopReason,
    bkv::status::{EndFacts, EndReason},
};

/// The end an AP3000 stop reason names, and its word (device-server protocol v8.6, table "stop reason" of command 03).
///
/// Faults are those of port, power or site; an unknown number is a regular end, as the charge took place.
pub fn ap3000_end(reason: u8) -> (End, &'static str) {
    let code = StopReason(reason);
    let end = if code.is_by_server() {
        End::ByServer
    } else if code.is_fault() {
        End::Fault
    } else {
        End::Normal
    };
    let word = match reason {
        0x01 => "full",
        0x02 => "max_time",
        0x03 => "time_reached",
        0x04 => "energy_reached",
        0x05 => "unplugged",
        0x06 => "overload",
        0x07 => "stopped_by_server",
        0x08 => "dynamic_overload",
        0x09 => "power_too_low",
        0x0A => "ambient_too_hot",
        0x0B => "port_too_hot",
        0x0C => "over_current",
        0x0D => "unplugged_or_jammed",
        0x0E => "no_power",
        0x0F => "relay_or_fuse_broken",
        0x10 => "water_ingress",
        0x11 => "fire_suppression_this_port",
        0x12 => "fire_suppression_other_port",
        0x13 => "cabinet_opened",
        0x14 => "door_not_closed",
        0x15 => "external_operation",
        0x16 => "card_operation",
        0x17 => "forced_by_server",
        0x18 => "fire_system",
        0x19 => "storage_error",
        0x1A => "over_voltage",
        0x1B => "under_voltage",
        0x1C => "low_power",
        _ => "unknown",
    };
    (end, word)
}

/// The end a BKV/GN report shows, and its word. The guide lists no reason codes, so the reason is derived
/// ([`EndReason::derive`]) and the raw byte is kept beside and decides nothing.
///
/// A report that shows nothing of its own while a stop is under way (`stop_asked`) is that stop's doing: it may overtake the
/// acknowledgement.
pub fn bkv_end(facts: &EndFacts, stop_asked: bool) -> (End, &'static str) {
    let reason = match EndReason::derive(facts) {
        EndReason::Unknown if stop_asked => EndReason::StoppedByServer,
        reason => reason,
    };
    let end = match reason {
        EndReason::StoppedByServer => End::ByServer,
        reason if reason.is_fault() => End::Fault,
        _ => End::Normal,
    };
    (end, reason.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::bkv::status::HoleStatus;

    #[test]
    fn ap3000_faults_are_exactly_those_of_port_power_and_site() {
        let faults: Vec<u8> = (0..=255).filter(|reason| ap3000_end(*reason).0 == End::Fault).collect();
        let listed = [0x06, 0x08, 0x0A, 0x0B, 0x0C, 0x0E, 0x0F, 0x10, 0x11, 0x12, 0x14, 0x18, 0x19, 0x1A, 0x1B];
        assert_eq!(faults, listed);
        let by_server: Vec<u8> = (0..=255).filter(|reason| ap3000_end(*reason).0 == End::ByServer).collect();
        assert_eq!(by_server, [0x07, 0x17]);
    }

    #[test]
    fn bkv_ends_have_a_word_and_a_kind() {
        let facts = |status, charged_min, stop_acknowledged| EndFacts {
            status: HoleStatus(status),
            charged_min,
            energy_wh: 0,
            ordered_min: Some(60),
            ordered_wh: None,
            stop_acknowledged,
        };
        for (facts, stop_asked, expected) in [
            (facts(0x00, 30, false), false, (End::Normal, "power_lost")),
            (facts(0x94, 30, true), true, (End::Fault, "over_temperature")),
            (facts(0xD0, 30, false), false, (End::Fault, "meter_fault")),
            (facts(0x98, 30, false), false, (End::Normal, "no_load")),
            (facts(0x90, 60, false), true, (End::Normal, "quota_reached")),
            (facts(0x90, 30, true), false, (End::ByServer, "stopped_by_server")),
            (facts(0x90, 30, false), true, (End::ByServer, "stopped_by_server")),
            (facts(0x90, 30, false), false, (End::Normal, "unknown")),
        ] {
            assert_eq!(bkv_end(&facts, stop_asked), expected, "{facts:?}");
        }
    }
}
