//! `/admin/overview`: what this instance does now, and ten minutes of it. From memory.

use serde::Serialize;
use utoipa::ToSchema;

use super::call::Next;
use super::{Api, now};
use crate::api::error::ApiError;
use crate::api::route::Query;
use crate::telemetry::history::{SAMPLE_MS, Sample};
use crate::time::{Rfc3339, unix_ms_of_rfc3339};

/// This instance, as an operator looks at it.
#[derive(Serialize, ToSchema)]
pub(in crate::api) struct Overview {
    /// Which of the instances answered.
    #[schema(value_type = String)]
    instance: crate::model::ServerId,
    version: &'static str,
    #[schema(value_type = String, format = DateTime)]
    started_at: Rfc3339,
    /// The gateway's clock.
    #[schema(value_type = String, format = DateTime)]
    now: Rfc3339,
    /// Whether it sends its devices away and takes no new ones.
    draining: bool,
    /// As `/readyz` says it.
    ready: bool,
    /// The stage of start or stop.
    stage: &'static str,
    /// Seconds between two entries of `series`.
    sample_seconds: u64,
    /// Oldest first; with `since`, only what is later.
    series: Vec<Point>,
}

/// The figures of one moment. Rates are of the two seconds before, latencies of the ten seconds before.
#[derive(Serialize, ToSchema)]
struct Point {
    #[schema(value_type = String, format = DateTime)]
    at: Rfc3339,
    connections: u64,
    devices_online: u64,
    frames_in_per_s: f64,
    frames_out_per_s: f64,
    /// From writing a command to the device's reply, median; null where none was answered.
    ack_ms_p50: Option<f64>,
    ack_ms_p99: Option<f64>,
    commands_waiting: u64,
    /// Committed events that webhook endpoints do not have yet.
    webhook_backlog: u64,
    api_requests_per_s: f64,
    settlements_per_s: f64,
}

impl From<Sample> for Point {
    fn from(sample: Sample) -> Self {
        // What is finer than the measurement would only be longer.
        let rate = |per_s: f64| (per_s * 100.0).round() / 100.0;
        let ms = |latency: std::time::Duration| (latency.as_secs_f64() * 1e6).round() / 1e3;
        Self {
            at: Rfc3339(sample.at),
            connections: sample.connections,
            devices_online: sample.devices_online,
            frames_in_per_s: rate(sample.frames_in_per_s),
            frames_out_per_s: rate(sample.frames_out_per_s),
            ack_ms_p50: sample.ack_p50.map(ms),
            ack_ms_p99: sample.ack_p99.map(ms),
            commands_waiting: sample.commands_waiting,
            webhook_backlog: sample.webhook_backlog,
            api_requests_per_s: rate(sample.api_requests_per_s),
            settlements_per_s: rate(sample.settlements_per_s),
        }
    }
}

impl Overview {
    fn of(api: &Api, since: Option<i64>) -> Self {
        let moment = now();
        let readiness = api.health.readiness();
        let up_ms = i64::try_from(moment.mono_ms(api.start)).unwrap_or(i64::MAX);
        Self {
            instance: api.whereabouts.own().clone(),
            version: env!("CARGO_PKG_VERSION"),
            started_at: Rfc3339(moment.unix_ms.saturating_sub(up_ms)),
            now: Rfc3339(moment.unix_ms),
            draining: api.drain.is_draining(),
            ready: readiness.ready,
            stage: readiness.stage,
            sample_seconds: SAMPLE_MS / 1_000,
            series: api.metrics.history.since(since).into_iter().map(Point::from).collect(),
        }
    }
}

/// The figures after `since`, or all there are.
pub(super) fn read(query: &Query<'_>) -> Result<Next, ApiError> {
    let since = match query.value("since") {
        None => None,
        Some(text) => Some(unix_ms_of_rfc3339(text).ok_or_else(|| {
            ApiError::invalid(format!("since must be a time such as 2026-01-02T03:04:05.678Z, got {text:?}"))
        })?),
    };
    Ok(Box::new(move |call| {
        let overview = Overview::of(call.api(), since);
        call.success(200, &overview);
    }))
}
