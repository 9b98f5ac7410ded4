//! `/admin/webhooks`: endpoints of the event log, those of the configuration to be read, those of the store to be made, changed and
//! removed.
//!
//! A secret that is made here is shown in the answer that made it; one that was given is not repeated. An endpoint begins with what is
//! committed after it was made, whichever instance delivers to it.

use std::{collections::HashMap, sync::Arc};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use serde::Serialize;
use utoipa::ToSchema;

use super::body::Fields;
use super::call::{Call, Next, reading, submit};
use super::keys::{managed, mixed_up, name_taken, random};
use super::{Api, List, audit, now};
use crate::api::error::{ApiError, ErrorCode};
use crate::api::message::Request;
use crate::api::route::{Query, check_name};
use crate::config::{ENDPOINT_URL, EVENTS, EventPattern, Rule, SENT_KEY, SIGNING_SECRET, Secret, WebhookEndpoint};
use crate::store::payload::{self, EndpointObject, Origin, ShownEndpoint};
use crate::store::{EndpointChange, Job, ManagedChange, ManagedJob, ManagedRecord, NewEndpoint, Reader};
use crate::webhook::{EndpointState, Pusher, refused_address};

/// Patterns of an endpoint; more than there are types say nothing new.
const PATTERNS_MAX: usize = 64;
/// Bytes of a secret, as in a file of one.
const SECRET_BYTES_MAX: usize = 4_096;

/// An endpoint to make. What is left out is as in the configuration.
#[derive(ToSchema)]
#[expect(dead_code, reason = "the body is read field by field; this describes it")]
pub(crate) struct NewEndpointRequest {
    /// 1 to 128 printable characters; unique, also among those of the configuration. Names its place in the event log.
    name: String,
    /// `http` or `https`, without user and fragment, at most 2048 bytes.
    url: String,
    /// Patterns: `*`, a group like `order.*`, or an event type. Empty: all but `device.heartbeat` and `charging.progress`.
    events: Option<Vec<String>>,
    /// `whsec_` and base64, or any other text. Left out: one is made, and shown in the answer.
    secret: Option<String>,
    /// Sent as `X-Api-Key`.
    api_key: Option<String>,
}

/// Changes of an endpoint. What is left out stays.
#[derive(ToSchema)]
#[expect(dead_code, reason = "the body is read field by field; this describes it")]
pub(crate) struct EndpointChangeRequest {
    /// `http` or `https`, without user and fragment, at most 2048 bytes.
    url: Option<String>,
    /// Patterns: `*`, a group like `order.*`, or an event type. Empty: all but `device.heartbeat` and `charging.progress`.
    events: Option<Vec<String>>,
    /// Sent as `X-Api-Key`; `null`: nothing is sent.
    api_key: Option<String>,
    /// Only `null`: the secret before the last rotation signs no more.
    secret_previous: Option<String>,
}

/// Another secret.
#[derive(ToSchema)]
#[expect(dead_code, reason = "the body is read field by field; this describes it")]
pub(crate) struct EndpointRotateRequest {
    /// `whsec_` and base64, or any other text. Left out: one is made, and shown in the answer.
    secret: Option<String>,
}

/// An endpoint, and how it is doing.
#[derive(Serialize, ToSchema)]
#[schema(as = StatedEndpoint)]
pub(in crate::api) struct StatedEndpoint {
    #[serde(flatten)]
    object: EndpointObject,
    /// `null`: it is not in force on this instance yet.
    state: Option<EndpointState>,
}

fn states(pusher: Option<&Pusher>, reader: &mut dyn Reader) -> Result<HashMap<String, EndpointState>, ApiError> {
    let states = pusher.map(|pusher| pusher.states(reader)).transpose()?;
    Ok(states.into_iter().flatten().collect())
}

fn configured(endpoint: &WebhookEndpoint) -> EndpointObject {
    EndpointObject {
        name: endpoint.name.clone(),
        source: Origin::Config,
        url: endpoint.url.clone(),
        events: patterns(&endpoint.events),
        secrets: 1 + u8::from(endpoint.secret_previous.is_some()),
        api_key: endpoint.api_key.is_some(),
        created_at: None,
        updated_at: None,
    }
}

