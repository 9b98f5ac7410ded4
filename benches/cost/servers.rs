//! The servers that are compared: the bare loop, the gateway on its engines, the peers, and whatever the command line names.

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::Context as _;

/// Programs of `benches/peers` that do what the bare loop does, where they have been built.
const PEERS: [&str; 2] = ["go", "tokio"];
/// What a gateway's store writes by itself, it writes this often (`store.flush_interval`). Quiet is what stays quiet for
/// longer, and what is measured for this long holds one such write, as any other three seconds would.
pub(crate) const FLUSH: Duration = Duration::from_secs(3);

pub(crate) struct Contestant {
    /// As it stands in tables and in names of rows.
    pub(crate) name: String,
    pub(crate) gateway: bool,
    command: Box<dyn Fn(u16) -> Command>,
}

impl Contestant {
    /// How it is started to serve on `port` of loopback.
    pub(crate) fn command(&self, port: u16) -> Command {
        (self.command)(port)
    }

    /// How long it has to do nothing before it counts as idle. A gateway's threads give back what a burst took once they had nothing
    /// to do for a little longer than a flush's interval.
    pub(crate) fn quiet_for(&self) -> Duration {
        if self.gateway { 2 * FLUSH + Duration::from_millis(500) } else { Duration::from_millis(200) }
    }
}

/// All servers in the order of their turns, the bare loop first. Gateways keep their data in directories below `data`; a peer
/// that has not been built is left out, and said.
pub(crate) fn contestants(engines: &[String], more: &[String], data: &Path) -> anyhow::Result<Vec<Contestant>> {
    let this = std::env::current_exe()?;
    let bare = move |port: u16| {
        let mut command = Command::new(&this);
        command.args(["--bare", &port.to_string()]);
        command
    };
    let mut all = vec![Contestant { name: "bare".into(), gateway: false, command: Box::new(bare) }];
    for engine in engines.iter().filter(|engine| !engine.is_empty()) {
        let (engine, data) = (engine.clone(), data.to_owned());
        let name = engine.clone();
        let command = Box::new(move |port| gateway(port, &engine, data.join(port.to_string())));
        all.push(Contestant { name, gateway: true, command });
    }
    for peer in PEERS {
        let program = peer_program(peer);
        if !program.exists() {
            eprintln!("{peer} is left out: {} is not there (scripts/bench-peers)", program.display());
            continue;
        }
        let command = move |port: u16| {
            let mut command = Command::new(&program);
            command.arg(port.to_string());
            command
        };
        all.push(Contestant { name: peer.to_owned(), gateway: false, command: Box::new(command) });
    }
    for server in more {
        let (name, line) = server.split_once('=').context("--server wants NAME=COMMAND")?;
        let line = line.to_owned();
        let command = move |port: u16| {
            let line = line.replace("{port}", &port.to_string());
            let mut words = line.split_whitespace();
            let mut command = Command::new(words.next().unwrap_or_default());
            command.args(words);
            command
        };
        all.push(Contestant { name: name.to_owned(), gateway: false, command: Box::new(command) });
    }
    Ok(all)
}

/// The gateway of the bench's profile as an operator starts it, with one shard and its data in `data`.
pub(crate) fn gateway(port: u16, engine: &str, data: PathBuf) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_chargegate"));
    command
        .arg("serve")
        .env("CHARGEGATE_DATA_DIR", data)
        .env("CHARGEGATE_DEVICE_LISTEN", format!("127.0.0.1:{port}"))
        .env("CHARGEGATE_HTTP_LISTEN", "127.0.0.1:0")
        // The lines of a start are nobody's here.
        .env("CHARGEGATE_LOG_LEVEL", "error")
        .env("CHARGEGATE_SHARD_COUNT", "1")
        .env("CHARGEGATE_SHARD_ENGINE", engine);
    command
}

/// Where `scripts/bench-peers` leaves a peer: `peers/` of the target directory.
fn peer_program(peer: &str) -> PathBuf {
    let gateway = Path::new(env!("CARGO_BIN_EXE_chargegate"));
    gateway.ancestors().nth(2).unwrap_or(gateway).join("peers").join(peer)
}
