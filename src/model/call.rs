//! Named commands: what a third party asks of a device besides starting and stopping a charge.
//!
//! Values are those of the wire, in its units, so that a command says what the vendor documents say; ports count from 1 as
//! everywhere in the API. The types are also the rows of `outbound_queue`: a variant or field that was ever stored keeps its name.

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::Protocol;
use crate::protocol::ap3000::PhyId;

/// A command of a device's protocol.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeviceCall {
    /// AP3000 v8.6 and host protocol v2.9.
    Ap3000(Ap3000Call),
    /// BKV and GN.
    Gateway(GatewayCall),
}

/// A group of AP3000 parameters: they are set and read together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ParamGroup {
    /// 0x83, read back by 0x90.
    Detection,
    /// 0x84, read back by 0x91.
    Power,
    /// 0x85, read back by 0x92.
    Limits,
    /// 0x86, read back by 0x93.
    UserCard,
    /// 0x97, not read back.
    Sound,
    /// 0x8D, not read back.
    WorkMode,
    /// 0x8F, not read back.
    TcMode,
    /// 0x8E, not read back.
    Screen,
}

/// Named commands of AP3000 chargers and hosts (device-server protocol v8.6; host-server protocol v2.9).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "name", rename_all = "snake_case")]
pub enum Ap3000Call {
    /// 0x81: the device answers with a registration and a heartbeat.
    QueryStatus,
    /// 0x87.
    Reboot,
    /// 0x88: clears the EEPROM but for ids and update data.
    ClearStorage,
    /// 0x96: speak and flash.
    Locate {
        /// 1–255 s.
        seconds: u8,
    },
    /// 0x89; the document calls it unusable today.
    PlayVoice {
        /// Cut off what is being said.
        interrupt: bool,
        /// Numbers of the segments.
        segments: Vec<u8>,
    },
    /// 0x8A: change the charge that runs on a port.
    ModifyCharge {
        /// From 1.
        port_no: u16,
        /// What ends it now.
        limit: ModifiedLimit,
    },
    /// 0x8B.
    EepromRead {
        /// First byte.
        address: u16,
        /// 1–32 bytes.
        length: u8,
    },
    /// 0x8C.
    EepromWrite {
        /// First byte.
        address: u16,
        /// 1–32 bytes.
        data: Vec<u8>,
    },
    /// 0x95: a QR code shown once.
    TemporaryQr {
        /// At most 200 ASCII characters.
        text: String,
    },
    /// 0x98, function 0: force the cabinet door of a port open.
    OpenDoor {
        /// From 1.
        port_no: u16,
    },
    /// 0x72: stop a cabinet's charge and leave the door shut.
    StopKeepDoor {
        /// From 1.
        port_no: u16,
        /// Order that runs there.
        order_no: super::OrderNo,
    },
    /// 0xE4: models that download by themselves do so. Never answered.
    TriggerSelfUpdate,
    /// 0x31, hosts.
    HostReboot,
    /// 0x32, hosts: reboot the communication module.
    ModuleReboot,
    /// 0x33, hosts: forget stored firmware of sub-devices.
    ClearSubDeviceUpdateData,
    /// 0x34, hosts: move to another server. A wrong value loses the host for good.
    SetServerAddress {
        /// IP address or host name, at most 45 ASCII characters.
        address: String,
        /// TCP port.
        port: u16,
        /// 1 WiFi, 2 2G, 3 4G.
        module_type: u8,
        /// Second server socket, which third-party platforms need.
        second_socket: bool,
    },
    /// 0x3A, wireless hosts.
    SetFskParams {
        /// MHz.
        frequency: u16,
        /// Sub-devices of the host, at most 50.
        sub_devices: Vec<SubDevice>,
    },
    /// 0x83–0x86, 0x8D–0x8F, 0x97: all values of a group, by their names in the document.
    SetParams {
        /// Which.
        group: ParamGroup,
        /// Every value of the group.
        values: Map<String, Value>,
    },
    /// 0x90–0x93: read a group.
    QueryParams {
        /// Which.
        group: ParamGroup,
    },
}

/// Physical id of a sub-device, 8 lower-case hex digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SubDevice(pub PhyId);

impl Serialize for SubDevice {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for SubDevice {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map(Self).map_err(|_| serde::de::Error::custom("a physical id is 8 hex digits"))
    }
}

/// What ends a charge after [`Ap3000Call::ModifyCharge`]: totals since its start, not increments.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "mode", rename_all = "snake_case")]
pub enum ModifiedLimit {
    /// Seconds.
    Time {
        /// 1–65,535.
        seconds: u16,
        /// Also stop when the battery is full.
        stop_when_full: bool,
    },
    /// Energy; stops when full, too.
    Energy {
        /// 0.01 kWh.
        centi_kwh: u16,
    },
}

/// Named commands of BKV and GN gateways (integration guide V1.7).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "name", rename_all = "snake_case")]
pub enum GatewayCall {
    /// 0x0015/1D.
    QuerySocket {
        /// 0–250.
        socket: u8,
    },
    /// 0x0015/1B: buzzer and voice inside periods of the day.
    SetVoice {
        /// 0–250; 254 is every socket.
        socket: u8,
        /// 0 or 1.
        hole: u8,
        /// Buzzer inside the periods.
        buzzer: bool,
        /// Voice inside the periods.
        voice: bool,
        /// At most two: start hour, start minute, end hour, end minute.
        periods: Vec<[u8; 4]>,
    },
    /// 0x0005/08: replace the network list.
    NetworkRefresh {
        /// 1–15.
        channel: u8,
        /// Socket number and MAC.
        sockets: Vec<NetworkSocket>,
    },
    /// 0x0005/09: add a socket to the network list.
    NetworkAdd {
        /// What to add.
        socket: NetworkSocket,
    },
    /// 0x0005/0A: remove a socket from the network list.
    NetworkRemove {
        /// 1–250.
        socket: u8,
    },
    /// 0x1000/1011: parameters of a socket, by their names in the guide.
    SetParams {
        /// 0–250.
        socket: u8,
        /// Those to change.
        values: Map<String, Value>,
    },
    /// 0x1000/1012.
    QueryParams {
        /// 0–250.
        socket: u8,
    },
    /// 0x0007: fetch firmware by FTP. Never answered.
    FetchFirmware {
        /// FTP server.
        host: Ipv4Addr,
        /// Its port.
        port: u16,
        /// At most 13 ASCII characters.
        file: String,
    },
}

