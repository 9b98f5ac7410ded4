//! tiny_http behind the guard: a private Unix socket, a few worker threads, and answers that may come later.
//!
//! A worker turns what tiny_http read into a [`Request`], calls the handler with it and a [`Responder`], and takes the next one.
//! The handler answers at once or gives the responder away, to the store's completion side; it never waits.
//! No network here, and no deadline for answers: the guard has one, and answers for a handler that misses it.
//!
//! tiny_http ends its listener for good when it cannot take a connection (no descriptor, no thread). The guard then finds
//! the socket refusing, says so through the [`Gate`], and a worker opens a new listener, one *generation* later.
//! The socket lies in a directory of mode 0700: file permissions keep other users out, which an abstract name could not.

use std::fs;
use std::io::{self, Cursor, Read};
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::os::unix::net::UnixListener;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use serde::Serialize;

use super::envelope;
use super::error::{ApiError, ErrorCode};
use super::guard::{CLIENT_IP_HEADER, REQUEST_ID_HEADER, UPLOAD_HEADER};
use super::message::{Method, Request, Response, UploadedBody};
use super::rate::Quota;
use crate::telemetry::{Exposition, MetricSource};

/// How often an idle worker looks whether the server stops or its listener is gone.
const LOOK_ROUND: Duration = Duration::from_millis(250);
/// The longest Unix socket path Linux takes, without its final zero byte.
const SOCKET_PATH_BYTES_MAX: usize = 107;

/// What the guard asks on a new connection, without the headers it sets for a client's request: answered 204 by the worker.
pub(super) const PROBE_TARGET: &str = "/guard-probe";

/// What answers requests. It must not wait: for slow answers it gives the responder away and returns.
pub type Handler = dyn Fn(Request, Responder) + Send + Sync;

/// How the server is run.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// Where the socket lies; made with mode 0700 if it is not there. If it is, it must be ours and closed to others. One process only.
    pub socket_dir: PathBuf,
    /// Worker threads, at least 1. Handlers do not wait, so a few do.
    pub workers: usize,
    /// Bytes of a body; the guard lets no more through.
    pub body_bytes_max: usize,
}

/// Where tiny_http listens now. The guard connects here.
#[derive(Debug)]
pub struct Gate {
    dir: PathBuf,
    generation: AtomicU64,
    unreachable: AtomicBool,
}

impl Gate {
    fn new(dir: PathBuf) -> Self {
        Self { dir, generation: AtomicU64::new(0), unreachable: AtomicBool::new(false) }
    }

    /// Grows with each listener.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// The socket of a generation.
    pub fn path(&self, generation: u64) -> PathBuf {
        self.dir.join(format!("api-{generation}.sock"))
    }

    /// Tells the workers that this generation's listener refuses connections. A report on an older one is late, and ignored.
    pub fn report_unreachable(&self, generation: u64) {
        if generation == self.generation() {
            self.unreachable.store(true, Ordering::Release);
        }
    }

    /// Listens on the next generation's socket.
    fn open(&self) -> io::Result<(u64, tiny_http::Server)> {
        let generation = self.generation() + 1;
        let path = self.path(generation);
        if path.as_os_str().len() > SOCKET_PATH_BYTES_MAX {
            let message = format!(
                "socket path must be at most {SOCKET_PATH_BYTES_MAX} bytes, {} has {}",
                path.display(),
                path.as_os_str().len()
            );
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        }
        // What a killed process left behind would make the address taken.
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(&path)?;
        let server = tiny_http::Server::from_listener(listener, None).map_err(io::Error::other)?;
        Ok((generation, server))
    }
}

/// What the server counts.
#[derive(Debug, Default)]
pub struct ServerCounters {
    /// Requests handed to the handler.
    pub requests: AtomicU64,
    /// Responders not yet used, now.
    pub pending: AtomicU64,
    /// Responders dropped without an answer: a bug, answered 500.
    pub unanswered: AtomicU64,
    /// Handlers that panicked.
    pub panics: AtomicU64,
    /// Requests whose body or private headers did not arrive whole.
    pub broken: AtomicU64,
    /// Listeners opened after the first.
    pub reopened: AtomicU64,
    /// Attempts at that which failed.
    pub reopen_errors: AtomicU64,
}

impl MetricSource for ServerCounters {
    fn render(&self, to: &mut Exposition<'_>) {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        for (name, help, count) in [
            ("chargegate_http_requests_total", "HTTP requests handed to a handler.", &self.requests),
            (
                "chargegate_http_unanswered_total",
                "HTTP requests dropped by a handler without an answer.",
                &self.unanswered,
            ),
            ("chargegate_http_panics_total", "HTTP handlers that panicked.", &self.panics),
            ("chargegate_http_broken_total", "HTTP requests that did not reach the server whole.", &self.broken),
            ("chargegate_http_reopened_total", "HTTP listeners opened after the first.", &self.reopened),
            ("chargegate_http_reopen_errors_total", "HTTP listeners that could not be opened.", &self.reopen_errors),
        ] {
            to.counter(name, help, load(count));
        }
        to.gauge("chargegate_http_pending", "HTTP requests that wait for their answer.", load(&self.pending));
    }
}

