//! Carries what the store committed to whoever must know: owner shards, the webhook pusher, metrics; and, where there are several
//! instances, the one that has the device.
//!
//! Called on the store's delivery thread, after the commit. Nothing here waits: a mailbox keeps room for every outcome of a job
//! under way, and other messages that find it full are found again by their safety polls. So are notes and queue entries for other
//! instances, which may be lost: they say where to look, never what is so.

use std::{
    fmt,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicI64, Ordering},
    },
};

use crate::{
    cluster::{Note, Notes},
    gateway::{Message, OtaStart, ShardId, directory::Directory},
    managed,
    model::{Command, DeviceId, Order, OrderStatus, OtaTask, ServerId},
    ota,
    queue::{Entry, Queue},
    shard::Mailbox,
    store::{NetworkTold, Notify, Outcome, Queued, SettingsOutcome},
    telemetry::{Metrics, label::OrderFailure},
    webhook::Pusher,
};

/// Carries commits to shards and pusher.
#[derive(Debug)]
pub struct Router {
    directory: Arc<Directory>,
    metrics: Arc<Metrics>,
    mailboxes: Vec<Mailbox>,
    pusher: OnceLock<Arc<Pusher>>,
    ota: OnceLock<ota::Waker>,
    managed: OnceLock<managed::Waker>,
    peers: OnceLock<Peers>,
    /// Of an instance that is alone.
    queue: OnceLock<OwnQueue>,
    /// The log is complete up to here, as far as this process knows.
    last_pos: AtomicI64,
}

/// The way to other instances.
pub struct Peers {
    /// This one.
    pub own: ServerId,
    /// Ids of waiting commands.
    pub queue: Arc<dyn Queue>,
    /// Everything else.
    pub notes: Arc<Notes>,
}

/// The queue of an instance that is alone.
struct OwnQueue {
    own: ServerId,
    queue: Arc<dyn Queue>,
}

impl fmt::Debug for OwnQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OwnQueue").field("own", &self.own).finish_non_exhaustive()
    }
}

impl fmt::Debug for Peers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Peers").field("own", &self.own).finish_non_exhaustive()
    }
}

impl Peers {
    /// Puts a waiting command into the queue of the instance that has its device.
    fn push(&self, owner: &ServerId, queued: &Queued) {
        self.queue.push(owner, vec![entry(queued)]);
    }
}

impl Router {
    /// Routes by `directory` to the mailboxes of all shards.
    pub const fn new(directory: Arc<Directory>, metrics: Arc<Metrics>, mailboxes: Vec<Mailbox>) -> Self {
        Self {
            directory,
            metrics,
            mailboxes,
            pusher: OnceLock::new(),
            ota: OnceLock::new(),
            managed: OnceLock::new(),
            peers: OnceLock::new(),
            queue: OnceLock::new(),
            last_pos: AtomicI64::new(0),
        }
    }

    /// Joins the pusher, which is started after the store. Commits before that are found by its first read.
    pub fn join_pusher(&self, pusher: Arc<Pusher>) {
        // A second call would be a bug of start-up; the first pusher stays.
        let joined = self.pusher.set(pusher);
        debug_assert!(joined.is_ok(), "the pusher joins once");
    }

    /// Joins the driver of updates, which is started after the store. What it missed is found by its polls.
    pub fn join_ota(&self, waker: ota::Waker) {
        let joined = self.ota.set(waker);
        debug_assert!(joined.is_ok(), "the driver of updates joins once");
    }

    /// Joins what keeps keys and endpoints in force. What it missed is found by its poll.
    pub fn join_managed(&self, waker: managed::Waker) {
        let joined = self.managed.set(waker);
        debug_assert!(joined.is_ok(), "what keeps keys and endpoints in force joins once");
    }

    /// Joins the other instances. What is committed before is found by their polls.
    pub fn join_peers(&self, peers: Peers) {
        let joined = self.peers.set(peers);
        debug_assert!(joined.is_ok(), "peers join once");
    }

    /// Joins the queue of an instance that is alone. What is committed before is found by the poll.
    pub fn join_queue(&self, own: ServerId, queue: Arc<dyn Queue>) {
        let joined = self.queue.set(OwnQueue { own, queue });
        debug_assert!(joined.is_ok(), "the queue joins once");
    }

    /// Passes a waiting command on to the instance that has its device, as its row says now. False: that is this one, or nobody.
    pub fn pass_on(&self, queued: &Queued) -> bool {
        match self.elsewhere(queued.owner.as_ref()) {
            Some((peers, owner)) => {
                peers.push(owner, queued);
                true
            }
            None => false,
        }
    }

