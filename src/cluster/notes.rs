//! Wake-ups from instance to instance, over Redis' publish and subscribe.
//!
//! ```text
//! publish ──▶ outbox ──▶ link ──▶ PUBLISH note:{server_id} | note:all ──▶ the other instance's notes thread ──▶ handler
//! events_committed ──▶ one at most every 3 ms ──▲
//! ```
//!
//! A note says what changed, not to what: who hears it reads the rows. It may be lost (full outbox, Redis away, nobody subscribed yet) and
//! it may come twice; everything it would have said is found again by a poll, a bind or an epoch. After each subscription, the first one
//! included, the handler gets [`Note::Reconnected`]: what was published before was not heard.
//!
//! Instances of other versions are in the same cluster during an upgrade: kinds that are not known are counted and passed over, fields that
//! are not known are ignored.

use std::fmt;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use redis::{Pipeline, PubSub, RedisResult};
use serde::{Deserialize, Deserializer, Serialize};

use super::{Link, Outbox, ServerId};
use crate::model::{DeviceId, OrderNo};
use crate::telemetry::label::RedisOp;
use crate::telemetry::{Counter, Exposition, MetricSource};

/// Every instance listens here.
const ALL: &str = "note:all";
/// Least time between two notes of committed events.
const EVENTS_PAUSE: Duration = Duration::from_millis(3);
/// The listener looks this often whether it is to stop, or Redis was away.
const LISTEN_ROUND: Duration = Duration::from_millis(250);
/// Rounds without a note after which the server is asked for a sign of life.
const QUIET_ROUNDS: u32 = 8;
/// Wait after a subscription that failed; doubles.
const BACKOFF_MIN: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(2);

/// What changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "note", rename_all = "snake_case")]
pub enum Note {
    /// An order of a device of the receiver's. Lost: a stop is claimed by the command poll, a start expires.
    OrderChanged {
        /// The device.
        #[serde(deserialize_with = "device_id")]
        device_id: DeviceId,
        /// The order.
        order_no: OrderNo,
        /// Commands that must not be written any more.
        #[serde(default)]
        withdrawn: Vec<i64>,
    },
    /// Commands wait for a device of the receiver's. Lost: the command poll.
    CommandsQueued {
        /// The device.
        #[serde(deserialize_with = "device_id")]
        device_id: DeviceId,
    },
    /// What an operator set for a device. Lost: in force from the next bind.
    SettingsChanged {
        /// The device.
        #[serde(deserialize_with = "device_id")]
        device_id: DeviceId,
    },
    /// The network list of a gateway. Lost: in force from the next bind.
    NetworkChanged {
        /// The gateway.
        #[serde(deserialize_with = "device_id")]
        device_id: DeviceId,
        /// Commands that must not be written any more.
        #[serde(default)]
        withdrawn: Vec<i64>,
    },
    /// An update was created or ended. Lost: the driver's poll.
    OtaChanged {
        /// The device.
        #[serde(deserialize_with = "device_id")]
        device_id: DeviceId,
        /// The task.
        task_id: i64,
    },
    /// The device was bound elsewhere, under this epoch. Lost: the epoch fences whatever the receiver still tries.
    Superseded {
        /// The device.
        #[serde(deserialize_with = "device_id")]
        device_id: DeviceId,
        /// Of the newer bind.
        epoch: i64,
    },
    /// Keys or endpoints of the admin API. Lost: the poll of their revision.
    ManagedChanged,
    /// Events were committed. Lost: the readers' polls.
    EventsCommitted {
        /// The log is complete up to here; `None`: events wait for their position.
        #[serde(default)]
        pos: Option<i64>,
    },
    /// Not sent: the listener has subscribed, and heard nothing before.
    #[serde(skip)]
    Reconnected,
    /// Not sent: a kind of another version.
    #[serde(other)]
    Unknown,
}

fn device_id<'de, D: Deserializer<'de>>(deserializer: D) -> Result<DeviceId, D::Error> {
    let text = String::deserialize(deserializer)?;
    text.parse().map_err(|_| serde::de::Error::custom("not a device id"))
}

#[derive(Serialize, Deserialize)]
struct Envelope {
    from: ServerId,
    #[serde(flatten)]
    note: Note,
}

/// On its way to a channel.
struct Letter {
    channel: Arc<str>,
    payload: String,
}

/// Events committed since the last note of them.
#[derive(Default)]
struct Events {
    unsequenced: bool,
    pos: Option<i64>,
}

struct State {
    closed: bool,
    events: Events,
}

struct Shared {
    link: Arc<Link>,
    server: ServerId,
    outbox: Outbox<Letter>,
    state: Mutex<State>,
    changed: Condvar,
    counters: NoteCounters,
}

/// What the listener counts.
#[derive(Debug, Default)]
pub struct NoteCounters {
    /// Notes handed to the handler.
    pub heard: Counter,
    /// Of another version's kind.
    pub unknown: Counter,
    /// That cannot be read.
    pub malformed: Counter,
    /// Subscriptions made.
    pub subscribed: Counter,
    /// Handlers that panicked: bugs.
    pub panics: Counter,
}

