//! Says what stands in captured bytes: every frame, greeting and keepalive, and what is wrong with the rest.
//!
//! For people and tools that look at a capture, not for connections: a connection has one codec, a capture may mix both,
//! begin inside a frame and end inside another.
//!
//! ```text
//! bytes ── findings() ──> Finding ──┬─ Serialize ──> one JSON object
//!                                   └─ Display ────> a paragraph in words
//! ```
//!
//! Invariant: findings follow each other without gap or overlap, so their bytes are the whole capture. A refused frame
//! never hides a sound one: it ends where the next sound item begins.

mod words;

use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};

use super::ap3000::{self, Item, Magics, PhyId, guess_direction};
use super::bkv::{self, GatewayId};
use super::detect::{Detected, Detection, detect};
use super::{DecodeError, Direction, Hex, SkipReason, Step};

/// Longest BKV/GN frame, from magic to tail.
const BKV_FRAME_MAX: usize = bkv::frame::LENGTH_MAX.saturating_add(BKV_UNCOUNTED_LEN);
/// Magic and length field of a BKV/GN frame, which its length does not count.
const BKV_UNCOUNTED_LEN: usize = 4;
/// Magic and length field of an AP3000 frame, which its length does not count.
const AP3000_UNCOUNTED_LEN: usize = 5;
/// Everything in front of an AP3000 frame's data.
const AP3000_HEAD_LEN: usize = 12;

/// A stretch of a capture and what it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Finding<'a> {
    /// Where it begins in the capture, counted from 0.
    pub offset: usize,
    /// Its bytes, at least one.
    pub bytes: &'a [u8],
    /// What they are.
    pub kind: Kind<'a>,
}

/// What a stretch of a capture is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind<'a> {
    /// A sound AP3000 frame and who sent it.
    Ap3000(ap3000::Frame<'a>, Sender),
    /// A sound BKV/GN frame.
    Bkv(bkv::Frame<'a>),
    /// ICCID greeting of an AP3000 communication module.
    Iccid(&'a [u8; ap3000::frame::ICCID_LEN]),
    /// Keepalive of an AP3000 communication module.
    Link,
    /// Begins like a frame and is none.
    Refused(Refused),
    /// Begins like nothing.
    Noise,
}

/// Who sent an AP3000 frame. Its bytes do not say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sender {
    /// Device or server.
    pub direction: Direction,
    /// Whether this is [`guess_direction`]'s guess, which is wrong for replies that look like their request.
    pub guessed: bool,
}

/// A frame that no connection would accept, as far as its header goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused {
    /// What is wrong with it.
    pub fault: Fault,
    /// Whether the checksum is there and agrees.
    pub checksum_ok: bool,
    /// Who sent it; not known of an AP3000 frame that is not whole.
    pub sender: Option<Sender>,
    /// Its header.
    pub header: Header,
}

/// Why a frame is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// The length field is outside the protocol's range.
    #[error("length field says {length}, which is outside the protocol's range")]
    BadLength {
        /// The length field.
        length: u16,
    },
    /// The checksum does not agree.
    #[error("checksum is {found:#x}, but the bytes add up to {computed:#x}")]
    BadChecksum {
        /// Checksum in the frame.
        found: u16,
        /// Checksum of its bytes.
        computed: u16,
    },
    /// The frame does not end with its tail (BKV/GN).
    #[error("frame does not end with fc ee where its length field says")]
    BadTail,
    /// The direction byte contradicts the magic (BKV/GN).
    #[error("direction byte contradicts the magic")]
    BadDirection,
    /// The capture ends, or a sound item begins, before the frame is whole.
    #[error("frame is cut off: need {need} bytes, have {have}")]
    CutOff {
        /// Bytes of the frame, or of magic and length field where these are cut.
        need: usize,
        /// Bytes there are.
        have: usize,
    },
}

impl Fault {
    /// The name of the fault in `decode --json`; those of [`SkipReason`] and `cut_off`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::BadLength { .. } => SkipReason::BadLength.as_str(),
            Self::BadChecksum { .. } => SkipReason::BadChecksum.as_str(),
            Self::BadTail => SkipReason::BadTail.as_str(),
            Self::BadDirection => SkipReason::BadDirection.as_str(),
            Self::CutOff { .. } => "cut_off",
        }
    }
}

