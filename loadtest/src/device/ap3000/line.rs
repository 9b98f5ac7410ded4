//! The frames of one physical id: numbering, bytes to send, and replies to repeat.

use std::collections::VecDeque;

use chargegate::protocol::ap3000::encode::{self, Header};
use chargegate::protocol::ap3000::wire::Layout;
use chargegate::protocol::ap3000::{Frame, PhyId};

use super::{Events, Exchange, NEVER, Request, Waiting};
use crate::device::Event;

/// Commands whose reply is remembered. The server resends once, so the last few are enough.
const REPLIES_MAX: usize = 4;

#[derive(Debug)]
pub(super) struct Line {
    pub(super) magic: [u8; 3],
    pub(super) phy_id: PhyId,
    next_msg_id: u16,
    pub(super) out: Vec<u8>,
    pub(super) events: Events,
    pub(super) exchanges: [Exchange; Request::COUNT],
    replies: VecDeque<Remembered>,
    pub(super) last_traffic_us: u64,
}

#[derive(Debug, Default)]
struct Remembered {
    command: u8,
    msg_id: u16,
    bytes: Vec<u8>,
}

impl Line {
    pub(super) fn new(magic: [u8; 3], phy_id: PhyId) -> Self {
        Self {
            magic,
            phy_id,
            next_msg_id: 1,
            out: Vec::new(),
            events: Events::default(),
            exchanges: [Exchange::IDLE; Request::COUNT],
            replies: VecDeque::new(),
            last_traffic_us: 0,
        }
    }

    /// The header of a new frame of ours.
    pub(super) fn header(&mut self, now_us: u64) -> Header {
        let msg_id = self.next_msg_id;
        self.next_msg_id = msg_id.wrapping_add(1);
        self.again(now_us, msg_id)
    }

    /// The header of a frame of ours that goes out again.
    pub(super) const fn again(&mut self, now_us: u64, msg_id: u16) -> Header {
        self.last_traffic_us = now_us;
        Header { magic: self.magic, phy_id: self.phy_id, msg_id }
    }

    pub(super) fn exchange(&mut self, request: Request) -> &mut Exchange {
        &mut self.exchanges[request.index()]
    }

    /// Notes that a request went out and when it is due again.
    pub(super) fn sent(&mut self, now_us: u64, request: Request, msg_id: u16, again_us: u64) {
        let waiting = Some(Waiting { msg_id, sent_us: now_us });
        *self.exchange(request) = Exchange { due_us: now_us.saturating_add(again_us), waiting };
        self.events.push(Event::Sent(request));
    }

    /// Stops waiting for the last copy of a request; false if there was none.
    pub(super) fn give_up(&mut self, request: Request) -> bool {
        let waited = self.exchange(request).waiting.take().is_some();
        if waited {
            self.events.push(Event::Unanswered(request));
        }
        waited
    }

    /// Takes the answer to a request with this message id, or with `other_id`; false if none waits for it.
    pub(super) fn answered(&mut self, now_us: u64, request: Request, msg_id: u16, other_id: Option<u16>) -> bool {
        let exchange = &mut self.exchanges[request.index()];
        let late = other_id == Some(msg_id);
        let Some(waiting) = exchange.waiting.filter(|waiting| waiting.msg_id == msg_id || late) else { return false };
        exchange.waiting = None;
        self.events.push(Event::Answered(request, now_us.saturating_sub(waiting.sent_us)));
        true
    }

    /// The next time a request is due.
    pub(super) fn due_us(&self) -> u64 {
        self.exchanges.iter().map(|exchange| exchange.due_us).min().unwrap_or(NEVER)
    }

    /// Writes a reply, or a frame without an answer. What a device says always fits; a text of another's making that does
    /// not is not sent.
    pub(super) fn write<'a>(&mut self, header: &Header, command: u8, body: &impl Layout<'a>) {
        if let Err(error) = encode::body(&mut self.out, header, command, body) {
            log::warn!("{error}");
        }
    }

    pub(super) fn result(&mut self, header: &Header, command: u8, result: u8) {
        encode::result_reply(&mut self.out, header, command, result);
    }

    /// Repeats the reply to a command that came before.
    pub(super) fn repeat(&mut self, frame: &Frame<'_>) -> bool {
        let is_this = |reply: &&Remembered| reply.command == frame.command && reply.msg_id == frame.msg_id;
        let Some(known) = self.replies.iter().find(is_this) else { return false };
        self.out.extend_from_slice(&known.bytes);
        true
    }

    /// Keeps the reply that was written from `start` on, for when the command comes again.
    pub(super) fn remember(&mut self, frame: &Frame<'_>, start: usize) {
        let reply = self.out.get(start..).unwrap_or_default();
        if reply.is_empty() || frame.command == 0x81 {
            return;
        }
        let oldest = if self.replies.len() < REPLIES_MAX { None } else { self.replies.pop_front() };
        let Remembered { mut bytes, .. } = oldest.unwrap_or_default();
        bytes.clear();
        bytes.extend_from_slice(reply);
        self.replies.push_back(Remembered { command: frame.command, msg_id: frame.msg_id, bytes });
    }

    /// The connection is gone: nothing is sent into it, and no answer comes.
    pub(super) fn lost(&mut self) {
        self.out.clear();
        for request in Request::ALL {
            self.give_up(request);
        }
    }

    /// Power was gone: numbering and memory of commands begin anew.
    pub(super) fn power_cycled(&mut self) {
        self.next_msg_id = 1;
        self.replies.clear();
    }
}
