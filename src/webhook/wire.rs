//! Plain HTTP on kept connections: all of an endpoint's requests under way, on one thread.
//!
//! ```text
//! attempt ──▶ a kept connection ──▶ receiver            wait ──▶ answers, cuts, time limits
//!     └─ none: a sender resolves, checks, connects ──▶ adopt ──▲
//! ```
//!
//! Nearly every delivery is the same small POST to a receiver in the same network, where handing it to a thread and back costs more than
//! the request itself. So the dispatcher waits here, for answers as for everything else. What may block (names, connections, TLS) is the
//! senders'; TLS and all that is rare goes through an HTTP client there.
//!
//! Like that client it follows no redirect, and takes the status as the answer: a body is read only so that its connection can be used
//! again, and costs no more than that connection if it is too long, broken or late.

use std::{
    io::{self, Read as _, Write as _},
    net,
    time::{Duration, Instant},
};

use mio::{Events, Interest, Poll, Token, Waker, net::TcpStream};

use super::{
    clock,
    queue::Attempt,
    retry::{Answer, Failure, retry_after},
    transport::{IDLE_AGE_MAX, io_failure, is_cut},
};

const WAKE: Token = Token(usize::MAX);
const EVENTS_MAX: usize = 64;
const READ_BYTES: usize = 16 * 1024;
/// A longer head is no answer.
const HEAD_BYTES_MAX: usize = 64 * 1024;
/// A longer body costs its connection.
const BODY_BYTES_MAX: usize = 64 * 1024;
const FIELDS_MAX: usize = 96;

/// A request to make.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) attempt: Attempt,
    /// Head and body.
    pub(super) bytes: Vec<u8>,
    /// When it was made: what `Retry-After` may count from.
    pub(super) unix_s: i64,
    /// When the attempt began, looking up and connecting included.
    pub(super) started: Instant,
    /// No answer counts after this.
    pub(super) deadline: Instant,
}

/// What became of a request.
#[derive(Debug)]
pub(super) enum Ended {
    Answered {
        attempt: Attempt,
        answer: Answer,
        took: Duration,
    },
    /// The receiver had closed the kept connection meanwhile: says nothing about the receiver, so it is asked on a new one.
    Cut(Attempt),
}

impl Ended {
    /// An attempt that got nowhere.
    pub(super) fn failed(attempt: Attempt, failure: Failure, started: Instant) -> Self {
        let took = clock::instant().saturating_duration_since(started);
        Self::Answered { attempt, answer: Answer::None(failure), took }
    }
}

pub(super) struct Wire {
    poll: Poll,
    events: Events,
    read: Box<[u8]>,
    /// By token.
    links: Vec<Option<Link>>,
    /// Kept connections and since when they are idle, the latest last.
    idle: Vec<(usize, Instant)>,
}

struct Link {
    stream: TcpStream,
    /// It answered a request before.
    kept: bool,
    /// Under way, and how much of it is written.
    request: Option<(Request, usize)>,
    answer: Vec<u8>,
}

/// What the bytes of an answer come to.
#[derive(Debug, PartialEq, Eq)]
enum Parsed {
    /// Its head is not whole.
    More,
    /// It is none.
    Bad,
    Status {
        code: u16,
        retry_after: Option<Duration>,
        body: Body,
    },
}

#[derive(Debug, PartialEq, Eq)]
enum Body {
    /// Whole, and nothing behind it: the connection can be used again.
    Ended,
    More,
    /// It ends with its connection, or that is not to be used again.
    Closes,
}

impl Wire {
    /// Without connections, and with what ends a wait from any thread.
    pub(super) fn new() -> io::Result<(Self, Waker)> {
        let poll = Poll::new()?;
        let waker = Waker::new(poll.registry(), WAKE)?;
        let read = vec![0; READ_BYTES].into_boxed_slice();
        Ok((Self { poll, events: Events::with_capacity(EVENTS_MAX), read, links: Vec::new(), idle: Vec::new() }, waker))
    }

    /// Takes a kept connection that is not too old; the one used last, so that the others may age. Closes those that have.
    pub(super) fn take_idle(&mut self, now: Instant) -> Option<usize> {
        while let Some(&(oldest, since)) = self.idle.first()
            && now.saturating_duration_since(since) >= IDLE_AGE_MAX
        {
            self.close(oldest);
        }
        self.idle.pop().map(|(link, _)| link)
    }

    /// Gives back a connection that was taken and not used.
    pub(super) fn put_back(&mut self, link: usize, now: Instant) {
        self.idle.push((link, now));
    }

