//! What the gateway persists, as one contract.
//!
//! Two ways in and one way out:
//!
//! - [`Store::submit`] takes a [`Job`]: a durable change. It never blocks; the queue is bounded and gives the job back when full.
//!   The job's [`Outcome`] is delivered to its [`Reply`] only after the commit that made it durable.
//! - [`Store::append`] takes rows of the command log, [`Store::append_deliveries`] of the delivery log, [`Store::coalesce`] latest
//!   values: a crash may lose the last seconds of these.
//! - [`Store::read`] runs a query on a reader thread.
//!
//! Order of things, everywhere: write, commit, answer, notify. Nothing is acknowledged that is not committed. Replays change
//! nothing the second time. Jobs of one device are applied in the order they were submitted.
//!
//! The rules of the domain are not in here: [`crate::gateway::order::transition`] decides, a store writes.

use std::{
    fmt,
    sync::atomic::{AtomicBool, AtomicU64},
};

use crate::{
    gateway::network::NetworkList,
    model::{
        Card, CardNo, CardTransaction, Command, CommandState, DeviceId, Firmware, Order, OrderNo, OtaTask, Priority,
        ServerId,
    },
};

mod counters;
mod delivery;
mod endpoint;
mod front;
mod instance;
mod jobs;
mod logs;
mod managed;
mod ota;
pub mod payload;
pub mod postgres;
mod proof;
mod records;
mod sql;
pub mod sqlite;
mod threads;

pub use counters::{COMMIT_BUCKETS_US, KINDS, StoreCounters};
pub use endpoint::{
    DeadLetters, DeliveryChange, DeliveryLogRow, DeliveryOutcome, Disabled, EndpointJob, EndpointOutcome,
    EndpointProgress, EndpointStanding,
};
pub use instance::{InstanceJob, InstanceOutcome, InstanceRecord, LeaseJob, Released};
pub use jobs::{
    Backstop, Bind, Bound, Called, CardChange, CardJob, CardOutcome, CardVerdict, CommandUpdate, Created,
    DeliveryUpdate, DeviceEvent, DeviceReport, Earlier, EventData, Idempotency, Job, NetworkChange, NetworkJob,
    NetworkTold, Networked, NewCall, NewOrder, OrderJob, OrderKey, OrderOutcome, Outcome, ParkedDelivery, Prune,
    Requester, Settings, SettingsOutcome, Settled, Settlement, SettlementEnd, SettlementKey, Swipe, Swiped,
    WantedParams,
};
pub use managed::{
    ApiKeyRecord, EndpointChange, EndpointRecord, KeyChange, ManagedChange, ManagedJob, ManagedOutcome, ManagedRecord,
    NewApiKey, NewEndpoint,
};
pub use ota::{FirmwareKey, NewFirmware, NewOtaTask, OtaFilter, OtaJob, OtaOutcome, OtaStep, OtaUpdate};
pub use proof::{
    FrameFilter, FrameRecord, OrderCommand, OrderHistory, OrderWish, RequestRecord, SettlementRecord, WaitingDelivery,
};
pub use records::{
    CardFilter, CommandLogRow, CommandRecord, DeviceFilter, DeviceRecord, EventRecord, Latest, OrderFilter, Page,
    ParamRecord, PortRecord, QueueCounts, QueueEntry, QueueFilter,
};
pub use sql::{Applied, Limits};

/// Ended commands stay for days: a list of them is not counted to its end.
pub const QUEUE_TOTAL_MAX: u64 = 10_000;

/// Where an outcome goes.
pub enum Reply {
    /// To a shard's mailbox, which has room for every job the shard has under way.
    Shard(crate::gateway::ShardId),
    /// To a completion, run on a thread that may block briefly, never on the writer's.
    Call(Box<dyn FnOnce(Outcome) + Send>),
    /// Nowhere.
    None,
}

impl fmt::Debug for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Shard(shard) => write!(f, "Shard({shard:?})"),
            Self::Call(_) => f.write_str("Call"),
            Self::None => f.write_str("None"),
        }
    }
}

/// A command that waits for its device's owner to claim it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Queued {
    /// Row of `outbound_queue`.
    pub id: i64,
    /// The device.
    pub device_id: DeviceId,
    /// Order of sending.
    pub priority: Priority,
    /// When it was queued, Unix ms.
    pub at: i64,
    /// The instance that has the device, as its row says; `None`: nobody, or there is but one instance.
    pub owner: Option<ServerId>,
}

