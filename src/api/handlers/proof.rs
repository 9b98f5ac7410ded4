//! `/orders/{no}/proof`: one timeline of all that is kept of an order, for who asks "did you send it?".
//!
//! ```text
//! request ─> command row ─> frame down (each write) ─> frame up: the device's answer ─> events ─> deliveries
//!                                          frame up: end report ─> settlement ─> events, frame down: its answer ─> deliveries
//! ```
//!
//! Nothing is inferred that is not stored. What is not there any more, or may have been lost, is said in `gaps`.

mod wire;

use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

use super::call::{Next, reading};
use super::events::EventObject;
use super::now;
use super::orders::{OrderBody, no_order};
use crate::api::error::ApiError;
use crate::job::Retention;
use crate::model::{CommandBody, CommandState, DeviceId, EventType, Order, OrderNo, ServerId};
use crate::protocol::explain::explained;
use crate::protocol::{Direction, Hex};
use crate::store::payload::OrderObject;
use crate::store::{
    DeliveryLogRow, DeliveryOutcome, EventRecord, OrderCommand, OrderHistory, OrderWish, Reader, RequestRecord,
    SettlementRecord, WaitingDelivery,
};
use crate::time::Rfc3339;
use wire::{Part, Told};

/// Frames of an answer.
const FRAMES_MAX: usize = 500;
/// Clocks of two threads, read apart.
const SLACK_MS: i64 = 1_000;
/// A final order's late frames: stops of a charge that goes on, and a settlement that comes with the device.
const LATE_MS: i64 = 24 * 3_600_000;

/// All that is kept of an order.
#[derive(Serialize, ToSchema)]
pub(in crate::api) struct Proof {
    /// The order as it is now.
    #[schema(value_type = OrderObject<'static>)]
    order: OrderBody,
    summary: Summary,
    /// What is missing below, and why.
    gaps: Vec<Gap>,
    /// There is more of something than an answer holds.
    truncated: bool,
    /// By time; at the same millisecond, causes before effects.
    entries: Vec<Entry>,
}

/// The gist of the entries. What did not happen, or is not kept any more, is null.
#[derive(Serialize, ToSchema)]
#[schema(as = ProofSummary)]
struct Summary {
    /// A third party asked for it.
    requested_at: Option<Rfc3339>,
    /// The start was written to the device for the first time.
    sent_at: Option<Rfc3339>,
    /// The device acknowledged it.
    acked_at: Option<Rfc3339>,
    /// The device showed that it charges.
    started_at: Option<Rfc3339>,
    /// The order came to its final status.
    ended_at: Option<Rfc3339>,
    /// The device's end report was stored.
    settled_at: Option<Rfc3339>,
    /// An endpoint answered `order.settled` with 2xx for the first time.
    delivered_at: Option<Rfc3339>,
    /// How often the start was written to the device.
    sends: u32,
}

/// Something the timeline may lack.
#[derive(Serialize, ToSchema)]
#[schema(as = ProofGap)]
struct Gap {
    /// `requests`, `commands`, `frames`, `events` or `deliveries`.
    log: &'static str,
    /// What is older may be missing; null: the text says what is.
    before: Option<Rfc3339>,
    text: String,
}

/// Something that happened, with what it is about under the name of its kind.
#[derive(Serialize, ToSchema)]
#[schema(as = ProofEntry)]
struct Entry {
    at: Rfc3339,
    /// `request`, `command`, `frame`, `settlement`, `event` or `delivery`.
    kind: &'static str,
    /// In words.
    title: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    request: Option<RequestObject>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    command: Option<CommandObject>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    frame: Option<Box<FrameObject>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    settlement: Option<SettlementObject>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    event: Option<EventObject>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    delivery: Option<DeliveryObject>,
    /// Among those of one millisecond: causes before effects.
    #[serde(skip)]
    #[schema(ignore)]
    rank: u8,
}

impl Entry {
    const fn new(at: i64, kind: &'static str, rank: u8, title: String) -> Self {
        let at = Rfc3339(at);
        let (request, command, frame, settlement, event, delivery) = (None, None, None, None, None, None);
        Self { at, kind, title, request, command, frame, settlement, event, delivery, rank }
    }
}

/// A request that the order accepted.
#[derive(Serialize, ToSchema)]
#[schema(as = ProofRequest)]
struct RequestObject {
    /// `create`, `stop` or `cancel`.
    wish: &'static str,
    request_id: String,
    /// Name of the API key.
    api_key: Option<String>,
    idempotency_key: Option<String>,
    client_ip: Option<String>,
    /// That took it.
    instance: Option<ServerId>,
}

