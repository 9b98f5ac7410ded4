//! The server's process: starting it on its core, and what it uses.

use std::{
    fs, io,
    net::{TcpListener, TcpStream},
    os::unix::process::CommandExt as _,
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use anyhow::{Context as _, bail};

use crate::load::now;

/// How long a server may take until it listens.
const START_TRIES: u32 = 200;
const START_TRY: Duration = Duration::from_millis(50);
/// Threads of a gateway that serve devices are called so, with a number behind it.
const SHARD: &str = "shard-";
/// A server is quiet when it has used less than this of a core: more than what a gateway in a debug build looks after once a
/// second, far less than a burst of writes...
const QUIET_SHARE: f64 = 0.1;
/// ...in each of as many of these as its quiet lasts.
const QUIET_STEP: Duration = Duration::from_millis(100);
const QUIET_DEADLINE: Duration = Duration::from_secs(40);

/// A running server; killed when dropped.
pub(crate) struct Server(Child);

/// CPU time, in microseconds.
#[derive(Clone, Copy)]
pub(crate) struct Cost {
    pub(crate) user_us: f64,
    pub(crate) system_us: f64,
    /// Of all threads.
    pub(crate) total_us: f64,
    /// Of the threads that serve devices, where the server has such.
    pub(crate) shard_us: f64,
}

impl Server {
    /// Starts a server on one core and waits until it listens.
    pub(crate) fn start(mut command: Command, cpu: usize, port: u16) -> anyhow::Result<Self> {
        let mut server = Self::spawn(&mut command, Some(cpu))?;
        for _ in 0..START_TRIES {
            if TcpStream::connect(("127.0.0.1", port)).is_ok() {
                return Ok(server);
            }
            if let Some(status) = server.0.try_wait()? {
                bail!("{command:?} ended at start: {status}");
            }
            thread::sleep(START_TRY);
        }
        bail!("{command:?} does not listen");
    }

    /// Starts a server and waits for nothing; `cpu`: on this core only.
    pub(crate) fn spawn(command: &mut Command, cpu: Option<usize>) -> anyhow::Result<Self> {
        command.stdin(Stdio::null()).stdout(Stdio::null());
        // SAFETY: pinning and raising a limit are plain system calls.
        unsafe {
            command.pre_exec(move || {
                raise_descriptor_limit();
                cpu.map_or(Ok(()), pin)
            });
        }
        Ok(Self(command.spawn().with_context(|| format!("{command:?}"))?))
    }

    pub(crate) fn pid(&self) -> u32 {
        self.0.id()
    }

    /// Waits until the server has done next to nothing for as long as `quiet_for`. One that never does is measured as it is, and
    /// that is said: how fast a machine is fails no bench.
    pub(crate) fn settle(&self, quiet_for: Duration) -> anyhow::Result<()> {
        let deadline = now() + QUIET_DEADLINE;
        let mut quiet_since = now();
        while quiet_since.elapsed() < quiet_for {
            let (before, began) = (self.cost()?.total_us, now());
            thread::sleep(QUIET_STEP);
            let used_us = self.cost()?.total_us - before;
            if used_us > QUIET_SHARE * began.elapsed().as_micros() as f64 {
                quiet_since = now();
            }
            if now() > deadline {
                eprintln!("the server is not quiet without load after {QUIET_DEADLINE:?}: measured all the same");
                break;
            }
        }
        Ok(())
    }

    /// CPU time used so far by all threads.
    pub(crate) fn cost(&self) -> anyhow::Result<Cost> {
        let (mut nanoseconds, mut of_shards) = (0, 0);
        for task in fs::read_dir(format!("/proc/{}/task", self.0.id()))? {
            let task = task?.path();
            // A thread may end between the list and the look.
            let Ok(schedstat) = fs::read_to_string(task.join("schedstat")) else { continue };
            let spent = schedstat.split(' ').next().context("schedstat")?.parse::<u64>()?;
            nanoseconds += spent;
            if fs::read_to_string(task.join("comm")).is_ok_and(|name| name.starts_with(SHARD)) {
                of_shards += spent;
            }
        }
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.0.id()))?;
        // The program's name, in parentheses, may hold anything; utime and stime are fields 14 and 15.
        let behind_name = stat.rsplit_once(") ").context("stat")?.1;
        let mut fields = behind_name.split(' ').skip(11).map(str::parse::<f64>);
        let mut ticks = || fields.next().context("stat")?.context("stat");
        let (user, system) = (ticks()?, ticks()?);
        let tick_us = 10_000.0;
        let (total_us, shard_us) = (nanoseconds as f64 / 1e3, of_shards as f64 / 1e3);
        Ok(Cost { user_us: user * tick_us, system_us: system * tick_us, total_us, shard_us })
    }

    /// Resident bytes.
    pub(crate) fn resident(&self) -> anyhow::Result<i64> {
        field(&format!("/proc/{}/status", self.0.id()), "VmRSS:")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It is gone already if this fails, and the wait says so to nobody.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

impl Cost {
    /// What was used since `earlier`; the split is scaled to the exact total.
    pub(crate) fn since(self, earlier: Self) -> Self {
        let total_us = self.total_us - earlier.total_us;
        let (user, system) = (self.user_us - earlier.user_us, self.system_us - earlier.system_us);
        let scale = total_us / (user + system).max(1.0);
        let shard_us = self.shard_us - earlier.shard_us;
        Self { user_us: user * scale, system_us: system * scale, total_us, shard_us }
    }

    /// Per message.
    pub(crate) fn per(self, messages: usize) -> Self {
        let each = |us: f64| us / messages as f64;
        Self {
            user_us: each(self.user_us),
            system_us: each(self.system_us),
            total_us: each(self.total_us),
            shard_us: each(self.shard_us),
        }
    }
}

/// Bytes of slab in the whole system.
pub(crate) fn slab() -> anyhow::Result<i64> {
    field("/proc/meminfo", "Slab:")
}

/// A field of a /proc file that counts kB.
fn field(path: &str, name: &str) -> anyhow::Result<i64> {
    let text = fs::read_to_string(path).with_context(|| path.to_owned())?;
    let value = text.lines().find_map(|line| line.strip_prefix(name)).with_context(|| format!("{name} in {path}"))?;
    Ok(value.trim().trim_end_matches(" kB").parse::<i64>()? * 1024)
}

/// A port that is free now.
pub(crate) fn free_port() -> io::Result<u16> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}

/// Pins the calling thread, and what it starts.
pub(crate) fn pin(cpu: usize) -> io::Result<()> {
    // SAFETY: all zeroes is an empty set, it has room for 1,024 cores, and its size is given.
    let result = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(cpu, &mut set);
        libc::sched_setaffinity(0, size_of_val(&set), &set)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Lets this process open as many descriptors as it is allowed to.
pub(crate) fn raise_descriptor_limit() {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: both calls are given a valid structure.
    unsafe {
        libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit);
        limit.rlim_cur = limit.rlim_max;
        libc::setrlimit(libc::RLIMIT_NOFILE, &limit);
    }
}
