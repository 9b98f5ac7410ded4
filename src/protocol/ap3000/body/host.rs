//! Hosts, the gateways of sub-devices (host-server protocol v2.9). Devices with a communication module of their own send
//! 0x11 and 0x12 too.

use crate::protocol::ap3000::wire::{Extra, Raw, SubDeviceTypes, Text, U32sLe, filler, layout};

layout! {
    /// 0x11: every 30 min, not answered.
    pub struct HostHeartbeat {
        /// Firmware version, hundredths.
        fw_version: u16,
        /// 0 none, 1 SD2068, 2 BM8563.
        rtc_module: u8,
        /// The host's clock; 0 if it has none.
        timestamp: u32,
        /// 0–31, 31 is best; 99 = abnormal; from 100 on subtract 100, range 0–97.
        signal: u8,
        /// 1 WiFi, 2 and 4 2G, 5 NB-IoT, 3 and 6–8 4G.
        module_type: u8,
    }
    optional {
        /// Number of the SIM.
        iccid: Text<'a, 20>,
        /// Host type; from a charger its device type.
        host_type: u8,
        /// LoRa centre frequency, MHz; 0 = none.
        frequency: u16,
        /// Number of the module.
        imei: Text<'a, 15>,
        /// Firmware of the module.
        module_version: Text<'a, 24>,
    }
}

layout! {
    /// 0x17: breaker and meter, every 30 min, not answered. Of hosts without a breaker only the measurements count.
    pub struct HostStatus {
        /// 0 open, 1 closed.
        breaker_state: u8,
        /// The vendor does not say whether 65 is added.
        temp: u8,
        /// 0.1 V.
        voltage: u16,
        /// **0.01 A**.
        current_10ma: u16,
        /// 0.01 kWh, cumulative.
        energy: u32,
        /// **0.01 A**, from the meter.
        meter_current_10ma: u16,
        /// 0.01 kWh, from the meter.
        meter_energy: u32,
        /// 1 = smoke.
        smoke_alarm: u8,
        /// 1 = pulled in.
        alarm_relay: u8,
    }
    optional {
        /// Milliampere.
        leak_current_ma: u8,
        /// Temperature of the live wire.
        live_temp: u8,
        /// Temperature of the neutral wire.
        neutral_temp: u8,
        /// 1 = locked.
        lock_state: u8,
        /// 0 short single-phase, 1 long single-phase, 2 host with screen.
        breaker_model: u8,
    }
}

layout! {
    /// 0x34: move the host to another server. A wrong value loses it for good.
    pub struct ServerAddress {
        /// TCP port.
        server_port: u16,
        /// 1 WiFi, 2 2G, 3 4G.
        module_type: u8,
        /// 1 = the second server socket is on, which third-party platforms need.
        socket_b: u8,
        /// IP address or host name, at most 45 characters: the host needs the zero behind them.
        server_addr: Text<'a, 46>,
    }
}

layout! {
    /// 0x35: what a host has behind it.
    pub struct SubDeviceVersions {
        /// Number of device types.
        type_count: u8,
    }
    lists {
        /// One entry per device type.
        types: SubDeviceTypes<'a> = type_count,
    }
}

layout! {
    /// 0x3A: radio of new wireless hosts; also the reply to 0x3B.
    pub struct FskParams {
        /// MHz.
        frequency: u16,
        /// Zero.
        reserved: Raw<3>,
        /// Number of sub-devices.
        sub_count: u8,
    }
    lists {
        /// Their physical ids as little-endian numbers.
        sub_ids: U32sLe<'a> = sub_count,
    }
}

layout! {
    /// 0x3B: the host asks for 0x3A.
    pub struct FskRequest {
        /// MHz in use, 0 = none.
        frequency: u16,
    }
}

layout! {
    /// 0x09: production test between host and sub-device; never reaches the server.
    pub struct SubDeviceTest {
        /// State of the port.
        port_status: u16,
        /// 0.1 V.
        voltage: u16,
        /// 0.1 W.
        power: u32,
    }
}

layout! {
    /// 0x00: a host polls a sub-device on RS-485; never reaches the server.
    pub struct HostPoll {
        /// 0–49.
        virtual_id: u8,
    }
}

layout! {
    /// 0xFD: reserved.
    pub struct ReservedFd {
        /// 1 or 2.
        function: u8,
        /// Undefined.
        r1: u32,
        /// Undefined.
        r2: u32,
        /// Undefined.
        r3: u32,
        /// Undefined.
        r4: u32,
    }
}

layout! {
    /// Reply to 0xFD.
    pub struct ReservedFdReply {
        /// Copied.
        function: u8,
        /// Undefined.
        result: u8,
    }
}

layout! {
    /// 0xFE: reserved.
    pub struct ReservedFe {
        /// Undefined.
        r1: u32,
        /// Undefined.
        r2: u32,
        /// Undefined.
        r3: u32,
    }
}
