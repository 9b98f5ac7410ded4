//! The body of a delivery.
//!
//! `{event_id, event_type, device_phy_id, order_no, sequence_no, pos, timestamp, nonce, data}`, in this order. `timestamp` is
//! the event's time; `nonce` equals `X-Nonce` and is new for each attempt, so that a receiver that counts each nonce once does
//! not refuse a retry. All other bytes are the same in each attempt; what names the event is `event_id`.

use serde::{Serialize, de::IgnoredAny};

use crate::store::EventRecord;

#[derive(Serialize)]
struct Head<'a> {
    event_id: &'a str,
    event_type: &'a str,
    device_phy_id: Option<&'a str>,
    order_no: Option<&'a str>,
    sequence_no: u32,
    pos: i64,
    timestamp: String,
    nonce: &'a str,
}

/// The bytes to send; `None` if the stored `data` is not JSON.
pub(super) fn encode(event: &EventRecord, nonce: &str) -> Option<Vec<u8>> {
    // `data` is stored as text: it is put in as it is, once it is known that it cannot break out of its place.
    serde_json::from_str::<IgnoredAny>(&event.data).ok()?;
    let head = Head {
        event_id: &event.event_id,
        event_type: &event.event_type,
        device_phy_id: event.device_id.as_deref(),
        order_no: event.order_no.as_deref(),
        sequence_no: event.sequence_no,
        pos: event.pos,
        timestamp: rfc3339_ms(event.at),
        nonce,
    };
    let mut body = serde_json::to_vec(&head).ok()?;
    body.pop();
    body.extend_from_slice(b",\"data\":");
    body.extend_from_slice(event.data.as_bytes());
    body.push(b'}');
    Some(body)
}

/// RFC 3339 in UTC with milliseconds.
pub(super) fn rfc3339_ms(unix_ms: i64) -> String {
    let (days, ms) = (unix_ms.div_euclid(86_400_000), unix_ms.rem_euclid(86_400_000));
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (ms / 3_600_000, ms / 60_000 % 60, ms / 1_000 % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:03}Z", ms % 1_000)
}

/// Days since 1970-01-01 to year, month, day of the Gregorian calendar (eras of 400 years that begin on 1 March).
fn civil(days: i64) -> (i64, i64, i64) {
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(data: &str) -> EventRecord {
        EventRecord {
            pos: 7,
            event_id: "e-1".to_owned(),
            event_type: "order.created".to_owned(),
            key: "THD0000000000001".to_owned(),
            device_id: Some("40aace04".to_owned()),
            order_no: None,
            sequence_no: 3,
            at: 1_709_210_096_007,
            data: data.to_owned(),
        }
    }

    #[test]
    fn body_has_its_fields_in_order() {
        assert_eq!(
            String::from_utf8(encode(&event(r#"{"a":1}"#), "n1").unwrap()).unwrap(),
            concat!(
                r#"{"event_id":"e-1","event_type":"order.created","device_phy_id":"40aace04","order_no":null,"#,
                r#""sequence_no":3,"pos":7,"timestamp":"2024-02-29T12:34:56.007Z","nonce":"n1","data":{"a":1}}"#
            )
        );
    }

    #[test]
    fn data_that_is_not_json_is_refused() {
        for data in ["", "{", r#"1},"x":{"#, r#"{"a":1} trailing"#] {
            assert!(encode(&event(data), "n").is_none(), "{data}");
        }
    }

    #[test]
    fn times_at_the_edges_of_the_calendar() {
        for (unix_ms, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (-1, "1969-12-31T23:59:59.999Z"),
            (951_782_400_000, "2000-02-29T00:00:00.000Z"),
            (951_868_800_000, "2000-03-01T00:00:00.000Z"),
            (4_107_542_399_999, "2100-02-28T23:59:59.999Z"),
            (4_107_542_400_000, "2100-03-01T00:00:00.000Z"),
        ] {
            assert_eq!(rfc3339_ms(unix_ms), text);
        }
    }
}
