//! A real gateway under every kind of bad client at once goes on answering good ones, and no bad request costs it a worker.
//!
//! Bad clients misbehave in all ways of the table below, many at a time, over and over; each asserts the documented answer. Meanwhile good
//! clients ask what memory answers and what workers answer, and each of their requests must be answered 200. In the end the number of
//! requests that reached the workers is exactly that of the requests that had to: whatever the guard refuses never got there.
//!
//! Asserted are answers, not times: waits only turn a hang into a failure.

mod cluster;
mod gateway;
mod services;

use std::{
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    sync::{
        Barrier,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::{SystemTime, UNIX_EPOCH},
};

use chargegate::signature::SignedRequest;
use cluster::{Cluster, Options};
use gateway::{Engine, Gateway, KEY, PATIENCE, until};
use serde_json::{Value, json};
use socket2::{Domain, Socket, Type};

const ORDERS: &str = "/api/v1/third/orders";
const SECRET: &str = "s3cret";
/// Each of the bad clients goes through all cases so many times.
const ROUNDS: usize = 2;
/// Bad clients of each kind at a time.
const BAD_CLIENTS: usize = 6;
const GOOD_CLIENTS: usize = 2;
const IDLE_CONNECTIONS: usize = 1_000;
/// Addresses of the good, the bad and the idle: all of the loopback network are this machine's.
const GOOD: [u8; 4] = [127, 0, 0, 1];
const BAD: [u8; 4] = [127, 0, 0, 2];
const IDLE: [u8; 4] = [127, 0, 0, 3];

fn keys() -> String {
    let key = |name: &str, more: &[(&str, Value)]| {
        let mut key = json!({"name": name, "key": format!("key-{name}")});
        for (field, value) in more {
            key[*field] = value.clone();
        }
        key
    };
    json!([
        {"name": "tests", "key": KEY},
        key("signing", &[("require_hmac", json!(true)), ("hmac_secret", json!(SECRET))]),
        key("reader", &[("scopes", json!(["read"]))]),
        key("foreign", &[("ip_allow", json!(["192.0.2.0/24"]))]),
    ])
    .to_string()
}

#[expect(clippy::disallowed_methods, reason = "the clock enters here")]
fn unix_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs()
}

struct Client {
    stream: BufReader<TcpStream>,
}

struct Answer {
    status: u16,
    head: String,
    body: Value,
}

impl Client {
    fn connect(from: [u8; 4], to: SocketAddr) -> Self {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        socket.bind(&SocketAddr::from((from, 0)).into()).expect("an address of the loopback network");
        socket.connect(&to.into()).expect("the guard listens");
        let stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        stream.set_write_timeout(Some(PATIENCE)).expect("a timeout");
        Self { stream: BufReader::new(stream) }
    }

    fn try_send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.get_mut().write_all(bytes)
    }

    fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.try_send(bytes.as_ref()).expect("the guard reads");
    }

    fn answer(&mut self) -> Answer {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            assert_ne!(self.stream.read_line(&mut head).expect("an answer"), 0, "the stream ended in {head:?}");
        }
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
        let lengths = head.lines().filter_map(|line| line.strip_prefix("Content-Length: "));
        let len = lengths.map(|len| len.parse().expect("a length")).next().expect("every answer has a length");
        let mut body = vec![0; len];
        self.stream.read_exact(&mut body).expect("the body is whole");
        Answer { status, head, body: serde_json::from_slice(&body).unwrap_or(Value::Null) }
    }

    /// Whether the connection ends without a word.
    fn ends_silently(&mut self) -> bool {
        match self.stream.read(&mut [0]) {
            Ok(read) => read == 0,
            Err(error) => error.kind() == io::ErrorKind::ConnectionReset,
        }
    }
}

/// The refusal with this status and code, in a whole envelope.
fn is_refused(client: &mut Client, status: u16, code: &str) {
    let answer = client.answer();
    assert_eq!((answer.status, answer.body["error"].as_str()), (status, Some(code)), "{}", answer.body);
    let id = answer.body["request_id"].as_str().expect("an id");
    assert!(answer.head.contains(&format!("X-Request-Id: {id}\r\n")), "{}", answer.head);
    assert_eq!(answer.head.contains("Retry-After: "), matches!(status, 429 | 503), "{}", answer.head);
}

