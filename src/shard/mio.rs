//! The epoll engine: one `mio::Poll` per shard, edge-triggered.
//!
//! Per message it makes one `recv` and one `send`, plus its share of an `epoll_wait` that returns up to [`EVENTS_PER_TURN`]
//! sockets. Three things keep it at that:
//!
//! - A read shorter than the buffer has emptied the socket, so no second read asks for `EAGAIN`: what comes later raises a new
//!   edge. Only a full buffer, or a peer that has closed its side, puts a socket on the list that the next turn reads again.
//! - Writable interest is registered while bytes wait, and not otherwise.
//! - Accepted sockets inherit `TCP_NODELAY` from their listener.
//!
//! A socket is read once per turn, however much it sends, and a listener accepts at most [`ACCEPTS_PER_TURN`] connections:
//! neither a loud device nor a reconnect storm starves the others.

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd},
    time::Duration,
};

use mio::{
    Events, Interest, Poll, Registry, Token,
    event::Event,
    net::{TcpListener, TcpStream},
};
use rustix::net::{RecvFlags, SendFlags};

use super::{
    ACCEPTS_PER_TURN, Accepting, Driver, Io, READ_BUFFER_BYTES, Wake, Written,
    launch::{Bound, Listeners},
    sockets::{Drained, Sockets, Waiting},
};
use crate::gateway::{CloseReason, ConnId, Listener};

const EVENTS_PER_TURN: usize = 1024;
const WAKE: Token = Token(usize::MAX);
/// Listeners count down from here; connections carry slot and generation, and no slot comes near this.
const LISTENER_LAST: usize = usize::MAX - 1;

const _: () = assert!(usize::BITS == 64, "a token holds slot and generation");

const fn token(conn: ConnId) -> Token {
    Token(((conn.generation as usize) << 32) | conn.slot as usize)
}

const fn conn(token: Token) -> ConnId {
    ConnId { slot: token.0 as u32, generation: (token.0 >> 32) as u32 }
}

impl Wake for mio::Waker {
    fn wake(&self) {
        // It fails only when the eventfd's counter is full, and then the shard has a wake to come anyway.
        drop(self.wake());
    }
}

/// What a shard needs before its thread starts.
pub(super) fn prepare() -> io::Result<(Poll, mio::Waker)> {
    let poll = Poll::new()?;
    let waker = mio::Waker::new(poll.registry(), WAKE)?;
    Ok((poll, waker))
}

/// Runs a shard on the current thread until it is drained.
pub(super) fn run(poll: Poll, bound: Vec<Bound>, mut driver: Driver) -> io::Result<()> {
    let mut epoll = Epoll::new(poll, bound)?;
    while let Some(mut wait_ms) = epoll.turn(&mut driver) {
        if wait_ms > 0 && !driver.park() {
            wait_ms = 0;
        }
        epoll.look(wait_ms)?;
        driver.unpark();
        driver.awake();
    }
    Ok(())
}

/// A shard's epoll set with all that is in it. The io_uring engine takes its turns with it too, and only waits another way.
pub(super) struct Epoll {
    poll: Poll,
    /// What the last look has found.
    events: Events,
    shard: Shard,
    /// The list that a turn reads while it fills [`Shard::again`].
    readable: Vec<ConnId>,
}

impl Epoll {
    pub(super) fn new(poll: Poll, bound: Vec<Bound>) -> io::Result<Self> {
        let registry = poll.registry();
        let listeners = Listeners::new(bound, |bound, index| Acceptor::new(bound, index, registry))?;
        let shard = Shard {
            sockets: Peers { registry: registry.try_clone()?, sockets: Sockets::new() },
            buffer: vec![0; READ_BUFFER_BYTES].into(),
            listeners,
            again: Vec::new(),
        };
        Ok(Self { poll, events: Events::with_capacity(EVENTS_PER_TURN), shard, readable: Vec::new() })
    }

