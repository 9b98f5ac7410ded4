//! Devices of the shard: binding, take-over, admission.

use std::sync::Arc;

use super::{Core, CoreConfig, Cx, Shared};
use crate::{
    gateway::{
        CloseReason, Effects, Listener, Message, Now,
        conn::{Codec, Conn, DEVICES_MAX},
        device::Device,
        lane::Waits,
        slots::Key,
        timers::Timer,
    },
    model::{DeviceId, Protocol},
    protocol::DecodeError,
    store::CommandLogRow,
    telemetry::label::{AnomalyKind, DecodeFailure, ShardEvent},
};

/// A device that is bound more often within a minute goes back and forth between connections.
const FLAPPING_BINDS: u32 = 5;

impl Core {
    /// The device a frame belongs to: bound before, or bound now. `None`: it has no say here (a newer connection owns it, it is
    /// not admitted yet, or the socket carries too many).
    pub(in crate::gateway) fn device_of(
        &mut self,
        now: Now,
        key: Key,
        device_id: DeviceId,
        protocol: Protocol,
        effects: &mut Effects,
    ) -> Option<Key> {
        let conn = self.conns.get(key)?;
        for device_key in &*conn.devices {
            if self.devices.get(*device_key).is_some_and(|device| device.id == device_id && device.conn == Some(key)) {
                return Some(*device_key);
            }
        }
        self.bind(now, key, device_id, protocol, effects)
    }

    pub(super) fn bind(
        &mut self,
        now: Now,
        key: Key,
        device_id: DeviceId,
        protocol: Protocol,
        effects: &mut Effects,
    ) -> Option<Key> {
        let conn = self.conns.get_mut(key)?;
        let strangers = &conn.seldom().strangers;
        if strangers.contains(&device_id) || conn.has_lost(device_id, now.mono_ms) {
            return None;
        }
        if conn.devices.len() + strangers.len() >= DEVICES_MAX {
            self.shared.metrics.events[ShardEvent::SocketFull].inc();
            return None;
        }
        // A BKV/GN connection belongs to the first id seen on it, admitted or not.
        if conn.codec == Codec::Bkv && !(conn.devices.is_empty() && strangers.is_empty()) {
            return None;
        }
        let shard = self.shared.config.shard;
        let taken = self.shared.directory.bind(device_id, protocol, shard, conn.accepted).ok()?;
        self.shared.metrics.events[ShardEvent::Bind].inc();
        let binds = taken.entry.bound_again(now.unix_ms);
        if let Some(previous) = taken.previous {
            self.shared.metrics.events[ShardEvent::Takeover].inc();
            if previous.shard() != shard {
                let message = Message::Superseded { device_id, generation: previous.generation() };
                effects.tells.push((previous.shard(), message));
            }
        }
        let device_key = match self.key_of(device_id) {
            Some(device_key) => device_key,
            None => {
                let device_key = self.devices.insert(Device::new(device_id, protocol, Arc::clone(&taken.entry)));
                self.by_id.insert(&self.devices, device_key);
                device_key
            }
        };
        let old = self.devices.get(device_key).and_then(|device| device.conn);
        if let Some(old) = old.filter(|old| *old != key) {
            self.detach(now, old, device_key, effects);
        }
        let conn = self.conns.get_mut(key)?;
        conn.devices.push(device_key);
        if self.shared.config.known_only {
            conn.set_asked(Some(device_key));
        }
        if let Some(iccid) = conn.iccid() {
            taken.entry.set_iccid(&iccid);
        }
        if conn.devices.len() > 1 {
            conn.epoch = 0;
        }
        // Once shared, for good: what comes on the socket is no sign of the last device left on it.
        conn.shared |= conn.devices.len() > 1;
        let shares = conn.shared;
        let mut cx = Cx { now, shared: &mut self.shared, effects };
        if conn.devices.len() == 2
            && let Some(first) = conn.devices.first().and_then(|first| self.devices.get_mut(*first))
        {
            first.joined(&cx);
        }
        self.devices.get_mut(device_key)?.bound(&mut cx, key, taken.owner, shares);
        if binds > FLAPPING_BINDS {
            cx.anomaly(device_id, AnomalyKind::Flapping, || format!("bound {binds} times within a minute"));
        }
        self.arm_device(now, device_key);
        Some(device_key)
    }

