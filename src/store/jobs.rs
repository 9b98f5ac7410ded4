//! Durable changes and what they come to.

use std::{net::IpAddr, sync::Arc};

use super::{
    CommandRecord, EndpointJob, EndpointOutcome, InstanceJob, InstanceOutcome, LeaseJob, ManagedJob, ManagedOutcome,
    OtaJob, OtaOutcome, ParamRecord, PortRecord, StoreError,
};
use crate::{
    gateway::{
        card::{CardRefused, Rate},
        network::{Given, NetworkList, Taken},
        order,
    },
    model::{
        Card, CardNo, CardState, CardTransaction, ChargeSpec, Command, CommandState, DeviceCall, DeviceDetails,
        DeviceId, EventType, Order, OrderNo, OrderStatus, Priority, Protocol, ServerId,
    },
};

/// A durable change. Every variant says what happens if it is dropped unanswered and who tries again.
#[derive(Debug)]
pub enum Job {
    /// A device was bound to a connection. Dropped: the shard submits it again after 1 s; commands wait for it.
    Bind(Bind),
    /// A third party orders a charge. Dropped: the API answers `NOT_READY`, and the job's deadline makes it insert nothing later.
    CreateOrder(Box<NewOrder>),
    /// Something happened to an order. Dropped: the shard submits it again at its next deadline; an API call answers `NOT_READY`.
    Order(Box<OrderJob>),
    /// A device reported the end of a charge. Dropped: the device is not acknowledged and sends it again.
    Settle(Box<Settlement>),
    /// Something happened to a device or port that third parties are told. Dropped: counted as lost.
    Device(Box<DeviceEvent>),
    /// A durable device report without an order (exception event): stored as event, then acknowledged. Dropped: as `Settle`.
    Report(Box<DeviceReport>),
    /// A command's row moves on. Dropped: the claim expires and the backstop decides.
    Command(CommandUpdate),
    /// Claim what waits for a device whose epoch is live. Dropped: the safety poll asks again.
    Claim {
        /// The device.
        device_id: DeviceId,
        /// Its epoch as the shard knows it; a stale one claims nothing.
        epoch: i64,
        /// Now, Unix ms.
        at: i64,
    },
    /// The order monitor's backstop: timeouts of orders without a live owner. Dropped: runs again in 10 s.
    Backstop(Backstop),
    /// Webhook delivery progress; of an endpoint whose lease another instance holds it changes nothing. Dropped: the event is
    /// delivered again (at least once).
    Delivery(Vec<DeliveryUpdate>),
    /// Batched pruning by age, bounded rows per call. Dropped: runs again in an hour.
    Prune(Prune),
    /// A card was held to a device. Dropped: the device is not answered, and the holder swipes again.
    Swipe(Box<Swipe>),
    /// A third party registers, changes or recharges a card. Dropped: the API answers `NOT_READY`.
    Card(Box<CardJob>),
    /// A third party sends a named command to a device. Dropped: the API answers `NOT_READY`.
    Call(Box<NewCall>),
    /// A third party wants parameters of a device to be as given. Dropped: the API answers `NOT_READY`.
    SetParams(Box<WantedParams>),
    /// Firmware, or an update of a device. Dropped: as each [`OtaJob`] says.
    Ota(Box<OtaJob>),
    /// An operator sets what is kept of a device, and registers it where it was never seen. Dropped: the API answers `NOT_READY`.
    Settings(Box<Settings>),
    /// A third party changes the network list of a gateway. Dropped: the API answers `NOT_READY`.
    Network(Box<NetworkJob>),
    /// Instances that share the store. Dropped: as each [`InstanceJob`] says.
    Instance(InstanceJob),
    /// An instance wants to be the one that delivers to an endpoint. Dropped: asked again.
    Lease(LeaseJob),
    /// An operator changes what is to be delivered to an endpoint. Dropped: the API answers `NOT_READY`.
    Endpoint(EndpointJob),
    /// An operator changes keys or endpoints. Dropped: as [`ManagedJob`] says.
    Managed(Box<ManagedJob>),
}

