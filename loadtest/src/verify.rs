//! Whether what the server sends is what was asked for, frame by frame.
//!
//! A [`Checker`] sits at one connection, beside the device that uses it and knowing nothing of it: it reads the bytes of both
//! directions. Each request that is owed an answer is kept until the answer with its device, command and number comes. So the
//! latency of each one counts, also of those that the device has given up, and an answer to nothing is found.
//!
//! | protocol | an answer belongs to |
//! |---|---|
//! | AP3000 | the request with its device id, command and message id |
//! | BKV | the oldest request of its kind: reports carry no number |
//!
//! Records are sent again until they are acknowledged: the acknowledgement of one copy counts from the first, and answers to the
//! others may come or not.

use std::collections::VecDeque;

use chargegate::protocol::ap3000::{self, Item, Magics, PhyId, Reply};
use chargegate::protocol::bkv::{self, GatewayId, command};
use chargegate::protocol::{Direction, Step};

use crate::device::Tail;
use crate::measure::Metric;

/// Most requests of a connection that are waited for; the oldest is lost then.
const AWAITED_MAX: usize = 512;
/// Most devices behind a connection, and the host itself.
const IDS_MAX: usize = 64;

/// What a checker found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finding {
    /// An answer, this many microseconds after its request.
    Answered(Metric, u64),
    /// A command.
    Command,
    /// No frame, or a body that cannot be read.
    Unreadable,
    /// A frame for a device that does not speak here.
    WrongDevice(u32),
    /// An answer to a request that waits, under another number.
    WrongNumber(u32),
    /// An answer to nothing, or a frame that servers do not send.
    Unexpected(u32),
    /// A request whose answer did not come before too many others.
    Lost(Metric),
}

#[derive(Clone, Copy, Debug)]
enum Key {
    Ap3000 { phy_id: PhyId, command: u8, msg_id: u16 },
    Bkv { replies: &'static [(u16, Option<u16>)] },
}

#[derive(Clone, Copy, Debug)]
struct Awaited {
    key: Key,
    metric: Metric,
    since_us: u64,
    /// Whether the answer may fail to come.
    optional: bool,
}

/// What is spoken on a connection.
#[derive(Clone, Copy, Debug)]
enum Spoken {
    /// Not known before the first frame.
    Nothing,
    Ap3000,
    Bkv(GatewayId),
}

/// Watches one connection; see the module.
#[derive(Debug)]
pub struct Checker {
    spoken: Spoken,
    ids: Vec<PhyId>,
    awaited: VecDeque<Awaited>,
    tail: Tail,
}

impl Default for Checker {
    fn default() -> Self {
        Self { spoken: Spoken::Nothing, ids: Vec::new(), awaited: VecDeque::new(), tail: Tail::default() }
    }
}

impl Checker {
    /// The device sent these whole frames, which were due at this time.
    pub fn sent(&mut self, due_us: u64, bytes: &[u8], found: &mut impl FnMut(Finding)) {
        let mut rest = bytes;
        let is_bkv = bytes.starts_with(&[0xfc, 0xfe]);
        while !rest.is_empty() {
            let consumed = if is_bkv { self.sent_bkv(due_us, rest) } else { self.sent_ap3000(due_us, rest) };
            let Some(consumed) = consumed else { return };
            rest = rest.get(consumed.max(1)..).unwrap_or_default();
        }
        while self.awaited.len() > AWAITED_MAX {
            if let Some(oldest) = self.awaited.pop_front().filter(Awaited::is_owed) {
                found(Finding::Lost(oldest.metric));
            }
        }
    }

