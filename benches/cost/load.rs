//! Devices: each sends a 50-byte BKV heartbeat and waits for its 28-byte reply before it sends the next. What else the gateway
//! writes (a new device is asked for its sockets) is read and not answered.

use std::{
    collections::VecDeque,
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr},
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
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
    devices: Vec<Device>,
    /// Devices without a heartbeat outstanding, the one that waited longest first.
    idle: VecDeque<usize>,
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
            devices.push(Device { stream, frame: heartbeat(index), partial: Vec::new() });
        }
        Ok(Self { poll, devices, idle: (0..count).collect() })
    }

    /// Sends `messages` heartbeats, `window` outstanding at a time, and waits for all replies.
    pub(crate) fn run(&mut self, messages: usize, window: usize) -> anyhow::Result<Duration> {
        let mut events = Events::with_capacity(1024);
        let mut buffer = [0; 4096];
        let (mut sent, mut answered) = (0, 0);
        let start = now();
        while answered < messages {
            while sent < messages && sent - answered < window {
                let Some(index) = self.idle.pop_front() else { break };
                let Device { stream, frame, .. } = &mut self.devices[index];
                stream.write_all(frame)?;
                sent += 1;
            }
            self.poll.poll(&mut events, Some(REPLY_DEADLINE))?;
            ensure!(!events.is_empty(), "{} replies are missing", sent - answered);
            for event in &events {
                let index = event.token().0;
                let device = &mut self.devices[index];
                let count = device.stream.read(&mut buffer).with_context(|| format!("device {index}"))?;
                ensure!(count > 0, "the server closed device {index}");
                device.partial.extend_from_slice(&buffer[..count]);
                while let Some(reply) = device.take_frame() {
                    if reply {
                        answered += 1;
                        self.idle.push_back(index);
                    }
                }
            }
        }
        Ok(now() - start)
    }
}

#[expect(clippy::disallowed_methods, reason = "the clock enters here")]
fn now() -> Instant {
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
