//! A request under way: who asked for what, and the right to answer.

use std::borrow::Cow;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use serde::Serialize;

use super::{Api, RETRY_AFTER_S, now};
use crate::api::error::{ApiError, ErrorCode};
use crate::api::idempotency::{Claim, mismatch};
use crate::api::live::Live;
use crate::api::message::{Method, Request, Response, split_target};
use crate::api::rate::Quota;
use crate::api::route::BASE;
use crate::api::server::Responder;
use crate::cluster::LinkError;
use crate::model::{CardNo, DeviceId, Order};
use crate::store::{Earlier, Idempotency, Job, Outcome, Reader, Reply, Requester, StoreError, payload};

/// What a handler leaves to be done once the request is found good: with the call, on this thread, without waiting.
pub(super) type Next = Box<dyn FnOnce(Call) + Send>;

/// A request that waits for its answer. Whoever holds it answers, once.
pub(super) struct Call {
    api: Arc<Api>,
    responder: Responder,
    method: Method,
    target: String,
    began: Instant,
    client_ip: IpAddr,
    /// Name of the API key.
    pub(super) caller: Option<Arc<str>>,
    /// The idempotency key this request works on.
    pub(super) claim: Option<Claim>,
}

impl Call {
    pub(super) fn new(api: Arc<Api>, request: &Request, responder: Responder) -> Self {
        let (method, target, began) = (request.method, request.target.clone(), now().instant);
        let client_ip = request.client_ip;
        Self { api, responder, method, target, began, client_ip, caller: None, claim: None }
    }

    pub(super) const fn api(&self) -> &Arc<Api> {
        &self.api
    }

    pub(super) fn request_id(&self) -> &str {
        self.responder.request_id()
    }

    /// Who made it, for the job that carries it out.
    pub(super) fn requester(&self) -> Requester {
        Requester { api_key: self.caller.clone(), client_ip: Some(self.client_ip) }
    }

    /// What makes this request one with others, for the job that carries it out.
    pub(super) fn idempotency(&self) -> Option<&Idempotency> {
        self.claim.as_ref().map(Claim::asked)
    }

    /// Notes who asks, and what is left to him.
    pub(super) fn identified(&mut self, caller: Option<Arc<str>>, quota: Option<Quota>) {
        self.caller = caller;
        self.responder.limited(quota);
    }

    /// What the other instances left to the caller.
    pub(super) fn limited(&mut self, quota: Option<Quota>) {
        self.responder.limited(quota);
    }

    /// Answers with `data` in the success envelope.
    pub(super) fn success<T: Serialize>(self, status: u16, data: &T) {
        self.finish(status).success(status, data);
    }

    /// Answers that an order accepted the request; `unix_ms` is the time of the job that did it.
    pub(super) fn accepted(self, order: &Order, unix_ms: i64) {
        let body = payload::accepted(order, self.request_id(), unix_ms);
        self.written(payload::ACCEPTED, body);
    }

    /// Answers with a body that the store keeps for repetitions, too.
    pub(super) fn written(self, status: u16, body: serde_json::Result<Vec<u8>>) {
        match body {
            Ok(body) => self.respond(Response::json(status, body)),
            Err(cause) => {
                log::error!(request_id = self.request_id(); "answer cannot be written as JSON: {cause}");
                self.error(&ApiError::new(ErrorCode::Internal, "the answer could not be written"));
            }
        }
    }

    /// Answers as the first request with this idempotency key was answered.
    pub(super) fn repeated(self, earlier: Earlier) {
        match earlier {
            Earlier::Answer { status, body } => {
                let headers = vec![("Idempotency-Replayed", "true".to_owned())];
                self.respond(Response { headers, ..Response::json(status, body) });
            }
            Earlier::Mismatch => {
                let error = mismatch(self.idempotency());
                self.error(&error);
            }
        }
    }

    /// Answers with the error envelope.
    pub(super) fn error(self, error: &ApiError) {
        self.finish(error.status()).error(error);
    }

    /// Answers without envelope.
    pub(super) fn respond(self, response: Response) {
        self.finish(response.status).respond(response);
    }

    /// Counts the answer and gives the right to send it. The idempotency key is free from here on: who has the answer may ask
    /// again at once.
    fn finish(mut self, status: u16) -> Responder {
        self.count(status);
        drop(self.claim.take());
        self.responder
    }

    fn count(&self, status: u16) {
        let access = Access {
            method: self.method,
            target: &self.target,
            request_id: self.responder.request_id(),
            caller: self.caller.as_deref(),
            began: self.began,
        };
        access.count(&self.api, status);
    }
}

/// What is counted and logged of every request, answered by whichever thread.
pub(super) struct Access<'a> {
    pub(super) method: Method,
    pub(super) target: &'a str,
    pub(super) request_id: &'a str,
    pub(super) caller: Option<&'a str>,
    pub(super) began: Instant,
}

