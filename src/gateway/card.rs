//! What a card may charge, what is held for it, and what it pays in the end. Pure functions; the store writes what they say.
//!
//! A swipe orders what the card can pay for: with a tariff by time or energy the quantity that the free balance buys, within the
//! limits of the protocol and [`CardRules::swipe_minutes_max`], and the price of that quantity is held. Where nothing bounds the
//! price beforehand (power tiers counted by the device, service fee by time) the whole free balance is held. A monthly card
//! charges until full, without price.
//!
//! **Money.** `balance = Σ movements`, `held = Σ open holds`, `0 ≤ held ≤ balance`, always. A settlement charges the price, at
//! most the hold, and gives the rest back. After the hold was given back, it charges at most what is free. What a card could not
//! pay is kept with the order as unpaid.

use super::{
    charge::{AP3000_ENERGY_STEP_WH, AP3000_ENERGY_WH_MAX, AP3000_MINUTES_MAX, BKV_ENERGY_WH_MAX, BKV_MINUTES_MAX},
    order::Event,
};
use crate::{
    model::{Card, CardStart, CardState, ChargeMode, ChargeSpec, OrderCard, Protocol},
    pricing::{Tariff, Usage},
};

/// Who decides what a swiped card may do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CardMode {
    /// Nobody: no card is registered.
    Off,
    /// The accounts of this gateway.
    #[default]
    Local,
    /// A third party, asked at each swipe.
    Webhook,
}

/// A tariff and its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedTariff {
    /// Unique.
    pub name: String,
    /// Passed [`Tariff::check`].
    pub tariff: Tariff,
}

/// What holds for all cards.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CardRules {
    /// Who decides.
    pub mode: CardMode,
    /// All tariffs.
    pub tariffs: Vec<NamedTariff>,
    /// Tariff of cards that name none; `None`: such cards need a monthly plan.
    pub tariff: Option<String>,
    /// Longest charge that a swipe orders, minutes.
    pub swipe_minutes_max: u16,
    /// Local time of the tariffs' periods, minutes east of UTC.
    pub utc_offset_minutes: i32,
    /// A hold of an order that charged is kept this long after the order's end, for its settlement; ms.
    pub hold_after_end_ms: i64,
}

impl Default for CardRules {
    fn default() -> Self {
        Self {
            mode: CardMode::Local,
            tariffs: Vec::new(),
            tariff: None,
            swipe_minutes_max: 600,
            utc_offset_minutes: 480,
            hold_after_end_ms: 3_600_000,
        }
    }
}

impl CardRules {
    /// The tariff of a card. A name that is gone leaves the card without one: it must not charge at another price.
    pub fn tariff_of(&self, card: &Card) -> Option<&Tariff> {
        let name = card.tariff.as_ref().or(self.tariff.as_ref())?;
        self.tariffs.iter().find(|named| named.name == *name).map(|named| &named.tariff)
    }
}

/// What a swipe orders.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Terms {
    /// The order.
    pub spec: ChargeSpec,
    /// Its price; `None`: none.
    pub tariff: Option<Tariff>,
    /// Held for it, cents.
    pub hold_cent: i64,
}

/// Why a request that names a card gets no charge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CardRefused {
    /// There is no such card.
    NotFound,
    /// The free balance does not cover it.
    Insufficient {
        /// Balance less holds.
        free_cent: i64,
        /// What would be held.
        needed_cent: i64,
    },
    /// The card may not charge.
    State(CardState),
}

/// What a card is told when nothing but its account matters.
pub fn standing(rules: &CardRules, card: &Card, at: i64) -> CardState {
    if card.state != CardState::NORMAL {
        return card.state;
    }
    match card.expires_at {
        Some(end) if end <= at => CardState::MONTHLY_EXPIRED,
        Some(_) => CardState::NORMAL,
        None if rules.tariff_of(card).is_none() => CardState::BUY_MONTHLY,
        None => CardState::NORMAL,
    }
}

