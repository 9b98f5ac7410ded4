//! Objects as third parties read them, built the same for events and for the API.

use std::fmt;

use serde::{Serialize, Serializer};

use super::PortRecord;
use crate::model::{DeviceId, Order, OrderNo, OrderStatus};

/// A time as sent to third parties: RFC 3339 UTC with milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timestamp(
    /// Unix ms.
    pub i64,
);

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const DAY_MS: i64 = 86_400_000;
        let (days, ms) = (self.0.div_euclid(DAY_MS), self.0.rem_euclid(DAY_MS));
        // Days since 0000-03-01, so that the leap day is a year's last (Howard Hinnant, "chrono-compatible date algorithms").
        let days = days.saturating_add(719_468);
        let (era, day_of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
        let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let shifted_month = (5 * day_of_year + 2) / 153;
        let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
        let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
        let year = year_of_era + era * 400 + i64::from(month <= 2);
        let (hour, minute, second) = (ms / 3_600_000, ms / 60_000 % 60, ms / 1000 % 60);
        write!(f, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:03}Z", ms % 1000)
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// An order.
#[derive(Clone, Copy, Debug, Serialize)]
#[expect(missing_docs, reason = "the fields are those of the order")]
pub struct OrderObject<'a> {
    pub order_no: OrderNo,
    pub device_id: DeviceId,
    pub port_no: u16,
    pub status: u8,
    pub status_text: &'static str,
    pub mode: &'static str,
    pub paid_cent: Option<u32>,
    pub start_time: Option<Timestamp>,
    pub end_time: Option<Timestamp>,
    pub duration_seconds: Option<u32>,
    pub energy_wh: Option<u32>,
    pub amount_cent: Option<u32>,
    pub end_reason: Option<&'a str>,
    pub end_reason_raw: Option<u8>,
    pub business_no: Option<u16>,
    pub failure_reason: Option<&'a str>,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

impl<'a> From<&'a Order> for OrderObject<'a> {
    fn from(order: &'a Order) -> Self {
        Self {
            order_no: order.order_no,
            device_id: order.device_id,
            port_no: order.port_no,
            status: order.status.code(),
            status_text: order.status.as_str(),
            mode: order.spec.mode.as_str(),
            paid_cent: order.spec.paid_cent,
            start_time: order.start_time.map(Timestamp),
            end_time: order.end_time.map(Timestamp),
            duration_seconds: order.duration_seconds,
            energy_wh: order.energy_wh,
            amount_cent: order.amount_cent,
            end_reason: order.end_reason.as_deref(),
            end_reason_raw: order.end_reason_raw,
            business_no: order.business_no,
            failure_reason: order.failure_reason.as_deref(),
            created_at: Timestamp(order.created_at),
            updated_at: Timestamp(order.updated_at),
        }
    }
}

/// `data` of an order's event.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct OrderEvent<'a> {
    /// The order after the step.
    #[serde(flatten)]
    pub order: OrderObject<'a>,
    /// Status before; `None` for `order.created`.
    pub old_status: Option<u8>,
    /// Status after.
    pub new_status: u8,
    /// Only `order.settled`: the order had been final for more than 60 s.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub late: Option<bool>,
}

impl<'a> OrderEvent<'a> {
    /// The order as it is after a step from `from`.
    pub fn new(order: &'a Order, from: Option<OrderStatus>, late: Option<bool>) -> Self {
        let new_status = order.status.code();
        Self { order: order.into(), old_status: from.map(OrderStatus::code), new_status, late }
    }
}

/// `data` of `device.alarm` as the store raises it.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Alarm<'a> {
    /// The device.
    pub device_id: DeviceId,
    /// From 1.
    pub port_no: u16,
    /// The order it is about.
    pub order_no: Option<OrderNo>,
    /// What happened, one word.
    pub reason: &'static str,
    /// More of it, e.g. an error text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<&'a str>,
}

/// A port.
#[derive(Clone, Copy, Debug, Serialize)]
#[expect(missing_docs, reason = "the fields are those of the port")]
pub struct PortObject {
    pub port_no: u16,
    pub socket: Option<u8>,
    pub hole: Option<u8>,
    pub status: u8,
    pub status_text: &'static str,
    pub raw_status: u8,
    pub power_dw: u16,
    pub current_ma: u16,
    pub voltage_dv: u16,
    pub energy_wh: u32,
    pub charged_seconds: u32,
    pub order_no: Option<OrderNo>,
    pub updated_at: Option<Timestamp>,
}

impl PortObject {
    /// A port and the order that holds it. `updated_at` is null before the first report.
    pub fn new(port: &PortRecord, order_no: Option<OrderNo>) -> Self {
        Self {
            port_no: port.port_no,
            socket: port.socket,
            hole: port.hole,
            status: port.status.code(),
            status_text: port.status.as_str(),
            raw_status: port.raw_status,
            power_dw: port.power_dw,
            current_ma: port.current_ma,
            voltage_dv: port.voltage_dv,
            energy_wh: port.energy_wh,
            charged_seconds: port.charged_seconds,
            order_no,
            updated_at: (port.updated_at != 0).then_some(Timestamp(port.updated_at)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_rfc_3339_with_milliseconds() {
        for (ms, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (-1, "1969-12-31T23:59:59.999Z"),
            (951_782_399_999, "2000-02-28T23:59:59.999Z"),
            (951_782_400_000, "2000-02-29T00:00:00.000Z"),
            (951_868_800_000, "2000-03-01T00:00:00.000Z"),
            (1_700_000_000_123, "2023-11-14T22:13:20.123Z"),
            (4_107_542_399_000, "2100-02-28T23:59:59.000Z"),
            (4_107_542_400_000, "2100-03-01T00:00:00.000Z"),
        ] {
            assert_eq!(Timestamp(ms).to_string(), text);
        }
    }
}
