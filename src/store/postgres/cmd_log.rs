//! The logs of commands and of deliveries: a statement per transaction, without waiting for the disk.

use super::link::Link;
use crate::{
    model::ServerId,
    store::{
        CommandLogRow, DeliveryLogRow, StoreError,
        logs::{Log, Logs},
    },
};

/// The tables of the logs, as the thread of the logs writes them.
pub(super) struct LogTables {
    pub(super) link: Link,
    /// Who writes.
    pub(super) instance: ServerId,
}

impl LogTables {
    /// Runs what needs a session, and forgets a session that did not survive it.
    fn with_link<T>(&mut self, body: impl FnOnce(&mut Link, &str) -> Result<T, StoreError>) -> Result<T, StoreError> {
        body(&mut self.link, self.instance.as_str()).inspect_err(|_| self.link.lose_if_lost())
    }
}

impl Logs for LogTables {
    fn insert_commands(&mut self, rows: &[CommandLogRow]) -> Result<(), StoreError> {
        self.with_link(|link, instance| insert_commands(link, rows, instance))
    }

    fn insert_deliveries(&mut self, rows: &[DeliveryLogRow]) -> Result<(), StoreError> {
        self.with_link(|link, instance| insert_deliveries(link, rows, instance))
    }

    fn prune(&mut self, log: Log, before: i64, rows_max: u32) -> Result<usize, StoreError> {
        self.with_link(|link, _| {
            let session = link.session()?;
            let statement = session.prepared(log.prune_sql())?;
            let rows = session.call(|client| client.execute(&statement, &[&before, &i64::from(rows_max)]))?;
            Ok(usize::try_from(rows).unwrap_or(usize::MAX))
        })
    }

    fn look_after(&mut self) {
        self.link.look_after();
    }
}

fn insert_commands(link: &mut Link, rows: &[CommandLogRow], instance: &str) -> Result<(), StoreError> {
    let session = link.session()?;
    let statement = session.prepared(
        "INSERT INTO cmd_log (at, device_id, direction, command, msg_id, raw, epoch, instance) \
         SELECT rows.*, $8::text FROM unnest($1::bigint[], $2::text[], $3::text[], $4::integer[], $5::bigint[], \
         $6::bytea[], $7::bigint[]) AS rows",
    )?;
    let at: Vec<i64> = rows.iter().map(|row| row.at).collect();
    let devices: Vec<String> = rows.iter().map(|row| row.device_id.to_string()).collect();
    let directions: Vec<&str> = rows.iter().map(|row| if row.up { "up" } else { "down" }).collect();
    let commands: Vec<i32> = rows.iter().map(|row| i32::from(row.command)).collect();
    let msg_ids: Vec<i64> = rows.iter().map(|row| i64::from(row.msg_id)).collect();
    let raw: Vec<&[u8]> = rows.iter().map(|row| row.raw.as_slice()).collect();
    let epochs: Vec<Option<i64>> = rows.iter().map(|row| row.epoch).collect();
    session.call(|client| {
        client.execute(&statement, &[&at, &devices, &directions, &commands, &msg_ids, &raw, &epochs, &instance])
    })?;
    Ok(())
}

fn insert_deliveries(link: &mut Link, rows: &[DeliveryLogRow], instance: &str) -> Result<(), StoreError> {
    let session = link.session()?;
    let statement = session.prepared(
        "INSERT INTO delivery_log (at, endpoint, pos, event_id, event_type, key, attempt, status, took_ms, outcome, \
         reason, instance) SELECT rows.*, $12::text FROM unnest($1::bigint[], $2::text[], $3::bigint[], $4::text[], \
         $5::text[], $6::text[], $7::smallint[], $8::smallint[], $9::integer[], $10::text[], $11::text[]) AS rows",
    )?;
    let at: Vec<i64> = rows.iter().map(|row| row.at).collect();
    let endpoints: Vec<&str> = rows.iter().map(|row| &*row.endpoint).collect();
    let positions: Vec<i64> = rows.iter().map(|row| row.pos).collect();
    let event_ids: Vec<&str> = rows.iter().map(|row| row.event_id.as_str()).collect();
    let event_types: Vec<&str> = rows.iter().map(|row| row.event_type.as_str()).collect();
    let keys: Vec<&str> = rows.iter().map(|row| row.key.as_str()).collect();
    let attempts: Vec<i16> = rows.iter().map(|row| i16::from(row.attempt)).collect();
    // A status has three digits; what a receiver makes of it beside is no status.
    let statuses: Vec<Option<i16>> =
        rows.iter().map(|row| row.status.and_then(|status| i16::try_from(status).ok())).collect();
    let took: Vec<i32> = rows.iter().map(|row| i32::try_from(row.took_ms).unwrap_or(i32::MAX)).collect();
    let outcomes: Vec<&str> = rows.iter().map(|row| row.outcome.as_str()).collect();
    let reasons: Vec<Option<&str>> = rows.iter().map(|row| row.reason.as_deref()).collect();
    session.call(|client| {
        client.execute(
            &statement,
            &[
                &at,
                &endpoints,
                &positions,
                &event_ids,
                &event_types,
                &keys,
                &attempts,
                &statuses,
                &took,
                &outcomes,
                &reasons,
                &instance,
            ],
        )
    })?;
    Ok(())
}