/// The header of a refused frame. `None`: the capture ends before the field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Header {
    /// AP3000.
    Ap3000 {
        /// Physical id.
        phy_id: Option<PhyId>,
        /// Message id.
        msg_id: Option<u16>,
        /// Command code.
        command: Option<u8>,
    },
    /// BKV/GN.
    Bkv {
        /// Command word.
        command: Option<u16>,
        /// Sequence.
        sequence: Option<u32>,
        /// Gateway id.
        gateway_id: Option<GatewayId>,
    },
}

/// Goes through a capture from its first byte to its last.
///
/// `direction` is the sender of its AP3000 frames if the capture holds one side only; else it is guessed for each frame.
/// BKV/GN frames say theirs.
pub const fn findings<'a>(bytes: &'a [u8], magics: &'a Magics, direction: Option<Direction>) -> Findings<'a> {
    Findings { bytes, magics, direction, at: 0 }
}

/// Fields that open something: what they hold is explained to nobody.
const SECRETS: [&str; 2] = ["user_card_key", "new_card_key"];

/// What `decode` says of one frame, line by line, without what its secrets are. The frame's own magic counts as known.
pub fn explained(frame: &[u8], direction: Direction) -> Vec<String> {
    let magic = frame.first_chunk().and_then(|magic| Magics::new(&[*magic]).ok());
    let magics = magic.unwrap_or_default();
    let mut lines = Vec::new();
    for finding in findings(frame, &magics, Some(direction)) {
        lines.extend(finding.to_string().lines().map(|line| {
            let name = line.trim_start().split_once(':').map_or("", |(name, _)| name);
            if SECRETS.contains(&name) { format!("  {name}: not shown") } else { line.to_owned() }
        }));
    }
    lines
}

/// Iterates the findings of a capture.
#[derive(Clone, Debug)]
pub struct Findings<'a> {
    bytes: &'a [u8],
    magics: &'a Magics,
    direction: Option<Direction>,
    at: usize,
}

/// What begins at a byte.
enum Start<'a> {
    Sound(Kind<'a>, usize),
    /// The length that the frame claims, if that can be believed.
    Refused(Refused, Option<usize>),
    Nothing,
}

impl<'a> Iterator for Findings<'a> {
    type Item = Finding<'a>;

    fn next(&mut self) -> Option<Finding<'a>> {
        let offset = self.at;
        if self.rest(offset).is_empty() {
            return None;
        }
        let start = self.start(offset);
        let len = match start {
            Start::Sound(_, len) => len,
            Start::Refused(_, Some(claimed)) => self.run(offset, claimed, |start| matches!(start, Start::Sound(..))),
            Start::Refused(_, None) | Start::Nothing => {
                self.run(offset, usize::MAX, |start| !matches!(start, Start::Nothing))
            }
        };
        let (bytes, _) = self.rest(offset).split_at_checked(len)?;
        let kind = match start {
            Start::Sound(kind, _) => kind,
            Start::Refused(refused, _) => Kind::Refused(refused.within(bytes)),
            Start::Nothing => Kind::Noise,
        };
        self.at = offset.saturating_add(len);
        Some(Finding { offset, bytes, kind })
    }
}