/// A change of a gateway's network list.
#[derive(Clone, Debug)]
pub struct NetworkJob {
    /// The gateway; it must have a row.
    pub device_id: DeviceId,
    /// What changes.
    pub change: NetworkChange,
    /// Now, Unix ms.
    pub at: i64,
    /// Request that made it.
    pub request_id: String,
    /// As [`NewOrder::idempotency`]; the answer is [`payload::network_accepted`](super::payload::network_accepted).
    pub idempotency: Option<Idempotency>,
}

/// What changes in a network list.
#[derive(Clone, Debug)]
pub enum NetworkChange {
    /// All of it.
    Replace {
        /// Radio channel 1–15.
        channel: u8,
        /// The new list; numbers and MACs once each.
        sockets: Vec<Given>,
    },
    /// One socket more.
    Add(Given),
    /// This socket less.
    Remove(u8),
}

/// What became of a change of a network list.
#[derive(Clone, Debug)]
pub enum Networked {
    /// Committed; the gateway is told next.
    Changed(Box<NetworkTold>),
    /// No such device.
    NoDevice,
    /// The socket to be removed is not in the list.
    NotListed,
    /// Number or MAC of the socket to be added is taken.
    Taken(Taken),
    /// An order holds a port of a socket that would go: nothing was changed.
    Busy {
        /// The socket.
        socket: u8,
        /// Its port.
        port_no: u16,
        /// The order.
        holder: OrderNo,
    },
}

/// A changed network list, as the gateway's owner is told of it.
#[derive(Clone, Debug)]
pub struct NetworkTold {
    /// The gateway.
    pub device_id: DeviceId,
    /// All of it now.
    pub list: NetworkList,
    /// Commands that the owner must drop.
    pub withdrawn: Vec<i64>,
}

/// Settings of a device. `None` leaves the stored value.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The device.
    pub device_id: DeviceId,
    /// Protocol of a gateway from now on, whatever its connection says.
    pub protocol: Option<Protocol>,
    /// Whether the integrator's extension commands are taken.
    pub extensions: Option<bool>,
    /// The operator's name; empty: none.
    pub name: Option<String>,
    /// Frequency for the host's sub-devices, MHz; 0: the one it reports.
    pub fsk_frequency: Option<u16>,
    /// Now, Unix ms.
    pub at: i64,
    /// Request that made it.
    pub request_id: String,
    /// As [`NewOrder::idempotency`]; the answer is [`payload::settings`](super::payload::settings).
    pub idempotency: Option<Idempotency>,
}

/// What became of settings.
#[derive(Clone, Debug)]
pub struct SettingsOutcome {
    /// The device.
    pub device_id: DeviceId,
    /// The job made its row.
    pub registered: bool,
    /// Its protocol now.
    pub protocol: Protocol,
    /// All its details now.
    pub details: DeviceDetails,
}

/// A card at a device: what it may do there, and the order it gets, in one transaction.
#[derive(Clone, Debug)]
pub struct Swipe {
    /// Chosen by the shard; comes back in the outcome.
    pub ticket: u64,
    /// The device.
    pub device_id: DeviceId,
    /// Its protocol.
    pub protocol: Protocol,
    /// The card.
    pub card_no: CardNo,
    /// From 1; `None`: only the balance is asked for.
    pub port_no: Option<u16>,
    /// The device's number for the order to come (BKV/GN).
    pub business_no: Option<u16>,
    /// The port is out of order.
    pub unusable: bool,
    /// What a third party decided; `None`: the card's account here decides.
    pub verdict: Option<CardVerdict>,
    /// Epoch of the live binding, as in [`NewOrder::epoch`].
    pub epoch: Option<i64>,
    /// Now, Unix ms.
    pub at: i64,
    /// On the store's clock: executing later does nothing (Unix ms).
    pub deadline: i64,
}

