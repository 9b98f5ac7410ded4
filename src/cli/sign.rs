//! `sign`: the HMAC headers of an API request, for shells and for checking one's own implementation.

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use chargegate::signature::SignedRequest;
use clap::Args;
use uuid::Uuid;

use super::{EXIT_USAGE, print};

#[derive(Args, Debug)]
pub(super) struct Sign {
    /// The key's hmac_secret
    #[arg(long, env = "CHARGEGATE_SIGN_SECRET", hide_env_values = true)]
    secret: String,
    /// Method of the request
    #[arg(long, default_value = "GET")]
    method: String,
    /// Path and query exactly as sent, such as /api/v1/third/orders?page=1
    #[arg(long)]
    path: String,
    /// Body exactly as sent
    #[arg(long, default_value = "", conflicts_with = "body_file")]
    body: String,
    /// File with the body
    #[arg(long, value_name = "FILE")]
    body_file: Option<PathBuf>,
    /// Unix seconds [default: now]
    #[arg(long)]
    timestamp: Option<u64>,
    /// A text used once [default: random]
    #[arg(long)]
    nonce: Option<String>,
}

impl Sign {
    pub(super) fn run(self) -> ExitCode {
        let body = match &self.body_file {
            None => self.body.into_bytes(),
            Some(path) => match fs::read(path) {
                Ok(body) => body,
                Err(error) => {
                    eprintln!("error: cannot read {}: {error}", path.display());
                    return ExitCode::from(EXIT_USAGE);
                }
            },
        };
        if !self.path.starts_with('/') {
            eprintln!("error: --path must start with \"/\", got {:?}", self.path);
            return ExitCode::from(EXIT_USAGE);
        }
        let timestamp = self.timestamp.unwrap_or_else(unix_seconds).to_string();
        let nonce = self.nonce.unwrap_or_else(|| Uuid::new_v4().to_string());
        let method = self.method.to_ascii_uppercase();
        let request =
            SignedRequest { method: &method, path: &self.path, timestamp: &timestamp, nonce: &nonce, body: &body };
        let signature = request.sign(&self.secret);
        print(|out| writeln!(out, "X-Timestamp: {timestamp}\nX-Nonce: {nonce}\nX-Signature: {signature}"))
    }
}

#[expect(clippy::disallowed_methods, reason = "the clock enters here")]
fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs())
}