impl<'a> Findings<'a> {
    fn rest(&self, at: usize) -> &'a [u8] {
        self.bytes.get(at..).unwrap_or_default()
    }

    /// Bytes from `offset` to where something begins that ends the run, `len_max` at most.
    fn run(&self, offset: usize, len_max: usize, ends: impl Fn(&Start<'a>) -> bool) -> usize {
        let len_max = len_max.min(self.rest(offset).len());
        (1..len_max).find(|len| ends(&self.start(offset.saturating_add(*len)))).unwrap_or(len_max)
    }

    fn start(&self, at: usize) -> Start<'a> {
        let rest = self.rest(at);
        match detect(rest, self.magics) {
            Detection::Known(Detected::Ap3000) => self.ap3000(window(rest, ap3000::frame::FRAME_MAX)),
            Detection::Known(Detected::Bkv) => bkv_start(window(rest, BKV_FRAME_MAX)),
            Detection::NeedMore | Detection::Unknown => Start::Nothing,
        }
    }

    fn ap3000(&self, bytes: &'a [u8]) -> Start<'a> {
        let reason = match ap3000::deframe(bytes, self.magics) {
            Step::Item { item, consumed } => {
                let kind = match item {
                    Item::Frame(frame) => Kind::Ap3000(frame, self.sender(&frame)),
                    Item::Iccid(iccid) => Kind::Iccid(iccid),
                    Item::Link => Kind::Link,
                };
                return Start::Sound(kind, consumed);
            }
            Step::Skip { reason: SkipReason::Noise, .. } => return Start::Nothing,
            Step::Skip { reason, .. } => Some(reason),
            Step::NeedMore => None,
        };
        match bytes.first_chunk() {
            Some(magic) if self.magics.contains(*magic) => self.refused_ap3000(bytes, *magic, reason),
            // The beginning of a greeting.
            _ => Start::Nothing,
        }
    }

    fn sender(&self, frame: &ap3000::Frame<'_>) -> Sender {
        let given = self.direction.map(|direction| Sender { direction, guessed: false });
        given.unwrap_or_else(|| Sender { direction: guess_direction(frame), guessed: true })
    }

    fn refused_ap3000(&self, bytes: &'a [u8], magic: [u8; 3], reason: Option<SkipReason>) -> Start<'a> {
        let length = bytes_at(bytes, 3).map(u16::from_le_bytes);
        let header = Header::ap3000(bytes);
        let given = self.direction.map(|direction| Sender { direction, guessed: false });
        let cut = |need| Refused {
            fault: Fault::CutOff { need, have: bytes.len() },
            checksum_ok: false,
            sender: given,
            header,
        };
        let Some(length) = length else { return Start::Refused(cut(AP3000_UNCOUNTED_LEN), None) };
        if reason == Some(SkipReason::BadLength) {
            let fault = Fault::BadLength { length };
            return Start::Refused(Refused { fault, checksum_ok: false, sender: given, header }, None);
        }
        let claimed = AP3000_UNCOUNTED_LEN.saturating_add(usize::from(length));
        let whole = bytes.get(..claimed).and_then(|raw| {
            let (summed, sum) = raw.split_last_chunk()?;
            let (_, data) = summed.split_first_chunk::<AP3000_HEAD_LEN>()?;
            let Header::Ap3000 { phy_id, msg_id, command } = header else { return None };
            let frame = ap3000::Frame { magic, phy_id: phy_id?, msg_id: msg_id?, command: command?, data, raw };
            let (found, computed) = (u16::from_le_bytes(*sum), ap3000::frame::checksum(summed));
            Some(Refused {
                fault: Fault::BadChecksum { found, computed },
                checksum_ok: found == computed,
                sender: Some(self.sender(&frame)),
                header,
            })
        });
        Start::Refused(whole.unwrap_or_else(|| cut(claimed)), Some(claimed))
    }
}

fn bytes_at<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

fn window(bytes: &[u8], len_max: usize) -> &[u8] {
    bytes.get(..len_max).unwrap_or(bytes)
}

fn bkv_start(bytes: &[u8]) -> Start<'_> {
    let reason = match bkv::deframe(bytes) {
        Step::Item { item, consumed } => return Start::Sound(Kind::Bkv(item), consumed),
        Step::Skip { reason, .. } => Some(reason),
        Step::NeedMore => None,
    };
    let direction = if bytes.starts_with(&bkv::frame::MAGIC_UP) { Direction::Up } else { Direction::Down };
    let length = bytes_at(bytes, 2).map(u16::from_be_bytes);
    let refused = |fault, checksum_ok| Refused {
        fault,
        checksum_ok,
        sender: Some(Sender { direction, guessed: false }),
        header: Header::bkv(bytes),
    };
    let cut = |need| refused(Fault::CutOff { need, have: bytes.len() }, false);
    let Some(length) = length else { return Start::Refused(cut(BKV_UNCOUNTED_LEN), None) };
    if reason == Some(SkipReason::BadLength) {
        return Start::Refused(refused(Fault::BadLength { length }, false), None);
    }
    let claimed = BKV_UNCOUNTED_LEN.saturating_add(usize::from(length));
    let whole = bytes.get(..claimed).and_then(|raw| {
        let (head, &[sum, _, _]) = raw.split_last_chunk::<3>()?;
        let (_, summed) = head.split_first_chunk::<2>()?;
        let computed = bkv::frame::checksum(summed);
        let fault = match reason? {
            SkipReason::BadTail => Fault::BadTail,
            SkipReason::BadDirection => Fault::BadDirection,
            SkipReason::BadChecksum | SkipReason::BadLength | SkipReason::Noise => {
                Fault::BadChecksum { found: sum.into(), computed: computed.into() }
            }
        };
        Some(refused(fault, sum == computed))
    });
    Start::Refused(whole.unwrap_or_else(|| cut(claimed)), Some(claimed))
}

