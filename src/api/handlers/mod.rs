//! What the routes do, one file per resource.
//!
//! ```text
//! guard ──local──> health, metrics, device status: from memory, on the guard's thread
//! worker ──handler──> resolve ──> authenticate ──> check ──┬─> answer
//!                                                          ├─> Store::submit ──commit──> answer
//!                                                          └─> Store::read ──row──────> answer
//! ```
//!
//! Where there are other instances, signed requests and those of limited keys first ask them, by way of
//! [`Authenticator::ask`], and go on when the answer is there.
//!
//! A request with an `Idempotency-Key` asks the store between authentication and check whether it was answered before.
//!
//! A handler checks a request on the worker's thread and gives back what is left to do, a [`Next`]. That hands the [`Call`], and with it
//! the right to answer, to the store; no worker waits for a row, a commit or a device. A 202 means *committed*: whatever
//! becomes of the order after it is told by events.

mod audit;
mod body;
mod call;
pub(super) mod cards;
pub(super) mod charge;
pub(super) mod commands;
pub(super) mod connections;
pub(super) mod deliveries;
pub(super) mod devices;
pub(super) mod drain;
pub(super) mod events;
mod health;
pub(super) mod instances;
pub(super) mod keys;
pub(super) mod log_level;
pub(super) mod orders;
pub(super) mod ota;
pub(super) mod overview;
mod pages;
pub(super) mod proof;
pub(super) mod queue;
pub(super) mod recorder;
pub(super) mod sockets;
pub(super) mod webhooks;

use std::borrow::Cow;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::Serialize;

use super::auth::{Asked, Attempt, Authenticator, Question};
use super::error::{ApiError, ErrorCode};
use super::guard::{Head, LocalAnswer, LocalRoutes};
use super::idempotency::{self, InProgress};
use super::live::Whereabouts;
use super::message::{Method, Request};
use super::overload::Backlog;
use super::route::{FIRMWARE_PATH, Matched, Page, RouteId, resolve};
use super::server::{Handler, Responder};
use crate::drain::Drain;
use crate::gateway::card::CardRules;
use crate::gateway::directory::Directory;
use crate::job::Retention;
use crate::managed::Managed;
use crate::model::{CardNo, DeviceId, OrderNo, OrderNumbers};
use crate::protocol::ap3000::Magics;
use crate::shard::Inquiries;
use crate::store::{Idempotency, Store};
use crate::telemetry::{Health, Metrics};
use crate::webhook::Pusher;
use call::{Access, Call, Next, read};

/// After a refusal for want of the store or of room in a queue, trying again makes sense this much later.
const RETRY_AFTER_S: u32 = 1;

/// What handlers share. Made once at start; every part may be used from any thread.
pub struct Api {
    /// The live devices.
    pub directory: Arc<Directory>,
    /// Everything durable.
    pub store: Arc<dyn Store>,
    /// Numbers of new orders.
    pub numbers: Arc<OrderNumbers>,
    /// Counters, also of the requests themselves.
    pub metrics: Arc<Metrics>,
    /// Liveness and readiness. The database's state is set here at each `/readyz`; the other components are set by their owners.
    ///
    /// Some thread must call [`Health::observe`] once a second: `/healthz` does so as well, and would otherwise take the time between two
    /// requests for a pause of the process.
    pub health: Arc<Health>,
    /// Keys that are in force.
    pub auth: Arc<Authenticator>,
    /// Puts keys and endpoints in force.
    pub managed: Managed,
    /// Refuses starts under overload.
    pub backlog: Arc<Backlog>,
    /// Idempotency keys that are being worked on.
    pub in_progress: Arc<InProgress>,
    /// Where devices are that this instance does not have.
    pub whereabouts: Whereabouts,
    /// Who keeps the cards, and the tariffs there are.
    pub cards: Arc<CardRules>,
    /// An order that is not committed this long after its request is not created any more.
    pub store_timeout: Duration,
    /// Where images of firmware lie, and where the guard writes those that arrive.
    pub firmware_dir: PathBuf,
    /// How long what leads to an order is kept.
    pub retention: Retention,
    /// Sends all devices away, and takes them again.
    pub drain: Arc<Drain>,
    /// Delivers events; set when it is started, which is after requests are taken.
    pub pusher: OnceLock<Arc<Pusher>>,
    /// Asks the shards.
    pub inquiries: Arc<Inquiries>,
    /// Starts of AP3000 frames, for those that are shown in words.
    pub magics: Magics,
    /// Start of the process's monotonic milliseconds, the same for all shards.
    pub start: Instant,
}

impl Api {
    /// What the server's workers call for each request.
    pub fn handler(self: Arc<Self>) -> Box<Handler> {
        Box::new(move |request, responder| self.serve(&request, responder))
    }