/// A row of the command queue.
#[derive(Clone, Serialize, ToSchema)]
#[schema(as = ProofCommand)]
struct CommandObject {
    command_id: i64,
    /// `start` or `stop`.
    command: &'static str,
    /// Which of its steps the entry tells: `queued`, `written` or `ended`.
    step: &'static str,
    /// Of all its frames, also when it is sent again. AP3000 frames carry the lower 16 bits.
    msg_id: u32,
    /// Epoch of the device's binding that it was claimed for last.
    epoch: Option<i64>,
    /// As it is now.
    #[schema(value_type = CommandState)]
    state: String,
    /// Writes.
    attempts: u8,
    reason: Option<String>,
    #[schema(value_type = Option<Object>)]
    result: Option<Value>,
    /// Request that made it.
    request_id: Option<String>,
    /// An instance ended without word of whether it had been written.
    maybe_written: bool,
    /// It is not written later than this.
    not_after: Rfc3339,
}

/// A frame, byte for byte as it came from the socket or was handed to it.
#[derive(Serialize, ToSchema)]
#[schema(as = ProofFrame)]
struct FrameObject {
    /// `up` from the device, `down` to it.
    direction: &'static str,
    /// `start`, `stop`, `reply`, `end_report` or `end_answer`.
    role: &'static str,
    /// The row it is of, or answers.
    command_id: Option<i64>,
    /// Of a command: 1 for the first time it is written, 2 for the second.
    write: Option<u32>,
    /// Of a command that is written again: whether the bytes are those of the first time.
    same_bytes: Option<bool>,
    /// Of a reply: whether it says that the command was done.
    ok: Option<bool>,
    /// As on the wire.
    msg_id: u32,
    /// Length.
    bytes: usize,
    /// Hex.
    raw: String,
    /// What `chargegate decode` says of it.
    explained: Vec<String>,
    /// Epoch of the device's binding under which it came or went.
    epoch: Option<i64>,
    /// That had the connection.
    instance: Option<ServerId>,
}

/// An end report as it is stored.
#[derive(Serialize, ToSchema)]
#[schema(as = ProofSettlement)]
struct SettlementObject {
    settlement_id: i64,
    /// No order was found for it: it was reported for the order's port.
    orphan: bool,
    /// How the order was found for it: `exact`, `recent` or `inferred`; null for an order that the device made.
    #[serde(rename = "match")]
    matched: Option<String>,
    /// The order had been final for more than a minute.
    late: Option<bool>,
    port_no: u16,
    /// The device's number of the charge (BKV/GN).
    business_no: Option<u16>,
    duration_seconds: u32,
    energy_wh: u32,
    /// As the device says.
    amount_cent: Option<u32>,
    /// The frame, hex.
    raw: String,
}

/// An attempt to deliver an event, or what an endpoint still waits for.
#[derive(Serialize, ToSchema)]
#[schema(as = ProofDelivery)]
struct DeliveryObject {
    endpoint: String,
    pos: i64,
    #[schema(value_type = EventType)]
    event_type: String,
    /// From 1; of `parked` and `dead`, how many there were.
    attempt: u32,
    /// HTTP status; null: no answer.
    status: Option<u16>,
    latency_ms: Option<u32>,
    /// `delivered`, `retry` or `dead`; `parked`: the next attempt is still to come.
    outcome: &'static str,
    reason: Option<String>,
    /// Of `parked`: not before this.
    next_at: Option<Rfc3339>,
    instance: Option<ServerId>,
}

/// All that is kept of an order.
pub(super) fn one(order_no: OrderNo, retention: Retention) -> Next {
    let at = now().unix_ms;
    reading(move |reader| {
        let order = reader.order(order_no)?.ok_or_else(|| no_order(order_no))?;
        build(order, reader, &retention, at)
    })
}

