//! The queue in Redis: a sorted set per instance that any instance adds to and its owner pops from.
//!
//! - Pushes go out as one pipeline of `ZADD … LT` of what came together (Redis 6.2 or newer). A member is the id, and behind a space the
//!   device, if it is known: a space comes before all digits, so that members are in the order of their ids.
//! - Popping has a connection of its own, for it blocks there: `ZPOPMIN` for all there is, else `BZPOPMIN` for the next one.
//!   It blocks in rounds of a quarter of a second, so that closing is seen.
//! - A reply lost with its connection loses the entries in it. A pop that fails waits before it tries to connect again.
//! - Lengths by priority are counted by ranges of the score. An entry that has waited for more than 900 s is counted as the next
//!   higher priority: commands do not wait for so long.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use parking_lot::{Condvar, Mutex};
use redis::{Connection, Pipeline, RedisResult};

use super::{Entry, Queue, QueueError, STEP_NS, Taken, now};
use crate::cluster::link::{Conn, Link, LinkError};
use crate::cluster::{Outbox, ServerId};
use crate::model::Priority;
use crate::telemetry::label::RedisOp;
use crate::telemetry::{Counter, Exposition, Gauge, MetricSource};

/// Longest time in one blocking command.
const BLOCK_MAX: Duration = Duration::from_millis(250);
/// Wait after a pop that failed for another reason than Redis being away.
const PAUSE: Duration = Duration::from_millis(100);
/// Clocks of other instances may be ahead by this much before their entries are counted as of a lower priority.
const AHEAD_NS: i64 = 100_000_000_000;
const PRIORITIES: usize = Priority::ALL.len();

/// See the module.
pub struct RedisQueue {
    link: Arc<Link>,
    key: Arc<str>,
    outbox: Outbox<(ServerId, Entry)>,
    popper: Mutex<Popper>,
    /// The flag says closed.
    closed: Mutex<bool>,
    closing: Condvar,
    lengths: Arc<Lengths>,
    unreadable: Counter,
}

#[derive(Default)]
struct Popper {
    connection: Option<Connection>,
    generation: u64,
}

#[derive(Default)]
struct Lengths {
    counted: [Gauge; PRIORITIES],
    under_way: AtomicBool,
}

impl RedisQueue {
    /// The queue of `server`, which pops from it.
    pub fn new(link: Arc<Link>, server: &ServerId) -> Self {
        let outbox = Outbox::new(Arc::clone(&link), RedisOp::Queue, add);
        Self {
            link,
            key: key(server).into(),
            outbox,
            popper: Mutex::default(),
            closed: Mutex::new(false),
            closing: Condvar::new(),
            lengths: Arc::default(),
            unreadable: Counter::default(),
        }
    }

    /// Entries sent.
    pub fn pushed(&self) -> u64 {
        self.outbox.sent()
    }

    /// Entries that were not sent.
    pub fn dropped(&self) -> u64 {
        self.outbox.dropped()
    }

    fn is_closed(&self) -> bool {
        *self.closed.lock()
    }

    /// One round of popping, at most `block` long.
    fn round(&self, popper: &mut Popper, max: usize, block: Duration) -> Result<Vec<String>, LinkError> {
        let generation = self.link.generation();
        if popper.generation != generation {
            *popper = Popper { connection: None, generation };
        }
        let connection = match &mut popper.connection {
            Some(connection) => connection,
            none => none.insert(self.link.connect()?),
        };
        let timeout = self.link.command_timeout();
        connection.set_read_timeout(Some(timeout))?;
        let ready: Vec<(String, f64)> = redis::cmd("ZPOPMIN").arg(&*self.key).arg(max).query(connection)?;
        if !ready.is_empty() || block.is_zero() {
            return Ok(ready.into_iter().map(|(member, _)| member).collect());
        }
        connection.set_read_timeout(Some(timeout + block))?;
        let next: Option<(String, String, f64)> =
            redis::cmd("BZPOPMIN").arg(&*self.key).arg(block.as_secs_f64()).query(connection)?;
        Ok(next.map(|(_, member, _)| member).into_iter().collect())
    }

    /// Waits after a failure, for no longer than until `deadline`, and for Redis to be back if it is away.
    fn pause(&self, deadline: Instant) {
        let mut closed = self.closed.lock();
        let until = deadline.min(now() + PAUSE);
        while !*closed && !self.closing.wait_until(&mut closed, until).timed_out() {}
        drop(closed);
        while !self.is_closed() && !self.link.is_up() {
            let left = deadline.saturating_duration_since(now());
            if left.is_zero() {
                return;
            }
            self.link.wait_up(left.min(BLOCK_MAX));
        }
    }
}

impl Queue for RedisQueue {
    fn push(&self, server: &ServerId, entries: Vec<Entry>) {
        self.outbox.push(entries.into_iter().map(|entry| (server.clone(), entry)));
    }

