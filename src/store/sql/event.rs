//! Events, inserted with the change they tell.

use serde::Serialize;
use uuid::{NoContext, Timestamp, Uuid};

use super::{apply::Tx, rows::EventRow};
use crate::{
    model::{Card, DeviceId, EventType, Order, OrderNo, OrderStatus},
    store::{
        DeviceEvent, StoreError,
        payload::{Alarm, OrderEvent},
    },
};

struct NewEvent<'a> {
    event_type: EventType,
    key: &'a str,
    device_id: Option<&'a str>,
    order_no: Option<&'a str>,
    /// 0: outside the key's sequence.
    sequence_no: u32,
    at: i64,
    data: &'a str,
}

impl Tx<'_> {
    fn insert_event(&mut self, event: &NewEvent<'_>) -> Result<(), StoreError> {
        let ms = event.at.max(0).unsigned_abs();
        let stamp = Timestamp::from_unix(NoContext, ms / 1000, (ms % 1000) as u32 * 1_000_000);
        let mut id = Uuid::encode_buffer();
        let id = &*Uuid::new_v7(stamp).hyphenated().encode_lower(&mut id);
        let row = EventRow {
            event_id: id,
            event_type: event.event_type.as_str(),
            key: event.key,
            device_id: event.device_id,
            order_no: event.order_no,
            sequence_no: event.sequence_no,
            at: event.at,
            data: event.data,
        };
        let id = self.insert_event_row(&row)?;
        self.last_event = Some(id);
        Ok(())
    }

    /// Inserts an order's events behind those it has. The order's row must be written with its final `sequence_no` by the
    /// caller, in the same savepoint.
    pub(super) fn order_events(
        &mut self,
        order: &Order,
        from: Option<OrderStatus>,
        events: &[EventType],
        late: Option<bool>,
        at: i64,
    ) -> Result<(), StoreError> {
        let key = order.order_no.as_str();
        let device_id = order.device_id.to_string();
        let before = order.sequence_no.saturating_sub(events.len() as u32);
        let plain = json(&OrderEvent::new(order, from, None))?;
        let settled = late.map(|late| with_late(&plain, late));
        for (sequence_no, event_type) in (before + 1..).zip(events) {
            let settled = settled.as_ref().filter(|_| *event_type == EventType::OrderSettled);
            self.insert_event(&NewEvent {
                event_type: *event_type,
                key,
                device_id: Some(&device_id),
                order_no: Some(key),
                sequence_no,
                at,
                data: settled.unwrap_or(&plain),
            })?;
        }
        Ok(())
    }

    /// Inserts an event keyed by its order, so that it is delivered between the order's other events, without a place in their
    /// sequence.
    pub(super) fn order_remark(&mut self, event: &DeviceEvent, order_no: OrderNo) -> Result<(), StoreError> {
        let key = order_no.as_str();
        self.insert_event(&NewEvent {
            event_type: event.event_type,
            key,
            device_id: Some(&event.device_id.to_string()),
            order_no: Some(key),
            sequence_no: 0,
            at: event.at,
            data: event.data.as_str(),
        })
    }

    /// Inserts an event under the device's own sequence; heartbeats are outside of it. It names no order outside its data: a
    /// receiver that follows an order by its `sequence_no` would find the device's numbers between the order's own.
    pub(super) fn device_event(
        &mut self,
        device_id: DeviceId,
        event_type: EventType,
        data: &impl Serialize,
        at: i64,
    ) -> Result<(), StoreError> {
        self.device_event_text(device_id, event_type, &json(data)?, at)
    }

    /// The same of `data` that are JSON already.
    pub(super) fn device_event_text(
        &mut self,
        device_id: DeviceId,
        event_type: EventType,
        data: &str,
        at: i64,
    ) -> Result<(), StoreError> {
        let device = device_id.to_string();
        let numbered = !matches!(event_type, EventType::DeviceHeartbeat | EventType::ChargingProgress);
        let sequence_no = match self.counters(device_id)?.filter(|_| numbered) {
            Some(mut counters) => {
                counters.event_counter += 1;
                self.save_counters(device_id, &counters)?;
                counters.event_counter as u32
            }
            // A device without a row has no sequence; its alarms are told all the same.
            None => 0,
        };
        self.insert_event(&NewEvent {
            event_type,
            key: &device,
            device_id: Some(&device),
            order_no: None,
            sequence_no,
            at,
            data,
        })
    }

    /// Inserts an event under a card's own sequence, with which its row was written.
    pub(super) fn card_event(
        &mut self,
        card: &Card,
        event_type: EventType,
        data: &impl Serialize,
        at: i64,
    ) -> Result<(), StoreError> {
        self.insert_event(&NewEvent {
            event_type,
            key: &format!("card:{}", card.card_no.as_str()),
            device_id: None,
            order_no: None,
            sequence_no: card.sequence_no,
            at,
            data: &json(data)?,
        })
    }

    /// Raises `device.alarm`.
    pub(super) fn alarm(&mut self, alarm: &Alarm<'_>, at: i64) -> Result<(), StoreError> {
        self.device_event(alarm.device_id, EventType::DeviceAlarm, alarm, at)
    }
}

/// The text of an [`OrderEvent`] whose last field is `late`, from that of the same without: most of it is written once.
fn with_late(plain: &str, late: bool) -> String {
    let open = plain.strip_suffix('}').unwrap_or(plain);
    format!("{open},\"late\":{late}}}")
}

/// JSON text of a value of ours.
pub(super) fn json(value: &impl Serialize) -> Result<String, StoreError> {
    serde_json::to_string(value).map_err(|error| StoreError::Statement(format!("a value does not serialise: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_says_whether_it_was_late_is_the_same_event_with_a_field_more() {
        let order_no = OrderNo::parse("THD6H0BG6NY8TR00").expect("a number");
        let order = Order::pending(order_no, "40aace04".parse().expect("a device"), 1, 1_800_000_000_000);
        for late in [false, true] {
            let plain = json(&OrderEvent::new(&order, Some(OrderStatus::Charging), None)).expect("a text");
            let whole = json(&OrderEvent::new(&order, Some(OrderStatus::Charging), Some(late))).expect("a text");
            assert_eq!(with_late(&plain, late), whole);
        }
    }
}
