//! The command line.
//!
//! Exit codes: 0 clean, 2 usage or configuration error, 3 a required dependency is unreachable at start (the database cannot
//! be opened, or another process has it open), 70 a shard failed while running, 1 anything else.
//! Results go to standard output, everything else to standard error.

mod check_config;
mod decode;
mod healthcheck;
mod migrate;
mod openapi;
mod sign;

use std::io::{self, BufWriter, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use chargegate::boot;
use chargegate::config::{Config, Source};
use clap::{Args, Parser, Subcommand};

/// Usage or configuration error. clap exits with the same code.
const EXIT_USAGE: u8 = 2;

/// Gateway between charging devices and third-party business systems.
#[derive(Debug, Parser)]
#[command(name = "chargegate", version, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    serve: Serve,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the server (the default).
    Serve(Serve),
    /// Check the configuration: print "ok", or all errors and exit with 2.
    CheckConfig(check_config::CheckConfig),
    /// Bring the schema of the database up to date.
    Migrate(ConfigFile),
    /// Say what stands in captured bytes.
    Decode(decode::Decode),
    /// Make the HMAC headers of an API request.
    Sign(sign::Sign),
    /// Print the description of the API, or of its errors.
    #[command(name = "openapi")]
    OpenApi(openapi::OpenApi),
    /// Print the version.
    Version,
    /// Ask a running server for its health.
    #[command(hide = true)]
    Healthcheck(ConfigFile),
}

/// Where the configuration file is.
#[derive(Args, Clone, Debug)]
struct ConfigFile {
    /// Configuration file [default: chargegate.toml if present]
    #[arg(long, value_name = "FILE", env = "CHARGEGATE_CONFIG")]
    config: Option<PathBuf>,
}

/// The settings that people change by hand; each wins over the file and the environment.
#[derive(Args, Clone, Debug)]
struct Serve {
    #[command(flatten)]
    file: ConfigFile,
    /// Directory of the server id, the embedded database and firmware (data.dir)
    #[arg(long, value_name = "DIR")]
    data_dir: Option<String>,
    /// Address for devices (device.listen)
    #[arg(long, value_name = "IP:PORT")]
    device_listen: Option<String>,
    /// Address of API, health, metrics and console (http.listen)
    #[arg(long, value_name = "IP:PORT")]
    http_listen: Option<String>,
    /// I/O engine: auto, glommio or mio (shard.engine)
    #[arg(long, value_name = "ENGINE")]
    engine: Option<String>,
    /// Number of shards (shard.count)
    #[arg(long, value_name = "COUNT")]
    shards: Option<String>,
    /// error, warn, info, debug or trace (log.level)
    #[arg(long, value_name = "LEVEL")]
    log_level: Option<String>,
}

impl Serve {
    fn source(self) -> Source {
        let flags = [
            ("data.dir", self.data_dir),
            ("device.listen", self.device_listen),
            ("http.listen", self.http_listen),
            ("shard.engine", self.engine),
            ("shard.count", self.shards),
            ("log.level", self.log_level),
        ];
        let flags = flags.into_iter().filter_map(|(key, value)| Some((key, value?))).collect();
        Source::from_process(self.file.config, flags)
    }

    fn run(self) -> ExitCode {
        let source = self.source();
        let config = match load(&source) {
            Ok(config) => config,
            Err(code) => return code,
        };
        boot::serve(config, source)
    }
}

impl ConfigFile {
    fn load(self) -> Result<Config, ExitCode> {
        load(&Source::from_process(self.config, Vec::new()))
    }
}

/// Loads the configuration, or prints every error on a line of its own.
fn load(source: &Source) -> Result<Config, ExitCode> {
    source.load().map_err(|errors| {
        for error in errors.0 {
            eprintln!("error: {}", error.to_string().trim_end());
        }
        ExitCode::from(EXIT_USAGE)
    })
}

/// Writes a result to standard output. A reader that has seen enough, such as `head`, is no error.
fn print(write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> ExitCode {
    let mut out = BufWriter::new(io::stdout().lock());
    match write(&mut out).and_then(|()| out.flush()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: cannot write to standard output: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Parses the arguments of this process and does what they say.
pub(crate) fn run() -> ExitCode {
    let cli = Cli::parse();
    match cli.command {
        None => cli.serve.run(),
        Some(Command::Serve(serve)) => serve.run(),
        Some(Command::CheckConfig(check)) => check.run(),
        Some(Command::Sign(sign)) => sign.run(),
        Some(Command::Migrate(file)) => migrate::run(file),
        Some(Command::Decode(decode)) => decode.run(),
        Some(Command::OpenApi(openapi)) => openapi.run(),
        Some(Command::Version) => print(|out| writeln!(out, "chargegate {}", env!("CARGO_PKG_VERSION"))),
        Some(Command::Healthcheck(file)) => healthcheck::run(file),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn arguments_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn flags_name_known_keys() {
        let Cli { serve, .. } = Cli::try_parse_from([
            "chargegate",
            "--data-dir=/d",
            "--device-listen=127.0.0.1:1",
            "--http-listen=127.0.0.1:2",
            "--engine=mio",
            "--shards=3",
            "--log-level=warn",
        ])
        .unwrap();
        let mut source = serve.source();
        source.environment.clear();
        let config = source.load().unwrap();
        let default = Config::default();
        let changed: Vec<String> = default.changes(&config).into_iter().map(|change| change.key).collect();
        assert_eq!(
            changed,
            ["data.dir", "device.listen", "http.listen", "shard.count", "shard.engine", "store.url", "log.level"]
        );
    }
}
