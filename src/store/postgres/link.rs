//! A connection that is made again when it is lost, and what is known of the store by it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use parking_lot::Mutex;

use super::{
    connect::{Connector, Role},
    session::{Fault, PgSession},
    watch::now,
};
use crate::store::{StoreError, StoreHealth, counters::add};

const BACKOFF_FIRST: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(5);
/// A connection that was not used for this long may be gone without anybody's knowing.
const STALE: Duration = Duration::from_secs(1);

/// What is counted of connections and transactions, beside what every store counts.
#[derive(Debug, Default)]
pub(super) struct LinkCounters {
    /// Connections made again.
    pub(super) reconnects: AtomicU64,
    /// Transactions run again because others were in the way.
    pub(super) conflicts: AtomicU64,
    /// Transactions run again with savepoints, because something in them was refused.
    pub(super) with_savepoints: AtomicU64,
    /// Transactions whose COMMIT had no answer, and what became of them.
    pub(super) found_committed: AtomicU64,
    pub(super) found_lost: AtomicU64,
}

/// Which parts of the store do not work, and why; the store is ready when there are none.
#[derive(Debug)]
pub(super) struct Status {
    pub(super) health: Arc<StoreHealth>,
    failing: Mutex<Vec<(&'static str, usize, String)>>,
}

impl Status {
    pub(super) fn new(health: Arc<StoreHealth>) -> Self {
        Self { health, failing: Mutex::default() }
    }

    /// Says that the store ends, which is no failure.
    pub(super) fn close(&self) {
        self.health.ready.store(false, Relaxed);
        *self.health.reason.lock() = Some("the store is closed".to_owned());
    }

    /// Says how a part is: the connection of a thread by its number.
    pub(super) fn set(&self, part: (&'static str, usize), error: Option<&str>) {
        let mut failing = self.failing.lock();
        let was_ready = failing.is_empty();
        failing.retain(|(kind, number, _)| (*kind, *number) != part);
        if let Some(error) = error {
            failing.push((part.0, part.1, error.to_owned()));
        }
        let reason = failing.first().map(|(.., error)| error.clone());
        match &reason {
            Some(reason) if was_ready => log::error!("store is not ready: {reason}"),
            None if !was_ready => log::info!("store is ready"),
            _ => {}
        }
        self.health.ready.store(reason.is_none(), Relaxed);
        *self.health.reason.lock() = reason;
    }
}

/// When the next attempt is due.
#[derive(Debug)]
struct Backoff {
    next: Option<(Instant, Duration)>,
}

impl Backoff {
    fn is_due(&self) -> bool {
        self.next.is_none_or(|(at, _)| now() >= at)
    }

    fn failed(&mut self) {
        let wait = self.next.map_or(BACKOFF_FIRST, |(_, wait)| (wait * 2).min(BACKOFF_MAX));
        // Between half and all of it: instances that lost the same server do not come back as one.
        self.next = Some((now() + wait / 2 + jitter(wait / 2), wait));
    }
}

/// Some time below `limit`.
pub(super) fn jitter(limit: Duration) -> Duration {
    let random = getrandom::u32().unwrap_or(u32::MAX / 2);
    limit.mul_f64(f64::from(random) / f64::from(u32::MAX))
}

/// A connection of one thread.
pub(super) struct Link {
    connector: Arc<Connector>,
    role: Role,
    part: (&'static str, usize),
    status: Arc<Status>,
    counters: Arc<LinkCounters>,
    session: Option<PgSession>,
    backoff: Backoff,
    used: Instant,
    /// What the last attempt said.
    error: StoreError,
}

impl Link {
    /// Connects.
    pub(super) fn open(
        connector: &Arc<Connector>,
        role: Role,
        part: (&'static str, usize),
        status: &Arc<Status>,
        counters: &Arc<LinkCounters>,
    ) -> Result<Self, StoreError> {
        Ok(Self {
            session: Some(connector.connect(role)?),
            connector: Arc::clone(connector),
            role,
            part,
            status: Arc::clone(status),
            counters: Arc::clone(counters),
            backoff: Backoff { next: None },
            used: now(),
            error: StoreError::Unavailable("not connected".into()),
        })
    }

    /// The connection, made again if it is lost and an attempt is due.
    pub(super) fn session(&mut self) -> Result<&PgSession, StoreError> {
        if self.session.is_none() {
            self.connect()?;
        }
        self.used = now();
        self.session.as_ref().ok_or_else(|| self.error.clone())
    }

    fn connect(&mut self) -> Result<(), StoreError> {
        if !self.backoff.is_due() {
            return Err(self.error.clone());
        }
        match self.connector.try_connect(self.role) {
            Ok(session) => {
                self.session = Some(session);
                self.backoff.next = None;
                add(&self.counters.reconnects, 1);
                self.status.set(self.part, None);
                Ok(())
            }
            Err(error) => {
                self.backoff.failed();
                self.status.set(self.part, Some(&error.to_string()));
                self.error = error.clone();
                Err(error)
            }
        }
    }

    /// Gives the connection up. The first attempt to make it again is due at once.
    pub(super) fn lose(&mut self, error: &StoreError) {
        if self.session.take().is_some() {
            self.error = error.clone();
            self.status.set(self.part, Some(&error.to_string()));
        }
    }

    /// As [`Link::lose`], if the session's last fault says that it is of no use.
    pub(super) fn lose_if_lost(&mut self) {
        let lost = self.session.as_ref().is_some_and(|session| session.take_fault() == Some(Fault::Lost));
        if lost {
            self.lose(&StoreError::Unavailable("the connection to PostgreSQL was lost".into()));
        }
    }

    /// Looks after a connection that is not used: asks whether the server is there, or connects again.
    pub(super) fn look_after(&mut self) {
        let Some(session) = &self.session else {
            // An error is told by the status.
            drop(self.connect());
            return;
        };
        if now().duration_since(self.used) < STALE {
            return;
        }
        self.used = now();
        if let Err(error) = session.call(|client| client.simple_query("").map(drop)) {
            self.lose(&error);
            drop(self.connect());
        }
    }
}
