//! Binding and presence: who carries the device, and whether it is online.

use std::num::NonZeroI64;

use serde_json::json;
use smallvec::SmallVec;

use super::{BIND_RETRY_MS, BIND_WAITS, Device};
use crate::{
    gateway::{
        Now, OrderTimes,
        core::Cx,
        directory::{Owner, PortState, Untold},
        lane::Waits,
        slots::Key,
        track::{Action, Situation, Track},
    },
    model::{DeviceCall, DeviceId, EventType, OrderNo, Protocol},
    store::{Bind, Bound, Job, NetworkTold, SettingsOutcome},
    time::Rfc3339,
};

/// Beyond two heartbeats, a device that shares its socket is offline after this.
const BEAT_GRACE_MS: i64 = 30_000;

impl Device {
    /// A connection carries the device from now on; the store is asked for its epoch.
    pub(in crate::gateway) fn bound(&mut self, cx: &mut Cx<'_>, conn: Key, owner: Owner, shares_socket: bool) {
        let timeouts = &cx.shared.config.timeouts;
        self.shares_socket = shares_socket;
        self.conn = Some(conn);
        self.owner = owner;
        self.epoch = 0;
        self.known_epoch = None;
        self.streak = 0;
        // Spread by the id, so that a fleet that came back at once is not asked at once.
        let spread =
            u64::from(self.id.to_string().bytes().fold(0_u32, |hash, byte| hash.wrapping_mul(31) + u32::from(byte)));
        self.sync_at = cx.now.mono_ms + timeouts.port_sync + spread % timeouts.port_sync.max(1);
        self.set_timeout(cx);
        self.entry.set_connected_at(cx.now.unix_ms);
        self.entry.seen(cx.now.unix_ms);
        self.entry.tell(Untold::ALL);
        if let DeviceId::Ap3000(phy_id) = self.id
            && phy_id.is_fallback()
        {
            self.entry.set_fallback();
        }
        self.submit_bind(cx);
    }

    /// Its socket carries another device too: it speaks for itself from now on.
    pub(in crate::gateway) fn joined(&mut self, cx: &Cx<'_>) {
        self.shares_socket = true;
        self.set_timeout(cx);
    }

    /// It told what hosts tell. One without ports is nothing else, and is heard of as seldom as hosts are.
    pub(in crate::gateway) fn is_host(&mut self, cx: &Cx<'_>) {
        self.host_only = self.ports.is_empty();
        self.set_timeout(cx);
    }

    /// It told what chargers tell.
    pub(in crate::gateway) fn is_charger(&mut self, cx: &Cx<'_>) {
        if self.host_only && !self.ports.is_empty() {
            self.host_only = false;
            self.sooner = true;
            self.set_timeout(cx);
        }
    }

    /// It said how often it beats, seconds.
    pub(in crate::gateway) fn beats_every(&mut self, cx: &Cx<'_>, interval_s: Option<u16>) {
        self.beat_interval_s = interval_s;
        self.set_timeout(cx);
    }

    fn set_timeout(&self, cx: &Cx<'_>) {
        let timeouts = &cx.shared.config.timeouts;
        self.entry.set_timeout(match self.protocol {
            Protocol::Ap3000 if !self.shares_socket => timeouts.session_ap3000,
            Protocol::Ap3000 if self.host_only && self.conn.is_some() => timeouts.session_host,
            Protocol::Ap3000 => self
                .beat_interval_s
                .map_or(timeouts.session_shared, |interval_s| 2 * i64::from(interval_s) * 1000 + BEAT_GRACE_MS),
            Protocol::Bkv => timeouts.session_bkv,
            Protocol::Gn => timeouts.session_gn,
        });
    }

    /// The operator's settings, at bind and whenever they change.
    pub(in crate::gateway) fn settings_changed(&mut self, cx: &Cx<'_>, settings: &SettingsOutcome) {
        self.extensions = settings.details.extensions;
        self.fsk_frequency = settings.details.fsk_frequency;
        self.protocol = settings.protocol;
        self.entry.set_protocol(settings.protocol);
        self.set_timeout(cx);
    }

