//! What a charge costs: pure integer functions.
//!
//! Prices are cents, energy is Wh, time is seconds. A price is computed as an exact rational and rounded **down once**, at the
//! end; a part of a cent is never charged. No function overflows: all intermediate values fit 128 bits for all arguments, and
//! a result beyond 64 bits (no tariff reaches it in a lifetime) saturates.
//!
//! | tariff | price |
//! |---|---|
//! | time | seconds × price / (60 × minutes) |
//! | energy | Wh × price / 1000 |
//! | power tiers | Σ minutesᵢ × priceᵢ / tier minutesᵢ |
//! | service fee by energy | Σ Whᵢ × (electricityᵢ + serviceᵢ) / 1000 |
//! | service fee by time | Σ Whᵢ × electricityᵢ / 1000 + Σ secondsᵢ × serviceᵢ / 3600 |
//!
//! **Periods of the day.** A period lasts until the minute it names begins; the last one names 23:59 and lasts to midnight. They
//! are local times: whoever calls gives the offset from UTC. Where the energy of each period is not known (no meter of these
//! devices tells it) it is taken to be drawn evenly: a period gets energy in proportion to its seconds. A charge without
//! duration lies in the period of its start.
//!
//! **Splitting.** Let a charge be cut in two at any second, its energy cut in proportion to the seconds. Then
//! `price(first) + price(second) ≤ price(whole) ≤ price(first) + price(second) + 1`: cutting never costs more, and saves one cent
//! at most. This holds for the time tariff, the energy tariff and both service fees. For power tiers it holds when the minutes
//! of each tier are cut; not for [`Tariff::price`], which knows no minutes of tiers and goes by the average power.

use serde::{Deserialize, Serialize};

use crate::model::{FeePeriod, PowerTier};

/// Power tiers of a tariff: what an order can carry (integration guide V1.7, sub-command 17).
pub const TIERS_MAX: usize = 5;
/// Periods of a tariff: what an order can carry (integration guide V1.7, sub-command 1007).
pub const PERIODS_MAX: usize = 42;

const DAY_S: i64 = 86_400;
const MINUTES_PER_DAY: i64 = 1_440;
const WH_PER_KWH: u128 = 1_000;
const SECONDS_PER_HOUR: u128 = 3_600;

/// How a charge is priced.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Tariff {
    /// `price_cent` buys `minutes`.
    Time {
        /// Cents.
        price_cent: u32,
        /// From 1.
        minutes: u32,
    },
    /// `price_cent` buys 1 kWh.
    Energy {
        /// Cents.
        price_cent: u32,
    },
    /// What a minute costs depends on the power drawn.
    Power {
        /// One to [`TIERS_MAX`], by rising power.
        tiers: Vec<PowerTier>,
    },
    /// Electricity and service fee by time of day.
    ServiceFee {
        /// One to [`PERIODS_MAX`], the last ends at 23:59.
        periods: Vec<FeePeriod>,
        /// Whether the service fee is per kWh; else it is per hour.
        by_energy: bool,
    },
}

/// Why a tariff cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TariffError {
    /// A time that a price buys is zero.
    #[error("minutes must be at least 1")]
    NoMinutes,
    /// None, or more than an order can carry.
    #[error("there must be 1 to {TIERS_MAX} tiers")]
    Tiers,
    /// A tier's limit is not above that of the tier before.
    #[error("tiers must rise in power_dw")]
    TierOrder,
    /// None, or more than an order can carry.
    #[error("there must be 1 to {PERIODS_MAX} periods")]
    Periods,
    /// A period ends at no time of day, or not after the one before.
    #[error("periods must rise and name times of day")]
    PeriodOrder,
    /// The day is not covered.
    #[error("the last period must end at 23:59")]
    LastPeriod,
}

/// What a charge used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Unix seconds.
    pub start_s: i64,
    /// Seconds.
    pub duration_s: u32,
    /// Wh.
    pub energy_wh: u32,
}

