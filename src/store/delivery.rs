//! What becomes known once a batch is committed, in this order: whoever submitted a job gets its outcome, then everybody else who
//! must know is told.
//!
//! Runs on the store's delivery thread, never on one that writes.

use std::panic::{AssertUnwindSafe, catch_unwind};

use rustc_hash::FxHashMap;

use super::{
    Created, ManagedOutcome, NetworkTold, Networked, Notify, OrderOutcome, OtaOutcome, Outcome, Queued, Reply,
    SettingsOutcome,
};
use crate::{
    gateway::order::Verdict,
    model::{Command, DeviceId, Order, OtaTask, ServerId},
};

/// Batches whose outcomes wait to be handed out; behind it whoever writes waits for the delivery thread.
pub(super) const DELIVERIES_MAX: usize = 64;

/// Outcomes between two words to the shards. Each answer to an API client takes some ten microseconds: a shard woken for each
/// outcome would go to sleep between them, one woken at the end would wait.
const TOLD_AT_ONCE: usize = 16;

/// Outcomes of one batch, on their way out.
pub(super) struct Delivery {
    pub(super) outcomes: Vec<(Reply, Outcome)>,
    pub(super) queued: Vec<Queued>,
    /// Instances that have devices of the batch, where it is another one than this.
    pub(super) owners: FxHashMap<DeviceId, ServerId>,
    /// Position of the last event, where the commit itself gave it one.
    pub(super) last_pos: Option<i64>,
}

impl Delivery {
    /// Hands everything out: the answer first, then who else must know.
    pub(super) fn hand_out(self, notify: &dyn Notify) {
        let owner = |device_id| self.owners.get(&device_id);
        for (told, (reply, outcome)) in self.outcomes.into_iter().enumerate() {
            if told > 0 && told.is_multiple_of(TOLD_AT_ONCE) {
                notify.told();
            }
            if let Outcome::Bound(bound) = &outcome
                && let Some(previous) = &bound.superseded
            {
                notify.superseded(bound.device_id, bound.epoch, previous);
            }
            match reply {
                Reply::Shard(shard) => notify.shard(shard, outcome),
                Reply::Call(call) => {
                    let told = Told::of(&outcome);
                    guarded("a reply", || call(outcome));
                    told.tell(notify, owner);
                }
                Reply::None => Told::of(&outcome).tell(notify, owner),
            }
        }
        notify.told();
        for queued in &self.queued {
            notify.commands_queued(queued);
        }
        if let Some(pos) = self.last_pos {
            notify.events_committed(pos);
        }
    }
}

/// What an outcome means to others than whoever caused it.
struct Told {
    changes: Vec<Change>,
    updates: Vec<OtaTask>,
    record: Option<RecordChange>,
    /// Keys or endpoints changed.
    managed: bool,
}

impl Told {
    fn of(outcome: &Outcome) -> Self {
        let managed = matches!(outcome, Outcome::Managed(outcome) if matches!(**outcome, ManagedOutcome::Done(_)));
        Self { changes: changes(outcome), updates: updates(outcome), record: RecordChange::of(outcome), managed }
    }

    fn tell<'o>(&self, notify: &dyn Notify, owner: impl Fn(DeviceId) -> Option<&'o ServerId>) {
        for (order, commands, withdrawn) in &self.changes {
            notify.order_changed(order, commands, withdrawn, owner(order.device_id));
        }
        for task in &self.updates {
            notify.ota_changed(task, owner(task.device_id));
        }
        match &self.record {
            Some(RecordChange::Settings(settings)) => notify.settings_changed(settings, owner(settings.device_id)),
            Some(RecordChange::Network(told)) => notify.network_changed(told, owner(told.device_id)),
            None => {}
        }
        if self.managed {
            notify.managed_changed();
        }
    }
}

/// A change of a device's record that its owner is told of.
enum RecordChange {
    Settings(Box<SettingsOutcome>),
    Network(Box<NetworkTold>),
}

impl RecordChange {
    fn of(outcome: &Outcome) -> Option<Self> {
        match outcome {
            Outcome::Settings(settings) => Some(Self::Settings(settings.clone())),
            Outcome::Networked(Networked::Changed(told)) => Some(Self::Network(told.clone())),
            _ => None,
        }
    }
}

/// Updates of devices that began or ended without their shard's doing.
fn updates(outcome: &Outcome) -> Vec<OtaTask> {
    let Outcome::Ota(outcome) = outcome else { return Vec::new() };
    match &**outcome {
        OtaOutcome::Created(task) | OtaOutcome::Cancelled(task) => vec![task.clone()],
        OtaOutcome::Expired(tasks) => tasks.clone(),
        _ => Vec::new(),
    }
}

type Change = (Order, Vec<Command>, Vec<i64>);

/// Orders that changed without their owner's doing.
fn changes(outcome: &Outcome) -> Vec<Change> {
    let of = |outcome: &OrderOutcome| {
        let order = outcome.order.clone()?;
        let changed = matches!(outcome.verdict, Verdict::Step(_));
        changed.then(|| (order, outcome.commands.clone(), outcome.withdrawn.clone()))
    };
    match outcome {
        Outcome::Created(created) => match &**created {
            Created::Order { order, command } => vec![(order.clone(), command.iter().cloned().collect(), Vec::new())],
            Created::PortBusy { .. } | Created::TooLate | Created::CardRefused(_) => Vec::new(),
        },
        Outcome::Order(outcome) => of(outcome).into_iter().collect(),
        Outcome::Backstop(outcomes) => outcomes.iter().filter_map(of).collect(),
        Outcome::Settled(settled) => match &settled.order {
            Some(order) if settled.stored => vec![(order.clone(), Vec::new(), settled.withdrawn.clone())],
            _ => Vec::new(),
        },
        Outcome::Swiped(swiped) => match &swiped.order {
            Some(order) if !swiped.repeated => {
                vec![(order.clone(), swiped.command.iter().cloned().collect(), Vec::new())]
            }
            _ => Vec::new(),
        },
        Outcome::Bound(_)
        | Outcome::Card(_)
        | Outcome::Repeated(_)
        | Outcome::Reported { .. }
        | Outcome::Pruned { .. }
        | Outcome::Claimed { .. }
        | Outcome::Fenced { .. }
        | Outcome::Called(_)
        | Outcome::Params(_)
        | Outcome::Ota(_)
        | Outcome::Settings(_)
        | Outcome::Networked(_)
        | Outcome::Instance(_)
        | Outcome::Leased(_)
        | Outcome::Endpoint(_)
        | Outcome::Managed(_)
        | Outcome::Done
        | Outcome::Failed { .. } => Vec::new(),
    }
}

/// Runs somebody else's code: its panic is theirs, the thread goes on.
pub(super) fn guarded(what: &str, body: impl FnOnce()) {
    if catch_unwind(AssertUnwindSafe(body)).is_err() {
        log::error!("{what} panicked");
    }
}
