//! Cards at a device: a swipe waits for the store (or a third party), then it is answered on the wire.
//!
//! ```text
//! AP3000 02 ──▶ store ──▶ 02 reply ──▶ 0.5 s ──▶ 82          BKV/GN 0B ──▶ store ──▶ 0B order, a start command of its own
//!   port FF ──▶ store ──▶ 02 reply                                  1A ──▶ store ──▶ 1A reply
//! ```
//!
//! - A swipe that finds no answer in time gets none: the holder swipes again.
//! - The same AP3000 frame again gets the same reply, and no second order.
//! - A card on a port that already holds its order is told the same as at first, and its charge goes on: the vendor has no
//!   swipe that stops.
//! - A BKV/GN hole that another order holds is not answered: the refusal is a switch-off, and might reach the running charge.

use super::Device;
use crate::{
    gateway::{
        ConnId, Now,
        card::{CardMode, Rate},
        core::Cx,
        effects::CardAsk,
    },
    model::{CardNo, CardState, DeviceId, PortStatus, port_of_socket},
    protocol::{
        Direction,
        ap3000::{
            body::CardReply,
            codes::RateMode,
            encode as ap3000_encode,
            encode::Header,
            wire::{Extra, Raw},
        },
        bkv::{
            GatewayId,
            command::{CONTROL, sub},
            encode as bkv_encode,
            encode::CardTerms,
        },
    },
    store::{CardVerdict, Job, Swipe, Swiped},
    telemetry::label::ShardEvent,
};

/// A swipe is answered within this, or not at all. The device waits 15 s (device-server protocol v8.6, timing rules).
const SWIPE_MS: u64 = 12_000;
/// An AP3000 reply is kept this long for the same frame again.
const REPLY_KEPT_MS: u64 = 60_000;
/// Swipes of one device under way or kept.
const SWIPES_MAX: usize = 8;
const CARD_SWIPE: u8 = 0x02;

/// What the wire asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::gateway) enum Asked {
    Ap3000 {
        header: Header,
        card_id: Raw<4>,
        /// Zero-based; `0xFF`: the balance.
        port: u8,
    },
    BkvSwipe {
        gateway_id: GatewayId,
        socket: u8,
        hole: u8,
        business_no: u16,
    },
    BkvBalance {
        gateway_id: GatewayId,
        socket: u8,
        hole: u8,
        card: [u8; 6],
    },
}

impl Asked {
    /// Port of the API; `None`: only the balance is asked for.
    fn port_no(self) -> Option<u16> {
        match self {
            Self::Ap3000 { port: 0xFF, .. } | Self::BkvBalance { .. } => None,
            Self::Ap3000 { port, .. } => Some(u16::from(port) + 1),
            Self::BkvSwipe { socket, hole, .. } => Some(port_of_socket(socket, hole)),
        }
    }

    const fn business_no(self) -> Option<u16> {
        match self {
            Self::BkvSwipe { business_no, .. } => Some(business_no),
            Self::Ap3000 { .. } | Self::BkvBalance { .. } => None,
        }
    }
}

/// A swipe under way, or one whose reply is kept.
#[derive(Debug)]
pub(super) struct PendingSwipe {
    ticket: u64,
    asked: Asked,
    card_no: CardNo,
    conn: ConnId,
    until: u64,
    reply: Option<CardReply<'static>>,
}

