//! Registration, heartbeats and everything that belongs to a charge (device-server protocol v8.6).

use crate::protocol::ap3000::codes::{
    AccountState, ChargeResult, ModifyMode, RateMode, ReportState, StartMode, StopReason,
};
use crate::protocol::ap3000::wire::{Extra, LongCard, Raw, U8s, U16sLe, filler, layout};

layout! {
    /// No data.
    pub struct Empty {}
}

layout! {
    /// The one-byte reply of most commands.
    pub struct ResultReply {
        /// 0 is success; other values are failures, some with a meaning of their own per command.
        result: u8,
    }
}

layout! {
    /// 0x01: heartbeat of devices that know no 0x20 and 0x21.
    pub struct LegacyHeartbeat {
        /// Firmware version, hundredths.
        fw_version: u16,
        /// 0.1 V.
        voltage: u16,
        /// Number of ports.
        port_count: u8,
    }
    lists {
        /// State of each port, see [`PortState`](crate::protocol::ap3000::codes::PortState).
        port_states: U8s<'a> = port_count,
        /// Power of each port now, 0.1 W.
        port_power: U16sLe<'a> = port_count,
        /// Highest power of each port since its charge began, 0.1 W.
        port_peak_power: U16sLe<'a> = port_count,
    }
    optional {
        /// Address on the local network, 0 = not networked.
        virtual_id: u8,
        /// Radio signal between device and host, 0 = wired or none.
        signal: u8,
        /// Device type; old types are ambiguous without recognition code and firmware version.
        device_type: u8,
        /// °C + 65, 0 = no sensor.
        ambient_temp: u8,
        /// Bit field as in [`Registration`].
        work_mode: u8,
    }
}

layout! {
    /// 0x20: sent after power-up until it is answered, and when one of the fields changes.
    pub struct Registration {
        /// Firmware version, hundredths.
        fw_version: u16,
        /// Number of ports.
        port_count: u8,
        /// Address on the local network, 0 = not networked.
        virtual_id: u8,
        /// Device type; old types are ambiguous without recognition code and firmware version.
        device_type: u8,
    }
    optional {
        /// Bit 0: card mode; bit 1: metering chip BL0939 instead of RN8209; bit 2: short-circuit pre-check;
        /// bit 3: lamp mode instead of opto-coupler.
        work_mode: u8,
        /// Firmware version of the power board, 0 = none.
        power_board_version: u16,
    }
}

layout! {
    /// 0x21: heartbeat, every 180 s unless 0x83 says otherwise. The device goes offline after two unanswered ones.
    pub struct Heartbeat {
        /// 0.1 V.
        voltage: u16,
        /// Number of ports.
        port_count: u8,
    }
    lists {
        /// State of each port, see [`PortState`](crate::protocol::ap3000::codes::PortState).
        port_states: U8s<'a> = port_count,
    }
    optional {
        /// Radio signal between device and host, 0 = wired or none.
        signal: u8,
        /// °C + 65, 0 = no sensor.
        ambient_temp: u8,
    }
}

layout! {
    /// Reply to 0x22 and 0x12.
    pub struct TimeReply {
        /// Unix seconds.
        timestamp: u32,
    }
}

layout! {
    /// 0x02: a card was held to the reader.
    pub struct CardSwipe {
        /// UID of the card; its printed number is the big-endian value.
        card_id: Raw<4>,
        /// 0 old card, 1 new card, 2 balance card (abandoned), 3 UID only, 4 social-security card.
        card_type: u8,
        /// 0xFF asks for the balance only.
        port: u8,
    }
    optional {
        /// 0.01 CNY, balance cards only.
        card_balance: u16,
        /// Unreliable: ignore.
        timestamp: u32,
        /// Number of the card types whose UID is not their number; the fields `card2_len` and `card2`.
        #[serde(flatten)]
        long_card: LongCard<'a>,
    }
}

layout! {
    /// Reply to 0x02. A charge is only started by the 0x82 that follows.
    pub struct CardReply {
        /// Copied.
        card_id: Raw<4>,
        /// What the device says to the card holder.
        account_state: AccountState,
        /// How the device reads the next field.
        rate_mode: RateMode,
        /// 0.01 CNY; Unix seconds of the expiry with rate mode 1.
        balance_or_expiry: u32,
        /// Copied.
        port: u8,
    }
}

layout! {
    /// 0x03: a charge has ended. The device keeps it, and sends it again, until it is answered.
    pub struct Settlement {
        /// Seconds, whole charge.
        duration_s: u16,
        /// 0.1 W, whole charge.
        max_power: u16,
        /// 0.01 kWh.
        energy: u16,
        /// Counted from 0.
        port: u8,
        /// Decides what the next field and the order number hold.
        start_mode: StartMode,
        /// UID of the card or verification code; zero for an online start.
        card_or_code: Raw<4>,
        /// Why it ended.
        stop_reason: StopReason,
        /// As given by 0x82, or made by the device for an offline start.
        order_no: Raw<16>,
    }
    optional {
        /// Highest power of the first 5 min, 0.1 W.
        second_max_power: u16,
        /// Unreliable: ignore.
        timestamp: u32,
        /// **Minutes** the bay stayed occupied when full; cabinets only.
        occupancy_min: u16,
    }
}

layout! {
    /// 0x04: order confirmation of devices older than 06/2019, in place of 0x06. May come before the 0x82 reply.
    pub struct OrderConfirm {
        /// Counted from 0.
        port: u8,
        /// As in [`Settlement`].
        start_mode: StartMode,
        /// UID of the card or verification code; zero for an online start.
        card_id: Raw<4>,
        /// Seconds so far.
        duration_s: u16,
        /// As in [`Settlement`].
        order_no: Raw<16>,
    }
}

