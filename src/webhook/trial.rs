//! Test events: one request to a receiver, now, by whichever instance is asked. Signed and guarded like any delivery; nothing of it is
//! stored, and breaker, lease and order have no part in it.
//!
//! Each is a thread while it lasts, one per endpoint and a few in all.

use std::{
    panic::{self, AssertUnwindSafe},
    sync::{Arc, atomic::Ordering},
    thread,
    time::Duration,
};

use serde::Serialize;
use utoipa::ToSchema;

use super::{
    Known, Pusher, Shared, clock,
    retry::{Answer, Failure},
};
use crate::store::EventRecord;

/// What a test event is called. It is in no log and nobody subscribes to it.
pub const TEST_EVENT: &str = "webhook.test";
/// Test events under way at a time.
const TRIALS_MAX: usize = 8;
/// As for the senders of an endpoint.
const STACK_BYTES: usize = 512 * 1024;

/// What a receiver made of a test event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct Tried {
    /// It took it.
    pub delivered: bool,
    /// HTTP status; `null`: there was no answer.
    pub status: Option<u16>,
    /// From the start to the answer or its absence.
    pub latency_ms: u64,
    /// What went wrong, e.g. `http_500`, `timeout`, `target_refused`.
    pub reason: Option<String>,
}

/// Why no test event is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TrialRefused {
    /// There is no such endpoint.
    #[error("there is no such endpoint")]
    Unknown,
    /// One is under way to this endpoint.
    #[error("a test event is under way to this endpoint")]
    Busy,
    /// Too many are under way to others.
    #[error("{TRIALS_MAX} test events are under way")]
    Full,
    /// No thread.
    #[error("there is no thread for it")]
    Thread,
}

/// Takes back what a trial holds, however it ends.
struct Held {
    shared: Arc<Shared>,
    known: Arc<Known>,
}

impl Held {
    fn take(shared: &Arc<Shared>, known: Arc<Known>) -> Result<Self, TrialRefused> {
        let more = |count| (count < TRIALS_MAX).then_some(count + 1);
        if known.trial.swap(true, Ordering::AcqRel) {
            return Err(TrialRefused::Busy);
        }
        if shared.trials.fetch_update(Ordering::AcqRel, Ordering::Acquire, more).is_err() {
            known.trial.store(false, Ordering::Release);
            return Err(TrialRefused::Full);
        }
        Ok(Self { shared: Arc::clone(shared), known })
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.shared.trials.fetch_sub(1, Ordering::AcqRel);
        self.known.trial.store(false, Ordering::Release);
    }
}

impl Pusher {
    /// Sends a test event to an endpoint, disabled or not, and calls `done` on a thread of its own with what became of it, at the latest
    /// after the time of an attempt or `within`, if that is shorter. Never blocks.
    ///
    /// # Errors
    /// Nothing is sent, and `done` is not called.
    pub fn test(
        &self,
        endpoint: &str,
        within: Duration,
        done: impl FnOnce(Tried) + Send + 'static,
    ) -> Result<(), TrialRefused> {
        let known = self.shared.known(endpoint).ok_or(TrialRefused::Unknown)?;
        let held = Held::take(&self.shared, known)?;
        let run = move || {
            let tried = held.run(within);
            // Free before the answer is out: who has it may ask again at once.
            drop(held);
            done(tried);
        };
        let spawned = thread::Builder::new().name("webhook-test".to_owned()).stack_size(STACK_BYTES).spawn(run);
        spawned.map(drop).map_err(|error| {
            log::error!(endpoint, error:%; "no thread for a test event");
            TrialRefused::Thread
        })
    }
}

impl Held {
    fn run(&self, within: Duration) -> Tried {
        let (name, now) = (self.known.name(), self.shared.clock.now());
        let event = EventRecord {
            pos: 0,
            event_id: uuid::Uuid::now_v7().to_string(),
            event_type: TEST_EVENT.to_owned(),
            key: name.to_owned(),
            device_id: None,
            order_no: None,
            sequence_no: 0,
            at: now.unix_ms,
            data: serde_json::json!({"endpoint": name}).to_string(),
        };
        let started = clock::instant();
        let answer = panic::catch_unwind(AssertUnwindSafe(|| self.known.receiver.post_within(&event, within)))
            .unwrap_or(Answer::None(Failure::Internal));
        let took = clock::instant().saturating_duration_since(started);
        let reason = answer.failure().map(|failure| failure.reason().into_owned());
        log::info!(
            endpoint = name, delivered = reason.is_none(), reason = reason.as_deref().unwrap_or("-");
            "test event sent to a webhook endpoint"
        );
        Tried {
            delivered: reason.is_none(),
            status: answer.status(),
            latency_ms: u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
            reason,
        }
    }
}
