//! Start and stop of the server, stage by stage.

use std::process::ExitCode;

use crate::config::{Config, Source};

/// A required dependency cannot be reached at start.
pub const EXIT_UNREACHABLE: u8 = 3;

/// Runs the server until it is told to stop. `source` is read again at each SIGHUP.
pub fn serve(_config: Config, _source: Source) -> ExitCode {
    ExitCode::FAILURE
}
