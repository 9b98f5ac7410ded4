//! Deadlines, and the flush of latest values.

use smallvec::SmallVec;

use super::{Device, FLUSHES_WHOLE, GONE_MS};
use crate::{
    gateway::{Now, OrderTimes, core::Cx, directory::Untold, track::Track},
    model::{CommandState, EventType, Protocol},
    store::Latest,
};

impl Device {
    /// What is due.
    pub(in crate::gateway) fn poll(&mut self, cx: &mut Cx<'_>) {
        let now = cx.now;
        self.forget_swipes(now);
        if self.bind_at <= now.mono_ms {
            self.submit_bind(cx);
        }
        if self.entry.declared_online() && !self.entry.score(now.unix_ms).online() && self.entry.declare(false) {
            cx.shared.directory.count_online(-1);
            cx.declare(self.id, EventType::DeviceOffline, self.status_json(now), self.fence());
            let offline: SmallVec<[_; 2]> = self
                .tracks
                .iter_mut()
                .filter_map(|track| track.offline(now).map(|action| (track.order_no, action)))
                .collect();
            for (order_no, action) in offline {
                self.act(cx, order_no, action);
            }
        }
        let situation = self.situation(now, &cx.shared.config.orders);
        let due: SmallVec<[_; 2]> =
            self.tracks.iter_mut().map(|track| (track.order_no, track.poll(situation))).collect();
        for (order_no, actions) in due {
            self.act_all(cx, order_no, actions);
        }
        self.replies_due(cx);
        self.ota_poll(cx);
        while let Some(in_flight) = self.lane.forgotten(now.mono_ms) {
            self.command_done(cx, &in_flight, CommandState::Dead, Some("no_reply"), None);
        }
        if self.sync_at <= now.mono_ms && self.is_live() {
            self.sync_at = now.mono_ms + cx.shared.config.timeouts.port_sync;
            let sockets: Vec<u16> = match self.protocol {
                Protocol::Ap3000 => vec![1],
                // One question per socket: holes come in pairs.
                Protocol::Bkv | Protocol::Gn => {
                    self.ports.iter().filter(|cell| cell.port_no % 2 == 1).map(|cell| cell.port_no).collect()
                }
            };
            for port_no in sockets {
                self.ask(cx, port_no);
            }
        }
    }

    /// When [`Device::poll`] or [`Device::pump`] has something to do, monotonic ms; `u64::MAX`: nothing is due.
    pub(in crate::gateway) fn deadline(&self, now: Now, times: &OrderTimes) -> u64 {
        let left = u64::try_from(self.entry.offline_at().saturating_sub(now.unix_ms)).unwrap_or(0);
        let offline = if self.entry.declared_online() || left > 0 {
            now.mono_ms + left
        } else if self.conn.is_none() && !self.tracks.iter().any(Track::is_active) {
            // Gone, once its latest values are flushed.
            now.mono_ms + GONE_MS
        } else {
            u64::MAX
        };
        let situation = self.situation(now, times);
        let tracks = self.tracks.iter().map(|track| track.deadline(situation)).min().unwrap_or(u64::MAX);
        let lane = self.lane.deadline(self.is_live());
        offline.min(tracks).min(lane).min(self.bind_at).min(self.sync_at).min(self.ota_deadline())
    }

    /// Puts what changed since the last flush into the latest values.
    pub(in crate::gateway) fn flush(&mut self, cx: &mut Cx<'_>) {
        self.dirty = false;
        self.flushes = self.flushes.wrapping_add(1);
        if self.flushes.is_multiple_of(FLUSHES_WHOLE) {
            self.entry.tell(Untold::ALL);
        }
        let (device_id, last_seen_at, offline_at) = (self.id, self.entry.last_seen(), self.entry.offline_at());
        let untold = self.entry.take_untold();
        cx.effects.latest.push(if untold == Untold::NOTHING {
            Latest::Seen { device_id, last_seen_at, offline_at }
        } else {
            let has = |what| untold.has(what).then_some(&self.entry);
            Latest::Device {
                device_id,
                last_seen_at,
                offline_at,
                signal: has(Untold::SIGNAL).and_then(|entry| entry.signal()),
                firmware: has(Untold::FIRMWARE).and_then(|entry| entry.firmware()),
                iccid: has(Untold::ICCID).and_then(|entry| entry.iccid()),
                networked: has(Untold::NETWORKED).is_some_and(|entry| entry.networked()),
                device_type: has(Untold::DEVICE_TYPE).and_then(|entry| entry.device_type()),
            }
        });
        if std::mem::take(&mut self.host_dirty) {
            let (imei, module_version) = (self.entry.imei(), self.entry.module_version());
            cx.effects.latest.push(Latest::Host {
                device_id: self.id,
                imei,
                module_version,
                host_type: self.entry.host_type(),
                host: self.entry.host(),
            });
        }
        if std::mem::take(&mut self.ports_dirty) {
            for cell in self.ports.iter().filter(|cell| cell.take_dirty()) {
                cx.effects.latest.push(Latest::Port(cell.load().record(self.id)));
            }
        }
        if let Some(seldom) = &mut self.seldom {
            let at = cx.now.unix_ms;
            for (order_no, duration_seconds, energy_wh) in seldom.progress.drain(..) {
                cx.effects.latest.push(Latest::Progress { order_no, duration_seconds, energy_wh, at });
            }
            if self.tracks.is_empty() && seldom.is_empty(cx.now.mono_ms) {
                self.seldom = None;
            }
        }
    }

    /// Holds commands back behind a reply that the vendor counts as one.
    pub(in crate::gateway) fn hold_commands(&mut self, cx: &Cx<'_>) {
        self.lane.hold(cx.now.mono_ms + cx.shared.config.timeouts.command_gap);
    }
}
