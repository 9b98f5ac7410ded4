//! The io_uring engine: one pinned glommio executor per shard, and one task in it.
//!
//! ```text
//! ring completion ──▶ source's waker ──▶ Ready (slots of this thread) ──▶ the shard's task
//! ```
//!
//! There is no task per connection. Every source (socket, listener, wake-up, timer) is polled with a waker that carries nothing
//! but a number: waking it puts the number on the thread's [`READY`] list and wakes the shard's one task, which takes a turn as
//! the epoll engine does. So the shard's state has one owner and needs no cell, and no borrow can be held across an `.await`.
//!
//! glommio waits for readiness through the ring and reads into the shard's buffer; writes go to the socket directly, through the
//! ring only while a peer is slow. It must start with 8 MiB of lockable memory, so its buffers are small: glommio's own default
//! would register 10 MiB.

use std::{
    cell::RefCell,
    future::poll_fn,
    io,
    os::{
        fd::{AsRawFd, FromRawFd, IntoRawFd, RawFd},
        unix::net::UnixStream,
    },
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, RawWaker, RawWakerVTable, Waker},
    time::Duration,
};

use futures_io::{AsyncRead, AsyncWrite};
use glommio::{GlommioError, LocalExecutor, LocalExecutorBuilder, Placement, net, timer::Timer};

use super::{
    ACCEPTS_PER_TURN, Accepting, Driver, Io, READ_BUFFER_BYTES, Wake, Written,
    launch::{Bound, Listeners},
    sockets::{Drained, Sockets, Waiting},
};
use crate::gateway::{CloseReason, ConnId, Listener};

/// glommio's least. It holds buffers of file I/O, which a shard has none of.
const IO_MEMORY_BYTES: usize = 64 * 1024;
/// Submissions that one system call hands over. With rings of this depth, 8 MiB of lockable memory are enough for 31 shards; four
/// times the depth is not faster and leaves 16.
const RING_DEPTH: usize = 256;
/// A turn with more work ready yields to the ring this often.
const PREEMPT: Duration = Duration::from_millis(1);

/// Numbers that are no slots; listeners count down from the last.
const WAKE: u32 = u32::MAX;
const TIMER: u32 = u32::MAX - 1;
const LISTENER_LAST: u32 = u32::MAX - 2;

struct Woken {
    numbers: Vec<u32>,
    task: Option<Waker>,
}

thread_local! {
    /// Sources that may go on. Filled by wakers, which glommio calls on the executor's own thread.
    static READY: RefCell<Woken> = const { RefCell::new(Woken { numbers: Vec::new(), task: None }) };
}

/// A waker that carries a number and owns nothing.
fn waker(number: u32) -> Waker {
    const fn raw(data: *const ()) -> RawWaker {
        RawWaker::new(data, &VTABLE)
    }
    fn wake(data: *const ()) {
        let task = READY.with_borrow_mut(|ready| {
            ready.numbers.push(data.addr() as u32);
            ready.task.take()
        });
        if let Some(task) = task {
            task.wake();
        }
    }
    const fn drop(_data: *const ()) {}
    static VTABLE: RawWakerVTable = RawWakerVTable::new(raw, wake, wake, drop);
    // SAFETY: the data pointer is a number and is never dereferenced; clone and drop have nothing to count. Waking from another
    // thread would touch that thread's list only.
    unsafe { Waker::from_raw(raw(std::ptr::without_provenance(number as usize))) }
}

/// Wakes a shard by a byte on its socketpair.
pub(super) struct ByteWake(UnixStream);

impl Wake for ByteWake {
    fn wake(&self) {
        // It fails only when the pair is full of wakes already.
        drop(send(self.0.as_raw_fd(), &[1]));
    }
}

/// What a shard on io_uring needs before its thread starts: the sender's end and the shard's.
pub(super) fn prepare() -> io::Result<(ByteWake, UnixStream)> {
    let (sender, receiver) = UnixStream::pair()?;
    Ok((ByteWake(sender), receiver))
}

