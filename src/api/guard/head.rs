//! The head of a request: which bytes are accepted as HTTP and what they ask for.
//!
//! No I/O and no allocation on the accepting path; everything borrows the receive buffer. What is refused here
//! never reaches tiny_http, which trusts what it reads. Two readers of one request must never disagree on where it
//! ends, so a body is framed by exactly one `Content-Length` of digits, and `Transfer-Encoding` is refused.

use std::mem::MaybeUninit;
use std::net::IpAddr;

use super::counters::Refusal;
use crate::api::error::{ApiError, ErrorCode};
use crate::api::message::{Method, split_target};

/// Header fields a head may have. Browsers send about 20.
pub(super) const FIELDS_MAX: usize = 64;
/// Characters of an `X-Request-Id` that is taken over.
pub(super) const REQUEST_ID_LEN_MAX: usize = 64;

/// The headers that reach handlers, in the case in which they are passed on. All others end at the guard, so that no client can steer
/// tiny_http (`TE`, `Connection`, `Expect`) or forge what the guard alone says. Each may occur once.
pub const FORWARDED_HEADERS: &[&str] = &[
    "Accept",
    "Content-Type",
    "Idempotency-Key",
    "If-None-Match",
    "User-Agent",
    "X-Api-Key",
    "X-Nonce",
    "X-Signature",
    "X-Timestamp",
];

/// What a local route sees of a request.
#[derive(Clone, Copy, Debug)]
pub struct Head<'a> {
    pub method: Method,
    /// Path and query as sent: visible ASCII, begins with `/`.
    pub target: &'a str,
    /// The peer of the connection; an IPv4 address mapped into IPv6 shows as IPv4.
    pub client_ip: IpAddr,
    pub request_id: &'a str,
    /// When it came: Unix milliseconds, read once per turn of the guard.
    pub unix_ms: i64,
    pub(super) fields: &'a [httparse::Header<'a>],
}

impl<'a> Head<'a> {
    /// The target without its query.
    pub fn path(&self) -> &'a str {
        split_target(self.target).0
    }

    /// What follows the `?`, not decoded.
    pub fn query(&self) -> Option<&'a str> {
        split_target(self.target).1
    }

    /// The first header of this name, in any case; `None` too where its value is not visible ASCII.
    pub fn header(&self, name: &str) -> Option<&'a str> {
        let field = self.fields.iter().find(|field| field.name.eq_ignore_ascii_case(name))?;
        ascii(field.value)
    }
}

/// A head that is whole and acceptable.
#[derive(Debug)]
pub(super) struct Parsed<'h, 'b> {
    pub(super) method: &'b str,
    pub(super) target: &'b str,
    pub(super) fields: &'h [httparse::Header<'b>],
    /// Bytes of the head, blank line included.
    pub(super) len: usize,
    /// 0 where none is announced.
    pub(super) content_length: usize,
    /// Whether the client can use the connection again.
    pub(super) keep_alive: bool,
    /// HTTP/1.0 must be told that it may.
    pub(super) announce_keep_alive: bool,
    pub(super) expect_continue: bool,
    /// The body goes to a file.
    pub(super) is_upload: bool,
    /// The client's own id, if it is sane.
    pub(super) request_id: Option<&'b str>,
}

