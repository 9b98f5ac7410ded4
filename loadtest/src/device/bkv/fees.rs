//! Prices by time of day: which tier a charge runs through, and what it costs.
//!
//! The service fee by time has no stated basis; it is taken per hour here.

use chargegate::protocol::bkv::packet::FeeTier;

const DAY_S: u32 = 86_400;
/// Cost is counted in parts of 0.01 yuan that 0.1 W s at 0.01 yuan per kWh make exact.
const PARTS_PER_CENT: u64 = 36_000_000;
/// Parts of 0.01 yuan in a second at 0.01 yuan per hour.
const PARTS_PER_HOURLY: u64 = PARTS_PER_CENT / 3600;

/// The tariff of a charge.
#[derive(Clone, Debug)]
pub(super) struct Fees {
    pub(super) tiers: Vec<FeeTier>,
    pub(super) by_energy: bool,
    /// Seconds of the local day when the charge began.
    pub(super) start_s: u32,
}

/// What a charge used in one tier.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct TierUse {
    pub(super) minutes: u16,
    pub(super) energy_wh: u32,
    seconds: u32,
}

impl Fees {
    /// The tier at a second of the day, and the seconds until the next one.
    fn tier_at(&self, of_day_s: u32) -> (usize, u32) {
        let end_s = |tier: &FeeTier| (u32::from(tier.end.hour) * 60 + u32::from(tier.end.minute)) * 60;
        let last = self.tiers.len().saturating_sub(1);
        // The last tier ends at 23:59 on the wire and with the day in fact.
        let at = self.tiers.iter().take(last).position(|tier| of_day_s < end_s(tier)).unwrap_or(last);
        let until_s = if at == last { DAY_S } else { self.tiers.get(at).map_or(DAY_S, end_s) };
        (at, until_s - of_day_s)
    }

    /// Tier and length of each stretch of a charge of `seconds`.
    fn stretches(&self, seconds: u32) -> impl Iterator<Item = (usize, u32)> {
        let (mut of_day_s, mut left_s) = (self.start_s % DAY_S, seconds);
        std::iter::from_fn(move || {
            if left_s == 0 {
                return None;
            }
            let (at, until_s) = self.tier_at(of_day_s);
            let stretch_s = until_s.min(left_s);
            of_day_s = (of_day_s + stretch_s) % DAY_S;
            left_s -= stretch_s;
            Some((at, stretch_s))
        })
    }

    /// Parts of 0.01 yuan that a second in this tier costs.
    fn parts_per_s(&self, at: usize, power_dw: u16) -> u64 {
        let Some(tier) = self.tiers.get(at) else { return 0 };
        let electricity = u64::from(power_dw) * u64::from(tier.electricity_cent_per_kwh);
        let service = u64::from(tier.service_cent_per_kwh);
        electricity + if self.by_energy { u64::from(power_dw) * service } else { PARTS_PER_HOURLY * service }
    }

    /// For how many seconds, at most `max_s`, an amount lasts at this power.
    pub(super) fn lasts_s(&self, paid_cent: u16, power_dw: u16, max_s: u32) -> u32 {
        let mut left = u64::from(paid_cent) * PARTS_PER_CENT;
        let mut total_s = 0;
        for (at, stretch_s) in self.stretches(max_s) {
            let rate = self.parts_per_s(at, power_dw);
            let cost = rate * u64::from(stretch_s);
            if cost > left {
                return total_s + u32::try_from(left.div_ceil(rate)).unwrap_or(stretch_s);
            }
            left -= cost;
            total_s += stretch_s;
        }
        max_s
    }