/// Who is told what was committed. Called by the store's delivery thread, after the commit.
///
/// `owner` is the instance that has the device, where it is another one than this.
pub trait Notify: Send + Sync {
    /// An outcome for a shard, which need not hear of it before [`Notify::told`].
    fn shard(&self, shard: crate::gateway::ShardId, outcome: Outcome);
    /// An order changed at the request of somebody other than its owner shard (any job not answered to a shard): the owner is
    /// sent a copy and the claimed commands; it need not hear of them before [`Notify::told`]. Called after the answer was given.
    fn order_changed(&self, order: &Order, commands: &[Command], withdrawn: &[i64], owner: Option<&ServerId>);
    /// Several outcomes, or all there are for now, have been told.
    fn told(&self) {}
    /// A command was queued without a claim: for a device that another instance has, or that had no live epoch at the time.
    fn commands_queued(&self, queued: &Queued);
    /// A bind here took a device from another instance, which must let go of it.
    fn superseded(&self, _device_id: DeviceId, _epoch: i64, _owner: &ServerId) {}
    /// An update was created, or ended at the request of somebody other than its shard. Called after the answer was given.
    fn ota_changed(&self, _task: &OtaTask, _owner: Option<&ServerId>) {}
    /// Events up to this position are committed.
    fn events_committed(&self, pos: i64);
    /// Events were committed here that another instance must give their positions. It finds them by itself within a moment.
    fn events_waiting(&self) {}
    /// Settings of a device changed. Called after the answer was given.
    fn settings_changed(&self, _settings: &SettingsOutcome, _owner: Option<&ServerId>) {}
    /// The network list of a gateway changed. Called after the answer was given.
    fn network_changed(&self, _told: &NetworkTold, _owner: Option<&ServerId>) {}
    /// Keys or endpoints of the admin API changed. Called after the answer was given.
    fn managed_changed(&self) {}
}

/// Queries. One object per reader thread.
pub trait Reader {
    /// One order.
    fn order(&mut self, order_no: OrderNo) -> Result<Option<Order>, StoreError>;
    /// Orders, newest first; `page` from 1.
    fn orders(&mut self, filter: &OrderFilter, page: u32, size: u32) -> Result<Page<Order>, StoreError>;
    /// Events of one order in sequence.
    fn order_events(&mut self, order_no: OrderNo) -> Result<Vec<EventRecord>, StoreError>;
    /// What is kept of how an order came about; with what was reported for its port in this time (Unix ms) and settled no order.
    fn order_history(&mut self, order: &Order, between: (i64, i64)) -> Result<OrderHistory, StoreError>;
    /// Frames of a device, oldest first. The log is written behind what it tells of, and may lose its last seconds.
    fn frames(&mut self, filter: &FrameFilter) -> Result<Vec<FrameRecord>, StoreError>;
    /// One device.
    fn device(&mut self, device_id: DeviceId) -> Result<Option<DeviceRecord>, StoreError>;
    /// Ports of a device by number.
    fn ports(&mut self, device_id: DeviceId) -> Result<Vec<PortRecord>, StoreError>;
    /// Active orders of a device by port.
    fn active_orders(&mut self, device_id: DeviceId) -> Result<Vec<Order>, StoreError>;
    /// Devices by id; `page` from 1.
    fn devices(&mut self, filter: &DeviceFilter, page: u32, size: u32) -> Result<Page<DeviceRecord>, StoreError>;
    /// Events behind a position, at most `limit`.
    fn events_after(&mut self, pos: i64, limit: u32) -> Result<Vec<EventRecord>, StoreError>;
    /// The first position whose event, and those behind it, are of this time or later (Unix ms); behind the log's end where none is.
    /// Corrections of clocks blur it.
    fn pos_at(&mut self, at: i64) -> Result<i64, StoreError>;
    /// How far an endpoint is; `None`: it has no cursor yet.
    fn endpoint(&mut self, endpoint: &str) -> Result<Option<EndpointProgress>, StoreError>;
    /// All endpoints that have a cursor, by name.
    fn standings(&mut self) -> Result<Vec<EndpointStanding>, StoreError>;
    /// Parked deliveries of an endpoint with their events, by position.
    fn parked(&mut self, endpoint: &str, limit: u32) -> Result<Vec<(ParkedDelivery, EventRecord)>, StoreError>;
    /// Dead letters of an endpoint with their events, by position; `page` from 1. `next_at` is when each became one.
    fn dead_letters(
        &mut self,
        endpoint: &str,
        page: u32,
        size: u32,
    ) -> Result<Page<(ParkedDelivery, EventRecord)>, StoreError>;
    /// Attempts to deliver to an endpoint, newest first; `page` from 1. The total ends at 100,000.
    fn deliveries(
        &mut self,
        endpoint: &str,
        outcome: Option<DeliveryOutcome>,
        page: u32,
        size: u32,
    ) -> Result<Page<DeliveryLogRow>, StoreError>;
    /// Attempts to deliver the event at a position, in their order; `page` from 1.
    fn deliveries_of_event(&mut self, pos: i64, page: u32, size: u32) -> Result<Page<DeliveryLogRow>, StoreError>;
    /// Highest position in the log; 0 when empty.
    fn last_pos(&mut self) -> Result<i64, StoreError>;
    /// What is stored under an idempotency key.
    fn earlier(&mut self, asked: &Idempotency) -> Result<Option<Earlier>, StoreError>;
    /// One card.
    fn card(&mut self, card_no: &CardNo) -> Result<Option<Card>, StoreError>;
    /// Cards by number; `page` from 1.
    fn cards(&mut self, filter: &CardFilter, page: u32, size: u32) -> Result<Page<Card>, StoreError>;
    /// Movements of a card, newest first; `page` from 1.
    fn card_transactions(
        &mut self,
        card_no: &CardNo,
        page: u32,
        size: u32,
    ) -> Result<Page<CardTransaction>, StoreError>;
    /// One command of a device.
    fn command(&mut self, device_id: DeviceId, id: i64) -> Result<Option<CommandRecord>, StoreError>;
    /// Commands of a device, or those in one state, newest first; `page` from 1.
    fn commands(
        &mut self,
        device_id: DeviceId,
        state: Option<CommandState>,
        page: u32,
        size: u32,
    ) -> Result<Page<CommandRecord>, StoreError>;
    /// Commands of all devices, newest first; `page` from 1. `total` counts to [`QUEUE_TOTAL_MAX`].
    fn queue(&mut self, filter: &QueueFilter, page: u32, size: u32) -> Result<Page<QueueEntry>, StoreError>;
    /// How many commands have not ended.
    fn queue_counts(&mut self) -> Result<QueueCounts, StoreError>;
    /// Parameters of a device by socket and name.
    fn params(&mut self, device_id: DeviceId) -> Result<Vec<ParamRecord>, StoreError>;
    /// The network list of a gateway; `None`: no such device.
    fn network(&mut self, device_id: DeviceId) -> Result<Option<NetworkList>, StoreError>;
    /// Devices that have queued commands; only those that `owner` has, where one is given.
    fn devices_with_queued_commands(
        &mut self,
        owner: Option<&ServerId>,
        limit: u32,
    ) -> Result<Vec<DeviceId>, StoreError>;
    /// Those of these commands that are still queued, and who has their devices now.
    fn queued(&mut self, ids: &[i64]) -> Result<Vec<Queued>, StoreError>;
    /// One image.
    fn firmware(&mut self, key: FirmwareKey) -> Result<Option<Firmware>, StoreError>;
    /// Images, or those for one device type, newest first; `page` from 1.
    fn firmware_list(&mut self, device_type: Option<u8>, page: u32, size: u32) -> Result<Page<Firmware>, StoreError>;
    /// One update.
    fn ota_task(&mut self, id: i64) -> Result<Option<OtaTask>, StoreError>;
    /// Updates, newest first; `page` from 1.
    fn ota_tasks(&mut self, filter: &OtaFilter, page: u32, size: u32) -> Result<Page<OtaTask>, StoreError>;
    /// The open update of a device.
    fn open_ota_task(&mut self, device_id: DeviceId) -> Result<Option<OtaTask>, StoreError>;
    /// API keys made by the admin API, by name.
    fn api_keys(&mut self) -> Result<Vec<ApiKeyRecord>, StoreError>;
    /// Webhook endpoints made by the admin API, by name.
    fn webhook_endpoints(&mut self) -> Result<Vec<EndpointRecord>, StoreError>;
    /// Raised by every change of the two, in its transaction: read before them, it is not newer than they are.
    fn managed_revision(&mut self) -> Result<i64, StoreError>;
    /// Instances that share the store, by name.
    fn instances(&mut self) -> Result<Vec<InstanceRecord>, StoreError>;
    /// Devices that have one, behind `after`.
    fn devices_with_open_ota(&mut self, after: Option<DeviceId>, limit: u32) -> Result<Vec<DeviceId>, StoreError>;
}