/// Minutes in one power tier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TierUse {
    /// The tier.
    pub tier: PowerTier,
    /// Minutes charged in it.
    pub minutes: u32,
}

/// What a charge used in one period of the day.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeriodUse {
    /// The period.
    pub period: FeePeriod,
    /// Seconds in it.
    pub seconds: u32,
    /// Wh drawn in it.
    pub energy_wh: u32,
}

/// Price of a time at `price_cent` per `minutes`.
pub fn time_price(seconds: u32, price_cent: u32, minutes: u32) -> u64 {
    down(u128::from(seconds) * u128::from(price_cent), 60 * u128::from(minutes.max(1)))
}

/// Price of an energy at `price_cent` per kWh.
pub fn energy_price(energy_wh: u32, price_cent: u32) -> u64 {
    down(u128::from(energy_wh) * u128::from(price_cent), WH_PER_KWH)
}

/// Price of minutes in power tiers. Tiers behind the [`TIERS_MAX`]th are not looked at.
pub fn tiers_price(used: &[TierUse]) -> u64 {
    // Numerator below the tier's minutes, so a sum of five stays far within 128 bits: 16 bits a tier.
    let mut whole = 0_u128;
    let (mut numerator, mut denominator) = (0_u128, 1_u128);
    for TierUse { tier, minutes } in used.iter().take(TIERS_MAX) {
        let of = u128::from(tier.minutes.max(1));
        let cost = u128::from(*minutes) * u128::from(tier.price_cent);
        whole += cost / of;
        numerator = numerator * of + cost % of * denominator;
        denominator *= of;
    }
    clamp(whole + numerator / denominator)
}

/// Price of a charge whose use of each period is known.
pub fn periods_price(used: &[PeriodUse], by_energy: bool) -> u64 {
    let mut electricity = 0_u128;
    let mut service = 0_u128;
    for PeriodUse { period, seconds, energy_wh } in used.iter().take(PERIODS_MAX) {
        let energy = u128::from(*energy_wh);
        electricity += energy * u128::from(period.electricity_cent);
        service += u128::from(period.service_cent) * if by_energy { energy } else { u128::from(*seconds) };
    }
    let service_per = if by_energy { WH_PER_KWH } else { SECONDS_PER_HOUR };
    down(electricity * service_per + service * WH_PER_KWH, WH_PER_KWH * service_per)
}

/// Seconds of a charge in each of the periods, in their order.
pub fn seconds_in_periods(periods: &[FeePeriod], start_s: i64, duration_s: u32, utc_offset_minutes: i32) -> Vec<u64> {
    let begin = start_s.saturating_add(i64::from(utc_offset_minutes) * 60).rem_euclid(DAY_S);
    let end = begin + i64::from(duration_s);
    // Seconds of the days before `second`, the first being day 0, that lie before a time of day.
    let before = |second: i64, of_day: i64| second / DAY_S * of_day + (second % DAY_S).min(of_day);
    let mut earlier = 0;
    periods
        .iter()
        .map(|period| {
            let of_day = end_of_period(period) * 60;
            let up_to = before(end, of_day) - before(begin, of_day);
            let seconds = up_to - earlier;
            earlier = up_to;
            u64::try_from(seconds).unwrap_or(0)
        })
        .collect()
}