    /// What a charge of `seconds` and `energy_wh` at even power used in each tier. Minutes and energy add up to those of
    /// the whole charge.
    pub(super) fn split(&self, seconds: u32, energy_wh: u32) -> Vec<TierUse> {
        let mut uses = vec![TierUse::default(); self.tiers.len()];
        let (mut done_s, mut before_min, mut before_wh) = (0_u32, 0, 0);
        for (at, stretch_s) in self.stretches(seconds) {
            done_s += stretch_s;
            let minutes = u16::try_from(done_s / 60).unwrap_or(u16::MAX);
            let wh = u64::from(energy_wh) * u64::from(done_s) / u64::from(seconds);
            let wh = u32::try_from(wh).unwrap_or(u32::MAX);
            if let Some(used) = uses.get_mut(at) {
                used.minutes += minutes - before_min;
                used.energy_wh += wh - before_wh;
                used.seconds += stretch_s;
            }
            (before_min, before_wh) = (minutes, wh);
        }
        uses
    }

    /// Electricity and service fee of `uses`, in 0.01 yuan rounded down.
    pub(super) fn cost_cent(&self, uses: &[TierUse]) -> [u32; 2] {
        let electricity = self.sum(uses, |used, tier| (used.energy_wh, tier.electricity_cent_per_kwh)) / 1000;
        let service = if self.by_energy {
            self.sum(uses, |used, tier| (used.energy_wh, tier.service_cent_per_kwh)) / 1000
        } else {
            self.sum(uses, |used, tier| (used.seconds, tier.service_cent_per_kwh)) / 3600
        };
        [electricity, service].map(|cent| u32::try_from(cent).unwrap_or(u32::MAX))
    }

    fn sum(&self, uses: &[TierUse], factors: impl Fn(&TierUse, &FeeTier) -> (u32, u16)) -> u64 {
        let products = uses.iter().zip(&self.tiers).map(|(used, tier)| factors(used, tier));
        products.map(|(amount, price)| u64::from(amount) * u64::from(price)).sum()
    }
}

#[cfg(test)]
mod tests {
    use chargegate::protocol::clock::TimeOfDay;

    use super::*;

    fn fees(start_s: u32, by_energy: bool) -> Fees {
        let tier = |hour, minute, electricity, service| FeeTier {
            end: TimeOfDay { hour, minute },
            electricity_cent_per_kwh: electricity,
            service_cent_per_kwh: service,
        };
        Fees { tiers: vec![tier(8, 0, 30, 10), tier(23, 59, 60, 20)], by_energy, start_s }
    }

    #[test]
    fn a_charge_over_midnight_runs_through_both_tiers() {
        let fees = fees(23 * 3600, true);
        let uses = fees.split(2 * 3600 + 90, 1001);
        assert_eq!(uses.iter().map(|used| used.minutes).collect::<Vec<_>>(), [61, 60]);
        assert_eq!(uses.iter().map(|used| used.energy_wh).sum::<u32>(), 1001);
        assert_eq!(uses[1].energy_wh, 494, "one of 2 h and 90 s");
        assert_eq!(fees.cost_cent(&uses), [(507 * 30 + 494 * 60) / 1000, (507 * 10 + 494 * 20) / 1000]);
    }

    #[test]
    fn an_amount_lasts_as_long_as_it_pays() {
        // 100 W for an hour before eight cost 3 + 1, after eight 6 + 2.
        assert_eq!(fees(6 * 3600, true).lasts_s(4, 1000, 36_000), 3600);
        assert_eq!(fees(7 * 3600, true).lasts_s(12, 1000, 36_000), 7200);
        assert_eq!(fees(7 * 3600, true).lasts_s(1000, 1000, 36_000), 36_000);
        // By time: 3 + 10 an hour.
        assert_eq!(fees(0, false).lasts_s(13, 1000, 36_000), 3600);
        let by_time = fees(0, false);
        assert_eq!(by_time.cost_cent(&by_time.split(3600, 100)), [3, 10]);
    }

    #[test]
    fn without_tiers_everything_is_free() {
        let fees = Fees { tiers: Vec::new(), by_energy: true, start_s: 5 };
        assert_eq!(fees.lasts_s(1, 5000, 100_000), 100_000);
        assert_eq!(fees.split(3600, 100), []);
    }
}
