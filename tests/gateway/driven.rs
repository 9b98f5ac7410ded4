//! Simulated devices at a gateway: each has a connection of its own, and a thread that carries its bytes and makes the connection
//! again whenever it is lost.
//!
//! A device's clock is the real one plus what a test lets pass at once ([`Driven::pass`]), so that a charge is as long as the test
//! looks at it, however slow the machine is. Likewise a device can be paused: nothing happens at it then, though its connection
//! stays as it is, until the test lets it go on.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    sync::Arc,
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use chargegate_loadtest::device::{Device, Event};
use parking_lot::{Condvar, Mutex, MutexGuard};

use super::{PATIENCE, now};

/// How late a device may be: it listens this long before it looks at its timers.
const LISTEN: Duration = Duration::from_millis(5);

/// A simulated device that is driven by a thread; a test asks and tells it meanwhile. Dropped, it hangs up.
pub(crate) struct Driven<D> {
    shared: Arc<Shared<D>>,
    thread: Option<JoinHandle<()>>,
}

struct Shared<D> {
    addr: SocketAddr,
    state: Mutex<State<D>>,
    /// Tells the thread that it may go on, or is to stop.
    changed: Condvar,
}

struct State<D> {
    device: D,
    began: Instant,
    passed: Duration,
    /// Commands of the gateway that it still carries out; at 0 it is paused. `None`: all.
    commands: Option<u32>,
    stops: bool,
}

impl<D: Device + Send + 'static> Driven<D> {
    /// Connects as soon as something listens.
    pub(crate) fn connect(addr: SocketAddr, device: D) -> Self {
        let state = State { device, began: now(), passed: Duration::ZERO, commands: None, stops: false };
        let shared = Arc::new(Shared { addr, state: Mutex::new(state), changed: Condvar::new() });
        let driver = Arc::clone(&shared);
        Self { shared, thread: Some(thread::spawn(move || driver.drive())) }
    }

    /// Asks or tells the device something; `act` is given the device's clock.
    pub(crate) fn with<T>(&self, act: impl FnOnce(&mut D, u64) -> T) -> T {
        let mut state = self.shared.state.lock();
        let now_us = state.now_us();
        act(&mut state.device, now_us)
    }

    /// Lets this much time pass at once at the device. Answers it waits for come too late then.
    pub(crate) fn pass(&self, time: Duration) {
        self.shared.state.lock().passed += time;
    }

    /// From now on the device neither reads nor writes, nor connects.
    pub(crate) fn pause(&self) {
        self.pause_after(0);
    }

    /// As [`Driven::pause`], after that many more commands of the gateway. The last one is carried out and not answered.
    pub(crate) fn pause_after(&self, commands: u32) {
        self.shared.state.lock().commands = Some(commands);
        self.shared.changed.notify_all();
    }

    pub(crate) fn is_paused(&self) -> bool {
        self.shared.state.lock().commands == Some(0)
    }

    pub(crate) fn resume(&self) {
        self.shared.state.lock().commands = None;
        self.shared.changed.notify_all();
    }
}

impl<D> Drop for Driven<D> {
    fn drop(&mut self) {
        self.shared.state.lock().stops = true;
        self.shared.changed.notify_all();
        let ended = self.thread.take().map_or(Ok(()), JoinHandle::join);
        assert!(ended.is_ok() || thread::panicking(), "the simulated device panicked");
    }
}

impl<D> State<D> {
    fn now_us(&self) -> u64 {
        let time = now().duration_since(self.began) + self.passed;
        u64::try_from(time.as_micros()).expect("the end of a u64 is far")
    }
}

impl<D: Device> State<D> {
    fn look_at_timers(&mut self) {
        let now_us = self.now_us();
        if self.device.poll_timeout().is_some_and(|at| at <= now_us) {
            self.device.timeout(now_us);
        }
        self.take_events();
    }

    fn take_events(&mut self) {
        while let Some(event) = self.device.poll_event() {
            if let (Event::Command, Some(commands)) = (event, &mut self.commands) {
                *commands = commands.saturating_sub(1);
            }
        }
    }
}

impl<D: Device> Shared<D> {
    /// The device, once it is not paused; `None` if it is to stop.
    fn unpaused(&self) -> Option<MutexGuard<'_, State<D>>> {
        let mut state = self.state.lock();
        self.changed.wait_while(&mut state, |state| state.commands == Some(0) && !state.stops);
        (!state.stops).then_some(state)
    }

    fn drive(&self) {
        while let Some(stream) = self.connection() {
            self.carry(stream);
            let mut state = self.state.lock();
            let now_us = state.now_us();
            state.device.disconnected(now_us);
        }
    }

    /// A new connection; `None` if it is to stop.
    fn connection(&self) -> Option<TcpStream> {
        loop {
            let mut state = self.unpaused()?;
            // Where nobody listens a connection may be made to itself, and then holds the port.
            let made = TcpStream::connect(self.addr).ok();
            let made = made.filter(|stream| stream.local_addr().is_ok_and(|own| own != self.addr));
            if let Some(stream) = made {
                let now_us = state.now_us();
                state.device.connected(now_us);
                return Some(stream);
            }
            // What was begun goes on without a connection.
            state.look_at_timers();
            self.changed.wait_for(&mut state, LISTEN);
        }
    }

    /// Carries bytes until the connection ends, whoever ends it and however.
    fn carry(&self, mut stream: TcpStream) {
        stream.set_read_timeout(Some(LISTEN)).expect("not zero");
        stream.set_write_timeout(Some(PATIENCE)).expect("not zero");
        let (mut out, mut buffer) = (Vec::new(), [0; 4096]);
        while let Some(mut state) = self.unpaused() {
            state.look_at_timers();
            out.clear();
            state.device.poll_output(&mut out);
            let closes = state.device.poll_close();
            drop(state);
            if stream.write_all(&out).is_err() || closes {
                return;
            }
            match stream.read(&mut buffer) {
                Ok(0) => return,
                Ok(len) => {
                    let Some(mut state) = self.unpaused() else { return };
                    let now_us = state.now_us();
                    state.device.receive(now_us, &buffer[..len]);
                    state.take_events();
                }
                Err(error) if is_quiet(error.kind()) => {}
                Err(_) => return,
            }
        }
    }
}

const fn is_quiet(error: ErrorKind) -> bool {
    matches!(error, ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted)
}
