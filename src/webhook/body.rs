//! The body of a delivery.
//!
//! `{event_id, event_type, device_phy_id, order_no, sequence_no, pos, timestamp, nonce, data}`, in this order. `timestamp` is
//! the event's time; `nonce` equals `X-Nonce` and is new for each attempt, so that a receiver that counts each nonce once does
//! not refuse a retry. All other bytes are the same in each attempt; what names the event is `event_id`.

use serde::{Serialize, de::IgnoredAny};

use crate::{store::EventRecord, time::Rfc3339};

#[derive(Serialize)]
struct Head<'a> {
    event_id: &'a str,
    event_type: &'a str,
    device_phy_id: Option<&'a str>,
    order_no: Option<&'a str>,
    sequence_no: u32,
    pos: i64,
    timestamp: Rfc3339,
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
        timestamp: Rfc3339(event.at),
        nonce,
    };
    let mut body = serde_json::to_vec(&head).ok()?;
    body.pop();
    body.extend_from_slice(b",\"data\":");
    body.extend_from_slice(event.data.as_bytes());
    body.push(b'}');
    Some(body)
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
}