    /// A newer connection took the device: a BKV/GN connection is closed, an AP3000 socket only loses the id.
    pub(super) fn detach(&mut self, now: Now, conn_key: Key, device_key: Key, effects: &mut Effects) {
        if let Some(device_id) = self.devices.get(device_key).map(|device| device.id) {
            self.remember_left(now, conn_key, device_id);
        }
        let Some(conn) = self.conns.get_mut(conn_key) else { return };
        conn.devices.retain(|key| *key != device_key);
        if conn.seldom().asked == Some(device_key) {
            // Nobody waits for that answer here any more: its other devices go on.
            conn.set_asked(None);
            if let Some(tail) = &mut conn.tail {
                tail.since = now.mono_ms;
            }
        }
        if conn.codec == Codec::Bkv {
            self.close(now, conn_key, CloseReason::Replaced, effects);
        }
    }

    pub(super) fn superseded(&mut self, now: Now, device_id: DeviceId, generation: u64, effects: &mut Effects) {
        let Some(device_key) = self.key_of(device_id) else { return };
        let Some(device) = self.devices.get(device_key).filter(|device| device.owner.generation() <= generation) else {
            return;
        };
        if let Some(conn) = device.conn {
            self.detach(now, conn, device_key, effects);
        }
        self.drop_device(device_key);
    }

    /// Another process bound the device: what this one follows of it is that one's business from now on. False: a bind of this
    /// shard is newer, or under way.
    pub(super) fn bound_elsewhere(&mut self, now: Now, device_id: DeviceId, epoch: i64, effects: &mut Effects) -> bool {
        let Some(device_key) = self.key_of(device_id) else { return true };
        let Some(device) = self.devices.get(device_key) else { return true };
        if !device.is_older_than(epoch) {
            return false;
        }
        self.shared.metrics.events[ShardEvent::Takeover].inc();
        let (entry, owner, conn) = (Arc::clone(&device.entry), device.owner, device.conn);
        if let Some(conn_key) = conn {
            if let Some(conn) = self.conns.get_mut(conn_key) {
                conn.lose(device_id, now.mono_ms);
            }
            self.detach(now, conn_key, device_key, effects);
        }
        if entry.release(owner) {
            // Online or not is for the new owner to say: nothing is told here.
            entry.set_disconnected(now.unix_ms);
            if entry.declare(false) {
                self.shared.directory.count_online(-1);
            }
            self.shared.directory.forget(device_id);
        }
        self.drop_device(device_key);
        true
    }

    /// Forgets a device that is not admitted: it is no device of this gateway, however often it speaks.
    pub(super) fn turn_away(&mut self, conn_key: Key, device_id: DeviceId) {
        let Some(device_key) = self.key_of(device_id) else { return };
        if let Some(conn) = self.conns.get_mut(conn_key) {
            conn.devices.retain(|key| *key != device_key);
        }
        if let Some(device) = self.devices.get(device_key)
            && device.entry.release(device.owner)
        {
            self.shared.directory.forget(device_id);
        }
        self.drop_device(device_key);
    }

    pub(super) fn drop_device(&mut self, device_key: Key) {
        if let Some(device) = self.devices.get(device_key) {
            self.by_id.remove(&self.devices, device.id);
        }
        if let Some(device) = self.devices.remove(device_key) {
            self.shared.count_waiting(&device.commands_waiting(), &Waits::default());
            if device.has_ota() {
                self.shared.ota.ended();
            }
        }
    }