impl Access<'_> {
    /// Writes the access log line and its counters.
    pub(super) fn count(&self, api: &Api, status: u16) {
        let took = now().instant.saturating_duration_since(self.began);
        api.metrics.http_responses[status.into()].inc();
        api.metrics.http_latency.record(took);
        log::debug!(
            method = self.method.as_str(), path:% = masked(split_target(self.target).0), status, request_id = self.request_id,
            key = self.caller.unwrap_or("-"), ms = took.as_secs_f64() * 1e3;
            "request answered"
        );
    }
}

/// A path as the log shows it: a card's number by its last characters.
fn masked(path: &str) -> Cow<'_, str> {
    let cards = path.strip_prefix(BASE).and_then(|rest| rest.strip_prefix("/cards/"));
    let Some(rest) = cards else { return Cow::Borrowed(path) };
    let (number, tail) = rest.split_once('/').map_or((rest, ""), |(number, tail)| (number, tail));
    let number = CardNo::parse(number).map_or_else(|| "****".to_owned(), |number| number.to_string());
    let slash = if tail.is_empty() { "" } else { "/" };
    Cow::Owned(format!("{BASE}/cards/{number}{slash}{tail}"))
}

/// Finds out what is known of a live device, then goes on with what `then` makes of it: here and now where this instance has it.
pub(super) fn located(
    device_id: DeviceId,
    then: impl FnOnce(&Arc<Api>, Option<Live>) -> Result<Next, ApiError> + Send + 'static,
) -> Next {
    Box::new(move |call| {
        let api = Arc::clone(call.api());
        let finding = Arc::clone(&api);
        finding.whereabouts.find(device_id, move |found| {
            match found.map_err(ApiError::from).and_then(|live| then(&api, live)) {
                Ok(next) => next(call),
                Err(error) => call.error(&error),
            }
        });
    })
}

impl From<LinkError> for ApiError {
    fn from(error: LinkError) -> Self {
        Self::not_ready(format!("the instances cannot be asked for the device: {error}"), RETRY_AFTER_S)
    }
}

/// Runs a query on a reader of the store and answers 200 with what it finds.
pub(super) fn reading<T: Serialize>(
    query: impl FnOnce(&mut dyn Reader) -> Result<T, ApiError> + Send + 'static,
) -> Next {
    Box::new(move |call| {
        read(call, |call, found| match found.and_then(query) {
            Ok(data) => call.success(200, &data),
            Err(error) => call.error(&error),
        });
    })
}

/// Hands the call to a reader of the store, or to `run` with `NOT_READY` where none will come.
pub(super) fn read(call: Call, run: impl FnOnce(Call, Result<&mut dyn Reader, ApiError>) + Send + 'static) {
    let store = Arc::clone(&call.api.store);
    let refused = store.read(Box::new(move |reader| run(call, reader.map_err(ApiError::from))));
    if let Err(run) = refused {
        run(Err(StoreError::Unavailable("too many queries wait".to_owned())));
    }
}

/// Submits a durable change; `complete` answers when it is committed, or with the failure where it is not. Where the change was
/// made before, by a request with the same idempotency key, that one's answer is given.
pub(super) fn submit(call: Call, job: Job, complete: impl FnOnce(Call, Outcome) + Send + 'static) {
    let store = Arc::clone(&call.api.store);
    let refused = store.submit(
        job,
        Reply::Call(Box::new(move |outcome| match outcome {
            Outcome::Repeated(earlier) => call.repeated(earlier),
            outcome => complete(call, outcome),
        })),
    );
    if let Err((_, Reply::Call(complete))) = refused {
        let error = StoreError::Unavailable("too many changes wait".to_owned());
        complete(Outcome::Failed { device_id: None, key: None, ticket: None, error });
    }
}

/// The answer to an outcome that is not the job's own: the store failed, or mixed up its outcomes.
pub(super) fn not_done(outcome: &Outcome) -> ApiError {
    match outcome {
        Outcome::Failed { error, .. } => {
            log::warn!("request was not stored: {error}");
            ApiError::not_ready(error.to_string(), RETRY_AFTER_S)
        }
        other => {
            log::error!("store answered with an outcome of another job: {other:?}");
            ApiError::new(ErrorCode::Internal, "the store gave no answer to this request")
        }
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Unavailable(_) => Self::not_ready(error.to_string(), RETRY_AFTER_S),
            StoreError::Corrupt(_) | StoreError::Statement(_) => {
                log::error!("query failed: {error}");
                Self::new(ErrorCode::Internal, "the store could not be read")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn card_numbers_are_masked_in_paths() {
        for (path, shown) in [
            ("/api/v1/third/cards/7a8d05dd", "/api/v1/third/cards/****05dd"),
            ("/api/v1/third/cards/123456789012/recharge", "/api/v1/third/cards/****9012/recharge"),
            ("/api/v1/third/cards/a%20b/x", "/api/v1/third/cards/****/x"),
            ("/api/v1/third/cards", "/api/v1/third/cards"),
            ("/api/v1/third/devices/40aace04", "/api/v1/third/devices/40aace04"),
        ] {
            assert_eq!(masked(path), shown);
        }
    }
}