    /// The network list of the gateway changed.
    pub(in crate::gateway) fn network_changed(&mut self, cx: &mut Cx<'_>, told: &NetworkTold) {
        let before = self.lane.waiting();
        self.lane.withdraw(&told.withdrawn);
        self.waiting_changed(cx, &before);
        self.list_sockets(&told.list);
    }

    pub(super) fn submit_bind(&mut self, cx: &mut Cx<'_>) {
        if !cx.has_bind_room() {
            let waits = self.bind_at == BIND_WAITS || cx.bind_later(self.id);
            self.bind_at = if waits { BIND_WAITS } else { cx.now.mono_ms + BIND_RETRY_MS };
            return;
        }
        let printed_no = if let DeviceId::Ap3000(phy_id) = self.id { Some(phy_id.printed_number()) } else { None };
        let bind = Bind {
            device_id: self.id,
            protocol: self.protocol,
            printed_no,
            known_only: cx.shared.config.known_only,
            generation: self.owner.generation(),
            at: cx.now.unix_ms,
        };
        let submitted = cx.job(Job::Bind(bind));
        self.bind_at = if submitted { u64::MAX } else { cx.now.mono_ms + BIND_RETRY_MS };
    }

    /// There is room for a bind that waits.
    pub(in crate::gateway) fn bind_on(&mut self, cx: &mut Cx<'_>) {
        // Its connection may have gone since, or its bind have gone in with a newer one.
        if self.bind_at == BIND_WAITS {
            self.submit_bind(cx);
        }
    }

    /// The connection is gone.
    pub(in crate::gateway) fn unbound(&mut self, cx: &mut Cx<'_>) {
        self.conn = None;
        // A host is heard of every half hour; without a socket that is no reason to believe in it for so long.
        self.set_timeout(cx);
        self.streak = 0;
        self.epoch = 0;
        self.bind_at = u64::MAX;
        self.absent_since = cx.now.mono_ms;
        self.sync_at = u64::MAX;
        if self.entry.owner() == Some(self.owner) {
            self.entry.set_disconnected(cx.now.unix_ms);
        }
        let before = self.lane.waiting();
        self.ota_unbound(cx);
        // The rows stay claimed for an epoch that is over: the next bind claims them again.
        self.lane.clear_waiting();
        // Sent again at the next bind where the store still wants it.
        self.lane.forget_calls(DeviceCall::is_network);
        cx.count_waiting(&before, &Waits::default());
        self.entry.set_waiting(0);
    }

    /// The store answered the bind.
    pub(in crate::gateway) fn registered(&mut self, cx: &mut Cx<'_>, bound: Bound) {
        // The answer to an earlier binding says nothing of this one.
        let current = bound.generation == self.owner.generation() && self.entry.owner() == Some(self.owner);
        if current {
            self.known_epoch = NonZeroI64::new(bound.epoch);
        }
        if self.conn.is_none() || !current {
            return;
        }
        self.epoch = bound.epoch;
        self.protocol = bound.protocol;
        if bound.heartbeat_interval_s.is_some() {
            self.beats_every(cx, bound.heartbeat_interval_s);
        }
        self.extensions = bound.details.extensions;
        self.fsk_frequency = bound.details.fsk_frequency;
        self.entry.know_details(&bound.details);
        self.set_timeout(cx);
        self.msg_id_first = bound.msg_id_first;
        self.msg_id_used = 0;
        self.entry.set_protocol(bound.protocol);
        self.entry.set_epoch(bound.epoch);
        let known: Vec<PortState> = bound.ports.iter().map(PortState::of_record).collect();
        self.add_ports(&known);
        if bound.networked {
            self.becomes_networked();
        }
        if let Some(list) = &bound.network {
            self.list_sockets(list);
        }
        let absent = if self.absent_since == 0 { 0 } else { cx.now.mono_ms.saturating_sub(self.absent_since) };
        let situation = self.situation(cx.now, &cx.shared.config.orders);
        for order in &bound.orders {
            let taken_over = !self.tracks.iter().any(|track| track.order_no == order.order_no);
            self.follow(cx, order, taken_over);
        }
        let actions: Vec<_> =
            self.tracks.iter_mut().map(|track| (track.order_no, track.bound(situation.now, absent))).collect();
        for (order_no, actions) in actions {
            self.act_all(cx, order_no, actions);
        }
        self.commands_claimed(cx, bound.commands);
        if self.ports.is_empty() && self.protocol != Protocol::Ap3000 {
            // A standalone device says nothing of its holes until it is asked.
            let hole = |hole| PortState::unknown(u16::from(hole) + 1, Some(0), Some(hole));
            if !self.entry.networked() {
                self.add_ports(&[hole(0), hole(1)]);
            }
            self.ask(cx, 1);
        }
        self.declare_online(cx);
    }