    fn take(&self, max: usize, wait: Duration) -> Result<Vec<Taken>, QueueError> {
        let deadline = now() + wait;
        let mut popper = self.popper.lock();
        loop {
            if self.is_closed() {
                return Err(QueueError::Closed);
            }
            if max == 0 {
                return Ok(Vec::new());
            }
            let left = deadline.saturating_duration_since(now());
            match self.round(&mut popper, max, left.min(BLOCK_MAX)) {
                Ok(members) => {
                    let found = members.len();
                    let taken: Vec<Taken> = members.iter().filter_map(|member| read(member)).collect();
                    self.unreadable.add((found - taken.len()) as u64);
                    if !taken.is_empty() || now() >= deadline {
                        return Ok(taken);
                    }
                }
                Err(error) => {
                    self.link.counters().failed(&error);
                    popper.connection = None;
                    if error.breaks_connection() {
                        self.link.look();
                    }
                    self.pause(deadline);
                    if now() >= deadline {
                        return Err(QueueError::Away(error.to_string().into()));
                    }
                }
            }
        }
    }

    fn len_by_priority(&self) -> [u64; PRIORITIES] {
        if !self.lengths.under_way.swap(true, Ordering::AcqRel) {
            let (key, lengths) = (Arc::clone(&self.key), Arc::clone(&self.lengths));
            let count = move |connection: &mut Conn| count(connection, &key, unix_ns());
            self.link.submit(RedisOp::Queue, count, move |counted| {
                if let Ok(counted) = counted {
                    lengths.counted.iter().zip(counted).for_each(|(gauge, count)| gauge.set(count));
                }
                lengths.under_way.store(false, Ordering::Release);
            });
        }
        self.lengths.counted.each_ref().map(Gauge::get)
    }

    fn forget(&self, server: &ServerId) {
        let key = key(server);
        self.link.submit(RedisOp::Queue, move |connection| redis::cmd("UNLINK").arg(key).exec(connection), |_| {});
    }

    fn close(&self) {
        *self.closed.lock() = true;
        self.closing.notify_all();
    }
}

impl MetricSource for RedisQueue {
    fn render(&self, to: &mut Exposition<'_>) {
        to.counter(
            "chargegate_queue_dropped_total",
            "Entries of the command queue lost; polls find them.",
            self.dropped(),
        );
        to.counter("chargegate_queue_pushed_total", "Entries sent to command queues.", self.outbox.sent());
        let help = "Entries of the command queue that are no ids.";
        to.counter("chargegate_queue_unreadable_total", help, self.unreadable.get());
    }
}

fn key(server: &ServerId) -> String {
    format!("outbound:queue:{server}")
}

fn add(pipeline: &mut Pipeline, (server, entry): &(ServerId, Entry)) {
    let member = match entry.device_id {
        Some(device_id) => format!("{} {device_id}", entry.id),
        None => entry.id.to_string(),
    };
    pipeline.cmd("ZADD").arg(key(server)).arg("LT").arg(entry.score()).arg(member).ignore();
}

/// A member of the set; a device that cannot be read is none.
fn read(member: &str) -> Option<Taken> {
    let (id, device_id) = member.split_once(' ').unwrap_or((member, ""));
    Some(Taken { id: id.parse().ok()?, device_id: device_id.parse().ok() })
}

/// Entries by priority: those between the newest possible one of the next higher priority and of this one.
fn count(connection: &mut Conn, key: &str, now_ns: i64) -> RedisResult<[u64; PRIORITIES]> {
    let newest = |priority: Priority| {
        now_ns.saturating_add(AHEAD_NS).saturating_add(i64::from(priority.code()) * STEP_NS).to_string()
    };
    let mut pipeline = Pipeline::with_capacity(PRIORITIES);
    let mut above = "-inf".to_owned();
    for (index, priority) in Priority::ALL.into_iter().enumerate() {
        let last = index + 1 == PRIORITIES;
        let to = if last { "+inf".to_owned() } else { newest(priority) };
        pipeline.cmd("ZCOUNT").arg(key).arg(&above).arg(&to);
        above = format!("({to}");
    }
    pipeline.query(connection)
}

#[expect(clippy::disallowed_methods, reason = "the clock enters here")]
fn unix_ns() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_of_other_builds_are_read_as_far_as_they_go() {
        let id = |id| Some(Taken { id, device_id: None });
        assert_eq!(read("7"), id(7));
        assert_eq!(read("7 nobody"), id(7));
        assert_eq!(read("7 40aace04"), Some(Taken { id: 7, device_id: "40aace04".parse().ok() }));
        assert_eq!((read("x 40aace04"), read(""), read(" 40aace04")), (None, None, None));
    }
}