/// What is wrong with a head.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum HeadError {
    #[error("request is not HTTP/1.x: {0}")]
    Malformed(httparse::Error),
    #[error("head must end within {0} bytes")]
    TooLong(usize),
    #[error("head has more than {FIELDS_MAX} fields")]
    TooManyFields,
    #[error("request target must be a path of visible ASCII")]
    Target,
    #[error("header {0} is given twice")]
    Twice(&'static str),
    #[error("header {0} must be visible ASCII")]
    NotAscii(&'static str),
    #[error("Content-Length must be a decimal number")]
    ContentLength,
    #[error("Transfer-Encoding is not accepted, send Content-Length")]
    TransferEncoding,
    #[error("body must be at most {max} bytes, got {len}")]
    BodyTooLong { max: usize, len: u64 },
    #[error("Expect must be 100-continue")]
    Expect,
}

impl HeadError {
    /// The one place that turns a bad head into its counter and its answer.
    pub(super) fn reaction(self) -> (Refusal, ApiError) {
        let message = self.to_string();
        match self {
            Self::TooLong(_) | Self::TooManyFields => (Refusal::HeadTooLarge, ApiError::head_too_large(message)),
            Self::TransferEncoding => (Refusal::TransferEncoding, ApiError::invalid(message)),
            Self::BodyTooLong { .. } => (Refusal::BodyTooLarge, ApiError::new(ErrorCode::PayloadTooLarge, message)),
            Self::Malformed(_)
            | Self::Target
            | Self::Twice(_)
            | Self::NotAscii(_)
            | Self::ContentLength
            | Self::Expect => (Refusal::BadHead, ApiError::invalid(message)),
        }
    }
}

/// A head that is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BadHead<'b> {
    pub(super) error: HeadError,
    /// The client's own id, if it is sane and the head could be read as far as that.
    pub(super) request_id: Option<&'b str>,
}

impl From<HeadError> for BadHead<'_> {
    fn from(error: HeadError) -> Self {
        Self { error, request_id: None }
    }
}

/// How much may be sent.
#[derive(Clone, Copy, Debug)]
pub(super) struct HeadLimits {
    pub(super) head_bytes_max: usize,
    pub(super) body_bytes_max: usize,
    /// The path whose POST bodies go to a file, and how long those may be.
    pub(super) upload: Option<(&'static str, usize)>,
}

/// Room for the fields of a head, left uninitialised: filling it would cost more than parsing.
pub(super) type Fields<'b> = [MaybeUninit<httparse::Header<'b>>; FIELDS_MAX];

/// Parses the head at the start of `bytes`; `None` means that more bytes are needed.
pub(super) fn parse<'h, 'b>(
    bytes: &'b [u8],
    fields: &'h mut Fields<'b>,
    limits: HeadLimits,
) -> Result<Option<Parsed<'h, 'b>>, BadHead<'b>> {
    let mut request = httparse::Request::new(&mut []);
    let len = match request.parse_with_uninit_headers(bytes, fields) {
        Ok(httparse::Status::Complete(len)) => len,
        Ok(httparse::Status::Partial) => {
            return if bytes.len() >= limits.head_bytes_max {
                Err(HeadError::TooLong(limits.head_bytes_max).into())
            } else {
                Ok(None)
            };
        }
        Err(httparse::Error::TooManyHeaders) => return Err(HeadError::TooManyFields.into()),
        Err(error) => return Err(HeadError::Malformed(error).into()),
    };
    // All three are set by a complete parse.
    let (Some(method), Some(target), Some(minor)) = (request.method, request.path, request.version) else {
        return Err(HeadError::Malformed(httparse::Error::Token).into());
    };
    let mut parsed = Parsed {
        method,
        target,
        fields: request.headers,
        len,
        content_length: 0,
        keep_alive: minor >= 1,
        announce_keep_alive: false,
        expect_continue: false,
        is_upload: false,
        request_id: None,
    };
    let upload_max = limits.upload.filter(|(path, _)| method == "POST" && split_target(target).0 == *path);
    parsed.is_upload = upload_max.is_some();
    let body_bytes_max = upload_max.map_or(limits.body_bytes_max, |(_, max)| max);
    let checked = if len > limits.head_bytes_max {
        Err(HeadError::TooLong(limits.head_bytes_max))
    } else if !target.starts_with('/') || !target.bytes().all(|byte| byte.is_ascii_graphic()) {
        Err(HeadError::Target)
    } else {
        read_fields(&mut parsed, minor, body_bytes_max)
    };
    match checked {
        Ok(()) => Ok(Some(parsed)),
        Err(error) => Err(BadHead { error, request_id: request_id_of(parsed.fields) }),
    }
}

