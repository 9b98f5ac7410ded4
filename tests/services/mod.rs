//! PostgreSQL and Redis for tests: real servers, private to the test process, on ports of 127.0.0.1 and in temporary directories.
//!
//! - [`Postgres`] and [`Redis`]: a server of a test's own, which can be killed, paused, stopped and started again.
//! - [`postgres`] and [`redis`]: one server of each kind for all tests of the binary, started when first asked for. A test asks it
//!   for a database of its own, and leaves the server alone.
//!
//! The programs are those of Debian's packages, from PATH or from where Debian keeps them; `scripts/install-services` installs
//! them. Where they are missing a test fails; it is not skipped.
//!
//! However the test process ends, its servers end too and their directories go: each server has a guard, a shell that waits for the
//! end of a pipe which only the test process holds. `PR_SET_PDEATHSIG` would not do: it looks at the thread that started the server,
//! and the threads of tests end before the process does.

#![allow(dead_code, reason = "each test binary uses its part")]

use std::{
    env,
    ffi::OsString,
    fs::{self, File},
    io::{ErrorKind, Write as _},
    net::{Ipv4Addr, TcpListener},
    os::unix::{
        fs::{PermissionsExt as _, chown},
        process::CommandExt as _,
    },
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
    sync::{
        OnceLock,
        atomic::{AtomicU16, AtomicU32, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use postgres::{Client, Config, NoTls};
use redis::ConnectionLike as _;

/// Only turns a hang into a failure.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two looks at a condition.
const LOOK_AGAIN: Duration = Duration::from_millis(5);
/// Connections that a test may hold open at one PostgreSQL server, all databases together.
const POSTGRES_CONNECTIONS: u32 = 200;
/// Logical databases of one Redis server.
const REDIS_DATABASES: u32 = 1_000;
/// Servers listen below the ports that outgoing connections use, so that none of those takes the port of a server that is down,
/// and above those that the tests' gateways take.
const PORTS: std::ops::Range<u16> = 31_000..32_700;

#[expect(clippy::disallowed_methods, reason = "the clock enters here")]
fn now() -> Instant {
    Instant::now()
}

/// Looks until there is something; `None` at the deadline.
fn until<T>(mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let began = now();
    loop {
        let found = look();
        if found.is_some() || now().duration_since(began) >= PATIENCE {
            return found;
        }
        thread::sleep(LOOK_AGAIN);
    }
}

/// The PostgreSQL server that the tests of this binary share. It commits without waiting for the disk.
pub(crate) fn postgres() -> &'static Postgres {
    static SHARED: OnceLock<Postgres> = OnceLock::new();
    SHARED.get_or_init(|| Postgres::start(&PostgresOptions { fsync: false, ..PostgresOptions::default() }))
}

/// The Redis server that the tests of this binary share; it keeps nothing on disk. [`Redis::database`] separates keys, but not the
/// channels of publishers: tests that listen to channels whose names they do not choose start a server of their own.
pub(crate) fn redis() -> &'static Redis {
    static SHARED: OnceLock<Redis> = OnceLock::new();
    SHARED.get_or_init(|| Redis::start(Persistence::None))
}

/// How a PostgreSQL server is started.
#[derive(Clone, Debug)]
pub(crate) struct PostgresOptions {
    /// Whether a commit waits for the disk. A killed server loses nothing either way; the machine's death is another matter.
    pub(crate) fsync: bool,
    /// Further settings as in `postgresql.conf`; they win over the harness's own.
    pub(crate) settings: Vec<(String, String)>,
}

impl Default for PostgresOptions {
    fn default() -> Self {
        Self { fsync: true, settings: Vec::new() }
    }
}

/// A running PostgreSQL server. Dropped, it is ended and its directory removed.
pub(crate) struct Postgres {
    server: Server,
    databases: AtomicU32,
}

impl Postgres {
    /// Makes an empty cluster, starts it and waits until it answers.
    pub(crate) fn start(options: &PostgresOptions) -> Self {
        let programs = postgres_programs();
        let owner = owner();
        let directory = Directory::new("postgres", owner);
        let data = directory.path.join("data");
        let mut initdb = command(&programs.join("initdb"), owner, &directory.path);
        initdb.arg("--pgdata").arg(&data);
        // Nothing that could be lost is in it yet.
        initdb.args(["--username=postgres", "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync"]);
        let made = initdb.output().expect("initdb can be started");
        assert!(made.status.success(), "initdb: {}", String::from_utf8_lossy(&made.stderr));
        let mut arguments: Vec<OsString> = vec!["-D".into(), data.into()];
        let own = [
            ("listen_addresses", "127.0.0.1"),
            ("unix_socket_directories", directory.path.to_str().expect("a path of the tests")),
            ("fsync", if options.fsync { "on" } else { "off" }),
            ("shared_buffers", "64MB"),
            ("max_connections", &POSTGRES_CONNECTIONS.to_string()),
            // In the directory: a killed server leaves nothing behind in the system.
            ("dynamic_shared_memory_type", "mmap"),
            ("log_line_prefix", "%m [%p] %d "),
        ];
        let own = own.map(|(name, value)| (name.to_owned(), value.to_owned()));
        for (name, value) in own.iter().chain(&options.settings) {
            arguments.extend(["-c".into(), format!("{name}={value}").into()]);
        }
        let server = Server::start(Kind::Postgres, programs.join("postgres"), arguments, owner, directory);
        Self { server, databases: AtomicU32::new(0) }
    }

    /// Of the database that every cluster has.
    pub(crate) fn url(&self) -> String {
        self.url_of("postgres")
    }

    /// The process that starts all others of the server.
    pub(crate) fn pid(&self) -> u32 {
        self.server.pid().unsigned_abs()
    }

    fn url_of(&self, database: &str) -> String {
        format!("postgres://postgres@127.0.0.1:{}/{database}", self.server.port)
    }

    /// The port of 127.0.0.1; it stays the same over restarts.
    pub(crate) fn port(&self) -> u16 {
        self.server.port
    }

    /// Makes an empty database and returns its URL. `name` is for people who read the log; a number makes it this one's own.
    pub(crate) fn database(&self, name: &str) -> String {
        self.create(name, "template1")
    }

    /// Makes a copy of a database of this server, which nobody may be connected to, and returns its URL. Faster than to migrate an
    /// empty one.
    pub(crate) fn database_like(&self, url: &str, name: &str) -> String {
        let (_, template) = url.rsplit_once('/').expect("a URL of this server");
        self.create(name, template)
    }

    fn create(&self, name: &str, template: &str) -> String {
        let name = format!("{name}_{}", self.databases.fetch_add(1, Relaxed));
        self.client()
            .batch_execute(&format!("CREATE DATABASE \"{name}\" TEMPLATE \"{template}\""))
            .expect("it is made");
        self.url_of(&name)
    }

    /// A connection to the database that every cluster has.
    pub(crate) fn client(&self) -> Client {
        Client::connect(&self.url(), NoTls).expect("the server takes connections")
    }

    /// Ends all its processes at once, as the machine's death would.
    pub(crate) fn kill9(&mut self) {
        self.server.kill9();
    }

    /// Ends its sessions, writes everything down and ends.
    pub(crate) fn stop_fast(&mut self) {
        self.server.stop(libc::SIGINT);
    }

    /// Starts it again on the same data and port, and waits until it answers. A server that runs is killed before.
    pub(crate) fn restart(&mut self) {
        self.server.restart();
    }

    /// None of its processes does anything until [`Self::resume`]. The kernel goes on accepting connections for it.
    pub(crate) fn pause(&self) {
        self.server.pause();
    }

    pub(crate) fn resume(&self) {
        self.server.resume();
    }

    /// What it logged.
    pub(crate) fn log(&self) -> String {
        self.server.log()
    }

    /// Where all its files are.
    pub(crate) fn directory(&self) -> &Path {
        &self.server.directory.path
    }
}

/// What a Redis server keeps on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Persistence {
    /// Nothing: it is empty after every start.
    None,
    /// Every write goes to a file, which is forced to the disk every second.
    EverySecond,
    /// Every write is forced to the disk before it is answered.
    Always,
}