fn get(key: &str) -> String {
    format!("GET {ORDERS} HTTP/1.1\r\nX-Api-Key: {key}\r\n\r\n")
}

fn signed(secret: &str, timestamp: u64, nonce: &str) -> String {
    let timestamp = timestamp.to_string();
    let request = SignedRequest { method: "GET", path: ORDERS, timestamp: &timestamp, nonce, body: b"" };
    format!(
        "GET {ORDERS} HTTP/1.1\r\nX-Api-Key: key-signing\r\nX-Timestamp: {timestamp}\r\nX-Nonce: {nonce}\r\n\
         X-Signature: {}\r\n\r\n",
        request.sign(secret)
    )
}

fn post(head: &str) -> String {
    format!("POST {ORDERS} HTTP/1.1\r\nX-Api-Key: {KEY}\r\n{head}\r\n")
}

/// A way to misbehave. `nonce` is of this turn alone. Returns how many of its requests a worker had to answer.
type Case = fn(connect: &dyn Fn() -> Client, nonce: &str) -> u64;

const CASES: &[Case] = &[
    // Wrong signature.
    |connect, nonce| {
        let mut client = connect();
        client.send(signed("guess", unix_s(), nonce));
        is_refused(&mut client, 401, "UNAUTHORIZED");
        1
    },
    // Stale timestamp.
    |connect, nonce| {
        let mut client = connect();
        client.send(signed(SECRET, unix_s() - 3_600, nonce));
        is_refused(&mut client, 401, "UNAUTHORIZED");
        1
    },
    // Replayed nonce.
    |connect, nonce| {
        let mut client = connect();
        let request = signed(SECRET, unix_s(), nonce);
        client.send(&request);
        assert_eq!(client.answer().status, 200);
        client.send(&request);
        is_refused(&mut client, 401, "UNAUTHORIZED");
        2
    },
    // Missing scope.
    |connect, _| {
        let mut client = connect();
        client.send("POST /api/v1/third/order/stop HTTP/1.1\r\nX-Api-Key: key-reader\r\nContent-Length: 0\r\n\r\n");
        is_refused(&mut client, 403, "FORBIDDEN");
        1
    },
    // Foreign address.
    |connect, _| {
        let mut client = connect();
        client.send(get("key-foreign"));
        is_refused(&mut client, 403, "FORBIDDEN");
        1
    },
    // Unknown key, and none.
    |connect, nonce| {
        let mut client = connect();
        client.send(get(nonce));
        is_refused(&mut client, 401, "UNAUTHORIZED");
        client.send(format!("GET {ORDERS} HTTP/1.1\r\n\r\n"));
        is_refused(&mut client, 401, "UNAUTHORIZED");
        2
    },
    // Oversize body, announced and, in part, sent.
    |connect, _| {
        let mut client = connect();
        client.send(post("Content-Length: 65537\r\n"));
        // It may be closed before all of this is out.
        drop(client.try_send(&[b'x'; 65_537]));
        is_refused(&mut client, 413, "PAYLOAD_TOO_LARGE");
        0
    },
    // A body so long that a reader without a limit would end the process.
    |connect, _| {
        let mut client = connect();
        client.send(post("Content-Length: 18446744073709551615\r\n"));
        is_refused(&mut client, 413, "PAYLOAD_TOO_LARGE");
        0
    },
    // Oversize head.
    |connect, _| {
        let mut client = connect();
        drop(client.try_send(format!("GET /{} HTTP/1.1\r\n", "a".repeat(8_192)).as_bytes()));
        is_refused(&mut client, 431, "INVALID_PARAMETER");
        0
    },
    // Slow head.
    |connect, _| {
        let mut client = connect();
        client.send("GET / HTTP/1.1\r\nX-Api-");
        is_refused(&mut client, 408, "REQUEST_TIMEOUT");
        0
    },
    // Slow body.
    |connect, _| {
        let mut client = connect();
        client.send(post("Content-Length: 10\r\n") + "{");
        is_refused(&mut client, 408, "REQUEST_TIMEOUT");
        0
    },
    // Chunks.
    |connect, _| {
        let mut client = connect();
        client.send(post("Transfer-Encoding: chunked\r\n") + "1\r\n{\r\n0\r\n\r\n");
        is_refused(&mut client, 400, "INVALID_PARAMETER");
        0
    },
    // Two lengths: two readers could disagree on where the request ends.
    |connect, _| {
        let mut client = connect();
        client.send(post("Content-Length: 1\r\nContent-Length: 2\r\n"));
        is_refused(&mut client, 400, "INVALID_PARAMETER");
        0
    },
    // Bytes that are not HTTP.
    |connect, nonce| {
        let mut client = connect();
        client.send([b"\x16\x03\x01\x02\x00\x01\x00".as_slice(), nonce.as_bytes()].concat());
        is_refused(&mut client, 400, "INVALID_PARAMETER");
        0
    },
    // Requests without end whose answers are not read: cut off once the buffers of both sides are full and stay so.
    |connect, _| {
        let mut client = connect();
        let requests = "GET /metrics HTTP/1.1\r\n\r\n".repeat(64);
        while client.try_send(requests.as_bytes()).is_ok() {}
        0
    },
    // A client that asks and leaves.
    |connect, _| {
        connect().send("GET /healthz HTTP/1.1\r\n\r\n");
        0
    },
];

