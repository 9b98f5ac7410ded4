//! Cards held to the reader.
//!
//! ```text
//! swipe ─> 0x02 ─ 15 s without an answer ─> 0x02 once more, same message id ─ 15 s ─> unanswered
//!          answered "normal" for a port ─> the next 0x82 for it within 15 s is the card's charge
//! ```
//!
//! Port FF asks for the balance only. An answer alone starts nothing.

use chargegate::protocol::ap3000::body::{CardReply, CardSwipe};
use chargegate::protocol::ap3000::codes::AccountState;
use chargegate::protocol::ap3000::encode;
use chargegate::protocol::ap3000::wire::{Extra, LongCard, Raw};

use super::{Ap3000Device, NEVER, REPLY_TIMEOUT_US, Request};
use crate::device::ledger::CardNumber;

/// Port of a swipe that only asks for the balance.
pub const BALANCE_ONLY: u8 = 0xff;

/// A card.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Card {
    /// Its UID; the printed number is the big-endian value.
    pub id: [u8; 4],
    /// 0 old card, 1 new card, 2 balance card, 3 UID only, 4 social-security card.
    pub card_type: u8,
    /// Its number, if that is not the UID.
    pub long: Option<[u8; 16]>,
}

impl Card {
    /// An old card, whose number is its UID.
    pub const fn new(id: [u8; 4]) -> Self {
        Self { id, card_type: 0, long: None }
    }

    /// A social-security card with this number.
    pub const fn long(number: [u8; 16]) -> Self {
        Self { id: [0; 4], card_type: 4, long: Some(number) }
    }

    pub(super) fn number(&self) -> CardNumber {
        self.long.map_or(CardNumber::Uid(self.id), CardNumber::Long)
    }
}

/// A card that was swiped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Swipe {
    /// Which.
    pub card: Card,
    /// At which port, counted from 0; [`BALANCE_ONLY`] for none.
    pub port: u8,
    /// How it went on.
    pub state: SwipeState,
}

/// How a swipe went on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SwipeState {
    /// No answer yet.
    Asked,
    /// The server's answer; what the device says to the card holder.
    Answered(CardReply<'static>),
    /// Answered, and a 0x82 started the charge.
    Charging(CardReply<'static>),
    /// No answer to two copies.
    Unanswered,
}

/// The reader's last swipe.
#[derive(Debug)]
pub(super) struct Reader {
    swipe: Swipe,
    msg_id: u16,
    copies: u8,
    /// Until when a 0x82 belongs to the card.
    start_until_us: u64,
}

impl Ap3000Device {
    /// Holds a card to the reader for a port (counted from 0; [`BALANCE_ONLY`] to hear the balance). False if nothing is
    /// sent, because there is no connection or the answer to another swipe is awaited.
    pub fn swipe(&mut self, now_us: u64, card: &Card, port: u8) -> bool {
        let busy = self.reader.as_ref().is_some_and(|reader| reader.swipe.state == SwipeState::Asked);
        if !self.connected || busy {
            return false;
        }
        let msg_id = self.line.header(now_us).msg_id;
        let swipe = Swipe { card: *card, port, state: SwipeState::Asked };
        self.reader = Some(Box::new(Reader { swipe, msg_id, copies: 0, start_until_us: 0 }));
        self.send_swipe(now_us);
        true
    }

    /// The last card that was swiped, and how it went on.
    pub fn last_swipe(&self) -> Option<&Swipe> {
        self.reader.as_ref().map(|reader| &reader.swipe)
    }

    fn send_swipe(&mut self, now_us: u64) {
        let timestamp = self.unix_s(now_us);
        let Some(reader) = &mut self.reader else { return };
        reader.copies += 1;
        let Swipe { card, port, .. } = &reader.swipe;
        let swipe = CardSwipe {
            card_id: Raw(card.id),
            card_type: card.card_type,
            port: *port,
            card_balance: Some(0),
            timestamp: Some(timestamp),
            long_card: card.long.as_ref().and_then(|number| LongCard::new(number)),
            extra: Extra::NONE,
        };
        let header = self.line.again(now_us, reader.msg_id);
        encode::card_swipe(&mut self.line.out, &header, &swipe);
        self.line.sent(now_us, Request::Card, header.msg_id, REPLY_TIMEOUT_US);
    }

    /// No answer came in time.
    pub(super) fn swipe_timeout(&mut self, now_us: u64) {
        self.line.exchange(Request::Card).due_us = NEVER;
        if !self.line.give_up(Request::Card) {
            return;
        }
        if self.reader.as_ref().is_some_and(|reader| reader.copies < 2) {
            self.send_swipe(now_us);
        } else {
            self.swipe_lost();
        }
    }

    /// Nobody will answer the swipe any more.
    pub(super) fn swipe_lost(&mut self) {
        if let Some(reader) = &mut self.reader
            && reader.swipe.state == SwipeState::Asked
        {
            reader.swipe.state = SwipeState::Unanswered;
        }
    }

    /// 0x02 down.
    pub(super) fn handle_card_reply(&mut self, now_us: u64, msg_id: u16, reply: &CardReply<'_>) {
        if !self.line.answered(now_us, Request::Card, msg_id, None) {
            return;
        }
        self.line.exchange(Request::Card).due_us = NEVER;
        let Some(reader) = &mut self.reader else { return };
        let swipe = &mut reader.swipe;
        let reply = CardReply { extra: Extra::NONE, ..*reply };
        swipe.state = SwipeState::Answered(reply);
        // What is copied must be: another card's or port's answer starts nothing.
        let ours = reply.card_id == Raw(swipe.card.id) && reply.port == swipe.port;
        if ours && reply.account_state == AccountState::NORMAL && swipe.port != BALANCE_ONLY {
            reader.start_until_us = now_us.saturating_add(REPLY_TIMEOUT_US);
        }
    }

    /// The card whose charge a start on `port` is.
    pub(super) fn card_of_start(&mut self, now_us: u64, port: u8) -> Option<CardNumber> {
        let reader = self.reader.as_mut()?;
        let SwipeState::Answered(reply) = reader.swipe.state else { return None };
        if reader.swipe.port != port || now_us >= reader.start_until_us {
            return None;
        }
        reader.swipe.state = SwipeState::Charging(reply);
        Some(reader.swipe.card.number())
    }
}
