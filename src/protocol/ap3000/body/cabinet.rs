//! Charging cabinets and alarms (device-server protocol v8.6).

use crate::protocol::ap3000::codes::{AlarmType, StartMode, StopReason};
use crate::protocol::ap3000::wire::{Extra, Raw, filler, layout};

layout! {
    /// 0x41: doors and fans of a cabinet.
    pub struct CabinetHeartbeat {
        /// Number of bays.
        port_count: u8,
        /// Bit i = door of bay i is open.
        door_bits: u32,
        /// Bit i = fan of bay i runs.
        fan_bits: u32,
    }
}

layout! {
    /// 0x42: alarm.
    pub struct Alarm {
        /// Kind.
        alarm_type: AlarmType,
        /// Fire sensor, door: the charging port. Water, smoke, temperature, level: RS-485 address of the sensor, 0 = the
        /// device itself. Mains: meaningless.
        port: u8,
    }
    optional {
        /// Bit i = input i + 1 of an RS-485 sensor.
        trigger_bits: u8,
    }
}

layout! {
    /// 0x43: a cabinet has finished charging; the settlement follows when the bay is empty.
    pub struct ChargeComplete {
        /// Seconds, whole charge.
        duration_s: u16,
        /// 0.1 W, whole charge.
        max_power: u16,
        /// 0.01 kWh.
        energy: u16,
        /// Counted from 0.
        port: u8,
        /// As in the settlement.
        start_mode: StartMode,
        /// As in the settlement.
        card_or_code: Raw<4>,
        /// Why it ended.
        stop_reason: StopReason,
        /// As in the settlement.
        order_no: Raw<16>,
    }
}

layout! {
    /// 0x44: something happened to a bay.
    pub struct PortEvent {
        /// 1 = door not closed properly.
        event_type: u8,
        /// Counted from 0.
        port: u8,
        /// Of the running charge.
        order_no: Raw<16>,
    }
}

layout! {
    /// 0x72: stop a cabinet's charge and leave the door shut.
    pub struct CabinetStop {
        /// Counted from 0.
        port: u8,
        /// Must be that of the running charge.
        order_no: Raw<16>,
    }
}

layout! {
    /// Reply to 0x72.
    pub struct CabinetStopReply {
        /// 0 is success.
        result: u8,
        /// Copied.
        order_no: Raw<16>,
    }
}

layout! {
    /// 0x98: functions that got no command of their own.
    pub struct MultiFunction {
        /// 0 = force the cabinet door open.
        function: u8,
        /// Counted from 0.
        port: u8,
    }
}
