//! One client connection: its socket, its phase, its buffers; and the table of all of them.

use std::io::{self, Read};
use std::net::IpAddr;

use mio::net::TcpStream;

use super::timer::Alarm;
use super::upload::Upload;

/// Where a connection stands. One request is under way at most, so while it is answered nothing is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Between requests, or in the middle of a head.
    Head,
    /// The head is known; this many bytes of the body are not here yet.
    Body { missing: usize },
    /// The head is known; the body goes to a file, and this many bytes of it are not here yet.
    Upload { missing: usize },
    /// The request waits for a connection to the server.
    Queued,
    /// The request is with the server, over this slot.
    Relayed { slot: usize },
    /// The answer does not fit the socket yet.
    Writing { then: Then },
    /// The last answer is out and our side is shut. What the client still sends is read and forgotten: closing with unread bytes would
    /// reset the connection and could destroy the answer before it is read.
    Lingering { bytes_left: usize },
}

/// What follows an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Then {
    NextRequest,
    Linger,
}

/// Names a connection; the generation keeps a late answer or timer from reaching the slot's next owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Key {
    pub(super) slot: u32,
    pub(super) generation: u32,
}

#[derive(Debug)]
pub(super) struct Client {
    pub(super) stream: TcpStream,
    pub(super) ip: IpAddr,
    pub(super) phase: Phase,
    pub(super) alarm: Alarm,
    /// Bytes read and not yet used: a partial head, or pipelined requests. Empty and unallocated while idle.
    pub(super) input: Vec<u8>,
    /// How much of `input` was searched for the end of a head, and the length at which it is parsed in any case.
    pub(super) searched: usize,
    pub(super) parse_at: usize,
    /// What the socket did not take of the answer.
    pub(super) output: Vec<u8>,
    pub(super) written: usize,
    /// The request for the server, while its body arrives and while it is queued.
    pub(super) request: Vec<u8>,
    pub(super) request_id: String,
    pub(super) keep_alive: bool,
    pub(super) announce_keep_alive: bool,
    pub(super) bodiless: bool,
    /// The body that went to a file, until the request is answered.
    pub(super) upload: Option<Upload>,
    /// Bytes this connection has in the sum of all buffers.
    pub(super) charged: usize,
    /// The socket may have bytes: events are edge-triggered.
    pub(super) readable: bool,
    /// The peer sends no more; what it sent is still read and answered.
    pub(super) read_closed: bool,
    /// Whether it is in the list of connections that have work left from the last turn.
    pub(super) in_ready: bool,
}

/// What a read found.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Inflow {
    Bytes(usize),
    Blocked,
    /// End of stream, or an error, after which there is nothing to be said either.
    Ended,
}

impl Client {
    pub(super) const fn new(stream: TcpStream, ip: IpAddr) -> Self {
        Self {
            stream,
            ip,
            phase: Phase::Head,
            alarm: Alarm::new(),
            input: Vec::new(),
            searched: 0,
            parse_at: 0,
            output: Vec::new(),
            written: 0,
            request: Vec::new(),
            request_id: String::new(),
            keep_alive: true,
            announce_keep_alive: false,
            bodiless: false,
            upload: None,
            charged: 0,
            readable: false,
            read_closed: false,
            in_ready: false,
        }
    }

    /// Reads once.
    pub(super) fn read(&mut self, buffer: &mut [u8]) -> Inflow {
        while self.readable {
            match self.stream.read(buffer) {
                Ok(0) => return Inflow::Ended,
                Ok(read) => {
                    // A short read has emptied the socket; bytes that come later make a new event. Only the end of stream
                    // may already be behind them, and then the event has said so.
                    self.readable = read == buffer.len() || self.read_closed;
                    return Inflow::Bytes(read);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.readable = false,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return Inflow::Ended,
            }
        }
        Inflow::Blocked
    }
}

/// All clients. Slots are reused, generations are not.
#[derive(Debug, Default)]
pub(super) struct Clients {
    slots: Vec<(u32, Option<Box<Client>>)>,
    free: Vec<u32>,
    open: usize,
}

impl Clients {
    pub(super) const fn open(&self) -> usize {
        self.open
    }

    /// Reserves a slot; [`Clients::put`] fills it.
    pub(super) fn reserve(&mut self) -> Key {
        self.open += 1;
        if let Some(slot) = self.free.pop() {
            let generation = self.slots.get(slot as usize).map_or(0, |(generation, _)| *generation);
            return Key { slot, generation };
        }
        let slot = u32::try_from(self.slots.len()).unwrap_or(u32::MAX);
        self.slots.push((0, None));
        Key { slot, generation: 0 }
    }

    /// Takes a client out, so that it can be worked on beside the rest of the guard. `None` if it is gone.
    pub(super) fn take(&mut self, key: Key) -> Option<Box<Client>> {
        let (generation, client) = self.slots.get_mut(key.slot as usize)?;
        if *generation == key.generation { client.take() } else { None }
    }

    pub(super) fn put(&mut self, key: Key, client: Box<Client>) {
        if let Some((_, slot)) = self.slots.get_mut(key.slot as usize) {
            *slot = Some(client);
        }
    }

    /// Gives the slot of a taken client back.
    pub(super) fn release(&mut self, key: Key) {
        if let Some((generation, _)) = self.slots.get_mut(key.slot as usize) {
            *generation = generation.wrapping_add(1) & Self::GENERATION_MASK;
            self.free.push(key.slot);
            self.open -= 1;
        }
    }

    /// Generations fit beside a slot number in an event token.
    pub(super) const GENERATION_MASK: u32 = 0x3fff_ffff;

    /// The keys of all clients that are there.
    pub(super) fn keys(&self) -> Vec<Key> {
        let present = self.slots.iter().zip(0_u32..).filter(|((_, client), _)| client.is_some());
        present.map(|((generation, _), slot)| Key { slot, generation: *generation }).collect()
    }
}