fn build(order: Order, reader: &mut dyn Reader, retention: &Retention, at: i64) -> Result<Proof, ApiError> {
    let between = window(&order);
    let mut history = reader.order_history(&order, between)?;
    let mut frames = Vec::new();
    let mut truncated = history.requests.len() >= OrderHistory::ROWS_MAX
        || history.commands.len() >= OrderHistory::ROWS_MAX
        || history.deliveries.len() >= OrderHistory::ROWS_MAX;
    for filter in wire::filters(&order, &history.commands, between) {
        let found = reader.frames(&filter)?;
        truncated |= wire::is_cut(&found);
        frames.extend(found);
    }
    frames.sort_by_key(|frame| (frame.at, frame.id));
    let mut told = wire::of_order(&order, &history.commands, &history.settlements, frames);
    truncated |= told.len() > FRAMES_MAX;
    told.truncate(FRAMES_MAX);

    let gaps = gaps(&order, &history, &told, retention, at);
    let summary = summary(&order, &history, &told);
    let late = late(&history.events);
    let events = std::mem::take(&mut history.events);
    let mut entries: Vec<Entry> = Vec::new();
    entries.extend(history.requests.into_iter().map(request));
    entries.extend(history.commands.iter().flat_map(command));
    entries.extend(told.into_iter().map(|told| frame(told, order.device_id, &history.commands)));
    entries.extend(history.settlements.into_iter().map(|row| settlement(row, &order, late)));
    entries.extend(history.waiting.iter().filter_map(|row| waiting(row, &events, &history.deliveries)));
    entries.extend(history.deliveries.into_iter().map(delivery));
    for record in events {
        entries.push(event(record)?);
    }
    entries.sort_by_key(|entry| (entry.at, entry.rank));
    Ok(Proof { order: OrderBody(order), summary, gaps, truncated, entries })
}

/// When frames of the order may have been on the wire.
fn window(order: &Order) -> (i64, i64) {
    let from = order.created_at - SLACK_MS;
    let ended = order.end_time.max(order.settled_at).filter(|_| order.status.is_final() && !order.device_end_pending);
    (from, ended.map_or(i64::MAX, |ended| ended + LATE_MS))
}

/// Whether the settlement came late, as its event says.
fn late(events: &[EventRecord]) -> Option<bool> {
    let settled = events.iter().find(|event| event.event_type == EventType::OrderSettled.as_str())?;
    serde_json::from_str::<Value>(&settled.data).ok()?.get("late")?.as_bool()
}

fn summary(order: &Order, history: &OrderHistory, told: &[Told]) -> Summary {
    let is_start = |command: usize| history.commands.get(command).is_some_and(wire::is_start);
    let sent = |told: &&Told| matches!(told.part, Part::Command { command, .. } if is_start(command));
    let acked =
        |told: &&Told| matches!(told.part, Part::Reply { command: Some(command), ok: true, .. } if is_start(command));
    let first = |which: &dyn Fn(&&Told) -> bool| told.iter().find(which).map(|told| told.frame.at);
    let event = |wanted: EventType| history.events.iter().find(|event| event.event_type == wanted.as_str());
    let requested = history.requests.iter().find(|request| request.wish == OrderWish::Create).map(|request| request.at);
    let delivered = history.deliveries.iter().find(|delivery| {
        delivery.event_type == EventType::OrderSettled.as_str() && delivery.outcome == DeliveryOutcome::Delivered
    });
    let starts = history.commands.iter().filter(|command| wire::is_start(command));
    // Frames may be gone, or lost; the row counts too, but learns of a second write with the answer.
    let counted = starts.map(|start| u32::from(start.record.attempts)).sum();
    let seen = u32::try_from(told.iter().filter(sent).count()).unwrap_or(u32::MAX);
    Summary {
        requested_at: requested.or_else(|| order.request_id.as_ref().map(|_| order.created_at)).map(Rfc3339),
        sent_at: first(&sent).or(order.start_written_at).map(Rfc3339),
        acked_at: first(&acked).or_else(|| event(EventType::OrderConfirmed).map(|event| event.at)).map(Rfc3339),
        started_at: order.start_time.map(Rfc3339),
        ended_at: order.end_time.map(Rfc3339),
        settled_at: order.settled_at.map(Rfc3339),
        delivered_at: delivered.map(|delivery| Rfc3339(delivery.at)),
        sends: seen.max(counted),
    }
}

