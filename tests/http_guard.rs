//! No client can stop the API, and no stuck handler can stop health.
//!
//! Guard and server run in this process with small limits; clients are raw sockets that misbehave in each of the ways that stop tiny_http
//! when it faces the network by itself. Every test waits for what the client sees (an answer, the end of the stream), and asks
//! meanwhile, over a connection of its own, whether others are still served. Timeouts on the clients' sockets only turn a
//! hang into a failure.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::process::{Command, Stdio};
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Duration;

use chargegate::api::error::{ApiError, ErrorCode};
use chargegate::api::guard::{self, GuardConfig, GuardHandle, LocalAnswer, Refusal, UploadConfig};
use chargegate::api::message::{Method, Request, Response};
use chargegate::api::server::{Responder, Server, ServerConfig};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use socket2::{Domain, Socket, Type};

/// What a test waits at most for something that must happen.
const PATIENCE: Duration = Duration::from_secs(30);
/// A limit that is meant to pass in a test.
const SHORT: Duration = Duration::from_millis(50);
const BIG: usize = 1 << 20;

struct Rig {
    // Declared first, so that it stops first.
    guard: GuardHandle,
    server: Server,
    /// Responders of requests to `/keep`, each with its request.
    kept: Receiver<(Request, Responder)>,
    _dir: tempfile::TempDir,
}

impl Rig {
    fn new(change: impl FnOnce(&mut GuardConfig)) -> Self {
        let mut config = GuardConfig::new((Ipv4Addr::LOCALHOST, 0).into());
        config.upstream_connections = 2;
        // Ends with the client's own close; a slow machine must not turn an answer into a reset.
        config.linger_timeout = PATIENCE;
        change(&mut config);
        let dir = tempfile::tempdir().unwrap();
        let (keep, kept) = channel();
        let server_config =
            ServerConfig { socket_dir: dir.path().join("run"), workers: 2, body_bytes_max: config.body_bytes_max };
        let server =
            Server::start(&server_config, Box::new(move |request, responder| serve(&keep, request, responder)));
        let server = server.unwrap();
        let guard = guard::start(config, server.gate(), Box::new(local)).unwrap();
        Self { guard, server, kept, _dir: dir }
    }

    fn addr(&self) -> SocketAddr {
        self.guard.local_addr()
    }

    fn connect(&self) -> Client {
        Client::connect(self.addr())
    }

    fn refused(&self, reason: Refusal) -> u64 {
        self.guard.counters().refused(reason)
    }

    /// A client that is in for good: where the time for a first head is short, it tries until it was quick enough.
    fn regular(&self) -> Client {
        loop {
            let mut client = self.connect();
            if client.send("GET /healthz HTTP/1.1\r\n\r\n").is_ok()
                && client.stream.fill_buf().is_ok_and(|bytes| !bytes.is_empty())
                && client.answer().status == 200
            {
                return client;
            }
        }
    }

    /// A well-behaved client gets its answers, from memory and from the server.
    fn assert_serves(&self) {
        let mut client = self.connect();
        assert_eq!(client.ask("GET /healthz HTTP/1.1\r\n\r\n").text(), "alive");
        assert_eq!(client.ask("POST /echo HTTP/1.1\r\nContent-Length: 2\r\n\r\nhi").data()["body"], "hi");
    }
}

fn local(head: &guard::Head<'_>, body: &mut Vec<u8>) -> Option<LocalAnswer> {
    match head.path() {
        "/healthz" => {
            body.extend_from_slice(b"alive");
            Some(LocalAnswer::new(200, "text/plain"))
        }
        "/local" => Some(LocalAnswer::success(head, body, &json!({"key": head.header("x-api-key")}))),
        "/local-panic" => panic!("a local route panics, as this test wants"),
        _ => None,
    }
}

fn serve(keep: &Sender<(Request, Responder)>, request: Request, responder: Responder) {
    match request.path() {
        "/echo" => {
            let data = json!({
                "method": request.method.as_str(),
                "query": request.query(),
                "body": String::from_utf8_lossy(&request.body),
                "body_len": request.body.len(),
                "client_ip": request.client_ip.to_string(),
                "headers": request.headers.len(),
                "api_key": request.header("X-API-KEY"),
            });
            responder.success(200, &data);
        }
        "/big" => responder.respond(Response::json(200, vec![b'x'; BIG])),
        "/empty" => responder.respond(Response::json(204, Vec::new())),
        "/refuse" => responder.error(&ApiError::new(ErrorCode::PortBusy, "port_no 1 is busy").with_retry_after(7)),
        "/drop" => drop(responder),
        "/panic" => panic!("a handler panics, as this test wants"),
        "/keep" | "/upload" => keep.send((request, responder)).unwrap(),
        path => responder.error(&ApiError::new(ErrorCode::NotFound, path.to_owned())),
    }
}

/// A guard that writes bodies of `POST /upload` to files of a directory of its own.
struct Uploads {
    rig: Rig,
    dir: tempfile::TempDir,
}

impl Uploads {
    fn new(change: impl FnOnce(&mut UploadConfig)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        // What a killed process left behind.
        std::fs::write(dir.path().join("upload-0000000000000001.part"), "left").unwrap();
        std::fs::write(dir.path().join("image.bin"), "kept").unwrap();
        let mut config = UploadConfig {
            path: "/upload",
            dir: dir.path().to_owned(),
            bytes_max: BIG,
            timeout: PATIENCE,
            at_once_max: 2,
        };
        change(&mut config);
        let rig = Rig::new(|guard| guard.upload = Some(config));
        Self { rig, dir }
    }