/// What a swiped card orders.
///
/// # Errors
/// The state the card is told.
pub fn swiped(rules: &CardRules, card: &Card, protocol: Protocol, at: i64) -> Result<Terms, CardState> {
    let standing = standing(rules, card, at);
    if standing != CardState::NORMAL {
        return Err(standing);
    }
    if card.expires_at.is_some() {
        return Ok(Terms { spec: open_spec(rules, protocol), tariff: None, hold_cent: 0 });
    }
    let tariff = rules.tariff_of(card).ok_or(CardState::BUY_MONTHLY)?;
    let free = card.free_cent().max(0);
    let budget = free.unsigned_abs();
    let ap3000 = protocol == Protocol::Ap3000;
    let (minutes_max, wh_max, wh_step) = if ap3000 {
        (AP3000_MINUTES_MAX, AP3000_ENERGY_WH_MAX, AP3000_ENERGY_STEP_WH)
    } else {
        (BKV_MINUTES_MAX, BKV_ENERGY_WH_MAX, 1)
    };
    let minutes_max = rules.swipe_minutes_max.min(minutes_max);
    // A holder who swiped wants no power after the battery is full, though the protocol would go on to the quantity.
    let spec = |mode, paid_cent| ChargeSpec { mode, paid_cent, stop_when_full: ap3000 };
    let whole = |mode, most: i64| {
        let hold_cent = free.min(most);
        if hold_cent == 0 {
            return Err(CardState::INSUFFICIENT_BALANCE);
        }
        let spec = spec(mode, u32::try_from(hold_cent).ok());
        Ok(Terms { spec, tariff: Some(tariff.clone()), hold_cent })
    };
    if let (Tariff::Power { tiers }, false) = (tariff, ap3000) {
        // The device counts the tiers and stops when the amount, 16 bits on the wire, is used up.
        return whole(ChargeMode::Power { tiers: tiers.clone() }, i64::from(u16::MAX));
    }
    // Prices are rounded down, so nothing buys a little time: an empty card would charge for ever, two minutes at a time.
    let free_of_charge = tariff.price_max(Some(u32::MAX), Some(u32::MAX)) == Some(0);
    if free == 0 && !free_of_charge {
        return Err(CardState::INSUFFICIENT_BALANCE);
    }
    let (mode, price) = if let Some(minutes) = tariff.minutes_for(budget) {
        let minutes = u16::try_from(minutes).unwrap_or(u16::MAX).min(minutes_max);
        (ChargeMode::Time { minutes }, tariff.price_max(Some(u32::from(minutes)), None))
    } else if let Some(wh) = tariff.energy_wh_for(budget) {
        let wh = wh.min(wh_max) / wh_step * wh_step;
        (ChargeMode::Energy { wh }, tariff.price_max(None, Some(wh)))
    } else {
        return whole(ChargeMode::Time { minutes: minutes_max }, i64::MAX);
    };
    if matches!(mode, ChargeMode::Time { minutes: 0 } | ChargeMode::Energy { wh: 0 }) {
        return Err(CardState::INSUFFICIENT_BALANCE);
    }
    let hold_cent = cents(price.unwrap_or(0));
    Ok(Terms { spec: spec(mode, u32::try_from(hold_cent).ok()), tariff: Some(tariff.clone()), hold_cent })
}

/// A charge without a quantity of its own: until full, and where the protocol has no such charge, for the longest time.
pub fn open_spec(rules: &CardRules, protocol: Protocol) -> ChargeSpec {
    let mode = match protocol {
        Protocol::Ap3000 => ChargeMode::Full,
        Protocol::Bkv | Protocol::Gn => ChargeMode::Time { minutes: rules.swipe_minutes_max.min(BKV_MINUTES_MAX) },
    };
    ChargeSpec { mode, paid_cent: None, stop_when_full: false }
}

