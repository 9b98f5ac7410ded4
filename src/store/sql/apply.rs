//! One transaction: a batch of jobs, a savepoint each. A batch is first run without savepoints, on PostgreSQL on a
//! [`stage`](super::stage); its rollback then takes the place of the savepoint's, and it is run again with them.
//!
//! | what goes wrong | what happens |
//! |---|---|
//! | the environment (disk, file, lock) | the transaction is rolled back, every job fails, nothing had an effect |
//! | one job's data | its savepoint is rolled back; a settlement goes to quarantine, any other job fails alone |

use rustc_hash::{FxHashMap, FxHashSet};

use super::{
    conn::{Conn, run},
    limits::Limits,
};
use crate::{
    gateway::card::CardRules,
    model::{CommandBody, DeviceId, OrderNumbers, ServerId},
    store::{Job, Latest, Outcome, Queued, SettlementKey, StoreError},
};

/// The transaction, as every part of it sees it.
pub(in crate::store) struct Tx<'a> {
    pub(super) conn: Conn<'a>,
    pub(super) numbers: &'a OrderNumbers,
    pub(super) limits: Limits,
    pub(super) cards: &'a CardRules,
    pub(super) instance: Option<&'a ServerId>,
    pub(super) server_id: Option<&'a ServerId>,
    /// The store's clock, Unix ms.
    pub(super) now: i64,
    /// Commands that were queued without a claim.
    pub(super) queued: Vec<Queued>,
    /// Instances that have devices of the batch, where it is another one than this.
    pub(super) owners: FxHashMap<DeviceId, ServerId>,
    /// Devices whose rows were made for a bind that has not been told so.
    pub(super) made: FxHashSet<DeviceId>,
    /// Row of the last event inserted: with a single writer its position in the log.
    pub(super) last_event: Option<i64>,
    /// Events pruned before an endpoint had them.
    pub(super) events_lost: u64,
}

/// What a store works by.
#[derive(Clone, Copy)]
pub(in crate::store) struct Rules<'a> {
    /// Makes order numbers.
    pub(in crate::store) numbers: &'a OrderNumbers,
    /// Time limits.
    pub(in crate::store) limits: Limits,
    /// Tariffs.
    pub(in crate::store) cards: &'a CardRules,
    /// This instance, where there may be others.
    pub(in crate::store) instance: Option<&'a ServerId>,
    /// What this instance is called, also where it is the only one; `None`: it was not told.
    pub(in crate::store) server_id: Option<&'a ServerId>,
}

/// What a batch came to.
#[derive(Debug, Default)]
pub struct Applied {
    /// One per job, in their order.
    pub outcomes: Vec<Outcome>,
    /// Commands that were queued without a claim.
    pub queued: Vec<Queued>,
    /// Instances that have devices of the batch, where it is another one than this.
    pub owners: FxHashMap<DeviceId, ServerId>,
    /// Row of the last event, if there were any.
    pub last_event: Option<i64>,
    /// Events pruned before an endpoint had them.
    pub events_lost: u64,
    /// The commit did not happen: every outcome is [`Outcome::Failed`].
    pub error: Option<StoreError>,
}

/// Applies jobs in one transaction and commits it.
pub(in crate::store) fn apply(conn: Conn<'_>, rules: Rules<'_>, now: i64, jobs: &[Job]) -> Applied {
    in_transaction(conn, || apply_open(conn, rules, now, jobs)).unwrap_or_else(|error| Applied::failed(jobs, error))
}

/// Applies jobs in the transaction that is open.
pub(in crate::store) fn apply_open(
    conn: Conn<'_>,
    rules: Rules<'_>,
    now: i64,
    jobs: &[Job],
) -> Result<Applied, StoreError> {
    let mut tx = Tx::new(conn, rules, now);
    if conn.is_shared() {
        tx.lock_batch(jobs)?;
    }
    if conn.is_staged() {
        tx.prefetch(jobs)?;
    }
    let outcomes = jobs.iter().map(|job| tx.job(job)).collect::<Result<Vec<_>, _>>()?;
    let Tx { queued, owners, last_event, events_lost, .. } = tx;
    Ok(Applied { outcomes, queued, owners, last_event, events_lost, error: None })
}