    fn files(&self) -> Vec<String> {
        let files = std::fs::read_dir(self.dir.path()).unwrap();
        let mut names: Vec<String> = files
            .map(|file| file.unwrap().file_name().into_string().unwrap())
            .filter(|name| name != "image.bin")
            .collect();
        names.sort();
        names
    }

    /// Waits until nothing is left of any upload.
    fn assert_empty(&self) {
        until("the uploads are gone", || self.files().is_empty());
        assert!(self.dir.path().join("image.bin").exists(), "other files stay");
    }

    /// Begins an upload and waits until it has its file.
    fn begin(&self, len: usize, first: &[u8]) -> Client {
        let mut client = self.rig.connect();
        let before = self.files().len();
        client.send(format!("POST /upload HTTP/1.1\r\nContent-Length: {len}\r\n\r\n")).unwrap();
        client.send(first).unwrap();
        until("the upload has a file", || self.files().len() > before);
        client
    }
}

fn image(len: usize) -> Vec<u8> {
    (0..len).map(|index| (index * 31 % 251) as u8).collect()
}

#[expect(clippy::disallowed_methods, reason = "the clock enters here")]
fn until(what: &str, mut happened: impl FnMut() -> bool) {
    let began = std::time::Instant::now();
    while !happened() {
        assert!(began.elapsed() < PATIENCE, "did not happen: {what}");
        thread::yield_now();
    }
}

struct Client {
    stream: BufReader<TcpStream>,
}

struct Answer {
    status: u16,
    head: String,
    body: Vec<u8>,
}

impl Client {
    fn connect(addr: SocketAddr) -> Self {
        Self::new(TcpStream::connect(addr).unwrap())
    }

    fn new(stream: TcpStream) -> Self {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        Self { stream: BufReader::new(stream) }
    }

    fn send(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        self.stream.get_mut().write_all(bytes.as_ref())
    }

    fn ask(&mut self, request: &str) -> Answer {
        self.send(request).unwrap();
        self.answer()
    }

    /// The next answer, with a body.
    fn answer(&mut self) -> Answer {
        let mut answer = self.head();
        let len = answer.header("Content-Length").map_or(0, |len| len.parse().unwrap());
        answer.body.resize(len, 0);
        self.stream.read_exact(&mut answer.body).unwrap();
        answer
    }

    /// The next answer's head.
    fn head(&mut self) -> Answer {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            assert_ne!(self.stream.read_line(&mut head).unwrap(), 0, "stream ended in {head:?}");
        }
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        Answer { status, head, body: Vec::new() }
    }

    /// Reads to the end of the stream and returns what was left. A reset counts as its end.
    fn rest(&mut self) -> Vec<u8> {
        let mut rest = Vec::new();
        match self.stream.read_to_end(&mut rest) {
            Ok(_) => {}
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "{error}"),
        }
        rest
    }

    /// The one answer to a refused request, after which the connection ends.
    fn last_answer(&mut self, status: u16, code: &str) -> Answer {
        let answer = self.answer();
        assert_eq!((answer.status, answer.error()), (status, code.to_owned()));
        assert_eq!(answer.header("Connection").as_deref(), Some("close"));
        assert_eq!(self.rest(), b"");
        answer
    }
}

impl Answer {
    fn header(&self, name: &str) -> Option<String> {
        let field = self.head.lines().filter_map(|line| line.split_once(": "));
        field.filter(|(field, _)| field.eq_ignore_ascii_case(name)).map(|(_, value)| value.to_owned()).next()
    }

    fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    fn data(&self) -> Value {
        assert_eq!(self.status, 200, "{}", self.text());
        self.json()["data"].clone()
    }

    /// The error code, after checking that the envelope is whole.
    fn error(&self) -> String {
        let json = self.json();
        assert_eq!(json["code"], self.status);
        assert_eq!(json["request_id"].as_str(), self.header("X-Request-Id").as_deref());
        assert!(json["message"].is_string() && json["timestamp"].is_string() && json.get("data").is_some());
        json["error"].as_str().unwrap().to_owned()
    }
}

#[test]
fn a_request_reaches_the_server_as_it_was_meant() {
    let rig = Rig::new(|_| {});
    let mut client = rig.connect();
    let answer = client.ask(
        "POST /echo?a=%20b HTTP/1.1\r\nHost: x\r\nX-Api-Key: k\r\nX-Guard-Client-Ip: 203.0.113.9\r\nTE: chunked\r\n\
         X-Request-Id: mine-1\r\nX-Unknown: y\r\nContent-Length: 5\r\n\r\nhello",
    );
    let data = answer.data();
    assert_eq!(data["query"], "a=%20b");
    assert_eq!(data["body"], "hello");
    assert_eq!(data["client_ip"], "127.0.0.1", "a client cannot choose its address");
    assert_eq!((&data["api_key"], &data["headers"]), (&json!("k"), &json!(1)), "only known headers pass");
    assert_eq!(answer.header("X-Request-Id").as_deref(), Some("mine-1"));
    assert_eq!(answer.json()["request_id"], "mine-1");
    assert_eq!(answer.header("Content-Type").as_deref(), Some("application/json"));
    assert_eq!(answer.header("Server"), None);

    let answer = client.ask("GET /echo HTTP/1.1\r\nX-Request-Id: not \"sane\"\r\n\r\n");
    assert_eq!(answer.header("X-Request-Id").unwrap().len(), 16);
    let refused = client.ask("GET /refuse HTTP/1.1\r\n\r\n");
    assert_eq!((refused.status, refused.error().as_str()), (409, "PORT_BUSY"));
    assert_eq!(refused.header("Retry-After").as_deref(), Some("7"));
    assert_eq!(client.ask("GET /nowhere HTTP/1.1\r\n\r\n").error(), "NOT_FOUND");
    assert_eq!(client.ask("GET /big HTTP/1.1\r\n\r\n").body.len(), BIG);
    assert_eq!(client.ask("GET /empty HTTP/1.1\r\n\r\n").status, 204);
    assert_eq!(client.ask("GET /local HTTP/1.1\r\nX-Api-Key: k\r\n\r\n").data(), json!({"key": "k"}));
}

