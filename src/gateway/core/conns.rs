//! Connections: bytes in, frames out, deadlines, end.

use super::{Core, Cx};
use crate::{
    gateway::{
        CloseReason, Effects, Now,
        conn::{Codec, Conn, GARBAGE_JUDGED_BYTES, HELD_BYTES_MAX, Tail},
        recorder::Label,
        slots::Key,
        timers::Timer,
    },
    protocol::{
        Direction, SkipReason, Step, ap3000, bkv,
        detect::{Detected, Detection, detect},
    },
    telemetry::label::DecodeFailure,
};

/// Bytes in a row that are no frame.
struct Run {
    /// Where they begin.
    from: usize,
    /// Why; anything says more than noise.
    reason: SkipReason,
}

impl Core {
    pub(super) fn drain(&mut self, now: Now, key: Key, buf: &[u8], effects: &mut Effects) -> usize {
        self.drain_behind(now, key, buf, None, effects)
    }

    /// As [`Core::drain`]; `run`: the first byte is given up already.
    fn drain_behind(&mut self, now: Now, key: Key, buf: &[u8], mut run: Option<Run>, effects: &mut Effects) -> usize {
        let mut used = usize::from(run.is_some());
        // Nearly every read is one whole frame: nobody looks for another behind it.
        while used < buf.len() || run.is_some() {
            let Some(conn) = self.conns.get_mut(key) else { return buf.len() };
            if conn.is_asked() {
                self.end_run(now, key, run, buf, used);
                return used;
            }
            let rest = buf.get(used..).unwrap_or_default();
            let skipped = match conn.codec {
                Codec::Detecting => match detect(rest, &self.shared.config.magics) {
                    Detection::Known(detected) => {
                        conn.codec = match detected {
                            Detected::Ap3000 => Codec::Ap3000,
                            Detected::Bkv => Codec::Bkv,
                        };
                        continue;
                    }
                    Detection::NeedMore => return used,
                    Detection::Unknown => {
                        let shown = rest.get(..rest.len().min(16)).unwrap_or_default();
                        log::info!(
                            target: "chargegate::conn",
                            peer:% = conn.peer(), first_bytes:% = crate::protocol::Hex(shown);
                            "unknown protocol"
                        );
                        self.record(now, key, true, rest);
                        self.close(now, key, CloseReason::UnknownProtocol, effects);
                        return buf.len();
                    }
                },
                Codec::Ap3000 => match ap3000::deframe(rest, &self.shared.config.magics) {
                    Step::Item { item, consumed } => {
                        self.end_run(now, key, run.take(), buf, used);
                        self.record_item(now, key, rest.get(..consumed).unwrap_or(rest));
                        match item {
                            ap3000::Item::Frame(frame) => self.ap3000_frame(now, key, &frame, effects),
                            ap3000::Item::Iccid(iccid) => self.iccid(key, iccid),
                            ap3000::Item::Link => {}
                        }
                        // The frame that made the store be asked is read again when it has answered.
                        if self.is_asked_now(key) {
                            return used;
                        }
                        used += consumed;
                        continue;
                    }
                    Step::Skip { consumed, reason } => (consumed, reason),
                    Step::NeedMore => {
                        self.end_run(now, key, run, buf, used);
                        return used;
                    }
                },
                Codec::Bkv => match bkv::deframe(rest) {
                    Step::Item { item, consumed } => {
                        self.end_run(now, key, run.take(), buf, used);
                        self.record_item(now, key, rest.get(..consumed).unwrap_or(rest));
                        self.bkv_frame(now, key, &item, effects);
                        if self.is_asked_now(key) {
                            return used;
                        }
                        used += consumed;
                        continue;
                    }
                    Step::Skip { consumed, reason } => (consumed, reason),
                    Step::NeedMore => {
                        self.end_run(now, key, run, buf, used);
                        return used;
                    }
                },
            };
            let (consumed, reason) = skipped;
            let begun = run.get_or_insert(Run { from: used, reason });
            if begun.reason == SkipReason::Noise {
                begun.reason = reason;
            }
            used += consumed;
            self.shared.metrics.decode_failures[DecodeFailure::from(reason)].add(consumed as u64);
            let garbage = &mut conn.seldom_mut().garbage;
            *garbage += consumed as u64;
            let garbage = *garbage;
            let percent = self.shared.config.garbage_percent_max;
            if garbage > GARBAGE_JUDGED_BYTES && garbage * 100 > conn.received * percent {
                self.end_run(now, key, run, buf, used);
                self.close(now, key, CloseReason::Garbage, effects);
                return buf.len();
            }
        }
        used
    }