/// A query to run on a reader thread.
pub type ReadCall = Box<dyn FnOnce(Result<&mut dyn Reader, StoreError>) + Send>;

/// The store, as every other part sees it.
pub trait Store: Send + Sync {
    /// Hands over a durable change. `Err` gives it back: the queue is full or the store is closing.
    fn submit(&self, job: Job, reply: Reply) -> Result<(), (Job, Reply)>;
    /// Hands over latest values; false: the queue is full, keep them.
    fn coalesce(&self, rows: &mut Vec<Latest>) -> bool;
    /// Hands over log rows; what does not fit is dropped and counted.
    fn append(&self, rows: Vec<CommandLogRow>);
    /// As [`Store::append`], for the log of deliveries.
    fn append_deliveries(&self, rows: Vec<DeliveryLogRow>);
    /// Runs a query on a reader thread. `Err` gives it back: the queue is full or the store is closing.
    fn read(&self, call: ReadCall) -> Result<(), ReadCall>;
    /// Whether commits succeed, and why not.
    fn health(&self) -> &StoreHealth;
    /// Finishes what was handed over, within the deadline, and closes.
    fn close(&self, deadline: std::time::Duration);
}

/// State of the store, readable from any thread.
#[derive(Debug, Default)]
pub struct StoreHealth {
    /// Whether the last commit succeeded.
    pub ready: AtomicBool,
    /// Microseconds the last commit took.
    pub commit_us: AtomicU64,
    /// Why it is not ready.
    pub reason: parking_lot::Mutex<Option<String>>,
}

/// Why the store could not do something.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreError {
    /// The environment: disk, file, connection. Tried again later.
    #[error("store unavailable: {0}")]
    Unavailable(String),
    /// What is stored is not what this build writes.
    #[error("stored data is not understood: {0}")]
    Corrupt(String),
    /// Our bug: a statement or constraint failed.
    #[error("store refused a statement: {0}")]
    Statement(String),
}