/// An entry of a network list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkSocket {
    /// 1–250.
    pub socket: u8,
    /// As printed on the socket's back.
    pub mac: [u8; 6],
}

/// What tells that a command is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Completion {
    /// Its own reply.
    Reply,
    /// The next report of what was asked for.
    Report,
    /// Nothing: writing it is all there is.
    Write,
}

impl GatewayCall {
    /// Whether it changes the network list.
    pub const fn is_network(&self) -> bool {
        matches!(self, Self::NetworkRefresh { .. } | Self::NetworkAdd { .. } | Self::NetworkRemove { .. })
    }
}

impl DeviceCall {
    /// The word in `outbound_queue.kind`, the API and logs.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Ap3000(call) => match call {
                Ap3000Call::QueryStatus => "query_status",
                Ap3000Call::Reboot => "reboot",
                Ap3000Call::ClearStorage => "clear_storage",
                Ap3000Call::Locate { .. } => "locate",
                Ap3000Call::PlayVoice { .. } => "play_voice",
                Ap3000Call::ModifyCharge { .. } => "modify_charge",
                Ap3000Call::EepromRead { .. } => "eeprom_read",
                Ap3000Call::EepromWrite { .. } => "eeprom_write",
                Ap3000Call::TemporaryQr { .. } => "temporary_qr",
                Ap3000Call::OpenDoor { .. } => "open_door",
                Ap3000Call::StopKeepDoor { .. } => "stop_keep_door",
                Ap3000Call::TriggerSelfUpdate => "trigger_self_update",
                Ap3000Call::HostReboot => "host_reboot",
                Ap3000Call::ModuleReboot => "module_reboot",
                Ap3000Call::ClearSubDeviceUpdateData => "clear_sub_device_update_data",
                Ap3000Call::SetServerAddress { .. } => "set_server_address",
                Ap3000Call::SetFskParams { .. } => "set_fsk_params",
                Ap3000Call::SetParams { .. } => "set_params",
                Ap3000Call::QueryParams { .. } => "query_params",
            },
            Self::Gateway(call) => match call {
                GatewayCall::QuerySocket { .. } => "query_socket",
                GatewayCall::SetVoice { .. } => "set_voice",
                GatewayCall::NetworkRefresh { .. } => "network_refresh",
                GatewayCall::NetworkAdd { .. } => "network_add",
                GatewayCall::NetworkRemove { .. } => "network_remove",
                GatewayCall::SetParams { .. } => "set_params",
                GatewayCall::QueryParams { .. } => "query_params",
                GatewayCall::FetchFirmware { .. } => "fetch_firmware",
            },
        }
    }

    /// The port it is for, where it is for one.
    pub const fn port_no(&self) -> Option<u16> {
        match self {
            Self::Ap3000(
                Ap3000Call::ModifyCharge { port_no, .. }
                | Ap3000Call::OpenDoor { port_no }
                | Ap3000Call::StopKeepDoor { port_no, .. },
            ) => Some(*port_no),
            Self::Ap3000(_) | Self::Gateway(_) => None,
        }
    }

    /// What tells that it is done.
    pub const fn completion(&self) -> Completion {
        match self {
            Self::Ap3000(Ap3000Call::QueryStatus) | Self::Gateway(GatewayCall::QuerySocket { .. }) => {
                Completion::Report
            }
            Self::Ap3000(Ap3000Call::TriggerSelfUpdate) | Self::Gateway(GatewayCall::FetchFirmware { .. }) => {
                Completion::Write
            }
            Self::Ap3000(_) | Self::Gateway(_) => Completion::Reply,
        }
    }

    /// Whether doing it twice is the same as doing it once, so that it may be sent again when no reply comes.
    pub const fn is_idempotent(&self) -> bool {
        match self {
            Self::Ap3000(call) => !matches!(
                call,
                Ap3000Call::Reboot
                    | Ap3000Call::HostReboot
                    | Ap3000Call::ModuleReboot
                    | Ap3000Call::OpenDoor { .. }
                    | Ap3000Call::PlayVoice { .. }
                    | Ap3000Call::TriggerSelfUpdate
            ),
            Self::Gateway(call) => !matches!(call, GatewayCall::FetchFirmware { .. }),
        }
    }

    /// Whether it sets parameters, which devices take longer to answer.
    pub const fn sets_params(&self) -> bool {
        matches!(self, Self::Ap3000(Ap3000Call::SetParams { .. }) | Self::Gateway(GatewayCall::SetParams { .. }))
    }

    /// Whether it changes the network list, which gateways take seconds for.
    pub const fn is_network(&self) -> bool {
        matches!(self, Self::Gateway(call) if call.is_network())
    }

    /// Whether a device of this protocol understands it.
    pub const fn speaks(&self, protocol: Protocol) -> bool {
        match self {
            Self::Ap3000(_) => matches!(protocol, Protocol::Ap3000),
            Self::Gateway(_) => matches!(protocol, Protocol::Bkv | Protocol::Gn),
        }
    }
}