/// The client's own id, wherever in the head it is.
fn request_id_of<'b>(fields: &[httparse::Header<'b>]) -> Option<&'b str> {
    let field = fields.iter().find(|field| field.name.eq_ignore_ascii_case("X-Request-Id"))?;
    sane_request_id(field.value)
}

fn read_fields(parsed: &mut Parsed<'_, '_>, minor: u8, body_bytes_max: usize) -> Result<(), HeadError> {
    let mut content_length = None;
    let mut forwarded_seen: u32 = 0;
    for field in parsed.fields {
        // The common fields of a browser or wrk have none of these lengths, so most fields cost one comparison.
        match field.name.len() {
            6 if field.name.eq_ignore_ascii_case("Expect") => {
                if !field.value.eq_ignore_ascii_case(b"100-continue") {
                    return Err(HeadError::Expect);
                }
                // A client of HTTP/1.0 cannot understand the interim answer (RFC 9110 section 10.1.1).
                parsed.expect_continue = minor >= 1;
            }
            10 if field.name.eq_ignore_ascii_case("Connection") => {
                for option in field.value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii) {
                    if option.eq_ignore_ascii_case(b"close") {
                        parsed.keep_alive = false;
                    } else if option.eq_ignore_ascii_case(b"keep-alive") && minor == 0 {
                        parsed.keep_alive = true;
                        parsed.announce_keep_alive = true;
                    }
                }
            }
            12 if field.name.eq_ignore_ascii_case("X-Request-Id") => {
                parsed.request_id = sane_request_id(field.value);
            }
            14 if field.name.eq_ignore_ascii_case("Content-Length") => {
                if content_length.replace(content_length_of(field.value, body_bytes_max)?).is_some() {
                    return Err(HeadError::Twice("Content-Length"));
                }
            }
            17 if field.name.eq_ignore_ascii_case("Transfer-Encoding") => return Err(HeadError::TransferEncoding),
            _ => {
                let Some(index) = forwarded_index(field.name) else { continue };
                let name = FORWARDED_HEADERS.get(index).copied().unwrap_or_default();
                if forwarded_seen & (1 << index) != 0 {
                    return Err(HeadError::Twice(name));
                }
                forwarded_seen |= 1 << index;
                if ascii(field.value).is_none() {
                    return Err(HeadError::NotAscii(name));
                }
            }
        }
    }
    parsed.content_length = content_length.unwrap_or(0);
    Ok(())
}

/// The place of a header in [`FORWARDED_HEADERS`].
pub(super) fn forwarded_index(name: &str) -> Option<usize> {
    FORWARDED_HEADERS.iter().position(|forwarded| forwarded.eq_ignore_ascii_case(name))
}

const _: () = assert!(FORWARDED_HEADERS.len() <= 32, "`read_fields` marks each in one bit of a u32");

fn content_length_of(value: &[u8], max: usize) -> Result<usize, HeadError> {
    if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return Err(HeadError::ContentLength);
    }
    let len = value.iter().fold(0_u64, |len, digit| len.saturating_mul(10).saturating_add(u64::from(digit - b'0')));
    match usize::try_from(len) {
        Ok(fits) if fits <= max => Ok(fits),
        _ => Err(HeadError::BodyTooLong { max, len }),
    }
}

fn sane_request_id(value: &[u8]) -> Option<&str> {
    let sane = (1..=REQUEST_ID_LEN_MAX).contains(&value.len())
        && value.iter().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(byte));
    if sane { ascii(value) } else { None }
}

/// The value as text if it is printable ASCII, which is all that tiny_http takes.
pub(super) fn ascii(value: &[u8]) -> Option<&str> {
    if !value.iter().all(|byte| byte.is_ascii_graphic() || *byte == b' ') {
        return None;
    }
    std::str::from_utf8(value).ok()
}

