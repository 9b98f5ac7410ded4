//! The power model: what a charge draws, and when it ends by itself.
//!
//! A charge draws one power from beginning to end, so energy = power × time, and any two observers who know seed, device,
//! port and how many charges came before agree on the totals. Time is the device's clock × the time factor.

use super::Behaviour;

/// 0.1 W; e-bike chargers draw tens to hundreds of watts.
const POWER_DW: std::ops::RangeInclusive<u64> = 600..=5000;
/// Seconds of charging after which a battery is full.
const FULL_S: std::ops::RangeInclusive<u64> = 3600..=18_000;

/// What a charge may use up; whatever comes first ends it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Limits {
    /// Ordered seconds.
    pub duration_s: Option<u32>,
    /// Ordered energy in Wh.
    pub energy_wh: Option<u32>,
    /// Longest charge in seconds, ordered or not.
    pub duration_max_s: Option<u32>,
    /// Whether it ends when the battery is full.
    pub until_full: bool,
}

/// Why a charge ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Ordered time used up.
    Duration,
    /// Ordered energy used up.
    Energy,
    /// Longest charge reached.
    DurationMax,
    /// The battery is full.
    Full,
    /// Nothing is plugged in.
    NoLoad,
    /// The server said so.
    Stopped,
    /// The charger was pulled out.
    Unplugged,
    /// The device cut the power. AP3000: the stop reason; BKV: the status byte of the end report.
    Fault(u8),
}

/// A running charge.
#[derive(Clone, Copy, Debug)]
pub struct Charge {
    started_us: u64,
    factor: u32,
    power_dw: u16,
    full_s: u32,
    ends_us: u64,
    end: End,
}

impl Charge {
    /// Begins the `nth` charge of a port at `now_us`. Without a load nothing is drawn, and it ends after `no_load_s`.
    pub fn begin(
        now_us: u64,
        behaviour: &Behaviour,
        [index, port, nth]: [u64; 3],
        load: Result<(), u32>,
        limits: Limits,
    ) -> Self {
        let random = draw(behaviour.seed, &[index, port, nth]);
        let within = |range: std::ops::RangeInclusive<u64>, random: u64| {
            u32::try_from(range.start() + random % (range.end() - range.start() + 1)).unwrap_or(u32::MAX)
        };
        let power_dw = if load.is_ok() { within(POWER_DW, random) } else { 0 };
        let mut charge = Self {
            started_us: now_us,
            factor: behaviour.time_factor.max(1),
            power_dw: u16::try_from(power_dw).unwrap_or(u16::MAX),
            full_s: within(FULL_S, random >> 32),
            ends_us: u64::MAX,
            end: End::Full,
        };
        charge.limit(limits);
        if let Err(no_load_s) = load {
            charge.end_at(no_load_s, End::NoLoad);
        }
        charge
    }

    /// Puts new limits in the place of the old ones.
    pub fn limit(&mut self, limits: Limits) {
        self.ends_us = u64::MAX;
        if let Some(duration_s) = limits.duration_s {
            self.end_at(duration_s, End::Duration);
        }
        if let Some(energy_wh) = limits.energy_wh
            && self.power_dw > 0
        {
            let seconds = (u64::from(energy_wh) * 36_000).div_ceil(u64::from(self.power_dw));
            self.end_at(u32::try_from(seconds).unwrap_or(u32::MAX), End::Energy);
        }
        if limits.until_full {
            self.end_at(self.full_s, End::Full);
        }
        if let Some(duration_max_s) = limits.duration_max_s {
            self.end_at(duration_max_s, End::DurationMax);
        }
    }

    fn end_at(&mut self, seconds: u32, end: End) {
        // Rounded up, so that the whole seconds of the clock have passed at the end.
        let after_us = (u64::from(seconds) * 1_000_000).div_ceil(u64::from(self.factor));
        let ends_us = self.started_us.saturating_add(after_us);
        if ends_us < self.ends_us {
            (self.ends_us, self.end) = (ends_us, end);
        }
    }

