//! `/admin/webhooks/{name}/…` and `/admin/events/{pos}/deliveries`: what was delivered, what was not, and what operators do about it.
//!
//! Changes are made in the store, piece by piece so that no settlement waits behind thousands of rows, and taken up by the instance that
//! delivers. Test events are sent from here.

use std::sync::Arc;

use parking_lot::Mutex;
use serde::Serialize;
use utoipa::ToSchema;

use super::body::Fields;
use super::call::{Call, Next, not_done, read, reading, submit};
use super::{Api, List, RETRY_AFTER_S, audit, now};
use crate::api::error::{ApiError, ErrorCode};
use crate::api::message::Request;
use crate::api::route::Query;
use crate::config::EVENT_TYPES;
use crate::model::{EventType, ServerId};
use crate::store::{
    DeadLetters, DeliveryChange, DeliveryLogRow, DeliveryOutcome, EndpointJob, EventRecord, Job, Outcome,
    ParkedDelivery,
};
use crate::time::Rfc3339;
use crate::webhook::{Pusher, TrialRefused};

/// Positions of one request.
const POSITIONS_MAX: usize = 1_000;
/// Rows of one transaction.
const PIECE: u32 = 1_000;
/// Positions that one redelivery looks at, in pieces.
const REDELIVERY_PIECES: u32 = 10;
/// Dead letters of one request for all of them, in pieces.
const ALL_PIECES: u32 = 100;
/// Characters of a reason.
const REASON_CHARS_MAX: usize = 200;

/// One attempt to deliver an event.
#[derive(Serialize, ToSchema)]
#[schema(as = Delivery)]
pub(in crate::api) struct DeliveryObject {
    /// When it ended.
    at: Rfc3339,
    endpoint: String,
    pos: i64,
    event_id: String,
    #[schema(value_type = EventType)]
    event_type: String,
    /// Order number or device id: deliveries of one key keep their order.
    key: String,
    /// From 1.
    attempt: u8,
    /// HTTP status; `null`: there was no answer.
    status: Option<u16>,
    latency_ms: u32,
    #[schema(value_type = DeliveryOutcomeWord)]
    outcome: &'static str,
    /// What went wrong, e.g. `http_500`, `timeout`.
    reason: Option<String>,
    /// The instance that made it.
    instance: Option<ServerId>,
}

/// What became of the event: `delivered`, `retry` (it is tried again), or `dead` (a dead letter).
#[derive(ToSchema)]
#[schema(as = DeliveryOutcome, rename_all = "snake_case")]
#[allow(dead_code, reason = "it describes words")]
pub(in crate::api) enum DeliveryOutcomeWord {
    Delivered,
    Retry,
    Dead,
}

impl From<DeliveryLogRow> for DeliveryObject {
    fn from(row: DeliveryLogRow) -> Self {
        Self {
            at: Rfc3339(row.at),
            endpoint: row.endpoint.to_string(),
            pos: row.pos,
            event_id: row.event_id,
            event_type: row.event_type,
            key: row.key,
            attempt: row.attempt,
            status: row.status,
            latency_ms: row.took_ms,
            outcome: row.outcome.as_str(),
            reason: row.reason,
            instance: row.instance,
        }
    }
}

/// An event that an endpoint will not get unless it is delivered again.
#[derive(Serialize, ToSchema)]
#[schema(as = DeadLetter)]
pub(in crate::api) struct DeadLetter {
    /// When it became one.
    at: Rfc3339,
    endpoint: String,
    pos: i64,
    event_id: String,
    #[schema(value_type = EventType)]
    event_type: String,
    /// Order number or device id.
    key: String,
    /// Attempts made.
    attempts: u8,
    /// What went wrong last, e.g. `http_500`; `skipped`: the endpoint was enabled without its backlog.
    reason: String,
    /// When the event happened.
    event_at: Rfc3339,
}

impl From<(ParkedDelivery, EventRecord)> for DeadLetter {
    fn from((row, event): (ParkedDelivery, EventRecord)) -> Self {
        Self {
            at: Rfc3339(row.next_at),
            endpoint: row.endpoint,
            pos: event.pos,
            event_id: event.event_id,
            event_type: event.event_type,
            key: event.key,
            attempts: row.attempts,
            reason: row.reason,
            event_at: Rfc3339(event.at),
        }
    }
}

/// Which dead letters: one of the two.
#[derive(ToSchema)]
#[schema(as = DeadLettersBody)]
#[allow(dead_code, reason = "it describes a body that is read field by field")]
pub(in crate::api) struct DeadLettersBody {
    /// Their positions.
    #[schema(min_items = 1, max_items = 1000)]
    positions: Option<Vec<i64>>,
    /// All there are, 100,000 at a time.
    all: Option<bool>,
}