    /// Another instance changed what a device of this one follows.
    pub fn tell(&self, device_id: DeviceId, message: Message) {
        self.tell_owner(device_id, || message);
    }

    /// Whether a shard of this instance has the device, or had it last.
    pub fn has(&self, device_id: DeviceId) -> bool {
        self.directory.find(device_id).is_some_and(|entry| entry.owner().is_some())
    }

    /// An update of a device may be open.
    pub fn wake_ota(&self, device_id: DeviceId) {
        if let Some(ota) = self.ota.get() {
            ota.wake(device_id);
        }
    }

    /// Keys or endpoints may have changed.
    pub fn wake_managed(&self) {
        if let Some(managed) = self.managed.get() {
            managed.wake();
        }
    }

    /// The log of events is complete up to here, as this or another instance says; whether that is news.
    pub fn events_known(&self, pos: i64) -> bool {
        if let Some(pusher) = self.pusher.get() {
            pusher.events_committed(pos);
        }
        self.last_pos.fetch_max(pos, Ordering::AcqRel) < pos
    }

    /// The way to `owner`, where that is another instance.
    fn elsewhere<'a>(&'a self, owner: Option<&'a ServerId>) -> Option<(&'a Peers, &'a ServerId)> {
        let peers = self.peers.get()?;
        owner.filter(|owner| **owner != peers.own).map(|owner| (peers, owner))
    }

    /// Tells the instance that has a device, if it is another one.
    fn note(&self, owner: Option<&ServerId>, note: impl FnOnce() -> Note) -> bool {
        let Some((peers, owner)) = self.elsewhere(owner) else { return false };
        peers.notes.publish(owner, note());
        true
    }

    /// Hands an update to the shard that owns its device.
    pub fn offer_ota(&self, start: OtaStart) {
        self.tell_owner(start.task.device_id, || Message::OtaStart(Box::new(start)));
    }

    /// Tells the shard that has a device that another instance bound it under this epoch.
    pub fn bound_elsewhere(&self, device_id: DeviceId, epoch: i64) {
        self.tell_owner(device_id, || Message::BoundElsewhere { device_id, epoch });
    }

    /// Tells the shard that has a device that commands wait for it.
    pub fn commands_waiting(&self, device_id: DeviceId) {
        self.tell_owner(device_id, || Message::CommandsQueued(device_id));
    }

    fn tell_owner(&self, device_id: DeviceId, message: impl FnOnce() -> Message) {
        if let Some(mailbox) = self.mailbox_of(device_id) {
            // A refused message is counted by the mailbox; what it would have said is found again by a poll.
            drop(mailbox.send(message()));
        }
    }

    /// Mailbox of the shard that has a device, or had it last.
    fn mailbox_of(&self, device_id: DeviceId) -> Option<&Mailbox> {
        let owner = self.directory.find(device_id).and_then(|entry| entry.owner())?;
        self.mailboxes.get(usize::from(owner.shard().0))
    }

    fn count(&self, order: &Order, from: Option<OrderStatus>) {
        if from == Some(order.status) {
            return;
        }
        if let Some(from) = from {
            self.metrics.order_transition(from.code(), order.status.code());
        }
        match order.status {
            OrderStatus::Completed => self.metrics.orders_completed.inc(),
            OrderStatus::Failed => self.metrics.orders_failed[failure(order)].inc(),
            OrderStatus::Pending if from.is_none() && order.sequence_no == 1 => self.metrics.orders_created.inc(),
            _ => {}
        }
    }
}

const fn entry(queued: &Queued) -> Entry {
    let Queued { id, device_id, priority, at, .. } = *queued;
    Entry { id, device_id: Some(device_id), priority, at_ns: at.saturating_mul(1_000_000) }
}

/// Why a failed order failed.
fn failure(order: &Order) -> OrderFailure {
    match order.failure_reason.as_deref() {
        Some("no_load") => OrderFailure::NoLoad,
        Some("device_offline") => OrderFailure::DeviceOffline,
        Some("port_state_mismatch") => OrderFailure::PortStateMismatch,
        Some(reason) if reason.starts_with("device_refused") || reason == "start_refused" => OrderFailure::Refused,
        _ if order.settled_at.is_some() => OrderFailure::DeviceFault,
        _ => OrderFailure::Other,
    }
}

