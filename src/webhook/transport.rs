//! One attempt: body, headers, HTTP request, answer.
//!
//! Knows nothing of order, retries or other attempts. Follows no redirect, uses no proxy, and takes no longer than its timeout. What goes to
//! plain HTTP is only written here: `wire` sends it.

use std::{
    cell::Cell,
    io::{self, Read as _, Write as _},
    net::TcpStream,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use sha2::{Digest as _, Sha256};
use ureq::{
    Agent, Body,
    http::{HeaderValue, Response, Uri},
    unversioned::transport::{ConnectionDetails, Connector, DefaultConnector, Transport},
};

use super::{
    Endpoint, EndpointError, Settings, body,
    clock::{self, Clock},
    retry::{Answer, Failure, retry_after},
    target::{CheckedResolver, LookupFailed, TargetRefused},
};
use crate::{
    protocol::Hex,
    signature::{SignedRequest, is_usable_secret, standard_webhooks},
    store::EventRecord,
};

/// An answer's body says nothing we need: read so far, so that its connection can be used again.
const ANSWER_BODY_MAX: u64 = 64 * 1024;
/// Shorter than the keep-alive of common servers (5 s), so that we close first and rarely meet a connection they just closed.
pub(super) const IDLE_AGE_MAX: Duration = Duration::from_secs(4);
/// URLs longer than this are a mistake.
const URL_BYTES_MAX: usize = 2_048;
const USER_AGENT: &str = concat!("chargegate/", env!("CARGO_PKG_VERSION"));

/// An endpoint, checked and ready to be sent to. Used by all its sender threads at once.
pub(super) struct Receiver {
    uri: Uri,
    /// Path and query as sent.
    path: String,
    secrets: Vec<String>,
    api_key: Option<HeaderValue>,
    agent: Agent,
    resolver: CheckedResolver,
    /// What `wire` is given; `None`: all goes through the agent.
    plain: Option<Plain>,
    /// For a whole attempt.
    timeout: Duration,
    nonces: Nonces,
    clock: Clock,
}

/// A receiver of plain HTTP.
struct Plain {
    host: String,
    port: u16,
    /// What all requests begin with: request line and the fields that never change.
    head: Vec<u8>,
}

impl Receiver {
    pub(super) fn new(endpoint: &Endpoint, settings: &Settings, clock: Clock) -> Result<Self, EndpointError> {
        let bad = |field, reason| EndpointError::Invalid { name: endpoint.name.clone(), field, reason };
        if endpoint.url.len() > URL_BYTES_MAX {
            return Err(bad("url", "is longer than 2048 bytes"));
        }
        let uri: Uri = endpoint.url.parse().map_err(|_| bad("url", "is not a URL"))?;
        if !matches!(uri.scheme_str(), Some("http" | "https")) {
            return Err(bad("url", "must begin with http:// or https://"));
        }
        if uri.host().is_none_or(str::is_empty) {
            return Err(bad("url", "names no host"));
        }
        if !(1..=2).contains(&endpoint.secrets.len()) {
            return Err(bad("secret", "must be one, or two during rotation"));
        }
        if endpoint.secrets.iter().any(String::is_empty) {
            return Err(bad("secret", "is empty"));
        }
        if !endpoint.secrets.iter().all(|secret| is_usable_secret(secret)) {
            return Err(bad("secret", "is not base64 after whsec_"));
        }
        let api_key = endpoint.api_key.as_deref().map(HeaderValue::from_str).transpose();
        let mut api_key = api_key.map_err(|_| bad("api_key", "cannot be sent as a header"))?;
        if let Some(key) = &mut api_key {
            key.set_sensitive(true);
        }
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        // "?x" without a path is sent with the path "/".
        let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .proxy(None)
            .user_agent(USER_AGENT)
            .timeout_global(Some(settings.timeout))
            .max_idle_connections(settings.concurrency)
            .max_idle_connections_per_host(settings.concurrency)
            .max_idle_age(IDLE_AGE_MAX)
            .build();
        let resolver = CheckedResolver::new(settings.allow_private_targets, settings.timeout);
        Ok(Self {
            plain: Plain::of(&uri, &path, api_key.as_ref()),
            resolver: resolver.clone(),
            uri,
            path,
            secrets: endpoint.secrets.clone(),
            api_key,
            timeout: settings.timeout,
            agent: Agent::with_parts(config, NotingConnector(DefaultConnector::new()), resolver),
            nonces: Nonces::new()?,
            clock,
        })
    }

    /// Sends one event once.
    pub(super) fn post(&self, event: &EventRecord) -> Answer {
        CONNECTED.set(false);
        match self.request(event, Reuse::Allowed) {
            Err(ureq::Error::Io(error)) if is_cut(&error) && !CONNECTED.get() => {
                // A kept connection the receiver had closed meanwhile: says nothing about the receiver, so ask it on a new one.
                self.request(event, Reuse::No).unwrap_or_else(|error| self.failed(&error))
            }
            Ok(answer) => answer,
            Err(error) => self.failed(&error),
        }
    }

    /// Whether requests are written by [`Receiver::write_request`], on connections of [`Receiver::connect`].
    pub(super) const fn is_plain(&self) -> bool {
        self.plain.is_some()
    }

    /// Whether a request may go out on a kept connection now: the target's addresses were looked up and judged just now, or stand in the
    /// URL. Else a new connection is to be made, for which they are.
    pub(super) fn may_reuse(&self) -> bool {
        self.plain.as_ref().is_some_and(|plain| self.resolver.is_permitted_now(&plain.host, plain.port))
    }

    /// For how long an attempt may last.
    pub(super) const fn timeout(&self) -> Duration {
        self.timeout
    }

    /// A connection to one of the permitted addresses of the target. Blocks, as long as an attempt may last.
    pub(super) fn connect(&self) -> Result<TcpStream, Failure> {
        let plain = self.plain.as_ref().ok_or(Failure::Internal)?;
        let until = clock::instant() + self.timeout;
        let addresses = self.resolver.resolved(&plain.host, plain.port, self.timeout);
        let mut last = Failure::Connect;
        for address in addresses.map_err(|error| failure(&error))? {
            let left = until.saturating_duration_since(clock::instant());
            if left.is_zero() {
                return Err(Failure::Timeout);
            }
            match TcpStream::connect_timeout(&address, left) {
                Ok(stream) => return stream.set_nodelay(true).map(|()| stream).map_err(|error| io_failure(&error)),
                Err(error) => last = io_failure(&error),
            }
        }
        Err(last)
    }

    /// A whole request for an event as it goes over a connection, and its time in Unix seconds; `None`: the event cannot be sent.
    pub(super) fn write_request(&self, event: &EventRecord) -> Option<(Vec<u8>, i64)> {
        let plain = self.plain.as_ref()?;
        // The one field that was not made here.
        if !event.event_id.bytes().all(|byte| byte.is_ascii_graphic()) {
            return None;
        }
        let nonce = self.nonces.next();
        let body = body::encode(event, &nonce)?;
        let unix_s = self.clock.now().unix_ms.div_euclid(1_000);
        let Signed { timestamp, signature, standard } = self.sign(&event.event_id, &nonce, unix_s, &body);
        let mut request = Vec::with_capacity(plain.head.len() + body.len() + FIELDS_BYTES);
        request.extend_from_slice(&plain.head);
        write!(
            request,
            "X-Signature: {signature}\r\nX-Timestamp: {timestamp}\r\nX-Nonce: {nonce}\r\nwebhook-id: {}\r\n\
             webhook-timestamp: {timestamp}\r\nwebhook-signature: {standard}\r\nContent-Length: {}\r\n\r\n",
            event.event_id,
            body.len()
        )
        .ok()?;
        request.extend_from_slice(&body);
        Some((request, unix_s))
    }

    /// Sends one event once, on a connection of its own, in the time of an attempt or `within`, if that is shorter.
    pub(super) fn post_within(&self, event: &EventRecord, within: Duration) -> Answer {
        self.request(event, Reuse::Within(within.min(self.timeout))).unwrap_or_else(|error| self.failed(&error))
    }

    /// Ends all connections, those under way included.
    pub(super) fn shutdown(&self) {
        self.agent.clone().shutdown();
    }

    /// Asks once and gives the body of a 2xx answer. `body` makes the question from its nonce; `None`: it cannot.
    pub(super) fn ask(&self, id: &str, body: impl Fn(&str) -> Option<Vec<u8>>) -> Result<Vec<u8>, Failure> {
        CONNECTED.set(false);
        let answer = match self.question(id, &body, Reuse::Allowed) {
            Err(ureq::Error::Io(error)) if is_cut(&error) && !CONNECTED.get() => self.question(id, &body, Reuse::No),
            answer => answer,
        };
        answer.map_err(|error| failure(&error))?
    }

    fn question(
        &self,
        id: &str,
        body: &impl Fn(&str) -> Option<Vec<u8>>,
        reuse: Reuse,
    ) -> Result<Result<Vec<u8>, Failure>, ureq::Error> {
        let nonce = self.nonces.next();
        let Some(body) = body(&nonce) else { return Ok(Err(Failure::Data)) };
        let unix_s = self.clock.now().unix_ms.div_euclid(1_000);
        let response = self.send(id, &nonce, unix_s, &body, reuse)?;
        let code = response.status().as_u16();
        let mut answer = Vec::new();
        response.into_body().into_reader().take(ANSWER_BODY_MAX).read_to_end(&mut answer)?;
        Ok(if (200..300).contains(&code) { Ok(answer) } else { Err(Failure::Status(code)) })
    }

    fn request(&self, event: &EventRecord, reuse: Reuse) -> Result<Answer, ureq::Error> {
        let nonce = self.nonces.next();
        let Some(body) = body::encode(event, &nonce) else {
            return Ok(Answer::None(Failure::Data));
        };
        let unix_s = self.clock.now().unix_ms.div_euclid(1_000);
        let response = self.send(&event.event_id, &nonce, unix_s, &body, reuse)?;
        let answer = Answer::Status {
            code: response.status().as_u16(),
            retry_after: response
                .headers()
                .get("retry-after")
                .and_then(|value| value.to_str().ok())
                .and_then(|value| retry_after(value, unix_s)),
        };
        // The status decides. A body that fails only costs its connection.
        io::copy(&mut response.into_body().into_reader().take(ANSWER_BODY_MAX), &mut io::sink()).ok();
        Ok(answer)
    }

    /// Sends a body, signed by both schemes.
    fn send(
        &self,
        id: &str,
        nonce: &str,
        unix_s: i64,
        body: &[u8],
        reuse: Reuse,
    ) -> Result<Response<Body>, ureq::Error> {
        let Signed { timestamp, signature, standard } = self.sign(id, nonce, unix_s, body);
        let mut request = self
            .agent
            .post(&self.uri)
            .header("Content-Type", "application/json")
            .header("X-Signature", signature)
            .header("X-Timestamp", &timestamp)
            .header("X-Nonce", nonce)
            .header("webhook-id", id)
            .header("webhook-timestamp", &timestamp)
            .header("webhook-signature", standard);
        if let Some(key) = &self.api_key {
            request = request.header("X-Api-Key", key.clone());
        }
        request = match reuse {
            Reuse::Allowed => request,
            Reuse::No => request.config().max_idle_age(Duration::ZERO).build(),
            Reuse::Within(time) => request.config().max_idle_age(Duration::ZERO).timeout_global(Some(time)).build(),
        };
        request.send(body)
    }

    fn sign(&self, id: &str, nonce: &str, unix_s: i64, body: &[u8]) -> Signed {
        let timestamp = unix_s.to_string();
        // Rotation is between two secrets of Standard Webhooks; the gateway's scheme has room for one signature: the first's.
        let first = self.secrets.first().map_or("", String::as_str);
        let signed = SignedRequest { method: "POST", path: &self.path, timestamp: &timestamp, nonce, body };
        let signature = signed.sign(first);
        let standard = standard_webhooks(self.secrets.iter().map(String::as_str), id, unix_s, body);
        Signed { timestamp, signature, standard }
    }

    fn failed(&self, error: &ureq::Error) -> Answer {
        Answer::None(failure(error))
    }
}

/// About what the fields take that differ from request to request.
const FIELDS_BYTES: usize = 512;

/// The fields that vouch for a body.
struct Signed {
    timestamp: String,
    signature: String,
    standard: String,
}

impl Plain {
    /// `None`: it needs TLS, or more than a host and a port of its URL.
    fn of(uri: &Uri, path: &str, api_key: Option<&HeaderValue>) -> Option<Self> {
        let authority = uri.authority().filter(|authority| !authority.as_str().contains('@'))?;
        if uri.scheme_str() != Some("http") {
            return None;
        }
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: {authority}\r\nUser-Agent: {USER_AGENT}\r\nAccept: */*\r\n\
             Content-Type: application/json\r\n"
        );
        let mut head = head.into_bytes();
        if let Some(key) = api_key {
            head.extend_from_slice(b"X-Api-Key: ");
            head.extend_from_slice(key.as_bytes());
            head.extend_from_slice(b"\r\n");
        }
        Some(Self { host: authority.host().to_owned(), port: authority.port_u16().unwrap_or(80), head })
    }
}

#[derive(Clone, Copy, Debug)]
enum Reuse {
    Allowed,
    No,
    /// No, and a time limit of its own.
    Within(Duration),
}

thread_local! {
    /// Whether this thread's current request opened a connection, as opposed to using a kept one.
    static CONNECTED: Cell<bool> = const { Cell::new(false) };
}

/// Opens connections as usual and notes that it did.
#[derive(Debug)]
struct NotingConnector(DefaultConnector);

impl Connector for NotingConnector {
    type Out = Box<dyn Transport>;

    fn connect(&self, details: &ConnectionDetails<'_>, chained: Option<()>) -> Result<Option<Self::Out>, ureq::Error> {
        CONNECTED.set(true);
        self.0.connect(details, chained)
    }
}

/// Whether the peer ended the connection.
pub(super) fn is_cut(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    matches!(error.kind(), BrokenPipe | ConnectionAborted | ConnectionReset | UnexpectedEof)
}

/// What an error of a connection says of the receiver.
pub(super) fn io_failure(error: &io::Error) -> Failure {
    use io::ErrorKind::{
        AddrNotAvailable, ConnectionRefused, HostUnreachable, InvalidData, NetworkDown, NetworkUnreachable, TimedOut,
    };
    match error.kind() {
        ConnectionRefused | HostUnreachable | NetworkUnreachable | NetworkDown | AddrNotAvailable => Failure::Connect,
        TimedOut => Failure::Timeout,
        // How the TLS layer reports what it could not read or verify.
        InvalidData => Failure::Tls,
        _ => Failure::Closed,
    }
}

fn failure(error: &ureq::Error) -> Failure {
    match error {
        ureq::Error::Timeout(_) => Failure::Timeout,
        ureq::Error::HostNotFound => Failure::Dns,
        ureq::Error::Other(cause) if cause.is::<TargetRefused>() => Failure::TargetRefused,
        ureq::Error::Other(cause) if cause.is::<LookupFailed>() => Failure::Dns,
        ureq::Error::Io(error) => io_failure(error),
        ureq::Error::ConnectionFailed => Failure::Connect,
        ureq::Error::Tls(_) | ureq::Error::Rustls(_) | ureq::Error::Pem(_) | ureq::Error::TlsRequired => Failure::Tls,
        ureq::Error::Protocol(_) | ureq::Error::LargeResponseHeader(..) | ureq::Error::BodyStalled => Failure::Protocol,
        // Only the event's id is not checked before: it cannot be sent as a header.
        ureq::Error::Http(_) => Failure::Data,
        _ => Failure::Internal,
    }
}

/// Never the same twice, in this process or another: a random seed and a counter through a hash.
struct Nonces {
    seed: [u8; 16],
    count: AtomicU64,
}

impl Nonces {
    fn new() -> Result<Self, EndpointError> {
        let mut seed = [0; 16];
        getrandom::fill(&mut seed).map_err(|error| EndpointError::Random(io::Error::other(error.to_string())))?;
        Ok(Self { seed, count: AtomicU64::new(0) })
    }

    fn next(&self) -> String {
        let count = self.count.fetch_add(1, Ordering::Relaxed);
        let digest = Sha256::new().chain_update(self.seed).chain_update(count.to_le_bytes()).finalize();
        Hex(digest.get(..16).unwrap_or_default()).to_string()
    }
}