/// Sends notes, and hears those of other instances. Sending never waits.
pub struct Notes {
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Notes {
    /// Starts what sends; [`Notes::listen`] starts what hears.
    ///
    /// # Errors
    /// The system refuses a thread.
    pub fn start(link: Arc<Link>, server: ServerId) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            outbox: Outbox::new(Arc::clone(&link), RedisOp::Note, publish),
            link,
            server,
            state: Mutex::new(State { closed: false, events: Events::default() }),
            changed: Condvar::new(),
            counters: NoteCounters::default(),
        });
        let notes = Self { shared, threads: Mutex::new(Vec::new()) };
        notes.spawn("notes-events", |shared| shared.tell_events())?;
        Ok(notes)
    }

    /// Hears what is sent to this instance and to all; what this instance sends to all is not for itself. `handler` is called on the
    /// listener's thread and must not block.
    ///
    /// # Errors
    /// The system refuses a thread.
    pub fn listen(&self, handler: impl Fn(Note) + Send + 'static) -> io::Result<()> {
        self.spawn("notes", move |shared| shared.listen(&handler))
    }

    fn spawn(&self, name: &str, run: impl FnOnce(Arc<Shared>) + Send + 'static) -> io::Result<()> {
        let shared = Arc::clone(&self.shared);
        let handle = thread::Builder::new().name(name.to_owned()).spawn(move || run(shared))?;
        self.threads.lock().push(handle);
        Ok(())
    }

    /// Tells one instance.
    pub fn publish(&self, to: &ServerId, note: Note) {
        self.shared.post(format!("note:{to}").into(), note);
    }

    /// Tells all others. Notes of committed events are kept back for at most 3 ms and become one.
    pub fn broadcast(&self, note: Note) {
        let Note::EventsCommitted { pos } = note else {
            self.shared.post(ALL.into(), note);
            return;
        };
        let mut state = self.shared.state.lock();
        match pos {
            Some(_) => state.events.pos = state.events.pos.max(pos),
            None => state.events.unsequenced = true,
        }
        drop(state);
        self.shared.changed.notify_all();
    }

    /// What the listener counted.
    pub fn counters(&self) -> &NoteCounters {
        &self.shared.counters
    }

    /// Notes lost on this side.
    pub fn dropped(&self) -> u64 {
        self.shared.outbox.dropped()
    }

    /// Stops hearing and waits for the threads. What was published before is on its way all the same.
    pub fn close(&self) {
        self.shared.state.lock().closed = true;
        self.shared.changed.notify_all();
        for thread in std::mem::take(&mut *self.threads.lock()) {
            if thread.join().is_err() {
                log::error!(target: "chargegate::cluster", "a notes thread ended by a panic");
            }
        }
    }
}

impl Drop for Notes {
    fn drop(&mut self) {
        self.close();
    }
}

impl fmt::Debug for Notes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Notes").field("server", &self.shared.server).finish_non_exhaustive()
    }
}

impl MetricSource for Notes {
    fn render(&self, to: &mut Exposition<'_>) {
        let counters = self.counters();
        for (name, help, value) in [
            ("chargegate_notes_sent_total", "Notes sent to other instances.", self.shared.outbox.sent()),
            ("chargegate_notes_dropped_total", "Notes that could not be sent.", self.dropped()),
            ("chargegate_notes_heard_total", "Notes of other instances.", counters.heard.get()),
            ("chargegate_notes_unknown_total", "Notes of another version's kind.", counters.unknown.get()),
            ("chargegate_notes_malformed_total", "Notes that cannot be read.", counters.malformed.get()),
            ("chargegate_notes_subscribed_total", "Subscriptions to notes.", counters.subscribed.get()),
            ("chargegate_notes_panics_total", "Notes whose handling panicked.", counters.panics.get()),
        ] {
            to.counter(name, help, value);
        }
    }
}

fn publish(pipeline: &mut Pipeline, letter: &Letter) {
    pipeline.cmd("PUBLISH").arg(&*letter.channel).arg(&letter.payload).ignore();
}

impl Shared {
    fn post(&self, channel: Arc<str>, note: Note) {
        debug_assert!(!matches!(note, Note::Reconnected | Note::Unknown), "not to be sent");
        // Every kind that is sent can be written as JSON.
        if let Ok(payload) = serde_json::to_string(&Envelope { from: self.server.clone(), note }) {
            self.outbox.push([Letter { channel, payload }]);
        }
    }

    fn is_closed(&self) -> bool {
        self.state.lock().closed
    }

    /// Waits, or returns `true` at once when it is time to stop.
    fn pause(&self, wait: Duration) -> bool {
        let mut state = self.state.lock();
        self.changed.wait_while_for(&mut state, |state| !state.closed, wait);
        state.closed
    }

    fn tell_events(&self) {
        loop {
            let mut state = self.state.lock();
            self.changed.wait_while(&mut state, |state| {
                !state.closed && !state.events.unsequenced && state.events.pos.is_none()
            });
            let (Events { unsequenced, pos }, closed) = (std::mem::take(&mut state.events), state.closed);
            drop(state);
            if unsequenced {
                self.post(ALL.into(), Note::EventsCommitted { pos: None });
            }
            if pos.is_some() {
                self.post(ALL.into(), Note::EventsCommitted { pos });
            }
            if closed || self.pause(EVENTS_PAUSE) {
                return;
            }
        }
    }