/// Tariff and hold of a charge that a third party orders and a card pays. Power tiers and fee periods of the order are its
/// tariff, and `paid_cent` its most; for other modes the card's tariff prices what is ordered. What has no most takes the whole
/// free balance.
///
/// # Errors
/// Why the card does not pay.
pub fn requested(
    rules: &CardRules,
    card: &Card,
    spec: &ChargeSpec,
    at: i64,
) -> Result<(Option<Tariff>, i64), CardRefused> {
    let own = match &spec.mode {
        ChargeMode::Power { tiers } => Some(Tariff::Power { tiers: tiers.clone() }),
        ChargeMode::ServiceFee { periods, by_energy } => {
            Some(Tariff::ServiceFee { periods: periods.clone(), by_energy: *by_energy })
        }
        ChargeMode::Full | ChargeMode::Time { .. } | ChargeMode::Energy { .. } => None,
    };
    match standing(rules, card, at) {
        CardState::NORMAL => {}
        // The order brings its own tariff.
        CardState::BUY_MONTHLY if own.is_some() && card.state == CardState::NORMAL => {}
        state => return Err(CardRefused::State(state)),
    }
    if card.expires_at.is_some() {
        return Ok((None, 0));
    }
    let free_cent = card.free_cent().max(0);
    let (tariff, most) = match own {
        Some(tariff) => (tariff, spec.paid_cent.filter(|paid| *paid > 0).map(u64::from)),
        None => {
            let tariff = rules.tariff_of(card).cloned().ok_or(CardRefused::State(CardState::BUY_MONTHLY))?;
            let most = tariff.price_max(spec.mode.minutes().map(u32::from), spec.mode.energy_wh());
            (tariff, most)
        }
    };
    // A cent at least: an empty card opens no charge without end.
    let needed_cent = most.map_or_else(|| free_cent.max(1), cents);
    if needed_cent > free_cent {
        return Err(CardRefused::Insufficient { free_cent, needed_cent });
    }
    Ok((Some(tariff), needed_cent))
}

/// What an order's card is charged: totals of the settlement, priced as agreed. Beyond an ordered quantity nothing is charged:
/// devices overrun by seconds. Where the order's tiers or periods were the device's to count, its amount is the price.
pub fn price(rules: &CardRules, card: &OrderCard, spec: &ChargeSpec, usage: Usage, amount_cent: Option<u32>) -> i64 {
    let Some(tariff) = &card.tariff else { return 0 };
    let counted = matches!(spec.mode, ChargeMode::Power { .. } | ChargeMode::ServiceFee { .. });
    if let Some(amount) = amount_cent.filter(|_| counted) {
        return i64::from(amount);
    }
    let mut usage = usage;
    if let Some(minutes) = spec.mode.minutes() {
        let ordered_s = u32::from(minutes) * 60;
        // The average power must not rise by what is cut off.
        if usage.duration_s > ordered_s && matches!(tariff, Tariff::Power { .. }) {
            let energy = u64::from(usage.energy_wh) * u64::from(ordered_s) / u64::from(usage.duration_s);
            usage.energy_wh = u32::try_from(energy).unwrap_or(u32::MAX);
        }
        usage.duration_s = usage.duration_s.min(ordered_s);
    }
    if let Some(wh) = spec.mode.energy_wh() {
        usage.energy_wh = usage.energy_wh.min(wh);
    }
    cents(tariff.price(usage, rules.utc_offset_minutes))
}

/// Whether the hold of an order is given back with the event that ended it without a settlement. Nothing was charged where the
/// device refused the start, never got it, or never answered; else the settlement is still to come.
pub const fn releases_hold(event: Event) -> bool {
    match event {
        Event::StartRefused { .. } | Event::StartWithdrawn | Event::StartTimedOut => true,
        Event::StartAcked
        | Event::StartAckedLate
        | Event::Evidence
        | Event::Cancel
        | Event::Stop
        | Event::NoLoad
        | Event::Offline
        | Event::Returned
        | Event::ReturnTimedOut
        | Event::PortMismatch
        | Event::StopAcked
        | Event::StopRefused
        | Event::StopTimedOut
        | Event::Settled(_) => false,
    }
}

