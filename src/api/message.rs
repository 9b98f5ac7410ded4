//! A request and a response as handlers see them, free of sockets and of tiny_http.

use std::net::IpAddr;

use sha2::{Digest as _, Sha256};

/// A request method.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Method {
    Get,
    /// Routed like GET; the answer keeps its `Content-Length` and loses its body.
    Head,
    Post,
    Put,
    Patch,
    Delete,
    Options,
    /// Any other token. No route has it.
    Other,
}

impl Method {
    /// Methods are case-sensitive (RFC 9110 section 9.1).
    pub fn from_token(token: &str) -> Self {
        match token {
            "GET" => Self::Get,
            "HEAD" => Self::Head,
            "POST" => Self::Post,
            "PUT" => Self::Put,
            "PATCH" => Self::Patch,
            "DELETE" => Self::Delete,
            "OPTIONS" => Self::Options,
            _ => Self::Other,
        }
    }

    /// The token on the wire; `-` for [`Method::Other`].
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Head => "HEAD",
            Self::Post => "POST",
            Self::Put => "PUT",
            Self::Patch => "PATCH",
            Self::Delete => "DELETE",
            Self::Options => "OPTIONS",
            Self::Other => "-",
        }
    }
}

/// Path and query of a request target, `None` where it has no `?`.
pub fn split_target(target: &str) -> (&str, Option<&str>) {
    match target.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (target, None),
    }
}

/// A complete request, body included.
#[derive(Clone, Debug)]
pub struct Request {
    pub method: Method,
    /// Path and query exactly as sent: the text that request signatures cover.
    pub target: String,
    /// The headers the guard lets through ([`guard::FORWARDED_HEADERS`](super::guard::FORWARDED_HEADERS)), each at most once.
    pub headers: Vec<(String, String)>,
    /// At most the guard's body limit.
    pub body: Vec<u8>,
    /// The peer of the TCP connection, told by the guard; a client cannot set it.
    pub client_ip: IpAddr,
    /// The client's `X-Request-Id` if it was 1 to 64 of `[A-Za-z0-9._-]`, else one made by the guard.
    pub request_id: String,
    /// A body that the guard wrote to a file; `body` is then empty.
    pub upload: Option<UploadedBody>,
}

/// A body in a file of the upload directory. Once the request is answered the file is removed, unless it was moved away.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UploadedBody {
    /// Name in the directory.
    pub file_name: String,
    /// Of the whole body.
    pub sha256: [u8; 32],
    /// Length of the body.
    pub bytes: u64,
}

impl Request {
    /// The target without its query.
    pub fn path(&self) -> &str {
        split_target(&self.target).0
    }

    /// What follows the `?`, not decoded.
    pub fn query(&self) -> Option<&str> {
        split_target(&self.target).1
    }

    /// SHA-256 of the body, wherever that is.
    pub fn body_sha256(&self) -> [u8; 32] {
        self.upload.as_ref().map_or_else(|| Sha256::digest(&self.body).into(), |upload| upload.sha256)
    }

    /// A header's value; `name` in any case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(field, _)| field.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }
}

/// A complete response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    pub status: u16,
    pub content_type: &'static str,
    /// Further headers. `Content-Length`, `Connection`, `Date` and `X-Request-Id` are set by the guard.
    pub headers: Vec<(&'static str, String)>,
    pub body: Vec<u8>,
}

impl Response {
    /// `application/json` with no further headers.
    pub const fn json(status: u16, body: Vec<u8>) -> Self {
        Self { status, content_type: JSON, headers: Vec::new(), body }
    }
}

/// The media type of every body but metrics and the console.
pub const JSON: &str = "application/json";

/// The standard text of a status the gateway uses, empty for others (RFC 9112 allows that).
pub const fn reason_phrase(status: u16) -> &'static str {
    match status {
        200 => "OK",
        201 => "Created",
        202 => "Accepted",
        204 => "No Content",
        304 => "Not Modified",
        308 => "Permanent Redirect",
        400 => "Bad Request",
        401 => "Unauthorized",
        402 => "Payment Required",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        409 => "Conflict",
        413 => "Content Too Large",
        415 => "Unsupported Media Type",
        422 => "Unprocessable Content",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        503 => "Service Unavailable",
        _ => "",
    }
}
