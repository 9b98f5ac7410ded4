//! A keep-alive connection that posts JSON: what a load generator can do with few instructions, so that the server has the cores.
//!
//! Plain HTTP/1.1 with a length on both sides, one request under way. Absent: TLS, redirects, chunked answers (an error), retries: a
//! request whose answer did not come may have been carried out.

use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use crate::head::Head;

/// Longest head and body of an answer.
const ANSWER_MAX: usize = 1 << 20;
/// A connection that was not used for this long may be one that the server is closing.
const IDLE_MAX_US: u64 = 500_000;

/// A connection to one server, made when it is needed.
#[derive(Debug)]
pub struct Connection {
    /// `host:port`.
    authority: String,
    timeout: Duration,
    stream: Option<TcpStream>,
    used_us: u64,
    out: Vec<u8>,
    answer: Vec<u8>,
}

impl Connection {
    /// To the server of a base URL; `None`: it is not plain HTTP, or has a path.
    pub fn to(base: &str, timeout: Duration) -> Option<Self> {
        let authority = base.strip_prefix("http://")?.trim_end_matches('/');
        if authority.is_empty() || authority.contains(['/', '@']) {
            return None;
        }
        let port =
            if authority.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok()) { "" } else { ":80" };
        Some(Self {
            authority: format!("{authority}{port}"),
            timeout,
            stream: None,
            used_us: 0,
            out: Vec::new(),
            answer: Vec::new(),
        })
    }

    /// Posts `body` at `now_us` of the caller's clock, and returns the answer's status and body.
    ///
    /// # Errors
    /// No connection, no answer in time, or one that is no HTTP/1.1 with a length. The next request makes a new connection.
    pub fn post(&mut self, now_us: u64, path: &str, headers: &[(&str, &str)], body: &[u8]) -> io::Result<(u16, &[u8])> {
        let idle = now_us.saturating_sub(self.used_us) > IDLE_MAX_US;
        let mut stream = match self.stream.take().filter(|_| !idle) {
            Some(stream) => stream,
            None => {
                let stream = TcpStream::connect(&self.authority)?;
                stream.set_nodelay(true)?;
                stream.set_read_timeout(Some(self.timeout))?;
                stream.set_write_timeout(Some(self.timeout))?;
                stream
            }
        };
        self.out.clear();
        write!(self.out, "POST {path} HTTP/1.1\r\nHost: {}\r\n", self.authority)?;
        for (name, value) in headers {
            write!(self.out, "{name}: {value}\r\n")?;
        }
        write!(self.out, "Content-Type: application/json\r\nContent-Length: {}\r\n\r\n", body.len())?;
        self.out.extend_from_slice(body);
        stream.write_all(&self.out)?;
        let head = read_answer(&mut stream, &mut self.answer)?;
        self.used_us = now_us;
        if head.keep {
            self.stream = Some(stream);
        }
        Ok((head.status, self.answer.get(head.length..).unwrap_or_default()))
    }
}

/// Reads one whole answer.
fn read_answer(stream: &mut TcpStream, answer: &mut Vec<u8>) -> io::Result<Head> {
    answer.clear();
    let mut chunk = [0; 4096];
    let mut head = None;
    loop {
        if head.is_none() {
            head = Head::parse(answer, ANSWER_MAX)?;
        }
        if let Some(head) = head.take_if(|head| answer.len() >= head.length + head.body) {
            answer.truncate(head.length + head.body);
            return Ok(head);
        }
        if answer.len() > ANSWER_MAX {
            return Err(io::Error::new(ErrorKind::InvalidData, "an answer is too long"));
        }
        match stream.read(&mut chunk)? {
            0 => return Err(ErrorKind::UnexpectedEof.into()),
            count => answer.extend_from_slice(chunk.get(..count).unwrap_or_default()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead as _, BufReader};
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn a_connection_is_used_again_and_made_anew_after_a_pause() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let base = format!("http://{}/", listener.local_addr().unwrap());
        let server = std::thread::spawn(move || {
            let mut seen = Vec::new();
            for requests in [2, 1] {
                let (stream, _) = listener.accept().unwrap();
                let mut reader = BufReader::new(stream);
                for _ in 0..requests {
                    let mut line = String::new();
                    let mut first = None;
                    while line != "\r\n" {
                        line.clear();
                        reader.read_line(&mut line).unwrap();
                        first.get_or_insert_with(|| line.clone());
                    }
                    let mut body = [0; 2];
                    reader.read_exact(&mut body).unwrap();
                    seen.push((first.unwrap_or_default(), body));
                    reader.get_mut().write_all(b"HTTP/1.1 202 Accepted\r\nContent-Length: 3\r\n\r\n[1]").unwrap();
                }
            }
            seen
        });
        let mut connection = Connection::to(&base, Duration::from_secs(10)).unwrap();
        for (at, path) in [(1, "/a"), (2, "/b"), (2 + IDLE_MAX_US + 1, "/c")] {
            let (status, body) = connection.post(at, path, &[("X-Api-Key", "k")], b"{}").unwrap();
            assert_eq!((status, body), (202, &b"[1]"[..]));
        }
        let paths: Vec<_> = server.join().unwrap().into_iter().map(|(line, _)| line).collect();
        assert_eq!(paths, ["POST /a HTTP/1.1\r\n", "POST /b HTTP/1.1\r\n", "POST /c HTTP/1.1\r\n"]);
        assert!(Connection::to("https://example", Duration::ZERO).is_none());
    }
}
