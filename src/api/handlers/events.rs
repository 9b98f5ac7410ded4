//! `/events` and `/orders/{no}/events`: the log that webhooks are delivered from.

use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

use super::List;
use super::call::{Next, reading};
use super::orders::no_order;
use crate::api::error::{ApiError, ErrorCode};
use crate::api::route::Query;
use crate::model::{DeviceId, EventType, OrderNo};
use crate::store::EventRecord;
use crate::time::Rfc3339;

/// Events of one answer where `limit` is left out, and at most.
const LIMIT: u32 = 100;
const LIMIT_MAX: u32 = 500;

/// An event as a webhook carries it, without the nonce of a delivery.
#[derive(Serialize, ToSchema)]
#[schema(as = Event)]
pub(in crate::api) struct EventObject {
    /// Stable over retries: recognise repetitions by it.
    event_id: String,
    #[schema(value_type = EventType)]
    event_type: String,
    #[schema(value_type = Option<DeviceId>)]
    device_phy_id: Option<String>,
    #[schema(value_type = Option<OrderNo>)]
    order_no: Option<String>,
    /// Counts the events of an order, device or card from 1; 0 for heartbeat and progress.
    sequence_no: u32,
    /// Position in the log, rising.
    pos: i64,
    /// When it happened.
    timestamp: Rfc3339,
    /// What the event is about; its shape is that of the webhook of this type.
    #[schema(value_type = Object)]
    data: Value,
}

impl TryFrom<EventRecord> for EventObject {
    type Error = ApiError;

    fn try_from(event: EventRecord) -> Result<Self, ApiError> {
        let data = serde_json::from_str(&event.data).map_err(|error| {
            log::error!(event_id = event.event_id.as_str(); "stored event is not JSON: {error}");
            ApiError::new(ErrorCode::Internal, format!("event at {} cannot be read", event.pos))
        })?;
        Ok(Self {
            event_id: event.event_id,
            event_type: event.event_type,
            device_phy_id: event.device_id,
            order_no: event.order_no,
            sequence_no: event.sequence_no,
            pos: event.pos,
            timestamp: Rfc3339(event.at),
            data,
        })
    }
}

fn objects(events: impl IntoIterator<Item = EventRecord>) -> Result<Vec<EventObject>, ApiError> {
    events.into_iter().map(EventObject::try_from).collect()
}

/// A piece of the log.
#[derive(Serialize, ToSchema)]
#[schema(as = EventLog)]
pub(in crate::api) struct Log {
    items: Vec<EventObject>,
    /// `after` of the next request: the last position given, or the one asked for where nothing followed.
    next_after: i64,
}

/// Events behind a position.
pub(super) fn log(query: &Query<'_>) -> Result<Next, ApiError> {
    let after: i64 = query.parsed("after", "a position from 0")?.unwrap_or(0);
    if after < 0 {
        return Err(ApiError::invalid(format!("after must be a position from 0, got {after}")));
    }
    let limit: u32 = query.parsed("limit", "a number in 1..=500")?.unwrap_or(LIMIT);
    if !(1..=LIMIT_MAX).contains(&limit) {
        return Err(ApiError::invalid(format!("limit must be in 1..={LIMIT_MAX}, got {limit}")));
    }
    Ok(reading(move |reader| {
        let items = objects(reader.events_after(after, limit)?)?;
        let next_after = items.last().map_or(after, |event| event.pos);
        Ok(Log { items, next_after })
    }))
}

/// Events of one order in their sequence.
pub(super) fn of_order(order_no: OrderNo, query: &Query<'_>) -> Result<Next, ApiError> {
    let page = query.page()?;
    Ok(reading(move |reader| {
        let events = reader.order_events(order_no)?;
        if events.is_empty() && reader.order(order_no)?.is_none() {
            return Err(no_order(order_no));
        }
        let total = events.len() as u64;
        let skipped = (page.page as usize - 1).saturating_mul(page.size as usize);
        let items = objects(events.into_iter().skip(skipped).take(page.size as usize))?;
        Ok(List::new(items, total, page))
    }))
}
