//! Starting and stopping shards: engine choice, threads, cores, listeners.
//!
//! Two steps, because mailboxes are needed long before devices may connect:
//!
//! 1. [`prepare`] starts one pinned thread per shard with its epoll set or ring, so that whatever the kernel refuses is known at
//!    once, and gives out the mailboxes. The threads wait.
//! 2. [`Prepared::start`] binds all listeners, of all shards, before the first shard runs.
//!
//! A shard that ends without having been drained is reported at once: the process must not go on half alive.

use std::{
    any::Any,
    fmt, io,
    net::{SocketAddr, TcpListener},
    panic::{AssertUnwindSafe, catch_unwind},
    str::FromStr,
    sync::{
        Arc,
        atomic::AtomicU64,
        mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, channel, sync_channel},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use socket2::{Domain, Protocol, Socket, Type};

use super::{Asks, Clock, Driver, ListenAddress, MAILBOX_CAPACITY, Mailbox, Peers, Wake};
use crate::{
    gateway::{Core, DrainPace, Message, ShardId},
    store::Store,
};

/// What `auto` starts. Per message both engines make the same calls, a `recv` and a `send`; they differ in how they wait, which is one
/// `epoll_wait` on epoll, and about nine calls into the rings, a memory barrier and four calls more on io_uring. So they are the same where
/// a shard has much to do in each turn, and epoll is cheaper where it often waits: as a ratio to a bare epoll loop, at 1,000 connections with
/// 50 outstanding, 1.4 for io_uring where epoll has 1.0 to 1.1. `docs/benchmarks.md` has the figures.
const AUTO: Engine = Engine::Mio;
/// Connections the kernel queues per listener; it cuts this to `net.core.somaxconn`.
const BACKLOG: i32 = 4096;
/// A shard that is to stop is told again this often.
const STOP_AGAIN: Duration = Duration::from_millis(100);

/// The engines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    /// epoll.
    Mio,
    /// io_uring.
    Glommio,
}

impl fmt::Display for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Mio => "mio",
            Self::Glommio => "glommio",
        })
    }
}

/// `shard.engine`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EngineChoice {
    /// The faster one by measurement; epoll where io_uring is refused.
    #[default]
    Auto,
    /// This one, or no start.
    Only(Engine),
}

impl FromStr for EngineChoice {
    type Err = UnknownEngine;

    fn from_str(text: &str) -> Result<Self, UnknownEngine> {
        match text {
            "auto" => Ok(Self::Auto),
            "glommio" => Ok(Self::Only(Engine::Glommio)),
            "mio" => Ok(Self::Only(Engine::Mio)),
            _ => Err(UnknownEngine),
        }
    }
}

/// A word that names no engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("shard.engine must be auto, glommio or mio")]
pub struct UnknownEngine;

