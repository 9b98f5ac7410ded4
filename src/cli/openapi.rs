//! `openapi`: the description of the API, as `/openapi.json` has it, and the page of its errors.

use std::process::ExitCode;

use chargegate::api::openapi;
use clap::Args;

use super::print;

#[derive(Args, Debug)]
pub(super) struct OpenApi {
    /// Print the reference of error codes (docs/api/errors.md) instead
    #[arg(long)]
    errors: bool,
}

impl OpenApi {
    pub(super) fn run(self) -> ExitCode {
        print(|out| {
            if self.errors {
                return write!(out, "{}", openapi::error_reference());
            }
            writeln!(out, "{:#}", openapi::document())
        })
    }
}
