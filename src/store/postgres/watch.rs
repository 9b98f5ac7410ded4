//! Deadlines for calls that have none.
//!
//! The `postgres` crate waits for an answer for as long as the connection lives. The server's own timeouts, `TCP_USER_TIMEOUT` and
//! keepalives end most waits, but not that for a server whose processes stand still: its kernel goes on acknowledging. So every
//! call is made under a [`Watch`], and one thread shuts the socket down under a call that lasts too long. The call then fails like
//! any other on a lost connection, and the connection is gone for good: nothing is ever answered late.
//!
//! The crate does not give its socket away. It is found among the descriptors of this process, by the server's address and by being
//! new; connections are therefore made one at a time. What is shut down is a duplicate that the watch owns, so that no descriptor
//! that was closed and given to somebody else is ever touched.

use std::{
    fs, io,
    net::SocketAddr,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd},
    path::PathBuf,
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use crossbeam::channel::{RecvTimeoutError, Sender, bounded};
use parking_lot::Mutex;
use rustc_hash::FxHashSet;
use socket2::{SockAddr, SockRef};

use crate::store::StoreError;

/// How much later than its deadline a call may end.
const TICK: Duration = Duration::from_millis(100);

#[expect(clippy::disallowed_methods, reason = "the clock enters here")]
pub(super) fn now() -> Instant {
    Instant::now()
}

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Peer {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

impl Peer {
    fn is(&self, address: &SockAddr) -> bool {
        match self {
            Self::Tcp(peer) => address.as_socket().is_some_and(|address| {
                // An IPv4 server seen through an IPv6 socket is the same one.
                address.port() == peer.port() && address.ip().to_canonical() == peer.ip().to_canonical()
            }),
            Self::Unix(path) => address.as_pathname() == Some(path),
        }
    }
}

/// The sockets of this process to one server, by inode: a number names one socket for as long as it exists.
fn sockets_to(peer: &Peer) -> io::Result<Vec<(u64, OwnedFd)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc/self/fd")? {
        let Some(fd) = entry?.file_name().to_str().and_then(|name| name.parse::<RawFd>().ok()) else { continue };
        let Some(fd) = duplicate_socket(fd) else { continue };
        if SockRef::from(&fd).peer_addr().is_ok_and(|address| peer.is(&address)) {
            found.push((inode(&fd)?, fd));
        }
    }
    Ok(found)
}

/// A descriptor of our own for a socket that has a peer; `None`: it has none, or it is closed by now.
fn duplicate_socket(fd: RawFd) -> Option<OwnedFd> {
    let mut length = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
    // SAFETY: all bytes zero are a valid sockaddr_storage.
    let mut address: libc::sockaddr_storage = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes at most `length` bytes to `address`; a descriptor that is closed or no socket is refused.
    if unsafe { libc::getpeername(fd, (&raw mut address).cast(), &raw mut length) } != 0 {
        return None;
    }
    // SAFETY: makes a new descriptor, or fails; no memory is involved.
    let own = unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 0) };
    // SAFETY: `own` was just made and nobody else knows it.
    (own >= 0).then(|| unsafe { OwnedFd::from_raw_fd(own) })
}

