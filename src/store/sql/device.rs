//! Devices and ports: settings, their events, and latest values.

use serde_json::{Value, json};

use super::{
    apply::Tx,
    conn::{Conn, one, run, run_each},
    row::{device_columns, port_columns},
};
use crate::{
    model::{DeviceId, EventType, Protocol},
    store::{DeviceEvent, Latest, Settings, SettingsOutcome, StoreError},
    time::Rfc3339,
};

impl Tx<'_> {
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
        self.device_event_text(event.device_id, event.event_type, event.data.as_str(), event.at)
    }
}

/// `data` of `device.registered`: the device object as far as the store knows it. `seen`: when it came by itself, which makes it
/// online.
pub(super) fn registered(device_id: DeviceId, protocol: Protocol, printed_no: Option<u32>, seen: Option<i64>) -> Value {
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

/// Writes when devices were heard; `done` is told how each went. What is older than what is stored changes nothing.
pub(super) fn write_seen(
    conn: Conn<'_>,
    rows: &[Latest],
    done: impl FnMut(Result<usize, StoreError>) -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    let seen = rows.iter().filter_map(|row| match row {
        Latest::Seen { device_id, last_seen_at, offline_at } => {
            Some((device_id.to_string(), *last_seen_at, *offline_at))
        }
        _ => None,
    });
    let sql = "UPDATE devices SET last_seen_at = $2, offline_at = $3 \
               WHERE device_id = $1 AND coalesce(last_seen_at, 0) <= $2";
    run_each(conn, sql, seen, done)
}

/// Writes another latest value. Values of devices without a row, or older than what is stored, are dropped: they are only the latest
/// of something that has gone.
pub(super) fn write_latest(conn: Conn<'_>, latest: &Latest) -> Result<usize, StoreError> {
    match latest {
        // By `write_seen`.
        Latest::Seen { .. } => Ok(0),
        Latest::Device { device_id, last_seen_at, offline_at, signal, firmware, iccid, networked, device_type } => run(
            conn,
            "UPDATE devices SET last_seen_at = greatest(coalesce(last_seen_at, 0), $2), signal = coalesce($3, signal), \
             firmware = coalesce($4, firmware), iccid = coalesce($5, iccid), networked = networked OR $6, \
             device_type = coalesce($7, device_type), \
             offline_at = CASE WHEN $2 >= coalesce(last_seen_at, 0) THEN $8 ELSE offline_at END \
             WHERE device_id = $1",
            (device_id.to_string(), last_seen_at, signal, firmware, iccid, networked, device_type, offline_at),
        ),
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
        ),
        // A settlement's totals are final: progress that was still under way must not overwrite them.
        Latest::Progress { order_no, duration_seconds, energy_wh, at } => run(
            conn,
            "UPDATE orders SET duration_seconds = $2, energy_wh = $3, updated_at = greatest(updated_at, $4) \
             WHERE order_no = $1 AND settled_at IS NULL",
            (order_no.as_str(), duration_seconds, energy_wh, at),
        ),
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
        ),
    }
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
