//! Devices in virtual time: a test plays the server and reads as a script.

mod activity;
mod ap3000;
mod ap3000_cards;
mod ap3000_commands;
mod ap3000_firmware;
mod ap3000_models;
mod bkv;
mod bkv_flows;
mod host;

use super::*;

/// A device, the time, and what it sent that was not looked at yet.
struct Wire<D> {
    device: D,
    now_us: u64,
    sent: Vec<u8>,
}

impl<D: Device> Wire<D> {
    fn connect(device: D) -> Self {
        let mut wire = Self { device, now_us: SECOND_US, sent: Vec::new() };
        wire.device.connected(wire.now_us);
        wire.device.poll_output(&mut wire.sent);
        wire
    }

    /// Lets time pass, handling every deadline at its time.
    fn pass(&mut self, us: u64) {
        let until_us = self.now_us + us;
        while let Some(due_us) = self.device.poll_timeout().filter(|due_us| *due_us <= until_us) {
            self.now_us = self.now_us.max(due_us);
            self.device.timeout(self.now_us);
            self.device.poll_output(&mut self.sent);
            assert!(
                self.device.poll_timeout().is_none_or(|next_us| next_us > self.now_us),
                "a deadline must be gone once it was handled"
            );
        }
        self.now_us = until_us;
    }

    fn receive(&mut self, bytes: &[u8]) {
        self.device.receive(self.now_us, bytes);
        self.device.poll_output(&mut self.sent);
    }

    fn reconnect(&mut self) {
        self.device.disconnected(self.now_us);
        self.sent.clear();
        self.device.connected(self.now_us);
        self.device.poll_output(&mut self.sent);
    }

    fn events(&mut self) -> Vec<Event> {
        std::iter::from_fn(|| self.device.poll_event()).collect()
    }
}

#[test]
fn a_tail_gives_the_same_items_however_the_stream_is_split() {
    // Items are a length byte and as many bytes.
    let stream = [2, 7, 7, 0, 3, 1, 2, 3, 1, 9];
    for first in 0..=stream.len() {
        for second in first..=stream.len() {
            let (mut tail, mut items) = (Tail::default(), Vec::new());
            for part in [&stream[..first], &stream[first..second], &stream[second..]] {
                tail.walk(part, |rest| {
                    let len = usize::from(rest[0]) + 1;
                    let item = rest.get(..len)?;
                    items.push(item.to_vec());
                    Some(len)
                });
            }
            assert_eq!(items, [&[2, 7, 7][..], &[0], &[3, 1, 2, 3], &[1, 9]], "cut at {first} and {second}");
            assert!(tail.0.is_empty());
        }
    }
}

#[test]
fn events_keep_the_newest() {
    let mut events = Events::default();
    for port in 0..1100 {
        events.push(Event::ChargeEnded(port));
    }
    assert_eq!(events.pop(), Some(Event::ChargeEnded(1100 - 1024)));
    assert_eq!(events.0.len(), EVENTS_MAX - 1);
}