    pub(super) fn with_device(
        &mut self,
        now: Now,
        device_id: DeviceId,
        effects: &mut Effects,
        act: impl FnOnce(&mut Device, &mut Cx<'_>),
    ) {
        let Some(device_key) = self.key_of(device_id) else { return };
        let mut cx = Cx { now, shared: &mut self.shared, effects };
        if let Some(device) = self.devices.get_mut(device_key) {
            act(device, &mut cx);
            device.pump(&mut cx);
        }
        self.arm_device(now, device_key);
    }

    /// Runs `act` on a device a frame came for, then writes what its lane has ready.
    pub(in crate::gateway) fn on_frame(
        &mut self,
        now: Now,
        device_key: Key,
        effects: &mut Effects,
        act: impl FnOnce(&mut Device, &mut Cx<'_>),
    ) {
        let mut cx = Cx { now, shared: &mut self.shared, effects };
        let Some(device) = self.devices.get_mut(device_key) else { return };
        device.item_came(&mut cx, device_key);
        act(device, &mut cx);
        if device.has_work() {
            device.pump(&mut cx);
            self.arm_device(now, device_key);
        } else if device.take_sooner() {
            self.arm_device(now, device_key);
        }
    }

    pub(super) fn arm_device(&mut self, now: Now, device_key: Key) {
        if let Some(device) = self.devices.get_mut(device_key) {
            // What is due now was done now; anything else would turn the timer loop for ever.
            let at = device.deadline(now, &self.shared.config.orders).max(now.mono_ms + 1);
            self.shared.timers.arm(&mut device.armed, at, Timer::Device(device_key.slot));
        }
    }

    pub(super) fn device_timeout(&mut self, now: Now, slot: u32, at: u64, effects: &mut Effects) {
        let Some((device_key, _)) = self.devices.in_slot(slot) else { return };
        let mut cx = Cx { now, shared: &mut self.shared, effects };
        let Some(device) = self.devices.get_mut(device_key) else { return };
        if device.armed != at {
            return;
        }
        device.armed = u64::MAX;
        device.poll(&mut cx);
        device.pump(&mut cx);
        if device.is_gone(now) {
            let device_id = device.id;
            if device.entry.release(device.owner) {
                self.shared.directory.forget(device_id);
            }
            self.drop_device(device_key);
            return;
        }
        self.arm_device(now, device_key);
    }

    /// The slot of a device of this shard.
    pub(super) fn key_of(&self, device_id: DeviceId) -> Option<Key> {
        self.by_id.get(&self.devices, device_id)
    }

    /// Counts a frame of a device that may not speak; closes the connection when there were too many, and nobody else is on it.
    pub(in crate::gateway) fn stranger(
        &mut self,
        now: Now,
        key: Key,
        device_id: DeviceId,
        effects: &mut Effects,
    ) -> bool {
        let Some(conn) = self.conns.get_mut(key) else { return true };
        let is_stranger = match conn.codec {
            Codec::Bkv => !conn.seldom().strangers.is_empty(),
            // On a full socket nobody was asked about it.
            Codec::Ap3000 | Codec::Detecting => {
                let bound = |key: &Key| self.devices.get(*key).is_some_and(|device| device.id == device_id);
                let strangers = &conn.seldom().strangers;
                let full = conn.devices.len() + strangers.len() >= DEVICES_MAX;
                strangers.contains(&device_id)
                    || self.shared.config.known_only && full && !conn.devices.iter().any(bound)
            }
        };
        if !is_stranger {
            return false;
        }
        let frames = conn.seldom().stranger_frames.saturating_add(1);
        conn.seldom_mut().stranger_frames = frames;
        self.shared.metrics.events[ShardEvent::Stranger].inc();
        if conn.devices.is_empty() && frames >= self.shared.config.stranger_frames_max {
            self.close(now, key, CloseReason::NotAdmitted, effects);
        }
        true
    }

    /// Whether the store is being asked if the connection's device may speak.
    pub(in crate::gateway) fn is_asked(&self, key: Key) -> bool {
        self.conns.get(key).is_some_and(Conn::is_asked)
    }

    /// The devices bound to a connection.
    pub(in crate::gateway) fn devices_on(&self, key: Key) -> impl Iterator<Item = DeviceId> {
        let devices = self.conns.get(key).map_or(&[][..], |conn| &*conn.devices);
        devices.iter().filter_map(|device| self.devices.get(*device)).map(|device| device.id)
    }

    /// Notes the magic of a device's frames.
    pub(in crate::gateway) fn set_magic(&mut self, key: Key, magic: [u8; 3]) {
        if let Some(device) = self.devices.get_mut(key) {
            device.magic = magic;
        }
    }

    pub(in crate::gateway) fn device(&self, key: Key) -> Option<&Device> {
        self.devices.get(key)
    }

    /// A sound frame whose body cannot be read, or whose command is in no table: counted, logged, and the connection stays.
    #[expect(clippy::too_many_arguments, reason = "one row of the command log")]
    pub(in crate::gateway) fn refused_body(
        &mut self,
        device_id: DeviceId,
        command: u16,
        error: DecodeError,
        now: Now,
        raw: &[u8],
        msg_id: u32,
        device: Option<Key>,
        effects: &mut Effects,
    ) {
        let failure = DecodeFailure::from(error);
        self.shared.metrics.decode_failures[failure].inc();
        let mut cx = Cx { now, shared: &mut self.shared, effects };
        cx.anomaly(device_id, failure.into(), || format!("command {command:#04x}: {error}"));
        if now.mono_ms >= self.body_log_at {
            self.body_log_at = now.mono_ms + 1000;
            log::info!(target: "chargegate::frame", device_id:% = device_id, error:% = error; "frame not understood");
        }
        let epoch = device.and_then(|key| self.device(key)).and_then(Device::live_epoch);
        let at = now.unix_ms;
        effects.log.push(CommandLogRow { at, device_id, up: true, command, msg_id, epoch, raw: raw.to_vec() });
    }

    pub(in crate::gateway) fn listener(&self, key: Key) -> Listener {
        self.conns.get(key).map_or(Listener::Devices, |conn| conn.listener)
    }

    pub(in crate::gateway) const fn config(&self) -> &CoreConfig {
        &self.shared.config
    }

    pub(in crate::gateway) const fn shared_mut(&mut self) -> &mut Shared {
        &mut self.shared
    }
}
