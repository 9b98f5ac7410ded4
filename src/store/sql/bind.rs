//! Binds: a device's row takes the next epoch, and its shard gets what is kept of the device.
//!
//! A fleet that comes back is one bind per device at once. What binds ask for is read for a whole batch
//! ([`super::prefetch`]) where there is a stage; without one a bind is the row, its ports, its orders and its commands: four reads and
//! one write. What hardly any device has (pending parameters, a network list that is not confirmed) is looked at only where
//! the row says so.

use super::{
    apply::Tx,
    conn::{Conn, Row, Value, all, args, one, run},
    network::refresh,
    row::{details, device_id, port, port_columns, protocol, server_id},
    rows::Counters,
    stage::Bulk,
};
use crate::{
    gateway::network::{Listed, NetworkList, Refresh},
    model::{DeviceDetails, DeviceId, EventType, Protocol, ServerId},
    store::{Bind, Bound, PortRecord, StoreError},
};

/// A device that was bound just now counts as online for so long, until its first latest values say for how long.
const SEEN_MS: i64 = 60_000;

/// What a bind asks of its device.
#[derive(Clone, Debug)]
pub(in crate::store) struct BindRow {
    pub(super) device_id: DeviceId,
    counters: Counters,
    protocol: Protocol,
    /// As the operator set it.
    protocol_set: Option<Protocol>,
    networked: bool,
    details: DeviceDetails,
    has_ota: bool,
    heartbeat_interval_s: Option<u16>,
    /// Some parameter is wanted and not reported.
    params_pending: bool,
    channel: Option<u8>,
    refresh: Refresh,
    pub(super) ports: Vec<PortRecord>,
    pub(super) sockets: Vec<Listed>,
}

/// Columns in the order [`bind_row`] reads them, and the table.
macro_rules! bind_columns {
    () => {
        "d.device_id, d.session_epoch, d.msg_counter, d.event_counter, d.owner, d.protocol, d.protocol_set, d.networked, \
         d.name, d.extensions, d.fsk_frequency, d.imei, d.module_version, d.host_type, d.host, \
         EXISTS (SELECT 1 FROM ota_tasks t WHERE t.device_id = d.device_id AND t.state IN (0, 1, 2)), \
         (SELECT p.reported FROM device_params p WHERE p.device_id = d.device_id AND p.socket = 0 \
         AND p.name = 'heartbeat_interval_s'), \
         EXISTS (SELECT 1 FROM device_params p WHERE p.device_id = d.device_id AND p.desired IS NOT NULL \
         AND p.refused IS NULL AND p.desired IS DISTINCT FROM p.reported), d.network_channel, d.network_refresh \
         FROM devices d"
    };
}
pub(super) use bind_columns;

/// A row without its ports and sockets.
pub(super) fn bind_row(row: &Row<'_>) -> Result<BindRow, StoreError> {
    let protocol_set = match row.text_or_null(6)? {
        Some(_) => Some(protocol(row, 6)?),
        None => None,
    };
    let counters = Counters {
        session_epoch: row.get(1)?,
        msg_counter: row.get(2)?,
        event_counter: row.get(3)?,
        owner: server_id(row, 4)?,
    };
    Ok(BindRow {
        device_id: device_id(row, 0)?,
        counters,
        protocol: protocol(row, 5)?,
        protocol_set,
        networked: row.get(7)?,
        details: details(row, 8)?,
        has_ota: row.get(15)?,
        heartbeat_interval_s: row.text_or_null(16)?.and_then(|seconds| seconds.parse().ok()),
        params_pending: row.get(17)?,
        channel: row.get(18)?,
        refresh: refresh(row.get(19)?),
        ports: Vec::new(),
        sockets: Vec::new(),
    })
}

impl BindRow {
    /// What the device speaks, by what it came with.
    fn speaks(&self, came_with: Protocol) -> Protocol {
        match (self.protocol_set, self.protocol, came_with) {
            (Some(set), ..) => set,
            (None, Protocol::Gn, Protocol::Bkv) => Protocol::Gn,
            (None, ..) => came_with,
        }
    }
}

/// Begins with the values of `UPDATE_COUNTERS`: whatever counts behind a bind amends them here.
pub(super) static UPDATE_BIND: Bulk = Bulk {
    each: "UPDATE devices SET msg_counter = $2, event_counter = $3, session_epoch = $4, protocol = $5, \
           printed_no = coalesce($6, printed_no), connected_at = $7, last_seen_at = greatest(coalesce(last_seen_at, 0), $7), \
           owner = $8, offline_at = greatest(coalesce(offline_at, 0), $9) WHERE device_id = $1",
    many: "UPDATE devices AS d SET msg_counter = v.msg_counter, event_counter = v.event_counter, \
           session_epoch = v.session_epoch, protocol = v.protocol, printed_no = coalesce(v.printed_no, d.printed_no), \
           connected_at = v.at, last_seen_at = greatest(coalesce(d.last_seen_at, 0), v.at), owner = v.owner, \
           offline_at = greatest(coalesce(d.offline_at, 0), v.offline_at) \
           FROM UNNEST($1::text[], $2::bigint[], $3::bigint[], $4::bigint[], $5::text[], $6::bigint[], $7::bigint[], \
           $8::text[], $9::bigint[]) \
           AS v(device_id, msg_counter, event_counter, session_epoch, protocol, printed_no, at, owner, offline_at) \
           WHERE d.device_id = v.device_id",
    // Behind the counters of devices that are bound later in the batch.
    rank: 1,
    keyed: true,
};

