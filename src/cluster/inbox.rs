//! What other instances send to this one: ids of commands for its devices, and notes. Both only say where to look; what is so is read
//! from the store, and told to the shard that has the device.
//!
//! ```text
//! Queue ──ids──▶ thread ──▶ of a device that is here: the shard claims
//!                   └──one read──▶ here: the shard claims · elsewhere: that one's queue · nowhere: it waits for the bind
//! Notes ───────▶ handler ──one read─▶ the shard follows
//! ```
//!
//! An entry that names a device of a shard of this instance is not read: the claim reads the row anyway, and decides. Where the device has
//! moved meanwhile the claim is fenced, and its bind took what was queued before.
//!
//! What is lost on the way is found by the command poll, the next bind, or a fenced job.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crossbeam::channel::bounded;
use parking_lot::Mutex;

use super::{Note, ServerId};
use crate::gateway::Message;
use crate::model::DeviceId;
use crate::queue::{Queue, QueueError, Taken};
use crate::router::Router;
use crate::store::{NetworkTold, Queued, Reader, SettingsOutcome, Store, StoreError};
use crate::telemetry::{Counter, Exposition, MetricSource};

/// Ids taken from the queue at once.
const POP_MAX: usize = 256;
/// How long a pop waits for the first one.
const POP_WAIT: Duration = Duration::from_secs(1);
/// A read that is not done by then is given up; its commands are found by the poll.
const READ_WAIT: Duration = Duration::from_secs(5);
/// Devices told per poll.
const POLL_DEVICES_MAX: u32 = 1_000;

/// What the inbox works with.
#[derive(Clone)]
pub struct Context {
    /// Rows.
    pub store: Arc<dyn Store>,
    /// Shards, and the way to other instances.
    pub router: Arc<Router>,
    /// This instance.
    pub own: ServerId,
    /// Called when events were committed somewhere that wait for their position.
    pub unsequenced: Arc<dyn Fn() + Send + Sync>,
}

/// The thread that pops ids, and the handler of notes.
pub struct Inbox {
    context: Context,
    queue: Arc<dyn Queue>,
    counters: Arc<Counters>,
    stopping: Arc<AtomicBool>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Default)]
struct Counters {
    claimed_here: Counter,
    passed_on: Counter,
    parked: Counter,
    unread: Counter,
}

impl Inbox {
    /// Starts to pop.
    ///
    /// # Errors
    /// The thread could not be started.
    pub fn start(context: Context, queue: Arc<dyn Queue>) -> std::io::Result<Arc<Self>> {
        let counters = Arc::new(Counters::default());
        let stopping = Arc::new(AtomicBool::new(false));
        let work = Work { context: context.clone(), queue: Arc::clone(&queue), counters: Arc::clone(&counters) };
        let stopped = Arc::clone(&stopping);
        let thread = thread::Builder::new().name("inbox".into()).spawn(move || work.run(&stopped))?;
        Ok(Arc::new(Self { context, queue, counters, stopping, thread: Mutex::new(Some(thread)) }))
    }

    /// Handles a note. Never blocks.
    pub fn heard(&self, note: Note) {
        let router = Arc::clone(&self.context.router);
        match note {
            Note::OrderChanged { device_id, order_no, withdrawn } => {
                self.read_for(device_id, move |reader| {
                    if let Some(order) = reader.order(order_no)? {
                        let (order, commands) = (Box::new(order), Vec::new());
                        router.tell(device_id, Message::OrderChanged { order, commands, withdrawn });
                    }
                    Ok(())
                });
            }
            Note::CommandsQueued { device_id } => router.commands_waiting(device_id),
            Note::SettingsChanged { device_id } => {
                self.read_for(device_id, move |reader| {
                    if let Some(record) = reader.device(device_id)? {
                        let (protocol, details) = (record.protocol, record.details);
                        let settings = SettingsOutcome { device_id, registered: false, protocol, details };
                        router.tell(device_id, Message::SettingsChanged(Box::new(settings)));
                    }
                    Ok(())
                });
            }
            Note::NetworkChanged { device_id, withdrawn } => {
                self.read_for(device_id, move |reader| {
                    if let Some(list) = reader.network(device_id)? {
                        let told = NetworkTold { device_id, list, withdrawn };
                        router.tell(device_id, Message::NetworkChanged(Box::new(told)));
                    }
                    Ok(())
                });
            }
            Note::OtaChanged { device_id, task_id } => {
                self.read_for(device_id, move |reader| {
                    match reader.ota_task(task_id)? {
                        Some(task) if !task.state.is_final() => router.wake_ota(device_id),
                        _ => router.tell(device_id, Message::OtaEnded { device_id, task_id }),
                    }
                    Ok(())
                });
            }
            Note::Superseded { device_id, epoch } => router.bound_elsewhere(device_id, epoch),
            Note::ManagedChanged => router.wake_managed(),
            Note::EventsCommitted { pos: Some(pos) } => {
                router.events_known(pos);
            }
            Note::EventsCommitted { pos: None } => (self.context.unsequenced)(),
            // What was said before was not heard.
            Note::Reconnected => self.poll(),
            Note::Unknown => {}
        }
    }

