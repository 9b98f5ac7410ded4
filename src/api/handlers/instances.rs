//! `/admin/instances`: the instances that share the store. One that is alone shares with nobody, and is not listed.

use serde::Serialize;
use utoipa::ToSchema;

use super::call::{Next, reading};
use crate::model::ServerId;
use crate::store::InstanceRecord;
use crate::time::Rfc3339;

/// An instance as operators read it.
#[derive(Serialize, ToSchema)]
pub(in crate::api) struct Instance {
    /// Its name, as in `instance` of a device.
    server_id: ServerId,
    started_at: Rfc3339,
    /// Since it was heard of last, by the database's clock. Beyond 15,000 it is dead.
    beat_age_ms: i64,
    version: String,
    draining: bool,
    /// Devices' connections it had then.
    connections: u32,
}

impl From<InstanceRecord> for Instance {
    fn from(record: InstanceRecord) -> Self {
        let InstanceRecord { server, started_at, beat_age_ms, version, draining, connections } = record;
        Self { server_id: server, started_at: Rfc3339(started_at), beat_age_ms, version, draining, connections }
    }
}

/// All of them, by name.
pub(super) fn list() -> Next {
    reading(|reader| Ok(reader.instances()?.into_iter().map(Instance::from).collect::<Vec<_>>()))
}
