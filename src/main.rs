//! The `chargegate` binary: arguments in, exit code out. What it runs is in the library.

mod cli;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::run()
}
