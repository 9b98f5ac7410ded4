//! Whether the process is alive and whether it is ready.
//!
//! *Alive* (`/healthz`) asks only whether each started shard still turns: it restarts the process when the answer is no,
//! so nothing outside the process may make it fail. *Ready* (`/readyz`) also asks for what the process depends on.
//!
//! A pause of the whole process (stopped, frozen container, starved machine) makes every shard look dead at once.
//! The observer, the thread that answers health requests, ticks too: where *its* ticks have a gap, all were paused, and
//! the shards get one period to tick again.
//!
//! Times are milliseconds of one monotonic clock, passed in.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use parking_lot::Mutex;
use serde::Serialize;

/// A shard that did not tick for this long is dead. Shards wait at most 1 s for events.
pub const TICK_AGE_MS_MAX: u64 = 5_000;

/// "Not ticked yet" or "ended".
const NEVER: u64 = u64::MAX;

/// What the server needs to be ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Component {
    /// The store.
    Database,
    /// The shared queue; skipped when embedded.
    Redis,
    /// The device listeners.
    Devices,
    /// The API.
    Http,
}

/// State of a component.
#[derive(Clone, Debug, PartialEq, Serialize, utoipa::ToSchema)]
#[serde(tag = "status", rename_all = "lowercase")]
pub enum ComponentState {
    /// Not started yet.
    Starting,
    /// Works.
    Ok {
        /// Of the last check, in milliseconds.
        latency_ms: f64,
    },
    /// Does not work.
    Error {
        /// Why, with the cause chain.
        error: String,
    },
    /// Not part of this configuration.
    Skipped,
}

impl ComponentState {
    /// Works, checked in `latency`.
    pub fn ok(latency: Duration) -> Self {
        Self::Ok { latency_ms: latency.as_secs_f64() * 1e3 }
    }

    const fn is_ready(&self) -> bool {
        matches!(self, Self::Ok { .. } | Self::Skipped)
    }
}

/// The answer of `/readyz`.
#[derive(Clone, Debug, PartialEq, Serialize, utoipa::ToSchema)]
pub struct Readiness {
    /// Whether requests and devices are served.
    pub ready: bool,
    /// The stage of start or stop.
    pub stage: &'static str,
    /// The store.
    pub database: ComponentState,
    /// The shared queue.
    pub redis: ComponentState,
    /// The device listeners.
    pub devices: ComponentState,
    /// The API.
    pub http: ComponentState,
}

/// The answer of `/healthz`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct Liveness {
    /// Whether each started shard ticked in time.
    pub alive: bool,
    /// Those that did not.
    pub stalled_shards: Vec<usize>,
}

/// When a shard last turned, on a cache line of its own: each shard writes one at every turn.
#[derive(Debug)]
#[repr(align(128))]
struct Tick(AtomicU64);

/// Stage and component states; read and written a few times a second.
#[derive(Debug)]
struct Registry {
    stage: &'static str,
    serving: bool,
    components: [ComponentState; 4],
}

/// Health of the process, shared by all threads.
#[derive(Debug)]
pub struct Health {
    shards: Box<[Tick]>,
    observed_ms: AtomicU64,
    grace_until_ms: AtomicU64,
    registry: Mutex<Registry>,
}

impl Health {
    /// No shard started, all components starting.
    pub fn new(shards: usize) -> Self {
        Self {
            shards: (0..shards).map(|_| Tick(AtomicU64::new(NEVER))).collect(),
            observed_ms: AtomicU64::new(NEVER),
            grace_until_ms: AtomicU64::new(0),
            registry: Mutex::new(Registry {
                stage: "starting",
                serving: false,
                components: [const { ComponentState::Starting }; 4],
            }),
        }
    }

    /// Called by a shard at each turn of its loop. The first tick makes it a started one.
    #[inline]
    pub fn tick(&self, shard: usize, now_ms: u64) {
        if let Some(tick) = self.shards.get(shard) {
            tick.0.store(now_ms, Relaxed);
        }
    }

    /// A shard that ended in order is no longer asked for.
    pub fn shard_ended(&self, shard: usize) {
        self.tick(shard, NEVER);
    }

