//! Jobs and rows of the API keys and webhook endpoints that the admin API makes.
//!
//! Lists in a row (scopes, networks, patterns) are text as an operator gave it: what it means is for the reader to check, who may be of
//! another version than the writer.

use super::{Idempotency, payload};
use crate::config::Secret;

/// A change of keys or endpoints. Each raises the revision that instances follow, in its own transaction. Dropped: the API answers
/// `NOT_READY`.
#[derive(Clone, Debug)]
pub struct ManagedJob {
    /// What to do.
    pub change: ManagedChange,
    /// Now, Unix ms.
    pub at: i64,
    /// Request that caused it.
    pub request_id: String,
    /// As [`NewOrder::idempotency`](super::NewOrder::idempotency). The answer that is kept has no secret: who repeats a request is
    /// shown none.
    pub idempotency: Option<Idempotency>,
}

/// What to do with a key or an endpoint.
#[derive(Clone, Debug)]
pub enum ManagedChange {
    /// Add a key.
    CreateKey(NewApiKey),
    /// Change what is given.
    UpdateKey {
        /// Its name.
        name: String,
        /// What changes.
        change: KeyChange,
        /// Refused unless another row has the scope `admin`: the key is about to lose it, and the configuration has none.
        needs_admin_beside: bool,
    },
    /// Replace the key, and the secret where it signs.
    RotateKey {
        /// Its name.
        name: String,
        /// Of the new one.
        key_sha256: [u8; 32],
        /// Of the new one, where it signs.
        hmac_secret: Secret,
    },
    /// Remove a key.
    DeleteKey {
        /// Its name.
        name: String,
        /// As for an update.
        needs_admin_beside: bool,
    },
    /// Add an endpoint, which gets what is committed from now on.
    CreateEndpoint(NewEndpoint),
    /// Change what is given; its place in the log stays.
    UpdateEndpoint {
        /// Its name.
        name: String,
        /// What changes.
        change: EndpointChange,
    },
    /// Sign with another secret. The one before signs too, until it is taken away. The same secret again changes nothing.
    RotateEndpoint {
        /// Its name.
        name: String,
        /// The new one.
        secret: Secret,
    },
    /// Remove an endpoint, with its place in the log and what it has not got.
    DeleteEndpoint {
        /// Its name.
        name: String,
    },
    /// An instance stopped delivering to an endpoint that is gone: removes what its last words left, unless it is there again. Not a
    /// change. Dropped: the place in the log stays, and makes the events that are pruned behind it look undelivered.
    ForgetEndpoint {
        /// Its name.
        name: String,
    },
}

impl ManagedChange {
    /// HTTP status of the answer to one that is done.
    pub const fn status(&self) -> u16 {
        match self {
            Self::CreateKey(_) | Self::CreateEndpoint(_) => payload::CREATED,
            _ => payload::OK,
        }
    }
}

/// A key to add.
#[derive(Clone, Debug)]
pub struct NewApiKey {
    /// Unique among all keys.
    pub name: String,
    /// Of the key.
    pub key_sha256: [u8; 32],
    /// By the words of the configuration.
    pub scopes: Vec<String>,
    /// Whether requests must be signed.
    pub require_hmac: bool,
    /// There where they must.
    pub hmac_secret: Option<Secret>,
    /// Networks; empty: all.
    pub ip_allow: Vec<String>,
    /// 0: not limited.
    pub rate_per_s: u32,
    /// 0: as many as the rate.
    pub burst: u32,
}

/// A change of a key. `None` leaves the stored value.
#[derive(Clone, Debug)]
pub struct KeyChange {
    /// By the words of the configuration.
    pub scopes: Option<Vec<String>>,
    /// Whether requests must be signed.
    pub require_hmac: Option<bool>,
    /// Taken where they must from now on.
    pub hmac_secret: Secret,
    /// Networks; empty: all.
    pub ip_allow: Option<Vec<String>>,
    /// 0: not limited.
    pub rate_per_s: Option<u32>,
    /// 0: as many as the rate.
    pub burst: Option<u32>,
}

/// An endpoint to add.
#[derive(Clone, Debug)]
pub struct NewEndpoint {
    /// Unique among all endpoints.
    pub name: String,
    /// `http` or `https`.
    pub url: String,
    /// Signs every request.
    pub secret: Secret,
    /// Sent as `X-Api-Key`.
    pub api_key: Option<Secret>,
    /// Patterns; empty: all types but those that come only on request.
    pub events: Vec<String>,
}

/// A change of an endpoint. `None` leaves the stored value; an inner `None` takes it away.
#[derive(Clone, Debug, Default)]
pub struct EndpointChange {
    /// `http` or `https`.
    pub url: Option<String>,
    /// Patterns; empty: all types but those that come only on request.
    pub events: Option<Vec<String>>,
    /// Sent as `X-Api-Key`.
    pub api_key: Option<Option<Secret>>,
    /// The secret before the last rotation signs no more.
    pub drop_previous: bool,
}

/// A key as stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiKeyRecord {
    /// Unique.
    pub name: String,
    /// Of the key.
    pub key_sha256: [u8; 32],
    /// By the words of the configuration.
    pub scopes: Vec<String>,
    /// Whether requests must be signed.
    pub require_hmac: bool,
    /// There where they must.
    pub hmac_secret: Option<Secret>,
    /// Networks; empty: all.
    pub ip_allow: Vec<String>,
    /// 0: not limited.
    pub rate_per_s: u32,
    /// 0: as many as the rate.
    pub burst: u32,
    /// Unix ms.
    pub created_at: i64,
    /// Unix ms.
    pub updated_at: i64,
}

/// An endpoint as stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointRecord {
    /// Unique; names its place in the log.
    pub name: String,
    /// `http` or `https`.
    pub url: String,
    /// Signs every request.
    pub secret: Secret,
    /// Signs every request too.
    pub secret_previous: Option<Secret>,
    /// Sent as `X-Api-Key`.
    pub api_key: Option<Secret>,
    /// Patterns; empty: all types but those that come only on request.
    pub events: Vec<String>,
    /// Unix ms.
    pub created_at: i64,
    /// Unix ms.
    pub updated_at: i64,
}

/// The row of a change, as it is now; of a removal as it was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ManagedRecord {
    /// Of a key.
    Key(ApiKeyRecord),
    /// Of an endpoint.
    Endpoint(EndpointRecord),
}

/// What became of a [`ManagedJob`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ManagedOutcome {
    /// Committed.
    Done(ManagedRecord),
    /// A row has this name.
    NameTaken,
    /// No row has it.
    NotFound,
    /// No key with the scope `admin` would be left.
    LastAdmin,
    /// There are as many rows as may be.
    Full {
        /// How many that is.
        rows_max: u32,
    },
    /// Of [`ManagedChange::ForgetEndpoint`].
    Forgotten,
}
