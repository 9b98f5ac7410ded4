//! The guard: the only thread of the HTTP side that faces the network.
//!
//! tiny_http trusts its peer: one client can abort the process with the `Content-Length` of a body nobody reads, one failed `accept`
//! ends its listener, it has no timeouts, buffers heads without bound and makes a thread per connection. So it listens on
//! a private Unix socket, and its only peer is this thread, which passes on nothing but complete, checked requests,
//! one at a time per pooled connection, and opens those one after another: of several that come at once, tiny_http may leave
//! some without a thread.
//!
//! ```text
//!            ┌ local routes (memory only, answered here)
//! client ──> guard ──> pool of Unix connections ──> tiny_http ──> workers
//!            └ queue, when all of them are busy
//! ```
//!
//! Invariants:
//! - Every wait has a deadline, every buffer a bound (both in [`GuardConfig`]), every refusal a counter ([`Refusal`]).
//! - One request of a connection is under way at a time; until it is answered, nothing more is read from that socket.
//! - An idle connection holds no buffer.
//! - The server learns the client's address and the request id from two headers that only the guard sets.
//! - Health never queues: local routes run on this thread, so they must not block, lock for long, or touch the store.
//!
//! No TLS (a load balancer's work), no HTTP/2, no chunked bodies, no `CONNECT`.
//!
//! - `head` decides what is accepted as a request; `answer` writes what goes back.
//! - `client` and `upstream` are the two kinds of connection; `timer` holds their deadlines; `upload` writes the bodies that
//!   go to a file; `engine` is the loop.

mod answer;
mod client;
mod counters;
mod engine;
mod head;
mod timer;
mod upload;
mod upstream;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use mio::Waker;

pub use answer::LocalAnswer;
pub use counters::{GuardCounters, Refusal};
pub use head::{FORWARDED_HEADERS, Head};
pub use upload::UploadConfig;

use super::server::Gate;
use engine::Engine;

/// The header in which the server learns the client's address. The client's own copy never passes.
pub const CLIENT_IP_HEADER: &str = "X-Guard-Client-Ip";
/// The header in which the server learns the request id.
pub const REQUEST_ID_HEADER: &str = "X-Request-Id";

/// The header in which the server learns of a body that was written to a file: its name, SHA-256 in hex, and length.
pub const UPLOAD_HEADER: &str = "X-Guard-Upload";