impl Applied {
    /// Nothing was done.
    pub(in crate::store) fn failed(jobs: &[Job], error: StoreError) -> Self {
        let outcomes = jobs.iter().map(|job| failed(job, &error)).collect();
        Self { outcomes, error: Some(error), ..Self::default() }
    }
}

/// Writes latest values in one transaction. A row that does not go in is left out.
pub(in crate::store) fn apply_latest(conn: Conn<'_>, rows: &[Latest]) -> Result<(), StoreError> {
    in_transaction(conn, || {
        let done = |result| match result {
            Err(error @ StoreError::Unavailable(_)) => Err(error),
            Err(error) => {
                log::warn!("latest value left out: {error}");
                Ok(())
            }
            Ok(_) => Ok(()),
        };
        // Nearly all are of one kind, and it does not matter whether the others come before or after.
        super::device::write_seen(conn, rows, done)?;
        rows.iter().try_for_each(|row| done(super::device::write_latest(conn, row)))
    })
}

fn in_transaction<T>(conn: Conn<'_>, body: impl FnOnce() -> Result<T, StoreError>) -> Result<T, StoreError> {
    // IMMEDIATE: fails here, if at all, and not at the first write.
    run(conn, "BEGIN IMMEDIATE", ())?;
    let result = body().and_then(|value| run(conn, "COMMIT", ()).map(|_| value));
    // Some errors roll back by themselves.
    if result.is_err() && conn.in_transaction() {
        run(conn, "ROLLBACK", ())?;
    }
    result
}

impl<'a> Tx<'a> {
    pub(in crate::store) fn new(conn: Conn<'a>, rules: Rules<'a>, now: i64) -> Self {
        let Rules { numbers, limits, cards, instance, server_id } = rules;
        Self {
            conn,
            numbers,
            limits,
            cards,
            instance,
            server_id,
            now,
            queued: Vec::new(),
            owners: FxHashMap::default(),
            made: FxHashSet::default(),
            last_event: None,
            events_lost: 0,
        }
    }
}

impl Tx<'_> {
    /// Runs one job in its savepoint. `Err`: the environment failed, and with it the batch.
    fn job(&mut self, job: &Job) -> Result<Outcome, StoreError> {
        let error = match self.savepoint(|tx| tx.dispatch(job)) {
            Ok(outcome) => return Ok(outcome),
            Err(error @ StoreError::Unavailable(_)) => return Err(error),
            Err(error) => error,
        };
        log::error!("a job was refused: {error}; {}", name(job));
        if let Job::Settle(settlement) = job {
            match self.savepoint(|tx| tx.quarantine(settlement, &error)) {
                Ok(settled) => return Ok(Outcome::Settled(Box::new(settled))),
                Err(error @ StoreError::Unavailable(_)) => return Err(error),
                Err(error) => log::error!("quarantine refused a settlement: {error}"),
            }
        }
        Ok(failed(job, &error))
    }

    /// Runs `body` in a savepoint of its own; what it wrote is rolled back if it fails. May be nested.
    pub(super) fn savepoint<T>(
        &mut self,
        body: impl FnOnce(&mut Self) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let before = (self.queued.len(), self.last_event, self.events_lost);
        self.conn.savepoint()?;
        let result = body(self);
        if let Err(error) = &result {
            if !self.conn.in_transaction() {
                return Err(StoreError::Unavailable(format!("the transaction was rolled back: {error}")));
            }
            self.queued.truncate(before.0);
            (_, self.last_event, self.events_lost) = before;
            self.conn.roll_back_to_savepoint()?;
        }
        self.conn.release_savepoint()?;
        result
    }

    /// The answer to a shard that lost the device to a newer epoch than the one it knows.
    pub(super) fn fenced(&self, device_id: DeviceId, fence: Option<i64>) -> Result<Option<Outcome>, StoreError> {
        let Some(fence) = fence else { return Ok(None) };
        let epoch = self.counters(device_id)?.map(|counters| counters.session_epoch);
        Ok(epoch.filter(|epoch| *epoch > fence).map(|epoch| Outcome::Fenced { device_id, epoch }))
    }

    fn dispatch(&mut self, job: &Job) -> Result<Outcome, StoreError> {
        Ok(match job {
            Job::Bind(bind) => Outcome::Bound(Box::new(self.bind(bind)?)),
            Job::CreateOrder(new) => self.create_order_once(new)?,
            Job::Order(job) => self.order_job_once(job)?,
            Job::Settle(settlement) => Outcome::Settled(Box::new(self.settle(settlement)?)),
            Job::Device(event) => match self.fenced(event.device_id, event.fence)? {
                Some(fenced) => fenced,
                None => {
                    self.report(event)?;
                    Outcome::Done
                }
            },
            Job::Report(report) => {
                self.report(&report.event)?;
                Outcome::Reported { device_id: report.event.device_id, ticket: report.ticket }
            }
            Job::Command(update) => self.update_command(update)?,
            Job::Claim { device_id, epoch, at } => match self.fenced(*device_id, Some(*epoch))? {
                Some(fenced) => fenced,
                None => {
                    let commands = self.claim_live(*device_id, *epoch, *at)?;
                    let mut orders = Vec::new();
                    for command in &commands {
                        if let (CommandBody::Start { .. }, Some(order_no)) = (&command.body, command.order_no) {
                            orders.extend(self.find_order(order_no)?);
                        }
                    }
                    Outcome::Claimed { device_id: *device_id, commands, orders }
                }
            },
            Job::Backstop(backstop) => Outcome::Backstop(self.backstop(backstop)?),
            Job::Delivery(updates) => {
                self.deliver(updates)?;
                Outcome::Done
            }
            Job::Prune(prune) => Outcome::Pruned { more: self.prune(prune)? },
            Job::Swipe(swipe) => Outcome::Swiped(Box::new(self.swipe(swipe)?)),
            Job::Card(job) => self.card_job_once(job)?,
            Job::Call(new) => self.call_once(new)?,
            Job::SetParams(wanted) => self.set_params_once(wanted)?,
            Job::Ota(job) => self.ota(job)?,
            Job::Settings(settings) => self.settings_once(settings)?,
            Job::Network(job) => self.network_once(job)?,
            Job::Instance(job) => Outcome::Instance(self.instance_job(job)?),
            Job::Lease(lease) => Outcome::Leased(self.lease(lease)?),
            Job::Endpoint(job) => Outcome::Endpoint(self.endpoint_job(job)?),
            Job::Managed(job) => self.managed_once(job)?,
        })
    }
}