/// The fields of a sound frame, or why they cannot be read.
enum Fields<'a> {
    Ap3000(ap3000::Body<'a>),
    Bkv(bkv::Body<'a>),
}

impl Serialize for Fields<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Ap3000(body) => body.serialize(serializer),
            Self::Bkv(body) => body.serialize(serializer),
        }
    }
}

/// What all frames have, sound or refused.
struct Framed<'a> {
    header: Header,
    sender: Option<Sender>,
    name: Option<&'static str>,
    checksum_ok: bool,
    /// `Err`: the fault's name and text.
    fields: Result<Fields<'a>, (&'static str, String)>,
}

impl<'a> Finding<'a> {
    fn framed(&self) -> Option<Framed<'a>> {
        let unread = |error: DecodeError| ("bad_body", error.to_string());
        Some(match self.kind {
            Kind::Ap3000(frame, sender) => Framed {
                header: Header::Ap3000 {
                    phy_id: Some(frame.phy_id),
                    msg_id: Some(frame.msg_id),
                    command: Some(frame.command),
                },
                sender: Some(sender),
                name: ap3000::lookup(frame.command).map(|row| row.name),
                checksum_ok: true,
                fields: ap3000::decode_body(&frame, sender.direction).map(Fields::Ap3000).map_err(unread),
            },
            Kind::Bkv(frame) => Framed {
                header: Header::Bkv {
                    command: Some(frame.command),
                    sequence: Some(frame.sequence),
                    gateway_id: Some(frame.gateway_id),
                },
                sender: Some(Sender { direction: frame.direction, guessed: false }),
                name: bkv::command::lookup(frame.command, frame.sub()).map(|row| row.name),
                checksum_ok: true,
                fields: bkv::decode_body(&frame).map(Fields::Bkv).map_err(unread),
            },
            Kind::Refused(refused) => Framed {
                header: refused.header,
                sender: refused.sender,
                name: match refused.header {
                    Header::Ap3000 { command, .. } => command.and_then(ap3000::lookup).map(|row| row.name),
                    Header::Bkv { command, .. } => command.and_then(|command| self.refused_bkv_name(command)),
                },
                checksum_ok: refused.checksum_ok,
                fields: Err((refused.fault.as_str(), refused.fault.to_string())),
            },
            Kind::Iccid(_) | Kind::Link | Kind::Noise => return None,
        })
    }
}

impl Finding<'_> {
    /// The sub-command names the command, and stands in the payload.
    fn refused_bkv_name(&self, command: u16) -> Option<&'static str> {
        let frame = bkv::Frame {
            direction: Direction::Up,
            command,
            sequence: 0,
            gateway_id: GatewayId::default(),
            payload: self.bytes.get(bkv::frame::HEAD_LEN..).unwrap_or_default(),
            raw: self.bytes,
        };
        bkv::command::lookup(command, frame.sub()).map(|row| row.name)
    }
}

impl Refused {
    /// The same frame where a sound item leaves it only these bytes.
    fn within(self, bytes: &[u8]) -> Self {
        let fault = match self.fault {
            Fault::CutOff { need, .. } => Fault::CutOff { need, have: bytes.len() },
            fault @ (Fault::BadLength { .. } | Fault::BadChecksum { .. } | Fault::BadTail | Fault::BadDirection) => {
                fault
            }
        };
        let header = match self.header {
            Header::Ap3000 { .. } => Header::ap3000(bytes),
            Header::Bkv { .. } => Header::bkv(bytes),
        };
        Self { fault, header, ..self }
    }
}

impl Header {
    fn ap3000(frame: &[u8]) -> Self {
        Self::Ap3000 {
            phy_id: bytes_at(frame, 5).map(PhyId),
            msg_id: bytes_at(frame, 9).map(u16::from_le_bytes),
            command: bytes_at(frame, 11).map(u8::from_le_bytes),
        }
    }

    fn bkv(frame: &[u8]) -> Self {
        Self::Bkv {
            command: bytes_at(frame, 4).map(u16::from_be_bytes),
            sequence: bytes_at(frame, 6).map(u32::from_be_bytes),
            gateway_id: bytes_at(frame, 11).map(GatewayId),
        }
    }

    /// The command as in `testdata/vectors`: `0x8A` for AP3000, `0x1000` for BKV/GN.
    fn code(&self) -> Option<String> {
        match self {
            Self::Ap3000 { command, .. } => command.map(|command| format!("0x{command:02X}")),
            Self::Bkv { command, .. } => command.map(|command| format!("0x{command:04X}")),
        }
    }
}