struct Shared {
    gate: Arc<Gate>,
    current: Mutex<(u64, Arc<tiny_http::Server>)>,
    handler: Box<Handler>,
    counters: Arc<ServerCounters>,
    body_bytes_max: usize,
    stop: AtomicBool,
}

/// A running server. Dropping it stops the workers; they finish the request they are at.
pub struct Server {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
}

impl Server {
    /// Opens the private socket and starts the workers.
    ///
    /// # Errors
    /// The directory cannot be made or is open to others, its path is too long for a socket, or the system refuses a thread.
    pub fn start(config: &ServerConfig, handler: Box<Handler>) -> io::Result<Self> {
        prepare_private_dir(&config.socket_dir)?;
        let gate = Arc::new(Gate::new(config.socket_dir.clone()));
        let (generation, server) = gate.open()?;
        gate.generation.store(generation, Ordering::Release);
        let shared = Arc::new(Shared {
            gate,
            current: Mutex::new((generation, Arc::new(server))),
            handler,
            counters: Arc::new(ServerCounters::default()),
            body_bytes_max: config.body_bytes_max,
            stop: AtomicBool::new(false),
        });
        let mut started = Self { shared, workers: Vec::new() };
        for index in 0..config.workers.max(1) {
            let shared = Arc::clone(&started.shared);
            let builder = std::thread::Builder::new().name(format!("http-{index}"));
            started.workers.push(builder.spawn(move || shared.work())?);
        }
        Ok(started)
    }

    /// Where the guard connects.
    pub fn gate(&self) -> Arc<Gate> {
        Arc::clone(&self.shared.gate)
    }

    pub fn counters(&self) -> &Arc<ServerCounters> {
        &self.shared.counters
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        for _ in &self.workers {
            self.shared.current.lock().1.unblock();
        }
        for worker in self.workers.drain(..) {
            if worker.join().is_err() {
                log::error!("http worker ended by a panic");
            }
        }
    }
}

impl Shared {
    fn work(&self) {
        let (mut generation, mut server) = self.current.lock().clone();
        while !self.stop.load(Ordering::Acquire) {
            let ended = match server.recv_timeout(LOOK_ROUND) {
                Ok(Some(request)) => {
                    self.serve(request);
                    false
                }
                // After a quiet round nothing is left at a listener that was replaced.
                Ok(None) => {
                    (generation, server) = self.current.lock().clone();
                    false
                }
                Err(error) => {
                    log::warn!("http listener ended: {error}");
                    true
                }
            };
            let unreachable = self.gate.unreachable.load(Ordering::Acquire);
            // One worker opens the next listener and goes there at once; the others see to what is left at the old one.
            let reopened = (ended || unreachable) && self.reopen(generation);
            if reopened || ended {
                (generation, server) = self.current.lock().clone();
            }
        }
    }

    /// Replaces the listener of `generation`. `true` for the one worker that did.
    fn reopen(&self, generation: u64) -> bool {
        let mut current = self.current.lock();
        if current.0 != generation {
            return false;
        }
        match self.gate.open() {
            Ok((next, server)) => {
                *current = (next, Arc::new(server));
                self.gate.unreachable.store(false, Ordering::Release);
                self.gate.generation.store(next, Ordering::Release);
                self.counters.reopened.fetch_add(1, Ordering::Relaxed);
                log::warn!("http listener opened anew, generation {next}");
                true
            }
            Err(error) => {
                // The flag stays up, so that a worker tries again after its next request or round.
                self.gate.report_unreachable(generation);
                if self.counters.reopen_errors.fetch_add(1, Ordering::Relaxed).is_power_of_two() {
                    log::error!("http listener cannot be opened: {error}");
                }
                false
            }
        }
    }