    /// Takes over a connection that was made elsewhere.
    pub(super) fn adopt(&mut self, stream: net::TcpStream) -> io::Result<usize> {
        stream.set_nonblocking(true)?;
        let mut stream = TcpStream::from_std(stream);
        let free = self.links.iter().position(Option::is_none).unwrap_or(self.links.len());
        self.poll.registry().register(&mut stream, Token(free), Interest::READABLE | Interest::WRITABLE)?;
        let link = Link { stream, kept: false, request: None, answer: Vec::new() };
        match self.links.get_mut(free) {
            Some(slot) => *slot = Some(link),
            None => self.links.push(Some(link)),
        }
        Ok(free)
    }

    /// Sends a request on a connection that was taken or adopted.
    pub(super) fn send(&mut self, index: usize, request: Request, ended: &mut Vec<Ended>) {
        let Some(link) = self.links.get_mut(index).and_then(Option::as_mut) else {
            // A connection that is not there was cut.
            ended.push(Ended::Cut(request.attempt));
            return;
        };
        link.answer.clear();
        link.request = Some((request, 0));
        if let Err(error) = link.write() {
            self.failed(index, &error, ended);
        }
    }

    /// Waits for answers, a wake or the time to pass, and tells what ended.
    pub(super) fn wait(&mut self, at_most: Duration, ended: &mut Vec<Ended>) {
        let now = clock::instant();
        let limit = self.deadline().map_or(at_most, |deadline| at_most.min(deadline.saturating_duration_since(now)));
        if let Err(error) = self.poll.poll(&mut self.events, Some(limit)) {
            // What did not come with this wait comes with the next one.
            if error.kind() != io::ErrorKind::Interrupted {
                log::error!(error:%; "waiting for webhook receivers failed");
            }
            return;
        }
        let events = std::mem::replace(&mut self.events, Events::with_capacity(0));
        for event in &events {
            if event.token() != WAKE {
                self.ready(event.token().0, event.is_readable(), event.is_writable(), ended);
            }
        }
        self.events = events;
        self.give_up_late(clock::instant(), ended);
    }

    /// When the first request under way is out of time.
    fn deadline(&self) -> Option<Instant> {
        self.links.iter().flatten().filter_map(|link| link.request.as_ref().map(|(request, _)| request.deadline)).min()
    }

    fn give_up_late(&mut self, now: Instant, ended: &mut Vec<Ended>) {
        if self.deadline().is_none_or(|deadline| now < deadline) {
            return;
        }
        for index in 0..self.links.len() {
            let late = |link: &Link| link.request.as_ref().is_some_and(|(request, _)| now >= request.deadline);
            if self.links.get(index).and_then(Option::as_ref).is_some_and(late) {
                self.failed(index, &io::Error::from(io::ErrorKind::TimedOut), ended);
            }
        }
    }

    fn ready(&mut self, index: usize, readable: bool, writable: bool, ended: &mut Vec<Ended>) {
        let Some(link) = self.links.get_mut(index).and_then(Option::as_mut) else { return };
        if writable && let Err(error) = link.write() {
            return self.failed(index, &error, ended);
        }
        if !readable {
            return;
        }
        loop {
            let got = match link.stream.read(&mut self.read) {
                Ok(0) => return self.failed(index, &io::Error::from(io::ErrorKind::UnexpectedEof), ended),
                Ok(got) => got,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return self.failed(index, &error, ended),
            };
            let Some((request, _)) = &link.request else {
                // Nobody asked: what it answers next could not be told from this.
                return self.close(index);
            };
            link.answer.extend_from_slice(self.read.get(..got).unwrap_or_default());
            match parse(&link.answer, request.unix_s) {
                Parsed::More | Parsed::Status { body: Body::More, .. } => {}
                Parsed::Bad => return self.end(index, Answer::None(Failure::Protocol), false, ended),
                Parsed::Status { code, retry_after, body } => {
                    let answer = Answer::Status { code, retry_after };
                    // A full buffer may have left something unread behind the answer.
                    return self.end(index, answer, body == Body::Ended && got < READ_BYTES, ended);
                }
            }
            // There was no more; what comes later is told.
            if got < READ_BYTES {
                return;
            }
        }
    }

    /// A connection failed, or its request is out of time.
    fn failed(&mut self, index: usize, error: &io::Error, ended: &mut Vec<Ended>) {
        let Some(link) = self.links.get(index).and_then(Option::as_ref) else { return };
        let Some((request, _)) = &link.request else { return self.close(index) };
        match parse(&link.answer, request.unix_s) {
            // The status decides. A body that fails only costs its connection.
            Parsed::Status { code, retry_after, .. } => {
                self.end(index, Answer::Status { code, retry_after }, false, ended);
            }
            _ if link.kept && is_cut(error) => {
                let request = self.links.get_mut(index).and_then(Option::as_mut).and_then(|link| link.request.take());
                ended.extend(request.map(|(request, _)| Ended::Cut(request.attempt)));
                self.close(index);
            }
            _ => self.end(index, Answer::None(io_failure(error)), false, ended),
        }
    }

