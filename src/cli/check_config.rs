//! `check-config`: says what is wrong with a configuration without starting anything.

use std::process::ExitCode;

use chargegate::config;
use clap::Args;

use super::ConfigFile;

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
            print!("{}", config::reference());
            return ExitCode::SUCCESS;
        }
        match self.file.load() {
            Ok(config) if self.print => print!("{}", config.to_toml()),
            Ok(_) => println!("ok"),
            Err(code) => return code,
        }
        ExitCode::SUCCESS
    }
}