    fn serve(&self, mut request: tiny_http::Request) {
        let Some(received) = self.receive(&mut request) else {
            let is_probe = request.url() == PROBE_TARGET;
            if !is_probe {
                self.counters.broken.fetch_add(1, Ordering::Relaxed);
            }
            // A guard that does not get this answer closes the connection, and tries another.
            request.respond(tiny_http::Response::empty(if is_probe { 204 } else { 400 })).ok();
            return;
        };
        self.counters.requests.fetch_add(1, Ordering::Relaxed);
        self.counters.pending.fetch_add(1, Ordering::Relaxed);
        let responder = Responder {
            request: Some(request),
            request_id: received.request_id.clone(),
            quota: None,
            counters: Arc::clone(&self.counters),
        };
        if catch_unwind(AssertUnwindSafe(|| (self.handler)(received, responder))).is_err() {
            self.counters.panics.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The request with its body, `None` if the guard's headers or part of the body are missing.
    fn receive(&self, request: &mut tiny_http::Request) -> Option<Request> {
        let mut client_ip = None;
        let mut request_id = None;
        let mut upload = None;
        let mut headers = Vec::with_capacity(request.headers().len());
        for header in request.headers() {
            let (name, value) = (header.field.as_str().as_str(), header.value.as_str());
            if name.eq_ignore_ascii_case(CLIENT_IP_HEADER) {
                client_ip = value.parse::<IpAddr>().ok();
            } else if name.eq_ignore_ascii_case(REQUEST_ID_HEADER) {
                request_id = Some(value.to_owned());
            } else if name.eq_ignore_ascii_case(UPLOAD_HEADER) {
                upload = Some(uploaded(value)?);
            } else if !name.eq_ignore_ascii_case("Content-Length") {
                headers.push((name.to_owned(), value.to_owned()));
            }
        }
        let (client_ip, request_id) = (client_ip?, request_id?);

        let len = request.body_length().unwrap_or(0);
        if len > self.body_bytes_max {
            return None;
        }
        let mut body = Vec::with_capacity(len);
        let read = request.as_reader().take(len as u64).read_to_end(&mut body);
        if read.ok() != Some(len) {
            return None;
        }
        let method = Method::from_token(request.method().as_str());
        Some(Request { method, target: request.url().to_owned(), headers, body, client_ip, request_id, upload })
    }
}

/// Reads what the guard says of a body in a file.
fn uploaded(value: &str) -> Option<UploadedBody> {
    let mut words = value.split(' ');
    let (file_name, sha256, bytes) = (words.next()?, words.next()?, words.next()?);
    Some(UploadedBody {
        file_name: file_name.to_owned(),
        sha256: crate::signature::decode_hex(sha256)?,
        bytes: bytes.parse().ok()?,
    })
}

/// The right to answer one request, once, from any thread. Dropped unused, it answers 500 `INTERNAL`.
pub struct Responder {
    /// `None` once answered.
    request: Option<tiny_http::Request>,
    request_id: String,
    quota: Option<Quota>,
    counters: Arc<ServerCounters>,
}

impl Responder {
    pub fn request_id(&self) -> &str {
        &self.request_id
    }

    /// Says what is left to the caller, whose rate is limited: the answer's headers will tell. Of several the tightest counts.
    pub fn limited(&mut self, quota: Option<Quota>) {
        self.quota = match (self.quota, quota) {
            (Some(one), Some(other)) => Some(one.tighter(other)),
            (one, other) => one.or(other),
        };
    }

    /// Sends a response. That the client has gone is no error here: the guard counts it.
    pub fn respond(mut self, response: Response) {
        self.send(response);
    }

    /// Sends `data` in the success envelope.
    pub fn success<T: Serialize>(mut self, status: u16, data: &T) {
        self.send(envelope::success(status, data, &self.request_id, unix_ms_now()));
    }

    /// Sends the error envelope.
    pub fn error(mut self, error: &ApiError) {
        self.send(envelope::error(error, &self.request_id, unix_ms_now()));
    }

    fn send(&mut self, response: Response) {
        let Some(request) = self.request.take() else { return };
        self.counters.pending.fetch_sub(1, Ordering::Relaxed);
        let content_type = ("Content-Type", response.content_type.to_owned());
        let quota = self.quota.iter().flat_map(Quota::headers).map(|(name, value)| (name, value.to_string()));
        let mut headers = Vec::with_capacity(response.headers.len() + 4);
        for (name, value) in std::iter::once(content_type).chain(response.headers).chain(quota) {
            match tiny_http::Header::from_bytes(name, value) {
                Ok(header) => headers.push(header),
                Err(()) => log::error!(request_id = self.request_id.as_str(); "header {name} is not ASCII, left out"),
            }
        }
        let len = response.body.len();
        // The guard relays answers with a length only.
        let answer =
            tiny_http::Response::new(response.status.into(), headers, Cursor::new(response.body), Some(len), None)
                .with_chunked_threshold(usize::MAX);
        if let Err(error) = request.respond(answer) {
            log::debug!(request_id = self.request_id.as_str(); "answer was not sent: {error}");
        }
    }
}

impl Drop for Responder {
    fn drop(&mut self) {
        if self.request.is_some() {
            self.counters.unanswered.fetch_add(1, Ordering::Relaxed);
            log::error!(request_id = self.request_id.as_str(); "request was dropped without an answer");
            let error = ApiError::new(ErrorCode::Internal, "the request was not answered");
            self.send(envelope::error(&error, &self.request_id, unix_ms_now()));
        }
    }
}

/// Makes the directory, or checks that one that is there belongs to us alone.
fn prepare_private_dir(dir: &Path) -> io::Result<()> {
    match fs::DirBuilder::new().mode(0o700).create(dir) {
        Ok(()) => return Ok(()),
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        Err(_) => {}
    }
    let found = fs::symlink_metadata(dir)?;
    // SAFETY: geteuid has no preconditions and cannot fail.
    let us = unsafe { libc::geteuid() };
    if !found.is_dir() || found.uid() != us || found.mode() & 0o077 != 0 {
        let message = format!(
            "{} must be a directory of user {us} with mode 0700, it is of user {} with mode {:04o}",
            dir.display(),
            found.uid(),
            found.mode() & 0o7777
        );
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, message));
    }
    Ok(())
}

#[expect(clippy::disallowed_methods, reason = "the clock enters here")]
fn unix_ms_now() -> i64 {
    let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(unix.as_millis()).unwrap_or(i64::MAX)
}