#[test]
fn head_answers_have_no_body() {
    let rig = Rig::new(|_| {});
    let mut client = rig.connect();
    for path in ["/healthz", "/big"] {
        client.send(format!("HEAD {path} HTTP/1.1\r\n\r\n")).unwrap();
        let answer = client.head();
        assert_eq!(answer.status, 200);
        assert_ne!(answer.header("Content-Length").as_deref(), Some("0"));
    }
    assert_eq!(client.ask("GET /healthz HTTP/1.1\r\n\r\n").text(), "alive");
    // What follows a HEAD is no HEAD because of it.
    client.send("HEAD /healthz HTTP/1.1\r\n\r\n").unwrap();
    assert_eq!(client.head().status, 200);
    client.send("garbage\r\n\r\n").unwrap();
    client.last_answer(400, "INVALID_PARAMETER");
}

#[test]
fn keep_alive_follows_version_and_header() {
    let rig = Rig::new(|_| {});
    for request in [
        "GET /echo HTTP/1.0\r\n\r\n",
        "GET /healthz HTTP/1.0\r\n\r\n",
        "GET /echo HTTP/1.1\r\nConnection: close\r\n\r\n",
    ] {
        let mut client = rig.connect();
        let answer = client.ask(request);
        assert_eq!((answer.status, answer.header("Connection").as_deref()), (200, Some("close")), "{request}");
        assert_eq!(client.rest(), b"");
    }
    let mut client = rig.connect();
    for _ in 0..2 {
        let answer = client.ask("GET /healthz HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
        assert_eq!(answer.header("Connection").as_deref(), Some("keep-alive"));
    }
}

#[test]
fn a_half_closed_client_still_gets_its_answer() {
    let rig = Rig::new(|_| {});
    for path in ["/echo", "/healthz"] {
        let mut client = rig.connect();
        client.send(format!("GET {path} HTTP/1.1\r\n\r\n")).unwrap();
        client.stream.get_mut().shutdown(std::net::Shutdown::Write).unwrap();
        assert_eq!(client.answer().status, 200);
        assert_eq!(client.rest(), b"");
    }
}

#[test]
fn pipelined_requests_are_answered_one_by_one_in_order() {
    let rig = Rig::new(|_| {});
    let mut client = rig.connect();
    let mut requests = String::new();
    // Far more than the guard reads at once, so that bytes wait in the socket while an answer is under way.
    for index in 0..1_000 {
        let path = if index % 3 == 0 { "local" } else { "echo" };
        requests += &format!("POST /{path} HTTP/1.1\r\nX-Request-Id: {index}\r\nContent-Length: 0\r\n\r\n");
    }
    client.send(requests).unwrap();
    for index in 0..1_000 {
        assert_eq!(client.answer().header("X-Request-Id"), Some(index.to_string()));
    }
    // Body bytes and the next request arrive in one segment, split at every byte.
    let text = "POST /echo HTTP/1.1\r\nContent-Length: 3\r\n\r\nabcGET /echo?second HTTP/1.1\r\n\r\n";
    for split in 1..text.len() {
        client.send(&text[..split]).unwrap();
        client.send(&text[split..]).unwrap();
        assert_eq!(client.answer().data()["body"], "abc", "{split}");
        assert_eq!(client.answer().data()["query"], "second", "{split}");
    }
}

#[test]
fn a_pipelining_client_that_does_not_read_is_cut_off() {
    let rig = Rig::new(|config| config.write_timeout = SHORT);
    let mut client = rig.connect();
    // Ends when the guard closes; without that, after `PATIENCE` with another error.
    let error = loop {
        if let Err(error) = client.send("GET /big HTTP/1.1\r\n\r\n".repeat(64)) {
            break error;
        }
    };
    assert!(matches!(error.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe), "{error}");
    assert_eq!(rig.refused(Refusal::WriteTimeout), 1);
    rig.assert_serves();
}

#[test]
fn an_unread_body_of_a_huge_length_is_refused_at_its_head() {
    let rig = Rig::new(|_| {});
    for length in ["65537", "1099511627776", "18446744073709551615", "99999999999999999999999999"] {
        let mut client = rig.connect();
        client.send(format!("POST /echo HTTP/1.1\r\nContent-Length: {length}\r\n\r\n")).unwrap();
        client.last_answer(413, "PAYLOAD_TOO_LARGE");
        rig.assert_serves();
    }
    assert_eq!(rig.refused(Refusal::BodyTooLarge), 4);
}

#[test]
fn the_refusal_of_a_long_body_survives_the_body() {
    let rig = Rig::new(|_| {});
    for (len, fits) in [(64 << 10, true), ((64 << 10) + 1, false)] {
        let mut client = rig.connect();
        client.send(format!("POST /echo HTTP/1.1\r\nContent-Length: {len}\r\n\r\n")).unwrap();
        client.send(vec![b'a'; len]).unwrap();
        if fits {
            assert_eq!(client.answer().data()["body_len"], len);
        } else {
            client.last_answer(413, "PAYLOAD_TOO_LARGE");
        }
    }
    rig.assert_serves();
}

#[test]
fn a_head_that_never_ends_is_timed_out() {
    let rig = Rig::new(|config| config.head_timeout = SHORT);
    let mut regular = rig.regular();
    let mut silent = rig.connect();
    let mut slow = rig.connect();
    slow.send("GET /echo HTTP/1.1\r\nA: ").unwrap();
    // One that goes on trickling has the same time for the whole head.
    let mut trickling = rig.connect();
    trickling.send("GET /").unwrap();
    while trickling.send("a").is_ok() && rig.refused(Refusal::HeadTimeout) < 2 {
        assert_eq!(regular.ask("GET /echo HTTP/1.1\r\n\r\n").status, 200);
    }
    slow.last_answer(408, "REQUEST_TIMEOUT");
    assert_eq!(trickling.answer().status, 408);
    assert_eq!(silent.rest(), b"", "who said nothing is told nothing");
    assert_eq!(regular.ask("GET /healthz HTTP/1.1\r\n\r\n").text(), "alive");
}

#[test]
fn an_unbounded_head_is_cut_at_its_limit() {
    let rig = Rig::new(|_| {});
    for piece in ["a".repeat(1_000), "A: b\r\n".repeat(100)] {
        let mut client = rig.connect();
        client.send("GET /echo HTTP/1.1\r\nX: ").unwrap();
        let before = rig.refused(Refusal::HeadTooLarge);
        while client.send(&piece).is_ok() && rig.refused(Refusal::HeadTooLarge) == before {}
        assert_eq!(client.answer().status, 431);
        rig.assert_serves();
    }
    let mut client = rig.connect();
    client.send(format!("GET /{} HTTP/1.1\r\n\r\n", "a".repeat(8_192))).unwrap();
    client.last_answer(431, "INVALID_PARAMETER");
}

#[test]
fn a_body_that_never_ends_is_timed_out() {
    let rig = Rig::new(|config| config.body_timeout = SHORT);
    let mut client = rig.connect();
    client.send("POST /echo HTTP/1.1\r\nContent-Length: 10\r\n\r\nabc").unwrap();
    let answer = client.last_answer(408, "REQUEST_TIMEOUT");
    assert!(answer.text().contains("7 bytes are missing"), "{}", answer.text());
    assert_eq!(rig.refused(Refusal::BodyTimeout), 1);
    rig.assert_serves();
}

#[test]
fn chunked_bodies_and_doubtful_lengths_are_refused() {
    let rig = Rig::new(|_| {});
    for fields in [
        "Transfer-Encoding: chunked",
        "Content-Length: 3\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: identity",
        "Content-Length: 3\r\nContent-Length: 3",
        "Content-Length: 3, 3",
        "Content-Length: -1",
    ] {
        let mut client = rig.connect();
        client.send(format!("POST /echo HTTP/1.1\r\n{fields}\r\n\r\n3\r\nabc\r\n0\r\n\r\n")).unwrap();
        client.last_answer(400, "INVALID_PARAMETER");
    }
    assert_eq!(rig.refused(Refusal::TransferEncoding), 3);
    assert_eq!(rig.refused(Refusal::BadHead), 3);
    rig.assert_serves();
}

#[test]
fn bytes_that_are_not_http_are_refused() {
    let rig = Rig::new(|_| {});
    for bytes in [
        &b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"[..],
        b"\x00\x00\x00\x00",
        b"DNY\x1d\x00\x04\xce\xaa\x40\x80\x10\x21\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nA\x00: b\r\n\r\n",
        b"CONNECT example.org:443 HTTP/1.1\r\n\r\n",
    ] {
        let mut client = rig.connect();
        client.send(bytes).unwrap();
        client.last_answer(400, "INVALID_PARAMETER");
        rig.assert_serves();
    }
}

#[test]
fn a_client_that_expects_100_gets_it_before_its_body() {
    let rig = Rig::new(|_| {});
    let mut client = rig.connect();
    client.send("POST /echo HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n").unwrap();
    assert_eq!(client.head().status, 100);
    client.send("abc").unwrap();
    assert_eq!(client.answer().data()["body"], "abc");
    client.send("POST /echo HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 70000\r\n\r\n").unwrap();
    client.last_answer(413, "PAYLOAD_TOO_LARGE");
}

#[test]
fn thousands_of_idle_connections_keep_nobody_out() {
    let descriptors = raise_descriptor_limit();
    // Each connection costs one descriptor here and one in the guard.
    let count = 2_000.min((descriptors.saturating_sub(300) / 2) as usize);
    let rig = Rig::new(|config| {
        config.connections_max = count + 4;
        config.connections_per_ip_max = usize::MAX;
        config.head_timeout = PATIENCE;
    });
    let mut idle: Vec<Client> = (0..count).map(|_| rig.connect()).collect();
    rig.assert_serves();
    for client in &mut idle {
        assert_eq!(client.ask("GET /healthz HTTP/1.1\r\n\r\n").text(), "alive");
    }
    rig.assert_serves();
}

#[test]
fn connections_are_capped_in_all_and_per_address() {
    let rig = Rig::new(|config| {
        config.connections_max = 4;
        config.connections_per_ip_max = 2;
    });
    let from = |last: u8| {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::from(([127, 0, 0, last], 0)).into()).unwrap();
        socket.connect(&rig.addr().into()).unwrap();
        Client::new(socket.into())
    };
    let mut admitted = Vec::new();
    for last in [1, 1, 2, 2] {
        let mut client = from(last);
        let ip = client.ask("GET /echo HTTP/1.1\r\n\r\n").data()["client_ip"].clone();
        assert_eq!(ip, format!("127.0.0.{last}"));
        admitted.push(client);
    }
    assert_eq!(from(3).rest(), b"");
    assert_eq!(rig.refused(Refusal::ConnectionsFull), 1);

    // A place that was given up can be taken again; its end is seen some time after it was closed.
    drop(admitted.pop());
    let mut refused = 0;
    let mut third_of_one = loop {
        let mut client = from(1);
        assert_eq!(client.rest(), b"", "address 1 has its two");
        if rig.refused(Refusal::ConnectionsPerIp) > 0 {
            break from(2);
        }
        refused += 1;
        assert!(refused < 10_000);
    };
    assert_eq!(third_of_one.ask("GET /healthz HTTP/1.1\r\n\r\n").text(), "alive");
}