    /// Looks for commands of this instance's devices whose wake-up was lost.
    pub fn poll(&self) {
        let Context { store, router, own, .. } = self.context.clone();
        let polled = store.read(Box::new(move |reader| {
            let devices = reader.and_then(|reader| reader.devices_with_queued_commands(Some(&own), POLL_DEVICES_MAX));
            match devices {
                Ok(devices) => devices.into_iter().for_each(|device_id| router.commands_waiting(device_id)),
                Err(error) => log::warn!(target: "chargegate::cluster", error:% = error; "commands were not polled"),
            }
        }));
        // It is polled again in a few seconds.
        drop(polled);
    }

    /// Reads rows of a device, if it is one of this instance's.
    fn read_for(
        &self,
        device_id: DeviceId,
        read: impl FnOnce(&mut dyn Reader) -> Result<(), StoreError> + Send + 'static,
    ) {
        if !self.context.router.has(device_id) {
            return;
        }
        let counters = Arc::clone(&self.counters);
        let call = Box::new(move |reader: Result<&mut dyn Reader, StoreError>| {
            if let Err(error) = reader.and_then(read) {
                counters.unread.inc();
                log::warn!(target: "chargegate::cluster", device_id:% = device_id, error:% = error; "a note was not followed");
            }
        });
        if self.context.store.read(call).is_err() {
            self.counters.unread.inc();
        }
    }

    /// Ends the thread.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
        self.queue.close();
        if let Some(thread) = self.thread.lock().take() {
            drop(thread.join());
        }
    }
}

impl MetricSource for Inbox {
    fn render(&self, to: &mut Exposition<'_>) {
        let name = "chargegate_queue_popped_total";
        to.family(name, "counter", "Entries of the command queue, by what became of them.");
        for (what, counter) in [
            ("here", &self.counters.claimed_here),
            ("passed_on", &self.counters.passed_on),
            ("parked", &self.counters.parked),
        ] {
            to.sample(name, &[("to", what)], counter.get());
        }
        let help = "Queue entries and notes whose rows could not be read; polls find them.";
        to.counter("chargegate_inbox_unread_total", help, self.counters.unread.get());
    }
}

struct Work {
    context: Context,
    queue: Arc<dyn Queue>,
    counters: Arc<Counters>,
}

impl Work {
    fn run(self, stopped: &AtomicBool) {
        while !stopped.load(Ordering::Acquire) {
            match self.queue.take(POP_MAX, POP_WAIT) {
                Ok(taken) => {
                    let unknown = self.wake_own(taken);
                    if !unknown.is_empty() {
                        self.look_up(unknown);
                    }
                }
                // The pop waited for it already.
                Err(QueueError::Away(_)) => {}
                Err(QueueError::Closed) => return,
            }
        }
    }

    /// Wakes the shards of devices that are here, each device once, and gives the ids of the other entries.
    fn wake_own(&self, taken: Vec<Taken>) -> Vec<i64> {
        let router = &self.context.router;
        let (mut woken, mut unknown) = (Vec::new(), Vec::new());
        for Taken { id, device_id } in taken {
            match device_id.filter(|device_id| router.has(*device_id)) {
                Some(device_id) => {
                    self.counters.claimed_here.inc();
                    // One claim takes all that waits for the device.
                    if !woken.contains(&device_id) {
                        woken.push(device_id);
                        router.commands_waiting(device_id);
                    }
                }
                None => unknown.push(id),
            }
        }
        unknown
    }

    fn look_up(&self, ids: Vec<i64>) {
        let count = ids.len() as u64;
        let (told, found) = bounded(1);
        let call = Box::new(move |reader: Result<&mut dyn Reader, StoreError>| {
            // Nobody waits any more where it cannot be sent.
            drop(told.try_send(reader.and_then(|reader| reader.queued(&ids))));
        });
        let found = match self.context.store.read(call) {
            Ok(()) => found.recv_timeout(READ_WAIT).ok(),
            Err(_) => None,
        };
        match found {
            Some(Ok(found)) => found.iter().for_each(|queued| self.hand_on(queued)),
            Some(Err(error)) => {
                self.counters.unread.add(count);
                log::warn!(target: "chargegate::cluster", error:% = error; "waiting commands cannot be read");
            }
            None => self.counters.unread.add(count),
        }
    }

    fn hand_on(&self, queued: &Queued) {
        let router = &self.context.router;
        if router.pass_on(queued) {
            self.counters.passed_on.inc();
        } else if router.has(queued.device_id) {
            self.counters.claimed_here.inc();
            router.commands_waiting(queued.device_id);
        } else {
            self.counters.parked.inc();
        }
    }
}
