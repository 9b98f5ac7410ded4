//! Latest values, by the hundred: one transaction takes the locks of the devices that are free and writes one statement per
//! table. Values of a device that somebody else changes at that moment wait for the next one.
//!
//! Commits do not wait for the disk: a crash of the server loses the last ones, which the next reports bring again. While the
//! server is away, values stay with whoever has them: the queue is full then.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use crossbeam::channel::{Receiver, RecvTimeoutError};
use rustc_hash::FxHashSet;

use super::{
    Shared,
    link::Link,
    session::{Fault, PgSession},
};
use crate::store::{Latest, PortRecord, StoreError, counters::add};

const IDLE: Duration = Duration::from_millis(250);
/// After so many transactions that found its device locked, or not there, a value is dropped.
const TRIES_MAX: u8 = 50;
/// Before values are tried again, where there are no others.
const LOCKED_WAIT: Duration = Duration::from_millis(10);

pub(super) struct Writer {
    pub(super) shared: Arc<Shared>,
    pub(super) link: Link,
    pub(super) queue: Receiver<Vec<Latest>>,
    pub(super) rows_max: usize,
    /// Values with the transactions that could not write them.
    pub(super) waiting: VecDeque<(u8, Latest)>,
}

impl Writer {
    pub(super) fn run(&mut self) {
        let mut open = true;
        while open || !self.waiting.is_empty() {
            if self.waiting.is_empty() {
                match self.queue.recv_timeout(IDLE) {
                    Ok(rows) => self.waiting.extend(rows.into_iter().map(|row| (0, row))),
                    Err(RecvTimeoutError::Timeout) => self.link.look_after(),
                    Err(RecvTimeoutError::Disconnected) => open = false,
                }
            }
            while self.waiting.len() < self.rows_max {
                let Ok(rows) = self.queue.try_recv() else { break };
                self.waiting.extend(rows.into_iter().map(|row| (0, row)));
            }
            if !self.waiting.is_empty() && !self.write() {
                if !open {
                    // Nobody would wait for the server to come back.
                    add(&self.shared.counters.latest_lost, self.waiting.len() as u64);
                    return;
                }
                std::thread::sleep(IDLE);
            }
        }
    }

    /// Writes one transaction; false: the server cannot now, and the values are kept.
    fn write(&mut self) -> bool {
        let count = self.waiting.len().min(self.rows_max);
        let batch: Vec<(u8, Latest)> = self.waiting.drain(..count).collect();
        if self.waiting.is_empty() {
            // The flush of a whole fleet takes a megabyte or two, the next ones a fraction.
            self.waiting = VecDeque::new();
        }
        self.write_batch(batch)
    }

    fn write_batch(&mut self, mut batch: Vec<(u8, Latest)>) -> bool {
        let written = match self.link.session() {
            Ok(session) => write(session, &batch).map_err(|error| {
                let fault = session.take_fault();
                // The first error is the one to tell.
                drop(session.roll_back());
                (error, fault)
            }),
            Err(error) => Err((error, Some(Fault::Lost))),
        };
        match written {
            Ok(written) => {
                let done = written.iter().filter(|written| **written).count();
                add(&self.shared.counters.latest_rows, done as u64);
                for ((tries, row), _) in batch.into_iter().zip(written).filter(|(_, written)| !written) {
                    if tries + 1 < TRIES_MAX {
                        self.waiting.push_back((tries + 1, row));
                    } else {
                        add(&self.shared.counters.latest_lost, 1);
                    }
                }
                if self.waiting.iter().all(|(tries, _)| *tries > 0) && !self.waiting.is_empty() {
                    std::thread::sleep(LOCKED_WAIT);
                }
                true
            }
            Err((error, Some(Fault::Data))) if batch.len() == 1 => {
                log::error!("a latest value is left out: {error}");
                add(&self.shared.counters.latest_lost, 1);
                true
            }
            // One value that does not go in must not keep the others out.
            Err((_, Some(Fault::Data))) => {
                let second = batch.split_off(batch.len() / 2);
                let first = self.write_batch(batch);
                self.write_batch(second) && first
            }
            Err((error, fault)) => {
                if fault == Some(Fault::Lost) {
                    self.link.lose(&error);
                }
                for row in batch.into_iter().rev() {
                    self.waiting.push_front(row);
                }
                false
            }
        }
    }
}