#[test]
fn idle_connections_end_without_a_word() {
    let rig = Rig::new(|config| config.idle_timeout = SHORT);
    let mut client = rig.connect();
    client.ask("GET /healthz HTTP/1.1\r\n\r\n");
    assert_eq!(client.rest(), b"");
    assert_eq!(rig.refused(Refusal::IdleTimeout), 1);
}

#[test]
fn all_buffers_together_have_a_bound() {
    let rig = Rig::new(|config| config.buffered_bytes_max = 100 << 10);
    let mut holder = rig.connect();
    holder.send("POST /echo HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 60000\r\n\r\n").unwrap();
    assert_eq!(holder.head().status, 100, "its length is on the account");
    let mut client = rig.connect();
    client.send("POST /echo HTTP/1.1\r\nContent-Length: 60000\r\n\r\n").unwrap();
    let answer = client.last_answer(503, "NOT_READY");
    assert_eq!(answer.header("Retry-After").as_deref(), Some("1"));
    rig.assert_serves();

    holder.send(vec![b'a'; 60_000]).unwrap();
    assert_eq!(holder.answer().data()["body_len"], 60_000);
    let mut client = rig.connect();
    client.send("POST /echo HTTP/1.1\r\nContent-Length: 60000\r\n\r\n").unwrap();
    client.send(vec![b'a'; 60_000]).unwrap();
    assert_eq!(client.answer().data()["body_len"], 60_000, "it is off the account once answered");
}

