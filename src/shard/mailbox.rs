//! A shard's mailbox: a bounded lock-free queue and a wake that is sent only when the shard is parked.
//!
//! Protocol between the two sides: a sender pushes, then wakes if it finds the parked mark and takes it. The shard sets the mark,
//! then looks into the queue once more, and only then waits. So either the sender sees the mark or the shard sees the message.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU64, Ordering, fence},
};

use crossbeam::queue::SegQueue;

use crate::gateway::Message;

/// Wakes a parked engine: for both a `mio::Waker`, which makes the shard's epoll set ready.
pub trait Wake: Send + Sync {
    /// Makes the engine's wait return soon. Must not block.
    fn wake(&self);
}

/// Threads that may send at the same time: workers, delivery, followers of the cluster.
const SENDERS_MAX: usize = 64;

/// The senders' side.
#[derive(Clone)]
pub struct Mailbox(Arc<Shared>);

struct Shared {
    /// Takes room for what waits: all of its capacity, set aside, would be most of a megabyte.
    queue: SegQueue<Message>,
    capacity: usize,
    parked: AtomicBool,
    refused: AtomicU64,
    wake: Box<dyn Wake>,
}

impl std::fmt::Debug for Mailbox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mailbox").field("len", &self.0.queue.len()).finish_non_exhaustive()
    }
}

impl Mailbox {
    /// A mailbox of `capacity` messages.
    pub fn new(capacity: usize, wake: Box<dyn Wake>) -> Self {
        let shared = Shared {
            queue: SegQueue::new(),
            capacity,
            parked: AtomicBool::new(false),
            refused: AtomicU64::new(0),
            wake,
        };
        Self(Arc::new(shared))
    }

    /// Sends, waking the shard if it is parked. `Err` gives the message back: the mailbox is full. Half of it is kept for
    /// outcomes: a shard has at most that many jobs under way, so an outcome always finds room.
    pub fn send(&self, message: Message) -> Result<(), Message> {
        let sent = self.post(message);
        self.wake();
        sent
    }

    /// As [`Mailbox::send`] for whoever has more for the shard: it may sleep on until [`Mailbox::wake`].
    pub fn post(&self, message: Message) -> Result<(), Message> {
        // Threads that see the last place at the same time all take it; those messages are not taken off what is kept for outcomes.
        let capacity = match message {
            Message::Outcome(_) => self.0.capacity + SENDERS_MAX,
            _ => self.0.capacity / 2,
        };
        let sent = if self.0.queue.len() < capacity {
            self.0.queue.push(message);
            Ok(())
        } else {
            Err(message)
        };
        if sent.is_err() {
            self.0.refused.fetch_add(1, Ordering::Relaxed);
        }
        sent
    }

    /// Wakes the shard if it is parked.
    pub fn wake(&self) {
        fence(Ordering::SeqCst);
        if self.0.parked.load(Ordering::Relaxed) && self.0.parked.swap(false, Ordering::AcqRel) {
            self.0.wake.wake();
        }
    }

    /// Messages waiting.
    pub fn len(&self) -> usize {
        self.0.queue.len()
    }

    /// Whether none is waiting.
    pub fn is_empty(&self) -> bool {
        self.0.queue.is_empty()
    }

    /// Messages refused because the mailbox was full.
    pub fn refused(&self) -> u64 {
        self.0.refused.load(Ordering::Relaxed)
    }

    /// The shard's side: takes a message.
    pub fn take(&self) -> Option<Message> {
        self.0.queue.pop()
    }

    /// The shard's side: announces that it will wait. False: a message came meanwhile, do not wait.
    pub(super) fn park(&self) -> bool {
        self.0.parked.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        if self.0.queue.is_empty() {
            return true;
        }
        self.unpark();
        false
    }

    /// The shard's side: it is awake.
    pub(super) fn unpark(&self) {
        self.0.parked.store(false, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    struct Count(Arc<AtomicUsize>);

    impl Wake for Count {
        fn wake(&self) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn a_wake_is_sent_once_per_park() {
        let wakes = Arc::new(AtomicUsize::new(0));
        let mailbox = Mailbox::new(4, Box::new(Count(Arc::clone(&wakes))));
        assert!(mailbox.send(Message::Undrain).is_ok());
        assert_eq!(wakes.load(Ordering::SeqCst), 0, "not parked");
        assert!(!mailbox.park(), "a message is waiting");
        assert!(mailbox.take().is_some());
        assert!(mailbox.park());
        assert!(mailbox.send(Message::Undrain).is_ok());
        assert!(mailbox.send(Message::Undrain).is_ok());
        assert_eq!(wakes.load(Ordering::SeqCst), 1);
        assert!(mailbox.send(Message::Undrain).is_err());
        assert_eq!(mailbox.refused(), 1);
    }

    #[test]
    fn what_is_posted_waits_for_one_wake() {
        let wakes = Arc::new(AtomicUsize::new(0));
        let mailbox = Mailbox::new(8, Box::new(Count(Arc::clone(&wakes))));
        assert!(mailbox.park());
        assert!(mailbox.post(Message::Undrain).is_ok());
        assert!(mailbox.post(Message::Undrain).is_ok());
        assert_eq!(wakes.load(Ordering::SeqCst), 0);
        mailbox.wake();
        mailbox.wake();
        assert_eq!(wakes.load(Ordering::SeqCst), 1);
        assert!(!mailbox.park(), "two messages are waiting");
    }
}
