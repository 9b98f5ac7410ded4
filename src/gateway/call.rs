//! Named commands on the wire: [`DeviceCall`](crate::model::DeviceCall) to frames, and which reply answers them.

use std::net::Ipv4Addr;

use serde_json::{Map, Value};

use super::lane::ReplyKey;
use crate::{
    model::{Ap3000Call, GatewayCall, ModifiedLimit, ParamGroup},
    protocol::{
        Hex,
        ap3000::{
            body::{
                CabinetStop, EepromRead, EepromWrite, FskParams, Limits, LocateDevice, ModifyCharge, MultiFunction,
                Params11, Params12, Params13, PlayVoice, QrUrl, ServerAddress, TcMode, TemporaryQr, UserCard, WorkMode,
            },
            codes::ModifyMode,
            encode::{self as ap3000, FrameTooLong, Header},
            wire::{Extra, Raw, Rest, Text, U32sLe},
        },
        bkv::{
            GatewayId,
            body::{Period, SocketEntry},
            clock::TimeOfDay,
            command::{CONTROL, NETWORK, OTA, PACKET, packet_sub, sub},
            encode as bkv,
            packet::Params,
        },
    },
};

/// The command byte of an AP3000 call.
pub(super) const fn ap3000_command(call: &Ap3000Call) -> u8 {
    match call {
        Ap3000Call::QueryStatus => 0x81,
        Ap3000Call::Reboot => 0x87,
        Ap3000Call::ClearStorage => 0x88,
        Ap3000Call::Locate { .. } => 0x96,
        Ap3000Call::PlayVoice { .. } => 0x89,
        Ap3000Call::ModifyCharge { .. } => 0x8A,
        Ap3000Call::EepromRead { .. } => 0x8B,
        Ap3000Call::EepromWrite { .. } => 0x8C,
        Ap3000Call::TemporaryQr { .. } => 0x95,
        Ap3000Call::OpenDoor { .. } => 0x98,
        Ap3000Call::StopKeepDoor { .. } => 0x72,
        Ap3000Call::TriggerSelfUpdate => 0xE4,
        Ap3000Call::HostReboot => 0x31,
        Ap3000Call::ModuleReboot => 0x32,
        Ap3000Call::ClearSubDeviceUpdateData => 0x33,
        Ap3000Call::SetServerAddress { .. } => 0x34,
        Ap3000Call::SetFskParams { .. } => 0x3A,
        Ap3000Call::SetParams { group, .. } => match group {
            ParamGroup::Detection => 0x83,
            ParamGroup::Power => 0x84,
            ParamGroup::Limits => 0x85,
            ParamGroup::UserCard => 0x86,
            ParamGroup::Sound => 0x97,
            ParamGroup::WorkMode => 0x8D,
            ParamGroup::TcMode => 0x8F,
            ParamGroup::Screen => 0x8E,
        },
        // Groups that cannot be read are refused where the call is made.
        Ap3000Call::QueryParams { group } => match group {
            ParamGroup::Detection => 0x90,
            ParamGroup::Power => 0x91,
            ParamGroup::Limits => 0x92,
            _ => 0x93,
        },
    }
}