/// Why the shards do not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The kernel, or what stands before it, refuses the engine.
    #[error("the {engine} engine cannot start")]
    Engine {
        /// Which.
        engine: Engine,
        /// What was refused.
        #[source]
        source: io::Error,
    },
    /// A thread could not be started.
    #[error("cannot start a shard's thread")]
    Thread(#[source] io::Error),
    /// An address cannot be listened on.
    #[error("cannot listen on {addr}")]
    Listen {
        /// The address.
        addr: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// A shard that ended without having been drained.
#[derive(Clone, Debug)]
pub struct ShardFailure {
    /// Which.
    pub shard: ShardId,
    /// What it said.
    pub reason: String,
}

/// Called on the thread of a shard that failed; expected to end the process.
pub type OnFailure = Arc<dyn Fn(ShardFailure) + Send + Sync>;

/// A listener of one shard.
pub(super) struct Bound {
    pub(super) socket: TcpListener,
    pub(super) address: ListenAddress,
}

impl Bound {
    /// Listens on an address that this process may share with itself. Does not block.
    pub(super) fn open(address: ListenAddress) -> io::Result<Self> {
        Ok(Self { socket: listening(address.addr)?, address })
    }
}

/// The listeners of a shard, which are closed while it is drained, so that devices are refused and go elsewhere.
pub(super) struct Listeners<L> {
    addresses: Vec<ListenAddress>,
    open: Vec<L>,
}

impl<L> Listeners<L> {
    /// Listeners that are open.
    pub(super) fn new(bound: Vec<Bound>, mut adopt: impl FnMut(Bound, usize) -> io::Result<L>) -> io::Result<Self> {
        let addresses = bound.iter().map(|bound| bound.address).collect();
        let open = bound.into_iter().enumerate().map(|(index, bound)| adopt(bound, index)).collect::<Result<_, _>>()?;
        Ok(Self { addresses, open })
    }

    pub(super) const fn open(&mut self) -> &mut Vec<L> {
        &mut self.open
    }

    /// Closes or opens them, as the driver wants it. What cannot be opened is tried again when accepting may go on.
    pub(super) fn follow(&mut self, driver: &mut Driver, mut adopt: impl FnMut(Bound, usize) -> io::Result<L>) {
        if driver.draining() {
            self.open.clear();
            return;
        }
        if self.open.len() == self.addresses.len() || driver.accept_allowance() == 0 {
            return;
        }
        for index in self.open.len()..self.addresses.len() {
            match Bound::open(self.addresses[index]).and_then(|bound| adopt(bound, index)) {
                Ok(listener) => self.open.push(listener),
                Err(error) => {
                    let addr = self.addresses[index].addr;
                    log::error!(target: "chargegate::accept", addr:% = addr, error:% = error; "cannot listen again");
                    return driver.accept_failed(&error);
                }
            }
        }
    }
}

/// What a waiting thread is given to run.
struct Work {
    driver: Driver,
    bound: Vec<Bound>,
    on_failure: OnFailure,
    ended: Sender<bool>,
}

/// What is particular to one shard.
pub struct Seed {
    /// Its core, with the shard's number.
    pub core: Core,
    /// Stamped with the monotonic time of every turn.
    pub tick: Arc<AtomicU64>,
    /// Where swiped cards are asked; `None`: nowhere.
    pub asks: Option<Asks>,
}

/// Shards whose threads wait.
pub struct Prepared {
    engine: Engine,
    mailboxes: Vec<Mailbox>,
    threads: Vec<Thread>,
}

struct Thread {
    work: SyncSender<Work>,
    handle: JoinHandle<()>,
}

/// Starts the threads of `shards` shards. Where `auto` prefers io_uring and it is refused, epoll takes its place and one warning
/// says so.
pub fn prepare(choice: EngineChoice, shards: u16) -> Result<Prepared, StartError> {
    match choice {
        EngineChoice::Only(engine) => Prepared::new(engine, shards),
        EngineChoice::Auto => prefer(AUTO, shards),
    }
}

fn prefer(engine: Engine, shards: u16) -> Result<Prepared, StartError> {
    match Prepared::new(engine, shards) {
        Err(StartError::Engine { engine: Engine::Glommio, source }) => {
            log::warn!(reason:% = source; "io_uring is refused, shards run on epoll");
            Prepared::new(Engine::Mio, shards)
        }
        prepared => prepared,
    }
}

impl Prepared {
    fn new(engine: Engine, shards: u16) -> Result<Self, StartError> {
        let cpus = allowed_cpus();
        let cpu = |index: u16| cpus.get(usize::from(index) % cpus.len().max(1)).copied();
        let mut prepared = Self { engine, mailboxes: Vec::new(), threads: Vec::new() };
        for index in 0..shards {
            match engine {
                Engine::Mio => prepared.add_mio(ShardId(index), cpu(index))?,
                Engine::Glommio => prepared.add_glommio(ShardId(index), cpu(index))?,
            }
        }
        Ok(prepared)
    }

    fn add_mio(&mut self, shard: ShardId, cpu: Option<usize>) -> Result<(), StartError> {
        let refused = |source| StartError::Engine { engine: Engine::Mio, source };
        let (poll, waker) = super::mio::prepare().map_err(refused)?;
        self.add(shard, Box::new(waker), move |work| {
            if let Some(cpu) = cpu {
                pin(cpu);
            }
            let Ok(work) = work.recv() else { return };
            work.run(shard, |driver, bound| super::mio::run(poll, bound, driver));
        })
    }

    #[cfg(target_os = "linux")]
    fn add_glommio(&mut self, shard: ShardId, cpu: Option<usize>) -> Result<(), StartError> {
        let refused = |source| StartError::Engine { engine: Engine::Glommio, source };
        let (poll, waker) = super::mio::prepare().map_err(refused)?;
        let (made, is_made) = sync_channel(1);
        self.add(shard, Box::new(waker), move |work| {
            // Out of lockable memory, glommio returns an error or panics, depending on where it is.
            let executor = match outcome_of(|| super::glommio::executor(cpu)) {
                Ok(executor) => executor,
                Err(reason) => return drop(made.send(Err(io::Error::other(reason)))),
            };
            drop(made.send(Ok(())));
            let Ok(work) = work.recv() else { return };
            work.run(shard, |driver, bound| super::glommio::run(&executor, poll, bound, driver));
        })?;
        let made = is_made.recv().unwrap_or_else(|_| Err(io::Error::other("its thread is gone")));
        made.map_err(refused)
    }

    #[cfg(not(target_os = "linux"))]
    fn add_glommio(&mut self, _shard: ShardId, _cpu: Option<usize>) -> Result<(), StartError> {
        Err(StartError::Engine { engine: Engine::Glommio, source: io::ErrorKind::Unsupported.into() })
    }

    fn add(
        &mut self,
        shard: ShardId,
        wake: Box<dyn Wake>,
        body: impl FnOnce(Receiver<Work>) + Send + 'static,
    ) -> Result<(), StartError> {
        let (work, receiver) = sync_channel(1);
        let name = format!("shard-{}", shard.0);
        let handle =
            std::thread::Builder::new().name(name).spawn(move || body(receiver)).map_err(StartError::Thread)?;
        self.mailboxes.push(Mailbox::new(MAILBOX_CAPACITY, wake));
        self.threads.push(Thread { work, handle });
        Ok(())
    }

    /// The engine that runs.
    pub const fn engine(&self) -> Engine {
        self.engine
    }

    /// The mailboxes by shard.
    pub fn mailboxes(&self) -> &[Mailbox] {
        &self.mailboxes
    }

    /// Binds the listeners of all shards and lets the shards run. There is one seed per shard, in their order.
    pub fn start(
        self,
        seeds: Vec<Seed>,
        clock: Clock,
        store: &Arc<dyn Store>,
        listen: &[ListenAddress],
        on_failure: &OnFailure,
    ) -> Result<Running, StartError> {
        assert_eq!(seeds.len(), self.threads.len(), "one seed per shard");
        let BoundAll { listen, bound, kept } = bind_all(listen, seeds.len())?;
        let peers = Arc::new(Peers::new(self.mailboxes.clone()));
        let (ended_sender, ended) = channel();
        let mut handles = Vec::with_capacity(self.threads.len());
        for (((thread, mailbox), seed), bound) in self.threads.into_iter().zip(&self.mailboxes).zip(seeds).zip(bound) {
            let Seed { core, tick, asks } = seed;
            let driver = Driver::new(core, clock, mailbox.clone(), Arc::clone(&peers), Arc::clone(store), tick);
            let driver = driver.with_asks(asks);
            let work = Work { driver, bound, on_failure: Arc::clone(on_failure), ended: ended_sender.clone() };
            if thread.work.send(work).is_err() {
                return Err(StartError::Thread(io::Error::other("it ended while it waited")));
            }
            handles.push(thread.handle);
        }
        Ok(Running { engine: self.engine, mailboxes: self.mailboxes, listen, handles, ended, _kept: kept })
    }
}

impl Work {
    /// Runs the shard and says how it ended.
    fn run(self, shard: ShardId, run: impl FnOnce(Driver, Vec<Bound>) -> io::Result<()>) {
        let Self { driver, bound, on_failure, ended } = self;
        let outcome = outcome_of(|| run(driver, bound));
        let clean = outcome.is_ok();
        if let Err(reason) = outcome {
            on_failure(ShardFailure { shard, reason });
        }
        // Nobody listens when the process ends without waiting.
        ended.send(clean).unwrap_or_default();
    }
}

/// `Err` says why `run` failed or what it panicked with.
fn outcome_of<T>(run: impl FnOnce() -> io::Result<T>) -> Result<T, String> {
    match catch_unwind(AssertUnwindSafe(run)) {
        Ok(outcome) => outcome.map_err(|error| error.to_string()),
        Err(panic) => Err(panic_text(panic.as_ref()).to_owned()),
    }
}

fn panic_text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("it panicked")
}

/// Shards at work.
pub struct Running {
    engine: Engine,
    mailboxes: Vec<Mailbox>,
    listen: Vec<ListenAddress>,
    handles: Vec<JoinHandle<()>>,
    ended: Receiver<bool>,
    /// They keep the addresses while no shard listens.
    _kept: Vec<Socket>,
}

/// How shards stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stopped {
    /// Drained to the end.
    pub clean: usize,
    /// Failed before.
    pub failed: usize,
    /// Still at work when the deadline came.
    pub forced: usize,
}