/// Makes the executor of the current thread, pinned to `cpu`. It fails where io_uring is refused.
pub(super) fn executor(cpu: Option<usize>) -> io::Result<LocalExecutor> {
    LocalExecutorBuilder::new(cpu.map_or(Placement::Unbound, Placement::Fixed))
        .io_memory(IO_MEMORY_BYTES)
        .ring_depth(RING_DEPTH)
        .preempt_timer(PREEMPT)
        .make()
        .map_err(|error| io::Error::other(error.to_string()))
}

/// Runs a shard on the current thread until it is drained.
pub(super) fn run(executor: &LocalExecutor, wake: UnixStream, bound: Vec<Bound>, driver: Driver) -> io::Result<()> {
    executor.run(serve(wake, bound, driver))
}

async fn serve(wake: UnixStream, bound: Vec<Bound>, mut driver: Driver) -> io::Result<()> {
    // SAFETY: the descriptor is open and given up by `wake`.
    let mut wake = unsafe { net::UnixStream::from_raw_fd(wake.into_raw_fd()) };
    let mut shard = Shard {
        peers: Peers { sockets: Sockets::new() },
        buffer: vec![0; READ_BUFFER_BYTES].into(),
        acceptors: Listeners::new(bound, Acceptor::new)?,
        again: Vec::new(),
    };
    let mut timer = Alarm { timer: None };
    let mut readable = Vec::new();
    let mut woken = Vec::new();
    take_wakes(&mut wake)?;
    loop {
        // The sockets that the last turn left unread; those this turn leaves go to the other list.
        std::mem::swap(&mut readable, &mut shard.again);
        READY.with_borrow_mut(|ready| std::mem::swap(&mut woken, &mut ready.numbers));
        for number in woken.drain(..) {
            match number {
                WAKE => take_wakes(&mut wake)?,
                TIMER => timer.timer = None,
                number => shard.handle_ready(number, &mut driver),
            }
        }
        for conn in readable.drain(..) {
            shard.read(conn, &mut driver);
        }
        let accepting = shard.accept(&mut driver);
        let mut wait_ms = driver.turn(&mut shard.peers);
        if driver.finished() {
            return Ok(());
        }
        shard.acceptors.follow(&mut driver, Acceptor::new);
        wait_ms = if shard.again.is_empty() { accepting.wait_ms(wait_ms) } else { 0 };
        if wait_ms > 0 && driver.park() {
            timer.arm(driver.now().mono_ms + wait_ms, wait_ms);
            parked().await;
            driver.unpark();
        } else {
            yielded().await;
        }
        driver.awake();
    }
}

/// Waits until a source is ready.
async fn parked() {
    poll_fn(|cx| {
        READY.with_borrow_mut(|ready| {
            if !ready.numbers.is_empty() {
                return Poll::Ready(());
            }
            ready.task = Some(cx.waker().clone());
            Poll::Pending
        })
    })
    .await;
}