fn inode(fd: &OwnedFd) -> io::Result<u64> {
    // SAFETY: all bytes zero are a valid stat.
    let mut stat: libc::stat = unsafe { std::mem::zeroed() };
    // SAFETY: the descriptor is open, and `stat` has room for the answer.
    if unsafe { libc::fstat(fd.as_raw_fd(), &raw mut stat) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(stat.st_ino)
}

fn shut_down(fd: &OwnedFd) {
    // A socket that is down already needs no more.
    drop(SockRef::from(fd).shutdown(std::net::Shutdown::Both));
}

/// What is shut down when the deadline passes.
#[derive(Debug)]
enum Target {
    None,
    /// Whatever is new among the sockets to this server.
    Connecting {
        peer: Peer,
        before: FxHashSet<u64>,
    },
    Connected(OwnedFd),
}

/// One connection, as the watchdog sees it.
#[derive(Debug)]
pub(super) struct Watch {
    began: Instant,
    /// Milliseconds since `began`; 0: no call is made.
    deadline: AtomicU64,
    target: Mutex<Target>,
}

impl Watch {
    /// Says that a call begins that must end within `limit`.
    pub(super) fn arm(&self, limit: Duration) {
        self.deadline.store(self.elapsed().saturating_add(millis(limit)).max(1), Relaxed);
    }

    /// Says that the call ended.
    pub(super) fn disarm(&self) {
        self.deadline.store(0, Relaxed);
    }

    /// Says that a connection is being made. Until [`Self::connected`] no other may be made to the same server.
    pub(super) fn connecting(&self, peer: &Peer) {
        let before = match sockets_to(peer) {
            Ok(sockets) => sockets.into_iter().map(|(inode, _)| inode).collect(),
            Err(error) => {
                log::warn!(
                    "the sockets of this process cannot be listed ({error}): a server that stands still is not noticed"
                );
                return;
            }
        };
        *self.target.lock() = Target::Connecting { peer: peer.clone(), before };
    }

    /// Says that it was made. False: its socket was not found, and no deadline holds for it but the server's and the kernel's.
    pub(super) fn connected(&self) -> bool {
        let mut target = self.target.lock();
        let Target::Connecting { peer, before } = &*target else { return false };
        let mut new = new_sockets(peer, before);
        // Two: somebody else in this process talks to the same server.
        let only = if new.len() == 1 { new.pop() } else { None };
        *target = only.map_or(Target::None, Target::Connected);
        matches!(*target, Target::Connected(_))
    }

    fn elapsed(&self) -> u64 {
        millis(now().duration_since(self.began))
    }

    /// Whether the deadline has passed; if so it is no more.
    fn expired(&self) -> bool {
        let deadline = self.deadline.load(Relaxed);
        deadline != 0
            && deadline <= self.elapsed()
            && self.deadline.compare_exchange(deadline, 0, Relaxed, Relaxed).is_ok()
    }

    fn bite(&self) {
        match &*self.target.lock() {
            Target::None => {}
            Target::Connecting { peer, before } => new_sockets(peer, before).iter().for_each(shut_down),
            Target::Connected(fd) => shut_down(fd),
        }
    }
}

fn new_sockets(peer: &Peer, before: &FxHashSet<u64>) -> Vec<OwnedFd> {
    let sockets = sockets_to(peer).unwrap_or_default().into_iter();
    sockets.filter(|(inode, _)| !before.contains(inode)).map(|(_, fd)| fd).collect()
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// The thread that looks at the deadlines. Dropped, it ends.
#[derive(Debug)]
pub(super) struct Watchdog {
    watches: Arc<Mutex<Vec<Weak<Watch>>>>,
    /// Calls that were ended.
    bites: Arc<AtomicU64>,
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Watchdog {
    pub(super) fn start() -> Result<Self, StoreError> {
        let watches: Arc<Mutex<Vec<Weak<Watch>>>> = Arc::default();
        let bites = Arc::<AtomicU64>::default();
        let (stop, stopped) = bounded::<()>(0);
        let (looked_at, counted) = (Arc::clone(&watches), Arc::clone(&bites));
        let thread = std::thread::Builder::new().name("store-watchdog".to_owned()).spawn(move || {
            while stopped.recv_timeout(TICK) == Err(RecvTimeoutError::Timeout) {
                let expired = {
                    let mut watches = looked_at.lock();
                    watches.retain(|watch| watch.strong_count() > 0);
                    let live = watches.iter().filter_map(Weak::upgrade);
                    live.filter(|watch| watch.expired()).collect::<Vec<_>>()
                };
                for watch in expired {
                    counted.fetch_add(1, Relaxed);
                    log::warn!("PostgreSQL did not answer in time: the connection is given up");
                    watch.bite();
                }
            }
        });
        let thread =
            thread.map_err(|error| StoreError::Unavailable(format!("cannot start thread store-watchdog: {error}")))?;
        Ok(Self { watches, bites, stop: Some(stop), thread: Some(thread) })
    }

    /// A watch for one connection.
    pub(super) fn watch(&self) -> Arc<Watch> {
        let watch = Arc::new(Watch { began: now(), deadline: AtomicU64::new(0), target: Mutex::new(Target::None) });
        self.watches.lock().push(Arc::downgrade(&watch));
        watch
    }

    /// Calls ended so far.
    pub(super) fn bites(&self) -> u64 {
        self.bites.load(Relaxed)
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        drop(self.stop.take());
        // The last connection may end on the watchdog's own thread: it does not wait for itself.
        if let Some(thread) = self.thread.take().filter(|thread| thread.thread().id() != std::thread::current().id())
            && thread.join().is_err()
        {
            log::error!("the watchdog of the store had panicked");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::Read as _,
        net::{TcpListener, TcpStream},
    };

    use super::*;

    #[test]
    fn a_read_from_a_server_that_stands_still_ends() {
        let server = TcpListener::bind("127.0.0.1:0").unwrap();
        let peer = Peer::Tcp(server.local_addr().unwrap());
        let dog = Watchdog::start().unwrap();
        let other = TcpStream::connect(server.local_addr().unwrap()).unwrap();
        let watch = dog.watch();
        watch.connecting(&peer);
        let mut stream = TcpStream::connect(server.local_addr().unwrap()).unwrap();
        assert!(watch.connected());
        watch.arm(Duration::from_millis(1));
        assert_eq!(stream.read(&mut [0]).unwrap(), 0, "shut down while it waits");
        assert_eq!(dog.bites(), 1);
        other.set_nonblocking(true).unwrap();
        let error = (&other).read(&mut [0]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock, "the connection made before is untouched");
    }

    #[test]
    fn a_connection_that_is_being_made_ends_too() {
        let server = TcpListener::bind("127.0.0.1:0").unwrap();
        let peer = Peer::Tcp(server.local_addr().unwrap());
        let dog = Watchdog::start().unwrap();
        let watch = dog.watch();
        watch.connecting(&peer);
        let mut stream = TcpStream::connect(server.local_addr().unwrap()).unwrap();
        watch.arm(Duration::from_millis(1));
        assert_eq!(stream.read(&mut [0]).unwrap(), 0);
    }

    #[test]
    fn a_call_that_ended_in_time_is_left_alone() {
        let dog = Watchdog::start().unwrap();
        let watch = dog.watch();
        watch.arm(Duration::ZERO);
        watch.disarm();
        assert!(!watch.expired());
        watch.arm(Duration::from_secs(3600));
        assert!(!watch.expired());
    }
}
