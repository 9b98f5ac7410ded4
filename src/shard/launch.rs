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

use super::{Clock, Driver, ListenAddress, MAILBOX_CAPACITY, Mailbox, Peers, Wake};
use crate::{
    gateway::{Core, Listener, Message, ShardId},
    store::Store,
};

/// What `auto` starts.
const AUTO: Engine = Engine::Mio;
/// Connections the kernel queues per listener; it cuts this to `net.core.somaxconn`.
const BACKLOG: i32 = 4096;
/// A shard that drains is told again this often.
const DRAIN_AGAIN: Duration = Duration::from_millis(100);

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
    pub(super) listener: Listener,
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
        let (waker, wake) = super::glommio::prepare().map_err(refused)?;
        let (made, is_made) = sync_channel(1);
        self.add(shard, Box::new(waker), move |work| {
            let executor = match super::glommio::executor(cpu) {
                Ok(executor) => executor,
                Err(error) => return drop(made.send(Err(error))),
            };
            drop(made.send(Ok(())));
            let Ok(work) = work.recv() else { return };
            work.run(shard, |driver, bound| super::glommio::run(&executor, wake, bound, driver));
        })?;
        let made = is_made.recv().unwrap_or_else(|_| Err(io::Error::other("its executor panicked")));
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
        let handle = std::thread::Builder::new().name(name).spawn(move || body(receiver)).map_err(StartError::Thread)?;
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
        let (listen, bound) = bind_all(listen, seeds.len())?;
        let peers = Arc::new(Peers::new(self.mailboxes.clone()));
        let (ended_sender, ended) = channel();
        let mut handles = Vec::with_capacity(self.threads.len());
        for (((thread, mailbox), seed), bound) in self.threads.into_iter().zip(&self.mailboxes).zip(seeds).zip(bound) {
            let Seed { core, tick } = seed;
            let driver = Driver::new(core, clock, mailbox.clone(), Arc::clone(&peers), Arc::clone(store), tick);
            let work = Work { driver, bound, on_failure: Arc::clone(on_failure), ended: ended_sender.clone() };
            if thread.work.send(work).is_err() {
                return Err(StartError::Thread(io::Error::other("it ended while it waited")));
            }
            handles.push(thread.handle);
        }
        Ok(Running { engine: self.engine, mailboxes: self.mailboxes, listen, handles, ended })
    }
}

impl Work {
    /// Runs the shard and says how it ended.
    fn run(self, shard: ShardId, run: impl FnOnce(Driver, Vec<Bound>) -> io::Result<()>) {
        let Self { driver, bound, on_failure, ended } = self;
        let reason = match catch_unwind(AssertUnwindSafe(|| run(driver, bound))) {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(error.to_string()),
            Err(panic) => Some(panic_text(panic.as_ref()).to_owned()),
        };
        let clean = reason.is_none();
        if let Some(reason) = reason {
            on_failure(ShardFailure { shard, reason });
        }
        // Nobody listens when the process ends without waiting.
        ended.send(clean).unwrap_or_default();
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

    /// Tells all shards to accept no more, to finish what is under way and to close their connections. One whose mailbox is full
    /// is told by [`Running::join`].
    pub fn drain(&self) {
        for mailbox in &self.mailboxes {
            drop(mailbox.send(Message::Drain));
        }
    }

    /// Drains all shards and waits until they have ended, at most for `deadline`.
    pub fn join(self, deadline: Duration) -> Stopped {
        let until = now() + deadline;
        let mut stopped = Stopped { clean: 0, failed: 0, forced: self.handles.len() };
        self.drain();
        while stopped.forced > 0 {
            let left = until.saturating_duration_since(now());
            match self.ended.recv_timeout(left.min(DRAIN_AGAIN)) {
                Ok(clean) => {
                    stopped.forced -= 1;
                    *if clean { &mut stopped.clean } else { &mut stopped.failed } += 1;
                }
                Err(RecvTimeoutError::Timeout) if left.is_zero() => return stopped,
                Err(RecvTimeoutError::Timeout) => self.drain(),
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

/// Binds every address once per shard. The first bind of an address chooses the port where 0 is asked for.
fn bind_all(
    listen: &[ListenAddress],
    shards: usize,
) -> Result<(Vec<ListenAddress>, Vec<Vec<Bound>>), StartError> {
    let mut bound: Vec<Vec<Bound>> = (0..shards).map(|_| Vec::new()).collect();
    let mut addresses = Vec::with_capacity(listen.len());
    for ListenAddress { mut addr, listener } in listen.iter().copied() {
        let failed = |source| StartError::Listen { addr, source };
        // With SO_REUSEPORT a second gateway would share the port in silence; a plain bind finds the first.
        drop(socket(addr, false).map_err(failed)?);
        for bound in &mut bound {
            let socket = listening(addr).map_err(|source| StartError::Listen { addr, source })?;
            addr = socket.local_addr().map_err(|source| StartError::Listen { addr, source })?;
            bound.push(Bound { socket, listener });
        }
        addresses.push(ListenAddress { addr, listener });
    }
    Ok((addresses, bound))
}

fn socket(addr: SocketAddr, shared: bool) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(shared)?;
    socket.bind(&addr.into())?;
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
