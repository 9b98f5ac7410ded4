//! `Idempotency-Key`: a request that is sent again has its effect once.
//!
//! ```text
//! key ─> in progress? 409 ─> answered before? that answer, or 422 ─> checks ─> one transaction: effect + key + answer ─> answer
//! ```
//!
//! The answer is looked up before the checks of memory: what a charge changed would refuse its own repetition. The store's unique
//! row decides in the end; what is in progress is known to this instance alone, and spares a duplicate the way there.
//!
//! Only 2xx answers are stored. A refusal had no effect, so its key may try again.

use std::collections::HashSet;
use std::sync::Arc;

use parking_lot::Mutex;

use super::error::{ApiError, ErrorCode};
use super::message::Request;
use crate::store::Idempotency;

/// Characters of a key.
const KEY_LEN_MAX: usize = 255;
/// Requests with a key under way at a time. Each is a request of an open connection or one whose client went away, so more than
/// this is no honest load.
const IN_PROGRESS_MAX: usize = 1 << 14;
/// A duplicate may try again this much later: a commit takes milliseconds.
const RETRY_AFTER_S: u32 = 1;

/// What a request asks for by its `Idempotency-Key`; `None`: it has none.
///
/// # Errors
/// `INVALID_PARAMETER`: the key is not 1 to 255 printable ASCII characters.
pub fn asked(request: &Request, api_key: &Arc<str>) -> Result<Option<Idempotency>, ApiError> {
    let Some(key) = request.header("Idempotency-Key") else { return Ok(None) };
    if key.is_empty() || key.len() > KEY_LEN_MAX {
        let message = format!("Idempotency-Key must have 1 to {KEY_LEN_MAX} characters, got {}", key.len());
        return Err(ApiError::invalid(message));
    }
    if !key.bytes().all(|byte| matches!(byte, b' '..=b'~')) {
        return Err(ApiError::invalid("Idempotency-Key must be printable ASCII"));
    }
    Ok(Some(Idempotency {
        api_key: Arc::clone(api_key),
        route: format!("{} {}", request.method.as_str(), request.path()),
        key: key.to_owned(),
        body_hash: request.body_sha256(),
    }))
}

/// API key, method and path, key.
type Name = (Arc<str>, String, String);

/// The keys of requests that are being worked on.
#[derive(Debug, Default)]
pub struct InProgress {
    names: Mutex<HashSet<Name>>,
}

impl InProgress {
    /// Claims a key until the claim is dropped.
    ///
    /// # Errors
    /// `IDEMPOTENCY_IN_PROGRESS`: it is claimed, with whatever body. `NOT_READY`: too many are.
    pub fn claim(self: &Arc<Self>, asked: Idempotency) -> Result<Claim, ApiError> {
        let name = (Arc::clone(&asked.api_key), asked.route.clone(), asked.key.clone());
        let mut names = self.names.lock();
        if names.len() >= IN_PROGRESS_MAX {
            return Err(ApiError::not_ready("too many requests with an Idempotency-Key are under way", RETRY_AFTER_S));
        }
        if !names.insert(name.clone()) {
            let message = format!("a request with Idempotency-Key {:?} is being worked on", asked.key);
            let error = ApiError::new(ErrorCode::IdempotencyInProgress, message);
            return Err(error.with_retry_after(RETRY_AFTER_S));
        }
        drop(names);
        Ok(Claim { of: Arc::clone(self), name, asked })
    }
}

/// A key in progress.
#[derive(Debug)]
pub struct Claim {
    of: Arc<InProgress>,
    name: Name,
    asked: Idempotency,
}

impl Claim {
    /// What was asked for.
    pub const fn asked(&self) -> &Idempotency {
        &self.asked
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.of.names.lock().remove(&self.name);
    }
}

/// 422, for a key that was used with another body.
pub fn mismatch(asked: Option<&Idempotency>) -> ApiError {
    let key = asked.map_or("", |asked| &asked.key);
    let message = format!("Idempotency-Key {key:?} was used with another body");
    ApiError::new(ErrorCode::IdempotencyMismatch, message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::message::Method;

    fn of(key: &str, body: &str) -> Result<Option<Idempotency>, ErrorCode> {
        let request = Request {
            method: Method::Post,
            target: "/order/stop?x=1".to_owned(),
            headers: vec![("idempotency-key".to_owned(), key.to_owned())],
            body: body.as_bytes().to_vec(),
            client_ip: "192.0.2.1".parse().unwrap(),
            request_id: "r".to_owned(),
            upload: None,
        };
        asked(&request, &"shop".into()).map_err(|error| error.code)
    }

    #[test]
    fn keys_are_short_printable_ascii() {
        for key in ["a", "~ ~", &"k".repeat(255)] {
            let asked = of(key, "").unwrap().unwrap();
            assert_eq!((asked.key.as_str(), asked.route.as_str()), (key, "POST /order/stop"));
        }
        for key in ["", "\t", "é", "a\u{7f}", &"k".repeat(256)] {
            assert_eq!(of(key, ""), Err(ErrorCode::InvalidParameter), "{key:?}");
        }
        assert_ne!(of("k", "{}").unwrap(), of("k", "{ }").unwrap());
    }

    #[test]
    fn a_key_is_claimed_once_at_a_time() {
        let in_progress = Arc::new(InProgress::default());
        let claim = |key, body| in_progress.claim(of(key, body).unwrap().unwrap()).map_err(|error| error.code);
        let first = claim("k", "a").unwrap();
        assert_eq!(claim("k", "b").unwrap_err(), ErrorCode::IdempotencyInProgress);
        assert!(claim("other", "a").is_ok());
        drop(first);
        assert!(claim("k", "a").is_ok());
        assert!(in_progress.names.lock().is_empty());
    }
}
