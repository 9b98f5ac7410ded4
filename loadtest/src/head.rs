//! The head of an answer over HTTP/1.1 with a length: what both clients, [`http`](crate::http) and [`post`](crate::post), read.
//!
//! Absent: chunked answers, which are errors.

use std::io::{self, ErrorKind};

/// Most header fields of an answer.
const FIELDS_MAX: usize = 32;

/// What the head of an answer says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    /// Status code.
    pub(crate) status: u16,
    /// Bytes of the head itself.
    pub(crate) length: usize,
    /// Bytes of the body behind it.
    pub(crate) body: usize,
    /// Whether the connection stays.
    pub(crate) keep: bool,
}

impl Head {
    /// The head that `bytes` begin with, once it is whole.
    ///
    /// # Errors
    /// It is no HTTP/1.1, or has no length, or says that more than `body_max` bytes follow.
    pub(crate) fn parse(bytes: &[u8], body_max: usize) -> io::Result<Option<Self>> {
        let mut fields = [httparse::EMPTY_HEADER; FIELDS_MAX];
        let mut answer = httparse::Response::new(&mut fields);
        let parsed = answer.parse(bytes).map_err(|error| io::Error::new(ErrorKind::InvalidData, error))?;
        let httparse::Status::Complete(length) = parsed else { return Ok(None) };
        let value = |name: &str| {
            let field = answer.headers.iter().find(|field| field.name.eq_ignore_ascii_case(name))?;
            str::from_utf8(field.value).ok().map(str::trim)
        };
        let (Some(1), Some(status)) = (answer.version, answer.code) else {
            return Err(invalid("an answer is no HTTP/1.1"));
        };
        let body = value("content-length").and_then(|text| text.parse().ok()).filter(|body| *body <= body_max);
        let body = body.ok_or_else(|| invalid("an answer has no length, or too much of it"))?;
        let keep = !value("connection").is_some_and(|value| value.eq_ignore_ascii_case("close"));
        Ok(Some(Self { status, length, body, keep }))
    }

    /// The body, once it is whole; `bytes` begin with the head.
    pub(crate) fn body<'a>(&self, bytes: &'a [u8]) -> Option<&'a [u8]> {
        bytes.get(self.length..)?.get(..self.body)
    }
}

fn invalid(why: &'static str) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, why)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_are_read_once_they_are_whole() {
        let text = b"HTTP/1.1 202 Accepted\r\nX: y\r\ncontent-length: 4\r\nConnection: Close\r\n\r\nbody";
        let length = text.len() - 4;
        for cut in 0..length {
            assert_eq!(Head::parse(&text[..cut], 4).unwrap(), None, "{cut}");
        }
        let head = Head::parse(&text[..length], 4).unwrap().unwrap();
        assert_eq!(head, Head { status: 202, length, body: 4, keep: false });
        assert_eq!((head.body(&text[..length + 3]), head.body(text)), (None, Some(&b"body"[..])));
        assert!(Head::parse(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", 0).unwrap().unwrap().keep);
    }

    #[test]
    fn what_has_no_length_is_refused() {
        for bad in [
            &b"HTTP/1.1 200 OK\r\n\r\n"[..],
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n",
            b"HTTP/1.0 200 OK\r\nContent-Length: 4\r\n\r\n",
            b"SSH-2.0\r\n\r\n",
            b"\x00\x01 no http at all",
        ] {
            assert!(Head::parse(bad, 4).is_err(), "{}", bad.escape_ascii());
        }
    }
}