    /// Bytes that are no frame have come to their end.
    fn end_run(&mut self, now: Now, key: Key, run: Option<Run>, buf: &[u8], until: usize) {
        let Some(Run { from, reason }) = run else { return };
        let bytes = buf.get(from..until).unwrap_or_default();
        self.record(now, key, true, bytes);
        self.anomaly_on(now, key, DecodeFailure::from(reason).into(), || {
            let plural = if bytes.len() == 1 { "" } else { "s" };
            format!("{} byte{plural} skipped", bytes.len())
        });
    }

    /// Records a frame, once: one that waits for the store's answer is read again.
    fn record_item(&mut self, now: Now, key: Key, frame: &[u8]) {
        let Some(conn) = self.conns.get_mut(key) else { return };
        if !std::mem::take(&mut conn.first_recorded) {
            let label = Label { at: now.unix_ms, direction: Direction::Up, skipped: false, epoch: conn.epoch };
            self.shared.recorder.record(key.into(), &mut conn.trail, label, frame);
        }
    }

    /// Whether the frame that was just read and recorded waits for the store's answer.
    fn is_asked_now(&mut self, key: Key) -> bool {
        let Some(conn) = self.conns.get_mut(key) else { return false };
        conn.first_recorded = conn.is_asked();
        conn.first_recorded
    }

    pub(super) fn keep_tail(&mut self, now: Now, key: Key, rest: &[u8], effects: &mut Effects) {
        if rest.is_empty() {
            return;
        }
        if rest.len() > HELD_BYTES_MAX {
            self.record(now, key, true, rest);
            self.close(now, key, CloseReason::Garbage, effects);
            return;
        }
        if let Some(conn) = self.conns.get_mut(key) {
            conn.tail = Some(Box::new(Tail { bytes: rest.to_vec(), since: now.mono_ms }));
            self.arm_conn(now, key);
        }
    }

    pub(super) fn return_tail(&mut self, now: Now, key: Key, mut tail: Box<Tail>, used: usize, effects: &mut Effects) {
        let left = tail.bytes.len().saturating_sub(used);
        if left > HELD_BYTES_MAX {
            self.record(now, key, true, tail.bytes.get(used..).unwrap_or_default());
            self.close(now, key, CloseReason::Garbage, effects);
            return;
        }
        if let Some(conn) = self.conns.get_mut(key)
            && left > 0
        {
            if used > 0 {
                tail.bytes.drain(..used.min(tail.bytes.len()));
                tail.since = now.mono_ms;
            }
            conn.tail = Some(tail);
            self.arm_conn(now, key);
        }
    }

    pub(super) fn conn_deadline(&self, conn: &Conn) -> u64 {
        let timeouts = &self.shared.config.timeouts;
        let silence = match conn.codec {
            Codec::Detecting => conn.opened_at + timeouts.detect,
            Codec::Ap3000 => conn.last_rx + timeouts.idle_ap3000,
            Codec::Bkv => conn.last_rx + timeouts.idle_bkv,
        };
        let frame = match &conn.tail {
            Some(tail) if !conn.is_asked() => tail.since + timeouts.frame,
            _ => u64::MAX,
        };
        let blocked_since = conn.seldom().blocked_since;
        let write = if blocked_since == 0 { u64::MAX } else { blocked_since + timeouts.write };
        silence.min(frame).min(write)
    }

