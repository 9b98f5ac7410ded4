//! What is kept of a device beside its session, ports and orders: settings of the operator, and what hosts tell of themselves.

use serde::{Deserialize, Serialize};

/// Latest values of a host, a breaker or a cabinet. What was never told is left out. Temperatures are as sent: the vendor does not say
/// whether 65 is added.
//
// Stored as one JSON text and shown as `host` of the device object, so the names are an interface. `None`: never told.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(default)]
pub struct HostValues {
    /// 1 closed, 0 open. Leakage-protection hosts only, as all from `alarm_relay` to `breaker_model`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub breaker_state: Option<u8>,
    /// 1 smoke, 0 none.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub smoke_alarm: Option<u8>,
    /// 1 pulled in, 0 released.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub alarm_relay: Option<u8>,
    /// mA.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub leak_current_ma: Option<u8>,
    /// Live wire, as sent.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub live_temp_raw: Option<u8>,
    /// Neutral wire, as sent.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub neutral_temp_raw: Option<u8>,
    /// 1 locked, 0 unlocked.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub lock_state: Option<u8>,
    /// 0 short single-phase, 1 long single-phase, 2 host with screen.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub breaker_model: Option<u8>,
    /// The host itself, as sent.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub temp_raw: Option<u8>,
    /// 0.1 V.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub voltage_dv: Option<u16>,
    /// mA.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub current_ma: Option<u32>,
    /// Wh since the host was made.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub energy_wh: Option<u64>,
    /// mA, by the meter.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub meter_current_ma: Option<u32>,
    /// Wh, by the meter.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub meter_energy_wh: Option<u64>,
    /// Cabinet: number of bays.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub bays: Option<u8>,
    /// Cabinet: bit i = door of port i + 1 is open.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub door_bits: Option<u32>,
    /// Cabinet: bit i = fan of port i + 1 runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub fan_bits: Option<u32>,
    /// Kind of communication module, host-server protocol v2.9, command 11.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub module_type: Option<u8>,
    /// Radio to the sub-devices, MHz.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub frequency: Option<u16>,
    /// The device with the oldest firmware of each type behind the host.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub sub_devices: Vec<SubDeviceKind>,
}

/// Oldest firmware among the sub-devices of one type.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct SubDeviceKind {
    /// As in the registration.
    pub device_type: u8,
    /// `V1.05`.
    pub firmware: String,
    /// The device that has it.
    pub device_id: String,
}

/// Rarely changing part of a device's record.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeviceDetails {
    /// The operator's name for it.
    pub name: Option<String>,
    /// BKV/GN: the integrator's extension commands are taken.
    pub extensions: bool,
    /// AP3000 host: frequency for its sub-devices, MHz; `None`: the one it reports.
    pub fsk_frequency: Option<u16>,
    /// Of the communication module.
    pub imei: Option<String>,
    /// Firmware of the communication module.
    pub module_version: Option<String>,
    /// Host type; from a charger its device type.
    pub host_type: Option<u8>,
    /// What it tells as a host.
    pub host: Option<HostValues>,
}