/// Whether `bytes` may hold the end of a head that was not in its first `seen` bytes: cheap enough to ask at every read,
/// so that a head sent byte by byte is not parsed byte by byte.
pub(super) fn may_end(bytes: &[u8], seen: usize) -> bool {
    let tail = bytes.get(seen.saturating_sub(3)..).unwrap_or_default();
    tail.windows(2).any(|pair| pair == b"\n\n" || pair == b"\n\r")
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: HeadLimits =
        HeadLimits { head_bytes_max: 8_192, body_bytes_max: 65_536, upload: Some(("/up", 1_000_000)) };

    fn with<T>(bytes: &[u8], look: impl FnOnce(Result<Option<Parsed<'_, '_>>, BadHead<'_>>) -> T) -> T {
        let mut fields = [const { MaybeUninit::uninit() }; FIELDS_MAX];
        look(parse(bytes, &mut fields, LIMITS))
    }

    fn error_of(bytes: &[u8]) -> HeadError {
        with(bytes, |parsed| parsed.unwrap_err().error)
    }

    #[test]
    fn a_head_that_is_refused_still_names_its_request() {
        for (head, request_id) in [
            ("POST / HTTP/1.1\r\nContent-Length: 65537\r\nX-Request-Id: r-1\r\n\r\n", Some("r-1")),
            ("POST / HTTP/1.1\r\nX-Request-Id: r-1\r\nTransfer-Encoding: chunked\r\n\r\n", Some("r-1")),
            ("GET http://x/ HTTP/1.1\r\nX-Request-Id: r-1\r\n\r\n", Some("r-1")),
            ("POST / HTTP/1.1\r\nContent-Length: x\r\nX-Request-Id: r 1\r\n\r\n", None),
            ("GET / HTTP/1.1\r\na b: c\r\nX-Request-Id: r-1\r\n\r\n", None),
        ] {
            with(head.as_bytes(), |parsed| assert_eq!(parsed.unwrap_err().request_id, request_id, "{head}"));
        }
    }

    #[test]
    fn a_usual_head() {
        let bytes = b"POST /a?b=c HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nX-Request-Id: a.B_9-\r\nExpect: 100-Continue\r\n\r\nhello";
        with(bytes, |parsed| {
            let head = parsed.unwrap().unwrap();
            assert_eq!((head.method, head.target), ("POST", "/a?b=c"));
            assert_eq!(head.len, bytes.len() - 5);
            assert_eq!(head.content_length, 5);
            assert!(head.keep_alive && head.expect_continue && !head.announce_keep_alive);
            assert_eq!(head.request_id, Some("a.B_9-"));
        });
    }

    #[test]
    fn every_truncation_asks_for_more() {
        let bytes = b"GET /a HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
        for len in 0..bytes.len() {
            assert!(with(&bytes[..len], |parsed| parsed.unwrap().is_none()), "{len}");
        }
    }

    #[test]
    fn keep_alive_follows_version_and_connection() {
        for (version, connection, keep_alive, announce) in [
            ("1.1", "", true, false),
            ("1.1", "Connection: close\r\n", false, false),
            ("1.1", "Connection: foo , CLOSE\r\n", false, false),
            ("1.0", "", false, false),
            ("1.0", "Connection: Keep-Alive\r\n", true, true),
        ] {
            let text = format!("GET / HTTP/{version}\r\n{connection}\r\n");
            with(text.as_bytes(), |parsed| {
                let head = parsed.unwrap().unwrap();
                assert_eq!((head.keep_alive, head.announce_keep_alive), (keep_alive, announce), "{text}");
            });
        }
    }

    #[test]
    fn refusals_name_their_cause() {
        use HeadError as E;
        let long = format!("GET /{} HTTP/1.1\r\n\r\n", "a".repeat(8_192));
        let fields = format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(FIELDS_MAX + 1));
        for (bytes, error) in [
            (&b"\x16\x03\x01\x02\x00"[..], E::Malformed(httparse::Error::Token)),
            (b"GET / HTTP/2.0\r\n\r\n", E::Malformed(httparse::Error::Version)),
            (b"GET / HTTP/1.1\r\na b: c\r\n\r\n", E::Malformed(httparse::Error::HeaderName)),
            (b"GET http://x/ HTTP/1.1\r\n\r\n", E::Target),
            (b"OPTIONS * HTTP/1.1\r\n\r\n", E::Target),
            (b"GET /\xC3\xA9 HTTP/1.1\r\n\r\n", E::Target),
            (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", E::TransferEncoding),
            (b"POST / HTTP/1.1\r\ncontent-length: 3\r\nContent-Length: 3\r\n\r\n", E::Twice("Content-Length")),
            (b"POST / HTTP/1.1\r\nContent-Length: +3\r\n\r\n", E::ContentLength),
            (b"POST / HTTP/1.1\r\nContent-Length: 3, 3\r\n\r\n", E::ContentLength),
            (b"POST / HTTP/1.1\r\nContent-Length:\r\n\r\n", E::ContentLength),
            (b"POST / HTTP/1.1\r\nContent-Length: 65537\r\n\r\n", E::BodyTooLong { max: 65_536, len: 65_537 }),
            (
                b"POST / HTTP/1.1\r\nContent-Length: 99999999999999999999999\r\n\r\n",
                E::BodyTooLong { max: 65_536, len: u64::MAX },
            ),
            (b"POST / HTTP/1.1\r\nExpect: a miracle\r\n\r\n", E::Expect),
            (b"GET / HTTP/1.1\r\nX-Api-Key: a\r\nx-api-key: b\r\n\r\n", E::Twice("X-Api-Key")),
            (b"GET / HTTP/1.1\r\nX-Api-Key: \xE9\r\n\r\n", E::NotAscii("X-Api-Key")),
            (long.as_bytes(), E::TooLong(8_192)),
            (fields.as_bytes(), E::TooManyFields),
        ] {
            assert_eq!(error_of(bytes), error, "{}", String::from_utf8_lossy(bytes));
        }
    }

    #[test]
    fn bounds_are_inclusive() {
        let body = b"POST / HTTP/1.1\r\nContent-Length: 65536\r\n\r\n";
        assert_eq!(with(body, |parsed| parsed.unwrap().unwrap().content_length), 65_536);

        for (head, is_upload, max) in [
            ("POST /up", true, 1_000_000),
            ("POST /up?x=/up", true, 1_000_000),
            ("PUT /up", false, 65_536),
            ("POST /up/", false, 65_536),
        ] {
            let text = |len: usize| format!("{head} HTTP/1.1\r\nContent-Length: {len}\r\n\r\n");
            with(text(max).as_bytes(), |parsed| assert_eq!(parsed.unwrap().unwrap().is_upload, is_upload, "{head}"));
            assert_eq!(error_of(text(max + 1).as_bytes()), HeadError::BodyTooLong { max, len: max as u64 + 1 });
        }

        let frame = "GET / HTTP/1.1\r\na: \r\n\r\n".len();
        for (len, fits) in [(8_192, true), (8_193, false)] {
            let text = format!("GET / HTTP/1.1\r\na: {}\r\n\r\n", "b".repeat(len - frame));
            assert_eq!(text.len(), len);
            assert_eq!(with(text.as_bytes(), |parsed| parsed.is_ok()), fits, "{len}");
        }
    }

    #[test]
    fn odd_request_ids_are_not_taken_over() {
        for id in ["", "a b", "a\"b", &"x".repeat(REQUEST_ID_LEN_MAX + 1)] {
            assert_eq!(sane_request_id(id.as_bytes()), None, "{id}");
        }
        assert!(sane_request_id("x".repeat(REQUEST_ID_LEN_MAX).as_bytes()).is_some());
    }

    #[test]
    fn the_end_of_a_head_is_noticed_across_any_split() {
        for head in [&b"GET / HTTP/1.1\r\na: b\r\n\r\n"[..], b"GET / HTTP/1.1\na: b\n\n"] {
            for seen in 0..head.len() {
                assert!(may_end(head, seen), "{seen}");
            }
            assert!(!may_end(&head[..head.len() - 2], 0));
        }
    }
}