#[test]
fn answers_may_come_later_from_any_thread() {
    let rig = Rig::new(|_| {});
    let mut client = rig.connect();
    client.send("POST /keep HTTP/1.1\r\nContent-Length: 1\r\n\r\nx").unwrap();
    let (request, responder) = rig.kept.recv_timeout(PATIENCE).unwrap();
    assert_eq!((request.method, request.body), (Method::Post, b"x".to_vec()));
    rig.assert_serves();
    thread::spawn(move || responder.success(202, &json!({"order_no": "THD"}))).join().unwrap();
    let answer = client.answer();
    assert_eq!((answer.status, answer.json()["data"]["order_no"].as_str()), (202, Some("THD")));
}

#[test]
fn every_connection_of_the_pool_is_served() {
    let rig = Rig::new(|config| config.upstream_connections = 32);
    let mut clients: Vec<Client> = (0..32).map(|_| rig.connect()).collect();
    for client in &mut clients {
        client.send("GET /keep HTTP/1.1\r\n\r\n").unwrap();
    }
    // tiny_http may leave some of several connections that come at once without a thread.
    let kept: Vec<_> = clients.iter().map(|_| rig.kept.recv_timeout(PATIENCE).unwrap()).collect();
    for (_, responder) in kept {
        responder.success(200, &"kept");
    }
    for client in &mut clients {
        assert_eq!(client.answer().data(), "kept");
    }
}

#[test]
fn handlers_that_fail_answer_500_and_harm_nobody() {
    let rig = Rig::new(|_| {});
    let mut client = rig.connect();
    for path in ["/drop", "/panic", "/local-panic"].iter().cycle().take(12) {
        let answer = client.ask(&format!("GET {path} HTTP/1.1\r\n\r\n"));
        assert_eq!((answer.status, answer.error().as_str()), (500, "INTERNAL"), "{path}");
    }
    rig.assert_serves();
    let counters = rig.server.counters();
    assert_eq!(counters.unanswered.load(Ordering::Relaxed), 8);
    assert_eq!(counters.pending.load(Ordering::Relaxed), 0);
    assert_eq!(rig.refused(Refusal::LocalPanic), 4);
}

