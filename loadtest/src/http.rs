//! Keep-alive connections to the API on one thread: a request waits until one is free, and its time counts from when it was due.
//!
//! Plain HTTP/1.1 with `Content-Length`, as the gateway speaks it. One request is under way per connection. Requests that wait for a
//! connection are bounded; who asks for more is told.

use std::collections::VecDeque;
use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::time::Duration;

use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};

use crate::device::SECOND_US;
use crate::head::Head;

/// An answer that takes longer does not come.
const ANSWER_US_MAX: u64 = 30 * SECOND_US;
/// A connection that could not be opened is tried again after this long.
const AGAIN_US: u64 = SECOND_US / 5;
/// Requests that may wait for a connection.
const WAITING_MAX: usize = 100_000;
const READ_BYTES: usize = 64 * 1024;
/// Longest answer.
const ANSWER_MAX: usize = 8 << 20;

/// An answer, or that there is none.
#[derive(Debug)]
pub struct Answer<T> {
    /// What was given with the request.
    pub about: T,
    /// Which of the bases answered.
    pub base: usize,
    /// When the request was due.
    pub due_us: u64,
    /// Status and body; `None`: it did not come.
    pub answered: Option<(u16, Vec<u8>)>,
}

struct Waiting<T> {
    due_us: u64,
    bytes: Vec<u8>,
    about: T,
}

struct Connection<T> {
    base: usize,
    stream: Option<TcpStream>,
    /// When it is opened again.
    again_us: u64,
    under_way: Option<Waiting<T>>,
    sent: usize,
    /// When the request was begun, on this connection.
    begun_us: u64,
    answer: Vec<u8>,
}

/// Connections to one or more instances; see the module.
pub struct Clients<T> {
    poll: Poll,
    events: Events,
    bases: Vec<SocketAddr>,
    connections: Vec<Connection<T>>,
    /// Connections that have nothing to do, by base.
    free: Vec<Vec<usize>>,
    /// Requests that wait, by base.
    waiting: Vec<VecDeque<Waiting<T>>>,
    answers: Vec<Answer<T>>,
    scratch: Box<[u8]>,
}

impl<T> Clients<T> {
    /// `connections` connections to each of these addresses, opened when they are first needed.
    ///
    /// # Errors
    /// The system gives no poll.
    pub fn new(bases: Vec<SocketAddr>, connections: usize) -> io::Result<Self> {
        let each = connections.div_ceil(bases.len().max(1)).max(1);
        let all = (0..bases.len()).flat_map(|base| (0..each).map(move |_| base));
        let connections: Vec<_> = all
            .map(|base| Connection {
                base,
                stream: None,
                again_us: 0,
                under_way: None,
                sent: 0,
                begun_us: 0,
                answer: Vec::new(),
            })
            .collect();
        let free = (0..bases.len())
            .map(|base| (0..connections.len()).filter(|at| connections[*at].base == base).collect())
            .collect();
        Ok(Self {
            poll: Poll::new()?,
            events: Events::with_capacity(1024),
            waiting: bases.iter().map(|_| VecDeque::new()).collect(),
            bases,
            connections,
            free,
            answers: Vec::new(),
            scratch: vec![0; READ_BYTES].into_boxed_slice(),
        })
    }

    /// Asks `base`, or puts the request behind those that wait; gives it back if too many do.
    pub fn ask(&mut self, now_us: u64, base: usize, due_us: u64, bytes: Vec<u8>, about: T) -> Result<(), T> {
        let Some(waiting) = self.waiting.get_mut(base) else { return Err(about) };
        if waiting.len() >= WAITING_MAX {
            return Err(about);
        }
        waiting.push_back(Waiting { due_us, bytes, about });
        self.next(now_us, base);
        Ok(())
    }

    /// Requests whose answers are to come.
    pub fn open(&self) -> usize {
        let under_way = self.connections.iter().filter(|connection| connection.under_way.is_some()).count();
        under_way + self.waiting.iter().map(VecDeque::len).sum::<usize>()
    }

    /// Waits for answers, at most this long, and gives those that came. `clock` reads the run's clock.
    ///
    /// # Errors
    /// Polling fails; failures of connections are answers that do not come.
    pub fn answers(&mut self, clock: impl Fn() -> u64, wait: Duration) -> io::Result<Vec<Answer<T>>> {
        if let Err(error) = self.poll.poll(&mut self.events, Some(wait))
            && error.kind() != io::ErrorKind::Interrupted
        {
            return Err(error);
        }
        let now_us = clock();
        let ready: Vec<usize> = self.events.iter().map(|event| event.token().0).collect();
        for at in ready {
            self.write(at, now_us);
            self.read(at, now_us);
        }
        for at in 0..self.connections.len() {
            let connection = &self.connections[at];
            if connection.under_way.is_some() && connection.begun_us + ANSWER_US_MAX < now_us {
                self.failed(at, now_us);
            }
        }
        for base in 0..self.bases.len() {
            self.next(now_us, base);
        }
        Ok(std::mem::take(&mut self.answers))
    }

