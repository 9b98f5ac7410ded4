//! What a protocol can charge: limits of an order, checked before it exists.

use crate::model::{ChargeMode, ChargeSpec, Protocol};

/// Longest timed AP3000 charge: the wire field holds 65,535 s (device-server protocol v8.6, command 82).
pub const AP3000_MINUTES_MAX: u16 = 1092;
/// Largest AP3000 energy: the wire field counts 0.01 kWh in 16 bits.
pub const AP3000_ENERGY_WH_MAX: u32 = 655_350;
/// The wire counts 0.01 kWh.
pub const AP3000_ENERGY_STEP_WH: u32 = 10;
/// Longest timed BKV/GN charge (integration guide V1.7, sub-command 07).
pub const BKV_MINUTES_MAX: u16 = 900;
/// Largest BKV/GN energy: 16 bits of Wh.
pub const BKV_ENERGY_WH_MAX: u32 = 65_535;
/// Power tiers of an order (integration guide V1.7, sub-command 17).
pub const BKV_TIERS_MAX: usize = 5;
/// Fee periods that fit into one element of 255 bytes.
pub const BKV_PERIODS_MAX: usize = 42;

/// Why an order cannot be taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChargeError {
    /// A value is out of the protocol's range.
    #[error("{field} must be {expected} for {protocol}, got {value}", protocol = protocol.as_str())]
    Range {
        /// Field of the request.
        field: &'static str,
        /// What is allowed.
        expected: String,
        /// The protocol.
        protocol: Protocol,
        /// The value.
        value: u64,
    },
    /// The protocol has no such charge.
    #[error("{what} is not supported by {protocol}", protocol = protocol.as_str())]
    NotSupported {
        /// The mode or option.
        what: &'static str,
        /// The protocol.
        protocol: Protocol,
    },
}

/// Checks an order against the limits of the device's protocol.
///
/// # Errors
/// Names the field, the range and the value, or what the protocol cannot do.
pub fn check(spec: &ChargeSpec, protocol: Protocol) -> Result<(), ChargeError> {
    let range = |field, value: u64, min: u64, max: u64| {
        if (min..=max).contains(&value) {
            return Ok(());
        }
        Err(ChargeError::Range { field, expected: format!("{min}..={max}"), protocol, value })
    };
    let unsupported = |what| Err(ChargeError::NotSupported { what, protocol });
    match (protocol, &spec.mode) {
        (Protocol::Ap3000, ChargeMode::Full) => Ok(()),
        (Protocol::Ap3000, ChargeMode::Time { minutes }) => {
            range("duration_minutes", u64::from(*minutes), 1, u64::from(AP3000_MINUTES_MAX))
        }
        (Protocol::Ap3000, ChargeMode::Energy { wh }) => {
            let max = u64::from(AP3000_ENERGY_WH_MAX);
            range("energy_wh", u64::from(*wh), u64::from(AP3000_ENERGY_STEP_WH), max)?;
            if wh % AP3000_ENERGY_STEP_WH != 0 {
                let expected = format!("a multiple of {AP3000_ENERGY_STEP_WH}");
                return Err(ChargeError::Range { field: "energy_wh", expected, protocol, value: u64::from(*wh) });
            }
            Ok(())
        }
        (Protocol::Ap3000, ChargeMode::Power { .. }) => unsupported("mode power"),
        (Protocol::Ap3000, ChargeMode::ServiceFee { .. }) => unsupported("mode service_fee"),
        (Protocol::Bkv | Protocol::Gn, _) if spec.stop_when_full => unsupported("stop_when_full"),
        (Protocol::Bkv | Protocol::Gn, ChargeMode::Full) => unsupported("mode full"),
        (Protocol::Bkv | Protocol::Gn, ChargeMode::Time { minutes }) => {
            range("duration_minutes", u64::from(*minutes), 1, u64::from(BKV_MINUTES_MAX))
        }
        (Protocol::Bkv | Protocol::Gn, ChargeMode::Energy { wh }) => {
            range("energy_wh", u64::from(*wh), 1, u64::from(BKV_ENERGY_WH_MAX))
        }
        (Protocol::Bkv | Protocol::Gn, ChargeMode::Power { tiers }) => {
            range("paid_cent", u64::from(spec.paid_cent.unwrap_or(0)), 0, u64::from(u16::MAX))?;
            range("tiers (number)", tiers.len() as u64, 1, BKV_TIERS_MAX as u64)
        }
        (Protocol::Bkv | Protocol::Gn, ChargeMode::ServiceFee { periods, .. }) => {
            range("paid_cent", u64::from(spec.paid_cent.unwrap_or(0)), 0, u64::from(u16::MAX))?;
            range("fee_periods (number)", periods.len() as u64, 1, BKV_PERIODS_MAX as u64)?;
            let mut last = None;
            for period in periods {
                let end = u64::from(period.end_hour) * 60 + u64::from(period.end_minute);
                range("fee_periods.end_hour", u64::from(period.end_hour), 0, 23)?;
                range("fee_periods.end_minute", u64::from(period.end_minute), 0, 59)?;
                if last.is_some_and(|last| end <= last) {
                    let expected = "later than the period before".to_owned();
                    return Err(ChargeError::Range { field: "fee_periods end", expected, protocol, value: end });
                }
                last = Some(end);
            }
            if last != Some(23 * 60 + 59) {
                let expected = "23:59 (minute 1439) in the last period".to_owned();
                let value = last.unwrap_or(0);
                return Err(ChargeError::Range { field: "fee_periods end", expected, protocol, value });
            }
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::FeePeriod;

    fn spec(mode: ChargeMode) -> ChargeSpec {
        ChargeSpec { mode, paid_cent: None, stop_when_full: false }
    }

    #[test]
    fn limits_hold_at_their_edges() {
        let time = |minutes| spec(ChargeMode::Time { minutes });
        let energy = |wh| spec(ChargeMode::Energy { wh });
        for (protocol, minutes_max, wh_min, wh_max) in
            [(Protocol::Ap3000, 1092, 10, 655_350), (Protocol::Bkv, 900, 1, 65_535)]
        {
            for (spec, ok) in [
                (time(0), false),
                (time(1), true),
                (time(minutes_max), true),
                (time(minutes_max + 1), false),
                (energy(0), false),
                (energy(wh_min), true),
                (energy(wh_max), true),
                (energy(wh_max + wh_min), false),
            ] {
                assert_eq!(check(&spec, protocol).is_ok(), ok, "{spec:?} {protocol:?}");
            }
        }
        let error = check(&energy(15), Protocol::Ap3000).unwrap_err();
        assert_eq!(error.to_string(), "energy_wh must be a multiple of 10 for ap3000, got 15");
    }

    #[test]
    fn fee_periods_rise_and_end_the_day() {
        let period = |end_hour, end_minute| FeePeriod { end_hour, end_minute, electricity_cent: 50, service_cent: 20 };
        let fee = |periods| spec(ChargeMode::ServiceFee { periods, by_energy: true });
        assert!(check(&fee(vec![period(23, 59)]), Protocol::Bkv).is_ok());
        assert!(check(&fee(vec![period(8, 0), period(23, 59)]), Protocol::Gn).is_ok());
        assert!(check(&fee(vec![period(8, 0)]), Protocol::Bkv).is_err());
        assert!(check(&fee(vec![period(8, 0), period(8, 0), period(23, 59)]), Protocol::Bkv).is_err());
        assert!(check(&fee(vec![period(24, 0)]), Protocol::Bkv).is_err());
        assert!(matches!(check(&fee(vec![]), Protocol::Ap3000), Err(ChargeError::NotSupported { .. })));
    }
}