    fn sent_ap3000(&mut self, since_us: u64, rest: &[u8]) -> Option<usize> {
        let (item, consumed) = match ap3000::deframe(rest, &Magics::default()) {
            Step::Item { item, consumed } => (item, consumed),
            Step::Skip { consumed, .. } => return Some(consumed),
            Step::NeedMore => return None,
        };
        self.spoken = Spoken::Ap3000;
        if let Item::Frame(frame) = item
            && let Some(row) = ap3000::lookup(frame.command)
        {
            if !self.ids.contains(&frame.phy_id) && self.ids.len() < IDS_MAX {
                self.ids.push(frame.phy_id);
            }
            let (command, optional) = match row.reply {
                _ if row.request != Some(Direction::Up) => return Some(consumed),
                Reply::Mandatory => (frame.command, false),
                Reply::BestEffort => (frame.command, true),
                Reply::By(command) => (command, true),
                Reply::None => return Some(consumed),
            };
            let metric = match frame.command {
                0x01 | 0x21 => Metric::Heartbeat,
                0x20 => Metric::Registration,
                0x12 | 0x22 => Metric::Time,
                0x03 => Metric::Settlement,
                0x02 => Metric::Card,
                _ => Metric::Other,
            };
            let key = Key::Ap3000 { phy_id: frame.phy_id, command, msg_id: frame.msg_id };
            self.awaited.push_back(Awaited { key, metric, since_us, optional });
        }
        Some(consumed)
    }

    fn sent_bkv(&mut self, since_us: u64, rest: &[u8]) -> Option<usize> {
        let (frame, consumed) = match bkv::deframe(rest) {
            Step::Item { item, consumed } => (item, consumed),
            Step::Skip { consumed, .. } => return Some(consumed),
            Step::NeedMore => return None,
        };
        self.spoken = Spoken::Bkv(frame.gateway_id);
        if let Some(row) = command::lookup(frame.command, frame.sub())
            && row.starts == Direction::Up
            && !row.replies.is_empty()
        {
            use command::{packet_sub, sub};
            let metric = match (frame.command, frame.sub()) {
                (command::HEARTBEAT, _) => Metric::Heartbeat,
                (command::PACKET, Some(packet_sub::PUSH)) => Metric::StatusPush,
                (command::PACKET, Some(packet_sub::FEE_END)) => Metric::Settlement,
                (command::CONTROL, Some(number)) => match u8::try_from(number).unwrap_or_default() {
                    sub::CHARGE_END | sub::CARD_END | sub::POWER_END => Metric::Settlement,
                    sub::CARD => Metric::Card,
                    _ => Metric::Other,
                },
                _ => Metric::Other,
            };
            // The guide does not know 1013; a balance or card may be answered by the other one's frame.
            let optional = metric == Metric::Other;
            self.awaited.push_back(Awaited { key: Key::Bkv { replies: row.replies }, metric, since_us, optional });
        }
        Some(consumed)
    }

    /// The server sent these bytes, split anywhere.
    pub fn received(&mut self, now_us: u64, bytes: &[u8], found: &mut impl FnMut(Finding)) {
        let mut tail = std::mem::take(&mut self.tail);
        match self.spoken {
            Spoken::Ap3000 => tail.walk(bytes, |rest| match ap3000::deframe(rest, &Magics::default()) {
                Step::Item { item: Item::Frame(frame), consumed } => {
                    found(self.answer_ap3000(now_us, &frame));
                    Some(consumed)
                }
                // Only modules greet and say `link`.
                Step::Item { item: Item::Iccid(_) | Item::Link, consumed } | Step::Skip { consumed, .. } => {
                    found(Finding::Unreadable);
                    Some(consumed)
                }
                Step::NeedMore => None,
            }),
            Spoken::Bkv(gateway_id) => tail.walk(bytes, |rest| match bkv::deframe(rest) {
                Step::Item { item: frame, consumed } => {
                    found(self.answer_bkv(now_us, gateway_id, &frame));
                    Some(consumed)
                }
                Step::Skip { consumed, .. } => {
                    found(Finding::Unreadable);
                    Some(consumed)
                }
                Step::NeedMore => None,
            }),
            // A server that speaks first.
            Spoken::Nothing => found(Finding::Unexpected(0)),
        }
        self.tail = tail;
    }

