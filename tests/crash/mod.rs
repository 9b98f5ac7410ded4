//! The real gateway as a child process: started on an empty data directory, killed, started again on the same one.

#![allow(dead_code, reason = "each test uses its part")]

use std::{
    fs::{self, File},
    io::{BufRead as _, BufReader},
    net::{SocketAddr, TcpListener},
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU16, Ordering::Relaxed},
    thread,
    time::Duration,
};

/// Ports are taken below the range that outgoing connections use: a device that connects while the gateway is down would
/// otherwise now and then meet itself.
static NEXT_PORT: AtomicU16 = AtomicU16::new(0);

/// A gateway that does not start is started this often.
const STARTS: u32 = 100;

pub(crate) struct Gateway {
    dir: tempfile::TempDir,
    pub(crate) device: SocketAddr,
    pub(crate) http: SocketAddr,
    settings: Vec<(&'static str, String)>,
    child: Option<Child>,
}

impl Gateway {
    /// Starts and waits until it says that it is ready. `settings`: names without `CHARGEGATE_`.
    pub(crate) fn start(settings: &[(&'static str, &str)]) -> Self {
        let settings = settings.iter().map(|(key, value)| (*key, (*value).to_owned())).collect();
        let dir = tempfile::tempdir().unwrap();
        let mut gateway = Self { dir, device: free_address(), http: free_address(), settings, child: None };
        gateway.start_again();
        gateway
    }

    /// Starts on the same directory and ports, as often as a supervisor would: what it needs may not be there yet.
    pub(crate) fn start_again(&mut self) {
        assert!(self.child.is_none(), "it runs");
        for _ in 0..STARTS {
            if self.launch() {
                return;
            }
            let status = self.child.take().expect("it was started").wait().unwrap();
            // Something it depends on is down, or what an io_uring held is not given back yet.
            if status.code() != Some(3) && !self.log().contains("Address already in use") {
                break;
            }
            thread::park_timeout(Duration::from_millis(200));
        }
        panic!("the gateway does not start:\n{}", self.log());
    }

    /// Whether it got ready; if not, it ends.
    fn launch(&mut self) -> bool {
        let log = File::options().create(true).append(true).open(self.dir.path().join("log")).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_chargegate"));
        command
            .current_dir(self.dir.path())
            .env("CHARGEGATE_DATA_DIR", self.dir.path().join("data"))
            .env("CHARGEGATE_DEVICE_LISTEN", self.device.to_string())
            .env("CHARGEGATE_HTTP_LISTEN", self.http.to_string())
            .envs(self.settings.iter().map(|(key, value)| (format!("CHARGEGATE_{key}"), value)))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log);
        let mut child = command.spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        self.child = Some(child);
        lines.any(|line| line.is_ok_and(|line| line.starts_with("API ")))
    }

    /// Whether it has not ended by itself.
    pub(crate) fn runs(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| child.try_wait().unwrap().is_none())
    }

    /// Sends it a signal.
    pub(crate) fn signal(&self, signal: libc::c_int) {
        let pid = i32::try_from(self.child.as_ref().expect("it runs").id()).unwrap();
        // SAFETY: `kill` takes two numbers; the child is not waited for yet, so its id is its own.
        assert_eq!(unsafe { libc::kill(pid, signal) }, 0);
    }

    /// `kill -9`.
    pub(crate) fn kill(&mut self) {
        let mut child = self.child.take().expect("it runs");
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// SIGTERM; whether it ended with 0.
    pub(crate) fn stop(&mut self) -> bool {
        self.signal(libc::SIGTERM);
        self.child.take().expect("it runs").wait().unwrap().success()
    }

    pub(crate) fn api_key(&self) -> String {
        fs::read_to_string(self.dir.path().join("data/api_key")).unwrap().trim().to_owned()
    }

    pub(crate) fn sql(&self) -> rusqlite::Connection {
        rusqlite::Connection::open(self.database()).unwrap()
    }

    fn database(&self) -> PathBuf {
        self.dir.path().join("data/chargegate.db")
    }

    /// Resident bytes.
    pub(crate) fn resident(&self) -> u64 {
        let pid = self.child.as_ref().expect("it runs").id();
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
    }

    /// The end of what it logged.
    pub(crate) fn log(&self) -> String {
        let log = fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            // It is gone already if this fails, and the wait says so to nobody.
            drop(child.kill());
            drop(child.wait());
        }
        if thread::panicking() {
            eprintln!("the gateway's log ends with:\n{}", self.log());
        }
    }
}

fn free_address() -> SocketAddr {
    let first = u16::try_from(std::process::id() % 20_000).unwrap();
    loop {
        let port = 11_000 + (first + NEXT_PORT.fetch_add(1, Relaxed)) % 20_000;
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        if TcpListener::bind(address).is_ok() {
            return address;
        }
    }
}

/// Lets this process and its children open as many descriptors as they are allowed to.
pub(crate) fn raise_descriptor_limit() {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: both calls are given a valid structure that outlives them.
    unsafe {
        libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit);
        limit.rlim_cur = limit.rlim_max;
        libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit);
    }
}
