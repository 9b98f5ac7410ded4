//! Flight recorder: the last frames of all connections of a shard, in one ring of bytes whose size is fixed.
//!
//! ```text
//! offsets rise for ever; a byte's place is its offset modulo the size
//!
//!   … │ head │ raw, 512 at most │ head │ raw │ …            ◀── written here, over what is oldest
//!        └─ back: how far away the connection's record before begins ──▶ …
//!
//! head: | what follows 1 | at 6 | slot 2 | generation 1 | epoch 0 to 4 | back 0 to 4 | length 0 to 3 |
//! ```
//!
//! Numbers take the bytes they need: most epochs fit into one, an answer lies right behind its question, and most frames are short.
//! That makes a head about half as long, so a ring holds more frames, and fewer pages of it are touched.
//!
//! A connection keeps a [`Trail`], the offset of its last record; each record leads to the one before. Recording a frame is a copy,
//! whatever is recorded: no allocation, no search, nothing to take out. The memory is asked for with the first frame, and pages that no frame has
//! touched are not resident.
//!
//! Invariants: a record is given out whole or not at all, because a record of which any byte is overwritten has lost its first one;
//! and it is given out only to the connection whose slot and generation it carries. A trail leads to records of its own connection
//! alone, so the few bytes of them that are kept are a check.
//!
//! No decoding here: frames are kept as they were on the wire, and explained by whoever shows them.

use std::collections::VecDeque;

use smallvec::SmallVec;

use super::{CloseReason, ConnId};
use crate::{model::DeviceId, protocol::Direction};

/// Bytes of a frame that are kept; only packets of firmware and garbage are longer.
pub const FRAME_KEPT_MAX: usize = 512;
/// Bytes in front of each frame, at most.
pub const HEAD_MAX: usize = 21;
/// Of them those that are always there: what follows, time, slot and generation.
const HEAD_MIN: usize = 10;
/// A head as it is put together, with room for what its numbers may need.
const HEAD_ROOM: usize = HEAD_MAX + 1;
/// Connections that ended and are remembered with the way to their frames.
const ENDED_MAX: usize = 1024;

/// Set in the first byte of the head: the server wrote it.
const DOWN: u8 = 1 << 7;
/// Set there: no frame, but bytes that were skipped.
const SKIPPED: u8 = 1 << 6;
/// More bytes than that are never read at a time.
const LENGTH: u32 = (1 << 22) - 1;
/// Bytes of an epoch, a way back and a length by the two bits of each in the first byte of the head.
const EPOCH_LENS: [usize; 4] = [0, 1, 2, 4];
const BACK_LENS: [usize; 4] = [0, 1, 3, 4];
const LENGTH_LENS: [usize; 4] = [0, 1, 2, 3];