fn gaps(order: &Order, history: &OrderHistory, told: &[Told], retention: &Retention, at: i64) -> Vec<Gap> {
    let mut gaps = Vec::new();
    let mut kept_from = |log, what: &str, age: std::time::Duration| {
        let before = at.saturating_sub(i64::try_from(age.as_millis()).unwrap_or(i64::MAX));
        let cut = order.created_at < before;
        if cut {
            let text = format!("{what} are deleted after {} h", age.as_secs() / 3600);
            gaps.push(Gap { log, before: Some(Rfc3339(before)), text });
        }
        cut
    };
    kept_from("commands", "commands that came to an end", retention.commands);
    let frames_cut = kept_from("frames", "frames", retention.command_log);
    kept_from("events", "events", retention.events);
    kept_from("deliveries", "attempts to deliver events", retention.delivery_log);
    if order.request_id.is_some() && !history.requests.iter().any(|request| request.wish == OrderWish::Create) {
        let text = "the request that made the order was not kept: requests are since a newer version".to_owned();
        gaps.push(Gap { log: "requests", before: None, text });
    }
    if frames_cut {
        return gaps;
    }
    for (index, command) in history.commands.iter().enumerate() {
        let seen = told.iter().any(|told| matches!(told.part, Part::Command { command, .. } if command == index));
        if command.record.written_at.is_some() && !seen {
            let text = format!("the frame of {} is not in the log, {LOSSY}", named(command));
            gaps.push(Gap { log: "frames", before: None, text });
        }
    }
    let reported = told.iter().any(|told| matches!(told.part, Part::EndReport { .. }));
    if order.settled_at.is_some() && !reported {
        let text = format!("the end report is not in the log, {LOSSY}; the settlement has its bytes");
        gaps.push(Gap { log: "frames", before: None, text });
    }
    gaps
}

/// Why a frame may not be in the log although it was on the wire.
const LOSSY: &str = "which is written a moment behind and may lose its last seconds in a crash";

fn named(command: &OrderCommand) -> String {
    format!("{} command {}", command.record.body.as_str(), command.record.id)
}

fn request(request: RequestRecord) -> Entry {
    let what = match request.wish {
        OrderWish::Create => "charge",
        OrderWish::Stop => "stop",
        OrderWish::Cancel => "cancellation",
    };
    let by = request.api_key.as_ref().map_or_else(|| "somebody".to_owned(), |name| format!("key {name}"));
    let once = request.idempotency_key.as_ref().map_or_else(String::new, |key| format!(", idempotency key {key}"));
    let title = format!("{what} requested by {by}, request {}{once}", request.request_id);
    let object = RequestObject {
        wish: request.wish.as_str(),
        request_id: request.request_id,
        api_key: request.api_key,
        idempotency_key: request.idempotency_key,
        client_ip: request.client_ip,
        instance: request.instance,
    };
    Entry { request: Some(object), ..Entry::new(request.at, "request", 0, title) }
}

/// A command's steps: queued, written for the first time, ended.
fn command(command: &OrderCommand) -> impl Iterator<Item = Entry> {
    let record = &command.record;
    let name = named(command);
    let object = CommandObject {
        command_id: record.id,
        command: record.body.as_str(),
        step: "queued",
        msg_id: command.msg_id,
        epoch: command.epoch,
        state: record.state.clone(),
        attempts: record.attempts,
        reason: record.reason.clone(),
        result: record.result.as_deref().and_then(|result| serde_json::from_str(result).ok()),
        request_id: record.request_id.clone(),
        maybe_written: command.maybe_written,
        not_after: Rfc3339(record.not_after),
    };
    let entry = |at, step, rank, title| Entry {
        command: Some(CommandObject { step, ..object.clone() }),
        ..Entry::new(at, "command", rank, title)
    };
    let queued = entry(record.created_at, "queued", 1, format!("{name} queued"));
    let written = record.written_at.map(|at| entry(at, "written", 3, format!("{name} written to the device")));
    let why = record.reason.as_ref().map_or_else(String::new, |reason| format!(": {reason}"));
    let became = match CommandState::from_word(&record.state) {
        Some(CommandState::Acked) => Some("done".to_owned()),
        Some(CommandState::Refused) => Some(format!("refused by the device{why}")),
        Some(CommandState::Expired) => Some(format!("expired{why}")),
        Some(CommandState::Withdrawn) => Some(format!("withdrawn{why}")),
        Some(CommandState::Dead) => Some(format!("given up{why}")),
        Some(CommandState::Queued | CommandState::Claimed | CommandState::Written) | None => None,
    };
    let ended = became.map(|became| entry(record.updated_at, "ended", 5, format!("{name} {became}")));
    [Some(queued), written, ended].into_iter().flatten()
}

