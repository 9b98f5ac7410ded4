//! What people open in a browser: the console at `/`. No key, and nothing secret in it: it asks the API like everybody else.

use super::call::Next;
use crate::api::message::{Request, Response};
use crate::console;

const HTML: &str = "text/html; charset=utf-8";

/// The console, or 304 for who has it already.
pub(super) fn console(request: &Request) -> Next {
    let page = console::page();
    // A weak comparison of a list of tags, as RFC 9110 section 13.1.2 has it; `*` is not worth its own rule.
    let known = request
        .header("If-None-Match")
        .is_some_and(|tags| tags.split(',').any(|tag| tag.trim().trim_start_matches("W/") == page.etag));
    let headers = vec![
        ("ETag", page.etag.clone()),
        // A gateway that was replaced is looked at through its own console at once.
        ("Cache-Control", "no-cache".to_owned()),
        ("Content-Security-Policy", page.content_security_policy.clone()),
        ("X-Content-Type-Options", "nosniff".to_owned()),
        ("X-Frame-Options", "DENY".to_owned()),
        ("Referrer-Policy", "no-referrer".to_owned()),
        ("Cross-Origin-Opener-Policy", "same-origin".to_owned()),
        ("Cross-Origin-Resource-Policy", "same-origin".to_owned()),
        ("Permissions-Policy", "camera=(), geolocation=(), microphone=(), payment=(), usb=()".to_owned()),
    ];
    let (status, body) = if known { (304, Vec::new()) } else { (200, page.html.as_bytes().to_vec()) };
    let response = Response { status, content_type: HTML, headers, body };
    Box::new(move |call| call.respond(response))
}