    /// A request came to its end.
    fn end(&mut self, index: usize, answer: Answer, keep: bool, ended: &mut Vec<Ended>) {
        let Some(link) = self.links.get_mut(index).and_then(Option::as_mut) else { return };
        let now = clock::instant();
        let written = link.request.as_ref().is_some_and(|(request, written)| *written == request.bytes.len());
        if let Some((request, _)) = link.request.take() {
            let took = now.saturating_duration_since(request.started);
            ended.push(Ended::Answered { attempt: request.attempt, answer, took });
        }
        if keep && written {
            link.kept = true;
            self.idle.push((index, now));
        } else {
            self.close(index);
        }
    }

    fn close(&mut self, index: usize) {
        // Dropping the stream ends its registration.
        if let Some(link) = self.links.get_mut(index) {
            *link = None;
        }
        self.idle.retain(|(idle, _)| *idle != index);
    }
}

impl Link {
    /// Writes what is left of the request.
    #[expect(clippy::disallowed_methods, reason = "a non-blocking write whose count is kept")]
    fn write(&mut self) -> io::Result<()> {
        let Some((request, written)) = &mut self.request else { return Ok(()) };
        while let Some(left) = request.bytes.get(*written..).filter(|left| !left.is_empty()) {
            match self.stream.write(left) {
                Ok(0) => return Err(io::Error::from(io::ErrorKind::WriteZero)),
                Ok(count) => *written += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

fn parse(answer: &[u8], unix_s: i64) -> Parsed {
    let mut rest = answer;
    loop {
        let mut fields = [httparse::EMPTY_HEADER; FIELDS_MAX];
        let mut head = httparse::Response::new(&mut fields);
        let length = match head.parse(rest) {
            Ok(httparse::Status::Complete(length)) => length,
            // All of it counts: there might be no end of preliminary answers.
            Ok(httparse::Status::Partial) if answer.len() <= HEAD_BYTES_MAX => return Parsed::More,
            Ok(httparse::Status::Partial) | Err(_) => return Parsed::Bad,
        };
        let (Some(code), Some(behind)) = (head.code, rest.get(length..)) else { return Parsed::Bad };
        // The answer proper follows.
        if (100..200).contains(&code) && code != 101 {
            rest = behind;
            continue;
        }
        let retry_after = text(head.headers, "retry-after").and_then(|value| retry_after(value, unix_s));
        return Parsed::Status { code, retry_after, body: body(&head, code, behind) };
    }
}

/// The value of a field, if it is text.
fn text<'a>(fields: &[httparse::Header<'a>], name: &str) -> Option<&'a str> {
    let field = fields.iter().find(|field| field.name.eq_ignore_ascii_case(name))?;
    std::str::from_utf8(field.value).ok().map(str::trim)
}

/// How far the body is.
fn body(head: &httparse::Response<'_, '_>, code: u16, bytes: &[u8]) -> Body {
    let is = |name, word: &str| {
        text(head.headers, name).is_some_and(|value| value.split(',').any(|one| one.trim().eq_ignore_ascii_case(word)))
    };
    if head.version != Some(1) || code == 101 || is("connection", "close") {
        return Body::Closes;
    }
    let ends_at = if matches!(code, 204 | 304) {
        Some(0)
    } else if text(head.headers, "transfer-encoding").is_some() {
        if !is("transfer-encoding", "chunked") {
            return Body::Closes;
        }
        match chunked(bytes) {
            Ok(end) => end,
            Err(httparse::InvalidChunkSize) => return Body::Closes,
        }
    } else {
        let Some(length) = text(head.headers, "content-length").and_then(|length| length.parse::<usize>().ok()) else {
            return Body::Closes;
        };
        if length > BODY_BYTES_MAX {
            return Body::Closes;
        }
        (bytes.len() >= length).then_some(length)
    };
    match ends_at {
        Some(end) if end == bytes.len() => Body::Ended,
        // More than one answer to one request.
        Some(_) => Body::Closes,
        None if bytes.len() > BODY_BYTES_MAX => Body::Closes,
        None => Body::More,
    }
}

/// Where a body in chunks ends, with its trailers; `None`: not yet.
fn chunked(bytes: &[u8]) -> Result<Option<usize>, httparse::InvalidChunkSize> {
    let mut at = 0;
    loop {
        let rest = bytes.get(at..).unwrap_or_default();
        let httparse::Status::Complete((size_line, size)) = httparse::parse_chunk_size(rest)? else { return Ok(None) };
        at += size_line;
        if size == 0 {
            // Trailers are lines of which the last is empty.
            let rest = bytes.get(at..).unwrap_or_default();
            if rest.starts_with(b"\r\n") {
                return Ok(Some(at + 2));
            }
            let end = rest.windows(4).position(|four| four == b"\r\n\r\n");
            return Ok(end.map(|end| at + end + 4));
        }
        let size =
            usize::try_from(size).ok().filter(|size| *size <= BODY_BYTES_MAX).ok_or(httparse::InvalidChunkSize)?;
        // Data, and the end of its line.
        at += size + 2;
        if at > bytes.len() {
            return Ok(None);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended(answer: &str) -> Parsed {
        parse(answer.as_bytes(), 0)
    }

    const fn status(code: u16, body: Body) -> Parsed {
        Parsed::Status { code, retry_after: None, body }
    }

    #[test]
    fn answers_end_where_their_heads_say() {
        for (answer, expected) in [
            ("", Parsed::More),
            ("HTTP/1.1 204 No", Parsed::More),
            ("SSH-2.0-x\r\n\r\n", Parsed::Bad),
            ("HTTP/1.1 204 No Content\r\n\r\n", status(204, Body::Ended)),
            ("HTTP/1.1 204 No Content\r\n\r\nx", status(204, Body::Closes)),
            ("HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n", status(200, Body::Closes)),
            ("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\no", status(200, Body::More)),
            ("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok", status(200, Body::Ended)),
            ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: Close\r\n\r\n", status(200, Body::Closes)),
            ("HTTP/1.1 200 OK\r\nContent-Length: 70000\r\n\r\n", status(200, Body::Closes)),
            ("HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n", status(200, Body::Closes)),
            ("HTTP/1.1 200 OK\r\n\r\nuntil the end", status(200, Body::Closes)),
            ("HTTP/1.1 100 Continue\r\n\r\n", Parsed::More),
            ("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 500 Oh\r\nContent-Length: 0\r\n\r\n", status(500, Body::Ended)),
            ("HTTP/1.1 101 Switch\r\n\r\n", status(101, Body::Closes)),
        ] {
            assert_eq!(ended(answer), expected, "{answer}");
        }
    }

    #[test]
    fn an_endless_head_is_no_answer() {
        let preliminary = "HTTP/1.1 100 Continue\r\n\r\n";
        assert_eq!(ended(&preliminary.repeat(3)), Parsed::More);
        assert_eq!(ended(&preliminary.repeat(1 + HEAD_BYTES_MAX / preliminary.len())), Parsed::Bad);
        let field = |bytes| format!("HTTP/1.1 200 Said\r\nX: {}", "y".repeat(bytes));
        assert_eq!(ended(&field(100)), Parsed::More);
        assert_eq!(ended(&field(HEAD_BYTES_MAX)), Parsed::Bad);
    }

    #[test]
    fn connections_that_were_idle_for_too_long_are_closed() {
        let listener = net::TcpListener::bind("127.0.0.1:0").unwrap();
        let connect = || net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut wire, _waker) = Wire::new().unwrap();
        let [old, new] = [(); 2].map(|()| wire.adopt(connect()).unwrap());
        let at = clock::instant();
        wire.put_back(old, at);
        wire.put_back(new, at + IDLE_AGE_MAX / 2);
        assert_eq!(wire.take_idle(at + IDLE_AGE_MAX), Some(new));
        assert_eq!(wire.links.iter().filter(|link| link.is_some()).count(), 1, "the older one is gone");
        wire.put_back(new, at + IDLE_AGE_MAX);
        assert_eq!(wire.take_idle(at + IDLE_AGE_MAX * 2), None);
        assert!(wire.links.iter().all(Option::is_none));
    }

    #[test]
    fn bodies_in_chunks_end_with_their_trailers() {
        let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
        for (body, expected) in [
            ("", Body::More),
            ("2\r\nok", Body::More),
            ("2\r\nok\r\n0\r\n", Body::More),
            ("2\r\nok\r\n0\r\n\r\n", Body::Ended),
            ("2;ext=1\r\nok\r\n3\r\nyes\r\n0\r\nX-Sum: 1\r\n\r\n", Body::Ended),
            ("0\r\n\r\nHTTP", Body::Closes),
            ("xyz\r\n", Body::Closes),
            ("fffff\r\n", Body::Closes),
        ] {
            assert_eq!(ended(&format!("{head}{body}")), status(200, expected), "{body}");
        }
    }

    #[test]
    fn retry_after_is_read() {
        let answer = ended("HTTP/1.1 503 Busy\r\nRetry-After: 7\r\nContent-Length: 0\r\n\r\n");
        let retry_after = Some(Duration::from_secs(7));
        assert_eq!(answer, Parsed::Status { code: 503, retry_after, body: Body::Ended });
    }
}