    pub(super) fn declare_online(&mut self, cx: &mut Cx<'_>) {
        if self.epoch > 0 && self.entry.score(cx.now.unix_ms).online() && self.entry.declare(true) {
            cx.shared.directory.count_online(1);
            cx.declare(self.id, EventType::DeviceOnline, self.status_json(cx.now), self.fence());
        }
    }

    /// An inbound item came for the device.
    pub(in crate::gateway) fn item_came(&mut self, cx: &mut Cx<'_>, key: Key) {
        self.entry.seen(cx.now.unix_ms);
        self.streak = self.streak.saturating_add(1);
        if !self.entry.declared_online() {
            self.declare_online(cx);
        }
        if !self.dirty {
            self.dirty = true;
            cx.shared.dirty.push(key);
        }
        if self.tracks.iter().any(|track| track.status == crate::model::OrderStatus::Interrupted) {
            let situation = self.situation(cx.now, &cx.shared.config.orders);
            let returned: SmallVec<[(OrderNo, Action); 1]> = self
                .tracks
                .iter_mut()
                .filter_map(|track| track.returned(situation).map(|action| (track.order_no, action)))
                .collect();
            for (order_no, action) in returned {
                self.act(cx, order_no, action);
            }
        }
    }

    /// A heartbeat came: told where some endpoint wants to hear of each.
    pub(in crate::gateway) fn heartbeat(&self, cx: &mut Cx<'_>) {
        if cx.shared.config.wanted.heartbeat() {
            let score = self.entry.score(cx.now.unix_ms).total();
            let data = json!({ "device_id": self.id, "signal": self.entry.signal(), "score": score });
            cx.event(self.id, EventType::DeviceHeartbeat, data);
        }
    }

    /// A binding whose epoch is known.
    pub(in crate::gateway) fn is_live(&self) -> bool {
        self.conn.is_some() && self.epoch > 0
    }

    pub(in crate::gateway) fn live_epoch(&self) -> Option<i64> {
        self.is_live().then_some(self.epoch)
    }

    /// Under which what this shard saw or decided is told: void once another one bound the device.
    pub(super) const fn fence(&self) -> Option<i64> {
        match self.known_epoch {
            Some(epoch) => Some(epoch.get()),
            None => None,
        }
    }

    /// Whether a binding under `epoch` is newer than what this shard knows. While its own bind is under way it is not: that one
    /// is answered with an epoch of its own.
    pub(in crate::gateway) fn is_older_than(&self, epoch: i64) -> bool {
        self.known_epoch.is_some_and(|known| known.get() < epoch)
    }

    /// Offline, unbound, and nothing to follow.
    pub(in crate::gateway) fn is_gone(&self, now: Now) -> bool {
        self.conn.is_none()
            && !self.dirty
            && !self.has_ota()
            && !self.entry.declared_online()
            && !self.entry.score(now.unix_ms).alive
            && !self.tracks.iter().any(Track::is_active)
    }

    pub(in crate::gateway) fn situation(&self, now: Now, times: &OrderTimes) -> Situation {
        Situation {
            now,
            connected: self.conn.is_some(),
            streak: self.streak.into(),
            resend_blindly: self.protocol == Protocol::Ap3000,
            times: *times,
        }
    }

    pub(super) fn status_json(&self, now: Now) -> serde_json::Value {
        let score = self.entry.score(now.unix_ms);
        json!({
            "device_id": self.id,
            "protocol": self.protocol,
            "online": score.online(),
            "score": score.total(),
            "last_seen_at": Rfc3339(self.entry.last_seen()),
        })
    }
}