impl Tx<'_> {
    pub(super) fn bind(&mut self, bind: &Bind) -> Result<Bound, StoreError> {
        let device_id = bind.device_id;
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
        let Some(mut row) = self.bind_row(bind)? else { return Ok(bound) };
        bound.first_seen = self.made.remove(&device_id);
        bound.admitted = true;
        bound.protocol = row.speaks(bind.protocol);
        let counters = &mut row.counters;
        counters.session_epoch += 1;
        counters.msg_counter += i64::from(Bound::MSG_IDS);
        let before = std::mem::replace(&mut counters.owner, self.instance.cloned());
        bound.superseded = before.filter(|owner| self.instance.is_some_and(|instance| instance != owner));
        let epoch = counters.session_epoch;
        bound.epoch = epoch;
        bound.msg_id_first = (counters.msg_counter - i64::from(Bound::MSG_IDS) + 1) as u32;
        self.save_bind(bind, &row.counters, bound.protocol)?;
        bound.networked = row.networked || !row.sockets.is_empty();
        bound.has_ota = row.has_ota;
        bound.heartbeat_interval_s = row.heartbeat_interval_s.filter(|_| matches!(device_id, DeviceId::Ap3000(_)));
        bound.details = Box::new(row.details);
        bound.ports = row.ports;
        if bound.first_seen {
            let data = super::device::registered(device_id, bound.protocol, bind.printed_no, Some(bind.at));
            self.device_event(device_id, EventType::DeviceRegistered, &data, bind.at)?;
        }
        bound.orders = self.held_by(device_id)?;
        bound.commands = self.claim(device_id, epoch, bind.at)?;
        for order in &bound.orders {
            bound.commands.extend(self.stop_again(order, epoch, bind.at)?);
        }
        if row.params_pending {
            bound.commands.extend(self.params_at_bind(device_id, epoch, bind.at)?);
        }
        if matches!(device_id, DeviceId::Gateway(_)) {
            let mut list = NetworkList { channel: row.channel, refresh: row.refresh, sockets: row.sockets };
            if !list.is_confirmed() {
                self.network_at_bind(device_id, &list, &mut bound.commands, epoch, bind.at)?;
                list = super::network::find(self.conn, device_id)?.unwrap_or_default();
            }
            bound.network = Some(list).filter(|list| !list.sockets.is_empty()).map(Box::new);
        }
        bound.commands.sort_by_key(|command| (command.priority, command.id));
        Ok(bound)
    }

    /// The row of a device that binds, made where it may be; `None`: it is not known.
    fn bind_row(&mut self, bind: &Bind) -> Result<Option<BindRow>, StoreError> {
        let device_id = bind.device_id;
        let known = self.conn.staged(|stage| {
            let mut row = stage.known.binds.remove(&device_id)?;
            // Jobs before this one may have counted.
            row.counters = stage.known.devices.get(&device_id)?.clone()?;
            Some(row)
        });
        if known.is_some() {
            return Ok(known);
        }
        let found = find(self.conn, device_id)?;
        if found.is_some() || bind.known_only {
            return Ok(found);
        }
        let inserted = run(
            self.conn,
            "INSERT INTO devices (device_id, protocol, printed_no, created_at) VALUES ($1, $2, $3, $4) \
             ON CONFLICT DO NOTHING",
            (device_id.to_string(), bind.protocol.as_str(), bind.printed_no, bind.at),
        )?;
        if inserted > 0 {
            self.made.insert(device_id);
        }
        find(self.conn, device_id)
    }

    fn save_bind(&self, bind: &Bind, counters: &Counters, protocol: Protocol) -> Result<(), StoreError> {
        let id = bind.device_id.to_string();
        let values = args![
            id,
            counters.msg_counter,
            counters.event_counter,
            counters.session_epoch,
            protocol.as_str(),
            bind.printed_no,
            bind.at,
            counters.owner.as_ref().map(ServerId::as_str),
            bind.at + SEEN_MS,
        ]
        .map(Value::into_owned);
        if !self.conn.is_staged() {
            return run(self.conn, UPDATE_BIND.each, values).map(drop);
        }
        self.conn.staged(|stage| {
            stage.known.devices.insert(bind.device_id, Some(counters.clone()));
            stage.push(&UPDATE_BIND, values.to_vec());
            Some(())
        });
        Ok(())
    }
}

/// The row of one device, with its ports and sockets.
fn find(conn: Conn<'_>, device_id: DeviceId) -> Result<Option<BindRow>, StoreError> {
    let id = device_id.to_string();
    let sql = concat!("SELECT ", bind_columns!(), " WHERE d.device_id = $1 FOR NO KEY UPDATE");
    let Some(mut row) = one(conn, sql, [&id], bind_row)? else { return Ok(None) };
    let sql = concat!("SELECT ", port_columns!(), " FROM ports WHERE device_id = $1 ORDER BY port_no");
    row.ports = all(conn, sql, [&id], port)?;
    if matches!(device_id, DeviceId::Gateway(_)) {
        row.sockets = super::network::sockets(conn, device_id)?;
    }
    Ok(Some(row))
}