/// How a device reads the balance beside it: the rate modes of AP3000 (device-server protocol v8.6, reply to command 02).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rate {
    /// By time; the balance is cents.
    Timed,
    /// A monthly card; the balance is the Unix seconds of its end.
    Monthly,
    /// By energy; the balance is cents.
    Metered,
}

/// Rate and number that the device is told of a card.
pub fn announced(rules: &CardRules, card: &Card) -> (Rate, u32) {
    if let Some(end) = card.expires_at {
        return (Rate::Monthly, u32::try_from(end.max(0) / 1000).unwrap_or(u32::MAX));
    }
    let free = u32::try_from(card.free_cent().max(0)).unwrap_or(u32::MAX);
    match rules.tariff_of(card) {
        Some(Tariff::Energy { .. } | Tariff::ServiceFee { by_energy: true, .. }) => (Rate::Metered, free),
        Some(Tariff::Time { .. } | Tariff::Power { .. } | Tariff::ServiceFee { by_energy: false, .. }) | None => {
            (Rate::Timed, free)
        }
    }
}

/// What the start says of the card. `business_no`: of the swipe (BKV/GN).
pub fn start(rules: &CardRules, card: &Card, business_no: Option<u16>) -> CardStart {
    let (rate, announce) = announced(rules, card);
    CardStart { business_no, announce, monthly: rate == Rate::Monthly }
}

