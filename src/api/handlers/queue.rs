//! `/admin/queue`: commands on their way to devices, over all instances, and how many wait here.

use serde::Serialize;
use utoipa::ToSchema;

use super::body;
use super::call::{Next, read};
use super::{Api, List};
use crate::api::error::ApiError;
use crate::api::route::Query;
use crate::model::{CommandState, DeviceId, OrderNo, Priority};
use crate::store::{QueueCounts, QueueEntry, QueueFilter};
use crate::time::Rfc3339;

/// The states of a command, in the order it takes them.
const STATES: &str = "queued, claimed, written, acked, refused, expired, withdrawn, dead";

/// Commands on their way to devices.
#[derive(Serialize, ToSchema)]
pub(crate) struct QueueBody {
    by_priority: ByPriority,
    by_state: ByState,
    commands: List<QueueCommand>,
}

/// Commands that wait on this instance to be written, by priority: what the refusal of further ones goes by.
#[derive(Serialize, ToSchema)]
pub(crate) struct ByPriority {
    /// The gateway's own, for safety.
    emergency: u64,
    /// Stops and cancellations.
    high: u64,
    /// Starts.
    normal: u64,
    /// Questions and parameters.
    low: u64,
    /// Statistics and firmware.
    idle: u64,
}

impl ByPriority {
    fn of(api: &Api) -> Self {
        let waiting = |priority| api.metrics.commands_waiting_of(priority);
        Self {
            emergency: waiting(Priority::Emergency),
            high: waiting(Priority::High),
            normal: waiting(Priority::Normal),
            low: waiting(Priority::Low),
            idle: waiting(Priority::Idle),
        }
    }
}

/// Commands that have not ended, over all instances.
#[derive(Serialize, ToSchema)]
pub(crate) struct ByState {
    /// No instance has them: their device is away, or their instance is about to learn of them.
    queued: u64,
    /// The instance that has the device has them, and has not written them.
    claimed: u64,
    /// Written to the device, which has not answered.
    written: u64,
}

impl From<QueueCounts> for ByState {
    fn from(QueueCounts { queued, claimed, written }: QueueCounts) -> Self {
        Self { queued, claimed, written }
    }
}

/// A command with what its delivery is about.
#[derive(Serialize, ToSchema)]
pub(crate) struct QueueCommand {
    command_id: i64,
    device_id: DeviceId,
    order_no: Option<OrderNo>,
    /// `start`, `stop`, or the name of the command.
    kind: &'static str,
    port_no: Option<u16>,
    /// 0 goes first, 9 last.
    priority: u8,
    /// `queued`, `claimed`, `written`; ended: `acked`, `refused`, `expired`, `withdrawn`, `dead`.
    #[schema(value_type = CommandState)]
    state: String,
    /// Times it was written.
    attempts: u8,
    attempts_max: u8,
    /// Message id or sequence on the wire: what the device answers with.
    msg_id: u32,
    /// The binding it was claimed for last; `null`: never claimed, so never written.
    epoch: Option<i64>,
    /// An earlier binding may have written it.
    maybe_written: bool,
    /// Why it ended so.
    reason: Option<String>,
    request_id: Option<String>,
    created_at: Rfc3339,
    not_before: Rfc3339,
    not_after: Rfc3339,
    written_at: Option<Rfc3339>,
    updated_at: Rfc3339,
}

impl From<QueueEntry> for QueueCommand {
    fn from(entry: QueueEntry) -> Self {
        let command = entry.command;
        Self {
            command_id: command.id,
            device_id: command.device_id,
            order_no: command.order_no,
            kind: command.body.as_str(),
            port_no: Some(command.body.port_no()).filter(|port_no| *port_no > 0),
            priority: entry.priority.code(),
            state: command.state,
            attempts: command.attempts,
            attempts_max: entry.attempts_max,
            msg_id: entry.msg_id,
            epoch: entry.epoch,
            maybe_written: entry.maybe_written,
            reason: command.reason,
            request_id: command.request_id,
            created_at: Rfc3339(command.created_at),
            not_before: Rfc3339(entry.not_before),
            not_after: Rfc3339(command.not_after),
            written_at: command.written_at.map(Rfc3339),
            updated_at: Rfc3339(command.updated_at),
        }
    }
}

/// A page of commands, newest first: those that have not ended, or those in one state.
pub(super) fn list(query: &Query<'_>) -> Result<Next, ApiError> {
    let page = query.page()?;
    let state = query.value("state").map(|word| {
        let unknown = || ApiError::invalid(format!("state must be one of {STATES}, got {word:?}"));
        CommandState::from_word(word).ok_or_else(unknown)
    });
    let device_id = query.value("device_id").map(|id| body::device_id("device_id", id));
    let filter = QueueFilter { device_id: device_id.transpose()?, state: state.transpose()? };
    Ok(Box::new(move |call| {
        read(call, move |call, reader| {
            let found =
                reader.and_then(|reader| Ok((reader.queue_counts()?, reader.queue(&filter, page.page, page.size)?)));
            match found {
                Ok((counts, found)) => {
                    let items = found.rows.into_iter().map(QueueCommand::from).collect();
                    let commands = List::new(items, found.total, page);
                    let body = QueueBody { by_priority: ByPriority::of(call.api()), by_state: counts.into(), commands };
                    call.success(200, &body);
                }
                Err(error) => call.error(&error),
            }
        });
    }))
}
