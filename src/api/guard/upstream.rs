//! The private connections to tiny_http, and what comes back on them.
//!
//! One request is on a connection at a time. A slot's life:
//!
//! ```text
//! vacant ──connect, probe──> busy ──answer──> idle ──request──> busy ──answer──> idle
//!                                                                └─ deadline ──> draining ──end of stream──> vacant
//! ```
//!
//! A *draining* connection is one whose handler missed the deadline. Its sending side is shut, so tiny_http reads no more
//! from it, and its end of stream tells that the handler has let go of the request. Draining connections are
//! therefore an exact count of the abandoned requests still alive; it is bounded, and at the bound overdue
//! connections keep their slots: stuck handlers cost a fixed amount of memory, however long they stay stuck.

use std::io::{self, Read};
use std::net::Shutdown;

use mio::net::UnixStream;

/// Header fields an answer may have; tiny_http and the handlers together set fewer than ten.
const FIELDS_MAX: usize = 32;
/// Bytes an answer's head may have.
const HEAD_BYTES_MAX: usize = 8_192;

/// What a slot is doing; see the module's drawing.
#[derive(Debug)]
pub(super) enum Slot<C> {
    Vacant,
    Idle(Link),
    Busy(Link, Exchange<C>),
    Draining(Link),
}

/// A connection to tiny_http.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) stream: UnixStream,
    /// Which of the server's listeners it leads to.
    pub(super) generation: u64,
}

/// A request under way.
#[derive(Debug)]
pub(super) struct Exchange<C> {
    /// Who waits for the answer; `None` once nobody does.
    pub(super) client: Option<C>,
    /// The request, as far as it is not sent.
    pub(super) request: Vec<u8>,
    pub(super) sent: usize,
    /// The answer, as far as it has come.
    pub(super) answer: Vec<u8>,
    /// Bytes the whole answer will have; 0 until its head is whole.
    pub(super) answer_len: usize,
    /// An answer to HEAD has no body, whatever its `Content-Length` says.
    pub(super) bodiless: bool,
    pub(super) deadline: u64,
}

/// How an exchange stands after its bytes moved.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// Waiting for the socket.
    Blocked,
    /// The answer is whole.
    Answered,
    /// The server closed the connection or it broke.
    Closed,
    /// The answer is not one that can be relayed.
    Invalid,
}

impl<C> Exchange<C> {
    pub(super) const fn new(client: Option<C>, request: Vec<u8>, deadline: u64) -> Self {
        Self { client, request, sent: 0, answer: Vec::new(), answer_len: 0, bodiless: false, deadline }
    }

    /// Sends what is left of the request, as far as the socket takes it.
    pub(super) fn send(&mut self, link: &mut Link) -> Progress {
        while let Some(rest) = self.request.get(self.sent..).filter(|rest| !rest.is_empty()) {
            match write_some(&mut link.stream, rest) {
                Ok(0) => return Progress::Closed,
                Ok(written) => self.sent += written,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return Progress::Closed,
            }
        }
        Progress::Blocked
    }

    /// Reads what there is of the answer.
    pub(super) fn receive(&mut self, link: &mut Link, scratch: &mut [u8], answer_bytes_max: usize) -> Progress {
        loop {
            match link.stream.read(scratch) {
                Ok(0) => return Progress::Closed,
                Ok(read) => {
                    self.answer.extend_from_slice(scratch.get(..read).unwrap_or_default());
                    match self.judge(answer_bytes_max) {
                        Progress::Blocked => {}
                        decided => return decided,
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Progress::Blocked,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return Progress::Closed,
            }
        }
    }

    fn judge(&mut self, answer_bytes_max: usize) -> Progress {
        if self.answer_len == 0 {
            let mut fields = no_fields();
            match parse_answer(&self.answer, &mut fields, self.bodiless) {
                Ok(Some(answer)) if answer.len <= answer_bytes_max => self.answer_len = answer.len,
                Ok(Some(_)) | Err(InvalidAnswer) => return Progress::Invalid,
                Ok(None) => return Progress::Blocked,
            }
        }
        match self.answer.len() {
            len if len < self.answer_len => Progress::Blocked,
            len if len == self.answer_len && self.sent == self.request.len() => Progress::Answered,
            // More than was announced, or an answer before the question: the stream cannot be trusted further.
            _ => Progress::Invalid,
        }
    }
}

impl Link {
    pub(super) fn connect(path: &std::path::Path, generation: u64) -> io::Result<Self> {
        // A Unix connection is made at once or refused; a full backlog shows as `WouldBlock`.
        UnixStream::connect(path).map(|stream| Self { stream, generation })
    }

    /// Tells tiny_http that no further request comes.
    pub(super) fn shut(&self) {
        // Fails only on a connection that is already gone, whose end of stream is then at hand anyway.
        self.stream.shutdown(Shutdown::Write).ok();
    }

    /// Reads and forgets; `true` once the other side has let go.
    pub(super) fn has_ended(&mut self, scratch: &mut [u8]) -> bool {
        loop {
            match self.stream.read(scratch) {
                Ok(0) => return true,
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return error.kind() != io::ErrorKind::WouldBlock,
            }
        }
    }
}

/// An answer of tiny_http, borrowed from the bytes it came in.
#[derive(Debug)]
pub(super) struct Answer<'h, 'b> {
    pub(super) status: u16,
    pub(super) fields: &'h [httparse::Header<'b>],
    pub(super) head_len: usize,
    /// Of head and body.
    pub(super) len: usize,
    /// The announced length, which a HEAD answer has without having the body.
    pub(super) content_length: Option<usize>,
}

/// Not HTTP, no `Content-Length`, or beyond the limits.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct InvalidAnswer;

pub(super) const fn no_fields<'b>() -> [httparse::Header<'b>; FIELDS_MAX] {
    [httparse::EMPTY_HEADER; FIELDS_MAX]
}

