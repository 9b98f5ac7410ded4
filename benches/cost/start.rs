//! Start-up: from the start of the process to the first `/readyz` that is 200, with an empty store.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    path::Path,
    thread,
    time::Duration,
};

use anyhow::ensure;

use crate::{
    Args,
    load::now,
    median,
    process::{self, Server},
    servers::gateway,
    support::record,
};

/// Between two looks: the resolution of the figure.
const LOOK: Duration = Duration::from_millis(1);
const DEADLINE: Duration = Duration::from_secs(30);

pub(crate) fn run(args: &Args, data: &Path) -> anyhow::Result<()> {
    let mut all = Vec::new();
    for round in 0..args.rounds {
        let (devices, http) = (process::free_port()?, process::free_port()?);
        let mut command = gateway(devices, "auto", data.join(format!("start-{round}")));
        command.env("CHARGEGATE_HTTP_LISTEN", format!("127.0.0.1:{http}"));
        let began = now();
        let _server = Server::spawn(&mut command, None)?;
        while !is_ready(http) {
            ensure!(began.elapsed() < DEADLINE, "not ready after {DEADLINE:?}");
            thread::sleep(LOOK);
        }
        let ms = began.elapsed().as_secs_f64() * 1e3;
        record("start/ready_ms", "ms", ms);
        all.push(ms);
    }
    println!("start to ready, empty store: median {:.0} ms of {}", median(all.clone()), all.len());
    Ok(())
}

fn is_ready(port: u16) -> bool {
    let ask = || {
        let mut stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_read_timeout(Some(DEADLINE))?;
        stream.write_all(b"GET /readyz HTTP/1.1\r\nHost: gateway\r\nConnection: close\r\n\r\n")?;
        let mut answer = [0; 12];
        stream.read_exact(&mut answer)?;
        Ok::<_, std::io::Error>(answer)
    };
    ask().is_ok_and(|answer| answer.ends_with(b" 200"))
}