/// A third party's decision on a swipe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CardVerdict {
    /// Normal lets it charge.
    pub state: CardState,
    /// Announced by the device, cents.
    pub balance_cent: u32,
    /// What it may charge, checked against the protocol's limits; `None`: until full.
    pub spec: Option<ChargeSpec>,
}

/// What became of a swipe.
#[derive(Clone, Debug)]
pub struct Swiped {
    /// The device.
    pub device_id: DeviceId,
    /// As submitted.
    pub ticket: u64,
    /// The deadline had passed: nothing was done, and the device is not answered.
    pub too_late: bool,
    /// What the holder is told.
    pub state: CardState,
    /// How the device reads `balance`.
    pub rate: Rate,
    /// Free balance in cents, or Unix seconds of a monthly card's end.
    pub balance: u32,
    /// The order of the card on the port: made by this swipe, or by one before.
    pub order: Option<Order>,
    /// The start command of a new order, when claimed.
    pub command: Option<Command>,
    /// The order was there before: the swipe came again while it holds the port.
    pub repeated: bool,
    /// Another order holds the port.
    pub port_held: bool,
}

/// A change of a card's account by a third party.
#[derive(Clone, Debug)]
pub struct CardJob {
    /// The card.
    pub card_no: CardNo,
    /// What to do.
    pub change: CardChange,
    /// Now, Unix ms.
    pub at: i64,
    /// Request that caused it.
    pub request_id: String,
    /// As [`NewOrder::idempotency`]; the answer is [`payload::card_answer`](super::payload::card_answer).
    pub idempotency: Option<Idempotency>,
}

/// What to do with a card.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CardChange {
    /// Register it, with an empty account.
    Register {
        /// Its state.
        state: CardState,
        /// Its tariff.
        tariff: Option<String>,
        /// End of its monthly plan, Unix ms.
        expires_at: Option<i64>,
    },
    /// Change what is given; the inner `None` takes a value away.
    Update {
        /// Its state.
        state: Option<CardState>,
        /// Its tariff.
        tariff: Option<Option<String>>,
        /// End of its monthly plan, Unix ms.
        expires_at: Option<Option<i64>>,
    },
    /// Add money.
    Recharge {
        /// From 1 cent.
        amount_cent: i64,
        /// The caller's own word for it.
        reference: Option<String>,
    },
}

/// What became of a [`CardJob`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CardOutcome {
    /// Committed.
    Done {
        /// The card after it.
        card: Card,
        /// Of a recharge.
        transaction: Option<CardTransaction>,
    },
    /// It is registered already.
    Exists,
    /// There is no such card.
    NotFound,
    /// The balance would be more than [`Card::BALANCE_MAX`].
    TooMuch {
        /// The balance now, cents.
        balance_cent: i64,
    },
}

/// A named command to queue.
#[derive(Clone, Debug)]
pub struct NewCall {
    /// The device; it must have a row.
    pub device_id: DeviceId,
    /// What to send.
    pub call: DeviceCall,
    /// Order of sending.
    pub priority: Priority,
    /// How often it may be tried, a minute apart.
    pub attempts_max: u8,
    /// Refused where so many commands wait for the device, also one that is away.
    pub waiting_max: u32,
    /// Now, Unix ms.
    pub at: i64,
    /// Not to be written after this, Unix ms.
    pub not_after: i64,
    /// Request that made it.
    pub request_id: String,
    /// As [`NewOrder::idempotency`]; the answer is [`payload::command_accepted`](super::payload::command_accepted).
    pub idempotency: Option<Idempotency>,
}

/// What became of a named command.
#[derive(Clone, Debug)]
pub enum Called {
    /// Committed.
    Queued(Box<CommandRecord>),
    /// No such device.
    NoDevice,
    /// As many commands as allowed wait for this device.
    Full,
}

