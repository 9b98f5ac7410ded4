//! Looks whether Redis is there, and whether it is the one that was there before.
//!
//! The marker key holds `UUID seconds`: who wrote it first, and when by Redis' clock. Every instance remembers the marker it saw. Missing
//! or another one means that what was written before is gone, whichever instance finds out first; the same one behind another `run_id`
//! means a restart that kept its file, less what was written after it was saved.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, RecvTimeoutError, select};
use redis::{Connection, RedisResult};
use uuid::Uuid;

use super::{Back, LinkError, Shared, now, set_timeout};
use crate::telemetry::label::RedisOp;

/// Key of the marker.
pub(super) const MARKER: &str = "chargegate:marker";
/// Wait before the first attempt to connect again; doubles.
const BACKOFF_MIN: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(2);

/// What is remembered of a Redis.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Identity {
    run_id: String,
    marker: String,
}

pub(super) struct Monitor {
    shared: Arc<Shared>,
    connection: Option<Connection>,
    known: Option<Identity>,
}

impl Monitor {
    /// Connects for the first time.
    pub(super) fn connect(shared: Arc<Shared>) -> Result<Self, LinkError> {
        let mut monitor = Self { shared, connection: None, known: None };
        monitor.reconnect()?;
        Ok(monitor)
    }

    pub(super) fn run(mut self, looked: &Receiver<()>, stopped: &Receiver<()>) {
        let mut backoff = BACKOFF_MIN;
        loop {
            let up = self.connection.is_some();
            let stop = if up {
                let interval = self.shared.settings.ping_interval;
                select! {
                    recv(looked) -> _ => false,
                    recv(stopped) -> _ => true,
                    default(interval) => false,
                }
            } else {
                let wait = jittered(backoff);
                backoff = backoff.saturating_mul(2).min(BACKOFF_MAX);
                stopped.recv_timeout(wait) != Err(RecvTimeoutError::Timeout)
            };
            if stop {
                return;
            }
            if !up {
                match self.reconnect() {
                    Ok(()) => {
                        backoff = BACKOFF_MIN;
                        self.shared.counters.reconnects.inc();
                        log::info!(target: "chargegate::cluster", "redis is back");
                    }
                    Err(error) => self.shared.set_down(error.to_string().into()),
                }
            } else if let Err(error) = self.look() {
                self.connection = None;
                self.shared.set_down(error.to_string().into());
                log::warn!(target: "chargegate::cluster", error:% = error; "redis is away");
            }
        }
    }

    /// One look at a connected Redis, which also finds it emptied.
    fn look(&mut self) -> Result<(), LinkError> {
        let Some(connection) = self.connection.as_mut() else { return Ok(()) };
        let began = now();
        let marker: Option<String> = redis::cmd("GET").arg(MARKER).query(connection)?;
        self.shared.answered(began);
        if marker.is_some() && marker.as_ref() == self.known.as_ref().map(|known| &known.marker) {
            return Ok(());
        }
        let run_id = self.known.as_ref().map(|known| known.run_id.clone());
        let (marker, data_age) = place_marker(connection)?;
        let run_id = run_id.map_or_else(|| run_id_of(connection), Ok)?;
        self.known = Some(Identity { run_id, marker });
        self.shared.back(Back { restarted: false, emptied: true, data_age });
        Ok(())
    }

    fn reconnect(&mut self) -> Result<(), LinkError> {
        let mut connection = self.shared.connect(self.shared.settings.connect_timeout)?;
        set_timeout(&connection, self.shared.settings.command_timeout)?;
        let began = now();
        let run_id = run_id_of(&mut connection)?;
        self.shared.answered(began);
        let (marker, placed, data_age) = {
            let before: Option<String> = redis::cmd("GET").arg(MARKER).query(&mut connection)?;
            let (marker, data_age) = place_marker(&mut connection)?;
            (marker, before.is_none(), data_age)
        };
        let found = Identity { run_id, marker };
        let back = Back {
            restarted: self.known.as_ref().is_some_and(|known| known.run_id != found.run_id),
            emptied: placed || self.known.as_ref().is_some_and(|known| known.marker != found.marker),
            data_age,
        };
        self.known = Some(found);
        self.connection = Some(connection);
        self.shared.set_up();
        self.shared.back(back);
        Ok(())
    }
}

impl Shared {
    fn answered(&self, began: Instant) {
        let latency = now().duration_since(began);
        self.counters.latency[RedisOp::Ping].record(latency);
        self.health.latency_us.store(u64::try_from(latency.as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    fn back(&self, back: Back) {
        *self.last_back.lock() = Some(back);
        if back.emptied {
            self.counters.emptied.inc();
            log::warn!(target: "chargegate::cluster", "redis holds nothing of before");
        }
        let listeners = self.on_back.lock().clone();
        for listener in listeners {
            listener(back);
        }
    }
}

/// Puts the marker where there is none. Returns the marker that is there now, and its age.
fn place_marker(connection: &mut Connection) -> RedisResult<(String, Duration)> {
    let (unix_s, _us): (u64, u64) = redis::cmd("TIME").query(connection)?;
    let own = format!("{} {unix_s}", Uuid::new_v4());
    let _: Option<String> = redis::cmd("SET").arg(MARKER).arg(&own).arg("NX").query(connection)?;
    let marker = redis::cmd("GET").arg(MARKER).query::<Option<String>>(connection)?.unwrap_or(own);
    // A marker that cannot be read is an old one.
    let placed_s = marker.rsplit(' ').next().and_then(|text| text.parse().ok()).unwrap_or(0);
    Ok((marker, Duration::from_secs(unix_s.saturating_sub(placed_s))))
}

/// Which process of Redis this is. Servers that do not tell are all the same one.
fn run_id_of(connection: &mut Connection) -> RedisResult<String> {
    let info: String = redis::cmd("INFO").arg("server").query(connection)?;
    let run_id = info.lines().find_map(|line| line.strip_prefix("run_id:"));
    Ok(run_id.unwrap_or_default().trim().to_owned())
}

/// Half to all of a wait, so that instances do not come back in step.
fn jittered(wait: Duration) -> Duration {
    let share = getrandom::u32().map_or(1.0, |random| f64::from(random) / f64::from(u32::MAX));
    wait.mul_f64(0.5 + share / 2.0)
}