/// Price by periods of the day, the energy spread evenly over the duration.
pub fn service_fee(periods: &[FeePeriod], by_energy: bool, usage: Usage, utc_offset_minutes: i32) -> u64 {
    // One second stands for a charge without duration: its energy has to lie somewhere.
    let duration_s = usage.duration_s.max(1);
    let seconds = seconds_in_periods(periods, usage.start_s, duration_s, utc_offset_minutes);
    let weigh = |price: fn(&FeePeriod) -> u16| -> u128 {
        periods.iter().zip(&seconds).map(|(period, seconds)| u128::from(*seconds) * u128::from(price(period))).sum()
    };
    let (energy, duration) = (u128::from(usage.energy_wh), u128::from(duration_s));
    let electricity = weigh(|period| period.electricity_cent);
    let service = weigh(|period| period.service_cent);
    if by_energy {
        return down(energy * (electricity + service), WH_PER_KWH * duration);
    }
    let service = if usage.duration_s == 0 { 0 } else { service };
    down(
        energy * electricity * SECONDS_PER_HOUR + service * WH_PER_KWH * duration,
        WH_PER_KWH * duration * SECONDS_PER_HOUR,
    )
}

/// The tier of a power in 0.1 W: the first whose limit is not below it, else the last.
pub fn tier_of(tiers: &[PowerTier], power_dw: u64) -> Option<PowerTier> {
    tiers.iter().find(|tier| u64::from(tier.power_dw) >= power_dw).or_else(|| tiers.last()).copied()
}

impl Tariff {
    /// The word of `kind`.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Time { .. } => "time",
            Self::Energy { .. } => "energy",
            Self::Power { .. } => "power",
            Self::ServiceFee { .. } => "service_fee",
        }
    }

    /// Checks that the tariff covers every power and every time of day.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check(&self) -> Result<(), TariffError> {
        match self {
            Self::Time { minutes: 0, .. } => Err(TariffError::NoMinutes),
            Self::Time { .. } | Self::Energy { .. } => Ok(()),
            Self::Power { tiers } => {
                if !(1..=TIERS_MAX).contains(&tiers.len()) {
                    return Err(TariffError::Tiers);
                }
                if tiers.iter().any(|tier| tier.minutes == 0) {
                    return Err(TariffError::NoMinutes);
                }
                let rises = tiers.is_sorted_by(|low, high| low.power_dw < high.power_dw);
                if rises { Ok(()) } else { Err(TariffError::TierOrder) }
            }
            Self::ServiceFee { periods, .. } => {
                if !(1..=PERIODS_MAX).contains(&periods.len()) {
                    return Err(TariffError::Periods);
                }
                let in_day = periods.iter().all(|period| period.end_hour < 24 && period.end_minute < 60);
                let rises = periods.is_sorted_by(|early, late| end_of_period(early) < end_of_period(late));
                if !in_day || !rises || periods.first().is_some_and(|period| end_of_period(period) == 0) {
                    return Err(TariffError::PeriodOrder);
                }
                let whole = periods.last().is_some_and(|period| end_of_period(period) == MINUTES_PER_DAY);
                if whole { Ok(()) } else { Err(TariffError::LastPeriod) }
            }
        }
    }

    /// Price of a charge of which the totals are known. A tariff of power tiers takes the whole time at the tier of the average
    /// power: what a device that counts no minutes of tiers can tell.
    pub fn price(&self, usage: Usage, utc_offset_minutes: i32) -> u64 {
        match self {
            Self::Time { price_cent, minutes } => time_price(usage.duration_s, *price_cent, *minutes),
            Self::Energy { price_cent } => energy_price(usage.energy_wh, *price_cent),
            Self::Power { tiers } => {
                let average_dw = u64::from(usage.energy_wh) * 36_000 / u64::from(usage.duration_s.max(1));
                tier_of(tiers, average_dw)
                    .map_or(0, |tier| time_price(usage.duration_s, u32::from(tier.price_cent), u32::from(tier.minutes)))
            }
            Self::ServiceFee { periods, by_energy } => service_fee(periods, *by_energy, usage, utc_offset_minutes),
        }
    }

    /// The most that a charge can cost that ends at the given minutes or Wh; `None`: neither bounds this tariff.
    pub fn price_max(&self, minutes: Option<u32>, energy_wh: Option<u32>) -> Option<u64> {
        let of_time = |price_cent: u32, per: u32| {
            minutes.map(|minutes| down(u128::from(minutes) * u128::from(price_cent), u128::from(per.max(1))))
        };
        match self {
            Self::Time { price_cent, minutes } => of_time(*price_cent, *minutes),
            Self::Energy { price_cent } => energy_wh.map(|wh| energy_price(wh, *price_cent)),
            Self::Power { tiers } => {
                dearest_tier(tiers).and_then(|tier| of_time(u32::from(tier.price_cent), u32::from(tier.minutes)))
            }
            Self::ServiceFee { periods, by_energy: true } => {
                energy_wh.map(|wh| energy_price(wh, dearest_period(periods)))
            }
            Self::ServiceFee { by_energy: false, .. } => None,
        }
    }

    /// The most minutes that never cost more than `budget_cent`; `None`: time does not bound this tariff's price.
    pub fn minutes_for(&self, budget_cent: u64) -> Option<u32> {
        match self {
            Self::Time { price_cent, minutes } => Some(most(budget_cent, *price_cent, *minutes)),
            Self::Power { tiers } => {
                dearest_tier(tiers).map(|tier| most(budget_cent, u32::from(tier.price_cent), u32::from(tier.minutes)))
            }
            Self::Energy { .. } | Self::ServiceFee { .. } => None,
        }
    }

    /// The most Wh that never cost more than `budget_cent`; `None`: energy does not bound this tariff's price.
    pub fn energy_wh_for(&self, budget_cent: u64) -> Option<u32> {
        match self {
            Self::Energy { price_cent } => Some(most(budget_cent, *price_cent, 1_000)),
            Self::ServiceFee { periods, by_energy: true } => Some(most(budget_cent, dearest_period(periods), 1_000)),
            Self::Time { .. } | Self::Power { .. } | Self::ServiceFee { by_energy: false, .. } => None,
        }
    }
}

