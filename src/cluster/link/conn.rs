//! A connection as a job sees it: all answers of the job together have a deadline, and after a failure there are none.
//!
//! The client library waits anew for each reply of a pipeline, also after one did not come: a server that hangs would hold a
//! pipeline of a thousand commands for a thousand times the timeout.

use std::io;
use std::time::{Duration, Instant};

use redis::{Connection, ConnectionLike, RedisError, RedisResult, Value};

use super::{LinkError, now, set_timeout};

/// What `work` of a job talks to: commands, pipelines and scripts of the `redis` crate take it as their connection.
pub struct Conn {
    inner: Connection,
    deadline: Instant,
    broken: bool,
}

impl Conn {
    pub(super) fn new(inner: Connection) -> Self {
        Self { inner, deadline: now(), broken: false }
    }

    /// Gives the next job its time.
    pub(super) fn begin(&mut self, within: Duration) -> Result<(), LinkError> {
        self.deadline = now() + within;
        set_timeout(&self.inner, within)
    }

    /// Whether a request or an answer did not come through: nothing that follows could be told apart.
    pub(super) const fn is_broken(&self) -> bool {
        self.broken
    }

    fn send(&mut self, bytes: &[u8]) -> RedisResult<()> {
        self.check_time()?;
        let sent = self.inner.send_packed_command(bytes);
        self.broken |= sent.is_err();
        sent
    }

    fn receive(&mut self) -> RedisResult<Value> {
        loop {
            self.check_time()?;
            match self.inner.recv_response() {
                Ok(Value::Push { .. }) => {}
                Ok(value) => return Ok(value),
                Err(error) => {
                    self.broken = true;
                    return Err(error);
                }
            }
        }
    }

    fn check_time(&mut self) -> RedisResult<()> {
        if self.broken {
            return Err(io::Error::new(io::ErrorKind::NotConnected, "the connection failed before").into());
        }
        if now() > self.deadline {
            // Answers may still be on their way.
            self.broken = true;
            return Err(io::Error::from(io::ErrorKind::TimedOut).into());
        }
        Ok(())
    }
}

impl ConnectionLike for Conn {
    fn req_packed_command(&mut self, cmd: &[u8]) -> RedisResult<Value> {
        self.send(cmd)?;
        self.receive()
    }

    fn req_packed_commands(&mut self, cmd: &[u8], offset: usize, count: usize) -> RedisResult<Vec<Value>> {
        self.send(cmd)?;
        let mut refused = None;
        let mut values = Vec::with_capacity(count);
        for index in 0..offset.saturating_add(count) {
            match self.receive()? {
                // Of a transaction's command; the rest of its answers must be read all the same.
                Value::ServerError(error) if index < offset => refused = refused.or(Some(RedisError::from(error))),
                value if index >= offset => values.push(value),
                _ => {}
            }
        }
        refused.map_or(Ok(values), Err)
    }

    fn get_db(&self) -> i64 {
        self.inner.get_db()
    }

    fn check_connection(&mut self) -> bool {
        redis::cmd("PING").exec(self).is_ok()
    }

    fn is_open(&self) -> bool {
        !self.broken && self.inner.is_open()
    }
}
