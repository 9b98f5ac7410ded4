//! The push of an image: which packet is next, and what the device's answers mean. Pure: no I/O, time is an argument.
//!
//! ```text
//!            written                ack              stored
//!   ready ───────────▶ waiting ───────────▶ storing ────────▶ ready (next packet), or over behind the last
//!     ▲                   │ error, 30 s
//!     └───────────────────┘ the packet again, or what the device asks for; too often: failed
//! ```
//!
//! - Packets are numbered from 1. One is under way at a time; the next goes out when the device's acknowledgement of this one
//!   is stored, so that an update goes on behind it after a lost connection or a restart.
//! - Each failed transmission of a packet counts until a packet is acknowledged that never was, and so does each start over:
//!   whatever a device answers, a push ends or waits.
//! - A device that asks for packet 0 means: start at packet 1. Acknowledgements that are late or come twice change nothing.
//!
//! Sources: device-server protocol v8.6, commands E0, E1, F8 and 05; host-server protocol v2.9, commands E2, FA, F9 and 15.

use std::sync::Arc;

use crate::{
    model::OtaMethod,
    protocol::ap3000::{
        body::OtaPacket,
        codes::UpdateResult,
        update::{CHUNK_LEGACY, Image, ImageError, Verification},
    },
};

/// A packet without reply is sent again after this, in milliseconds.
const REPLY_MS: u64 = 30_000;
/// Times a packet is sent again before an update with E0, E1, E2 or FA fails.
const RESENDS_MAX: u8 = 3;
/// Times a packet is sent again before an update with F8 or F9 starts over.
const RETRANSMISSIONS_MAX: u8 = 2;
/// Times an update starts over before it fails.
const STARTS_MAX: u8 = 5;
/// Distance between the message ids of one packet in two starts, and before and behind an answer that refused it.
const START_IDS: u16 = 4099;
const REFUSAL_IDS: u16 = 521;

/// Why an image cannot be pushed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PushError {
    /// The method sends no image.
    #[error("this method sends no image")]
    Method,
    /// The image does not fit the method.
    #[error(transparent)]
    Image(#[from] ImageError),
}

/// What is to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Out {
    /// FA without data: asks the host to begin.
    Trigger,
    /// A packet, from 1.
    Packet(u16),
}

/// What an input led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing: late, double, or for somebody else.
    Ignored,
    /// Something is to be sent: [`Push::next`] says what.
    Send,
    /// So many packets are with the device: to be stored, then [`Push::stored`]. Equal to [`Push::total`] at the end; 0 where
    /// the update starts over.
    Store(u16),
    /// Given up, one word.
    Failed(&'static str),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The packet at `at` may be sent.
    Ready,
    /// It was; its reply is waited for until then.
    Waiting { until: u64 },
    /// So many packets are being stored.
    Storing { packets: u16 },
    /// Done or failed.
    Over,
}

/// The push of one image to one device.
#[derive(Clone, Debug)]
pub struct Push {
    method: OtaMethod,
    chunk: usize,
    image: Arc<[u8]>,
    verification: Option<Verification>,
    total: u16,
    /// The packet that is next or under way; 0: the trigger.
    at: u16,
    /// The highest packet acknowledged since the last start.
    best: u16,
    /// Failed transmissions since then.
    failures: u8,
    /// Answers that refused a packet.
    refusals: u16,
    starts: u8,
    phase: Phase,
}

impl Push {
    /// Goes on behind the first `acked` packets.
    ///
    /// # Errors
    /// The method cannot send this image.
    pub fn new(
        method: OtaMethod,
        image: Arc<[u8]>,
        verification: Option<Verification>,
        acked: u16,
    ) -> Result<Self, PushError> {
        let chunk = method.chunk_bytes().ok_or(PushError::Method)?;
        let total = Image::new(&image, chunk, verification)?.total_packets();
        // The last packet's acknowledgement ends the task where it is stored, so at least that one is left.
        let best = acked.min(total - 1);
        let mut push = Self {
            method,
            chunk,
            image,
            verification,
            total,
            at: 0,
            best,
            failures: 0,
            refusals: 0,
            starts: 0,
            phase: Phase::Ready,
        };
        push.at = if best > 0 { best + 1 } else { push.first() };
        Ok(push)
    }