/// Lets the executor look at the ring, when it is time to, and goes on.
async fn yielded() {
    let mut once = false;
    poll_fn(|cx| {
        if std::mem::replace(&mut once, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// Reads the wake-up bytes away and waits for the next.
fn take_wakes(wake: &mut net::UnixStream) -> io::Result<()> {
    let mut bytes = [0; 64];
    let waker = waker(WAKE);
    loop {
        match Pin::new(&mut *wake).poll_read(&mut Context::from_waker(&waker), &mut bytes) {
            Poll::Pending => return Ok(()),
            Poll::Ready(Ok(0)) => return Err(io::Error::other("the shard's mailbox is gone")),
            Poll::Ready(Ok(_)) => {}
            Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
            Poll::Ready(Err(error)) => return Err(error),
        }
    }
}

/// The shard's one timer. One that rings early is kept: a turn too many costs less than arming it anew each turn.
struct Alarm {
    timer: Option<(u64, Timer)>,
}

impl Alarm {
    fn arm(&mut self, at: u64, wait_ms: u64) {
        if self.timer.as_ref().is_some_and(|(armed, _)| *armed <= at) {
            return;
        }
        let mut timer = Timer::new(Duration::from_millis(wait_ms));
        let waker = waker(TIMER);
        if Pin::new(&mut timer).poll(&mut Context::from_waker(&waker)).is_ready() {
            waker.wake();
        }
        self.timer = Some((at, timer));
    }
}

struct Shard {
    peers: Peers,
    buffer: Box<[u8]>,
    acceptors: Listeners<Acceptor>,
    /// Sockets that may have more to read, for the next turn.
    again: Vec<ConnId>,
}

struct Peers {
    sockets: Sockets<Peer>,
}

struct Peer {
    stream: net::TcpStream,
    waiting: Waiting,
}

impl Shard {
    fn handle_ready(&mut self, number: u32, driver: &mut Driver) {
        if let Some(acceptor) = self.acceptors.open().get_mut((LISTENER_LAST - number) as usize) {
            acceptor.ready = true;
            return;
        }
        let Some((conn, peer)) = self.peers.sockets.at(number) else { return };
        if !peer.waiting.is_empty() {
            match peer.drain(conn) {
                Drained::All => driver.drained(conn),
                Drained::Blocked => {}
                Drained::Failed => return self.close(conn, CloseReason::Io, driver),
            }
        }
        self.read(conn, driver);
    }

    /// Reads once and leaves the waker at the socket. A full buffer is read again in the next turn.
    fn read(&mut self, conn: ConnId, driver: &mut Driver) {
        let waker = waker(conn.slot);
        // After a short read glommio waits for the ring already, so the second poll only leaves the waker there.
        for _ in 0..2 {
            let Some(peer) = self.peers.sockets.find(conn) else { return };
            match Pin::new(&mut peer.stream).poll_read(&mut Context::from_waker(&waker), &mut self.buffer) {
                Poll::Pending => return,
                Poll::Ready(Ok(0)) => return self.close(conn, CloseReason::Peer, driver),
                Poll::Ready(Ok(count)) => {
                    let bytes = self.buffer.get(..count).unwrap_or_default();
                    driver.received(conn, bytes, &mut self.peers);
                    if count == READ_BUFFER_BYTES {
                        break;
                    }
                }
                Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::Interrupted => break,
                Poll::Ready(Err(_)) => return self.close(conn, CloseReason::Io, driver),
            }
        }
        if self.peers.sockets.find(conn).is_some() {
            self.again.push(conn);
        }
    }

    fn close(&mut self, conn: ConnId, reason: CloseReason, driver: &mut Driver) {
        self.peers.close(conn);
        driver.closed(conn, reason, &mut self.peers);
    }

    fn accept(&mut self, driver: &mut Driver) -> Accepting {
        let mut left = Accepting::Idle;
        for index in 0..self.acceptors.open().len() {
            left = left.max(self.accept_on(index, driver));
        }
        left
    }

    fn accept_on(&mut self, index: usize, driver: &mut Driver) -> Accepting {
        let Some(acceptor) = self.acceptors.open().get_mut(index).filter(|acceptor| acceptor.ready) else {
            return Accepting::Idle;
        };
        let listener = acceptor.listener;
        for _ in 0..driver.accept_allowance().min(ACCEPTS_PER_TURN) {
            let Some(acceptor) = self.acceptors.open().get_mut(index) else { break };
            match acceptor.poll_accept() {
                Poll::Pending => {
                    acceptor.ready = false;
                    return Accepting::Idle;
                }
                Poll::Ready(Ok(stream)) => {
                    // A peer that is gone again has no address.
                    let Ok(peer) = stream.peer_addr() else { continue };
                    match driver.accepted(peer.ip().to_canonical(), listener) {
                        Ok(conn) => {
                            self.peers.sockets.insert(conn, Peer { stream, waiting: Waiting::default() });
                            self.read(conn, driver);
                        }
                        // The core has counted it.
                        Err(_) => shut(stream.as_raw_fd()),
                    }
                }
                Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Poll::Ready(Err(error)) => {
                    driver.accept_failed(&error);
                    return Accepting::Paused;
                }
            }
        }
        if driver.accept_allowance() == 0 { Accepting::Paused } else { Accepting::Busy }
    }
}

type Accept = Pin<Box<dyn Future<Output = glommio::Result<net::AcceptedTcpStream, ()>>>>;

struct Acceptor {
    socket: Rc<net::TcpListener>,
    fd: RawFd,
    listener: Listener,
    number: u32,
    /// The accept under way in the ring.
    next: Option<Accept>,
    /// Whether connections may wait: accepting has not come to its end since the waker was called.
    ready: bool,
}

impl Acceptor {
    fn new(bound: Bound, index: usize) -> io::Result<Self> {
        // Some kernels answer EAGAIN to an accept in the ring on a non-blocking socket, instead of waiting.
        bound.socket.set_nonblocking(false)?;
        let fd = bound.socket.into_raw_fd();
        // SAFETY: the descriptor is a listening socket, open and given up by `bound`.
        let socket = Rc::new(unsafe { net::TcpListener::from_raw_fd(fd) });
        let number = LISTENER_LAST - index as u32;
        Ok(Self { socket, fd, listener: bound.address.listener, number, next: None, ready: true })
    }

    fn poll_accept(&mut self) -> Poll<io::Result<net::TcpStream>> {
        let next = self.next.get_or_insert_with(|| {
            let socket = Rc::clone(&self.socket);
            Box::pin(async move { socket.shared_accept().await })
        });
        let waker = waker(self.number);
        let Poll::Ready(accepted) = next.as_mut().poll(&mut Context::from_waker(&waker)) else { return Poll::Pending };
        self.next = None;
        Poll::Ready(match accepted {
            Ok(accepted) => Ok(accepted.bind_to_executor()),
            Err(GlommioError::IoError(error)) => Err(error),
            Err(error) => Err(io::Error::other(error.to_string())),
        })
    }
}

impl Drop for Acceptor {
    fn drop(&mut self) {
        shut(self.fd);
    }
}

impl Peer {
    /// Sends what waits; when the peer is still slow, the ring says when it is worth another try.
    fn drain(&mut self, conn: ConnId) -> Drained {
        let waker = waker(conn.slot);
        let Self { stream, waiting } = self;
        waiting.drain(|bytes| match Pin::new(&mut *stream).poll_write(&mut Context::from_waker(&waker), bytes) {
            Poll::Ready(sent) => sent,
            Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
        })
    }
}

impl Io for Peers {
    fn write(&mut self, conn: ConnId, bytes: &[u8]) -> Written {
        let Some(peer) = self.sockets.find(conn) else { return Written::Failed };
        let waited = !peer.waiting.is_empty();
        let fd = peer.stream.as_raw_fd();
        match peer.waiting.write(bytes, |bytes| send(fd, bytes)) {
            Written::Blocked if !waited => match peer.drain(conn) {
                Drained::All => Written::All,
                Drained::Blocked => Written::Blocked,
                Drained::Failed => Written::Failed,
            },
            written => written,
        }
    }

    fn close(&mut self, conn: ConnId) {
        if let Some(peer) = self.sockets.remove(conn) {
            shut(peer.stream.as_raw_fd());
        }
    }
}

/// Ends a connection, or listening, at once: what waits for it in the ring keeps the file open until its cancellation is through.
fn shut(fd: RawFd) {
    // SAFETY: every caller owns the descriptor, which is open. A failure says that the peer was faster.
    unsafe { libc::shutdown(fd, libc::SHUT_RDWR) };
}

/// Sends what the socket takes now.
fn send(fd: RawFd, bytes: &[u8]) -> io::Result<usize> {
    // SAFETY: pointer and length are of one slice; the caller owns an open descriptor.
    let sent = unsafe { libc::send(fd, bytes.as_ptr().cast(), bytes.len(), libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
}
