//! Devices: each sends 50-byte BKV heartbeats and reads 28-byte replies. What else the gateway writes (a new device is asked
//! for its sockets) is read and not answered.
//!
//! Two ways to load a server. **Closed loop**: a number of heartbeats is outstanding, the next one is sent when a reply has
//! come; it shows what a server can do at most. **Open loop**: heartbeats leave at their times whatever becomes of the ones
//! before, and latency counts from the time a heartbeat was due; it shows what a server does at a given rate.

use std::{
    collections::VecDeque,
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr},
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use hdrhistogram::Histogram;
use mio::{Events, Interest, Poll, Token, net::TcpStream};
use socket2::{Domain, Socket, Type};

pub(crate) const FRAME_LEN: usize = 50;
pub(crate) const REPLY_LEN: usize = 28;
/// Devices per source address, so that no address runs out of ports.
const PER_ADDRESS: usize = 250;
const REPLY_DEADLINE: Duration = Duration::from_secs(10);

struct Device {
    stream: TcpStream,
    frame: [u8; FRAME_LEN],
    /// Start of a frame whose end has not come.
    partial: Vec<u8>,
    /// Open loop: when the unanswered heartbeats were due, µs since the start.
    due_us: VecDeque<u64>,
}

impl Device {
    /// Takes one whole frame off what has come; whether it is the reply to a heartbeat.
    fn take_frame(&mut self) -> Option<bool> {
        let [_, _, l1, l0, c1, c0, ..] = self.partial[..] else { return None };
        let len = usize::from(u16::from_be_bytes([l1, l0])) + 4;
        if self.partial.len() < len {
            return None;
        }
        self.partial.drain(..len);
        Some([c1, c0] == [0, 0] && len == REPLY_LEN)
    }
}

/// Connected devices.
pub(crate) struct Load {
    poll: Poll,
    events: Events,
    devices: Vec<Device>,
    /// Closed loop: devices without a heartbeat outstanding, the one that waited longest first.
    idle: VecDeque<usize>,
    /// Devices whose reply has just come.
    replied: Vec<usize>,
}

/// What came of a closed loop.
pub(crate) struct Run {
    pub(crate) answered: usize,
    pub(crate) took: Duration,
}

/// When a closed loop sends no more.
#[derive(Clone, Copy)]
pub(crate) enum Until {
    Messages(usize),
    Elapsed(Duration),
}

impl Load {
    /// Connects `count` devices from 127.1.0.1 upwards.
    pub(crate) fn connect(port: u16, count: usize) -> anyhow::Result<Self> {
        let poll = Poll::new()?;
        let server = SocketAddr::from(([127, 0, 0, 1], port));
        let mut devices = Vec::with_capacity(count);
        for index in 0..count {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
            let source = u32::from(Ipv4Addr::new(127, 1, 0, 1)) + (index / PER_ADDRESS) as u32;
            socket.bind(&SocketAddr::from((Ipv4Addr::from(source), 0)).into())?;
            socket.connect(&server.into()).with_context(|| format!("device {index}"))?;
            socket.set_tcp_nodelay(true)?;
            socket.set_nonblocking(true)?;
            let mut stream = TcpStream::from_std(socket.into());
            poll.registry().register(&mut stream, Token(index), Interest::READABLE)?;
            devices.push(Device { stream, frame: heartbeat(index), partial: Vec::new(), due_us: VecDeque::new() });
        }
        let events = Events::with_capacity(1024);
        Ok(Self { poll, events, devices, idle: (0..count).collect(), replied: Vec::new() })
    }