fn patterns(events: &[EventPattern]) -> Vec<String> {
    events.iter().map(EventPattern::to_string).collect()
}

/// Refuses a change of what the configuration has.
fn check_stored(api: &Api, name: &str) -> Result<(), ApiError> {
    match api.managed.configured().endpoint(name) {
        None => Ok(()),
        Some(_) => {
            let message = format!("endpoint {name:?} is of the configuration: change it there");
            Err(ApiError::new(ErrorCode::ReadOnly, message))
        }
    }
}

fn url(api: &Api, fields: &mut Fields) -> Result<Option<String>, ApiError> {
    let url = fields.ruled("url", &ENDPOINT_URL)?;
    // What a name resolves to is judged at each delivery.
    if !api.managed.configured().allow_private_targets
        && let Some(refused) = url.as_deref().and_then(refused_address)
    {
        return Err(ApiError::invalid(format!("url is refused: {refused}")));
    }
    Ok(url)
}

fn events(fields: &mut Fields) -> Result<Option<Vec<String>>, ApiError> {
    Ok(fields.ruled_list("events", PATTERNS_MAX, &EVENTS)?.as_deref().map(patterns))
}

fn secret(fields: &mut Fields, name: &str, rule: &Rule<Secret>) -> Result<Option<Secret>, ApiError> {
    let secret = fields.ruled(name, rule)?;
    if let Some(secret) = &secret {
        if secret.expose().len() > SECRET_BYTES_MAX {
            return Err(ApiError::invalid(format!("{name} must have at most {SECRET_BYTES_MAX} bytes")));
        }
        if secret.expose().starts_with("file:") {
            return Err(ApiError::invalid(format!(
                "{name} must be the secret itself: files are for the configuration"
            )));
        }
    }
    Ok(secret)
}

/// A secret as Standard Webhooks writes them.
fn make_secret() -> Result<Secret, ApiError> {
    Ok(Secret::new(format!("whsec_{}", BASE64.encode(random()?))))
}

/// A page of all endpoints, by name.
pub(super) fn list(api: &Api, query: &Query<'_>) -> Result<Next, ApiError> {
    let page = query.page()?;
    let (of, pusher) = (api.managed.configured(), api.pusher.get().cloned());
    Ok(reading(move |reader| {
        let stored = reader.webhook_endpoints()?;
        let stored = stored.iter().filter(|row| of.endpoint(&row.name).is_none()).map(EndpointObject::from);
        let mut all: Vec<EndpointObject> = of.endpoints.iter().map(configured).chain(stored).collect();
        all.sort_by(|a, b| a.name.cmp(&b.name));
        let mut states = states(pusher.as_deref(), reader)?;
        let stated = |object: EndpointObject| StatedEndpoint { state: states.remove(&object.name), object };
        Ok(List::of_all(all.into_iter().map(stated).collect(), page))
    }))
}

/// One endpoint.
pub(super) fn one(api: &Api, name: String) -> Next {
    let (of, pusher) = (api.managed.configured(), api.pusher.get().cloned());
    reading(move |reader| {
        let object = match of.endpoint(&name).map(configured) {
            Some(object) => object,
            None => {
                let found = reader.webhook_endpoints()?.into_iter().find(|row| row.name == name);
                let missing = || ApiError::new(ErrorCode::NotFound, format!("there is no endpoint {name:?}"));
                found.as_ref().map(EndpointObject::from).ok_or_else(missing)?
            }
        };
        let state = states(pusher.as_deref(), reader)?.remove(&name);
        Ok(StatedEndpoint { object, state })
    })
}