    /// Handles what the last look has found, and all else that a turn is. Returns for how many milliseconds the shard may wait
    /// at most, 0 where there is more to do; `None`: it is drained.
    pub(super) fn turn(&mut self, driver: &mut Driver) -> Option<u64> {
        let Self { poll, events, shard, readable } = self;
        // The sockets that the last turn left unread; those this turn leaves go to the other list.
        std::mem::swap(readable, &mut shard.again);
        for event in &*events {
            shard.handle_event(event, driver);
        }
        for conn in readable.drain(..) {
            shard.read(conn, driver);
        }
        let accepting = shard.accept(driver);
        let wait_ms = driver.turn(&mut shard.sockets);
        if driver.finished() {
            return None;
        }
        shard.listeners.follow(driver, |bound, index| Acceptor::new(bound, index, poll.registry()));
        Some(if shard.again.is_empty() { accepting.wait_ms(wait_ms) } else { 0 })
    }

    /// Waits until something is ready, at most `wait_ms`, and keeps it for the next turn. Returns whether anything is.
    pub(super) fn look(&mut self, wait_ms: u64) -> io::Result<bool> {
        match self.poll.poll(&mut self.events, Some(Duration::from_millis(wait_ms))) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => self.events.clear(),
            result => result?,
        }
        Ok(!self.events.is_empty())
    }

    /// The set itself: readable while something in it is ready.
    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the set is open as long as `self` lives.
        unsafe { BorrowedFd::borrow_raw(self.poll.as_raw_fd()) }
    }
}

struct Shard {
    sockets: Peers,
    buffer: Box<[u8]>,
    listeners: Listeners<Acceptor>,
    /// Sockets that may have more to read, for the next turn.
    again: Vec<ConnId>,
}

struct Acceptor {
    socket: TcpListener,
    listener: Listener,
    /// Whether connections may wait: an edge has been seen and accepting has not come to its end since.
    ready: bool,
}

struct Peers {
    registry: Registry,
    sockets: Sockets<Peer>,
}

struct Peer {
    stream: TcpStream,
    /// It is on the list that the next turn reads.
    again: bool,
    /// The peer has closed its side: reading goes on until the end is read.
    read_closed: bool,
    waiting: Waiting,
}

// A debug build checks more of its sockets, in a field of their own.
#[cfg(not(debug_assertions))]
const _: () =
    assert!(size_of::<super::sockets::Row<Peer>>() == 24, "what an idle socket takes of the shard's table, bytes");

impl Shard {
    fn handle_event(&mut self, event: &Event, driver: &mut Driver) {
        if event.token() == WAKE {
            return;
        }
        let from_last = LISTENER_LAST - event.token().0;
        if let Some(acceptor) = self.listeners.open().get_mut(from_last) {
            acceptor.ready = true;
            return;
        }
        let conn = conn(event.token());
        let Some(peer) = self.sockets.sockets.find(conn) else { return };
        peer.read_closed |= event.is_read_closed() || event.is_error();
        // A socket on the list is read from there: once per turn.
        let read = !peer.again && (event.is_readable() || peer.read_closed);
        if event.is_writable() && !peer.waiting.is_empty() {
            self.drain(conn, driver);
        }
        if read {
            self.read(conn, driver);
        }
    }