/// Parameters as a third party wants them.
#[derive(Clone, Debug)]
pub struct WantedParams {
    /// The device; it must have a row.
    pub device_id: DeviceId,
    /// BKV/GN; 0 for AP3000.
    pub socket: u8,
    /// Checked against [`crate::gateway::params`].
    pub values: Vec<(String, serde_json::Value)>,
    /// Also ask the device for what it has, where it can be asked.
    pub refresh: bool,
    /// Now, Unix ms.
    pub at: i64,
    /// Request that made it.
    pub request_id: String,
    /// As [`NewOrder::idempotency`].
    pub idempotency: Option<Idempotency>,
}

/// Which rows are past their retention. Times are Unix ms; rows older than them go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prune {
    /// Of events, delivered or not.
    pub events_before: i64,
    /// Of commands that came to an end.
    pub commands_before: i64,
    /// Of answers kept for requests with an [`Idempotency`] key.
    pub answers_before: i64,
    /// Of the command log.
    pub log_before: i64,
    /// Of the delivery log.
    pub delivery_log_before: i64,
    /// At most this many rows per table.
    pub rows_max: u32,
}

impl Prune {
    /// Everything older than `before`.
    pub const fn all(before: i64, rows_max: u32) -> Self {
        Self {
            events_before: before,
            commands_before: before,
            answers_before: before,
            log_before: before,
            delivery_log_before: before,
            rows_max,
        }
    }
}

/// Makes a request that is sent again have its effect once: the first answer is stored in the transaction of the effect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Idempotency {
    /// Name of the API key: callers do not share their keys.
    pub api_key: Arc<str>,
    /// Method and path, `POST /api/v1/third/order/stop`.
    pub route: String,
    /// The caller's `Idempotency-Key`.
    pub key: String,
    /// SHA-256 of the request's body.
    pub body_hash: [u8; 32],
}

/// What is stored under an [`Idempotency`] key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Earlier {
    /// The same request: its answer, byte for byte.
    Answer {
        /// HTTP status.
        status: u16,
        /// The whole body.
        body: Vec<u8>,
    },
    /// A request with another body.
    Mismatch,
}

/// Binds a device to a connection and raises its epoch.
#[derive(Clone, Debug)]
pub struct Bind {
    /// The device.
    pub device_id: DeviceId,
    /// As detected; a device record that says `gn` wins.
    pub protocol: Protocol,
    /// The decimal number under the QR code (AP3000).
    pub printed_no: Option<u32>,
    /// Refuse devices that have no row (admission `known`).
    pub known_only: bool,
    /// Of the binding in the directory; comes back, so that the answer to an earlier binding is told from this one's.
    pub generation: u64,
    /// Now, Unix ms.
    pub at: i64,
}

/// What binding found.
#[derive(Clone, Debug)]
pub struct Bound {
    /// The device.
    pub device_id: DeviceId,
    /// As submitted.
    pub generation: u64,
    /// False: no row and admission is `known`; nothing was written and all that follows is empty.
    pub admitted: bool,
    /// True when this bind made the row (`device.registered` was emitted).
    pub first_seen: bool,
    /// Raised by one per bind, never reused.
    pub epoch: i64,
    /// The record's protocol.
    pub protocol: Protocol,
    /// BKV/GN: its record has sockets, or it showed a socket ≥ 1.
    pub networked: bool,
    /// It has an open update.
    pub has_ota: bool,
    /// What the device last reported as its heartbeat interval, seconds (AP3000).
    pub heartbeat_interval_s: Option<u16>,
    /// First of [`Bound::MSG_IDS`] message ids reserved for the shard's own queries during this epoch.
    pub msg_id_first: u32,
    /// Known ports.
    pub ports: Vec<PortRecord>,
    /// Orders that are active, or final with the device's end still pending.
    pub orders: Vec<Order>,
    /// Commands claimed for this epoch: queued ones, and ones claimed by an older epoch and not known to be written
    /// (`maybe_written`). Only if still wanted by their order, before their `not_after`, and for a start within 15 s of creation.
    /// With them, new stops for orders that are final while the device still charges: at each bind, 10 s after the first and
    /// then doubling, five in all, the last with an alarm `device_end_pending`.
    pub commands: Vec<Command>,
    /// Settings, and what it told of itself.
    pub details: Box<DeviceDetails>,
    /// BKV/GN: the network list, where there is one.
    pub network: Option<Box<NetworkList>>,
    /// Another instance that had the device until now.
    pub superseded: Option<ServerId>,
}

