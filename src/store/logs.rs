//! The thread of the logs: rows of commands and of deliveries go in by the thousand, and what is past its retention goes out between
//! them. Nothing waits for it: what does not fit its queue, or comes while the database is away, is dropped and counted.

use std::{thread, time::Duration};

use crossbeam::channel::{Receiver, RecvTimeoutError, TryRecvError};

use super::{
    CommandLogRow, DeliveryLogRow, StoreError,
    counters::{StoreCounters, add},
    front::{LogMessage, LogPruning},
};

/// Rows of a log per transaction.
const ROWS_MAX: usize = 2000;
const IDLE: Duration = Duration::from_millis(250);
/// How long rows wait for others: a transaction costs more than a few of them, and nobody waits for the logs.
const GATHER: Duration = Duration::from_millis(100);
/// How often it is looked whether there are others. A thread that waits for them would be woken by each shard at each turn, which
/// costs both sides more than the rows; the queue takes what shards hand over in many times this long.
const LOOK: Duration = Duration::from_millis(10);
const LOOKS: u128 = GATHER.as_millis() / LOOK.as_millis();
/// Pieces pruned between two transactions of rows: together more than these bring.
const PIECES: usize = 4;

/// A table of the logs.
#[derive(Clone, Copy, Debug)]
pub(super) enum Log {
    Commands,
    Deliveries,
}

impl Log {
    /// Deletes rows older than `$1`, `$2` at most. Numbers follow time but for moments, so only the oldest numbers are looked at: the
    /// command log, written with every frame, needs no index for it.
    pub(super) const fn prune_sql(self) -> &'static str {
        match self {
            Self::Commands => {
                "DELETE FROM cmd_log WHERE id IN (SELECT id FROM (SELECT id, at FROM cmd_log ORDER BY id LIMIT $2) AS oldest \
                 WHERE at < $1)"
            }
            Self::Deliveries => {
                "DELETE FROM delivery_log WHERE id IN (SELECT id FROM delivery_log WHERE at < $1 ORDER BY at LIMIT $2)"
            }
        }
    }
}

/// The logs in a database. Each call is a transaction.
pub(super) trait Logs {
    /// Appends to the command log.
    fn insert_commands(&mut self, rows: &[CommandLogRow]) -> Result<(), StoreError>;
    /// Appends to the delivery log.
    fn insert_deliveries(&mut self, rows: &[DeliveryLogRow]) -> Result<(), StoreError>;
    /// Deletes what is older than `before`, and says how many rows that were.
    fn prune(&mut self, log: Log, before: i64, rows_max: u32) -> Result<usize, StoreError>;
    /// Nothing came for a moment.
    fn look_after(&mut self);
}

/// Writes until the queue is closed.
pub(super) fn write(logs: &mut impl Logs, queue: &Receiver<LogMessage>, counters: &StoreCounters) {
    let (mut commands, mut deliveries) = (Vec::new(), Vec::new());
    let mut pruning: Option<LogPruning> = None;
    loop {
        let mut next = if pruning.is_some() {
            match queue.try_recv() {
                Ok(message) => Some(message),
                Err(TryRecvError::Empty) => None,
                Err(TryRecvError::Disconnected) => return,
            }
        } else {
            match queue.recv_timeout(IDLE) {
                Ok(message) => Some(message),
                Err(RecvTimeoutError::Timeout) => {
                    logs.look_after();
                    None
                }
                Err(RecvTimeoutError::Disconnected) => return,
            }
        };
        let mut looks = 0;
        while let Some(message) = next.take() {
            match message {
                LogMessage::Commands(more) => commands.extend(more),
                LogMessage::Deliveries(more) => deliveries.extend(more),
                LogMessage::Prune(wanted) => pruning = Some(wanted),
            }
            if commands.len().max(deliveries.len()) < ROWS_MAX {
                next = loop {
                    match queue.try_recv() {
                        Ok(message) => break Some(message),
                        Err(TryRecvError::Empty) if looks < LOOKS => {
                            looks += 1;
                            thread::sleep(LOOK);
                        }
                        Err(TryRecvError::Empty | TryRecvError::Disconnected) => break None,
                    }
                };
            }
        }
        if !commands.is_empty() {
            let (rows, stored) = (commands.len() as u64, logs.insert_commands(&commands));
            count("command", stored, rows, (&counters.log_rows, &counters.log_dropped));
            commands.clear();
        }
        if !deliveries.is_empty() {
            let (rows, stored) = (deliveries.len() as u64, logs.insert_deliveries(&deliveries));
            count("delivery", stored, rows, (&counters.delivery_rows, &counters.delivery_dropped));
            deliveries.clear();
        }
        if let Some(wanted) = pruning
            && !prune(logs, wanted)
        {
            pruning = None;
        }
    }
}

fn count(
    log: &str,
    stored: Result<(), StoreError>,
    rows: u64,
    (written, dropped): (&std::sync::atomic::AtomicU64, &std::sync::atomic::AtomicU64),
) {
    match stored {
        Ok(()) => add(written, rows),
        Err(error) => {
            add(dropped, rows);
            log::warn!("{rows} {log} log rows dropped: {error}");
        }
    }
}

/// Whether there is more to prune.
fn prune(logs: &mut impl Logs, wanted: LogPruning) -> bool {
    let rows_max = usize::try_from(wanted.rows_max).unwrap_or(usize::MAX).max(1);
    let mut more = false;
    for (log, before) in [(Log::Commands, wanted.commands_before), (Log::Deliveries, wanted.deliveries_before)] {
        for piece in 1..=PIECES {
            match logs.prune(log, before, wanted.rows_max) {
                Ok(rows) if rows < rows_max => break,
                Ok(_) => more |= piece == PIECES,
                Err(error) => {
                    log::warn!("{log:?} log not pruned: {error}");
                    break;
                }
            }
        }
    }
    more
}
