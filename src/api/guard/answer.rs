//! Writes answers: the guard's own, those of local routes, and those of the server with a fresh head.

use std::io::Write;

use serde::Serialize;

use super::head::Head;
use super::upstream::Answer;
use crate::api::envelope;
use crate::api::error::{ApiError, ErrorCode};
use crate::api::message::{JSON, Response, reason_phrase};
use crate::api::rate::Quota;

/// The answer of a local route; its body is what the route appended to the buffer it was given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalAnswer {
    pub status: u16,
    pub content_type: &'static str,
    /// Further headers, such as `Retry-After` or `Allow`.
    pub headers: Vec<(&'static str, String)>,
    /// What is left to a caller whose rate is limited.
    pub quota: Option<Quota>,
}

impl LocalAnswer {
    /// A body that the route wrote itself.
    pub const fn new(status: u16, content_type: &'static str) -> Self {
        Self { status, content_type, headers: Vec::new(), quota: None }
    }

    /// An answer that is whole.
    pub fn response(response: Response, body: &mut Vec<u8>) -> Self {
        let Response { status, content_type, headers, body: text } = response;
        body.extend_from_slice(&text);
        Self { headers, ..Self::new(status, content_type) }
    }

    /// The success envelope around `data`.
    pub fn success<T: Serialize>(head: &Head<'_>, body: &mut Vec<u8>, data: &T) -> Self {
        match envelope::write_success(body, data, head.request_id, head.unix_ms) {
            Ok(()) => Self::new(200, JSON),
            Err(_) => {
                body.clear();
                Self::error(head, body, &ApiError::new(ErrorCode::Internal, "the answer could not be written"))
            }
        }
    }

    /// The error envelope.
    pub fn error(head: &Head<'_>, body: &mut Vec<u8>, error: &ApiError) -> Self {
        Self::error_of(error, body, head.request_id, head.unix_ms)
    }

    /// The same, of a request that has no head.
    pub(super) fn error_of(error: &ApiError, body: &mut Vec<u8>, request_id: &str, unix_ms: i64) -> Self {
        envelope::write_error(body, error, request_id, unix_ms);
        Self { headers: envelope::error_headers(error), ..Self::new(error.status(), JSON) }
    }
}

/// What every answer's head ends with.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tail<'a> {
    pub(super) date: &'a str,
    pub(super) request_id: &'a str,
    pub(super) keep_alive: bool,
    pub(super) announce_keep_alive: bool,
}

/// Appends the head of an answer whose body follows.
pub(super) fn write_local(out: &mut Vec<u8>, answer: &LocalAnswer, body_len: usize, tail: Tail<'_>) {
    write_status(out, answer.status);
    write_field(out, "Content-Type", answer.content_type.as_bytes());
    for (name, value) in &answer.headers {
        write_field(out, name, value.as_bytes());
    }
    for (name, value) in answer.quota.iter().flat_map(Quota::headers) {
        put(out, format_args!("{name}: {value}\r\n"));
    }
    write_tail(out, Some(body_len), tail);
}

/// Appends the server's answer: its status, its headers but for those the guard sets, its body.
pub(super) fn write_relayed(out: &mut Vec<u8>, answer: &Answer<'_, '_>, body: &[u8], tail: Tail<'_>) {
    const OURS: [&str; 7] =
        ["Connection", "Content-Length", "Date", "Keep-Alive", "Server", "Transfer-Encoding", "X-Request-Id"];
    write_status(out, answer.status);
    for field in answer.fields {
        if !OURS.iter().any(|ours| ours.eq_ignore_ascii_case(field.name)) {
            write_field(out, field.name, field.value);
        }
    }
    // 204 must not have a length (RFC 9110 section 8.6).
    write_tail(out, answer.content_length.filter(|_| answer.status != 204), tail);
    out.extend_from_slice(body);
}

fn write_status(out: &mut Vec<u8>, status: u16) {
    put(out, format_args!("HTTP/1.1 {status} {}\r\n", reason_phrase(status)));
}

fn write_field(out: &mut Vec<u8>, name: &str, value: &[u8]) {
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

fn write_tail(out: &mut Vec<u8>, content_length: Option<usize>, tail: Tail<'_>) {
    if let Some(len) = content_length {
        put(out, format_args!("Content-Length: {len}\r\n"));
    }
    write_field(out, "Date", tail.date.as_bytes());
    write_field(out, "X-Request-Id", tail.request_id.as_bytes());
    if !tail.keep_alive {
        out.extend_from_slice(b"Connection: close\r\n");
    } else if tail.announce_keep_alive {
        out.extend_from_slice(b"Connection: keep-alive\r\n");
    }
    out.extend_from_slice(b"\r\n");
}

fn put(out: &mut Vec<u8>, text: std::fmt::Arguments<'_>) {
    let written = out.write_fmt(text);
    debug_assert!(written.is_ok(), "a Vec takes all bytes");
}