    /// When it ends by itself, and why; the time is `u64::MAX` if never.
    pub const fn ends(&self) -> (u64, End) {
        (self.ends_us, self.end)
    }

    /// When it began.
    pub const fn started_us(&self) -> u64 {
        self.started_us
    }

    /// Whether the battery is full at `now_us`, watched or not.
    pub fn is_full(&self, now_us: u64) -> bool {
        self.elapsed_s(now_us) >= self.full_s
    }

    /// Power in 0.1 W.
    pub const fn power_dw(&self) -> u16 {
        self.power_dw
    }

    /// Current in mA at `voltage_dv` 0.1 V.
    pub fn current_ma(&self, voltage_dv: u16) -> u16 {
        u16::try_from(u32::from(self.power_dw) * 1000 / u32::from(voltage_dv.max(1))).unwrap_or(u16::MAX)
    }

    /// Microseconds of charging until `now_us`.
    fn elapsed_us(&self, now_us: u64) -> u64 {
        now_us.saturating_sub(self.started_us).saturating_mul(u64::from(self.factor))
    }

    /// Whole seconds of charging until `now_us`.
    pub fn elapsed_s(&self, now_us: u64) -> u32 {
        u32::try_from(self.elapsed_us(now_us) / 1_000_000).unwrap_or(u32::MAX)
    }

    /// Whole Wh drawn until `now_us`.
    pub fn energy_wh(&self, now_us: u64) -> u32 {
        let dw_us = u128::from(self.elapsed_us(now_us)) * u128::from(self.power_dw);
        u32::try_from(dw_us / 36_000_000_000).unwrap_or(u32::MAX)
    }
}

/// A value that depends on all of `parts`, evenly spread (SplitMix64).
pub fn draw(seed: u64, parts: &[u64]) -> u64 {
    parts.iter().fold(mix(seed), |state, part| mix(state ^ *part))
}

const fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FAST: Behaviour = Behaviour { heartbeat_us: 1, time_factor: 60, seed: 7, unplugged_percent: 0 };

    #[test]
    fn the_first_limit_ends_it() {
        let begin = |limits| Charge::begin(1_000, &FAST, [1, 0, 0], Ok(()), limits);
        let time = Limits { duration_s: Some(60), duration_max_s: Some(36_000), ..Limits::default() };
        assert_eq!(begin(time).ends(), (1_001_000, End::Duration), "60 s of charging are 1 s at factor 60");
        let longest = Limits { duration_s: Some(60), duration_max_s: Some(30), ..Limits::default() };
        assert_eq!(begin(longest).ends(), (501_000, End::DurationMax));
        assert_eq!(begin(Limits { until_full: true, ..Limits::default() }).ends().1, End::Full);
        assert_eq!(begin(Limits::default()).ends().0, u64::MAX);
    }

    #[test]
    fn ordered_energy_is_drawn_at_the_end() {
        for nth in 0..50 {
            let limits = Limits { energy_wh: Some(1000), ..Limits::default() };
            let charge = Charge::begin(5, &FAST, [1, 0, nth], Ok(()), limits);
            assert!(POWER_DW.contains(&u64::from(charge.power_dw())));
            assert_eq!(charge.ends().1, End::Energy);
            assert_eq!(charge.energy_wh(charge.ends().0), 1000);
        }
    }

    #[test]
    fn without_load_nothing_is_drawn() {
        let charge = Charge::begin(0, &FAST, [1, 0, 0], Err(60), Limits { duration_s: Some(600), ..Limits::default() });
        assert_eq!(charge.ends(), (1_000_000, End::NoLoad));
        assert_eq!(charge.energy_wh(1_000_000), 0);
    }

    #[test]
    fn the_same_seed_gives_the_same_power() {
        let power = |seed, port| {
            Charge::begin(0, &Behaviour { seed, ..FAST }, [3, port, 0], Ok(()), Limits::default()).power_dw()
        };
        assert_eq!(power(7, 0), power(7, 0));
        assert_ne!(power(7, 0), power(8, 0));
        assert_ne!(power(7, 0), power(7, 1));
    }
}