#[test]
fn stuck_handlers_cost_a_fixed_amount_and_never_health() {
    let rig = Rig::new(|config| {
        config.upstream_timeout = SHORT;
        config.queue_timeout = SHORT;
        config.draining_max = 3;
    });
    let mut client = rig.connect();
    // Two connections and three given up: five requests can be stuck, whatever else comes.
    let mut stuck = Vec::new();
    for _ in 0..5 {
        let answer = client.ask("GET /keep HTTP/1.1\r\n\r\n");
        assert_eq!((answer.status, answer.error().as_str()), (503, "NOT_READY"));
        assert_eq!(answer.header("Retry-After").as_deref(), Some("1"));
        stuck.push(rig.kept.recv_timeout(PATIENCE).unwrap());
    }
    assert_eq!(rig.refused(Refusal::UpstreamTimeout), 5);
    for _ in 0..3 {
        assert_eq!(client.ask("GET /keep HTTP/1.1\r\n\r\n").status, 503);
        assert_eq!(client.ask("GET /healthz HTTP/1.1\r\n\r\n").text(), "alive");
    }
    assert_eq!(rig.refused(Refusal::QueueTimeout), 3);
    assert!(rig.kept.try_recv().is_err(), "none of them reached a handler");

    for (_, responder) in stuck {
        responder.success(200, &"late");
    }
    // Late answers reach nobody; the connections come back by themselves.
    let mut answer = client.ask("GET /echo HTTP/1.1\r\n\r\n");
    while answer.status == 503 {
        answer = client.ask("GET /echo HTTP/1.1\r\n\r\n");
    }
    assert_eq!(answer.data()["method"], "GET");
}

#[test]
fn requests_wait_in_a_bounded_queue_for_a_connection() {
    let rig = Rig::new(|config| {
        config.upstream_connections = 1;
        config.queue_requests_max = 1;
    });
    let mut first = rig.connect();
    first.send("GET /keep HTTP/1.1\r\n\r\n").unwrap();
    let (_, responder) = rig.kept.recv_timeout(PATIENCE).unwrap();
    // One of these two waits, the other is turned away; a third that gives up waiting leaves its place.
    let mut left = rig.connect();
    let mut right = rig.connect();
    left.send("GET /echo?left HTTP/1.1\r\n\r\n").unwrap();
    while rig.guard.counters().queued.load(Ordering::Relaxed) == 0 {
        assert_eq!(rig.connect().ask("GET /healthz HTTP/1.1\r\n\r\n").status, 200);
    }
    let refused = right.ask("GET /echo?right HTTP/1.1\r\n\r\n");
    assert_eq!((refused.status, refused.error().as_str()), (503, "NOT_READY"));
    assert_eq!(rig.refused(Refusal::QueueFull), 1);

    responder.success(200, &"kept");
    assert_eq!(first.answer().data(), "kept");
    assert_eq!(left.answer().data()["query"], "left");
    assert_eq!(right.ask("GET /echo?again HTTP/1.1\r\n\r\n").data()["query"], "again");
}

#[test]
fn clients_that_leave_do_not_hold_their_connections_to_the_server() {
    let rig = Rig::new(|config| config.upstream_connections = 1);
    for _ in 0..3 {
        let mut leaving = rig.connect();
        leaving.send("GET /keep HTTP/1.1\r\n\r\n").unwrap();
        let (_, responder) = rig.kept.recv_timeout(PATIENCE).unwrap();
        let mut queued = rig.connect();
        queued.send("GET /echo HTTP/1.1\r\n\r\n").unwrap();
        drop((leaving, queued));
        responder.success(200, &"too late");
        rig.assert_serves();
    }
}

#[test]
fn a_listener_that_ended_is_opened_anew() {
    let rig = Rig::new(|_| {});
    let gate = rig.server.gate();
    let before = gate.generation();
    gate.report_unreachable(before);
    while gate.generation() == before {
        rig.assert_serves();
    }
    for _ in 0..4 {
        rig.assert_serves();
    }
    gate.report_unreachable(before);
    rig.assert_serves();
    assert_eq!(gate.generation(), before + 1, "a report on an old listener is ignored");
}

#[test]
fn a_stop_lets_requests_finish_and_takes_no_more() {
    let rig = Rig::new(|_| {});
    let mut idle = rig.connect();
    idle.ask("GET /healthz HTTP/1.1\r\n\r\n");
    let mut working = rig.connect();
    working.send("GET /keep HTTP/1.1\r\n\r\n").unwrap();
    let (_, responder) = rig.kept.recv_timeout(PATIENCE).unwrap();

    rig.guard.begin_shutdown(PATIENCE);
    assert_eq!(idle.rest(), b"");
    assert!(TcpStream::connect(rig.addr()).is_err(), "nobody listens any more");
    responder.success(200, &"done");
    let answer = working.answer();
    assert_eq!((answer.header("Connection").as_deref(), answer.data()), (Some("close"), json!("done")));
    drop(working);
    let Rig { guard, .. } = rig;
    guard.join();
}

#[test]
fn a_stop_with_no_time_left_ends_everything() {
    let rig = Rig::new(|_| {});
    let mut working = rig.connect();
    working.send("GET /keep HTTP/1.1\r\n\r\n").unwrap();
    let (_, responder) = rig.kept.recv_timeout(PATIENCE).unwrap();
    rig.guard.begin_shutdown(Duration::ZERO);
    assert_eq!(working.rest(), b"");
    assert_eq!(rig.refused(Refusal::Stopped), 1);
    responder.success(200, &"too late");
}

