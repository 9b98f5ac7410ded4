//! `/admin/drain`: this instance sends its devices away, or takes them again.
//!
//! It is answered when the shards are told. The connections that are left are the answer to the same question asked again.

use serde::Serialize;
use utoipa::ToSchema;

use super::body::Fields;
use super::call::{Call, Next};
use super::{RETRY_AFTER_S, audit};
use crate::api::error::ApiError;
use crate::api::message::Request;

/// What an instance does with devices.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct DrainState {
    /// It accepts no devices and closes the connections it has, one after another.
    draining: bool,
    /// Device connections it has now.
    connections: u64,
}

/// What an instance shall do with devices.
#[derive(ToSchema)]
#[expect(dead_code, reason = "the body is read field by field; this describes it")]
pub(crate) struct DrainBody {
    /// `true`: send them away. `false`: take them again.
    draining: bool,
}

fn state(call: &Call) -> DrainState {
    let api = call.api();
    DrainState { draining: api.drain.is_draining(), connections: api.metrics.connections() }
}

/// What it does now.
pub(super) fn show() -> Next {
    Box::new(|call| {
        let state = state(&call);
        call.success(200, &state);
    })
}

/// Sends the devices away, or takes them again. Asked again, it is told again.
pub(super) fn set(request: &Request) -> Result<Next, ApiError> {
    let mut fields = Fields::of(request)?;
    let draining = fields.flag("draining")?;
    let draining = fields.required("draining", draining)?;
    fields.finish(&["draining"])?;
    Ok(Box::new(move |call| {
        if let Err(refused) = call.api().drain.set(draining) {
            return call.error(&ApiError::not_ready(refused.to_string(), RETRY_AFTER_S));
        }
        audit::done(&call, "drain", draining);
        let state = state(&call);
        call.success(202, &state);
    }))
}
