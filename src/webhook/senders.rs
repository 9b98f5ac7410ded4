//! The threads of one endpoint that make its attempts.
//!
//! They block in HTTP, so that a hung receiver holds only its own. Grown on demand up to the endpoint's concurrency; one without
//! work for [`IDLE`] ends. The queue between is bounded by the attempts under way, which are at most as many as threads.

use std::{collections::VecDeque, io, sync::Arc, thread, time::Duration};

use parking_lot::{Condvar, Mutex};

use super::queue::Attempt;

const IDLE: Duration = Duration::from_secs(30);
/// TLS handshake and JSON need tens of KiB; the rest is room for unoptimised builds.
const STACK_BYTES: usize = 512 * 1024;

/// What a sender does with an attempt. Must not panic: it is the endpoint's to turn a panic into an answer.
pub(super) type Send = dyn Fn(Attempt) + std::marker::Send + Sync;

pub(super) struct Senders {
    shared: Arc<Shared>,
    threads_max: usize,
}

struct Shared {
    state: Mutex<State>,
    work: Condvar,
    send: Box<Send>,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Attempt>,
    threads: usize,
    idle: usize,
    closed: bool,
}

impl Senders {
    pub(super) fn new(threads_max: usize, send: Box<Send>) -> Self {
        Self { shared: Arc::new(Shared { state: Mutex::default(), work: Condvar::new(), send }), threads_max }
    }

    /// Hands over an attempt. `Err` gives it back: there is no thread and none can be made.
    pub(super) fn push(&self, attempt: Attempt) -> Result<(), (Attempt, io::Error)> {
        let mut state = self.shared.state.lock();
        if state.queue.len() >= state.idle && state.threads < self.threads_max {
            let shared = Arc::clone(&self.shared);
            let spawned = thread::Builder::new()
                .name("webhook-send".to_owned())
                .stack_size(STACK_BYTES)
                .spawn(move || shared.run());
            match spawned {
                Ok(_) => state.threads += 1,
                Err(error) if state.threads == 0 => return Err((attempt, error)),
                // Those that exist take it when they are free.
                Err(_) => {}
            }
        }
        state.queue.push_back(attempt);
        drop(state);
        self.shared.work.notify_one();
        Ok(())
    }
}

impl Drop for Senders {
    fn drop(&mut self) {
        self.shared.state.lock().closed = true;
        self.shared.work.notify_all();
    }
}

impl Shared {
    fn run(&self) {
        let mut state = self.state.lock();
        loop {
            if state.closed {
                break;
            }
            if let Some(attempt) = state.queue.pop_front() {
                drop(state);
                (self.send)(attempt);
                state = self.state.lock();
                continue;
            }
            state.idle += 1;
            let waited = self.work.wait_for(&mut state, IDLE);
            state.idle -= 1;
            if waited.timed_out() && state.queue.is_empty() {
                break;
            }
        }
        state.threads -= 1;
    }
}
