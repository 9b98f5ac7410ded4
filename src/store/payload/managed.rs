//! Keys and endpoints as operators read them.

use serde::Serialize;
use utoipa::ToSchema;

use crate::api::envelope;
use crate::store::{ApiKeyRecord, EndpointRecord};
use crate::time::Rfc3339;

/// Where a key or an endpoint is kept, and is changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    /// In the configuration of the instances.
    Config,
    /// In the store, by the admin API.
    Store,
}

/// An API key. The key itself and its secret are shown only where they are made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct KeyObject {
    /// Unique.
    pub name: String,
    /// Where it is kept.
    pub source: Origin,
    /// Of `read`, `control`, `admin`.
    pub scopes: Vec<String>,
    /// Whether requests must be signed.
    pub require_hmac: bool,
    /// Networks that may use it; empty: all.
    pub ip_allow: Vec<String>,
    /// Requests per second; 0 is without limit.
    pub rate_per_s: u32,
    /// Requests at once after a rest; 0 is `rate_per_s`.
    pub burst: u32,
    /// `null` for one of the configuration.
    pub created_at: Option<Rfc3339>,
    /// `null` for one of the configuration.
    pub updated_at: Option<Rfc3339>,
}

impl From<&ApiKeyRecord> for KeyObject {
    fn from(record: &ApiKeyRecord) -> Self {
        Self {
            name: record.name.clone(),
            source: Origin::Store,
            scopes: record.scopes.clone(),
            require_hmac: record.require_hmac,
            ip_allow: record.ip_allow.clone(),
            rate_per_s: record.rate_per_s,
            burst: record.burst,
            created_at: Some(Rfc3339(record.created_at)),
            updated_at: Some(Rfc3339(record.updated_at)),
        }
    }
}

/// A webhook endpoint. Its secrets are shown only where they are made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct EndpointObject {
    /// Unique; names its place in the event log.
    pub name: String,
    /// Where it is kept.
    pub source: Origin,
    /// `http` or `https`.
    pub url: String,
    /// Patterns over event types; empty: all but `device.heartbeat` and `charging.progress`.
    pub events: Vec<String>,
    /// How many secrets sign: 2 while receivers change over to a new one.
    pub secrets: u8,
    /// Whether an `X-Api-Key` is sent.
    pub api_key: bool,
    /// `null` for one of the configuration.
    pub created_at: Option<Rfc3339>,
    /// `null` for one of the configuration.
    pub updated_at: Option<Rfc3339>,
}

impl From<&EndpointRecord> for EndpointObject {
    fn from(record: &EndpointRecord) -> Self {
        Self {
            name: record.name.clone(),
            source: Origin::Store,
            url: record.url.clone(),
            events: record.events.clone(),
            secrets: 1 + u8::from(record.secret_previous.is_some()),
            api_key: record.api_key.is_some(),
            created_at: Some(Rfc3339(record.created_at)),
            updated_at: Some(Rfc3339(record.updated_at)),
        }
    }
}

/// A key, and what is shown of it this once.
#[derive(Debug, Serialize, ToSchema)]
pub struct ShownKey<'a> {
    /// The key.
    #[serde(flatten)]
    pub object: KeyObject,
    /// To be sent as `X-Api-Key`. Not in the answer to a repeated request.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub key: Option<&'a str>,
    /// Signs requests, where they must be signed. Not in the answer to a repeated request.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub hmac_secret: Option<&'a str>,
}

/// An endpoint, and what is shown of it this once.
#[derive(Debug, Serialize, ToSchema)]
pub struct ShownEndpoint<'a> {
    /// The endpoint.
    #[serde(flatten)]
    pub object: EndpointObject,
    /// Where one was made. Not in the answer to a repeated request.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub secret: Option<&'a str>,
}

/// The whole answer to a request that changed a key. The store keeps it for the request's idempotency key, without secrets.
///
/// # Errors
/// None in practice: the data are numbers and text.
pub fn key_answer(shown: &ShownKey<'_>, request_id: &str, unix_ms: i64) -> serde_json::Result<Vec<u8>> {
    let mut body = Vec::with_capacity(512);
    envelope::write_success(&mut body, shown, request_id, unix_ms)?;
    Ok(body)
}

/// The whole answer to a request that changed an endpoint; as [`key_answer`].
///
/// # Errors
/// None in practice, as for [`key_answer`].
pub fn endpoint_answer(shown: &ShownEndpoint<'_>, request_id: &str, unix_ms: i64) -> serde_json::Result<Vec<u8>> {
    let mut body = Vec::with_capacity(512);
    envelope::write_success(&mut body, shown, request_id, unix_ms)?;
    Ok(body)
}

impl<'a> ShownKey<'a> {
    /// A key of which nothing is shown.
    pub fn hidden(record: &ApiKeyRecord) -> Self {
        Self { object: KeyObject::from(record), key: None, hmac_secret: None }
    }
}

impl<'a> ShownEndpoint<'a> {
    /// An endpoint of which nothing is shown.
    pub fn hidden(record: &EndpointRecord) -> Self {
        Self { object: EndpointObject::from(record), secret: None }
    }
}