fn frame(told: Told, device_id: DeviceId, commands: &[OrderCommand]) -> Entry {
    let Told { frame, msg_id, part } = told;
    let direction = if frame.up { Direction::Up } else { Direction::Down };
    let shown_id = match device_id {
        DeviceId::Ap3000(_) => format!("0x{msg_id:04x}"),
        DeviceId::Gateway(_) => format!("0x{msg_id:08x}"),
    };
    let bytes = frame.raw.len();
    let row = |index: usize| commands.get(index);
    let (mut write, mut same, mut done, mut command_id) = (None, None, None, None);
    let (role, rank, title) = match part {
        Part::Command { command, write: nth, same_bytes } => {
            let (is_stop, name) = row(command).map_or_else(Default::default, |row| {
                command_id = Some(row.record.id);
                (matches!(row.record.body, CommandBody::Stop { .. }), named(row))
            });
            write = Some(nth);
            same = (nth > 1).then_some(same_bytes);
            let how = match (nth, same_bytes) {
                (1, _) => "sent to the device".to_owned(),
                (_, true) => format!("sent to the device again, the same bytes, write {nth}"),
                (_, false) => format!("sent to the device again, other bytes, write {nth}"),
            };
            (if is_stop { "stop" } else { "start" }, 2, format!("{name}: message {shown_id}, {bytes} bytes, {how}"))
        }
        Part::OwnStop => ("stop", 2, format!("stop by the gateway itself: message {shown_id} sent to the device")),
        Part::Reply { command, ok, said, code } => {
            command_id = command.and_then(row).map(|row| row.record.id);
            done = Some(ok);
            let title = if ok {
                format!("device acknowledged message {shown_id} with '{said}'")
            } else {
                format!("device refused message {shown_id} with '{said}' (code {code})")
            };
            ("reply", 4, title)
        }
        Part::EndReport { again } => {
            let again = if again { ", once more" } else { "" };
            ("end_report", 4, format!("device reported the end of the charge{again}"))
        }
        Part::EndAnswer => ("end_answer", 8, "gateway told the device that its end report is stored".to_owned()),
    };
    let object = FrameObject {
        direction: direction.as_str(),
        role,
        command_id,
        write,
        same_bytes: same,
        ok: done,
        msg_id,
        bytes,
        raw: Hex(&*frame.raw).to_string(),
        explained: explained(&frame.raw, direction),
        epoch: frame.epoch,
        instance: frame.instance,
    };
    Entry { frame: Some(Box::new(object)), ..Entry::new(frame.at, "frame", rank, title) }
}

fn settlement(row: SettlementRecord, order: &Order, late: Option<bool>) -> Entry {
    let orphan = row.order_no.is_none();
    let matched = order.settlement_match.clone().filter(|_| !orphan);
    let (duration, energy) = (row.duration_seconds, row.energy_wh);
    let title = if orphan {
        format!("settlement stored for this port, without an order: {duration} s, {energy} Wh")
    } else {
        let how = matched.as_ref().map_or_else(String::new, |how| format!(", match {how}"));
        format!("settlement stored: {duration} s, {energy} Wh{how}")
    };
    let object = SettlementObject {
        settlement_id: row.id,
        orphan,
        matched,
        late: late.filter(|_| !orphan),
        port_no: row.port_no,
        business_no: row.business_no,
        duration_seconds: duration,
        energy_wh: energy,
        amount_cent: row.amount_cent,
        raw: Hex(&*row.raw).to_string(),
    };
    Entry { settlement: Some(object), ..Entry::new(row.at, "settlement", 6, title) }
}

fn event(record: EventRecord) -> Result<Entry, ApiError> {
    let (at, title) = (record.at, format!("event {}, number {}", record.event_type, record.sequence_no));
    Ok(Entry { event: Some(EventObject::try_from(record)?), ..Entry::new(at, "event", 7, title) })
}

fn delivery(row: DeliveryLogRow) -> Entry {
    let status = row.status.map(|status| status.to_string());
    let what = status.or_else(|| row.reason.clone()).unwrap_or_else(|| row.outcome.as_str().to_owned());
    let then = match row.outcome {
        DeliveryOutcome::Retry => ", to be tried again",
        DeliveryOutcome::Dead => ", given up",
        DeliveryOutcome::Delivered => "",
    };
    let title = format!("webhook {}: {what} in {} ms for {}{then}", row.endpoint, row.took_ms, row.event_type);
    let object = DeliveryObject {
        endpoint: row.endpoint.to_string(),
        pos: row.pos,
        event_type: row.event_type,
        attempt: row.attempt.into(),
        status: row.status,
        latency_ms: Some(row.took_ms),
        outcome: row.outcome.as_str(),
        reason: row.reason,
        next_at: None,
        instance: row.instance,
    };
    Entry { delivery: Some(object), ..Entry::new(row.at, "delivery", 9, title) }
}

