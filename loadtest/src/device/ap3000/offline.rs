//! Charges that begin without the server: by a card, or by a verification code. The device makes their order number.

use chargegate::protocol::ap3000::codes::StartMode;
use chargegate::protocol::ap3000::offline::{OfflineOrder, Starter, VerificationCode};
use chargegate::protocol::ap3000::wire::Raw;
use chargegate::protocol::clock::DeviceTime;

use super::charging::Origin;
use super::{Ap3000Device, Card, SECOND_US};
use crate::device::charge::Limits;
use crate::device::ledger::{Reference, Start};

impl Ap3000Device {
    /// Begins a charge by card without asking the server, on a port counted from 0 with a charger plugged in. It ends
    /// after `duration_s` seconds, or when the battery is full if that is `None`. False if the port cannot start.
    pub fn offline_charge(&mut self, now_us: u64, card: &Card, port: u8, duration_s: Option<u32>) -> bool {
        let Some(order_no) = self.own_order_no(now_us, port, Starter::Card(Raw(card.id))) else { return false };
        let start = Start::OfflineCard(card.number());
        let origin = Origin { start_mode: StartMode::CARD, card_or_code: card.id, order_no, start };
        self.begin_own(now_us, port, duration_s, origin)
    }

    /// Begins a charge by verification code, on a port counted from 0 with a charger plugged in. False if the code is not
    /// good at the device's time, or the port cannot start. In the record the code is a little-endian number.
    pub fn code_charge(&mut self, now_us: u64, code: VerificationCode, port: u8, duration_s: Option<u32>) -> bool {
        if !code.is_valid(self.line.phy_id, port, self.unix_s(now_us)) {
            return false;
        }
        let Some(order_no) = self.own_order_no(now_us, port, Starter::Code(code)) else { return false };
        let card_or_code = code.as_u32().to_le_bytes();
        let origin = Origin { start_mode: StartMode::CODE, card_or_code, order_no, start: Start::Code(code.as_u32()) };
        self.begin_own(now_us, port, duration_s, origin)
    }

    fn begin_own(&mut self, now_us: u64, port: u8, duration_s: Option<u32>, origin: Origin) -> bool {
        let limits = Limits {
            duration_s,
            duration_max_s: Some(u32::from(self.max_duration_s())),
            until_full: duration_s.is_none(),
            ..Limits::default()
        };
        self.begin(now_us, port, limits, origin).is_ok()
    }

    /// A new number. `None`: the charge before, by the same card or code on the same port, began within this second and has it; where
    /// charging runs fast, that one may be over. A server takes records of one number for copies of one record.
    fn own_order_no(&self, now_us: u64, port: u8, starter: Starter) -> Option<[u8; 16]> {
        let time = DeviceTime::from_unix(i64::from(self.unix_s(now_us)));
        let order = OfflineOrder { time, starter, printed_number: self.line.phy_id.printed_number(), port };
        order.build().filter(|order_no| self.ledger.find(Reference::Order(*order_no)).is_none())
    }

    /// The device's clock in Unix seconds. Until the server gave it the time it counts from 0, when the power came.
    pub fn unix_s(&self, now_us: u64) -> u32 {
        let (then_us, unix_s) = self.clock;
        let since_s = now_us.saturating_sub(then_us) / SECOND_US;
        unix_s.saturating_add(u32::try_from(since_s).unwrap_or(u32::MAX))
    }
}
