//! The flight recorder's side of the core: what is recorded of a connection, and what is told of it to other threads.

use super::{Core, Key};
use crate::{
    gateway::{
        CloseReason, ConnId, Effects, Now,
        conn::{Codec, Conn},
        gn,
        inquiry::{
            Answer, CONNECTIONS_SEEN_MAX, ConnectionFilter, ConnectionInfo, ConnectionPage, Disconnected, Inquiry,
            Question, RECALLED_MAX, Recalled,
        },
        recorder::{Ended, Label, Recorded, Trail},
    },
    model::{DeviceId, Protocol},
    protocol::Direction,
};

/// Records looked at for one answer: on a socket of several devices most are of others.
const RECORDS_SEEN_MAX: usize = 1024;
/// Ended connections told of at most.
const ENDED_TOLD_MAX: usize = 16;
/// Where a frame of the AP3000 family says whose it is.
const AP3000_ID_AT: usize = 5;

impl Core {
    /// Records what a connection received: a frame, or bytes that were skipped.
    pub(super) fn record(&mut self, now: Now, key: Key, skipped: bool, bytes: &[u8]) {
        if let Some(conn) = self.conns.get_mut(key) {
            let label = Label { at: now.unix_ms, direction: Direction::Up, skipped, epoch: conn.epoch };
            self.shared.recorder.record(key.into(), &mut conn.trail, label, bytes);
        }
    }

    /// Records what was written to a connection, frame by frame. One that was closed with the write is remembered for it.
    pub(super) fn record_sent(&mut self, now: Now, id: ConnId, bytes: &[u8]) {
        let recorder = &mut self.shared.recorder;
        let mut ended = Trail::default();
        let (epoch, trail) = match self.conns.get_mut(id.into()) {
            Some(conn) => {
                conn.sent += bytes.len() as u64;
                (conn.epoch, &mut conn.trail)
            }
            None => {
                let Some(last) = recorder.last_ended(id) else { return };
                ended = last.trail;
                (0, &mut ended)
            }
        };
        let label = Label { at: now.unix_ms, direction: Direction::Down, skipped: false, epoch };
        let mut rest = bytes;
        while !rest.is_empty() {
            let (frame, behind) = rest.split_at_checked(frame_len(rest)).unwrap_or((rest, &[]));
            recorder.record(id, trail, label, frame);
            rest = behind;
        }
        if ended != Trail::default()
            && let Some(last) = recorder.last_ended(id)
        {
            last.trail = ended;
        }
    }

    /// The epoch of a connection's device is known, or concerns only one of several.
    pub(super) fn note_epoch(&mut self, key: Key, epoch: Option<i64>) {
        if let Some(conn) = self.conns.get_mut(key) {
            let single = !conn.shared && conn.devices.len() == 1;
            conn.epoch = epoch.filter(|_| single).and_then(|epoch| u32::try_from(epoch).ok()).unwrap_or(0);
        }
    }

    /// A device left a connection that lives on, or is closed next.
    pub(super) fn remember_left(&mut self, now: Now, key: Key, device_id: DeviceId) {
        if let Some(conn) = self.conns.get_mut(key) {
            conn.epoch = 0;
            self.shared.recorder.ended(Ended {
                conn: key.into(),
                at: now.unix_ms,
                reason: CloseReason::Replaced,
                devices: std::iter::once(device_id).collect(),
                trail: conn.trail,
            });
        }
    }

    /// A connection is closed: what has come of its next frame is recorded, and the way to its frames is kept.
    pub(super) fn remember_ended(&mut self, now: Now, key: Key, reason: CloseReason) {
        let Some(conn) = self.conns.get_mut(key) else { return };
        if let Some(tail) = conn.tail.take().filter(|_| !conn.is_asked()) {
            self.record(now, key, true, &tail.bytes);
        }
        let Some(conn) = self.conns.get(key) else { return };
        let (trail, strangers) = (conn.trail, conn.seldom().strangers.iter().copied());
        let devices = self.devices_on(key).chain(strangers).collect();
        let recorder = &mut self.shared.recorder;
        // One whose only device left it a moment ago is remembered already.
        let known = recorder.last_ended(key.into()).is_some_and(|last| last.reason == reason && last.trail == trail);
        if trail != Trail::default() && !known {
            recorder.ended(Ended { conn: key.into(), at: now.unix_ms, reason, devices, trail });
        }
    }

    /// The last frames of a device over its connections here, or of a connection.
    pub(super) fn recall(&self, device_id: Option<DeviceId>, conn: Option<ConnId>, max: usize) -> Recalled {
        let mut recalled = Recalled::default();
        let mut budget = RECORDS_SEEN_MAX;
        if let Some(id) = conn
            && let Some(state) = self.conns.get(id.into())
        {
            recalled.open = true;
            let of = device_id.filter(|_| state.shared);
            self.collect(id, state.trail, of, max, &mut budget, &mut recalled.frames);
        }
        let matches = |ended: &&Ended| match device_id {
            Some(device_id) => ended.devices.contains(&device_id),
            None => Some(ended.conn) == conn,
        };
        for ended in self.shared.recorder.endings().filter(matches).take(ENDED_TOLD_MAX) {
            let seen = |other: &Ended| other.conn == ended.conn;
            let still_open = recalled.open && Some(ended.conn) == conn;
            if !still_open && !recalled.ended.iter().any(seen) {
                self.collect(ended.conn, ended.trail, device_id, max, &mut budget, &mut recalled.frames);
            }
            recalled.ended.push(ended.clone());
        }
        recalled.frames.reverse();
        recalled
    }

