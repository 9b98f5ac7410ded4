//! Threads of a store, and waiting for their end.

use std::{thread::JoinHandle, time::Duration};

use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, bounded};

use super::StoreError;

/// The threads of a store that is being opened.
pub(super) struct Threads {
    handles: Vec<JoinHandle<()>>,
    /// Each thread holds one; the last to end disconnects them.
    ending: Sender<()>,
    ended: Receiver<()>,
}

impl Threads {
    pub(super) fn new() -> Self {
        let (ending, ended) = bounded(1);
        Self { handles: Vec::new(), ending, ended }
    }

    pub(super) fn start(&mut self, name: &str, body: impl FnOnce() + Send + 'static) -> Result<(), StoreError> {
        let ending = self.ending.clone();
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(move || {
            body();
            drop(ending);
        });
        let thread = thread.map_err(|error| StoreError::Unavailable(format!("cannot start thread {name}: {error}")))?;
        self.handles.push(thread);
        Ok(())
    }

    /// All are started.
    pub(super) fn running(self) -> Running {
        Running { handles: parking_lot::Mutex::new(self.handles), ended: self.ended }
    }
}

/// The threads of an open store.
#[derive(Debug)]
pub(super) struct Running {
    handles: parking_lot::Mutex<Vec<JoinHandle<()>>>,
    ended: Receiver<()>,
}

impl Running {
    /// Waits until all have ended by themselves. They were told before.
    pub(super) fn join(&self, deadline: Duration) {
        if self.ended.recv_timeout(deadline) == Err(RecvTimeoutError::Timeout) {
            log::error!("the store did not finish within {deadline:?}; what was not acknowledged is lost");
            return;
        }
        for thread in self.handles.lock().drain(..) {
            if thread.join().is_err() {
                log::error!("a thread of the store had panicked");
            }
        }
    }
}
