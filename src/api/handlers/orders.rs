//! `/orders` and `/order/…`: stop, cancel, and what became of an order.

use std::sync::Arc;

use serde::{Serialize, Serializer};
use serde_json::json;
use utoipa::ToSchema;

use super::body::{self, Fields};
use super::call::{Call, Next, not_done, read, reading, submit};
use super::charge::no_port;
use super::{Api, List, no_device, now};
use crate::api::error::{ApiError, ErrorCode};
use crate::api::message::Request;
use crate::api::route::Query;
use crate::gateway::order::{Event, Verdict};
use crate::model::{DeviceId, Order, OrderNo, OrderStatus};
use crate::store::payload::OrderObject;
use crate::store::{Job, OrderFilter, OrderJob, OrderKey, OrderOutcome, Outcome};

/// An order as third parties read it.
pub(super) struct OrderBody(pub(super) Order);

impl Serialize for OrderBody {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        OrderObject::from(&self.0).serialize(serializer)
    }
}

pub(super) fn no_order(order_no: OrderNo) -> ApiError {
    ApiError::new(ErrorCode::OrderNotFound, format!("there is no order {order_no}"))
}

/// What a third party asks of a running order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wish {
    Stop,
    Cancel,
}

impl Wish {
    const fn event(self) -> Event {
        match self {
            Self::Stop => Event::Stop,
            Self::Cancel => Event::Cancel,
        }
    }

    const fn as_str(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Cancel => "cancel",
        }
    }

    const fn participle(self) -> &'static str {
        match self {
            Self::Stop => "stopped",
            Self::Cancel => "cancelled",
        }
    }
}

/// The body of `/order/stop` and `/order/cancel`: an order, by its number or by what it runs on. All that is given must agree.
#[derive(ToSchema)]
#[expect(dead_code, reason = "a schema: the body is read field by field")]
pub(in crate::api) struct OrderRequest {
    /// The order; or give `device_id` and `port_no`.
    order_no: Option<OrderNo>,
    /// The device.
    device_id: Option<DeviceId>,
    /// Its port, from 1.
    #[schema(minimum = 1)]
    port_no: Option<u16>,
}

/// The body of `/devices/{device}/stop`.
#[derive(ToSchema)]
#[expect(dead_code, reason = "a schema: the body is read field by field")]
pub(in crate::api) struct StopRequest {
    /// The port, from 1.
    #[schema(minimum = 1)]
    port_no: u16,
}

/// How a request names an order.
#[derive(Clone, Copy, Debug)]
enum Target {
    /// By its number, and, if given too, the device and port it must be on.
    Order { order_no: OrderNo, device_id: Option<DeviceId>, port_no: Option<u16> },
    /// Whatever runs there.
    Port { device_id: DeviceId, port_no: u16 },
}

impl Target {
    fn new(order_no: Option<OrderNo>, device_id: Option<DeviceId>, port_no: Option<u16>) -> Result<Self, ApiError> {
        match (order_no, device_id, port_no) {
            (Some(order_no), ..) => Ok(Self::Order { order_no, device_id, port_no }),
            (None, Some(device_id), Some(port_no)) => Ok(Self::Port { device_id, port_no }),
            (None, Some(_), None) => Err(ApiError::invalid("port_no is missing: give it, or order_no")),
            (None, None, Some(_)) => Err(ApiError::invalid("device_id is missing: give it, or order_no")),
            (None, None, None) => Err(ApiError::invalid("order_no is missing: give it, or device_id and port_no")),
        }
    }

    /// Reads an [`OrderRequest`].
    fn of_body(request: &Request) -> Result<Self, ApiError> {
        let mut fields = Fields::of(request)?;
        let target = Self::new(fields.order_no()?, fields.device_id()?, fields.port_no()?)?;
        fields.finish(&["order_no", "device_id", "port_no"])?;
        Ok(target)
    }
}

/// Stops what runs on a port.
pub(super) fn stop_port(api: &Arc<Api>, device_id: DeviceId, request: &Request) -> Result<Next, ApiError> {
    let mut fields = Fields::of(request)?;
    let port_no = fields.port_no()?;
    let port_no = fields.required("port_no", port_no)?;
    fields.finish(&["port_no"])?;
    Ok(change(api, Target::Port { device_id, port_no }, Wish::Stop))
}

/// Stops the order that the body names.
pub(super) fn stop_by_body(api: &Arc<Api>, request: &Request) -> Result<Next, ApiError> {
    Ok(change(api, Target::of_body(request)?, Wish::Stop))
}

