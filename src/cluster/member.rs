//! This instance as one of several: the parts that speak to the others, started and stopped together.

use std::sync::{Arc, OnceLock};

use super::guards::Guards;
use super::inbox::{Context, Inbox};
use super::instances::{self, InstanceError, Instances};
use super::link::{Link, LinkSettings, OpenError};
use super::notes::Notes;
use super::sessions::{OnNewer, Sessions};
use crate::gateway::directory::Directory;
use crate::model::ServerId;
use crate::queue::{Queue, RedisQueue};
use crate::router::Peers;
use crate::shard::Clock;
use crate::telemetry::Metrics;

/// Connections to Redis, and what is done over them.
pub struct Member {
    /// The connections.
    pub link: Arc<Link>,
    /// Commands on their way to the instances that have their devices.
    pub queue: Arc<RedisQueue>,
    /// What instances tell each other.
    pub notes: Arc<Notes>,
    /// Which instance has a device.
    pub sessions: Arc<Sessions>,
    /// Nonces and rates that hold for all.
    pub guards: Arc<Guards>,
    inbox: OnceLock<Arc<Inbox>>,
    instances: OnceLock<Arc<Instances>>,
}

/// Why this instance could not join.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// Redis cannot be used.
    #[error(transparent)]
    Redis(#[from] OpenError),
    /// The system refuses a thread.
    #[error("cannot start a thread: {0}")]
    Thread(#[from] std::io::Error),
}

impl Member {
    /// Connects, and starts to mirror the devices of `directory`. `on_newer` is told of devices that another instance has bound since.
    ///
    /// # Errors
    /// Redis does not answer, or the system refuses a thread.
    pub fn join(
        settings: LinkSettings,
        server: &ServerId,
        directory: &Arc<Directory>,
        clock: Clock,
        on_newer: OnNewer,
    ) -> Result<Self, JoinError> {
        let link = Link::open(settings)?;
        let queue = Arc::new(RedisQueue::new(Arc::clone(&link), server));
        let notes = Arc::new(Notes::start(Arc::clone(&link), server.clone())?);
        let sessions = Sessions::start(Arc::clone(&link), Arc::clone(directory), server.clone(), clock, on_newer)?;
        let guards = Arc::new(Guards::new(Arc::clone(&link)));
        Ok(Self { link, queue, notes, sessions, guards, inbox: OnceLock::new(), instances: OnceLock::new() })
    }

    /// The way to the others, for the router.
    pub fn peers(&self, own: ServerId) -> Peers {
        Peers { own, queue: Arc::clone(&self.queue) as Arc<dyn Queue>, notes: Arc::clone(&self.notes) }
    }

    /// Begins to take in what the others send.
    ///
    /// # Errors
    /// The system refuses a thread.
    pub fn listen(&self, context: Context) -> Result<Arc<Inbox>, std::io::Error> {
        let inbox = Inbox::start(context, Arc::clone(&self.queue) as Arc<dyn Queue>)?;
        let hearing = Arc::clone(&inbox);
        self.notes.listen(move |note| hearing.heard(note))?;
        let inbox = self.inbox.get_or_init(|| inbox);
        Ok(Arc::clone(inbox))
    }

    /// Says that this instance lives, from now on, and looks after what others leave behind. To be called before any device can
    /// connect.
    ///
    /// # Errors
    /// The store fails, or the system refuses a thread.
    pub fn enlist(&self, context: instances::Context) -> Result<Arc<Instances>, InstanceError> {
        let instances = Instances::start(context)?;
        Ok(Arc::clone(self.instances.get_or_init(|| instances)))
    }

    /// Has the parts' counters shown.
    pub fn join_metrics(&self, metrics: &Metrics) {
        metrics.join(&self.link);
        metrics.join(&self.queue);
        metrics.join(&self.notes);
        metrics.join(&self.sessions);
        metrics.join(&self.guards);
    }

    /// Has the others told whether this instance sends its devices away. Does not wait.
    pub fn drain(&self, draining: bool) {
        if let Some(instances) = self.instances.get() {
            instances.drain(draining);
        }
    }

    /// Leaves: removes this instance's sessions and ends the threads.
    pub fn leave(&self) {
        if let Some(instances) = self.instances.get() {
            instances.stop();
        }
        match self.inbox.get() {
            Some(inbox) => inbox.stop(),
            None => self.queue.close(),
        }
        self.notes.close();
        self.sessions.stop();
        self.link.close();
    }
}
