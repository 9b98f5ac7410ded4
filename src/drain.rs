//! Emptying an instance of its devices, and taking devices again: for operators, and for the stop.
//!
//! ```text
//! POST /admin/drain ──▶ Drain ──┬─▶ readiness: not ready, stage "draining"
//!                               ├─▶ cluster: the instance's row says draining
//!                               └─▶ shards: listeners closed, connections closed one after another
//! ```
//!
//! Nothing else changes: the API answers, jobs and webhooks go on, and commands for a device go wherever it binds next. The state
//! is of this process; a restart takes devices again.

use std::sync::Arc;

use parking_lot::Mutex;

use crate::gateway::{DrainPace, Message};
use crate::shard::Mailbox;
use crate::telemetry::{Exposition, Health, MetricSource};

/// A device that was told something and does not answer is waited for so long once all others are gone, ms. The longest
/// command may take 15 s; after that new ones keep it.
const PATIENCE_MS: u64 = 30_000;

/// What an instance does with devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// It does not listen yet.
    Starting,
    Serving,
    Draining,
    /// For good.
    Stopping,
}

/// Why the state was not changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DrainError {
    /// Not before the device listeners are open.
    #[error("the instance is starting")]
    Starting,
    /// No way back.
    #[error("the instance is stopping")]
    Stopping,
    /// A shard takes no messages now. What was asked holds for the others, and for this one when it is asked again.
    #[error("shard {0} takes no messages now")]
    Busy(usize),
}

/// The switch; one per process.
pub struct Drain {
    health: Arc<Health>,
    mailboxes: Vec<Mailbox>,
    pace: DrainPace,
    tell: Box<dyn Fn(bool) + Send + Sync>,
    state: Mutex<State>,
}

impl Drain {
    /// A switch for these shards, which close `per_s` connections a second together; 0: all at once. `tell` says to other
    /// instances whether this one is emptied; it must not block.
    pub fn new(
        health: Arc<Health>,
        mailboxes: Vec<Mailbox>,
        per_s: u32,
        tell: impl Fn(bool) + Send + Sync + 'static,
    ) -> Self {
        let pace = DrainPace::of_shard(per_s, mailboxes.len(), PATIENCE_MS);
        Self { health, mailboxes, pace, tell: Box::new(tell), state: Mutex::new(State::Starting) }
    }

    /// The device listeners are open: the instance is ready.
    pub fn serve(&self) {
        *self.state.lock() = State::Serving;
        self.health.set_stage("ready", true);
    }

    /// Empties the instance, or takes devices again. Again is the same.
    ///
    /// # Errors
    /// The instance starts or stops, or a shard could not be told.
    pub fn set(&self, draining: bool) -> Result<(), DrainError> {
        let mut state = self.state.lock();
        match *state {
            State::Starting => return Err(DrainError::Starting),
            State::Stopping => return Err(DrainError::Stopping),
            State::Serving | State::Draining => {}
        }
        if draining {
            *state = State::Draining;
            self.health.set_stage("draining", false);
        } else {
            *state = State::Serving;
            self.health.set_stage("ready", true);
        }
        (self.tell)(draining);
        let mut told = Ok(());
        for (shard, mailbox) in self.mailboxes.iter().enumerate() {
            let message = if draining { Message::Drain(self.pace) } else { Message::Undrain };
            if mailbox.send(message).is_err() {
                told = Err(DrainError::Busy(shard));
            }
        }
        told
    }

    /// The instance stops: not ready, and no way back. The shards are told by whoever waits for them.
    pub fn stop(&self) {
        *self.state.lock() = State::Stopping;
        self.health.set_stage("stopping", false);
        (self.tell)(true);
    }

    /// Whether devices are sent away.
    pub fn is_draining(&self) -> bool {
        matches!(*self.state.lock(), State::Draining | State::Stopping)
    }
}

impl MetricSource for Drain {
    fn render(&self, to: &mut Exposition<'_>) {
        let help = "Whether this instance sends its devices away: 1 while it does.";
        to.gauge("chargegate_draining", help, u64::from(self.is_draining()));
    }
}