/// The largest quantity whose price, `quantity × price / per` rounded down, is at most `budget_cent`.
fn most(budget_cent: u64, price_cent: u32, per: u32) -> u32 {
    if price_cent == 0 {
        return u32::MAX;
    }
    let below = (u128::from(budget_cent) + 1) * u128::from(per.max(1));
    u32::try_from((below - 1) / u128::from(price_cent)).unwrap_or(u32::MAX)
}

fn dearest_tier(tiers: &[PowerTier]) -> Option<PowerTier> {
    let times = |tier: &PowerTier, other: &PowerTier| u32::from(tier.price_cent) * u32::from(other.minutes.max(1));
    tiers.iter().max_by(|left, right| times(left, right).cmp(&times(right, left))).copied()
}

fn dearest_period(periods: &[FeePeriod]) -> u32 {
    let price = |period: &FeePeriod| u32::from(period.electricity_cent) + u32::from(period.service_cent);
    periods.iter().map(price).max().unwrap_or(0)
}

/// Minutes from midnight to the end of a period; 23:59 is midnight.
fn end_of_period(period: &FeePeriod) -> i64 {
    let minute = i64::from(period.end_hour) * 60 + i64::from(period.end_minute);
    if minute == MINUTES_PER_DAY - 1 { MINUTES_PER_DAY } else { minute }
}

fn down(numerator: u128, denominator: u128) -> u64 {
    clamp(numerator / denominator.max(1))
}