/// What a device told of itself; the later of two values wins, and an absent one changes nothing.
#[derive(Default)]
struct DeviceRow {
    last_seen_at: i64,
    offline_at: Option<i64>,
    signal: Option<i16>,
    firmware: Option<String>,
    iccid: Option<String>,
    networked: bool,
    device_type: Option<i16>,
    imei: Option<String>,
    module_version: Option<String>,
    host_type: Option<i16>,
    host: Option<String>,
}

impl DeviceRow {
    fn seen(&mut self, last_seen_at: i64, offline_at: i64) {
        if last_seen_at >= self.last_seen_at {
            (self.last_seen_at, self.offline_at) = (last_seen_at, Some(offline_at));
        }
    }

    /// Nothing but when it was heard.
    const fn is_seen_only(&self) -> bool {
        self.offline_at.is_some()
            && self.signal.is_none()
            && self.firmware.is_none()
            && self.iccid.is_none()
            && !self.networked
            && self.device_type.is_none()
            && self.imei.is_none()
            && self.module_version.is_none()
            && self.host_type.is_none()
            && self.host.is_none()
    }
}

/// PostgreSQL's text has no zero byte; a device's may.
fn text(value: &str) -> String {
    value.replace('\0', "")
}

/// Writes what it can, and says of each value whether it did.
fn write(session: &PgSession, batch: &[(u8, Latest)]) -> Result<Vec<bool>, StoreError> {
    session.begin("", true)?;
    let orders: Vec<&str> = batch
        .iter()
        .filter_map(|(_, row)| if let Latest::Progress { order_no, .. } = row { Some(order_no.as_str()) } else { None })
        .collect();
    let mut device_of_order = BTreeMap::new();
    if !orders.is_empty() {
        let statement = session.prepared("SELECT order_no, device_id FROM orders WHERE order_no = ANY($1)")?;
        let rows = session.call(|client| client.query(&statement, &[&orders]))?;
        device_of_order.extend(rows.iter().map(|row| (row.get::<_, String>(0), row.get::<_, String>(1))));
    }
    let of: Vec<Option<String>> = batch
        .iter()
        .map(|(_, row)| match row {
            Latest::Seen { device_id, .. } | Latest::Device { device_id, .. } | Latest::Host { device_id, .. } => {
                Some(device_id.to_string())
            }
            Latest::Port(port) => Some(port.device_id.to_string()),
            Latest::Progress { order_no, .. } => device_of_order.get(order_no.as_str()).cloned(),
        })
        .collect();
    let mut devices: Vec<&str> = of.iter().filter_map(Option::as_deref).collect();
    devices.sort_unstable();
    devices.dedup();
    let statement = session.prepared(
        "SELECT device_id FROM devices WHERE device_id = ANY($1) ORDER BY device_id FOR NO KEY UPDATE SKIP LOCKED",
    )?;
    let rows = session.call(|client| client.query(&statement, &[&devices]))?;
    let locked: FxHashSet<&str> = rows.iter().map(|row| row.get(0)).collect();
    let written: Vec<bool> =
        of.iter().map(|device| device.as_deref().is_some_and(|device| locked.contains(device))).collect();

    let (mut devices, mut ports, mut progress) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
    for (((_, row), device), _) in batch.iter().zip(&of).zip(&written).filter(|(_, written)| **written) {
        let Some(device) = device.as_deref() else { continue };
        match row {
            Latest::Seen { last_seen_at, offline_at, .. } => {
                let row: &mut DeviceRow = devices.entry(device).or_default();
                row.seen(*last_seen_at, *offline_at);
            }
            Latest::Device { last_seen_at, offline_at, signal, firmware, iccid, networked, device_type, .. } => {
                let row: &mut DeviceRow = devices.entry(device).or_default();
                row.seen(*last_seen_at, *offline_at);
                row.signal = signal.map(i16::from).or(row.signal);
                row.firmware = firmware.as_deref().map(text).or_else(|| row.firmware.take());
                row.iccid = iccid.as_deref().map(text).or_else(|| row.iccid.take());
                row.networked |= networked;
                row.device_type = device_type.map(i16::from).or(row.device_type);
            }
            Latest::Host { imei, module_version, host_type, host, .. } => {
                let host = host.as_deref().map(serde_json::to_string).transpose();
                let host =
                    host.map_err(|error| StoreError::Statement(format!("a value does not serialise: {error}")))?;
                let row = devices.entry(device).or_default();
                row.imei = imei.as_deref().map(text).or_else(|| row.imei.take());
                row.module_version = module_version.as_deref().map(text).or_else(|| row.module_version.take());
                row.host_type = host_type.map(i16::from).or(row.host_type);
                row.host = host.or_else(|| row.host.take());
            }
            Latest::Port(port) => {
                let held = ports.entry((device, port.port_no)).or_insert(port);
                if port.updated_at >= held.updated_at {
                    *held = port;
                }
            }
            Latest::Progress { order_no, duration_seconds, energy_wh, at } => {
                progress.insert(order_no.as_str(), (*duration_seconds, *energy_wh, *at));
            }
        }
    }
    let (seen, devices) = devices.into_iter().partition(|(_, row): &(&str, DeviceRow)| row.is_seen_only());
    write_seen(session, &seen)?;
    write_devices(session, &devices)?;
    write_ports(session, &ports)?;
    write_progress(session, &progress)?;
    session.commit()?;
    Ok(written)
}