    /// Adds records, the last one first. `of`: on a socket of several devices, without the frames that name another.
    fn collect(
        &self,
        id: ConnId,
        trail: Trail,
        of: Option<DeviceId>,
        max: usize,
        budget: &mut usize,
        frames: &mut Vec<Recorded>,
    ) {
        for record in self.shared.recorder.records(id, trail) {
            if frames.len() >= max || *budget == 0 {
                return;
            }
            *budget -= 1;
            let foreign = match of {
                Some(DeviceId::Ap3000(phy_id)) if !record.label.skipped => {
                    let magic = record.bytes(0).is_some_and(|magic| self.shared.config.magics.contains(magic));
                    magic && record.bytes(AP3000_ID_AT).is_some_and(|named| named != phy_id.0)
                }
                _ => false,
            };
            if !foreign {
                frames.push(record.recorded());
            }
        }
    }

    /// Answers another thread.
    pub(super) fn inquired(&mut self, now: Now, inquiry: Inquiry, effects: &mut Effects) {
        let Inquiry { question, reply } = inquiry;
        let answer = match question {
            Question::RecallDevice(device_id) => {
                let conn = self.conn_of(device_id).map(ConnId::from);
                Answer::Recalled(self.recall(Some(device_id), conn, RECALLED_MAX))
            }
            Question::RecallConnection(conn) => Answer::Recalled(self.recall(None, Some(conn), RECALLED_MAX)),
            Question::Connections { filter, from, skip, limit } => {
                Answer::Connections(self.connection_page(now, filter, from, skip, limit))
            }
            Question::Anomalies => Answer::Anomalies(self.shared.anomalies.iter().cloned().collect()),
            Question::Disconnect(device_id) => Answer::Disconnected(self.conn_of(device_id).map(|key| {
                let devices = self.devices_on(key).collect();
                self.close(now, key, CloseReason::Admin, effects);
                Disconnected { conn: key.into(), devices }
            })),
        };
        effects.answers.push((reply, answer));
    }

    fn conn_of(&self, device_id: DeviceId) -> Option<Key> {
        self.key_of(device_id).and_then(|key| self.devices.get(key)).and_then(|device| device.conn)
    }

    fn connection_page(
        &self,
        now: Now,
        filter: ConnectionFilter,
        from: u32,
        skip: u64,
        limit: usize,
    ) -> ConnectionPage {
        let mut page = ConnectionPage::default();
        let mut see = |(key, conn): (Key, &Conn)| {
            let protocol = self.protocol_of(conn);
            let fits = filter.listener.is_none_or(|listener| listener == conn.listener)
                && filter.protocol.is_none_or(|wanted| protocol == Some(wanted));
            if fits {
                page.matched += 1;
                if page.matched > skip && page.connections.len() < limit {
                    page.connections.push(self.connection_info(now, key, conn, protocol));
                }
            }
        };
        if let Some(device_id) = filter.device_id {
            let key = self.conn_of(device_id);
            key.and_then(|key| Some((key, self.conns.get(key)?))).into_iter().for_each(&mut see);
            return page;
        }
        let (slots, next) = self.conns.range(from, CONNECTIONS_SEEN_MAX);
        slots.for_each(&mut see);
        page.next = next;
        page
    }

    fn protocol_of(&self, conn: &Conn) -> Option<Protocol> {
        match conn.codec {
            Codec::Detecting => None,
            Codec::Ap3000 => Some(Protocol::Ap3000),
            Codec::Bkv => {
                let device = conn.devices.first().and_then(|key| self.devices.get(*key));
                Some(device.map_or_else(|| gn::protocol_of(conn.listener), |device| device.protocol))
            }
        }
    }

    fn connection_info(&self, now: Now, key: Key, conn: &Conn, protocol: Option<Protocol>) -> ConnectionInfo {
        ConnectionInfo {
            conn: key.into(),
            peer: conn.peer(),
            listener: conn.listener,
            protocol,
            devices: self.devices_on(key).collect(),
            connected_at: now.unix_of(conn.opened_at),
            last_seen_at: now.unix_of(conn.last_rx),
            bytes_in: conn.received,
            bytes_out: conn.sent,
            garbage_bytes: conn.seldom().garbage,
            blocked: conn.seldom().blocked_since != 0,
        }
    }
}

/// Length of the frame at the start of what the gateway wrote itself; all of it where it is none.
fn frame_len(bytes: &[u8]) -> usize {
    let word = |at: usize| bytes.get(at..at + 2).and_then(|word| word.try_into().ok());
    let len = match bytes.first() {
        // Magic and length, which counts what follows it; big-endian in one family, little-endian behind three bytes in the other.
        Some(0xFC) => word(2).map(|word| 4 + usize::from(u16::from_be_bytes(word))),
        _ => word(3).map(|word| 5 + usize::from(u16::from_le_bytes(word))),
    };
    len.unwrap_or(bytes.len()).min(bytes.len())
}
