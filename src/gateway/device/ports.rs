//! Ports: what reports say of them.

use super::{About, Device, PORTS_MAX, PortReport};
use crate::{
    gateway::{
        core::Cx,
        directory::{PortCell, PortState},
        network::NetworkList,
    },
    model::{EventType, PortStatus, port_of_socket},
    store::payload::PortObject,
};

impl Device {
    /// Adds ports that are not known yet.
    pub(in crate::gateway) fn add_ports(&mut self, states: &[PortState]) {
        let missing = |state: &&PortState| self.ports.iter().all(|cell| cell.port_no != state.port_no);
        if !states.iter().any(|state| missing(&state)) {
            return;
        }
        let mut all: Vec<PortCell> = self.ports.iter().map(PortCell::duplicate).collect();
        all.extend(states.iter().filter(missing).map(PortCell::new));
        all.truncate(PORTS_MAX);
        all.sort_by_key(|cell| cell.port_no);
        self.set_ports(all);
    }

    fn set_ports(&mut self, cells: Vec<PortCell>) {
        self.entry.set_ports(cells);
        self.ports = self.entry.ports();
    }

    /// The device addresses sockets from 1 on. What was taken for holes of a standalone device are those of socket 1, unless
    /// nothing was ever heard of them.
    pub(in crate::gateway) fn becomes_networked(&mut self) {
        self.entry.set_networked();
        if self.ports.iter().all(|cell| cell.socket() != Some(0)) {
            return;
        }
        let heard_of = |state: &PortState| state.socket != Some(0) || state.updated_at != 0 || state.order_no.is_some();
        let staying = self.ports.iter().filter(|cell| heard_of(&cell.load())).map(PortCell::duplicate);
        let renamed = staying.map(|cell| if cell.socket() == Some(0) { cell.of_socket(1) } else { cell });
        self.set_ports(renamed.collect());
    }

    /// Makes the ports those of the list: sockets that shall be in it have two, sockets that go have none, whatever is still
    /// reported of them.
    pub(super) fn list_sockets(&mut self, list: &NetworkList) {
        if let Some(seldom) = &mut self.seldom {
            seldom.leaving.clear();
        }
        if list.sockets.is_empty() {
            return;
        }
        self.becomes_networked();
        let leaving: Vec<u8> =
            list.sockets.iter().filter(|listed| !listed.is_wanted()).map(|listed| listed.socket).collect();
        let leaves = |cell: &&PortCell| cell.socket().is_some_and(|socket| leaving.contains(&socket));
        if self.ports.iter().any(|cell| leaves(&cell)) {
            let staying = self.ports.iter().filter(|cell| !leaves(cell));
            self.set_ports(staying.map(PortCell::duplicate).collect());
        }
        if !leaving.is_empty() {
            self.seldom().leaving = leaving;
        }
        let holes = list.wanted().flat_map(|socket| [(socket, 0), (socket, 1)]);
        let states: Vec<_> = holes
            .map(|(socket, hole)| PortState::unknown(port_of_socket(socket, hole), Some(socket), Some(hole)))
            .collect();
        self.add_ports(&states);
    }

    /// Whether a socket is being taken out of the list: what it reports counts for nothing.
    pub(in crate::gateway) fn is_leaving(&self, socket: u8) -> bool {
        self.seldom.as_ref().is_some_and(|seldom| seldom.leaving.contains(&socket))
    }

    /// Makes AP3000 ports 1 to `count` known.
    pub(in crate::gateway) fn add_numbered_ports(&mut self, count: u8) {
        if usize::from(count) > self.ports.len() {
            let states: Vec<_> = (1..=u16::from(count)).map(|no| PortState::unknown(no, None, None)).collect();
            self.add_ports(&states);
        }
    }

    /// Whether a report would change nothing: same status and voltage, and no order follows the port.
    pub(in crate::gateway) fn port_unchanged(
        &self,
        port_no: u16,
        status: PortStatus,
        raw: u8,
        voltage_dv: u16,
    ) -> bool {
        self.tracks.is_empty()
            && self.ports.iter().any(|cell| cell.port_no == port_no && cell.shows(status, raw, voltage_dv))
    }

    /// Takes a report of one port.
    pub(in crate::gateway) fn port_report(&mut self, cx: &mut Cx<'_>, report: &PortReport) {
        let Some(cell) = self.ports.iter().find(|cell| cell.port_no == report.port_no) else {
            if self.ports.len() < PORTS_MAX && report.port_no > 0 {
                self.add_ports(&[PortState::unknown(report.port_no, report.socket, report.hole)]);
                if self.ports.iter().any(|cell| cell.port_no == report.port_no) {
                    self.port_report(cx, report);
                }
            }
            return;
        };
        let before = cell.load();
        let mut state = before;
        if let Some((status, raw)) = report.status {
            state.status = status;
            state.raw_status = raw;
        }
        state.voltage_dv = report.voltage_dv.unwrap_or(state.voltage_dv);
        state.power_dw = report.power_dw.unwrap_or(state.power_dw);
        state.current_ma = report.current_ma.unwrap_or(state.current_ma);
        state.energy_wh = report.energy_wh.unwrap_or(state.energy_wh);
        state.charged_seconds = report.charged_seconds.unwrap_or(state.charged_seconds);
        state.updated_at = cx.now.unix_ms;
        cell.store(&state);
        cell.set_dirty();
        self.ports_dirty = true;
        if before.status != state.status {
            self.entry.mark();
        }
        if before.status != state.status && before.updated_at != 0 {
            let port = PortObject::new(&state.record(self.id), state.order_no);
            let mut data = serde_json::to_value(port).unwrap_or_default();
            if let Some(object) = data.as_object_mut() {
                object.insert("device_id".into(), self.id.to_string().into());
                object.insert("old_status".into(), before.status.code().into());
                object.insert("new_status".into(), state.status.code().into());
            }
            cx.event(self.id, EventType::PortStatusChanged, data);
        }
        if !self.tracks.is_empty() || matches!(report.about, About::Order(_)) {
            self.orders_report(cx, report);
        }
    }
}