impl Bound {
    /// Message ids reserved per bind.
    pub const MSG_IDS: u32 = 32;

    /// The answer to `bind` for an admitted device of which nothing is stored.
    pub fn new(bind: &Bind, epoch: i64) -> Self {
        Self {
            device_id: bind.device_id,
            generation: bind.generation,
            admitted: true,
            first_seen: epoch == 1,
            epoch,
            protocol: bind.protocol,
            networked: false,
            has_ota: false,
            heartbeat_interval_s: None,
            msg_id_first: 1,
            ports: Vec::new(),
            orders: Vec::new(),
            commands: Vec::new(),
            details: Box::default(),
            network: None,
            superseded: None,
        }
    }
}

/// A charge to create: order + `order.created` + start command, in one transaction.
#[derive(Clone, Debug)]
pub struct NewOrder {
    /// Made by the API.
    pub order_no: OrderNo,
    /// The device.
    pub device_id: DeviceId,
    /// From 1.
    pub port_no: u16,
    /// Checked against the protocol's limits.
    pub spec: ChargeSpec,
    /// Epoch of the device's live binding on this instance: the command is inserted already claimed for it if it is still
    /// the device's epoch, else queued.
    pub epoch: Option<i64>,
    /// Now, Unix ms.
    pub at: i64,
    /// On the store's clock: executing later inserts nothing (Unix ms).
    pub deadline: i64,
    /// Request that made it.
    pub request_id: String,
    /// Who made that.
    pub requester: Requester,
    /// The card that pays: its price is held in the same transaction, or nothing is created.
    pub card_no: Option<CardNo>,
    /// Answers it from the store where it was answered before; the answer is [`payload::accepted`](super::payload::accepted).
    pub idempotency: Option<Idempotency>,
}

/// An event for one order.
#[derive(Clone, Debug)]
pub struct OrderJob {
    /// Which order.
    pub order: OrderKey,
    /// What happened.
    pub event: order::Event,
    /// Refuse if the device of the order is another one (API paths that name both).
    pub device_id: Option<DeviceId>,
    /// Epoch of the device's live binding on this instance, as in [`NewOrder::epoch`].
    pub epoch: Option<i64>,
    /// Of what a shard saw or decided: the newest epoch it knows. Where the device has a newer one, the job is void
    /// ([`Outcome::Fenced`]). `None`: a third party asks, or the shard's own bind is under way.
    pub fence: Option<i64>,
    /// The device's number for this order, where the event carries one (stored once).
    pub business_no: Option<u16>,
    /// More exact reason for a failure: the device's code or text, e.g. `device_refused_01`.
    pub reason: Option<String>,
    /// When it happened, Unix ms.
    pub at: i64,
    /// Request that caused it, for API calls.
    pub request_id: Option<String>,
    /// Who made that.
    pub requester: Requester,
    /// As [`NewOrder::idempotency`].
    pub idempotency: Option<Idempotency>,
}

/// Who made a request, as it is kept with what the request did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Requester {
    /// Name of the API key; `None`: it needed none.
    pub api_key: Option<Arc<str>>,
    /// The other end of its connection.
    pub client_ip: Option<IpAddr>,
}

/// How a job names its order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OrderKey {
    /// By number.
    No(OrderNo),
    /// The active order of a port.
    ActiveOn(DeviceId, u16),
}

