//! What people open in a browser: the console at `/` and the documentation at `/docs`. No key, and nothing secret in it: they ask
//! the API like everybody else.

use parking_lot::Mutex;

use super::call::Next;
use super::{RETRY_AFTER_S, now};
use crate::api::error::{ApiError, ErrorCode};
use crate::api::message::{Request, Response};
use crate::api::openapi;
use crate::api::rate::{Bucket, Rate};
use crate::api::route::RouteId;
use crate::console;

const HTML: &str = "text/html; charset=utf-8";

/// Bytes of a file that anybody may have at any rate.
const SMALL: usize = 64 << 10;
/// Longer ones, over all callers. The guard holds an answer until it is read, 5 s at most: some 30 MB of its 64 then at most.
const LONG_ANSWERS: Option<Rate> = Rate::per_second(3, 8);
static LONG_LEFT: Mutex<Bucket> = Mutex::new(Bucket::full());

/// The console, or 304 for who has it already.
pub(super) fn console(request: &Request) -> Next {
    let page = console::page();
    let (status, body) = content(request, &page.etag, page.html.as_bytes());
    let headers = headers(&page.etag, Some(&page.content_security_policy));
    let response = Response { status, content_type: HTML, headers, body };
    Box::new(move |call| call.respond(response))
}

/// A file of the documentation, or 304 for who has it already.
///
/// # Errors
/// `RATE_LIMITED` where long ones are asked for too often.
pub(super) fn docs(route: RouteId, request: &Request) -> Result<Next, ApiError> {
    let response = match openapi::file(route) {
        Some(file) => {
            let (status, body) = content(request, &file.etag, &file.bytes);
            if body.len() > SMALL && !one_more(&mut LONG_LEFT.lock()) {
                let error = ApiError::new(ErrorCode::RateLimited, "the documentation is asked for too often");
                return Err(error.with_retry_after(RETRY_AFTER_S));
            }
            Response { status, content_type: file.content_type, headers: headers(&file.etag, file.policy), body }
        }
        // Names in the page are relative to a path without the slash.
        None => {
            let headers = vec![("Location", "../docs".to_owned())];
            Response { status: 308, content_type: HTML, headers, body: Vec::new() }
        }
    };
    Ok(Box::new(move |call| call.respond(response)))
}

/// Takes one from what is left.
fn one_more(left: &mut Bucket) -> bool {
    let Some(rate) = LONG_ANSWERS else { return true };
    left.fill(rate, now().unix_ms);
    let fits = left.has_one(rate);
    if fits {
        left.take(rate);
    }
    fits
}

/// Status and body for a client that may know a page already.
fn content(request: &Request, etag: &str, bytes: &[u8]) -> (u16, Vec<u8>) {
    // A weak comparison of a list of tags, as RFC 9110 section 13.1.2 has it; `*` is not worth its own rule.
    let known = request
        .header("If-None-Match")
        .is_some_and(|tags| tags.split(',').any(|tag| tag.trim().trim_start_matches("W/") == etag));
    if known { (304, Vec::new()) } else { (200, bytes.to_vec()) }
}

fn headers(etag: &str, policy: Option<&str>) -> Vec<(&'static str, String)> {
    let mut headers = vec![
        ("ETag", etag.to_owned()),
        // A gateway that was replaced is looked at through its own pages at once.
        ("Cache-Control", "no-cache".to_owned()),
        ("X-Content-Type-Options", "nosniff".to_owned()),
        ("Referrer-Policy", "no-referrer".to_owned()),
        ("Cross-Origin-Resource-Policy", "same-origin".to_owned()),
    ];
    if let Some(policy) = policy {
        headers.extend([
            ("Content-Security-Policy", policy.to_owned()),
            ("X-Frame-Options", "DENY".to_owned()),
            ("Cross-Origin-Opener-Policy", "same-origin".to_owned()),
            ("Permissions-Policy", "camera=(), geolocation=(), microphone=(), payment=(), usb=()".to_owned()),
        ]);
    }
    headers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_answers_have_a_rate() {
        let mut left = Bucket::full();
        let given = (0..1_000).take_while(|_| one_more(&mut left)).count();
        assert!((8..1_000).contains(&given), "{given}");
    }
}