/// Answers requests from memory on the guard's thread. It appends a body to the buffer and returns the rest of the answer, or
/// returns `None` and leaves the buffer alone, whereupon the request goes to the server. It must not block. Requests with a body are
/// offered before their body is read, and the connection is closed after a local answer to one.
pub type LocalRoutes = Box<dyn FnMut(&Head<'_>, &mut Vec<u8>) -> Option<LocalAnswer> + Send>;

/// Limits and deadlines of the guard.
#[derive(Clone, Debug)]
pub struct GuardConfig {
    /// Where to listen; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Connections in all. Each costs a descriptor and, idle, about 300 bytes.
    pub connections_max: usize,
    /// Connections of one IPv4 address or one IPv6 /64, the unit a single customer gets.
    pub connections_per_ip_max: usize,
    /// Bytes of a request's head.
    pub head_bytes_max: usize,
    /// Bytes of a request's body.
    pub body_bytes_max: usize,
    /// Bytes of an answer of the server, head included.
    pub answer_bytes_max: usize,
    /// Bytes of all bodies that are arriving or waiting and all answers that are not read, together.
    pub buffered_bytes_max: usize,
    /// From the first byte of a head (or from `accept`) to its last.
    pub head_timeout: Duration,
    /// From the end of the head to the end of the body.
    pub body_timeout: Duration,
    /// For a client to take a whole answer.
    pub write_timeout: Duration,
    /// Between two requests of a connection.
    pub idle_timeout: Duration,
    /// How long a closed connection's remaining bytes are read, so that the client gets its last answer.
    pub linger_timeout: Duration,
    /// Connections to the server, which has one thread for each; so many requests are with it at a time.
    pub upstream_connections: usize,
    /// Requests that may wait for one of them.
    pub queue_requests_max: usize,
    /// How long each may wait.
    pub queue_timeout: Duration,
    /// For the server to answer.
    pub upstream_timeout: Duration,
    /// Connections given up after `upstream_timeout` that may still wait for their late answer; beyond it, they are not replaced.
    pub draining_max: usize,
    /// How long to wait after a failed `accept` or a failed connection to the server.
    pub retry_pause: Duration,
    /// Bodies that go to a file. They have limits of their own.
    pub upload: Option<UploadConfig>,
}

impl GuardConfig {
    /// The limits an API of JSON requests needs.
    pub const fn new(listen: SocketAddr) -> Self {
        Self {
            listen,
            connections_max: 4_096,
            connections_per_ip_max: 1_024,
            head_bytes_max: 8 << 10,
            body_bytes_max: 64 << 10,
            answer_bytes_max: 4 << 20,
            buffered_bytes_max: 64 << 20,
            head_timeout: Duration::from_secs(5),
            body_timeout: Duration::from_secs(10),
            write_timeout: Duration::from_secs(5),
            idle_timeout: Duration::from_secs(60),
            linger_timeout: Duration::from_secs(1),
            upstream_connections: 32,
            queue_requests_max: 1_024,
            queue_timeout: Duration::from_secs(5),
            upstream_timeout: Duration::from_secs(15),
            draining_max: 64,
            retry_pause: Duration::from_millis(100),
            upload: None,
        }
    }
}

/// What the handle tells the thread: milliseconds it may take to stop, [`timer::NEVER`] before it was told.
#[derive(Debug)]
struct Control {
    stop_within_ms: AtomicU64,
}

/// A running guard. Dropping it stops it at once.
#[derive(Debug)]
pub struct GuardHandle {
    local_addr: SocketAddr,
    control: Arc<Control>,
    waker: Arc<Waker>,
    counters: Arc<GuardCounters>,
    thread: Option<JoinHandle<()>>,
}

/// Binds the address and starts the thread.
///
/// # Errors
/// The address cannot be bound, or the system refuses an epoll instance or a thread.
pub fn start(config: GuardConfig, gate: Arc<Gate>, local: LocalRoutes) -> io::Result<GuardHandle> {
    let control = Arc::new(Control { stop_within_ms: AtomicU64::new(timer::NEVER) });
    let counters = Arc::new(GuardCounters::default());
    let engine = Engine::new(config, gate, local, Arc::clone(&control), Arc::clone(&counters))?;
    let (local_addr, waker) = (engine.local_addr()?, engine.waker());
    let thread = std::thread::Builder::new().name("http-guard".to_owned()).spawn(move || engine.run())?;
    Ok(GuardHandle { local_addr, control, waker, counters, thread: Some(thread) })
}

impl GuardHandle {
    /// Where it listens, with the port that was taken.
    pub const fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    pub const fn counters(&self) -> &Arc<GuardCounters> {
        &self.counters
    }

    /// Whether the thread is there; the health check asks.
    pub fn is_running(&self) -> bool {
        self.thread.as_ref().is_some_and(|thread| !thread.is_finished())
    }

    /// Stops accepting, closes idle connections, and lets requests under way finish for at most `deadline`. May be called again with
    /// a shorter one.
    pub fn begin_shutdown(&self, deadline: Duration) {
        self.control.stop_within_ms.store(millis(deadline), Ordering::Release);
        if let Err(error) = self.waker.wake() {
            log::error!("http guard cannot be woken to stop: {error}");
        }
    }

    /// Waits for the end of the thread: at most the deadline given to [`GuardHandle::begin_shutdown`], which must come first.
    pub fn join(mut self) {
        self.join_thread();
    }

    fn join_thread(&mut self) {
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            log::error!("http guard ended by a panic");
        }
    }
}

impl Drop for GuardHandle {
    fn drop(&mut self) {
        if self.thread.is_some() {
            self.begin_shutdown(Duration::ZERO);
            self.join_thread();
        }
    }
}

/// Whole milliseconds, at least one for any time at all, and never [`timer::NEVER`].
fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX >> 1).min(u64::MAX >> 1)
}
