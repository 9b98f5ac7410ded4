//! What is stored of a webhook endpoint beside its progress, and how others than who delivers to it change that.

use std::sync::Arc;

use crate::model::ServerId;

/// Somebody changes what is to be delivered to an endpoint, on whichever instance. Who delivers to it finds the change by its revision.
/// Dropped: the API answers `NOT_READY`.
#[derive(Clone, Debug)]
pub struct EndpointJob {
    /// Endpoint name.
    pub endpoint: String,
    /// What changes.
    pub change: DeliveryChange,
    /// Now, Unix ms.
    pub at: i64,
}

/// What changes. Each answers with an [`EndpointOutcome`].
#[derive(Clone, Debug)]
pub enum DeliveryChange {
    /// Nothing more is sent to it. One that is disabled keeps its time and reason.
    Disable {
        /// Why, in a few words.
        reason: String,
    },
    /// Goes on behind the stored cursor.
    Enable {
        /// Or at the log's end: what is parked becomes dead letters.
        skip_backlog: bool,
    },
    /// Dead letters are delivered again, with all their attempts.
    Redrive(DeadLetters),
    /// Dead letters are deleted.
    Purge(DeadLetters),
    /// Events of the log are delivered again, dead letters among them. What is parked, or lies beyond the cursor, is delivered anyway.
    Redeliver {
        /// First position.
        from_pos: i64,
        /// Last position.
        to_pos: i64,
        /// Those that the endpoint wants.
        event_types: Arc<[&'static str]>,
        /// Positions looked at, at most.
        rows_max: u32,
    },
}

/// Which dead letters.
#[derive(Clone, Debug)]
pub enum DeadLetters {
    /// Those at these positions.
    At(Vec<i64>),
    /// All behind a position, so many at most.
    Behind {
        /// The position.
        pos: i64,
        /// How many.
        rows_max: u32,
    },
}

/// What a change came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EndpointOutcome {
    /// Rows changed.
    pub changed: u64,
    /// The last position looked at, where there are more behind it.
    pub more_behind: Option<i64>,
}

/// How far an endpoint is, as stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointProgress {
    /// Everything up to here is delivered, parked or dead.
    pub cursor: i64,
    /// Raised by each [`DeliveryChange`] that concerns who delivers.
    pub revision: i64,
    /// Since when nothing is sent to it, and why.
    pub disabled: Option<Disabled>,
}

/// Nothing is sent to an endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disabled {
    /// Since then, Unix ms.
    pub at: i64,
    /// Why: `http_410`, or what an operator said.
    pub reason: String,
}

/// An endpoint as operators see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointStanding {
    /// Endpoint name.
    pub endpoint: String,
    /// How far it is.
    pub progress: EndpointProgress,
    /// The instance that delivers, where several share the store.
    pub owner: Option<ServerId>,
    /// Deliveries that wait for a retry, or behind one.
    pub parked: u64,
    /// Dead letters.
    pub dead: u64,
}

/// How an attempt ended for its event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeliveryOutcome {
    /// The receiver took it.
    Delivered,
    /// It is tried again.
    Retry,
    /// It is a dead letter.
    Dead,
}

impl DeliveryOutcome {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Delivered, Self::Retry, Self::Dead];

    /// The word in rows and answers.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Delivered => "delivered",
            Self::Retry => "retry",
            Self::Dead => "dead",
        }
    }

    /// Reads [`DeliveryOutcome::as_str`].
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|outcome| outcome.as_str() == word)
    }
}

/// One attempt to deliver an event to an endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeliveryLogRow {
    /// When it ended, Unix ms.
    pub at: i64,
    /// Endpoint name.
    pub endpoint: Arc<str>,
    /// The event's position.
    pub pos: i64,
    /// The event's id.
    pub event_id: String,
    /// The event's type.
    pub event_type: String,
    /// The event's key.
    pub key: String,
    /// From 1.
    pub attempt: u8,
    /// HTTP status; `None`: there was no answer.
    pub status: Option<u16>,
    /// From its start to its end, ms.
    pub took_ms: u32,
    /// What became of the event.
    pub outcome: DeliveryOutcome,
    /// What went wrong, e.g. `http_500`, `timeout`.
    pub reason: Option<String>,
    /// The instance that made it. The store knows which one it is of: not looked at where rows are appended.
    pub instance: Option<ServerId>,
}