/// Set in the process that [`out_of_descriptors_stops_nobody_for_good`] starts.
const CHILD: &str = "HTTP_GUARD_TEST_CHILD";

#[test]
fn out_of_descriptors_stops_nobody_for_good() {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["out_of_descriptors_child", "--exact", "--nocapture"])
        .env(CHILD, "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut lines = lines.map_while(Result::ok);
    let addr = lines.find_map(|line| line.split_once("guard at ").map(|(_, addr)| addr.parse().unwrap())).unwrap();

    let mut early = Client::connect(addr);
    let accept_errors = |client: &mut Client| client.ask("GET /accept-errors HTTP/1.1\r\n\r\n").text().parse::<u64>();
    assert_eq!(accept_errors(&mut early), Ok(0));
    // More than the child has descriptors left; the kernel takes them, `accept` cannot.
    let crowd: Vec<Client> = (0..16).map(|_| Client::connect(addr)).collect();
    while accept_errors(&mut early) == Ok(0) {}
    assert_eq!(early.ask("GET /echo HTTP/1.1\r\n\r\n").status, 200, "who is in is served");
    drop(crowd);
    for _ in 0..8 {
        let mut late = Client::connect(addr);
        assert_eq!(late.ask("GET /echo HTTP/1.1\r\n\r\n").status, 200);
    }
    drop(child.stdin.take());
    assert!(child.wait().unwrap().success());
}

/// Not a test by itself: the process in which descriptors run out, so that the other tests keep theirs.
#[test]
fn out_of_descriptors_child() {
    if std::env::var_os(CHILD).is_none() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let server_config = ServerConfig { socket_dir: dir.path().join("run"), workers: 2, body_bytes_max: 1_024 };
    let (keep, _kept) = channel();
    let server = Server::start(&server_config, Box::new(move |request, responder| serve(&keep, request, responder)));
    let server = server.unwrap();
    let mut config = GuardConfig::new((Ipv4Addr::LOCALHOST, 0).into());
    config.upstream_connections = 2;
    config.retry_pause = Duration::from_millis(5);
    let counters: std::sync::Arc<std::sync::OnceLock<std::sync::Arc<guard::GuardCounters>>> = std::sync::Arc::default();
    let shown = std::sync::Arc::clone(&counters);
    let local = move |head: &guard::Head<'_>, body: &mut Vec<u8>| {
        let errors = shown.get().filter(|_| head.path() == "/accept-errors")?.accept_errors.load(Ordering::Relaxed);
        body.extend_from_slice(errors.to_string().as_bytes());
        Some(LocalAnswer::new(200, "text/plain"))
    };
    let guard = guard::start(config, server.gate(), Box::new(local)).unwrap();
    counters.set(std::sync::Arc::clone(guard.counters())).unwrap();
    // An answer through the pool tells that tiny_http has its descriptors too.
    let mut client = Client::connect(guard.local_addr());
    assert_eq!(client.ask("GET /echo HTTP/1.1\r\n\r\n").status, 200);
    drop(client);

    let mut hoard = Vec::new();
    set_descriptor_limit(256);
    while let Ok(file) = std::fs::File::open("/dev/null") {
        hoard.push(file);
    }
    hoard.truncate(hoard.len() - 4);
    println!("\nguard at {}", guard.local_addr());
    io::stdin().read_to_end(&mut Vec::new()).unwrap();
}

fn descriptor_limit() -> libc::rlimit {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is a valid place for the result.
    assert_eq!(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) }, 0);
    limit
}

fn set_descriptor_limit(soft: u64) {
    let limit = libc::rlimit { rlim_cur: soft, ..descriptor_limit() };
    // SAFETY: `limit` is valid for the call.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) }, 0);
}

fn raise_descriptor_limit() -> u64 {
    let most = descriptor_limit().rlim_max.min(65_536);
    set_descriptor_limit(most);
    most
}

#[test]
fn an_upload_is_in_a_file_when_the_server_hears_of_it() {
    let uploads = Uploads::new(|_| {});
    assert!(uploads.files().is_empty(), "what a killed process left is gone");
    let mut client = uploads.rig.connect();
    // More than the pieces that may wait for the disk, and the next request right behind; over one connection.
    for (round, len) in [(0, 1), (1, 300_000), (2, BIG)] {
        let body = image(len);
        let head = format!(
            "POST /upload?round={round} HTTP/1.1\r\nX-Api-Key: k\r\nX-Guard-Upload: image.bin 00 4\r\nContent-Length: {len}\r\n\r\n"
        );
        client.send([head.as_bytes(), &body, b"GET /healthz HTTP/1.1\r\n\r\n"].concat()).unwrap();
        let (request, responder) = uploads.rig.kept.recv_timeout(PATIENCE).unwrap();
        let upload = request.upload.clone().unwrap();
        assert_eq!((request.body.len(), request.header("X-Api-Key")), (0, Some("k")));
        assert_eq!(upload.bytes, len as u64);
        assert_eq!(request.body_sha256(), <[u8; 32]>::from(Sha256::digest(&body)));
        let path = uploads.dir.path().join(&upload.file_name);
        assert!(std::fs::read(&path).unwrap() == body, "the file has the body");
        uploads.rig.assert_serves();
        if round == 1 {
            std::fs::rename(&path, uploads.dir.path().join("taken.bin")).unwrap();
        }
        responder.success(200, &json!(round));
        assert_eq!(client.answer().data(), json!(round));
        assert_eq!(client.answer().text(), "alive", "the connection goes on");
        until("only what was moved stays", || uploads.files().iter().all(|name| name == "taken.bin"));
    }
    assert_eq!(uploads.files(), ["taken.bin"]);
    let empty = "POST /upload HTTP/1.1\r\nContent-Length: 0\r\n\r\n";
    client.send(empty).unwrap();
    let (request, responder) = uploads.rig.kept.recv_timeout(PATIENCE).unwrap();
    assert_eq!(request.upload, None, "an empty body needs no file");
    responder.success(200, &json!(null));
    client.answer();
}