/// What became of an order job.
#[derive(Clone, Debug)]
pub struct OrderOutcome {
    /// The order after it; `None`: no such order (or not of that device).
    pub order: Option<Order>,
    /// Status before.
    pub from: OrderStatus,
    /// What the transition said.
    pub verdict: order::Verdict,
    /// Commands queued by it, claimed when a live epoch was given.
    pub commands: Vec<Command>,
    /// Rows withdrawn by it: the shard drops them from its lanes.
    pub withdrawn: Vec<i64>,
}

/// The end of a charge as the device tells it.
#[derive(Clone, Debug)]
pub struct Settlement {
    /// Names this settlement: a device's resend has the same key.
    pub key: SettlementKey,
    /// The device.
    pub device_id: DeviceId,
    /// From 1.
    pub port_no: u16,
    /// Seconds.
    pub duration_seconds: u32,
    /// Wh, converted from the wire's unit.
    pub energy_wh: u32,
    /// Amount reported by the device, cents.
    pub amount_cent: Option<u32>,
    /// How the charge ended, as far as the frame says.
    pub end: SettlementEnd,
    /// Epoch of the live binding, as in [`NewOrder::epoch`].
    pub epoch: Option<i64>,
    /// The card of a charge that the device started by itself.
    pub card_no: Option<CardNo>,
    /// When it arrived, Unix ms.
    pub at: i64,
    /// The frame, whole.
    pub raw: Vec<u8>,
}

/// Identity of a settlement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SettlementKey {
    /// AP3000: (device, port, start mode, 16 bytes); duration and energy are added for offline starts, whose numbers can collide
    /// while the device's clock is not set (device-server protocol v8.6, command 03).
    Ap3000 {
        /// The device.
        device_id: DeviceId,
        /// Zero-based wire port.
        port: u8,
        /// 1 online; 0 offline card; 3 code.
        start_mode: u8,
        /// The order field.
        order_ref: [u8; 16],
        /// Zero for online starts.
        duration_seconds: u16,
        /// Zero for online starts; raw 0.01 kWh.
        energy_raw: u16,
    },
    /// BKV/GN: (gateway, socket, hole, business number). A number repeats over time, so duplicates are judged against the matched
    /// order (or, for orphans, by equal minutes and energy within 24 h).
    Bkv {
        /// The gateway.
        device_id: DeviceId,
        /// 0–250.
        socket: u8,
        /// 0 or 1.
        hole: u8,
        /// The device's number.
        business_no: u16,
        /// Charged minutes.
        minutes: u16,
        /// Wh.
        energy_wh: u16,
    },
}

/// How a settlement frame says the charge ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SettlementEnd {
    /// AP3000 stop reason.
    Ap3000 {
        /// Table "stop reason" of the device-server protocol v8.6.
        reason: u8,
    },
    /// BKV/GN: status byte and, for some reports, a reason byte; the meaning also depends on the order.
    Bkv {
        /// Hole status before switch-off.
        status: u8,
        /// Sub-command 18 and tag 2F.
        reason: Option<u8>,
    },
}

/// What became of a settlement.
#[derive(Clone, Debug)]
pub struct Settled {
    /// As submitted.
    pub key: SettlementKey,
    /// False for a replay, whose totals were already stored; acknowledged all the same.
    pub stored: bool,
    /// The order that took it, after it; `None`: an orphan row, or quarantined.
    pub order: Option<Order>,
    /// Status before.
    pub from: Option<OrderStatus>,
    /// Commands withdrawn with it.
    pub withdrawn: Vec<i64>,
    /// It could not be applied: its bytes are in `settlement_quarantine` and an alarm was raised.
    pub quarantined: bool,
}