impl Device {
    /// A card was held to the device.
    pub(in crate::gateway) fn card_swiped(&mut self, cx: &mut Cx<'_>, conn: ConnId, asked: Asked, card_no: CardNo) {
        let now = cx.now;
        cx.shared.metrics.events[ShardEvent::CardSwipe].inc();
        let swipes = &mut self.seldom().swipes;
        swipes.retain(|swipe| swipe.until > now.mono_ms);
        if let Some(swipe) = swipes.iter_mut().find(|swipe| swipe.asked == asked && swipe.card_no == card_no) {
            // Under way: the answer goes where the device is now. Answered: the same once more.
            swipe.conn = conn;
            if let (Asked::Ap3000 { header, .. }, Some(reply)) = (asked, swipe.reply) {
                write_reply(cx, conn, &header, &reply);
            }
            return;
        }
        if swipes.len() >= SWIPES_MAX {
            let answered = swipes.iter().position(|swipe| swipe.reply.is_some());
            let Some(answered) = answered else {
                cx.shared.metrics.events[ShardEvent::CardSwipeLost].inc();
                return;
            };
            swipes.remove(answered);
        }
        let ticket = cx.ticket();
        let until = now.mono_ms + SWIPE_MS;
        swipes.push(PendingSwipe { ticket, asked, card_no: card_no.clone(), conn, until, reply: None });
        if self.entry.is_fallback() {
            // Modules without a number of their own share this one: whose charge would it be?
            self.answer_swipe(cx, &refusal(self.id, ticket, CardState::DEVICE_NOT_REGISTERED));
            return;
        }
        match cx.shared.config.cards {
            CardMode::Off => self.answer_swipe(cx, &refusal(self.id, ticket, CardState::NOT_REGISTERED)),
            CardMode::Local => self.decide_swipe(cx, ticket, None),
            CardMode::Webhook => {
                let (port_no, business_no) = (asked.port_no(), asked.business_no());
                cx.effects.asks.push(CardAsk {
                    shard: cx.shared.config.shard,
                    ticket,
                    device_id: self.id,
                    protocol: self.protocol,
                    card_no,
                    port_no,
                    business_no,
                    at: now.unix_ms,
                });
            }
        }
    }

    /// The third party answered. `None`: it did not, or not in a way that can be understood; the card is refused.
    pub(in crate::gateway) fn card_answered(&mut self, cx: &mut Cx<'_>, ticket: u64, verdict: Option<CardVerdict>) {
        if verdict.is_none() {
            cx.shared.metrics.events[ShardEvent::CardUnanswered].inc();
        }
        // Not the card's fault, so the holder is not told that it is.
        let refused = CardVerdict { state: CardState::PORT_FAULT, balance_cent: 0, spec: None };
        self.decide_swipe(cx, ticket, Some(verdict.unwrap_or(refused)));
    }

    /// Submits a swipe to the store.
    fn decide_swipe(&mut self, cx: &mut Cx<'_>, ticket: u64, verdict: Option<CardVerdict>) {
        let now = cx.now;
        let open = |swipe: &&PendingSwipe| swipe.reply.is_none() && swipe.until > now.mono_ms;
        let swipes = self.seldom.iter().flat_map(|seldom| &seldom.swipes);
        let Some(swipe) = swipes.filter(open).find(|swipe| swipe.ticket == ticket) else {
            return;
        };
        let port_no = swipe.asked.port_no();
        let port = port_no.and_then(|port_no| self.ports.iter().find(|cell| cell.port_no == port_no));
        // A port that shows charging may have ended since the last heartbeat, minutes ago: the device knows, and refuses the start.
        let unusable = port.is_some_and(|port| port.load().status == PortStatus::Fault);
        let left = i64::try_from(swipe.until - now.mono_ms).unwrap_or(0);
        let job = Swipe {
            ticket,
            device_id: self.id,
            protocol: self.protocol,
            card_no: swipe.card_no.clone(),
            port_no,
            business_no: swipe.asked.business_no(),
            unusable,
            verdict,
            epoch: self.live_epoch(),
            at: now.unix_ms,
            deadline: now.unix_ms + left,
        };
        if !cx.job(Job::Swipe(Box::new(job))) {
            cx.shared.metrics.events[ShardEvent::CardSwipeLost].inc();
            self.seldom().swipes.retain(|swipe| swipe.ticket != ticket);
        }
    }