/// Appends the frame of an AP3000 call; `None`: its values do not fit the wire.
pub(super) fn encode_ap3000(out: &mut Vec<u8>, header: &Header, call: &Ap3000Call) -> Option<()> {
    let command = ap3000_command(call);
    let extra = Extra::NONE;
    let port = |port_no: u16| u8::try_from(port_no.checked_sub(1)?).ok();
    let done = |encoded: Result<usize, FrameTooLong>| encoded.ok().map(|_| ());
    match call {
        Ap3000Call::QueryStatus
        | Ap3000Call::Reboot
        | Ap3000Call::ClearStorage
        | Ap3000Call::TriggerSelfUpdate
        | Ap3000Call::HostReboot
        | Ap3000Call::ModuleReboot
        | Ap3000Call::ClearSubDeviceUpdateData => {
            ap3000::empty(out, header, command);
            Some(())
        }
        Ap3000Call::QueryParams { group } => group.is_readable().then(|| ap3000::empty(out, header, command)),
        Ap3000Call::Locate { seconds } => {
            done(ap3000::body(out, header, command, &LocateDevice { locate_s: *seconds, extra }))
        }
        Ap3000Call::PlayVoice { interrupt, segments } => {
            let body = PlayVoice {
                interrupt: u8::from(*interrupt),
                segment_count: u8::try_from(segments.len()).ok()?,
                segments: Rest(segments),
                extra,
            };
            done(ap3000::body(out, header, command, &body))
        }
        Ap3000Call::ModifyCharge { port_no, limit } => {
            let (rate_mode, duration_or_energy) = match limit {
                ModifiedLimit::Time { seconds, stop_when_full: false } => (ModifyMode::TIMED, *seconds),
                ModifiedLimit::Time { seconds, stop_when_full: true } => (ModifyMode::TIMED_FULL, *seconds),
                ModifiedLimit::Energy { centi_kwh } => (ModifyMode::METERED_FULL, *centi_kwh),
            };
            let body = ModifyCharge { rate_mode, port: port(*port_no)?, duration_or_energy, extra };
            done(ap3000::body(out, header, command, &body))
        }
        Ap3000Call::EepromRead { address, length } => {
            done(ap3000::body(out, header, command, &EepromRead { eeprom_addr: *address, length: *length, extra }))
        }
        Ap3000Call::EepromWrite { address, data } => {
            let length = u8::try_from(data.len()).ok()?;
            let body = EepromWrite { eeprom_addr: *address, length, eeprom_data: Rest(data), extra };
            done(ap3000::body(out, header, command, &body))
        }
        Ap3000Call::TemporaryQr { text } => {
            let body = TemporaryQr { qr_text: Text::new(text.as_bytes())?, extra };
            done(ap3000::body(out, header, command, &body))
        }
        Ap3000Call::OpenDoor { port_no } => {
            let body = MultiFunction { function: 0, port: port(*port_no)?, extra };
            done(ap3000::body(out, header, command, &body))
        }
        Ap3000Call::StopKeepDoor { port_no, order_no } => {
            let body = CabinetStop { port: port(*port_no)?, order_no: Raw(*order_no.as_bytes()), extra };
            done(ap3000::body(out, header, command, &body))
        }
        Ap3000Call::SetServerAddress { address, port, module_type, second_socket } => {
            // The host needs the zero behind the text.
            let server_addr = Text::new(address.as_bytes()).filter(|_| address.len() < 46)?;
            let body = ServerAddress {
                server_port: *port,
                module_type: *module_type,
                socket_b: u8::from(*second_socket),
                server_addr,
                extra,
            };
            done(ap3000::body(out, header, command, &body))
        }
        Ap3000Call::SetFskParams { frequency, sub_devices } => {
            let ids: Vec<u8> = sub_devices.iter().flat_map(|device| device.0.0).collect();
            let body = FskParams {
                frequency: *frequency,
                reserved: Raw::default(),
                sub_count: u8::try_from(sub_devices.len()).ok()?,
                sub_ids: U32sLe::new(&ids),
                extra,
            };
            done(ap3000::body(out, header, command, &body))
        }
        Ap3000Call::SetParams { group, values } => set_params(out, header, command, *group, values),
    }
}

/// Values of a group by name.
struct Values<'a>(&'a Map<String, Value>);

impl Values<'_> {
    fn number<T: TryFrom<u64>>(&self, name: &str) -> Option<T> {
        T::try_from(self.0.get(name)?.as_u64()?).ok()
    }

    fn key(&self, name: &str) -> Option<Raw<6>> {
        let text = self.0.get(name)?.as_str()?;
        let mut key = [0; 6];
        for (byte, digits) in key.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
            *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
        }
        (text.len() == 12).then_some(Raw(key))
    }
}

fn set_params(
    out: &mut Vec<u8>,
    header: &Header,
    command: u8,
    group: ParamGroup,
    values: &Map<String, Value>,
) -> Option<()> {
    let (values, extra) = (Values(values), Extra::NONE);
    let encoded = match group {
        ParamGroup::Detection => ap3000::body(
            out,
            header,
            command,
            &Params11 {
                unplug_power: values.number("unplug_power")?,
                unplug_time_s: values.number("unplug_time_s")?,
                float_percent: values.number("float_percent")?,
                float_detect_time_s: values.number("float_detect_time_s")?,
                float_time_s: values.number("float_time_s")?,
                heartbeat_interval_s: values.number("heartbeat_interval_s")?,
                extra,
            },
        ),
        ParamGroup::Power => ap3000::body(
            out,
            header,
            command,
            &Params12 {
                dyn_overload_power: values.number("dyn_overload_power")?,
                dyn_overload_time_s: values.number("dyn_overload_time_s")?,
                dyn_overload_start_s: values.number("dyn_overload_start_s")?,
                unplug_noise_power: values.number("unplug_noise_power")?,
                unplug_noise_time_s: values.number("unplug_noise_time_s")?,
                float_second_point_s: values.number("float_second_point_s")?,
                float_second_time_s: values.number("float_second_time_s")?,
                min_power: values.number("min_power")?,
                min_power_point_s: values.number("min_power_point_s")?,
                second_max_power_point_s: values.number("second_max_power_point_s")?,
                ambient_alarm_temp: values.number("ambient_alarm_temp")?,
                port_alarm_temp: values.number("port_alarm_temp")?,
                unplug_opto_disable: values.number("unplug_opto_disable")?,
                qr_light: values.number("qr_light")?,
                extra,
            },
        ),
        ParamGroup::Limits => {
            let (over_voltage, under_voltage) = (values.number("over_voltage"), values.number("under_voltage"));
            let body = Limits {
                max_duration_s: values.number("max_duration_s")?,
                overload_power: values.number("overload_power")?,
                // Four bytes or eight: with one of the two, the other has its documented default.
                over_voltage: over_voltage.or_else(|| under_voltage.map(|_| 2700)),
                under_voltage: under_voltage.or_else(|| over_voltage.map(|_| 1000)),
                extra,
            };
            ap3000::body(out, header, command, &body)
        }
        ParamGroup::UserCard => {
            let body = UserCard {
                user_card_sector: values.number("user_card_sector")?,
                user_card_key: values.key("user_card_key")?,
                new_card_key: values.key("new_card_key")?,
                extra,
            };
            ap3000::body(out, header, command, &body)
        }
        ParamGroup::Sound => ap3000::body(out, header, command, &Params13 { mute: values.number("mute")?, extra }),
        ParamGroup::WorkMode => {
            ap3000::body(out, header, command, &WorkMode { work_mode: values.number("work_mode")?, extra })
        }
        ParamGroup::TcMode => ap3000::body(out, header, command, &TcMode { tc_mode: values.number("tc_mode")?, extra }),
        ParamGroup::Screen => {
            let body = QrUrl {
                screen_type: values.number("screen_type")?,
                reserved: Raw::default(),
                qr_text: Text::new(values.0.get("qr_text")?.as_str()?.as_bytes())?,
                extra,
            };
            ap3000::body(out, header, command, &body)
        }
    };
    encoded.ok().map(|_| ())
}