/// Parses an answer's head; `None` means that more bytes are needed.
pub(super) fn parse_answer<'h, 'b>(
    bytes: &'b [u8],
    fields: &'h mut [httparse::Header<'b>],
    bodiless: bool,
) -> Result<Option<Answer<'h, 'b>>, InvalidAnswer> {
    let mut response = httparse::Response::new(fields);
    let head_len = match response.parse(bytes) {
        Ok(httparse::Status::Complete(len)) => len,
        Ok(httparse::Status::Partial) if bytes.len() < HEAD_BYTES_MAX => return Ok(None),
        Ok(httparse::Status::Partial) | Err(_) => return Err(InvalidAnswer),
    };
    let status = response.code.ok_or(InvalidAnswer)?;
    let mut content_length = None;
    for field in response.headers.iter() {
        if field.name.eq_ignore_ascii_case("Transfer-Encoding") {
            // The server always sets a length; a body in chunks would be a change of tiny_http unnoticed.
            return Err(InvalidAnswer);
        }
        if field.name.eq_ignore_ascii_case("Content-Length") {
            let len = std::str::from_utf8(field.value).ok().and_then(|value| value.parse().ok());
            content_length = Some(len.ok_or(InvalidAnswer)?);
        }
    }
    let body_len = match (content_length, bodiless || status == 204 || status == 304) {
        (_, true) => 0,
        (Some(len), false) => len,
        (None, false) => return Err(InvalidAnswer),
    };
    let len = head_len.checked_add(body_len).ok_or(InvalidAnswer)?;
    Ok(Some(Answer { status, fields: response.headers, head_len, len, content_length }))
}

/// One `write`; the caller keeps the count.
#[expect(clippy::disallowed_methods, reason = "a non-blocking write whose count the caller keeps")]
pub(super) fn write_some(stream: &mut impl io::Write, bytes: &[u8]) -> io::Result<usize> {
    stream.write(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn len_of(bytes: &[u8], bodiless: bool) -> Result<Option<usize>, InvalidAnswer> {
        parse_answer(bytes, &mut no_fields(), bodiless).map(|answer| answer.map(|answer| answer.len))
    }

    #[test]
    fn length_counts_head_and_body() {
        let head = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n";
        assert_eq!(len_of(head, false), Ok(Some(head.len() + 5)));
        assert_eq!(len_of(head, true), Ok(Some(head.len())));
        for len in 0..head.len() {
            assert_eq!(len_of(&head[..len], false), Ok(None), "{len}");
        }
        let head = b"HTTP/1.1 204 No Content\r\n\r\n";
        assert_eq!(len_of(head, false), Ok(Some(head.len())));
    }

    #[test]
    fn answers_without_a_sound_length_are_invalid() {
        for head in [
            &b"HTTP/1.1 200 OK\r\n\r\n"[..],
            b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: 18446744073709551615\r\n\r\n",
            b"hello",
        ] {
            assert_eq!(len_of(head, false), Err(InvalidAnswer), "{}", String::from_utf8_lossy(head));
        }
        assert_eq!(len_of(&[b'a'; 0], false), Ok(None));
    }
}