    /// What the guard answers by itself.
    pub fn local_routes(self: Arc<Self>) -> LocalRoutes {
        Box::new(move |head, body| self.local(head, body))
    }

    /// Answers what needs memory only: health, metrics, and the status of a device that this process knows. `None`, and
    /// nothing written, for all others.
    pub fn local(&self, head: &Head<'_>, body: &mut Vec<u8>) -> Option<LocalAnswer> {
        let began = now().instant;
        let mut caller = None;
        let answer = self.answer_locally(head, body, &mut caller)?;
        let access = Access {
            method: head.method,
            target: head.target,
            request_id: head.request_id,
            caller: caller.as_deref(),
            began,
        };
        access.count(self, answer.status);
        Some(answer)
    }

    fn answer_locally(
        &self,
        head: &Head<'_>,
        body: &mut Vec<u8>,
        caller: &mut Option<Arc<str>>,
    ) -> Option<LocalAnswer> {
        // Whatever is wrong with a request is told by the server, but for the paths that must answer while it does not.
        let matched = match resolve(head.method, head.target) {
            Ok(matched) => matched,
            Err(error) if health::is_open(head.path()) || is_upload(head) => {
                return Some(LocalAnswer::error(head, body, &error));
            }
            Err(_) => return None,
        };
        match matched.route.id {
            RouteId::Healthz | RouteId::Readyz | RouteId::Metrics => {
                Some(LocalAnswer::response(health::answer(self, matched.route.id), body))
            }
            // A long body is not read for who may not send it; who may is let in by the server.
            RouteId::FirmwareUpload => {
                let checked = self.auth.check_head(&Attempt::from_head(head), matched.route.scope?, head.unix_ms);
                *caller = checked.caller;
                let error = checked.outcome.err()?;
                Some(LocalAnswer { quota: checked.quota, ..LocalAnswer::error(head, body, &error) })
            }
            RouteId::DeviceStatus => {
                let live = self.whereabouts.here(matched.device()?.parse().ok()?)?;
                let attempt = Attempt::from_head(head);
                // Not before it is clear that the answer is given here: a nonce counts once. And this thread cannot wait for what other
                // instances know of a nonce or a rate.
                let checked = self.auth.check_alone(&attempt, matched.route.scope?, head.unix_ms)?;
                *caller = checked.caller;
                let answer = match checked.outcome {
                    Ok(_) => LocalAnswer::success(head, body, &devices::Status::live(self, &live, head.unix_ms)),
                    Err(error) => LocalAnswer::error(head, body, &error),
                };
                Some(LocalAnswer { quota: checked.quota, ..answer })
            }
            _ => None,
        }
    }

    fn serve(self: &Arc<Self>, request: &Request, responder: Responder) {
        let mut call = Call::new(Arc::clone(self), request, responder);
        match self.admit(request, &mut call) {
            Ok(next) => next(call),
            Err(error) => call.error(&error),
        }
    }

    /// Finds the route and lets the caller in.
    fn admit(self: &Arc<Self>, request: &Request, call: &mut Call) -> Result<Next, ApiError> {
        let attempt = Attempt::from_request(request);
        let matched = resolve(request.method, &request.target);
        let checked = match &matched {
            Ok(matched) => matched.route.scope.map(|scope| self.auth.check(&attempt, scope, now().unix_ms)),
            Err(_) => Some(self.auth.count(&attempt, now().unix_ms)),
        };
        let question = match checked {
            Some(checked) => {
                call.identified(checked.caller, checked.quota);
                checked.outcome?
            }
            None => None,
        };
        let matched = matched?;
        if let Some(question) = question {
            return Ok(self.ask_others(question, request.clone()));
        }
        self.admitted(&matched, request, call)
    }

    /// Goes on when the other instances have said what they know of the caller.
    fn ask_others(self: &Arc<Self>, question: Question, request: Request) -> Next {
        let api = Arc::clone(self);
        Box::new(move |mut call| {
            let then = Arc::clone(&api);
            let go_on = move |asked: Asked| {
                call.limited(asked.quota);
                let next = asked
                    .outcome
                    .and_then(|()| resolve(request.method, &request.target))
                    .and_then(|matched| then.admitted(&matched, &request, &mut call));
                match next {
                    Ok(next) => next(call),
                    Err(error) => call.error(&error),
                }
            };
            api.auth.ask(question, Box::new(go_on));
        })
    }

    /// What follows when the caller is let in.
    fn admitted(self: &Arc<Self>, matched: &Matched<'_>, request: &Request, call: &mut Call) -> Result<Next, ApiError> {
        if request.method == Method::Post
            && let Some(caller) = &call.caller
            && let Some(asked) = idempotency::asked(request, caller)?
        {
            call.claim = Some(self.in_progress.claim(asked.clone())?);
            return Ok(self.once(request.clone(), asked));
        }
        self.check(matched, request)
    }