/// Which events: from one of the first two to one of the others.
#[derive(ToSchema)]
#[schema(as = RedeliverBody)]
#[allow(dead_code, reason = "it describes a body that is read field by field")]
pub(in crate::api) struct RedeliverBody {
    /// First position.
    #[schema(minimum = 1)]
    from_pos: Option<i64>,
    /// Last position.
    #[schema(minimum = 1)]
    to_pos: Option<i64>,
    /// Events of this time and later.
    from: Option<Rfc3339>,
    /// Events up to this time.
    to: Option<Rfc3339>,
}

/// Why an endpoint is disabled.
#[derive(ToSchema)]
#[schema(as = DisableBody)]
#[allow(dead_code, reason = "it describes a body that is read field by field")]
pub(in crate::api) struct DisableBody {
    /// For other operators. Left out: `operator`.
    #[schema(min_length = 1, max_length = 200)]
    reason: Option<String>,
}

/// Where an endpoint goes on.
#[derive(ToSchema)]
#[schema(as = EnableBody)]
#[allow(dead_code, reason = "it describes a body that is read field by field")]
pub(in crate::api) struct EnableBody {
    /// At the log's end: what it has not got is not delivered, what is parked becomes dead letters. Left out: behind its cursor.
    skip_backlog: Option<bool>,
}

/// How many rows were changed.
#[derive(Serialize, ToSchema)]
#[schema(as = Count)]
pub(in crate::api) struct Count {
    count: u64,
}

/// What a redelivery came to.
#[derive(Serialize, ToSchema)]
#[schema(as = Redelivered)]
pub(in crate::api) struct Redelivered {
    /// Events that are delivered again.
    count: u64,
    /// `from_pos` of the next request, where the range has more than one may ask for.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    next_from_pos: Option<i64>,
}

/// An endpoint that this instance knows.
struct Target {
    pusher: Arc<Pusher>,
    name: String,
}

/// Goes on with an endpoint. One that this instance does not have (yet) is looked for in the store.
fn of_endpoint(api: &Api, name: String, go: impl FnOnce(Target) -> Result<Next, ApiError>) -> Result<Next, ApiError> {
    let Some(pusher) = api.pusher.get() else {
        return Err(ApiError::not_ready("webhooks are not started yet", RETRY_AFTER_S));
    };
    if pusher.knows(&name) {
        return go(Target { pusher: Arc::clone(pusher), name });
    }
    Ok(Box::new(move |call| {
        read(call, move |call, reader| {
            let rows = reader.and_then(|reader| Ok(reader.webhook_endpoints()?));
            call.error(&match rows {
                Ok(rows) if rows.iter().any(|row| row.name == name) => {
                    let message = format!("webhook endpoint {name:?} is not in force on this instance yet");
                    ApiError::not_ready(message, RETRY_AFTER_S)
                }
                Ok(_) => ApiError::new(ErrorCode::NotFound, format!("there is no webhook endpoint {name:?}")),
                Err(error) => error,
            });
        });
    }))
}

/// Dead letters of an endpoint, by position.
pub(super) fn dead(api: &Api, name: String, query: &Query<'_>) -> Result<Next, ApiError> {
    let page = query.page()?;
    of_endpoint(api, name, move |Target { name, .. }| {
        Ok(reading(move |reader| {
            let found = reader.dead_letters(&name, page.page, page.size)?;
            Ok(List::new(found.rows.into_iter().map(DeadLetter::from).collect(), found.total, page))
        }))
    })
}

/// Attempts to deliver to an endpoint, newest first.
pub(super) fn of_name(api: &Api, name: String, query: &Query<'_>) -> Result<Next, ApiError> {
    let page = query.page()?;
    let outcome = query.value("outcome").map(|word| {
        let words = DeliveryOutcome::ALL.map(DeliveryOutcome::as_str).join(", ");
        let unknown = || ApiError::invalid(format!("outcome must be one of {words}, got {word:?}"));
        DeliveryOutcome::from_word(word).ok_or_else(unknown)
    });
    let outcome = outcome.transpose()?;
    of_endpoint(api, name, move |Target { name, .. }| {
        Ok(reading(move |reader| {
            let found = reader.deliveries(&name, outcome, page.page, page.size)?;
            Ok(List::new(found.rows.into_iter().map(DeliveryObject::from).collect(), found.total, page))
        }))
    })
}

/// Attempts to deliver an event, to all endpoints, in their order.
pub(super) fn of_event(pos: i64, query: &Query<'_>) -> Result<Next, ApiError> {
    let page = query.page()?;
    Ok(reading(move |reader| {
        let found = reader.deliveries_of_event(pos, page.page, page.size)?;
        // The log of deliveries may outlive its event, and the other way round.
        if found.total == 0
            && reader.events_after(pos.saturating_sub(1), 1)?.first().is_none_or(|event| event.pos != pos)
        {
            return Err(ApiError::new(ErrorCode::NotFound, format!("there is no event at position {pos}")));
        }
        Ok(List::new(found.rows.into_iter().map(DeliveryObject::from).collect(), found.total, page))
    }))
}