    /// The store decided: the reply first, then the start, held back behind it.
    pub(in crate::gateway) fn swipe_decided(&mut self, cx: &mut Cx<'_>, swiped: Swiped) {
        if swiped.too_late {
            cx.shared.metrics.events[ShardEvent::CardSwipeLost].inc();
            self.seldom().swipes.retain(|swipe| swipe.ticket != swiped.ticket);
            return;
        }
        if let Some(order) = swiped.order.as_ref().filter(|_| !swiped.repeated)
            && let Some(card) = order.card.as_deref()
        {
            // The number shows its last characters only.
            log::info!(
                target: "chargegate::order",
                order_no:% = order.order_no, device_id:% = self.id, port_no = order.port_no,
                mode = order.spec.mode.as_str(), card_no:% = card.card_no;
                "order created by card"
            );
        }
        self.answer_swipe(cx, &swiped);
        if let Some(order) = &swiped.order {
            self.order_changed(cx, order, swiped.command.into_iter().collect(), &[]);
        }
    }

    fn answer_swipe(&mut self, cx: &mut Cx<'_>, swiped: &Swiped) {
        if swiped.state != CardState::NORMAL {
            cx.shared.metrics.events[ShardEvent::CardRefused].inc();
        }
        let swipes = &self.seldom().swipes;
        let Some(index) = swipes.iter().position(|swipe| swipe.ticket == swiped.ticket) else { return };
        let Some(PendingSwipe { asked, conn, .. }) = swipes.get(index) else { return };
        let (asked, conn) = (*asked, *conn);
        match asked {
            Asked::Ap3000 { header, card_id, port } => {
                let rate_mode = match swiped.rate {
                    Rate::Timed => RateMode::TIMED,
                    Rate::Monthly => RateMode::MONTHLY,
                    Rate::Metered => RateMode::METERED,
                };
                let reply = CardReply {
                    card_id,
                    account_state: swiped.state.wire(),
                    rate_mode,
                    balance_or_expiry: swiped.balance,
                    port,
                    extra: Extra::NONE,
                };
                write_reply(cx, conn, &header, &reply);
                if let Some(swipe) = self.seldom().swipes.get_mut(index) {
                    swipe.reply = Some(reply);
                    swipe.until = cx.now.mono_ms + REPLY_KEPT_MS;
                }
                // The device counts this reply as a command.
                self.hold_commands(cx);
                return;
            }
            Asked::BkvSwipe { gateway_id, socket, hole, business_no } => match &swiped.order {
                // A new order is answered by its start; one that was written before, and is not confirmed, by that once more.
                Some(order) if swiped.repeated => self.resend(cx, order.order_no, false),
                Some(_) => {}
                None if swiped.port_held => {}
                None => {
                    let sequence = self.own_msg_id();
                    cx.shared.metrics.frames.bkv(Direction::Down, CONTROL, u16::from(sub::CARD));
                    cx.effects.write(conn, |out| {
                        let terms = CardTerms::Refused;
                        bkv_encode::card_order(out, gateway_id, sequence, (socket, hole), business_no, terms);
                    });
                }
            },
            Asked::BkvBalance { gateway_id, socket, hole, card } => {
                let (sequence, balance) = (self.own_msg_id(), swiped.balance);
                cx.shared.metrics.frames.bkv(Direction::Down, CONTROL, u16::from(sub::BALANCE));
                cx.effects.write(conn, |out| {
                    bkv_encode::balance_reply(out, gateway_id, sequence, (socket, hole), card, balance);
                });
            }
        }
        // A BKV/GN device that asks once more asks afresh: the store tells a repetition by card and hole.
        self.seldom().swipes.remove(index);
    }

    /// Forgets swipes whose time is over.
    pub(super) fn forget_swipes(&mut self, now: Now) {
        if let Some(seldom) = &mut self.seldom {
            seldom.swipes.retain(|swipe| swipe.until > now.mono_ms);
        }
    }
}

fn refusal(device_id: DeviceId, ticket: u64, state: CardState) -> Swiped {
    Swiped {
        device_id,
        ticket,
        too_late: false,
        state,
        rate: Rate::Timed,
        balance: 0,
        order: None,
        command: None,
        repeated: false,
        port_held: false,
    }
}

fn write_reply(cx: &mut Cx<'_>, conn: ConnId, header: &Header, reply: &CardReply<'_>) {
    cx.shared.metrics.frames.ap3000(Direction::Down, CARD_SWIPE);
    cx.effects.write(conn, |out| ap3000_encode::card_reply(out, header, reply));
}