const _: () = assert!(crate::shard::READ_BUFFER_BYTES <= LENGTH as usize, "a length fits into its bytes");

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
            bytes => bytes.clamp(HEAD_MAX + FRAME_KEPT_MAX, u32::MAX as usize),
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
        let length = u32::try_from(frame.len()).unwrap_or(u32::MAX).min(LENGTH);
        let (head, head_len) = head_of(conn, label, back, length);
        *trail = Trail(self.head);
        let len = head_len + kept.len();
        match self.ring.get_mut(self.place..self.place + len) {
            // What the head does not need of its room is written over by the frame.
            Some(place) if len >= HEAD_ROOM => {
                place[..HEAD_ROOM].copy_from_slice(&head);
                place[head_len..].copy_from_slice(kept);
                self.place += len;
                self.head += len as u64;
            }
            // Around the end of the ring, or hardly anything.
            _ => {
                self.put(&head[..head_len]);
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

/// A head with its length. Put together in registers: bytes that are stored one after the other and read as a whole right after
/// would cost more than the rest of it.
fn head_of(conn: ConnId, label: Label, back: u32, length: u32) -> ([u8; HEAD_ROOM], usize) {
    let (epoch, back, length) =
        (Number::new(label.epoch, EPOCH_LENS), Number::new(back, BACK_LENS), Number::new(length, LENGTH_LENS));
    let mut what = epoch.code | back.code << 2 | length.code << 4;
    if label.direction == Direction::Down {
        what |= DOWN;
    }
    if label.skipped {
        what |= SKIPPED;
    }
    let (s0, s1, generation) = tag_of(conn);
    let first = u64::from(what) | (label.at as u64) << 16 >> 8 | u64::from(s0) << 56;
    let numbers = u128::from(length.value) << (8 * (epoch.len + back.len))
        | u128::from(back.value) << (8 * epoch.len)
        | u128::from(epoch.value);
    let mut head = [0; HEAD_ROOM];
    head[..8].copy_from_slice(&first.to_le_bytes());
    [head[8], head[9]] = [s1, generation];
    head[HEAD_MIN..].copy_from_slice(&numbers.to_le_bytes()[..HEAD_ROOM - HEAD_MIN]);
    (head, HEAD_MIN + epoch.len + back.len + length.len)
}

/// A number as it goes into a head.
struct Number {
    value: u32,
    /// The two bits that say how many bytes it takes.
    code: u8,
    len: usize,
}

impl Number {
    const fn new(value: u32, lens: [usize; 4]) -> Self {
        let code = (value > 0) as u8 + (value >> (8 * lens[1]) > 0) as u8 + (value >> (8 * lens[2]) > 0) as u8;
        Self { value, code, len: lens[code as usize] }
    }
}

/// The number in `len` bytes of a head from `at` on, which moves behind it.
fn number(head: &[u8; HEAD_ROOM], at: &mut usize, len: usize) -> u32 {
    let mut bytes = [0; 4];
    bytes[..len].copy_from_slice(&head[*at..*at + len]);
    *at += len;
    u32::from_le_bytes(bytes)
}

/// What is kept of a connection's slot and generation.
const fn tag_of(conn: ConnId) -> (u8, u8, u8) {
    let [s0, s1, ..] = conn.slot.to_le_bytes();
    (s0, s1, conn.generation as u8)
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
    /// Where its frame begins.
    raw: u64,
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
        let mut head = [0; HEAD_ROOM];
        self.recorder.copy(offset, &mut head);
        let [what, a0, a1, a2, a3, a4, a5, s0, s1, generation, ..] = head;
        if (s0, s1, generation) != tag_of(self.conn) {
            self.next = Trail::default();
            return None;
        }
        let conn = self.conn;
        let mut at = HEAD_MIN;
        let epoch = number(&head, &mut at, EPOCH_LENS[usize::from(what & 3)]);
        let back = u64::from(number(&head, &mut at, BACK_LENS[usize::from(what >> 2 & 3)]));
        let length = number(&head, &mut at, LENGTH_LENS[usize::from(what >> 4 & 3)]);
        let raw = offset + at as u64;
        self.next = if back == 0 { Trail::default() } else { Trail(offset.saturating_sub(back)) };
        // Its sign is in the highest of the bytes that were kept.
        let at = i64::from_le_bytes([0, 0, a0, a1, a2, a3, a4, a5]) >> 16;
        let direction = if what & DOWN == 0 { Direction::Up } else { Direction::Down };
        let label = Label { at, direction, skipped: what & SKIPPED != 0, epoch };
        let kept = (length as usize).min(FRAME_KEPT_MAX);
        Some(Record { recorder: self.recorder, raw, conn, label, length, kept })
    }
}

impl Record<'_> {
    /// `N` bytes of the frame from `at`, where they were kept.
    pub fn bytes<const N: usize>(&self, at: usize) -> Option<[u8; N]> {
        let mut bytes = [0; N];
        if at + N > self.kept {
            return None;
        }
        self.recorder.copy(self.raw + at as u64, &mut bytes);
        Some(bytes)
    }

    /// A copy of it, as it is given out.
    pub fn recorded(&self) -> Recorded {
        let mut raw = vec![0; self.kept].into_boxed_slice();
        self.recorder.copy(self.raw, &mut raw);
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
                        let len = head_of(*id, label(number as i64), 0, len as u32).1 + kept.len();
                        let begin = written;
                        written = recorder.head - 1;
                        prop_assert!((len..=len + 4).contains(&((written - begin) as usize)), "{} bytes", written - begin);
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
