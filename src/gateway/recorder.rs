//! Flight recorder: the last frames of all connections of a shard, in one ring of bytes whose size is fixed.
//!
//! ```text
//! offsets rise for ever; a byte's place is its offset modulo the size
//!
//!   … │ head │ raw, 512 at most │ head │ raw │ …            ◀── written here, over what is oldest
//!        └─ back: how far away the connection's record before begins ──▶ …
//!
//! head: | at 6 | slot 3 | generation 3 | epoch 4 | back 4 | length and flags 3 |
//! ```
//!
//! A connection keeps a [`Trail`], the offset of its last record; each record leads to the one before. Recording a frame is a copy,
//! whatever is recorded: no allocation, no search, nothing to take out. The memory is asked for with the first frame, and pages that no frame has
//! touched are not resident.
//!
//! Invariants: a record is given out whole or not at all, because a record of which any byte is overwritten has lost its first one;
//! and it is given out only to the connection whose slot and generation it carries.
//!
//! No decoding here: frames are kept as they were on the wire, and explained by whoever shows them.

use std::collections::VecDeque;

use smallvec::SmallVec;

use super::{CloseReason, ConnId};
use crate::{model::DeviceId, protocol::Direction};

/// Bytes of a frame that are kept; only packets of firmware and garbage are longer.
pub const FRAME_KEPT_MAX: usize = 512;
/// Bytes in front of each frame.
pub const HEAD_LEN: usize = 23;
/// Connections that ended and are remembered with the way to their frames.
const ENDED_MAX: usize = 1024;

/// Set in the last field of the head: the server wrote it.
const DOWN: u32 = 1 << 23;
/// Set there: no frame, but bytes that were skipped.
const SKIPPED: u32 = 1 << 22;
/// The rest of it; more bytes than that are never read at a time.
const LENGTH: u32 = SKIPPED - 1;
/// What is kept of a slot and of its generation: more sockets than a shard has, and more than a slot has seen while a ring lasts.
const PLACE: u32 = (1 << 24) - 1;

const _: () = assert!(crate::shard::READ_BUFFER_BYTES <= LENGTH as usize, "flags and length share a field");

/// Where a connection's last record begins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Trail(u64);

/// What is said of bytes that are recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Label {
    /// Unix ms, in ±2^47.
    pub at: i64,
    /// Who sent them.
    pub direction: Direction,
    /// They are no frame, but were skipped on the way to the next.
    pub skipped: bool,
    /// Epoch of the connection's device; 0: not known, or it has several.
    pub epoch: u32,
}

/// A frame as it is given out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recorded {
    /// Its connection.
    pub conn: ConnId,
    /// What was said of it.
    pub label: Label,
    /// Bytes it had on the wire, 4 MiB at most.
    pub length: u32,
    /// The first of them, [`FRAME_KEPT_MAX`] at most.
    pub raw: Box<[u8]>,
}

/// A connection that ended, or that a device left.
#[derive(Clone, Debug)]
pub struct Ended {
    /// Which.
    pub conn: ConnId,
    /// Unix ms.
    pub at: i64,
    /// Why it was closed; [`CloseReason::Replaced`] where a newer connection took the device.
    pub reason: CloseReason,
    /// Devices it carried, admitted or not.
    pub devices: SmallVec<[DeviceId; 1]>,
    pub(super) trail: Trail,
}

/// The ring.
#[derive(Debug)]
pub struct Recorder {
    ring: Box<[u8]>,
    size: usize,
    /// Offset of the next record. It begins above 0, which stands for none.
    head: u64,
    /// Its place.
    place: usize,
    ended: VecDeque<Ended>,
}

impl Recorder {
    /// A ring of so many bytes, rounded up to hold one record; 0: nothing is recorded.
    pub fn new(bytes: usize) -> Self {
        let size = match bytes {
            0 => 0,
            // Distances are kept in 32 bits.
            bytes => bytes.clamp(HEAD_LEN + FRAME_KEPT_MAX, u32::MAX as usize),
        };
        Self { ring: Box::default(), size, head: 1, place: 0, ended: VecDeque::new() }
    }

    /// Bytes of the ring; 0: nothing is recorded.
    pub const fn size(&self) -> usize {
        self.size
    }

