//! The mirror: what each instance holds in memory of its devices, copied to Redis for the others.
//!
//! | key | value | lives for |
//! |---|---|---|
//! | `session:device:{device id}` | JSON, see `record` | twice the device's timeout, at least 300 s |
//! | `server:{server id}` | Unix ms | 15 s, written every 3 s |
//!
//! ```text
//! shards ──mark──▶ Changes (lock-free) ─┐
//!                  sweep, each second ──┴▶ thread ──≤ 500 keys──▶ Redis ──▶ lookups of other instances
//! ```
//!
//! - A device is written within 200 ms after its connection, a port's status or an order on it changed, and again before a third of its
//!   timeout has passed. An unbound one keeps its key, without a connection.
//! - A session is never written over one of a newer epoch: the script that writes compares. Whoever finds a newer one has lost the
//!   device and is told so.
//! - Redis came back, with its data or without: everything is written again.
//! - A clean stop removes what is this instance's own. What a dead one left is set to "no connection" by another
//!   ([`Sessions::drop_connections`]).
//!
//! Absent: whether an instance lives is decided by its beat in the store; the key here only keeps a start from being sent to one that
//! has just died.

mod record;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use parking_lot::Mutex;
use redis::{Cmd, RedisResult};
use rustc_hash::FxHashMap;

pub use self::record::RemoteDevice;
use self::record::Session;
use super::link::{Back, Conn, Link, LinkError};
use crate::gateway::directory::{Directory, Entry};
use crate::model::{DeviceId, ServerId};
use crate::shard::Clock;
use crate::telemetry::label::RedisOp;
use crate::telemetry::{Counter, Exposition, MetricSource};

/// Devices of one page of a list, so many at most are looked up at once.
pub const LOOKUP_MAX: usize = 200;
/// Keys written in one pipeline.
const BATCH_MAX: usize = 500;
/// Keys of one script: Redis does nothing else while one runs.
const SCRIPT_KEYS_MAX: usize = 100;
/// How often changes are collected.
const ROUND: Duration = Duration::from_millis(100);
/// How often all devices are looked at.
const SWEEP_MS: u64 = 1_000;
/// A lookup has an answer, or none, after this.
const LOOKUP_WITHIN: Duration = Duration::from_millis(500);
/// The same for writes, which nobody waits for.
const WRITE_WITHIN: Duration = Duration::from_secs(2);
const TTL_MS_MIN: i64 = 300_000;
/// Life of `server:{server id}`.
const ALIVE_MS: u64 = 15_000;
const ALIVE_EVERY_MS: u64 = 3_000;
/// After an emptied Redis, sessions of others may be missing for want of their owner's time; so long nothing is concluded from them.
const SETTLED_AFTER: Duration = Duration::from_millis(2 * TTL_MS_MIN.unsigned_abs());