/// What an endpoint does not have, at the time of the last attempt; `None`: the attempts say it already.
fn waiting(row: &WaitingDelivery, events: &[EventRecord], deliveries: &[DeliveryLogRow]) -> Option<Entry> {
    let event = events.iter().find(|event| event.pos == row.pos)?;
    let of_it = |delivery: &&DeliveryLogRow| delivery.pos == row.pos && *delivery.endpoint == *row.endpoint;
    let last = deliveries.iter().rfind(of_it);
    if row.dead && last.is_some_and(|last| last.outcome == DeliveryOutcome::Dead) {
        return None;
    }
    let (outcome, what) = if row.dead {
        ("dead", format!("given up after {} attempts: {}", row.attempts, row.reason))
    } else if row.attempts == 0 {
        ("parked", format!("waits behind an earlier event: {}", row.reason))
    } else {
        ("parked", format!("waits for its next attempt after {}: {}", row.attempts, row.reason))
    };
    let title = format!("webhook {}: {} {what}", row.endpoint, event.event_type);
    let object = DeliveryObject {
        endpoint: row.endpoint.clone(),
        pos: row.pos,
        event_type: event.event_type.clone(),
        attempt: row.attempts,
        status: None,
        latency_ms: None,
        outcome,
        reason: Some(row.reason.clone()),
        next_at: (!row.dead).then_some(Rfc3339(row.next_at)),
        instance: None,
    };
    let at = last.map_or(event.at, |last| last.at);
    Some(Entry { delivery: Some(object), ..Entry::new(at, "delivery", 10, title) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const DAY: Duration = Duration::from_secs(86_400);
    const KEPT: Retention = Retention { events: DAY, commands: DAY, answers: DAY, command_log: DAY, delivery_log: DAY };
    const CREATED: i64 = 1_800_000_000_000;

    fn order() -> Order {
        let order_no = OrderNo::parse("THD6H0BG6NY8TR00").unwrap();
        Order { request_id: Some("r".to_owned()), ..Order::pending(order_no, "40aace04".parse().unwrap(), 1, CREATED) }
    }

    fn logs(order: &Order, history: &OrderHistory, at: i64) -> Vec<&'static str> {
        gaps(order, history, &[], &KEPT, at).into_iter().map(|gap| gap.log).collect()
    }

    #[test]
    fn what_is_deleted_or_was_never_kept_is_said() {
        let asked = RequestRecord {
            wish: OrderWish::Create,
            request_id: "r".to_owned(),
            api_key: None,
            idempotency_key: None,
            client_ip: None,
            instance: None,
            at: CREATED,
        };
        let history = OrderHistory { requests: vec![asked], ..OrderHistory::default() };
        let day = 86_400_000;
        assert!(logs(&order(), &history, CREATED + day).is_empty());
        let old = gaps(&order(), &history, &[], &KEPT, CREATED + day + 1);
        assert_eq!(old.iter().map(|gap| gap.log).collect::<Vec<_>>(), ["commands", "frames", "events", "deliveries"]);
        assert!(old.iter().all(|gap| gap.before == Some(Rfc3339(CREATED + 1))));
        assert_eq!(logs(&order(), &OrderHistory::default(), CREATED), ["requests"]);
        // A card's order was asked for by nobody.
        assert!(logs(&Order { request_id: None, ..order() }, &OrderHistory::default(), CREATED).is_empty());
        let settled = Order { settled_at: Some(CREATED), ..order() };
        assert_eq!(logs(&settled, &history, CREATED), ["frames"], "its report is not in the log");
    }

    #[test]
    fn frames_are_looked_for_until_a_day_behind_the_end() {
        let pending = order();
        assert_eq!(window(&pending), (CREATED - SLACK_MS, i64::MAX));
        let status = crate::model::OrderStatus::Completed;
        let ended = Order { status, end_time: Some(CREATED + 5), settled_at: Some(CREATED + 9), ..order() };
        assert_eq!(window(&ended).1, CREATED + 9 + LATE_MS);
        assert_eq!(window(&Order { device_end_pending: true, ..ended }).1, i64::MAX);
    }
}