    /// Answers what was answered before from the store, and carries out what was not.
    fn once(self: &Arc<Self>, request: Request, asked: Idempotency) -> Next {
        let api = Arc::clone(self);
        Box::new(move |call| {
            read(call, move |call, reader| {
                match reader.and_then(|reader| reader.earlier(&asked).map_err(ApiError::from)) {
                    Ok(Some(earlier)) => call.repeated(earlier),
                    Ok(None) => {
                        let checked = resolve(request.method, &request.target);
                        match checked.and_then(|matched| api.check(&matched, &request)) {
                            Ok(next) => next(call),
                            Err(error) => call.error(&error),
                        }
                    }
                    Err(error) => call.error(&error),
                }
            });
        })
    }

    /// Everything that can be said of a request without the store.
    fn check(self: &Arc<Self>, matched: &Matched<'_>, request: &Request) -> Result<Next, ApiError> {
        match matched.route.id {
            RouteId::Charge => charge::create(self, Some(device_of(matched)?), request),
            RouteId::OrderCreate => charge::create(self, None, request),
            RouteId::StopPort => orders::stop_port(self, device_of(matched)?, request),
            RouteId::OrderStopByBody => orders::stop_by_body(self, request),
            RouteId::OrderCancelByBody => orders::cancel_by_body(self, request),
            RouteId::OrderStop => orders::stop(self, order_of(matched)?, request),
            RouteId::OrderCancel => orders::cancel(self, order_of(matched)?, request),
            RouteId::DeviceList => devices::list(self, &matched.query),
            RouteId::Device => Ok(devices::one(device_of(matched)?)),
            RouteId::DeviceStatus => Ok(devices::status(device_of(matched)?)),
            RouteId::OrderQuery => orders::query(&matched.query),
            RouteId::OrderList => orders::list(&matched.query),
            RouteId::Order => Ok(orders::one(order_of(matched)?)),
            RouteId::OrderProof => Ok(proof::one(order_of(matched)?, self.retention)),
            RouteId::OrderEvents => events::of_order(order_of(matched)?, &matched.query),
            RouteId::Events => events::log(&matched.query),
            RouteId::Instances => Ok(instances::list()),
            RouteId::Drain => Ok(drain::show()),
            RouteId::DrainSet => drain::set(request),
            RouteId::Queue => queue::list(&matched.query),
            RouteId::LogLevel => Ok(log_level::show()),
            RouteId::LogLevelSet => log_level::set(request),
            RouteId::DeadLetterList => deliveries::dead(self, name_of(matched)?, &matched.query),
            RouteId::DeadLetterRedrive => deliveries::redrive(self, name_of(matched)?, request),
            RouteId::DeadLetterPurge => deliveries::purge(self, name_of(matched)?, request),
            RouteId::WebhookRedeliver => deliveries::redeliver(self, name_of(matched)?, request),
            RouteId::WebhookDeliveries => deliveries::of_name(self, name_of(matched)?, &matched.query),
            RouteId::EventDeliveries => deliveries::of_event(matched.id.unwrap_or_default(), &matched.query),
            RouteId::WebhookTest => deliveries::test(self, name_of(matched)?, request),
            RouteId::WebhookDisable => deliveries::disable(self, name_of(matched)?, request),
            RouteId::WebhookEnable => deliveries::enable(self, name_of(matched)?, request),
            RouteId::Connections => connections::list(&matched.query),
            RouteId::ConnectionFrames => recorder::connection(&matched.name().unwrap_or_default()),
            RouteId::Recorder => Ok(recorder::device(device_of(matched)?)),
            RouteId::Anomalies => recorder::anomalies(&matched.query),
            RouteId::Anomaly => recorder::anomaly(&matched.name().unwrap_or_default()),
            RouteId::Disconnect => connections::disconnect(device_of(matched)?, request),
            RouteId::Overview => overview::read(&matched.query),
            RouteId::Console => Ok(pages::console(request)),
            RouteId::OpenApi
            | RouteId::Docs
            | RouteId::DocsSlash
            | RouteId::DocsStart
            | RouteId::DocsBundle
            | RouteId::DocsStyle => pages::docs(matched.route.id, request),
            RouteId::KeyList => keys::list(self, &matched.query),
            RouteId::KeyCreate => keys::create(self, request),
            RouteId::Key => Ok(keys::one(self, name_of(matched)?)),
            RouteId::KeyUpdate => keys::update(self, name_of(matched)?, request),
            RouteId::KeyDelete => keys::delete(self, name_of(matched)?, request),
            RouteId::KeyRotate => keys::rotate(self, name_of(matched)?, request),
            RouteId::WebhookList => webhooks::list(self, &matched.query),
            RouteId::WebhookCreate => webhooks::create(self, request),
            RouteId::Webhook => Ok(webhooks::one(self, name_of(matched)?)),
            RouteId::WebhookUpdate => webhooks::update(self, name_of(matched)?, request),
            RouteId::WebhookDelete => webhooks::delete(self, name_of(matched)?, request),
            RouteId::WebhookRotate => webhooks::rotate(self, name_of(matched)?, request),
            RouteId::CardList => cards::list(&matched.query),
            RouteId::CardRegister => cards::register(self, request),
            RouteId::Card => Ok(cards::one(card_of(matched)?)),
            RouteId::CardUpdate => cards::update(self, card_of(matched)?, request),
            RouteId::CardRecharge => cards::recharge(card_of(matched)?, request),
            RouteId::CardTransactions => cards::transactions(card_of(matched)?, &matched.query),
            RouteId::CommandCreate => commands::create(self, device_of(matched)?, request),
            RouteId::CommandList => commands::list(device_of(matched)?, &matched.query),
            RouteId::Command => Ok(commands::one(device_of(matched)?, matched.id.unwrap_or_default())),
            RouteId::Params => Ok(commands::params(device_of(matched)?)),
            RouteId::VerificationCode => commands::verification_code(device_of(matched)?, &matched.query),
            RouteId::ParamsSet => commands::set_params(device_of(matched)?, request),
            RouteId::DeviceSettings => sockets::settings(device_of(matched)?, request),
            RouteId::SocketList => sockets::list(device_of(matched)?),
            RouteId::SocketChange => sockets::change(device_of(matched)?, request),
            RouteId::SocketDelete => sockets::remove(device_of(matched)?, matched.id.unwrap_or_default(), request),
            RouteId::FirmwareUpload => ota::upload(self, &matched.query, request),
            RouteId::FirmwareList => ota::firmware_list(&matched.query),
            RouteId::OtaCreate => ota::create(device_of(matched)?, request),
            RouteId::OtaList => ota::list(&matched.query),
            RouteId::Ota => Ok(ota::one(matched.id.unwrap_or_default())),
            RouteId::OtaCancel => Ok(ota::cancel(matched.id.unwrap_or_default())),
            RouteId::Healthz | RouteId::Readyz | RouteId::Metrics => {
                let answer = health::answer(self, matched.route.id);
                Ok(Box::new(|call| call.respond(answer)))
            }
        }
    }
}