fn cents(price: u64) -> i64 {
    i64::try_from(price).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        gateway::charge,
        model::{CardNo, FeePeriod, PowerTier},
    };

    const AT: i64 = 1_800_000_000_000;

    fn rules(tariff: Tariff) -> CardRules {
        let tariffs = vec![NamedTariff { name: "t".into(), tariff }];
        CardRules { tariffs, tariff: Some("t".into()), ..CardRules::default() }
    }

    fn card(balance_cent: i64, held_cent: i64) -> Card {
        Card {
            card_no: CardNo::from_uid([1, 2, 3, 4]),
            state: CardState::NORMAL,
            tariff: None,
            expires_at: None,
            balance_cent,
            held_cent,
            sequence_no: 0,
            created_at: 0,
            updated_at: 0,
        }
    }

    fn tariffs() -> [Tariff; 5] {
        let tiers = [(2000, 10, 60), (6000, 30, 60)];
        let tiers = tiers.map(|(power_dw, price_cent, minutes)| PowerTier { power_dw, price_cent, minutes });
        let period = FeePeriod { end_hour: 23, end_minute: 59, electricity_cent: 60, service_cent: 40 };
        [
            Tariff::Time { price_cent: 20, minutes: 60 },
            Tariff::Energy { price_cent: 80 },
            Tariff::Power { tiers: tiers.to_vec() },
            Tariff::ServiceFee { periods: vec![period], by_energy: true },
            Tariff::ServiceFee { periods: vec![period], by_energy: false },
        ]
    }

    #[test]
    fn a_swipe_orders_what_the_balance_buys() {
        let order = |tariff: usize, protocol, free: i64| {
            let terms = swiped(&rules(tariffs()[tariff].clone()), &card(free + 50, 50), protocol, AT);
            terms.map(|terms| (terms.spec.mode, terms.hold_cent))
        };
        let time = |minutes| ChargeMode::Time { minutes };
        let energy = |wh| ChargeMode::Energy { wh };
        let empty = || Err(CardState::INSUFFICIENT_BALANCE);
        // 20 cents an hour: 100 cents buy 5 h and the minutes to the next cent.
        assert_eq!(order(0, Protocol::Ap3000, 100), Ok((time(302), 100)));
        assert_eq!(order(0, Protocol::Ap3000, 100_000), Ok((time(600), 200)));
        assert_eq!((order(0, Protocol::Bkv, 0), order(1, Protocol::Ap3000, 0)), (empty(), empty()));
        let free = rules(Tariff::Energy { price_cent: 0 });
        assert_eq!(swiped(&free, &card(0, 0), Protocol::Bkv, AT).map(|terms| terms.hold_cent), Ok(0));
        // 80 cents a kWh, in steps of 10 Wh for AP3000.
        assert_eq!(order(1, Protocol::Ap3000, 100), Ok((energy(1260), 100)));
        assert_eq!(order(1, Protocol::Bkv, 100), Ok((energy(1262), 100)));
        assert_eq!(order(1, Protocol::Gn, 1_000_000), Ok((energy(65_535), 5242)));
        // Tiers: AP3000 devices count none, so time at the dearest one is ordered.
        assert_eq!(order(2, Protocol::Ap3000, 100), Ok((time(201), 100)));
        let Tariff::Power { tiers } = tariffs()[2].clone() else { panic!() };
        assert_eq!(order(2, Protocol::Bkv, 100_000), Ok((ChargeMode::Power { tiers }, 65_535)));
        assert_eq!(order(2, Protocol::Bkv, 0), empty());
        assert_eq!(order(3, Protocol::Bkv, 100), Ok((energy(1009), 100)));
        assert_eq!(order(4, Protocol::Bkv, 100), Ok((time(600), 100)));
        assert_eq!(order(4, Protocol::Bkv, 0), empty());
    }

    #[test]
    fn cards_that_may_not_charge_are_told_why() {
        let with = rules(tariffs()[0].clone());
        let told = |rules: &CardRules, card: Card| swiped(rules, &card, Protocol::Ap3000, AT).map(|_| ()).unwrap_err();
        for state in CardState::ALL.iter().skip(1) {
            assert_eq!(told(&with, Card { state: *state, ..card(100, 0) }), *state);
        }
        assert_eq!(told(&CardRules::default(), card(100, 0)), CardState::BUY_MONTHLY);
        assert_eq!(told(&with, Card { tariff: Some("gone".into()), ..card(100, 0) }), CardState::BUY_MONTHLY);
        assert_eq!(told(&with, Card { expires_at: Some(AT), ..card(100, 0) }), CardState::MONTHLY_EXPIRED);
    }

    #[test]
    fn a_monthly_card_charges_until_full_without_price() {
        let monthly = Card { expires_at: Some(AT + 1000), ..card(0, 0) };
        let rules = CardRules::default();
        let terms = swiped(&rules, &monthly, Protocol::Ap3000, AT).unwrap();
        assert_eq!((terms.spec.mode, terms.tariff, terms.hold_cent), (ChargeMode::Full, None, 0));
        let terms = swiped(&rules, &monthly, Protocol::Bkv, AT).unwrap();
        assert_eq!(terms.spec.mode, ChargeMode::Time { minutes: 600 });
        assert_eq!(announced(&rules, &monthly), (Rate::Monthly, 1_800_000_001));
        assert_eq!(requested(&rules, &monthly, &open_spec(&rules, Protocol::Ap3000), AT), Ok((None, 0)));
    }

    #[test]
    fn a_request_holds_its_price_or_all_there_is() {
        let spec = |mode, paid_cent| ChargeSpec { mode, paid_cent, stop_when_full: false };
        let hold = |tariff: usize, spec: &ChargeSpec, free: i64| {
            requested(&rules(tariffs()[tariff].clone()), &card(free, 0), spec, AT).map(|(_, hold)| hold)
        };
        let short = |free_cent, needed_cent| Err(CardRefused::Insufficient { free_cent, needed_cent });
        let time = spec(ChargeMode::Time { minutes: 90 }, Some(7));
        assert_eq!((hold(0, &time, 30), hold(0, &time, 29)), (Ok(30), short(29, 30)));
        // Time under a tariff by energy has no most.
        assert_eq!((hold(1, &time, 30), hold(1, &time, 0)), (Ok(30), short(0, 1)));
        let full = spec(ChargeMode::Full, None);
        assert_eq!(hold(0, &full, 30), Ok(30));
        let tiers = vec![PowerTier { power_dw: 1, price_cent: 1, minutes: 1 }];
        let power = |paid| spec(ChargeMode::Power { tiers: tiers.clone() }, paid);
        assert_eq!((hold(0, &power(Some(25)), 30), hold(0, &power(Some(31)), 30)), (Ok(25), short(30, 31)));
        assert_eq!((hold(0, &power(None), 30), hold(0, &power(Some(0)), 0)), (Ok(30), short(0, 1)));
        let none = CardRules::default();
        assert!(requested(&none, &card(30, 0), &power(Some(25)), AT).is_ok(), "the order brings its tariff");
        let blocked = Card { state: CardState::REKEY, ..card(30, 0) };
        assert_eq!(requested(&none, &blocked, &full, AT), Err(CardRefused::State(CardState::REKEY)));
    }

    #[test]
    fn overrun_is_not_charged_and_the_device_counts_its_own_tiers() {
        let priced = |tariff: &Tariff, mode, duration_s, energy_wh, amount| {
            let card = OrderCard {
                card_no: CardNo::from_uid([0; 4]),
                tariff: Some(tariff.clone()),
                hold_cent: Some(0),
                hold_open: true,
                price_cent: None,
                charged_cent: None,
            };
            let spec = ChargeSpec { mode, paid_cent: None, stop_when_full: false };
            price(&rules(tariff.clone()), &card, &spec, Usage { start_s: 0, duration_s, energy_wh }, amount)
        };
        let all = tariffs();
        assert_eq!(priced(&all[0], ChargeMode::Time { minutes: 60 }, 4000, 0, None), 20);
        assert_eq!(priced(&all[0], ChargeMode::Full, 7200, 0, Some(9)), 40, "an amount nobody asked for");
        assert_eq!(priced(&all[1], ChargeMode::Energy { wh: 1000 }, 0, 1010, None), 80);
        // 190 W for an hour and a bit: still the first tier.
        assert_eq!(priced(&all[2], ChargeMode::Time { minutes: 60 }, 3700, 195, None), 10);
        let tiers = || ChargeMode::Power { tiers: Vec::new() };
        assert_eq!(priced(&all[2], tiers(), 3600, 500, Some(7)), 7);
        assert_eq!(priced(&all[2], tiers(), 3600, 500, None), 30);
    }

    proptest! {
        /// Whatever a swipe orders, the protocol takes it, the free balance covers the hold, and no use of what was ordered
        /// costs more than the hold, but where the whole free balance is held.
        #[test]
        fn a_hold_covers_what_was_ordered(
            tariff in 0..5_usize, balance in 0..200_000_i64, held in 0..200_000_i64, ap3000: bool,
            start_s in 0..2_000_000_000_i64, duration_s: u32, energy_wh: u32,
        ) {
            let tariff = tariffs()[tariff].clone();
            let rules = rules(tariff.clone());
            let card = card(balance.max(held), held);
            let protocol = if ap3000 { Protocol::Ap3000 } else { Protocol::Bkv };
            if let Ok(Terms { spec, tariff: agreed, hold_cent }) = swiped(&rules, &card, protocol, AT) {
                prop_assert_eq!(charge::check(&spec, protocol), Ok(()));
                prop_assert!((0..=card.free_cent()).contains(&hold_cent));
                let order = OrderCard {
                    card_no: card.card_no.clone(), tariff: agreed, hold_cent: Some(hold_cent), hold_open: true,
                    price_cent: None, charged_cent: None,
                };
                let price = price(&rules, &order, &spec, Usage { start_s, duration_s, energy_wh }, None);
                let counted = matches!(spec.mode, ChargeMode::Power { .. });
                let by_time = matches!(tariff, Tariff::ServiceFee { by_energy: false, .. });
                prop_assert!(price <= hold_cent || counted || (by_time && hold_cent == card.free_cent()));
            }
        }
    }
}