    fn answer_ap3000(&mut self, now_us: u64, frame: &ap3000::Frame<'_>) -> Finding {
        let code = u32::from(frame.command);
        let Some(row) = ap3000::lookup(frame.command) else { return Finding::Unexpected(code) };
        if !self.ids.contains(&frame.phy_id) {
            return Finding::WrongDevice(code);
        }
        let is_kind = |awaited: &Awaited| matches!(awaited.key, Key::Ap3000 { phy_id, command, .. } if phy_id == frame.phy_id && command == frame.command);
        let is_it = |awaited: &Awaited| {
            matches!(awaited.key, Key::Ap3000 { msg_id, .. } if msg_id == frame.msg_id) && is_kind(awaited)
        };
        match self.awaited.iter().position(is_it) {
            Some(at) => {
                if ap3000::decode_body(frame, Direction::Down).is_err() {
                    return Finding::Unreadable;
                }
                self.take(now_us, at, is_kind)
            }
            None if row.request == Some(Direction::Down) => match ap3000::decode_body(frame, Direction::Down) {
                Ok(_) => Finding::Command,
                Err(_) => Finding::Unreadable,
            },
            None if self.awaited.iter().any(is_kind) => Finding::WrongNumber(code),
            None => Finding::Unexpected(code),
        }
    }

    fn answer_bkv(&mut self, now_us: u64, gateway_id: GatewayId, frame: &bkv::Frame<'_>) -> Finding {
        let (command, sub) = (frame.command, frame.sub());
        let code = u32::from(command) << 16 | u32::from(sub.unwrap_or_default());
        let Some(row) = command::lookup(command, sub).filter(|_| frame.direction == Direction::Down) else {
            return Finding::Unexpected(code);
        };
        if frame.gateway_id != gateway_id {
            return Finding::WrongDevice(code);
        }
        if bkv::decode_body(frame).is_err() {
            return Finding::Unreadable;
        }
        let is_it =
            |awaited: &Awaited| matches!(awaited.key, Key::Bkv { replies } if replies.contains(&(command, sub)));
        match self.awaited.iter().position(is_it) {
            Some(at) => self.take(now_us, at, is_it),
            None if row.starts == Direction::Down => Finding::Command,
            None => Finding::Unexpected(code),
        }
    }

    /// Takes the request that was answered. Records: from the first copy, and the others need no answer any more.
    fn take(&mut self, now_us: u64, at: usize, is_kind: impl Fn(&Awaited) -> bool) -> Finding {
        let Some(answered) = self.awaited.remove(at) else { return Finding::Unexpected(0) };
        let mut since_us = answered.since_us;
        if answered.metric == Metric::Settlement && !answered.optional {
            for copy in self.awaited.iter_mut().filter(|copy| is_kind(copy) && !copy.optional) {
                since_us = since_us.min(copy.since_us);
                copy.optional = true;
            }
        }
        if answered.metric == Metric::Settlement && answered.optional {
            return Finding::Command;
        }
        Finding::Answered(answered.metric, now_us.saturating_sub(since_us))
    }

    /// How many requests are owed an answer now.
    pub fn owed(&self) -> u32 {
        let owed = self.awaited.iter().filter(|awaited| awaited.is_owed());
        u32::try_from(owed.count()).unwrap_or(u32::MAX)
    }

    /// The connection is gone: what waits gets no answer. Gives how many were owed one; records come again.
    pub fn closed(&mut self) -> u32 {
        self.tail = Tail::default();
        let owed = self.owed();
        self.awaited.clear();
        owed
    }
}

impl Awaited {
    /// Records come again, and are counted where they are kept.
    fn is_owed(&self) -> bool {
        !self.optional && self.metric != Metric::Settlement
    }
}

#[cfg(test)]
mod tests {
    use chargegate::protocol::ap3000::encode;

