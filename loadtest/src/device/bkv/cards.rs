//! Cards held to a socket.
//!
//! ```text
//! swipe ─> 0B with a business number ─ 15 s ─> unanswered
//!          0B order ─> 0F under its sequence, charge on; refused ─> nothing
//! end ─> 0C
//! ```
//!
//! The guide gives no time after which a device gives up, nor a repetition; the reader waits as long as other replies
//! take. A balance (1A) is asked for on demand.

use chargegate::protocol::Hex;
use chargegate::protocol::bkv::body::{BalanceQuery, BalanceReply, CardOrder, CardSwipe, HoleResult};
use chargegate::protocol::bkv::command::sub;
use chargegate::protocol::bkv::{HoleStatus, device};

use super::charging::{Kind, Levels, Order};
use super::{BkvDevice, NEVER, Request, SECOND_US};
use crate::device::Event;

const ORDER_TIMEOUT_US: u64 = 15 * SECOND_US;

/// A card that was swiped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Swipe {
    /// Its printed number in BCD.
    pub card: [u8; 6],
    /// At which socket.
    pub socket: u8,
    /// At which hole.
    pub hole: u8,
    /// The order's number, chosen by the device.
    pub business_no: u16,
    /// How it went on.
    pub state: SwipeState,
    pub(super) sent_us: u64,
}

/// How a swipe went on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SwipeState {
    /// No order yet.
    Asked,
    /// The server refused the card.
    Refused,
    /// The order was confirmed, the charge began.
    Charging,
    /// The order could not be carried out, and was confirmed as failed.
    Failed,
    /// No order came.
    Unanswered,
}

impl BkvDevice {
    /// Holds a card (its printed number in BCD) to a hole. False if nothing is sent: there is no connection, no such hole,
    /// or the hole waits for another card's order.
    pub fn swipe(&mut self, now_us: u64, card: [u8; 6], socket: u8, hole: u8) -> bool {
        let busy = self.last_swipe(socket, hole).is_some_and(|swipe| swipe.state == SwipeState::Asked);
        if !self.connected || busy || self.hole_mut(socket, hole).is_none() {
            return false;
        }
        let business_no = self.take_business_no();
        self.swipes.retain(|swipe| (swipe.socket, swipe.hole) != (socket, hole));
        self.swipes.push(Swipe { card, socket, hole, business_no, state: SwipeState::Asked, sent_us: now_us });
        let body = CardSwipe {
            socket,
            hole,
            business_no,
            // As in the guide's example, before any order.
            status: HoleStatus(0x90),
            card: Hex(card),
            offline_card_data: Hex([0; 20]),
        };
        device::card_swipe(&mut self.out, self.gateway_id, &body);
        self.events.push(Event::Sent(Request::Card));
        true
    }

    /// The last card swiped at a hole, and how it went on.
    pub fn last_swipe(&self, socket: u8, hole: u8) -> Option<&Swipe> {
        self.swipes.iter().find(|swipe| (swipe.socket, swipe.hole) == (socket, hole))
    }

    /// Asks for the balance of a card. False without a connection.
    pub fn ask_balance(&mut self, now_us: u64, card: [u8; 6], socket: u8, hole: u8) -> bool {
        if self.connected {
            let query = BalanceQuery { socket, hole, card: Hex(card) };
            device::balance_query(&mut self.out, self.gateway_id, &query);
            self.sent(now_us, Request::Balance, NEVER);
        }
        self.connected
    }

    /// Card and balance in 0.01 yuan of the last answer.
    pub const fn last_balance(&self) -> Option<([u8; 6], u32)> {
        self.balance
    }

    pub(super) fn handle_balance(&mut self, now_us: u64, reply: &BalanceReply) {
        if self.answered(now_us, Request::Balance) {
            self.balance = Some((reply.query.card.0, reply.balance_cent));
        }
    }

    /// 0B down.
    pub(super) fn handle_card_order(&mut self, now_us: u64, sequence: u32, order: &CardOrder<'_>) {
        let at = |swipe: &&mut Swipe| {
            (swipe.socket, swipe.hole, swipe.business_no) == (order.socket, order.hole, order.business_no)
        };
        let Some(swipe) = self.swipes.iter_mut().find(at) else {
            // Nobody swiped.
            return self.confirm(sequence, order, false);
        };
        match swipe.state {
            SwipeState::Asked => {}
            SwipeState::Charging => return self.confirm(sequence, order, true),
            SwipeState::Refused => return,
            SwipeState::Failed | SwipeState::Unanswered => return self.confirm(sequence, order, false),
        }
        self.events.push(Event::Answered(Request::Card, now_us.saturating_sub(swipe.sent_us)));
        if order.switch == 0 {
            swipe.state = SwipeState::Refused;
            return;
        }
        let card = swipe.card;
        let ok = self.begin_card(now_us, card, order);
        if let Some(swipe) = self.swipes.iter_mut().find(at) {
            swipe.state = if ok { SwipeState::Charging } else { SwipeState::Failed };
        }
        self.confirm(sequence, order, ok);
    }

    fn begin_card(&mut self, now_us: u64, card: [u8; 6], order: &CardOrder<'_>) -> bool {
        if self.faults.is_refused(u16::from(sub::CARD)) {
            return false;
        }
        let (minutes, energy_wh, kind) = match (order.mode, &order.tariff) {
            (CardOrder::TIME, _) => {
                let time = u32::from(order.time);
                (Some(if self.options.card_time_in_seconds { time.div_ceil(60) } else { time }), None, Kind::Plain)
            }
            (CardOrder::ENERGY, _) => (None, Some(order.energy_wh), Kind::Plain),
            (CardOrder::POWER, Some(tariff)) => (None, None, Kind::Power(Levels::of(tariff))),
            _ => return false,
        };
        let limits = self.limits(order.socket, minutes, energy_wh);
        let order_of_card = Order { kind, card: Some((card, order.mode)) };
        self.begin(now_us, (order.socket, order.hole), order.business_no, limits, order_of_card)
    }

    fn confirm(&mut self, sequence: u32, order: &CardOrder<'_>, ok: bool) {
        let confirm = HoleResult { socket: order.socket, hole: order.hole, result: u8::from(ok) };
        device::card_confirm(&mut self.out, self.gateway_id, sequence, &confirm);
    }

    /// When the next swipe is given up.
    pub(super) fn swipes_due_us(&self) -> u64 {
        let asked = self.swipes.iter().filter(|swipe| swipe.state == SwipeState::Asked);
        asked.map(|swipe| swipe.sent_us.saturating_add(ORDER_TIMEOUT_US)).min().unwrap_or(NEVER)
    }

    /// Gives up the swipes from `before_us` minus the timeout and older.
    pub(super) fn give_up_swipes(&mut self, before_us: u64) {
        for swipe in &mut self.swipes {
            if swipe.state == SwipeState::Asked && swipe.sent_us.saturating_add(ORDER_TIMEOUT_US) <= before_us {
                swipe.state = SwipeState::Unanswered;
                self.events.push(Event::Unanswered(Request::Card));
            }
        }
    }
}
