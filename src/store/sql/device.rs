//! Devices and ports: binding, their events, and latest values.

use serde_json::{Value, json};

use super::{
    apply::Tx,
    conn::{Conn, all, one, run},
    row::{details, device_columns, order, order_columns, port, port_columns, protocol, server_id},
};
use crate::{
    model::{DeviceId, EventType, Protocol, ServerId},
    store::{Bind, Bound, DeviceEvent, Latest, Settings, SettingsOutcome, StoreError},
    time::Rfc3339,
};

/// A device that was bound just now counts as online for so long, until its first latest values say for how long.
const SEEN_MS: i64 = 60_000;

impl Tx<'_> {
    pub(super) fn bind(&mut self, bind: &Bind) -> Result<Bound, StoreError> {
        let device_id = bind.device_id;
        let id = device_id.to_string();
        let mut bound = Bound {
            device_id,
            generation: bind.generation,
            admitted: false,
            first_seen: false,
            epoch: 0,
            protocol: bind.protocol,
            networked: false,
            has_ota: false,
            heartbeat_interval_s: None,
            msg_id_first: 0,
            ports: Vec::new(),
            orders: Vec::new(),
            commands: Vec::new(),
            details: Box::default(),
            network: None,
            superseded: None,
        };
        if !bind.known_only {
            let inserted = run(
                self.conn,
                "INSERT INTO devices (device_id, protocol, printed_no, created_at) VALUES ($1, $2, $3, $4) \
                 ON CONFLICT DO NOTHING",
                (&id, bind.protocol.as_str(), bind.printed_no, bind.at),
            )?;
            bound.first_seen = inserted > 0;
        }
        let instance = self.instance.map(ServerId::as_str);
        if instance.is_some() {
            let sql = "SELECT owner FROM devices WHERE device_id = $1 FOR NO KEY UPDATE";
            let previous = one(self.conn, sql, [&id], |row| server_id(row, 0))?.flatten();
            bound.superseded = previous.filter(|owner| Some(owner) != self.instance);
        }
        run(
            self.conn,
            "UPDATE devices SET session_epoch = session_epoch + 1, msg_counter = msg_counter + $2, \
             protocol = coalesce(protocol_set, CASE WHEN protocol = 'gn' AND $3 = 'bkv' THEN 'gn' ELSE $3 END), \
             printed_no = coalesce($4, printed_no), connected_at = $5, last_seen_at = greatest(coalesce(last_seen_at, 0), $5), \
             owner = $6, offline_at = greatest(coalesce(offline_at, 0), $7) WHERE device_id = $1",
            (&id, Bound::MSG_IDS, bind.protocol.as_str(), bind.printed_no, bind.at, instance, bind.at + SEEN_MS),
        )?;
        let row = one(
            self.conn,
            "SELECT session_epoch, msg_counter, protocol, \
             networked OR EXISTS (SELECT 1 FROM gateway_sockets s WHERE s.device_id = d.device_id), \
             name, extensions, fsk_frequency, imei, module_version, host_type, host, \
             EXISTS (SELECT 1 FROM ota_tasks t WHERE t.device_id = d.device_id AND t.state IN (0, 1, 2)) \
             FROM devices d WHERE device_id = $1",
            [&id],
            |row| {
                let (epoch, msg_counter) = (row.get::<i64>(0)?, row.get::<i64>(1)?);
                let (networked, has_ota) = (row.get::<bool>(3)?, row.get::<bool>(11)?);
                Ok((epoch, msg_counter, protocol(row, 2)?, networked, details(row, 4)?, has_ota))
            },
        )?;
        let Some((epoch, msg_counter, protocol, networked, details, has_ota)) = row else { return Ok(bound) };
        bound.details = Box::new(details);
        bound.admitted = true;
        bound.epoch = epoch;
        bound.protocol = protocol;
        bound.networked = networked;
        bound.has_ota = has_ota;
        bound.msg_id_first = (msg_counter - i64::from(Bound::MSG_IDS) + 1) as u32;
        bound.heartbeat_interval_s = self.heartbeat_interval(device_id)?;
        if bound.first_seen {
            let data = registered(bind.device_id, bound.protocol, bind.printed_no, Some(bind.at));
            self.device_event(device_id, EventType::DeviceRegistered, &data, bind.at)?;
        }
        bound.ports = all(
            self.conn,
            concat!("SELECT ", port_columns!(), " FROM ports WHERE device_id = $1 ORDER BY port_no"),
            [&id],
            port,
        )?;
        bound.orders = all(
            self.conn,
            concat!(
                "SELECT ",
                order_columns!(),
                " FROM orders WHERE device_id = $1 AND is_active = TRUE UNION ALL SELECT ",
                order_columns!(),
                " FROM orders WHERE device_id = $1 AND device_end_pending = TRUE AND is_active = FALSE ORDER BY port_no, created_at"
            ),
            [&id],
            order,
        )?;
        bound.commands = self.claim(device_id, epoch, bind.at)?;
        for order in &bound.orders {
            bound.commands.extend(self.stop_again(order, epoch, bind.at)?);
        }
        bound.commands.extend(self.params_at_bind(device_id, epoch, bind.at)?);
        if matches!(device_id, DeviceId::Gateway(_)) {
            self.network_at_bind(device_id, &mut bound.commands, epoch, bind.at)?;
            let list = super::network::find(self.conn, device_id)?;
            bound.network = list.filter(|list| !list.sockets.is_empty()).map(Box::new);
        }
        bound.commands.sort_by_key(|command| (command.priority, command.id));
        Ok(bound)
    }

    /// Sets what the operator says of a device; makes its row where there is none.
    pub(super) fn set_settings(&mut self, settings: &Settings) -> Result<SettingsOutcome, StoreError> {
        let device_id = settings.device_id;
        let id = device_id.to_string();
        let (protocol, printed_no) = match device_id {
            DeviceId::Ap3000(phy_id) => (Protocol::Ap3000, Some(phy_id.printed_number())),
            DeviceId::Gateway(_) => (settings.protocol.unwrap_or(Protocol::Bkv), None),
        };
        let inserted = run(
            self.conn,
            "INSERT INTO devices (device_id, protocol, printed_no, created_at) VALUES ($1, $2, $3, $4) \
             ON CONFLICT DO NOTHING",
            (&id, protocol.as_str(), printed_no, settings.at),
        )?;
        let protocol_set = settings.protocol.filter(|_| protocol != Protocol::Ap3000).map(Protocol::as_str);
        run(
            self.conn,
            "UPDATE devices SET protocol_set = coalesce($2, protocol_set), protocol = coalesce($2, protocol), \
             extensions = coalesce($3, extensions), name = nullif(coalesce($4, name), ''), \
             fsk_frequency = nullif(coalesce($5, fsk_frequency), 0) WHERE device_id = $1",
            (&id, protocol_set, settings.extensions, &settings.name, settings.fsk_frequency),
        )?;
        let Some(record) = find_device(self.conn, device_id)? else {
            return Err(StoreError::Statement(format!("the row of {id} is gone")));
        };
        let registered_now = inserted > 0;
        if registered_now {
            let data = registered(device_id, record.protocol, printed_no, None);
            self.device_event(device_id, EventType::DeviceRegistered, &data, settings.at)?;
        }
        Ok(SettingsOutcome {
            device_id,
            registered: registered_now,
            protocol: record.protocol,
            details: record.details,
        })
    }

    pub(super) fn report(&mut self, event: &DeviceEvent) -> Result<(), StoreError> {
        if let Some(order_no) = event.order_no {
            return self.order_remark(event, order_no);
        }
        self.device_event(event.device_id, event.event_type, &event.data, event.at)
    }
}