/// Devices that were heard and told nothing.
fn write_seen(session: &PgSession, rows: &BTreeMap<&str, DeviceRow>) -> Result<(), StoreError> {
    if rows.is_empty() {
        return Ok(());
    }
    let statement = session.prepared(
        "UPDATE devices d SET last_seen_at = v.last_seen_at, offline_at = v.offline_at \
         FROM unnest($1::text[], $2::bigint[], $3::bigint[]) AS v (device_id, last_seen_at, offline_at) \
         WHERE d.device_id = v.device_id AND coalesce(d.last_seen_at, 0) <= v.last_seen_at",
    )?;
    let ids: Vec<&str> = rows.keys().copied().collect();
    let seen: Vec<i64> = rows.values().map(|row| row.last_seen_at).collect();
    let offline: Vec<Option<i64>> = rows.values().map(|row| row.offline_at).collect();
    session.call(|client| client.execute(&statement, &[&ids, &seen, &offline]))?;
    Ok(())
}

fn write_devices(session: &PgSession, rows: &BTreeMap<&str, DeviceRow>) -> Result<(), StoreError> {
    if rows.is_empty() {
        return Ok(());
    }
    macro_rules! column {
        ($name:ident) => {
            rows.values().map(|row| &row.$name).collect::<Vec<_>>()
        };
    }
    let statement = session.prepared(
        "UPDATE devices d SET last_seen_at = greatest(coalesce(d.last_seen_at, 0), v.last_seen_at), \
         signal = coalesce(v.signal, d.signal), firmware = coalesce(v.firmware, d.firmware), \
         iccid = coalesce(v.iccid, d.iccid), networked = d.networked OR v.networked, \
         device_type = coalesce(v.device_type, d.device_type), imei = coalesce(v.imei, d.imei), \
         module_version = coalesce(v.module_version, d.module_version), host_type = coalesce(v.host_type, d.host_type), \
         host = coalesce(v.host, d.host), offline_at = CASE WHEN v.last_seen_at >= coalesce(d.last_seen_at, 0) \
         THEN coalesce(v.offline_at, d.offline_at) ELSE d.offline_at END \
         FROM unnest($1::text[], $2::bigint[], $3::smallint[], $4::text[], $5::text[], $6::boolean[], $7::smallint[], \
         $8::text[], $9::text[], $10::smallint[], $11::text[], $12::bigint[]) AS v (device_id, last_seen_at, signal, firmware, iccid, \
         networked, device_type, imei, module_version, host_type, host, offline_at) WHERE d.device_id = v.device_id",
    )?;
    let ids: Vec<&str> = rows.keys().copied().collect();
    session.call(|client| {
        client.execute(
            &statement,
            &[
                &ids,
                &column!(last_seen_at),
                &column!(signal),
                &column!(firmware),
                &column!(iccid),
                &column!(networked),
                &column!(device_type),
                &column!(imei),
                &column!(module_version),
                &column!(host_type),
                &column!(host),
                &column!(offline_at),
            ],
        )
    })?;
    Ok(())
}