#[test]
fn good_clients_are_answered_while_bad_ones_do_all_they_can() {
    raise_descriptor_limit();
    let keys = keys();
    let Some(gateway) = Gateway::start(
        Engine::Mio,
        &[
            ("CHARGEGATE_API_KEYS", &keys),
            ("CHARGEGATE_API_FAILURES_PER_MINUTE_PER_IP", "0"),
            ("CHARGEGATE_HTTP_WORKERS", "1"),
            ("CHARGEGATE_HTTP_HEAD_TIMEOUT", "2s"),
            ("CHARGEGATE_HTTP_BODY_TIMEOUT", "2s"),
            ("CHARGEGATE_HTTP_WRITE_TIMEOUT", "2s"),
        ],
    ) else {
        return;
    };
    let http = gateway.http;
    let before = gateway.metric("chargegate_http_requests_total");
    let over = AtomicBool::new(false);
    let (good, to_workers, bad_running) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
    let everybody = Barrier::new(GOOD_CLIENTS + BAD_CLIENTS + 1);
    let idle = || {
        let mut idle: Vec<Client> = (0..IDLE_CONNECTIONS).map(|_| Client::connect(IDLE, http)).collect();
        assert!(idle.iter_mut().all(Client::ends_silently), "nobody asked, nobody is answered");
    };
    let bad = |number: usize| {
        for round in 0..ROUNDS {
            // Each begins with another case, so that all of them go on at any time.
            for turn in 0..CASES.len() {
                let case = (turn + number * CASES.len() / BAD_CLIENTS) % CASES.len();
                let nonce = format!("nonce-{number}-{round}-{case}");
                let answered = CASES[case](&|| Client::connect(BAD, http), &nonce);
                to_workers.fetch_add(answered, Relaxed);
            }
        }
    };
    let ends = EndsWhenLast { running: &bad_running, over: &over };
    bad_running.store(BAD_CLIENTS as u64 + 1, Relaxed);
    thread::scope(|scope| {
        for _ in 0..GOOD_CLIENTS {
            scope.spawn(|| {
                let requests = ["GET /healthz HTTP/1.1\r\n\r\n".to_owned(), get(KEY)];
                everybody.wait();
                let mut client = Client::connect(GOOD, http);
                while !over.load(Relaxed) {
                    for request in &requests {
                        client.send(request);
                        let answer = client.answer();
                        assert_eq!(answer.status, 200, "{}", answer.body);
                    }
                    to_workers.fetch_add(1, Relaxed);
                    good.fetch_add(1, Relaxed);
                }
            });
        }
        let (bad, everybody) = (&bad, &everybody);
        for number in 0..BAD_CLIENTS {
            scope.spawn(move || {
                let _end = ends.guard();
                everybody.wait();
                bad(number);
            });
        }
        scope.spawn(|| {
            let _end = ends.guard();
            everybody.wait();
            idle();
        });
    });
    assert!(good.load(Relaxed) > 0, "good clients were answered");
    let reached = gateway.metric("chargegate_http_requests_total") - before;
    assert_eq!(reached, to_workers.load(Relaxed), "what the guard refuses reaches no worker");
    assert_eq!(gateway.metric("chargegate_http_pending"), 0, "and none of them is held");
    let mut client = Client::connect(IDLE, http);
    client.send(get(KEY));
    assert_eq!(client.answer().status, 200, "addresses that misbehaved are served again");
    until("nobody else is connected", || (gateway.metric("chargegate_http_buffered_bytes") == 0).then_some(()));
}