impl Notify for Router {
    fn shard(&self, shard: ShardId, outcome: Outcome) {
        match &outcome {
            Outcome::Order(step) => {
                if let Some(order) = &step.order {
                    self.count(order, Some(step.from));
                }
            }
            Outcome::Swiped(swiped) => {
                if let Some(order) = swiped.order.as_ref().filter(|_| !swiped.repeated) {
                    self.count(order, None);
                }
            }
            Outcome::Settled(settled) => {
                if let Some(order) = settled.order.as_ref().filter(|_| settled.stored) {
                    self.count(order, settled.from);
                }
                self.metrics.settlements.inc();
                if settled.quarantined {
                    self.metrics.quarantined.inc();
                }
            }
            _ => {}
        }
        let updating =
            if let Outcome::Bound(bound) = &outcome { bound.has_ota.then_some(bound.device_id) } else { None };
        if let Some(mailbox) = self.mailboxes.get(usize::from(shard.0))
            && mailbox.post(Message::Outcome(outcome)).is_err()
        {
            // The mailbox has room for every job under way; a shard that ended takes no more.
            log::error!(target: "chargegate::router", shard = shard.0; "an outcome found its shard's mailbox full");
        }
        // Behind the bind's own answer, so that the shard knows the epoch when the update comes.
        if let (Some(device_id), Some(ota)) = (updating, self.ota.get()) {
            ota.wake(device_id);
        }
    }

    fn order_changed(&self, order: &Order, commands: &[Command], withdrawn: &[i64], owner: Option<&ServerId>) {
        self.count(order, None);
        if self.elsewhere(owner).is_some() {
            // A new order comes with the claim of its start.
            if order.sequence_no > 1 || !withdrawn.is_empty() {
                let (device_id, order_no) = (order.device_id, order.order_no);
                self.note(owner, || Note::OrderChanged { device_id, order_no, withdrawn: withdrawn.to_vec() });
            }
            return;
        }
        if let Some(mailbox) = self.mailbox_of(order.device_id) {
            let (commands, withdrawn) = (commands.to_vec(), withdrawn.to_vec());
            let message = Message::OrderChanged { order: Box::new(order.clone()), commands, withdrawn };
            // As for every other message: what it would have said is found again by a poll.
            drop(mailbox.post(message));
        }
    }

    fn told(&self) {
        self.mailboxes.iter().for_each(Mailbox::wake);
    }

    fn commands_queued(&self, queued: &Queued) {
        if self.pass_on(queued) {
            return;
        }
        match self.queue.get() {
            Some(OwnQueue { own, queue }) => queue.push(own, vec![entry(queued)]),
            // Of one among several: the way over Redis would lead back here.
            None => self.commands_waiting(queued.device_id),
        }
    }

    fn superseded(&self, device_id: DeviceId, epoch: i64, owner: &ServerId) {
        self.note(Some(owner), || Note::Superseded { device_id, epoch });
    }

    fn ota_changed(&self, task: &OtaTask, owner: Option<&ServerId>) {
        let (device_id, task_id) = (task.device_id, task.id);
        if self.note(owner, || Note::OtaChanged { device_id, task_id }) {
            return;
        }
        if task.state.is_final() {
            self.tell_owner(device_id, || Message::OtaEnded { device_id, task_id });
        } else {
            self.wake_ota(device_id);
        }
    }

    fn settings_changed(&self, settings: &SettingsOutcome, owner: Option<&ServerId>) {
        if self.note(owner, || Note::SettingsChanged { device_id: settings.device_id }) {
            return;
        }
        self.tell_owner(settings.device_id, || Message::SettingsChanged(Box::new(settings.clone())));
    }

    fn network_changed(&self, told: &NetworkTold, owner: Option<&ServerId>) {
        let device_id = told.device_id;
        if self.note(owner, || Note::NetworkChanged { device_id, withdrawn: told.withdrawn.clone() }) {
            return;
        }
        self.tell_owner(told.device_id, || Message::NetworkChanged(Box::new(told.clone())));
    }

    fn managed_changed(&self) {
        // Who changed them here waits for it already.
        if let Some(peers) = self.peers.get() {
            peers.notes.broadcast(Note::ManagedChanged);
        }
    }

    fn events_committed(&self, pos: i64) {
        // What another instance said already, all have heard.
        if self.events_known(pos)
            && let Some(peers) = self.peers.get()
        {
            peers.notes.broadcast(Note::EventsCommitted { pos: Some(pos) });
        }
    }

    fn events_waiting(&self) {
        if let Some(peers) = self.peers.get() {
            peers.notes.broadcast(Note::EventsCommitted { pos: None });
        }
    }
}
