//! A device's session as the instances see it in each other: the value of `session:device:{device id}`.
//!
//! JSON, `epoch` first: scripts in Redis find it there without reading the rest. Times are Unix ms, 0 for never. A reader takes what
//! it knows and leaves out what it does not, so that instances of two builds understand each other.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{
    gateway::directory::{Clocks, Entry, PortCell, PortState},
    model::{DeviceId, OrderNo, PortStatus, Protocol, ServerId},
};

/// What is written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Session {
    pub(super) epoch: i64,
    /// The connection that carries the device; null without one.
    pub(super) conn_id: Option<String>,
    pub(super) server_id: ServerId,
    pub(super) protocol: Protocol,
    pub(super) last_seen: i64,
    pub(super) last_tcp_down: i64,
    pub(super) last_ack_timeout: i64,
    timeout_ms: i64,
    #[serde(default)]
    connected_at: i64,
    #[serde(default)]
    waiting: u32,
    /// A number that damaged devices fall back to.
    #[serde(default)]
    fallback: bool,
    #[serde(default)]
    signal: Option<u8>,
    #[serde(default)]
    firmware: Option<String>,
    #[serde(default)]
    device_type: Option<u8>,
    #[serde(default)]
    iccid: Option<String>,
    #[serde(default)]
    ports: Vec<Port>,
    /// Active, or final while the device still charges.
    #[serde(default)]
    orders: Vec<OrderNo>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Port {
    port_no: u16,
    socket: Option<u8>,
    hole: Option<u8>,
    status: u8,
    raw_status: u8,
    power_dw: u16,
    current_ma: u16,
    voltage_dv: u16,
    energy_wh: u32,
    charged_seconds: u32,
    order_no: Option<OrderNo>,
    updated_at: i64,
}

impl From<PortState> for Port {
    fn from(state: PortState) -> Self {
        Self {
            port_no: state.port_no,
            socket: state.socket,
            hole: state.hole,
            status: state.status.code(),
            raw_status: state.raw_status,
            power_dw: state.power_dw,
            current_ma: state.current_ma,
            voltage_dv: state.voltage_dv,
            energy_wh: state.energy_wh,
            charged_seconds: state.charged_seconds,
            order_no: state.order_no,
            updated_at: state.updated_at,
        }
    }
}

impl From<&Port> for PortState {
    fn from(port: &Port) -> Self {
        Self {
            port_no: port.port_no,
            socket: port.socket,
            hole: port.hole,
            status: PortStatus::from_code(port.status),
            raw_status: port.raw_status,
            power_dw: port.power_dw,
            current_ma: port.current_ma,
            voltage_dv: port.voltage_dv,
            energy_wh: port.energy_wh,
            charged_seconds: port.charged_seconds,
            order_no: port.order_no,
            updated_at: port.updated_at,
        }
    }
}

impl Session {
    /// What the directory has of a device. `None`: the store has not answered the bind, so nobody knows how new this is.
    /// `process` tells this process from others, so that connections of both have different names.
    pub(super) fn of(entry: &Entry, server: &ServerId, process: u64) -> Option<Self> {
        let epoch = entry.epoch();
        if epoch == 0 || entry.owner().is_none() {
            return None;
        }
        let ports: Vec<Port> = entry.ports().iter().map(PortCell::load).map(Port::from).collect();
        Some(Self {
            epoch,
            conn_id: entry.connected().then(|| conn_id(process, entry.accepted()).to_string()),
            server_id: server.clone(),
            protocol: entry.protocol(),
            last_seen: entry.last_seen(),
            last_tcp_down: entry.last_tcp_down(),
            last_ack_timeout: entry.last_ack_timeout(),
            timeout_ms: entry.timeout_ms(),
            connected_at: entry.connected_at(),
            waiting: entry.waiting(),
            fallback: entry.is_fallback(),
            signal: entry.signal(),
            firmware: entry.firmware(),
            device_type: entry.device_type(),
            iccid: entry.iccid(),
            orders: ports.iter().filter_map(|port| port.order_no).collect(),
            ports,
        })
    }
}

fn conn_id(process: u64, accepted: u64) -> Uuid {
    let bytes = (u128::from(process) << 64 | u128::from(accepted)).to_be_bytes();
    uuid::Builder::from_random_bytes(bytes).into_uuid()
}

/// A device that another instance has, or had last, as that one told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoteDevice {
    device_id: DeviceId,
    session: Session,
    /// Its instance was heard of lately.
    alive: bool,
}

impl RemoteDevice {
    pub(super) const fn new(device_id: DeviceId, session: Session, alive: bool) -> Self {
        Self { device_id, session, alive }
    }