/// A running Redis server. Dropped, it is ended and its directory removed.
pub(crate) struct Redis {
    server: Server,
    databases: AtomicU32,
}

impl Redis {
    /// Starts an empty server and waits until it answers.
    pub(crate) fn start(persistence: Persistence) -> Self {
        let program = in_path("redis-server").unwrap_or_else(|| missing("Redis"));
        let directory = Directory::new("redis", None);
        let (append, fsync) = match persistence {
            Persistence::None => ("no", "no"),
            Persistence::EverySecond => ("yes", "everysec"),
            Persistence::Always => ("yes", "always"),
        };
        let databases = REDIS_DATABASES.to_string();
        let dir = directory.path.to_str().expect("a path of the tests");
        let arguments = [
            ["--bind", "127.0.0.1"],
            ["--dir", dir],
            ["--databases", &databases],
            ["--save", ""],
            ["--appendonly", append],
            ["--appendfsync", fsync],
        ];
        let arguments = arguments.iter().flatten().map(OsString::from).collect();
        let server = Server::start(Kind::Redis, program, arguments, None, directory);
        // Database 0 is nobody's.
        Self { server, databases: AtomicU32::new(1) }
    }

    /// Of its logical database 0.
    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.server.port)
    }

    /// Its process.
    pub(crate) fn pid(&self) -> u32 {
        self.server.pid().unsigned_abs()
    }

    /// The port of 127.0.0.1; it stays the same over restarts.
    pub(crate) fn port(&self) -> u16 {
        self.server.port
    }

    /// The URL of a logical database that nobody else was given.
    pub(crate) fn database(&self) -> String {
        let number = self.databases.fetch_add(1, Relaxed);
        assert!(number < REDIS_DATABASES, "a Redis server has no more than {REDIS_DATABASES} databases");
        format!("{}/{number}", self.url())
    }

    /// A connection to its logical database 0.
    pub(crate) fn client(&self) -> redis::Connection {
        let client = redis::Client::open(self.url()).expect("a sound URL");
        client.get_connection().expect("the server takes connections")
    }

    /// Empties it, all logical databases.
    pub(crate) fn flush(&self) {
        redis::cmd("FLUSHALL").exec(&mut self.client()).expect("it empties itself");
    }

    /// Ends all its processes at once, as the machine's death would.
    pub(crate) fn kill9(&mut self) {
        self.server.kill9();
    }

    /// Starts it again with what it kept, on the same port, and waits until it answers. A server that runs is killed before.
    pub(crate) fn restart(&mut self) {
        self.server.restart();
    }

    /// As [`Self::restart`], after what it kept is lost.
    pub(crate) fn restart_empty(&mut self) {
        self.kill9();
        match fs::remove_dir_all(self.server.directory.path.join("appendonlydir")) {
            Ok(()) => {}
            Err(error) => assert_eq!(error.kind(), ErrorKind::NotFound, "{error}"),
        }
        self.server.restart();
    }

    /// None of its processes does anything until [`Self::resume`]. The kernel goes on accepting connections for it.
    pub(crate) fn pause(&self) {
        self.server.pause();
    }

    pub(crate) fn resume(&self) {
        self.server.resume();
    }

    /// What it logged.
    pub(crate) fn log(&self) -> String {
        self.server.log()
    }

    /// Where all its files are.
    pub(crate) fn directory(&self) -> &Path {
        &self.server.directory.path
    }
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Postgres,
    Redis,
}