fn clamp(price: u128) -> u64 {
    u64::try_from(price).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const UTC8: i32 = 480;
    const HOUR: i64 = 3_600;

    const fn tier(power_dw: u16, price_cent: u16, minutes: u16) -> PowerTier {
        PowerTier { power_dw, price_cent, minutes }
    }

    const fn period(end_hour: u8, end_minute: u8, electricity_cent: u16, service_cent: u16) -> FeePeriod {
        FeePeriod { end_hour, end_minute, electricity_cent, service_cent }
    }

    const fn usage(start_s: i64, duration_s: u32, energy_wh: u32) -> Usage {
        Usage { start_s, duration_s, energy_wh }
    }

    #[test]
    fn worked_examples_of_the_guide() {
        let used = |minutes| tiers_price(&[TierUse { tier: tier(2000, 25, 60), minutes }]);
        assert_eq!((used(36), used(6)), (15, 2));
        // Half a cent in each of two tiers is one cent: the sum is rounded, not its parts.
        let halves =
            [TierUse { tier: tier(2000, 25, 60), minutes: 6 }, TierUse { tier: tier(4000, 25, 60), minutes: 6 }];
        assert_eq!(tiers_price(&halves), 5);
    }

    #[test]
    fn a_part_of_a_cent_is_not_charged() {
        assert_eq!((time_price(3599, 60, 60), time_price(3600, 60, 60)), (59, 60));
        assert_eq!((energy_price(999, 100), energy_price(1000, 100)), (99, 100));
        assert_eq!((time_price(0, 100, 1), energy_price(0, 100)), (0, 0));
        assert_eq!(time_price(60, 5, 0), 5, "a tariff without minutes is refused; here it counts as one minute");
    }

    #[test]
    fn periods_begin_where_the_one_before_ends() {
        let periods = [period(8, 0, 10, 0), period(23, 59, 20, 0)];
        let in_periods = |start_s, duration| seconds_in_periods(&periods, start_s, duration, 0);
        assert_eq!(in_periods(8 * HOUR - 1, 2), [1, 1]);
        assert_eq!(in_periods(8 * HOUR, 1), [0, 1]);
        // 23:59 lasts to midnight, and the next day begins with the first period.
        assert_eq!(in_periods(24 * HOUR - 61, 122), [61, 61]);
        assert_eq!(in_periods(24 * HOUR - 1, 1), [0, 1]);
        assert_eq!(in_periods(24 * HOUR, 1), [1, 0]);
        let three_days = 3 * 86_400;
        assert_eq!(in_periods(5 * HOUR, three_days), [3 * 8 * 3600, 3 * 16 * 3600]);
        assert_eq!(in_periods(-1, 2), [1, 1], "before 1970 there were days as well");
    }

    #[test]
    fn local_time_decides_the_period() {
        let periods = [period(8, 0, 10, 0), period(23, 59, 20, 0)];
        // 2026-01-01T00:00:00Z is 08:00 at UTC+8.
        let start = 1_767_225_600;
        assert_eq!(seconds_in_periods(&periods, start - 1, 2, UTC8), [1, 1]);
        assert_eq!(seconds_in_periods(&periods, start - 1, 2, 0), [1, 1], "midnight at UTC");
        assert_eq!(seconds_in_periods(&periods, start, 1, UTC8), [0, 1]);
        assert_eq!(seconds_in_periods(&periods, start, 1, 0), [1, 0]);
    }

    #[test]
    fn service_fee_by_energy_and_by_time() {
        let periods = [period(8, 0, 50, 30), period(23, 59, 100, 60)];
        // 2 kWh over two hours, one in each period.
        let across = usage(7 * HOUR, 7200, 2000);
        assert_eq!(service_fee(&periods, true, across, 0), 80 + 160);
        assert_eq!(service_fee(&periods, false, across, 0), 50 + 30 + 100 + 60);
        let at_once = usage(7 * HOUR, 0, 1000);
        assert_eq!(service_fee(&periods, true, at_once, 0), 80);
        assert_eq!(service_fee(&periods, false, at_once, 0), 50);
        let known = [
            PeriodUse { period: periods[0], seconds: 3600, energy_wh: 500 },
            PeriodUse { period: periods[1], seconds: 3600, energy_wh: 1500 },
        ];
        assert_eq!(periods_price(&known, true), 40 + 240);
        assert_eq!(periods_price(&known, false), 25 + 30 + 150 + 60);
    }

    #[test]
    fn power_without_minutes_of_tiers_goes_by_the_average() {
        let tariff = Tariff::Power { tiers: vec![tier(2000, 25, 60), tier(4000, 50, 60)] };
        // 100 Wh in an hour are 100 W, 300 Wh are 300 W, 900 Wh are more than the last tier.
        for (energy, price) in [(100, 25), (200, 25), (201, 50), (300, 50), (900, 50)] {
            assert_eq!(tariff.price(usage(0, 3600, energy), 0), price, "{energy}");
        }
        assert_eq!(tariff.price(usage(0, 0, 100), 0), 0);
    }

    #[test]
    fn tariffs_that_leave_gaps_are_refused() {
        let fee = |periods: Vec<FeePeriod>| Tariff::ServiceFee { periods, by_energy: true }.check();
        assert_eq!(fee(vec![period(23, 59, 1, 1)]), Ok(()));
        assert_eq!(fee(vec![]), Err(TariffError::Periods));
        assert_eq!(fee(vec![period(23, 58, 1, 1)]), Err(TariffError::LastPeriod));
        assert_eq!(
            fee(vec![period(8, 0, 1, 1), period(8, 0, 1, 1), period(23, 59, 1, 1)]),
            Err(TariffError::PeriodOrder)
        );
        assert_eq!(fee(vec![period(0, 0, 1, 1), period(23, 59, 1, 1)]), Err(TariffError::PeriodOrder));
        assert_eq!(fee(vec![period(24, 0, 1, 1)]), Err(TariffError::PeriodOrder));
        let power = |tiers: Vec<PowerTier>| Tariff::Power { tiers }.check();
        assert_eq!(power(vec![tier(1, 1, 1), tier(2, 1, 1)]), Ok(()));
        assert_eq!(power(vec![tier(2, 1, 1), tier(2, 1, 1)]), Err(TariffError::TierOrder));
        assert_eq!(power(vec![tier(2, 1, 0)]), Err(TariffError::NoMinutes));
        assert_eq!(power(vec![tier(2, 1, 1); 6]), Err(TariffError::Tiers));
        assert_eq!(Tariff::Time { price_cent: 1, minutes: 0 }.check(), Err(TariffError::NoMinutes));
    }

    #[test]
    fn extremes_do_not_overflow() {
        let max = u32::MAX;
        let dear = period(23, 59, u16::MAX, u16::MAX);
        let all = usage(i64::MAX, max, max);
        assert_eq!(time_price(max, max, 1), u64::from(max) * u64::from(max) / 60);
        assert_eq!(energy_price(max, max), u64::from(max) * u64::from(max) / 1000);
        assert_eq!(service_fee(&[dear], true, all, i32::MAX), u64::from(max) * 131_070 / 1000);
        let by_time = u128::from(max) * 65_535 * 3600 + u128::from(max) * 65_535 * 1000;
        assert_eq!(u128::from(service_fee(&[dear], false, all, i32::MIN)), by_time / 3_600_000);
        let used = [TierUse { tier: tier(1, u16::MAX, u16::MAX), minutes: max }; TIERS_MAX];
        assert_eq!(tiers_price(&used), 5 * u64::from(max));
        let known = [PeriodUse { period: dear, seconds: max, energy_wh: max }; PERIODS_MAX];
        assert_eq!(u128::from(periods_price(&known, true)), 42 * u128::from(max) * 131_070 / 1000);
        assert_eq!(most(u64::MAX, 1, max), max);
        let power = Tariff::Power { tiers: vec![tier(1, u16::MAX, 1)] };
        assert_eq!(power.price(all, 0), u64::from(max) * 65_535 / 60);
    }

    #[test]
    fn tariffs_are_stored_as_json() {
        let tariff = Tariff::ServiceFee { periods: vec![period(23, 59, 50, 20)], by_energy: false };
        let text = serde_json::to_string(&tariff).unwrap();
        assert_eq!(
            text,
            r#"{"kind":"service_fee","periods":[{"end_hour":23,"end_minute":59,"electricity_cent":50,"service_cent":20}],"by_energy":false}"#
        );
        assert_eq!(serde_json::from_str::<Tariff>(&text).unwrap(), tariff);
    }

    fn tiers() -> impl Strategy<Value = Vec<PowerTier>> {
        let tier = (1..=9_000_u16, any::<u16>(), 1..=u16::MAX);
        prop::collection::vec(tier, 1..=TIERS_MAX).prop_map(|mut tiers| {
            tiers.sort_unstable();
            tiers.dedup_by_key(|tier| tier.0);
            tiers.into_iter().map(|(power, price, minutes)| self::tier(power, price, minutes)).collect()
        })
    }

    fn periods() -> impl Strategy<Value = Vec<FeePeriod>> {
        let ends = prop::collection::btree_set(1..1439_u16, 0..6);
        let prices = prop::collection::vec((any::<u16>(), any::<u16>()), 7);
        (ends, prices).prop_map(|(ends, prices)| {
            let ends = ends.into_iter().chain([1439]);
            let of = |(end, (electricity, service)): (u16, (u16, u16))| {
                period((end / 60) as u8, (end % 60) as u8, electricity, service)
            };
            ends.zip(prices).map(of).collect()
        })
    }

    fn tariff() -> impl Strategy<Value = Tariff> {
        prop_oneof![
            (any::<u32>(), 1..=u32::MAX).prop_map(|(price_cent, minutes)| Tariff::Time { price_cent, minutes }),
            any::<u32>().prop_map(|price_cent| Tariff::Energy { price_cent }),
            tiers().prop_map(|tiers| Tariff::Power { tiers }),
            (periods(), any::<bool>()).prop_map(|(periods, by_energy)| Tariff::ServiceFee { periods, by_energy }),
        ]
    }

    proptest! {
        #[test]
        fn strategies_make_sound_tariffs(tariff in tariff()) {
            prop_assert_eq!(tariff.check(), Ok(()));
        }

        /// At one mean price, more energy in the same time never costs less; nor does more time where time has a price and
        /// the price does not depend on when.
        #[test]
        fn more_costs_no_less(
            price in any::<u32>(), minutes in 1..=u32::MAX, periods in periods(), by_energy: bool,
            start in -1_000_000_000..4_000_000_000_i64, duration: u32, energy: u32, more: u32,
        ) {
            let (longer, higher) = (duration.saturating_add(more), energy.saturating_add(more));
            prop_assert!(time_price(duration, price, minutes) <= time_price(longer, price, minutes));
            prop_assert!(energy_price(energy, price) <= energy_price(higher, price));
            let fee = |energy| service_fee(&periods, by_energy, usage(start, duration, energy), UTC8);
            prop_assert!(fee(energy) <= fee(higher));
            let flat = [period(23, 59, periods[0].electricity_cent, periods[0].service_cent)];
            let fee = |duration| service_fee(&flat, by_energy, usage(start, duration, energy), UTC8);
            prop_assert!(duration == 0 || fee(duration) <= fee(longer));
        }

        #[test]
        fn seconds_of_the_periods_are_the_whole_charge(
            periods in periods(), start in -1_000_000_000..4_000_000_000_i64, duration in 0..1_000_000_u32,
            offset in -720..=840_i32,
        ) {
            let seconds = seconds_in_periods(&periods, start, duration, offset);
            prop_assert_eq!(seconds.iter().sum::<u64>(), u64::from(duration));
            // Beside a count of every minute's second, where that is quick.
            let local = |second: i64| (start + second + i64::from(offset) * 60).rem_euclid(DAY_S);
            let mut counted = vec![0_u64; periods.len()];
            for second in 0..i64::from(duration.min(20_000)) {
                let index = periods.iter().position(|period| local(second) < end_of_period(period) * 60).unwrap();
                counted[index] += 1;
            }
            prop_assert_eq!(seconds_in_periods(&periods, start, duration.min(20_000), offset), counted);
        }

        #[test]
        fn cutting_a_charge_saves_a_cent_at_most(
            price in any::<u32>(), minutes in 1..=u32::MAX, periods in periods(), by_energy: bool,
            start in 0..4_000_000_000_i64, first in 1..200_000_u32, second in 1..200_000_u32, rate in 0..5_000_u32,
        ) {
            // Energy in proportion to the seconds: `rate` Wh each.
            let check = |price: &dyn Fn(Usage) -> u64| {
                let (one, two) = (usage(start, first, first * rate), usage(start + i64::from(first), second, second * rate));
                let whole = price(usage(start, first + second, (first + second) * rate));
                let parts = price(one) + price(two);
                prop_assert!((parts..=parts + 1).contains(&whole), "{} then {}", parts, whole);
                Ok(())
            };
            check(&|used| time_price(used.duration_s, price, minutes))?;
            check(&|used| energy_price(used.energy_wh, price))?;
            check(&|used| service_fee(&periods, by_energy, used, UTC8))?;
        }

        #[test]
        fn cutting_the_minutes_of_tiers_saves_a_cent_at_most(
            tiers in tiers(), cuts in prop::collection::vec((any::<u32>(), any::<u32>()), TIERS_MAX),
        ) {
            let used = |minutes: &dyn Fn(&(u32, u32)) -> u32| -> Vec<TierUse> {
                tiers.iter().zip(&cuts).map(|(tier, cut)| TierUse { tier: *tier, minutes: minutes(cut) }).collect()
            };
            let whole = tiers_price(&used(&|cut| cut.0));
            let parts = tiers_price(&used(&|cut| cut.0.min(cut.1))) + tiers_price(&used(&|cut| cut.0.saturating_sub(cut.1)));
            prop_assert!((parts..=parts + 1).contains(&whole));
            // The exact sum over one common denominator gives the same.
            let common: u128 = tiers.iter().map(|tier| u128::from(tier.minutes)).product();
            let sum: u128 = used(&|cut| cut.0).iter()
                .map(|used| u128::from(used.minutes) * u128::from(used.tier.price_cent) * (common / u128::from(used.tier.minutes)))
                .sum();
            prop_assert_eq!(u128::from(whole), sum / common);
        }

        /// What a budget buys costs no more than it, whenever and at whatever power it is used; one more would.
        #[test]
        fn a_budget_is_kept_and_used_up(
            tariff in tariff(), budget in 0..1_000_000_u64, start in 0..4_000_000_000_i64, energy: u32, duration: u32,
        ) {
            if let Some(minutes) = tariff.minutes_for(budget) {
                let seconds = minutes.saturating_mul(60);
                prop_assert!(tariff.price(usage(start, seconds, energy), UTC8) <= budget);
                prop_assert!(tariff.price_max(Some(minutes), None).unwrap() <= budget);
                if let Some(more) = minutes.checked_add(1) {
                    prop_assert!(tariff.price_max(Some(more), None).unwrap() > budget);
                }
            }
            if let Some(wh) = tariff.energy_wh_for(budget) {
                prop_assert!(tariff.price(usage(start, duration, wh), UTC8) <= budget);
                prop_assert!(tariff.price_max(None, Some(wh)).unwrap() <= budget);
                if let Some(more) = wh.checked_add(1) {
                    prop_assert!(tariff.price_max(None, Some(more)).unwrap() > budget);
                }
            }
        }

        #[test]
        fn stored_tariffs_read_back(tariff in tariff()) {
            let text = serde_json::to_string(&tariff).unwrap();
            prop_assert_eq!(serde_json::from_str::<Tariff>(&text).unwrap(), tariff);
        }
    }
}
