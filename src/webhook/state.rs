//! How an endpoint is doing, as operators see it. How far it is, what waits and what is dead come from the store, on whichever instance:
//! as stored they belong together, and are a moment old. What only who delivers knows comes from memory, where that is this instance.

use std::sync::atomic::Ordering;

use serde::Serialize;
use utoipa::ToSchema;

use super::{Known, Pusher, breaker::BreakerState};
use crate::{
    model::ServerId,
    store::{EndpointStanding, Reader, StoreError},
    time::Rfc3339,
};

/// Whether, and where, events are sent to an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Delivering {
    /// The instance that was asked delivers.
    Delivering,
    /// Nothing is sent until it is enabled.
    Disabled,
    /// Another instance delivers, the one in `instance`.
    Elsewhere,
    /// Nobody delivers now: the instance is starting, or the one before it has not been given up yet.
    Stopped,
}

/// How an endpoint is doing.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct EndpointState {
    /// Whether, and where, events are sent.
    pub state: Delivering,
    /// Since when nothing is sent.
    pub disabled_at: Option<Rfc3339>,
    /// Why: `http_410` where the receiver said so, else what the operator gave.
    pub disabled_reason: Option<String>,
    /// Known to the instance that delivers only.
    pub breaker: Option<BreakerState>,
    /// Everything up to here is delivered, parked or a dead letter; `null`: it has not begun.
    pub cursor: Option<i64>,
    /// Newest position of the log.
    pub last_pos: i64,
    /// Positions between the two.
    pub backlog: u64,
    /// Attempts under way; known to the instance that delivers only.
    pub in_flight: Option<u64>,
    /// Deliveries that wait for a retry, or behind one of their key.
    pub parked: u64,
    /// Dead letters.
    pub dead: u64,
    /// The instance that delivers, where several share the store.
    pub instance: Option<ServerId>,
}

impl Pusher {
    /// How the endpoints are doing, by name, in the order they are configured. For a thread that may ask the store.
    ///
    /// # Errors
    /// The store could not be asked.
    pub fn states(&self, reader: &mut dyn Reader) -> Result<Vec<(String, EndpointState)>, StoreError> {
        let (records, last_pos) = (reader.standings()?, reader.last_pos()?);
        let own = self.shared.settings.instance.as_ref();
        let known = self.shared.known.read();
        let state = |known: &std::sync::Arc<Known>| {
            let record = records.iter().find(|record| record.endpoint == known.name());
            (known.name().to_owned(), known.state(record, last_pos, own))
        };
        Ok(known.iter().map(state).collect())
    }
}

impl Known {
    fn state(&self, record: Option<&EndpointStanding>, last_pos: i64, own: Option<&ServerId>) -> EndpointState {
        let counters = &self.counters;
        let here = counters.delivering.load(Ordering::Relaxed);
        let owner = record.and_then(|record| record.owner.clone());
        let disabled = record.and_then(|record| record.progress.disabled.as_ref());
        let cursor = record.map(|record| record.progress.cursor);
        let state = match (disabled, here) {
            (Some(_), _) => Delivering::Disabled,
            (None, true) => Delivering::Delivering,
            (None, false) if owner.is_some() && owner.as_ref() != own => Delivering::Elsewhere,
            (None, false) => Delivering::Stopped,
        };
        EndpointState {
            state,
            disabled_at: disabled.map(|disabled| Rfc3339(disabled.at)),
            disabled_reason: disabled.map(|disabled| disabled.reason.clone()),
            breaker: here.then(|| counters.breaker()),
            cursor,
            last_pos,
            backlog: cursor.map_or(0, |cursor| u64::try_from(last_pos.saturating_sub(cursor)).unwrap_or(0)),
            in_flight: here.then(|| counters.in_flight.load(Ordering::Relaxed)),
            parked: record.map_or(0, |record| record.parked),
            dead: record.map_or(0, |record| record.dead),
            instance: owner,
        }
    }
}