impl Kind {
    fn port_arguments(self, port: u16) -> [String; 2] {
        match self {
            Self::Postgres => ["-p".to_owned(), port.to_string()],
            Self::Redis => ["--port".to_owned(), port.to_string()],
        }
    }

    fn answers(self, port: u16) -> bool {
        match self {
            Self::Postgres => {
                let mut config = Config::new();
                config.host("127.0.0.1").port(port).user("postgres").connect_timeout(PATIENCE);
                config.connect(NoTls).is_ok()
            }
            Self::Redis => redis::Client::open((String::from("127.0.0.1"), port))
                .and_then(|client| client.get_connection_with_timeout(PATIENCE))
                .is_ok_and(|mut connection| connection.check_connection()),
        }
    }
}

/// A server's process, or the place where one was and will be again.
struct Server {
    kind: Kind,
    program: PathBuf,
    arguments: Vec<OsString>,
    owner: Option<(u32, u32)>,
    port: u16,
    child: Option<Child>,
    directory: Directory,
}

impl Server {
    fn start(
        kind: Kind,
        program: PathBuf,
        arguments: Vec<OsString>,
        owner: Option<(u32, u32)>,
        directory: Directory,
    ) -> Self {
        let mut server = Self { kind, program, arguments, owner, port: free_port(), child: None, directory };
        // Somebody else may have found the same port free.
        while !server.launch() {
            assert!(server.log().contains("Address already in use"), "{kind:?} does not start:\n{}", server.log());
            server.port = free_port();
        }
        server
    }