/// KEYS: sessions. ARGV: epoch, life in ms and session of each. Returns place and epoch of each that a newer one keeps.
const WRITE: &str = r#"
local newer = {}
for i, key in ipairs(KEYS) do
  local old = redis.call('GET', key)
  local epoch = old and tonumber(string.match(old, '^{"epoch":(%d+)'))
  if epoch and epoch > tonumber(ARGV[3 * i - 2]) then
    newer[#newer + 1] = i
    newer[#newer + 1] = epoch
  else
    redis.call('SET', key, ARGV[3 * i], 'PX', ARGV[3 * i - 1])
  end
end
return newer"#;
/// KEYS: sessions. Returns each, and whether its instance is heard of.
const READ: &str = r#"
local found = {}
for i, key in ipairs(KEYS) do
  local session = redis.call('GET', key)
  local server = session and string.match(session, '"server_id":"([^"]*)"')
  found[2 * i - 1] = session
  found[2 * i] = server and redis.call('EXISTS', 'server:' .. server) or 0
end
return found"#;
/// KEYS: sessions. ARGV: an instance. Removes those that are its own.
const REMOVE: &str = r#"
for i, key in ipairs(KEYS) do
  local session = redis.call('GET', key)
  if session and string.match(session, '"server_id":"([^"]*)"') == ARGV[1] then
    redis.call('DEL', key)
  end
end
return 0"#;
/// KEYS: sessions. ARGV: an instance, Unix ms. Says of those that are its own that their connection is gone.
const DROP: &str = r#"
for i, key in ipairs(KEYS) do
  local session = redis.call('GET', key)
  if session and string.match(session, '"server_id":"([^"]*)"') == ARGV[1] then
    local count
    session, count = string.gsub(session, '"conn_id":"[^"]*"', '"conn_id":null', 1)
    if count == 1 then
      session = string.gsub(session, '"last_tcp_down":%d+', '"last_tcp_down":' .. ARGV[2], 1)
      redis.call('SET', key, session, 'KEEPTTL')
    end
  end
end
return 0"#;

/// Called with a device that another instance bound under this epoch.
pub type OnNewer = Arc<dyn Fn(DeviceId, i64) + Send + Sync>;

/// The mirror: written by a thread of its own, read from any.
pub struct Sessions {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

struct Shared {
    link: Arc<Link>,
    directory: Arc<Directory>,
    server: ServerId,
    /// Redis came back: everything is to be written again.
    rewrite: AtomicBool,
    stopping: AtomicBool,
    /// From when on the data in Redis is old enough, monotonic ms.
    settled_at: AtomicU64,
    clock: Clock,
    counters: Counters,
}

#[derive(Default)]
struct Counters {
    written: Counter,
    failed: Counter,
    fenced: Counter,
    unreadable: Counter,
    devices: AtomicU64,
}

impl Sessions {
    /// Starts to mirror the devices of `directory`, which has a list of changes.
    ///
    /// # Errors
    /// The thread could not be started.
    pub fn start(
        link: Arc<Link>,
        directory: Arc<Directory>,
        server: ServerId,
        clock: Clock,
        on_newer: OnNewer,
    ) -> std::io::Result<Arc<Self>> {
        debug_assert!(directory.changes().is_some(), "the mirror follows changes");
        let shared = Arc::new(Shared {
            link,
            directory,
            server,
            rewrite: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
            settled_at: AtomicU64::new(0),
            clock,
            counters: Counters::default(),
        });
        shared.came_back(shared.link.last_back());
        let told = Arc::downgrade(&shared);
        shared.link.on_back(move |back| {
            if let Some(shared) = told.upgrade() {
                shared.came_back(back);
            }
        });
        // Random, so that no connection of another process has the same name.
        let process = uuid::Uuid::new_v4().as_u64_pair().0;
        let mirror = Mirror {
            shared: Arc::clone(&shared),
            clock,
            process,
            on_newer,
            written: FxHashMap::default(),
            due: Vec::new(),
            sweep_at: 0,
            alive_at: 0,
        };
        let thread = thread::Builder::new().name("sessions".into()).spawn(move || mirror.run())?;
        Ok(Arc::new(Self { shared, thread: Mutex::new(Some(thread)) }))
    }

    /// Asks where a device is. `done` is called once, on any thread, within half a second; it must not block.
    pub fn lookup(
        &self,
        device_id: DeviceId,
        done: impl FnOnce(Result<Option<RemoteDevice>, LinkError>) + Send + 'static,
    ) {
        self.lookup_many(vec![device_id], move |found| done(found.map(|mut found| found.pop())));
    }

    /// Asks where devices are, [`LOOKUP_MAX`] at most; those that no instance told of are left out.
    pub fn lookup_many(
        &self,
        devices: Vec<DeviceId>,
        done: impl FnOnce(Result<Vec<RemoteDevice>, LinkError>) + Send + 'static,
    ) {
        if devices.is_empty() {
            return done(Ok(Vec::new()));
        }
        let shared = Arc::clone(&self.shared);
        let command = eval(READ, devices.iter().take(LOOKUP_MAX));
        let ask = move |connection: &mut Conn| -> RedisResult<Vec<redis::Value>> { command.query(connection) };
        self.shared.link.submit_within(LOOKUP_WITHIN, RedisOp::Session, ask, move |found| {
            done(found.map(|found| shared.read(&devices, &found)));
        });
    }

    /// Says of what a dead instance left of these devices that no connection carries them. `at`: Unix ms. What cannot be said now ends
    /// with the life of its key.
    pub fn drop_connections(&self, dead: &ServerId, devices: &[DeviceId], at: i64) {
        for devices in devices.chunks(SCRIPT_KEYS_MAX) {
            let mut command = eval(DROP, devices.iter());
            command.arg(dead.as_str()).arg(at);
            self.shared.link.submit_within(
                WRITE_WITHIN,
                RedisOp::Session,
                move |connection| command.exec(connection),
                |_| {},
            );
        }
    }

    /// Whether what is missing in Redis is missing because nobody has it: not so for a while after it was found emptied.
    pub fn is_settled(&self) -> bool {
        self.shared.link.is_up() && self.shared.mono_ms() >= self.shared.settled_at.load(Ordering::Acquire)
    }

    /// Ends the thread and removes this instance's own sessions, as far as Redis answers.
    pub fn stop(&self) {
        self.shared.stopping.store(true, Ordering::Release);
        if let Some(thread) = self.thread.lock().take() {
            thread.thread().unpark();
            drop(thread.join());
        }
    }
}

impl MetricSource for Sessions {
    fn render(&self, to: &mut Exposition<'_>) {
        let counters = &self.shared.counters;
        for (name, help, counter) in [
            ("chargegate_sessions_written_total", "Sessions written to the mirror.", &counters.written),
            ("chargegate_sessions_failed_total", "Sessions that could not be written at once.", &counters.failed),
            ("chargegate_sessions_fenced_total", "Sessions of devices that another instance has.", &counters.fenced),
            ("chargegate_sessions_unreadable_total", "Sessions found that are none.", &counters.unreadable),
        ] {
            to.counter(name, help, counter.get());
        }
        let devices = counters.devices.load(Ordering::Relaxed);
        to.gauge("chargegate_sessions_mirrored", "Devices this instance keeps in the mirror.", devices);
    }
}

impl Shared {
    fn came_back(&self, back: Back) {
        let missing = SETTLED_AFTER.saturating_sub(back.data_age).as_millis();
        let settled_at = self.mono_ms().saturating_add(u64::try_from(missing).unwrap_or(u64::MAX));
        self.settled_at.store(settled_at, Ordering::Release);
        self.rewrite.store(true, Ordering::Release);
    }

    fn mono_ms(&self) -> u64 {
        let mut clock = self.clock;
        clock.refresh().mono_ms
    }

    /// Makes devices of what [`READ`] returned.
    fn read(&self, devices: &[DeviceId], found: &[redis::Value]) -> Vec<RemoteDevice> {
        let read = |(device_id, found): (&DeviceId, &[redis::Value])| {
            let (text, alive) = match found {
                [redis::Value::BulkString(text), redis::Value::Int(alive)] => (text, *alive != 0),
                _ => return None,
            };
            match serde_json::from_slice::<Session>(text) {
                Ok(session) => Some(RemoteDevice::new(*device_id, session, alive)),
                Err(error) => {
                    self.counters.unreadable.inc();
                    log::warn!(target: "chargegate::cluster", device_id:% = device_id; "session is not understood: {error}");
                    None
                }
            }
        };
        devices.iter().zip(found.chunks(2)).filter_map(read).collect()
    }

    fn remove(&self, devices: &[DeviceId]) {
        for devices in devices.chunks(BATCH_MAX) {
            let mut pipeline = redis::pipe();
            for devices in devices.chunks(SCRIPT_KEYS_MAX) {
                let mut command = eval(REMOVE, devices.iter());
                command.arg(self.server.as_str());
                pipeline.add_command(command).ignore();
            }
            let removed = self.link.call(WRITE_WITHIN, RedisOp::Session, move |connection| pipeline.exec(connection));
            if let Err(error) = removed {
                // They end with the life of their keys, and say until then what was true last.
                log::warn!(target: "chargegate::cluster", error:% = error; "own sessions were not removed");
                return;
            }
        }
        let key = server_key(&self.server);
        let gone = self
            .link
            .call(WRITE_WITHIN, RedisOp::Session, move |connection| redis::cmd("DEL").arg(key).exec(connection));
        if let Err(error) = gone {
            log::debug!(target: "chargegate::cluster", error:% = error; "the instance's key was not removed");
        }
    }
}

/// A device on its way to Redis.
struct Row {
    device_id: DeviceId,
    epoch: i64,
    life_ms: i64,
    text: String,
}

/// The thread that writes.
struct Mirror {
    shared: Arc<Shared>,
    clock: Clock,
    process: u64,
    on_newer: OnNewer,
    /// When each device was written last, monotonic ms.
    written: FxHashMap<DeviceId, u64>,
    /// Changed devices.
    due: Vec<DeviceId>,
    sweep_at: u64,
    alive_at: u64,
}

impl Mirror {
    fn run(mut self) {
        while !self.shared.stopping.load(Ordering::Acquire) {
            self.round();
            thread::park_timeout(ROUND);
        }
        let mut own: Vec<DeviceId> = self.written.keys().copied().collect();
        own.sort_unstable_by_key(DeviceId::to_string);
        self.shared.remove(&own);
    }

    fn round(&mut self) {
        let now = self.clock.refresh().mono_ms;
        if !self.shared.link.is_up() {
            // Changes stay where they are; what finds no room there is found by the sweep.
            return;
        }
        if self.shared.rewrite.swap(false, Ordering::AcqRel) {
            self.written.clear();
            (self.sweep_at, self.alive_at) = (now, now);
        }
        if now >= self.alive_at {
            self.alive_at = now + ALIVE_EVERY_MS;
            self.say_alive();
        }
        let directory = Arc::clone(&self.shared.directory);
        let Some(changes) = directory.changes() else { return };
        if changes.take_overflow() {
            self.written.clear();
            self.sweep_at = now;
        }
        while let Some(device_id) = changes.pop() {
            self.due.push(device_id);
        }
        if now >= self.sweep_at {
            self.sweep_at = now + SWEEP_MS;
            self.sweep(now, &directory);
        }
        self.write_due(now, &directory);
    }

    /// Finds what has to be written again for its age, and forgets devices that are gone.
    fn sweep(&mut self, now: u64, directory: &Directory) {
        let (written, due) = (&self.written, &mut self.due);
        let mut present = 0;
        directory.visit(|entry| {
            present += 1;
            let refresh = u64::try_from(entry.timeout_ms() / 3).unwrap_or(0).saturating_sub(SWEEP_MS);
            let is_due = match written.get(&entry.device_id()) {
                None => true,
                Some(at) => entry.connected() && now.saturating_sub(*at) >= refresh,
            };
            if is_due {
                due.push(entry.device_id());
            }
        });
        if self.written.len() > present {
            self.written.retain(|device_id, _| directory.find(*device_id).is_some());
        }
        self.shared.counters.devices.store(self.written.len() as u64, Ordering::Relaxed);
    }

    fn write_due(&mut self, now: u64, directory: &Directory) {
        let mut rows = Vec::new();
        for device_id in std::mem::take(&mut self.due) {
            let Some(entry) = directory.find(device_id) else { continue };
            entry.unmark();
            rows.extend(self.row(&entry));
            if rows.len() == BATCH_MAX {
                self.write(now, std::mem::take(&mut rows));
            }
        }
        self.write(now, rows);
    }

    fn row(&self, entry: &Entry) -> Option<Row> {
        let session = Session::of(entry, &self.shared.server, self.process)?;
        let life_ms = entry.timeout_ms().saturating_mul(2).max(TTL_MS_MIN);
        match serde_json::to_string(&session) {
            Ok(text) => Some(Row { device_id: entry.device_id(), epoch: session.epoch, life_ms, text }),
            Err(error) => {
                log::error!(target: "chargegate::cluster", "a session cannot be written as JSON: {error}");
                None
            }
        }
    }

    /// Writes a batch. What fails is found again by the next sweep.
    fn write(&mut self, now: u64, rows: Vec<Row>) {
        if rows.is_empty() {
            return;
        }
        let counters = &self.shared.counters;
        let devices: Vec<DeviceId> = rows.iter().map(|row| row.device_id).collect();
        let work = move |connection: &mut Conn| -> RedisResult<Vec<Vec<i64>>> {
            let mut pipeline = redis::pipe();
            for rows in rows.chunks(SCRIPT_KEYS_MAX) {
                let mut command = eval(WRITE, rows.iter().map(|row| &row.device_id));
                for row in rows {
                    command.arg(row.epoch).arg(row.life_ms).arg(&row.text);
                }
                pipeline.add_command(command);
            }
            pipeline.query(connection)
        };
        let newer = match self.shared.link.call(WRITE_WITHIN, RedisOp::Session, work) {
            Ok(newer) => newer,
            Err(error) => {
                counters.failed.add(devices.len() as u64);
                for device_id in devices {
                    self.written.remove(&device_id);
                }
                log::debug!(target: "chargegate::cluster", error:% = error; "sessions were not written");
                return;
            }
        };
        counters.written.add(devices.len() as u64);
        for device_id in &devices {
            self.written.insert(*device_id, now);
        }
        for (devices, newer) in devices.chunks(SCRIPT_KEYS_MAX).zip(newer) {
            for found in newer.chunks_exact(2) {
                let [place, epoch] = found else { continue };
                let place = usize::try_from(*place).ok().and_then(|place| place.checked_sub(1));
                let Some(device_id) = place.and_then(|place| devices.get(place)) else { continue };
                counters.fenced.inc();
                (self.on_newer)(*device_id, *epoch);
            }
        }
    }

    fn say_alive(&self) {
        let (key, at) = (server_key(&self.shared.server), self.clock.now().unix_ms);
        let say =
            move |connection: &mut Conn| redis::cmd("SET").arg(key).arg(at).arg("PX").arg(ALIVE_MS).exec(connection);
        self.shared.link.submit_within(WRITE_WITHIN, RedisOp::Session, say, |_| {});
    }
}

fn server_key(server: &ServerId) -> String {
    format!("server:{server}")
}

/// A script with the keys of these devices; its arguments follow.
fn eval<'a>(script: &str, devices: impl ExactSizeIterator<Item = &'a DeviceId>) -> Cmd {
    let mut command = redis::cmd("EVAL");
    command.arg(script).arg(devices.len());
    for device_id in devices {
        command.arg(format!("session:device:{device_id}"));
    }
    command
}
