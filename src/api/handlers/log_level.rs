//! `/admin/log-level`: the least important level that is logged, until the next reload or restart.

use serde::Serialize;
use utoipa::ToSchema;

use super::audit;
use super::body::Fields;
use super::call::Next;
use crate::api::error::ApiError;
use crate::api::message::Request;
use crate::config::LogLevel;
use crate::telemetry::log::{level, set_level};

/// What is logged.
#[derive(Serialize, ToSchema)]
pub(crate) struct LogLevelState {
    /// `off`, `error`, `warn`, `info`, `debug` or `trace`.
    level: String,
}

/// What shall be logged.
#[derive(ToSchema)]
#[expect(dead_code, reason = "the body is read field by field; this describes it")]
pub(crate) struct LogLevelBody {
    /// `error`, `warn`, `info`, `debug` or `trace`.
    level: String,
}

fn state() -> LogLevelState {
    LogLevelState { level: level().as_str().to_lowercase() }
}

/// The level now.
pub(super) fn show() -> Next {
    Box::new(|call| call.success(200, &state()))
}

/// Another level from now on.
pub(super) fn set(request: &Request) -> Result<Next, ApiError> {
    let mut fields = Fields::of(request)?;
    let word = fields.word("level", LogLevel::WORDS)?;
    let word = fields.required("level", word)?;
    let level = fields.required("level", LogLevel::from_word(word))?;
    fields.finish(&["level"])?;
    Ok(Box::new(move |call| {
        // Heard at the higher of both levels, so that a change to `error` is not the last thing nobody hears of.
        let quieter = level.filter() < log::LevelFilter::Info;
        if quieter {
            audit::done(&call, "log_level", word);
        }
        set_level(level);
        if !quieter {
            audit::done(&call, "log_level", word);
        }
        call.success(200, &state());
    }))
}