    /// Called by the one thread that takes health requests: at least once a second, and before it handles what it
    /// woke up for, so that a request never sees a pause that the observer has not seen.
    pub fn observe(&self, now_ms: u64) {
        let last_ms = self.observed_ms.swap(now_ms, Relaxed);
        if last_ms != NEVER && now_ms.saturating_sub(last_ms) > TICK_AGE_MS_MAX {
            self.grace_until_ms.store(now_ms.saturating_add(TICK_AGE_MS_MAX), Relaxed);
        }
    }

    /// Whether every started shard ticked in the last 5 s, or may still be waking from a pause of the process.
    pub fn liveness(&self, now_ms: u64) -> Liveness {
        let stalled = |tick: &Tick| {
            let ticked_ms = tick.0.load(Relaxed);
            ticked_ms != NEVER && now_ms.saturating_sub(ticked_ms) > TICK_AGE_MS_MAX
        };
        let stalled_shards: Vec<usize> =
            self.shards.iter().enumerate().filter(|(_, tick)| stalled(tick)).map(|(index, _)| index).collect();
        let in_grace = now_ms < self.grace_until_ms.load(Relaxed);
        Liveness { alive: stalled_shards.is_empty() || in_grace, stalled_shards }
    }

    /// Records how a component is.
    pub fn set(&self, component: Component, state: ComponentState) {
        self.registry.lock().components[component as usize] = state;
    }

    /// Names the stage of start or stop; `serving` is true only between the end of start and the begin of stop.
    pub fn set_stage(&self, stage: &'static str, serving: bool) {
        let mut registry = self.registry.lock();
        registry.stage = stage;
        registry.serving = serving;
    }

    /// The state of everything that readiness depends on.
    pub fn readiness(&self) -> Readiness {
        let registry = self.registry.lock();
        let [database, redis, devices, http] = registry.components.clone();
        let ready = registry.serving && registry.components.iter().all(ComponentState::is_ready);
        Readiness { ready, stage: registry.stage, database, redis, devices, http }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: u64 = TICK_AGE_MS_MAX;

    #[test]
    fn shards_that_never_started_do_not_count() {
        assert!(Health::new(2).liveness(1_000_000).alive);
    }

    #[test]
    fn a_stalled_shard_is_named() {
        let health = Health::new(2);
        health.tick(0, 1_000);
        health.tick(1, 1_000);
        assert!(health.liveness(1_000 + LIMIT).alive);
        health.tick(0, 1_000 + LIMIT);
        let liveness = health.liveness(1_001 + LIMIT);
        assert_eq!((liveness.alive, liveness.stalled_shards), (false, vec![1]));
        health.shard_ended(1);
        assert!(health.liveness(1_001 + LIMIT).alive);
    }

    #[test]
    fn a_pause_of_the_process_gets_one_period() {
        let health = Health::new(1);
        health.tick(0, 0);
        health.observe(0);
        let woken = 100 * LIMIT;
        health.observe(woken);
        assert!(health.liveness(woken).alive);
        health.observe(woken + LIMIT);
        assert!(!health.liveness(woken + LIMIT).alive);
        health.tick(0, woken + LIMIT);
        assert!(health.liveness(woken + LIMIT).alive);
    }

    #[test]
    fn a_stalled_shard_beside_a_running_observer_gets_none() {
        let health = Health::new(1);
        health.tick(0, 0);
        for now_ms in (0..=2 * LIMIT).step_by(1_000) {
            health.observe(now_ms);
        }
        assert!(!health.liveness(2 * LIMIT).alive);
    }

    #[test]
    fn ready_needs_all_components_and_the_stage() {
        let health = Health::new(1);
        health.set_stage("ready", true);
        assert!(!health.readiness().ready);
        for component in [Component::Database, Component::Devices, Component::Http] {
            health.set(component, ComponentState::ok(Duration::from_millis(2)));
        }
        health.set(Component::Redis, ComponentState::Skipped);
        assert!(health.readiness().ready);
        health.set(Component::Database, ComponentState::Error { error: "disk full".to_owned() });
        assert!(!health.readiness().ready);
        health.set(Component::Database, ComponentState::ok(Duration::ZERO));
        health.set_stage("stopping", false);
        assert!(!health.readiness().ready);
        let json = serde_json::to_value(health.readiness()).unwrap();
        assert_eq!(json["redis"]["status"], "skipped");
        assert_eq!(json["devices"]["latency_ms"], 2.0);
    }
}
