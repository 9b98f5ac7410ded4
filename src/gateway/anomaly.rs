//! What went wrong between a device and the gateway, with the frames that led to it: the last 64 of a shard.
//!
//! One bad device must not push out what the others did. So of one device and kind there is one entry a minute, which counts what
//! repeats, and one device has at most 8 entries: with a ninth its own oldest goes. A connection that has not said
//! which device it carries counts by its peer's address.

use std::{collections::VecDeque, net::IpAddr, sync::Arc};

use super::{ConnId, Now, recorder::Recorded};
use crate::{model::DeviceId, telemetry::label::AnomalyKind};

/// Entries of a shard.
pub const ANOMALIES_MAX: usize = 64;
/// Frames of an entry.
pub const ANOMALY_FRAMES_MAX: usize = 16;
/// Entries of one device, or of one address.
const PER_SUBJECT_MAX: usize = 8;
/// The same again within this time only raises the count, ms.
const REPEAT_MS: i64 = 60_000;

/// An entry.
#[derive(Clone, Debug)]
pub struct Anomaly {
    /// Rising; unique in its shard, also over restarts.
    pub id: i64,
    /// Unix ms.
    pub at: i64,
    /// Unix ms of the last repetition; `at` where there was none.
    pub last_at: i64,
    /// How often it happened, this once included.
    pub count: u64,
    /// The device, where it is known.
    pub device_id: Option<DeviceId>,
    /// The connection; `None`: its device had none then.
    pub conn: Option<ConnId>,
    /// The connection's peer.
    pub peer: Option<IpAddr>,
    /// What.
    pub kind: AnomalyKind,
    /// More of it, in words.
    pub detail: String,
    /// The last frames of the device, or of the connection, oldest first.
    pub frames: Vec<Recorded>,
}

/// Whom entries are counted by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Subject {
    Device(DeviceId),
    Peer(IpAddr),
}

impl Anomaly {
    fn is_of(&self, subject: Subject) -> bool {
        match subject {
            Subject::Device(device_id) => self.device_id == Some(device_id),
            Subject::Peer(peer) => self.device_id.is_none() && self.peer == Some(peer),
        }
    }

    fn subject(&self) -> Option<Subject> {
        self.device_id.map(Subject::Device).or_else(|| self.peer.map(Subject::Peer))
    }
}

/// An anomaly that is to be listed once the input is through, with the frames it caused.
#[derive(Debug)]
pub(super) struct Noted {
    pub(super) device_id: DeviceId,
    pub(super) kind: AnomalyKind,
    pub(super) detail: String,
}

/// The list.
#[derive(Debug, Default)]
pub(super) struct Anomalies {
    list: VecDeque<Arc<Anomaly>>,
    noted: Vec<Noted>,
    last_id: i64,
}

impl Anomalies {
    /// Whether an entry is to be made. False: there is one, and it counts this too.
    pub(super) fn admit(&mut self, now: Now, subject: Subject, kind: AnomalyKind) -> bool {
        let noted = |noted: &Noted| Subject::Device(noted.device_id) == subject && noted.kind == kind;
        if self.noted.iter().any(noted) {
            return false;
        }
        let same = |entry: &&mut Arc<Anomaly>| entry.kind == kind && entry.is_of(subject);
        let Some(last) = self.list.iter_mut().rev().find(same) else { return true };
        if now.unix_ms.saturating_sub(last.at).abs() >= REPEAT_MS {
            return true;
        }
        // Copied only while somebody reads it.
        let last = Arc::make_mut(last);
        last.count = last.count.saturating_add(1);
        last.last_at = now.unix_ms;
        false
    }

    /// Keeps one until the input is through. [`Anomalies::admit`] bounds how many there are.
    pub(super) fn note(&mut self, noted: Noted) {
        self.noted.push(noted);
    }

    pub(super) const fn has_noted(&self) -> bool {
        !self.noted.is_empty()
    }

    pub(super) fn take_noted(&mut self) -> Vec<Noted> {
        std::mem::take(&mut self.noted)
    }