/// Cancels the order that the body names.
pub(super) fn cancel_by_body(api: &Arc<Api>, request: &Request) -> Result<Next, ApiError> {
    Ok(change(api, Target::of_body(request)?, Wish::Cancel))
}

/// Stops an order.
pub(super) fn stop(api: &Arc<Api>, order_no: OrderNo, request: &Request) -> Result<Next, ApiError> {
    Fields::none(request)?;
    Ok(change(api, Target::Order { order_no, device_id: None, port_no: None }, Wish::Stop))
}

/// Cancels an order.
pub(super) fn cancel(api: &Arc<Api>, order_no: OrderNo, request: &Request) -> Result<Next, ApiError> {
    Fields::none(request)?;
    Ok(change(api, Target::Order { order_no, device_id: None, port_no: None }, Wish::Cancel))
}

/// Lets the order's own rules decide on a wish. Never refused for overload: it is what relieves it.
fn change(api: &Arc<Api>, target: Target, wish: Wish) -> Next {
    let api = Arc::clone(api);
    let Target::Order { order_no, device_id, port_no } = target else {
        return Box::new(move |call| submit_change(&api, call, target, wish));
    };
    // The order tells its device, and so the epoch under which the command is claimed by the commit that makes it; without one
    // it would be claimed by a second. An order never changes its place, so reading first is no race.
    Box::new(move |call| {
        read(call, move |call, reader| {
            match reader.and_then(|reader| reader.order(order_no).map_err(ApiError::from)) {
                Ok(Some(order))
                    if device_id.is_none_or(|id| id == order.device_id)
                        && port_no.is_none_or(|port_no| port_no == order.port_no) =>
                {
                    let target = Target::Order { order_no, device_id: Some(order.device_id), port_no: None };
                    submit_change(&api, call, target, wish);
                }
                Ok(_) => call.error(&elsewhere(order_no, device_id, port_no)),
                // The device of a job is checked with it, a port is not.
                Err(error) if port_no.is_some() => call.error(&error),
                Err(_) => submit_change(&api, call, target, wish),
            }
        });
    })
}

fn submit_change(api: &Api, call: Call, target: Target, wish: Wish) {
    let (order, device_id) = match target {
        Target::Order { order_no, device_id, .. } => (OrderKey::No(order_no), device_id),
        Target::Port { device_id, port_no } => (OrderKey::ActiveOn(device_id, port_no), Some(device_id)),
    };
    let live = device_id.and_then(|id| api.whereabouts.here(id));
    let at = now().unix_ms;
    let job = OrderJob {
        order,
        event: wish.event(),
        device_id,
        epoch: live.and_then(|live| live.live_epoch()),
        fence: None,
        business_no: None,
        reason: None,
        at,
        request_id: Some(call.request_id().to_owned()),
        requester: call.requester(),
        idempotency: call.idempotency().cloned(),
    };
    submit(call, Job::Order(Box::new(job)), move |call, outcome| match outcome {
        Outcome::Order(outcome) => answer(call, target, wish, at, &outcome),
        other => call.error(&not_done(&other)),
    });
}

fn answer(call: Call, target: Target, wish: Wish, at: i64, outcome: &OrderOutcome) {
    let Some(order) = &outcome.order else { return answer_none(call, target) };
    match outcome.verdict {
        Verdict::Step(_) | Verdict::Unchanged => {
            log::info!(
                order_no:% = order.order_no, device_id:% = order.device_id, port_no = order.port_no,
                status = order.status.as_str(), request_id = call.request_id();
                "order {} accepted", wish.as_str()
            );
            call.accepted(order, at);
        }
        Verdict::Refused => {
            let (order_no, status) = (order.order_no, order.status.as_str());
            let message = format!("order {order_no} is {status} and cannot be {}", wish.participle());
            let data = json!({"order_no": order_no, "status": order.status.code(), "status_text": status});
            call.error(&ApiError::new(ErrorCode::OrderState, message).with_data(data));
        }
    }
}