    pub(super) fn arm_conn(&mut self, now: Now, key: Key) {
        let Some(at) = self.conns.get(key).map(|conn| self.conn_deadline(conn)) else { return };
        let at = at.max(now.mono_ms + 1);
        if let Some(conn) = self.conns.get_mut(key) {
            self.shared.timers.arm(&mut conn.armed, at, Timer::Conn(key.slot));
        }
    }

    pub(super) fn conn_timeout(&mut self, now: Now, slot: u32, at: u64, effects: &mut Effects) {
        let timeouts = self.shared.config.timeouts;
        let Some((key, _)) = self.conns.in_slot(slot) else { return };
        let Some(conn) = self.conns.get_mut(key) else { return };
        if conn.armed != at {
            return;
        }
        conn.armed = u64::MAX;
        let late = |since: u64, limit: u64| now.mono_ms >= since.saturating_add(limit);
        let blocked_since = conn.seldom().blocked_since;
        if blocked_since != 0 && late(blocked_since, timeouts.write) {
            return self.close(now, key, CloseReason::WriteStalled, effects);
        }
        match conn.codec {
            Codec::Detecting if late(conn.opened_at, timeouts.detect) => {
                return self.close(now, key, CloseReason::DetectTimeout, effects);
            }
            Codec::Ap3000 if late(conn.last_rx, timeouts.idle_ap3000) => {
                return self.close(now, key, CloseReason::Idle, effects);
            }
            Codec::Bkv if late(conn.last_rx, timeouts.idle_bkv) => {
                return self.close(now, key, CloseReason::Idle, effects);
            }
            Codec::Detecting | Codec::Ap3000 | Codec::Bkv => {}
        }
        let may_be_stale = !conn.is_asked() && conn.codec != Codec::Detecting;
        if let Some(mut tail) = conn.tail.take_if(|tail| may_be_stale && late(tail.since, timeouts.frame)) {
            // The frame that began here never ended: what looked like its start was not one.
            conn.seldom_mut().garbage += 1;
            self.shared.metrics.decode_failures[DecodeFailure::Noise].inc();
            let given_up = Run { from: 0, reason: SkipReason::Noise };
            let used = self.drain_behind(now, key, &tail.bytes, Some(given_up), effects);
            tail.since = now.mono_ms;
            self.return_tail(now, key, tail, used, effects);
        }
        self.arm_conn(now, key);
    }

    /// Ends a connection from our side.
    pub(super) fn close(&mut self, now: Now, key: Key, reason: CloseReason, effects: &mut Effects) {
        if self.forget_conn(now, key, reason, effects) {
            effects.closes.push(key.into());
        }
    }

    pub(super) fn forget_conn(&mut self, now: Now, key: Key, reason: CloseReason, effects: &mut Effects) -> bool {
        self.remember_ended(now, key, reason);
        if let Some((kind, detail)) = Self::closed_by(reason) {
            self.anomaly_on(now, key, kind, || detail.to_owned());
        }
        let Some(conn) = self.conns.remove(key) else { return false };
        self.limits.leave(conn.peer());
        self.shared.metrics.closed[reason].inc();
        self.shared.metrics.connections.dec();
        for &device_key in &*conn.devices {
            let mut cx = Cx { now, shared: &mut self.shared, effects };
            if let Some(device) = self.devices.get_mut(device_key)
                && device.conn == Some(key)
            {
                device.unbound(&mut cx);
            }
            self.arm_device(now, device_key);
        }
        true
    }

    pub(super) fn iccid(&mut self, key: Key, iccid: &[u8]) {
        let Some(conn) = self.conns.get_mut(key) else { return };
        let text = String::from_utf8_lossy(iccid);
        for device in &*conn.devices {
            if let Some(device) = self.devices.get(*device) {
                device.entry.set_iccid(&text);
            }
        }
        conn.set_iccid(&text);
    }
}