    /// Lists an entry under the next id.
    pub(super) fn push(&mut self, mut anomaly: Anomaly) {
        self.last_id = anomaly.at.max(self.last_id.saturating_add(1));
        anomaly.id = self.last_id;
        let of_subject = |entry: &Arc<Anomaly>| anomaly.subject().is_some_and(|subject| entry.is_of(subject));
        if self.list.iter().filter(|entry| of_subject(entry)).count() >= PER_SUBJECT_MAX {
            let oldest = self.list.iter().position(of_subject);
            oldest.and_then(|oldest| self.list.remove(oldest));
        } else if self.list.len() >= ANOMALIES_MAX {
            self.list.pop_front();
        }
        self.list.push_back(Arc::new(anomaly));
    }

    /// The entries, the newest first.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Arc<Anomaly>> {
        self.list.iter().rev()
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::protocol::ap3000::PhyId;

    const fn device(number: u8) -> DeviceId {
        DeviceId::Ap3000(PhyId([number, 0, 0, 4]))
    }

    const fn at(ms: i64) -> Now {
        Now { mono_ms: 0, unix_ms: ms }
    }

    /// What the core does with one.
    fn raise(anomalies: &mut Anomalies, now: Now, device_id: Option<DeviceId>, peer: IpAddr, kind: AnomalyKind) {
        let subject = device_id.map_or(Subject::Peer(peer), Subject::Device);
        if anomalies.admit(now, subject, kind) {
            anomalies.push(Anomaly {
                id: 0,
                at: now.unix_ms,
                last_at: now.unix_ms,
                count: 1,
                device_id,
                conn: None,
                peer: Some(peer),
                kind,
                detail: String::new(),
                frames: Vec::new(),
            });
        }
    }

    fn peer(number: u8) -> IpAddr {
        IpAddr::V4(Ipv4Addr::new(192, 0, 2, number))
    }

    #[test]
    fn repetitions_are_counted_for_a_minute() {
        let mut anomalies = Anomalies::default();
        for ms in [0, 1, 59_999, 60_000] {
            raise(&mut anomalies, at(ms), Some(device(1)), peer(1), AnomalyKind::Noise);
        }
        raise(&mut anomalies, at(2), Some(device(1)), peer(1), AnomalyKind::Flapping);
        raise(&mut anomalies, at(2), Some(device(2)), peer(1), AnomalyKind::Noise);
        let found: Vec<_> = anomalies.iter().map(|entry| (entry.at, entry.last_at, entry.count)).collect();
        assert_eq!(found, [(2, 2, 1), (2, 2, 1), (60_000, 60_000, 1), (0, 59_999, 3)]);
    }

    #[test]
    fn one_bad_device_or_address_does_not_push_the_others_out() {
        for of in [Some(device(1)), None] {
            let mut anomalies = Anomalies::default();
            raise(&mut anomalies, at(0), Some(device(2)), peer(2), AnomalyKind::Noise);
            for minute in 1..1000 {
                raise(&mut anomalies, at(minute * REPEAT_MS), of, peer(1), AnomalyKind::Noise);
            }
            assert_eq!(anomalies.iter().count(), 1 + PER_SUBJECT_MAX);
            assert!(anomalies.iter().any(|entry| entry.device_id == Some(device(2))));
            assert_eq!(anomalies.iter().next().map(|entry| entry.at), Some(999 * REPEAT_MS));
        }
    }

    #[test]
    fn the_list_is_bounded_and_its_ids_rise() {
        let mut anomalies = Anomalies::default();
        for number in 0..200 {
            raise(&mut anomalies, at(5), Some(device(number)), peer(1), AnomalyKind::Noise);
        }
        assert_eq!(anomalies.iter().count(), ANOMALIES_MAX);
        let ids: Vec<i64> = anomalies.iter().map(|entry| entry.id).collect();
        assert!(ids.is_sorted_by(|newer, older| newer > older), "{ids:?}");
        assert_eq!(ids.first(), Some(&204));
    }
}
