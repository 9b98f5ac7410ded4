//! The HTTP side: what third parties and operators talk to.
//!
//! ```text
//! client ──TCP──> guard ──private Unix socket──> tiny_http ──> worker ──> handler ──> Responder, now or later
//!                   └─ local routes: health, metrics, memory reads, answered on the guard's own thread
//! ```
//!
//! - [`guard`] faces the network alone. Every wait in it has a deadline, every buffer a bound, every refusal a counter.
//! - [`server`] runs tiny_http behind it with a few worker threads.
//! - [`message`] holds the request and response the two and the handlers share.
//! - [`route`] is the table of paths; [`auth`] decides who may call them, [`rate`] how often.
//! - [`live`] says what is known of a device, here or on another instance.
//! - [`handlers`] do what the paths stand for; [`overload`] refuses commands while too many wait.
//! - [`openapi`] describes all of it, for machines and on a page.
//! - [`envelope`] and [`error`] are the one shape of every JSON answer.
//!
//! No handler waits for a device or for the store: it hands the request on together with its
//! [`Responder`](server::Responder) and returns.

pub mod auth;
pub mod envelope;
pub mod error;
pub mod guard;
pub mod handlers;
pub mod idempotency;
pub mod live;
pub mod message;
pub mod openapi;
pub mod overload;
pub mod rate;
pub mod route;
pub mod server;