/// An event of a device or a port.
#[derive(Clone, Debug)]
pub struct DeviceEvent {
    /// The device.
    pub device_id: DeviceId,
    /// What happened.
    pub event_type: EventType,
    /// The event's `data`.
    pub data: EventData,
    /// The order it belongs to (`charging.progress`): its key, without a place in its sequence.
    pub order_no: Option<OrderNo>,
    /// Of what only the owner may declare (online, offline), as [`OrderJob::fence`].
    pub fence: Option<i64>,
    /// When, Unix ms.
    pub at: i64,
}

/// The `data` of an event as the text that is stored. A tree of values takes ten times its memory, in pieces that would lie between
/// what a shard keeps of its devices for as long as the job is under way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventData(Box<str>);

impl EventData {
    /// JSON.
    pub const fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<serde_json::Value> for EventData {
    fn from(data: serde_json::Value) -> Self {
        Self(data.to_string().into())
    }
}

/// A device report that is stored before it is acknowledged.
#[derive(Clone, Debug)]
pub struct DeviceReport {
    /// Chosen by the shard; comes back in the outcome.
    pub ticket: u64,
    /// The event to store.
    pub event: DeviceEvent,
}

/// A command's row moves on.
#[derive(Clone, Debug)]
pub struct CommandUpdate {
    /// The device it is for.
    pub device_id: DeviceId,
    /// Row of `outbound_queue`.
    pub id: i64,
    /// Epoch of the claim it is told under; where the row was claimed again for a newer one, it changes nothing.
    pub epoch: i64,
    /// New state; an update that would go backwards changes nothing.
    pub state: CommandState,
    /// For a start's first write: recorded in the order as well.
    pub order_no: Option<OrderNo>,
    /// Writes so far.
    pub attempts: u8,
    /// Why, for refused, expired, withdrawn and dead.
    pub reason: Option<&'static str>,
    /// What the device said, as JSON.
    pub result: Option<String>,
    /// When, Unix ms.
    pub at: i64,
}

/// Timeouts by SQL for orders whose device has no live owner. Each deadline lies 30 s behind the owner's.
#[derive(Clone, Copy, Debug)]
pub struct Backstop {
    /// Now, Unix ms.
    pub at: i64,
    /// No order is interrupted before this time on account of the gateway's own absence (ready + 10 min).
    pub interrupts_from: i64,
    /// Nor timed out or declared offline before this one (ready + 90 s).
    pub offline_from: i64,
    /// How long after the end of the instance that had a device its orders are not interrupted, ms.
    pub interrupt_grace: i64,
    /// The same for timeouts, ms.
    pub offline_grace: i64,
}

/// Progress of webhook deliveries.
#[derive(Clone, Debug)]
pub enum DeliveryUpdate {
    /// Everything up to `pos` is delivered, parked or dead for this endpoint.
    Cursor {
        /// Endpoint name.
        endpoint: String,
        /// Last position done.
        pos: i64,
    },
    /// A delivery failed and is tried again; later events of its key wait behind it.
    Park(ParkedDelivery),
    /// A parked delivery succeeded.
    Unpark {
        /// Endpoint name.
        endpoint: String,
        /// The event's position.
        pos: i64,
    },
    /// Attempts used up, or a final answer: dead letter.
    Dead(ParkedDelivery),
    /// The receiver wants nothing more: nothing is sent to it until somebody enables it.
    Disable {
        /// Endpoint name.
        endpoint: String,
        /// Why.
        reason: String,
        /// Since when, Unix ms.
        at: i64,
    },
}

impl DeliveryUpdate {
    /// The endpoint it is about.
    pub fn endpoint(&self) -> &str {
        match self {
            Self::Cursor { endpoint, .. } | Self::Unpark { endpoint, .. } | Self::Disable { endpoint, .. } => endpoint,
            Self::Park(parked) | Self::Dead(parked) => &parked.endpoint,
        }
    }
}

/// A delivery that failed, or waits behind one of its key.
#[derive(Clone, Debug)]
pub struct ParkedDelivery {
    /// Endpoint name.
    pub endpoint: String,
    /// The event's position.
    pub pos: i64,
    /// The event's key: order number or device id.
    pub key: String,
    /// Attempts made.
    pub attempts: u8,
    /// Earliest next attempt, Unix ms.
    pub next_at: i64,
    /// What went wrong last, e.g. `http_500`, `timeout`.
    pub reason: String,
}

/// What a job came to. A failed store gives [`Outcome::Failed`]: nothing was committed.
#[derive(Debug)]
pub enum Outcome {
    /// Of [`Job::Bind`].
    Bound(Box<Bound>),
    /// Of [`Job::CreateOrder`].
    Created(Box<Created>),
    /// Of [`Job::Order`].
    Order(Box<OrderOutcome>),
    /// Of [`Job::CreateOrder`], [`Job::Order`] and [`Job::Card`] whose idempotency key is taken: nothing was changed.
    Repeated(Earlier),
    /// Of [`Job::Settle`].
    Settled(Box<Settled>),
    /// Of [`Job::Report`].
    Reported {
        /// The device.
        device_id: DeviceId,
        /// As submitted.
        ticket: u64,
    },
    /// Of [`Job::Claim`].
    Claimed {
        /// The device.
        device_id: DeviceId,
        /// What was claimed.
        commands: Vec<Command>,
        /// Orders of the starts among them: the shard may not have heard of them.
        orders: Vec<Order>,
    },
    /// Of [`Job::Claim`], [`Job::Order`] and [`Job::Device`] of a shard whose epoch is not the device's newest: nothing was
    /// changed, and the device is somebody else's.
    Fenced {
        /// The device.
        device_id: DeviceId,
        /// Its epoch now.
        epoch: i64,
    },
    /// Of [`Job::Backstop`]: orders it changed, whose owners (if any) are told.
    Backstop(Vec<OrderOutcome>),
    /// Of [`Job::Prune`].
    Pruned {
        /// Some table had as many rows as one call takes: there may be more.
        more: bool,
    },
    /// Of [`Job::Swipe`].
    Swiped(Box<Swiped>),
    /// Of [`Job::Card`].
    Card(Box<CardOutcome>),
    /// Of [`Job::Call`].
    Called(Called),
    /// Of [`Job::SetParams`]: all of the device's parameters of that socket; `None`: no such device.
    Params(Option<Vec<ParamRecord>>),
    /// Of [`Job::Ota`].
    Ota(Box<OtaOutcome>),
    /// Of [`Job::Settings`].
    Settings(Box<SettingsOutcome>),
    /// Of [`Job::Network`].
    Networked(Networked),
    /// Of [`Job::Instance`].
    Instance(InstanceOutcome),
    /// Of [`Job::Lease`]: whether it is held now.
    Leased(bool),
    /// Of [`Job::Endpoint`].
    Endpoint(EndpointOutcome),
    /// Of [`Job::Managed`].
    Managed(Box<ManagedOutcome>),
    /// Committed, nothing to tell.
    Done,
    /// The store could not commit it; the job had no effect. `what` names the job.
    Failed {
        /// Device the job was for.
        device_id: Option<DeviceId>,
        /// Settlement it carried: the shard forgets the waiting entry, the device sends again.
        key: Option<SettlementKey>,
        /// Ticket of the report it carried; likewise.
        ticket: Option<u64>,
        /// Why.
        error: StoreError,
    },
}

/// What became of a creation.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "an outcome boxes it")]
pub enum Created {
    /// Committed.
    Order {
        /// The order.
        order: Order,
        /// Its start command, when claimed.
        command: Option<Command>,
    },
    /// Another order holds the port.
    PortBusy {
        /// The order that holds it.
        holder: OrderNo,
    },
    /// The deadline had passed: nothing was inserted.
    TooLate,
    /// The card that was to pay does not.
    CardRefused(CardRefused),
}
