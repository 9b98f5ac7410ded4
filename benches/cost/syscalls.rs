//! System calls per heartbeat, counted by strace: a figure that no load on the machine disturbs. Slow, so of few heartbeats.

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use anyhow::{Context as _, ensure};

use crate::{
    Args, LOAD_CPU, SERVER_CPU,
    load::{Load, Until},
    process::{self, Server},
    servers::contestants,
    support::record,
};

const MESSAGES: usize = 10_000;
/// Until strace has taken hold of every thread.
const ATTACH_TRIES: u32 = 200;
const ATTACH_TRY: Duration = Duration::from_millis(10);

pub(crate) fn run(args: &Args, data: &Path) -> anyhow::Result<()> {
    let contestants = contestants(&args.engines, &args.servers, data)?;
    process::pin(LOAD_CPU)?;
    println!("| connections | window | server | system calls per heartbeat | of these |\n|---:|---:|---|---:|---|");
    for &connections in &args.connections_or(&[1_000]) {
        for contestant in &contestants {
            let port = process::free_port()?;
            let server = Server::start(contestant.command(port), SERVER_CPU, port)?;
            let mut load = Load::connect(port, connections)?;
            load.run(Until::Messages(connections), 100)?;
            server.settle(contestant.quiet_for())?;
            for &window in &args.windows {
                let window = if window == 0 { connections } else { window.min(connections) };
                load.run(Until::Messages(MESSAGES / 10), window)?;
                let file = data.join("strace");
                let calls = traced(&server, &file, || load.run(Until::Messages(MESSAGES), window).map(drop))?;
                let each = |count: u64| count as f64 / MESSAGES as f64;
                let sum = each(calls.values().sum());
                let mut most: Vec<_> = calls.iter().collect();
                most.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
                let most = most.iter().take(5).map(|(name, count)| format!("{name} {:.3}", each(**count)));
                let most = most.collect::<Vec<_>>().join(", ");
                println!("| {connections} | {window} | {} | {sum:.3} | {most} |", contestant.name);
                let name = if window == connections { "all".to_owned() } else { window.to_string() };
                record(&format!("cost/{connections}/{name}/{}/syscalls", contestant.name), "calls", sum);
            }
        }
    }
    Ok(())
}

/// Calls of the server by name while `work` is done.
fn traced(
    server: &Server,
    file: &Path,
    work: impl FnOnce() -> anyhow::Result<()>,
) -> anyhow::Result<BTreeMap<String, u64>> {
    let pid = server.pid();
    let mut strace = Command::new("strace");
    strace.args(["-c", "-f", "-U", "calls,name", "-p", &pid.to_string(), "-o"]).arg(file);
    let mut strace = strace.stderr(Stdio::null()).spawn().context("strace")?;
    let mut tries = 0;
    while !is_traced(pid)? {
        ensure!(tries < ATTACH_TRIES && strace.try_wait()?.is_none(), "strace does not take hold of the server");
        tries += 1;
        thread::sleep(ATTACH_TRY);
    }
    let done = work();
    let stop = Command::new("kill").args(["-INT", &strace.id().to_string()]).status()?;
    strace.wait()?;
    done?;
    ensure!(stop.success(), "strace cannot be stopped");
    let text = fs::read_to_string(file)?;
    let lines = text.lines().filter_map(|line| {
        let (count, name) = line.trim().split_once(char::is_whitespace)?;
        let name = name.trim();
        (name != "total").then_some((name.to_owned(), count.parse().ok()?))
    });
    Ok(lines.collect())
}

/// Whether each thread has a tracer.
fn is_traced(pid: u32) -> anyhow::Result<bool> {
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let status = fs::read_to_string(task?.path().join("status"))?;
        if status.lines().any(|line| line.split_whitespace().eq(["TracerPid:", "0"])) {
            return Ok(false);
        }
    }
    Ok(true)
}