    use super::*;
    use crate::device::{Ap3000Device, Behaviour, BkvDevice, Device};

    fn greeted(device: &mut impl Device, now_us: u64) -> (Checker, Vec<u8>) {
        let (mut checker, mut out) = (Checker::default(), Vec::new());
        device.connected(0);
        device.timeout(now_us);
        device.poll_output(&mut out);
        checker.sent(now_us, &out, &mut |finding| panic!("{finding:?}"));
        (checker, out)
    }

    fn found(checker: &mut Checker, now_us: u64, bytes: &[u8]) -> Vec<Finding> {
        let mut all = Vec::new();
        // Split in the middle of everything.
        for chunk in bytes.chunks(3) {
            checker.received(now_us, chunk, &mut |finding| all.push(finding));
        }
        all
    }

    fn header(out: &[u8], command: u8) -> encode::Header {
        let mut rest = out;
        while let Step::Item { item, consumed } = ap3000::deframe(rest, &Magics::default()) {
            match item {
                Item::Frame(frame) if frame.command == command => return frame.header(),
                _ => rest = &rest[consumed..],
            }
        }
        panic!("no {command:x}")
    }

    #[test]
    fn an_answer_counts_from_the_time_its_request_was_due() {
        let mut device = Ap3000Device::new(0, 2, Behaviour::default());
        let (mut checker, out) = greeted(&mut device, 0);
        let mut answer = Vec::new();
        encode::result_reply(&mut answer, &header(&out, 0x21), 0x21, 0);
        assert_eq!(found(&mut checker, 700, &answer), [Finding::Answered(Metric::Heartbeat, 700)]);
        assert_eq!(found(&mut checker, 800, &answer), [Finding::Unexpected(0x21)], "answered twice");
        assert_eq!(checker.closed(), 2, "registration and time");
        assert_eq!(checker.closed(), 0);
    }

    #[test]
    fn wrong_answers_are_found() {
        let mut device = Ap3000Device::new(0, 2, Behaviour::default());
        let (mut checker, out) = greeted(&mut device, 0);
        let own = header(&out, 0x20);
        let mut bytes = |header: encode::Header, command| {
            let mut bytes = Vec::new();
            encode::result_reply(&mut bytes, &header, command, 0);
            found(&mut checker, 1, &bytes)
        };
        assert_eq!(bytes(encode::Header { msg_id: 999, ..own }, 0x20), [Finding::WrongNumber(0x20)]);
        let other = crate::device::ap3000::phy_id(7);
        assert_eq!(bytes(encode::Header { phy_id: other, ..own }, 0x20), [Finding::WrongDevice(0x20)]);
        assert_eq!(bytes(own, 0x03), [Finding::Unexpected(0x03)]);
        assert_eq!(found(&mut checker, 1, b"no frame at all, but long enough").first(), Some(&Finding::Unreadable));
    }

    #[test]
    fn gateways_are_answered_in_turn() {
        let behaviour = Behaviour { heartbeat_us: 1_000_000, ..Behaviour::default() };
        let mut device = BkvDevice::new(0, 0, behaviour);
        let (mut checker, _) = greeted(&mut device, 2_000_000);
        let mut out = Vec::new();
        device.timeout(4_000_000);
        device.poll_output(&mut out);
        checker.sent(4_000_000, &out, &mut |finding| panic!("{finding:?}"));
        let mut answer = Vec::new();
        bkv::encode::heartbeat_reply(&mut answer, device.gateway_id(), 1_700_000_000);
        let twice = [answer.clone(), answer.clone()].concat();
        let expected = [3_000_000, 1_000_000].map(|us| Finding::Answered(Metric::Heartbeat, us));
        assert_eq!(found(&mut checker, 5_000_000, &twice), expected, "both, the older one first");
        assert!(matches!(found(&mut checker, 5_000_000, &answer)[..], [Finding::Unexpected(_)]));
    }
}
