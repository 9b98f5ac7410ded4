//! The one shape of every JSON answer.
//!
//! ```text
//! success  {"code":0,"message":"success","data":…,"request_id":…,"timestamp":…}
//! error    {"code":<status>,"error":"<CODE>","message":…,"data":…,"request_id":…,"timestamp":…}
//! ```
//!
//! `timestamp` is RFC 3339 UTC with milliseconds. No clock here: the time is an argument.

use serde::Serialize;
use serde_json::Value;

use super::error::{ApiError, ErrorCode};
use super::message::Response;
use crate::time::Rfc3339;

#[derive(Serialize)]
struct Success<'a, T> {
    code: u16,
    message: &'static str,
    data: &'a T,
    request_id: &'a str,
    timestamp: Rfc3339,
}

#[derive(Serialize)]
struct Failure<'a> {
    code: u16,
    error: &'static str,
    message: &'a str,
    data: &'a Value,
    request_id: &'a str,
    timestamp: Rfc3339,
}

/// Appends a success body to `out`.
///
/// # Errors
/// Only if `data` cannot be JSON (a map with keys that are not text); `out` then ends in the middle of the body.
pub fn write_success<T: Serialize>(
    out: &mut Vec<u8>,
    data: &T,
    request_id: &str,
    unix_ms: i64,
) -> serde_json::Result<()> {
    let body = Success { code: 0, message: "success", data, request_id, timestamp: Rfc3339(unix_ms) };
    serde_json::to_writer(out, &body)
}

/// Appends an error body to `out`.
pub fn write_error(out: &mut Vec<u8>, error: &ApiError, request_id: &str, unix_ms: i64) {
    let body = Failure {
        code: error.status(),
        error: error.code.as_str(),
        message: &error.message,
        data: &error.data,
        request_id,
        timestamp: Rfc3339(unix_ms),
    };
    let written = serde_json::to_writer(out, &body);
    debug_assert!(written.is_ok(), "an envelope of strings and a JSON value is JSON");
}

/// A success answer. Data that cannot be JSON is our bug and becomes 500 `INTERNAL`.
pub fn success<T: Serialize>(status: u16, data: &T, request_id: &str, unix_ms: i64) -> Response {
    let mut body = Vec::with_capacity(256);
    match write_success(&mut body, data, request_id, unix_ms) {
        Ok(()) => Response::json(status, body),
        Err(cause) => {
            log::error!(request_id = request_id; "answer cannot be written as JSON: {cause}");
            error(&ApiError::new(ErrorCode::Internal, "the answer could not be written"), request_id, unix_ms)
        }
    }
}

/// An error answer with `Retry-After` and `Allow` where the error has them.
pub fn error(error: &ApiError, request_id: &str, unix_ms: i64) -> Response {
    let mut response = Response::json(error.status(), Vec::with_capacity(256));
    write_error(&mut response.body, error, request_id, unix_ms);
    response.headers = error_headers(error);
    response
}

/// `Retry-After` of an answer that does not say itself when to come again, seconds.
const RETRY_AFTER_S: u32 = 1;

/// The headers of an error answer: `Retry-After` with every 429 and 503, `Allow` with every 405.
pub fn error_headers(error: &ApiError) -> Vec<(&'static str, String)> {
    let retry_after_s = error.retry_after_s.or_else(|| retry_after_s(error.status()));
    let retry_after = retry_after_s.map(|seconds| ("Retry-After", seconds.to_string()));
    let allow = error.allow.clone().map(|allow| ("Allow", allow));
    retry_after.into_iter().chain(allow).collect()
}

/// When to come again after an answer of this status; `None` where that says nothing.
pub const fn retry_after_s(status: u16) -> Option<u32> {
    if matches!(status, 429 | 503) { Some(RETRY_AFTER_S) } else { None }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn success_has_its_members_in_order() {
        let response = success(202, &json!({"order_no": "THD0"}), "r-1", 0);
        assert_eq!(response.status, 202);
        assert_eq!(
            String::from_utf8(response.body).unwrap(),
            r#"{"code":0,"message":"success","data":{"order_no":"THD0"},"request_id":"r-1","timestamp":"1970-01-01T00:00:00.000Z"}"#
        );
    }

    #[test]
    fn error_has_its_members_in_order_and_its_headers() {
        let refused = ApiError::not_ready("store is down", 3).with_data(json!({"since": 7}));
        let response = error(&refused, "r-2", 1_500);
        assert_eq!(response.status, 503);
        assert_eq!(response.headers, [("Retry-After", "3".to_owned())]);
        let headers = |code| error_headers(&ApiError::new(code, "no"));
        for code in [ErrorCode::RateLimited, ErrorCode::QueueOverloaded, ErrorCode::NotReady] {
            assert_eq!(headers(code), [("Retry-After", "1".to_owned())]);
        }
        assert_eq!(headers(ErrorCode::Internal), []);
        assert_eq!(
            String::from_utf8(response.body).unwrap(),
            r#"{"code":503,"error":"NOT_READY","message":"store is down","data":{"since":7},"request_id":"r-2","timestamp":"1970-01-01T00:00:01.500Z"}"#
        );
    }

    #[test]
    fn foreign_text_cannot_leave_its_string() {
        let refused = ApiError::invalid("no field named \"}\u{1}\n");
        let response = error(&refused, "r-3", 0);
        let parsed: Value = serde_json::from_slice(&response.body).unwrap();
        assert_eq!(parsed["message"], "no field named \"}\u{1}\n");
    }

    #[test]
    fn data_that_is_not_json_is_an_internal_error() {
        let odd = std::collections::BTreeMap::from([((1, 2), 3)]);
        assert_eq!(success(200, &odd, "r-4", 0).status, 500);
    }
}