/// A change that may need several jobs, one after the other's commit.
struct Pieces<F> {
    target: Target,
    action: &'static str,
    /// Jobs that may still follow.
    left: u32,
    count: u64,
    /// The change that goes on behind a position; `None` where there is nothing to go on with.
    next: F,
}

impl<F> Pieces<F>
where
    F: Fn(i64) -> DeliveryChange + Send + 'static,
{
    /// Submits a change, those that follow from it, and answers with what `answer` makes of the rows changed and of the position behind
    /// which there is more.
    fn run<T: Serialize>(
        mut self,
        call: Call,
        change: DeliveryChange,
        answer: impl FnOnce(u64, Option<i64>) -> T + Send + 'static,
    ) {
        let job = EndpointJob { endpoint: self.target.name.clone(), change, at: now().unix_ms };
        submit(call, Job::Endpoint(job), move |call, outcome| match outcome {
            Outcome::Endpoint(done) => {
                self.count += done.changed;
                self.left = self.left.saturating_sub(1);
                match done.more_behind {
                    Some(pos) if self.left > 0 => {
                        let change = (self.next)(pos);
                        self.run(call, change, answer);
                    }
                    more => {
                        self.target.pusher.changed(&self.target.name);
                        audit::done(&call, self.action, format_args!("{}: {} rows", self.target.name, self.count));
                        call.success(200, &answer(self.count, more));
                    }
                }
            }
            other => call.error(&not_done(&other)),
        });
    }
}

/// Which dead letters a body names.
fn dead_letters(request: &Request) -> Result<DeadLetters, ApiError> {
    let mut fields = Fields::of(request)?;
    let positions = fields.positions("positions", 1..=POSITIONS_MAX)?;
    let all = fields.flag("all")?;
    fields.finish(&["positions", "all"])?;
    match (positions, all) {
        (Some(positions), None) => Ok(DeadLetters::At(positions)),
        (None, Some(true)) => Ok(DeadLetters::Behind { pos: 0, rows_max: PIECE }),
        _ => Err(ApiError::invalid("the body must name positions, or say \"all\": true")),
    }
}

fn on_dead_letters(
    api: &Api,
    name: String,
    request: &Request,
    action: &'static str,
    change: fn(DeadLetters) -> DeliveryChange,
) -> Result<Next, ApiError> {
    let which = dead_letters(request)?;
    of_endpoint(api, name, move |target| {
        let next = move |pos| change(DeadLetters::Behind { pos, rows_max: PIECE });
        let pieces = Pieces { target, action, left: ALL_PIECES, count: 0, next };
        Ok(Box::new(move |call| pieces.run(call, change(which), |count, _| Count { count })))
    })
}

/// Has dead letters delivered again.
pub(super) fn redrive(api: &Api, name: String, request: &Request) -> Result<Next, ApiError> {
    on_dead_letters(api, name, request, "webhook.redrive", DeliveryChange::Redrive)
}

/// Deletes dead letters.
pub(super) fn purge(api: &Api, name: String, request: &Request) -> Result<Next, ApiError> {
    on_dead_letters(api, name, request, "webhook.purge", DeliveryChange::Purge)
}

/// One end of a range.
#[derive(Clone, Copy)]
enum End {
    Pos(i64),
    At(i64),
}

fn end(fields: &mut Fields, pos: &'static str, at: &'static str) -> Result<End, ApiError> {
    match (fields.number(pos, 1..=i64::MAX)?, fields.time_or_null(at)?.flatten()) {
        (Some(pos), None) => Ok(End::Pos(pos)),
        (None, Some(at)) => Ok(End::At(at)),
        (Some(_), Some(_)) => Err(ApiError::invalid(format!("one of {pos} and {at} must be left out"))),
        (None, None) => Err(ApiError::invalid(format!("{pos} or {at} is missing"))),
    }
}