    /// Gives waiting requests to free connections.
    fn next(&mut self, now_us: u64, base: usize) {
        while !self.waiting[base].is_empty() {
            let usable = self.free[base].iter().rposition(|at| self.connections[*at].again_us <= now_us);
            let Some(at) = usable.map(|nth| self.free[base].swap_remove(nth)) else { return };
            let connection = &mut self.connections[at];
            connection.under_way = self.waiting[base].pop_front();
            connection.sent = 0;
            connection.begun_us = now_us;
            connection.answer.clear();
            if connection.stream.is_none() && self.open_connection(at).is_err() {
                self.failed(at, now_us);
                continue;
            }
            self.write(at, now_us);
        }
    }

    fn open_connection(&mut self, at: usize) -> io::Result<()> {
        let connection = &mut self.connections[at];
        let mut stream = TcpStream::connect(self.bases[connection.base])?;
        stream.set_nodelay(true)?;
        self.poll.registry().register(&mut stream, Token(at), Interest::READABLE | Interest::WRITABLE)?;
        connection.stream = Some(stream);
        Ok(())
    }

    /// The connection is of no use, and its answer does not come.
    fn failed(&mut self, at: usize, now_us: u64) {
        let connection = &mut self.connections[at];
        connection.stream = None;
        connection.again_us = now_us + AGAIN_US;
        self.done(at, None);
    }

    fn done(&mut self, at: usize, answered: Option<(u16, Vec<u8>)>) {
        let connection = &mut self.connections[at];
        if let Some(Waiting { due_us, about, .. }) = connection.under_way.take() {
            self.answers.push(Answer { about, base: connection.base, due_us, answered });
            self.free[connection.base].push(at);
        }
    }

    #[expect(clippy::disallowed_methods, reason = "the count is handled here")]
    fn write(&mut self, at: usize, now_us: u64) {
        let connection = &mut self.connections[at];
        let (Some(stream), Some(request)) = (&mut connection.stream, &connection.under_way) else { return };
        while let Some(rest) = request.bytes.get(connection.sent..).filter(|rest| !rest.is_empty()) {
            match stream.write(rest) {
                Ok(count) => connection.sent += count,
                // Not writable, or not connected yet.
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::NotConnected) => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return self.failed(at, now_us),
            }
        }
    }

    fn read(&mut self, at: usize, now_us: u64) {
        loop {
            let connection = &mut self.connections[at];
            let Some(stream) = &mut connection.stream else { return };
            match stream.read(&mut self.scratch) {
                // Closed: a request under way has no answer, an idle connection is opened again when it is needed.
                Ok(0) => {
                    connection.stream = None;
                    return self.done(at, None);
                }
                Ok(count) => {
                    connection.answer.extend_from_slice(self.scratch.get(..count).unwrap_or_default());
                    let Ok(head) = Head::parse(&connection.answer, ANSWER_MAX) else { return self.failed(at, now_us) };
                    match head.and_then(|head| Some((head, head.body(&connection.answer)?.to_vec()))) {
                        Some((head, body)) => {
                            if !head.keep {
                                connection.stream = None;
                            }
                            self.done(at, Some((head.status, body)));
                        }
                        None if connection.answer.len() > ANSWER_MAX => return self.failed(at, now_us),
                        None => {}
                    }
                }
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::NotConnected) => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return self.failed(at, now_us),
            }
        }
    }
}

/// The address of `http://host:port`, with or without a slash behind.
///
/// # Errors
/// The text is something else, or the name has no address.
pub fn base_address(base: &str) -> io::Result<SocketAddr> {
    let wrong = || io::Error::other(format!("must be http://HOST:PORT, got {base:?}"));
    let authority = base.strip_prefix("http://").ok_or_else(wrong)?.trim_end_matches('/');
    let port = if authority.contains(':') { String::new() } else { ":80".to_owned() };
    format!("{authority}{port}").to_socket_addrs().map_err(|_| wrong())?.next().ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bases_are_addresses() {
        assert_eq!(base_address("http://127.0.0.1:7055/").unwrap().to_string(), "127.0.0.1:7055");
        assert_eq!(base_address("http://127.0.0.1").unwrap().port(), 80);
        assert!(base_address("https://127.0.0.1:1").is_err() && base_address("http://x y").is_err());
    }
}