impl Running {
    /// The engine that runs.
    pub const fn engine(&self) -> Engine {
        self.engine
    }

    /// The mailboxes by shard.
    pub fn mailboxes(&self) -> &[Mailbox] {
        &self.mailboxes
    }

    /// The addresses listened on, with the ports that the kernel chose.
    pub fn listen(&self) -> &[ListenAddress] {
        &self.listen
    }

    /// Tells all shards to stop. One whose mailbox is full is told the next time.
    fn stop(&self, pace: DrainPace) {
        for mailbox in &self.mailboxes {
            drop(mailbox.send(Message::Stop(pace)));
        }
    }

    /// Stops all shards and waits until they have ended, at most for `deadline`. Their `connections` are closed `per_s` at a time
    /// (0: all at once), and faster where that takes more than half of the deadline; in its last quarter, what is open is closed.
    pub fn join(self, deadline: Duration, per_s: u32, connections: u64) -> Stopped {
        let began = now();
        let (until, at_once_at) = (began + deadline, began + deadline.mul_f32(0.75));
        let least = connections.saturating_mul(2000) / u64::try_from(deadline.as_millis()).unwrap_or(u64::MAX).max(1);
        let per_s = if per_s == 0 { 0 } else { per_s.max(u32::try_from(least).unwrap_or(u32::MAX)) };
        let patience_ms = u64::try_from(deadline.as_millis()).unwrap_or(u64::MAX);
        let gradual = DrainPace::of_shard(per_s, self.handles.len(), patience_ms);
        let stop = || self.stop(if now() < at_once_at { gradual } else { DrainPace::AT_ONCE });
        let mut stopped = Stopped { clean: 0, failed: 0, forced: self.handles.len() };
        stop();
        while stopped.forced > 0 {
            let left = until.saturating_duration_since(now());
            match self.ended.recv_timeout(left.min(STOP_AGAIN)) {
                Ok(clean) => {
                    stopped.forced -= 1;
                    *if clean { &mut stopped.clean } else { &mut stopped.failed } += 1;
                }
                Err(RecvTimeoutError::Timeout) if left.is_zero() => return stopped,
                Err(RecvTimeoutError::Timeout) => stop(),
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        for handle in self.handles {
            // A panic has been reported by the thread itself.
            drop(handle.join());
        }
        stopped
    }
}

#[expect(clippy::disallowed_methods, reason = "the clock enters here")]
fn now() -> Instant {
    Instant::now()
}

/// The listeners of all shards.
struct BoundAll {
    /// With the ports that the kernel chose.
    listen: Vec<ListenAddress>,
    /// By shard.
    bound: Vec<Vec<Bound>>,
    /// One socket per address that does not listen: the kernel gives the address to nobody else while listeners are closed.
    kept: Vec<Socket>,
}

/// Binds every address once per shard. The first bind of an address chooses the port where 0 is asked for.
fn bind_all(listen: &[ListenAddress], shards: usize) -> Result<BoundAll, StartError> {
    let mut bound: Vec<Vec<Bound>> = (0..shards).map(|_| Vec::new()).collect();
    let mut addresses = Vec::with_capacity(listen.len());
    let mut kept = Vec::with_capacity(listen.len());
    for ListenAddress { mut addr, listener } in listen.iter().copied() {
        let failed = |source| StartError::Listen { addr, source };
        // With SO_REUSEPORT a second gateway would share the port in silence; a plain bind finds the first.
        drop(socket(addr, false).map_err(failed)?);
        for bound in &mut bound {
            let socket = listening(addr).map_err(|source| StartError::Listen { addr, source })?;
            addr = socket.local_addr().map_err(|source| StartError::Listen { addr, source })?;
            bound.push(Bound { socket, address: ListenAddress { addr, listener } });
        }
        kept.push(keeping(addr).map_err(|source| StartError::Listen { addr, source })?);
        addresses.push(ListenAddress { addr, listener });
    }
    Ok(BoundAll { listen: addresses, bound, kept })
}

fn socket(addr: SocketAddr, shared: bool) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(shared)?;
    socket.bind(&addr.into())?;
    Ok(socket)
}

/// Keeps an address without listening. Sharing is for this user's sockets alone from here on: one that merely wants to reuse the
/// address is refused.
fn keeping(addr: SocketAddr) -> io::Result<Socket> {
    let socket = socket(addr, true)?;
    socket.set_reuse_address(false)?;
    Ok(socket)
}

/// One of several listeners on an address: the kernel spreads connections over them.
fn listening(addr: SocketAddr) -> io::Result<TcpListener> {
    let socket = socket(addr, true)?;
    // Accepted sockets inherit it, which saves a call per connection.
    socket.set_tcp_nodelay(true)?;
    socket.set_nonblocking(true)?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// The cores this process may run on; empty where the system does not say.
#[cfg(target_os = "linux")]
fn allowed_cpus() -> Vec<usize> {
    // SAFETY: all zeroes is an empty set.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: the set is as large as is said.
    if unsafe { libc::sched_getaffinity(0, size_of_val(&set), &mut set) } != 0 {
        return Vec::new();
    }
    // SAFETY: `cpu` is below the size of the set.
    (0..libc::CPU_SETSIZE as usize).filter(|cpu| unsafe { libc::CPU_ISSET(*cpu, &set) }).collect()
}

#[cfg(not(target_os = "linux"))]
fn allowed_cpus() -> Vec<usize> {
    Vec::new()
}

/// Pins the current thread.
#[cfg(target_os = "linux")]
fn pin(cpu: usize) {
    // SAFETY: all zeroes is an empty set.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: `cpu` came out of a set of this size.
    unsafe { libc::CPU_SET(cpu, &mut set) };
    // SAFETY: the set is as large as is said.
    if unsafe { libc::sched_setaffinity(0, size_of_val(&set), &set) } != 0 {
        log::warn!(cpu, reason:% = io::Error::last_os_error(); "a shard's thread cannot be pinned");
    }
}

#[cfg(not(target_os = "linux"))]
fn pin(_cpu: usize) {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::Listener;

    #[test]
    fn engines_are_chosen_by_their_names() {
        assert_eq!("auto".parse(), Ok(EngineChoice::Auto));
        for engine in [Engine::Mio, Engine::Glommio] {
            assert_eq!(engine.to_string().parse(), Ok(EngineChoice::Only(engine)));
        }
        assert_eq!("epoll".parse::<EngineChoice>(), Err(UnknownEngine));
    }

    #[test]
    fn a_shard_that_fails_or_panics_says_why() {
        assert_eq!(outcome_of(|| Ok(())), Ok(()));
        assert_eq!(outcome_of::<()>(|| Err(io::Error::other("no memory"))), Err("no memory".to_owned()));
        assert_eq!(outcome_of::<()>(|| panic!("slot {} is taken", 3)), Err("slot 3 is taken".to_owned()));
    }

    #[test]
    fn all_shards_listen_on_the_port_chosen_for_the_first() {
        let addr = SocketAddr::from(([127, 0, 0, 1], 0));
        let BoundAll { listen, bound, kept } = bind_all(&[ListenAddress { addr, listener: Listener::Gn }], 3).unwrap();
        assert_ne!(listen[0].addr.port(), 0);
        for bound in bound.iter().flatten() {
            assert_eq!(bound.socket.local_addr().unwrap(), listen[0].addr);
            assert_eq!(bound.address.listener, Listener::Gn);
        }
        // Closed listeners refuse, and the address is still ours.
        drop(bound);
        let refused = std::net::TcpStream::connect(listen[0].addr).expect_err("nobody listens");
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
        assert!(TcpListener::bind(listen[0].addr).is_err(), "somebody else's");
        assert!(Bound::open(listen[0]).is_ok());
        drop(kept);
    }

    #[test]
    fn accepted_sockets_inherit_nodelay() {
        let listener = listening(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        listener.set_nonblocking(false).unwrap();
        let device = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        assert!(!device.nodelay().unwrap());
        assert!(listener.accept().unwrap().0.nodelay().unwrap());
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn each_core_allowed_is_found_and_can_be_pinned_to() {
        let cpus = allowed_cpus();
        assert!(!cpus.is_empty());
        for cpu in cpus {
            let pinned = std::thread::spawn(move || {
                pin(cpu);
                allowed_cpus()
            });
            assert_eq!(pinned.join().unwrap(), [cpu]);
        }
    }

    /// Runs itself again in a process that may not make a ring, as in a container with the usual system call filter.
    #[test]
    #[cfg(target_os = "linux")]
    fn epoll_takes_over_where_io_uring_is_refused() {
        use std::{os::unix::process::CommandExt, process::Command};

        const REFUSED: &str = "CHARGEGATE_TEST_IO_URING_REFUSED";
        if std::env::var_os(REFUSED).is_some() {
            let refused = prepare(EngineChoice::Only(Engine::Glommio), 2).err().expect("it is refused");
            assert!(matches!(refused, StartError::Engine { engine: Engine::Glommio, .. }), "{refused:?}");
            assert_eq!(prefer(Engine::Glommio, 2).unwrap().engine(), Engine::Mio);
            return;
        }
        let mut child = Command::new(std::env::current_exe().unwrap());
        child.args(["--exact", "shard::launch::tests::epoll_takes_over_where_io_uring_is_refused"]).env(REFUSED, "1");
        // SAFETY: the filter is made of plain system calls, which may be made between fork and exec.
        unsafe { child.pre_exec(refuse_io_uring) };
        assert!(child.status().unwrap().success());
    }

    /// Makes `io_uring_setup` fail with EPERM in this process and its children.
    #[cfg(target_os = "linux")]
    fn refuse_io_uring() -> io::Result<()> {
        const fn instruction(code: u32, jf: u8, k: u32) -> libc::sock_filter {
            libc::sock_filter { code: code as u16, jt: 0, jf, k }
        }
        let filter = [
            // The system call's number is the first word of `seccomp_data`.
            instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0),
            instruction(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 1, libc::SYS_io_uring_setup as u32),
            instruction(libc::BPF_RET | libc::BPF_K, 0, libc::SECCOMP_RET_ERRNO | libc::EPERM as u32),
            instruction(libc::BPF_RET | libc::BPF_K, 0, libc::SECCOMP_RET_ALLOW),
        ];
        let program = libc::sock_fprog { len: 4, filter: filter.as_ptr().cast_mut() };
        // SAFETY: the program outlives the calls, which copy it.
        let set = unsafe {
            libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
                && libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) == 0
        };
        if set { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}