    /// Where a start begins: hosts are asked first.
    fn first(&self) -> u16 {
        u16::from(self.method != OtaMethod::Fa)
    }

    /// Its method.
    pub const fn method(&self) -> OtaMethod {
        self.method
    }

    /// Packets in all, the verification packet included.
    pub const fn total(&self) -> u16 {
        self.total
    }

    /// What is to be sent now, if anything is.
    pub fn next(&self) -> Option<Out> {
        (self.phase == Phase::Ready).then_some(if self.at == 0 { Out::Trigger } else { Out::Packet(self.at) })
    }

    /// Message id of what is next or under way. A packet that is sent again for want of a reply keeps it, so that a device that
    /// has it repeats its reply; one that was refused is a new command, or the device would repeat the refusal.
    pub fn message_id(&self) -> u16 {
        let starts = u16::from(self.starts).wrapping_mul(START_IDS);
        let refusals = self.refusals.wrapping_mul(REFUSAL_IDS);
        // The trigger has the first.
        self.at.wrapping_add(1).wrapping_add(starts).wrapping_add(refusals).max(1)
    }

    /// Hands the data of a packet to `write`; a number that the image does not have gives nothing.
    pub fn packet<T>(&self, no: u16, write: impl FnOnce(&OtaPacket<'_>) -> T) -> Option<T> {
        let image = Image::new(&self.image, self.chunk, self.verification).ok()?;
        image.packet(no, &mut [0; CHUNK_LEGACY]).map(|packet| write(&packet))
    }

    /// What [`Push::next`] said is on the wire.
    pub fn written(&mut self, now_ms: u64) {
        if self.phase == Phase::Ready {
            self.phase = Phase::Waiting { until: now_ms.saturating_add(REPLY_MS) };
        }
    }

    /// The device answered, or asked for something, by the update's own command.
    pub fn reply(&mut self, message_id: u16, result: UpdateResult, packet_no: u16) -> Step {
        let ours = message_id == self.message_id();
        if packet_no == 0 && (self.method == OtaMethod::Fa || result == UpdateResult::OK || !ours) {
            return self.requested(result);
        }
        if !matches!(self.phase, Phase::Waiting { .. }) || !ours {
            return Step::Ignored;
        }
        if result != UpdateResult::OK {
            self.refusals = self.refusals.wrapping_add(1);
        }
        match result {
            UpdateResult::OK if packet_no == self.at && self.at > 0 => self.acked(),
            UpdateResult::OK => Step::Ignored,
            _ if self.knows_only_two_results() || self.at == 0 => self.failed_once("packet_refused"),
            UpdateResult::BAD_SUM => self.give_up("bad_sum"),
            UpdateResult::WRONG_DEVICE_TYPE => self.give_up("wrong_device_type"),
            UpdateResult::NO_CHECK_PACKET => self.give_up("no_verification_packet"),
            UpdateResult::REFUSED => self.give_up("device_type_refused"),
            _ => self.resend(packet_no),
        }
    }

    const fn knows_only_two_results(&self) -> bool {
        matches!(self.method, OtaMethod::F8 | OtaMethod::F9 | OtaMethod::Fa)
    }

    /// A frame with packet 0: a host that is ready, or a device that wants to begin at packet 1.
    fn requested(&mut self, result: UpdateResult) -> Step {
        match self.phase {
            Phase::Over | Phase::Storing { .. } => Step::Ignored,
            Phase::Ready | Phase::Waiting { .. } if result != UpdateResult::OK => {
                if self.at > 0 {
                    return Step::Ignored;
                }
                self.refusals = self.refusals.wrapping_add(1);
                self.failed_once("host_refused")
            }
            Phase::Ready | Phase::Waiting { .. } if self.at == 0 => {
                self.at = 1;
                self.failures = 0;
                self.phase = Phase::Ready;
                Step::Send
            }
            Phase::Ready | Phase::Waiting { .. } => self.start_over(1),
        }
    }

    /// The device wants to begin at packet 1: 05 from a charger, 15 from a host.
    pub fn start_requested(&mut self) -> Step {
        match self.phase {
            // The next packet is answered with an error then, and that says the same.
            Phase::Over | Phase::Storing { .. } => Step::Ignored,
            Phase::Ready | Phase::Waiting { .. } => self.start_over(1),
        }
    }

    fn acked(&mut self) -> Step {
        let packet = self.at;
        if packet > self.best {
            self.best = packet;
            self.failures = 0;
            self.phase = Phase::Storing { packets: packet };
            return Step::Store(packet);
        }
        // Acknowledged before, and asked for again since.
        self.at = packet + 1;
        self.phase = Phase::Ready;
        Step::Send
    }

    /// Result 1: sends the packet the device asks for, or the same again where it asks for none there is.
    fn resend(&mut self, asked: u16) -> Step {
        if asked == 1 && self.at > 1 {
            return self.start_over(1);
        }
        let step = self.failed_once("packet_refused");
        if step == Step::Send && (1..=self.total).contains(&asked) {
            self.at = asked;
        }
        step
    }

    /// A transmission failed.
    fn failed_once(&mut self, reason: &'static str) -> Step {
        self.failures = self.failures.saturating_add(1);
        let starts_over = matches!(self.method, OtaMethod::F8 | OtaMethod::F9);
        if starts_over && self.failures > RETRANSMISSIONS_MAX {
            return self.start_over(self.first());
        }
        if self.failures > RESENDS_MAX {
            return self.give_up(reason);
        }
        self.phase = Phase::Ready;
        Step::Send
    }

    fn start_over(&mut self, at: u16) -> Step {
        if self.starts >= STARTS_MAX {
            return self.give_up("too_many_starts");
        }
        self.starts += 1;
        self.failures = 0;
        self.at = at;
        if self.best == 0 {
            self.phase = Phase::Ready;
            return Step::Send;
        }
        self.best = 0;
        self.phase = Phase::Storing { packets: 0 };
        Step::Store(0)
    }

    fn give_up(&mut self, reason: &'static str) -> Step {
        self.phase = Phase::Over;
        Step::Failed(reason)
    }

    /// What [`Step::Store`] named is committed.
    pub fn stored(&mut self, packets: u16) -> Step {
        if self.phase != (Phase::Storing { packets }) {
            return Step::Ignored;
        }
        if packets >= self.total {
            self.phase = Phase::Over;
            return Step::Ignored;
        }
        if packets > 0 {
            self.at = packets + 1;
        }
        self.phase = Phase::Ready;
        Step::Send
    }

    /// The time of [`Push::deadline`] has come.
    pub fn timeout(&mut self, now_ms: u64) -> Step {
        match self.phase {
            Phase::Waiting { until } if until <= now_ms => self.failed_once("no_reply"),
            _ => Step::Ignored,
        }
    }

    /// Stops waiting without a verdict: the device has something better to do. The packet is sent again later.
    pub fn rest(&mut self) {
        if matches!(self.phase, Phase::Waiting { .. }) {
            self.phase = Phase::Ready;
        }
    }

    /// When [`Push::timeout`] has something to do, monotonic ms; `u64::MAX`: never.
    pub const fn deadline(&self) -> u64 {
        match self.phase {
            Phase::Waiting { until } => until,
            Phase::Ready | Phase::Storing { .. } | Phase::Over => u64::MAX,
        }
    }

    /// Done, or given up.
    pub fn is_over(&self) -> bool {
        self.phase == Phase::Over
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PUSHED: [OtaMethod; 6] =
        [OtaMethod::E0, OtaMethod::E1, OtaMethod::E2, OtaMethod::F8, OtaMethod::F9, OtaMethod::Fa];
    fn image(len: usize) -> Arc<[u8]> {
        (0..len).map(|index| (index % 256) as u8).collect()
    }

    fn push(method: OtaMethod, len: usize) -> Push {
        Push::new(method, image(len), None, 0).unwrap()
    }

    fn verification(image: &[u8]) -> Verification {
        Verification::of(image, 0x29, 205)
    }

    fn chunk(push: &Push, no: u16) -> Option<Vec<u8>> {
        push.packet(no, |packet| {
            assert_eq!((packet.total_packets, packet.packet_no), (push.total(), no));
            packet.chunk.0.to_vec()
        })
    }

    /// Sends what is next and has it answered with `result` for packet `no`.
    fn answered(push: &mut Push, result: UpdateResult, no: u16) -> Step {
        assert!(push.next().is_some());
        push.written(0);
        push.reply(push.message_id(), result, no)
    }

    /// Sends the next packet, has it acknowledged and stored.
    fn pass(push: &mut Push) {
        let Some(Out::Packet(no)) = push.next() else { panic!("{push:?}") };
        assert_eq!(answered(push, UpdateResult::OK, no), Step::Store(no));
        push.stored(no);
    }

    #[test]
    fn packets_are_those_of_the_image() {
        let bytes = image(300);
        let push = Push::new(OtaMethod::E0, Arc::clone(&bytes), Some(verification(&bytes)), 0).unwrap();
        assert_eq!(push.total(), 3);
        assert_eq!(chunk(&push, 1).unwrap(), bytes[..200]);
        assert_eq!(chunk(&push, 3).unwrap(), verification(&bytes).to_chunk());
        assert_eq!((chunk(&push, 0), chunk(&push, 4)), (None, None));
        assert_eq!(chunk(&self::push(OtaMethod::F8, 300), 2).unwrap().len(), 256);
    }

    #[test]
    fn images_that_cannot_be_sent_are_refused() {
        let new = |method, len| Push::new(method, image(len), None, 0).map(|push| push.total());
        assert_eq!(new(OtaMethod::Ftp, 1), Err(PushError::Method));
        assert_eq!(new(OtaMethod::E0, 0), Err(PushError::Image(ImageError::Empty)));
        assert_eq!(new(OtaMethod::E0, 65_535 * 200), Ok(65_535));
    }

    #[test]
    fn the_next_packet_waits_for_the_store() {
        let mut push = push(OtaMethod::E0, 500);
        assert_eq!(answered(&mut push, UpdateResult::OK, 1), Step::Store(1));
        assert_eq!((push.next(), push.deadline()), (None, u64::MAX));
        assert_eq!(push.stored(7), Step::Ignored, "something else was stored");
        assert_eq!(push.stored(1), Step::Send);
        assert_eq!(push.next(), Some(Out::Packet(2)));
        pass(&mut push);
        assert_eq!(answered(&mut push, UpdateResult::OK, 3), Step::Store(3));
        push.stored(3);
        assert!(push.is_over() && push.next().is_none());
    }

    #[test]
    fn late_and_double_acknowledgements_change_nothing() {
        let mut push = push(OtaMethod::E0, 500);
        let id = push.message_id();
        pass(&mut push);
        push.written(0);
        let before = format!("{push:?}");
        for (id, no) in [(id, 1), (id, 2), (push.message_id(), 1), (push.message_id(), 3)] {
            assert_eq!(push.reply(id, UpdateResult::OK, no), Step::Ignored);
        }
        assert_eq!(push.reply(id, UpdateResult::RESEND, 1), Step::Ignored);
        assert_eq!(before, format!("{push:?}"));
    }

    #[test]
    fn silence_is_answered_three_times_and_then_ends_it() {
        let mut push = push(OtaMethod::E0, 500);
        pass(&mut push);
        for round in 0..3 {
            push.written(1_000);
            assert_eq!((push.deadline(), push.timeout(30_999)), (31_000, Step::Ignored));
            assert_eq!(push.timeout(31_000), Step::Send, "{round}");
            assert_eq!(push.next(), Some(Out::Packet(2)));
        }
        push.written(1_000);
        assert_eq!(push.timeout(31_000), Step::Failed("no_reply"));
        assert!(push.is_over());
    }

    #[test]
    fn a_new_packet_has_all_its_resends() {
        let mut push = push(OtaMethod::E0, 2_000);
        for _ in 0..10 {
            for _ in 0..3 {
                push.written(0);
                assert_eq!(push.timeout(30_000), Step::Send);
            }
            pass(&mut push);
        }
        assert!(push.is_over());
    }

    #[test]
    fn results_of_e0_resend_or_abort() {
        let mut push = push(OtaMethod::E0, 1_000);
        pass(&mut push);
        pass(&mut push);
        for (asked, next) in [(3, 3), (0, 3), (2, 2), (9, 3), (5, 5)] {
            let mut one = push.clone();
            assert_eq!(answered(&mut one, UpdateResult::RESEND, asked), Step::Send);
            assert_eq!(one.next(), Some(Out::Packet(next)), "asked for {asked}");
        }
        for (result, reason) in [
            (UpdateResult::BAD_SUM, "bad_sum"),
            (UpdateResult::WRONG_DEVICE_TYPE, "wrong_device_type"),
            (UpdateResult::NO_CHECK_PACKET, "no_verification_packet"),
            (UpdateResult::REFUSED, "device_type_refused"),
        ] {
            let mut one = push.clone();
            assert_eq!(answered(&mut one, result, 3), Step::Failed(reason));
            assert!(one.is_over());
        }
        assert_eq!(answered(&mut push, UpdateResult::RESEND, 1), Step::Store(0), "it lost all it had");
        assert_eq!((push.stored(0), push.next()), (Step::Send, Some(Out::Packet(1))));
    }

    #[test]
    fn f8_starts_over_behind_two_retransmissions() {
        let mut push = push(OtaMethod::F8, 1_000);
        pass(&mut push);
        for _ in 0..2 {
            assert_eq!(answered(&mut push, UpdateResult::RESEND, 2), Step::Send);
        }
        push.written(0);
        assert_eq!(push.timeout(30_000), Step::Store(0));
        assert_eq!((push.stored(0), push.next()), (Step::Send, Some(Out::Packet(1))));
        pass(&mut push);
        assert_eq!(push.start_requested(), Step::Store(0), "05 from the device");
    }

    #[test]
    fn a_host_is_asked_and_asks() {
        let mut push = push(OtaMethod::Fa, 500);
        assert_eq!(push.next(), Some(Out::Trigger));
        push.written(0);
        assert_eq!(push.reply(77, UpdateResult::RESEND, 0), Step::Send, "not ready: the trigger again");
        assert_eq!(push.next(), Some(Out::Trigger));
        push.written(0);
        assert_eq!(push.reply(77, UpdateResult::OK, 0), Step::Send);
        pass(&mut push);
        assert_eq!(push.next(), Some(Out::Packet(2)));
        assert_eq!(push.reply(78, UpdateResult::OK, 0), Step::Store(0), "every request means packet 1");
        push.stored(0);
        assert_eq!(push.next(), Some(Out::Packet(1)));
        let resumed = Push::new(OtaMethod::Fa, image(500), None, 2).unwrap();
        assert_eq!(resumed.next(), Some(Out::Packet(3)), "no trigger in the middle");
    }

    #[test]
    fn an_unexpected_e0_of_packet_0_means_packet_1() {
        let mut push = push(OtaMethod::E0, 500);
        pass(&mut push);
        push.written(0);
        assert_eq!(push.reply(999, UpdateResult::OK, 0), Step::Store(0));
        push.stored(0);
        assert_eq!(push.next(), Some(Out::Packet(1)));
    }

    #[test]
    fn resting_costs_no_resend() {
        let mut push = push(OtaMethod::E0, 500);
        for _ in 0..100 {
            push.written(0);
            push.rest();
            assert_eq!((push.deadline(), push.next()), (u64::MAX, Some(Out::Packet(1))));
        }
        let id = push.message_id();
        pass(&mut push);
        assert_ne!(id, push.message_id());
    }

    /// What happens to one packet on its way.
    #[derive(Clone, Copy, Debug)]
    enum Fate {
        /// It is acknowledged.
        Acked,
        /// The reply is lost; the device has it.
        ReplyLost,
        /// It is lost.
        Lost,
        /// The connection, or the gateway, is lost before the acknowledgement is stored.
        Reconnect,
        /// The device loses what it has and asks for the start.
        Restart,
        /// An old acknowledgement comes first.
        Late,
    }

    fn fate() -> impl Strategy<Value = Fate> {
        prop_oneof![
            12 => Just(Fate::Acked),
            1 => Just(Fate::ReplyLost),
            1 => Just(Fate::Lost),
            1 => Just(Fate::Reconnect),
            1 => Just(Fate::Restart),
            1 => Just(Fate::Late),
        ]
    }

    proptest! {
        /// A device that does its part ends with the exact image, whatever happens on the way, or the push ends for want of
        /// replies.
        #[test]
        fn a_perfect_device_has_the_exact_image(
            method in prop::sample::select(&PUSHED[..]),
            len in 1_usize..2_000,
            verify in any::<bool>(),
            fates in prop::collection::vec(fate(), 0..80),
        ) {
            let image = image(len);
            let verification = (verify && method.chunk_bytes() == Some(200)).then(|| verification(&image));
            let mut push = Push::new(method, Arc::clone(&image), verification, 0).unwrap();
            let (chunk, total) = (method.chunk_bytes().unwrap(), push.total());
            let mut has: Vec<u8> = Vec::new();
            let mut stored = 0;
            let mut fates = fates.into_iter();
            let failed = loop {
                if push.is_over() {
                    break false;
                }
                let Some(out) = push.next() else { panic!("{push:?}") };
                push.written(0);
                let id = push.message_id();
                let fate = fates.next().unwrap_or(Fate::Acked);
                let (packet_no, result) = match out {
                    Out::Trigger => (0, UpdateResult::OK),
                    Out::Packet(no) => {
                        prop_assert!((1..=total).contains(&no));
                        let data = self::chunk(&push, no).unwrap();
                        prop_assert_eq!(data.len(), chunk);
                        // It keeps what follows on what it has; packet 1 begins anew; what it has it acknowledges again.
                        let at = usize::from(no - 1) * chunk;
                        if !matches!(fate, Fate::Lost) {
                            if no == 1 {
                                has.clear();
                            }
                            prop_assert!(at <= has.len(), "packet {} leaves a hole", no);
                            has.truncate(at);
                            has.extend_from_slice(&data);
                        }
                        (no, UpdateResult::OK)
                    }
                };
                let step = match fate {
                    Fate::Acked => push.reply(id, result, packet_no),
                    Fate::ReplyLost | Fate::Lost => push.timeout(30_000),
                    Fate::Late => {
                        prop_assert_eq!(push.reply(id.wrapping_sub(1), UpdateResult::OK, packet_no.max(2) - 1), Step::Ignored);
                        push.reply(id, result, packet_no)
                    }
                    Fate::Reconnect => {
                        push.reply(id, result, packet_no);
                        push = Push::new(method, Arc::clone(&image), verification, stored).unwrap();
                        Step::Send
                    }
                    Fate::Restart => {
                        has.clear();
                        push.start_requested()
                    }
                };
                match step {
                    Step::Store(packets) => {
                        stored = packets;
                        push.stored(packets);
                    }
                    Step::Failed(_) => break true,
                    Step::Send => {}
                    Step::Ignored => panic!("{fate:?} {push:?}"),
                }
            };
            if !failed {
                prop_assert_eq!(stored, total);
                prop_assert_eq!(&has[..len], &image[..]);
            }
        }

        /// Whatever a device answers, the push ends, and never sends a packet the image does not have.
        #[test]
        fn any_device_comes_to_an_end(
            method in prop::sample::select(&PUSHED[..]),
            len in 1_usize..1_000,
            inputs in prop::collection::vec((0_u8..5, 0_u8..8, 0_u16..9, any::<bool>()), 4_000),
        ) {
            let mut push = push(method, len);
            let mut sent = 0;
            for (kind, result, packet_no, ours) in inputs {
                match push.next() {
                    Some(Out::Packet(no)) => {
                        prop_assert!((1..=push.total()).contains(&no));
                        sent += 1;
                    }
                    Some(Out::Trigger) => prop_assert_eq!(method, OtaMethod::Fa),
                    None => {}
                }
                push.written(0);
                let id = push.message_id().wrapping_add(u16::from(!ours));
                let step = match kind {
                    0 => push.timeout(30_000),
                    1 => push.start_requested(),
                    // As the device it is for does it.
                    2 => push.reply(id, UpdateResult::OK, push.at),
                    _ => push.reply(id, UpdateResult(result), packet_no),
                };
                match step {
                    Step::Store(packets) => {
                        prop_assert!(packets <= push.total());
                        push.stored(packets);
                    }
                    Step::Failed(_) => prop_assert!(push.is_over()),
                    Step::Send => prop_assert!(push.next().is_some()),
                    Step::Ignored => {}
                }
            }
            prop_assert!(push.is_over(), "{} packets sent: {:?}", sent, push);
        }
    }
}
