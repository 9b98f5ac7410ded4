//! What both engines keep per connection: the socket under the core's slot, and the bytes that wait for a slow peer.
//!
//! Idle connections cost one slab entry each. A waiting buffer exists only while a peer does not take its replies.

use std::io;

use super::{WRITE_BUFFER_BYTES_MAX, Written};
use crate::gateway::ConnId;

/// Sockets by slot. A [`ConnId`] of an earlier generation finds nothing.
pub(super) struct Sockets<S> {
    slots: Vec<Row<S>>,
}

/// A place in the table: nothing, or a socket with its generation.
pub(super) type Row<S> = Option<(u32, S)>;

impl<S> Sockets<S> {
    pub(super) const fn new() -> Self {
        Self { slots: Vec::new() }
    }

    /// Keeps a socket. Slots come from the core, which reuses the lowest, so the slab is as long as the peak of connections.
    pub(super) fn insert(&mut self, conn: ConnId, socket: S) {
        let index = conn.slot as usize;
        if self.slots.len() <= index {
            self.slots.resize_with(index + 1, || None);
        }
        debug_assert!(self.slots[index].is_none(), "the core gave out a slot that is in use");
        self.slots[index] = Some((conn.generation, socket));
    }

    #[inline]
    pub(super) fn find(&mut self, conn: ConnId) -> Option<&mut S> {
        match self.slots.get_mut(conn.slot as usize) {
            Some(Some((generation, socket))) if *generation == conn.generation => Some(socket),
            _ => None,
        }
    }

    pub(super) fn remove(&mut self, conn: ConnId) -> Option<S> {
        self.find(conn)?;
        self.slots[conn.slot as usize].take().map(|(_, socket)| socket)
    }
}

/// Bytes that wait until the peer takes them, in order; at most [`WRITE_BUFFER_BYTES_MAX`].
#[derive(Default)]
pub(super) struct Waiting(Option<Box<Backlog>>);

struct Backlog {
    bytes: Vec<u8>,
    sent: usize,
}

/// How draining went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Drained {
    /// Nothing waits any more.
    All,
    /// The peer has not taken all of it.
    Blocked,
    /// The socket is broken.
    Failed,
}

impl Waiting {
    pub(super) const fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// What waits.
    pub(super) fn bytes(&self) -> &[u8] {
        self.0.as_ref().map_or(&[], |backlog| backlog.bytes.get(backlog.sent..).unwrap_or_default())
    }

    /// Sends `bytes` behind what waits, as far as the socket takes it.
    pub(super) fn write(&mut self, bytes: &[u8], send: impl FnMut(&[u8]) -> io::Result<usize>) -> Written {
        if let Some(backlog) = &mut self.0 {
            if backlog.bytes.len() - backlog.sent + bytes.len() > WRITE_BUFFER_BYTES_MAX {
                return Written::Overflow;
            }
            backlog.bytes.drain(..std::mem::take(&mut backlog.sent));
            backlog.bytes.extend_from_slice(bytes);
            return Written::Blocked;
        }
        match send_all(bytes, send) {
            Ok(sent) if sent == bytes.len() => Written::All,
            Ok(sent) => {
                let rest = bytes.get(sent..).unwrap_or_default();
                if rest.len() > WRITE_BUFFER_BYTES_MAX {
                    return Written::Overflow;
                }
                self.0 = Some(Box::new(Backlog { bytes: rest.to_vec(), sent: 0 }));
                Written::Blocked
            }
            Err(_) => Written::Failed,
        }
    }

    /// Sends what waits.
    pub(super) fn drain(&mut self, send: impl FnMut(&[u8]) -> io::Result<usize>) -> Drained {
        match send_all(self.bytes(), send) {
            Ok(sent) => self.sent(sent),
            Err(_) => Drained::Failed,
        }
    }

    /// Forgets the first `count` bytes: they are with the kernel.
    fn sent(&mut self, count: usize) -> Drained {
        let Some(backlog) = &mut self.0 else { return Drained::All };
        backlog.sent += count;
        if backlog.sent < backlog.bytes.len() {
            return Drained::Blocked;
        }
        self.0 = None;
        Drained::All
    }
}

/// Sends until everything is sent or the socket takes no more; returns the bytes sent.
fn send_all(bytes: &[u8], mut send: impl FnMut(&[u8]) -> io::Result<usize>) -> io::Result<usize> {
    let mut sent = 0;
    while let Some(rest) = bytes.get(sent..).filter(|rest| !rest.is_empty()) {
        match send(rest) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => sent += count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(sent)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONN: ConnId = ConnId { slot: 3, generation: 7 };

    /// A socket that takes `room` bytes and then blocks.
    fn takes(room: &mut usize, sent: &mut Vec<u8>, bytes: &[u8]) -> io::Result<usize> {
        let count = bytes.len().min(*room);
        if count == 0 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        *room -= count;
        sent.extend_from_slice(&bytes[..count]);
        Ok(count)
    }

    #[test]
    fn a_late_conn_id_misses_the_successor() {
        let mut sockets = Sockets::new();
        sockets.insert(CONN, 'a');
        assert_eq!(sockets.remove(CONN), Some('a'));
        assert_eq!(sockets.remove(CONN), None);
        let next = ConnId { generation: 8, ..CONN };
        sockets.insert(next, 'b');
        assert_eq!(sockets.find(CONN), None);
        assert_eq!(sockets.remove(CONN), None);
        assert_eq!(sockets.find(next), Some(&mut 'b'));
        assert_eq!(sockets.find(ConnId { slot: 4, ..next }), None);
    }

    #[test]
    fn bytes_keep_their_order_over_blocks() {
        let (mut waiting, mut sent) = (Waiting::default(), Vec::new());
        let mut room = 2;
        assert_eq!(waiting.write(b"abcd", |bytes| takes(&mut room, &mut sent, bytes)), Written::Blocked);
        room = 1;
        assert_eq!(waiting.drain(|bytes| takes(&mut room, &mut sent, bytes)), Drained::Blocked);
        room = 100;
        // The socket would take bytes again, but those that wait go first.
        assert_eq!(waiting.write(b"ef", |bytes| takes(&mut room, &mut sent, bytes)), Written::Blocked);
        assert_eq!(waiting.bytes(), b"def");
        assert_eq!(waiting.drain(|bytes| takes(&mut room, &mut sent, bytes)), Drained::All);
        assert!(waiting.is_empty(), "the buffer is freed");
        assert_eq!(waiting.write(b"g", |bytes| takes(&mut room, &mut sent, bytes)), Written::All);
        assert_eq!(sent, b"abcdefg");
    }

    #[test]
    fn what_waits_is_bounded() {
        let full = [0; WRITE_BUFFER_BYTES_MAX];
        let blocked = |_: &[u8]| Err(io::ErrorKind::WouldBlock.into());
        let mut waiting = Waiting::default();
        assert_eq!(waiting.write(&[0; WRITE_BUFFER_BYTES_MAX + 1], blocked), Written::Overflow);
        assert_eq!(waiting.write(&full, blocked), Written::Blocked);
        assert_eq!(waiting.write(&[1], blocked), Written::Overflow);
    }

    #[test]
    fn a_broken_socket_fails() {
        let broken = |_: &[u8]| Err(io::ErrorKind::BrokenPipe.into());
        let mut waiting = Waiting::default();
        assert_eq!(waiting.write(b"a", broken), Written::Failed);
        assert_eq!(waiting.write(b"a", |_| Ok(0)), Written::Failed);
    }
}