    /// Closed loop: sends heartbeats, `window` outstanding at a time, and waits for all replies.
    pub(crate) fn run(&mut self, until: Until, window: usize) -> anyhow::Result<Run> {
        let (mut sent, mut answered) = (0, 0);
        let start = now();
        let mut ends = false;
        loop {
            ends |= match until {
                Until::Messages(messages) => sent >= messages,
                Until::Elapsed(span) => start.elapsed() >= span,
            };
            while !ends && sent - answered < window {
                let Some(index) = self.idle.pop_front() else { break };
                let Device { stream, frame, .. } = &mut self.devices[index];
                stream.write_all(frame)?;
                sent += 1;
                ends = matches!(until, Until::Messages(messages) if sent >= messages);
            }
            if answered == sent {
                return Ok(Run { answered, took: start.elapsed() });
            }
            let came = self.receive(Some(REPLY_DEADLINE))?;
            ensure!(came, "{} replies are missing", sent - answered);
            answered += self.replied.len();
            self.idle.extend(self.replied.drain(..));
        }
    }

    /// Open loop: sends `per_s` heartbeats a second for `span`, from one device after the other, and waits for all replies.
    /// Gives the latency of each, µs. Waits busily: a timer of milliseconds would be what is measured.
    pub(crate) fn offer(&mut self, per_s: u32, span: Duration) -> anyhow::Result<Histogram<u64>> {
        let mut latency_us = Histogram::new(3)?;
        let messages = (f64::from(per_s) * span.as_secs_f64()) as usize;
        let start = now();
        let us = || u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX);
        let (mut sent, mut answered, mut last_reply_us) = (0, 0, 0);
        while answered < messages {
            while sent < messages {
                let due_us = sent as u64 * 1_000_000 / u64::from(per_s);
                if us() < due_us {
                    break;
                }
                let index = sent % self.devices.len();
                let device = &mut self.devices[index];
                device.stream.write_all(&device.frame).with_context(|| format!("device {index} takes no more"))?;
                device.due_us.push_back(due_us);
                sent += 1;
            }
            self.receive(Some(Duration::ZERO))?;
            let came_us = us();
            for index in self.replied.drain(..) {
                let due_us = self.devices[index].due_us.pop_front().context("a reply that nobody waits for")?;
                latency_us.record((came_us - due_us).max(1))?;
                answered += 1;
                last_reply_us = came_us;
            }
            let silent = sent == messages && came_us.saturating_sub(last_reply_us) > REPLY_DEADLINE.as_micros() as u64;
            ensure!(!silent, "{} replies are missing", messages - answered);
        }
        Ok(latency_us)
    }

    /// Reads what has come and notes whose replies it was; `false`: nothing came in time.
    fn receive(&mut self, patience: Option<Duration>) -> anyhow::Result<bool> {
        let mut buffer = [0; 4096];
        self.poll.poll(&mut self.events, patience)?;
        for event in &self.events {
            let index = event.token().0;
            let device = &mut self.devices[index];
            let count = device.stream.read(&mut buffer).with_context(|| format!("device {index}"))?;
            ensure!(count > 0, "the server closed device {index}");
            device.partial.extend_from_slice(&buffer[..count]);
            while let Some(reply) = device.take_frame() {
                if reply {
                    self.replied.push(index);
                }
            }
        }
        Ok(!self.events.is_empty())
    }
}

#[expect(clippy::disallowed_methods, reason = "the clock enters here")]
pub(crate) fn now() -> Instant {
    Instant::now()
}

/// The heartbeat of one device: magic, length, command, sequence, direction, gateway id, SIM number, firmware, signal, sum, tail.
fn heartbeat(device: usize) -> [u8; FRAME_LEN] {
    let mut frame = [b'0'; FRAME_LEN];
    frame[..11].copy_from_slice(&[0xFC, 0xFE, 0x00, 0x2E, 0, 0, 0, 0, 0, 0, 0x01]);
    let digits = format!("861000{device:08}");
    for (byte, pair) in frame[11..18].iter_mut().zip(digits.as_bytes().chunks(2)) {
        *byte = (pair[0] - b'0') << 4 | (pair[1] - b'0');
    }
    frame[18..38].copy_from_slice(format!("898604{device:014}").as_bytes());
    frame[38..46].copy_from_slice(b"1.0.0\0\0\0");
    frame[46] = 31;
    frame[47] = frame[2..47].iter().fold(0, |sum: u8, byte| sum.wrapping_add(*byte));
    frame[48..].copy_from_slice(&[0xFC, 0xEE]);
    frame
}