    /// The device.
    pub const fn device_id(&self) -> DeviceId {
        self.device_id
    }

    /// The instance that has it, or had it last.
    pub const fn server(&self) -> &ServerId {
        &self.session.server_id
    }

    /// A socket carries it, on an instance that lives.
    pub const fn connected(&self) -> bool {
        self.alive && self.session.conn_id.is_some()
    }

    /// Epoch of the binding.
    pub const fn epoch(&self) -> i64 {
        self.session.epoch
    }

    /// Its protocol.
    pub const fn protocol(&self) -> Protocol {
        self.session.protocol
    }

    /// What its score is made of.
    pub const fn clocks(&self) -> Clocks {
        let Session { last_seen, last_tcp_down, last_ack_timeout, timeout_ms, .. } = self.session;
        Clocks { last_seen, last_tcp_down, last_ack_timeout, timeout_ms }
    }

    /// Unix ms of the last bind; 0: not known.
    pub const fn connected_at(&self) -> i64 {
        self.session.connected_at
    }

    /// Commands accepted for the device and not yet written.
    pub const fn waiting(&self) -> u32 {
        self.session.waiting
    }

    /// Whether the id is one that damaged devices fall back to.
    pub const fn is_fallback(&self) -> bool {
        self.session.fallback
    }

    /// Radio signal as the device sent it.
    pub const fn signal(&self) -> Option<u8> {
        self.session.signal
    }

    /// Firmware text.
    pub fn firmware(&self) -> Option<&str> {
        self.session.firmware.as_deref()
    }

    /// Device type, or host type (AP3000).
    pub const fn device_type(&self) -> Option<u8> {
        self.session.device_type
    }

    /// SIM number.
    pub fn iccid(&self) -> Option<&str> {
        self.session.iccid.as_deref()
    }

    /// Its ports by number.
    pub fn ports(&self) -> impl Iterator<Item = PortState> {
        self.session.ports.iter().map(PortState::from)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::gateway::{ShardId, directory::Directory};

    fn bound(directory: &Directory) -> Arc<Entry> {
        let entry = directory.bind("40aace04".parse().unwrap(), Protocol::Ap3000, ShardId(0), 7).unwrap().entry;
        entry.set_timeout(70_000);
        entry.seen(1_000_000);
        entry.set_signal(20);
        entry.set_ports(vec![PortCell::new(&PortState {
            status: PortStatus::Charging,
            order_no: Some(OrderNo::new(*b"THD", 1)),
            updated_at: 999_000,
            ..PortState::unknown(1, None, None)
        })]);
        entry
    }

    #[test]
    fn a_session_reads_back_as_the_entry_it_was_made_of() {
        let directory = Directory::default();
        let entry = bound(&directory);
        let server = ServerId::new("a");
        assert_eq!(Session::of(&entry, &server, 1), None, "no epoch yet");
        entry.set_epoch(3);
        let text = serde_json::to_string(&Session::of(&entry, &server, 1).unwrap()).unwrap();
        assert!(text.starts_with("{\"epoch\":3,\"conn_id\":\""), "{text}");
        let remote = RemoteDevice::new(entry.device_id(), serde_json::from_str(&text).unwrap(), true);
        assert!(remote.connected() && remote.epoch() == 3 && remote.server() == &server);
        for at in [1_000_000, 1_069_999, 1_070_000] {
            assert_eq!(remote.clocks().score(at, 300_000), entry.score(at));
        }
        assert_eq!(remote.ports().collect::<Vec<_>>(), [entry.port(1).unwrap()]);
        assert_eq!((remote.signal(), remote.iccid()), (Some(20), None));

        entry.set_disconnected(1_000_500);
        let down = Session::of(&entry, &server, 1).unwrap();
        assert_eq!((down.conn_id, down.last_tcp_down, down.epoch), (None, 1_000_500, 3));
    }

    #[test]
    fn connections_have_names_of_their_own() {
        assert_eq!(conn_id(1, 2), conn_id(1, 2));
        assert_ne!(conn_id(1, 2), conn_id(1, 3));
        assert_ne!(conn_id(1, 2), conn_id(2, 2));
    }

    #[test]
    fn what_a_newer_build_adds_is_left_out() {
        let text = r#"{"epoch":1,"conn_id":null,"server_id":"b","protocol":"bkv","last_seen":5,"last_tcp_down":0,
            "last_ack_timeout":0,"timeout_ms":9,"colour":"red"}"#;
        let session: Session = serde_json::from_str(text).unwrap();
        assert_eq!((session.protocol, session.timeout_ms, session.ports.len()), (Protocol::Bkv, 9, 0));
    }
}
