//! The side of a store that everybody else touches: bounded queues, which are full rather than waited for.

use std::sync::Arc;

use crossbeam::channel::{Receiver, Sender, TrySendError, bounded, unbounded};
use parking_lot::RwLock;

use super::{
    CommandLogRow, DeliveryLogRow, Job, Latest, Prune, ReadCall, Reply,
    counters::{StoreCounters, add},
};
use crate::telemetry::Exposition;

/// Hand-overs of latest values that may wait.
const LATEST_MAX: usize = 64;
/// Hand-overs of log rows that may wait.
const LOG_MAX: usize = 1024;

/// For the thread of the logs.
pub(super) enum LogMessage {
    Commands(Vec<CommandLogRow>),
    Deliveries(Vec<DeliveryLogRow>),
    /// Deletes what is older, piece by piece between the rows that come.
    Prune(LogPruning),
}

/// What of the logs is past its retention.
#[derive(Clone, Copy, Debug)]
pub(super) struct LogPruning {
    /// Of the command log, Unix ms.
    pub(super) commands_before: i64,
    /// Of the delivery log, Unix ms.
    pub(super) deliveries_before: i64,
    /// In one transaction.
    pub(super) rows_max: u32,
}

impl From<Prune> for LogPruning {
    fn from(prune: Prune) -> Self {
        Self {
            commands_before: prune.log_before,
            deliveries_before: prune.delivery_log_before,
            rows_max: prune.rows_max,
        }
    }
}

/// The queues, from outside.
#[derive(Debug)]
pub(super) struct Front {
    /// Gone once the store closes; each thread ends when its queue is empty and has no sender left.
    queues: RwLock<Option<Queues>>,
    counters: Arc<StoreCounters>,
}

#[derive(Debug)]
struct Queues {
    jobs: Vec<Lane>,
    latest: Sender<Vec<Latest>>,
    log: Sender<LogMessage>,
    reads: Sender<ReadCall>,
}

/// The queue of one lane. It is bounded here and not by the channel, which would set aside room for all that may ever wait: more than
/// two megabytes, nearly always empty.
#[derive(Debug)]
struct Lane {
    jobs: Sender<(Job, Reply)>,
    jobs_max: usize,
}

impl Lane {
    /// Threads that see the last place at the same time all take it, so there may be one job more for each of them.
    fn submit(&self, job: Job, reply: Reply) -> Result<(), (Job, Reply)> {
        if self.jobs.len() >= self.jobs_max {
            return Err((job, reply));
        }
        self.jobs.send((job, reply)).map_err(|refused| refused.0)
    }
}

/// The queues, from inside.
pub(super) struct Back {
    /// One per lane.
    pub(super) jobs: Vec<Receiver<(Job, Reply)>>,
    pub(super) latest: Receiver<Vec<Latest>>,
    pub(super) log: Receiver<LogMessage>,
    /// For who writes to the log's thread from inside.
    pub(super) to_log: Sender<LogMessage>,
    pub(super) reads: Receiver<ReadCall>,
}

impl Front {
    /// `jobs_max` may wait in each of `lanes`.
    pub(super) fn new(lanes: usize, jobs_max: usize, reads_max: usize, counters: Arc<StoreCounters>) -> (Self, Back) {
        let lane = |_| {
            let (jobs, jobs_out) = unbounded();
            (Lane { jobs, jobs_max: jobs_max.clamp(1, 1_000_000) }, jobs_out)
        };
        let (jobs, jobs_out) = (0..lanes.max(1)).map(lane).unzip();
        let (latest, latest_out) = bounded(LATEST_MAX);
        let (log, log_out) = bounded(LOG_MAX);
        let (reads, reads_out) = bounded(reads_max.max(1));
        let to_log = log.clone();
        let queues = RwLock::new(Some(Queues { jobs, latest, log, reads }));
        (Self { queues, counters }, Back { jobs: jobs_out, latest: latest_out, log: log_out, to_log, reads: reads_out })
    }

    /// Never waits: the lock is taken for writing only to close.
    fn with_queues<T>(&self, body: impl FnOnce(&Queues) -> T) -> Option<T> {
        self.queues.try_read()?.as_ref().map(body)
    }

    /// As [`Store::submit`](super::Store::submit), to a lane.
    pub(super) fn submit(&self, lane: usize, job: Job, reply: Reply) -> Result<(), (Job, Reply)> {
        let mut item = Some((job, reply));
        self.with_queues(|queues| {
            let Some(queue) = queues.jobs.get(lane) else { return };
            let Some((job, reply)) = item.take() else { return };
            item = queue.submit(job, reply).err();
        });
        item.map_or(Ok(()), |back| {
            add(&self.counters.refused, 1);
            Err(back)
        })
    }

    /// As [`Store::coalesce`](super::Store::coalesce).
    pub(super) fn coalesce(&self, rows: &mut Vec<Latest>) -> bool {
        if rows.is_empty() {
            return true;
        }
        let sent = self.with_queues(|queues| match queues.latest.try_send(std::mem::take(rows)) {
            Ok(()) => true,
            Err(TrySendError::Full(back) | TrySendError::Disconnected(back)) => {
                *rows = back;
                false
            }
        });
        let sent = sent.unwrap_or(false);
        if !sent {
            add(&self.counters.latest_refused, rows.len() as u64);
        }
        sent
    }

    /// As [`Store::append`](super::Store::append).
    pub(super) fn append(&self, rows: Vec<CommandLogRow>) {
        let count = rows.len() as u64;
        let sent = self.with_queues(|queues| queues.log.try_send(LogMessage::Commands(rows)).is_ok());
        if sent != Some(true) {
            add(&self.counters.log_dropped, count);
        }
    }

    /// As [`Store::append_deliveries`](super::Store::append_deliveries).
    pub(super) fn append_deliveries(&self, rows: Vec<DeliveryLogRow>) {
        let count = rows.len() as u64;
        let sent = self.with_queues(|queues| queues.log.try_send(LogMessage::Deliveries(rows)).is_ok());
        if sent != Some(true) {
            add(&self.counters.delivery_dropped, count);
        }
    }

    /// As [`Store::read`](super::Store::read).
    pub(super) fn read(&self, call: ReadCall) -> Result<(), ReadCall> {
        let mut call = Some(call);
        self.with_queues(|queues| {
            let Some(taken) = call.take() else { return };
            if let Err(TrySendError::Full(back) | TrySendError::Disconnected(back)) = queues.reads.try_send(taken) {
                call = Some(back);
            }
        });
        call.map_or(Ok(()), |back| {
            add(&self.counters.reads_refused, 1);
            Err(back)
        })
    }

    /// Durable jobs that wait now.
    pub(super) fn jobs_waiting(&self) -> usize {
        self.with_queues(|queues| queues.jobs.iter().map(|lane| lane.jobs.len()).sum()).unwrap_or(0)
    }

    /// Takes nothing more.
    pub(super) fn close(&self) {
        drop(self.queues.write().take());
    }

    pub(super) fn render(&self, to: &mut Exposition<'_>) {
        let name = "chargegate_store_queue_length";
        to.family(name, "gauge", "What waits for a thread of the store.");
        let jobs = self.jobs_waiting();
        self.with_queues(|queues| {
            for (queue, length) in [
                ("jobs", jobs),
                ("latest", queues.latest.len()),
                ("command_log", queues.log.len()),
                ("reads", queues.reads.len()),
            ] {
                to.sample(name, &[("queue", queue)], length);
            }
        });
    }
}