/// Has events of a range of the log delivered again.
pub(super) fn redeliver(api: &Api, name: String, request: &Request) -> Result<Next, ApiError> {
    let mut fields = Fields::of(request)?;
    let (from, to) = (end(&mut fields, "from_pos", "from")?, end(&mut fields, "to_pos", "to")?);
    fields.finish(&["from_pos", "to_pos", "from", "to"])?;
    of_endpoint(api, name, move |target| {
        let event_types = target.pusher.types_wanted(&target.name, EVENT_TYPES).unwrap_or_default();
        Ok(Box::new(move |call| {
            read(call, move |call, reader| {
                let range = reader.and_then(|reader| {
                    let from_pos = match from {
                        End::Pos(pos) => pos,
                        End::At(at) => reader.pos_at(at)?,
                    };
                    let to_pos = match to {
                        End::Pos(pos) => pos,
                        End::At(at) => reader.pos_at(at.saturating_add(1))?.saturating_sub(1),
                    };
                    Ok((from_pos, to_pos))
                });
                let (from_pos, to_pos) = match range {
                    Ok(range) => range,
                    Err(error) => return call.error(&error),
                };
                let next = move |behind: i64| DeliveryChange::Redeliver {
                    from_pos: behind.saturating_add(1),
                    to_pos,
                    event_types: Arc::clone(&event_types),
                    rows_max: PIECE,
                };
                let first = next(from_pos.saturating_sub(1));
                let action = "webhook.redeliver";
                Pieces { target, action, left: REDELIVERY_PIECES, count: 0, next }.run(call, first, |count, more| {
                    Redelivered { count, next_from_pos: more.map(|pos| pos.saturating_add(1)) }
                });
            });
        }))
    })
}

/// Makes a change and answers with how the endpoint is doing then.
fn switch(target: Target, action: &'static str, change: DeliveryChange) -> Next {
    Box::new(move |call| {
        let job = EndpointJob { endpoint: target.name.clone(), change, at: now().unix_ms };
        submit(call, Job::Endpoint(job), move |call, outcome| {
            let Outcome::Endpoint(_) = outcome else { return call.error(&not_done(&outcome)) };
            target.pusher.changed(&target.name);
            audit::done(&call, action, &target.name);
            read(call, move |call, reader| {
                let states = reader.and_then(|reader| Ok(target.pusher.states(reader)?));
                match states.map(|states| states.into_iter().find(|(name, _)| *name == target.name)) {
                    Ok(Some((_, state))) => call.success(200, &state),
                    // It was removed meanwhile.
                    Ok(None) => {
                        let message = format!("there is no webhook endpoint {:?}", target.name);
                        call.error(&ApiError::new(ErrorCode::NotFound, message));
                    }
                    Err(error) => call.error(&error),
                }
            });
        });
    })
}

/// Sends nothing more to an endpoint.
pub(super) fn disable(api: &Api, name: String, request: &Request) -> Result<Next, ApiError> {
    let mut reason = None;
    if !request.body.is_empty() {
        let mut fields = Fields::of(request)?;
        reason = fields.text("reason")?;
        fields.finish(&["reason"])?;
    }
    let reason = reason.unwrap_or_else(|| "operator".to_owned());
    if !(1..=REASON_CHARS_MAX).contains(&reason.chars().count()) || reason.chars().any(char::is_control) {
        return Err(ApiError::invalid(format!("reason must be 1..={REASON_CHARS_MAX} printable characters")));
    }
    of_endpoint(api, name, move |target| Ok(switch(target, "webhook.disable", DeliveryChange::Disable { reason })))
}

/// Goes on sending to an endpoint.
pub(super) fn enable(api: &Api, name: String, request: &Request) -> Result<Next, ApiError> {
    let mut skip_backlog = None;
    if !request.body.is_empty() {
        let mut fields = Fields::of(request)?;
        skip_backlog = fields.flag("skip_backlog")?;
        fields.finish(&["skip_backlog"])?;
    }
    let skip_backlog = skip_backlog.unwrap_or(false);
    of_endpoint(api, name, move |target| Ok(switch(target, "webhook.enable", DeliveryChange::Enable { skip_backlog })))
}

/// Sends a test event now, from this instance, and says what the receiver made of it.
pub(super) fn test(api: &Api, name: String, request: &Request) -> Result<Next, ApiError> {
    Fields::none(request)?;
    // Behind the time of the store's answers the guard answers by itself.
    let within = api.store_timeout;
    of_endpoint(api, name, move |Target { pusher, name }| {
        Ok(Box::new(move |call| {
            // Either side answers, whichever comes to it.
            let held = Arc::new(Mutex::new(Some(call)));
            let tried = Arc::clone(&held);
            let sent = pusher.test(&name, within, move |what| {
                if let Some(call) = tried.lock().take() {
                    call.success(200, &what);
                }
            });
            if let Err(refused) = sent
                && let Some(call) = held.lock().take()
            {
                call.error(&refusal(refused, &name));
            }
        }))
    })
}

fn refusal(refused: TrialRefused, name: &str) -> ApiError {
    let code = match refused {
        TrialRefused::Unknown => ErrorCode::NotFound,
        TrialRefused::Busy | TrialRefused::Full => ErrorCode::QueueOverloaded,
        TrialRefused::Thread => ErrorCode::NotReady,
    };
    let retry_after_s = (refused != TrialRefused::Unknown).then_some(RETRY_AFTER_S);
    let mut error = ApiError::new(code, format!("no test event to {name:?}: {refused}"));
    error.retry_after_s = retry_after_s;
    error
}