/// Appends the frame of a BKV/GN call and says how its reply will name it; `None`: its values do not fit the wire.
pub(super) fn encode_gateway(
    out: &mut Vec<u8>,
    gateway_id: GatewayId,
    sequence: u32,
    call: &GatewayCall,
) -> Option<ReplyKey> {
    match call {
        GatewayCall::QuerySocket { socket } => bkv::socket_query(out, gateway_id, sequence, *socket),
        GatewayCall::SetVoice { socket, hole, buzzer, voice, periods } => {
            let period = |[start_hour, start_minute, end_hour, end_minute]: &[u8; 4]| Period {
                start: TimeOfDay { hour: *start_hour, minute: *start_minute },
                end: TimeOfDay { hour: *end_hour, minute: *end_minute },
            };
            let periods: Vec<Period> = periods.iter().map(period).collect();
            bkv::voice_set(out, gateway_id, sequence, (*socket, *hole), *buzzer, *voice, &periods);
        }
        GatewayCall::NetworkRefresh { channel, sockets } => {
            let entries: Vec<SocketEntry> =
                sockets.iter().map(|entry| SocketEntry { socket: entry.socket, mac: Hex(entry.mac) }).collect();
            bkv::socket_list(out, gateway_id, sequence, *channel, &entries);
        }
        GatewayCall::NetworkAdd { socket } => {
            bkv::socket_add(out, gateway_id, sequence, &SocketEntry { socket: socket.socket, mac: Hex(socket.mac) });
        }
        GatewayCall::NetworkRemove { socket } => bkv::socket_delete(out, gateway_id, sequence, *socket),
        GatewayCall::SetParams { socket, values } => {
            let values = Values(values);
            let params = Params {
                full_charge_delay_s: values.number("full_charge_delay_s"),
                no_load_delay_s: values.number("no_load_delay_s"),
                full_power_threshold_dw: values.number("full_power_threshold_dw"),
                no_load_power_threshold_dw: values.number("no_load_power_threshold_dw"),
                high_temp_threshold: values.number("high_temp_threshold"),
                power_limit_dw: values.number("power_limit_dw"),
                max_charge_min: values.number("max_charge_min"),
                ..Params::default()
            };
            bkv::param_set(out, gateway_id, sequence, *socket, &params);
        }
        GatewayCall::QueryParams { socket } => bkv::param_query(out, gateway_id, sequence, *socket),
        GatewayCall::FetchFirmware { host, port, file } => {
            if file.len() > FIRMWARE_FILE_MAX {
                return None;
            }
            bkv::ota(out, gateway_id, sequence, Ipv4Addr::from(host.octets()), *port, file);
        }
    }
    Some(gateway_key(call, sequence))
}

/// Characters of a firmware file's name (integration guide V1.7, command 0007).
pub const FIRMWARE_FILE_MAX: usize = 13;

fn gateway_key(call: &GatewayCall, sequence: u32) -> ReplyKey {
    let command = match call {
        GatewayCall::QuerySocket { .. } => (CONTROL, u16::from(sub::SOCKET_QUERY)),
        GatewayCall::SetVoice { .. } => (CONTROL, u16::from(sub::VOICE)),
        GatewayCall::NetworkRefresh { .. } => (NETWORK, u16::from(sub::SOCKET_LIST)),
        GatewayCall::NetworkAdd { .. } => (NETWORK, u16::from(sub::SOCKET_ADD)),
        GatewayCall::NetworkRemove { .. } => (NETWORK, u16::from(sub::SOCKET_DELETE)),
        GatewayCall::SetParams { .. } => (PACKET, packet_sub::PARAM_SET),
        GatewayCall::QueryParams { .. } => (PACKET, packet_sub::PARAM_QUERY),
        GatewayCall::FetchFirmware { .. } => (OTA, 0),
    };
    ReplyKey { command, msg_id: sequence }
}