/// The answer to a job that had no effect.
pub(in crate::store) fn failed(job: &Job, error: &StoreError) -> Outcome {
    let ticket = if let Job::Report(report) = job { Some(report.ticket) } else { None };
    Outcome::Failed { device_id: device_of(job), key: key_of(job), ticket, error: error.clone() }
}

/// The device whose jobs this one must stay among; `None`: it names none.
pub(in crate::store) fn device_of(job: &Job) -> Option<DeviceId> {
    match job {
        Job::Bind(bind) => Some(bind.device_id),
        Job::CreateOrder(new) => Some(new.device_id),
        Job::Order(job) => match job.order {
            crate::store::OrderKey::ActiveOn(device_id, _) => Some(device_id),
            crate::store::OrderKey::No(_) => job.device_id,
        },
        Job::Settle(settlement) => Some(settlement.device_id),
        Job::Device(event) => Some(event.device_id),
        Job::Report(report) => Some(report.event.device_id),
        Job::Claim { device_id, .. } => Some(*device_id),
        Job::Swipe(swipe) => Some(swipe.device_id),
        Job::Call(new) => Some(new.device_id),
        Job::SetParams(wanted) => Some(wanted.device_id),
        Job::Ota(job) => match &**job {
            crate::store::OtaJob::Create(new) => Some(new.device_id),
            crate::store::OtaJob::Update(update) => Some(update.device_id),
            _ => None,
        },
        Job::Settings(settings) => Some(settings.device_id),
        Job::Network(job) => Some(job.device_id),
        Job::Command(update) => Some(update.device_id),
        Job::Backstop(_)
        | Job::Delivery(_)
        | Job::Prune(_)
        | Job::Card(_)
        | Job::Instance(_)
        | Job::Lease(_)
        | Job::Endpoint(_)
        | Job::Managed(_) => None,
    }
}

fn key_of(job: &Job) -> Option<SettlementKey> {
    if let Job::Settle(settlement) = job { Some(settlement.key) } else { None }
}

/// The job's kind, for logs and counters.
pub(in crate::store) const fn name(job: &Job) -> &'static str {
    crate::store::counters::KINDS[crate::store::counters::kind(job)]
}