/// `data` of `device.registered`: the device object as far as the store knows it. `seen`: when it came by itself, which makes it
/// online.
fn registered(device_id: DeviceId, protocol: Protocol, printed_no: Option<u32>, seen: Option<i64>) -> Value {
    json!({
        "device_id": device_id,
        "protocol": protocol,
        "printed_no": printed_no,
        "online": seen.is_some(),
        "last_seen_at": seen.map(Rfc3339),
        "connected_at": seen.map(Rfc3339),
        "ports": [],
        "active_orders": [],
    })
}

/// Writes a latest value. Values of devices without a row, or older than what is stored, are dropped: they are only the latest
/// of something that has gone.
pub(super) fn write_latest(conn: Conn<'_>, latest: &Latest) -> Result<(), StoreError> {
    match latest {
        Latest::Device { device_id, last_seen_at, offline_at, signal, firmware, iccid, networked, device_type } => run(
            conn,
            "UPDATE devices SET last_seen_at = greatest(coalesce(last_seen_at, 0), $2), signal = coalesce($3, signal), \
             firmware = coalesce($4, firmware), iccid = coalesce($5, iccid), networked = networked OR $6, \
             device_type = coalesce($7, device_type), \
             offline_at = CASE WHEN $2 >= coalesce(last_seen_at, 0) THEN $8 ELSE offline_at END \
             WHERE device_id = $1",
            (device_id.to_string(), last_seen_at, signal, firmware, iccid, networked, device_type, offline_at),
        )?,
        Latest::Port(port) => run(
            conn,
            concat!(
                "INSERT INTO ports (",
                port_columns!(),
                ") SELECT $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12 \
                 WHERE EXISTS (SELECT 1 FROM devices WHERE device_id = $1) \
                 AND NOT EXISTS (SELECT 1 FROM gateway_sockets s \
                 WHERE s.device_id = $1 AND s.socket = $3 AND s.state = 'removing') \
                 ON CONFLICT (device_id, port_no) DO UPDATE SET socket = excluded.socket, hole = excluded.hole, \
                 status = excluded.status, raw_status = excluded.raw_status, power_dw = excluded.power_dw, \
                 current_ma = excluded.current_ma, voltage_dv = excluded.voltage_dv, energy_wh = excluded.energy_wh, \
                 charged_seconds = excluded.charged_seconds, updated_at = excluded.updated_at \
                 WHERE excluded.updated_at >= ports.updated_at"
            ),
            (
                port.device_id.to_string(),
                port.port_no,
                port.socket,
                port.hole,
                port.status.code(),
                port.raw_status,
                port.power_dw,
                port.current_ma,
                port.voltage_dv,
                port.energy_wh,
                port.charged_seconds,
                port.updated_at,
            ),
        )?,
        // A settlement's totals are final: progress that was still under way must not overwrite them.
        Latest::Progress { order_no, duration_seconds, energy_wh, at } => run(
            conn,
            "UPDATE orders SET duration_seconds = $2, energy_wh = $3, updated_at = greatest(updated_at, $4) \
             WHERE order_no = $1 AND settled_at IS NULL",
            (order_no.as_str(), duration_seconds, energy_wh, at),
        )?,
        Latest::Host { device_id, imei, module_version, host_type, host } => run(
            conn,
            "UPDATE devices SET imei = coalesce($2, imei), module_version = coalesce($3, module_version), \
             host_type = coalesce($4, host_type), host = coalesce($5, host) WHERE device_id = $1",
            (
                device_id.to_string(),
                imei,
                module_version,
                host_type,
                host.as_deref().map(super::event::json).transpose()?,
            ),
        )?,
    };
    Ok(())
}

/// One device's row.
pub(super) fn find_device(
    conn: Conn<'_>,
    device_id: DeviceId,
) -> Result<Option<crate::store::DeviceRecord>, StoreError> {
    one(
        conn,
        concat!("SELECT ", device_columns!(), " FROM devices WHERE device_id = $1"),
        [device_id.to_string()],
        super::row::device,
    )
}