/// Ends the good clients with the last of the bad ones, also where that one panics.
#[derive(Clone, Copy)]
struct EndsWhenLast<'a> {
    running: &'a AtomicU64,
    over: &'a AtomicBool,
}

struct End<'a>(EndsWhenLast<'a>);

impl<'a> EndsWhenLast<'a> {
    fn guard(self) -> End<'a> {
        End(self)
    }
}

impl Drop for End<'_> {
    fn drop(&mut self) {
        if self.0.running.fetch_sub(1, Relaxed) == 1 || thread::panicking() {
            self.0.over.store(true, Relaxed);
        }
    }
}

#[test]
fn an_address_that_guesses_keys_is_refused_and_a_good_key_behind_it_is_not() {
    let keys = keys();
    let variables = [("CHARGEGATE_API_KEYS", keys.as_str()), ("CHARGEGATE_API_FAILURES_PER_MINUTE_PER_IP", "5")];
    let Some(gateway) = Gateway::start(Engine::Mio, &variables) else { return };
    let mut guessing = Client::connect(BAD, gateway.http);
    for guess in 0..5 {
        guessing.send(get(&format!("guess-{guess}")));
        is_refused(&mut guessing, 401, "UNAUTHORIZED");
    }
    // A slow machine may give a token back now and then.
    until("the guesses are refused as too many", || {
        guessing.send(get("guess"));
        let answer = guessing.answer();
        (answer.status == 429).then(|| {
            assert_eq!(answer.body["error"], "RATE_LIMITED");
            assert!(answer.head.contains("Retry-After: "), "{}", answer.head);
        })
    });
    guessing.send(get(KEY));
    assert_eq!(guessing.answer().status, 200);
    let mut other = Client::connect(GOOD, gateway.http);
    other.send(get("guess"));
    is_refused(&mut other, 401, "UNAUTHORIZED");
}

#[test]
fn a_nonce_used_at_one_instance_is_used_at_the_other() {
    let keys = keys();
    let variables = [("CHARGEGATE_API_KEYS", keys.as_str())];
    let cluster = Cluster::start(2, &Options { variables: &variables, ..Options::default() });
    let at = |number: usize| Client::connect(GOOD, cluster.gateways[number].http);
    for number in 0..2 {
        let request = signed(SECRET, unix_s(), &format!("first-at-{number}"));
        let mut here = at(number);
        here.send(&request);
        assert_eq!(here.answer().status, 200);
        for replayed_at in [1 - number, number] {
            let mut client = at(replayed_at);
            client.send(&request);
            is_refused(&mut client, 401, "UNAUTHORIZED");
        }
    }
}

/// A thousand connections need more descriptors than most shells give.
fn raise_descriptor_limit() {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is a valid place for the result.
    assert_eq!(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) }, 0);
    limit.rlim_cur = limit.rlim_max.min(65_536);
    // SAFETY: `limit` is valid for the call.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) }, 0);
}