#[test]
fn an_upload_waits_for_leave_where_it_asks() {
    let uploads = Uploads::new(|_| {});
    let mut client = uploads.rig.connect();
    client.send("POST /upload HTTP/1.1\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n").unwrap();
    assert_eq!(client.head().status, 100);
    client.send("body").unwrap();
    let (request, responder) = uploads.rig.kept.recv_timeout(PATIENCE).unwrap();
    assert_eq!(request.upload.unwrap().bytes, 4);
    responder.success(200, &json!(null));
    assert_eq!(client.answer().status, 200);
}

#[test]
fn uploads_have_a_size_of_their_own() {
    let uploads = Uploads::new(|_| {});
    let too_long = |head: &str, len: usize| {
        let mut client = uploads.rig.connect();
        client.send(format!("{head} HTTP/1.1\r\nContent-Length: {len}\r\n\r\n")).unwrap();
        client.last_answer(413, "PAYLOAD_TOO_LARGE");
    };
    too_long("POST /upload", BIG + 1);
    too_long("POST /echo", (64 << 10) + 1);
    too_long("PUT /upload", (64 << 10) + 1);
    assert_eq!(uploads.rig.refused(Refusal::BodyTooLarge), 3);
    uploads.assert_empty();
}

#[test]
fn an_upload_that_does_not_arrive_leaves_nothing() {
    let uploads = Uploads::new(|config| config.timeout = SHORT);
    for sent in [1, 100_000] {
        let mut client = uploads.rig.connect();
        client.send(format!("POST /upload HTTP/1.1\r\nContent-Length: {BIG}\r\n\r\n")).unwrap();
        client.send(image(sent)).unwrap();
        let answer = client.last_answer(408, "REQUEST_TIMEOUT");
        assert!(answer.text().contains("bytes are missing"), "{}", answer.text());
        uploads.assert_empty();
    }
    assert_eq!(uploads.rig.refused(Refusal::BodyTimeout), 2);
}

#[test]
fn a_client_that_goes_away_leaves_no_upload() {
    let uploads = Uploads::new(|_| {});
    // In the middle of the body, and while the server has the request.
    drop(uploads.begin(BIG, &image(200_000)));
    uploads.assert_empty();
    let client = uploads.begin(3, b"abc");
    let (_, responder) = uploads.rig.kept.recv_timeout(PATIENCE).unwrap();
    drop(client);
    responder.success(200, &json!(null));
    uploads.assert_empty();
    // And when the server drops the request, or the guard itself is stopped.
    let mut client = uploads.begin(3, b"abc");
    drop(uploads.rig.kept.recv_timeout(PATIENCE).unwrap());
    assert_eq!(client.answer().error(), "INTERNAL");
    uploads.assert_empty();
    let _client = uploads.begin(BIG, b"abc");
    let Uploads { rig, dir } = uploads;
    drop(rig);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "only what is no upload");
}

#[test]
fn uploads_at_a_time_are_limited() {
    let uploads = Uploads::new(|_| {});
    let first = uploads.begin(BIG, b"a");
    let _second = uploads.begin(BIG, b"b");
    let mut third = uploads.rig.connect();
    third.send(format!("POST /upload HTTP/1.1\r\nContent-Length: {BIG}\r\n\r\n")).unwrap();
    third.last_answer(503, "NOT_READY");
    assert_eq!(uploads.rig.refused(Refusal::UploadsFull), 1);
    uploads.rig.assert_serves();
    drop(first);
    until("there is room for one more", || uploads.files().len() == 1);
    until("the guard takes another", || {
        let mut client = uploads.rig.connect();
        client.send("POST /upload HTTP/1.1\r\nContent-Length: 1\r\n\r\nx").unwrap();
        let kept = uploads.rig.kept.recv_timeout(SHORT);
        let taken = kept.is_ok();
        if let Ok((_, responder)) = kept {
            responder.success(200, &json!(null));
        }
        client.answer().status == 200 && taken
    });
}

#[test]
fn an_upload_that_cannot_be_written_is_refused() {
    let uploads = Uploads::new(|_| {});
    std::fs::remove_dir_all(uploads.dir.path()).unwrap();
    let mut client = uploads.rig.connect();
    client.send(format!("POST /upload HTTP/1.1\r\nContent-Length: {BIG}\r\n\r\n")).unwrap();
    client.send(image(100)).unwrap();
    client.last_answer(503, "NOT_READY");
    assert_eq!(uploads.rig.refused(Refusal::UploadFailed), 1);
    uploads.rig.assert_serves();
}