/// One object of `decode --json`.
///
/// `item` is `frame`, `iccid`, `link` or `noise`; `offset` and `hex` are the place in the capture. Frames, greetings and
/// keepalives have `protocol`, `direction` and `fields`; frames also `cmd`, `name`, `msg_id` and `phy_id` or `seq` and
/// `gateway_id`, and `checksum_ok`. A frame that is refused, or whose body cannot be read, has null `fields`, a
/// `reason` and an `error`.
impl Serialize for Finding<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        match self.kind {
            Kind::Ap3000(..) | Kind::Bkv(_) | Kind::Refused(_) => {
                map.serialize_entry("item", "frame")?;
                if let Some(framed) = self.framed() {
                    serialize_framed(&mut map, &framed)?;
                }
            }
            Kind::Iccid(iccid) => {
                map.serialize_entry("item", "iccid")?;
                map.serialize_entry("protocol", "ap3000")?;
                map.serialize_entry("direction", Direction::Up.as_str())?;
                map.serialize_entry("fields", &serde_json::json!({ "iccid": iccid.escape_ascii().to_string() }))?;
            }
            Kind::Link => {
                map.serialize_entry("item", "link")?;
                map.serialize_entry("protocol", "ap3000")?;
                map.serialize_entry("direction", Direction::Up.as_str())?;
                map.serialize_entry("fields", &serde_json::json!({ "text": "link" }))?;
            }
            Kind::Noise => {
                map.serialize_entry("item", "noise")?;
                map.serialize_entry("reason", SkipReason::Noise.as_str())?;
            }
        }
        map.serialize_entry("offset", &self.offset)?;
        map.serialize_entry("hex", &Hex(self.bytes))?;
        map.end()
    }
}

fn serialize_framed<M: SerializeMap>(map: &mut M, framed: &Framed<'_>) -> Result<(), M::Error> {
    let protocol = match framed.header {
        Header::Ap3000 { .. } => "ap3000",
        Header::Bkv { .. } => "bkv",
    };
    map.serialize_entry("protocol", protocol)?;
    map.serialize_entry("direction", &framed.sender.map(|sender| sender.direction.as_str()))?;
    map.serialize_entry("cmd", &framed.header.code())?;
    map.serialize_entry("name", &framed.name)?;
    match framed.header {
        Header::Ap3000 { phy_id, msg_id, .. } => {
            map.serialize_entry("msg_id", &msg_id)?;
            map.serialize_entry("phy_id", &phy_id)?;
        }
        Header::Bkv { sequence, gateway_id, .. } => {
            map.serialize_entry("seq", &sequence.map(|sequence| Hex(sequence.to_be_bytes())))?;
            map.serialize_entry("gateway_id", &gateway_id)?;
        }
    }
    map.serialize_entry("checksum_ok", &framed.checksum_ok)?;
    match &framed.fields {
        Ok(fields) => map.serialize_entry("fields", fields),
        Err((reason, error)) => {
            map.serialize_entry("fields", &())?;
            map.serialize_entry("reason", reason)?;
            map.serialize_entry("error", error)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::ap3000::body::UserCard;
    use crate::protocol::ap3000::encode;
    use crate::protocol::ap3000::wire::{Extra, Raw};

    #[test]
    fn card_keys_are_not_explained() {
        let keys = UserCard {
            user_card_sector: 3,
            user_card_key: Raw([0xA1; 6]),
            new_card_key: Raw([0xB2; 6]),
            extra: Extra::NONE,
        };
        let header = encode::Header { magic: *b"XYZ", phy_id: PhyId([1, 2, 3, 4]), msg_id: 9 };
        let mut frame = Vec::new();
        encode::body(&mut frame, &header, 0x86, &keys).expect("short");
        let lines = explained(&frame, Direction::Down);
        assert!(lines.iter().any(|line| line == "  user_card_key: not shown"), "{lines:#?}");
        assert!(lines.iter().any(|line| line == "  user_card_sector: 3"), "{lines:#?}");
        assert!(!lines.iter().any(|line| line.contains("a1a1") || line.contains("b2b2")), "{lines:#?}");
        assert!(findings(&frame, &Magics::new(&[*b"XYZ"]).unwrap(), None).any(|it| it.to_string().contains("a1a1")));
    }
}
