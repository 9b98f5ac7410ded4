//! Events that are made only where somebody wants them, for they are many: one per heartbeat and one per report of a charge.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

/// What the endpoints want now. Written by whoever knows them, read by every core for each report: no lock, and a core may see a change
/// one report late.
#[derive(Debug, Default)]
pub struct WantedEvents {
    heartbeat: AtomicBool,
    progress: AtomicBool,
}

impl WantedEvents {
    /// What is wanted to begin with.
    pub const fn new(heartbeat: bool, progress: bool) -> Self {
        Self { heartbeat: AtomicBool::new(heartbeat), progress: AtomicBool::new(progress) }
    }

    /// Says what is wanted from now on.
    pub fn set(&self, heartbeat: bool, progress: bool) {
        self.heartbeat.store(heartbeat, Relaxed);
        self.progress.store(progress, Relaxed);
    }

    /// Whether some endpoint wants `device.heartbeat`.
    pub fn heartbeat(&self) -> bool {
        self.heartbeat.load(Relaxed)
    }

    /// Whether some endpoint wants `charging.progress`.
    pub fn progress(&self) -> bool {
        self.progress.load(Relaxed)
    }
}
