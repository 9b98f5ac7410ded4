//! Instances, and the leases they hold.

use super::{
    apply::Tx,
    conn::{Conn, all, run, scalar},
    event::json,
    row::device_id,
};
use crate::{
    model::{DeviceId, ServerId},
    store::{InstanceJob, InstanceOutcome, InstanceRecord, LeaseJob, Released, StoreError},
};

/// Devices released per instance and call.
const DEVICES_MAX: u32 = 500;

/// The clock that all instances share.
pub(super) const POSTGRES_NOW: &str = "CAST(extract(epoch FROM clock_timestamp()) * 1000 AS bigint)";
pub(super) const SQLITE_NOW: &str = "CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER)";

impl Tx<'_> {
    pub(super) fn instance_job(&mut self, job: &InstanceJob) -> Result<InstanceOutcome, StoreError> {
        let now = self.database_now()?;
        match job {
            InstanceJob::Join { server, version } => {
                run(
                    self.conn,
                    "INSERT INTO instances (server_id, started_at, beat, version) VALUES ($1, $2, $2, $3) \
                     ON CONFLICT (server_id) DO UPDATE SET started_at = excluded.started_at, beat = excluded.beat, \
                     version = excluded.version, draining = FALSE, connections = 0",
                    (server.as_str(), now, version),
                )?;
                Ok(InstanceOutcome::Joined)
            }
            InstanceJob::Beat { server, connections, draining } => {
                let known = run(
                    self.conn,
                    "UPDATE instances SET beat = $2, connections = $3, draining = $4 WHERE server_id = $1",
                    (server.as_str(), now, connections, draining),
                )?;
                Ok(InstanceOutcome::Beaten { known: known > 0 })
            }
            InstanceJob::Leave { server } => {
                // Whoever looks next finds it dead.
                run(self.conn, "UPDATE instances SET beat = 0 WHERE server_id = $1", [server.as_str()])?;
                run(
                    self.conn,
                    "DELETE FROM instances WHERE server_id = $1 AND NOT EXISTS (SELECT 1 FROM devices WHERE owner = $1)",
                    [server.as_str()],
                )?;
                run(self.conn, "DELETE FROM event_leases WHERE owner = $1", [server.as_str()])?;
                Ok(InstanceOutcome::Done)
            }
            InstanceJob::Release { server } => Ok(InstanceOutcome::Released(vec![self.release_devices(server, now)?])),
            InstanceJob::Adopt { server, devices } => {
                for (device_id, epoch) in devices {
                    run(
                        self.conn,
                        "UPDATE devices SET owner = $3 WHERE device_id = $1 AND session_epoch = $2 AND owner IS NULL",
                        (device_id.to_string(), epoch, server.as_str()),
                    )?;
                }
                Ok(InstanceOutcome::Done)
            }
            InstanceJob::Reap { by, dead_after_ms } => {
                let dead = all(
                    self.conn,
                    "SELECT server_id FROM instances WHERE server_id <> $1 AND beat < $2 ORDER BY server_id",
                    (by.as_str(), now.saturating_sub(*dead_after_ms)),
                    |row| Ok(ServerId::new(row.text(0)?)),
                )?;
                let mut released = Vec::with_capacity(dead.len());
                for server in dead {
                    let one = self.release_devices(&server, now)?;
                    if one.all {
                        run(
                            self.conn,
                            "DELETE FROM instances WHERE server_id = $1 AND beat < $2",
                            (server.as_str(), now.saturating_sub(*dead_after_ms)),
                        )?;
                    }
                    released.push(one);
                }
                Ok(InstanceOutcome::Released(released))
            }
        }
    }

    /// Takes devices from an instance that is gone. What others are at just now is left for the next call.
    fn release_devices(&mut self, server: &ServerId, now: i64) -> Result<Released, StoreError> {
        let devices: Vec<DeviceId> = all(
            self.conn,
            "SELECT d.device_id FROM devices d WHERE d.owner = $1 ORDER BY d.device_id LIMIT $2 \
             FOR NO KEY UPDATE OF d SKIP LOCKED",
            (server.as_str(), DEVICES_MAX),
            |row| device_id(row, 0),
        )?;
        if !devices.is_empty() {
            run(
                self.conn,
                "UPDATE devices SET owner = NULL, owner_ended_at = $2 WHERE owner = $1 \
                 AND device_id IN (SELECT value FROM json_array_elements_text($3::json))",
                (server.as_str(), now, json(&devices)?),
            )?;
        }
        let left: Option<i64> = scalar(self.conn, "SELECT 1 FROM devices WHERE owner = $1 LIMIT 1", [server.as_str()])?;
        Ok(Released { server: server.clone(), devices, all: left.is_none() })
    }

    /// Gives or renews the lease of an endpoint, unless another instance holds it; whether it is held now.
    pub(super) fn lease(&mut self, lease: &LeaseJob) -> Result<bool, StoreError> {
        let now = self.database_now()?;
        if lease.for_ms == 0 {
            let sql = "DELETE FROM event_leases WHERE endpoint = $1 AND owner = $2";
            run(self.conn, sql, (&lease.endpoint, lease.owner.as_str()))?;
            return Ok(false);
        }
        let held = run(
            self.conn,
            "INSERT INTO event_leases (endpoint, owner, lease_until) VALUES ($1, $2, $3) \
             ON CONFLICT (endpoint) DO UPDATE SET owner = excluded.owner, lease_until = excluded.lease_until \
             WHERE event_leases.owner = excluded.owner OR event_leases.lease_until < $4",
            (&lease.endpoint, lease.owner.as_str(), now.saturating_add(lease.for_ms), now),
        )?;
        Ok(held > 0)
    }

    /// Whether another instance delivers to an endpoint: what this one says of it is of the past.
    pub(super) fn is_leased_elsewhere(&self, endpoint: &str) -> Result<bool, StoreError> {
        let Some(instance) = self.instance else { return Ok(false) };
        // Whoever takes it over waits until what follows is committed.
        let sql = "SELECT owner FROM event_leases WHERE endpoint = $1 FOR UPDATE";
        Ok(scalar::<String>(self.conn, sql, [endpoint])?.is_some_and(|owner| owner != instance.as_str()))
    }

    /// Unix ms by the clock that all instances share.
    fn database_now(&self) -> Result<i64, StoreError> {
        match self.conn {
            Conn::Sqlite(_) => Ok(self.now),
            Conn::Postgres(_) => {
                let now = scalar(self.conn, &format!("SELECT {POSTGRES_NOW}"), ())?;
                now.ok_or_else(|| StoreError::Statement("the database has no clock".to_owned()))
            }
        }
    }
}

/// All instances, by name.
pub(super) fn instances(conn: Conn<'_>) -> Result<Vec<InstanceRecord>, StoreError> {
    let now = match conn {
        Conn::Sqlite(_) => SQLITE_NOW,
        Conn::Postgres(_) => POSTGRES_NOW,
    };
    let sql = format!(
        "SELECT server_id, started_at, {now} - beat, version, draining, connections FROM instances ORDER BY server_id"
    );
    all(conn, &sql, (), |row| {
        Ok(InstanceRecord {
            server: ServerId::new(row.text(0)?),
            started_at: row.get(1)?,
            beat_age_ms: row.get(2)?,
            version: row.get(3)?,
            draining: row.get(4)?,
            connections: row.get(5)?,
        })
    })
}