layout! {
    /// Reply to 0x04.
    pub struct OrderConfirmReply {
        /// Copied.
        port: u8,
        /// 0 is success; the vendor gives no other.
        result: u8,
    }
}

layout! {
    /// 0x06: every 5 min of a charge, not answered and not repeated.
    pub struct ChargingReport {
        /// Counted from 0.
        port: u8,
        /// Of this report only; see [`ReportState`].
        port_state: ReportState,
        /// Seconds since the start.
        duration_s: u16,
        /// 0.01 kWh of this order so far.
        energy: u16,
        /// As in [`Settlement`].
        start_mode: StartMode,
        /// 0.1 W.
        power_now: u16,
        /// 0.1 W, in this period.
        power_max: u16,
        /// 0.1 W, in this period.
        power_min: u16,
        /// 0.1 W, in this period.
        power_avg: u16,
        /// As in [`Settlement`].
        order_no: Raw<16>,
    }
    optional {
        /// Energy of this period times 4800; for debugging.
        segment_energy_raw: u16,
        /// 0.1 W, whole charge.
        peak_power: u16,
        /// 0.1 V.
        voltage: u16,
        /// Milliampere.
        current_ma: u16,
        /// °C + 65, 0 = no sensor.
        ambient_temp: u8,
        /// °C + 65, 0 = no sensor.
        port_temp: u8,
        /// Unreliable: ignore.
        timestamp: u32,
        /// **Minutes** the bay stayed occupied when full; cabinets only.
        occupancy_min: u16,
    }
}

layout! {
    /// 0x82: start or stop a charge.
    ///
    /// Old firmware knows few of the optional fields, so set only those that are needed: the frame ends with the last one.
    pub struct ChargeControl {
        /// How the charge is counted.
        rate_mode: RateMode,
        /// 0.01 CNY, or Unix seconds of the expiry with rate mode 1; only spoken by the device.
        balance_or_expiry: u32,
        /// 0xFF lets the device choose.
        port: u8,
        /// 0 stop, 1 start.
        charge_cmd: u8,
        /// Seconds, or 0.01 kWh with rate mode 2; 0 = until full.
        duration_or_energy: u16,
        /// Any bytes. A stop must carry those of the running charge.
        order_no: Raw<16>,
    }
    optional {
        /// Seconds, this order only; 0 = keep the device's setting.
        max_duration_s: u16,
        /// 0.1 W, this order only; 0 = keep the device's setting.
        overload_power: u16,
        /// **0 on, 1 off**.
        qr_light: u8,
        /// 1 = keep power on after float charging.
        long_charge: u8,
        /// Seconds added to the float time; 0xFFFF = no float.
        extra_float_s: u16,
        /// 2 = check for a short-circuit, 0 and 1 = do not.
        skip_short_check: u8 = 2,
        /// 1 = do not notice unplugging.
        ignore_unplug: u8,
        /// 1 = also stop when full if a duration is set.
        force_full_stop: u8,
        /// **Watt**: after float charging, stop below; 0 and 0xFF = off.
        full_power_w: u8,
        /// **Minutes** for which the power is compared with the previous field.
        full_power_max_min: u8,
    }
}

/// Values of [`ChargeControl::charge_cmd`].
impl ChargeControl<'_> {
    /// Stop.
    pub const STOP: u8 = 0;
    /// Start.
    pub const START: u8 = 1;

    /// Stops the charge of `order_no` on `port`; the device refuses if another one is running there.
    pub const fn stop(port: u8, order_no: [u8; 16]) -> Self {
        Self::without_options(RateMode::TIMED, port, Self::STOP, 0, order_no)
    }

    /// Starts a charge without optional fields; set those that are needed on the result.
    pub const fn start(rate_mode: RateMode, port: u8, duration_or_energy: u16, order_no: [u8; 16]) -> Self {
        Self::without_options(rate_mode, port, Self::START, duration_or_energy, order_no)
    }

    const fn without_options(
        rate_mode: RateMode,
        port: u8,
        charge_cmd: u8,
        duration_or_energy: u16,
        order_no: [u8; 16],
    ) -> Self {
        Self {
            rate_mode,
            balance_or_expiry: 0,
            port,
            charge_cmd,
            duration_or_energy,
            order_no: Raw(order_no),
            max_duration_s: None,
            overload_power: None,
            qr_light: None,
            long_charge: None,
            extra_float_s: None,
            skip_short_check: None,
            ignore_unplug: None,
            force_full_stop: None,
            full_power_w: None,
            full_power_max_min: None,
            extra: Extra::NONE,
        }
    }
}

layout! {
    /// Reply to 0x82.
    pub struct ChargeControlReply {
        /// See [`ChargeResult`].
        result: ChargeResult,
    }
    optional {
        /// Copied.
        order_no: Raw<16>,
        /// Copied; the chosen one if the device chose.
        port: u8,
        /// Bit i = port i has a charger waiting. Valid with [`ChargeResult::SEVERAL_WAITING`] only.
        pending_ports: u16,
    }
}

layout! {
    /// 0x8A: change the running charge. Answered by 0 ok, 1 port not charging, 2 value below the running one, 3 no such
    /// mode or port.
    pub struct ModifyCharge {
        /// A table of its own.
        rate_mode: ModifyMode,
        /// Counted from 0.
        port: u8,
        /// Seconds or 0.01 kWh from the beginning of the charge. A value below what is used up cuts the power.
        duration_or_energy: u16,
    }
}

layout! {
    /// 0x96: speak and flash.
    pub struct LocateDevice {
        /// Seconds.
        locate_s: u8,
    }
}