fn write_ports(session: &PgSession, rows: &BTreeMap<(&str, u16), &PortRecord>) -> Result<(), StoreError> {
    if rows.is_empty() {
        return Ok(());
    }
    let statement = session.prepared(
        "INSERT INTO ports (device_id, port_no, socket, hole, status, raw_status, power_dw, current_ma, voltage_dv, \
         energy_wh, charged_seconds, updated_at) \
         SELECT v.* FROM unnest($1::text[], $2::integer[], $3::smallint[], $4::smallint[], $5::smallint[], $6::smallint[], \
         $7::integer[], $8::integer[], $9::integer[], $10::bigint[], $11::bigint[], $12::bigint[]) \
         AS v (device_id, port_no, socket, hole, status, raw_status, power_dw, current_ma, voltage_dv, energy_wh, \
         charged_seconds, updated_at) \
         WHERE NOT EXISTS (SELECT 1 FROM gateway_sockets s \
         WHERE s.device_id = v.device_id AND s.socket = v.socket AND s.state = 'removing') \
         ON CONFLICT (device_id, port_no) DO UPDATE SET socket = excluded.socket, hole = excluded.hole, \
         status = excluded.status, raw_status = excluded.raw_status, power_dw = excluded.power_dw, \
         current_ma = excluded.current_ma, voltage_dv = excluded.voltage_dv, energy_wh = excluded.energy_wh, \
         charged_seconds = excluded.charged_seconds, updated_at = excluded.updated_at \
         WHERE excluded.updated_at >= ports.updated_at",
    )?;
    macro_rules! column {
        ($name:ident as $type:ty) => {
            rows.values().map(|row| <$type>::from(row.$name)).collect::<Vec<$type>>()
        };
    }
    let ids: Vec<&str> = rows.keys().map(|(device, _)| *device).collect();
    let sockets: Vec<Option<i16>> = rows.values().map(|row| row.socket.map(i16::from)).collect();
    let holes: Vec<Option<i16>> = rows.values().map(|row| row.hole.map(i16::from)).collect();
    let statuses: Vec<i16> = rows.values().map(|row| i16::from(row.status.code())).collect();
    session.call(|client| {
        client.execute(
            &statement,
            &[
                &ids,
                &column!(port_no as i32),
                &sockets,
                &holes,
                &statuses,
                &column!(raw_status as i16),
                &column!(power_dw as i32),
                &column!(current_ma as i32),
                &column!(voltage_dv as i32),
                &column!(energy_wh as i64),
                &column!(charged_seconds as i64),
                &column!(updated_at as i64),
            ],
        )
    })?;
    Ok(())
}

/// A settlement's totals are final: progress that was still under way must not overwrite them.
fn write_progress(session: &PgSession, rows: &BTreeMap<&str, (u32, u32, i64)>) -> Result<(), StoreError> {
    if rows.is_empty() {
        return Ok(());
    }
    let statement = session.prepared(
        "UPDATE orders o SET duration_seconds = v.duration_seconds, energy_wh = v.energy_wh, \
         updated_at = greatest(o.updated_at, v.at) \
         FROM unnest($1::text[], $2::bigint[], $3::bigint[], $4::bigint[]) AS v (order_no, duration_seconds, energy_wh, at) \
         WHERE o.order_no = v.order_no AND o.settled_at IS NULL",
    )?;
    let orders: Vec<&str> = rows.keys().copied().collect();
    let durations: Vec<i64> = rows.values().map(|row| i64::from(row.0)).collect();
    let energies: Vec<i64> = rows.values().map(|row| i64::from(row.1)).collect();
    let times: Vec<i64> = rows.values().map(|row| row.2).collect();
    session.call(|client| client.execute(&statement, &[&orders, &durations, &energies, &times]))?;
    Ok(())
}