    /// Whether it answers; it may end by itself before.
    fn launch(&mut self) -> bool {
        assert!(self.child.is_none(), "it runs");
        let log = File::options().create(true).append(true).open(self.log_path()).expect("a log file");
        let errors = log.try_clone().expect("a descriptor");
        let mut command = command(&self.program, self.owner, &self.directory.path);
        command.args(&self.arguments).args(self.kind.port_arguments(self.port));
        // Of a group of its own: an interrupt from the terminal is for the tests.
        command.stdin(Stdio::null()).stdout(log).stderr(errors).process_group(0);
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{}: {error}", self.program.display()));
        self.directory.guard(child.id());
        let ready = until(|| match child.try_wait().expect("it was started") {
            Some(_) => Some(false),
            None => self.kind.answers(self.port).then_some(true),
        });
        self.child = Some(child);
        let ready = ready.unwrap_or_else(|| panic!("{:?} does not answer:\n{}", self.kind, self.log()));
        if !ready {
            self.forget();
        }
        ready
    }

    fn pid(&self) -> libc::pid_t {
        let child = self.child.as_ref().expect("it runs");
        libc::pid_t::try_from(child.id()).expect("a process id")
    }

    fn kill9(&mut self) {
        if self.child.is_none() {
            return;
        }
        let (pid, children) = (self.pid(), self.halted_children());
        signal(pid, libc::SIGKILL);
        for child in &children {
            signal(*child, libc::SIGKILL);
        }
        self.forget();
        // A successor must not meet them.
        let gone =
            until(|| children.iter().all(|child| state(*child).is_none_or(|(state, _)| state == 'Z')).then_some(()));
        assert!(gone.is_some(), "a killed process lives on");
    }

    fn stop(&mut self, with: libc::c_int) {
        signal(self.pid(), with);
        let child = self.child.as_mut().expect("it runs");
        let ended = until(|| child.try_wait().expect("it was started"));
        assert!(ended.is_some(), "{:?} does not stop:\n{}", self.kind, self.log());
        self.forget();
    }

    /// Waits for the end of a process that ends.
    fn forget(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.wait().expect("it was started");
        }
        // Its number may be another's soon.
        self.directory.guard(0);
    }

    fn restart(&mut self) {
        self.kill9();
        assert!(self.launch(), "{:?} does not start again:\n{}", self.kind, self.log());
    }

    fn pause(&self) {
        for child in self.halted_children() {
            signal(child, libc::SIGSTOP);
        }
    }

    fn resume(&self) {
        for child in children_of(self.pid()) {
            signal(child, libc::SIGCONT);
        }
        signal(self.pid(), libc::SIGCONT);
    }

    /// Stops the server's first process, which then makes no more children, and finds those it has.
    fn halted_children(&self) -> Vec<libc::pid_t> {
        let pid = self.pid();
        signal(pid, libc::SIGSTOP);
        // A stop is not immediate; one that ended by itself does not matter here.
        let halted = until(|| state(pid).is_none_or(|(state, _)| matches!(state, 'T' | 'Z')).then_some(()));
        assert!(halted.is_some(), "{:?} does not halt", self.kind);
        children_of(pid)
    }

    fn log_path(&self) -> PathBuf {
        self.directory.path.join("log")
    }

    fn log(&self) -> String {
        fs::read_to_string(self.log_path()).unwrap_or_default()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            eprintln!("{:?}'s log ends with:\n{}", self.kind, lines[lines.len().saturating_sub(20)..].join("\n"));
        }
        // The guard ends it; a child that nobody waits for would look alive to the guard.
        drop(self.directory.pipe.take());
        if let Some(mut child) = self.child.take() {
            drop(child.wait());
        }
    }
}

/// Ends the server, if one runs, when the pipe ends, and removes the directory. PostgreSQL ends its children at SIGQUIT without
/// writing anything down, also if they are stopped; Redis knows no SIGQUIT.
const GUARD: &str = r#"
pid=0
while read -r line; do pid=$line; done
if [ "$pid" -gt 0 ]; then
    kill -CONT "$pid"
    kill -"$2" "$pid"
    tries=0
    while kill -0 "$pid" && [ $tries -lt 200 ]; do
        sleep 0.05
        tries=$((tries + 1))
    done
    kill -KILL "$pid"
fi
rm -rf "$1"
"#;

/// A server's directory, and its guard.
struct Directory {
    path: PathBuf,
    pipe: Option<ChildStdin>,
    guard: Child,
}