    fn listen(&self, handler: &dyn Fn(Note)) {
        let mut backoff = BACKOFF_MIN;
        while !self.is_closed() {
            if !self.link.is_up() {
                self.link.wait_up(LISTEN_ROUND);
                continue;
            }
            let before = self.counters.subscribed.get();
            if let Err(error) = self.subscribe(handler) {
                log::debug!(target: "chargegate::cluster", error:% = error; "notes are not heard");
                self.link.look();
            }
            backoff =
                if self.counters.subscribed.get() > before { BACKOFF_MIN } else { (backoff * 2).min(BACKOFF_MAX) };
            if self.pause(backoff) {
                return;
            }
        }
    }

    /// Subscribes and hears until the connection fails, Redis was away, or it is time to stop.
    fn subscribe(&self, handler: &dyn Fn(Note)) -> Result<(), super::LinkError> {
        let generation = self.link.generation();
        let mut connection = self.link.connect()?;
        let mut pubsub = connection.as_pubsub();
        pubsub.subscribe(&[format!("note:{}", self.server), ALL.to_owned()])?;
        self.counters.subscribed.inc();
        self.hand_on(handler, Note::Reconnected);
        let mut quiet = 0;
        pubsub.set_read_timeout(Some(LISTEN_ROUND))?;
        while !self.is_closed() && self.link.generation() == generation {
            match next(&mut pubsub)? {
                Some((channel, payload)) => {
                    quiet = 0;
                    self.hear(handler, &channel, &payload);
                }
                None => quiet += 1,
            }
            if quiet == QUIET_ROUNDS {
                quiet = 0;
                pubsub.set_read_timeout(Some(self.link.command_timeout()))?;
                pubsub.ping::<redis::Value>()?;
                pubsub.set_read_timeout(Some(LISTEN_ROUND))?;
            }
        }
        Ok(())
    }

    fn hear(&self, handler: &dyn Fn(Note), channel: &str, payload: &[u8]) {
        match serde_json::from_slice(payload) {
            Ok(Envelope { from, .. }) if channel == ALL && from == self.server => {}
            Ok(Envelope { note: Note::Unknown, .. }) => self.counters.unknown.inc(),
            Ok(Envelope { note, .. }) => {
                self.counters.heard.inc();
                self.hand_on(handler, note);
            }
            Err(error) => {
                self.counters.malformed.inc();
                log::debug!(target: "chargegate::cluster", error:% = error; "a note cannot be read");
            }
        }
    }

    fn hand_on(&self, handler: &dyn Fn(Note), note: Note) {
        if catch_unwind(AssertUnwindSafe(|| handler(note))).is_err() {
            self.counters.panics.inc();
            log::error!(target: "chargegate::cluster", "the handler of notes panicked");
        }
    }
}

/// The next message, `None` after a quiet round.
fn next(pubsub: &mut PubSub<'_>) -> RedisResult<Option<(String, Vec<u8>)>> {
    match pubsub.get_message() {
        Ok(message) => Ok(Some((message.get_channel_name().to_owned(), message.get_payload_bytes().to_vec()))),
        Err(error) if error.is_timeout() => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Note, serde_json::Error> {
        serde_json::from_str::<Envelope>(text).map(|envelope| envelope.note)
    }

    #[test]
    fn notes_read_back() {
        let device_id: DeviceId = "40aace04".parse().unwrap();
        let order_no = OrderNo::parse("THDFZZZZZZZZZZZZ").unwrap();
        for note in [
            Note::OrderChanged { device_id, order_no, withdrawn: vec![1, i64::MAX] },
            Note::CommandsQueued { device_id },
            Note::SettingsChanged { device_id },
            Note::NetworkChanged { device_id, withdrawn: Vec::new() },
            Note::OtaChanged { device_id, task_id: 7 },
            Note::Superseded { device_id, epoch: 3 },
            Note::ManagedChanged,
            Note::EventsCommitted { pos: None },
            Note::EventsCommitted { pos: Some(9) },
        ] {
            let text = serde_json::to_string(&Envelope { from: "a".into(), note: note.clone() }).unwrap();
            assert_eq!(read(&text).unwrap(), note, "{text}");
        }
    }

    #[test]
    fn notes_of_other_versions_are_told_from_nonsense() {
        let known = r#"{"from":"a","note":"commands_queued","device_id":"40aace04","new_field":[1]}"#;
        assert!(matches!(read(known), Ok(Note::CommandsQueued { .. })));
        assert_eq!(read(r#"{"from":"a","note":"of_tomorrow","what":{}}"#).unwrap(), Note::Unknown);
        assert_eq!(read(r#"{"from":"a","note":"reconnected"}"#).unwrap(), Note::Unknown);
        for nonsense in ["", "{}", "[]", r#"{"from":"a","note":"commands_queued","device_id":"xyz"}"#] {
            assert!(read(nonsense).is_err(), "{nonsense}");
        }
    }
}
