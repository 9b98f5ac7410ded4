//! The store's answers.

use super::{Ack, Core, Cx, WaitingAck};
use crate::{
    gateway::{Effects, Now, device::Device, slots::Key},
    model::DeviceId,
    store::{OrderOutcome, OtaOutcome, Outcome},
    telemetry::label::ShardEvent,
};

impl Core {
    pub(super) fn outcome(&mut self, now: Now, outcome: Outcome, effects: &mut Effects) {
        match outcome {
            Outcome::Bound(bound) => {
                let device_id = bound.device_id;
                let conn = self.key_of(device_id).and_then(|key| self.devices.get(key)).and_then(|device| device.conn);
                if bound.admitted {
                    self.with_device(now, device_id, effects, |device, cx| device.registered(cx, *bound));
                }
                if let Some(key) = conn {
                    let device = self.key_of(device_id).and_then(|key| self.devices.get(key));
                    self.note_epoch(key, device.and_then(Device::live_epoch));
                    self.admitted(now, key, device_id, effects);
                }
            }
            Outcome::Order(outcome) => {
                let OrderOutcome { order, commands, withdrawn, .. } = *outcome;
                if let Some(order) = order {
                    self.with_device(now, order.device_id, effects, |device, cx| {
                        device.order_changed(cx, &order, commands, &withdrawn);
                    });
                }
            }
            Outcome::Settled(settled) => {
                Cx { now, shared: &mut self.shared, effects }.judge_settled(&settled);
                if let Some(waiting) = self.shared.settlements.remove(&settled.key) {
                    self.acknowledge(now, waiting, effects);
                    if let (Ack::BkvEnd { gateway_id, socket, replay: Some(sub), .. }, false) =
                        (waiting.ack, settled.stored)
                    {
                        let ack = Ack::BkvEnd { gateway_id, sub, socket, replay: None };
                        self.acknowledge(now, WaitingAck { ack, ..waiting }, effects);
                    }
                }
                if let Some(order) = &settled.order {
                    self.with_device(now, order.device_id, effects, |device, cx| {
                        device.order_changed(cx, order, Vec::new(), &settled.withdrawn);
                    });
                }
            }
            Outcome::Reported { ticket, .. } => {
                if let Some(waiting) = self.shared.reports.remove(&ticket) {
                    self.acknowledge(now, waiting, effects);
                }
            }
            Outcome::Claimed { device_id, commands, orders } => {
                self.with_device(now, device_id, effects, |device, cx| {
                    // A start whose order is not followed would be answered for nobody.
                    orders.iter().for_each(|order| device.follow(cx, order, false));
                    device.commands_claimed(cx, commands);
                });
            }
            Outcome::Fenced { device_id, epoch } => {
                if !self.bound_elsewhere(now, device_id, epoch, effects) {
                    // What was void is told again under the epoch that comes.
                    self.with_device(now, device_id, effects, |device, cx| device.retell(cx.now));
                }
            }
            Outcome::Failed { device_id, key, ticket, error } => {
                self.shared.metrics.events[ShardEvent::JobFailed].inc();
                log::debug!(target: "chargegate::store", error:% = error; "a job was not committed");
                if let Some(key) = key {
                    self.shared.settlements.remove(&key);
                }
                if let Some(ticket) = ticket {
                    self.shared.reports.remove(&ticket);
                }
                if let Some(device_id) = device_id {
                    self.with_device(now, device_id, effects, |device, cx| {
                        if key.is_some() {
                            device.record_refused(cx);
                        }
                        device.job_failed(cx);
                    });
                }
            }
            Outcome::Swiped(swiped) => {
                let device_id = swiped.device_id;
                self.with_device(now, device_id, effects, |device, cx| device.swipe_decided(cx, *swiped));
            }
            Outcome::Ota(outcome) => {
                if let OtaOutcome::Updated { id, device_id, ticket, state } = *outcome {
                    self.with_device(now, device_id, effects, |device, cx| device.ota_stored(cx, id, ticket, state));
                }
            }
            Outcome::Created(_)
            | Outcome::Card(_)
            | Outcome::Repeated(_)
            | Outcome::Backstop(_)
            | Outcome::Pruned { .. }
            | Outcome::Settings(_)
            | Outcome::Networked(_)
            | Outcome::Called(_)
            | Outcome::Params(_)
            | Outcome::Instance(_)
            | Outcome::Leased(_)
            | Outcome::Endpoint(_)
            | Outcome::Managed(_)
            | Outcome::Done => {}
        }
    }

    /// Acknowledges a report that is stored. Where its connection is gone nobody hears it, and the device sends the report again.
    fn acknowledge(&mut self, now: Now, waiting: WaitingAck, effects: &mut Effects) {
        if self.conns.get(waiting.conn.into()).is_some() {
            Cx { now, shared: &mut self.shared, effects }.acknowledge(waiting);
        }
    }

    /// The store answered a bind on this connection: go on with the bytes that waited.
    pub(super) fn admitted(&mut self, now: Now, key: Key, device_id: DeviceId, effects: &mut Effects) {
        let admitted = self.key_of(device_id).and_then(|key| self.devices.get(key)).is_some_and(Device::is_live);
        let Some(conn) = self.conns.get_mut(key) else { return };
        if !conn.is_asked() {
            return;
        }
        conn.set_asked(None);
        if !admitted {
            conn.seldom_mut().strangers.push(device_id);
        }
        let tail = conn.tail.take();
        if !admitted {
            self.turn_away(key, device_id);
        }
        if let Some(tail) = tail {
            let used = self.drain(now, key, &tail.bytes, effects);
            self.return_tail(now, key, tail, used, effects);
        }
    }
}