/// Makes an endpoint.
pub(super) fn create(api: &Arc<Api>, request: &Request) -> Result<Next, ApiError> {
    let mut fields = Fields::of(request)?;
    let name = fields.text("name")?;
    let name = fields.required("name", name)?;
    check_name("name", &name)?;
    let url = url(api, &mut fields)?;
    let url = fields.required("url", url)?;
    let events = events(&mut fields)?.unwrap_or_default();
    let given = secret(&mut fields, "secret", &SIGNING_SECRET)?;
    let api_key = secret(&mut fields, "api_key", &SENT_KEY)?;
    fields.finish(&["name", "url", "events", "secret", "api_key"])?;
    if api.managed.configured().endpoint(&name).is_some() {
        return Err(name_taken(&name));
    }
    let made = if given.is_none() { Some(make_secret()?) } else { None };
    let Some(secret) = given.or_else(|| made.clone()) else { return Err(mixed_up()) };
    let new = NewEndpoint { name: name.clone(), url, secret, api_key, events };
    Ok(Box::new(move |call| change(call, name, ManagedChange::CreateEndpoint(new), "webhook.create", made)))
}

/// Changes an endpoint; its place in the log stays.
pub(super) fn update(api: &Arc<Api>, name: String, request: &Request) -> Result<Next, ApiError> {
    let mut fields = Fields::of(request)?;
    let url = url(api, &mut fields)?;
    let events = events(&mut fields)?;
    let api_key = match fields.takes_null("api_key") {
        true => Some(None),
        false => secret(&mut fields, "api_key", &SENT_KEY)?.map(Some),
    };
    let drop_previous = fields.takes_null("secret_previous");
    if fields.has("secret_previous") {
        return Err(ApiError::invalid("secret_previous must be null: a new secret is given to …/rotate"));
    }
    fields.finish(&["url", "events", "api_key", "secret_previous"])?;
    if url.is_none() && events.is_none() && api_key.is_none() && !drop_previous {
        return Err(ApiError::invalid("body changes nothing: give one of url, events, api_key, secret_previous"));
    }
    check_stored(api, &name)?;
    let update = EndpointChange { url, events, api_key, drop_previous };
    let update = ManagedChange::UpdateEndpoint { name: name.clone(), change: update };
    Ok(Box::new(move |call| change(call, name, update, "webhook.update", None)))
}

/// Signs with another secret, and with the one before until that is taken away.
pub(super) fn rotate(api: &Arc<Api>, name: String, request: &Request) -> Result<Next, ApiError> {
    let given = if request.body.is_empty() {
        None
    } else {
        let mut fields = Fields::of(request)?;
        let given = secret(&mut fields, "secret", &SIGNING_SECRET)?;
        fields.finish(&["secret"])?;
        given
    };
    check_stored(api, &name)?;
    let made = if given.is_none() { Some(make_secret()?) } else { None };
    let Some(secret) = given.or_else(|| made.clone()) else { return Err(mixed_up()) };
    let rotation = ManagedChange::RotateEndpoint { name: name.clone(), secret };
    Ok(Box::new(move |call| change(call, name, rotation, "webhook.rotate", made)))
}

/// Removes an endpoint, with its place in the log and what it has not got.
pub(super) fn delete(api: &Arc<Api>, name: String, request: &Request) -> Result<Next, ApiError> {
    Fields::none(request)?;
    check_stored(api, &name)?;
    let removal = ManagedChange::DeleteEndpoint { name: name.clone() };
    Ok(Box::new(move |call| change(call, name, removal, "webhook.delete", None)))
}

fn change(call: Call, name: String, change: ManagedChange, action: &'static str, made: Option<Secret>) {
    let (at, status) = (now().unix_ms, change.status());
    let (request_id, idempotency) = (call.request_id().to_owned(), call.idempotency().cloned());
    let job = Job::Managed(Box::new(ManagedJob { change, at, request_id, idempotency }));
    submit(call, job, move |call, outcome| match managed(outcome, "endpoint", &name) {
        Ok(ManagedRecord::Endpoint(endpoint)) => {
            audit::done(&call, action, &name);
            let secret = made.as_ref().map(Secret::expose);
            let answer = ShownEndpoint { secret, ..ShownEndpoint::hidden(&endpoint) };
            let body = payload::endpoint_answer(&answer, call.request_id(), at);
            let api = Arc::clone(call.api());
            api.managed.follow(move || call.written(status, body));
        }
        Ok(ManagedRecord::Key(_)) => call.error(&mixed_up()),
        Err(error) => call.error(&error),
    });
}