/// Says what it is that is not there: the order, the port or the device.
fn answer_none(call: Call, target: Target) {
    let (device_id, port_no) = match target {
        Target::Order { order_no, device_id, port_no } => {
            return call.error(&elsewhere(order_no, device_id, port_no));
        }
        Target::Port { device_id, port_no } => (device_id, port_no),
    };
    // What is stored is answer enough where the mirror gives none: a stop depends on nothing but the store.
    let api = Arc::clone(call.api());
    api.whereabouts.find(device_id, move |live| match live.ok().flatten() {
        Some(live) if live.port(port_no).is_none() => call.error(&no_port(device_id, port_no)),
        Some(_) => call.error(&nothing_runs(device_id, port_no)),
        None => read(call, move |call, reader| {
            let error = match reader.and_then(|reader| reader.device(device_id).map_err(ApiError::from)) {
                Ok(Some(_)) => nothing_runs(device_id, port_no),
                Ok(None) => no_device(device_id),
                Err(error) => error,
            };
            call.error(&error);
        }),
    });
}

fn nothing_runs(device_id: DeviceId, port_no: u16) -> ApiError {
    ApiError::new(ErrorCode::OrderNotFound, format!("nothing runs on port {port_no} of {device_id}"))
}

/// There is no such order, or it is not where the request says.
fn elsewhere(order_no: OrderNo, device_id: Option<DeviceId>, port_no: Option<u16>) -> ApiError {
    let place = match (device_id, port_no) {
        (Some(device_id), Some(port_no)) => format!(" on port {port_no} of {device_id}"),
        (Some(device_id), None) => format!(" on device {device_id}"),
        (None, Some(port_no)) => format!(" on a port {port_no}"),
        (None, None) => return no_order(order_no),
    };
    ApiError::new(ErrorCode::OrderNotFound, format!("there is no order {order_no}{place}"))
}

/// One order.
pub(super) fn one(order_no: OrderNo) -> Next {
    reading(move |reader| reader.order(order_no)?.map(OrderBody).ok_or_else(|| no_order(order_no)))
}

/// The order with a number, or the active one of a port.
pub(super) fn query(query: &Query<'_>) -> Result<Next, ApiError> {
    let order_no = query.value("order_no").map(|text| body::order_no("order_no", text)).transpose()?;
    let filter = place(query)?;
    Ok(match Target::new(order_no, filter.device_id, filter.port_no)? {
        Target::Order { order_no, device_id, port_no } => reading(move |reader| {
            let here = |order: &Order| {
                device_id.is_none_or(|id| id == order.device_id) && port_no.is_none_or(|no| no == order.port_no)
            };
            let order = reader.order(order_no)?.filter(here);
            order.map(OrderBody).ok_or_else(|| elsewhere(order_no, device_id, port_no))
        }),
        Target::Port { device_id, port_no } => reading(move |reader| {
            let active = reader.active_orders(device_id)?;
            match active.into_iter().find(|order| order.port_no == port_no) {
                Some(order) => Ok(OrderBody(order)),
                None if reader.device(device_id)?.is_none() => Err(no_device(device_id)),
                None => Err(nothing_runs(device_id, port_no)),
            }
        }),
    })
}

/// A page of orders, newest first; of those created in the same millisecond, by number.
pub(super) fn list(query: &Query<'_>) -> Result<Next, ApiError> {
    let page = query.page()?;
    let mut filter = place(query)?;
    filter.status = query.value("status").map(status).transpose()?;
    filter.business_no = query.parsed("business_no", "a number in 0..=65535")?;
    filter.created_from = query.time("created_from")?;
    filter.created_to = query.time("created_to")?;
    Ok(reading(move |reader| {
        let found = reader.orders(&filter, page.page, page.size)?;
        Ok(List::new(found.rows.into_iter().map(OrderBody).collect(), found.total, page))
    }))
}

/// `device_id` and `port_no` of a query.
fn place(query: &Query<'_>) -> Result<OrderFilter, ApiError> {
    let device_id = query.value("device_id").map(|text| body::device_id("device_id", text)).transpose()?;
    let port_no: Option<u16> = query.parsed("port_no", "a number in 1..=65535")?;
    if port_no == Some(0) {
        return Err(ApiError::invalid("port_no must be a number in 1..=65535, got 0"));
    }
    Ok(OrderFilter { device_id, port_no, ..OrderFilter::default() })
}

/// An order status, by number or word.
fn status(text: &str) -> Result<OrderStatus, ApiError> {
    let by_code = text.parse().ok().and_then(OrderStatus::from_code);
    let by_word = || OrderStatus::ALL.into_iter().find(|status| status.as_str() == text);
    by_code.or_else(by_word).ok_or_else(|| {
        let words = OrderStatus::ALL.map(OrderStatus::as_str).join(", ");
        ApiError::invalid(format!("status must be in 0..=10 or one of {words}, got {text:?}"))
    })
}