/// Whether the body of a request is an image.
fn is_upload(head: &Head<'_>) -> bool {
    head.method == Method::Post && head.path() == FIRMWARE_PATH
}

fn device_of(matched: &Matched<'_>) -> Result<DeviceId, ApiError> {
    body::device_id("device id in the path", matched.device().unwrap_or_default())
}

fn order_of(matched: &Matched<'_>) -> Result<OrderNo, ApiError> {
    body::order_no("order number in the path", matched.order().unwrap_or_default())
}

fn card_of(matched: &Matched<'_>) -> Result<CardNo, ApiError> {
    body::card_no("card number in the path", matched.card().unwrap_or_default())
}

/// Of a key or an endpoint.
fn name_of(matched: &Matched<'_>) -> Result<String, ApiError> {
    matched.name().map(Cow::into_owned).ok_or_else(|| ApiError::invalid("name in the path is missing"))
}

fn no_device(device_id: DeviceId) -> ApiError {
    ApiError::new(ErrorCode::DeviceNotFound, format!("there is no device {device_id}"))
}

/// A page of a list.
#[derive(Serialize, utoipa::ToSchema)]
pub(super) struct List<T> {
    items: Vec<T>,
    /// Entries on all pages.
    total: u64,
    page: u32,
    size: u32,
}

impl<T> List<T> {
    const fn new(items: Vec<T>, total: u64, page: Page) -> Self {
        Self { items, total, page: page.page, size: page.size }
    }

    /// A page of what is there whole.
    fn of_all(all: Vec<T>, page: Page) -> Self {
        let size = usize::try_from(page.size).unwrap_or(usize::MAX);
        let skipped = usize::try_from(page.page.saturating_sub(1)).unwrap_or(usize::MAX).saturating_mul(size);
        let total = all.len() as u64;
        Self::new(all.into_iter().skip(skipped).take(size).collect(), total, page)
    }
}

/// Both clocks, read together.
struct Moment {
    instant: Instant,
    unix_ms: i64,
}

impl Moment {
    /// Milliseconds since `start`.
    fn mono_ms(&self, start: Instant) -> u64 {
        u64::try_from(self.instant.saturating_duration_since(start).as_millis()).unwrap_or(u64::MAX)
    }
}

#[expect(clippy::disallowed_methods, reason = "the clock enters here")]
fn now() -> Moment {
    let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Moment { instant: Instant::now(), unix_ms: i64::try_from(unix.as_millis()).unwrap_or(i64::MAX) }
}