    /// Records a frame of a connection, whose trail leads to it from now on.
    pub fn record(&mut self, conn: ConnId, trail: &mut Trail, label: Label, frame: &[u8]) {
        if self.size == 0 {
            return;
        }
        if self.ring.is_empty() {
            // Zeroed memory of this size comes from the kernel untouched.
            self.ring = vec![0; self.size].into_boxed_slice();
        }
        let kept = frame.get(..FRAME_KEPT_MAX).unwrap_or(frame);
        let back = if self.is_intact(*trail) { u32::try_from(self.head - trail.0).unwrap_or(0) } else { 0 };
        let mut last = u32::try_from(frame.len()).unwrap_or(u32::MAX).min(LENGTH);
        if label.direction == Direction::Down {
            last |= DOWN;
        }
        if label.skipped {
            last |= SKIPPED;
        }
        let mut head = [0; HEAD_LEN];
        head[..6].copy_from_slice(&label.at.to_le_bytes()[..6]);
        head[6..9].copy_from_slice(&conn.slot.to_le_bytes()[..3]);
        head[9..12].copy_from_slice(&conn.generation.to_le_bytes()[..3]);
        head[12..16].copy_from_slice(&label.epoch.to_le_bytes());
        head[16..20].copy_from_slice(&back.to_le_bytes());
        head[20..].copy_from_slice(&last.to_le_bytes()[..3]);
        *trail = Trail(self.head);
        let len = HEAD_LEN + kept.len();
        match self.ring.get_mut(self.place..self.place + len).and_then(|place| place.split_first_chunk_mut()) {
            Some((head_place, raw_place)) => {
                *head_place = head;
                raw_place.copy_from_slice(kept);
                self.place += len;
                self.head += len as u64;
            }
            // Around the end of the ring.
            None => {
                self.put(&head);
                self.put(kept);
            }
        }
    }

    fn put(&mut self, bytes: &[u8]) {
        let first = bytes.len().min(self.size - self.place);
        let (until_end, rest) = bytes.split_at(first);
        self.ring[self.place..self.place + first].copy_from_slice(until_end);
        self.ring[..rest.len()].copy_from_slice(rest);
        self.place = if rest.is_empty() { self.place + first } else { rest.len() };
        self.head += bytes.len() as u64;
    }

    /// Whether the record of a trail is there as it was written.
    fn is_intact(&self, trail: Trail) -> bool {
        trail.0 != 0 && trail.0 < self.head && self.head - trail.0 <= self.size as u64
    }

    fn copy(&self, offset: u64, to: &mut [u8]) {
        // Offset 1 has place 0.
        let place = ((offset - 1) % self.size as u64) as usize;
        let first = to.len().min(self.size - place);
        let (until_end, rest) = to.split_at_mut(first);
        until_end.copy_from_slice(&self.ring[place..place + first]);
        rest.copy_from_slice(&self.ring[..rest.len()]);
    }

    /// What is left of a connection's records, the last one first.
    pub const fn records(&self, conn: ConnId, trail: Trail) -> Records<'_> {
        Records { recorder: self, conn, next: trail }
    }

    /// Remembers how a connection ended, or lost a device.
    pub(super) fn ended(&mut self, ended: Ended) {
        if self.size == 0 {
            return;
        }
        if self.ended.len() == ENDED_MAX {
            self.ended.pop_front();
        }
        self.ended.push_back(ended);
    }

    /// The connections that ended, the last one first.
    pub(super) fn endings(&self) -> impl Iterator<Item = &Ended> {
        self.ended.iter().rev()
    }

    /// The trail of the connection that ended last, if it is this one: what was written when it was closed comes after.
    pub(super) fn last_ended(&mut self, conn: ConnId) -> Option<&mut Ended> {
        self.ended.back_mut().filter(|ended| ended.conn == conn)
    }
}

/// The records of a connection, the last one first.
#[derive(Clone, Debug)]
pub struct Records<'a> {
    recorder: &'a Recorder,
    conn: ConnId,
    next: Trail,
}

/// A record in its place.
#[derive(Clone, Copy, Debug)]
pub struct Record<'a> {
    recorder: &'a Recorder,
    offset: u64,
    conn: ConnId,
    /// What was said of it.
    pub label: Label,
    length: u32,
    kept: usize,
}