impl Directory {
    fn new(kind: &str, owner: Option<(u32, u32)>) -> Self {
        let made = tempfile::Builder::new().prefix(&format!("chargegate-{kind}-")).tempdir().expect("a directory");
        fs::set_permissions(made.path(), fs::Permissions::from_mode(0o700)).expect("it is ours");
        if let Some((uid, gid)) = owner {
            chown(made.path(), Some(uid), Some(gid)).expect("root may");
        }
        let mut guard = Command::new("/bin/sh");
        guard.args(["-c", GUARD, "guard"]).arg(made.path()).arg(if kind == "redis" { "KILL" } else { "QUIT" });
        // Nothing of it is seen, and whoever reads what the tests print need not wait for its end.
        guard.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0).current_dir("/");
        let mut guard = guard.spawn().expect("a shell");
        let pipe = guard.stdin.take();
        Self { path: made.keep(), pipe, guard }
    }

    /// Tells the guard which process is to end; 0: none.
    fn guard(&mut self, pid: u32) {
        let pipe = self.pipe.as_mut().expect("open until the end");
        pipe.write_all(format!("{pid}\n").as_bytes()).expect("the guard reads");
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        drop(self.pipe.take());
        drop(self.guard.wait());
    }
}

/// A program that runs as `owner`, in `directory`, with nothing of the surroundings' settings for it.
fn command(program: &Path, owner: Option<(u32, u32)>, directory: &Path) -> Command {
    let mut command = Command::new(program);
    for (name, _) in env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("PG")) {
        command.env_remove(name);
    }
    if let Some((uid, gid)) = owner {
        command.uid(uid).gid(gid);
    }
    command.current_dir(directory);
    command
}

/// Whom PostgreSQL is to run as, and whom its files belong to: it refuses to run as root. `None`: ourselves.
fn owner() -> Option<(u32, u32)> {
    // SAFETY: the call has no arguments and cannot fail.
    if unsafe { libc::geteuid() } != 0 {
        return None;
    }
    let users = fs::read_to_string("/etc/passwd").expect("every system has one");
    let find = |name: &str| {
        let fields = users.lines().map(|line| line.split(':').collect::<Vec<_>>());
        fields.into_iter().find_map(|fields| match fields[..] {
            [user, _, uid, gid, ..] if user == name => Some((uid.parse().ok()?, gid.parse().ok()?)),
            _ => None,
        })
    };
    Some(find("postgres").or_else(|| find("nobody")).expect("PostgreSQL needs a user that is not root"))
}

fn missing(what: &str) -> ! {
    panic!("the tests need {what}: run scripts/install-services")
}

fn in_path(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path).map(|directory| directory.join(program)).find(|program| program.is_file())
}

/// Where PostgreSQL's programs are: in PATH, else the newest of Debian's.
fn postgres_programs() -> PathBuf {
    let has_both = |directory: &PathBuf| ["initdb", "postgres"].iter().all(|name| directory.join(name).is_file());
    // What is in PATH may be a link to where the others are.
    let linked = in_path("initdb").and_then(|initdb| Some(initdb.canonicalize().ok()?.parent()?.to_owned()));
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut versions: Vec<u32> = versions.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    versions.sort_unstable_by(|one, other| other.cmp(one));
    let versions = versions.iter().map(|version| PathBuf::from(format!("/usr/lib/postgresql/{version}/bin")));
    linked.into_iter().chain(versions).find(has_both).unwrap_or_else(|| missing("PostgreSQL"))
}

/// A port that nobody listens on. Processes that look at the same time begin at different ones.
fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let len = PORTS.end - PORTS.start;
    let first = u16::try_from(std::process::id() % u32::from(len)).expect("below the length");
    for _ in 0..len {
        let port = PORTS.start + (first + NEXT.fetch_add(1, Relaxed) % len) % len;
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return port;
        }
    }
    panic!("no port of {PORTS:?} is free");
}

fn signal(pid: libc::pid_t, signal: libc::c_int) {
    // SAFETY: no memory is involved. The process is a child not waited for, or a child's child found a moment ago, which at worst
    // has ended.
    unsafe { libc::kill(pid, signal) };
}

/// A process's state and parent, as in `/proc`; `None` where there is none.
fn state(pid: libc::pid_t) -> Option<(char, libc::pid_t)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The program's name is in parentheses and may hold anything.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    Some((fields.next()?.chars().next()?, fields.next()?.parse().ok()?))
}

fn children_of(parent: libc::pid_t) -> Vec<libc::pid_t> {
    let processes = fs::read_dir("/proc").expect("Linux").flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid| state(*pid).is_some_and(|(_, of)| of == parent)).collect()
}
