//! `/healthz`, `/readyz`, `/metrics`: for machines, without key and without envelope.

use std::sync::atomic::Ordering;
use std::time::Duration;

use serde::Serialize;

use super::{Api, now};
use crate::api::envelope;
use crate::api::message::Response;
use crate::api::route::RouteId;
use crate::store::Store;
use crate::telemetry::health::{Component, ComponentState};

const PROMETHEUS_TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Whether a path is one of these.
pub(super) fn is_open(path: &str) -> bool {
    matches!(path, "/healthz" | "/readyz" | "/metrics")
}

/// Answers one of the three.
pub(super) fn answer(api: &Api, route: RouteId) -> Response {
    match route {
        RouteId::Readyz => ready(api),
        RouteId::Metrics => metrics(api),
        _ => alive(api),
    }
}

fn alive(api: &Api) -> Response {
    let now_ms = now().mono_ms(api.start);
    // So that a request never sees a pause that the observer has not seen.
    api.health.observe(now_ms);
    let liveness = api.health.liveness(now_ms);
    plain(if liveness.alive { 200 } else { 500 }, &liveness)
}

fn ready(api: &Api) -> Response {
    api.health.set(Component::Database, database(api.store.as_ref()));
    let readiness = api.health.readiness();
    plain(if readiness.ready { 200 } else { 503 }, &readiness)
}

fn database(store: &dyn Store) -> ComponentState {
    let health = store.health();
    if health.ready.load(Ordering::Acquire) {
        return ComponentState::ok(Duration::from_micros(health.commit_us.load(Ordering::Relaxed)));
    }
    let reason = health.reason.lock().clone();
    ComponentState::Error { error: reason.unwrap_or_else(|| "the store has not committed yet".to_owned()) }
}

fn metrics(api: &Api) -> Response {
    let mut text = String::with_capacity(32 << 10);
    api.metrics.render(&mut text);
    Response { status: 200, content_type: PROMETHEUS_TEXT, headers: Vec::new(), body: text.into_bytes() }
}

fn plain<T: Serialize>(status: u16, data: &T) -> Response {
    let body = serde_json::to_vec(data);
    debug_assert!(body.is_ok(), "plain structs are JSON");
    let retry_after = envelope::retry_after_s(status).map(|seconds| ("Retry-After", seconds.to_string()));
    Response { headers: retry_after.into_iter().collect(), ..Response::json(status, body.unwrap_or_default()) }
}