    fn read(&mut self, conn: ConnId, driver: &mut Driver) {
        let Some(peer) = self.sockets.sockets.find(conn) else { return };
        peer.again = false;
        match recv(&peer.stream, &mut self.buffer) {
            Ok(0) => self.close(conn, CloseReason::Peer, driver),
            Ok(count) => {
                let bytes = self.buffer.get(..count).unwrap_or_default();
                driver.received(conn, bytes, &mut self.sockets);
                if let Some(peer) = self.sockets.sockets.find(conn)
                    && (count == READ_BUFFER_BYTES || peer.read_closed)
                {
                    peer.again = true;
                    self.again.push(conn);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {
                peer.again = true;
                self.again.push(conn);
            }
            Err(_) => self.close(conn, CloseReason::Io, driver),
        }
    }

    fn drain(&mut self, conn: ConnId, driver: &mut Driver) {
        let Some(Peer { stream, waiting, .. }) = self.sockets.sockets.find(conn) else { return };
        match waiting.drain(|bytes| send(stream, bytes)) {
            Drained::All => match self.sockets.registry.reregister(stream, token(conn), Interest::READABLE) {
                Ok(()) => driver.drained(conn),
                Err(_) => self.close(conn, CloseReason::Io, driver),
            },
            Drained::Blocked => {}
            Drained::Failed => self.close(conn, CloseReason::Io, driver),
        }
    }

    fn close(&mut self, conn: ConnId, reason: CloseReason, driver: &mut Driver) {
        self.sockets.close(conn);
        driver.closed(conn, reason, &mut self.sockets);
    }

    fn accept(&mut self, driver: &mut Driver) -> Accepting {
        let mut left = Accepting::Idle;
        for acceptor in self.listeners.open().iter_mut().filter(|acceptor| acceptor.ready) {
            left = left.max(acceptor.accept(&mut self.sockets, driver));
        }
        left
    }
}

impl Acceptor {
    fn new(bound: Bound, index: usize, registry: &Registry) -> io::Result<Self> {
        let mut socket = TcpListener::from_std(bound.socket);
        registry.register(&mut socket, Token(LISTENER_LAST - index), Interest::READABLE)?;
        Ok(Self { socket, listener: bound.address.listener, ready: false })
    }

    fn accept(&mut self, sockets: &mut Peers, driver: &mut Driver) -> Accepting {
        for _ in 0..driver.accept_allowance().min(ACCEPTS_PER_TURN) {
            match self.socket.accept() {
                Ok((stream, peer)) => {
                    // Refused: the core has counted it, and dropping the socket closes it.
                    if let Ok(conn) = driver.accepted(peer.ip().to_canonical(), self.listener)
                        && sockets.keep(conn, stream).is_err()
                    {
                        driver.closed(conn, CloseReason::Io, sockets);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.ready = false;
                    return Accepting::Idle;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    driver.accept_failed(&error);
                    return Accepting::Paused;
                }
            }
        }
        if driver.accept_allowance() == 0 { Accepting::Paused } else { Accepting::Busy }
    }
}

impl Peers {
    fn keep(&mut self, conn: ConnId, mut stream: TcpStream) -> io::Result<()> {
        self.registry.register(&mut stream, token(conn), Interest::READABLE)?;
        self.sockets.insert(conn, Peer { stream, again: false, read_closed: false, waiting: Waiting::default() });
        Ok(())
    }
}

impl Io for Peers {
    fn write(&mut self, conn: ConnId, bytes: &[u8]) -> Written {
        let Some(Peer { stream, waiting, .. }) = self.sockets.find(conn) else { return Written::Failed };
        let waited = !waiting.is_empty();
        let written = waiting.write(bytes, |bytes| send(stream, bytes));
        if written == Written::Blocked && !waited {
            let both = Interest::READABLE | Interest::WRITABLE;
            if self.registry.reregister(stream, token(conn), both).is_err() {
                return Written::Failed;
            }
        }
        written
    }

    fn close(&mut self, conn: ConnId) {
        // Closing the descriptor takes it out of the epoll set.
        drop(self.sockets.remove(conn));
    }
}

// Both go to the kernel directly. In a process of several threads the C library's make each call a point at which its thread may be
// cancelled, which cost a seventh of what a heartbeat takes outside the kernel, and nothing here cancels threads.

fn recv(stream: &TcpStream, buffer: &mut [u8]) -> io::Result<usize> {
    let (received, _) = rustix::net::recv(stream, buffer, RecvFlags::empty())?;
    Ok(received)
}

fn send(stream: &TcpStream, bytes: &[u8]) -> io::Result<usize> {
    Ok(rustix::net::send(stream, bytes, SendFlags::NOSIGNAL)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_keep_slot_and_generation_apart() {
        for id in [ConnId { slot: 0, generation: 0 }, ConnId { slot: 59_999, generation: u32::MAX }] {
            assert_eq!(conn(token(id)), id);
            assert!(LISTENER_LAST - token(id).0 > 2, "no connection looks like a listener");
        }
    }
}
