//! Small things on their way to Redis, sent as one pipeline of whatever came together while the last one was under way.
//!
//! Pushing never waits. What finds the buffer full, and what cannot be sent, is dropped and counted: everything sent this way is found
//! again without it. Kept in the order of pushing, one pipeline at a time.

use std::sync::Arc;

use parking_lot::Mutex;
use redis::Pipeline;

use super::link::{Conn, Link};
use crate::telemetry::Counter;
use crate::telemetry::label::RedisOp;

/// Things that may wait.
const WAITING_MAX: usize = 65_536;
/// Things in one pipeline.
const BATCH_MAX: usize = 1_024;

pub(crate) struct Outbox<T>(Arc<Inner<T>>);

struct Inner<T> {
    link: Arc<Link>,
    op: RedisOp,
    encode: fn(&mut Pipeline, &T),
    state: Mutex<State<T>>,
    sent: Counter,
    dropped: Counter,
}

struct State<T> {
    waiting: Vec<T>,
    under_way: bool,
}

impl<T: Send + 'static> Outbox<T> {
    /// `encode` appends the commands for one thing.
    pub(crate) fn new(link: Arc<Link>, op: RedisOp, encode: fn(&mut Pipeline, &T)) -> Self {
        let state = Mutex::new(State { waiting: Vec::new(), under_way: false });
        Self(Arc::new(Inner { link, op, encode, state, sent: Counter::default(), dropped: Counter::default() }))
    }

    pub(crate) fn push(&self, things: impl IntoIterator<Item = T>) {
        let mut state = self.0.state.lock();
        let room = WAITING_MAX.saturating_sub(state.waiting.len());
        let mut things = things.into_iter();
        state.waiting.extend(things.by_ref().take(room));
        self.0.dropped.add(things.count() as u64);
        if state.under_way || state.waiting.is_empty() {
            return;
        }
        state.under_way = true;
        drop(state);
        Inner::send(&self.0);
    }

    /// Things sent.
    pub(crate) fn sent(&self) -> u64 {
        self.0.sent.get()
    }

    /// Things lost: no room, or Redis away.
    pub(crate) fn dropped(&self) -> u64 {
        self.0.dropped.get()
    }
}

impl<T: Send + 'static> Inner<T> {
    /// Sends what waits, as the only one that does.
    fn send(this: &Arc<Self>) {
        let batch = {
            let mut state = this.state.lock();
            let len = state.waiting.len().min(BATCH_MAX);
            if len == 0 {
                state.under_way = false;
                return;
            }
            let rest = state.waiting.split_off(len);
            std::mem::replace(&mut state.waiting, rest)
        };
        let (sender, len) = (Arc::clone(this), batch.len() as u64);
        let encode = this.encode;
        let work = move |connection: &mut Conn| {
            let mut pipeline = Pipeline::with_capacity(batch.len());
            for thing in &batch {
                encode(&mut pipeline, thing);
            }
            pipeline.exec(connection)
        };
        this.link.submit(this.op, work, move |result| {
            if result.is_err() {
                // All that waits would fail the same way, and none of it is needed.
                let mut state = sender.state.lock();
                let waiting = std::mem::take(&mut state.waiting).len() as u64;
                state.under_way = false;
                sender.dropped.add(len + waiting);
                return;
            }
            sender.sent.add(len);
            Self::send(&sender);
        });
    }
}
