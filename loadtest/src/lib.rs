//! Device simulator and load generator for chargegate.
//!
//! - [`device`] the devices: state machines without I/O, which tests also drive in virtual time.
//! - [`engine`] the sockets: many devices on one thread.
//! - [`fleet`] what the engine's threads tell others about the devices; [`api`] charges their ports by REST.
//! - [`report`] the progress line and the summary; [`run`] puts it together.
//!
//! Only [`engine`] touches device sockets, only [`api`] the gateway's REST interface.

pub mod device;