impl<'a> Iterator for Records<'a> {
    type Item = Record<'a>;

    fn next(&mut self) -> Option<Record<'a>> {
        let offset = self.next.0;
        if !self.recorder.is_intact(self.next) {
            return None;
        }
        let mut head = [0; HEAD_LEN];
        self.recorder.copy(offset, &mut head);
        let [a0, a1, a2, a3, a4, a5, s0, s1, s2, g0, g1, g2, e0, e1, e2, e3, b0, b1, b2, b3, l0, l1, l2] = head;
        let conn =
            ConnId { slot: u32::from_le_bytes([s0, s1, s2, 0]), generation: u32::from_le_bytes([g0, g1, g2, 0]) };
        if (conn.slot, conn.generation) != (self.conn.slot & PLACE, self.conn.generation & PLACE) {
            self.next = Trail::default();
            return None;
        }
        let conn = self.conn;
        let back = u64::from(u32::from_le_bytes([b0, b1, b2, b3]));
        self.next = if back == 0 { Trail::default() } else { Trail(offset.saturating_sub(back)) };
        let last = u32::from_le_bytes([l0, l1, l2, 0]);
        let length = last & LENGTH;
        // Its sign is in the highest of the bytes that were kept.
        let at = i64::from_le_bytes([0, 0, a0, a1, a2, a3, a4, a5]) >> 16;
        let direction = if last & DOWN == 0 { Direction::Up } else { Direction::Down };
        let epoch = u32::from_le_bytes([e0, e1, e2, e3]);
        let label = Label { at, direction, skipped: last & SKIPPED != 0, epoch };
        let kept = (length as usize).min(FRAME_KEPT_MAX);
        Some(Record { recorder: self.recorder, offset, conn, label, length, kept })
    }
}

