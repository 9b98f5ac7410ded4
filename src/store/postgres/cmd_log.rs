//! The command log: rows go in by the thousand, without waiting for the disk. What does not fit the queue, or comes while the
//! server is away, is dropped and counted.

use std::{sync::Arc, time::Duration};

use crossbeam::channel::{Receiver, RecvTimeoutError};

use super::{Shared, link::Link};
use crate::store::{CommandLogRow, StoreError, counters::add, front::LogMessage};

/// Rows per transaction.
const ROWS_MAX: usize = 2000;
const IDLE: Duration = Duration::from_millis(250);

/// Writes until the queue is closed.
pub(super) fn write(shared: &Arc<Shared>, link: &mut Link, queue: &Receiver<LogMessage>) {
    let mut rows = Vec::new();
    loop {
        let mut next = match queue.recv_timeout(IDLE) {
            Ok(message) => Some(message),
            Err(RecvTimeoutError::Timeout) => {
                link.look_after();
                continue;
            }
            Err(RecvTimeoutError::Disconnected) => return,
        };
        while let Some(message) = next.take() {
            match message {
                LogMessage::Rows(more) => rows.extend(more),
                LogMessage::Prune { before, rows_max } => {
                    if let Err(error) = prune(link, before, rows_max) {
                        link.lose_if_lost();
                        log::warn!("command log not pruned: {error}");
                    }
                }
            }
            if rows.len() < ROWS_MAX {
                next = queue.try_recv().ok();
            }
        }
        if rows.is_empty() {
            continue;
        }
        match insert(link, &rows, shared.instance.as_str()) {
            Ok(()) => add(&shared.counters.log_rows, rows.len() as u64),
            Err(error) => {
                link.lose_if_lost();
                add(&shared.counters.log_dropped, rows.len() as u64);
                log::warn!("{} command log rows dropped: {error}", rows.len());
            }
        }
        rows.clear();
    }
}

fn insert(link: &mut Link, rows: &[CommandLogRow], instance: &str) -> Result<(), StoreError> {
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

fn prune(link: &mut Link, before: i64, rows_max: u32) -> Result<(), StoreError> {
    let session = link.session()?;
    let statement = session
        .prepared("DELETE FROM cmd_log WHERE id IN (SELECT id FROM cmd_log WHERE at < $1 ORDER BY at LIMIT $2)")?;
    session.call(|client| client.execute(&statement, &[&before, &i64::from(rows_max)]))?;
    Ok(())
}
