//! `check-config`: says what is wrong with a configuration without starting anything.

use std::process::ExitCode;

use chargegate::config;
use clap::Args;

use super::{ConfigFile, print};

#[derive(Args, Debug)]
pub(super) struct CheckConfig {
    #[command(flatten)]
    file: ConfigFile,
    /// Print the effective configuration, secrets masked
    #[arg(long)]
    print: bool,
    /// Print the commented reference file with all defaults instead
    #[arg(long, conflicts_with = "print")]
    reference: bool,
}

impl CheckConfig {
    pub(super) fn run(self) -> ExitCode {
        if self.reference {
            return print(|out| write!(out, "{}", config::reference()));
        }
        match self.file.load() {
            Ok(config) if self.print => print(|out| write!(out, "{}", config.to_toml())),
            Ok(_) => print(|out| writeln!(out, "ok")),
            Err(code) => code,
        }
    }
}