impl Record<'_> {
    /// `N` bytes of the frame from `at`, where they were kept.
    pub fn bytes<const N: usize>(&self, at: usize) -> Option<[u8; N]> {
        let mut bytes = [0; N];
        if at + N > self.kept {
            return None;
        }
        self.recorder.copy(self.offset + (HEAD_LEN + at) as u64, &mut bytes);
        Some(bytes)
    }

    /// A copy of it, as it is given out.
    pub fn recorded(&self) -> Recorded {
        let mut raw = vec![0; self.kept].into_boxed_slice();
        self.recorder.copy(self.offset + HEAD_LEN as u64, &mut raw);
        Recorded { conn: self.conn, label: self.label, length: self.length, raw }
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    const fn conn(slot: u32, generation: u32) -> ConnId {
        ConnId { slot, generation }
    }

    const fn label(at: i64) -> Label {
        Label { at, direction: Direction::Up, skipped: false, epoch: 7 }
    }

    fn raws(recorder: &Recorder, conn: ConnId, trail: Trail) -> Vec<Vec<u8>> {
        recorder.records(conn, trail).map(|record| record.recorded().raw.to_vec()).collect()
    }

    #[test]
    fn records_come_back_as_they_were_said() {
        let mut recorder = Recorder::new(4096);
        let (mine, other) = (conn(3, 1), conn(4, 1));
        let (mut trail, mut other_trail) = (Trail::default(), Trail::default());
        let down = Label { at: -5, direction: Direction::Down, skipped: true, epoch: u32::MAX };
        recorder.record(mine, &mut trail, label(1), b"one");
        recorder.record(other, &mut other_trail, label(2), b"other");
        recorder.record(mine, &mut trail, down, b"");
        let found: Vec<Recorded> = recorder.records(mine, trail).map(|record| record.recorded()).collect();
        let recorded = |label, raw: &[u8]| Recorded { conn: mine, label, length: raw.len() as u32, raw: raw.into() };
        assert_eq!(found, [recorded(down, b""), recorded(label(1), b"one")]);
        assert_eq!(raws(&recorder, other, other_trail), [b"other"]);
        assert_eq!(raws(&recorder, mine, Trail::default()), Vec::<Vec<u8>>::new());
    }

    #[test]
    fn long_frames_are_cut_and_say_so() {
        let mut recorder = Recorder::new(4096);
        let mut trail = Trail::default();
        for len in [FRAME_KEPT_MAX - 1, FRAME_KEPT_MAX, FRAME_KEPT_MAX + 1, 70_000] {
            recorder.record(conn(0, 1), &mut trail, label(0), &vec![9; len]);
            let last = recorder.records(conn(0, 1), trail).next().unwrap().recorded();
            assert_eq!((last.length as usize, last.raw.len()), (len, len.min(FRAME_KEPT_MAX)));
        }
    }

    #[test]
    fn a_successor_in_the_slot_sees_nothing_of_it() {
        let mut recorder = Recorder::new(4096);
        let mut trail = Trail::default();
        recorder.record(conn(0, 1), &mut trail, label(0), b"first");
        assert_eq!(raws(&recorder, conn(0, 2), trail), Vec::<Vec<u8>>::new());
        assert_eq!(raws(&recorder, conn(0, 1), trail), [b"first"]);
    }

    #[test]
    fn bytes_of_a_frame_are_read_in_place() {
        let mut recorder = Recorder::new(1);
        let mut trail = Trail::default();
        for _ in 0..100 {
            recorder.record(conn(0, 1), &mut trail, label(0), b"0123456789");
            let record = recorder.records(conn(0, 1), trail).next().unwrap();
            assert_eq!((record.bytes(5), record.bytes::<4>(7)), (Some(*b"5678"), None));
        }
    }

    #[test]
    fn off_is_off() {
        let mut recorder = Recorder::new(0);
        let mut trail = Trail::default();
        recorder.record(conn(0, 1), &mut trail, label(0), b"frame");
        assert_eq!((trail, recorder.ring.len()), (Trail::default(), 0));
        assert_eq!(raws(&recorder, conn(0, 1), trail), Vec::<Vec<u8>>::new());
    }

    #[test]
    fn memory_is_asked_for_with_the_first_frame() {
        let mut recorder = Recorder::new(1 << 20);
        assert_eq!(recorder.ring.len(), 0);
        recorder.record(conn(0, 1), &mut Trail::default(), label(0), b"frame");
        assert_eq!(recorder.ring.len(), 1 << 20);
    }

    /// What happens to a handful of slots.
    #[derive(Clone, Debug)]
    enum Step {
        Frame { slot: usize, len: usize },
        Reuse { slot: usize },
    }

    const SLOTS: usize = 4;

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            9 => (0..SLOTS, prop_oneof![0..40_usize, 480..560_usize]).prop_map(|(slot, len)| Step::Frame { slot, len }),
            1 => (0..SLOTS).prop_map(|slot| Step::Reuse { slot }),
        ]
    }

    proptest! {
        /// Against a list of everything ever written: each connection finds its newest records, in order and whole, back to
        /// the oldest that is not overwritten, and nothing else.
        #[test]
        fn a_list_of_everything_agrees(size in 542..2_000_usize, steps in vec(step(), 1..200)) {
            let mut recorder = Recorder::new(size);
            let mut conns = [(conn(0, 1), Trail::default()); SLOTS];
            for (slot, (id, _)) in conns.iter_mut().enumerate() {
                id.slot = slot as u32;
            }
            let mut all: Vec<(ConnId, u64, Vec<u8>)> = Vec::new();
            let mut written = 0_u64;
            for (number, step) in steps.into_iter().enumerate() {
                match step {
                    Step::Reuse { slot } => {
                        conns[slot].0.generation += 1;
                        conns[slot].1 = Trail::default();
                    }
                    Step::Frame { slot, len } => {
                        let frame: Vec<u8> = (0..len).map(|at| (number * 31 + at) as u8).collect();
                        let (id, trail) = &mut conns[slot];
                        recorder.record(*id, trail, label(number as i64), &frame);
                        let kept = frame[..len.min(FRAME_KEPT_MAX)].to_vec();
                        let begin = written;
                        written += (HEAD_LEN + kept.len()) as u64;
                        all.push((*id, begin, kept));
                    }
                }
                for (id, trail) in conns {
                    let left: Vec<Vec<u8>> = all
                        .iter()
                        .rev()
                        .filter(|(owner, begin, _)| *owner == id && written - begin <= size as u64)
                        .map(|(.., kept)| kept.clone())
                        .collect();
                    prop_assert_eq!(raws(&recorder, id, trail), left);
                }
            }
        }
    }
}
